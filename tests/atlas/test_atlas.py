"""An atlas: what goes in comes out, copies are told, what changed is never used, accidents leave the rest in place."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import weightspace as ws
from weightspace.atlas import holdings, sources
from weightspace.atlas.holdings import ChangedError
from weightspace.checkpoint import reader, writer
from weightspace.checkpoint.files import FileNote
from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net

ROOT = Path(__file__).parents[2]
ARCH = {"arch": "shelfnets:mlp", "example": "2x6"}
MODULE = """
from torch import nn

def mlp(width=4):
    return nn.Sequential(nn.Linear(6, width), nn.{activation}(), nn.Linear(width, 3))
"""


def mlp(seed=0, width=4):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 3))


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with an architecture and three networks, two of them in a folder below; the current directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "shelfnets", raising=False)
    (tmp_path / "shelfnets.py").write_text(MODULE.format(activation="ReLU"))
    (tmp_path / "nets" / "sub").mkdir(parents=True)
    for seed, name in enumerate(("a", "sub/b", "sub/c")):
        save_file(mlp(seed).state_dict(), tmp_path / "nets" / f"{name}.safetensors")
    return tmp_path


@pytest.fixture
def atlas(here):
    with ws.Atlas(here / "atlas") as opened:
        yield opened


def names(atlas):
    return [member.name for member in atlas]


def same(tensors, module):
    state = module.state_dict()
    return {*tensors} == {*state} and all(torch.equal(tensors[name], state[name]) for name in state)


# ------------------------------------------------------------------ adding


def test_a_folder_goes_in_and_comes_out(atlas):
    done = atlas.add_folder("nets", **ARCH, tags=["sweep"])
    assert [m.name for m in done.new] == names(atlas) == ["a", "sub/b", "sub/c"] and not done.left and not done.notes
    assert len(atlas) == 3 and "sub/b" in atlas and "b" not in atlas and 3 not in atlas
    for seed, name in enumerate(names(atlas)):
        assert same(atlas.tensors(name), mlp(seed)) and float((atlas.net(name) - Net.of(mlp(seed))).norm()) == 0
        assert atlas[name].tags == ("sweep",) and atlas[name].made == "shelfnets:mlp"
    (one,) = atlas.architectures()
    assert one.made == "shelfnets:mlp" and one.shapes["0.weight"] == (4, 6) and one.numbers == 6 * 4 + 4 + 12 + 3
    assert [m.name for m in atlas.members(fingerprint=one.fingerprint, tag="sweep")] == names(atlas)


@pytest.mark.parametrize("where", ["sqlite", "postgres"], indirect=True)
def test_an_atlas_in_a_folder_or_a_database_is_opened_again(where, here):
    with ws.Atlas(where, objects=here / "objects") as atlas:
        atlas.add_folder("nets", copy=True)
        atlas.add("nets/a.safetensors", name="child", parents=["a"], facts={"step": 3})
    with ws.Atlas(where, objects=here / "objects", create=False) as again:
        assert names(again) == ["a", "sub/b", "sub/c", "child"] and again["child"].parents == ("a",)
        assert again["child"].facts == {"step": 3} and same(again.tensors("sub/c"), mlp(2))
        sent = pickle.loads(pickle.dumps(again))
        assert names(sent) == names(again)
        sent.close()


def test_adding_again_changes_nothing(atlas):
    first = atlas.add_folder("nets", **ARCH)
    again = atlas.add_folder("nets")
    assert not again.new and again.known == first.new and atlas["a"].made == "shelfnets:mlp"
    more = atlas.add_folder("nets", tags=["late"])
    assert [m.tags for m in more.known] == [("late",)] * 3 and len(atlas) == 3


def test_files_that_did_not_change_are_not_read_again(atlas, here, monkeypatch):
    atlas.add_folder("nets", **ARCH)
    read = []
    real = sources.content
    monkeypatch.setattr(sources, "content", lambda tensors: read.append(tensors.path.name) or real(tensors))
    assert len(atlas.add_folder("nets").known) == 3 and read == []
    os.utime(here / "nets" / "a.safetensors")
    assert len(atlas.add_folder("nets").known) == 3 and read == ["a.safetensors"]
    assert len(atlas.add_folder("nets").known) == 3 and read == ["a.safetensors"]
    assert len(atlas.add_folder("nets", copy=True).known) == 3 and len(read) == 4


def test_exact_copies_are_told_whatever_the_format(atlas, here):
    torch.save(mlp(0).state_dict(), "nets/z.pt")
    save_file({k: v.double() for k, v in mlp(0).state_dict().items()}, "nets/y.safetensors")
    atlas.add_folder("nets")
    atlas.add(mlp(0), name="memory")
    assert atlas.copies() == [["a", "z", "memory"]]
    assert atlas["y"].numbers == atlas["a"].numbers and atlas["y"].key != atlas["a"].key
    assert [m.name for m in atlas.members(key=atlas["a"].key)] == ["a", "z", "memory"]


@pytest.mark.parametrize("what", ["net", "module", "state dict", "file", "hugging face"])
def test_anything_that_is_a_network_can_be_added(atlas, here, what):
    module = mlp(5)
    if what == "hugging face":
        (here / "hf").mkdir()
        save_file(module.state_dict(), here / "hf" / "model.safetensors")
        (here / "hf" / "config.json").write_text("{}")
    given = {"net": Net.of(module), "module": module, "state dict": module.state_dict(),
             "file": "nets/a.safetensors", "hugging face": here / "hf"}[what]  # fmt: skip
    member = atlas.add(given, name="x")
    assert same(atlas.tensors("x"), mlp(0) if what == "file" else module)
    assert member.kind == ("file" if what in ("file", "hugging face") else "object")
    assert member.made == (str(here / "hf") if what == "hugging face" else "")


def test_copies_outlive_their_files(atlas, here):
    atlas.add_folder("nets", copy=True)
    for path in (here / "nets").rglob("*.safetensors"):
        path.unlink()
    assert same(atlas.tensors("sub/b"), mlp(1)) and not atlas.check()
    kept = [*(here / "atlas" / "objects").rglob("*.safetensors")]
    assert {path.stem for path in kept} == {member.key for member in atlas}
    atlas.remove("sub/b", "a")
    assert len([*(here / "atlas" / "objects").rglob("*.safetensors")]) == 1 and names(atlas) == ["sub/c"]


def test_what_cannot_be_read_is_listed_and_the_rest_goes_on(atlas, here):
    (here / "nets" / "bad.safetensors").write_bytes(b"\x10")
    (here / "nets" / "evil.pt").write_bytes(pickle.dumps(print, 2))
    (here / "nets" / "code.pt2").write_bytes(b"PK")
    save_file({"w": torch.tensor([float("nan")])}, here / "nets" / "nan.safetensors")
    os.symlink(here / "gone.safetensors", here / "nets" / "link.safetensors")
    done = atlas.add_folder("nets")
    assert names(atlas) == ["a", "sub/b", "sub/c"]
    reasons = {one.path.name: one.reason for one in done.left}
    assert {*reasons} == {"bad.safetensors", "evil.pt", "code.pt2", "nan.safetensors", "link.safetensors"}
    assert "NaN or infinity in 'w'" in reasons["nan.safetensors"] and "is code" in reasons["code.pt2"]
    assert "which is not there" in reasons["link.safetensors"]
    json.dumps(done.data())


@pytest.mark.parametrize("content", [{}, {"a.txt": b"x"}, {"a.safetensors": b"x"}])
def test_a_folder_without_networks_is_refused(atlas, here, content):
    (here / "empty").mkdir()
    for name, raw in content.items():
        (here / "empty" / name).write_bytes(raw)
    with pytest.raises(WeightspaceError, match="holds no network that can be added"):
        atlas.add_folder("empty")
    with pytest.raises(WeightspaceError, match="no such folder"):
        atlas.add_folder("nowhere")


def test_two_architectures_of_one_name_stay_apart(atlas, here):
    save_file(mlp(1, width=9).state_dict(), here / "nets" / "wide.safetensors")
    done = atlas.add_folder("nets", **ARCH)
    assert len(done.notes) == 1 and "wide.safetensors: added without --arch" in done.notes[0]
    assert atlas["wide"].made == "" and len(atlas.architectures()) == 2
    with pytest.raises(WeightspaceError, match="its tensors are not those of shelfnets:mlp; give another --arch"):
        atlas.add("nets/wide.safetensors", name="w", **ARCH)
    with pytest.raises(WeightspaceError, match="wide: its architecture is not known"):
        atlas.net("wide")
    assert float((atlas.net("wide", like=Net.of(mlp(width=9))) - Net.of(mlp(1, width=9))).norm()) == 0
    (here / "more").mkdir()
    save_file(mlp(1, width=9).state_dict(), here / "more" / "a.safetensors")
    assert [m.name for m in atlas.add_folder("more").new] == ["a (2)"]


def test_a_factory_that_makes_another_module_now_is_refused(atlas, here, monkeypatch):
    atlas.add("nets/a.safetensors", **ARCH)
    (here / "shelfnets.py").write_text(MODULE.format(activation="Tanh"))
    for cached in (here / "__pycache__").glob("*"):
        cached.unlink()
    monkeypatch.delitem(sys.modules, "shelfnets")
    with pytest.raises(WeightspaceError, match="makes another module now than when it was added"):
        atlas.net("a")
    with pytest.raises(WeightspaceError, match="makes another module now"):
        atlas.add("nets/sub/b.safetensors", **ARCH)
    assert same(atlas.tensors("a"), mlp(0)) and names(atlas) == ["a"]


@pytest.mark.parametrize(
    ("name", "good"),
    [("[red]b[/red]<img src=x>", True), ("../../etc/passwd", True), ("a\x1b[31mb\nc", True), ("x" * 500, True),
     ("naïve 网络 🕸", True), ("'; DROP TABLE networks; --", True), ("", False), ("  ", False), ("a\0b", False),
     ("x" * 501, False), ("\udcff", False)],
)  # fmt: skip
@pytest.mark.parametrize("where", ["sqlite", "postgres"], indirect=True)
def test_names_are_data(where, tmp_path, name, good):
    with ws.Atlas(where, objects=tmp_path / "objects") as atlas:
        if not good:
            with pytest.raises(WeightspaceError, match="give another"):
                atlas.add(mlp(), name=name)
            return
        atlas.add(mlp(), name=name, tags=[name[:200]])
        assert names(atlas) == [name] and atlas[name].tags == (name[:200],) and same(atlas.tensors(name), mlp())
    assert {path.name for path in tmp_path.iterdir()} <= {"atlas", "objects"}


def test_a_file_with_a_name_that_is_no_text_is_left(atlas, here):
    path = os.fsencode(here / "nets") + b"/\xff.safetensors"
    Path(os.fsdecode(path)).write_bytes((here / "nets" / "a.safetensors").read_bytes())
    done = atlas.add_folder("nets")
    assert len(done.new) == 3 and "no valid Unicode" in done.left[0].reason
    with pytest.raises(WeightspaceError, match="no valid Unicode"):
        atlas.add(os.fsdecode(path), name="x")
    with pytest.raises(WeightspaceError, match="no valid Unicode"):
        atlas["\udcff"]


# ------------------------------------------------------------------ what changes


def change(path, keep_date):
    seen, raw = path.stat(), path.read_bytes()
    path.write_bytes(raw[:-4] + b"\0\0\0\1")
    if keep_date:
        os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns))


@pytest.mark.parametrize("keep_date", [False, True])
def test_a_file_that_changed_is_told_and_never_used(atlas, here, keep_date):
    atlas.add_folder("nets", **ARCH)
    change(here / "nets" / "a.safetensors", keep_date)
    for use in (atlas.tensors, atlas.net):
        with pytest.raises(ChangedError, match="a: .* has changed since it was added"):
            use("a")
    done = atlas.add_folder("nets")
    assert [(one.path.name, "has changed since" in one.reason) for one in done.left] == [("a.safetensors", True)]
    assert [*atlas.check()] == ["a"] and len(done.known) == 2
    before = atlas["a"].key
    assert atlas.add("nets/a.safetensors", replace=True).key != before and not atlas.check()
    assert atlas.members(key=before) == [] and len(atlas) == 3


def test_a_file_that_was_only_touched_is_compared_once(atlas, here, monkeypatch):
    atlas.add_folder("nets")
    path = here / "nets" / "a.safetensors"
    raw = path.read_bytes()
    path.unlink()
    path.write_bytes(raw)
    compared = []
    real = holdings.content
    monkeypatch.setattr(holdings, "content", lambda tensors: compared.append(1) or real(tensors))
    assert (
        same(atlas.tensors("a"), mlp(0)) and same(atlas.tensors("a"), mlp(0)) and same(atlas.tensors("sub/b"), mlp(1))
    )
    assert len(compared) == 1


def test_a_file_that_goes_or_changes_after_it_was_opened_is_told(atlas, here):
    atlas.add_folder("nets")
    tensors = atlas.tensors("a")
    change(here / "nets" / "a.safetensors", True)
    with pytest.raises(WeightspaceError, match="changed since it was opened"):
        tensors["0.weight"]
    (here / "nets" / "sub" / "b.safetensors").unlink()
    with pytest.raises(ChangedError, match="sub/b: .*no such file"):
        atlas.tensors("sub/b")
    assert {*atlas.check()} == {"a", "sub/b"}


@pytest.mark.parametrize("accident", ["changes", "vanishes"])
def test_a_file_that_changes_while_it_is_added_is_left(atlas, here, monkeypatch, accident):
    path, real = here / "nets" / "a.safetensors", sources.content

    def disturbed(tensors):
        found = real(tensors)
        if getattr(tensors, "path", None) == path and path.exists():
            path.unlink() if accident == "vanishes" else change(path, False)
        return found

    monkeypatch.setattr(sources, "content", disturbed)
    done = atlas.add_folder("nets")
    assert len(done.new) == 2 and [one.path for one in done.left] == [path]
    assert ("changed while it was read" if accident == "changes" else "no such file") in done.left[0].reason


def test_a_damaged_copy_is_told(atlas, here):
    atlas.add(mlp(), name="x")
    (path,) = (here / "atlas" / "objects").rglob("*.safetensors")
    change(path, True)
    with pytest.raises(ChangedError, match="has changed since it was added"):
        atlas.tensors("x")


def test_the_same_network_elsewhere_keeps_its_first_place(atlas, here):
    atlas.add("nets/a.safetensors", name="x")
    save_file(mlp(0).state_dict(), here / "copy.safetensors")
    assert atlas.add("copy.safetensors", name="x").location.endswith("nets/a.safetensors")
    (here / "nets" / "a.safetensors").unlink()
    assert atlas.add("copy.safetensors", name="x").location.endswith("copy.safetensors") and len(atlas) == 1


def test_which_network_of_a_file_was_chosen_is_remembered(atlas, here):
    torch.save({"model": mlp(0).state_dict(), "ema": mlp(1).state_dict()}, "both.pt")
    for name, weights in (("plain", None), ("ema", "ema")):
        with pytest.warns(FileNote, match="both.pt: took '(model|ema)', left out"):
            atlas.add("both.pt", name=name, weights=weights, **ARCH)
    token = reader.files.CHOSEN.set("ema")
    try:
        assert same(atlas.tensors("plain"), mlp(0)) and same(atlas.tensors("ema"), mlp(1))
    finally:
        reader.files.CHOSEN.reset(token)
    assert float((atlas.net("ema") - Net.of(mlp(1))).norm()) == 0


# ------------------------------------------------------------------ names, tags, parents


def test_a_name_of_another_network_is_refused_or_replaced(atlas):
    atlas.add(mlp(0), name="x", tags=["t"])
    with pytest.raises(WeightspaceError, match="x: is the name of another network in the atlas"):
        atlas.add(mlp(1), name="x")
    assert same(atlas.tensors("x"), mlp(0))
    atlas.add(mlp(1), name="x", replace=True)
    assert same(atlas.tensors("x"), mlp(1)) and len(atlas) == 1 and atlas["x"].tags == ("t",)


def test_parents_must_be_there(atlas):
    for parents in (["nobody"], ["x"]):
        with pytest.raises(WeightspaceError, match="holds no parent called"):
            atlas.add(mlp(0), name="x", parents=parents)
    assert len(atlas) == 0
    atlas.add(mlp(0), name="x")
    atlas.add(mlp(1), name="y", parents=["x"])
    atlas.add(mlp(1), name="y", parents=["x"])
    assert atlas["y"].parents == ("x",)
    atlas.remove("x")
    assert atlas["y"].parents == ()


def test_tags_come_and_go(atlas):
    atlas.add(mlp(0), name="x")
    atlas.add(mlp(1), name="y")
    atlas.tag(["x", "y"], "a", "b")
    atlas.tag("x", "a", "c")
    atlas.untag("y", "b", "never there")
    assert atlas["x"].tags == ("a", "b", "c") and atlas["y"].tags == ("a",)
    assert [m.name for m in atlas.members(tag="b")] == ["x"] and atlas.members(tag="z") == []
    with pytest.raises(WeightspaceError, match="no network called 'z'"):
        atlas.tag(["x", "z"], "d")
    assert atlas["x"].tags == ("a", "b", "c")


@pytest.mark.parametrize("use", ["__getitem__", "tensors", "net", "remove", "group"])
def test_an_unknown_name_is_said(atlas, use):
    with pytest.raises(WeightspaceError, match="the atlas holds no network called 'nobody'"):
        getattr(atlas, use)("nobody")


@pytest.mark.parametrize("what", [3, None, [1, 2], {}, {"w": torch.tensor([float("inf")])}, "no/such/file", ""])
def test_what_is_no_network_is_refused(atlas, what):
    with pytest.raises(WeightspaceError):
        atlas.add(what, name="x")
    with pytest.raises(WeightspaceError, match="give name="):
        atlas.add(mlp())
    with pytest.raises(WeightspaceError, match="is code"):
        atlas.add(mlp(), name="x", arch="net.pt2")
    assert len(atlas) == 0


# ------------------------------------------------------------------ paths


def test_a_flow_a_recorder_and_a_trail_are_lineages(atlas, here):
    net, task = ws.demo.example()
    flow = ws.flow(net, ws.learn(task), ws.Euclidean(), steps=20, size=0.1)
    way = atlas.add_path(flow, "flow", tags=["f"])
    assert [(m.name, m.parents) for m in way] == [("flow/0", ()), ("flow/1", ("flow/0",)), ("flow/2", ("flow/1",))]
    assert float((atlas.net("flow/2", like=net) - flow[-1]).norm()) == 0
    watch = ws.Recorder(net.module(), every=1, points=1, file=here / "run.rec", tell=None)
    for _ in range(4):
        with torch.no_grad():
            watch.model[1].weight.add_(0.1)
        watch.step()
    watch.close()
    assert [m.name for m in atlas.add_path(watch, "run", every=2)] == ["run/0", "run/2", "run/4"]
    trail = ws.Trail(here / "run.rec.points", net)
    found = atlas.add_path(trail, "trail", every=3, parents=["flow/0"])
    assert [(m.name, m.parents, m.facts["step"]) for m in found] == [
        ("trail/0", ("flow/0",), 0), ("trail/3", ("trail/0",), 3), ("trail/4", ("trail/3",), 4)
    ]  # fmt: skip
    size = len(atlas)
    assert atlas.add_path(trail, "trail", every=3) == [atlas[m.name] for m in found] and len(atlas) == size
    assert atlas["run/4"].key == atlas["trail/4"].key


def test_the_folder_of_a_trail_needs_its_architecture(atlas, here):
    trail = ws.Trail(here / "run", Net.of(mlp(0)))
    trail.append(Net.of(mlp(1)), 10, loss=0.5)
    with pytest.raises(WeightspaceError, match="give --arch"):
        atlas.add_path(here / "run", "run")
    with pytest.raises(WeightspaceError, match="holds no path"):
        atlas.add_path(here / "nets", "run", **ARCH)
    with pytest.raises(WeightspaceError, match="every 0 points"):
        atlas.add_path(trail, "run", every=0)
    assert [m.facts for m in atlas.add_path(here / "run", "run", **ARCH)] == [{"step": 0}, {"step": 10, "loss": 0.5}]
    assert float((atlas.net("run/10") - Net.of(mlp(1))).norm()) == 0


# ------------------------------------------------------------------ accidents


def test_a_run_that_is_killed_goes_on(here):
    code = textwrap.dedent("""
        import os, sys
        import weightspace as ws
        from weightspace.atlas import folders
        real, seen = folders.opened, []
        def opened(*given):
            seen.append(1)
            if len(seen) == 3:
                os.kill(os.getpid(), 9)
            return real(*given)
        folders.opened = opened
        ws.Atlas("atlas").add_folder("nets", copy=True)
    """)
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    assert subprocess.run([sys.executable, "-c", code], env=environment, cwd=here).returncode == -9
    with ws.Atlas(here / "atlas") as atlas:
        assert names(atlas) == ["a", "sub/b"] and not atlas.check()
        done = atlas.add_folder("nets", copy=True)
        assert [m.name for m in done.new] == ["sub/c"] and len(done.known) == 2


def test_two_that_add_at_once_do_not_replace_one_another(atlas, here, monkeypatch):
    """The name is taken by another program between the look and the writing."""
    with ws.Atlas(here / "atlas") as other:
        real = holdings.Holdings._placed

        def late(self, *given):
            monkeypatch.undo()
            other.add(mlp(1), name="x")
            return real(self, *given)

        monkeypatch.setattr(holdings.Holdings, "_placed", late)
        with pytest.raises(WeightspaceError, match="x: is the name of another network by now"):
            atlas.add(mlp(0), name="x")
    assert same(atlas.tensors("x"), mlp(1))


def test_a_database_needs_a_place_for_copies(database, here):
    with ws.Atlas(database) as atlas:
        atlas.add_folder("nets")
        with pytest.raises(WeightspaceError, match="give objects=, a folder or a URL"):
            atlas.add(mlp(), name="x")
        assert same(atlas.tensors("a"), mlp(0)) and len(atlas) == 3


def test_a_full_disk_leaves_the_atlas_as_it_was(atlas, monkeypatch):
    atlas.add(mlp(0), name="x")

    def full(*given, **more):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer.files, "write_all", full)
    with pytest.raises(WeightspaceError, match="No space left"):
        atlas.add(mlp(1), name="y")
    assert names(atlas) == ["x"] and not atlas.check()
