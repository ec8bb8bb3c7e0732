"""A checkpoint is a map name -> tensor that lies in a file.

`read` opens safetensors files, Hugging Face folders and what `torch.save` wrote; `save` writes safetensors, all of
it or nothing. Opening a file never runs code from it, and what a file claims is checked before memory is given to it.
"""

from __future__ import annotations

import io
import json
import math
import os
import pickletools
import re
import secrets
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from weightspace.net import WeightspaceError

__all__ = ["Checkpoint", "CheckpointError", "finite", "read", "save"]

_HEADER = 25_000_000  # bytes of names and shapes that a file may hold
_TENSORS = 100_000
_NUMBERS = 2**40  # a dimension beyond this is no network's
_NESTS = ("state_dict", "model_state_dict", "model")
_TORCH = (".pt", ".pth", ".bin", ".ckpt", ".tar")
_FOLDER = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_DTYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "BOOL": torch.bool},
    **{"U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8, "C64": torch.complex64},
    **{"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2},
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}


class CheckpointError(WeightspaceError):
    """A file that cannot be read or written: one printable line, whatever the file's names hold."""

    def __init__(self, message: str) -> None:
        line = "".join(c if c.isprintable() else " " for c in message)
        super().__init__(line if len(line) < 900 else line[:900] + "...")


class _Entry(NamedTuple):
    shape: torch.Size
    dtype: torch.dtype
    read: Callable[[], Tensor]


class Checkpoint(Mapping[str, Tensor]):
    """The map name -> tensor of a file. Every access reads that one tensor into fresh memory, in the file's dtype.

    `path` is what was opened, `metadata` the file's text entries (for `torch.save` files: its top-level numbers and
    strings as text), `notes` one line for everything that was left out or renamed. `KeyError` for an unknown name,
    `CheckpointError` when the file changed since it was opened.
    """

    def __init__(
        self, path: Path, entries: Mapping[str, _Entry], metadata: Mapping[str, str], notes: Iterable[str] = ()
    ) -> None:
        self.path, self.metadata, self.notes = path, dict(metadata), tuple(notes)
        self._entries = dict(entries)

    def __getitem__(self, name: str) -> Tensor:
        return self._entries[name].read()

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"Checkpoint({str(self.path)!r}, {len(self)} tensors, {self.nbytes:,} bytes)"

    def shapes(self) -> dict[str, torch.Size]:
        """Name -> shape, in the file's order; no tensor is read."""
        return {name: entry.shape for name, entry in self._entries.items()}

    def dtypes(self) -> dict[str, torch.dtype]:
        """Name -> dtype, in the file's order; no tensor is read."""
        return {name: entry.dtype for name, entry in self._entries.items()}

    @property
    def nbytes(self) -> int:
        """Bytes that all tensors take in memory; tied ones count under each name."""
        return sum(entry.shape.numel() * entry.dtype.itemsize for entry in self._entries.values())


def read(path: str | os.PathLike[str]) -> Checkpoint:
    """Open a checkpoint: nothing of its code is run, no tensor is read before it is asked for.

    Takes a `.safetensors` file; the `.index.json` of a sharded one; a Hugging Face folder (`model.safetensors` or
    `pytorch_model.bin`, sharded or not); `.pt`, `.pth`, `.bin`, `.ckpt` and `.tar` files of `torch.save`. Of a
    training checkpoint the mapping under `state_dict`, `model_state_dict` or `model` is taken. A prefix `module.`
    (DataParallel) or `_orig_mod.` (torch.compile) is removed when every name has it. `Checkpoint.notes` says so.
    Raises `CheckpointError`.
    """
    path = Path(path)
    try:
        entries, metadata, notes = _open(_locate(path))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error}); check the path") from error
    if not entries:
        raise CheckpointError(f"{path}: holds no tensors; give a file that holds a network's weights")
    if len(entries) > _TENSORS:
        raise CheckpointError(f"{path}: holds {len(entries):,} tensors; the limit is {_TENSORS:,}")
    for prefix in ("module.", "_orig_mod.", "module."):
        if all(name.startswith(prefix) and name != prefix for name in entries):
            entries = {name.removeprefix(prefix): entry for name, entry in entries.items()}
            notes = [*notes, f"removed the prefix {prefix!r} from every name"]
    return Checkpoint(path, entries, metadata, notes)


def finite(tensors: Mapping[str, Tensor]) -> None:
    """Raise `CheckpointError` naming the tensors that hold NaN or infinity; reads one tensor at a time."""
    bad = [name for name in tensors if not _is_finite(tensors[name])]
    if bad:
        raise CheckpointError(f"NaN or infinity in {_some(bad)}; give weights from before training diverged")


def _is_finite(tensor: Tensor) -> bool:
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    parts = tensor.detach().reshape(-1).split(1 << 22)
    return all(bool((part.float() if part.dtype.itemsize == 1 else part).isfinite().all()) for part in parts)


def _some(names: Iterable[str]) -> str:
    names = [repr(name) for name in names]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


# ---------------------------------------------------------------- which file


_Opened = tuple[dict[str, _Entry], dict[str, str], list[str]]


def _locate(path: Path) -> Path:
    if path.is_dir():
        found = [path / name for name in _FOLDER if (path / name).exists()]
        if not found:
            seen = _some(sorted(p.name for p in path.iterdir())) or "nothing"
            raise CheckpointError(f"{path}: no checkpoint in this folder (it holds {seen}); wanted {_FOLDER[0]}")
        return found[0]
    if not path.exists():
        index = path.with_name(path.name + ".index.json")
        if path.suffix == ".safetensors" and index.exists():
            return index
        raise CheckpointError(f"{path}: no such file or folder; check the path")
    return path


def _open(path: Path) -> _Opened:
    suffix = path.suffix.lower()
    if not path.is_file():
        raise CheckpointError(f"{path}: not a regular file; give a file or a Hugging Face folder")
    if suffix == ".pt2":
        raise CheckpointError(f"{path}: {_PT2}")
    if suffix in (".pkl", ".pickle"):
        raise CheckpointError(f"{path}: a pickle is code and was not opened; {_SAVE_AGAIN}")
    if path.name.endswith(".index.json"):
        return _shards(path)
    if suffix != ".safetensors" and suffix not in _TORCH:
        raise CheckpointError(f"{path}: unknown ending {suffix!r}; give .safetensors or one of {', '.join(_TORCH)}")
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path}: empty file (0 bytes); fetch or write it again")
    return _safetensors(path) if suffix == ".safetensors" else _torch(path)


def _shards(path: Path) -> _Opened:
    index = _json(path, path.read_bytes() if path.stat().st_size <= _HEADER else None)
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise CheckpointError(f"{path}: has no 'weight_map' of tensor names to file names; write the index again")
    merged: dict[str, _Entry] = {}
    about = index.get("metadata")
    metadata = {k: v for k, v in about.items() if isinstance(v, str)} if isinstance(about, dict) else {}
    notes: list[str] = []
    for file in dict.fromkeys(weight_map.values()):
        entries, more, said = _open(_shard(path, file))
        wanted = {name for name, owner in weight_map.items() if owner == file}
        if wanted != entries.keys():
            differ = _some(sorted(wanted ^ entries.keys()))
            raise CheckpointError(f"{path}: disagrees with {file!r} about {differ}; fetch index and shards again")
        merged.update(entries)
        metadata = {**more, **metadata}
        notes += [f"{file}: {note}" for note in said]
    return {name: merged[name] for name in weight_map}, metadata, notes


def _shard(index: Path, file: str) -> Path:
    """The file that an index names, kept inside the index's folder (the hub's cache links snapshots to its blobs)."""
    if Path(file).name != file or "\\" in file or "\0" in file or not file.endswith((".safetensors", *_TORCH)):
        raise CheckpointError(f"{index}: names {file!r}, which is no plain file name; do not trust this index")
    folder = index.resolve().parent if not index.is_symlink() else index.parent.resolve()
    root = folder.parent.parent if folder.parent.name == "snapshots" else folder
    shard = index.parent / file
    if not shard.resolve().is_relative_to(root):
        raise CheckpointError(f"{index}: {file!r} is a link that leaves {root}; copy the file there instead")
    if not shard.exists():
        raise CheckpointError(f"{index}: shard {file!r} is missing; fetch it into the same folder")
    return shard


# ---------------------------------------------------------------- safetensors


def _json(path: Path, text: bytes | None) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        twice = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
        if twice:
            raise CheckpointError(f"{path}: {_some(twice)} stands twice in the header; do not trust this file")
        return dict(pairs)

    if text is None:
        raise CheckpointError(f"{path}: larger than {_HEADER:,} bytes, too much for an index; check the file")
    try:
        value = json.loads(text, object_pairs_hook=unique)
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: malformed JSON ({error}); fetch or write it again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: its JSON is a {type(value).__name__}, not a mapping; write it again")
    return value


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """The parsed header and where the data begins."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or 8 + min(length, _HEADER) > size:
            raise CheckpointError(
                f"{path}: truncated or not safetensors (a header of {length:,} bytes in a file of {size:,}); fetch it again"
            )
        if length > _HEADER:
            raise CheckpointError(f"{path}: claims a header of {length:,} bytes; the limit is {_HEADER:,}")
        header = _json(path, file.read(length))
    if len(header) > _TENSORS + 1:
        raise CheckpointError(f"{path}: holds {len(header):,} tensors; the limit is {_TENSORS:,}")
    return header, 8 + length


def _safetensors(path: Path) -> _Opened:
    header, start = _header(path)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise CheckpointError(f"{path}: its __metadata__ is not text to text; write it again")
    stamp = _stamp(path.stat())
    entries = {name: _entry(path, name, spec, start, stamp) for name, spec in header.items()}
    try:
        with safe_open(path, framework="pt"):
            pass  # the reference parser checks what is left: overlaps, holes, trailing bytes
    except Exception as error:
        raise CheckpointError(f"{path}: damaged safetensors file ({error}); fetch it again") from error
    return entries, metadata, []


def _entry(path: Path, name: str, spec: Any, start: int, stamp: tuple[int, ...]) -> _Entry:
    def ints(values: Any) -> bool:
        return isinstance(values, list) and all(type(n) is int and n >= 0 for n in values)

    if not isinstance(spec, dict) or not ints(spec.get("shape")) or not ints(spec.get("data_offsets")):
        raise CheckpointError(f"{path}: tensor {name!r} has no proper shape and offsets; fetch the file again")
    code, shape, offsets = spec.get("dtype"), spec["shape"], spec["data_offsets"]
    dtype = _DTYPES.get(code) if isinstance(code, str) else None
    if dtype is None:
        raise CheckpointError(f"{path}: tensor {name!r} has the unknown dtype {code!r}; convert it to F32")
    taken = offsets[1] - offsets[0] if len(offsets) == 2 else -1
    if not _plausible(shape) or math.prod(shape) * dtype.itemsize != taken or start + offsets[1] > stamp[1]:
        raise CheckpointError(
            f"{path}: tensor {name!r} claims {_shape(shape)} {code}, but {taken:,} bytes at {offsets[:1]} "
            f"of a file of {stamp[1]:,}; fetch the file again"
        )
    return _Entry(torch.Size(shape), dtype, partial(_fetch, path, stamp, start + offsets[0], shape, dtype))


def _shape(shape: Iterable[int]) -> str:
    sizes = [str(n) if n < 10**20 else "10^20 or more" for n in shape]
    return f"[{', '.join(sizes[:8])}{', ...' if len(sizes) > 8 else ''}]"


def _plausible(shape: Iterable[int]) -> bool:
    sizes = list(shape)
    return len(sizes) <= 64 and math.prod(max(n, 1) for n in sizes) <= _NUMBERS


def _stamp(stat: os.stat_result) -> tuple[int, ...]:
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _fetch(path: Path, stamp: tuple[int, ...], start: int, shape: list[int], dtype: torch.dtype) -> Tensor:
    # read, not mapped: a mapping is shared by all who ask, stays in resident memory and dies with the file
    try:
        with path.open("rb") as file:
            if _stamp(os.fstat(file.fileno())) != stamp:
                raise CheckpointError(f"{path}: changed since it was opened; read it again")
            tensor = torch.empty(shape, dtype=dtype)
            file.seek(start)
            if tensor.numel() and file.readinto(_raw(tensor)) != tensor.nbytes:
                raise CheckpointError(f"{path}: ended early; fetch it again")
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); check the disk and free memory") from error
    return tensor


def _raw(tensor: Tensor) -> memoryview:
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())
