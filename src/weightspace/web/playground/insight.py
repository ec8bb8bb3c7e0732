"""What is inside a network: the neurons that are on for an example, and the information in the weights."""

from __future__ import annotations

import warnings
from typing import Any

from weightspace.codes.weight_information import Unconverged, information
from weightspace.inside.path_overlap import dead, overlap, self_path
from weightspace.inside.units import gates
from weightspace.net.errors import WeightspaceError
from weightspace.web.playground.networks import Networks

__all__ = ["nats", "paths"]

_KINKS = ("relu", "leaky_relu")
_RANK, _PROBES = 10, 2


def paths(networks: Networks, k: int, example: int) -> dict[str, Any]:
    """Which neurons are on for a training example, and how many of them are on for each other example too.

    Raises `WeightspaceError` for activations that are never off, and for an example that is not there.
    """
    if networks.state.activation not in _KINKS:
        raise WeightspaceError(f"{networks.state.activation} neurons are not on or off; set activation to relu")
    if example >= len(networks.train):
        raise WeightspaceError(f"there are {len(networks.train)} training examples; example is {example}, from 0")
    measure = gates(networks.train.task())
    now, then = measure(networks.net(k)), measure(networks.learners[k].net(networks.start[k]))
    shared = overlap(now)[example].int().tolist()
    return {
        "on": [now[layer][example].int().tolist() for layer in now.layers],
        "shared": shared,
        "own": shared[example],
        "since": float(self_path(then, now)[example]),
        "dead": list(dead(now).values()),
    }


def nats(networks: Networks, k: int) -> dict[str, Any]:
    """The information in the weights about the training points, by the local method with few products."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Unconverged)  # it is among the notes
        found = information(
            networks.net(k), networks.train.task(), "local", rank=_RANK, probes=_PROBES, blocks=False,
            seed=networks.state.seed,
        )  # fmt: skip
    bounds = found.bracket
    return {
        "nats": found.value,
        "error": found.error,
        "dimension": found.dimension,
        "cost": None if bounds is None else bounds.value,
        "lower": None if bounds is None else bounds.lower,
        "upper": None if bounds is None else bounds.diagonal,
        "loss": found.loss,
        "layers": dict(found.layers),
        "notes": list(found.notes),
    }
