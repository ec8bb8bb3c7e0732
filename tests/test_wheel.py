"""The wheel and the source archive: the same bytes each time, all that is needed in them, and types for a program."""

import os
import subprocess
import sys
import sysconfig
import tarfile
import textwrap
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


def built(folder, source=ROOT):
    words = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-cache-dir",
        str(source),
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


@pytest.fixture(scope="module")
def hatchling(tmp_path_factory):
    """A folder with the build backend, which pip fetches."""
    folder = tmp_path_factory.mktemp("hatchling")
    words = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(folder), "hatchling>=1.27"]
    if subprocess.run(words, capture_output=True).returncode:
        pytest.skip("the build needs hatchling, which cannot be fetched here")
    return folder


def archived(folder, hatchling):
    code = f"import hatchling.build; hatchling.build.build_sdist({str(folder)!r})"
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "1700000000", "PYTHONPATH": str(hatchling)}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (archive,) = folder.glob("*.tar.gz")
    return archive


def test_two_source_archives_are_the_same_bytes_and_make_the_same_wheel(wheel, hatchling, tmp_path):
    one, other = (tmp_path / name for name in ("one", "other"))
    one.mkdir()
    other.mkdir()
    archive = archived(one, hatchling)
    assert archive.read_bytes() == archived(other, hatchling).read_bytes()
    with tarfile.open(archive) as opened:
        top = {name.split("/")[1] for name in opened.getnames()}
        opened.extractall(tmp_path, filter="data")
    assert {"src", "tests", "docs", "LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff", "pyproject.toml"} <= top
    assert not top & {".venv", ".git", "shared", "dist", ".pytest_cache", ".mypy_cache", ".ruff_cache"}
    again = built(other, tmp_path / archive.name.removesuffix(".tar.gz"))
    assert sorted(zipfile.ZipFile(again).namelist()) == sorted(zipfile.ZipFile(wheel).namelist())


def test_the_demo_runs_where_the_wheel_alone_is_installed(wheel, tmp_path):
    """In a fresh environment, from another folder; the packages that it needs are those of this one."""
    venv.create(tmp_path / "env", with_pip=False, symlinks=os.name != "nt")
    python = tmp_path / "env" / "bin" / "python"
    where = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    site = Path(subprocess.run([python, "-c", where], capture_output=True, text=True, check=True).stdout.strip())
    (site / "needed.pth").write_text(sysconfig.get_paths()["purelib"])
    words = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", str(wheel)]
    subprocess.run(words, check=True, capture_output=True)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    program = tmp_path / "env" / "bin" / "weightspace"
    done = subprocess.run([program, "demo"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "weightspace-demo" / "report.html").stat().st_size > 100_000
    code = "import weightspace; print(weightspace.__file__)"
    found = subprocess.run([python, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert found.stdout.startswith(str(tmp_path))


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
