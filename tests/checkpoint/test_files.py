"""Files are written whole or not at all, by one writer; a run that is killed can be run again and leaves nothing."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import weightspace as ws
from weightspace.checkpoint import files
from weightspace.cli import main
from weightspace.pages.page import Page, save

SOURCES = Path(files.__file__).parents[1]


def module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def flown(folder: Path) -> None:
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(1))
    task = ws.Task(x, torch.arange(20) % 3)
    ws.flow(ws.Net.of(module()), ws.learn(task), ws.Euclidean(), steps=4, size=0.1, save=2, trail=folder / "path")


def recorded(folder: Path) -> None:
    with ws.Recorder(module(), every=1, file=folder / "run.rec", tell=None, points=1) as watch:
        for _ in range(3):
            watch.step(loss=1.0)


def looked(folder: Path) -> None:
    ws.gates(ws.Task(torch.ones(2, 4)), folder / "gates.npy")(nn.Sequential(nn.Linear(4, 5), nn.ReLU()))


def felt(folder: Path) -> None:
    ws.features(ws.Task(torch.ones(2, 4)), folder=folder)(nn.Sequential(nn.Linear(4, 5), nn.ReLU()))


GROUP = ws.Symmetry.of(ws.Net.of(module()), torch.zeros(2, 4))
WRITERS = {
    "path": flown,
    "checkpoint": lambda folder: ws.checkpoint.save({"w": torch.ones(3)}, folder / "x.safetensors", force=True),
    "shards": lambda folder: ws.checkpoint.save({n: torch.ones(3) for n in "abc"}, folder, force=True, shard=12),
    "group": lambda folder: GROUP.save(folder / "group.json"),
    "page": lambda folder: save([Page("a", "b", "c")], folder / "x.html"),
    "gates": looked,
    "features": felt,
    "plain": lambda folder: files.write(folder / "x", "text"),
}


def killed(action, folder: Path, n: int) -> bool:
    """`action(folder)` in a copy of this process that dies without a word before its n-th renaming of a file."""
    pid = os.fork()
    if pid == 0:
        seen, rename = [0], os.replace

        def replace(*args, **options):
            seen[0] += 1
            if seen[0] == n:
                os._exit(9)
            return rename(*args, **options)

        os.replace = replace
        try:
            action(folder)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9


def unfinished(folder: Path) -> list[str]:
    names = [path.name for path in folder.rglob("*") if path.is_file()]
    return [name for name in names if name.startswith(".") or name.endswith((".tmp", ".partial"))]


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("action", [flown, recorded])
def test_a_folder_that_was_just_begun_begins_again(tmp_path, action, n):
    assert killed(action, tmp_path, n)
    action(tmp_path)
    assert not unfinished(tmp_path)


@pytest.mark.parametrize("name", WRITERS)
def test_what_a_killed_process_left_goes_at_the_next_write(tmp_path, name):
    assert killed(WRITERS[name], tmp_path, 1) and unfinished(tmp_path)
    killed(WRITERS[name], tmp_path, 1)
    WRITERS[name](tmp_path)
    assert not unfinished(tmp_path)


def test_without_sweeping_they_pile_up(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "sweep", lambda folder: None)
    for _ in range(3):
        killed(WRITERS["plain"], tmp_path, 1)
    assert len(unfinished(tmp_path)) == 3


def test_what_others_write_now_stays(tmp_path):
    """Of a process that lives, of another machine, and of other programs; on any machine none is a day old."""
    living, away = files._hidden(tmp_path / "a"), tmp_path / ".a.00000000-1-00000000.tmp"
    others = [tmp_path / ".a.tmp", tmp_path / ".a.12345678.tmp", tmp_path / "a.tmp"]
    process = subprocess.Popen(["sleep", "60"])
    theirs = tmp_path / living.name.replace(f"-{os.getpid()}-", f"-{process.pid}-")
    for path in (living, away, theirs, *others):
        path.touch()
    files.write(tmp_path / "b", "text")
    assert all(path.exists() for path in (living, away, theirs, *others))
    process.kill()
    process.wait()
    os.utime(away, (time.time() - 100_000,) * 2)
    files.write(tmp_path / "b", "text")
    assert living.exists() and not theirs.exists() and not away.exists() and all(path.exists() for path in others)


@pytest.mark.parametrize("here", [True, False])
def test_the_number_of_a_process_means_nothing_on_another_machine(tmp_path, here):
    process = subprocess.Popen(["true"])
    process.wait()
    left = tmp_path / f".a.{files._place() if here else '00000000'}-{process.pid}-00000000.tmp"
    left.touch()
    files.write(tmp_path / "b", "text")
    assert left.exists() is not here


@pytest.mark.parametrize("name", [name for name in WRITERS if name != "shards"])
def test_a_link_that_leads_nowhere_is_not_written_through(tmp_path, name):
    target = {"path": "path", "checkpoint": "x.safetensors", "group": "group.json", "page": "x.html", "plain": "x"}
    target = {**target, "gates": "gates.npy", "features": "000-1.npy"}[name]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / target).symlink_to(tmp_path / "nowhere")
    with pytest.raises((ws.WeightspaceError, FileNotFoundError), match="it is a link to .*nowhere"):
        WRITERS[name](tmp_path / "in")
    assert (tmp_path / "in" / target).is_symlink() and not (tmp_path / "nowhere").exists()


def test_there_is_one_writer_and_one_reader():
    """No room renames files or parses JSON by itself."""
    banned = re.compile(r"os\.(replace|rename)\(|\.rename\(|mkstemp|NamedTemporaryFile|json\.loads?\(")
    allowed = {
        ("trail.py", "json.loads("),  # of what it has just made
        ("files.py", "json.loads("),
        ("files.py", "os.replace("),
    }
    found = {(path.name, word[0]) for path in SOURCES.rglob("*.py") for word in banned.finditer(path.read_text())}
    assert found <= allowed, found - allowed


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 100_000, "deep"),
        ("[" + "1," * 2_000_001 + "1]", "2,000,00. entries"),
        ('{"a": 1, "a": 2}', "'a' stands twice"),
        ("9" * 5000, "digit"),
        (" " * 25_000_001, "more than 25,000,000 bytes"),
        (b"\xff", "decode"),
    ],
)
def test_json_has_limits(text, words):
    with pytest.raises(ValueError, match=words):
        files.parse(text)


def test_what_is_sealed_is_what_was_written():
    tree = {"b": [1, 2.5, None], "a": {"x": "y"}}
    sealed = json.loads(json.dumps(files.sealed(tree)))
    assert files.unsealed(sealed) == tree
    for other in ({**sealed, "b": [1, 2.5]}, {**sealed, "c": 1}, {**sealed, "digest": "0"}, tree, [sealed]):
        with pytest.raises(ValueError, match="digest|mapping"):
            files.unsealed(other)


def test_the_order_in_which_a_mapping_is_told_is_no_change():
    """Other programs write the same JSON in another order."""

    def turned(tree):
        return {k: turned(v) for k, v in reversed(tree.items())} if isinstance(tree, dict) else tree

    tree = {"b": [1, 2.5, None], "a": {"x": "y", "u": {"w": 1, "v": 2}}}
    assert files.unsealed(turned(files.sealed(tree))) == tree
    assert files.sealed(tree)["digest"] == files.sealed(turned(tree))["digest"]


SLOW = """
import torch, time
from torch import nn

def made():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
def test_every_signal_that_ends_a_command_is_one_line(tmp_path, monkeypatch, capsys, number, code):
    def stopped(out: Path, *words, **options) -> None:
        out.write_bytes(b"half")
        os.kill(os.getpid(), number)
        time.sleep(5)

    monkeypatch.setattr("weightspace.commands.watch.watch", stopped)
    handler = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    before = signal.signal(number, handler)  # whoever runs the tests may have it ignored, as nohup does
    try:
        assert main(["watch", "-o", str(tmp_path / "x.rec")]) == code
        assert capsys.readouterr().err.splitlines()[-1] == "weightspace: stopped; nothing was left half-written"
        assert not list(tmp_path.iterdir()) and signal.getsignal(number) is handler
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143)])
def test_a_signal_ends_a_command_in_one_line_and_leaves_nothing(tmp_path, number, code):
    (tmp_path / "nets.py").write_text(SLOW)
    words = ("watch", "-o", "x.rec", "--epochs", "100000", "--arch", "nets:made")
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SOURCES.parent)}
    process = subprocess.Popen(
        [sys.executable, "-m", "weightspace", *words], cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True
    )
    while not list(tmp_path.glob(".x.rec.*")) and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(number)
    _, told = process.communicate(timeout=60)
    assert process.returncode == code
    assert told.splitlines()[-1] == "weightspace: stopped; nothing was left half-written" and "Traceback" not in told
    assert {path.name for path in tmp_path.iterdir()} - {"__pycache__"} == {"nets.py"}


def test_a_recording_killed_before_its_first_record_begins_again(tmp_path):
    file = tmp_path / "run.rec"
    recorded(tmp_path)
    whole = file.read_bytes()
    for size in (0, 3, 8, 15, 30, 200):
        file.write_bytes(whole[:size])
        with ws.Recorder(module(), every=1, file=file, tell=None):
            pass
        assert len(ws.Recording(file)) == 1
    file.write_bytes(b"something else")
    with pytest.raises(ws.WeightspaceError):
        ws.Recorder(module(), every=1, file=file, tell=None)
    assert file.read_bytes() == b"something else"


def test_a_checkpoint_under_a_link_is_replaced_and_its_target_stays(tmp_path):
    save_file({"w": torch.zeros(2)}, tmp_path / "blob")
    (tmp_path / "x.safetensors").symlink_to("blob")
    ws.checkpoint.save({"w": torch.ones(2)}, tmp_path / "x.safetensors", force=True)
    assert ws.checkpoint.read(tmp_path / "blob")["w"].tolist() == [0, 0]
    assert ws.checkpoint.read(tmp_path / "x.safetensors")["w"].tolist() == [1, 1]
