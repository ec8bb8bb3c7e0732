"""The global state of torch (grad mode, autocast, default dtype and device) in which results are computed."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import torch

__all__ = ["settled"]


_DEVICES = ("cpu", "cuda", "mps", "xpu")
_SETTLED = nullcontext()


def settled(dtype: torch.dtype = torch.float32, grad: bool = True) -> AbstractContextManager[Any]:
    """A context in which torch's global state is fixed; the caller's state is restored after it.

    No autocast, `dtype` as the default dtype, the CPU as the default device; with `grad`, gradients are enabled and
    inference mode is off. It takes a microsecond where the state is right already.
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
