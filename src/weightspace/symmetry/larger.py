"""A module with more units: its parameters resized where axes of units grow, and its layers told of it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from weightspace.graph.atoms import Atom, Dim, blocks, flat, parts
from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net
from weightspace.symmetry.read import Draft

__all__ = ["enlarged"]


def enlarged(net: Net, draft: Draft, sizes: Mapping[str, int]) -> nn.Module:
    """A module of the architecture of `net` whose axes have these sizes, by name; its numbers mean nothing.

    Known layers (linear, convolution, norms, embedding, attention, recurrent) are told of their new sizes. A module
    whose own code holds sizes as numbers is not: export fails then, or finds sizes that do not fit.
    """
    module, resized = net.module(), _Resized(draft, sizes)
    names = {id(t): name for name, t in [*module.named_parameters(), *module.named_buffers()]}
    made: dict[int, Tensor] = {}
    for part in module.modules():
        for key, old in [*part._parameters.items(), *part._buffers.items()]:
            if old is None or names[id(old)] not in draft.reading.named:
                continue
            shape = resized.shape(names[id(old)])
            if shape == tuple(old.shape):
                continue
            if id(old) not in made:
                new = torch.ones(shape, dtype=old.dtype, device=old.device)
                made[id(old)] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
            setattr(part, key, made[id(old)])
    for prefix, part in module.named_modules():
        _told(part, prefix, resized)
    return module


class _Resized:
    """New sizes of dimensions, from those of the axes in them."""

    def __init__(self, draft: Draft, sizes: Mapping[str, int]) -> None:
        self.named, self.names, self.sizes = draft.reading.named, draft.names, sizes

    def shape(self, name: str) -> tuple[int, ...]:
        """Of every dimension the sum of the spans in it, each a product of axes."""
        found = blocks(self.named[name].dims)
        each = [{(span.start, span.strides): span.leaves for span in spans} for spans in zip(*found, strict=True)]
        return tuple(sum(math.prod(map(self.atom, leaves)) for leaves in spans.values()) for spans in each)

    def size(self, dim: Dim) -> int:
        return math.prod(self.atom(atom) for atom in flat(dim))

    def atom(self, atom: Atom) -> int:
        if atom.parts is not None:
            return sum(self.size(part) for part in parts(atom))
        return self.sizes.get(self.names.get(atom, ""), atom.size)

    def leading(self, dim: Dim, count: int) -> int:
        """The new number of the `count` outermost indices of a dimension, such as groups of channels."""
        new, old = 1, 1
        for atom in flat(dim):
            if old == count:
                break
            new, old = new * self.atom(atom), old * atom.size
        if old != count:
            raise WeightspaceError(f"{count} groups do not divide the axes that grow; give the larger module as to=")
        return new


def _told(part: nn.Module, prefix: str, resized: _Resized) -> None:
    """Set the sizes that a layer keeps beside its parameters."""
    weight = getattr(part, "weight", None) if isinstance(part, _SIMPLE) else None
    named = resized.named.get(f"{prefix}.weight" if prefix else "weight")
    if isinstance(part, nn.Linear) and weight is not None:
        part.out_features, part.in_features = weight.shape
    elif isinstance(part, nn.modules.conv._ConvNd) and weight is not None:
        _convolution(part, weight, named.dims if named else [], resized)
    elif isinstance(part, nn.modules.batchnorm._NormBase):
        held = weight if weight is not None else part.running_mean
        part.num_features = part.num_features if held is None else len(held)
    elif isinstance(part, nn.LayerNorm | nn.RMSNorm) and weight is not None:
        part.normalized_shape = tuple(weight.shape)
    elif isinstance(part, nn.GroupNorm) and weight is not None:
        if part.num_groups > 1 and named is not None:
            part.num_groups = resized.leading(named.dims[0], part.num_groups)
        part.num_channels = len(weight)
    elif isinstance(part, nn.Embedding) and weight is not None:
        part.num_embeddings, part.embedding_dim = weight.shape
    elif isinstance(part, nn.Bilinear) and weight is not None:
        part.out_features, part.in1_features, part.in2_features = weight.shape
    elif isinstance(part, nn.PReLU) and weight is not None:
        part.num_parameters = len(weight)
    elif isinstance(part, nn.RNNBase):
        held = dict(part.named_parameters())
        part.input_size, part.hidden_size = (held[f"weight_{key}_l0"].shape[1] for key in ("ih", "hh"))
    elif isinstance(part, nn.MultiheadAttention):
        _attention(part, prefix, resized)


_SIMPLE = (nn.Linear, nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm,
           nn.Embedding, nn.Bilinear, nn.PReLU)  # fmt: skip


def _convolution(part: nn.modules.conv._ConvNd, weight: Tensor, dims: list[Dim], resized: _Resized) -> None:
    if part.groups > 1 and dims:
        part.groups = resized.leading(dims[0], part.groups)
    first, second = weight.shape[:2]
    if part.transposed:
        part.in_channels, part.out_channels = first, second * part.groups
    else:
        part.out_channels, part.in_channels = first, second * part.groups


def _attention(part: nn.MultiheadAttention, prefix: str, resized: _Resized) -> None:
    out = resized.named.get(f"{prefix}.out_proj.weight" if prefix else "out_proj.weight")
    if out is not None:
        part.num_heads = resized.leading(out.dims[1], part.num_heads)
    part.embed_dim = part.out_proj.weight.shape[0]
    part.head_dim = part.embed_dim // part.num_heads
    if part.in_proj_weight is not None:
        part.kdim = part.vdim = part.embed_dim
    else:
        part.kdim, part.vdim = part.k_proj_weight.shape[1], part.v_proj_weight.shape[1]
    for name in ("in_features", "out_features"):
        setattr(part.out_proj, name, part.out_proj.weight.shape[1 if name == "in_features" else 0])
