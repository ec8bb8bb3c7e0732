"""Matching the tensor names of several checkpoints: prefixes, tied tensors, heads, and numbers that are packed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import torch

from weightspace.net.errors import WeightspaceError

__all__ = ["HEADS", "TIED", "in_terms_of", "is_factor", "is_head", "is_statistic", "packed", "partner"]

HEADS = ("classifier", "classification_head", "head", "heads", "score", "fc", "cls", "qa_outputs", "logits_proj")
TIED = (
    ("lm_head.weight", "embed_tokens.weight"),
    ("lm_head.weight", "wte.weight"),
    ("lm_head.weight", "shared.weight"),
    ("embed_out.weight", "embed_in.weight"),
    ("predictions.decoder.weight", "word_embeddings.weight"),
    ("predictions.decoder.bias", "predictions.bias"),
    ("encoder.embed_tokens.weight", "shared.weight"),
    ("decoder.embed_tokens.weight", "shared.weight"),
)
_LEVELS = 3  # of a name that may be a prefix
_PACKED = {"qweight", "qzeros", "weight_packed", "quant_state", "absmax"}
_FACTORS = {"lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B"}
_STATISTICS = {"running_mean", "running_var"}
_FP8 = {torch.float8_e4m3fn, torch.float8_e5m2}

Shapes = Mapping[str, torch.Size]


def in_terms_of(reference: Shapes, given: Shapes, where: str) -> tuple[dict[str, str], str]:
    """The names of `given` -> those names as `reference` would have them, and the prefix that was changed, or "".

    A prefix such as "model." is removed from the names that have it, or put before all names, if more tensors agree
    with `reference` in name and shape afterwards than before, and at least half of all. Raises `WeightspaceError` where
    two prefixes do that equally well. `where`: what holds `given`, for the message.

    >>> import torch
    >>> from weightspace.merging.names import in_terms_of
    >>> a, b = {"w": torch.Size([2]), "v": torch.Size([3])}, {"model.w": torch.Size([2]), "model.v": torch.Size([3])}
    >>> in_terms_of(a, b, "b")
    ({'model.w': 'w', 'model.v': 'v'}, '-model.')
    """
    plain = {name: name for name in given}
    before = _agreeing(reference, given, plain)
    if before == min(len(reference), len(given)):
        return plain, ""
    found: dict[tuple[str, ...], tuple[int, dict[str, str], str]] = {}
    ways = [(f"-{p}", {n: n.removeprefix(p) for n in given}) for p in _prefixes(given)]
    ways += [(f"+{p}", {n: p + n for n in given}) for p in _prefixes(reference)]
    for said, names in ways:
        if len({*names.values()}) == len(names):
            found.setdefault(tuple(names.values()), (_agreeing(reference, given, names), names, said))
    ranked = sorted(found.values(), key=lambda way: -way[0])
    if not ranked or ranked[0][0] <= before or 2 * ranked[0][0] < min(len(reference), len(given)):
        return plain, ""
    if len(ranked) > 1 and ranked[1][0] == ranked[0][0]:
        raise WeightspaceError(
            f"the names of {where} agree with those of the first equally well with {ranked[0][2]!r} and "
            f"{ranked[1][2]!r}; rename its tensors"
        )
    return ranked[0][1], ranked[0][2]


def _agreeing(reference: Shapes, given: Shapes, names: Mapping[str, str]) -> int:
    return sum(reference.get(new) == given[old] for old, new in names.items())


def _prefixes(names: Iterable[str]) -> list[str]:
    """What names begin with, up to a dot, in the order of the names."""
    found: dict[str, None] = {}
    for name in names:
        parts = name.split(".")
        for k in range(1, min(_LEVELS, len(parts) - 1) + 1):
            found[".".join(parts[:k]) + "."] = None
    return [*found]


def partner(name: str, names: Collection[str], tied: Sequence[tuple[str, str]] = TIED) -> str | None:
    """The one of `names` that the tensor `name`, which is not there, would be tied to; None where none or several are.

    `tied`: pairs of names, or ends of names from a dot on.
    """
    ends = {other for pair in tied for one, other in (pair, pair[::-1]) if _ends(name, one)}
    found = [other for other in names if any(_ends(other, end) for end in ends)]
    return found[0] if len(found) == 1 else None


def _ends(name: str, end: str) -> bool:
    return name == end or name.endswith(f".{end}")


def is_head(name: str, heads: Sequence[str] = HEADS) -> bool:
    """Whether a part of a name is one of `heads`, or the name begins with one of them that has dots.

    >>> from weightspace.merging.names import is_head
    >>> is_head("classifier.weight"), is_head("encoder.layer.0.weight")
    (True, False)
    """
    parts = name.split(".")
    return any(head in parts or ("." in head and name.startswith(head)) for head in heads)


def is_factor(name: str) -> bool:
    """Whether a tensor is one of the two factors of a low-rank update (LoRA), by the names of PEFT.

    >>> from weightspace.merging.names import is_factor
    >>> is_factor("h.0.q.lora_A.weight"), is_factor("h.0.q.weight")
    (True, False)
    """
    return not _FACTORS.isdisjoint(name.split("."))


def is_statistic(name: str) -> bool:
    """Whether a tensor is a running mean or variance of a normalisation, which no optimiser has stepped.

    >>> from weightspace.merging.names import is_statistic
    >>> is_statistic("layer1.0.bn1.running_var"), is_statistic("layer1.0.bn1.weight")
    (True, False)
    """
    return name.rpartition(".")[2] in _STATISTICS


def packed(name: str, dtype: torch.dtype) -> bool:
    """Whether a tensor holds quantised numbers, which mean nothing without their scales: fp8, int8 weights, packed."""
    last = name.rpartition(".")[2]
    return dtype in _FP8 or last in _PACKED or (dtype in (torch.int8, torch.uint8) and last == "weight")
