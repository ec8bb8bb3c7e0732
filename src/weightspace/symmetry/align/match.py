"""Matching: the group element that aligns one network to another, by a portfolio of methods."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal, TypeAlias

from torch import Tensor

from weightspace.net.errors import SymmetryError, WeightspaceError
from weightspace.net.net import Net
from weightspace.net.public import public
from weightspace.net.weights import squared_distance
from weightspace.symmetry.align.ascent import Matching, coordinate_descent
from weightspace.symmetry.align.orders import member_order
from weightspace.symmetry.align.refine import Refinement
from weightspace.symmetry.align.relax import frank_wolfe
from weightspace.symmetry.align.score import Score
from weightspace.symmetry.align.spectral import spectral_start
from weightspace.symmetry.align.terms import Terms, told, weight_terms
from weightspace.symmetry.axis import MATRICES
from weightspace.symmetry.balance import balancing, unit_variances
from weightspace.symmetry.canonical import canonical_element
from weightspace.symmetry.element import Element
from weightspace.symmetry.fold import fold
from weightspace.symmetry.group import Group

__all__ = ["Candidate", "METHODS", "Match", "Method", "apart", "match"]


Method: TypeAlias = Literal["auto", "activations+weights", "activations", "weights", "frank-wolfe", "refine"]


@public
@dataclass(frozen=True)
class Candidate:
    """The result of one method: <a, g b> of the balanced weights, the measured barrier if there is data, seconds.

    Where the data have no labels, `barrier` is the divergence (see `Divergence`). `steps`: how many a descent took.
    """

    method: str
    objective: float
    barrier: float | None
    seconds: float
    steps: int = 0


@public
@dataclass(frozen=True)
class Match:
    """The matching found: the element g to apply, its method, why it was chosen, and the results of the others.

    "weights": coordinate ascent on weights; "activations": on correlations of units; "activations+weights": the second,
    then the first; "frank-wolfe": relaxed permutations; "refine": the best of these, its scales refined by descent. See
    `Symmetry.match`.
    """

    element: Element
    method: str
    why: str
    candidates: tuple[Candidate, ...] = field(default=())


@public
def match(
    group: Group,
    net: Net,
    to: Net,
    *,
    features: Callable[[Net, Net], Terms] | None = None,
    score: Score | None = None,
    refined: Callable[[Element, Score], Refinement] | None = None,
    method: Method = "auto",
    seed: int = 0,
) -> Match:
    """The element g that brings `net` nearest `to`, and how it was found.

    `features`: standardised activations of `to` and `net` on data. `score`: the measured barrier from `to`. `refined`:
    refines the scales of an element. `method`: "weights", "activations", "activations+weights", "frank-wolfe", or
    "auto": all that apply, one after the other, until 1 % of the initial barrier is left (Frank-Wolfe only where more
    than 5 % is, and where its matrices are small, also relative to the weights); the lowest barrier is kept, or the
    highest <to, g net> without data. At last, with data, its scales are refined by descent, where more than 1 % is left
    and the barrier is not near zero (see `Score.near`); always with "refine".

    >>> import weightspace as ws
    >>> from weightspace.symmetry.align.match import apart, match
    >>> net, task = ws.demo.example()
    >>> group = ws.Symmetry.of(net, task.example(2))
    >>> copy = group.sample(seed=1)(net)
    >>> found = match(group, copy, net, method="weights")
    >>> found.method, round(apart(net, copy, found.element), 3)
    ('weights', 0.0)
    """
    net, to = (fold(group, each) for each in (net, to))
    for each in (net, to):
        bad = [*each.weights.unusable(), *each.state.unusable()]
        if bad:
            raise WeightspaceError(f"{bad[0]} holds NaN or infinity; there is nothing to match")
    if not group.exchanges:
        return _Search(group, net, to, features, score, refined, seed).run(method)
    orders = [member_order(group, net, to, seed), Element(group, {}, {}, {})]
    found = [_Search(group, net, to, features, score, refined, seed, orders[0]).run(method)]
    if score is None and apart(to, net, found[0].element) > apart(to, net, group.identity()):
        found.append(_Search(group, net, to, features, score, refined, seed, orders[1]).run(method))
    return min(found, key=lambda one: apart(to, net, one.element))


_BALANCED, _ALIKE = 1e-8, 1e-5
_GOOD, _FAIR = 0.01, 0.05
_RESTARTS = 10
_SMALL = 200_000
_MATCHERS = ("activations+weights", "activations", "weights", "frank-wolfe")
METHODS = (*_MATCHERS, "refine")


class _Search:
    """The portfolio of methods on one pair of networks."""

    def __init__(
        self,
        group: Group,
        net: Net,
        to: Net,
        features: Callable[[Net, Net], Terms] | None,
        score: Score | None,
        refined: Callable[[Element, Score], Refinement] | None,
        seed: int,
        order: Element | None = None,
    ) -> None:
        self.order, self.given = order, net
        if order is not None:
            group, net = group.again(exchanges=()), order(net)
        self.group, self.net, self.to, self.seed = group, net, to, seed
        self.score, self.refined = score, refined
        self.pair = unit_variances(group, net), unit_variances(group, to)
        self.into, self.onto = (balancing(group, n.tensors, _BALANCED) for n in self.pair)
        self.terms = weight_terms(group, self.pair[1], self.pair[0], self.onto, self.into)
        self.numbers = sum(math.prod(group.shapes[name]) for name in told(group, self.pair[1]))
        self.features = features
        self.turning = any(g.kind in MATRICES for g in group.generators)
        self.found: dict[str, Element] = {}
        norms = [_norm(terms.values()) for terms in (self.terms.fixed, self.terms.moving)] if self.terms.kept else []
        self.bound = math.prod(norms) if norms else math.inf  # of the inner product
        self.alike = bool(norms) and abs(norms[0] - norms[1]) <= _ALIKE * norms[0]
        self.met = False

    def run(self, method: Method) -> Match:
        every = method in ("auto", "refine")
        if method in ("activations", "activations+weights", "refine") and self.features is None:
            raise WeightspaceError(f"method {method!r} needs data; give data=")
        naive = self.score(self.given) if self.score is not None and every else 0.0
        candidates: list[Candidate] = []
        for name in _MATCHERS if every else (method,):
            if name.startswith("activations") and self.features is None:
                continue
            lowest = min((c.barrier for c in candidates if c.barrier is not None), default=math.inf)
            if lowest <= _GOOD * naive:
                continue
            if name == "frank-wolfe" and every and (lowest <= _FAIR * naive or self.met or self.heavy()):
                continue
            began = time.perf_counter()
            element = self.find(name)
            barrier = None if self.score is None else self.score(self.gauge(element)(self.net))
            value = Matching(self.group, self.terms, element).objective()
            candidates.append(Candidate(name, value, barrier, time.perf_counter() - began))
        best = self.choose(candidates)
        nearest = self.nearest(self.found[best.method])
        what = "" if self.score is None else self.score.what
        found = Match(self.whole(nearest), best.method, _why(best, candidates, what), tuple(candidates))
        return self.finish(found, best, naive, method) if every else found

    def finish(self, found: Match, best: Candidate, naive: float, method: Method) -> Match:
        """The match with its scales refined, where something is left to gain and that gains it."""
        if self.score is None or self.refined is None or best.barrier is None:
            return found
        low = max(_GOOD * naive, self.score.near(self.net))
        if method == "auto" and best.barrier <= low:
            return found
        done = self.refined(found.element, self.score)
        if not done.losses:
            return found
        value = best.objective  # of balanced weights: it does not depend on scales
        more = Candidate("refine", value, done.after, done.seconds, len(done.losses))
        told = f"{len(done.losses)} steps on {done.examples:,} examples without labels"
        change = f"{self.score.what} {done.before:.4f} to {done.after:.4f}"
        if not done.kept:
            return replace(found, why=f"{found.why}; refining its scales did not help ({told}: {change})",
                           candidates=(*found.candidates, more))  # fmt: skip
        why = f"{best.method}, then its scales refined by {told}: {change}"
        return Match(done.element, "refine", why, (*found.candidates, more))

    def whole(self, element: Element) -> Element:
        """The element with the order of members that this search began with."""
        if self.order is None:
            return element
        return Element(self.order.group, element.permutations, element.factors) @ self.order

    def heavy(self) -> bool:
        """Whether Frank-Wolfe would need more than half the memory of a network on top."""
        return not self.terms.kept and 2 * sum(4 * axis.size**2 for axis in self.group.permutable()) > self.numbers

    def find(self, name: str) -> Element:
        if name not in self.found:
            self.found[name] = getattr(self, "_" + name.replace("+", "_").replace("-", "_"))()
        return self.found[name]

    def gauge(self, element: Element) -> Element:
        """The element between balanced networks as one between the networks themselves.

        Where statistics are re-estimated, without scales that the statistics undo: the function would change.
        """
        found = self.onto.inverse() @ element @ self.into
        if self.score is None or not self.score.normed:
            return found
        kept = {k: f for k, f in found.factors.items() if not self.group.generators[k].evaluation}
        return Element(self.group, found.permutations, kept)

    def nearest(self, element: Element) -> Element:
        """With the scales of `to`, or with its own where that is nearer; without data, never farther than before."""
        options = [self.gauge(element), _isometry(element)]
        if self.score is None:
            options.append(self.group.identity())
        return min(options, key=lambda option: apart(self.to, self.net, option))

    def choose(self, candidates: list[Candidate]) -> Candidate:
        if self.score is None:
            return max(candidates, key=lambda c: c.objective)
        return min(candidates, key=lambda c: (c.barrier, -c.objective))

    def _weights(self) -> Element:
        """Coordinate ascent; restarted until the bound |a| |b| is met, if the problem is small.

        Where |a| = |b| these may be copies; then the canonical forms, which are equal for copies, give another start.
        """
        starts: list[Callable[[], Element | None]] = [lambda: None]
        if self.alike:
            starts += [lambda: spectral_start(self.group, self.terms)] if self.turning else [self.canonical_start]
        if self.numbers <= _SMALL:
            starts += [partial(self.group.sample, self.seed + k, ("permutation",)) for k in range(1, _RESTARTS)]
        best, value = self.group.identity(), -math.inf
        for k, start in enumerate(starts):
            element, reached = self.climbed(start(), self.seed + k)
            if reached > value:
                best, value = element, reached
            self.met = value >= (1 - 1e-6) * self.bound
            if self.met:
                break
        return best

    def climbed(self, start: Element | None, seed: int) -> tuple[Element, float]:
        """Coordinate ascent from a start, on to the last digit where the networks are copies; and its objective."""
        matching = Matching(self.group, self.terms, start)
        element, reached = matching.run(seed), matching.objective()
        if self.turning and reached >= (1 - _ALIKE) * self.bound:
            element, reached = matching.polish(), matching.objective()
        return element, reached

    def canonical_start(self) -> Element | None:
        """The permutations and signs between the canonical forms, after balancing; None if there are none."""
        try:
            into, onto = (canonical_element(self.group, net) for net in self.pair)
        except SymmetryError:
            return None
        return _isometry(self.onto @ onto.inverse() @ into @ self.into.inverse())

    def _activations(self) -> Element:
        assert self.features is not None
        to, net = (self.onto(self.pair[1]), self.into(self.pair[0])) if self.turning else (self.to, self.net)
        found = coordinate_descent(self.group, self.features(to, net), seed=self.seed)
        return _signs_only(self.group, self.terms, found, self.seed)

    def _activations_weights(self) -> Element:
        return self.climbed(self.find("activations"), self.seed)[0]

    def _frank_wolfe(self) -> Element:
        return self.climbed(frank_wolfe(self.group, self.terms, seed=self.seed), self.seed)[0]


@public
def apart(a: Net, b: Net, element: Element) -> float:
    """The distance |a - g b| for an element g, computed one tensor at a time, b folded as a is.

    >>> import weightspace as ws
    >>> from weightspace.symmetry.align.match import apart
    >>> net, task = ws.demo.example()
    >>> g = ws.Symmetry.of(net, task.example(2)).sample(seed=1)
    >>> round(apart(net, g.inverse()(net), g), 3)
    0.0
    """
    total, move = 0.0, element.on(b, like=a)
    for name, tensor in a.weights.items():
        moved = b.weights[name].float()
        if name in element.group.tensors:
            moved = move(name, moved)
        total += squared_distance(tensor, moved)
    return math.sqrt(total)


def _isometry(element: Element) -> Element:
    """The permutations, signs and matrices of an element, without its scales."""
    signs = {k: f for k, f in element.factors.items() if element.group.generators[k].kind != "scale"}
    return Element(element.group, element.permutations, signs, element.exchanges)


def _norm(tensors: Iterable[Tensor]) -> float:
    return math.sqrt(sum(float(t.square().sum()) for t in tensors))


def _signs_only(group: Group, terms: Terms, element: Element, seed: int) -> Element:
    """Choose signs by the weights: standardised activations do not determine them."""
    if not any(g.kind == "sign" for g in group.generators):
        return element
    matching = Matching(group, terms, element)
    matching.axes = [replace(a, kinds=("sign",)) for a in matching.axes if "sign" in a.kinds]
    matching.inner = {a.name: [] for a in matching.axes}
    return matching.run(seed)


def _why(best: Candidate, candidates: list[Candidate], what: str) -> str:
    if best.barrier is None:
        return f"highest inner product <a, g b> = {best.objective:.4g} of {_counted(len(candidates))} (no data given)"
    tried = ", ".join(f"{c.method} {c.barrier:.4f}" for c in candidates)
    return f"lowest measured {what} of {_counted(len(candidates))}: {tried}"


def _counted(methods: int) -> str:
    return "1 method" if methods == 1 else f"{methods} methods"
