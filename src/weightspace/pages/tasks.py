"""The page of `weightspace tasks`."""

from __future__ import annotations

import plotly.graph_objects as go

from weightspace.codes.task_map import TaskMap
from weightspace.commands.tasks import TaskDistances
from weightspace.pages.page import Card, Figure, Page, Table, as_text
from weightspace.pages.style import AFTER, COLOURS, plot_of

__all__ = ["tasks_page"]


def tasks_page(done: TaskDistances, name: str = "Tasks", command: str = "") -> Page:
    """The page of task distances: the matrix, a map, and the nearest source of each target."""
    found = done.found
    far = [(found.distance(a, b).value, a, b) for a in found.names for b in found.names if a != b]
    near = min(far)
    headline = f"Nearest: {near[2]} costs {near[0]:,.0f} nats once {near[1]} is known"
    lead = (
        "The distance d(a -> b) = C(ab) - C(a) is what task b adds to the shortest code (labels and weights) of a. "
        "It is not symmetric: a large task tells more about a small one than the reverse. "
        + ("Each task has its own head. " if found.task_id else
           "Both tasks share one head, so telling them apart is part of the cost. ")
    )  # fmt: skip
    rows = []
    for k, target in enumerate(found.names):
        source = found.nearest(target)
        d = found.distance(source, target)
        rows.append(
            [
                target,
                f"{found.examples[k]:,}",
                f"{found.lengths[target]:,.0f}",
                source,
                f"{d.value:,.0f}",
                f"{d.relative:.0%}",
            ]
        )
    columns = ["task", "examples", "C, nats", "nearest source", "d, nats", "of C"]
    cards = [Card("Nearest pair", "", f"{near[0]:,.0f} nats", f"from {near[1]} to {near[2]}")]
    parts: list[Figure | Table] = [_plane(found), _matrix(found), Table("The nearest task", columns, rows)]
    return Page(name, headline, lead, "plain", command, cards, parts, done.remarks())


def _matrix(found: TaskMap) -> Figure:
    values = found.values.tolist()
    names = [as_text(n) for n in found.names]
    heat = go.Heatmap(
        z=values, x=names, y=names, colorscale=[[0, "#ffffff"], [1, AFTER]], colorbar={"title": "nats"},
        text=[[f"{v:,.0f}" for v in row] for row in values], texttemplate="%{text}",
        hovertemplate="%{y} to %{x}: %{z:,.0f} nats<extra></extra>",
    )  # fmt: skip
    plot = plot_of([heat], height=max(320, 120 + 42 * len(names)), legend=False)
    plot.update_yaxes(autorange="reversed", title_text="known")
    plot.update_xaxes(title_text="to learn")
    return Figure("Distances", "d(row -> column), in nats.", plot, wide=False)


def _plane(found: TaskMap) -> Figure:
    points = found.positions.tolist()
    dots = go.Scatter(
        x=[p[0] for p in points], y=[p[1] for p in points], mode="markers+text", text=[as_text(n) for n in found.names],
        textposition="top center", cliponaxis=False,
        marker={"size": 14, "color": [COLOURS[k % len(COLOURS)] for k in range(len(points))]},
    )  # fmt: skip
    plot = plot_of([dots], height=380, legend=False)
    plot.update_yaxes(scaleanchor="x")
    wide = max((abs(v) for p in points for v in p), default=1.0) or 1.0
    plot.update_xaxes(title_text="nats", range=[-1.35 * wide, 1.35 * wide])
    return Figure(
        "A map of the tasks",
        "Mean of the distances in both directions, as well as two dimensions can show them.",
        plot,
        wide=False,
    )
