"""The table of contents of the documentation site: sections in the order of a reader's questions, and their pages."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

__all__ = ["FOLDED", "FRONT", "ROOT", "SECTIONS", "TITLES", "Section", "contents", "pages_of", "site_name"]

ROOT = Path(__file__).parents[2]
FRONT = "docs/index.md"
TITLES = {"readme": "Overview", "api": "Every name in a line", "api/index": "Python, wing by wing"}  # in the side bar

FOLDED = ("how-to",)  # folders whose pages stand below their index in the side bar


@dataclass(frozen=True)
class Section:
    """A caption of the side bar, and patterns of its pages: paths in the repository, or pages that are made."""

    caption: str
    patterns: tuple[str, ...]


SECTIONS = (
    Section("First steps", ("README.md", "docs/all-of-it.md", "docs/first-steps/*.md")),
    Section("Tutorials", ("docs/tutorials/*.md", "docs/tutorials/*.ipynb")),
    Section(
        "How to",
        (
            "docs/how-to/index.md",
            "docs/how-to/*.md",
            "docs/choosing.md",
            "docs/merging.md",
            "docs/atlas.md",
            "docs/web.md",
            "docs/playground.md",
            "docs/jobs.md",
            "docs/gpu.md",
            "docs/in_ci.md",
            "docs/json.md",
            "docs/integrations.md",
            "docs/extending.md",
        ),
    ),
    Section("Reference", ("commands", "docs/api.md", "api/index", "docs/web_api.md")),
    Section("Theory and claims", ("docs/theory.md", "docs/claims.md", "experiments/README.md")),
    Section("Figures", ("docs/gallery.md",)),
    Section(
        "Project",
        (
            "docs/architecture.md",
            "benchmarks/README.md",
            "docs/dependencies.md",
            "docs/versions.md",
            "CONTRIBUTING.md",
            "CHANGELOG.md",
            "SECURITY.md",
        ),
    ),
)


def pages_of(root: Path = ROOT) -> list[str]:
    """The pages of a repository, as paths in it: at its top, in `docs/`, and those of the folders of measurements."""
    found = [*root.glob("*.md"), *root.glob("benchmarks/README.md"), *root.glob("experiments/README.md")]
    found += [path for kind in ("md", "ipynb") for path in root.glob(f"docs/**/*.{kind}")]
    names = sorted(path.relative_to(root).as_posix() for path in found)
    return [name for name in names if not any(part.startswith((".", "_")) for part in name.split("/"))]


def site_name(page: str) -> str:
    """The name of a page of the repository on the site, without an ending: `docs/jobs.md` is `jobs`.

    >>> site_name("docs/how-to/merge.md"), site_name("experiments/README.md"), site_name("CHANGELOG.md")
    ('how-to/merge', 'experiments', 'changelog')
    """
    stem = page.removeprefix("docs/").rpartition(".")[0]
    return stem.removesuffix("/README") if "/" in stem else stem if page.startswith("docs/") else stem.lower()


def contents(pages: Iterable[str], made: Iterable[str]) -> dict[str, list[str]]:
    """Caption -> names on the site of the pages below it, in the order of `SECTIONS`; an empty section is left out.

    `pages`: pages of the repository; `made`: names of pages that are made. Raises `ValueError` for a page that no
    section has, and for one that two have.
    """
    names = {page: site_name(page) for page in pages if page != FRONT} | {name: name for name in made}
    placed: dict[str, str] = {}
    table: dict[str, list[str]] = {}
    for section in SECTIONS:
        for pattern in section.patterns:
            for page in (p for p in names if fnmatch(p, pattern) and placed.get(p) != section.caption):
                if page in placed:
                    raise ValueError(f"{page} is in two sections, {placed[page]!r} and {section.caption!r}")
                placed[page] = section.caption
                table.setdefault(section.caption, []).append(names[page])
    if lost := sorted(set(names) - set(placed)):
        raise ValueError(f"no section of docs/_site/navigation.py has {', '.join(lost)}: add a row for it")
    return table
