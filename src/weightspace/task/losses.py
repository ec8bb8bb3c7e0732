"""Loss functions: the loss of every example, ignored labels, and settings of the losses of torch.

A loss of torch is recognised by its function or module with its settings, and called without reduction, for one value
an example. Any other function is tested as it is used: its value for an example must not depend on the other examples
of the batch, and where it returns one number for a batch, that must be the mean over the batch.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weightspace.net.differentiable import told
from weightspace.net.errors import InputError, WeightspaceError, first_line
from weightspace.net.inputs import shape
from weightspace.task.examples import TaskError

__all__ = ["Beside", "IGNORED", "Loss", "blamed", "fitted", "name_of"]


EVEN = {"bernoulli": 0.0, "probabilities": 0.5}  # the output at which both classes are equally likely


def descend(value: Any) -> float:
    """The value of a loss, after its gradient was added to `.grad`. Raises `TaskError` where it has none."""
    if not isinstance(value, Tensor) or value.ndim or not value.requires_grad:
        seen = f"shape {shape(value)}" if isinstance(value, Tensor) else type(value).__name__
        raise TaskError(f"the goal has no gradient in the weights ({seen}); give a differentiable 0-d tensor")
    try:
        value.backward()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise TaskError(f"the network has no derivative: {told(error)}") from error
    return float(value.detach())


IGNORED = -100  # torch's mark of a position without a label
_ROOM = 1 << 20  # numbers in the reference examples that later batches are combined with

# kinds: "softmax" and "log-probabilities" take class numbers, outputs have the classes on axis 1; "squared",
# "bernoulli" (of logits), "probabilities" and "pairs" set every output beside a label; "rows" gives one number a row
_TORCH: dict[Any, tuple[Any, str]] = {
    nn.CrossEntropyLoss: (F.cross_entropy, "softmax"),
    nn.NLLLoss: (F.nll_loss, "log-probabilities"),
    nn.MSELoss: (F.mse_loss, "squared"),
    nn.BCEWithLogitsLoss: (F.binary_cross_entropy_with_logits, "bernoulli"),
    nn.BCELoss: (F.binary_cross_entropy, "probabilities"),
    nn.L1Loss: (F.l1_loss, "pairs"),
    nn.SmoothL1Loss: (F.smooth_l1_loss, "pairs"),
    nn.HuberLoss: (F.huber_loss, "pairs"),
    nn.KLDivLoss: (F.kl_div, "pairs"),
    nn.PoissonNLLLoss: (F.poisson_nll_loss, "pairs"),
    nn.SoftMarginLoss: (F.soft_margin_loss, "pairs"),
    nn.HingeEmbeddingLoss: (F.hinge_embedding_loss, "pairs"),
    nn.MultiMarginLoss: (F.multi_margin_loss, "rows"),
    nn.MultiLabelMarginLoss: (F.multilabel_margin_loss, "rows"),
    nn.MultiLabelSoftMarginLoss: (F.multilabel_soft_margin_loss, "rows"),
}
_NOT_SETTINGS = {"input", "target", "size_average", "reduce"}
_CLASSES = ("softmax", "log-probabilities")
_PAIRED = ("squared", "bernoulli", "probabilities", "pairs")


@dataclass(frozen=True)
class Loss:
    """A loss function of outputs and labels, with its kind, reduction and settings.

    `kind`: one of torch's (see `_TORCH`), "apart" for a custom loss that has a reduction, "whole" for any other.
    `reduction`: "mean", "batchmean", "none", or "" where it is not known. `apart`: the loss with reduction="none".
    """

    given: Callable[..., Any]
    kind: str
    reduction: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    apart: Callable[..., Any] | None = None

    @classmethod
    def of(cls, function: Callable[..., Any]) -> Loss:
        """The description of a loss function. Raises `TaskError` for settings that cannot be used."""
        if known := _of_torch(function):
            torchs, kind, settings = known
            if kind in ("squared", "pairs") and settings.get("weight") is not None:
                raise TaskError(f"{name_of(function)} weighs the places of a batch; give a metric that weighs examples")
            reduction = settings.pop("reduction")
            if reduction not in ("mean", "none", "batchmean"):
                raise TaskError(f"{name_of(function)} has the reduction {reduction!r}; give 'mean' or 'none'")
            return cls(function, kind, reduction, settings, partial(torchs, reduction="none"))
        reduction = _reduction(function)
        if reduction in ("mean", "none"):
            return cls(function, "apart", reduction, apart=_unreduced(function))
        return cls(function, "whole")

    @property
    def name(self) -> str:
        """The name of the loss function."""
        return name_of(self.given)

    @property
    def ignored(self) -> int | None:
        """The ignored label (`ignore_index`), where it is not -100."""
        index = self.settings.get("ignore_index", IGNORED)
        return None if index == IGNORED else int(index)

    @property
    def paired(self) -> bool:
        """Whether every output has a label of its own, so that labels are not classes."""
        return self.kind in _PAIRED

    def setting(self, name: str, like: Tensor) -> Tensor | None:
        """A setting that is a tensor, in the dtype and on the device of the tensor `like`."""
        value = self.settings.get(name)
        return None if value is None else value.to(like.device, like.dtype)

    def weighs(self, y: Tensor | None) -> bool:
        """Whether the mean divides by the sum of the weights of the labels instead of by their number."""
        known = self.kind in _CLASSES and self.reduction == "mean"
        return known and self.settings.get("weight") is not None and y is not None and not y.is_floating_point()

    def masses(self, y: Tensor) -> Tensor:
        """The class weight of every label that is not ignored, in float64."""
        weight = self.settings["weight"].detach().double().to(y.device)
        counted = y[y != IGNORED]
        if len(counted) and (int(counted.min()) < 0 or int(counted.max()) >= len(weight)):
            seen = f"{int(counted.min())}..{int(counted.max())}"
            raise TaskError(f"{self.name} failed: labels {seen} for {len(weight)} weights of classes")
        return weight[counted]

    def turned(self, f: Tensor) -> Tensor:
        """Outputs with the classes on the last axis, where torch has them on axis 1."""
        return f.movedim(1, -1) if self.kind in _CLASSES and f.ndim > 2 else f

    def distances(self, f: Tensor, y: Tensor) -> Tensor:
        """The loss of every label that is not ignored (classes), or of every example. For losses of torch."""
        assert self.apart is not None
        settings = dict(self.settings)
        for name in ("weight", "pos_weight"):
            if (value := self.setting(name, f)) is not None:
                settings[name] = value
                if self.paired and value.ndim >= f.ndim and len(value) > 1:
                    raise TaskError(
                        f"{self.name}: {name} {tuple(value.shape)} weighs the places of a batch, not labels"
                    )
        if self.paired:
            f, y = fitted(f, y)
        if self.kind in _CLASSES:
            settings["ignore_index"] = IGNORED
        with blamed(lambda: f"{self.name} failed on outputs {tuple(f.shape)} and labels {tuple(y.shape)}"):
            found = self.apart(f, y, **settings)
        if self.kind in _CLASSES and not y.is_floating_point():
            keep = y != IGNORED
            return found.flatten() if bool(keep.all()) else found[keep]
        if self.kind in _CLASSES:
            return found.flatten()
        rows = found.reshape(len(found), -1)
        return rows.sum(1) if self.reduction == "batchmean" else rows.mean(1)


def fitted(f: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs and labels in one shape: labels (n,) fit outputs (n, 1). Raises `TaskError` for other shapes."""
    if y.numel() == f.numel() and {*f.shape[1:], *y.shape[1:]} <= {1}:
        y = y.reshape(f.shape)
    if f.shape != y.shape:
        raise TaskError(f"labels {tuple(y.shape)} do not fit outputs {tuple(f.shape)}: the shapes must be equal")
    return f, y.to(f.dtype)


def name_of(function: Any) -> str:
    """The name of a function or module; of a partial, that of its function."""
    function = function.func if isinstance(function, partial) else function
    return function if isinstance(function, str) else getattr(function, "__name__", type(function).__name__)


@contextmanager
def blamed(message: Callable[[], str]) -> Iterator[None]:
    """A context in which errors of torch, or of a user's function, become a `TaskError` with a message."""
    try:
        yield
    except InputError as error:
        raise TaskError(str(error)) from error
    except (WeightspaceError, torch.OutOfMemoryError):
        raise
    except (RuntimeError, LookupError, TypeError, ValueError, AssertionError) as error:
        raise TaskError(f"{message()}: {first_line(error)}") from error


def _of_torch(function: Any) -> tuple[Any, str, dict[str, Any]] | None:
    """For a loss of torch: its function, its kind and its settings; else None."""
    if type(function) in _TORCH:
        torchs, kind = _TORCH[type(function)]
        given = {name: getattr(function, name) for name in _settings(torchs) if hasattr(function, name)}
        return torchs, kind, given
    whole = function if isinstance(function, partial) else partial(function)
    for torchs, kind in _TORCH.values():
        if torchs is whole.func and not whole.args and whole.keywords.keys() <= _settings(torchs).keys():
            return torchs, kind, _settings(torchs) | whole.keywords
    return None


def _settings(torchs: Any) -> dict[str, Any]:
    parameters = inspect.signature(torchs).parameters
    return {name: parameters[name].default for name in parameters if name not in _NOT_SETTINGS}


def _reduction(function: Any) -> str | None:
    """The reduction of a custom loss: an attribute of a module, or a parameter of a function."""
    if isinstance(function, nn.Module):
        return getattr(function, "reduction", None)
    if isinstance(function, partial) and "reduction" in function.keywords:
        return function.keywords["reduction"]
    try:
        parameter = inspect.signature(function, follow_wrapped=False).parameters.get("reduction")
    except (TypeError, ValueError):
        return None
    return parameter.default if parameter is not None and isinstance(parameter.default, str) else None


def _unreduced(function: Any) -> Callable[..., Any]:
    if isinstance(function, nn.Module):
        other = copy.copy(function)
        other.reduction = "none"  # type: ignore[assignment]
        return other
    return partial(function, reduction="none")


# ------------------------------------------------------------------ tests of custom losses


class Beside:
    """A test that a custom loss of an example does not depend on the batch.

    The first examples of a pass are kept as a reference; each later batch is evaluated together with them.
    """

    def __init__(self) -> None:
        self.f: Tensor | None = None
        self.y: Tensor = torch.empty(0)
        self.of: Tensor | None = None  # the batch of labels they are from: it is not combined with them
        self.said: Tensor | None = None  # the loss of the reference examples

    def measured(self, loss: Loss, f: Tensor, y: Tensor, source: Tensor) -> tuple[Tensor, int]:
        """The losses (t,) of a batch and their number; or a 0-d tensor, their mean. `source`: y before conversion."""
        alone = self.said is None or self.of is source or _transformed(f)
        if loss.kind == "whole" and (alone or self.said is None or self.said.ndim == 0):
            d = _asked(loss, loss.given, f, y)
            if d.ndim == 0:
                return self._mean(loss, d, f, y, source, alone)
            if self.said is None and not _transformed(f):
                _each_beside_its_own(loss, f, y, d)
                self._keep(f, y, source, 1, d[:1])
            return d, len(d)
        d = self._distances(loss, f, y, source, alone)
        if loss.kind == "apart" and loss.reduction == "mean" and len(d) and not _transformed(f):
            _own_mean(loss, d, f, y)
        return d, len(d)

    def _distances(self, loss: Loss, f: Tensor, y: Tensor, source: Tensor, alone: bool) -> Tensor:
        """The loss of each example. Raises `TaskError` where that of the reference examples changes with the batch."""
        function = loss.apart or loss.given
        if not alone:
            try:
                d = _rows(loss, function, *self._joined(f, y))
            except TaskError:  # batches of two forms, or a function for one size of batch
                alone = True
        if alone:
            d = _rows(loss, function, f, y)
            if self.said is None and not _transformed(f):
                first = int((y[:1] != IGNORED).sum()) if len(d) != len(y) else 1
                self._keep(f, y, source, 1, d[:first])
            return d
        assert self.said is not None
        n = len(self.said)
        if not _near(d[:n], self.said):
            raise TaskError(
                f"{loss.name} gives an example another distance when other examples are in its batch, so its value "
                "would depend on the batches; give a metric of each example by itself"
            )
        return d[n:]

    def _mean(self, loss: Loss, value: Tensor, f: Tensor, y: Tensor, source: Tensor, alone: bool) -> tuple[Tensor, int]:
        """A batch mean, tested to be the mean over examples by evaluating the batch with the reference examples."""
        count = _count(y)
        if not count:
            return f.sum() * 0, 0
        if _transformed(f):
            return value, count
        f = f.detach()
        with torch.no_grad():
            if not alone:
                assert self.said is not None
                both = self._joined(f, y)
                _additive(loss, _asked(loss, loss.given, *both), [self.said, value], [_count(self.y), count])
            elif self.said is None:
                if f.shape != y.shape and f.numel() == y.numel() and len(f) > 1:  # labels may have been broadcast
                    sides = [slice(len(f) // 2), slice(len(f) // 2, None)]
                    parts = [_asked(loss, loss.given, f[side], y[side]) for side in sides]
                    _additive(loss, value, parts, [_count(y[side]) for side in sides])
                most = max(1, _ROOM // max(1, f[0].numel()))
                if _count(y[:most]):
                    said = value if most >= len(f) else _asked(loss, loss.given, f[:most], y[:most])
                    self._keep(f, y, source, most, said)
        return value, count

    def _keep(self, f: Tensor, y: Tensor, source: Tensor, most: int, said: Tensor) -> None:
        if _count(y[:most]):
            self.f, self.y, self.of, self.said = f.detach()[:most], y[:most], source, said.detach()

    def _joined(self, f: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The reference examples and these in one batch; shorter sequences are padded with ignored labels."""
        assert self.f is not None
        if f.ndim != self.f.ndim or y.ndim != self.y.ndim or (y.shape[1:] != self.y.shape[1:] and _real(y)):
            shapes = f"{tuple(self.f.shape)} and {tuple(f.shape)}"
            raise TaskError(f"no mean goes over batches of two forms, {shapes}; give a metric of each example")
        return _stacked(self.f.to(f), f, 0), _stacked(self.y.to(y), y, IGNORED)


def _rows(loss: Loss, function: Callable[..., Any], f: Tensor, y: Tensor) -> Tensor:
    """The losses of a custom function, one for each example, or for each labelled position."""
    d = _asked(loss, function, f, y, positions=loss.kind == "apart")
    if d.ndim == 0:
        raise TaskError(f"{loss.name} returned (); a metric returns one distance an example: ({len(y)},)")
    if loss.kind == "apart" and not _real(y) and d.numel() == y.numel():
        return d.reshape(y.shape)[y != IGNORED]
    return d if d.ndim == 1 else d.reshape(len(d), -1).mean(1)


def _asked(loss: Loss, function: Callable[..., Any], f: Tensor, y: Tensor, positions: bool = False) -> Tensor:
    with blamed(lambda: f"{loss.name} failed on outputs {tuple(f.shape)} and labels {tuple(y.shape)}"):
        d = function(f, y)
    fits = isinstance(d, Tensor) and (not d.ndim or d.shape == (len(y),))
    if not fits and not (positions and isinstance(d, Tensor) and len(d) in (len(y), y.numel())):
        seen = tuple(d.shape) if isinstance(d, Tensor) else type(d).__name__
        raise TaskError(f"{loss.name} returned {seen}; a metric returns one distance an example: ({len(y)},)")
    return d


def _each_beside_its_own(loss: Loss, f: Tensor, y: Tensor, d: Tensor) -> None:
    """Raise `TaskError` where labels are broadcast against outputs: the losses of half a batch are then different."""
    if f.shape == y.shape or f.numel() != y.numel() or len(f) < 2:
        return
    half = len(f) // 2
    with torch.no_grad():
        if not _near(_asked(loss, loss.given, f[:half].detach(), y[:half]), d[:half]):
            raise TaskError(
                f"{loss.name} broadcasts labels {tuple(y.shape)} against outputs {tuple(f.shape)}; "
                "give labels of the shape of the outputs"
            )


def _own_mean(loss: Loss, d: Tensor, f: Tensor, y: Tensor) -> None:
    with torch.no_grad():
        own = _asked(loss, loss.given, f.detach(), y)
    if own.ndim or not _near(own[None], d.mean()[None]):
        raise TaskError(
            f"the mean that {loss.name} gives is not that of its distances, so its value would depend on the batches; "
            "use reduction='none'"
        )


def _additive(loss: Loss, whole: Tensor, parts: list[Tensor], counts: list[int]) -> None:
    terms = [c * float(part) for c, part in zip(counts, parts, strict=True) if c]
    n, here, there = sum(counts), sum(counts) * float(whole), sum(terms)
    if not abs(here - there) <= _tolerance(whole) * max(abs(here), *map(abs, terms)):
        raise TaskError(
            f"{loss.name} of two batches together is {here / n:.6g}, where the mean over their examples is "
            f"{there / n:.6g}: its value would depend on the batches; give a metric of one distance an example"
        )


def _near(a: Tensor, b: Tensor) -> bool:
    a, b = a.detach(), b.detach()
    return bool((a - b).abs().max() <= _tolerance(a) * torch.maximum(a.abs().max(), b.abs().max()))


def _tolerance(x: Tensor) -> float:
    return max(1e-9, 1e3 * torch.finfo(x.dtype).eps) if x.is_floating_point() else 0.0


def _real(y: Tensor) -> bool:
    return y.is_floating_point()


def _count(y: Tensor) -> int:
    return len(y) if _real(y) else int((y != IGNORED).sum())


def _stacked(a: Tensor, b: Tensor, fill: int) -> Tensor:
    """Two batches as one, the shorter one padded."""
    most = [max(m, n) for m, n in zip(a.shape[1:], b.shape[1:], strict=True)]

    def padded(x: Tensor) -> Tensor:
        short = [k for m, n in zip(reversed(most), reversed(x.shape[1:]), strict=True) for k in (0, m - n)]
        return F.pad(x, short, value=fill) if any(short) else x

    return torch.cat([padded(a), padded(b)])


def _transformed(x: Tensor) -> bool:
    """Whether a tensor is inside a transform of torch.func, where its numbers cannot be read."""
    return bool(torch._C._functorch.is_functorch_wrapped_tensor(x))


def not_a_sum(value: Any, what: str) -> Any:
    """The value. Raises `TaskError` for a loss with the reduction "sum"."""
    reduction = getattr(value, "reduction", getattr(value, "keywords", {}).get("reduction"))
    if reduction == "sum":
        raise TaskError(f"the {what} sums over a batch, so batches would weigh unevenly; give reduction='mean'")
    return value
