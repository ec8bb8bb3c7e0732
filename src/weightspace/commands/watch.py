"""`weightspace watch`: train a network and record which units are on for every example."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weightspace.checkpoint import architecture
from weightspace.checkpoint.architecture import ArchitectureError
from weightspace.commands.data import splits
from weightspace.commands.settings import Settings
from weightspace.curvature.fisher import fisher_trace
from weightspace.inside import path_overlap
from weightspace.inside.units import gates
from weightspace.net.net import Net
from weightspace.net.state import seeded
from weightspace.task.classification import accuracy, classifies
from weightspace.task.task import Task
from weightspace.training.recorder import Recorder

__all__ = ["Schedule", "Watched", "watch"]


@dataclass(frozen=True)
class Watched:
    """A recorded run: the file, steps and records, share of the time spent recording, final test accuracy."""

    out: str
    steps: int
    records: int
    overhead: float
    accuracy: float | None

    def data(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Schedule:
    """SGD with momentum .9, weight decay 5e-4, and a learning rate cut to a tenth at 1/2 and at 3/4 of the epochs."""

    epochs: int = 16
    rate: float = 0.05
    batch: int = 64

    def per_epoch(self, examples: int) -> int:
        """Steps of an epoch; a batch that is not full is left out."""
        return max(1, examples // self.batch)


def watch(
    out: Path,
    data: str,
    schedule: Schedule,
    *,
    every: int | None = None,
    probe: int = 128,
    limit: int = 10_000,
    settings: Settings,
) -> Watched:
    """Train a network from scratch and record it.

    `every`: steps between records, by default an epoch. The gates recorded are those of `probe` training examples and
    of as many test examples. Without an architecture in `settings`, an MLP with four hidden layers of 128 units. Raises
    `WeightspaceError`.
    """
    seed, short = settings.seed, min(schedule.epochs, schedule.batch, probe) < 2
    if short or not 0 < schedule.rate < math.inf or (every is not None and every < 1):
        raise ArchitectureError("--epochs, --batch and --probe must be 2 or more, --rate positive, --every 1 or more")
    train, test = splits(data, limit, seed)
    if not classifies(train):
        raise ArchitectureError(f"--data {data}: no class labels to learn; give x and y")
    seen, held = train.take(probe, seed), test.take(probe, seed)
    x, y = train.example(len(train)), train.labels()
    module = _module(settings, x, y)
    start = Net.of(module)
    gates(seen.take(2))(start)
    seen(start)  # what does not fit raises here, before anything is trained
    per_epoch = schedule.per_epoch(len(y))
    options: dict[str, Any] = {
        "gates": gates(seen),
        "held": gates(held),
        "activations": path_overlap.features_since(seen),
    }
    with Recorder(
        module, every or per_epoch, file=out, tell=None, accuracy=accuracy(held),
        fisher=fisher_trace(seen), distances_of_inputs=_once(lambda: _apart(seen)), **options,
    ) as recorder:  # fmt: skip

        def step(loss: Tensor) -> None:
            recorder.step(loss=loss)
            settings.progress("training", recorder.steps, schedule.epochs * per_epoch)

        _train(module, x, y, schedule, seed, step)
        right = accuracy(test)(Net.of(module))
        return Watched(str(out), recorder.steps, len(recorder.recording()), recorder.overhead, right)


def _module(settings: Settings, x: Any, y: Tensor) -> nn.Module:
    with seeded(settings.seed):
        if settings.arch is not None:
            return architecture.find(settings.arch, [], settings.trust_code)
        if not isinstance(x, Tensor) or y.dim() != 1:
            raise ArchitectureError("inputs are not one tensor of numbers; give the network with --arch")
        sizes = [x[0].numel(), 128, 128, 128, 128]
        parts = [p for i, o in zip(sizes, sizes[1:], strict=False) for p in (nn.Linear(i, o), nn.ReLU())]
        return nn.Sequential(nn.Flatten(), *parts, nn.Linear(sizes[-1], int(y.max()) + 1))


def _train(
    module: nn.Module, x: Any, y: Tensor, schedule: Schedule, seed: int, after_step: Callable[[Tensor], None]
) -> None:
    if not isinstance(x, Tensor):
        raise ArchitectureError(
            "inputs of several tensors cannot be trained on here; put a Recorder into your own loop"
        )
    epochs, batch = schedule.epochs, schedule.batch
    optimiser = torch.optim.SGD(module.parameters(), schedule.rate, momentum=0.9, weight_decay=5e-4)
    decay = torch.optim.lr_scheduler.MultiStepLR(optimiser, [epochs // 2, 3 * epochs // 4], 0.1)
    generator, used = torch.Generator().manual_seed(seed), schedule.per_epoch(len(y)) * batch
    for _ in range(epochs):
        module.train()
        for rows in torch.randperm(len(y), generator=generator)[:used].split(batch):
            optimiser.zero_grad()
            loss = F.cross_entropy(module(x[rows]), y[rows])
            loss.backward()
            optimiser.step()
            after_step(loss)
        decay.step()


def _once(look: Callable[[], Tensor]) -> Callable[[Net], Tensor | None]:
    """An observable that is recorded once, at the first record."""
    done: list[bool] = []

    def first(net: Net) -> Tensor | None:
        done.append(True)
        return look() if len(done) == 1 else None

    return first


def _apart(task: Task) -> Tensor:
    """Distances between all pairs of inputs."""
    x = task.example(len(task))
    return torch.cdist(x.flatten(1).float(), x.flatten(1).float()) if isinstance(x, Tensor) else torch.zeros(0)
