"""Who came from whom: zoos of digit networks of known history, and what their weights alone tell of it.

    python -m experiments.lineage [mlp cnn transformer] [--seeds 6 7 8] [--quick]

A zoo has 27 networks of one architecture: parents and independent networks, exact copies, copies renumbered and
rescaled, casts to float16, 8-bit quantisation, short and long fine-tunes, a fine-tune of one, a renumbered fine-tune,
one pruned, averages of two and three, and networks of one start with another order of the data, whose start is there or
is not. Rows that are there are not measured again.
"""

from __future__ import annotations

import copy
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import weightspace as ws
from experiments.nets import fit, tensors
from experiments.record import Job, Record, block, brief, command, number, percent
from weightspace.atlas.lineage import Lineage, lineage

EPOCHS, SHORT, LONG = 10, 2, 10


class Reader(nn.Module):
    """One block of attention over the eight rows of a digit."""

    def __init__(self, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.embed, self.place = nn.Linear(8, width), nn.Parameter(0.1 * torch.randn(8, width))
        self.queries, self.keys, self.values, self.out = (nn.Linear(width, width) for _ in range(4))
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.up, self.down, self.head = nn.Linear(width, 96), nn.Linear(96, width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x.flatten(1).unflatten(1, (8, 8))) + self.place
        z = self.first(h)
        q, k, v = (f(z).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.queries, self.keys, self.values))
        found = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        h = h + self.out(found)
        h = h + self.down(self.up(self.second(h)).relu())
        return self.head(h.mean(1))


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 10)
    )  # fmt: skip


def cnn() -> nn.Module:
    layers = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 10))


KINDS = {"mlp": mlp, "cnn": cnn, "transformer": Reader}


@dataclass
class Zoo:
    """Networks of known history: `edges` are (parent, child, kind), `siblings` pairs without a parent here."""

    names: list[str] = field(default_factory=list)
    members: list[dict[str, Tensor]] = field(default_factory=list)
    edges: list[tuple[int, int, str]] = field(default_factory=list)
    shares: dict[int, dict[int, float]] = field(default_factory=dict)
    siblings: list[tuple[int, int]] = field(default_factory=list)

    def add(self, name: str, net: ws.Net | dict[str, Tensor], parent: int | None = None, kind: str = "") -> int:
        self.names.append(name)
        self.members.append({n: t.clone() for n, t in (net.tensors if isinstance(net, ws.Net) else net).items()})
        if parent is not None:
            self.edges.append((parent, len(self.names) - 1, kind))
        return len(self.names) - 1

    def average(self, shares: dict[int, float]) -> int:
        first = self.members[next(iter(shares))]
        mixed = {n: sum((c * self.members[k][n] for k, c in shares.items()), torch.zeros(())) for n in first}
        child = self.add(f"average of {len(shares)}", mixed)
        self.edges += [(parent, child, "average") for parent in shares]
        self.shares[child] = shares
        return child


class School:
    """Trains networks of one architecture on digits, and fine-tunes them on changed ones."""

    def __init__(self, kind: str, seed: int, quick: bool) -> None:
        self.kind, self.seed, self.scale = kind, seed, 0 if quick else 1
        x, y = tensors(ws.digits("train"))
        noisy = x + 0.3 * x.amax() * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
        turned = {f"turned {90 * k}": (x.rot90(k, (-2, -1)), y) for k in (1, 2, 3)}
        others = {"mirrored": (x.flip(-1), y), "few": (noisy[:400], y[:400]), "other labels": (x, (y + 3) % 10)}
        self.tasks = {"upright": (x, y), "bright": (x.amax() - x, y), **turned, **others}
        self.drawn = 1000 * seed

    def start(self) -> nn.Module:
        self.drawn += 1
        torch.manual_seed(self.drawn)
        return KINDS[self.kind]()

    def taught(self, module: nn.Module, task: str = "upright", epochs: int = EPOCHS, lr: float = 3e-3) -> nn.Module:
        self.drawn += 1
        module = copy.deepcopy(module)
        x, y = self.tasks[task]
        for _ in fit(module, x, y, epochs=max(1, self.scale * epochs), seed=self.drawn, lr=lr):
            pass
        return module


def quantised(net: ws.Net) -> dict[str, Tensor]:
    """Matrices on a grid of 255 levels for each row."""
    found = dict(net.tensors)
    for name, w in found.items():
        if w.dim() > 1:
            step = w.abs().flatten(1).amax(1).clamp(min=1e-8).reshape(-1, *[1] * (w.dim() - 1)) / 127
            found[name] = (w / step).round() * step
    return found


def pruned(net: ws.Net, share: float = 0.5) -> dict[str, Tensor]:
    """The smallest weights of every matrix at zero."""
    found = dict(net.tensors)
    for name, w in found.items():
        if w.dim() > 1:
            found[name] = torch.where(w.abs() > w.abs().flatten().quantile(share), w, 0.0)
    return found


def half(member: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: w.half() for name, w in member.items()}


def made(school: School, group: ws.Symmetry) -> Zoo:
    """The zoo: four families, and networks alone."""
    zoo, of = Zoo(), ws.Net.of
    first, second, third = (school.taught(school.start()) for _ in range(3))
    a = zoo.add("first", of(first))
    zoo.add("copy", of(first), a, "copy")
    zoo.add("renumbered copy", group.sample(school.seed + 1)(of(first)), a, "copy")
    zoo.add("float16", half(of(first).tensors), a, "cast")
    zoo.add("8 bits", quantised(of(first)), a, "quantised")
    zoo.add("pruned", pruned(of(first)), a, "pruned")
    short, long = school.taught(first, "turned 90", SHORT), school.taught(first, "mirrored", LONG)
    b = zoo.add("short fine-tune", of(short), a, "fine-tune")
    zoo.add("long fine-tune", of(long), a, "fine-tune")
    zoo.add("fine-tune of the short one", of(school.taught(short, "few", 6)), b, "fine-tune")
    c = zoo.add("second", of(second))
    tuned = [
        zoo.add(f"second on {task}", of(school.taught(second, task, n)), c, "fine-tune")
        for task, n in (("turned 90", 3), ("few", 8))
    ]
    zoo.average(dict(zip(tuned, (0.3, 0.7), strict=True)))
    last = of(school.taught(second, "turned 180", 5))
    zoo.add("renumbered fine-tune", group.sample(school.seed + 2, "permutation")(last), c, "fine-tune")
    d = zoo.add("third", of(third))
    tuned = [
        zoo.add(f"third on {task}", of(school.taught(third, task, n)), d, "fine-tune")
        for task, n in (("turned 180", 2), ("bright", 6), ("other labels", 4))
    ]
    soup = zoo.average(dict(zip(tuned, (0.5, 0.3, 0.2), strict=True)))
    zoo.add("float16 of the average", half(zoo.members[soup]), soup, "cast")
    start, hidden = school.start(), school.start()
    s = zoo.add("start", of(start))
    for order in (1, 2):
        zoo.add(f"from the start, order {order}", of(school.taught(start)), s, "fine-tune")
    pair = [zoo.add(f"another start, order {order}", of(school.taught(hidden))) for order in (1, 2)]
    zoo.siblings.append((pair[0], pair[1]))
    for _ in range(2):
        zoo.add("alone", of(school.taught(school.start())))
    return zoo


def scored(zoo: Zoo, found: Lineage) -> dict[str, Any]:
    """Edges found, missed and wrong; copies stand for one another, and a copy has no direction."""
    same = list(range(len(zoo.names)))
    for parent, child, kind in zoo.edges:
        if kind == "copy":
            same[child] = same[parent]
    true = {(same[p], same[c]): kind for p, c, kind in zoo.edges if kind != "copy"}
    copies = sum(kind == "copy" for *_, kind in zoo.edges)
    edges = [(same[e.parent], same[e.child], e.kind) for e in found.edges]
    met = {pair for p, c, _ in edges for pair in ((p, c), (c, p)) if pair in true}
    turned = {(c, p) for p, c, _ in edges if (c, p) in true}
    loops = sum(p == c for p, c, _ in edges)
    wrong = [f"{zoo.names[p]} > {zoo.names[c]} ({k})" for p, c, k in edges
             if p != c and (p, c) not in true and (c, p) not in true]  # fmt: skip
    named = [(true[p, c], k) for p, c, k in edges if (p, c) in true]
    hits = len(met) + min(loops, copies)
    errors = [
        abs(dict(zip(one.parents, one.weights, strict=True)).get(k, 0.0) - share)
        for one in found.averages if one.child in zoo.shares
        for k, share in zoo.shares[one.child].items()
    ]  # fmt: skip
    together = {tuple(sorted((same[i], same[j]))) for i, j in found.siblings}
    return {
        "networks": len(zoo.names), "true": len(true) + copies, "found": len(edges), "hits": hits,
        "precision": hits / max(len(edges), 1), "recall": hits / (len(true) + copies),
        "turned": len(turned) / max(len(met), 1), "named": sum(k == kind for k, kind in named) / max(len(named), 1),
        "averages": len({one.child for one in found.averages} & zoo.shares.keys()) / len(zoo.shares),
        "false averages": len({one.child for one in found.averages} - zoo.shares.keys()),
        "share error": max(errors, default=1.0), "siblings": float(all(p in together for p in zoo.siblings)),
        "wrong": "; ".join(wrong),
        "missed": "; ".join(f"{zoo.names[p]} > {zoo.names[c]}" for p, c in sorted(true.keys() - met)),
        "reversed": "; ".join(f"{zoo.names[p]} > {zoo.names[c]}" for p, c in sorted(turned)),
    }  # fmt: skip


def measured(kind: str, seed: int, quick: bool) -> dict[str, Any]:
    """One zoo, and its lineage from the weights alone, the networks in a random order."""
    school = School(kind, seed, quick)
    net = ws.Net.of(school.start())
    group = ws.Symmetry.of(net, school.tasks["upright"][0][:2], linear=False)
    zoo = made(school, group)
    began = time.process_time()
    found = lineage(zoo.members, zoo.names, net=net, group=group, seed=seed)
    return scored(zoo, found) | {"seconds": time.process_time() - began}


HEAD = "zoo | networks | edges | precision, % | recall, % | direction wrong, % | kind right, % | averages, % | error of their weights | seconds"  # noqa: E501


def tables(record: Record, _: Any) -> dict[str, str]:
    """Mark in the README -> table: sums over the seeds."""
    rows = []
    for kind in KINDS:
        some = record.of(f"lineage/{kind}")
        if some:
            true, found, hits = (sum(row[name] for row in some) for name in ("true", "found", "hits"))
            mean = lambda name, rows=some: sum(row[name] for row in rows) / len(rows)  # noqa: E731
            shown = [number(mean("networks"), 0), f"{true}", percent(hits / found), percent(hits / true)]
            shown += [percent(mean(name)) for name in ("turned", "named", "averages")]
            rows.append([f"{kind}, {len(some)} zoos", *shown, brief(max(r["share error"] for r in some), 2),
                         number(mean("seconds"), 0)])  # fmt: skip
    return block("lineage", HEAD, rows)


def _jobs(_: Any, given: Namespace) -> Iterator[Job]:
    for seed in given.seeds:
        for kind in given.chosen:
            yield f"lineage/{kind}/{seed}", partial(measured, kind, seed, given.quick)


main = command(
    "lineage",
    __doc__,
    KINDS,
    lambda given: "digits",
    tables,
    jobs=_jobs,
    seeds=(6, 7, 8),  # rules and thresholds were chosen on 0 to 5
    say=lambda row: f"precision {row['precision']:.3f} recall {row['recall']:.3f} turned {row['turned']:.3f}",
)


if __name__ == "__main__":
    sys.exit(main())
