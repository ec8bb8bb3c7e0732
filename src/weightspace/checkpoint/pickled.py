"""Reading the files of `torch.save` without running code from them.

A dry run of the pickle, which calls nothing, checks every size before `torch.load(weights_only=True)` reads the file.
"""

from __future__ import annotations

import io
import math
import pickletools
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from weightspace.checkpoint import files
from weightspace.checkpoint.refusal import (
    DIRECTORY,
    HEADER,
    PT2,
    SAFE,
    CheckpointError,
    Entry,
    Opened,
    chosen,
    count,
    dense,
    is_size,
    plausible,
    refusal,
    shape_of,
    some,
    words,
)

__all__ = ["read_torch"]


_BESIDE = {*"optimizer optimizers optimiser optim scheduler scaler sampler rng".split()}
_DEEPEST, _MOST = 4, 10_000  # depth and number of nested mappings
_FOREIGN = {".npy": "a file of numpy arrays (.npz)", "model.weights.h5": "a Keras network"}
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


def read_torch(path: Path, wanted: str | None = None) -> Opened:
    """The network in a file that `torch.save` wrote; of several, the one that `wanted` names.

    Raises `CheckpointError`, before anything of the file could run.
    """
    with path.open("rb") as file:
        zipped = file.read(4) == b"PK\3\4"
    try:
        sums = _audit(path, zipped)
        if path.suffix == ".safetensors":  # torch would go by this ending, whatever the file is
            with path.open("rb") as file:
                loaded = torch.load(file, map_location="cpu", weights_only=True)
        else:
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except (CheckpointError, OSError):
        raise
    except MemoryError as error:
        raise refusal(path, "does not fit into the free memory", "use a larger machine") from error
    except Exception as error:
        why = str(error)[:200] or type(error).__name__
        raise refusal(path, f"damaged, or not a state dict that torch.save wrote ({why})") from error
    return _unwrap(path, loaded, wanted, _Sums(path, sums))


def _audit(path: Path, zipped: bool) -> set[tuple[int, int]] | None:
    if zipped:
        return _audit_zip(path)
    _audit_legacy(path)
    return None


class _Sums:
    """The checksums of the storages in a zip, which torch itself does not check; each storage is checked once."""

    def __init__(self, path: Path, known: set[tuple[int, int]] | None) -> None:
        self._path, self._known, self._seen = path, known, set[int]()

    def check(self, name: str, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if self._known is None or storage.data_ptr() in self._seen:
            return
        raw: Any = torch.empty(0, dtype=torch.uint8).set_(storage).numpy()
        if (storage.nbytes(), zlib.crc32(raw)) not in self._known:
            raise refusal(self._path, f"tensor {name!r} is damaged: its checksum is wrong")
        self._seen.add(storage.data_ptr())


def _audit_zip(path: Path) -> set[tuple[int, int]] | None:
    """Sizes and checksums of the records of a zip; None where it was written without checksums."""
    size, listed = path.stat().st_size, files.directory_size(path)
    if listed > DIRECTORY:
        raise refusal(path, f"a zip that lists its records in {listed:,} bytes (limit {DIRECTORY:,})", SAFE)
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        if not records:
            raise refusal(path, "an empty zip")
        root = records[0].filename.split("/")[0] + "/"
        sizes = {record.filename.removeprefix(root): record.file_size for record in records}
        if "archive_format" in sizes or any(name.startswith("models/") for name in sizes):
            raise refusal(path, *PT2)
        if "constants.pkl" in sizes or any(name.startswith("code/") for name in sizes):
            raise refusal(path, "a TorchScript archive is code and was not opened", SAFE)
        if foreign := next((what for ending, what in _FOREIGN.items() if _ends(records, ending)), None):
            raise refusal(path, f"is {foreign}, not a checkpoint of torch", "give safetensors or a file of torch.save")
        unpacked = sum(record.file_size for record in records)
        if unpacked > size or any(record.compress_type != zipfile.ZIP_STORED for record in records):
            raise refusal(path, f"a compressed zip, {size:,} bytes that claim to be {unpacked:,}", SAFE)
        # torch ignores case in names of records, so of two alike it might read the one that is not checked here
        doubled = len({name.casefold() for name in sizes}) < len(records)
        if doubled or archive.comment or not all(record.filename.startswith(root) for record in records):
            raise refusal(path, "a zip with doubled or stray records", "do not trust this file")
        if not 0 < sizes.get("data.pkl", 0) <= HEADER:
            seen = sizes.get("data.pkl", 0)
            raise refusal(path, f"a zip with a data.pkl of {seen:,} bytes (wanted 1 to {HEADER:,})", SAFE)
        summed = any(record.CRC for record in records)
        if not summed:  # torch can write files without checksums
            archive.getinfo(root + "data.pkl").CRC = None  # type: ignore[assignment]
        audit = _Audit(path)
        audit.run(io.BytesIO(archive.read(root + "data.pkl")))
    for key, storage in audit.claimed.items():
        held = sizes.get(f"data/{key}", 0)
        if storage.nbytes > held:
            raise refusal(path, f"storage {key!r} claims {count(storage.nbytes)} bytes, its record has {held:,}")
        if summed and storage.nbytes < held:
            raise refusal(path, f"storage {key!r} claims {storage.nbytes:,} of the {held:,} bytes of its record")
    return {(record.file_size, record.CRC) for record in records} if summed else None


def _ends(records: list[zipfile.ZipInfo], ending: str) -> bool:
    return any(record.filename.endswith(ending) for record in records)


def _audit_legacy(path: Path) -> None:
    """Check a file in the format before torch 1.6: five pickles, then every storage as a count and its bytes."""
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
    """A tuple with the cost of hashing it: its nested parts, each counted as often as it occurs."""

    cost: int

    def __new__(cls, items: Iterable[Any] = ()) -> _Tuple:
        self = super().__new__(cls, items)
        self.cost = 1 + sum(item.cost if isinstance(item, _Tuple) else 1 for item in self)
        if self.cost > 10_000:
            raise ValueError("tuples nested without end")
        return self


_TENSOR, _MAPPING, _ORDERED, _OTHER = object(), object(), object(), object()
_OPERATIONS, _CONTAINERS_MOST = 5_000_000, 1_000_000  # 100,000 tensors take 3,000,000 and 400,000
_PLAIN = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING"}
_CONSTANT: dict[str, Callable[[], Any]] = {
    **{"NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False},
    **{"EMPTY_TUPLE": _Tuple, "EMPTY_LIST": list, "EMPTY_DICT": lambda: _MAPPING},
}


class _Audit:
    """A dry run of pickles that calls and allocates nothing.

    Refuses everything but plain tensors in plain containers, and tensors larger than their storage; `claimed` holds the
    sizes of the storages as the file gives them. `torch.load(weights_only=True)` is laxer: it would let a file of 1 kB
    allocate 10^12 numbers.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.claimed: dict[str, _Storage] = {}
        self.made = 0

    def run(self, stream: io.BytesIO) -> Any:
        """The value of the next pickle in the stream, with placeholders for mappings and tensors."""
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        for number, (opcode, value, _) in enumerate(pickletools.genops(stream)):
            if opcode.name == "STOP":
                break
            if number > _OPERATIONS or self.made > _CONTAINERS_MOST:
                raise ValueError("a pickle of more operations than any network takes")
            if opcode.name in _PLAIN:
                self.stack.append(value)
            elif opcode.name in _CONSTANT:
                self.stack.append(_CONSTANT[opcode.name]())
            else:
                self.made += opcode.name.startswith("TUPLE")
                self._step(opcode.name, value)
            self.made += opcode.name == "EMPTY_LIST"
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
        if module == "torch" and re.fullmatch(r"(q?u?int|b?float|complex|bits)\d\w*", kind):
            raise refusal(self.path, f"holds numbers of {kind}, which this torch lacks", "convert them to float32")
        if name in _KINDS:
            raise refusal(self.path, f"holds {_KINDS[name]}", "save dense tensors as safetensors")
        called = f"{name.replace(' ', '.')!r:.80}"
        raise refusal(self.path, f"asks to run {called}, which is code and was not run", SAFE)

    def _call(self, function: Any, arguments: Any) -> Any:
        if not isinstance(function, _Global) or not isinstance(arguments, _Tuple):
            raise ValueError("calls something that is not a function")
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
        if len(rest) > 2 and isinstance(rest[2], _Global):  # `_rebuild_tensor_v3` has a dtype of its own
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


def _unwrap(path: Path, loaded: Any, wanted: str | None, sums: _Sums) -> Opened:
    """The one network in a loaded file; scalars beside it become metadata, everything else is named in a note."""
    found = _networks(path, loaded) if isinstance(loaded, dict) else {}
    if not found:
        seen = f"only {some(loaded) or 'an empty mapping'}" if isinstance(loaded, dict) else type(loaded).__name__
        raise refusal(path, f"no tensors under names, but {seen}", "save module.state_dict() alone")
    taken = chosen(path, found, wanted)
    tree, metadata, left = loaded, dict[str, str](), list[str]()
    for depth, key in enumerate((*found[taken], None)):
        scalars = {k: str(item) for k, item in tree.items() if isinstance(item, (str, int, float))}
        metadata |= {k: text for k, text in scalars.items() if isinstance(k, str)}
        beside = [k for k in tree if k != key and k not in scalars] if key is not None else _mappings(tree)
        left += [".".join(map(str, (*found[taken][:depth], k))) for k in beside]
        tree = tree[key] if key is not None else tree
    for name, item in tree.items():
        if not isinstance(name, str) or not isinstance(item, (Tensor, str, int, float, dict)):
            seen = f"entry {name!r:.80} is a {type(item).__name__}, wanted a tensor under a text name"
            raise refusal(path, seen, "save module.state_dict() alone")
    named = {name: item for name, item in tree.items() if isinstance(item, Tensor)}
    for name, tensor in named.items():
        dense(path, name, tensor)
    entries = {name: Entry(t.shape, t.dtype, partial(_own, t, name, sums)) for name, t in named.items()}
    left.sort(key=lambda key: key not in found)  # other networks come first
    took, lost = [f"took {taken!r}"] if taken else [], [f"left out {some(left)}"] if left else []
    return Opened(entries, metadata, [", ".join(took + lost)] if took + lost else [], taken)


def _mappings(tree: dict[Any, Any]) -> list[Any]:
    return [key for key, item in tree.items() if isinstance(item, dict)]


def _networks(path: Path, loaded: dict[Any, Any]) -> dict[str, tuple[Any, ...]]:
    """The networks (mappings from names to weights) in a file: dotted name -> the keys that lead to it."""
    levels: list[tuple[tuple[Any, ...], dict[Any, Any]]] = [((), loaded)]
    seen: list[tuple[tuple[Any, ...], dict[Any, Any]]] = []
    for keys, tree in levels:
        if {"state", "param_groups"} <= tree.keys():  # the state of an optimiser
            continue
        seen.append((keys, tree))
        deeper = [key for key in _mappings(tree) if isinstance(key, str) and not words(key) & _BESIDE]
        levels += [((*keys, key), tree[key]) for key in deeper if len(keys) < _DEEPEST]
        if len(levels) > _MOST:
            raise refusal(path, "mappings nested without end", "save module.state_dict() alone")
    for kind in (_is_weight, torch.is_tensor):
        found = {".".join(keys): keys for keys, tree in seen if any(map(kind, tree.values()))}
        if found:
            return found
    return {}


def _is_weight(item: Any) -> bool:
    return isinstance(item, Tensor) and item.dim() > 0 and (item.is_floating_point() or item.is_complex())


def _own(
    tensor: Tensor, name: str, sums: _Sums, part: tuple[int, int] | None = None, out: Tensor | None = None
) -> Tensor:
    """A copy of a tensor, or of the entries from `part[0]` to `part[1]` as a vector."""
    sums.check(name, tensor)
    own = tensor.detach()
    own = own if part is None else own.reshape(-1)[slice(*part)]
    if out is not None:
        return out.copy_(own)
    return own.resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)
