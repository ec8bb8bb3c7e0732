"""The merging methods by name.

theta_i are the networks, w_i their weights, theta_0 the base, tau_i = theta_i - theta_0 the task vectors. `scale`
multiplies the merged task vector, `normalize` divides it by the weights. `METHODS` has the defaults and limits of
options; formulas and sources are with the functions.

| method | what it does | base | options |
|---|---|---|---|
| `linear` | weighted mean | unused | normalize |
| `slerp` | spherical interpolation of two networks | unused | |
| `nuslerp` | spherical interpolation of two task vectors | used | nuslerp_flatten |
| `multislerp` | mean direction times mean length | used | |
| `karcher` | Riemannian mean of directions times mean length | unused | max_iter, tol |
| `task_arithmetic` | base plus a weighted sum of task vectors | needed | scale, normalize |
| `ties` | largest entries kept, signs elected, mean of those that agree | needed | density, scale, normalize, rescale |
| `dare_linear` | entries dropped at random, summed | needed | density, scale, normalize, rescale |
| `dare_ties` | entries dropped at random, signs elected | needed | density, scale, normalize, rescale |
| `della_linear` | small entries dropped more often, summed | needed | density, epsilon, scale, normalize, rescale |
| `della` | small entries dropped more often, signs elected | needed | density, epsilon, scale, normalize, rescale |
| `breadcrumbs` | largest and smallest entries dropped, summed | needed | density, gamma, scale, normalize, rescale |
| `breadcrumbs_ties` | extremes dropped, signs elected | needed | density, gamma, scale, normalize, rescale |
| `sce` | entries that vary kept, weighted by energy, signs elected | needed | select_topk |
| `model_stock` | mean pulled to the base by how little the task vectors agree | needed | |
| `nearswap` | base moved by at most t to one network | needed | t |
| `arcee_fusion` | base with the most important entries of one network | needed | |
| `passthrough` | one network as it is | unused | scale |
| `consensus` | sum of task vectors where several tasks use it (TALL masks) | needed | mask, agreement, scale |
| `orthogonal` | task vectors made orthogonal to the ones before, summed | needed | scale |
| `iso_c` | sum of task vectors with all singular values made equal | needed | scale |
| `iso_cts` | common and task-specific singular directions, all made equal | needed | common_share, scale |
| `tsv_m` | top singular vectors of every task vector, made orthogonal | needed | scale |
| `knots_ties` | TIES in the common left singular vectors | needed | density, scale, normalize |
| `fisher` | mean weighted by importances | unused | |
| `regmean` | least squares on the inputs of every layer | unused | alpha |

Options and formulas are those of mergekit 0.1.5 where it has the method; `scale` is its lambda, and weights 1 - t and t
are its t of slerp. Other defaults there: density 1, and for karcher max_iter 10, tol 1e-5, equal weights. Other results
here: DARE and DELLA divide by the probability that an entry is kept, as their papers do (there each tensor gets its L1
norm back); slerp and nuslerp are linear to a network that is zero; norms and the energies of sce have no floor (those
below 1e-6 count as equal there, and most fine-tunes are); the divergence of arcee_fusion is in float64; of equal
magnitudes the first are kept (any there); a weighted mean whose weights sum to zero is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from weightspace.merging import directions, elementwise, sparse, spectral
from weightspace.merging.settings import Method, Within
from weightspace.net.errors import WeightspaceError

__all__ = ["METHODS", "method"]

_SUM = {"scale": 1.0, "normalize": 0.0}
_LIMITS = {
    "density": Within(0, 1, above=True),
    "epsilon": Within(0, 1),
    "gamma": Within(0, 1),
    "select_topk": Within(0, 1),
    "t": Within(0),
    "mask": Within(0),
    "agreement": Within(0),
    "common_share": Within(0, 1),
    "alpha": Within(0, 1),
    "max_iter": Within(0),
    "tol": Within(0),
    **dict.fromkeys(("normalize", "rescale", "nuslerp_flatten"), Within(flag=True)),
}
_ALL = (
    Method("linear", elementwise.linear, "weighted mean", options={"normalize": 1.0}),
    Method("slerp", directions.slerp, "spherical interpolation of two networks", least=2, most=2),
    Method(
        "nuslerp", directions.nuslerp, "spherical interpolation of two task vectors", "used",
        {"nuslerp_flatten": 1.0}, least=2, most=2,
    ),
    Method("multislerp", directions.multislerp, "mean direction times mean length", "used"),
    Method(
        "karcher", directions.karcher, "Riemannian mean of directions times mean length",
        options={"max_iter": 100.0, "tol": 1e-10},
    ),
    Method(
        "task_arithmetic", elementwise.task_arithmetic, "base plus a weighted sum of task vectors", "needed", _SUM
    ),
    Method(
        "ties", sparse.ties, "largest entries kept, signs elected, mean of those that agree", "needed",
        {"density": 0.2, "scale": 1.0, "normalize": 1.0, "rescale": 0.0},
    ),
    Method(
        "dare_linear", sparse.dare_linear, "entries dropped at random, summed", "needed",
        {"density": 0.5, **_SUM, "rescale": 1.0},
    ),
    Method(
        "dare_ties", sparse.dare_ties, "entries dropped at random, signs elected", "needed",
        {"density": 0.5, **_SUM, "rescale": 1.0},
    ),
    Method(
        "della_linear", sparse.della_linear, "small entries dropped more often, summed", "needed",
        {"density": 0.5, "epsilon": 0.15, **_SUM, "rescale": 1.0},
    ),
    Method(
        "della", sparse.della, "small entries dropped more often, signs elected", "needed",
        {"density": 0.5, "epsilon": 0.15, "scale": 1.0, "normalize": 1.0, "rescale": 1.0},
    ),
    Method(
        "breadcrumbs", sparse.breadcrumbs, "largest and smallest entries dropped, summed", "needed",
        {"density": 0.9, "gamma": 0.01, **_SUM, "rescale": 0.0},
    ),
    Method(
        "breadcrumbs_ties", sparse.breadcrumbs_ties, "extremes dropped, signs elected", "needed",
        {"density": 0.9, "gamma": 0.01, **_SUM, "rescale": 0.0},
    ),
    Method(
        "sce", elementwise.sce,
        "entries that vary kept, weighted by energy, signs elected", "needed",
        {"select_topk": 1.0}, weighs=False,
    ),
    Method(
        "model_stock", directions.model_stock, "mean pulled to the base by how little the task vectors agree", "needed",
        least=2, weighs=False,
    ),
    Method(
        "nearswap", elementwise.nearswap, "base moved by at most t to one network", "needed", {"t": 1e-4}, most=1,
        weighs=False,
    ),
    Method(
        "arcee_fusion", elementwise.fusion, "base with the most important entries of one network", "needed", most=1,
        weighs=False,
    ),
    Method(
        "passthrough", elementwise.passthrough, "one network as it is", options={"scale": 1.0}, most=1, weighs=False
    ),
    Method(
        "consensus", elementwise.consensus, "sum of task vectors where several tasks use it (TALL masks)", "needed",
        {"mask": 0.4, "agreement": 2.0, "scale": 1.0},
    ),
    Method(
        "orthogonal", directions.orthogonal, "task vectors made orthogonal to the ones before, summed", "needed",
        {"scale": 1.0},
    ),
    Method(
        "iso_c", spectral.iso_c, "sum of task vectors with all singular values made equal", "needed", {"scale": 1.0}
    ),
    Method(
        "iso_cts", spectral.iso_cts, "common and task-specific singular directions, all made equal", "needed",
        {"common_share": 0.8, "scale": 1.0},
    ),
    Method(
        "tsv_m", spectral.tsv_m, "top singular vectors of every task vector, made orthogonal", "needed", {"scale": 1.0}
    ),
    Method(
        "knots_ties", spectral.knots_ties, "TIES in the common left singular vectors", "needed",
        {"density": 0.2, "scale": 1.0, "normalize": 1.0},
    ),
    Method("fisher", elementwise.fisher, "mean weighted by importances", beside="importances"),
    Method(
        "regmean", spectral.regmean, "least squares on the inputs of every layer", options={"alpha": 0.9},
        beside="inner products",
    ),
)  # fmt: skip
_OWN = ("density", "epsilon", "gamma")  # of sparse methods, for each network
METHODS: Mapping[str, Method] = {
    entry.name: replace(
        entry, limits=_LIMITS, own=tuple(name for name in _OWN if name in entry.options and entry.name != "knots_ties")
    )
    for entry in _ALL
}


def method(name: str) -> Method:
    """The method of that name. Raises `WeightspaceError` that lists all names."""
    found = METHODS.get(name.replace("-", "_").lower())
    if found is None:
        raise WeightspaceError(f"no merging method {name!r}; choose one of {', '.join(METHODS)}")
    return found
