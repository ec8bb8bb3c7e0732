"""Print every table from the results of the last runs, the targets first; `--write` puts them into the README.

python -m benchmarks [--write]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import (
    align,
    assignment,
    catalogue,
    commands,
    continual,
    curvature,
    flow,
    gram,
    jobs,
    maps,
    measure,
    memory,
    merge,
    merging,
    optim,
    orbits,
    paths,
    planted,
    playground,
    quick,
    reading,
    representation,
    rules,
    spectral,
    steps,
    web,
)
from experiments.record import insert

README = Path(__file__).parent / "README.md"
_TABLES = {
    "align": align.summary,
    "matchers": align.by_matcher,
    "merge": merge.summary,
    "merging": merging.summary,
    "planted": planted.summary,
    "assignment": assignment.summary,
    "memory": memory.summary,
    "steps": steps.summary,
    "continual": continual.summary,
    "optim": optim.summary,
    "flow": flow.summary,
    "spectral": spectral.summary,
    "representation": representation.summary,
    "paths": paths.summary,
    "curvature": curvature.summary,
    "rules": rules.summary,
    "orbits": orbits.summary,
    "reading": reading.summary,
    "jobs": jobs.summary,
    "catalogue": catalogue.summary,
    "gram": gram.summary,
    "playground": playground.summary,
    "maps": maps.summary,
    "web": web.summary,
    "commands": commands.summary,
    "quick": quick.summary,
}
_RESULTS = {"matchers": "align", "quick": "table"}

Line = tuple[str, str, str, bool]


def tables() -> dict[str, str]:
    """Name of the mark in the README -> table, for all that has been measured."""
    found = {name: table(rows) for name, table in _TABLES.items() if (rows := measure.kept(_RESULTS.get(name, name)))}
    lines = [line for name, make in _TARGETS.items() if (rows := measure.kept(name)) for line in make(rows)]
    head = ["what", "to reach", "measured", "reached"]
    body = [[what, target, seen, "yes" if reached else "**no**"] for what, target, seen, reached in lines]
    return {"targets": measure.table(head, body), **found}


def _align(rows: Sequence[dict[str, Any]]) -> list[Line]:
    lines = []
    for net, target in align.TARGETS.items():
        ours = [r for r in rows if r["net"] == net and r["method"] == "ours"]
        barrier = measure.median(r["barrier"] for r in ours)
        if barrier is not None:
            lines.append((f"barrier of `{net}`", f"<= {target}", f"{barrier:.4f}", barrier <= target))
    speed = measure.median(r["ratio"] for r in rows if r["net"] == "mlp" and r["method"] == "ours")
    if speed is not None:
        lines.append(("`rebasin`'s time on `mlp`, over ours", ">= 2", f"{speed:.2f}", speed >= 2))
    return lines


def _merge(rows: Sequence[dict[str, Any]]) -> list[Line]:
    ours, single = (measure.median(r[key] for r in rows) for key in ("ours", "single"))
    share = measure.median(r["seconds"] / r["rebasin_seconds"] for r in rows if r["rebasin_seconds"])
    assert ours is not None and single is not None
    lines = [
        ("five MLPs averaged, accuracy", ">= 98.0 %", f"{100 * ours:.2f} %", ours >= 0.98),
        (".. of the mean single network", f">= {100 * single:.2f} %", f"{100 * ours:.2f} %", ours >= single - 1e-9),
    ]
    if share is not None:
        lines.append((".. share of `rebasin`'s time", "< 40 %", f"{100 * share:.0f} %", share < 0.4))
    return lines


def _merging(rows: Sequence[dict[str, Any]]) -> list[Line]:
    lines: list[Line] = []
    for row in rows:
        if row.get("method") == "linear":
            what = f"merging files, {row['case']}: rate, of a copy's"
            lines.append(
                (what, f">= {100 * merging.RATE:.0f} %", f"{100 * row['rate']:.0f} %", row["rate"] >= merging.RATE)
            )
        if row.get("seconds_ratio"):
            least = min(row["seconds_ratio"], row["peak_ratio"])
            seen = f"{row['seconds_ratio']:.1f}, {row['peak_ratio']:.1f}"
            lines.append((f".. {row['case']}: mergekit's time and peak over ours", "> 1", seen, least > 1))
    apart = [row["apart"] for row in rows if row["apart"] is not None]
    if apart:
        what = f".. {len(apart)} merges as mergekit's, in bf16 spacings"
        lines.append((what, f"<= {merging.EQUAL:.0e}", f"{max(apart):.0e}", max(apart) <= merging.EQUAL))
    return lines


def _planted(rows: Sequence[dict[str, Any]]) -> list[Line]:
    shares = [row["recovered"] for row in rows] + [row["signs"] for row in rows if row["signs"] is not None]
    whole = sum(share == 1 for share in shares)
    seen = f"100 % in {whole} of {len(shares)} runs, {100 * min(shares):.2f} % in the worst"
    return [("planted moves recovered under 50 % noise", "100 %", seen, min(shares) == 1)]


def _assignment(rows: Sequence[dict[str, Any]]) -> list[Line]:
    ratio = measure.median(row["ratio"] for row in rows)
    assert ratio is not None
    return [("coordinate descent at width 2048, scipy's time over ours", ">= 1.7", f"{ratio:.2f}", ratio >= 1.7)]


def _memory(rows: Sequence[dict[str, Any]]) -> list[Line]:
    return [
        (
            f"memory of `align`, MLP of {r['layers'] + 2} layers, {r['size']:.0f} MB",
            "< 3 S",
            f"{r['share']:.2f} S",
            r["share"] < 3,
        )
        for r in rows
    ]


def _steps(rows: Sequence[dict[str, Any]]) -> list[Line]:
    """The faster of the two solvers that is exact enough."""
    lines = []
    for n, most, gap in ((50, 0.06, 1e-6), (200, 0.2, 1e-5)):
        for r in (row for row in rows if row["images"] == n):
            ways = [(r["seconds"], r["gap"]), (r["krylov_seconds"], r["krylov_gap"])]
            seconds, found = min((way for way in ways if abs(way[1]) <= gap), default=(float("inf"), float("nan")))
            target, seen = f"<= {most} s, gap <= {gap:.0e}", f"{seconds:.3f} s, gap {found:.0e}"
            lines.append((f"a step of equation 4, {n} memory images", target, seen, seconds <= most))
    worst = max(row["product"] for row in rows)
    return [*lines, ("a product with G, over forward + jvp + vjp", "<= 1.3", f"{worst:.2f}", worst <= 1.3)]


def _continual(rows: Sequence[dict[str, Any]]) -> list[Line]:
    return [
        (f"a step of the invariant path over one of DER++, {r['net']}, {r['images']} images", "<= 3",
         f"{r['over_rehearsed']:.1f}", r["over_rehearsed"] <= 3)
        for r in rows
    ]  # fmt: skip


def _optim(found: dict[str, Any]) -> list[Line]:
    row = next(r for r in found["rows"] if r["name"] == "Fromage")
    error, slow, gain = found["norm"]["ours"], row["over_sgd"], row["published"]
    lines = [
        ("a step of Fromage, 9.5M weights, over plain SGD", "<= 2", f"{slow:.2f}", slow <= 2),
        ("norm of 64M float32 numbers, relative error", "<= 1e-06", f"{error:.0e}", error <= 1e-6),
    ]
    if gain is not None:
        lines.insert(1, (".. fastest published code's time over ours", ">= 1.6", f"{gain:.2f}", gain >= 1.6))
    return lines


def _spectral(rows: Sequence[dict[str, Any]]) -> list[Line]:
    lines = []
    for way, most in (("norm", 1e-4), ("bound", 1e-2)):
        ratio, error = min(r[f"{way}_ratio"] for r in rows), max(abs(r[f"{way}_error"]) for r in rows)
        what = f"operator {way} of a 2048 x 2048 matrix, all singular values' time over ours"
        seen = f"{ratio:.1f}, to {error:.0e}"
        lines.append((what, f">= 20, to {most:.0e}", seen, ratio >= 20 and error <= most))
    return lines


def _representation(rows: Sequence[dict[str, Any]]) -> list[Line]:
    lines = []
    for r in (row for row in rows if row["ratio"] is not None):
        ratio, error = r["ratio"], r["error"]
        what = f"linear CKA, {r['n']} x {r['width']}, `pytorch-cka`'s time over ours"
        lines.append((what, ">= 2, to 1e-06", f"{ratio:.2f}, to {error:.0e}", ratio >= 2 and error <= 1e-6))
    return lines


def _paths(found: dict[str, Any]) -> list[Line]:
    lines = []
    rows = {row["name"]: row for row in found.get("pairs", [])}
    if rows:
        ours, public = rows["ours"], rows["ours, public operations"]
        what = "cross-path similarity, 2000 x 4096, all pairs: "
        exact = max(ours["wrong"], public["wrong"]) <= 1e-6
        lines = [
            (f"{what}time row by row over ours", ">= 100", f"{ours['rows']:.0f}", ours["rows"] >= 100 and exact),
            (".. time of float32 products over ours", ">= 3", f"{ours['gemm']:.2f}", ours["gemm"] >= 3 and exact),
            (".. without integer kernels, over float32 products", "<= 1.2", f"{1 / public['gemm']:.2f}",
             1 / public["gemm"] <= 1.2),
        ]  # fmt: skip
    if row := found.get("record"):
        lines.append(("gates of 512 images every 50 steps, of a run's time", "< 10 %", f"{100 * row['share']:.1f} %",
                      row["share"] < 0.1))  # fmt: skip
        lines.append((".. bits a unit in the file", "<= 1.05", f"{row['bits']:.3f}", row["bits"] <= 1.05))
    if row := found.get("stream"):
        what = f"gates of {row['images']:,} images x {row['units']:,} units, peak memory"
        lines.append((what, "< 2 GB", f"{row['peak']:.2f} GB", row["peak"] < 2 and row["units"] >= 1e6))
    return lines


def _curvature(rows: Sequence[dict[str, Any]]) -> list[Line]:
    lines = []
    for r in (row for row in rows if row["ratio"] is not None and row["what"] in ("product", "diagonal")):
        product, small = r["what"] == "product", r["net"] == "cnn"
        least = (1.0 if small else 2.0) if product else (0.5 if small else 1.0)
        whose, what = ("curvlinops'", "a Gauss-Newton product") if product else ("BackPACK's", "its exact diagonal")
        where = f"{curvature.NETS[r['net']][0]}, batches of {r['batch']}"
        seen = f"{r['ratio']:.2f}, to {r['error']:.0e}"
        good = r["ratio"] >= least and r["error"] <= 1e-5
        lines.append((f"{what}, {where}: {whose} time over ours", f">= {least:g}, to 1e-05", seen, good))
    return lines


def _commands(rows: Sequence[dict[str, Any]]) -> list[Line]:
    lines = []
    for r in rows:
        if (most := commands.TARGETS.get(r["command"])) is not None:
            what, seen = f"`{r['command']}`, over the import of torch.export", r["over_export"]
            lines.append((what, f"<= {most:g}", f"{seen:.2f}", seen <= most))
    return lines


def _reading(rows: Sequence[dict[str, Any]]) -> list[Line]:
    lines = []
    for r in rows:
        if r["net"] == "bert":
            seconds, share = r["seconds"], r["share"]
            lines.append(("reading the group of BERT-base", "<= 20 s", f"{seconds:.1f} s", seconds <= 20))
            lines.append((".. memory above the loaded network", "<= 2.5 S", f"{share:.2f} S", share <= 2.5))
            for name in ("align", "compare"):
                share = r[name]["share"]
                lines.append((f"memory of `{name}`, BERT-base turned", "<= 4 S", f"{share:.2f} S", share <= 4))
        elif r["net"] in reading.SHAPES:
            most, seconds, size = reading.SHAPES[r["net"]][1], r["seconds"], r["megabytes"]
            target, seen = f"<= {most:g} s, {reading.MEGABYTES:g} MB", f"{seconds:.1f} s, {size:.0f} MB"
            good = seconds <= most and size <= reading.MEGABYTES
            lines.append((f"reading `{r['net']}` on the meta device", target, seen, good))
        else:
            what = f"reading `{r['net']}`, depth {reading.LONGER * r['depth']} over {r['depth']}"
            lines.append((what, "<= 4.5", f"{r['ratio']:.2f}", r["ratio"] <= 4.5))
    return lines


def _jobs(rows: Sequence[dict[str, Any]]) -> list[Line]:
    return [
        (
            "independent jobs in two processes, one process's time over theirs",
            ">= 1.7",
            f"{r['speed']:.2f}",
            r["speed"] >= 1.7,
        )
        for r in rows
        if r["processes"] == 2
    ]


def _catalogue(found: dict[str, Any]) -> list[Line]:
    lines = []
    for r in found["stores"]:
        what, own = f"{r['pairs']:,} pairs written, {r['store']}", r["store"] == "SQLite"
        spent, most = (
            (r["processor"], 10) if own else (r["seconds"], 30)
        )  # the server's work is not in our processor time
        lines.append((what + (", processor time" if own else ""), f"<= {most} s", f"{spent:.1f} s", spent <= most))
        if r["store"] == "SQLite":
            wait = r["milliseconds"]
            lines.append((".. the 20 nearest of a network", "<= 1 ms", f"{wait:.2f} ms", wait <= 1))
    return lines


def _gram(rows: Sequence[dict[str, Any]]) -> list[Line]:
    return [
        (
            f"distances of all pairs of {row['n']} networks, one thread",
            ">= 1 GB/s, to 1e-05",
            f"{row['rate']:.2f} GB/s, to {row['error']:.0e}",
            row["rate"] >= 1 and row["error"] <= 1e-5,
        )
        for row in rows
    ]


def _playground(rows: Sequence[dict[str, Any]]) -> list[Line]:
    rate = playground.least(rows, 8, 8)
    longest = max(max(r["messages"].values()) for r in rows)
    return [
        ("frames a second of the playground, 8 layers of 8, one core", "> 30", f"{rate:.0f}", rate > 30),
        (".. its longest message, 20 layers of 16", "<= 2 s", f"{longest / 1000:.2f} s", longest <= 2000),
    ]


def _web(found: dict[str, Any]) -> list[Line]:
    lines = []
    if "start" in found:
        start = found["start"]
        lines.append(("`weightspace serve`, command to answer", "<= 3 s", f"{start:.1f} s", start <= 3))
        slowest = max(page["paint"] for page in found["pages"] if page["paint"] is not None) / 1000
        lines.append((".. first paint of the slowest page", "<= 1 s", f"{slowest:.2f} s", slowest <= 1))
    for row, seconds, rate in zip(found.get("maps", []), (1.5, 3), (20, 10), strict=False):
        what = f"map of {row['networks']:,} networks, {row['edges']:,} edges, without a GPU"
        seen = f"{row['first']:.1f} s, {row['pan']:.1f} frames a second"
        target = f"<= {seconds:g} s, >= {rate} frames a second"
        lines.append((what, target, seen, row["first"] <= seconds and row["pan"] >= rate))
    return lines


_TARGETS: dict[str, Callable[[Any], list[Line]]] = {
    "align": _align,
    "steps": _steps,
    "continual": _continual,
    "merge": _merge,
    "merging": _merging,
    "planted": _planted,
    "assignment": _assignment,
    "memory": _memory,
    "optim": _optim,
    "paths": _paths,
    "spectral": _spectral,
    "representation": _representation,
    "curvature": _curvature,
    "reading": _reading,
    "jobs": _jobs,
    "catalogue": _catalogue,
    "gram": _gram,
    "playground": _playground,
    "web": _web,
    "commands": _commands,
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put the tables into README.md")
    found = tables()
    if parser.parse_args(arguments).write:
        insert(README, found)
    for name, table in found.items():
        print(f"### {name}\n\n{table}\n")


if __name__ == "__main__":
    main()
