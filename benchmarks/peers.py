"""Adapters to other packages on PyPI, run in this process with their own defaults.

`rebasin` 0.0.47: coordinate descent of weight matching, and its MergeMany. `sinkhorn-rebasin` 0.0.2: permutations
learned through Sinkhorn's operator. Both are imported as `rebasin`, so each is installed into a folder of its own,
named by an environment variable, and imported from there alone. See README.md.
"""

from __future__ import annotations

import contextlib
import copy
import io
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

FOLDERS = {
    "rebasin": "WEIGHTSPACE_PEERS_REBASIN",
    "sinkhorn": "WEIGHTSPACE_PEERS_SINKHORN",
    "curvlinops": "WEIGHTSPACE_PEERS_CURVLINOPS",
    "optimizer": "WEIGHTSPACE_PEERS_OPTIMIZER",
    "cka": "WEIGHTSPACE_PEERS_CKA",
}
SINKHORN_STEPS, SINKHORN_RATE = 60, 0.1


def available(peer: str) -> bool:
    """Whether the environment variable of this peer names a folder."""
    return os.path.isdir(os.environ.get(FOLDERS[peer], ""))


def rebasin(a: nn.Module, b: nn.Module, example: Tensor, seed: int = 0) -> nn.Module:
    """A copy of b permuted toward a."""
    package, b = _package("rebasin"), copy.deepcopy(b)
    torch.manual_seed(seed)
    with _on_path("rebasin"), torch.no_grad():
        package.PermutationCoordinateDescent(copy.deepcopy(a), b, example).rebasin()
    return b


def merge_many(modules: Sequence[nn.Module], example: Tensor, seed: int = 0) -> nn.Module:
    """The average after `rebasin.MergeMany`; it works in place, so on copies."""
    package, copies = _package("rebasin"), [copy.deepcopy(module) for module in modules]
    torch.manual_seed(seed)
    with _on_path("rebasin"), torch.no_grad():
        return package.MergeMany(copies, copy.deepcopy(modules[0]), example).run()


def sinkhorn(a: nn.Module, b: nn.Module, example: Tensor, seed: int = 0, steps: int = SINKHORN_STEPS) -> nn.Module:
    """A copy of b permuted toward a: the squared distance of the weights descended by AdamW, as in its examples."""
    package = _package("sinkhorn")
    torch.manual_seed(seed)
    with _on_path("sinkhorn"):
        # it names nodes after the autograd graph, which needs gradients, and moves statistics only if they are there
        target = copy.deepcopy(a)
        learner = package.RebasinNet(copy.deepcopy(b), input_shape=tuple(example.shape))
        loss = package.DistL2Loss(target)
        optimiser = torch.optim.AdamW(learner.p.parameters(), lr=SINKHORN_RATE)
        learner.train()
        for _ in range(steps):
            optimiser.zero_grad()
            loss(learner()).backward()
            optimiser.step()
        learner.eval()
        with torch.no_grad():
            return copy.deepcopy(_load_into(copy.deepcopy(b), learner()))


def gauss_newton(module: nn.Module, x: Tensor) -> Any:
    """J^T J / N of the outputs as curvlinops' operator on flat vectors: the Gauss-Newton matrix of half the squares."""
    with _on_path("curvlinops"):
        package = import_module("curvlinops")
        outputs = module(x)
        parameters = [p for p in module.parameters() if p.requires_grad]
        loss = nn.MSELoss(reduction="sum")  # its Gauss-Newton matrix is 2 J^T J
        data = [(x, torch.zeros_like(outputs))]
        whole = package.GGNLinearOperator(module, loss, parameters, data, check_deterministic=False)
        return whole * (0.5 / len(x))


def curvature(module: nn.Module, batches: Sequence[tuple[Tensor, Tensor]]) -> Any:
    """The Gauss-Newton matrix of cross-entropy, summed over the examples, as curvlinops' operator on flat vectors."""
    with _on_path("curvlinops"):
        package = import_module("curvlinops")
        parameters = [p for p in module.parameters() if p.requires_grad]
        loss = nn.CrossEntropyLoss(reduction="sum")
        return package.GGNLinearOperator(module, loss, parameters, batches, check_deterministic=False)


def hutchpp(operator: Any, products: int) -> float:
    """curvlinops' Hutch++."""
    with _on_path("curvlinops"):
        return float(import_module("curvlinops").hutchpp_trace(operator, products))


def largest(operator: Any, k: int) -> Tensor:
    """The largest eigenvalues of curvlinops' operator as its documentation finds them, by scipy."""
    with _on_path("curvlinops"):
        values = import_module("scipy.sparse.linalg").eigsh(operator.to_scipy(), k=k, return_eigenvectors=False)
    return torch.from_numpy(values.copy()).flip(0)


def diagonal(module: nn.Module, batches: Sequence[tuple[Tensor, Tensor]], drawn: bool = False) -> Tensor:
    """BackPACK's diagonal of the same matrix, or from one label drawn for every example; on a copy."""
    with _on_path("curvlinops"):
        package, extensions = import_module("backpack"), import_module("backpack.extensions")
        wanted = extensions.DiagGGNMC(mc_samples=1) if drawn else extensions.DiagGGNExact()
        module = package.extend(copy.deepcopy(module))
        loss = package.extend(nn.CrossEntropyLoss(reduction="sum"))
        total = torch.zeros(sum(p.numel() for p in module.parameters()))
        for x, y in batches:
            with package.backpack(wanted):
                loss(module(x), y).backward()
            total += torch.cat([getattr(p, wanted.savefield).flatten() for p in module.parameters()])
    return total


def fromage(parameters: Sequence[nn.Parameter], rate: float, **settings: Any) -> torch.optim.Optimizer:
    """pytorch_optimizer's."""
    with _on_path("optimizer"):
        return import_module("pytorch_optimizer").Fromage(parameters, lr=rate, **settings)


def linear_cka(x: Tensor, y: Tensor) -> float:
    """pytorch_cka's of features: unbiased, one batch, no centring but that of the statistic."""
    with _on_path("cka"):
        compare = import_module("cka").cka_from_features
    return float(compare(x, y))


def _load_into(module: nn.Module, moved: nn.Module) -> nn.Module:
    module.load_state_dict({name: tensor.detach().clone() for name, tensor in moved.state_dict().items()})
    return module.eval()


@cache
def _package(peer: str) -> Any:
    """The peer, imported with its own folder first and no other module of that name about."""
    if not available(peer):
        raise FileNotFoundError(f"{FOLDERS[peer]} names no folder; see benchmarks/README.md for installing the peers")
    _forget()
    with _on_path(peer):
        package = import_module("rebasin")
        if peer == "sinkhorn":
            package.DistL2Loss = import_module("rebasin.loss").DistL2Loss
    _forget()
    return package


def _forget() -> dict[str, ModuleType]:
    names = [name for name in sys.modules if name.split(".")[0] == "rebasin"]
    return {name: sys.modules.pop(name) for name in names}


@contextlib.contextmanager
def _on_path(peer: str) -> Iterator[None]:
    folder = os.environ[FOLDERS[peer]]
    sys.path.insert(0, folder)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        sys.path.remove(folder)
