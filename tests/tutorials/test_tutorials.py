"""The tutorials: their outputs are those of their code, and what they print is printed again.

Numbers of a slow test may differ from the committed ones by .02 and a tenth, percentages by three points and a tenth:
networks are trained anew, and another machine adds sums in another order.
"""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_docs import dead_links, wrong_commands
from tests.tutorials.notebook import FOLDER, ROOT, Notebook, different, run, text_of, wrong_code

PAGES = sorted(FOLDER.glob("*.ipynb"))
INDEX = FOLDER / "index.md"
LARGEST = 400_000  # bytes
LONGEST = 120  # seconds of processor time
FIGURES = 3
LINES, WIDTH = 32, 100  # of a cell: what a page shows without scrolling
_MACHINE = re.compile(r"/(?:tmp|home|root|usr|work|Users|var|opt)/|[A-Z]:\\\\")

each = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def wrong_outputs(page: Notebook) -> list[str]:
    """What is wrong with the outputs of a notebook: stale, failed, of this machine, or too many."""
    found = []
    if page.metadata.get("code_sha256") != page.digest:
        found.append("the outputs are those of other code: make tutorials")
    outputs = [out for cell in page.of("code") for out in cell["outputs"]]
    found += [f"an error: {out['ename']}" for out in outputs if out["output_type"] == "error"]
    found += [f"on stderr: {text_of(out['text'])}" for out in outputs if out.get("name") == "stderr"]
    shown = page.markdown + "".join(page.code) + "".join(page.printed())
    found += [f"a path of this machine: {path}" for path in _MACHINE.findall(shown)]
    found += [f"an escape sequence in {text}" for text in page.printed() if "\x1b" in text]
    figures = [out for out in outputs if "image/png" in out.get("data", {})]
    if len(figures) > FIGURES:
        found.append(f"{len(figures)} figures")
    others = [out for out in outputs if out["output_type"] != "stream" and out not in figures]
    return found + [f"neither text nor a figure: {out['output_type']}" for out in others]


@each
def test_the_outputs_of_a_tutorial_are_those_of_its_code(page):
    assert not wrong_outputs(Notebook.read(page))
    assert page.stat().st_size < LARGEST


@each
def test_cells_compile_commands_parse_and_links_lead_somewhere(page):
    found = Notebook.read(page)
    assert not wrong_code(found.code)
    assert not list(wrong_commands(found.markdown))
    assert not dead_links(found.markdown, FOLDER)


@each
def test_a_tutorial_says_first_what_it_is_for_and_last_what_comes_next(page):
    cells = Notebook.read(page).cells
    first, last = (text_of(cells[at]["source"]) for at in (0, -1))
    assert first.startswith("# ") and "After" in first and len(first) < 900
    assert "## Next" in last and "](" in last
    sources = [text_of(cell["source"]).splitlines() for cell in cells if cell["cell_type"] == "code"]
    assert max(map(len, sources)) <= LINES and max(len(line) for lines in sources for line in lines) <= WIDTH


def test_the_index_has_all_tutorials():
    text = INDEX.read_text()
    assert set(re.findall(r"[\w-]+\.ipynb", text)) == {page.name for page in PAGES}
    assert not dead_links(text, FOLDER) and not list(wrong_commands(text))


@pytest.mark.slow
@each
def test_a_tutorial_prints_the_same_again(page, tmp_path):
    command = [sys.executable, "-W", "error", "-m", "tests.tutorials.notebook", str(page)]
    where = f"{ROOT / 'src'}:{ROOT}"
    settings = {"PYTHONPATH": where, "OMP_NUM_THREADS": "1", "COLUMNS": "98", "NO_COLOR": "1"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, cwd=tmp_path, env=_environment() | settings, capture_output=True, text=True,
                          timeout=4 * LONGEST)  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    for old, new in zip(Notebook.read(page).printed(), json.loads(done.stdout), strict=True):
        assert not different(old, new)
    assert after.ru_utime - before.ru_utime < LONGEST


def _environment() -> dict[str, str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path}


def _page(source: str, *outputs: dict, digest: str = "") -> Notebook:
    cell = {"cell_type": "code", "source": source, "outputs": list(outputs)}
    page = Notebook([cell], {})
    return Notebook([cell], {"code_sha256": digest or page.digest})


def test_wrong_notebooks_are_seen(tmp_path, monkeypatch):
    printed = {"output_type": "stream", "name": "stdout", "text": ["loss 0.513\n"]}
    assert not wrong_outputs(_page("print(1)", printed))
    assert wrong_outputs(_page("print(2)", printed, digest=_page("print(1)").digest))
    assert wrong_outputs(_page("print(1)", printed | {"name": "stderr"}))
    assert wrong_outputs(_page("print(1)", printed | {"text": f"in {os.sep}tmp/x.py"}))
    assert wrong_outputs(_page("x", {"output_type": "error", "ename": "NameError"}))
    assert wrong_outputs(_page("x", {"output_type": "execute_result", "data": {"text/plain": "1"}}))
    assert len(wrong_code(["x = (", "%%sh\nls (", "%%time\n1", "%%writefile a.py\nx =", "x = 1"])) == 3
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AssertionError):
        run(["x = 1", "assert x == 2"])
    with pytest.raises(RuntimeError):
        run(["%%sh\nexit 3"])


def test_changed_numbers_and_words_are_seen():
    text = "barrier 0.513 of 1,250 (97.2%), 3e-07\n ──── \n"
    assert not different(text, text)
    assert not different(text, "barrier  0.53 of 1,251 (96.8%), 1.2e-06\n ────── \n")
    assert not different("a 217c519e", "a e198989e") and different("a 217c519e", "a b e198989e")
    assert different(text, text.replace("0.513", "0.613"))
    assert different(text, text.replace("97.2", "67.2"))
    assert different(text, text.replace("1,250", "125"))
    assert different(text, text.replace("barrier", "bound"))
    assert different(text, text + "7\n")
    assert not different("5% of 40", "7% of 40") and different("5% of 40", "9% of 40")
