"""The kinds of jobs that a browser may start, their checked arguments, and what a process is told to do for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeAlias

from fastapi import HTTPException
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from weightspace.web.members import Members
from weightspace.web.served import ID, Served

__all__ = ["Asked", "Hex", "Order", "order_of"]

Hex = Annotated[str, StringConstraints(pattern=ID)]
Fingerprint = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]
Short = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Tag: TypeAlias = Short | None
Find: TypeAlias = Callable[[str, str], tuple[str, str]]  # an upload's id and its kind -> its path and its name


class _Plain(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Data(_Plain):
    """Examples: data that the server was started with, or an upload."""

    data: Short | None = None
    upload: Hex | None = None

    @model_validator(mode="after")
    def _one(self) -> _Data:
        if (self.data is None) == (self.upload is None):
            raise ValueError("give data or upload, one of the two")
        return self


class MapArguments(_Plain):
    """Arguments of `map`."""

    tag: Tag = None
    stored: bool = False


class CompareArguments(_Plain):
    """Arguments of `compare`; without data no loss is measured."""

    a: Hex
    b: Hex
    data: Short | None = None
    upload: Hex | None = None

    @model_validator(mode="after")
    def _not_both(self) -> CompareArguments:
        if self.data is not None and self.upload is not None:
            raise ValueError("give data or upload, not both")
        return self


class QueryArguments(_Data):
    """Arguments of `query`."""

    by: Literal["loss", "accuracy", "perplexity", "logme"] = "loss"
    budget: float = Field(0.2, ge=0.001, le=0.999)
    steps: int = Field(0, ge=0, le=20)
    tag: Tag = None


class NearestArguments(_Plain):
    """Arguments of `nearest`."""

    upload: Hex
    count: int = Field(5, ge=1, le=20)


class MergeArguments(_Data):
    """Arguments of `merge`: networks, or a family of the last map."""

    networks: list[Hex] | None = Field(None, min_length=2, max_length=50)
    architecture: Fingerprint | None = None
    family: int | None = Field(None, ge=0, le=1_000_000)
    name: Short | None = None

    @model_validator(mode="after")
    def _some(self) -> MergeArguments:
        whole = self.architecture is not None and self.family is not None
        part = self.architecture is not None or self.family is not None
        if whole != part or whole == (self.networks is not None):
            raise ValueError("give networks, or architecture and family")
        return self


class BetweenArguments(_Data):
    """Arguments of `between`."""

    a: Hex
    b: Hex
    tag: Tag = None


class _Map(_Plain):
    kind: Literal["map"]
    arguments: MapArguments = MapArguments()


class _Compare(_Plain):
    kind: Literal["compare"]
    arguments: CompareArguments


class _Query(_Plain):
    kind: Literal["query"]
    arguments: QueryArguments


class _Nearest(_Plain):
    kind: Literal["nearest"]
    arguments: NearestArguments


class _Merge(_Plain):
    kind: Literal["merge"]
    arguments: MergeArguments


class _Between(_Plain):
    kind: Literal["between"]
    arguments: BetweenArguments


Asked: TypeAlias = Annotated[
    _Map | _Compare | _Query | _Nearest | _Merge | _Between, Field(discriminator="kind")
]  # what POST /api/jobs takes


class Order(_Plain):
    """What a process is told: the kind, a title for the list, plain arguments with names and paths, what it writes.

    `reports`: it writes a page.
    """

    kind: str
    title: str
    arguments: dict[str, Any]
    reports: bool = False


def order_of(asked: Any, members: Members, find: Find) -> Order:
    """The order of a job, its ids resolved. Raises 404 for an unknown id, 422 for data that are not served."""
    given = asked.arguments.model_dump()
    names = members.names()
    for key in ("a", "b"):
        if key in given:
            given[key] = _name(names, given[key])
    if asked.kind == "merge":
        chosen = asked.arguments
        given["networks"] = (
            [_name(names, id) for id in dict.fromkeys(chosen.networks)] if chosen.networks is not None
            else members.family(chosen.architecture, chosen.family)
        )  # fmt: skip
    if asked.kind in ("compare", "between") and given["a"] == given["b"]:
        raise HTTPException(422, "the same network twice; choose another one")
    words = _title(asked.kind, given)
    if "upload" in given:
        given["data"], shown = _examples(given, members.served, find, "network" if asked.kind == "nearest" else "data")
        words = words.replace("{data}", shown)
        given["shown"] = shown
    return Order(kind=asked.kind, title=words[:300], arguments=given, reports=asked.kind in ("map", "compare", "query"))


def _name(names: dict[str, str], id: str) -> str:
    if id not in names:
        raise HTTPException(404, "no network of this id; load the list again")
    return names[id]


def _examples(given: dict[str, Any], served: Served, find: Find, kind: str) -> tuple[str | None, str]:
    """What a process opens, and what to call it."""
    if given["upload"] is not None:
        return find(given["upload"], kind)
    data = given.get("data")
    if data is not None and data not in served.data:
        raise HTTPException(422, "the server was not started with these data; start it with --data, or send a file")
    return data, data or ""


def _title(kind: str, given: dict[str, Any]) -> str:
    tag = given.get("tag")
    return {
        "map": lambda: f"Map of those tagged {tag}" if tag else "Map of the atlas",
        "compare": lambda: f"Compare {given['a']} with {given['b']}",
        "query": lambda: f"Which {f'tagged {tag} ' if tag else ''}is best for {{data}}?",
        "nearest": lambda: "Nearest to {data}",
        "merge": lambda: f"Average of {len(given['networks'])} networks",
        "between": lambda: f"A way from {given['a']} to {given['b']}",
    }[kind]()
