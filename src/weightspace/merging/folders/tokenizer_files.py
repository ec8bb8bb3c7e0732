"""The files of the tokenizer of a merged network: those of one parent, or of all parents joined."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from weightspace.checkpoint.refusal import CheckpointError, refusal, some
from weightspace.merging.folders.card import said_name
from weightspace.merging.folders.configuration import as_text, inside, plain
from weightspace.merging.folders.tokens import TOKENIZER, joined, tokens_of
from weightspace.net.errors import WeightspaceError

__all__ = ["CHAT", "SETTINGS", "tokenizer_files"]

SETTINGS = "tokenizer_config.json"
CHAT = "chat_template.jinja"
_PIECES = (
    *("vocab.json", "vocab.txt", "merges.txt", "added_tokens.json", "spiece.model", "tokenizer.model", "source.spm"),
    *("target.spm", "sentencepiece.bpe.model", "vocab-src.json", "vocab-tgt.json", "tekken.json"),
)
_FILES = (TOKENIZER, SETTINGS, "special_tokens_map.json", *_PIECES, CHAT, "chat_template.json")
_FLAGS = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
_CHOOSE = "choose a vocabulary: tokenizer='union', 'first' or 'base'"

Files = dict[str, bytes | Path]
Moved = dict[int, int | None]


def tokenizer_files(
    folders: Sequence[Path], base: Path | None, how: str | Path | None
) -> tuple[Files, Moved | None, list[str]]:
    """The files of the tokenizer; where ids change, ids of the first -> new ids (None: not there); and notes.

    `how`: as in `folder.carried`. Raises `WeightspaceError` for tokenizers that differ where `how` is None, and for
    those that cannot be joined.
    """
    first = folders[0]
    if how is None:
        return _held(first), None, _alike(folders)
    if how == "union":
        same = len({_digest(folder) for folder in folders}) == 1
        files, notes = (_held(first), []) if same else _united(folders)
        return files, None, notes
    if how == "base" and base is None:
        raise WeightspaceError("the base's tokenizer is asked for, and the base has no folder; take 'first'")
    source = first if how == "first" else base if how == "base" and base is not None else Path(how)
    source = source if source.is_dir() else source.parent
    if source == first:
        return _held(first), None, []
    new = tokens_of(source)
    moved = {k: new.get(token) for token, k in tokens_of(first).items()}
    return _held(source), moved, [f"the tokenizer is that of {said_name(source)}"]


def _held(folder: Path) -> Files:
    made: Files = {name: path for name in _FILES if (path := inside(folder, name)) is not None}
    chats = folder / "additional_chat_templates"
    for name in sorted(p.name for p in chats.iterdir()) if chats.is_dir() else []:
        if re.fullmatch(r"[\w-]+\.jinja", name) and (path := inside(folder, f"{chats.name}/{name}")) is not None:
            made[f"{chats.name}/{name}"] = path
    return made


def _digest(folder: Path) -> str:
    """A hash of the files that say which token has which id."""
    made = hashlib.sha256()
    for name in (TOKENIZER, *_PIECES):
        if (path := inside(folder, name)) is not None:
            made.update(name.encode() + hashlib.sha256(path.read_bytes()).digest())
            if name == TOKENIZER:
                break
    return made.hexdigest()


def _alike(folders: Sequence[Path]) -> list[str]:
    """Notes about tokens that only some have. Raises `CheckpointError` where an id is of two tokens."""
    unlike = [folder for folder in dict.fromkeys(folders) if _digest(folder) != _digest(folders[0])]
    unlike = [folder for folder in unlike if _held(folder)]  # networks of images, and bare weights, have no tokens
    if not unlike or not _held(folders[0]):
        return [f"{said_name(folders[0])} has no tokenizer, so none is written"] if unlike else []
    name, notes = said_name(folders[0]), []
    try:
        first = tokens_of(folders[0])
    except CheckpointError:
        return [f"the tokenizers of {some(map(said_name, unlike))} and {name} differ and cannot be compared"]
    at = {k: token for token, k in first.items()}
    for folder in unlike:
        try:
            other = tokens_of(folder)
        except CheckpointError:
            notes.append(f"the tokenizers of {said_name(folder)} and {name} differ and cannot be compared")
            continue
        for token, k in other.items():
            if first.get(token, k) != k or at.get(k, token) != token:
                seen = f"the id {k} is {at.get(k)!r:.40} in {name} and {token!r:.40} in {said_name(folder)}"
                if at.get(k, token) == token:
                    seen = f"{token!r:.40} has the id {first[token]} in {name} and {k} in {said_name(folder)}"
                raise CheckpointError(f"{seen}: their rows are of other tokens; {_CHOOSE}")
        if more := [token for token in other if token not in first]:
            notes.append(f"{some(more)} of {said_name(folder)} are no tokens of {name}, whose tokenizer was taken")
    return notes


def _united(folders: Sequence[Path]) -> tuple[Files, list[str]]:
    paths = []
    for folder in dict.fromkeys(folders):
        path = inside(folder, TOKENIZER)
        if path is None:
            raise refusal(
                folder, f"has no {TOKENIZER}, so its tokens cannot be joined", "take the first's or the base's"
            )
        paths.append(path)
    tokenizer, notes = joined(paths)
    made = {name: content for name, content in _held(folders[0]).items() if name not in _PIECES}
    made[TOKENIZER] = as_text(tokenizer)
    settings = plain(made.get(SETTINGS))
    if "added_tokens_decoder" in settings:
        settings["added_tokens_decoder"] = {str(token["id"]): _flags(token) for token in tokenizer["added_tokens"]}
        made[SETTINGS] = as_text(settings)
    return made, [*notes, f"the tokens of {len(paths)} tokenizers are joined in {TOKENIZER}"]


def _flags(token: dict[str, Any]) -> dict[str, Any]:
    return {key: token[key] for key in _FLAGS if key in token}
