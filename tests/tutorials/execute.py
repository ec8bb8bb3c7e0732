"""The tutorials executed anew, their outputs written into the notebooks: `make tutorials`.

Figures become static PNG, so that any viewer shows them. Nothing that changes from run to run is written: no times, no
paths, cells numbered in order. The metadata get a hash of the code, which a test compares with the code.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

from tests.tutorials.notebook import FOLDER, Notebook, text_of

SETTINGS = {"OMP_NUM_THREADS": "1", "COLUMNS": "98", "NO_COLOR": "1", "PLOTLY_RENDERER": "png"}
# figures that are sharp, and commands that print as they do into a file: a kernel asks for colours
_BEFORE = """
import os
import plotly.io as pio

pio.renderers["png"].scale = 1.6
for name in ("FORCE_COLOR", "CLICOLOR_FORCE", "CLICOLOR"):
    os.environ.pop(name, None)
"""


def execute(path: Path) -> None:
    """Run a notebook in an empty folder, and write its outputs."""
    page = nbformat.read(path, as_version=4)
    page.cells.insert(0, nbformat.v4.new_code_cell(_BEFORE))
    with tempfile.TemporaryDirectory() as folder:
        where = {"metadata": {"path": folder}}
        NotebookClient(page, timeout=300, kernel_name="python3", resources=where, record_timing=False).execute()
    del page.cells[0]
    count = 0
    for at, cell in enumerate(page.cells, 1):
        cell.id, cell.metadata = f"cell-{at:02}", {}
        if cell.cell_type == "code":
            count += 1
            cell.execution_count = count
            cell.outputs = [out for out in map(_plain, _joined(cell.outputs)) if out]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    page.metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    page.nbformat, page.nbformat_minor = 4, 5
    page.metadata["code_sha256"] = Notebook(page.cells, page.metadata).digest
    nbformat.write(nbformat.from_dict(page), path)


def _joined(outputs: list[Any]) -> list[Any]:
    """Outputs with what was printed in pieces put together: where a piece ends is chance."""
    found: list[Any] = []
    for out in outputs:
        last = found[-1] if found else {}
        if out.output_type == "stream" and last.get("name") == out.name:
            last["text"] += out.text
        else:
            found.append(out)
    return found


def _plain(out: Any) -> dict[str, Any] | None:
    """An output without what changes from run to run; None for the progress of a command."""
    if out.output_type == "stream":
        lines = text_of(out.text).splitlines(keepends=True)
        kept = [line for line in lines if out.name == "stdout" or not line.rstrip().endswith(" ...")]
        return {"output_type": "stream", "name": out.name, "text": "".join(kept)} if kept else None
    if out.output_type in ("display_data", "execute_result"):
        data = {kind: value for kind, value in out.data.items() if kind in ("image/png", "text/plain")}
        data = {"image/png": data["image/png"]} if "image/png" in data else data
        return {"output_type": "display_data", "data": data, "metadata": {}}
    return dict(out)


def main() -> None:
    """Execute all notebooks, or those whose paths are given."""
    os.environ.update(SETTINGS)
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    if chrome := shutil.which("chromium"):
        os.environ.setdefault("BROWSER_PATH", chrome)
    for path in map(Path, sys.argv[1:]) if sys.argv[1:] else sorted(FOLDER.glob("*.ipynb")):
        start = time.monotonic()
        execute(path)
        print(f"{path.name}: {time.monotonic() - start:.0f} s, {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
