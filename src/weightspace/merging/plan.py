"""The plan of a merge: for every tensor of the merged network, what it is made of, or why it is left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from weightspace.checkpoint.refusal import some
from weightspace.merging.methods import method
from weightspace.merging.names import HEADS, TIED, in_terms_of, is_factor, is_head, is_statistic, packed, partner
from weightspace.merging.part import BLOCK, Part, reading
from weightspace.merging.recipe import Recipe
from weightspace.merging.schedule import depths, value_at
from weightspace.net.errors import WeightspaceError
from weightspace.net.public import public
from weightspace.net.weights import forms_of

__all__ = ["Group", "Plan", "Row", "Rules", "Table", "planned"]


@dataclass(frozen=True)
class Row:
    """One tensor of the merged network.

    `sources`: the index of each parent that has it and the name there. `base`: its name in the base, where there is
    one. `action`: "merged" by `recipe`, "copied" from the first source, or "left out", with the reason in `why`.
    """

    name: str
    action: Literal["merged", "copied", "left out"]
    sources: tuple[tuple[int, str], ...]
    shape: torch.Size
    dtype: torch.dtype
    recipe: Recipe
    base: str | None = None
    depth: float = 0.0
    why: str = ""


@dataclass(frozen=True)
class Group:
    """Tensors that are treated alike: what is done, by which method or for which reason, and which they are."""

    action: str
    why: str
    tensors: tuple[str, ...]
    numbers: int

    def __str__(self) -> str:
        count = f"{len(self.tensors):,} tensor{'s' * (len(self.tensors) != 1)}, {self.numbers:,} numbers"
        which = "" if self.action == "merged" else f": {some(self.tensors)}"
        return f"{self.action:8}  {count}{', ' if self.why else ''}{self.why}{which}"


@public
@dataclass(frozen=True)
class Table:
    """What a merge does, in groups of tensors, and notes about names. As text, a line for each."""

    groups: Sequence[Group]
    notes: Sequence[str] = ()

    def data(self) -> list[dict[str, Any]]:
        """As plain data: a mapping for each group."""
        return [
            {"action": group.action, "why": group.why, "numbers": group.numbers, "tensors": [*group.tensors]}
            for group in self.groups
        ]

    def __str__(self) -> str:
        return "\n".join([*map(str, self.groups), *(f"note: {note}" for note in self.notes)])


@public
@dataclass(frozen=True)
class Plan:
    """What a merge does, before anything is computed: the parents, the base, and a row for every tensor.

    `labels`: what the parents, and then the base, are called. `notes`: what was decided about their names. `beside`:
    for each parent, tensors that say how much its weights count, where the method needs them.
    """

    parents: Sequence[Mapping[str, Tensor]]
    base: Mapping[str, Tensor] | None
    rows: Sequence[Row]
    labels: Sequence[str] = ()
    notes: Sequence[str] = ()
    beside: Sequence[Mapping[str, Tensor]] = ()

    def part(self, row: Row) -> Part:
        """The tensors that a row is made of, to be read in pieces."""
        wide = torch.float64 if row.dtype == torch.float64 else torch.float32
        base = None if row.base is None or self.base is None else (self.base, row.base)
        return Part(
            row.name,
            row.shape,
            [(self.parents[k], name) for k, name in row.sources],
            base,
            wide,
            beside=[(self.beside[k], name) for k, name in row.sources] if self.beside else [],
            labels=[*(self.label(k) for k, _ in row.sources), self.label(len(self.parents))],
        )

    def label(self, k: int) -> str:
        """What parent k is called; the base after the last."""
        if k < len(self.labels):
            return self.labels[k]
        return "the base" if k == len(self.parents) else f"parent {k + 1}"

    def table(self) -> Table:
        """The rows in groups: merged by which method, copied or left out for which reason."""
        found: dict[tuple[str, str], list[Row]] = {}
        for row in self.rows:
            how = f"by {row.recipe.method}" if row.action == "merged" else ""
            why = "; ".join(part for part in (how, row.why) if part)
            found.setdefault((row.action, why), []).append(row)
        order = ("merged", "copied", "left out")
        groups = [
            Group(action, why, tuple(row.name for row in rows), sum(row.shape.numel() for row in rows))
            for (action, why), rows in sorted(found.items(), key=lambda item: order.index(item[0][0]))
        ]
        return Table(groups, self.notes)


@dataclass(frozen=True)
class Rules:
    """What is done with tensors that not all parents have alike.

    `extra`: of tensors that some parents lack, or the base where the method needs it: "copy" that of the first parent
    that has it, "merge" those that there are (without a base, by their weighted mean), "leave" it out, or "refuse".
    `heads`: of tensors of other shapes in a part named in `head_names`: "keep" all under the names of their parents,
    the "first" under its own name, "leave" them out, or "refuse". `tied`: pairs of names, or of their ends, that are
    one tensor in some networks: where one is missing, the other is taken in its place.
    """

    extra: Literal["copy", "merge", "leave", "refuse"] = "copy"
    heads: Literal["keep", "first", "leave", "refuse"] = "keep"
    head_names: Sequence[str] = HEADS
    tied: Sequence[tuple[str, str]] = TIED


@public
def planned(
    parents: Sequence[Mapping[str, Tensor]],
    base: Mapping[str, Tensor] | None = None,
    recipe: Recipe | None = None,
    rules: Rules | None = None,
    labels: Sequence[str] = (),
    beside: Sequence[Mapping[str, Tensor]] = (),
) -> Plan:
    """What a merge will do with every tensor of the parents; only whole numbers are read for it.

    Floating-point tensors of one name and shape are merged, in the dtype of the first parent unless the recipe has one.
    Names may differ by a prefix. Whole numbers are copied from the first parent. Running means and variances of inputs
    are averaged with the weights of the parents, whatever the method does to weights: a variance stays positive. What
    only some parents have, heads of other shapes and tied tensors go by `rules`. The result has the names of the first
    parent. `labels`: what parents and base are called, by default their paths; `beside`: see `Plan`. Raises
    `WeightspaceError` for quantised numbers, for tensors of other shapes that are no heads, and where the recipe does
    not fit.

    >>> import torch
    >>> from weightspace.merging import planned
    >>> a = {"w": torch.ones(2, 3), "classifier": torch.ones(2), "steps": torch.tensor(7)}
    >>> b = {"w": torch.ones(2, 3), "classifier": torch.ones(5), "steps": torch.tensor(7)}
    >>> print(planned([a, b]).table())
    merged    1 tensor, 6 numbers, by linear
    copied    2 tensors, 7 numbers, a head of another shape in each: 'parent 1.classifier', 'parent 2.classifier'
    copied    1 tensor, 1 numbers, whole numbers: 'steps'
    """
    recipe = recipe if recipe is not None else Recipe()
    recipe.check(len(parents), base is not None)
    if recipe.dtype is not None and not recipe.dtype.is_floating_point:
        raise WeightspaceError(f"merged tensors cannot be {recipe.dtype}; give a floating-point dtype")
    called = _called(parents, base, labels)
    found, notes = _forms([*parents, *([] if base is None else [base])], called)
    matching = _Matching(parents, found[: len(parents)], called, recipe, rules or Rules())
    origin = {} if base is None else found[-1]
    names = [*dict.fromkeys(name for forms in matching.forms for name in forms)]
    _related(found, called, "" if base is None else method(recipe.method).base, matching.rules.extra)
    deep = depths(names)
    rows = [
        _averaged(replace(row, depth=deep[name]))
        for name in names
        for row in matching.rows(name, origin, None if base is None else called[-1])
    ]
    used = {row.base for row in rows}
    for name, have in origin.items():
        if name not in deep and have.name not in used:
            rows.append(Row(name, "left out", (), have.shape, have.dtype, recipe, have.name, why="only in the base"))
    return Plan(parents, base, rows, called, notes, beside)


def _averaged(row: Row) -> Row:
    """The row of a running statistic, averaged where the method would add differences or weigh by data; else as is."""
    found = method(row.recipe.method)
    if row.action != "merged" or not is_statistic(row.name) or (found.base == "unused" and not found.beside):
        return row
    weights = [value_at(weight, row.name, row.depth) for weight in row.recipe.weights or ()]
    usable = weights and min(weights) >= 0 and sum(weights) > 0
    mean = Recipe("linear", weights if usable else None, {}, row.recipe.seed, row.recipe.dtype)
    return replace(row, recipe=mean, base=None, why="; ".join(["running statistics", *filter(None, [row.why])]))


class _Have(NamedTuple):
    """A tensor of a parent: its name there, shape and dtype."""

    name: str
    shape: torch.Size
    dtype: torch.dtype


def _called(
    parents: Sequence[Mapping[str, Tensor]], base: Mapping[str, Tensor] | None, labels: Sequence[str]
) -> list[str]:
    """What parents and base are called: as given, else by their paths, else by their numbers; no two alike."""
    found: list[str] = []
    for k, parent in enumerate([*parents, *([] if base is None else [base])]):
        usual = "the base" if k == len(parents) else f"parent {k + 1}"
        label = labels[k] if k < len(labels) else str(getattr(parent, "path", usual))
        found.append(label if label not in found else f"{label} ({k + 1})")
    return found


def _forms(sources: Sequence[Mapping[str, Tensor]], labels: Sequence[str]) -> tuple[list[dict[str, _Have]], list[str]]:
    """The tensors of each source by their names in terms of the first, and notes of prefixes that were changed."""
    found, notes = list[dict[str, _Have]](), list[str]()
    for source, label in zip(sources, labels, strict=True):
        own = {name: _Have(name, form[0], form[1]) for name, form in forms_of(source).items()}
        for have in own.values():
            if packed(have.name, have.dtype):
                raise WeightspaceError(
                    f"{have.name!r} of {label} is quantised ({str(have.dtype).removeprefix('torch.')}); merge networks "
                    "saved in bfloat16, float16 or float32"
                )
        if found:
            first = {name: have.shape for name, have in found[0].items()}
            names, said = in_terms_of(first, {name: have.shape for name, have in own.items()}, label)
            own = {names[name]: have for name, have in own.items()}
            if said:
                how = "removed from the names" if said[0] == "-" else "put before the names"
                notes.append(f"the prefix {said[1:]!r} was {how} of {label}")
        found.append(own)
    return found, notes


def _related(found: Sequence[Mapping[str, _Have]], labels: Sequence[str], base: str, extra: str) -> None:
    """Raise `WeightspaceError` for parents that share no tensor, factors of adapters, and a base that shares none.

    `base`: "" where there is none, else whether the method needs or uses it.
    """
    if base in ("needed", "used"):
        origin, parents = found[-1], found[:-1]
        shared = [
            origin[name].shape == have.shape for forms in parents for name, have in forms.items() if name in origin
        ]
        if not any(shared):
            raise WeightspaceError(
                f"{labels[-1]} shares no tensor with {_few(labels[:-1])}; give the base that they were trained from"
            )
    parents = found[: len(found) - bool(base)]
    for k, forms in enumerate(parents if len(parents) > 1 and extra != "merge" else ()):
        if factors := [name for name in forms if is_factor(name)]:
            raise WeightspaceError(
                f"{labels[k]} holds factors of low rank ({factors[0]!r}), whose mean is not that of their products; "
                "merge the folders of adapters (merge_adapters), with adapter_config.json"
            )
        others = {name for j, more in enumerate(parents) if j != k for name in more}
        if others.isdisjoint(forms):
            raise WeightspaceError(
                f"no tensor of {labels[k]} has the name of one of the others; give networks of one kind"
            )


@dataclass(frozen=True)
class _Matching:
    """Tensors of one name in several parents, and what is to be done with them."""

    parents: Sequence[Mapping[str, Tensor]]
    forms: Sequence[Mapping[str, _Have]]
    labels: Sequence[str]
    recipe: Recipe
    rules: Rules

    def rows(self, name: str, origin: Mapping[str, _Have], base: str | None) -> list[Row]:
        """The rows for one name: several for heads that are kept side by side."""
        have, tied = self._have(name)
        k, first = next(iter(have.items()))
        same = {h.dtype.is_floating_point for h in have.values()}
        if len(same) > 1:
            raise WeightspaceError(f"{name!r} is of whole numbers in some networks and not in others; convert them")
        if same == {True} and any(h.shape != first.shape for h in have.values()):
            return self._heads(name, have)
        lacking = [self.labels[j] for j in range(len(self.forms)) if j not in have]
        if lacking and self.rules.extra != "merge":
            return [self._one(name, have, f"not in {_few(lacking)}")]
        if not first.dtype.is_floating_point:
            return [replace(self._row(name, "copied", {k: first}), why=self._whole_numbers(name, have))]
        if len(have) < method(self.recipe.method).least:
            return [self._one(name, have, f"not in {_few(lacking)}", copied=True)]
        row = self._row(name, "merged", have)
        why = [f"tied in {_few(tied)}"] if tied else []
        why += [f"without {_few(lacking)}"] if lacking else []
        row = replace(row, why="; ".join(why))
        if base is None or method(self.recipe.method).base == "unused":
            return [row]
        there = origin.get(name) or origin.get(partner(name, origin, self.rules.tied) or "")
        if there is not None and there.shape == first.shape and there.dtype.is_floating_point:
            return [replace(row, base=there.name)]
        why = ["not in the base" if there is None else "of another shape in the base", *why]
        if method(self.recipe.method).base == "used":
            return [replace(row, why="; ".join(why))]
        if self.rules.extra != "merge":
            return [self._one(name, have, why[0])]
        mean = Recipe("linear", row.recipe.weights, {}, row.recipe.seed, row.recipe.dtype)
        return [replace(row, recipe=mean, why="; ".join(why))]

    def _have(self, name: str) -> tuple[dict[int, _Have], list[str]]:
        """Each parent that has the tensor -> it, and the labels of those that have only what it is tied to."""
        found, tied = dict[int, _Have](), list[str]()
        shapes = {forms[name].shape for forms in self.forms if name in forms}
        for k, forms in enumerate(self.forms):
            other = None if name in forms else partner(name, forms, self.rules.tied)
            if name in forms:
                found[k] = forms[name]
            elif other is not None and {forms[other].shape} == shapes:
                found[k] = forms[other]
                tied.append(self.labels[k])
        return found, tied

    def _row(self, name: str, action: Literal["merged", "copied", "left out"], have: Mapping[int, _Have]) -> Row:
        first = next(iter(have.values()))
        dtype = self.recipe.dtype if first.dtype.is_floating_point else None
        recipe = self.recipe
        if recipe.weights is not None and len(have) < len(self.forms):
            recipe = replace(recipe, weights=[recipe.weights[k] for k in have])
        if recipe.own and len(have) < len(self.forms):
            recipe = replace(recipe, own={name: [each[k] for k in have] for name, each in recipe.own.items()})
        sources = tuple((k, h.name) for k, h in have.items())
        return Row(name, action, sources, first.shape, dtype or first.dtype, recipe)

    def _one(self, name: str, have: Mapping[int, _Have], why: str, copied: bool = False) -> Row:
        """A tensor that is not merged: copied from the first parent that has it, left out or refused."""
        k, first = next(iter(have.items()))
        if self.rules.extra == "refuse" and not copied:
            raise WeightspaceError(f"{name!r} of {self.labels[k]} is {why}; copy, merge or leave it by extra=")
        action: Literal["copied", "left out"] = "left out" if self.rules.extra == "leave" and not copied else "copied"
        return replace(self._row(name, action, {k: first}), why=why)

    def _heads(self, name: str, have: Mapping[int, _Have]) -> list[Row]:
        rule = self.rules.heads
        if rule == "refuse" or not is_head(name, self.rules.head_names):
            seen = ", ".join(f"{[*h.shape]} in {self.labels[k]}" for k, h in have.items())
            raise WeightspaceError(
                f"{name!r} is {seen}; bring vocabularies together first (--tokenizer), or name it as a head "
                "(head_names)"
            )
        (k, first), *others = have.items()
        if rule == "keep":
            short = _short(self.labels)
            return [
                replace(self._row(f"{short[j]}.{name}", "copied", {j: h}), why="a head of another shape in each")
                for j, h in have.items()
            ]
        left = [(k, first), *others] if rule == "leave" else others
        rows = [] if rule == "leave" else [replace(self._row(name, "copied", {k: first}), why="the head of the first")]
        return rows + [
            replace(self._row(f"{name} of {self.labels[j]}", "left out", {j: h}), why="a head of another shape")
            for j, h in left
        ]

    def _whole_numbers(self, name: str, have: Mapping[int, _Have]) -> str:
        (k, first), *others = have.items()
        kind = "complex numbers" if first.dtype.is_complex else "whole numbers"
        differ = [
            self.labels[j]
            for j, h in others
            if h.shape != first.shape or not _equal((self.parents[k], first.name), (self.parents[j], h.name), h.shape)
        ]
        return f"{kind}; others in {_few(differ)}" if differ else kind


def _equal(one: tuple[Mapping[str, Tensor], str], other: tuple[Mapping[str, Tensor], str], shape: torch.Size) -> bool:
    a, b, total = reading(one), reading(other), shape.numel()
    return all(torch.equal(a(i, min(i + BLOCK, total)), b(i, min(i + BLOCK, total))) for i in range(0, total, BLOCK))


def _short(labels: Sequence[str]) -> list[str]:
    """What parents are called in names of tensors: the last part of a path without its ending."""
    found: list[str] = []
    for k, label in enumerate(labels):
        short = Path(label).name.removesuffix(".safetensors").replace(".", "_")
        found.append(short if short not in found else f"{short}_{k + 1}")
    return found


def _few(labels: Sequence[str]) -> str:
    return ", ".join(labels[:3]) + (f" and {len(labels) - 3} more" if len(labels) > 3 else "")
