"""Invariant paths on colour images: CIFAR-100 in twenty tasks, a pruned ResNet, ensembles under attack.

    python -m experiments.colours [split sparsify ensembles] --data DIR [--only WAY ..] [--seeds 0] [--full] [--quick]

DIR holds the folders cifar10 and cifar100. Without --data: embedded digits. --full is nearer to the size of the paper
(ResNet20 at full resolution, 60 epochs), for a machine with an accelerator (--device cuda). Rows that are there are not
measured again.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from experiments import diverse, hundred, thin
from experiments.record import Job, Record, command
from experiments.residual import Lab
from weightspace import WeightspaceError

Jobs = Callable[[Any, int, list[str]], Iterator[Job]]

# the folder of the data, what reads it, the jobs, the ways, the tables
EXPERIMENTS: dict[str, tuple[str, Callable[..., Any], Jobs, Sequence[str], Callable[[Record, str], dict[str, str]]]] = {
    "split": ("cifar100", hundred.Hundred, hundred.sequences, list(hundred.WAYS), hundred.tables),
    "sparsify": ("cifar10", Lab, thin.sparsify, list(thin.WAYS), thin.tables),
    "ensembles": ("cifar10", Lab, diverse.ensembles, diverse.KINDS, diverse.tables),
}


def tables(record: Record, cifar: bool = True, full: bool = False) -> dict[str, str]:
    """Mark in the README -> table."""
    found = {}
    for folder, _, _, _, show in EXPERIMENTS.values():
        found |= show(record, (folder if cifar else "digits") + (" full" if full else ""))
    return found


def _lab(given: Namespace) -> Namespace:
    ways = [way for entry in EXPERIMENTS.values() for way in entry[3]]
    if wrong := [way for way in given.only if way not in ways]:
        raise WeightspaceError(f"no {wrong[0]!r}; choose {', '.join(ways)}")
    return given


def _jobs(_: Namespace, given: Namespace) -> Iterator[Job]:
    made = dict[str, Any]()
    for name in given.chosen:
        folder, kind, jobs, _, _ = EXPERIMENTS[name]
        make = partial(kind, given.data and str(Path(given.data) / folder), given.quick, given.full, given.device)
        lab = made[folder] = made.get(folder) or make()
        for seed in given.seeds:
            yield from jobs(lab, seed, given.only)


main = command(
    "colours",
    __doc__,
    EXPERIMENTS,
    _lab,
    lambda record, given: tables(record, bool(given.data), given.full),
    jobs=_jobs,
    data="folder with cifar10 and cifar100",
    seeds=[0],
    options={
        "--only": {"nargs": "*", "default": [], "metavar": "WAY", "help": "some rows of the tables"},
        "--full": {"action": "store_true", "help": "ResNet20 at full resolution"},
        "--device": {"default": "cpu", "help": "where the networks are"},
    },
)

if __name__ == "__main__":
    sys.exit(main())
