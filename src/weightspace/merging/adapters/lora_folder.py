"""Folders of low-rank adapters (LoRA) as PEFT writes them: configuration and factors, read exactly, and written.

An adapter changes the weight of some layers by s B A with s = alpha / r, or alpha / sqrt(r) (rslora), each of which may
differ by layer (`rank_pattern`, `alpha_pattern`). Source: Hu et al., LoRA, 2022; Kalajdzievski, rsLoRA, 2023.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from weightspace.checkpoint import files, reader, writer
from weightspace.checkpoint.adapter import CONFIG, paired
from weightspace.checkpoint.reader import Checkpoint
from weightspace.checkpoint.refusal import refusal
from weightspace.merging.adapters.low_rank import LowRank
from weightspace.net.errors import WeightspaceError
from weightspace.net.public import public

__all__ = ["FILE", "PREFIX", "Kind", "LoRA", "NewAdapter", "lora"]

Kind: TypeAlias = Literal["linear", "embedding", "convolution"]
FILE, PREFIX = "adapter_model.safetensors", "base_model.model."
_FACTOR = re.compile(r"(?P<layer>.+)\.lora_(?P<embedding>embedding_)?[AB](\.[\w-]+)*?(\.weight)?")
_BIAS, _MAGNITUDE = re.compile(r"(.+)\.lora_B(\.[\w-]+)*?\.bias"), re.compile(r"(.+)\.lora_magnitude_vector(\.[\w-]+)*")
_WRAPPED = re.compile(r"\.modules_to_save(\.default)?(?=\.)|\.base_layer(?=\.)")
_OTHERWISE = {  # settings under which the weights change in another way than by s B A
    "use_qalora": "groups of inputs (QALoRA)",
    "alora_invocation_tokens": "tokens that switch it on (aLoRA)",
    "target_parameters": "stacks of experts (target_parameters)",
    "trainable_token_indices": "rows of single tokens",
    "layer_replication": "layers that are repeated",
    "monteclora_config": "random factors (MonteCLoRA)",
    "arrow_config": "a router (Arrow)",
}
_STARTS = ("pissa", "olora", "corda", "loftq", "lora_ga")


class Layer(NamedTuple):
    """The names of the factors of one layer in the file, what it is, its scale s, and the names of what is beside."""

    a: str
    b: str
    kind: Kind
    scale: float
    bias: str | None = None
    magnitude: str | None = None


@public
@dataclass(frozen=True)
class LoRA:
    """A low-rank adapter on disk. Made by `lora`.

    `layers`: by the name of the layer in the base network. `saved`: tensors that replace those of the base
    (modules_to_save, biases): name in the base -> name in the file.
    """

    path: Path
    config: Mapping[str, Any]
    file: Checkpoint
    layers: Mapping[str, Layer]
    saved: Mapping[str, str]

    @property
    def label(self) -> str:
        """What errors call it."""
        return self.path.name or str(self.path)

    @property
    def magnitudes(self) -> list[str]:
        """The layers whose rows are rescaled (DoRA)."""
        return [name for name, layer in self.layers.items() if layer.magnitude]

    def update(self, layer: str) -> LowRank:
        """s B A in factors, (outputs, rank) and (rank, inputs); of a convolution (rank, inputs x kernel).

        Of an embedding it is the transpose of the change. Raises `WeightspaceError` for NaN or infinity.
        """
        entry = self.layers[layer]
        b, a = (self.file[name].double().flatten(1) for name in (entry.b, entry.a))
        if not bool(a.isfinite().all() and b.isfinite().all()):
            raise WeightspaceError(f"{self.label}: NaN or infinity in the factors of {layer!r}; leave this adapter out")
        return LowRank(entry.scale * b, a)

    def bias(self, layer: str) -> Tensor | None:
        """s times the bias beside B, which is added to that of the layer; None where there is none."""
        entry = self.layers[layer]
        return None if entry.bias is None else entry.scale * self.file[entry.bias].double()

    def kernel(self, layer: str) -> tuple[int, ...]:
        """The shape of the kernel of a convolution; () of other layers."""
        return tuple(self.file.shapes[self.layers[layer].a][2:])


@public
def lora(path: str | os.PathLike[str]) -> LoRA:
    """Open the folder of a low-rank adapter; factors are read when they are asked for.

    Raises `WeightspaceError`, in one sentence: without `adapter_config.json`, for adapters that are not of low rank,
    whose ranks are not those of the configuration, whose start was taken out of the base (PiSSA, OLoRA, CorDA, LoftQ,
    LoRA-GA), and for tensors whose meaning is unknown.

    >>> import tempfile
    >>> import torch
    >>> from weightspace.merging.adapters.lora_folder import NewAdapter, lora
    >>> factors = {"q.lora_A.weight": torch.ones(2, 4), "q.lora_B.weight": torch.ones(3, 2)}
    >>> new = NewAdapter({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q"]}, factors, {})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     lora(new.save(folder + "/a")).update("q").dense()[0, 0]
    tensor(4., dtype=torch.float64)
    """
    path = Path(path)
    config = _config(path)
    file = reader.read(path)
    factors: dict[str, tuple[int, ...]] = {}
    beside: dict[str, dict[str, str]] = {"bias": {}, "magnitude": {}}
    saved: dict[str, str] = {}
    for name, shape in file.shapes.items():
        if found := _BIAS.fullmatch(name):
            beside["bias"][_bare(found[1])] = name
        elif found := _MAGNITUDE.fullmatch(name):
            beside["magnitude"][_bare(found[1])] = name
        elif _FACTOR.fullmatch(name):
            factors[name] = tuple(shape)
        elif "lora_" in name or "token_adapter" in name or "trainable_tokens" in name:
            raise refusal(
                path, f"{name!r} is of an unknown kind of adapter", "merge it into its base where it was made"
            )
        elif ".original_module." not in name:
            saved[_WRAPPED.sub("", _bare(name))] = name
    if not factors:
        raise refusal(path, "holds no factors of low rank", "give the folder of a LoRA adapter")
    layers = {}
    for a, b in paired(factors):
        layer, kind = _kind(path, a, factors[a], factors[b])
        scale = _scale(path, config, layer, factors[a][0])
        layers[layer] = Layer(a, b, kind, scale, beside["bias"].pop(layer, None), beside["magnitude"].pop(layer, None))
    if config.get("use_dora") and (bare := [name for name, one in layers.items() if one.magnitude is None]):
        seen = f"{CONFIG} says DoRA (use_dora), and the file has no magnitudes of {bare[0]!r}"
        raise refusal(path, seen, "give the files of one adapter")
    if left := [name for names in beside.values() for name in names.values()]:
        raise refusal(path, f"{left[0]!r} belongs to no pair of factors")
    return LoRA(path, config, file, layers, saved)


def _bare(name: str) -> str:
    return name.removeprefix(PREFIX)


def _kind(path: Path, name: str, a: tuple[int, ...], b: tuple[int, ...]) -> tuple[str, Kind]:
    found = _FACTOR.fullmatch(name)
    assert found is not None
    if found["embedding"]:
        return _bare(found["layer"]), "embedding"
    if math.prod(b[2:]) != 1:
        raise refusal(
            path, f"the second factor of {found['layer']!r} has a kernel of {b[2:]}", "merge it where it was made"
        )
    return _bare(found["layer"]), "linear" if len(a) == 2 else "convolution"


def _config(path: Path) -> dict[str, Any]:
    file = (path if path.is_dir() else path.parent) / CONFIG
    if not path.exists():
        raise refusal(path, "no such file or folder", "check the path")
    if not file.is_file():
        raise refusal(
            path, f"without {CONFIG} the scale of its updates is not known", "give the folder of a LoRA adapter"
        )
    try:
        found = files.read_json(file)
    except (OSError, ValueError) as error:
        raise refusal(file, f"cannot be read ({error})") from error
    if not isinstance(found, dict):
        raise refusal(file, f"its JSON is a {type(found).__name__}, not a mapping")
    if (kind := str(found.get("peft_type", "LORA"))) != "LORA":
        raise refusal(
            path, f"holds an adapter of type {kind}, not of low rank", "merge it into its base where it was made"
        )
    for key, what in _OTHERWISE.items():
        if found.get(key):
            raise refusal(
                path, f"an adapter with {what}, which is no sum s B A", "merge it into its base where it was made"
            )
    start = found.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_STARTS):
        seen = f"an adapter that began as a part of its base ({start}), which has to be taken out of it first"
        raise refusal(path, seen, "convert it to a plain one where it was made")
    return found


def _scale(path: Path, config: Mapping[str, Any], layer: str, rank: int) -> float:
    """alpha / r of a layer, or alpha / sqrt(r). Raises `WeightspaceError` where the rank is another one in the file."""
    r, alpha = _of_layer(path, config, "r", layer), _of_layer(path, config, "lora_alpha", layer)
    if r != rank:
        raise refusal(
            path, f"{layer!r} has rank {rank} in the file and {r:g} in {CONFIG}", "give the files of one adapter"
        )
    return alpha / (math.sqrt(r) if config.get("use_rslora") else r)


def _of_layer(path: Path, config: Mapping[str, Any], key: str, layer: str) -> float:
    patterns = config.get({"r": "rank_pattern", "lora_alpha": "alpha_pattern"}[key]) or {}
    value = config.get(key, 8)
    try:
        for pattern in patterns:
            if re.match(rf"(.*\.)?({pattern})$", layer):
                value = patterns[pattern]
                break
        number = float(value)
    except (TypeError, ValueError, re.error) as error:
        raise refusal(path, f"{key} of {layer!r} in {CONFIG} cannot be read ({error})") from error
    if not math.isfinite(number):
        raise refusal(path, f"{key} of {layer!r} in {CONFIG} is {number}")
    return number


@public
@dataclass(frozen=True)
class NewAdapter:
    """An adapter that was computed: configuration, tensors, and what its rank does not keep.

    `errors[layer]`: |update - kept| / |update|, which is 0 where nothing was cut. `left`: what could not be expressed.
    """

    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    errors: Mapping[str, float]
    left: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())

    @property
    def kept(self) -> dict[str, float]:
        """The share of the squared norm of each layer's update that was kept."""
        return {layer: 1 - error**2 for layer, error in self.errors.items()}

    def save(self, folder: str | os.PathLike[str], *, force: bool = False) -> Path:
        """Write `adapter_model.safetensors` and `adapter_config.json` into a folder, which is made; returns it.

        Raises `WeightspaceError` where the folder holds an adapter, unless `force`.
        """
        folder = Path(folder)
        if folder.exists() and not folder.is_dir():
            raise refusal(folder, "is a file, and an adapter is a folder", "choose another name")
        if (folder / "config.json").is_file():
            raise refusal(folder, "holds a network (config.json)", "choose another folder")
        for name in (FILE, CONFIG):
            if (folder / name).exists() and not force:
                raise refusal(folder, f"{name} exists", "choose another folder, or overwrite with force (--force)")
        try:
            folder.mkdir(exist_ok=True)
            writer.save(self.tensors, folder / FILE, force=force, metadata={"format": "pt"})
            files.write(folder / CONFIG, json.dumps(self.config, indent=2, sort_keys=True))
        except OSError as error:
            raise refusal(
                folder, f"could not be written ({error.strerror or error})", "choose another place"
            ) from error
        return folder


def configured(
    ranks: Mapping[str, int], base: str | None, *, transposed: bool = False, saved: tuple[str, ...] = (), **more: Any
) -> dict[str, Any]:
    """The configuration of an adapter of scale 1 whose layers have these ranks."""
    sizes = [*ranks.values()]
    usual = max({*sizes}, key=lambda r: (sizes.count(r), r))
    other = {re.escape(name): rank for name, rank in ranks.items() if rank != usual}
    return {
        **{"peft_type": "LORA", "task_type": None, "base_model_name_or_path": base, "inference_mode": True},
        **{"r": usual, "lora_alpha": usual, "lora_dropout": 0.0, "bias": "none", "use_rslora": False},
        **{"rank_pattern": other, "alpha_pattern": dict(other), "fan_in_fan_out": transposed, "use_dora": False},
        **{
            "target_modules": sorted(ranks),
            "modules_to_save": sorted(saved) or None,
            "init_lora_weights": True,
            **more,
        },
    }


def named(layer: str, update: LowRank, kind: Kind, kernel: tuple[int, ...], dtype: torch.dtype) -> dict[str, Tensor]:
    """The factors of a layer under the names of PEFT."""
    a, b = update.right.to(dtype).contiguous(), update.left.to(dtype).contiguous()
    if kind == "embedding":
        return {f"{PREFIX}{layer}.lora_embedding_A": a, f"{PREFIX}{layer}.lora_embedding_B": b}
    if kind == "convolution":
        a, b = a.reshape(len(a), -1, *kernel), b.reshape(*b.shape, *[1] * len(kernel))
    return {f"{PREFIX}{layer}.lora_A.weight": a, f"{PREFIX}{layer}.lora_B.weight": b}
