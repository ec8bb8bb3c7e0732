"""PAC-Bayes certificates: bounds on the error on new data (Dziugaite, Roy, 2017; Perez-Ortiz et al., 2021).

    python -m experiments.certify [binary taught few whole] [--data DIR] [--rows T-600 ..] [--seeds 0]

Embedded digits without --data (a folder of MNIST's files). Rows that are there are not measured again.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import weightspace as ws
from experiments.continual import jitter
from experiments.nets import CACHE, kept, tensors
from experiments.record import Job, Record, block, command, number, percent
from weightspace.risk import inequalities

# rows of the paper: hidden layers; certificate, error of the stochastic network on training and test data, KL
ROWS: dict[str, tuple[int, ...]] = {
    "T-600": (600,), "R-600": (600,), "T-300^2": (300, 300), "T-1200": (1200,), "T-600^2": (600, 600),
    "T-1200^2": (1200, 1200), "T-600^3": (600, 600, 600), "T-100": (100,), "T-30": (30,),
}  # fmt: skip
PUBLISHED = {
    "T-600": (0.161, 0.028, 0.034, 5144), "T-1200": (0.179, 0.027, 0.035, 5977), "T-300^2": (0.170, 0.027, 0.034, 5791),
    "T-600^2": (0.186, 0.028, 0.033, 6534), "T-1200^2": (0.223, 0.029, 0.035, 8558),
    "T-600^3": (0.201, 0.027, 0.032, 7861), "R-600": (1.352, 0.112, 0.503, 201131),
}  # fmt: skip
STEPS = {"R-600": 600, "T-300^2": 2000}  # 4,000 where none are told
DEVIATIONS = (0.003, 0.01, 0.03, 0.1)
FAMILIES = ("kl", "catoni", "langford", "f_quad", "f_lambda", "mcallester", "pinsker", "hold-out")
DELTA, PUBLISHED_DELTA = 0.05, 0.035
GUESS = (0.01, 2.0)  # error and nats of a taught prior
# digits, notes on the same question: certificate of the inverse, error of the stochastic network on test data
FEW = {
    "binary, fresh, 16": (0.399, 0.102), "binary, fresh, 64": (0.586, None), "binary, fresh, 256": (0.695, None),
    "binary, taught .01, 64": (0.095, 0.025), "binary, taught .03, 64": (0.100, 0.027),
    "binary, taught .1, 64": (0.143, 0.049), "10 classes, taught .01, 64": (0.126, 0.048),
    "10 classes, fresh, 64": (0.87, None),
}  # fmt: skip


class Lab:
    """Data, and networks that half of it has taught."""

    def __init__(self, data: str | None, quick: bool, rows: Sequence[str] = ()) -> None:
        self.quick, self.name = quick, "mnist" if data else "digits"
        read = (lambda s: ws.mnist(data, s).mapped(lambda x: 0.3081 * x + 0.1307)) if data else ws.digits
        self.train, self.test = read("train"), read("test")
        self.rows = list(rows) or (["T-30"] if quick else ["T-600", "T-100", "T-300^2", "R-600"])
        self.taught = cache(self._taught)

    def halves(self, seed: int) -> tuple[ws.Task, ws.Task]:
        """What teaches the prior, and what is certified on."""
        return self.train.split(0.5, seed)

    def _taught(self, seed: int) -> ws.Net:
        """A convolutional network that half of the images have taught, turned and moved a little; kept on disk."""
        torch.manual_seed(seed)
        module, (first, _) = cnn(), self.halves(seed)
        epochs = 2 if self.quick else 10
        make = lambda: [ws.Net.of(_fitted(module, *tensors(first), epochs, seed))]  # noqa: E731
        folder = CACHE / f"certify-{self.name}-{epochs}-{seed}"
        return make()[0] if self.quick else kept(folder, ws.Net.of(module), make)[0]


def cnn() -> nn.Sequential:
    """Three convolutions with pooling, then two linear layers; images of 28 pixels or 8, made 28 wide."""
    convolutions: list[nn.Module] = [nn.Upsample((28, 28))]
    for i, o in ((1, 16), (16, 32), (32, 64)):
        convolutions += [nn.Conv2d(i, o, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(
        nn.Sequential(*convolutions, nn.Flatten()),
        nn.Sequential(nn.Linear(576, 128), nn.ReLU(), nn.Linear(128, 10)),
    )


def _fitted(module: nn.Sequential, x: Tensor, y: Tensor, epochs: int, seed: int) -> nn.Sequential:
    generator, size = torch.Generator().manual_seed(seed), 100
    optimiser = torch.optim.AdamW(module.parameters(), lr=2e-3, weight_decay=0.01)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=epochs * -(-len(x) // size) + 1)
    for epoch in range(epochs):
        for some in torch.randperm(len(x), generator=generator).split(size):
            optimiser.zero_grad()
            h = module[0](jitter(x[some], generator))
            F.cross_entropy(module[1](F.dropout(h, 0.2)), y[some], label_smoothing=0.05).backward()
            optimiser.step()
            cycle.step()
        print(f"prior, epoch {epoch + 1} of {epochs}", flush=True)
    return module


def perceptron(inputs: int, hidden: Sequence[int], outputs: int, seed: int = 0) -> ws.Net:
    torch.manual_seed(seed)
    sizes = [inputs, *hidden, outputs]
    parts = [p for i, o in zip(sizes, sizes[1:], strict=False) for p in (nn.Linear(i, o), nn.ReLU())]
    return ws.Net.of(nn.Sequential(nn.Flatten(), *parts[:-1]))


def halved(task: ws.Task, coins: int | None = None) -> ws.Task:
    """0-4 against 5-9; with `coins` a seed, labels of fair coins instead."""
    y = task.labels()
    if coins is None:
        return task.relabelled((y < 5).long())
    return task.relabelled(torch.randint(0, 2, (len(y),), generator=torch.Generator().manual_seed(coins)))


def _row(found: ws.RiskBound, began: tuple[float, float]) -> dict[str, Any]:
    bounds = {row.name: row.bound for row in found.families}
    return {
        "bound": found.bound,
        "error": found.error,
        "test": found.test_error,
        "nats": found.nats,
        "grid": found.grid,
        "examples": found.examples,
        "draws": found.draws,
        "centre": found.centre_error,
        "weights": found.prior.net.weights.numel,
        "families": [bounds[name] for name in FAMILIES],
        "unproven": bounds["kl, mean of the draws"],
        "seconds": time.perf_counter() - began[0],
        "cpu": time.process_time() - began[1],
        "threads": torch.get_num_threads(),
    }


def _began() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def binary(lab: Lab, seed: int) -> Iterator[Job]:
    """0-4 against 5-9 from a random initialisation: the rows of Dziugaite and Roy, as many examples, the same delta."""
    for row in lab.rows:
        yield f"binary/{lab.name}/{row}/{seed}", lambda row=row: _binary(lab, row, seed)


def _binary(lab: Lab, row: str, seed: int) -> dict[str, Any]:
    train, test = (halved(task, seed if row.startswith("R") else None) for task in (lab.train.take(55_000), lab.test))
    net, began = perceptron(train.example(1).numel(), ROWS[row], 2), _began()
    steps, draws = (200, 20_000) if lab.quick else (STEPS.get(row, 4000), 500_000)
    print(row, ws.risk.cost(net, train, steps=steps, draws=draws), flush=True)
    found = ws.pac_bayes(net, train, PUBLISHED_DELTA, test=test, steps=steps, draws=draws, seed=seed)
    return _row(found, began)


def taught(lab: Lab, seed: int) -> Iterator[Job]:
    """Ten classes, a convolutional prior that half of the images have taught, the other half certifies its last layers.

    The convolutions are the same in P and Q, so that the certified network is a function of their features.
    """
    for deviation in DEVIATIONS[1:2] if lab.quick else DEVIATIONS:
        yield f"taught/{lab.name}/last layers, {deviation:g}/{seed}", lambda d=deviation: _taught(lab, seed, d)
    yield f"taught/{lab.name}/last layers, learnt/{seed}", lambda: _taught(lab, seed, None)


def whole(lab: Lab, seed: int) -> Iterator[Job]:
    """The same with noise in all layers, as in the paper; draws cost most of it."""
    if not lab.quick:
        yield f"taught/{lab.name}/whole, 0.003/{seed}", lambda: _whole(lab, seed, 0.003)


def _taught(lab: Lab, seed: int, deviation: float | None) -> dict[str, Any]:
    whole, (first, second) = lab.taught(seed), lab.halves(seed)
    seen, task, test = (_features(whole, t) for t in (first, second, lab.test))
    head = ws.Net.of(whole.module()[1])
    options: dict[str, Any] = {} if deviation is None else _alone(task)
    steps, draws = (50, 20_000) if lab.quick else (500, 1_000_000)
    began = _began()
    found = ws.pac_bayes(head, task, DELTA, prior=head, seen=seen, test=test, deviation=deviation, steps=steps,
                         lr=0.02, draws=draws, seed=seed, **options)  # fmt: skip
    return _row(found, began)


def _alone(task: ws.Task) -> dict[str, Any]:
    """Catoni's bound with one constant, from an error and a divergence that were guessed before the data were seen."""
    return {"family": "catoni", "constants": (inequalities.constant(GUESS[0], GUESS[1], len(task), DELTA),)}


def _features(whole: ws.Net, task: ws.Task) -> ws.Task:
    convolutions = whole.module()[0]
    with torch.no_grad():
        return task.mapped(lambda x: torch.cat([convolutions(part) for part in x.split(500)]))


def _whole(lab: Lab, seed: int, deviation: float) -> dict[str, Any]:
    net, (first, second) = lab.taught(seed), lab.halves(seed)
    steps, draws = (10, 2000) if lab.quick else (100, 60_000)
    began = _began()
    found = ws.pac_bayes(net, second, DELTA, prior=net, seen=first, test=lab.test, deviation=deviation, steps=steps,
                         lr=0.02, batch=100, draws=draws, group=4, seed=seed, **_alone(second))  # fmt: skip
    return _row(found, began)


def few(lab: Lab, seed: int) -> Iterator[Job]:
    """Some 1,300 images of 8x8 pixels: fresh and taught priors, two classes and ten."""
    if lab.name != "digits":
        return
    for name in list(FEW)[:1] + list(FEW)[3:4] if lab.quick else FEW:
        yield f"few/digits/{name}/{seed}", lambda name=name: _few(lab, name, seed)


def _few(lab: Lab, name: str, seed: int) -> dict[str, Any]:
    what, prior, width = name.split(", ")
    train, test = (halved(t) if what == "binary" else t for t in (lab.train, lab.test))
    net = perceptron(64, (int(width),), 2 if what == "binary" else 10, seed)
    steps, draws = (100, 5000) if lab.quick else (2000, 200_000)
    options: dict[str, Any] = {"steps": steps, "draws": draws, "batch": 200, "seed": seed, "test": test}
    began = _began()
    if prior == "fresh":
        return _row(ws.pac_bayes(net, train, DELTA, **options), began)
    first, second = train.split(0.5, seed)
    net = ws.flow(net, ws.learn(first, 64, seed), ws.Adam(), steps=300, size=3e-3, save=10**6)[-1]
    options |= {"prior": net, "seen": first, "deviation": float(prior.split()[1]), "lr": 0.02}
    return _row(ws.pac_bayes(net, second, DELTA, **options, **_alone(second)), began)


EXPERIMENTS: dict[str, Callable[[Lab, int], Iterator[Job]]] = {
    "binary": binary, "taught": taught, "few": few, "whole": whole,
}  # fmt: skip


# ------------------------------------------------------------------ tables


def tables(record: Record, name: str) -> dict[str, str]:
    """Mark in the README -> table."""
    rows = []
    for row in ROWS:
        get = record.at(f"binary/{name}/{row}")
        if get("bound") is not None:
            told = PUBLISHED.get(row, (None,) * 4) if name == "mnist" else (None,) * 4
            claimed = [number(told[0]), number(told[1]), number(told[2]), f"{told[3]:,}" if told[3] else ""]
            measured = [number(get("bound")), number(get("error")), number(get("test")), f"{get('nats'):,.0f}"]
            rows.append([row, f"{get('weights'):,}", *claimed, *measured, f"{get('cpu') / 60:.1f}"])
    head = "network | weights | claimed: bound | train | test | KL | measured: bound | train | test | KL"
    found = block(f"certify binary {name}", f"{head} | minutes of one core", rows)
    rows = []
    for what, at in _settings(record, name):
        rows.append([what, *map(number, record.median(at, "families"))])
    found |= block(f"certify families {name}", ["network", *FAMILIES], rows)
    rows = []
    for kind in (*(f"last layers, {d:g}" for d in DEVIATIONS), "last layers, learnt", "whole, 0.003"):
        get = record.at(f"taught/{name}/{kind}")
        if get("bound") is not None:
            last = get("families")[-1]
            shown = [percent(v, 2) for v in (get("centre"), get("error"), get("test"))]
            rows.append([kind, *shown, f"{get('nats'):.2g}", percent(get("bound"), 2), percent(last, 2),
                         "yes" if get("bound") < last else "no"])  # fmt: skip
    head = "noise in | prior's error, % | Q's, % | Q's on test data, % | KL | certificate, % | "
    head += "hold-out bound, % | below it"
    found |= block(f"certify taught {name}", head, rows)
    rows = []
    for what, (bound, error) in FEW.items():
        get = record.at(f"few/{name}/{what}")
        if get("bound") is not None:
            claimed = [number(bound), number(error)]
            rows.append([what, *claimed, *(number(get(k)) for k in ("bound", "test")), f"{get('nats'):.3g}",
                         number(get("families")[-1])])  # fmt: skip
    head = "network | noted: bound | test | measured: bound | test | KL | hold-out bound"
    found |= block(f"certify few {name}", head, rows)
    return found


def _settings(record: Record, name: str) -> Iterator[tuple[str, str]]:
    """One fresh prior, one taught one, and random labels."""
    fresh = ("T-600", "T-100", "T-30", "R-600")
    rest = ("last layers, 0.01", "taught"), ("binary, fresh, 16", "few"), ("10 classes, taught .01, 64", "few")
    for what, at in (*((row, "binary") for row in fresh), *rest):
        if record.median(f"{at}/{name}/{what}", "bound") is not None:
            yield what, f"{at}/{name}/{what}"


main = command(
    "certify",
    __doc__,
    EXPERIMENTS,
    lambda given: Lab(given.data, given.quick, given.rows),
    tables,
    seeds=[0],
    options={"--rows": {"nargs": "*", "default": [], "choices": ROWS, "help": "of binary"}},
    say=lambda row: f"{row['bound']:.4f}",
)

if __name__ == "__main__":
    sys.exit(main())
