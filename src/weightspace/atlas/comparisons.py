"""Results of comparing two networks, kept by the contents of both: as good later as when they were computed.

A row is known by the two contents, what was compared, and a digest of all settings that the result depends on; the
version of the code stands beside it, and rows of another version count as not there. Rows go with their contents.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import TypeAlias

from sqlalchemy import select

from weightspace import __version__
from weightspace.atlas.records import Keyed
from weightspace.atlas.tables import comparisons, contents

__all__ = ["Comparisons", "Ends"]

Ends: TypeAlias = tuple[str, str, str]  # the keys of two contents, and the digest of the settings
_METHOD = hashlib.sha256(f"{__version__} comparisons 1".encode()).hexdigest()  # another number for other results
_COLUMNS = ("first", "second", "kind", "settings", "method", "result")


class Comparisons(Keyed):
    """Results as bytes, by what was compared, two content keys, and a digest of settings.

    >>> import tempfile
    >>> import weightspace as ws
    >>> nets = [ws.demo.example(seed)[0] for seed in range(2)]
    >>> with tempfile.TemporaryDirectory() as folder, ws.Atlas(folder) as atlas:
    ...     a, b = (atlas.add(net, name=name).key for net, name in zip(nets, "ab"))
    ...     atlas.comparisons.put("distance", {(a, b, ""): b"1.5"})
    ...     atlas.comparisons.of("distance", [a, b]) == {(a, b, ""): b"1.5"}, atlas.comparisons.of("distance", [a])
    (True, {})
    """

    def put(self, kind: str, rows: Mapping[Ends, bytes]) -> None:
        """Write results of one kind, in one transaction."""
        with self.catalogue.writing() as connection:
            ids = self.numbers(connection, {key for first, second, _ in rows for key in (first, second)})
            values = [(ids[a], ids[b], kind, settings, _METHOD, result) for (a, b, settings), result in rows.items()]
            self.catalogue.fill(connection, comparisons, _COLUMNS, values)

    def of(self, kind: str, networks: Iterable[str]) -> dict[Ends, bytes]:
        """All results of a kind between these contents."""
        wanted, c = {*networks}, comparisons.c
        a, b = contents.alias("a"), contents.alias("b")
        with self.catalogue.reading() as connection:
            ids = self.numbers(connection, wanted)
            forms = select(contents.c.fingerprint).where(contents.c.key == next(iter(wanted), ""))
            asked = select(a.c.key, b.c.key, c.settings, c.result)
            asked = asked.select_from(comparisons.join(a, a.c.id == c.first).join(b, b.c.id == c.second))
            asked = asked.where(c.kind == kind, c.method == _METHOD, a.c.fingerprint.in_(forms))
            rows = connection.execute(asked)
            return {(first, second, settings): result for first, second, settings, result in rows
                    if first in ids and second in ids}  # fmt: skip
