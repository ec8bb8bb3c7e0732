"""A catalogue is whole after every accident, and says in one sentence what happened."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import func, insert, select, text

from weightspace.atlas import upgrade
from weightspace.atlas.catalogue import FILE, Catalogue
from weightspace.atlas.tables import (
    REVISION,
    VERSION_TABLE,
    contents,
    measures,
    metadata,
    networks,
    pairs,
    parents,
    tasks,
)
from weightspace.net.errors import WeightspaceError

ROOT = Path(__file__).parents[2]


def row(key, name="digits"):
    return {"key": key, "name": name, "opened": name, "examples": 3}


def count(catalogue, table=tasks):
    with catalogue.reading() as connection:
        return connection.execute(select(func.count()).select_from(table)).scalar()


def test_the_migrations_make_the_tables_that_the_code_knows(where):
    with Catalogue.open(where) as catalogue, catalogue.reading() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE, "compare_type": True})
        assert compare_metadata(context, metadata) == []
        assert context.get_current_revision() == REVISION == upgrade._script().get_current_head()


def test_rows_are_replaced_by_key_and_the_last_of_two_counts(where):
    with Catalogue.open(where) as catalogue:
        catalogue.put(tasks, [row("a"), row("b"), row("a", "second")])
        catalogue.put(tasks, [row("b", "third")])
        with catalogue.reading() as connection:
            found = dict(connection.execute(select(tasks.c.key, tasks.c.name)).all())
        assert found == {"": "", "a": "second", "b": "third"}
        catalogue.put(tasks, [])
    with Catalogue.open(where, create=False) as again:
        assert count(again) == 3


def test_a_transaction_is_whole_or_not_at_all(where):
    with Catalogue.open(where) as catalogue:
        with pytest.raises(RuntimeError), catalogue.writing() as connection:
            catalogue.put(tasks, [row("a")], connection)
            raise RuntimeError
        with pytest.raises(WeightspaceError, match="at the same time"), catalogue.writing() as connection:
            connection.execute(insert(tasks).values(row("c")))
            connection.execute(insert(tasks).values(row("c")))
        assert count(catalogue) == 1


def test_foreign_keys_are_kept(where):
    with Catalogue.open(where) as catalogue, pytest.raises(WeightspaceError):
        catalogue.put(
            pairs, [{"first": 1, "second": 2, "kind": "k", "value": 1.0, "low": None, "high": None, "method": ""}]
        )


def test_a_newer_version_is_refused_and_left_alone(where):
    with Catalogue.open(where) as catalogue, catalogue.writing() as connection:
        connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'"))
    with pytest.raises(WeightspaceError, match=r"newer version \(9999; this one knows 0002\); update weightspace"):
        Catalogue.open(where)


def test_a_catalogue_of_the_first_version_is_upgraded_with_all_it_holds(where, monkeypatch):
    """Made by the first version's migration alone, filled as that version filled it, then opened by this one."""
    from weightspace.atlas import catalogue as module

    with monkeypatch.context() as old:
        old.setattr(module, "REVISION", "0001")
        old.setattr(upgrade, "REVISION", "0001")
        real = upgrade._script()
        old.setattr(real, "get_current_head", lambda: "0001")
        revs = real._upgrade_revs
        old.setattr(real, "_upgrade_revs", lambda head, now: revs("0001", now))
        old.setattr(upgrade, "_script", lambda: real)
        with Catalogue.open(where) as first, first.writing() as connection:
            for sql in (
                "INSERT INTO architectures VALUES (1, 'f', '', '', '', '{}', 3, NULL)",
                "INSERT INTO contents VALUES (1, 'a', 'a', 'f', 'float32', 12), (2, 'b', 'b', 'f', 'float32', 12)",
                "INSERT INTO networks VALUES (1, 'a', 1, 1, 'file', 'a', NULL, '{}', '{}', 'a', 1.0), "
                "(2, 'b', 2, 1, 'file', 'b', NULL, '{}', '{}', NULL, 2.0)",
                "INSERT INTO parents VALUES (2, 1, 'stated', NULL, NULL)",
                "INSERT INTO measures VALUES (1, '', 'norm', '', 2.0, NULL, '0', 1.0)",
                "INSERT INTO pairs VALUES (1, 2, 'parent: cast', 0.9, NULL, NULL, '')",
                "INSERT INTO pairs VALUES (1, 2, 'd', 1.5, NULL, NULL, '')",
            ):
                connection.execute(text(sql))
    with Catalogue.open(where) as catalogue:
        with catalogue.reading() as connection:
            assert connection.execute(select(parents.c.network, parents.c.parent, parents.c.source)).all() == [
                (2, 1, "stated")
            ]
            assert connection.execute(select(measures.c.value, measures.c.examples)).all() == [(2.0, 0)]
            assert connection.execute(select(pairs.c.kind)).scalars().all() == ["d"]
            assert connection.execute(select(networks.c.orbit)).scalars().all() == [None, None]
            context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
            assert context.get_current_revision() == REVISION and compare_metadata(context, metadata) == []


def test_a_database_of_something_else_is_refused(where):
    if "://" in str(where):
        import psycopg

        with psycopg.connect(where) as connection:
            connection.execute("CREATE TABLE networks (id int)")
    else:
        where.mkdir()
        with sqlite3.connect(where / FILE) as connection:
            connection.execute("CREATE TABLE networks (id int)")
        connection.close()
    with pytest.raises(WeightspaceError, match="a table 'networks' of something else"):
        Catalogue.open(where)


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("nothing", "no atlas in"),
        ("mysql://a@b/c", "no such kind of database"),
        ("sqlite:///a.db", "no such kind of database"),
        ("postgresql://host:port/x", "malformed"),
    ],
)
def test_what_is_no_place_for_an_atlas_is_refused(tmp_path, monkeypatch, where, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightspaceError, match=said):
        Catalogue.open(where, create=False)
    assert not [*tmp_path.iterdir()]


def test_a_password_is_never_said(tmp_path):
    with pytest.raises(WeightspaceError) as told:
        Catalogue.open("postgresql://me:secret@/x?host=" + str(tmp_path))
    assert "secret" not in str(told.value) and "me:***@" in str(told.value)


def test_without_the_driver_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(WeightspaceError, match=r"pip install 'weightspace\[postgres\]'"):
        Catalogue.open("postgresql://me@/x")


@pytest.mark.parametrize("damage", ["text", "middle", "folder", "empty"])
def test_a_damaged_file_is_refused(tmp_path, damage):
    with Catalogue.open(tmp_path) as catalogue:
        catalogue.put(tasks, [row(f"{k:060d}") for k in range(2000)])
    file = tmp_path / FILE
    if damage == "text":
        file.write_text("no database" * 1000)
    elif damage == "middle":
        raw = bytearray(file.read_bytes())
        raw[4096 : len(raw)] = os.urandom(len(raw) - 4096)
        file.write_bytes(raw)
    elif damage == "folder":
        file.unlink()
        file.mkdir()
    else:
        file.write_bytes(b"")
        with pytest.raises(WeightspaceError, match="no atlas in it"):
            Catalogue.open(tmp_path, create=False)
        return
    with pytest.raises(WeightspaceError, match="is no atlas|damaged|cannot be opened"):
        with Catalogue.open(tmp_path) as catalogue:
            count(catalogue)


def test_a_locked_catalogue_is_waited_for_and_then_said(tmp_path):
    with Catalogue.open(tmp_path) as catalogue, Catalogue.open(tmp_path, timeout=0.1) as other:
        with catalogue.writing() as connection:
            catalogue.put(tasks, [row("a")], connection)
            assert count(other) == 1  # readers do not wait
            with pytest.raises(WeightspaceError, match="locked by another program"):
                other.put(tasks, [row("b")])
        other.put(tasks, [row("b")])
        assert count(catalogue) == 3


def test_writers_wait_for_one_another(tmp_path):
    with Catalogue.open(tmp_path) as catalogue:

        def write(which):
            for k in range(20):
                catalogue.put(tasks, [row(f"{which}-{k}")])

        threads = [threading.Thread(target=write, args=(k,)) for k in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert count(catalogue) == 81


def test_a_full_disk_is_said_and_nothing_is_half_written(tmp_path):
    with Catalogue.open(tmp_path) as catalogue:
        catalogue.put(tasks, [row("a")])
        with catalogue.engine.connect() as connection:  # the one connection of the pool
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
            connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(WeightspaceError, match="the disk is full; free space there"):
            catalogue.put(tasks, [row(f"{k:060d}") for k in range(5000)])
        assert count(catalogue) == 2


def test_a_read_only_catalogue_is_read_and_not_written(tmp_path, monkeypatch):
    with Catalogue.open(tmp_path) as catalogue:
        catalogue.put(tasks, [row("a")])
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # the tests may run as root, who may write everything
    with Catalogue.open(tmp_path) as catalogue:
        assert count(catalogue) == 2
        with pytest.raises(WeightspaceError, match="read-only"):
            catalogue.put(tasks, [row("b")])
    assert [item.name for item in tmp_path.iterdir()] == [FILE]


def test_a_writer_that_is_killed_leaves_nothing_half_written(tmp_path):
    code = (
        "import sys, time\n"
        "from weightspace.atlas.catalogue import Catalogue\n"
        "from weightspace.atlas.tables import tasks\n"
        "catalogue = Catalogue.open(sys.argv[1])\n"
        "with catalogue.writing() as connection:\n"
        "    rows = [{'key': str(k), 'name': '', 'opened': '', 'examples': 1} for k in range(50_000)]\n"
        "    catalogue.put(tasks, rows, connection)\n"
        "    print('written', flush=True)\n"
        "    time.sleep(60)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    writer = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, env=environment)
    assert writer.stdout.readline() == b"written\n"
    writer.kill()
    writer.wait()
    writer.stdout.close()
    with Catalogue.open(tmp_path) as catalogue:
        assert count(catalogue) == 1
        catalogue.put(tasks, [row("a")])


def test_a_server_that_dies_in_the_middle_leaves_nothing_half_written(server, database):
    """The next run goes on where the last one was."""
    with Catalogue.open(database) as catalogue:
        catalogue.put(tasks, [row("before")])
        with pytest.raises(
            WeightspaceError, match="cannot be reached .*; check that the server runs, then run this again"
        ):
            with catalogue.writing() as connection:
                catalogue.put(tasks, [row(str(k)) for k in range(1000)], connection)
                server.kill()
                catalogue.put(tasks, [row("after")], connection)
        with pytest.raises(WeightspaceError, match="cannot be reached"):
            count(catalogue)
        server.start()
        assert count(catalogue) == 2
        catalogue.put(tasks, [row("after")])
        assert count(catalogue) == 3


def test_two_that_open_at_once_make_one_catalogue(where):
    errors = []

    def open_it():
        try:
            Catalogue.open(where).close()
        except WeightspaceError as error:
            errors.append(error)

    threads = [threading.Thread(target=open_it) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    with Catalogue.open(where, create=False) as catalogue:
        assert count(catalogue) == 1


def test_many_pairs_are_written_and_asked(where):
    from weightspace.atlas.records import Pair, Pairs

    keys = [f"{k:064d}" for k in range(120)]
    with Catalogue.open(where) as catalogue:
        row = {"numbers": "", "fingerprint": "", "dtype": "", "nbytes": 0}
        with catalogue.writing() as connection:
            connection.execute(insert(contents), [{"key": key, **row} for key in keys])
        found = Pairs(catalogue)
        rows = [Pair(a, b, "d", float(abs(i - j))) for i, a in enumerate(keys) for j, b in enumerate(keys[:i])]
        found.put(rows)
        began = time.perf_counter()
        near = [pair.second for pair in found.near(keys[60], "d", 4)]
        assert time.perf_counter() - began < 1
        assert set(near) == {keys[58], keys[59], keys[61], keys[62]} and count(catalogue, pairs) == 120 * 119 / 2
