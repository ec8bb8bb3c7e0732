"""Tasks from data files: .npz, idx, parquet, and folders of known data sets."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from weightspace.checkpoint import files
from weightspace.net.public import public
from weightspace.task.datasets import cifar10, fashion_mnist, mnist
from weightspace.task.examples import TaskError
from weightspace.task.formats import (
    INPUTS,
    Split,
    about,
    labels_beside,
    read_idx,
    read_npz,
    read_parquet,
    reading,
    scaled,
)
from weightspace.task.task import Task

__all__ = ["read"]


@public
def read(path: str | os.PathLike[str], *, split: Split = "train", batch: int = 512) -> Task:
    """The task in a data file: .npz, idx or idx.gz, parquet; or in a folder of mnist, fashion-mnist or cifar10.

    .npz: arrays x and y, inputs and labels (or other usual names), x_train and y_train (of `split`), or the first of
    two and the second; inputs alone are a task without labels. Arrays of other keyword inputs, such as a mask, stand
    beside the inputs: the inputs are then a mapping from these names. Idx: images, with their labels beside them under
    the official name, if there are any. Parquet: a column of encoded images, or else all numeric columns; and a column
    label, labels, fine_label, y, target or score. `notes` of the task lists what was left out or guessed. Inputs of
    uint8 are scaled to [0, 1], others are not changed. A folder is read as the data set of that name, standardised.
    Raises `TaskError` for a file that is missing or unusable.

    >>> import os
    >>> import tempfile
    >>> import numpy as np
    >>> import weightspace as ws
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "a.npz")
    ...     np.savez(path, x=np.zeros((5, 3), "float32"), y=np.arange(5) % 2)
    ...     ws.task.read(path)
    Task(5 examples, cross-entropy, mean)
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return _known_folder(path)(path, split, batch=batch)
    with reading(path), open(path, "rb") as file:
        magic = file.read(200)
    if what := files.instead(magic):
        raise TaskError(f"{path} is {what[0]}; {what[1]}")
    if not magic:
        raise TaskError(f"{path} is empty; give an .npz, idx, idx.gz or parquet file")
    notes: list[str] = []
    if magic[:2] == b"PK":
        inputs, labels, notes = read_npz(path, split)
    elif magic[:4] == b"PAR1":
        inputs, labels, notes = read_parquet(path)
    elif magic[:2] in (b"\x1f\x8b", b"\0\0"):
        beside = labels_beside(path)
        inputs, labels = read_idx(path), None if beside is None else read_idx(beside)
        notes = ["read without labels: there is no file of them beside it"] if beside is None else []
        inputs = inputs[:, None] if inputs.ndim == 3 else inputs
    else:
        raise TaskError(f"{path} is not of a known kind; give an .npz, idx, idx.gz or parquet file")
    with about(path):
        task = Task(_as_numbers(inputs), labels, batch=batch)
    task.notes = tuple(f"{path}: {note}" for note in notes)
    return task


def _as_numbers(inputs: Any) -> Any:
    if isinstance(inputs, dict):
        return {name: _as_numbers(part) if name in INPUTS else part for name, part in inputs.items()}
    return scaled(inputs) if inputs.dtype == np.uint8 else inputs


def _known_folder(path: Path) -> Any:
    if any((path / f"train-images-idx3-ubyte{end}").exists() for end in ("", ".gz")):
        return fashion_mnist if "fashion" in path.resolve().name.lower() else mnist
    if path.resolve().name == "cifar10":
        return cifar10
    raise TaskError(f"{path} is not a folder of mnist, fashion-mnist or cifar10; give one of its files")
