"""The web view in a browser: how soon a page is there, its bytes, and a map of thousands of networks while it moves.

`pages`: seconds from the command `weightspace serve` to an answer; for every page the first paint, the time until all
is loaded, and bytes and requests with an empty cache. `map`: the page of an atlas whose answers are made up here (300
networks in a tree, and 5,000 with 20,000 edges): seconds until the map is first drawn, megabytes of the answers, frames
a second while it is dragged, then zoomed, and processor milliseconds of all processes for a frame of dragging. A frame
counts where something was drawn in it.

The browser is chromium without a GPU: WebGL runs on the processor, and shares it with the page, the server and whatever
else runs. A machine with a GPU is faster. Linux.

    python -m benchmarks.web [pages map]        # 2 minutes; needs chromium and the requirements of the tests
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import measure

PAGES = ("/", "/play", "/atlas", "/reports")
MAPS = ((300, 600), (5000, 20_000))
TOKEN = "a-token-of-the-benchmark"
ARCHITECTURE = "a" * 64

# counts frames in which WebGL drew, and when it first drew points
_COUNTER = """
(() => {
  const seen = { first: null, frames: 0 };
  window.drawnFrames = seen;
  let drew = false;
  for (const name of ["drawArrays", "drawElements", "drawArraysInstanced", "drawElementsInstanced"]) {
    const own = WebGL2RenderingContext.prototype[name];
    WebGL2RenderingContext.prototype[name] = function (...given) {
      drew = true;
      if (seen.first === null) seen.first = performance.now();
      return own.apply(this, given);
    };
  }
  const step = () => {
    if (drew) seen.frames += 1;
    drew = false;
    requestAnimationFrame(step);
  };
  requestAnimationFrame(step);
})();
"""


def atlas(networks: int, edges: int, seed: int = 0) -> dict[str, Any]:
    """Answers of the server for an atlas of that many networks, as the page asks for them: by address."""
    draw = random.Random(seed)
    ids = [f"{k:032x}" for k in range(networks)]
    kin = [min(int(draw.expovariate(0.15)), 39) for _ in ids]
    middles = [(draw.gauss(0, 4), draw.gauss(0, 4)) for _ in range(40)]
    points = [
        {"id": id, "x": middles[f][0] + draw.gauss(0, 0.4), "y": middles[f][1] + draw.gauss(0, 0.4), "family": f}
        for id, f in zip(ids, kin, strict=True)
    ]
    pairs = [(draw.randrange(child), child) for child in range(1, networks)]
    while len(pairs) < edges:
        child = draw.randrange(1, networks)
        pairs.append((draw.randrange(child), child))
    found: list[dict[str, Any]] = [
        {"parent": ids[a], "child": ids[b], "kind": "fine-tune", "confidence": 0.9, "distance": 0.1, "share": None,
         "renumbered": False, "why": ""}
        for a, b in pairs[:edges]
    ]  # fmt: skip
    parents: dict[str, list[dict[str, Any]]] = {}
    for edge in found:
        row = {"id": edge["parent"], "kind": "fine-tune", "confidence": 0.9, "share": None}
        parents.setdefault(edge["child"], []).append(row)
    rows = [
        {"id": id, "name": f"runs/network {k}", "architecture": 0, "dtype": "float32", "bytes": 200_000, "added": 1e9,
         "tags": ["best"] if k % 10 == 0 else [], "family": kin[k], "copies": 0, "parents": parents.get(id, []),
         "measures": {"0": draw.random()}}
        for k, id in enumerate(ids)
    ]  # fmt: skip
    first = {f: next(id for id, own in zip(ids, kin, strict=True) if own == f) for f in sorted(set(kin))}
    families = [{"family": f, "networks": kin.count(f), "middle": middle} for f, middle in first.items()]
    kind = {"id": ARCHITECTURE, "name": "demo:net", "known": True, "numbers": 50_000, "tensors": 8}
    space = {"architecture": ARCHITECTURE, "name": "demo:net", "stress": 0.12, "points": points, "families": families,
             "edges": found, "siblings": [], "notes": []}  # fmt: skip
    about = {"atlas": "runs", "networks": networks, "bytes": networks * 200_000, "mapped": 1e9,
             "architectures": [{**kind, "networks": networks, "families": len(families)}],
             "tags": [{"tag": "best", "networks": sum(k % 10 == 0 for k in range(networks))}],
             "measures": [{"name": "accuracy", "networks": networks, "low": 0, "high": 1}]}  # fmt: skip
    return {
        "/api/atlas": about,
        "/api/atlas/networks": {"architectures": [ARCHITECTURE], "measures": ["accuracy"], "networks": rows},
        "/api/atlas/map": {"made": 1e9, "new": 0, "gone": 0, "say": "", "spaces": [space], "left": []},
    }


@contextlib.contextmanager
def server() -> Iterator[tuple[str, float]]:
    """A server in a process of its own: its address, and seconds from the command to its first answer."""
    import urllib.request

    with tempfile.TemporaryDirectory() as folder:
        paths = os.pathsep.join(sys.path)
        setting = os.environ | {"WEIGHTSPACE_TOKEN": TOKEN, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "weightspace", "serve", "--port", "0", "--no-browser"]
        began = time.perf_counter()
        process = subprocess.Popen(command, cwd=folder, env=setting, text=True, stdout=subprocess.PIPE)
        try:
            assert process.stdout is not None
            said = "".join(iter(lambda: process.stdout.readline() if process.stdout else "", "Stop it with Ctrl-C.\n"))
            found = re.search(r"(http://\S+)/#token", said)
            if found is None:
                raise RuntimeError(f"the server did not start: {said}")
            urllib.request.urlopen(found[1] + "/health", timeout=20).close()
            yield found[1], time.perf_counter() - began
        finally:
            process.terminate()
            process.wait(20)
            if process.stdout is not None:
                process.stdout.close()


@contextlib.contextmanager
def browser() -> Iterator[Any]:
    """Chromium without a GPU."""
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as playwright:
        given = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        running = playwright.chromium.launch(executable_path=path, args=given)
        yield running
        running.close()


def page_of(chromium: Any, base: str, path: str, repeats: int) -> dict[str, Any]:
    """First paint and load in milliseconds (medians), bytes and requests of one page with an empty cache."""
    paints, loads, sizes, asked = [], [], 0, 0
    for _ in range(repeats):
        context = chromium.new_context(viewport={"width": 1280, "height": 900})
        page = context.new_page()
        answers = _finished(page)
        page.goto(f"{base}{path}#token={TOKEN}", wait_until="load")
        page.wait_for_timeout(2500)  # scripts ask for more
        timing = page.evaluate(
            "() => ({paint: performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? null,"
            " load: performance.getEntriesByType('navigation')[0].loadEventEnd})"
        )
        paints.append(timing["paint"])
        loads.append(timing["load"])
        asked = len(answers)
        sizes = sum(a.sizes()["responseBodySize"] + a.sizes()["responseHeadersSize"] for a in answers)
        context.close()
    paint = measure.median(paints)
    return {"page": path, "paint": paint, "load": statistics.median(loads), "bytes": sizes, "requests": asked}


def _finished(page: Any) -> list[Any]:
    """A list of the requests of a page, which grows as they are answered."""
    found: list[Any] = []
    page.on("requestfinished", lambda request: found.append(request))
    return found


def map_of(chromium: Any, base: str, networks: int, edges: int, seconds: float = 3.0) -> dict[str, Any]:
    """Time to the first drawing of a map, and frames a second while it is dragged and zoomed."""
    answers = {path: json.dumps(answer) for path, answer in atlas(networks, edges).items()}
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.add_init_script(_COUNTER)
    for path in answers:
        page.route(f"{base}{path}", partial(_answered, answers[path]))
    page.goto(f"{base}/atlas#token={TOKEN}")
    canvas = page.locator(".map-box canvas")
    canvas.wait_for(timeout=60_000)
    for _ in range(600):
        if page.evaluate("() => window.drawnFrames.first !== null"):
            break
        page.wait_for_timeout(100)
    first = page.evaluate("() => window.drawnFrames.first")
    page.wait_for_timeout(2000)
    box = canvas.bounding_box()
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.move(*middle)
    page.mouse.down()

    def drag(k: int) -> None:
        page.mouse.move(middle[0] + 120 * ((k % 40) / 20 - 1), middle[1] + k % 60)

    pan, work = _rate(page, seconds, drag)
    page.mouse.up()
    zoom, _ = _rate(page, seconds, lambda k: page.mouse.wheel(0, -60 if k % 30 < 15 else 60))
    context.close()
    return {"networks": networks, "edges": edges, "first": first / 1000, "pan": pan, "work": work,
            "zoom": zoom, "bytes": sum(map(len, answers.values()))}  # fmt: skip


def _answered(body: str, route: Any) -> None:
    route.fulfill(body=body, content_type="application/json")


def _rate(page: Any, seconds: float, move: Callable[[int], Any]) -> tuple[float, float]:
    """Frames a second in which something was drawn while `move(k)` is done again and again; processor seconds each."""
    page.wait_for_timeout(300)
    before, work, began, k = page.evaluate("() => window.drawnFrames.frames"), _processor(), time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        move(k)
        k += 1
    frames = page.evaluate("() => window.drawnFrames.frames") - before
    return frames / (time.perf_counter() - began), (_processor() - work) / max(frames, 1)


def _processor() -> float:
    """Processor seconds that all processes started from this one have used."""
    used: dict[int, float] = {}
    parent: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            pid = int(path.parent.name)
            parent[pid], used[pid] = int(fields[1]), (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    ours = {os.getpid()}
    for _ in range(8):  # generations
        ours |= {pid for pid, above in parent.items() if above in ours}
    return sum(seconds for pid, seconds in used.items() if pid in ours)


def run(
    parts: Iterable[str] = (), repeats: int = 3, seconds: float = 3.0, results: Path = measure.RESULTS,
    maps: Sequence[tuple[int, int]] = MAPS,
) -> dict[str, Any]:  # fmt: skip
    """Both parts, or those named; the other stays as it was measured before."""
    kept: dict[str, Any] = measure.kept("web", results) or {}
    wanted = list(parts) or ["pages", "map"]
    starts = []
    with browser() as chromium:
        for _ in range(repeats if "pages" in wanted else 0):
            with server() as (_, took):
                starts.append(took)
        with server() as (base, took):
            if "pages" in wanted:
                kept["start"] = statistics.median([*starts, took])
                kept["pages"] = [page_of(chromium, base, path, repeats) for path in PAGES]
            if "map" in wanted:
                kept["maps"] = [map_of(chromium, base, *sizes, seconds) for sizes in maps]
    measure.keep("web", kept, results)
    print(kept, flush=True)
    return kept


def summary(kept: dict[str, Any]) -> str:
    """Pages, then maps, in one table."""
    rows = []
    if "start" in kept:
        rows.append(["`weightspace serve`, command to answer", f"{kept['start']:.2f} s", "-", "-", "-", "-"])
    for page in kept.get("pages", []):
        paint = "-" if page["paint"] is None else f"{page['paint'] / 1000:.2f} s"
        size = f"{page['bytes'] / 1e6:.2f} MB in {page['requests']}"
        rows.append([f"page `{page['page']}`", paint, size, "-", "-", "-"])
    for row in kept.get("maps", []):
        name = f"map of {row['networks']:,} networks, {row['edges']:,} edges"
        size = f"{row['bytes'] / 1e6:.2f} MB of answers"
        moved = [f"{row['pan']:.1f}", f"{1000 * row['work']:.0f}", f"{row['zoom']:.1f}"]
        rows.append([name, f"{row['first']:.2f} s", size, *moved])
    head = "what | first paint, or first drawn | bytes | frames a second, dragged | processor ms a frame | zoomed"
    return measure.table(head, rows)


_PARTS = {"nargs": "*", "metavar": "PART", "help": "pages, map"}
main = measure.command("web", __doc__, run, summary, {"parts": _PARTS, "--repeats": 3, "--seconds": 3.0})


if __name__ == "__main__":
    main()
