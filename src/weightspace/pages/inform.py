"""The page of `weightspace inform`."""

from __future__ import annotations

import math

import plotly.graph_objects as go

from weightspace.codes.structure_functions import StructureFunction
from weightspace.codes.weight_information import Information
from weightspace.commands.inform import Informed
from weightspace.pages.page import Card, Figure, Page, Table, as_text
from weightspace.pages.style import AFTER, BEFORE, INK, plot_of

__all__ = ["inform_page", "structure_figures"]


_NATS = math.log(2)
_LAYERS = 16


def inform_page(done: Informed, name: str = "Inform", command: str = "") -> Page:
    """The page of the information in the weights: its value, bounds, layers, and the structure of the task."""
    first = done.found[0]
    bits = first.value / first.examples / _NATS
    headline = f"The weights hold {first.value:,.0f} nats about {first.examples:,} examples: {bits:.2g} bits each"
    lead = (
        f"{done.name}, on {done.data_name}. A weight holds little information if the loss barely changes when it does, "
        "and much if it must be exact. The information is the length of a code of the weights that is as precise as "
        "the loss requires."
    )
    cards = [
        Card("Information in the weights", "", f"{i.value:,.0f} ± {i.error:.2g} nats", i.method) for i in done.found
    ]
    known = f"{first.dimension:,.0f}"
    cards.append(Card("Effective weights", "", known, f"effective dimension, of {done.weights:,} weights"))
    best = done.shortest
    if best is not None and done.labels:
        cards.append(
            Card(
                "Code of the labels", f"{done.labels:,.0f}", f"{best.length:,.0f}", "nats, without and with the network"
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
        ("low rank (lower bound)", b.lower),
        ("estimate", b.value),
        ("independent tensors", b.block),
        ("independent weights", b.diagonal),
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
    plot.update_xaxes(title_text="code length of the weights, nats", range=[0, 1.15 * max(v for _, v in shown)])
    caption = (
        "Code length of the weights from the curvature, (C - L) / beta: from its largest eigenvalues, a lower bound; "
        "from all of it; and from codes that ignore dependence between tensors or weights, upper bounds."
    )
    return Figure("Bounds on the code length", caption, plot, wide=False)


def _layers(found: Information) -> Figure:
    rows = sorted(found.layers.items(), key=lambda item: -item[1])[:_LAYERS]
    names, values = [as_text(n) for n, _ in rows], [v for _, v in rows]
    bars = go.Bar(x=values, y=names, orientation="h", marker_color=AFTER, hovertemplate="%{x:,.1f} nats<extra></extra>")
    plot = plot_of([bars], height=max(230, 60 + 24 * len(rows)), legend=False)
    plot.update_yaxes(autorange="reversed", showgrid=False)
    plot.update_xaxes(title_text="nats")
    more = f" The {_LAYERS} largest of {len(found.layers)}." if len(found.layers) > _LAYERS else ""
    return Figure(f"Information by tensor ({found.method})", f"In nats.{more}", plot, wide=False)


def structure_figures(found: StructureFunction) -> list[Figure]:
    """Figures of the structure function S(t), and of the information against beta."""
    t, loss = zip(*found.vertices, strict=True)
    traces = [
        go.Scatter(x=[r.kl for r in found.runs], y=[r.loss for r in found.runs], name="codes found", mode="markers",
                   marker={"size": 6, "color": "#b8c0c8"}),
        go.Scatter(x=list(t), y=list(loss), name="S(t), the best codes", mode="lines+markers",
                   line={"color": AFTER, "width": 3}),
    ]  # fmt: skip
    length, known = found.length(), found.complexity
    traces.append(go.Scatter(x=[0, length], y=[length, 0], name="loss + information = C(D)", mode="lines",
                             line={"color": INK, "dash": "dot"}))  # fmt: skip
    curve = plot_of(traces, height=380)
    top = max(1.0, found.vertices[0][1])
    curve.update_xaxes(title_text="information in the weights, nats", range=[0, 1.05 * max(max(t), length)])
    curve.update_yaxes(title_text="remaining loss, nats", range=[0, 1.05 * top])
    caption = (
        f"The smallest loss for each amount of information in the weights. The dotted line touches the curve at the "
        f"structure of the task, {known:,.0f} nats; beyond it a nat of information saves less than a nat of loss: "
        f"memorisation. Shortest code: C(D) = {length:,.0f} nats."
    )
    betas = found.betas
    used = go.Scatter(
        x=betas, y=[found.information(b) for b in betas], mode="lines+markers", line={"color": BEFORE, "width": 3}
    )
    steps = plot_of([used], legend=False)
    steps.update_xaxes(title_text="beta, the weight of the information", type="log")
    steps.update_yaxes(title_text="information, nats", rangemode="tozero")
    if found.collapse:
        steps.add_vline(x=found.collapse, line={"color": INK, "dash": "dash"})
    beside = (
        f" Above {found.collapse:.2g} (dashed) the shortest code has none: nothing is learnt." if found.collapse else ""
    )
    return [
        Figure("The structure of the task", caption, curve),
        Figure(
            "Information against beta", f"Information in the weights of the shortest code.{beside}", steps, wide=False
        ),
    ]
