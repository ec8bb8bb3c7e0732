"""The methods and parameters of mergekit's files: their names there and here, and their value for a tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from weightspace.merging.methods import METHODS
from weightspace.net.errors import WeightspaceError

__all__ = ["KNOWN", "Known", "Setting", "setting_at"]

Setting: TypeAlias = float | Sequence[float] | Sequence[tuple[str | None, float | Sequence[float]]]


def setting_at(setting: Setting, name: str, depth: float) -> float | None:
    """The number for the tensor `name` at `depth` from 0 to 1; None where no filter fits.

    A number holds for all, a list of numbers is interpolated over the layers, and of pairs (filter, value) the first
    holds whose filter is part of the name, is "*" or is missing.

    >>> from weightspace.merging.folders.mergekit_settings import setting_at
    >>> setting_at([0.0, 1.0], "h.1.mlp", 0.5), setting_at([("mlp", 0.3), (None, 0.5)], "h.1.attn", 0.5)
    (0.5, 0.5)
    """
    if not isinstance(setting, Sequence):
        return float(setting)
    for item in setting:
        if not isinstance(item, tuple):
            break
        if item[0] in (None, "*") or str(item[0]) in name:
            return setting_at(item[1], name, depth)
    else:
        return None
    values = [item for item in setting if not isinstance(item, tuple)]
    at = depth * (len(values) - 1)
    low = int(at)
    return float(values[low] + (at - low) * (values[min(low + 1, len(values) - 1)] - values[low]))


@dataclass(frozen=True)
class Known:
    """A method of mergekit: parameters of each model, and of all together, with their defaults (None: needed).

    `unlike`: parameters of which only the default has the same meaning here. `without`: those that change nothing here.
    """

    by_model: Mapping[str, float | None] = field(default_factory=dict)
    by_merge: Mapping[str, float | None] = field(default_factory=dict)
    unlike: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    ours: Mapping[str, str] = field(default_factory=lambda: {"lambda": "scale"})

    def names(self) -> list[str]:
        """All parameters."""
        return [*self.by_model, *self.by_merge, *self.without]


def _sparse(normalize: float, rescale: float, **more: float) -> Known:
    together = {"normalize": normalize, "rescale": rescale, "lambda": 1.0}
    return Known({"weight": None, "density": 1.0, **more}, together, without=("int8_mask",))


_WEIGHT: dict[str, float | None] = {"weight": None}
KNOWN: Mapping[str, Known] = {
    "linear": Known(_WEIGHT, {"normalize": 1.0}),
    "task_arithmetic": Known(_WEIGHT, {"normalize": 0.0, "lambda": 1.0}, without=("int8_mask", "density", "rescale")),
    "ties": _sparse(1.0, 0.0),
    "dare_ties": _sparse(0.0, 1.0),
    "dare_linear": _sparse(0.0, 1.0),
    "breadcrumbs": _sparse(0.0, 0.0, gamma=0.01),
    "breadcrumbs_ties": _sparse(0.0, 0.0, gamma=0.01),
    "della": _sparse(1.0, 1.0, epsilon=0.15),
    "della_linear": _sparse(0.0, 1.0, epsilon=0.15),
    "slerp": Known({}, {"t": None}),
    "nuslerp": Known(
        _WEIGHT, {"nuslerp_row_wise": 0.0, "nuslerp_flatten": 1.0}, unlike=("nuslerp_row_wise",)
    ),
    "multislerp": Known(_WEIGHT, {"normalize_weights": 1.0}, unlike=("normalize_weights",), without=("eps",)),
    "karcher": Known({}, {"max_iter": 10.0, "tol": 1e-5}),
    "model_stock": Known({}, {"filter_wise": 0.0}, unlike=("filter_wise",)),
    "sce": Known({}, {"select_topk": 1.0}, without=("int8_mask",)),
    "nearswap": Known({}, {"t": None}),
    "arcee_fusion": Known(),
    "passthrough": Known({"scale": 1.0}),
}  # fmt: skip


def known(method: str) -> Known:
    """The method of that name. Raises `WeightspaceError` that lists all that are read."""
    found = KNOWN.get(method)
    if found is None or method not in METHODS and method != "passthrough":
        here = ", ".join(name for name in KNOWN if name in METHODS or name == "passthrough")
        raise WeightspaceError(f"merge_method {method!r} is not one of {here}")
    return found
