"""The command `weightspace merge`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weightspace.cli.options import Shared, free, missing, shared
from weightspace.cli.show import answer, opened, progress
from weightspace.cli.words import console, printable, say_notes, score_table

if TYPE_CHECKING:
    from weightspace.commands.merge import Merged
    from weightspace.commands.merge_parents import Asked
    from weightspace.commands.merge_recipe import MergedFiles
    from weightspace.merging.recipe import Recipe

__all__ = ["merge", "say_merge", "say_recipe"]

_RECIPE, _PARENTS = "Recipe", "Parents that do not match"
_SIZES = {"KB": 10**3, "MB": 10**6, "GB": 10**9}
_METHODS = (
    "linear slerp nuslerp multislerp karcher task_arithmetic ties dare_linear dare_ties della_linear della breadcrumbs "
    "breadcrumbs_ties sce model_stock nearswap arcee_fusion passthrough consensus orthogonal iso_c iso_cts tsv_m "
    "knots_ties fisher regmean"
)
_DTYPES = "float32 bfloat16 float16 float64"


def say_merge(done: Merged) -> None:
    """Print the answer of `merge` without a recipe."""
    out = console()
    if done.scores():
        out.print(score_table(done.scores(), done.examples))
    say_notes(out, done.notes)
    out.print(f"Written: {printable(done.out)}", soft_wrap=True)


def say_recipe(done: MergedFiles) -> None:
    """Print the answer of `merge` with a recipe."""
    out = console()
    for line in done.lines:
        out.print(printable(line), soft_wrap=True)
    if done.aligned:
        out.print(f"Aligned before: {printable(', '.join(done.aligned))}.", soft_wrap=True)
    if done.tuned:
        out.print(f"Found on data: {printable(done.tuned)}.", soft_wrap=True)
    if done.scores:
        out.print(score_table(done.scores, done.examples))
    say_notes(out, done.notes)
    out.print(f"Written: {printable(done.out)}", soft_wrap=True)


@shared("arch weights trust_code data example limit report seed")
def merge(
    checkpoints: Annotated[
        list[Path],
        typer.Argument(help="Networks of one architecture, or LoRA adapters; or one recipe of mergekit (.yml)."),
    ],
    out: Annotated[
        Path, typer.Option("-o", "--out", help="The file to write (.safetensors), or a folder that loads like theirs.")
    ],
    how: Annotated[
        str | None,
        typer.Option(
            "--method",
            rich_help_panel=_RECIPE,
            help=f"mean (aligned modulo symmetry; the default, needs the architecture), or one of {_METHODS}.",
        ),
    ] = None,
    base: Annotated[
        Path | None,
        typer.Option(rich_help_panel=_RECIPE, help="The network that they were trained from, for task vectors."),
    ] = None,
    weight: Annotated[
        list[str] | None,
        typer.Option(
            rich_help_panel=_RECIPE,
            help="One for each network, in their order: 0.3, or 0.1:0.9 from the first layer to the last, or by part "
            "of the tensor's name, mlp=0.3,*=0.5.",
        ),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--set", rich_help_panel=_RECIPE, help="NAME=VALUE of the method, VALUE as above: density=0.2."),
    ] = None,
    align: Annotated[
        str,
        typer.Option(
            rich_help_panel=_RECIPE,
            help="never, always, or auto: with --arch, networks that are not of one origin are aligned first.",
        ),
    ] = "auto",
    tune: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=_RECIPE,
            help="Find the best value of an option (scale), of weights, or of a weight for every network and tensor by "
            "the entropy of the outputs (entropy), on half of --data.",
        ),
    ] = None,
    rank: Annotated[
        int | None, typer.Option(min=1, rich_help_panel=_RECIPE, help="Cut a merged adapter to this rank.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(rich_help_panel=_RECIPE, help=f"What to write: {_DTYPES}; else as the first.")
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=_PARENTS,
            help="The vocabulary of the result, where theirs differ: union, first, base, or a folder.",
        ),
    ] = None,
    extra: Annotated[
        str,
        typer.Option(rich_help_panel=_PARENTS, help="Tensors that only some have: copy, merge, leave or refuse."),
    ] = "copy",
    heads: Annotated[
        str,
        typer.Option(rich_help_panel=_PARENTS, help="Heads of other shapes: keep all, the first, leave, or refuse."),
    ] = "keep",
    copy_code: Annotated[
        bool, typer.Option("--copy-code", rich_help_panel=_PARENTS, help="Copy the Python files of a folder too.")
    ] = False,
    arch_b: Annotated[
        list[str] | None,
        typer.Option(
            "--arch-b",
            help="How the others are made, where their width is not that of the first: once for all of them, or once "
            "for each, in their order. The narrower ones are widened; needs --data.",
        ),
    ] = None,
    width: Annotated[
        str,
        typer.Option(
            help="With --arch-b, the width of the mean: largest, smallest, or one of the CHECKPOINTS, whose width it "
            "gets. A smaller network is fitted to the outputs of the wide mean on --data, and is worse than that."
        ),
    ] = "largest",
    shard_size: Annotated[str, typer.Option(help="The most that one file holds: 5GB, 500MB.")] = "5GB",
    *,
    common: Shared,
) -> None:
    """Merge networks into one of the same size: aligned and averaged, or by --method, streamed from files to files."""
    given = {"--base": base, "--weight": weight, "--set": option, "--tune": tune, "--rank": rank, "--dtype": dtype}
    given |= {"--tokenizer": tokenizer, "--copy-code": copy_code}
    widths = {"--arch-b": arch_b, "--width": None if width == "largest" else width}
    unlike = _unlike(extra, heads, align)
    if len(checkpoints) == 1 and checkpoints[0].suffix in (".yml", ".yaml"):
        _refuse(given | widths | {"--method": how, "--copy-code": None}, "is written in the recipe")
        _refuse(unlike, "does not go with a recipe of mergekit")
        _free_place(out, common)
        shown = _asked(common, (extra, heads), code=copy_code, shard=_bytes(shard_size))
        _by_file(checkpoints[0], out, shown, common)
        return
    low = _adapters(checkpoints)
    if how is None and low:
        how = "linear"
    if how in (None, "mean"):
        _refuse(given, "goes with a recipe; name it, as --method linear")
        _refuse({**unlike, "--align": align == "never"}, "goes with a recipe, as --method linear")
        _mean(checkpoints, out, common, arch_b, width)
        return
    _refuse(widths, "goes with the mean of several widths; leave --method out")
    if low and base is None:
        ours = {"--weight", "--set", "--rank"}
        others = {name: value for name, value in given.items() if name not in ours} | unlike
        _refuse(others | {"--arch": common.arch, "--data": common.data}, "is for networks; with adapters give --base")
    _free_place(out, common)
    recipe = _recipe(str(how), weight, option, dtype, common.seed)
    with_what = {"align": align, "tokenizer": tokenizer, "tune": tune}
    asked = _asked(common, (extra, heads), base=base, rank=rank, code=copy_code, shard=_bytes(shard_size), **with_what)
    _by_recipe(checkpoints, out, recipe, asked, common)


def _mean(checkpoints: list[Path], out: Path, common: Shared, arch_b: list[str] | None, width: str) -> None:
    if len(checkpoints) < 2:
        raise typer.BadParameter("give two or more networks to merge.", param_hint="CHECKPOINTS")
    if width != "largest" and not arch_b:
        raise typer.BadParameter("the networks have one width; give --arch-b for several", param_hint="--width")
    if arch_b or not all((path / "config.json").is_file() for path in checkpoints):
        free(out, (".safetensors",), common.force)
    else:
        _free_place(out, common)
    if arch_b:
        done = _of_widths(checkpoints, arch_b, out, width, common)
    else:
        done = _of_one_width(checkpoints, out, common)
    from weightspace.pages.merge import merge_page

    answer("merge", done, say_merge, common, merge_page)


def _of_one_width(checkpoints: list[Path], out: Path, common: Shared) -> Merged:
    from weightspace.checkpoint.architecture import ArchitectureError
    from weightspace.net.errors import ArchitectureMismatch

    try:
        with opened(checkpoints, common) as space:
            from weightspace.commands.merge import merge as run

            return run(space, checkpoints, out)
    except ArchitectureError as error:
        if not isinstance(error.__cause__, ArchitectureMismatch):
            raise
        raise ArchitectureError(f"{error} For networks of several widths give --arch-b.") from error


def _of_widths(checkpoints: list[Path], arch_b: list[str], out: Path, width: str, common: Shared) -> Merged:
    from weightspace.commands.merge_widths import merge_widths

    with progress() as step:
        return merge_widths(
            checkpoints, arch_b, out, width=width, data=common.data, limit=common.limit, settings=common.settings(step)
        )  # fmt: skip


def _by_recipe(checkpoints: list[Path], out: Path, recipe: Recipe, asked: Asked, common: Shared) -> None:
    from weightspace.commands.merge_recipe import merge_by_recipe

    with progress() as step:
        done = merge_by_recipe(checkpoints, out, recipe, asked, common.settings(step))
    from weightspace.pages.merge_recipe import recipe_page

    answer("merge.recipe", done, say_recipe, common, recipe_page)


def _by_file(path: Path, out: Path, asked: Asked, common: Shared) -> None:
    from weightspace.commands.merge_recipe import merge_by_file

    with progress() as step:
        done = merge_by_file(path, out, asked, common.settings(step))
    from weightspace.pages.merge_recipe import recipe_page

    answer("merge.recipe", done, say_recipe, common, recipe_page)


def _unlike(extra: str, heads: str, align: str) -> dict[str, str]:
    """The options about parents that are not what they are by default. Raises `BadParameter` for unknown ones."""
    found = {
        "--extra": _choice("--extra", extra, "copy merge leave refuse"),
        "--heads": _choice("--heads", heads, "keep first leave refuse"),
        "--align": _choice("--align", align, "auto never always"),
    }
    return {option: value for option, value in found.items() if value not in ("copy", "keep", "auto")}


def _refuse(given: Mapping[str, object], why: str) -> None:
    for option, value in given.items():
        if value:
            raise typer.BadParameter(f"{why}.", param_hint=option)


def _adapters(paths: list[Path]) -> bool:
    from weightspace.checkpoint import adapter

    return all(path.is_dir() and adapter.describes(path) for path in paths)


def _free_place(out: Path, common: Shared) -> None:
    """Check that a file or a folder can be written. Raises `WeightspaceError`."""
    from weightspace.net.errors import WeightspaceError

    if out.suffix == ".safetensors" and not out.is_dir():
        free(out, (".safetensors",), common.force)
    elif out.is_file():
        raise WeightspaceError(f"{out} is a file; give a folder, or a name that ends in .safetensors")
    elif not out.parent.is_dir():
        raise missing(out)


def _bytes(text: str) -> int:
    number, unit = text[:-2], text[-2:].upper()
    try:
        size = float(number) * _SIZES[unit]
    except (ValueError, KeyError):
        size = 0
    if not 1 <= size < 1e18:
        raise typer.BadParameter(f"{text!r}; give a size such as 5GB or 500MB", param_hint="--shard-size")
    return int(size)


def _recipe(method: str, weight: list[str] | None, option: list[str] | None, dtype: str | None, seed: int) -> Recipe:
    import torch

    from weightspace.merging.recipe import Recipe
    from weightspace.merging.schedule import schedule_of

    if dtype is not None and dtype not in _DTYPES.split():
        raise typer.BadParameter(f"{dtype!r}; choose one of {_DTYPES}", param_hint="--dtype")
    options = {}
    for text in option or []:
        name, equals, value = text.partition("=")
        if not equals or name in options:
            raise typer.BadParameter(f"{text!r}; give NAME=VALUE, each name once", param_hint="--set")
        options[name] = schedule_of(value)
    weights = [schedule_of(text) for text in weight] if weight else None
    return Recipe(method, weights, options, seed, None if dtype is None else getattr(torch, dtype))


def _asked(common: Shared, rules: tuple[str, str], **asked: Any) -> Asked:
    from weightspace.commands.merge_parents import Asked
    from weightspace.merging.plan import Rules

    extra, heads = rules
    given = {"data": common.data, "example": common.example, "limit": common.limit, "curves": bool(common.report)}
    return Asked(rules=Rules(extra, heads), **given, **asked)  # type: ignore[arg-type]


def _choice(option: str, value: str, choices: str) -> str:
    if value not in choices.split():
        raise typer.BadParameter(f"{value!r}; choose one of {choices}", param_hint=option)
    return value
