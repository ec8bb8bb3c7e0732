"""One tensor of a checkpoint before it is read, and the words in which a file is refused."""

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
DIRECTORY = 12_000_000  # bytes of a zip's list of records
DTYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.bool, torch.complex64, torch.complex128),
    *(torch.uint64, torch.uint32, torch.uint16, torch.uint8),
)
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


class Opened(NamedTuple):
    """What a file holds: tensors, metadata, a line for all that was left out, and the name of what was `taken`."""

    entries: dict[str, Entry]
    metadata: dict[str, str]
    notes: list[str]
    taken: str = ""


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


_USUAL = {*"model net network module state dict weights params parameters best".split()}
_AVERAGED = {*"ema swa avg average averaged shadow polyak".split()}


def words(name: str) -> set[str]:
    """The words in a name: of \"stateDict_ema\", state, dict and ema."""
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)}


def averaged(name: str) -> bool:
    """Whether a part of a file is named as a running average of the weights beside it."""
    return bool(words(name) & _AVERAGED)


def matches(name: str, wanted: str) -> bool:
    """Whether a part of a file is meant by `wanted`: its name, or words of it."""
    return name == wanted or bool(words(wanted)) and words(wanted) <= words(name)


def chosen(path: Path | str, names: Iterable[str], wanted: str | None = None) -> str:
    """Which of several networks in a file is meant; "" is the one that stands under no name.

    The one that `wanted` names; else the only one; the only one that is no running average; the only one of a usual
    name ("state_dict", "model"). Raises `CheckpointError` that names them all where that leaves more than one.
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
    """Raise `CheckpointError` unless the tensor is a plain one."""
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
