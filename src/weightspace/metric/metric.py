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

from weightspace.linear.norms import spectral_norm
from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net
from weightspace.net.public import public
from weightspace.net.weights import Weights

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["Adam", "Euclidean", "Metric", "Relative", "Spectral", "by_layer"]


_PIECE = 4096


@runtime_checkable
class Metric(Protocol):
    """A norm |v|_w at every network w, and the unit vector that descends a covector fastest."""

    def norm(self, net: Net, vector: Weights) -> Float[Tensor, ""]:
        """|v|_w."""
        ...

    def steepest(self, net: Net, covector: Weights) -> Weights:
        """The v of |v|_w = 1 with the lowest <covector, v>."""
        ...


def _usable(net: Net, covector: Weights) -> None:
    net.weights.check(covector)
    if bad := covector.unusable():
        raise WeightspaceError(f"the gradient has NaN or infinity in {bad[0]}; lower the step or check the loss")


@public
def by_layer(tensor: Tensor, granularity: str = "tensor") -> Float[Tensor, " parts"]:
    """|w_l| in float64: of the whole tensor, or of every neuron, which is a row of a tensor of two dimensions or more.

    Raises `WeightspaceError` for another granularity.
    """
    if granularity not in ("tensor", "neuron"):
        raise WeightspaceError(f'granularity must be "tensor" or "neuron", got {granularity!r}')
    rows = (
        tensor.detach().flatten(1) if granularity == "neuron" and tensor.dim() > 1 else tensor.detach().reshape(1, -1)
    )
    whole = rows.shape[1] // _PIECE * _PIECE  # float32 sums of long rows are wrong by up to half a percent
    pieces = torch.linalg.vector_norm(rows[:, :whole].unflatten(1, (-1, _PIECE)), dim=-1)
    rest = torch.linalg.vector_norm(rows[:, whole:], dim=-1, keepdim=True)
    return torch.cat([pieces, rest], 1).double().norm(dim=1)


@public
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
        _usable(net, covector)
        size = float(covector.norm())
        return covector / -size if size else covector.zeros()


@public
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
    _moments: tuple[Tensor, Tensor] | None = field(default=None, repr=False, compare=False)  # flat, changed in place

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
        return net.weights.shaped((self._moments[1] / (1 - self.beta[1] ** self.seen)).sqrt_())

    def steepest(self, net: Net, covector: Weights) -> Weights:
        """The step of learning rate one. Raises `WeightspaceError` for NaN or infinity."""
        _usable(net, covector)
        (b1, b2), c = self.beta, covector.flat()
        if self._moments is None:
            self._moments = torch.zeros_like(c), torch.zeros_like(c)
        mean, square = self._moments
        mean.lerp_(c, 1 - b1)
        square.mul_(b2).addcmul_(c, c, value=1 - b2)
        self.seen += 1
        root = (square / (1 - b2**self.seen)).sqrt_().add_(self.eps)
        return covector.shaped(torch.div(mean, root, out=root).div_(b1**self.seen - 1))

    def state(self) -> dict[str, Tensor]:
        """A copy of what has been seen, as tensors."""
        if self._moments is None:
            return {}
        mean, square = self._moments
        return {"seen": torch.tensor(self.seen), "mean": mean.clone(), "square": square.clone()}

    def restore(self, net: Net, state: Mapping[str, Tensor]) -> None:
        """Have seen what `state` tells, nothing where it is empty."""
        if not state:
            self.seen, self._moments = 0, None
            return
        self.seen = int(state["seen"])
        like = net.weights.flat()
        self._moments = state["mean"].to(like, copy=True), state["square"].to(like, copy=True)


@public
@dataclass(frozen=True)
class Relative:
    """|v|_w = max_l |v_l| / |w_l| over the tensors, or over all neurons (rows): how large a change is to each layer.

    `steepest` is v_l = -|w_l| g_l / |g_l|, so that a flow of size s is Fromage with learning rate s, but for its factor
    1 / sqrt(1 + s^2). Where w_l is zero, 1 stands for |w_l|; where g_l is zero, v_l is. Raises `WeightspaceError` for
    another granularity than "tensor" and "neuron", NaN or infinity. Source: On the distance between two neural networks
    and the stability of learning (Bernstein, Vahdat, Yue, Liu, 2020).
    """

    granularity: str = "tensor"

    def __post_init__(self) -> None:
        by_layer(torch.zeros(1, 1), self.granularity)

    def _scales(self, w: Tensor) -> Tensor:
        size = by_layer(w, self.granularity)
        return torch.where(size > 0, size, 1.0)

    def norm(self, net: Net, vector: Weights) -> Float[Tensor, ""]:
        """max_l |v_l| / |w_l|."""
        net.weights.check(vector)
        parts = [(by_layer(vector[n], self.granularity) / self._scales(w)).max() for n, w in net.weights.items()]
        return torch.stack(parts).max()

    def steepest(self, net: Net, covector: Weights) -> Weights:
        """v_l = -|w_l| g_l / |g_l|."""
        _usable(net, covector)
        found = {}
        for name, w in net.weights.items():
            size = by_layer(covector[name], self.granularity)
            scale = torch.where(size > 0, -self._scales(w) / size, 0.0).to(w)
            found[name] = covector[name] * scale.view(-1, *(1,) * (w.dim() - 1) if w.dim() else ())
        return covector.replace(found)


@public
@dataclass(frozen=True)
class Spectral:
    """|v| = max_l |v_l|_2, the largest operator norm of the tensors, each as a matrix of its rows; |v_l| for vectors.

    `steepest` is v_l = -U V^T for g_l = U S V^T, and -g_l / |g_l| for vectors: a flow under it goes where the optimiser
    Muon goes. A kernel is the matrix (units, rest), whose norm is below that of its convolution by at most the
    square root of the number of taps: `spectral.convolution_norm` has the latter. Sources: A spectral condition for
    feature learning (Yang, Simon, Bernstein, 2023); Muon (Jordan and others, 2024).
    """

    def norm(self, net: Net, vector: Weights) -> Float[Tensor, ""]:
        """max_l |v_l|_2, by a Krylov space: too small by about 1e-5 of itself at most."""
        net.weights.check(vector)
        sizes = [spectral_norm(v.flatten(1)) if v.dim() > 1 else float(by_layer(v)) for v in vector.values()]
        return torch.tensor(max(sizes), dtype=torch.float64)

    def steepest(self, net: Net, covector: Weights) -> Weights:
        """v_l = -U V^T; directions with a singular value below the rounding of the largest stay out."""
        _usable(net, covector)
        return covector.replace({name: -_orthogonal(g) for name, g in covector.items()})


def _orthogonal(g: Tensor) -> Tensor:
    if g.dim() < 2:
        size = float(by_layer(g))
        return g / size if size else g
    u, s, vh = torch.linalg.svd(g.flatten(1).double(), full_matrices=False)
    kept = (s > max(g.flatten(1).shape) * torch.finfo(g.dtype).eps * s[0]).to(s)
    return ((u * kept) @ vh).view(g.shape).to(g)
