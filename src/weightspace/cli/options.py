"""Options that several commands share, each declared once, and checks of outputs before any work is done."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from weightspace.checkpoint.files import CHOSEN, refuse_dangling
from weightspace.cli.next_step import GIVEN

if TYPE_CHECKING:
    from weightspace.commands.settings import Settings
    from weightspace.jobs.progress import Progress

__all__ = ["Checkpoint", "Limit", "Out", "Shared", "free", "missing", "numbers", "shared"]

_NETWORK, _RUN = "Network and data", "Output and run"


def _choose(name: str | None) -> str | None:
    if name is not None:
        CHOSEN.set(name)
    return name


Checkpoint = Annotated[
    Path, typer.Argument(help="A checkpoint: .safetensors, a Hugging Face folder, .pt, .bin or .ckpt.")
]
Limit = Annotated[
    int, typer.Option(min=2, rich_help_panel=_NETWORK, help="Use at most this many examples to measure on.")
]
Out = Annotated[Path, typer.Option("-o", "--out", help="The file to write (.safetensors).")]


@dataclass(frozen=True)
class Shared:
    """What was given for the options that several commands share; the field's name is that of the parameter."""

    arch: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=_NETWORK,
            help="The architecture: package.module:factory, importable from here, such as mypkg.models:resnet20 or "
            "mypkg.models:resnet20(width=16); a Hugging Face folder; or a .pt2 file. A checkpoint that is a Hugging "
            "Face folder needs none.",
        ),
    ] = None
    weights: Annotated[
        str | None,
        typer.Option(
            callback=_choose,
            rich_help_panel=_NETWORK,
            help="Which network to take from a file that holds several (ema, generator), or which variant of a folder "
            "(fp16).",
        ),
    ] = None
    trust_code: Annotated[
        bool,
        typer.Option(
            "--trust-code",
            rich_help_panel=_NETWORK,
            help="Open .pt2 files, which are programs. Only for files that you trust.",
        ),
    ] = False
    data: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=_NETWORK,
            help="Examples to align and to measure on: an .npz file with x and y, an idx or parquet file, or digits, "
            "mnist, fashion-mnist, cifar10 (in the folder WEIGHTSPACE_DATA). Each example is used for one of the two. "
            "Inputs alone will do to compare, align and merge: in place of the loss the divergence of the outputs is "
            "measured.",
        ),
    ] = None
    example: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=_NETWORK,
            help="Shape of an input batch, needed without --data: 2x3x32x32, or ids:2x16 for tokens.",
        ),
    ] = None
    method: Annotated[
        str,
        typer.Option(
            help="How units are matched: weights (fastest), activations, activations+weights, frank-wolfe, refine (the "
            "best of these, its scales refined by descent), or auto, which tries them and keeps the best."
        ),
    ] = "auto"
    limit: Limit = 2048
    report: Annotated[
        Path | None,
        typer.Option(rich_help_panel=_RUN, help="Write a page with figures (.html); it works offline."),
    ] = None
    as_json: Annotated[
        bool, typer.Option("--json", rich_help_panel=_RUN, help="Print one JSON object on stdout, and nothing else.")
    ] = False
    force: Annotated[bool, typer.Option("--force", rich_help_panel=_RUN, help="Overwrite files that exist.")] = False
    seed: Annotated[int, typer.Option(min=0, rich_help_panel=_RUN, help="Seed of all random numbers.")] = 0
    debug: Annotated[bool, typer.Option("--debug", rich_help_panel=_RUN, help="Show the traceback of an error.")] = (
        False
    )

    def settings(self, progress: Progress) -> Settings:
        """The part that the commands are given."""
        from weightspace.commands.settings import Settings

        return Settings(self.arch, self.seed, self.force, self.trust_code, progress)


def shared(names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add shared options to a command, whose last parameter gets their values as one `Shared`.

    `names`: fields of `Shared`; --json, --force and --debug are always added. An existing --report is refused before
    the command begins.
    """
    wanted = {*names.split(), "as_json", "force", "debug"}
    hints = get_type_hints(Shared, include_extras=True)
    added = [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
        )
        for field in fields(Shared)
        if field.name in wanted
    ]
    assert len(added) == len(wanted), f"not all of {names} are shared options"

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = [*inspect.signature(command, eval_str=True).parameters.values()][:-1]
        usual = next((p.default for p in (*own, *added) if p.name == "limit"), None)

        @wraps(command)
        def run(**given: Any) -> None:
            told = {name: value for name, value in given.items() if name != "limit" or value != usual}
            GIVEN.set((f"{command.__module__.rpartition('.')[2]}.{command.__name__}", told))
            common = Shared(**{name: given.pop(name) for name in wanted})
            free(common.report, (".html", ".htm"), common.force)
            command(**given, common=common)

        run.__annotations__ = {parameter.name: parameter.annotation for parameter in (*own, *added)}
        run.__signature__ = inspect.Signature([*own, *added])  # type: ignore[attr-defined]
        return run

    return decorate


def missing(path: Path) -> Exception:
    """The error for an output whose folder does not exist."""
    from weightspace.net.errors import WeightspaceError

    return WeightspaceError(f"{path}: the folder {path.parent} does not exist; create it first")


def free(path: Path | None, endings: tuple[str, ...], force: bool) -> None:
    """Check that an output can be written, before any work is done for it. Raises `WeightspaceError`."""
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
    """The numbers of a comma-separated option, sorted, each once."""
    try:
        return sorted({float(word) for word in text.split(",")})
    except ValueError as error:
        raise typer.BadParameter(f"{text!r}; give numbers separated by commas: 0.1,0.2", param_hint=option) from error
