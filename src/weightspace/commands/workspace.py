"""What the commands open: an architecture with its group, checkpoints and data."""

from __future__ import annotations

import ctypes
import gc
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from weightspace.checkpoint import architecture
from weightspace.checkpoint.architecture import ArchitectureError
from weightspace.checkpoint.files import FileNote
from weightspace.commands.progress import Progress, silent
from weightspace.net.errors import SymmetryError, first_line
from weightspace.net.inputs import carried
from weightspace.net.net import Net
from weightspace.symmetry.align.match import METHODS, Method
from weightspace.symmetry.symmetry import Symmetry
from weightspace.task import data_files, datasets
from weightspace.task.classification import accuracy, classifies
from weightspace.task.task import Task

__all__ = ["Score", "Workspace", "labels", "limited", "scored", "sources", "splits"]


def labelled(task: Task, data: str) -> Task:
    if any(y is None for _, y in task.batches()):
        raise ArchitectureError(f"{data}: no labels, and there is nothing to know; give x and y")
    return task


_NAMED = {
    "digits": lambda split: datasets.digits(split),
    "mnist": lambda split: datasets.mnist(split=split),
    "fashion-mnist": lambda split: datasets.fashion_mnist(split=split),
    "fashion_mnist": lambda split: datasets.fashion_mnist(split=split),
    "cifar10": lambda split: datasets.cifar10(split=split),
}


@dataclass(frozen=True)
class Score:
    """One network, or the average of what several say, on held-out examples."""

    name: str
    loss: float
    accuracy: float | None


def labels(paths: Sequence[Path]) -> list[str]:
    """What to call files: their own names where these tell them apart, else their paths."""
    short = [path.name for path in paths]
    return short if len(set(short)) == len(short) else [str(path) for path in paths]


def pair(a: Path, b: Path) -> tuple[str, str]:
    first, second = labels([a, b])
    return first, second


def sources(data: str) -> tuple[Task, Task | None]:
    """The training and the test examples of a known data set or of files with splits; all of one file, and None."""
    path = Path(data).expanduser()
    if data in _NAMED and not path.exists():
        return _NAMED[data]("train"), _NAMED[data]("test")
    if path.is_dir() or _has_splits(path):
        return _told(data_files.read(path, split="train")), _told(data_files.read(path, split="test"))
    if path.exists():
        return _told(data_files.read(path)), None
    known = ", ".join(name for name in _NAMED if "_" not in name)
    raise ArchitectureError(f"--data {data}: no such file, and no data set of that name; known are {known}")


def _told(task: Task) -> Task:
    for note in task.notes:
        warnings.warn(note, FileNote, stacklevel=3)
    return task


def splits(data: str, limit: int, seed: int) -> tuple[Task, Task]:
    """Examples to align on, and others to measure on: the splits of a known data set, or two halves of a file."""
    first, second = sources(data)
    if second is None:
        first, second = first.split(0.5, seed)
    return limited(first, limit, seed), limited(second, limit, seed)


def limited(task: Task, limit: int, seed: int) -> Task:
    """At most so many examples, drawn at random."""
    return task.take(limit, seed) if len(task) > limit else task


def _has_splits(path: Path) -> bool:
    with suppress(OSError, zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
        return {"x_train.npy", "y_train.npy", "x_test.npy", "y_test.npy"} <= set(archive.namelist())
    return False


@dataclass(frozen=True)
class Workspace:
    """An architecture, its verified group, and disjoint examples to align and to measure on."""

    template: Net
    example: Any
    group: Symmetry
    align_on: Task | None
    measure_on: Task | None
    trust_code: bool
    seed: int
    progress: Progress
    method: Method = "auto"

    @classmethod
    def open(
        cls,
        arch: str | None,
        paths: Sequence[Path],
        data: str | None = None,
        example: str | None = None,
        *,
        limit: int = 2048,
        method: str = "auto",
        trust_code: bool = False,
        seed: int = 0,
        progress: Progress = silent,
    ) -> Workspace:
        """Find the architecture, see that the checkpoints fit it, open the data, read the group; no tensor is read.

        Raises `WeightspaceError` for whatever does not fit.
        """
        _return_memory()
        if method not in ("auto", *METHODS):
            raise ArchitectureError(f"--method {method}: choose auto, {', '.join(METHODS)}")
        for path in paths:
            if not path.exists() and not path.with_name(f"{path.name}.index.json").exists():
                raise ArchitectureError(f"{path}: no such file or folder; check the path")
        module = architecture.find(arch, list(paths), trust_code)
        align_on, measure_on = splits(data, limit, seed) if data is not None else (None, None)
        if align_on is not None and next(align_on.batches())[1] is None:
            raise ArchitectureError(f"--data {data}: inputs without labels, and a loss is measured; add an array y")
        shown = _example(module, align_on, example, seed)
        net = Net.of(module)
        del module
        for path in paths:
            architecture.check(net, path)
        shown = carried(shown, net)
        _try(net, shown)
        net = net.at(net.weights.map(_meta))
        progress(f"reading the symmetry of {type(net.architecture).__name__}", 0, 0)
        try:
            group = Symmetry.of(net, shown, verify=True)
        except SymmetryError:  # not every network stands random weights: once more at those it was made with
            group = Symmetry.of(architecture.find(arch, list(paths), trust_code), shown)
        hollow = net.at(net.weights, net.state.map(_meta))
        gc.collect()  # the exported graph is a cycle that holds the probe's weights
        return cls(hollow, shown, group, align_on, measure_on, trust_code, seed, progress, cast(Method, method))

    def load(self, path: Path) -> Net:
        """The network of a checkpoint. Raises `WeightspaceError`."""
        self.progress(f"loading {path.name}", 0, 0)
        return architecture.load(self.template, path, self.trust_code)[0]


def scored(task: Task, *nets: Net, name: str = "") -> list[Score]:
    """Loss, and accuracy where labels name classes, of every net; nothing where there are no labels."""
    if any(y is None for _, y in task.batches()):
        return []
    right = accuracy(task) if classifies(task) else None
    with torch.no_grad():
        return [Score(name, float(task(net)), right(net) if right else None) for net in nets]


def _meta(tensor: Tensor) -> Tensor:
    return tensor.to("meta")


def _example(module: nn.Module, data: Task | None, text: str | None, seed: int) -> Any:
    if text is not None:
        return architecture.parse_example(text, seed)
    return data.example(2) if data is not None else architecture.example_of(module)


def _return_memory() -> None:
    """Have large blocks go back to the system when they are free; glibc would keep twice the weights in reserve."""
    threshold, size = -3, 1 << 22  # M_MMAP_THRESHOLD; fixed, where by default it grows
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).mallopt(threshold, size)


def _try(net: Net, example: Any) -> None:
    try:
        with torch.no_grad():
            net(carried(example, net))
    except Exception as error:
        name, reason = type(net.architecture).__name__, first_line(error)
        raise ArchitectureError(
            f"{name} does not take an input of shape {_shape(example)} ({reason}); give --data or --example that fits"
        ) from error


def _shape(example: Any) -> Any:
    if isinstance(example, Tensor):
        return tuple(example.shape)
    if isinstance(example, dict):
        return {key: _shape(value) for key, value in example.items()}
    return [_shape(value) for value in example] if isinstance(example, (list, tuple)) else type(example).__name__


def opened(path: Path, arch: str | None, trust_code: bool) -> tuple[Net, Net, Any, dict[str, str]]:
    if not path.exists():
        raise ArchitectureError(f"{path}: no such file or folder; check the path")
    template = Net.of(architecture.find(arch, [path], trust_code))
    return template, *architecture.load(template, path, trust_code)


def picked(tensors: Mapping[str, Tensor], name: str, tensor: Tensor) -> Tensor:
    return tensors[name].to(tensor.dtype)
