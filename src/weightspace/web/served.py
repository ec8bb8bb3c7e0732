"""`Served`: what one server shows: an atlas, data to ask with, and the folder of reports."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from weightspace.net.errors import WeightspaceError

__all__ = ["Served", "reports_of"]


@dataclass(frozen=True)
class Served:
    """What the person who started the server named on the command line; a browser cannot name anything else.

    `atlas`: a folder or a database URL, None for no atlas. `objects`: where copies are kept, for an atlas in a
    database. `reports`: the folder whose report pages are listed, and into which jobs write theirs. `data`: data that
    members may be asked with, as `--data` takes them. `arch`: the architecture of members whose own is not known.
    """

    reports: Path
    atlas: str | None = None
    objects: str | None = None
    data: tuple[str, ...] = ()
    arch: str | None = None


def reports_of(atlas: str | None, reports: Path | None) -> Path:
    """The folder of reports: the one given, else `reports` in the atlas' folder, else in the working folder.

    Raises `WeightspaceError` where an atlas' folder, or one given, is not a folder.
    """
    if reports is not None:
        if not reports.is_dir():
            raise WeightspaceError(f"{reports}: no such folder; create it first")
        return reports
    if atlas is None or "://" in atlas:
        return Path("reports")
    if not Path(atlas).is_dir():
        raise WeightspaceError(f"{atlas}: no such atlas; make one with weightspace atlas add --atlas {atlas}")
    return Path(atlas) / "reports"
