"""The plane through three networks in weight space, and observables such as the loss on a grid over it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from weightspace.jobs.progress import Tick
from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net
from weightspace.net.public import public
from weightspace.net.weights import Weights
from weightspace.path.path import number
from weightspace.task.classification import together

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["Grid", "Plane", "plane"]


@public
@dataclass(frozen=True)
class Grid:
    """Observables on a grid over a plane: `values[name][j, i]` = observables[name](plane.net(u[i], v[j]))."""

    u: Float[np.ndarray, " n"]
    v: Float[np.ndarray, " n"]
    values: dict[str, Float[np.ndarray, "n n"]]


@public
@dataclass(frozen=True)
class Plane:
    """The plane through three networks a, b, c: w(u, v) = a + u e_1 + v e_2, in units of weight norm.

    e_1, e_2 are orthonormal, e_1 along b - a, e_2 on the side of c; `corners` holds the (u, v) of a, b and c,
    a at the origin. `plane(a, b, c)` makes one.
    """

    a: Net
    b: Net
    c: Net
    corners: Float[np.ndarray, "3 2"]

    def net(self, u: float, v: float) -> Net:
        """The network at (u, v); a, b and c themselves at the corners.

        Its state (BatchNorm statistics) is the mean of the three, weighted with the barycentric coordinates of (u, v),
        negative ones clipped to zero so that variances stay positive.
        """
        gamma = float(v / self.corners[2, 1])
        beta = float((u - gamma * self.corners[2, 0]) / self.corners[1, 0])
        weights = np.array([1 - beta - gamma, beta, gamma])
        inside = np.clip(weights, 0, None)
        nets = (self.a, self.b, self.c)
        state = _combine([net.state for net in nets], inside / inside.sum())
        return self.a.at(_combine([net.weights for net in nets], weights), state)

    def coordinates(self, net: Net) -> tuple[float, float]:
        """(u, v) of the orthogonal projection of `net` onto the plane."""
        step = net - self.a
        u = float(step.dot(self.b - self.a)) / self.corners[1, 0]
        v = (float(step.dot(self.c - self.a)) - u * self.corners[2, 0]) / self.corners[2, 1]
        return float(u), float(v)

    def grid(
        self,
        observables: Mapping[str, Callable[[Net], Any]],
        n: int = 21,
        margin: float = 0.2,
        progress: Tick | None = None,
    ) -> Grid:
        """Every observable at n x n networks of the box around a, b and c.

        `observables`: name -> a function of a network with one number as its value, such as a task or `accuracy(task)`.
        The box is widened by `margin` of its size on each side; `progress(done, n * n)` is called after every network.
        Raises `WeightspaceError` for n < 2. Izmailov et al. (2018), figure 1: training loss and test error.
        """
        if n < 2:
            raise WeightspaceError(f"a grid needs n >= 2 points a side, got {n}")
        low, high = self.corners.min(0), self.corners.max(0)
        edge = margin * (high - low)
        u, v = (np.linspace(low[k] - edge[k], high[k] + edge[k], n) for k in (0, 1))
        values, look = {name: np.empty((n, n)) for name in observables}, together(observables)
        for done, (j, i) in enumerate(np.ndindex(n, n), start=1):
            for name, found in look(self.net(float(u[i]), float(v[j]))).items():
                values[name][j, i] = number(found(), name)
            if progress is not None:
                progress(done, n * n)
        return Grid(u, v, values)


@public
def plane(a: Net, b: Net, c: Net) -> Plane:
    """The plane through the networks a, b and c.

    Raises `ArchitectureMismatch` unless all have the same tensors, `WeightspaceError` when they lie on one line.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> plane = ws.plane(net, ws.demo.example(1)[0], ws.demo.example(2)[0])
    >>> plane.grid({"loss": task}, n=3).values["loss"].shape
    (3, 3)
    """
    a.check(b)
    a.check(c)
    ab, ac = b - a, c - a
    base = float(ab.norm())
    rounding = 4 * torch.finfo(a.dtype).eps * max(float(net.weights.norm()) for net in (a, b, c))
    along = float(ab.dot(ac)) / base if base > rounding else 0.0
    # |ac - along * e_1| directly: the difference of squares would lose half of the digits
    height = float((ac - ab * (along / base)).norm()) if base > rounding else 0.0
    if height <= rounding:
        raise WeightspaceError(
            f"the three networks lie on one line (|b - a| = {base:.3g}, distance of c from it {height:.3g}); "
            "give a third network that does not lie on it, or use line(a, b)"
        )
    return Plane(a, b, c, np.array([[0.0, 0.0], [base, 0.0], [along, height]]))


def _combine(points: Sequence[Weights], weights: Float[np.ndarray, " k"]) -> Weights:
    """sum_k weights[k] points[k], in float32 or better; integer entries are those of the first."""
    named = {}
    for name, first in points[0].items():
        if first.is_floating_point():
            wide = torch.promote_types(first.dtype, torch.float32)
            terms = (point[name].to(wide) * float(w) for point, w in zip(points, weights, strict=True))
            named[name] = torch.stack(list(terms)).sum(0)
    return points[0].replace(named)
