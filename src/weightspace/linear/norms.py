"""Spectral norms |W|_2 = max |W x| / |x| of matrices and convolutions: accurate estimates, and proven upper bounds.

The estimate is a lower bound: the largest singular value of W on span(x, W^T W x, (W^T W)^2 x, ..). The upper bound is
a mu for which mu I - W^T W has a Cholesky factor, so that no eigenvalue of W^T W exceeds mu. A convolution of any
padding, stride and input size is a part of the convolution on the infinite grid, whose norm is the largest |K(t)|_2
over frequencies t, with K the Fourier series of the kernel. Between the points of a grid of n frequencies a dimension,
|K(t) v|^2, a trigonometric polynomial of degree k - 1 for a kernel of k taps, is at most 1 / cos(pi (k - 1) / n) times
its largest value on the grid.
Sources: Calculating the singular values and pseudo-inverse of a matrix (Golub, Kahan, 1965); Verification of positive
definiteness (Rump, 2006); the lemma of M. Riesz (1914) on trigonometric polynomials.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from weightspace.net.errors import WeightspaceError
from weightspace.net.public import public

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["convolution_bound", "convolution_norm", "rough_bound", "spectral_bound", "spectral_norm"]


_MAPS, _STEPS, _PAUSE, _TOLERANCE = 4, 160, 4, 1e-5
_SMALL = 32  # rows or columns up to which all singular values are computed
_ABOVE, _TRIES, _POWERS = 1e-3, 60, (8, 120)
_FINE, _COARSE, _WIDE = 8, 5, 96  # grid points for each tap, up to _WIDE channels and above


@public
def spectral_norm(matrix: Float[Tensor, "rows columns"], *, tolerance: float = _TOLERANCE, seed: int = 0) -> float:
    """The spectral norm |W|_2 = sigma_1(W) of a matrix: a lower bound, accurate to about `tolerance` of itself.

    Cost: some tens of matrix-vector products. Raises `WeightspaceError` for NaN or infinity.

    >>> import torch
    >>> import weightspace as ws
    >>> round(ws.spectral_norm(torch.tensor([[3.0, 0.0], [0.0, 4.0]])), 4)
    4.0
    >>> net, _ = ws.demo.example()
    >>> 0 < ws.spectral_norm(net.weights["1.weight"]) <= float(net.weights["1.weight"].norm())
    True
    """
    w = _finite(matrix.detach())
    if min(w.shape) <= _SMALL:
        return float(torch.linalg.svdvals(w.double())[0])
    w = w if w.shape[0] >= w.shape[1] else w.T
    products = (lambda x: (w @ x[:, 0])[:, None]), (lambda y: (w.T @ y[:, 0])[:, None])
    return _krylov(*products, _start((w.shape[1], 1), w, seed), tolerance, _PAUSE)


@public
def convolution_norm(
    kernel: Float[Tensor, "units channels *taps"],
    size: tuple[int, ...],
    *,
    tolerance: float = 1e-4,
    seed: int = 0,
    **how: Any,
) -> float:
    """The spectral norm of a convolution x -> conv(x, W) on inputs of spatial `size`: an accurate lower bound.

    `how`: stride, padding, dilation, groups, as in torch. Raises `WeightspaceError` for NaN or infinity, or a size that
    does not fit.

    >>> import torch
    >>> import weightspace as ws
    >>> average = torch.full((1, 1, 2, 2), 0.25)
    >>> ws.linear.convolution_norm(average, (8, 8)) <= 1
    True
    """
    w, rank = _finite(kernel.detach()), kernel.dim() - 2
    if len(size) != rank or min(size, default=0) < 1:
        raise WeightspaceError(f"a kernel of shape {tuple(kernel.shape)} needs {rank} positive sizes, got {size}")
    convolve: Callable[..., Tensor] = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
    shape = (w.shape[1] * how.get("groups", 1), *size)
    n = math.prod(shape)

    def forward(x: Tensor) -> Tensor:
        return convolve(x.T.reshape(-1, *shape), w, None, **how).flatten(1).T

    def backward(y: Tensor) -> Tensor:
        x = w.new_zeros((y.shape[1], *shape)).requires_grad_()
        with torch.enable_grad():
            out = convolve(x, w, None, **how)
        return torch.autograd.grad(out, x, y.T.reshape(out.shape))[0].flatten(1).T

    return _krylov(forward, backward, _start((n, min(_MAPS, n)), w, seed), tolerance)


@public
def spectral_bound(matrix: Float[Tensor, "rows columns"]) -> float:
    """A proven upper bound of the spectral norm |W|_2, larger than it by about a thousandth.

    The bound is sqrt(mu) where mu I - W^T W has a Cholesky factor, in float64, with a bound of the rounding added.
    Cost: one product W^T W and one factorisation of it, cubic in the shorter side.

    >>> import weightspace as ws
    >>> net, _ = ws.demo.example()
    >>> w = net.weights["1.weight"]
    >>> ws.spectral_norm(w) <= ws.spectral_bound(w) <= 1.01 * ws.spectral_norm(w)
    True
    """
    w = matrix.detach().double()
    guess = spectral_norm(_short(w), tolerance=1e-4)
    return _certified((w.T @ w if w.shape[0] >= w.shape[1] else w @ w.T)[None], guess)


@public
def convolution_bound(kernel: Float[Tensor, "units channels *taps"], groups: int = 1) -> float:
    """A proven upper bound of the spectral norm of a convolution, for any input size, padding, stride and dilation.

    Larger than the norm on infinite inputs by 1 to 3 % (8 % above 96 channels). Cost: a Cholesky factorisation for
    every frequency of a grid.

    >>> import torch
    >>> import weightspace as ws
    >>> kernel = torch.full((1, 1, 2, 2), 0.25)
    >>> ws.linear.convolution_norm(kernel, (8, 8)) <= ws.linear.convolution_bound(kernel) <= 1.1
    True
    """
    w = _finite(kernel.detach()).double()
    parts = w.chunk(groups)
    taps = w.shape[2:]
    each = _COARSE if min(parts[0].shape[:2]) > _WIDE else _FINE
    grid = [1 if k == 1 else each * k + 2 for k in taps]
    between = math.prod(1 / math.cos(math.pi * (k - 1) / n) for k, n in zip(taps, grid, strict=True))
    return max(_on_grid(part, grid) for part in parts) * math.sqrt(between)


def _short(w: Tensor) -> Tensor:
    """The matrix in float32, which is enough for a first guess, unless it would overflow."""
    short = w.float()
    return short if float(short.abs().max() if w.numel() else 0.0) < 1e30 else w


@public
def rough_bound(kernel: Float[Tensor, "rows columns *taps"], groups: int = 1) -> float:
    """A cheap upper bound of the spectral norm of a matrix or convolution, from one pass over W.

    sqrt(|W|_1 |W|_inf), the largest sums of absolute values over columns and over rows; of a matrix at most |W|_F. It
    bounds the spectral norm of W with all entries made positive too.

    >>> import torch
    >>> import weightspace as ws
    >>> w = torch.tensor([[1.0, -1.0], [1.0, 1.0]])
    >>> ws.spectral_norm(w) <= ws.linear.rough_bound(w)
    True
    """
    w = kernel.detach().double().abs()
    parts = w.flatten(2).sum(2) if w.dim() > 2 else w
    blocks = parts.chunk(groups)
    schur = max(math.sqrt(float(p.sum(0).max()) * float(p.sum(1).max())) for p in blocks) if w.numel() else 0.0
    bound = min(schur, float(w.norm())) if w.dim() == 2 else schur
    return bound * (1 + 4 * w.numel() * torch.finfo(torch.float64).eps)


def _on_grid(kernel: Tensor, grid: list[int]) -> float:
    """An upper bound of the largest |K(t)|_2 over the grid; half of it for a real kernel: t and -t are alike."""
    series = torch.fft.rfftn(kernel, s=grid, dim=tuple(range(2, kernel.dim())))
    matrices = series.flatten(2).movedim(-1, 0)
    wide = matrices.shape[1] < matrices.shape[2]
    parts = matrices.split(max(1, (1 << 24) // matrices[0].numel()))
    rough = torch.cat([_powers(part, _POWERS[0]) for part in parts])
    guess = float(_powers(matrices[rough.topk(min(8, len(rough))).indices], _POWERS[1]).max())
    return max(_certified(part @ part.mH if wide else part.mH @ part, guess) for part in parts)


def _powers(matrices: Tensor, steps: int) -> Tensor:
    """Lower bounds of sigma_1 of every matrix, by a number of steps of the power method."""
    v = _start((matrices.shape[-1], 1), matrices, 0).expand(len(matrices), -1, -1)
    size = v.norm(dim=1, keepdim=True)
    for _ in range(steps):
        v = matrices.mH @ (matrices @ (v / size.clamp_min(torch.finfo(torch.float64).tiny)))
        size = v.norm(dim=1, keepdim=True)
    return size.flatten().sqrt()


def _certified(grams: Tensor, guess: float) -> float:
    """sqrt(mu) for the first mu above the square of `guess` for which mu I - G has a Cholesky factor, for all G."""
    n = grams.shape[-1]
    trace = float(grams.diagonal(dim1=-2, dim2=-1).real.sum(-1).max())
    slack = 8 * (n + 2) * torch.finfo(torch.float64).eps * trace
    mu, eye = guess**2 * (1 + _ABOVE) ** 2, torch.eye(n).to(grams)
    for _ in range(_TRIES):
        failed = torch.linalg.cholesky_ex(mu * eye - grams).info != 0 if trace else torch.zeros(0)
        if not bool(failed.any()):
            return math.sqrt(mu + slack)
        grams, mu = grams[failed], max(mu * (1 + 4 * _ABOVE), slack)
    return math.sqrt(trace + slack)


def _krylov(
    forward: Callable[[Tensor], Tensor],
    backward: Callable[[Tensor], Tensor],
    start: Tensor,
    tolerance: float,
    pause: int = 1,
) -> float:
    """sigma_1 on a growing Krylov space, until `pause` steps add less than `tolerance` of it, or nothing is left."""
    basis, images = torch.linalg.qr(start)[0], []
    block, seen = basis, 0.0
    for k in range(1, _STEPS + 1):
        images.append(forward(block))
        block = _outside(basis, backward(images[-1]))
        if k % pause == 0 or not block.shape[1]:
            before, seen = seen, float(torch.linalg.matrix_norm(torch.cat(images, 1).double(), 2))
            if seen - before <= tolerance * seen or not block.shape[1]:
                break
        basis = torch.cat([basis, block], 1)
    return seen


def _outside(basis: Tensor, new: Tensor) -> Tensor:
    """An orthonormal basis of what the columns of `new` add to the span of `basis`, rounding left out."""
    sizes = new.norm(dim=0)
    least = len(basis) ** 0.5 * torch.finfo(new.dtype).eps * float(sizes.max())
    for _ in range(2):
        new = new - basis @ (basis.T @ new)
        sizes = new.norm(dim=0)
        kept = sizes > 100 * least
        new = new[:, kept] / sizes[kept]
        least = len(basis) ** 0.5 * torch.finfo(new.dtype).eps
    if new.shape[1] < 2:
        return new - basis @ (basis.T @ new)
    q, r = torch.linalg.qr(new[:, : basis.shape[0] - basis.shape[1]])
    q = q[:, r.diagonal().abs() > 1000 * least]
    return q - basis @ (basis.T @ q)


def _start(shape: tuple[int, int], like: Tensor, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(like)


def _finite(w: Tensor) -> Tensor:
    if not bool(w.sum().isfinite() or w.isfinite().all()):
        raise WeightspaceError("NaN or infinity in a weight; give weights from before training diverged")
    return w if w.dtype in (torch.float32, torch.float64) else w.float()
