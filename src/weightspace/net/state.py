"""The one state of torch that results are defined in."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import torch

__all__ = ["settled"]


_DEVICES = ("cpu", "cuda", "mps", "xpu")
_SETTLED = nullcontext()


def settled(dtype: torch.dtype = torch.float32, grad: bool = True) -> AbstractContextManager[Any]:
    """A context in which torch is in the one state that results are defined in; the caller's comes back after it.

    No autocast, `dtype` as the default, the CPU as the default device; with `grad`, derivatives are recorded and no
    tensor is born in inference mode. It costs a microsecond where the state is so already.
    """
    cast = torch._C._is_any_autocast_enabled()
    modes = torch._C._len_torch_function_stack()  # a default device is such a mode
    quiet = grad and (torch.is_inference_mode_enabled() or not torch.is_grad_enabled())
    before = torch.get_default_dtype()
    if not (cast or modes or quiet) and before is dtype:
        return _SETTLED
    stack = ExitStack()
    for device in _DEVICES if cast else ():
        if torch.is_autocast_enabled(device):
            stack.enter_context(torch.autocast(device, enabled=False))
    if quiet:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
    if before is not dtype:
        torch.set_default_dtype(dtype)
        stack.callback(torch.set_default_dtype, before)
    if modes and torch.get_default_device().type != "cpu":
        stack.enter_context(torch.device("cpu"))
    return stack
