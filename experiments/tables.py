"""The tables of the README, from the rows of a record: medians over seeds."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

from experiments.record import Record, number, percent

Table = tuple[str | list[str], list[list[str]]]

NAMES = {
    "distance": "distance to v*",
    "as it is": "as they are",
    "linear": "linear functional",
    "first": "first coordinate",
    "later": "37th coordinate",
}


def _settings(record: Record, experiment: str, depth: int) -> list[str]:
    """The distinct settings number `depth` of an experiment, in order of measurement."""
    return list(dict.fromkeys(key.split("/")[depth] for key in record.rows if key.startswith(f"{experiment}/")))


def _grid(record: Record, name: str, show: Callable[..., str], skip: tuple[str, ...] = ()) -> Table:
    children = ["exact copy", *(f"noise {n:g}" for n in (1e-4, 1e-3, 1e-2, 1e-1, 0.5)), "fine-tuned", "independent"]
    ways = [w for w in ("as it is", "first", "later", "norm", "mean", "linear", "distance", "matched") if w not in skip]
    rows = [[child, *(show(record.median(f"keys/{child}/{way}", name)) for way in ways)] for child in children]
    return ["child", *(NAMES.get(w, w) for w in ways)], rows


def recovered(record: Record) -> Table:
    """Percent of units recovered, layer by layer."""
    head, rows = _grid(record, "recovered", lambda v: percent(v, 0), skip=("as it is",))
    return head, [row for row in rows if row[0] != "independent"]


def barrier(record: Record) -> Table:
    return _grid(record, "barrier", number)


def distance(record: Record) -> Table:
    return _grid(record, "distance", lambda v: number(v, 2))


def mean_accuracy(record: Record) -> Table:
    return _grid(record, "mean_accuracy", percent)


def paths(record: Record) -> Table:
    rows = []
    for kind, ends in product(("mlp", "cnn"), ("independent", "aligned", "permuted copy")):
        at = f"paths/{kind}/{ends}"
        barriers = record.cells(at, "line bezier polychain", number)
        rows.append([kind.upper(), ends, *barriers, *record.cells(at, "bezier_worst_accuracy step ends", percent)])
    head = "net | ends | line | Bezier | polychain | worst accuracy on Bezier, % | in place, step by step, % | "
    return f"{head}in place, end to end, %", rows


def averages(record: Record) -> Table:
    rows = []
    for kind, n in product(("mlp", "cnn"), range(2, 6)):
        at = f"averages/{kind}/{n}"
        places = [(at, "single"), (at, "naive"), (at, "mended"), (f"{at} without data", "merged")]
        places += [(at, "merged"), (at, "ensemble")]
        rows.append([kind.upper(), str(n), *(_scored(record, *place) for place in places)])
    head = "net | n | one network, % | mean as they are | the same, repaired | mean modulo symmetry | "
    return f"{head}the same, repaired | mean of predictions", rows


def _scored(record: Record, setting: str, name: str) -> str:
    """Accuracy in percent and, in brackets, cross-entropy."""
    return f"{percent(record.median(setting, name))} ({number(record.median(setting, f'{name}_loss'))})"


def swa(record: Record) -> Table:
    at = "swa/run"
    scores = [_scored(record, at, name) for name in ("last", "swa", "annealed", "merged")]
    head = "last epoch, % | mean of the last epochs (SWA) | annealed run | 5 annealed runs, merged | "
    row = [*scores, *record.cells(at, "line", number), *record.cells(at, "in_place", percent)]
    return f"{head}barrier, first to last | in place, first to last, %", [row]


def plane(record: Record) -> Table:
    rows = []
    for kind in ("one run", "independent", "aligned"):
        losses = record.cells(f"plane/{kind}", "train_loss_corners train_loss_centre", number, 4)
        rows.append([kind, *losses, *record.cells(f"plane/{kind}", "test_error_corners test_error_centre", percent)])
    head = "three networks | train loss, corners | train loss, centre | test error %, corners | test error %, centre"
    return head, rows


def widths(record: Record) -> Table:
    rows = []
    for other in ("fine-tuned", "same width", "half the width", "quarter of the width", "untrained"):
        get = record.at(f"widths/{other}")
        near, far = get("aligned_distance"), get("distance")
        weights = "refused" if near is None else f"{number(far, 1)} apart, aligned {number(near, 1)}"
        row = [other, number(get("l2")), percent(get("disagreement")), number(get("kl")), number(get("cka"), 2)]
        rows.append([*row, weights])
    return "other network | L2 of outputs | predictions that differ, % | KL | CKA of the layers | weights", rows


def parametrisations(record: Record) -> Table:
    rows = []
    names = {"mlp": "free", "ordered": "differences of biases >= 0", "asymmetric": "a quarter of the entries fixed"}
    for kind, name in names.items():
        at = f"parametrisations/{kind}"
        barriers = record.cells(at, "naive matched", number)
        rows.append([name, *record.cells(at, "accuracy", percent), *barriers, *record.cells(at, "in_place", percent)])
    return "parametrisation | accuracy, % | barrier as they are | barrier matched | in place, %", rows


TABLES: dict[str, Callable[[Record], Table]] = {
    "keys recovered": recovered,
    "keys barrier": barrier,
    "keys distance": distance,
    "keys mean": mean_accuracy,
    "paths": paths,
    "averages": averages,
    "swa": swa,
    "plane": plane,
    "widths": widths,
    "parametrisations": parametrisations,
}
