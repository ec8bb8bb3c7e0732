"""Errors of checkpoints, limits on what a file may hold, and the entries of a file before they are read."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from weightspace.net.errors import WeightspaceError

__all__ = [
    "CheckpointError",
    "DTYPES",
    "Entry",
    "Opened",
    "averaged",
    "chosen",
    "count",
    "dense",
    "is_size",
    "matches",
    "plausible",
    "refusal",
    "shape_of",
    "some",
    "words",
]


AGAIN = "fetch or write it again"
SAFE = "load it where you trust it and save module.state_dict() as safetensors"
TENSORS = 100_000
HEADER = 25_000_000  # bytes of names and shapes that a file may hold
PT2 = "an exported program (.pt2) is code and was not opened", "if you trust it, pass --trust-code"
DIRECTORY = 12_000_000  # bytes of a zip's directory
DTYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.bool, torch.complex64, torch.complex128),
    *(torch.uint64, torch.uint32, torch.uint16, torch.uint8),
)
NUMBERS = 2**40  # the most entries that a tensor may have


class CheckpointError(WeightspaceError):
    """A file that cannot be read or written. The message is one printable line, whatever names the file holds."""

    def __init__(self, message: str) -> None:
        line = "".join(c if c.isprintable() else " " for c in message)
        super().__init__(line if len(line) < 900 else line[:900] + "...")


class Entry(NamedTuple):
    """One tensor of a file before it is read: its shape, its dtype, and a function that reads it, or a flat part."""

    shape: torch.Size
    dtype: torch.dtype
    read: Callable[..., Tensor]


class Opened(NamedTuple):
    """An opened file: its tensors, metadata, notes of what was left out, and the name of the network `taken`."""

    entries: dict[str, Entry]
    metadata: dict[str, str]
    notes: list[str]
    taken: str = ""


def refusal(path: Path | str, seen: str, do: str = AGAIN) -> CheckpointError:
    """A `CheckpointError` with the file, what was seen, and what to do."""
    return CheckpointError(f"{path}: {seen}; {do}")


def some(names: Iterable[object]) -> str:
    """The first three names as text, and the number of the others."""
    shown = [f"{name!r:.80}" for name in names]
    return ", ".join(shown[:3]) + (f" and {len(shown) - 3} more" if len(shown) > 3 else "")


def count(number: int) -> str:
    """A number as text, with commas between thousands."""
    return f"{number:,}" if number < 10**20 else "10^20 or more"


def shape_of(sizes: Iterable[int]) -> str:
    """A shape as text, at most eight sizes."""
    shown = [count(n).replace(",", "") for n in sizes]
    return f"[{', '.join(shown[:8])}{', ...' if len(shown) > 8 else ''}]"


def is_size(value: Any) -> bool:
    """Whether a value is a non-negative int."""
    return type(value) is int and value >= 0


def plausible(sizes: Iterable[int]) -> bool:
    """Whether a tensor of these sizes is within the limits: 64 axes, `NUMBERS` entries."""
    sizes = list(sizes)
    return len(sizes) <= 64 and math.prod(max(n, 1) for n in sizes) <= NUMBERS


_USUAL = {*"model net network module state dict weights params parameters best".split()}
_AVERAGED = {*"ema swa avg average averaged shadow polyak".split()}


def words(name: str) -> set[str]:
    """The words in a name, in lower case: of "stateDict_ema", state, dict and ema."""
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)}


def averaged(name: str) -> bool:
    """Whether a name is that of a running average of weights, such as "ema"."""
    return bool(words(name) & _AVERAGED)


def matches(name: str, wanted: str) -> bool:
    """Whether a name is `wanted`, or contains its words."""
    return name == wanted or bool(words(wanted)) and words(wanted) <= words(name)


def chosen(path: Path | str, names: Iterable[str], wanted: str | None = None) -> str:
    """The name of the network to take from a file with several; "" is the one at the top level.

    The one that `wanted` names; else the only one; else the only one that is not a running average; else the only one
    with a usual name ("state_dict", "model"). Raises `CheckpointError` with the names where that is not unique.
    """
    names = list(names)
    if wanted is not None and len(names) > 1:
        named = [name for name in names if name == wanted] or [name for name in names if matches(name, wanted)]
        if len(named) != 1:
            seen = f"has {'several' if named else 'no'} weights called {wanted!r}, but {some(named or names)}"
            raise refusal(path, seen, "choose one of these names")
        return named[0]
    plain = names if len(names) == 1 else [name for name in names if not averaged(name)]
    usual = plain if len(plain) == 1 else [name for name in plain if name and words(name) <= _USUAL]
    if len(usual) != 1:
        raise refusal(path, f"holds several networks, {some(names)}", "choose one, as --weights NAME")
    return usual[0]


def dense(path: Path, name: str, tensor: Tensor) -> None:
    """Raise `CheckpointError` unless a tensor is dense, with data, and of a common dtype."""
    kinds = {
        "on the meta device, without data": tensor.is_meta,
        "quantised": tensor.is_quantized,
        "nested": tensor.is_nested,
        "sparse": tensor.layout is not torch.strided,
        f"of {tensor.dtype}, packed or new": tensor.dtype not in DTYPES,
        f"a {type(tensor).__name__}": type(tensor) not in (Tensor, torch.nn.Parameter, torch.nn.Buffer),
    }
    for kind, found in kinds.items():
        if found:
            raise refusal(path, f"tensor {name!r} is {kind}", "give dense tensors of float32 or another common dtype")
