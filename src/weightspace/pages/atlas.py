"""The pages of `weightspace atlas map` and `weightspace atlas query`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from weightspace.commands.atlas_asked import Queried
from weightspace.commands.atlas_map import Mapped, Space
from weightspace.commands.nearest import Nearest
from weightspace.pages.page import Card, Figure, Page, Table, as_text
from weightspace.pages.style import AFTER, BEFORE, COLOURS, INK, plot_of

__all__ = ["map_page", "query_page", "ranking_page"]

_NAMED = 25  # points that carry their names
_SHADES = 8  # colours of barriers


def map_page(done: Mapped, name: str = "Atlas", command: str = "") -> Page:
    """The page of an atlas: for each architecture the map, the tree, the distances, and a table of all members."""
    spaces = sorted(done.spaces, key=lambda space: -len(space.members))
    members, edges = sum(len(s.members) for s in spaces), sum(len(s.lineage.edges) for s in spaces)
    kin = sum(max(s.families.family) + 1 for s in spaces)
    headline = f"{members} networks in {_count(kin, 'family', 'families')}"
    lead = (
        "Near points are near in weight space, once units are numbered alike. A line leads from each network to those "
        "that were made of it."
    )
    cards = [Card("Networks", "", f"{members}"), Card("Families", "", f"{kin}", "of relatives, and single networks"),
             Card("Origins found", "", f"{edges}", "lines from a network to one that was made of it")]  # fmt: skip
    parts: list[Figure | Table] = []
    for space in spaces:
        which = f": {space.architecture}" if len(spaces) > 1 else ""
        parts += [_map(space, which), _tree(space, which), _matrix(space, which), _table(space, which)]
        parts += [_barriers(space, which)] if space.barriers else []
    said = [note for space in spaces for note in space.lineage.notes]
    said += [f"{as_text(member)} is left out: {as_text(why)}." for member, why in done.left.items()]
    return Page(name, headline, lead, "plain", command, cards, parts, said)


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _hover(space: Space) -> list[str]:
    lines = []
    for k, member in enumerate(space.members):
        told = [f"<b>{as_text(member.name)}</b>", f"family {space.families.family[k] + 1}"]
        told += [as_text(space.parents(k))] if space.parents(k) else []
        told += [
            f"{as_text(what)}: {values[k]:.4g}" for what, values in space.measures.items() if values[k] == values[k]
        ]
        lines.append("<br>".join(told))
    return lines


def _colours(space: Space) -> list[str]:
    return [COLOURS[family % len(COLOURS)] for family in space.families.family]


def _lines(space: Space, x: Sequence[float], y: Sequence[float]) -> go.Scatter:
    """The edges of the lineage between points."""
    xs: list[float | None] = []
    ys: list[float | None] = []
    for edge in space.lineage.edges:
        xs += [x[edge.parent], x[edge.child], None]
        ys += [y[edge.parent], y[edge.child], None]
    return go.Scatter(
        x=xs, y=ys, mode="lines", line={"color": "#9aa5b1", "width": 1}, hoverinfo="skip", showlegend=False
    )


def _risen(space: Space, x: Sequence[float], y: Sequence[float]) -> list[go.Scatter]:
    """Dotted lines between near networks, in the colour of the lower of their barriers; one trace for each shade."""
    known = [one for one in space.barriers if math.isfinite(one.lowest)]
    most = max((one.lowest for one in known), default=0.0) or 1.0
    some: dict[int, list[tuple[int, int]]] = {}
    for one in known:
        some.setdefault(min(_SHADES - 1, int(_SHADES * one.lowest / most)), []).append((one.first, one.second))
    found = []
    for shade, pairs in sorted(some.items()):
        colour = sample_colorscale([AFTER, "#e3efee"], shade / (_SHADES - 1))[0]
        xs = [at for a, b in pairs for at in (x[a], x[b], None)]
        ys = [at for a, b in pairs for at in (y[a], y[b], None)]
        style = {"color": colour, "width": 2, "dash": "dot"}
        found.append(go.Scatter(x=xs, y=ys, mode="lines", line=style, hoverinfo="skip", showlegend=False))
    return found


def _barriers(space: Space, which: str) -> Table:
    rows = []
    for one in sorted(space.barriers, key=lambda one: (one.lowest, one.first, one.second)):
        apart = float(space.lineage.distances.distances[one.first, one.second])
        numbers = (one.straight, one.aligned, apart, one.distance)
        names = [space.members[k].name for k in (one.first, one.second)]
        rows.append([*names, *("" if v != v else f"{v:.4g}" for v in numbers)])
    columns = ["network", "other", "barrier", "after alignment", "distance", "distance after alignment"]
    return Table(f"Barriers between near networks{which}", columns, rows, folded=len(rows) > 2 * _NAMED)


def _dots(space: Space, x: Sequence[float], y: Sequence[float], names: Sequence[str], place: str) -> go.Scatter:
    few = len(space.members) <= _NAMED
    return go.Scatter(
        x=list(x), y=list(y), mode="markers+text", cliponaxis=False, textposition=place, text=list(names),
        hovertext=_hover(space), hoverinfo="text", showlegend=False,
        marker={"size": 11 if few else 8, "color": _colours(space), "line": {"color": "white", "width": 1}},
    )  # fmt: skip


def _menu(space: Space, trace: int) -> list[dict[str, object]]:
    """The choice of what colours the points: families, or a measure."""
    if not space.measures:
        return []
    plain = {"marker.color": [_colours(space)], "marker.showscale": [False]}
    choices = [{"label": "colour: family", "method": "restyle", "args": [plain, [trace]]}]
    for what, values in space.measures.items():
        known = [v if math.isfinite(v) else None for v in values]
        args = {"marker.color": [known], "marker.colorscale": ["Viridis"], "marker.showscale": [True]}
        choices.append({"label": as_text(what)[:40], "method": "restyle", "args": [args, [trace]]})
    return [{"buttons": choices, "x": 1, "xanchor": "right", "y": 1.0, "yanchor": "bottom", "showactive": True}]


def _map(space: Space, which: str) -> Figure:
    points = space.map.points.tolist()
    x, y = [p[0] for p in points], [p[1] if len(p) > 1 else 0.0 for p in points]
    names = [""] * len(x)
    for family, middle in enumerate(space.families.middles[:_NAMED]):
        others = len(space.families.members(family)) - 1
        names[middle] = as_text(space.members[middle].name) + (f" (+{others})" if others else "")
    lines = [_lines(space, x, y), *_risen(space, x, y)]
    plot = plot_of([*lines, _dots(space, x, y, names, "top center")], height=520, legend=False)
    plot.update_layout(updatemenus=_menu(space, len(lines)), margin_t=50)
    plot.update_yaxes(scaleanchor="x", title_text="distance")
    plot.update_xaxes(title_text="distance")
    shown = sum(space.map.share[:2])
    caption = (
        f"Classical scaling of distances: the plane shows {shown:.0%} of their spread (stress {space.map.stress:.2f}). "
        "The middle of each family carries its name; point at a network for its origin and measures."
    )
    if space.barriers:
        caption += " Dotted lines join near networks: dark green without a barrier, pale where the loss rises most."
    return Figure(f"The map{as_text(which)}", caption, plot)


def _places(space: Space) -> tuple[list[float], list[float]]:
    """The tree laid out: how many steps from its root each network is, and a row of its own for every leaf."""
    n = len(space.members)
    children: dict[int, list[int]] = {}
    parent: dict[int, int] = {}
    for edge in space.lineage.edges:
        if edge.child not in parent:  # of an average, the first
            parent[edge.child] = edge.parent
            children.setdefault(edge.parent, []).append(edge.child)
    depth, row, free = [0.0] * n, [0.0] * n, 0.0
    order = {k: place for place, k in enumerate(space.families.order)}
    for root in sorted((k for k in range(n) if k not in parent), key=order.__getitem__):
        stack = [(root, False)]
        while stack:
            k, done = stack.pop()
            own = sorted(children.get(k, []), key=order.__getitem__)
            if done:
                row[k] = (row[own[0]] + row[own[-1]]) / 2
            elif own:
                stack += [(k, True), *((child, False) for child in reversed(own))]
                for child in own:
                    depth[child] = depth[k] + 1
            else:
                row[k], free = free, free + 1
    return depth, row


def _tree(space: Space, which: str) -> Figure:
    x, y = _places(space)
    rows = int(max(y)) + 1
    few = len(x) <= 4 * _NAMED
    dots = _dots(space, x, y, [as_text(m.name) if few else "" for m in space.members], "middle right")
    plot = plot_of([_lines(space, x, y), dots], height=max(260, 90 + 18 * rows), legend=False)
    right = max(x) + (1.5 if few else 0.5)
    plot.update_xaxes(title_text="steps from the root", dtick=1, range=[-0.3, right])
    plot.update_yaxes(visible=False, autorange="reversed")
    caption = "Who came from whom, from the weights alone; of an average, all parents. Alone: no relative was found."
    return Figure(f"The tree{as_text(which)}", caption, plot)


def _matrix(space: Space, which: str) -> Figure:
    order = list(space.families.order)
    names = [as_text(space.members[k].name) for k in order]
    values = space.lineage.distances.relative[order][:, order].tolist()
    at, shades = list(range(len(order))), [[0, AFTER], [0.1, "#6fb3ad"], [0.5, "#d5e8e6"], [1, "#ffffff"]]
    pairs = [[f"{a} | {b}" for b in names] for a in names]
    heat = go.Heatmap(
        z=values, x=at, y=at, colorscale=shades, zmin=0, zmax=1.42, colorbar={"title": "relative"}, customdata=pairs,
        hovertemplate="%{customdata}: %{z:.3g}<extra></extra>",
    )  # fmt: skip
    plot = plot_of([heat], height=min(760, max(340, 120 + 12 * len(names))), legend=False)
    few = len(names) <= 2 * _NAMED
    ticks = {"tickvals": list(range(len(names))), "ticktext": names} if few else {"showticklabels": False}
    plot.update_xaxes(**ticks, tickangle=-60)
    plot.update_yaxes(**ticks, autorange="reversed")
    caption = "|a - b| over the root mean square of |a| and |b|, families side by side; 1.41 for unrelated networks."
    return Figure(f"Distances{as_text(which)}", caption, plot, wide=len(names) > _NAMED)


def _table(space: Space, which: str) -> Table:
    columns = ["family", "network", "came from", "sure", "because", *space.measures]
    rows = []
    for k in space.families.order:
        why = next((edge.relation.why for edge in space.lineage.edges if edge.child == k), "")
        measured = ["" if values[k] != values[k] else f"{values[k]:.4g}" for values in space.measures.values()]
        rows.append(
            [str(space.families.family[k] + 1), space.members[k].name, space.parents(k), space.sure(k), why, *measured]
        )
    return Table(f"All networks{which}", columns, rows, folded=len(rows) > 2 * _NAMED)


def query_page(done: Queried, name: str = "Query", command: str = "") -> Page:
    """The page of a query: the ranking with its errors, and what it cost."""
    lead = "All networks saw the same examples; the worse half was left out each time, and the others saw more."
    return ranking_page(done, f"Best for {done.asked_with}: {done.answer.best}", lead, name, command)


def ranking_page(done: Queried | Nearest, headline: str, lead: str, name: str, command: str) -> Page:
    """The page of a ranking: how good each is, with errors, and what it cost."""
    answer = done.answer
    rows = answer.found.ranking
    best, error = answer.value(rows[0])
    tied = len(answer.tied) - 1
    cards = [Card(f"Its {answer.by}", "", f"{best:.4g}", f"± {error:.2g}"),
             Card("Tied with it", "", f"{tied}", "others that cannot be told from the best"),
             Card("Cost", "", f"{answer.found.share:.0%}", "of asking all networks on all examples")]  # fmt: skip
    columns = ["", "network", answer.by, "±", "behind the best", "±", "examples"]
    cells = []
    for place, row in enumerate(rows, 1):
        numbers = [f"{x:.4g}" for x in (*answer.value(row), row.behind, row.behind_error)]
        cells.append([f"{place}{' =' * row.tied}", row.name, *numbers, str(row.examples)])
    table = Table("The ranking", columns, cells, folded=len(rows) > 2 * _NAMED)
    return Page(name, headline, lead, "plain", command, cards, [_ranked(done), table], done.remarks())


def _ranked(done: Queried | Nearest) -> Figure:
    rows = done.answer.found.ranking[:60]
    values = [done.answer.value(row) for row in rows]
    dots = go.Scatter(
        x=[value for value, _ in values], y=list(range(len(rows))), mode="markers", hoverinfo="text",
        hovertext=[f"{as_text(row.name)}: {value:.4g} ± {error:.2g}, {row.examples} examples"
                   for row, (value, error) in zip(rows, values, strict=True)],
        error_x={"type": "data", "array": [error for _, error in values], "color": "#9aa5b1"},
        marker={"size": 9, "color": [AFTER if row.tied else BEFORE for row in rows]},
    )  # fmt: skip
    plot = plot_of([dots], height=max(260, 90 + 20 * len(rows)), legend=False)
    names = [as_text(row.name) for row in rows]
    plot.update_yaxes(autorange="reversed", tickvals=list(range(len(rows))), ticktext=names, tickfont={"color": INK})
    plot.update_xaxes(title_text=done.answer.by)
    more = "" if len(rows) == len(done.answer.found.ranking) else " The best 60 are shown."
    caption = (
        f"With standard errors; green cannot be told from the best. Networks left out early saw fewer examples.{more}"
    )
    return Figure("How good each is", caption, plot)
