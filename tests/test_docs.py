"""What the pages show, holds: their Python runs, their commands exist, their links lead somewhere."""

from __future__ import annotations

import re
import shlex
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

import weightspace as ws
from weightspace.cli import app

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG", "SECURITY")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
PAGES += [page for folder in ("benchmarks", "experiments") for page in (ROOT / folder).glob("README.md")]
TARGETS = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
LATEX = set(
    """Delta Gamma Lambda Omega Pi Sigma ast bar beta cdot delta det dot eta frac ge in infty int lVert lambda le left
ln log mapsto mathbb mathcal mathrm max mid min mu nabla odot phi prod psi qquad quad rVert rho right sigma sim
sqrt sum tau text theta times to top varepsilon""".split()
)
COMMANDS = typer.main.get_command(app)


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def run(text: str, name: str = "page") -> None:
    """Every Python block of a page in order, in one namespace; a warning is an error."""
    space = {"__name__": name}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for block in blocks(text, "python"):
            exec(compile(block, name, "exec"), space)


def wrong_commands(text: str) -> Iterator[str]:
    """Shell lines of a page that name no target of the Makefile, or no command or option of the command line."""
    inline = re.findall(r"`((?:make|weightspace|python -m) [^`]+)`", text)
    lines = [line for block in blocks(text, "sh") for line in block.splitlines()]
    for line in [*inline, *lines]:
        program, *words = shlex.split(line)
        if program == "weightspace":
            if problem := _parsed(words):
                yield f"{line}: {problem}"
        elif program == "make":
            yield from (f"{line}: no target {word}" for word in words if word not in TARGETS and "=" not in word)
        elif words[0] == "-m" and words[1] != "venv":
            if not (ROOT / words[1].replace(".", "/")).with_suffix(".py").exists():
                yield f"{line}: no such module"
        elif words[:2] != ["-m", "venv"]:
            yield f"{line}: not known to this test"


def _parsed(words: list[str]) -> str:
    name, *rest = words
    if name in {option for given in COMMANDS.params for option in given.opts}:
        return ""
    found = COMMANDS
    while hasattr(found, "commands"):
        if name not in found.commands:
            return f"no command {name}"
        found = found.commands[name]
        if hasattr(found, "commands"):
            if not rest:
                return ""
            name, *rest = rest
    try:
        found.make_context(name, rest)
    except Exception as error:  # a usage error: of click, or of the copy of it inside of typer
        return str(error) or type(error).__name__
    return ""


def dead_links(text: str, folder: Path) -> list[str]:
    """Links of a page in a folder that lead to no file, or to no heading of one."""
    links = re.findall(r"\]\(([^)#:]*)(?:#([^):]*))?\)", text)
    dead = [link for link, _ in links if not (folder / link).exists()]
    anchored = [(link, anchor) for link, anchor in links if anchor and link not in dead]
    return dead + [
        f"{link}#{anchor}"
        for link, anchor in anchored
        if anchor not in anchors((folder / link).read_text() if link else text)
    ]


def anchors(text: str) -> set[str]:
    """The anchors of the headings of a page, as GitHub makes them."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def name(page: Path) -> str:
    """A page's path from the root, without its ending: the id of its tests."""
    return page.relative_to(ROOT).with_suffix("").as_posix().removeprefix("docs/")


def wrong_formulas(text: str) -> Iterator[str]:
    """Formulas that a simple converter cannot take: unknown commands, braces or dollars that do not close."""
    text = re.sub(r"^```.*?^```$|`[^`]*`", "", text, flags=re.MULTILINE | re.DOTALL)
    if text.replace("$$", "").count("$") % 2 or text.count("$$") % 2:
        yield "a dollar does not close"
    for displayed, inline in re.findall(r"\$\$(.+?)\$\$|\$(.+?)\$", text, re.DOTALL):
        formula = displayed or inline
        if unknown := set(re.findall(r"\\([A-Za-z]+)", formula)) - LATEX:
            yield f"{formula}: {sorted(unknown)}"
        if formula.count("{") != formula.count("}") or formula.count("\\left") != formula.count("\\right"):
            yield f"{formula}: does not close"
        if "|" in formula and not displayed:
            yield f"{formula}: a bar ends a cell of a table; write \\mid or \\lVert"


def what_is_next(text: str) -> str:
    """The last paragraph of a page, if it is a line "Next: ..." that names a page or something to type."""
    last = text.rstrip("\n").split("\n\n")[-1]
    return last if re.match(r"Next: .*(\]\(|`)", last, re.DOTALL) else ""


SHOWN = [
    pytest.param(page, marks=[pytest.mark.slow] if page.stem == "all-of-it" else [], id=name(page))
    for page in PAGES
    if blocks(page.read_text(), "python")
]


@pytest.mark.parametrize("page", SHOWN)
def test_the_python_of_a_page_runs(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run(page.read_text(), page.stem)
    assert capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_the_commands_and_links_of_a_page_exist(page):
    assert not list(wrong_commands(page.read_text()))
    assert not dead_links(page.read_text(), page.parent)


def test_the_formulas_of_the_theory_are_of_simple_latex():
    page = (ROOT / "docs" / "theory.md").read_text()
    assert page.count("$$") > 20 and not list(wrong_formulas(page))


def test_the_readme_shows_the_two_commands_first():
    assert blocks((ROOT / "README.md").read_text(), "sh")[0].split("\n") == ["make demo", "make test", ""]


def test_every_page_of_the_docs_is_in_the_index():
    """Of its own folder; and that index in the one above."""
    listed = {
        (index.parent / link).resolve()
        for index in (ROOT / "docs").rglob("index.md")
        for link in re.findall(r"\]\(([\w./-]+\.md)\)", index.read_text())
    }
    assert {page for page in PAGES if (ROOT / "docs") in page.parents} - {ROOT / "docs" / "index.md"} <= listed


@pytest.mark.parametrize("page", [page for page in PAGES if (ROOT / "docs") in page.parents], ids=name)
def test_a_page_ends_with_what_is_next(page):
    assert what_is_next(page.read_text())


def test_the_gallery_shows_every_figure_that_is_kept():
    shown = re.findall(r"results/(\w+)\.png", (ROOT / "docs" / "gallery.md").read_text())
    assert sorted(shown) == sorted(figure.stem for figure in (ROOT / "experiments" / "results").glob("*.png"))


def test_the_api_page_names_what_is_public():
    rows = re.findall(r"^\| `(\w+)` \| .+ \|$", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE)
    handed_on = [name for names in ws._CONTENTS.values() for name in names]
    assert sorted(rows) == sorted([*ws._CONTENTS, *handed_on, "demo", "optim"])
    assert set(ws.__all__) <= set(rows) and all(getattr(ws, name) is not None for name in rows)


def test_the_architecture_page_has_a_line_for_every_wing_and_file():
    """A wing has a row in the first table; a file has one in the table under the heading of its wing."""
    head, *wings = re.split(r"^### (?=\w+$)", (ROOT / "docs" / "architecture.md").read_text(), flags=re.MULTILINE)
    house = ROOT / "src" / "weightspace"
    parts = {
        p.stem if p.suffix else p.name for p in house.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()
    }
    assert set(_rows(head)) == parts - {"__init__"}
    for text in wings:
        wing, _, table = text.partition("\n")
        files = {".".join(p.relative_to(house / wing).with_suffix("").parts) for p in (house / wing).rglob("*.py")}
        assert set(_rows(table.split("\n## ")[0])) - {"rules"} == {f for f in files if not f.endswith("__init__")}, wing
    assert {text.partition("\n")[0] for text in wings} == {p for p in parts if (house / p).is_dir()}


def _rows(text: str) -> list[str]:
    """The names in the first column of tables."""
    return [name for row in re.findall(r"^\| (`.+?) \|", text, re.MULTILINE) for name in re.findall(r"`([\w.]+)`", row)]


def test_wrong_pages_are_seen(tmp_path):
    with pytest.raises(AssertionError):
        run("```python\nassert 1 == 2\n```\n")
    with pytest.raises(UserWarning):
        run("```python\nimport warnings\nwarnings.warn('old')\n```\n")
    lines = [
        "weightspace bake",
        "weightspace atlas bake",
        "weightspace atlas list --bake",
        "weightspace atlas list",
        "weightspace demo --fast",
        "weightspace demo --seed 1",
        "rm x",
    ]
    shown = "`make tea`, `python -m tests.nothing`\n```sh\n" + "\n".join(lines) + "\n```\n"
    assert len(list(wrong_commands(shown))) == 7
    (tmp_path / "page.md").touch()
    assert dead_links("[here](page.md), [there](nowhere.md), [web](https://example.org)", tmp_path) == ["nowhere.md"]
    (tmp_path / "page.md").write_text("# One thing\n")
    text = "# One\n\n[it](#one), [no](#another), [no](page.md#two), [it](page.md#one-thing)"
    assert dead_links(text, tmp_path) == ["#another", "page.md#two"]
    assert what_is_next("# A\n\nNext: `weightspace demo`.\n")
    assert not what_is_next("# A\n\nNext: `weightspace demo`.\n\nMore.\n")
    assert not what_is_next("# A\n\nNext: nothing.\n")
    assert not list(wrong_formulas("$a^{2}$ and `$b` and\n\n$$\\left( x \\right)$$\n"))
    for wrong in ("$a", "$a^{2$", "$\\align$", "| $|a|$ |", "$$\\left( a$$"):
        assert len(list(wrong_formulas(wrong))) == 1, wrong
