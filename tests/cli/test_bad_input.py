"""Every mistake gets one line that says what was wrong, exit code 2, no traceback, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import pickle
import signal
import struct
import subprocess
import sys
import textwrap
import time
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from weightspace.checkpoint import reader
from weightspace.cli import main

ARCH = ("--arch", "badnets:mlp")
EXAMPLE = ("--example", "2x6")

MODULE = """
from torch import nn

def mlp(width=12):
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 3))

def fails():
    raise RuntimeError("no weights today\\nand a second line")

def a_number():
    return 7

made = mlp()
answer = 42
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with an architecture, two good checkpoints and good data; the current directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "badnets", raising=False)
    monkeypatch.delenv("WEIGHTSPACE_DATA", raising=False)
    (tmp_path / "badnets.py").write_text(MODULE)
    for seed, name in enumerate(("a", "b")):
        torch.manual_seed(seed)
        save_file(mlp().state_dict(), tmp_path / f"{name}.safetensors")
    x = torch.randn(40, 6).numpy()
    np.savez(tmp_path / "data.npz", x=x, y=np.arange(40) % 3)
    return tmp_path


def mlp(width=12):
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 3))


def snapshot(folder):
    files = (p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    return {p.relative_to(folder): p.read_bytes() for p in files}


def refused(capsys, folder, *words):
    """Run a command that must fail; the one line that it says."""
    before = snapshot(folder)
    code = main([str(word) for word in words])
    out, err = capsys.readouterr()
    said = [line for line in err.splitlines() if line.startswith("weightspace: ")]
    others = [line for line in err.splitlines() if line not in said]
    assert code == 2, (out, err)
    assert out == ""
    assert len(said) == 1 and all(line.endswith(" ...") for line in others), err  # besides progress
    assert "Traceback" not in err and len(said[0]) < 1000
    assert "unexpected" not in said[0].split(";")[0].split(":")[1], said[0]  # a mistake of the user, not of ours
    assert snapshot(folder) == before
    return said[0]


def aligning(path, *more):
    return ("align", path, "--to", "a.safetensors", *ARCH, *EXAMPLE, "-o", "out.safetensors", *more)


def check(capsys, here, path, *words):
    """`path` is refused by compare, align and merge, with every one of `words` in what is said."""
    for command in (
        ("compare", "a.safetensors", path, *ARCH, *EXAMPLE),
        aligning(path),
        ("merge", "a.safetensors", path, *ARCH, *EXAMPLE, "-o", "out.safetensors"),
    ):
        said = refused(capsys, here, *command)
        for word in (str(path), *words):
            assert word in said, said


# ------------------------------------------------------------------ checkpoints


def test_good_ones_pass(here, capsys):
    assert main([*aligning("b.safetensors")]) == 0 and (here / "out.safetensors").exists()


def test_another_architecture(here, capsys):
    save_file(nn.Linear(4, 4).state_dict(), here / "other.safetensors")
    check(capsys, here, "other.safetensors", "not the same architecture", "missing 0.weight")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("2.bias"), ["missing 2.bias"]),
        (lambda t: t.update({"9.weight": torch.zeros(2)}), ["unexpected 9.weight"]),
        (lambda t: t.update({"0.weight": torch.zeros(13, 6)}), ["0.weight is (13, 6), expected (12, 6)"]),
        (lambda t: t["2.weight"].__setitem__((0, 0), torch.nan), ["NaN or infinity in 2.weight"]),
        (lambda t: t["0.bias"].__setitem__(3, torch.inf), ["NaN or infinity in 0.bias"]),
    ],
    ids=["missing", "extra", "misshapen", "nan", "inf"],
)
def test_tensors_that_do_not_fit(here, capsys, change, words):
    tensors = load_file(here / "b.safetensors")
    change(tensors)
    save_file(tensors, here / "bad.safetensors")
    check(capsys, here, "bad.safetensors", *words)


def header(claims, size=8):
    text = json.dumps(claims).encode()
    return struct.pack("<Q", len(text)) + text + bytes(size)


HUGE = {"0.weight": {"dtype": "F32", "shape": [1 << 30, 1 << 20], "data_offsets": [0, 8]}}


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("bad.safetensors", b"", "empty file"),
        ("bad.pt", b"", "empty file"),
        ("bad.safetensors", b"\x10\0\0", "truncated"),
        ("bad.safetensors", struct.pack("<Q", 1 << 60) + b"{}", "header"),
        ("bad.safetensors", header(HUGE), "claims"),
        ("bad.safetensors", header({"0.weight": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 8]}}), "shape"),
        ("bad.txt", b"hello", "unknown ending"),
        ("bad.pt", b"not a zip", ""),
        ("bad.pkl", b"", "pickle"),
    ],
)
def test_files_that_are_none(here, capsys, name, content, word):
    (here / name).write_bytes(content)
    check(capsys, here, name, word)


def test_a_truncated_file(here, capsys):
    whole = (here / "b.safetensors").read_bytes()
    (here / "cut.safetensors").write_bytes(whole[:-40])
    check(capsys, here, "cut.safetensors")


def test_a_missing_file_is_named_before_anything_is_imported(here, capsys):
    check(capsys, here, "nothing.safetensors", "no such file")


class Code:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("name", ["evil.pt", "evil.bin", "evil.ckpt", "evil.pth"])
def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(here, capsys, name):
    marker = here / "ran"
    torch.save({"0.weight": torch.zeros(1), "x": Code(str(marker))}, here / name)
    check(capsys, here, name)
    (here / name).write_bytes(pickle.dumps(Code(str(marker))))
    check(capsys, here, name)
    assert not marker.exists()
    pickle.loads(pickle.dumps(Code(str(marker))))  # it would have
    assert marker.exists()


def test_a_zip_that_claims_to_be_huge(here, capsys):
    with zipfile.ZipFile(here / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
        archive.writestr("archive/data/0", bytes(50_000_000))
    assert (here / "bomb.pt").stat().st_size < 100_000
    check(capsys, here, "bomb.pt")


def test_an_index_that_points_elsewhere(here, capsys):
    folder = here / "model"
    folder.mkdir()
    index = {"weight_map": {name: "../b.safetensors" for name in load_file(here / "b.safetensors")}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    check(capsys, here, "model", "'../b.safetensors'", "no plain file name")


def test_a_name_from_a_file_cannot_steer_the_terminal(here, capsys):
    save_file({"\x1b[31mred\x1b]0;owned\x07": torch.zeros(2)}, here / "ansi.safetensors")
    code = main(["compare", "a.safetensors", "ansi.safetensors", *ARCH, *EXAMPLE])
    out, err = capsys.readouterr()
    assert code == 2 and "\x1b" not in out + err and "\x07" not in out + err


# ------------------------------------------------------------------ architectures


@pytest.mark.parametrize(
    ("arch", "words"),
    [
        ("badnets", ["no colon", "package.module:factory"]),
        (":mlp", ["module name"]),
        ("badnets:", ["cannot be understood"]),
        ("bad-nets:mlp", ["module name"]),
        ("nosuchmodule:mlp", ["no module 'nosuchmodule'"]),
        ("badnets.inner:mlp", ["badnets"]),
        ("badnets:resnet", ["has no 'resnet'", "mlp"]),
        ("badnets:fails", ["RuntimeError: no weights today"]),
        ("badnets:a_number", ["gave a int"]),
        ("badnets:answer", ["is a int"]),
        ("badnets:made(width=3)", ["takes no arguments"]),
        ("badnets:mlp(width=open('a'))", ["cannot be understood"]),
        ("badnets:mlp(__import__('os').mkdir('ran'))", ["name=value"]),
        ("badnets:mlp(**{'width': 3})", ["name=value"]),
        ("badnets:mlp(depth=3)", ["TypeError"]),
        ("badnets:mlp; import os", ["cannot be understood"]),
        ("broken:mlp", ["importing broken failed", "SyntaxError"]),
        ("needy:mlp", ["needs nosuchdependency"]),
    ],
)
def test_arch_strings(here, capsys, arch, words):
    (here / "broken.py").write_text("def mlp(:")
    (here / "needy.py").write_text("import nosuchdependency")
    said = refused(capsys, here, "read", "--arch", arch, *EXAMPLE)
    for word in (f"--arch {arch}", *words):
        assert word in said, said


def test_no_arch_at_all(here, capsys):
    assert "which architecture" in refused(capsys, here, "compare", "a.safetensors", "b.safetensors", *EXAMPLE)


def test_a_folder_that_is_no_model(here, capsys):
    (here / "empty").mkdir()
    assert "no config.json" in refused(capsys, here, "read", "--arch", "empty", *EXAMPLE)


@pytest.mark.parametrize(
    "config", ["", "{}", "[]", '{"architectures": ["os"], "model_type": "nonsense"}', '{"model_type": "../x"}']
)
def test_a_config_that_describes_nothing(here, capsys, config):
    pytest.importorskip("transformers")
    (here / "model").mkdir()
    (here / "model" / "config.json").write_text(config)
    assert "describes no model of transformers" in refused(capsys, here, "read", "model", *EXAMPLE)


def test_code_beside_a_config_is_not_run(here, capsys):
    pytest.importorskip("transformers")
    folder = here / "model"
    folder.mkdir()
    (folder / "modeling_evil.py").write_text("import os; os.mkdir('ran')")
    config = {"auto_map": {"AutoConfig": "modeling_evil.C", "AutoModel": "modeling_evil.M"}, "architectures": ["M"]}
    (folder / "config.json").write_text(json.dumps(config))
    assert "describes no model of transformers" in refused(capsys, here, "read", "model", *EXAMPLE)
    assert not (here / "ran").exists()


def test_an_exported_program_is_refused_without_trust(here, capsys):
    program = torch.export.export(mlp(), (torch.randn(2, 6),))
    torch.export.save(program, here / "model.pt2")
    for words in (("read", "model.pt2"), ("read", "--arch", "model.pt2"), ("compare", "model.pt2", "a.safetensors")):
        said = refused(capsys, here, *words, *EXAMPLE)
        assert "--trust-code" in said and "code" in said
    check(capsys, here, "model.pt2", "--trust-code")


def test_a_trusted_file_that_is_no_program(here, capsys):
    (here / "model.pt2").write_bytes(b"PK nonsense")
    assert "not an exported program" in refused(capsys, here, "read", "model.pt2", *EXAMPLE, "--trust-code")


# ------------------------------------------------------------------ data and examples


@pytest.mark.parametrize(
    "example", ["", "x", "0x6", "2x-6", "2x6.5", "ids:", "nonsense:2x6", "9" * 30, "99999x99999x9"]
)
def test_example_shapes(here, capsys, example):
    assert f"--example {example}: not a shape" in refused(capsys, here, "read", *ARCH, "--example", example)


@pytest.mark.parametrize("example", ["2x7", "2x1x6x7", "ids:2x6"])
def test_an_example_that_does_not_fit(here, capsys, example):
    said = refused(capsys, here, "read", *ARCH, "--example", example)
    assert "does not take an input" in said and "--example" in said


def test_no_example(here, capsys):
    assert "give --data, or --example" in refused(capsys, here, "read", *ARCH)


@pytest.mark.parametrize(
    ("x", "y", "word"),
    [
        (np.zeros((40, 7), np.float32), np.arange(40) % 3, "does not take an input of shape (2, 7)"),
        (np.zeros((40, 6), np.float32), np.arange(40), "outside the 3 outputs"),
        (np.zeros((40, 6), np.float32), np.arange(40) - 20, "outside the 3 outputs"),
        (np.full((40, 6), np.nan, np.float32), np.arange(40) % 3, "NaN"),
        (np.zeros((0, 6), np.float32), np.zeros(0, int), "no examples"),
        (np.zeros((40, 6), np.float32), np.arange(39), ""),
    ],
    ids=["shape", "labels", "negative", "nan", "empty", "lengths"],
)
def test_data_that_does_not_fit(here, capsys, x, y, word):
    np.savez(here / "bad.npz", x=x, y=y)
    said = refused(capsys, here, "compare", "a.safetensors", "b.safetensors", *ARCH, "--data", "bad.npz")
    assert word in said, said
    words = ("align", "b.safetensors", "--to", "a.safetensors", *ARCH, "--data", "bad.npz", "-o", "out.safetensors")
    assert word in refused(capsys, here, *words)


@pytest.mark.parametrize(
    ("data", "word"),
    [("imagenet", "known are digits"), ("nothing.npz", "no such file"), ("mnist", "WEIGHTSPACE_DATA"),
     ("badnets.py", "no known kind"), (".", "not a folder of"), ("cut.npz", "cut.npz")],
)  # fmt: skip
def test_data_that_is_none(here, capsys, data, word):
    (here / "cut.npz").write_bytes((here / "data.npz").read_bytes()[:200])
    assert word in refused(capsys, here, "compare", "a.safetensors", "b.safetensors", *ARCH, "--data", data)


def test_data_with_code_in_it(here, capsys):
    np.savez(here / "evil.npz", x=np.array([Code(str(here / "ran"))] * 4, dtype=object), y=np.arange(4))
    said = refused(capsys, here, "compare", "a.safetensors", "b.safetensors", *ARCH, "--data", "evil.npz")
    assert "Python objects" in said and not (here / "ran").exists()


# ------------------------------------------------------------------ outputs


OUTPUTS = {
    "align": ("align", "b.safetensors", "--to", "a.safetensors", *ARCH, *EXAMPLE, "-o"),
    "merge": ("merge", "a.safetensors", "b.safetensors", *ARCH, *EXAMPLE, "-o"),
    "read": ("read", *ARCH, *EXAMPLE, "-o"),
    "compare": ("compare", "a.safetensors", "b.safetensors", *ARCH, *EXAMPLE, "--report"),
}
ENDINGS = {"align": "safetensors", "merge": "safetensors", "read": "json", "compare": "html"}


@pytest.mark.parametrize("command", OUTPUTS)
def test_an_output_that_exists_stays_unless_forced(here, capsys, command):
    target = here / f"out.{ENDINGS[command]}"
    target.write_text("old")
    said = refused(capsys, here, *OUTPUTS[command], target.name)
    assert "exists" in said and "--force" in said
    assert main([*OUTPUTS[command], target.name, "--force"]) == 0
    assert target.read_bytes()[:3] != b"old"


@pytest.mark.parametrize("command", OUTPUTS)
def test_an_output_in_a_missing_folder_or_of_another_kind(here, capsys, command):
    assert "does not exist" in refused(capsys, here, *OUTPUTS[command], f"nowhere/out.{ENDINGS[command]}")
    assert "must end in" in refused(capsys, here, *OUTPUTS[command], "out.txt")


@pytest.mark.parametrize("command", OUTPUTS)
def test_a_full_disk_leaves_the_old_file(here, capsys, monkeypatch, command):
    target = here / f"out.{ENDINGS[command]}"
    target.write_text("old")

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    monkeypatch.setattr(os, "fsync", full)
    assert "No space left" in refused(capsys, here, *OUTPUTS[command], target.name, "--force")
    assert target.read_text() == "old"


def test_killed_while_writing_leaves_the_old_file(here):
    """A process killed inside of the write: the old checkpoint is whole, and the new one was never seen."""
    (here / "out.safetensors").write_bytes((here / "a.safetensors").read_bytes())
    script = """
        import os, sys, time
        real = os.fsync
        def slow(handle):
            print("writing", flush=True)
            time.sleep(60)
        os.fsync = slow
        from weightspace.cli import main
        sys.exit(main(sys.argv[1:]))
    """
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1"}
    words = [*aligning("b.safetensors"), "--method", "weights", "--force"]
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), *words], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == b"writing\n", process.stderr.read()
        process.kill()
    assert (here / "out.safetensors").read_bytes() == (here / "a.safetensors").read_bytes()
    reader.read(here / "out.safetensors")


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_in_the_middle_leaves_nothing(here):
    script = """
        import signal, sys, time
        from weightspace.symmetry.symmetry import Symmetry
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background is born deaf to it
        def slow(*args, **kwargs):
            print("matching", flush=True)
            time.sleep(60)
        Symmetry.match = slow
        from weightspace.cli import main
        sys.exit(main(sys.argv[1:]))
    """
    before = set(here.iterdir())
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), *aligning("b.safetensors")],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "matching\n", process.stderr.read()
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
    assert process.returncode == 130
    assert "Traceback" not in said and said.splitlines()[-1].startswith("weightspace: stopped")
    assert {p.name for p in set(here.iterdir()) - before} <= {"__pycache__"}


# ------------------------------------------------------------------ words


@pytest.mark.parametrize(
    "words",
    [("nonsense",), ("compare",), ("compare", "a.safetensors"), ("compare", "a", "b", "--nonsense"),
     ("merge", "a.safetensors", *ARCH, "-o", "out.safetensors"),
     ("align", "b.safetensors", *ARCH, "-o", "x.safetensors"),
     ("compare", "a.safetensors", "b.safetensors", *ARCH, "--expect", "love"),
     ("compare", "a.safetensors", "b.safetensors", *ARCH, "--limit", "many"),
     ("compare", "a.safetensors", "b.safetensors", *ARCH, "--limit", "0"),
     ("compare", "a.safetensors", "b.safetensors", *ARCH, *EXAMPLE, "--method", "magic")],
)  # fmt: skip
def test_words_that_are_not_understood(here, capsys, words):
    refused(capsys, here, *words)


def test_mistakes_of_ours_say_so(here, capsys, monkeypatch):

    def broken(*args, **kwargs):
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("weightspace.commands.compare.compare_files", broken)
    code = main(["compare", "a.safetensors", "b.safetensors", *ARCH, *EXAMPLE])
    _, err = capsys.readouterr()
    assert code == 2 and "unexpected ZeroDivisionError: oops" in err and "--debug" in err and "Traceback" not in err


def test_as_a_process_there_is_one_line(here):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1"}
    call = [sys.executable, "-c", "import sys; from weightspace.cli import main; sys.exit(main())"]
    words = ["compare", "a.safetensors", "missing.safetensors", *ARCH, *EXAMPLE]
    done = subprocess.run([*call, *words], capture_output=True, text=True, env=env, cwd=here)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "weightspace: missing.safetensors: no such file or folder; check the path\n"
