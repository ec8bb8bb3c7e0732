"""The model card of a merged network: recipe, parents with the hashes of their weights, measures, licences."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from weightspace.checkpoint.locate import locate, read_index
from weightspace.checkpoint.refusal import refusal
from weightspace.merging.folders import yaml_text

__all__ = ["CARD", "About", "card", "hashes", "licence_of", "said_name"]

CARD = "README.md"
_LICENCE = ("license", "license_name", "license_link")
_FRONT = re.compile(r"\A---\r?\n(.*?)\r?\n---[ \t]*(\r?\n|\Z)", re.DOTALL)
_AGREED = ("library_name", "pipeline_tag")
_STEP = 1 << 22
_LARGEST = 1 << 20  # characters of a card that are read
_NO_CHANGES = re.compile(r"(?i)(^|[-_ ])nd([-_ ]|$)|no[-_ ]?deriv")


@dataclass(frozen=True)
class About:
    """What a card says of a merge: its recipe as plain data or text, measures by name, and how parents are hashed.

    `quick`: hash the header and the size of each file of weights alone, not its numbers. `parents`: what the card
    names as parents, where the folders are not they, as of adapters that changed the base.
    """

    recipe: Any = None
    measures: Mapping[str, float] = field(default_factory=dict)
    quick: bool = False
    parents: Sequence[Path] = ()


def hashes(path: Path, quick: bool = False) -> dict[str, str]:
    """The SHA-256 hash of every file of weights of a checkpoint; with `quick`, of its header and size alone.

    Raises `CheckpointError` for a path without a checkpoint.

    >>> import tempfile
    >>> from pathlib import Path
    >>> import weightspace as ws
    >>> from weightspace.merging.folders.card import hashes
    >>> net, _ = ws.demo.example()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = ws.checkpoint.save(net.weights, folder)
    ...     {name: len(value) for name, value in hashes(Path(folder)).items()}
    {'model.safetensors': 64}
    """
    try:
        file, _ = locate(path, None)
        files = [file]
        if file.name.endswith(".json"):
            owners = read_index(file, file.read_bytes()).get("weight_map")
            owners = owners if isinstance(owners, dict) else {}
            files = [file.parent / Path(str(name)).name for name in dict.fromkeys(owners.values())]
        return {file.name: _hash(file, quick) for file in files}
    except OSError as error:
        raise refusal(path, f"cannot be read ({error.strerror or error})", "check the path") from error


def _hash(file: Path, quick: bool) -> str:
    made = hashlib.sha256()
    with file.open("rb") as stream:
        if quick:
            head = stream.read(8)
            length = min(int.from_bytes(head, "little"), _STEP * 8)
            made.update(head + stream.read(length) + str(file.stat().st_size).encode())
            return made.hexdigest()
        while block := stream.read(_STEP):
            made.update(block)
    return made.hexdigest()


def said_name(path: Path) -> str:
    """The name of a parent as a card says it: `owner/name` of a folder of the hub's cache, else the folder's own."""
    for part in path.absolute().parts:
        if part.startswith("models--"):
            return part.removeprefix("models--").replace("--", "/")
    name = path.absolute().name
    return "".join(c if c.isprintable() and c not in "`|<>[]" else " " for c in name)


def front(home: Path) -> dict[str, Any]:
    """The fields at the head of a folder's card; none where there is no card, or no YAML in it."""
    try:
        with (home / CARD).open(encoding="utf-8") as file:
            found = _FRONT.match(file.read(_LARGEST))
        fields = yaml_text.parse(found[1]).plain if found else {}
    except (OSError, ValueError):
        return {}
    return fields if isinstance(fields, dict) else {}


def licence_of(home: Path) -> dict[str, str]:
    """The licence fields of a folder's card: `license`, `license_name`, `license_link`, as far as it has them."""
    fields = front(home)
    return {key: str(fields[key]) for key in _LICENCE if fields.get(key) not in (None, "", [])}


def card(parents: Sequence[Path], base: Path | None, about: About) -> tuple[str, list[str]]:
    """The text of the merged network's card, and notes about licences.

    The licence is carried over where all parents say the same; where they differ, or one says none, none is chosen, and
    the card lists them.
    """
    parents = about.parents or parents
    all_of = [*parents, *([base] if base is not None and base not in parents else [])]
    licences, notes = [licence_of(path) for path in all_of], list[str]()
    fields: dict[str, Any] = {}
    if all(licences) and all(one == licences[0] for one in licences):
        fields |= licences[0]
    elif any(licences):
        said = ", ".join(f"{said_name(p)}: {_licence(one)}" for p, one in zip(all_of, licences, strict=True))
        notes.append(f"the parents' licences are not one ({said}); none was written, choose one that all of them allow")
    for path, one in zip(all_of, licences, strict=True):
        if any(_NO_CHANGES.search(text) for key, text in one.items() if key != "license_link"):
            notes.append(f"{said_name(path)} is under {_licence(one)}, which forbids to pass on changed networks")
    heads = [front(path) for path in all_of]
    fields |= {
        key: heads[0][key] for key in _AGREED if heads[0].get(key) and len({str(h.get(key)) for h in heads}) == 1
    }
    hub = [name for name in dict.fromkeys(map(said_name, all_of)) if "/" in name]
    fields |= {**({"base_model": hub} if hub else {}), "tags": ["merge", "weightspace"]}
    text = [f"---\n{yaml_text.written(fields)}---\n", "# A merged network", "", "Made with weightspace from:", ""]
    text += _parents(parents, base, about.quick, licences)
    if about.recipe is not None:
        recipe = about.recipe if isinstance(about.recipe, str) else yaml_text.written(about.recipe)
        fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", recipe)), default=0))
        text += ["", "## Recipe", "", f"{fence}yaml", recipe.rstrip("\n"), fence]
    if about.measures:
        text += ["", "## Measures", "", "| measure | value |", "|---|---|"]
        text += [f"| {_cell(name)} | {value:.6g} |" for name, value in about.measures.items()]
    if notes:
        text += ["", "## Licences", "", *(f"- {_cell(note)}" for note in notes)]
    return "\n".join(text) + "\n", notes


def _licence(fields: Mapping[str, str]) -> str:
    return fields.get("license_name") or fields.get("license") or "none said"


def _cell(text: object) -> str:
    return "".join(c if c.isprintable() else " " for c in str(text)).replace("|", "\\|")[:400]


def _parents(
    parents: Sequence[Path], base: Path | None, quick: bool, licences: Sequence[Mapping[str, str]]
) -> list[str]:
    kind = "SHA-256 of header and size" if quick else "SHA-256"
    rows = [f"| network | part | licence | file | {kind} |", "|---|---|---|---|---|"]
    parts = [(path, "parent") for path in parents] + ([(base, "base")] if base is not None else [])
    known = dict(zip([*parents, *([base] if base is not None and base not in parents else [])], licences, strict=False))
    for path, part in parts:
        for file, found in hashes(path, quick).items():
            cells = (said_name(path), part, _licence(known[path]), file, f"`{found}`")
            rows.append(f"| {' | '.join(map(_cell, cells))} |")
    return rows
