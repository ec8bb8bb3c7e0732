"""Distances between any two networks on the same inputs, whatever their architectures: of outputs, and layer by layer.

Weights of two architectures have no distance; what can be compared is what the same examples do in both. Each distance
is blind to something, and is 0 for networks that differ in that:

- outputs: to all inside of the networks, and to inputs that the task does not hold;
- CKA, layer with layer: to rotations and one scale of a layer's units, to directions of little variance, and to
  whether later layers use what is alike;
- Procrustes, layer with layer: to rotations and one scale, and to whether later layers use what differs; unlike CKA a
  metric, in which small directions count more;
- neither knows weights: two layers of equal activations may be computed in different ways, and dead units do not count.

Sources: Similarity of neural network representations revisited (Kornblith, Norouzi, Lee, Hinton, 2019); Grounding
representation similarity with statistical testing (Ding, Denain, Steinhardt, 2021); Generalized shape metrics on neural
representations (Williams, Kunz, Kornblith, Linderman, 2021).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from torch import Tensor

from weightspace.inside.representation import similarity
from weightspace.inside.units import features
from weightspace.metric.distance import functional
from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net
from weightspace.net.plain import plain
from weightspace.net.public import public
from weightspace.task.classification import classifies
from weightspace.task.task import Task

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["BLIND", "Distances", "LayerPair", "distances"]

Layers: TypeAlias = Literal["units", "maps"]
BLIND = {
    "functional": "outputs say nothing about the inside, or about inputs that are not in these data",
    "cka": "CKA is blind to rotations and one scale of a layer, to directions of little variance, and to whether later "
    "layers use what is alike",
    "procrustes": "Procrustes distance is blind to rotations and one scale of a layer, and to whether later layers use "
    "what differs",
    "weights": "none of these sees weights: activations that are equal may be computed in different ways",
}
_ENOUGH = 5  # examples for every unit, below which Procrustes distances of any two layers are small


@public
@dataclass(frozen=True)
class LayerPair:
    """A layer of a and the layer of b that it is matched with: their unbiased CKA and Procrustes distance."""

    first: str
    second: str
    widths: tuple[int, int]
    cka: float
    procrustes: float


@public
@dataclass(frozen=True)
class Distances:
    """How far two networks are apart on the same inputs, whatever their architectures; what `distances` returns.

    `outputs`: "l2" sqrt(mean |f_a - f_b|^2), "relative" the same over the geometric mean of their sizes, "disagreement"
    of predictions and "kl" where outputs are classes; empty where the outputs differ in shape, `why` says so. `first`,
    `second`: the layers of both. `cka`, `procrustes`: of every layer of a (rows) with every one of b. `pairs`: layers
    matched one to one in the order of depth, for the largest sum of CKA. `examples`: on how many.
    """

    outputs: dict[str, float]
    why: str
    first: tuple[str, ...]
    second: tuple[str, ...]
    cka: Float[Tensor, "first second"]
    procrustes: Float[Tensor, "first second"]
    pairs: tuple[LayerPair, ...]
    examples: int

    @property
    def alike(self) -> float:
        """The mean CKA of the matched layers."""
        return sum(pair.cka for pair in self.pairs) / len(self.pairs)

    @property
    def apart(self) -> float:
        """The mean Procrustes distance of the matched layers, 0 to sqrt(2)."""
        return sum(pair.procrustes for pair in self.pairs) / len(self.pairs)

    @property
    def notes(self) -> list[str]:
        """What each distance is blind to, and what was not measured."""
        said = [f"{self.why}."] if self.why else [f"{BLIND['functional']}.".capitalize()]
        said += [f"{BLIND[name][0].upper()}{BLIND[name][1:]}." for name in ("cka", "procrustes", "weights")]
        if narrow := [p for p in self.pairs if self.examples < _ENOUGH * max(p.widths)]:
            said.append(
                f"{self.examples} examples are few for layers of {max(narrow[-1].widths)} units: Procrustes distances "
                f"of any two layers are small then; give {_ENOUGH * max(narrow[-1].widths):,} or more."
            )
        return said

    def table(self) -> str:
        """A Markdown table of the matched layers."""
        lines = [["layer of a", "layer of b", "units", "CKA", "Procrustes"], ["---"] * 5]
        for p in self.pairs:
            lines.append([p.first, p.second, f"{p.widths[0]}, {p.widths[1]}", f"{p.cka:.3f}", f"{p.procrustes:.3f}"])
        return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)

    def data(self) -> dict[str, Any]:
        """All results as plain data for JSON."""
        own = {name: getattr(self, name) for name in ("outputs", "why", "first", "second", "examples", "notes")}
        means = {"alike": self.alike, "apart": self.apart, "pairs": [dict(vars(pair)) for pair in self.pairs]}
        return plain({**own, **means, "cka": self.cka, "procrustes": self.procrustes})


@public
def distances(a: Net, b: Net, task: Task, layers: Layers = "units") -> Distances:
    """The distances of two networks of any architectures on the inputs of `task`: of outputs, and layer by layer.

    `layers`: what is compared inside, "units" for the outputs of ReLU-type functions or "maps" for those of linear maps
    and convolutions (see `features`); layers that are the same for every example are left out. CKA is unbiased, so that
    it is near 0, or below, for unrelated layers of any width. Labels are not used. Each distance is blind to something,
    which `Distances.notes` says: outputs to the inside, CKA and Procrustes to rotations of a layer, and to whether what
    is alike is used. Cost: two passes of both networks, and n^2 (p + q) multiplications for n examples and layers of p
    and q units. Raises `WeightspaceError` for fewer than four examples, NaN, and networks without such layers.

    >>> import torch, weightspace as ws
    >>> net, task = ws.demo.example()
    >>> deep = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 9), torch.nn.ReLU(), torch.nn.Linear(9, 9),
    ...                            torch.nn.ReLU(), torch.nn.Linear(9, 10))
    >>> found = ws.distances(net, ws.fresh(deep, 0), task)
    >>> found.cka.shape, [(pair.first, pair.second) for pair in found.pairs]
    (torch.Size([1, 2]), [('2', '2')])
    >>> ws.distances(net, net, task).apart < 1e-6 < found.apart
    True
    """
    if len(task) < 4:
        raise WeightspaceError(f"{len(task)} examples; give 4 or more, to compare layers on")
    outputs, why = _outputs(a, b, task)
    first, second = (_varied(features(task, layers)(net), name) for net, name in ((a, "first"), (b, "second")))
    alike, apart = similarity(first, second, "unbiased cka"), similarity(first, second, "procrustes")
    names = [*first], [*second]
    pairs = tuple(
        LayerPair(names[0][i], names[1][j], (first[names[0][i]][0].numel(), second[names[1][j]][0].numel()),
                  float(alike[i, j]), float(apart[i, j]))
        for i, j in in_order(alike.tolist())
    )  # fmt: skip
    return Distances(outputs, why, tuple(names[0]), tuple(names[1]), alike, apart, pairs, len(task))


def _outputs(a: Net, b: Net, task: Task) -> tuple[dict[str, float], str]:
    """The distances of outputs, or why there are none."""
    try:
        apart = functional(a, b, task)
    except WeightspaceError as error:
        for net in (a, b):
            task.outputs(net)  # raises where a network cannot read the inputs
        return {}, str(error)
    sizes = [math.sqrt(float(task.outputs(net).double().flatten(1).square().sum(1).mean())) for net in (a, b)]
    found = {"l2": apart, "relative": apart / math.sqrt(sizes[0] * sizes[1]) if all(sizes) else math.nan}
    shape = task.forward(a, task.example(1)).shape
    if len(shape) > 1 and shape[-1] > 1 and (task.metric is None or classifies(task)):
        found |= {"disagreement": functional(a, b, task, "disagreement"), "kl": functional(a, b, task, "kl")}
    return found, ""


def _varied(layers: dict[str, Tensor], which: str) -> dict[str, Tensor]:
    """The layers that are not the same for every example."""
    found = {name: x for name, x in layers.items() if bool((x != x[:1]).any())}
    if not found:
        raise WeightspaceError(f"every layer of the {which} network is the same for all examples; nothing to compare")
    return found


def in_order(gain: Sequence[Sequence[float]]) -> list[tuple[int, int]]:
    """The pairs (i, j), both growing, of the largest sum of gains, as many as the shorter side has.

    The alignment of two sequences (Needleman and Wunsch, 1970), every entry of the shorter one matched.
    """
    if len(gain) > len(gain[0]):
        return [(i, j) for j, i in in_order([*zip(*gain, strict=True)])]
    m, n = len(gain), len(gain[0])
    best = [[0.0] * (n + 1)] + [[-math.inf] * (n + 1) for _ in range(m)]
    for i in range(m):
        for j in range(n):
            best[i + 1][j + 1] = max(best[i + 1][j], best[i][j] + gain[i][j])
    found, i, j = list[tuple[int, int]](), m, n
    while i:
        if best[i][j] == best[i][j - 1]:
            j -= 1
        else:
            i, j = i - 1, j - 1
            found.append((i, j))
    return found[::-1]
