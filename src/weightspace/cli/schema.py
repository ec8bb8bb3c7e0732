"""The command `weightspace schema`."""

from __future__ import annotations

from typing import Annotated

import typer

from weightspace.cli.answers import VERSIONS, schema_file, schema_name, stamped
from weightspace.cli.options import Shared, shared
from weightspace.cli.show import print_json, print_text
from weightspace.cli.words import console

__all__ = ["schema"]


@shared("")
def schema(
    command: Annotated[
        list[str] | None, typer.Argument(help="A command whose --json is described: compare, atlas map, compare.set.")
    ] = None,
    *,
    common: Shared,
) -> None:
    """The JSON Schema of what a command prints with --json; without a command, the names and versions of all."""
    if command:
        print_text(schema_file(_known(command)).read_text(encoding="utf-8").rstrip("\n"))
    elif common.as_json:
        print_json(stamped("schema", {"answers": {answer: schema_name(answer) for answer in VERSIONS}}))
    else:
        out = console()
        for answer in VERSIONS:
            out.print(schema_name(answer))
        out.print("Print one with: weightspace schema compare. What a version promises: docs/json.md.")


def _known(words: list[str]) -> str:
    """The answer that some words name. Raises `BadParameter`."""
    answer = ".".join(words)
    if answer not in VERSIONS:
        near = [name for name in VERSIONS if name.startswith(f"{answer}.")] or [*VERSIONS]
        raise typer.BadParameter(f"{answer!r}; choose one of {', '.join(near)}", param_hint="COMMAND")
    return answer
