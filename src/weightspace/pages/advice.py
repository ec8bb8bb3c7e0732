"""The page of `weightspace compare` of a set of networks."""

from __future__ import annotations

import plotly.graph_objects as go
from torch import Tensor

from weightspace.commands.advice import Set
from weightspace.pages.page import Card, Figure, Page, Table, as_text
from weightspace.pages.style import AFTER, BEFORE, finite, plot_of

__all__ = ["advice_page"]


def advice_page(found: Set, name: str = "Compare", command: str = "") -> Page:
    """The page of a set: the advice, how alike the task vectors are, layer by layer, and where each network is from."""
    met, words = found.met, found.advice.words
    cards = [Card(label, "", value) for label, value in found.summary() if value][:4]
    parts: list[Figure | Table] = []
    if found.measured is not None:
        parts.append(_scores(found))
    if met.based:
        caption = (
            "The cosine of the changes that two networks made to the base: 1 is the same change, 0 an unrelated one."
        )
        parts.append(_pairs("Do they change the same things?", caption, found.members, met.cosines))
    if met.based and bool(met.conflicts.isfinite().any()):
        caption = (
            "The share of entries whose signs disagree, weighted by their size; a half is what unrelated changes have."
        )
        parts.append(_pairs("Do they pull apart?", caption, found.members, met.conflicts))
    parts += [*([_layers(found)] if met.based else []), _members(found), _tensors(found)]
    tone = "good" if found.advice.kind in ("average", "same") else "plain"
    lead = f"{as_text(found.advice.why[:1].upper() + found.advice.why[1:])}."
    remarks = [as_text(note) for note in found.notes] + [f"Left out: {as_text(text)}." for text in met.left_out[:20]]
    return Page(name, words[:1].upper() + words[1:], lead, tone, command, cards, parts, remarks)


def _pairs(title: str, caption: str, names: list[str], values: Tensor) -> Figure:
    labels = [as_text(name) for name in names]
    heat = go.Heatmap(
        z=[finite(row) for row in values.tolist()], x=labels, y=labels, zmin=-1, zmax=1,
        colorscale=[[0, BEFORE], [0.5, "#ffffff"], [1, AFTER]],
        hovertemplate="%{y}, %{x}: %{z:.2f}<extra></extra>",
    )  # fmt: skip
    plot = plot_of([heat], height=200 + 26 * len(names), legend=False)
    plot.update_yaxes(autorange="reversed", showgrid=False)
    plot.update_xaxes(showgrid=False)
    return Figure(title, caption, plot, wide=False)


def _layers(found: Set) -> Figure:
    met = found.met
    where = list(range(len(met.tensors)))
    names = [as_text(name) for name in met.tensors]
    series = {"mean cosine": [met.mean(one) for one in met.by_tensor]}
    if bool(met.opposed.isfinite().any()):
        series["share that cancels in the sum"] = met.opposed.tolist()
    traces = [
        go.Scatter(x=where, y=finite(values), name=label, mode="lines+markers", customdata=names,
                   line={"color": colour}, hovertemplate=f"%{{customdata}}<br>%{{y:.3g}}<extra>{label}</extra>")
        for (label, values), colour in zip(series.items(), (AFTER, BEFORE), strict=False)
    ]  # fmt: skip
    plot = plot_of(traces, height=320)
    plot.update_xaxes(title_text="tensors, first to last", showticklabels=False)
    return Figure(
        "Layer by layer", "Where the networks agree, and where their changes cancel when they are added.", plot
    )


def _scores(found: Set) -> Figure:
    assert found.measured is not None
    scores = [*found.measured.singles, found.measured.stored, found.measured.aligned]
    classes = all(score.accuracy is not None for score in scores)
    values = [float(score.accuracy or 0.0) if classes else score.loss for score in scores]
    colours = ["#b8c0c8"] * (len(scores) - 2) + [BEFORE, AFTER]
    bars = go.Bar(x=finite(values), y=[as_text(score.name) for score in scores], orientation="h", marker_color=colours,
                  text=[f"{v:.1%}" if classes else f"{v:.3f}" for v in values], textposition="outside")  # fmt: skip
    plot = plot_of([bars], height=90 + 32 * len(scores), legend=False)
    plot.update_yaxes(autorange="reversed", showgrid=False)
    plot.update_xaxes(title_text="accuracy" if classes else "loss")
    return Figure("Measured", f"On {found.measured.examples:,} examples that were not used for alignment.", plot)


def _members(found: Set) -> Table:
    columns = ["network", "|change|", "relative", "cosine", "signs that disagree", "largest in common", "came from"]
    return Table("All networks", columns, [list(row) for row in found.rows()])


def _tensors(found: Set) -> Table:
    columns = ["tensor", "cosine", "cancels", "spread", "interference", "effective rank"]
    return Table("All tensors", columns, [list(row) for row in found.tensors()], folded=True)
