"""Gauss-Newton products, diagonals, traces, eigenvalues, log-determinants, beside curvlinops 3.0.1 and BackPACK 1.7.1.

Three networks trained on all 1797 digits, cross-entropy summed; in batches of 256, of which the last is 5, and in one.
One thread, in turns, processor time. *Memory* is the most that tensors took at once, operator and question together,
above the network and the data. Errors are against float64: of products and diagonals relative, of a trace and a
log-determinant relative to the exact one where the matrix is small enough to be written out or its diagonal is known.

    python -m benchmarks.curvature [--repeats 7] [--nets mlp64 cnn]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import weightspace as ws
from benchmarks import measure, peers

COLUMNS, PRODUCTS, TOP, SCALE = 16, 30, 10, 1.0
WHAT = {
    "product": "a product",
    "columns": f"{COLUMNS} columns",
    "diagonal": "exact diagonal",
    "drawn": "diagonal, a label drawn each",
    "trace": f"trace, {PRODUCTS} products",
    "top": f"{TOP} largest eigenvalues",
    "logdet": "log det(I + G)",
}
FEW = ("top", "logdet")


def mlp(*sizes: int) -> nn.Module:
    parts = [part for m, n in zip(sizes, sizes[1:], strict=False) for part in (nn.Linear(m, n), nn.ReLU())]
    return nn.Sequential(*parts[:-1])


def cnn() -> nn.Module:
    def part(m: int, n: int) -> list[nn.Module]:
        return [nn.Conv2d(m, n, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]

    return nn.Sequential(nn.Unflatten(1, (1, 8, 8)), *part(1, 16), *part(16, 32), nn.Flatten(), nn.Linear(128, 10))


NETS: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "mlp64": ("MLP 64-64-64-10", lambda: mlp(64, 64, 64, 10)),
    "mlp256": ("MLP 64-256-256-10", lambda: mlp(64, 256, 256, 10)),
    "cnn": ("CNN 16-32", cnn),
}


def digits(n: int | None = None) -> tuple[Tensor, Tensor]:
    found = load_digits()
    return torch.tensor(found.data[:n], dtype=torch.float32) / 16, torch.tensor(found.target[:n])


def trained(module: nn.Module, x: Tensor, y: Tensor, steps: int = 100) -> nn.Module:
    optimiser = torch.optim.Adam(module.parameters(), lr=3e-3)
    for _ in range(steps):
        optimiser.zero_grad()
        F.cross_entropy(module(x), y).backward()
        optimiser.step()
    return module.eval()


def contestants(module: nn.Module, x: Tensor, y: Tensor, batch: int) -> dict[str, dict[str, Callable[[], Any]]]:
    """What is asked -> who answers it. Operators are made once, when first asked: a product is one of many."""
    net, task = ws.Net.of(module), ws.Task(x, y, batch=batch)
    v = net.weights.randn(0).flat()
    many = torch.stack([net.weights.randn(k).flat() for k in range(COLUMNS)], 1)
    g = cache(lambda: ws.gauss_newton(net, task))
    asked: dict[str, dict[str, Callable[[], Any]]] = {
        "product": {"ours": lambda: g() @ v},
        "columns": {"ours": lambda: g() @ many},
        "diagonal": {"ours": lambda: ws.curvature_diagonal(net, task).flat()},
        "drawn": {"ours": lambda: ws.curvature_diagonal(net, task, draws=1).flat()},
        "trace": {"ours": lambda: g().trace(PRODUCTS).value},
        "top": {"ours": lambda: g().eigenvalues(TOP)},
        "logdet": {"ours": lambda: g().logdet(SCALE)},
    }
    if peers.available("curvlinops"):
        batches = [*zip(x.split(batch), y.split(batch), strict=True)]
        whole = cache(lambda: peers.curvature(module, batches))
        asked["product"]["peer"] = lambda: whole() @ v
        asked["columns"]["peer"] = lambda: whole() @ many
        asked["trace"]["peer"] = lambda: peers.hutchpp(whole(), PRODUCTS)
        asked["top"]["peer"] = lambda: peers.largest(whole(), TOP)
        asked["diagonal"]["peer"] = lambda: peers.diagonal(module, batches)
        asked["drawn"]["peer"] = lambda: peers.diagonal(module, batches, drawn=True)
    return asked


def peak(make: Callable[[], Any]) -> float:
    """The most megabytes that tensors took at once while it ran."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as seen:
        make()
    held = most = 0
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most / 1e6


def references(module: nn.Module, x: Tensor, y: Tensor) -> dict[str, Any]:
    """In float64, one batch: products, the diagonal, its sum; of a small matrix its log-determinant."""
    net = ws.Net.of(module).double()
    task = ws.Task(x.double(), y, batch=len(x))
    g = ws.gauss_newton(net, task)
    many = torch.stack([ws.Net.of(module).weights.randn(k).flat() for k in range(COLUMNS)], 1).double()
    diagonal = ws.curvature_diagonal(net, task).flat()
    found = {"product": g @ many[:, 0], "columns": g @ many, "diagonal": diagonal, "trace": float(diagonal.sum())}
    return found | {"top": g.eigenvalues(TOP, tolerance=1e-10, steps=400)}


def off(found: Any, exact: Any) -> float | None:
    if exact is None or found is None:
        return None
    if isinstance(exact, float):
        return abs(found / exact - 1)
    return float((found.double() - exact).norm() / exact.norm())


def run(
    repeats: int = 7,
    nets: Sequence[str] = tuple(NETS),
    examples: int | None = None,
    steps: int = 100,
    results: Path = measure.RESULTS,
    few: Sequence[str] = FEW,
) -> list[dict[str, Any]]:
    kept = measure.kept("curvature", results) or []
    rows = [row for row in kept if row["net"] not in nets]
    x, y = digits(examples)
    for name in nets:
        torch.manual_seed(0)
        module = trained(NETS[name][1](), x, y, steps)
        exact = references(module, x, y)
        for batch in (256, len(x)):
            rows += [
                _row(name, batch, what, ways, exact.get(what), module, x, y, repeats if what not in few else 1)
                for what, ways in contestants(module, x, y, batch).items()
                if batch == 256 or what not in few
            ]
            measure.keep("curvature", rows, results)
    return rows


def _row(
    name: str,
    batch: int,
    what: str,
    ways: Mapping[str, Callable[[], Any]],
    exact: Any,
    module: nn.Module,
    x: Tensor,
    y: Tensor,
    repeats: int,
) -> dict[str, Any]:
    for way in ways.values():  # what is made when a network is first seen is not counted
        if what not in FEW:
            way()
    runs = measure.in_turns(ways, repeats)
    row: dict[str, Any] = {"net": name, "batch": batch, "what": what, "repeats": repeats}
    row["weights"] = sum(p.numel() for p in module.parameters())
    row |= dict.fromkeys(("peer", "ratio", "wall_ratio", "peer_error", "peer_memory", "error", "products", "stated"))
    for way, taken in runs.items():
        row[way], prefix = taken.seconds, "peer_" if way == "peer" else ""
        row[f"{prefix}memory"] = peak(lambda way=way: contestants(module, x, y, batch)[what][way]())
        if taken.error:
            row["peer_failed"] = taken.error
        elif what == "logdet":
            row["products"], row["stated"] = taken.value.products, taken.value.error / taken.value.value
        elif what != "drawn":
            row[f"{prefix}error"] = off(taken.value, exact)
    if "peer" in runs and runs["peer"].processor:
        row["ratio"] = measure.ratio(runs["peer"], runs["ours"])
        row["wall_ratio"] = measure.ratio(runs["peer"], runs["ours"], "wall")
    return row


def summary(rows: list[dict[str, Any]]) -> str:
    body = []
    for r in rows:
        peer = r.get("peer_failed") or ("-" if r["peer"] is None else f"{1e3 * r['peer']:.1f}")
        error = "-" if r["error"] is None else f"{r['error']:.0e}"
        if r["stated"] is not None:
            error = f"+- {r['stated']:.0e} in {r['products']} products"
        memory = ["-" if r[key] is None else f"{r[key]:.0f}" for key in ("memory", "peer_memory")]
        of = [NETS[r["net"]][0], "256" if r["batch"] == 256 else "all", WHAT[r["what"]]]
        times = [f"{1e3 * r['ours']:.1f}", peer, measure.fixed(r["ratio"], 2), measure.fixed(r["wall_ratio"], 2)]
        their = "-" if r["peer_error"] is None else f"{r['peer_error']:.0e}"
        body.append([*of, *times, *memory, error, their])
    head = ["network", "batches of", "what", "ours, ms", "peer, ms", "ratio", "ratio, wall", "ours, MB", "peer, MB"]
    return measure.table([*head, "error", "peer's"], body)


_NETS = {"nargs": "+", "choices": [*NETS], "default": [*NETS]}
main = measure.command("curvature", __doc__, run, summary, {"--repeats": 7, "--nets": _NETS})


if __name__ == "__main__":
    main()
