"""Names and versions of the JSON objects that commands print with `--json`, and their JSON Schemas.

Within a version keys are only added. A key that goes, or whose type or meaning changes, makes a new version.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["VERSIONS", "schema_file", "schema_name", "stamped"]

VERSIONS = {  # answer -> version of its schema; a command that answers in several ways has a name for each
    "demo": 1,
    "read": 1,
    "doctor": 1,
    "compare": 1,
    "compare.across": 1,
    "compare.set": 1,
    "align": 1,
    "merge": 1,
    "merge.recipe": 1,
    "extract": 1,
    "walk": 1,
    "perturb": 1,
    "widen": 1,
    "deepen": 1,
    "grow": 1,
    "project": 1,
    "capacity": 1,
    "stability": 1,
    "inform": 1,
    "certify": 1,
    "tasks": 1,
    "nearest": 1,
    "watch": 1,
    "paths": 1,
    "atlas.add": 1,
    "atlas.list": 1,
    "atlas.show": 1,
    "atlas.tag": 1,
    "atlas.remove": 1,
    "atlas.check": 1,
    "atlas.map": 1,
    "atlas.query": 1,
    "atlas.nearest": 1,
    "atlas.between": 1,
    "atlas.merge": 1,
    "schema": 1,
}


def schema_name(answer: str) -> str:
    """What the key `schema` of an answer says: weightspace.compare/1."""
    return f"weightspace.{answer}/{VERSIONS[answer]}"


def schema_file(answer: str) -> Path:
    """The file of the JSON Schema of an answer."""
    return Path(__file__).parent / "schemas" / f"{answer}.json"


def stamped(answer: str, data: Mapping[str, Any]) -> dict[str, Any]:
    """An answer as it is printed: the name and version of its schema first."""
    return {"schema": schema_name(answer), **data}
