"""`weightspace widen`, `deepen` and `grow`: write a network with more units, more layers, or more outputs."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from weightspace.checkpoint import architecture
from weightspace.checkpoint.architecture import ArchitectureError
from weightspace.commands.data import splits
from weightspace.commands.settings import Settings
from weightspace.commands.workspace import example_for
from weightspace.net.growing import grow as more_outputs
from weightspace.net.inputs import carried
from weightspace.net.net import Net
from weightspace.net.state import seeded
from weightspace.symmetry.depths import deepen as more_layers
from weightspace.symmetry.widths import New, widening
from weightspace.task.outputs import logits

__all__ = ["Resized", "deepen", "grow", "widen"]


@dataclass(frozen=True)
class Resized:
    """A network in a larger architecture: what grew, and how much its outputs changed.

    `axes`: (name, size, new size) of the axes of units that grew; `shapes`: of every tensor that changed, (name, shape,
    new shape); `layers`: of layers with weights, (class, how many, how many now); `function`: |f_after - f_before| /
    |f_before| on the outputs that were there, which is rounding.
    """

    name: str
    out: str
    axes: list[tuple[str, int, int]]
    shapes: list[tuple[str, tuple[int, ...], tuple[int, ...]]]
    layers: list[tuple[str, int, int]]
    weights: tuple[int, int]
    function: float

    def data(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def widen(
    path: Path,
    out: Path,
    *,
    to: str | None,
    axes: dict[str, int],
    new: New,
    example: str | None,
    data: str | None,
    settings: Settings,
) -> Resized:
    """`symmetry.widen` a checkpoint and write it in the names and dtypes of its file. Raises `WeightspaceError`.

    `to`: a factor, or an architecture as --arch takes it; `axes`: new sizes by name, in its place.
    """
    if (to is None) == (not axes):
        raise ArchitectureError("how wide? give either --to (a factor, or an architecture) or --axis NAME=SIZE")
    file = settings.open(path)
    task = splits(data, 2, settings.seed)[0] if data is not None else None
    shown = carried(example_for(file.template.architecture, task, example, settings.seed), file.net)
    settings.progress(f"widening {path.name}", 0, 0)
    found = widening(file.net, axes or _target(str(to), settings), shown)
    wide = found.drawn(new, settings.seed).checked(file.net, shown).of(file.net)
    grown = [(a.name, found.small[a.name].size, a.size) for a in found.grown if a.size > found.small[a.name].size]
    done = _resized(path, out, file.net, wide, grown, shown)
    file.save(wide, out, "widened")
    return done


def deepen(path: Path, out: Path, *, to: str, example: str | None, data: str | None, settings: Settings) -> Resized:
    """`symmetry.deepen` a checkpoint and write it in the names of the deeper architecture. Raises `WeightspaceError`.

    `to`: the deeper architecture, as --arch takes it; weights of new branches are drawn from the seed.
    """
    file = settings.open(path)
    task = splits(data, 2, settings.seed)[0] if data is not None else None
    shown = carried(example_for(file.template.architecture, task, example, settings.seed), file.net)
    settings.progress(f"deepening {path.name}", 0, 0)
    deep = more_layers(file.net, _architecture(to, settings, "no architecture"), shown)
    done = _resized(path, out, file.net, deep, [], shown)
    file.write(deep.tensors, out, "deepened")
    return done


def grow(
    path: Path, out: Path, *, outputs: int, layer: str | None, example: str | None, data: str | None, settings: Settings
) -> Resized:
    """`grow` a checkpoint and write it in the names and dtypes of its file. Raises `WeightspaceError`."""
    file = settings.open(path)
    task = splits(data, 2, settings.seed)[0] if data is not None else None
    shown = carried(example_for(file.template.architecture, task, example, settings.seed), file.net)
    wide = more_outputs(file.net, outputs, layer, settings.seed, shown)
    done = _resized(path, out, file.net, wide, [], shown)
    file.save(wide, out, f"{outputs} more outputs")
    return done


def _target(to: str, settings: Settings) -> float | Net:
    """A factor, or the network of an architecture."""
    try:
        return float(to)
    except ValueError:
        return _architecture(to, settings, "neither a factor, such as 2, nor an architecture")


def _architecture(to: str, settings: Settings, what: str) -> Net:
    """The network of an architecture, its weights drawn from the seed. Raises `ArchitectureError`."""
    if ":" not in to and not Path(to).exists():
        raise ArchitectureError(f"--to {to!r} is {what}, as --arch takes it")
    with seeded(settings.seed):
        return Net.of(architecture.find(to, [], settings.trust_code))


def _resized(path: Path, out: Path, net: Net, larger: Net, axes: list[tuple[str, int, int]], example: Any) -> Resized:
    """What there is to say. Raises `ArchitectureError` where the outputs changed by more than rounding."""
    before, after = (logits(one(carried(example, one))).detach().double() for one in (net, larger))
    after = after[..., : before.shape[-1]]
    drift = float((after - before).norm()) / (float(before.norm()) or 1.0)
    if not drift <= max(1e-3, 20 * _epsilon(net)):
        raise ArchitectureError(f"the outputs would change by {drift:.1e} of their size; nothing was written")
    shapes = [
        (name, tuple(tensor.shape), tuple(larger.tensors[name].shape))
        for name, tensor in net.tensors.items()
        if name in larger.tensors and tensor.shape != larger.tensors[name].shape
    ]
    had, has = _layers(net), _layers(larger)
    layers = [(kind, had[kind], has[kind]) for kind in has if has[kind] != had[kind]]
    return Resized(path.name, str(out), axes, shapes, layers, (net.weights.numel, larger.weights.numel), drift)


def _layers(net: Net) -> Counter[str]:
    """How many layers with weights there are of each class."""
    return Counter(type(m).__name__ for m in net.architecture.modules() if [*m.parameters(recurse=False)])


def _epsilon(net: Net) -> float:
    return float(torch.finfo(net.dtype).eps)
