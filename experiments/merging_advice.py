"""Should these networks be merged? What their weights predict, against the accuracy of the merged network: digits.

    python -m experiments.merging_advice [mlp cnn transformer] [--seeds 0 1 2 3 4 5] [--quick]

Fine-tunes of one network of digits on six changed tasks (noise, shifts, turned, mirrored, inverted), at four rates;
sets of two, three and six of them, pairs of one task, pairs with a stranger, and with a renumbered copy, both as they
are and aligned. Each set is merged in four ways and asked on the tasks of its members; "lost" is the mean over tasks of
the accuracy that the merged network lost, as a share of that of the member. Rules are fitted on even seeds and judged
on odd ones.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import combinations
from typing import Any

import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import Tensor

import weightspace as ws
from experiments.lineage import KINDS, School
from experiments.nets import tensors
from experiments.record import Job, Record, block, command, half_width, number, percent
from weightspace.merging.advice import interference
from weightspace.merging.part import Part
from weightspace.merging.recipe import Recipe, merged

RATES, EPOCHS = (3e-4, 1e-3, 3e-3, 1e-2), 6
TASKS = ("noisy", "left", "up", "mirrored", "turned", "bright")
WORKS = 0.05  # a share of the accuracy that is lost, up to which a merge counts as one that works
CHANCE = 0.1  # the accuracy of a guess: members that learnt nothing have nothing to lose
RECIPES = {
    "mean": ("linear", {}),
    "sum": ("task_arithmetic", {}),
    "ties": ("ties", {"density": 0.2}),
    "tsv": ("tsv_m", {}),
}
MEASURES = ("spread", "trust", "relative", "cosine", "conflict", "cancelled", "overlap", "singular")


def tasks_of(x: Tensor, y: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Inputs and labels of the six tasks."""
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(len(x)))
    changed = {
        "noisy": x + 0.3 * x.amax() * noise, "left": x.roll(-1, -1), "up": x.roll(-1, -2), "mirrored": x.flip(-1),
        "turned": x.rot90(1, (-2, -1)), "bright": x.amax() - x,
    }  # fmt: skip
    return {name: (changed[name], y) for name in TASKS}


class Lab:
    """Networks of one kind and seed, and what is measured of sets of them."""

    def __init__(self, kind: str, seed: int, quick: bool) -> None:
        self.school, self.seed = School(kind, seed, quick), seed
        x, y = tensors(ws.digits("train"))
        self.school.tasks = {"upright": (x, y), **tasks_of(x, y)}
        self.example, self.test = x[:2], tasks_of(*tensors(ws.digits("test")))
        self.module = self.school.start()
        self.rates = RATES[1:3] if quick else RATES
        self.generator = torch.Generator().manual_seed(seed)

    def asked(self, net: dict[str, Tensor], task: str) -> tuple[float, float]:
        """Loss and accuracy of a network on a task."""
        self.module.load_state_dict(net)
        x, y = self.test[task]
        with torch.no_grad():
            out = self.module(x)
        return float(F.cross_entropy(out, y)), float((out.argmax(-1) == y).float().mean())

    def sets(self) -> Iterator[tuple[str, float, Any, list[tuple[str, dict[str, Tensor]]]]]:
        """Kind of set, rate, base (None where there are two), and the networks with their tasks."""
        school = self.school
        first, second = (school.taught(school.start()) for _ in range(2))
        base, net = first.state_dict(), ws.Net.of(first)
        group = ws.Symmetry.of(net, self.example, linear=False)
        for rate in self.rates:
            tuned = {t: school.taught(first, t, EPOCHS, rate).state_dict() for t in TASKS}
            again = {t: school.taught(first, t, EPOCHS, rate).state_dict() for t in TASKS[::2]}
            other = {t: school.taught(second, t, EPOCHS, rate) for t in TASKS[:2]}
            triples = list(combinations(TASKS, 3))
            some = [triples[int(k)] for k in torch.randperm(len(triples), generator=self.generator)[:5]]
            for chosen in [*combinations(TASKS, 2), *some, TASKS]:
                yield "tasks", rate, base, [(t, tuned[t]) for t in chosen]
            for t in again:
                yield "one task", rate, base, [(t, tuned[t]), (t, again[t])]
            for k, t in enumerate(other):
                to = TASKS[2 + k]
                a = net.at(net.weights).load(tuned[to])
                b = ws.Net.of(other[t])
                yield "strangers", rate, None, [(to, tuned[to]), (t, dict(b.tensors))]
                yield "strangers, aligned", rate, None, [(to, tuned[to]), (t, dict(group.align(b, to=a).tensors))]
                c = group.sample(self.seed + k, "permutation")(net.load(tuned[t]))
                yield "renumbered", rate, None, [(to, tuned[to]), (t, dict(c.tensors))]
                yield "renumbered, aligned", rate, base, [(to, tuned[to]), (t, dict(group.align(c, to=a).tensors))]

    def measured(self, base: Any, members: Sequence[tuple[str, dict[str, Tensor]]]) -> dict[str, float | None]:
        """What the weights predict of a set, and how much worse each merge is than its members."""
        nets = [net for _, net in members]
        found = interference(nets, base)
        seen: dict[str, float | None] = {"spread": found.spread, "trust": found.trust}
        told = {
            "relative": float(found.relative.mean()), "cosine": found.mean(found.cosines),
            "conflict": found.mean(found.conflicts), "cancelled": found.cancelled,
            "overlap": found.mean(found.overlaps), "singular": found.interfering,
        }  # fmt: skip
        seen |= {name: value if base is not None else None for name, value in told.items()}
        own = [self.asked(net, task) for task, net in members]
        for name, (method, options) in RECIPES.items():
            if name != "mean" and base is None:
                seen[f"lost {name}"] = None
                continue
            parts = [Part(n, w.shape, [(net, n) for net in nets], None if base is None else (base, n))
                     for n, w in nets[0].items()]  # fmt: skip
            one = {part.name: merged(part, Recipe(method, options=options)) for part in parts}
            other = [self.asked(one, task) for task, _ in members]
            pairs = [*zip(own, other, strict=True)]
            seen[f"lost {name}"] = sum((a[1] - b[1]) / max(a[1], CHANCE) for a, b in pairs) / len(pairs)
            seen[f"rise {name}"] = sum(b[0] - a[0] for a, b in pairs) / len(pairs)
        return seen


def measured(kind: str, seed: int, quick: bool) -> dict[str, Any]:
    """All sets of a seed, as columns."""
    lab = Lab(kind, seed, quick)
    rows = [
        {"what": what, "rate": rate, "size": len(members), **lab.measured(base, members)}
        for what, rate, base, members in lab.sets()
    ]
    return {name: [row.get(name) for row in rows] for name in dict.fromkeys(name for row in rows for name in row)}


def main_jobs(_: Any, given: Namespace) -> Iterator[Job]:
    for seed in given.seeds:
        for kind in given.chosen:
            yield f"sets/{kind}/{seed}", partial(measured, kind, seed, given.quick)


# ------------------------------------------------------------------ tables


def column(row: dict[str, Any], name: str, kinds: Sequence[str] | None = None) -> list[float]:
    """A column over some kinds of sets."""
    return [v for v, what in zip(row[name], row["what"], strict=True) if kinds is None or what in kinds]


OF_ONE_BASE = ("tasks", "one task", "renumbered, aligned")


def correlation(row: dict[str, Any], name: str, against: str, kinds: Sequence[str] | None) -> float | None:
    """Spearman's rank correlation over the sets of one seed where both are there."""
    pairs = [(x, y) for x, y in zip(column(row, name, kinds), column(row, against, kinds), strict=True)
             if x is not None and y is not None]  # fmt: skip
    return float(spearmanr(*zip(*pairs, strict=True)).statistic) if len(pairs) > 3 else None


def shown(values: Sequence[float | None]) -> str:
    """The mean over seeds with its 95 % interval."""
    there = [v for v in values if v is not None]
    if not there:
        return ""
    mean = sum(there) / len(there)
    return f"{mean:.2f} ± {half_width(there):.2f}" if len(there) > 1 else f"{mean:.2f}"


def threshold(rows: Sequence[dict[str, Any]], name: str, bound: float) -> float:
    """The value below which merges work best told from those that do not: the most balanced accuracy."""
    pairs = sorted((x, lost <= bound) for row in rows for x, lost in zip(row[name], row["lost mean"], strict=True)
                   if x is not None)  # fmt: skip
    good = sum(ok for _, ok in pairs)
    bad, best, at, below, wrong = len(pairs) - good, -1.0, 0.0, 0, 0
    for k, (x, ok) in enumerate(pairs):
        below, wrong = below + ok, wrong + (not ok)
        score = below / max(1, good) + (bad - wrong) / max(1, bad)
        if score > best:
            best, at = score, (x + pairs[min(k + 1, len(pairs) - 1)][0]) / 2
    return at


def judged(rows: Sequence[dict[str, Any]], name: str, at: float, bound: float) -> tuple[float, float, int]:
    """Of sets below a threshold the share that works, of those above the share that does not; their number."""
    pairs = [(x <= at, lost <= bound) for row in rows for x, lost in zip(row[name], row["lost mean"], strict=True)
             if x is not None]  # fmt: skip
    low, high = ([ok for below, ok in pairs if below is side] for side in (True, False))
    return sum(low) / max(1, len(low)), 1 - sum(high) / max(1, len(high)), len(pairs)


def tables(record: Record, _: Any) -> dict[str, str]:
    """Mark in the README -> table."""
    kinds = [kind for kind in KINDS if record.of(f"sets/{kind}")]
    correlations = []
    for name in MEASURES:
        cells = [
            shown([correlation(row, name, "lost mean", OF_ONE_BASE) for row in record.of(f"sets/{k}")]) for k in kinds
        ]
        wide = [shown([correlation(row, name, "lost mean", None) for row in record.of(f"sets/{k}")])
                if name in ("spread", "trust") else "" for k in kinds]  # fmt: skip
        correlations.append([name, *cells, *wide])
    head = ["measure", *(f"{k}, one base" for k in kinds), *(f"{k}, all sets" for k in kinds)]
    found = block("merging_advice correlations", head, correlations if kinds else [])
    return found | _lost(record, kinds) | _rules(record, kinds)


def _lost(record: Record, kinds: Sequence[str]) -> dict[str, str]:
    rows = []
    whats = ("one task", "tasks", "renumbered", "renumbered, aligned", "strangers", "strangers, aligned")
    for what in whats:
        for kind in kinds:
            here = record.of(f"sets/{kind}")
            cells = []
            for name in ("lost mean", "lost sum", "lost ties", "lost tsv"):
                each = [[v for v in column(row, name, (what,)) if v is not None] for row in here]
                means = [sum(values) / len(values) for values in each if values]
                low = f" ± {100 * half_width(means):.1f}" if len(means) > 1 else ""
                cells.append(f"{100 * sum(means) / len(means):.1f}{low}" if means else "")
            works = [v <= WORKS for row in here for v in column(row, "lost mean", (what,))]
            spread = [v for row in here for v in column(row, "spread", (what,))]
            rows.append(
                [what, kind, f"{min(spread):.3f} to {max(spread):.3f}", *cells, percent(sum(works) / len(works), 0)]
            )
    head = "sets | networks | spread | lost, mean, % | lost, sum | lost, TIES | lost, TSV | mean works, %"
    return block("merging_advice lost", head, rows)


def _rules(record: Record, kinds: Sequence[str]) -> dict[str, str]:
    rows = []
    even = [
        row for k in kinds for key, row in record.rows.items() if key.startswith(f"sets/{k}/") and int(key[-1]) % 2 == 0
    ]
    odd = [row for k in kinds for key, row in record.rows.items() if key.startswith(f"sets/{k}/") and int(key[-1]) % 2]
    if not even or not odd:
        return {}
    for name in MEASURES:
        if name == "cosine":
            continue  # high is good
        at = threshold(even, name, WORKS)
        works, fails, count = judged(odd, name, at, WORKS)
        rows.append([name, number(at), percent(works, 0), percent(fails, 0), f"{count}"])
    head = "measure | threshold | works below, % | fails above, % | sets judged"
    return block("merging_advice rules", head, rows)


main = command(
    "merging_advice",
    __doc__,
    KINDS,
    lambda given: "digits",
    tables,
    jobs=main_jobs,
    data="not read",
    seeds=(0, 1, 2, 3, 4, 5),
    say=lambda row: f"{len(row['what'])} sets",
)


if __name__ == "__main__":
    sys.exit(main())
