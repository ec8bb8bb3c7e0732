"""The snippets of the page about other tools run, each where its tools are installed; others are skipped by name."""

import re
import warnings
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "integrations.md"
BLOCKS = re.findall(r"^```python *(.*?)\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
TOOLS = [tools for tools, _ in BLOCKS if tools]


@pytest.mark.slow
@pytest.mark.parametrize("tools", TOOLS, ids=lambda tools: tools.split()[0])
def test_a_snippet_runs_where_its_tool_is(tools, tmp_path, monkeypatch):
    for name in tools.split():
        pytest.importorskip(name)
    if tools == "tensorboard":
        pytest.importorskip("torch.utils.tensorboard")
    monkeypatch.chdir(tmp_path)
    for name in ("WANDB_SILENT", "DISABLE_MLFLOW_INTEGRATION", "MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK"):
        monkeypatch.setenv(name, "true")
    space = {"__name__": "integrations"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tools
        for wanted, block in BLOCKS[: [t for t, _ in BLOCKS].index(tools) + 1]:
            if wanted in ("", tools):
                exec(compile(block, f"integrations.md: {wanted or 'plain'}", "exec"), space)
    if tools == "tensorboard":
        assert any(tmp_path.glob("runs/*tfevents*"))


def test_every_tool_of_the_page_has_a_snippet_and_a_version():
    assert [tools.split()[0] for tools in TOOLS] == ["transformers", "lightning", "wandb", "mlflow", "tensorboard"]
    table = PAGE.read_text().partition("## What ran")[2]
    for name in {name for tools in TOOLS for name in tools.split()}:
        assert re.search(rf"^\|[^|]*{name}[^|]*\| [\d., ]+ \|", table, re.MULTILINE), name
