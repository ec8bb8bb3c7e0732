"""Everything that runs on an accelerator: a name -> a function of a bench, whose networks and examples are there."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor, nn

import weightspace as ws
from weightspace.atlas.lineage import lineage
from weightspace.commands.compare import compare
from weightspace.net.state import settled


def mlp(seed=0):
    with settled(), torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))


def cnn(seed=0):
    with settled(), torch.random.fork_rng():
        torch.manual_seed(seed)
        norm = nn.BatchNorm2d(4)
        norm.running_var.uniform_(0.5, 2)
        layers = nn.Conv2d(1, 4, 3), norm, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
        return nn.Sequential(*layers).eval()


class Bench:
    """Networks a, b and c of one architecture, one with BatchNorm, examples, and the group, on a device.

    `place` moves a tensor there; by default to `device`.
    """

    def __init__(self, device="cpu", place=None):
        self.device = device
        place = place or (lambda tensor: tensor.to(device))
        generator = torch.Generator().manual_seed(1)
        self.x = place(torch.randn(24, 6, generator=generator))
        self.y = place(torch.arange(24) % 3)
        self.pictures = place(torch.randn(24, 1, 8, 8, generator=generator))
        self.a, self.b, self.c = (self.placed(mlp(seed), place) for seed in range(3))
        self.n, self.m = (self.placed(cnn(seed), place) for seed in range(2))
        self.near = self.a.lerp(self.b, 0.05)
        self.task, self.other = ws.Task(self.x, self.y, batch=7), ws.Task(self.x.flip(1), self.y.flip(0), batch=7)
        self.seen = ws.Task(self.pictures, self.y, batch=7)
        self._groups = {}

    @staticmethod
    def placed(module, place):
        """A network whose own tensors were moved one by one."""
        net = ws.Net.of(module)
        return net.load({name: place(tensor.detach().clone()) for name, tensor in net.tensors.items()})

    @property
    def group(self):
        return self._groups.setdefault("a", ws.Symmetry.of(self.a, self.x[:2]))

    @property
    def normed(self):
        return self._groups.setdefault("n", ws.Symmetry.of(self.n, self.pictures[:2]))


def _flow(bench, metric, goal=None, **options):
    goal = goal or ws.learn(bench.task, 24)
    return ws.flow(bench.a, goal, metric, **{"steps": 3, "size": 0.05, **options})[-1]


def _optimised(bench, kind):
    module = copy.deepcopy(bench.a.module())
    optimiser = kind(module.parameters(), lr=0.01)
    for _ in range(2):
        optimiser.zero_grad()
        nn.functional.cross_entropy(module(bench.x), bench.y).backward()
        optimiser.step()
    return [p.detach() for p in module.parameters()]


def _recorded(bench):
    module = bench.a.module()
    with ws.Recorder(module, every=1, tell=None, right=ws.accuracy(bench.task)) as watch:
        with torch.no_grad():
            for p in module.parameters():
                p.mul_(0.9)
        watch.step()
    return watch.records[-1].values


def _averaged(bench):
    average = ws.ema(decay=0.5)
    for net in (bench.a, bench.b):
        average.update(net)
    return average.net()


def _hessian(b):
    return ws.curvature.hessian(b.a, b.task)


CASES = {
    "net(x)": lambda b: b.a(b.x),
    "Net.lerp": lambda b: b.a.lerp(b.b, 0.3),
    "Weights": lambda b: [(b.b - b.a).norm(), (b.b - b.a).dot(b.a.weights), (2 * b.a.weights).norms()],
    "Net.to(float64)": lambda b: b.a.to("float64"),
    "Task": lambda b: b.task(b.a),
    "accuracy": lambda b: ws.accuracy(b.task)(b.a),
    "gradient": lambda b: ws.gradient(b.task, b.a),
    "homotopy": lambda b: ws.homotopy(b.task, b.other, "inputs")(0.3)(b.a),
    "hessian": lambda b: _hessian(b).matvec(b.a.weights.flat()),
    "hessian eigenvalues": lambda b: _hessian(b).eigenvalues(2),
    "gauss_newton": lambda b: ws.gauss_newton(b.a, b.task).matvec(b.a.weights.flat()),
    "gauss_newton diagonal": lambda b: ws.curvature.curvature_diagonal(b.a, b.task),
    "gauss_newton logdet": lambda b: ws.gauss_newton(b.a, b.task).logdet(scale=1.0).value,
    "trace": lambda b: _hessian(b).trace(probes=4).value,
    "fisher_trace": lambda b: ws.fisher_trace(b.task)(b.a),
    "tangent kernel": lambda b: ws.curvature.kernel(b.a, b.task.take(6)),
    "Euclidean": lambda b: _flow(b, ws.Euclidean()),
    "Relative": lambda b: _flow(b, ws.Relative()),
    "Spectral": lambda b: _flow(b, ws.Spectral()),
    "Adam": lambda b: _flow(b, ws.metric.Adam()),
    "Pullback": lambda b: _flow(b, ws.Pullback(b.other, damping=1e-2)),
    "NullSpace": lambda b: _flow(b, ws.NullSpace.of(ws.Adam(), b.a, b.other.take(3), 0.1)),
    "prune": lambda b: ws.flow(b.a, ws.prune(0.3), ws.Pullback(b.task, damping=1e-2), steps=2, size=0.05)[-1],
    "ewc": lambda b: _flow(b, ws.Euclidean(), ws.learn(b.task, 24) + ws.ewc(b.a, b.other)),
    "Fromage": lambda b: _optimised(b, ws.optim.Fromage),
    "Lamb": lambda b: _optimised(b, ws.optim.Lamb),
    "Recorder": _recorded,
    "ema": _averaged,
    "line": lambda b: ws.line(b.a, b.b).along(b.task, 3),
    "barrier": lambda b: ws.line(b.a, b.b).barrier(b.task),
    "length": lambda b: ws.line(b.a, b.b).length(ws.Pullback(b.task)),
    "Symmetry": lambda b: str(b.group),
    "Symmetry, BatchNorm": lambda b: str(b.normed),
    "sample": lambda b: b.group.sample(seed=1)(b.a),
    "align": lambda b: b.group.align(b.b, to=b.a),
    "align, activations": lambda b: b.group.align(b.b, to=b.a, data=b.task, method="activations"),
    "align, frank-wolfe": lambda b: b.group.align(b.b, to=b.a, method="frank-wolfe"),
    "align, refine": lambda b: b.group.align(b.b, to=b.a, data=b.task, method="refine"),
    "align, BatchNorm": lambda b: b.normed.align(b.m, to=b.n),
    "canonical": lambda b: b.group.canonical(b.a),
    "balance": lambda b: b.group.balance(b.a),
    "modulo": lambda b: ws.modulo(b.group)(b.a, b.near),
    "mean": lambda b: ws.mean([b.a, b.b, b.c], b.group),
    "mean, BatchNorm": lambda b: ws.mean([b.n, b.m], b.normed, data=b.seen),
    "compare": lambda b: compare(b.a, b.b, b.group, align_on=b.task, measure_on=b.other).relative,
    "distances": lambda b: ws.distances(b.a, b.b, b.task).alike,
    "gates": lambda b: ws.gates(b.task)(b.a),
    "features": lambda b: ws.features(b.task)(b.a),
    "perturb": lambda b: ws.perturb(b.a, 0.1),
    "stability": lambda b: ws.stability(b.a, b.task, [0.1], draws=2),
    "relative_trust": lambda b: ws.relative_trust(b.a, b.near),
    "certificate": lambda b: ws.certificate(b.a, b.near, b.task).bound,
    "information": lambda b: ws.information(b.a, b.task).value,
    "pac_bayes": lambda b: ws.pac_bayes(b.a, b.task, steps=3, draws=50).bound,
    "logme": lambda b: ws.logme(ws.codes.head_features(b.a, b.task), b.y),
    "task2vec": lambda b: ws.codes.task2vec(b.a, b.task),
    "task_distance": lambda b: ws.task_distance(b.task, b.other, b.a, steps=3).value,
    "encode": lambda b: ws.encode(b.a, b.task, steps=3).kl,
    "attack": lambda b: ws.attack(b.a, b.task, 0.1, 2).example(24),
    "pairwise": lambda b: ws.atlas.pairwise([b.a.tensors, b.b.tensors, b.c.tensors]).distances,
    "lineage": lambda b: len(lineage([b.a.tensors, b.near.tensors, b.c.tensors]).edges),
    "merge, linear": lambda b: ws.merge([b.a, b.b], ws.merging.Recipe("linear")),
    "merge, ties": lambda b: ws.merge([b.near, b.b], ws.merging.Recipe("ties"), base=b.a),
    "widen": lambda b: ws.widen(b.a, 2, b.x[:2]),
    "project": lambda b: ws.project(b.a, {"2.weight": "circulant"}),
    "grow": lambda b: ws.grow(b.a, outputs=1),
}  # fmt: skip
RANDOM = {  # numbers drawn on the device are others than on the CPU
    "perturb", "stability", "attack", "pac_bayes", "task_distance", "encode", "grow", "widen", "trace", "information",
    "gauss_newton logdet", "align, refine", "sample", "fisher_trace", "ewc", "task2vec",
}  # fmt: skip


def tensors(found):
    """The tensors in a result, of networks, vectors and dataclasses too; numbers as they are."""
    if isinstance(found, Tensor):
        yield found
    elif isinstance(found, ws.Net):
        yield from (found.tensors[name] for name in found.tensors)
    elif isinstance(found, ws.Weights):
        yield from (found[name] for name in found)
    elif isinstance(found, Mapping):
        for part in found.values():
            yield from tensors(part)
    elif isinstance(found, (list, tuple)):
        for part in found:
            yield from tensors(part)
    elif dataclasses.is_dataclass(found):
        yield from tensors(vars(found))
    elif isinstance(found, (int, float)):
        yield torch.tensor(float(found), dtype=torch.float64)
