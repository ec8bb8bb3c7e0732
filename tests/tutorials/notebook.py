"""Notebooks of docs/tutorials read, hashed and run without Jupyter.

`python -m tests.tutorials.notebook page.ipynb` runs the code cells in order, in one namespace and the current folder,
and prints what each of them printed, as a JSON list.
"""

from __future__ import annotations

import ast
import hashlib
import io
import json
import re
import subprocess
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "tutorials"
ABSOLUTE, RELATIVE, POINTS = 0.02, 0.1, 3.0  # of numbers that are computed anew; points of percentages
_HASH = re.compile(r"(?<!\S)[0-9a-f]{8}(?!\S)")
_NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?|(?<![\w.])[-+]?\.\d+")


def text_of(lines: str | list[str]) -> str:
    """The text of a field of a notebook, which may be one string or a list of lines."""
    return lines if isinstance(lines, str) else "".join(lines)


@dataclass(frozen=True)
class Notebook:
    """A notebook as its file holds it: `cells` and `metadata` of the format, version 4.5."""

    cells: list[dict[str, Any]]
    metadata: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> Notebook:
        """The notebook of a file."""
        found = json.loads(path.read_text())
        return cls(found["cells"], found["metadata"])

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The cells of a kind: "code" or "markdown"."""
        return [cell for cell in self.cells if cell["cell_type"] == kind]

    @property
    def code(self) -> list[str]:
        """The source of every code cell."""
        return [text_of(cell["source"]) for cell in self.of("code")]

    @property
    def digest(self) -> str:
        """A hash of the code cells: outputs belong to this code if the metadata hold the same."""
        return hashlib.sha256(json.dumps(self.code).encode()).hexdigest()

    @property
    def markdown(self) -> str:
        """The text cells, and the shell cells as blocks of a page."""
        shown = []
        for cell in self.cells:
            source = text_of(cell["source"])
            if cell["cell_type"] == "markdown":
                shown.append(source)
            elif source.startswith("%%sh\n"):
                lines = source[5:].replace("\\\n", " ").splitlines()
                commands = "\n".join(re.split(r" [|>] ", line)[0] for line in lines)
                shown.append(f"```sh\n{commands}\n```\n")
        return "\n\n".join(shown)

    def printed(self) -> list[str]:
        """What every code cell printed, as its outputs hold it."""
        return [
            "".join(text_of(out["text"]) for out in cell["outputs"] if out.get("name") == "stdout")
            for cell in self.of("code")
        ]


def run(sources: list[str]) -> list[str]:
    """What cells print, run in order in one namespace and the current folder; `%%sh` and `%%writefile` are known."""
    space: dict[str, Any] = {"__name__": "__main__"}
    sys.path.insert(0, str(Path.cwd()))
    return [_run_cell(source, f"cell {at}", space) for at, source in enumerate(sources, 1)]


def _run_cell(source: str, name: str, space: dict[str, Any]) -> str:
    magic, _, body = source.partition("\n")
    if magic == "%%sh":
        done = subprocess.run(["sh", "-c", body], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{name} ends with {done.returncode}: {done.stderr}")
        return done.stdout
    if magic.startswith("%%writefile "):
        Path(magic.split()[1]).write_text(body + "\n")
        return f"Writing {magic.split()[1]}\n"
    out = io.StringIO()
    with redirect_stdout(out):
        exec(compile(source, name, "exec"), space)
    return out.getvalue()


def wrong_code(sources: list[str]) -> list[str]:
    """Cells that Python cannot compile, or that begin with a magic command that is not known here."""
    found = []
    for source in sources:
        if source.startswith("%") and not source.startswith(("%%sh\n", "%%writefile ")):
            found.append(source)
        elif not source.startswith("%%sh\n"):
            try:
                ast.parse(source.partition("\n")[2] if source.startswith("%%") else source)
            except SyntaxError as error:
                found.append(f"{source}: {error}")
    return found


def different(committed: str, anew: str) -> str:
    """How two printed texts differ, empty if they do not.

    Words must be the same; two numbers may differ by .02 and a tenth of the larger, two percentages by three points and
    a tenth. Spaces and ruled lines, whose length follows that of the numbers, and hashes of contents do not count.
    """
    old, new = (_HASH.sub("hash", re.sub(r"[\s─]+", " ", text)).strip() for text in (committed, anew))
    if _NUMBER.sub("#", old) != _NUMBER.sub("#", new):
        return f"other words:\n{committed}\n{anew}"
    for one, other in zip(_NUMBER.finditer(old), _NUMBER.finditer(new), strict=True):
        x, y = (float(found[0].replace(",", "")) for found in (one, other))
        slack = POINTS if old[one.end() :].lstrip().startswith("%") else ABSOLUTE
        if abs(x - y) > slack + RELATIVE * max(abs(x), abs(y)):
            return f"{one[0]} became {other[0]} in:\n{committed}"
    return ""


def main() -> None:
    """Run the notebook that the command line names."""
    json.dump(run(Notebook.read(Path(sys.argv[1])).code), sys.stdout)


if __name__ == "__main__":
    main()
