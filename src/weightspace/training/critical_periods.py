"""Critical periods: the lasting accuracy lost to a temporary deficit in the data, by its onset and length in epochs.

A network is trained with a deficit on the epochs [onset, onset + length), and then without it; the loss of accuracy is
measured against the network that never had it. Beside every deficit runs a control with a small cost, by default images
upside down for as many epochs, so that an effect of the schedule or of the length of training is not taken for a
critical period. Source: Critical learning periods in deep networks (Achille, Rovere, Soatto, 2019).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from weightspace.jobs.engine import Engine, completed
from weightspace.net.errors import WeightspaceError
from weightspace.net.inputs import arguments, each
from weightspace.net.net import Net
from weightspace.net.public import public
from weightspace.task.classification import accuracy
from weightspace.task.digest import DigestError, digest
from weightspace.task.task import Task
from weightspace.training.deficits import NONE, Deficit, Named, applied, blur, deficit_of, name_of

__all__ = ["CriticalPeriod", "Row", "Training", "critical_period"]


# ------------------------------------------------------------------ training


@public
@dataclass(frozen=True)
class Training:
    """The training procedure: `module(seed)` makes a network, `optimiser(parameters)` its optimiser.

    `after`: epochs without the deficit, after its end. `schedule(epoch)` multiplies the optimiser's own learning rates,
    epochs counted from 0. Batch size `batch`, examples of `train` in an order drawn from the seed, the last incomplete
    batch dropped; `test` is the task on which accuracy is measured.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> training = ws.training.Training(lambda seed: net.module(), train=task, test=task, after=1, batch=30)
    >>> ws.training.critical_period(training, "noise", onsets=[0, 1], lengths=[1]).windows
    [(0, 1), (1, 1)]
    """

    module: Callable[[int], nn.Module]
    train: Task
    test: Task
    after: int = 60
    optimiser: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] = lambda p: torch.optim.SGD(
        p, lr=0.05, momentum=0.9, weight_decay=5e-4
    )
    schedule: Callable[[int], float] = lambda epoch: 0.97**epoch
    batch: int = 64

    def run(
        self, seed: int, change: Deficit | None, window: tuple[int, int], total: int, restart: bool = False
    ) -> Iterator[nn.Module]:
        """The module at the start and after every epoch; the deficit acts on the epochs of the window."""
        torch.manual_seed(seed)
        module = self.module(seed)
        optimiser = self.optimiser(module.parameters())
        rates = [group["lr"] for group in optimiser.param_groups]
        steps = max(1, len(self.train) // self.batch)
        yield module
        for epoch in range(total):
            factor = self.schedule(epoch - window[1] if restart and epoch >= window[1] else epoch)
            for group, rate in zip(optimiser.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            acting = change if change is not None and window[0] <= epoch < window[1] else None
            module.train()
            for step in range(epoch * steps, epoch * steps + steps):
                loss = self._step(module, optimiser, acting, step, seed)
            if not math.isfinite(loss):
                raise WeightspaceError(f"training diverged in epoch {epoch} (loss {loss}); lower the learning rate")
            yield module

    def _step(
        self, module: nn.Module, optimiser: torch.optim.Optimizer, change: Deficit | None, step: int, seed: int
    ) -> float:
        """One optimiser step on the mean loss over all labels of a batch, in however many parts the task yields it."""
        optimiser.zero_grad()
        terms: list[Tensor] = []
        count = 0
        for x, y in self.train.minibatch(self.batch, step, seed).recut(size=self.batch):
            if y is None:
                raise WeightspaceError("the task to train on has no labels; give Task(inputs, labels)")
            x, y = (x, y) if change is None else applied(change, x, y)
            args, kwargs = arguments(_beside(module, x))
            term, some = self.train.summed(self.train.output(module(*args, **kwargs)), y)
            terms.append(term)
            count += some
        if not count:
            raise WeightspaceError("no example of a batch has a label; leave those without one out")
        loss = sum(terms[1:], terms[0]) / count
        loss.backward()
        optimiser.step()
        return float(loss.detach())


def _beside(module: nn.Module, x: Any) -> Any:
    """Inputs on the device of a module, floating-point ones in its dtype."""
    like = next(module.parameters())
    return each(lambda t: t.to(like.device, like.dtype if t.is_floating_point() else t.dtype), x)


# ------------------------------------------------------------------ the measurement


@public
@dataclass(frozen=True)
class Row:
    """One run: test accuracy at its end, and `fisher` at the start and after every epoch, if it was given.

    `of`: the `digest` of the rest that it depends on: training, deficit, restart, and `fisher`.
    """

    deficit: str
    onset: int
    length: int
    seed: int
    accuracy: float
    fisher: tuple[float, ...] = ()
    of: str = field(default="", repr=False, compare=False)

    @property
    def key(self) -> tuple[str, int, int, int]:
        """The deficit, window and seed, which identify the run."""
        return self.deficit, self.onset, self.length, self.seed


@public
@dataclass(frozen=True)
class CriticalPeriod:
    """Accuracy by deficit and window. "none" is the network without a deficit, trained for as many epochs.

    `restart`: whether the schedule started anew when the deficit was removed (for "none" too, at the same epoch) or
    continued. `after`: epochs from there to the end.
    """

    deficit: str
    control: str | None
    restart: bool
    after: int
    rows: tuple[Row, ...]

    @property
    def windows(self) -> list[tuple[int, int]]:
        """All windows (onset, length), sorted."""
        return sorted({(row.onset, row.length) for row in self.rows})

    def accuracies(self, deficit: str, onset: int, length: int) -> list[float]:
        """Test accuracies, one per seed, in the order of the seeds; with length 0, those without a deficit."""
        name = deficit if length else NONE
        found = [row for row in self.rows if (row.deficit, row.onset, row.length) == (name, onset, length)]
        return [row.accuracy for row in sorted(found, key=lambda row: row.seed)]

    def cost(self, deficit: str, onset: int, length: int) -> tuple[float, float]:
        """The lasting loss of accuracy against "none", paired by seed: mean, and standard error (NaN for one seed)."""
        clean, hurt = (self.accuracies(name, onset, length) for name in (NONE, deficit))
        lost = torch.tensor([a - b for a, b in zip(clean, hurt, strict=True)], dtype=torch.float64)
        error = float(lost.std()) / math.sqrt(len(lost)) if len(lost) > 1 else math.nan
        return float(lost.mean()), error

    def fisher(self, deficit: str) -> list[float]:
        """The mean trace over the seeds, of the longest run with this deficit; empty if `fisher` was not given."""
        rows = [row for row in self.rows if row.deficit == deficit and row.fisher]
        longest = max((len(row.fisher) for row in rows), default=0)
        traces = {row.seed: row.fisher for row in rows if len(row.fisher) == longest}
        return [sum(column) / len(column) for column in zip(*traces.values(), strict=True)]

    def table(self) -> str:
        """A Markdown table: accuracy without a deficit, and the points lost by the deficit and the control."""
        shown = [name for name in (self.deficit, self.control) if name]
        head = ["onset", "length", "accuracy without, %", *(f"{name}, points lost" for name in shown)]
        lines = [head, ["---"] * len(head)]
        for onset, length in self.windows:
            clean = self.accuracies(NONE, onset, length)
            lost = [self.cost(name, onset, length) for name in shown]
            cells = [f"{100 * mean:.1f}" + ("" if math.isnan(e) else f" ± {100 * e:.1f}") for mean, e in lost]
            lines.append([str(onset), str(length), f"{100 * sum(clean) / len(clean):.1f}", *cells])
        ran = "began anew at removal" if self.restart else "ran on through the deficit"
        return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + f"\n\nThe schedule {ran}."


@public
def critical_period(
    train: Training, deficit: Named | Deficit, onsets: Sequence[int], lengths: Sequence[int], *,
    seeds: Sequence[int] = (0,), control: Named | Deficit | None = "vertical_flip", restart: bool = False,
    fisher: Callable[[Net], float] | None = None, rows: Iterable[Row] = (), engine: Engine = 1,
    progress: Callable[[Row], None] | None = None,
) -> CriticalPeriod:  # fmt: skip
    """The cost of a deficit on the epochs [onset, onset + length), after `train.after` more epochs without it.

    `deficit`: a name of `DEFICITS`, or a function (x, y) -> (x, y) of a batch that keeps the shapes. For every onset,
    length and seed a network is trained with it, one with the `control`, and one with neither; with length 0 only the
    last. `restart`: start the schedule anew when the deficit is removed; without it, a long deficit also ends at a low
    learning rate, which costs accuracy whatever the deficit is. `fisher`: a function of a Net, such as
    `fisher_trace(task)`, evaluated at the start and after every epoch of every run. `progress` is called with every new
    row; given `rows` are not measured again, and those of another training, deficit of the same name, `restart` or
    `fisher` are refused. `engine`: where networks are trained, each run one job (see `jobs.run`). Torch's global
    generator is left as it was. Raises `WeightspaceError` for negative windows, an
    unknown deficit or one that changes shapes, and an empty list.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> training = ws.training.Training(lambda seed: net.module(), train=task, test=task, after=1, batch=30)
    >>> found = ws.training.critical_period(training, "blur", onsets=[0], lengths=[1])
    >>> found.windows, [row.deficit for row in found.rows]
    ([(0, 1)], ['none', 'blur 4', 'vertical flip'])
    """
    changes = [deficit_of(deficit), *([] if control is None else [deficit_of(control)])]
    names = _names(changes)
    _check(train, changes, onsets, lengths, seeds)
    windows = [(onset, length) for onset in dict.fromkeys(onsets) for length in dict.fromkeys(lengths)]
    named = dict(zip(names, changes, strict=True))
    of = {name: _of(train, change, restart, fisher) for name, change in {NONE: None, **named}.items()}
    known, found = _known(rows, of), list[Row]()
    course = _Course(train, named, restart, fisher)
    jobs = {job: job for seed in dict.fromkeys(seeds) for job in _jobs([*named], windows, seed, restart, known)}
    for _, new in completed(course, jobs, engine=engine):
        for row in new:
            known[row.key] = replace(row, of=of[row.deficit])
            if progress is not None:
                progress(known[row.key])
    for seed in dict.fromkeys(seeds):
        for name in (NONE, *named):
            found += [known[name, *window, seed] for window in windows if window[1] or name == NONE]
    beside = names[1] if len(names) > 1 and names[1] != names[0] else None
    return CriticalPeriod(names[0], beside, restart, train.after, tuple(found))


def _known(rows: Iterable[Row], of: Mapping[str, str]) -> dict[tuple[str, int, int, int], Row]:
    """Given rows by their key; refused where they are of another training."""
    known = {row.key: row for row in rows if row.deficit in of}
    if other := [row for row in known.values() if not row.of or row.of != of[row.deficit]]:
        what = "another training, deficit, restart or fisher" if other[0].of else "an unknown training"
        raise WeightspaceError(f"the row {other[0].key} is of {what}; give rows of this one, or none")
    return known


def _jobs(
    names: Sequence[str],
    windows: Sequence[tuple[int, int]],
    seed: int,
    restart: bool,
    known: Mapping[tuple[str, int, int, int], Row],
) -> Iterator[tuple[str, tuple[tuple[int, int], ...], int]]:
    """The trainings that give the rows of one seed which are not known: (deficit, windows, seed).

    Rows without a deficit are those of one long run, unless the schedule restarts at another epoch for every window.
    """
    missing = tuple(window for window in windows if (NONE, *window, seed) not in known)
    for group in [(w,) for w in missing] if restart else [missing] * bool(missing):
        yield NONE, group, seed
    for name in names:
        for window in windows:
            if window[1] and (name, *window, seed) not in known:
                yield name, (window,), seed


@dataclass(frozen=True)
class _Course:
    """One training with a deficit or without, and the rows that it gives."""

    train: Training
    changes: Mapping[str, Deficit]
    restart: bool
    fisher: Callable[[Net], float] | None

    def __call__(self, name: str, windows: Sequence[tuple[int, int]], seed: int) -> list[Row]:
        ends = {window: sum(window) + self.train.after for window in windows}
        change, acting = self.changes.get(name), windows[0]
        if name == NONE:
            change, acting = None, (0, sum(acting))
        else:
            acting = acting[0], sum(acting)
        seen = _followed(self.train, change, acting, [*ends.values()], seed, self.restart, self.fisher)
        return [Row(name, *window, seed, *seen[end]) for window, end in ends.items()]


def _of(*parts: Any) -> str:
    """The digest of all that a row depends on; empty where there is none, so that the row matches no other."""
    try:
        return digest(*parts)
    except DigestError:
        return ""


def _names(changes: Sequence[Deficit]) -> list[str]:
    names = [name_of(change) for change in changes]
    ours = getattr(changes[0], "__module__", None) == blur.__module__
    if NONE in names or (len({*names}) < len({*changes}) and not ours):
        raise WeightspaceError(f"deficit and control are named {' and '.join(names)}; give each a __name__ of its own")
    return names


def _check(
    train: Training, changes: Sequence[Deficit], onsets: Sequence[int], lengths: Sequence[int], seeds: Sequence[int]
) -> None:
    for what, values in (("onset", onsets), ("length", lengths), ("number of epochs after", [train.after])):
        if wrong := [value for value in values if value < 0]:
            raise WeightspaceError(f"the {what} {wrong[0]} is negative; count epochs from 0")
    for what, values in (("onsets", onsets), ("lengths", lengths), ("seeds", seeds)):
        if not values:
            raise WeightspaceError(f"no {what}; give one or more")
    if train.batch < 1:
        raise WeightspaceError(f"batch is {train.batch}; give 1 or more examples")
    accuracy(train.test)
    x, y = next(train.train.minibatch(train.batch, 0, seeds[0]).batches())
    if y is None:
        raise WeightspaceError("the task to train on has no labels; give Task(inputs, labels)")
    with torch.random.fork_rng():
        for change in changes:
            applied(change, x, y)


def _followed(
    train: Training,
    change: Deficit | None,
    window: tuple[int, int],
    ends: Sequence[int],
    seed: int,
    restart: bool,
    fisher: Callable[[Net], float] | None,
) -> dict[int, tuple[float, tuple[float, ...]]]:
    """Train, and return epoch -> (accuracy, traces up to there) at the epochs `ends`."""
    found, traces, net = {}, [], None
    right = accuracy(train.test)
    with torch.random.fork_rng():
        for epoch, module in enumerate(train.run(seed, change, window, max(ends), restart)):
            if fisher is None and epoch not in ends:
                continue
            with torch.random.fork_rng():
                net = Net.of(module) if net is None else net.load(module.state_dict())  # one graph for all epochs
                if fisher is not None:
                    traces.append(float(fisher(net)))
                if epoch in ends:
                    found[epoch] = right(net), tuple(traces)
    return found
