"""Pages of what `inform`, `tasks` and `certify` found."""

from __future__ import annotations

import math

import plotly.graph_objects as go

from weightspace.description import Information
from weightspace.inquiry import Apart, Certified, Informed
from weightspace.page import Card, Figure, Page, Table, as_text
from weightspace.report import AFTER, BEFORE, COLOURS, INK, plot_of
from weightspace.structure import StructureFunction
from weightspace.transfer import TaskMap

__all__ = ["certified_page", "informed_page", "structure_figures", "tasks_page"]

_NATS = math.log(2)
_LAYERS = 16


# ------------------------------------------------------------------ inform


def informed_page(done: Informed, name: str = "Inform", command: str = "") -> Page:
    """How many nats the weights hold, between which bounds, in which layers, and what for."""
    first = done.found[0]
    bits = first.value / first.examples / _NATS
    headline = f"The weights hold {first.value:,.0f} nats about {first.examples:,} examples: {bits:.2g} bits each"
    lead = (
        f"{done.name}, on {done.data_name}. A weight that may be anything without the loss noticing holds nothing; one "
        "that must be just so holds much. The information is what it costs to write the weights down as exactly as "
        "the examples ask for, and no more."
    )
    cards = [
        Card("Information in the weights", "", f"{i.value:,.0f} ± {i.error:.2g} nats", i.method) for i in done.found
    ]
    known = f"{first.dimension:,.0f}"
    cards.append(Card("Weights that are known", "", known, f"effective dimension; there are {done.weights:,}"))
    best = done.shortest
    if best is not None and done.labels:
        cards.append(
            Card(
                "Code of the labels", f"{done.labels:,.0f}", f"{best.length:,.0f}", "nats; alone, and with the network"
            )
        )
    parts: list[Figure | Table] = [_bracket(i) for i in done.found if i.bracket is not None]
    parts += [_layers(i) for i in done.found if i.layers]
    if done.structure is not None:
        parts += structure_figures(done.structure)
    return Page(name, headline, lead, "plain", command, cards, parts, done.remarks())


def _bracket(found: Information) -> Figure:
    assert found.bracket is not None
    b = found.bracket
    rows = [
        ("low rank: at least", b.lower),
        ("estimate", b.value),
        ("tensors apart", b.block),
        ("weights apart", b.diagonal),
    ]
    shown = [(label, value) for label, value in rows if value is not None]
    bars = go.Bar(
        x=[value for _, value in shown], y=[label for label, _ in shown], orientation="h",
        marker_color=[AFTER if label == "estimate" else "#b8c0c8" for label, _ in shown],
        text=[f"{value:,.0f}" + f" ± {b.error:.2g}" * (label == "estimate") for label, value in shown],
        textposition="outside", cliponaxis=False,
    )  # fmt: skip
    plot = plot_of([bars], height=230, legend=False)
    plot.update_yaxes(autorange="reversed", showgrid=False)
    plot.update_xaxes(title_text="nats that the network adds to the code", range=[0, 1.15 * max(v for _, v in shown)])
    caption = (
        "What the curvature says the network costs to write down, (C - L) / beta: from a part of it, which is below, "
        "from all of it, and from codes that know less of how weights depend on each other."
    )
    return Figure("Between which bounds", caption, plot, wide=False)


def _layers(found: Information) -> Figure:
    rows = sorted(found.layers.items(), key=lambda item: -item[1])[:_LAYERS]
    names, values = [as_text(n) for n, _ in rows], [v for _, v in rows]
    bars = go.Bar(x=values, y=names, orientation="h", marker_color=AFTER, hovertemplate="%{x:,.1f} nats<extra></extra>")
    plot = plot_of([bars], height=max(230, 60 + 24 * len(rows)), legend=False)
    plot.update_yaxes(autorange="reversed", showgrid=False)
    plot.update_xaxes(title_text="nats")
    more = f" The {_LAYERS} largest of {len(found.layers)}." if len(found.layers) > _LAYERS else ""
    return Figure(f"Where it is kept ({found.method})", f"Information of every tensor.{more}", plot, wide=False)


def structure_figures(found: StructureFunction) -> list[Figure]:
    """S(t) and K(beta)."""
    t, loss = zip(*found.vertices, strict=True)
    traces = [
        go.Scatter(x=[r.kl for r in found.runs], y=[r.loss for r in found.runs], name="codes found", mode="markers",
                   marker={"size": 6, "color": "#b8c0c8"}),
        go.Scatter(x=list(t), y=list(loss), name="S(t), the best of them", mode="lines+markers",
                   line={"color": AFTER, "width": 3}),
    ]  # fmt: skip
    length, known = found.length(), found.complexity
    traces.append(go.Scatter(x=[0, length], y=[length, 0], name="a nat for a nat, through C(D)", mode="lines",
                             line={"color": INK, "dash": "dot"}))  # fmt: skip
    curve = plot_of(traces, height=380)
    top = max(1.0, found.vertices[0][1])
    curve.update_xaxes(title_text="nats of network", range=[0, 1.05 * max(max(t), length)])
    curve.update_yaxes(title_text="nats of loss that are left", range=[0, 1.05 * top])
    caption = (
        f"How little loss is left for how long a network. The dotted line touches at the structure of the task, "
        f"{known:,.0f} nats: from there on a nat of network saves less than a nat of loss, and is spent on learning by "
        f"heart. C(D) = {length:,.0f} nats."
    )
    betas = found.betas
    used = go.Scatter(
        x=betas, y=[found.information(b) for b in betas], mode="lines+markers", line={"color": BEFORE, "width": 3}
    )
    steps = plot_of([used], legend=False)
    steps.update_xaxes(title_text="beta, the price of a nat of network", type="log")
    steps.update_yaxes(title_text="nats of network that pay", rangemode="tozero")
    if found.collapse:
        steps.add_vline(x=found.collapse, line={"color": INK, "dash": "dash"})
    beside = f" Above {found.collapse:.2g} (dashed) nothing pays any more." if found.collapse else ""
    return [
        Figure("The structure of the task", caption, curve),
        Figure("What pays at which price", f"Information in the shortest code.{beside}", steps, wide=False),
    ]


# ------------------------------------------------------------------ tasks


def tasks_page(done: Apart, name: str = "Tasks", command: str = "") -> Page:
    """The matrix, the plane, and which source is nearest to each target."""
    found = done.found
    far = [(found.distance(a, b).value, a, b) for a in found.names for b in found.names if a != b]
    near = min(far)
    headline = f"Nearest: {near[2]} costs {near[0]:,.0f} nats more once {near[1]} is known"
    lead = (
        "How much is left to write down of one task when another is known, labels and network together: d(a -> b) = "
        "C(ab) - C(a). It is not symmetric: a large task says more of a small one than the other way round. "
        + ("Each task has its own head. " if found.task_id else
           "One head serves both tasks, so telling them apart is part of the cost. ")
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
    plot.update_xaxes(title_text="to be learnt")
    return Figure("What is left to learn", "d(row -> column), in nats.", plot, wide=False)


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
        "A map of the tasks", "Distances there and back, averaged, as well as a plane can show them.", plot, wide=False
    )


# ------------------------------------------------------------------ certify


def certified_page(done: Certified, name: str = "Certify", command: str = "") -> Page:
    """The promise, what it rests on, and what other inequalities would have promised."""
    found = done.found
    void = found.bound >= 1 - 1 / found.classes
    headline = (
        "Nothing can be promised here"
        if void
        else f"At most {found.bound:.1%} errors on new examples, with {1 - found.delta:.0%} certainty"
    )
    verdict = f"{found.verdict[0].upper()}{found.verdict[1:]}."
    lead = f"{done.name}, on {found.examples:,} examples of {done.data_name}. {verdict}"
    cards = [
        Card("Certificate", "", f"{found.bound:.2%}", f"errors, with probability {1 - found.delta:g}"),
        Card("Error on the examples", "", f"{found.error:.2%}", f"mean of {found.draws:,} drawn networks"),
        Card("KL(Q | P)", "", f"{found.nats:,.3g} nats", "what the examples taught beyond the prior"),
    ]
    if found.test_error is not None:
        cards.append(Card("Error on test examples", "", f"{found.test_error:.2%}", "of the same networks"))
    rows = [
        [f.name, f"{f.bound:.2%}", "certificate" if f.certificate else "no certificate", f.note] for f in found.families
    ]
    table = Table("The same by other inequalities", ["inequality", "bound", "", "note"], rows)
    return Page(
        name, headline, lead, "plain" if void else "good", command, cards, [_families(done), table], done.remarks()
    )


def _families(done: Certified) -> Figure:
    found = done.found
    rows = [*found.families]
    bars = go.Bar(
        x=[f.bound for f in rows], y=[as_text(f.name) for f in rows], orientation="h",
        marker_color=[AFTER if f.name == found.family else "#8fb8b4" if f.certificate else "#d9dde1" for f in rows],
        text=[f"{f.bound:.2%}" for f in rows], textposition="outside", cliponaxis=False,
    )  # fmt: skip
    plot = plot_of([bars], height=90 + 32 * len(rows), legend=False)
    top = max(f.bound for f in rows)
    plot.update_yaxes(autorange="reversed", showgrid=False)
    plot.update_xaxes(title_text="error on new examples, at most", tickformat=".1%", range=[0, 1.18 * top])
    lines = [(found.error, BEFORE), *([(found.test_error, INK)] if found.test_error is not None else [])]
    for x, colour in lines:
        plot.add_vline(x=x, line={"color": colour, "dash": "dash"})
    caption = "Orange: the error on the examples. Dark: on test examples. Grey bars are estimates and promise nothing."
    return Figure("How much is promised", caption, plot)
