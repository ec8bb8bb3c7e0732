"""What a measurement takes, known before it runs."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from weightspace.net.public import public

__all__ = ["Cost"]


@public
@dataclass(frozen=True)
class Cost:
    """Work and memory that a measurement takes, known before it runs; 0 is what does not occur in it.

    `bytes`: held beside the network and the graph of one batch. `products`: of a matrix with a vector. `passes`: over
    `batch` examples, or over all, forward and back. `steps`: of `batch` examples, of an optimiser. `draws`: of weights
    and an example. `examples`: passed forward and back, in all. `solver`, `rows`: who solves for so many outputs.
    """

    solver: str = ""
    rows: int = 0
    codes: int = 0
    steps: int = 0
    batch: int = 0
    draws: int = 0
    examples: int = 0
    products: int = 0
    passes: int = 0
    bytes: int = 0

    def data(self) -> dict[str, Any]:
        """What occurs, as plain data."""
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name)) or f.name == "bytes"}

    def __str__(self) -> str:
        some = f"{self.batch:,} examples" if self.batch else "the examples"
        products = 0 if self.passes else self.products
        counts = (
            (self.codes, "codes"), (self.steps, f"steps of {some}"), (self.draws, "draws"), (products, "products"),
            (self.passes, f"passes forward and back over {some}"),
        )  # fmt: skip
        *first, last = [f"{count:,} {what}" for count, what in counts if count] or ["nothing but memory"]
        return f"{', '.join(first)}{' and ' * bool(first)}{last}, {self.bytes / 2**20:,.0f} MiB"
