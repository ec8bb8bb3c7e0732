"""The `config.json` of a merged network: that of the first parent, changed where the merge changes it."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from weightspace.checkpoint.files import parse, read_json
from weightspace.checkpoint.refusal import CheckpointError, refusal

__all__ = ["CONFIG", "Changes", "as_text", "config_of", "inside", "merged_config", "plain"]

CONFIG = "config.json"
_LARGEST = 1 << 30  # bytes of a file that is copied
_FREE = re.compile(  # of files, of training, and of what a call returns
    r"_name_or_path|name_or_path|_commit_hash|transformers_version|torch_dtype|dtype|use_cache|output_\w+|return_dict\w*"
    r"|problem_type|chunk_size_feed_forward|\w*drop(out|path)?\w*|\w*pdrop|layerdrop|initializer_\w+|init_\w+|auto_map"
    r"|gradient_checkpointing|pretraining_tp|finetuning_task|_attn_implementation\w*|unsloth\w*|tokenizer_class|model_name"
)
_FUNCTION = re.compile(  # of the function: a mean of two networks that differ here is neither's
    r"model_type|hidden_sizes?|n_embd|embed_dim|d_model|d_ff|d_kv|dim|hidden_dim|ffn_dim|n_inner|intermediate_size"
    r"|ffn_hidden_size|n_heads?|num_heads|(num_)?(encoder_|decoder_)?attention_heads|num_(attention|key_value|kv)_heads"
    r"|head_dim|kv_channels|multi_query|num_(local_)?experts\w*|n_routed_experts|hidden_act(ivation)?"
    r"|activation(_function)?|dense_act_fn|feed_forward_proj|is_gated_act|patch_size|num_channels|is_(encoder_)?decoder"
    r"|do_layer_norm_before|use_parallel_residual|parallel_attn|alibi|position_embedding_type|new_decoder_architecture"
    r"|rotary_dim|qk_layernorm|\w+_softcapping|query_pre_attn_scalar|word_embed_proj_dim|projection_dim"
)
_COUNT = re.compile(r"num_hidden_layers|n_layers?|num_layers")
_BY_LAYER = re.compile(r"\w*(layer|type|pattern|window|heads|sizes|block|idx)\w*")
_UNSAID = "(not said)"
_NUMBERS = re.compile(r"\w*(layers|idxs?|indices|indexes)")


@dataclass(frozen=True)
class Changes:
    """What a merge changes in a network's description; None is what the first parent has.

    `rows`: of the embedding. `layers`: for each layer of the merged network the layer of the first parent that it is
    like. `tied`: whether the head is the embedding, of which parents may disagree.
    """

    rows: int | None = None
    layers: Sequence[int] | None = None
    dtype: torch.dtype | None = None
    tied: bool | None = None
    more: Mapping[str, Any] = field(default_factory=dict)


def as_text(value: Any) -> bytes:
    """A plain value as the text of a JSON file."""
    return (json.dumps(value, ensure_ascii=False, indent=2) + "\n").encode()


def plain(content: bytes | Path | None) -> dict[str, Any]:
    """The mapping in a JSON text or file; empty where it holds another value. Raises `CheckpointError`."""
    try:
        found = {} if content is None else parse(content) if isinstance(content, bytes) else read_json(content)
    except (OSError, ValueError) as error:
        raise refusal(content if isinstance(content, Path) else "JSON", f"cannot be read ({error})") from error
    return found if isinstance(found, dict) else {}


def inside(home: Path, name: str) -> Path | None:
    """A file of a folder, if it is there. Raises `CheckpointError` for a link that leaves the folder (or hub cache)."""
    path = home / name
    if not path.is_file():
        return None
    real = home.resolve()
    root = real.parent.parent if real.parent.name == "snapshots" else real
    if not path.resolve().is_relative_to(root):
        raise refusal(path, f"is a link that leaves {root}", "copy the file there instead")
    if path.stat().st_size > _LARGEST:
        raise refusal(path, f"has more than {_LARGEST:,} bytes", "check what this file is")
    return path


def config_of(home: Path) -> dict[str, Any]:
    """The mapping in the `config.json` of a folder. Raises `CheckpointError` for anything else."""
    path = home / CONFIG
    try:
        found = read_json(path)
    except (OSError, ValueError) as error:
        raise refusal(path, f"cannot be read ({error})") from error
    if not isinstance(found, dict):
        raise refusal(path, f"is a {type(found).__name__}, not a mapping")
    if found.get("quantization_config"):
        raise refusal(path, "describes a quantised network", "merge the networks that were quantised, then quantise")
    return found


def merged_config(
    configs: Sequence[Mapping[str, Any]], names: Sequence[str], changes: Changes
) -> tuple[dict[str, Any], list[str]]:
    """The configuration of the merged network, and notes of what was changed and of what parents disagree about.

    What enters the function other than by the weights (kind, sizes, heads, activation) has to be equal. Other
    differences (rotary frequencies, epsilons of norms, windows, labels) are noted; the first parent's value is kept.
    Raises `CheckpointError` for the former.

    >>> from weightspace.merging.folders.configuration import Changes, merged_config
    >>> a, b = {"model_type": "gpt2", "vocab_size": 5}, {"model_type": "gpt2", "vocab_size": 6}
    >>> merged_config([a, b], ["a", "b"], Changes(rows=8))
    ({'model_type': 'gpt2', 'vocab_size': 8}, ['config.json: vocab_size 5 -> 8'])
    """
    made, notes = copy.deepcopy(dict(configs[0])), list[str]()
    for config, name in zip(configs[1:], names[1:], strict=True):
        for key, first, other in _differences(configs[0], config):
            leaf = key.rpartition(".")[2]
            if _UNSAID in (first, other):
                notes += [f"config.json: {key} is in one of {names[0]} and {name} alone"] * bool(
                    _FUNCTION.fullmatch(leaf)
                )
                continue
            if leaf == "vocab_size" and changes.rows is not None or _COUNT.fullmatch(leaf) and changes.layers:
                continue
            if changes.layers and _BY_LAYER.fullmatch(leaf) and isinstance(first, list):
                continue
            seen = f"{key} is {_short(first)} in {names[0]} and {_short(other)} in {name}"
            if leaf == "tie_word_embeddings" and changes.tied is not None:
                continue
            if leaf == "vocab_size":
                do = "choose the vocabulary: tokenizer='union', 'first' or 'base'"
                raise CheckpointError(f"config.json: {seen}; {do}")
            if _FUNCTION.fullmatch(leaf) or _COUNT.fullmatch(leaf):
                raise CheckpointError(f"config.json: {seen}; networks of one architecture can be merged")
            notes.append(f"config.json: {seen}; {_short(first)} was kept")
    if changes.rows is not None:
        notes += _resized(made, configs[0], changes.rows)
    if changes.layers is not None:
        notes += _restacked(made, changes.layers)
    if changes.dtype is not None:
        _typed(made, str(changes.dtype).removeprefix("torch."))
    unlike = len({config.get("tie_word_embeddings") for config in configs}) > 1
    if unlike and changes.tied is not None and made.get("tie_word_embeddings", True) != changes.tied:
        made["tie_word_embeddings"] = changes.tied
        notes.append(f"config.json: tie_word_embeddings -> {changes.tied}")
    return {**made, **changes.more}, notes


def _short(value: Any) -> str:
    return f"{value!r:.60}"


def _differences(first: Mapping[str, Any], other: Mapping[str, Any], key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The keys that differ, with both values; `_UNSAID` where one lacks the key, which may have its default there."""
    for name in dict.fromkeys([*first, *other]):
        if _FREE.fullmatch(name):
            continue
        a, b = first.get(name, _UNSAID), other.get(name, _UNSAID)
        if isinstance(a, Mapping) and isinstance(b, Mapping) and name not in ("id2label", "label2id"):
            yield from _differences(a, b, f"{key}{name}.")
        elif a != b:
            yield f"{key}{name}", a, b


def _parts(config: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The configuration and those inside of it (`text_config`, `vision_config`), with their prefix."""
    yield "", config
    for name, value in config.items():
        if name.endswith("config") and isinstance(value, dict):
            yield f"{name}.", value


def _resized(made: dict[str, Any], before: Mapping[str, Any], rows: int) -> list[str]:
    places = [(prefix, part) for prefix, part in _parts(made) if type(part.get("vocab_size")) is int]
    if len({part["vocab_size"] for _, part in places}) > 1:
        seen = ", ".join(f"{prefix}vocab_size {part['vocab_size']}" for prefix, part in places)
        raise CheckpointError(
            f"config.json: {seen}; it is not plain which one changes, so keep the vocabulary as it is"
        )
    old = places[0][1]["vocab_size"] if places else before.get("vocab_size")
    for _, part in places or [("", made)]:
        part["vocab_size"] = rows
    return [f"config.json: vocab_size {old} -> {rows}"] if old != rows else []


def _typed(made: dict[str, Any], dtype: str) -> None:
    keys = [(part, key) for _, part in _parts(made) for key in ("dtype", "torch_dtype") if part.get(key) is not None]
    for part, key in keys or [(made, "dtype" if "dtype" in made else "torch_dtype")]:
        part[key] = dtype


def _restacked(made: dict[str, Any], layers: Sequence[int]) -> list[str]:
    """The number of layers, and lists with an entry for every layer or with the numbers of some."""
    places = [(prefix, part, key) for prefix, part in _parts(made) for key in part if _COUNT.fullmatch(key)]
    places = [place for place in places if type(place[1][place[2]]) is int and place[1][place[2]] > max(layers)]
    if len({id(part) for _, part, _ in places}) != 1:
        raise CheckpointError("config.json: no one place says how many layers there are; stack layers of one network")
    prefix, part, counted = places[0]
    old, notes = part[counted], []
    if any(key in part for key in ("attention_types", "num_decoder_layers", "first_k_dense_replace")):
        raise CheckpointError(
            "config.json: which layer is of which kind is not listed layer by layer; do not stack them"
        )
    for key, value in list(part.items()):
        if not isinstance(value, list) or not _BY_LAYER.fullmatch(key):
            continue
        if len(value) == old:
            part[key] = [value[layer] for layer in layers]
        elif value and _NUMBERS.fullmatch(key) and all(type(k) is int and 0 <= k < old for k in value):
            part[key] = [k for k, layer in enumerate(layers) if layer in value]
        if part[key] != value:
            notes.append(f"config.json: {prefix}{key} is that of the layers taken")
    for _, _, key in places:
        part[key] = len(layers)
    if "max_window_layers" in part and part["max_window_layers"] == old:
        part["max_window_layers"] = len(layers)
    return [f"config.json: {prefix}{counted} {old} -> {len(layers)}", *notes] if old != len(layers) else notes
