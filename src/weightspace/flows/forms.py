"""The goal of a form: half the squared distance to the nearest constrained network, which a flow lowers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from weightspace.constraints.constraining import kind, project
from weightspace.constraints.form import Kind
from weightspace.net.net import Net
from weightspace.net.public import public
from weightspace.net.weights import Weights
from weightspace.task.goal import Goal

__all__ = ["conform"]


@dataclass(frozen=True)
class Conform(Goal):
    """The goal of `conform`: half the squared distance to the nearest network of a form."""

    kinds: Mapping[str, Kind]

    def value_and_gradient(self, net: Net, step: int) -> tuple[float, Weights]:
        """|w - P(w)|^2 / 2 and its gradient w - P(w), where P(w) is the nearest."""
        apart = net - project(net, self.kinds)
        return float(apart.norm()) ** 2 / 2, apart


@public
def conform(kinds: Mapping[str, Kind | str]) -> Goal:
    """A goal: half the squared distance |w - P(w)|^2 / 2 to the nearest constrained network P(w), see `project`.

    Under a `Pullback` with a drift budget, a flow along it comes near the form and keeps the outputs; `project` of its
    end, or `constrain`, then changes less than that of its start. `kinds`: see `constrain`.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> kinds = {"1.weight": "low-rank:6"}
    >>> path = ws.flow(net, ws.conform(kinds), ws.Pullback(task.take(40)), steps=10, size=0.3)
    >>> before, after = (float((ws.project(n, kinds) - n).norm()) for n in (net, path[-1]))
    >>> after < 0.5 * before
    True
    """
    return Conform({name: kind(text) for name, text in kinds.items()})
