"""The Hessian of a loss in the outputs: its action, its square roots, and labels drawn from the outputs.

With p the softmax of the outputs f of one label and c what its loss weighs, the Hessian of cross-entropy is
c (diag p - p p^T) = sum_k u_k u_k^T, u_k = sqrt(c p_k) (e_k - p). It is computed in float64: where p is nearly one of
the e_k, differences of float32 numbers would be all that is left of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weightspace.net import WeightspaceError
from weightspace.task import IGNORED, Task

__all__ = ["CurvatureError", "OutputHessian", "output_hessian"]

Root = tuple[float, Tensor]


class CurvatureError(WeightspaceError):
    """A task or a network without the second derivatives that were asked for."""


@dataclass(frozen=True)
class OutputHessian:
    """H of the summed loss of a batch in its outputs f; H does not mix examples. All tensors are of the form of f.

    `action(u)` is H u. `roots()` gives pairs (s, u_k), s = 1 or -1, with H_t = sum_k s u_k u_k^T for every example t.
    `scores(draws, generator)` gives d(log p(y))/df for labels y drawn from p(y) ~ exp(-loss), None where the loss is
    no likelihood.
    """

    action: Callable[[Tensor], Tensor]
    roots: Callable[[], Iterator[Root]]
    scores: Callable[[int, torch.Generator], Iterator[Tensor]] | None = None


def output_hessian(task: Task, f: Tensor, y: Tensor | None) -> OutputHessian:
    """H at the outputs f of a batch with labels y, which may be missing where H does not depend on them.

    In closed form for the metrics "cross-entropy" and "squared" and for torch's cross_entropy (classes last),
    mse_loss and binary_cross_entropy_with_logits, functions or modules; by autograd for other losses. Raises
    `CurvatureError` for outputs that are not finite, an aggregate that is not a sum or a mean over the examples and
    losses without a gradient; `TaskError` for labels that do not fit.
    """
    if task.aggregate not in ("mean", "sum"):
        raise CurvatureError(f"curvature is that of a sum over the examples; aggregate {task.aggregate!r} is no sum")
    f = f.detach()
    if not f.isfinite().all():
        raise CurvatureError("the outputs hold NaN or infinity; look for it in the data and the weights")
    count = 0
    if y is not None:
        y = y.to(f.device)
        slope, count = _slopes(task, f, y)
        if not slope.isfinite().all():
            raise CurvatureError("the loss of these outputs and labels has no finite gradient; look at the labels")
    metric = _Metric.of(task.metric)
    if metric.name == "softmax" and (metric.module is None or f.ndim == 2):
        return _softmax(f, _mass(metric, f, y, count))
    if metric.name == "squared":
        return _diagonal(f, _square(metric, f, y, count), "gaussian")
    if metric.name == "bernoulli" and y is not None:
        return _diagonal(f, *_bernoulli(metric, f, y.to(f.dtype), count))
    if y is None:
        raise CurvatureError("the loss needs labels; give Task(inputs, labels)")
    return _by_autograd(task, f, y)


def _slopes(task: Task, f: Tensor, y: Tensor) -> tuple[Tensor, int]:
    try:
        return task.slopes(f, y)
    except RuntimeError as error:
        raise CurvatureError("the loss has no gradient in the outputs; give one that can be differentiated") from error


@dataclass(frozen=True)
class _Metric:
    """Which loss it is, and the settings of torch's: `module` is None for the task's own metrics."""

    name: str
    module: Any = None

    @classmethod
    def of(cls, metric: Any) -> _Metric:
        """Known by name, function or type."""
        if metric is None:
            raise CurvatureError('no labels tell what the outputs are; give Task(inputs, metric="cross-entropy")')
        own = {"cross-entropy": cls("softmax"), "squared": cls("squared")}
        if isinstance(metric, str):
            return own.get(metric, cls("other"))
        for name, kind, function in _TORCH:
            if type(metric) is kind or metric is function:
                return cls(name, metric if type(metric) is kind else kind())
        return cls("other")

    def scale(self, count: int, terms: Any) -> Any:
        """A module that gives the mean of its terms stands for `count` times that."""
        return 1.0 if self.module is None or self.module.reduction == "none" else count / terms


_TORCH = (
    ("softmax", nn.CrossEntropyLoss, F.cross_entropy),
    ("squared", nn.MSELoss, F.mse_loss),
    ("bernoulli", nn.BCEWithLogitsLoss, F.binary_cross_entropy_with_logits),
)


# ------------------------------------------------------------------ softmax


def _mass(metric: _Metric, f: Tensor, y: Tensor | None, count: int) -> Tensor:
    """c: what the labels of every position weigh together, with a last dimension of one."""
    if y is None:
        return torch.ones_like(f[..., :1], dtype=torch.float64)
    if metric.module is None:
        known = y != IGNORED
        return (y.double().sum(-1, keepdim=True) if y.is_floating_point() else known.double()[..., None]).to(f.device)
    module, classes = metric.module, f.shape[-1]
    weight = torch.ones(classes, dtype=torch.float64) if module.weight is None else module.weight.double()
    weight, smooth = weight.to(f.device), module.label_smoothing
    if y.is_floating_point():
        mass = (y.double() * (1 - smooth) + smooth / classes) @ weight
        return (mass * metric.scale(count, len(f)))[:, None]
    known = y != module.ignore_index
    own = weight[torch.where(known, y, 0)] * known
    mass = own * (1 - smooth) + known * weight.sum() * smooth / classes
    return (mass * metric.scale(count, own.sum().clamp_min(torch.finfo(torch.float64).tiny)))[:, None]


def _softmax(f: Tensor, mass: Tensor) -> OutputHessian:
    if f.ndim < 2:
        raise CurvatureError(f"outputs of shape {tuple(f.shape)} have no axis of classes")
    p = f.double().softmax(-1)
    weighed = mass * p

    def action(u: Tensor) -> Tensor:
        u = u.double()
        return (weighed * (u - (p * u).sum(-1, keepdim=True))).to(f)

    def roots() -> Iterator[Root]:
        for at in range(f[0].numel() // f.shape[-1]):
            for k in range(f.shape[-1]):
                u = torch.zeros_like(p).view(len(p), -1, p.shape[-1])
                q, own = p.view_as(u)[:, at], weighed.view_as(u)[:, at, k, None]
                u[:, at] = -q
                u[:, at, k] += 1
                u[:, at] *= own.sqrt()
                yield 1.0, u.view_as(f).to(f)

    def scores(draws: int, generator: torch.Generator) -> Iterator[Tensor]:
        drawn = torch.multinomial(p.flatten(0, -2).cpu(), draws, replacement=True, generator=generator)
        for labels in drawn.T.to(f.device):
            hot = F.one_hot(labels, p.shape[-1]).view(p.shape)
            yield ((hot - p) * mass).to(f)

    likely = bool(((mass == 0) | ((mass - 1).abs() < 1e-3)).all())
    return OutputHessian(action, roots, scores if likely else None)


# ------------------------------------------------------------------ losses that do not mix outputs


def _square(metric: _Metric, f: Tensor, y: Tensor | None, count: int) -> Tensor:
    if y is None:
        count = len(f)
    twice = torch.full_like(f, 2.0, dtype=torch.float64) * metric.scale(count, f.numel())
    whole = y is None or y.is_floating_point() or y.ndim != f.ndim - 1 or f.shape[-1] == 1
    return twice if whole else twice * (y != IGNORED).double()[..., None]  # type: ignore[union-attr]


def _bernoulli(metric: _Metric, f: Tensor, y: Tensor, count: int) -> tuple[Tensor, str | None]:
    """H, which is diagonal; and whether the loss is -log p of labels 0 and 1."""
    module, s = metric.module, f.double().sigmoid()
    h = s * f.double().neg().sigmoid() * metric.scale(count, f.numel())
    if module.pos_weight is not None:
        h = h * (1 + (module.pos_weight.double() - 1) * y.double())
    if module.weight is not None:
        h = h * module.weight.double()
    plain = module.pos_weight is None and module.weight is None and metric.scale(count, f.numel()) == 1
    return h, "bernoulli" if plain else None


def _diagonal(f: Tensor, h: Tensor, law: str | None) -> OutputHessian:
    root = h.sqrt()

    def roots() -> Iterator[Root]:
        for k in range(f[0].numel()):
            u = torch.zeros_like(root).view(len(f), -1)
            u[:, k] = root.view_as(u)[:, k]
            yield 1.0, u.view_as(f).to(f)

    def scores(draws: int, generator: torch.Generator) -> Iterator[Tensor]:
        for _ in range(draws):
            if law == "gaussian":
                yield (root * torch.randn(f.shape, generator=generator, dtype=torch.float64).to(f.device)).to(f)
            else:
                s = f.double().sigmoid()
                drawn = torch.rand(f.shape, generator=generator, dtype=torch.float64).to(f.device) < s
                yield torch.where(drawn, f.double().neg().sigmoid(), -s).to(f)

    return OutputHessian(lambda u: (h * u).to(f), roots, scores if law else None)


# ------------------------------------------------------------------ any other loss


def _by_autograd(task: Task, f: Tensor, y: Tensor) -> OutputHessian:
    with torch.enable_grad():
        leaf = f.clone().requires_grad_()
        slope = torch.autograd.grad(task.summed(leaf, y)[0], leaf, create_graph=True)[0]

    def action(u: Tensor) -> Tensor:
        if not slope.requires_grad:  # a loss that is linear in the outputs
            return torch.zeros_like(f)
        return torch.autograd.grad(slope, leaf, u.to(f), retain_graph=True, materialize_grads=True)[0]

    def roots() -> Iterator[Root]:
        size = f[0].numel()
        rows = []
        for k in range(size):
            u = torch.zeros_like(f).view(len(f), -1)
            u[:, k] = 1
            rows.append(action(u.view_as(f)).view(len(f), -1).double())
        matrix = torch.stack(rows, 1)
        values, vectors = torch.linalg.eigh((matrix + matrix.mT) / 2)
        for sign in (1.0, -1.0):
            part = (sign * values).clamp_min(0)
            if not bool((part > 1e-12 * values.abs().amax(-1, keepdim=True)).any()):
                continue
            for k in range(size):
                yield sign, (part[:, k, None].sqrt() * vectors[:, :, k]).view_as(f).to(f)

    return OutputHessian(action, roots)
