"""Text data and the networks that read it: a trained encoder from a folder, or a tiny one of random weights.

Embeddings are held: they are buffers, so that the weights of a network are those of its layers and of its head. Word
pieces that no text here holds are left out of the tables.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import weightspace as ws

TASKS = ("sst2", "imdb", "yelp")
SIZES = {"sst2": (2000, 300), "imdb": (2000, 300), "yelp": (700, 300)}  # texts read: to learn from, and to test on
USED = 1000, 200  # of these, at most
FILES = {"sst2": ("sst2/train", "sst2/test"), "imdb": ("imdb/train", "imdb/test"), "yelp": ("yelp-labelled/all",) * 2}
LONG, SHORT = 48, 32  # word pieces, with labels and without
FILLED = (10_000, 600)
MASKS = 5
PAD, MASK, SPECIAL = "[PAD]", "[MASK]", ("[CLS]", "[SEP]")


class Table(nn.Module):
    """Rows that are looked up and not learnt."""

    rows: Tensor

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.register_buffer("rows", rows.detach().clone())

    def forward(self, index: Tensor) -> Tensor:
        return F.embedding(index, self.rows)


def seen(mask: Tensor) -> Tensor:
    """What is added to the scores of attention: nothing for word pieces, much less for what is not there."""
    return (1.0 - mask[:, None, None, :].float()) * -1e4


class Bert(nn.Module):
    """A trained encoder from a folder, as transformers reads it."""

    def __init__(self, folder: str, kept: Tensor) -> None:
        from transformers import AutoModel
        from transformers.utils import logging

        super().__init__()
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        self.inside = AutoModel.from_pretrained(folder, add_pooling_layer=False).eval()
        tables = self.inside.embeddings
        for name in ("word_embeddings", "position_embeddings", "token_type_embeddings"):
            rows = getattr(tables, name).weight
            setattr(tables, name, Table(rows[kept] if name == "word_embeddings" else rows))

    @property
    def words(self) -> Tensor:
        return self.inside.embeddings.word_embeddings.rows

    @property
    def layers(self) -> nn.ModuleList:
        return self.inside.encoder.layer

    def lower(self, input_ids: Tensor, attention_mask: Tensor, count: int) -> Tensor:
        """What the first layers say."""
        h = self.inside.embeddings(input_ids=input_ids)
        return through(self.layers[:count], h, attention_mask)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.inside(input_ids=input_ids, attention_mask=seen(attention_mask)).last_hidden_state


class Block(nn.Module):
    """Attention of two heads and a hidden layer, each beside a residual stream and before a norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.one, self.two = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, h: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (f(h).unflatten(-1, (2, -1)).transpose(1, 2) for f in (self.query, self.key, self.value))
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + mask
        h = self.one(h + self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2)))
        return self.two(h + self.down(F.gelu(self.up(h))))


class Tiny(nn.Module):
    """The same interface, two blocks of random weights."""

    def __init__(self, pieces: int, width: int = 16) -> None:
        super().__init__()
        self.table, self.places = Table(torch.randn(pieces, width)), Table(torch.randn(LONG, width) / 4)
        self.blocks = nn.ModuleList(Block(width) for _ in range(2))

    @property
    def words(self) -> Tensor:
        return self.table.rows

    @property
    def layers(self) -> nn.ModuleList:
        return self.blocks

    def lower(self, input_ids: Tensor, attention_mask: Tensor, count: int) -> Tensor:
        h = self.table(input_ids) + self.places(torch.arange(input_ids.shape[1], device=input_ids.device))
        return through(self.blocks[:count], h, attention_mask)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.lower(input_ids, attention_mask, len(self.blocks))


def through(layers: nn.ModuleList, h: Tensor, attention_mask: Tensor) -> Tensor:
    for layer in layers:
        said = layer(h, seen(attention_mask))
        h = said if isinstance(said, Tensor) else said[0]
    return h


def held(encoder: Bert | Tiny) -> int:
    """So many lower layers stay as they are where a text is read: all but a third."""
    return len(encoder.layers) - max(1, len(encoder.layers) // 3)


class Reader(nn.Module):
    """Classes of a text from what the lower layers say: those above them, and a linear map of the mean."""

    def __init__(self, encoder: Bert | Tiny, outputs: int = 2) -> None:
        super().__init__()
        self.layers = encoder.layers[held(encoder) :]
        self.head = nn.Linear(encoder.words.shape[1], outputs)

    def forward(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        there = attention_mask[..., None].float()
        return self.head((through(self.layers, hidden, attention_mask) * there).sum(1) / there.sum(1))


class Filler(nn.Module):
    """Word pieces behind the masks, (example, mask, piece): a head tied to the table of word pieces."""

    def __init__(self, encoder: Bert | Tiny, often: Tensor) -> None:
        super().__init__()
        wide = encoder.words.shape[1]
        self.encoder, self.dense, self.norm = encoder, nn.Linear(wide, wide), nn.LayerNorm(wide)
        self.bias = nn.Parameter((often + 1.0).log().log_softmax(0))
        with torch.no_grad():
            self.dense.weight.copy_(torch.eye(wide))
            self.norm.weight.fill_(0.1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, places: Tensor) -> Tensor:
        h = self.encoder(input_ids, attention_mask)
        h = h.gather(1, places[..., None].expand(-1, -1, h.shape[-1]))
        return F.linear(self.norm(F.gelu(self.dense(h))), self.encoder.words, self.bias)


@dataclass(frozen=True)
class Pieces:
    """Texts as numbers of word pieces, and labels."""

    ids: Tensor
    there: Tensor
    labels: Tensor


class Texts:
    """All texts, cut into word pieces once."""

    def __init__(self, data: str | None, model: str | None, quick: bool) -> None:
        self.model = None if quick else model
        self.name = "made-up words" if quick else "texts"
        self.parts: dict[str, tuple[Pieces, Pieces]] = {}
        if quick:
            self._made_up()
        else:
            assert data and model
            self._read(Path(data), model)

    def encoder(self, seed: int) -> Bert | Tiny:
        torch.manual_seed(seed)
        return Bert(self.model, self.kept) if self.model else Tiny(self.pieces)

    def _read(self, data: Path, model: str) -> None:
        from pyarrow import parquet
        from transformers import AutoTokenizer

        cut = AutoTokenizer.from_pretrained(model)

        def pieces(file: str, rows: Tensor | slice, length: int) -> Pieces:
            table = parquet.read_table(data / f"{file}.parquet", columns=["text", "label"]).to_pydict()
            rows = torch.arange(len(table["text"]))[rows]
            some = [table["text"][k] for k in rows.tolist()]
            found = cut(some, truncation=True, max_length=length, padding="max_length", return_tensors="pt")
            return Pieces(found["input_ids"], found["attention_mask"], torch.tensor(table["label"])[rows])

        def drawn(file: str, n: int) -> Tensor:
            count = parquet.read_metadata(data / f"{file}.parquet").num_rows
            return torch.randperm(count, generator=torch.Generator().manual_seed(0))[:n]

        for name, (train, test) in FILES.items():
            many, few = SIZES[name]
            if train == test:
                order = drawn(train, many + few)
                rows = order[:many], order[many:]
            else:
                rows = drawn(train, many), drawn(test, few)
            self.parts[name] = pieces(train, rows[0], LONG), pieces(test, rows[1], LONG)
        plain = [pieces("sst2/train", slice(None), SHORT), pieces("imdb/train", drawn("imdb/train", 4000), SHORT)]
        joined = Pieces(*(torch.cat([getattr(p, k) for p in plain]) for k in ("ids", "there", "labels")))
        self.parts["plain"] = joined, pieces("sst2/test", slice(None), SHORT)
        self._shorten(cut)

    def _shorten(self, cut: Any) -> None:
        """Number anew the word pieces that occur."""
        every = [p.ids.flatten() for pair in self.parts.values() for p in pair]
        special = torch.tensor(cut.convert_tokens_to_ids([PAD, MASK, *SPECIAL]))
        self.kept = torch.cat([special, *every]).unique()
        self.pieces = len(self.kept)
        number = torch.full((int(self.kept.max()) + 1,), -1)
        number[self.kept] = torch.arange(self.pieces)
        self.mask, self.special = int(number[special[1]]), number[special]
        for name, pair in self.parts.items():
            one, two = (Pieces(number[p.ids], p.there, p.labels) for p in pair)
            self.parts[name] = one, two

    def _made_up(self) -> None:
        """A text is as many words of its task, and its label is whether words of even numbers are in the majority."""
        self.pieces, self.mask, self.special = 64, 1, torch.arange(4)
        generator = torch.Generator().manual_seed(0)
        for at, name in enumerate([*TASKS, "plain"]):
            pair = []
            for n in (48, 24):
                ids = torch.randint(4 + 15 * at, 19 + 15 * at, (n, 9), generator=generator)
                there = (torch.arange(9) < 9 - torch.arange(n)[:, None] % 3).long()
                pair.append(Pieces(ids * there, there, ((ids % 2 == 0) & (there == 1)).sum(1).mul(2).gt(8).long()))
            self.parts[name] = pair[0], pair[1]

    # -------------------------------------------------------------- with labels

    @cached_property
    def heard(self) -> dict[str, tuple[Tensor, Tensor]]:
        """What the lower layers say of every text with a label, computed once."""
        encoder = self.encoder(0)
        found = {}
        with torch.no_grad():
            for name in TASKS:
                one, two = (
                    torch.cat([encoder.lower(i, m, held(encoder))
                               for i, m in zip(part.ids[:n].split(64), part.there[:n].split(64), strict=True)])
                    for part, n in zip(self.parts[name], USED, strict=True)
                )  # fmt: skip
                found[name] = one, two
        return found

    def task(self, name: str, split: str = "train", own: bool = False) -> ws.Task:
        """Two labels that all tasks share, or two of its own for every task."""
        at = 0 if split == "train" else 1
        hidden, part, first = self.heard[name][at], self.parts[name][at], 2 * TASKS.index(name) if own else 0
        there, labels = part.there[: len(hidden)], part.labels[: len(hidden)]
        return ws.Task({"hidden": hidden, "attention_mask": there}, labels + first, batch=64)

    # -------------------------------------------------------------- masked

    @cached_property
    def often(self) -> Tensor:
        """How often every piece occurs in the texts without labels."""
        part = self.parts["plain"][0]
        return torch.bincount(part.ids[part.there == 1], minlength=self.pieces).float()

    def masked(self, split: str, masks: int, n: int | None = None, seed: int = 0) -> ws.Task:
        """So many pieces of every text behind masks, drawn from the seed; texts that are shorter are left out."""
        part = self.parts["plain"][0 if split == "train" else 1]
        plain = (part.there == 1) & ~torch.isin(part.ids, self.special)
        rows = (plain.sum(1) > masks).nonzero()[:, 0]
        rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))][:n]
        ids, there, plain = part.ids[rows], part.there[rows], plain[rows]
        luck = torch.rand(ids.shape, generator=torch.Generator().manual_seed(seed + 1)).masked_fill(~plain, -1.0)
        places = luck.topk(masks, 1).indices.sort(1).values
        return self._behind(ids, there, places)

    def one_by_one(self, n: int, seed: int = 0) -> ws.Task:
        """Every piece of n unseen texts behind the only mask: exp of this task's loss is the pseudo-perplexity."""
        part = self.parts["plain"][1]
        rows = torch.randperm(len(part.ids), generator=torch.Generator().manual_seed(seed))[:n]
        ids, there = part.ids[rows], part.there[rows]
        text, place = ((there == 1) & ~torch.isin(ids, self.special)).nonzero(as_tuple=True)
        return self._behind(ids[text], there[text], place[:, None])

    def _behind(self, ids: Tensor, there: Tensor, places: Tensor) -> ws.Task:
        inputs = {"input_ids": ids.scatter(1, places, self.mask), "attention_mask": there, "places": places}
        return ws.Task(inputs, ids.gather(1, places), batch=64)
