"""Which of many networks came from which: a graph with the evidence on every edge.

Relatives are found as they are stored, by correlations that random members of the orbit do not reach; families whose
units are numbered otherwise are matched, one pair of networks for two families, and brought to one numbering. Averages
get several parents. All others are the cheapest directed spanning forest: the squared distance of parent and child
decides, and between directions of equal length the evidence for each (casts, zeros, kurtosis). Siblings are no edge.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from weightspace.atlas.arborescence import cheapest_parents
from weightspace.atlas.averages import Average
from weightspace.atlas.compared import MANY, Compared
from weightspace.atlas.gram import Distances
from weightspace.atlas.relations import Relations
from weightspace.atlas.relatives import SURE, Relation, is_pattern
from weightspace.atlas.renumbered import Matching, Moved, digest_of
from weightspace.atlas.side_by_side import Member
from weightspace.jobs.progress import Progress, silent
from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net
from weightspace.net.public import public
from weightspace.symmetry.element import Element
from weightspace.symmetry.symmetry import Symmetry

__all__ = ["Edge", "Lineage", "lineage"]


_DIRECTION = 1e-9  # the cost of a wrong direction, beside squared relative distances: it decides between equal lengths
_ROOT = 4.0  # the cost of a network without a parent: more than any squared relative distance
_LAYERS = 0.25  # of all tensors, in which a child is nearer to another parent
_AS_STORED = 1e-3  # how much nearer a renumbered parent must be
_EXCLUDED = 0.002  # a direction less likely than this is none


@public
@dataclass(frozen=True)
class Edge:
    """Network number `child` came from network number `parent`, with the kind of relatives and the evidence.

    `share`: the weight of this parent in an average, else 1. `renumbered`: whether the units of one of the two were
    renumbered or rescaled. `relation` is that of the parent (a) and the child (b).
    """

    parent: int
    child: int
    kind: str
    relation: Relation
    share: float = 1.0
    renumbered: bool = False

    def __str__(self) -> str:
        also = ", renumbered" if self.renumbered else ""
        share = f" ({self.share:.3g})" if self.kind == "average" else ""
        return f"{self.parent} -> {self.child}: {self.kind}{share}{also}: {self.relation.why}"


@public
@dataclass(frozen=True)
class Lineage:
    """Who came from whom among n networks. Made by `lineage`.

    `edges`: from parents to children; `siblings`: pairs that come from one network that is not among them, or whose
    direction cannot be told; `relations[i, j]` with i < j: the kind of every pair that was looked at; `averages`: those
    found. `distances`: all pairs, once renumbered networks are matched; `group[i]` is the number of the set of
    relatives that network i belongs to, and `renumbered[i]` whether it was matched to others of it.
    """

    labels: tuple[str, ...]
    edges: tuple[Edge, ...]
    siblings: tuple[tuple[int, int], ...]
    relations: Mapping[tuple[int, int], Relation]
    averages: tuple[Average, ...]
    distances: Distances
    group: tuple[int, ...]
    renumbered: tuple[bool, ...]
    notes: tuple[str, ...] = field(default=())

    def parents(self, child: int) -> list[int]:
        """The numbers of the parents of one network; none, one, or several of an average."""
        return [edge.parent for edge in self.edges if edge.child == child]

    def children(self, parent: int) -> list[int]:
        """The numbers of the children of one network."""
        return [edge.child for edge in self.edges if edge.parent == parent]

    @property
    def roots(self) -> list[int]:
        """The networks without parents."""
        born = {edge.child for edge in self.edges}
        return [k for k in range(len(self.labels)) if k not in born]


@public
def lineage(
    members: Sequence[Member],
    labels: Sequence[str] | None = None,
    *,
    net: Net | None = None,
    group: Symmetry | None = None,
    draws: int = 39,
    seed: int = 0,
    compared: Compared | None = None,
    progress: Progress = silent,
) -> Lineage:
    """The graph of who came from whom among networks of one architecture, from their weights alone.

    `group`: the symmetry group of the architecture, and `net` any network of it; with them relatives are told by a test
    (see `independence`), and renumbered, rescaled or rotated ones are found, at the cost of one matching for each pair
    of families. Without them relatives must be stored alike, and a note says so. Directions that cannot be told
    (exact copies, siblings) are as likely wrong as right: see `Edge.relation.confidence`. Networks that were distilled
    from others leave no trace in the weights. `compared`: the same networks by content, for comparisons that are known
    (see `Compared`). Of more than 300 networks, near ones are compared exactly, and a note says what is estimated.
    `progress`: told of every step. Raises as `pairwise` does.

    >>> import weightspace as ws
    >>> from weightspace.atlas.lineage import lineage
    >>> net, task = ws.demo.example()
    >>> group = ws.Symmetry.of(net, task.example(2))
    >>> half = {name: w.half() for name, w in net.tensors.items()}
    >>> shuffled = group.sample(3)(net)
    >>> found = lineage([net.tensors, half, shuffled.tensors, ws.demo.example(1)[0].tensors], net=net, group=group)
    >>> [(edge.kind, edge.renumbered) for edge in found.edges], found.group
    ([('cast', False), ('copy', True)], (0, 0, 0, 1))
    """
    if (net is None) != (group is None):
        raise WeightspaceError("a group and a network of its architecture go together; give both net= and group=")
    members = list(members)
    compared = Compared([f"network {k}" for k in range(len(members))]) if compared is None else compared
    still = [""] * len(members)
    stored = _telling(compared.distances(members, labels, still, progress), members, compared, net)
    look = Relations(members, compared, still, group, draws, seed)
    many = f"relatives among {len(members)} networks"
    sets = look.as_stored(_of_matrices(stored), lambda k: progress(many, k, 0))
    notes = [] if group is not None else ["no group: renumbered networks are not found, and relatives are not tested"]
    moved: dict[int, Element] = {}
    if net is not None and group is not None and max(sets) >= MANY:
        notes.append(f"{max(sets) + 1} sets of relatives are too many to be matched: renumbered networks are not found")
    elif net is not None and group is not None and max(sets) > 0:
        sets, moved = Matching(members, compared, net, group, seed, progress).sets(sets, stored)
    placed = [Moved(m, moved[k], net) if k in moved and net is not None else m for k, m in enumerate(members)]
    moves = [digest_of(moved[k]) if k in moved else "" for k in range(len(members))]
    distances = stored
    if moved:
        distances = _telling(compared.distances(placed, labels, moves, progress), members, compared, net)
    near = _of_matrices(distances)
    look = Relations(placed, compared, moves, group, draws, seed)
    relations = look.nearest(near, sets, lambda k: progress(f"the nearest of {len(members)} networks", k, len(members)))
    merged = _averages(look, near, relations, set(moved))
    compared.flush()
    edges, siblings = _graph(len(members), relations, merged, set(moved), near)
    renumbered = tuple(k in moved for k in range(len(members)))
    graph = distances.labels, edges, siblings, relations, tuple(merged)
    casts = (
        f"{distances.labels[i]} and {distances.labels[j]} are casts of one network that is not among these"
        for i, j in siblings
        if relations[i, j].evidence.get("rounded")
    )
    said = [*notes, *casts, *_estimates(distances), *dict.fromkeys(compared.notes)]
    return Lineage(*graph, distances, tuple(sets), renumbered, tuple(said))


def _estimates(distances: Distances) -> Iterator[str]:
    """What is said of a set whose distances are estimates in part."""
    if (told := distances.estimated) is not None:
        n = len(distances)
        share = float(told.exact.sum() - n) / (n * (n - 1))
        yield (
            f"{n} networks: each is compared exactly with its nearest, {share:.1%} of all pairs; other distances are "
            f"estimates from sketches, right to {told.error:.0%}, and relatives are looked for among the nearest"
        )


def _telling(distances: Distances, members: Sequence[Member], compared: Compared, net: Net | None) -> Distances:
    """Distances whose `matrices` are weights: a mask that all networks have would make strangers seem near."""
    if distances.estimated is not None:
        return distances
    kept, key = [], (compared.keys[0], "")
    for name in distances.matrices:
        same = not bool(distances.squares[distances.tensors.index(name)].any())

        def look(name: str = name) -> bytes:
            return b"yes" if is_pattern(members[0][name].detach()) else b"no"

        mask = same and compared.recalled("pattern", [key], [name], look) == b"yes"
        if not mask and not (net is not None and name in net.state):
            kept.append(name)
    return replace(distances, matrices=tuple(kept)) if kept else distances


def _of_matrices(distances: Distances) -> Distances:
    """Of the matrices alone: gains of norms are near 1 in unrelated networks too."""
    return distances.only(distances.matrices) if distances.matrices else distances


def _averages(
    look: Relations, near: Distances, relations: Mapping[tuple[int, int], Relation], moved: set[int]
) -> list[Average]:
    """The averages among relatives; a cast of an average comes from it, and is none itself."""
    made = _made(relations, moved)
    found = look.averages(near, _allowed(len(near), relations, moved))
    return [one for one in found if one.child not in made]


def _allowed(n: int, relations: Mapping[tuple[int, int], Relation], moved: set[int]) -> Tensor:
    """allowed[i, j] > 0: j may be a parent of i; of copies, those that were matched stand back."""
    allowed = torch.zeros(n, n)
    for (i, j), found in relations.items():
        if found.kind != "independent":
            allowed[i, j] = allowed[j, i] = 1.0
    for pair, found in relations.items():
        if found.kind == "copy" and len(moved & {*pair}) == 1:
            allowed[:, [*moved & {*pair}]] = 0.0
    return allowed


def _made(relations: Mapping[tuple[int, int], Relation], moved: set[int]) -> dict[int, int]:
    """Networks that are casts or quantisations of another one, and of which: the nearest, of copies one as stored."""
    found: dict[int, tuple[float, int]] = {}
    for (i, j), one in relations.items():
        if one.kind in ("cast", "quantised"):
            parent, child = (i, j) if one.direction > 0 else (j, i)
            distance = one.distance * (1 if (parent in moved) == (child in moved) else 1 + _AS_STORED)
            found[child] = min(found.get(child, (math.inf, -1)), (distance, parent))
    return {child: parent for child, (_, parent) in found.items()}


def _graph(
    n: int, relations: Mapping[tuple[int, int], Relation], merged: Sequence[Average], moved: set[int], near: Distances
) -> tuple[tuple[Edge, ...], tuple[tuple[int, int], ...]]:
    """The edges of the cheapest forest and of averages, and the pairs that are siblings in it."""
    made = _made(relations, moved)
    cost = _costs(n, relations, near.relative.numpy(), made, moved)
    of_average = {one.child: one for one in merged}
    for child, one in of_average.items():
        cost[:n, child] = np.inf
        cost[child, list(one.parents)] = np.inf
    parents = _to_grandparents(_without_cycles(cost, of_average, made), cost, near)
    edges = []
    for child, parent in enumerate(parents):
        if parent != n and child not in of_average:
            found = _seen_from(relations, parent, child)
            edges.append(Edge(parent, child, found.kind, found, renumbered=(parent in moved) != (child in moved)))
    for one in merged:
        why = " + ".join(f"{c:.3g} of {near.labels[p]}" for c, p in zip(one.weights, one.parents, strict=True))
        for parent, share in zip(one.parents, one.weights, strict=True):
            found = replace(_seen_from(relations, parent, one.child), direction=1, confidence=SURE, why=why)
            edges.append(Edge(parent, one.child, "average", found, share, (parent in moved) != (one.child in moved)))
    return tuple(edges), tuple(_siblings(relations, edges))


def _costs(
    n: int,
    relations: Mapping[tuple[int, int], Relation],
    relative: np.ndarray,
    made: Mapping[int, int],
    moved: set[int],
) -> np.ndarray:
    """The cost of every edge from a parent to a child, and from a root, number n.

    What is nearest to a cast or to its original is a matter of chance: the original is preferred. So are, of two
    copies, the one whose units are numbered as those of the child.
    """
    cost = np.full((n + 1, n + 1), np.inf)
    cost[n, :n] = _ROOT
    for (i, j), found in relations.items():
        if found.kind in ("siblings", "independent"):
            continue
        for parent, child, likely in ((i, j, found.forward()), (j, i, 1 - found.forward())):
            if likely <= _EXCLUDED:
                continue
            apart = relative[i, j]
            apart *= 1 if (parent in moved) == (child in moved) else 1 + _AS_STORED
            cost[parent, child] = apart**2 - _DIRECTION * math.log(max(likely, 1e-6))
            if parent in made:
                cost[parent, child] += 4 * relative[made[parent], parent] * apart
    for child, parent in made.items():
        kept = cost[parent, child]
        cost[:n, child], cost[parent, child] = np.inf, kept
    return cost


def _without_cycles(cost: np.ndarray, of_average: Mapping[int, Average], made: Mapping[int, int]) -> list[int]:
    """The parents in the cheapest forest in which no average is an ancestor of its own parents."""
    n = len(cost) - 1
    while True:
        parents = cheapest_parents(cost, n)[:n]
        ways = [_way(parents, node, child) for child, one in of_average.items() for node in one.parents]
        loop = next((way for way in ways if way), None)
        if loop is None:
            return parents
        cost[next(edge for edge in reversed(loop) if made.get(edge[1]) != edge[0])] = np.inf


def _to_grandparents(parents: Sequence[int], cost: np.ndarray, near: Distances) -> list[int]:
    """Parents, but for children that in a quarter of all tensors are nearer to the parent of their parent.

    A child of a child is nearer to its parent in all layers. Fine-tunes of one network share a part of what they
    change, often in few layers, and can be nearer to one another in all than to what they came from.
    """
    n = len(near)
    found, changed = list(parents), True
    while changed:
        changed = False
        for child, parent in enumerate(found):
            first = found[parent] if parent < n else n
            if first == n or not np.isfinite(cost[first, child]):
                continue
            if float((near.layers(parent, child) > near.layers(first, child)).double().mean()) >= _LAYERS:
                found[child], changed = first, True
    return found


def _way(parents: Sequence[int], node: int, ancestor: int) -> list[tuple[int, int]]:
    """The edges from an ancestor to a node; none where it is not an ancestor."""
    edges: list[tuple[int, int]] = []
    while node != ancestor:
        if node >= len(parents):
            return []
        edges.append((parents[node], node))
        node = parents[node]
    return edges


def _seen_from(relations: Mapping[tuple[int, int], Relation], parent: int, child: int) -> Relation:
    """The relation of a pair with the parent as its first network."""
    if parent < child:
        return relations[parent, child]
    found = relations[child, parent]
    return replace(found, direction=-found.direction)


def _siblings(relations: Mapping[tuple[int, int], Relation], edges: Sequence[Edge]) -> Iterator[tuple[int, int]]:
    """Pairs that look like siblings and whose parent is not among the networks."""
    parents: dict[int, set[int]] = {}
    for edge in edges:
        parents.setdefault(edge.child, set()).add(edge.parent)
    for (i, j), found in relations.items():
        if found.kind == "siblings" and not parents.get(i, set()) & parents.get(j, set()):
            yield i, j


def plain(found: Lineage) -> dict[str, Any]:
    """A lineage as plain numbers and text, to be stored or drawn."""
    edges = [
        {
            **{"parent": e.parent, "child": e.child, "kind": e.kind, "share": e.share, "renumbered": e.renumbered},
            **{"confidence": e.relation.confidence, "distance": e.relation.distance, "why": e.relation.why},
            **{"evidence": dict(e.relation.evidence)},
        }
        for e in found.edges
    ]
    return {"labels": list(found.labels), "edges": edges, "siblings": [list(pair) for pair in found.siblings]}
