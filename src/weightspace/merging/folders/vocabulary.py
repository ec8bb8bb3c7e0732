"""Parents of other vocabularies: their embeddings and heads with rows in one common numbering, read when asked for."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from weightspace.checkpoint.refusal import some
from weightspace.merging.folders.tokens import joint, tokens_of
from weightspace.merging.part import entries, reading
from weightspace.net.errors import WeightspaceError
from weightspace.net.public import public
from weightspace.net.weights import shapes_of

__all__ = ["Numbering", "Renumbered", "has_head", "in_one_vocabulary", "renumbered", "tables", "tied_to"]

_INPUT = r"embed_tokens|wte|word_embeddings?|tok(en)?_embeddings?|embed_in|shared|embeddings|tokens_embed"
_HEAD = r"lm_head|embed_out|output|output_layer|head|lm_head\.decoder|cls\.predictions(\.decoder)?|(mlm|lm)_?head"
_HEAD += r"|generator_lm_head|predictions\.(decoder|bias)|final_logits_bias|vocab_projector"
_IS_INPUT = re.compile(rf"(.*\.)?({_INPUT})\.weight")
_IS_HEAD = re.compile(rf"(.*\.)?({_HEAD})(\.weight|\.bias)?")
_THROUGH = 1 << 19  # bytes between two rows that are read along rather than left out
_AT_ONCE = 1 << 26  # bytes that are read at once


@dataclass(frozen=True)
class Numbering:
    """A common vocabulary: the id of every token, and the number of rows, of which some may belong to no token.

    `padding`: the parent whose rows of no token are kept. `own`: tokens whose row is that of one parent whatever the
    others have, as (parent, row), or zero as None; of those in `forced`, in every parent, else in the parents that lack
    the token.
    """

    ids: Mapping[str, int]
    rows: int
    padding: int = 0
    own: Mapping[str, tuple[int, int] | None] = field(default_factory=dict)
    forced: frozenset[str] = frozenset()


@dataclass(frozen=True)
class _Table:
    """A tensor of rows: each the mean of rows of the sources, by the numbers in `index`, of which -1 is none."""

    shape: torch.Size
    dtype: torch.dtype
    sources: Sequence[tuple[Mapping[str, Tensor], str, Tensor]]
    axis: int

    @property
    def width(self) -> int:
        return self.shape[self.axis + 1 :].numel()

    def read(self, first: int, last: int) -> Tensor:
        """The rows from `first` to `last`, as a matrix."""
        made = torch.zeros(last - first, self.width, dtype=self.dtype)
        counts = torch.zeros(last - first, dtype=torch.long)
        wanted = [(source, name, index[first:last]) for source, name, index in self.sources]
        for _, _, index in wanted:
            counts += index >= 0
        several = counts > 1
        total = torch.zeros(int(several.sum()), self.width, dtype=torch.float64)
        place = several.cumsum(0) - 1
        for source, name, index in wanted:
            at = (index >= 0).nonzero().flatten()
            if not at.numel():
                continue
            rows = _rows(source, name, index[at], self.width)
            alone = ~several[at]
            made[at[alone]] = rows[alone].to(self.dtype)
            total[place[at[~alone]]] += rows[~alone].double()
        made[several] = (total / counts[several].unsqueeze(1)).to(self.dtype)
        return made


def _rows(source: Mapping[str, Tensor], name: str, index: Tensor, width: int) -> Tensor:
    """Rows of a tensor by their numbers; near ones are read together."""
    read, size = reading((source, name)), 4 * max(1, width)
    ordered, order = index.sort()
    apart = ordered[1:] - ordered[:-1] > max(1, _THROUGH // size)
    apart |= ordered[1:] // max(1, _AT_ONCE // size) > ordered[:-1] // max(1, _AT_ONCE // size)
    found = []
    for run in ordered.tensor_split(apart.nonzero().flatten() + 1):
        low, high = int(run[0]), int(run[-1]) + 1
        block = read(low * width, high * width).view(high - low, width)
        found.append(block.clone() if len(run) == 1 else block[run - low])  # the next reading may overwrite it
    rows = torch.cat(found)
    return torch.empty_like(rows).index_copy_(0, order, rows)


class Renumbered(Mapping[str, Tensor]):
    """The tensors of a network whose embeddings and heads have the rows of a common vocabulary.

    Nothing is read before it is asked for: `shapes` and `dtypes` are known, `flat(name, start, stop)` reads the entries
    of the rows that it needs.
    """

    def __init__(self, source: Mapping[str, Tensor], made: Mapping[str, _Table]) -> None:
        self._source, self._made = source, made

    def __getitem__(self, name: str) -> Tensor:
        table = self._made.get(name)
        return self._source[name] if table is None else table.read(0, table.shape[table.axis]).reshape(table.shape)

    def flat(self, name: str, start: int, stop: int) -> Tensor:
        """The entries `start` to `stop` of a tensor in row-major order."""
        table = self._made.get(name)
        if table is None:
            return entries(self._source, name, start, stop)
        start, stop, _ = slice(start, stop).indices(table.shape.numel())
        first, last = start // table.width, -(-max(start, stop) // table.width)
        found = table.read(first, last).reshape(-1)
        return found[start - first * table.width : max(start, stop) - first * table.width]

    def __iter__(self) -> Iterator[str]:
        return iter(self._source)

    def __len__(self) -> int:
        return len(self._source)

    @property
    def stamps(self) -> list[str] | None:
        """What the tensors depend on: the stamps of all files that are read, and the numbering; None without files."""
        sources = {id(s): s for table in self._made.values() for s, _, _ in table.sources} | {0: self._source}
        known = [getattr(source, "stamps", None) for source in sources.values()]
        if not all(known):
            return None
        numbering = hashlib.sha256()
        for name, table in sorted(self._made.items()):
            numbering.update(f"{name} {tuple(table.shape)} {table.dtype}".encode())
            for source, there, index in table.sources:
                numbering.update(f"{[*sources].index(id(source))} {there}".encode() + index.numpy().tobytes())
        return [*map(str, known), numbering.hexdigest()]

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """The shapes of the tensors by name; no tensor is read."""
        return {**shapes_of(self._source), **{name: table.shape for name, table in self._made.items()}}

    @property
    def dtypes(self) -> dict[str, torch.dtype]:
        """The dtypes of the tensors by name; no tensor is read where the source knows them."""
        known = getattr(self._source, "dtypes", None)
        return dict(known) if known is not None else {name: self._source[name].dtype for name in self._source}


def has_head(names: Iterable[str]) -> bool:
    """Whether a head with a row per token is among the names of a network's tensors: it is not tied, or stored twice.

    >>> from weightspace.merging.folders.vocabulary import has_head
    >>> has_head(["wte.weight", "lm_head.weight"]), has_head(["wte.weight", "ln_f.weight"])
    (True, False)
    """
    return any(name.endswith(".weight") and _IS_HEAD.fullmatch(name) is not None for name in names)


def tied_to(name: str, names: Iterable[str]) -> str | None:
    """The embedding that takes the place of a head that a network lacks because both are one; None where none does.

    >>> from weightspace.merging.folders.vocabulary import tied_to
    >>> tied_to("lm_head.weight", ["wte.weight", "h.0.w"]), tied_to("h.1.w", ["wte.weight", "h.0.w"])
    ('wte.weight', None)
    """
    found = [other for other in names if _IS_INPUT.fullmatch(other)] if has_head([name]) else []
    return found[0] if len(found) == 1 else None


def tables(source: Mapping[str, Tensor], least: int, names: Iterable[str] | None = None) -> dict[str, int]:
    """The axis of the rows of each tensor that has a row for every token: embeddings, heads and their biases.

    They are the tensors with the usual names of embeddings of tokens and at least `least` rows, and the heads with as
    many; or those in `names`. Raises `WeightspaceError` where there are none, where they have different numbers of
    rows, and where a tensor has as many rows and no known name.

    >>> import torch
    >>> from weightspace.merging.folders.vocabulary import tables
    >>> tables({"wte.weight": torch.zeros(7, 2), "h.0.mlp.weight": torch.zeros(8, 2)}, 5)
    {'wte.weight': 0}
    """
    shapes = shapes_of(source)
    if names is not None:
        if missing := [name for name in names if name not in shapes]:
            raise WeightspaceError(f"no tensor {missing[0]!r}; the network has {some(shapes)}")
        axes = {name: _axis(shapes[name]) for name in names}
        sizes = {shapes[name][axis] for name, axis in axes.items()}
    else:
        embeddings = [name for name, shape in shapes.items() if _IS_INPUT.fullmatch(name) and len(shape) == 2]
        sizes = {shapes[name][0] for name in embeddings}
        sizes = {size for size in sizes if size >= least} or sizes
        axes = {}
    if len(sizes) != 1 or min(sizes) < least:
        seen = f"tables of {', '.join(map(str, sorted(sizes)))} rows" if sizes else "no embedding of tokens is known"
        raise WeightspaceError(f"{seen} for a vocabulary of {least:,} ids; name the tensors that have a row per token")
    (rows,) = sizes
    if names is None:
        for name, shape in shapes.items():
            axis = _axis(shape)
            known = _IS_INPUT.fullmatch(name) or _IS_HEAD.fullmatch(name)
            if known and len(shape) > axis and shape[axis] == rows:
                axes[name] = axis
            elif shape[:1] == (rows,):
                do = "name the tensors that have a row per token"
                raise WeightspaceError(
                    f"{name!r} has {rows:,} rows, as many as the vocabulary, and no known name; {do}"
                )
    return axes


def _axis(shape: torch.Size) -> int:
    """The first axis of more than one entry: of a bias (1, rows) the second."""
    return next((k for k, size in enumerate(shape) if size != 1), 0)


@public
def renumbered(
    parents: Sequence[Mapping[str, Tensor]],
    vocabularies: Sequence[Mapping[str, int]],
    to: Numbering,
    *,
    base: int | None = None,
    names: Iterable[str] | None = None,
) -> tuple[list[Renumbered], list[str]]:
    """The parents with the rows of their embeddings and heads in one numbering, and notes with counts.

    `vocabularies`: for each parent, token -> row. A row of a token that a parent lacks is taken from `base` (one of the
    parents) where that has it, else copied from the parent that has it, or averaged over those that do: of the merged
    row, the task vector of a parent without the token is zero, and a mean with equal weights is the mean of those that
    have it. Rows of no token (padding) are those of one parent, `to.padding`; beyond its table they are zero. A head
    that a parent lacks because it is tied is read from its embedding. `names`: the tensors that have a row per token,
    where their names are unusual. Raises `WeightspaceError` where these cannot be told, where their widths differ, and
    for a token that no parent has.

    >>> import torch
    >>> from weightspace.merging.folders.vocabulary import Numbering, renumbered
    >>> a, b = {"wte.weight": torch.tensor([[1.0], [2.0]])}, {"wte.weight": torch.tensor([[3.0], [4.0]])}
    >>> views, notes = renumbered([a, b], [{"x": 0, "y": 1}, {"z": 0, "x": 1}], Numbering({"x": 0, "y": 1, "z": 2}, 3))
    >>> [view["wte.weight"].flatten().tolist() for view in views]
    [[1.0, 2.0, 3.0], [4.0, 2.0, 3.0]]
    >>> notes
    ['3 tokens: 1 in every parent, 2 copied from one, 0 averaged over several']
    """
    names = None if names is None else list(names)
    axes = [
        tables(parent, max(ids.values(), default=-1) + 1, names if names is None else [n for n in names if n in parent])
        for parent, ids in zip(parents, vocabularies, strict=True)
    ]
    own = [
        _own(k, parent, axis, ids, to)
        for k, (parent, axis, ids) in enumerate(zip(parents, axes, vocabularies, strict=True))
    ]
    has = torch.stack([index >= 0 for index in own])
    tokens = torch.zeros(to.rows, dtype=torch.bool)
    tokens[torch.tensor([*to.ids.values()])] = True
    lost = tokens & ~has.any(0)
    lost[[to.ids[token] for token in to.own if token in to.ids]] = False
    if lost.any():
        gone = [token for token, k in to.ids.items() if lost[k]]
        raise WeightspaceError(f"no parent has the tokens {some(gone)}; leave them out, or say whose row they take")
    views = []
    for k, parent in enumerate(parents):
        taken = [(j, index) for j, index in enumerate(_taken(k, own, has, base, to)) if (index >= 0).any()]
        made = {}
        for name, axis in axes[k].items():
            found = [(parents[j], _named(axes[j], name), index) for j, index in taken]
            made[name] = _table(parent, name, axis, to.rows, found)
        views.append(Renumbered(parent, made))
    return views, _counted(has, tokens, base, to)


@public
def in_one_vocabulary(
    sources: Sequence[Mapping[str, Tensor]],
    folders: Sequence[str | os.PathLike[str]],
    how: str | os.PathLike[str],
    *,
    base: int | None = None,
    multiple: int = 1,
    own: Mapping[str, tuple[int, int] | None] | None = None,
    forced: Iterable[str] = (),
) -> tuple[list[Renumbered], int, list[str]]:
    """The parents in one vocabulary, the number of its rows, and notes: `renumbered` by their folders' tokenizers.

    `how`: "union" (ids of the first parent, then the tokens of the others), "first", "base" (the parent of that
    number), or the path of a tokenizer. The table has the rows that the chosen parent's has, or more if there are more
    tokens, rounded up to a `multiple`. `own` and `forced` as in `Numbering`. Raises `WeightspaceError` for another
    `how` and where a tokenizer cannot be read.

    >>> import json, tempfile
    >>> from pathlib import Path
    >>> import torch
    >>> from weightspace.merging.folders.vocabulary import in_one_vocabulary
    >>> sources = [{"embed_tokens.weight": torch.zeros(2, 3)}, {"embed_tokens.weight": torch.ones(2, 3)}]
    >>> with tempfile.TemporaryDirectory() as place:
    ...     folders = [Path(place) / name for name in "ab"]
    ...     for folder, tokens in zip(folders, [{"yes": 0, "no": 1}, {"no": 0, "or": 1}], strict=True):
    ...         folder.mkdir()
    ...         _ = (folder / "vocab.json").write_text(json.dumps(tokens))
    ...     views, rows, _ = in_one_vocabulary(sources, folders, "union")
    >>> rows, views[1]["embed_tokens.weight"][:, 0]
    (3, tensor([0., 1., 1.]))
    """
    homes = [Path(folder) for folder in folders]
    vocabularies = [tokens_of(home) for home in homes]
    if how == "base" and base is None:
        raise WeightspaceError("the base's vocabulary is asked for, and there is no base; give one, or take 'first'")
    same = [k for k, home in enumerate(homes) if Path(how).resolve() == home.resolve()]
    like = base if how == "base" else 0 if how in ("first", "union") else next(iter(same), None)
    ids = joint(vocabularies) if how == "union" else tokens_of(Path(how)) if like is None else vocabularies[like]
    rows = max(ids.values()) + 1
    if like is not None:
        found = tables(sources[like], max(vocabularies[like].values()) + 1)
        rows = max(rows, *(shapes_of(sources[like])[name][axis] for name, axis in found.items()))
    rows = -(-rows // max(1, multiple)) * max(1, multiple)
    to = Numbering(ids, rows, like or 0, dict(own or {}), frozenset(forced))
    views, notes = renumbered(sources, vocabularies, to, base=base)
    return views, rows, notes


def _own(
    k: int, parent: Mapping[str, Tensor], axes: Mapping[str, int], ids: Mapping[str, int], to: Numbering
) -> Tensor:
    """For each row of the common table, the row of this parent, or -1. One parent has padding too."""
    index = torch.full((to.rows,), -1, dtype=torch.long)
    shared = [(to.ids[token], row) for token, row in ids.items() if token in to.ids]
    if shared:
        there, here = torch.tensor(shared).unbind(1)
        index[there] = here
    if k == to.padding:
        name, axis = next(iter(axes.items()))
        padding = torch.arange(min(to.rows, shapes_of(parent)[name][axis]))
        padding = padding[~torch.isin(padding, torch.tensor([*to.ids.values(), *ids.values()]))]
        index[padding] = padding
    return index


def _taken(k: int, own: Sequence[Tensor], has: Tensor, base: int | None, to: Numbering) -> list[Tensor]:
    """For each parent j, the rows of j that go into the common table of parent k."""
    found = [torch.full_like(index, -1) for index in own]
    found[k] = own[k].clone()
    lacking = ~has[k]
    if base is not None:
        found[base] = torch.where(lacking, own[base], found[base])
        lacking = lacking & ~has[base]
    for j, index in enumerate(own):
        found[j] = torch.where(lacking, index, found[j])
    for token, given in to.own.items():
        row = to.ids.get(token)
        if row is not None and (token in to.forced or not has[k, row]):
            for index in found:
                index[row] = -1
            if given is not None:
                found[given[0]][row] = given[1]
    return found


def _named(axes: Mapping[str, int], name: str) -> str | None:
    """The name of a table in another parent: its own, or the embedding where a head is tied; None of a bias."""
    if name in axes or not name.endswith("weight"):
        return name if name in axes else None
    inputs = [other for other in axes if _IS_INPUT.fullmatch(other)]
    if not inputs:
        raise WeightspaceError(f"rows of {name!r} are needed of a parent that has none; merge networks of one kind")
    return inputs[0]


def _table(
    parent: Mapping[str, Tensor],
    name: str,
    axis: int,
    rows: int,
    sources: Sequence[tuple[Mapping[str, Tensor], str | None, Tensor]],
) -> _Table:
    shape = shapes_of(parent)[name]
    known = getattr(parent, "dtypes", None)
    for source, there, _ in sources:
        if there is not None and shapes_of(source)[there][_axis(shapes_of(source)[there]) + 1 :] != shape[axis + 1 :]:
            seen = f"{tuple(shape)} and {tuple(shapes_of(source)[there])}"
            raise WeightspaceError(f"{name!r} has rows of different widths, {seen}; merge networks of one width")
    dtype = known[name] if known is not None else parent[name].dtype
    given = [(source, there, index) for source, there, index in sources if there is not None]
    return _Table(torch.Size([*shape[:axis], rows, *shape[axis + 1 :]]), dtype, given, axis)


def _counted(has: Tensor, tokens: Tensor, base: int | None, to: Numbering) -> list[str]:
    counts = has.sum(0)
    mixed = tokens & (counts < len(has))
    of_base = mixed & has[base] & (counts > 1) if base is not None else torch.zeros_like(mixed)
    said = [
        f"{int((tokens & (counts == len(has))).sum()):,} in every parent",
        f"{int((mixed & (counts == 1)).sum()):,} copied from one",
        *([f"{int(of_base.sum()):,} taken from the base where a parent lacks them"] if base is not None else []),
        f"{int((mixed & (counts > 1) & ~of_base).sum()):,} averaged over several",
    ]
    notes = [f"{int(tokens.sum()):,} tokens: {', '.join(said)}"]
    if padding := int((~tokens & has[to.padding]).sum()):
        notes.append(f"{padding:,} rows of no token are copied from one parent")
    if zero := int((~tokens & ~has.any(0)).sum()):
        notes.append(f"{zero:,} rows of no token are zero")
    return notes
