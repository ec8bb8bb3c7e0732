"""The commands `weightspace atlas map`, `query`, `nearest`, `between` and `merge`."""

from __future__ import annotations

import math
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from weightspace.cli.atlas import Name, Objects, Where, app, opened_atlas
from weightspace.cli.options import Checkpoint, Out, Shared, free, shared
from weightspace.cli.show import answer, progress
from weightspace.cli.words import console, make_table, printable, say_notes

if TYPE_CHECKING:
    from rich.table import Table

    from weightspace.atlas.nearby import Nearby
    from weightspace.commands.atlas_asked import Averaged, Joined, Queried
    from weightspace.commands.atlas_map import Mapped, Space
    from weightspace.commands.nearest import Nearest

__all__ = ["app", "between", "draw_map", "engine_of", "merge", "nearest", "query", "say_ranking"]

_SHOWN = 40  # rows of a table


class By(StrEnum):
    """What members are ranked by."""

    LOSS = "loss"
    ACCURACY = "accuracy"
    PERPLEXITY = "perplexity"
    LOGME = "logme"
    TASK2VEC = "task2vec"
    CODES = "codes"
    WEIGHTS = "weights"


Tag = Annotated[str | None, typer.Option(help="Only networks with this tag.")]
Engine = Annotated[str, typer.Option("--jobs", help="Processes that work side by side: a number, or tcp://host:port of "
                                     "a Dask scheduler.")]  # fmt: skip


def engine_of(text: str) -> int | str:
    """What --jobs says: a number of processes, or an address."""
    if text.startswith("tcp://"):
        return text
    if not text.isdecimal() or int(text) < 1:
        raise typer.BadParameter(f"--jobs {text}: give a number of processes, or tcp://host:port")
    return int(text)


def _say_map(found: Mapped) -> None:
    for space in found.spaces:
        _say_space(space)
    for name, reason in list(found.left.items())[:_SHOWN]:
        console().print(f"Left out: {printable(name)}: {printable(reason)}", style="yellow", soft_wrap=True)


def _say_space(space: Space) -> None:
    out = console()
    out.print(f"{len(space.members)} networks of {printable(space.architecture)}", style="bold", soft_wrap=True)
    table = make_table("family", "name", "came from", "sure", "because")
    order = space.families.order
    for k in order[:_SHOWN]:
        why = next((edge.relation.why for edge in space.lineage.edges if edge.child == k), "")
        cells = [str(space.families.family[k] + 1), space.members[k].name, space.parents(k), space.sure(k), why]
        table.add_row(*(printable(cell) or "-" for cell in cells))
    out.print(table)
    if len(order) > _SHOWN:
        out.print(f".. and {len(order) - _SHOWN} more; see --json or --report.")
    if space.barriers:
        out.print(_barriers(space))
    say_notes(out, [*space.lineage.notes])


def _barriers(space: Space) -> Table:
    table = make_table("from", "to", "barrier", "after alignment")
    for one in sorted(space.barriers, key=lambda one: one.lowest)[:_SHOWN]:
        names = space.members[one.first].name, space.members[one.second].name
        heights = ("-" if x != x else f"{x:.4g}" for x in (one.straight, one.aligned))
        table.add_row(*map(printable, (*names, *heights)))
    return table


def say_ranking(found: Queried | Nearest) -> None:
    """Print a ranking of networks with its errors."""
    answered, out = found.answer, console()
    table = make_table("", "network", answered.by, "±", "behind", "±", "examples")
    for place, row in enumerate(answered.found.ranking[:_SHOWN], 1):
        numbers = (*answered.value(row), row.behind, row.behind_error)
        cells = [f"{place}{' =' * row.tied}", row.name, *(f"{x:.4g}" for x in numbers), str(row.examples)]
        table.add_row(*map(printable, cells))
    out.print(table)
    for text in found.remarks():
        out.print(printable(text), soft_wrap=True)


def _say_nearest(found: Nearby) -> None:
    table = make_table("network", "distance up to symmetry", "at least", "as stored")
    for row in found.neighbours:
        table.add_row(printable(row.name), f"{row.distance:.4g}", f"{row.modulo.lower:.4g}", f"{row.stored:.4g}")
    console().print(table)
    console().print(f"{found.aligned} of {found.members} networks were aligned.")
    for name, reason in found.left_out.items():
        console().print(f"Left out: {printable(name)}: {printable(reason)}", style="yellow", soft_wrap=True)


def _say_between(found: Joined) -> None:
    names = [found.ends[0], *found.way.names, found.ends[1]]
    table = make_table("from", "to", "barrier")
    for one, other, height in zip(names, names[1:], found.way.barriers, strict=False):
        table.add_row(printable(one), printable(other), f"{height:.4g}")
    out = console()
    out.print(table)
    out.print(f"Highest barrier {found.way.highest:.4g}; on the straight line {found.way.direct:.4g}.")
    say_notes(out, found.notes)


def _say_merge(done: Averaged) -> None:
    out, found = console(), done.found
    out.print(f"Averaged: {printable(', '.join(found.kept))}.", soft_wrap=True)
    refused = [f"{name} ({loss:.4g})" for name, loss in found.refused.items() if not math.isnan(loss)]
    if refused:
        out.print(f"Not kept, for the loss would not fall: {printable(', '.join(refused))}.", soft_wrap=True)
    for name, reason in found.left_out.items():
        out.print(f"Left out: {printable(name)}: {printable(reason)}", style="yellow", soft_wrap=True)
    out.print(f"Loss on other examples: {done.loss:.4g}; of {printable(found.kept[0])} alone {done.best:.4g}.")
    out.print(f"Wrote {printable(str(done.out))}.", soft_wrap=True)
    say_notes(out, done.notes)


@shared("data arch report seed")
def draw_map(
    where: Where = "atlas",
    tag: Tag = None,
    objects: Objects = None,
    stored: Annotated[bool, typer.Option("--stored", help="Compare networks as they are stored: faster, but renumbered "
                                         "relatives are not found.")] = False,
    near: Annotated[int, typer.Option("--barriers", min=0, help="Measure the loss barriers between each network and so "
                                      "many nearest ones, on --data.")] = 0,
    jobs: Engine = "1",
    *,
    common: Shared,
) -> None:  # fmt: skip
    """Families, who came from whom, and a map: how the networks in the atlas lie to one another."""
    if near and common.data is None:
        raise typer.BadParameter("barriers of which loss? give --data, examples with labels")
    if common.data is not None and not near:
        raise typer.BadParameter("what is to be measured on --data? give --barriers, how many near networks of each")
    engine = engine_of(jobs)
    with progress() as step, opened_atlas(where, objects) as atlas:
        from weightspace.commands import atlas_map, last_map

        asked = None if common.data is None else atlas_map.Asked(near, common.data, engine)
        found = atlas_map.mapped(atlas, tag, not stored, asked, settings=common.settings(step))
        last_map.keep(atlas, found)

    from weightspace.pages.atlas import map_page

    answer("atlas.map", found, _say_map, common, map_page)


@shared("data arch report seed")
def query(
    where: Where = "atlas",
    by: Annotated[By, typer.Option(help="What is measured; logme is the worth of the features below the last layer for "
                                   "any labels; task2vec and codes are distances from what each has learnt (atlas add "
                                   "--learnt), weights that from a network trained a little.")] = By.LOSS,
    try_steps: Annotated[int, typer.Option("--try", min=0, help="Fine-tune each for so many steps first.")] = 0,
    budget: Annotated[float, typer.Option(min=0.001, max=0.999, help="The share of all losses to compute.")] = 0.2,
    tag: Tag = None,
    objects: Objects = None,
    jobs: Engine = "1",
    *,
    common: Shared,
) -> None:  # fmt: skip
    """Which network is best for these data? Asked by halving: the worse half of the networks is left out each time."""
    if common.data is None:
        raise typer.BadParameter("asked with what? give --data, examples with labels")
    engine = engine_of(jobs)
    with progress() as step, opened_atlas(where, objects) as atlas:
        from weightspace.commands import atlas_asked

        found = atlas_asked.query(
            atlas, common.data, by.value, steps=try_steps, tag=tag, budget=budget, engine=engine,
            settings=common.settings(step),
        )  # fmt: skip

    from weightspace.pages.atlas import query_page

    answer("atlas.query", found, say_ranking, common, query_page)


@shared("arch weights")
def nearest(
    checkpoint: Checkpoint,
    where: Where = "atlas",
    count: Annotated[int, typer.Option("-k", "--count", min=1, help="How many networks.")] = 5,
    objects: Objects = None,
    *,
    common: Shared,
) -> None:
    """The networks in the atlas that are nearest to this one, up to symmetry."""
    with progress() as step, opened_atlas(where, objects) as atlas:
        from weightspace.commands import atlas_asked

        found = atlas_asked.nearest_to(atlas, checkpoint, count, settings=common.settings(step))
    answer("atlas.nearest", found, _say_nearest, common)


@shared("data arch seed")
def between(
    first: Name,
    second: Name,
    where: Where = "atlas",
    tag: Tag = None,
    objects: Objects = None,
    *,
    common: Shared,
) -> None:
    """A way from one network to another over networks in the atlas, with the lowest barriers."""
    if common.data is None:
        raise typer.BadParameter("barriers of which loss? give --data, examples with labels")
    with progress() as step, opened_atlas(where, objects) as atlas:
        from weightspace.commands import atlas_asked

        found = atlas_asked.between_members(atlas, first, second, common.data, tag, settings=common.settings(step))
    answer("atlas.between", found, _say_between, common)


@shared("data arch seed")
def merge(
    out: Out,
    names: Annotated[list[str] | None, typer.Argument(help="Names of networks in the atlas.")] = None,
    where: Where = "atlas",
    tag: Annotated[str | None, typer.Option(help="All networks with this tag.")] = None,
    objects: Objects = None,
    *,
    common: Shared,
) -> None:
    """Average networks up to symmetry, greedily: one stays in the average if the loss on held-out examples falls."""
    if common.data is None:
        raise typer.BadParameter("averaged for which data? give --data, examples with labels")
    free(out, (".safetensors",), common.force)
    with progress() as step, opened_atlas(where, objects) as atlas:
        from weightspace.commands import atlas_asked

        done = atlas_asked.merge(atlas, names or [], common.data, out, tag, settings=common.settings(step))
    answer("atlas.merge", done, _say_merge, common)


for name, command in {"map": draw_map, "query": query, "nearest": nearest, "between": between, "merge": merge}.items():
    app.command(name)(command)
