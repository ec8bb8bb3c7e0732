"""The red button: noise of a share of every tensor's norm, and what was expected, modelled and proven about it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import Tensor

from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net
from weightspace.trust.bounds.certificate import certificates
from weightspace.trust.expected_displacement import displacement
from weightspace.trust.perturbation import movable, perturb, stability
from weightspace.trust.relative import relative_trust
from weightspace.trust.sensitivity import breakdown
from weightspace.web.playground.networks import Networks, Shaken, scores

__all__ = ["curve", "gradient_breakdown", "proof", "shake"]

_DRAWS = 4  # backward passes for the expected displacement
_SIZES = 7


def shake(networks: Networks, percent: float, number: int) -> list[dict[str, Any] | None]:
    """Add noise of `percent` to network 1 or 2, or to both for 0; says what happened to each."""
    chosen = [networks.at(number)] if number else range(len(networks.learners))
    told: list[dict[str, Any] | None] = [None] * len(networks.learners)
    new: dict[int, Tensor] = {}
    shaken: dict[int, Shaken] = {}
    draws = networks.draws
    try:
        for k in chosen:
            before, seed, last = networks.net(k), networks.seed(), networks.shaken[k]
            after = perturb(before, percent / 100, seed=seed)
            new[k], flat = networks.checked(after), before.weights.flat()
            first, presses = (last.first, last.presses) if last else (flat, 0)
            shaken[k] = Shaken(first, flat, new[k], presses + 1, percent)
            told[k] = {
                **_foreseen(before, after, networks, percent, seed),
                "moved": _moved(networks, k, flat, new[k]),
                "presses": presses + 1,
                "since": {
                    "moved": _moved(networks, k, first, new[k]),
                    "model": relative_trust(networks.learners[k].net(first), after),
                },
                "before": _scored(networks, k),
            }
    except Exception:
        networks.draws = draws
        raise
    networks.put(new, shaken)
    return told


def _foreseen(before: Net, after: Net, networks: Networks, percent: float, seed: int) -> dict[str, float | None]:
    """What the first derivative and deep relative trust say of this noise."""
    model = relative_trust(before, after)
    if not percent or not movable(before):
        return {"expected": 0.0, "error": 0.0, "model": model}
    try:
        found = displacement(
            before, networks.test.task(), percent / 100, draws=_DRAWS, seed=seed, names=movable(before)
        )
    except WeightspaceError:  # outputs of zero have no relative displacement
        return {"expected": None, "error": None, "model": model}
    return {"expected": found.relative, "error": found.error, "model": model}


def _moved(networks: Networks, k: int, before: Tensor, after: Tensor) -> float:
    """|f' - f| / |f| on the test points; NaN where f is zero."""
    learner, x = networks.learners[k], networks.test.x
    old, new = (learner.responses(x, flat)[-1] for flat in (before, after))
    size = float(old.norm())
    return float((new - old).norm()) / size if size else math.nan


def _scored(networks: Networks, k: int) -> dict[str, dict[str, float]]:
    learner = networks.learners[k]
    return {"train": scores(learner, networks.train), "test": scores(learner, networks.test)}


def proof(networks: Networks, k: int) -> dict[str, Any]:
    """Proven bounds on the relative change of the outputs by the last noise, without and with the test points.

    Raises `WeightspaceError` where there was none.
    """
    last = networks.shaken[k]
    if last is None:
        raise WeightspaceError("no noise since the last training step or other change; send noise first")
    learner = networks.learners[k]
    before, after = learner.net(last.before), learner.net(last.after)
    told = {"percent": last.percent, "moved": _moved(networks, k, last.before, last.after)}
    try:
        plain, with_data = certificates(before, after, networks.test.task())
    except WeightspaceError as error:
        return {**told, "proven": None, "with_data": None, "refused": str(error)}
    return {**told, "proven": plain.relative, "with_data": with_data.relative, "refused": None}


def curve(networks: Networks, k: int, draws: int, most: float) -> dict[str, Any]:
    """The stability curve: what noise of growing size does to the outputs, the accuracy and the loss."""
    sizes = [float(eta) for eta in np.geomspace(most / 6400, most / 100, _SIZES)]
    found = stability(networks.net(k), networks.test.task(), sizes, draws, seed=networks.state.seed, proven=False)
    steps = [
        {
            "percent": 100 * step.relative,
            "moved": _spread(step.moved),
            "accuracy": _spread(step.accuracy),
            "loss": _spread(step.loss),
            "model": step.model,
            "expected": step.expected,
        }
        for step in found.steps
    ]
    return {"steps": steps, "accuracy": found.accuracy, "loss": found.loss}


def _spread(values: list[float]) -> dict[str, float]:
    return {"mean": float(np.mean(values)), "low": min(values), "high": max(values)}


def gradient_breakdown(networks: Networks, k: int, percent: float) -> dict[str, Any]:
    """How far the gradient turns along a relative gradient step of this size, beside its model."""
    (found,) = breakdown(networks.net(k), networks.train.task(), (percent / 100,))
    return {"percent": percent, "largest": found.gradient, "outputs": found.outputs, "model": found.model}
