"""Nuisances and equivariance: information of layers about shifts, turns and light; networks equivariant to turns.

    python -m experiments.nuisance [defects layers turned history emergence] [--data DIR] [--seeds 0 1 2]

Embedded digits without --data (a folder of MNIST's files). Rows that are there are not measured again.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from itertools import product
from statistics import mean
from typing import Any

import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import Tensor, nn

import weightspace as ws
from experiments.nets import tensors
from experiments.record import Job, Record, block, brief, command, half_width, number, percent
from weightspace.codes import nuisance
from weightspace.equivariance.equivariance import reynolds_defect

NUISANCES = {
    "translation, 1 pixel": nuisance.translation(),
    "rotation, 10 degrees": nuisance.rotation(),
    "brightness, .1": nuisance.brightness(),
}
PADDINGS = ("circular", "zeros", "reflect")
WAYS, KINDS = ("upright", "quarter turns", "any angle"), ("plain", "p4", "p4m")
CHANNELS = {"plain": 16, "p4": 8, "p4m": 6}  # of networks of about as many weights
EPOCHS = (0, 1, 3, 10)
HISTORY = (0, 1, 2, 3, 5, 8, 13, 21)  # epochs at which a run is looked at
BETAS = (0.01, 0.03, 0.1, 0.2, 0.4, 0.7, 1.0)


class Lab:
    """Data, and how networks are trained on it."""

    def __init__(self, data: str | None, quick: bool) -> None:
        self.quick, self.name = quick, "mnist" if data else "digits"
        read = (lambda split: ws.mnist(data, split=split)) if data else (lambda split: ws.digits(split))
        self.train = read("train").take(100 if quick else 3000, seed=0)
        self.test = read("test").take(100 if quick else 2000, seed=0)
        self.x, self.y = tensors(self.train)
        self.side = self.x.shape[-1]
        self.steps = 8 if quick else 700

    def descend(self, module: nn.Module, seed: int, steps: int, rate: float, way: str = "upright") -> Iterator[int]:
        """Adam on batches of 64, its rate falling to nothing, the images turned as told; yields the steps made."""
        generator = torch.Generator().manual_seed(seed)
        optimiser = torch.optim.Adam(module.parameters(), lr=rate)
        module.train()
        for step in range(steps):
            some = torch.randint(len(self.x), (64,), generator=generator)
            optimiser.param_groups[0]["lr"] = rate * (1 - step / steps)
            optimiser.zero_grad()
            F.cross_entropy(module(turned(self.x[some], way, generator)), self.y[some]).backward()
            optimiser.step()
            yield step + 1


def turned(x: Tensor, way: str, generator: torch.Generator) -> Tensor:
    """Images as they are, after a random quarter turn each, or after any turn."""
    if way == "upright":
        return x
    if way == "any angle":
        return nuisance.rotation().act(x, 360 * torch.rand(len(x), 1, generator=generator)).detach()
    quarters = torch.randint(4, (len(x),), generator=generator)
    every = torch.stack([x.rot90(k, (-2, -1)) for k in range(4)])
    return every[quarters, torch.arange(len(x))]


# ------------------------------------------------------------------ defects


def defects(lab: Lab, seed: int) -> Iterator[Job]:
    """Shifts through one convolution of each padding, in outputs and in weights; turns through a p4 network."""
    for padding in PADDINGS:
        yield f"defects/{lab.name}/{padding}/{seed}", lambda padding=padding: _defect(lab, padding, seed)
    yield f"defects/{lab.name}/p4/{seed}", lambda: _turns(lab, seed)
    yield f"defects/{lab.name}/noise/{seed}", lambda: _noise(seed)


def _defect(lab: Lab, padding: str, seed: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    layer = nn.Conv2d(1, 4, 5, padding=2, padding_mode=padding, bias=False).double()
    group, some = ws.FiniteGroup.shifts((lab.side, lab.side)), lab.test.take(20 if lab.quick else 100)
    found = ws.equivariance_defect(layer, some, group)
    row: dict[str, Any] = {"one_one": found.elements[lab.side + 1], "mean": found.mean, "worst": found.worst}
    if lab.side == 8:
        ones = torch.eye(64, dtype=torch.float64).view(64, 1, 8, 8)
        with torch.no_grad():
            w = layer(ones).reshape(64, -1).T
        row["weights"] = reynolds_defect(w, group.matrices((1, 8, 8)), group.matrices((4, 8, 8)))
    return row


def _turns(lab: Lab, seed: int) -> dict[str, Any]:
    module, group = network("p4", lab.side, seed), ws.FiniteGroup.rotations()
    some = lab.test.take(100)
    plain = ws.invariance_defect(network("plain", lab.side, seed), some, group)
    single = ws.invariance_defect(module, some, group)
    double = ws.invariance_defect(module.double(), some, group)
    return {"single": single.worst, "double": double.worst, "plain": plain.worst}


def _noise(seed: int) -> dict[str, Any]:
    w = torch.randn(64, 64, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    rho = ws.FiniteGroup.shifts((8, 8)).matrices((1, 8, 8))
    return {"weights": reynolds_defect(w, rho, rho), "expected": math.sqrt(1 - 1 / 64)}


# ------------------------------------------------------------------ layers


def layers(lab: Lab, seed: int) -> Iterator[Job]:
    """Nats of every layer about a shift, a turn and the light, while a network trains."""
    for kind in ("mlp", "cnn"):
        for way in ("upright",) if lab.quick else ("upright", "any angle"):
            key = f"layers/{lab.name}/{kind}, {way}/{seed}"
            yield key, lambda kind=kind, way=way: _layers(lab, kind, way, seed)


def _layers(lab: Lab, kind: str, way: str, seed: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    if kind == "mlp":
        module = perceptron(lab.side, seed)
    else:
        one = [nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        two = [nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
        module = nn.Sequential(*one, *two, nn.Linear((lab.side // 4) ** 2 * 16, 32), nn.ReLU(), nn.Linear(32, 10))
    some, each, seen = lab.test.take(3 if lab.quick else 20, seed=0), max(1, len(lab.x) // 64), {}
    seen["0"] = _told(module, some, lab.quick)
    for step in lab.descend(module, seed, lab.steps, 3e-3, way):
        if step % each == 0 and step // each in EPOCHS or step == lab.steps:
            seen["end" if step == lab.steps else str(step // each)] = _told(module, some, lab.quick)
    return {"nats": seen, "test_error": 1 - ws.accuracy(lab.test)(ws.Net.of(module))}


def perceptron(side: int, seed: int) -> nn.Sequential:
    """Three hidden layers of 64 units."""
    torch.manual_seed(seed)
    sizes = [side**2, 64, 64, 64, 10]
    maps = [part for i, o in zip(sizes, sizes[1:], strict=False) for part in (nn.Linear(i, o), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *maps[:-1])


def _told(module: nn.Module, some: ws.Task, quick: bool) -> dict[str, dict[str, float]]:
    net, units = ws.Net.of(module), 4 if quick else 32
    told = {}
    for name, moved in NUISANCES.items():
        found = ws.effective_information(net, some, moved, units=units)
        told[name] = {layer: float(f"{at.value:.4g}") for layer, at in found.layers.items()}
    return told


# ------------------------------------------------------------------ a run, and a sweep of beta


def history(lab: Lab, seed: int) -> Iterator[Job]:
    """tr F of the weights, and what noisy activations tell of the inputs and of nuisances, along one run."""
    yield f"history/{lab.name}/mlp/{seed}", lambda: _history(lab, seed)


def _history(lab: Lab, seed: int) -> dict[str, Any]:
    module, some, each = perceptron(lab.side, seed), lab.test.take(4 if lab.quick else 20, seed=0), len(lab.x) // 64
    fisher, right = ws.fisher_trace(lab.train.take(400, seed=0), labels="all"), ws.accuracy(lab.test)
    found: dict[str, list[float]] = {}

    def look(epoch: int) -> None:
        net = ws.Net.of(module)
        told = {"epoch": epoch, "trace": fisher(net), "error": 1 - right(net)} | _nats(net, some, 0.1, lab.quick)
        for name, value in told.items():
            found.setdefault(name, []).append(float(f"{value:.4g}"))

    epochs = HISTORY[:2] if lab.quick else HISTORY
    look(0)
    for step in lab.descend(module, seed, max(epochs) * each, 3e-3):
        if step % each == 0 and step // each in epochs:
            look(step // each)
    return found


def _nats(net: ws.Net, some: ws.Task, noise: Any, quick: bool) -> dict[str, float]:
    """Nats of the last hidden layer and of the outputs about the inputs, and about every nuisance."""
    told = {}
    for name, moved in {"inputs": None, **NUISANCES}.items():
        for place, layer in (("hidden", "6"), ("outputs", "outputs")):
            found = ws.effective_information(net, some, moved, layer=layer, noise=noise, units=4 if quick else 16)
            told[f"{name}, {place}"] = found.layers[layer].value
    return told


def emergence(lab: Lab, seed: int) -> Iterator[Job]:
    """Codes of many lengths: what their activations tell of nuisances, under the noise of the code itself."""
    for beta in BETAS[:2] if lab.quick else BETAS:
        yield f"emergence/{lab.name}/{beta}/{seed}", lambda beta=beta: _emergence(lab, beta, seed)


def _emergence(lab: Lab, beta: float, seed: int) -> dict[str, Any]:
    net, some = ws.Net.of(perceptron(lab.side, seed)), lab.test.take(4 if lab.quick else 20, seed=0)
    code = ws.encode(net, lab.train.take(500, seed=0), beta, steps=60 if lab.quick else 400, seed=seed)
    row: dict[str, Any] = {"kl": code.kl, "loss": code.loss, "trivial": code.trivial}
    if not code.trivial:
        q = code.posterior
        row |= {"error": 1 - ws.accuracy(lab.test)(q.net)} | _nats(q.net, some, q, lab.quick)
    return row


def correlations(record: Record, name: str) -> list[list[str]]:
    """Rank correlation over beta of the information in the weights with that of activations; mean over seeds, 95 %."""
    rows = [row | {"seed": key.rpartition("/")[2]} for key, row in record.rows.items()
            if key.startswith(f"emergence/{name}/") and not row["trivial"]]  # fmt: skip
    seeds = sorted({row["seed"] for row in rows})
    shown = []
    for what in ("inputs", *NUISANCES):
        cells = []
        for place in ("hidden", "outputs"):
            pairs = [[(row["kl"], row[f"{what}, {place}"]) for row in rows if row["seed"] == seed] for seed in seeds]
            found = [float(spearmanr(*zip(*part, strict=True)).statistic) for part in pairs if len(part) > 2]
            ends = [max(part)[1] - min(part)[1] for part in pairs if len(part) > 2]
            cells += [_interval(found), _interval(ends)] if found else []
        shown += [[what, *cells]] if cells else []
    return shown


def _interval(values: list[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:+.2f}"
    return f"{mean(values):+.2f} ± {half_width(values):.2f}"


# ------------------------------------------------------------------ turned digits


def network(kind: str, side: int, seed: int) -> nn.Module:
    """Three convolutions of 3 x 3 with BatchNorm, over turns or not, the maximum over the plane, a linear map."""
    torch.manual_seed(seed)
    c, plain = CHANNELS[kind], kind == "plain"
    parts: list[nn.Module] = []
    for inputs in (1, c, c):
        lifting = not parts
        if parts and (side > 16 or len(parts) > 3):
            parts.append(nn.MaxPool2d(2) if plain else nn.MaxPool3d((1, 2, 2)))
        if plain:
            parts += [nn.Conv2d(inputs, c, 3, padding=1), nn.BatchNorm2d(c), nn.ReLU()]
        else:
            layer = ws.GroupConv(inputs, c, 3, kind, lifting=lifting, padding="zeros")
            parts += [layer, nn.BatchNorm3d(c), nn.ReLU()]
    last = [] if plain else [ws.GroupPool()]
    return nn.Sequential(*parts, *last, nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(c, 10))


def turned_digits(lab: Lab, seed: int) -> Iterator[Job]:
    """Networks of as many weights, trained on upright or turned images, on upright and on turned ones."""
    for kind in KINDS[:2] if lab.quick else KINDS:
        for way in WAYS[:2] if lab.quick else WAYS:
            key = f"turned/{lab.name}/{kind}, {way}/{seed}"
            yield key, lambda kind=kind, way=way: _turned(lab, kind, way, seed)


def _turned(lab: Lab, kind: str, way: str, seed: int) -> dict[str, Any]:
    module = network(kind, lab.side, seed)
    for _ in lab.descend(module, seed, 8 if lab.quick else 300, 1e-2, way):
        pass
    net, generator = ws.Net.of(module), torch.Generator().manual_seed(0)
    tests = [lab.test.mapped(lambda x, where=where: turned(x, where, generator)) for where in WAYS]
    row: dict[str, Any] = {
        "weights": net.weights.numel,
        "right": [ws.accuracy(test)(net) for test in tests],
        "train": ws.accuracy(lab.train)(net),
        "defect": ws.invariance_defect(net, lab.test.take(200), ws.FiniteGroup.rotations()).mean,
    }
    if kind == "plain":
        for how in ("max", "mean"):
            orbit = ws.invariant(net, ws.FiniteGroup.rotations(), how)
            row[how] = [ws.accuracy(test)(orbit) for test in tests]
    return row


EXPERIMENTS: dict[str, Callable[[Lab, int], Iterator[Job]]] = {
    "defects": defects, "layers": layers, "turned": turned_digits, "history": history, "emergence": emergence,
}  # fmt: skip


# ------------------------------------------------------------------ tables


def tables(record: Record, name: str) -> dict[str, str]:
    """Mark in the README -> table."""
    rows = []
    for padding in PADDINGS:
        at = f"defects/{name}/{padding}"
        if record.median(at, "mean") is not None:
            told = record.cells(at, "one_one mean worst weights", brief, 2)
            rows.append([f"convolution 5 x 5, {padding} padding", *told])
    get = record.at(f"defects/{name}/noise")
    if get("weights") is not None:
        what = f"a random 64 x 64 matrix (expected {get('expected'):.5f})"
        rows.append([what, "", "", "", f"{get('weights'):.5f}"])
    at = f"defects/{name}/p4"
    if record.median(at, "single") is not None:
        single, double, plain = record.cells(at, "single double plain", brief, 2)
        what = f"p4 network under quarter turns, float32 (float64: {double}; plain: {plain})"
        rows.append([what, "", "", single, ""])
    head = "map | shift by (1, 1) | mean over shifts | worst | of its weights"
    found, rows = block(f"nuisance defects {name}", head, rows), []
    for kind, way in product(KINDS, WAYS):
        get = record.at(f"turned/{name}/{kind}, {way}")
        if get("right") is not None:
            told = [f"{get('weights'):.0f}", *map(percent, get("right")), brief(get("defect"), 2)]
            rows.append([f"{kind}, trained {way}", *told])
            for how in ("max", "mean") if kind == "plain" else ():
                label = f"its orbit {how}imum" if how == "max" else "its orbit mean"
                rows.append([label, "", *map(percent, get(how)), "0"])
    head = "network | weights | right upright, % | after quarter turns, % | after any turn, % | invariance defect"
    found |= block(f"nuisance turned {name}", head, rows)
    found |= block(f"nuisance history {name}", *_run(record, name))
    head = (
        "nats about | hidden: correlation | from least to most information | outputs: correlation | from least to most"
    )
    found |= block(f"nuisance emergence {name}", head, correlations(record, name))
    found |= block(f"nuisance codes {name}", *_codes(record, name))
    for kind in ("mlp", "cnn"):
        found |= block(f"nuisance layers {name} {kind}", *_profile(record, name, kind))
    return found


def _run(record: Record, name: str) -> tuple[str, list[list[str]]]:
    """Medians over seeds along a run."""
    get = record.at(f"history/{name}/mlp")
    if get("epoch") is None:
        return "", []
    places = [f"{what}, {place}" for what in ("inputs", *NUISANCES) for place in ("hidden", "outputs")]
    columns = [get(column) for column in ("epoch", "trace", "error", *places)]
    head = " | ".join(["epoch", "tr F", "test error, %", *places])
    return head, [
        [f"{epoch:.0f}", brief(trace), percent(error), *(number(value, 2) for value in told)]
        for epoch, trace, error, *told in zip(*columns, strict=True)
    ]


def _codes(record: Record, name: str) -> tuple[str, list[list[str]]]:
    """Medians over seeds of the codes for every beta."""
    places = [f"{what}, outputs" for what in ("inputs", *NUISANCES)]
    rows = []
    for beta in BETAS:
        get = record.at(f"emergence/{name}/{beta}")
        if get("error") is not None:
            told = [number(get(place), 2) for place in places]
            rows.append([f"{beta:g}", f"{get('kl'):.0f}", f"{get('loss'):.0f}", percent(get("error")), *told])
    return " | ".join(["beta", "KL, nats", "E L, nats", "test error, %", *places]), rows


def _profile(record: Record, name: str, kind: str) -> tuple[str, list[list[str]]]:
    """Medians over seeds of the nats of every layer."""
    rows, labels = [], list[str]()
    for way in ("upright", "any angle"):
        seen = record.of(f"layers/{name}/{kind}, {way}")
        if not seen:
            continue
        for moved in NUISANCES:
            for epoch in seen[0]["nats"]:
                told = [row["nats"][epoch][moved] for row in seen]
                labels = list(told[0])
                values = [sorted(t[layer] for t in told)[len(told) // 2] for layer in labels]
                rows.append([moved, way, epoch, *(number(v, 2) for v in values)])
    places = [f"layer {k + 1}" for k in range(len(labels) - 1)] + ["outputs"]
    return " | ".join(["nuisance", "trained", "epoch", *places]), rows


main = command("nuisance", __doc__, EXPERIMENTS, lambda given: Lab(given.data, given.quick), tables)

if __name__ == "__main__":
    sys.exit(main())
