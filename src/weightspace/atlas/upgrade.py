"""A catalogue brought to this version: its tables made, or those of an earlier version changed, whole or not at all."""

from __future__ import annotations

from pathlib import Path

from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, text

from weightspace.atlas.tables import REVISION, VERSION_TABLE, metadata
from weightspace.net.errors import WeightspaceError

__all__ = ["revision", "upgrade"]

_LOCK = 7_316_402_118  # of PostgreSQL, held while the tables are made


def revision(connection: Connection) -> str | None:
    """The version of a database; None for one without tables. Raises `WeightspaceError` for tables of others."""
    context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
    found = context.get_current_revision()
    if found is None:
        others = sorted({*metadata.tables} & {*inspect(connection).get_table_names()})
        if others:
            raise WeightspaceError(f"it holds a table {others[0]!r} of something else; give a database of its own")
    return found


def upgrade(connection: Connection) -> None:
    """Bring the tables to this version, in the transaction of `connection`.

    Raises `WeightspaceError` for a database of a newer version, and for one that holds tables of something else.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
    script = _script()
    found = revision(connection)
    if found == REVISION:
        return
    if found is not None and found not in {known.revision for known in script.walk_revisions()}:
        raise WeightspaceError(f"it is of a newer version ({found}; this one knows {REVISION}); update weightspace")
    with EnvironmentContext(Config(), script, fn=lambda now, _: script._upgrade_revs("head", now)) as environment:
        environment.configure(connection=connection, version_table=VERSION_TABLE, transactional_ddl=True)
        environment.run_migrations()


def _script() -> ScriptDirectory:
    folder = str(Path(__file__).parent / "migrations")
    return ScriptDirectory(folder, version_locations=[folder])
