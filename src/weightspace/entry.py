"""One tensor of a checkpoint before it is read, and the words in which a file is refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from weightspace.net import WeightspaceError

__all__ = [
    "CheckpointError",
    "Entry",
    "Opened",
    "count",
    "dense",
    "is_size",
    "plausible",
    "refusal",
    "shape_of",
    "some",
]

AGAIN = "fetch or write it again"
SAFE = "load it where you trust it and save module.state_dict() as safetensors"
TENSORS = 100_000
HEADER = 25_000_000  # bytes of names and shapes that a file may hold
PT2 = "an exported program (.pt2) is code and was not opened", "if you trust it, pass --trust-code"
NUMBERS = 2**40  # a shape with more than this is no network's


class CheckpointError(WeightspaceError):
    """A file that cannot be read or written: one printable line, whatever names the file holds."""

    def __init__(self, message: str) -> None:
        line = "".join(c if c.isprintable() else " " for c in message)
        super().__init__(line if len(line) < 900 else line[:900] + "...")


class Entry(NamedTuple):
    """Shape and dtype of one tensor, and a function that reads it."""

    shape: torch.Size
    dtype: torch.dtype
    read: Callable[[], Tensor]


Opened = tuple[dict[str, Entry], dict[str, str], list[str]]  # tensors, metadata, notes


def refusal(path: Path | str, seen: str, do: str = AGAIN) -> CheckpointError:
    """One line: the file, what was seen, what to do."""
    return CheckpointError(f"{path}: {seen}; {do}")


def some(names: Iterable[object]) -> str:
    """The first three names, and how many more."""
    shown = [f"{name!r:.80}" for name in names]
    return ", ".join(shown[:3]) + (f" and {len(shown) - 3} more" if len(shown) > 3 else "")


def count(number: int) -> str:
    """A number as a person writes it."""
    return f"{number:,}" if number < 10**20 else "10^20 or more"


def shape_of(sizes: Iterable[int]) -> str:
    """A shape as a person writes it."""
    shown = [count(n).replace(",", "") for n in sizes]
    return f"[{', '.join(shown[:8])}{', ...' if len(shown) > 8 else ''}]"


def is_size(value: Any) -> bool:
    """Whether a value can be the size of something."""
    return type(value) is int and value >= 0


def plausible(sizes: Iterable[int]) -> bool:
    """Whether any network has a tensor of these sizes."""
    sizes = list(sizes)
    return len(sizes) <= 64 and math.prod(max(n, 1) for n in sizes) <= NUMBERS


def dense(path: Path, name: str, tensor: Tensor) -> None:
    """Raise `CheckpointError` unless the tensor is a plain one."""
    kinds = {
        "on the meta device, without data": tensor.is_meta,
        "quantised": tensor.is_quantized,
        "nested": tensor.is_nested,
        "sparse": tensor.layout is not torch.strided,
        f"a {type(tensor).__name__}": type(tensor) not in (Tensor, torch.nn.Parameter, torch.nn.Buffer),
    }
    for kind, found in kinds.items():
        if found:
            raise refusal(path, f"tensor {name!r} is {kind}", "give dense tensors")
