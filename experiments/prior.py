"""Claim: of all priors, the mean of the posteriors on other data, E_D[Q], minimises the information in the weights.

    python -m experiments.prior [--data DIR] [--seeds 0 1 2]

E_D KL(Q(w | D) | P) is least for P = E_D[Q], where it is I(w; D) (Achille, Soatto, 2018). Disjoint sets of examples are
coded one by one; P is the Gaussian of the mean and variance of all codes, of all but the one that is told, or the zero
mean with the best variance of every tensor. Embedded digits without --data (a folder of MNIST's files).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import weightspace as ws
from experiments.record import Job, Record, block, command, number, percent
from weightspace.risk import inequalities

SETS, EXAMPLES, DELTA = 8, 160, 0.05
STARTS = ("one start", "own starts")
PRIORS = ("own variances", "shared variances", "all codes", "the other codes")


class Lab:
    """Data, and disjoint sets of it."""

    def __init__(self, data: str | None, quick: bool) -> None:
        self.name = "mnist" if data else "digits"
        self.sets, self.steps = (3, 30) if quick else (SETS, 1000)
        self.train = ws.mnist(data) if data else ws.digits("train")
        self.test = ws.mnist(data, split="test") if data else ws.digits("test")

    def disjoint(self, seed: int) -> list[ws.Task]:
        order = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(seed)).tolist()
        rows = [sorted(order[k * EXAMPLES : (k + 1) * EXAMPLES]) for k in range(self.sets)]
        return [self.train.pick(part) for part in rows]

    def module(self) -> nn.Module:
        inputs = self.train.example(1)[0].numel()
        return nn.Sequential(nn.Flatten(), nn.Linear(inputs, 16), nn.ReLU(), nn.Linear(16, 10))


def priors(lab: Lab, seed: int) -> Iterator[Job]:
    """Codes that begin at one network, and codes that begin at networks of their own."""
    for start in STARTS:
        yield f"priors/{lab.name}/{start}/{seed}", lambda start=start: _row(lab, start, seed)


def _row(lab: Lab, start: str, seed: int) -> dict[str, Any]:
    parts, codes = lab.disjoint(seed), []
    for k, part in enumerate(parts):
        first = ws.fresh(lab.module, seed if start == "one start" else 1000 * seed + k)
        codes.append(ws.encode(first, part, 0.1, steps=lab.steps, seed=seed))
    told = {name: [_prior(name, codes, k) for k in range(len(codes))] for name in PRIORS}
    nats = {name: [c.posterior.kl(p) for c, p in zip(codes, told[name], strict=True)] for name in PRIORS}
    right = sum(c.right for c in codes) / len(codes)
    bounds = [
        inequalities.maurer(1 - c.right, kl, EXAMPLES, DELTA)
        for c, kl in zip(codes, nats["the other codes"], strict=True)
    ]
    tests = [1 - ws.accuracy(lab.test)(p.net) for p in told["the other codes"]]
    return {
        "nats": [sum(nats[name]) / len(codes) for name in PRIORS],
        "error": 1 - right,
        "bound": sum(bounds) / len(bounds),
        "prior_error": sum(tests) / len(tests),
    }


def _prior(name: str, codes: Sequence[ws.Code], k: int) -> ws.Gaussian:
    if name == "own variances":
        return codes[k].prior
    if name == "shared variances":
        return _zero(codes)
    return _mean([c for j, c in enumerate(codes) if j != k or name == "all codes"])


def _zero(codes: Sequence[ws.Code]) -> ws.Gaussian:
    """Zero mean, and the variance of every tensor that is best for all codes together."""
    space = codes[0].posterior.net.weights
    second = {
        name: sum(
            float((c.posterior.log_variance[name].exp() + c.posterior.net.weights[name].square()).mean()) for c in codes
        )
        / len(codes)
        for name in space
    }
    wide = {name: torch.full_like(w, second[name]).log() for name, w in space.items()}
    return ws.Gaussian(codes[0].posterior.net.at(space.zeros()), space.replace(wide))


def _mean(codes: Sequence[ws.Code]) -> ws.Gaussian:
    """The Gaussian with the mean and the variances of the mixture of the codes."""
    means = torch.stack([c.posterior.net.weights.flat() for c in codes])
    inside = torch.stack([c.posterior.log_variance.flat().exp() for c in codes]).mean(0)
    net, between = codes[0].posterior.net, _spread(means)
    return ws.Gaussian(net.at(net.weights.shaped(means.mean(0))), net.weights.shaped((inside + between).log()))


def _spread(means: Tensor) -> Tensor:
    return (means - means.mean(0)).square().mean(0)


EXPERIMENTS: dict[str, Callable[[Lab, int], Iterator[Job]]] = {"priors": priors}


def tables(record: Record, name: str) -> dict[str, str]:
    """Medians over seeds."""
    rows = []
    for start in STARTS:
        at = f"priors/{name}/{start}"
        if record.of(at):
            shown = [number(v, 0) for v in record.median(at, "nats")] + record.cells(at, "error prior_error", percent)
            rows.append([start, *shown, *record.cells(at, "bound", number)])
    kls = " | ".join(f"KL, {prior}" for prior in PRIORS)
    head = f"codes from | {kls} | error, % | error of the others' mean, test, % | bound"
    return block(f"priors {name}", head, rows)


main = command("prior", __doc__, EXPERIMENTS, lambda given: Lab(given.data, given.quick), tables)

if __name__ == "__main__":
    sys.exit(main())
