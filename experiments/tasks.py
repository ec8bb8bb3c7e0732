"""Distances between tasks (Achille, Paolini, Mbeng, Soatto, 2019), beside task2vec and LogME; transfer between tasks.

    python -m experiments.tasks [digits images transfer] [--data DIR] [--seeds 0]

`digits` needs no data. `images` and `transfer` need --data, a folder with those of MNIST and Fashion-MNIST, named so.
Codes that were found are kept beside the results until a row is whole; rows that are there are not measured again.
"""

from __future__ import annotations

import math
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import Tensor, nn

import weightspace as ws
from experiments.nets import tensors
from experiments.record import RESULTS, Job, Record, command, number, percent, table
from weightspace.codes.scores import headless, transfer_scores
from weightspace.codes.task_map import TaskMap

FAMILIES = {
    "digits": (("A", "A2", "rotA", "B"), ("A2", "A", "rotA", "B"), ("sub", "A", "rotA", "B"),
               ("B", "B2", "rotB", "A"), ("B2", "B", "rotB", "A")),
    "images": (("mnist", "mnist 2", "mnist 90", "fashion"), ("mnist 2", "mnist", "mnist 90", "fashion"),
               ("sub", "mnist", "mnist 90", "fashion"), ("fashion", "fashion 2", "fashion 90", "mnist"),
               ("fashion 2", "fashion", "fashion 90", "mnist")),
}  # fmt: skip
SUBSETS = {"digits": ("A", "sub"), "images": ("mnist", "sub")}
HEADS = ("nats, one head", "nats, a head each")
SCORES = (*HEADS, "task2vec", "task2vec asymmetric", "LogME")
TARGETS = ("mnist", "mnist 90", "fashion", "fashion negative")
FEW, TRIALS, DECAYS = 200, 3, (0.001, 0.1)


class Lab:
    """Data, networks, and where codes are kept."""

    def __init__(self, data: str | None, quick: bool, out: Path) -> None:
        self.data, self.quick, self.out = data, quick, out
        self.options: dict[str, Any] = {"steps": 5, "draws": 2} if quick else {"steps": 600, "rate": 0.04}
        self.images = cache(self._images)

    def measured(
        self, name: str, tasks: Mapping[str, ws.Task], model: Callable[[], nn.Module], seeds: int = 1, **more: Any
    ) -> TaskMap:
        """Distances, taken up where they were left; the shortest code of so many seeds."""
        return ws.task_distances(
            tasks,
            model,
            file=self.kept(name),
            progress=_told(name),
            seeds=range(1 if self.quick else seeds),
            **(self.options | more),
        )

    def kept(self, name: str) -> Path:
        """Where codes are while a row is not whole."""
        return self.out.with_name(f"{self.out.stem}.{name.replace(' ', '-')}.codes")

    def _images(self, name: str, split: str) -> tuple[Tensor, Tensor]:
        """Images of 14 x 14, the mean of four pixels each, and labels."""
        if self.quick and self.data is None:
            return tensors(ws.digits(split))
        read = ws.mnist if name == "mnist" else ws.fashion_mnist
        x, y = tensors(read(self.data, split).take(20_000 if split == "train" else 4000, 0))
        return F.avg_pool2d(x, 2), y

    def side(self) -> int:
        """The width of an image."""
        return self.images("mnist", "train")[0].shape[-1]


def _told(name: str) -> Callable[[int, int], None]:
    return lambda done, total: print(f"{name}: {done} of {total} codes", flush=True)


def perceptron(*sizes: int) -> Callable[[], nn.Module]:
    """A function that makes a multilayer perceptron on images."""

    def make() -> nn.Module:
        parts = [part for i, o in zip(sizes, sizes[1:], strict=False) for part in (nn.Linear(i, o), nn.ReLU())]
        return nn.Sequential(nn.Flatten(), *parts[:-1])

    return make


def shuffled(y: Tensor, seed: int) -> Tensor:
    """The labels in a random order: nothing is left to learn but how frequent they are."""
    return y[torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))]


def turned(x: Tensor) -> Tensor:
    """Images turned by a quarter."""
    return x.rot90(1, (-2, -1))


# ------------------------------------------------------------------ the order of tasks


def digits(lab: Lab, seed: int) -> Iterator[Job]:
    """Digits 0 to 4 and 5 to 9, other samples of them, turned, a part of them, and labels at random."""
    names = ("one head",) if lab.quick else ("one head", "a head each")
    for heads in names:
        yield f"digits/{heads}/{seed}", lambda heads=heads: _map_of_digits(lab, heads, seed)


def _map_of_digits(lab: Lab, heads: str, seed: int) -> dict[str, Any]:
    x, y = tensors(ws.digits("train"))
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(x), generator=generator)
    low, high = (order[part[order]] for part in (y < 5, y >= 5))
    n = 40 if lab.quick else 250
    a, a2, b, b2 = low[:n], low[n : 2 * n], high[:n], high[n : 2 * n]
    tasks = {
        "A": (x[a], y[a]), "A2": (x[a2], y[a2]), "sub": (x[a[: 2 * n // 5]], y[a[: 2 * n // 5]]),
        "rotA": (turned(x[a]), y[a]), "B": (x[b], y[b]), "B2": (x[b2], y[b2]), "rotB": (turned(x[b]), y[b]),
        "random": (x[a], shuffled(y[a], seed)),
    }  # fmt: skip
    made = {name: ws.Task(*pair) for name, pair in tasks.items()}
    model, told = perceptron(64, 32, 10), heads == "a head each"
    found = lab.measured(f"digits {heads} {seed}", made, model, 1 if told else 2, task_id=told)
    lab.kept(f"digits {heads} {seed}").unlink()
    return _row(found) | ({} if told else _beside(lab, made, perceptron(64, 64, 64, 10), seed))


def images(lab: Lab, seed: int) -> Iterator[Job]:
    """The same of MNIST and Fashion-MNIST, all classes."""
    yield f"images/one head/{seed}", lambda: _map_of_images(lab, seed)


def _map_of_images(lab: Lab, seed: int) -> dict[str, Any]:
    n = 40 if lab.quick else 500
    made = {}
    for name in ("mnist", "fashion"):
        x, y = lab.images(name, "train")
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
        one, other = order[:n], order[n : 2 * n]
        made |= {name: (x[one], y[one]), f"{name} 2": (x[other], y[other]), f"{name} 90": (turned(x[one]), y[one])}
    x, y = made["mnist"]
    made |= {"sub": (x[: n // 4], y[: n // 4]), "random": (x, shuffled(y, seed))}
    tasks, side = {name: ws.Task(*pair) for name, pair in made.items()}, lab.side() ** 2
    found = lab.measured(f"images {seed}", tasks, perceptron(side, 32, 10))
    lab.kept(f"images {seed}").unlink()
    return _row(found) | _beside(lab, tasks, perceptron(side, 64, 64, 10), seed)


def _row(found: TaskMap) -> dict[str, Any]:
    kept = found.data()
    return {name: kept[name] for name in ("names", "lengths", "values", "spread", "positions", "stress")}


def _beside(lab: Lab, tasks: Mapping[str, ws.Task], model: Callable[[], nn.Module], seed: int) -> dict[str, Any]:
    """task2vec by a network of all labels that are not random, LogME of a network of each task."""
    known = [task for name, task in tasks.items() if name != "random"]
    nets = {name: trained(lab, model, *tensors(task), seed) for name, task in tasks.items()}
    x, y = (torch.cat(parts) for parts in zip(*map(tensors, known), strict=True))
    probe = trained(lab, model, x, y, seed)
    found = transfer_scores(tasks, nets, probe)
    found |= {f"task2vec, decay {d:g}": transfer_scores(tasks, None, probe, decay=d)["task2vec"] for d in DECAYS}
    return {name: matrix.tolist() for name, matrix in found.items()}


def trained(
    lab: Lab, model: Callable[[], nn.Module] | ws.Net, x: Tensor, y: Tensor, seed: int, epochs: int = 40
) -> ws.Net:
    """A network trained by Adam on batches of 64, weights and order drawn from the seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = (model.module() if isinstance(model, ws.Net) else model()).train()
        optimiser = torch.optim.Adam(module.parameters(), lr=1e-3, weight_decay=1e-4)
        for _ in range(1 if lab.quick else epochs):
            for rows in torch.randperm(len(x)).split(64):
                optimiser.zero_grad()
                F.cross_entropy(module(x[rows]), y[rows]).backward()
                optimiser.step()
    return ws.Net.of(module)


# ------------------------------------------------------------------ the best source, by real transfer


def transfer(lab: Lab, seed: int) -> Iterator[Job]:
    """Every source's network fine-tuned on a few examples of every target, against what scores say of it before."""
    yield f"transfer/few/{seed}", lambda: _transferred(lab, seed)
    if not lab.quick:
        yield f"transfer/a head each/{seed}", lambda: {HEADS[True]: _nats(lab, seed, True)}


def _variants(lab: Lab, split: str) -> dict[str, tuple[Tensor, Tensor]]:
    """Tasks of ten classes, the sources among which to choose."""
    (x, y), (u, v) = (lab.images(name, split) for name in ("mnist", "fashion"))
    tilted = torch.tensor([[math.cos(0.5), -math.sin(0.5), 0], [math.sin(0.5), math.cos(0.5), 0]]).expand(len(x), 2, 3)
    grid = F.affine_grid(tilted, list(x.shape), align_corners=False)
    return {
        "mnist": (x, y), "mnist tilted": (F.grid_sample(x - x.min(), grid, align_corners=False) + x.min(), y),
        "mnist 90": (turned(x), y), "mnist mirrored": (x.flip(-1), y), "mnist negative": (-x, y),
        "mnist, labels at random": (x, shuffled(y, 0)), "fashion": (u, v), "fashion 90": (turned(u), v),
        "fashion mirrored": (u.flip(-1), v), "fashion negative": (-u, v),
    }  # fmt: skip


def _choices_of(lab: Lab, seed: int) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, tuple[Tensor, Tensor]]]:
    """Many examples of every source, and a few others of every target."""
    many, few = (200, 30) if lab.quick else (4000, FEW)
    train = _variants(lab, "train")
    order = torch.randperm(len(train["mnist"][0]), generator=torch.Generator().manual_seed(seed))
    source = {name: (x[order[few : few + many]], y[order[few : few + many]]) for name, (x, y) in train.items()}
    ends = TARGETS[:1] if lab.quick else TARGETS
    return source, {name: (train[name][0][order[:few]], train[name][1][order[:few]]) for name in ends}


def _seen(source: Mapping[str, tuple[Tensor, Tensor]], n: int = 500) -> dict[str, ws.Task]:
    """What scores see of every source."""
    return {name: ws.Task(x[:n], y[:n]) for name, (x, y) in source.items()}


def _transferred(lab: Lab, seed: int) -> dict[str, Any]:
    """For every target: accuracy after fine-tuning from each other source, and each score of it; more is better."""
    (source, target), test = _choices_of(lab, seed), _variants(lab, "test")
    model = perceptron(lab.side() ** 2, 64, 64, 10)
    nets = {name: trained(lab, model, x, y, seed, 15) for name, (x, y) in source.items()}
    rows: dict[str, Any] = {HEADS[False]: _nats(lab, seed, False), "sources": {}, "accuracy": {}, "scratch": {}}
    for end, (x, y) in target.items():
        others = [name for name in source if name != end]
        right = ws.accuracy(ws.Task(*test[end]))
        trials = range(1 if lab.quick else TRIALS)
        runs = {name: [right(_tuned(lab, nets[name], x, y, k)) for k in trials] for name in others}
        rows["scratch"][end] = sum(right(trained(lab, model, x, y, k, 60)) for k in trials) / len(trials)
        rows["sources"][end] = others
        rows["accuracy"][end] = [sum(runs[name]) / len(runs[name]) for name in others]
    return rows | _scored(_seen(source), target, nets, _probe(lab, source, seed))


def _probe(lab: Lab, source: Mapping[str, tuple[Tensor, Tensor]], seed: int) -> ws.Net:
    """A network that tells all classes of all sources apart, but for labels at random."""
    known = [pair for name, pair in source.items() if "random" not in name]
    x = torch.cat([x[:1000] for x, _ in known])
    y = torch.cat([y[:1000] + 10 * k for k, (_, y) in enumerate(known)])
    return trained(lab, perceptron(lab.side() ** 2, 64, 64, 10 * len(known)), x, y, seed, 15)


def _tuned(lab: Lab, net: ws.Net, x: Tensor, y: Tensor, seed: int) -> ws.Net:
    """A network with a new head, all its weights trained on."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        fresh = nn.Sequential(headless(net).module(), nn.Linear(64, 10))
    return trained(lab, ws.Net.of(fresh), x, y, seed, 60)


def _nats(lab: Lab, seed: int, told: bool) -> dict[str, list[float]]:
    """-(C(ab) - C(a)) of the codes as they were found: where two networks are shorter, the rest would be ties."""
    (source, target), found = _choices_of(lab, seed), {}
    name = f"transfer {told} {seed}"
    for end, pair in target.items():
        tasks = {**{a: task for a, task in _seen(source).items() if a != end}, f"to {end}": ws.Task(*pair)}
        model = perceptron(lab.side() ** 2, 32, 10)
        seen = lab.measured(name, tasks, model, targets=[f"to {end}"], task_id=told)
        codes = [seen.distance(a, f"to {end}").codes for a in tasks if a != f"to {end}"]
        found[end] = [min(lengths["a"]) - min(lengths["ab"]) for lengths in codes]
    lab.kept(name).unlink()
    return found


def _scored(
    source: Mapping[str, ws.Task],
    target: Mapping[str, tuple[Tensor, Tensor]],
    nets: Mapping[str, ws.Net],
    probe: ws.Net,
) -> dict[str, dict[str, list[float]]]:
    """Score -> target -> that of every other source; more is better."""
    found: dict[str, dict[str, list[float]]] = {"task2vec": {}, "task2vec asymmetric": {}, "LogME": {}}
    whole = {name: ws.task2vec(probe, task) for name, task in source.items()}
    for end, (x, y) in target.items():
        others, own = [name for name in source if name != end], ws.task2vec(probe, ws.Task(x, y))
        found["task2vec"][end] = [-whole[a].distance(own) for a in others]
        found["task2vec asymmetric"][end] = [-whole[a].distance(own, "asymmetric") for a in others]
        found["LogME"][end] = [ws.logme(headless(nets[a])(x).detach(), y) for a in others]
    return found


EXPERIMENTS: dict[str, Callable[[Lab, int], Iterator[Job]]] = {"digits": digits, "images": images, "transfer": transfer}


# ------------------------------------------------------------------ tables


def order_kept(names: Sequence[str], values: Sequence[Sequence[float]], family: Sequence[str]) -> bool:
    """Whether the same task is nearer to a source than the turned one, that than another, and random labels last."""
    row = values[names.index(family[0])]
    far = [row[names.index(name)] for name in (*family[1:], "random")]
    return all(near < next_one for near, next_one in zip(far, far[1:], strict=False))


def _patterns(record: Record, experiment: str) -> list[list[str]]:
    rows = []
    beside = ("task2vec", *(f"task2vec, decay {d:g}" for d in DECAYS), "task2vec asymmetric", "LogME")
    shown = [("one head", "values"), ("a head each", "values"), *(("one head", key) for key in beside)]
    for setting, key in shown:
        kept = [row for row in record.of(f"{experiment}/{setting}") if key in row]
        if not kept:
            continue
        sign = -1 if key == "LogME" else 1
        families, (whole, part) = FAMILIES[experiment], SUBSETS[experiment]
        held, reached, less = [], [], []
        for row in kept:
            values = [[sign * v for v in line] for line in row[key]]
            names = row["names"]
            held += [order_kept(names, values, family) for family in families]
            reached += [order_kept(names, [*zip(*values, strict=True)], family) for family in families]
            i, j = names.index(whole), names.index(part)
            less.append(values[i][j] < values[j][i])
        cells = [f"{sum(found)} of {len(found)}" for found in (held, reached, less)]
        if key == "LogME":  # it compares features of the same labels
            cells = ["", cells[1], ""]
        rows.append([f"nats, {setting}" if key == "values" else key, *cells])
    return rows


def tables(record: Record) -> dict[str, str]:
    """Mark in the README -> table."""
    found = {}
    for experiment in FAMILIES:
        for setting in ("one head", "a head each"):
            kept = record.of(f"{experiment}/{setting}")
            if not kept:
                continue
            names = kept[0]["names"]
            mean = [[sum(cells) / len(kept) for cells in zip(*lines, strict=True)]
                    for lines in zip(*(row["values"] for row in kept), strict=True)]  # fmt: skip
            lengths = [sum(cells) / len(kept) for cells in zip(*(row["lengths"] for row in kept), strict=True)]
            rows = [[name, f"{c:.0f}", *(f"{v:.0f}" for v in line)]
                    for name, c, line in zip(names, lengths, mean, strict=True)]  # fmt: skip
            found[f"tasks {experiment} {setting}"] = table(["from, to", "C", *names], rows)
        if rows := _patterns(record, experiment):
            head = "by | from a source: same < turned < other < random | to a target: the same | whole to part < back"
            found[f"tasks {experiment} patterns"] = table(head.split(" | "), rows)
    return found | _choices(record)


def _choices(record: Record) -> dict[str, str]:
    """How well each score ranks sources by the accuracy after transfer from them."""
    kept = record.of("transfer/few")
    if not kept:
        return {}
    for row, more in zip(kept, record.of("transfer/a head each"), strict=False):
        row.update(more)
    rows, ends = [], [*kept[0]["accuracy"]]
    for score in (name for name in SCORES if name in kept[0]):
        ranks = {end: [_rank(row[score][end], row["accuracy"][end]) for row in kept] for end in ends}
        every = [value for values in ranks.values() for value in values]
        picks = [_picked(row, score, end) for row in kept for end in ends]
        lost = sum(best - got for best, got, _ in picks) / len(picks)
        cells = [number(sum(ranks[end]) / len(kept), 2) for end in ends]
        hits = sum(best == got for best, got, _ in picks)
        rows.append([score, *cells, number(sum(every) / len(every), 2), f"{hits} of {len(picks)}", percent(lost)])
    picks = [_picked(row, "accuracy", end) for row in kept for end in ends]
    lost = sum(best - mean for best, _, mean in picks) / len(picks)
    rows.append(["any source", *[""] * len(ends), "", "", percent(lost)])
    head = ["by", *(f"rank correlation: {end}" for end in ends), "mean", "best source found", "points lost"]
    accuracy = []
    for end in ends:
        columns = zip(*(row["accuracy"][end] for row in kept), strict=True)
        seen = dict(zip(kept[0]["sources"][end], (sum(c) / len(kept) for c in columns), strict=True))
        scratch = sum(row["scratch"][end] for row in kept) / len(kept)
        order = sorted(seen, key=lambda name: -seen[name])
        accuracy.append([end, percent(scratch), ", ".join(f"{name} {percent(seen[name])}" for name in order)])
    shown = table(["target", "from scratch, %", "fine-tuned from, %"], accuracy)
    return {"tasks choice": table(head, rows), "tasks transfer": shown}


def _rank(one: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's correlation; zero where all are alike."""
    return 0.0 if len({*one}) < 2 or len({*other}) < 2 else float(spearmanr(one, other).statistic)


def _picked(row: Mapping[str, Any], score: str, end: str) -> tuple[float, float, float]:
    """The best accuracy, that of the source with the best score, and the mean."""
    accuracy, scores = row["accuracy"][end], row[score][end]
    return max(accuracy), accuracy[max(range(len(scores)), key=lambda k: scores[k])], sum(accuracy) / len(accuracy)


def _lab(given: Namespace) -> Lab:
    if given.data is None and not given.quick:
        given.chosen = [name for name in given.chosen if name == "digits"]
        if not given.chosen:
            raise ws.WeightspaceError("images need --data")
    out = given.out or RESULTS / "tasks.json"
    os.makedirs(out.parent, exist_ok=True)
    return Lab(given.data, given.quick, out)


main = command(
    "tasks",
    __doc__,
    EXPERIMENTS,
    _lab,
    lambda record, _: tables(record),
    data="folder with those of MNIST and Fashion-MNIST",
    seeds=[0],
)

if __name__ == "__main__":
    sys.exit(main())
