"""The page of an atlas in a browser: map, tree, table, one network, jobs; what it says where there is nothing."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from web.conftest import Running, opened

import weightspace as ws
from weightspace.cli import main

ARCH = "weightspace.demo:digits_cnn"
EVIL = "<img src=x onerror=alert(1)>"
WAIT = 60_000


def filled(folder, count):
    """An atlas of that many networks: unrelated ones, one of them with a hostile name, and noisy copies of these."""
    from weightspace.demo import digits_cnn

    kin = []
    with ws.Atlas(folder) as atlas:
        for k in range(max(3, count // 20)):
            torch.manual_seed(k)
            kin.append((EVIL if k == 1 else f"seed {k}", ws.Net.of(digits_cnn())))
            atlas.add(kin[-1][1], name=kin[-1][0], tags=["seeds"], arch=ARCH)
        for k in range(count - len(kin)):
            parent, net = kin[k % len(kin)]
            known = [parent] if k % 2 else []
            atlas.add(ws.perturb(net, 0.1, seed=k), name=f"tuned {k}", parents=known, tags=["tuned"], arch=ARCH)
    return folder


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A server of an atlas of twelve networks that is mapped."""
    folder = tmp_path_factory.mktemp("networks")
    filled(folder / "runs", 12)
    assert main(["atlas", "map", "--atlas", str(folder / "runs"), "--stored"]) == 0
    running = Running(["runs", "--data", "digits"], folder).start()
    yield running
    running.stop()


def entered(tab, server, path="/atlas"):
    """Open a page with the token; dialogs are bad."""
    tab.page.on("dialog", lambda dialog: (tab.bad.append(f"dialog {dialog.message}"), dialog.dismiss()))
    tab.page.set_default_timeout(WAIT)
    tab.page.goto(f"{server.base}{path}#token={server.token}")
    return tab.page


def expects(locator):
    from playwright.sync_api import expect

    expect.set_options(timeout=WAIT)
    return expect(locator)


def row(page, name):
    return page.locator(".table-box tbody tr", has=page.get_by_role("button", name=name, exact=True))


def clean(tab, server):
    """Nothing bad was said, nobody else was asked, nothing is wider than the window, no text became markup."""
    assert tab.bad == [] and tab.strangers(server.base) == []
    assert tab.page.evaluate("() => document.documentElement.scrollWidth <= window.innerWidth")
    assert tab.page.locator("img").count() == 0


def test_networks_are_found_opened_tagged_and_filtered(tab, served):
    page = entered(tab, served)
    expects(page.locator(".map-box canvas")).to_have_attribute("aria-label", re.compile("^Map of 12 networks"))
    expects(page.locator(".legend")).to_contain_text("1: ")
    expects(page.get_by_text(re.compile("The plane (shows|is)"))).to_be_visible()
    page.get_by_role("combobox", name="Find a network").fill("onerr")
    page.keyboard.press("Enter")
    panel = page.get_by_role("complementary", name="Details")
    expects(panel.get_by_role("heading", name=EVIL)).to_be_visible()
    expects(panel.locator(".layers")).to_contain_text("64 × 32 × 3 × 3")
    expects(row(page, EVIL)).to_have_attribute("aria-selected", "true")
    address = page.url
    assert re.search(r"network=[0-9a-f]{32}$", address)
    panel.get_by_label("New tag").fill(EVIL)
    panel.get_by_role("button", name="Add").click()
    expects(panel.get_by_role("button", name=f"Remove tag {EVIL}")).to_be_visible()
    page.get_by_label("Tag", exact=True).select_option(EVIL)
    expects(page.locator(".filters .count")).to_have_text("1 of 12 networks")
    page.get_by_label("Colour by").select_option(f"tag:{EVIL}")
    expects(page.locator(".legend")).to_contain_text(f"tagged {EVIL}1")
    page.reload()
    expects(panel.get_by_role("heading", name=EVIL)).to_be_visible()
    expects(page.locator(".filters .count")).to_have_text("1 of 12 networks")
    panel.get_by_role("button", name=f"Remove tag {EVIL}").click()
    expects(page.locator(".filters .count")).to_have_text("0 of 12 networks")
    expects(page.get_by_text("No network passes these filters.")).to_be_visible()
    page.go_back()
    page.go_back()
    assert page.url == address
    expects(page.locator(".filters .count")).to_have_text("12 networks")
    clean(tab, served)


def test_an_address_that_names_what_is_not_here_is_answered_in_words(tab, served):
    page = entered(tab, served, "/atlas?family=99&colour=x&tag=none&arch=none&network=zzz")
    panel = page.get_by_role("complementary", name="Details")
    expects(panel).to_contain_text("There is no such network in this atlas.")
    expects(page.locator(".filters .count")).to_have_text("12 networks")
    for name, value in (("Family", ""), ("Tag", ""), ("Colour by", "family")):
        expects(page.get_by_label(name, exact=True)).to_have_value(value)
    panel.get_by_role("button", name="Close").click()
    expects(panel.get_by_role("heading", name="What is here")).to_be_visible()
    assert "family" not in page.url and "colour" not in page.url
    clean(tab, served)
    page.goto(f"{served.base}/atlas?network={'0' * 32}")
    expects(panel).to_contain_text("There is no such network in this atlas.")


def test_origins_are_as_sure_as_the_command_line_says(tab, served):
    page = entered(tab, served)
    said = page.evaluate(
        """async () => {
            const { origin } = await import("/static/atlas/words.js");
            return [["copy", 0.9], ["copy", 0.5], ["tune", 0.5], ["tune", 0.93], ["tune", null], ["stated", null]]
                .map(([kind, confidence]) => origin({ kind, confidence }));
        }"""
    )
    assert said == ["found: copy", "found: copy", "found: tune", "found: tune, 93% sure", "found: tune", "stated"]


def test_the_table_sorts_and_is_downloaded_and_keys_move_in_it(tab, served):
    page = entered(tab, served)
    table = page.get_by_role("region", name=re.compile("Networks"))
    table.get_by_role("button", name="Network").click()
    names = table.locator("td:first-child")
    expects(names.first).to_have_text(EVIL)
    table.get_by_role("button", name="Network").click()
    expects(names.first).to_have_text("tuned 8")
    expects(table.locator("th").first).to_have_attribute("aria-sort", "descending")
    table.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expects(page.get_by_role("complementary").get_by_role("heading", name="tuned 7")).to_be_visible()
    page.keyboard.press("Escape")
    expects(page.get_by_role("heading", name="What is here")).to_be_visible()
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Download CSV").click()
    lines = waiting.value.path().read_text().splitlines()
    assert len(lines) == 13 and lines[0].startswith("Network,Family,Came from,Tags,")
    assert any(line.startswith(EVIL + ",") for line in lines)
    clean(tab, served)


def test_the_tree_shows_what_was_stated_and_what_was_found(tab, served):
    page = entered(tab, served, "/atlas?view=tree")
    tree = page.get_by_role("tree")
    expects(tree.get_by_role("treeitem").filter(has_text="stated").first).to_be_visible()
    expects(tree.get_by_role("treeitem").filter(has_text=re.compile(r"found: .*% sure")).first).to_be_visible()
    before = tree.get_by_role("treeitem").count()
    assert before == 12
    page.get_by_role("button", name="Fold all", exact=True).click()
    expects(tree.get_by_role("treeitem").first).to_have_attribute("aria-expanded", "false")
    folded = tree.get_by_role("treeitem").count()
    assert folded < before
    tree.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    expects(tree.get_by_role("treeitem").first).to_have_attribute("aria-expanded", "true")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    child = tree.locator("[aria-selected=true]")
    expects(child).to_have_attribute("aria-level", "2")
    expects(page.get_by_role("complementary").get_by_role("heading", name="Came from")).to_be_visible()
    page.keyboard.press("m")
    expects(page.locator(".map-box")).to_be_visible()
    clean(tab, served)


def test_two_are_compared_in_a_job_and_the_report_opens(tab, served):
    page = entered(tab, served)
    page.get_by_role("button", name="Compare two").click()
    row(page, "seed 0").click()
    row(page, EVIL).click()
    expects(page.locator(".slot").nth(1)).to_contain_text(EVIL)
    page.get_by_role("button", name="Compare", exact=True).click()
    expects(page).to_have_url(re.compile(r"job=[0-9a-f]{32}"))
    panel = page.get_by_role("complementary", name="Details")
    page.reload()
    expects(panel.get_by_role("heading")).to_have_text(f"Compare seed 0 with {EVIL}")
    expects(panel.locator(".result")).to_contain_text("independent")
    with page.context.expect_page() as opening:
        panel.get_by_role("button", name="Open the report").click()
    report = opening.value
    expects(report.get_by_text("seed 0").first).to_be_visible()
    assert "/reports/view/" in report.url
    clean(tab, served)


def test_a_job_is_cancelled_and_one_that_is_refused_says_why(tab, served):
    page = entered(tab, served, "/atlas?tool=ask")
    page.get_by_label("Data").select_option("data:digits")
    page.get_by_role("button", name="Ask", exact=True).click()
    page.get_by_role("button", name=re.compile("^Cancel: ")).click()
    expects(page.get_by_text("It was cancelled.")).to_be_visible()
    page.get_by_role("button", name="Try again").click()
    wrong = {"name": "new.npz", "mimeType": "application/octet-stream", "buffer": b"no archive"}
    page.locator("input[type=file]").set_input_files(wrong)
    expects(page.get_by_role("alert")).not_to_be_empty()
    tab.bad[:] = [said for said in tab.bad if "422" not in said]  # the browser writes each refusal to its console
    clean(tab, served)


def test_a_phone_shows_the_map_above_and_the_table_below(chromium, served):
    tab = opened(chromium, 390, 844, color_scheme="dark")
    page = entered(tab, served)
    expects(page.locator(".map-box canvas")).to_be_visible()
    places = [page.locator(part).bounding_box()["y"] for part in (".map-box", ".panel", ".table-box")]
    assert places == sorted(places)
    clean(tab, served)
    row(page, EVIL).click()
    expects(page.locator(".layers")).to_be_visible()
    assert page.locator(".panel").bounding_box()["y"] < page.locator(".map-box").bounding_box()["y"]
    clean(tab, served)
    tab.page.context.close()


def test_without_webgl_it_says_so_and_the_table_is_there(tab, served):
    tab.page.add_init_script(
        "const own = HTMLCanvasElement.prototype.getContext;"
        "HTMLCanvasElement.prototype.getContext = function (kind, ...more) {"
        " return kind.startsWith('webgl') ? null : own.call(this, kind, ...more); };"
    )
    page = entered(tab, served)
    expects(page.get_by_text("cannot draw the map")).to_be_visible()
    row(page, "seed 0").click()
    expects(page.get_by_role("complementary").get_by_role("heading", name="seed 0")).to_be_visible()
    assert not [url for url in tab.asked if url.endswith("deck.js")]
    clean(tab, served)


def told(tab, server, networks, architectures, **more):
    """Answers of a server with other networks in the place of this one's."""
    kinds = [{"id": f"{k:064x}", "name": f"kind {k}", "known": True, "numbers": 1, "tensors": 1, "families": 0,
              "networks": sum(a == k for a in networks)} for k in range(architectures)]  # fmt: skip
    rows = [{"id": f"{k:032x}", "name": f"network {k}", "architecture": a, "dtype": "float32", "bytes": 1, "added": 1.0,
             "tags": [], "family": None, "copies": 0, "parents": [], "measures": {}}
            for k, a in enumerate(networks)]  # fmt: skip
    answers = {
        "": {"atlas": "other", "networks": len(rows), "bytes": 1, "architectures": kinds, "tags": [], "measures": [],
             "mapped": None},
        "/networks": {"architectures": [kind["id"] for kind in kinds], "measures": [], "networks": rows},
        "/map": {"made": None, "new": 0, "gone": 0, "say": "", "spaces": [], "left": []},
    }  # fmt: skip
    for path, answer in answers.items():
        body = json.dumps(answer | more.get(path, {}))
        tab.page.route(f"{server.base}/api/atlas{path}", _Answer(body))


class _Answer:
    def __init__(self, body):
        self.body = body

    def __call__(self, route):
        route.fulfill(body=self.body, content_type="application/json")


@pytest.mark.parametrize(
    ("networks", "architectures", "said", "command"),
    [
        ([], 0, "No networks yet", "weightspace atlas add"),
        ([0], 1, "A map needs two networks of one architecture", "weightspace atlas add"),
        ([0, 1], 2, "A map needs two networks of one architecture", "weightspace atlas add"),
        ([0, 0], 1, "No map yet", None),
    ],
)
def test_where_there_is_nothing_it_says_what_to_do(tab, server, networks, architectures, said, command):
    told(tab, server, networks, architectures)
    page = entered(tab, server)
    expects(page.get_by_role("heading", name=said)).to_be_visible()
    if command is None:
        expects(page.get_by_role("button", name="Make the map")).to_be_enabled()
    else:
        expects(page.locator("pre")).to_contain_text(command)
    clean(tab, server)


def test_without_an_atlas_it_says_how_to_begin(tab, server):
    page = entered(tab, server)
    expects(page.get_by_role("heading", name="No atlas is open")).to_be_visible()
    expects(page.locator("pre")).to_contain_text("weightspace serve atlas")


def test_names_of_thousands_stay_text_in_every_list_and_only_rows_in_sight_are_in_the_page(tab, server):
    told(tab, server, [0] * 5000, 1)
    page = entered(tab, server)
    expects(page.locator(".filters .count")).to_have_text("5,000 networks")
    assert page.locator(".table-box tbody tr").count() < 60
    table = page.locator(".table-box")
    table.focus()
    page.keyboard.press("End")
    expects(table.get_by_role("button", name="network 4999")).to_be_visible()
    page.get_by_label("Filter by name or tag").fill("4321")
    expects(table.get_by_role("button", name="network 4321")).to_be_visible()
    expects(page.locator(".filters .count")).to_have_text("1 of 5,000 networks")
    clean(tab, server)


TREE = """async () => {
  const { forest, under } = await import("/static/atlas/tree.js");
  const from = (id, kind, confidence) => ({ id, kind, confidence, share: null });
  const make = (id, at, ...parents) => ({ id, at, name: id, parents });
  const rows = [make("a", 0, from("b", "fine-tune", 0.9)), make("b", 1, from("a", "stated", null)),
    make("c", 2, from("gone", "stated", null)), make("d", 3, from("a", "average", 0.8), from("c", "stated", null)),
    make("e", 4, from("e", "copy", 1))];
  const byId = new Map(rows.map((row) => [row.id, row]));
  const kin = forest(rows, byId);
  const ids = (some) => some.map((row) => row.id);
  const [a, , , d] = rows;
  return { roots: ids(kin.roots), a: ids(kin.children.get(a)), below: kin.below.get(a), d: under(d, byId).id };
}"""


def test_a_ring_of_origins_is_cut_where_it_is_least_sure(tab, server):
    page = entered(tab, server)
    assert page.evaluate(TREE) == {"roots": ["a", "c", "e"], "a": ["b"], "below": 1, "d": "c"}


def test_texts_that_a_spreadsheet_would_run_are_quoted_in_the_file(tab, server):
    page = entered(tab, server)
    lines = page.evaluate("""async () => {
      const { csv } = await import("/static/atlas/table.js");
      const shown = [{ title: "a", text: (row) => row }];
      return csv(shown, ['=1+1', '-0.5', '@x', 'say "hi", you', '+cmd|x']).split("\\r\\n");
    }""")
    assert lines == ["a", "'=1+1", "-0.5", "'@x", '"say ""hi"", you"', "'+cmd|x", ""]


@pytest.mark.slow
def test_a_long_day_with_three_hundred_networks(chromium, tmp_path):
    filled(tmp_path / "runs", 300)
    served = Running(["runs", "--data", "digits"], tmp_path).start()
    try:
        tab, second = opened(chromium), opened(chromium)
        page, other = entered(tab, served), entered(second, served)
        page.get_by_role("button", name="Make the map").click()
        expects(page).to_have_url(re.compile("job="))
        page.reload()  # in the middle of the job
        expects(page.get_by_role("button", name=re.compile("^Cancel: "))).to_be_visible()
        expects(other.get_by_role("progressbar")).to_be_visible()
        page.get_by_role("button", name=re.compile("^Cancel: ")).click()
        expects(page.get_by_text("It was cancelled.")).to_be_visible()
        page.get_by_role("button", name="Try again").click()
        page.get_by_label(re.compile("As stored")).check()
        page.get_by_role("complementary").get_by_role("button", name="Make the map", exact=True).click()
        page.get_by_role("button", name="See the map").click(timeout=600_000)
        expects(page.locator(".map-box canvas")).to_have_attribute("aria-label", re.compile("^Map of 300 networks"))
        expects(other.locator(".map-box canvas")).to_be_visible()  # the second tab has the map without being asked
        page.get_by_label("Family").select_option(index=1)
        expects(page.locator(".filters .count")).to_have_text(re.compile(r"^\d+ of 300 networks$"))
        page.get_by_role("button", name="Show all").click()
        page.get_by_role("button", name="Ask the networks").click()
        rng = np.random.default_rng(0)
        np.savez(tmp_path / "new.npz", x=rng.normal(size=(64, 1, 8, 8)).astype("float32"), y=rng.integers(0, 10, 64))
        page.locator("input[type=file]").set_input_files(tmp_path / "new.npz")
        expects(page.get_by_text("64 examples of 1 × 8 × 8")).to_be_visible()
        page.get_by_role("button", name="Ask", exact=True).click()
        page.get_by_role("button", name="Colour the map by this").click(timeout=300_000)
        expects(page.locator(".ramp")).to_be_visible()
        assert page.locator(".ranking tbody tr").count() == 25
        page.get_by_role("combobox", name="Find a network").fill("tuned 200")
        page.keyboard.press("Enter")
        expects(page.get_by_role("heading", name="tuned 200")).to_be_visible()
        page.get_by_role("button", name="Compare with another").click()
        page.get_by_role("combobox", name="Second: type a name").fill("tuned 0")
        page.keyboard.press("Enter")
        page.get_by_role("button", name="Compare", exact=True).click()
        expects(page.get_by_role("button", name="Open the report")).to_be_visible(timeout=300_000)
        page.get_by_role("button", name="Close").click()
        page.goto(f"{served.base}/atlas?tool=merge")
        page.get_by_label("Name of the new network").fill("the mean")
        page.get_by_role("button", name="Average and save").click()
        expects(page.get_by_text("Saved as")).to_be_visible(timeout=300_000)
        expects(other.get_by_text("1 network is not on this map")).to_be_visible()
        clean(tab, served)
        clean(second, served)
    finally:
        served.stop()
