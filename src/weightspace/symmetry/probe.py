"""A float64 copy of a network with random weights and inputs, on which a group is read and verified.

Weights are drawn anew, so that a group belongs to the architecture and not to the current weights; fresh norms and zero
biases are invariant under anything. Inputs are drawn too where the network takes any number; else the example is
varied.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from weightspace.graph.follow import shifts
from weightspace.graph.pretrained import answer, plain_experts
from weightspace.graph.trace import Trace, quiet, trace
from weightspace.net.errors import SymmetryError, first_line
from weightspace.net.inputs import arguments, carried, input_tensors
from weightspace.net.net import Net
from weightspace.net.state import math_attention
from weightspace.net.weights import Weights

__all__ = ["Probe", "floating", "usable"]


_BIAS = 0.2
_LARGE, _PART = 1 << 17, 1 << 20  # a tensor of more numbers is drawn in float32, so many at a time


@dataclass
class Probe:
    """A float64 copy of a network with random weights: `module` and `net` share memory.

    `given`: the user's example in float64; `example`: the inputs used in its place. `alike`: which of its tensors are
    varied and not drawn, because the network does not take any number there. `graph`: evaluated where the module itself
    insists on a lower precision, its casts skipped. `added`: biases, which are drawn small, or else all examples look
    alike after a few layers. `passes`: every place with an effect was felt on one of so many first draws.
    """

    net: Net
    module: nn.Module
    given: Any
    example: Any
    user: Net
    graph: Trace | None = None
    way: int = 0
    alike: set[int] = field(default_factory=set)
    added: set[str] = field(default_factory=set)
    passes: int = 1
    _drawn: tuple[Any, ...] = ()

    @classmethod
    def of(cls, net: Net, example: Any, seed: int) -> Probe:
        """The network's own weights, and inputs drawn from `seed`; nothing is run yet."""
        own = Net(net.architecture, _fresh(net.weights), _fresh(net.state)).double()
        own = Net(_owned(own.architecture), own.weights, own.state)
        given = pytree.tree_map(_doubled, example)
        probe = cls(own, own.live(), given, given, net)
        probe.example = probe.inputs(seed)
        return probe

    def trace(self) -> Trace:
        """The graph of the module in float64; of the user's own where the module has casts that float64 does not pass.

        Raises `SymmetryError`.
        """
        try:
            return trace(self.module, self.given)
        except SymmetryError as error:
            if self.user.device.type == "meta":
                raise
            try:
                self.graph = trace(self.user.live(), self.user_example)
            except SymmetryError:
                raise error from None
            return self.graph

    @property
    def user_example(self) -> Any:
        """The example in the dtype of the user's network."""
        return carried(self.given, self.user)

    def settle(self, graph: Trace) -> None:
        """Find weights and inputs with finite outputs. Raises `SymmetryError` where there are none."""
        trouble: SymmetryError | None = None
        self.added = shifts(graph)
        for self.way in range(len(_WAYS)):
            self.draw(0)
            for alike in self._choices():
                self.alike = alike
                self.example = self.inputs(0)
                try:
                    found = self.outputs()
                    if not found:
                        raise _Nothing("the module gives no floating-point output; there is nothing to compare")
                    if usable(found):
                        self._draw_more()
                        return
                except _Nothing:
                    raise
                except SymmetryError as error:
                    trouble = error
                    if self.graph is None and self._by_graph(graph):
                        return
        raise trouble or SymmetryError(
            "the output of the example is not finite, neither on random weights nor on the network's own, for random "
            "inputs or for inputs like it; give another example"
        )

    def _choices(self) -> list[set[int]]:
        floats = {k for k, t in enumerate(input_tensors(self.given)) if t.is_floating_point()}
        return [set(), floats] if floats else [set()]

    def _by_graph(self, graph: Trace) -> bool:
        """Whether the graph, its casts skipped, gives finite outputs where the module does not."""
        self.graph = graph
        with contextlib.suppress(SymmetryError):
            if usable(self.outputs()):
                return True
        self.graph = None
        return False

    def _draw_more(self) -> None:
        """Of inputs that are varied from the example, find those which may be drawn after all."""
        if len(self.alike) < 2:
            return
        for k in sorted(self.alike):
            before, self.alike = self.alike, self.alike - {k}
            kept, self.example = self.example, self.inputs(0)
            fine = False
            with contextlib.suppress(SymmetryError):
                fine = usable(self.outputs())
            if not fine:
                self.alike, self.example = before, kept

    def draw(self, seed: int) -> None:
        """Draw other weights, in place: from the seed and the shapes alone, if the network takes them."""
        if self._drawn == self._state(seed):
            return
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, tensor in self.net.tensors.items():
                if tensor.is_floating_point():
                    _WAYS[self.way](tensor, self.user.tensors[name], generator, name in self.net.state)
                    if name in self.added and tensor.dim() < 2:
                        tensor.mul_(_BIAS)
                elif self.user.tensors[name].device.type != "meta":
                    tensor.copy_(self.user.tensors[name])
        self._drawn = self._state(seed)

    def _state(self, seed: int) -> tuple[Any, ...]:
        """What a draw depends on, and torch's counters of changes in place since then."""
        counts = [buffer._version for w in (self.net.weights, self.net.state) for buffer in w.buffers]
        return (seed, self.way, frozenset(self.added), *counts)

    def at_home(self) -> None:
        """Restore the user's own weights, in place."""
        with torch.no_grad():
            for name, tensor in self.net.tensors.items():
                if self.user.tensors[name].device.type != "meta":
                    tensor.copy_(self.user.tensors[name])

    def close(self) -> None:
        """Give the memory of the weights back now: what torch.export leaves behind holds them in cycles."""
        for tensors in (self.net.weights, self.net.state):
            for buffer in tensors.buffers:
                buffer.untyped_storage().resize_(0)

    def inputs(self, seed: int, size: float = 1.0) -> Any:
        """Another random input of the same form: floating-point tensors are drawn, or shrunk at random; others stay."""
        generator = torch.Generator().manual_seed(seed)
        leaves, spec = pytree.tree_flatten(self.given)
        number = -1
        for k, value in enumerate(leaves):
            number += isinstance(value, Tensor)
            if isinstance(value, Tensor) and value.is_floating_point():
                noise = torch.randn(value.shape, generator=generator, dtype=torch.float64, device="cpu").to(value)
                leaves[k] = size * (value * (-0.5 * noise.abs()).exp() if number in self.alike else noise)
        return pytree.tree_unflatten(leaves, spec)

    def outputs(self, example: Any = None) -> list[Tensor]:
        """The current outputs of the module. Raises `SymmetryError` where it fails."""
        example = carried(self.example if example is None else example, self.net)
        with torch.no_grad(), math_attention(), quiet(), plain_experts(self.module):
            if self.graph is not None:
                return [t for t in self.graph.run(self.net.tensors, input_tensors(example)) if t.is_floating_point()]
            args, kwargs = arguments(example)
            try:
                return floating(answer(self.module(*args, **kwargs)))
            except (RuntimeError, NotImplementedError, IndexError, ValueError, TypeError) as error:
                if isinstance(error, IndexError):
                    raise SymmetryError(
                        f"the network does not take this example ({first_line(error)}); give one whose indices it has"
                    ) from error
                raise SymmetryError(
                    f"cannot be verified in float64 ({first_line(error)}); read with verify=False"
                ) from error


class _Nothing(SymmetryError):
    """No outputs at all, whatever the inputs."""


def _doubled(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    value = value.detach().clone()  # one of inference mode would not do for derivatives
    return value.double() if value.is_floating_point() else value


def _owned(architecture: nn.Module) -> nn.Module:
    """A copy whose constants are tensors that allow derivatives, wherever they were made."""
    memo: dict[int, Any] = {}
    for tensor in architecture.buffers():
        if tensor.device.type != "meta":
            memo[id(tensor)] = tensor.detach().clone()
    return copy.deepcopy(architecture, memo)


def _fresh(weights: Weights) -> Weights:
    """A copy in float64; zero where the weights are on the meta device."""
    zero = torch.zeros((), dtype=torch.float64, device="cpu")
    new = Weights({n: zero.expand(t.shape) if t.is_floating_point() else t for n, t in weights.items()})
    for name, tensor in weights.items():
        if tensor.device.type != "meta":
            new[name].copy_(tensor)
    return new


def _noise(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Normal for matrices, scaled by fan-in; of size .5 to 1.5 and either sign for vectors."""
    if tensor.dim() > 1:
        fan_in = max(tensor.numel() // max(tensor.shape[0], 1), 1)
        return torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype, device="cpu") * fan_in**-0.5
    size = 0.5 + torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype, device="cpu")
    return size * (1.0 - 2.0 * (torch.rand(tensor.shape, generator=generator, device="cpu") < 0.5))


def _fill(tensor: Tensor, generator: torch.Generator) -> None:
    """Uniform noise scaled by fan-in, in float32 and part by part: a group is read as well on it, in less time."""
    flat, most = tensor.view(-1), (3 / max(tensor.numel() // tensor.shape[0], 1)) ** 0.5
    for part in flat.split(_PART):
        noise = torch.empty(len(part), dtype=torch.float32, device="cpu")
        part.copy_(noise.uniform_(-most, most, generator=generator))


def _free(tensor: Tensor, own: Tensor, generator: torch.Generator, state: bool) -> None:
    """Any number for a parameter; positive ones for a buffer, so that variances stay so."""
    if tensor.numel() > _LARGE and tensor.dim() > 1 and not state:
        return _fill(tensor, generator)
    noise = _noise(tensor, generator)
    tensor.copy_(noise.abs() if state else noise)


def _signed(tensor: Tensor, own: Tensor, generator: torch.Generator, state: bool) -> None:
    """Drawn, and of one sign where the network's own numbers are, as under a root or a logarithm."""
    noise, own = _noise(tensor, generator), _like(own, tensor)
    if state or bool((own >= 0).all()):
        noise = noise.abs()
    tensor.copy_(-noise.abs() if bool((own <= 0).all()) and bool((own < 0).any()) else noise)


def _shaken(tensor: Tensor, own: Tensor, generator: torch.Generator, state: bool) -> None:
    """The network's own numbers plus noise."""
    own = _like(own, tensor)
    noise = _noise(tensor, generator).to(own)
    tensor.copy_(own + 0.2 * (noise.abs() if state or bool((own >= 0).all()) else noise))


def _like(own: Tensor, tensor: Tensor) -> Tensor:
    """The network's own numbers in the dtype of the probe; zero where they are not known."""
    return torch.zeros_like(tensor) if own.device.type == "meta" else own.to(tensor)


_WAYS: tuple[Callable[[Tensor, Tensor, torch.Generator, bool], None], ...] = (_free, _signed, _shaken)


def floating(tree: Any) -> list[Tensor]:
    """Every floating-point tensor of a module's output, in order."""
    if isinstance(tree, Tensor):
        return [tree.detach()] if tree.is_floating_point() else []
    if isinstance(tree, Mapping):
        tree = tree.values()
    elif not isinstance(tree, (list, tuple)):
        tree = vars(tree).values() if hasattr(tree, "__dict__") else ()
    return [t for item in tree for t in floating(item)]


def usable(outputs: list[Tensor]) -> bool:
    """Whether all outputs are finite, masked entries aside: no NaN, and in every output something finite."""
    return all(not bool(t.isnan().any()) and bool(t.isfinite().any()) for t in outputs if t.numel()) and bool(outputs)
