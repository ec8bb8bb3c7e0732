"""`weightspace compare` as a difftool of git, as the page about scripts gives it."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

PAGE = Path(__file__).parents[2] / "docs" / "in_ci.md"


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_difftool_of_the_page_tells_two_versions_apart(tmp_path):
    def git(*words):
        who = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
        return subprocess.run(["git", *who, *words], cwd=tmp_path, capture_output=True, text=True, check=True)

    (tmp_path / "gitnets.py").write_text(
        "from torch import nn\n\ndef net():\n    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))\n"
    )
    git("init", "-q")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    for turn in range(2):
        tensors = net.state_dict()
        if turn:  # the units in another order: other bytes, the same function
            order = torch.tensor([2, 0, 3, 1])
            tensors = {name: t[:, order] if name == "2.weight" else t if name == "2.bias" else t[order]
                       for name, t in tensors.items()}  # fmt: skip
        save_file({name: t.contiguous() for name, t in tensors.items()}, tmp_path / "model.safetensors")
        git("add", "model.safetensors")
        git("commit", "-q", "-m", f"version {turn}")
    config, call = re.findall(r"^git (.+)$", PAGE.read_text(), re.MULTILINE)
    assert config.startswith("config difftool.weightspace.cmd '") and call.endswith("-- model.safetensors")
    words = (
        config.partition("'")[2].rstrip("'").replace("weightspace compare", f"{sys.executable} -m weightspace compare")
    )
    words = words.replace("mypkg.models:net", "gitnets:net").replace("--data test.npz", "--example 2x3")
    git("config", "difftool.weightspace.cmd", words)
    said = git(*call.split())
    assert "same" in said.stdout.lower(), (said.stdout, said.stderr)
