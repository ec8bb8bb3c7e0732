"""Several checkpoints of one architecture: its symmetry group, and examples to align and to measure on."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from weightspace.checkpoint import architecture, stored
from weightspace.checkpoint.architecture import ArchitectureError
from weightspace.commands.data import splits
from weightspace.commands.settings import Opened, Settings, must_exist
from weightspace.net.errors import SymmetryError, first_line
from weightspace.net.inputs import carried
from weightspace.net.net import Net
from weightspace.symmetry.align.match import METHODS, Method
from weightspace.symmetry.symmetry import Symmetry
from weightspace.task.task import Task

__all__ = ["Workspace", "example_for", "file_names"]


_LARGE = 1 << 20  # weights: their memory is worth the quarter of a second that a search for cycles takes


@dataclass(frozen=True)
class Workspace:
    """An architecture, its verified group, and disjoint examples to align and to measure on."""

    template: Net
    example: Any
    group: Symmetry
    align_on: Task | None
    measure_on: Task | None
    settings: Settings
    method: Method = "auto"

    @classmethod
    def open(
        cls,
        paths: Sequence[Path],
        settings: Settings,
        data: str | None = None,
        example: str | None = None,
        *,
        limit: int = 2048,
        method: str = "auto",
    ) -> Workspace:
        """Find the architecture, check that the checkpoints fit it, open the data, read the group; load no weights.

        Raises `WeightspaceError`.
        """
        _return_memory()
        if method not in ("auto", *METHODS):
            raise ArchitectureError(f"--method {method}: choose auto, {', '.join(METHODS)}")
        must_exist(*paths)
        module = architecture.find(settings.arch, list(paths), settings.trust_code)
        align_on, measure_on = splits(data, limit, settings.seed) if data is not None else (None, None)
        shown = example_for(module, align_on, example, settings.seed)
        net = Net.of(module)
        del module
        for path in paths:
            stored.check(net, path)
        shown = carried(shown, net)
        _try(net, shown)
        net = net.at(net.weights.map(_meta))
        settings.progress(f"reading the symmetry of {type(net.architecture).__name__}", 0, 0)
        group = _group(net, shown, paths, settings)
        hollow = net.at(net.weights, net.state.map(_meta))
        if sum(tensor.numel() for tensor in net.weights.values()) > _LARGE:
            gc.collect()  # the exported graph is a cycle that holds the probe's weights
        return cls(hollow, shown, group, align_on, measure_on, settings, cast(Method, method))

    def open_file(self, path: Path) -> Opened:
        """The network of a checkpoint, and what it takes to write one like it. Raises `WeightspaceError`."""
        return self.settings.load(self.template, path)

    def load(self, path: Path) -> Net:
        """The network of a checkpoint. Raises `WeightspaceError`."""
        self.settings.progress(f"loading {path.name}", 0, 0)
        return self.open_file(path).net


def file_names(*paths: Path) -> list[str]:
    """What to call files: by name where the names differ, else by path."""
    short = [path.name for path in paths]
    return short if len(set(short)) == len(short) else [str(path) for path in paths]


def _group(net: Net, example: Any, paths: Sequence[Path], settings: Settings) -> Symmetry:
    try:
        return Symmetry.of(net, example, verify=True)
    except SymmetryError:  # some networks fail at random weights: try again at their own initialisation
        return Symmetry.of(architecture.find(settings.arch, list(paths), settings.trust_code), example)


def _meta(tensor: Tensor) -> Tensor:
    return tensor.to("meta")


def example_for(module: nn.Module, data: Task | None, text: str | None, seed: int) -> Any:
    """The example that --example describes, else one of the data, else one that the module itself names."""
    if text is not None:
        return architecture.parse_example(text, seed)
    return data.example(2) if data is not None else architecture.example_of(module)


def _return_memory() -> None:
    """Have large blocks go back to the system when they are free; glibc would keep twice the weights in reserve."""
    threshold, size = -3, 1 << 22  # M_MMAP_THRESHOLD; fixed, where by default it grows
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).mallopt(threshold, size)


def _try(net: Net, example: Any) -> None:
    try:
        with torch.no_grad():
            net(carried(example, net))
    except Exception as error:
        name, reason = type(net.architecture).__name__, first_line(error)
        raise ArchitectureError(
            f"{name} does not take an input of shape {_shape(example)} ({reason}); give --data or --example that fits"
        ) from error


def _shape(example: Any) -> Any:
    if isinstance(example, Tensor):
        return tuple(example.shape)
    if isinstance(example, dict):
        return {key: _shape(value) for key, value in example.items()}
    return [_shape(value) for value in example] if isinstance(example, (list, tuple)) else type(example).__name__
