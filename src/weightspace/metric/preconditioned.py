"""Steps of the pullback metric for a network on its way: few products with K = A A^T, each near the best direction.

The best step of span{g, A^T p_1, .., A^T p_j} is exact where c = A g and K p_i are known. Each direction is that of a
preconditioned residual, p = P (c - (K + lam) y), for the best step g - A^T y and the shift lam so far; so they tend to
the step of equation 4, whatever P is. P = (K' + shift)^-1, with K' the part of K that the layers without positions add.
A correction takes the residuals themselves: with P it would undo progress. Source: The iterative calculation of a few
of the lowest eigenvalues and corresponding eigenvectors of large real-symmetric matrices (Davidson, 1975).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from weightspace.curvature.layered import Layered, Setting
from weightspace.metric.solvers import turning
from weightspace.metric.steps import Modes
from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["Near", "Preconditioner"]


Preconditioner: TypeAlias = Callable[[Tensor], Tensor]  # r -> (K' + shift)^-1 r
_TRIES = 8
_SHIFT = 1e-3  # of the largest diagonal entry of K', where that is most of K
_KEPT = 1e-10  # of the largest: squared lengths of directions beside those before them
_NULL = 1e-9  # of the largest eigenvalue of G: where one counts as zero
_ROUNDING, _HIGH = 1e-9, 0.1
_GAIN, _FAR, _LEAST = 0.03, 0.95, 2


@dataclass(frozen=True)
class Directions:
    """Directions p_i of the outputs and K p_i, as columns, in float64."""

    p: Float[Tensor, "rows k"]
    kp: Float[Tensor, "rows k"]

    def and_one(self, p: Tensor, kp: Tensor) -> Directions:
        """These and another."""
        return Directions(torch.cat([self.p, p[:, None]], 1), torch.cat([self.kp, kp[:, None]], 1))


class Near:
    """A network on its way under a pullback metric: outputs, products with A, A^T and K from one forward pass."""

    def __init__(self, net: Net, setting: Setting, mix: Callable[[Tensor], Tensor | None]) -> None:
        self.net, self.setting, self._of = net, setting, mix
        self.layered = Layered(net, setting)
        self.outputs = self.layered.outputs
        if not self.outputs.isfinite().all():
            raise WeightspaceError("the outputs hold NaN or infinity; look for it in the data and the weights")
        self.mix, n = mix(self.outputs), len(self.outputs)
        self.turn, self.back = turning(self.mix, n), turning(None if self.mix is None else self.mix.mT, n)

    def at(self, net: Net) -> Near:
        """The same for another network of the architecture."""
        return Near(net, self.setting, self._of)

    def push(self, v: Tensor) -> Tensor:
        """A v, in float64."""
        return self.turn(self.layered.push(v)).double()

    def pull(self, u: Tensor) -> Tensor:
        """A^T u, in the dtype of the weights."""
        return self.layered.pull(self.back(u.to(self.outputs)))

    def product(self, u: Tensor) -> Tensor:
        """K u = A A^T u, in float64. Raises `WeightspaceError` where it is too large for the dtype."""
        found = self.turn(self.layered.kernel(self.back(u.to(self.outputs)))).double()
        if not found.isfinite().all():
            raise WeightspaceError("the kernel holds NaN or infinity; look for it in the data and the weights")
        return found

    def drift(self, reference: Tensor) -> float:
        """The root mean square over the examples of |B (f - reference)|, B taken at the reference."""
        moved = (self.outputs - reference).flatten()
        return float(turning(self._of(reference), len(reference))(moved).double().norm())

    def preconditioner(self) -> Preconditioner:
        """P, with the shift that takes the fewest directions."""
        k, rows, n = self.layered.part(), self.outputs.numel(), len(self.outputs)
        if self.mix is not None:
            many, m = self.mix.shape[:2]
            mix = self.mix.to(k)
            k = torch.einsum("iab,ibjc,jdc->iajd", mix, k.view(many, m, many, m), mix).reshape(rows, rows)
        return _dense(k / n, _SHIFT * float(k.diagonal().max()) / n)

    def modes(
        self, g: Tensor, p: Preconditioner, most: int, progress: Callable[[Modes], tuple[float, float, float]]
    ) -> Modes:
        """A gradient in the modes of G in span{g, A^T p_i}, with at most `most` directions.

        `progress`: that of the step for modes, the share of its length that it may go, and its shift; once the share
        is nearly all and a direction adds less than three hundredths, no more are made.
        """
        c, size, before = self.push(g), float(g.double().square().sum()), 0.0
        r, found = c, Directions(c.new_zeros(len(c), 0), c.new_zeros(len(c), 0))
        modes = _ritz(g, c, size, found, self.pull)[0]
        for k in range(most):
            d = _apart(p(r), found)
            if not float(d.norm()):
                break
            found = found.and_one(d, self.product(d))
            modes, basis = _ritz(g, c, size, found, self.pull)
            now, share, shift = progress(modes)
            if k + 1 >= _LEAST and share > _FAR and now - before < _GAIN * now:
                break
            before, x = now, basis @ (modes.shrunk(shift) * modes.coefficients)
            y = -x[1:] / x[0]  # the step is g - A^T y, up to a factor
            r = c - (found.kp + min(shift, _HIGH * float(modes.values.max())) * found.p) @ y
        return modes

    def returned(self, residual: Tensor, damping: float, most: int, enough: float) -> Tensor:
        """d of least norm with A d near the residual: argmin |A d - r|^2 + damping |d|^2 over d in span{A^T r_i}.

        Directions are added until the residual is below `enough`, or below 1e-6 of what it was.
        """
        r = target = residual.double()
        found = Directions(r.new_zeros(len(r), 0), r.new_zeros(len(r), 0))
        x = r.new_zeros(0)
        goal = max(enough, 1e-6 * float(r.norm()))
        for _ in range(most):
            d = _apart(r, found)
            if not float(d.norm()):
                break
            found = found.and_one(d, self.product(d))
            square = found.kp.T @ found.kp + damping * _symmetric(found.p.T @ found.kp)
            scale = square.diagonal().rsqrt()
            inverse = torch.linalg.pinv(scale[:, None] * square * scale, hermitian=True)  # lstsq is not repeatable
            x = scale * (inverse @ (scale * (found.kp.T @ target)))
            r = target - found.kp @ x
            if float(r.norm()) <= goal:
                break
        return self.pull(found.p @ x)

    def retracted(self, reference: Tensor, steps: int, damping: float, most: int, enough: float) -> Near:
        """The network moved back to the outputs `reference` by Gauss-Newton steps, with the Jacobian fixed here.

        A step that leaves more than there was, as a long one across kinks may, is not taken.
        """
        now, residual = self, self.turn((self.outputs - reference).flatten())
        for _ in range(steps):
            if float(residual.norm()) <= enough:
                break
            step = self.returned(residual, damping, most, enough)
            there = self.at((now.net + -1.0 * self.net.weights.shaped(step)).refreshed())
            left = self.turn((there.outputs - reference).flatten())
            if not float(left.norm()) < float(residual.norm()):
                break
            now, residual = there, left
        return now


def _symmetric(m: Tensor) -> Tensor:
    return (m + m.T) / 2


def _apart(d: Tensor, found: Directions) -> Tensor:
    """d of norm one, without its part along those before; zero where nothing is left but rounding."""
    size = float(d.norm())
    for _ in range(2):
        d = d - found.p @ (found.p.T @ d)
    left = float(d.norm())
    return d / left if left > _ROUNDING * size else torch.zeros_like(d)


def _ritz(
    g: Tensor, c: Tensor, size: float, found: Directions, pull: Callable[[Tensor], Tensor]
) -> tuple[Modes, Tensor]:
    """The modes of G in span{g, A^T p_i}, and their coordinates there: c = A g, size = |g|^2."""
    along, one = found.p.T @ c, c.new_tensor([size])
    inner = _symmetric(found.p.T @ found.kp)
    mass = torch.cat([torch.cat([one, along])[None], torch.cat([along[:, None], inner], 1)])
    images = torch.cat([c[:, None], found.kp], 1)
    scale = mass.diagonal().clamp(min=1e-300).rsqrt()
    lengths, axes = torch.linalg.eigh(scale[:, None] * mass * scale)
    kept = lengths > _KEPT * lengths[-1]
    basis = scale[:, None] * axes[:, kept] * lengths[kept].rsqrt()
    values, vectors = torch.linalg.eigh(_symmetric(basis.T @ (images.T @ images) @ basis))
    basis = basis @ vectors
    coefficients = basis.T @ torch.cat([one, along])

    def assemble(f: Tensor) -> Tensor:
        x = basis @ (f * coefficients)
        return float(x[0]) * g + pull(found.p @ x[1:])

    return Modes(torch.where(values > _NULL * values[-1], values, 0.0), coefficients, assemble, False), basis


def _dense(k: Tensor, shift: float) -> Preconditioner:
    """(K' + shift)^-1 of one vector, or of the rows of several examples at once."""
    for _ in range(_TRIES):
        root, failed = torch.linalg.cholesky_ex(k + shift * torch.eye(len(k)).to(k))
        if shift and not bool(failed):
            return lambda r: torch.cholesky_solve(r.to(root).view(len(k), -1), root).flatten().to(r)
        shift *= 10  # rounding made the kernel indefinite
    return lambda r: r  # no layer is without positions
