"""Gates and activations of a network on the examples of a task, and the outputs under given gates.

A unit is an output of a ReLU-type function of a pre-activation z; its gate is p = [z > 0]. Units are recorded where
torch's functions are called, so that modules and functional calls are treated alike; forward hooks tell which module
made the call, and are always removed. A layer is named after its module, with the function's name where that module
does more, and a number from the second call on: "fc1.relu", "block.act#2".
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from weightspace.checkpoint import files
from weightspace.inside.calls import LINEAR, SMOOTH, UNITS, Call, Meet, rows_of, watching, whole
from weightspace.net.errors import WeightspaceError
from weightspace.net.inputs import carried, leaves
from weightspace.net.net import Net, checked
from weightspace.net.public import public
from weightspace.task.examples import stacked
from weightspace.task.task import Task

if TYPE_CHECKING:
    from jaxtyping import Bool

__all__ = ["Gates", "features", "forced", "gates", "unit_outputs"]


# ------------------------------------------------------------------ gates


@public
@dataclass(frozen=True)
class Gates:
    """The gates of a network on examples: P[i, u] is 1 where unit u is on for example i. Made by `gates`.

    One bit each, packed: a row of bytes per example in `bits`, which may be mapped from a file. `layers`: layer ->
    number of its units, in the order in which the network runs them; `p[layer]` is Bool[image, unit] and `len(p)` the
    number of examples. `inexact`: layers whose function has no kink (GELU, SiLU and the like), where "on" means a
    positive pre-activation. `examples`: a checksum for each example, by which gates of different examples are refused.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> p = ws.gates(task)(net)
    >>> p.layers, len(p), p["2"].shape
    ({'2': 16}, 60, torch.Size([60, 16]))
    >>> len(p.take([0, 1, 2]))
    3
    """

    bits: np.ndarray
    layers: dict[str, int]
    inexact: tuple[str, ...] = ()
    task: Task | None = field(default=None, compare=False, repr=False)
    examples: np.ndarray | None = field(default=None, compare=False, repr=False)  # a checksum of the inputs of each

    def __len__(self) -> int:
        return len(self.bits)

    @property
    def units(self) -> int:
        """The number of units of all layers."""
        return sum(self.layers.values())

    def span(self, layer: str | None = None) -> tuple[int, int]:
        """The range (first, last + 1) of a layer's units among all; raises `WeightspaceError` for unknown layers."""
        if layer is None:
            return 0, self.units
        if layer not in self.layers:
            raise WeightspaceError(f"no layer {layer!r} among the gates; there are {', '.join(self.layers)}")
        names = list(self.layers)
        first = sum(self.layers[name] for name in names[: names.index(layer)])
        return first, first + self.layers[layer]

    def columns(self, first: int, last: int, rows: slice = slice(None)) -> np.ndarray:
        """The gates of units first to last - 1, of all examples or some, as bytes 0 and 1."""
        low, high = first // 8, -(-last // 8)
        return np.unpackbits(self.bits[rows, low:high], axis=1)[:, first - 8 * low : last - 8 * low]

    def __getitem__(self, layer: str) -> Bool[Tensor, "image unit"]:
        return torch.from_numpy(self.columns(*self.span(layer)).view(np.bool_))

    def everything(self) -> Bool[Tensor, "image unit"]:
        """The gates of all layers side by side."""
        return torch.from_numpy(self.columns(0, self.units).view(np.bool_))

    def take(self, rows: Sequence[int] | Tensor) -> Gates:
        """The gates of some examples."""
        some = np.asarray(rows)
        examples = None if self.examples is None else self.examples[some]
        return Gates(self.bits[some], self.layers, self.inexact, examples=examples)

    def check(self, examples: np.ndarray | None) -> None:
        """Raise `WeightspaceError` where the checksums tell that these gates are of other examples."""
        if self.examples is None or examples is None or np.array_equal(self.examples, examples):
            return
        first = int(np.flatnonzero(self.examples != examples)[0])
        raise WeightspaceError(
            f"the paths are of different examples: number {first} has other inputs; take the gates of one task, or "
            "compare p.everything() if different examples are meant"
        )


@public
def gates(task: Task, file: str | PathLike[str] | None = None) -> Callable[[Net], Gates]:
    """A function of a network that returns its `Gates` on `task`: which units are on, p_i(u) = [z_u(x_i) > 0].

    Units are the outputs of ReLU, leaky and parametric ReLU, clamp at zero, and also of GELU, SiLU, ELU, Mish and the
    like, by the sign of the pre-activation. Every position of a feature map is a unit. In evaluation mode, one forward
    pass; memory: one batch, and one bit per unit and example, kept in `file` (.npy) where one is given. Raises
    `WeightspaceError` for a network without such units, NaN (the layer is named), or units whose first axis is not the
    example. Source: Image functions in neural networks: a perspective on generalization (anonymous, 2021).

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> p = ws.gates(task)(net)
    >>> p.layers
    {'2': 16}
    >>> p["2"].shape, p["2"].dtype
    (torch.Size([60, 16]), torch.bool)
    """

    @public
    def gates(net: Net) -> Gates:
        kept: dict[str, np.ndarray] = {}
        layers: dict[str, int] = {}
        smooth: list[str] = []
        sheets: list[_Sheet] = []
        examples: list[np.ndarray] = []
        checked(net)
        _steady(task)
        with ExitStack() as places:
            for x, _ in task.batches():
                size = len(leaves(x)[0])
                examples.append(_numbers(x))
                passed(net, task, carried(x, net), UNITS, _noted(kept, smooth, size))
                found = {name: z.shape[1] for name, z in kept.items()}
                if not found:
                    name = type(net.architecture).__name__
                    raise WeightspaceError(f"{name} has no gates: it calls no ReLU, GELU, SiLU or the like")
                if not sheets:
                    layers.update(found)
                    sheets.append(_Sheet(places, file, len(task), -(-sum(found.values()) // 8)))
                elif found != layers:
                    raise WeightspaceError("the layers differ from batch to batch; give examples of one shape")
                sheets[0].add(np.packbits(np.concatenate(list(kept.values()), 1), axis=1))
                kept.clear()
        return Gates(sheets[0].done(), layers, tuple(dict.fromkeys(smooth)), task, np.concatenate(examples))

    return gates


def _steady(task: Task) -> None:
    """Start a second pass over data that are not in memory, so that data drawn anew at every pass are refused."""
    if not task.in_memory:
        next(task.batches())


def _numbers(x: Any) -> np.ndarray:
    """A checksum of the inputs of every example of a batch, whatever the batch size and the precision."""
    parts = [part.detach().cpu() for part in leaves(x)]
    plain = [part.float() if part.is_floating_point() else part for part in parts]
    rows = [part.reshape(len(part), -1).contiguous().view(torch.uint8).numpy() for part in plain if part.numel()]
    return np.array([zlib.crc32(b"".join(row[i].data for row in rows)) for i in range(len(parts[0]))], np.uint32)


def _noted(kept: dict[str, np.ndarray], smooth: list[str], size: int) -> Meet:
    def meet(label: str, name: str, z: Tensor, call: Call) -> Tensor:
        kept[label] = (rows_of(label, whole(label, z), size) > 0).cpu().numpy()
        if name in SMOOTH:
            smooth.append(label)
        return call()

    return meet


class _Sheet:
    """A matrix filled row by row, in memory or in a .npy file that is written and not mapped, to hold no memory.

    When `places` closes, the finished file replaces an older one; arrays mapped from the older one stay valid.
    """

    def __init__(
        self, places: ExitStack, file: str | PathLike[str] | None, rows: int, wide: int, dtype: Any = np.uint8
    ) -> None:
        self.file, self.row = file, 0
        self.whole = np.empty((rows, wide), dtype) if file is None else None
        if file is not None:
            try:
                path = places.enter_context(files.beside(Path(file)))
                empty = np.lib.format.open_memmap(path, "w+", dtype, (rows, wide))
                self.stream = places.enter_context(open(path, "r+b"))
            except OSError as error:
                raise WeightspaceError(
                    f"{file}: cannot be written ({error.strerror or error}); check the path"
                ) from error
            self.stream.seek(empty.offset)

    def add(self, values: np.ndarray) -> None:
        if self.whole is None:
            self.stream.write(np.ascontiguousarray(values).data)
        else:
            self.whole[self.row : self.row + len(values)] = values
        self.row += len(values)

    def done(self) -> np.ndarray:
        if self.whole is None and self.file is not None:
            self.whole = np.load(self.file, mmap_mode="r+")
        assert self.whole is not None
        return self.whole


@torch.no_grad()
def passed(net: Net, task: Task, x: Any, functions: Mapping[Any, str], meet: Meet) -> Tensor:
    with watching(net, functions, meet):
        return task.forward(net, x)


# ------------------------------------------------------------------ features


@public
def features(
    task: Task,
    of: Literal["units", "maps"] = "units",
    dtype: torch.dtype = torch.float32,
    folder: str | PathLike[str] | None = None,
) -> Callable[[Net], dict[str, Tensor]]:
    """A function of a network that returns its activations on `task`: {layer: tensor (example, unit)}.

    `of`: "units" for the outputs of ReLU-type functions (the layers of `gates`), "maps" for the outputs of linear maps
    and convolutions. In evaluation mode. With `folder`, every layer is kept in a file there, and memory holds one
    batch. Raises `WeightspaceError` for another dtype than a floating one of 16, 32 or 64 bits, a network without such
    layers, or NaN (the layer is named).

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> {layer: tuple(a.shape) for layer, a in ws.features(task)(net).items()}
    {'2': (60, 16)}
    >>> {layer: tuple(a.shape) for layer, a in ws.features(task, of="maps")(net).items()}
    {'1': (60, 16), '3': (60, 10)}
    """
    functions = {"units": UNITS, "maps": LINEAR}[of]
    if dtype not in (torch.float16, torch.float32, torch.float64):
        raise WeightspaceError(f"activations are kept as float16, float32 or float64, not {dtype}")

    @public
    def features(net: Net) -> dict[str, Tensor]:
        found: dict[str, _Sheet] = {}
        _steady(task)
        with ExitStack() as places:
            for x, _ in task.batches(checked(net)):
                passed(net, task, x, functions, _kept(found, places, folder, len(task), len(leaves(x)[0]), dtype))
        if not found:
            name = type(net.architecture).__name__
            raise WeightspaceError(f"{name} has no layers of this kind: {of}; take the other `of`")
        return {label: torch.from_numpy(sheet.done()).to(dtype) for label, sheet in found.items()}

    return features


def _kept(
    found: dict[str, _Sheet],
    places: ExitStack,
    folder: str | PathLike[str] | None,
    total: int,
    size: int,
    dtype: torch.dtype,
) -> Meet:
    plain = {torch.float16: np.float16, torch.float32: np.float32, torch.float64: np.float64}

    def meet(label: str, name: str, z: Tensor, call: Call) -> Tensor:
        out = call()
        values = rows_of(label, whole(label, out), size).to("cpu", dtype)
        if label not in found:
            safe = "".join(c if c.isalnum() else "-" for c in label)
            file = None if folder is None else f"{folder}/{len(found):03d}-{safe}.npy"
            found[label] = _Sheet(places, file, total, values.shape[1], plain[dtype])
        found[label].add(values.numpy())
        return out

    return meet


@public
def unit_outputs(net: Net, task: Task, x: Any) -> dict[str, Tensor]:
    """The activations of every ReLU-type layer for a batch, and the network's "outputs", differentiable in the weights.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> {n: tuple(a.shape) for n, a in ws.inside.unit_outputs(net, task, task.example(3)).items()}
    {'2': (3, 16), 'outputs': (3, 10)}
    """
    found: dict[str, Tensor] = {}

    def meet(label: str, name: str, z: Tensor, call: Call) -> Tensor:
        found[label] = call()
        return found[label]

    with watching(net, UNITS, meet):
        outputs = task.forward(net, x)
    return {**found, "outputs": outputs}


# ------------------------------------------------------------------ given gates


@public
@torch.no_grad()
def forced(net: Net, gates: Gates, task: Task | None = None) -> Tensor:
    """The outputs f(x_i) under given gates: every unit gives p_i(u) z_u, whatever the sign of its pre-activation z_u.

    With the gates of another network of the same architecture, this is the old path with new weights. `task` is the
    one on whose examples the gates were taken, by default the one stored in them. A leaky ReLU has its own slope where
    the gate is off; max pooling still chooses by itself. Raises `WeightspaceError` for gates of other layers or other
    examples, or of functions without a kink (GELU, SiLU), which no gate makes linear. Source: as `gates`; equation 9.

    >>> import torch, weightspace as ws
    >>> net, task = ws.demo.example()
    >>> own = ws.forced(net, ws.gates(task)(net))
    >>> torch.allclose(own, task.outputs(net), atol=1e-4)
    True
    >>> other, _ = ws.demo.example(1)
    >>> ws.forced(other, ws.gates(task)(net)).shape     # the weights of one, the paths of another
    torch.Size([60, 10])
    """
    checked(net)
    task = task or gates.task
    if task is None:
        raise WeightspaceError("these gates do not know their task; give task=")
    if gates.inexact:
        raise WeightspaceError(f"layer {gates.inexact[0]} has no kink, so that no gate makes it linear; take ReLU")
    if len(task) != len(gates):
        raise WeightspaceError(f"gates of {len(gates)} examples do not fit a task of {len(task)}")
    outputs, examples, row = [], list[np.ndarray](), 0
    for x, _ in task.batches():
        size, met = len(leaves(x)[0]), list[str]()
        examples.append(_numbers(x))
        outputs.append(passed(net, task, carried(x, net), UNITS, _given(gates, slice(row, row + size), met)))
        if len(met) < len(gates.layers):
            raise WeightspaceError(f"the network has no layer {next(n for n in gates.layers if n not in met)}")
        row += size
    gates.check(np.concatenate(examples))
    return stacked(*outputs)


def _given(gates: Gates, rows: slice, met: list[str]) -> Meet:
    def meet(label: str, name: str, z: Tensor, call: Call) -> Tensor:
        if label not in gates.layers or z.numel() != (rows.stop - rows.start) * gates.layers[label]:
            raise WeightspaceError(f"layer {label} of {tuple(z.shape)} does not fit the gates: {gates.layers}")
        met.append(label)
        on = torch.from_numpy(gates.columns(*gates.span(label), rows).view(np.bool_))
        return torch.where(on.reshape(z.shape).to(z.device), z, call(-torch.ones_like(z)) * -z)

    return meet
