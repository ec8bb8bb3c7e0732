"""The registry of certificate rules: how an operation carries error bounds, and which of its arguments are covered.

Every activation has three values: the reference (network a in float64), network a in its own dtype, at most `off` from
it, and network b in its own dtype, at most `apart` from a's. A rule carries both bounds through an operation and adds
its rounding.

A rule names the arguments of the operator's schema that it takes as tensors and those that it uses as settings. Every
other argument must have its default, or a value that the rule names; else the operation has no bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx

from weightspace.graph.trace import op_name
from weightspace.trust.bounds.rounding import EXACT, Arithmetic, BoundError

__all__ = ["Call", "Far", "RULES", "Rule", "Value", "bind", "number", "rule", "size"]


def size(value: Any) -> float:
    """The norm of a tensor, or of several together; infinite entries, as in a mask, count as zero."""
    parts = value if isinstance(value, (tuple, list)) else [value]
    squares = 0.0
    for part in parts:
        if isinstance(part, Tensor) and part.numel() and part.is_floating_point():
            norm = float(part.double().norm())
            squares += (norm if math.isfinite(norm) else _finite(part)) ** 2
    return math.sqrt(squares)


def _finite(part: Tensor) -> float:
    return float(torch.where(part.isinf(), 0.0, part.double()).norm())


@dataclass(frozen=True)
class Far:
    """Bounds on an activation h: |h| <= norm at the reference, |h_a - h| <= off, |h_b - h_a| <= apart."""

    norm: float
    off: float
    apart: float


@dataclass(frozen=True)
class Value:
    """A value in the graph with its bounds: `a` at the reference, `far` its bounds.

    `same`: both networks compute it from the same numbers in the same arithmetic, so that it is the same in both.
    `b`, for values that do not depend on the inputs: network b's in float64, at most `loose` from what b computes.
    """

    a: Any
    far: Far
    same: bool
    b: Any = None
    loose: float = 0.0

    @property
    def still(self) -> bool:
        """Whether it does not depend on the inputs, as weights do not, and is known in both networks."""
        return self.b is not None

    def at(self, point: int) -> float:
        """A bound on its norm at the reference (point 0), in network a (1), in network b (2)."""
        if point == 2 and self.still:
            return size(self.b) + self.loose
        return self.far.norm + (self.far.off if point else 0.0) + (self.far.apart if point == 2 else 0.0)


def number(x: float, arithmetic: Sequence[Arithmetic] = (EXACT, EXACT, EXACT)) -> Value:
    """A Python number as a `Value`: exact at the reference, rounded to the dtype of each network."""
    tensor = torch.tensor(float(x), dtype=torch.float64)
    a, b = (one.rounded(float(x)) for one in arithmetic[1:])
    same = arithmetic[1].unit == arithmetic[2].unit
    return Value(tensor, Far(abs(float(x)), a, 0.0 if same else a + b), same, tensor, b)


@dataclass(frozen=True)
class Call:
    """A call of an operation that depends on the inputs: its arguments, and its result `out` at the reference.

    `values`, `plain`: tensor arguments and settings; `data`: whether the entries of activations may be used;
    `arithmetic`: of the reference, of a, of b; `known`: the operator norms that `bound` has computed for all batches.
    """

    name: str
    overload: Any
    values: Mapping[str, Any]
    plain: Mapping[str, Any]
    out: Any
    data: bool
    arithmetic: tuple[Arithmetic, Arithmetic, Arithmetic]
    known: dict[str, float] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        return self.values.get(name)

    @property
    def x(self) -> Value:
        """The first argument, with the rounding of a `dtype` argument's cast."""
        value: Value = self.values["input" if "input" in self.values else "self"]
        if self.plain.get("dtype") is None or self.exact:
            return value
        more = self.slip(0, lambda p: 0.0, 1, value.at, numel=value.a.numel())
        far = value.far
        return replace(value, far=Far(far.norm, far.off + more[1], far.apart + more[2]))

    @property
    def exact(self) -> bool:
        """Whether rounding is left out."""
        return not self.arithmetic[0].unit

    @property
    def numel(self) -> int:
        """The number of entries of the result."""
        return int((self.out[0] if isinstance(self.out, (tuple, list)) else self.out).numel())

    def bound(self, key: str, compute: Callable[[], float]) -> float:
        """The operator norm under this key, computed once for all batches."""
        if key not in self.known:
            self.known[key] = compute()
        return self.known[key]

    def moving(self, name: str) -> Value:
        """An argument that depends on the inputs. Raises `BoundError` if it does not."""
        value = self.values[name]
        if not isinstance(value, Value) or value.still:
            raise BoundError(f"no bound is known for {self.name} whose {name} does not depend on the inputs")
        return value

    def learnt(self, name: str) -> Value | None:
        """An argument that does not depend on the inputs, such as a weight. Raises `BoundError` if it does."""
        value: Value | None = self.values.get(name)
        if value is not None and not value.still:
            raise BoundError(f"no bound is known for {self.name} whose {name} depends on the inputs")
        return value

    def most(self, value: Value, point: int) -> float:
        """A bound on the largest absolute entry of a value at point 0, 1 or 2."""
        if not self.data and not value.still:
            return value.at(point)
        if point == 2 and value.still:
            return float(value.b.abs().max()) + value.loose
        far = value.far
        return float(value.a.abs().max()) + (far.off if point else 0.0) + (far.apart if point == 2 else 0.0)

    def slip(
        self,
        terms: float,
        size_at: Callable[[int], float],
        stores: float,
        kept_at: Callable[[int], float],
        products: bool = False,
        numel: int | None = None,
    ) -> tuple[float, float, float]:
        """The rounding of this operation, to be added to norm, off and apart; arguments as for `Arithmetic.error`."""
        count = self.numel if numel is None else numel
        e = [
            arithmetic.error(terms, size_at(p), stores, kept_at(p), count, products)
            for p, arithmetic in enumerate(self.arithmetic)
        ]
        return e[0], e[0] + e[1], e[1] + e[2]

    def found(
        self,
        norm: float,
        off: float,
        apart: float,
        *,
        terms: float,
        stores: float = 2,
        size_at: Callable[[int], float] | None = None,
        beside: float = 0.0,
        products: bool = False,
        stored_terms: float = 0,
    ) -> Far:
        """The bounds of the result, with the rounding of sums of `terms` terms and `stores` roundings of the result.

        `stored_terms`: roundings of what is added up to the dtype of the result itself, where no wider one is used.

        `size_at(point)`: the norm of the absolute values that are added up, if larger than the result's. `beside`: the
        norm of a term (a bias) that is added at the end, after the sum before it was rounded.
        """
        norm = size(self.out) if self.data else norm
        if self.exact:
            return Far(norm, off, apart)

        def kept(point: int) -> float:
            return beside + norm + (off if point else 0.0) + (apart if point == 2 else 0.0)

        more = self.slip(terms, size_at or kept, stores, kept, products)
        if stored_terms:
            stored = self.slip(0, kept, stored_terms, size_at or kept)
            more = (more[0] + stored[0], more[1] + stored[1], more[2] + stored[2])
        return Far(norm if self.data else norm + more[0], off + more[1], apart + more[2])

    def copied(self, times: float = 1.0) -> Far:
        """The bounds of a result that copies every entry to at most times^2 places, without rounding."""
        far = self.x.far
        norm = size(self.out) if self.data else times * far.norm
        return Far(norm, times * far.off, times * far.apart)


@dataclass(frozen=True)
class Rule:
    """The rule of an operation: `find` gives the bounds of a call; the other fields say which arguments it covers.

    `values`: tensors; `plain`: settings; `shapes`: of which the form alone counts; `where`: others -> allowed values.
    """

    find: Callable[[Call], Far]
    values: tuple[str, ...]
    plain: tuple[str, ...]
    shapes: tuple[str, ...]
    where: Mapping[str, tuple[Any, ...]]


RULES: dict[str, Rule] = {}


def rule(
    names: str | Iterable[str], values: str, plain: str = "", shapes: str = "", **where: Any
) -> Callable[[Callable[[Call], Far]], Callable[[Call], Far]]:
    """Register a function as the rule of the operations `names`; arguments go by their names in the operator's schema.

    `values`: tensors; `plain`: settings that the bound uses or that do not matter; `shapes`: arguments of which the
    form alone counts; `where`: another argument, and the one value for which the rule holds.
    """

    def enter(find: Callable[[Call], Far]) -> Callable[[Call], Far]:
        only = {key: (value,) for key, value in where.items()}
        entry = Rule(find, tuple(values.split()), tuple(plain.split()), tuple(shapes.split()), only)
        RULES.update(dict.fromkeys(names.split() if isinstance(names, str) else names, entry))
        return find

    return enter


def bind(
    node: fx.Node, look: Callable[[Any], Any], arithmetic: Sequence[Arithmetic] = (EXACT, EXACT, EXACT)
) -> tuple[Rule, dict[str, Any], dict[str, Any]]:
    """The rule of a node, its tensor arguments and its settings. Raises `BoundError` for an argument not covered."""
    name = op_name(node)
    if name not in RULES or not isinstance(node.target, torch._ops.OpOverload):
        raise BoundError(
            f"no bound is known for {name}, so there is no certificate; use relative_trust, displacement or stability"
        )
    entry, given = RULES[name], _named(node)
    values: dict[str, Any] = {}
    plain: dict[str, Any] = {}
    for argument in node.target._schema.arguments:
        key, default = argument.name, argument.default_value if argument.has_default_value() else None
        value = given.get(key, default)
        if key in entry.values:
            values[key] = _value(value, look, arithmetic)
        elif key in entry.shapes:
            continue
        elif key in entry.plain:
            plain[key] = _setting(name, key, value, look)
        elif not _allowed(_setting(name, key, value, look), argument, entry.where.get(key, ())):
            raise BoundError(f"no bound is known for {name} with {key}={value}")
    return entry, values, plain


def _named(node: fx.Node) -> dict[str, Any]:
    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    return {**dict(zip(names, node.args, strict=False)), **node.kwargs}


def _allowed(value: Any, argument: Any, also: tuple[Any, ...]) -> bool:
    if argument.name in ("layout", "device", "pin_memory", "non_blocking", "memory_format", "copy"):
        return True
    if argument.has_default_value() and _plain(value) == _plain(argument.default_value):
        return True
    return any(type(value) is type(other) and value == other for other in also)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value


def _value(value: Any, look: Callable[[Any], Any], arithmetic: Sequence[Arithmetic]) -> Any:
    if isinstance(value, (list, tuple)):
        return [_value(part, look, arithmetic) for part in value]
    found = look(value) if isinstance(value, fx.Node) else value
    return number(found, arithmetic) if isinstance(found, (int, float)) and not isinstance(found, bool) else found


def _setting(name: str, key: str, value: Any, look: Callable[[Any], Any]) -> Any:
    """A setting as a plain value; a tensor of one number that is the same in both networks counts as one."""
    if isinstance(value, (list, tuple)):
        return [_setting(name, key, part, look) for part in value]
    if not isinstance(value, fx.Node):
        return value
    found = look(value)
    if not isinstance(found, Value):
        return found
    if not found.still:
        raise BoundError(f"no bound is known for {name} whose {key} depends on the inputs")
    if not found.same:
        raise BoundError(f"no bound is known for {name} whose {key} is a weight, or computed from weights")
    if found.a.numel() != 1 or found.far.off:
        raise BoundError(f"no bound is known for {name} whose {key} is a tensor")
    return found.a.item()
