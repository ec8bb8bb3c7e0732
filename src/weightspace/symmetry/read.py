"""Read the symmetry group of any exportable module: follow axes, find families, scales and signs, verify generators.

Definition. An axis is a set of indices that meets, everywhere in the graph, only operations which treat them alike.
Its permutations then act on the weights and leave f alone. An axis X may be permuted differently for every index of
an outer axis A (a family) if and only if A occurs beside X, once, in every tensor in which X occurs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from weightspace.graph import atoms
from weightspace.graph.atoms import Atom
from weightspace.graph.follow import Reading, follow, masks
from weightspace.graph.trace import Trace, trace
from weightspace.linear.bits import reduce_bits
from weightspace.net.errors import SymmetryError
from weightspace.net.inputs import carried, input_tensors
from weightspace.net.net import Net
from weightspace.net.state import settled
from weightspace.symmetry.axis import KINDS, MATRICES, Axis, Block, Generator, Place, as_blocks
from weightspace.symmetry.element import Element
from weightspace.symmetry.exchanges import find_exchanges
from weightspace.symmetry.group import Group
from weightspace.symmetry.pairs import find_pairs
from weightspace.symmetry.probe import Probe
from weightspace.symmetry.reach import Signs, signs_met, unreached
from weightspace.symmetry.scale import dead_blocks, place_slopes, scale_generators, with_matrix
from weightspace.symmetry.sign import sign_generators
from weightspace.symmetry.turns import Trial, find_turns
from weightspace.symmetry.verify import verify

__all__ = ["Draft", "label", "read"]


_G = TypeVar("_G", bound=Group)
_MOST_HELD = 4
_MOST_NAMES = 12


def read(
    net: Net | nn.Module,
    example: Any,
    *,
    into: type[_G],
    check: bool | None = None,
    scales: bool = True,
    linear: bool = True,
    outputs_move: bool = False,
) -> _G:
    """The symmetry group of the architecture of `net`, read on one `example` input, verified in float64.

    `check`: try every generator on random weights and inputs; None: unless the weights are on the meta device.
    `scales`: look for scales and signs too, under the same condition. `linear`: and for matrices. `outputs_move`: leave
    the axes of the outputs free, to compare representations.
    The notes of the group list tensors that the example does not reach, and scales that failed verification.
    Raises `SymmetryError` where the module cannot be exported or a permutation changes the function.
    """
    net = Net.of(net)
    if empty := [tuple(t.shape) for t in input_tensors(example) if not t.numel()]:
        raise SymmetryError(f"the example has an input without entries, of shape {empty[0]}; give at least one example")
    if not check and net.device.type == "meta":
        with settled(net.dtype):
            graph = trace(net.live(), carried(example, net))
            return _draft(graph, follow(graph, outputs_move), net).group(into, ())
    with settled(torch.float64):
        with closing(Probe.of(net, example, seed=0)) as probe:
            graph = probe.trace()
            draft = _draft(graph, follow(graph, outputs_move), net)
            group = _tried(draft, graph, probe, into, check is not False, scales)
            group = _turned(draft, group, graph, probe, into) if linear and scales else group
            return _exchanged(draft, group, graph, probe)


def _tried(draft: Draft, graph: Trace, probe: Probe, into: type[_G], check: bool, scales: bool) -> _G:
    """The group of a draft, with its scales and signs, every generator tried if `check`."""
    group = draft.group(into, ())
    try:
        probe.settle(graph)
    except SymmetryError as error:
        if check:
            raise
        draft.say(f"scales and signs were not looked for: {error}")
        return draft.group(into, ())
    if check:
        verify(group, graph, draft.reading, draft.names, probe, ("permutation",))
    if not scales:
        return _sealed(group, into, check, ("permutation",))
    try:
        generators = _factors(draft, group, graph, probe)
    except SymmetryError as error:
        draft.say(f"scales and signs were not looked for: {error}")
        return _sealed(draft.group(into, ()), into, check, ("permutation",))
    group = draft.group(into, generators)
    if check and generators:
        broken = verify(group, graph, draft.reading, draft.names, probe, ("scale", "sign"))
        for k in sorted(broken):
            draft.say(f"a {generators[k].kind} of {generators[k].axis} holds for small moves only: left out")
        group = draft.group(into, [g for k, g in enumerate(generators) if k not in broken])
    return _sealed(group, into, check, ("permutation", "scale", "sign"))


def _turned(draft: Draft, group: _G, graph: Trace, probe: Probe, into: type[_G]) -> _G:
    """The group with the matrices that its axes admit."""
    found = find_turns(group, graph, draft.reading, draft.names, probe, draft.say)
    grown = draft.group(into, found.replaced(group.generators), found.gauge, found.free)
    grown.verified = group.verified and {**group.verified, "kinds": [*group.verified["kinds"], *MATRICES]}
    return find_pairs(grown, Trial(graph, probe).holds)


def _exchanged(draft: Draft, group: _G, graph: Trace, probe: Probe) -> _G:
    """The group with the exchanges of its parts, and what there is to say about them."""
    try:
        found = find_exchanges(group, graph, draft.reading, draft.names, probe, draft.say)
    except SymmetryError as error:
        draft.say(f"exchanges of parts were not looked for: {error}")
        found = group
    return found if found.notes == tuple(draft.reading.notes) else found.again(notes=draft.reading.notes)


def _factors(draft: Draft, group: Group, graph: Trace, probe: Probe) -> list[Generator]:
    """Scales and signs. Inputs of operations that do not follow a scale at all sizes are held fixed, then once more."""
    signs, still = signs_met(graph, probe), masks(graph, draft.state)
    held: set[Any] = set()
    for _ in range(_MOST_HELD):
        slopes = place_slopes(group, graph, probe, held, still)
        generators = scale_generators(group, slopes)
        more = _unfollowed(draft, group, generators, graph, probe, signs) - held
        if not more:
            break
        held |= more
    unseen = _unseen(draft, group, probe, dead_blocks(group, slopes, still))
    slopes = {axis: {} if axis in unseen else found for axis, found in slopes.items()}
    draft.drop(axis for axis, found in slopes.items() if not found)
    generators = [g for g in generators if g.axis not in unseen]
    generators += sign_generators(group, graph, draft.reading, draft.names, probe, slopes, signs, still)
    return _independent(group, generators)


def _unseen(draft: Draft, group: Group, probe: Probe, dead: list[int]) -> set[str]:
    """The axes of blocks without effect, with a note: this example does not tell how they act on the rest."""
    seen = [n for n in dead if not draft.spare & {*group.blocks[n].leaves} and not _has_effect(group, probe, n)]
    if not (dead := with_matrix(group, seen)):
        return set()
    tensors = list(dict.fromkeys(group.blocks[number].tensor for number in dead))
    draft.say(
        f"without effect on the outputs of this example, {_listed(tensors, ())}: the axes that index them stay; give a "
        "longer example, of several tokens or steps"
    )
    return {str(leaf) for number in dead for leaf in group.blocks[number].leaves}


def _has_effect(group: Group, probe: Probe, number: int) -> bool:
    """Whether other numbers in a block change an output on a draw of the slopes; a router by argmax has no slope."""
    block, noise = group.blocks[number], torch.Generator().manual_seed(number)
    tensor, felt = probe.net.tensors[block.tensor], False
    for seed in range(probe.passes):
        probe.draw(seed)
        example = probe.inputs(seed)
        before, view = probe.outputs(example), group.view(block, tensor)
        kept = view.clone()
        view.copy_(torch.randn(view.shape, generator=noise, dtype=torch.float64).to(view) * (kept.abs().mean() + 1))
        felt = not all(map(torch.equal, before, probe.outputs(example)))
        view.copy_(kept)
        if felt:
            break
    probe.draw(0)
    return felt


def _unfollowed(
    draft: Draft, group: Group, generators: list[Generator], graph: Trace, probe: Probe, signs: Signs
) -> set[Any]:
    if not generators:
        return set()
    all_scales = draft.group(type(group), generators)
    scaled = Element(all_scales, {}, all_scales.sample(3, ("scale",)).factors)
    return unreached(graph, probe, scaled, signs)


def label(net: Net, example: Any) -> tuple[Trace, Draft]:
    """The graph of `net` on an example, and the axes in it; nothing is verified."""
    with settled(net.dtype):
        graph = trace(net.live(), example)
        return graph, _draft(graph, follow(graph), net)


def _sealed(group: _G, into: type[_G], check: bool, kinds: tuple[str, ...]) -> _G:
    if check:
        group.verified = {
            "how": "every generator alone, a random element of each, on noisy weights and random inputs",
            "dtype": "float64",
            "mode": "evaluation",
            "kinds": list(kinds),
        }
    return group


@dataclass
class Draft:
    """Axes and blocks before their scales are known."""

    reading: Reading
    names: dict[Atom, str]
    every: list[Axis]
    blocks: list[Block]
    fixed: set[str]
    shapes: dict[str, tuple[int, ...]]
    state: list[str]
    pinned: dict[str, str] = field(default_factory=dict)
    fingerprint: str = ""
    spare: set[str] = field(default_factory=set)  # axes of rows that a slice threw away

    def drop(self, axes: Iterable[str]) -> None:
        """Fix axes on which the output does not depend."""
        for name in axes:
            self.fixed.add(name)
            self.pinned.setdefault(name, "no effect on the output")

    def say(self, note: str) -> None:
        """Add a note to those of the reading."""
        if note not in self.reading.notes:
            self.reading.notes.append(note)

    def group(
        self,
        into: type[_G],
        generators: Iterable[Generator],
        gauge: Iterable[Generator] = (),
        free: Iterable[Place] = (),
    ) -> _G:
        """The group with these generators; every axis gets its kinds."""
        generators = list(generators)
        axes = []
        for axis in self.every:
            kinds = [] if axis.name in self.fixed else ["permutation"]
            kinds += [k for k in KINDS[1:] if any(g.axis == axis.name and g.kind == k for g in generators)]
            axes.append(replace(axis, kinds=tuple(kinds)))
        return into(
            axes,
            self.blocks,
            generators,
            self.shapes,
            state=self.state,
            notes=self.reading.notes,
            pinned=self.pinned,
            fingerprint=self.fingerprint,
            gauge=gauge,
            free=free,
        )


def _draft(graph: Trace, reading: Reading, net: Net) -> Draft:
    _collapse(reading)
    pieces = {name: atoms.blocks(labels.dims) for name, labels in reading.named.items()}
    tables = [atoms.blocks(labels.dims) for labels in reading.all]
    held = {leaf for found in pieces.values() for block in found for span in block for leaf in span.leaves}
    carriers = _carriers(tables, held)
    order = _first_met(pieces)
    names = _names(order)
    spare = _unused(pieces, tables, reading)
    axes = []
    for leaf in order:
        outer = sorted((a for a in carriers[leaf] if a in names), key=lambda a: (len(carriers[a]), names[a]))
        axes.append(Axis(names[leaf], leaf.size, tuple(names[a] for a in outer)))
    fixed = {names[leaf] for leaf in order if leaf.pin is not None or leaf in spare}
    blocks = [b for name, found in pieces.items() for b in as_blocks(name, reading.named[name].shape, found, names)]
    shapes = {name: labels.shape for name, labels in reading.named.items()}
    state = [name for name in net.state if name in shapes]
    if apart := [name for name in net.tensors if name not in shapes and not name.endswith("num_batches_tracked")]:
        reading.notes.append(f"not reached by the example, left alone: {_listed(apart, shapes)}")
    reasons = {names[leaf]: leaf.pin for leaf in order if leaf.pin is not None}
    if mixed := [name for name, reason in reasons.items() if reason == atoms.MIXED]:
        reading.notes.append(f"{atoms.MIXED} elsewhere, {', '.join(mixed[:_MOST_NAMES])}: pinned")
    thrown = {names[leaf] for leaf in spare}
    return Draft(reading, names, axes, blocks, fixed, shapes, state, reasons, net.fingerprint, thrown)


def _listed(names: list[str], others: Iterable[str]) -> str:
    """Names of tensors; where there are many, the submodules that hold none of the others."""
    if len(names) <= _MOST_NAMES:
        return ", ".join(names)
    taken = {prefix for name in others for prefix in _prefixes(name)}
    parts = Counter(next((p for p in _prefixes(name) if p not in taken), name) for name in names)
    return ", ".join(f"{part}.* ({n} tensors)" if part not in names else part for part, n in parts.items())


def _prefixes(name: str) -> list[str]:
    steps = name.split(".")[:-1]
    return [".".join(steps[: k + 1]) for k in range(len(steps))]


def _independent(group: Group, generators: list[Generator]) -> list[Generator]:
    """Drop redundant generators: a factor for a whole head is one factor for each of its channels."""
    kept: set[Generator] = set()
    within: dict[tuple[str, str], list[Generator]] = {}  # kind, outer axis -> those kept of axes inside of it
    for generator in sorted(generators, key=lambda g: -len(group[g.axis].over)):
        rows = _by_block([*within.get((generator.kind, generator.axis), []), generator])
        if generator.kind == "sign":
            rows_of_bits = [sum(1 << k for k, bit in enumerate(row) if round(bit) % 2) for row in rows]
            fresh = len(reduce_bits(rows_of_bits)) > len(reduce_bits(rows_of_bits[:-1]))
        else:
            fresh = np.linalg.matrix_rank(rows) > (np.linalg.matrix_rank(rows[:-1]) if len(rows) > 1 else 0)
        if fresh:
            kept.add(generator)
            for outer in group[generator.axis].over:
                within.setdefault((generator.kind, outer), []).append(generator)
    return [g for g in generators if g in kept]


def _by_block(generators: list[Generator]) -> np.ndarray:
    """The exponents of generators, one row each, in the blocks that any of them touches."""
    blocks = dict.fromkeys(place.block for g in generators for place, _ in g.exponents)
    column = {block: k for k, block in enumerate(blocks)}
    rows = np.zeros((len(generators), len(column)))
    for row, generator in zip(rows, generators, strict=True):
        for place, exponent in generator.exponents:
            row[column[place.block]] += exponent
    return rows


def _collapse(reading: Reading) -> None:
    """Merge the members of an axis that also occurs without its key, or whose members are all the same."""
    refused: set[tuple[Atom, Atom]] = set()
    filled = [labels for labels in reading.all if 0 not in labels.shape]
    while True:
        refused = {(atoms.root(leaf), atoms.root(key)) for leaf, key in refused}
        lost = set()
        for labels in filled:
            atoms.spread(labels.dims, refused)
        for labels in filled:
            for block in atoms.blocks(labels.dims):
                for leaf in {leaf for span in block for leaf in span.leaves}:
                    lost |= {(leaf, key) for key, _ in atoms.members(leaf)}
            lost |= {pair for leaf in atoms.leaves(labels.dims) for pair in _equal_members(leaf)}
        if not lost:
            return
        for leaf, key in lost:
            atoms.collapse(leaf, key)
        refused |= lost


def _equal_members(leaf: Atom) -> Iterator[tuple[Atom, Atom]]:
    """Axes over which a leaf has a member for every index, all of them the same."""
    held: dict[Atom, list[Atom]] = {}
    for (key, _), child in atoms.members(leaf).items():
        held.setdefault(key, []).append(atoms.root(child))
    yield from ((leaf, key) for key, found in held.items() if len(found) == key.size and len({*found}) == 1)


def _carriers(tables: list[list[tuple[atoms.Span, ...]]], held: set[Atom]) -> dict[Atom, set[Atom]]:
    allowed: dict[Atom, set[Atom]] = {}
    for table in tables:
        for block in table:
            where = [(d, k, leaf) for d, span in enumerate(block) for k, leaf in enumerate(span.leaves)]
            count = Counter(leaf for _, _, leaf in where)
            for d, k, leaf in where:
                if leaf not in held:
                    continue
                outer = {
                    other
                    for e, m, other in where
                    if count[leaf] == count[other] == 1
                    and other is not leaf
                    and not other.foreign
                    and (e != d or m < k)
                }
                allowed[leaf] = allowed[leaf] & outer if leaf in allowed else outer
    for leaf in held:
        allowed.setdefault(leaf, set())
    return _one_way(allowed)


def _one_way(allowed: dict[Atom, set[Atom]]) -> dict[Atom, set[Atom]]:
    """Of two axes that always occur together in different dimensions, the smaller is the outer one."""
    for leaf, outer in allowed.items():
        for other in list(outer):
            if leaf in allowed.get(other, ()):
                loser = leaf if leaf.size <= other.size else other
                allowed[loser].discard(other if loser is leaf else leaf)
    return allowed


def _first_met(pieces: dict[str, list[tuple[atoms.Span, ...]]]) -> dict[Atom, tuple[str, int, int]]:
    order: dict[Atom, tuple[str, int, int]] = {}
    vectors = {name for name, found in pieces.items() if all(sum(bool(s.leaves) for s in b) < 2 for b in found)}
    for name in sorted(pieces, key=lambda name: name in vectors):
        for block in pieces[name]:
            for d, span in enumerate(block):
                for k, leaf in enumerate(span.leaves):
                    order.setdefault(leaf, (name, d, k))
    return order


def _names(order: dict[Atom, tuple[str, int, int]]) -> dict[Atom, str]:
    """`fc.weight[0]`: named after the first matrix, else vector, with the axis, and numbered if need be."""
    names: dict[Atom, str] = {}
    taken: Counter[str] = Counter()
    for leaf, (name, d, _) in order.items():
        base = f"{name}[{d}]"
        names[leaf] = base if not taken[base] else f"{base}.{taken[base]}"
        taken[base] += 1
    return names


def _unused(
    pieces: dict[str, list[tuple[atoms.Span, ...]]],
    tables: list[list[tuple[atoms.Span, ...]]],
    reading: Reading,
) -> set[Atom]:
    """Leaves that only ever occur in one whole tensor: rows that a slice threw away."""
    met: Counter[Atom] = Counter()
    for table in tables:
        held = {leaf for block in table for span in block for leaf in span.leaves}
        met.update(held)
    return {leaf for leaf in _first_met(pieces) if met[leaf] == 1}
