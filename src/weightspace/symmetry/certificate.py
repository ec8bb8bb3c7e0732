"""A group as a JSON file: axes, places, kinds, architecture, and how it was verified."""

from __future__ import annotations

import json
import math
import os
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from weightspace.net import WeightspaceError
from weightspace.symmetry.group import Axis, Block, Generator, Group, Place, SymmetryError

__all__ = ["certificate", "load", "save"]

_G = TypeVar("_G", bound=Group)


def certificate(group: Group) -> dict[str, Any]:
    """Everything as plain data: axes, blocks, generators, architecture, verification."""
    return {
        "format": "weightspace.symmetry/1",
        "group": str(group),
        "fingerprint": group.fingerprint,
        "verified": group.verified,
        "axes": [asdict(axis) for axis in group.every],
        "shapes": {name: list(shape) for name, shape in group.shapes.items()},
        "state": list(group.state),
        "blocks": [asdict(block) for block in group.blocks],
        "generators": [
            {
                "axis": g.axis,
                "kind": g.kind,
                "evaluation": g.evaluation,
                "exponents": [[p.block, p.leaf, e] for p, e in g.exponents],
            }
            for g in group.generators
        ],
        "notes": list(group.notes),
        "pinned": group.pinned,
    }


def save(group: Group, path: str | os.PathLike[str]) -> None:
    """Write the certificate as JSON, whole or not at all."""
    target = Path(path)
    try:
        descriptor, name = tempfile.mkstemp(dir=target.parent or Path(), prefix=f".{target.name}.", suffix=".tmp")
        try:
            with os.fdopen(descriptor, "w") as file:
                json.dump(certificate(group), file, indent=1)
            os.chmod(name, 0o644)
            os.replace(name, target)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise WeightspaceError(f"cannot write {target}: {error.strerror}") from error


def load(path: str | os.PathLike[str], into: type[_G]) -> _G:
    """Read a certificate back; raises `SymmetryError` for a file that is none."""
    try:
        data = json.loads(Path(path).read_text())
        if data["format"] != "weightspace.symmetry/1":
            raise ValueError(f"unknown format {data['format']!r}")
        return _parse(data, into)
    except OSError as error:
        raise SymmetryError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise SymmetryError(f"{path} is not a symmetry certificate ({error}); write one with group.save") from error


def _parse(data: dict[str, Any], into: type[_G]) -> _G:
    def tuples(fields: dict[str, Any]) -> dict[str, Any]:
        return {key: tuple(v) if isinstance(v, list) else v for key, v in fields.items()}

    generators = [
        Generator(g["axis"], g["kind"], tuple((Place(b, k), e) for b, k, e in g["exponents"]), g["evaluation"])
        for g in data["generators"]
    ]
    blocks = [Block(**tuples(b)) for b in data["blocks"]]
    shapes = {name: tuple(shape) for name, shape in data["shapes"].items()}
    _check_blocks(blocks, shapes, {a["name"]: a["size"] for a in data["axes"]})
    return into(
        [Axis(**tuples(a)) for a in data["axes"]],
        blocks,
        generators,
        shapes,
        state=data["state"],
        notes=data["notes"],
        pinned=data["pinned"],
        fingerprint=data["fingerprint"],
        verified=data["verified"],
    )


def _check_blocks(blocks: list[Block], shapes: dict[str, tuple[int, ...]], sizes: dict[str, int]) -> None:
    """A strided view must stay inside of its tensor."""
    for block in blocks:
        counts = [leaf if isinstance(leaf, int) else sizes[leaf] for leaf in block.leaves]
        steps = [(n - 1) * s for n, s in zip(counts, block.strides, strict=True)]
        low, high = block.offset, block.offset + sum(steps)
        if low < 0 or min(steps, default=0) < 0 or high >= max(math.prod(shapes[block.tensor]), 1):
            raise ValueError(f"a block of {block.tensor} reaches outside of it")
