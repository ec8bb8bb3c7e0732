"""`weightspace align`: write a checkpoint with its units renumbered and rescaled to match another one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weightspace.checkpoint.architecture import ArchitectureError
from weightspace.checkpoint.stored import Stored
from weightspace.commands.compare import Line, along
from weightspace.commands.workspace import Workspace, file_names
from weightspace.metric.distance import euclidean
from weightspace.net.inputs import carried
from weightspace.net.net import Net
from weightspace.symmetry.align.match import apart
from weightspace.symmetry.element import Element
from weightspace.symmetry.fold import fold
from weightspace.task.outputs import logits

__all__ = ["Aligned", "align"]


@dataclass(frozen=True)
class Aligned:
    """A network aligned to another: distances before and after, and how much its outputs changed.

    `moved`: share of units that were renumbered; `function`: |f_after - f_before| / |f_before|, which is rounding.
    """

    names: tuple[str, str]
    out: str
    group: str
    method: str
    why: str
    moved: float
    before: float
    after: float
    function: float
    notes: list[str]
    line: Line | None = None

    def rows(self) -> list[tuple[str, str, str]]:
        """Rows of the table: label, as stored, aligned."""
        rows = [("distance to the target", f"{self.before:.4g}", f"{self.after:.4g}")]
        return rows + (self.line.rows() if self.line else [])

    def remarks(self) -> list[str]:
        """The sentences below the table."""
        said = [
            f"{self.moved:.0%} of the units were renumbered; the outputs changed by {self.function:.1g} of their size.",
            f"Matched by {self.method}: {self.why}.",
        ]
        if self.method == "refine":
            said.append("Refined scales make the line between the networks flat; the distance may be larger for it.")
        return said + (self.line.remarks() if self.line else [])

    def data(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def align(space: Workspace, path: Path, to: Path, out: Path) -> Aligned:
    """Write the checkpoint at `path` aligned to the one at `to`; names, dtypes and metadata stay those of `path`."""
    fixed, file, settings = space.load(to), space.open_file(path), space.settings
    net = file.net
    settings.progress(f"matching the units of {path.name} to {to.name}", 0, 0)
    group = space.group.foldable(fixed, net)
    match = group.match(net, to=fixed, data=space.align_on, method=space.method, seed=settings.seed)
    stored = file.moved(partial(_moved, match.element, match.element.on(net, like=fixed)))
    before, after = euclidean(fixed, net), apart(fixed, net, match.element)
    line = _aligned_line(space, fixed, net, match.element)
    outputs = _outputs(space, net)
    file = replace(file, net=file.template)
    del fixed, net  # what is checked and written from here on is read from the file again
    function = _drift(space, outputs, stored)
    settings.progress(f"writing {out.name}", 0, 0)
    file.write(stored, out)
    first, second = file_names(path, to)
    return Aligned(
        names=(first, second),
        out=str(out),
        group=str(group),
        method=match.method,
        why=match.why,
        moved=match.element.difference(group.identity()),
        before=before,
        after=after,
        function=function,
        notes=list(group.notes),
        line=line,
    )


def _aligned_line(space: Workspace, a: Net, b: Net, element: Element) -> Line | None:
    if space.measure_on is None:
        return None
    return along(
        a,
        b,
        fold(element.group, element(b), like=a),
        space.measure_on,
        space.align_on,
        progress=space.settings.progress,
    )


def _outputs(space: Workspace, net: Net) -> Tensor:
    with torch.no_grad():
        return logits(net(carried(space.example, net))).double()


def _drift(space: Workspace, outputs: Tensor, stored: Stored) -> float:
    """|f - g f| / |f| on the example. Raises `ArchitectureError` where that is more than rounding."""
    moved = space.template.load(stored)
    drift = float((_outputs(space, moved) - outputs).norm()) / (float(outputs.norm()) or 1.0)
    if not drift <= max(1e-3, 20 * float(torch.finfo(moved.dtype).eps)):
        raise ArchitectureError(f"alignment would change the outputs by {drift:.1e} of their size; nothing was written")
    return drift


def _moved(element: Element, move: Callable[[str, Tensor], Tensor], name: str, tensor: Tensor) -> Tensor:
    """The tensor moved as `Element.on` does, or left alone where the group does not reach it."""
    return move(name, tensor) if name in element.group.tensors else tensor
