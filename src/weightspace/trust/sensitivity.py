"""Sensitivity of the outputs to the inputs and weights, the breakdown of gradients, and steps on one example."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.func import jvp, vjp

from weightspace.metric.metric import Relative
from weightspace.net.differentiable import called
from weightspace.net.errors import SymmetryError, WeightspaceError
from weightspace.net.inputs import arguments, carried
from weightspace.net.net import Net, checked
from weightspace.net.public import public
from weightspace.net.state import forward_mode
from weightspace.net.weights import Weights
from weightspace.task.examples import normal, uniform
from weightspace.task.goal import gradient
from weightspace.task.task import Task
from weightspace.trust.bounds.certificate import lipschitz
from weightspace.trust.bounds.rounding import BoundError
from weightspace.trust.expected_displacement import displacement
from weightspace.trust.perturbation import movable
from weightspace.trust.relative import relative_trust

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["Breakdown", "Sensitivities", "Trust", "breakdown", "sensitivities", "trust_per_example"]


_STEPS = 24


@public
@dataclass(frozen=True)
class Sensitivities:
    """The sensitivity of the outputs to the inputs and to the weights; what `sensitivities` returns.

    `product`: a Lipschitz constant in the inputs, |f(x + dx) - f(x)| <= product |dx|, or None where none is known.
    `jacobian`: the spectral norm |df/dx|_2 of every example. `weights`: the expected relative displacement of the
    outputs for noise of relative size one on every layer; `depth`: the number of layers, which the model of relative
    trust predicts for it.
    """

    product: float | None
    jacobian: Float[Tensor, " examples"]
    weights: float
    depth: int


@public
def sensitivities(net: Net, task: Task, *, seed: int = 0) -> Sensitivities:
    """The sensitivity of the outputs to the inputs (Lipschitz constant, Jacobian norms) and to the weights.

    Raises `WeightspaceError` for inputs that are not one tensor of real numbers.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> found = ws.sensitivities(net, task)
    >>> found.jacobian.shape, bool((found.jacobian <= found.product).all()), found.depth
    (torch.Size([60]), True, 2)
    """
    try:
        product = lipschitz(net, task)
    except (BoundError, SymmetryError):
        product = None
    depth = sum(w.dim() > 1 for w in checked(net).weights.values())
    expected = displacement(net, task, 1.0, seed=seed, names=movable(net))
    return Sensitivities(product, _jacobian_norms(net, task, seed), expected.relative, depth)


def _jacobian_norms(net: Net, task: Task, seed: int) -> Tensor:
    """|df/dx|_2 of every example by power iteration on a whole batch; in evaluation mode examples are independent."""
    found, start = [], 0
    for x, _ in task.batches(net):
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise WeightspaceError("sensitivity to the inputs needs inputs that are one tensor of real numbers")

        def f(z: Tensor) -> Tensor:
            return task.output(called(net.architecture, net.tensors, (z,)))

        v = normal(next(uniform(x.shape, 1, seed, start))).to(x)
        start += len(x)
        size = torch.zeros(len(x)).to(x)
        with forward_mode():
            for _ in range(_STEPS):
                v = v / v.flatten(1).norm(dim=1).clamp_min(1e-30).view(-1, *(1,) * (v.dim() - 1))
                pushed = jvp(f, (x,), (v,))[1]
                size = pushed.flatten(1).norm(dim=1)
                v = vjp(f, x)[1](pushed)[0]
        found.append(size.detach().double())
    return torch.cat(found)


@public
@dataclass(frozen=True)
class Breakdown:
    """The change of the gradient and of the outputs after a gradient step of relative size `eta`.

    `gradient`: max_l |g_l(w + dw) - g_l(w)| / |g_l(w)|; `outputs`: |df| / |f|; `model`: relative trust. The model is a
    heuristic for how eta should fall with depth, not a bound: along gradients both changes exceed it.
    """

    eta: float
    gradient: float
    outputs: float
    model: float


@public(renamed={"etas": "sizes"})
def breakdown(net: Net, task: Task, sizes: Sequence[float] = (0.001, 0.01, 0.1)) -> list[Breakdown]:
    """The breakdown of the gradient along gradient steps dW_l = -eta |W_l| g_l / |g_l|, for every eta in `sizes`.

    Raises `WeightspaceError` for an eta outside of (0, 10). Source: On the distance between two neural networks and the
    stability of learning (Bernstein, Vahdat, Yue, Liu, 2020), whose reliability estimate is the `model` here.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> small, large = ws.breakdown(net, task, (0.001, 0.1))
    >>> small.gradient < large.gradient, round(large.model, 2)       # 1.1^2 - 1
    (True, 0.21)
    """
    g, f = gradient(task, checked(net)), task.outputs(net).double()
    direction, found = Relative().steepest(net, g), []
    for eta in sizes:
        if not 0 < eta < 10:
            raise WeightspaceError(f"eta must be in (0, 10), got {eta}")
        moved = net + eta * direction
        h = gradient(task, moved)
        changes = [float((h[n] - g[n]).double().norm() / g[n].double().norm()) for n in g if bool(g[n].any())]
        apart = float((task.outputs(moved).double() - f).norm() / f.norm())
        found.append(Breakdown(eta, max(changes, default=0.0), apart, relative_trust(net, moved)))
    return found


@public
@dataclass(frozen=True)
class Trust:
    """The effect of a gradient step on each example alone: how far it moves the network and the example's output.

    `relative`: relative trust; `displacement`: |J_i g_i| lr, the change of the example's own output, to first order;
    `loss`: the example's. Entries in the order of the task; `order` sorts by relative trust, the largest first.
    """

    relative: Float[Tensor, " examples"]
    displacement: Float[Tensor, " examples"]
    loss: Float[Tensor, " examples"]

    @property
    def order(self) -> Tensor:
        """Indices of the examples, those that move the network most first."""
        return self.relative.argsort(descending=True)


@public(renamed={"rate": "lr"})
def trust_per_example(net: Net, task: Task, lr: float = 0.01) -> Trust:
    """The relative trust prod_l (1 + lr |g_il| / |W_l|) - 1 of a gradient step on each example i alone.

    g_i is the gradient of the example's loss; l runs over tensors of two dimensions or more that are not zero. Examples
    that move a network far are hard for it or new to it. Cost: a gradient for every example. Raises `WeightspaceError`
    for a learning rate that is not positive, or no labels.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> found = ws.trust_per_example(net, task, lr=0.01)
    >>> found.relative.shape, int(found.order[0]) == int(found.relative.argmax())
    (torch.Size([60]), True)
    """
    if not 0 < lr < math.inf:
        raise WeightspaceError(f"lr must be positive, got {lr}")
    names = [n for n, w in checked(net).weights.items() if w.dim() > 1 and bool(w.any())]
    sizes = {n: float(net.weights[n].double().norm()) for n in names}
    relative, moved, losses = [], [], []
    for x, y in task.batches(net):
        if y is None:
            raise WeightspaceError("trust per example needs labels; give Task(inputs, labels)")
        for k in range(len(y)):
            one = Task(_one(x, k), y[k : k + 1], metric=task.metric, output=task.output)
            g = gradient(one, net)
            relative.append(math.expm1(sum(math.log1p(lr * float(g[n].norm()) / sizes[n]) for n in names)))
            moved.append(lr * _push(net, one, g))
            with torch.no_grad():
                losses.append(float(one(net)))
    return Trust(*(torch.tensor(values, dtype=torch.float64) for values in (relative, moved, losses)))


def _one(x: object, k: int) -> object:
    if isinstance(x, Tensor):
        return x[k : k + 1]
    if isinstance(x, dict):
        return {name: t[k : k + 1] for name, t in x.items()}
    return tuple(t[k : k + 1] for t in x)  # type: ignore[attr-defined]


def _push(net: Net, one: Task, g: Weights) -> float:
    """|J g|, the first-order change of the output of one example along its gradient."""
    args, kwargs = arguments(carried(one.example(1), net))

    def f(flat: Tensor) -> Tensor:
        return one.output(called(net.architecture, {**net.weights.shaped(flat), **net.state}, args, kwargs))

    with forward_mode():
        return float(jvp(f, (net.weights.flat(),), (g.flat(),))[1].norm())
