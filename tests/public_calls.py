"""A call of every public function, small enough to be made many times: name -> a function of no arguments."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import math
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import weightspace as ws
from weightspace import merging
from weightspace.atlas.averages import averages
from weightspace.atlas.families import families, scaled
from weightspace.atlas.gram import against, pairwise
from weightspace.atlas.independence import independence, renumbering
from weightspace.atlas.lineage import lineage
from weightspace.atlas.relatives import relation
from weightspace.atlas.sketches import sketch
from weightspace.net.state import settled


def public_files() -> dict[str, tuple[Any, list[str]]]:
    """Every file of which a wing hands on names: its last name -> the module, and its names that are public."""
    found = {}
    for wing in ws._CONTENTS:
        package = importlib.import_module(f"weightspace.{wing}")
        tree = ast.parse(Path(str(package.__file__)).read_text())
        for node in (n for n in ast.walk(tree) if isinstance(n, ast.Dict)):
            for file, names in ast.literal_eval(node).items():
                if not file.startswith("weightspace."):
                    there = importlib.import_module(f"weightspace.{wing}.{file}")
                    marked = [
                        name for name in getattr(there, "__all__", ()) if hasattr(getattr(there, name), "_public")
                    ]
                    found[file.split(".")[-1]] = there, sorted({*names, *marked})
    return found


def module(seed: int = 0) -> nn.Module:
    with settled(), torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)
        return nn.Sequential(*layers).to(torch.float32)


def normed(seed: int = 0) -> nn.Module:
    with settled(), torch.random.fork_rng():
        torch.manual_seed(seed)
        made = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)).to(torch.float32)
        made[1].running_var.uniform_(0.5, 2)
        return made.eval()


def inputs(n: int = 24, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 6, generator=generator, dtype=torch.float32, device="cpu")


def classes(n: int = 24) -> Tensor:
    return torch.arange(n, device="cpu") % 3


def task(n: int = 24, seed: int = 1) -> ws.Task:
    return ws.Task(inputs(n, seed), classes(n), batch=7)


def pictures(n: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(n, 1, 8, 8, generator=generator, dtype=torch.float32, device="cpu")


def painter() -> ws.Net:
    with settled(), torch.random.fork_rng():
        torch.manual_seed(0)
        return ws.Net.of(nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.ReLU(), nn.Linear(4, 3)).to(torch.float32))


A, B, C = (ws.Net.of(module(seed)) for seed in range(3))
N = ws.Net.of(normed())
X = inputs()
GROUP = ws.Symmetry.of(A, X[:2])
NORMED = ws.Symmetry.of(N, X[:2])
A2 = ws.constrain(A, {"2.weight": "circulant"})
CODE = ws.encode(A, task(), steps=5)
FEW = {"steps": 5}


def near(net: ws.Net = A, seed: int = 0) -> ws.Net:
    return net + 0.05 * net.weights.randn(seed)


def mixed() -> list[dict[str, Tensor]]:
    """Three networks, and the average of two of them."""
    return [net.tensors for net in (A, near(), C, A.lerp(near(), 0.3))]


def low_rank(folder: str, seed: int = 0) -> Path:
    """The folder of an adapter of the second layer of the networks here."""
    generator = torch.Generator(device="cpu").manual_seed(seed)
    make = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float32, device="cpu")  # noqa: E731
    factors = {"2.lora_A.weight": make(2, 8), "2.lora_B.weight": make(8, 2)}
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["2"]}
    return merging.NewAdapter(config, factors, {}).save(Path(folder) / f"adapter-{seed}")


def of_adapters(ask: Callable[[Path, Path], Any]) -> Any:
    """What is asked of two adapters in folders."""
    with tempfile.TemporaryDirectory() as folder:
        return ask(low_rank(folder), low_rank(folder, 1))


def sphere(net: ws.Net) -> Tensor:
    return net.weights.dot(net.weights)


CALLS: dict[str, Callable[[], Any]] = {
    "Net": lambda: ws.Net.of(module()),
    "net(x)": lambda: A(X),
    "Net.to": lambda: A.to("float64"),
    "Net.lerp": lambda: A.lerp(B, 0.3),
    "Net.module": lambda: ws.Net.of(A.module()),
    "Weights": lambda: [(B - A).norm(), (B - A).dot(A.weights), A.weights.randn(0), (2 * A.weights).norms()],
    "fresh": lambda: ws.fresh(module(), 3),
    "Task": lambda: [task()(A), task().distances(A).detach(), ws.Task(np.ones((4, 6), "float32"), np.arange(4) % 3)(A)],
    "accuracy": lambda: ws.accuracy(task())(A),
    "homotopy": lambda: [ws.homotopy(task(), task(seed=2), k)(0.3)(A) for k in ("inputs", "batches")],
    "attack": lambda: ws.attack(A, task(), 0.1, 2, norm="l2", restarts=2).example(24),
    "robust_accuracy": lambda: ws.robust_accuracy(task(), [0.1, 0.3], 2)(A),
    "morph": lambda: ws.morph(A, ws.homotopy(task(), task(seed=2)), bound=9.0, budget=2).net,
    "gradient": lambda: ws.gradient(task(), A),
    "value_and_gradient": lambda: ws.task.value_and_gradient(task(), A),
    "Symmetry": lambda: str(ws.Symmetry.of(N, X[:2])),
    "sample": lambda: GROUP.sample(seed=1)(A),
    "align": lambda: GROUP.align(GROUP.sample(seed=1)(near()), to=A),
    "align with data": lambda: GROUP.align(GROUP.sample(seed=1)(near()), to=A, data=task()),
    "canonical": lambda: GROUP.canonical(A),
    "balance": lambda: NORMED.balance(N),
    "mean": lambda: ws.mean([A, B], GROUP),
    "grow": lambda: ws.grow(A, outputs=2),
    "widen": lambda: ws.widen(A, 2, X[:2]),
    "widen_toward": lambda: ws.symmetry.widen_toward(A, ws.widen(B, 2, X[:2]), X[:2]),
    "narrow_toward": lambda: ws.symmetry.narrow_toward(ws.widen(B, 2, X[:2]), A, X[:2]),
    "narrow": lambda: ws.narrow(ws.widen(B, 2, X[:2]), A, task(), steps=2),
    "deepen": lambda: ws.deepen(A, A, X[:2]),
    "merge": lambda: [ws.merge([A, B], weights=[2, 1]), ws.merge([A, B], "task_arithmetic", base=C)],
    "planned": lambda: str(ws.merging.planned([A.tensors, B.tensors]).table()),
    "write": lambda: written(A, B),
    "mean with data": lambda: ws.mean([A, near()], GROUP, data=task()),
    "repair": lambda: ws.repair(N, [N, N], task()),
    "constrain": lambda: ws.constrain(A, {"2.weight": "symmetric", "0.weight": "low-rank:2"}),
    "project": lambda: [ws.project(A, {"2.weight": kind}) for kind in ("circulant", "orthogonal", "asymmetric:0.3")],
    "released": lambda: ws.constraints.released(ws.constrain(A, {"2.weight": "orthogonal"})),
    "with_weights": lambda: ws.constraints.with_weights(A2, ws.constraints.released(A2)),
    "circular": lambda: ws.constraints.circular(X[0], X, (6,)),
    "kind": lambda: str(ws.constraints.kind("low-rank:2")),
    "kinds_of": lambda: [str(kind) for kind in ws.constraints.kinds_of(A2).values()],
    "conform": lambda: ws.conform({"2.weight": "toeplitz"}).value_and_gradient(A, 0),
    "remaining": lambda: [m(A2) for m in ws.symmetry.remaining(A2, X[:2])],
    "refine": lambda: ws.symmetry.refine(GROUP, near(), A, GROUP.identity(), ws.Task(X), steps=5).losses,
    "Divergence": lambda: [ws.path.Divergence(ws.Task(X), [A, B])(near()), ws.line(A, B).divergence(task(), 3)],
    "reset_statistics": lambda: ws.reset_statistics(N, task()),
    "Euclidean": lambda: [ws.Euclidean().norm(A, B - A), ws.Euclidean().steepest(A, B - A)],
    "Relative": lambda: [ws.Relative().norm(A, B - A), ws.Relative().steepest(A, B - A)],
    "Spectral": lambda: [ws.Spectral().norm(A, B - A), ws.Spectral().steepest(A, B - A)],
    "Adam": lambda: ws.flow(A, ws.learn(task()), ws.Adam(), steps=2, size=0.01)[-1],
    "NullSpace": lambda: ws.flow(
        A, ws.learn(task()), ws.NullSpace.of(ws.Adam(), A, task(6), 0.1).add(B, task(4)), steps=2, size=0.01
    )[-1],
    "Pullback": lambda: [ws.Pullback(task()).norm(A, B - A), ws.Pullback(task()).spectrum(A, 2)],
    "Pullback.drift": lambda: ws.Pullback(task()).drift(near(), A),
    "Pullback.capacity": lambda: ws.Pullback(task(6)).capacity(A, task(seed=2)),
    "Pullback.step": lambda: ws.Pullback(task(6)).step(A, ws.gradient(task(), A), length=0.1),
    "euclidean": lambda: ws.euclidean(A, B),
    "functional": lambda: ws.functional(A, B, task()),
    "distances": lambda: ws.distances(A, B, task(), "maps").procrustes,
    "nearest": lambda: [r.loss for r in ws.nearest(task(), {"a": A, "b": B}, steps=4).found.ranking],
    "pairwise": lambda: pairwise([net.tensors for net in (A, B, C)]).distances,
    "against": lambda: against(C.tensors, [A.tensors, B.tensors]).distances,
    "sketch": lambda: sketch(A.tensors).distance(sketch(B.tensors)),
    "independence": lambda: independence(A.tensors, near().tensors, GROUP).sigmas,
    "renumbering": lambda: list(renumbering(A.tensors, B.tensors, GROUP).axes.values()),
    "relation": lambda: relation(A.tensors, near().tensors).distance,
    "averages": lambda: averages(mixed(), pairwise(mixed()))[0].weights,
    "lineage": lambda: [e.share for e in lineage(mixed(), net=A, group=GROUP, draws=9).edges],
    "scaled": lambda: [scaled(pairwise(mixed()).distances).stress, families(pairwise(mixed())).family],
    "layerwise": lambda: ws.layerwise(A, B),
    "modulo": lambda: ws.modulo(GROUP)(A, near()),
    "relative_trust": lambda: ws.relative_trust(A, near()),
    "log_relative_trust": lambda: ws.log_relative_trust(A, near(), symmetric=True),
    "cka": lambda: ws.cka(X, X[:, :4] ** 2),
    "svcca": lambda: ws.svcca(X, X[:, :4] ** 2),
    "pwcca": lambda: ws.pwcca(X, X[:, :4] ** 2),
    "procrustes": lambda: ws.procrustes(X, X.flip(1) ** 2),
    "similarity": lambda: ws.similarity(ws.features(task())(A), ws.features(task())(B)),
    "certificate": lambda: ws.certificate(A, near(), task()).bound,
    "lipschitz": lambda: ws.lipschitz(A, task()),
    "displacement": lambda: ws.trust.displacement(A, task(), 0.1),
    "perturb": lambda: ws.perturb(A, 0.1, seed=0),
    "stability": lambda: ws.stability(A, task(), (0.1,), draws=2),
    "width": lambda: ws.width(A, task(), draws=2),
    "sensitivities": lambda: ws.sensitivities(A, task()),
    "breakdown": lambda: ws.breakdown(A, task(), (0.1,)),
    "trust_per_example": lambda: ws.trust_per_example(A, task(), 0.1),
    "fisher_trace": lambda: ws.fisher_trace(task(), labels="all")(A),
    "gradient_noise": lambda: ws.gradient_noise(task())(A),
    "gauss_newton": lambda: ws.gauss_newton(A, task()).dense(),
    "fisher_information": lambda: ws.fisher_information(A, task()).dense(),
    "hessian": lambda: ws.hessian(A, task()).dense(),
    "curvature_diagonal": lambda: ws.curvature_diagonal(A, task()),
    "jacobian": lambda: ws.jacobian(A, task()).dense(),
    "Operator": lambda: [ws.gauss_newton(A, task()).trace(seed=0), ws.gauss_newton(A, task()).diagonal()],
    "kernel": lambda: ws.curvature.kernel(A, task()),
    "spectral_norm": lambda: ws.spectral_norm(A.weights["0.weight"]),
    "spectral_bound": lambda: ws.spectral_bound(A.weights["0.weight"]),
    "encode": lambda: ws.encode(A, task(), steps=5).kl,
    "Code": lambda: [CODE.kl, CODE.length],
    "Gaussian": lambda: CODE.posterior.sample(0),
    "Quadratic": lambda: ws.Quadratic(0.5, X[0].square(), X[1]).kl(0.1),
    "learning_coefficient": lambda: ws.learning_coefficient(A, task(), chains=2, draws=10, burn=5).value,
    "information": lambda: ws.information(A, task()).value,
    "flatness_bound": lambda: ws.flatness_bound(A, task()),
    "structure_function": lambda: ws.structure_function(module, task(), betas=(0.1,), seeds=(0,), steps=5).runs,
    "random_labels": lambda: ws.random_labels(task(), 0.5, seed=0).labels(),
    "logme": lambda: ws.logme(X, classes()),
    "task2vec": lambda: ws.task2vec(A, task()).distance(ws.task2vec(A, task(seed=2)), "cosine"),
    "task_distance": lambda: ws.task_distance(task(), task(seed=2), module(), seeds=(0,), steps=5).value,
    "task_distances": lambda: ws.task_distances({"a": task(), "b": task(seed=2)}, module(), seeds=(0,), steps=5).data(),
    "equivariance_defect": lambda: ws.equivariance_defect(nn.AvgPool2d(2), pictures(), ws.FiniteGroup.rotations()),
    "invariance_defect": lambda: ws.invariance_defect(painter(), ws.Task(pictures()), ws.FiniteGroup.rotations()),
    "invariant": lambda: ws.invariant(painter(), ws.FiniteGroup.rotations())(pictures()),
    "effective_information": lambda: ws.effective_information(
        painter(), ws.Task(pictures(), classes(4)), ws.codes.brightness()
    ),
    "kl_inverse": lambda: ws.kl_inverse(0.1, 0.05),
    "pac_bayes": lambda: ws.pac_bayes(A, task(), steps=5, draws=50).bound,
    "gates": lambda: ws.self_path(ws.gates(task())(A), ws.gates(task())(B)),
    "features": lambda: ws.features(task())(A),
    "forced": lambda: ws.forced(B, ws.gates(task())(A)),
    "cross_path": lambda: ws.cross_path(ws.gates(task())(A), ws.gates(task())(B)),
    "image_function": lambda: ws.image_function(A, task(), 0),
    "line": lambda: [ws.line(A, B).barrier(task()), ws.line(A, B).length(ws.Euclidean())],
    "curve": lambda: ws.curve(A, B, task(), steps=3)(0.5),
    "swa": lambda: ws.swa([A, B, C]),
    "Path": lambda: ws.line(A, B).along(task(), n=3),
    "plane": lambda: ws.plane(A, B, C).grid({"loss": task()}, 3),
    "action": lambda: ws.action(ws.line(A, B), task(), temperature=1.0, times=[0.0, 1.0]),
    "sgd_temperature": lambda: ws.sgd_temperature(A, task(), 0.1, 8),
    "kramers_rate": lambda: ws.kramers_rate(1.0, 0.1, np.eye(1), -np.eye(1)),
    "minimum_action_path": lambda: ws.minimum_action_path(A, B, task(), steps=2),
    "flow": lambda: ws.flow(A, ws.learn(task()), ws.Euclidean(), steps=2, size=0.01)[-1],
    "flow, pullback": lambda: ws.flow(A, ws.learn(task()), ws.Pullback(task(6)), steps=2, size=0.01)[-1],
    "prune": lambda: ws.flow(A, ws.prune(0.5), ws.Pullback(task(6)), steps=2)[-1],
    "ewc": lambda: ws.gradient(ws.ewc(A, task()), near()),
    "learn": lambda: ws.gradient(ws.learn(task()), A),
    "hold": lambda: ws.gradient(ws.hold(task(), A), near()),
    "gem": lambda: ws.gradient(ws.gem(ws.learn(task()), [task(seed=2)]), near()),
    "harden": lambda: ws.gradient(ws.harden(task(), 0.1), A),
    "neighbourhood": lambda: ws.gradient(ws.neighbourhood(task(), ws.Euclidean(), 0.1), A),
    "neighbourhood, mean": lambda: ws.gradient(ws.neighbourhood(task(), ws.Relative(), 0.1, "mean"), A),
    "ema": lambda: averaged_along(ws.ema(0.5)),
    "lawa": lambda: averaged_along(ws.lawa(2)),
    "swa, along": lambda: averaged_along(ws.swa()),
    "snapshots": lambda: cycled(ws.snapshots),
    "fge": lambda: cycled(ws.fge),
    "spread": lambda: ws.gradient(ws.spread([B], task()), A),
    "drift": lambda: ws.gradient(ws.drift(0), A),
    "toward": lambda: ws.gradient(ws.toward(B), A),
    "ensemble": lambda: ws.ensemble([A, B])(X),
    "disagreement": lambda: ws.disagreement([A, B], task()),
    "coherence": lambda: ws.coherence([A, B], task()),
    "swag": lambda: ws.swag([A, B, C], 2, seed=0),
    "knots": lambda: merging.knots([near(A, k).weights["2.weight"] - A.weights["2.weight"] for k in (0, 1)]),
    "merged_net": lambda: [
        merging.merged_net([near(), near(A, 1)], merging.Recipe(name), A) for name in ("della", "karcher", "iso_cts")
    ],
    "importances": lambda: merging.importances(A, task()),
    "fisher_mean": lambda: merging.fisher_mean([A, B], [task(), task(seed=2)]),
    "regmean": lambda: merging.regmean([A, near()], [task(), task(seed=2)]),
    "tune": lambda: merging.tune([near()], merging.Recipe("task_arithmetic"), [task()], A, rounds=1).net,
    "adamerging": lambda: merging.adamerging([near()], A, [task()], steps=2, lr=0.1),
    "lora": lambda: of_adapters(lambda a, b: merging.lora(a).update("2").dense()),
    "merge_adapters": lambda: of_adapters(
        lambda a, b: [
            merging.merge_adapters([a, b], [0.3, 0.9], rank=3).errors["2"],
            merging.merge_adapters([a, b]).kept,
        ]
    ),
    "adapter_distance": lambda: of_adapters(lambda a, b: merging.adapter_distance(a, b).data()),
    "into_base": lambda: of_adapters(lambda a, b: merging.into_base(a, A.tensors)["2.weight"]),
    "extract": lambda: merging.extract(near().tensors, A.tensors, rank=3).errors,
    "interference": lambda: [
        (found := merging.interference([near(A, k).tensors for k in range(3)], A.tensors)).cosines,
        [found.conflicts, found.overlaps, found.spread, found.trust, found.interfering, found.cancelled],
        merging.advise(found).why,
    ],
}


def written(*nets: ws.Net) -> list[int]:
    with tempfile.TemporaryDirectory() as folder:
        plan = ws.merging.planned([net.tensors for net in nets])
        return [*ws.merging.write(plan, f"{folder}/out").read_bytes()]


def averaged_along(average: ws.training.Average) -> ws.Net:
    for net in (A, B, C):
        average.update(net)
    return average.net()


def cycled(make: Callable[..., ws.flows.Cycle]) -> Tensor:
    optimiser = torch.optim.SGD(module().parameters(), lr=0.1)
    cycle = make(optimiser, 2)
    for net in (A, B, C):
        cycle.update(net)
    return cycle.net()(X) + optimiser.param_groups[0]["lr"]


def numbers(value: Any) -> list[float]:
    """Everything in an answer that is a number, in order."""
    if isinstance(value, Tensor):
        return value.detach().double().abs().flatten().tolist() if value.dtype != torch.bool else [float(value.sum())]
    if isinstance(value, np.ndarray | np.generic):
        return numbers(torch.as_tensor(np.asarray(value)))
    if isinstance(value, bool | int | float):
        return [abs(float(value))] if not math.isnan(value) else [-1.0]
    if isinstance(value, str):
        return [float(sum(map(ord, value)))]
    if isinstance(value, ws.Net):
        return [number for tensor in value.tensors.values() for number in numbers(tensor)]
    if isinstance(value, Mapping):
        return [number for part in value.values() for number in numbers(part)]
    if isinstance(value, list | tuple):
        return [number for part in value for number in numbers(part)]
    if dataclasses.is_dataclass(value):
        return [number for field in dataclasses.fields(value) for number in numbers(getattr(value, field.name))]
    return []
