"""Draw the figures of the README from the results file; needs `pip install kaleido`, and Chrome.

python -m experiments.figures
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from experiments import critical
from experiments import structure as tasks
from experiments.alignment import CHILDREN, MOST, NOISES, WAYS
from experiments.images import given_up
from experiments.nuisance import NUISANCES
from experiments.record import RESULTS, Record
from experiments.tables import NAMES

COLOURS = ("#888888", "#0072b2", "#56b4e9", "#009e73", "#e69f00", "#cc79a7", "#d55e00", "#000000")


def keys(record: Record) -> go.Figure:
    """Recovered units, barrier and distance against noise, a line a way."""
    titles = ("units recovered", "barrier (cross-entropy)", "distance")
    figure = make_subplots(1, 3, subplot_titles=titles, horizontal_spacing=0.07)
    for way, colour in zip(WAYS, COLOURS, strict=True):
        for at, name in enumerate(("recovered", "barrier", "distance"), start=1):
            seen = [record.median(f"keys/{child}/{way}", name) for child in CHILDREN[1:-2]]
            if seen[0] is None:
                continue
            line = go.Scatter(x=NOISES, y=[np.mean(v) for v in seen], name=NAMES.get(way, way), line_color=colour)
            figure.add_trace(line.update(showlegend=name == "barrier", legendgroup=way), 1, at)
    axis = {"type": "log", "title": "noise / sd of the weights", "dtick": 1, "exponentformat": "power"}
    return figure.update_xaxes(axis).update_layout(height=330)


def paths(record: Record) -> go.Figure:
    """Test loss along lines and curves."""
    ends = ("independent", "aligned", "permuted copy")
    grid = list(product(("mlp", "cnn"), ends))
    figure = make_subplots(2, 3, subplot_titles=[f"{k.upper()}, {e}" for k, e in grid], vertical_spacing=0.13)
    for at, (kind, end) in enumerate(grid):
        for form, colour in zip(("line", "bezier", "polychain"), ("#d55e00", "#0072b2", "#009e73"), strict=True):
            loss = record.median(f"paths/{kind}/{end}", f"{form}_loss")
            trace = go.Scatter(x=np.linspace(0, 1, len(loss)), y=loss, name=form, line_color=colour, showlegend=not at)
            figure.add_trace(trace, at // 3 + 1, at % 3 + 1)
    figure.update_yaxes(rangemode="tozero").update_yaxes(title="test loss", col=1)
    return figure.update_xaxes(title="from one end (0) to the other (1)", row=2).update_layout(height=500)


def averages(record: Record) -> go.Figure:
    """Test error against the number of networks, in powers of ten, so that the low ones are told apart."""
    figure = make_subplots(1, 2, subplot_titles=("MLP", "CNN"))
    names = {"single": "one network", "naive": "mean as they are", "mended": "as they are, repaired"}
    names |= {
        "without data": "mean modulo symmetry",
        "merged": "modulo symmetry, repaired",
        "ensemble": "mean of predictions",
    }
    n = list(range(2, MOST + 1))
    for at, kind in enumerate(("mlp", "cnn"), start=1):
        for (name, label), colour in zip(names.items(), COLOURS[:6], strict=True):
            free = name == "without data"
            seen = [(f"averages/{kind}/{k}{' without data' * free}", "merged" if free else name) for k in n]
            y = [100 * (1 - record.median(*place)) for place in seen]
            figure.add_trace(go.Scatter(x=n, y=y, name=label, line_color=colour, showlegend=at == 1), 1, at)
    figure.update_yaxes(type="log", tickvals=[1, 2, 5, 10, 20, 50]).update_yaxes(title="test error, %", col=1)
    return figure.update_xaxes(dtick=1, title="networks averaged").update_layout(height=380)


def plane(record: Record) -> go.Figure:
    """Train loss and test error over the plane through three networks; crosses the networks, a star their mean."""
    kinds = ("one run", "independent", "aligned")
    titles = [f"{what}, {kind}" for what in ("log train loss", "test error, %") for kind in kinds]
    figure = make_subplots(2, 3, subplot_titles=titles, vertical_spacing=0.1)
    for at, kind in enumerate(kinds, start=1):
        row = record.rows[f"plane/{kind}/0"]
        for level, name in enumerate(("train_loss", "test_error"), start=1):
            z = np.array(row[name])
            z = np.log10(z) if name == "train_loss" else 100 * z
            low, high = (-4, 1) if name == "train_loss" else (1, 10)
            bounds = {"zmin": low, "zmax": high, "showscale": at == 3, "colorscale": "Viridis"}
            bar = {"len": 0.45, "y": 0.78 if level == 1 else 0.22}
            figure.add_trace(go.Heatmap(x=row["u"], y=row["v"], z=z, colorbar=bar, **bounds), level, at)
            x, y = zip(*row["corners"], row["centre"], strict=True)
            marks = {"symbol": ["x"] * 3 + ["star"], "color": "white", "size": 9, "line_width": 1}
            figure.add_trace(go.Scatter(x=x, y=y, mode="markers", marker=marks, showlegend=False), level, at)
    figure.update_xaxes(title="distance in weight space", row=2).update_yaxes(title="distance", col=1)
    return figure.update_layout(height=580)


def images(record: Record) -> go.Figure:
    """Cross-path similarity, what is given up for each unit of the way, and the paths of every two epochs."""
    rows = {key.split("/")[2]: row for key, row in record.rows.items()}
    titles = ["cross-path similarity with the epoch before", "path given up per unit of log relative trust"]
    matrices = [f"paths of every two epochs: {kind}" for kind in list(rows)[:2]]
    figure = make_subplots(2, 2, subplot_titles=[*titles, *matrices], vertical_spacing=0.13)
    for (kind, row), colour in zip(rows.items(), COLOURS[1:], strict=False):
        for at, y in enumerate((row["cross_all"], given_up(row)), start=1):
            line = go.Scatter(x=list(range(1, len(y) + 1)), y=y, name=kind, line_color=colour, showlegend=at == 1)
            figure.add_trace(line, 1, at)
    for at, kind in enumerate(list(rows)[:2], start=1):
        heat = go.Heatmap(z=rows[kind]["matrix"], colorscale="Viridis", zmin=0.2, zmax=1, showscale=at == 2,
                          colorbar={"len": 0.45, "y": 0.2})  # fmt: skip
        figure.add_trace(heat, 2, at)
        figure.update_yaxes(autorange="reversed", title="epoch", row=2, col=at)
    figure.update_yaxes(title="cosine", row=1, col=1).update_yaxes(title="share", row=1, col=2)
    return figure.update_xaxes(title="epoch").update_layout(height=640)


def structure(record: Record) -> go.Figure:
    """S(t) and K(beta) of a task with true, half random and random labels; test error against weights and nats."""
    kinds = [k for k in ("digits mlp", "mnist mlp", "mnist cnn") if tasks.of(record, f"labels/{k}/true")]
    titles = [f"S(t), {kind}" for kind in kinds] + [f"K(beta), {kind}" for kind in kinds]
    figure = make_subplots(2, len(kinds), subplot_titles=titles, vertical_spacing=0.13, horizontal_spacing=0.06)
    for at, kind in enumerate(kinds, start=1):
        for label, colour in zip(tasks.LABELS, COLOURS[1::2], strict=False):
            s = tasks.of(record, f"labels/{kind}/{label}")
            if s is None:
                continue
            t, loss = zip(*s.vertices, strict=True)
            shown = {"name": label, "line_color": colour, "legendgroup": label, "showlegend": at == 1}
            figure.add_trace(go.Scatter(x=t, y=loss, mode="lines+markers", **shown), 1, at)
            betas = np.geomspace(s.betas[0], 2 * s.betas[-1], 400)
            k = [s.information(b) for b in betas]
            figure.add_trace(go.Scatter(x=betas, y=k, **{**shown, "showlegend": False}), 2, at)
        figure.update_xaxes(type="log", title="beta", row=2, col=at)
    figure.update_yaxes(title="loss left, nats", row=1, col=1).update_yaxes(title="nats of network", row=2, col=1)
    figure.update_layout(height=640, legend_title_text="labels")
    return figure.update_xaxes(title="t, nats of network", row=1)


def nuisance(record: Record) -> go.Figure:
    """tr F and the information of noisy activations along a run; both informations over codes of many lengths."""
    titles = ("a run: tr F (black), and nats of the outputs", "codes: nats of the outputs against nats of the weights")
    figure = make_subplots(1, 2, subplot_titles=titles, specs=[[{"secondary_y": True}, {}]], horizontal_spacing=0.15)
    run = record.at("history/digits/mlp")
    line = go.Scatter(x=run("epoch"), y=run("trace"), name="tr F", line_color=COLOURS[7])
    figure.add_trace(line, 1, 1, secondary_y=True)
    codes = [row for key, row in record.rows.items() if key.startswith("emergence/digits") and not row["trivial"]]
    for what, colour in zip(("inputs", *NUISANCES), COLOURS[1:], strict=False):
        place, shown = f"{what}, outputs", {"line_color": colour, "legendgroup": what, "name": what}
        figure.add_trace(go.Scatter(x=run("epoch"), y=run(place), **shown), 1, 1)
        seen = sorted((row["kl"], row[place]) for row in codes)
        x, y = zip(*seen, strict=True)
        figure.add_trace(go.Scatter(x=x, y=y, mode="markers", showlegend=False, **shown), 1, 2)
    figure.update_xaxes(title="epoch", col=1).update_xaxes(title="KL, nats", type="log", col=2)
    figure.update_yaxes(title="nats of the outputs", secondary_y=False, col=1)
    aside = {"title": "tr F", "tickmode": "auto", "showgrid": False, "rangemode": "tozero"}
    figure.update_yaxes(aside, secondary_y=True, col=1).update_yaxes(title="nats of the outputs", col=2)
    figure.update_xaxes(tickvals=[1000, 2000, 5000], col=2)
    return figure.update_layout(height=380)


FIGURES: dict[str, Callable[[Record], go.Figure]] = {
    f.__name__: f for f in (keys, paths, averages, plane, images, structure, nuisance)
}


def main() -> None:
    """Write a PNG a figure beside the results."""
    for name, draw in FIGURES.items():
        own = RESULTS / f"{name}.json"
        figure = draw(Record(own if own.exists() else RESULTS / "alignment.json")).update_layout(
            template="plotly_white", width=1000, margin={"t": 40, "b": 50, "l": 55, "r": 20}
        )
        figure.write_image(RESULTS / f"{name}.png")
    seen = critical.figure(Record(RESULTS / "critical.json"))
    seen.update_layout(width=1000, paper_bgcolor="white").write_image(RESULTS / "critical.png")


if __name__ == "__main__":
    main()
