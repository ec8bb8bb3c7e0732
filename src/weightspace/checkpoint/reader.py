"""Reading checkpoints: safetensors files, Hugging Face folders, and files of `torch.save`.

No code is run from a file, and the sizes that it claims are checked before memory is allocated.
"""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from weightspace.checkpoint import files
from weightspace.checkpoint.locate import ELSEWHERE, INDEX, TORCH, left_in, locate, read_index
from weightspace.checkpoint.pickled import read_torch
from weightspace.checkpoint.refusal import (
    HEADER,
    PT2,
    SAFE,
    TENSORS,
    CheckpointError,
    Entry,
    Opened,
    is_size,
    matches,
    plausible,
    refusal,
    shape_of,
    some,
)
from weightspace.net.public import public

__all__ = ["Checkpoint", "CheckpointError", "finite", "is_finite", "read", "stamp_of"]


_PREFIXES = ("module.", "_orig_mod.", "module.")  # either may be outside the other
_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}  # anywhere in a name
_MARKS = {
    b"GGUF": ELSEWHERE[r".*\.gguf"],
    b"\x89HDF": ("an HDF5 file (Keras, TensorFlow)", "convert it to safetensors first"),
    b"\x1f\x8b": ("an archive (gzip)", "unpack it first"),
    b"\x93NUMPY": ("one numpy array (.npy)", "give named tensors, as safetensors"),
    b"PAR1": ("a parquet table", "give it as --data"),
}
DTYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "BOOL": torch.bool},
    **{"U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8},
    **{"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "C64": torch.complex64},
}
_TICK = 10_000_000  # nanoseconds: the resolution of the times of files


@public
class Checkpoint(Mapping[str, Tensor]):
    """The tensors of a file by name: each access reads one tensor into new memory, in the file's dtype.

    Made by `read`. `path` is what was opened, `metadata` the file's text entries (of a `torch.save` file: its numbers
    and strings, as text), `notes` has a line for everything that was left out or renamed. Raises `KeyError` for an
    unknown name, and `CheckpointError` where the file has changed since it was opened.

    >>> import tempfile
    >>> import weightspace as ws
    >>> net, _ = ws.demo.example()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     checkpoint = ws.checkpoint.read(ws.checkpoint.save(net.tensors, folder))
    ...     checkpoint["1.weight"].shape, len(checkpoint), checkpoint.nbytes
    (torch.Size([16, 64]), 4, 4840)
    """

    def __init__(
        self, path: Path, entries: Mapping[str, Entry], metadata: Mapping[str, str], notes: Iterable[str]
    ) -> None:
        self.path, self.metadata, self.notes = path, dict(metadata), tuple(notes)
        self._entries = dict(entries)

    def __getitem__(self, name: str) -> Tensor:
        return self._entries[name].read()

    def flat(self, name: str, start: int, stop: int, out: Tensor | None = None) -> Tensor:
        """The entries `start` to `stop` of a tensor in row-major order, as a vector; of safetensors no more is read.

        `out`: a vector of that size and dtype to read them into. Raises `KeyError` for an unknown name, and
        `CheckpointError` where the file has changed since it was opened.
        """
        start, stop, _ = slice(start, stop).indices(self._entries[name].shape.numel())
        return self._entries[name].read((start, max(start, stop)), out)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"Checkpoint({str(self.path)!r}, {len(self)} tensors, {self.nbytes:,} bytes)"

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """The shapes of the tensors by name, in the file's order; no tensor is read."""
        return {name: entry.shape for name, entry in self._entries.items()}

    @property
    def dtypes(self) -> dict[str, torch.dtype]:
        """The dtypes of the tensors by name, in the file's order; no tensor is read."""
        return {name: entry.dtype for name, entry in self._entries.items()}

    @property
    def stamps(self) -> dict[str, tuple[int, ...]]:
        """The safetensors files of the tensors, and numbers of each that change when it is replaced or overwritten.

        Empty for files of `torch.save`.
        """
        reads = [entry.read for entry in self._entries.values()]
        opened = [read.args[:2] for read in reads if isinstance(read, partial) and read.func is _fetch]
        return {str(path): stamp for path, stamp in opened} if len(opened) == len(reads) else {}

    @property
    def nbytes(self) -> int:
        """The size of all tensors in memory, in bytes; a tied tensor counts under each of its names."""
        return sum(entry.shape.numel() * entry.dtype.itemsize for entry in self._entries.values())


@public
def read(path: str | os.PathLike[str], *, weights: str | None = None) -> Checkpoint:
    """Open a checkpoint: a mapping from names to tensors. No code of it is run; a tensor is read when it is accessed.

    `path`: a safetensors file, a file of `torch.save` (both recognised by their content, not by their ending), the
    `.index.json` of a sharded checkpoint, or a folder with Hugging Face's names, variants (`model.fp16.safetensors`),
    or a single file of weights. Of a training checkpoint, the network is taken. `weights` chooses one of several
    networks ("ema", "generator", "fp16"; by default the value of `--weights`); without it, the one with a usual name
    (`state_dict`, `model`, ..) that is not a running average. The prefixes of wrappers are removed where all names have
    them: `module.` (DataParallel, AveragedModel) and `_orig_mod.` (torch.compile). `notes` lists everything that was
    left out or renamed. Raises `CheckpointError` for a file that cannot be read, and where several networks could be
    meant, with their names.

    >>> import tempfile
    >>> import weightspace as ws
    >>> net, _ = ws.demo.example()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = ws.checkpoint.save(2 * net.weights, folder)
    ...     twice = net.load(ws.checkpoint.read(path))
    >>> round(float(twice.weights.norm() / net.weights.norm()), 3)
    2.0
    """
    path, wanted = Path(path), files.CHOSEN.get() if weights is None else weights
    try:
        file, variant = locate(path, wanted)
        entries, metadata, notes, taken = _open(file, None if variant else wanted)
        notes += left_in(path, file) if path.is_dir() else []
    except OSError as error:
        raise refusal(path, f"cannot be read ({error.strerror or error})", "check the path") from error
    if not entries:
        raise refusal(path, "holds no tensors", "give a file that holds a network's weights")
    if len(entries) > TENSORS:
        raise refusal(path, f"holds {len(entries):,} tensors", f"give a file of at most {TENSORS:,}")
    if wanted is not None and not variant and not (taken and matches(taken, wanted)):
        entries, said = _under(path, entries, wanted, taken)
        notes = [*notes, said]
    for prefix in _PREFIXES:
        entries, said = _without(entries, prefix)
        notes = [*notes, said] if said else notes
    entries, said = _unwrapped(entries)
    return Checkpoint(path, entries, metadata, [*notes, said] if said else notes)


def _under(path: Path, entries: dict[str, Entry], wanted: str, taken: str) -> tuple[dict[str, Entry], str]:
    """The tensors under the one prefix that `wanted` names, such as "ema", and a note of what was left out."""
    found = dict[str, None]()
    for name in entries:
        parts = name.split(".")
        for k in range(1, len(parts)):
            if ".".join(parts[:k]) == wanted or matches(parts[k - 1], wanted):
                found[".".join(parts[:k]) + "."] = None
                break
    if len(found) > 1:
        raise refusal(path, f"has several weights called {wanted!r}: {some(found)}", "choose one of these names")
    if not found:
        if taken:
            raise refusal(path, f"has no weights called {wanted!r}, but {taken!r}", "choose this, or give another file")
        return entries, f"holds no weights called {wanted!r}, but one network, which was taken"
    (prefix,) = found
    left = [name for name in entries if not name.startswith(prefix)]
    kept = {name.removeprefix(prefix): entry for name, entry in entries.items() if name.startswith(prefix)}
    return kept, f"took {prefix!r}" + (f", left out {some(left)}" if left else "")


def _without(entries: dict[str, Entry], prefix: str) -> tuple[dict[str, Entry], str]:
    """The tensors without a prefix that all names share, but for the counters of a wrapper (n_averaged)."""
    bare = {name.removeprefix(prefix): e for name, e in entries.items() if name.startswith(prefix) and name != prefix}
    left = [name for name in entries if name.removeprefix(prefix) not in bare or not name.startswith(prefix)]
    counts = all(entries[n].shape == () and not entries[n].dtype.is_floating_point and "." not in n for n in left)
    if not bare or not counts:
        return entries, ""
    beside = f", left out {some(left)}" if left else ""
    return bare, f"removed the prefix {prefix!r} from every name{beside}"


def _unwrapped(entries: dict[str, Entry]) -> tuple[dict[str, Entry], str]:
    """The tensors without the parts that wrappers of a layer insert into the middle of names."""
    bare = {".".join(part for part in name.split(".") if part not in _WRAPPERS): e for name, e in entries.items()}
    if bare.keys() == entries.keys() or len(bare) < len(entries):
        return entries, ""
    return bare, f"removed {some(sorted({p for n in entries for p in n.split('.')} & _WRAPPERS))} from the names"


@public
def finite(tensors: Mapping[str, Tensor]) -> None:
    """Raise `CheckpointError` naming the tensors that hold NaN or infinity; one tensor is read at a time.

    >>> import weightspace as ws
    >>> net, _ = ws.demo.example()
    >>> ws.checkpoint.finite(net.tensors)
    >>> ws.checkpoint.finite(net.weights / 0)
    Traceback (most recent call last):
    weightspace.checkpoint.refusal.CheckpointError: NaN or infinity in '1.weight', ...
    """
    bad = [name for name in tensors if not is_finite(tensors[name])]
    if bad:
        raise CheckpointError(f"NaN or infinity in {some(bad)}; give weights from before training diverged")


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity."""
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    parts = tensor.detach().reshape(-1).split(1 << 22)
    return all(bool((part.float() if part.dtype.itemsize == 1 else part).isfinite().all()) for part in parts)


def _open(path: Path, wanted: str | None = None) -> Opened:
    suffix, size = path.suffix.lower(), path.stat().st_size
    if not path.is_file():
        raise refusal(path, "not a regular file", "give a file or a Hugging Face folder")
    if suffix == ".pt2":
        raise refusal(path, *PT2)
    if INDEX in path.name or re.search(r"\.index\.[\w-]+\.json$", path.name):
        return _shards(path)
    with path.open("rb") as file:
        head = file.read(512)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < size:
        return _safetensors(path)
    if head.startswith((b"PK\3\4", *(b"\x80" + bytes([protocol]) for protocol in range(2, 6)))):
        return read_torch(path, wanted)
    if suffix in (".pkl", ".pickle"):
        raise refusal(path, "a pickle is code and was not opened", SAFE)
    if not head:
        raise refusal(path, "empty file (0 bytes)")
    _refuse_others(path, head)
    if suffix == ".safetensors":
        return _safetensors(path)
    if suffix in TORCH:
        return read_torch(path, wanted)
    seen = f"unknown ending {suffix!r}, and it does not begin as a checkpoint does"
    raise refusal(path, seen, f"give .safetensors or one of {' '.join(TORCH)}")


def _refuse_others(path: Path, head: bytes) -> None:
    """Raise `CheckpointError` for a known kind of file that is not a checkpoint, or that cannot be read here."""
    found = files.instead(head) or next((what for mark, what in _MARKS.items() if head.startswith(mark)), None)
    if found is None and head[257:262] == b"ustar":
        found = "a tar archive (of files, or of torch before 0.2)", "unpack it, or save it again as safetensors"
    if found is None and head.lstrip()[:1] in (b"{", b"["):
        found = "JSON text, not weights", "give the file of weights beside it"
    for pattern, what in ELSEWHERE.items():
        found = what if found is None and re.fullmatch(pattern, path.name) else found
    if found is not None:
        raise refusal(path, f"is {found[0]}", found[1])


def _shards(path: Path) -> Opened:
    if path.stat().st_size > HEADER:
        raise refusal(path, f"an index of more than {HEADER:,} bytes", "check what this file is")
    index = read_index(path, path.read_bytes())
    owners, about = index.get("weight_map"), index.get("metadata")
    if not isinstance(owners, dict) or not all(isinstance(file, str) for file in owners.values()):
        raise refusal(path, "has no 'weight_map' from tensor names to file names")
    metadata = {k: v for k, v in about.items() if isinstance(v, str)} if isinstance(about, dict) else {}
    merged: dict[str, Entry] = {}
    notes: list[str] = []
    for file in dict.fromkeys(owners.values()):
        entries, more, said, _ = _open(_shard(path, file))
        differ = {name for name, owner in owners.items() if owner == file} ^ entries.keys()
        if differ:
            raise refusal(path, f"disagrees with shard {file!r} about {some(sorted(differ))}")
        merged |= entries
        metadata = {**more, **metadata}
        notes += [f"{file}: {note}" for note in said]
    return Opened({name: merged[name] for name in owners}, metadata, notes)


def _shard(index: Path, file: str) -> Path:
    """The file that an index names. Raises `CheckpointError` for one outside of the folder (or hub cache)."""
    plain = Path(file).name == file and "\\" not in file and "\0" not in file
    if not plain or not file.endswith((".safetensors", *TORCH)):
        raise refusal(index, f"names {file!r}, which is not a plain file name", "do not trust this index")
    shard, folder = index.parent / file, index.parent.resolve()
    root = folder.parent.parent if folder.parent.name == "snapshots" else folder
    if not shard.resolve().is_relative_to(root):
        raise refusal(index, f"{file!r} is a link that leaves {root}", "copy the file there instead")
    if not shard.exists():
        raise refusal(index, f"shard {file!r} is missing", "fetch it into the same folder")
    return shard


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """The parsed header of a safetensors file, and the offset of its data."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > HEADER:
            raise refusal(path, f"claims a header of {length:,} bytes (limit {HEADER:,}) of {size:,}")
        if 8 + length > size:
            raise refusal(path, f"truncated: a header of {length:,} bytes in a file of {size:,}")
        header = read_index(path, file.read(length))
    if len(header) > TENSORS + 1:
        raise refusal(path, f"holds {len(header):,} tensors", f"give a file of at most {TENSORS:,}")
    return header, 8 + length


def _safetensors(path: Path) -> Opened:
    stamp = stamp_of(path)
    header, start = _header(path)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise refusal(path, "its __metadata__ is not a mapping from text to text")
    entries = {name: _entry(path, name, claim, start, stamp) for name, claim in header.items()}
    try:
        with safe_open(path, framework="numpy"):
            pass  # the reference parser checks the rest: overlaps, holes, trailing bytes
    except Exception as error:
        raise refusal(path, f"damaged safetensors file ({str(error)[:200]})") from error
    return Opened(entries, metadata, [])


def _entry(path: Path, name: str, claim: Any, start: int, stamp: tuple[int, ...]) -> Entry:
    claim = claim if isinstance(claim, dict) else {}
    shape, offsets, code = claim.get("shape"), claim.get("data_offsets"), claim.get("dtype")
    lists = isinstance(shape, list) and isinstance(offsets, list) and len(offsets) == 2
    if not lists or not all(map(is_size, [*shape, *offsets])):
        raise refusal(path, f"tensor {name!r} has no proper shape and offsets")
    dtype = DTYPES.get(code) if isinstance(code, str) else None
    if dtype is None:
        raise refusal(path, f"tensor {name!r} has the unknown dtype {code!r:.80}", "convert it to F32")
    begin, end = offsets
    if not plausible(shape) or math.prod(shape) * dtype.itemsize != end - begin or start + end > stamp[1]:
        seen = f"bytes {shape_of(offsets)} of the {stamp[1] - start:,} that the file has"
        raise refusal(path, f"tensor {name!r} claims {shape_of(shape)} {code} and {seen}")
    return Entry(torch.Size(shape), dtype, partial(_fetch, path, stamp, start + begin, shape, dtype))


def stamp_of(path: Path, settled: bool = True) -> tuple[int, ...]:
    """The stamp of a file: inode, size, times of its data and of itself, device.

    With `settled`, it is waited for milliseconds where the file is so new that a later change might keep its times.
    """
    return _stamp(_settled(path) if settled else path.stat())


def _stamp(stat: os.stat_result) -> tuple[int, ...]:
    """Numbers that change when a file is replaced or overwritten, even where its size and mtime are restored."""
    return stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_dev


def _settled(path: Path) -> os.stat_result:
    """The stat of a file, after a wait of milliseconds if it is so new that a later change might keep its times."""
    stat = path.stat()
    if 0 <= (age := time.time_ns() - stat.st_ctime_ns) < _TICK:
        time.sleep((_TICK - age) / 1e9)
    return path.stat()


def _fetch(
    path: Path,
    stamp: tuple[int, ...],
    start: int,
    shape: list[int],
    dtype: torch.dtype,
    part: tuple[int, int] | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """A tensor of a file, or the entries from `part[0]` to `part[1]` as a vector."""
    # read, not memory-mapped: a map would be shared between calls, and break when the file is overwritten
    if part is not None:
        start, shape = start + part[0] * dtype.itemsize, [part[1] - part[0]]
    try:
        with path.open("rb") as file:
            if _stamp(os.fstat(file.fileno())) != stamp:
                raise refusal(path, "changed since it was opened", "read it again")
            tensor = torch.empty(shape, dtype=dtype) if out is None else out
            file.seek(start)
            if tensor.numel() and file.readinto(bytes_of(tensor)) != tensor.nbytes:
                raise refusal(path, "ended before its last tensor")
    except (OSError, RuntimeError) as error:
        raise refusal(path, f"cannot be read ({error})", "check the disk and the free memory") from error
    return tensor


def bytes_of(tensor: Tensor) -> Any:
    """The bytes of a contiguous tensor, as an array that shares its memory."""
    return tensor.reshape(-1).view(torch.uint8).numpy()
