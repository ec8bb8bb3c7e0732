"""Transformers of different seeds modulo orthogonal and linear moves: lines, means and updates that are carried over.

    python -m experiments.transformers [pairs means carried] [--nets vit ..] [--data DIR] [--seeds 0 1 2 3] [--quick]

Theus et al., Generalized linear mode connectivity for transformers (2025); rebasin of task vectors (2025). Networks are
those of `experiments.attention`. Rows that are there are not measured again. Characters need --data, a folder with
imdb/train.parquet; a pair with seed k is of the networks 2k and 2k + 1, a mean of 3k to 3k + 2.
"""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import weightspace as ws
from experiments.attention import KINDS, Lab
from experiments.nets import CACHE, fit, tensors
from experiments.record import Job, Record, block, command, number, percent
from weightspace.symmetry.align.score import Score
from weightspace.symmetry.element import Element

METHODS = {
    "permutations": "activations+weights",
    "activations": "activations",
    "weights": "weights",
    "activations+weights": "activations+weights",
}
STARTS = ("activations", "activations+weights")
REFINED = {"refined": False, "refined with labels": True}  # from that start whose line is the flatter, without labels
WAYS = ("stored", *METHODS, *REFINED)
SHOWN = {
    "permutations": "permutations, scales, signs",
    "activations": "full group, activations",
    "weights": "full group, weights, no data",
    "activations+weights": "full group, activations, then weights",
    "refined": "full group, refined without labels",
    "refined with labels": "full group, refined with labels",
}
RATE = 0.03  # of refinement; matrices descend at a third of it
TUNED = 1e-3
TOLD = ("barrier", "middle", "mean", "focus", "seconds")  # on the way
CARRIES = ("as it is", "permutations", "activations+weights", "refined", "its own")
TASKS, SWAPPED = ("swapped", "inverted"), (3, 8)
SCALES = (0.0, 0.5, 1.0, 2.0, 4.0)  # of an update

Matched = tuple[Element | None, float]


# ------------------------------------------------------------------ matching


def matching(lab: Lab, kind: str, net: ws.Net, to: ws.Net) -> Callable[[str], Matched]:
    """Way -> the element that brings a network to another, and its processor seconds; each found once."""

    @cache
    def score() -> Score:
        train = lab.task(kind, "train")
        return Score(lab.group(kind).fold(to), ws.Task(tensors(train)[0], batch=train.batch), seed=0)

    @cache
    def found(way: str) -> Matched:
        if way in ("stored", "as it is"):
            return None, 0.0
        train, group = lab.task(kind, "train"), lab.group(kind, way != "permutations")
        plain = ws.Task(tensors(train)[0], batch=train.batch)
        if way in METHODS:
            began = time.process_time()
            data = None if way == "weights" else plain
            return group.match(net, to, data, METHODS[way]).element, time.process_time() - began
        start, before = min(map(found, STARTS), key=lambda match: score()(moved(match[0], net)))
        assert start is not None
        batch = lab.size.pieces if kind == "characters" else lab.size.batch
        data, labels, began = train if REFINED[way] else plain, REFINED[way], time.process_time()
        end = ws.symmetry.refine(
            group, net, to, start, data, steps=lab.size.refine, lr=RATE, batch=batch, labels=labels
        )
        return end.element, before + time.process_time() - began

    return found


def moved(element: Element | None, net: ws.Net, like: ws.Net | None = None) -> ws.Net:
    """The network that an element makes of this one, its norms with the gains of another or at one."""
    if element is None:
        return net
    group = element.group
    assert isinstance(group, ws.Symmetry)
    return group.fold(element(net), like)


# ------------------------------------------------------------------ pairs


def pairs(lab: Lab, seed: int) -> Iterator[Job]:
    """Two networks of different seeds, the second brought to the first: the line between them."""
    for kind in lab.kinds:
        ends = cache(lambda kind=kind: (lab.net(kind, 2 * seed), lab.net(kind, 2 * seed + 1)))
        match = cache(lambda kind=kind, ends=ends: matching(lab, kind, ends()[1], ends()[0]))
        for way in WAYS:
            yield f"pairs/{kind}/{way}/{seed}", partial(_pair, lab, kind, way, ends, match)


def _pair(lab: Lab, kind: str, way: str, ends: Callable[[], Any], match: Callable[[], Any]) -> dict[str, Any]:
    a, b = ends()
    test = lab.task(kind, "test")
    element, seconds = match()(way)
    end = moved(element, b, like=a)
    path = ws.line(a, end)
    right, middle = ws.accuracy(test), path(0.5)
    few = test.example(64)
    return {
        "barrier": path.barrier(test),
        "middle": right(middle),
        "middle_loss": float(test(middle)),
        "ends": [right(a), right(b)],
        "end_losses": [float(test(a)), float(test(b))],
        "changed": float((end(few) - b(few)).detach().abs().max()),
        "seconds": seconds,
    }


# ------------------------------------------------------------------ means


def means(lab: Lab, seed: int) -> Iterator[Job]:
    """Three networks of different seeds: their mean as they are, modulo permutations, modulo the full group."""
    for kind in lab.kinds:
        for way in ("stored", "permutations", "full group"):
            yield f"means/{kind}/{way}/{seed}", partial(_mean, lab, kind, way, seed)


def _mean(lab: Lab, kind: str, way: str, seed: int) -> dict[str, Any]:
    nets, test = [lab.net(kind, 3 * seed + k) for k in range(3)], lab.task(kind, "test")
    train, began = lab.task(kind, "train"), time.process_time()
    if way == "stored":
        middle = ws.swa(nets)
    else:
        data = ws.Task(tensors(train)[0], batch=train.batch)
        middle = ws.mean(nets, lab.group(kind, way == "full group"), data=data)
    seconds, right = time.process_time() - began, ws.accuracy(test)
    return {
        "mean": right(middle),
        "mean_loss": float(test(middle)),
        "ends": [right(net) for net in nets],
        "end_losses": [float(test(net)) for net in nets],
        "seconds": seconds,
    }


# ------------------------------------------------------------------ updates carried over


def carried(lab: Lab, seed: int) -> Iterator[Job]:
    """What a network learns of a shifted task, moved to another network by the element that aligns the two."""
    for kind in lab.kinds:
        if kind == "characters":
            continue
        nets = cache(lambda kind=kind: (lab.net(kind, 2 * seed), lab.net(kind, 2 * seed + 1)))
        match = cache(lambda kind=kind, nets=nets: matching(lab, kind, *nets()))
        for task in TASKS:
            tuned = cache(lambda k, task=task, nets=nets: learnt(lab, nets()[k], shifted(lab, task, "train"), seed))
            for way in CARRIES:
                yield f"carried/{kind}/{task}/{way}/{seed}", partial(_carry, lab, task, way, nets, tuned, match)


def shifted(lab: Lab, name: str, split: str) -> ws.Task:
    """Digits with the labels of two classes swapped, or with dark and light inverted."""
    x, y = tensors(lab.task("vit", split))
    if name == "inverted":
        return ws.Task(x.max() - x, y)
    one, two = SWAPPED
    return ws.Task(x, y.where((y != one) & (y != two), one + two - y))


def learnt(lab: Lab, net: ws.Net, task: ws.Task, seed: int) -> ws.Net:
    """A network trained a few epochs more on another task."""
    module = net.module()
    for _ in fit(module, *tensors(task), epochs=lab.size.tune, seed=1000 + seed, lr=TUNED, anneal=False):
        pass
    return ws.Net.of(module.eval())


def updated(element: Element | None, a: ws.Net, tuned: ws.Net, b: ws.Net) -> tuple[ws.Net, ws.Net, ws.Net]:
    """b, g a and g a', the gains of all at one: the update g a' - g a is in its place in b."""
    if element is None:
        return b, a, tuned
    group = element.group
    assert isinstance(group, ws.Symmetry)
    return group.fold(b), moved(element, group.fold(a)), moved(element, group.fold(tuned))


def _carry(
    lab: Lab, name: str, way: str, nets: Callable[[], Any], tuned: Callable[[int], ws.Net], match: Callable[[], Any]
) -> dict[str, Any]:
    a, b = nets()
    new, old = shifted(lab, name, "test"), lab.task("vit", "test")
    x, y = tensors(new)
    rows = [k for k, label in enumerate(y.tolist()) if name == "inverted" or label in SWAPPED]
    element, seconds = (None, 0.0) if way == "its own" else match()(way)
    source, learned = (b, tuned(1)) if way == "its own" else (a, tuned(0))
    base, start, end = updated(element, source, learned, b)
    ends, move = [base + scale * (end - start) for scale in SCALES], end - start
    rights = {"new": new, "focus": ws.Task(x[rows], y[rows]), "old": old}
    found: dict[str, Any] = {key: [ws.accuracy(task)(net) for net in ends] for key, task in rights.items()}
    return found | {
        "source": [ws.accuracy(task)(learned) for task in rights.values()],
        "middle": ws.accuracy(new)(ws.line(base, start)(0.5) + move),
        "moved": float(move.norm() / base.weights.norm()),
        "seconds": seconds,
    }


# ------------------------------------------------------------------ tables


EXPERIMENTS: dict[str, Callable[[Lab, int], Iterator[Job]]] = {"pairs": pairs, "means": means, "carried": carried}


def tables(record: Record, _: str) -> dict[str, str]:
    """Mark in the README -> table."""
    lines, averages, updates = [], [], []
    for kind in KINDS:
        lines += [line for way in WAYS if (line := _line(record, kind, way))]
        averages += [line for way in ("stored", "permutations", "full group") if (line := _average(record, kind, way))]
        updates += [line for task in TASKS for way in CARRIES if (line := _update(record, kind, task, way))]
    found = block("transformers pairs", "network | second network | barrier, each pair | median | loss at the middle | "
                  "right at the middle, % | ends, % | processor seconds", lines)  # fmt: skip
    found |= block("transformers means", "network | mean of three | loss | of the ends | right, % | ends, % | "
                   "processor seconds", averages)  # fmt: skip
    head = "network | task | update | new task, % right with 0 / .5 / 1 / 2 / 4 times the update | what is new, % | "
    head += "old task, % | new task, update at the middle, % | first network: new task / what is new / old task, %"
    return found | block("transformers carried", head, updates)


def seeds(record: Record, setting: str) -> list[dict[str, Any]]:
    """The rows of a setting in the order of their seeds."""
    keys = [key for key in record.rows if key.rpartition("/")[0] == setting]
    return [record.rows[key] for key in sorted(keys, key=lambda key: int(key.rpartition("/")[2]))]


def _line(record: Record, kind: str, way: str) -> list[str]:
    rows = seeds(record, at := f"pairs/{kind}/{way}")
    if not rows:
        return []
    ends = [right for row in rows for right in row["ends"]]
    return [
        kind, SHOWN.get(way, way), number([row["barrier"] for row in rows]), number(record.median(at, "barrier")),
        number(record.median(at, "middle_loss")), percent(record.median(at, "middle")),
        percent(sum(ends) / len(ends)), number(record.median(at, "seconds"), 1),
    ]  # fmt: skip


def _average(record: Record, kind: str, way: str) -> list[str]:
    rows = seeds(record, f"means/{kind}/{way}")
    if not rows:
        return []

    def ends(name: str) -> float:
        return sum(sum(row[name]) for row in rows) / sum(len(row[name]) for row in rows)

    return [
        kind, {"permutations": "permutations, scales, signs"}.get(way, way),
        number([row["mean_loss"] for row in rows]), number(ends("end_losses")),
        percent([row["mean"] for row in rows]), percent(ends("ends")), number([row["seconds"] for row in rows], 0),
    ]  # fmt: skip


def _update(record: Record, kind: str, task: str, way: str) -> list[str]:
    at = f"carried/{kind}/{task}/{way}"
    if not record.of(at):
        return []
    shown = [percent(record.median(at, name)) for name in ("new", "focus", "old")]
    return [kind, task, way, *shown, percent(record.median(at, "middle")), percent(record.median(at, "source"))]


def _lab(given: Namespace) -> Lab:
    lab = Lab(given.data, given.quick, given.cache)
    lab.kinds = tuple(given.nets)
    return lab


main = command(
    "transformers",
    __doc__,
    EXPERIMENTS,
    _lab,
    tables,
    data="folder with imdb/train.parquet, for characters",
    seeds=[0, 1, 2, 3],
    options={
        "--nets": {"nargs": "*", "default": list(KINDS[:2]), "choices": KINDS, "help": "networks (those of digits)"},
        "--cache": {"type": Path, "default": CACHE, "help": "folder of trained networks"},
    },
    say=lambda row: " ".join(f"{name} {row[name]}" for name in TOLD if name in row),
)


if __name__ == "__main__":
    sys.exit(main())
