"""Euclidean, relative, spectral and Adam metrics: the length of a step, and the steepest direction for a gradient.

A metric is a norm |v|_w on the steps v at every network w. A Riemannian one also has an inner product <v, u>_w.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from weightspace.linear.norms import spectral_norm
from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net
from weightspace.net.public import public
from weightspace.net.weights import Weights

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["Adam", "Euclidean", "Metric", "Relative", "Remembering", "Spectral", "by_layer"]


Granularity: TypeAlias = Literal["tensor", "neuron"]
_PIECE = 4096
_CACHED = 1 << 16  # numbers of each of four vectors that stay in the cache for all operations of a step


@runtime_checkable
class Metric(Protocol):
    """The protocol of a metric: a norm |v|_w at every network w, and the steepest unit step for a gradient.

    >>> import weightspace as ws
    >>> all(isinstance(metric(), ws.metric.Metric) for metric in (ws.Euclidean, ws.Relative, ws.Spectral, ws.Adam))
    True
    """

    def norm(self, net: Net, vector: Weights) -> Float[Tensor, ""]:
        """|v|_w."""
        ...

    def steepest(self, net: Net, covector: Weights) -> Weights:
        """The step v of length |v|_w = 1 with the lowest <covector, v>; the covector is a gradient."""
        ...


@runtime_checkable
class Remembering(Protocol):
    """The protocol of a metric with a history of gradients: a flow begins it anew, and saves and restores it.

    >>> import weightspace as ws
    >>> isinstance(ws.Adam(), ws.metric.Remembering), isinstance(ws.Euclidean(), ws.metric.Remembering)
    (True, False)
    """

    def begin(self) -> Metric:
        """A metric with the same settings and no history."""
        ...

    def state(self) -> dict[str, Tensor]:
        """A copy of the history, as tensors."""
        ...

    def restore(self, net: Net, state: Mapping[str, Tensor]) -> None:
        """Set the history to a `state()`; an empty one clears it."""
        ...


def _usable(net: Net, covector: Weights) -> None:
    net.weights.check(covector)
    if bad := covector.unusable():
        raise WeightspaceError(f"the gradient has NaN or infinity in {bad[0]}; lower the step or check the loss")


@public
def by_layer(tensor: Tensor, granularity: Granularity = "tensor") -> Float[Tensor, " parts"]:
    """The norm of a tensor, or of each of its neurons (rows), in float64; tensors of one dimension are one row.

    >>> import torch, weightspace as ws
    >>> w = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
    >>> ws.metric.by_layer(w, "neuron")
    tensor([5., 2.], dtype=torch.float64)
    >>> ws.metric.by_layer(w).shape
    torch.Size([1])
    """
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
    """The Euclidean metric |v|^2 = sum_i v_i^2, the same at every network; a flow under it is gradient descent.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> gradient = ws.gradient(task, net)
    >>> v = ws.Euclidean().steepest(net, gradient)
    >>> round(float(ws.Euclidean().norm(net, v)), 3), bool(gradient.dot(v) < 0)
    (1.0, True)
    """

    def norm(self, net: Net, vector: Weights) -> Float[Tensor, ""]:
        """|v| = sqrt(sum_i v_i^2), in float64."""
        net.weights.check(vector)
        return vector.norm()

    def inner(self, net: Net, v: Weights, u: Weights) -> Float[Tensor, ""]:
        """<v, u> = sum_i v_i u_i, in float64."""
        net.weights.check(v)
        return v.dot(u)

    def steepest(self, net: Net, covector: Weights) -> Weights:
        """-c / |c|, the direction of gradient descent: argmin of <c, v> over |v| = 1.

        A zero gradient gives the zero step. Raises `WeightspaceError` for NaN or infinity.
        """
        _usable(net, covector)
        size = float(covector.norm())
        return covector / -size if size else covector.zeros()


@public
@dataclass
class Adam:
    """The metric of the optimiser Adam: |v|^2 = sum_i sqrt(h_i) v_i^2, h the running mean of squared gradients.

    `steepest` is -m / (sqrt(h) + eps) with m the running mean of the gradients, both bias-corrected; it is not of
    length one: a flow of size s is Adam with learning rate s. `begin()` returns a fresh copy without a history.
    Source: Adam, a method for stochastic optimization (Kingma, Ba, 2015).

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> adam = ws.Adam()
    >>> v = adam.steepest(net, ws.gradient(task, net))
    >>> adam.seen, round(float(v["3.bias"].abs().max()), 2)     # the first step is the sign of the gradient
    (1, 1.0)
    """

    beta: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    seen: int = field(default=0, compare=False)
    _moments: tuple[Tensor, Tensor] | None = field(default=None, repr=False, compare=False)  # flat, changed in place

    def begin(self) -> Adam:
        """A metric with the same settings and no history."""
        return Adam(self.beta, self.eps)

    def norm(self, net: Net, vector: Weights) -> Float[Tensor, ""]:
        """|v|. Raises `WeightspaceError` before the first gradient."""
        scaled = vector.shaped(vector.flat() * self.curvature(net).flat().sqrt())
        return scaled.norm()

    def curvature(self, net: Net) -> Weights:
        """sqrt(h), a number for every weight. Raises `WeightspaceError` before the first gradient."""
        if self._moments is None:
            raise WeightspaceError("Adam's metric is made of past gradients, and there is none yet; take a step first")
        return net.weights.shaped((self._moments[1] / (1 - self.beta[1] ** self.seen)).sqrt_())

    def steepest(self, net: Net, covector: Weights) -> Weights:
        """Adam's step of learning rate one, after adding the gradient to the history; refuses NaN and infinity."""
        _usable(net, covector)
        (b1, b2), c = self.beta, covector.flat()
        if self._moments is None:
            self._moments = torch.zeros_like(c), torch.zeros_like(c)
        self.seen += 1
        step = torch.empty_like(c)
        parts = (t.split(_CACHED if c.device.type == "cpu" else max(1, len(c))) for t in (*self._moments, c, step))
        for mean, square, g, root in zip(*parts, strict=True):
            mean.lerp_(g, 1 - b1)
            square.mul_(b2).addcmul_(g, g, value=1 - b2)
            torch.div(square, 1 - b2**self.seen, out=root).sqrt_().add_(self.eps)
            torch.div(mean, root, out=root).div_(b1**self.seen - 1)
        return covector.shaped(step)

    def state(self) -> dict[str, Tensor]:
        """A copy of the history, as tensors."""
        if self._moments is None:
            return {}
        mean, square = self._moments
        return {"seen": torch.tensor(self.seen), "mean": mean.clone(), "square": square.clone()}

    def restore(self, net: Net, state: Mapping[str, Tensor]) -> None:
        """Set the history to a `state()`; an empty one clears it."""
        if not state:
            self.seen, self._moments = 0, None
            return
        self.seen = int(state["seen"])
        like = net.weights.flat()
        self._moments = state["mean"].to(like, copy=True), state["square"].to(like, copy=True)


@public
@dataclass(frozen=True)
class Relative:
    """The relative metric |v|_w = max_l |v_l| / |w_l| over the tensors l, or over all neurons (rows).

    `steepest` is v_l = -|w_l| g_l / |g_l|, so that a flow of size s is Fromage with learning rate s, up to its factor
    1 / sqrt(1 + s^2). Where w_l is zero, |w_l| is replaced by 1; where g_l is zero, v_l is zero. Raises
    `WeightspaceError` for NaN or infinity. Source: On the distance between two neural networks
    and the stability of learning (Bernstein, Vahdat, Yue, Liu, 2020).

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> v = ws.Relative().steepest(net, ws.gradient(task, net))
    >>> {name: round(float(v[name].norm() / w.norm()), 3) for name, w in net.weights.items()}
    {'1.weight': 1.0, '1.bias': 1.0, '3.weight': 1.0, '3.bias': 1.0}
    """

    granularity: Granularity = "tensor"

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
    """The spectral metric |v| = max_l |v_l|_2, the largest operator norm of the tensors; a flow under it is Muon.

    A tensor is the matrix of its rows, and |v_l|_2 the Euclidean norm for vectors. `steepest` is v_l = -U V^T for
    g_l = U S V^T, and -g_l / |g_l| for vectors. A convolution's kernel is the matrix (units, rest), whose norm is below
    that of the convolution by at most the square root of the number of taps: `convolution_norm` of the wing `linear`
    has the latter. Sources: A spectral condition for feature learning (Yang, Simon, Bernstein, 2023); Muon (Jordan and
    others, 2024).

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> v = ws.Spectral().steepest(net, ws.gradient(task, net))
    >>> round(float(ws.Spectral().norm(net, v)), 2)
    1.0
    """

    def norm(self, net: Net, vector: Weights) -> Float[Tensor, ""]:
        """max_l |v_l|_2, by a Krylov method: too small by a relative error of about 1e-5 at most."""
        net.weights.check(vector)
        sizes = [spectral_norm(v.flatten(1)) if v.dim() > 1 else float(by_layer(v)) for v in vector.values()]
        return torch.tensor(max(sizes), dtype=torch.float64)

    def steepest(self, net: Net, covector: Weights) -> Weights:
        """v_l = -U V^T, without directions whose singular value is rounding beside the largest."""
        _usable(net, covector)
        return covector.replace({name: -_orthogonal(g) for name, g in covector.items()})


def _orthogonal(g: Tensor) -> Tensor:
    if g.dim() < 2:
        size = float(by_layer(g))
        return g / size if size else g
    u, s, vh = torch.linalg.svd(g.flatten(1).double(), full_matrices=False)
    kept = (s > max(g.flatten(1).shape) * torch.finfo(g.dtype).eps * s[0]).to(s)
    return ((u * kept) @ vh).view(g.shape).to(g)
