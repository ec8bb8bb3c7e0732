"""Recipes in mergekit's YAML: models, slices of layers, parameters by model, filter and depth, tokenizers.

What is not known is an error that names the key and its line; models are local folders.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from weightspace.checkpoint.refusal import CheckpointError, refusal
from weightspace.merging.folders import yaml_text
from weightspace.merging.folders.mergekit_settings import Known, Setting, known
from weightspace.merging.folders.yaml_text import Node
from weightspace.net.errors import WeightspaceError
from weightspace.net.public import public

__all__ = ["MergeFile", "Slice", "Source", "recipe_of"]

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32, "float64": torch.float64}
_TOP = (
    *("merge_method", "models", "slices", "base_model", "parameters", "dtype", "out_dtype", "tokenizer_source"),
    *("tokenizer", "chat_template"),
)
_LORA = "weightspace merges an adapter into its base first: give the folder of that network"


@dataclass(frozen=True)
class Source:
    """A model in a slice: its number, the layers taken (first, after the last; None is all), its own parameters."""

    model: int
    layers: tuple[int, int] | None
    parameters: Mapping[str, Setting]


@dataclass(frozen=True)
class Slice:
    """Layers of the merged network: of which models, with parameters for all of them, and where this stands."""

    sources: tuple[Source, ...]
    parameters: Mapping[str, Setting]
    line: int


@dataclass(frozen=True)
class MergeFile:
    """A recipe file as read: see `recipe_of`. `models`: all folders, `base` the number of one; the others in order.

    `slices`: one that takes all layers where the file gives models. `own`: tokens whose rows are chosen, as (model,
    token or row), or None for zero; of those in `forced` in every model.
    """

    path: Path
    method: str
    models: tuple[Path, ...]
    base: int | None
    slices: tuple[Slice, ...]
    stacked: bool
    parameters: Mapping[str, Setting]
    dtype: torch.dtype | None = None
    tokenizer: str | Path | None = None
    own: Mapping[str, tuple[int, str | int] | None] | None = None
    forced: frozenset[str] = frozenset()
    multiple: int = 1
    chat_template: str | None = None

    @property
    def known(self) -> Known:
        """The parameters of the method."""
        return known(self.method)


@public
def recipe_of(path: str | Path) -> MergeFile:
    """A recipe in mergekit's YAML: `merge_method`, `models` or `slices`, `parameters`, `base_model`, types, tokenizers.

    Folders are relative to the current one, or else to that of the file. Raises `CheckpointError` with the line for
    what is not known or not there: methods, keys, models that are no folders, adapters (`model+lora`), modules.

    >>> import tempfile
    >>> from pathlib import Path
    >>> from weightspace.merging.folders.mergekit_file import recipe_of
    >>> text = "merge_method: linear\\nmodels:\\n- {model: a, parameters: {weight: 1}}\\n- {model: b, weights: 2}\\n"
    >>> with tempfile.TemporaryDirectory() as place:
    ...     for name in "ab":
    ...         (Path(place) / name).mkdir()
    ...     _ = (Path(place) / "m.yml").write_text(text)
    ...     try:
    ...         recipe_of(Path(place) / "m.yml")
    ...     except ValueError as error:
    ...         print(str(error).rpartition("/")[2])
    m.yml, line 4: 'weights' is not known here; it may be model or parameters
    """
    path = Path(path)
    try:
        top = yaml_text.read(path)
    except OSError as error:
        raise refusal(path, f"cannot be read ({error.strerror or error})", "check the path") from error
    except ValueError as error:
        raise refusal(path, str(error), "correct it") from error
    return _Reading(path).file(top)


class _Reading:
    """The file as it is read; its models are numbered as they are met."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.models: list[Path] = []
        self.method = Known()

    def refuse(self, node: Node, seen: str, do: str = "") -> CheckpointError:
        return CheckpointError(f"{self.path}, line {node.line}: {seen}{'; ' * bool(do)}{do}")

    def keys(self, node: Node, allowed: Sequence[str]) -> dict[str, Node]:
        """The entries of a mapping. Raises an error for one that is not allowed."""
        if not isinstance(node.value, dict):
            raise self.refuse(node, f"{node.plain!r:.60} is no mapping", f"give {' or '.join(allowed)}")
        for key, value in node.value.items():
            if key not in allowed:
                may = f"{', '.join(allowed[:-1])} or {allowed[-1]}" if len(allowed) > 1 else "".join(allowed)
                raise self.refuse(value, f"{key!r} is not known here", f"it may be {may}" if may else "there are none")
        return {key: value for key, value in node.value.items() if value.value is not None}

    def items(self, node: Node) -> list[Node]:
        if not isinstance(node.value, list) or not node.value:
            raise self.refuse(node, f"{node.plain!r:.60} is no list", "give one or more with a dash each")
        return node.value

    def text(self, node: Node) -> str:
        if not isinstance(node.value, str):
            raise self.refuse(node, f"{node.plain!r:.60} is no text")
        return node.value

    def whole(self, node: Node) -> int:
        if type(node.value) is not int or node.value < 0:
            raise self.refuse(node, f"{node.plain!r:.60} is no number of this kind", "give 0, 1, 2, ...")
        return node.value

    def file(self, top: Node) -> MergeFile:
        if isinstance(top.value, dict) and "modules" in top.value:
            raise self.refuse(top.value["modules"], "modules are not read", "give models or slices")
        keys = self.keys(top, _TOP)
        if "merge_method" not in keys:
            raise self.refuse(top, "there is no merge_method")
        method = self.text(keys["merge_method"])
        try:
            self.method = known(method)
        except WeightspaceError as error:
            raise self.refuse(keys["merge_method"], str(error)) from error
        if ("models" in keys) == ("slices" in keys):
            raise self.refuse(top, "there are both models and slices" if "models" in keys else "there are no models")
        base = self.model(keys["base_model"]) if "base_model" in keys else None
        slices = (
            [*map(self.slice, self.items(keys["slices"]))] if "slices" in keys else [self.all(keys["models"], base)]
        )
        dtype = [self.dtype(keys[key]) for key in ("out_dtype", "dtype") if key in keys]
        tokenizer = self.tokenizer(keys)
        return MergeFile(
            self.path, method, tuple(self.models), base, tuple(slices), "slices" in keys, self.parameters(keys),
            dtype[0] if dtype else None, **tokenizer, chat_template=self.template(keys.get("chat_template")),
        )  # fmt: skip

    def all(self, models: Node, base: int | None) -> Slice:
        """All layers of the models, and of the base where it is not one of them."""
        sources = []
        for node in self.items(models):
            keys = self.keys(node, ("model", "parameters"))
            if "model" not in keys:
                raise self.refuse(node, "there is no model")
            sources.append(Source(self.model(keys["model"]), None, self.parameters(keys)))
        if base is not None and base not in [source.model for source in sources]:
            sources.append(Source(base, None, {}))
        return Slice(tuple(sources), {}, models.line)

    def slice(self, node: Node) -> Slice:
        keys, sources = self.keys(node, ("sources", "parameters")), []
        if "sources" not in keys:
            raise self.refuse(node, "a slice without sources")
        for source in self.items(keys["sources"]):
            own = self.keys(source, ("model", "layer_range", "parameters"))
            if missing := [key for key in ("model", "layer_range") if key not in own]:
                raise self.refuse(source, f"a source without {missing[0]}")
            ends = self.items(own["layer_range"])
            first, last = [*map(self.whole, ends)] if len(ends) == 2 else (0, 0)
            if first >= last:
                seen = f"the layers {own['layer_range'].plain!r:.60}"
                raise self.refuse(own["layer_range"], seen, "give [first, last + 1], counted from 0")
            sources.append(Source(self.model(own["model"]), (first, last), self.parameters(own)))
        if len({source.layers[1] - source.layers[0] for source in sources if source.layers}) > 1:
            raise self.refuse(node, "sources of different numbers of layers in one slice")
        return Slice(tuple(sources), self.parameters(keys), node.line)

    def model(self, node: Node) -> int:
        """The number of a model: a folder or a file of weights."""
        if isinstance(node.value, dict):
            raise self.refuse(node, "a model that is a mapping", f"give a folder ({_LORA})")
        name = self.text(node)
        found = self.place(name)
        if found is None and "+" in name and self.place(name.partition("+")[0]) is not None:
            raise self.refuse(node, f"{name!r} is a model with an adapter (model+lora)", _LORA)
        if found is None:
            do = (
                f"download it (hf download {name} --local-dir FOLDER) and give its folder"
                if "/" in name
                else "check it"
            )
            raise self.refuse(node, f"{name!r} is no folder here", do)
        if found not in self.models:
            self.models.append(found)
        return self.models.index(found)

    def place(self, name: str) -> Path | None:
        path = Path(name).expanduser()
        tried = [path] if path.is_absolute() else [path, self.path.parent / path]
        return next((p.resolve() for p in tried if name and p.exists()), None)

    def dtype(self, node: Node) -> torch.dtype:
        name = self.text(node).removeprefix("torch.")
        if name not in _DTYPES:
            raise self.refuse(node, f"dtype {name!r:.60}", f"it may be {', '.join(_DTYPES)}")
        return _DTYPES[name]

    # -------------------------------------------------------------- parameters

    def parameters(self, keys: Mapping[str, Node]) -> dict[str, Setting]:
        if "parameters" not in keys:
            return {}
        node = keys["parameters"]
        given = self.keys(node, self.method.names())
        for name in self.method.by_merge:
            if name in given and "sources" not in keys and "model" in keys:
                raise self.refuse(given[name], f"{name} holds for all models together", "give it outside of models")
        found = {name: self.setting(value) for name, value in given.items() if name not in self.method.without}
        return found

    def setting(self, node: Node) -> Setting:
        if not isinstance(node.value, list):
            return self.setting(Node([node], node.line)) if isinstance(node.value, dict) else self.number(node)
        if not any(isinstance(item.value, dict) for item in node.value):
            return [self.number(item) for item in self.items(node)]
        pairs = []
        for item in node.value:
            keys = self.keys(item, ("filter", "value"))
            if "value" not in keys:
                raise self.refuse(item, "a filter without a value")
            value = keys["value"]
            gradient = isinstance(value.value, list)
            number = [self.number(one) for one in self.items(value)] if gradient else self.number(value)
            pairs.append((self.text(keys["filter"]) if "filter" in keys else None, number))
        return pairs

    def number(self, node: Node) -> float:
        try:
            found = float(node.value)  # YAML reads 1e-5 as text, true as a number
        except (TypeError, ValueError, OverflowError):
            found = float("nan")
        if not abs(found) < float("inf"):
            raise self.refuse(node, f"{node.plain!r:.60} is no finite number")
        return found

    # -------------------------------------------------------------- tokens

    def tokenizer(self, keys: Mapping[str, Node]) -> dict[str, Any]:
        if "tokenizer_source" in keys and "tokenizer" in keys:
            raise self.refuse(keys["tokenizer"], "tokenizer and tokenizer_source", "give one of them")
        if "tokenizer_source" in keys:
            return {"tokenizer": self.vocabulary(keys["tokenizer_source"])}
        if "tokenizer" not in keys:
            return {}
        own = self.keys(keys["tokenizer"], ("source", "tokens", "pad_to_multiple_of"))
        made: dict[str, Any] = {"tokenizer": self.vocabulary(own["source"]) if "source" in own else "union"}
        if "pad_to_multiple_of" in own:
            made["multiple"] = max(1, self.whole(own["pad_to_multiple_of"]))
        tokens, forced = dict[str, tuple[int, str | int] | None](), set()
        every = own["tokens"].value if "tokens" in own else {}
        for token, node in self.keys(own["tokens"], [*every]).items() if every else ():
            given = self.keys(node, ("source", "force"))
            if "source" in given:
                tokens[token] = self.row(token, given["source"])
                forced |= {token} if "force" in given and given["force"].value is True else set()
        return {**made, "own": tokens, "forced": frozenset(forced)}

    def vocabulary(self, node: Node) -> str | Path:
        name = self.text(node)
        if name in ("union", "base"):
            return name
        return self.models[self.model(Node(name.removeprefix("model:"), node.line))]

    def row(self, token: str, node: Node) -> tuple[int, str | int] | None:
        """Whose row a token takes: of the same token in a model, of another there, or none (zero)."""
        if not isinstance(node.value, dict):
            return self.model(node), token
        keys = self.keys(node, ("kind", "model", "token", "token_id"))
        kind = self.text(keys["kind"]) if "kind" in keys else ""
        if kind == "zero":
            return None
        if kind != "model_token" or "model" not in keys or ("token" in keys) == ("token_id" in keys):
            raise self.refuse(node, "no source of a row", "give a model, kind: zero, or kind: model_token with a token")
        model = self.model(keys["model"])
        return model, self.text(keys["token"]) if "token" in keys else self.whole(keys["token_id"])

    def template(self, node: Node | None) -> str | None:
        if node is None:
            return None
        text = self.text(node)
        if text != "auto" and "{" not in text:
            raise self.refuse(node, f"chat_template {text!r:.60}", "give auto, or the template itself")
        return text
