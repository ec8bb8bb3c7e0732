"""The structure function of a task: its least loss S(t) for t nats of information, and its description length C_beta.

    S(t) = min of E L over codes with KL <= t     C_beta = min of E L + beta KL over codes = min over t of S(t) + beta t

A code is a distribution over weights (`encode`); L is the loss summed over the examples, in nats. C_beta is concave in
beta with slope K(beta), the information used; S(t) = max over beta of C_beta - beta t, where S is convex. C(D) = C_1 is
the description length of the task. The smallest t with S(t) + t = C(D) is its complexity; information beyond it
memorises: for perfect codes S has slope -1 there. Real codes are less efficient: random labels, which have no structure
and should be memorised up to beta = 1, are memorised only up to beta = `efficiency`.

A code found for one beta is a code for all, so C_beta is the lower envelope of the lines of all codes, with the trivial
code and the best constant. Optimisation gets stuck on both sides of a jump of K; beta is swept up and down, for several
seeds, and the sweeps are checked against the envelope.
Sources: Kolmogorov's structure functions and model selection (Vereshchagin, Vitanyi, 2004); The information complexity
of learning tasks, their structure and their distance (Achille, Paolini, Mbeng, Soatto, 2019); The loss-complexity
landscape and model structure functions (Kolpakov, 2025), for the susceptibility.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from weightspace.net.errors import WeightspaceError
from weightspace.net.plain import plain
from weightspace.net.public import public

__all__ = ["Check", "Run", "StructureFunction", "Transition"]


_SHARP = 1.5  # K falls faster than beta^-1.5 in a jump
_NOTHING = 0.01  # relative improvement of a loss that counts as noise
_CHANCE = 0.05  # above it, labels may be random
_LEARNT = 0.05  # loss of a memorised task, over the loss of the trivial code


@public
@dataclass(frozen=True)
class Run:
    """A code that a sweep found for `beta`: `loss` = E L with its standard error, `kl`, and its accuracy `right`.

    `seed`: of the network; `way`: the direction of the sweep, "up" or "down".

    >>> import weightspace as ws
    >>> ws.codes.Run(seed=0, way="up", beta=0.5, loss=30.0, error=1.0, kl=40.0, right=0.9).length
    50.0
    """

    seed: int
    way: str
    beta: float
    loss: float
    error: float
    kl: float
    right: float

    @property
    def length(self) -> float:
        """The description length E L + beta KL, in nats."""
        return self.loss + self.beta * self.kl


@public
@dataclass(frozen=True)
class Transition:
    """A phase transition at `beta`: the information falls from `before` to `after` nats, the loss rises by `rise`.

    `last`: beyond it the loss is at most 1 % below that of a constant output.
    """

    beta: float
    before: float
    after: float
    rise: float
    last: bool

    @property
    def name(self) -> str:
        """What happens there as beta grows, in words."""
        return "nothing more than a constant is learnt" if self.last else "memorised examples are given up"


@public
@dataclass(frozen=True)
class Check:
    """A consistency check of the sweeps: the `law`, by how many nats it was `violated` at worst, and at which beta."""

    name: str
    passed: bool
    violated: float
    beta: float
    law: str


@public
@dataclass(frozen=True)
class StructureFunction:
    """The structure function of a task: `length(beta)`, `information(beta)`, `loss(t)`; nats, summed over `examples`.

    `runs`: the codes that were found. `constants`: (KL, loss) of the codes without a network: outputs of zero, and the
    best constant output, at 1/2 log N nats a number. `efficiency`: the beta below which random labels are memorised,
    where it was measured. `prior`: the nats that would describe the prior's variances, which no code counts; known for
    labels that are classes. `structure_function` returns one.

    >>> import weightspace as ws
    >>> run = ws.codes.Run(seed=0, way="up", beta=1.0, loss=10.0, error=0.0, kl=30.0, right=0.9)
    >>> s = ws.StructureFunction(runs=(run,), constants=((0.0, 100.0),), examples=50)
    >>> s.length(1.0), s.information(1.0), s.loss(15.0), s.collapse       # the line and the constant cross at beta 3
    (40.0, 30.0, 55.0, 3.0)
    """

    runs: tuple[Run, ...]
    constants: tuple[tuple[float, float], ...]
    examples: int
    efficiency: float | None = None
    prior: float | None = None

    @cached_property
    def vertices(self) -> tuple[tuple[float, float], ...]:
        """The vertices (t, S(t)) of the convex hull of all codes, t rising."""
        kept: list[tuple[float, float]] = []
        for t, loss in sorted({*self.constants, *((run.kl, run.loss) for run in self.runs)}):
            if kept and loss >= kept[-1][1]:
                continue
            while len(kept) > 1 and _slope(kept[-2], kept[-1]) >= _slope(kept[-1], (t, loss)):
                kept.pop()
            kept.append((t, loss))
        return tuple(kept)

    def length(self, beta: float = 1.0) -> float:
        """The description length C_beta, in nats; C(D) at beta = 1."""
        return min(loss + beta * t for t, loss in self.vertices)

    def information(self, beta: float = 1.0) -> float:
        """The information K(beta) = dC_beta / dbeta, in nats; the smaller value where C_beta has a kink."""
        return min((loss + beta * t, t) for t, loss in self.vertices)[1]

    def loss(self, t: float) -> float:
        """The structure function S(t) = max over beta of C_beta - beta t: the least loss of a code of t nats."""
        if not t >= 0:
            raise WeightspaceError(f"a code of {t} nats; give a number from 0 up")
        for a, b in zip(self.vertices, self.vertices[1:], strict=False):
            if t <= b[0]:
                return a[1] + _slope(a, b) * (t - a[0])
        return self.vertices[-1][1]

    @property
    def complexity(self) -> float:
        """The complexity of the task: the smallest t with S(t) + t = C(D), in nats."""
        return self.information(1.0)

    @property
    def gain(self) -> float:
        """The nats by which the shortest code at beta = 1 beats the best constant output, to three standard errors."""
        return min(loss for _, loss in self.constants) - min(
            (r.loss + r.kl + (0.0 if math.isnan(r.error) else 3 * r.error) for r in self.runs), default=math.inf
        )

    @property
    def chance(self) -> float | None:
        """An upper bound on the probability that labels drawn at random have so short a code: exp(prior - gain).

        At random: independently of the inputs, from any fixed frequencies of classes. A code whose prior was chosen
        before the labels saves k nats on such labels with probability at most e^-k (Kraft's inequality with Markov's).
        None where `prior` is not known. Source: The minimum description length principle (Grunwald, 2007), section 3.3.
        """
        return None if self.prior is None else math.exp(min(0.0, self.prior - self.gain))

    @property
    def collapse(self) -> float:
        """The critical beta_c, above which the shortest code is a constant output or the trivial one."""
        crossings = [_crossing(self.constants, run) for run in self.runs if self._learnt(run.loss)]
        return max(crossings, default=0.0)

    def _learnt(self, loss: float) -> bool:
        """Whether a loss is more than 1 % below that of the best constant."""
        return loss < (1 - _NOTHING) * min(constant for _, constant in self.constants)

    @property
    def tail(self) -> float:
        """The slope of S from the task's complexity to where 5 % of the trivial loss is left; -1 for perfect codes.

        NaN where no code goes beyond the complexity.
        """
        least = max(_LEARNT * self.vertices[0][1], self.vertices[-1][1])
        start, end = self.complexity, self._reached(least)
        return (self.loss(end) - self.loss(start)) / (end - start) if end > start else math.nan

    def _reached(self, loss: float) -> float:
        """The smallest t with S(t) <= loss."""
        for a, b in zip(self.vertices, self.vertices[1:], strict=False):
            if loss >= b[1]:
                return a[0] + (min(loss, a[1]) - a[1]) / _slope(a, b)
        return self.vertices[-1][0]

    @property
    def betas(self) -> list[float]:
        """The betas of the sweeps, rising."""
        return sorted({run.beta for run in self.runs})

    @property
    def transitions(self) -> list[Transition]:
        """The phase transitions: K(beta) falls faster than beta^-1.5 between two betas of the sweeps, or to zero."""
        found = []
        for a, b in zip(self.vertices, self.vertices[1:], strict=False):
            beta, nothing = -_slope(a, b), not self._learnt(a[1])
            if not self._learnt(b[1]):
                continue
            if nothing or math.log(b[0] / a[0]) > _SHARP * math.log(self._grid(beta)):
                found.append(Transition(beta, b[0], a[0], a[1] - b[1], nothing))
        return found[::-1]

    def _grid(self, beta: float) -> float:
        """The ratio of the two betas of the sweeps next to this one."""
        ratios = [b / a for a, b in zip(self.betas, self.betas[1:], strict=False) if b >= beta]
        return ratios[0] if ratios else 2.0

    def susceptibility(self) -> list[tuple[float, float]]:
        """The susceptibility (beta, -dK / d log beta) between the betas of the sweeps, in nats; it peaks at jumps."""
        pairs = zip(self.betas, self.betas[1:], strict=False)
        return [
            (math.sqrt(a * b), (self.information(a) - self.information(b)) / math.log(b / a)) for a, b in pairs
        ]  # fmt: skip

    def best(self, beta: float) -> Run:
        """The shortest code that the sweeps found at exactly this beta."""
        return min((run for run in self.runs if run.beta == beta), key=lambda run: run.length)

    @cached_property
    def checks(self) -> tuple[Check, ...]:
        """The laws of C_beta checked on the sweeps alone, to within three standard errors and 1 % of the loss."""
        return tuple(_checks(self))

    @property
    def notes(self) -> tuple[str, ...]:
        """Warnings about this result, one sentence each."""
        said = [f"{c.name}: violated by {c.violated:.3g} nats at beta {c.beta:g} ({c.law}); the envelope repairs it"
                for c in self.checks if not c.passed]  # fmt: skip
        if self.runs and self.prior is not None and (self.chance or 0.0) > _CHANCE:
            said.append(
                f"{self.examples} examples are too few to tell these labels from random ones: the shortest code saves "
                f"{max(0.0, self.gain):.3g} nats over a constant, and needs {self.prior - math.log(_CHANCE):.3g}; the "
                "complexity is not that of a structure"
            )
        if self.runs and not self.collapse:
            said.append("no code was shorter than a constant: longer training or smaller betas may find one")
        if self.runs and self.collapse > self.betas[-1]:
            said.append(
                f"more than a constant is learnt at the largest beta, {self.betas[-1]:g}: the collapse is above it"
            )
        return tuple(said)

    def data(self) -> dict[str, Any]:
        """All results as plain data for JSON."""
        return plain({
            "examples": self.examples, "length": self.length(), "complexity": self.complexity,
            "collapse": self.collapse, "tail": self.tail, "gain": self.gain, "chance": self.chance,
            "efficiency": self.efficiency, "constants": self.constants,
            "vertices": self.vertices, "runs": [asdict(run) for run in self.runs],
            "curve": [{"beta": b, "length": self.length(b), "information": self.information(b)} for b in self.betas],
            "transitions": [{**asdict(t), "name": t.name} for t in self.transitions],
            "susceptibility": self.susceptibility(),
            "checks": [asdict(check) for check in self.checks], "notes": self.notes,
        })  # fmt: skip


def _slope(a: tuple[float, float], b: tuple[float, float]) -> float:
    return (b[1] - a[1]) / (b[0] - a[0])


def _crossing(constants: Sequence[tuple[float, float]], run: Run) -> float:
    """The beta up to which a code is shorter than every constant."""
    over = [(loss - run.loss) / (run.kl - t) for t, loss in constants if run.kl > t]
    return max(0.0, min(over, default=0.0))


# ------------------------------------------------------------------ consistency checks of the sweeps


def _checks(s: StructureFunction) -> Iterator[Check]:
    betas = s.betas
    best = [s.best(beta) for beta in betas]
    slack = [3 * (0.0 if math.isnan(run.error) else run.error) + 0.01 * s.constants[0][1] for run in best]

    def check(name: str, law: str, found: Sequence[tuple[float, float, float]]) -> Check:
        """`found`: nats beyond the law, nats allowed, beta."""
        worst = max(found, default=(0.0, 0.0, math.nan), key=lambda entry: entry[0] - entry[1])
        return Check(name, worst[0] <= worst[1], max(0.0, worst[0]), worst[2], law)

    hull = [run.length - s.length(run.beta) for run in best]
    yield check("envelope", "no code of another beta is shorter", [*zip(hull, slack, betas, strict=True)])
    chords = [
        (_chord(best[k - 1], best[k + 1], betas[k]) - best[k].length, slack[k], betas[k])
        for k in range(1, len(best) - 1)
    ]
    yield check("concave", "C lies above its chords", chords)
    pairs = [*zip(best, best[1:], strict=False)]
    legendre = [
        (max((b.length - a.length) - (b.beta - a.beta) * a.kl, (b.beta - a.beta) * b.kl - (b.length - a.length)),
         slack[k + 1], b.beta)
        for k, (a, b) in enumerate(pairs)
    ]  # fmt: skip
    yield check("Legendre", "dC / dbeta lies between K of the two betas", legendre)
    falling = [((b.kl - a.kl) * b.beta, slack[k + 1], b.beta) for k, (a, b) in enumerate(pairs)]
    yield check("falling", "K falls with beta; in nats of length", falling)
    bare = StructureFunction((), s.constants, s.examples)
    trivial = [run.length - bare.length(run.beta) for run in best]
    yield check("constant", "no constant is shorter", [*zip(trivial, slack, betas, strict=True)])
    for name, law, key in (("ways", "up and down agree", "way"), ("seeds", "the seeds agree", "seed")):
        yield check(
            name, law, [(_spread(s, beta, key), allowed, beta) for beta, allowed in zip(betas, slack, strict=True)]
        )


def _chord(a: Run, b: Run, beta: float) -> float:
    share = (beta - a.beta) / (b.beta - a.beta)
    return (1 - share) * a.length + share * b.length


def _spread(s: StructureFunction, beta: float, key: str) -> float:
    """The largest difference between the shortest codes of the two ways, or of the seeds."""
    shortest: dict[Any, float] = {}
    for run in s.runs:
        if run.beta == beta:
            of = getattr(run, key)
            shortest[of] = min(run.length, shortest.get(of, math.inf))
    return max(shortest.values()) - min(shortest.values())
