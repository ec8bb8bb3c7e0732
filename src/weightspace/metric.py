"""How far a small step goes, and which step is steepest.

A metric is a norm on the vectors at every network: |v|_w. A Riemannian one has an inner product <v, u>_w as
well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from torch import Tensor

from weightspace.net import Net, Weights, WeightspaceError

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["Adam", "Euclidean", "Metric"]


@runtime_checkable
class Metric(Protocol):
    """A norm |v|_w at every network w, and the unit vector that descends a covector fastest."""

    def norm(self, net: Net, vector: Weights) -> Float[Tensor, ""]:
        """|v|_w."""
        ...

    def steepest(self, net: Net, covector: Weights) -> Weights:
        """The v of |v|_w = 1 with the lowest <covector, v>."""
        ...


@dataclass(frozen=True)
class Euclidean:
    """|v|^2 = <v, v> = sum_i v_i^2, the same at every network: every weight counts alike."""

    def norm(self, net: Net, vector: Weights) -> Float[Tensor, ""]:
        """|v| = sqrt(sum_i v_i^2), in float64."""
        net.weights.check(vector)
        return vector.norm()

    def inner(self, net: Net, v: Weights, u: Weights) -> Float[Tensor, ""]:
        """<v, u> = sum_i v_i u_i, in float64."""
        net.weights.check(v)
        return v.dot(u)

    def steepest(self, net: Net, covector: Weights) -> Weights:
        """argmin of <c, v> over |v| = 1, which is -c / |c|: the direction of gradient descent.

        The zero covector, where no direction descends, gives the zero vector. Raises `WeightspaceError` for
        NaN or infinity.
        """
        net.weights.check(covector)
        if bad := covector.unusable():
            raise WeightspaceError(f"the gradient has NaN or infinity in {bad[0]}; lower the step or check the loss")
        size = float(covector.norm())
        return covector / -size if size else covector.zeros()


@dataclass
class Adam:
    """|v|^2 = sum_i sqrt(h_i) v_i^2, h the running mean of the squared covectors seen: steps as the optimiser Adam's.

    `steepest` is -m / (sqrt(h) + eps) with m the running mean of the covectors, both without their bias, and is not of
    length one: a flow of size s is Adam with learning rate s. `begin()` gives one that has seen nothing.
    Source: Adam, a method for stochastic optimization (Kingma, Ba, 2015).
    """

    beta: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    seen: int = field(default=0, compare=False)
    _moments: tuple[Weights, Weights] | None = field(default=None, repr=False, compare=False)

    def begin(self) -> Adam:
        """The same, having seen nothing."""
        return Adam(self.beta, self.eps)

    def norm(self, net: Net, vector: Weights) -> Float[Tensor, ""]:
        """|v|. Raises `WeightspaceError` before a covector was seen."""
        scaled = vector.shaped(vector.flat() * self.curvature(net).flat().sqrt())
        return scaled.norm()

    def curvature(self, net: Net) -> Weights:
        """sqrt(h), a number for every weight. Raises `WeightspaceError` before a covector was seen."""
        if self._moments is None:
            raise WeightspaceError("this metric is made of the gradients seen, and none was; take a step first")
        net.weights.check(self._moments[1])
        return (self._moments[1] / (1 - self.beta[1] ** self.seen)).map(torch.sqrt)

    def steepest(self, net: Net, covector: Weights) -> Weights:
        """The step of learning rate one. Raises `WeightspaceError` for NaN or infinity."""
        net.weights.check(covector)
        if bad := covector.unusable():
            raise WeightspaceError(f"the gradient has NaN or infinity in {bad[0]}; lower the step or check the loss")
        mean, square = self._moments or (covector.zeros(), covector.zeros())
        (b1, b2), c = self.beta, covector.flat()
        mean = mean.shaped(torch.lerp(c, mean.flat(), b1))
        square = square.shaped(torch.lerp(c.square(), square.flat(), b2))
        self.seen, self._moments = self.seen + 1, (mean, square)
        root = (square.flat() / (1 - b2**self.seen)).sqrt_().add_(self.eps)
        return covector.shaped(mean.flat() / (b1**self.seen - 1) / root)

    def state(self) -> dict[str, Tensor]:
        """What has been seen, as tensors."""
        if self._moments is None:
            return {}
        mean, square = self._moments
        return {"seen": torch.tensor(self.seen), "mean": mean.flat(), "square": square.flat()}

    def restore(self, net: Net, state: Mapping[str, Tensor]) -> None:
        """Have seen what `state` tells, nothing where it is empty."""
        if not state:
            self.seen, self._moments = 0, None
            return
        self.seen = int(state["seen"])
        self._moments = net.weights.shaped(state["mean"]), net.weights.shaped(state["square"])
