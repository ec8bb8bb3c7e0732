"""The catalogue of an atlas: a database of tables, in a file of its folder (SQLite) or on a server (PostgreSQL).

A transaction is whole or not at all; what goes wrong is one `WeightspaceError` that says what to do.
"""

from __future__ import annotations

import importlib.util
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, Table, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.pool import QueuePool

from weightspace.atlas.tables import REVISION
from weightspace.atlas.upgrade import revision, upgrade
from weightspace.net.errors import WeightspaceError, first_line

__all__ = ["FILE", "Catalogue", "is_url"]

FILE = "atlas.db"
_PAGES = 65_536  # kilobytes of SQLite's cache; indices of half a million pairs fit into it
_SAID = {  # what a driver says -> what it means, and what to do
    "locked": "is locked by another program; wait until that is done, or stop it",
    "readonly": "is read-only; copy the atlas to a place where you may write",
    "read-only": "is read-only; copy the atlas to a place where you may write",
    "is full": "cannot be written, because the disk is full; free space there",
    "no space left": "cannot be written, because the disk is full; free space there",
    "unable to open": "cannot be opened; check the folder and its permissions",
    "not a database": "is no atlas; give another folder",
    "malformed": "is damaged; take it from a backup",
    "unique": "was changed by another program at the same time; run this again",
    "foreign key": "was changed by another program at the same time; run this again",
}


def is_url(where: str | os.PathLike[str]) -> bool:
    """Whether an atlas is named by the URL of a database, not by a folder."""
    return "://" in os.fspath(where)


class Catalogue:
    """An open database. `reading()` and `writing()` are transactions; `put` writes many rows at once.

    >>> import tempfile
    >>> from sqlalchemy import select
    >>> from weightspace.atlas.catalogue import Catalogue
    >>> from weightspace.atlas.tables import tasks
    >>> with tempfile.TemporaryDirectory() as folder, Catalogue.open(folder) as catalogue:
    ...     catalogue.put(tasks, [{"key": "a", "name": "digits", "opened": "digits", "examples": 450}])
    ...     with catalogue.reading() as connection:
    ...         connection.execute(select(tasks.c.name).where(tasks.c.key == "a")).scalar()
    'digits'
    """

    def __init__(self, engine: Engine, where: str, writable: bool = True) -> None:
        self.engine, self.where, self.writable = engine, where, writable

    @classmethod
    def open(cls, where: str | os.PathLike[str], *, create: bool = True, timeout: float = 30.0) -> Catalogue:
        """Open the catalogue of a folder or of a `postgresql://` URL; its tables are made, or brought to this version.

        `timeout`: seconds to wait for another program that writes. Raises `WeightspaceError` for a database of a newer
        version or of something else, one that cannot be reached, and without `create` for one that is not there.
        """
        url = is_url(where)
        opened = _server(os.fspath(where)) if url else _file(Path(where).expanduser(), create, timeout)
        made, shown = cls(*opened), opened[1]
        try:
            with made.reading() as connection:
                found = revision(connection)
            if found != REVISION:
                if found is None and not create:
                    raise WeightspaceError("there is no atlas in it; add networks to it first")
                with made.writing() as connection:
                    upgrade(connection)
        except WeightspaceError as error:
            made.close()
            text = str(error)
            raise WeightspaceError(text if shown in text else f"{shown}: {text}") from error
        except BaseException:
            made.close()
            raise
        return made

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that reads. Raises `WeightspaceError` for what goes wrong in the database."""
        with self._told(), self.engine.connect() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that writes: all of it, or nothing where an error is raised. Raises as `reading` does."""
        with self._told(), self.engine.connect().execution_options(writes=True) as connection, connection.begin():
            yield connection

    def put(
        self, table: Table, rows: Sequence[Mapping[str, Any]], connection: Connection | None = None, when: str = ""
    ) -> None:
        """Write rows in one transaction; a row of a key that is there is replaced. Every row has the same columns.

        `when`: a condition in SQL, on the row that is there and the new one, `excluded`, under which it is replaced.
        """
        if not rows:
            return
        keys = [column.name for column in table.primary_key]
        columns = [*keys, *(column for column in rows[0] if column not in keys)]
        values = [tuple(row[column] for column in columns) for row in rows]
        if connection is not None:
            return self.fill(connection, table, columns, values, when)
        with self.writing() as own:
            self.fill(own, table, columns, values, when)

    def fill(
        self,
        connection: Connection,
        table: Table,
        columns: Sequence[str],
        rows: Sequence[tuple[Any, ...]],
        when: str = "",
    ) -> None:
        """Write many rows, given as tuples of these columns: those of the key first, in its order."""
        length = len(table.primary_key)
        keys = itemgetter(slice(length))
        rows = sorted({keys(row): row for row in rows}.values(), key=keys)  # pages are then filled one by one
        if not rows:
            return
        if connection.dialect.name == "postgresql":
            _copied(connection, table, columns, rows, when)
        else:
            connection.exec_driver_sql(_upsert(table, columns, when=when), rows)

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()

    def __enter__(self) -> Catalogue:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Catalogue({self.where!r})"

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except UnicodeEncodeError as error:
            what = f"{error.object!r:.200} is no valid Unicode text"
            raise WeightspaceError(f"{what}, which the atlas cannot hold; rename it") from error
        except (SQLAlchemyError, _driver_errors()) as error:
            raise WeightspaceError(f"{self.where} {_meaning(error)}") from error


def _driver_errors() -> type[Exception]:
    """The errors of a connection that is used without SQLAlchemy, to copy rows."""
    if importlib.util.find_spec("psycopg") is None:
        return SQLAlchemyError
    import psycopg

    return psycopg.Error


def _meaning(error: Exception) -> str:
    raw = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    text = first_line(raw)
    for sign, meaning in _SAID.items():
        if sign in text.lower():
            return meaning
    lost = isinstance(error, DBAPIError) and error.connection_invalidated
    if lost or type(raw).__name__ in ("OperationalError", "AdminShutdown", "InterfaceError"):
        return f"cannot be reached ({text}); check that the server runs, then run this again"
    return f"failed with {type(raw).__name__}: {text}"


# ------------------------------------------------------------------ SQLite


def _file(folder: Path, create: bool, timeout: float) -> tuple[Engine, str, bool]:
    file = folder / FILE
    if not file.exists() and not create:
        raise WeightspaceError(f"there is no atlas in {folder}; make one by adding networks to it, or give its folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WeightspaceError(f"{folder}: cannot be made ({error.strerror}); give another folder") from error
    writable = not file.exists() or (os.access(file, os.W_OK) and os.access(folder, os.W_OK))
    address = _address(file, writable)

    def connect() -> sqlite3.Connection:
        return sqlite3.connect(address, timeout=timeout, uri=True, check_same_thread=False)

    engine = create_engine("sqlite://", creator=connect, poolclass=QueuePool)
    event.listen(engine, "connect", _prepared if writable else _manual)
    event.listen(engine, "begin", _began)
    return engine, str(file), writable


def _address(file: Path, writable: bool) -> str:
    """The file as SQLite takes it. One that may not be written has no log beside it, unless a writer left one."""
    mode = "mode=rwc" if writable else "mode=ro"
    if not writable and not file.with_name(f"{FILE}-wal").exists():
        mode = "immutable=1"
    return f"{file.absolute().as_uri()}?{mode}"


def _manual(raw: Any, record: Any) -> None:
    raw.isolation_level = None  # the driver would begin transactions late, and write the tables outside of them
    raw.execute("PRAGMA foreign_keys = ON")
    raw.execute(f"PRAGMA cache_size = -{_PAGES}")


def _prepared(raw: Any, record: Any) -> None:
    _manual(raw, record)
    raw.execute("PRAGMA journal_mode = WAL")
    raw.execute("PRAGMA synchronous = NORMAL")


def _began(connection: Connection) -> None:
    # a transaction that reads first and writes later may fail where two do; one that takes the lock at once waits
    connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get("writes") else "BEGIN")


def _upsert(table: Table, columns: Sequence[str], source: str = "", when: str = "") -> str:
    """The SQL that inserts rows, or replaces those of the same key."""
    keys = [column.name for column in table.primary_key]
    rest = [column for column in columns if column not in keys]
    change = ", ".join(f"{column} = excluded.{column}" for column in rest)
    values = source or f"VALUES ({', '.join('?' * len(columns))})"
    what = f"UPDATE SET {change}{f' WHERE {when}' if when else ''}" if rest else "NOTHING"
    return f"INSERT INTO {table.name} ({', '.join(columns)}) {values} ON CONFLICT ({', '.join(keys)}) DO {what}"


# ------------------------------------------------------------------ PostgreSQL


def _server(where: str) -> tuple[Engine, str, bool]:
    try:
        url = make_url(where)
    except (SQLAlchemyError, ValueError) as error:
        raise WeightspaceError("the URL of the atlas is malformed; give postgresql://user@host/database") from error
    shown = url.render_as_string(hide_password=True)
    if url.drivername not in ("postgresql", "postgres", "postgresql+psycopg"):
        raise WeightspaceError(f"{shown}: no such kind of database; give a folder, or postgresql://user@host/database")
    if importlib.util.find_spec("psycopg") is None:
        raise WeightspaceError(f"{shown} needs psycopg; install it by pip install 'weightspace[postgres]'")
    url = url.set(drivername="postgresql+psycopg")
    return create_engine(url, pool_pre_ping=True), shown, True


def _copied(
    connection: Connection, table: Table, columns: Sequence[str], rows: Sequence[tuple[Any, ...]], when: str
) -> None:
    """Rows sent in one stream into a temporary table, and put into `table` from there."""
    names = ", ".join(columns)
    raw: Any = connection.connection.driver_connection
    with raw.cursor() as cursor:
        cursor.execute(f"CREATE TEMP TABLE incoming ON COMMIT DROP AS SELECT {names} FROM {table.name} WHERE false")
        with cursor.copy(f"COPY incoming ({names}) FROM STDIN") as copy:
            for row in rows:
                copy.write_row(row)
        cursor.execute(_upsert(table, columns, f"SELECT {names} FROM incoming", when))
        cursor.execute("DROP TABLE incoming")
