"""A generator of digits: a decoder from a digit and four latent numbers to a picture, shown under weight noise."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weightspace.checkpoint.reader import read
from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net
from weightspace.net.seeds import derived
from weightspace.task.task import Task
from weightspace.trust.expected_displacement import displacement
from weightspace.trust.perturbation import perturb
from weightspace.trust.relative import relative_trust
from weightspace.web.playground.learner import LARGEST, sound

__all__ = ["DIGITS", "FILE", "LATENTS", "decoder", "pictures_of"]

FILE = Path(__file__).parents[1] / "static" / "digits.safetensors"
DIGITS, LATENTS, SIDE = 10, 4, 8
_HIDDEN = (128, 256)
_DRAWS = 4


def decoder() -> nn.Sequential:
    """One digit of ten and four latent numbers in, the logits of 64 pixels out; ReLU between three linear layers."""
    first, second = _HIDDEN
    hidden = nn.Linear(DIGITS + LATENTS, first), nn.ReLU(), nn.Linear(first, second), nn.ReLU()
    return nn.Sequential(*hidden, nn.Linear(second, SIDE * SIDE))


def inputs(rows: int, seed: int, tilt: float) -> Tensor:
    """For every row its latents, drawn from `seed` and moved by `tilt` along the first, with each of the ten digits."""
    latents = torch.randn(rows, LATENTS, generator=torch.Generator().manual_seed(seed))
    latents[:, 0] += tilt
    digits = F.one_hot(torch.arange(DIGITS), DIGITS).float()
    return torch.cat([digits.repeat(rows, 1), latents.repeat_interleave(DIGITS, 0)], 1)


def pictures_of(
    percent: float, presses: int, seed: int, rows: int, tilt: float, file: Path = FILE
) -> tuple[np.ndarray, dict[str, Any]]:
    """Pictures (rows, 10, 8, 8) after so many presses of noise, and how far the pixels' logits have moved.

    Raises `WeightspaceError` where the noise leaves what can be computed with.
    """
    net = Net.of(decoder()).load(read(file))
    x, noisy = inputs(rows, seed, tilt), net
    for k in range(presses if percent else 0):
        noisy = perturb(noisy, percent / 100, seed=derived(seed, "press", k) % 2**31)
    if not sound(noisy.weights.flat()):
        raise WeightspaceError(f"the generator's weights would grow beyond {LARGEST:g}; press less often")
    with torch.no_grad():
        before, after = net(x), noisy(x)
    told: dict[str, Any] = {
        "moved": float((after - before).norm() / before.norm()),
        "model": relative_trust(net, noisy),
        "expected": 0.0,
    }
    if percent:  # to first order, independent presses add up like the sides of right angles
        found = displacement(net, Task(x), percent / 100 * math.sqrt(presses), draws=_DRAWS, seed=seed)
        told |= {"expected": found.relative}
    shown = (255 * torch.sigmoid(after)).round().to(torch.uint8)
    return shown.view(rows, DIGITS, SIDE, SIDE).numpy(), told
