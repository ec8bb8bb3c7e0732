"""Writing checkpoints as safetensors, tensor by tensor, whole or not at all."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from weightspace.checkpoint import files
from weightspace.checkpoint.locate import INDEX
from weightspace.checkpoint.reader import DTYPES, Checkpoint, bytes_of
from weightspace.checkpoint.refusal import HEADER, TENSORS, dense, refusal
from weightspace.net.public import public

__all__ = ["save"]

_CODES = {dtype: code for code, dtype in DTYPES.items()}


class _Plan(NamedTuple):
    """A tensor that is to be written."""

    name: str
    dtype: torch.dtype
    shape: torch.Size

    @property
    def nbytes(self) -> int:
        return self.shape.numel() * self.dtype.itemsize


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
    folder, stem = (path, "model") if path.is_dir() else (path.parent, path.name.removesuffix(".safetensors"))
    old = _vacant(path, folder, stem, force)
    given = tensors.metadata if metadata is None and isinstance(tensors, Checkpoint) else metadata
    about = {"format": "pt", **(given or {})}
    if not all(isinstance(text, str) for item in about.items() for text in item):
        raise refusal(path, "metadata is not text to text", "turn its values into strings")
    groups = _groups([_planned(path, name, tensors[name]) for name in tensors], shard)
    if not groups:
        raise refusal(path, "there are no tensors to write", "give a state dict")
    names = [f"{stem}-{i:05}-of-{len(groups):05}.safetensors" for i in range(1, len(groups) + 1)]
    names = names if len(groups) > 1 else [f"{stem}.safetensors"]
    written: dict[Path, Callable[[BinaryIO], None]] = {}
    for name, group in zip(names, groups, strict=True):
        written[folder / name] = partial(_stream, path, tensors, group, about)
    if len(groups) > 1:
        owners = {plan.name: name for name, group in zip(names, groups, strict=True) for plan in group}
        total = sum(plan.nbytes for group in groups for plan in group)
        index = {"metadata": {**about, "total_size": total}, "weight_map": owners}
        written[folder / f"{stem}.safetensors{INDEX}"] = lambda file: _dump(file, index)
    _write(path, written, old)
    return list(written)[-1]


def _vacant(path: Path, folder: Path, stem: str, force: bool) -> list[Path]:
    """The files of an earlier save under this name. Raises `CheckpointError` where there are some and not `force`."""
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
    return old


def _planned(path: Path, name: str, tensor: Tensor) -> _Plan:
    if not isinstance(name, str) or not isinstance(tensor, Tensor) or name == "__metadata__":
        raise refusal(path, f"{name!r:.80} is a {type(tensor).__name__}", "give named tensors only")
    dense(path, name, tensor)
    if tensor.dtype not in _CODES:
        raise refusal(path, f"tensor {name!r} is {tensor.dtype}, which safetensors lacks", "convert it first")
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
    # the widest dtype first, as in the reference implementation: every tensor is then aligned to its item size
    ordered = sorted(group, key=lambda plan: (-plan.dtype.itemsize, plan.name))
    ends = dict(zip([p.name for p in ordered], _cumulative(p.nbytes for p in ordered), strict=True))
    header: dict[str, Any] = {"__metadata__": dict(about)}
    for plan in group:
        offsets = [ends[plan.name] - plan.nbytes, ends[plan.name]]
        header[plan.name] = {"dtype": _CODES[plan.dtype], "shape": [*plan.shape], "data_offsets": offsets}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > HEADER or len(group) > TENSORS:
        raise refusal(path, f"{len(group):,} tensors, {len(text):,} bytes of names", "write fewer to a file")
    file.write(len(text).to_bytes(8, "little") + text)
    for plan in ordered:
        tensor = tensors[plan.name].detach().cpu().resolve_conj().resolve_neg().contiguous()
        if (tensor.dtype, tensor.shape) != (plan.dtype, plan.shape):
            raise refusal(path, f"tensor {plan.name!r} changed while it was written", "try again")
        if plan.nbytes:
            file.write(bytes_of(tensor))


def _write(path: Path, written: Mapping[Path, Callable[[BinaryIO], None]], old: list[Path]) -> None:
    # the old index is removed first: it must not stay beside new shards if the process is killed between two renames
    first = [item for item in old if len(written) > 1 and item.name.endswith(INDEX)]
    try:
        files.write_all(written, first=first, last=[item for item in old if item not in written])
    except OSError as error:
        do = "free space or choose another place"
        raise refusal(path, f"could not be written ({error.strerror or error})", do) from error
    except UnicodeEncodeError as error:
        raise refusal(path, f"a name or metadata text is not valid Unicode ({error})", "rename it") from error


def _dump(file: BinaryIO, value: Mapping[str, Any]) -> None:
    file.write(json.dumps(value, ensure_ascii=False, indent=2).encode())


def _cumulative(values: Iterable[int]) -> Iterator[int]:
    total = 0
    for value in values:
        total += value
        yield total
