"""How each operation carries axes from its inputs to its outputs.

One short function per family of operations, registered under the names of the operators of core ATen (and of the few
composite ones that the trace keeps whole). A rule unifies what the operation forces to be indexed alike, pins what it
mixes, and returns the dimensions of its outputs. An operation without a rule pins everything it touches, with a note.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from math import prod
from typing import Any, TypeAlias

from weightspace.symmetry import index
from weightspace.symmetry.index import Atom, Dim, cut, flat, member, pin, take, unify

__all__ = ["Call", "Labels", "Outcome", "apply_rule", "view"]


@dataclass
class Labels:
    """The dimensions of one tensor; `uniform`: all its entries are equal, so that every view of it is fresh."""

    dims: list[Dim]
    uniform: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the dimensions."""
        return tuple(index.size(flat(d)) for d in self.dims)


Outcome: TypeAlias = Labels | tuple["Labels | None", ...]


@dataclass
class Call:
    """One node of the graph as a rule sees it: its operator, its arguments by name (tensors as Labels), the shapes of
    its outputs, which of several outputs are used, and the tensors that it holds inside."""

    op: str
    args: dict[str, Any]
    shapes: list[tuple[int, ...]]
    used: set[int]
    pointwise: bool = False
    reduction: bool = False
    hidden: list[Labels] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def tensors(self) -> list[Labels]:
        """Every tensor argument, lists included."""
        found: list[Labels] = []
        for value in self.args.values():
            items = value if isinstance(value, (list, tuple)) else [value]
            found += [item for item in items if isinstance(item, Labels)]
        return found

    def tensor(self, *names: str) -> Labels:
        """The first of the named arguments that is a tensor."""
        return next(self.args[n] for n in names if isinstance(self.args.get(n), Labels))

    def get(self, *names: str, default: Any = None) -> Any:
        """The first of the named arguments that is there."""
        return next((self.args[n] for n in names if self.args.get(n) is not None), default)

    def axis(self, *names: str, rank: int) -> int:
        """A dimension argument as a non-negative integer."""
        return int(self.get(*names, default=0)) % max(rank, 1)

    def hide(self, *dims: Dim) -> None:
        """Record a tensor that the operation holds inside (statistics, scores)."""
        self.hidden.append(Labels(list(dims)))


Rule: TypeAlias = Callable[[Call], Outcome]
_RULES: dict[str, Rule] = {}


def rule(*ops: str) -> Callable[[Rule], Rule]:
    """Register a rule under the operator names it serves."""

    def register(function: Rule) -> Rule:
        _RULES.update(dict.fromkeys(ops, function))
        return function

    return register


def apply_rule(call: Call) -> Outcome:
    """Dimensions of the outputs of one call."""
    if call.op in _RULES:
        return _RULES[call.op](call)
    if call.pointwise:
        return pointwise(call)
    if call.reduction:
        return reduce(call)
    return unknown(call)


def unknown(call: Call) -> Outcome:
    """Pin every input and output of an operation that is not known."""
    reason = f"{call.op} has no rule"
    for tensor in call.tensors:
        for d in tensor.dims:
            pin(d, reason)
    call.notes.append(f"{call.op} is not known: every axis that it touches is pinned")
    return _outputs(call, [fresh(shape, reason) for shape in call.shapes])


def fresh(shape: Iterable[int], reason: str | None = None, uniform: bool = False) -> Labels:
    """A tensor of new dimensions, pinned if a reason is given."""
    return Labels([index.dim(n, reason) for n in shape], uniform)


def _outputs(call: Call, labels: list[Labels]) -> Outcome:
    return labels[0] if len(labels) == 1 else tuple(labels)


def broadcast(tensors: list[Labels], reason: str = "broadcast") -> list[Dim]:
    """Unify from the right all dimensions that are not of size one; the dimensions of the result."""
    rank = max((len(t.dims) for t in tensors), default=0)
    out: list[Dim] = [[] for _ in range(rank)]
    for tensor in tensors:
        for k, d in enumerate(reversed(tensor.dims)):
            at = rank - 1 - k
            met = flat(d)
            if not out[at]:
                out[at] = met
            elif met:
                unify(out[at], met)
                if any(atom.constant for atom in out[at]):
                    out[at] = flat(met)
    return [flat(d) for d in out]


def pointwise(call: Call) -> Outcome:
    """Elementwise operations of any number of tensors."""
    tensors = call.tensors
    if all(t.uniform for t in tensors):
        return _outputs(call, [fresh(shape, uniform=True) for shape in call.shapes])
    varied = [t for t in tensors if not t.uniform]
    dims = broadcast(varied)
    if tuple(index.size(d) for d in dims) != call.shapes[0]:
        dims = broadcast([Labels(dims), fresh(call.shapes[0])])
    return _outputs(call, [Labels(list(dims)) for _ in call.shapes])


@rule(
    "clone", "_to_copy", "to", "contiguous", "alias", "detach", "lift_fresh", "lift_fresh_copy", "dropout", "type_as",
    "feature_dropout", "alpha_dropout", "native_dropout", "conj", "real", "positive", "_conj", "cumulative_identity",
    "resolve_conj", "view_as_real_copy", "requires_grad_", "data",
)  # fmt: skip
def same(call: Call) -> Outcome:
    """The first argument again."""
    source = call.tensors[0]
    return _outputs(call, [Labels(list(source.dims), source.uniform) for _ in call.shapes])


@rule("softmax", "_softmax", "log_softmax", "_log_softmax", "_safe_softmax", "softmin")
def softmax(call: Call) -> Outcome:
    """Same dimensions; the normaliser lives on the others."""
    source = call.tensors[0]
    axis = call.axis("dim", rank=len(source.dims))
    call.hide(*(d for k, d in enumerate(source.dims) if k != axis))
    return Labels(list(source.dims))


# --- shape -----------------------------------------------------------------------------------------------------------


def view(call: Call, dims: list[Dim], shape: tuple[int, ...]) -> list[Dim]:
    """Regroup row-major factors into a new shape; groups that do not factor are pinned, with a note."""
    out: list[Dim] = [[] for _ in shape]
    i, j = len(dims), len(shape)
    while i > 0 or j > 0:
        group_in, group_out, a, b = [], [], 1, 1
        while not (group_in and group_out and a == b):
            if (a <= b and i > 0) or j == 0:
                i -= 1
                group_in.insert(0, i)
                a *= index.size(flat(dims[i]))
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
            reason = f"{call.op} mixes factors"
            pin(factors, reason)
            call.notes.append(f"{call.op} to {shape} mixes factors that do not divide: pinned")
            for other in group:
                out[other] = index.dim(shape[other], reason)
            return
        rest, out[k] = pair


@rule(
    "view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze", "view_copy", "_reshape_alias",
    "squeeze_copy", "unsqueeze_copy", "ravel", "view_as", "reshape_as",
)  # fmt: skip
def reshape(call: Call) -> Outcome:
    """All of these are one rule: input dimensions and the shape of the output."""
    source, shape = call.tensors[0], call.shapes[0]
    if source.uniform:
        return fresh(shape, uniform=True)
    return Labels(view(call, source.dims, shape))


@rule("permute", "permute_copy")
def permute(call: Call) -> Outcome:
    """Reorder."""
    source = call.tensors[0]
    order = [int(k) % len(source.dims) for k in call.get("dims")]
    return Labels([source.dims[k] for k in order], source.uniform)


@rule("transpose", "transpose_copy", "swapaxes", "swapdims")
def transpose(call: Call) -> Outcome:
    """Swap two."""
    source = call.tensors[0]
    rank = len(source.dims)
    i = call.axis("dim0", "axis0", rank=rank)
    j = call.axis("dim1", "axis1", rank=rank)
    order = list(range(rank))
    order[i], order[j] = j, i
    return Labels([source.dims[k] for k in order], source.uniform)


@rule("t", "t_copy", "numpy_T", "mT", "adjoint", "matrix_H")
def reverse(call: Call) -> Outcome:
    """Transpose of a matrix (the last two dimensions of a batch of them)."""
    source = call.tensors[0]
    dims = source.dims[::-1] if call.op in ("t", "t_copy", "numpy_T") else [*source.dims[:-2], *source.dims[:-3:-1]]
    return Labels(list(dims), source.uniform)


@rule("movedim", "moveaxis")
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


@rule("expand", "expand_copy", "broadcast_to", "expand_as")
def expand(call: Call) -> Outcome:
    """Copies along a dimension of size one: the tensor is constant there, so the new indices are free."""
    source, shape = call.tensors[0], call.shapes[0]
    lead = len(shape) - len(source.dims)
    dims = [index.dim(n) for n in shape]
    for k, d in enumerate(source.dims):
        if flat(d):
            dims[lead + k] = flat(d)
    return Labels(dims, source.uniform)


@rule("repeat", "tile")
def repeat(call: Call) -> Outcome:
    """Copies stand outside of the dimension."""
    source, shape = call.tensors[0], call.shapes[0]
    lead = len(shape) - len(source.dims)
    old = [[] for _ in range(lead)] + [flat(d) for d in source.dims]
    dims = [[*index.dim(n // index.size(d)), *d] for n, d in zip(shape, old, strict=True)]
    return Labels(dims, source.uniform)


@rule("repeat_interleave")
def repeat_interleave(call: Call) -> Outcome:
    """Copies stand inside of the dimension."""
    source, shape = call.tensors[0], call.shapes[0]
    if len(shape) != len(source.dims) or isinstance(call.get("repeats"), Labels):
        return unknown(call)
    dims = [[*flat(d), *index.dim(n // index.size(flat(d)))] for n, d in zip(shape, source.dims, strict=True)]
    return Labels(dims, source.uniform)


@rule("cat", "concat", "concatenate")
def cat(call: Call) -> Outcome:
    """Concatenation on one dimension, the others unify."""
    tensors = [t for t in call.get("tensors") if t.shape != (0,)]
    rank = len(tensors[0].dims)
    axis = call.axis("dim", "axis", rank=rank)
    tensors = [fresh(t.shape) if t.uniform else t for t in tensors]
    joined = index.concat([flat(t.dims[axis]) for t in tensors])
    rest = broadcast([Labels([[] if k == axis else d for k, d in enumerate(t.dims)]) for t in tensors])
    return Labels([joined if k == axis else rest[k] for k in range(rank)])


@rule("stack")
def stack(call: Call) -> Outcome:
    """A concatenation of single indices: the new dimension is a free-standing, pinned one."""
    tensors = call.get("tensors")
    rank = len(tensors[0].dims)
    axis = call.axis("dim", rank=rank + 1)
    dims = broadcast([t for t in tensors if not t.uniform] or tensors)
    dims.insert(axis, index.dim(len(tensors), "stacked"))
    return Labels(dims)


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
                pair = cut(d, -n if side == 0 else index.size(d) + n)
                if pair is None:
                    return unknown(call)
                d = pair[1 - side]
            elif n > 0:
                d = index.concat([index.dim(n), d] if side == 0 else [d, index.dim(n)])
        dims[at] = d
    return Labels(dims)


@rule("reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "replication_pad1d", "replication_pad2d",
      "replication_pad3d", "_pad_circular", "pad_circular")  # fmt: skip
def mirrored_pad(call: Call) -> Outcome:
    """The padded dimensions are pinned, the others kept."""
    source, shape = call.tensors[0], call.shapes[0]
    return Labels(_pin_changed(source, shape, len(call.get("pad", "padding")) // 2, "padding"))


def _pin_changed(source: Labels, shape: tuple[int, ...], last: int, reason: str) -> list[Dim]:
    """Pin the last dimensions of the input and give the output new, pinned ones in their place."""
    lead = len(source.dims) - last
    for d in source.dims[lead:]:
        pin(d, reason)
    return [*source.dims[:lead], *(index.dim(n, reason) for n in shape[lead:])]


# --- taking parts ----------------------------------------------------------------------------------------------------


def _segment(call: Call, source: Labels, axis: int, start: int, stop: int) -> Labels:
    """The piece [start, stop) of one dimension."""
    d = flat(source.dims[axis])
    n = index.size(d)
    if source.uniform:
        return fresh([stop - start if k == axis else m for k, m in enumerate(source.shape)], uniform=True)
    if (start, stop) == (0, n):
        return Labels(list(source.dims))
    if stop - start == 1 and all(a.viewed for a in d):
        return _index_at(source, axis, start, keep=True)
    piece: Dim | None = d
    for offset, side in ((stop, 0), (start, 1)):
        if piece is not None and 0 < offset < index.size(piece):
            pair = cut(piece, offset)
            piece = None if pair is None else pair[side]
    if piece is None:
        reason = f"{call.op} cuts inside a factor"
        pin(d, reason)
        call.notes.append(f"{call.op} [{start}:{stop}] cuts inside a factor: pinned")
        piece = index.dim(stop - start, reason)
    return Labels([flat(piece) if k == axis else e for k, e in enumerate(source.dims)])


def _index_at(source: Labels, axis: int, i: int, keep: bool) -> Labels:
    """One index of a dimension: its axes are pinned, the other atoms become members."""
    if source.uniform:
        shape = [1 if k == axis else n for k, n in enumerate(source.shape) if keep or k != axis]
        return fresh(shape, uniform=True)
    keys: list[tuple[Atom, int]] = []
    _address(flat(source.dims[axis]), i, keys)
    rest = [[] if k == axis else flat(d) for k, d in enumerate(source.dims) if keep or k != axis]
    held = index.leaves(rest)
    for key, at in keys:
        pin([key], "one index is taken")
        if not key.foreign and key not in held:
            rest = [[m for atom in flat(d) for m in member(atom, key, at)] for d in rest]
    return Labels(rest)


def _address(d: Dim, i: int, keys: list[tuple[Atom, int]]) -> None:
    """The leaves, and their indices, that position i of a dimension stands for."""
    stride = index.size(d)
    for atom in d:
        stride //= atom.size
        at, i = divmod(i, stride)
        if atom.parts is None:
            keys.append((atom, at))
            continue
        for piece in index.parts(atom):
            if at < index.size(piece):
                _address(piece, at, keys)
                break
            at -= index.size(piece)


@rule("select", "select_copy")
def select(call: Call) -> Outcome:
    """One index of one dimension."""
    source = call.tensors[0]
    axis = call.axis("dim", rank=len(source.dims))
    return _index_at(source, axis, int(call.get("index", default=0)) % source.shape[axis], keep=False)


@rule("unbind", "unbind_copy")
def unbind(call: Call) -> Outcome:
    """Every index of one dimension."""
    source = call.tensors[0]
    axis = call.axis("dim", rank=len(source.dims))
    return tuple(_index_at(source, axis, i, keep=False) for i in range(source.shape[axis]))


@rule("slice", "slice_copy", "narrow")
def slice_(call: Call) -> Outcome:
    """A run of indices; a step is factored out first, then one index of it is taken."""
    source = call.tensors[0]
    axis = call.axis("dim", rank=len(source.dims))
    n, step = source.shape[axis], int(call.get("step", default=1))
    if call.op == "narrow":
        start = int(call.get("start")) % n
        return _segment(call, source, axis, start, start + int(call.get("length")))
    start, stop = (_clip(call.get(name), n, default) for name, default in (("start", 0), ("end", n)))
    if step == 1:
        return _segment(call, source, axis, start, stop)
    pair = take(source.dims[axis], step) if n % step == 0 and start < step and stop > n - step else None
    if pair is None or not pair[1] or source.uniform:
        pin(source.dims[axis], "strided slice")
        return Labels(_replace(source.dims, axis, index.dim(call.shapes[0][axis], "strided slice")), source.uniform)
    both = Labels([*source.dims[:axis], pair[0], pair[1], *source.dims[axis + 1 :]])
    return _index_at(both, axis + 1, start, keep=False)


def _clip(value: Any, n: int, default: int) -> int:
    if value is None:
        return default
    return max(0, min(n, int(value) + n if int(value) < 0 else int(value)))


def _replace(dims: list[Dim], axis: int, d: Dim) -> list[Dim]:
    return [d if k == axis else e for k, e in enumerate(dims)]


@rule("split", "split_with_sizes", "chunk", "tensor_split", "split_copy", "split_with_sizes_copy", "unsafe_split",
      "unsafe_chunk", "unsafe_split_with_sizes")  # fmt: skip
def split(call: Call) -> Outcome:
    """Consecutive runs of indices."""
    source = call.tensors[0]
    axis = call.axis("dim", rank=len(source.dims))
    offset, out = 0, []
    for shape in call.shapes:
        out.append(_segment(call, source, axis, offset, offset + shape[axis]))
        offset += shape[axis]
    return tuple(out)


@rule("glu")
def glu(call: Call) -> Outcome:
    """Two halves, multiplied."""
    source = call.tensors[0]
    axis = call.axis("dim", rank=len(source.dims)) if call.get("dim") is not None else len(source.dims) - 1
    half = source.shape[axis] // 2
    left, right = (_segment(call, source, axis, k * half, (k + 1) * half) for k in range(2))
    return Labels(broadcast([left, right]))


@rule("embedding")
def embedding(call: Call) -> Outcome:
    """Rows are looked up by number."""
    weight, indices = call.tensor("weight"), call.tensor("indices")
    pin(weight.dims[0], "looked up by number")
    return Labels([*indices.dims, weight.dims[1]])


@rule("index", "_unsafe_index")
def index_(call: Call) -> Outcome:
    """Indexed dimensions are pinned, the others kept."""
    source = call.tensor("self")
    picks = list(call.get("indices"))
    picks += [None] * (len(source.dims) - len(picks))
    chosen = [k for k, p in enumerate(picks) if p is not None]
    for k in chosen:
        pin(source.dims[k], "looked up by number")
    looked = broadcast([picks[k] for k in chosen])
    if len(call.shapes[0]) != len(looked) + len(source.dims) - len(chosen):
        return unknown(call)
    adjacent = chosen == list(range(chosen[0], chosen[-1] + 1))
    at = chosen[0] if adjacent else 0
    rest = [d for k, d in enumerate(source.dims) if k not in chosen]
    dims = [*rest[:at], *looked, *rest[at:]]
    return Labels(_pin_unequal(dims, call.shapes[0]))


def _pin_unequal(dims: list[Dim], shape: tuple[int, ...]) -> list[Dim]:
    return [d if index.size(flat(d)) == n else index.dim(n, "looked up") for d, n in zip(dims, shape, strict=True)]


@rule("index_select")
def index_select(call: Call) -> Outcome:
    """As indexing one dimension."""
    source = call.tensor("self")
    axis = call.axis("dim", rank=len(source.dims))
    pin(source.dims[axis], "looked up by number")
    return Labels(_replace(source.dims, axis, call.tensor("index").dims[0]))


@rule("gather", "take_along_dim")
def gather(call: Call) -> Outcome:
    """The gathered dimension is pinned, the others unify where they are whole."""
    source, indices = call.tensor("self"), call.tensor("index", "indices")
    axis = call.axis("dim", rank=len(source.dims))
    pin(source.dims[axis], "looked up by number")
    for k, (d, e) in enumerate(zip(source.dims, indices.dims, strict=True)):
        if k == axis:
            continue
        if index.size(flat(d)) == index.size(flat(e)):
            unify(d, e)
        else:
            pin(d, "gathered in part")
            pin(e, "gathered in part")
    return Labels(list(indices.dims))


# --- contractions ----------------------------------------------------------------------------------------------------


@rule("linear", "addmm", "mm", "bmm", "matmul", "baddbmm", "mv", "dot", "vdot", "addmv", "addbmm", "_addmm_activation")
def matmul(call: Call) -> Outcome:
    """Contracted dimensions unify, batch dimensions broadcast, the bias goes with the output."""
    if call.op == "linear":
        left, right, bias = call.tensor("input"), call.tensor("weight"), call.get("bias")
        right = Labels(right.dims[::-1])
    else:
        names = [n for n in ("mat1", "batch1", "mat", "self", "tensor") if n in call.args]
        bias = call.get("self", "input") if call.op in ("addmm", "baddbmm", "addmv", "_addmm_activation") else None
        tensors = [t for t in call.tensors if t is not bias]
        if len(tensors) != 2 or not names or call.op == "addbmm":
            return unknown(call)
        left, right = tensors
    out = Labels(_product(left, right))
    return Labels(broadcast([out, bias])) if isinstance(bias, Labels) and not bias.uniform else out


def _product(left: Labels, right: Labels) -> list[Dim]:
    a, b = list(left.dims), list(right.dims)
    rows = [a[-2]] if len(a) > 1 else []
    columns = [b[-1]] if len(b) > 1 else []
    unify(a[-1], b[-2] if len(b) > 1 else b[-1])
    batch = broadcast([Labels(a[:-2]), Labels(b[:-2])])
    return [*batch, *rows, *columns]


@rule("bilinear", "_trilinear")
def bilinear(call: Call) -> Outcome:
    """y_o = x1_i W_oij x2_j + b_o."""
    if call.op == "_trilinear":
        return unknown(call)
    one, two, weight, bias = (call.get(n) for n in ("input1", "input2", "weight", "bias"))
    unify(one.dims[-1], weight.dims[1])
    unify(two.dims[-1], weight.dims[2])
    if isinstance(bias, Labels):
        unify(bias.dims[0], weight.dims[0])
    return Labels([*broadcast([Labels(one.dims[:-1]), Labels(two.dims[:-1])]), weight.dims[0]])


@rule("einsum")
def einsum(call: Call) -> Outcome:
    """One dimension per letter."""
    equation, tensors = call.get("equation").replace(" ", ""), list(call.get("tensors"))
    inputs, _, output = equation.partition("->")
    terms = inputs.split(",")
    if not output and "->" not in equation:
        letters = [c for c in inputs if c.isalpha()]
        output = ("..." if "..." in inputs else "") + "".join(sorted(c for c in letters if letters.count(c) == 1))
    known: dict[str, Dim] = {}
    spread: list[Labels] = []
    for term, tensor in zip(terms, tensors, strict=True):
        before, dots, after = term.partition("...")
        extra = len(tensor.dims) - len(before) - len(after)
        spread.append(Labels(tensor.dims[len(before) : len(before) + extra]) if dots else Labels([]))
        named = [*zip(before, tensor.dims, strict=False), *zip(after[::-1], tensor.dims[::-1], strict=False)]
        for letter, d in named:
            if flat(known.get(letter, [])) and flat(d):
                unify(known[letter], d)
            elif flat(d) or letter not in known:
                known[letter] = d
    before, dots, after = output.partition("...")
    middle = broadcast(spread) if dots else []
    return Labels([*(known[c] for c in before), *middle, *(known[c] for c in after)])


_CONVOLUTIONS = ("convolution", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d",
                 "conv_transpose3d")  # fmt: skip


@rule(*_CONVOLUTIONS)
def convolution(call: Call) -> Outcome:
    """Channels contract; kernel and space are pinned unless the kernel is one point; g groups are an outer factor."""
    source, weight, bias = call.tensor("input"), call.tensor("weight"), call.get("bias")
    groups = int(call.get("groups", default=1))
    transposed = bool(call.get("transposed", default=False)) or "transpose" in call.op
    space = len(weight.dims) - 2
    lead, channel = list(source.dims[: -space - 1]), source.dims[-space - 1]
    into, out = (weight.dims[0], weight.dims[1]) if transposed else (weight.dims[1], weight.dims[0])
    made = _grouped(call, channel, into, out, groups, transposed)
    if isinstance(bias, Labels) and not bias.uniform:
        unify(bias.dims[0], made)
    dims = [*lead, flat(made)]
    if all(n == 1 for n in weight.shape[2:]) and call.shapes[0][-space:] == source.shape[-space:]:
        return Labels([*dims, *source.dims[-space:]])
    for d in (*source.dims[-space:], *weight.dims[2:]):
        pin(d, "convolved over")
    return Labels([*dims, *(index.dim(n, "convolved over") for n in call.shapes[0][-space:])])


def _grouped(call: Call, channel: Dim, into: Dim, out: Dim, groups: int, transposed: bool) -> Dim:
    """Unify (group, channel in group) of input and weight; the output channels as (group, output in group)."""
    if groups == 1:
        unify(channel, into)
        return out
    source = take(channel, index.size(flat(channel)) // groups)
    whole = into if transposed else out
    weight = take(whole, index.size(flat(whole)) // groups)
    if source is None or weight is None:
        for d in (channel, into, out):
            pin(d, "groups do not divide the factors")
        call.notes.append(f"{call.op}: {groups} groups do not divide the factors: pinned")
        return index.dim(call.shapes[0][1], "groups do not divide the factors")
    group = unify(source[0], weight[0])
    if transposed:
        inner = unify(source[1], weight[1])
        made = [*flat(weight[0]), *flat(out)]
    else:
        inner = unify(source[1], into)
        made = flat(out)
    if not (group and inner):
        pin(weight[0], "groups do not divide the factors")
    return made


@rule("scaled_dot_product_attention", "_scaled_dot_product_flash_attention_for_cpu",
      "_scaled_dot_product_attention_math")  # fmt: skip
def attention(call: Call) -> Outcome:
    """Head size of q and k unifies, length of k and v unifies, the mask broadcasts on the scores."""
    q, k, v, mask = (call.get(n) for n in ("query", "key", "value", "attn_mask"))
    if call.get("enable_gqa", default=False):
        copies = q.shape[-3] // k.shape[-3]
        k, v = (
            Labels([*t.dims[:-3], [*flat(t.dims[-3]), *index.dim(copies)], *t.dims[-2:]]) for t in (k, v)
        )
    unify(q.dims[-1], k.dims[-1])
    unify(k.dims[-2], v.dims[-2])
    lead = broadcast([Labels(t.dims[:-2]) for t in (q, k, v)])
    scores = Labels([*lead, q.dims[-2], k.dims[-2]])
    if isinstance(mask, Labels) and not mask.uniform:
        scores = Labels(broadcast([scores, mask]))
    if call.get("is_causal", default=False):
        pin(q.dims[-2], "causal")
        pin(k.dims[-2], "causal")
    call.hide(*scores.dims)
    out = Labels([*lead, q.dims[-2], v.dims[-1]])
    return out if len(call.shapes) == 1 else (out, *(fresh(s) for s in call.shapes[1:]))


# --- norms, reductions, pools ----------------------------------------------------------------------------------------


@rule("layer_norm", "rms_norm", "native_layer_norm", "_fused_rms_norm")
def layer_norm(call: Call) -> Outcome:
    """Affine parameters go with the normalised dimensions, the statistics live on the others."""
    source = call.tensors[0]
    count = len(call.get("normalized_shape"))
    for name in ("weight", "bias"):
        extra = call.get(name)
        if isinstance(extra, Labels) and not extra.uniform:
            broadcast([Labels(source.dims[-count:]), extra])
    statistics = Labels([*source.dims[:-count], *([] for _ in range(count))])
    call.hidden.append(statistics)
    return _with_statistics(call, Labels(list(source.dims)), statistics)


def _with_statistics(call: Call, out: Labels, statistics: Labels) -> Outcome:
    return out if len(call.shapes) == 1 else (out, *(statistics for _ in call.shapes[1:]))


@rule("batch_norm", "_native_batch_norm_legit_no_training", "_native_batch_norm_legit", "native_batch_norm",
      "instance_norm", "_batch_norm_no_update", "cudnn_batch_norm")  # fmt: skip
def batch_norm(call: Call) -> Outcome:
    """Everything of one number per channel goes with the channel, running statistics too."""
    source = call.tensors[0]
    for name in ("weight", "bias", "running_mean", "running_var"):
        extra = call.get(name)
        if isinstance(extra, Labels) and not extra.uniform:
            unify(extra.dims[0], source.dims[1])
    out = Labels(list(source.dims))
    return out if len(call.shapes) == 1 else (out, *(fresh(s) for s in call.shapes[1:]))


@rule("group_norm", "native_group_norm")
def group_norm(call: Call) -> Outcome:
    """The channel is (group, channel in group); statistics live on (batch, group)."""
    source = call.tensors[0]
    channel, groups = source.dims[1], int(call.get("num_groups", "group"))
    pair = take(channel, index.size(flat(channel)) // groups)
    if pair is None:
        pin(channel, "groups do not divide the factors")
        call.notes.append(f"{call.op}: {groups} groups do not divide the factors: pinned")
        pair = ([], [])
    for name in ("weight", "bias"):
        extra = call.get(name)
        if isinstance(extra, Labels) and not extra.uniform:
            unify(extra.dims[0], channel)
    statistics = Labels([source.dims[0], pair[0]])
    call.hidden.append(statistics)
    return _with_statistics(call, Labels([flat(d) for d in source.dims]), statistics)


@rule("mean", "sum", "prod", "amax", "amin", "all", "any", "logsumexp", "norm", "linalg_vector_norm", "var", "std",
      "var_mean", "std_mean", "max", "min", "argmax", "argmin", "median", "nanmean", "nansum", "aminmax", "mode",
      "count_nonzero")  # fmt: skip
def reduce(call: Call) -> Outcome:
    """Drop the dimensions; where positions are used, pin them."""
    source = call.tensors[0]
    if call.op in ("max", "min") and len(call.tensors) == 2:
        return pointwise(call)
    rank = len(source.dims)
    which = call.get("dim", "axis")
    which = range(rank) if which is None or which == [] else which if isinstance(which, (list, tuple)) else [which]
    gone = {int(k) % max(rank, 1) for k in which}
    if call.op in ("argmax", "argmin") or (call.op in ("max", "min", "median", "mode") and 1 in call.used):
        for k in gone:
            pin(source.dims[k], "positions are used")
    keep = bool(call.get("keepdim", default=False))
    dims = [[] if k in gone else d for k, d in enumerate(source.dims) if keep or k not in gone]
    return _outputs(call, [Labels(list(dims)) for _ in call.shapes])


@rule("topk", "sort", "argsort", "kthvalue", "msort")
def order(call: Call) -> Outcome:
    """Values forget their order, positions do not."""
    source = call.tensors[0]
    axis = call.axis("dim", rank=len(source.dims)) if call.get("dim") is not None else len(source.dims) - 1
    if call.op == "argsort" or 1 in call.used:
        pin(source.dims[axis], "positions are used")
    dims = [
        index.dim(n, "ordered") if k == axis else d
        for k, (n, d) in enumerate(zip(call.shapes[0], source.dims, strict=False))
    ]
    return _outputs(call, [Labels(list(dims)) for _ in call.shapes])


@rule("cumsum", "cumprod", "logcumsumexp", "cummax", "cummin", "flip", "roll", "tril", "triu")
def directed(call: Call) -> Outcome:
    """Pin only the dimensions along which the operation runs."""
    source = call.tensors[0]
    rank = len(source.dims)
    which = [-2, -1] if call.op in ("tril", "triu") else call.get("dim", "dims", default=list(range(rank)))
    for k in which if isinstance(which, (list, tuple)) else [which]:
        pin(source.dims[int(k) % rank], f"{call.op} runs along it")
    return _outputs(call, [Labels([flat(d) for d in source.dims]) for _ in call.shapes])


_POOLS = [f"{kind}_pool{n}d{end}" for n in (1, 2, 3) for end in ("", "_with_indices")
          for kind in ("max", "avg", "adaptive_avg", "_adaptive_avg", "adaptive_max", "lp")]  # fmt: skip


@rule(*_POOLS)
def pool(call: Call) -> Outcome:
    """Channels are kept; space is pinned unless it is pooled away whole."""
    source, shape = call.tensors[0], call.shapes[0]
    space = int(call.op.split("pool")[1][0])
    if prod(shape[-space:]) == 1 and "adaptive" in call.op:
        dims = [*source.dims[:-space], *([] for _ in range(space))]
    else:
        dims = _pin_changed(source, shape, space, "pooled over")
    return _outputs(call, [Labels(list(dims)) for _ in call.shapes])


_UPSAMPLINGS = [f"{stem}{end}" for end in ("", "_aa")
                for stem in ("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_linear1d",
                             "upsample_bilinear2d", "upsample_trilinear3d", "upsample_bicubic2d",
                             "_upsample_nearest_exact1d", "_upsample_nearest_exact2d",
                             "_upsample_nearest_exact3d", "_upsample_bilinear2d", "_upsample_bicubic2d")]  # fmt: skip


@rule(*_UPSAMPLINGS, "im2col", "unfold", "grid_sampler_2d", "col2im")
def upsample(call: Call) -> Outcome:
    """Batch and channel are kept, space is pinned."""
    source, shape = call.tensors[0], call.shapes[0]
    if call.op in ("im2col", "unfold", "col2im", "grid_sampler_2d"):
        return unknown(call)
    return Labels(_pin_changed(source, shape, len(shape) - 2, "resampled"))


@rule("pixel_shuffle", "pixel_unshuffle")
def pixel_shuffle(call: Call) -> Outcome:
    """(c r s, h, w) <-> (c, h r, w s)."""
    source = call.tensors[0]
    *lead, channel, height, width = source.dims
    r = int(call.get("upscale_factor", "downscale_factor"))
    if call.op == "pixel_shuffle":
        outer = take(channel, r * r)
        inner = None if outer is None else take(outer[1], r)
        if outer is None or inner is None:
            return unknown(call)
        return Labels([*lead, outer[0], [*flat(height), *inner[0]], [*flat(width), *inner[1]]])
    rows, columns = take(height, r), take(width, r)
    if rows is None or columns is None:
        return unknown(call)
    return Labels([*lead, [*flat(channel), *rows[1], *columns[1]], rows[0], columns[0]])


# --- constants -------------------------------------------------------------------------------------------------------


@rule("zeros", "ones", "full", "zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full",
      "scalar_tensor", "empty", "empty_like", "new_empty", "fill", "empty_permuted", "zero")  # fmt: skip
def uniform(call: Call) -> Outcome:
    """A tensor of one value is invariant under everything."""
    return fresh(call.shapes[0], uniform=True)


@rule("arange", "linspace", "logspace", "eye", "tril_indices", "triu_indices", "hann_window", "rand", "randn",
      "rand_like", "randn_like", "bernoulli", "multinomial", "one_hot")  # fmt: skip
def valued(call: Call) -> Outcome:
    """A tensor whose entries differ by position."""
    return Labels([index.dim(n, f"{call.op} counts positions", constant=True) for n in call.shapes[0]])
