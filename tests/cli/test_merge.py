"""`weightspace merge --method` end to end: files, folders, adapters, recipes of mergekit, and what is refused."""

from __future__ import annotations

import json
import textwrap

import numpy as np
import pytest
import torch
from lora_folders import SHAPES, factors, stored
from safetensors.torch import load_file, save_file
from torch import nn

from weightspace.cli import main
from weightspace.cli.merge import _METHODS
from weightspace.merging.methods import METHODS
from weightspace.net.net import Net
from weightspace.symmetry.symmetry import Symmetry

ARCH = ("--arch", "mergenets:mlp")
NAMES = ("a", "b", "base", "stranger")
FAR = ("--base", "base.safetensors")
DATA, BARE = (*ARCH, "--data", "data.npz"), (*ARCH, "--data", "bare.npz")


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
    np.savez(folder / "bare.npz", x=x.numpy())
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


@pytest.mark.parametrize("method", ["fisher", "Fisher", "regmean"])
def test_networks_weighed_by_data_have_weights_by_name(here, play, capsys, method):
    """A tensor that one network alone has a weight for is that network's."""
    out, told = here / "w.safetensors", ("--weight", "0.=1,*=0", "--weight", "0.=0,*=1")
    merge_json(capsys, "a.safetensors", "b.safetensors", "--method", method, *told, *DATA, "-o", out)
    a, b = tensors(play, "a", "b")
    for name, found in load_file(out).items():
        torch.testing.assert_close(found, (a if name.startswith("0.") else b)[name], atol=1e-4, rtol=1e-4)


def test_parents_are_measured_before_one_is_overwritten(here, play, capsys):
    told = ("--method", "linear", "--align", "never", *DATA)
    wanted = merge_json(capsys, "a.safetensors", "b.safetensors", *told, "-o", here / "m.safetensors")["scores"]
    own = here / "a.safetensors"
    own.write_bytes((play / "a.safetensors").read_bytes())
    seen = merge_json(capsys, own, "b.safetensors", *told, "-o", own, "--force")["scores"]
    assert [score["loss"] for score in seen] == [score["loss"] for score in wanted]
    assert len({score["loss"] for score in seen}) == 3


def test_a_report_without_labels_has_no_losses(here, capsys):
    report = here / "r.html"
    told = ("--method", "linear", "--align", "never", *BARE, "--report", report)
    seen = merge_json(capsys, "a.safetensors", "b.safetensors", *told, "-o", here / "m.safetensors")
    assert seen["scores"] == [] and seen["curves"] is None and report.exists()


OPTIONS = {
    "--base": "base.safetensors", "--weight": "1", "--set": "normalize=0", "--tune": "weights", "--dtype": "bfloat16",
    "--tokenizer": "union", "--extra": "refuse", "--heads": "leave", "--align": "never", "--copy-code": None,
}  # fmt: skip
USED = {"adapters": {"--base", "--weight", "--set"}, "recipe": {"--copy-code"}, "mean": set()}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("kind", USED)
def test_no_option_is_passed_over_in_silence(here, capsys, kind, option):
    if option in USED[kind]:
        return
    if kind == "adapters":
        for seed, name in enumerate("ab"):
            stored(here / name, factors(seed))
    (here / "recipe.yml").write_text("merge_method: linear\nmodels:\n- model: a\n  parameters: {weight: 1}\n")
    given = {"adapters": (here / "a", here / "b"), "recipe": (here / "recipe.yml",)}
    parents = given.get(kind, ("a.safetensors", "b.safetensors", *ARCH, "--example", "2x6"))
    out = here / ("out.safetensors" if kind == "mean" else "out")
    words = (option,) if OPTIONS[option] is None else (option, OPTIONS[option])
    assert option in refused(capsys, *parents, *words, "-o", out)
    assert not out.exists()


def test_adapters_have_the_weights_that_networks_have(here, capsys):
    """Merged as adapters or as the networks that they make of the base, by the same words, they are one network."""
    zero = {f"{layer}.weight": torch.zeros(shape) for layer, shape in SHAPES.items()}
    save_file(zero, here / "zero.safetensors")
    pair, base = (
        [stored(here / name, factors(seed)) for seed, name in enumerate("ab")],
        ("--base", here / "zero.safetensors"),
    )
    for k, told in enumerate(
        ((), ("--weight", "1", "--weight", "3"), ("--weight", "1", "--weight", "1", "--set", "normalize=0"))
    ):
        merge_json(capsys, *pair, *told, "-o", here / f"m{k}")
        merge_json(capsys, here / f"m{k}", *base, "--method", "passthrough", "-o", here / f"x{k}.safetensors")
        merge_json(capsys, *pair, *base, "--method", "linear", *told, "-o", here / f"y{k}.safetensors")
        one, other = (load_file(here / f"{name}{k}.safetensors") for name in "xy")
        torch.testing.assert_close(one, other)
    (here / "base").mkdir()
    (here / "base" / "config.json").write_text("{}")
    save_file(zero, here / "base" / "model.safetensors")
    merge_json(capsys, *pair, "--base", here / "base", "--method", "task_arithmetic", "-o", here / "whole")
    told = [line.split("|")[1:3] for line in (here / "whole" / "README.md").read_text().splitlines() if "`" in line]
    assert [" ".join(map(str.strip, row)) for row in told[:3]] == ["a parent", "b parent", "base base"]
    assert "by layer" in refused(capsys, *pair, "--weight", "q=1,*=0", "--weight", "1", "-o", here / "no")
    assert "sum to zero" in refused(capsys, *pair, "--weight", "1", "--weight", "-1", "-o", here / "no")
    assert "holds an adapter" in refused(capsys, *pair, *base, "--method", "linear", "--force", "-o", here / "m0")


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
        (("a.safetensors", "b.safetensors", *FAR, "--method", "sce", "--weight", "1", "--weight", "1"), "no weights"),
        (("a.safetensors", "b.safetensors", *FAR, "--method", "ties", "--set", "rescale=7"), "0 (no) or 1 (yes)"),
        (("a.safetensors", "b.safetensors", "--method", "fisher", "--tune", "weights", *DATA), "leave --tune out"),
        (("a.safetensors", "b.safetensors", "--method", "fisher", *BARE), "no labels"),
        (("a.safetensors", "b.safetensors", "--method", "linear", "--tune", "weights", *BARE), "no labels"),
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
