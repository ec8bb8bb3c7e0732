"""The page: one file that fetches nothing, holds the numbers, and shows names as text."""

from __future__ import annotations

import base64
import hashlib
import html.parser
import json
import math
import os
import re

import pytest
import torch
from torch import nn

from weightspace.commands import compare
from weightspace.commands.align import Aligned
from weightspace.commands.merge import Merged
from weightspace.commands.scores import Score
from weightspace.metric.distance import functional
from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net
from weightspace.pages import page
from weightspace.pages.align import align_page
from weightspace.pages.compare import compare_page
from weightspace.pages.merge import merge_page
from weightspace.pages.style import decades
from weightspace.symmetry.symmetry import Symmetry
from weightspace.symmetry.verdict import Verdict
from weightspace.task.task import Task

EVIL = "<img src=x onerror=alert(1)>"
FETCHING = {"src", "href", "srcset", "poster", "data", "action", "formaction", "background", "cite", "manifest"}


def comparison(name="layer.weight", kind="independent", line=True, layers=3):
    verdict = Verdict(kind, f"{kind}: as it is", "the weights differ by 1.2 of their norm")
    rows = [compare.Layer(f"{name}.{k}", (4, 3), 1.0, 2.0, 1.4, 0.9, 0.5) for k in range(layers)]
    rows.append(compare.Layer("zero", (), 0.0, 1.0, math.inf, math.nan, math.nan))
    along = compare.Line(
        [0.0, 0.5, 1.0],
        {"before": [0.1, 1.9, 0.1], "after": [0.1, 0.3, 0.1]},
        {"before": [0.98, 0.31, 0.98], "after": [0.98, 0.95, 0.98]},
        {"before": 1.8, "after": 0.2},
        450,
        False,
    )
    return compare.Comparison(
        names=(f"{name}.a", "b"),
        architecture="Sequential",
        numbers=1234,
        group="S4 x R+4",
        axes=1,
        notes=[f"unknown operation {name}"],
        verdict=verdict,
        naive=20.5,
        aligned=17.25,
        interval=(8.5, 13.5),
        balanced=16.5,
        relative_naive=1.42,
        relative=1.16,
        in_place=0.01,
        method="weights",
        why="highest inner product",
        layers=rows,
        line=along if line else None,
        outputs={"relative": 0.35, "disagreement": 0.011} if line else {},
        units=compare.Units(f"{name}[0]", 2, [[0.1, 0.2], [0.3, -0.4]], [[0.9, 0.1], [0.0, 0.8]]),
    )


class Seen(html.parser.HTMLParser):
    """Tags, their attributes, the text of scripts and styles, and all other text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.scripts, self.styles, self.words, self.inside = [], [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside = tag
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        if self.inside == "script":
            attrs, text = self.scripts.pop()
            self.scripts.append((attrs, text + data))
        elif self.inside == "style":
            self.styles.append(data)
        else:
            self.words.append(data)

    def plots(self):
        return json.loads(next(text for attrs, text in self.scripts if attrs.get("id") == "plots"))


@pytest.fixture(scope="module")
def text():
    scores = [Score("a", 0.1, 0.98), Score(EVIL, 0.12, 0.97)]
    merged = Merged(["a", EVIL], "m", "S4", scores, Score("mean as stored", 1.9, 0.31), Score("mean", 0.2, 0.95),
                    Score("ensemble", 0.09, 0.985), 450, False, [])  # fmt: skip
    aligned = Aligned(("b", EVIL), "out", "S4", "weights", "why", 0.99, 20.0, 17.0, 3e-7, [EVIL], None)
    pages = [compare_page(comparison(EVIL), command=f"weightspace compare {EVIL}")]
    pages += [align_page(aligned), merge_page(merged)]
    return page.render(pages, title=EVIL)


def test_nothing_is_fetched(text):
    seen = Seen(text)
    for tag, attributes in seen.tags:
        assert tag not in {"link", "iframe", "object", "embed", "base", "form", "img", "video", "audio"}
        for name in FETCHING & set(attributes):
            assert attributes[name].startswith("#"), (tag, name, attributes[name])
        assert not any(name.startswith("on") for name in attributes)
    assert not re.search(r"url\(|@import", "".join(seen.styles))
    ours = [text for attributes, text in seen.scripts if "plotly.js v" not in text[:200]]
    assert len(ours) == 2 and not any(re.search(r"https?:|//\w|fetch|XMLHttp|import\(", text) for text in ours)


def test_the_policy_knows_its_scripts_and_forbids_the_rest(text):
    seen = Seen(text)
    policy = next(
        a["content"] for t, a in seen.tags if t == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    )
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'" and "unsafe" not in rules["script-src"] and "http" not in policy
    run = [text for attributes, text in seen.scripts if attributes.get("type") != "application/json"]
    hashes = {f"'sha256-{base64.b64encode(hashlib.sha256(t.encode()).digest()).decode()}'" for t in run}
    assert len(run) == 2 and set(rules["script-src"].split()) == hashes


def test_the_library_is_inside_and_whole(text):
    from plotly.offline import get_plotlyjs

    assert get_plotlyjs() in text and text.rstrip().endswith("</html>")


def test_names_are_text(text):
    seen = Seen(text)
    assert not any(tag == "img" for tag, _ in seen.tags)
    assert EVIL in "".join(seen.words)
    raw = json.dumps(seen.plots())
    assert "<img" not in raw and "&lt;img" in raw


def test_an_unescaped_name_would_be_seen():
    """The oracle of the test above."""
    assert any(tag == "img" for tag, _ in Seen(f"<p>{EVIL}</p>").tags)


def test_a_script_cannot_be_closed_by_a_name():
    made = page.render([compare_page(comparison("</script><script>alert(1)</script>"))])
    assert len(Seen(made).scripts) == 3


def test_figures_hold_the_numbers(text):
    plots = Seen(text).plots()
    drawn = [trace for plot in plots for trace in plot["data"]]
    lines = [trace["y"] for trace in drawn if trace["type"] == "scatter" and trace.get("mode") == "lines+markers"]
    assert lines == [[0.1, 1.9, 0.1], [0.1, 0.3, 0.1], [0.98, 0.31, 0.98], [0.98, 0.95, 0.98]]
    bars = [trace for trace in drawn if trace["type"] == "bar"]
    assert any(bar.get("base") == [8.5] and bar["x"] == [5.0] for bar in bars)  # the interval
    assert any(bar["y"][:3] == [1.4] * 3 and bar["y"][3] is None for bar in bars)  # infinity is a gap
    assert any(bar["x"] == [0.98, 0.97, 0.31, 0.95, 0.985] for bar in bars)
    heat = [trace["z"] for trace in drawn if trace["type"] == "heatmap"]
    assert heat == [[[0.1, 0.2], [0.3, -0.4]], [[0.9, 0.1], [0.0, 0.8]]]


def test_every_figure_has_its_place(text):
    seen = Seen(text)
    places = [attributes["data-plot"] for _, attributes in seen.tags if "data-plot" in attributes]
    assert places == [str(k) for k in range(len(seen.plots()))] and len(places) == 6


def test_the_verdict_and_the_cards_are_in_words():
    words = " ".join(Seen(page.render([compare_page(comparison())])).words)
    for expected in ("Independent: as it is", "differ by 1.2", "1.42", "1.16", "31.0%", "95.0%", "between 8.5 and 13.5",
                     "S4 x R+4", "4×3", "450 examples", "unknown operation"):  # fmt: skip
        assert expected in words


def test_without_data_there_is_no_line():
    made = compare_page(comparison(line=False))
    assert [part.title for part in made.parts if isinstance(part, page.Figure)] == [
        "The same units, in another order",
        "Distance up to symmetry",
        "Layer by layer",
    ]
    assert len(made.cards) == 1


def test_many_layers_are_drawn_without_their_names():
    made = compare_page(comparison(layers=200))
    figure = made.parts[-2]
    assert isinstance(figure, page.Figure)
    assert figure.plot.layout.xaxis.showticklabels is False and len(figure.plot.data[0].y) == 201


def test_one_page_has_no_menu_and_many_have():
    one = compare_page(comparison())
    assert "<nav>" not in page.render([one])
    assert [a["href"] for t, a in Seen(page.render([one, one])).tags if t == "a"] == ["#page-0", "#page-1"]


def test_saving_is_all_or_nothing(tmp_path, monkeypatch):
    target = tmp_path / "out.html"
    target.write_text("old")
    monkeypatch.setattr(os, "replace", lambda *a: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(WeightspaceError, match="No space left"):
        page.save([compare_page(comparison())], target)
    assert target.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["out.html"]


def test_the_same_numbers_give_the_same_file(tmp_path):
    for name in ("one.html", "two.html"):
        page.save([compare_page(comparison())], tmp_path / name)
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()


def test_a_command_of_two_lines_keeps_both():
    text = page.render([page.Page("a", "b", "c", command="one <x>\ntwo")])
    assert '<pre class="command">one &lt;x&gt;\ntwo</pre>' in text


@pytest.mark.parametrize(("outputs", "kind"), [(1, "regression"), (3, "regression"), (3, "classes")])
def test_only_classes_are_predicted(outputs, kind):
    """One output, or labels that are numbers, have no largest output that two networks could disagree on."""
    torch.manual_seed(0)
    a, b = (Net.of(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, outputs))) for _ in range(2))
    x = torch.randn(20, 4)
    task = Task(x, torch.randn(20, outputs) if kind == "regression" else torch.arange(20) % 3)
    found = compare.compare(a, b, Symmetry.of(a, x[:2]), align_on=task, measure_on=task, points=3)
    told = " ".join([found.verdict.why, *found.remarks(), str(compare_page(found))])
    assert "The outputs differ by" in told
    assert ("predictions" in told) == (kind == "classes")


def test_one_output_has_no_classes_to_disagree_on():
    a = Net.of(nn.Linear(4, 1))
    for kind in ("disagreement", "kl"):
        with pytest.raises(WeightspaceError, match="name no classes"):
            functional(a, a, Task(torch.randn(5, 4)), kind)


def test_a_long_logarithmic_axis_has_ticks_at_powers_of_ten_alone():
    """A short one may hold no power of ten, and keeps plotly's ticks; zeros, gaps and infinity do not count."""
    assert decades([0.01, 3.0, None, 0.0, float("inf")]) == {"type": "log", "exponentformat": "power", "dtick": 1}
    assert decades([0.2, 0.5]) == decades([]) == {"type": "log", "exponentformat": "power"}
