"""Residual networks of ordinary width from two seeds, on CIFAR-10: the line between them, aligned and refined.

    python -m experiments.narrow [pairs] [--data DIR] [--seeds 0] [--quick] [--full --device cuda]

ResNet20 with BatchNorm is the known hard case: Git Re-Basin (Ainsworth, Hayase, Srinivasa, 2023) needs 32 times the
width for a line without a barrier. By default 15,000 images and 12 epochs; --full trains on all images for 60 epochs.
A pair with seed k is of the networks 2k and 2k + 1. Embedded digits without a folder, to try it.
"""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from typing import Any

import weightspace as ws
from experiments.nets import tensors
from experiments.record import Job, Record, block, command, number, percent
from experiments.residual import FULL, QUICK
from experiments.residual import Lab as Networks
from weightspace.symmetry.element import Element

STEPS = {"refined, 100 steps": 100, "refined, 300 steps": 300, "refined, 900 steps": 900}
MATCHED = {"weights, no data": "weights", "activations": "activations", "aligned": "activations+weights"}
WAYS = ("stored", *MATCHED, *STEPS)
FEW, EPOCHS = 15_000, 12
SEEN, TOLD, REFINED = 1024, 1500, 5000  # images for matching, for statistics along the line, for refinement
POINTS, TESTED = 11, 2000


class Lab(Networks):
    """CIFAR-10, or digits, and narrow residual networks trained on it."""

    def __init__(self, data: str | None, quick: bool, full: bool, device: str) -> None:
        super().__init__(data, quick, True, device)
        self.full = full
        self.size = QUICK if quick else FULL if full else replace(FULL, epochs=EPOCHS)
        if not (full or quick):
            self.train, self.name = self.train.take(FEW), self.name.replace("full", "narrow")
        self.plain = ws.Task(tensors(self.train)[0], batch=self.train.batch)
        self.told = self.train.take(TOLD)

    @property
    def setting(self) -> str:
        return "full" if self.full else "few"

    def near(self, net: ws.Net) -> ws.Net:
        """The network with its running statistics estimated on images."""
        return ws.reset_statistics(net, self.told)


def pairs(lab: Lab, seed: int) -> Iterator[Job]:
    """Two networks of different seeds, the second brought to the first: the line between them."""
    ends = cache(lambda: (lab.net(2 * seed), lab.net(2 * seed + 1)))
    match = cache(lambda: matching(lab, *ends()))
    for way in WAYS:
        yield f"pairs/{lab.setting}/{way}/{seed}", partial(_pair, lab, way, ends, match)


def matching(lab: Lab, to: ws.Net, net: ws.Net) -> Callable[[str], tuple[Element | None, float]]:
    """Way -> the element that brings `net` to `to`, and its processor seconds."""
    group = ws.Symmetry.of(to, lab.train.example(2))
    few, many = lab.plain.take(SEEN), lab.plain.take(REFINED)

    @cache
    def found(way: str) -> tuple[Element | None, float]:
        if way == "stored":
            return None, 0.0
        began = time.process_time()
        if way in MATCHED:
            element = group.match(net, to, None if "no data" in way else few, MATCHED[way]).element
            return element, time.process_time() - began
        start, before = found("activations")
        assert start is not None
        end = ws.symmetry.refine(group, net, to, start, many, steps=STEPS[way])
        return end.element, before + time.process_time() - began

    return found


def _pair(lab: Lab, way: str, ends: Callable[[], Any], match: Callable[[], Any]) -> dict[str, Any]:
    a, b = ends()
    element, seconds = match()(way)
    end = b if element is None else element(b)
    test = lab.test.take(TESTED)
    right, path = ws.accuracy(test), ws.line(a, end).map(lab.near)
    few = test.example(64)
    return {
        "barrier": path.barrier(test, n=POINTS),
        "middle": right(path(0.5)),
        "ends": [right(a), right(b)],
        "changed": float((end(few) - b(few)).detach().abs().max()),
        "seconds": seconds,
    }


def tables(record: Record, _: str) -> dict[str, str]:
    """Mark in the README -> table."""
    lines = [line for setting in ("few", "full") for way in WAYS if (line := _line(record, setting, way))]
    head = "images | second network | barrier | right half way, % | ends, % | processor seconds"
    return block("narrow pairs", head, lines)


def _line(record: Record, setting: str, way: str) -> list[str]:
    at = f"pairs/{setting}/{way}"
    if not record.of(at):
        return []
    told = {"few": "15,000, 12 epochs", "full": "50,000, 60 epochs"}[setting]
    cells = [number(record.median(at, "barrier")), percent(record.median(at, "middle"))]
    return [told, way, *cells, percent(record.median(at, "ends")), number(record.median(at, "seconds"), 0)]


def _lab(given: Namespace) -> Lab:
    return Lab(given.data, given.quick, given.full, given.device)


main = command(
    "narrow",
    __doc__,
    {"pairs": pairs},
    _lab,
    tables,
    data="folder of CIFAR-10",
    seeds=[0],
    options={
        "--full": {"action": "store_true", "help": "all images, 60 epochs"},
        "--device": {"default": "cpu", "help": "where networks are trained and tried"},
    },
    say=lambda row: " ".join(f"{name} {row[name]}" for name in ("barrier", "middle", "seconds") if name in row),
)


if __name__ == "__main__":
    sys.exit(main())
