"""A recipe of mergekit's YAML as a plan: for every tensor its sources, its recipe and its depth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from weightspace.checkpoint.reader import read
from weightspace.checkpoint.refusal import CheckpointError, some
from weightspace.merging.folders.card import About
from weightspace.merging.folders.configuration import Changes, inside, plain
from weightspace.merging.folders.folder import Carried, carried, home_of
from weightspace.merging.folders.layers import Stack, one_stack, position, stacks
from weightspace.merging.folders.mergekit_file import MergeFile, Slice, Source
from weightspace.merging.folders.mergekit_settings import setting_at
from weightspace.merging.folders.tokenizer_files import CHAT, SETTINGS
from weightspace.merging.folders.tokens import tokens_of
from weightspace.merging.folders.vocabulary import has_head, in_one_vocabulary, tied_to
from weightspace.merging.methods import METHODS
from weightspace.merging.plan import Plan, Row
from weightspace.merging.recipe import Recipe
from weightspace.net.public import public
from weightspace.net.weights import shapes_of

__all__ = ["FilePlan", "plan_of"]

_HASHED = 4_000_000_000  # bytes of models up to which all their numbers are hashed


@dataclass(frozen=True)
class FilePlan:
    """What a recipe file does: the plan of its tensors, what changes in the configuration, and notes."""

    file: MergeFile
    plan: Plan
    changes: Changes
    notes: tuple[str, ...]

    @public
    def carried(self, about: About | None = None, remote_code: bool = False) -> Carried:
        """What the merged folder needs besides the weights: see `folder.carried`.

        Without `about`, the card has the file's text, and hashes of all numbers where the models have less than 4 GB.
        """
        file = self.file
        order = _order(file)
        base = None if file.base is None else file.models[file.base]
        parents = [file.models[k] for k in order if k != file.base] or [file.models[k] for k in order]
        if about is None:
            large = sum(read(path).nbytes for path in file.models) > _HASHED
            about = About(recipe=file.path.read_text(encoding="utf-8"), quick=large)
        return carried(
            parents, base, changes=self.changes, tokenizer=file.tokenizer, chat_template=_template(file, order),
            about=about, remote_code=remote_code,
        )  # fmt: skip


@public
def plan_of(merge: MergeFile, sources: Sequence[Mapping[str, Tensor]] | None = None, seed: int = 0) -> FilePlan:
    """The plan of a recipe file; no tensor is read.

    `sources`: the tensors of `merge.models` in their order, by default those of the folders. The depth of a layer is
    i / (n - 1) for layer i of the n of its slice, of the whole network where there are no slices; it is 0 outside of
    the layers. With slices, embeddings are those of the first slice's models, norms after the layers and heads those of
    the last's. Tensors of whole numbers and those that a model lacks are copied from the first that has them. `seed`:
    of random masks. Raises `CheckpointError` where the models do not fit the recipe.

    >>> import tempfile
    >>> from pathlib import Path
    >>> import torch
    >>> from weightspace.merging.folders.mergekit_file import recipe_of
    >>> from weightspace.merging.folders.mergekit_plan import plan_of
    >>> models = ["{model: a, parameters: {weight: 1}}", "{model: b, parameters: {weight: 3}}"]
    >>> text = f"merge_method: linear\\nmodels: [{', '.join(models)}]"
    >>> with tempfile.TemporaryDirectory() as place:
    ...     for name in "ab":
    ...         (Path(place) / name).mkdir()
    ...     _ = (Path(place) / "m.yml").write_text(text)
    ...     found = plan_of(recipe_of(Path(place) / "m.yml"), [{"w": torch.ones(2)}, {"w": torch.zeros(2)}])
    >>> [(row.name, row.action, row.recipe.weights) for row in found.plan.rows]
    [('w', 'merged', (1.0, 3.0))]
    """
    given = [*sources] if sources is not None else [read(path) for path in merge.models]
    views, rows, notes = _numbered(merge, given)
    made = _Rows(merge, views, seed)
    found = [*made.rows()]
    if not any(row.action == "merged" for row in found) and merge.method != "passthrough":
        raise CheckpointError(f"{merge.path}: the models have no tensor in common; give models of one architecture")
    used = METHODS[merge.method].base != "unused" if merge.method in METHODS else False
    base = merge.base if used else None
    labels = [path.name for path in [*merge.models, *([] if base is None else [merge.models[base]])]]
    plan = Plan(views, None if base is None else views[base], found, labels)
    names = [row.name for row in found]
    changes = Changes(rows, made.layers or None, merge.dtype, not has_head(names))
    return FilePlan(merge, plan, changes, tuple([*notes, *made.notes]))


def _order(file: MergeFile) -> list[int]:
    """The models in order, the base last: the first gives the configuration and the first ids."""
    return sorted(range(len(file.models)), key=lambda k: k == file.base)


def _numbered(
    file: MergeFile, sources: Sequence[Mapping[str, Tensor]]
) -> tuple[list[Mapping[str, Tensor]], int | None, list[str]]:
    """The models in one vocabulary, where the file asks for one, and its rows."""
    if file.tokenizer is None:
        return [*sources], None, []
    order = _order(file)
    homes = [home_of(file.models[k]) or file.models[k] for k in order]
    own: dict[str, tuple[int, int] | None] = {}
    for token, place in (file.own or {}).items():
        if place is None:
            own[token] = None
            continue
        model, what = order.index(place[0]), place[1]
        row = what if isinstance(what, int) else tokens_of(homes[model]).get(what)
        if row is None:
            raise CheckpointError(
                f"{file.path}: {homes[model]} has no token {what!r:.60}, whose row {token!r:.60} takes"
            )
        own[token] = (model, row)
    base = None if file.base is None else order.index(file.base)
    views, rows, notes = in_one_vocabulary(
        [sources[k] for k in order],
        homes,
        file.tokenizer,
        base=base,
        multiple=file.multiple,
        own=own,
        forced=file.forced,
    )
    return [views[order.index(k)] for k in range(len(order))], rows, notes


def _template(file: MergeFile, order: Sequence[int]) -> str | None:
    """The chat template: as given, or the one that most models have (of several, the first)."""
    if file.chat_template != "auto":
        return file.chat_template
    found = []
    for home in filter(None, (home_of(file.models[k]) for k in order)):
        path = inside(home, CHAT)
        text = path.read_text(encoding="utf-8") if path else plain(inside(home, SETTINGS)).get("chat_template")
        found += [text] if isinstance(text, str) else []
    return Counter(found).most_common(1)[0][0] if found else None


@dataclass
class _Rows:
    """The rows of a file's tensors, the layers taken from the first source of each slice, and notes."""

    file: MergeFile
    sources: Sequence[Mapping[str, Tensor]]
    seed: int
    layers: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.shapes = [shapes_of(source) for source in self.sources]
        self.recipes: dict[tuple[object, ...], Recipe] = {}
        entry = METHODS.get(self.file.method)
        self.based = entry is not None and entry.base != "unused"
        self.options = {} if entry is None else entry.options

    def rows(self) -> Iterator[Row]:
        """All rows in order."""
        if not self.file.stacked:
            (part,) = self.file.slices
            names = dict.fromkeys(name for source in part.sources for name in self.shapes[source.model])
            layered = stacks(names)
            for name in names:
                depth = next((d for d in (stack.depth(name) for stack in layered) if d is not None), 0.0)
                yield self.row(part, name, [name] * len(part.sources), depth)
            return
        found = {s.model: self.stack(part, s) for part in self.file.slices for s in part.sources}
        yield from self.outside(self.file.slices[0], found, "before")
        for part in self.file.slices:
            yield from self.layered(part, found)
        yield from self.outside(self.file.slices[-1], found, "after")

    def stack(self, part: Slice, source: Source) -> Stack:
        return one_stack(self.shapes[source.model], str(self.file.models[source.model]))

    def outside(self, part: Slice, found: Mapping[int, Stack], where: str) -> Iterator[Row]:
        """The tensors before or after the layers."""
        for name in dict.fromkeys(n for s in part.sources for n in self.shapes[s.model] if not found[s.model].place(n)):
            if position(name) == where:
                yield self.row(part, name, [name] * len(part.sources), 0.0)

    def layered(self, part: Slice, found: Mapping[int, Stack]) -> Iterator[Row]:
        ranges = [source.layers or (0, 0) for source in part.sources]
        for source, (_, last) in zip(part.sources, ranges, strict=True):
            if last > (count := found[source.model].count):
                seen = f"layers up to {last} of {self.file.models[source.model]}, which has {count}"
                raise CheckpointError(f"{self.file.path}, line {part.line}: {seen}")
        out = found[self.file.slices[0].sources[0].model]
        total = ranges[0][1] - ranges[0][0]
        for i in range(total):
            rests = dict[str, None]()
            for source, (first, _) in zip(part.sources, ranges, strict=True):
                stack = found[source.model]
                places = (stack.place(name) for name in self.shapes[source.model])
                rests |= dict.fromkeys(place[1] for place in places if place and place[0] == first + i)
            for rest in rests:
                names = [found[s.model].name(r[0] + i, rest) for s, r in zip(part.sources, ranges, strict=True)]
                yield self.row(part, out.name(len(self.layers), rest), names, i / (total - 1) if total > 1 else 1.0)
            self.layers.append(ranges[0][0] + i)

    def row(self, part: Slice, name: str, names: Sequence[str], depth: float) -> Row:
        """The row of one tensor: merged, or copied where it cannot be."""
        pairs = [(source, self.there(source, there)) for source, there in zip(part.sources, names, strict=True)]
        tied = [self.called(source) for (source, there), own in zip(pairs, names, strict=True) if there != own]
        have = [(source, there) for source, there in pairs if there in self.shapes[source.model]]
        shape = self.shapes[have[0][0].model][have[0][1]]
        if unlike := [p for p in have if self.shapes[p[0].model][p[1]] != shape]:
            other, there = unlike[0]
            seen = (
                f"{[*shape]} in {self.called(have[0][0])}, {[*self.shapes[other.model][there]]} in {self.called(other)}"
            )
            do = "bring vocabularies together by tokenizer_source, or give models of one size"
            raise CheckpointError(f"{self.file.path}: {name!r} is {seen}; {do}")
        base = next((there for source, there in have if self.based and source.model == self.file.base), None)
        parents = [p for p in have if base is None or p[0].model != self.file.base]
        first = parents[0] if parents else have[0]
        dtype = _dtype(self.sources[first[0].model], first[1])
        wanted = self.file.dtype if self.file.dtype is not None and dtype.is_floating_point else dtype
        lacking = [self.called(source) for source, there in pairs if there not in self.shapes[source.model]]
        row = Row(name, "copied", ((first[0].model, first[1]),), shape, wanted, Recipe(), depth=depth)
        if lacking or not dtype.is_floating_point:
            return replace(row, why=f"not in {some(lacking)}" if lacking else "whole numbers")
        recipe = self.recipe(part, name, parents, depth)
        if recipe is None:
            return row
        if self.file.method == "slerp":
            parents = sorted(parents, key=lambda p: p[0].model != self.file.base)
        used = tuple((source.model, there) for source, there in parents)
        recipe.check(len(used), base is not None)
        why = f"tied in {some(tied)}" if tied else ""
        return replace(row, action="merged", sources=used, base=base, recipe=recipe, why=why)

    def there(self, source: Source, name: str) -> str:
        """The name of a tensor in a model: of a head that it lacks, of the embedding that it is tied to."""
        shapes = self.shapes[source.model]
        return name if name in shapes else tied_to(name, shapes) or name

    def called(self, source: Source) -> str:
        return self.file.models[source.model].name

    # -------------------------------------------------------------- recipes

    def recipe(self, part: Slice, name: str, parents: Sequence[tuple[Source, str]], depth: float) -> Recipe | None:
        """The recipe of one tensor; None where it is copied."""
        known, method = self.file.known, self.file.method
        own = {key: [self.value(part, key, s, there, depth) for s, there in parents] for key in known.by_model}
        options = {key: self.value(part, key, None, name, depth) for key in known.by_merge}
        for key in known.unlike:
            if options[key] != known.by_merge[key]:
                raise CheckpointError(f"{self.file.path}: {key} {options[key]:g} is not done here; leave it out")
        if method == "passthrough":
            if len(parents) != 1:
                raise CheckpointError(
                    f"{self.file.path}: passthrough takes one model for each tensor, not {len(parents)}"
                )
            (scale,) = own["scale"]
            return None if scale == 1 else self.made("linear", (scale,), {"normalize": 0.0})
        weights = own.pop("weight", None)
        if method == "slerp":
            if self.file.base is None or len(parents) != 2 or self.file.base not in [s.model for s, _ in parents]:
                raise CheckpointError(f"{self.file.path}: slerp goes from base_model to one other model; give both")
            t = options.pop("t")
            weights = [1 - t, t]
        differ = {key: tuple(own.pop(key)) for key, values in [*own.items()] if len({*values}) > 1}
        options |= {key: values[0] for key, values in own.items() if values}
        kept = {known.ours.get(key, key): value for key, value in options.items() if key not in known.unlike}
        defaults = {known.ours.get(k, k): v for k, v in {**known.by_model, **known.by_merge}.items()}
        for key in [key for key in kept if key not in self.options]:
            if kept.pop(key) != defaults[key]:
                raise CheckpointError(f"{self.file.path}: {method} has no {key} here; leave it out")
        return self.made(method, None if weights is None else tuple(weights), kept, differ)

    def made(
        self,
        method: str,
        weights: tuple[float, ...] | None,
        options: Mapping[str, float],
        own: Mapping[str, tuple[float, ...]] | None = None,
    ) -> Recipe:
        """The recipe of these numbers, the same one for all tensors that have them."""
        own = own or {}
        key = (method, weights, tuple(sorted(options.items())), tuple(sorted(own.items())))
        if key not in self.recipes:
            self.recipes[key] = Recipe(method, weights, dict(options), self.seed, self.file.dtype, dict(own))
        return self.recipes[key]

    def value(self, part: Slice, key: str, source: Source | None, name: str, depth: float) -> float:
        """A parameter for a tensor: of the model, else of the slice, else of the file, else the default."""
        for given in (source.parameters if source is not None else {}, part.parameters, self.file.parameters):
            if key in given and (found := setting_at(given[key], name, depth)) is not None:
                return found
        known = self.file.known
        default = known.by_model.get(key, known.by_merge.get(key))
        if default is None:
            of = f" of {self.called(source)}" if source is not None else ""
            raise CheckpointError(f"{self.file.path}: no {key} is given for {name!r}{of}; add it to parameters")
        return default


def _dtype(source: Mapping[str, Tensor], name: str) -> torch.dtype:
    known = getattr(source, "dtypes", None)
    return known[name] if known is not None else source[name].dtype
