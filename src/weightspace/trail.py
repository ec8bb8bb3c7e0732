"""A trail: a path of networks in a folder, written point by point, read back as a `Path`.

    base.safetensors        the first network
    00040.safetensors       what is not as in the base: tensors that are mostly zero as values and a bit mask, others
                            whole; or, with `half`, as base + float16 difference
    index.json              one entry a point: file, step, facts; the architecture's fingerprint; the log of a flow
    resume-00040.safetensors  what a flow needs to go on from its last point, and nobody else

Every file is written beside its place and renamed, the index last, so that a trail that is cut off ends at its last
whole point.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path as File
from typing import Any

import numpy as np
import torch
from torch import Tensor

from weightspace import checkpoint
from weightspace.checkpoint import CheckpointError
from weightspace.net import Net
from weightspace.path import Path

__all__ = ["Trail"]

_INDEX, _BASE, _VERSION = "index.json", "base.safetensors", 1
_SPARSE = 0.5
_MASK, _VALUES, _DELTA, _SCALE = "::mask", "::values", "::delta", "::scale"


class Trail:
    """The networks of a path on disk: `len`, `trail[k]`, iteration; `trail.path()` is the polyline through them."""

    def __init__(self, folder: str | os.PathLike[str], net: Net, *, half: bool = False) -> None:
        """Open the trail in `folder`, or begin one there at `net`, whose architecture the points have.

        `half` keeps differences from the base in float16: half of the room, each within 2^-11 of itself or 2^-25 of the
        largest of its tensor. Raises
        `CheckpointError` for a folder that holds something else, or a trail of another architecture.
        """
        self.folder, self.net, self.half = File(folder), net, half
        if (self.folder / _INDEX).exists():
            self.index = self._read()
        else:
            there = self.folder.exists()
            if there and (not self.folder.is_dir() or {p.name for p in self.folder.iterdir()} - {_BASE}):
                raise CheckpointError(f"{folder}: is there and holds no path; choose another folder")
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise CheckpointError(f"{folder}: cannot be made ({error.strerror}); choose another folder") from error
            told = {"weightspace": "first network of a path"}
            checkpoint.save(net.tensors, self.folder / _BASE, force=True, metadata=told)
            self.index = {"weightspace": "path", "version": _VERSION, "fingerprint": net.fingerprint, "points": []}
            self.index["points"].append({"file": _BASE, "step": 0})
            self._write(self.index)

    @staticmethod
    def erase(folder: str | os.PathLike[str]) -> None:
        """Remove the trail in `folder`, index first, and no other file; nothing happens where there is none."""
        index = File(folder) / _INDEX
        try:
            told = json.loads(index.read_text())
            points = [point["file"] for point in told["points"]] if told["weightspace"] == "path" else []
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{index}: is no index of a path ({type(error).__name__})") from error
        names = [*points, told.get("resume", _BASE)]
        if not points or any(not isinstance(name, str) or File(name).name != name for name in names):
            raise CheckpointError(f"{index}: is no index of a path; nothing was removed")
        index.unlink()
        for name in {*names, _BASE}:
            (index.parent / name).unlink(missing_ok=True)

    def _read(self) -> dict[str, Any]:
        try:
            index = json.loads((self.folder / _INDEX).read_text())
            known = index["weightspace"] == "path" and index["version"] == _VERSION and len(index["points"]) > 0
            names = [point["file"] for point in index["points"]] + [index.get("resume", _BASE)]
            known = known and index["fingerprint"] is not None and all(p["step"] >= 0 for p in index["points"])
            outside = [name for name in names if File(name).name != name]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{self.folder / _INDEX}: is no index of a path ({type(error).__name__})") from error
        if not known:
            raise CheckpointError(f"{self.folder / _INDEX}: is no index of a path that this version can read")
        if outside:
            raise CheckpointError(f"{self.folder / _INDEX}: {outside[0]!r} lies outside of the folder")
        if index["fingerprint"] != self.net.fingerprint:
            raise CheckpointError(f"{self.folder}: its networks have another architecture than the one given")
        return dict(index)

    def _write(self, index: dict[str, Any]) -> None:
        beside = self.folder / f".{_INDEX}.{os.getpid()}"
        try:
            beside.write_text(json.dumps(index, indent=1))
            beside.replace(self.folder / _INDEX)
            self.index = index
        except OSError as error:
            beside.unlink(missing_ok=True)
            raise CheckpointError(f"{self.folder / _INDEX}: cannot be written ({error.strerror})") from error

    def __len__(self) -> int:
        return len(self.index["points"])

    def __iter__(self) -> Iterator[Net]:
        return (self[k] for k in range(len(self)))

    def __repr__(self) -> str:
        return f"Trail({len(self)} networks in {self.folder})"

    def facts(self, k: int) -> dict[str, Any]:
        """What was said of a point: its step, and what `append` was given."""
        return {key: value for key, value in self.index["points"][k].items() if key != "file"}

    def __getitem__(self, k: int) -> Net:
        name = self.index["points"][k]["file"]
        base = checkpoint.read(self.folder / _BASE)
        if name == _BASE:
            return self.net.load(base)
        found = checkpoint.read(self.folder / name)
        return self.net.load({n: _restored(n, found, base) for n in base})

    def path(self) -> Path:
        """The polyline through the points, at their steps; each is read when it is asked for."""
        steps = [float(point["step"]) for point in self.index["points"]]
        if len(steps) < 2:
            raise CheckpointError(f"{self.folder}: holds one network; a path has two ends")
        marks = [(s - steps[0]) / (steps[-1] - steps[0]) for s in steps]

        def at(t: float) -> Net:
            k = int(np.searchsorted(marks, t, side="right")) - 1
            return self[k] if marks[k] == t else self[k].lerp(self[k + 1], (t - marks[k]) / (marks[k + 1] - marks[k]))

        return Path(at, marks)

    def append(self, net: Net, step: int, resume: Mapping[str, Tensor] | None = None, **facts: Any) -> None:
        """Write a point, with facts that JSON can hold. Raises `CheckpointError`, with the trail as it was."""
        self.net.check(net)
        if step <= self.index["points"][-1]["step"]:
            raise CheckpointError(f"step {step} does not come after {self.index['points'][-1]['step']}, the last one")
        try:
            point = json.loads(json.dumps(facts)) | {"file": f"{step:05d}.safetensors", "step": step}
        except TypeError as error:
            raise CheckpointError(f"a fact that JSON cannot hold ({error}); give numbers and text") from error
        base = checkpoint.read(self.folder / _BASE)
        kept: dict[str, Tensor] = {}
        for key, tensor in net.tensors.items():
            kept.update(_packed(key, tensor.detach().cpu(), base[key], self.half))
        checkpoint.save(kept or {"::none": torch.zeros(1)}, self.folder / point["file"], force=True, metadata={})
        before, index = self.index.get("resume"), {**self.index, "points": [*self.index["points"], point]}
        if resume is not None:
            index["resume"] = f"resume-{step:05d}.safetensors"
            checkpoint.save(dict(resume), self.folder / index["resume"], force=True, metadata={})
        self._write(index)
        if before is not None and before != index.get("resume"):
            (self.folder / before).unlink(missing_ok=True)

    def note(self, **facts: Any) -> None:
        """Say something of the whole path."""
        self._write({**self.index, **facts})

    def resumed(self) -> dict[str, Tensor]:
        """What the last `append` was given to go on from; empty where there was nothing."""
        name = self.index.get("resume")
        return {} if name is None else dict(checkpoint.read(self.folder / name).items())


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
        bits = np.unpackbits(found[name + _MASK].numpy(), count=whole.numel()).astype(bool)
        values = found[name + _VALUES]
        full = torch.zeros(whole.numel(), dtype=values.dtype)
        full[torch.from_numpy(bits)] = values
        return full.view(whole.shape)
    return whole
