"""A plan carried out from files to files: shard by shard in bounded memory, and taken up again where it was stopped."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import secrets
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weightspace.checkpoint import adapter, files, writer
from weightspace.checkpoint.files import FileNote
from weightspace.checkpoint.locate import INDEX
from weightspace.checkpoint.refusal import refusal
from weightspace.jobs.progress import Tick
from weightspace.merging.part import BLOCK, check_finite, reading
from weightspace.merging.plan import Plan, Row
from weightspace.merging.recipe import streamed
from weightspace.net.errors import WeightspaceError
from weightspace.net.public import public

__all__ = ["numbers_of", "write"]


try:
    import fcntl
except ImportError:  # no such locks on Windows, where a second merge is not seen
    fcntl = None  # type: ignore[assignment]

_STATE = "state.json"
_MARGIN = 1 << 20  # bytes of disk for everything that is not tensors


@public
def write(
    plan: Plan,
    out: str | os.PathLike[str],
    *,
    shard: int = 5_000_000_000,
    metadata: Mapping[str, str] | None = None,
    progress: Tick | None = None,
    force: bool = False,
) -> Path:
    """Merge as planned and write the result as safetensors; returns the path to read (the index, if sharded).

    `out` ends in `.safetensors`, or is a folder (made if need be) and gets Hugging Face's names. Parents are read in
    pieces and each is merged and written before the next, so that memory does not grow with the networks. Beside the
    result, `merge.json` (of a file, `name.merge.json`) says what was done with every tensor. `metadata` defaults to
    that of the first parent. `progress` is told the bytes written. Finished shards are kept in a hidden folder beside
    `out` until all are there: after an interruption, the same call on the same files goes on with the next shard, and
    any other begins anew. Raises `WeightspaceError` for NaN and infinity and leaves nothing; `CheckpointError` where
    files cannot be written.

    >>> import tempfile
    >>> import weightspace as ws
    >>> a, b = ws.demo.example(0)[0], ws.demo.example(1)[0]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     ws.merging.write(ws.merging.planned([a.tensors, b.tensors]), folder + "/merged").name
    'model.safetensors'
    """
    work = _Work(plan, Path(out), shard, metadata)
    return work.carried_out(progress or _silent, force)


def _silent(done: int, total: int) -> None:
    """Tell nothing."""


def numbers_of(plan: Plan, row: Row) -> Iterator[Tensor]:
    """One tensor of the merged network in consecutive vectors of its dtype.

    Raises `WeightspaceError` for NaN or infinity in a parent or in the result.
    """
    if row.action == "merged":
        for numbers in streamed(plan.part(row), row.recipe, row.depth):
            yield _rounded(numbers, row)
        return
    ((k, name), *_), total = row.sources, row.shape.numel()
    read = reading((plan.parents[k], name))
    for start in range(0, total, BLOCK):
        found = read(start, min(start + BLOCK, total))
        if found.dtype.is_floating_point:
            check_finite(found, name, plan.label(k))
        yield _rounded(found, row) if found.dtype.is_floating_point else found.clone()


def _rounded(numbers: Tensor, row: Row) -> Tensor:
    """The numbers in the row's dtype; those of half precision may be too large for it."""
    if row.action == "merged":
        check_finite(numbers, row.name, f"the result of {row.recipe.method}")
    found = numbers.to(row.dtype, copy=True)  # the numbers may be overwritten before these are written
    if numbers.dtype != row.dtype and not math.isfinite(float(found.sum(dtype=torch.float64))):
        wide = "float64" if row.dtype == torch.float32 else "float32"
        kind = str(row.dtype).removeprefix("torch.")
        raise WeightspaceError(f"{row.name!r} has numbers that {kind} cannot hold; give dtype {wide}")
    return found


@contextmanager
def _alone(folder: Path, out: Path) -> Iterator[None]:
    """Hold a folder, which is made, against other processes; where there are no such locks, nothing is held.

    Raises `CheckpointError` where another one holds it.
    """
    try:
        folder.mkdir(exist_ok=True)
        held = os.open(folder, os.O_RDONLY)
    except OSError:  # what is wrong with the place is said by what writes there
        yield
        return
    try:
        if not _locked(held, folder):
            raise refusal(out, "is being written by another merge", "wait until that is done, or stop it")
        try:
            yield
        finally:
            with suppress(OSError):
                folder.rmdir()  # where nothing is kept in it
    finally:
        os.close(held)


def _locked(held: int, folder: Path) -> bool:
    """Lock an open folder; whether that was done, and the folder is still there."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    try:
        return os.path.samestat(os.fstat(held), folder.stat())
    except OSError:
        return False


class _Work:
    """A merge that is being written: its files, and the hidden folder of those that are finished."""

    def __init__(self, plan: Plan, out: Path, shard: int, metadata: Mapping[str, str] | None) -> None:
        self.plan, self.out = plan, out
        self.rows = {row.name: row for row in plan.rows if row.action != "left out"}
        self.single = out.name.endswith(".safetensors") and not out.is_dir()
        self.stem = out.name.removesuffix(".safetensors") if self.single else "model"
        given = getattr(plan.parents[0], "metadata", None) if metadata is None and plan.parents else metadata
        slots = [writer.Slot(row.name, row.dtype, row.shape) for row in self.rows.values()]
        self.files = writer.shared_out(out, self.stem, slots, shard, given or {})
        self.folder = out.parent / f".{out.name}.merge"
        self.digest = digest(plan, self.files)

    def carried_out(self, progress: Tick, force: bool) -> Path:
        """Write all files, while no other process writes them; the path of the last."""
        with _alone(self.folder, self.out):
            return self._carried_out(progress, force)

    def _carried_out(self, progress: Tick, force: bool) -> Path:
        ours, moving = self._found()
        made = not self.single and not self.out.is_dir()
        target, old = self._target(force, moving)
        try:
            if not ours:
                self._begin()
            self._written(target, moving, progress)
            return self._moved(target, old)
        except BaseException as error:
            kept = self._left(error)
            if made:
                with suppress(OSError):
                    self.out.rmdir()  # where it is still empty
            if kept and not isinstance(error, Exception):  # Ctrl-C, SIGTERM
                warnings.warn(f"{self.out}{kept}", FileNote, stacklevel=3)
            if isinstance(error, OSError):
                do = "free space and call again" if error.errno == errno.ENOSPC else "choose another place"
                raise refusal(self.out, f"could not be written ({error.strerror or error}){kept}", do) from error
            raise

    def _found(self) -> tuple[bool, bool]:
        """Whether the hidden folder is of this merge, and its files were being moved from it when it stopped."""
        state: dict[str, Any] = {}
        with suppress(OSError, ValueError):
            state = files.unsealed(files.read_json(self.folder / _STATE))
        ours = state.get("merge") == self.digest
        return ours, ours and bool(state.get("moving"))

    def _begin(self) -> None:
        self.folder.mkdir(exist_ok=True)
        for item in self.folder.iterdir():  # the folder itself is held
            shutil.rmtree(item) if item.is_dir() and not item.is_symlink() else item.unlink()
        self._state(moving=False)

    def _state(self, moving: bool) -> None:
        files.write(self.folder / _STATE, json.dumps(files.sealed({"merge": self.digest, "moving": moving})))

    def _target(self, force: bool, moving: bool) -> tuple[Path, list[Path]]:
        """The folder of the result, and the files of an earlier one there."""
        try:
            if not self.single:
                self.out.mkdir(exist_ok=True)
        except OSError as error:
            raise refusal(self.out, f"cannot be made ({error.strerror or error})", "choose another place") from error
        if not self.single and adapter.describes(self.out):
            raise refusal(self.out, "holds an adapter, which would be taken for the network", "choose another folder")
        target, _, old = writer.vacant(self.out, force or moving)
        report = target / self._report
        if report.exists() and not force and not moving:
            raise refusal(self.out, f"{report.name} exists", "choose another name, or overwrite with force (--force)")
        return target, old

    @property
    def _report(self) -> str:
        return f"{self.stem}.merge.json" if self.single else "merge.json"

    def _written(self, target: Path, moving: bool, progress: Tick) -> None:
        """Write the shards that are not finished yet, each whole or not at all."""
        sizes = {name: sum(slot.nbytes for slot in group) for name, group in self.files.groups.items()}
        places = [self.folder, *([target] if moving else [])]
        ready = {name for name in sizes if any(self._whole(place / name) for place in places)}
        need = sum(size for name, size in sizes.items() if name not in ready) + _MARGIN
        if (free := shutil.disk_usage(target).free) < need:
            raise refusal(self.out, f"needs {need:,} bytes and {free:,} are free", "free space, or write elsewhere")
        done, total = 0, sum(sizes.values())

        def read(slot: writer.Slot) -> Iterator[Tensor]:
            nonlocal done
            for numbers in numbers_of(self.plan, self.rows[slot.name]):
                yield numbers
                done += numbers.nbytes
                progress(done, total)

        for name, group in self.files.groups.items():
            if name in ready:
                done += sizes[name]
                progress(done, total)
            else:
                stream = partial(writer.file_of, self.out, group, self.files.about, read)
                files.write_all({self.folder / name: stream})

    def _whole(self, path: Path) -> bool:
        """Whether a shard is there, in its full length."""
        group = self.files.groups[path.name]
        length = len(writer.header(self.out, group, self.files.about)[0]) + sum(slot.nbytes for slot in group)
        return path.is_file() and path.stat().st_size == length

    def _moved(self, target: Path, old: list[Path]) -> Path:
        """Move what is finished to its place, the index last; the path to read."""
        names = [*self.files.groups]
        files.write(self.folder / self._report, json.dumps(report(self.plan), indent=1))
        if self.files.listing is not None:
            files.write(self.folder / self.files.listing[0], self.files.listing[1])
        self._state(moving=True)
        names += [self._report, *([self.files.listing[0]] if self.files.listing is not None else [])]
        moved = {target / name: self.folder / name for name in names if (self.folder / name).exists()}
        # an old index must not stay beside new shards if the process is killed between two moves
        first = [item for item in old if item.name.endswith(INDEX)]
        files.move_all(moved, first=first, last=[item for item in old if item.name not in names])
        shutil.rmtree(self.folder)
        return target / (self.files.listing[0] if self.files.listing is not None else names[0])

    def _left(self, error: BaseException) -> str:
        """Remove the hidden folder unless finished shards may be used again; else a text that says so."""
        if self._found()[1]:
            return "; the same call goes on"
        finished = sum((self.folder / name).exists() for name in self.files.groups)
        if finished == 0 or isinstance(error, WeightspaceError) or not self._resumable:
            shutil.rmtree(self.folder, ignore_errors=True)
            return ""
        return f"; {finished} of {len(self.files.groups)} shards are kept, and the same call goes on"

    @property
    def _resumable(self) -> bool:
        return all(getattr(source, "stamps", None) for source in _sources(self.plan))


def _sources(plan: Plan) -> list[Mapping[str, Tensor]]:
    return [*plan.parents, *([] if plan.base is None else [plan.base])]


def digest(plan: Plan, planned: writer.Files) -> str:
    """SHA-256 of all that a result depends on: the files, the rows with their recipes, and the stamps of the parents.

    Parents that are not safetensors files have no stamps, and a digest of their own each time.
    """
    stamps = [getattr(source, "stamps", None) or secrets.token_hex(16) for source in _sources(plan)]
    rows = [[repr(value) for key, value in vars(row).items() if key != "recipe"] for row in plan.rows]
    recipes = [_told(row) for row in plan.rows]
    shards = [[name, [slot.name for slot in group]] for name, group in planned.groups.items()]
    text = json.dumps([stamps, rows, recipes, shards, planned.about], default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _told(row: Row) -> dict[str, Any]:
    """The recipe of a row as plain data."""
    told: dict[str, Any] = files.parse(json.dumps(asdict(row.recipe), default=str))
    return told


def report(plan: Plan) -> dict[str, Any]:
    """What `merge.json` holds: the parents, the recipes, and the table of the plan."""
    recipes = {json.dumps(_told(row), sort_keys=True): _told(row) for row in plan.rows if row.action == "merged"}
    count = len(plan.parents)
    return {
        "parents": [plan.label(k) for k in range(count)],
        "base": None if plan.base is None else plan.label(count),
        "recipes": [*recipes.values()],
        "notes": [*plan.notes],
        "tensors": plan.table().data(),
    }
