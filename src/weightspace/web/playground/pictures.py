"""Pictures of neurons: the response of each over the square [-1, 1]^2, as bytes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from weightspace.web.playground.learner import Learner

__all__ = ["grid", "pictures"]

_ZERO, _REACH = 128, 127


def grid(side: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The centres of side x side pixels, row by row from the top left: (side^2, 2)."""
    at = (2 * torch.arange(side, dtype=dtype) + 1) / side - 1
    return torch.stack([at.repeat(side), (-at).repeat_interleave(side)], 1)


def pictures(learner: Learner, flats: Sequence[Tensor], side: int, every: bool) -> tuple[np.ndarray, list[list[float]]]:
    """Pictures (network, picture, side, side) as uint8, and the scale of each; of all neurons, or of the output alone.

    The value of a pixel is (byte - 128) / 127 times the scale. The output is shown as tanh(f / 2) = 2 p - 1.
    """
    found, scales = [], []
    for flat in flats:
        rows = _rows(learner, flat, grid(side), every)
        if not bool(rows.isfinite().all()):  # beyond float32
            rows = _rows(learner, flat, grid(side, torch.float64), every)
        size = torch.maximum(rows.amax(1), -rows.amin(1))
        size[-1] = 1.0
        factor = torch.where(size > 0, _REACH / size.clamp(min=torch.finfo(size.dtype).tiny), 0.0)
        shown = rows.mul_(factor.clamp(max=torch.finfo(size.dtype).max)[:, None]).round_().add_(_ZERO)
        found.append(shown.clamp_(1, 255).to(torch.uint8).reshape(-1, side, side).numpy())
        scales.append(size.tolist())
    return np.stack(found), scales


def _rows(learner: Learner, flat: Tensor, x: Tensor, every: bool) -> Tensor:
    """The responses, (picture, pixel), a new tensor."""
    with torch.no_grad():
        *hidden, logits = learner.responses(x, flat)
        output = torch.tanh(logits / 2)
        return torch.cat([*hidden, output] if every else [output], 1).T.contiguous()
