"""Low-rank adapters merged and compared as what they are, sums of s B A, in factors and never as dense matrices.

Every result depends on the products B A alone: A and B may become M A and B M^-1 for any invertible M.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from weightspace.checkpoint.refusal import refusal, some
from weightspace.merging.adapters.lora_folder import PREFIX, LoRA, NewAdapter, configured, lora, named
from weightspace.merging.adapters.low_rank import LowRank, stacked, tied
from weightspace.merging.part import Part, check_finite
from weightspace.merging.recipe import Recipe, merged
from weightspace.merging.schedule import Schedule, depths
from weightspace.net.errors import WeightspaceError
from weightspace.net.public import public

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["AdapterDistance", "AdapterLayer", "adapter_distance", "inner_products", "merge_adapters"]


@public
@dataclass(frozen=True)
class AdapterLayer:
    """The updates U, V of one layer in two adapters: |U|, |V|, |U - V|, and their cosine (NaN where one is zero)."""

    name: str
    norm_a: float
    norm_b: float
    distance: float
    cosine: float


@public
@dataclass(frozen=True)
class AdapterDistance:
    """How far the updates of two adapters are apart, over all layers and one by one. Made by `adapter_distance`.

    `notes`: what is not compared, such as heads that were saved whole.
    """

    labels: tuple[str, str]
    norm_a: float
    norm_b: float
    distance: float
    cosine: float
    layers: tuple[AdapterLayer, ...]
    notes: tuple[str, ...] = field(default=())

    @property
    def relative(self) -> float:
        """|U - V| over the root mean square of |U| and |V|: 0 for equal updates, about 1.41 for unrelated ones."""
        size = (self.norm_a**2 + self.norm_b**2) / 2
        return self.distance / size**0.5 if size else 0.0

    def data(self) -> dict[str, Any]:
        """As plain data."""
        return {**asdict(self), "relative": self.relative}


@public
def adapter_distance(a: str | os.PathLike[str] | LoRA, b: str | os.PathLike[str] | LoRA) -> AdapterDistance:
    """Distances and cosines of the updates of two adapters, modulo the choice of factors; their ranks may differ.

    |U - V| is the norm of the stacked factors [L, -L'] [R; R'], so that a layer of m x n and ranks r, r' takes
    O((m + n)(r + r')^2). A layer that one lacks is a zero update there. Raises `WeightspaceError` for adapters of other
    bases, whose layers differ in shape.

    >>> import tempfile
    >>> import torch
    >>> from weightspace.merging.adapters.combined import adapter_distance
    >>> from weightspace.merging.adapters.lora_folder import NewAdapter
    >>> def stored(folder, size):
    ...     factors = {"q.lora_A.weight": torch.ones(1, 4), "q.lora_B.weight": size * torch.ones(4, 1)}
    ...     return NewAdapter({"r": 1, "lora_alpha": 1, "target_modules": ["q"]}, factors, {}).save(folder)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     found = adapter_distance(stored(folder + "/a", 1), stored(folder + "/b", 2))
    >>> found.distance, found.cosine
    (4.0, 1.0)
    """
    pair = [_opened(a), _opened(b)]
    _alike(pair)
    rows, squares = [], [0.0, 0.0, 0.0, 0.0]
    for layer in _layers(pair):
        u, v = (one.update(layer) if layer in one.layers else None for one in pair)
        first, second = (0.0 if one is None else one.norm() for one in (u, v))
        parts = [(part, sign) for part, sign in ((u, 1.0), (v, -1.0)) if part is not None]
        apart = stacked(*zip(*parts, strict=True)).norm()
        product = u.inner(v) if u is not None and v is not None else 0.0
        rows.append(AdapterLayer(layer, first, second, apart, _cosine(product, first, second)))
        squares = [x + y for x, y in zip(squares, (first**2, second**2, apart**2, product), strict=True)]
    (one, two, apart), product = (x**0.5 for x in squares[:3]), squares[3]
    return AdapterDistance(
        (pair[0].label, pair[1].label), one, two, apart, _cosine(product, one, two), tuple(rows), tuple(_beside(pair))
    )  # fmt: skip


def _cosine(product: float, a: float, b: float) -> float:
    """The cosine of two vectors of these norms; NaN where one is zero."""
    return max(-1.0, min(1.0, product / (a * b))) if a and b else float("nan")


def _beside(adapters: Sequence[LoRA]) -> Iterable[str]:
    for one in adapters:
        if one.saved:
            yield f"{one.label}: not compared: {some(one.saved)}, saved whole"
        if one.magnitudes:
            yield f"{one.label}: not compared: the magnitudes (DoRA) of {some(one.magnitudes)}"


def inner_products(adapters: Sequence[LoRA]) -> tuple[list[str], Float[Tensor, "layers n n"]]:
    """The layers, and the inner products of the updates of n adapters in each of them, from their factors."""
    _alike(adapters)
    names, n = _layers(adapters), len(adapters)
    found = torch.zeros(len(names), n, n, dtype=torch.float64)
    for t, name in enumerate(names):
        parts = {k: one.update(name) for k, one in enumerate(adapters) if name in one.layers}
        for i, first in parts.items():
            for j, second in parts.items():
                if j <= i:
                    found[t, i, j] = found[t, j, i] = first.inner(second)
    return names, found


@public
def merge_adapters(
    adapters: Sequence[str | os.PathLike[str] | LoRA],
    weights: Sequence[float] | None = None,
    rank: int | None = None,
    method: str = "linear",
    options: Mapping[str, Schedule] | None = None,
    seed: int = 0,
) -> NewAdapter:
    """One adapter of several: the updates sum_i w_i s_i B_i A_i, exactly, or cut to a rank.

    `weights`: default 1/n each. method="linear": the factors side by side, whose rank is the sum of the ranks; with
    `rank` the nearest update of that rank, and `errors` tells what is lost. Any other method of `METHODS` (KnOTS): the
    updates of a layer side by side are U S [V_1 .. V_n], the method merges the V_i as task vectors with these weights
    (its own where None), and the update is U S V; `options` and `seed` are its own. Layers that an adapter lacks are
    zero in it. Tensors that were saved whole (heads) are averaged with these weights over the adapters that have them.
    Raises `WeightspaceError`, in one sentence, for adapters of other bases, DoRA, and heads that do not match.

    >>> import tempfile
    >>> import torch
    >>> from weightspace.merging.adapters.combined import merge_adapters
    >>> from weightspace.merging.adapters.lora_folder import NewAdapter
    >>> def stored(folder, size):
    ...     factors = {"q.lora_A.weight": torch.ones(1, 4), "q.lora_B.weight": size * torch.ones(4, 1)}
    ...     return NewAdapter({"r": 1, "lora_alpha": 1, "target_modules": ["q"]}, factors, {}).save(folder)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     found = merge_adapters([stored(folder + "/a", 1.0), stored(folder + "/b", 3.0)], rank=1)
    >>> found.config["r"], found.errors["q"] < 1e-12
    (1, True)

    Source of KnOTS: Stoica, Ramesh, Ecsedi, Choshen and Hoffman, Model merging with SVD to tie the knots, 2025.
    """
    opened = [_opened(one) for one in adapters]
    _mergeable(opened, weights, rank)
    shares = [1 / len(opened)] * len(opened) if weights is None else [float(w) for w in weights]
    recipe = Recipe(method, weights, options or {}, seed)
    if recipe.method != "linear":
        recipe.check(len(opened), base=True)
    dtype, deep = _dtype(opened), depths(_layers(opened))
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    errors: dict[str, float] = {}
    for layer in _layers(opened):
        having = [one for one in opened if layer in one.layers]
        if recipe.method == "linear":
            parts = [one.update(layer) for one in having]
            found = stacked(parts, [w for one, w in zip(opened, shares, strict=True) if layer in one.layers])
        else:
            found = _knots(layer, opened, recipe, deep[layer])
        errors[layer], most = 0.0, min(*found.shape, found.rank if rank is None else rank)
        if found.rank > most:
            found, errors[layer] = found.cut(most)
        ranks[layer] = found.rank
        tensors |= named(layer, found, having[0].layers[layer].kind, having[0].kernel(layer), dtype)
    biases = _biases(opened, shares, dtype)
    whole, notes = _whole(opened, shares)
    config = _configured(opened, ranks, bool(biases))
    bases = {one.config.get("base_model_name_or_path") for one in opened}
    if len(bases) > 1:
        notes = [f"the adapters name several bases: {some(sorted(map(str, bases)))}", *notes]
    return NewAdapter(config, {**tensors, **biases, **whole}, errors, (), tuple(notes))


def _configured(adapters: Sequence[LoRA], ranks: Mapping[str, int], biased: bool) -> dict[str, Any]:
    """The configuration of the merged adapter: what all share, and the modules that any of them saves whole."""
    saved = {name for one in adapters for name in one.config.get("modules_to_save") or ()}
    biases = [one.config["bias"] for one in adapters if one.config.get("bias", "none") != "none"]
    return configured(
        ranks, _base_of(adapters), transposed=bool(adapters[0].config.get("fan_in_fan_out")), saved=tuple(saved),
        bias=biases[0] if biases else "none", lora_bias=biased, task_type=_same(adapters, "task_type"),
    )  # fmt: skip


def _knots(layer: str, adapters: Sequence[LoRA], recipe: Recipe, depth: float) -> LowRank:
    """The merged update U S V of a layer, with V of the right factors by the recipe."""
    present = {k: one.update(layer) for k, one in enumerate(adapters) if layer in one.layers}
    basis, rights = tied([*present.values()])
    zero = torch.zeros_like(rights[0])
    parents = [{layer: dict(zip(present, rights, strict=True)).get(k, zero)} for k in range(len(adapters))]
    part = Part(layer, zero.shape, [(one, layer) for one in parents], ({layer: zero}, layer), torch.float64)
    return LowRank(basis, merged(part, recipe, depth))


def _opened(one: str | os.PathLike[str] | LoRA) -> LoRA:
    return one if isinstance(one, LoRA) else lora(one)


def _layers(adapters: Sequence[LoRA]) -> list[str]:
    """The layers of all adapters, in the order of the first that has them."""
    return [*dict.fromkeys(layer for one in adapters for layer in one.layers)]


def _alike(adapters: Sequence[LoRA]) -> None:
    """Raise `WeightspaceError` unless every layer has one kind and shape in all adapters that have it."""
    seen: dict[str, tuple[LoRA, tuple[Any, ...]]] = {}
    for one in adapters:
        for name, layer in one.layers.items():
            form = layer.kind, (one.file.shapes[layer.b][0], *one.file.shapes[layer.a][1:])
            first, had = seen.setdefault(name, (one, form))
            if had != form:
                raise WeightspaceError(
                    f"{name!r} is {had[0]} of {had[1]} in {first.label} and {form[0]} of {form[1]} in {one.label}; "
                    "give adapters of one base"
                )


def _mergeable(adapters: Sequence[LoRA], weights: Sequence[float] | None, rank: int | None) -> None:
    """Raise `WeightspaceError` unless adapters can be merged with these weights to this rank."""
    if not adapters:
        raise WeightspaceError("no adapters to merge; give at least one")
    if weights is not None and len(weights) != len(adapters):
        raise WeightspaceError(f"{len(weights)} weights for {len(adapters)} adapters; give one for each")
    if rank is not None and rank < 1:
        raise WeightspaceError(f"a rank of {rank}; give 1 or more")
    _alike(adapters)
    for one in adapters:
        if one.magnitudes:
            do = "merge it into its base (into_base) and merge the networks"
            raise refusal(one.path, "rescales the rows of weights (DoRA), which is no sum of updates", do)
        if bool(one.config.get("fan_in_fan_out")) != bool(adapters[0].config.get("fan_in_fan_out")):
            raise refusal(one.path, f"fan_in_fan_out is not that of {adapters[0].label}", "give adapters of one base")


def _base_of(adapters: Sequence[LoRA]) -> str | None:
    found = adapters[0].config.get("base_model_name_or_path")
    return found if isinstance(found, str) else None


def _same(adapters: Sequence[LoRA], key: str) -> Any:
    """A setting that all adapters share; else None."""
    first = adapters[0].config.get(key)
    return first if all(one.config.get(key) == first for one in adapters) else None


def _dtype(adapters: Sequence[LoRA]) -> torch.dtype:
    double = any(one.file.dtypes[layer.a] == torch.float64 for one in adapters for layer in one.layers.values())
    return torch.float64 if double else torch.float32


def _biases(adapters: Sequence[LoRA], weights: Sequence[float], dtype: torch.dtype) -> dict[str, Tensor]:
    """The biases beside B: the weighted sum, zero where an adapter has none; none at all where no adapter has one."""
    if not any(layer.bias for one in adapters for layer in one.layers.values()):
        return {}
    found = {}
    for name in _layers(adapters):
        first = next(one for one in adapters if name in one.layers)
        total = torch.zeros(first.file.shapes[first.layers[name].b][0], dtype=torch.float64)
        for one, weight in zip(adapters, weights, strict=True):
            bias = one.bias(name) if name in one.layers else None
            if bias is not None:
                check_finite(bias, name, one.label)
                total += weight * bias
        found[f"{PREFIX}{name}.lora_B.bias"] = total.to(dtype)
    return found


def _whole(adapters: Sequence[LoRA], weights: Sequence[float]) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors that were saved whole, averaged over the adapters that have them, and notes."""
    found: dict[str, Tensor] = {}
    notes = []
    for name in dict.fromkeys(name for one in adapters for name in one.saved):
        having = [(one, weight) for one, weight in zip(adapters, weights, strict=True) if name in one.saved]
        first = having[0][0]
        shapes = [tuple(one.file.shapes[one.saved[name]]) for one, _ in having]
        if len({*shapes}) > 1:
            raise WeightspaceError(
                f"{name!r}, saved whole, has shape {shapes[0]} in {first.label} and elsewhere {some(shapes[1:])}; "
                "heads of other classes cannot be averaged: merge adapters without them"
            )
        total = sum(weight for _, weight in having)
        if not total:
            raise WeightspaceError(f"the weights of the adapters that save {name!r} whole sum to zero; give others")
        for one, _ in having:
            check_finite(one.file[one.saved[name]], one.saved[name], one.label)
        mean = sum(one.file[one.saved[name]].double() * (weight / total) for one, weight in having)
        assert isinstance(mean, Tensor)
        found[first.saved[name]] = mean.to(first.file.dtypes[first.saved[name]])
        if len(having) < len(adapters):
            notes.append(f"{name!r}, saved whole, is the average over {len(having)} of {len(adapters)} adapters")
    return found, notes
