"""A checkpoint is a map name -> tensor that lies in a file.

`read` opens safetensors files, Hugging Face folders and what `torch.save` wrote; `save` writes safetensors,
all of it or nothing. No code is run from a file, and what it claims is checked before memory is given to it.
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
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from weightspace.net import WeightspaceError

__all__ = ["Checkpoint", "CheckpointError", "finite", "read", "save"]

_HEADER = 25_000_000  # bytes of names and shapes that a file may hold
_TENSORS = 100_000
_NUMBERS = 2**40  # a shape with more than this is no network's
_NESTS = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.", "module.")  # either may be outside the other
_TORCH = (".pt", ".pth", ".bin", ".ckpt", ".tar")
_SINGLE, _INDEX = "model.safetensors", ".index.json"
_FOLDER = (_SINGLE, _SINGLE + _INDEX, "pytorch_model.bin", "pytorch_model.bin" + _INDEX)
_AGAIN = "fetch or write it again"
_SAFE = "load it where you trust it and save module.state_dict() as safetensors"
_PT2 = "an exported program (.pt2) is code and was not opened", "if you trust it, pass --trust-code"
_DTYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "BOOL": torch.bool},
    **{"U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8},
    **{"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "C64": torch.complex64},
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}


class CheckpointError(WeightspaceError):
    """A file that cannot be read or written: one printable line, whatever names the file holds."""

    def __init__(self, message: str) -> None:
        line = "".join(c if c.isprintable() else " " for c in message)
        super().__init__(line if len(line) < 900 else line[:900] + "...")


class _Entry(NamedTuple):
    shape: torch.Size
    dtype: torch.dtype
    read: Callable[[], Tensor]


_Opened = tuple[dict[str, _Entry], dict[str, str], list[str]]  # tensors, metadata, notes


class Checkpoint(Mapping[str, Tensor]):
    """The map name -> tensor of a file: each access reads one tensor into fresh memory, in the file's dtype.

    `path` is what was opened, `metadata` the file's text entries (of a `torch.save` file: its numbers and
    strings, as text), `notes` a line for everything that was left out or renamed. An unknown name is a
    `KeyError`; a file that changed since it was opened is a `CheckpointError`.
    """

    def __init__(
        self, path: Path, entries: Mapping[str, _Entry], metadata: Mapping[str, str], notes: Iterable[str]
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
        """Bytes that all tensors take in memory; a tied one counts under each of its names."""
        return sum(entry.shape.numel() * entry.dtype.itemsize for entry in self._entries.values())


def read(path: str | os.PathLike[str]) -> Checkpoint:
    """Open a checkpoint. No code of it is run, and no tensor is read before it is asked for.

    Takes a `.safetensors` file, the `.index.json` of a sharded one, a Hugging Face folder
    (`model.safetensors` or `pytorch_model.bin`, sharded or not), and `.pt .pth .bin .ckpt .tar` files of
    `torch.save`. Of a training checkpoint the mapping under `state_dict`, `model_state_dict` or `model`
    is taken. A prefix `module.` (DataParallel) or `_orig_mod.` (torch.compile) is removed where every
    name has it. `notes` tells of both.
    Raises `CheckpointError`.
    """
    path = Path(path)
    try:
        entries, metadata, notes = _open(_locate(path))
    except OSError as error:
        raise _error(path, f"cannot be read ({error.strerror or error})", "check the path") from error
    if not entries:
        raise _error(path, "holds no tensors", "give a file that holds a network's weights")
    if len(entries) > _TENSORS:
        raise _error(path, f"holds {len(entries):,} tensors", f"give a file of at most {_TENSORS:,}")
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) and name != prefix for name in entries):
            entries = {name.removeprefix(prefix): entry for name, entry in entries.items()}
            notes = [*notes, f"removed the prefix {prefix!r} from every name"]
    return Checkpoint(path, entries, metadata, notes)


def finite(tensors: Mapping[str, Tensor]) -> None:
    """Raise `CheckpointError` naming the tensors that hold NaN or infinity; one tensor is read at a time."""
    bad = [name for name in tensors if not _is_finite(tensors[name])]
    if bad:
        raise CheckpointError(f"NaN or infinity in {_some(bad)}; give weights from before training diverged")


def _is_finite(tensor: Tensor) -> bool:
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    parts = tensor.detach().reshape(-1).split(1 << 22)
    return all(bool((part.float() if part.dtype.itemsize == 1 else part).isfinite().all()) for part in parts)


def _error(path: Path | str, seen: str, do: str = _AGAIN) -> CheckpointError:
    return CheckpointError(f"{path}: {seen}; {do}")


def _some(names: Iterable[object]) -> str:
    shown = [f"{name!r:.80}" for name in names]
    return ", ".join(shown[:3]) + (f" and {len(shown) - 3} more" if len(shown) > 3 else "")


def _count(number: int) -> str:
    return f"{number:,}" if number < 10**20 else "10^20 or more"


def _shape(sizes: Iterable[int]) -> str:
    shown = [_count(n).replace(",", "") for n in sizes]
    return f"[{', '.join(shown[:8])}{', ...' if len(shown) > 8 else ''}]"


def _is_size(value: Any) -> bool:
    return type(value) is int and value >= 0


def _plausible(sizes: Iterable[int]) -> bool:
    sizes = list(sizes)
    return len(sizes) <= 64 and math.prod(max(n, 1) for n in sizes) <= _NUMBERS


# ------------------------------------------------------------------ which file


def _locate(path: Path) -> Path:
    if path.is_dir():
        for name in _FOLDER:
            if (path / name).exists():
                return path / name
        seen = _some(sorted(item.name for item in path.iterdir())) or "nothing"
        raise _error(path, f"no checkpoint in this folder, which holds {seen}", f"give one with {_SINGLE}")
    if path.exists():
        return path
    index = path.with_name(path.name + _INDEX)
    if path.suffix == ".safetensors" and index.exists():
        return index
    raise _error(path, "no such file or folder", "check the path")


def _open(path: Path) -> _Opened:
    suffix = path.suffix.lower()
    if not path.is_file():
        raise _error(path, "not a regular file", "give a file or a Hugging Face folder")
    if suffix == ".pt2":
        raise _error(path, *_PT2)
    if suffix in (".pkl", ".pickle"):
        raise _error(path, "a pickle is code and was not opened", _SAFE)
    if path.name.endswith(_INDEX):
        return _shards(path)
    if suffix != ".safetensors" and suffix not in _TORCH:
        raise _error(path, f"unknown ending {suffix!r}", f"give .safetensors or one of {' '.join(_TORCH)}")
    if path.stat().st_size == 0:
        raise _error(path, "empty file (0 bytes)")
    return _safetensors(path) if suffix == ".safetensors" else _torch(path)


def _shards(path: Path) -> _Opened:
    if path.stat().st_size > _HEADER:
        raise _error(path, f"an index of more than {_HEADER:,} bytes", "check what this file is")
    index = _json(path, path.read_bytes())
    owners, about = index.get("weight_map"), index.get("metadata")
    if not isinstance(owners, dict) or not all(isinstance(file, str) for file in owners.values()):
        raise _error(path, "has no 'weight_map' from tensor names to file names")
    metadata = {k: v for k, v in about.items() if isinstance(v, str)} if isinstance(about, dict) else {}
    merged: dict[str, _Entry] = {}
    notes: list[str] = []
    for file in dict.fromkeys(owners.values()):
        entries, more, said = _open(_shard(path, file))
        differ = {name for name, owner in owners.items() if owner == file} ^ entries.keys()
        if differ:
            raise _error(path, f"disagrees with shard {file!r} about {_some(sorted(differ))}")
        merged |= entries
        metadata = {**more, **metadata}
        notes += [f"{file}: {note}" for note in said]
    return {name: merged[name] for name in owners}, metadata, notes


def _shard(index: Path, file: str) -> Path:
    """The file that an index names, kept inside its folder (in a hub cache: inside the model's own)."""
    plain = Path(file).name == file and "\\" not in file and "\0" not in file
    if not plain or not file.endswith((".safetensors", *_TORCH)):
        raise _error(index, f"names {file!r}, which is no plain file name", "do not trust this index")
    shard, folder = index.parent / file, index.parent.resolve()
    root = folder.parent.parent if folder.parent.name == "snapshots" else folder
    if not shard.resolve().is_relative_to(root):
        raise _error(index, f"{file!r} is a link that leaves {root}", "copy the file there instead")
    if not shard.exists():
        raise _error(index, f"shard {file!r} is missing", "fetch it into the same folder")
    return shard


# ------------------------------------------------------------------ safetensors


def _json(path: Path, text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        twice = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
        if twice:
            raise _error(path, f"{_some(twice)} stands twice in its JSON", "do not trust this file")
        return dict(pairs)

    try:
        value = json.loads(text, object_pairs_hook=unique)
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:
        raise _error(path, f"malformed JSON ({str(error)[:200]})") from error
    if not isinstance(value, dict):
        raise _error(path, f"its JSON is a {type(value).__name__}, not a mapping")
    return value


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """The parsed header, and where the data begins."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > _HEADER:
            raise _error(path, f"claims a header of {length:,} bytes (limit {_HEADER:,}) of {size:,}")
        if 8 + length > size:
            raise _error(path, f"truncated: a header of {length:,} bytes in a file of {size:,}")
        header = _json(path, file.read(length))
    if len(header) > _TENSORS + 1:
        raise _error(path, f"holds {len(header):,} tensors", f"give a file of at most {_TENSORS:,}")
    return header, 8 + length


def _safetensors(path: Path) -> _Opened:
    stamp = _stamp(path.stat())
    header, start = _header(path)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise _error(path, "its __metadata__ is not a mapping from text to text")
    entries = {name: _entry(path, name, claim, start, stamp) for name, claim in header.items()}
    try:
        with safe_open(path, framework="numpy"):
            pass  # the reference parser looks for what is left: overlaps, holes, trailing bytes
    except Exception as error:
        raise _error(path, f"damaged safetensors file ({str(error)[:200]})") from error
    return entries, metadata, []


def _entry(path: Path, name: str, claim: Any, start: int, stamp: tuple[int, ...]) -> _Entry:
    claim = claim if isinstance(claim, dict) else {}
    shape, offsets, code = claim.get("shape"), claim.get("data_offsets"), claim.get("dtype")
    lists = isinstance(shape, list) and isinstance(offsets, list) and len(offsets) == 2
    if not lists or not all(map(_is_size, [*shape, *offsets])):
        raise _error(path, f"tensor {name!r} has no proper shape and offsets")
    dtype = _DTYPES.get(code) if isinstance(code, str) else None
    if dtype is None:
        raise _error(path, f"tensor {name!r} has the unknown dtype {code!r:.80}", "convert it to F32")
    begin, end = offsets
    if not _plausible(shape) or math.prod(shape) * dtype.itemsize != end - begin or start + end > stamp[1]:
        seen = f"bytes {_shape(offsets)} of the {stamp[1] - start:,} that the file has"
        raise _error(path, f"tensor {name!r} claims {_shape(shape)} {code} and {seen}")
    return _Entry(torch.Size(shape), dtype, partial(_fetch, path, stamp, start + begin, shape, dtype))


def _stamp(stat: os.stat_result) -> tuple[int, ...]:
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _fetch(path: Path, stamp: tuple[int, ...], start: int, shape: list[int], dtype: torch.dtype) -> Tensor:
    # read, not mapped: a mapping is shared by all who ask, counts as memory in use, and dies with the file
    try:
        with path.open("rb") as file:
            if _stamp(os.fstat(file.fileno())) != stamp:
                raise _error(path, "changed since it was opened", "read it again")
            tensor = torch.empty(shape, dtype=dtype)
            file.seek(start)
            if tensor.numel() and file.readinto(_bytes(tensor)) != tensor.nbytes:
                raise _error(path, "ended before its last tensor")
    except (OSError, RuntimeError) as error:
        raise _error(path, f"cannot be read ({error})", "check the disk and the free memory") from error
    return tensor


def _bytes(tensor: Tensor) -> Any:
    return tensor.reshape(-1).view(torch.uint8).numpy()


# ------------------------------------------------------------------ torch.save


_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_ITEMSIZE = {
    **{"DoubleStorage": 8, "FloatStorage": 4, "HalfStorage": 2, "BFloat16Storage": 2, "BoolStorage": 1},
    **{"LongStorage": 8, "IntStorage": 4, "ShortStorage": 2, "CharStorage": 1, "ByteStorage": 1},
    **{"ComplexFloatStorage": 8, "ComplexDoubleStorage": 16, "UntypedStorage": 1},
}
_REBUILD = {f"torch._utils _rebuild_tensor{version}" for version in ("", "_v2", "_v3")}
_PARAMETER, _BYTES = "torch._utils _rebuild_parameter", "_codecs encode"
_CONTAINERS = {"collections OrderedDict", "collections Counter", "torch Size", "torch device"}
_KINDS = {
    "torch._utils _rebuild_sparse_tensor": "a sparse tensor",
    "torch._utils _rebuild_qtensor": "a quantised tensor",
    "torch._utils _rebuild_meta_tensor_no_storage": "a meta tensor, which has no data",
    "torch._utils _rebuild_nested_tensor": "a nested tensor",
}


def _torch(path: Path) -> _Opened:
    with path.open("rb") as file:
        zipped = file.read(4) == b"PK\3\4"
    try:
        (_audit_zip if zipped else _audit_legacy)(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except (CheckpointError, OSError):
        raise
    except Exception as error:
        why = str(error)[:200] or type(error).__name__
        raise _error(path, f"damaged, or not a state dict that torch.save wrote ({why})") from error
    return _unwrap(path, loaded)


def _audit_zip(path: Path) -> None:
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        root = records[0].filename.split("/")[0] + "/"
        sizes = {record.filename.removeprefix(root): record.file_size for record in records}
        if "archive_format" in sizes or any(name.startswith("models/") for name in sizes):
            raise _error(path, *_PT2)
        if "constants.pkl" in sizes or any(name.startswith("code/") for name in sizes):
            raise _error(path, "a TorchScript archive is code and was not opened", _SAFE)
        unpacked = sum(record.file_size for record in records)
        if unpacked > size or any(record.compress_type != zipfile.ZIP_STORED for record in records):
            raise _error(path, f"a compressed zip, {size:,} bytes that claim to be {unpacked:,}", _SAFE)
        # torch finds a record without regard to case, so of two it might read the one not looked at here
        doubled = len({name.casefold() for name in sizes}) < len(records)
        if doubled or archive.comment or not all(record.filename.startswith(root) for record in records):
            raise _error(path, "a zip with doubled or stray records", "do not trust this file")
        if not 0 < sizes.get("data.pkl", 0) <= _HEADER:
            seen = sizes.get("data.pkl", 0)
            raise _error(path, f"a zip with a data.pkl of {seen:,} bytes (wanted 1 to {_HEADER:,})", _SAFE)
        audit = _Audit(path)
        audit.run(io.BytesIO(archive.read(root + "data.pkl")))
    for key, storage in audit.claimed.items():
        held = sizes.get(f"data/{key}", 0)
        if storage.nbytes > held:
            raise _error(path, f"storage {key!r} claims {_count(storage.nbytes)} bytes, its record has {held:,}")


def _audit_legacy(path: Path) -> None:
    """The form before torch 1.6: five pickles, then every storage as a count and its bytes."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = io.BytesIO(file.read(_HEADER))
    audit = _Audit(path)
    if audit.run(head) != _MAGIC or audit.run(head) != _PROTOCOL:
        raise _error(path, "a pickle that torch.save did not write was not opened", _SAFE)
    audit.run(head)
    audit.run(head)
    keys, left = audit.run(head), size - head.tell()
    if not isinstance(keys, list) or not all(type(key) is str for key in keys) or {*keys} != {*audit.claimed}:
        raise _error(path, "the data that its tensors claim is not there")
    claimed = sum(storage.nbytes + 8 for storage in audit.claimed.values())
    if claimed > left:
        raise _error(path, f"its tensors claim {_count(claimed)} bytes, the file has {left:,} for them")


class _Global(NamedTuple):
    name: str


class _Storage(NamedTuple):
    nbytes: int
    itemsize: int


class _Tuple(tuple[Any, ...]):
    """A tuple that knows what hashing it costs: its parts, each counted as often as it occurs."""

    cost: int

    def __new__(cls, items: Iterable[Any] = ()) -> _Tuple:
        self = super().__new__(cls, items)
        self.cost = 1 + sum(item.cost if isinstance(item, _Tuple) else 1 for item in self)
        if self.cost > 10_000:
            raise ValueError("tuples nested without end")
        return self


_TENSOR, _MAPPING, _ORDERED, _OTHER = object(), object(), object(), object()
_PLAIN = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING"}
_CONSTANT: dict[str, Callable[[], Any]] = {
    **{"NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False},
    **{"EMPTY_TUPLE": _Tuple, "EMPTY_LIST": list, "EMPTY_DICT": lambda: _MAPPING},
}


class _Audit:
    """A dry run of pickles that calls and allocates nothing.

    Refuses all but plain tensors in plain containers, and tensors larger than the storage that they claim;
    `claimed` then is what the file says of its storages. `torch.load(weights_only=True)` allows all this and
    more: it would let a file of 1 kB ask for 10^12 numbers.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.claimed: dict[str, _Storage] = {}

    def run(self, stream: io.BytesIO) -> Any:
        """The value of the next pickle in the stream; mappings and tensors in it are mere tokens."""
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        for opcode, value, _ in pickletools.genops(stream):
            if opcode.name == "STOP":
                break
            if opcode.name in _PLAIN:
                self.stack.append(value)
            elif opcode.name in _CONSTANT:
                self.stack.append(_CONSTANT[opcode.name]())
            else:
                self._step(opcode.name, value)
        return self.stack.pop()

    def _step(self, opcode: str, value: Any) -> None:
        stack = self.stack
        match opcode:
            case "MARK":
                self.marks.append(stack)
                self.stack = []
            case "TUPLE":
                items = self._marked()
                self.stack.append(_Tuple(items))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                items = [stack.pop() for _ in range(int(opcode[-1]))]
                stack.append(_Tuple(reversed(items)))
            case "APPEND" | "APPENDS":
                items = self._marked() if opcode == "APPENDS" else [stack.pop()]
                self.stack[-1].extend(items)
            case "SETITEM":
                del stack[-2:]
            case "SETITEMS":
                self._marked()
            case "BINPUT" | "LONG_BINPUT":
                self.memo[value] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self.memo[value])
            case "GLOBAL":
                stack.append(self._known(value))
            case "REDUCE":
                arguments = stack.pop()
                stack.append(self._call(stack.pop(), arguments))
            case "BINPERSID":
                stack.append(self._storage(stack.pop()))
            case "BUILD" if len(stack) > 1 and stack[-2] is _ORDERED:
                stack.pop()
            case _ if (opcode, value) != ("PROTO", 2):
                raise ValueError(f"uses the pickle operation {opcode}")

    def _marked(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def _known(self, name: str) -> _Global:
        module, _, kind = name.partition(" ")
        stored = module in ("torch", "torch.cuda", "torch.storage") and kind in _ITEMSIZE
        dtype = module == "torch" and isinstance(getattr(torch, kind, None), torch.dtype)
        if stored or dtype or name in (_REBUILD | _CONTAINERS | {_PARAMETER, _BYTES}):
            return _Global(name)
        if name in _KINDS:
            raise _error(self.path, f"holds {_KINDS[name]}", "save dense tensors as safetensors")
        called = f"{name.replace(' ', '.')!r:.80}"
        raise _error(self.path, f"asks to run {called}, which is code and was not run", _SAFE)

    def _call(self, function: Any, arguments: Any) -> Any:
        if not isinstance(function, _Global) or not isinstance(arguments, _Tuple):
            raise ValueError("calls what is no function")
        if function.name in _REBUILD:
            return self._tensor(*arguments)
        if function.name == _PARAMETER and arguments[0] is _TENSOR:
            return _TENSOR
        if function.name == _BYTES and type(arguments[0]) is str and arguments[1:] == ("latin1",):
            return _OTHER  # any other codec could double its input, again and again
        if function.name not in _CONTAINERS:
            raise ValueError(f"calls {function.name}")
        return _ORDERED if function.name.endswith("OrderedDict") else _OTHER

    def _storage(self, claim: Any) -> _Storage:
        word, kind, key, place, numel, *view = claim
        texts = all(type(text) is str for text in (word, key, place)) and word == "storage"
        if not texts or not isinstance(kind, _Global) or not _is_size(numel) or view not in ([], [None]):
            raise ValueError("a storage in an unknown form")
        itemsize = _ITEMSIZE[kind.name.partition(" ")[2]]
        storage = _Storage(numel * itemsize, itemsize)
        if self.claimed.setdefault(key, storage) != storage:
            raise ValueError("one storage with two sizes")
        return storage

    def _tensor(self, storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Any:
        shaped = isinstance(size, _Tuple) and isinstance(stride, _Tuple) and len(size) == len(stride)
        if not isinstance(storage, _Storage) or not shaped or not all(map(_is_size, (offset, *size, *stride))):
            raise ValueError("a tensor in an unknown form")
        itemsize = storage.itemsize
        if len(rest) > 2 and isinstance(rest[2], _Global):  # the third form brings a dtype of its own
            itemsize = getattr(torch, rest[2].name.partition(" ")[2]).itemsize
        numel = math.prod(size)
        extent = 0
        if numel:
            extent = 1 + offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        needed = max(numel, extent) * itemsize
        if needed > storage.nbytes or not _plausible(size):
            seen = f"a tensor claims {_shape(size)}, {_count(needed)} bytes"
            held = f"of a storage of {_count(storage.nbytes)}"
            raise _error(self.path, f"{seen}, {held}", "save contiguous tensors, expanded ones after .clone()")
        return _TENSOR


def _unwrap(path: Path, loaded: Any) -> _Opened:
    """The state dict in what was loaded; a training checkpoint's scalars become metadata, the rest a note."""
    metadata: dict[str, str] = {}
    notes: list[str] = []
    while isinstance(loaded, dict) and len(notes) < 4:
        scalars = {key: str(item) for key, item in loaded.items() if isinstance(item, (str, int, float))}
        metadata |= {key: text for key, text in scalars.items() if isinstance(key, str)}
        nest = next((nest for nest in _NESTS if isinstance(loaded.get(nest), dict)), None)
        if nest is None:
            break
        left = [key for key in loaded if key != nest and key not in scalars]
        notes.append(f"took {nest!r}" + (f", left out {_some(left)}" if left else ""))
        loaded = loaded[nest]
    if not isinstance(loaded, dict) or not any(isinstance(item, Tensor) for item in loaded.values()):
        seen = f"only {_some(loaded) or 'an empty mapping'}" if isinstance(loaded, dict) else type(loaded).__name__
        raise _error(path, f"no tensors under names, but {seen}", "save module.state_dict() alone")
    for name, item in loaded.items():
        if not isinstance(name, str) or not isinstance(item, (Tensor, str, int, float)):
            seen = f"entry {name!r:.80} is a {type(item).__name__}, wanted a tensor under a text name"
            raise _error(path, seen, "save module.state_dict() alone")
    named = {name: item for name, item in loaded.items() if isinstance(item, Tensor)}
    for name, tensor in named.items():
        _dense(path, name, tensor)
    return {name: _Entry(t.shape, t.dtype, partial(_own, t)) for name, t in named.items()}, metadata, notes


def _own(tensor: Tensor) -> Tensor:
    return tensor.detach().resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)


def _dense(path: Path, name: str, tensor: Tensor) -> None:
    kinds = {
        "on the meta device, without data": tensor.is_meta,
        "quantised": tensor.is_quantized,
        "nested": tensor.is_nested,
        "sparse": tensor.layout is not torch.strided,
        f"a {type(tensor).__name__}": type(tensor) not in (Tensor, torch.nn.Parameter, torch.nn.Buffer),
    }
    for kind, found in kinds.items():
        if found:
            raise _error(path, f"tensor {name!r} is {kind}", "give dense tensors")


# ------------------------------------------------------------------ writing


class _Plan(NamedTuple):
    name: str
    dtype: torch.dtype
    shape: torch.Size

    @property
    def nbytes(self) -> int:
        return self.shape.numel() * self.dtype.itemsize


def save(
    tensors: Mapping[str, Tensor],
    path: str | os.PathLike[str],
    *,
    force: bool = False,
    metadata: Mapping[str, str] | None = None,
    shard: int = 5_000_000_000,
) -> Path:
    """Write safetensors, all of it or nothing; return the file to read (of a sharded checkpoint, the index).

    `path` ends in `.safetensors`, or is a folder, which gets Hugging Face's names (`model.safetensors`).
    Above `shard` bytes the tensors go to `name-00001-of-0000N.safetensors` beside
    `name.safetensors.index.json`. Tied tensors are written under each name. `metadata` defaults to that
    of a `Checkpoint`. Each tensor is asked for twice, one at a time, so a lazy mapping costs the memory
    of its largest tensor. Files grow under hidden names `.name.*.tmp` and are renamed when complete; with
    `force` they replace what stands there.
    Raises `CheckpointError`.
    """
    path = Path(path)
    folder, stem = (path, "model") if path.is_dir() else (path.parent, path.name.removesuffix(".safetensors"))
    old = _vacant(path, folder, stem, force)
    given = tensors.metadata if metadata is None and isinstance(tensors, Checkpoint) else metadata
    about = {"format": "pt", **(given or {})}
    if not all(isinstance(text, str) for item in about.items() for text in item):
        raise _error(path, "metadata is not text to text", "turn its values into strings")
    groups = _groups([_planned(path, name, tensors[name]) for name in tensors], shard)
    if not groups:
        raise _error(path, "there are no tensors to write", "give a state dict")
    names = [f"{stem}-{i:05}-of-{len(groups):05}.safetensors" for i in range(1, len(groups) + 1)]
    names = names if len(groups) > 1 else [f"{stem}.safetensors"]
    written: dict[Path, Callable[[BinaryIO], None]] = {}
    for name, group in zip(names, groups, strict=True):
        written[folder / name] = partial(_stream, path, tensors, group, about)
    if len(groups) > 1:
        owners = {plan.name: name for name, group in zip(names, groups, strict=True) for plan in group}
        total = sum(plan.nbytes for group in groups for plan in group)
        index = {"metadata": {**about, "total_size": total}, "weight_map": owners}
        written[folder / f"{stem}.safetensors{_INDEX}"] = lambda file: _dump(file, index)
    _write(path, written, old)
    return list(written)[-1]


def _vacant(path: Path, folder: Path, stem: str, force: bool) -> list[Path]:
    """What an earlier save under this name left; an error if that must stay."""
    if not folder.is_dir():
        raise _error(path, f"the folder {folder} does not exist", "create it first")
    if path.name == stem and not path.is_dir():
        raise _error(path, "only .safetensors is written", "give such a name, or a folder that exists")
    pattern = re.compile(rf"{re.escape(stem)}(-\d{{5}}-of-\d{{5}})?\.safetensors({re.escape(_INDEX)})?")
    try:
        old = sorted(item for item in folder.iterdir() if pattern.fullmatch(item.name))
    except OSError as error:
        raise _error(path, f"the folder cannot be read ({error.strerror})", "choose another place") from error
    if old and not force:
        raise _error(path, f"{old[0].name} exists", "choose another name, or overwrite with force (--force)")
    return old


def _planned(path: Path, name: str, tensor: Tensor) -> _Plan:
    if not isinstance(name, str) or not isinstance(tensor, Tensor) or name == "__metadata__":
        raise _error(path, f"{name!r:.80} is a {type(tensor).__name__}", "give named tensors only")
    _dense(path, name, tensor)
    if tensor.dtype not in _CODES:
        raise _error(path, f"tensor {name!r} is {tensor.dtype}, which safetensors lacks", "convert it first")
    return _Plan(name, tensor.dtype, tensor.shape)


def _groups(plans: list[_Plan], shard: int) -> list[list[_Plan]]:
    groups: list[list[_Plan]] = []
    taken = 0
    for plan in plans:
        if not groups or taken + plan.nbytes > shard:
            groups.append([])
            taken = 0
        groups[-1].append(plan)
        taken += plan.nbytes
    return groups


def _stream(
    path: Path, tensors: Mapping[str, Tensor], group: list[_Plan], about: Mapping[str, str], file: BinaryIO
) -> None:
    # the widest dtype first, as the reference does: every tensor is then aligned to its item size
    ordered = sorted(group, key=lambda plan: (-plan.dtype.itemsize, plan.name))
    ends = dict(zip([p.name for p in ordered], _cumulative(p.nbytes for p in ordered), strict=True))
    header: dict[str, Any] = {"__metadata__": dict(about)}
    for plan in group:
        offsets = [ends[plan.name] - plan.nbytes, ends[plan.name]]
        header[plan.name] = {"dtype": _CODES[plan.dtype], "shape": [*plan.shape], "data_offsets": offsets}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > _HEADER or len(group) > _TENSORS:
        raise _error(path, f"{len(group):,} tensors, {len(text):,} bytes of names", "write fewer to a file")
    file.write(len(text).to_bytes(8, "little") + text)
    for plan in ordered:
        tensor = tensors[plan.name].detach().cpu().resolve_conj().resolve_neg().contiguous()
        if (tensor.dtype, tensor.shape) != (plan.dtype, plan.shape):
            raise _error(path, f"tensor {plan.name!r} changed while it was written", "try again")
        if plan.nbytes:
            file.write(_bytes(tensor))


def _write(path: Path, written: Mapping[Path, Callable[[BinaryIO], None]], old: list[Path]) -> None:
    """All temporary files, then the renames in order, and last what remains of the old checkpoint goes."""
    temporary = {file: file.with_name(f".{file.name}.{secrets.token_hex(4)}.tmp") for file in written}
    doing = "written"
    try:
        for target, write in written.items():
            with temporary[target].open("xb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
        doing = "put in its place"
        for item in old:
            if len(written) > 1 and item.name.endswith(_INDEX):
                item.unlink()  # else a kill between two renames would leave the old index over new shards
        for target, source in temporary.items():
            os.replace(source, target)
        _sync(target.parent)
        for item in old:
            if item not in written:
                item.unlink(missing_ok=True)
    except OSError as error:
        do = "free space or choose another place"
        raise _error(path, f"could not be {doing} ({error.strerror or error})", do) from error
    except UnicodeEncodeError as error:
        raise _error(path, f"a name or metadata text is not valid Unicode ({error})", "rename it") from error
    finally:
        for source in temporary.values():
            source.unlink(missing_ok=True)


def _dump(file: BinaryIO, value: Mapping[str, Any]) -> None:
    file.write(json.dumps(value, ensure_ascii=False, indent=2).encode())


def _cumulative(values: Iterable[int]) -> Iterator[int]:
    total = 0
    for value in values:
        total += value
        yield total


def _sync(folder: Path) -> None:
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            with suppress(OSError):  # some network file systems cannot; the files are in their place already
                os.fsync(handle)
        finally:
            os.close(handle)
