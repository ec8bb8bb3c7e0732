"""A base network with a low-rank adapter added, W + s B A, as tensors that are computed when they are read."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from weightspace.checkpoint import files, reader, writer
from weightspace.checkpoint.reader import Checkpoint
from weightspace.checkpoint.refusal import refusal, some
from weightspace.merging.adapters.lora_folder import LoRA, lora
from weightspace.merging.adapters.low_rank import LowRank
from weightspace.merging.names import TIED
from weightspace.merging.part import entries
from weightspace.net.errors import WeightspaceError
from weightspace.net.public import public
from weightspace.net.weights import dtypes_of, shapes_of

__all__ = ["Adapted", "config_of", "correspond", "into_base", "tied_layers"]

_HEADED = re.compile(r"ForCausalLM|LMHead|DoubleHeads|ForConditionalGeneration|ForMaskedLM|ForPreTraining")
_HEADLESS = re.compile(r"For\w*Classification|ForQuestionAnswering|ForMultipleChoice")


class _Change(NamedTuple):
    """What is added to a weight: the update of a layer, transposed where the weight is (inputs, outputs)."""

    layer: str
    transposed: bool


@public
class Adapted(Mapping[str, Tensor]):
    """The tensors of a base with the updates of an adapter. Made by `into_base`.

    A mapping as `Checkpoint` is: `shapes` and `dtypes` read no data, `flat` reads a part of one tensor. Names and
    dtypes are those of the base; each weight is W + s B A in float32 (float64 where W is), rounded once. `notes`: what
    was added or replaced.
    """

    def __init__(self, adapter: LoRA, base: Mapping[str, Tensor]) -> None:
        self.adapter, self.base = adapter, base
        self.metadata: dict[str, str] = dict(getattr(base, "metadata", {}))
        self._shapes, self._dtypes = shapes_of(base), dtypes_of(base)
        names = correspond([f"{layer}.weight" for layer in adapter.layers], self._shapes)
        self._saved = self._whole(names)
        stored, kinds = adapter.file.shapes, adapter.file.dtypes
        self._all_shapes = {**self._shapes, **{name: stored[file] for name, file in self._saved.items()}}
        new = {name: kinds[file] for name, file in self._saved.items() if name not in self._dtypes}
        self._all_dtypes = {**self._dtypes, **new}
        self._changes: dict[str, _Change] = {}
        self._biases: dict[str, str] = {}
        for layer in adapter.layers:
            name = names.get(f"{layer}.weight")
            if name is None:
                raise _missing(adapter, layer, self._shapes)
            self._changes[name] = _Change(layer, self._turned(layer, name))
            if adapter.layers[layer].bias:
                bias = f"{name.removesuffix('weight')}bias"
                if bias not in self._all_shapes:
                    raise refusal(adapter.path, f"adds to a bias of {layer!r}, and the base has no {bias!r}", _GIVE)
                self._biases[bias] = layer
        self.notes = tuple(self._told())

    def _turned(self, layer: str, name: str) -> bool:
        """Whether the weight is (inputs, outputs), checked by its shape."""
        entry, shapes = self.adapter.layers[layer], self.adapter.file.shapes
        outputs, inputs = shapes[entry.b][0], tuple(shapes[entry.a][1:])
        shape = tuple(self._all_shapes[name])
        if not self._dtypes[name].is_floating_point:
            raise refusal(self.adapter.path, f"{name!r} of the base is {self._dtypes[name]}, quantised", _GIVE)
        turned = (*inputs, outputs)
        free = entry.kind == "linear" and bool(self.adapter.config.get("fan_in_fan_out"))
        if shape == turned and (entry.kind == "embedding" or free):
            if entry.magnitude and entry.kind == "embedding":
                raise refusal(
                    self.adapter.path, f"rescales the embedding {layer!r} (DoRA)", "merge it where it was made"
                )
            return True
        if shape != (outputs, *inputs) or entry.kind == "embedding":
            seen = f"changes {layer!r} by {(outputs, *inputs)}, and {name!r} of the base is {shape}"
            raise refusal(self.adapter.path, seen, _GIVE)
        return False

    def _whole(self, names: Mapping[str, str]) -> dict[str, str]:
        """The tensors that replace others or are new: name here -> name in the adapter's file."""
        there, here = next((pair for pair in names.items() if pair[0] != pair[1]), ("", ""))
        found = {}
        for name, stored in self.adapter.saved.items():
            if name not in self._shapes and there.endswith(here):
                drop = there.removesuffix(here)
                moved = name.removeprefix(drop)
            else:
                moved = here.removesuffix(there) + name if here.endswith(there) else name
            target = moved if moved in self._shapes else name
            found[target] = stored
        return found

    def _told(self) -> Iterator[str]:
        new = [name for name in self._saved if name not in self._shapes]
        old = [name for name in self._saved if name in self._shapes]
        if old:
            yield f"replaced by tensors of the adapter: {some(old)}"
        if new:
            yield f"new, from the adapter: {some(new)}"
        if tied := [name for name, change in self._changes.items() if _is_embedding(self.adapter, change.layer)]:
            yield f"{some(tied)} are embeddings; a head that shares their weights changes with them"

    def __getitem__(self, name: str) -> Tensor:
        shape = self._all_shapes[name]
        return self.flat(name, 0, shape.numel()).reshape(shape)

    def flat(self, name: str, start: int, stop: int, out: Tensor | None = None) -> Tensor:
        """The entries `start` to `stop` of a tensor in row-major order, as a vector; of the base no more is read.

        Of weights whose rows are rescaled (DoRA) whole rows are read, and all of a weight that is (inputs, outputs).
        """
        start, stop, _ = slice(start, stop).indices(self._all_shapes[name].numel())
        found = self._part(name, start, max(start, stop))
        return found if out is None else out.copy_(found)

    def _part(self, name: str, start: int, stop: int) -> Tensor:
        if name in self._saved and name not in self._changes:
            return self._read(name, start, stop).to(self._all_dtypes[name])
        dtype = self._dtypes[name]
        wide = torch.promote_types(dtype, torch.float32)
        if (layer := self._biases.get(name)) is not None:
            bias = self.adapter.bias(layer)
            assert bias is not None
            return (self._read(name, start, stop).to(wide) + bias[start:stop].to(wide)).to(dtype)
        change = self._changes.get(name)
        if change is None:
            return entries(self.base, name, start, stop)
        shape = self._all_shapes[name]
        row = max(1, shape[1:].numel())
        first, last = start // row, -(-stop // row)
        magnitude = self.adapter.layers[change.layer].magnitude
        if magnitude and change.transposed:
            first, last = 0, shape[0]
        at = (first * row, last * row) if magnitude else (start, stop)
        update = self.adapter.update(change.layer)
        rows = LowRank(update.right.mT, update.left.mT) if change.transposed else update
        added = (rows.left[first:last].to(wide) @ rows.right.to(wide)).reshape(-1)
        added = added[at[0] - first * row : at[1] - first * row]
        found = self._read(name, *at).to(wide) + added
        if magnitude:
            scale = self.adapter.file[magnitude].to(wide).reshape(-1)
            found = _rescaled(found.reshape(last - first, row), scale, change.transposed, slice(first, last))
            found = found.reshape(-1)[start - first * row : stop - first * row]
        return found.to(dtype)

    def _read(self, name: str, start: int, stop: int) -> Tensor:
        """A part of what an update is added to: of the adapter's own copy where it has one (PEFT saves embeddings)."""
        if (stored := self._saved.get(name)) is not None:
            return self.adapter.file.flat(stored, start, stop)
        return entries(self.base, name, start, stop)

    def __contains__(self, name: object) -> bool:
        return name in self._all_shapes

    def __iter__(self) -> Iterator[str]:
        return iter(self._all_shapes)

    def __len__(self) -> int:
        return len(self._all_shapes)

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """The shapes of the tensors by name; no tensor is read."""
        return dict(self._all_shapes)

    @property
    def dtypes(self) -> dict[str, torch.dtype]:
        """The dtypes of the tensors by name; no tensor is read."""
        return dict(self._all_dtypes)


_GIVE = "give the base that the adapter was made for"


def _rescaled(weight: Tensor, magnitude: Tensor, transposed: bool, rows: slice) -> Tensor:
    """m W / |W|, each output by its own norm (Liu et al., DoRA, 2024)."""
    if transposed:
        return weight * (magnitude / weight.norm(dim=0))
    return weight * (magnitude[rows] / weight.norm(dim=1))[:, None]


def _is_embedding(adapter: LoRA, layer: str) -> bool:
    return adapter.layers[layer].kind == "embedding"


def _missing(adapter: LoRA, layer: str, names: Iterable[str]) -> WeightspaceError:
    tied = " (a head that is tied to an embedding has no tensor of its own: untie it first)" if "head" in layer else ""
    return refusal(adapter.path, f"changes {layer!r}, and the base has no such weight{tied}", _GIVE)


def correspond(wanted: Iterable[str], having: Iterable[str]) -> dict[str, str]:
    """The name in `having` of every wanted one: equal, or equal once one prefix is removed from, or put before, all.

    The prefix is the one that fits the most names; none is preferred. Names that fit no way are left out. Raises
    `WeightspaceError` where two prefixes fit as many.

    >>> from weightspace.merging.adapters.adapted import correspond
    >>> correspond(["transformer.h.0.fc.weight"], ["wte.weight", "h.0.fc.weight"])
    {'transformer.h.0.fc.weight': 'h.0.fc.weight'}
    """
    wanted, there = list(wanted), {*having}
    ways = {("", "")}
    for name in wanted[:1] + wanted[-1:]:
        tails = {name[k + 1 :] for k, letter in enumerate(name) if letter == "."}
        ways |= {(name.removesuffix(tail), "") for tail in tails & there if "." in tail}
        ways |= {("", one.removesuffix(name)) for one in there if one.endswith(f".{name}")}
    fits = {way: _by(way, wanted, there) for way in ways}
    most = max(len(found) for found in fits.values())
    best = [way for way, found in fits.items() if len(found) == most]
    if ("", "") in best:
        return fits["", ""]
    if len(best) > 1:
        shown = some(sorted(before or drop for drop, before in best))
        raise WeightspaceError(
            f"the layers of the adapter fit under several prefixes of the base: {shown}; rename them"
        )
    return fits[best[0]]


def _by(way: tuple[str, str], wanted: Iterable[str], there: set[str]) -> dict[str, str]:
    drop, before = way
    moved = {name: before + name.removeprefix(drop) for name in wanted}
    return {name: other if other in there else name for name, other in moved.items() if {other, name} & there}


@public
def into_base(
    adapter: str | os.PathLike[str] | LoRA,
    base: str | os.PathLike[str] | Mapping[str, Tensor],
    out: str | os.PathLike[str] | None = None,
    *,
    force: bool = False,
) -> Adapted:
    """The base with the updates of an adapter: W + s B A for every layer that it changes; nothing is computed yet.

    `base`: a checkpoint, or named tensors. What comes back is a mapping that is read tensor by tensor or in parts, so
    that it can be written or merged like a checkpoint of any size. Weights of GPT-2's form (inputs, outputs),
    convolutions, embeddings, biases, tensors that were saved whole and rescaled rows (DoRA) are taken into account.
    `out`: where to write it as well (.safetensors). Raises `WeightspaceError` where a layer is missing in the base, has
    another shape or is quantised, and where a head that is tied to the embedding would no longer be.

    >>> import tempfile
    >>> import torch
    >>> from weightspace.merging.adapters.adapted import into_base
    >>> from weightspace.merging.adapters.lora_folder import NewAdapter
    >>> factors = {"q.lora_A.weight": torch.ones(1, 4), "q.lora_B.weight": torch.ones(3, 1)}
    >>> new = NewAdapter({"r": 1, "lora_alpha": 2, "target_modules": ["q"]}, factors, {})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     into_base(new.save(folder + "/a"), {"q.weight": torch.zeros(3, 4)})["q.weight"][0]
    tensor([2., 2., 2., 2.])
    """
    opened = adapter if isinstance(adapter, LoRA) else lora(adapter)
    tensors = base if isinstance(base, Mapping) else reader.read(base)
    found = Adapted(opened, tensors)
    if isinstance(tensors, Checkpoint):
        _untied(found, tensors)
    if out is not None:
        writer.save(found, out, force=force, metadata=found.metadata)
    return found


def tied_layers(config: Mapping[str, Any], rows: Mapping[str, int], names: Iterable[str]) -> list[str]:
    """The layers that are one tensor: the embedding of the vocabulary, and the head.

    `rows`: of every layer, its rows if it is an embedding, else 0; `names`: of the tensors of the base. A configuration
    that does not say is that of a tied head where the network has one, and its file has no tensor for it. Classifiers
    have no such head.

    >>> from weightspace.merging.adapters.adapted import tied_layers
    >>> tied_layers({"tie_word_embeddings": True, "vocab_size": 50}, {"wte": 50, "wpe": 16, "up": 0}, ["wte.weight"])
    ['wte']
    """
    kinds = [str(kind) for kind in config.get("architectures") or ()]
    said = config.get("tie_word_embeddings")
    if said is None:
        own = any(name.endswith(head) for name in names for head, _ in TIED if head.endswith(".weight"))
        said = not own and any(_HEADED.search(kind) for kind in kinds)
    if not said or (kinds and all(_HEADLESS.search(kind) for kind in kinds)):
        return []
    tokens = config.get("vocab_size")
    changed = [layer for layer, count in rows.items() if count and tokens in (None, count)]
    return changed + [layer for layer in rows if layer.rpartition(".")[2] == "lm_head"]


def _untied(found: Adapted, base: Checkpoint) -> None:
    """Raise `WeightspaceError` where the configuration of the base ties its head, and the adapter changes one alone."""
    adapter = found.adapter
    rows = {name: adapter.file.shapes[e.a][1] if e.kind == "embedding" else 0 for name, e in adapter.layers.items()}
    if changed := tied_layers(config_of(base.path), rows, base):
        seen = f"changes {some(changed)}, and head and embedding of the base are one tensor (tied)"
        raise refusal(adapter.path, seen, "untie them first, or merge it where it was made")


def config_of(path: Path) -> dict[str, Any]:
    """The configuration of a model beside its file of weights; empty where there is none."""
    file = (path if path.is_dir() else path.parent) / "config.json"
    try:
        found = files.read_json(file) if file.is_file() else {}
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
