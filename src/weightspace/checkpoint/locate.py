"""Finding the checkpoint in a folder: Hugging Face's names, variants, shards, or the one file of weights."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from weightspace.checkpoint import files
from weightspace.checkpoint.refusal import refusal, some

__all__ = ["ELSEWHERE", "INDEX", "TORCH", "left_in", "locate", "read_index"]

TORCH = (".pt", ".pth", ".bin", ".ckpt", ".tar", ".th", ".model")
SINGLE, INDEX = "model.safetensors", ".index.json"
_STEMS, _FORMS = ("model", "pytorch_model", "diffusion_pytorch_model"), (".safetensors", ".bin")
_FOLDER = [stem + form + end for stem in _STEMS for form in _FORMS for end in ("", INDEX)]
_ADAPTER = ("adapter_model.safetensors", "adapter_model.bin")
_VARIANT = re.compile(
    rf"({'|'.join(_STEMS)})(\.([\w-]+)\.(safetensors|bin)|\.(safetensors|bin)\.index\.([\w-]+)\.json)"
)
_SHARD = re.compile(r".+-\d{5}-of-\d{5}(\.[\w-]+)?\.(safetensors|bin)")
_BESIDE = re.compile(r"(training_args|optimizer|scheduler|scaler|rng_state|random_states|trainer_state)[\w.-]*")
ELSEWHERE = {
    r".*\.distcp|\.metadata": (
        "a distributed checkpoint of torch",
        "convert it: python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE.pt",
    ),
    r"zero_to_fp32\.py|.*zero_pp_rank_.*|mp_rank_.*|global_step\d+": (
        "a distributed checkpoint of DeepSpeed",
        "convert it to safetensors with DeepSpeed where you trust it",
    ),
    r".*\.gguf": ("a GGUF file, quantised for llama.cpp", "give the safetensors that it was made from"),
    r"saved_model\.pb|.*\.h5|.*\.keras|.*\.data-\d+-of-\d+": (
        "a network of TensorFlow or Keras",
        "convert it to safetensors first",
    ),
    r".*\.msgpack|.*\.orbax.*": ("a network of Flax", "convert it to safetensors first"),
    r".*\.onnx": ("an ONNX program", "give the safetensors that it was made from"),
}


def locate(path: Path, wanted: str | None) -> tuple[Path, bool]:
    """The file to open, and whether it is the variant ("fp16", "ema") of a folder that `wanted` names."""
    if path.is_dir():
        names = sorted(item.name for item in path.iterdir())
        variants = {name: found[3] or found[6] for name in names if (found := _VARIANT.fullmatch(name))}
        for name, variant in variants.items():
            if variant == wanted:
                return path / name, True
        return path / only(path, names, variants), False
    if path.exists():
        return path, False
    index = path.with_name(path.name + INDEX)
    if path.suffix == ".safetensors" and index.exists():
        return index, False
    if path.is_symlink():
        raise refusal(path, f"is a link to {os.readlink(path)}, which is not there", "fetch the file itself")
    raise refusal(path, "no such file or folder", "check the path")


def only(path: Path, names: list[str], variants: Mapping[str, str]) -> str:
    """The name of the one checkpoint in a folder. Raises `CheckpointError` where there is none, or several."""
    usual = [name for name in [*_FOLDER, *_ADAPTER] if name in names]
    if usual:
        return usual[0]
    if variants:
        if len({*variants.values()}) > 1:
            seen = f"holds the variants {some(dict.fromkeys(variants.values()))}"
            raise refusal(path, seen, "choose one, as --weights NAME")
        return min(variants, key=lambda name: (name.endswith(".json"), not name.endswith(".safetensors")))
    for pattern, (what, do) in ELSEWHERE.items():
        if any(re.fullmatch(pattern, name) for name in names):
            raise refusal(path, f"holds {what}", do)
    others = [name for name in names if holds_weights(name) and not _BESIDE.fullmatch(name)]
    if any(_SHARD.fullmatch(name) for name in others):
        seen = f"no checkpoint in this folder, but shards without the {INDEX} that lists them"
        raise refusal(path, seen, "fetch it into the same folder")
    if len(others) > 1:
        raise refusal(path, f"holds several files of weights, {some(others)}", "give one of them")
    if not others:
        seen = some(name for name in names if not files.is_temporary(name)) or "nothing"
        raise refusal(path, f"no checkpoint in this folder, which holds {seen}", f"give one with {SINGLE}")
    return others[0]


def holds_weights(name: str) -> bool:
    """Whether a file name has the ending of a checkpoint."""
    return name.endswith((".safetensors", *TORCH)) and not name.startswith(".")


def left_in(folder: Path, file: Path) -> list[str]:
    """A note of the other checkpoints in a folder, where there are any."""
    names = {item.name for item in folder.iterdir() if holds_weights(item.name) and not _BESIDE.fullmatch(item.name)}
    owners = {file.name}
    if file.name.endswith(".json"):
        owners |= {*read_index(file, file.read_bytes()).get("weight_map", {}).values()}
    left = sorted(names - owners)
    return [f"took {file.name!r}, left out {some(left)}"] if left else []


def read_index(path: Path, text: bytes) -> dict[str, Any]:
    """The mapping in the JSON text of an index or header. Raises `CheckpointError` for anything else."""
    try:
        value = files.parse(text)
    except ValueError as error:
        raise refusal(path, f"malformed JSON ({str(error)[:200]})") from error
    if not isinstance(value, dict):
        raise refusal(path, f"its JSON is a {type(value).__name__}, not a mapping")
    return value
