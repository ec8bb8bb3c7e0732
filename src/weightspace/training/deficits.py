"""Deficits of the data for critical periods: blurred, noisy, upside-down or relabelled images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from weightspace.net.errors import WeightspaceError, first_line
from weightspace.net.inputs import each, leaves
from weightspace.net.public import public

__all__ = ["DEFICITS", "blur", "label_permutation", "noise", "vertical_flip"]


Deficit: TypeAlias = Callable[[Any, Any], tuple[Any, Any]]
Named: TypeAlias = Literal["blur", "noise", "label_permutation", "vertical_flip"]
NONE = "none"


# ------------------------------------------------------------------ deficits


@public
def blur(size: int = 4) -> Deficit:
    """A deficit that blurs images: average pooling over size x size pixels, then bilinear interpolation back.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> x, y = task.example(4), task.labels()[:4]
    >>> blurred, _ = ws.training.blur(4)(x, y)
    >>> blurred.shape, bool(blurred.std() < x.std())
    (torch.Size([4, 1, 8, 8]), True)
    """
    if size < 1:
        raise WeightspaceError(f"blur of {size} pixels; give 1 or more")

    def change(x: Tensor, y: Any) -> tuple[Tensor, Any]:
        _images(x, "blur")
        small = F.avg_pool2d(x, size, ceil_mode=True)
        return F.interpolate(small, x.shape[-2:], mode="bilinear", align_corners=False), y

    return _named(change, f"blur {size}")


@public
def noise(share: float = 1.0) -> Deficit:
    """A deficit that mixes in noise: (1 - share) x + share e, e Gaussian with the mean and deviation of the batch.

    The noise is drawn anew for every batch.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> x, y = task.example(4), task.labels()[:4]
    >>> noisy, _ = ws.training.noise(0.5)(x, y)
    >>> noisy.shape, bool((noisy != x).all())
    (torch.Size([4, 1, 8, 8]), True)
    """
    if not 0 <= share <= 1:
        raise WeightspaceError(f"a share of {share} of noise; give a number in [0, 1]")

    def change(x: Any, y: Any) -> tuple[Any, Any]:
        return each(lambda t: torch.lerp(t, t.mean() + t.std() * torch.randn_like(t), share), x), y

    return _named(change, f"noise {share:g}")


@public
def label_permutation(classes: int = 10, seed: int = 0) -> Deficit:
    """A deficit that renames classes: every class gets the label of another, the same one throughout.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> x, y = task.example(4), task.labels()[:4]
    >>> _, labels = ws.training.label_permutation(classes=10)(x, y)
    >>> bool((labels != y).all())
    True
    """
    if classes < 2:
        raise WeightspaceError(f"labels of {classes} classes cannot be permuted; give 2 or more")
    order = torch.randperm(classes, generator=torch.Generator().manual_seed(seed))
    to = torch.empty_like(order).scatter_(0, order, order.roll(-1))

    def change(x: Any, y: Tensor) -> tuple[Any, Tensor]:
        if y.is_floating_point() or int(y.min()) < 0 or int(y.max()) >= classes:
            raise WeightspaceError(f"label permutation needs labels from 0 to {classes - 1}; give classes=")
        return x, to.to(y.device)[y]

    return _named(change, "label permutation")


@public
def vertical_flip() -> Deficit:
    """A deficit that turns images upside down; the default control.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> x, y = task.example(4), task.labels()[:4]
    >>> flipped, _ = ws.training.vertical_flip()(x, y)
    >>> bool((flipped.flip(-2) == x).all())
    True
    """

    def change(x: Tensor, y: Any) -> tuple[Tensor, Any]:
        _images(x, "vertical flip")
        return x.flip(-2), y

    return _named(change, "vertical flip")


DEFICITS: Mapping[str, Callable[[], Deficit]] = {
    "blur": blur, "noise": noise, "label_permutation": label_permutation, "vertical_flip": vertical_flip,
}  # fmt: skip


def _named(change: Deficit, name: str) -> Deficit:
    change.__name__ = name
    return change


def _images(x: Any, name: str) -> None:
    if not isinstance(x, Tensor) or x.dim() != 4 or not x.is_floating_point():
        seen = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise WeightspaceError(f"{name} needs images (example, channel, height, width), got {seen}")


def deficit_of(value: Named | Deficit) -> Deficit:
    return DEFICITS[value]() if isinstance(value, str) else value


def name_of(change: Deficit) -> str:
    return getattr(change, "__name__", type(change).__name__)


def applied(change: Deficit, x: Any, y: Tensor) -> tuple[Any, Tensor]:
    """The batch with the deficit, its shapes checked."""
    try:
        new = change(each(torch.clone, x), y.clone())
        found = [tuple(t.shape) for t in (*leaves(new[0]), new[1])]
    except WeightspaceError:
        raise
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError) as error:
        raise WeightspaceError(
            f"the deficit {name_of(change)} failed on a batch (x, y): {first_line(error)}"
        ) from error
    before = [tuple(t.shape) for t in (*leaves(x), y)]
    if found != before or len(new) != 2:
        raise WeightspaceError(f"the deficit {name_of(change)} changes shapes {before} into {found}; it must keep them")
    return new
