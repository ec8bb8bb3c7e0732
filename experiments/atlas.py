"""Three hundred language models made by composed flows, held in one atlas and asked with corpora that none has seen.

    python -m experiments.atlas [members asked starts] --data DIR [--quick]

The base guesses the next letter of sentences about films. An edge learns reviews of products and places (r) or
newspaper editorials (e) along a path that keeps the base's outputs, prunes (p) or drifts (d). A member is the word of
its edges: compressed before it learns (pr, ppe..) or after (rp, epp..). Asked with film reviews (imdb) and with
questions (trec).
"""

from __future__ import annotations

import math
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from itertools import permutations
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import weightspace as ws
from experiments.attention import WORDS, Characters
from experiments.nets import CACHE
from experiments.record import Job, Record, block, command, number, percent
from weightspace.checkpoint import reader, writer
from weightspace.flows.pruning import sparsity

FILES = {
    "base": ("sentences/subj", "sentences/mr"),
    "r": ("sentences/cr", "yelp-labelled/all"),
    "e": ("vader-groundtruth/nytEditorialSnippets",),
    "imdb": ("imdb/test",),
    "trec": ("sentences/trec_train",),
}
ASKED = ("imdb", "trec")
SHARES = (0.3, 0.5, 0.65)  # zeros after one, two, three times p
LETTERS, LENGTH, SIZE = 64, 48, (64, 4, 2)
STEPS, BATCH, RATE = 3000, 64, 3e-3  # of the base
FLOW, STEP, KEPT, KRYLOV = 8, 0.2, 8, 8  # steps of an edge, their length, pieces that the metric holds, its space
TESTED, TUNED, EVERY, TUNING = 512, 300, 10, 1e-3  # pieces to test on; steps of a start, between looks, and their rate
MOST_TEXTS = 4000  # of one file
DRAWS = 5  # orders in which the examples of a question are drawn
ORDERS, MOST = ("reppdp",), 300  # letters whose beginnings in every order are the members, shorter ones first


class Lab:
    """Texts as letters, the base, and the members by their words."""

    def __init__(self, data: str | None, quick: bool, folder: Path = CACHE) -> None:
        self.data, self.quick = data, quick
        self.name = "quick" if quick else "full"
        self.room = tempfile.TemporaryDirectory() if quick else None  # networks of a quick run are not kept
        self.folder = Path(self.room.name) if self.room else folder / f"atlas-{self.name}"
        self.length, self.size = (12, (16, 2, 1)) if quick else (LENGTH, SIZE)
        self.text, self.base = cache(self._text), cache(self._base)
        self.held: dict[str, ws.Net] = {}

    def raw(self, name: str) -> str:
        """A corpus in lower case; words at random where the run is quick."""
        if self.quick:
            chosen = torch.randint(len(WORDS), (800,), generator=torch.Generator().manual_seed(len(name)))
            return " ".join(WORDS[k] for k in chosen.tolist())
        if self.data is None:
            raise ws.WeightspaceError("texts are read from --data DIR, a folder with sentences, imdb and others")
        from pyarrow import parquet

        files = [Path(self.data) / f"{file}.parquet" for file in FILES[name]]
        return "\n".join(
            "\n".join(parquet.read_table(f, columns=["text"])["text"].to_pylist()[:4000]) for f in files
        ).lower()

    @cache  # noqa: B019
    def letters(self) -> dict[str, int]:
        text = self.raw("base")
        often = sorted(sorted(set(text)), key=lambda letter: -text.count(letter))[: LETTERS - 1]
        return {letter: k for k, letter in enumerate(often, 1)}

    def _text(self, name: str) -> torch.Tensor:
        return torch.tensor([self.letters().get(letter, 0) for letter in self.raw(name)])

    def pieces(self, name: str, n: int, generator: torch.Generator, test: bool = False) -> tuple[Tensor, Tensor]:
        """Letters of a corpus, and each one's next; the last tenth of the corpus is for tests."""
        text = self.text(name)
        cut = round(0.9 * len(text))
        low, high = (cut, len(text)) if test else (0, cut)
        start = torch.randint(low, high - self.length - 1, (n, 1), generator=generator)
        found = text[start + torch.arange(self.length + 1)]
        return found[:, :-1], found[:, 1:]

    def task(self, name: str, n: int, seed: int = 0, test: bool = False) -> ws.Task:
        return ws.Task(*self.pieces(name, n, torch.Generator().manual_seed(2 * seed + test), test), batch=64)

    def test(self, name: str) -> ws.Task:
        return self.task(name, 24 if self.quick else TESTED, test=True)

    def _base(self) -> ws.Net:
        file = self.folder / "base.safetensors"
        torch.manual_seed(0)
        net = ws.Net.of(Characters(LETTERS, self.length, *self.size).eval())
        if file.exists():
            return net.load(reader.read(file))
        return self.keep("", self.trained(net, "base", 20 if self.quick else STEPS, RATE)[0])

    def keep(self, word: str, net: ws.Net) -> ws.Net:
        """The network, written into the folder of the atlas."""
        self.folder.mkdir(parents=True, exist_ok=True)
        writer.save(net.tensors, self.folder / f"{word or 'base'}.safetensors", force=True)
        return net

    def trained(self, net: ws.Net, name: str, steps: int, rate: float, every: int = 0) -> tuple[ws.Net, list[float]]:
        """Adam on a corpus at a rate that falls as a cosine; the loss on held-out pieces every so many steps."""
        module, test, losses = net.module(), self.test(name), [float(self.test(name)(net))]
        adam = torch.optim.Adam(module.parameters(), rate)
        falls = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
        generator = torch.Generator().manual_seed(7)
        for step in range(1, steps + 1):
            x, y = self.pieces(name, BATCH, generator)
            adam.zero_grad()
            F.cross_entropy(module(x).flatten(0, 1), y.flatten()).backward()
            adam.step()
            falls.step()
            if every and step % every == 0:
                losses.append(float(test(ws.Net.of(module))))
        return ws.Net.of(module.eval()), losses

    def member(self, word: str) -> ws.Net:
        """The network of a word: from the folder, or by its last edge from the word before."""
        if not word:
            return self.base()
        file = self.folder / f"{word}.safetensors"
        if file.exists():
            return self.base().load(reader.read(file))
        return self.keep(word, self.edge(self.member(word[:-1]), word))

    def edge(self, net: ws.Net, word: str) -> ws.Net:
        """The last edge of a word: a short flow that holds the outputs on pieces of the base's text."""
        last, seed = word[-1], len(word)
        held = self.task("base", 8 if self.quick else KEPT, seed)
        if last == "p":
            share = SHARES[word.count("p") - 1]
            return ws.flow(net, ws.prune(share, repair="layer"), ws.Pullback(held), steps=1)[-1]
        goal = (
            ws.drift(seed) if last == "d" else ws.learn(self.task(last, 64 if self.quick else 4096, seed), BATCH, seed)
        )
        mask = net.weights.map(torch.ones_like)
        for key, w in net.weights.items():
            if w.dim() > 1:
                mask[key].copy_(w != 0)  # what is zero stays zero
        metric = ws.Pullback(held, "fisher", "gltr", steps=KRYLOV)
        steps = 2 if self.quick else FLOW
        return ws.flow(net, goal, metric, steps=steps, size=STEP, corrections=0, mask=mask, save=steps)[-1]


# ------------------------------------------------------------------ the members


def members(lab: Lab, _: int) -> Iterator[Job]:
    """Every member: its zeros, and its perplexity on every corpus, a letter."""
    for word in words(lab):
        yield f"members/{lab.name}/{word or 'base'}/0", partial(_member, lab, word)


def _member(lab: Lab, word: str) -> dict[str, Any]:
    began = time.perf_counter()
    net = lab.member(word)
    seconds = time.perf_counter() - began
    seen = {name: math.exp(float(lab.test(name)(net))) for name in FILES}
    return {**seen, "zeros": sparsity(net.weights), "moved": float((net - lab.base()).norm()), "seconds": seconds}


def words(lab: Lab) -> list[str]:
    """All beginnings of the orders of the letters of `ORDERS`, shorter ones first."""
    orders = ("rp", "ed") if lab.quick else ORDERS
    found = {"".join(o[:k]) for letters in orders for o in permutations(letters) for k in range(len(letters) + 1)}
    return sorted(found, key=lambda word: (len(word), word))[:MOST]


# ------------------------------------------------------------------ asked


@contextmanager
def atlas(lab: Lab) -> Iterator[ws.Atlas]:
    """The members in an atlas, each with the one that it was made of as its parent."""
    with tempfile.TemporaryDirectory() as folder, ws.Atlas(folder) as found:
        for word in words(lab):
            lab.member(word)
            name, parents = word or "base", [word[:-1] or "base"] if word else []
            found.add(lab.folder / f"{name}.safetensors", name=name, parents=parents)
        yield found


def asked(lab: Lab, _: int) -> Iterator[Job]:
    """Which member is best for a corpus: all asked on all examples, and by halving."""
    for name in ASKED:
        yield f"asked/{lab.name}/{name}/0", partial(_asked, lab, name)


def _asked(lab: Lab, name: str) -> dict[str, Any]:
    task, base = lab.test(name), lab.base()
    with atlas(lab) as found:
        members = {member.name: partial(found.net, member.name, like=base) for member in found}
        began = time.perf_counter()
        whole = ws.atlas.rank(members, task, by="perplexity", first=len(task), seed=0)
        seconds = time.perf_counter() - began
        halved = [ws.atlas.rank(members, task, by="perplexity", seed=k) for k in range(2 if lab.quick else DRAWS)]
    best, value = whole.best, dict((row.name, row) for row in whole.found.ranking)
    return {
        "best": best,
        "tied": len(whole.tied),
        "perplexity": whole.value(value[best])[0],
        "base": whole.value(value["base"])[0],
        "found": fmean(answer.best == best for answer in halved),
        "near": fmean(answer.best in whole.tied for answer in halved),
        "cost": fmean(answer.found.share for answer in halved),
        "seconds": [median(answer.seconds for answer in halved), seconds],
    }


# ------------------------------------------------------------------ starts


def starts(lab: Lab, _: int) -> Iterator[Job]:
    """Steps of fine-tuning on a corpus until the loss that the base reaches in all of its steps."""
    for name in ASKED:
        yield f"starts/{lab.name}/{name}/0", partial(_starts, lab, name)


def _starts(lab: Lab, name: str) -> dict[str, Any]:
    steps, every = (4, 2) if lab.quick else (TUNED, EVERY)
    losses = {word: float(lab.test(name)(lab.member(word))) for word in words(lab)}
    order = sorted(losses, key=losses.__getitem__)
    chosen = {"base": "", "best": order[0], "median": order[len(order) // 2], "worst": order[-1]}
    runs = {who: lab.trained(lab.member(word), name, steps, TUNING, every)[1] for who, word in chosen.items()}
    goal = runs["base"][-1]
    reached = {who: next((k * every for k, loss in enumerate(run) if loss <= goal), None) for who, run in runs.items()}
    return {**{who: [run[0], run[-1]] for who, run in runs.items()}, "steps": reached, "words": chosen}


# ------------------------------------------------------------------ tables


def kind(word: str) -> str:
    """Compressed before anything was learnt, after everything was, between, or not at all."""
    letters = word.replace("d", "")
    if "p" not in letters or set(letters) <= {"p"}:
        return "" if "p" not in letters else "compressed only"
    last_p, first_p = letters.rindex("p"), letters.index("p")
    learnt = [k for k, letter in enumerate(letters) if letter in "re"]
    if learnt[0] > last_p:
        return "compressed, then learnt"
    return "learnt, then compressed" if learnt[-1] < first_p else "between"


def tables(record: Record, name: str) -> dict[str, str]:
    """Mark in the README -> table."""
    rows = {key.split("/")[2].replace("base", ""): row for key, row in record.rows.items()
            if key.startswith(f"members/{name}/")}  # fmt: skip
    return _kinds(rows) | _answers(record, name) | _begun(record, name)


def _kinds(rows: dict[str, dict[str, Any]]) -> dict[str, str]:
    classes: dict[str, list[str]] = {}
    for word in rows:
        learnt = kind(word) or ("the base" if not set(word) - {"d"} else "learnt only")
        classes.setdefault(learnt, []).append(word)
    lines = []
    for what, some in sorted(classes.items(), key=lambda item: -len(item[1])):
        cells = [number(fmean(rows[w][corpus] for w in some), 2) for corpus in FILES]
        best = [min(some, key=lambda w: rows[w][corpus]) or "base" for corpus in ASKED]
        lines.append([what, str(len(some)), *cells, *best])
    head = ["members", "how many", *FILES, *(f"best, {corpus}" for corpus in ASKED)]
    return block("atlas members", head, lines)


def _answers(record: Record, name: str) -> dict[str, str]:
    lines = []
    for corpus in ASKED:
        for row in record.of(f"asked/{name}/{corpus}"):
            seconds = " / ".join(number(x, 1) for x in row["seconds"])
            lines.append([corpus, row["best"], kind(row["best"]), number(row["perplexity"]), number(row["base"]),
                          str(row["tied"]), percent(row["found"]), percent(row["near"]), percent(row["cost"]),
                          seconds])  # fmt: skip
    head = ("asked with | best | which is | its perplexity | base | tied | found, % | best or tied, % | cost, % | "
            "seconds, halved / all")  # fmt: skip
    return block("atlas asked", head, lines)


def _begun(record: Record, name: str) -> dict[str, str]:
    lines = []
    for corpus in ASKED:
        for row in record.of(f"starts/{name}/{corpus}"):
            for who in ("base", "best", "median", "worst"):
                steps = row["steps"][who]
                cells = [number(x) for x in row[who]]
                lines.append([corpus, who, row["words"][who] or "base", *cells, "not reached" if steps is None
                              else str(steps)])  # fmt: skip
    return block("atlas starts", "corpus | start | member | loss | after all steps | steps to the base's end", lines)


main = command(
    "atlas",
    __doc__,
    {"members": members, "asked": asked, "starts": starts},
    lambda given: Lab(given.data, given.quick),
    tables,
    data="folder with sentences, yelp-labelled, vader-groundtruth, imdb",
    seeds=[0],
    say=lambda row: " ".join(f"{key} {row[key]}" for key in ("imdb", "trec", "best", "cost", "steps") if key in row),
)


if __name__ == "__main__":
    sys.exit(main())
