"""Greedy averages of members modulo their symmetry group: a member stays if the held-out loss falls.

Source: Model soups: averaging weights of multiple fine-tuned models improves accuracy without increasing inference time
(Wortsman et al., 2022); here networks are aligned first, so that members that were trained apart may be averaged too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from weightspace.atlas.question import Members, opened, reason
from weightspace.jobs.progress import Tick
from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net
from weightspace.net.plain import plain
from weightspace.net.public import public
from weightspace.symmetry.align.repair import reset_statistics
from weightspace.symmetry.symmetry import Symmetry
from weightspace.task.task import Task

__all__ = ["Soup", "soup"]


@public
@dataclass(frozen=True)
class Soup:
    """The mean of the members that lowered the held-out loss; what `soup` returns.

    `kept`: those in it, the best alone first, and `losses`, the held-out loss after each; `refused`: member -> the loss
    that the mean would have had with it; `left_out`: member -> why it was not tried.
    """

    net: Net
    kept: tuple[str, ...]
    losses: tuple[float, ...]
    refused: dict[str, float]
    left_out: dict[str, str]

    def data(self) -> dict[str, Any]:
        """All results but the network, as plain data for JSON."""
        return plain({name: getattr(self, name) for name in ("kept", "losses", "refused", "left_out")})


@public
def soup(
    members: Members,
    task: Task,
    group: Symmetry | None = None,
    *,
    seed: int = 0,
    progress: Tick | None = None,
) -> Soup:
    """The greedy average of members: from the best on, each is added, and stays if the loss on `task` falls.

    Members are aligned to the best one first, where a `group` is given. The mean has equal weights and the dtypes of
    the best; running statistics are re-estimated on `task`. Members that cannot be opened or read the data, have NaN
    losses or another architecture than the best are listed. The loss is lowered on the very examples that choose:
    measure the result on others. Cost: two passes over `task` a member, and an alignment. Raises `WeightspaceError`
    where no member can read the data.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> found = ws.atlas.soup({str(s): ws.perturb(net, 0.3, seed=s) for s in range(4)}, task)
    >>> len(found.kept) + len(found.refused), found.losses[-1] <= found.losses[0]
    (4, True)
    """
    alone, left_out = _alone(members, task)
    if not alone:
        said = next((f"{name}: {why}" for name, why in left_out.items()), "there are none")
        raise WeightspaceError(f"no member to average: {said}")
    best, *others = sorted(alone, key=lambda name: alone[name])
    first = opened(members[best])
    middle, net, kept, losses = first.double(), first, [best], [alone[best]]
    refused: dict[str, float] = {}
    for number, name in enumerate(others):
        try:
            other = opened(members[name])
            first.check(other)
            other = other if group is None else group.align(other, to=first, seed=seed)
        except (WeightspaceError, OSError) as error:
            left_out[name] = reason(error)
            continue
        wider = middle.lerp(other.double(), 1 / (len(kept) + 1))
        tried = reset_statistics(_rounded(wider, first), task)
        loss = _loss(tried, task)
        if loss < losses[-1]:
            middle, net = wider, tried
            kept.append(name)
            losses.append(loss)
        else:
            refused[name] = loss
        if progress is not None:
            progress(number + 1, len(others))
    return Soup(net, tuple(kept), tuple(losses), refused, left_out)


def _alone(members: Members, task: Task) -> tuple[dict[str, float], dict[str, str]]:
    """The loss of every member, and why others have none."""
    found, left_out = dict[str, float](), dict[str, str]()
    for name, member in members.items():
        try:
            loss = _loss(opened(member), task)
        except (WeightspaceError, OSError) as error:
            left_out[name] = reason(error)
            continue
        if math.isfinite(loss):
            found[name] = loss
        else:
            left_out[name] = f"its loss is {loss}"
    return found, left_out


@torch.no_grad()
def _loss(net: Net, task: Task) -> float:
    return float(task(net))


def _rounded(net: Net, like: Net) -> Net:
    """The network in the dtypes of another."""
    return Net(like.architecture, like.weights.replace(net.weights), like.state.replace(net.state))
