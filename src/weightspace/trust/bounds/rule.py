"""What a rule of a certificate is made of: values at three points, and which arguments of an operation it covers.

The reference is network a computed in float64; from there it is `off` to what a computes in its own dtype, and from
there `apart` to what b computes in its own. A rule carries both through an operation and adds its rounding.

A rule names the arguments of the operator's schema that it takes as values and those that it looks at as settings.
Every other argument must stand at its default, or at a value that the rule names; else the operation has no bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx

from weightspace.graph.trace import op_name
from weightspace.trust.bounds.rounding import Arithmetic, BoundError

__all__ = ["Call", "Far", "RULES", "Rule", "Value", "bind", "number", "rule", "size"]


def size(value: Any) -> float:
    """The norm of a tensor, or of several together; infinite entries, as of a mask, are left out."""
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
    """|h| <= norm at the reference, from there <= off to a as it is computed, from there <= apart to b."""

    norm: float
    off: float
    apart: float


@dataclass(frozen=True)
class Value:
    """A value on its way: `a` at the reference; `b`, and how far it is from what b computes, where no input moves it.

    `same`: both networks compute it from the same numbers in the same arithmetic, so that it is the same number.
    """

    a: Any
    far: Far
    same: bool
    b: Any = None
    loose: float = 0.0

    @property
    def still(self) -> bool:
        """Whether it is known in both networks, as weights are."""
        return self.b is not None

    def at(self, point: int) -> float:
        """Its norm at the reference, in a, in b: points 0, 1, 2."""
        if point == 2 and self.still:
            return size(self.b) + self.loose
        return self.far.norm + (self.far.off if point else 0.0) + (self.far.apart if point == 2 else 0.0)


def number(x: float) -> Value:
    """A number of the program as a value."""
    tensor = torch.tensor(float(x), dtype=torch.float64)
    return Value(tensor, Far(abs(float(x)), 0.0, 0.0), True, tensor)


@dataclass(frozen=True)
class Call:
    """An operation that depends on the inputs: its arguments, and its value at the reference.

    `data`: the entries of values may be looked at; `arithmetic`: of the reference, of a, of b; `bound`: operator norms,
    once for all batches; `known`: those that were asked for.
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
        """The first argument, rounded where the operation casts it before it computes."""
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
        """How many entries the result has."""
        return int((self.out[0] if isinstance(self.out, (tuple, list)) else self.out).numel())

    def bound(self, key: str, compute: Callable[[], float]) -> float:
        """An operator norm, once for all batches."""
        if key not in self.known:
            self.known[key] = compute()
        return self.known[key]

    def moving(self, name: str) -> Value:
        """An argument that depends on the inputs; refused if it does not."""
        value = self.values[name]
        if not isinstance(value, Value) or value.still:
            raise BoundError(f"no bound is known for {self.name} whose {name} does not depend on the inputs")
        return value

    def learnt(self, name: str) -> Value | None:
        """An argument that is known in both networks; refused if it depends on the inputs."""
        value: Value | None = self.values.get(name)
        if value is not None and not value.still:
            raise BoundError(f"no bound is known for {self.name} whose {name} depends on the inputs")
        return value

    def most(self, value: Value, point: int) -> float:
        """The largest entry of a value at a point."""
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
        """What rounding adds to norm, off and apart."""
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
    ) -> Far:
        """The result of a rule: what `terms` roundings inside and `stores` roundings of the result add.

        `size_at(point)`: the norm of the absolute values that are added up, if that is more than the result's.
        `beside`: the norm of what is added at the end, so that the sum before it is rounded by itself.
        """
        norm = size(self.out) if self.data else norm
        if self.exact:
            return Far(norm, off, apart)

        def kept(point: int) -> float:
            return beside + norm + (off if point else 0.0) + (apart if point == 2 else 0.0)

        more = self.slip(terms, size_at or kept, stores, kept, products)
        return Far(norm if self.data else norm + more[0], off + more[1], apart + more[2])

    def copied(self, times: float = 1.0) -> Far:
        """The result of a rule that moves entries about, each to at most times^2 places, without rounding."""
        far = self.x.far
        norm = size(self.out) if self.data else times * far.norm
        return Far(norm, times * far.off, times * far.apart)


@dataclass(frozen=True)
class Rule:
    """`find` for one operation; `values`, `plain`: the arguments that it covers; `where`: at what others it holds."""

    find: Callable[[Call], Far]
    values: tuple[str, ...]
    plain: tuple[str, ...]
    shapes: tuple[str, ...]
    where: Mapping[str, tuple[Any, ...]]


RULES: dict[str, Rule] = {}


def rule(
    names: str | Iterable[str], values: str, plain: str = "", shapes: str = "", **where: Any
) -> Callable[[Callable[[Call], Far]], Callable[[Call], Far]]:
    """Enter a rule for operations. Words of `values`, `plain`, `shapes`: names of the operator's schema.

    `values` are tensors; `plain` settings that the bound looks at, or that no bound needs; of `shapes` the form alone
    counts; `where`: another argument, and the one value at which the rule holds.
    """

    def enter(find: Callable[[Call], Far]) -> Callable[[Call], Far]:
        only = {key: (value,) for key, value in where.items()}
        entry = Rule(find, tuple(values.split()), tuple(plain.split()), tuple(shapes.split()), only)
        RULES.update(dict.fromkeys(names.split() if isinstance(names, str) else names, entry))
        return find

    return enter


def bind(node: fx.Node, look: Callable[[Any], Any]) -> tuple[Rule, dict[str, Any], dict[str, Any]]:
    """The rule of a node, its values and its settings. Raises `BoundError` for an argument that no rule covers."""
    name = op_name(node)
    if name not in RULES or not isinstance(node.target, torch._ops.OpOverload):
        raise BoundError(
            f"no bound is known for {name}, so there is no certificate; the model, the expected displacement and "
            "measured noise need none"
        )
    entry, given = RULES[name], _named(node)
    values: dict[str, Any] = {}
    plain: dict[str, Any] = {}
    for argument in node.target._schema.arguments:
        key, default = argument.name, argument.default_value if argument.has_default_value() else None
        value = given.get(key, default)
        if key in entry.values:
            values[key] = _value(value, look)
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


def _value(value: Any, look: Callable[[Any], Any]) -> Any:
    if isinstance(value, (list, tuple)):
        return [_value(part, look) for part in value]
    found = look(value) if isinstance(value, fx.Node) else value
    return number(found) if isinstance(found, (int, float)) and not isinstance(found, bool) else found


def _setting(name: str, key: str, value: Any, look: Callable[[Any], Any]) -> Any:
    """A setting as a plain number: a tensor of one number, the same in both networks, is one too."""
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
        raise BoundError(f"no bound is known for {name} whose {key} is a weight, or made of weights")
    if found.a.numel() != 1 or found.far.off:
        raise BoundError(f"no bound is known for {name} whose {key} is a tensor")
    return found.a.item()
