"""The outputs of a network that a task uses: logits, and the positions that have a label."""

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
    """A mask of the positions of outputs (example, .., class) that have a label: all but those labelled -100."""
    if y is None or y.is_floating_point() or y.shape != f.shape[:-1]:
        return torch.ones(f.shape[:-1], dtype=torch.bool, device=f.device)
    return (y != IGNORED).to(f.device)


def counted(f: Tensor, y: Tensor | None) -> Tensor:
    """The outputs of sequences, with zeros at positions without a label; other outputs unchanged."""
    return f.masked_fill(~labelled(f, y)[..., None], 0) if y is not None and y.dim() > 1 else f


def logits(raw: Any) -> Tensor:
    """The output tensor of what a network returns: a tensor, its `.logits`, or the first tensor in a dict or tuple.

    Raises `TaskError` where there is none.

    >>> import torch
    >>> import weightspace as ws
    >>> ws.task.logits({"logits": torch.zeros(2, 10), "loss": torch.tensor(1.0)}).shape
    torch.Size([2, 10])
    """
    raw = raw.get("logits", raw) if isinstance(raw, Mapping) else getattr(raw, "logits", raw)
    parts = list(raw.values()) if isinstance(raw, Mapping) else raw
    for part in [parts] if isinstance(parts, Tensor) else parts if isinstance(parts, (tuple, list)) else []:
        if isinstance(part, Tensor):
            return part
    raise TaskError(f"no output tensor in a {type(raw).__name__}; give output=, a function that picks it")
