"""The geometry of neural-network weight space.

A network is a point; a task is what we look at it through; a metric turns a gradient into a step; a path is a curve
of networks; a group moves the weights and leaves the function alone.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

from weightspace.contents import OldNames, handed_on, moved

_CONTENTS = {
    # a point, a vector
    "net": ["ArchitectureMismatch", "fresh", "Net", "Weights", "WeightspaceError"],
    # points in files
    "checkpoint": ["Checkpoint", "CheckpointError"],
    # what we look through
    "task": ["accuracy", "cifar10", "digits", "fashion_mnist", "gradient", "mnist", "Task"],
    # linear maps known by their action
    "linear": ["Operator", "spectral_bound", "spectral_norm"],
    # what is computed, node by node
    "graph": [],
    # what happens inside
    "inside": [
        "cka",
        "cross_features",
        "cross_path",
        "features",
        "forced",
        "gates",
        "image_function",
        "procrustes",
        "pwcca",
        "self_features",
        "self_path",
        "similarity",
        "svcca",
    ],
    # what moves the inputs
    "equivariance": [
        "equivariance_defect",
        "FiniteGroup",
        "GroupConv",
        "GroupPool",
        "invariance_defect",
        "invariant",
        "reynolds",
    ],
    # derivatives
    "curvature": [
        "curvature_diagonal",
        "fisher_information",
        "fisher_trace",
        "gauss_newton",
        "gradient_noise",
        "hessian",
        "jacobian",
    ],
    # how far, and which way
    "metric": ["Adam", "Euclidean", "euclidean", "functional", "layerwise", "Pullback", "Relative", "Spectral"],
    # what the weights know
    "codes": [
        "Code",
        "effective_information",
        "encode",
        "flatness_bound",
        "Gaussian",
        "information",
        "learning_coefficient",
        "logme",
        "Quadratic",
        "random_labels",
        "structure_function",
        "StructureFunction",
        "task2vec",
        "task_distance",
        "task_distances",
    ],
    # curves of networks
    "path": [
        "action",
        "curve",
        "kramers_rate",
        "line",
        "minimum_action_path",
        "Path",
        "Plane",
        "plane",
        "sgd_temperature",
        "swa",
        "Trail",
    ],
    # how far the weights move before the function breaks
    "trust": [
        "breakdown",
        "certificate",
        "lipschitz",
        "log_relative_trust",
        "perturb",
        "relative_trust",
        "sensitivities",
        "stability",
        "trust_per_example",
        "width",
    ],
    # what can be promised on new data
    "risk": ["kl_inverse", "pac_bayes", "RiskBound"],
    # the group
    "symmetry": ["mean", "modulo", "repair", "reset_statistics", "Symmetry", "SymmetryError"],
    # a training run watched
    "training": ["critical_period", "Recorder", "Recording"],
    # steps along what a goal asks for
    "flows": [
        "coherence",
        "disagreement",
        "drift",
        "ensemble",
        "ewc",
        "Flow",
        "flow",
        "gem",
        "harden",
        "hold",
        "learn",
        "prune",
        "spread",
        "swag",
        "toward",
    ],
}
_SHOWN = """
    Net Weights Task Checkpoint Symmetry Path Trail Operator Recorder WeightspaceError fresh digits accuracy
    gradient mean modulo repair Euclidean Relative Spectral Adam Pullback line curve plane swa flow prune learn hold
    ewc drift ensemble certificate perturb stability relative_trust gates features self_path cross_path fisher_trace
    hessian gauss_newton information structure_function task_distance task_distances pac_bayes
""".split()  # what the sentence above needs; the others live in their wing, and are found here too
_MOVED = {  # modules of the last release -> where their names are
    "acting": "equivariance.finite_group",
    "activation": "inside.units",
    "adapters": "training.adapters",
    "attribution": "codes.attribution",
    "bounds": "trust.bounds.certificate",
    "crossing": "inside.path_overlap inside.counts",
    "datasets": "task.datasets task.data_files task.formats",
    "descent": "risk.fit",
    "description": "codes.weight_information net.plain",
    "diffusion": "path.diffusion",
    "displacement": "trust.expected_displacement curvature.gradients",
    "distance": "metric.distance trust.relative symmetry.quotient",
    "dynamics": "training.recorder",
    "ensembles": "flows.ensembles",
    "envelope": "codes.structure_functions",
    "escape": "path.barrier",
    "estimators": "linear.determinants linear.estimate linear.krylov linear.traces",
    "fisher": "curvature.fisher",
    "goals": "flows.goals task.goal flows.anchors flows.attacks flows.batches",
    "kernel": "curvature.tangent_kernel graph.on_data",
    "langevin": "codes.langevin",
    "likelihood": "curvature.outputs",
    "model": "net.model",
    "nuisance": "codes.nuisance",
    "operator": "linear.operator curvature.linearised",
    "pac": "risk.pac_bound",
    "periods": "training.critical_periods training.deficits",
    "perturbation": "trust.perturbation",
    "posterior": "codes.posterior",
    "pruning": "flows.pruning",
    "pullback": "metric.pullback",
    "quadratic": "codes.quadratic",
    "recording": "training.recording",
    "representation": "inside.representation",
    "scores": "codes.scores",
    "sensitivity": "trust.sensitivity",
    "spectral": "linear.norms",
    "structure": "codes.sweep",
    "surface": "path.loss_plane",
    "trail": "path.trail",
    "transfer": "codes.transfer codes.task_map",
    "updates": "inside.image_functions",
}

__all__ = sorted([*_CONTENTS, *_SHOWN, "demo", "optim"])
__version__ = "0.1.0"

_named, *_ = handed_on(__name__, {f"weightspace.{wing}": names for wing, names in _CONTENTS.items()})
if not any(isinstance(finder, OldNames) for finder in sys.meta_path):
    sys.meta_path.append(OldNames(_MOVED))


def __getattr__(name: str) -> Any:
    if name in _CONTENTS or name == "demo":
        return import_module(f"weightspace.{name}")
    if name == "optim":
        return import_module("weightspace.metric.optim")
    if name in _MOVED:
        return moved(name, _MOVED[name])
    return _named(name)


def __dir__() -> list[str]:
    return __all__
