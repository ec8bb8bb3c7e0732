"""Many networks asked with new data: does successive halving find the best of a zoo, and at what cost?

    python -m experiments.asked [cost budget groups starts earlier] [--data DIR] [--seeds 0 1 2] [--quick]

The zoo: multilayer perceptrons of three widths and two seeds at three times of training, sweeps of the learning rate
and of the share of wrong labels, fine-tunes on some classes, networks of changed images, and noisy and pruned copies. A
query is a mixture of classes, drawn anew, of images as they are, turned, inverted, noisy, blurred or shifted. The truth
is the loss of every member on every example of the query. --data is a folder of MNIST's files; without it, the embedded
digits.
"""

from __future__ import annotations

import math
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import Tensor, nn

import weightspace as ws
from experiments.nets import fit, tensors
from experiments.record import Job, Record, block, command, number, percent
from weightspace.atlas import paired, rank, rank_starts
from weightspace.atlas.question import Question

CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "as it is": lambda x: x,
    "turned": lambda x: x.rot90(1, (-2, -1)),
    "inverted": lambda x: 1 - x,
    "noisy": lambda x: x + 0.4 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)),
    "blurred": lambda x: F.avg_pool2d(x, 3, 1, 1),
    "shifted": lambda x: x.roll((1, 1), (-2, -1)),
}
QUERIES, BUDGETS = 40, (0.05, 0.1, 0.4)
STARTS, STEPS, FEW = 6, 60, 200
ASKED = (8, 15, 25)  # members that answer before the others are predicted


class Lab:
    """The zoo, and data for queries."""

    def __init__(self, given: Namespace) -> None:
        self.quick, self.name = given.quick, "digits" if given.data is None else "mnist"
        self.queries = 4 if self.quick else QUERIES
        if given.data is None:
            (x, y), (x2, y2) = (tensors(ws.digits(split)) for split in ("train", "test"))
            x, y = torch.cat([x, x2]), torch.cat([y, y2])
            order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
            self.train, self.test = ((x[part], y[part]) for part in order.split([897, len(x) - 897]))
            self.size = 400
        else:
            read = (tensors(ws.mnist(given.data, split)) for split in ("train", "test"))
            (x, y), (x2, y2) = read
            self.train, self.test = (F.avg_pool2d(x[:10_000], 2), y[:10_000]), (F.avg_pool2d(x2, 2), y2)
            self.size = 2000
        self.size = 120 if self.quick else self.size
        self.losses: dict[int, Tensor] = {}

    def module(self, width: int, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        inputs = self.train[0][0].numel()
        return nn.Sequential(nn.Flatten(), nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, 10))

    def trained(self, module: nn.Module, x: Tensor, y: Tensor, epochs: int, seed: int, lr: float = 3e-3) -> ws.Net:
        for _ in fit(module, x, y, epochs=1 if self.quick else epochs, seed=seed, lr=lr, anneal=False):
            pass
        return ws.Net.of(module)

    @cached_property
    def zoo(self) -> dict[str, ws.Net]:
        """The members by name."""
        return dict(self._members())

    def _members(self) -> Iterator[tuple[str, ws.Net]]:
        x, y = self.train
        widths, seeds = ((16, 64), (0,)) if self.quick else ((12, 32, 96), (0, 1))
        for width in widths:
            for seed in seeds:
                for epochs in (1, 4) if self.quick else (1, 3, 8):
                    yield (
                        f"width {width} seed {seed} epochs {epochs}",
                        self.trained(self.module(width, seed), x, y, epochs, seed),
                    )
        base = self.trained(self.module(64, 5), x, y, 6, 5)
        yield "base", base
        for k, lr in enumerate((1e-4, 3e-4, 1e-3, 1e-2, 3e-2)[: 1 if self.quick else 5]):
            yield f"rate {lr:g}", self.trained(self.module(64, 20 + k), x, y, 4, 20 + k, lr)
        draw = torch.Generator().manual_seed(1)
        for share in (0.3,) if self.quick else (0.1, 0.2, 0.4, 0.6):
            wrong = torch.where(
                torch.rand(len(y), generator=draw) < share, torch.randint(10, y.shape, generator=draw), y
            )
            yield f"labels {share:g} wrong", self.trained(self.module(64, 30), x, wrong, 4, 30)
        for k in range(2 if self.quick else 16):
            classes = torch.randperm(10, generator=draw)[: 2 + k % 4]
            some = torch.isin(y, classes)
            name = f"tuned on {''.join(map(str, sorted(classes.tolist())))} ({k})"
            yield name, self.trained(base.module(), x[some], y[some], 1 + k % 2, 40 + k, 1e-3)
        for change, of in list(CHANGES.items())[1 : 2 if self.quick else None]:
            for k in range(1 if self.quick else 3):
                yield f"{change} {k}", self.trained(self.module(64, 60 + k), of(x), y, 2 + 2 * k, 60 + k)
        for size in (0.2,) if self.quick else (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8):
            yield f"base, noise {size:g}", ws.perturb(base, size, seed=7)
        for share in (0.5,) if self.quick else (0.3, 0.6, 0.8, 0.9):
            yield f"base, pruned {share:g}", ws.perturb(base, kind="prune", share=share)

    @property
    def groups(self) -> list[list[str]]:
        """Near-duplicates: copies of the base with little noise, the base first."""
        near = [name for name in self.zoo if name in ("base, noise 0.02", "base, noise 0.05", "base, noise 0.1")]
        return [["base", *near]]

    def query(self, number: int, of: tuple[Tensor, Tensor] | None = None, size: int | None = None) -> ws.Task:
        """A mixture of classes, with one change of the images."""
        x, y = of or self.test
        draw = torch.Generator().manual_seed(1000 + number)
        share = torch._standard_gamma(torch.full((10,), 0.7), generator=draw)
        weight = (share / y.bincount(minlength=10).clamp(min=1))[y] + 1e-9
        rows = torch.multinomial(weight, min(size or self.size, len(y) // 2), generator=draw)
        change = [*CHANGES][int(torch.randint(len(CHANGES), (), generator=draw))]
        return ws.Task(CHANGES[change](x[rows]), y[rows], batch=512)

    def truth(self, task: ws.Task, by: str) -> Tensor:
        """What every member answers to every example: (member, example)."""
        question = Question(task, by)
        return torch.stack([question.of(net, 0, len(task)).sums for net in self.zoo.values()])


# ------------------------------------------------------------------ how often it is right, and the cost


def asked(lab: Lab, by: str, seed: int, **how: Any) -> dict[str, Any]:
    """So many queries: how often the best is found, or one within a standard error of it; and the cost."""
    names, rows, times = [*lab.zoo], [], [0.0, 0.0]
    for k in range(lab.queries):
        task = lab.query(seed * lab.queries + k)
        began = time.perf_counter()
        whole = lab.truth(task, by)
        times[0] += time.perf_counter() - began
        answer = rank(lab.zoo, task, by, seed=seed, **how)
        times[1] += answer.seconds
        mean = whole.mean(1)
        best, mine = int(mean.argmin()), names.index(answer.best)
        apart = paired(whole[mine], whole[best])
        rows.append(
            {
                "found": float(mean[mine] == mean[best]),
                "within": float(apart.difference <= apart.error),
                "held": float(names[best] in answer.tied),
                "share": answer.found.share,
                "tied": len(answer.tied) / len(names),
                "over": apart.difference / max(1e-12, float(mean.median() - mean[best])),
            }
        )
    means = ("found", "within", "held", "tied", "over")
    return {name: sum(row[name] for row in rows) / len(rows) for name in means} | {
        "share": median(row["share"] for row in rows), "most": max(row["share"] for row in rows),
        "seconds": times[1] / times[0], "members": len(names), "examples": lab.size, "queries": lab.queries,
    }  # fmt: skip


def cost(lab: Lab, seed: int) -> Iterator[Job]:
    """By loss and by accuracy, at the budget of a fifth."""
    for by in ("loss", "accuracy"):
        yield f"cost/{lab.name}/{by}/{seed}", partial(asked, lab, by, seed)


def budget(lab: Lab, seed: int) -> Iterator[Job]:
    """By loss, at smaller and larger budgets."""
    for share in (0.1,) if lab.quick else BUDGETS:
        yield f"budget/{lab.name}/{share:g}/{seed}", partial(asked, lab, "loss", seed, budget=share)


def groups(lab: Lab, seed: int) -> Iterator[Job]:
    """By loss, copies of little noise in one group."""
    yield f"groups/{lab.name}/{seed}", lambda: asked(lab, "loss", seed, groups=lab.groups)


# ------------------------------------------------------------------ which start


def starts(lab: Lab, seed: int) -> Iterator[Job]:
    """Does the order by LogME, loss or a short trial foretell the loss after a longer fine-tuning?"""
    for k in range(1 if lab.quick else STARTS):
        yield f"starts/{lab.name}/{seed * STARTS + k}", partial(_starts, lab, seed * STARTS + k)


def _starts(lab: Lab, number: int) -> dict[str, Any]:
    """New labels, so that no member knows the task: the classes renumbered; few examples to learn from."""
    task, size = lab.query(5000 + number), FEW
    some = ws.Task(task.example(2 * size), (task.labels(2 * size) * 3 + 1) % 10)
    names = [*lab.zoo][:: 3 if lab.quick else 2]
    nets = {name: lab.zoo[name] for name in names}
    steps = 4 if lab.quick else STEPS
    after = {row.name: row.loss for row in rank_starts(nets, some, steps=steps, lr=3e-3).found.ranking}
    row: dict[str, Any] = {"members": len(names), "steps": steps, "best": min(after.values())}
    row["middle"] = median(after.values())
    ways = {
        "logme": lambda: rank(nets, some, "logme", budget=0.5),
        "loss": lambda: rank(nets, some, "loss"),
        "trial": lambda: rank_starts(nets, some, steps=max(1, steps // 10), lr=3e-3),
    }
    for way, ask in ways.items():
        order = [one.name for one in ask().found.ranking]
        row[f"{way} order"] = float(spearmanr(range(len(order)), [after[name] for name in order]).statistic)
        row[f"{way} pick"] = after[order[0]]
    return row


# ------------------------------------------------------------------ earlier answers


def earlier(lab: Lab, seed: int) -> Iterator[Job]:
    """Do the losses of the same members on earlier queries foretell a new one, once some members have answered it?"""
    for asked_first in (4,) if lab.quick else ASKED:
        yield f"earlier/{lab.name}/{asked_first}/{seed}", partial(_foretold, lab, asked_first, seed)


def _foretold(lab: Lab, asked_first: int, seed: int) -> dict[str, Any]:
    """Half of those asked were the best before, half are drawn; the others are predicted by regression."""
    if seed not in lab.losses:
        queries = range(9000 + 40 * seed, 9000 + 40 * seed + (6 if lab.quick else 40))
        lab.losses[seed] = torch.stack([lab.truth(lab.query(k), "loss").mean(1).double() for k in queries])
    losses = lab.losses[seed]
    known, new = losses[: len(losses) // 2].log().T, losses[len(losses) // 2 :]
    known = (known - known.mean(0)) / known.std() / math.sqrt(known.shape[1])
    draw, rows = torch.Generator().manual_seed(seed), []
    for truth in new:
        order = known.mean(1).argsort()
        more = order[asked_first // 2 :][torch.randperm(len(order) - asked_first // 2, generator=draw)]
        asked_now = torch.cat([order[: asked_first // 2], more])[:asked_first]
        guess, error = evidence_regression(known[asked_now], truth.log()[asked_now], known)
        rest = ~torch.isin(torch.arange(len(truth)), asked_now)
        guess[asked_now] = truth.log()[asked_now]
        scale = float(truth.median() - truth.min())
        pick, among = int(guess.argmin()), int(asked_now[truth[asked_now].argmin()])
        rows.append({
            "found": float(pick == int(truth.argmin())), "over": float(truth[pick] - truth.min()) / scale,
            "best of those asked": float(truth[among] - truth.min()) / scale,
            "covered": float(((guess - truth.log()).abs() < 2 * error)[rest].double().mean()),
        })  # fmt: skip
    means = {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
    return means | {"share": asked_first / losses.shape[1], "queries": len(rows)}


def evidence_regression(x: Tensor, y: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
    """Bayesian linear regression, its one ratio of variances by the evidence: predictions, and their deviations."""
    middle, gram, n = y.mean(), x @ x.T, len(y)
    power, basis = torch.linalg.eigh(gram)
    part = (basis.T @ (y - middle)).square()
    ratios = torch.logspace(-5, 3, 81, dtype=y.dtype)
    scales = torch.stack([(part / (power.clamp(min=0) + r)).mean() for r in ratios])
    heights = [
        n * float(s.log()) + float((power.clamp(min=0) + r).log().sum()) for s, r in zip(scales, ratios, strict=True)
    ]
    best = min(range(len(ratios)), key=heights.__getitem__)
    inverse = torch.linalg.inv(gram + ratios[best] * torch.eye(n, dtype=y.dtype))
    across = new @ x.T
    spread = new.square().sum(1) - ((across @ inverse) * across).sum(1) + ratios[best]
    return middle + across @ inverse @ (y - middle), (scales[best] * spread.clamp(min=0)).sqrt()


# ------------------------------------------------------------------ tables


def tables(record: Record, name: str) -> dict[str, str]:
    head = "asked by | members, examples | queries | best found, % | within one standard error, % | best among the tied, % | tied, % of members | cost, % of all: median / most | seconds, % of all"  # noqa: E501
    found = {}
    settings = {
        "asked cost": [f"cost/{name}/{by}" for by in ("loss", "accuracy")],
        "asked budget": [f"budget/{name}/{share:g}" for share in BUDGETS],
        "asked groups": [f"groups/{name}"],
    }
    for mark, names in settings.items():
        found |= block(f"{mark} {name}", head, [_line(record, setting) for setting in names if record.of(setting)])
    found |= block(f"asked earlier {name}", *_predicting(record, name))
    return found | block(f"asked starts {name}", *_starting(record, name))


def _line(record: Record, setting: str) -> list[str]:
    rows = record.of(setting)
    mean = lambda what: percent(sum(row[what] for row in rows) / len(rows))  # noqa: E731
    label = setting.rpartition("/")[2] if not setting.startswith("groups") else "loss, in groups"
    label = f"loss, budget {float(label):.0%}" if label.replace(".", "").isdigit() else label
    worst = f"{percent(record.median(setting, 'share'))} / {percent(max(row['most'] for row in rows))}"
    return [
        label, f"{rows[0]['members']}, {rows[0]['examples']:,}", str(sum(row["queries"] for row in rows)),
        mean("found"), mean("within"), mean("held"), mean("tied"), worst, mean("seconds"),
    ]  # fmt: skip


def _starting(record: Record, name: str) -> tuple[str, list[list[str]]]:
    head = "order by | rank correlation with the loss after fine-tuning, median / least | loss after it of the first, relative to the best (0) and the median (1) | tasks"  # noqa: E501
    rows = record.of(f"starts/{name}")
    if not rows:
        return head, []
    lines = []
    for way in ("logme", "loss", "trial"):
        orders = [row[f"{way} order"] for row in rows]
        lost = [(row[f"{way} pick"] - row["best"]) / max(1e-12, row["middle"] - row["best"]) for row in rows]
        both = f"{number(median(orders), 2)} / {number(min(orders), 2)}"
        lines.append([way, both, number(median(lost), 2), str(len(rows))])
    return head, lines


def _predicting(record: Record, name: str) -> tuple[str, list[list[str]]]:
    head = "members asked | queries | best found, % | excess loss of the pick, of the median's | of the best of those asked | truth within two standard errors, %"  # noqa: E501
    lines = []
    for asked_first in ASKED:
        rows = record.of(f"earlier/{name}/{asked_first}")
        if rows:
            mean = {what: sum(row[what] for row in rows) / len(rows) for what in rows[0]}
            shown = number(mean["over"], 2), number(mean["best of those asked"], 2), percent(mean["covered"], 0)
            many = str(sum(row["queries"] for row in rows))
            lines.append([f"{asked_first} ({mean['share']:.0%})", many, percent(mean["found"], 0), *shown])
    return head, lines


def say(row: dict[str, Any]) -> str:
    return " ".join(f"{k} {v:.3g}" for k, v in row.items() if isinstance(v, float) and math.isfinite(v))


EXPERIMENTS = {"cost": cost, "budget": budget, "groups": groups, "starts": starts, "earlier": earlier}
main = command("asked", __doc__ or "", EXPERIMENTS, Lab, tables, data="folder of MNIST's files", say=say)

if __name__ == "__main__":
    sys.exit(main())
