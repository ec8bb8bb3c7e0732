"""Every argument of every public function, given as something else: the call works, or says what to give."""

from __future__ import annotations

import collections
import inspect
import tempfile

import numpy as np
import pytest
import torch
from public_calls import GROUP, A, B, C, N, X, classes, low_rank, module, near, task
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import weightspace as ws
from weightspace import merging

pytestmark = pytest.mark.filterwarnings("ignore")
TASK, FEW = task(), task(6)
KEEP = ws.Pullback(FEW)
OPTIMISER = torch.optim.SGD(module().parameters(), lr=0.1)

FOLDER = tempfile.TemporaryDirectory()  # of two adapters, for as long as the tests run
LOW = [low_rank(FOLDER.name, seed) for seed in (0, 1)]

# what a right call looks like, by name of the argument
RIGHT = {
    "fresh": (ws.fresh, {"model": module(), "seed": 0}),
    "Net.of": (ws.Net.of, {"module": module()}),
    "Net.at": (A.at, {"weights": B.weights}),
    "Net.lerp": (A.lerp, {"other": B, "t": 0.5}),
    "Net.to": (A.to, {"target": "float64"}),
    "Net.load": (A.load, {"tensors": B.tensors}),
    "grow": (ws.grow, {"net": A, "outputs": 1, "seed": 0}),
    "widen": (ws.widen, {"net": A, "to": 2.0, "example": X[:2], "seed": 0}),
    "Task": (ws.Task, {"inputs": X, "labels": classes(), "batch": 7}),
    "Task.take": (TASK.take, {"n": 3, "seed": 0}),
    "Task.split": (TASK.split, {"fraction": 0.5, "seed": 0}),
    "Task.toward": (TASK.toward, {"other": task(seed=2), "t": 0.5}),
    "homotopy": (ws.homotopy, {"a": TASK, "b": task(seed=2), "kind": "batches", "seed": 0}),
    "attack": (ws.attack, {"net": A, "task": FEW, "radius": 0.1, "steps": 1, "restarts": 1, "seed": 0}),
    "robust_accuracy": (ws.robust_accuracy, {"task": FEW, "radius": 0.1, "steps": 1}),
    "robust_accuracy(task)": (ws.robust_accuracy(FEW, 0.1, 1), {"net": A}),
    "accuracy": (ws.accuracy, {"task": TASK}),
    "accuracy(task)": (ws.accuracy(TASK), {"net": A}),
    "gradient": (ws.gradient, {"goal": TASK, "net": A}),
    "Symmetry.of": (ws.Symmetry.of, {"net": A, "example": X[:2]}),
    "sample": (GROUP.sample, {"seed": 0}),
    "element": (GROUP.sample(seed=0), {"point": A}),
    "align": (GROUP.align, {"net": B, "to": A, "seed": 0}),
    "canonical": (GROUP.canonical, {"net": A, "key": "norm"}),
    "balance": (GROUP.balance, {"net": A}),
    "mean": (ws.mean, {"nets": [A, B], "group": GROUP, "seed": 0}),
    "merge": (ws.merge, {"parents": [A, B], "method": "linear", "weights": [1, 2], "seed": 0}),
    "planned": (ws.merging.planned, {"parents": [A.tensors, B.tensors], "labels": ["a", "b"]}),
    "repair": (ws.repair, {"net": N, "ends": [N, N], "task": TASK}),
    "reset_statistics": (ws.reset_statistics, {"net": N, "task": TASK}),
    "Euclidean.norm": (ws.Euclidean().norm, {"net": A, "vector": B - A}),
    "Pullback": (ws.Pullback, {"task": FEW, "damping": 1e-3}),
    "drift": (KEEP.drift, {"net": near(), "anchor": A}),
    "capacity": (KEEP.capacity, {"net": A, "goal": TASK}),
    "spectrum": (KEEP.spectrum, {"net": A, "k": 2}),
    "euclidean": (ws.euclidean, {"a": A, "b": B}),
    "distances": (ws.distances, {"a": A, "b": B, "task": TASK, "layers": "maps"}),
    "nearest": (ws.nearest, {"task": TASK, "nets": {"a": A, "b": B}, "by": "loss"}),
    "functional": (ws.functional, {"a": A, "b": B, "task": TASK, "kind": "l2"}),
    "layerwise": (ws.layerwise, {"a": A, "b": B}),
    "modulo": (ws.modulo, {"group": GROUP}),
    "modulo(group)": (ws.modulo(GROUP), {"a": A, "b": near()}),
    "relative_trust": (ws.relative_trust, {"a": A, "b": B}),
    "cka": (ws.cka, {"x": X, "y": X[:, :3]}),
    "procrustes": (ws.procrustes, {"x": X, "y": X}),
    "certificate": (ws.certificate, {"a": A, "b": near(), "task": FEW}),
    "lipschitz": (ws.lipschitz, {"net": A, "task": FEW}),
    "perturb": (ws.perturb, {"net": A, "relative": 0.1, "seed": 0}),
    "stability": (ws.stability, {"net": A, "task": FEW, "noise": (0.1,), "draws": 1}),
    "width": (ws.width, {"net": A, "task": FEW, "draws": 1}),
    "sensitivities": (ws.sensitivities, {"net": A, "task": FEW}),
    "trust_per_example": (ws.trust_per_example, {"net": A, "task": FEW, "lr": 0.1}),
    "fisher_trace": (ws.fisher_trace, {"task": FEW}),
    "gradient_noise": (ws.gradient_noise, {"task": FEW}),
    "gauss_newton": (ws.gauss_newton, {"net": A, "task": FEW}),
    "hessian": (ws.hessian, {"net": A, "task": FEW}),
    "curvature_diagonal": (ws.curvature_diagonal, {"net": A, "task": FEW}),
    "jacobian": (ws.jacobian, {"net": A, "task": FEW}),
    "spectral_norm": (ws.spectral_norm, {"matrix": A.weights["0.weight"]}),
    "encode": (ws.encode, {"net": A, "task": FEW, "beta": 0.1, "steps": 1}),
    "information": (ws.information, {"net": A, "task": FEW}),
    "learning_coefficient": (ws.learning_coefficient, {"net": A, "task": FEW, "chains": 2, "draws": 2, "burn": 1}),
    "random_labels": (ws.random_labels, {"task": TASK, "share": 0.5, "seed": 0}),
    "logme": (ws.logme, {"features": X, "labels": classes()}),
    "task2vec": (ws.task2vec, {"net": A, "task": TASK}),
    "kl_inverse": (ws.kl_inverse, {"q": 0.1, "c": 0.1}),
    "gates": (ws.gates, {"task": FEW}),
    "gates(task)": (ws.gates(FEW), {"net": A}),
    "features(task)": (ws.features(FEW), {"net": A}),
    "image_function": (ws.image_function, {"net": A, "example": 0, "task": FEW}),
    "line": (ws.line, {"a": A, "b": B}),
    "barrier": (ws.line(A, B).barrier, {"task": FEW, "n": 3}),
    "length": (ws.line(A, B).length, {"metric": ws.Euclidean()}),
    "curve": (ws.curve, {"a": A, "b": B, "task": FEW, "steps": 1}),
    "swa": (ws.swa, {"nets": [A, B]}),
    "plane": (ws.plane, {"a": A, "b": B, "c": C}),
    "flow": (ws.flow, {"net": A, "goal": ws.learn(FEW), "metric": ws.Euclidean(), "steps": 1, "size": 0.01}),
    "morph": (ws.morph, {"net": A, "homotopy": ws.homotopy(TASK, task(seed=2)), "bound": 9.0, "budget": 1}),
    "learn": (ws.learn, {"task": FEW}),
    "neighbourhood": (ws.neighbourhood, {"goal": FEW, "metric": ws.Euclidean(), "radius": 0.1, "seed": 0}),
    "ema": (ws.ema, {"decay": 0.9, "every": 2, "start": 1}),
    "lawa": (ws.lawa, {"last": 2, "every": 1}),
    "Average.update": (ws.swa().update, {"module": A}),
    "snapshots": (ws.snapshots, {"optimiser": OPTIMISER, "steps": 3, "low": 0.1, "last": 2}),
    "fge": (ws.fge, {"optimiser": OPTIMISER, "steps": 4, "low": 0.1}),
    "hold": (ws.hold, {"task": FEW, "anchor": A}),
    "ewc": (ws.ewc, {"task": FEW, "net": A}),
    "constrain": (ws.constrain, {"module": A, "kinds": {"2.weight": "circulant"}}),
    "project": (ws.project, {"net": A, "kinds": {"2.weight": "circulant"}}),
    "conform": (ws.conform, {"kinds": {"2.weight": "circulant"}}),
    "remaining": (ws.symmetry.remaining, {"net": A, "example": X}),
    "prune": (ws.prune, {"sparsity": 0.5}),
    "drift(seed)": (ws.drift, {"seed": 0}),
    "toward": (ws.toward, {"other": B}),
    "ensemble": (ws.ensemble, {"nets": [A, B]}),
    "disagreement": (ws.disagreement, {"nets": [A, B], "task": FEW}),
    "coherence": (ws.coherence, {"nets": [A, B], "task": FEW}),
    "lora": (merging.lora, {"path": LOW[0]}),
    "merge_adapters": (
        merging.merge_adapters,
        {"adapters": LOW, "weights": [0.5, 0.5], "rank": 2, "method": "linear", "options": {}, "seed": 0},
    ),
    "adapter_distance": (merging.adapter_distance, {"a": LOW[0], "b": LOW[1]}),
    "into_base": (merging.into_base, {"adapter": LOW[0], "base": A.tensors}),
    "extract": (merging.extract, {"fine_tuned": near().tensors, "base": A.tensors, "rank": 2}),
    "interference": (
        merging.interference,
        {"networks": [near().tensors, B.tensors], "base": A.tensors, "labels": ["a", "b"]},
    ),
    "advise": (
        merging.advise,
        {"met": merging.interference([near().tensors, B.tensors], A.tensors), "families": [0, 1], "rise": 0.1},
    ),
    "swag": (ws.swag, {"points": [A, B, C], "n": 1, "seed": 0}),
    "knots": (merging.knots, {"deltas": [X, 2 * X], "weights": [1.0, 2.0], "density": 0.5}),
    "merged_net": (merging.merged_net, {"nets": [A, B], "recipe": merging.Recipe("ties"), "base": C}),
    "importances": (merging.importances, {"net": A, "task": FEW}),
    "fisher_mean": (merging.fisher_mean, {"nets": [A, B], "tasks": [FEW, FEW], "weights": [1.0, 2.0]}),
    "regmean": (merging.regmean, {"nets": [A, B], "tasks": [FEW, FEW], "alpha": 0.5}),
    "tune": (
        merging.tune,
        {"nets": [A], "recipe": merging.Recipe("task_arithmetic"), "tasks": [FEW], "base": B, "rounds": 0},
    ),
    "adamerging": (merging.adamerging, {"nets": [A], "base": B, "tasks": [FEW], "lr": 0.1, "steps": 1}),
}
WRONG = {
    "nothing": lambda: None,
    "a text": lambda: "0.1",
    "a number": lambda: 2.5,
    "a negative number": lambda: -1,
    "a list": lambda: [],
    "a module": lambda: module(1),
    "a class": lambda: nn.Linear,
    "a Net": lambda: B,
    "a loader": lambda: DataLoader(TensorDataset(X, classes()), batch_size=8),
    "an array": lambda: np.ones((4, 6), dtype="float32"),
    "a state_dict": lambda: module(1).state_dict(),
    "a function": lambda: lambda *a: 0.0,
    "a network of another architecture": lambda: nn.Linear(6, 3),
    "inputs of another width": lambda: ws.Task(torch.randn(4, 5), torch.arange(4) % 3),
}


def outcomes(name):
    """(argument, what is given, "works" or the error) of a function."""
    function, right = RIGHT[name]
    for argument in right:
        for given, make in WRONG.items():
            try:
                function(**{**right, argument: make()})
                yield argument, given, "works"
            except ws.WeightspaceError as error:
                yield argument, given, f"refused: {error}"
            except Exception as error:
                if ".__init__" in str(error) and type(error).__name__ == "TypeCheckError":
                    continue  # of a dataclass, whose fields the checks of these tests look at first
                yield (
                    argument,
                    given,
                    f"{type(error).__name__}: {str(error).splitlines()[0][:100] if str(error) else ''}",
                )


def test_the_table_calls_things_rightly():
    for name, (function, right) in RIGHT.items():
        assert set(right) <= set(inspect.signature(function).parameters), name
        function(**right)


@pytest.mark.parametrize("name", RIGHT)
def test_a_wrong_argument_works_or_is_named(name):
    raw = [f"{a} = {given}: {said}" for a, given, said in outcomes(name) if not said.startswith(("works", "refused"))]
    assert not raw, "\n".join(raw)


def test_what_is_refused_names_its_cause():
    """One sentence each, and of every kind of mistake some are refused."""
    said = [
        (a, given, words) for name in ("flow", "functional", "mean", "perturb") for a, given, words in outcomes(name)
    ]
    refused = collections.Counter(given for _, given, words in said if words.startswith("refused"))
    assert all(refused[given] for given in WRONG if given not in ("a loader", "a module")), refused
    assert all("\n" not in words and len(words) < 500 for _, _, words in said)
