"""A session of the playground: messages in, frames and numbers out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from weightspace.net.errors import WeightspaceError, first_line
from weightspace.net.public import public
from weightspace.symmetry.symmetry import Symmetry
from weightspace.web.playground import insight, pair, shaking, walking
from weightspace.web.playground.exercises import EXERCISES
from weightspace.web.playground.generator import pictures_of
from weightspace.web.playground.learner import Learner
from weightspace.web.playground.messages import messages, read
from weightspace.web.playground.networks import Networks, scores
from weightspace.web.playground.pair import Aligned
from weightspace.web.playground.pictures import pictures
from weightspace.web.playground.reply import Reply, reply
from weightspace.web.playground.state import Limits, State
from weightspace.web.playground.walking import Walk

__all__ = ["FIRST", "Session", "prepare"]

_NATURAL = 10  # steps of the natural gradient that one message may take: two seconds for the largest networks
FIRST: tuple[Mapping[str, object], ...] = (  # messages for which parts of torch are loaded when they come first
    {"do": "set", "depth": 1, "width": 2, "points": 20, "other": 1, "algorithm": "natural"},
    {"do": "step", "steps": 1},
    *({"do": name} for name in ("noise", "certificate", "line", "information", "digits")),
)


@public
class Session:
    """One playground: networks in the plane that are trained, shaken, shuffled and looked at, message by message.

    `answer(message)` takes the JSON objects of `docs/playground.md`. It depends on the messages before alone, has no
    threads and keeps a bounded number of weights. `limits`: the largest networks and answers.

    >>> from weightspace.web.playground.session import Session
    >>> session = Session()
    >>> first = session.answer({"do": "set", "data": "xor", "depth": 2, "width": 4})
    >>> first.section("maps").shape                       # two layers of four neurons, and the output
    (1, 9, 40, 40)
    >>> last = session.answer({"do": "step", "steps": 50})
    >>> last.header["step"], last.header["networks"][0]["train"]["loss"] < 0.7
    (50, True)
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.networks = Networks(State.of({}, self.limits), self.limits)
        self.walk: Walk | None = None
        self.group: Symmetry | None = None
        self.aligned: Aligned | None = None

    def answer(self, message: Mapping[str, object]) -> Reply:
        """The answer to one message. Raises `WeightspaceError`, with one sentence, for all that cannot be answered."""
        name, fields = read(message, self.limits)
        try:
            return _ANSWERS[name](self, fields)
        except WeightspaceError:
            raise
        except (ArithmeticError, RuntimeError, ValueError) as error:
            raise WeightspaceError(
                f"{name} has no answer for these weights ({first_line(error)}); undo, or reset"
            ) from error

    # -------------------------------------------------------------- frames

    def _frame(self, name: str, fields: Mapping[str, Any], more: Mapping[str, Any] | None = None) -> Reply:
        networks = self.networks
        told = {
            "step": networks.steps,
            "epoch": networks.seen / len(networks.train),
            "undo": len(networks.history),
            "diverged": networks.diverged,
        }
        shown, scales = self._pictures(fields, [learner.flat for learner in networks.learners])
        pairs = zip(networks.learners, scales, strict=True)
        seen = [{**self._told(learner), "scales": scale} for learner, scale in pairs]
        return reply(name, {**told, "networks": seen, **(more or {})}, shown)

    def _pictures(
        self, fields: Mapping[str, Any], flats: list[Tensor]
    ) -> tuple[dict[str, np.ndarray], list[list[float]]]:
        """The sections of a frame, and the scale of every picture."""
        shown: dict[str, np.ndarray] = {}
        scales: list[list[float]] = [[] for _ in flats]
        if fields["maps"] != "none":
            every = fields["maps"] == "all"
            shown["maps"], scales = pictures(self.networks.learners[0], flats, fields["side"], every)
        if fields["weights"]:
            shown["weights"] = torch.stack(flats).numpy()
        return shown, scales

    def _told(self, learner: Learner, flat: Tensor | None = None) -> dict[str, Any]:
        networks = self.networks
        norms = learner.norms(learner.flat if flat is None else flat)
        slopes = None
        if flat is None and learner.gradient is not None:
            found = learner.norms(learner.gradient)
            slopes = [g / w if w else None for g, w in zip(found, norms, strict=True)]
        return {
            "train": scores(learner, networks.train, flat),
            "test": scores(learner, networks.test, flat),
            "norms": norms,
            "gradients": slopes,
        }

    # -------------------------------------------------------------- set-up and training

    def _state(self, fields: Mapping[str, Any]) -> Reply:
        table = {name: {k: f.data() for k, f in some.items()} for name, some in messages(self.limits).items()}
        defaults = {k: f.default for k, f in self.limits.fields().items()}
        told = {"state": self.networks.state.as_fields(), "limits": table.pop("set"), "defaults": defaults}
        return reply("state", {**told, "messages": table})

    def _set(self, fields: Mapping[str, Any]) -> Reply:
        before = self.networks.state
        given = {name: value for name, value in fields.items() if name in self.limits.fields()}
        self.networks.change(given)
        changed = self.networks.state.changed(before)
        if changed & {"depth", "width", "activation"}:
            self.group = None
        if changed:
            self.walk = self.aligned = None
        return self._frame("set", fields)

    def _reset(self, fields: Mapping[str, Any]) -> Reply:
        self.networks.draw(self.networks.learners[0].begun)
        self.walk = self.aligned = None
        return self._frame("reset", fields)

    def _data(self, fields: Mapping[str, Any]) -> Reply:
        points = {"train": self.networks.train, "test": self.networks.test}
        return reply("data", {}, {name: some.rows().numpy() for name, some in points.items()})

    def _show(self, fields: Mapping[str, Any]) -> Reply:
        return self._frame("show", fields)

    def _step(self, fields: Mapping[str, Any]) -> Reply:
        if self.networks.state.algorithm == "natural" and fields["steps"] > _NATURAL:
            raise WeightspaceError(f"a message takes at most {_NATURAL} steps of the natural gradient")
        self.networks.learn(fields["steps"])
        self.walk = None
        return self._frame("step", fields)

    def _edit(self, fields: Mapping[str, Any]) -> Reply:
        k = self.networks.at(fields["network"])
        learner = self.networks.learners[k]
        layer, neuron, entry = fields["layer"], fields["neuron"], fields["input"]
        outputs, inputs = learner.sizes[1:], learner.sizes[:-1]
        for what, value, most in (
            ("layer", layer, len(outputs)),
            ("neuron", neuron, outputs[min(layer, len(outputs)) - 1]),
            ("input", entry, inputs[min(layer, len(inputs)) - 1]),
        ):
            if value > most:
                raise WeightspaceError(f"there is no {what} {value} there; the last one is {most}")
        flat = learner.flat.clone()
        matrix, bias = learner.views(flat)[2 * layer - 2 : 2 * layer]
        if entry:
            matrix[neuron - 1, entry - 1] = fields["value"]
        else:
            bias[neuron - 1] = fields["value"]
        self.networks.put({k: flat})
        self.walk = None
        return self._frame("edit", fields)

    def _undo(self, fields: Mapping[str, Any]) -> Reply:
        self.networks.undo()
        self.walk = None
        return self._frame("undo", fields)

    # -------------------------------------------------------------- noise

    def _noise(self, fields: Mapping[str, Any]) -> Reply:
        told = shaking.shake(self.networks, fields["percent"], fields["network"])
        self.walk = None
        return self._frame("noise", fields, {"noise": told})

    def _certificate(self, fields: Mapping[str, Any]) -> Reply:
        return reply("certificate", shaking.proof(self.networks, self.networks.at(fields["network"])))

    def _curve(self, fields: Mapping[str, Any]) -> Reply:
        k = self.networks.at(fields["network"])
        return reply("curve", shaking.curve(self.networks, k, fields["draws"], fields["most"]))

    def _breakdown(self, fields: Mapping[str, Any]) -> Reply:
        k = self.networks.at(fields["network"])
        return reply("breakdown", shaking.gradient_breakdown(self.networks, k, fields["percent"]))

    # -------------------------------------------------------------- two networks

    def _symmetry(self) -> Symmetry:
        """The group of the architecture; `set` forgets it where the architecture changes."""
        if self.group is None:
            self.group = pair.group_of(self.networks)
        return self.group

    def _onto(self) -> Aligned:
        """The second network aligned onto the first, found anew where one of them has changed."""
        self.networks.both()
        if self.aligned is None or not self.aligned.of(self.networks):
            self.aligned = pair.aligned(self.networks, self._symmetry())
        return self.aligned

    def _group(self, fields: Mapping[str, Any]) -> Reply:
        group = self._symmetry()
        return reply("group", {"group": str(group), "log10": group.log10_order})

    def _shuffle(self, fields: Mapping[str, Any]) -> Reply:
        number = fields["network"] or len(self.networks.learners)
        told = pair.shuffle(self.networks, self.networks.at(number), self._symmetry())
        self.walk = None
        return self._frame("shuffle", fields, told)

    def _align(self, fields: Mapping[str, Any]) -> Reply:
        found = self._onto()
        told = pair.bring(self.networks, found)
        self.walk, self.aligned = None, replace(found, second=found.flat)
        return self._frame("align", fields, told)

    def _line(self, fields: Mapping[str, Any]) -> Reply:
        return reply("line", pair.straight(self.networks, self._onto(), fields["points"]))

    def _between(self, fields: Mapping[str, Any]) -> Reply:
        self.networks.both()
        first, second = self.networks.learners
        other = self._onto().flat if fields["aligned"] else second.flat
        flat = pair.between(self.networks, fields["t"], other)
        shown, scales = self._pictures(fields, [flat])
        told = {**self._told(first, flat), "scales": scales[0]}
        return reply("between", {"t": fields["t"], "aligned": fields["aligned"], "networks": [told]}, shown)

    # -------------------------------------------------------------- the walk

    def _keep(self, fields: Mapping[str, Any]) -> Reply:
        k, halves = self.networks.at(fields["network"]), fields["where"] == "halves"
        self.walk = walking.begun(self.networks, k, fields["learn"], halves, fields["budget"], fields["size"])
        return self._frame("keep", fields, {"walk": walking.told(self.walk, self.networks)})

    def _walking(self) -> Walk:
        if self.walk is None:
            raise WeightspaceError("no walk has begun, or a change has ended it; send keep first")
        return self.walk

    def _walk(self, fields: Mapping[str, Any]) -> Reply:
        walk, networks = self._walking(), self.networks
        net, after = walking.further(walk, networks.net(walk.k), fields["steps"])
        flat = networks.checked(net)
        if after.step > walk.step:
            networks.settle()
            networks.learners[walk.k].put(flat)
        self.walk = after
        return self._frame("walk", fields, {"walk": walking.told(after, networks)})

    def _goal(self, fields: Mapping[str, Any]) -> Reply:
        walk = self._walking()
        return reply("goal", {}, {"kept": walk.kept.rows().numpy(), "learnt": walk.learnt.rows().numpy()})

    # -------------------------------------------------------------- inside, and digits

    def _paths(self, fields: Mapping[str, Any]) -> Reply:
        return reply("paths", insight.paths(self.networks, self.networks.at(fields["network"]), fields["example"]))

    def _information(self, fields: Mapping[str, Any]) -> Reply:
        return reply("information", insight.nats(self.networks, self.networks.at(fields["network"])))

    def _digits(self, fields: Mapping[str, Any]) -> Reply:
        shown, told = pictures_of(**fields)
        return reply("digits", told, {"pictures": shown})

    def _examples(self, fields: Mapping[str, Any]) -> Reply:
        return reply("examples", {"examples": [exercise.data() for exercise in EXERCISES]})


_ANSWERS: Mapping[str, Callable[[Session, Mapping[str, Any]], Reply]] = {
    name: getattr(Session, f"_{name}") for name in messages(Limits())
}


@public
def prepare() -> None:
    """Load what the first answers of a process need, in seconds: parts of torch are imported when they are first used.

    >>> from weightspace.web.playground.session import prepare
    >>> prepare()
    """
    session = Session()
    for message in FIRST:
        session.answer(message)
