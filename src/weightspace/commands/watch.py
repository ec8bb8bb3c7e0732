"""What `weightspace watch` does: train a network and record which units every example goes through."""

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
from weightspace.commands.progress import Progress
from weightspace.commands.workspace import splits
from weightspace.curvature.fisher import fisher_trace
from weightspace.inside import path_overlap
from weightspace.inside.units import gates
from weightspace.net.net import Net
from weightspace.task.classification import accuracy, classifies
from weightspace.task.task import Task
from weightspace.training.recorder import Recorder

__all__ = ["Watched", "watched"]


@dataclass(frozen=True)
class Watched:
    """A run that was recorded: where, how long, what recording cost, and how well the network does at the end."""

    out: str
    steps: int
    records: int
    overhead: float
    accuracy: float | None

    def data(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def watched(
    out: Path,
    data: str = "digits",
    *,
    arch: str | None = None,
    epochs: int = 16,
    rate: float = 0.05,
    batch: int = 64,
    every: int | None = None,
    probe: int = 128,
    limit: int = 10_000,
    trust_code: bool = False,
    seed: int = 0,
    progress: Progress = lambda what, done, total: None,
) -> Watched:
    """Train from scratch by SGD with momentum .9, the rate a tenth at half and at three quarters of the epochs; record.

    `every`: steps between records, by default an epoch. The gates recorded are those of `probe` examples that are
    learnt from and of as many that are not. Without `arch`, four hidden layers of 128 units. Raises `WeightspaceError`
    for settings that cannot be.
    """
    if min(epochs, batch, probe) < 2 or not 0 < rate < math.inf or (every is not None and every < 1):
        raise ArchitectureError("epochs, batch and probe are 2 or more, the rate positive, every 1 or more")
    train, test = splits(data, limit, seed)
    if not classifies(train):
        raise ArchitectureError(f"--data {data}: no class labels to learn; give x and y")
    seen, held = train.take(probe, seed), test.take(probe, seed)
    x, y = train.example(len(train)), train.labels()
    module = _module(arch, x, y, trust_code, seed)
    start = Net.of(module)
    gates(seen.take(2))(start)
    seen(start)  # what does not fit raises here, before anything is trained
    steps = epochs * max(1, len(y) // batch)
    options: dict[str, Any] = {
        "gates": gates(seen),
        "held": gates(held),
        "activations": path_overlap.features_since(seen),
    }
    with Recorder(
        module, every or max(1, len(y) // batch), file=out, tell=None, accuracy=accuracy(held),
        fisher=fisher_trace(seen), distances_of_inputs=_once(lambda: _apart(seen)), **options,
    ) as watch:  # fmt: skip
        _train(module, x, y, epochs, rate, batch, seed, watch, lambda k: progress("training", k, steps))
        return Watched(str(out), watch.steps, len(watch.recording()), watch.overhead, accuracy(test)(Net.of(module)))


def _module(arch: str | None, x: Any, y: Tensor, trust_code: bool, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if arch is not None:
            return architecture.find(arch, [], trust_code)
        if not isinstance(x, Tensor) or y.dim() != 1:
            raise ArchitectureError("inputs that are no images or numbers need --arch")
        sizes = [x[0].numel(), 128, 128, 128, 128]
        parts = [p for i, o in zip(sizes, sizes[1:], strict=False) for p in (nn.Linear(i, o), nn.ReLU())]
        return nn.Sequential(nn.Flatten(), *parts, nn.Linear(sizes[-1], int(y.max()) + 1))


def _train(
    module: nn.Module, x: Any, y: Tensor, epochs: int, rate: float, batch: int, seed: int, watch: Recorder,
    tell: Callable[[int], None],
) -> None:  # fmt: skip
    if not isinstance(x, Tensor):
        raise ArchitectureError(
            "inputs of several tensors cannot be trained on here; put a Recorder into your own loop"
        )
    optimiser = torch.optim.SGD(module.parameters(), rate, momentum=0.9, weight_decay=5e-4)
    falls = torch.optim.lr_scheduler.MultiStepLR(optimiser, [epochs // 2, 3 * epochs // 4], 0.1)
    generator, whole = torch.Generator().manual_seed(seed), max(1, len(y) // batch)
    for _ in range(epochs):
        module.train()
        for rows in torch.randperm(len(y), generator=generator)[: whole * batch].split(batch):
            optimiser.zero_grad()
            loss = F.cross_entropy(module(x[rows]), y[rows])
            loss.backward()
            optimiser.step()
            watch.step(loss=loss)
            tell(watch.steps)
        falls.step()


def _once(look: Callable[[], Tensor]) -> Callable[[Net], Tensor | None]:
    """An observable that is there at the first record alone."""
    done: list[bool] = []

    def first(net: Net) -> Tensor | None:
        done.append(True)
        return look() if len(done) == 1 else None

    return first


def _apart(task: Task) -> Tensor:
    x = task.example(len(task))
    return torch.cdist(x.flatten(1).float(), x.flatten(1).float()) if isinstance(x, Tensor) else torch.zeros(0)
