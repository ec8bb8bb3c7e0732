"""One exact step of equation 4 on LeNet-300-100, beside other ways to compute it, and the cost of a product with G.

Others: the explicit Jacobian; a search on the sphere |v|^2 = eps as the paper describes it (a random start, then 200
steps of Adam, brought back to the sphere after each); for the product, curvlinops-for-pytorch 3.0.1 if it is installed.

266,610 weights, `--images` memory images of MNIST's size (digits enlarged unless --data names MNIST), 10 outputs,
beta 1, |step| .3. The gap is (q - q*) / (q_gradient - q*), q* from the explicit Jacobian in float64.

    python -m benchmarks.steps [--images 50 200] [--repeats 5] [--data DIR]
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, jacrev, jvp, vjp, vmap

import weightspace as ws
from benchmarks import measure, peers
from weightspace.metric.pullback import Pullback

BETA, LENGTH = 1.0, 0.3
SEARCH, SEARCH_RATE = 200, 1e-3
MOST_EXPLICIT = 60  # images; beyond, the explicit Jacobian is only the reference, in float64 and once


@dataclass(frozen=True)
class Row:
    """Processor seconds of a first step (export included), of a step, of other ways, and their gaps; products with G.

    `product` and `peer`: ours, and that of curvlinops, over one forward pass, one jvp and one vjp; NaN: not installed.
    """

    images: int
    first: float
    seconds: float
    gap: float
    krylov_seconds: float
    krylov_gap: float
    explicit_seconds: float
    search_seconds: float
    search_gap: float
    product: float
    peer: float


def lenet() -> nn.Module:
    hidden = nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU()
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(100, 10))


def images(data: str | None) -> ws.Task:
    if data is not None:
        return ws.mnist(data, split="train").take(6000, seed=0)
    small = ws.digits("train")
    x = F.interpolate(small.example(len(small)).reshape(-1, 1, 8, 8), size=28, mode="bilinear")
    return ws.Task(x, small.labels())


def trained(task: ws.Task, epochs: int = 5) -> ws.Net:
    torch.manual_seed(0)
    module = lenet()
    optimiser = torch.optim.Adam(module.parameters(), lr=1e-3)
    x, y = task.example(len(task)), task.labels()
    for _ in range(epochs):
        for part in torch.randperm(len(x)).split(64):
            optimiser.zero_grad()
            F.cross_entropy(module(x[part]), y[part]).backward()
            optimiser.step()
    return ws.Net.of(module)


def explicit(net: ws.Net, x: Tensor) -> Tensor:
    """A = J / sqrt(N), written out."""
    f = lambda w, one: functional_call(net.architecture, w, (one[None],))[0]  # noqa: E731
    blocks = vmap(jacrev(f), in_dims=(None, 0))(dict(net.weights), x)
    return torch.cat([blocks[n].flatten(2) for n in net.weights], 2).flatten(0, 1) / math.sqrt(len(x))


def solved(a: Tensor, g: Tensor) -> Tensor:
    """Equation 4 from the written-out A, in float64: the secular equation by bisection."""
    values, vectors = torch.linalg.eigh((a @ a.T).double())
    c = vectors.T @ (a @ g).double()
    kept = values > 1e-12 * values[-1]
    values, c, vectors = values[kept], c[kept], vectors[:, kept]
    rest = float(g.double() @ g.double()) - float((c.square() / values).sum())

    def size(lam: float) -> float:
        return BETA / 2 * math.sqrt(rest / lam**2 + float((c.square() / values / (values + lam).square()).sum()))

    low, high = 1e-12, 1e12
    for _ in range(200):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if size(middle) > LENGTH else (low, middle)
    inside = a.T.double() @ (vectors @ (c / values * (1 / (values + low) - 1 / low)))
    return -BETA / 2 * (g.double() / low + inside)


def objective(a: Tensor, g: Tensor, v: Tensor) -> float:
    v = v.double()
    return float((a.double() @ v).square().sum() + BETA * (g.double() @ v))


def one(net: ws.Net, task: ws.Task, goal: ws.Task, n: int, repeats: int) -> Row:
    memory = task.take(n, seed=1)
    g = ws.gradient(goal, net)
    eps = LENGTH**2

    def step(solver: str) -> Tensor:
        return Pullback(memory, solver=solver).step(net, g, beta=BETA, eps=eps).vector.flat()

    first = measure.in_turns({"dual": lambda: step("dual")}, 1)["dual"]
    a = explicit(net, memory.example(n))
    contestants: dict[str, Any] = {"dual": lambda: step("dual"), "gltr": lambda: step("gltr")}
    contestants["search"] = lambda: searched(net, memory, g.flat())
    if n <= MOST_EXPLICIT:
        contestants["explicit"] = lambda: solved(explicit(net, memory.example(n)), g.flat())
    runs = measure.in_turns(contestants, repeats)
    best = objective(a, g.flat(), solved(a, g.flat()))
    plain = objective(a, g.flat(), -LENGTH * g.flat() / g.flat().norm())
    gaps = {k: (objective(a, g.flat(), runs[k].value) - best) / (plain - best) for k in ("dual", "gltr", "search")}
    slow = runs["explicit"].seconds if "explicit" in runs else float("nan")
    return Row(
        n, first.seconds, runs["dual"].seconds, gaps["dual"], runs["gltr"].seconds, gaps["gltr"], slow,
        runs["search"].seconds, gaps["search"], *product(net, memory, repeats),
    )  # fmt: skip


def searched(net: ws.Net, memory: ws.Task, g: Tensor) -> Tensor:
    """The paper's way: a random point of the sphere, then gradient descent on the objective, 200 steps."""
    x = memory.example(len(memory))
    flat = net.weights.flat()
    still = net(x)

    def outputs(w: Tensor) -> Tensor:
        return functional_call(net.architecture, dict(net.weights.shaped(w)), (x,))

    v = torch.randn(len(flat), generator=torch.Generator().manual_seed(0))
    v = (LENGTH * v / v.norm()).requires_grad_()
    optimiser = torch.optim.Adam([v], lr=SEARCH_RATE)
    for _ in range(SEARCH):
        optimiser.zero_grad()
        q = (outputs(flat + v) - still).square().sum() / len(x) + BETA * (g @ v)
        q.backward()
        optimiser.step()
        with torch.no_grad():
            v.mul_(LENGTH / v.norm())
    return v.detach()


def product(net: ws.Net, memory: ws.Task, repeats: int) -> tuple[float, float]:
    """Seconds of a product with G, ours and the peer's, over one forward pass, one jvp and one vjp of that batch."""
    x, flat, v = memory.example(len(memory)), net.weights.flat(), net.weights.randn(0).flat()
    whole = ws.Task(x, batch=len(x))
    operator = Pullback(whole).operator(net)

    def f(w: Tensor) -> Tensor:
        return functional_call(net.architecture, dict(net.weights.shaped(w)), (x,))

    def parts() -> None:
        with torch.no_grad():
            f(flat)
        out = jvp(f, (flat,), (v,))[1]
        vjp(f, flat)[1](out)

    both = {"ours": lambda: [operator @ v for _ in range(20)], "parts": lambda: [parts() for _ in range(20)]}
    theirs = peers.gauss_newton(net.module(), x) if peers.available("curvlinops") else None
    if theirs is not None:
        ours, same = operator @ v, theirs @ v
        assert float((ours - same).norm()) < 1e-3 * float(ours.norm()), "the two must be one matrix"
        both["theirs"] = lambda: [theirs @ v for _ in range(20)]
    runs = measure.in_turns(both, repeats + 2)
    peer = measure.ratio(runs["theirs"], runs["parts"]) if theirs is not None else float("nan")
    return measure.ratio(runs["ours"], runs["parts"]), peer


def run(
    sizes: Sequence[int] = (50, 200), repeats: int = 5, data: str | None = None, results: Path = measure.RESULTS
) -> list[Row]:
    task = images(data)
    net = trained(task)
    goal = ws.Task(1 - task.example(300), task.labels()[:300])
    rows = [one(net, task, goal, n, repeats) for n in sizes]
    measure.keep("steps", [asdict(row) for row in rows], results)
    return rows


def summary(rows: Sequence[dict[str, Any]]) -> str:
    body = [
        [
            f"{r['images']} images", f"{r['seconds']:.3f}", f"{r['first']:.3f}", f"{r['gap']:.0e}",
            f"{r['krylov_seconds']:.3f}", f"{r['krylov_gap']:.0e}", measure.fixed(r["explicit_seconds"], 2),
            f"{r['search_seconds']:.2f}", f"{r['search_gap']:.0e}", f"{r['product']:.2f}", measure.fixed(r["peer"], 2),
        ]
        for r in rows
    ]  # fmt: skip
    head = "memory | exact step, s | first one, s | gap | Krylov step, s | gap | explicit J, s | search, s | gap | "
    return measure.table(f"{head}G-product | curvlinops", body)


_OPTIONS = {
    "--images": {"type": int, "nargs": "*", "default": [50, 200], "dest": "sizes", "metavar": "IMAGES"},
    "--repeats": 5,
    "--data": {"help": "folder of MNIST's official files"},
}
main = measure.command("steps", __doc__, run, summary, _OPTIONS)


if __name__ == "__main__":
    main()
