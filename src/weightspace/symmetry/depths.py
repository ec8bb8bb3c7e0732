"""The same function in a deeper architecture: branches whose last map is zero, and layers that are the identity.

A residual block h + b(h) is the identity where the last map of the branch b is zero. A linear map or convolution with
the identity as its matrix changes nothing, nor does ReLU after ReLU: relu(1 relu(h)) = relu(h) (Chen, Goodfellow and
Shlens, "Net2Net: accelerating learning via knowledge transfer", 2016). Other layers have no numbers that make them the
identity exactly.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, islice
from typing import Any

import torch
from torch import Tensor, fx, nn

from weightspace.graph.follow import live
from weightspace.graph.proportional import Factors, shape_of
from weightspace.graph.trace import Trace, op_name, trace
from weightspace.net.errors import WeightspaceError
from weightspace.net.inputs import carried
from weightspace.net.net import Net
from weightspace.net.public import public
from weightspace.symmetry.widths import difference

__all__ = ["deepen"]


_MOST = 64  # ways to pair the layers that are tried


@public
def deepen(net: Net, to: Net, example: Any) -> Net:
    """The same function in a deeper architecture: f(deepened, x) = f(net, x), checked in float64.

    `to`: a network or module of the deeper architecture. Layers of the same names and shapes get the weights of `net`
    (or else layers of the same kinds and shapes, in the same order). New residual blocks keep the weights of `to` but
    for the last map of every branch, which becomes zero, so that they learn from the first step; new linear maps,
    convolutions and BatchNorms without a branch become the identity, which is exact in a row or after ReLU.

    Raises `WeightspaceError` where layers of `net` have no place in `to`, and where no such numbers give its function:
    new layers with another activation function than ReLU between, or a norm in the way.

    >>> import torch
    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> part = torch.nn.Sequential(torch.nn.Linear(64, 16), torch.nn.ReLU(), torch.nn.Linear(16, 16), torch.nn.ReLU())
    >>> deep = ws.deepen(net, torch.nn.Sequential(torch.nn.Flatten(), *part, torch.nn.Linear(16, 10)), task.example(2))
    >>> x = task.example(9)
    >>> torch.allclose(deep(x), net(x), atol=1e-5)
    True
    """
    to, example = to.to(net.dtype), carried(example, net)
    graph = trace(to.live(), example)
    trouble = ""
    for names in _pairings(net, to):
        for blank, plain in _ways(graph, to, {*to.tensors} - {*names.values()}):
            numbers = {**_identities(to, plain), **{name: torch.zeros_like(to.tensors[name]) for name in blank}}

            def larger(one: Net, names: dict[str, str] = names, numbers: dict[str, Tensor] = numbers) -> Net:
                given = {theirs: one.tensors[ours] for ours, theirs in names.items()}
                deep = to.to(one.dtype)
                return deep.load({**deep.tensors, **{n: t.to(one.dtype) for n, t in numbers.items()}, **given})

            found = difference(net, larger, example)
            if not found:
                return larger(net)
            trouble = trouble or found
    raise WeightspaceError(
        f"no numbers of the new layers of this {type(to.architecture).__name__} leave the function as it is ("
        f"{trouble}); that needs residual branches, or linear maps and convolutions of one width in a row or after ReLU"
    )


def _pairings(net: Net, to: Net) -> Iterator[dict[str, str]]:
    """Names of tensors of the network -> those of the deeper one: equal names first, then layers in order."""
    ours, theirs = _layers(net), _layers(to)
    if ours.items() <= theirs.items():
        yield {name: name for name in net.tensors}
    kinds = [list(map(_kind, layers.items())) for layers in (ours, theirs)]
    found = islice(_embeddings(*kinds), _MOST)
    any_found = False
    for chosen in found:
        any_found = True
        paired = zip(ours, (list(theirs)[k] for k in chosen), strict=True)
        yield {_joined(a, key): _joined(b, key) for a, b in paired for key, _ in ours[a][1]}
    if not any_found:
        raise WeightspaceError(
            f"this {type(to.architecture).__name__} is not a deepening of the network: its layers do not hold those of "
            "the network, with their shapes and in their order"
        )


def _embeddings(ours: list[Any], theirs: list[Any]) -> Iterator[tuple[int, ...]]:
    """Places of layers among more layers, in order and of equal kinds; those that keep the ends and add late first."""
    extra = len(theirs) - len(ours)
    if extra < 0:
        return
    for gone in combinations(reversed(range(len(theirs))), extra):
        left = [k for k in range(len(theirs)) if k not in gone]
        if all(theirs[k] == kind for k, kind in zip(left, ours, strict=True)):
            yield tuple(left)


def _layers(net: Net) -> dict[str, tuple[str, tuple[tuple[str, tuple[int, ...]], ...]]]:
    """The layers with tensors of their own, by name: their class, and names and shapes of the tensors."""
    found: dict[str, tuple[str, tuple[tuple[str, tuple[int, ...]], ...]]] = {}
    kinds = {name: type(part).__name__ for name, part in net.architecture.named_modules()}
    held: dict[str, list[tuple[str, tuple[int, ...]]]] = {}
    for name, tensor in net.tensors.items():
        layer, _, key = name.rpartition(".")
        held.setdefault(layer, []).append((key, tuple(tensor.shape)))
    for layer in [name for name in kinds if name in held] + [name for name in held if name not in kinds]:
        found[layer] = (kinds.get(layer, ""), tuple(held[layer]))
    return found


def _kind(item: tuple[str, Any]) -> Any:
    return item[1]


def _joined(layer: str, key: str) -> str:
    return f"{layer}.{key}" if layer else key


def _ways(graph: Trace, to: Net, new: set[str]) -> Iterator[tuple[set[str], set[str]]]:
    """Sets of new tensors that become zero, and layers that become the identity."""
    blank = _last_maps(graph, new)
    layers = {_parent(name) for name in new}
    blocks = {_parent(_parent(name)) for name in blank}
    apart = {layer for layer in layers if _parent(layer) not in blocks}
    yield blank, set()
    yield blank, apart
    if blank:
        yield set(), layers


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _last_maps(graph: Trace, new: set[str]) -> set[str]:
    """The tensors of the last layer of every new branch: those which a term of a sum is proportional to."""
    factors, needed, found = Factors(graph), live(graph), set[str]()
    for node in graph.nodes:
        if node not in needed or node.op != "call_function" or op_name(node) not in ("add", "add_"):
            continue
        terms = [_made_of(factors, arg) for arg in node.args[:2]]
        inside = [names is not None and names <= new and bool(names) for names in terms]
        if sum(inside) == 1:
            found |= terms[inside.index(True)] or set()
    return found


def _made_of(factors: Factors, node: Any) -> set[str] | None:
    """The parameters that a value is proportional to as a whole, or None."""
    if not isinstance(node, fx.Node):
        return None
    found: dict[str, Tensor] = {}
    return set(found) if factors.of(node, torch.ones(shape_of(node), dtype=torch.long), found) else None


def _identities(to: Net, layers: set[str]) -> dict[str, Tensor]:
    """Numbers that make layers the identity, where there are such numbers."""
    found: dict[str, Tensor] = {}
    for name, part in to.architecture.named_modules():
        if name not in layers:
            continue
        own = {key: to.tensors[_joined(name, key)] for key, _ in part.named_parameters(recurse=False)}
        own |= {key: to.tensors[_joined(name, key)] for key, _ in part.named_buffers(recurse=False)
                if _joined(name, key) in to.tensors}  # fmt: skip
        numbers = {key: _neutral(part, key, tensor) for key, tensor in own.items()}
        found.update({_joined(name, key): t for key, t in numbers.items() if t is not None})
    return found


def _neutral(part: nn.Module, key: str, tensor: Tensor) -> Tensor | None:
    """A tensor of a layer that is the identity."""
    if key in ("bias", "running_mean"):
        return torch.zeros_like(tensor)
    if key == "running_var":
        return torch.ones_like(tensor)
    if isinstance(part, nn.modules.batchnorm._BatchNorm) and key == "weight":
        return torch.full_like(tensor, (1 + part.eps) ** 0.5)
    if isinstance(part, nn.Linear) and key == "weight" and tensor.shape[0] == tensor.shape[1]:
        return torch.eye(len(tensor), dtype=tensor.dtype, device=tensor.device)
    if isinstance(part, nn.modules.conv._ConvNd) and key == "weight" and not part.transposed:
        return nn.init.dirac_(torch.empty_like(tensor), part.groups) if tensor.dim() in (3, 4, 5) else None
    return None
