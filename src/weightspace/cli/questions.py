"""Commands about training: which way examples take, what weights know, how far apart tasks are, what is promised."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from weightspace.cli.options import Arch, Debug, Force, Json, Report, Seed, Trust, Weights, numbers, vacant
from weightspace.cli.shown import answer, progress
from weightspace.text import say_certified, say_informed, say_paths, say_tasks, say_watched

__all__ = ["watch", "paths", "inform", "tasks", "certify"]  # in the order of --help


def watch(
    out: Annotated[Path, typer.Option("-o", "--out", help="Where to write: a .rec file.")],
    data: Annotated[str, typer.Option(help="What to learn: a file or a data set.")] = "digits",
    arch: Arch = None,
    epochs: Annotated[int, typer.Option(min=2, help="How often all examples are seen.")] = 16,
    rate: Annotated[float, typer.Option(help="Learning rate at first; a tenth from half of the epochs on.")] = 0.05,
    batch: Annotated[int, typer.Option(min=2, help="Examples a step.")] = 64,
    every: Annotated[int | None, typer.Option(min=1, help="Steps between records (an epoch).")] = None,
    probe: Annotated[int, typer.Option(min=2, help="Examples whose gates are recorded.")] = 128,
    limit: Annotated[int, typer.Option(min=2, help="Use at most this many examples to learn from.")] = 10_000,
    report: Report = None,
    force: Force = False,
    as_json: Json = False,
    seed: Seed = 0,
    trust_code: Trust = False,
    weights: Weights = None,
    debug: Debug = False,
) -> None:
    """Train a network and record which units each example goes through. For a loop of your own: `Recorder`."""
    vacant(out, (".rec",), force)
    vacant(report, (".html", ".htm"), force)
    from weightspace.files import beside
    from weightspace.watching import watched

    options: dict[str, Any] = {"epochs": epochs, "rate": rate, "batch": batch, "every": every, "probe": probe}
    with beside(out) as growing, progress() as step:
        done = watched(
            growing, data, arch=arch, limit=limit, trust_code=trust_code, seed=seed, progress=step, **options
        )  # fmt: skip
    answer(replace(done, out=str(out)), say_watched, as_json, report, "wayside:watch_page")


def paths(
    recording: Annotated[Path, typer.Argument(help="A file that `watch` or a Recorder wrote.")],
    gates: Annotated[str | None, typer.Option(help="Which gates, where several were recorded.")] = None,
    layer: Annotated[str | None, typer.Option(help="The layer of ranks and distances (the second).")] = None,
    stages: Annotated[str | None, typer.Option(help="Steps at which the rate fell, as 100,150: early to mid.")] = None,
    report: Report = None,
    force: Force = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Which way do examples take through the network, and when does it stop changing? For any recorded run."""
    vacant(report, (".html", ".htm"), force)
    from weightspace.watching import passages

    ends = numbers(stages, "--stages") if stages else []
    if stages and len(ends) != 2:
        raise typer.BadParameter(f"{stages!r}; give two steps, as 100,150", param_hint="--stages")
    with progress() as step:
        both = (int(ends[0]), int(ends[1])) if ends else None
        found = passages(recording, name=gates, layer=layer, stages=both, progress=step)
    answer(found, say_paths, as_json, report, "wayside:paths_page")


def inform(
    checkpoint: Annotated[Path, typer.Argument(help="The network whose weights are asked.")],
    data: Annotated[str, typer.Option(help="What it was trained on: a file with x and y, or a data set.")],
    arch: Arch = None,
    method: Annotated[
        str,
        typer.Option(help="local (curvature), variational (noise that the weights bear), sgld (loss around), or all."),
    ] = "local",
    beta: Annotated[float, typer.Option(help="The price of a nat of network, in nats of loss.")] = 1.0,
    anchor: Annotated[
        Path | None, typer.Option(help="The checkpoint from before training; weights are told from there, not zero.")
    ] = None,
    rank: Annotated[
        int | None, typer.Option(min=1, help="Of local: directions looked at one by one (256); fewer is quicker.")
    ] = None,
    structure: Annotated[
        bool, typer.Option("--structure", help="The structure function of the task too: 26 more codes.")
    ] = False,
    limit: Annotated[int, typer.Option(min=2, help="Use at most this many training examples.")] = 1000,
    report: Report = None,
    force: Force = False,
    as_json: Json = False,
    seed: Seed = 0,
    trust_code: Trust = False,
    weights: Weights = None,
    debug: Debug = False,
) -> None:
    """How many nats do the weights hold about the data, in which layers, and is it less than the labels take?

    What it will cost, in passes over the data and memory, is said before it begins.
    """
    vacant(report, (".html", ".htm"), force)
    from weightspace.inquiry import informed

    options: dict[str, Any] = {"method": method, "beta": beta, "anchor": anchor, "curve": structure, "rank": rank}
    with progress() as step:
        done = informed(
            checkpoint, data, arch=arch, limit=limit, trust_code=trust_code, seed=seed, progress=step, **options
        )
    answer(done, say_informed, as_json, report, "answers:informed_page")


def tasks(
    data: Annotated[
        list[str],
        typer.Argument(help="Two or more data sets or files, or parts: mnist:0-4, digits:rotated, x.npz:random."),
    ],
    arch: Arch = None,
    limit: Annotated[int, typer.Option(min=2, help="Use at most this many examples of each.")] = 500,
    seeds: Annotated[int, typer.Option(min=1, help="Codes of every task; the shortest counts.")] = 2,
    steps: Annotated[int, typer.Option(min=1, help="Steps for each code.")] = 1000,
    task_id: Annotated[
        bool, typer.Option("--task-id", help="A head for each task: telling tasks apart then costs nothing.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Keep codes here (.json): a run that was cut off goes on.")
    ] = None,
    report: Report = None,
    force: Force = False,
    as_json: Json = False,
    seed: Seed = 0,
    trust_code: Trust = False,
    weights: Weights = None,
    debug: Debug = False,
) -> None:
    """How far apart are tasks? What is left to learn of each, in nats, when another is known; a map; the nearest.

    What it will cost is said before it begins.
    """
    vacant(report, (".html", ".htm"), force)
    vacant(out, (".json",), True)
    from weightspace.inquiry import told_apart

    options: dict[str, Any] = {"limit": limit, "seeds": seeds, "steps": steps, "task_id": task_id, "file": out}
    with progress() as step:
        done = told_apart(data, arch=arch, trust_code=trust_code, seed=seed, progress=step, **options)
    answer(done, say_tasks, as_json, report, "answers:tasks_page")


def certify(
    checkpoint: Annotated[Path, typer.Argument(help="The network, trained on these data (or not: --unseen).")],
    data: Annotated[str, typer.Option(help="The examples that the promise rests on: a file or a data set.")],
    arch: Arch = None,
    prior: Annotated[
        Path | None, typer.Option(help="The checkpoint from before training on these data. A fresh one without it.")
    ] = None,
    seen: Annotated[str | None, typer.Option(help="What the prior was trained on; no example may be shared.")] = None,
    unseen: Annotated[
        bool, typer.Option("--unseen", help="The checkpoint has seen none of these examples: it is the prior itself.")
    ] = False,
    delta: Annotated[float, typer.Option(help="Probability that the promise may fail.")] = 0.05,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of training on the bound.")] = None,
    draws: Annotated[
        int | None, typer.Option(min=1, help="Networks drawn for the error, each with an example (500,000).")
    ] = None,
    limit: Annotated[int, typer.Option(min=2, help="Use at most this many examples.")] = 60_000,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Write the mean of the certified networks (.safetensors).")
    ] = None,
    report: Report = None,
    force: Force = False,
    as_json: Json = False,
    seed: Seed = 0,
    trust_code: Trust = False,
    weights: Weights = None,
    debug: Debug = False,
) -> None:
    """How often will it err on new data, at most? A PAC-Bayes certificate, and what other bounds would say.

    What it will cost is said before it begins.
    """
    vacant(out, (".safetensors",), force)
    vacant(report, (".html", ".htm"), force)
    from weightspace.inquiry import certified

    options: dict[str, Any] = {"prior": prior, "seen": seen, "unseen": unseen, "delta": delta}
    with progress() as step:
        done = certified(
            checkpoint, data, arch=arch, steps=steps, draws=draws, limit=limit, out=out, force=force,
            trust_code=trust_code, seed=seed, progress=step, **options,
        )  # fmt: skip
    answer(done, say_certified, as_json, report, "answers:certified_page")
