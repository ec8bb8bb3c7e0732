"""What `weightspace merge` does with examples: finds coefficients, weighs networks, measures losses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from torch import Tensor

from weightspace.checkpoint import adapter, architecture
from weightspace.checkpoint.architecture import ArchitectureError
from weightspace.commands.data import labelled, splits
from weightspace.commands.merge_parents import Asked, Parents
from weightspace.commands.scores import Score, scored
from weightspace.commands.settings import Settings
from weightspace.merging.methods import method
from weightspace.merging.networks import merged_net
from weightspace.merging.plan import Plan, planned
from weightspace.merging.recipe import Recipe
from weightspace.merging.tuning import adamerging, adamerging_cost, tune, tune_cost
from weightspace.merging.weighing import importances, inner_products
from weightspace.net.net import Net
from weightspace.task.task import Task

__all__ = ["Curves", "Looking", "curves_of", "looking_at", "on_data", "score_of", "scores_of", "tuned"]

_DRAWS = 8  # of labels for each example
_START = 0.3  # of all coefficients, before their entropy is made small


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
class Looking:
    """The architecture on the meta device, and examples to tune and to measure on."""

    template: Net
    tune_on: Task
    measure_on: Task


def looking_at(parents: Parents, asked: Asked, settings: Settings) -> Looking:
    """The architecture of the parents and the examples that were given."""
    paths = [path for path in parents.paths if not adapter.describes(path)]
    template = Net.of(architecture.find(settings.arch, paths, settings.trust_code))
    return Looking(template, *splits(str(asked.data), asked.limit, settings.seed))


def tuned(
    parents: Parents, recipe: Recipe, asked: Asked, settings: Settings, looking: Looking | None
) -> tuple[Recipe, str]:
    """The recipe with what was found on data, and what that is."""
    if asked.tune is None:
        return recipe, ""
    if looking is None:
        raise ArchitectureError("--tune looks for the best value on examples; give --data")
    if method(recipe.method).beside:
        raise ArchitectureError(f"{recipe.method} weighs networks by data already; leave --tune out")
    if asked.tune != "entropy":
        labelled(looking.tune_on, str(asked.data))
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


def on_data(parents: Parents, recipe: Recipe, settings: Settings, looking: Looking | None) -> Plan:
    """The plan to write a network that was merged in memory, by methods that weigh networks by data."""
    if looking is None:
        raise ArchitectureError(f"{recipe.method} weighs networks by examples; give --data")
    if parents.base or recipe.options.keys() - {"alpha"}:
        raise ArchitectureError(f"{recipe.method} takes no base; leave --base out")
    nets = [*parents.nets(looking.template, settings)]
    settings.progress(f"weighing {len(nets)} networks by data", 0, 0)
    beside: list[Mapping[str, Tensor]]
    if method(recipe.method).beside == "importances":
        labelled(looking.tune_on, "the data")
        beside = [importances(net, looking.tune_on, _DRAWS, seed=settings.seed) for net in nets]
    else:
        beside = [inner_products(net, looking.tune_on) for net in nets]
    found = merged_net(nets, recipe, beside=beside)
    plan = planned([found.tensors], None, Recipe(dtype=recipe.dtype))
    said = f"merged by {recipe.method} on {len(looking.tune_on):,} examples"
    rows = [replace(row, action="copied", why=said) if row.action == "merged" else row for row in plan.rows]
    return replace(plan, rows=rows)


def scores_of(parents: Parents, settings: Settings, looking: Looking) -> list[Score]:
    """The loss of every parent and of the base, where the data have labels."""
    found = []
    for name, net in zip(parents.names, parents.nets(looking.template, settings), strict=True):
        settings.progress(f"measuring {name}", 0, 0)
        found += scored(looking.measure_on, net, name=name)
    return found


def score_of(whole: Path, settings: Settings, looking: Looking) -> list[Score]:
    """The loss of the merged network that was written, where the data have labels."""
    return scored(looking.measure_on, settings.load(looking.template, whole).net, name="merged")


_LINE = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.5]
_PLANE = [-0.25, 0.0, 0.25, 0.5, 0.75, 1.0, 1.25]


def curves_of(parents: Parents, recipe: Recipe, settings: Settings, looking: Looking) -> Curves | None:
    """Losses along the scale of the task vectors or between two networks, and over the weights of two task vectors."""
    nets = [*parents.nets(looking.template, settings)]
    base, nets = (nets[-1] if parents.base else None), nets[: parents.count]
    plain = recipe.weights is None or all(isinstance(weight, (int, float)) for weight in recipe.weights)
    given = [1.0] * len(nets) if recipe.weights is None else [*recipe.weights]
    known = method(recipe.method).options
    scaled = "scale" in known and base is not None
    labelled = all(y is not None for _, y in looking.measure_on.batches())
    if not labelled or not plain or not (scaled or (len(nets) == 2 and method(recipe.method).base == "unused")):
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
