"""A trail: the checkpoints of a path in a folder, written one by one as a run goes on, and read back as a `Path`.

    base.safetensors        the first network
    00040.safetensors       the tensors that differ from the base: mostly zero ones as values and a bit mask, others
                            whole; or, with `half`, as base + float16 difference
    index.json              one entry for every point: file, step, facts; the architecture's fingerprint; a flow's log
    resume-00040.safetensors  the state from which a flow resumes after its last point

Every file is written under a temporary name and renamed, the index last, so that an interrupted trail ends at its last
complete point. The index carries a digest of itself and every other file the checksums of its tensors: a damaged file
is refused.
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path as File
from typing import Any

import numpy as np
import torch
from torch import Tensor

from weightspace.checkpoint import files, reader, writer
from weightspace.checkpoint.refusal import CheckpointError
from weightspace.net.net import Net
from weightspace.net.public import public
from weightspace.path.path import Path

__all__ = ["Trail"]


_INDEX, _BASE, _VERSION = "index.json", "base.safetensors", 2
_SUMS = "crc32"
_SPARSE = 0.5
_MASK, _VALUES, _DELTA, _SCALE = "::mask", "::values", "::delta", "::scale"


@public
class Trail:
    """The networks of a path on disk: `len`, `trail[k]`, iteration; `trail.path()` is the polyline through them.

    >>> import tempfile, weightspace as ws
    >>> net, task = ws.demo.example()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     trail = ws.path.Trail(folder + "/run", net)
    ...     trail.append(ws.demo.example(1)[0], step=10, loss=2.3)
    ...     len(trail), trail.facts(1), trail.path().times
    (2, {'loss': 2.3, 'step': 10}, (0.0, 1.0))
    """

    def __init__(self, folder: str | os.PathLike[str], net: Net, *, half: bool = False) -> None:
        """Open the trail in `folder`, or begin one there; `net` is its first network and gives the architecture.

        `half` stores differences from the base in float16: half the disk space, each entry within 2^-11 of itself or
        2^-25 of the largest of its tensor. Raises `CheckpointError` for a folder that holds something else, or a trail
        of another architecture.
        """
        self.folder, self.net, self.half = File(folder), net, half
        if (self.folder / _INDEX).exists():
            self.index = self._read()
        else:
            self._begin()
            _save(net.tensors, self.folder / _BASE, {"weightspace": "first network of a path"})
            self.index = {"weightspace": "path", "version": _VERSION, "fingerprint": net.fingerprint, "points": []}
            self.index["points"].append({"file": _BASE, "step": 0})
            self._write(self.index)

    def _begin(self) -> None:
        """Make the folder; it must be empty, except for the base that a run killed at its start may have left."""
        try:
            files.refuse_dangling(self.folder)
            self.folder.mkdir(parents=True, exist_ok=self.folder.is_dir())
            files.sweep(self.folder)
            found = {item.name for item in self.folder.iterdir() if not files.is_temporary(item.name)}
        except FileExistsError as error:
            raise CheckpointError(f"{self.folder}: exists and holds no path; choose another folder") from error
        except OSError as error:
            raise CheckpointError(f"{self.folder}: cannot be made ({error.strerror}); choose another folder") from error
        if found - {_BASE}:
            raise CheckpointError(f"{self.folder}: exists and holds no path; choose another folder")

    @staticmethod
    def erase(folder: str | os.PathLike[str]) -> None:
        """Delete the files of the trail in `folder`, index first, and no others; nothing happens if there is none."""
        index = File(folder) / _INDEX
        try:
            seen = files.read_json(index)
            points = [point["file"] for point in seen["points"]] if seen["weightspace"] == "path" else []
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{index}: is not the index of a path ({type(error).__name__})") from error
        names = [*points, seen.get("resume", _BASE)]
        if not points or any(not isinstance(name, str) or File(name).name != name for name in names):
            raise CheckpointError(f"{index}: is not the index of a path; nothing was removed")
        index.unlink()
        for name in {*names, _BASE}:
            (index.parent / name).unlink(missing_ok=True)

    def _read(self) -> dict[str, Any]:
        place = self.folder / _INDEX
        try:
            seen = files.read_json(place)
            known = seen["weightspace"] == "path" and seen["version"] == _VERSION
            names = [point["file"] for point in seen["points"]] + [seen.get("resume", _BASE)]
            steps = [point["step"] for point in seen["points"]]
            outside = [name for name in names if File(name).name != name]
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{place}: is not the index of a path ({type(error).__name__})") from error
        if not known or not steps:
            raise CheckpointError(f"{place}: is not the index of a path that this version can read")
        if outside:
            raise CheckpointError(f"{place}: {outside[0]!r} lies outside of the folder")
        if not all(type(step) is int and step >= 0 for step in steps) or sorted({*steps}) != steps:
            raise CheckpointError(f"{place}: is not the index of a path (its steps do not rise)")
        try:
            index = files.unsealed(seen)
        except ValueError as error:
            raise CheckpointError(f"{place}: is not the index of a path ({error}); copy the folder again") from error
        if index.get("fingerprint") != self.net.fingerprint:
            raise CheckpointError(f"{self.folder}: its networks have another architecture than the one given")
        return index

    def _write(self, index: dict[str, Any]) -> None:
        try:
            files.write(self.folder / _INDEX, json.dumps(files.sealed(index), indent=1))
            self.index = index
        except OSError as error:
            raise CheckpointError(f"{self.folder / _INDEX}: cannot be written ({error.strerror})") from error

    def __len__(self) -> int:
        return len(self.index["points"])

    def __iter__(self) -> Iterator[Net]:
        return (self[k] for k in range(len(self)))

    def __repr__(self) -> str:
        return f"Trail({len(self)} networks in {self.folder})"

    def facts(self, k: int) -> dict[str, Any]:
        """The step of point k and the facts that `append` was given with it."""
        return {key: value for key, value in self.index["points"][k].items() if key != "file"}

    def __getitem__(self, k: int) -> Net:
        name = self.index["points"][k]["file"]
        base = _Summed(self.folder / _BASE)
        if name == _BASE:
            return self.net.load(dict(base))
        found = _Summed(self.folder / name)
        try:
            return self.net.load({n: _restored(n, found, base) for n in base})
        except (KeyError, ValueError, RuntimeError) as error:
            why = " ".join(str(error).split())[:200]
            raise CheckpointError(f"{self.folder / name}: is not a point of a path ({why}); copy it again") from error

    def path(self) -> Path:
        """The polyline through the points, with their steps as times; a network is read when it is asked for."""
        steps = [float(point["step"]) for point in self.index["points"]]
        if len(steps) < 2:
            raise CheckpointError(f"{self.folder}: holds one network; a path has two ends")
        marks = [(s - steps[0]) / (steps[-1] - steps[0]) for s in steps]

        def at(t: float) -> Net:
            k = int(np.searchsorted(marks, t, side="right")) - 1
            return self[k] if marks[k] == t else self[k].lerp(self[k + 1], (t - marks[k]) / (marks[k + 1] - marks[k]))

        return Path(at, marks)

    def append(self, net: Net, step: int, resume: Mapping[str, Tensor] | None = None, **facts: Any) -> None:
        """Write the network of a later step, with facts (numbers, text) about it, and the state to `resume` from.

        Raises `CheckpointError`, and leaves the trail as it was, for a step that is not later and facts that JSON
        cannot hold.
        """
        self.net.check(net)
        if step <= self.index["points"][-1]["step"]:
            raise CheckpointError(f"step {step} does not come after {self.index['points'][-1]['step']}, the last one")
        try:
            point = json.loads(json.dumps(facts)) | {"file": f"{step:05d}.safetensors", "step": step}
        except TypeError as error:
            raise CheckpointError(f"a fact that JSON cannot hold ({error}); give numbers and text") from error
        base = _Summed(self.folder / _BASE)
        kept: dict[str, Tensor] = {}
        for key, tensor in net.tensors.items():
            kept.update(_packed(key, tensor.detach().cpu(), base[key], self.half))
        _save(kept or {"::none": torch.zeros(1)}, self.folder / point["file"])
        index = {**self.index, "points": [*self.index["points"], point]}
        if resume is not None:
            index["resume"] = f"resume-{step:05d}.safetensors"
            _save(dict(resume), self.folder / index["resume"])
        self._write(index)
        for old in self.folder.glob("resume-*.safetensors"):
            if old.name != index.get("resume"):
                old.unlink(missing_ok=True)

    def note(self, **facts: Any) -> None:
        """Store facts about the whole path in the index."""
        self._write({**self.index, **facts})

    def resumed(self) -> dict[str, Tensor]:
        """The state to resume from that the last `append` was given; empty without one."""
        name = self.index.get("resume")
        return {} if name is None else dict(_Summed(self.folder / name))


class _Summed(Mapping[str, Tensor]):
    """The tensors of a file that `_save` wrote; each is compared with its checksum when it is read."""

    def __init__(self, file: File) -> None:
        self._file = reader.read(file)
        try:
            self._sums = files.parse(self._file.metadata[_SUMS])
            whole = self._sums.keys() == {*self._file}
        except (ValueError, KeyError, AttributeError) as error:
            raise CheckpointError(f"{file}: has no checksums, so it is not a file of a path") from error
        if not whole:
            raise CheckpointError(f"{file}: is damaged, its tensors are not those that were written; copy it again")

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._file[name]
        if _sum(tensor) != self._sums[name]:
            raise CheckpointError(f"{self._file.path}: is damaged, {name!r} is not what was written; copy it again")
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._file)

    def __len__(self) -> int:
        return len(self._file)


def _save(tensors: Mapping[str, Tensor], file: File, metadata: Mapping[str, str] | None = None) -> None:
    sums = json.dumps({name: _sum(tensor) for name, tensor in tensors.items()})
    writer.save(tensors, file, force=True, metadata={**(metadata or {}), _SUMS: sums})


def _sum(tensor: Tensor) -> str:
    """The checksum of a tensor's dtype, shape and bytes."""
    form = f"{tensor.dtype} {tuple(tensor.shape)}".encode()
    raw: Any = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return f"{zlib.crc32(raw, zlib.crc32(form)):08x}"


def _packed(name: str, tensor: Tensor, base: Tensor, half: bool) -> dict[str, Tensor]:
    if torch.equal(tensor, base):
        return {}
    zero = tensor == 0
    if float(zero.double().mean()) > _SPARSE and tensor.is_floating_point():
        bits = np.packbits((~zero).flatten().numpy())
        return {name + _MASK: torch.from_numpy(bits), name + _VALUES: tensor[~zero].clone()}
    if half and tensor.is_floating_point():
        away = tensor.double() - base.double()
        scale = away.abs().max().float()
        return {name + _DELTA: (away / scale.double()).half(), name + _SCALE: scale}
    return {name: tensor.contiguous()}


def _restored(name: str, found: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> Tensor:
    if name in found:
        return found[name]
    whole = base[name]
    if name + _DELTA in found:
        return (whole.double() + found[name + _DELTA].double() * found[name + _SCALE].double()).to(whole.dtype)
    if name + _MASK in found:
        mask, values = found[name + _MASK], found[name + _VALUES]
        if mask.dtype != torch.uint8 or mask.numel() != math.ceil(whole.numel() / 8):
            raise ValueError(f"the mask of {name!r} has {mask.numel()} bytes for {whole.numel()} numbers")
        bits = np.unpackbits(mask.numpy(), count=whole.numel()).astype(bool)
        full = torch.zeros(whole.numel(), dtype=values.dtype)
        full[torch.from_numpy(bits)] = values
        return full.view(whole.shape)
    return whole
