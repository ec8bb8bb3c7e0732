"""A network is a point, a difference of networks is a vector.

An architecture fixes one map f : W x X -> Y. A `Net` is f standing at a point w of W; `Weights` is a vector of W.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from weightspace.net.differentiable import called, computed, spectral_norms
from weightspace.net.errors import InputError, WeightspaceError, first_line
from weightspace.net.names import pick
from weightspace.net.public import becomes, public
from weightspace.net.state import settled
from weightspace.net.weights import Renamed, Weights, convert

__all__ = ["Net", "WeightspaceError", "checked", "loose", "math_attention", "unfrozen"]

_POWER = 30
_frozen: WeakKeyDictionary[nn.Module, frozenset[str]] = WeakKeyDictionary()


@public(grad=False)
class Net:
    """f(w, .): an architecture standing at a point w of weight space.

    `architecture` is a module in evaluation mode whose own tensors are on the meta device, so a Net costs its
    `weights` (parameters) and `state` (persistent buffers) and no more. `net(x)` evaluates f(w, x);
    `b - a : Weights`; `a + t * v : Net` (the state stays a's); `net.at(w)` is the same architecture elsewhere.
    Buffers that a checkpoint would not hold are constants of the architecture.
    """

    __slots__ = ("architecture", "state", "weights")

    def __init__(self, architecture: nn.Module, weights: Weights, state: Weights) -> None:
        self.architecture, self.weights, self.state = architecture, weights, state

    @classmethod
    def of(cls, module: nn.Module | Net) -> Net:
        """The point where `module` stands now; its tensors are copied, the module is left alone."""
        if isinstance(module, Net):
            return module
        if not isinstance(module, nn.Module):
            raise WeightspaceError(f"expected a torch.nn.Module, got {type(module).__name__}")
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
        """f(w, x): one positional input, a mapping of keyword inputs, or several positional ones."""
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
                f"{name} writes into its own weights or buffers when it is called, and has changed this point; let it "
                "write into a copy, or keep what it counts in an attribute"
            )
        return found

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Every named tensor of the point: parameters, then persistent buffers."""
        return {**self.weights, **self.state}

    def at(self, weights: Weights, state: Weights | None = None) -> Net:
        """The same architecture at another point."""
        self.weights.check(weights)
        return Net(self.architecture, weights, self.state if state is None else state)

    def load(self, tensors: Mapping[str, Tensor]) -> Net:
        """The same architecture at the point that `tensors` names (parameters and persistent buffers).

        A tied tensor may come under any of its names, and under several if they hold the same numbers. A counter of
        BatchNorm's batches that is missing is 0. The dtypes are those of `tensors`. Raises `ArchitectureMismatch` for a
        missing, unexpected or misshapen tensor, and for a tied one with two values. A prefix that all names have is
        left out.
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
        """A live `nn.Module` in evaluation mode with its own copy of the weights; ties stay tied."""
        return self.clone().live()

    def live(self) -> nn.Module:
        """As `module`, sharing memory with this Net: changing one changes the other."""
        memo: dict[int, Any] = {}
        tensors = self.tensors
        for name, parameter in self.architecture.named_parameters():
            memo[id(parameter)] = nn.Parameter(tensors[name].detach(), _can_learn(parameter, tensors[name]))
        for name, buffer in _persistent_buffers(self.architecture).items():
            memo[id(buffer)] = tensors[name].detach()
        memo.update(_without_graphs(self.architecture))
        return copy.deepcopy(self.architecture, memo)

    def clone(self) -> Net:
        """A copy that shares no weights with this one."""
        return Net(self.architecture, self.weights.clone(), self.state.clone())

    def to(self, target: torch.device | torch.dtype | str) -> Net:
        """The same point on another device, or with floating-point tensors in another dtype.

        Raises `WeightspaceError` for a device that is not here, and for text that names no device and no dtype.
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
        """The same point in float64."""
        return self.to(torch.float64)

    def widen(self, n: int, layer: str | None = None, seed: int = 0) -> Net:
        """`n` more outputs: the linear map `layer` (by default the last one of the module) gets `n` more rows.

        The other outputs are as before; the new rows are drawn as torch does, from `seed`. Raises `WeightspaceError`
        where there is no such layer or its weight is used elsewhere too.
        """
        if n < 1:
            raise WeightspaceError(f"widen by at least one output, got {n}")
        found = {name: m for name, m in self.architecture.named_modules() if isinstance(m, nn.Linear)}
        name = layer if layer is not None else next(reversed(found), "")
        if name not in found:
            raise WeightspaceError(f"no linear map {name!r} to widen; choose one of {', '.join(found) or 'none'}")
        old = found[name]
        every = self.architecture.named_parameters(remove_duplicate=False)
        if sum(p is getattr(old, "weight", None) for _, p in every) > 1:
            raise WeightspaceError(f"{name}.weight is used in several places; it cannot get rows of its own")
        if type(old) is not nn.Linear or f"{name}.weight" not in self.weights:
            raise WeightspaceError(f"{name} is a {type(old).__name__}; only a plain nn.Linear can get more rows")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            drawn = nn.Linear(old.in_features, n, bias=old.bias is not None)
        wide = nn.Linear(old.in_features, old.out_features + n, old.bias is not None, device="meta")
        architecture = copy.deepcopy(self.architecture, {id(old): wide}).eval()
        grown = {}
        for key, rows in drawn.named_parameters():
            before = self.weights[f"{name}.{key}"]
            grown[f"{name}.{key}"] = torch.cat([before, rows.detach().to(before)])
        return Net(architecture, Weights({**self.weights, **grown}), self.state)

    @property
    def frozen(self) -> frozenset[str]:
        """Names of the weights that the module held by requires_grad=False: flows, perturbations, merges leave them."""
        if self.architecture not in _frozen:
            found = [name for name, p in self.architecture.named_parameters() if not p.requires_grad]
            _frozen[self.architecture] = frozenset(found)
        held = _frozen[self.architecture]
        return frozenset(n for n in held if n in self.weights and self.weights[n].is_floating_point())

    def free(self) -> Net:
        """The same function with what is frozen among the state: `weights` are those that may move. Itself if all may.

        Raises `WeightspaceError` where every weight is frozen.
        """
        still = self.frozen
        if not still:
            return self
        if len(still) == len(self.weights):
            raise WeightspaceError("every parameter of the network is frozen and none could move; take net.thawed()")
        return self.within({name: w for name, w in self.weights.items() if name not in still})

    def within(self, names: Iterable[str]) -> Net:
        """The same function with the weights of these names alone, all others among the state."""
        chosen = set(names)
        weights = {n: w for n, w in self.weights.items() if n in chosen}
        rest = {n: w for n, w in self.weights.items() if n not in chosen}
        return Net(self.architecture, Weights(weights), Weights({**rest, **self.state}))

    def thawed(self) -> Net:
        """The same point with nothing frozen."""
        if not self.frozen:
            return self
        architecture = copy.deepcopy(self.architecture)
        for parameter in architecture.parameters():
            if parameter.is_floating_point():
                parameter.requires_grad_(True)
        return Net(architecture, self.weights, self.state)

    def refreshed(self) -> Net:
        """The same weights, and what belongs to them in the state: the singular vectors of spectral norms, anew.

        By power iteration from those of before; the function is the same where these were right.
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
        """Where the weights are."""
        return next(iter(self.tensors.values()), torch.empty(0)).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the first floating-point tensor."""
        floating = (t.dtype for t in self.tensors.values() if t.is_floating_point())
        return next(floating, torch.get_default_dtype())

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the architecture: its printed form and every tensor's name and shape."""
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
        """(1 - t) self + t other, the state interpolated with the weights, or what belongs to them (`refreshed`)."""
        found = Net(self.architecture, self.weights.lerp(other.weights, t), self.state.lerp(other.state, t))
        return found if t in (0, 1) else found.refreshed()

    def __repr__(self) -> str:
        state = f" + {self.state.numel:,} state" if self.state else ""
        return f"Net({type(self.architecture).__name__}, {self.weights.numel:,} weights{state}, {self.dtype})"


becomes(Net, nn.Module, Net.of)


@public
def loose(net: Net) -> Weights:
    """One where a weight may move, zero where it is frozen."""
    still = net.frozen
    return Weights({n: torch.zeros_like(w) if n in still else torch.ones_like(w) for n, w in net.weights.items()})


@public
def unfrozen(net: Net, frozen: str) -> Net:
    """The net, or its thawed form where frozen="move". Raises `WeightspaceError` for another word than "stay"."""
    if frozen not in ("stay", "move"):
        raise WeightspaceError(f'frozen weights "stay" or "move", got {frozen!r}')
    return net.thawed() if frozen == "move" else net


def checked(value: Any) -> Net:
    """The value, if it is a Net, or the Net of a module. Raises `WeightspaceError` for anything else."""
    if isinstance(value, Net | nn.Module):
        return Net.of(value)
    raise WeightspaceError(f"expected a Net, got {type(value).__name__}; give Net.of(module)")


def _shapes(values: tuple[Any, ...], named: Mapping[str, Any]) -> str:
    def shape(value: Any) -> str:
        return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__

    alone = shape(values[0]) if len(values) == 1 else f"({', '.join(map(shape, values))})"
    return f"{{{', '.join(f'{name!r}: {shape(value)}' for name, value in named.items())}}}" if named else alone


def _place(target: torch.device | torch.dtype | str) -> torch.device | torch.dtype:
    """The device or dtype that is meant, if it is here."""
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
        raise WeightspaceError(f"no device or dtype {str(target)!r} is here; devices: {here}") from error
    return device


@contextlib.contextmanager
def math_attention() -> Iterator[None]:
    """Attention as plain arithmetic: the fused kernels have no forward mode and round in their own way."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _can_learn(parameter: Tensor, value: Tensor) -> bool:
    return parameter.requires_grad and value.is_floating_point()


def _without_graphs(module: nn.Module) -> dict[int, Tensor]:
    """What hooks of the module have computed -> what a copy holds until they do so again."""
    return {id(t): t.detach().to("meta") for child in module.modules() for t in computed(child).values()}


def _persistent_buffers(module: nn.Module) -> dict[str, Tensor]:
    transient = {
        f"{prefix}{'.' if prefix else ''}{name}"
        for prefix, child in module.named_modules(remove_duplicate=False)
        for name in child._non_persistent_buffers_set
    }
    return {name: buffer for name, buffer in module.named_buffers() if name not in transient}
