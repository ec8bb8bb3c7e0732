"""The layers of a network by the names of its tensors: `model.layers.3.mlp.weight` is of layer 3 of `model.layers.`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from weightspace.checkpoint.refusal import some
from weightspace.net.errors import WeightspaceError

__all__ = ["Stack", "one_stack", "position", "stacks"]

_NUMBERED = re.compile(r"(?P<prefix>(?:.*?[._])?)(?P<number>\d+)(?P<rest>[._].*)")
_BEFORE = re.compile(r"(.*[._])?(\w*emb\w*|wte|wpe|shared|\w*patch\w*|\w*(cls|mask|class)_token|\w*stem\w*)([._].*)?")


@dataclass(frozen=True)
class Stack:
    """Layers of one form, numbered from 0 to `count` - 1 after `prefix`; `tensors` is how many they have together."""

    prefix: str
    count: int
    tensors: int

    def place(self, name: str) -> tuple[int, str] | None:
        """The number of the layer of a tensor, and the rest of its name; None of a tensor outside."""
        found = _NUMBERED.fullmatch(name)
        if found is None or found["prefix"] != self.prefix:
            return None
        return int(found["number"]), found["rest"]

    def name(self, layer: int, rest: str) -> str:
        """The name of a tensor of a layer."""
        return f"{self.prefix}{layer}{rest}"

    def depth(self, name: str) -> float | None:
        """0 in the first layer, 1 in the last (and in the only one); None outside."""
        place = self.place(name)
        return None if place is None else place[0] / (self.count - 1) if self.count > 1 else 1.0


def stacks(names: Iterable[str]) -> list[Stack]:
    """The stacks of layers, the largest first: numbers from 0 on without a gap after one prefix.

    >>> from weightspace.merging.folders.layers import stacks
    >>> stacks(["wte.weight", "h.0.mlp.weight", "h.0.ln.bias", "h.1.mlp.weight", "h.1.ln.bias"])
    [Stack(prefix='h.', count=2, tensors=4)]
    """
    found: dict[str, dict[int, int]] = {}
    for name in names:
        if (place := _NUMBERED.fullmatch(name)) is not None and len(place["number"]) < 7:
            counts = found.setdefault(place["prefix"], {})
            counts[int(place["number"])] = counts.get(int(place["number"]), 0) + 1
    whole = [
        Stack(prefix, len(counts), sum(counts.values()))
        for prefix, counts in found.items()
        if sorted(counts) == [*range(len(counts))]
    ]
    largest = max((stack.tensors for stack in whole), default=0)
    return sorted((s for s in whole if 4 * s.tensors >= largest), key=lambda stack: -stack.tensors)


def one_stack(names: Iterable[str], where: str) -> Stack:
    """The one stack of a network. Raises `WeightspaceError` where it has none, or several of about one size."""
    found = stacks(names)
    if not found:
        raise WeightspaceError(f"{where} has no numbered layers, so none can be taken from it")
    if len(found) > 1 and 2 * found[1].tensors >= found[0].tensors:
        prefixes = some(stack.prefix for stack in found)
        raise WeightspaceError(f"{where} has several stacks of layers, {prefixes}; give models in place of slices")
    return found[0]


def position(name: str) -> str:
    """Whether a tensor outside of the layers stands "before" or "after" them: embeddings, or norms and heads.

    >>> from weightspace.merging.folders.layers import position
    >>> position("model.embed_tokens.weight"), position("lm_head.weight")
    ('before', 'after')
    """
    return "before" if _BEFORE.fullmatch(name) else "after"
