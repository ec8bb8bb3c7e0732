"""The content of a network: a hash of its named tensors, the same whatever the format of the file.

    key       SHA-256 of the sorted names, each with its dtype, its shape and the SHA-256 of its bytes
    numbers   the same without dtypes: every tensor in the narrowest of few dtypes that holds its values

A file is known again by its stamp (size, times, inode of every file that it consists of); where that differs, by its
content.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from weightspace.checkpoint.files import CHOSEN
from weightspace.checkpoint.locate import INDEX, locate, read_index
from weightspace.checkpoint.reader import bytes_of, is_finite, stamp_of
from weightspace.checkpoint.refusal import refusal
from weightspace.net.errors import WeightspaceError

__all__ = ["Content", "chosen_as", "content", "fingerprint", "shards", "stamp"]

_EXACT = {torch.float64: torch.float32, torch.complex128: torch.complex64}  # where that loses nothing


@dataclass(frozen=True)
class Content:
    """The hashes of named tensors, their shapes, their dtype ("float32", or several: "float16+float32"), their size."""

    key: str
    numbers: str
    shapes: Mapping[str, tuple[int, ...]]
    dtype: str
    nbytes: int

    @property
    def fingerprint(self) -> str:
        """The hash of names and shapes."""
        return fingerprint(self.shapes)


def content(tensors: Mapping[str, Tensor]) -> Content:
    """The content of named tensors, each read once. Raises `WeightspaceError` for NaN, infinity, and no tensors.

    >>> import weightspace as ws
    >>> from weightspace.atlas.content import content
    >>> net, _ = ws.demo.example()
    >>> one, twice = content(net.tensors), content(net.double().tensors)
    >>> one.key == twice.key, one.numbers == twice.numbers, twice.dtype
    (False, True, 'float64')
    """
    if not tensors:
        raise WeightspaceError("there are no tensors in it; give the weights of a network")
    exact, values = hashlib.sha256(), hashlib.sha256()
    shapes: dict[str, tuple[int, ...]] = {}
    dtypes: set[str] = set()
    nbytes = 0
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().resolve_conj().resolve_neg().contiguous()
        if not is_finite(tensor):
            raise WeightspaceError(f"NaN or infinity in {name!r:.200}; give weights from before training diverged")
        shape, dtype = tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")
        own = _digest(tensor)
        plain = _plain(tensor)
        other = own if plain is tensor else _digest(plain)
        exact.update(_line(name, shape, dtype, own))
        values.update(_line(name, shape, "", other))
        shapes[name], nbytes = shape, nbytes + tensor.nbytes
        dtypes |= {dtype} if tensor.is_floating_point() or tensor.is_complex() else set()
    return Content(exact.hexdigest(), values.hexdigest(), shapes, "+".join(sorted(dtypes)) or "integer", nbytes)


def fingerprint(shapes: Mapping[str, Sequence[int]]) -> str:
    """SHA-256 of the sorted names and shapes: networks that share it are points of one space.

    >>> from weightspace.atlas.content import fingerprint
    >>> fingerprint({"a": (2, 3), "b": (3,)}) == fingerprint({"b": (3,), "a": (2, 3)}) != fingerprint({"a": (2, 3)})
    True
    """
    found = hashlib.sha256()
    for name in sorted(shapes):
        found.update(_line(name, tuple(shapes[name]), "", ""))
    return found.hexdigest()


def _line(name: str, shape: tuple[int, ...], dtype: str, digest: str) -> bytes:
    return json.dumps([name, [int(n) for n in shape], dtype, digest]).encode() + b"\n"


def _digest(tensor: Tensor) -> str:
    return hashlib.sha256(bytes_of(tensor) if tensor.numel() else b"").hexdigest()


def _plain(tensor: Tensor) -> Tensor:
    """The same values in float32, complex64 or int64 where these hold them exactly; itself where nothing changes."""
    if tensor.is_floating_point() and tensor.dtype.itemsize < 4:
        return tensor.float()
    if tensor.dtype in _EXACT:
        narrow = tensor.to(_EXACT[tensor.dtype])
        return narrow if torch.equal(narrow.to(tensor.dtype), tensor) else tensor
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype is torch.uint64:
        return tensor
    return tensor.long() if tensor.dtype is not torch.int64 else tensor


# ------------------------------------------------------------------ files


@contextmanager
def chosen_as(weights: str | None) -> Iterator[None]:
    """A context in which the named network of a file is meant, or the usual one for None."""
    token = CHOSEN.set(weights)
    try:
        yield
    finally:
        CHOSEN.reset(token)


def stamp(path: Path, weights: str | None = None, settled: bool = True) -> dict[str, list[int]]:
    """The name and the stamp of every file of a checkpoint: the file itself, or an index and its shards.

    Raises `WeightspaceError` where there is no checkpoint, or a file cannot be reached.
    """
    try:
        file, _ = locate(path, weights)
        names = [file.name, *(shards(file) if INDEX in file.name or file.name.endswith(".json") else ())]
        return {name: [*stamp_of(file.with_name(name), settled)] for name in names}
    except (OSError, ValueError) as error:
        if isinstance(error, WeightspaceError):
            raise
        why = getattr(error, "strerror", None) or error
        raise refusal(path, f"cannot be read ({why})", "check the path") from error


def shards(index: Path) -> Iterable[str]:
    """The names of the files that an index lists."""
    owners = read_index(index, index.read_bytes()).get("weight_map", {})
    names = [*dict.fromkeys(owners.values())] if isinstance(owners, dict) else []
    if any(not isinstance(name, str) or Path(name).name != name for name in names):
        raise refusal(index, "names files outside of its folder", "do not trust this index")
    return names
