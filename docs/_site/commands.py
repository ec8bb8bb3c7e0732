"""The reference of the command line: every command with its arguments and options, read off the program itself."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from typer.main import get_command

from docs._site.rst import escaped, heading
from weightspace.cli import app

__all__ = ["commands", "page"]

_PROGRAM = "weightspace"


def commands() -> list[tuple[str, str, Any]]:
    """(panel of `--help`, full name, command) of every command, those of a group by their full name."""
    return [*_below(get_command(app), _PROGRAM, "")]


def _below(group: Any, name: str, panel: str) -> Iterator[tuple[str, str, Any]]:
    context = group.make_context(name, [], resilient_parsing=True)
    for key in group.list_commands(context):
        command = group.get_command(context, key)
        if command.hidden:
            continue
        shown = panel or getattr(command, "rich_help_panel", None) or "Commands"
        if hasattr(command, "commands"):
            yield from _below(command, f"{name} {key}", shown)
        else:
            yield shown, f"{name} {key}", command


def page() -> str:
    """The page: panels in the order of `--help`, and below each its commands in full."""
    panels: dict[str, list[str]] = {}
    for panel, name, command in commands():
        panels.setdefault(panel, []).append(_command(name, command))
    about = get_command(app).help or ""
    parts = [heading("Commands"), *(f"{_prose(part)}\n" for part in about.split("\n\n"))]
    parts.append(f"The same is printed by ``{_PROGRAM} --help`` and ``{_PROGRAM} COMMAND --help``.\n")
    for panel, made in panels.items():
        parts += [heading(panel, "-"), *made]
    return "\n".join(parts)


def _command(name: str, command: Any) -> str:
    context = command.make_context(name, [], resilient_parsing=True)
    usage = " ".join(command.get_usage(context).split()).removeprefix("Usage: ")
    parts = [f".. program:: {name}\n", heading(name.removeprefix(f"{_PROGRAM} "), "~")]
    parts += [f"{_prose(part)}\n" for part in re.split(r"\n\s*\n", (command.help or "").strip())]
    parts.append(f".. code-block:: text\n\n   {usage}\n")
    groups: dict[str, list[str]] = {}
    for given in command.params:
        if not getattr(given, "hidden", False) and given.name != "help":
            argument = given.param_type_name == "argument"
            panel = getattr(given, "rich_help_panel", None) or ("Arguments" if argument else "Options")
            groups.setdefault(panel, []).append(_parameter(given, context))
    for panel, made in groups.items():
        parts.append(f".. rst-class:: panel\n\n{escaped(panel)}\n")
        parts += made
    return "\n".join(parts)


def _parameter(given: Any, context: Any) -> str:
    """An argument or option as a directive, so that it can be linked and searched."""
    names, said = given.get_help_record(context)
    said, _, notes = said.partition("  [")
    notes = re.sub(r"\bx>=(\S+?)\b", r"at least \1", notes)
    shown = f"*{escaped(notes.rstrip(']'))}*" if notes else ""
    return f".. option:: {names}\n\n   {_prose(said)} {shown}".rstrip() + "\n"


def _prose(text: str) -> str:
    """A text of `--help`; words in backticks are code, and so are options."""
    parts = re.split(r"`([^`]+)`|(?<![\w-])(--[a-z][a-z-]*)", " ".join(text.split()))
    made = []
    for k in range(0, len(parts), 3):
        made.append(escaped(parts[k]))
        code = (parts[k + 1] or parts[k + 2]) if k + 1 < len(parts) else None
        made.append(rf"\ ``{code}``\ " if code else "")
    return "".join(made).removeprefix("\\ ")
