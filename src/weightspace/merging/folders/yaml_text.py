"""YAML read without running code from it, within limits of memory, with the line of every value."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from weightspace.checkpoint.files import instead

__all__ = ["Node", "parse", "read", "written"]

LARGEST = 1_000_000  # bytes of YAML that are read
_NODES = 20_000
_SCALAR = 400  # characters of a number
_TAGS = {f"tag:yaml.org,2002:{tag}" for tag in ("null", "bool", "int", "float", "str", "timestamp", "seq", "map")}


@dataclass(frozen=True)
class Node:
    """A value of a YAML text and the line where it begins: a scalar, a list of nodes, or text -> node."""

    value: Any
    line: int

    @property
    def plain(self) -> Any:
        """The value as plain lists, mappings and scalars."""
        if isinstance(self.value, list):
            return [node.plain for node in self.value]
        if isinstance(self.value, dict):
            return {key: node.plain for key, node in self.value.items()}
        return self.value


def read(path: Path) -> Node:
    """The value of a YAML file of at most `LARGEST` bytes. Raises `OSError`, or `ValueError` in one line.

    >>> import tempfile
    >>> from pathlib import Path
    >>> from weightspace.merging.folders import yaml_text
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "a.yml"
    ...     _ = path.write_text("method: ties\\nweights: [1, 0.5]")
    ...     yaml_text.read(path).plain, yaml_text.read(path).value["weights"].line
    ({'method': 'ties', 'weights': [1, 0.5]}, 2)
    """
    with path.open("rb") as file:
        text = file.read(LARGEST + 1)
    if what := instead(text[:200]):
        raise ValueError(f"it is {what[0]}; {what[1]}")
    if len(text) > LARGEST:
        raise ValueError(f"it has more than {LARGEST:,} bytes")
    try:
        return parse(text.decode())
    except UnicodeDecodeError as error:
        raise ValueError("it is not UTF-8 text") from error


def parse(text: str) -> Node:
    """The value of a YAML text of plain values. Raises `ValueError` with a message of one line.

    Refused: tags of languages, keys that are no text or stand twice, references that make it larger than it is.
    """
    if len(text) > LARGEST:
        raise ValueError(f"it has more than {LARGEST:,} characters")
    try:
        return _Reading().node(yaml.compose(text, Loader=yaml.SafeLoader))
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ValueError(f"{line}no YAML ({error.problem or error.context})") from error
    except yaml.YAMLError as error:
        raise ValueError(f"no YAML ({' '.join(str(error).split())[:200]})") from error


def written(value: Any) -> str:
    """A plain value as YAML text."""
    text = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=120)
    assert isinstance(text, str)
    return text


class _Reading:
    """The nodes of PyYAML as ours, counted: a reference counts each time."""

    def __init__(self) -> None:
        self.count = 0
        self.loader = yaml.SafeLoader("")

    def node(self, found: yaml.Node | None) -> Node:
        if found is None:
            return Node(None, 1)
        line = found.start_mark.line + 1
        self.count += 1
        if self.count > _NODES:
            raise ValueError(f"it has more than {_NODES:,} values, references counted")
        if found.tag not in _TAGS:
            raise ValueError(f"line {line}: a value of the kind {found.tag!r:.80}; give plain text, numbers and lists")
        if isinstance(found, yaml.SequenceNode):
            return Node([self.node(item) for item in found.value], line)
        if isinstance(found, yaml.MappingNode):
            return Node(self._mapping(found), line)
        assert isinstance(found, yaml.ScalarNode)
        return Node(self._scalar(found, line), line)

    def _mapping(self, found: yaml.MappingNode) -> dict[str, Node]:
        made: dict[str, Node] = {}
        for key, value in found.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise ValueError(f"line {line}: a key that is a list or mapping")
            if key.value in made:
                raise ValueError(f"line {line}: {key.value!r:.80} stands twice")
            made[key.value] = self.node(value)
        return made

    def _scalar(self, found: yaml.ScalarNode, line: int) -> Any:
        if found.tag.endswith((":str", ":timestamp")):
            return found.value
        if len(found.value) > _SCALAR:
            raise ValueError(f"line {line}: a number of {len(found.value):,} characters")
        try:
            return self.loader.construct_object(found)
        except (ValueError, OverflowError) as error:
            raise ValueError(f"line {line}: {found.value!r:.80} is no number") from error
