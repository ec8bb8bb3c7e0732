"""The command that usually comes next, printed at the end of an answer, with the names that were given."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any

__all__ = ["GIVEN", "NEXT", "next_step"]

GIVEN: ContextVar[tuple[str, Mapping[str, Any]] | None] = ContextVar("given", default=None)  # file.function, parameters

NEXT = {  # the command that runs -> the next one, and the options that it is given too where there are any
    "read.read": ("compare a.safetensors b.safetensors --arch {arch}", "weights data example"),
    "compare.compare": ("merge {a} {b} --arch {arch} -o merged.safetensors", "weights data example limit"),
    "align.align": ("merge {to} {out} -o mean.safetensors", "arch data example limit"),
    "merge.merge": ("compare {checkpoints} {out}", "arch data example limit"),
    "extract.extract": ("merge {out} --base {base} --method passthrough -o whole.safetensors", ""),
    "perturb.perturb": ("stability {out} --data {data}", "arch limit"),
    "project.project": ("stability {out} --data {data}", "arch limit"),
    "capacity.capacity": ("walk {checkpoint} --keep {keep} --toward learn:{learn} -o path", "arch weights limit"),
    "stability.stability": (
        "perturb {checkpoint} --kind quantise --bits 8 -o rounded.safetensors",
        "arch weights data limit",
    ),
    "inform.inform": ("certify {checkpoint} --data {data}", "arch weights limit"),
    "certify.certify": ("stability {checkpoint} --data {data}", "arch weights limit"),
    "nearest.nearest": ("inform {checkpoints} --data {data}", "arch weights limit"),
}


def next_step() -> str | None:
    """The command line that usually follows the one that runs; None where a name in it was not given."""
    found = GIVEN.get()
    if found is None or found[0] not in NEXT or found[1].get("more"):  # a set: its answer says what to do
        return None
    if found[0] == "merge.merge" and not _is_network(found[1]):
        return None
    template, options = NEXT[found[0]]
    words = {name: text for name, value in found[1].items() if (text := _text(value))}
    try:
        line = f"weightspace {template.format(**words)}"
    except KeyError:
        return None
    return line + "".join(f" --{option} {words[option]}" for option in options.split() if option in words)


def _is_network(given: Mapping[str, Any]) -> bool:
    """Whether the first checkpoint can be compared as it was given: neither a recipe nor an adapter, with a network."""
    paths = given.get("checkpoints") or [""]
    return bool(given.get("arch")) or (Path(paths[0]) / "config.json").is_file()


def _text(value: Any) -> str:
    """A parameter as a word of the shell, of several the first; "" where there is none."""
    if isinstance(value, (list, tuple)):
        value = value[0] if value else None
    return "" if value is None or isinstance(value, bool) else shlex.quote(str(value))
