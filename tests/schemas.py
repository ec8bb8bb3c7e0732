"""The JSON Schemas of what commands print with --json, made from what the commands return: `make schemas`.

Answers that are dataclasses as they are have the schema of their fields; others are described in `SHAPES`, key by key.
`tests/cli/test_schemas.py` runs every command and holds its answer against its schema.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from weightspace.cli import answers

PAGE = Path(__file__).parents[1] / "docs" / "json.md"
DIALECT = "https://json-schema.org/draft/2020-12/schema"
TEXTS, NUMBERS, MATRIX = list[str], list[float], list[list[float]]


class Optional_:
    """A key that is there in some answers alone."""

    def __init__(self, kind):
        self.kind = kind


def at(address):
    """The class of an address, such as commands.compare.Comparison."""
    home, _, name = address.rpartition(".")
    return getattr(importlib.import_module(f"weightspace.{home}"), name)


def keys_of(address, *, without=(), **more):
    """The keys of a dataclass, without some and with others."""
    kind = at(address)
    hints = typing.get_type_hints(kind)
    fields = {f.name: hints[f.name] for f in dataclasses.fields(kind) if f.name not in without}
    return {**fields, **more}


def member():
    return keys_of("atlas.members.Member", without=("stamp",), facts=dict[str, Any])


def standing():
    """What an answer about many networks says of them."""
    row = {"name": str, "value": float, "error": float, "examples": int, "behind": float, "behind_error": float,
           "tied": bool}  # fmt: skip
    return {
        "by": str, "steps": int, "best": str, "tied": TEXTS, "ranking": [row], "left_out": dict[str, str],
        "instead": dict[str, str], "passes": int, "whole": int, "confidence": float, "seconds": float,
        "whole_seconds": float,
    }  # fmt: skip


def cost():
    fields = keys_of("net.cost.Cost")
    return {name: kind if name == "bytes" else Optional_(kind) for name, kind in fields.items()}


def edge():
    return {
        "parent": int, "child": int, "kind": str, "share": float | None, "renumbered": bool, "confidence": float | None,
        "distance": float, "why": str, "evidence": dict[str, Any],
    }  # fmt: skip


def structure():
    run, transition, check = (at(f"codes.structure_functions.{name}") for name in ("Run", "Transition", "Check"))
    return {
        "examples": int, "length": float, "complexity": float, "collapse": float, "tail": float, "gain": float,
        "chance": float | None, "efficiency": float | None, "constants": list[tuple[float, float]],
        "vertices": list[tuple[float, float]], "runs": list[run],
        "curve": [{"beta": float, "length": float, "information": float}],
        "transitions": [{**typing.get_type_hints(transition), "name": str}],
        "susceptibility": list[tuple[float, float]], "checks": list[check], "notes": TEXTS,
    }  # fmt: skip


def informed():
    found = keys_of("codes.weight_information.Information", length=float)
    return keys_of("commands.inform.Informed", without=("found", "structure"), found=[found],
                   structure=Either(structure()))  # fmt: skip


class Either:
    """A described object, or null."""

    def __init__(self, shape):
        self.shape = shape


def compared_set():
    row = dict.fromkeys(("name", "cosine", "cancelled", "spread", "interference", "rank"), str)
    summary = dict.fromkeys(("spread", "trust", "cosine", "conflict", "cancelled", "overlap", "interference"), float)
    lineage = {"labels": TEXTS, "edges": [edge()], "siblings": list[tuple[int, int]], "group": list[int]}
    return {
        "names": TEXTS, "members": TEXTS, "base": str | None, "base_found": bool, "advice": at("merging.advice.Advice"),
        "summary": summary, **dict.fromkeys(("cosines", "conflicts", "overlaps"), MATRIX | None), "norms": NUMBERS,
        "relative": NUMBERS, "tensors": [row], "lineage": Either(lineage),
        "measured": Either(keys_of("commands.advice.Measured", rise=float)), "left_out": TEXTS, "notes": TEXTS,
    }  # fmt: skip


def mapped():
    point = Extra({"name": str, "stated": TEXTS, "family": int, "point": NUMBERS}, float)
    space = {
        "architecture": str, "members": [point], "stress": float, "middles": TEXTS, "edges": [edge()],
        "siblings": list[tuple[int, int]], "barriers": [keys_of("atlas.barriers.Barrier")], "notes": TEXTS,
    }  # fmt: skip
    return {"atlas": str, "spaces": [space], "left": dict[str, str]}


class Extra:
    """A described object with more keys of one kind, whose names depend on the data."""

    def __init__(self, shape, kind):
        self.shape, self.kind = shape, kind


def group():
    place = list[tuple[int, int]]
    generator = {
        "axis": str, "kind": str, "evaluation": bool, "exponents": list[tuple[int, int, float]], "uniform": place,
        "ones": bool, "proper": bool, "offset": float,
    }  # fmt: skip
    axis, block, exchange = (at(f"symmetry.axis.{name}") for name in ("Axis", "Block", "Exchange"))
    return {
        "format": str, "group": str, "fingerprint": str, "verified": dict[str, Any], "axes": list[axis],
        "shapes": dict[str, list[int]], "state": TEXTS, "blocks": list[block], "generators": [generator],
        "gauge": [generator], "free": place, "exchanges": list[exchange], "notes": TEXTS, "pinned": dict[str, Any],
        "digest": str,
    }  # fmt: skip


def task_map():
    arrow = {"from": str, "to": str, "there": float, "back": float}
    return {
        "names": TEXTS, "examples": list[int], "beta": float, "task_id": bool, "lengths": NUMBERS, "values": MATRIX,
        "spread": MATRIX, "relative": MATRIX, "positions": MATRIX, "stress": float, "nearest": dict[str, str],
        "arrows": [arrow], "notes": TEXTS,
    }  # fmt: skip


def across():
    pair = at("metric.across_architectures.LayerPair")
    return {
        "names": tuple[str, str], "architectures": tuple[str, str], "outputs": dict[str, float], "why": str,
        "first": TEXTS, "second": TEXTS, "examples": int, "notes": TEXTS, "alike": float, "apart": float,
        "pairs": list[pair], "cka": MATRIX, "procrustes": MATRIX,
    }  # fmt: skip


def listed():
    return {"atlas": str, "members": [member()], "copies": list[list[str]]}


def certified():
    bound = keys_of("risk.pac_bound.RiskBound", without=("posterior", "prior"), verdict=str)
    return keys_of("commands.certify.Certified", without=("found",)) | bound


SHAPES = {  # answer -> its keys, or the dataclass that it is
    "demo": lambda: {"accuracy": dict[str, float], "report": str, **{name: dict[str, Any] for name in
                     "disguised compare align merge walk learned stability watch inform tasks certify".split()}},
    "read": group,
    "doctor": lambda: {"well": bool, "findings": list[at("commands.doctor.Finding")]},
    "compare": lambda: keys_of("commands.compare.Comparison", without=("units",)),
    "compare.across": across,
    "compare.set": compared_set,
    "align": lambda: keys_of("commands.align.Aligned"),
    "merge": lambda: keys_of("commands.merge.Merged"),
    "merge.recipe": lambda: keys_of("commands.merge_recipe.MergedFiles", without=("lines",), groups=[
                    {"action": str, "why": str, "numbers": int, "tensors": TEXTS}]),
    "extract": lambda: keys_of("commands.extract.Extracted"),
    "walk": lambda: keys_of("commands.walk.Walked"),
    "perturb": lambda: keys_of("commands.perturb.Perturbed"),
    **{name: lambda: keys_of("commands.widen.Resized") for name in ("widen", "deepen", "grow")},
    "project": lambda: keys_of("commands.project.Brought"),
    "capacity": lambda: keys_of("commands.capacity.Capacity", cost=cost()),
    "stability": lambda: keys_of("commands.stability.NoiseTest"),
    "inform": informed,
    "certify": certified,
    "tasks": task_map,
    "nearest": lambda: {"data": str, "expected": cost(), **standing(), "notes": Optional_(TEXTS)},
    "watch": lambda: keys_of("commands.watch.Watched"),
    "paths": lambda: keys_of("commands.paths.PathHistory"),
    "atlas.add": lambda: {"new": [member()], "known": [member()], "left": [{"path": str, "reason": str}],
                          "notes": TEXTS},
    "atlas.list": lambda: {**listed(), "orbits": Optional_(list[list[str]]), "left": Optional_(dict[str, str])},
    "atlas.show": lambda: {**member(), "copies": TEXTS, "casts": TEXTS, "children": TEXTS,
                           "measures": [keys_of("atlas.records.Measure", data=str)]},
    "atlas.tag": listed,
    "atlas.remove": listed,
    "atlas.check": lambda: {"members": int, "wrong": dict[str, str]},
    "atlas.map": mapped,
    "atlas.query": lambda: {"atlas": str, "data": str, "kept": bool, **standing(), "notes": Optional_(TEXTS)},
    "atlas.nearest": lambda: {"neighbours": [{"name": str, "distance": float, "lower": float, "stored": float}],
                              "aligned": int, "members": int, "left_out": dict[str, str]},
    "atlas.between": lambda: {"ends": tuple[str, str], "data": str, "names": TEXTS, "barriers": NUMBERS,
                              "highest": float, "direct": float, "measured": int, "notes": TEXTS},
    "atlas.merge": lambda: {"out": str, "kept": TEXTS, "losses": NUMBERS, "refused": dict[str, float],
                            "left_out": dict[str, str], "loss": float, "best": float, "notes": TEXTS},
    "schema": lambda: {"answers": dict[str, str]},
}  # fmt: skip


# ------------------------------------------------------------------ from types to schemas


def schema(kind: Any) -> dict[str, Any]:
    """The JSON Schema of a type, or of an object described key by key; numbers that are not finite are null."""
    simple = {str: "string", int: "integer", bool: "boolean", type(None): "null", Path: "string"}
    if kind is Any:
        return {}
    if kind is float:
        return {"type": ["number", "null"]}
    if kind in (str, int, bool, type(None), Path):
        return {"type": simple[kind]}
    if isinstance(kind, Either):
        return {"anyOf": [schema(kind.shape), {"type": "null"}]}
    if isinstance(kind, Extra):
        return {**schema(kind.shape), "additionalProperties": schema(kind.kind)}
    if isinstance(kind, dict):
        return _object(kind)
    if isinstance(kind, list):
        return {"type": "array", "items": schema(kind[0])}
    if dataclasses.is_dataclass(kind):
        return _object(typing.get_type_hints(kind))
    return _generic(typing.get_origin(kind), typing.get_args(kind), kind)


def _object(shape: Mapping[str, Any]) -> dict[str, Any]:
    needed = [key for key, kind in shape.items() if not isinstance(kind, Optional_)]
    found = {key: schema(kind.kind if isinstance(kind, Optional_) else kind) for key, kind in shape.items()}
    return {"type": "object", "properties": found, "required": needed}


def _generic(origin: Any, given: tuple[Any, ...], kind: Any) -> dict[str, Any]:
    if origin is Literal:
        return {"enum": [*given]}
    if origin in (types.UnionType, typing.Union):
        return _union([schema(one) for one in given])
    if origin in (dict, Mapping) or origin is typing.get_origin(Mapping[str, int]):
        return {"type": "object", "additionalProperties": schema(given[1])}
    if origin is tuple and Ellipsis not in given:
        parts = [schema(one) for one in given]
        return {"type": "array", "prefixItems": parts, "minItems": len(parts), "maxItems": len(parts)}
    if origin in (list, tuple, Sequence) or origin is typing.get_origin(Sequence[int]):
        return {"type": "array", "items": schema(given[0])}
    raise TypeError(f"no JSON Schema of {kind}")


def _union(parts: list[dict[str, Any]]) -> dict[str, Any]:
    if all(set(part) == {"type"} for part in parts):
        names = [name for part in parts for name in ([part["type"]] if isinstance(part["type"], str) else part["type"])]
        return {"type": list(dict.fromkeys(names))}
    return {"anyOf": parts}


def made(answer: str) -> dict[str, Any]:
    """The schema of an answer, as it is now."""
    shape = dict(SHAPES[answer]())
    if "notes" not in shape:
        shape["notes"] = Optional_(TEXTS)
    body = _object({"schema": str, **shape})
    body["properties"]["schema"] = {"const": answers.schema_name(answer)}
    return {"$schema": DIALECT, "title": answers.schema_name(answer), **body}


def closed(found: Any) -> Any:
    """A schema that allows no keys but those that it names."""
    if isinstance(found, list):
        return [closed(part) for part in found]
    if not isinstance(found, dict):
        return found
    kept = {key: closed(part) for key, part in found.items()}
    return (
        {**kept, "additionalProperties": False} if "properties" in kept and "additionalProperties" not in kept else kept
    )


# ------------------------------------------------------------------ what a version promises


def promises(found: Mapping[str, Any], where: str = "") -> dict[str, str]:
    """What a schema says of every key, at any depth: its type, and whether it is always there."""
    told = {where: _said(found)} if where else {}
    for key, part in found.get("properties", {}).items():
        told |= promises(part, f"{where}.{key}".lstrip("."))
        told[f"{where}.{key}".lstrip(".")] += ", always" if key in found["required"] else ", sometimes"
    for key, part in (("items", found.get("items")), ("*", found.get("additionalProperties"))):
        if isinstance(part, dict):
            told |= promises(part, f"{where}[]" if key == "items" else f"{where}.*")
    for number, part in enumerate(found.get("prefixItems", [])):
        told |= promises(part, f"{where}[{number}]")
    for part in found.get("anyOf", []):
        told |= {name: text for name, text in promises(part, where).items() if name != where}
    return told


def _said(found: Mapping[str, Any]) -> str:
    if "const" in found:
        return "text"
    if "anyOf" in found:
        return " or ".join(_said(part) for part in found["anyOf"])
    kind = found.get("type", found.get("enum", "any"))
    return kind if isinstance(kind, str) else " or ".join(map(str, kind))


def broken(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """The keys of a schema that another one has no more, or has otherwise."""
    new = promises(after)
    return [key for key, said in promises(before).items() if new.get(key) != said]


def objections(before: Mapping[str, Any], after: Mapping[str, Any]) -> str | None:
    """Why a schema may not take the place of another; None where it may."""
    if before["title"] != after["title"]:
        return None
    lost = broken(before, after)
    if not lost:
        return None
    answer = after["title"].removeprefix("weightspace.").partition("/")[0]
    return (
        f"{after['title']}: {', '.join(lost)}: gone, or of another type. Scripts read these keys: keep them, or bump "
        f"the version of {answer!r} in src/weightspace/cli/answers.py, say so in CHANGELOG.md, and run make schemas"
    )


# ------------------------------------------------------------------ files


def text_of(found: Mapping[str, Any]) -> str:
    return json.dumps(found, indent=1) + "\n"


def stored(answer: str) -> dict[str, Any] | None:
    """The schema in the package."""
    path = answers.schema_file(answer)
    return json.loads(path.read_text()) if path.exists() else None


def table() -> str:
    """The table of the page: answers and their keys."""
    lines = ["| `schema` | keys |", "|---|---|"]
    for answer in SHAPES:
        found = made(answer)
        names = [
            f"`{key}`" if key in found["required"] else f"(`{key}`)" for key in found["properties"] if key != "schema"
        ]
        lines.append(f"| `{found['title']}` | {', '.join(names)} |")
    return "\n".join(lines) + "\n"


def page(text: str) -> str:
    """The page with the table as it is now, between its two marks."""
    head, mark, rest = text.partition("<!-- keys -->\n")
    _, end, tail = rest.partition("<!-- end of keys -->")
    return f"{head}{mark}{table()}{end}{tail}"


def main() -> int:
    for answer in SHAPES:
        found, before = made(answer), stored(answer)
        if before is not None and (said := objections(before, found)):
            print(said, file=sys.stderr)
            return 1
        answers.schema_file(answer).parent.mkdir(exist_ok=True)
        answers.schema_file(answer).write_text(text_of(found))
    if PAGE.exists():
        PAGE.write_text(page(PAGE.read_text()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
