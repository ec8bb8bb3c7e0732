"""Transformers and what they read: two that look at digits, one that writes letters; trained once and kept.

`vit` is that of the benchmarks: patches of 2 x 2, the mean of the tokens. `class token` reads the rows of an image and
gives what a token of its own has gathered. `characters` guesses the next letter of film reviews in lower case.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import weightspace as ws
from benchmarks import zoo
from experiments.nets import CACHE, fit, kept, tensors

KINDS = ("vit", "class token", "characters")
REVIEWS, LETTERS, HELD_OUT = 1500, 64, 0.05
WORDS = ("the", "film", "is", "a", "good", "bad", "and", "was", "long", "story", "of", "love")


@dataclass(frozen=True)
class Size:
    """How large the networks and how long the runs."""

    vit: tuple[int, int, int] = (64, 4, 2)  # width, heads, layers
    token: tuple[int, int, int] = (48, 3, 3)
    letters: tuple[int, int, int] = (96, 4, 3)
    epochs: int = 30
    tune: int = 5
    steps: int = 1500  # of characters
    length: int = 64
    texts: tuple[int, int] = (1024, 256)  # pieces of text to align on, and to test on
    refine: int = 300
    batch: int = 128  # images of a step of refinement
    pieces: int = 32  # pieces of text of one


FULL = Size()
QUICK = Size((16, 2, 1), (16, 2, 1), (16, 2, 1), epochs=3, tune=1, steps=30, length=12, texts=(64, 32), refine=10)


def layers(width: int, heads: int, count: int) -> nn.ModuleList:
    """Blocks of attention and a hidden layer with GELU, norms before both."""
    make = partial(nn.TransformerEncoderLayer, width, heads, 2 * width, 0.0, "gelu", batch_first=True, norm_first=True)
    return nn.ModuleList(make() for _ in range(count))


class ClassToken(nn.Module):
    """Eight rows of eight pixels, and a token that gathers them."""

    def __init__(self, width: int, heads: int, count: int) -> None:
        super().__init__()
        self.row = nn.Linear(8, width)
        self.token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.position = nn.Parameter(torch.randn(1, 9, width) * 0.02)
        self.layers, self.norm, self.head = layers(width, heads, count), nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.cat([self.token.expand(x.shape[0], -1, -1), self.row(x.squeeze(1))], 1) + self.position
        for layer in self.layers:
            h = layer(h)
        return self.head(self.norm(h[:, 0]))


class Characters(nn.Module):
    """The next letter at every place, from those before it."""

    def __init__(self, letters: int, length: int, width: int, heads: int, count: int) -> None:
        super().__init__()
        self.letter, self.position = nn.Embedding(letters, width), nn.Parameter(0.02 * torch.randn(length, width))
        self.layers, self.norm, self.head = layers(width, heads, count), nn.LayerNorm(width), nn.Linear(width, letters)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(length), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.letter(x) + self.position
        for layer in self.layers:
            h = layer(h, src_mask=self.mask, is_causal=True)
        return self.head(self.norm(h))


def read(data: str | None, quick: bool) -> Tensor:
    """Reviews in lower case as numbers of letters, rare ones all 0; a made-up text where the run is quick."""
    if quick:
        chosen = torch.randint(len(WORDS), (2000,), generator=torch.Generator().manual_seed(0))
        text = " ".join(WORDS[k] for k in chosen.tolist())
    else:
        if data is None:
            raise ws.WeightspaceError("characters are read from --data DIR, a folder with imdb/train.parquet")
        from pyarrow import parquet

        reviews = parquet.read_table(Path(data) / "imdb" / "train.parquet", columns=["text"])["text"].to_pylist()
        text = "\n".join(reviews[:REVIEWS]).lower()
    often = sorted(sorted(set(text)), key=lambda letter: -text.count(letter))[: LETTERS - 1]
    number = {letter: k for k, letter in enumerate(often, 1)}
    return torch.tensor([number.get(letter, 0) for letter in text])


class Lab:
    """What there is to read, and the networks that were trained on it."""

    def __init__(self, data: str | None = None, quick: bool = False, folder: Path = CACHE) -> None:
        self.data, self.quick, self.size, self.folder = data, quick, QUICK if quick else FULL, folder / "transformers"
        self.name, self.kinds = "quick" if quick else "transformers", KINDS
        self.text = cache(lambda: read(data, quick))
        self.group, self.net, self.task = cache(self._group), cache(self._net), cache(self._task)

    def _task(self, kind: str, split: str) -> ws.Task:
        """Examples with labels: images of digits, or pieces of text; of text, some that are drawn once."""
        if kind != "characters":
            return ws.digits(split)
        n = self.size.texts[split == "test"]
        return ws.Task(*self.pieces(n, split, torch.Generator().manual_seed(9 + (split == "test"))), batch=64)

    def pieces(self, n: int, split: str, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Letters, and each one's next; the last twentieth of the text is for tests."""
        text, length = self.text(), self.size.length
        cut = round(len(text) * (1 - HELD_OUT))
        low, high = (0, cut) if split == "train" else (cut, len(text))
        start = torch.randint(low, high - length - 1, (n, 1), generator=generator)
        found = text[start + torch.arange(length + 1)]
        return found[:, :-1], found[:, 1:]

    def module(self, kind: str, seed: int) -> nn.Module:
        """An untrained network."""
        torch.manual_seed(seed)
        if kind == "vit":
            return zoo.ViT(*self.size.vit)
        return ClassToken(*self.size.token) if kind == "class token" else Characters(
            LETTERS, self.size.length, *self.size.letters
        )  # fmt: skip

    def _net(self, kind: str, seed: int) -> ws.Net:
        if kind == "vit" and not self.quick:
            return ws.Net.of(zoo.load("vit", seed))
        module = self.module(kind, seed)

        def trained() -> list[ws.Net]:
            run = self.written(module, seed) if kind == "characters" else self.seen(module, seed)
            for _ in run:
                pass
            print(f"trained {kind} {seed}: loss {float(self.task(kind, 'test')(ws.Net.of(module))):.3f}", flush=True)
            return [ws.Net.of(module.eval())]

        if self.quick:
            return trained()[0]
        return kept(self.folder / f"{kind.replace(' ', '-')}-{seed}", ws.Net.of(module.eval()), trained)[0]

    def seen(self, module: nn.Module, seed: int) -> Iterator[None]:
        """Training on images, as the networks of the benchmarks are."""
        return fit(module, *tensors(self.task("vit", "train")), epochs=self.size.epochs, seed=seed)

    def written(self, module: nn.Module, seed: int) -> Iterator[None]:
        """Training on text: AdamW on 32 pieces a step, one cycle, gradients of norm one at most."""
        generator, steps = torch.Generator().manual_seed(seed), self.size.steps
        adam = torch.optim.AdamW(module.parameters(), 2e-3)
        cycle = torch.optim.lr_scheduler.OneCycleLR(adam, 2e-3, total_steps=steps, pct_start=0.1)
        for _ in range(steps):
            x, y = self.pieces(32, "train", generator)
            adam.zero_grad()
            F.cross_entropy(module(x).flatten(0, 1), y.flatten()).backward()
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            adam.step()
            cycle.step()
            yield

    def _group(self, kind: str, linear: bool = True) -> ws.Symmetry:
        """What leaves the function alone; without linear moves, permutations, scales and signs."""
        return ws.Symmetry.of(self.net(kind, 0), self.task(kind, "test").example(), linear=linear)
