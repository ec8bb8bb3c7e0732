"""The Hessian of a loss in the outputs, the likelihood that belongs to a loss, and labels drawn from it.

With p the softmax of the outputs f of one label and c the weight of its loss, the Hessian of cross-entropy is
c (diag p - p p^T) = sum_k u_k u_k^T, u_k = sqrt(c p_k) (e_k - p). It is computed in float64: where p is nearly one of
the e_k, only rounding would be left of it in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from weightspace.net.errors import WeightspaceError, first_line
from weightspace.net.public import public
from weightspace.task.examples import TaskError, normal, uniform
from weightspace.task.losses import IGNORED, Loss, fitted, name_of
from weightspace.task.task import Task

__all__ = ["OutputHessian", "law_of", "likelihood", "nats", "output_hessian"]


Root = tuple[float, Tensor]
Scores = Callable[[int, int, int], Iterator[Tensor]]

_LAWS = {
    "cross-entropy": "softmax", "squared": "gaussian", "softmax": "softmax", "log-probabilities": "classes",
    "bernoulli": "bernoulli", "probabilities": "coins",
}  # fmt: skip


@public
@dataclass(frozen=True)
class OutputHessian:
    """The Hessian H of a batch's summed loss in its outputs f, block-diagonal over the examples.

    All tensors have the shape of f. `action(u)` is H u. `roots()` yields pairs (s, u_k), s = 1 or -1, with
    H_t = sum_k s u_k u_k^T for every example t. For a likelihood, H is E_y s s^T with s = d(log p(y))/df, and
    `scores(draws, seed, start)` yields s for labels y drawn from p; `start` is the number of the first example, so that
    the labels do not depend on the batch size. Made by `output_hessian` and `likelihood`.
    """

    action: Callable[[Tensor], Tensor]
    roots: Callable[[], Iterator[Root]]
    scores: Scores | None = None

    def factors(self, draws: int | None, seed: int, start: int) -> Iterator[Root]:
        """`roots()`; or pairs (1 / draws, s) with so many scores s, whose sum of s s^T is H on average."""
        if draws is None:
            return self.roots()
        if self.scores is None:
            raise WeightspaceError("the loss is no likelihood to draw labels from")
        return ((1.0 / draws, score) for score in self.scores(draws, seed, start))


@public
def output_hessian(task: Task, f: Tensor, y: Tensor | None) -> OutputHessian:
    """The Hessian of the loss in the outputs f of a batch with labels y; None where H does not depend on them.

    In closed form for the metrics "cross-entropy" and "squared" and for torch's cross_entropy, mse_loss and
    binary_cross_entropy_with_logits, functions, modules or partials, settings included; by autograd for other losses.
    Raises `WeightspaceError` for outputs that are not finite, an aggregate that is not a sum or a mean over the
    examples and losses without a gradient, or that mix examples; `TaskError` for labels that do not fit.

    >>> import torch, weightspace as ws
    >>> net, task = ws.demo.example()
    >>> f = task.outputs(net)
    >>> h = ws.curvature.output_hessian(task, f, task.labels())
    >>> h.action(f).shape, bool(h.action(torch.ones_like(f)).abs().max() < 1e-5)     # the softmax ignores shifts
    (torch.Size([60, 10]), True)
    """
    if task.aggregate not in ("mean", "sum"):
        raise WeightspaceError(
            f"curvature needs a sum or a mean over the examples, and the task's aggregate is {task.aggregate!r}"
        )
    f, y = _finite(f), None if y is None else y.to(f.device)
    if y is not None:
        slope = _slopes(task, f, y)
        if not slope.isfinite().all():
            raise WeightspaceError("the loss of these outputs and labels has no finite gradient; look at the labels")
    kind, loss = _kind(task), task.recognised
    if kind in ("cross-entropy", "softmax") and (y is not None or loss is None or loss.settings["weight"] is None):
        return _softmax(f, loss, _mass(loss, f, y) * task.share(y))
    if kind == "squared":
        return _diagonal(f, _square(loss, f, y))
    if kind == "bernoulli" and loss is not None and (y is not None or loss.settings["pos_weight"] is None):
        return _diagonal(f, _bernoulli(loss, f, y))
    if y is None:
        raise WeightspaceError("the loss needs labels; give Task(inputs, labels)")
    return _by_autograd(task, f, y)


@public
def law_of(task: Task) -> str:
    """The distribution of labels that belongs to a task's loss, by its name.

    "softmax", "gaussian", "bernoulli", "classes" or "coins". With "classes" the
    outputs are log-probabilities of classes, with "coins" probabilities of binary labels. Raises `WeightspaceError`,
    naming the loss, for one that is not a negative log-likelihood.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> ws.curvature.law_of(task)
    'softmax'
    """
    kind, loss = _kind(task), task.recognised
    weighed = loss is not None and any(loss.settings.get(name) is not None for name in ("weight", "pos_weight"))
    smooth = loss is not None and loss.settings.get("label_smoothing", 0.0)
    if kind not in _LAWS or weighed or smooth:
        why = " with weights" if weighed else " with smoothed labels" if smooth else ""
        known = '"cross-entropy", "squared", or torch\'s for classes, numbers or coins'
        raise WeightspaceError(f"{name_of(task.metric)}{why} is not a negative log-likelihood; give {known}")
    return _LAWS[kind]


@public
def likelihood(task: Task, f: Tensor, y: Tensor | None, *, unit: bool = True) -> OutputHessian:
    """The Fisher information in the outputs f: E_y s s^T, s = d(log p(y))/df, of the likelihood p of the loss.

    Zero where y is -100. With `unit`, a loss that is the mean over several outputs belongs to the product of their
    likelihoods, and squared error to a normal distribution of variance one; else p(y) ~ exp(-loss), so that the loss
    sets the variance. Raises `WeightspaceError` as `law_of`, and for outputs that are not probabilities where the loss
    needs them.

    >>> import torch, weightspace as ws
    >>> net, task = ws.demo.example()
    >>> f, y = task.outputs(net), task.labels()
    >>> fisher, hessian = ws.curvature.likelihood(task, f, y), ws.curvature.output_hessian(task, f, y)
    >>> torch.allclose(fisher.action(f), hessian.action(f), atol=1e-6)     # equal for cross-entropy
    True
    """
    law, loss, f = law_of(task), task.recognised, _finite(f)
    y = None if y is None else y.to(f.device)
    if law in ("softmax", "classes"):
        mass = _mass(loss, f, y)
        if not bool(((mass == 0) | ((mass - 1).abs() < 1e-3)).all()):
            raise WeightspaceError(
                f"soft labels must be probabilities that add up to one to have a likelihood; {task} has others"
            )
        return _softmax(f, loss, mass) if law == "softmax" else _classes(f, loss, mass)
    if law == "gaussian":
        h = _square(loss, f, y)
        return _diagonal(f, (h > 0).double() if unit else h, "gaussian")
    assert loss is not None
    several = f[0].numel()
    if not unit and several > 1:
        raise WeightspaceError(f"{loss.name} is the mean over {several} outputs, so exp(-loss) is not a likelihood")
    s = f.double().sigmoid() if law == "bernoulli" else f.double()
    h = s * (f.double().neg().sigmoid() if law == "bernoulli" else 1 - s)
    if law == "coins":
        if not bool(((s > 0) & (s < 1)).all()):
            raise WeightspaceError(
                f"{loss.name} needs outputs that are probabilities, and some are not between 0 and 1"
            )
        h = 1 / h
    return _diagonal(f, h, law)


@public
def nats(task: Task, f: Tensor) -> float:
    """The factor from an example's loss to its negative log-likelihood in nats, that of `likelihood` with `unit`.

    >>> import torch, weightspace as ws
    >>> squared = ws.Task(torch.zeros(4, 3), torch.zeros(4, 2), metric="squared")
    >>> ws.curvature.nats(squared, torch.zeros(4, 2))     # -log p = |f - y|^2 / 2
    0.5
    """
    loss, law = task.recognised, law_of(task)
    several = f[0].numel() if loss is not None and loss.paired else 1
    return several / 2 if law == "gaussian" else several


def _finite(f: Tensor) -> Tensor:
    if not f.isfinite().all():
        raise WeightspaceError("the outputs hold NaN or infinity; look for it in the data and the weights")
    return f.detach()


def _slopes(task: Task, f: Tensor, y: Tensor) -> Tensor:
    try:
        return task.slopes(f, y)[0]
    except RuntimeError as error:
        raise WeightspaceError(
            "the loss has no gradient in the outputs; give one that can be differentiated"
        ) from error


def _kind(task: Task) -> str:
    """The name of the task's metric, or the kind of a loss of torch."""
    if task.metric is None:
        raise WeightspaceError('without labels the loss is not known; give Task(inputs, metric="cross-entropy")')
    return task.metric if isinstance(task.metric, str) else task.recognised.kind if task.recognised else ""


# ------------------------------------------------------------------ classes


def _mass(loss: Loss | None, f: Tensor, y: Tensor | None) -> Tensor:
    """c: the total weight of the labels of every position, with a last dimension of one; f has classes last."""
    f = f if loss is None else loss.turned(f)
    if f.ndim < 2:
        raise WeightspaceError(f"outputs of shape {tuple(f.shape)} have no axis of classes")
    if y is None:
        return torch.ones_like(f[..., :1], dtype=torch.float64)
    if y.is_floating_point():
        y = y if loss is None else loss.turned(y)
    if (y.shape[:-1] if y.is_floating_point() else y.shape) != f.shape[:-1]:
        raise TaskError(f"labels {tuple(y.shape)} do not fit outputs {tuple(f.shape)}: the last axis is the class")
    known, classes = y != IGNORED, f.shape[-1]
    if loss is None:
        return (y.double().sum(-1) if y.is_floating_point() else known.double())[..., None]
    weight, smooth = loss.setting("weight", f.double()), loss.settings.get("label_smoothing", 0.0)
    weight = torch.ones(classes, dtype=torch.float64, device=f.device) if weight is None else weight
    if y.is_floating_point():
        return ((y.double() * (1 - smooth) + smooth / classes) @ weight)[..., None]
    own = weight[torch.where(known, y, 0)] * known
    return (own * (1 - smooth) + known * weight.sum() * smooth / classes)[..., None]


def _softmax(f: Tensor, loss: Loss | None, mass: Tensor) -> OutputHessian:
    p = (f if loss is None else loss.turned(f)).double().softmax(-1)
    weighed = mass * p

    def action(u: Tensor) -> Tensor:
        u = (u if loss is None else loss.turned(u)).double()
        return _back(weighed * (u - (p * u).sum(-1, keepdim=True)), f)

    def roots() -> Iterator[Root]:
        for at in range(p[0].numel() // p.shape[-1]):
            for k in range(p.shape[-1]):
                u = torch.zeros_like(p).view(len(p), -1, p.shape[-1])
                q, own = p.reshape(u.shape)[:, at], weighed.reshape(u.shape)[:, at, k, None]
                u[:, at] = -q
                u[:, at, k] += 1
                u[:, at] *= own.sqrt()
                yield 1.0, _back(u.view(p.shape), f)

    def scores(draws: int, seed: int, start: int) -> Iterator[Tensor]:
        for hot in _drawn(p, draws, seed, start):
            yield _back((hot - p) * mass, f)

    return OutputHessian(action, roots, scores)


def _classes(f: Tensor, loss: Loss | None, mass: Tensor) -> OutputHessian:
    """Outputs that are log p: the score of a label is its one-hot vector."""
    p = (f if loss is None else loss.turned(f)).double().exp()
    if not bool(((p.sum(-1) - 1).abs() < 1e-3).all()):
        raise WeightspaceError("nll_loss needs outputs that are log-probabilities, and these do not add up to one")

    def scores(draws: int, seed: int, start: int) -> Iterator[Tensor]:
        for hot in _drawn(p, draws, seed, start):
            yield _back(hot * mass, f)

    exact = _diagonal(f, _back(p * mass, f.double()))
    return OutputHessian(exact.action, exact.roots, scores)


def _back(u: Tensor, f: Tensor) -> Tensor:
    """From classes last to the shape of the outputs f."""
    return (u if u.shape == f.shape else u.movedim(-1, 1)).to(f)


def _drawn(p: Tensor, draws: int, seed: int, start: int) -> Iterator[Tensor]:
    """One-hot labels drawn from probabilities p."""
    cdf = p.cumsum(-1)
    for u in uniform(p.shape[:-1], draws, seed, start, p.device):
        labels = torch.searchsorted(cdf.flatten(0, -2), (u * cdf[..., -1]).reshape(-1, 1))[:, 0]
        yield F.one_hot(labels.clamp(max=p.shape[-1] - 1), p.shape[-1]).view(p.shape)


# ------------------------------------------------------------------ losses that do not mix outputs


def _square(loss: Loss | None, f: Tensor, y: Tensor | None) -> Tensor:
    twice = torch.full_like(f, 2.0 if loss is None else 2.0 / f[0].numel(), dtype=torch.float64)
    whole = y is None or y.is_floating_point() or y.ndim != f.ndim - 1 or f.shape[-1] == 1
    return twice if whole else twice * (y != IGNORED).double()[..., None]  # type: ignore[union-attr]


def _bernoulli(loss: Loss, f: Tensor, y: Tensor | None) -> Tensor:
    h = f.double().sigmoid() * f.double().neg().sigmoid() / f[0].numel()
    weight, positive = (loss.setting(name, f.double()) for name in ("weight", "pos_weight"))
    if positive is not None and y is not None:
        h = h * (1 + (positive - 1) * fitted(f.double(), y)[1])
    return h if weight is None else h * weight


def _diagonal(f: Tensor, h: Tensor, law: str | None = None) -> OutputHessian:
    root = h.sqrt()

    def roots() -> Iterator[Root]:
        for k in range(f[0].numel()):
            u = torch.zeros_like(root).view(len(f), -1)
            u[:, k] = root.reshape(u.shape)[:, k]
            yield 1.0, u.view_as(f).to(f)

    def scores(draws: int, seed: int, start: int) -> Iterator[Tensor]:
        for u in uniform(f.shape, draws, seed, start, f.device):
            if law == "gaussian":
                yield (root * normal(u)).to(f)
            elif law == "bernoulli":
                s, t = f.double().sigmoid(), f.double().neg().sigmoid()
                yield torch.where(u < s, t, -s).to(f)
            else:
                s = f.double()
                yield torch.where(u < s, 1 / s, -1 / (1 - s)).to(f)

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

    try:
        action(torch.zeros_like(f))
    except RuntimeError as error:
        name = name_of(task.metric)
        raise WeightspaceError(f"{name} has no second derivative in the outputs: {first_line(error)}") from error

    def roots() -> Iterator[Root]:
        size = f[0].numel()
        _apart(action, f)
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


def _apart(action: Callable[[Tensor], Tensor], f: Tensor) -> None:
    """Raise `WeightspaceError` where the Hessian mixes examples."""
    signs = torch.ones(len(f), *[1] * (f.ndim - 1), dtype=f.dtype, device=f.device)
    signs[1::2] = -1
    for at in (0, f[0].numel() - 1):
        u = torch.zeros_like(f).view(len(f), -1)
        u[:, at] = 1
        u = u.view_as(f)
        whole = action(u)
        if bool((action(signs * u) - signs * whole).abs().max() > 1e-4 * whole.abs().max()):
            raise WeightspaceError(
                "the loss of an example depends on the outputs of others, so that it has no Hessian of its own"
            )
