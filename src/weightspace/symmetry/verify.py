"""Try every generator on random weights and inputs, in float64, on the live module.

Weights get additive noise in every tensor, because fresh norms and zero biases are invariant under anything. No draw is
the identity. The tolerance follows the lowest precision that the module itself uses.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from weightspace.net import Net, Weights, math_attention
from weightspace.symmetry import index
from weightspace.symmetry.group import Axis, Element, Group, as_blocks
from weightspace.symmetry.index import Atom
from weightspace.symmetry.trace import (
    Reading,
    SymmetryError,
    Trace,
    arguments,
    input_tensors,
    op_name,
    quiet,
)
from weightspace.task import carried

__all__ = ["Probe", "verify"]


@dataclass
class Probe:
    """A float64 copy of a network at random weights: `module` and `net` share memory."""

    net: Net
    module: nn.Module
    example: Any

    @classmethod
    def of(cls, net: Net, example: Any, seed: int) -> Probe:
        """Noise on every tensor: on parameters of either sign, on buffers positive, so that variances stay so."""
        net = Net(net.architecture, _fresh(net.weights), _fresh(net.state)).double()  # constants too
        generator = torch.Generator().manual_seed(seed)
        for name, tensor in net.tensors.items():
            if tensor.is_floating_point():
                _shake(tensor, generator, positive=name in net.state)
        return cls(net, net.live(), randomised(example, generator))

    def inputs(self, seed: int) -> Any:
        """Another random input of the same form."""
        return randomised(self.example, torch.Generator().manual_seed(seed))

    def outputs(self) -> list[Tensor]:
        """What the module answers now."""
        args, kwargs = arguments(carried(self.example, self.net))
        with torch.no_grad(), math_attention(), quiet():
            return floating(self.module(*args, **kwargs))


def _fresh(weights: Weights) -> Weights:
    """A copy in float64; zero where the weights are on the meta device."""
    zero = torch.zeros((), dtype=torch.float64)
    new = Weights({n: zero.expand(t.shape) if t.is_floating_point() else t for n, t in weights.items()})
    for name, tensor in weights.items():
        if tensor.device.type != "meta":
            new[name].copy_(tensor)
    return new


def _shake(tensor: Tensor, generator: torch.Generator, positive: bool) -> None:
    fan_in = max(tensor.numel() // max(tensor.shape[0], 1), 1) if tensor.dim() > 1 else 25
    noise = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
    with torch.no_grad():
        tensor.add_((noise.abs() if positive else noise).to(tensor.device), alpha=fan_in**-0.5)
        if positive:
            tensor.clamp_(min=0.05) if bool((tensor > -1e-12).all()) else None


def randomised(example: Any, generator: torch.Generator) -> Any:
    """The example with every floating-point tensor redrawn in float64; other inputs stay."""
    if isinstance(example, Tensor):
        if not example.is_floating_point():
            return example
        return torch.randn(example.shape, generator=generator, dtype=torch.float64).to(example.device)
    if isinstance(example, Mapping):
        return {key: randomised(value, generator) for key, value in example.items()}
    if isinstance(example, (list, tuple)):
        return type(example)(randomised(value, generator) for value in example)
    return example


def floating(tree: Any) -> list[Tensor]:
    """Every floating-point tensor of a module's output, in order."""
    if isinstance(tree, Tensor):
        return [tree.detach()] if tree.is_floating_point() else []
    if isinstance(tree, Mapping):
        tree = tree.values()
    elif not isinstance(tree, (list, tuple)):
        tree = vars(tree).values() if hasattr(tree, "__dict__") else ()
    return [t for item in tree for t in floating(item)]


def verify(
    group: Group,
    graph: Trace,
    reading: Reading,
    names: Mapping[Atom, str],
    probe: Probe,
    kinds: Iterable[str],
) -> None:
    """Raise `SymmetryError`, naming axis and operation, if a generator of the group changes the function."""
    tolerance = 1e-4 if graph.low_precision else 1e-9
    try:
        before = probe.outputs()
    except RuntimeError as error:
        line = str(error).splitlines()[0]
        raise SymmetryError(f"cannot be verified in float64 ({line}); read with verify=False") from error
    if not before or not all(bool(t.isfinite().all()) for t in before):
        raise SymmetryError("the output of the example is not finite on random weights; give another example")
    if not _distance(before, probe.outputs()) <= tolerance:
        raise SymmetryError(
            "two calls on one input give different outputs: the module draws random numbers; leave them out"
        )
    for number, (axis, element) in enumerate(_generators(group, kinds)):
        with _moved(element, probe):
            change = _distance(before, probe.outputs())
        if not change <= tolerance:
            where = _culprit(element, graph, reading, names, probe)
            raise SymmetryError(
                f"moving {axis.name} ({axis.size} units, generator {number}) changes the function by {change:.1e}"
                f"{where}; this operation is misread: report it, or read with verify=False at your own risk"
            )


def _generators(group: Group, kinds: Iterable[str]) -> Iterable[tuple[Axis, Element]]:
    for axis in group.axes:
        if "permutation" in kinds and "permutation" in axis.kinds:
            yield axis, group.sample(1, ("permutation",), [axis.name])
    for k, generator in enumerate(group.generators):
        if generator.kind in kinds:
            element = group.sample(1, (generator.kind,), [generator.axis])
            yield group[generator.axis], Element(group, element.permutations, {k: element.factors[k]})


@contextlib.contextmanager
def _moved(element: Element, probe: Probe) -> Iterator[None]:
    """The probe's tensors moved in place, one after the other, and moved back."""
    tensors, touched = probe.net.tensors, _touched(element)
    for name in touched:
        tensors[name].copy_(element.move(name, tensors[name]))
    yield
    back = element.inverse()
    for name in touched:
        tensors[name].copy_(back.move(name, tensors[name]))


def _touched(element: Element) -> set[str]:
    group = element.group
    still = group.identity().permutations
    moving = {n for n, t in element.permutations.items() if not torch.equal(t, still[n])}
    moving |= {group.generators[k].axis for k in element.factors}
    return {block.tensor for block in group.blocks if moving & set(block.leaves)}


def _distance(before: list[Tensor], after: list[Tensor]) -> float:
    scale = max(float(t.abs().max()) for t in before if t.numel()) or 1.0
    return max(float((a - b).abs().max()) for a, b in zip(before, after, strict=True) if a.numel()) / scale


def _culprit(element: Element, graph: Trace, reading: Reading, names: Mapping[Atom, str], probe: Probe) -> str:
    """The first operation whose value does not move as its labels say (permutations only)."""
    if element.factors:
        return ""
    inputs = input_tensors(probe.example)
    if len(inputs) != len(graph.inputs):
        return ""
    runs: list[dict[fx.Node, Any]] = []
    with torch.no_grad(), math_attention():
        for moved in (None, element):
            seen: dict[fx.Node, Any] = {}
            tensors = probe.net.tensors if moved is None else moved(probe.net).tensors
            graph.run(tensors, inputs, seen.__setitem__)
            runs.append(seen)
    for node, value in runs[0].items():
        labels = reading.values.get(node)
        if not isinstance(value, Tensor) or labels is None or isinstance(labels, tuple):
            continue
        wanted = _carry(element, value, labels.dims, names)
        if value.is_floating_point() and not torch.allclose(wanted, runs[1][node], rtol=1e-6, atol=1e-9):
            return f", first at {op_name(node)}"
    return ""


def _carry(element: Element, value: Tensor, dims: list[index.Dim], names: Mapping[Atom, str]) -> Tensor:
    group = element.group
    out = value.detach().clone().contiguous()
    for block in as_blocks("", tuple(value.shape), index.blocks(dims), names):
        moved = element._gather(group.view(block, value.contiguous()), block.leaves)
        group.view(block, out).copy_(moved)
    return out
