"""What commands are asked: the options that several share, and checks of outputs before any work is done."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from weightspace.checkpoint.files import CHOSEN, refuse_dangling

__all__ = [
    "Arch",
    "Data",
    "Debug",
    "Example",
    "Force",
    "Json",
    "Limit",
    "Method",
    "Out",
    "Report",
    "Seed",
    "Trust",
    "Weights",
    "missing",
    "numbers",
    "vacant",
]


Arch = Annotated[
    str | None,
    typer.Option(
        help="The architecture: package.module:factory, importable from here, such as mypkg.models:resnet20 or "
        "mypkg.models:resnet20(width=16); a Hugging Face folder; or a .pt2. Not needed for Hugging Face folders."
    ),
]
Data = Annotated[
    str | None,
    typer.Option(
        help="Examples to align and measure on: an .npz with x and y, idx or parquet file, or digits, mnist, "
        "fashion-mnist, cifar10 (found in WEIGHTSPACE_DATA). Alignment and measurement never share examples."
    ),
]
Example = Annotated[
    str | None, typer.Option(help="Shape of an input, if there is no --data: 2x3x32x32, or ids:2x16 for tokens.")
]
Limit = Annotated[int, typer.Option(min=2, help="Use at most this many examples to measure on.")]
Out = Annotated[Path, typer.Option("-o", "--out", help="Where to write: a .safetensors file.")]
Report = Annotated[Path | None, typer.Option(help="Write a page with figures (.html, works offline).")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite what exists.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else.")]
Method = Annotated[
    str,
    typer.Option(
        help="How units are matched: weights (fastest), activations, activations+weights, frank-wolfe, or auto: "
        "try them and keep the best."
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of everything that is drawn at random.")]
Trust = Annotated[
    bool, typer.Option("--trust-code", help="Open .pt2 files. They are programs: only for files that you trust.")
]


def _choose(name: str | None) -> str | None:
    if name is not None:
        CHOSEN.set(name)
    return name


Weights = Annotated[
    str | None,
    typer.Option(
        callback=_choose, help="Which network, where a file holds several: ema, generator, or a folder's variant, fp16."
    ),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def missing(path: Path) -> Exception:
    """The error of an output whose folder is not there."""
    from weightspace.net.errors import WeightspaceError

    return WeightspaceError(f"{path}: the folder {path.parent} does not exist; create it first")


def vacant(path: Path | None, endings: tuple[str, ...], force: bool) -> None:
    """Refuse an output path before any work is done for it."""
    from weightspace.net.errors import WeightspaceError

    if path is None or (path.is_dir() and endings == (".safetensors",)):
        return
    if path.suffix not in endings:
        raise WeightspaceError(f"{path}: the name of this output must end in {endings[0]}")
    if not path.parent.is_dir():
        raise missing(path)
    try:
        refuse_dangling(path)
    except OSError as error:
        raise WeightspaceError(f"{path}: {error.strerror}, or choose another name") from error
    if path.is_dir() or (path.exists() and not force):
        raise WeightspaceError(f"{path} exists; choose another name, or add --force to overwrite it")


def numbers(text: str, option: str = "--sizes") -> list[float]:
    """The numbers of an option, in order, each once."""
    try:
        return sorted({float(word) for word in text.split(",")})
    except ValueError as error:
        raise typer.BadParameter(f"{text!r}; give numbers with commas: 0.1,0.2", param_hint=option) from error
