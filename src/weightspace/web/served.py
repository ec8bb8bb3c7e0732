"""`Served`: what one server shows: an atlas, data to ask with, and the folder of reports."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from fastapi import Path as Part

from weightspace.atlas.atlas import Atlas
from weightspace.commands.data import path_of
from weightspace.net.errors import WeightspaceError

__all__ = ["ID", "Id", "Served", "id_of", "reports_of"]

ID = "^[0-9a-f]{32}$"
Id = Annotated[str, Part(pattern=ID)]  # of a network, a report, a job or an upload, in an address


@dataclass(frozen=True)
class Served:
    """What the person who started the server named on the command line; a browser cannot name anything else.

    `atlas`: a folder or a database URL, None for no atlas. `objects`: where copies are kept, for an atlas in a
    database. `reports`: the folder whose report pages are listed, and into which jobs write theirs. `data`: data that
    members may be asked with, as `--data` takes them. `arch`: the architecture of members whose own is not known.
    `jobs`: how many run at the same time; `memory`: bytes that each may take.
    """

    reports: Path
    atlas: str | None = None
    objects: str | None = None
    data: tuple[str, ...] = ()
    arch: str | None = None
    jobs: int = 1
    memory: int = 8 << 30

    def check(self) -> None:
        """Raises `WeightspaceError` for an atlas that cannot be opened, and for data that are not there."""
        if self.atlas is not None:
            Atlas(self.atlas, objects=self.objects, create=False).close()
        for name in self.data:
            path_of(name)


def reports_of(atlas: str | None, reports: Path | None) -> Path:
    """The folder of reports: the one given, else `reports` in the atlas' folder, else in the working folder.

    Without an atlas, and where the working folder has no `reports`, it is the working folder itself.

    Raises `WeightspaceError` where an atlas' folder, or one given, is not a folder.
    """
    if reports is not None:
        if not reports.is_dir():
            raise WeightspaceError(f"{reports}: no such folder; create it first")
        return reports
    if atlas is None or "://" in atlas:
        own = Path("reports")
        return own if atlas is not None or own.is_dir() else Path()
    if not Path(atlas).is_dir():
        raise WeightspaceError(f"{atlas}: no such atlas; make one with weightspace atlas add --atlas {atlas}")
    return Path(atlas) / "reports"


def id_of(name: str) -> str:
    """The id of a network or a file: 32 hexadecimal digits of the SHA-256 of its name."""
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:32]
