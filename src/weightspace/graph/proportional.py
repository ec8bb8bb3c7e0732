"""Which parameters a value in a graph is proportional to: back through sums, views and layers.

A value is proportional to a set of parameters, entry by entry, if multiplying these by numbers multiplies the value by
the same numbers: the rows of a linear map and its bias, the gain and the bias of a norm, through ReLU and sums.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx

from weightspace.graph.trace import Trace, op_name
from weightspace.net.errors import SymmetryError, first_line

__all__ = ["CONVOLUTIONS", "Factors", "ON_LAST", "reduced_dims", "shape_of"]


CONVOLUTIONS = ("convolution", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d",
                "conv_transpose3d")  # fmt: skip
ON_LAST = ("layer_norm", "rms_norm", "native_layer_norm")
_BY_CHANNEL = ("batch_norm", "instance_norm", "_native_batch_norm_legit_no_training")
_NORMS = (*_BY_CHANNEL, *ON_LAST, "group_norm")
_VIEWS = ("view", "reshape", "_unsafe_view", "transpose", "permute", "t", "numpy_T", "mT", "unsqueeze", "squeeze",
          "expand", "expand_as", "clone", "contiguous", "alias", "detach", "select", "slice", "narrow", "flatten",
          "unflatten", "repeat", "repeat_interleave", "cat", "stack", "flip", "pad", "constant_pad_nd", "split",
          "split_with_sizes", "chunk", "unbind")  # fmt: skip
_PROPORTIONAL = ("relu", "relu_", "leaky_relu", "neg", "dropout", "_to_copy", "to", "abs")


class Factors:
    """The parameters of a graph that its values are proportional to."""

    def __init__(self, graph: Trace) -> None:
        self.graph = graph

    def of(self, node: Any, units: Tensor, found: dict[str, Tensor]) -> bool:
        """Whether a value is proportional to parameters, which are entered in `found` with numbers of their entries.

        `units`: a number from one for every entry of the value, 0 where nothing is asked. Multiplying each entry of the
        parameters that has number n by a factor c(n) multiplies the entries of the value that have it by c(n).
        """
        if not isinstance(node, fx.Node):
            return False
        if node in self.graph.sources:
            name = self.graph.sources[node]
            found[name] = torch.maximum(found[name], units) if name in found else units
            return True
        if node.op != "call_function":
            return False
        name, args = op_name(node), node.args
        if node.target is operator.getitem and op_name(args[0]) in _NORMS:  # type: ignore[arg-type]
            return self.of(args[0], units, found)
        if name in _VIEWS or node.target is operator.getitem:
            return self._through(node, units, found)
        if name in _PROPORTIONAL:
            return self.of(args[0], units, found)
        if name in ("mean", "sum"):
            return self.of(args[0], _restored(node, units), found)
        if name in ("add", "sub", "add_", "sub_"):
            return all(self.of(arg, _reduced(units, shape_of(arg)), found) for arg in args[:2])
        if name in ("mul", "mul_", "div"):
            return self._factor(args[:2] if name != "div" else args[:1], units, found)
        return self._made(name, node, units, found)

    def _factor(self, args: Any, units: Tensor, found: dict[str, Tensor]) -> bool:
        for arg in args:
            if not isinstance(arg, fx.Node):
                continue
            part, tried = _reduced(units, shape_of(arg)), dict(found)
            if torch.equal(part.expand(units.shape), units) and self.of(arg, part, tried):
                found.update(tried)
                return True
        return False

    def _made(self, name: str, node: fx.Node, units: Tensor, found: dict[str, Tensor]) -> bool:
        """Where an operation with parameters makes the units: its rows, gains and biases."""
        args = node.args
        if name == "linear":
            return self._rows(args[1:3], units, -1, found)
        if name in CONVOLUTIONS and "transpose" not in name:
            return self._rows(args[1:3], units, 1, found)
        if name in _NORMS:
            first = 1 if name in _BY_CHANNEL else 2
            return self._rows(args[first : first + 2], units, -1 if name in ON_LAST else 1, found)
        if name == "embedding":
            return self.of(args[0], units.flatten(0, -2).amax(0).expand(shape_of(args[0])).clone(), found)
        if name in ("matmul", "bmm", "mm", "scaled_dot_product_attention"):
            a, b = (args[0], args[1]) if "dot" not in name else (None, args[2])
            last = units.amax(-2, keepdim=True)
            if torch.equal(last.expand(units.shape), units):
                return self.of(b, _reduced(last, shape_of(b)), found)
            return a is not None and self.of(a, _reduced(units.amax(-1, keepdim=True), shape_of(a)), found)
        return False

    def _rows(self, args: Any, units: Tensor, dim: int, found: dict[str, Tensor]) -> bool:
        """The rows of a weight, and its bias."""
        row = units.movedim(dim, 0).flatten(1).amax(1) if units.dim() > 1 else units
        given = [arg for arg in args if isinstance(arg, fx.Node)]
        if not given or given[0] is not args[0]:
            return False
        shapes = [shape_of(arg) for arg in given]
        if any(shape[:1] != row.shape for shape in shapes):
            return False
        return all(
            self.of(arg, row.reshape(-1, *[1] * (len(shape) - 1)).expand(shape).clone(), found)
            for arg, shape in zip(given, shapes, strict=True)
        )

    def _through(self, node: fx.Node, units: Tensor, found: dict[str, Tensor]) -> bool:
        """Back through an operation that moves entries, which is seen by moving their numbers."""
        whole = node.args[0] if node.target is operator.getitem and isinstance(node.args[0], fx.Node) else node
        if op_name(whole) not in _VIEWS:
            return False
        sources, start = {}, 1
        for used in whole.all_input_nodes:
            shape = shape_of(used)
            count = int(torch.tensor(shape).prod()) if shape else 1
            sources[used] = torch.arange(start, start + count).reshape(shape)
            start += count
        args, kwargs = fx.map_arg((whole.args, whole.kwargs), lambda n: sources[n])
        try:
            moved = whole.target(*args, **kwargs)  # type: ignore[operator]
        except (RuntimeError, NotImplementedError, TypeError, IndexError) as error:
            raise SymmetryError(f"{op_name(whole)} cannot be followed back ({first_line(error)})") from error
        moved = moved[node.args[1]] if whole is not node else moved
        held = (units > 0) & (moved > 0)
        for used, numbers in sources.items():
            first = int(numbers.flatten()[0])
            here = held & (moved >= first) & (moved < first + numbers.numel())
            if bool(here.any()):
                back = torch.zeros(numbers.numel(), dtype=torch.long)
                back[moved[here] - first] = units[here]
                if not self.of(used, back.reshape(numbers.shape), found):
                    return False
        return True


def reduced_dims(node: fx.Node) -> list[int]:
    """The dimensions that a reduction drops."""
    dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    if op_name(node) in ("linalg_vector_norm", "norm"):
        dims = node.args[2] if len(node.args) > 2 else None
    if dims is None or isinstance(dims, bool) or dims == []:
        return list(range(len(shape_of(node.args[0]))))
    return [int(d) for d in dims] if isinstance(dims, list | tuple) else [int(dims)]  # type: ignore[arg-type]


def shape_of(node: Any) -> tuple[int, ...]:
    """The shape of a node's value; () of what is no tensor."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return tuple(int(n) for n in value.shape) if isinstance(value, Tensor) else ()


def _restored(node: fx.Node, units: Tensor) -> Tensor:
    """The units of a reduction as those of what it reduced."""
    shape, gone = shape_of(node.args[0]), reduced_dims(node)
    at = sorted(dim % len(shape) for dim in gone)
    if units.dim() < len(shape):
        for dim in at:
            units = units.unsqueeze(dim)
    return units.expand(shape).clone()


def _reduced(units: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The units of a value as those of an operand that was broadcast to it."""
    while units.dim() > len(shape):
        units = units.amax(0)
    for dim, size in enumerate(shape):
        if size == 1 and units.shape[dim] > 1:
            units = units.amax(dim, keepdim=True)
    return units.expand(shape).clone()
