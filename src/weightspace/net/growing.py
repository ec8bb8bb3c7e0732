"""More outputs: new rows in the linear layer that makes the outputs, and how it is known which one that is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from weightspace.net.errors import WeightspaceError, first_line
from weightspace.net.inputs import carried
from weightspace.net.net import Net, checked, grown
from weightspace.net.public import public

__all__ = ["grow"]

_SAME = 1e-3  # of the size of the outputs


@public
def grow(net: Net, outputs: int, layer: str | None = None, seed: int = 0, example: Any = None) -> Net:
    """The network with `outputs` more outputs: more rows in the `nn.Linear` named `layer`, by default the last one.

    The rows that were there stay the same to the last bit, so that the old outputs change by rounding at most
    (libraries sum products of other sizes in another order); the new rows are initialised as torch does, from `seed`.
    With an `example` input it is tried that the outputs grow, and that the old ones stay. Without one a layer that is
    not named must be seen to make the outputs: the last module of an `nn.Sequential`, but for some without parameters.
    Raises `WeightspaceError` where it is another layer, where there is no such layer, or its weight is used elsewhere.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> more = ws.grow(net, outputs=2)
    >>> bool((more.weights["3.weight"][:10] == net.weights["3.weight"]).all()), more(task.example(3)).shape
    (True, torch.Size([3, 12]))
    """
    wide = grown(net, outputs, layer, seed)
    last = next(reversed(_linear(net)), "")
    if example is None:
        if layer is None and last != _end(net.architecture):
            raise WeightspaceError(
                f"whether {last} makes the outputs of this {type(net.architecture).__name__} is not known from its "
                "modules; give example=, an input on which it is tried, or layer=, the name of the layer that does"
            )
        return wide
    if not (trouble := _trouble(net, wide, outputs, example)):
        return wide
    if layer is not None:
        raise WeightspaceError(f"{layer} does not make the outputs alone ({trouble}); choose the layer that does")
    others = [name for name in _linear(net) if name != last and _makes(net, name, outputs, example)]
    told = f"choose the layer {others[-1]}, which does" if others else "no other one does either"
    raise WeightspaceError(f"the last linear layer does not make the outputs alone ({last}: {trouble}); {told}")


def _linear(net: Net) -> list[str]:
    return [name for name, part in checked(net).architecture.named_modules() if isinstance(part, nn.Linear)]


def _end(module: nn.Module, name: str = "") -> str | None:
    """The name of the last module of nested `nn.Sequential`, modules without parameters left out; None where unseen."""
    if type(module) is not nn.Sequential:
        return name
    held = [(key, part) for key, part in module.named_children() if next(part.parameters(), None) is not None]
    return _end(held[-1][1], f"{name}.{held[-1][0]}".lstrip(".")) if held else None


def _makes(net: Net, name: str, outputs: int, example: Any) -> bool:
    try:
        return not _trouble(net, grown(net, outputs, name, 0), outputs, example)
    except WeightspaceError:
        return False


@torch.no_grad()
def _trouble(net: Net, wide: Net, outputs: int, example: Any) -> str:
    """Why the larger network does not have the outputs of the smaller one and so many more; "" where it does."""
    before = _tensors(net(carried(example, net)))
    try:
        after = _tensors(wide(carried(example, wide)))
    except (RuntimeError, ValueError, AssertionError) as error:
        return f"other layers read it: {first_line(error)}"
    more = [
        a.shape[:-1] == b.shape[:-1] and b.shape[-1] == a.shape[-1] + outputs
        for a, b in zip(before, after, strict=True)
    ]
    if sum(more) != 1:
        shapes = (" ".join(str(tuple(t.shape)) for t in some) for some in (before, after))
        return "outputs of shape {} would become {}".format(*shapes)
    for a, b in zip(before, after, strict=True):
        left = b[..., : a.shape[-1]].double()
        if left.shape != a.shape or not float((left - a.double()).norm()) <= _SAME * float(a.double().norm()):
            return "the old outputs would change"
    return ""


def _tensors(output: Any) -> list[Tensor]:
    found = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
    return [t for t in found if t.is_floating_point() and t.dim()]
