"""Coefficients of a merge found on data: a search on losses, or the entropy of outputs without labels (AdaMerging).

Entropy: lambda_kl = argmin sum_k E_x H(softmax f(x)), w_l = theta_0l + sum_k lambda_kl tau_kl, with a coefficient for
each network k, or for each network and tensor l. Since w is linear in lambda, dH/dlambda_kl = <dH/dw_l, tau_kl>.
Source: AdaMerging: adaptive model merging for multi-task learning (Yang et al., 2024).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from weightspace.jobs.progress import Tick
from weightspace.merging.methods import method
from weightspace.merging.networks import merged_net
from weightspace.merging.recipe import Recipe
from weightspace.net.average import lifted
from weightspace.net.cost import Cost
from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net
from weightspace.net.public import public
from weightspace.net.seeds import derived
from weightspace.net.weights import Weights
from weightspace.task.goal import value_and_gradient
from weightspace.task.task import Task

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["Coefficients", "Tuned", "adamerging", "adamerging_cost", "tune", "tune_cost"]

_VALUES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.5)


@public
@dataclass(frozen=True)
class Tuned:
    """The best recipe of a search, and its network; what `tune` returns.

    `loss`: the mean loss over the tasks; `before`: that of the recipe that was given. `tried`: all values of the
    coordinates that gave a finite loss, in order, with it.
    """

    recipe: Recipe
    net: Net
    loss: float
    before: float
    tried: tuple[tuple[tuple[float, ...], float], ...]


@public
@dataclass(frozen=True)
class Coefficients:
    """The coefficients that minimise the entropy of outputs, and the network; what `adamerging` returns.

    `coefficients[k, l]`: of network k and the tensor `tensors[l]`. `entropy`: the mean over the tasks and their
    examples, in nats; `before`: that with all coefficients at their start.
    """

    net: Net
    tensors: tuple[str, ...]
    coefficients: Float[Tensor, "networks tensors"]
    entropy: float
    before: float


@public
def tune_cost(
    nets: Sequence[Net], tasks: Sequence[Task], over: str = "scale", *, rounds: int = 3, grid: int = 8
) -> Cost:
    """The cost of `tune`: the most examples that are passed forward, and two networks in memory.

    `grid`: how many values are tried first.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> ws.merging.tune_cost([net, net], [task], "weights").examples == (1 + 2 * (8 + 2 * 3)) * len(task)
    True
    """
    coordinates = len(nets) if over == "weights" else 1
    held = sum(flat.nbytes for flat in (*nets[0].weights.buffers, *nets[0].state.buffers))
    return Cost(examples=(1 + coordinates * (grid + 2 * rounds)) * sum(map(len, tasks)), bytes=2 * held)


@public
def tune(
    nets: Sequence[Net],
    recipe: Recipe,
    tasks: Sequence[Task],
    base: Net | None = None,
    *,
    over: str = "scale",
    values: Sequence[float] = _VALUES,
    rounds: int = 3,
    progress: Tick | None = None,
) -> Tuned:
    """The recipe whose merged network has the least mean loss over tasks, by a search over one option or the weights.

    `over`: an option of the method, such as "scale" or "density", or "weights", one after another. Each coordinate is
    first tried at all `values` that the method takes, then `rounds` times at half the last distance on either side of
    the best (`tune_cost` says before what it takes). The recipe that was given is tried first, so that none is worse.
    Give held-out examples: what is found on few of them fits these. Raises `WeightspaceError` for an option that the
    method has not, for schedules in its place, and for no value that the method takes.

    >>> import weightspace as ws
    >>> (base, task), nets = ws.demo.example(0), [ws.demo.example(seed)[0] for seed in (1, 2)]
    >>> found = ws.merging.tune(nets, ws.merging.Recipe("task_arithmetic"), [task], base, rounds=1)
    >>> found.loss <= found.before, len(found.tried)
    (True, 10)
    """
    if not tasks or not values or rounds < 0:
        raise WeightspaceError("tuning takes one task or more, one value or more, and a number of rounds from 0")
    at = _coordinates(recipe, over, len(nets))
    tried: dict[tuple[float, ...], float] = {}
    allowed = method(recipe.method).limits.get(over)
    total = 1 + len(at) * (len(values) + 2 * rounds)

    def loss(point: tuple[float, ...]) -> float:
        if point not in tried:
            refused = allowed is not None and point[0] not in allowed
            tried[point] = math.inf if refused else _mean_loss(nets, _with(recipe, over, point), tasks, base)
            if progress is not None:
                progress(len(tried), total)
        return tried[point]

    best, before = at, loss(at)
    gap = max((b - a for a, b in zip(sorted(values), sorted(values)[1:], strict=False)), default=abs(values[0]) or 1.0)
    for turn in range(rounds + 1):
        for k in range(len(at)):
            steps = values if not turn else [best[k] + side * gap / 2**turn for side in (-1, 1)]
            points = [(*best[:k], float(value), *best[k + 1 :]) for value in steps]
            best = min((best, *points), key=loss)
    if not math.isfinite(loss(best)):
        raise WeightspaceError(
            f"no value of {over} gives a finite loss; look for NaN in the data, or give other values"
        )
    chosen, found = _with(recipe, over, best), tuple((p, v) for p, v in tried.items() if v < math.inf)
    return Tuned(chosen, merged_net(nets, chosen, base), loss(best), before, found)


@public
def adamerging_cost(nets: Sequence[Net], tasks: Sequence[Task], *, steps: int = 500, batch: int = 16) -> Cost:
    """The cost of `adamerging`: a pass forward and back over a batch of each task in every step, and n + 4 networks.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> ws.merging.adamerging_cost([net, net], [task, task], steps=10).steps
    20
    """
    held = sum(flat.nbytes for flat in nets[0].weights.buffers)
    largest = max((min(batch, len(task)) for task in tasks), default=0)
    return Cost(steps=steps * len(tasks), batch=largest, bytes=(len(nets) + 4) * held)


@public
def adamerging(
    nets: Sequence[Net],
    base: Net,
    tasks: Sequence[Task],
    *,
    layerwise: bool = True,
    start: float = 0.3,
    lr: float = 1e-3,
    steps: int = 500,
    batch: int = 16,
    seed: int = 0,
    progress: Tick | None = None,
) -> Coefficients:
    """Coefficients of task vectors that minimise the mean entropy of the outputs on all tasks, by Adam: see the module.

    `tasks`: inputs of what the networks are for; labels are not looked at. `layerwise`: a coefficient for every network
    and tensor, else for every network. All begin at `start`, and stay in [0, 1]. A step takes `batch` examples of every
    task. Half precision is computed in float32. The state is the mean of the networks; frozen weights are those of the
    base. Classes alone: raises `WeightspaceError` for a single output, and for outputs that are not finite.
    `adamerging_cost` says before what it takes.

    >>> import weightspace as ws
    >>> (base, task), nets = ws.demo.example(0), [ws.demo.example(seed)[0] for seed in (1, 2)]
    >>> found = ws.merging.adamerging(nets, base, [task], steps=3, lr=0.1)
    >>> found.coefficients.shape, found.entropy < found.before
    (torch.Size([2, 4]), True)
    """
    if not tasks or steps < 1 or batch < 1 or not lr > 0 or not 0 <= start <= 1:
        raise WeightspaceError("AdaMerging takes a task or more, steps and a batch from 1, lr above 0, start in [0, 1]")
    own, (base, *nets) = base, lifted([base, *nets])
    mix = _Mix.of(nets, base, start)
    shared = torch.full((len(nets), len(mix.names) if layerwise else 1), start, dtype=torch.float64, device="cpu")
    adam = torch.optim.Adam([shared.requires_grad_()], lr=lr)
    before = _entropy_of_all(tasks, mix.at(shared.detach()))
    for step in range(steps):
        net, slopes = mix.at(shared.detach()), torch.zeros(len(nets), len(mix.names), dtype=torch.float64, device="cpu")
        for k, task in enumerate(tasks):
            some = task.minibatch(batch, step, derived(seed, "task", k))
            slopes += mix.slopes(value_and_gradient(_Entropy(some), net)[1]) / len(tasks)
        shared.grad = slopes if layerwise else slopes.sum(1, keepdim=True)
        adam.step()
        with torch.no_grad():
            shared.clamp_(0, 1)
        if progress is not None:
            progress(step + 1, steps)
    found = mix.at(shared.detach())
    net = own.at(own.weights.replace(found.weights), own.state.replace(found.state))
    coefficients = shared.detach().expand(len(nets), len(mix.names)).clone()
    return Coefficients(net, mix.names, coefficients, _entropy_of_all(tasks, net), before)


@dataclass(frozen=True)
class _Mix:
    """The networks theta_0 + sum_k lambda_kl tau_kl: the base with its state, the task vectors, the tensors l."""

    base: Net
    deltas: Sequence[Weights]
    names: tuple[str, ...]

    @classmethod
    def of(cls, nets: Sequence[Net], base: Net, start: float) -> _Mix:
        first = merged_net(nets, Recipe("task_arithmetic", options={"scale": start}), base)
        names = tuple(n for n, w in base.weights.items() if w.is_floating_point() and n not in base.frozen)
        if not names:
            raise WeightspaceError("every weight of the base is frozen or an integer; take base.thawed()")
        return cls(base.at(base.weights, first.state), [net - base for net in nets], names)

    def at(self, coefficients: Tensor) -> Net:
        rows = coefficients.expand(len(self.deltas), len(self.names)).tolist()
        new = {}
        for k, name in enumerate(self.names):
            new[name] = self.base.weights[name].clone()
            for delta, row in zip(self.deltas, rows, strict=True):
                new[name].add_(delta[name], alpha=row[k])
        return self.base.at(self.base.weights.replace(new)).refreshed()

    def slopes(self, gradient: Weights) -> Tensor:
        """The derivatives in the coefficients: <gradient_l, tau_kl>."""
        found = [[float((gradient[n].double() * delta[n]).sum()) for n in self.names] for delta in self.deltas]
        return torch.tensor(found, dtype=torch.float64, device="cpu")


@dataclass(frozen=True)
class _Entropy:
    """The mean entropy of the outputs of a network on a task, in nats."""

    task: Task

    def __call__(self, net: Net) -> Tensor:
        parts = [_summed_entropy(self.task.forward(net, x)) for x, _ in self.task.batches(net)]
        return torch.stack([total for total, _ in parts]).sum() / sum(count for _, count in parts)


def _summed_entropy(f: Tensor) -> tuple[Tensor, int]:
    if f.dim() < 2 or f.shape[-1] < 2:
        raise WeightspaceError(f"entropy needs outputs for two classes or more, not of shape {tuple(f.shape)}")
    if not f.isfinite().all():
        raise WeightspaceError("the outputs hold NaN or infinity; look for it in the data and the weights")
    logs = f.log_softmax(-1)
    return -(logs.exp() * logs).sum(), f.numel() // f.shape[-1]


@torch.no_grad()
def _entropy_of_all(tasks: Sequence[Task], net: Net) -> float:
    return sum(float(_Entropy(task)(net)) for task in tasks) / len(tasks)


def _coordinates(recipe: Recipe, over: str, networks: int) -> tuple[float, ...]:
    """The numbers that a search starts from."""
    options = method(recipe.method).options
    if over != "weights" and over not in options:
        known = ", ".join(("weights", *options))
        raise WeightspaceError(f"{recipe.method} has no option {over!r}; tune one of {known}")
    given = [1.0] * networks if recipe.weights is None else [*recipe.weights]
    chosen = given if over == "weights" else [recipe.options.get(over, options[over])]
    if not all(isinstance(value, (int, float)) for value in chosen):
        raise WeightspaceError(f"{over} depends on the layer; a search needs one number for all of them")
    return tuple(float(value) for value in chosen if isinstance(value, (int, float)))


def _with(recipe: Recipe, over: str, point: Sequence[float]) -> Recipe:
    if over == "weights":
        return replace(recipe, weights=list(point))
    return replace(recipe, options={**recipe.options, over: point[0]})


@torch.no_grad()
def _mean_loss(nets: Sequence[Net], recipe: Recipe, tasks: Sequence[Task], base: Net | None) -> float:
    """The mean loss of the merged network; infinite where it is not a number, or its weights sum to zero."""
    if recipe.weights is not None and not sum(recipe.weights):  # type: ignore[arg-type]
        return math.inf
    net = merged_net(nets, recipe, base)
    total = sum(float(task(net)) for task in tasks) / len(tasks)
    return total if math.isfinite(total) else math.inf
