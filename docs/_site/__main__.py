"""Build the documentation site: `python -m docs._site FOLDER` writes its sources to FOLDER/source, pages to FOLDER."""

from __future__ import annotations

import sys
from pathlib import Path

from sphinx.cmd.build import build_main

from docs._site.made import made
from docs._site.navigation import ROOT
from docs._site.staging import stage

_STRICT = ["-W", "--keep-going", "-q", "-a"]  # all pages are written: the side bar of each may have changed


def main(site: Path) -> int:
    """Stage the sources beside `site` and build it; the exit code of Sphinx, in which a warning is an error."""
    beside = site.with_name(f"{site.name}-work")
    stage(beside / "source", made())
    places = [str(beside / "source"), str(site)]
    return build_main(
        ["-b", "html", "-c", str(ROOT / "docs" / "_site"), "-d", str(beside / "doctrees"), *_STRICT, *places]
    )


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve()))
