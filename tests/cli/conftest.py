"""Every JSON object that a command prints in these tests is held against its schema, which is closed: no other keys."""

from __future__ import annotations

import functools
import importlib.util
import json
from pathlib import Path

import pytest

from weightspace.cli import answers, show

_SPEC = importlib.util.spec_from_file_location("schemas", Path(__file__).parents[1] / "schemas.py")
schemas = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(schemas)


@functools.cache
def validator(answer):
    checks = pytest.importorskip("jsonschema_rs")
    return checks.validator_for(schemas.closed(schemas.stored(answer)))


def wrong(found):
    """What a schema has against an answer, a line each; its own key says which schema."""
    answer = found["schema"].removeprefix("weightspace.").partition("/")[0]
    assert found["schema"] == answers.schema_name(answer) and next(iter(found)) == "schema"
    return [f"{found['schema']} {e.instance_path}: {e.message[:300]}" for e in validator(answer).iter_errors(found)]


@pytest.fixture(autouse=True)
def _as_wide_as_a_pipe(monkeypatch):
    """Processes of a parallel run may have a width in their environment."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture(autouse=True)
def _answers_have_their_schema(monkeypatch):
    printed = show.print_text

    def checked(text):
        assert not (said := wrong(json.loads(text))), said
        printed(text)

    monkeypatch.setattr(show, "print_text", checked)
