"""How far a small step goes, and which step is steepest.

A metric is a norm on the vectors at every network: |v|_w. A Riemannian one has an inner product <v, u>_w as
well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from weightspace.net import Net, Weights, WeightspaceError

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

__all__ = ["Euclidean", "Metric"]


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
