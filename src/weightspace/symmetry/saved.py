"""The file format of a group: JSON with its axes, places, kinds, architecture, and verification."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from weightspace.checkpoint import files
from weightspace.net.errors import SymmetryError, WeightspaceError
from weightspace.symmetry.axis import Axis, Block, Exchange, Generator, Place
from weightspace.symmetry.group import Group

__all__ = ["as_json", "from_json", "load", "save"]


_G = TypeVar("_G", bound=Group)
_FORMAT = "weightspace.symmetry/1"
_LARGEST = 100_000_000  # bytes


def as_json(group: Group) -> dict[str, Any]:
    """The group as plain data: axes, blocks, generators, architecture, verification; and a digest of all that."""
    data = {
        "format": _FORMAT,
        "group": str(group),
        "fingerprint": group.fingerprint,
        "verified": group.verified,
        "axes": [asdict(axis) for axis in group.every],
        "shapes": {name: list(shape) for name, shape in group.shapes.items()},
        "state": list(group.state),
        "blocks": [asdict(block) for block in group.blocks],
        "generators": [_generator(g) for g in group.generators],
        "gauge": [_generator(g) for g in group.gauge],
        "free": [[p.block, p.leaf] for p in group.free],
        "exchanges": [asdict(exchange) for exchange in group.exchanges],
        "notes": list(group.notes),
        "pinned": group.pinned,
    }
    return files.sealed(data)


def _generator(g: Generator) -> dict[str, Any]:
    return {
        "axis": g.axis,
        "kind": g.kind,
        "evaluation": g.evaluation,
        "exponents": [[p.block, p.leaf, e] for p, e in g.exponents],
        "uniform": [[p.block, p.leaf] for p in g.uniform],
        "ones": g.ones,
        "proper": g.proper,
        "offset": g.offset,
    }


def _parsed(g: dict[str, Any]) -> Generator:
    exponents = tuple((Place(b, k), e) for b, k, e in g["exponents"])
    uniform = tuple(Place(b, k) for b, k in g.get("uniform", ()))
    ones, proper = (bool(g.get(name, False)) for name in ("ones", "proper"))
    offset = float(g.get("offset", 0.0))
    return Generator(g["axis"], g["kind"], exponents, g["evaluation"], uniform, ones, proper, offset)


def save(group: Group, path: str | os.PathLike[str]) -> None:
    """Write the group as JSON with a digest of its content, whole or not at all."""
    target = Path(path)
    try:
        files.write(target, json.dumps(as_json(group), indent=1))
    except OSError as error:
        raise WeightspaceError(f"cannot write {target}: {error.strerror}") from error


def load(path: str | os.PathLike[str], into: type[_G]) -> _G:
    """Read a group back; raises `SymmetryError` for another kind of file, and for one changed since it was written.

    "verified" in a file describes the group as it was saved; it says nothing about an edited one.
    """
    try:
        data = files.read_json(Path(path), _LARGEST)
    except OSError as error:
        raise SymmetryError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise _refused(path, error) from error
    return from_json(data, into, path)


def from_json(data: Any, into: type[_G], where: str | os.PathLike[str]) -> _G:
    """The group that `as_json` wrote, from `where`; raises as `load` does.

    >>> import weightspace as ws
    >>> from weightspace.symmetry.saved import as_json, from_json
    >>> net, task = ws.demo.example()
    >>> group = ws.Symmetry.of(net, task.example(2))
    >>> print(from_json(as_json(group), ws.Symmetry, "memory"))
    S16 x R+16
    """
    try:
        if not isinstance(data, dict) or data.get("format") != _FORMAT:
            raise ValueError("its format field is missing or another")
        sealed = {key: value for key, value in data.items() if key != "schema"}  # `weightspace read --json` adds it
        return _parse(files.unsealed(sealed), into)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError) as error:
        raise _refused(where, error) from error


def _refused(where: str | os.PathLike[str], error: Exception) -> SymmetryError:
    why = " ".join(str(error).split())[:200]
    return SymmetryError(f"{os.fspath(where)} is not a saved symmetry ({why}); write one with group.save")


def _parse(data: dict[str, Any], into: type[_G]) -> _G:
    def tuples(fields: dict[str, Any]) -> dict[str, Any]:
        return {key: tuple(v) if isinstance(v, list) else v for key, v in fields.items()}

    generators = [_parsed(g) for g in data["generators"]]
    blocks = [Block(**tuples(b)) for b in data["blocks"]]
    shapes = {name: tuple(shape) for name, shape in data["shapes"].items()}
    axes = [Axis(**tuples(a)) for a in data["axes"]]
    _check_blocks(blocks, shapes, {axis.name: axis.size for axis in axes})
    met = {leaf for block in blocks for leaf in block.leaves}
    if lost := [axis.name for axis in axes if axis.kinds and axis.name not in met]:
        raise ValueError(f"no tensor is indexed by its axis {lost[0]}")
    return into(
        axes,
        blocks,
        generators,
        shapes,
        state=data["state"],
        notes=data["notes"],
        pinned=data["pinned"],
        fingerprint=data["fingerprint"],
        verified=data["verified"],
        gauge=[_parsed(g) for g in data.get("gauge", ())],
        free=[Place(b, k) for b, k in data.get("free", ())],
        exchanges=_exchanges(data.get("exchanges", ()), blocks, axes, generators),
    )


def _exchanges(
    found: list[dict[str, Any]], blocks: list[Block], axes: list[Axis], generators: list[Generator]
) -> list[Exchange]:
    """Exchanges read back. Raises `ValueError` for one whose blocks do not have the same form."""
    size = {axis.name: axis.size for axis in axes}
    exchanges = []
    for data in found:
        members = tuple(data["members"])
        sets = tuple(tuple((tuple(at), int(b)) for at, b in some) for some in data["blocks"])
        rows = [tuple(map(tuple, data[key])) for key in ("axes", "generators")]
        for some in sets:
            forms = {tuple(leaf if isinstance(leaf, int) else size[leaf] for leaf in blocks[b].leaves) for _, b in some}
            if len(forms) != 1 or len({at for at, _ in some}) != math.perm(len(members), len(some[0][0])):
                raise ValueError(f"the blocks that {data['name']} exchanges differ")
        if any(len(row) != len(members) for row in (*rows[0], *rows[1])):
            raise ValueError(f"the members of {data['name']} differ")
        if not {*size} >= {a for row in rows[0] for a in row} or any(
            not 0 <= k < len(generators) for row in rows[1] for k in row
        ):
            raise ValueError(f"{data['name']} exchanges what is not there")
        exchanges.append(Exchange(data["name"], members, sets, *rows))
    return exchanges


def _check_blocks(blocks: list[Block], shapes: dict[str, tuple[int, ...]], sizes: dict[str, int]) -> None:
    """A strided view must stay inside of its tensor."""
    for block in blocks:
        counts = [leaf if isinstance(leaf, int) else sizes[leaf] for leaf in block.leaves]
        steps = [(n - 1) * s for n, s in zip(counts, block.strides, strict=True)]
        low, high = block.offset, block.offset + sum(steps)
        if low < 0 or min(steps, default=0) < 0 or high >= max(math.prod(shapes[block.tensor]), 1):
            raise ValueError(f"a block of {block.tensor} reaches outside of it")
