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
    "net": ["ArchitectureMismatch", "fresh", "grow", "Net", "Weights", "WeightspaceError"],
    # independent jobs, wherever they run
    "jobs": [],
    # points in files
    "checkpoint": ["Checkpoint", "CheckpointError"],
    # forms that weights keep
    "constraints": ["constrain", "project"],
    # what we look through
    "task": ["accuracy", "cifar10", "digits", "fashion_mnist", "gradient", "homotopy", "mnist", "Task"],
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
    "metric": [
        "Adam",
        "distances",
        "Euclidean",
        "euclidean",
        "functional",
        "layerwise",
        "NullSpace",
        "Pullback",
        "Relative",
        "Spectral",
    ],
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
    "symmetry": [
        "deepen",
        "mean",
        "modulo",
        "repair",
        "reset_statistics",
        "Symmetry",
        "SymmetryError",
        "widen",
    ],
    # a training run watched
    "training": ["critical_period", "ema", "lawa", "Recorder", "Recording", "swa"],
    # steps along what a goal asks for
    "flows": [
        "attack",
        "coherence",
        "conform",
        "disagreement",
        "drift",
        "ensemble",
        "ewc",
        "fge",
        "Flow",
        "flow",
        "gem",
        "harden",
        "hold",
        "learn",
        "morph",
        "narrow",
        "neighbourhood",
        "prune",
        "robust_accuracy",
        "snapshots",
        "spread",
        "swag",
        "toward",
    ],
    # many points made into one
    "merging": ["merge"],
    # sets of points
    "atlas": ["Atlas", "nearest"],
}
_SHOWN = """
    Net Weights Task Checkpoint Symmetry Path Trail Operator Recorder WeightspaceError fresh digits accuracy
    gradient mean modulo repair Euclidean Relative Spectral Adam Pullback line curve plane swa flow prune learn hold
    ewc drift ensemble certificate perturb stability relative_trust gates features self_path cross_path fisher_trace
    hessian gauss_newton information structure_function task_distance task_distances pac_bayes Atlas nearest
    distances
""".split()  # what the sentence above needs; the others live in their wing, and are found here too
_MOVED = {  # modules of the last release -> where their names are
    "acting": "equivariance.finite_group",
    "activation": "inside.units inside.calls",
    "adapters": "training.adapters",
    "architecture": "checkpoint.architecture checkpoint.stored",
    "attribution": "codes.attribution",
    "bounds": "trust.bounds.certificate",
    "bounds.maps": "trust.bounds.maps",
    "bounds.norms": "trust.bounds.norms",
    "bounds.pointwise": "trust.bounds.pointwise",
    "bounds.rounding": "trust.bounds.rounding",
    "bounds.rule": "trust.bounds.rule",
    "bounds.shapes": "trust.bounds.shapes",
    "bounds.sums": "trust.bounds.sums",
    "bounds.twins": "trust.bounds.twins",
    "bounds.walk": "trust.bounds.walk",
    "compare": "commands.compare symmetry.verdict commands.progress jobs.progress",
    "crossing": "inside.path_overlap inside.counts",
    "datasets": "task.datasets task.data_files task.formats",
    "descent": "risk.fit",
    "description": "codes.weight_information net.plain",
    "differentiable": "net.differentiable",
    "diffusion": "path.diffusion",
    "digest": "task.digest",
    "displacement": "trust.expected_displacement curvature.gradients",
    "distance": "metric.distance trust.relative symmetry.quotient",
    "dynamics": "training.recorder",
    "ensembles": "flows.ensembles",
    "entry": "checkpoint.refusal",
    "envelope": "codes.structure_functions",
    "escape": "path.barrier",
    "estimators": "linear.determinants linear.estimate linear.krylov linear.traces",
    "examples": "task.examples net.inputs",
    "files": "checkpoint.files",
    "fisher": "curvature.fisher",
    "geodesic": "metric.geodesic",
    "goals": "flows.goals task.goal flows.anchors flows.attacks flows.batches",
    "inquiry": "commands.inform commands.workspace commands.progress jobs.progress commands.tasks commands.certify",
    "kernel": "curvature.tangent_kernel graph.on_data",
    "langevin": "codes.langevin",
    "layered": "metric.per_layer",
    "likelihood": "curvature.outputs",
    "losses": "task.losses",
    "model": "net.model",
    "modes": "metric.steps",
    "nuisance": "codes.nuisance",
    "operator": "linear.operator curvature.linearised",
    "pac": "risk.pac_bound",
    "periods": "training.critical_periods training.deficits",
    "perturbation": "trust.perturbation",
    "pickled": "checkpoint.pickled",
    "posterior": "codes.posterior codes.encoding",
    "pruning": "flows.pruning",
    "public": "net.public net.errors net.state",
    "pullback": "metric.pullback",
    "quadratic": "codes.quadratic",
    "recording": "training.recording",
    "representation": "inside.representation",
    "scores": "codes.scores",
    "sensitivity": "trust.sensitivity",
    "spectral": "linear.norms",
    "structure": "codes.sweep",
    "surface": "path.loss_plane",
    "symmetry.ascent": "symmetry.align.ascent",
    "symmetry.assignment": "linear.assignment",
    "symmetry.certificate": "symmetry.saved",
    "symmetry.features": "symmetry.align.features",
    "symmetry.index": "graph.atoms",
    "symmetry.layer": "graph.layer",
    "symmetry.match": "symmetry.align.match",
    "symmetry.merge": "symmetry.align.merge net.average",
    "symmetry.parity": "symmetry.align.parity",
    "symmetry.pretrained": "graph.pretrained",
    "symmetry.refit": "symmetry.align.refit",
    "symmetry.relax": "symmetry.align.relax",
    "symmetry.rules": "graph.rules",
    "symmetry.rules.call": "graph.rules.call",
    "symmetry.rules.contraction": "graph.rules.contraction",
    "symmetry.rules.part": "graph.rules.part",
    "symmetry.rules.reduction": "graph.rules.reduction",
    "symmetry.rules.shape": "graph.rules.shape",
    "symmetry.rules.write": "graph.rules.write",
    "symmetry.trace": "graph.trace graph.follow net.inputs net.errors",
    "trail": "path.trail",
    "transfer": "codes.transfer codes.task_map",
    "trial": "commands.stability commands.perturb pages.stability",
    "updates": "inside.image_functions",
    "walk": "commands.walk commands.capacity",
    "watching": "commands.paths commands.watch",
    "workbench": "commands.workspace commands.align commands.merge commands.data commands.scores",
}

__all__ = sorted([*_CONTENTS, *_SHOWN, "demo", "optim"])
__version__ = "0.2.0"

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
