"""`weightspace compare` of a set: from weights alone, with an architecture, with data, and of adapters."""

import json

import numpy as np
import pytest
import torch
from lora_folders import PREFIX, factors, normal, stored
from safetensors.torch import load_file, save_file

import weightspace as ws
from weightspace.cli import main
from weightspace.commands.advice import compare_set
from weightspace.commands.settings import Settings
from weightspace.net.errors import WeightspaceError
from weightspace.pages.advice import advice_page


def trained(seed):
    """A small network of digits, and its examples."""
    net, task = ws.demo.example(seed)
    module, x, y = net.module(), task.example(len(task)), task.labels()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(module(x), y).backward()
        optimizer.step()
    return ws.Net.of(module), task


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A base, three fine-tunes of it, one of them renumbered too, and a stranger."""
    folder = tmp_path_factory.mktemp("set")
    net, task = trained(0)
    group = ws.Symmetry.of(net, task.example(2))
    tuned = [net + 0.02 * net.weights.randn(k) for k in range(3)]
    made = {"base": net, "stranger": trained(1)[0], "turned": group.sample(4)(tuned[2])}
    made |= {f"t{k}": one for k, one in enumerate(tuned)}
    return {name: ws.checkpoint.save(one.tensors, folder / f"{name}.safetensors") for name, one in made.items()}


def run(capsys, *words):
    code = main([str(word) for word in words])
    said = capsys.readouterr()
    return code, said.out, said.err


def answered(capsys, *words):
    code, out, err = run(capsys, "compare", *words, "--json")
    assert code == 0, err
    return json.loads(out)


def test_fine_tunes_of_a_base_that_is_given(files, capsys):
    found = answered(capsys, files["t0"], files["t1"], files["t2"], "--base", files["base"])
    assert found["base"] == "base.safetensors" and not found["base_found"]
    assert found["members"] == ["t0.safetensors", "t1.safetensors", "t2.safetensors"]
    tensors = [load_file(files[name]) for name in ("base", "t0", "t1")]
    x, y = (torch.cat([(one[n] - tensors[0][n]).double().flatten() for n in tensors[0]]) for one in tensors[1:])
    assert found["cosines"][0][1] == pytest.approx(float(x @ y / x.norm() / y.norm()), abs=1e-6)
    assert found["norms"][0] == pytest.approx(float(x.norm()), rel=1e-5)
    assert found["summary"]["conflict"] == pytest.approx(0.5, abs=0.1) and found["measured"] is None
    assert len(found["tensors"]) == 4 and {row["name"] for row in found["tensors"]} == {*tensors[0]}


def test_a_base_among_the_networks_is_found_by_the_weights(files, capsys):
    found = answered(capsys, files["t0"], files["base"], files["t1"])
    assert found["base"] == "base.safetensors" and found["base_found"] and len(found["members"]) == 2
    assert "is taken as the base" in found["notes"][0]


def test_strangers_are_kept_apart_and_renumbered_ones_found_with_an_architecture(files, capsys):
    chosen = [files[name] for name in ("t0", "t1", "turned", "stranger")]
    found = answered(capsys, *chosen)
    assert found["advice"]["kind"] == "apart" and "3 bases" in found["advice"]["why"]
    assert found["cosines"] is None and found["summary"]["conflict"] is None, "from a mean these say nothing"
    assert "--arch" in found["advice"]["why"] and any("no --arch" in note for note in found["notes"])
    code, out, _ = run(capsys, "compare", *chosen)
    assert code == 0 and "Not of one base" in out and "stranger.safetensors" in out


def test_with_an_architecture_and_data(files, tmp_path, monkeypatch):
    (tmp_path / "of_a_set.py").write_text(
        "import weightspace as ws\n\n\ndef net():\n    return ws.demo.example()[0].module()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    task = ws.demo.example()[1]
    np.savez(tmp_path / "data.npz", x=task.example(len(task)).numpy(), y=task.labels().numpy())
    space = Settings(arch="of_a_set:net")
    pair = [files["t0"], files["turned"]]
    found = compare_set([*pair, files["t1"]], settings=space, data=str(tmp_path / "data.npz"))
    assert found.advice.kind == "align" and found.measured is not None
    assert found.measured.aligned.loss < found.measured.stored.loss
    near = compare_set([files["t0"], files["t1"], files["t2"]], settings=space, data=str(tmp_path / "data.npz"))
    assert near.advice.kind == "average" and "measured" in near.advice.why
    page = advice_page(near)
    assert page.tone == "good" and any(getattr(part, "title", "") == "Measured" for part in page.parts)


def test_a_page_is_written(files, capsys, tmp_path):
    words = [files["t0"], files["t1"], "--base", files["base"], "--report", tmp_path / "r.html"]
    code, out, _ = run(capsys, "compare", *words)
    page = (tmp_path / "r.html").read_text()
    assert code == 0 and "Report:" in out and "Do they pull apart?" in page and "t1.safetensors" in page


def test_heads_of_other_classes_are_left_out(files, capsys, tmp_path):
    paths = []
    for k in range(3):
        tensors = {**load_file(files[f"t{k}"]), "head.weight": normal(k, k + 2, 4).float()}
        save_file(tensors, tmp_path / f"h{k}.safetensors")
        paths.append(tmp_path / f"h{k}.safetensors")
    found = answered(capsys, *paths)
    assert found["left_out"] == ["head.weight: of several shapes, (2, 4), (3, 4), (4, 4)"]


def test_adapters_in_factors_and_in_their_base(capsys, tmp_path):
    paths = [stored(tmp_path / f"a{k}", factors(k, dtype=torch.float32)) for k in range(3)]
    found = answered(capsys, *paths)
    assert found["advice"]["kind"] == "unknown" and found["lineage"] is None and found["summary"]["spread"] is None
    assert len(found["cosines"]) == 3 and any("--base" in note for note in found["notes"])
    shapes = {"h.0.q": (8, 6), "h.0.v": (8, 6), "h.1.q": (8, 6)}
    save_file(
        {f"{n}.weight": 5 * normal(k, *s).float() for k, (n, s) in enumerate(shapes.items())},
        tmp_path / "b.safetensors",
    )
    whole = answered(capsys, *paths, "--base", tmp_path / "b.safetensors")
    for one, two in zip(found["cosines"], whole["cosines"], strict=True):
        assert one == pytest.approx(two, abs=1e-4)
    assert whole["advice"]["kind"] in ("average", "search", "apart") and whole["summary"]["conflict"] is not None
    ranks = stored(tmp_path / "other", factors(5, 2, dtype=torch.float32), lora_alpha=2)
    assert len(answered(capsys, paths[0], ranks, paths[1])["members"]) == 3, "ranks may differ"
    head = factors(3, dtype=torch.float32) | {f"{PREFIX}score.weight": normal(0, 2, 8).float()}
    assert any("saved whole" in note for note in answered(capsys, *paths[:2], stored(tmp_path / "h", head))["notes"])


def test_bad_inputs_are_one_line_each(files, capsys, tmp_path):
    a, b, c, base = (files[name] for name in ("t0", "t1", "t2", "base"))
    adapter = stored(tmp_path / "adapter")
    save_file({"x": torch.zeros(2)}, tmp_path / "other.safetensors")
    broken = load_file(a)
    broken["1.weight"][0, 0] = float("nan")
    save_file(broken, tmp_path / "broken.safetensors")
    for words, given in (
        ("is given twice", [a, b, a]),
        ("no such file or folder", [a, b, tmp_path / "none.safetensors"]),
        ("no such file or folder", [a, b, "--base", tmp_path / "none.safetensors"]),
        ("adapter is an adapter, and others are not", [a, b, adapter]),
        ("adapter is an adapter; give the network", [a, b, "--base", adapter]),
        ("have no tensor in common", [a, b, tmp_path / "other.safetensors"]),
        ("NaN or infinity in '1.weight' of broken.safetensors", [a, b, tmp_path / "broken.safetensors"]),
        ("of two networks alone", [a, b, c, "--expect", "same"]),
        ("of two networks alone", [a, b, "--base", base, "--arch-b", "x:y"]),
        ("by one method", [a, b, c, "--method", "weights"]),
        ("changes 'h.0.q', and the base has no such weight", [adapter, a, "--base", base]),
        ("leave --arch and --data out", [adapter, a, "--base", base, "--arch", "x:y"]),
        ("51 checkpoints to compare; give 2 to 50", [tmp_path / f"{k}.safetensors" for k in range(51)]),
    ):
        code, out, err = run(capsys, "compare", *given)
        told = " ".join(err.replace("│", " ").split())
        assert code == 2 and not out and words in told and "Traceback" not in err, (words, err)
    with pytest.raises(WeightspaceError, match="1 checkpoints to compare"):
        compare_set([a], settings=Settings())
