"""Networks: an architecture with its weights, as a point of weight space.

An architecture fixes one map f : W x X -> Y. A `Net` is f at a point w of W; `Weights` is a vector of W.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from weightspace.contents import deprecated
from weightspace.net.arguments import becomes
from weightspace.net.differentiable import called, computed, spectral_norms
from weightspace.net.errors import InputError, WeightspaceError, first_line
from weightspace.net.names import pick
from weightspace.net.public import public
from weightspace.net.state import seeded, settled
from weightspace.net.weights import Renamed, Weights, convert

__all__ = ["Net", "WeightspaceError", "checked", "grown", "loose", "unfrozen"]

_POWER = 30
_frozen: WeakKeyDictionary[nn.Module, frozenset[str]] = WeakKeyDictionary()


@public(grad=False)
class Net:
    """A network f(w, .): an architecture with its weights, a point w of weight space. Made by `Net.of(module)`.

    `architecture` is a module in evaluation mode whose own tensors are on the meta device, so a Net takes the memory
    of its `weights` (parameters) and `state` (persistent buffers) alone. `net(x)` evaluates f(w, x); `b - a` is a
    `Weights` vector; `a + t * v` is a Net (with the state of a); `net.at(w)` is the same architecture at other weights.
    Buffers that a checkpoint does not hold are constants of the architecture.

    >>> import torch
    >>> import weightspace as ws
    >>> a = ws.Net.of(torch.nn.Linear(3, 2))
    >>> b = a + 0.1 * a.weights.randn(seed=0)
    >>> a, a(torch.zeros(5, 3)).shape
    (Net(Linear, 8 weights, torch.float32), torch.Size([5, 2]))
    >>> b - a
    Weights(2 tensors, 8 numbers)
    """

    __slots__ = ("architecture", "state", "weights")

    def __init__(self, architecture: nn.Module, weights: Weights, state: Weights) -> None:
        self.architecture, self.weights, self.state = architecture, weights, state

    @classmethod
    def of(cls, module: nn.Module | Net) -> Net:
        """The network of a torch module: its tensors are copied, and the module is not changed.

        Raises `WeightspaceError` for anything else, and for a module that cannot be copied.
        """
        if isinstance(module, Net):
            return module
        if not isinstance(module, nn.Module):
            raise WeightspaceError(f"expected a torch.nn.Module, got a {type(module).__name__}; give a module")
        state = {name: tensor.detach() for name, tensor in _persistent_buffers(module).items()}
        memo: dict[int, Any] = {}
        for parameter in module.parameters():
            memo[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
        for buffer in _persistent_buffers(module).values():
            memo[id(buffer)] = buffer.to("meta")
        memo.update(_without_graphs(module))
        try:
            architecture = copy.deepcopy(module, memo).eval()
        except Exception as error:
            raise WeightspaceError(
                f"{type(module).__name__} cannot be copied ({error}); "
                "keep non-leaf tensors and open handles out of its attributes"
            ) from error
        weights = Weights({name: p.detach() for name, p in module.named_parameters()})
        return cls(architecture, weights, Weights(state))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The outputs f(w, x). x: one positional input, a mapping of keyword inputs, or several positional inputs.

        Raises `InputError` for inputs that the network does not take.
        """
        values: tuple[Any, ...] = args
        if len(args) == 1 and isinstance(args[0], Mapping):
            values, kwargs = (), {**args[0], **kwargs}
        elif len(args) == 1 and isinstance(args[0], tuple):
            values = args[0]
        point = [*self.weights.buffers, *self.state.buffers]
        before = [None if t.is_inference() else t._version for t in point]
        with settled(torch.float64 if self.dtype == torch.float64 else torch.float32, grad=False):
            try:
                found = called(self.architecture, self.tensors, values, kwargs, always=False)
            except (WeightspaceError, NotImplementedError, torch.OutOfMemoryError):
                raise
            except (RuntimeError, TypeError, IndexError) as error:
                name, seen = type(self.architecture).__name__, _shapes(values, kwargs)
                raise InputError(f"{name} does not take inputs of shape {seen}: {first_line(error)}") from error
        if any(was is not None and t._version != was for t, was in zip(point, before, strict=True)):
            name = type(self.architecture).__name__
            raise WeightspaceError(
                f"{name} writes into its own weights or buffers when it is called, and has changed this network; let "
                "it write into a copy, or keep what it counts in an attribute"
            )
        return found

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All named tensors of the network: parameters, then persistent buffers."""
        return {**self.weights, **self.state}

    def at(self, weights: Weights, state: Weights | None = None) -> Net:
        """The same architecture at other weights (and state). Raises `ArchitectureMismatch` for other shapes."""
        self.weights.check(weights)
        return Net(self.architecture, weights, self.state if state is None else state)

    def load(self, tensors: Mapping[str, Tensor]) -> Net:
        """The same architecture with the parameters and persistent buffers of a state dict or checkpoint.

        A prefix that all names share is ignored. A tied tensor may stand under any of its names, or under several that
        hold the same numbers. A missing counter of BatchNorm's batches is 0. The dtypes are those of `tensors`. Raises
        `ArchitectureMismatch` for a missing or unexpected tensor, one of another shape, and a tied one with two values.
        """
        if not isinstance(tensors, Mapping):
            raise WeightspaceError(
                f"expected named tensors, got {type(tensors).__name__}; give checkpoint.read(path) or a state_dict()"
            )
        picked = pick(self.architecture, self.tensors, tensors)
        weights = Weights(Renamed(tensors, {name: picked[name] for name in self.weights}))
        state = Weights(Renamed(tensors, {name: picked.get(name) for name in self.state}))
        return Net(self.architecture, weights, state)

    def module(self) -> nn.Module:
        """A `torch.nn.Module` in evaluation mode with a copy of the weights; tied weights stay tied."""
        return self.clone().live()

    def live(self) -> nn.Module:
        """A `torch.nn.Module` that shares memory with this Net: changing one changes the other. See `module`."""
        memo: dict[int, Any] = {}
        tensors = self.tensors
        for name, parameter in self.architecture.named_parameters():
            memo[id(parameter)] = nn.Parameter(tensors[name].detach(), _can_learn(parameter, tensors[name]))
        for name, buffer in _persistent_buffers(self.architecture).items():
            memo[id(buffer)] = tensors[name].detach()
        memo.update(_without_graphs(self.architecture))
        return copy.deepcopy(self.architecture, memo)

    def clone(self) -> Net:
        """A copy of the network that shares no memory with it."""
        return Net(self.architecture, self.weights.clone(), self.state.clone())

    def to(self, target: torch.device | torch.dtype | str) -> Net:
        """The same network on another device, or with floating-point tensors in another dtype.

        Raises `WeightspaceError` for a device that is not available, and for text that names no device and no dtype.
        """
        target = _place(target)

        def move(flat: Tensor) -> Tensor:
            keep = isinstance(target, torch.dtype) and not flat.is_floating_point()
            return flat if keep else flat.to(target)

        architecture = self.architecture
        constants = [b for b in architecture.buffers() if b.device.type != "meta"]
        if constants:
            architecture = copy.deepcopy(architecture)
            for module in architecture.modules():
                for name, buffer in module._buffers.items():
                    if buffer is not None and buffer.device.type != "meta":
                        module._buffers[name] = move(buffer)
        return Net(architecture, convert(self.weights, move), convert(self.state, move))

    def double(self) -> Net:
        """The same network in float64."""
        return self.to(torch.float64)

    def widen(self, n: int, layer: str | None = None, seed: int = 0) -> Net:
        """The old name of `grow(net, outputs=n)`; `weightspace.widen` makes hidden layers wider."""
        deprecated("Net.widen(n) is called grow(net, outputs=n) now")
        return grown(self, n, layer, seed)

    @property
    def frozen(self) -> frozenset[str]:
        """The names of the weights with requires_grad=False: flows, perturbations and merges do not change them."""
        if self.architecture not in _frozen:
            found = [name for name, p in self.architecture.named_parameters() if not p.requires_grad]
            _frozen[self.architecture] = frozenset(found)
        held = _frozen[self.architecture]
        return frozenset(n for n in held if n in self.weights and self.weights[n].is_floating_point())

    def free(self) -> Net:
        """The same network with its frozen weights moved to `state`, so that `weights` are the trainable ones.

        Itself where none is frozen. Raises `WeightspaceError` where all are.
        """
        still = self.frozen
        if not still:
            return self
        if len(still) == len(self.weights):
            raise WeightspaceError("every parameter of the network is frozen; take net.thawed()")
        return self.within({name: w for name, w in self.weights.items() if name not in still})

    def within(self, names: Iterable[str]) -> Net:
        """The same network with only the named tensors as `weights`, and the others moved to `state`."""
        chosen = set(names)
        weights = {n: w for n, w in self.weights.items() if n in chosen}
        rest = {n: w for n, w in self.weights.items() if n not in chosen}
        return Net(self.architecture, Weights(weights), Weights({**rest, **self.state}))

    def thawed(self) -> Net:
        """The same network with no weight frozen."""
        if not self.frozen:
            return self
        architecture = copy.deepcopy(self.architecture)
        for parameter in architecture.parameters():
            if parameter.is_floating_point():
                parameter.requires_grad_(True)
        return Net(architecture, self.weights, self.state)

    def refreshed(self) -> Net:
        """The same weights, with the singular vectors of spectral norms (in the state) computed for them.

        By power iteration from the old ones; the network does not change where these were right.
        """
        norms = spectral_norms(self.architecture)
        if not norms:
            return self
        new = {}
        with torch.no_grad():
            for norm in norms:
                if {norm.weight, norm.left, norm.right} <= self.tensors.keys():
                    matrix, right = norm.matrix(self.tensors[norm.weight].detach()), self.state[norm.right]
                    for _ in range(_POWER):
                        left = nn.functional.normalize(matrix @ right, dim=0, eps=norm.eps)
                        right = nn.functional.normalize(matrix.mT @ left, dim=0, eps=norm.eps)
                    new.update({norm.left: left, norm.right: right})
        return Net(self.architecture, self.weights, self.state.replace(new))

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(iter(self.tensors.values()), torch.empty(0)).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the first floating-point tensor."""
        floating = (t.dtype for t in self.tensors.values() if t.is_floating_point())
        return next(floating, torch.get_default_dtype())

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the architecture: its printed form, and the name and shape of every tensor."""
        lines = [str(self.architecture)]
        lines += [f"{name} {tuple(tensor.shape)}" for name, tensor in sorted(self.tensors.items())]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def check(self, other: Net) -> None:
        """Raise `ArchitectureMismatch` unless `other` has the same tensors, parameters and state."""
        self.weights.check(checked(other).weights)
        self.state.check(other.state)

    def __sub__(self, other: Net) -> Weights:
        if not isinstance(other, Net):
            return NotImplemented
        return self.weights - other.weights

    def __add__(self, vector: Weights) -> Net:
        if not isinstance(vector, Weights):
            return NotImplemented
        return self.at(self.weights + vector)

    def lerp(self, other: Net, t: float) -> Net:
        """The network `(1 - t) * self + t * other`: weights and state interpolated, spectral norms `refreshed`."""
        found = Net(self.architecture, self.weights.lerp(other.weights, t), self.state.lerp(other.state, t))
        return found if t in (0, 1) else found.refreshed()

    def __repr__(self) -> str:
        state = f" + {self.state.numel:,} state" if self.state else ""
        return f"Net({type(self.architecture).__name__}, {self.weights.numel:,} weights{state}, {self.dtype})"


becomes(Net, nn.Module, Net.of)


@public
def loose(net: Net) -> Weights:
    """The mask of the trainable weights: a vector of ones, with zeros where a weight is frozen.

    >>> import torch
    >>> import weightspace as ws
    >>> module = torch.nn.Linear(3, 2)
    >>> module.bias.requires_grad = False
    >>> ws.net.loose(ws.Net.of(module)).norms()["bias"]
    0.0
    """
    still = net.frozen
    return Weights({n: torch.zeros_like(w) if n in still else torch.ones_like(w) for n, w in net.weights.items()})


@public
def unfrozen(net: Net, frozen: Literal["stay", "move"]) -> Net:
    """The net with frozen="stay"; with frozen="move", the net with no weight frozen (`Net.thawed`).

    >>> import torch
    >>> import weightspace as ws
    >>> net = ws.Net.of(torch.nn.Linear(3, 2).requires_grad_(False))
    >>> len(net.frozen), len(ws.net.unfrozen(net, "move").frozen)
    (2, 0)
    """
    return net.thawed() if frozen == "move" else net


def grown(net: Net, outputs: int, layer: str | None, seed: int) -> Net:
    """More rows in a linear layer, by default the last one; `growing.grow` checks that it makes the outputs."""
    if outputs < 1:
        raise WeightspaceError(f"grow adds at least one output, got {outputs}; give 1 or more")
    found = {name: m for name, m in net.architecture.named_modules() if isinstance(m, nn.Linear)}
    name = layer if layer is not None else next(reversed(found), "")
    if not found:
        raise WeightspaceError(
            "no linear layer to grow: the network has no nn.Linear; give one whose outputs come from it"
        )
    if name not in found:
        raise WeightspaceError(f"no linear layer {name!r} to grow; choose one of {', '.join(found)}")
    old, prefix = found[name], f"{name}." if name else ""
    every = net.architecture.named_parameters(remove_duplicate=False)
    if sum(p is getattr(old, "weight", None) for _, p in every) > 1:
        raise WeightspaceError(f"{prefix}weight is used in several places; choose a layer with a weight of its own")
    if type(old) is not nn.Linear or f"{prefix}weight" not in net.weights:
        raise WeightspaceError(f"{name} is a {type(old).__name__}; choose a plain nn.Linear")
    with seeded(seed):
        drawn = nn.Linear(old.in_features, outputs, bias=old.bias is not None)
    wide = nn.Linear(old.in_features, old.out_features + outputs, old.bias is not None, device="meta")
    for key, parameter in wide.named_parameters():
        parameter.requires_grad_(getattr(old, key).requires_grad)
    architecture = wide.eval() if not name else copy.deepcopy(net.architecture, {id(old): wide}).eval()
    more = {}
    for key, rows in drawn.named_parameters():
        before = net.weights[f"{prefix}{key}"]
        more[f"{prefix}{key}"] = torch.cat([before, rows.detach().to(before)])
    return Net(architecture, Weights({**net.weights, **more}), net.state)


def checked(value: Any) -> Net:
    """A Net as it is, a module as a Net. Raises `WeightspaceError` for anything else.

    >>> import torch
    >>> import weightspace as ws
    >>> ws.net.checked(torch.nn.Linear(3, 2))
    Net(Linear, 8 weights, torch.float32)
    """
    if isinstance(value, Net | nn.Module):
        return Net.of(value)
    raise WeightspaceError(f"expected a Net, got {type(value).__name__}; give Net.of(module)")


def _shapes(values: tuple[Any, ...], named: Mapping[str, Any]) -> str:
    def shape(value: Any) -> str:
        return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__

    alone = shape(values[0]) if len(values) == 1 else f"({', '.join(map(shape, values))})"
    return f"{{{', '.join(f'{name!r}: {shape(value)}' for name, value in named.items())}}}" if named else alone


def _place(target: torch.device | torch.dtype | str) -> torch.device | torch.dtype:
    """The device or dtype of this name. Raises `WeightspaceError` where there is none."""
    if isinstance(target, torch.dtype):
        return target
    named = getattr(torch, target.removeprefix("torch."), None) if isinstance(target, str) else None
    if isinstance(named, torch.dtype):
        return named
    try:
        device = torch.device(target)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        here = ", ".join(["cpu", *([f"{a}" for a in [torch.accelerator.current_accelerator()] if a])])
        raise WeightspaceError(f"no device or dtype {str(target)!r} here; give a dtype or one of {here}") from error
    return device


def _can_learn(parameter: Tensor, value: Tensor) -> bool:
    return parameter.requires_grad and value.is_floating_point()


def _without_graphs(module: nn.Module) -> dict[int, Tensor]:
    """For `copy.deepcopy`: tensors that the module computed from parameters -> placeholders without a graph."""
    found = [t for child in module.modules() for t in computed(child).values()]
    for layer in module.modules():  # a recurrent layer keeps those of its last call in a list
        if isinstance(layer, nn.RNNBase):
            found += [t for t in layer._flat_weights if t is not None and t.grad_fn is not None]
    return {id(t): t.detach().to("meta") for t in found}


def _persistent_buffers(module: nn.Module) -> dict[str, Tensor]:
    transient = {
        f"{prefix}{'.' if prefix else ''}{name}"
        for prefix, child in module.named_modules(remove_duplicate=False)
        for name in child._non_persistent_buffers_set
    }
    return {name: buffer for name, buffer in module.named_buffers() if name not in transient}
