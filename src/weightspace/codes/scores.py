"""What a network says of tasks without learning them: task2vec embeds a task, LogME scores features for labels.

task2vec: the Fisher information of a probe network on the inputs of a task, its head fitted to the labels, averaged
over the weights of every unit. F_i = E_x E_{y ~ p_w(.|x)} (d log p_w(y|x) / dw_i)^2, exact in y, the square of every
EXAMPLE's gradient: squares of the mean over a batch, as in released code, are F over the batch size.
LogME: the evidence of linear regression from the features on every label, y = F m + noise, m ~ N(0, I / a), noise
~ N(0, I / b), at its largest over a and b. Given the ratio r = a / b both are in closed form, which leaves a function
of one number, so that there is no fixed point to miss.
Sources: Task2Vec: task embedding for meta-learning (Achille et al., 2019); LogME: practical assessment of pre-trained
models for transfer learning (You, Liu, Wang, Long, 2021); Bayesian interpolation (MacKay, 1992).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weightspace.curvature.curvature import curvature_diagonal
from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net, checked
from weightspace.net.public import public
from weightspace.task.examples import TaskError
from weightspace.task.task import Task

if TYPE_CHECKING:
    from jaxtyping import Float, Int

__all__ = ["Embedding", "ScoreError", "headless", "logme", "task2vec", "transfer_scores"]


_TINY = 1e-8
_RATIOS = (-12.0, 12.0)  # powers of ten of r, in units of the largest squared singular value
_KINDS = ("cosine", "asymmetric")
_ALPHA = 0.15  # weight of the source's own complexity in the asymmetric distance


class ScoreError(WeightspaceError):
    """Features, labels or a network that cannot be scored."""


# ------------------------------------------------------------------ task2vec


@public
@dataclass(frozen=True)
class Embedding:
    """A task as the probe sees it: `values`, the mean Fisher information of the weights of every unit.

    `prior`: what a task that says nothing would leave there, 1 / (N l^2), N examples and l^2 the mean square of the
    tensor: the precision of the prior as it would look in `values`. `layers`: tensor -> its units.
    """

    values: Float[Tensor, " units"]
    prior: Float[Tensor, " units"] = field(repr=False)
    layers: Mapping[str, slice] = field(repr=False)
    examples: int

    def distance(self, other: Embedding, kind: str = "cosine", alpha: float = _ALPHA) -> float:
        """The distance from this task to the other.

        "cosine": 1 - cos(h / (h + k), k / (h + k)), entry by entry, h and k the two embeddings; symmetric, in [0, 1].
        "asymmetric": that, less `alpha` times the distance of this task from the one that says nothing, the `prior`: a
        rich source is nearer than a poor one. Raises `ScoreError` for an unknown kind, and embeddings of two probes.
        """
        if kind not in _KINDS:
            raise ScoreError(f"unknown distance {kind!r}; choose one of {', '.join(_KINDS)}")
        if len(self.values) != len(other.values) or self.layers != other.layers:
            sizes = f"{len(self.values)} and {len(other.values)} units"
            raise ScoreError(f"embeddings by two probes, of {sizes}; give one probe to both")
        far = _cosine(self.values, other.values)
        return far if kind == "cosine" else far - alpha * _cosine(self.values, self.prior)


def _cosine(h: Tensor, k: Tensor) -> float:
    whole = h + k + _TINY
    return 1 - float(F.cosine_similarity(h / whole, k / whole, dim=0))


@public
def task2vec(
    net: Net, task: Task, *, fit: bool = True, decay: float = 1e-2, draws: int | None = None, seed: int = 0
) -> Embedding:
    """The embedding of a task by the probe `net`: its Fisher information, a number for every unit below the head.

    A unit is a row of a weight of two dimensions or more, a filter of a convolution; biases, norms and the head, the
    last linear map, are left out. `fit`: the head is replaced by one for the labels of the task, fitted to its
    features by their cross-entropy and `decay` / 2 |W|^2; without it the head is taken as it is. `draws`: labels drawn
    for every example, unbiased; without it the sum over all labels, exact, a pass back for every output. Evaluation
    mode, all examples. Distances are between embeddings of one probe. Raises `ScoreError` for labels that name no
    class, and a network without a linear head.
    """
    head = _head(checked(net))
    probe = _fitted(net, task, head, decay) if fit else net
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
        raise ScoreError("the network has no layer below its head; an embedding needs one")
    return Embedding(torch.cat(parts), torch.cat(prior), layers, examples)


@public
def headless(net: Net) -> Net:
    """The network without its last linear map: x -> the features that go into it.

    Raises `ScoreError` where there is none, or it does not come last.
    """
    return _replaced(net, _head(checked(net)), nn.Identity())


def _head(net: Net) -> str:
    found = [name for name, part in net.architecture.named_modules() if type(part) is nn.Linear]
    if not found or _weight(found[-1]) not in net.weights:
        raise ScoreError(f"no linear map with a weight of its own in the {type(net.architecture).__name__} for a head")
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
        task.outputs(net)  # it may be the task that does not fit
        raise ScoreError(f"the network does not run without {head}: the last linear map must come last") from error
    if found.dim() != 2 or found.shape[1] != width:
        seen = f"features {tuple(found.shape)} where {head} takes {width}"
        raise ScoreError(f"{seen}: the last linear map must come last")
    return found


def _classes(task: Task) -> Int[Tensor, " examples"]:
    labels = [y for _, y in task.batches()]
    if any(y is None or y.is_floating_point() or y.dim() != 1 for y in labels):
        raise ScoreError("the labels name no classes, one an example; give integer labels")
    return torch.cat([y for y in labels if y is not None])


def _fitted(net: Net, task: Task, head: str, decay: float) -> Net:
    """The network with a head of its own for the classes of the task."""
    y, x = _classes(task).to(net.device), _features(net, task, head).double()
    if int(y.min()) < 0:
        raise ScoreError(f"label {int(y.min())} names no class; number them from 0")
    weight = torch.zeros(int(y.max()) + 1, x.shape[1] + 1, dtype=torch.float64, device=x.device, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight], max_iter=300, tolerance_grad=1e-7, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        f = x @ weight[:, :-1].T + weight[:, -1]
        value = F.cross_entropy(f, y) + decay / 2 * weight[:, :-1].square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimiser.step(loss)
    new = nn.utils.skip_init(nn.Linear, x.shape[1], len(weight))  # draws nothing
    with torch.no_grad():
        new.weight.copy_(weight[:, :-1])
        new.bias.copy_(weight[:, -1])
    return _replaced(net, head, new.to(net.device, net.dtype))


# ------------------------------------------------------------------ LogME


@public
def logme(features: Float[Tensor, "examples features"], labels: Tensor) -> float:
    """The largest log evidence of linear regression from features on labels, in nats an example, mean over the labels.

    `labels`: class numbers, each class a regression on whether an example is of it; or floating (example,) or
    (example, label). Larger is better; it compares features of the same labels, and is no distance. The prior's ratio
    r = a / b is looked for between 1e-12 and 1e12 times the largest squared singular value of the features. Raises
    `ScoreError` for features and labels that do not fit, fewer than two classes, and NaN.
    """
    f, y = _regression(features, labels)
    left, singular, _ = torch.linalg.svd(f, full_matrices=False)
    power = singular.square()
    seen = (left.T @ y).square()  # (direction, label)
    rest = (y.square().sum(0) - seen.sum(0)).clamp(min=0)
    n = len(f)

    def evidence(log_ratio: Tensor) -> Tensor:
        """Of every label at its own r: b = n / S(r), S(r) = min_m |F m - y|^2 + r |m|^2."""
        r = log_ratio.exp()
        s = (r / (power[:, None] + r) * seen).sum(0) + rest
        return -(n * (2 * math.pi * math.e * s / n).log() + torch.log1p(power[:, None] / r).sum(0)) / 2

    scale = float(power.max().clamp(min=1e-300).log())
    low, high = (scale + math.log(10) * k for k in _RATIOS)
    grid = torch.linspace(low, high, 241, dtype=f.dtype)
    found = torch.stack([evidence(at.expand(y.shape[1])) for at in grid])
    centre, step = grid[found.argmax(0)], (high - low) / 240
    for _ in range(40):  # thirds of the bracket of the best point
        one, other = evidence(centre - step / 3), evidence(centre + step / 3)
        centre, step = centre + torch.where(one > other, -step / 3, step / 3), step * 2 / 3
    return float(torch.maximum(evidence(centre.clamp(low, high)), found.max(0).values).mean()) / n


def _regression(features: Any, labels: Any) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n labels"]]:
    """Both in float64; classes as zeros and ones."""
    f, y = torch.as_tensor(features), torch.as_tensor(labels)
    if f.dim() != 2 or not len(f) or len(f) != len(y) or not 1 <= y.dim() <= 2:
        raise ScoreError(f"features {tuple(f.shape)} and labels {tuple(y.shape)}: give (n, d) and (n,) or (n, labels)")
    if bad := [what for what, part in (("features", f), ("labels", y)) if not part.isfinite().all()]:
        raise ScoreError(f"NaN or infinity in the {bad[0]}")
    if not y.is_floating_point():
        classes = y.unique()
        if y.dim() != 1 or len(classes) < 2:
            raise ScoreError(f"{len(classes)} class among the labels; features cannot be scored for fewer than two")
        y = (y[:, None] == classes).double()
    y = y.double().view(len(y), -1)
    if not y.square().sum(0).all():
        raise ScoreError("a label is zero for all examples; leave it out")
    return f.detach().double().cpu(), y.detach().cpu()


# ------------------------------------------------------------------ beside the distances


@public
def transfer_scores(
    tasks: Mapping[str, Task],
    nets: Mapping[str, Net] | None = None,
    probe: Net | None = None,
    *,
    decay: float = 1e-2,
) -> dict[str, Float[Tensor, "tasks tasks"]]:
    """Matrices (source, target) beside `task_distances`, in the order of `tasks`.

    "task2vec" and "task2vec asymmetric" are distances of embeddings by the `probe`, `decay` as there; "LogME" is the
    score of the features of the source's network in `nets` for the labels of the target: here more is better. Each
    where its networks are given.
    """
    found = {}
    if probe is not None:
        embedded = [task2vec(probe, task, decay=decay) for task in tasks.values()]
        for name, kind in (("task2vec", "cosine"), ("task2vec asymmetric", "asymmetric")):
            found[name] = torch.tensor([[a.distance(b, kind) for b in embedded] for a in embedded])
    if nets is not None:
        if missing := [name for name in tasks if name not in nets]:
            raise ScoreError(f"no network of {missing[0]}; give one for every task, or none")
        rows = [
            [logme(_features(nets[name], task, _head(checked(nets[name]))), _classes(task)) for task in tasks.values()]
            for name in tasks
        ]
        found["LogME"] = torch.tensor(rows)
    return found
