"""The wheel: the same bytes each time it is built, all that is needed in it, and types for a user's program."""

import os
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


def built(folder):
    words = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-cache-dir",
        str(ROOT),
        "-w",
        str(folder),
    ]
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "1700000000", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    if done.returncode and "hatchling" in done.stderr:
        pytest.skip("the build needs hatchling, which cannot be fetched here")
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return built(tmp_path_factory.mktemp("wheel"))


def test_two_builds_are_the_same_bytes(wheel, tmp_path):
    assert built(tmp_path).read_bytes() == wheel.read_bytes()


def test_it_holds_the_package_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    held = {name for name in names if not name.startswith("weightspace-")}
    source = ROOT / "src" / "weightspace"
    there = {
        f"weightspace/{path.relative_to(source)}"
        for path in source.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert held == there and "weightspace/py.typed" in held


def test_it_runs_without_the_repository(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    for words in (["--version"], ["doctor"], ["demo", "--help"]):
        done = subprocess.run(
            [sys.executable, "-m", "weightspace", *words], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0 and done.stdout, done.stderr
    code = "import weightspace; print(weightspace.__file__)"
    where = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert str(tmp_path) in where.stdout


def checked(script, folder):
    (folder / "script.py").write_text(textwrap.dedent(script))
    words = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "script.py"]
    return subprocess.run(words, cwd=folder, capture_output=True, text=True).stdout


def test_a_program_of_a_user_is_checked_by_the_types(tmp_path):
    script = """
        import weightspace as ws

        net, task = ws.demo.example()
        step: ws.Weights = net.weights - net.weights
        loss: float = float(task(net))
        merged = ws.merging.Recipe("linear", weights=[1.0, 2.0])
        path = ws.line(net, net)
        flow = ws.flow(net, ws.learn(task, 64), ws.Euclidean(), steps=1, size=0.01)
    """
    assert checked(script, tmp_path) == ""
    wrong = checked(script + "\n        merged = ws.merging.Recipe(3)\n        digits: int = ws.digits()\n", tmp_path)
    assert "Recipe" in wrong and "Task" in wrong
