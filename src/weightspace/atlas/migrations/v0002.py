"""The second version: parents that a map found, examples of measures, comparisons of networks kept."""

from __future__ import annotations

from alembic import op
from sqlalchemy import BigInteger, Column, ForeignKey, Integer, LargeBinary, String

__all__ = ["upgrade"]

revision, down_revision = "0002", "0001"


def upgrade() -> None:
    """Add columns and a table; forget edges that were kept as pairs, and sketches that are drawn otherwise now."""
    op.add_column("parents", Column("source", String(8), nullable=False, server_default="stated"))
    op.add_column("measures", Column("examples", BigInteger, nullable=False, server_default="0"))
    op.create_table(
        "comparisons",
        Column("first", Integer, ForeignKey("contents.id", ondelete="CASCADE"), primary_key=True),
        Column("second", Integer, ForeignKey("contents.id", ondelete="CASCADE"), primary_key=True),
        Column("kind", String(32), primary_key=True),
        Column("settings", String(64), primary_key=True),
        Column("method", String(64), nullable=False),
        Column("result", LargeBinary, nullable=False),
    )
    op.create_index("ix_comparisons_second", "comparisons", ["second"])
    op.execute("DELETE FROM pairs WHERE kind LIKE 'parent: %'")
    op.execute("DELETE FROM sketches")
    op.execute("UPDATE networks SET orbit = NULL")
