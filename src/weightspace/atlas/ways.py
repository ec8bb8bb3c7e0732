"""The networks of a path in their order, as members of an atlas: what each is called, and what is known of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from weightspace.atlas.sources import Made
from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net
from weightspace.path.path import Path as Curve
from weightspace.path.trail import Trail
from weightspace.training.recorder import Recorder

__all__ = ["Way", "points"]

Way = Curve | Trail | Recorder | str | os.PathLike[str]


def points(way: Way, every: int, made: Made) -> Iterator[tuple[str, Net, dict[str, Any]]]:
    """Every `every`-th marked point of a path and the last: its number or step, its network, and facts about it.

    The folder of a trail needs its architecture. Raises `WeightspaceError` without one, and for what is no path.

    >>> import weightspace as ws
    >>> from weightspace.atlas.sources import Made
    >>> from weightspace.atlas.ways import points
    >>> path = ws.Path.through([ws.demo.example(seed)[0] for seed in range(4)])
    >>> [(label, facts) for label, _, facts in points(path, 2, Made())]
    [('0', {'t': 0.0}), ('2', {'t': 0.6666666666666666}), ('3', {'t': 1.0})]
    """
    if every < 1:
        raise WeightspaceError(f"every {every} points; give 1 or more")
    if isinstance(way, (str, os.PathLike)):
        way = _trail(Path(way), made)
    if isinstance(way, Recorder):
        way = way.path()
    for k in sorted({*range(0, len(way), every), len(way) - 1}):
        if isinstance(way, Trail):
            facts = way.facts(k)
            yield str(facts["step"]), way[k], facts
        else:
            yield str(k), way[k], {"t": way.times[k]}


def _trail(folder: Path, made: Made) -> Trail:
    if not (folder / "index.json").is_file():
        raise WeightspaceError(f"{folder}: holds no path (index.json); give the folder of a trail")
    if made.template is None:
        raise WeightspaceError(f"{folder}: which architecture do its networks belong to? give --arch")
    return Trail(folder, made.template)
