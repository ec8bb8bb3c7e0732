"""Atoms: sets of interchangeable indices, of which every dimension of a tensor is a product (union-find, no torch).

A dimension is a row-major product of atoms, the outermost first; size one is the empty product. An atom is a leaf, or
has been refined into a product of atoms or into a concatenation of dimensions. Refinement and union are lazy and in
place, so that they apply to every other tensor that holds the atom.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from math import gcd, prod
from typing import TypeAlias

__all__ = [
    "Atom",
    "Dim",
    "MIXED",
    "Span",
    "blocks",
    "collapse",
    "cut",
    "flat",
    "leaves",
    "member",
    "pin",
    "spread",
    "take",
    "unify",
]


MIXED = "a view mixes its factors"


class Atom:
    """A set of `size` > 1 interchangeable indices; it may later be pinned, refined or united with another.

    `pin`: the reason why its indices cannot move, or None. `foreign`: it comes from an input of the network.
    `constant`: it comes from a tensor of fixed values, which pins the atoms it is united with and stays separate.
    `viewed`: it was made when a view split a larger atom. `members[A, i]`: its copy at index i of axis A.
    """

    __slots__ = ("constant", "factors", "foreign", "members", "parent", "parts", "pin", "size", "viewed")

    def __init__(
        self,
        size: int,
        pin: str | None = None,
        foreign: bool = False,
        viewed: bool = False,
        constant: bool = False,
    ) -> None:
        self.size, self.pin, self.foreign, self.viewed, self.constant = size, pin, foreign, viewed, constant
        self.parent: Atom | None = None
        self.factors: list[Atom] | None = None
        self.parts: list[Dim] | None = None
        self.members: dict[tuple[Atom, int], Atom] = {}

    def __repr__(self) -> str:
        return f"Atom({self.size}{', pinned' if self.pin else ''})"


Dim: TypeAlias = list[Atom]


@dataclass(frozen=True)
class Span:
    """Positions in one dimension: start + sum_k index_k strides_k, where index_k runs over the leaf k."""

    start: int
    strides: tuple[int, ...]
    leaves: tuple[Atom, ...]

    def scaled(self, stride: int) -> Span:
        """The same positions, `stride` times as far apart."""
        return Span(self.start * stride, tuple(stride * t for t in self.strides), self.leaves)

    def then(self, inner: Span) -> Span:
        """The sums of a position of this and a position of `inner`."""
        return Span(self.start + inner.start, self.strides + inner.strides, self.leaves + inner.leaves)


def dim(size: int, pin: str | None = None, foreign: bool = False, constant: bool = False) -> Dim:
    """A fresh dimension of one atom (none for size one)."""
    return [] if size == 1 else [Atom(size, pin, foreign, constant=constant)]


def root(atom: Atom) -> Atom:
    """The representative of the atom's class."""
    while atom.parent is not None:
        if atom.parent.parent is not None:
            atom.parent = atom.parent.parent
        atom = atom.parent
    return atom


def flat(d: Iterable[Atom]) -> Dim:
    """The dimension as irreducible atoms: leaves and concatenations."""
    out: Dim = []
    for atom in d:
        atom = root(atom)
        out.extend(flat(atom.factors) if atom.factors is not None else [atom])
    return out


def size(d: Iterable[Atom]) -> int:
    """The number of indices of a dimension."""
    return prod(atom.size for atom in d)


def parts(atom: Atom) -> list[Dim]:
    """The pieces of a concatenation, nested ones flattened."""
    out: list[Dim] = []
    for piece in atom.parts or []:
        piece = flat(piece)
        if len(piece) == 1 and piece[0].parts is not None:
            out.extend(parts(piece[0]))
        else:
            out.append(piece)
    return out


def concat(pieces: list[Dim], foreign: bool = False) -> Dim:
    """The concatenation of dimensions, in order."""
    if len(pieces) == 1:
        return flat(pieces[0])
    atom = Atom(sum(size(flat(p)) for p in pieces), foreign=foreign)
    atom.parts = [flat(p) for p in pieces]
    atom.constant = any(atom.parts) and all(a.constant for p in atom.parts for a in p)
    return [atom]


def _bundle(d: Dim) -> Atom:
    if len(d) == 1:
        return d[0]
    atom = Atom(size(d))
    atom.factors = list(d)
    return atom


def pin(d: Iterable[Atom], reason: str) -> None:
    """Mark the indices of a dimension as immovable, in every refinement and member."""
    for atom in d:
        atom = root(atom)
        if atom.factors is not None:
            pin(atom.factors, reason)
            continue
        if atom.pin is not None:
            continue
        atom.pin = reason
        for piece in atom.parts or []:
            pin(piece, reason)
        pin(list(atom.members.values()), reason)


def members(atom: Atom) -> dict[tuple[Atom, int], Atom]:
    """The atom's members by the current representatives of their keys."""
    if any(key.parent is not None for key, _ in atom.members):
        old, atom.members = atom.members, {}
        for (key, i), child in old.items():
            _adopt(atom, root(key), i, child)
    if any(root(child) is atom for child in atom.members.values()):
        atom.members = {at: child for at, child in atom.members.items() if root(child) is not atom}
    return atom.members


def _adopt(atom: Atom, key: Atom, i: int, child: Atom) -> None:
    if (key, i) in atom.members:
        unify([atom.members[key, i]], [child])
    else:
        atom.members[key, i] = child
    if atom.pin is not None:
        pin([child], atom.pin)


def member(atom: Atom, key: Atom, i: int) -> Dim:
    """The copy of `atom` at index i of axis `key`; pinned atoms are their own copy."""
    atom, key = root(atom), root(key)
    if atom.factors is not None:
        return [m for factor in flat(atom.factors) for m in member(factor, key, i)]
    if atom.pin is not None or atom.foreign or atom is key:
        return [atom]
    known = members(atom)
    if (key, i) not in known:
        child = Atom(atom.size, viewed=atom.viewed)
        if atom.parts is not None:
            child.parts = [[m for a in piece for m in member(a, key, i)] for piece in parts(atom)]
        known[key, i] = child
    return flat([known[key, i]])


def collapse(atom: Atom, key: Atom) -> None:
    """Unite an atom with all its members over `key`, because it does not depend on that axis."""
    atom, key = root(atom), root(key)
    children = [child for (k, _), child in members(atom).items() if k is key]
    atom.members = {at: child for at, child in atom.members.items() if at[0] is not key}
    for child in children:
        unify([atom], [child])


def _split(atom: Atom, inner: int) -> tuple[Dim, Dim] | None:
    """Refine an irreducible atom into (size / inner) x inner."""
    if atom.size % inner:
        return None
    if atom.parts is not None:
        return _factor_out(atom, inner)
    outer_atom = Atom(atom.size // inner, atom.pin, atom.foreign, True, atom.constant)
    inner_atom = Atom(inner, atom.pin, atom.foreign, True, atom.constant)
    atom.factors = [outer_atom, inner_atom]
    for (key, i), child in members(atom).items():
        pair = take([child], inner)
        if pair is not None:
            for new, piece in zip(atom.factors, pair, strict=True):
                _adopt(new, key, i, _bundle(piece))
    return [outer_atom], [inner_atom]


def _factor_out(atom: Atom, inner: int) -> tuple[Dim, Dim] | None:
    """A concatenation whose pieces all end in the same `inner` indices is (concatenation of heads) x tail."""
    if any(size(piece) % inner for piece in parts(atom)):
        return None
    heads, tails = [], []
    for piece in parts(atom):
        pair = take(piece, inner)
        if pair is None:
            return None
        heads.append(pair[0])
        tails.append(pair[1])
    for tail in tails[1:]:
        unify(tails[0], tail)
    head = concat(heads, atom.foreign)
    atom.factors = [*head, *tails[0]]
    atom.parts = None
    return head, flat(tails[0])


def take(d: Iterable[Atom], n: int) -> tuple[Dim, Dim] | None:
    """Take the innermost n indices off a dimension: (rest, taken), or None where no factorisation allows it."""
    rest = flat(d)
    taken: Dim = []
    while n > 1:
        if not rest:
            return None
        atom = rest.pop()
        if n % atom.size == 0:
            taken.insert(0, atom)
            n //= atom.size
            continue
        pair = _split(atom, n)
        if pair is None:
            return None
        rest.extend(pair[0])
        taken = [*pair[1], *taken]
        n = 1
    return flat(rest), flat(taken)


def cut(d: Iterable[Atom], offset: int) -> tuple[Dim, Dim] | None:
    """Split a dimension in two at an offset, or None where the offset falls inside an inner factor."""
    factors = flat(d)
    if not factors or not 0 < offset < size(factors):
        return None
    head, rest = factors[0], factors[1:]
    if offset % size(rest):
        return None
    pair = _cut_atom(head, offset // size(rest))
    return None if pair is None else ([*pair[0], *rest], [*pair[1], *rest])


def _cut_atom(atom: Atom, k: int) -> tuple[Dim, Dim] | None:
    if atom.parts is None:
        left, right = (dim(n, atom.pin, atom.foreign, atom.constant) for n in (k, atom.size - k))
        atom.parts = [left, right]
        for (key, i), child in members(atom).items():
            pair = cut([child], k)
            for new, piece in zip((left, right), pair or (), strict=False):
                if new:
                    _adopt(new[0], key, i, _bundle(piece))
        return left, right
    pieces, at = parts(atom), 0
    for j, piece in enumerate(pieces):
        n = size(piece)
        if at < k < at + n:
            pair = cut(piece, k - at)
            if pair is None:
                return None
            pieces[j : j + 1] = list(pair)
            at += size(pair[0])
            break
        if at == k:
            j -= 1
            break
        at += n
    atom.parts = pieces
    return concat(pieces[: j + 1], atom.foreign), concat(pieces[j + 1 :], atom.foreign)


def unify(one: Iterable[Atom], two: Iterable[Atom], reason: str = MIXED) -> bool:
    """Declare that two dimensions of equal size share their indices; where that fails, pin both and return False."""
    a, b = flat(one), flat(two)
    if size(a) != size(b):
        raise ValueError(f"cannot unify dimensions of sizes {size(a)} and {size(b)}")
    while a and b:
        x, y = root(a.pop()), root(b.pop())
        if x.factors is not None or y.factors is not None:
            a.extend(flat([x]))
            b.extend(flat([y]))
            continue
        if x is y:
            continue
        if x.size == y.size and _unite(x, y):
            continue
        small = gcd(x.size, y.size)
        larger = [atom for atom in (x, y) if atom.size > small]
        if x.size == y.size or small == 1 or any(_split(atom, small) is None for atom in larger):
            pin([x, y, *a, *b], reason)
            return False
        a.extend(flat([x]))
        b.extend(flat([y]))
    return True


def _unite(x: Atom, y: Atom) -> bool:
    """Unite two irreducible atoms of one size; False where their refinements do not fit."""
    if x.constant != y.constant:
        pin([y if x.constant else x], (x if x.constant else y).pin or "constant")
        return True
    if x.parts is not None and y.parts is None:
        x, y = y, x
    if x.parts is not None and not _align_parts(x, y):
        return False
    y.foreign |= x.foreign
    y.viewed |= x.viewed
    reason = y.pin or x.pin
    orphans, x.members = members(x), {}
    x.parent = y
    if reason is not None:
        y.pin = None
        pin([y], reason)
    for (key, i), child in orphans.items():
        if y.parts is not None and (key, i) not in members(y):
            unify(member(y, key, i), [child])
        else:
            _adopt(y, root(key), i, child)
    return True


def _align_parts(x: Atom, y: Atom) -> bool:
    """Refine two concatenations to common offsets and unify them piece by piece."""
    a, b = parts(x), parts(y)
    done_a: list[Dim] = []
    done_b: list[Dim] = []
    while a:
        p, q = a.pop(0), b.pop(0)
        n = min(size(p), size(q))
        for piece, rest in ((p, a), (q, b)):
            if size(piece) > n:
                pair = cut(piece, n)
                if pair is None:
                    return False
                rest.insert(0, pair[1])
                if piece is p:
                    p = pair[0]
                else:
                    q = pair[0]
        unify(p, q)
        done_a.append(p)
        done_b.append(q)
    x.parts, y.parts = done_a, done_b
    return True


def leaves(dims: Iterable[Dim]) -> set[Atom]:
    """The leaves in a tensor's dimensions."""
    return {leaf for d in dims for span in _spans(d) for leaf in span.leaves}


def _spans(d: Dim) -> list[Span]:
    out = [Span(0, (), ())]
    factors = flat(d)
    stride = size(factors)
    for atom in factors:
        stride //= atom.size
        options = [o.scaled(stride) for o in _options(atom)]
        out = [s.then(o) for s in out for o in options]
    return out


def _options(atom: Atom) -> list[Span]:
    if atom.parts is None:
        return [Span(0, (1,), (atom,))]
    out, offset = [], 0
    for piece in parts(atom):
        out += [Span(offset, (), ()).then(s) for s in _spans(piece)]
        offset += size(piece)
    return out


def blocks(dims: list[Dim]) -> list[tuple[Span, ...]]:
    """A tensor cut into blocks, each a product of leaves: one Span for every dimension of the tensor.

    A block that holds both an axis and a leaf with members over it is cut at every index of that axis.
    """
    if any(size(flat(d)) == 0 for d in dims):
        return []
    return [piece for block in product(*map(_spans, dims)) for piece in _divided(block)]


def _divided(block: tuple[Span, ...]) -> list[tuple[Span, ...]]:
    held = [leaf for span in block for leaf in span.leaves]
    key = next((key for leaf in held for key, _ in members(leaf) if key in held), None)
    if key is None:
        return [block]
    at = [product(*(_at(span, key, i) for span in block)) for i in range(key.size)]
    return [piece for cut_block in at for one in cut_block for piece in _divided(one)]


def spread(dims: list[Dim], refused: set[tuple[Atom, Atom]]) -> None:
    """Where a tensor is cut at every index of an axis, let the other atoms of the tensor depend on that axis too.

    `refused`: pairs of an atom and an axis on which it is known not to depend.
    """
    for block in product(*map(_spans, dims)):
        _spread(block, refused)


def _spread(block: tuple[Span, ...], refused: set[tuple[Atom, Atom]]) -> None:
    held = [leaf for span in block for leaf in span.leaves]
    keys = {key for leaf in held for key, _ in members(leaf)}
    for key in [leaf for leaf in held if leaf in keys]:
        for leaf in held:
            if leaf is not key and (leaf, key) not in refused:
                for i in range(key.size):
                    member(leaf, key, i)
        for i in range(key.size):
            for piece in product(*(_at(span, key, i) for span in block)):
                _spread(piece, refused)


def _at(span: Span, key: Atom, i: int) -> list[Span]:
    """A span with the axis `key` fixed at index i."""
    out = [Span(span.start, (), ())]
    for stride, leaf in zip(span.strides, span.leaves, strict=True):
        child = members(leaf).get((key, i))
        options = [Span(i, (), ())] if leaf is key else [Span(0, (1,), (leaf,))] if child is None else _spans([child])
        out = [s.then(o.scaled(stride)) for s in out for o in options]
    return out
