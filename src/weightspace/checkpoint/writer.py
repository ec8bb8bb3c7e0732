"""Writing checkpoints as safetensors, tensor by tensor, whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from weightspace.checkpoint import files
from weightspace.checkpoint.locate import INDEX
from weightspace.checkpoint.reader import DTYPES, Checkpoint, bytes_of
from weightspace.checkpoint.refusal import HEADER, TENSORS, CheckpointError, dense, refusal
from weightspace.net.public import public

__all__ = ["Files", "Slot", "file_of", "header", "save", "shared_out", "vacant"]

_WAITING = 1 << 25  # bytes of tensors that are computed and not written yet
_SYNC = 1 << 26  # bytes after which the disk is asked to take what was written
_CODES = {dtype: code for code, dtype in DTYPES.items()}


class Slot(NamedTuple):
    """A tensor that is to be written."""

    name: str
    dtype: torch.dtype
    shape: torch.Size

    @property
    def nbytes(self) -> int:
        """The size of its numbers in bytes."""
        return self.shape.numel() * self.dtype.itemsize


class Files(NamedTuple):
    """The safetensors files that tensors are shared out among: name -> tensors, metadata, and the index of several."""

    groups: dict[str, list[Slot]]
    about: dict[str, str]
    listing: tuple[str, bytes] | None


@public
def save(
    tensors: Mapping[str, Tensor],
    path: str | os.PathLike[str],
    *,
    force: bool = False,
    metadata: Mapping[str, str] | None = None,
    shard: int = 5_000_000_000,
) -> Path:
    """Write named tensors as safetensors, whole or not at all; returns the path to read (the index, if sharded).

    `path` ends in `.safetensors`, or is a folder, which gets Hugging Face's name `model.safetensors`. Above `shard`
    bytes the tensors go to `name-00001-of-0000N.safetensors` beside `name.safetensors.index.json`. Tied tensors are
    written under each name. `metadata` defaults to that of a `Checkpoint`. Each tensor is accessed twice, one at a
    time, so a lazy mapping takes the memory of its largest tensor. Files are written under hidden names `.name.*.tmp`
    and renamed when complete; with `force` they replace existing ones. Raises `CheckpointError` where that fails.

    >>> import tempfile
    >>> import weightspace as ws
    >>> net, _ = ws.demo.example()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     ws.checkpoint.save(net.tensors, folder).name
    'model.safetensors'
    """
    path = Path(path)
    folder, stem, old = vacant(path, force)
    given = tensors.metadata if metadata is None and isinstance(tensors, Checkpoint) else metadata
    out = shared_out(path, stem, [_slot(path, name, tensors[name]) for name in tensors], shard, given or {})

    def whole(slot: Slot) -> Iterator[Tensor]:
        tensor = tensors[slot.name].detach()
        if tensor.shape != slot.shape:
            raise refusal(path, f"tensor {slot.name!r} changed while it was written", "try again")
        yield tensor

    written: dict[Path, Callable[[BinaryIO], None]] = {}
    for name, group in out.groups.items():
        written[folder / name] = partial(file_of, path, group, out.about, whole)
    if out.listing is not None:
        written[folder / out.listing[0]] = partial(_put, out.listing[1])
    _write(path, written, old)
    return list(written)[-1]


def _put(content: bytes, file: BinaryIO) -> None:
    file.write(content)


def vacant(path: Path, force: bool) -> tuple[Path, str, list[Path]]:
    """The folder that a path to write lies in, the stem of its files there, and those of an earlier save.

    Raises `CheckpointError` for a name that is not written, and where there are such files and not `force`.
    """
    folder, stem = (path, "model") if path.is_dir() else (path.parent, path.name.removesuffix(".safetensors"))
    if not folder.is_dir():
        raise refusal(path, f"the folder {folder} does not exist", "create it first")
    if path.name == stem and not path.is_dir():
        raise refusal(path, "only .safetensors is written", "give such a name, or a folder that exists")
    pattern = re.compile(rf"{re.escape(stem)}(-\d{{5}}-of-\d{{5}})?\.safetensors({re.escape(INDEX)})?")
    try:
        old = sorted(item for item in folder.iterdir() if pattern.fullmatch(item.name))
    except OSError as error:
        raise refusal(path, f"the folder cannot be read ({error.strerror})", "choose another place") from error
    if old and not force:
        raise refusal(path, f"{old[0].name} exists", "choose another name, or overwrite with force (--force)")
    return folder, stem, old


def _slot(path: Path, name: str, tensor: Tensor) -> Slot:
    if not isinstance(name, str) or not isinstance(tensor, Tensor) or name == "__metadata__":
        raise refusal(path, f"{name!r:.80} is a {type(tensor).__name__}", "give named tensors only")
    dense(path, name, tensor)
    return Slot(name, tensor.dtype, tensor.shape)


def shared_out(path: Path, stem: str, slots: list[Slot], shard: int, metadata: Mapping[str, str]) -> Files:
    """The files for tensors in order: a new one where a file would have more than `shard` bytes.

    Raises `CheckpointError` for no tensors, a dtype that safetensors lacks, and metadata that is not text.
    """
    about = {"format": "pt", **metadata}
    if not all(isinstance(text, str) for item in about.items() for text in item):
        raise refusal(path, "metadata is not text to text", "turn its values into strings")
    groups: list[list[Slot]] = []
    taken = 0
    for slot in slots:
        if slot.dtype not in _CODES:
            raise refusal(path, f"tensor {slot.name!r} is {slot.dtype}, which safetensors lacks", "convert it first")
        if not groups or taken + slot.nbytes > shard:
            groups.append([])
            taken = 0
        groups[-1].append(slot)
        taken += slot.nbytes
    if not groups:
        raise refusal(path, "there are no tensors to write", "give a state dict")
    if len(groups) == 1:
        return Files({f"{stem}.safetensors": groups[0]}, about, None)
    named = {f"{stem}-{i:05}-of-{len(groups):05}.safetensors": group for i, group in enumerate(groups, 1)}
    owners = {slot.name: name for name, group in named.items() for slot in group}
    index = {"metadata": {**about, "total_size": sum(slot.nbytes for slot in slots)}, "weight_map": owners}
    try:
        text = json.dumps(index, ensure_ascii=False, indent=2).encode()
    except UnicodeEncodeError as error:
        raise _not_text(path, error) from error
    return Files(named, about, (f"{stem}.safetensors{INDEX}", text))


def file_of(
    path: Path, group: list[Slot], about: Mapping[str, str], read: Callable[[Slot], Iterable[Tensor]], file: BinaryIO
) -> None:
    """Write one safetensors file: its header, then every tensor, of which `read` gives consecutive pieces.

    Raises `CheckpointError` for too many tensors, and where the pieces are not of the dtype and number of the slot.
    """
    text, ordered = header(path, group, about)
    file.write(text)
    with _Behind(file) as behind:
        for slot in ordered:
            left = slot.nbytes
            for piece in read(slot):
                left -= piece.nbytes
                if piece.dtype != slot.dtype or left < 0:
                    left = -1
                    break
                behind.write(piece.detach().cpu().resolve_conj().resolve_neg().contiguous())
            if left:
                raise refusal(path, f"tensor {slot.name!r} changed while it was written", "try again")


class _Behind:
    """Writes tensors into a file in a thread of its own, while the next ones are computed; a few may wait.

    The disk is asked now and then to take what was written, so that it is not all left for the end.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._writing, self._syncing = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._waiting: deque[tuple[int, Future[Any]]] = deque()
        self._held = self._since = 0  # bytes that wait, bytes written since the disk was asked
        self._synced: Future[None] | None = None

    def write(self, tensor: Tensor) -> None:
        while self._waiting and self._held + tensor.nbytes > _WAITING:
            self._take()
        if tensor.nbytes:
            self._waiting.append((tensor.nbytes, self._writing.submit(self._file.write, bytes_of(tensor))))
            self._held, self._since = self._held + tensor.nbytes, self._since + tensor.nbytes
        if self._since > _SYNC and (self._synced is None or self._synced.done()):
            if self._synced is not None:
                self._synced.result()
            self._since, self._synced = 0, self._syncing.submit(_to_disk, self._file)

    def _take(self) -> None:
        size, written = self._waiting.popleft()
        written.result()
        self._held -= size

    def __enter__(self) -> _Behind:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._writing.shutdown(cancel_futures=kind is not None)
        self._syncing.shutdown()
        while self._waiting and kind is None:
            self._take()
        if self._synced is not None and kind is None:
            self._synced.result()  # an error of the disk is told once, here or there


def _to_disk(file: BinaryIO) -> None:
    """Ask the disk to take what was written into a file; of a file that is on no disk, nothing is asked."""
    if hasattr(os, "fdatasync"):
        try:
            os.fdatasync(file.fileno())
        except OSError as error:  # io.UnsupportedOperation too
            if error.errno not in (None, errno.EINVAL, errno.ENOTSUP, errno.EROFS):
                raise


def header(path: Path, group: list[Slot], about: Mapping[str, str]) -> tuple[bytes, list[Slot]]:
    """The header of a safetensors file, and its tensors in the order of the file."""
    # the widest dtype first, as in the reference implementation: every tensor is then aligned to its item size
    ordered = sorted(group, key=lambda slot: (-slot.dtype.itemsize, slot.name))
    ends = dict(zip([p.name for p in ordered], _cumulative(p.nbytes for p in ordered), strict=True))
    claims: dict[str, Any] = {"__metadata__": dict(about)}
    for slot in group:
        offsets = [ends[slot.name] - slot.nbytes, ends[slot.name]]
        claims[slot.name] = {"dtype": _CODES[slot.dtype], "shape": [*slot.shape], "data_offsets": offsets}
    try:
        text = json.dumps(claims, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError as error:
        raise _not_text(path, error) from error
    text += b" " * (-len(text) % 8)
    if len(text) > HEADER or len(group) > TENSORS:
        raise refusal(path, f"{len(group):,} tensors, {len(text):,} bytes of names", "write fewer to a file")
    return len(text).to_bytes(8, "little") + text, ordered


def _write(path: Path, written: Mapping[Path, Callable[[BinaryIO], None]], old: list[Path]) -> None:
    # the old index is removed first: it must not stay beside new shards if the process is killed between two renames
    first = [item for item in old if len(written) > 1 and item.name.endswith(INDEX)]
    try:
        files.write_all(written, first=first, last=[item for item in old if item not in written])
    except OSError as error:
        do = "free space or choose another place"
        raise refusal(path, f"could not be written ({error.strerror or error})", do) from error


def _not_text(path: Path, error: UnicodeEncodeError) -> CheckpointError:
    return refusal(path, f"a name or metadata text is not valid Unicode ({error})", "rename it")


def _cumulative(values: Iterable[int]) -> Iterator[int]:
    total = 0
    for value in values:
        total += value
        yield total
