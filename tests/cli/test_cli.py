"""The commands end to end: what they print, write and return, on networks small enough to check by hand."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

import weightspace
from weightspace import demo
from weightspace.checkpoint import reader, writer
from weightspace.checkpoint.architecture import ArchitectureError, find, parse_example
from weightspace.checkpoint.stored import Stored
from weightspace.cli import main
from weightspace.commands import compare
from weightspace.commands.data import splits
from weightspace.net.net import Net
from weightspace.path.trail import Trail
from weightspace.symmetry.symmetry import Symmetry
from weightspace.symmetry.verdict import judge
from weightspace.task import classification, datasets
from weightspace.task.classification import accuracy
from weightspace.task.task import Task
from weightspace.trust.relative import relative_trust

ARCH = "tinynets:mlp"
COMMANDS = """read compare align merge extract walk capacity perturb widen deepen grow project stability watch paths
    inform tasks certify demo doctor schema""".split()


@pytest.fixture(scope="module")
def play(tmp_path_factory):
    """A folder with an importable architecture, data, and checkpoints: a, a disguise of a, a neighbour, a stranger."""
    folder = tmp_path_factory.mktemp("play")
    (folder / "tinynets.py").write_text(
        textwrap.dedent("""
        from torch import nn

        def mlp(width=12, inputs=6):
            return nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, 8), nn.ReLU(), nn.Linear(8, 3))

        def deeper(act="ReLU"):
            more = nn.Linear(8, 8), getattr(nn, act)()
            return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), *more, nn.Linear(8, 3))

        class Batched(nn.Module):
            def __init__(self):
                super().__init__()
                self.fc, self.norm, self.out = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)

            def forward(self, x):
                return self.out(self.norm(self.fc(x)).relu())
        """)
    )
    rng = np.random.RandomState(0)
    x = rng.randn(300, 6).astype(np.float32)
    y = (x[:, :3] + 0.5 * x[:, 3:]).argmax(1)
    np.savez(folder / "data.npz", x=x, y=y)
    nets = {name: trained(seed, x, y) for name, seed in (("a", 0), ("b", 1))}
    group = Symmetry.of(nets["a"], torch.from_numpy(x[:2]))
    nets["disguised"] = group.sample(seed=3)(nets["a"])
    nets["near"] = nets["a"] + 0.1 * float(nets["a"].weights.norm()) / 15 * nets["a"].weights.randn(0)
    for name, net in nets.items():
        writer.save(net.tensors, folder / f"{name}.safetensors", metadata={"who": name})
    return folder


def mlp(width=12):
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 8), nn.ReLU(), nn.Linear(8, 3))


def trained(seed, x, y):
    torch.manual_seed(seed)
    module = mlp()
    optimiser = torch.optim.Adam(module.parameters(), lr=0.02)
    for _ in range(80):
        optimiser.zero_grad()
        nn.functional.cross_entropy(module(torch.from_numpy(x)), torch.from_numpy(y)).backward()
        optimiser.step()
    return Net.of(module)


@pytest.fixture
def here(play, monkeypatch, tmp_path):
    """Run in the folder of the networks; outputs go elsewhere."""
    monkeypatch.chdir(play)
    monkeypatch.syspath_prepend(str(play))
    return tmp_path


def run(capsys, *words):
    code = main([str(word) for word in words])
    return code, *capsys.readouterr()


def ok(capsys, *words):
    code, out, err = run(capsys, *words)
    assert code == 0, err
    return out


def run_json(capsys, *words):
    return json.loads(ok(capsys, *words, "--json"))


# ------------------------------------------------------------------ the commands


def test_read_lists_the_axes_and_writes_a_certificate(here, capsys):
    certificate = here / "group.json"
    out = ok(capsys, "read", "--arch", ARCH, "--example", "2x6", "-o", certificate)
    assert "S12 x R+12 x S8 x R+8" in out
    for word in ("0.weight[0]", "2.weight[0]", "permutation, scale", "4.weight", "Verified"):
        assert word in out
    assert [(a.size, a.kinds) for a in Symmetry.load(certificate).axes] == [
        (12, ("permutation", "scale")),
        (8, ("permutation", "scale")),
    ]
    printed = run_json(capsys, "read", "--arch", ARCH, "--example", "2x6")
    assert printed == {"schema": "weightspace.read/1", **json.loads(certificate.read_text())}


def test_compare_recognises_a_disguised_copy(here, capsys):
    seen = run_json(capsys, "compare", "a.safetensors", "disguised.safetensors", "--arch", ARCH, "--data", "data.npz")
    assert seen["verdict"]["kind"] == "same"
    assert seen["relative_naive"] > 1 and seen["relative"] < 1e-6
    assert seen["outputs"]["disagreement"] == 0 and seen["outputs"]["relative"] < 1e-5
    assert seen["line"]["barrier"]["after"] < 1e-4 < seen["line"]["barrier"]["before"]
    low, high = seen["interval"]
    assert 0 <= low <= high < 1e-4
    assert seen["line"]["examples"] == 150  # half of them; the others were aligned on


def test_compare_tells_a_neighbour_from_a_stranger(here, capsys):
    near = run_json(capsys, "compare", "a.safetensors", "near.safetensors", "--arch", ARCH, "--example", "2x6")
    far = run_json(capsys, "compare", "a.safetensors", "b.safetensors", "--arch", ARCH, "--example", "2x6")
    assert near["verdict"]["kind"] == "related" and 0.01 < near["relative"] < 0.3
    assert far["verdict"]["kind"] == "independent" and far["relative"] > 0.7
    assert far["aligned"] < far["naive"]
    assert near["line"] is None and near["outputs"] == {}


def test_compare_prints_verdict_table_and_numbers(here, capsys):
    code, out, err = run(capsys, "compare", "a.safetensors", "b.safetensors", "--arch", ARCH, "--data", "data.npz")
    assert code == 0
    for words in ("Independent: trained apart", "as stored", "aligned", "loss barrier", "accuracy half way",
                  "proven", "0.weight", "12x6", "S12 x R+12 x S8 x R+8", "Matched by"):  # fmt: skip
        assert words in out
    assert "reading the symmetry" in err and "\x1b" not in out + err


@pytest.mark.parametrize(
    ("other", "expected", "code"),
    [("disguised", "same", 0), ("disguised", "related", 0), ("b", "same", 1), ("b", "related", 1),
     ("b", "independent", 0), ("near", "same", 1), ("near", "related", 0), ("disguised", "independent", 1)],
)  # fmt: skip
def test_expect_gives_the_exit_code(here, capsys, other, expected, code):
    words = (
        "compare",
        "a.safetensors",
        f"{other}.safetensors",
        "--arch",
        ARCH,
        "--example",
        "2x6",
        "--expect",
        expected,
    )
    assert run(capsys, *words, "--method", "weights")[0] == code


def test_align_keeps_the_function_and_comes_nearer(here, capsys, play):
    out = here / "out.safetensors"
    words = ("align", "b.safetensors", "--to", "a.safetensors", "--arch", ARCH, "--data", "data.npz", "-o", out)
    seen = run_json(capsys, *words, "--method", "activations+weights")  # refined scales need not be nearer
    a, b, moved = (Net.of(mlp()).load(reader.read(p)) for p in (play / "a.safetensors", play / "b.safetensors", out))
    x = torch.randn(50, 6)
    torch.testing.assert_close(moved(x), b(x), rtol=1e-4, atol=1e-4)
    assert float((moved - a).norm()) == pytest.approx(seen["after"], rel=1e-6)
    assert float((b - a).norm()) == pytest.approx(seen["before"], rel=1e-6)
    assert seen["after"] < seen["before"] and seen["function"] < 1e-5 and seen["moved"] > 0.5
    assert reader.read(out).metadata["who"] == "b"


def test_align_undoes_a_planted_disguise(here, capsys, play):
    out = here / "out.safetensors"
    words = ("align", "disguised.safetensors", "--to", "a.safetensors", "--arch", ARCH, "--example", "2x6", "-o", out)
    ok(capsys, *words)
    a, undone = load_file(play / "a.safetensors"), load_file(out)
    for name, tensor in a.items():
        torch.testing.assert_close(undone[name], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_align_keeps_dtypes_and_names(here, capsys, play, dtype):
    for name in ("a", "b"):
        tensors = {k: v.to(dtype) for k, v in load_file(play / f"{name}.safetensors").items()}
        writer.save(tensors, here / f"{name}.safetensors", metadata={"note": "kept"})
    out = here / "out.safetensors"
    words = ("align", here / "b.safetensors", "--to", here / "a.safetensors", "--arch", ARCH, "--example", "2x6")
    seen = run_json(capsys, *words, "-o", out)
    assert seen["function"] < 20 * torch.finfo(dtype).eps
    with safe_open(out, framework="pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {dtype}
        assert set(file.keys()) == set(load_file(play / "b.safetensors"))
        assert file.metadata()["note"] == "kept"


def test_merge_averages_modulo_symmetry(here, capsys, play):
    out = here / "merged.safetensors"
    words = ("merge", "a.safetensors", "b.safetensors", "disguised.safetensors", "--arch", ARCH, "--data", "data.npz")
    seen = run_json(capsys, *words, "-o", out)
    _, measure_on = splits(str(play / "data.npz"), 2048, 0)
    merged = Net.of(mlp()).load(reader.read(out))
    assert accuracy(measure_on)(merged) == pytest.approx(seen["aligned"]["accuracy"])
    assert float(measure_on(merged)) == pytest.approx(seen["aligned"]["loss"], rel=1e-5)
    assert seen["aligned"]["loss"] < seen["naive"]["loss"]
    assert [s["name"] for s in seen["singles"]] == ["a.safetensors", "b.safetensors", "disguised.safetensors"]
    assert seen["singles"][0]["loss"] == pytest.approx(seen["singles"][2]["loss"], rel=1e-4)
    text = ok(capsys, *words, "-o", out, "--force")
    assert "ensemble of predictions" in text and "mean after alignment and repair" in text


def test_merge_of_a_network_with_its_disguise_is_the_network(here, capsys, play):
    out = here / "merged.safetensors"
    words = ("merge", "a.safetensors", "disguised.safetensors", "--arch", ARCH, "--example", "2x6", "-o", out)
    seen = run_json(capsys, *words)
    assert seen["naive"] is None and seen["examples"] == 0
    for name, tensor in load_file(play / "a.safetensors").items():
        torch.testing.assert_close(load_file(out)[name], tensor, rtol=1e-4, atol=1e-5)


def test_ensemble_is_the_mean_of_probabilities(here, capsys, play):
    words = (
        "merge",
        "a.safetensors",
        "b.safetensors",
        "--arch",
        ARCH,
        "--data",
        "data.npz",
        "-o",
        here / "m.safetensors",
    )
    seen = run_json(capsys, *words)
    _, task = splits(str(play / "data.npz"), 2048, 0)
    x, y = next(task.batches())
    nets = [Net.of(mlp()).load(reader.read(play / f"{n}.safetensors")) for n in "ab"]
    p = sum(net(x).softmax(-1) for net in nets) / 2
    assert seen["ensemble"]["loss"] == pytest.approx(float(-p[range(len(y)), y].log().mean()), rel=1e-4)


def test_batchnorm_statistics_are_reset_and_it_is_said(here, capsys):
    from tinynets import Batched

    for seed, name in ((0, "p"), (1, "q")):
        torch.manual_seed(seed)
        writer.save(Batched().state_dict(), here / f"{name}.safetensors")
    words = (here / "p.safetensors", here / "q.safetensors", "--arch", "tinynets:Batched")
    out = ok(capsys, "compare", *words, "--data", "data.npz")
    assert "BatchNorm statistics were re-estimated" in out
    out = ok(capsys, "merge", *words, "--example", "2x6", "-o", here / "m.safetensors")
    assert "re-estimate them with --data" in out


def test_files_of_one_name_are_told_apart(here, capsys, play):
    writer.save(load_file(play / "b.safetensors"), here / "a.safetensors")
    seen = run_json(capsys, "compare", "a.safetensors", here / "a.safetensors", "--arch", ARCH, "--example", "2x6")
    assert seen["names"] == ["a.safetensors", str(here / "a.safetensors")]


def test_report_is_written(here, capsys):
    page = here / "out.html"
    words = ("compare", "a.safetensors", "b.safetensors", "--arch", ARCH, "--data", "data.npz", "--report", page)
    out = ok(capsys, *words)
    assert str(page) in out.replace("\n", "")
    assert "Independent: trained apart" in page.read_text()


@pytest.mark.parametrize(
    ("words", "seen"),
    [
        (
            ("align", "b.safetensors", "--to", "a.safetensors", "--data", "data.npz", "-o", "c.safetensors"),
            "renumbered",
        ),
        (("merge", "a.safetensors", "b.safetensors", "--data", "data.npz", "-o", "m.safetensors"), "averaged into one"),
        (("capacity", "a.safetensors", "--keep", "data.npz", "--learn", "data.npz"), "Progress against drift"),
    ],
)
def test_what_aligns_merges_or_asks_for_room_has_a_page_too(here, capsys, words, seen):
    page = here / "out.html"
    out = ok(capsys, *words, "--arch", ARCH, "--report", page)
    assert f"Report: {page}" in out.replace("\n", "") and seen in page.read_text()
    code, _, err = run(capsys, *words, "--arch", ARCH, "--report", page)
    assert code == 2 and "add --force" in err


# ------------------------------------------------------------------ the verdict


@pytest.mark.parametrize(
    ("relative", "precision", "outputs", "kind"),
    [(0.0, 0.0, None, "same"), (9e-5, 0.0, None, "same"), (2e-4, 0.0, None, "related"), (5e-3, 0.0078, None, "same"),
     (5e-5, 1e-7, 1e-5, "same"), (5e-5, 1e-7, 0.5, "related"), (0.69, 0.0, None, "related"),
     (0.71, 0.0, None, "independent"), (1.41, 0.0, 1e-9, "function"), (1.41, 0.0, 0.5, "independent")],
)  # fmt: skip
def test_judge(relative, precision, outputs, kind):
    verdict = judge(relative, precision, outputs)
    assert verdict.kind == kind
    assert f"{relative:.2g}" in verdict.why


def test_relative_distance_does_not_depend_on_order_scale_or_sides(play):
    x = torch.from_numpy(np.load(play / "data.npz")["x"])
    a, b = (Net.of(mlp()).load(reader.read(play / f"{n}.safetensors")) for n in "ab")
    group = Symmetry.of(a, x[:2])
    r = compare.compare(a, b, group).relative
    assert compare.compare(b, a, group).relative == pytest.approx(r, rel=1e-2)
    assert compare.compare(a, group.sample(seed=8)(b), group).relative == pytest.approx(r, rel=1e-2)


def test_line_agrees_with_path(play):
    from weightspace.path.path import line

    align_on, measure_on = splits(str(play / "data.npz"), 2048, 0)
    a, b = (Net.of(mlp()).load(reader.read(play / f"{n}.safetensors")) for n in "ab")
    seen = compare.along(a, b, a, measure_on, align_on)
    assert seen.barrier["before"] == pytest.approx(line(a, b).barrier(measure_on), rel=1e-6)
    assert seen.barrier["after"] == pytest.approx(0, abs=1e-9)
    assert seen.accuracy["before"][0] == pytest.approx(accuracy(measure_on)(a))


# ------------------------------------------------------------------ what options mean


def test_parse_example():
    assert parse_example("2x3x32x32").shape == (2, 3, 32, 32)
    assert torch.equal(parse_example("2x6"), parse_example("2x6"))
    ids = parse_example("ids:2x5")
    assert ids.shape == (2, 5) and ids.dtype == torch.int64


def test_factories_take_literal_arguments(here):
    assert find("tinynets:mlp(width=5)", [])[0].out_features == 5
    assert isinstance(find("torch.nn:Linear(in_features=3, out_features=2)", []), nn.Linear)


def test_tasks_are_disjoint(play):
    for data in (str(play / "data.npz"), "digits"):
        one, other = splits(data, 2048, 0)
        rows = [{x.numpy().tobytes() for x in next(t.take(len(t)).batches())[0]} for t in (one, other)]
        assert rows[0] and rows[1]
        if data != "digits":  # some digits occur twice
            assert not rows[0] & rows[1]
    assert len(splits("digits", 100, 0)[1]) == 100


def test_a_file_with_two_splits_uses_both(here):
    x, y = np.arange(40, dtype=np.float32).reshape(20, 2), np.arange(20) % 3
    np.savez(here / "split.npz", x_train=x[:14], y_train=y[:14], x_test=x[14:], y_test=y[14:])
    align_on, measure_on = splits(str(here / "split.npz"), 2048, 0)
    assert (len(align_on), len(measure_on)) == (14, 6)


def test_tied_tensors_move_under_every_name(here):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.enc, self.out = nn.Linear(5, 7, bias=False), nn.Linear(7, 3)
            self.again = self.enc

        def forward(self, x):
            return self.out(self.enc(x).relu())

    module = Tied()
    net = Net.of(module)
    group = Symmetry.of(net, torch.randn(2, 5))
    g = group.sample(seed=0)
    stored = Stored(module.state_dict(), net, lambda name, tensor: g.move(name, tensor))
    assert torch.equal(stored["enc.weight"], stored["again.weight"])
    torch.testing.assert_close(stored["enc.weight"], g(net).weights["enc.weight"])


def test_an_exported_program_is_an_architecture_and_a_checkpoint_once_trusted(here, capsys, play):
    module = mlp()
    module.load_state_dict(load_file(play / "a.safetensors"))
    program = torch.export.export(module, (torch.randn(2, 6),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, here / "a.pt2")
    words = ("compare", here / "a.pt2", "disguised.safetensors", "--example", "2x6", "--trust-code")
    assert run_json(capsys, *words)["verdict"]["kind"] == "same"


def test_a_hugging_face_folder_needs_no_arch(here, capsys):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.LlamaConfig(**sizes, vocab_size=32, num_key_value_heads=2, max_position_embeddings=32)
    for seed in (0, 1):
        torch.manual_seed(seed)
        transformers.LlamaForCausalLM(config).save_pretrained(here / f"m{seed}")
    seen = run_json(capsys, "compare", here / "m0", here / "m1", "--method", "weights")
    assert seen["architecture"] == "LlamaForCausalLM" and seen["verdict"]["kind"] == "independent"


def test_a_folder_whose_layers_transformers_has_renamed_is_read_and_written(here, capsys):
    """Vision transformers are stored under the names of an older class; what is written transformers reads again."""
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.ViTConfig(**sizes, image_size=8, patch_size=4, num_labels=3)
    models = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        models.append(transformers.ViTForImageClassification(config).eval())
        models[-1].save_pretrained(here / f"m{seed}")
    out = here / "m1" / "model.safetensors"
    stored = set(load_file(out))
    assert stored != set(models[1].state_dict()), "nothing was renamed: this test asks nothing"
    run_json(capsys, "align", here / "m1", "--to", here / "m0", "-o", out, "--force")
    moved = transformers.ViTForImageClassification.from_pretrained(here / "m1").eval()
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        assert torch.allclose(moved(x).logits, models[1](x).logits, atol=1e-5)
    assert not torch.equal(moved.state_dict()["classifier.weight"], models[1].state_dict()["classifier.weight"])
    pair = (here / "m0" / "model.safetensors", here / "m1", "--arch", here / "m0")
    assert run_json(capsys, "compare", *pair)["verdict"]["kind"] == "independent"
    told = here / "m0" / "config.json"
    told.write_text(json.dumps({**json.loads(told.read_text()), "hidden_size": 16}))
    capsys.readouterr()
    code, _, err = run(capsys, "compare", here / "m0", here / "m1")
    assert code == 2 and "not the same architecture" in err and "Traceback" not in err


def test_an_image_network_of_transformers_brings_its_own_example(here, capsys):
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(embedding_size=4, hidden_sizes=[4, 6], depths=[1, 1], layer_type="basic")
    transformers.ResNetForImageClassification(config).save_pretrained(here / "m")
    assert run_json(capsys, "read", here / "m")["axes"]


def test_hugging_face_without_transformers_says_what_to_install(here, monkeypatch):
    (here / "config.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ArchitectureError, match=r"pip install 'weightspace\[hf\]'"):
        find(None, [here])


def test_limit_and_seed_reach_the_data(here, capsys):
    words = ("compare", "a.safetensors", "b.safetensors", "--arch", ARCH, "--data", "data.npz", "--method", "weights")
    assert run_json(capsys, *words, "--limit", "40")["line"]["examples"] == 40
    one, other = (run_json(capsys, *words, "--limit", "40", "--seed", seed)["line"]["loss"] for seed in (1, 2))
    assert one != other


# ------------------------------------------------------------------ the program


def program(*words, cwd=None, **environment):
    # the coverage of warnings in tests must not reach the child
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1", **environment}
    call = "import sys; from weightspace.cli import main; sys.exit(main())"
    return subprocess.run([sys.executable, "-c", call, *words], capture_output=True, text=True, cwd=cwd, env=env)


def test_help_does_not_import_torch():
    """In one process, a command after the other: the first that loads what is slow is named."""
    call = """
        import sys
        from weightspace.cli import main
        for command in ["", *sys.argv[1:]]:
            print(f"===={command}")
            assert main([*command.split(), "--help"]) == 0, command
            slow = {"torch", "numpy", "plotly", "scipy", "sklearn"} & set(sys.modules)
            assert not slow, (command, slow)
    """
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    run_all = [sys.executable, "-c", textwrap.dedent(call), *COMMANDS]
    done = subprocess.run(run_all, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    _, first, *rest = done.stdout.split("====")
    assert all(command in first for command in COMMANDS) and len(rest) == len(COMMANDS)
    assert all("Usage" in text for text in (first, *rest))


def test_version(capsys):
    import weightspace

    out = ok(capsys, "--version")
    assert out.strip() == f"weightspace {weightspace.__version__}"


def test_what_goes_into_a_pipe_is_120_columns_wide_or_as_columns_says(monkeypatch):
    from weightspace.cli.words import console

    monkeypatch.delenv("COLUMNS", raising=False)
    assert console().width == 120
    monkeypatch.setenv("COLUMNS", "90")
    assert console().width == 90


def test_every_command_has_json_force_and_debug(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    for command in COMMANDS:
        words = ok(capsys, command, "--help")
        assert all(option in words for option in ("--json", "--debug", "--force"))


def test_what_a_factory_prints_does_not_get_into_the_json(here, capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(here))
    (here / "loud.py").write_text("from tinynets import mlp\n\ndef net():\n    print('hello')\n    return mlp()\n")
    code, out, err = run(capsys, "read", "--arch", "loud:net", "--example", "2x6", "--json")
    assert code == 0 and json.loads(out)["axes"] and "hello" in err, err
    code, out, _ = run(capsys, "read", "--arch", "loud:net", "--example", "2x6")
    assert code == 0 and "hello" in out


def test_the_package_is_a_program_too():
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run([sys.executable, "-m", "weightspace", "align"], capture_output=True, text=True, env=env)
    assert done.returncode == 2 and done.stderr.startswith("weightspace: Missing") and "Traceback" not in done.stderr


def test_as_a_process_stdout_is_json_and_colours_are_off(play, tmp_path):
    words = ("compare", "a.safetensors", "disguised.safetensors", "--arch", ARCH, "--example", "2x6", "--json")
    done = program(*words, cwd=play, NO_COLOR="1")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["verdict"]["kind"] == "same"
    assert "\x1b" not in done.stdout + done.stderr and "Warning" not in done.stderr


def test_ctrl_c_is_one_line(here, capsys, monkeypatch):
    def stopped(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("weightspace.commands.compare.compare_files", stopped)
    code, out, err = run(capsys, "compare", "a.safetensors", "b.safetensors", "--arch", ARCH, "--example", "2x6")
    assert code == 130 and out == "" and err.splitlines()[-1].startswith("weightspace: stopped")


def test_debug_shows_the_traceback(here):
    with pytest.raises(ArchitectureError):
        main(["read", "--arch", "nothing", "--debug"])


# ------------------------------------------------------------------ walk


def zeros(net):
    matrices = [w for w in net.weights.values() if w.dim() > 1]
    return sum(int((w == 0).sum()) for w in matrices) / sum(w.numel() for w in matrices)


def test_walk_prunes_and_keeps_what_the_network_does(here, capsys):
    code, out, err = run(capsys, "walk", "a.safetensors", "--keep", "data.npz", "--toward", "prune:0.5", "-o",
                         here / "sparse.safetensors", "--arch", ARCH, "--steps", 6, "--json")  # fmt: skip
    assert code == 0, err
    found = json.loads(out)
    end = Net.of(mlp()).load(reader.read(here / "sparse.safetensors"))
    assert zeros(end) == pytest.approx(0.5, abs=0.01) and found["sparsity"] == pytest.approx(zeros(end))
    assert found["used"] <= found["budget"] and found["why"] == "steps"
    (_, before, after) = found["scores"][0]
    assert after["accuracy"] > before["accuracy"] - 0.05
    assert reader.read(here / "sparse.safetensors").metadata["who"] == "a"
    (here / "sparse.safetensors").unlink()


def test_walk_learns_within_the_budget(here, capsys):
    rng = np.random.RandomState(1)
    x = rng.randn(200, 6).astype(np.float32) + 3
    np.savez(here / "new.npz", x=x, y=np.zeros(200, dtype=np.int64))
    options = (
        "--keep",
        "data.npz",
        "--toward",
        f"learn:{here / 'new.npz'}",
        "--arch",
        ARCH,
        "--memory",
        20,
        "--steps",
        15,
    )
    code, out, err = run(capsys, "walk", "a.safetensors", *options, "-o", here / "learnt.safetensors", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert 0 <= found["free"] <= 1 and found["used"] <= found["budget"]
    learnt = found["scores"][1]
    assert learnt[2]["loss"] < learnt[1]["loss"]
    (here / "learnt.safetensors").unlink()


def test_walk_into_a_folder_goes_on_from_there_and_shows_where_it_went(here, capsys):
    rng = np.random.RandomState(1)
    np.savez(here / "new.npz", x=rng.randn(200, 6).astype(np.float32) + 3, y=np.zeros(200, dtype=np.int64))
    options = ("--keep", "data.npz", "--toward", f"learn:{here / 'new.npz'}", "--arch", ARCH, "--memory", 10)
    folder, page = here / "there", here / "walk.html"
    code, _, err = run(capsys, "walk", "a.safetensors", *options, "-o", folder, "--steps", 4)
    assert code == 0, err
    code, out, err = run(capsys, "walk", "a.safetensors", *options, "-o", folder, "--steps", 12, "--report", page)
    assert code == 0 and str(page) in out.replace("\n", ""), err
    template = Net.of(mlp())
    points = Trail(folder, template.load(reader.read("a.safetensors")))
    steps = [points.facts(k)["step"] for k in range(len(points))]
    assert steps == sorted(set(steps)) and steps[0] == 0 and steps[-1] == 12
    text = page.read_text()
    for words in (
        "The path in weight space",
        "Accuracy along the path",
        "Drift, step by step",
        "Progress against drift",
        "Spectrum of",
    ):
        assert words in text
    code, _, err = run(capsys, "walk", "b.safetensors", *options, "-o", folder, "--steps", 4)
    assert code == 2 and "began at another network" in err
    code, _, err = run(capsys, "walk", "b.safetensors", *options, "-o", folder, "--steps", 4, "--force")
    assert code == 0, err
    assert json.loads((folder / "index.json").read_text())["points"][-1]["step"] == 4, "--force begins anew"
    shutil.rmtree(folder)
    page.unlink()


@pytest.mark.parametrize(
    "toward",
    ["prune:0.5,2:4", "prune:0.3,neuron", "prune:0.6,descent", "drift:3", "spread", "harden:0.1", "b.safetensors"],
)
def test_walk_knows_every_goal(here, capsys, toward):
    out = here / "end.safetensors"
    options = ("--keep", "data.npz", "--toward", toward, "--arch", ARCH, "--steps", 3, "--memory", 20)
    options += () if toward.endswith("descent") else ("--budget", 50)
    code, text, err = run(capsys, "walk", "a.safetensors", *options, "-o", out, "--report", here / "p.html", "--json")
    assert code == 0, err
    found = json.loads(text)
    assert found["moved"] > 0 and found["used"] <= 50 and len(found["picture"]["drift"]) == 3
    for name in ("end.safetensors", "p.html"):
        (here / name).unlink()


def test_capacity_says_how_much_room_there_is(here, capsys):
    options = ("--keep", "data.npz", "--learn", "data.npz", "--arch", ARCH, "--memory", 5)
    code, out, err = run(capsys, "capacity", "a.safetensors", *options)
    assert code == 0 and "leaves the outputs to keep alone" in out, err
    found = json.loads(run(capsys, "capacity", "a.safetensors", *options, "--json")[1])
    assert 0 <= found["layers"] <= found["free"] + 1e-6 <= 1 + 2e-6 and found["rows"] == 5 * 3
    drifts, progress = zip(*found["tradeoff"], strict=True)
    assert list(drifts) == sorted(drifts) and list(progress) == pytest.approx(sorted(progress))
    code, _, err = run(capsys, "capacity", "a.safetensors", "--keep", "data.npz", "--learn", "no.npz", "--arch", ARCH)
    assert code == 2 and "no such file" in err


@pytest.mark.parametrize(
    ("toward", "more", "words"),
    [
        ("prune:1.5", (), "between 0 and 1"),
        ("prune:x", (), "not a number"),
        ("bake", (), "no goal of that name"),
        ("prune:0.5,3:2", (), "n:m"),
        ("harden:-1", (), "radius"),
        ("drift:x", (), "not a whole number"),
        ("prune:0.5,descent", ("--budget", 1), "leave out --budget"),
        ("learn:nowhere.npz", (), "no such file"),
        ("drift:1", ("--budget", 0), "budget must be positive"),
        ("drift:1", ("--size", -1), "size must be positive"),
        ("drift:1", ("--steps", 0), "steps"),
        ("prune:0.9999", ("--steps", 1), "would empty"),
    ],
)
def test_walk_refuses_in_one_line_and_writes_nothing(here, capsys, toward, more, words):
    out = here / "never.safetensors"
    options = ("--keep", "data.npz", "--toward", toward, "--arch", ARCH, "--steps", 2, *more)
    code, _, err = run(capsys, "walk", "a.safetensors", *options, "-o", out)
    assert code == 2 and words in err and "Traceback" not in err, err
    assert not out.exists()


# ------------------------------------------------------------------ the demo


# ------------------------------------------------------------------ widen, grow


@pytest.mark.parametrize(
    ("options", "width", "second"),
    [
        (("--to", "2"), 24, 16),
        (("--to", "tinynets:mlp(width=20)"), 20, 8),
        (("--axis", "0.weight[0]=13", "--new", "zeros"), 13, 8),
    ],
)
def test_widen_writes_the_same_function_and_says_what_grew(here, capsys, options, width, second):
    out = here / "wide.safetensors"
    found = run_json(capsys, "widen", "a.safetensors", "-o", out, "--arch", ARCH, "--data", "data.npz", *options)
    narrow, wide = Net.of(mlp()).load(reader.read("a.safetensors")), reader.read(out)
    assert found["axes"][0] == ["0.weight[0]", 12, width] and wide.metadata["who"] == "a"
    module = nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, second), nn.ReLU(), nn.Linear(second, 3))
    x = torch.from_numpy(np.load("data.npz")["x"])
    torch.testing.assert_close(Net.of(module).load(wide)(x), narrow(x), atol=1e-5, rtol=1e-4)
    text = ok(capsys, "widen", "a.safetensors", "-o", out, "--arch", ARCH, "--example", "2x6", "--force", *options)
    assert "0.weight[0]" in text and "the outputs changed by" in text


def test_deepen_writes_the_same_function_with_more_layers(here, capsys):
    out, options = here / "deep.safetensors", ("--arch", ARCH, "--to", "tinynets:deeper")
    found = run_json(capsys, "deepen", "a.safetensors", "-o", out, "--data", "data.npz", *options)
    narrow, deep = Net.of(mlp()).load(reader.read("a.safetensors")), load_file(out)
    assert ["Linear", 3, 4] in found["layers"] and found["function"] < 1e-6 and reader.read(out).metadata["who"] == "a"
    x = torch.from_numpy(np.load("data.npz")["x"])
    module = find("tinynets:deeper", [])
    torch.testing.assert_close(Net.of(module).load(deep)(x), narrow(x), atol=1e-5, rtol=1e-4)
    text = ok(capsys, "deepen", "a.safetensors", "-o", out, "--example", "2x6", "--force", *options)
    assert "Linear" in text and "the outputs changed by" in text and "this depth" in text
    assert all(torch.equal(tensor, deep[name]) for name, tensor in load_file(out).items())


def test_grow_writes_more_outputs(here, capsys):
    out = here / "more.safetensors"
    found = run_json(capsys, "grow", "a.safetensors", "-o", out, "--arch", ARCH, "--example", "2x6", "--outputs", 2)
    assert ["4.weight", [3, 8], [5, 8]] in found["shapes"] and found["function"] < 1e-6
    old, new = reader.read("a.safetensors"), reader.read(out)
    assert torch.equal(new["4.weight"][:3], old["4.weight"]) and new["4.bias"].shape == (5,)
    text = ok(capsys, "grow", "a.safetensors", "-o", out, "--arch", ARCH, "--example", "2x6", "--outputs", 1, "--force")
    assert "4x8" in text


def test_grow_refuses_a_layer_that_does_not_make_the_outputs(here, capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(here))
    (here / "twoheads.py").write_text(
        "from torch import nn\n\nclass Heads(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.head, self.other = nn.Linear(6, 3), nn.Linear(6, 5)\n\n"
        "    def forward(self, x):\n        return self.head(x)\n"
    )
    tensors = {"head.weight": (3, 6), "head.bias": (3,), "other.weight": (5, 6), "other.bias": (5,)}
    writer.save({name: torch.ones(shape) for name, shape in tensors.items()}, here / "heads.safetensors")
    out = here / "more.safetensors"
    words = (
        "grow",
        here / "heads.safetensors",
        "-o",
        out,
        "--arch",
        "twoheads:Heads",
        "--example",
        "2x6",
        "--outputs",
        "2",
    )
    code, text, err = run(capsys, *words)
    assert (
        code == 2
        and not text
        and "does not make the outputs alone" in err
        and "the layer head" in err
        and not out.exists()
    ), err
    assert ["head.weight", [3, 6], [5, 6]] in run_json(capsys, *words, "--layer", "head")["shapes"]


@pytest.mark.parametrize(
    ("command", "given", "words"),
    [
        ("widen", (), "how wide"),
        ("widen", ("--to", "2", "--axis", "0.weight[0]=13"), "either --to"),
        ("widen", ("--to", "0.5"), "narrower"),
        ("widen", ("--to", "2x"), "neither a factor"),
        ("widen", ("--to", "tinynets:Batched"), "not a widening"),
        ("widen", ("--axis", "0.weight[0]=11"), "fewer"),
        ("widen", ("--axis", "7.weight[0]=13"), "no axis"),
        ("widen", ("--axis", "0.weight[0]"), "NAME=SIZE"),
        ("widen", ("--to", "2", "--new", "nothing"), "copies or zeros"),
        ("widen", ("--to", "nowhere:mlp"), "no module"),
        ("deepen", (), "--to"),
        ("deepen", ("--to", "2"), "no architecture"),
        ("deepen", ("--to", "nowhere:mlp"), "no module"),
        ("deepen", ("--to", "tinynets:Batched"), "not a deepening"),
        ("deepen", ("--to", "tinynets:mlp(width=14)"), "not a deepening"),
        ("deepen", ("--to", "tinynets:deeper(act='Tanh')"), "no numbers of the new layers"),
        ("grow", ("--outputs", "2", "--layer", "1"), "no linear layer"),
        ("grow", ("--outputs", "0"), "--outputs"),
    ],
)
def test_widen_deepen_and_grow_refuse_in_one_line(here, capsys, command, given, words):
    out = here / "refused.safetensors"
    code, text, err = run(capsys, command, "a.safetensors", "-o", out, "--arch", ARCH, "--example", "2x6", *given)
    assert code == 2 and not text and not out.exists(), err
    *told, said = err.splitlines()
    assert words in said and all(line.endswith("...") for line in told), err


# ------------------------------------------------------------------ perturb, stability


@pytest.mark.parametrize(
    "options", [("--relative", 0.1), ("--kind", "quantise", "--bits", 4), ("--kind", "prune", "--share", 0.5)]
)
def test_perturb_writes_what_it_says(here, capsys, options):
    out = here / "shaken.safetensors"
    code, text, err = run(capsys, "perturb", "a.safetensors", "-o", out, "--arch", ARCH, "--data", "data.npz", "--json",
                          *options)  # fmt: skip
    assert code == 0, err
    found = json.loads(text)
    before, after = (Net.of(mlp()).load(reader.read(path)) for path in ("a.safetensors", out))
    assert found["model"] == pytest.approx(relative_trust(before, after)) and found["measured"] > 0
    assert found["scores"][0]["accuracy"] > 0.5 and reader.read(out).metadata["who"] == "a"
    if options[0] == "--relative":
        assert found["largest"] == pytest.approx(0.1, rel=1e-4)
        assert 0.2 < found["measured"] / found["expected"] < 5
    code, text, err = run(capsys, "perturb", "a.safetensors", "-o", out, "--arch", ARCH, "--force", *options)
    assert code == 0 and "Deep relative trust" in text, err
    out.unlink()


def test_stability_tells_and_shows(here, capsys):
    page = here / "stability.html"
    options = ("--data", "data.npz", "--arch", ARCH, "--sizes", "0.05,0.2", "--draws", 3)
    code, text, err = run(capsys, "stability", "a.safetensors", *options, "--report", page)
    assert code == 0 and "proven" in text and "Most fragile" in text, err
    for words in (
        "Change of the outputs under noise",
        "Accuracy under noise",
        "Most fragile tensors",
        "proven, without",
    ):
        assert words in page.read_text()
    page.unlink()
    code, text, err = run(capsys, "stability", "a.safetensors", *options, "--no-proof", "--json")
    assert code == 0, err
    found = json.loads(text)
    assert [step["relative"] for step in found["found"]["steps"]] == [0.05, 0.2] and 0 < found["width"] <= 2
    assert all(len(step["moved"]) == 3 and step["certificate"] is None for step in found["found"]["steps"])


def test_stability_under_attack_is_the_accuracy_that_is_left(here, capsys):
    options = ("--data", "data.npz", "--arch", ARCH, "--sizes", "0.05", "--draws", 1, "--no-proof")
    code, text, err = run(capsys, "stability", "a.safetensors", *options, "--attack", "0.05,0,0.5", "--json")
    assert code == 0, err
    found = json.loads(text)
    radii, right = zip(*found["attacked"], strict=True)
    assert radii == (0, 0.05, 0.5) and right[0] == found["found"]["accuracy"] >= right[1] >= right[2] < right[0]
    assert found["span"][0] < found["span"][1]
    page = here / "attacked.html"
    code, text, err = run(capsys, "stability", "a.safetensors", *options, "--attack", "0.1", "--report", page)
    assert code == 0 and "Accuracy under attack" in text and "Accuracy under attack of 0.1" in page.read_text(), err
    page.unlink()


def test_outputs_are_compared_where_there_are_no_labels(here, capsys):
    """A generator, an autoencoder: inputs alone."""
    np.savez(here / "inputs.npz", x=np.load("data.npz")["x"])
    given = ("--data", here / "inputs.npz", "--arch", ARCH)
    sizes = ("--draws", 2, "--sizes", "0.1,0.2", "--report", here / "u.html", "--json")
    code, text, err = run(capsys, "stability", "a.safetensors", *given, *sizes)
    assert code == 0, err
    steps = json.loads(text)["found"]["steps"]
    assert all(step["moved"] and not step["accuracy"] and not step["loss"] for step in steps)
    code, text, err = run(capsys, "perturb", "a.safetensors", *given, "-o", here / "u.safetensors")
    assert code == 0 and "Change of the outputs" in text, err


def test_a_line_is_measured_where_there_are_no_labels(here, capsys):
    """As a divergence, which is said in the text, in JSON and on the page, and not as a loss."""
    np.savez(here / "inputs.npz", x=np.load("data.npz")["x"])
    given = ("--data", here / "inputs.npz", "--arch", ARCH)
    code, text, err = run(capsys, "compare", "a.safetensors", "b.safetensors", *given, "--report", here / "w.html")
    assert code == 0 and "divergence on the line (no labels)" in text and "not a loss" in " ".join(text.split()), err
    assert "loss barrier" not in text.lower()
    page = (here / "w.html").read_text()
    assert "Divergence on the line, without labels" in page and "Loss barrier" not in page
    code, text, err = run(capsys, "compare", "a.safetensors", "b.safetensors", *given, "--json")
    line = json.loads(text)["line"]
    assert code == 0 and line["measured"] == "divergence" and line["loss"] == {} and line["accuracy"] == {}, err
    assert line["barrier"]["after"] == pytest.approx(max(line["divergence"]["after"]), abs=1e-6)
    out = here / "x.safetensors"
    code, text, err = run(capsys, "align", "b.safetensors", "--to", "a.safetensors", "-o", out, *given)
    assert code == 0 and "divergence on the line (no labels)" in text, err
    code, text, err = run(capsys, "merge", "a.safetensors", "b.safetensors", "-o", here / "v.safetensors", *given)
    assert code == 0 and "no loss was measured" in " ".join(text.split()), err


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("perturb", "a.safetensors", "-o", "x.safetensors", "--relative", "-1"), "relative must be in"),
        (("perturb", "a.safetensors", "-o", "x.safetensors", "--relative", "nan"), "relative must be in"),
        (("perturb", "a.safetensors", "-o", "x.safetensors", "--kind", "burn"), "kind takes 'noise'"),
        (("perturb", "a.safetensors", "-o", "x.safetensors", "--bits", "4"), "bits goes with"),
        (("perturb", "none.safetensors", "-o", "x.safetensors"), "no such file"),
        (("stability", "a.safetensors", "--data", "data.npz", "--sizes", "0.1,x"), "numbers separated by commas"),
        (("stability", "a.safetensors", "--data", "data.npz", "--sizes", "12"), "relative must be in"),
        (("stability", "a.safetensors", "--data", "nowhere.npz"), "no such file"),
        (("stability", "a.safetensors", "--data", "data.npz", "--tolerance", "-1"), "tolerance"),
        (("stability", "a.safetensors", "--data", "data.npz", "--attack", "0.1,x"), "numbers separated by commas"),
        (("stability", "a.safetensors", "--data", "data.npz", "--attack", "-1"), "a radius from 0"),
    ],
)
def test_perturb_and_stability_refuse_in_one_line(here, capsys, command, words):
    code, _, err = run(capsys, *command, "--arch", ARCH)
    assert code == 2 and words in err and err.count("\n") <= 2, err
    assert not (here / "x.safetensors").exists()


@pytest.mark.slow
def test_demo(tmp_path, capsys, monkeypatch):
    for name, value in {"_EPOCHS": 10, "_DRAWS": 2, "_WATCHED": 4, "_ASKED": 60, "_RANK": 10, "_STEPS": 60}.items():
        monkeypatch.setattr(demo, name, value)
    monkeypatch.setattr(demo, "_DRAWN", 2000)
    monkeypatch.setattr(demo, "digits_cnn", partial(demo.digits_cnn, width=16))
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, "demo")
    assert code == 0, err
    folder = tmp_path / "weightspace-demo"
    for name in demo._FILES:
        assert (folder / f"{name}.safetensors").exists()
    assert str(folder / "report.html") in out.replace("\n", "")
    for words in ("weightspace compare a.safetensors disguised.safetensors --arch weightspace.demo:digits_cnn",
                  "weightspace align", "weightspace merge", "the same network, up to symmetry",
                  "independent"):  # fmt: skip
        assert words in out
    monkeypatch.chdir(folder)
    a, merged = (Net.of(demo.digits_cnn()).load(reader.read(f"{n}.safetensors")) for n in ("a", "merged"))
    right = accuracy(datasets.digits("test"))
    assert right(a) > 0.9 and right(merged) > 0.6


def test_demo_does_not_overwrite_files_of_others(tmp_path, capsys, monkeypatch):
    (tmp_path / "a.safetensors").write_text("mine")
    code, _, err = run(capsys, "demo", "-o", tmp_path)
    assert code == 2 and "--force" in err and (tmp_path / "a.safetensors").read_text() == "mine"


def test_training_repeats_and_leaves_the_global_generator_alone():
    data = datasets.digits()
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one, two = (demo.train(3, data, epochs=1) for _ in range(2))
    assert torch.equal(torch.rand(1), expected)
    assert float((one - two).norm()) == 0
    assert float((one - demo.train(4, data, epochs=1)).norm()) > 0


def test_paths_are_not_names_of_the_machine():
    files = list(Path(weightspace.__file__).parent.rglob("*.py"))
    assert len(files) > 50
    for file in files:
        text = file.read_text()
        assert "/work" not in text and "/tmp" not in text and "/root" not in text


def test_task_of_soft_labels_has_no_ensemble_of_classes():
    assert not classification.classifies(Task(torch.randn(4, 2), torch.randn(4, 1)))


def test_the_shell_completes_commands_and_options():
    def completed(words, place):
        given = {"_WEIGHTSPACE_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(place)}
        done = subprocess.run(
            [sys.executable, "-m", "weightspace"],
            env={**os.environ, **given},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.split()

    assert completed("weightspace mer", 1) == ["merge"]
    assert "--tokenizer" in completed("weightspace merge --to", 2)
