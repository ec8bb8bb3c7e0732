"""Transferability scores without fine-tuning: task2vec embeddings of tasks, and LogME scores of features for labels.

task2vec: the Fisher information of a probe network on the inputs of a task, its head fitted to the labels, averaged
over the weights of every unit. F_i = E_x E_{y ~ p_w(.|x)} (d log p_w(y|x) / dw_i)^2, exact in y, from the square of
every EXAMPLE's gradient: the square of a batch's mean gradient, as in released code, gives F over the batch size.
LogME: the evidence of linear regression from the features on every label, y = F m + noise, m ~ N(0, I / a), noise
~ N(0, I / b), maximised over a and b. Given the ratio r = a / b both have a closed form, so that one number is left to
search.
Sources: Task2Vec: task embedding for meta-learning (Achille et al., 2019); LogME: practical assessment of pre-trained
models for transfer learning (You, Liu, Wang, Long, 2021); Bayesian interpolation (MacKay, 1992).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from torch import Tensor, nn

from weightspace.curvature.curvature import curvature_diagonal
from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net, checked
from weightspace.net.public import public
from weightspace.task.examples import TaskError
from weightspace.task.task import Task

if TYPE_CHECKING:
    from jaxtyping import Float, Int

__all__ = ["Embedding", "fitted_head", "head_features", "headless", "logme", "task2vec", "transfer_scores"]


_TINY = 1e-8
_RATIOS = (-12.0, 12.0)  # powers of ten of r, in units of the largest squared singular value
Kind: TypeAlias = Literal["cosine", "asymmetric"]
_ALPHA = 0.15  # weight of the source's own complexity in the asymmetric distance


# ------------------------------------------------------------------ task2vec


@public
@dataclass(frozen=True)
class Embedding:
    """The task2vec embedding of a task: `values`, the mean Fisher information of the weights of every unit.

    `prior`: the embedding of the trivial task, 1 / (N l^2), N examples and l^2 the mean square of the tensor: the
    precision of the prior in the units of `values`. `layers`: tensor -> its units. `task2vec` returns one.
    """

    values: Float[Tensor, " units"]
    prior: Float[Tensor, " units"] = field(repr=False)
    layers: Mapping[str, slice] = field(repr=False)
    examples: int

    def distance(self, other: Embedding, kind: Kind = "cosine", alpha: float = _ALPHA) -> float:
        """The distance from this task (the source) to the other.

        "cosine": 1 - cos(h / (h + k), k / (h + k)), entry by entry, h and k the two embeddings; symmetric, in [0, 1].
        "asymmetric": the same minus `alpha` times the distance of this task from the trivial one, the `prior`: a
        complex source is nearer than a simple one. Raises `WeightspaceError` for embeddings of two probes.
        """
        if len(self.values) != len(other.values) or self.layers != other.layers:
            sizes = f"{len(self.values)} and {len(other.values)} units"
            raise WeightspaceError(f"embeddings by two probes, of {sizes}; give one probe to both")
        far = _cosine(self.values, other.values)
        return far if kind == "cosine" else far - alpha * _cosine(self.values, self.prior)


def _cosine(h: Tensor, k: Tensor) -> float:
    whole = h + k + _TINY
    return 1 - float(F.cosine_similarity(h / whole, k / whole, dim=0))


@public
def task2vec(
    net: Net, task: Task, *, fit: bool = True, decay: float = 1e-2, draws: int | None = None, seed: int = 0
) -> Embedding:
    """The task2vec embedding of a task by the probe `net`: the Fisher information of every unit below the head.

    A unit is a row of a weight of two dimensions or more, such as a filter; biases, norms and the head (the last linear
    layer) are left out. `fit`: replace the head by one fitted to the features and labels of the task, with
    cross-entropy and weight `decay` (/ 2 |W|^2); else the head is kept. `draws`: labels sampled for every example,
    unbiased; by default the exact sum over all labels, a backward pass for every output. Evaluation mode, all examples.
    Compare embeddings of one probe only. Raises `WeightspaceError` for labels that are not classes, and a network
    without a linear head.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> found, half = (ws.task2vec(net, some, fit=False) for some in (task, task.take(30, seed=0)))
    >>> found.values.shape, found.distance(found) < 1e-6 < found.distance(half)
    (torch.Size([16]), True)
    """
    head = _head(checked(net))
    probe = fitted_head(net, task, decay=decay) if fit else net
    diagonal, examples = curvature_diagonal(probe, task, draws, seed=seed), len(task)
    parts, prior, layers, at = [], [], {}, 0
    for name, w in probe.weights.items():
        if w.dim() < 2 or name == _weight(head) or not w.is_floating_point():
            continue
        units = diagonal[name].double().flatten(1).mean(1) / examples
        parts.append(units)
        prior.append(torch.full_like(units, 1 / max(_TINY, examples * float(w.double().square().mean()))))
        layers[name] = slice(at, at + len(units))
        at += len(units)
    if not parts:
        raise WeightspaceError(
            "the network has no layer below its head; give a deeper one, as an embedding needs a layer"
        )
    return Embedding(torch.cat(parts), torch.cat(prior), layers, examples)


@public
def headless(net: Net) -> Net:
    """The network without its last linear layer: x -> the features that go into it.

    Raises `WeightspaceError` where there is no linear layer with a weight of its own.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> ws.codes.headless(net)(task.example(3)).shape
    torch.Size([3, 16])
    """
    return _replaced(net, _head(checked(net)), nn.Identity())


@public
def head_features(net: Net, task: Task) -> Float[Tensor, "examples features"]:
    """The features of all examples that go into the last linear layer of a network.

    Raises `WeightspaceError` where there is no such layer, or it does not come last.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> ws.codes.head_features(net, task).shape
    torch.Size([60, 16])
    """
    return _features(net, task, _head(checked(net)))


def _head(net: Net) -> str:
    found = [name for name, part in net.architecture.named_modules() if type(part) is nn.Linear]
    if not found or _weight(found[-1]) not in net.weights:
        raise WeightspaceError(f"no linear map with a weight of its own in {type(net.architecture).__name__}: no head")
    return found[-1]


def _weight(layer: str) -> str:
    return f"{layer}.weight" if layer else "weight"


def _replaced(net: Net, name: str, part: nn.Module) -> Net:
    if not name:  # the network is its head
        return Net.of(part)
    module = net.live()
    above, _, last = name.rpartition(".")
    setattr(module.get_submodule(above), last, part)
    return Net.of(module)


def _features(net: Net, task: Task, head: str) -> Float[Tensor, "examples features"]:
    width, below = net.architecture.get_submodule(head).in_features, _replaced(net, head, nn.Identity())
    try:
        found = task.outputs(below)
    except TaskError as error:
        task.outputs(net)  # raises if the task itself does not fit
        raise WeightspaceError(
            f"the network does not run without {head}: the last linear map must come last"
        ) from error
    if found.dim() != 2 or found.shape[1] != width:
        seen = f"features {tuple(found.shape)} where {head} takes {width}"
        raise WeightspaceError(f"{seen}: the last linear map must come last")
    return found


def _classes(task: Task) -> Int[Tensor, " examples"]:
    labels = [y for _, y in task.batches()]
    if any(y is None or y.is_floating_point() or y.dim() != 1 for y in labels):
        raise WeightspaceError("the labels are not classes; give one integer label for every example")
    return torch.cat([y for y in labels if y is not None])


@public
def fitted_head(net: Net, task: Task, *, classes: int | None = None, decay: float = 1e-2) -> Net:
    """The network with a new head (its last linear layer): the least cross-entropy on the features of a task.

    argmin over W, b of mean_t CE(W phi(x_t) + b, y_t) + `decay` / 2 |W|^2, phi the network below its head; convex, by
    L-BFGS from zero. `classes`: outputs of the new head, by default those that occur. Any classes will do, whatever
    the old head had. Raises `WeightspaceError` for labels that are not classes, and a network without a linear head.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> tuned = ws.codes.fitted_head(net, task)
    >>> bool(task(tuned) < task(net))
    True
    """
    y, x = _classes(task).to(net.device), head_features(net, task).double()
    if int(y.min()) < 0:
        raise WeightspaceError(f"label {int(y.min())} is not a class; number classes from 0")
    if classes is not None and classes <= int(y.max()):
        raise WeightspaceError(f"label {int(y.max())} for {classes} classes; give {int(y.max()) + 1} or more")
    outputs = int(y.max()) + 1 if classes is None else classes
    weight = _regressed(x, y, outputs, decay).to(x.device)
    new = nn.utils.skip_init(nn.Linear, x.shape[1], outputs)  # draws nothing
    with torch.no_grad():
        new.weight.copy_(weight[:, :-1])
        new.bias.copy_(weight[:, -1])
    return _replaced(net, _head(net), new.to(net.device, net.dtype))


def _regressed(x: Tensor, y: Tensor, outputs: int, decay: float) -> Float[Tensor, "outputs features_and_one"]:
    """The weights and biases of least cross-entropy, by L-BFGS from zero."""
    n, x = len(x), F.pad(x, (0, 1), value=1.0)
    held = torch.ones(x.shape[1], dtype=x.dtype, device=x.device)
    held[-1] = 0  # the bias does not decay

    def goal(flat: np.ndarray) -> tuple[float, np.ndarray]:
        w = torch.from_numpy(flat).to(x.device).view(outputs, -1)
        f = x @ w.T
        slope = (f.softmax(1) - F.one_hot(y, outputs)).T @ x / n + decay * held * w
        value = F.cross_entropy(f, y) + decay / 2 * (held * w.square()).sum()
        return float(value), slope.flatten().numpy(force=True)

    how = {"maxiter": 2000, "maxcor": 30, "gtol": 1e-7, "ftol": 1e-15}
    with torch.no_grad():
        found = minimize(goal, np.zeros(outputs * x.shape[1]), jac=True, method="L-BFGS-B", options=how)
    return torch.from_numpy(found.x).view(outputs, -1)


# ------------------------------------------------------------------ LogME


@public
def logme(features: Float[Tensor, "examples features"], labels: Tensor) -> float:
    """The LogME score: the log evidence of linear regression from features on labels, in nats per example.

    The maximum over prior and noise variances, averaged over the labels. `labels`: classes, as one-hot regressions; or
    floating-point (example,) or (example, label). Larger is better; it compares features for the same labels. The ratio
    r = a / b is searched between 1e-12 and 1e12 times the largest squared singular value of the features. Raises
    `WeightspaceError` for features and labels that do not fit, fewer than two classes, and NaN.

    >>> import torch, weightspace as ws
    >>> net, task = ws.demo.example()
    >>> pixels, labels = task.example(60).flatten(1), task.labels()
    >>> ws.logme(torch.nn.functional.one_hot(labels).double(), labels) > ws.logme(pixels, labels)
    True
    """
    f, y = _regression(features, labels)
    left, singular, _ = torch.linalg.svd(f, full_matrices=False)
    power = singular.square()
    seen = (left.T @ y).square()  # (direction, label)
    rest = (y.square().sum(0) - seen.sum(0)).clamp(min=0)
    n = len(f)

    def evidence(log_ratio: Tensor) -> Tensor:
        """The evidence of every label at its r: b = n / S(r), S(r) = min_m |F m - y|^2 + r |m|^2."""
        r = log_ratio.exp()
        s = (r / (power[:, None] + r) * seen).sum(0) + rest
        return -(n * (2 * math.pi * math.e * s / n).log() + torch.log1p(power[:, None] / r).sum(0)) / 2

    scale = float(power.max().clamp(min=1e-300).log())
    low, high = (scale + math.log(10) * k for k in _RATIOS)
    grid = torch.linspace(low, high, 241, dtype=f.dtype)
    found = torch.stack([evidence(at.expand(y.shape[1])) for at in grid])
    centre, step = grid[found.argmax(0)], (high - low) / 240
    for _ in range(40):  # ternary search around the best grid point
        one, other = evidence(centre - step / 3), evidence(centre + step / 3)
        centre, step = centre + torch.where(one > other, -step / 3, step / 3), step * 2 / 3
    return float(torch.maximum(evidence(centre.clamp(low, high)), found.max(0).values).mean()) / n


def _regression(features: Any, labels: Any) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n labels"]]:
    """Features and labels in float64; classes one-hot."""
    f, y = torch.as_tensor(features), torch.as_tensor(labels)
    if f.dim() != 2 or not len(f) or len(f) != len(y) or not 1 <= y.dim() <= 2:
        raise WeightspaceError(
            f"features {tuple(f.shape)} and labels {tuple(y.shape)}: give (n, d) and (n,) or (n, labels)"
        )
    if bad := [what for what, part in (("features", f), ("labels", y)) if not part.isfinite().all()]:
        raise WeightspaceError(f"NaN or infinity in the {bad[0]}")
    if not y.is_floating_point():
        classes = y.unique()
        if y.dim() != 1 or len(classes) < 2:
            raise WeightspaceError(f"{len(classes)} class among the labels; give labels of two classes or more")
        y = (y[:, None] == classes).double()
    y = y.double().view(len(y), -1)
    if not y.square().sum(0).all():
        raise WeightspaceError("a label is zero for all examples; leave it out")
    return f.detach().double().cpu(), y.detach().cpu()


# ------------------------------------------------------------------ matrices of scores


@public
def transfer_scores(
    tasks: Mapping[str, Task],
    nets: Mapping[str, Net] | None = None,
    probe: Net | None = None,
    *,
    decay: float = 1e-2,
) -> dict[str, Float[Tensor, "tasks tasks"]]:
    """Matrices (source, target) of transferability scores, to compare with `task_distances`, in the order of `tasks`.

    With a `probe`: "task2vec" and "task2vec asymmetric", distances of embeddings by it (`decay` as for `task2vec`).
    With `nets`: "LogME", the score of the features of the source's network for the labels of the target; larger is
    better. Raises `WeightspaceError` for a task without a network in `nets`.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> nets = {"a": net, "b": ws.demo.example(1)[0]}
    >>> ws.codes.transfer_scores({"a": task, "b": ws.random_labels(task)}, nets)["LogME"].shape
    torch.Size([2, 2])
    """
    found = {}
    if probe is not None:
        embedded = [task2vec(probe, task, decay=decay) for task in tasks.values()]
        kinds: dict[str, Kind] = {"task2vec": "cosine", "task2vec asymmetric": "asymmetric"}
        for name, kind in kinds.items():
            found[name] = torch.tensor([[a.distance(b, kind) for b in embedded] for a in embedded])
    if nets is not None:
        if missing := [name for name in tasks if name not in nets]:
            raise WeightspaceError(f"no network for {missing[0]}; give one for every task, or none")
        rows = [[logme(head_features(nets[name], task), _classes(task)) for task in tasks.values()] for name in tasks]
        found["LogME"] = torch.tensor(rows)
    return found
