"""The tables of the README, from the rows of a record: medians over seeds."""

from __future__ import annotations

from collections.abc import Callable

from experiments.record import Record, number, percent

Table = tuple[list[str], list[list[str]]]

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
    head = ["net", "ends", "line", "Bezier", "polychain", "worst accuracy on Bezier, %"]
    head += ["in place, step by step, %", "in place, end to end, %"]
    rows = []
    for kind in ("mlp", "cnn"):
        for ends in ("independent", "aligned", "permuted copy"):
            get = lambda name: record.median(f"paths/{kind}/{ends}", name)  # noqa: B023, E731
            shares = [percent(get(name)) for name in ("bezier_worst_accuracy", "step", "ends")]
            rows.append([kind.upper(), ends, *(number(get(n)) for n in ("line", "bezier", "polychain")), *shares])
    return head, rows


def averages(record: Record) -> Table:
    head = ["net", "n", "one network, %", "mean as they are", "the same, repaired", "mean modulo symmetry"]
    head += ["the same, repaired", "mean of predictions"]
    rows = []
    for kind in ("mlp", "cnn"):
        for n in range(2, 6):
            at = f"averages/{kind}/{n}"
            places = [(at, "single"), (at, "naive"), (at, "mended"), (f"{at} without data", "merged")]
            places += [(at, "merged"), (at, "ensemble")]
            rows.append([kind.upper(), str(n), *(_scored(record, *place) for place in places)])
    return head, rows


def _scored(record: Record, setting: str, name: str) -> str:
    """Accuracy in percent and, in brackets, cross-entropy."""
    return f"{percent(record.median(setting, name))} ({number(record.median(setting, f'{name}_loss'))})"


def swa(record: Record) -> Table:
    names = ("last", "swa", "annealed", "merged")
    head = ["last epoch, %", "mean of the last epochs (SWA)", "annealed run", f"{5} annealed runs, merged"]
    head += ["barrier, first to last", "in place, first to last, %"]
    at = "swa/run"
    return head, [
        [
            *(_scored(record, at, k) for k in names),
            number(record.median(at, "line")),
            percent(record.median(at, "in_place")),
        ]
    ]


def plane(record: Record) -> Table:
    head = [
        "three networks",
        "train loss, corners",
        "train loss, centre",
        "test error %, corners",
        "test error %, centre",
    ]
    rows = []
    for kind in ("one run", "independent", "aligned"):
        get = lambda name: record.median(f"plane/{kind}", name)  # noqa: B023, E731
        errors = [percent(get("test_error_corners")), percent(get("test_error_centre"))]
        rows.append([kind, number(get("train_loss_corners"), 4), number(get("train_loss_centre"), 4), *errors])
    return head, rows


def widths(record: Record) -> Table:
    head = ["other network", "L2 of outputs", "predictions that differ, %", "KL", "CKA of the layers", "weights"]
    rows = []
    for other in ("fine-tuned", "same width", "half the width", "quarter of the width", "untrained"):
        get = lambda name: record.median(f"widths/{other}", name)  # noqa: B023, E731
        near, far = get("aligned_distance"), get("distance")
        weights = "refused" if near is None else f"{number(far, 1)} apart, aligned {number(near, 1)}"
        row = [other, number(get("l2")), percent(get("disagreement")), number(get("kl")), number(get("cka"), 2)]
        rows.append([*row, weights])
    return head, rows


def parametrisations(record: Record) -> Table:
    head = ["parametrisation", "accuracy, %", "barrier as they are", "barrier matched", "in place, %"]
    names = {"mlp": "free", "ordered": "differences of biases >= 0", "asymmetric": "a quarter of the entries fixed"}
    rows = []
    for kind, name in names.items():
        get = lambda k: record.median(f"parametrisations/{kind}", k)  # noqa: B023, E731
        rows.append(
            [name, percent(get("accuracy")), number(get("naive")), number(get("matched")), percent(get("in_place"))]
        )
    return head, rows


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
