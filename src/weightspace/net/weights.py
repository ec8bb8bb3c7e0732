"""Vectors of weight space: named tensors in flat buffers, with the algebra of a vector space."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from weightspace.net.errors import ArchitectureMismatch, WeightspaceError
from weightspace.net.public import public

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["Weights", "finite", "squared_distance", "wide"]


BLOCK = 1 << 18  # numbers that are converted to float64 at a time
_COMPUTED = {  # dtypes that torch can copy and convert
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex128, torch.complex64, torch.complex32,
    torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.float8_e8m0fnu,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.bool,
    torch.uint64, torch.uint32, torch.uint16, torch.uint8,
}  # fmt: skip


class Weights(Mapping[str, Tensor]):
    """A vector of weight space: named tensors with the algebra of a vector space.

    Held in one flat buffer per (dtype, device); `w["fc.weight"]` is a view into it. Order and names are those of the
    module's `named_parameters()`, a tied tensor once. `v + w`, `v - w`, `t * v`, `-v`, `v / t` are Weights; sums of
    vectors with other names or shapes raise `ArchitectureMismatch`.

    >>> import weightspace as ws
    >>> net, _ = ws.demo.example()
    >>> v = net.weights.randn(seed=0)
    >>> v, v["1.weight"].shape
    (Weights(4 tensors, 1,210 numbers), torch.Size([16, 64]))
    >>> round(float((2 * v).norm() / v.norm()), 3)
    2.0
    """

    __slots__ = ("_flat", "_views")

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy named tensors into flat buffers, one at a time.

        Of a mapping with `shapes` and `dtypes`, such as a `Checkpoint`, each tensor is read once. Raises
        `WeightspaceError` for dtypes with which torch does not compute, such as uint4.
        """
        plan: dict[tuple[torch.dtype, torch.device], list[str]] = {}
        shapes: dict[str, torch.Size] = {}
        for name, (shape, dtype, device) in forms_of(tensors).items():
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

    def __getstate__(self) -> tuple[Any, ...]:
        """For pickle and copies: the buffers once, and where the tensors lie in them."""
        parts = ((k, f.clone() if f.untyped_storage().nbytes() > f.nbytes else f) for k, f in self._flat.items())
        return dict(parts), self._plan(), self.shapes

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        flat, plan, shapes = state
        self._bind(flat, plan, shapes)

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
        """The shapes of the tensors, by name, in order."""
        return {name: view.shape for name, view in self._views.items()}

    @property
    def numel(self) -> int:
        """The number of entries: the dimension of the vector space."""
        return sum(flat.numel() for flat in self._flat.values())

    @property
    def buffers(self) -> list[Tensor]:
        """The flat buffers, one per (dtype, device), not copied."""
        return list(self._flat.values())

    def flat(self) -> Float[Tensor, " n"]:
        """All entries as one vector: the buffer itself where there is one, else a copy in the widest dtype."""
        buffers = self.buffers
        return buffers[0] if len(buffers) == 1 else torch.cat([b.to(buffers[0].device) for b in buffers])

    def shaped(self, flat: Float[Tensor, " n"]) -> Weights:
        """The vector with the entries of `flat`, in the order of `flat()`; it shares memory with `flat`."""
        if flat.shape != (self.numel,):
            raise WeightspaceError(f"expected a vector of {self.numel} numbers, got shape {tuple(flat.shape)}")
        if len(self._flat) == 1:
            return self._like({next(iter(self._flat)): flat})
        sizes = [buffer.numel() for buffer in self.buffers]
        parts = zip(self._flat.items(), flat.split(sizes), strict=True)
        return self._like({key: part.to(buffer) for (key, buffer), part in parts})

    def map(self, function: Callable[[Tensor], Tensor]) -> Weights:
        """The vector with an elementwise `function` applied to every buffer, or a change of dtype or device."""
        return self._like({key: _computed(function, flat) for key, flat in self._flat.items()})

    def clone(self) -> Weights:
        """A copy of the vector that shares no memory with it."""
        return self.map(torch.clone)

    def zeros(self) -> Weights:
        """The zero vector of the same space."""
        return self.map(torch.zeros_like)

    def randn(self, seed: int) -> Weights:
        """A vector of the same space with independent standard normal entries, drawn from `seed`."""

        def draw(flat: Tensor) -> Tensor:
            generator = torch.Generator(device=flat.device).manual_seed(seed)
            return torch.randn(flat.shape, generator=generator, dtype=flat.dtype, device=flat.device)

        return self.map(draw)

    def replace(self, tensors: Mapping[str, Tensor]) -> Weights:
        """A copy of the vector with new values, of the same shape, for the tensors that are named."""
        new = self.clone()
        with torch.no_grad():
            for name, tensor in tensors.items():
                new[name].copy_(tensor)
        return new

    def check(self, other: Weights) -> None:
        """Raise `ArchitectureMismatch` unless `other` has the same names and shapes."""
        if self.shapes != other.shapes:
            raise ArchitectureMismatch(difference(self.shapes, other.shapes))

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
        """The vector `(1 - t) * self + t * other`, summed in float64; dtypes and integers are those of self."""
        return self._zip(other, lambda x, y: _lerp(x, y, t))

    def dot(self, other: Weights) -> Float[Tensor, ""]:
        """The inner product <v, w> = sum_i v_i w_i, summed in float64."""
        self.check(other)
        if self._flat.keys() == other._flat.keys() and self._plan() == other._plan():
            terms = [_dot(flat, other._flat[key]) for key, flat in self._flat.items()]
        else:
            terms = [_dot(self[name].flatten(), other[name].flatten()) for name in self]
        return torch.stack(terms).sum() if terms else torch.zeros((), dtype=torch.float64)

    def norm(self) -> Float[Tensor, ""]:
        """The Euclidean norm |v| = sqrt(<v, v>), summed in float64."""
        return self.dot(self).sqrt()

    def norms(self) -> dict[str, float]:
        """The Euclidean norm of every tensor, by name."""
        return {name: float(_dot(view.flatten(), view.flatten()).sqrt()) for name, view in self.items()}

    def unusable(self) -> list[str]:
        """The names of the tensors that hold NaN or infinity."""
        if all(finite(flat) for flat in self._flat.values() if flat.is_floating_point()):
            return []
        return [name for name, view in self.items() if view.is_floating_point() and not finite(view)]


def _laid_out(names: list[str], shapes: Mapping[str, torch.Size]) -> list[str]:
    """The order of tensors in their buffer: as given, or tensors of an even size first.

    The latter where a tensor of pairs would begin at an odd place, so that it could not be viewed as complex numbers.
    """
    start, odd_pairs = 0, False
    for name in names:
        odd_pairs |= start % 2 == 1 and shapes[name][-1:] == (2,)
        start += shapes[name].numel()
    return sorted(names, key=lambda name: shapes[name].numel() % 2) if odd_pairs else names


def finite(numbers: Tensor) -> bool:
    """Whether a tensor holds no NaN and no infinity.

    In one pass, since both survive a sum; in a second one where the sum overflows.

    >>> import torch
    >>> import weightspace as ws
    >>> ws.net.finite(torch.ones(3)), ws.net.finite(torch.tensor([1.0, float("nan")]))
    (True, False)
    """
    if numbers.dtype.itemsize == 1:  # float8, which has no sums of its own
        return all(bool(part.float().isfinite().all()) for part in numbers.flatten().split(BLOCK))
    return bool(numbers.sum().isfinite() or numbers.isfinite().all())


class Renamed(Mapping[str, Tensor]):
    """A mapping of tensors under other names, read one at a time; the name None stands for a counter that is 0."""

    def __init__(self, tensors: Mapping[str, Tensor], names: Mapping[str, str | None]) -> None:
        self._tensors, self._names = tensors, names

    def __getitem__(self, name: str) -> Tensor:
        source = self._names[name]
        return self._counter() if source is None else self._tensors[source].detach()

    def _counter(self) -> Tensor:
        place = next((form[2] for form in forms_of(self._tensors).values()), None)
        return torch.zeros((), dtype=torch.long, device=place)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def forms(self) -> dict[str, Form]:
        forms = forms_of(self._tensors)
        blank = self._counter()
        counter = (blank.shape, blank.dtype, blank.device)
        return {name: counter if source is None else forms[source] for name, source in self._names.items()}


Form: TypeAlias = tuple[torch.Size, torch.dtype, torch.device]


def forms_of(tensors: Mapping[str, Tensor]) -> dict[str, Form]:
    """The shape, dtype and device of every tensor, by name; no tensor of a checkpoint is read for it."""
    if isinstance(tensors, Renamed):
        return tensors.forms()
    shapes, dtypes = getattr(tensors, "shapes", None), getattr(tensors, "dtypes", None)
    if isinstance(shapes, Mapping) and isinstance(dtypes, Mapping):
        return {name: (shapes[name], dtypes[name], torch.device("cpu")) for name in tensors}
    return {name: (tensor.shape, tensor.dtype, tensor.device) for name, tensor in tensors.items()}


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    """The shapes of named tensors; of a checkpoint, which knows them, none is read."""
    known = getattr(tensors, "shapes", None)
    found = known if isinstance(known, Mapping) else {name: tensor.shape for name, tensor in tensors.items()}
    return {name: torch.Size(shape) for name, shape in found.items()}


def dtypes_of(tensors: Mapping[str, Tensor]) -> dict[str, torch.dtype]:
    """The dtypes of named tensors; of a checkpoint, which knows them, none is read."""
    known = getattr(tensors, "dtypes", None)
    return dict(known) if isinstance(known, Mapping) else {name: tensor.dtype for name, tensor in tensors.items()}


def squared_distance(x: Tensor, y: Tensor) -> float:
    """The squared Euclidean distance |x - y|^2 of two tensors, summed in float64.

    >>> import torch
    >>> import weightspace as ws
    >>> ws.net.squared_distance(torch.zeros(3), torch.ones(3))
    3.0
    """
    x, y = (_real(t.detach().flatten()) for t in (x, y))
    pieces = zip(x.split(BLOCK), y.split(BLOCK), strict=True)
    return sum(float((p.double() - q.double()).square_().sum()) for p, q in pieces)


def squared_norm(x: Tensor) -> float:
    """The squared Euclidean norm |x|^2 of a tensor, summed in float64."""
    return float(_dot(x.detach().flatten(), x.detach().flatten()))


@public
def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype for sums of numbers of `dtype`: float32 for half precision, else float64; complex64 or complex128.

    >>> import torch
    >>> import weightspace as ws
    >>> ws.net.wide(torch.bfloat16), ws.net.wide(torch.float32)
    (torch.float32, torch.float64)
    """
    if dtype.is_complex:
        return torch.complex64 if dtype == torch.complex32 else torch.complex128
    return torch.float32 if dtype.itemsize < 4 else torch.float64


def _lerp(x: Tensor, y: Tensor, t: float) -> Tensor:
    if not (x.is_floating_point() or x.is_complex()):
        return x
    exact = torch.complex128 if x.is_complex() else torch.float64
    if x.requires_grad or y.requires_grad or x.numel() <= BLOCK:
        return torch.lerp(x.to(exact), y.to(exact), t).to(x.dtype)
    out = torch.empty_like(x)
    for target, p, q in zip(*(z.reshape(-1).split(BLOCK) for z in (out, x, y)), strict=True):
        target.copy_(torch.lerp(p.to(exact), q.to(exact), t))
    return out


def _computed(function: Callable[..., Tensor], *numbers: Tensor) -> Tensor:
    try:
        return function(*numbers)
    except NotImplementedError as error:
        dtypes = " and ".join(dict.fromkeys(str(x.dtype) for x in numbers))
        raise WeightspaceError(f"torch does not compute this in {dtypes}; use .to(torch.float32) first") from error


def _real(x: Tensor) -> Tensor:
    """A flat tensor with complex numbers as pairs of real ones."""
    return torch.view_as_real(x.resolve_conj()).flatten() if x.is_complex() else x


def _dot(x: Tensor, y: Tensor) -> Tensor:
    x, y = _real(x), _real(y)
    parts = [torch.dot(p.double(), q.double()) for p, q in zip(x.split(BLOCK), y.split(BLOCK), strict=True)]
    return torch.stack(parts).sum() if parts else x.new_zeros((), dtype=torch.float64)


def convert(weights: Weights, move: Callable[[Tensor], Tensor]) -> Weights:
    """The vector with every buffer converted by `move`, where several may come to have one dtype and device."""
    moved = [move(flat) for flat in weights.buffers]
    if len({(flat.dtype, flat.device) for flat in moved}) == len(moved):
        return weights.map(move)
    return Weights({name: move(view) for name, view in weights.items()})


def difference(expected: Mapping[str, torch.Size], seen: Mapping[str, torch.Size]) -> str:
    """A message about the names and shapes in which two sets of tensors differ."""

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
