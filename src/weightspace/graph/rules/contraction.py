"""Rules of operations that sum over products: linear maps, convolutions, attention."""

from __future__ import annotations

from weightspace.graph import atoms
from weightspace.graph.atoms import Dim, flat, pin, take, unify
from weightspace.graph.rules.call import Call, Labels, Outcome, broadcast, fresh, rule, unknown


@rule(
    "linear",
    "addmm",
    "mm",
    "bmm",
    "matmul",
    "baddbmm",
    "mv",
    "dot",
    "vdot",
    "addmv",
    "addbmm",
    "_addmm_activation",
)
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
    out = Labels(_product(call, left, right))
    return Labels(broadcast([out, bias])) if isinstance(bias, Labels) and not bias.uniform else out


def _product(call: Call, left: Labels, right: Labels) -> list[Dim]:
    """The terms of the sum are a tensor too: in w w^T a column stands beside two rows."""
    a, b = list(left.dims), list(right.dims)
    rows = [a[-2]] if len(a) > 1 else []
    columns = [b[-1]] if len(b) > 1 else []
    unify(a[-1], b[-2] if len(b) > 1 else b[-1])
    batch = broadcast([Labels(a[:-2]), Labels(b[:-2])])
    call.hide(*batch, *rows, *columns, a[-1])
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
    lead = broadcast([Labels(one.dims[:-1]), Labels(two.dims[:-1])])
    call.hide(*lead, *weight.dims)
    return Labels([*lead, weight.dims[0]])


@rule("cdist", "_cdist_forward", "_euclidean_dist")
def distances(call: Call) -> Outcome:
    """Of every row of one matrix to every row of another."""
    one, two = call.tensors
    return Labels(_product(call, one, Labels([*two.dims[:-2], *two.dims[:-3:-1]])))


@rule("outer", "ger")
def outer(call: Call) -> Outcome:
    """Every entry of one vector times every one of another."""
    one, two = call.tensors
    return Labels([one.dims[0], two.dims[0]])


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
    middle = broadcast(spread) if any(s.dims for s in spread) else []
    call.hide(*middle, *known.values())
    middle = middle if dots else []
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
    call.hide(*lead, *((into, out) if transposed else (made, into)))
    dims = [*lead, flat(made)]
    if all(n == 1 for n in weight.shape[2:]) and call.shapes[0][-space:] == source.shape[-space:]:
        return Labels([*dims, *source.dims[-space:]])
    for d in (*source.dims[-space:], *weight.dims[2:]):
        pin(d, "convolved over")
    return Labels([*dims, *(atoms.dim(n, "convolved over") for n in call.shapes[0][-space:])])


def _grouped(call: Call, channel: Dim, into: Dim, out: Dim, groups: int, transposed: bool) -> Dim:
    """Unify (group, channel in group) of input and weight; the output channels as (group, output in group)."""
    if groups == 1:
        unify(channel, into)
        return out
    source = take(channel, atoms.size(flat(channel)) // groups)
    whole = into if transposed else out
    weight = take(whole, atoms.size(flat(whole)) // groups)
    if source is None or weight is None:
        for d in (channel, into, out):
            pin(d, "groups do not divide the factors")
        call.notes.append(f"{call.op}: {groups} groups do not divide the factors: pinned")
        return atoms.dim(call.shapes[0][1], "groups do not divide the factors")
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
        k, v = (Labels([*t.dims[:-3], [*flat(t.dims[-3]), *atoms.dim(copies)], *t.dims[-2:]]) for t in (k, v))
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
    call.hide(*scores.dims, q.dims[-1])
    call.hide(*scores.dims, v.dims[-1])
    out = Labels([*lead, q.dims[-2], v.dims[-1]])
    return out if len(call.shapes) == 1 else (out, *(fresh(s) for s in call.shapes[1:]))
