"""Parts of a graph that are of one form and meet in one sum, product, choice, concatenation or stack.

Two parts are of one form where they are the same operations with the same constants, on parameters of the same shapes
and on the same values from elsewhere. They may differ in the index that they pick from a value: column i of the output
of a router, position i of a concatenation. Such picks say what else is numbered as the parts are.

All values are numbered by their form first, in one pass, so that graphs without such parts cost no more than that.
"""

from __future__ import annotations

import operator
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from torch import Tensor, fx
from torch.utils import _pytree as pytree

from weightspace.graph.follow import live
from weightspace.graph.trace import Trace, op_name

__all__ = ["Alike", "Pick", "alike"]


_COMMUTE = ("add", "mul", "maximum", "minimum", "max", "min", "logaddexp", "where")
_JOIN = ("cat", "concat", "concatenate", "stack")
_PIECES = ("unbind", "unbind_copy", "split", "split_with_sizes", "chunk", "tensor_split", "split_copy",
           "split_with_sizes_copy", "unsafe_split", "unsafe_chunk", "unsafe_split_with_sizes")  # fmt: skip
_LARGE = 1 << 22  # bytes of a constant that is compared by its entries

_Term: TypeAlias = tuple[int, tuple[fx.Node, ...]]  # its position, and the values that it consists of


@dataclass(frozen=True)
class Pick:
    """Where every part takes `width` indices, from its own start, of dimension `dim` of a value.

    `dim` None: where it compares the entries of the value, which are indices themselves, with a number.
    """

    node: fx.Node
    dim: int | None
    starts: tuple[int, ...]
    width: int


@dataclass
class Alike:
    """`count` parts of one form. `tensors`: names of parameters and buffers in the same role, one for every part."""

    count: int
    tensors: list[tuple[str, ...]]
    picks: list[Pick]

    def joined(self, other: Alike) -> Alike | None:
        """Both as one, where they share tensors and number them alike up to order; else None."""
        member = {name: (k, i) for k, names in enumerate(self.tensors) for i, name in enumerate(names)}
        shared = [names for names in other.tensors if any(name in member for name in names)]
        if not shared or self.count != other.count or any(name not in member for names in shared for name in names):
            return None
        orders = {tuple(member[name][1] for name in names) for names in shared}
        order = next(iter(orders))
        if len(orders) > 1 or len({*order}) < self.count or any(len({member[n][0] for n in s}) > 1 for s in shared):
            return None
        back = [order.index(i) for i in range(self.count)]
        more = [tuple(names[j] for j in back) for names in other.tensors if names not in shared]
        picks = [Pick(p.node, p.dim, tuple(p.starts[j] for j in back), p.width) for p in other.picks]
        return Alike(self.count, [*self.tensors, *more], list(dict.fromkeys([*self.picks, *picks])))


def alike(graph: Trace) -> list[Alike]:
    """All parts of one form; those that meet in several places are one entry."""
    found: list[Alike] = []
    numbers = _Numbers(graph)
    for terms, join in _meetings(graph, numbers.order):
        for parts in _of_one_form(numbers, terms):
            for one in _families(numbers, parts, join):
                for k, other in enumerate(found):
                    if (both := other.joined(one)) is not None:
                        found[k] = both
                        break
                else:
                    found.append(one)
    return found


# ------------------------------------------------------------------ the form of a value


class _Numbers:
    """Two numbers for every value: equal `exact` ones are the same, equal `form` ones may be of one form."""

    def __init__(self, graph: Trace) -> None:
        self.graph = graph
        self.exact: dict[fx.Node, int] = {}
        self.form: dict[fx.Node, int] = {}
        self.order: list[fx.Node] = []
        seen: dict[Hashable, int] = {}
        needed = live(graph)
        for node in graph.nodes:
            if node not in needed:
                continue
            self.order.append(node)
            for table, loose in ((self.exact, False), (self.form, True)):
                key = (loose, *self._key(node, table, loose))
                table[node] = seen.setdefault(key, len(seen))

    def _key(self, node: fx.Node, table: dict[fx.Node, int], loose: bool) -> tuple[Hashable, ...]:
        if node in self.graph.sources:
            value = node.meta.get("val")
            return ("stored", tuple(value.shape), value.dtype) if loose and isinstance(value, Tensor) else (
                "stored", self.graph.sources[node])  # fmt: skip
        if node in self.graph.constants:
            return ("constant", *_digest(self.graph.constants[node]))
        if node.op != "call_function":
            return (node.op, str(node.target))
        pick = picked(node) if loose else None
        if pick is not None:
            source, dim, start, stop = pick
            return ("pick", table[source], dim, stop - start, str(node.target), _shape(node))
        leaves, spec = pytree.tree_flatten((node.args, dict(node.kwargs)))
        return (str(node.target), str(spec), *(_leaf(leaf, table) for leaf in leaves))


def _leaf(leaf: Any, table: dict[fx.Node, int]) -> Hashable:
    return ("node", table.get(leaf, -1)) if isinstance(leaf, fx.Node) else (type(leaf).__name__, str(leaf))


def _digest(value: Tensor) -> tuple[Hashable, ...]:
    if value.device.type == "meta" or value.numel() * value.element_size() > _LARGE:
        return (id(value),)
    return (tuple(value.shape), str(value.dtype), str(value.detach().cpu().flatten().tolist()))


def _shape(node: fx.Node) -> tuple[int, ...]:
    value = node.meta.get("val")
    return tuple(map(int, value.shape)) if isinstance(value, Tensor) else ()


def picked(node: fx.Node) -> tuple[fx.Node, int | None, int, int] | None:
    """What a node picks: the value, its dimension, and the first and last index; None for any other operation."""
    name, args = op_name(node), node.args
    if node.kwargs or not args or not isinstance(args[0], fx.Node):
        return None
    source = args[0]
    shape = _shape(source)
    if name in ("eq", "ne") and len(args) > 1 and type(args[1]) is int:
        return source, None, args[1], args[1] + 1
    if node.target is operator.getitem:
        return _piece(source, args[1])
    if name not in ("select", "select_copy", "slice", "slice_copy", "narrow") or not shape:
        return None
    if not all(type(a) is int or a is None for a in args[1:]):
        return None
    dim, start, last = (*(int(a) if isinstance(a, int) else None for a in args[1:4]), None, None, None)[:3]
    dim = (dim or 0) % len(shape)
    size = shape[dim]
    start = (start or 0) + (size if (start or 0) < 0 else 0)
    if name.startswith("select"):
        return source, dim, start, start + 1
    if name == "narrow":
        return source, dim, start, start + (last or 0)
    if len(args) > 4 and args[4] != 1:
        return None
    stop = size if last is None else min(last + (size if last < 0 else 0), size)
    return source, dim, start, stop


def _piece(source: fx.Node, number: Any) -> tuple[fx.Node, int | None, int, int] | None:
    """One of the values of an operation that cuts a dimension into pieces."""
    name = op_name(source)
    pieces = source.meta.get("val")
    if name not in _PIECES or source.kwargs or not isinstance(source.args[0], fx.Node) or type(number) is not int:
        return None
    whole = source.args[0]
    at = 1 if name.startswith("unbind") else 2
    dim = source.args[at] if len(source.args) > at else 0
    if type(dim) is not int or not isinstance(pieces, (list, tuple)) or not _shape(whole):
        return None
    dim %= len(_shape(whole))
    if name.startswith("unbind"):
        return whole, dim, number, number + 1
    sizes = [int(piece.shape[dim]) for piece in pieces]
    return whole, dim, sum(sizes[:number]), sum(sizes[: number + 1])


# ------------------------------------------------------------------ where parts meet


def _meetings(graph: Trace, order: Sequence[fx.Node]) -> Iterator[tuple[list[_Term], fx.Node | None]]:
    """The terms of every sum, product and choice, the inputs of every concatenation; of these two also the node."""
    inside: set[fx.Node] = set()
    for node in reversed(order):
        if node.op != "call_function" or node in inside:
            continue
        name = op_name(node)
        if name in _JOIN and isinstance(node.args[0], (list, tuple)):
            parts = [part for part in node.args[0] if isinstance(part, fx.Node)]
            yield [(k, (part,)) for k, part in enumerate(parts)], node
        elif name in _COMMUTE:
            terms = [*_terms(node, node, inside)]
            if len(terms) > 1:
                yield [(k, term) for k, term in enumerate(reversed(terms))], node if name == "where" else None


def _terms(top: fx.Node, node: fx.Node, inside: set[fx.Node]) -> Iterator[tuple[fx.Node, ...]]:
    """The terms of a chain of one operation, whose values before the last one are used in the chain alone; last first.

    `inside`: receives the nodes of the chain.
    """
    todo = [node]
    while todo:
        at = todo.pop()
        if at.target is not top.target or (at is not top and len(at.users) > 1) or at.kwargs:
            yield (at,)
            continue
        inside.add(at)
        if op_name(at) == "where":
            if len(at.args) == 3 and all(isinstance(a, fx.Node) for a in at.args):
                yield at.args[0], at.args[1]  # type: ignore[misc]
                todo.append(at.args[2])  # type: ignore[arg-type]
            continue
        todo += [a for a in at.args[:2] if isinstance(a, fx.Node)]


def _of_one_form(numbers: _Numbers, terms: list[_Term]) -> Iterator[list[_Term]]:
    kinds: dict[tuple[int, ...], list[_Term]] = {}
    for term in terms:
        kinds.setdefault(tuple(numbers.form[node] for node in term[1]), []).append(term)
    for parts in kinds.values():
        if len({tuple(numbers.exact[node] for node in part[1]) for part in parts}) == len(parts) > 1:
            yield parts


# ------------------------------------------------------------------ which parts are of one form


@dataclass
class _Pairing:
    """What corresponds to what in two parts, found from their ends backwards."""

    numbers: _Numbers
    strict: bool = True  # indices may differ in one value only
    partner: dict[int, int] = field(default_factory=dict)
    back: dict[int, int] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    picks: dict[fx.Node, tuple[int, int]] = field(default_factory=dict)

    def holds(self, ours: Sequence[fx.Node], theirs: Sequence[fx.Node]) -> bool:
        """Whether both ends are of one form; `names` and `picks` are then filled."""
        todo = list(zip(ours, theirs, strict=True))
        exact = self.numbers.exact
        while todo:
            u, v = todo.pop()
            a, b = exact[u], exact[v]
            if a in self.partner or b in self.back:
                if self.partner.get(a) != b or self.back.get(b) != a:
                    return False
                continue
            self.partner[a], self.back[b] = b, a
            if a != b and not self._step(u, v, todo):
                return False
        return True

    def _step(self, u: fx.Node, v: fx.Node, todo: list[tuple[fx.Node, fx.Node]]) -> bool:
        sources = self.numbers.graph.sources
        if self.numbers.form[u] != self.numbers.form[v] or u.op != v.op:
            return False
        if u in sources:
            self.names[sources[u]] = sources[v]
            return True
        if u.op != "call_function":
            return False
        mine, other = picked(u), picked(v)
        if mine is not None and other is not None:
            if mine[2:] != other[2:]:
                if self.strict and self.numbers.exact[mine[0]] != self.numbers.exact[other[0]]:
                    return False
                self.picks[u] = (other[2], other[3])
            todo.append((mine[0], other[0]))
            return True
        (left, _), (right, _) = (pytree.tree_flatten((n.args, dict(n.kwargs))) for n in (u, v))
        todo += [(x, y) for x, y in zip(left, right, strict=True) if isinstance(x, fx.Node)]
        return True


def _families(numbers: _Numbers, terms: list[_Term], join: fx.Node | None) -> Iterator[Alike]:
    """The parts of one form among terms; those that share tensors with one another count as one part."""
    while len(terms) > 1:
        same, rest, pairings = [terms[0]], [], []
        for term in terms[1:]:
            pairing = _Pairing(numbers, strict=False)
            if pairing.holds(terms[0][1], term[1]):
                same.append(term)
                pairings.append(pairing)
            else:
                rest.append(term)
        if pairings:
            yield from _parts(numbers, same, pairings, join)
        terms = rest


def _parts(numbers: _Numbers, terms: list[_Term], pairings: list[_Pairing], join: fx.Node | None) -> Iterator[Alike]:
    own = dict.fromkeys(p for pairing in pairings for p, q in pairing.names.items() if p != q)
    held = [{*own}, *({pairing.names.get(p, p) for p in own} for pairing in pairings)]
    groups = [[terms[k] for k in part] for part in _connected(held)]
    if len(groups) < 2:
        return
    if len({len(group) for group in groups}) == 1:
        yield from _made(numbers, groups, join)
    for group in groups:
        yield from _families(numbers, group, join)


def _connected(held: list[set[str]]) -> list[list[int]]:
    """Which parts hold a tensor in common, directly or by others."""
    parts: list[tuple[set[str], list[int]]] = []
    for k, names in enumerate(held):
        met = [part for part in parts if part[0] & names]
        parts = [part for part in parts if part not in met]
        parts.append((names.union(*(p[0] for p in met)), sorted([k, *(i for p in met for i in p[1])])))
    return sorted(members for _, members in parts)


def _made(numbers: _Numbers, groups: list[list[_Term]], join: fx.Node | None) -> Iterator[Alike]:
    """Parts of one or several terms each, if they are of one form as a whole."""
    ends = [[node for _, nodes in group for node in nodes] for group in groups]
    pairings = [_Pairing(numbers) for _ in groups[1:]]
    if not all(pairing.holds(ends[0], theirs) for pairing, theirs in zip(pairings, ends[1:], strict=True)):
        return
    own = list(dict.fromkeys(p for pairing in pairings for p, q in pairing.names.items() if p != q))
    tensors = [(p, *(pairing.names.get(p, p) for pairing in pairings)) for p in own]
    names = [name for some in tensors for name in some]
    if len({*names}) < len(names):
        return
    picks = []
    for node in dict.fromkeys(node for pairing in pairings for node in pairing.picks):
        pick = picked(node)
        assert pick is not None
        ranges = [pick[2:], *(pairing.picks.get(node, pick[2:]) for pairing in pairings)]
        picks.append(Pick(pick[0], pick[1], tuple(start for start, _ in ranges), pick[3] - pick[2]))
    if join is not None and op_name(join) == "where":
        if not any(pick.dim is None for pick in picks):  # conditions that may hold at once: their order matters
            return
    elif join is not None:
        picks += [_position(join, [position for position, _ in some]) for some in zip(*groups, strict=True)]
    picks = [pick for pick in picks if len({*pick.starts}) == len(pick.starts)]
    if tensors or picks:
        yield Alike(len(groups), tensors, list(dict.fromkeys(picks)))


def _position(join: fx.Node, positions: list[int]) -> Pick:
    """Where inputs of a concatenation lie in it."""
    parts = join.args[0]
    assert isinstance(parts, (list, tuple))
    given: Any = join.args[1] if len(join.args) > 1 else join.kwargs.get("dim", 0)
    dim = int(given) % len(_shape(join))
    if op_name(join) == "stack":
        return Pick(join, dim, tuple(positions), 1)
    sizes = [_shape(part)[dim] if isinstance(part, fx.Node) else 0 for part in parts]
    return Pick(join, dim, tuple(sum(sizes[:k]) for k in positions), sizes[positions[0]])
