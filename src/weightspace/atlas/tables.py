"""The tables of the catalogue: architectures, networks, contents, tasks, measures, pairs, comparisons, sketches, jobs.

A content is a set of named tensors, known by its hash. A network is a name for a content, with the place of its file.
What is measured belongs to contents: exact copies share it.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

__all__ = [
    "REVISION",
    "VERSION_TABLE",
    "architectures",
    "comparisons",
    "contents",
    "jobs",
    "measures",
    "metadata",
    "networks",
    "pairs",
    "parents",
    "sketches",
    "tags",
    "tasks",
]

REVISION, VERSION_TABLE = "0002", "weightspace_version"
KEY = String(64)  # hexadecimal digits of SHA-256

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _content(name: str, **given: bool) -> Column[int]:
    return Column(name, Integer, ForeignKey("contents.id", ondelete="CASCADE"), nullable=False, **given)  # type: ignore[arg-type]


def _network(name: str) -> Column[int]:
    return Column(name, Integer, ForeignKey("networks.id", ondelete="CASCADE"), primary_key=True)


architectures = Table(
    "architectures",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("fingerprint", KEY, nullable=False),  # of the names and shapes
    Column("made", Text, nullable=False),  # package.module:factory or a folder; "" where not known
    Column("example", Text, nullable=False),  # the shape of an input; ""
    Column("printed", Text, nullable=False),  # fingerprint of the module that was made; "" where none was
    Column("shapes", Text, nullable=False),  # JSON: name -> shape
    Column("numbers", BigInteger, nullable=False),
    Column("certificate", Text),  # JSON: its symmetry group
    UniqueConstraint("fingerprint", "made"),
)
contents = Table(
    "contents",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("key", KEY, nullable=False, unique=True),  # of names, dtypes, shapes and bytes
    Column("numbers", KEY, nullable=False, index=True),  # of names, shapes and values, whatever the dtypes
    Column("fingerprint", KEY, nullable=False, index=True),
    Column("dtype", Text, nullable=False),
    Column("nbytes", BigInteger, nullable=False),
)
networks = Table(
    "networks",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("content", Integer, ForeignKey("contents.id"), nullable=False, index=True),
    Column("architecture", Integer, ForeignKey("architectures.id"), nullable=False, index=True),
    Column("kind", String(8), nullable=False),  # file, or object: a copy of the atlas's own
    Column("location", Text, nullable=False, index=True),
    Column("chosen", Text),  # which of the networks of the file
    Column("stamp", Text, nullable=False),  # JSON: file -> size, times, inode
    Column("facts", Text, nullable=False),  # JSON: name -> number or text
    Column("orbit", KEY, index=True),  # the key of the first member found on the same orbit
    Column("added", Float, nullable=False),  # seconds since 1970
)
parents = Table(
    "parents",
    metadata,
    _network("network"),
    Column("parent", Integer, ForeignKey("networks.id", ondelete="CASCADE"), primary_key=True, index=True),
    Column("relation", String(32), primary_key=True),  # stated, path, or a kind of relative that was found
    Column("share", Float),  # of this parent in an average
    Column("sure", Float),  # a probability, where it was found
    Column("source", String(8), nullable=False, server_default="stated"),  # stated, or found by a map
)
tags = Table("tags", metadata, _network("network"), Column("tag", String(200), primary_key=True, index=True))
tasks = Table(
    "tasks",
    metadata,
    Column("key", KEY, primary_key=True),  # digest of the examples, the loss and how it is summed; "" for none
    Column("name", Text, nullable=False),
    Column("opened", Text, nullable=False),  # as --data names it
    Column("examples", BigInteger, nullable=False),
)
measures = Table(
    "measures",
    metadata,
    _content("content", primary_key=True),
    Column("task", KEY, ForeignKey("tasks.key", ondelete="CASCADE"), primary_key=True),
    Column("observable", String(200), primary_key=True),
    Column("settings", String(200), primary_key=True),
    Column("value", Float),  # NULL is NaN, which SQLite does not have
    Column("error", Float),
    Column("version", String(40), nullable=False),
    Column("added", Float, nullable=False),
    Column("examples", BigInteger, nullable=False, server_default="0"),  # 0 where that is not known
    Index(None, "task", "observable"),
)
pairs = Table(
    "pairs",
    metadata,
    _content("first", primary_key=True),
    _content("second", primary_key=True),
    Column("kind", String(100), primary_key=True),
    Column("value", Float),
    Column("low", Float),
    Column("high", Float),
    Column("method", String(100), nullable=False),
    Index(None, "first", "kind", "value"),
    Index(None, "second", "kind", "value"),
    sqlite_with_rowid=False,
)
comparisons = Table(
    "comparisons",
    metadata,
    _content("first", primary_key=True),
    _content("second", primary_key=True),
    Column("kind", String(32), primary_key=True),
    Column("settings", KEY, primary_key=True),  # digest of all that the result depends on beside the two; ""
    Column("method", KEY, nullable=False),  # of the code; of another one a row counts as not there
    Column("result", LargeBinary, nullable=False),
    Index(None, "second"),
)
sketches = Table(
    "sketches",
    metadata,
    _content("content", primary_key=True),
    Column("method", String(200), primary_key=True),
    Column("numbers", LargeBinary, nullable=False),  # float64, little-endian
)
jobs = Table(
    "jobs",
    metadata,
    Column("key", String(200), primary_key=True),
    Column("kind", String(100), nullable=False, index=True),
    Column("result", Text, nullable=False),  # JSON
    Column("seconds", Float),
    Column("version", String(40), nullable=False),
    Column("added", Float, nullable=False),
)
