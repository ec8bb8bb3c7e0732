"""`Recorder`: observables of a network recorded during its training, without changing the run."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path as File
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net
from weightspace.net.public import public
from weightspace.net.weights import Weights
from weightspace.path.path import Path
from weightspace.path.trail import Trail
from weightspace.task.classification import together
from weightspace.training.recording import Record, Recording, Writer, plain, revived
from weightspace.trust.relative import relative_trust

__all__ = ["Recorder"]


Observable = Callable[[Net], Any]


@public
class Recorder:
    """Record a training run: every `every` steps, the loss, distances in weight space, and functions of the network.

    An observable is any function of a Net that returns numbers, tensors, `Gates`, or mappings, lists or dataclasses of
    these; None is not recorded. It gets a copy in evaluation mode, and the global generator is restored afterwards, so
    that the run is bit by bit what it would have been. One that raises is recorded as failed the first time, with a
    warning, and the run goes on. Unless `distances` is False, each record also has `norm` |w|, `from_start` and
    `from_last`: relative trust from the first network and from the last record's; they cost two copies of the weights.

    `file`: records are appended to it as they come; a resumed run continues the same file, from its last record's step.
    Without it they are kept in memory. `points`: every how many steps the network itself is kept, for `path()`: in
    memory, or in the folder named like the file with ".points" added. `on_record`: functions called with every
    `Record`. `tell` is called with one line at the end: the time that recording took. Close it by `close()`, or use it
    in a `with`. Raises `RecordingError` for a file of another architecture, or one that another recorder writes.

    >>> import torch, weightspace as ws
    >>> net, task = ws.demo.example()
    >>> model, (x, y) = net.module(), next(task.batches())
    >>> optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> with ws.Recorder(model, every=5, tell=None, right=ws.accuracy(task)) as watch:
    ...     for _ in range(10):
    ...         loss = torch.nn.functional.cross_entropy(model(x), y)
    ...         optimiser.zero_grad(), loss.backward(), optimiser.step()
    ...         watch.step(loss=loss.item())
    (None, None, None)
    (None, None, None)
    (None, None, None)
    (None, None, None)
    (None, None, None)
    (None, None, None)
    (None, None, None)
    (None, None, None)
    (None, None, None)
    (None, None, None)
    >>> [record.step for record in watch.records], sorted(watch.records[-1].values)
    ([0, 5, 10], ['from_last', 'from_start', 'loss', 'norm', 'right'])
    """

    def __init__(
        self,
        model: nn.Module,
        every: int = 1,
        *,
        file: str | os.PathLike[str] | None = None,
        points: int | None = None,
        distances: bool = True,
        on_record: Sequence[Callable[[Record], None]] = (),
        tell: Callable[[str], None] | None = print,
        **observables: Any,
    ) -> None:
        for name, value in (("every", every), ("points", points)):
            if value is not None and value < 1:
                raise WeightspaceError(f"{name} is {value}; give one step or more")
        for name, observable in observables.items():
            if not callable(observable):
                raise WeightspaceError(f"{name} is a {type(observable).__name__}, not a function of a network")
        self.model, self.every, self.points, self.tell = model, every, points, tell
        self.observables, self.on_record, self.distances = dict(observables), list(on_record), distances
        self.steps, self.spent = 0, 0.0
        self.began = self._clock = time.perf_counter()
        self.records: list[Record] = []
        self.failures: dict[str, str] = {}
        self._net = self._start = self._last = Net.of(model)
        self._before = 0.0
        self._writer = self._opened(file) if file is not None else None
        self._trail: Trail | None = None
        self._nets: list[tuple[int, Net]] = []
        if points is not None and file is not None:
            self._trail = Trail(f"{os.fspath(file)}.points", self._net)
        if self.steps == 0:
            self.record()
            self.spent, self.began = 0.0, time.perf_counter()

    def _opened(self, file: str | os.PathLike[str]) -> Writer:
        header = {
            "fingerprint": self._net.fingerprint, "every": self.every,
            "observables": ["norm", "from_start", "from_last"] * self.distances + list(self.observables),
        }  # fmt: skip
        writer = Writer(file, header, self._net.weights if self.distances else {})
        if writer.last is not None:
            self.steps, self._before = writer.last.step, writer.last.seconds
        if writer.start:
            self._start = self._net.at(Weights(writer.start))
        return writer

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def step(self, **told: Any) -> None:
        """Call after every training step; records at one of every `every`, with the values given by name."""
        self.steps += 1
        if self.steps % self.every == 0:
            self.record(**told)
        elif self.points is not None and self.steps % self.points == 0:
            self._keep(self.now())

    def now(self) -> Net:
        """A copy of the network as it is now."""
        tensors = dict(self.model.named_parameters()) | dict(self.model.named_buffers())
        return self._net.load({name: tensors[name].detach() for name in self._net.tensors})

    def record(self, **told: Any) -> Record:
        """Record now, whatever the step."""
        began = time.perf_counter()
        net = self.now()
        values, failed = dict[str, Any](), dict[str, str]()
        if self.distances:
            values |= {
                "norm": float(net.weights.norm()), "from_start": relative_trust(self._start, net),
                "from_last": relative_trust(self._last, net),
            }  # fmt: skip
            self._last = net
        for name, found in together({n: _constant(v) for n, v in told.items()} | self.observables)(net).items():
            self._observe(name, found, net, values, failed)
        record = Record(self.steps, self._before + began - self._clock, values, failed)
        if self._writer is None:
            self.records.append(record)
        else:
            self._writer.append(record)
        if self.points is not None and self.steps % self.points == 0:
            self._keep(net)
        for call in self.on_record:
            call(record)
        self.spent += time.perf_counter() - began
        return record

    def _observe(
        self, name: str, found: Callable[[], Any], net: Net, values: dict[str, Any], failed: dict[str, str]
    ) -> None:
        devices = [net.device] if net.device.type == "cuda" else []
        try:
            tensors: dict[str, Tensor] = {}
            with torch.random.fork_rng(devices):
                tree = plain(found(), tensors, name)
        except Exception as error:
            if name not in self.failures:
                self.failures[name] = failed[name] = f"{type(error).__name__}: {error}"
                warnings.warn(f"{name} is not recorded at step {self.steps} ({failed[name]})", stacklevel=4)
        else:
            if tree is not None:
                values[name] = revived(tree, tensors)

    def _keep(self, net: Net) -> None:
        if self._trail is None:
            self._nets.append((self.steps, net))
        elif self.steps > self._trail.index["points"][-1]["step"]:
            self._trail.append(net, self.steps)

    def path(self) -> Path:
        """The networks kept by `points`, as a path in the time of the steps. Raises for fewer than two."""
        if self._trail is not None:
            return self._trail.path()
        if len(self._nets) < 2:
            raise WeightspaceError("fewer than two networks were kept; give points=, every how many steps to keep one")
        return Path.through([net for _, net in self._nets], [step for step, _ in self._nets])

    def recording(self) -> Recording:
        """The records in the file so far."""
        if self._writer is None:
            raise WeightspaceError("this recorder has no file; its records are in `records`")
        return Recording(self._writer.file)

    @property
    def overhead(self) -> float:
        """Seconds spent recording, after the record at the start, over the seconds of the rest of the run."""
        rest = time.perf_counter() - self.began - self.spent
        return self.spent / max(rest, 1e-9)

    def close(self) -> None:
        """Close the file, and report the time taken. Without it nothing is lost."""
        if self._writer is not None:
            self._writer.close()
        if self.tell is not None:
            self.tell(f"recording took {self.spent:.2g} s, {100 * self.overhead:.1f} % of the rest of the run")

    def __repr__(self) -> str:
        where = f" in {File(self._writer.file).name}" if self._writer is not None else ""
        return f"Recorder({self.steps} steps, every {self.every}{where}, {100 * self.overhead:.1f} % of the run's time)"


def _constant(value: Any) -> Observable:
    return lambda net: value
