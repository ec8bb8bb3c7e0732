"""Catalogues to test: in a folder, and on a PostgreSQL server of the tests' own where it is installed."""

from __future__ import annotations

import pytest

from benchmarks.postgres import Server, missing


@pytest.fixture(scope="session")
def server():
    """A running server; killed and started again by some tests."""
    if why := missing():
        pytest.skip(why)
    with Server() as running:
        yield running


@pytest.fixture
def database(server):
    """The URL of a new, empty database."""
    import psycopg

    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute("DROP DATABASE IF EXISTS fresh WITH (FORCE)")
        connection.execute("CREATE DATABASE fresh")
    return server.url.replace("/postgres?", "/fresh?")


@pytest.fixture(params=["sqlite", "postgres"])
def where(request, tmp_path):
    """Where a new atlas is made: a folder, and a database."""
    return tmp_path / "atlas" if request.param == "sqlite" else request.getfixturevalue("database")
