"""The command line: parse, call, print. torch is imported by the commands, not by `--help`."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weightspace.text import (
    console,
    printable,
    say_aligned,
    say_certified,
    say_comparison,
    say_group,
    say_informed,
    say_merged,
    say_paths,
    say_perturbed,
    say_room,
    say_tasks,
    say_trial,
    say_walked,
    say_watched,
)

if TYPE_CHECKING:
    from rich.console import Console

    from weightspace.compare import Progress
    from weightspace.workbench import Bench

__all__ = ["app", "main"]

_ABOUT = (
    "Read a network's symmetry; compare, align, merge, move and shake checkpoints of one architecture.\n\n"
    "Two networks that compute the same thing can have very different weights, because hidden units can be renumbered "
    "and rescaled. These commands read off which moves leave a network's function alone, and undo them before they "
    "measure or average.\n\n"
    "Exit codes: 0 done, 1 another verdict than the one expected, 2 a mistake (one line says which)."
)
_STOPPED = 130  # typer's code, and the shell's, for Ctrl-C

app = typer.Typer(help=_ABOUT, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

_Arch = Annotated[
    str | None,
    typer.Option(
        help="The architecture: package.module:factory, importable from here, such as mypkg.models:resnet20 or "
        "mypkg.models:resnet20(width=16); a Hugging Face folder; or a .pt2. Not needed for Hugging Face folders."
    ),
]
_Data = Annotated[
    str | None,
    typer.Option(
        help="Examples to align and measure on: an .npz with x and y, idx or parquet file, or digits, mnist, "
        "fashion-mnist, cifar10 (found in WEIGHTSPACE_DATA). Alignment and measurement never share examples."
    ),
]
_Example = Annotated[
    str | None, typer.Option(help="Shape of an input, if there is no --data: 2x3x32x32, or ids:2x16 for tokens.")
]
_Limit = Annotated[int, typer.Option(min=2, help="Use at most this many examples to measure on.")]
_Out = Annotated[Path, typer.Option("-o", "--out", help="Where to write: a .safetensors file.")]
_Report = Annotated[Path | None, typer.Option(help="Write a page with figures (.html, works offline).")]
_Force = Annotated[bool, typer.Option("--force", help="Overwrite what exists.")]
_Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else.")]
_Method = Annotated[
    str,
    typer.Option(
        help="How units are matched: weights (fastest), activations, activations+weights, frank-wolfe, or auto: "
        "try them and keep the best."
    ),
]
_Seed = Annotated[int, typer.Option(min=0, help="Seed of everything that is drawn at random.")]
_Trust = Annotated[
    bool, typer.Option("--trust-code", help="Open .pt2 files. They are programs: only for files that you trust.")
]
_Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; the exit code. A mistake is one line on stderr, never a traceback without --debug."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        with warnings.catch_warnings():
            if "--debug" not in given:
                warnings.simplefilter("ignore")
            code = int(app(given, prog_name="weightspace", standalone_mode=False) or 0)
    except (KeyboardInterrupt, typer.Abort):
        code = _STOPPED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if "--debug" in given:
            raise
        return _fail(_line(error), 2)
    return _fail("stopped; nothing was left half-written", code) if code == _STOPPED else code


def _line(error: Exception) -> str:
    """What to tell: the message of an error that a user can mend; of any other, its kind as well."""
    from weightspace.net import WeightspaceError

    if hasattr(error, "format_message"):  # typer's own: an unknown option, a missing argument
        context = getattr(error, "ctx", None)
        return f"{error.format_message()} See {getattr(context, 'command_path', 'weightspace')} --help."
    text = " ".join(str(error).split())
    if isinstance(error, WeightspaceError):
        return text
    if isinstance(error, MemoryError):
        return "out of memory; give fewer examples (--limit) or use a larger machine"
    if isinstance(error, OSError):
        return f"{error.filename or 'a file'}: {error.strerror or text}; check the path"
    return f"unexpected {type(error).__name__}: {text[:300]}; add --debug to see where, and please report it"


def _fail(message: str, code: int) -> int:
    print(f"weightspace: {printable(message)}", file=sys.stderr)
    return code


# ------------------------------------------------------------------ commands


def _version(wanted: bool | None) -> None:
    if wanted:
        from weightspace import __version__

        typer.echo(f"weightspace {__version__}")
        raise typer.Exit


@app.callback(help=_ABOUT)
def weightspace(
    version: Annotated[
        bool | None, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = None,
) -> None:
    """All commands; no options of its own but the version."""


@app.command()
def read(
    checkpoint: Annotated[Path | None, typer.Argument(help="A Hugging Face folder, instead of --arch.")] = None,
    arch: _Arch = None,
    data: _Data = None,
    example: _Example = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Write the group as a JSON certificate.")] = None,
    force: _Force = False,
    as_json: _Json = False,
    seed: _Seed = 0,
    trust_code: _Trust = False,
    debug: _Debug = False,
) -> None:
    """Which moves of the weights leave the function alone? Print the symmetry group of an architecture."""
    _vacant(out, (".json",), force)
    with _bench(arch, [checkpoint] if checkpoint else [], data, example, trust_code, seed) as bench:
        if out:
            bench.group.save(out)
    if as_json:
        _print_json(bench.group.certificate())
    else:
        say_group(bench.group, type(bench.template.architecture).__name__, out)


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(help="A checkpoint: .safetensors, a Hugging Face folder, .pt, .bin, .ckpt.")],
    b: Annotated[Path, typer.Argument(help="Another one, of the same architecture.")],
    arch: _Arch = None,
    data: _Data = None,
    example: _Example = None,
    report: _Report = None,
    expect: Annotated[
        str | None, typer.Option(help="Exit with 1 unless the verdict is same, related (or same), independent.")
    ] = None,
    method: _Method = "auto",
    limit: _Limit = 2048,
    force: _Force = False,
    as_json: _Json = False,
    seed: _Seed = 0,
    trust_code: _Trust = False,
    debug: _Debug = False,
) -> None:
    """How far apart are two networks really? Distances and loss, as stored and after alignment, and a verdict."""
    if expect not in (None, "same", "related", "independent"):
        raise typer.BadParameter(f"{expect!r}; choose same, related or independent.", param_hint="--expect")
    _vacant(report, (".html", ".htm"), force)
    with _bench(arch, [a, b], data, example, trust_code, seed, limit, method) as bench:
        found = bench.compare(a, b)
    _answer(found, say_comparison, as_json, report, "report:comparison_page")
    if expect and found.verdict.kind not in ((expect, "same") if expect == "related" else (expect,)):
        raise typer.Exit(1)


@app.command()
def align(
    checkpoint: Annotated[Path, typer.Argument(help="The network to move.")],
    to: Annotated[Path, typer.Option(help="The network to bring it near.")],
    out: _Out,
    arch: _Arch = None,
    data: _Data = None,
    example: _Example = None,
    method: _Method = "auto",
    limit: _Limit = 2048,
    force: _Force = False,
    as_json: _Json = False,
    seed: _Seed = 0,
    trust_code: _Trust = False,
    debug: _Debug = False,
) -> None:
    """Write a checkpoint with its units renumbered and rescaled to match another one: the same function, nearer."""
    _vacant(out, (".safetensors",), force)
    with _bench(arch, [checkpoint, to], data, example, trust_code, seed, limit, method) as bench:
        done = bench.align(checkpoint, to, out, force=force)
    _answer(done, say_aligned, as_json)


@app.command()
def merge(
    checkpoints: Annotated[list[Path], typer.Argument(help="Two or more networks of one architecture.")],
    out: _Out,
    arch: _Arch = None,
    data: _Data = None,
    example: _Example = None,
    limit: _Limit = 2048,
    force: _Force = False,
    as_json: _Json = False,
    seed: _Seed = 0,
    trust_code: _Trust = False,
    debug: _Debug = False,
) -> None:
    """Average networks after aligning them, so that the average works: one network, no larger than each."""
    if len(checkpoints) < 2:
        raise typer.BadParameter("give two or more networks to merge.", param_hint="CHECKPOINTS")
    _vacant(out, (".safetensors",), force)
    with _bench(arch, checkpoints, data, example, trust_code, seed, limit) as bench:
        done = bench.merge(checkpoints, out, force=force)
    _answer(done, say_merged, as_json)


@app.command()
def walk(
    checkpoint: Annotated[Path, typer.Argument(help="The network to move.")],
    keep: Annotated[
        str,
        typer.Option(help="Data on which the outputs must stay: a file with x and y (y only scores), or a data set."),
    ],
    toward: Annotated[
        str,
        typer.Option(
            help="learn:DATA, prune:0.9 (or prune:0.99,descent; prune:0.5,2:4; prune:0.3,neuron), drift:SEED, spread, "
            "harden:RADIUS, or another checkpoint."
        ),
    ],
    out: _Out,
    arch: _Arch = None,
    budget: Annotated[
        float | None, typer.Option(help="Drift of the outputs that is allowed, in their units (a tenth of their size).")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="How many steps (40; 2,000 of a descent).")] = None,
    size: Annotated[float | None, typer.Option(help="Length of a step (1 % of the weights' norm).")] = None,
    memory: Annotated[
        int | None, typer.Option(min=1, help="On how many examples outputs are held (200; of a descent, all).")
    ] = None,
    limit: _Limit = 2048,
    report: _Report = None,
    force: _Force = False,
    as_json: _Json = False,
    seed: _Seed = 0,
    trust_code: _Trust = False,
    debug: _Debug = False,
) -> None:
    """Move a network without changing what it does: learn something new, prune, explore, or go to another network.

    An output that ends in .safetensors is the network at the end; any other is a folder for the path, from which a walk
    that was cut off goes on (--force begins anew).
    """
    if out.suffix:
        _vacant(out, (".safetensors",), force)
    elif not out.parent.is_dir():
        raise _missing(out)
    _vacant(report, (".html", ".htm"), force)
    from weightspace.walk import walk as go

    options: dict[str, Any] = {"budget": budget, "steps": steps, "size": size, "memory": memory, "limit": limit}
    with _progress() as step:
        done = go(
            checkpoint, keep, toward, out, arch=arch, force=force, trust_code=trust_code, seed=seed, progress=step,
            picture=report is not None, **options,
        )  # fmt: skip
    _answer(done, say_walked, as_json, report, "wayside:walk_page")


@app.command()
def capacity(
    checkpoint: Annotated[Path, typer.Argument(help="The network that would move.")],
    keep: Annotated[str, typer.Option(help="Data on which the outputs must stay: a file or a data set.")],
    learn: Annotated[str, typer.Option(help="Data with labels that it would learn.")],
    arch: _Arch = None,
    memory: Annotated[int, typer.Option(min=1, help="On how many examples outputs are held.")] = 100,
    limit: _Limit = 2048,
    as_json: _Json = False,
    seed: _Seed = 0,
    trust_code: _Trust = False,
    debug: _Debug = False,
) -> None:
    """How much room there is to learn something new without changing the outputs on what is to be kept."""
    from weightspace.walk import capacity as measure

    with _progress() as step:
        step("measuring", 0, 1)
        found = measure(
            checkpoint, keep, learn, arch=arch, memory=memory, limit=limit, trust_code=trust_code, seed=seed
        )  # fmt: skip
    _answer(found, say_room, as_json)


@app.command()
def perturb(
    checkpoint: Annotated[Path, typer.Argument(help="The network to change.")],
    out: _Out,
    relative: Annotated[
        float | None, typer.Option(help="Size of the change of every tensor, as a share of its norm (0.2).")
    ] = None,
    kind: Annotated[str, typer.Option(help="noise, quantise (to an even grid), prune (smallest to zero).")] = "noise",
    bits: Annotated[int | None, typer.Option(help="Of --kind quantise, in place of --relative.")] = None,
    share: Annotated[float | None, typer.Option(help="Of --kind prune: zeros, in place of --relative.")] = None,
    data: _Data = None,
    arch: _Arch = None,
    limit: _Limit = 2048,
    force: _Force = False,
    as_json: _Json = False,
    seed: _Seed = 0,
    trust_code: _Trust = False,
    debug: _Debug = False,
) -> None:
    """Change every layer by a share of its norm: noise, rounding or zeros; with --data, predicted against measured."""
    _vacant(out, (".safetensors",), force)
    from weightspace.trial import perturbed

    options: dict[str, Any] = {"relative": relative, "kind": kind, "bits": bits, "share": share, "data": data}
    with _progress() as step:
        step("perturbing", 0, 0)
        done = perturbed(
            checkpoint, out, arch=arch, limit=limit, force=force, trust_code=trust_code, seed=seed, **options
        )  # fmt: skip
    _answer(done, say_perturbed, as_json)


@app.command()
def stability(
    checkpoint: Annotated[Path, typer.Argument(help="The network to shake.")],
    data: Annotated[
        str, typer.Option(help="Data to look at it on: a file or a data set; y is scored, and may be missing.")
    ],
    arch: _Arch = None,
    sizes: Annotated[str, typer.Option(help="Sizes of the noise.")] = "0.01,0.02,0.05,0.1,0.2,0.5,1",
    draws: Annotated[int, typer.Option(min=1, help="How often each size is drawn.")] = 10,
    tolerance: Annotated[float, typer.Option(help="What noise may cost, for the width: of accuracy, or loss.")] = 0.01,
    proof: Annotated[bool, typer.Option(help="Compute certificates (a Cholesky factor a tensor and size).")] = True,
    limit: _Limit = 512,
    report: _Report = None,
    force: _Force = False,
    as_json: _Json = False,
    seed: _Seed = 0,
    trust_code: _Trust = False,
    debug: _Debug = False,
) -> None:
    """How much noise do the weights take? Measured, expected, modelled and proven, and which layer breaks first."""
    _vacant(report, (".html", ".htm"), force)
    from weightspace.trial import trial

    options: dict[str, Any] = {"draws": draws, "tolerance": tolerance, "proven": proof, "limit": limit, "seed": seed}
    with _progress() as step:
        done = trial(
            checkpoint, data, arch=arch, sizes=_numbers(sizes), trust_code=trust_code, progress=step, **options
        )  # fmt: skip
    _answer(done, say_trial, as_json, report, "trial:trial_page")


@app.command()
def watch(
    out: Annotated[Path, typer.Option("-o", "--out", help="Where to write: a .rec file.")],
    data: Annotated[str, typer.Option(help="What to learn: a file or a data set.")] = "digits",
    arch: _Arch = None,
    epochs: Annotated[int, typer.Option(min=2, help="How often all examples are seen.")] = 16,
    rate: Annotated[float, typer.Option(help="Learning rate at first; a tenth from half of the epochs on.")] = 0.05,
    batch: Annotated[int, typer.Option(min=2, help="Examples a step.")] = 64,
    every: Annotated[int | None, typer.Option(min=1, help="Steps between records (an epoch).")] = None,
    probe: Annotated[int, typer.Option(min=2, help="Examples whose gates are recorded.")] = 128,
    limit: Annotated[int, typer.Option(min=2, help="Use at most this many examples to learn from.")] = 10_000,
    report: _Report = None,
    force: _Force = False,
    as_json: _Json = False,
    seed: _Seed = 0,
    trust_code: _Trust = False,
    debug: _Debug = False,
) -> None:
    """Train a network and record which units each example goes through. For a loop of your own: `Recorder`."""
    _vacant(out, (".rec",), force)
    _vacant(report, (".html", ".htm"), force)
    from weightspace.watching import passages, watched

    options: dict[str, Any] = {"epochs": epochs, "rate": rate, "batch": batch, "every": every, "probe": probe}
    beside = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        with _progress() as step:
            done = watched(
                beside, data, arch=arch, limit=limit, trust_code=trust_code, seed=seed, progress=step, **options
            )  # fmt: skip
        beside.replace(out)
    finally:
        beside.unlink(missing_ok=True)
    if report:
        from weightspace.page import save
        from weightspace.wayside import paths_page

        save([paths_page(passages(out))], report)
    if as_json:
        _print_json({**done.data(), "out": str(out)})
    else:
        say_watched(done, out, report)


@app.command()
def paths(
    recording: Annotated[Path, typer.Argument(help="A file that `watch` or a Recorder wrote.")],
    gates: Annotated[str | None, typer.Option(help="Which gates, where several were recorded.")] = None,
    layer: Annotated[str | None, typer.Option(help="The layer of ranks and distances (the second).")] = None,
    stages: Annotated[str | None, typer.Option(help="Steps at which the rate fell, as 100,150: early to mid.")] = None,
    report: _Report = None,
    force: _Force = False,
    as_json: _Json = False,
    debug: _Debug = False,
) -> None:
    """Which way do examples take through the network, and when does it stop changing? For any recorded run."""
    _vacant(report, (".html", ".htm"), force)
    from weightspace.watching import passages

    ends = _numbers(stages, "--stages") if stages else []
    if stages and len(ends) != 2:
        raise typer.BadParameter(f"{stages!r}; give two steps, as 100,150", param_hint="--stages")
    with _progress() as step:
        both = (int(ends[0]), int(ends[1])) if ends else None
        found = passages(recording, name=gates, layer=layer, stages=both, progress=step)
    _answer(found, say_paths, as_json, report, "wayside:paths_page")


@app.command()
def inform(
    checkpoint: Annotated[Path, typer.Argument(help="The network whose weights are asked.")],
    data: Annotated[str, typer.Option(help="What it was trained on: a file with x and y, or a data set.")],
    arch: _Arch = None,
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
    report: _Report = None,
    force: _Force = False,
    as_json: _Json = False,
    seed: _Seed = 0,
    trust_code: _Trust = False,
    debug: _Debug = False,
) -> None:
    """How many nats do the weights hold about the data, in which layers, and is it less than the labels take?

    What it will cost, in passes over the data and memory, is said before it begins.
    """
    _vacant(report, (".html", ".htm"), force)
    from weightspace.inquiry import informed

    options: dict[str, Any] = {"method": method, "beta": beta, "anchor": anchor, "curve": structure, "rank": rank}
    with _progress() as step:
        done = informed(
            checkpoint, data, arch=arch, limit=limit, trust_code=trust_code, seed=seed, progress=step, **options
        )
    _answer(done, say_informed, as_json, report, "answers:informed_page")


@app.command()
def tasks(
    data: Annotated[
        list[str],
        typer.Argument(help="Two or more data sets or files, or parts: mnist:0-4, digits:rotated, x.npz:random."),
    ],
    arch: _Arch = None,
    limit: Annotated[int, typer.Option(min=2, help="Use at most this many examples of each.")] = 500,
    seeds: Annotated[int, typer.Option(min=1, help="Codes of every task; the shortest counts.")] = 2,
    steps: Annotated[int, typer.Option(min=1, help="Steps for each code.")] = 1000,
    task_id: Annotated[
        bool, typer.Option("--task-id", help="A head for each task: telling tasks apart then costs nothing.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Keep codes here (.json): a run that was cut off goes on.")
    ] = None,
    report: _Report = None,
    force: _Force = False,
    as_json: _Json = False,
    seed: _Seed = 0,
    trust_code: _Trust = False,
    debug: _Debug = False,
) -> None:
    """How far apart are tasks? What is left to learn of each, in nats, when another is known; a map; the nearest.

    What it will cost is said before it begins.
    """
    _vacant(report, (".html", ".htm"), force)
    _vacant(out, (".json",), True)
    from weightspace.inquiry import told_apart

    options: dict[str, Any] = {"limit": limit, "seeds": seeds, "steps": steps, "task_id": task_id, "file": out}
    with _progress() as step:
        done = told_apart(data, arch=arch, trust_code=trust_code, seed=seed, progress=step, **options)
    _answer(done, say_tasks, as_json, report, "answers:tasks_page")


@app.command()
def certify(
    checkpoint: Annotated[Path, typer.Argument(help="The network, trained on these data (or not: --unseen).")],
    data: Annotated[str, typer.Option(help="The examples that the promise rests on: a file or a data set.")],
    arch: _Arch = None,
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
    report: _Report = None,
    force: _Force = False,
    as_json: _Json = False,
    seed: _Seed = 0,
    trust_code: _Trust = False,
    debug: _Debug = False,
) -> None:
    """How often will it err on new data, at most? A PAC-Bayes certificate, and what other bounds would say.

    What it will cost is said before it begins.
    """
    _vacant(out, (".safetensors",), force)
    _vacant(report, (".html", ".htm"), force)
    from weightspace.inquiry import certified

    options: dict[str, Any] = {"prior": prior, "seen": seen, "unseen": unseen, "delta": delta}
    with _progress() as step:
        done = certified(
            checkpoint, data, arch=arch, steps=steps, draws=draws, limit=limit, out=out, force=force,
            trust_code=trust_code, seed=seed, progress=step, **options,
        )  # fmt: skip
    _answer(done, say_certified, as_json, report, "answers:certified_page")


def _numbers(text: str, option: str = "--sizes") -> list[float]:
    try:
        return sorted({float(word) for word in text.split(",")})
    except ValueError as error:
        raise typer.BadParameter(f"{text!r}; give numbers with commas: 0.1,0.2", param_hint=option) from error


@app.command()
def demo(
    out: Annotated[Path, typer.Option("-o", "--out", help="The folder to write to.")] = Path("weightspace-demo"),
    force: _Force = False,
    as_json: _Json = False,
    seed: _Seed = 0,
    debug: _Debug = False,
) -> None:
    """Everything that works so far, on embedded data, in two minutes; ends with a page to look at."""
    from weightspace import demo as show

    stdout = None if as_json else console()
    with _progress(stdout) as step:
        done = show.run(out, console=stdout, force=force, seed=seed, progress=step)
    if as_json:
        _print_json(done)


# ------------------------------------------------------------------ before and while


def _missing(path: Path) -> Exception:
    from weightspace.net import WeightspaceError

    return WeightspaceError(f"{path}: the folder {path.parent} does not exist; create it first")


def _vacant(path: Path | None, endings: tuple[str, ...], force: bool) -> None:
    """Refuse an output path before any work is done for it."""
    from weightspace.net import WeightspaceError

    if path is None or (path.is_dir() and endings == (".safetensors",)):
        return
    if path.suffix not in endings:
        raise WeightspaceError(f"{path}: the name of this output must end in {endings[0]}")
    if not path.parent.is_dir():
        raise _missing(path)
    if path.is_dir() or (path.exists() and not force):
        raise WeightspaceError(f"{path} exists; choose another name, or add --force to overwrite it")


@contextmanager
def _bench(
    arch: str | None,
    paths: list[Path],
    data: str | None,
    example: str | None,
    trust_code: bool,
    seed: int,
    limit: int = 2048,
    method: str = "auto",
) -> Iterator[Bench]:
    """What the options name, opened, with the progress shown while it is used."""
    from weightspace.workbench import Bench

    with _progress() as step:
        options: dict[str, Any] = {"limit": limit, "method": method, "trust_code": trust_code, "seed": seed}
        yield Bench.open(arch, paths, data, example, progress=step, **options)


@contextmanager
def _progress(beside: Console | None = None) -> Iterator[Progress]:
    """On a terminal a bar or a spinner; else one plain line for every new thing that is done. On stderr.

    Where the command itself prints to a terminal meanwhile, the bar keeps out of the way of that console, `beside`.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = beside if beside and beside.is_terminal else Console(stderr=True)
    if not console.is_terminal:
        said: set[str] = set()

        def tell(what: str, done: int, total: int) -> None:
            if what not in said:
                said.add(what)
                print(f"{printable(what)} ...", file=sys.stderr, flush=True)

        yield tell
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        bar = bars.add_task("starting", total=None)

        def show(what: str, done: int, total: int) -> None:
            bars.update(bar, description=printable(what), completed=done, total=total or None)

        yield show


def _answer(
    done: Any,
    say: Callable[..., None],
    as_json: bool,
    report: Path | None = None,
    page: str = "",
) -> None:
    """The page if one is wanted, by a function named "room:function"; then `done` as JSON, or in words."""
    if report:
        from importlib import import_module

        from weightspace.page import save

        room, _, function = page.partition(":")
        save([getattr(import_module(f"weightspace.{room}"), function)(done)], report)
    if as_json:
        _print_json(done.data())
    elif page:
        say(done, report)
    else:
        say(done)


def _print_json(value: Any) -> None:
    """JSON has no NaN and no infinity: null."""
    from weightspace.description import plain

    print(json.dumps(plain(value), indent=1, allow_nan=False))
