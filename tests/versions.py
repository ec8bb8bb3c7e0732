"""The wheel under several versions of Python and torch: `make versions`.

For every pair a fresh environment gets torch, the wheel and what the tests need, and a part of the tests runs there
against the installed wheel. What is not there (an interpreter, a build of torch, room on the disk) is a row too, with
the reason. `--write` puts the rows into docs/versions.md.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "versions.md"
PYTHONS, TORCHES = ("3.11", "3.12", "3.13"), ("2.12", "2.13", "2.14")
PART = ("tests/net", "tests/graph/test_trace.py", "tests/symmetry/test_symmetry.py", "tests/cli/test_schemas.py")
NEEDED = ("pytest", "hypothesis", "jaxtyping", "beartype", "jsonschema_rs")
ROOM = 12e9  # bytes: an environment with a CUDA build of torch takes half of that
HEAD = "| date | machine | Python | torch | passed | failed | skipped | |\n|---|---|---|---|---|---|---|---|\n"


def interpreter(version):
    """The program of a version of Python; None where there is none."""
    for place in sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python")):
        return place
    found = shutil.which(f"python{version}")
    return Path(found) if found else None


def run(*words, **options):
    return subprocess.run([*map(str, words)], capture_output=True, text=True, **options)


def last_line(done):
    said = [line for line in (done.stderr or done.stdout).splitlines() if line.strip() and "WARNING" not in line]
    return said[-1].strip()[:160] if said else f"code {done.returncode}"


def wheel(folder):
    done = run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", ROOT, "-w", folder)
    if done.returncode:
        raise SystemExit(f"the wheel was not built: {last_line(done)}")
    return next(Path(folder).glob("*.whl"))


def installed(python, torch, built, folder):
    """The program of an environment with a version of torch and the wheel; or why there is none."""
    program = interpreter(python)
    if program is None:
        return f"not run: Python {python} is not installed"
    if shutil.disk_usage(folder).free < ROOM:
        return f"not run: less than {ROOM / 1e9:.0f} GB free"
    run(program, "-m", "venv", folder)
    inside = Path(folder) / "bin" / "python"
    for what in ([f"torch=={torch}.*"], [built, *NEEDED]):
        done = run(inside, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *what)
        if done.returncode:
            return f"not run: {last_line(done)}"
    return inside


def tested(inside, part):
    """What pytest counted: passed, failed, skipped, and how many failed in which file."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    environment["WEIGHTSPACE_UNCHECKED"] = "1"  # as a user has it: without the checks of shapes
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", "not slow", "--tb=line", *part]
    done = run(inside, *words, cwd=ROOT, env=environment)
    counts = {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|skipped|error)", done.stdout)}
    if not counts:  # -q twice says no counts: the dots tell
        dots = re.findall(r"^([.FsExX]+)(?: +\[ *\d+%\])?$", done.stdout, re.MULTILINE)
        text = "".join(dots)
        counts = {"passed": text.count("."), "failed": text.count("F") + text.count("E"), "skipped": text.count("s")}
    files = Counter(re.findall(r"^(?:FAILED|ERROR) ([^\s:]+)", done.stdout, re.MULTILINE))
    names = [f"{file}: {count}" for file, count in files.items()]
    if done.returncode and not names:
        names = [last_line(done)]
    return counts, names


def row(python, torch, inside, part):
    today = datetime.date.today().isoformat()
    machine = f"{platform.system()} {platform.machine()}"
    if isinstance(inside, str):
        return f"| {today} | {machine} | {python} | {torch} | | | | {inside} |"
    about = "import platform, torch; print(platform.python_version(), torch.__version__)"
    python, torch = run(inside, "-c", about).stdout.split()
    counts, names = tested(inside, part)
    numbers = [str(counts.get(key, 0)) for key in ("passed", "failed", "skipped")]
    return f"| {today} | {machine} | {python} | {torch} | {' | '.join(numbers)} | {', '.join(names)} |"


def write(rows):
    """The rows into the page: one for each version of Python and minor version of torch."""
    head, mark, rest = PAGE.read_text().partition("<!-- runs -->\n")
    table, end, tail = rest.partition("<!-- end of runs -->")

    def pair(line):
        cells = [cell.strip() for cell in line.split("|")]
        return tuple(".".join(cell.split("+")[0].split(".")[:2]) for cell in cells[3:5])

    kept = {pair(line): line for line in table.splitlines()[2:]} | {pair(line): line for line in rows}
    lines = "".join(f"{kept[key]}\n" for key in sorted(kept, key=lambda k: [*map(int, ".".join(k).split("."))]))
    PAGE.write_text(f"{head}{mark}{HEAD}{lines}{end}{tail}")


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--python", nargs="+", default=PYTHONS)
    options.add_argument("--torch", nargs="+", default=TORCHES)
    options.add_argument("--part", nargs="+", default=PART, help="the tests to run")
    options.add_argument("--env", help="an environment that has torch already, in place of fresh ones")
    options.add_argument("--write", action="store_true", help="put the rows into docs/versions.md")
    given = options.parse_args()
    failed = False
    with tempfile.TemporaryDirectory() as place:
        built = wheel(place)
        pairs = [("", "")] if given.env else [(python, torch) for python in given.python for torch in given.torch]
        for python, torch in pairs:
            if given.env:
                inside = Path(given.env) / "bin" / "python"
                run(inside, "-m", "pip", "install", "--quiet", "--force-reinstall", "--no-deps", built)
                run(inside, "-m", "pip", "install", "--quiet", built, *NEEDED)
                told = row(python, torch, inside, given.part)
            else:
                with tempfile.TemporaryDirectory(dir=place) as folder:  # one at a time: each takes gigabytes
                    told = row(python, torch, installed(python, torch, built, folder), given.part)
            print(told, flush=True)
            failed |= " | not run" not in told and told.split("|")[6].strip() not in ("", "0")
            if given.write:
                write([told])
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
