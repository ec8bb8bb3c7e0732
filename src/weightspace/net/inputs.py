"""Nested inputs of a network: tuples, lists and dictionaries of tensors, as arguments of a call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from weightspace.net.net import Net

__all__ = ["carried"]


def carried(x: Any, net: Net) -> Any:
    """A copy of inputs on the device of a net, floating-point tensors in its dtype.

    A copy, since a network may write into its input.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> ws.task.carried(task.example(3), net.double()).dtype
    torch.float64
    """
    device, dtype = net.device, net.dtype

    def move(t: Any) -> Any:
        return t.to(device, dtype if t.is_floating_point() else t.dtype, copy=True) if isinstance(t, Tensor) else t

    return pytree.tree_map(move, dict(x) if isinstance(x, Mapping) else x)


def each(function: Callable[..., Any], x: Any, *others: Any) -> Any:
    """Nested dicts and tuples with `function` applied to every tensor."""
    if isinstance(x, Mapping):
        return {key: each(function, part, *(other[key] for other in others)) for key, part in x.items()}
    if isinstance(x, (tuple, list)):
        return tuple(each(function, *parts) for parts in zip(x, *others, strict=True))
    return function(x, *others)


def leaves(x: Any) -> list[Tensor]:
    """The tensors in nested dicts and tuples, as a list."""
    found: list[Tensor] = []
    each(found.append, x)
    return found


def shape(x: Tensor) -> tuple[int, ...]:
    """The shape of a tensor as a tuple of int."""
    return tuple(x.shape)


def arguments(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """An example as positional and keyword arguments for a call of the module."""
    if isinstance(example, Mapping):
        return (), dict(example)
    return (example if isinstance(example, tuple) else (example,)), {}


def input_tensors(example: Any) -> list[Tensor]:
    """The tensors in an example, nested ones too, in the order in which an exported graph takes them."""
    return [t for t in pytree.tree_leaves(arguments(example)) if isinstance(t, Tensor)]
