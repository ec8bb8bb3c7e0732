"""Rules of norms, reductions, pools and of tensors that are made from nothing."""

from __future__ import annotations

from math import prod

from weightspace.graph import atoms
from weightspace.graph.atoms import flat, pin, take, unify
from weightspace.graph.rules.call import (
    Call,
    Labels,
    Outcome,
    broadcast,
    fresh,
    give_up,
    look_up,
    outputs,
    pointwise,
    rule,
    unknown,
)
from weightspace.graph.rules.shape import pin_changed


@rule("softmax", "_softmax", "log_softmax", "_log_softmax", "_safe_softmax", "softmin")
def softmax(call: Call) -> Outcome:
    """Same dimensions; the normaliser lives on the others."""
    source = call.tensors[0]
    axis = call.axis("dim", rank=len(source.dims))
    call.hide(*(d for k, d in enumerate(source.dims) if k != axis))
    return Labels(list(source.dims))


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


@rule("prelu")
def prelu(call: Call) -> Outcome:
    """One slope for all, or one for every channel."""
    source, slope = call.tensor("self"), call.tensor("weight")
    if flat(slope.dims[0] if slope.dims else []):
        unify(slope.dims[0], source.dims[1] if len(source.dims) > 1 else source.dims[0])
    return Labels(list(source.dims))


@rule("group_norm", "native_group_norm")
def group_norm(call: Call) -> Outcome:
    """The channel is (group, channel in group); statistics live on (batch, group)."""
    source = call.tensors[0]
    channel, groups = source.dims[1], int(call.get("num_groups", "group"))
    pair = take(channel, atoms.size(flat(channel)) // groups)
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
      "count_nonzero", "nanmedian")  # fmt: skip
def reduce(call: Call) -> Outcome:
    """Drop the dimensions; positions point at them."""
    source = call.tensors[0]
    if call.op in ("max", "min") and len(call.tensors) == 2:
        return pointwise(call)
    rank = len(source.dims)
    which = call.get("dim", "axis", default=-1 if call.op == "mode" else None)
    which = range(rank) if which is None or which == [] else which if isinstance(which, (list, tuple)) else [which]
    gone = {int(k) % max(rank, 1) for k in which}
    keep = bool(call.get("keepdim", default=False))
    dims = [[] if k in gone else d for k, d in enumerate(source.dims) if keep or k not in gone]
    points = [atom for k in sorted(gone) for atom in flat(source.dims[k])]
    places = Labels(list(dims), points=points)
    if call.op in ("argmax", "argmin"):
        return places
    paired = call.op in ("max", "min", "median", "nanmedian", "mode") and 1 in call.used
    return outputs(call, [places if paired and k == 1 else Labels(list(dims)) for k in range(len(call.shapes))])


@rule("topk", "sort", "argsort", "kthvalue", "msort")
def order(call: Call) -> Outcome:
    """Values forget their order, positions do not."""
    source = call.tensors[0]
    axis = call.axis("dim", rank=len(source.dims)) if call.get("dim") is not None else len(source.dims) - 1
    dims = [
        atoms.dim(n, "ordered") if k == axis else d
        for k, (n, d) in enumerate(zip(call.shapes[0], source.dims, strict=False))
    ]
    if call.op == "kthvalue" and not call.get("keepdim", default=False):
        dims = [d for k, d in enumerate(source.dims) if k != axis]
    values, places = Labels(list(dims)), Labels(list(dims), points=flat(source.dims[axis]))
    if call.op == "argsort":
        return places
    return values if len(call.shapes) == 1 else (values, places if 1 in call.used else values)


@rule("cumsum", "cumprod", "logcumsumexp", "cummax", "cummin", "flip", "roll", "tril", "triu", "_fft_r2c", "_fft_c2c",
      "_fft_c2r")  # fmt: skip
def directed(call: Call) -> Outcome:
    """Pin only the dimensions along which the operation runs."""
    source = call.tensors[0]
    rank = len(source.dims)
    which = [-2, -1] if call.op in ("tril", "triu") else call.get("dim", "dims", default=list(range(rank)))
    for k in which if isinstance(which, (list, tuple)) else [which]:
        if call.op in ("flip", "roll"):
            give_up(call, [source.dims[int(k) % rank]], f"{call.op} takes indices elsewhere")
        pin(source.dims[int(k) % rank], f"{call.op} runs along it")
    dims = [
        flat(d) if atoms.size(flat(d)) == n else atoms.dim(n, f"{call.op} runs along it")
        for d, n in zip(source.dims, call.shapes[0], strict=True)
    ]
    return outputs(call, [Labels(list(dims)) for _ in call.shapes])


@rule("diff")
def difference(call: Call) -> Outcome:
    """Neighbours along one dimension are subtracted: it is pinned, and shorter after."""
    source = call.tensors[0]
    axis = int(call.get("dim", default=-1)) % len(source.dims)
    pin(source.dims[axis], "diff runs along it")
    shorter = atoms.dim(call.shapes[0][axis], "diff runs along it")
    return Labels([shorter if k == axis else d for k, d in enumerate(source.dims)])


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
        dims = pin_changed(source, shape, space, "pooled over")
    return outputs(call, [Labels(list(dims)) for _ in call.shapes])


_UPSAMPLINGS = [f"{stem}{end}" for end in ("", "_aa")
                for stem in ("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_linear1d",
                             "upsample_bilinear2d", "upsample_trilinear3d", "upsample_bicubic2d",
                             "_upsample_nearest_exact1d", "_upsample_nearest_exact2d",
                             "_upsample_nearest_exact3d", "_upsample_bilinear2d", "_upsample_bicubic2d")]  # fmt: skip


@rule(*_UPSAMPLINGS)
def upsample(call: Call) -> Outcome:
    """Batch and channel are kept, space is pinned."""
    source, shape = call.tensors[0], call.shapes[0]
    return Labels(pin_changed(source, shape, len(shape) - 2, "resampled"))


@rule("im2col")
def patches(call: Call) -> Outcome:
    """(c, h, w) -> (c places in a patch, patches): channels are kept, space is pinned."""
    source, shape = call.tensors[0], call.shapes[0]
    *lead, channel = source.dims[:-2]
    pin_changed(source, source.shape, 2, "cut into patches")
    places = atoms.dim(shape[-2] // source.shape[-3], "cut into patches")
    return Labels([*lead, [*flat(channel), *places], atoms.dim(shape[-1], "cut into patches")])


@rule("unfold", "unfold_copy")
def windows(call: Call) -> Outcome:
    """Windows along one dimension, which is pinned, and places in a window in a new last one."""
    source, shape = call.tensors[0], call.shapes[0]
    axis = call.axis("dimension", rank=len(source.dims))
    pin(source.dims[axis], "windows run along it")
    dims = [atoms.dim(shape[k], "windows run along it") if k == axis else d for k, d in enumerate(source.dims)]
    return Labels([*dims, atoms.dim(shape[-1], "windows run along it")], source.uniform)


@rule("grid_sampler_2d", "grid_sampler_3d")
def sampled(call: Call) -> Outcome:
    """(batch, channel, space) at the points of a grid (batch, space, 2): space is pinned, the coordinates too."""
    source, grid = call.tensor("input"), call.tensor("grid")
    pin(grid.dims[-1], "coordinates")
    for d in source.dims[2:]:
        pin(d, "looked up by number")
    batch = broadcast([Labels([source.dims[0]]), Labels([grid.dims[0]])])
    return Labels([*batch, source.dims[1], *grid.dims[1:-1]])


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


@rule("zeros", "ones", "full", "zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full",
      "scalar_tensor", "empty", "empty_like", "new_empty", "fill", "empty_permuted", "zero")  # fmt: skip
def uniform(call: Call) -> Outcome:
    """A tensor of one value is invariant under everything."""
    return fresh(call.shapes[0], uniform=True)


@rule("arange")
def arange(call: Call) -> Outcome:
    """0, 1, 2, .. in their places, where nothing else is asked for."""
    made = valued(call)
    assert isinstance(made, Labels)
    made.counts = call.get("start", default=0) == 0 and call.get("step", default=1) == 1
    return made


@rule("one_hot", reads=("self",))
def one_hot(call: Call) -> Outcome:
    """A new last dimension, indexed by the entries: what positions point at."""
    source, classes = call.tensors[0], call.shapes[0][-1]
    new = atoms.dim(classes)
    look_up(new, source)
    return Labels([*source.dims, new])


@rule("linspace", "logspace", "eye", "tril_indices", "triu_indices", "hann_window", "rand", "randn",
      "rand_like", "randn_like", "bernoulli", "multinomial")  # fmt: skip
def valued(call: Call) -> Outcome:
    """A tensor whose entries differ by position."""
    return Labels([atoms.dim(n, f"{call.op} counts positions", constant=True) for n in call.shapes[0]])
