"""Seeds of streams of random numbers that do not overlap, derived from one seed."""

from __future__ import annotations

import hashlib

__all__ = ["derived"]


def derived(seed: int, *labels: str | int) -> int:
    """The seed of a stream of its own: a hash of (seed, labels), from 0 to 2^63 - 1.

    `labels`: what the numbers are for, and which of several they are. Other labels or another seed give independent
    numbers; `seed + k` would give seed 0 the numbers that seed 1 draws for something else.

    >>> from weightspace.net.seeds import derived
    >>> derived(0, "draw", 1) == derived(0, "draw", 1), derived(0, "draw", 1) == derived(1, "draw", 0)
    (True, False)
    """
    text = "\x00".join(map(str, (seed, *labels)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
