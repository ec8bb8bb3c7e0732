"""`weightspace merge --method`: checkpoints or adapters merged by a recipe, from files to files or to a folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from weightspace.checkpoint import adapter, architecture
from weightspace.checkpoint.architecture import ArchitectureError
from weightspace.checkpoint.reader import read
from weightspace.commands.data import splits
from weightspace.commands.merge_on_data import Curves, curves_of, looking_at, on_data, score_of, scores_of, tuned
from weightspace.commands.merge_parents import Asked, Parents, aligned, in_common_vocabulary, tensors_of
from weightspace.commands.scores import Score, scored
from weightspace.commands.settings import Settings, must_exist
from weightspace.commands.workspace import file_names
from weightspace.merging.adapters.combined import merge_adapters
from weightspace.merging.folders.card import About
from weightspace.merging.folders.configuration import Changes
from weightspace.merging.folders.folder import Carried, carried
from weightspace.merging.folders.mergekit_file import recipe_of
from weightspace.merging.folders.mergekit_plan import plan_of
from weightspace.merging.folders.vocabulary import has_head
from weightspace.merging.methods import method
from weightspace.merging.plan import Plan, planned
from weightspace.merging.recipe import Recipe
from weightspace.merging.schedule import Schedule
from weightspace.merging.stream import write
from weightspace.net.net import Net

__all__ = ["MergedFiles", "merge_by_file", "merge_by_recipe"]

_HASHED = 4_000_000_000  # bytes of parents up to which the card has hashes of all of their numbers


@dataclass(frozen=True)
class MergedFiles:
    """A merge that was carried out: by which method, what became of the tensors, and scores where there are data.

    `groups`: what was done with the tensors, and `lines` the same as text. `aligned`: the parents that were aligned
    before. `tuned`: what was found on data. `curves`: losses at other coefficients.
    """

    names: list[str]
    base: str | None
    method: str
    out: str
    groups: list[dict[str, Any]]
    lines: list[str]
    notes: list[str]
    aligned: list[str] = field(default_factory=list)
    tuned: str = ""
    scores: list[Score] = field(default_factory=list)
    examples: int = 0
    curves: Curves | None = None

    def data(self) -> dict[str, Any]:
        """As plain data."""
        return {key: value for key, value in asdict(self).items() if key != "lines"}


def merge_by_recipe(paths: Sequence[Path], out: Path, recipe: Recipe, asked: Asked, settings: Settings) -> MergedFiles:
    """Merge checkpoints by a recipe and write a file, or a folder with everything that a Hugging Face folder needs.

    Adapters (LoRA) without a base give an adapter; with one, the networks that they make of it are merged. Raises
    `WeightspaceError`, before anything is written.
    """
    everyone = [*paths, *([] if asked.base is None else [asked.base])]
    must_exist(*everyone)
    names, low = file_names(*everyone), [path.suffix != ".pt2" and adapter.describes(path) for path in everyone]
    if asked.base is None and all(low):
        return _of_adapters(paths, names, out, recipe, asked, settings)
    if asked.rank is not None:
        raise ArchitectureError("a rank is for merging adapters into an adapter; leave --rank or --base out")
    if asked.base is None and any(low):
        raise ArchitectureError(f"{names[low.index(True)]} is an adapter and others are not; give its base as --base")
    recipe.check(len(paths), asked.base is not None)
    parents = Parents(everyone, names, tensors_of(everyone, low, asked.base), low, asked.base is not None)
    parents, moved = aligned(parents, asked, settings)
    looking = looking_at(parents, asked, settings) if asked.data is not None else None
    recipe, said = tuned(parents, recipe, asked, settings, looking)
    sources, changes, notes = in_common_vocabulary(parents, recipe, asked)
    count = parents.count
    if method(recipe.method).beside:
        plan = on_data(parents, recipe, settings, looking)
    else:
        plan = planned(sources[:count], sources[count] if parents.base else None, recipe, asked.rules, names)
    changes = replace(changes, tied=not has_head(row.name for row in plan.rows if row.action != "left out"))
    beside = _beside(parents, out, recipe, asked, changes)
    # before anything is written: a parent may be where the result goes
    scores = [] if looking is None else scores_of(parents, settings, looking)
    curves = None if looking is None or not asked.curves else curves_of(parents, recipe, settings, looking)
    whole = _written(plan, out, beside, asked, settings)
    scores += [] if looking is None else score_of(whole, settings, looking)
    table = plan.table()
    return MergedFiles(
        names[:count], names[count] if parents.base else None, recipe.method, str(out), table.data(),
        [str(group) for group in table.groups], [*plan.notes, *notes, *beside.notes], moved, said, scores,
        0 if looking is None else len(looking.measure_on), curves,
    )  # fmt: skip


def merge_by_file(path: Path, out: Path, asked: Asked, settings: Settings) -> MergedFiles:
    """Merge as a recipe in mergekit's YAML says; with data, the result is measured too. Raises `WeightspaceError`."""
    if out.suffix == ".safetensors":
        raise ArchitectureError(f"{out}: a recipe of mergekit makes a folder; choose a name without an ending")
    found = plan_of(recipe_of(path), seed=settings.seed)
    beside = found.carried(remote_code=asked.code)
    whole = _written(found.plan, out, beside, asked, settings)
    scores, examples, models = [], 0, [*found.file.models]
    if asked.data is not None:
        template = Net.of(architecture.find(settings.arch, [out], settings.trust_code))
        _, task = splits(asked.data, asked.limit, settings.seed)
        scores, examples = scored(task, settings.load(template, whole).net, name="merged"), len(task)
    names, base, table = file_names(*models), found.file.base, found.plan.table()
    merged = [name for k, name in enumerate(names) if k != base or found.plan.base is None]
    return MergedFiles(
        merged, None if base is None else names[base], found.file.method, str(out), table.data(),
        [str(group) for group in table.groups], [*table.notes, *found.notes, *beside.notes],
        scores=scores, examples=examples,
    )  # fmt: skip


def _of_adapters(
    paths: Sequence[Path], names: list[str], out: Path, recipe: Recipe, asked: Asked, settings: Settings
) -> MergedFiles:
    """Adapters merged into an adapter."""
    if out.suffix == ".safetensors":
        raise ArchitectureError(f"{out}: an adapter is a folder; choose a name without an ending, or give --base")
    weights, options = _of_all_layers(recipe)
    found = merge_adapters(paths, weights, asked.rank, recipe.method, options, recipe.seed)
    found.save(out, force=settings.force)
    lost = {layer: error for layer, error in found.errors.items() if error > 1e-6}
    notes = [*found.notes, *found.left]
    if lost:
        worst = max(lost, key=lambda layer: lost[layer])
        notes.append(
            f"{len(lost)} of {len(found.errors)} layers lost something to the rank; most {worst}: "
            f"{lost[worst]:.1%} of the update's norm"
        )
    rank = found.config["r"]
    group = {
        "action": "merged",
        "why": f"by {recipe.method}",
        "numbers": sum(t.numel() for t in found.tensors.values()),
    }
    line = f"merged    {len(found.errors)} layers of {len(paths)} adapters into one of rank {rank}"
    groups = [{**group, "tensors": [*found.tensors]}]
    return MergedFiles(names, None, recipe.method, str(out), groups, [line], notes)


def _of_all_layers(recipe: Recipe) -> tuple[list[float] | None, dict[str, Schedule]]:
    """The weights of adapters, one number each (of a linear mean divided by their sum), and the options."""
    weights, options = list[float](), dict(recipe.options)
    for weight in recipe.weights or ():
        if not isinstance(weight, (int, float)):
            raise ArchitectureError("adapters are merged with one weight for each; for weights by layer give --base")
        weights.append(float(weight))
    if recipe.method != "linear" or recipe.weights is None:
        return weights or None, options
    if options.pop("normalize", 1.0) == 0:
        return weights, options
    total = sum(weights)
    if abs(total) <= 1e-12 * sum(map(abs, weights)):
        raise ArchitectureError("the weights of the adapters sum to zero; give others, or --set normalize=0")
    return [weight / total for weight in weights], options


def _beside(parents: Parents, out: Path, recipe: Recipe, asked: Asked, changes: Changes) -> Carried:
    """What a folder gets besides the weights; nothing beside a file."""
    if out.suffix == ".safetensors":
        return Carried({}, ())
    paths = [*dict.fromkeys(asked.base if adapter.describes(p) and asked.base else p for p in parents.paths)]
    total = sum(read(path).nbytes for path in paths)
    said = {"method": recipe.method, "weights": recipe.weights, "options": dict(recipe.options), "seed": recipe.seed}
    given = parents.paths[: parents.count]
    about = About({key: value for key, value in said.items() if value}, quick=total > _HASHED, parents=given)
    ours = [path for path in paths if path != asked.base] or paths
    return carried(ours, asked.base, changes=changes, tokenizer=asked.tokenizer, about=about, remote_code=asked.code)


def _written(plan: Plan, out: Path, beside: Carried, asked: Asked, settings: Settings) -> Path:
    """Write the weights and what is beside them; the path of the weights."""
    if out.is_dir() and not settings.force and (taken := [name for name in beside.files if (out / name).exists()]):
        raise ArchitectureError(f"{out} holds {taken[0]}; choose another folder, or add --force to overwrite it")
    tick = partial(settings.progress, f"merging {len(plan.parents)} networks")
    whole = write(plan, out, shard=asked.shard, progress=tick, force=settings.force)
    beside.write(out, settings.force)
    return whole
