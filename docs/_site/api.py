"""The reference of the Python interface: a page for each wing, from signatures and docstrings."""

from __future__ import annotations

import re
from functools import cache

from docs._site.docstrings import Block, Entry, blocks, documented, entries, numbers, signature, wings
from docs._site.prose import formulas
from docs._site.rst import escaped, heading, indented, inline, literal
from docs._site.symbols import tokens, variable

__all__ = ["home", "page", "pages", "resolved"]

_CALL = re.compile(r"(?:ws\.|weightspace\.)?([A-Za-z_][\w.]*)(\(.*\))?", re.DOTALL)
_PLACES = re.compile(r"(?:typing|collections\.abc|weightspace(?:\.\w+)*|torch\.nn\.modules\.module)\.")
_LEAD = """`import weightspace as ws` loads nothing; `ws.flow` and `ws.flows.flow` are the same function. A wing is a
part of the library that imports only from wings above it."""
_ARGUMENT = re.compile(r"(?<=[.;)]) (?=`\w+`(?:, `\w+`)*: )")


def pages() -> dict[str, str]:
    """Name of each page -> its text: an index, and the wings that hand on names."""
    return {"api/index.rst": _index(), **{f"api/{wing}.rst": page(wing) for wing in wings()}}


def _index() -> str:
    """The wings in the order of imports, each with the first sentence of its docstring."""
    rows = []
    for wing in wings():
        said = blocks(documented().get(wing, ""))[:1]
        rows.append(f"   * - :py:mod:`{wing} <weightspace.{wing}>`\n     - {inline(said[0].text) if said else ''}\n")
    lead = inline(_LEAD)
    table = f".. list-table::\n   :class: glance\n   :widths: 20 80\n\n{''.join(rows)}"
    tree = ".. toctree::\n   :hidden:\n\n" + "".join(f"   {wing}\n" for wing in wings())
    return "\n".join([heading("Python, wing by wing"), f"{lead}\n", table, tree])


@cache
def _table() -> dict[str, list[str]]:
    """The last one and the last two parts of the address of every public name -> the addresses."""
    table: dict[str, list[str]] = {}
    names = [f"{wing}.{entry.name}" for wing in wings() for entry in entries(wing)]
    for address in [*names, *(address for address in documented() if "." in address)]:
        parts = address.split(".")
        for ending in {".".join(parts[-k:]) for k in (1, 2, 3)}:
            if address not in table.setdefault(ending, []):
                table[ending].append(address)
    return table


def resolved(name: str, wing: str, owner: str = "") -> str:
    """The address of the public name that a name in a docstring means, without `weightspace.`; or empty.

    A member of the class `owner` is meant first, then a name of the wing, then what is called so in one wing alone. A
    word in small letters without a dot means a function of its own wing only: elsewhere it is a word.
    """
    table = _table()
    for own in (f"{wing}.{owner}.{name}", f"{wing}.{name}"):
        if own in table.get(name, []) or own in table.get(f"{owner}.{name}", []):
            return own
    found = table.get(name, [])
    if not ("." in name or name[:1].isupper()):
        return ""
    return found[0] if found and len({address.count(".") for address in found}) == 1 else ""


def home(entry: Entry, wing: str) -> str:
    """The wing that describes a name: that of its file, where this one hands it on too."""
    own = str(getattr(entry.thing, "__module__", "")).split(".")[1:2]
    return own[0] if own and f"{own[0]}.{entry.name}" in _table().get(entry.name, []) else wing


def page(wing: str) -> str:
    """The page of a wing: what it is, its names at a glance, each name in full."""
    told = documented().get(wing, "")
    found = entries(wing)
    parts = [heading(wing), f".. py:module:: weightspace.{wing}\n"]
    parts += [_block(block, wing, "", set(), frozenset()) for block in blocks(told)]
    if found:
        parts.append(_glance(wing, found))
    else:
        parts.append("Its names are taken from its files: " + literal(f"help(weightspace.{wing})") + ".\n")
    parts += [_entry(entry, wing) for entry in found if home(entry, wing) == wing]
    return "\n".join(parts)


def _glance(wing: str, found: list[Entry]) -> str:
    rows = []
    for entry in found:
        first = blocks(entry.doc)[:1]
        said = re.split(r"(?<=\.) (?=[A-Z`])|(?<=[^:])[:;] ", first[0].text)[0] if first else _value(entry)
        name = f":py:obj:`{entry.name} <weightspace.{home(entry, wing)}.{entry.name}>`"
        rows.append(f"   * - {name}\n     - {inline(said, symbols=_symbols(entry.doc)) if first else said}\n")
    return ".. list-table::\n   :class: glance\n   :widths: 30 70\n\n" + "".join(rows)


@cache
def _symbols(doc: str) -> frozenset[str]:
    """The letters of the formulas of a docstring: they are set as formulas where they stand alone."""
    names = [token.text for formula in formulas(doc) for token in tokens(formula) if token.kind == "name"]
    return frozenset(name for name in names if variable(name))


def _value(entry: Entry) -> str:
    """What a constant is: its keys, its value where that is short, else its kind."""
    if isinstance(entry.thing, dict) and all(isinstance(key, str) for key in entry.thing):
        return f"A table of {', '.join(map(literal, entry.thing))}."
    text = numbers(entry.thing) if isinstance(entry.thing, tuple) else _PLACES.sub("", repr(entry.thing))
    return literal(text) if text and len(text) < 100 and " at 0x" not in text else f"A {type(entry.thing).__name__}."


def _entry(entry: Entry, wing: str, owner: Entry | None = None) -> str:
    """The directive of a name, what its docstring says, and the members of a class."""
    own = owner or entry
    kind = "method" if entry.kind in ("classmethod", "staticmethod") else entry.kind
    modifier = f"   :{entry.kind}:\n" if entry.kind in ("classmethod", "staticmethod") else ""
    shown = signature(entry)
    place = "" if owner else f"   :module: weightspace.{wing}\n"
    head = f".. py:{kind}:: {f'{owner.name}.' if owner else ''}{entry.name}{shown}\n{place}{modifier}"
    symbols = _symbols(entry.doc) | _symbols(own.doc)
    arguments = set(re.findall(r"(\w+)(?=[:,=)])", shown))
    said = enumerate(blocks(entry.doc))
    body = [_block(block, wing, own.name, arguments, symbols, k == 0 and not owner) for k, block in said]
    if entry.kind == "data":
        body.append(_value(entry) + "\n")
    body += [_entry(member, wing, entry) for member in entry.members]
    return f"{head}\n{indented(chr(10).join(body))}\n"


def _block(
    block: Block, wing: str, owner: str, arguments: set[str], symbols: frozenset[str], first: bool = False
) -> str:
    """A part of a docstring; `arguments` are names that are never links, `symbols` letters that are formulas."""

    def name(code: str) -> str:
        """A name in backticks, led to what it means."""
        match = _CALL.fullmatch(code)
        if match is None or match[1] in arguments or not (address := resolved(match[1], wing, owner)):
            return literal(code)
        shown = code.replace("\\", "\\\\").replace("<", "\\<")
        return f":py:obj:`{shown} <weightspace.{address}>`"

    if block.kind in ("example", "code"):
        language = (
            "pycon" if block.kind == "example" else "text" if "=" in block.text and "(" not in block.text else "python"
        )
        return f".. code-block:: {language}\n\n{indented(block.text)}\n"
    if block.kind == "list":
        return "\n".join(f"- {inline(item, name, symbols)}" for item in block.text.split("\n")) + "\n"
    if block.kind != "text":
        return f".. rst-class:: remark\n\n**{escaped(block.kind)}:** {inline(block.text, name, symbols)}\n"
    said = _ARGUMENT.split(block.text)
    if len(said) > 1 or re.match(r"`\w+`(?:, `\w+`)*: ", block.text):
        rows = [inline(part, name, symbols) for part in said]
        lead = [] if re.match(r"`\w+`(?:, `\w+`)*: ", said[0]) else [rows.pop(0) + "\n"]
        return "\n".join([*lead, ".. rst-class:: arguments\n", *(f"- {row}" for row in rows)]) + "\n"
    lead_class = ".. rst-class:: definition\n\n" if first else ""
    return f"{lead_class}{inline(block.text, name, symbols)}\n"
