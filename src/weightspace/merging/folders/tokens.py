"""The tokens of a Hugging Face folder and their ids, and the tokenizer that has the tokens of several.

The tokens of a vocabulary are the rows of a network's embedding and of its head: the ids are the rows' numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from weightspace.checkpoint.files import read_json
from weightspace.checkpoint.refusal import CheckpointError, refusal, some

__all__ = ["TOKENIZER", "joint", "joined", "tokenizer_of", "tokens_of"]

TOKENIZER = "tokenizer.json"
LARGEST = 100_000_000  # bytes of a tokenizer
_ENTRIES = 8_000_000
_SAME = ("normalizer", "pre_tokenizer", "decoder")
_PIECES = ("vocab", "merges")


def _json(path: Path) -> Any:
    try:
        return read_json(path, LARGEST, _ENTRIES)
    except (OSError, ValueError) as error:
        raise refusal(path, f"cannot be read ({error})") from error


def _ids(path: Path, found: Any) -> dict[str, int]:
    """The mapping, once it is one from tokens to different non-negative ids."""
    ids = found if isinstance(found, dict) else {}
    if not ids or not all(type(k) is int and 0 <= k < 1 << 31 for k in ids.values()):
        raise refusal(path, "is no mapping from tokens to ids")
    if len({*ids.values()}) < len(ids):
        first: dict[int, str] = {}
        twice = next((token, k) for token, k in ids.items() if first.setdefault(k, token) != token)
        raise refusal(path, f"gives the id {twice[1]} to {first[twice[1]]!r:.40} and to {twice[0]!r:.40}")
    return ids


def tokenizer_of(path: Path) -> dict[str, Any]:
    """The content of a `tokenizer.json`. Raises `CheckpointError` for anything else."""
    found = _json(path)
    model = found.get("model") if isinstance(found, dict) else None
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict | list):
        raise refusal(path, "has no model with a vocabulary", "save the tokenizer again by save_pretrained")
    assert isinstance(found, dict)
    return found


def _of_tokenizer(path: Path, tokenizer: Mapping[str, Any]) -> dict[str, int]:
    pieces = tokenizer["model"]["vocab"]
    try:
        ids = dict(pieces) if isinstance(pieces, dict) else {piece[0]: k for k, piece in enumerate(pieces)}
        ids |= {token["content"]: token["id"] for token in tokenizer.get("added_tokens") or []}
    except (TypeError, KeyError, IndexError) as error:
        raise refusal(path, "has tokens without a text or an id", "save it again by save_pretrained") from error
    return _ids(path, ids)


def tokens_of(path: Path) -> dict[str, int]:
    """The ids of the tokens of a folder or of one of its files, by the text of the token.

    Read are `tokenizer.json` (its model's vocabulary and its added tokens), `vocab.json` or `vocab.txt` (with
    `added_tokens.json` beside it), and any JSON mapping from tokens to ids. Raises `CheckpointError` where there are
    none, and where two tokens have one id.

    >>> import json, tempfile
    >>> from pathlib import Path
    >>> from weightspace.merging.folders.tokens import tokens_of
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = (Path(folder) / "vocab.json").write_text(json.dumps({"a": 0, "b": 1}))
    ...     tokens_of(Path(folder))
    {'a': 0, 'b': 1}
    """
    if path.is_dir():
        for name in (TOKENIZER, "vocab.json", "vocab.txt"):
            if (path / name).is_file():
                return tokens_of(path / name)
        held = some(sorted(p.name for p in path.iterdir() if p.suffix in (".model", ".tiktoken")))
        seen = f"its tokens are in {held}, which is not read" if held else "holds no tokenizer.json or vocab.json"
        raise refusal(path, seen, "save the tokenizer by save_pretrained, or give the tokens as a mapping to ids")
    if path.name.endswith(".txt"):
        try:
            lines = path.read_bytes()[:LARGEST].decode().split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise refusal(path, f"cannot be read ({error})") from error
        lines = lines[:-1] if lines[-1] == "" else lines
        return _ids(path, {line.rstrip("\r"): k for k, line in enumerate(lines)} | _added(path))
    found = _json(path)
    if isinstance(found, dict) and isinstance(found.get("model"), dict):
        return _of_tokenizer(path, tokenizer_of(path))
    return _ids(path, {**_ids(path, found), **_added(path)})


def _added(path: Path) -> dict[str, int]:
    beside = path.with_name("added_tokens.json")
    return _ids(beside, _json(beside)) if beside.is_file() else {}


def joint(vocabularies: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """All tokens of several vocabularies: ids of the first are kept, new tokens follow in the order of their ids.

    >>> from weightspace.merging.folders.tokens import joint
    >>> joint([{"a": 0, "b": 1}, {"c": 0, "a": 1, "d": 2}])
    {'a': 0, 'b': 1, 'c': 2, 'd': 3}
    """
    ids = dict(vocabularies[0])
    following = max(ids.values(), default=-1) + 1
    for vocabulary in vocabularies[1:]:
        for token in sorted(vocabulary, key=vocabulary.__getitem__):
            if token not in ids:
                ids[token] = following
                following += 1
    return ids


def joined(paths: Sequence[Path]) -> tuple[dict[str, Any], list[str]]:
    """The `tokenizer.json` with the tokens of several, numbered as by `joint`, and notes of what it changes.

    Joined are tokenizers of one kind with one normaliser, pre-tokenizer and decoder. Their added tokens are united.
    Where the pieces differ too: pieces of words (WordPiece, WordLevel) are united; of byte pairs (BPE) the merges are,
    where those that several have stand in one order in all of them, so that none of their orders is broken; scores of
    pieces (Unigram) are of one model and cannot be joined. Raises `CheckpointError` that says what differs.
    """
    read = [tokenizer_of(path) for path in paths]
    first, names = read[0], [str(path) for path in paths]
    ids = joint([_of_tokenizer(path, one) for path, one in zip(paths, read, strict=True)])
    do = "take the first's or the base's tokenizer (tokenizer='first' or 'base')"
    for name, other in zip(names[1:], read[1:], strict=True):
        if (what := _unlike(first, other)) is not None:
            raise CheckpointError(f"{names[0]} and {name} cannot be joined: {what}; {do}")
    model, notes = dict(first["model"]), list[str]()
    if any(one["model"]["vocab"] != model["vocab"] for one in read[1:]) or len({*map(_merges, read)}) > 1:
        try:
            model |= _pieces(model["type"], read, ids)
        except ValueError as error:
            raise CheckpointError(f"{some(names)} cannot be joined: {error}; {do}") from error
        notes.append("pieces of several tokenizers are united: a text may be cut otherwise than each parent cut it")
    added = {token["content"]: dict(token) for one in reversed(read) for token in one.get("added_tokens") or []}
    if isinstance(model["vocab"], dict):  # or the ids of added tokens would be counted from the number of pieces
        model["vocab"] = {**model["vocab"], **{text: ids[text] for text in added}}
    elif sorted(ids.values()) != [*range(len(ids))]:
        raise CheckpointError(f"{names[0]} has ids without a token, so none can be added; {do}")
    tokens = sorted(({**token, "id": ids[text]} for text, token in added.items()), key=lambda token: token["id"])
    return {**first, "model": model, "added_tokens": tokens}, notes


def _merges(tokenizer: Mapping[str, Any]) -> tuple[tuple[str, ...], ...]:
    """The merges of byte pairs in order, each as a pair, however the file writes them."""
    found = tokenizer["model"].get("merges") or []
    return tuple(tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in found)


def _unlike(first: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    kinds = [one["model"].get("type") for one in (first, other)]
    if kinds[0] != kinds[1] or not isinstance(kinds[0], str):
        return f"one is {kinds[0]}, the other {kinds[1]}"
    for key in _SAME:
        if first.get(key) != other.get(key):
            return f"they have another {key}"
    for key in sorted({*first["model"], *other["model"]} - {*_PIECES}):
        if first["model"].get(key) != other["model"].get(key):
            return f"{key} is {first['model'].get(key)!r:.40} in one and {other['model'].get(key)!r:.40} in the other"
    return None


def _pieces(kind: str, read: Sequence[Mapping[str, Any]], ids: Mapping[str, int]) -> dict[str, Any]:
    """The vocabulary and merges of all. Raises `ValueError` where they cannot be joined."""
    if kind not in ("BPE", "WordPiece", "WordLevel"):
        raise ValueError(f"the pieces of {kind} have scores of one model")
    vocab = {text: ids[text] for one in read for text in one["model"]["vocab"]}
    if kind != "BPE":
        return {"vocab": vocab}
    merges = [*_merges(read[0])]
    for one in read[1:]:
        merges = _interleaved(merges, [*_merges(one)])
    return {"vocab": vocab, "merges": [list(merge) for merge in merges]}


def _interleaved(first: list[tuple[str, ...]], second: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """One order that keeps both: between what both have, what the first has alone, then the second."""
    place, own = {merge: k for k, merge in enumerate(first)}, {*second}
    anchors = [merge for merge in second if merge in place]
    if [merge for merge in first if merge in own] != anchors:
        raise ValueError("merges that both have stand in another order")
    found, at, held = list[tuple[str, ...]](), 0, list[tuple[str, ...]]()
    for merge in second:
        if merge not in place:
            held.append(merge)
            continue
        found += [*first[at : place[merge]], *held, merge]
        at, held = place[merge] + 1, []
    return [*found, *first[at:], *held]
