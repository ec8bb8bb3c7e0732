"""Rules of operations that take a part of a tensor: slices, selections, look-ups."""

from __future__ import annotations

from typing import Any

from weightspace.graph import atoms
from weightspace.graph.atoms import Atom, Dim, cut, flat, member, pin, take, unify
from weightspace.graph.rules.call import Call, Labels, Outcome, broadcast, fresh, give_up, look_up, rule, unknown


def segment(call: Call, source: Labels, axis: int, start: int, stop: int) -> Labels:
    """The piece [start, stop) of one dimension."""
    d = flat(source.dims[axis])
    n = atoms.size(d)
    if source.uniform:
        return fresh([stop - start if k == axis else m for k, m in enumerate(source.shape)], uniform=True)
    if stop <= start:
        return fresh([0 if k == axis else m for k, m in enumerate(source.shape)], uniform=True)
    if (start, stop) == (0, n):
        return Labels(list(source.dims))
    if stop - start == 1 and all(a.viewed for a in d):
        return index_at(source, axis, start, keep=True)
    piece: Dim | None = d
    for offset, side in ((stop, 0), (start, 1)):
        if piece is not None and 0 < offset < atoms.size(piece):
            pair = cut(piece, offset)
            piece = None if pair is None else pair[side]
    if piece is None:
        reason = f"{call.op} [{start}:{stop}] cuts inside a factor"
        give_up(call, [d], reason)
        piece = atoms.dim(stop - start, reason)
    return Labels([flat(piece) if k == axis else e for k, e in enumerate(source.dims)])


def index_at(source: Labels, axis: int, i: int, keep: bool) -> Labels:
    """One index of a dimension: its axes are pinned, the other atoms become members."""
    if source.uniform:
        shape = [1 if k == axis else n for k, n in enumerate(source.shape) if keep or k != axis]
        return fresh(shape, uniform=True)
    keys: list[tuple[Atom, int]] = []
    _address(flat(source.dims[axis]), i, keys)
    rest = [[] if k == axis else flat(d) for k, d in enumerate(source.dims) if keep or k != axis]
    held = atoms.leaves(rest)
    for key, at in keys:
        pin([key], "one index is taken")
        if not key.foreign and key not in held:
            rest = [[m for atom in flat(d) for m in member(atom, key, at)] for d in rest]
    return Labels(rest)


def _address(d: Dim, i: int, keys: list[tuple[Atom, int]]) -> None:
    """The leaves, and their indices, that position i of a dimension stands for."""
    stride = atoms.size(d)
    for atom in d:
        stride //= atom.size
        at, i = divmod(i, stride)
        if atom.parts is None:
            keys.append((atom, at))
            continue
        for piece in atoms.parts(atom):
            if at < atoms.size(piece):
                _address(piece, at, keys)
                break
            at -= atoms.size(piece)


@rule("select", "select_copy", moves=True)
def select(call: Call) -> Outcome:
    """One index of one dimension."""
    source = call.tensors[0]
    axis = call.axis("dim", rank=len(source.dims))
    return index_at(source, axis, int(call.get("index", default=0)) % source.shape[axis], keep=False)


@rule("unbind", "unbind_copy", moves=True)
def unbind(call: Call) -> Outcome:
    """Every index of one dimension."""
    source = call.tensors[0]
    axis = call.axis("dim", rank=len(source.dims))
    return tuple(index_at(source, axis, i, keep=False) for i in range(source.shape[axis]))


@rule("slice", "slice_copy", "narrow", moves=True)
def slice_(call: Call) -> Outcome:
    """A run of indices; a step is factored out first, then one index of it is taken."""
    source = call.tensors[0]
    axis = call.axis("dim", rank=len(source.dims))
    n, step = source.shape[axis], int(call.get("step", default=1))
    if call.op == "narrow":
        start = int(call.get("start")) % n
        return segment(call, source, axis, start, start + int(call.get("length")))
    start, stop = (_clip(call.get(name), n, default) for name, default in (("start", 0), ("end", n)))
    if step == 1:
        return segment(call, source, axis, start, stop)
    pair = take(source.dims[axis], step) if n % step == 0 and start < step and stop > n - step else None
    if pair is None or not pair[1] or source.uniform:
        give_up(call, [source.dims[axis]], f"{call.op} [{start}:{stop}:{step}] takes strides that do not divide")
        return Labels(_replace(source.dims, axis, atoms.dim(call.shapes[0][axis], "strided slice")), source.uniform)
    both = Labels([*source.dims[:axis], pair[0], pair[1], *source.dims[axis + 1 :]])
    return index_at(both, axis + 1, start, keep=False)


def _clip(value: Any, n: int, default: int) -> int:
    if value is None:
        return default
    return max(0, min(n, int(value) + n if int(value) < 0 else int(value)))


def _replace(dims: list[Dim], axis: int, d: Dim) -> list[Dim]:
    return [d if k == axis else e for k, e in enumerate(dims)]


@rule("split", "split_with_sizes", "chunk", "tensor_split", "split_copy", "split_with_sizes_copy", "unsafe_split",
      "unsafe_chunk", "unsafe_split_with_sizes", moves=True)  # fmt: skip
def split(call: Call) -> Outcome:
    """Consecutive runs of indices."""
    source = call.tensors[0]
    axis = call.axis("dim", rank=len(source.dims))
    offset, out = 0, []
    for shape in call.shapes:
        out.append(segment(call, source, axis, offset, offset + shape[axis]))
        offset += shape[axis]
    return tuple(out)


@rule("glu")
def glu(call: Call) -> Outcome:
    """Two halves, multiplied."""
    source = call.tensors[0]
    axis = call.axis("dim", rank=len(source.dims)) if call.get("dim") is not None else len(source.dims) - 1
    half = source.shape[axis] // 2
    left, right = (segment(call, source, axis, k * half, (k + 1) * half) for k in range(2))
    return Labels(broadcast([left, right]))


@rule("embedding", moves=True, reads=("indices",))
def embedding(call: Call) -> Outcome:
    """Rows are looked up by number."""
    weight, indices = call.tensor("weight"), call.tensor("indices")
    look_up(weight.dims[0], indices)
    return Labels([*indices.dims, weight.dims[1]])


@rule("index", "_unsafe_index", moves=True, reads=("indices",))
def index_(call: Call) -> Outcome:
    """Indexed dimensions are what the indices point at, the others kept."""
    source = call.tensor("self")
    picks = list(call.get("indices"))
    only = [k for k, pick in enumerate(picks) if pick is not None]
    if len(only) == 1 and picks[only[0]].numbers is not None and len(picks[only[0]].numbers) == 1:
        at = picks[only[0]].numbers[0] % source.shape[only[0]]
        return segment(call, source, only[0], at, at + 1)
    dims = indexed(call, source, picks)
    return unknown(call) if len(dims) != len(call.shapes[0]) else Labels(_pin_unequal(dims, call.shapes[0]))


def indexed(call: Call, source: Labels, picks: list[Labels | None]) -> list[Dim]:
    """The dimensions of `source[picks]`, None standing for a whole dimension."""
    picks = [*picks, *[None] * (len(source.dims) - len(picks))]
    chosen = {k: pick for k, pick in enumerate(picks) if pick is not None}
    for k, pick in chosen.items():
        if pick.numbers is not None and len({*pick.numbers}) == len(pick.numbers):
            give_up(call, [source.dims[k]], f"{call.op} takes a list of indices")
        look_up(source.dims[k], pick)
    looked = broadcast(list(chosen.values()))
    adjacent = [*chosen] == [*range(min(chosen), max(chosen) + 1)]
    at = min(chosen) if adjacent else 0
    rest = [d for k, d in enumerate(source.dims) if k not in chosen]
    return [*rest[:at], *looked, *rest[at:]]


def _pin_unequal(dims: list[Dim], shape: tuple[int, ...]) -> list[Dim]:
    return [d if atoms.size(flat(d)) == n else atoms.dim(n, "looked up") for d, n in zip(dims, shape, strict=True)]


@rule("index_select", moves=True, reads=("index",))
def index_select(call: Call) -> Outcome:
    """As indexing one dimension."""
    source = call.tensor("self")
    axis = call.axis("dim", rank=len(source.dims))
    look_up(source.dims[axis], call.tensor("index"))
    return Labels(_replace(source.dims, axis, call.tensor("index").dims[0]))


@rule("take_along_dim", moves=True, reads=("indices",))
def take_along(call: Call) -> Outcome:
    """As gathering, after both are spread to one shape; over all, where no dimension is named."""
    source, indices = call.tensor("self"), call.tensor("indices")
    if call.get("dim") is None:
        return unknown(call)
    axis = call.axis("dim", rank=len(source.dims))
    look_up(source.dims[axis], indices)
    pair = [Labels(_replace(t.dims, axis, [])) for t in (source, indices)]
    return Labels(_replace(broadcast(pair), axis, indices.dims[axis]))


@rule("gather", moves=True, reads=("index",))
def gather(call: Call) -> Outcome:
    """The gathered dimension is what the indices point at, the others unify where they are whole."""
    source, indices = call.tensor("self"), call.tensor("index", "indices")
    axis = call.axis("dim", rank=len(source.dims))
    look_up(source.dims[axis], indices)
    for k, (d, e) in enumerate(zip(source.dims, indices.dims, strict=True)):
        if k == axis:
            continue
        if atoms.size(flat(d)) == atoms.size(flat(e)):
            unify(d, e)
        else:
            give_up(call, [d, e], f"{call.op} takes a part of a dimension")
    return Labels(list(indices.dims))
