"""A graph of networks: every edge is a short flow that learns a task or prunes, every node's accuracy is measured.

A node is the word of what was done on the way from the root: s, i, y (a task learnt) and p (pruned further).
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import combinations, permutations
from pathlib import Path
from typing import Any

import weightspace as ws
from experiments.reading import Lab, fresh, joined, learnt, pruned, rights
from experiments.record import Job, Record, block, number, percent, table
from experiments.texts import TASKS
from weightspace.flows.pruning import sparsity

LETTERS = {name[0]: name for name in TASKS}
ORDERS = ("siy", "iys", "ysi")
SHARES = (0.5, 0.65, 0.75)  # zeros after one, two, three times p
STEPS, UNLABELLED = 12, 96


def words(orders: Sequence[str], prunings: int) -> list[str]:
    """All beginnings of all ways to put so many p between the letters of the orders, shorter ones first."""
    found = set()
    for order in orders:
        length = len(order) + prunings
        for places in combinations(range(length), prunings):
            rest = iter(order)
            whole = "".join("p" if k in places else next(rest) for k in range(length))
            found |= {whole[:k] for k in range(length + 1)}
    return sorted(found, key=lambda word: (len(word), word))


class Graph:
    """The networks by their words, kept in a trail."""

    def __init__(self, lab: Lab, folder: Path, seed: int) -> None:
        self.lab, self.seed = lab, seed
        self.trail = ws.Trail(folder / f"graph-{STEPS}-{seed}", fresh(lab, seed))
        self.at = {self.trail.facts(k).get("word", ""): k for k in range(len(self.trail))}

    def net(self, word: str) -> ws.Net:
        if word not in self.at:
            net = self._edge(self.net(word[:-1]), word)
            self.trail.append(net, len(self.trail), word=word, parent=word[:-1])
            self.at[word] = len(self.trail) - 1
            return net
        return self.trail[self.at[word]]

    def _edge(self, net: ws.Net, word: str) -> ws.Net:
        if word[-1] == "p":
            some = [self.lab.texts.task(name).take(UNLABELLED // 3, self.seed) for name in TASKS]
            share = SHARES[word.count("p") - 1] * (0.5 if self.lab.quick else 1)
            return pruned(self.lab, net, share, joined(some))
        before = [LETTERS[letter] for letter in word[:-1] if letter != "p"]
        return learnt(self.lab, net, LETTERS[word[-1]], before, self.seed, STEPS)


def graph(lab: Lab, seed: int) -> Iterator[Job]:
    """Three orders of the tasks with one pruning anywhere; with --full all orders, three prunings."""
    orders, prunings = (["".join(o) for o in permutations(LETTERS)], len(SHARES)) if lab.full else (ORDERS, 1)
    if lab.quick:
        orders = orders[:1]
    found: list[Graph] = []
    with tempfile.TemporaryDirectory() as room:
        ask = partial(_asked, lab, lab.cache or Path(room), seed, found)
        for word in words(orders, prunings):
            yield f"graph/{lab.name}/{word or 'start'}/{seed}", partial(ask, word)


def _asked(lab: Lab, folder: Path, seed: int, found: list[Graph], word: str) -> dict[str, Any]:
    if not found:
        found.append(Graph(lab, folder, seed))
    began = time.perf_counter()
    net = found[0].net(word)
    seconds = time.perf_counter() - began
    right = rights(lab, net)
    row = {"right": right, "mean": sum(right) / len(right), "zeros": sparsity(net.weights), "seconds": seconds}
    return {**row, "depth": len(word), "order": word.replace("p", "")}


def tables(record: Record, name: str) -> dict[str, str]:
    """By the order of the tasks, and by depth."""
    nodes = {key.split("/")[2]: record.median(key.rpartition("/")[0], "mean")
             for key in record.rows if key.startswith(f"graph/{name}/")}  # fmt: skip
    if not nodes:
        return {}
    at = {word: record.median(f"graph/{name}/{word}", "right") for word in nodes}
    cut = max(word.count("p") for word in nodes)
    rows = []
    for order in sorted({w.replace("p", "") for w in nodes if len(w.replace("p", "")) == 3 and w != "start"}):
        ends = {w: v for w, v in nodes.items() if w.replace("p", "") == order and w.count("p") == cut}
        best, worst = max(ends, key=lambda w: ends[w]), min(ends, key=lambda w: ends[w])
        mean = [sum(at[w][k] for w in ends) / len(ends) for k in range(3)]
        rows.append([order, percent(nodes.get(order)), percent(sum(ends.values()) / len(ends)), percent(mean),
                     f"{best} {percent(ends[best])}", f"{worst} {percent(ends[worst])}"])  # fmt: skip
    head = "order | dense end, % | pruned ends, % | sst2, imdb, yelp, % | best | worst"
    found, rows = block(f"graph orders {name}", head, rows), []
    depths: dict[int, list[str]] = {}
    for word in nodes:
        depths.setdefault(0 if word == "start" else len(word), []).append(word)
    for depth, some in sorted(depths.items()):
        best = max(some, key=lambda w: nodes[w])
        mean_ = [sum(nodes[w] for w in part) / len(part) if part else None
                 for part in ([w for w in some if "p" not in w], [w for w in some if "p" in w])]  # fmt: skip
        seconds = sum(record.median(f"graph/{name}/{w}", "seconds") for w in some)
        rows.append([str(depth), str(len(some)), *map(percent, mean_), f"{best} {percent(nodes[best])}",
                     number(seconds / len(some), 0)])  # fmt: skip
    head = "edges from the root | networks | dense, mean % | pruned, mean % | best | seconds a network"
    return found | {f"graph depth {name}": table(head, rows)}
