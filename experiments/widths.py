"""Networks of two widths on one line: the barrier of narrow and wide pairs, against pairs of equal width.

    python -m experiments.widths [pairs back] [--data DIR] [--seeds 0 1 2] [--quick]

Claim: networks of different widths are joined by lines of low loss once semi-permutations put units that are alike in
one place (Theus et al., "Generalized linear mode connectivity for transformers", 2025). The narrow network is widened
to the architecture of the wide one, so that its function stays; what is measured is where its units go. A pair with
seed k is of the networks 2k and 2k + 1. Equal width is the case of Git Re-Basin (Ainsworth, Hayase, Srinivasa, 2023).
"""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace
from functools import cache, partial
from typing import Any

import weightspace as ws
from experiments.nets import QUICK, Lab, Size
from experiments.record import Job, Record, block, command, number, percent

KINDS = ("mlp", "cnn")
SHARES = {"the same": 1, "half": 2, "a quarter": 4}
WAYS = ("units in any order", "weights, no data", "activations", "activations, halves of units")
FULL = Size(width=256)
POINTS = 11


def pairs(lab: Lab, seed: int) -> Iterator[Job]:
    """A wide network and one of the same width or less, brought to it in several ways."""
    for kind in KINDS:
        for share in SHARES:
            ends = cache(partial(_ends, lab, kind, share, seed))
            for way in WAYS:
                yield f"pairs/{kind}/{share}/{way}/{seed}", partial(_pair, lab, way, ends)


def _ends(lab: Lab, kind: str, share: str, seed: int) -> tuple[ws.Net, ws.Net]:
    return lab.net(kind, 2 * seed), lab.net(kind, 2 * seed + 1, lab.size.width // SHARES[share])


def _pair(lab: Lab, way: str, ends: Any) -> dict[str, Any]:
    wide, narrow = ends()
    if way.endswith("halves of units"):  # two copies of every wide unit, which may take two narrow units
        wide = ws.widen(wide, 2, lab.train.example(2))
    group, began = ws.Symmetry.of(wide, lab.train.example(2)), time.process_time()
    if way.startswith("activations"):
        end = group.align(narrow, to=wide, data=lab.train, method="activations+weights")
    elif way == "weights, no data":
        end = group.align(ws.symmetry.widen_toward(narrow, wide, lab.train.example(2)), to=wide, method="weights")
    else:
        end = ws.widen(narrow, wide, lab.train.example(2))
    seconds, right, path = time.process_time() - began, ws.accuracy(lab.test), ws.line(wide, end)
    few = lab.test.example(64)
    return {
        "barrier": path.barrier(lab.test, n=POINTS),
        "middle": right(path(0.5)),
        "ends": [right(wide), right(narrow)],
        "changed": float((end(few) - narrow(few)).detach().abs().max()),
        "seconds": seconds,
    }


def back(lab: Lab, seed: int) -> Iterator[Job]:
    """The mean of a wide and a narrow network, brought back to the narrow width."""
    for kind in KINDS:
        for share in [*SHARES][1:]:
            yield f"back/{kind}/{share}/{seed}", partial(_back, lab, kind, share, seed)


def _back(lab: Lab, kind: str, share: str, seed: int) -> dict[str, Any]:
    wide, narrow = _ends(lab, kind, share, seed)
    mean = ws.mean([wide, narrow], lab.group(wide), data=lab.train)
    taught = partial(ws.narrow, to=narrow, task=lab.train)
    merged = ws.symmetry.narrow_toward(mean, narrow, lab.train.example(2))
    slower = lambda done: 1e-3 * min(1.0, 2 - 2 * done)  # noqa: E731
    more = ws.flow(narrow, ws.learn(lab.train, 64), ws.Adam(), steps=500, size=slower)[-1]
    nets = (wide, narrow, mean, merged, taught(mean), taught(wide), more)
    right = ws.accuracy(lab.test)
    return {"accuracy": [right(net) for net in nets], "loss": [float(lab.test(net)) for net in nets]}


def tables(record: Record, _: str) -> dict[str, str]:
    """Mark in the README -> table."""
    lines = [line for kind in KINDS for share in SHARES for way in WAYS if (line := _line(record, kind, share, way))]
    head = "networks | width of the second | its units | barrier | right half way, % | ends, % | processor seconds"
    return block("widths pairs", head, lines) | block("widths back", _BACK, list(_lines_back(record)))


_BACK = "networks | width of the second | network | right, % | loss"
_NETS = (
    "wide",
    "narrow",
    "their mean, wide",
    "the mean, its units merged",
    "the mean, `narrow`",
    "the wide one, `narrow`",
    "the narrow one, 500 more steps on labels",
)


def _lines_back(record: Record) -> Iterator[list[str]]:
    for kind in KINDS:
        for share in SHARES:
            found = [record.median(f"back/{kind}/{share}", what) for what in ("accuracy", "loss")]
            for name, right, loss in zip(_NETS, *found, strict=True) if None not in found else ():
                yield [kind, share, name, percent(right), number(loss)]


def _line(record: Record, kind: str, share: str, way: str) -> list[str]:
    at = f"pairs/{kind}/{share}/{way}"
    if not record.of(at):
        return []
    cells = [number(record.median(at, "barrier")), percent(record.median(at, "middle"))]
    return [kind, share, way, *cells, percent(record.median(at, "ends")), number(record.median(at, "seconds"), 0)]


def _lab(given: Namespace) -> Lab:
    return Lab(replace(QUICK, width=128) if given.quick else FULL, given.data)  # of one unit no axis is read


main = command(
    "widths",
    __doc__,
    {"pairs": pairs, "back": back},
    _lab,
    tables,
    say=lambda row: " ".join(f"{name} {row[name]}" for name in ("barrier", "middle", "changed") if name in row),
)


if __name__ == "__main__":
    sys.exit(main())
