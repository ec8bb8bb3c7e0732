"""Frames a second of the playground, by depth and width, and what its heavier messages cost.

A frame is ten Adam steps on batches of 16, pictures of all neurons and the output (40 x 40 bytes each), losses and
accuracies on 400 points, norms and gradients of the layers, and the bytes of the answer. One thread; processor time,
and the wall clock beside it.

    python -m benchmarks.playground [--frames 30] [--repeats 3]
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import measure
from weightspace.web.playground.session import Session, prepare

SIZES = ((1, 4), (3, 8), (8, 8), (20, 8), (8, 16), (20, 16))
STEPS = 10
MESSAGES: dict[str, dict[str, Any]] = {
    "show": {},
    "noise": {"network": 1},
    "certificate": {},
    "curve": {},
    "breakdown": {},
    "group": {},
    "shuffle": {},
    "align": {},
    "line": {},
    "between": {"aligned": True},
    "keep": {"learn": "xor"},
    "walk": {"steps": 1},
    "paths": {},
    "information": {},
    "digits": {"percent": 10.0},
}


@dataclass(frozen=True)
class Row:
    """Milliseconds of a frame, on the processor's and on the wall's clock, its kB; those of each other message.

    `first`: the milliseconds of a message sent for the first time to an architecture, whose graph is then traced.
    """

    depth: int
    width: int
    repeats: int
    frame: float
    wall: float
    kilobytes: float
    natural: float
    messages: dict[str, float]
    first: dict[str, float]

    @property
    def rate(self) -> float:
        """Frames a second of one core."""
        return 1000 / self.frame


def begun(depth: int, width: int, **given: Any) -> Session:
    """A trained session of two networks, or of one."""
    session = Session()
    rate = 0.01 if depth < 10 else 3e-4
    state = {"data": "spiral", "depth": depth, "width": width, "activation": "relu", "rate": rate, **given}
    session.answer({"do": "set", **state, "maps": "none"})
    return session


def frames(depth: int, width: int, n: int, repeats: int, **given: Any) -> tuple[measure.Runs, int]:
    """So many frames in a row, each time; and the bytes of one."""
    session = begun(depth, width, **given)
    message = {"do": "step", "steps": STEPS}
    size = len(session.answer(message).to_bytes())

    def play() -> None:
        for _ in range(n):
            session.answer(message).to_bytes()

    return measure.in_turns({"play": play}, repeats)["play"], size


def others(depth: int, width: int, repeats: int) -> tuple[dict[str, float], dict[str, float]]:
    """Milliseconds of every other message once it is at home, and of the first one."""
    session = begun(depth, width, other=1)
    for _ in range(4):
        session.answer({"do": "step", "steps": 50, "maps": "none"})
    spent: dict[str, list[float]] = {name: [] for name in MESSAGES}
    for _ in range(repeats + 1):
        for name, fields in MESSAGES.items():
            if name in ("group", "align"):  # read, and found, anew
                session.group = None if name == "group" else session.group
                session.aligned = None
            runs = measure.Runs()
            runs.once(lambda n=name, f=fields: session.answer({"do": n, **f}).to_bytes())  # type: ignore[misc]
            if runs.error:
                raise RuntimeError(runs.error)
            spent[name].append(1000 * runs.processor[0])
    later = {name: statistics.median(times[1:]) for name, times in spent.items()}
    return later, {name: times[0] for name, times in spent.items()}


def run(
    frames_: int = 30,
    repeats: int = 3,
    sizes: Sequence[tuple[int, int]] = SIZES,
    results: Path = measure.RESULTS,
) -> list[Row]:
    prepare()
    rows = []
    for depth, width in sizes:
        play, size = frames(depth, width, frames_, repeats)
        natural, _ = frames(depth, width, max(1, frames_ // 10), 1, algorithm="natural", rate=0.001)
        later, first = others(depth, width, repeats)
        each = 1000 / frames_
        rows.append(
            Row(
                *(depth, width, repeats, each * play.seconds, each * statistics.median(play.wall), size / 1000),
                *(1000 * natural.seconds / max(1, frames_ // 10) / STEPS, later, first),
            )
        )
        print(f"{depth} x {width}: {rows[-1].rate:.0f} frames a second", flush=True)
    measure.keep("playground", [asdict(row) for row in rows], results)
    return rows


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """A row for every depth and width."""
    shown = ("noise", "certificate", "curve", "group", "align", "line", "walk", "information")
    body = []
    for r in rows:
        pictures = r["depth"] * r["width"] + 1
        worst = max(r["first"].values())
        body.append(
            [f"{r['depth']} x {r['width']}", f"{pictures}", f"{r['kilobytes']:.0f}", f"{r['frame']:.1f}",
             f"**{1000 / r['frame']:.0f}**", f"{1000 / r['wall']:.0f}", f"{r['natural']:.1f}",
             *(f"{r['messages'][name]:.0f}" for name in shown), f"{worst:.0f}"]
        )  # fmt: skip
    head = "depth x width | pictures | kB | ms | frames a second | by the wall clock | ms of a natural step | "
    return measure.table(head + " | ".join(f"{name}, ms" for name in shown) + " | longest first message, ms", body)


def least(rows: Sequence[dict[str, Any]], depth: int, width: int) -> float:
    """Frames a second of one core at a size; NaN where it was not measured."""
    return next((1000 / r["frame"] for r in rows if (r["depth"], r["width"]) == (depth, width)), math.nan)


main = measure.command(
    "playground", __doc__, run, summary, {"--frames": {"type": int, "default": 30, "dest": "frames_"}, "--repeats": 3}
)


if __name__ == "__main__":
    main()
