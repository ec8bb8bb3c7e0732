"""The file of a recorded training run: an append-only file of numbers, tensors and gates, one record after the other.

    8 bytes           magic number and version
    each record       12 bytes (length, CRC-32), then a safetensors block: the tensors, and a JSON tree that names them

A truncated file is read up to its last whole record. It holds no code.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import struct
import warnings
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path as File
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors
from torch import Tensor

from weightspace.checkpoint import files
from weightspace.inside.units import Gates
from weightspace.net.errors import WeightspaceError
from weightspace.net.public import public

__all__ = ["Record", "Recording", "RecordingError", "Writer"]


try:
    import fcntl
except ImportError:  # no such locks on Windows, where a second writer is not seen
    fcntl = None  # type: ignore[assignment]

_MARK, _HEAD = b"WSREC\x00\x00\x01", struct.Struct("<QI")
_TENSOR, _GATES = "$tensor", "$gates"


class RecordingError(WeightspaceError):
    """A file that is not a recording, or that cannot be written now."""


@public
@dataclass(frozen=True)
class Record:
    """One record: the step, seconds since the start, `values` by name, and `failed` observables with their message."""

    step: int
    seconds: float
    values: dict[str, Any]
    failed: dict[str, str]


@public
class Recording:
    """The records in a file, each read when it is asked for: `len(recording)`, `recording[k]`, iteration.

    An incomplete last record is left out, with a warning. Raises `RecordingError` for a file of another kind, or with
    damaged records before its end.

    >>> import tempfile, weightspace as ws
    >>> net, task = ws.demo.example()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     watch = ws.Recorder(net.module(), file=f"{folder}/run.rec", tell=None)
    ...     record = watch.record(loss=2.5)
    ...     watch.close()
    ...     recording = ws.training.Recording(f"{folder}/run.rec")
    ...     print(len(recording), recording.series("loss"))
    2 ([0], [2.5])
    """

    def __init__(self, file: str | os.PathLike[str]) -> None:
        self.file = File(file)
        try:
            with self.file.open("rb") as stream:
                self._places, self.end, size = _scan(stream)
        except OSError as error:
            raise RecordingError(f"{file}: cannot be read ({error.strerror})") from error
        except ValueError as error:
            raise RecordingError(f"{file}: {error}") from error
        if self.end < size:
            warnings.warn(f"{file}: cut off after {len(self)} records; the rest is left out", stacklevel=2)
        if not self._places:
            raise RecordingError(f"{file}: cut off before its first record; nothing in it can be read")
        self.header, self._start = self._load(self._places[0])
        names = self.header.get("observables")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise RecordingError(f"{file}: its header is not that of a recording; copy it again")

    def _load(self, place: tuple[int, int, int]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        offset, length, crc = place
        try:
            with self.file.open("rb") as stream:
                stream.seek(offset)
                block = stream.read(length)
        except OSError as error:
            raise RecordingError(f"{self.file}: cannot be read ({error.strerror})") from error
        if zlib.crc32(block) != crc:
            raise RecordingError(f"{self.file}: damaged at byte {offset}; copy it again")
        try:
            return _unpacked(block)
        except RecordingError as error:
            raise RecordingError(f"{self.file}: {error}; copy it again") from error

    def __len__(self) -> int:
        return max(0, len(self._places) - 1)

    def __getitem__(self, k: int) -> Record:
        tree, tensors = self._load(self._places[1:][k])
        fields: list[Any] = [tree.get(field.name) for field in dataclasses.fields(Record)]
        step, seconds, values, failed = fields
        known = type(step) is int and step >= 0 and type(seconds) in (int, float) and isinstance(failed, dict)
        if not known or not isinstance(values, dict) or not all(isinstance(text, str) for text in failed.values()):
            raise RecordingError(f"{self.file}: record {k} lacks a field or holds one of another type; copy it again")
        try:
            return Record(step, float(seconds), {n: revived(v, tensors) for n, v in values.items()}, failed)
        except (RecordingError, RecursionError) as error:
            why = str(error) if isinstance(error, RecordingError) else "it is nested too deep"
            raise RecordingError(f"{self.file}: record {k} cannot be read ({why}); copy it again") from error

    def __iter__(self) -> Iterator[Record]:
        return (self[k] for k in range(len(self)))

    def __repr__(self) -> str:
        return f"Recording({self.file.name}: {len(self)} records of {', '.join(self.header['observables'])})"

    @property
    def start(self) -> dict[str, Tensor]:
        """The weights at the start, by name; empty where they were not kept."""
        return self._start

    def series(self, name: str) -> tuple[list[int], list[Any]]:
        """The steps and values of one name, "fisher" or, within a mapping, "fisher.trace", where it was recorded.

        Raises `RecordingError` for a name that no record has.
        """
        steps, values = [], []
        for record in self:
            found: Any = record.values
            for part in (name,) if name in record.values else name.split("."):
                found = found.get(part) if isinstance(found, Mapping) else None
            if found is not None:
                steps.append(record.step)
                values.append(found)
        if not steps:
            names = sorted({key for record in self for key in record.values})
            raise RecordingError(f"{self.file}: no record of {name!r}; there are {', '.join(names)}")
        return steps, values


@public
class Writer:
    """Append records to a file, which no other writer may have open.

    A new file begins with `header` and the tensors `start`; an existing one is continued after its last whole record,
    if its header has the same "fingerprint". Raises `RecordingError`.

    >>> import tempfile, weightspace as ws
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     writer = ws.training.Writer(f"{folder}/run.rec", {"observables": ["loss"]}, start={})
    ...     writer.append(ws.training.Record(0, 0.0, {"loss": 2.5}, {}))
    ...     writer.close()
    ...     print(ws.training.Recording(f"{folder}/run.rec")[0].values)
    {'loss': 2.5}
    """

    def __init__(self, file: str | os.PathLike[str], header: dict[str, Any], start: Mapping[str, Tensor]) -> None:
        self.file = File(file)
        try:
            files.refuse_dangling(self.file)
            self._stream = open(self.file, "r+b" if self.file.exists() else "x+b")
        except OSError as error:
            raise RecordingError(f"{file}: cannot be written ({error.strerror})") from error
        try:
            self.last = self._open(header, start)
        except BaseException:
            self._stream.close()
            raise

    def _open(self, header: dict[str, Any], start: Mapping[str, Tensor]) -> Record | None:
        _lock(self._stream, self.file)
        if self._begins():
            self._stream.seek(0)
            self._stream.truncate(0)
            self._stream.write(_MARK)
            self._write(_packed(header, dict(start)))
            self.start = dict(start)
            return None
        there = Recording(self.file)
        if there.header.get("fingerprint") != header.get("fingerprint"):
            raise RecordingError(f"{self.file}: records another architecture; choose another file")
        self._stream.truncate(there.end)
        self._stream.seek(there.end)
        self.start = there.start
        return there[-1] if len(there) else None

    def _begins(self) -> bool:
        """Whether the file is new, or of a run that was killed before its first block was complete."""
        head = self._stream.read(len(_MARK))
        if len(head) < len(_MARK):
            return _MARK.startswith(head)
        try:
            places, end, size = _scan(self._stream)
        except ValueError:
            return False
        return not places and end <= size

    def append(self, record: Record) -> None:
        """Write a record. Raises `TypeError` for values that a record cannot hold; the file then stays as it was."""
        tensors: dict[str, Tensor] = {}
        tree = {
            "step": record.step, "seconds": record.seconds, "failed": record.failed,
            "values": {name: plain(value, tensors, name) for name, value in record.values.items()},
        }  # fmt: skip
        self._write(_packed(tree, tensors))

    def _write(self, block: bytes) -> None:
        try:
            self._stream.write(_HEAD.pack(len(block), zlib.crc32(block)) + block)
            self._stream.flush()
        except OSError as error:
            raise RecordingError(f"{self.file}: cannot be written ({error.strerror})") from error

    def close(self) -> None:
        """Close the file, so that others may write it."""
        self._stream.close()


def plain(value: Any, tensors: dict[str, Tensor], at: str) -> Any:
    """A value as a JSON tree; its tensors go into `tensors` under names that the tree holds.

    Raises `TypeError` for anything but numbers, text, tensors, `Gates`, and dataclasses, mappings and lists of such.
    """
    if isinstance(value, Gates):
        tensors[at] = torch.from_numpy(np.ascontiguousarray(value.bits))
        return {_GATES: at, "layers": value.layers, "inexact": list(value.inexact)}
    if isinstance(value, (Tensor, np.ndarray)):
        value = torch.as_tensor(value).detach()
        if value.dim() == 0:
            return value.item()
        tensors[at] = value.cpu().contiguous().clone()
        return {_TENSOR: at}
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(part, tensors, f"{at}.{key}") for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part, tensors, f"{at}.{k}") for k, part in enumerate(value)]
    raise TypeError(f"a {type(value).__name__} cannot be recorded; return numbers, tensors, gates or mappings of them")


def revived(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The value of a JSON tree, dataclasses as mappings. Raises `RecordingError` for a malformed tree."""
    if isinstance(tree, list):
        return [revived(part, tensors) for part in tree]
    if not isinstance(tree, dict):
        return tree
    if _TENSOR in tree:
        return _named(tensors, tree[_TENSOR])
    if _GATES in tree:
        return _gates(_named(tensors, tree[_GATES]), tree.get("layers"), tree.get("inexact"))
    return {key: revived(part, tensors) for key, part in tree.items()}


def _named(tensors: Mapping[str, Tensor], name: Any) -> Tensor:
    if not isinstance(name, str) or name not in tensors:
        raise RecordingError(f"it has no tensor {name!r:.80}")
    return tensors[name]


def _gates(bits: Tensor, layers: Any, inexact: Any) -> Gates:
    known = isinstance(layers, dict) and all(type(size) is int and size > 0 for size in layers.values())
    known = known and isinstance(inexact, list) and all(name in layers for name in inexact if isinstance(name, str))
    if not known or bits.dtype != torch.uint8 or bits.shape[1:] != (-(-sum(layers.values()) // 8),):
        raise RecordingError("its gates do not fit the layers that they belong to")
    return Gates(bits.numpy(), layers, tuple(map(str, inexact)))


def _packed(tree: dict[str, Any], tensors: dict[str, Tensor]) -> bytes:
    return safetensors.save({name: t.contiguous() for name, t in tensors.items()}, {"record": json.dumps(tree)})


def _unpacked(block: bytes) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        length = int.from_bytes(block[:8], "little")
        tree = files.parse(files.parse(block[8 : 8 + length])["__metadata__"]["record"])
        return dict(tree), safetensors.load(block)
    except (SafetensorError, ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        raise RecordingError(f"a record that cannot be read ({type(error).__name__})") from error


def _scan(stream: BinaryIO) -> tuple[list[tuple[int, int, int]], int, int]:
    """Offset, length and checksum of every whole record; the end of the last; the file's size."""
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    if stream.read(len(_MARK)) != _MARK:
        raise ValueError("is not a recording of this version")
    places, end = [], len(_MARK)
    while end + _HEAD.size <= size:
        stream.seek(end)
        length, crc = _HEAD.unpack(stream.read(_HEAD.size))
        if end + _HEAD.size + length > size:
            if _told(stream, size) not in (None, length):
                raise ValueError(f"damaged at byte {end}; copy it again")
            break
        places.append((end + _HEAD.size, length, crc))
        end += _HEAD.size + length
    if places and end == size and not _whole(stream, places[-1]):
        end = places.pop()[0] - _HEAD.size
    return places, end, size


def _told(stream: BinaryIO, size: int) -> int | None:
    """The length of the block that begins here according to its own header; None if that is truncated.

    A damaged length looks like a truncated file, and all records after it would be dropped.
    """
    start = stream.tell()
    count = int.from_bytes(stream.read(8), "little")
    if start + 8 + count > size:
        return None
    try:
        entries = files.parse(stream.read(count))
        ends = [entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"]
        return 8 + count + max(ends, default=0)
    except (ValueError, LookupError, TypeError, AttributeError):
        return None


def _whole(stream: BinaryIO, place: tuple[int, int, int]) -> bool:
    stream.seek(place[0])
    return zlib.crc32(stream.read(place[1])) == place[2]


def _lock(stream: BinaryIO, file: File) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(stream.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        with contextlib.suppress(OSError):
            stream.close()
        raise RecordingError(
            f"{file}: is being written by another recorder; close that one or choose another file"
        ) from error
