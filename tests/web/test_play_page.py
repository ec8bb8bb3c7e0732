"""The playground in a browser: train, shake, take back, share, shuffle and align, and a server that goes away."""

import re
import time
from urllib.parse import parse_qs, urlparse

import pytest
from playwright.sync_api import expect

from tests.web.conftest import Running, opened

WAIT = 30_000


def go(tab, server, query=""):
    page = tab.page
    page.set_default_timeout(WAIT)
    page.goto(f"{server.base}/play{query}#token={server.token}")
    expect(page.locator("#play")).to_be_enabled(timeout=WAIT)
    return page


def number(text):
    plain = text.replace(",", "").replace("%", "").replace("\u00b710", "e").strip()
    return float(
        plain.translate(
            str.maketrans("\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079\u207b", "0123456789-")
        )
    )


def shown(page, name):
    return number(page.locator(f"#{name}").inner_text())


def until(seen, seconds=30.0):
    """Wait until `seen()` is true; the content policy forbids scripts that are given as text."""
    end = time.monotonic() + seconds
    while not seen():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def steps(page):
    return int(page.locator("#count").get_attribute("data-step"))


def quiet(tab, server):
    assert tab.bad == [] and tab.strangers(server.base) == []


EASY = "?data=gauss&depth=2&width=4&noise=0.02&rate=0.03&points=200"
CURVED = "?data=circle&depth=3&width=8&noise=0.02&rate=0.02&points=200"  # which noise does not leave right by luck


def test_a_tour_with_the_red_button(tab, server):
    page = go(tab, server, CURVED)
    page.click("#play")
    until(lambda: shown(page, "test-accuracy") > 95 and shown(page, "train-loss") < 0.05)
    page.click("#play")
    expect(page.locator("#status")).to_contain_text("Paused")
    before = page.locator("#train-loss").inner_text()
    page.get_by_label("Noise in percent", exact=True).fill("150")
    page.keyboard.press("Tab")
    for press in (1, 2, 3):
        page.click("#noise")
        expect(page.locator(".undo")).to_have_text("Undo" if press == 1 else f"Undo ({press})")
    assert shown(page, "train-loss") > 2 * number(before)
    row = page.locator(".verdict tbody tr").first
    expect(row.locator("td").nth(2)).not_to_have_text("…", timeout=WAIT)
    assert all(re.search(r"\d.* %$|none", cell) for cell in row.locator("td").all_inner_texts())
    expect(page.locator(".verdict")).to_contain_text("All 3 presses")
    for _ in range(3):
        page.click(".undo")
    expect(page.locator("#train-loss")).to_have_text(before)
    expect(page.locator(".undo")).to_be_disabled()
    page.click("#play")
    expect(page.locator("#status")).to_contain_text("Training")
    page.click("#noise")
    expect(page.locator("#status")).to_contain_text("Noise of")
    expect(row.locator("td").nth(2)).to_have_text(re.compile(r"\d|none"), timeout=WAIT)
    expect(page.locator("#play")).to_contain_text("Train")
    quiet(tab, server)


def test_the_address_holds_the_set_up_and_brings_it_back(tab, server):
    page = go(tab, server)
    assert urlparse(page.url).query == "" and "token" not in page.url
    page.get_by_label("Spiral", exact=True).check(force=True)
    page.get_by_label("Layers", exact=True).select_option("5")
    page.get_by_label("Algorithm").select_option("fromage")
    page.click("#tab-inside")
    want = {"data": ["spiral"], "depth": ["5"], "algorithm": ["fromage"], "tab": ["inside"]}
    until(lambda: parse_qs(page.evaluate("() => location.search.slice(1)")) == want)
    page.reload()
    expect(page.get_by_label("Layers", exact=True)).to_have_value("5")
    expect(page.get_by_label("Algorithm")).to_have_value("fromage")
    expect(page.get_by_label("Spiral", exact=True)).to_be_checked()
    expect(page.locator("#tab-inside")).to_have_attribute("aria-selected", "true")
    page.goto(f"{server.base}/play?depth=99")
    expect(page.locator("#status")).to_contain_text("Depth is 99; give a whole number from 1 to 20")
    expect(page.locator("#play")).to_be_enabled()
    quiet(tab, server)


def test_the_keys(tab, server):
    page = go(tab, server, EASY)
    page.keyboard.press("ArrowRight")
    until(lambda: steps(page) == 1)
    page.keyboard.press("n")
    expect(page.locator("#status")).to_contain_text("Noise of 20 %")
    page.keyboard.press("u")
    expect(page.locator("#status")).to_contain_text("Back to the weights")
    page.keyboard.press(" ")
    until(lambda: steps(page) > 5)
    page.keyboard.press(" ")
    expect(page.locator("#status")).to_contain_text("Paused")
    page.keyboard.press("r")
    until(lambda: steps(page) == 0)
    page.get_by_label("Seed").focus()
    page.keyboard.press("n")  # text here, and no command
    expect(page.locator(".undo")).to_be_disabled()
    page.locator("#reset").focus()
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_contain_text("add noise")
    quiet(tab, server)


def test_a_weight_is_changed_by_its_place_and_by_a_click_on_its_line(tab, server):
    page = go(tab, server, "?depth=1&width=2")
    page.get_by_label("Layer of the weight").select_option("2")
    page.get_by_label("Source of the weight").select_option("2")
    value = page.get_by_label("Value of the weight")
    value.fill("2.5")
    value.press("Enter")
    expect(page.locator("#status")).to_contain_text("Changed to 2.5")
    page.get_by_label("Layer of the weight").select_option("1")
    canvas = page.get_by_label("Network 1, drawn").locator("canvas")
    box = canvas.bounding_box()
    for share in (0.6, 0.7, 0.8):  # somewhere between the hidden layer and the output there is a line
        for down in range(60, 320, 6):
            canvas.click(position={"x": share * box["width"], "y": down})
            if page.get_by_label("Layer of the weight").input_value() == "2":
                break
    assert page.get_by_label("Layer of the weight").input_value() == "2"
    quiet(tab, server)


def test_a_shuffled_network_is_the_same_function_and_aligned_the_barrier_falls(tab, server):
    page = go(tab, server, "?data=xor&depth=1&width=8&activation=relu&rate=0.03&other=1&points=100&tab=two")
    page.click("#play")
    until(lambda: shown(page, "train-accuracy") > 90)
    page.click("#play")
    barrier = page.locator("#barrier")
    expect(barrier).to_contain_text("Barrier now", timeout=WAIT)
    page.click("#shuffle")
    told = page.locator("#pair-told")
    expect(told).to_contain_text("its outputs changed by at most")
    assert float(re.search(r"at most (\S+?)\. Group", told.inner_text())[1]) < 1e-6
    expect(page.locator("#status")).not_to_contain_text("Measuring", timeout=WAIT)
    page.wait_for_timeout(600)
    expect(page.locator("#status")).not_to_contain_text("Measuring", timeout=WAIT)
    page.click("#align")
    expect(barrier).to_contain_text("before aligning", timeout=WAIT)
    now = re.compile(r"Barrier now ([\d.]+), before aligning ([\d.]+)")
    until(lambda: (m := now.search(barrier.inner_text())) and float(m[1]) < float(m[2]))
    page.get_by_label("Position between the networks").press("ArrowRight")
    expect(page.locator(".half").first).to_contain_text("% right", timeout=WAIT)
    quiet(tab, server)


def test_training_ends_a_walk_and_goes_on(tab, server):
    page = go(tab, server, EASY + "&tab=walk")
    page.click("#walk")
    told = page.locator("#walk-told")
    expect(told).to_contain_text(re.compile("Step [1-9]"), timeout=WAIT)
    page.click("#play")
    expect(told).to_contain_text("The walk has ended: the network was trained or changed.")
    expect(page.locator("#walk")).to_be_enabled()
    expect(page.locator("#walk")).to_have_text("Begin again")
    expect(page.get_by_role("button", name="Go on")).to_have_count(0)
    before = steps(page)
    until(lambda: steps(page) > before + 100)
    expect(page.locator("#status")).to_have_text("Training.")
    expect(page.locator("#status.bad")).to_have_count(0)
    page.click("#walk")
    expect(page.locator("#play")).to_contain_text("Train")
    expect(told).not_to_contain_text("has ended")
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_role("button", name="Go on")).to_be_visible()
    page.keyboard.press("Escape")
    page.locator("#walk").blur()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("button", name="Go on")).to_have_count(0)
    expect(told).to_contain_text("The walk has ended")
    quiet(tab, server)


def test_what_was_measured_goes_with_its_network(tab, server):
    page = go(tab, server, EASY + "&tab=inside")
    for press in ("how much of it is wrong?", "Count the nats"):
        page.get_by_role("button", name=press).click()
        expect(page.locator("#status")).not_to_contain_text(re.compile("Measuring|Counting"), timeout=WAIT)
    change, nats = page.get_by_text("the gradient has changed"), page.get_by_text("effective weights")
    for renew in (lambda: page.click("#reset"), lambda: page.get_by_label("Activation").select_option("relu")):
        expect(change).to_be_visible(timeout=WAIT)
        expect(nats).to_be_visible(timeout=WAIT)
        renew()
        expect(change).to_have_count(0)
        expect(nats).to_have_count(0)
        for press in ("how much of it is wrong?", "Count the nats"):
            page.get_by_role("button", name=press).click()
    quiet(tab, server)


def test_network_1_stays_when_network_2_is_removed(tab, server):
    page = go(tab, server, EASY + "&other=1&tab=two")
    for k in range(1, 4):
        page.keyboard.press("ArrowRight")
        until(lambda k=k: steps(page) == k)
    loss = page.locator("#train-loss").inner_text()
    page.click("#alone")
    expect(page.locator("#status")).to_contain_text("network 1 is as it was")
    assert steps(page) == 3 and page.locator("#train-loss").inner_text() == loss
    page.get_by_text("Add a second network").click()
    expect(page.locator("#status")).to_contain_text("Both networks begin anew")
    until(lambda: steps(page) == 0)
    quiet(tab, server)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_at_phone_width_nothing_scrolls_sideways(chromium, server, scheme):
    tab = opened(chromium, width=390, height=844, color_scheme=scheme)
    try:
        page = go(tab, server, "?depth=20&width=2")
        for name in ("shake", "two", "walk", "inside", "digits", "exercises"):
            page.click(f"#tab-{name}")
            expect(page.locator(f"#tab-{name}")).to_have_attribute("aria-selected", "true")
            assert page.evaluate("() => document.documentElement.scrollWidth") <= 390, name
        bar, theme = page.locator("nav.bar"), page.get_by_label("Theme")
        assert bar.bounding_box()["width"] == page.evaluate("() => document.documentElement.clientWidth")
        rows = {round(item.bounding_box()["y"] / 20) for item in bar.locator("a.page").all()}
        assert len(rows) == 1 and bar.bounding_box()["height"] < 110
        middles = [
            box["y"] + box["height"] / 2 for box in (theme.bounding_box(), page.get_by_label("Help").bounding_box())
        ]
        assert abs(middles[0] - middles[1]) < 3
        box = page.get_by_label("Network 1, drawn")
        assert box.evaluate("box => box.scrollWidth > box.clientWidth")  # the network scrolls in its own box
        quiet(tab, server)
    finally:
        tab.page.context.close()


def test_every_control_and_picture_has_a_name(tab, server):
    page = go(tab, server, "?other=1&depth=1&width=2&points=40")
    for name in ("shake", "two", "walk", "inside", "digits", "exercises"):
        page.click(f"#tab-{name}")
        nameless = page.evaluate(
            """() => [...document.querySelectorAll("main button, main input, main select, main canvas")]
                .filter((e) => !(e.getAttribute("aria-label") || e.labels?.length || e.textContent.trim()
                    || e.getAttribute("aria-hidden"))).map((e) => e.outerHTML.slice(0, 200))"""
        )
        assert nameless == [], name
    quiet(tab, server)


def test_digits_change_under_noise(tab, server):
    page = go(tab, server, "?tab=digits")
    sheet = page.get_by_label("Forty generated digits, one column for each")
    told = page.locator("#digits-told")
    expect(told).to_contain_text("No noise yet")
    page.wait_for_timeout(500)
    clean = sheet.evaluate("canvas => canvas.toDataURL()")
    for press in (1, 2):
        page.click("#burst")
        expect(told).to_contain_text(re.compile(rf"^{press} press.*moved by \d"), timeout=WAIT)
    until(lambda: sheet.evaluate("canvas => canvas.toDataURL()") != clean)
    page.get_by_text("Take it back").click()
    until(lambda: sheet.evaluate("canvas => canvas.toDataURL()") == clean)
    quiet(tab, server)


@pytest.mark.slow
def test_a_longer_tour(tab, server):
    page = go(tab, server, "?data=spiral&depth=3&width=12&rate=0.01&activation=relu&noise=0.02")
    page.click("#play")
    until(lambda: shown(page, "test-accuracy") > 95, 120)
    page.click("#play")
    page.click("#tab-shake")
    page.get_by_text("Measure the stability curve").click()
    expect(page.get_by_label("Change of the outputs against the size of the noise")).to_be_visible(timeout=WAIT)
    page.locator(".map canvas").click(position={"x": 150, "y": 150})
    page.click("#tab-inside")
    expect(page.locator("#paths-told")).to_contain_text("turns on", timeout=WAIT)  # of the point that was clicked
    page.get_by_label("Number of the training point").fill("3")
    page.keyboard.press("Enter")
    expect(page.locator("#paths-told")).to_contain_text("Point 3 turns on")
    page.get_by_text("Count the nats").click()
    expect(page.get_by_text("effective weights")).to_be_visible(timeout=WAIT)
    page.click("#tab-walk")
    page.click("#walk")
    told = page.locator("#walk-told")
    expect(told).to_contain_text(re.compile("Step [2-9][0-9]|The walk ended"), timeout=60_000)
    assert float(re.search(r"new points ([\d.]+) %", told.inner_text())[1]) > 75
    drift, budget = map(float, re.search(r"drift ([\d.]+) of ([\d.]+)\.", told.inner_text()).groups())
    assert drift <= budget
    quiet(tab, server)


@pytest.mark.slow
def test_the_exercise_of_depth_shows_two_networks_side_by_side(tab, server):
    page = go(tab, server, "?tab=exercises&other=3")
    page.get_by_label("Shallow against deep").get_by_text("Do it").click()
    expect(page.locator(".result")).to_have_count(2, timeout=240_000)
    expect(page.locator(".result").nth(0)).to_contain_text("1 layer")
    expect(page.locator(".result").nth(1)).to_contain_text("20 layers")
    quiet(tab, server)


@pytest.mark.slow
def test_eight_layers_of_eight_are_drawn_often(tab, server):
    page = go(tab, server, "?depth=8&width=8&data=spiral&activation=relu")
    page.click("#play")
    rates = []
    for _ in range(8):
        page.wait_for_timeout(1000)
        rates.append(float(page.locator("#count").get_attribute("data-fps")))
    print("frames a second:", rates)
    assert max(rates) >= 15
    quiet(tab, server)


@pytest.mark.slow
def test_a_server_that_was_away_is_noticed_and_the_page_goes_on(chromium, tmp_path):
    running = Running([], tmp_path).start()
    first, second = opened(chromium), opened(chromium)
    try:
        one, two = go(first, running, "?data=xor&depth=2"), go(second, running, "?data=spiral&depth=4")
        one.click("#play")
        two.click("#play")
        until(lambda: steps(one) > 5 and steps(two) > 5)
        running.stop(kill=True)
        expect(one.get_by_role("alert")).to_contain_text("does not answer", timeout=WAIT)
        expect(one.locator("#status")).to_contain_text("connection is lost", timeout=WAIT)
        running.page = ""
        running.start()
        for page, depth in ((one, "2"), (two, "4")):
            expect(page.locator("#status")).to_contain_text("drawn anew", timeout=60_000)
            expect(page.get_by_label("Layers", exact=True)).to_have_value(depth)
            page.click("#play")
            until(lambda page=page: steps(page) > 5)
        assert first.strangers(running.base) == [] and second.strangers(running.base) == []
    finally:
        for tab in (first, second):
            tab.page.context.close()
        running.stop()
