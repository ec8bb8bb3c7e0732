"""What the commands do with files: open an architecture with its group and data, then compare, align, merge.

The group is read before any checkpoint is opened, and what it was read on is let go: the peak is that of matching.
"""

from __future__ import annotations

import ctypes
import gc
import warnings
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from weightspace import architecture, checkpoint, datasets
from weightspace.architecture import ArchitectureError, Stored
from weightspace.compare import Comparison, Line, Progress, along, compare
from weightspace.distance import euclidean
from weightspace.files import FileNote
from weightspace.net import Net
from weightspace.symmetry import Element, Symmetry, SymmetryError, mean, reset_statistics
from weightspace.symmetry.match import METHODS, apart
from weightspace.symmetry.merge import average
from weightspace.symmetry.repair import has_statistics
from weightspace.task import Task, accuracy, carried, classifies, logits

__all__ = ["Aligned", "Bench", "Merged", "Score", "labels", "limited", "scored", "sources", "splits"]

_NAMED = {
    "digits": lambda split: datasets.digits(split),
    "mnist": lambda split: datasets.mnist(split=split),
    "fashion-mnist": lambda split: datasets.fashion_mnist(split=split),
    "fashion_mnist": lambda split: datasets.fashion_mnist(split=split),
    "cifar10": lambda split: datasets.cifar10(split=split),
}


@dataclass(frozen=True)
class Aligned:
    """b moved to where it is nearest a: what changed, and how far the function did (|f - g f| / |f|: rounding)."""

    names: tuple[str, str]
    out: str
    group: str
    method: str
    why: str
    moved: float
    before: float
    after: float
    function: float
    notes: list[str]
    line: Line | None = None

    def rows(self) -> list[tuple[str, str, str]]:
        """What changed: label, as stored, aligned."""
        rows = [("distance to the target", f"{self.before:.4g}", f"{self.after:.4g}")]
        return rows + (self.line.rows() if self.line else [])

    def remarks(self) -> list[str]:
        """The sentences below the table."""
        said = [
            f"{self.moved:.0%} of the units were renumbered; the outputs changed by {self.function:.1g} of their size.",
            f"Matched by {self.method}: {self.why}.",
        ]
        return said + (self.line.remarks() if self.line else [])

    def data(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Score:
    """One network, or the average of what several say, on held-out examples."""

    name: str
    loss: float
    accuracy: float | None


@dataclass(frozen=True)
class Merged:
    """The mean of networks modulo the group, and what else one could have done with them."""

    names: list[str]
    out: str
    group: str
    singles: list[Score]
    naive: Score | None
    aligned: Score | None
    ensemble: Score | None
    examples: int
    statistics_reset: bool
    notes: list[str]

    def scores(self) -> list[Score]:
        """Single networks, their mean as stored and after alignment, and the ensemble; nothing without data."""
        return [*self.singles, *(s for s in (self.naive, self.aligned, self.ensemble) if s is not None)]

    def data(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def labels(paths: Sequence[Path]) -> list[str]:
    """What to call files: their own names where these tell them apart, else their paths."""
    short = [path.name for path in paths]
    return short if len(set(short)) == len(short) else [str(path) for path in paths]


def _pair(a: Path, b: Path) -> tuple[str, str]:
    first, second = labels([a, b])
    return first, second


def _silent(what: str, done: int, total: int) -> None:
    pass


def sources(data: str) -> tuple[Task, Task | None]:
    """The training and the test examples of a known data set or of files with splits; all of one file, and None."""
    path = Path(data).expanduser()
    if data in _NAMED and not path.exists():
        return _NAMED[data]("train"), _NAMED[data]("test")
    if path.is_dir() or _has_splits(path):
        return _told(datasets.read(path, split="train")), _told(datasets.read(path, split="test"))
    if path.exists():
        return _told(datasets.read(path)), None
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
class Bench:
    """An architecture, its verified group, and disjoint examples to align and to measure on."""

    template: Net
    example: Any
    group: Symmetry
    align_on: Task | None
    measure_on: Task | None
    trust_code: bool
    seed: int
    progress: Progress
    method: str = "auto"

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
        progress: Progress = _silent,
    ) -> Bench:
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
        return cls(hollow, shown, group, align_on, measure_on, trust_code, seed, progress, method)

    def load(self, path: Path) -> Net:
        """The network of a checkpoint. Raises `WeightspaceError`."""
        self.progress(f"loading {path.name}", 0, 0)
        return architecture.load(self.template, path, self.trust_code)[0]

    def compare(self, a: Path, b: Path) -> Comparison:
        """How two checkpoints relate."""
        return compare(
            self.load(a),
            self.load(b),
            self.group,
            align_on=self.align_on,
            measure_on=self.measure_on,
            names=_pair(a, b),
            method=self.method,
            seed=self.seed,
            progress=self.progress,
        )

    def align(self, path: Path, to: Path, out: Path, *, force: bool = False) -> Aligned:
        """Write the checkpoint at `path` with its units where those of `to` are: names, dtypes, metadata stay."""
        fixed = self.load(to)
        net, source, metadata = architecture.load(self.template, path, self.trust_code)
        self.progress(f"matching the units of {path.name} to {to.name}", 0, 0)
        match = self.group.match(net, to=fixed, data=self.align_on, method=self.method, seed=self.seed)
        stored = Stored(source, self.template, partial(_moved, match.element))
        before, after = euclidean(fixed, net), apart(fixed, net, match.element)
        line = self._along(fixed, net, match.element)
        outputs = self._outputs(net)
        del fixed, net  # what is checked and written from here on is read from the file again
        function = self._drift(outputs, stored)
        self.progress(f"writing {out.name}", 0, 0)
        checkpoint.save(stored, out, force=force, metadata=metadata)
        names = _pair(path, to)
        moved = match.element.difference(self.group.identity())
        told = (str(self.group), match.method, match.why, moved, before, after, function, list(self.group.notes), line)
        return Aligned(names, str(out), *told)

    def _along(self, a: Net, b: Net, element: Element) -> Line | None:
        if self.measure_on is None:
            return None
        return along(a, b, element(b), self.measure_on, self.align_on, progress=self.progress)

    def _outputs(self, net: Net) -> Tensor:
        with torch.no_grad():
            return logits(net(carried(self.example, net))).double()

    def _drift(self, outputs: Tensor, stored: Stored) -> float:
        """|f - g f| / |f| on the example. Raises `ArchitectureError` where that is more than rounding."""
        moved = self.template.load(stored)
        drift = float((self._outputs(moved) - outputs).norm()) / (float(outputs.norm()) or 1.0)
        if not drift <= max(1e-3, 20 * float(torch.finfo(moved.dtype).eps)):
            raise ArchitectureError(f"the aligned network's outputs would be off by {drift:.1e}; nothing was written")
        return drift

    def merge(self, paths: Sequence[Path], out: Path, *, force: bool = False) -> Merged:
        """Write the mean of checkpoints modulo the group, in the names, dtypes and metadata of the first."""
        first, source, metadata = architecture.load(self.template, paths[0], self.trust_code)
        nets = [first, *(self.load(path) for path in paths[1:])]
        self.progress(f"aligning {len(nets)} networks and averaging them", 0, 0)
        merged = mean(nets, self.group, data=self.align_on, seed=self.seed)
        names = labels(paths)
        scores = self._scores(names, nets, merged)
        self.progress(f"writing {out.name}", 0, 0)
        tensors = merged.tensors
        stored = Stored(source, self.template, lambda name, tensor: tensors[name].to(tensor.dtype))
        note = {"weightspace": f"mean of {len(nets)} networks modulo symmetry"}
        checkpoint.save(stored, out, force=force, metadata={**metadata, **note})
        return Merged(
            names=names,
            out=str(out),
            group=str(self.group),
            examples=len(self.measure_on) if self.measure_on else 0,
            statistics_reset=bool(self.align_on) and has_statistics(first),
            notes=[*self.group.notes, *_stale(first, self.align_on)],
            **scores,
        )

    def _scores(self, names: list[str], nets: list[Net], merged: Net) -> dict[str, Any]:
        task = self.measure_on
        if task is None or self.align_on is None or any(y is None for _, y in task.batches()):
            return {"singles": [], "naive": None, "aligned": None, "ensemble": None}
        singles = []
        for k, (name, net) in enumerate(zip(names, nets, strict=True)):
            self.progress("measuring", k, len(nets) + 2)
            singles += scored(task, net, name=name)
        self.progress("measuring", len(nets), len(nets) + 2)
        naive, *_ = scored(task, reset_statistics(average(nets), self.align_on), name="mean as stored")
        self.progress("measuring", len(nets) + 1, len(nets) + 2)
        aligned, *_ = scored(task, merged, name="mean after alignment and repair")
        return {"singles": singles, "naive": naive, "aligned": aligned, "ensemble": _ensemble(nets, task)}


def _stale(net: Net, data: Task | None) -> list[str]:
    stale = data is None and has_statistics(net)
    return (
        ["BatchNorm statistics of the mean are averages and fit badly; re-estimate them with --data"] if stale else []
    )


def scored(task: Task, *nets: Net, name: str = "") -> list[Score]:
    """Loss, and accuracy where labels name classes, of every net; nothing where there are no labels."""
    if any(y is None for _, y in task.batches()):
        return []
    right = accuracy(task) if classifies(task) else None
    with torch.no_grad():
        return [Score(name, float(task(net)), right(net) if right else None) for net in nets]


def _ensemble(nets: Sequence[Net], task: Task) -> Score | None:
    """The average of predictions: of probabilities where labels name classes, else of outputs."""
    labels = [y for _, y in task.batches()]
    if any(y is None for y in labels) or not isinstance(task.metric, str):
        return None
    outputs = torch.stack([task.outputs(net).float() for net in nets])
    if task.metric == "cross-entropy":
        outputs = outputs.log_softmax(-1).logsumexp(0)
    else:
        outputs = outputs.mean(0)
    predicted = Task(outputs, torch.cat([y for y in labels if y is not None]), metric=task.metric)
    name = f"ensemble of {'predictions' if classifies(task) else 'outputs'}"
    return scored(predicted, Net.of(nn.Identity()), name=name)[0]


def _moved(element: Element, name: str, tensor: Tensor) -> Tensor:
    """The element's action, in float32 where the dtype is coarser: factors would be rounded before they cancel."""
    if name not in element.group.tensors:
        return tensor
    wide = tensor.dtype in (torch.float16, torch.bfloat16)
    return element.move(name, tensor.float() if wide else tensor).to(tensor.dtype)


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
        name, reason = type(net.architecture).__name__, (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ArchitectureError(
            f"{name} does not take an input of shape {_shape(example)} ({reason}); give --data or --example that fits"
        ) from error


def _shape(example: Any) -> Any:
    if isinstance(example, Tensor):
        return tuple(example.shape)
    if isinstance(example, dict):
        return {key: _shape(value) for key, value in example.items()}
    return [_shape(value) for value in example] if isinstance(example, (list, tuple)) else type(example).__name__
