"""Calls of activation functions in a forward pass: met by name, observed or replaced."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net
from weightspace.net.state import exclusive, math_attention

__all__ = ["KINKED", "LINEAR", "MAPS", "SMOOTH", "UNITS", "Call", "Meet", "rows_of", "watching", "whole"]


KINKED = {"relu", "leaky_relu", "prelu", "rrelu", "threshold", "clamp", "clamp_min"}
SMOOTH = {"gelu", "silu", "mish", "elu", "selu", "celu", "hardswish", "relu6", "softplus"}
MAPS = {"linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"}


def _named(names: set[str]) -> dict[Any, str]:
    found = {}
    for home in (torch, F, Tensor, torch._C._nn):
        for name in names:
            for spelled in (name, f"{name}_"):
                if function := getattr(home, spelled, None):
                    found[function] = name
    return found


UNITS, LINEAR = _named(KINKED | SMOOTH), _named(MAPS)

Call = Callable[..., Tensor]  # the intercepted function, of its own first argument or of another
Meet = Callable[[str, str, Tensor, Call], Tensor]


class _Watch(TorchFunctionMode):
    """A mode that calls `meet(layer, function, first argument, call)` in place of every call of `functions`."""

    def __init__(self, functions: Mapping[Any, str], meet: Meet) -> None:
        super().__init__()
        self.functions, self.meet, self.inside, self.seen = functions, meet, [("", False)], dict[str, int]()

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = self.functions.get(func)
        if name is None or not _kink_at_zero(name, args, kwargs):
            return func(*args, **kwargs)
        path, alone = self.inside[-1]
        label = path if alone else f"{path}.{name}".lstrip(".")
        self.seen[label] = self.seen.get(label, 0) + 1
        if self.seen[label] > 1:
            label = f"{label}#{self.seen[label]}"
        z = args[0] if args else kwargs["input"]
        rest = {key: value for key, value in kwargs.items() if key != "input"}
        out = self.meet(label, name, z, lambda other=z: func(other, *args[1:], **rest))
        in_place = func.__name__.endswith("_") or rest.get("inplace") or any(a is True for a in args[1:])
        return z.copy_(out) if in_place and out is not z else out


def _kink_at_zero(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a clamp or threshold is a ReLU: max(0, z)."""
    if name == "threshold":
        return (*args[1:3], *(kwargs[k] for k in ("threshold", "value") if k in kwargs)) == (0, 0)
    if name not in ("clamp", "clamp_min"):
        return True
    low = args[1] if len(args) > 1 else kwargs.get("min")
    high = args[2] if len(args) > 2 else kwargs.get("max")
    return isinstance(low, (int, float)) and low == 0 and high is None


@contextmanager
def watching(net: Net, functions: Mapping[Any, str], meet: Meet) -> Iterator[_Watch]:
    """`_Watch` as a context, with hooks that track which module is being run; all are removed at the end."""
    watch, hooks = _Watch(functions, meet), []
    with exclusive(net.architecture):
        try:
            for path, module in net.architecture.named_modules():
                alone = not any(True for _ in module.children()) and (
                    type(module).__module__ == "torch.nn.modules.activation" or functions is LINEAR
                )
                hooks.append(module.register_forward_pre_hook(_enter(watch, path, alone)))
                hooks.append(module.register_forward_hook(_leave(watch), always_call=True))
            with math_attention(), watch:
                yield watch
        finally:
            for hook in hooks:
                hook.remove()


def _enter(watch: _Watch, path: str, alone: bool) -> Callable[..., None]:
    return lambda *_: watch.inside.append((path, alone))


def _leave(watch: _Watch) -> Callable[..., None]:
    def leave(*_: Any) -> None:
        watch.inside.pop()

    return leave


def rows_of(label: str, z: Tensor, size: int) -> Tensor:
    """Values of units with one row an example; refused where the first dimension does not hold the examples."""
    if not z.dim() or not z.numel() or z.shape[0] % size:
        raise WeightspaceError(
            f"layer {label} has units of shape {tuple(z.shape)} for {size} examples; the first axis must be the example"
        )
    return z.reshape(size, -1)


def whole(label: str, z: Tensor) -> Tensor:
    """The values themselves, refused where they hold NaN."""
    if bool(z.sum().isnan()) and bool(z.isnan().any()):
        raise WeightspaceError(f"NaN in the units of layer {label}; lower the learning rate, or look at the inputs")
    return z
