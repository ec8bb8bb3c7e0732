"""`weightspace compare` of a set of checkpoints: who came from whom, how their task vectors meet, whether to merge."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from weightspace.atlas.lineage import Lineage, lineage, plain
from weightspace.checkpoint import adapter, reader
from weightspace.checkpoint.architecture import ArchitectureError
from weightspace.checkpoint.refusal import some
from weightspace.commands.scores import Score, scored
from weightspace.commands.settings import Settings, must_exist
from weightspace.commands.workspace import Workspace, file_names
from weightspace.merging.adapters.adapted import into_base
from weightspace.merging.adapters.combined import inner_products
from weightspace.merging.adapters.lora_folder import lora
from weightspace.merging.advice import MOST, Advice, Interference, advise, interference, of_products
from weightspace.net.average import average
from weightspace.net.net import Net
from weightspace.net.weights import dtypes_of, shapes_of
from weightspace.symmetry.align.repair import reset_statistics
from weightspace.symmetry.symmetry import mean

__all__ = ["Measured", "Set", "compare_set"]


@dataclass(frozen=True)
class Measured:
    """Scores on held-out examples: of every network, of their mean as stored, and of their mean after alignment."""

    singles: list[Score]
    stored: Score
    aligned: Score
    examples: int

    @property
    def rise(self) -> float:
        """The loss of the mean as stored, less the mean loss of the networks."""
        return self.stored.loss - sum(one.loss for one in self.singles) / len(self.singles)


@dataclass(frozen=True)
class Set:
    """A set of networks compared: lineage, how their task vectors meet, and the advice.

    `base`: what task vectors are from, and `found_base` whether it was told by the weights alone. `lineage` is None of
    adapters in factors. `met` is about `members`, the networks without the base.
    """

    names: list[str]
    members: list[str]
    base: str | None
    found_base: bool
    lineage: Lineage | None
    met: Interference
    advice: Advice
    measured: Measured | None = None
    notes: list[str] = field(default_factory=list)

    def origin(self, k: int) -> str:
        """What network number k came from, in words; "" where nothing was found."""
        edges = [] if self.lineage is None else [edge for edge in self.lineage.edges if edge.child == k]
        if not edges:
            return ""
        parents = " + ".join(self.names[edge.parent] for edge in edges)
        return f"{edges[0].kind}{', renumbered' * edges[0].renumbered} of {parents}"

    def rows(self) -> Iterator[tuple[str, ...]]:
        """Rows of the table of members: name, |tau|, relative, cosines with the others, conflict, overlap, origin."""
        met = self.met
        norms, relative = met.norms.tolist(), met.relative.tolist()
        for k, name in enumerate(self.members):
            others = [j for j in range(len(met)) if j != k]
            tables = (met.cosines, met.conflicts, met.overlaps) if met.based else ()
            means = [_mean(table[k, others].tolist()) for table in tables] or ["", "", ""]
            yield (name, _shown(norms[k]), _shown(relative[k]), *means, self.origin(self.names.index(name)))

    def summary(self) -> Iterator[tuple[str, str]]:
        """The numbers of the set as a whole."""
        met = self.met
        yield "networks from their mean, relative to it", _shown(met.spread)
        if not met.based:
            return
        yield "mean cosine of the task vectors (0: unrelated)", _shown(met.mean(met.cosines))
        yield "signs that disagree, by magnitude (.5: unrelated)", _shown(met.mean(met.conflicts))
        yield "share that cancels in the sum", _shown(met.cancelled)
        yield "largest tenth of entries in common (.1: chance)", _shown(met.mean(met.overlaps))
        yield "singular task interference", _shown(met.interfering)

    def tensors(self) -> Iterator[tuple[str, ...]]:
        """Rows of the table of tensors: name, mean cosine, share that cancels, spread, interference, effective rank."""
        met = self.met
        spreads = dict(zip(met.matrices or met.tensors, met.spreads.tolist(), strict=True))
        for t, (name, cosines) in enumerate(zip(met.tensors, met.by_tensor, strict=True)):
            spread = _shown(spreads.get(name, float("nan")))
            if not met.based:
                yield name, "", "", spread, "", ""
                continue
            ranks = met.ranks[t][met.ranks[t].isfinite()].tolist()
            cells = [_shown(x) for x in (met.mean(cosines), float(met.opposed[t]), float(met.singular[t]))]
            yield name, *cells[:2], spread, cells[2], _mean(ranks)

    def data(self) -> dict[str, Any]:
        """As plain data."""
        met = self.met
        told = {
            "cosine": met.mean(met.cosines), "conflict": met.mean(met.conflicts), "cancelled": met.cancelled,
            "overlap": met.mean(met.overlaps), "interference": met.interfering,
        }  # fmt: skip
        tables = {"cosines": met.cosines, "conflicts": met.conflicts, "overlaps": met.overlaps}
        summary = {"spread": met.spread, "trust": met.trust, **{k: v if met.based else None for k, v in told.items()}}
        pairs = {name: table.tolist() if met.based else None for name, table in tables.items()}
        pairs |= {"norms": met.norms.tolist(), "relative": met.relative.tolist()}
        keys = "name", "cosine", "cancelled", "spread", "interference", "rank"
        numbers = [dict(zip(keys, row, strict=True)) for row in self.tensors()]
        kin = None if self.lineage is None else {**plain(self.lineage), "group": [*self.lineage.group]}
        return {
            "names": self.names, "members": self.members, "base": self.base, "base_found": self.found_base,
            "advice": asdict(self.advice), "summary": summary, **pairs, "tensors": numbers, "lineage": kin,
            "measured": None if self.measured is None else {**asdict(self.measured), "rise": self.measured.rise},
            "left_out": [*met.left_out], "notes": self.notes,
        }  # fmt: skip


def _mean(values: Sequence[float]) -> str:
    there = [x for x in values if x == x]
    return _shown(sum(there) / len(there)) if there else ""


def _shown(value: float) -> str:
    return "" if value != value else f"{value:.3g}"


def compare_set(
    paths: Sequence[Path],
    base: Path | None = None,
    *,
    settings: Settings,
    data: str | None = None,
    example: str | None = None,
    limit: int = 2048,
) -> Set:
    """Compare 2 to 50 checkpoints, or adapters of one base, and say whether to merge them.

    `base`: what they were trained from; else the one of them that all others came from, if there is one. With an
    architecture renumbered relatives are found, and with `data` the mean is measured. Without it, weights alone tell.
    Raises `WeightspaceError`.
    """
    if not 2 <= len(paths) <= MOST:
        raise ArchitectureError(f"{len(paths)} checkpoints to compare; give 2 to {MOST}")
    everyone = [*paths, *([] if base is None else [base])]
    if len({path.resolve() for path in everyone}) < len(everyone):
        raise ArchitectureError("a checkpoint is given twice; give each once")
    names, low = file_names(*everyone), [_is_adapter(path) for path in everyone]
    if base is None and all(low):
        return _of_adapters(paths, names)
    if base is None and any(low):
        seen = names[low.index(True)]
        raise ArchitectureError(f"{seen} is an adapter, and others are not; give the base of the adapters as --base")
    if base is not None and low[-1]:
        raise ArchitectureError(f"{names[-1]} is an adapter; give the network that it was made for as --base")
    if any(low) and (settings.arch is not None or data is not None):
        raise ArchitectureError("adapters are compared by their weights alone; leave --arch and --data out")
    space = None
    if settings.arch is not None or data is not None:
        space = Workspace.open(everyone, settings, data, example, limit=limit)
    tensors = [into_base(path, base) if one and base is not None else reader.read(path)
               for path, one in zip(everyone, low, strict=True)]  # fmt: skip
    return _of_networks(everyone, names, tensors, base is not None, space, settings)


def _is_adapter(path: Path) -> bool:
    must_exist(path)
    return path.suffix != ".pt2" and path.exists() and adapter.describes(path)


def _of_adapters(paths: Sequence[Path], names: list[str]) -> Set:
    """Adapters in factors: cosines and norms of their updates, layer by layer."""
    opened = [lora(path) for path in paths]
    met = of_products(names, *inner_products(opened))
    notes = [f"{name}: not compared: {some(one.saved)}, saved whole"
             for name, one in zip(names, opened, strict=True) if one.saved]  # fmt: skip
    notes.append("only the updates are known; give the base as --base to compare the networks that they make")
    return Set(names, names, None, False, None, met, advise(met), None, notes)


class _Common(Mapping[str, Tensor]):
    """The tensors that all networks of a set have in one shape."""

    def __init__(self, source: Mapping[str, Tensor], names: Sequence[str]) -> None:
        self._source, self._names = source, dict.fromkeys(names)
        self.shapes = {name: shape for name, shape in shapes_of(source).items() if name in self._names}
        self.dtypes = {name: dtype for name, dtype in dtypes_of(source).items() if name in self._names}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._source[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _of_networks(
    paths: Sequence[Path],
    names: list[str],
    tensors: Sequence[Mapping[str, Tensor]],
    based: bool,
    space: Workspace | None,
    settings: Settings,
) -> Set:
    """Networks whose tensors are at hand; the last is the base where one is given."""
    nets = None if space is None else [space.load(path) for path in paths]
    kin = _lineage(names, tensors, nets, space, settings)
    root, found = (len(names) - 1 if based else None), False
    if root is None:
        root = _root(kin)
        found = root is not None
    members = [k for k in range(len(names)) if k != root]
    if len(members) < 2:
        root, found, members = None, False, [*range(len(names))]
    met = interference(
        [tensors[k] for k in members], None if root is None else tensors[root], [names[k] for k in members],
        progress=settings.progress,
    )  # fmt: skip
    measured = _measured(space, names, nets, members, settings) if space is not None and nets is not None else None
    advice = advise(
        met, [kin.group[k] for k in members], any(kin.renumbered[k] for k in members),
        matched=space is not None, rise=None if measured is None else measured.rise,
    )  # fmt: skip
    base = None if root is None else names[root]
    said = [note.replace("no group:", "no --arch:") for note in kin.notes]
    notes = [*said, *([] if space is None else space.group.notes)]
    if found:
        notes.insert(0, f"{base} is taken as the base: by their weights all others came from it")
    return Set(names, [names[k] for k in members], base, found, kin, met, advice, measured, notes)


def _lineage(
    names: list[str],
    tensors: Sequence[Mapping[str, Tensor]],
    nets: Sequence[Net] | None,
    space: Workspace | None,
    settings: Settings,
) -> Lineage:
    """Who came from whom, by the tensors that all have in one shape."""
    if nets is not None and space is not None:
        given: Sequence[Mapping[str, Tensor]] = [net.tensors for net in nets]
        return lineage(given, names, net=nets[0], group=space.group, seed=settings.seed, progress=settings.progress)
    shapes = [shapes_of(one) for one in tensors]
    same = [name for name, shape in shapes[0].items() if all(one.get(name) == shape for one in shapes)]
    if not same:
        raise ArchitectureError("the checkpoints have no tensor in common; give networks of one architecture")
    whole = all(len(one) == len(same) for one in shapes)
    return lineage(
        tensors if whole else [_Common(one, same) for one in tensors], names, seed=settings.seed,
        progress=settings.progress,
    )  # fmt: skip


def _root(kin: Lineage) -> int | None:
    """The network that all others came from as they are stored; None where there is none."""
    n = len(kin.labels)
    if any(kin.renumbered) or len({*kin.group}) > 1:
        return None
    found = [k for k in range(n) if {edge.child for edge in kin.edges if edge.parent == k} == {*range(n)} - {k}]
    return found[0] if found else None


def _measured(
    space: Workspace, names: Sequence[str], nets: Sequence[Net], members: Sequence[int], settings: Settings
) -> Measured | None:
    """Scores of the networks and of their means, where the data have labels."""
    task = space.measure_on
    if task is None or space.align_on is None:
        return None
    some_nets = [nets[k] for k in members]
    singles = [score for k in members for score in scored(task, nets[k], name=names[k])]
    if not singles:
        return None
    settings.progress(f"aligning {len(some_nets)} networks and averaging them", 0, 0)
    plain_mean = reset_statistics(average(some_nets), space.align_on)
    merged = mean(some_nets, space.group, data=space.align_on, seed=settings.seed)
    stored, aligned = (
        replace(scored(task, net)[0], name=name)
        for net, name in ((plain_mean, "mean as stored"), (merged, "mean after alignment and repair"))
    )
    return Measured(singles, stored, aligned, len(task))
