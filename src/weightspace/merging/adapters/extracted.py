"""A low-rank adapter out of a fine-tune and its base: the SVD of the difference of every weight."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from weightspace.checkpoint import reader
from weightspace.checkpoint.reader import Checkpoint
from weightspace.jobs.progress import Progress, silent
from weightspace.merging.adapters.adapted import config_of, correspond, tied_layers
from weightspace.merging.adapters.lora_folder import PREFIX, Kind, NewAdapter, configured, named
from weightspace.merging.adapters.low_rank import LowRank
from weightspace.net.errors import WeightspaceError
from weightspace.net.public import public
from weightspace.net.weights import dtypes_of, shapes_of

__all__ = ["extract"]

_EMBEDDING = re.compile(r"(?!embed_out).*(embed|wte|wpe|shared).*")
_OF_CONV1D = {"c_attn", "c_proj", "c_fc", "q_attn"}
_CONV1D_MODELS = {"gpt2", "imagegpt", "openai-gpt", "decision_transformer", "clvp"}
_DENSE = 1024  # the smaller side of matrices whose whole SVD is taken
_BESIDE, _SWEEPS = 16, 6  # more vectors than the rank, and products with the matrix, of larger ones


@dataclass
class _Found:
    """What has been found of a difference so far."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    ranks: dict[str, int] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    whole: dict[str, list[str]] = field(default_factory=dict)  # modules that are saved whole -> why
    biases: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


@public
def extract(
    fine_tuned: str | os.PathLike[str] | Mapping[str, Tensor],
    base: str | os.PathLike[str] | Mapping[str, Tensor],
    rank: int | None = None,
    share: float | None = None,
    *,
    transposed: bool | None = None,
    progress: Progress = silent,
) -> NewAdapter:
    """The adapter B A that is nearest to fine_tuned - base: of each weight the SVD of the difference, cut.

    `rank`: of every layer at most; `share`: in place of it, each layer has the least rank that keeps this share of the
    squared norm. `errors[layer]` is |difference - B A| / |difference|, 0 to rounding where the difference has that
    rank. Biases that differ go to the adapter as they are; modules whose other tensors differ, or that the base has not
    or has in another shape (norms, heads), are saved whole (modules_to_save); `left` names what PEFT cannot hold.
    `transposed`: weights are (inputs, outputs), as GPT-2's; None reads it off the configuration beside the files. One
    tensor of each network is in memory at a time. Raises `WeightspaceError` where nothing differs, for NaN or infinity,
    and unless one of rank and share is given.

    >>> import torch
    >>> from weightspace.merging.adapters.extracted import extract
    >>> base = {"q.weight": torch.zeros(3, 4)}
    >>> found = extract({"q.weight": torch.ones(3, 4)}, base, rank=1)
    >>> found.config["target_modules"], found.errors["q"] < 1e-6
    (['q'], True)
    """
    if (rank is None) == (share is None):
        raise WeightspaceError("give a rank, or the share of the squared norm to keep")
    if (rank is not None and rank < 1) or (share is not None and not 0 < share <= 1):
        raise WeightspaceError(f"rank {rank}, share {share}; give a rank of 1 or more, or a share above 0, at most 1")
    new, old = (x if isinstance(x, Mapping) else reader.read(x) for x in (fine_tuned, base))
    shapes, kinds, before = shapes_of(new), dtypes_of(new), shapes_of(old)
    names = correspond(shapes, before)
    if not any(other is not None and other in before for other in names.values()):
        raise WeightspaceError("the two networks share no tensor; give a fine-tuned network and the base of it")
    turned = _is_conv1d(new, old) if transposed is None else transposed
    found = _Found()
    for k, name in enumerate(shapes):
        progress("the SVD of every difference", k, len(shapes))
        other = names.get(name)
        if other is None or before[other] != shapes[name]:
            _keep(found, name, "the base has not" if other is None else "has another shape in the base")
        elif kinds[name].is_floating_point:
            _compare(found, name, new[name], old[other], rank or 0, share, turned)
        elif not torch.equal(new[name], old[other]):
            _keep(found, name, "differs")
    if not found.ranks:
        raise WeightspaceError("no weight of the two networks differs; there is nothing to extract")
    _save_whole(found, new)
    for layer in found.biases:
        inner = f"{layer}.base_layer" if layer in found.ranks else layer
        found.tensors[f"{PREFIX}{inner}.bias"] = new[f"{layer}.bias"].detach().cpu().contiguous()
    gone = [name for name in before if name not in {*names.values()}]
    notes = [f"the fine-tune has not {', '.join(gone[:3])}"] if gone else []
    notes += [f"{module!r} is saved whole: {why[0]}" for module, why in found.whole.items()]
    if isinstance(old, Checkpoint):
        notes += _tied(found, shapes, config_of(old.path), before)
    path = str(old.path) if isinstance(old, Checkpoint) else None
    config = configured(found.ranks, path, transposed=turned, saved=tuple(found.whole))
    config["bias"] = "all" if found.biases else "none"
    return NewAdapter(config, found.tensors, found.errors, tuple(found.left), tuple(notes))


def _tied(found: _Found, shapes: Mapping[str, torch.Size], config: Mapping[str, Any], base: Iterable[str]) -> list[str]:
    """A note of layers that are the embedding and the head at once, of which an adapter changes one."""
    embeds = {name for name in found.ranks if _EMBEDDING.fullmatch(name.rpartition(".")[2])}
    rows = {name: shapes[f"{name}.weight"][0] if name in embeds else 0 for name in found.ranks}
    return [
        f"{layer!r} is embedding and head at once (tie_word_embeddings), and an adapter changes one of them: it is not "
        "the fine-tune, and is not merged into the base"
        for layer in tied_layers(config, rows, base)
    ]


def _compare(found: _Found, name: str, new: Tensor, old: Tensor, rank: int, share: float | None, turned: bool) -> None:
    """Look at one tensor of both, of one shape."""
    if torch.equal(new, old):
        return
    difference = new.detach().cpu().double() - old.detach().cpu().double()
    if not bool(difference.isfinite().all()):
        raise WeightspaceError(f"NaN or infinity in {name!r} of one of the two networks; give finite weights")
    layer, _, last = name.rpartition(".")
    if last == "bias" and layer:
        found.biases.append(layer)
    elif last == "weight" and layer and difference.dim() > 1:
        kind = _kind(layer, difference)
        flat = difference.flatten(1)
        turn = kind == "embedding" or (kind == "linear" and turned and _reads_turned(layer))
        update, error = _nearest(flat.mT if turn else flat, rank, share)
        found.ranks[layer], found.errors[layer] = update.rank, error
        dtype = torch.float64 if new.dtype == torch.float64 else torch.float32
        found.tensors |= named(layer, update, kind, tuple(new.shape[2:]), dtype)
    else:
        _keep(found, name, f"{last!r} differs and is no matrix")


def _kind(layer: str, weight: Tensor) -> Kind:
    if weight.dim() > 2:
        return "convolution"
    return "embedding" if _EMBEDDING.fullmatch(layer.rpartition(".")[2]) else "linear"


def _reads_turned(layer: str) -> bool:
    return layer.rpartition(".")[2] in _OF_CONV1D


def _is_conv1d(*networks: Mapping[str, Tensor]) -> bool:
    """Whether the configuration beside one of the networks is of a model whose weights are (inputs, outputs)."""
    return any(isinstance(n, Checkpoint) and config_of(n.path).get("model_type") in _CONV1D_MODELS for n in networks)


def _nearest(matrix: Tensor, rank: int, share: float | None) -> tuple[LowRank, float]:
    """The nearest matrix of a rank, or of the least rank that keeps a share, in balanced factors, and its error."""
    if share is None and min(matrix.shape) > _DENSE and 4 * (rank + _BESIDE) < min(matrix.shape):
        u, s, v = _leading(matrix, rank)
    else:
        u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    kept = min(rank, len(s))
    if share is not None:
        lost = s.square().flip(0).cumsum(0).flip(0)  # the squared norm of this singular value and all below
        kept = max(1, int((lost > (1 - share) * lost[0] + 1e-14 * lost[0]).sum()))
    root = s[:kept].sqrt()
    found = LowRank(u[:, :kept] * root, root[:, None] * v[:kept])
    return found, float((matrix - found.dense()).norm() / matrix.norm())


def _leading(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The leading singular vectors by subspace iteration (Halko, Martinsson and Tropp, 2011)."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(matrix.shape[1], rank + _BESIDE, generator=generator, dtype=matrix.dtype)
    for _ in range(_SWEEPS):
        outer = torch.linalg.qr(matrix @ basis)[0]
        basis = torch.linalg.qr(matrix.mT @ outer)[0]
    u, s, v = torch.linalg.svd(matrix @ basis, full_matrices=False)
    return u, s, v @ basis.mT


def _keep(found: _Found, name: str, why: str) -> None:
    """Save the module of a tensor whole, or tell that it has none."""
    module = name.rpartition(".")[0]
    if module:
        found.whole.setdefault(module, []).append(f"{name!r} {why}")
    else:
        found.left.append(f"{name!r} {why}, and belongs to no module")


def _save_whole(found: _Found, new: Mapping[str, Tensor]) -> None:
    """The tensors of modules that are saved whole, where no layer below one has an update of its own."""
    for module in list(found.whole):
        below = [layer for layer in found.ranks if layer.startswith(f"{module}.") or layer == module]
        if below:
            found.left += [f"{why}, beside the update of {below[0]!r}" for why in found.whole.pop(module)]
            continue
        own = [name for name in new if name.startswith(f"{module}.")]
        found.biases = [layer for layer in found.biases if layer != module and not layer.startswith(f"{module}.")]
        found.tensors |= {PREFIX + name: new[name].detach().cpu().contiguous() for name in own}
