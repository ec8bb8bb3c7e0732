"""`Layers`: the tensors of a member for a look: shapes, dtypes and norms, within limits of size and time."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from sqlalchemy import select
from torch import Tensor

from weightspace.atlas.members import Member
from weightspace.atlas.tables import architectures
from weightspace.checkpoint import files
from weightspace.net.errors import WeightspaceError
from weightspace.net.plain import plain
from weightspace.net.weights import dtypes_of
from weightspace.symmetry import saved
from weightspace.symmetry.symmetry import Symmetry
from weightspace.web.members import Members

__all__ = ["Layers"]

_LARGEST = 512 << 20  # bytes of a network that is read for a look
_KEPT = 64  # networks whose norms are remembered
_TOGETHER = 2  # networks that are read at the same time
_LISTED = 20_000  # tensors of one network


class Layers:
    """What the layers of members are; norms are remembered by content."""

    def __init__(self, members: Members) -> None:
        self.members = members
        self._known: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self._lock, self._some = threading.Lock(), threading.BoundedSemaphore(_TOGETHER)

    def of(self, member: Member) -> dict[str, Any]:
        """`layers`, `norm`, `problem` and `group` of a member, as the API shows them."""
        with self._lock:
            found = self._known.get(member.key)
        if found is None:
            found = self._read(member)
            if not found["problem"]:
                self._remember(member.key, found)
        return {**found, "group": self._group(member)}

    def _remember(self, key: str, found: dict[str, Any]) -> None:
        with self._lock:
            self._known[key] = found
            while len(self._known) > _KEPT:
                self._known.popitem(last=False)

    def _read(self, member: Member) -> dict[str, Any]:
        shapes = next((a.shapes for a in self.members.atlas.architectures() if a.fingerprint == member.fingerprint), {})
        rows: dict[str, dict[str, Any]] = {
            name: {"name": name, "shape": [*shape], "dtype": member.dtype, "numbers": math.prod(shape), "norm": None}
            for name, shape in [*shapes.items()][:_LISTED]
        }
        problem = ""
        if member.nbytes > _LARGEST:
            problem = f"its {member.nbytes / 1e9:.1f} GB are not read for a look, so that no norms are shown"
        else:
            try:
                with self._some:
                    self._measure(member, rows)
            except WeightspaceError as error:
                problem = str(error).removeprefix(f"{member.name}: ")
        norms = [row["norm"] for row in rows.values()]
        whole = math.sqrt(sum(x * x for x in norms if x is not None)) if norms and None not in norms else None
        found: dict[str, Any] = plain({"layers": [*rows.values()], "norm": whole, "problem": problem})
        return found

    def _measure(self, member: Member, rows: dict[str, dict[str, Any]]) -> None:
        tensors: Mapping[str, Tensor] = self.members.atlas.tensors(member.name)
        dtypes = dtypes_of(tensors)
        with torch.no_grad():
            for name, row in rows.items():
                if name in tensors:
                    row["dtype"] = str(dtypes[name]).removeprefix("torch.")
                    row["norm"] = _norm(tensors[name])

    def _group(self, member: Member) -> str | None:
        """The symmetry group of a member's architecture in words, where it has been read."""
        a = architectures.c
        asked = select(a.certificate).where(a.fingerprint == member.fingerprint, a.certificate.is_not(None))
        with self.members.atlas.catalogue.reading() as connection:
            text = connection.execute(asked).scalar()
        if not text:
            return None
        try:
            return str(saved.from_json(files.parse(text), Symmetry, "the group"))
        except WeightspaceError:
            return None


def _norm(tensor: Tensor) -> float:
    """The root of the sum of squares, in float64."""
    numbers = tensor if tensor.is_floating_point() or tensor.is_complex() else tensor.double()
    numbers = numbers.float() if numbers.dtype.itemsize == 1 else numbers
    kind = torch.complex128 if numbers.is_complex() else torch.float64
    return float(torch.linalg.vector_norm(numbers.reshape(-1), dtype=kind).real)
