"""PAC-Bayes bounds for networks: train a Gaussian over weights, and bound its error on new examples from n seen ones.

    with probability 1 - delta:   kl(q || E_{w ~ Q} error) <= (KL(Q || P) + ln(2 sqrt(n) / delta)) / n

q is the error on the n examples, averaged over w ~ Q, itself bounded from draws. Q = N(mu, diag s^2) is trained on the
bound; P = N(w_0, l^2) with w_0 chosen without these n examples: a random initialisation, or weights trained on others.
Sources: Computing nonvacuous generalization bounds (Dziugaite, Roy, 2017), for the prior's grid and the two deltas;
Tighter risk certificates for neural networks (Perez-Ortiz et al., 2021), for trained priors; (Not) bounding the true
error (Langford, Caruana, 2002).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch

from weightspace.codes.posterior import Gaussian, Noisy
from weightspace.jobs.progress import Tick
from weightspace.net.cost import Cost
from weightspace.net.errors import WeightspaceError
from weightspace.net.inputs import leaves
from weightspace.net.model import fresh
from weightspace.net.net import Net, checked
from weightspace.net.public import public
from weightspace.risk import inequalities
from weightspace.risk.fit import Fit, descend
from weightspace.task.measures import METRICS
from weightspace.task.task import Task

__all__ = ["Family", "RiskBound", "bounds_of", "cost", "pac_bayes"]


_FRESH, _TRAINED = 0.1, 0.01  # initial deviations where these are learnt: of a random prior, of a trained one
_MC = 0.2  # the share of delta that pays for drawing weights


@public
@dataclass(frozen=True)
class Family:
    """One bound by name; `certificate`: whether it holds with probability 1 - delta, `note`: why not, or its form."""

    name: str
    bound: float
    certificate: bool
    note: str = ""


@public
@dataclass(frozen=True)
class RiskBound:
    """A generalization bound: with probability 1 - `delta`, the expected error of networks w ~ Q is at most `bound`.

    The probability is over the draw of the examples. `family` is the inequality, chosen beforehand; `families` are all
    of them side by side. `error`: the error on the `examples`, the mean over `draws` pairs of weights and an example,
    and `error_bound` its upper bound. `nats` = KL(Q || P), and `grid` the nats for having chosen P's variance.
    `centre_error`: the error of w_0 alone, on the same examples, and `hold_out` its bound by counting. `kind`: where
    w_0 is from, "random" or "data". `test_error`: the error of Q on the test task.
    """

    bound: float
    family: str
    delta: float
    examples: int
    classes: int
    error: float
    error_bound: float
    draws: int
    nats: float
    grid: float
    centre_error: float
    hold_out: float
    kind: str
    families: tuple[Family, ...]
    deviations: Mapping[str, float]
    posterior: Gaussian = field(repr=False)
    prior: Gaussian = field(repr=False)
    test_error: float | None = None

    @property
    def is_hold_out(self) -> bool:
        """Whether KL is less than the price of the confidence, so that the examples did little but count errors."""
        return self.kind == "data" and self.nats < math.log(2 * math.sqrt(self.examples) / self.delta)

    @property
    def verdict(self) -> str:
        """The bound in one sentence."""
        if self.bound >= 1 - 1 / self.classes:
            return f"nothing is certified: {self.bound:.3f} is no better than guessing among {self.classes} classes"
        held = f"with probability {1 - self.delta:g} networks drawn from Q err on at most {100 * self.bound:.2f} %"
        if not self.is_hold_out:
            return held
        than = "above" if self.bound > self.hold_out else "below"
        return (
            f"{held}; KL is {self.nats:.2g} nats, so this is a hold-out bound of the prior, {than} "
            f"the plain one of {100 * self.hold_out:.2f} %"
        )

    def data(self) -> dict[str, Any]:
        """All fields but the networks, as plain data for JSON."""
        kept = {k: v for k, v in vars(self).items() if k not in ("posterior", "prior", "families", "deviations")}
        rows = [dict(vars(row)) for row in self.families]
        return {**kept, "verdict": self.verdict, "families": rows, "deviations": dict(self.deviations)}


@public(renamed={"rate": "lr"})
def pac_bayes(
    net: Net, task: Task, delta: float = 0.05, *, prior: Net | None = None, seen: Task | None = None,
    test: Task | None = None, family: Literal["kl", "catoni"] = "kl",
    constants: Sequence[float] = inequalities.CATONI, deviation: float | None = None, steps: int = 3000,
    batch: int = 500, lr: float = 0.1, draws: int = 500_000, group: int = 16, seed: int = 0,
    progress: Tick | None = None,
) -> RiskBound:  # fmt: skip
    """Train a Gaussian Q over weights on a PAC-Bayes bound, and return the bound on its error on new examples.

    `prior` stands at w_0; without one, w_0 is a fresh initialisation from `seed`, and of `net` only the architecture is
    used. With one, Q starts at the weights of `net`, and BatchNorm statistics are the prior's; frozen weights equal to
    the prior's are taken as constants and cost nothing. `seen`: the examples that w_0 was trained on. `test`: examples
    to measure the error on. The three tasks must not share an example, labels aside. `deviation`: l, fixed beforehand;
    without, each layer has its own, learnt, rounded to a grid of K variances from 1e-8 to 1 and paid for with ln K.
    `family`: "kl" or "catoni", whose `constants` are chosen beforehand too. `lr`: Adam's for m, a third of it for r and
    l, one cycle over `steps`. E_Q error is bounded from at least `draws` pairs of weights and an example at delta / 5;
    where Q's noise cannot be independent between the examples of a batch (`Noisy.exact`), from the means of groups of
    `group` examples. Memory and steps in advance: `cost`. Raises `WeightspaceError` for a delta outside (0, 1), tasks
    that overlap, labels that are not classes of the network, and numbers that are not finite.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> found = ws.pac_bayes(net, task, steps=20, draws=600)               # defaults: 3000 steps, 500 000 draws
    >>> found.error <= found.error_bound <= found.bound <= 1
    True
    >>> found.examples, found.classes, found.kind
    (60, 10, 'random')
    """
    _check_numbers(delta, steps=steps, batch=batch, lr=lr, draws=draws, group=group)
    start, centre = _ends(net, prior, seed)
    classes, wrong = _counted(centre, task)
    _check_apart({"certified": task, "prior's": seen, "test": test})
    first = deviation if deviation is not None else _FRESH if prior is None else _TRAINED
    fit, noisy = Fit(start, centre, first, deviation is None), Noisy(centre, _held(task, batch))
    draw = _Draws(noisy, -(-draws // len(task)), group, torch.Generator(device=start.device).manual_seed(seed))
    say = (lambda done: progress(done, steps + draw.passes)) if progress else (lambda done: None)
    choices = len(constants) if family == "catoni" else None
    descend(fit, noisy, choices, delta * (1 - _MC), steps, batch, lr, seed, draw.generator, say)
    found = _certified(fit, draw, wrong, delta, family, constants, lambda k: say(steps + k))
    tested = None if test is None else draw.error(_held(test, batch), found.posterior, max(1, 20_000 // len(test)))[0]
    kind = "random" if prior is None or seen is None else "data"
    return replace(found, classes=classes, kind=kind, test_error=tested)


def _check_numbers(delta: float, **numbers: float) -> None:
    for name, value in numbers.items():
        if not 0 < value < math.inf:
            raise WeightspaceError(f"{name} is {value}; give a positive number")
    if not 0 < delta < 1:
        raise WeightspaceError(f"delta is {delta}; give a probability of failure between 0 and 1, such as 0.05")


def _ends(net: Net, prior: Net | None, seed: int) -> tuple[Net, Net]:
    """The means of Q at the start and of P; frozen weights that are equal in both stay frozen."""
    centre = fresh(checked(net), seed) if prior is None else checked(prior)
    start = centre if prior is None else net
    _check_nets(start, centre)
    if prior is not None and all(torch.equal(start.weights[n], centre.weights[n]) for n in start.frozen):
        start = start.free()
        centre = centre.within(start.weights)
    return start, centre


@dataclass(frozen=True)
class _Draws:
    """How the error of Q is estimated: `passes` over the examples, with noise shared by `group` of them if need be."""

    noisy: Noisy
    passes: int
    group: int
    generator: torch.Generator

    def error(
        self, task: Task, q: Gaussian, passes: int, say: Callable[[int], None] = lambda done: None
    ) -> tuple[float, int]:
        """The error of weights drawn from Q on a task, and the number of independent values that it averages."""
        return _drawn(self.noisy, task, q, passes, 1 if self.noisy.exact else self.group, self.generator, say)


def _certified(
    fit: Fit,
    draws: _Draws,
    wrong: int,
    delta: float,
    family: str,
    constants: Sequence[float],
    say: Callable[[int], None],
) -> RiskBound:
    """The bound of a trained Q; `classes` and `kind` are filled in later."""
    task, n = draws.noisy.task, len(draws.noisy.task)
    q, p, deviations = fit.rounded()
    error, m = draws.error(task, q, draws.passes, say)
    nats, grid = max(0.0, q.kl(p)), fit.grid()
    families = bounds_of(error, m, nats + grid, n, delta, wrong, constants)
    named = {row.name: row.bound for row in families}
    return RiskBound(
        bound=named[family], family=family, delta=delta, examples=n, classes=0, error=error,
        error_bound=inequalities.monte_carlo(error, m, delta * _MC), draws=m, nats=nats, grid=grid,
        centre_error=wrong / n, hold_out=named["hold-out"], kind="", families=families, deviations=deviations,
        posterior=q, prior=p,
    )  # fmt: skip


@public
def cost(net: Net, task: Task, *, steps: int = 3000, batch: int = 500, draws: int = 500_000) -> Cost:
    """What `pac_bayes` takes with these arguments, known from sizes alone: steps, draws of (weights, example), memory.

    A step or a draw costs about twice the network's own pass over that many examples.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> print(ws.risk.cost(net, task, steps=20, draws=600))
    20 steps of 60 examples and 600 draws, 0 MiB
    """
    n, held = len(task), sum(leaf.numel() // len(leaf) * leaf.element_size() for leaf in leaves(task.example(1)))
    weights = checked(net).weights.numel * net.weights.flat().element_size()
    return Cost(steps=steps, batch=min(batch, n), draws=-(-draws // n) * n, bytes=16 * weights + n * held)


@public
def bounds_of(
    error: float,
    draws: int,
    nats: float,
    n: int,
    delta: float,
    wrong: int | None = None,
    constants: Sequence[float] = inequalities.CATONI,
) -> tuple[Family, ...]:
    """All bounds side by side, from `error`, the mean of `draws` values, and `nats`, KL and grid together.

    `wrong`: the number of errors of w_0, for the hold-out bound. A fifth of delta pays for the draws, the rest for the
    examples; a row that is not a certificate says why.

    >>> import weightspace as ws
    >>> rows = ws.risk.bounds_of(0.05, draws=100_000, nats=100, n=10_000, delta=0.05, wrong=400)
    >>> {row.name: round(row.bound, 2) for row in rows[:3]}
    {'kl': 0.09, 'catoni': 0.09, 'langford': 0.09}
    """
    q, rest = inequalities.monte_carlo(error, draws, delta * _MC), delta * (1 - _MC)
    least = min(range(len(_FINE)), key=lambda k: inequalities.catoni(q, nats, n, rest, _FINE[k : k + 1]))
    rows = [
        Family("kl", inequalities.maurer(q, nats, n, rest), True),
        Family("catoni", inequalities.catoni(q, nats, n, rest, constants), True, _several(len(constants))),
        Family("langford", inequalities.langford(q, nats, n, rest), True, "the form of Dziugaite and Roy"),
        Family("f_quad", inequalities.f_quad(q, nats, n, rest), True),
        Family("f_lambda", inequalities.f_lambda(q, nats, n, rest), True),
        Family("pinsker", inequalities.pinsker(q, nats, n, rest), True),
        Family("mcallester", inequalities.mcallester(q, nats, n, rest), True, _several(len(inequalities.LINEAR))),
        Family("catoni, best constant", inequalities.catoni(q, nats, n, rest, _FINE[least : least + 1]), False,
               "the constant was chosen on the examples"),
        Family("kl, mean of the draws", inequalities.maurer(error, nats, n, rest), False,
               "the draws are not all weights"),
    ]  # fmt: skip
    if wrong is not None:
        rows.append(
            Family("hold-out", inequalities.hold_out(wrong, n, delta), True, "of the prior's centre, by counting")
        )
    return tuple(rows)


def _several(n: int) -> str:
    return f"least over {n} constants" if n > 1 else "one constant"


_FINE = tuple(2.0 ** (k / 16) for k in range(-64, 96))


# ------------------------------------------------------------------ errors, counted and drawn


@torch.no_grad()
def _drawn(
    noisy: Noisy,
    task: Task,
    q: Gaussian,
    passes: int,
    group: int,
    generator: torch.Generator,
    say: Callable[[int], None] = lambda done: None,
) -> tuple[float, int]:
    """The error of weights drawn from Q, and the number of independent values in [0, 1] of which it is the mean.

    `group` 1: every example of a batch has weights of its own. Else those of a group share noise, and their mean is one
    value; where the last group is smaller, Hoeffding's theorem holds for 1 / (the largest weight) values.
    """
    total, variance = 0.0, q.log_variance.map(torch.exp)
    size = task.batch if group == 1 else min(group, len(task))
    parts = task if group == 1 else _held(task, size)
    for k in range(passes):
        for x, y in parts.batches(q.net):
            assert y is not None
            total += float(METRICS["zero-one"](noisy(x, q.net.weights, variance, generator), y).double().sum())
        say(k + 1)
    seen = passes * len(task)
    return total / seen, seen // (1 if group == 1 else size)


@torch.no_grad()
def _counted(net: Net, task: Task) -> tuple[int, int]:
    """The number of classes of the network, and of its errors on the task."""
    wrong, classes = 0, 0
    for x, y in task.batches(net):
        f = task.forward(net, x)
        if y is None or y.is_floating_point() or y.dim() != 1 or f.dim() != 2 or f.shape[1] < 2:
            seen = "none" if y is None else f"{y.dtype} of shape {tuple(y.shape)}"
            raise WeightspaceError("errors are counted on one class label an example, outputs (example, class >= 2): "
                            f"labels are {seen}, outputs {tuple(f.shape)}")  # fmt: skip
        if not f.isfinite().all():
            raise WeightspaceError("the outputs hold NaN or infinity; look for it in the data and the weights")
        if int(y.min()) < 0:
            raise WeightspaceError(f"an example has the label {int(y.min())}; drop the examples without a class")
        found = task.wrong(f, y)
        wrong, classes = wrong + int(found.sum()), f.shape[1]
    return classes, wrong


def _held(task: Task, batch: int) -> Task:
    """The task in memory, in batches of `batch` examples."""
    labels = task.labels()
    return Task(task.example(len(task)), labels, batch=batch, output=task.output)


def _check_nets(start: Net, centre: Net) -> None:
    start.check(centre)
    if not all(w.is_floating_point() for w in start.weights.values()):
        raise WeightspaceError(
            "integer weights have no Gaussian distribution; give a network of floating-point weights"
        )
    for net in (start, centre):
        if bad := net.weights.unusable() or net.state.unusable():
            raise WeightspaceError(f"NaN or infinity in {bad[0]}; a bound starts from finite weights")


def _check_apart(tasks: Mapping[str, Task | None]) -> None:
    """Raise `WeightspaceError` where two of the tasks share inputs."""
    known: dict[str, set[bytes]] = {}
    for name, task in tasks.items():
        if task is None:
            continue
        marks = _marks(task)
        for other, theirs in known.items():
            if shared := len(marks & theirs):
                raise WeightspaceError(
                    f"{shared:,} of the {name} examples are among the {other} examples, so nothing can be certified; "
                    "split the data before the prior is trained"
                )
        known[name] = marks


def _marks(task: Task) -> set[bytes]:
    """A hash of every example's inputs."""
    found = set()
    for x, _ in task.batches():
        arrays = [leaf.detach().cpu().contiguous().numpy() for leaf in leaves(x)]
        for k in range(len(arrays[0])):
            found.add(hashlib.blake2b(b"".join(a[k].tobytes() for a in arrays), digest_size=16).digest())
    return found
