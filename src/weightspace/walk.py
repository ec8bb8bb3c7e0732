"""What `weightspace walk` does: move a network as far as the outputs on some data allow, towards something.

The data to keep is halved: the outputs on one part are held within the budget, the drift on the other is reported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weightspace import architecture, checkpoint
from weightspace.architecture import ArchitectureError, Stored
from weightspace.compare import Progress, classifies
from weightspace.flows import Record, flow
from weightspace.goals import drift, learn, toward
from weightspace.net import Net
from weightspace.pruning import prune, sparsity
from weightspace.pullback import Pullback
from weightspace.symmetry import Symmetry
from weightspace.task import Task, accuracy
from weightspace.workbench import Score, tasks

__all__ = ["Walked", "walk"]

_FORM = "learn:DATA, prune:0.9, drift:SEED, or another checkpoint"
_BUDGET = 0.1  # of the root mean square of the outputs, less their mean


@dataclass(frozen=True)
class Walked:
    """Where the walk led. Drifts are root mean squares over examples, in units of the outputs.

    `free`: share of the new task's first gradient that leaves the kept outputs alone; `scores`: before and after.
    """

    name: str
    out: str
    goal: str
    steps: int
    why: str
    budget: float
    used: float
    heldout: float
    moved: float
    free: float | None
    sparsity: float | None
    scores: list[tuple[str, Score, Score]]

    def remarks(self) -> list[str]:
        """The sentences below the table."""
        ends = {"steps": "all steps were made", "budget": "no step within the budget was left"}
        why = ends.get(self.why, self.why)
        said = [
            f"{self.steps} steps toward {self.goal}, {self.moved:.1%} of the weights' norm; {why}.",
            f"Drift of the kept outputs: {self.used:.3g} of a budget of {self.budget:.3g}; "
            f"{self.heldout:.3g} on held-out examples.",
        ]
        if self.free is not None:
            said.append(f"{self.free:.1%} of the new task's first gradient left the kept outputs alone.")
        if self.sparsity is not None:
            said.append(f"{self.sparsity:.2%} of the weights in matrices and kernels are zero.")
        return said

    def data(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def walk(
    path: Path,
    keep: str,
    goal: str,
    out: Path,
    *,
    arch: str | None = None,
    budget: float | None = None,
    steps: int = 40,
    size: float | None = None,
    memory: int = 200,
    limit: int = 2048,
    force: bool = False,
    trust_code: bool = False,
    seed: int = 0,
    progress: Progress = lambda what, done, total: None,
) -> Walked:
    """Walk, and write the network at the end in the names, dtypes and metadata of the file.

    Raises `WeightspaceError`.
    """
    if not path.exists():
        raise ArchitectureError(f"{path}: no such file or folder; check the path")
    template = Net.of(architecture.find(arch, [path], trust_code))
    net, source, metadata = architecture.load(template, path, trust_code)
    held, probe = tasks(keep, limit, seed)
    assert held is not None and probe is not None
    held = held.take(memory, seed)
    metric = Pullback(held, damping=1e-6)
    if budget is None:
        outputs = metric.outputs(net)
        budget = _BUDGET * float((outputs - outputs.mean(0)).square().sum(1).mean().sqrt())
    aim, new = _aim(goal, template, net, held, trust_code, limit, seed)
    free = metric.capacity(net, new[0].take(memory, seed)) if new else None
    progress(f"walking toward {goal}", 0, steps)

    def tell(record: Record) -> None:
        progress(f"drift {record.drift:.3g} of {budget:.3g}, held out {record.heldout:.3g}", record.step + 1, steps)

    length = size or 0.01 * float(net.weights.norm())
    found = flow(net, aim, metric, steps=steps, size=length, budget=budget, probe=probe, progress=tell, save=steps)
    end = found[-1]
    scores = _scores(net, end, probe, new[1] if new else None)
    tensors = end.tensors
    stored = Stored(source, template, partial(_picked, tensors))
    checkpoint.save(stored, out, force=force, metadata={**metadata, "weightspace": f"walked toward {goal}"})
    last = found.log[-1] if found.log else None
    return Walked(
        name=path.name,
        out=str(out),
        goal=goal,
        steps=len(found.log),
        why=found.why,
        budget=budget,
        used=last.drift if last else 0.0,
        heldout=last.heldout if last else 0.0,
        moved=float((end - net).norm()) / float(net.weights.norm()),
        free=free,
        sparsity=None if found.mask is None else sparsity(found.mask),
        scores=scores,
    )


def _picked(tensors: Mapping[str, Tensor], name: str, tensor: Tensor) -> Tensor:
    return tensors[name].to(tensor.dtype)


def _aim(
    goal: str, template: Net, net: Net, held: Task, trust_code: bool, limit: int, seed: int
) -> tuple[Any, tuple[Task, Task] | None]:
    kind, colon, value = goal.partition(":")
    if kind == "learn" and value:
        learn_on, measure_on = tasks(value, limit, seed)
        assert learn_on is not None and measure_on is not None
        return learn(learn_on, seed=seed), (learn_on, measure_on)
    if kind in ("prune", "drift") and colon:
        try:
            number = float(value) if kind == "prune" else int(value)
        except ValueError as error:
            raise ArchitectureError(f"--toward {goal}: {value!r} is no number; give {_FORM}") from error
        return prune(number) if kind == "prune" else drift(int(number)), None
    if not Path(goal).exists():
        raise ArchitectureError(f"--toward {goal}: no such file, and no goal of that name; give {_FORM}")
    other = architecture.load(template, Path(goal), trust_code)[0]
    return toward(Symmetry.of(net, held.example(2)).align(other, to=net, data=held)), None


def _scores(before: Net, after: Net, kept: Task, new: Task | None) -> list[tuple[str, Score, Score]]:
    rows = []
    for name, task in (("to keep", kept), ("to learn", new)):
        if task is not None and all(y is not None for _, y in task.batches()):
            right = accuracy(task) if classifies(task) else None
            with torch.no_grad():
                pair = [Score(name, float(task(net)), right(net) if right else None) for net in (before, after)]
            rows.append((name, pair[0], pair[1]))
    return rows
