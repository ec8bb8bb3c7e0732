"""`weightspace doctor`: what it finds is what there is."""

import json
from importlib import metadata
from pathlib import Path

import torch

from weightspace.cli import main
from weightspace.commands import doctor as module
from weightspace.commands.doctor import doctor


def named(health):
    return {finding.name: finding for finding in health.findings}


def test_versions_and_devices_are_those_of_this_machine():
    found = named(doctor())
    assert found["torch"].found == metadata.version("torch") and found["torch"].group == "needed"
    assert found["weightspace"].well and found["a network is read"].found == "S16 x R+16"
    assert ("cuda:0" in found) == torch.cuda.is_available()
    assert "pytest" not in found


def test_what_is_missing_is_said_with_what_to_do(monkeypatch, capsys):
    def version(name):
        if name in ("safetensors", "transformers"):
            raise metadata.PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(module.metadata, "version", version)
    found = named(doctor())
    assert not found["safetensors"].well and found["safetensors"].do.startswith("pip install 'safetensors>=")
    assert found["transformers"].do == "pip install 'weightspace[hf]'"
    assert main(["doctor", "--json"]) == 1
    seen = json.loads(capsys.readouterr().out)
    assert seen["well"] is False
    assert main(["doctor"]) == 1 and "missing" in capsys.readouterr().out


def test_an_extra_that_is_missing_is_no_fault(monkeypatch):
    real = metadata.version

    def version(name):
        if name == "transformers":
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(module.metadata, "version", version)
    assert doctor().well


def test_data_sets_are_found_where_they_are(monkeypatch, tmp_path):
    monkeypatch.delenv("WEIGHTSPACE_DATA", raising=False)
    found = named(doctor())["mnist"]
    assert not found.well and "WEIGHTSPACE_DATA" in found.do


def test_a_network_that_cannot_be_read_is_a_fault(monkeypatch):
    def broken(*_):
        raise RuntimeError("no exporter")

    monkeypatch.setattr(module.Symmetry, "of", broken)
    health = doctor()
    assert not health.well and named(health)["a network is read"].found == "no exporter"


def test_licences_are_those_of_the_page():
    """Every package that is installed states the licence that the page of dependencies has for it."""
    page = (Path(__file__).parents[2] / "docs" / "dependencies.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| ")]
    said = {cell.lower(): " ".join(row) for row in rows for cell in row[:2]}
    packages = [finding for finding in doctor().findings if finding.licence]
    assert len(packages) > 10
    for finding in packages:
        family = next(name for name in ("BSD", "MIT", "Apache", "LGPL", "GPL") if name in finding.licence)
        assert family in said[finding.name.lower()], (finding.name, finding.licence)


def test_licences_are_shown(capsys):
    assert main(["doctor", "--licences"]) == 0 and "BSD-3-Clause" in capsys.readouterr().out
