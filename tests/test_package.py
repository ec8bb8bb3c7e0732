"""The package as a whole: what it imports, what it offers, what must not be in it."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import UNCHECKED
from torch import nn

import weightspace as ws
from weightspace.demo import digits_cnn
from weightspace.path.loss_plane import Plane
from weightspace.trust.bounds.rule import RULES

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
HEAVY = (
    "torch",
    "numpy",
    "scipy",
    "sklearn",
    "plotly",
    "safetensors",
    "transformers",
    "pyarrow",
    "sqlalchemy",
    "alembic",
    "fsspec",
)
PROMISED = {
    ws.Net: ["of", "at", "module"],
    ws.Weights: ["dot", "norm", "norms"],
    ws.Task: [],
    ws.Symmetry: ["of", "axes", "sample", "align", "canonical"],
    ws.symmetry.Element: ["inverse"],
    ws.Path: ["along", "barrier", "length"],
    ws.Euclidean: ["norm", "steepest"],
    ws: ["accuracy", "gradient", "mean", "line"],
}


def python(code: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)


@pytest.mark.parametrize("what", ["pass", "main(['--help'])", "main(['merge', '--help'])", "main(['--version'])"])
def test_torch_is_not_loaded_before_it_is_needed(what):
    loaded = f"print([m for m in {HEAVY} if m in sys.modules])"
    done = python(f"import sys, weightspace\nfrom weightspace.cli import main\n{what}\n{loaded}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_name_is_resolved_when_it_is_asked_for():
    done = python("import sys, weightspace as ws\nws.Net\nprint('torch' in sys.modules, 'plotly' in sys.modules)")
    assert done.stdout.split() == ["True", "False"], done.stderr
    assert set(dir(ws)) >= {"Net", "digits", "symmetry"}
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = ws.nothing


@pytest.mark.parametrize("home", PROMISED, ids=lambda home: home.__name__)
def test_the_names_that_scripts_rely_on_are_there(home):
    assert all(hasattr(home, name) for name in PROMISED[home])


def test_every_error_is_one_that_a_user_can_mend():
    errors = [value for value in vars(ws).values() if isinstance(value, type) and issubclass(value, Exception)]
    assert all(issubclass(error, ws.WeightspaceError) for error in errors)


@pytest.mark.skipif(UNCHECKED, reason="checks are turned off")
def test_shapes_are_checked_here():
    net = ws.Net.of(nn.Linear(2, 2))
    corners = np.zeros((3, 2))
    Plane(net, net, net, corners)
    for wrong in (corners[:2], corners.T, corners.tolist()):
        with pytest.raises(TypeError, match="corners"):
            Plane(net, net, net, wrong)
    with pytest.raises(TypeError, match="name"):
        ws.Symmetry.of(net, torch.zeros(2, 2)).identity().move(1, torch.zeros(2))


# ------------------------------------------------------------------ what must not be there


def tracked() -> list[Path]:
    """The files of the repository; without git, those that a release would hold."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode == 0 and listed.stdout:
        return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]
    folders = ("src", "tests", "docs", "benchmarks", "experiments")
    return [path for folder in folders for path in (ROOT / folder).rglob("*.*") if path.is_file()]


PLACES = re.compile(r"/(?:work|root|home|Users|tmp)/\w|[A-Z]:\\\\Users|py" + r"pi\.org|--(?:extra-)?index" + r"-url")


def test_no_file_names_a_place_on_some_machine():
    for path in tracked():
        if path == Path(__file__):
            continue
        found = PLACES.search(path.read_bytes().decode(errors="ignore"))
        assert not found, f"{path.relative_to(ROOT)} has {found.group()!r}"


def test_the_licence_is_whole():
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text and "END OF TERMS AND CONDITIONS" in text and len(text) > 10_000


def dangers(source: str) -> Iterator[str]:
    """Calls that can run code which a file brings along."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and any(alias.name in ("pickle", "dill", "joblib") for alias in node.names):
            yield "a module that unpickles"
        if isinstance(node, ast.ImportFrom) and node.module in ("pickle", "dill", "joblib"):
            yield "a module that unpickles"
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        given = {k.arg: ast.unparse(k.value) for k in node.keywords}
        if name == "torch.load" and given.get("weights_only") != "True":
            yield "torch.load without weights_only=True"
        if given.get("weights_only") == "False" or given.get("allow_pickle") == "True":
            yield f"{name} that unpickles"
        if name in ("eval", "exec", "torch.jit.load", "torch.hub.load", "torch.package.PackageImporter"):
            yield name
        if name == "torch.export.load":
            yield name


def test_nothing_runs_what_a_file_brings_along():
    """Exported programs alone are opened, in one place, where the user said that they are trusted.

    The text that `public` evaluates is that of annotations in our own source. The bytes that jobs unpickle come through
    a pipe from the process that started theirs, or from a cluster that the user names: never from a file.
    """
    found = {(path.name, danger) for path in SOURCES for danger in dangers(path.read_text())}
    assert found == {
        ("architecture.py", "torch.export.load"), ("arguments.py", "eval"), ("calls.py", "a module that unpickles")
    }  # fmt: skip


@pytest.mark.parametrize(
    "planted",
    [
        "import pickle",
        "from pickle import load",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "torch.jit.load(path)",
        "eval(text)",
    ],
)
def test_a_planted_danger_is_seen(planted):
    assert list(dangers(planted))
    assert not list(dangers("torch.load(path, weights_only=True)\nast.literal_eval(text)\nnp.load(path)"))
    assert PLACES.search("see " + "/ho" + "me/me/x") and not PLACES.search("path/to/home")


def test_what_is_imported_alone_is_the_same_as_with_everything_imported():
    """Tests import every module; a user imports one, and the rules that others register must be there all the same."""
    group = "str(ws.Symmetry.of(demo.digits_cnn(), torch.zeros(2, 1, 8, 8)))"
    done = python(
        "import torch, weightspace as ws\nfrom weightspace import demo\n"
        f"print({group})\nws.certificate\nfrom weightspace.trust.bounds import rule\nprint(sorted(rule.RULES))"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == str(ws.Symmetry.of(digits_cnn(), torch.zeros(2, 1, 8, 8)))
    assert done.stdout.splitlines()[1] == str(sorted(RULES))
