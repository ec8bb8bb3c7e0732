"""The cost of a measurement in compute and memory, before it runs."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from weightspace.net.public import public

__all__ = ["Cost"]


@public
@dataclass(frozen=True)
class Cost:
    """The compute and memory that a measurement takes, before it runs; 0 for what it does not use.

    `bytes`: memory beside the network and the graph of one batch. `products`: matrix-vector products. `passes`: forward
    and backward passes over `batch` examples, or over all. `steps`: optimiser steps of `batch` examples. `draws`: Monte
    Carlo samples of the weights, each with an example. `examples`: examples passed forward and backward in total.
    `solver`, `rows`: the name of the linear solver and the number of its rows. `codes`: weight distributions that are
    trained.

    >>> import weightspace as ws
    >>> str(ws.linear.cost("trace", n=1000, probes=30))
    '30 products, 1 MiB'
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
        """The entries that are not 0, by name; `bytes` always."""
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name)) or f.name == "bytes"}

    def __str__(self) -> str:
        some = f"{self.batch:,} examples" if self.batch else "the examples"
        products = 0 if self.passes else self.products
        counts = (
            (self.codes, "codes"), (self.steps, f"steps of {some}"), (self.draws, "draws"), (products, "products"),
            (self.passes, f"passes forward and back over {some}"),
        )  # fmt: skip
        told = [f"{count:,} {what}" for count, what in counts if count]
        *first, last = told or [f"{self.examples:,} examples passed" if self.examples else "nothing but memory"]
        return f"{', '.join(first)}{' and ' * bool(first)}{last}, {self.bytes / 2**20:,.0f} MiB"
