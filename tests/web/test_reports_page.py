"""The page of reports and jobs in a browser, the reports that it opens, and the files that these save."""

import csv
import json
import time
import urllib.request

import plotly.graph_objects as go
import pytest
from playwright.sync_api import expect
from served_atlas import MARKUP, filled

from weightspace.pages.page import Figure, Page, Table, save

LONG = 60_000  # milliseconds that a busy machine may take


@pytest.fixture(scope="module")
def serving(tmp_path_factory, server):
    """A server of an atlas with one report whose texts are markup."""
    folder = filled(tmp_path_factory.mktemp("atlas"))
    (folder / "reports").mkdir()
    dots = go.Figure(go.Scatter(x=[1.0, 2.0], y=[3.0, None], text=["&lt;b&gt;", "=1+1"], name='a, "b"'))
    heat = go.Figure(go.Heatmap(z=[[1, 2], [3, 4]], x=["p", "q"], y=["r", "s"]))
    table = Table("All", ["name", "value"], [[MARKUP, "1"], ["=HYPERLINK(1)", "-2"]])
    parts = [Figure("The map", "", dots), Figure("Heat", "", heat), table]
    save([Page(MARKUP, f"Best: {MARKUP}", "lead", parts=parts)],
         folder / "reports" / "map.html", title=MARKUP)  # fmt: skip
    running = type(server)([str(folder)], tmp_path_factory.mktemp("elsewhere")).start()
    yield running
    running.stop()


def posted(server, path, value):
    headers = {"Authorization": f"Bearer {server.token}", "Content-Type": "application/json"}
    request = urllib.request.Request(server.base + path, json.dumps(value).encode(), headers)
    return json.load(urllib.request.urlopen(request, timeout=60))


def report(tab, base, name):
    """The report in its own tab."""
    with tab.page.context.expect_page(timeout=LONG) as found:
        tab.page.get_by_role("button", name=name).first.click(timeout=LONG)
    opened = found.value
    expect(opened.locator(".save")).to_have_count(3, timeout=LONG)
    return opened


def test_a_report_opens_without_access_to_the_server_and_its_figures_are_saved(serving, tab, tmp_path):
    page = tab.page
    page.goto(serving.page.replace("/#", "/reports#"))
    row = page.locator("ul.reports li")
    expect(row).to_have_count(1, timeout=LONG)
    expect(row.get_by_role("button")).to_have_text(f"Best: {MARKUP}")  # text, and no element
    expect(page.locator("img")).to_have_count(0)
    shown = report(tab, serving.base, "Open Best")
    said = []
    shown.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    assert shown.evaluate("window.origin") == "null" and shown.evaluate("window.opener") is None
    for forbidden in ("localStorage.length", "document.cookie", "parent.opener.document"):
        with pytest.raises(Exception, match="Error|null"):
            shown.evaluate(f"() => {{ return {forbidden}; }}")
    asked = f"fetch('{serving.base}/api/server').then(() => 'answered', () => 'refused')"
    assert shown.evaluate(asked) == "refused"
    files = {}
    for button in shown.locator(".save button").all():
        with shown.expect_download(timeout=LONG) as found:
            button.click()
        name = found.value.suggested_filename
        found.value.save_as(tmp_path / name)
        files[name] = tmp_path / name
    stems = [f"{stem}.{kind}" for stem in ("the-map", "heat") for kind in ("png", "svg", "csv", "json")]
    assert sorted(files) == sorted([*stems, "all.csv"])
    assert files["the-map.png"].read_bytes().startswith(b"\x89PNG") and files["heat.png"].stat().st_size > 2000
    assert files["the-map.svg"].read_text().startswith("<svg")
    points = [*csv.reader(files["the-map.csv"].read_text("utf-8-sig").splitlines())]
    assert points == [["trace", "x", "y", "text"], ['a, "b"', "1", "3", "<b>"], ['a, "b"', "2", "", "'=1+1"]]
    entries = [*csv.reader(files["heat.csv"].read_text("utf-8-sig").splitlines())]
    assert entries[0] == ["trace", "x", "y", "z"] and entries[2][1:] == ["q", "r", "2"]
    assert json.loads(files["the-map.json"].read_text())["data"][0]["x"] == [1, 2]
    rows = [*csv.reader(files["all.csv"].read_text("utf-8-sig").splitlines())]
    assert rows == [["name", "value"], [MARKUP, "1"], ["'=HYPERLINK(1)", "-2"]]
    shown.reload()
    expect(shown.locator("body")).to_contain_text("Reports and jobs", timeout=LONG)
    assert tab.bad == [] and tab.strangers(serving.base) == []


def test_jobs_are_shown_as_they_run_and_are_cancelled(serving, tab):
    page = tab.page
    page.goto(serving.page.replace("/#", "/reports#"))
    expect(page.get_by_text("Nothing runs")).to_be_visible(timeout=LONG)
    posted(serving, "/api/jobs", {"kind": "map", "arguments": {"stored": True}})
    posted(serving, "/api/jobs", {"kind": "map", "arguments": {"tag": MARKUP}})
    expect(page.get_by_role("progressbar")).to_have_count(2, timeout=LONG)
    page.get_by_role("button", name="Cancel: Map of those tagged").click()
    expect(page.locator(".state.cancelled")).to_be_visible(timeout=LONG)
    page.reload()  # jobs are the server's: the page finds them again
    expect(page.locator(".job", has_text=MARKUP)).to_contain_text("cancelled", timeout=LONG)
    expect(page.locator(".state.done")).to_be_visible(timeout=2 * LONG)
    page.get_by_role("button", name="Result: Map of the atlas").click()
    expect(page.locator(".found")).to_contain_text("7 networks in", timeout=LONG)
    expect(page.locator("ul.reports li")).to_have_count(2, timeout=LONG)
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.locator("button:not([aria-label])", has_not_text="o").count() == 0
    page.get_by_role("button", name="Take off the list: Map of the atlas").click()
    expect(page.locator(".state.done")).to_have_count(0, timeout=LONG)
    assert tab.bad == [] and tab.strangers(serving.base) == []


def test_a_server_that_was_killed_tells_its_jobs_as_lost(serving, tab):
    posted(serving, "/api/jobs", {"kind": "map", "arguments": {}})
    page = tab.page
    page.goto(serving.page.replace("/#", "/reports#"))
    expect(page.locator(".state.running")).to_be_visible(timeout=LONG)
    serving.stop(kill=True)
    time.sleep(0.2)
    serving.start()
    expect(page.locator(".state.lost")).to_be_visible(timeout=LONG)
    expect(page.locator(".job", has_text="lost")).to_contain_text("start it again")
    assert not [text for text in tab.bad if "net::ERR_" not in text and "WebSocket" not in text]
