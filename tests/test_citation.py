"""What the package says of itself is the same everywhere."""

import re
import tomllib
from pathlib import Path

import yaml

import weightspace as ws

ROOT = Path(__file__).parents[1]


def test_version_and_licence_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["version"] == project["version"] == ws.__version__
    dated = re.search(
        rf"^## {re.escape(ws.__version__)} - (\d{{4}}-\d\d-\d\d)$", (ROOT / "CHANGELOG.md").read_text(), re.M
    )
    assert dated and str(cited["date-released"]) == dated[1]
    assert cited["license"] == project["license"] and "Apache License" in (ROOT / "LICENSE").read_text()
    assert cited["authors"][0]["name"] == project["authors"][0]["name"]
