"""Nothing depends on how the examples are cut into batches: a law over every public function that takes a task.

The table of the public functions is read from the modules themselves, so that a function without an entry here fails.
"""

from __future__ import annotations

import inspect
import math
from functools import cache

import pytest
import torch
from public_calls import public_files
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import weightspace as ws
from weightspace import merging
from weightspace.codes import langevin, nuisance, sweep, transfer, weight_information
from weightspace.curvature import gradients, tangent_kernel
from weightspace.curvature.outputs import law_of
from weightspace.flows import anchors
from weightspace.inside import path_overlap
from weightspace.risk import pac_bound
from weightspace.task import classification, examples
from weightspace.task import goal as goals
from weightspace.trust import expected_displacement

N, DOUBLE = 13, torch.float64
FEW = {"steps": 6, "draws": 2}
WAYS = ("one at a time", "batches of 3", "loader of 7", "uneven stream")


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.n, self.b = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 5)
        self.m, self.o = nn.BatchNorm1d(5), nn.Linear(5, 3)

    def forward(self, x):
        return self.o(self.m(self.b(self.n(self.a(x)).relu())).relu())


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.e, self.o = nn.Embedding(6, 4), nn.Linear(4, 6)

    def forward(self, x):
        return self.o(torch.tanh(self.e(x) + self.e(x).cumsum(1) / 3))


class Uneven(IterableDataset):
    """Batches of 5, 1 and the rest."""

    def __init__(self, x, y):
        self.parts = [(x[a:b], y[a:b]) for a, b in ((0, 5), (5, 6), (6, len(x)))]

    def __iter__(self):
        return iter(self.parts)


def cut(x, y, way, **how):
    if way == "loader of 7":
        return ws.Task(DataLoader(TensorDataset(x, y), batch_size=7), **how)
    if way == "uneven stream":
        return ws.Task(DataLoader(Uneven(x, y), batch_size=None), **how)
    return ws.Task(x, y, batch={"whole": 512, "one at a time": 1, "batches of 3": 3}[way], **how)


def classes(way="whole", **how):
    """Inputs that grow, so that the last of them weigh most."""
    x = torch.randn(N, 4, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)
    return cut(x * torch.arange(1, N + 1)[:, None] / 5, torch.arange(N) % 3, way, **how)


def texts(way="whole", **how):
    """Texts whose labelled parts are of every length; token 5 pads them."""
    x = torch.randint(0, 5, (N, 6), generator=torch.Generator().manual_seed(2))
    y = (2 * x + 1) % 5
    for k in range(N):
        x[k, 1 + k % 6 :], y[k, 1 + k % 6 :] = 5, -100
    return cut(x, y, way, **how)


@cache
def network(kind=Mlp, seed=0, way="whole"):
    """One object for each way to cut: what is remembered of it (its graph, say) is of this way alone."""
    torch.manual_seed(seed)
    net = ws.Net.of(kind().double())
    return ws.perturb(net, 0.3, seed=seed + 1) if kind is Tokens else ws.reset_statistics(net, classes())


def flat(found):
    """All numbers of an answer as one vector."""
    if isinstance(found, torch.Tensor):
        return found.detach().double().flatten()
    if isinstance(found, ws.Net):
        return torch.cat([found.weights.flat().double(), *(t.double().flatten() for t in found.state.values())])
    if isinstance(found, ws.Weights):
        return found.flat().double()
    if isinstance(found, dict):
        return torch.cat([flat(v) for v in found.values()])
    if isinstance(found, (list, tuple)):
        return torch.cat([flat(v) for v in found])
    return torch.tensor([float(found)], dtype=DOUBLE)


@cache
def group(net):
    return ws.Symmetry.of(net, classes().example(2))


def goal(make):
    return lambda a, b, t: [*goals.value_and_gradient(make(a, b, t), a + 0.1 * a.weights.randn(3))]


def trust(a, b, t):
    found = ws.trust_per_example(a, t)
    return [found.relative, found.displacement, found.loss]


def stable(a, b, t):
    found = ws.stability(a, t, (0.1,), draws=2)
    return [found.steps[0].moved, found.steps[0].loss, found.steps[0].expected, found.displacement.shares]


def sensitive(a, b, t):
    found = ws.sensitivities(a, t)
    return [found.jacobian, found.weights]


def flowed(a, b, t):
    return ws.flow(a, t, ws.Pullback(t, damping=0.1), steps=2, size=0.05)[-1]


def observed(a, b, t):
    return {name: gate for name, gate in ws.features(t, dtype=DOUBLE)(a).items()}


def two(t):
    return {"a": t, "b": t.relabelled((t.labels() + 1) % 3)}


# every public function that takes a task -> numbers, of (net, another net, task)
CLASSES = {
    "task.Task.toward": lambda a, b, t: t.toward(two(t)["b"], 0.3)(a),
    "classification.accuracy": lambda a, b, t: ws.accuracy(t)(a),
    "classification.classifies": lambda a, b, t: classification.classifies(t),
    "homotopies.homotopy": lambda a, b, t: [
        ws.homotopy(t, two(t.mapped(lambda x: x.flip(-1)))["b"], kind)(0.4)(a) for kind in ("inputs", "batches")
    ],
    "homotopies.Homotopy.__init__": "homotopies.homotopy",
    "goal.gradient": lambda a, b, t: ws.gradient(t, a),
    "goal.value_and_gradient": lambda a, b, t: [*goals.value_and_gradient(t, a)],
    "symmetry.Symmetry.match": lambda a, b, t: group(a).match(b, a, t).element(b),
    "symmetry.Symmetry.align": lambda a, b, t: group(a).align(b, a, t),
    "symmetry.mean": lambda a, b, t: ws.mean([a, b], group(a), t),
    "repair.repair": lambda a, b, t: ws.repair(a, [a, b], t),
    "refine.refine": lambda a, b, t: list(ws.symmetry.refine(group(a), b, a, group(a).identity(), t, steps=9).losses),
    "divergence.Divergence.__init__": lambda a, b, t: ws.path.Divergence(t, [a, b])(a.lerp(b, 0.4), (0.7, 0.3)),
    "path.Path.divergence": lambda a, b, t: list(ws.line(a, b).divergence(t, 4)),
    "repair.reset_statistics": lambda a, b, t: ws.reset_statistics(b, t),
    "pullback.Pullback.__init__": lambda a, b, t: [
        ws.Pullback(t).norm(a, b - a), ws.Pullback(t).drift(a, b), ws.Pullback(t, output="fisher").drift(a, b)
    ],
    "null_space.NullSpace.of": lambda a, b, t: ws.NullSpace.of(ws.Euclidean(), a, t, 0.1).project(a, b - a),
    "null_space.NullSpace.add": lambda a, b, t: ws.NullSpace.of(ws.Euclidean(), a, t, 0.1).add(b, t).project(a, b - a),
    "pullback.Pullback.capacity": lambda a, b, t: ws.Pullback(t).capacity(a, two(t)["b"]),
    "pullback.Pullback.tradeoff": lambda a, b, t: ws.Pullback(t).tradeoff(a, two(t)["b"], n=5).progress.tolist(),
    "distance.functional": lambda a, b, t: [ws.functional(a, b, t, k) for k in ("l2", "kl", "disagreement")],
    "across_architectures.distances": lambda a, b, t: (lambda d: [d.cka, d.procrustes, [*d.outputs.values()]])(
        ws.distances(a, b, t, "maps")
    ),
    "certificate.certificate": lambda a, b, t: ws.certificate(a, b, t).relative,
    "certificate.certificates": lambda a, b, t: [c.relative for c in ws.trust.certificates(a, b, t)],
    "certificate.lipschitz": lambda a, b, t: ws.lipschitz(a, t),
    "expected_displacement.displacement": lambda a, b, t: expected_displacement.displacement(a, t, 0.1).relative,
    "gradients.traces": lambda a, b, t: [list(d.values()) for d, _ in gradients.traces(a, t, ["a.weight"])],
    "perturbation.stability": stable,
    "perturbation.width": lambda a, b, t: ws.width(a, t, 0.2, draws=2, precision=0.2),
    "sensitivity.breakdown": lambda a, b, t: [[s.gradient, s.outputs] for s in ws.breakdown(a, t, (0.01,))],
    "sensitivity.sensitivities": sensitive,
    "sensitivity.trust_per_example": trust,
    "fisher.fisher_trace": lambda a, b, t: [
        ws.fisher_trace(t, labels=k, draws=2)(a) for k in ("model", "data", "all")
    ],
    "fisher.gradient_noise": lambda a, b, t: (lambda g: [g.trace, g.square])(ws.gradient_noise(t, by_layer=True)(a)),
    "outputs.law_of": lambda a, b, t: len(law_of(t)),
    "curvature.curvature_diagonal": lambda a, b, t: [ws.curvature_diagonal(a, t, d) for d in (None, 2)],
    "curvature.fisher_information": lambda a, b, t: [
        ws.fisher_information(a, t, d) @ b.weights.flat() for d in (None, 2)
    ],
    "curvature.gauss_newton": lambda a, b, t: ws.gauss_newton(a, t) @ b.weights.flat(),
    "curvature.hessian": lambda a, b, t: ws.hessian(a, t) @ b.weights.flat(),
    "encoding.encode": lambda a, b, t: ws.encode(a, t, **FEW).length,
    "langevin.learning_coefficient": lambda a, b, t: ws.learning_coefficient(a, t, chains=2, draws=4, burn=2).value,
    "langevin.loss_and_slope": lambda a, b, t: [*langevin.loss_and_slope(a, t)],
    "weight_information.cost": lambda a, b, t: weight_information.cost(a, t, "variational").products,
    "weight_information.flatness_bound": lambda a, b, t: ws.flatness_bound(a, t),
    "weight_information.information": lambda a, b, t: ws.information(a, t, blocks=False).value,
    "sweep.cost": lambda a, b, t: sweep.cost(a, t).steps,
    "sweep.random_labels": lambda a, b, t: ws.random_labels(t, 0.5).labels(),
    "sweep.structure_function": lambda a, b, t: [
        r.loss for r in ws.structure_function(a, t, (0.1, 1.0), seeds=(0,), **FEW).runs
    ],
    "scores.fitted_head": lambda a, b, t: ws.codes.fitted_head(a, t).weights,
    "scores.head_features": lambda a, b, t: ws.codes.head_features(a, t),
    "greedy_averages.soup": lambda a, b, t: ws.atlas.soup({"a": a, "b": b}, t).losses,
    "nearby.between": lambda a, b, t: ws.atlas.between(a, b, {"m": a.lerp(b, 0.3)}, t, points=3).barriers,
    "by_distance.rank_by_task2vec": lambda a, b, t: [
        row.loss for row in ws.atlas.rank_by_task2vec({"a": a}, two(t)["b"], {"a": two(t)["a"]}, parts=1).found.ranking
    ],
    "scores.task2vec": lambda a, b, t: ws.task2vec(a, t).values,
    "scores.transfer_scores": lambda a, b, t: ws.codes.transfer_scores(two(t), {"a": a, "b": b}),
    "transfer.cost": lambda a, b, t: transfer.cost(two(t), a).steps,
    "transfer.task_distance": lambda a, b, t: ws.task_distance(*two(t).values(), a, seeds=(0,), steps=4).value,
    "transfer.task_distances": lambda a, b, t: [
        *ws.task_distances(two(t), a, seeds=(0,), steps=4).lengths.values()
    ],
    "nuisance.information_cost": lambda a, b, t: nuisance.information_cost(a, t),
    "pac_bound.cost": lambda a, b, t: pac_bound.cost(a, t).steps,
    "pac_bound.pac_bayes": lambda a, b, t: ws.pac_bayes(PLAIN, t, steps=5, draws=100).bound,
    "units.features": observed,
    "units.gates": lambda a, b, t: (lambda p: [p[layer].double() for layer in p.layers])(ws.gates(t)(a)),
    "units.forced": lambda a, b, t: ws.forced(a, ws.gates(t)(b), t),
    "path_overlap.features_since": lambda a, b, t: (lambda f: [f(n) for n in (a, b)][1])(
        path_overlap.features_since(t)
    ),
    "image_functions.image_function": lambda a, b, t: ws.image_function(a, t, 2).isolated(t),
    "image_functions.ImageFunction.isolated": "image_functions.image_function",
    "diffusion.sgd_temperature": lambda a, b, t: ws.sgd_temperature(a, t, 0.1, 5),
    "anchors.ewc": goal(lambda a, b, t: ws.ewc(b, t)),
    "anchors.fisher": lambda a, b, t: anchors.fisher(a, t),
    "goals.gem": goal(lambda a, b, t: ws.gem(two(t)["b"], [t], batch=N)),
    "sharpness.neighbourhood": goal(lambda a, b, t: ws.neighbourhood(t, ws.Euclidean(), 0.1)),
    "attacks.attack": lambda a, b, t: [
        ws.attack(a, t, 0.3, 3, norm=norm, restarts=2).distances(a) for norm in ("linf", "l2")
    ],
    "attacks.robust_accuracy": lambda a, b, t: ws.robust_accuracy(t, [0, 0.1, 0.5], 3, restarts=2)(a),
    "morphing.morph": lambda a, b, t: ws.morph(a, ws.homotopy(t, two(t)["b"], "labels"), bound=2, budget=3).net,
    "narrowing.narrow": lambda a, b, t: ws.narrow(ws.widen(a, 2, t.example(2)), b, t, steps=3),
    "morphing.least_loss": lambda a, b, t: ws.flows.least_loss(t.toward(two(t)["b"], 0.3)),
    "attacks.harden": goal(lambda a, b, t: ws.harden(t, 0.1, batch=N)),
    "anchors.hold": goal(
        lambda a, b, t: sum(ws.hold(t, b, d, batch=N, labels=0.5) for d in ("squared", "kl", "bhattacharyya"))
    ),
    "goals.learn": goal(lambda a, b, t: ws.learn(t, batch=N)),
    "goals.spread": goal(lambda a, b, t: ws.spread([b], t, batch=N)),
    "stepper.flow": flowed,
    "weighing.importances": lambda a, b, t: [merging.importances(a, t), merging.importances(a, t, 2)],
    "weighing.inner_products": lambda a, b, t: merging.inner_products(a, t),
    "weighing.fisher_mean": lambda a, b, t: merging.fisher_mean([a, b], [*two(t).values()]),
    "weighing.regmean": lambda a, b, t: merging.regmean([a, b], [*two(t).values()]),
    "tuning.tune": lambda a, b, t: merging.tune([a, b], merging.Recipe("task_arithmetic"), [t], a, rounds=1).loss,
    "tuning.tune_cost": lambda a, b, t: merging.tune_cost([a, b], [t]).examples,
    "tuning.adamerging": lambda a, b, t: merging.adamerging([b], a, [t], steps=2, lr=0.1, batch=N).coefficients,
    "tuning.adamerging_cost": lambda a, b, t: merging.adamerging_cost([a, b], [t]).steps,
    "ensembles.coherence": lambda a, b, t: ws.coherence([a, b], t),
    "ensembles.disagreement": lambda a, b, t: ws.disagreement([a, b], t),
    "linearised.jacobian": lambda a, b, t: ws.jacobian(a, t) @ b.weights.flat(),
    "tangent_kernel.kernel": lambda a, b, t: tangent_kernel.kernel(a, t),
}  # fmt: skip

OF_ONE_BATCH = {  # these are given a batch, or give batches
    "gradients.squares", "gradients.squared_gradients", "outputs.output_hessian", "curvature.output_hessian",
    "outputs.likelihood", "outputs.nats", "posterior.stream", "posterior.Noisy.__init__", "units.unit_outputs",
    "units.Gates.__init__", "attacks.attacked", "attacks.input_gradient", "on_data.feed",
}  # fmt: skip
ELSEWHERE = {
    "asked.rank": "tested with its members, against all of them on all examples",
    "asked.rank_starts": "trains on batches of its own",
    "by_distance.rank_by_codes": "codes are those of task_distances",
    "by_distance.rank_by_weights": "trains on batches of its own",
    "nearest_start.cost": "counts examples",
    "nearest_start.nearest": "asks one of the functions above, each of which has an entry",
    "processes.sharded": "a law over processes of its own",
    "processes.Sharded.__init__": "a law over processes of its own",
    "processes.Sharded.operator": "a law over processes of its own",
    "curvature.graph_bytes": "an estimate from two examples, of the number of them",
    "equivariance.equivariance_defect": "tested with its groups",
    "equivariance.invariance_defect": "tested with its groups",
    "nuisance.effective_information": "tested with its nuisances",
    "critical_periods.Training.__init__": "shuffles for itself",
    "path.Path.along": "calls the task, or what else it is given, at every point",
    "path.Path.barrier": "calls the task, or what else it is given, at every point",
    "path.curve": "draws batches of its own, as `learn` does",
}
TEXTS = {
    "classification.accuracy", "goal.gradient", "goal.value_and_gradient", "fisher.fisher_trace",
    "fisher.gradient_noise",
    "curvature.curvature_diagonal", "curvature.fisher_information", "curvature.gauss_newton", "curvature.hessian",
    "distance.functional", "langevin.loss_and_slope", "encoding.encode", "anchors.ewc", "anchors.fisher",
    "anchors.hold", "divergence.Divergence.__init__", "path.Path.divergence",
    "weight_information.flatness_bound", "sweep.random_labels", "expected_displacement.displacement",
    "perturbation.width", "langevin.learning_coefficient",
}  # fmt: skip


def plain():
    torch.manual_seed(3)
    return ws.Net.of(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).double())


PLAIN = plain()
SLOW = {"symmetry.Symmetry.match", "symmetry.mean", "repair.repair"}  # asked of two ways to cut


def off(found, whole):
    found, whole = flat(found), flat(whole)
    assert found.shape == whole.shape and whole.isfinite().all()
    return float((found - whole).norm() / whole.norm().clamp_min(1e-12))


def asked(name, kind, way, **how):
    a, b = (network(Mlp if kind is classes else Tokens, seed, way) for seed in (0, 1))
    entry = CLASSES[name]
    return (CLASSES[entry] if isinstance(entry, str) else entry)(a, b, kind(way, **how))


@pytest.mark.filterwarnings("ignore::weightspace.codes.weight_information.Unconverged")
@pytest.mark.parametrize("name", CLASSES)
def test_one_answer_however_the_examples_are_cut(name):
    whole = asked(name, classes, "whole")
    for way in WAYS[1::2] if name in SLOW else WAYS:
        assert off(asked(name, classes, way), whole) < 1e-6, way


@pytest.mark.parametrize("name", sorted(TEXTS))
def test_texts_of_uneven_length_too(name):
    whole = asked(name, texts, "whole")
    for way in WAYS:
        assert off(asked(name, texts, way), whole) < 1e-6, way


def public():
    """room.function of all that states a Task among its arguments."""
    for room, (there, names) in public_files().items():
        for name in names:
            thing = getattr(there, name)
            inside = vars(thing) if inspect.isclass(thing) else {}
            methods = {f"{name}.{k}": m for k, m in inside.items() if not k.startswith("_") or k == "__init__"}
            for label, function in (methods if inspect.isclass(thing) else {name: thing}).items():
                function = getattr(function, "__func__", function)
                if callable(function) and takes_a_task(function):
                    yield f"{room}.{label}"


def takes_a_task(function):
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return False
    return any("Task" in str(p.annotation) for p in parameters)


def test_every_public_function_of_a_task_has_an_entry():
    there, told = {*public()}, {*CLASSES, *OF_ONE_BATCH, *ELSEWHERE}
    assert there - told == set(), "say in this file what the function gives, that the law may be asked of it"
    assert told - there == set(), "what is no longer there has no entry"


def test_the_law_sees_batches_that_weigh_alike(monkeypatch):
    """Planted: a mean of the means of batches."""
    right = ws.Task._distances
    monkeypatch.setattr(ws.Task, "_distances", lambda t, net, _=None: ((d.mean()[None], 1) for d, _ in right(t, net)))
    value = ws.Task.__call__
    assert abs(float(value(classes("batches of 3"), network())) - float(value(classes(), network()))) > 1e-4


def test_the_law_sees_numbers_that_belong_to_batches(monkeypatch):
    """Planted: every batch counts its examples from 0."""
    right = examples.uniform
    monkeypatch.setattr(gradients, "uniform", lambda s, d, seed, start, *o: right(s, d, seed, 0, *o))
    name = "expected_displacement.displacement"
    assert off(asked(name, classes, "batches of 3"), asked(name, classes, "whole")) > 1e-4


def test_the_law_sees_padding_that_counts(monkeypatch):
    """Planted: a text weighs by its examples and not by its labelled positions."""
    right = anchors._positions
    monkeypatch.setattr(anchors, "_positions", lambda d, f, y: (right(d, f, y)[0], len(f)))
    net, other = network(Tokens), network(Tokens, 1)
    value = goals.value_and_gradient(ws.hold(texts(), other, "kl", batch=N), net)[0]
    counted = math.prod(texts().labels().shape) - int((texts().labels() == -100).sum())
    monkeypatch.undo()
    assert value == pytest.approx(
        goals.value_and_gradient(ws.hold(texts(), other, "kl", batch=N), net)[0] * counted / N
    )


def test_what_stands_at_padded_positions_counts_nowhere():
    """Other tokens there change nothing of what is said of the labelled ones."""
    net, other = network(Tokens), network(Tokens, 1)
    t = texts()
    x, y = t.example(N), t.labels()
    moved = ws.Task(torch.where(y == -100, x.flip(0) % 5, x), y)
    for name in sorted(TEXTS - {"encoding.encode", "langevin.learning_coefficient", "sweep.random_labels"} - HELD):
        assert off(CLASSES[name](net, other, moved), CLASSES[name](net, other, t)) < 1e-9, name


HELD = {"expected_displacement.displacement"}  # looks at all outputs: it knows of no labels


def test_random_numbers_are_uniform_and_normal():
    u = torch.stack([*examples.uniform((4000, 3), 5, 1, 0)])
    assert abs(float(u.mean()) - 0.5) < 0.005 and abs(float(u.std()) - 12**-0.5) < 0.005
    rows = examples.normal(u).permute(0, 2, 1).reshape(15, -1)
    assert float((torch.corrcoef(rows) - torch.eye(15)).abs().max()) < 0.07
    assert float((rows.square().mean() - 1).abs()) < 0.02
    late = torch.stack([*examples.uniform((10, 3), 5, 1, 3990)])
    assert torch.equal(late, u[:, 3990:]) and not torch.equal(
        late, torch.stack([*examples.uniform((10, 3), 5, 2, 3990)])
    )
