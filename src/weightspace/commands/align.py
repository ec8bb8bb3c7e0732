"""What `weightspace align` does: write a checkpoint with its units where another has them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weightspace.checkpoint import architecture, writer
from weightspace.checkpoint.architecture import ArchitectureError, Stored
from weightspace.commands.compare import Line, along
from weightspace.commands.workspace import Workspace, pair
from weightspace.metric.distance import euclidean
from weightspace.net.inputs import carried
from weightspace.net.net import Net
from weightspace.symmetry.align.match import apart
from weightspace.symmetry.group import Element
from weightspace.task.outputs import logits

__all__ = ["Aligned", "align"]


@dataclass(frozen=True)
class Aligned:
    """b moved to where it is nearest a: what changed, and how far the function did (|f - g f| / |f|: rounding)."""

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
        """What changed: label, as stored, aligned."""
        rows = [("distance to the target", f"{self.before:.4g}", f"{self.after:.4g}")]
        return rows + (self.line.rows() if self.line else [])

    def remarks(self) -> list[str]:
        """The sentences below the table."""
        said = [
            f"{self.moved:.0%} of the units were renumbered; the outputs changed by {self.function:.1g} of their size.",
            f"Matched by {self.method}: {self.why}.",
        ]
        return said + (self.line.remarks() if self.line else [])

    def data(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def align(space: Workspace, path: Path, to: Path, out: Path, *, force: bool = False) -> Aligned:
    """Write the checkpoint at `path` with its units where those of `to` are: names, dtypes, metadata stay."""
    fixed = space.load(to)
    net, source, metadata = architecture.load(space.template, path, space.trust_code)
    space.progress(f"matching the units of {path.name} to {to.name}", 0, 0)
    match = space.group.match(net, to=fixed, data=space.align_on, method=space.method, seed=space.seed)
    stored = Stored(source, space.template, partial(_moved, match.element))
    before, after = euclidean(fixed, net), apart(fixed, net, match.element)
    line = _aligned_line(space, fixed, net, match.element)
    outputs = _outputs(space, net)
    del fixed, net  # what is checked and written from here on is read from the file again
    function = _drift(space, outputs, stored)
    space.progress(f"writing {out.name}", 0, 0)
    writer.save(stored, out, force=force, metadata=metadata)
    names = pair(path, to)
    moved = match.element.difference(space.group.identity())
    told = (str(space.group), match.method, match.why, moved, before, after, function, list(space.group.notes), line)
    return Aligned(names, str(out), *told)


def _aligned_line(space: Workspace, a: Net, b: Net, element: Element) -> Line | None:
    if space.measure_on is None:
        return None
    return along(a, b, element(b), space.measure_on, space.align_on, progress=space.progress)


def _outputs(space: Workspace, net: Net) -> Tensor:
    with torch.no_grad():
        return logits(net(carried(space.example, net))).double()


def _drift(space: Workspace, outputs: Tensor, stored: Stored) -> float:
    """|f - g f| / |f| on the example. Raises `ArchitectureError` where that is more than rounding."""
    moved = space.template.load(stored)
    drift = float((_outputs(space, moved) - outputs).norm()) / (float(outputs.norm()) or 1.0)
    if not drift <= max(1e-3, 20 * float(torch.finfo(moved.dtype).eps)):
        raise ArchitectureError(f"the aligned network's outputs would be off by {drift:.1e}; nothing was written")
    return drift


def _moved(element: Element, name: str, tensor: Tensor) -> Tensor:
    """The element's action, in float32 where the dtype is coarser: factors would be rounded before they cancel."""
    if name not in element.group.tensors:
        return tensor
    wide = tensor.dtype in (torch.float16, torch.bfloat16)
    return element.move(name, tensor.float() if wide else tensor).to(tensor.dtype)
