"""A network is a point, a difference of networks is a vector.

An architecture fixes one map f : W x X -> Y. A `Net` is f standing at a point w of W; `Weights` is a vector of W.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from weightspace.differentiable import called, computed, spectral_norms
from weightspace.public import WeightspaceError, becomes, public, settled

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = [
    "ArchitectureMismatch",
    "InputError",
    "Net",
    "Weights",
    "WeightspaceError",
    "finite",
    "checked",
    "loose",
    "math_attention",
    "prefixes",
    "squared_distance",
    "unfrozen",
    "wide",
]

_BLOCK = 1 << 18
_POWER = 30
_COMPUTED = {  # dtypes that torch copies and converts; the others are storage for kernels of their own
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex128, torch.complex64, torch.complex32,
    torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.float8_e8m0fnu,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.bool,
    torch.uint64, torch.uint32, torch.uint16, torch.uint8,
}  # fmt: skip
_frozen: WeakKeyDictionary[nn.Module, frozenset[str]] = WeakKeyDictionary()


class ArchitectureMismatch(WeightspaceError):
    """Two networks, or a network and a checkpoint, that do not have the same tensors."""


class InputError(WeightspaceError, RuntimeError):
    """Inputs that a network does not take: of another shape, type or number."""


class Weights(Mapping[str, Tensor]):
    """A vector of weight space: named tensors with the algebra of a vector space.

    Held flat, one buffer per (dtype, device); `w["fc.weight"]` is a view into it. Order and names are those of the
    module's `named_parameters()`, a tied tensor once; in the buffer, tensors of an even size come first where pairs of
    numbers would begin at an odd place. `v + w`, `v - w`, `t * v`, `-v`, `v / t` are again Weights;
    sums need the same names and shapes, or `ArchitectureMismatch` is raised.
    """

    __slots__ = ("_flat", "_views")

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy `tensors` into flat buffers, one tensor at a time; a mapping with `shapes` and `dtypes` is read once.

        Raises `WeightspaceError` for dtypes with which torch does not compute, such as uint4.
        """
        plan: dict[tuple[torch.dtype, torch.device], list[str]] = {}
        shapes: dict[str, torch.Size] = {}
        for name, (shape, dtype, device) in _forms(tensors).items():
            shapes[name] = shape
            if dtype not in _COMPUTED:
                raise WeightspaceError(f"{name} holds {dtype}, with which torch does not compute; convert it first")
            plan.setdefault((dtype, device), []).append(name)
        plan = {key: _laid_out(names, shapes) for key, names in plan.items()}
        flat = {}
        for (dtype, device), names in plan.items():
            size = sum(shapes[name].numel() for name in names)
            flat[dtype, device] = torch.empty(size, dtype=dtype, device=device)
        self._bind(flat, plan, shapes)
        with torch.no_grad():
            for name, view in self._views.items():
                view.copy_(tensors[name])

    def _bind(
        self,
        flat: dict[tuple[torch.dtype, torch.device], Tensor],
        plan: Mapping[tuple[torch.dtype, torch.device], list[str]],
        shapes: Mapping[str, torch.Size],
    ) -> None:
        self._flat = flat
        views = {}
        for key, names in plan.items():
            # one split, not many slices: its backward pass writes the flat gradient once
            parts = flat[key].split([shapes[name].numel() for name in names])
            views.update({name: part.view(shapes[name]) for name, part in zip(names, parts, strict=True)})
        self._views = {name: views[name] for name in shapes}

    def _plan(self) -> dict[tuple[torch.dtype, torch.device], list[str]]:
        plan: dict[tuple[torch.dtype, torch.device], list[str]] = {key: [] for key in self._flat}
        for name, view in self._views.items():
            plan[view.dtype, view.device].append(name)
        shapes = self.shapes
        return {key: _laid_out(names, shapes) for key, names in plan.items()}

    def _like(self, flat: dict[tuple[torch.dtype, torch.device], Tensor]) -> Weights:
        new = object.__new__(Weights)
        plan = {(flat[k].dtype, flat[k].device): names for k, names in self._plan().items()}
        if len(plan) < len(flat):
            raise WeightspaceError("two dtypes would become one; convert with `Weights(...)` instead")
        new._bind({(f.dtype, f.device): f for f in flat.values()}, plan, self.shapes)
        return new

    def __getitem__(self, name: str) -> Tensor:
        return self._views[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._views)

    def __len__(self) -> int:
        return len(self._views)

    def __repr__(self) -> str:
        return f"Weights({len(self)} tensors, {self.numel:,} numbers)"

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """Name -> shape, in order."""
        return {name: view.shape for name, view in self._views.items()}

    @property
    def numel(self) -> int:
        """The dimension of the vector space."""
        return sum(flat.numel() for flat in self._flat.values())

    @property
    def buffers(self) -> list[Tensor]:
        """The flat buffers themselves, one per (dtype, device)."""
        return list(self._flat.values())

    def flat(self) -> Float[Tensor, " n"]:
        """All numbers in one vector: the buffer itself where there is one, else a copy in the widest dtype."""
        buffers = self.buffers
        return buffers[0] if len(buffers) == 1 else torch.cat([b.to(buffers[0].device) for b in buffers])

    def shaped(self, flat: Float[Tensor, " n"]) -> Weights:
        """The vector of this space whose numbers are `flat`, in the order of `flat()`; shares memory with it."""
        if flat.shape != (self.numel,):
            raise WeightspaceError(f"expected a vector of {self.numel} numbers, got shape {tuple(flat.shape)}")
        if len(self._flat) == 1:
            return self._like({next(iter(self._flat)): flat})
        sizes = [buffer.numel() for buffer in self.buffers]
        parts = zip(self._flat.items(), flat.split(sizes), strict=True)
        return self._like({key: part.to(buffer) for (key, buffer), part in parts})

    def map(self, function: Callable[[Tensor], Tensor]) -> Weights:
        """Apply an elementwise `function` to the flat buffers (a dtype or device change included)."""
        return self._like({key: _computed(function, flat) for key, flat in self._flat.items()})

    def clone(self) -> Weights:
        """A copy that shares nothing with this one."""
        return self.map(torch.clone)

    def zeros(self) -> Weights:
        """The zero vector of the same space."""
        return self.map(torch.zeros_like)

    def randn(self, seed: int) -> Weights:
        """A vector of independent standard normal entries."""

        def draw(flat: Tensor) -> Tensor:
            generator = torch.Generator(device=flat.device).manual_seed(seed)
            return torch.randn(flat.shape, generator=generator, dtype=flat.dtype, device=flat.device)

        return self.map(draw)

    def replace(self, tensors: Mapping[str, Tensor]) -> Weights:
        """A copy in which the named tensors take new values of the same shape."""
        new = self.clone()
        with torch.no_grad():
            for name, tensor in tensors.items():
                new[name].copy_(tensor)
        return new

    def check(self, other: Weights) -> None:
        """Raise `ArchitectureMismatch` unless `other` lies in the same space."""
        if self.shapes != other.shapes:
            raise ArchitectureMismatch(_difference(self.shapes, other.shapes))

    def _zip(self, other: Weights, function: Callable[[Tensor, Tensor], Tensor]) -> Weights:
        self.check(other)
        if self._flat.keys() == other._flat.keys() and self._plan() == other._plan():
            return self._like({key: _computed(function, flat, other._flat[key]) for key, flat in self._flat.items()})
        return Weights({name: _computed(function, self[name], other[name]) for name in self})

    def __add__(self, other: Weights) -> Weights:
        if not isinstance(other, Weights):
            return NotImplemented
        return self._zip(other, torch.add)

    def __sub__(self, other: Weights) -> Weights:
        if not isinstance(other, Weights):
            return NotImplemented
        return self._zip(other, torch.sub)

    def __mul__(self, scalar: float | Tensor) -> Weights:
        if isinstance(scalar, Weights):
            return NotImplemented
        return self.map(lambda flat: flat * scalar)

    __rmul__ = __mul__

    def __truediv__(self, scalar: float | Tensor) -> Weights:
        return self.map(lambda flat: flat / scalar)

    def __neg__(self) -> Weights:
        return self.map(torch.neg)

    def lerp(self, other: Weights, t: float) -> Weights:
        """(1 - t) self + t other in the dtypes of self, computed in float64 and rounded once; integers stay self's."""
        return self._zip(other, lambda x, y: _lerp(x, y, t))

    def dot(self, other: Weights) -> Float[Tensor, ""]:
        """<v, w> = sum_i v_i w_i, summed in float64."""
        self.check(other)
        if self._flat.keys() == other._flat.keys() and self._plan() == other._plan():
            terms = [_dot(flat, other._flat[key]) for key, flat in self._flat.items()]
        else:
            terms = [_dot(self[name].flatten(), other[name].flatten()) for name in self]
        return torch.stack(terms).sum() if terms else torch.zeros((), dtype=torch.float64)

    def norm(self) -> Float[Tensor, ""]:
        """|v| = sqrt(<v, v>), summed in float64."""
        return self.dot(self).sqrt()

    def norms(self) -> dict[str, float]:
        """Name -> |v_l|, one Euclidean norm for every tensor."""
        return {name: float(_dot(view.flatten(), view.flatten()).sqrt()) for name, view in self.items()}

    def unusable(self) -> list[str]:
        """Names of the tensors that hold NaN or infinity."""
        if all(finite(flat) for flat in self._flat.values() if flat.is_floating_point()):
            return []
        return [name for name, view in self.items() if view.is_floating_point() and not finite(view)]


def _laid_out(names: list[str], shapes: Mapping[str, torch.Size]) -> list[str]:
    """The order of tensors in their buffer: as given, unless pairs would begin at an odd place, where they cannot be
    seen as complex numbers; then tensors of an even size come first."""
    start, odd_pairs = 0, False
    for name in names:
        odd_pairs |= start % 2 == 1 and shapes[name][-1:] == (2,)
        start += shapes[name].numel()
    return sorted(names, key=lambda name: shapes[name].numel() % 2) if odd_pairs else names


def finite(numbers: Tensor) -> bool:
    """Whether there is no NaN and no infinity: in one pass, as both stay in a sum; in more where a sum overflows."""
    if numbers.dtype.itemsize == 1:  # float8, which has no sums of its own
        return all(bool(part.float().isfinite().all()) for part in numbers.flatten().split(_BLOCK))
    return bool(numbers.sum().isfinite() or numbers.isfinite().all())


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
                raise InputError(f"{name} does not take inputs of shape {seen}: {_first_line(error)}") from error
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
        picked = _pick(self, tensors)
        weights = Weights(_Renamed(tensors, {name: picked[name] for name in self.weights}))
        state = Weights(_Renamed(tensors, {name: picked.get(name) for name in self.state}))
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
        return Net(architecture, _convert(self.weights, move), _convert(self.state, move))

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


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).partition("\n")[0]


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


class _Renamed(Mapping[str, Tensor]):
    """`tensors` under other names, still read one at a time; a name that is None is a counter that stands at 0."""

    def __init__(self, tensors: Mapping[str, Tensor], names: Mapping[str, str | None]) -> None:
        self._tensors, self._names = tensors, names

    def __getitem__(self, name: str) -> Tensor:
        source = self._names[name]
        return self._counter() if source is None else self._tensors[source].detach()

    def _counter(self) -> Tensor:
        place = next((form[2] for form in _forms(self._tensors).values()), None)
        return torch.zeros((), dtype=torch.long, device=place)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def forms(self) -> dict[str, _Form]:
        forms = _forms(self._tensors)
        blank = self._counter()
        counter = (blank.shape, blank.dtype, blank.device)
        return {name: counter if source is None else forms[source] for name, source in self._names.items()}


_Form: TypeAlias = tuple[torch.Size, torch.dtype, torch.device]


def _forms(tensors: Mapping[str, Tensor]) -> dict[str, _Form]:
    """Name -> shape, dtype and device; no tensor of a checkpoint on disk is read for it."""
    if isinstance(tensors, _Renamed):
        return tensors.forms()
    shapes, dtypes = getattr(tensors, "shapes", None), getattr(tensors, "dtypes", None)
    if isinstance(shapes, Mapping) and isinstance(dtypes, Mapping):
        return {name: (shapes[name], dtypes[name], torch.device("cpu")) for name in tensors}
    return {name: (tensor.shape, tensor.dtype, tensor.device) for name, tensor in tensors.items()}


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


def squared_distance(x: Tensor, y: Tensor) -> float:
    """|x - y|^2 in float64, a piece at a time."""
    x, y = (_real(t.detach().flatten()) for t in (x, y))
    pieces = zip(x.split(_BLOCK), y.split(_BLOCK), strict=True)
    return sum(float((p.double() - q.double()).square_().sum()) for p, q in pieces)


@public
def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which numbers of `dtype` are summed so that the sum is rounded once: twice as wide, or float64."""
    if dtype.is_complex:
        return torch.complex64 if dtype == torch.complex32 else torch.complex128
    return torch.float32 if dtype.itemsize < 4 else torch.float64


def _lerp(x: Tensor, y: Tensor, t: float) -> Tensor:
    if not (x.is_floating_point() or x.is_complex()):
        return x
    exact = torch.complex128 if x.is_complex() else torch.float64
    if x.requires_grad or y.requires_grad or x.numel() <= _BLOCK:
        return torch.lerp(x.to(exact), y.to(exact), t).to(x.dtype)
    out = torch.empty_like(x)
    for target, p, q in zip(*(z.reshape(-1).split(_BLOCK) for z in (out, x, y)), strict=True):
        target.copy_(torch.lerp(p.to(exact), q.to(exact), t))
    return out


def _computed(function: Callable[..., Tensor], *numbers: Tensor) -> Tensor:
    try:
        return function(*numbers)
    except NotImplementedError as error:
        dtypes = " and ".join(dict.fromkeys(str(x.dtype) for x in numbers))
        raise WeightspaceError(f"torch has no such arithmetic in {dtypes}; use .to(torch.float32) first") from error


def _real(x: Tensor) -> Tensor:
    """Complex numbers as twice as many real ones."""
    return torch.view_as_real(x.resolve_conj()).flatten() if x.is_complex() else x


def _dot(x: Tensor, y: Tensor) -> Tensor:
    x, y = _real(x), _real(y)
    parts = [torch.dot(p.double(), q.double()) for p, q in zip(x.split(_BLOCK), y.split(_BLOCK), strict=True)]
    return torch.stack(parts).sum() if parts else x.new_zeros((), dtype=torch.float64)


def _can_learn(parameter: Tensor, value: Tensor) -> bool:
    return parameter.requires_grad and value.is_floating_point()


def _convert(weights: Weights, move: Callable[[Tensor], Tensor]) -> Weights:
    moved = [move(flat) for flat in weights.buffers]
    if len({(flat.dtype, flat.device) for flat in moved}) == len(moved):
        return weights.map(move)
    return Weights({name: move(view) for name, view in weights.items()})


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


def _aliases(module: nn.Module) -> dict[str, str]:
    """Every name of every tensor -> the first name of that tensor."""
    first: dict[int, str] = {}
    names = {}
    pairs = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    for name, tensor in pairs:
        names[name] = first.setdefault(id(tensor), name)
    return names


def _pick(net: Net, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The Net's own names -> the names under which `tensors` holds them; counters that it lacks are left out."""
    aliases = _aliases(net.architecture)
    wanted = {name: tensor.shape for name, tensor in net.tensors.items()}
    forms = _forms(tensors)
    given = {name: form[0] for name, form in forms.items()}
    found: dict[str, str] = {}
    for name in given:
        owner = aliases.get(name)
        if owner in wanted and (owner not in found or name == owner):
            found[owner] = name
    counters = {name for name in wanted if name.endswith("num_batches_tracked")}
    missing = [name for name in wanted if name not in found and name not in counters]
    extra = [name for name in given if name not in aliases]
    if missing or extra:
        under = [prefix for prefix in prefixes(net, given) if prefix]
        if under and all(name.startswith(under[0]) for name in given):
            inside = _Renamed(tensors, {name.removeprefix(under[0]): name for name in given})
            return {owner: under[0] + name for owner, name in _pick(net, inside).items()}
        if under and missing:
            left = [name for name in given if not name.startswith(under[0])]
            raise ArchitectureMismatch(
                f"the tensors of this architecture are there under {', '.join(map(repr, under))}, "
                f"beside {', '.join(left[:3])}; choose them, as checkpoint.read(path, weights={under[0][:-1]!r})"
            )
        raise ArchitectureMismatch(_difference(wanted, {aliases.get(n, n): shape for n, shape in given.items()}))
    shapes = {owner: given[name] for owner, name in found.items()}
    for owner, name in found.items():
        if net.tensors[owner].is_floating_point() and not forms[name][1].is_floating_point:
            raise ArchitectureMismatch(f"{name} holds {forms[name][1]}; give the weights in floating-point numbers")
    if any(shapes[owner] != wanted[owner] for owner in shapes):
        raise ArchitectureMismatch(_difference({o: wanted[o] for o in shapes}, shapes))
    for name in given:
        kept = found.get(aliases[name], name)
        if name != kept and not _equal(forms[name], forms[kept], tensors, name, kept):
            raise ArchitectureMismatch(
                f"{name} and {kept} are one tensor in this architecture and differ here; "
                "give the architecture that does not tie them, or weights in which they are equal"
            )
    return found


@public
def prefixes(net: Net, names: Iterable[str]) -> list[str]:
    """Under which prefixes a file that holds these names holds every tensor of the network: "", "model.", both."""
    given, aliases = {*names}, _aliases(net.architecture)
    called: dict[str, list[str]] = {name: [] for name in net.tensors if not name.endswith("num_batches_tracked")}
    for name, owner in aliases.items():
        if owner in called:
            called[owner].append(name)
    first = next(iter(called.values()), [])
    starts = {n[: -len(own)]: None for n in given for own in first if n == own or n.endswith(f".{own}")}
    return [start for start in sorted(starts) if all(any(start + n in given for n in called[o]) for o in called)]


def _equal(one: _Form, other: _Form, tensors: Mapping[str, Tensor], name: str, kept: str) -> bool:
    """Whether two tensors hold the same numbers, NaN in the same places; on the meta device, whether they could."""
    if one[0] != other[0] or "meta" in (one[2].type, other[2].type):
        return one[0] == other[0]
    a, b = tensors[name].detach(), tensors[kept].detach()
    if (a.data_ptr(), a.stride(), a.dtype) == (b.data_ptr(), b.stride(), b.dtype):
        return True
    wide = torch.complex128 if a.is_complex() or b.is_complex() else torch.float64
    for p, q in zip(a.reshape(-1).split(_BLOCK), b.reshape(-1).split(_BLOCK), strict=True):
        p, q = p.to(wide), q.to(p.device, wide)
        if not bool(((p == q) | ((p != p) & (q != q))).all()):
            return False
    return True


def _difference(expected: Mapping[str, torch.Size], seen: Mapping[str, torch.Size]) -> str:
    def some(names: list[str]) -> str:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        return ", ".join(names[:3]) + more

    missing = [name for name in expected if name not in seen]
    extra = [name for name in seen if name not in expected]
    shapes = [
        f"{name} is {tuple(seen[name])}, expected {tuple(expected[name])}"
        for name in expected
        if name in seen and seen[name] != expected[name]
    ]
    parts = [f"missing {some(missing)}"] if missing else []
    parts += [f"unexpected {some(extra)}"] if extra else []
    parts += [some(shapes)] if shapes else []
    return f"not the same architecture: {'; '.join(parts)}. Give networks of one architecture."
