"""Rules of operations that rearrange indices: views, permutations, copies, concatenations."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from weightspace.graph import atoms
from weightspace.graph.atoms import Dim, cut, flat, pin, take, unify
from weightspace.graph.rules.call import Call, Labels, Outcome, broadcast, fresh, give_up, outputs, rule, unknown


@rule(
    "clone", "_to_copy", "to", "contiguous", "alias", "detach", "lift_fresh", "lift_fresh_copy", "dropout", "type_as",
    "feature_dropout", "alpha_dropout", "native_dropout", "conj", "real", "positive", "_conj", "cumulative_identity",
    "resolve_conj", "_conj_copy", "_conj_physical", "conj_physical", "requires_grad_", "data", keeps=True,
)  # fmt: skip
def same(call: Call) -> Outcome:
    """The first argument again."""
    source = call.tensors[0]
    kept = [replace(source, dims=list(source.dims), points=None, chosen={}) for _ in call.shapes]
    return outputs(call, kept)


def view(call: Call, dims: list[Dim], shape: tuple[int, ...]) -> list[Dim]:
    """Regroup row-major factors into a new shape; groups that do not factor are pinned, with a note."""
    out: list[Dim] = [[] for _ in shape]
    i, j = len(dims), len(shape)
    while i > 0 or j > 0:
        group_in: list[int] = []
        group_out: list[int] = []
        a = b = 1
        while not (group_in and group_out and a == b):
            if (a <= b and i > 0) or j == 0:
                i -= 1
                group_in.insert(0, i)
                a *= atoms.size(flat(dims[i]))
            else:
                j -= 1
                group_out.insert(0, j)
                b *= shape[j]
            if i == 0 and j == 0:
                break
        _regroup(call, [a for k in group_in for a in dims[k]], group_out, shape, out)
    return out


def _regroup(call: Call, factors: Dim, group: list[int], shape: tuple[int, ...], out: list[Dim]) -> None:
    rest = flat(factors)
    for k in reversed(group):
        pair = take(rest, shape[k])
        if pair is None:
            reason = f"{call.op} to {shape} mixes factors that do not divide"
            give_up(call, [factors], reason)
            for other in group:
                out[other] = atoms.dim(shape[other], reason)
            return
        rest, out[k] = pair


@rule(
    "view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze", "view_copy", "_reshape_alias",
    "squeeze_copy", "unsqueeze_copy", "ravel", "view_as", "reshape_as", keeps=True,
)  # fmt: skip
def reshape(call: Call) -> Outcome:
    """All of these are one rule: input dimensions and the shape of the output."""
    source, shape = call.tensors[0], call.shapes[0]
    if source.uniform:
        return fresh(shape, uniform=True)
    return Labels(view(call, source.dims, shape), counts=source.counts)


@rule("view_as_complex", "view_as_complex_copy")
def as_complex(call: Call) -> Outcome:
    """The last dimension holds the real and the imaginary part."""
    source = call.tensors[0]
    pin(source.dims[-1], "real and imaginary part")
    return Labels(list(source.dims[:-1]), source.uniform)


@rule("view_as_real", "view_as_real_copy")
def as_real(call: Call) -> Outcome:
    """A new last dimension of the real and the imaginary part."""
    return Labels([*call.tensors[0].dims, atoms.dim(2, "real and imaginary part")])


@rule("permute", "permute_copy", moves=True)
def permute(call: Call) -> Outcome:
    """Reorder."""
    source = call.tensors[0]
    order = [int(k) % len(source.dims) for k in call.get("dims")]
    return Labels([source.dims[k] for k in order], source.uniform)


@rule("transpose", "transpose_copy", "swapaxes", "swapdims", moves=True)
def transpose(call: Call) -> Outcome:
    """Swap two."""
    source = call.tensors[0]
    rank = len(source.dims)
    i = call.axis("dim0", "axis0", rank=rank)
    j = call.axis("dim1", "axis1", rank=rank)
    order = list(range(rank))
    order[i], order[j] = j, i
    return Labels([source.dims[k] for k in order], source.uniform)


@rule("t", "t_copy", "numpy_T", "mT", "adjoint", "matrix_H", moves=True)
def reverse(call: Call) -> Outcome:
    """Transpose of a matrix (the last two dimensions of a batch of them)."""
    source = call.tensors[0]
    dims = source.dims[::-1] if call.op in ("t", "t_copy", "numpy_T") else [*source.dims[:-2], *source.dims[:-3:-1]]
    return Labels(list(dims), source.uniform)


@rule("movedim", "moveaxis", moves=True)
def movedim(call: Call) -> Outcome:
    """Move dimensions to new places."""
    source = call.tensors[0]
    rank = len(source.dims)

    def positions(value: Any) -> list[int]:
        return [int(k) % rank for k in (value if isinstance(value, (list, tuple)) else [value])]

    origin, target = positions(call.get("source")), positions(call.get("destination"))
    order: list[int] = [k for k in range(rank) if k not in origin]
    for at, k in sorted(zip(target, origin, strict=True)):
        order.insert(at, k)
    return Labels([source.dims[k] for k in order], source.uniform)


@rule("expand", "expand_copy", "broadcast_to", "expand_as", moves=True)
def expand(call: Call) -> Outcome:
    """Copies along a dimension of size one: the tensor is constant there, so the new indices are free."""
    source, shape = call.tensors[0], call.shapes[0]
    lead = len(shape) - len(source.dims)
    dims = [atoms.dim(n) for n in shape]
    for k, d in enumerate(source.dims):
        if flat(d):
            dims[lead + k] = flat(d)
    return Labels(dims, source.uniform)


@rule("repeat", "tile", moves=True)
def repeat(call: Call) -> Outcome:
    """Copies stand outside of the dimension."""
    source, shape = call.tensors[0], call.shapes[0]
    lead = len(shape) - len(source.dims)
    old: list[Dim] = [[] for _ in range(lead)] + [flat(d) for d in source.dims]
    dims = [[*atoms.dim(n // atoms.size(d)), *d] for n, d in zip(shape, old, strict=True)]
    return Labels(dims, source.uniform)


@rule("repeat_interleave", moves=True)
def repeat_interleave(call: Call) -> Outcome:
    """Copies stand inside of the dimension."""
    source, shape = call.tensors[0], call.shapes[0]
    if len(shape) != len(source.dims) or isinstance(call.get("repeats"), Labels):
        return unknown(call)
    dims = [[*flat(d), *atoms.dim(n // atoms.size(flat(d)))] for n, d in zip(shape, source.dims, strict=True)]
    return Labels(dims, source.uniform)


@rule("cat", "concat", "concatenate")
def cat(call: Call) -> Outcome:
    """Concatenation on one dimension, the others unify."""
    rank = len(call.shapes[0])
    axis = call.axis("dim", "axis", rank=rank)
    tensors = [t for t in call.get("tensors") if t.shape != (0,) and t.shape[axis]]
    if not tensors:
        return fresh(call.shapes[0], uniform=True)
    tensors = [fresh(t.shape) if t.uniform else t for t in tensors]
    joined = atoms.concat([flat(t.dims[axis]) for t in tensors])
    rest = broadcast([Labels([[] if k == axis else d for k, d in enumerate(t.dims)]) for t in tensors])
    return Labels([joined if k == axis else rest[k] for k in range(rank)])


@rule("stack")
def stack(call: Call) -> Outcome:
    """A concatenation of single indices: the new dimension is a free-standing, pinned one."""
    tensors = call.get("tensors")
    rank = len(tensors[0].dims)
    axis = call.axis("dim", rank=rank + 1)
    dims = broadcast([t for t in tensors if not t.uniform] or tensors)
    dims.insert(axis, atoms.dim(len(tensors), "stacked"))
    return Labels(dims)


@rule("channel_shuffle", "native_channel_shuffle", moves=True)
def channel_shuffle(call: Call) -> Outcome:
    """(groups, channels in a group) -> (channels in a group, groups)."""
    source = call.tensors[0]
    pair = take(source.dims[1], source.shape[1] // int(call.get("groups")))
    if pair is None:
        return unknown(call)
    return Labels([source.dims[0], [*pair[1], *pair[0]], *source.dims[2:]])


@rule("diagonal", "diagonal_copy")
def diagonal(call: Call) -> Outcome:
    """Two dimensions met at equal indices are one, and come last; beside the main diagonal both are pinned."""
    source = call.tensors[0]
    rank = len(source.dims)
    i, j = (int(call.get(name, default=k)) % rank for k, name in enumerate(("dim1", "dim2")))
    rest = [d for k, d in enumerate(source.dims) if k not in (i, j)]
    if call.get("offset", default=0) or source.shape[i] != source.shape[j]:
        for k in (i, j):
            pin(source.dims[k], "a diagonal is taken")
        return Labels([*rest, atoms.dim(call.shapes[0][-1], "a diagonal is taken")], source.uniform)
    unify(source.dims[i], source.dims[j])
    return Labels([*rest, source.dims[i]], source.uniform)


@rule("diag_embed")
def diag_embed(call: Call) -> Outcome:
    """The last dimension, twice, in the two places where the diagonal goes."""
    source, rank = call.tensors[0], len(call.shapes[0])
    if call.get("offset", default=0):
        return unknown(call)
    i, j = (int(call.get(name, default=k)) % rank for k, name in ((-2, "dim1"), (-1, "dim2")))
    dims = list(source.dims[:-1])
    for k in sorted((i, j)):
        dims.insert(k, flat(source.dims[-1]))
    return Labels(dims)


@rule("diag")
def diag(call: Call) -> Outcome:
    """A vector on the diagonal of a matrix, or the diagonal of one."""
    vector = len(call.tensors[0].dims) == 1
    offset = call.get("diagonal", default=0)
    args = {"self": call.tensors[0], "offset": offset, "dim1": -2 if vector else 0, "dim2": -1 if vector else 1}
    read = diag_embed if vector else diagonal
    return read(Call(call.op, args, call.shapes, call.used, notes=call.notes))


@rule("trace")
def trace(call: Call) -> Outcome:
    """Two dimensions met at equal indices, and summed."""
    source = call.tensors[0]
    unify(source.dims[0], source.dims[1])
    return Labels([])


@rule("constant_pad_nd", "pad")
def constant_pad(call: Call) -> Outcome:
    """Concatenation with a new free part; other modes of padding pin."""
    source = call.tensors[0]
    if call.get("mode", default="constant") != "constant":
        return mirrored_pad(call)
    dims = list(source.dims)
    amounts = [int(n) for n in call.get("pad")]
    for k in range(len(amounts) // 2):
        at = len(dims) - 1 - k
        d = flat(dims[at])
        for side, n in enumerate(amounts[2 * k : 2 * k + 2]):
            if n < 0:
                pair = cut(d, -n if side == 0 else atoms.size(d) + n)
                if pair is None:
                    return unknown(call)
                d = pair[1 - side]
            elif n > 0:
                d = atoms.concat([atoms.dim(n), d] if side == 0 else [d, atoms.dim(n)])
        dims[at] = d
    return Labels(dims)


@rule("reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "replication_pad1d", "replication_pad2d",
      "replication_pad3d", "_pad_circular", "pad_circular")  # fmt: skip
def mirrored_pad(call: Call) -> Outcome:
    """The padded dimensions are pinned, the others kept."""
    source, shape = call.tensors[0], call.shapes[0]
    return Labels(pin_changed(source, shape, len(call.get("pad", "padding")) // 2, "padding"))


def pin_changed(source: Labels, shape: tuple[int, ...], last: int, reason: str) -> list[Dim]:
    """Pin the last dimensions of the input and give the output new, pinned ones in their place."""
    lead = len(source.dims) - last
    for d in source.dims[lead:]:
        pin(d, reason)
    return [*source.dims[:lead], *(atoms.dim(n, reason) for n in shape[lead:])]
