"""Outputs of a network as a task counts them: its logits, and the positions that have a label."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from weightspace.task.examples import TaskError
from weightspace.task.losses import IGNORED

if TYPE_CHECKING:
    from jaxtyping import Bool

__all__ = ["logits"]


def labelled(f: Tensor, y: Tensor | None) -> Bool[Tensor, " *positions"]:
    """Which positions of outputs (example, .., class) count: all but those that labels of this form mark with -100."""
    if y is None or y.is_floating_point() or y.shape != f.shape[:-1]:
        return torch.ones(f.shape[:-1], dtype=torch.bool, device=f.device)
    return (y != IGNORED).to(f.device)


def counted(f: Tensor, y: Tensor | None) -> Tensor:
    """Outputs of a sequence, with zeros where positions have no label."""
    return f.masked_fill(~labelled(f, y)[..., None], 0) if y is not None and y.dim() > 1 else f


def logits(raw: Any) -> Tensor:
    """The outputs in what a network returns: itself, `.logits`, or the first tensor of a dict or tuple."""
    raw = raw.get("logits", raw) if isinstance(raw, Mapping) else getattr(raw, "logits", raw)
    parts = list(raw.values()) if isinstance(raw, Mapping) else raw
    for part in [parts] if isinstance(parts, Tensor) else parts if isinstance(parts, (tuple, list)) else []:
        if isinstance(part, Tensor):
            return part
    raise TaskError(f"no output tensor in a {type(raw).__name__}; give output=, a function that picks it")
