"""Examples named on the command line: a data set by its name, or files, and how they are split."""

from __future__ import annotations

import warnings
import zipfile
from contextlib import suppress
from pathlib import Path

from weightspace.checkpoint.architecture import ArchitectureError
from weightspace.checkpoint.files import FileNote
from weightspace.task import data_files, datasets
from weightspace.task.task import Task

__all__ = ["examples", "labelled", "limited", "path_of", "splits", "train_and_test"]

_NAMED = {
    "digits": lambda split: datasets.digits(split),
    "mnist": lambda split: datasets.mnist(split=split),
    "fashion-mnist": lambda split: datasets.fashion_mnist(split=split),
    "fashion_mnist": lambda split: datasets.fashion_mnist(split=split),
    "cifar10": lambda split: datasets.cifar10(split=split),
}


def path_of(data: str) -> Path:
    """The path that a name stands for. Raises `ArchitectureError` where it is no path and no data set has that name."""
    path = Path(data).expanduser()
    if data not in _NAMED and not path.exists():
        known = ", ".join(name for name in _NAMED if "_" not in name)
        raise ArchitectureError(f"--data {data}: no such file, and no data set of that name; known are {known}")
    return path


def train_and_test(data: str) -> tuple[Task, Task | None]:
    """Training and test examples of a known data set, or of files that have both; else all examples, and None."""
    path = path_of(data)
    if data in _NAMED and not path.exists():
        return _NAMED[data]("train"), _NAMED[data]("test")
    if path.is_dir() or _has_splits(path):
        return _noted(data_files.read(path, split="train")), _noted(data_files.read(path, split="test"))
    return _noted(data_files.read(path)), None


def splits(data: str, limit: int, seed: int) -> tuple[Task, Task]:
    """Examples to work on, and others to measure on: training and test split, or two halves of one file."""
    first, second = train_and_test(data)
    if second is None:
        if len(first) < 2:
            raise ArchitectureError(f"{data}: one example; give two at least, to align on one and measure on the other")
        first, second = first.split(0.5, seed)
    return limited(first, limit, seed), limited(second, limit, seed)


def examples(data: str) -> Task:
    """The test examples of a data set; all of a file without a split."""
    train, test = train_and_test(data)
    return train if test is None else test


def limited(task: Task, limit: int, seed: int) -> Task:
    """At most `limit` examples, drawn at random."""
    return task.take(limit, seed) if len(task) > limit else task


def labelled(task: Task, data: str) -> Task:
    """The task, refused where examples have no labels; `data` is its name in the message."""
    if any(y is None for _, y in task.batches()):
        raise ArchitectureError(f"{data}: no labels, and this command measures a loss; add an array y")
    return task


def _noted(task: Task) -> Task:
    """The task, what was left out or guessed when its file was read told as a warning."""
    for note in task.notes:
        warnings.warn(note, FileNote, stacklevel=3)
    return task


def _has_splits(path: Path) -> bool:
    with suppress(OSError, zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
        return {"x_train.npy", "y_train.npy", "x_test.npy", "y_test.npy"} <= set(archive.namelist())
    return False
