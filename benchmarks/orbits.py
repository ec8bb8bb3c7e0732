"""Copies of a network under its symmetry group: do alignment, canonical forms, distances and means treat them as one?

Every architecture of tests/architectures.py, for each kind of move alone and for all together, with elements g drawn at
random. The worst over all of them: how far `align` leaves g a from a; how far apart the canonical forms of a and g a
are, and their balanced forms (scales alone); the lower and the upper end of the distance modulo the group, all relative
to |a|; how much the outputs of the mean of a and g a differ from those of a, relative to the largest output; and how
many copies `compare` calls the same.

    python -m benchmarks.orbits [--elements 20] [names ..]     # three hours on one core
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import weightspace as ws
from benchmarks import measure
from weightspace.commands.compare import compare

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from architectures import CASES, noisy

EACH = ("permutation", "scale", "sign", "orthogonal", "linear")
KINDS = [*((kind,) for kind in EACH), EACH]
COLUMNS = ("align", "canonical", "balance", "lower", "upper", "mean")


def flat(tree: Any) -> Tensor:
    """All floating-point numbers of a tree of tensors, in one vector."""
    leaves = [t for t in pytree.tree_leaves(tree) if isinstance(t, Tensor) and t.is_floating_point()]
    return torch.cat([t.double().flatten() for t in leaves])


def apart(a: ws.Net, b: ws.Net) -> float:
    """|a - b| / |a|, buffers included."""
    x, y = flat([*a.tensors.values()]), flat([b.tensors[name] for name in a.tensors])
    return float((y - x).norm() / x.norm())


def change(a: ws.Net, b: ws.Net, x: Any) -> float:
    """The largest difference of an output, over the largest output of a."""
    with torch.no_grad():
        before, after = (flat(getattr(out, "logits", out)) for out in (a(x), b(x)))
    return float((after - before).abs().max() / before.abs().max())


def one(a: ws.Net, group: ws.Symmetry, x: Any, kinds: tuple[str, ...], seed: int) -> dict[str, float]:
    """What is measured of a and one copy of it."""
    b = group.sample(seed, kinds)(a)
    interval, size = ws.modulo(group)(a, b), float(a.weights.norm())
    return {
        "align": apart(a, group.align(b, to=a)),
        "canonical": apart(group.canonical(a), group.canonical(b)),
        "balance": apart(group.balance(a), group.balance(b)) if kinds == ("scale",) else 0.0,
        "lower": interval.lower / size,
        "upper": interval.upper / size,
        "strangers": float(compare(a, b, group).verdict.kind != "same"),
        "mean": change(a, ws.mean([a, b], group), x),
    }


def run(names: Iterable[str] = (), elements: int = 20, results: Path = measure.RESULTS) -> list[dict[str, Any]]:
    """A row for every architecture named (all by default); rows of others stay as they were measured before."""
    kept = {row["net"]: row for row in measure.kept("orbits", results) or []}
    for name in list(names) or list(CASES):
        a = noisy(CASES[name], 1)
        group, x = ws.Symmetry.of(a, CASES[name].example(0)), CASES[name].example(3)
        kinds = [k for k in KINDS if any(set(k) <= set(axis.kinds) for axis in group.axes) or k == KINDS[-1]]
        begun, row = time.process_time(), {"net": name, "group": str(group), "elements": elements * len(kinds)}
        try:
            seen = [one(a, group, x, k, seed) for k in kinds for seed in range(elements)]
            row |= {key: max(s[key] for s in seen) for key in seen[0]}
            row["strangers"] = sum(s["strangers"] for s in seen)
        except ws.WeightspaceError as error:
            row["refused"] = str(error)
        row["seconds"] = round(time.process_time() - begun, 1)
        kept[name] = row
        measure.keep("orbits", list(kept.values()), results)
        print(name, {key: value for key, value in row.items() if key not in ("net", "group")}, flush=True)
    return list(kept.values())


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """Architectures, the worst of each number, and how many copies are called the same."""
    body = []
    for r in rows:
        numbers = [f"{r[column]:.0e}" if column in r else "-" for column in COLUMNS]
        same = r["refused"] if "refused" in r else f"{r['elements'] - int(r['strangers'])} of {r['elements']}"
        body.append([f"`{r['net']}`", *numbers, same.replace("|", "/")])
    head = "network | aligned | canonical | balanced | distance, lower | upper | outputs of the mean | called the same"
    return measure.table(head, body)


_NAMES = {"nargs": "*", "metavar": "NET"}
main = measure.command("orbits", __doc__, run, summary, {"names": _NAMES, "--elements": 20})


if __name__ == "__main__":
    main()
