"""The checkpoints in a folder: which files and folders hold one network each, and why the others are left out.

Only names are looked at, and the JSON of an index; no tensor is read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from weightspace.atlas.catalogue import FILE
from weightspace.atlas.content import shards
from weightspace.checkpoint import files
from weightspace.checkpoint.locate import INDEX, holds_weights

__all__ = ["Found", "Left", "is_path", "scan"]

_HUGGING = re.compile(r"(pytorch_|diffusion_pytorch_)?model(\.[\w-]+)?\.(safetensors|bin)(\.index(\.[\w-]+)?\.json)?")
_BESIDE = re.compile(
    r"(training_args|optimizer|scheduler|scaler|rng_state|random_states|trainer_state|tokenizer|spiece|sentencepiece)"
    r"[\w.-]*|resume-\d+\.safetensors"
)
_OTHERS = (".pt2", ".pkl", ".pickle", ".gguf", ".h5", ".keras", ".msgpack", ".onnx", ".distcp")
_DEEPEST = 40  # folders inside of one another


@dataclass(frozen=True)
class Found:
    """A checkpoint: its path as `checkpoint.read` takes it, and what to call it, from its place below the folder."""

    path: Path
    name: str


@dataclass(frozen=True)
class Left:
    """A file or folder that was left out, and the reason in words."""

    path: Path
    reason: str


def scan(folder: Path) -> Iterator[Found | Left]:
    """Walk a folder in the order of names: checkpoints, and what looks like one and is none.

    A folder with Hugging Face's names is one checkpoint; shards belong to their index. Hidden files and folders, other
    atlases, and what lies behind links to folders are not looked at.
    """
    yield from _walk(folder, folder, 0)


def _walk(folder: Path, root: Path, depth: int) -> Iterator[Found | Left]:
    try:
        with os.scandir(folder) as items:
            entries = sorted((item for item in items if not item.name.startswith(".")), key=lambda item: item.name)
        inside = [item.name for item in entries if item.is_dir(follow_symlinks=False)]
        names = [item.name for item in entries if item.name not in inside and not item.is_dir()]
    except OSError as error:
        yield Left(folder, f"cannot be read ({error.strerror or error})")
        return
    if FILE in names and folder != root:
        yield Left(folder, "is an atlas itself; its networks were not added")
        return
    if is_path(folder, names):
        yield Left(folder, "holds a path (a Trail); add it with its architecture, --arch")
    else:
        yield from _of_folder(folder, root, names)
    for name in inside:
        if FILE in names and name == "objects":
            continue
        if depth == _DEEPEST:
            yield Left(folder / name, f"lies deeper than {_DEEPEST} folders")
        else:
            yield from _walk(folder / name, root, depth + 1)


def is_path(folder: Path, names: list[str]) -> bool:
    """Whether a folder holds a path, whose files are differences and no networks."""
    if "index.json" not in names:
        return False
    try:
        seen = files.read_json(folder / "index.json")
    except (OSError, ValueError):
        return False
    return isinstance(seen, dict) and seen.get("weightspace") == "path"


def _of_folder(folder: Path, root: Path, names: list[str]) -> Iterator[Found | Left]:
    taken = {name for name in names if _BESIDE.fullmatch(name)}
    whole = [name for name in names if _HUGGING.fullmatch(name)]
    if whole and "config.json" in names:
        yield Found(folder, _name(folder, root))
        taken |= {*whole} | {name for name in names if re.fullmatch(r".*-\d{5}-of-\d{5}\.\w+", name)}
    for name in [name for name in names if INDEX in name and name not in taken]:
        yield Found(folder / name, _name(folder / name[: name.index(INDEX)], root))
        taken.add(name)
        try:
            taken |= {*shards(folder / name)}
        except (OSError, ValueError):
            continue  # the reader will say what is wrong with the index
    for name in names:
        if name not in taken and (holds_weights(name) or name.lower().endswith(_OTHERS)):
            yield _one(folder / name, root)


def _one(path: Path, root: Path) -> Found | Left:
    if path.suffix == ".pt2":
        return Left(path, "an exported program (.pt2) is code and was not opened; save its tensors as safetensors")
    return Found(path, _name(path, root))


def _name(path: Path, root: Path) -> str:
    """The place below the folder, without the ending; of the folder itself, its own name."""
    if path == root:
        return path.absolute().name or "network"
    place = path.relative_to(root)
    return str(place.with_name(place.stem)) if path.is_file() or path.suffix == ".safetensors" else str(place)
