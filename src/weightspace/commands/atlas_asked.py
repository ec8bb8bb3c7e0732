"""`weightspace atlas query`, `nearest`, `between` and `merge`: members asked with new data, found, joined, averaged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

from weightspace.atlas.asked import Answer, rank_starts
from weightspace.atlas.atlas import Atlas
from weightspace.atlas.content import chosen_as
from weightspace.atlas.greedy_averages import Soup, soup
from weightspace.atlas.members import Member
from weightspace.atlas.nearby import Nearby, Way, between, neighbours
from weightspace.atlas.nearest_start import nearest
from weightspace.atlas.records import Measure, TaskRow
from weightspace.atlas.sources import Made, opened
from weightspace.checkpoint import stored
from weightspace.commands.atlas import known_group
from weightspace.commands.data import examples, labelled, splits
from weightspace.commands.nearest import Starts, nearest_start
from weightspace.commands.settings import Opened, Settings
from weightspace.jobs.engine import Engine
from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net
from weightspace.symmetry.symmetry import Symmetry
from weightspace.task.digest import digest
from weightspace.task.task import Task

__all__ = ["Averaged", "Joined", "Queried", "between_members", "merge", "nearest_to", "query"]


_UNKEPT = "The atlas is read-only: these values are not kept in it."


@dataclass(frozen=True)
class Queried:
    """Members ranked for data."""

    atlas: str
    asked_with: str
    answer: Answer
    kept: bool = True

    def remarks(self) -> list[str]:
        """What must be known to read the ranking; `kept`: whether its values were written into the atlas."""
        return [*self.answer.remarks(), *([] if self.kept else [_UNKEPT])]

    def data(self) -> dict[str, Any]:
        """As plain data."""
        return {"atlas": self.atlas, "data": self.asked_with, "kept": self.kept, **self.answer.data()}


@dataclass(frozen=True)
class Joined:
    """A way from one member to another over members."""

    ends: tuple[str, str]
    asked_with: str
    way: Way
    notes: list[str] = field(default_factory=list)

    def data(self) -> dict[str, Any]:
        """As plain data."""
        return {"ends": list(self.ends), "data": self.asked_with, **self.way.data(), "notes": self.notes}


@dataclass(frozen=True)
class Averaged:
    """A greedy average of members, its loss on examples that did not choose, and that of the best member there."""

    out: Path
    found: Soup
    loss: float
    best: float
    notes: list[str] = field(default_factory=list)

    def data(self) -> dict[str, Any]:
        """As plain data."""
        return {"out": str(self.out), **self.found.data(), "loss": self.loss, "best": self.best, "notes": self.notes}


def query(
    atlas: Atlas,
    data: str,
    by: str = "loss",
    *,
    steps: int = 0,
    tag: str | None = None,
    budget: float = 0.2,
    engine: Engine = 1,
    settings: Settings,
) -> Queried:
    """The members ranked for data, or with `steps` for a start of so many steps; values are written into the atlas.

    Raises `WeightspaceError` where no member can answer.
    """
    task = labelled(examples(data), data)
    members = atlas.members(tag=tag)
    if not members:
        raise WeightspaceError(
            f"{atlas.where}: holds no network{f' with the tag {tag}' if tag else ''}; add some first"
        )
    settings.progress(f"opening {len(members)} networks", 0, 0)
    openings = atlas.openings(members, _like(settings))
    told: dict[str, Any] = {"seed": settings.seed, "engine": engine, "progress": partial(settings.progress, "asking")}
    if by in ("task2vec", "codes", "weights") and steps:
        raise WeightspaceError(f"--try fine-tunes, and a distance by {by} does not; give one of the two")
    if steps:
        answer, what = rank_starts(openings, task, cast(Any, by), steps=steps, **told), f"{by} after {steps} steps"
    elif by in ("task2vec", "codes", "weights"):
        known = atlas.jobs if by == "codes" and atlas.catalogue.writable else None
        chosen = Starts(cast(Any, by), known=known, learnt=_learnt(members))
        answer, what = nearest_start(task, openings, chosen, engine=engine, settings=settings), f"distance by {by}"
    else:
        answer, what = nearest(task, openings, cast(Any, by), budget=budget, **told), by
    if atlas.catalogue.writable:
        _write(atlas, members, answer, task, data, what)
    return Queried(atlas.where, data, answer, atlas.catalogue.writable)


def _learnt(members: Sequence[Member]) -> dict[str, str]:
    """What members have learnt, where that was told when they were added."""
    return {m.name: str(m.facts["learnt"]) for m in members if "learnt" in m.facts}


def nearest_to(atlas: Atlas, path: Path, count: int = 5, *, settings: Settings) -> Nearby:
    """The members nearest to the network of a file, up to symmetry. Raises `WeightspaceError`."""
    found = opened(path)
    members = atlas.members(fingerprint=found.content.fingerprint)
    known, group, why = known_group(atlas, members, settings)
    if known is None or group is None:
        raise WeightspaceError(f"{path}: the atlas has no group of these tensors: {why}")
    like = _like(settings) or atlas.openings([known])[known.name].template
    assert like is not None
    net, told = stored.load(like, path)[0], partial(settings.progress, "bounding distances")
    return neighbours(net, atlas.openings(members, like), group, count, progress=told)


def between_members(atlas: Atlas, a: str, b: str, data: str, tag: str | None = None, *, settings: Settings) -> Joined:
    """A way from member a to member b over members whose highest barrier is lowest. Raises `WeightspaceError`."""
    first, second = atlas[a], atlas[b]
    if a == b:
        raise WeightspaceError(f"{a} twice; a way joins two networks, give another one")
    if first.fingerprint != second.fingerprint:
        raise WeightspaceError(f"{a} and {b} are of two architectures; a way joins networks of one")
    task = labelled(examples(data), data)
    others = [m for m in atlas.members(tag=tag, fingerprint=first.fingerprint) if m.name not in (a, b)]
    openings = atlas.openings([first, second, *others], _like(settings))
    ends = openings.pop(a), openings.pop(b)
    group, notes = _group(atlas, [first, second, *others], settings)
    told = partial(settings.progress, "measuring barriers")
    way = between(ends[0](), ends[1](), openings, task, group, seed=settings.seed, progress=told)
    return Joined((a, b), data, way, notes)


def merge(
    atlas: Atlas, names: Sequence[str], data: str, out: Path, tag: str | None = None, *, settings: Settings
) -> Averaged:
    """The greedy average of members, all of one architecture, written as a file. Raises `WeightspaceError`.

    `names`: members; with `tag`, those with the tag too. Half of the examples choose, the others measure.
    """
    chosen = list(
        {m.name: m for m in [*map(atlas.__getitem__, names), *(atlas.members(tag=tag) if tag else [])]}.values()
    )
    if len(chosen) < 2:
        raise WeightspaceError("an average needs two members; name them, or give --tag")
    if len({m.fingerprint for m in chosen}) > 1:
        raise WeightspaceError("members of several architectures have no average; name those of one")
    choose, measure = (labelled(task, data) for task in splits(data, 1 << 30, settings.seed))
    openings = atlas.openings(chosen, _like(settings))
    group, notes = _group(atlas, chosen, settings)
    told = partial(settings.progress, "averaging")
    found = soup(openings, choose, group, seed=settings.seed, progress=told)
    best = openings[found.kept[0]]
    assert best.template is not None
    with chosen_as(best.chosen):
        first = Opened(best.template, *stored.load(best.template, best.path), settings)
    first.save(found.net, out, f"greedy average of {len(found.kept)} members: {', '.join(found.kept)[:500]}")
    loss, best_loss = (float(measure(net).detach()) for net in (found.net, first.net))
    return Averaged(out, found, loss, best_loss, notes)


def _like(settings: Settings) -> Net | None:
    return Made.of(settings.arch, None).template


def _group(atlas: Atlas, members: Sequence[Member], settings: Settings) -> tuple[Symmetry | None, list[str]]:
    """The group of the architecture, and a note where there is none."""
    _, group, why = known_group(atlas, members, settings)
    return group, [f"networks are taken as they are stored: {why}"] if group is None else []


def _write(atlas: Atlas, members: Sequence[Member], answer: Answer, task: Task, data: str, what: str) -> None:
    """What was measured, as rows of the atlas."""
    key = digest(task)
    atlas.tasks.put([TaskRow(key, data, data, len(task))])
    keys = {member.name: member.key for member in members}
    rows = []
    for standing in answer.found.ranking:
        value, error = answer.value(standing)
        rows.append(Measure(keys[standing.name], what, value, key, error=error, examples=standing.examples))
    atlas.measures.put(rows)
