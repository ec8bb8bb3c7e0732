"""The first version of the catalogue's tables."""

from __future__ import annotations

from alembic import op
from sqlalchemy import BigInteger, Column, Float, ForeignKey, Integer, LargeBinary, String, Text, UniqueConstraint

__all__ = ["upgrade"]

revision, down_revision = "0001", None


def upgrade() -> None:
    """Create all tables."""
    _networks()
    _labels()
    _results()


def _networks() -> None:
    op.create_table(
        "architectures",
        Column("id", Integer, primary_key=True),
        Column("fingerprint", String(64), nullable=False),
        Column("made", Text, nullable=False),
        Column("example", Text, nullable=False),
        Column("printed", Text, nullable=False),
        Column("shapes", Text, nullable=False),
        Column("numbers", BigInteger, nullable=False),
        Column("certificate", Text),
        UniqueConstraint("fingerprint", "made", name="uq_architectures_fingerprint_made"),
    )
    op.create_table(
        "contents",
        Column("id", Integer, primary_key=True),
        Column("key", String(64), nullable=False),
        Column("numbers", String(64), nullable=False),
        Column("fingerprint", String(64), nullable=False),
        Column("dtype", Text, nullable=False),
        Column("nbytes", BigInteger, nullable=False),
        UniqueConstraint("key", name="uq_contents_key"),
    )
    _indices("contents", ["numbers"], ["fingerprint"])
    op.create_table(
        "networks",
        Column("id", Integer, primary_key=True),
        Column("name", Text, nullable=False),
        Column("content", Integer, ForeignKey("contents.id"), nullable=False),
        Column("architecture", Integer, ForeignKey("architectures.id"), nullable=False),
        Column("kind", String(8), nullable=False),
        Column("location", Text, nullable=False),
        Column("chosen", Text),
        Column("stamp", Text, nullable=False),
        Column("facts", Text, nullable=False),
        Column("orbit", String(64)),
        Column("added", Float, nullable=False),
        UniqueConstraint("name", name="uq_networks_name"),
    )
    _indices("networks", ["content"], ["architecture"], ["location"], ["orbit"])


def _labels() -> None:
    op.create_table(
        "parents",
        Column("network", Integer, ForeignKey("networks.id", ondelete="CASCADE"), primary_key=True),
        Column("parent", Integer, ForeignKey("networks.id", ondelete="CASCADE"), primary_key=True),
        Column("relation", String(32), primary_key=True),
        Column("share", Float),
        Column("sure", Float),
    )
    _indices("parents", ["parent"])
    op.create_table(
        "tags",
        Column("network", Integer, ForeignKey("networks.id", ondelete="CASCADE"), primary_key=True),
        Column("tag", String(200), primary_key=True),
    )
    _indices("tags", ["tag"])


def _results() -> None:
    tasks = op.create_table(
        "tasks",
        Column("key", String(64), primary_key=True),
        Column("name", Text, nullable=False),
        Column("opened", Text, nullable=False),
        Column("examples", BigInteger, nullable=False),
    )
    op.bulk_insert(tasks, [{"key": "", "name": "", "opened": "", "examples": 0}])
    op.create_table(
        "measures",
        _content("content"),
        Column("task", String(64), ForeignKey("tasks.key", ondelete="CASCADE"), primary_key=True),
        Column("observable", String(200), primary_key=True),
        Column("settings", String(200), primary_key=True),
        Column("value", Float),
        Column("error", Float),
        Column("version", String(40), nullable=False),
        Column("added", Float, nullable=False),
    )
    _indices("measures", ["task", "observable"])
    op.create_table(
        "pairs",
        _content("first"),
        _content("second"),
        Column("kind", String(100), primary_key=True),
        Column("value", Float),
        Column("low", Float),
        Column("high", Float),
        Column("method", String(100), nullable=False),
        sqlite_with_rowid=False,
    )
    _indices("pairs", ["first", "kind", "value"], ["second", "kind", "value"])
    op.create_table(
        "sketches",
        _content("content"),
        Column("method", String(200), primary_key=True),
        Column("numbers", LargeBinary, nullable=False),
    )
    op.create_table(
        "jobs",
        Column("key", String(200), primary_key=True),
        Column("kind", String(100), nullable=False),
        Column("result", Text, nullable=False),
        Column("seconds", Float),
        Column("version", String(40), nullable=False),
        Column("added", Float, nullable=False),
    )
    _indices("jobs", ["kind"])


def _content(name: str) -> Column[int]:
    return Column(name, Integer, ForeignKey("contents.id", ondelete="CASCADE"), primary_key=True)


def _indices(table: str, *columns: list[str]) -> None:
    for some in columns:
        op.create_index(f"ix_{table}_{'_'.join(some)}", table, some)
