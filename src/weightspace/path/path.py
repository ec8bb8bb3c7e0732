"""A path is a curve of networks, t in [0, 1] -> Net: lines, trained low-loss curves and recorded training runs."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import count, pairwise
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import torch
from torch import Tensor

from weightspace.jobs.progress import Tick
from weightspace.metric.metric import Euclidean, Metric
from weightspace.net.average import lifted
from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net, checked, loose
from weightspace.net.public import public
from weightspace.net.seeds import derived
from weightspace.path.divergence import Divergence
from weightspace.task.classification import together
from weightspace.task.task import Task

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["Path", "curve", "line"]


_HALVINGS = 8


@public
class Path:
    """A curve phi : [0, 1] -> networks of one architecture, with a few marked points.

    `path(t)` is the network at t; `path[0]`, `path[-1]` and `path[k]` are the marked points (at least the two
    ends), over which `len(path)` and iteration run; `path.times` are their t. Networks are computed when they are
    asked for, and not cached.

    >>> import weightspace as ws
    >>> a, b, c = (ws.demo.example(seed)[0] for seed in range(3))
    >>> path = ws.Path.through([a, b, c])
    >>> path.times, path[1] is b
    ((0.0, 0.5, 1.0), True)
    >>> float((path(0.25) - a.lerp(b, 0.5)).norm())
    0.0
    """

    __slots__ = ("_function", "times")

    def __init__(self, function: Callable[[float], Net], times: Sequence[float] = (0.0, 1.0)) -> None:
        """A path from `function(t)`, the network at t; the marked `times` rise from 0 to 1.

        Raises `WeightspaceError` for times that do not.
        """
        self.times = tuple(float(t) for t in times)
        rising = all(s < t for s, t in pairwise(self.times))
        if len(self.times) < 2 or not rising or (self.times[0], self.times[-1]) != (0.0, 1.0):
            raise WeightspaceError(f"times of a path must rise from 0 to 1, got {_brief(self.times)}")
        self._function = function

    @classmethod
    def through(cls, nets: Iterable[Net], times: Sequence[float] | None = None) -> Path:
        """The polyline through `nets`: phi(t_k) = nets[k], straight and at constant speed in between.

        `times` are any rising numbers (steps, epochs), mapped to [0, 1] linearly; without them the points are
        equally spaced. State is interpolated with the weights. Raises `ArchitectureMismatch`
        unless all have the same tensors, `WeightspaceError` for fewer than two networks or times that do not
        fit.
        """
        points = _alike(nets)
        if times is None:
            times = range(len(points))
        if len(times) != len(points):
            raise WeightspaceError(f"{len(points)} networks but {len(times)} times; give one time to each network")
        marks = _to_unit(times)

        def polyline(t: float) -> Net:
            k = bisect_right(marks, t) - 1
            if marks[k] == t:
                return points[k]
            return points[k].lerp(points[k + 1], (t - marks[k]) / (marks[k + 1] - marks[k]))

        return cls(polyline, marks)

    @classmethod
    def bezier(cls, nets: Iterable[Net]) -> Path:
        """The Bezier curve phi(t) = sum_k C(n, k) t^k (1 - t)^(n - k) w_k of control points w_0 ... w_n.

        It starts at w_0, ends at w_n and bends towards the others. State follows the same formula. Raises
        `ArchitectureMismatch` unless all have the same tensors.
        """
        control = _alike(nets)
        many = lifted(control)

        def casteljau(t: float) -> Net:
            if t in (0.0, 1.0):
                return control[-int(t)]
            points = many
            while len(points) > 1:
                points = [x.lerp(y, t) for x, y in pairwise(points)]
            return points[0] if many[0] is control[0] else _rounded(points[0], control[0])

        return cls(casteljau)

    def __call__(self, t: float) -> Net:
        """The network at t. Raises `WeightspaceError` outside of [0, 1]."""
        if not 0 <= t <= 1:
            raise WeightspaceError(f"a path is defined for t from 0 to 1, got {t}")
        return self._function(float(t))

    def __getitem__(self, index: int) -> Net:
        return self._function(self.times[index])

    def __len__(self) -> int:
        return len(self.times)

    def __iter__(self) -> Iterator[Net]:
        return (self._function(t) for t in self.times)

    def __repr__(self) -> str:
        return f"Path({len(self)} marked points, from {self[0]!r})"

    @overload
    def along(self, observable: Task | Callable[[Net], Any], n: int = ...) -> Float[np.ndarray, " n"]: ...
    @overload
    def along(
        self, observable: Mapping[str, Callable[[Net], Any]], n: int = ...
    ) -> dict[str, Float[np.ndarray, " n"]]: ...
    def along(
        self, observable: Task | Callable[[Net], Any] | Mapping[str, Callable[[Net], Any]], n: int = 11
    ) -> Float[np.ndarray, " n"] | dict[str, Float[np.ndarray, " n"]]:
        """The values of an observable at n equally spaced points: [observable(phi(t)) for t from 0 to 1].

        A dict of observables gives a dict of arrays. An observable is any function of a network with one
        number as its value: a task, `accuracy(task)`. Raises `WeightspaceError` when it returns something
        else or n < 2.
        """
        if n < 2:
            raise WeightspaceError(f"a path is evaluated at n >= 2 points, got {n}")
        many = observable if isinstance(observable, Mapping) else {"observable": observable}
        seen: dict[str, list[float]] = {name: [] for name in many}
        look = together(many)
        for t in np.linspace(0, 1, n):
            for name, found in look(self(float(t))).items():
                seen[name].append(number(found(), name))
        arrays = {name: np.array(values) for name, values in seen.items()}
        return arrays if isinstance(observable, Mapping) else arrays["observable"]

    def barrier(self, task: Task | Callable[[Net], Any], n: int = 11) -> float:
        """The loss barrier: max_t L(t) - ((1 - t) L(0) + t L(1)) with L(t) = task(phi(t)), over n equally spaced t.

        How far the loss rises above the straight line between its values at the ends: 0 for linearly connected
        networks, never negative. In units of the loss; NaN when the loss is. Raises `WeightspaceError` for n < 3.
        Frankle et al., "Linear mode connectivity and the lottery ticket hypothesis", 2020; this form: Entezari et
        al., "The role of permutation invariance in linear mode connectivity of neural networks", 2022.
        """
        if n < 3:
            raise WeightspaceError(f"a barrier needs n >= 3 points, one between the ends, got {n}")
        loss = self.along(task, n)
        t = np.linspace(0, 1, n)
        with np.errstate(invalid="ignore"):
            return float((loss - ((1 - t) * loss[0] + t * loss[-1])).max())

    def divergence(self, task: Task, n: int = 11) -> Float[np.ndarray, " n"]:
        """The divergence of the outputs at n equally spaced t from the mixture of the outputs of the ends: no labels.

        D(t) = mean over x of KL(softmax m_t(x) | softmax f_t(x)) in nats, with m_t = (1 - t) f_0 + t f_1, where outputs
        are logits, and of |m_t(x) - f_t(x)|^2 where they are not (see `Divergence`). Zero at the ends. Raises
        `WeightspaceError` for n < 2, and outputs that are not finite or not numbers.
        """
        look = Divergence(task, [self(0.0), self(1.0)])
        times = iter(np.linspace(0, 1, n).tolist())

        def at(net: Net) -> Tensor:
            t = next(times)
            return look(net, (1 - t, t))

        with torch.no_grad():
            return self.along(at, n)

    def length(self, metric: Metric | None = None, n: int = 8, tolerance: float = 1e-4) -> float:
        """The length integral |d phi / dt|_phi(t) dt: a sum over chords, the metric taken at each chord's midpoint.

        Starts with at least n chords, and halves them until the sum changes by less than `tolerance` (relative).
        Exact for a polyline in the Euclidean metric (the default), and independent of the parametrisation of the
        curve. Raises `WeightspaceError` if it does not converge.
        """
        metric = Euclidean() if metric is None else metric
        pieces = -(-n // (len(self) - 1))
        before = self._chords(metric, pieces)
        for _ in range(_HALVINGS):
            pieces *= 2
            after = self._chords(metric, pieces)
            if not abs(after - before) > tolerance * after:  # NaN and infinity are returned
                return after
            before = after
        raise WeightspaceError(
            f"the length did not settle: {before:.6g} with {pieces} chords between two points; raise `tolerance`"
        )

    def _chords(self, metric: Metric, pieces: int) -> float:
        total = 0.0
        here = self[0]
        for s, t in pairwise(self.times):
            cuts = np.linspace(s, t, pieces + 1).tolist()
            for left, right in pairwise(cuts):
                there = self(right)
                total += float(metric.norm(self((left + right) / 2), there - here))
                here = there
        return total

    def map(self, function: Callable[[Net], Net]) -> Path:
        """The path t -> function(phi(t)), evaluated lazily: to re-estimate BatchNorm statistics, prune, round."""
        inner = self._function
        return Path(lambda t: function(inner(t)), self.times)

    def reversed(self) -> Path:
        """The path backwards, t -> phi(1 - t)."""
        inner = self._function
        there = dict(zip((1 - t for t in self.times), self.times, strict=True))
        return Path(lambda t: inner(there.get(t, 1 - t)), tuple(sorted(there)))


@public
def line(a: Net, b: Net) -> Path:
    """The straight line from network a to b: phi(t) = (1 - t) a + t b, weights and state.

    Raises `ArchitectureMismatch` unless both have the same tensors.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> path = ws.line(net, ws.demo.example(1)[0])
    >>> path.along(task, n=5).shape, path.barrier(task) >= 0
    ((5,), True)
    >>> abs(path.length() - float((path[1] - path[0]).norm())) < 1e-4
    True
    """
    return Path.through([a, b])


@public
def curve(
    a: Net,
    b: Net,
    task: Task | Callable[[Net], Any],
    *,
    kind: Literal["bezier", "polychain"] = "bezier",
    bends: int = 1,
    steps: int = 300,
    batch: int = 128,
    lr: float = 0.005,
    seed: int = 0,
    progress: Tick | None = None,
) -> Path:
    """A low-loss curve from a to b: its bends w_k are trained to minimise E_{t ~ U[0, 1]} task(phi_w(t)).

    `kind`: a Bezier curve (`Path.bezier`) or a polyline (`Path.through`) through the bends, which start on the
    straight line and are trained by Adam, the learning rate falling from `lr` to 0; each of the `steps` takes one t
    and one minibatch (all of `task` where it is not a `Task`). Cost: `steps` training steps, and `bends` + 2
    networks and Adam's two moments in memory. `progress(done, steps)` is called after every step.

    BatchNorm statistics and frozen weights lie on the straight line between those of a and b; `path.map` can
    re-estimate statistics. Raises `ArchitectureMismatch` unless a and b have the same tensors, `WeightspaceError` for
    no bends, a loss that is not finite, or a task over a DataLoader, which cannot be sampled. Garipov et al.,
    "Loss surfaces, mode connectivity, and fast ensembling of DNNs", 2018.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> path = ws.curve(net, ws.demo.example(1)[0], task, steps=10)
    >>> float((path[0] - net).norm()), path(0.5)(task.example(3)).shape
    (0.0, torch.Size([3, 10]))
    """
    if bends < 1:
        raise WeightspaceError(f"a curve needs bends >= 1, got {bends}")
    family = Path.bezier if kind == "bezier" else Path.through
    one, other = lifted(_alike([a, b]))  # in half precision Adam overflows, and mixed sums carry no gradient
    straight = line(one, other)
    control = [_trainable(straight(k / (bends + 1))) for k in range(1, bends + 1)]
    leaves = [flat for net in control for flat in net.weights.buffers if flat.requires_grad]
    _train(leaves, family([one, *control, other]), _goals(task, batch, seed), steps, lr, seed, progress)
    fixed = [_rounded(net.at(net.weights.map(torch.Tensor.detach)), a) for net in control]
    return family([a, *fixed, b])


def _train(
    leaves: list[Tensor],
    path: Path,
    goals: Iterator[Callable[[Net], Any]],
    steps: int,
    lr: float,
    seed: int,
    progress: Tick | None,
) -> None:
    """Train `leaves` by Adam to minimise E_t goal(path(t))."""
    adam = torch.optim.Adam(leaves)
    generator = torch.Generator().manual_seed(seed)
    for step, goal in zip(range(steps), goals, strict=False):
        adam.param_groups[0]["lr"] = lr * (1 - step / steps)
        adam.zero_grad()
        with torch.enable_grad():
            loss = goal(path(torch.rand((), generator=generator).item()))
        if not isinstance(loss, Tensor) or not loss.requires_grad or loss.ndim:
            raise WeightspaceError("a curve needs a goal that gives a differentiable 0-d tensor, such as a Task")
        if not loss.isfinite():
            raise WeightspaceError(f"the loss became {loss.item()} at step {step} of the curve; lower lr={lr:g}")
        loss.backward()
        adam.step()
        if progress is not None:
            progress(step + 1, steps)


def number(seen: Any, name: str = "observable") -> float:
    """What an observable returned as a float. Raises `WeightspaceError` when it is not one number."""
    try:
        return float(seen.detach() if isinstance(seen, Tensor) else seen)
    except (TypeError, ValueError, RuntimeError) as error:
        shape = getattr(seen, "shape", None)
        what = type(seen).__name__ if shape is None else f"shape {tuple(shape)}"
        raise WeightspaceError(f"{name} returned {what}; it must return one number for a network") from error


def _alike(nets: Iterable[Net]) -> list[Net]:
    points = list(nets)
    if len(points) < 2:
        raise WeightspaceError(f"a path needs at least two networks, got {len(points)}")
    for net in points:
        checked(points[0]).check(net)
    return points


def _to_unit(times: Sequence[float]) -> tuple[float, ...]:
    first, last = float(times[0]), float(times[-1])
    if not last > first:
        raise WeightspaceError(f"times of a path must rise, got {_brief(times)}")
    return tuple((float(t) - first) / (last - first) for t in times)


def _brief(times: Sequence[float]) -> str:
    some = ", ".join(f"{t:g}" for t in times[:6])
    return f"{some}, ... ({len(times)} in all)" if len(times) > 6 else some


def _goals(task: Callable[[Net], Any], batch: int, seed: int) -> Iterator[Callable[[Net], Any]]:
    """An endless stream of goals: the loss on a fresh minibatch, or the whole goal if it is small or not a Task."""
    for draw in count():
        yield task.take(batch, derived(seed, "batch", draw)) if isinstance(task, Task) and batch < len(task) else task


def _rounded(net: Net, like: Net) -> Net:
    """`net` in the dtypes of `like`."""
    return Net(like.architecture, like.weights.replace(net.weights), like.state.replace(net.state))


def _trainable(net: Net) -> Net:
    """A copy whose floating-point weights accumulate gradients in their flat buffers, except frozen ones."""

    def leaf(flat: Tensor) -> Tensor:
        return flat.detach().clone().requires_grad_(flat.is_floating_point())

    new = net.at(net.weights.map(leaf))
    for flat, free in zip(new.weights.buffers, loose(net).buffers if net.frozen else [], strict=False):
        if flat.requires_grad:
            flat.register_hook(lambda slope, free=free: slope * free)
    return new
