"""What `torch.save` wrote, read without running it.

A dry run of the pickle calls nothing and checks every size before `torch.load(weights_only=True)` sees the file.
"""

from __future__ import annotations

import io
import math
import pickletools
import zipfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from weightspace.entry import (
    HEADER,
    PT2,
    SAFE,
    CheckpointError,
    Entry,
    Opened,
    count,
    dense,
    is_size,
    plausible,
    refusal,
    shape_of,
    some,
)

__all__ = ["read_torch"]

_NESTS = ("state_dict", "model_state_dict", "model")
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


def read_torch(path: Path) -> Opened:
    """The tensors of a file that `torch.save` wrote; raises `CheckpointError` before anything of it could run."""
    with path.open("rb") as file:
        zipped = file.read(4) == b"PK\3\4"
    try:
        (_audit_zip if zipped else _audit_legacy)(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except (CheckpointError, OSError):
        raise
    except Exception as error:
        why = str(error)[:200] or type(error).__name__
        raise refusal(path, f"damaged, or not a state dict that torch.save wrote ({why})") from error
    return _unwrap(path, loaded)


def _audit_zip(path: Path) -> None:
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        root = records[0].filename.split("/")[0] + "/"
        sizes = {record.filename.removeprefix(root): record.file_size for record in records}
        if "archive_format" in sizes or any(name.startswith("models/") for name in sizes):
            raise refusal(path, *PT2)
        if "constants.pkl" in sizes or any(name.startswith("code/") for name in sizes):
            raise refusal(path, "a TorchScript archive is code and was not opened", SAFE)
        unpacked = sum(record.file_size for record in records)
        if unpacked > size or any(record.compress_type != zipfile.ZIP_STORED for record in records):
            raise refusal(path, f"a compressed zip, {size:,} bytes that claim to be {unpacked:,}", SAFE)
        # torch finds a record without regard to case, so of two it might read the one not looked at here
        doubled = len({name.casefold() for name in sizes}) < len(records)
        if doubled or archive.comment or not all(record.filename.startswith(root) for record in records):
            raise refusal(path, "a zip with doubled or stray records", "do not trust this file")
        if not 0 < sizes.get("data.pkl", 0) <= HEADER:
            seen = sizes.get("data.pkl", 0)
            raise refusal(path, f"a zip with a data.pkl of {seen:,} bytes (wanted 1 to {HEADER:,})", SAFE)
        audit = _Audit(path)
        audit.run(io.BytesIO(archive.read(root + "data.pkl")))
    for key, storage in audit.claimed.items():
        held = sizes.get(f"data/{key}", 0)
        if storage.nbytes > held:
            raise refusal(path, f"storage {key!r} claims {count(storage.nbytes)} bytes, its record has {held:,}")


def _audit_legacy(path: Path) -> None:
    """The form before torch 1.6: five pickles, then every storage as a count and its bytes."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = io.BytesIO(file.read(HEADER))
    audit = _Audit(path)
    if audit.run(head) != _MAGIC or audit.run(head) != _PROTOCOL:
        raise refusal(path, "a pickle that torch.save did not write was not opened", SAFE)
    audit.run(head)
    audit.run(head)
    keys, left = audit.run(head), size - head.tell()
    if not isinstance(keys, list) or not all(type(key) is str for key in keys) or {*keys} != {*audit.claimed}:
        raise refusal(path, "the data that its tensors claim is not there")
    claimed = sum(storage.nbytes + 8 for storage in audit.claimed.values())
    if claimed > left:
        raise refusal(path, f"its tensors claim {count(claimed)} bytes, the file has {left:,} for them")


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
            raise refusal(self.path, f"holds {_KINDS[name]}", "save dense tensors as safetensors")
        called = f"{name.replace(' ', '.')!r:.80}"
        raise refusal(self.path, f"asks to run {called}, which is code and was not run", SAFE)

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
        if not texts or not isinstance(kind, _Global) or not is_size(numel) or view not in ([], [None]):
            raise ValueError("a storage in an unknown form")
        itemsize = _ITEMSIZE[kind.name.partition(" ")[2]]
        storage = _Storage(numel * itemsize, itemsize)
        if self.claimed.setdefault(key, storage) != storage:
            raise ValueError("one storage with two sizes")
        return storage

    def _tensor(self, storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Any:
        shaped = isinstance(size, _Tuple) and isinstance(stride, _Tuple) and len(size) == len(stride)
        if not isinstance(storage, _Storage) or not shaped or not all(map(is_size, (offset, *size, *stride))):
            raise ValueError("a tensor in an unknown form")
        itemsize = storage.itemsize
        if len(rest) > 2 and isinstance(rest[2], _Global):  # the third form brings a dtype of its own
            itemsize = getattr(torch, rest[2].name.partition(" ")[2]).itemsize
        numel = math.prod(size)
        extent = 0
        if numel:
            extent = 1 + offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        needed = max(numel, extent) * itemsize
        if needed > storage.nbytes or not plausible(size):
            seen = f"a tensor claims {shape_of(size)}, {count(needed)} bytes"
            held = f"of a storage of {count(storage.nbytes)}"
            raise refusal(self.path, f"{seen}, {held}", "save contiguous tensors, expanded ones after .clone()")
        return _TENSOR


def _unwrap(path: Path, loaded: Any) -> Opened:
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
        notes.append(f"took {nest!r}" + (f", left out {some(left)}" if left else ""))
        loaded = loaded[nest]
    if not isinstance(loaded, dict) or not any(isinstance(item, Tensor) for item in loaded.values()):
        seen = f"only {some(loaded) or 'an empty mapping'}" if isinstance(loaded, dict) else type(loaded).__name__
        raise refusal(path, f"no tensors under names, but {seen}", "save module.state_dict() alone")
    for name, item in loaded.items():
        if not isinstance(name, str) or not isinstance(item, (Tensor, str, int, float)):
            seen = f"entry {name!r:.80} is a {type(item).__name__}, wanted a tensor under a text name"
            raise refusal(path, seen, "save module.state_dict() alone")
    named = {name: item for name, item in loaded.items() if isinstance(item, Tensor)}
    for name, tensor in named.items():
        dense(path, name, tensor)
    return {name: Entry(t.shape, t.dtype, partial(_own, t)) for name, t in named.items()}, metadata, notes


def _own(tensor: Tensor) -> Tensor:
    return tensor.detach().resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)
