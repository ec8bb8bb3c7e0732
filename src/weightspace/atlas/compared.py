"""A set of networks whose comparisons are looked up before they are computed, and kept once they are.

Networks are known by the keys of their contents, and those that were moved by a group by a digest of the move too. So
another order of the set, a part of it, or a larger set finds what is there; a network of another content finds nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch

from weightspace.atlas.comparisons import Comparisons, Ends
from weightspace.atlas.gram import Distances, against, gathered, pairwise
from weightspace.atlas.neighbourhoods import among, exactly, put_together, summary
from weightspace.atlas.side_by_side import Member, SideBySide
from weightspace.jobs.progress import Progress, silent

__all__ = ["MANY", "Compared", "Who"]

Who: TypeAlias = tuple[str, str]  # the key of a content, and a digest of how it was moved ("" for not at all)
_ROWS = 3  # new networks that are compared one by one; more of them together with all others
_MOST = 1 << 29  # bytes of the distances of one set that are kept
MANY = 300  # different networks of which all distances are exact
_WAITING = 500  # results that are written together
_KIND = "distances"


class Compared:
    """Comparisons by content: those in `store` are used again, new ones written there; without one all are made anew.

    `keys[i]` is the content key of network i; without a store any names will do. Results that wait to be written are
    written by `flush`. `notes` says what could not be kept.
    """

    def __init__(self, keys: Sequence[str], store: Comparisons | None = None) -> None:
        self.keys, self.store = list(keys), store
        self.notes: list[str] = []
        self._known: dict[str, dict[Ends, bytes]] = {}
        self._new: dict[str, dict[Ends, bytes]] = {}

    def recalled(self, kind: str, who: Sequence[Who], settings: Sequence[Any], make: Callable[[], bytes]) -> bytes:
        """The result of a comparison of networks under settings; what `make` returns, unless it is known.

        The result is a function of the networks in their order, the kind and the settings.
        """
        if self.store is None:
            return make()
        known = self._of(kind)
        ends = who[0][0], who[min(1, len(who) - 1)][0], _digest([list(map(list, who)), *settings])
        if ends not in known:
            known[ends] = self._new.setdefault(kind, {})[ends] = make()
            if len(self._new[kind]) >= _WAITING:
                self.flush()
        return known[ends]

    def flush(self) -> None:
        """Write what waits to be written. Raises `WeightspaceError` where the store cannot be written."""
        while self._new:
            kind, rows = self._new.popitem()
            if self.store is not None and self.store.catalogue.writable:
                self.store.put(kind, rows)

    def distances(
        self,
        members: Sequence[Member],
        labels: Sequence[str] | None,
        moves: Sequence[str],
        progress: Progress = silent,
    ) -> Distances:
        """Distances of all pairs, as `pairwise` gives them: those that are known are not computed again.

        `moves[i]`: the digest of how network i was moved. Up to three networks that are new are compared with all
        others one by one, and more of them with all others in one pass. Of more than 300 different networks, distances
        within neighbourhoods are exact, and others estimates (see `neighbourhoods`). Raises as `pairwise` does.
        """
        who = [*zip(self.keys, moves, strict=True)]
        first = {one: k for k, one in reversed([*enumerate(who)])}
        different = [*first]
        together = SideBySide(members, labels)
        names = sorted(together.names)
        if len(different) > MANY:
            return self._of_many(together, first, who, progress)
        if self.store is None or self._too_many(len(different), len(names)):
            return pairwise(members, labels, progress=progress)
        tables = _Tables(different, names, self.store.of(_KIND, self.keys))
        new = tables.new()
        some = [members[first[one]] for one in different]
        told = None if labels is None else [labels[first[one]] for one in different]
        if len(new) > _ROWS or len(new) == len(different):
            tables.take(pairwise(some, told, progress=progress))
        for done, k in enumerate(new if len(new) <= _ROWS else []):
            progress(f"distances of {len(new)} new networks", done, len(new))
            tables.row(k, some, told, [j for j in range(len(different)) if j not in new[done:]])
        self._new.setdefault(_KIND, {}).update(tables.written())
        self.flush()
        place = {one: k for k, one in enumerate(different)}
        at = torch.tensor([place[one] for one in who])
        order = torch.tensor([names.index(name) for name in together.names])
        squares, products = (table[order][:, at][:, :, at] for table in (tables.squares, tables.products))
        return gathered(together, squares, products)

    def _of_many(
        self, together: SideBySide, first: dict[Who, int], who: Sequence[Who], progress: Progress
    ) -> Distances:
        """Distances of a large set, of which those within neighbourhoods are exact."""
        different, n = [*first], len(first)
        summaries = []
        for done, (one, k) in enumerate(first.items()):
            progress(f"sketches of {n} networks", done, n)
            look = partial(_summed, together.members[k], together.labels[k])
            summaries.append(np.frombuffer(self.recalled("sketch", [one], [], look), "<f8").reshape(2, -1))
        *estimates, pairs = among(np.stack(summaries))
        rows = self._within(together, first, pairs, progress)
        self.flush()
        return _spread(together, who, different, (estimates[0], estimates[1]), rows)

    def _within(
        self, together: SideBySide, first: dict[Who, int], pairs: Sequence[tuple[int, int]], progress: Progress
    ) -> dict[tuple[int, int], torch.Tensor]:
        """Squared distances and inner products (2, tensors) of pairs, in the order of the tensors' names."""
        different, names = [*first], sorted(together.names)
        ends = {pair: _ends(*(different[k] for k in pair)) for pair in pairs}
        known = {} if self.store is None else self.store.of(_KIND, self.keys)
        rows = {pair: torch.from_numpy(np.frombuffer(known[end], "<f8").reshape(2, -1).copy())
                for pair, end in ends.items() if len(known.get(end, b"")) == 16 * len(names)}  # fmt: skip
        missing = [pair for pair in pairs if pair not in rows]
        if not missing:
            return rows
        some = sorted({k for pair in missing for k in pair})
        place, at = {k: number for number, k in enumerate(some)}, [first[different[k]] for k in some]
        members, labels = [together.members[k] for k in at], [together.labels[k] for k in at]
        found = exactly(members, labels, [(place[i], place[j]) for i, j in missing], progress)
        order = [together.names.index(name) for name in names]
        new = {pair: row[:, order] for pair, row in zip(missing, found.values(), strict=True)}
        if (size := 16 * len(names) * len(pairs)) <= _MOST:
            written = {ends[pair]: row.numpy().astype("<f8").tobytes() for pair, row in new.items()}
            self._new.setdefault(_KIND, {}).update(written)
        else:
            self._told(len(first), len(names), size)
        return rows | new

    def _too_many(self, n: int, tensors: int) -> bool:
        size = 8 * n * (n + 1) * tensors
        if size > _MOST:
            self._told(n, tensors, size)
        return size > _MOST

    def _told(self, n: int, tensors: int, size: int) -> None:
        what = f"{n} networks of {tensors} tensors, {size / 1e9:.1f} GB"
        self.notes.append(f"distances of {what}, are more than the atlas keeps, and are computed each time")

    def _of(self, kind: str) -> dict[Ends, bytes]:
        if kind not in self._known:
            self._known[kind] = {} if self.store is None else self.store.of(kind, self.keys)
        return self._known[kind]


def _summed(member: Member, label: str) -> bytes:
    return summary(member, label).astype("<f8").tobytes()


def _spread(
    together: SideBySide,
    who: Sequence[Who],
    different: Sequence[Who],
    estimates: tuple[np.ndarray, np.ndarray],
    rows: Mapping[tuple[int, int], torch.Tensor],
) -> Distances:
    """Distances of different networks as those of all, of which some are copies."""
    place = {one: k for k, one in enumerate(different)}
    at = [place[one] for one in who]
    own: dict[int, list[int]] = {}
    for k, one in enumerate(at):
        own.setdefault(one, []).append(k)
    names = sorted(together.names)
    order = [names.index(name) for name in together.names]
    pairs = {(min(i, j), max(i, j)): row[:, order] for (a, b), row in rows.items() for i in own[a] for j in own[b]}
    squares, products = (table[:, at][:, :, at] for table in estimates)
    copies = [(i, j) for some in own.values() for i in some for j in some if i < j]
    return put_together(together, squares, products, pairs, copies)


class _Tables:
    """Squared distances and inner products of different networks, tensor by tensor, some of which are known.

    A pair is one row: its squared distances, then its inner products, in the order of the tensors' names.
    """

    def __init__(self, who: Sequence[Who], names: Sequence[str], known: dict[Ends, bytes]) -> None:
        self.who, self.names, n = list(who), list(names), len(who)
        self.squares, self.products = (torch.zeros(len(names), n, n, dtype=torch.float64) for _ in range(2))
        self.there = torch.zeros(n, n, dtype=torch.bool)
        self.stored = torch.zeros(n, n, dtype=torch.bool)
        place = {one: k for k, one in enumerate(who)}
        rows, ends = [], []
        for i, one in enumerate(who):
            for other in who[: i + 1]:
                row = known.get(_ends(one, other), b"")
                if len(row) == 16 * len(names):
                    rows.append(row)
                    ends.append((i, place[other]))
        if rows:
            numbers = np.frombuffer(b"".join(rows), "<f8").reshape(len(rows), 2, len(names)).copy()
            i, j = torch.tensor(ends).T
            self._put(i, j, *torch.from_numpy(numbers).unbind(1))
        self.stored |= self.there

    def _put(self, i: torch.Tensor, j: torch.Tensor, squares: torch.Tensor, products: torch.Tensor) -> None:
        """Take in pairs, of shape (pairs, tensors)."""
        for table, values in ((self.squares, squares), (self.products, products)):
            table[:, i, j] = table[:, j, i] = values.T
        self.there[i, j] = self.there[j, i] = True

    def new(self) -> list[int]:
        """The fewest networks, nearly, without which all pairs are known."""
        there, found = self.there.clone(), []
        while not bool(there.all()):
            k = int((~there).sum(1).argmax())
            found.append(k)
            there[k] = there[:, k] = True
        return found

    def take(self, found: Distances) -> None:
        """Take in the pairs of all networks that are not known."""
        i, j = (~self.there).triu().nonzero().T
        order = [found.tensors.index(name) for name in self.names]
        self._put(i, j, found.squares[order][:, i, j].T, found.products[order][:, i, j].T)

    def row(self, k: int, members: Sequence[Member], labels: Sequence[str] | None, others: Sequence[int]) -> None:
        """Compare one network with others, and with itself."""
        at = torch.tensor([j for j in others if not self.there[k, j]], dtype=torch.long)
        names = [f"network {k}"] * len(members) if labels is None else labels
        found = against(members[k], [members[int(j)] for j in at], names[k], [names[int(j)] for j in at])
        order = [found.tensors.index(name) for name in self.names]
        self._put(torch.full_like(at, k), at, found.squares[order].T, found.products[order].T)
        own, one = found.own[order][None], torch.tensor([k])
        self._put(one, one, torch.zeros_like(own), own)

    def written(self) -> dict[Ends, bytes]:
        """The rows of pairs that were not stored."""
        i, j = (self.there & ~self.stored).triu().nonzero().T
        numbers = torch.stack([self.squares[:, i, j].T, self.products[:, i, j].T], 1).numpy().astype("<f8")
        pairs = zip(i.tolist(), j.tolist(), numbers, strict=True)
        return {_ends(self.who[a], self.who[b]): row.tobytes() for a, b, row in pairs}


def _ends(one: Who, other: Who) -> Ends:
    first, second = sorted((one, other))
    return first[0], second[0], _digest([first[1], second[1]]) if first[1] or second[1] else ""


def _digest(what: Any) -> str:
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()
