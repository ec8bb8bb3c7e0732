"""Two networks side by side: shuffled, aligned, and the straight line between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from weightspace.net.net import Net
from weightspace.path.path import line
from weightspace.symmetry.align.match import Method
from weightspace.symmetry.symmetry import Symmetry
from weightspace.web.playground.networks import Networks
from weightspace.web.playground.pictures import grid

__all__ = ["Aligned", "aligned", "between", "bring", "group_of", "shuffle", "straight"]

_SIDE = 40
_METHODS: tuple[Method, ...] = ("activations+weights", "weights")
_SMALL = 100  # hidden neurons up to which both methods are tried


@dataclass(frozen=True)
class Aligned:
    """The second network aligned onto the first, for these weights of both, and by which method."""

    first: Tensor
    second: Tensor
    flat: Tensor
    method: str

    def of(self, networks: Networks) -> bool:
        """Whether the networks are still those that were aligned."""
        first, second = (learner.flat for learner in networks.learners)
        return torch.equal(first, self.first) and torch.equal(second, self.second)


def group_of(networks: Networks) -> Symmetry:
    """The symmetry group of the architecture, read off the first network as it was drawn."""
    return Symmetry.of(networks.learners[0].begun, networks.train.x[:2])


def shuffle(networks: Networks, k: int, group: Symmetry) -> dict[str, Any]:
    """Apply a drawn element of the group to a network; says by how much an output changed at most."""
    before, draws = networks.net(k), networks.draws
    after = group.sample(networks.seed())(before)
    try:
        new = networks.checked(after)
    except Exception:
        networks.draws = draws
        raise
    told = {
        "changed": _changed(networks, k, before, after),
        "moved": float((after - before).norm()),
        "group": str(group),
    }
    networks.put({k: new})
    return told


def _changed(networks: Networks, k: int, before: Net, after: Net) -> float:
    """The largest absolute change of an output on the square and the data."""
    x = torch.cat([grid(_SIDE, torch.float64), networks.train.x, networks.test.x])
    old, new = (networks.learners[k].responses(x, net.weights.flat())[-1] for net in (before, after))
    return float((new - old).abs().max())


def aligned(networks: Networks, group: Symmetry) -> Aligned:
    """The second network moved by the element of the group with the lowest barrier, of those that matchers find."""
    first, second = networks.net(0), networks.net(1)
    task = networks.train.task()
    found: list[tuple[float, Net, str]] = []
    hidden = networks.state.depth * networks.state.width
    for method in _METHODS if hidden <= _SMALL else _METHODS[:1]:
        moved = group.match(second, first, task, method=method, seed=networks.state.seed).element(second)
        found.append((line(first, moved).barrier(task), moved, method))
    _, best, by = min(found, key=lambda one: one[0])
    return Aligned(first.weights.flat(), second.weights.flat(), networks.checked(best), by)


def bring(networks: Networks, found: Aligned) -> dict[str, Any]:
    """Put the aligned network in the place of the second; says how near the first it was and is."""
    first, before = networks.net(0), networks.net(1)
    after = networks.learners[1].net(found.flat)
    told = {
        "changed": _changed(networks, 1, before, after),
        "before": float((before - first).norm()),
        "after": float((after - first).norm()),
        "method": found.method,
    }
    networks.put({1: found.flat})
    return told


def straight(networks: Networks, found: Aligned, points: int) -> dict[str, Any]:
    """Losses on the straight line between the two networks, as they are and with the second aligned."""
    first = networks.net(0)
    told: dict[str, Any] = {"t": torch.linspace(0, 1, points, dtype=torch.float64).tolist()}
    for name, flat in (("plain", networks.learners[1].flat), ("aligned", found.flat)):
        path = line(first, networks.learners[1].net(flat.clone()))
        train, test = networks.train.task(), networks.test.task()
        losses = path.along({"train": train, "test": test}, points)
        told[name] = {
            "train": losses["train"].tolist(),
            "test": losses["test"].tolist(),
            "barrier": path.barrier(train, points),
        }
    return {**told, "method": found.method}


def between(networks: Networks, t: float, other: Tensor) -> Tensor:
    """All weights of the network at t on the line from the first to `other`."""
    first = networks.net(0)
    return line(first, networks.learners[1].net(other.clone()))(t).weights.flat()
