"""`weightspace merge --method`: checkpoints or adapters merged by a recipe, from files to files or to a folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from weightspace.atlas.lineage import lineage
from weightspace.checkpoint import adapter, architecture
from weightspace.checkpoint.architecture import ArchitectureError
from weightspace.checkpoint.reader import read
from weightspace.commands.data import splits
from weightspace.commands.scores import Score, scored
from weightspace.commands.settings import Settings
from weightspace.commands.workspace import Workspace, file_names
from weightspace.merging.adapted import into_base
from weightspace.merging.adapters import merge_adapters
from weightspace.merging.card import About
from weightspace.merging.configuration import Changes
from weightspace.merging.folder import Carried, carried, home_of
from weightspace.merging.mergekit_file import recipe_of
from weightspace.merging.mergekit_plan import plan_of
from weightspace.merging.methods import method
from weightspace.merging.networks import merged_net
from weightspace.merging.plan import Plan, Rules, planned
from weightspace.merging.recipe import Recipe
from weightspace.merging.stream import write
from weightspace.merging.tuning import adamerging, adamerging_cost, tune, tune_cost
from weightspace.merging.vocabulary import in_one_vocabulary
from weightspace.net.net import Net
from weightspace.task.task import Task

__all__ = ["Asked", "Curves", "MergedFiles", "merge_by_file", "merge_by_recipe"]

_HASHED = 4_000_000_000  # bytes of parents up to which the card has hashes of all of their numbers
_START = 0.3  # of all coefficients, before their entropy is made small
Aligning = Literal["auto", "never", "always"]


@dataclass(frozen=True)
class Asked:
    """What was asked of a merge besides the parents and the recipe.

    `align`: bring parents near the first, or near the base, modulo the group before they are merged; "auto" does it
    where the architecture is given, for those that the weights do not show to be of one origin with it. `tune`: find
    this option of the method, "weights", or weights by "entropy", on half of the data. `tokenizer`: the common
    vocabulary ("union", "first", "base", or a folder). `rank`: of a merged adapter. `code`: copy the Python files that
    a configuration asks for. `shard`: the most bytes of one file. `data`, `example`, `limit`: as other commands.
    `curves`: measure the loss at other coefficients too, for a report.
    """

    base: Path | None = None
    align: Aligning = "auto"
    tune: str | None = None
    rules: Rules = field(default_factory=Rules)
    tokenizer: str | None = None
    rank: int | None = None
    code: bool = False
    shard: int = 5_000_000_000
    data: str | None = None
    example: str | None = None
    limit: int = 2048
    curves: bool = False


@dataclass(frozen=True)
class Curves:
    """Losses on held-out examples at other coefficients than those of the merge.

    `along`: the coefficient that varies, and `line` its values with their losses; `here` is that of the merge. `plane`:
    of two networks, `plane[i][j]` at the weights `axis[j]` of the first and `axis[i]` of the second; `weights`: theirs.
    """

    along: str
    line: list[tuple[float, float]]
    here: float
    axis: list[float] = field(default_factory=list)
    plane: list[list[float]] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)


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


@dataclass(frozen=True)
class _Parents:
    """Checkpoints, and the base at the end where there is one; each as tensors under names."""

    paths: Sequence[Path]
    names: list[str]
    tensors: Sequence[Mapping[str, Tensor]]
    low: Sequence[bool]
    base: bool

    @property
    def count(self) -> int:
        """The number of networks that are merged."""
        return len(self.paths) - self.base

    def nets(self, template: Net, settings: Settings) -> Iterator[Net]:
        """The networks, one at a time; an adapter with its base."""
        for path, tensors, low in zip(self.paths, self.tensors, self.low, strict=True):
            yield template.load(tensors) if low else settings.load(template, path).net


def merge_by_recipe(paths: Sequence[Path], out: Path, recipe: Recipe, asked: Asked, settings: Settings) -> MergedFiles:
    """Merge checkpoints by a recipe and write a file, or a folder with everything that a Hugging Face folder needs.

    Adapters (LoRA) without a base give an adapter; with one, the networks that they make of it are merged. Raises
    `WeightspaceError`, before anything is written.
    """
    everyone = [*paths, *([] if asked.base is None else [asked.base])]
    for path in everyone:
        if not path.exists() and not path.with_name(f"{path.name}.index.json").exists():
            raise ArchitectureError(f"{path}: no such file or folder; check the path")
    names, low = file_names(*everyone), [path.suffix != ".pt2" and adapter.describes(path) for path in everyone]
    if asked.base is None and all(low):
        return _of_adapters(paths, names, out, recipe, asked, settings)
    if asked.rank is not None:
        raise ArchitectureError("a rank is for merging adapters into an adapter; leave --rank or --base out")
    if asked.base is None and any(low):
        raise ArchitectureError(f"{names[low.index(True)]} is an adapter and others are not; give its base as --base")
    recipe.check(len(paths), asked.base is not None)
    parents = _Parents(everyone, names, _tensors(everyone, low, asked.base), low, asked.base is not None)
    parents, aligned = _aligned(parents, asked, settings)
    looking = _looking(parents, asked, settings) if asked.data is not None else None
    recipe, tuned = _tuned(parents, recipe, asked, settings, looking)
    sources, changes, notes = _in_one_vocabulary(parents, recipe, asked)
    count = parents.count
    plan = planned(sources[:count], sources[count] if parents.base else None, recipe, asked.rules, names)
    beside = _beside(parents, out, recipe, asked, changes)
    whole = _written(plan, out, beside, asked, settings)
    scores = [] if looking is None else _scores(parents, whole, settings, looking)
    curves = None if looking is None or not asked.curves else _curves(parents, recipe, settings, looking)
    table = plan.table()
    return MergedFiles(
        names[:count], names[count] if parents.base else None, recipe.method, str(out), table.data(),
        [str(group) for group in table.groups], [*plan.notes, *notes, *beside.notes], aligned, tuned, scores,
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
        merged, None if base is None else names[base], found.file.method, str(out), table.data(), [str(group) for group in table.groups],
        [*table.notes, *found.notes, *beside.notes], scores=scores, examples=examples,
    )  # fmt: skip


def _of_adapters(
    paths: Sequence[Path], names: list[str], out: Path, recipe: Recipe, asked: Asked, settings: Settings
) -> MergedFiles:
    """Adapters merged into an adapter."""
    if out.suffix == ".safetensors":
        raise ArchitectureError(f"{out}: an adapter is a folder; choose a name without an ending, or give --base")
    weights = None if recipe.weights is None else [float(w) for w in recipe.weights]  # type: ignore[arg-type]
    found = merge_adapters(paths, weights, asked.rank, recipe.method, recipe.options, recipe.seed)
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


def _tensors(paths: Sequence[Path], low: Sequence[bool], base: Path | None) -> list[Mapping[str, Tensor]]:
    """The tensors of every checkpoint; of an adapter those of the network that it makes of the base."""
    origin = None if base is None else read(base)
    changed = [one and origin is not None for one in low]
    return [into_base(path, origin or {}) if one else read(path) for path, one in zip(paths, changed, strict=True)]


def _aligned(parents: _Parents, asked: Asked, settings: Settings) -> tuple[_Parents, list[str]]:
    """The parents, those that need it aligned to the base or to the first; and the names of these."""
    if asked.align == "never" or (asked.align == "auto" and settings.arch is None):
        return parents, []
    to = parents.count if parents.base else 0
    far = [k for k in range(parents.count) if k != to]
    if any(parents.low) and asked.align == "always":
        raise ArchitectureError("adapters of one base need no aligning; leave --align always out")
    if asked.align == "auto" and far:
        kin = lineage(parents.tensors, parents.names, seed=settings.seed, progress=settings.progress)
        far = [k for k in far if kin.group[k] != kin.group[to] and not parents.low[k]]
    if not far:
        return parents, []
    space = Workspace.open(parents.paths, settings, asked.data, asked.example, limit=asked.limit)
    reference, found = space.load(parents.paths[to]), [*parents.tensors]
    for k in far:
        settings.progress(f"aligning {parents.names[k]}", 0, 0)
        moved = space.group.align(space.load(parents.paths[k]), reference, space.align_on, seed=settings.seed)
        found[k] = moved.tensors
    low = [one or k in far for k, one in enumerate(parents.low)]  # their networks are no longer those of their files
    return replace(parents, tensors=found, low=low), [parents.names[k] for k in far]


@dataclass(frozen=True)
class _Looking:
    """The architecture on the meta device, and examples to tune and to measure on."""

    template: Net
    tune_on: Task
    measure_on: Task


def _looking(parents: _Parents, asked: Asked, settings: Settings) -> _Looking:
    """The architecture of the parents and the examples that were given."""
    paths = [path for path in parents.paths if not adapter.describes(path)]
    template = Net.of(architecture.find(settings.arch, paths, settings.trust_code))
    return _Looking(template, *splits(str(asked.data), asked.limit, settings.seed))


def _tuned(
    parents: _Parents, recipe: Recipe, asked: Asked, settings: Settings, looking: _Looking | None
) -> tuple[Recipe, str]:
    """The recipe with what was found on data, and what that is."""
    if asked.tune is None:
        return recipe, ""
    if looking is None:
        raise ArchitectureError("--tune looks for the best value on examples; give --data")
    nets = [*parents.nets(looking.template, settings)]
    base, nets = (nets[-1] if parents.base else None), nets[: parents.count]
    tick = partial(settings.progress, f"tuning {asked.tune}")
    if asked.tune == "entropy":
        if base is None or recipe.method != "task_arithmetic":
            raise ArchitectureError("--tune entropy is for --method task_arithmetic with a --base")
        settings.progress(f"tuning: {adamerging_cost(nets, [looking.tune_on])}", 0, 0)
        found = adamerging(nets, base, [looking.tune_on], seed=settings.seed, progress=tick)
        weights = [dict(zip(found.tensors, row, strict=True)) | {"*": _START} for row in found.coefficients.tolist()]
        said = f"entropy of the outputs {found.entropy:.4f}, {found.before:.4f} with {_START} for all"
        return replace(recipe, weights=weights), said
    settings.progress(f"tuning: {tune_cost(nets, [looking.tune_on], asked.tune)}", 0, 0)
    best = tune(nets, recipe, [looking.tune_on], base, over=asked.tune, progress=tick)
    value = best.recipe.weights if asked.tune == "weights" else [best.recipe.options[asked.tune]]
    shown = ", ".join(f"{number:.3g}" for number in value or [] if isinstance(number, (int, float)))
    return best.recipe, f"{asked.tune} {shown}, loss {best.loss:.4f} ({best.before:.4f} before)"


def _in_one_vocabulary(
    parents: _Parents, recipe: Recipe, asked: Asked
) -> tuple[Sequence[Mapping[str, Tensor]], Changes, list[str]]:
    """The parents with embeddings and heads in one vocabulary, where one is asked for."""
    if asked.tokenizer is None:
        return parents.tensors, Changes(dtype=recipe.dtype), []
    if any(parents.low):
        raise ArchitectureError("adapters and aligned networks keep their vocabulary; leave --tokenizer out")
    homes = [home_of(path) for path in parents.paths]
    for path, home in zip(parents.paths, homes, strict=True):
        if home is None:
            raise ArchitectureError(f"{path} is no Hugging Face folder, so it has no tokenizer; leave --tokenizer out")
    base = parents.count if parents.base else None
    folders = [home for home in homes if home is not None]
    views, rows, notes = in_one_vocabulary(parents.tensors, folders, asked.tokenizer, base=base)
    return [*views], Changes(rows=rows, dtype=recipe.dtype), notes


def _beside(parents: _Parents, out: Path, recipe: Recipe, asked: Asked, changes: Changes) -> Carried:
    """What a folder gets besides the weights; nothing beside a file."""
    if out.suffix == ".safetensors":
        return Carried({}, ())
    paths = [*dict.fromkeys(asked.base if adapter.describes(p) and asked.base else p for p in parents.paths)]
    total = sum(read(path).nbytes for path in paths)
    said = {"method": recipe.method, "weights": recipe.weights, "options": dict(recipe.options), "seed": recipe.seed}
    about = About({key: value for key, value in said.items() if value}, quick=total > _HASHED)
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


def _scores(parents: _Parents, whole: Path, settings: Settings, looking: _Looking) -> list[Score]:
    """The loss of every parent, of the base and of the merged network, where the data have labels."""
    found = []
    for name, net in zip(parents.names, parents.nets(looking.template, settings), strict=True):
        settings.progress(f"measuring {name}", 0, 0)
        found += scored(looking.measure_on, net, name=name)
    merged = settings.load(looking.template, whole).net
    return found + scored(looking.measure_on, merged, name="merged")


_LINE = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.5]
_PLANE = [-0.25, 0.0, 0.25, 0.5, 0.75, 1.0, 1.25]


def _curves(parents: _Parents, recipe: Recipe, settings: Settings, looking: _Looking) -> Curves | None:
    """Losses along the scale of the task vectors or between two networks, and over the weights of two task vectors."""
    nets = [*parents.nets(looking.template, settings)]
    base, nets = (nets[-1] if parents.base else None), nets[: parents.count]
    plain = recipe.weights is None or all(isinstance(weight, (int, float)) for weight in recipe.weights)
    given = [1.0] * len(nets) if recipe.weights is None else [*recipe.weights]
    known = method(recipe.method).options
    scaled = "scale" in known and base is not None
    if not plain or not (scaled or (len(nets) == 2 and method(recipe.method).base == "unused")):
        return None

    def loss(changed: Recipe) -> float:
        settings.progress("measuring other coefficients", 0, 0)
        return scored(looking.measure_on, merged_net(nets, changed, base))[0].loss

    weights = [float(weight) for weight in given if isinstance(weight, (int, float))]
    if not scaled:
        values = [k / 10 for k in range(11)]
        line = [(t, loss(replace(recipe, weights=[1 - t, t]))) for t in values]
        return Curves(f"the weight of {parents.names[1]}", line, weights[1] / (sum(weights) or 1.0))
    now = recipe.options.get("scale", known["scale"])
    if not isinstance(now, (int, float)):
        return None
    line = [(t, loss(replace(recipe, options={**recipe.options, "scale": t}))) for t in _LINE]
    found = Curves("scale", line, float(now))
    if len(nets) != 2 or recipe.options.get("normalize", known.get("normalize", 0.0)):
        return found
    plane = [[loss(replace(recipe, weights=[a, b])) for a in _PLANE] for b in _PLANE]
    return replace(found, axis=_PLANE, plane=plane, weights=weights)
