"""Weight perturbations relative to every layer's norm (noise, quantisation, pruning), and how far the outputs move.

Four numbers say how far: measured with noise; the model prod(1 + d_l) - 1 (`relative_trust`); the expectation to first
order (`displacement`); and proven upper bounds (`certificate`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from weightspace.jobs.engine import Engine, run
from weightspace.jobs.progress import Tick
from weightspace.net.errors import SymmetryError, WeightspaceError
from weightspace.net.net import Net, checked, unfrozen
from weightspace.net.public import public
from weightspace.net.seeds import derived
from weightspace.task.classification import scorer
from weightspace.task.task import Task
from weightspace.trust.bounds.certificate import certificates
from weightspace.trust.expected_displacement import Displacement, displacement
from weightspace.trust.relative import relative_trust

__all__ = ["Stability", "Step", "movable", "perturb", "stability", "width"]


Kind: TypeAlias = Literal["noise", "quantise", "prune"]
Frozen: TypeAlias = Literal["stay", "move"]
_MOST = 10.0
_HALVINGS, _BITS = 40, 16


@public
def perturb(
    net: Net,
    relative: float | None = None,
    *,
    seed: int = 0,
    kind: Kind = "noise",
    bits: int | None = None,
    share: float | None = None,
    names: list[str] | None = None,
    frozen: Frozen = "stay",
) -> Net:
    """The network with every tensor changed by the `relative` size |dW_l| = `relative` |W_l| (0.2 by default).

    - "noise": by exactly that size, in a direction drawn uniformly from the sphere by `seed`;
    - "quantise": rounded to the coarsest even grid with at most that error; or with `bits`, to 2^bits - 1 values from
      -max |W_l| to max |W_l|;
    - "prune": the smallest entries set to zero, as many as at most that error allows; or with `share`, that share of
      every tensor.

    Zero tensors, gains of normalisation layers and frozen weights are not changed (frozen="move" changes frozen ones);
    `names` lists the tensors to change instead (default: `movable`). Raises `WeightspaceError` for a size outside of
    [0, 10), an unknown name, or arguments that do not go together.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> w, noisy = net.weights["1.weight"], ws.perturb(net, 0.1, seed=0).weights["1.weight"]
    >>> round(float((noisy - w).norm() / w.norm()), 3)
    0.1
    >>> float((ws.perturb(net, kind="prune", share=0.5).weights["1.weight"] == 0).double().mean())
    0.5
    """
    relative = _checked_size(relative, kind, bits, share)
    chosen = movable(unfrozen(checked(net), frozen)) if names is None else names
    if unknown := [name for name in chosen if name not in net.weights]:
        raise WeightspaceError(f"no tensor {unknown[0]!r}; the tensors are {', '.join(list(net.weights)[:6])}, ..")
    noise = net.weights.randn(seed) if kind == "noise" else net.weights
    new = {}
    for name in chosen:
        w = net.weights[name]
        if kind == "noise":
            size, drawn = float(w.double().norm()), float(noise[name].double().norm())
            new[name] = w + noise[name] * (relative * size / drawn if drawn else 0.0)
        elif kind == "quantise":
            new[name] = _rounded(w, bits) if bits is not None else _coarsest(w, relative)
        else:
            new[name] = _cut(w, relative, share)
    return net.at(net.weights.replace(new)).refreshed()


def _checked_size(relative: float | None, kind: Kind, bits: int | None, share: float | None) -> float:
    """The relative size; refused together with arguments that do not go with it, or with the kind."""
    for name, value, of in (("bits", bits, "quantise"), ("share", share, "prune")):
        if value is not None and (kind != of or relative is not None):
            raise WeightspaceError(f'{name} goes with kind="{of}" and without `relative`')
    if bits is not None and not 2 <= bits <= _BITS:
        raise WeightspaceError(f"bits must be from 2 to {_BITS}, got {bits}")
    if share is not None and not 0 <= share < 1:
        raise WeightspaceError(f"share must be in [0, 1), got {share}")
    relative = 0.2 if relative is None else relative
    if not 0 <= relative < _MOST:
        raise WeightspaceError(f"relative must be in [0, {_MOST:g}), got {relative}; 0.2 changes a layer by a fifth")
    return relative


@public
def movable(net: Net) -> list[str]:
    """The names of the tensors that `perturb` changes: floating-point, not zero, not frozen, no gain of a norm layer.

    Raises `WeightspaceError` where every parameter is frozen.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> ws.trust.movable(net)
    ['1.weight', '1.bias', '3.weight', '3.bias']
    """
    still, gains = net.frozen, set()
    if still and len(still) == len(net.weights):
        raise WeightspaceError('every parameter of the network is frozen; give frozen="move", or the names that change')
    for prefix, module in net.architecture.named_modules():
        if "norm" in type(module).__name__.lower() and isinstance(getattr(module, "weight", None), nn.Parameter):
            gains.add(f"{prefix}.weight" if prefix else "weight")
    left = gains | still
    return [n for n, w in net.weights.items() if n not in left and w.is_floating_point() and bool(w.any())]


def _rounded(w: Tensor, bits: int) -> Tensor:
    step = w.abs().max() / (2 ** (bits - 1) - 1)
    return torch.where(step > 0, (w / step).round() * step, w) if bool(step > 0) else w.clone()


def _coarsest(w: Tensor, relative: float) -> Tensor:
    """w rounded to multiples of the largest step with |error| <= relative |w|, found by bisection."""
    x, most = w.double(), float(w.double().norm()) * relative
    low, high = 0.0, 2 * float(x.abs().max())
    for _ in range(_HALVINGS):
        step = (low + high) / 2
        fits = step > 0 and float(((x / step).round() * step - x).norm()) <= most
        low, high = (step, high) if fits else (low, step)
    return ((x / low).round() * low).to(w) if low else w.clone()


def _cut(w: Tensor, relative: float, share: float | None) -> Tensor:
    flat = w.flatten().double()
    order = flat.abs().argsort()
    if share is None:
        squares = flat[order].square().cumsum(0)
        count = int((squares <= relative**2 * float(squares[-1])).sum()) if relative < 1 else len(flat)
    else:
        count = round(share * len(flat))
    new = w.flatten().clone()
    new[order[:count]] = 0
    return new.view(w.shape)


# ------------------------------------------------------------------ stability under noise


@public
@dataclass(frozen=True)
class Step:
    """The effect of noise of one `relative` size: measured over the draws, and predicted.

    `moved`: sqrt(mean_x |df|^2 / mean_x |f|^2) of every draw; `accuracy`, `loss` of every draw (empty without labels).
    `model`: relative trust; `expected`: the first-order displacement; `certificate` and `with_data`: the proven bounds
    without and with the data, for the first draw (None where no bound is known).
    """

    relative: float
    moved: list[float]
    accuracy: list[float]
    loss: list[float]
    model: float
    expected: float
    certificate: float | None
    with_data: float | None


@public
@dataclass(frozen=True)
class Stability:
    """The effect of weight noise on the outputs, one of `steps` for every size of noise; what `stability` returns.

    `accuracy`, `loss`: those of the network without noise (None without labels). `displacement`: the expected one, with
    every tensor's share. `refused`: why there is no certificate, if there is none.
    """

    steps: list[Step]
    accuracy: float | None
    loss: float | None
    displacement: Displacement
    refused: str | None


@public(renamed={"etas": "noise"})
def stability(
    net: Net,
    task: Task,
    noise: Sequence[float] = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0),
    draws: int = 10,
    *,
    seed: int = 0,
    proven: bool = True,
    frozen: Frozen = "stay",
    engine: Engine = 1,
    progress: Tick = lambda done, total: None,
) -> Stability:
    """The stability of the outputs on `task` under weight noise of every relative size in `noise`: how far they move.

    Measured over `draws` of noise, and predicted by the model, the first derivative and (with `proven`) certificates.
    Accuracy is measured where the labels are classes. Cost: len(noise) * draws forward passes, and with `proven` a
    Cholesky factor for every weight and size. Frozen weights are not changed, unless frozen="move". `engine`: where the
    draws are measured, see `jobs.run`. Raises `WeightspaceError` for sizes outside of [0, 10), no draws, or a task
    without inputs.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> small, large = ws.stability(net, task, noise=(0.01, 0.1), draws=2).steps
    >>> max(small.moved) < min(large.moved), large.moved[0] <= large.with_data <= large.certificate
    (True, True)
    """
    if draws < 1 or not noise:
        raise WeightspaceError(f"give at least one size of noise and one draw, got {len(noise)} and {draws}")
    names, score = movable(unfrozen(checked(net), frozen)), _scorer(task)
    own = score(net)
    expected = displacement(net, task, 1.0, seed=seed, names=names)
    draw = _Draw(net, task, names, task.outputs(net).double())
    sizes = {(k, d): (eta, derived(seed, "noise", k, d)) for k, eta in enumerate(noise) for d in range(draws)}
    found = run(draw, sizes, engine=engine, progress=progress)
    steps: list[Step] = []
    refused = None if proven else "not asked for"
    for k, eta in enumerate(noise):
        moved, *scores = zip(*(found[k, d] for d in range(draws)), strict=True)
        first = draw.net_at(*sizes[k, 0])
        bounds, refused = _bounds(net, first, task) if refused is None else ([None, None], refused)
        right, losses = ([value for value in some if value is not None] for some in scores)
        model = relative_trust(net, first)
        steps.append(Step(eta, [*moved], right, losses, model, eta * expected.relative, *bounds))
    return Stability(steps, *own, expected, refused)


@dataclass(frozen=True)
class _Draw:
    """One draw of noise: how far it moves the outputs, the accuracy and the loss after it."""

    net: Net
    task: Task
    names: list[str]
    outputs: Tensor

    def net_at(self, eta: float, seed: int) -> Net:
        """The network with the noise."""
        return perturb(self.net, eta, seed=seed, names=self.names)

    def __call__(self, eta: float, seed: int) -> tuple[float, float | None, float | None]:
        other = self.net_at(eta, seed)
        moved = float((self.task.outputs(other).double() - self.outputs).norm()) / float(self.outputs.norm())
        return moved, *_scorer(self.task)(other)


def _bounds(a: Net, b: Net, task: Task) -> tuple[list[float | None], str | None]:
    """Certificates of the relative change of the outputs, with data and without; or why there are none."""
    try:
        return [found.relative for found in certificates(a, b, task)], None
    except (WeightspaceError, SymmetryError) as error:
        return [None, None], str(error)


def _scorer(task: Task) -> Callable[[Net], tuple[float | None, float | None]]:
    """A function of a network: its accuracy and loss on the task, None where there are no classes or no labels."""
    if any(y is None for _, y in task.batches()):
        return lambda net: (None, None)
    look = scorer(task)
    return lambda net: look(net)[::-1]


@public
def width(
    net: Net,
    task: Task,
    tolerance: float = 0.01,
    *,
    draws: int = 10,
    seed: int = 0,
    precision: float = 0.01,
    most: float = 2.0,
    frozen: Frozen = "stay",
) -> float:
    """The width of a minimum: the largest relative noise whose cost, on the mean of `draws`, is at most `tolerance`.

    The cost is the loss of accuracy where the labels are classes, the rise of the loss over log 2 for other labels, and
    the relative displacement of the outputs without labels. Found by bisection to a relative `precision`; `most` if
    even that costs less, 0 if any noise costs more. Frozen weights are not changed, unless frozen="move". Raises
    `WeightspaceError` for a tolerance that is not positive.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> narrow, wide = (ws.width(net, ws.Task(task.example(60)), t, draws=2, precision=0.1) for t in (0.01, 0.1))
    >>> 0 < narrow < wide < 2
    True
    """
    if not 0 < tolerance < math.inf or not 0 < precision < 1 or not 0 < most < _MOST or draws < 1:
        raise WeightspaceError(
            f"tolerance must be positive, precision in (0, 1), most in (0, {_MOST:g}), draws from 1; got {tolerance}, "
            f"{precision}, {most} and {draws}"
        )
    names, score = movable(unfrozen(checked(net), frozen)), _scorer(task)
    right, loss = score(net)
    outputs = task.outputs(net).double()

    def cost(eta: float) -> float:
        total = 0.0
        for d in range(draws):
            other = perturb(net, eta, seed=derived(seed, "noise", d), names=names)
            left, now = score(other)
            if right is not None and left is not None:
                total += right - left
            elif loss is not None and now is not None:
                total += (now - loss) / math.log(2)
            else:
                total += float((task.outputs(other).double() - outputs).norm() / outputs.norm())
        return total / draws

    return most if cost(most) <= tolerance else _bisected(cost, tolerance, most, precision)


def _bisected(cost: Callable[[float], float], most: float, high: float, precision: float) -> float:
    """The largest argument below `high` whose cost is at most `most`, to a relative precision."""
    low = 0.0
    while high - low > precision * high and high > 1e-6:
        middle = (low + high) / 2 if low else high / 4
        low, high = (middle, high) if cost(middle) <= most else (low, middle)
    return low
