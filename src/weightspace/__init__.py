"""The geometry of neural-network weight space.

A network is a point; a task is what we look at it through; a metric turns a gradient into a step; a path is a curve
of networks; a group moves the weights and leaves the function alone.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_CONTENTS = {
    # a point, a vector
    "net": ["Net", "Weights", "WeightspaceError", "ArchitectureMismatch"],
    "model": ["fresh"],
    # what we look through
    "task": ["Task", "accuracy", "gradient"],
    "datasets": ["digits", "mnist", "fashion_mnist", "cifar10"],
    "checkpoint": ["Checkpoint", "CheckpointError"],
    # the group
    "symmetry": ["Symmetry", "SymmetryError", "mean", "repair", "reset_statistics"],
    # how far
    "metric": ["Adam", "Euclidean", "Relative", "Spectral"],
    "pullback": ["Pullback"],
    "distance": ["euclidean", "functional", "layerwise", "log_relative_trust", "modulo", "relative_trust"],
    "representation": ["cka", "svcca", "pwcca", "procrustes", "similarity"],
    # how far the weights move before the function breaks
    "bounds": ["certificate", "lipschitz"],
    "displacement": [],
    "perturbation": ["perturb", "stability", "width"],
    "sensitivity": ["breakdown", "sensitivities", "trust_per_example"],
    "fisher": ["fisher_trace", "gradient_noise"],
    "likelihood": [],
    "curvature": ["curvature_diagonal", "fisher_information", "gauss_newton", "hessian"],
    "spectral": ["spectral_norm", "spectral_bound"],
    # what the weights know
    "posterior": ["Code", "Gaussian", "encode"],
    "quadratic": ["Quadratic"],
    "langevin": ["learning_coefficient"],
    "attribution": [],
    "description": ["flatness_bound", "information"],
    "envelope": ["StructureFunction"],
    "structure": ["random_labels", "structure_function"],
    "scores": ["logme", "task2vec"],
    "transfer": ["task_distance", "task_distances"],
    # what moves the inputs
    "acting": ["FiniteGroup"],
    "equivariance": ["GroupConv", "GroupPool", "equivariance_defect", "invariance_defect", "invariant", "reynolds"],
    "nuisance": ["effective_information"],
    # what can be promised on new data
    "risk": ["kl_inverse"],
    "descent": [],
    "pac": ["RiskBound", "pac_bayes"],
    # what moves the inputs
    # what happens inside
    "activation": ["features", "forced", "gates"],
    "crossing": ["cross_features", "cross_path", "self_features", "self_path"],
    "updates": ["image_function"],
    # curves of networks
    "path": ["Path", "curve", "line", "swa"],
    "diffusion": ["action", "sgd_temperature"],
    "escape": ["kramers_rate", "minimum_action_path"],
    "surface": ["Plane", "plane"],
    "goals": ["drift", "ewc", "gem", "harden", "hold", "learn", "spread", "toward"],
    "pruning": ["prune"],
    "flows": ["Flow", "flow"],
    "ensembles": ["coherence", "disagreement", "ensemble", "swag"],
    "trail": ["Trail"],
    "optim": [],
    # a training run watched
    "dynamics": ["Recorder"],
    "recording": ["Recording"],
    "adapters": [],
    "periods": ["critical_period"],
    # linear maps known by their action
    "estimators": [],
    "operator": ["Operator", "jacobian"],
    "kernel": [],
}
_HOME = {name: room for room, names in _CONTENTS.items() for name in names}
_ROOMS = [room for room in _CONTENTS if room not in _HOME]

__all__ = sorted([*_HOME, *_ROOMS])
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(import_module(f"weightspace.{_HOME[name]}"), name)
    elif name in _ROOMS:
        value = import_module(f"weightspace.{name}")
    else:
        raise AttributeError(f"module 'weightspace' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
