"""`weightspace merge --method` end to end: files, folders, adapters, recipes of mergekit, and what is refused."""

from __future__ import annotations

import json
import textwrap

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from weightspace.cli import main
from weightspace.cli.merge import _METHODS
from weightspace.merging.methods import METHODS
from weightspace.net.net import Net
from weightspace.symmetry.symmetry import Symmetry

ARCH = ("--arch", "mergenets:mlp")
NAMES = ("a", "b", "base", "stranger")


def mlp():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def trained(module, x, y, steps, seed):
    optimiser = torch.optim.SGD(module.parameters(), lr=0.2)
    order = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        rows = torch.randint(len(x), (64,), generator=order)
        optimiser.zero_grad()
        nn.functional.cross_entropy(module(x[rows]), y[rows]).backward()
        optimiser.step()
    return module


@pytest.fixture(scope="module")
def play(tmp_path_factory):
    """A base, two fine-tunes of it, a stranger in renumbered units, examples, and two tiny folders of a transformer."""
    folder = tmp_path_factory.mktemp("merging")
    (folder / "mergenets.py").write_text(
        textwrap.dedent("""
        from torch import nn

        def mlp():
            return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
        """)
    )
    x = torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
    y = (x[:, :3] + 0.5 * x[:, 3:]).argmax(1)
    np.savez(folder / "data.npz", x=x.numpy(), y=y.numpy())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = trained(mlp(), x, y, 30, 0)
    save_file(base.state_dict(), folder / "base.safetensors")
    for name, seed in (("a", 1), ("b", 2)):
        module = mlp()
        module.load_state_dict(base.state_dict())
        save_file(trained(module, x, y, 10, seed).state_dict(), folder / f"{name}.safetensors")
    net = Net.of(base)
    moved = Symmetry.of(net, x[:2]).sample(seed=3)(net)
    save_file({name: tensor.contiguous() for name, tensor in moved.tensors.items()}, folder / "stranger.safetensors")
    return folder


@pytest.fixture
def here(play, monkeypatch, tmp_path):
    monkeypatch.chdir(play)
    monkeypatch.syspath_prepend(str(play))
    return tmp_path


def merge_json(capsys, *words):
    code = main(["merge", *map(str, words), "--json"])
    out, err = capsys.readouterr()
    assert code == 0, err
    return json.loads(out)


def refused(capsys, *words):
    code = main(["merge", *map(str, words)])
    out, err = capsys.readouterr()
    said = [line for line in err.splitlines() if line.startswith("weightspace: ")]
    assert code == 2 and out == "" and len(said) == 1 and "Traceback" not in err, (out, err)
    return said[0]


def tensors(play, *names):
    return [load_file(play / f"{name}.safetensors") for name in names]


def test_the_help_names_every_method():
    assert {*_METHODS.split()} == {*METHODS}


def test_task_vectors_are_added_with_weights_by_name(here, play, capsys):
    out = here / "m.safetensors"
    told = ("--weight", "0.weight=0.25,*=1", "--weight", "0.5", "--set", "scale=2")
    seen = merge_json(
        capsys, "a.safetensors", "b.safetensors", "--base", "base.safetensors", "--method", "task_arithmetic", *told,
        "-o", out,
    )  # fmt: skip
    a, b, base = tensors(play, "a", "b", "base")
    for name, found in load_file(out).items():
        first = 0.25 if name == "0.weight" else 1.0
        torch.testing.assert_close(
            found, base[name] + 2 * (first * (a[name] - base[name]) + (b[name] - base[name]) / 2)
        )
    assert seen["method"] == "task_arithmetic" and seen["names"] == ["a.safetensors", "b.safetensors"]
    assert json.loads((here / "m.merge.json").read_text())["tensors"][0]["action"] == "merged"


def test_what_is_measured_is_what_was_written(here, play, capsys):
    out = here / "m.safetensors"
    seen = merge_json(capsys, "a.safetensors", "b.safetensors", "--method", "linear", "-o", out, *ARCH,
                      "--data", "data.npz", "--align", "never", "--report", here / "r.html")  # fmt: skip
    a, b = tensors(play, "a", "b")
    found = load_file(out)
    torch.testing.assert_close(found["0.weight"], (a["0.weight"] + b["0.weight"]) / 2)
    assert [score["name"] for score in seen["scores"]] == ["a.safetensors", "b.safetensors", "merged"]
    middle = dict(map(tuple, seen["curves"]["line"]))
    assert middle[0.5] == pytest.approx(seen["scores"][2]["loss"], rel=1e-5)
    assert middle[0.0] == pytest.approx(seen["scores"][0]["loss"], rel=1e-5)
    assert "Loss against" in (here / "r.html").read_text()


def test_strangers_are_aligned_first_and_kin_are_not(here, play, capsys):
    told = ("--method", "linear", *ARCH, "--example", "2x6")
    seen = merge_json(capsys, "base.safetensors", "stranger.safetensors", "-o", here / "s.safetensors", *told)
    assert seen["aligned"] == ["stranger.safetensors"]
    (base,) = tensors(play, "base")
    for name, found in load_file(here / "s.safetensors").items():
        torch.testing.assert_close(found, base[name], atol=1e-4, rtol=1e-4)
    assert merge_json(capsys, "base.safetensors", "a.safetensors", "-o", here / "k.safetensors", *told)["aligned"] == []
    never = merge_json(capsys, "base.safetensors", "stranger.safetensors", "-o", here / "n.safetensors",
                       "--align", "never", *told)  # fmt: skip
    assert never["aligned"] == []
    assert not torch.allclose(load_file(here / "n.safetensors")["0.weight"], base["0.weight"], atol=0.01)


def test_coefficients_are_found_on_data(here, capsys):
    told = ("--base", "base.safetensors", "--method", "task_arithmetic", *ARCH, "--data", "data.npz")
    best = merge_json(capsys, "a.safetensors", "b.safetensors", "-o", here / "t.safetensors", "--tune", "scale", *told)
    found, before = (float(part.split()[0].strip("(")) for part in best["tuned"].split("loss ")[1].split(" (", 1))
    assert found <= before
    calm = merge_json(capsys, "a.safetensors", "-o", here / "e.safetensors", "--tune", "entropy", *told)
    after, start = calm["tuned"].removeprefix("entropy of the outputs ").split(", ")
    assert float(after) <= float(start.split()[0])


@pytest.mark.parametrize("method", ["fisher", "regmean"])
def test_networks_weighed_by_data(here, play, capsys, method):
    out = here / "w.safetensors"
    seen = merge_json(capsys, "a.safetensors", "a.safetensors", "--method", method, *ARCH, "--data", "data.npz",
                      "-o", out, "--align", "never")  # fmt: skip
    (a,) = tensors(play, "a")
    for name, found in load_file(out).items():
        torch.testing.assert_close(found, a[name], atol=1e-4, rtol=1e-4)
    assert f"merged by {method}" in seen["groups"][0]["why"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("a.safetensors", "b.safetensors", "--method", "magic"), "choose one of linear"),
        (("a.safetensors", "b.safetensors", "--method", "ties"), "--base"),
        (("a.safetensors", "b.safetensors", "--method", "linear", "--weight", "1"), "1 weights for 2 networks"),
        (("a.safetensors", "b.safetensors", "--method", "linear", "--weight", "x", "--weight", "1"), "'x' is not"),
        (("a.safetensors", "--method", "linear", "--weight", "mlp=1"), "add '*'"),
        (("a.safetensors", "b.safetensors", "--weight", "1"), "--method linear"),
        (("a.safetensors", "b.safetensors", "--method", "linear", "--set", "density=1"), "no option 'density'"),
        (("a.safetensors", "b.safetensors", "--method", "linear", "--set", "density"), "NAME=VALUE"),
        (("a.safetensors", "b.safetensors", "--method", "linear", "--dtype", "int8"), "float32"),
        (("a.safetensors", "b.safetensors", "--method", "linear", "--shard-size", "5"), "5GB"),
        (("a.safetensors", "b.safetensors", "--method", "linear", "--align", "always"), "--arch"),
        (("a.safetensors", "b.safetensors", "--method", "linear", "--align", "often"), "auto never always"),
        (("a.safetensors", "b.safetensors", "--method", "linear", "--tokenizer", "union"), "no Hugging Face folder"),
        (("a.safetensors", "b.safetensors", "--method", "linear", "--tune", "weights"), "--data"),
        (("a.safetensors", "b.safetensors", "--method", "linear", "--rank", "2"), "adapter"),
        (("a.safetensors", "gone.safetensors", "--method", "linear"), "no such file"),
        (("a.safetensors", "b.safetensors", "--method", "fisher"), "--data"),
        (("gone.yml",), "gone.yml"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(here, capsys, words, said):
    out = here / ("out" if words[0].endswith(".yml") else "out.safetensors")
    assert said in refused(capsys, *words, "-o", out)
    assert not out.exists() and not [*here.iterdir()]


def test_folders_recipes_and_adapters_load_afterwards(here, capsys, monkeypatch):
    transformers = pytest.importorskip("transformers")
    monkeypatch.chdir(here)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.LlamaConfig(**sizes, vocab_size=40, max_position_embeddings=32)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        models = [transformers.LlamaForCausalLM(config) for _ in range(2)]
    for name, model in zip("ab", models, strict=True):
        model.save_pretrained(here / name)
    merge_json(capsys, "a", "b", "--method", "linear", "--weight", "3", "--weight", "1", "-o", "merged",
               "--shard-size", "20KB")  # fmt: skip
    opened = transformers.AutoModelForCausalLM.from_pretrained(here / "merged")
    first, second = (model.state_dict() for model in models)
    for name, found in opened.state_dict().items():
        torch.testing.assert_close(found, 0.75 * first[name] + 0.25 * second[name])
    (here / "r.yml").write_text(
        "merge_method: linear\nmodels:\n- {model: a, parameters: {weight: 3}}\n- {model: b, parameters: {weight: 1}}\n"
    )
    seen = merge_json(capsys, "r.yml", "-o", "by_file")
    assert seen["method"] == "linear" and seen["names"] == ["a", "b"]
    again = transformers.AutoModelForCausalLM.from_pretrained(here / "by_file")
    torch.testing.assert_close(again.state_dict(), opened.state_dict())
    assert "exists" in refused(capsys, "r.yml", "-o", "by_file") or "holds" in refused(capsys, "r.yml", "-o", "by_file")

    layer, factors = "model.layers.0.self_attn.q_proj", {}
    for name, side in (("low", 1.0), ("high", 3.0)):
        factors[name] = torch.full((2, 16), 0.1), torch.full((16, 2), 0.1 * side)
        (here / name).mkdir()
        a, b = factors[name]
        start = f"base_model.model.{layer}"
        save_file({f"{start}.lora_A.weight": a, f"{start}.lora_B.weight": b}, here / name / "adapter_model.safetensors")
        settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
        (here / name / "adapter_config.json").write_text(json.dumps(settings))
    merge_json(capsys, "low", "high", "--rank", "2", "-o", "adapter")
    merge_json(capsys, "adapter", "--base", "a", "--method", "passthrough", "-o", "whole")
    whole = load_file(here / "whole" / "model.safetensors")[f"{layer}.weight"]
    update = sum(2.0 * b @ a for a, b in factors.values()) / 2
    torch.testing.assert_close(whole, first[f"{layer}.weight"] + update, atol=1e-5, rtol=1e-5)


def test_an_adapter_is_extracted_and_makes_the_fine_tune_again(here, play, capsys):
    told = ("a.safetensors", "--base", "base.safetensors")
    assert main(["extract", *told, "--rank", "8", "-o", str(here / "adapter"), "--json"]) == 0
    seen = json.loads(capsys.readouterr().out)
    assert max(seen["errors"].values()) < 1e-4 and seen["weights"][1] == sum(
        t.numel() for t in tensors(play, "a")[0].values()
    )
    merge_json(capsys, here / "adapter", "--base", "base.safetensors", "--method", "passthrough", "-o",
               here / "again.safetensors")  # fmt: skip
    (a,) = tensors(play, "a")
    for name, found in load_file(here / "again.safetensors").items():
        torch.testing.assert_close(found, a[name], atol=1e-5, rtol=1e-4)
    assert main(["extract", *told, "-o", str(here / "no")]) == 2 and "--share" in capsys.readouterr().err
    assert main(["extract", *told, "--share", "2", "-o", str(here / "no")]) == 2
    assert "share" in capsys.readouterr().err and not (here / "no").exists()
    assert main(["extract", "a.safetensors", "--base", "a.safetensors", "--rank", "1", "-o", str(here / "no")]) == 2
    assert "nothing to extract" in capsys.readouterr().err


@pytest.mark.slow
def test_the_mean_of_folders_is_a_folder_that_loads(here, capsys, monkeypatch):
    transformers = pytest.importorskip("transformers")
    monkeypatch.chdir(here)
    sizes = {"hidden_size": 8, "intermediate_size": 6, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = transformers.LlamaConfig(**sizes, vocab_size=20, max_position_embeddings=16)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.LlamaForCausalLM(config)
    for name in "ab":
        model.save_pretrained(here / name)
    merge_json(capsys, "a", "b", "-o", "mean", "--example", "ids:2x8")
    opened = transformers.AutoModelForCausalLM.from_pretrained(here / "mean")
    ids = torch.arange(8)[None]
    with torch.no_grad():
        torch.testing.assert_close(opened(ids).logits, model.eval()(ids).logits, atol=1e-4, rtol=1e-4)
    said = refused(capsys, "a", "b", "-o", "mean", "--example", "ids:2x8")
    assert "mean" in said and "--force" in said
