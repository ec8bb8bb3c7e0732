"""`weightspace atlas map`, `query`, `nearest`, `between` and `merge` end to end."""

from __future__ import annotations

import json
import math
import sys

import numpy as np
import pytest
import torch
from sqlalchemy import delete
from torch import nn

import weightspace as ws
from weightspace.atlas import barriers
from weightspace.atlas.records import Pairs
from weightspace.atlas.tables import comparisons, pairs
from weightspace.checkpoint import reader
from weightspace.cli import main

ARCH = ("--arch", "setnets:mlp", "--example", "2x20")


def mlp():
    return nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 3))


def fitted(net, x, y, steps=60):
    module = net.module()
    adam = torch.optim.Adam(module.parameters(), 1e-2)
    for _ in range(steps):
        adam.zero_grad()
        nn.functional.cross_entropy(module(x), y).backward()
        adam.step()
    return ws.Net.of(module.eval())


@pytest.fixture(scope="module")
def nets():
    """Two trained networks, relatives of the first, and examples."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 20, generator=generator)
    y = (x @ torch.randn(20, 3, generator=generator)).argmax(1)
    found = {}
    for seed, name in enumerate(("first", "second")):
        torch.manual_seed(seed)
        found[name] = fitted(ws.Net.of(mlp()), x[:200], y[:200])
    group = ws.Symmetry.of(found["first"], x[:2])
    found["tuned"] = fitted(found["first"], x[100:200].flip(1), y[100:200], 10)
    found["shuffled"] = group.sample(seed=1)(found["first"])
    found["half"] = found["first"].to(torch.float16)
    found["middle"] = found["first"].lerp(found["tuned"], 0.25)
    found["noise"] = ws.perturb(found["second"], 3.0)
    return found, (x[200:], y[200:])


@pytest.fixture
def here(tmp_path, monkeypatch, nets):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WEIGHTSPACE_ATLAS", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "setnets", raising=False)
    (tmp_path / "setnets.py").write_text(
        "from torch import nn\ndef mlp():\n    return nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 3))\n"
    )
    (tmp_path / "nets").mkdir()
    for name, net in nets[0].items():
        ws.checkpoint.save(net.tensors, tmp_path / "nets" / f"{name}.safetensors")
    x, y = nets[1]
    np.savez(tmp_path / "new.npz", x=x.numpy(), y=y.numpy())
    assert main(["atlas", "add", "nets", *ARCH]) == 0
    return tmp_path


def ok(capsys, *words):
    capsys.readouterr()
    code = main(["atlas", *map(str, words)])
    out, err = capsys.readouterr()
    assert code == 0, err
    return out


def ok_json(capsys, *words):
    return json.loads(ok(capsys, *words, "--json"))


def refused(capsys, *words):
    capsys.readouterr()
    assert main(["atlas", *map(str, words)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") >= 1 and "Traceback" not in err
    return err.strip().splitlines()[-1]


def test_the_map_finds_origins_and_families(here, capsys):
    (space,) = ok_json(capsys, "map")["spaces"]
    names = [row["name"] for row in space["members"]]
    edges = {(names[e["parent"]], names[e["child"]]): e for e in space["edges"]}
    assert edges["first", "half"]["kind"] == "cast" and edges["first", "tuned"]["kind"] == "fine-tune"
    copies = [e for pair, e in edges.items() if "shuffled" in pair]
    assert len(copies) == 1 and copies[0]["kind"] == "copy" and copies[0]["renumbered"]
    parts = {parent: e["share"] for (parent, child), e in edges.items() if child == "middle"}
    assert parts.get("tuned") == pytest.approx(0.25, abs=1e-3)
    family = {row["name"]: row["family"] for row in space["members"]}
    assert len({family[n] for n in ("first", "half", "tuned", "shuffled", "middle")}) == 1
    assert family["second"] != family["first"]


def test_the_map_as_stored_says_what_it_does_not_find(here, capsys):
    (space,) = ok_json(capsys, "map", "--stored")["spaces"]
    names = [row["name"] for row in space["members"]]
    assert not [e for e in space["edges"] if "shuffled" in (names[e["parent"]], names[e["child"]])]
    assert "renumbered" in space["notes"][0]


def test_distances_and_edges_are_kept_in_the_atlas(here, capsys, nets):
    ok(capsys, "map")
    with ws.Atlas(here / "atlas") as atlas:
        a, b = atlas["first"].key, atlas["tuned"].key
        wanted = ws.euclidean(nets[0]["first"], nets[0]["tuned"])
        assert atlas.pairs.get(a, b, "distance").value == pytest.approx(wanted, rel=1e-5)
        (origin,) = atlas["tuned"].origins
        assert (origin.parent, origin.kind) == ("first", "fine-tune") and origin.sure > 0.5
        assert atlas["tuned"].parents == () and atlas["first"].origins == ()


def test_what_was_stated_wins_and_both_are_shown(here, capsys):
    ok(capsys, "add", "nets/tuned.safetensors", "--parent", "second")
    ok(capsys, "add", "nets/first.safetensors", "--parent", "half")
    ok(capsys, "map")
    shown = ok(capsys, "show", "tuned")
    assert "parents: second" in shown and "found to come from: first (fine-tune" in shown
    row = ok_json(capsys, "show", "tuned")
    assert row["parents"] == ["second"] and [o["parent"] for o in row["origins"]] == ["first"]
    assert not ok_json(capsys, "show", "half")["origins"], "half is the stated parent of first"
    assert "first" in ok_json(capsys, "show", "half")["children"]
    assert "(found)" in ok(capsys, "list")


@pytest.fixture
def reads(monkeypatch):
    """The files of which tensors are read, but for the one tensor that a check of types looks at."""
    seen = []
    real = reader._fetch

    def counted(path, *given, **more):
        frames, frame = [], sys._getframe(1)
        while frame is not None and len(frames) < 5:
            frames.append(frame.f_code.co_filename)
            frame = frame.f_back
        if sum(name.startswith("<@beartype") for name in frames) < 2:
            seen.append(path.name)
        return real(path, *given, **more)

    monkeypatch.setattr(reader, "_fetch", counted)
    return seen


def as_told(found):
    """What a map says, without numbers that may differ by rounding."""
    space = found["spaces"][0]
    edges = {(space["members"][e["parent"]]["name"], space["members"][e["child"]]["name"], e["kind"], e["renumbered"])
             for e in space["edges"]}  # fmt: skip
    names = [row["name"] for row in space["members"]]
    return edges, {frozenset(names[k] for k in pair) for pair in space["siblings"]}


def test_a_second_map_reads_no_weights_and_says_the_same(here, capsys, reads):
    first = ok_json(capsys, "map")
    assert reads
    reads.clear()
    assert ok_json(capsys, "map") == first and not reads
    ok(capsys, "tag", "first", "tuned", "shuffled", "second", "--add", "some")
    reads.clear()
    some = ok_json(capsys, "map", "--tag", "some")
    assert not reads and len(some["spaces"][0]["members"]) == 4


def test_one_new_network_costs_one_row(here, capsys, nets, reads):
    ok(capsys, "map", "--stored")
    ws.checkpoint.save(ws.perturb(nets[0]["second"], 0.01, seed=3).tensors, here / "late.safetensors")
    ok(capsys, "add", "late.safetensors", *ARCH)
    reads.clear()
    rows = ok_json(capsys, "map", "--stored")
    once = {name: reads.count(name) for name in {*reads}}
    tensors = 4
    assert once["first.safetensors"] <= 2 * tensors, "one row, and a relation with it at most"
    assert as_told(rows) == as_told(ok_json(capsys, "map", "--stored"))
    with ws.Atlas(here / "atlas") as atlas:
        with atlas.catalogue.writing() as connection:
            connection.execute(delete(comparisons))
        kept = {(p.first, p.second): p.value for p in atlas.pairs.of("distance")}
    again = ok_json(capsys, "map", "--stored")
    assert as_told(again) == as_told(rows)
    with ws.Atlas(here / "atlas") as atlas:
        for pair in atlas.pairs.of("distance"):
            assert kept[pair.first, pair.second] == pytest.approx(pair.value, rel=1e-5)


def test_a_network_that_changed_is_told_and_not_taken_from_memory(here, capsys, nets, reads):
    ok(capsys, "map")
    ws.checkpoint.save(nets[0]["noise"].tensors, here / "nets" / "tuned.safetensors", force=True)
    found = ok_json(capsys, "map")
    assert "changed" in found["left"]["tuned"] and "tuned" not in {r["name"] for r in found["spaces"][0]["members"]}
    ok(capsys, "add", "nets/tuned.safetensors", *ARCH, "--force")
    edges, _ = as_told(ok_json(capsys, "map"))
    assert {("noise", "tuned"), ("tuned", "noise")} & {edge[:2] for edge in edges}
    assert ("first", "tuned", "fine-tune", False) not in edges


def test_the_map_of_a_read_only_atlas_is_drawn_and_nothing_is_kept(here, capsys, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: not str(path).startswith(str(here / "atlas")) and True)
    found = ok_json(capsys, "map", "--atlas", str(here / "atlas"))
    assert any("read-only" in note for note in found["spaces"][0]["notes"])
    monkeypatch.undo()
    with ws.Atlas(here / "atlas") as atlas:
        assert not atlas.pairs.of("distance") and not atlas["tuned"].origins


def test_barriers_of_near_networks_are_jobs_that_are_kept(here, capsys, nets, monkeypatch):
    told = "map", "--barriers", 2, "--data", "new.npz"
    done = []
    real = barriers.Lines.__call__
    monkeypatch.setattr(
        barriers.Lines, "__call__", lambda self, a, b: done.append((a.name, b.name)) or real(self, a, b)
    )

    def killed(pairs, rows, directed=False, real=Pairs.put):
        real(pairs, rows, directed)
        if len(done) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as short:
        short.setattr(Pairs, "put", killed)
        main(["atlas", *map(str, told)])
    assert len(done) == 3
    (space,) = ok_json(capsys, *told)["spaces"]
    assert len(set(done)) == len(done) == len(space["barriers"]), "none was measured twice"
    again = ok_json(capsys, *told)["spaces"][0]
    assert again["barriers"] == space["barriers"] and len(done) == len(space["barriers"])
    names = [row["name"] for row in space["members"]]
    x, y = nets[1]
    for one in space["barriers"]:
        a, b = (nets[0][names[one[end]]].to(torch.float32) for end in ("first", "second"))
        assert one["straight"] == pytest.approx(ws.line(a, b).barrier(ws.Task(x, y), 7), abs=1e-6)
    found = {frozenset((names[o["first"]], names[o["second"]])): o for o in space["barriers"]}
    one = found[frozenset(("first", "shuffled"))]
    assert one["aligned"] < 1e-4 < one["straight"] and one["distance"] < 1e-2
    out = ok(capsys, *told, "--report", "map.html")
    assert "after alignment" in out and "Barriers between near networks" in (here / "map.html").read_text()
    more = ok_json(capsys, *told, "--seed", 1)["spaces"][0]["barriers"]
    assert len(done) == 2 * len(more), "another seed is another alignment"


@pytest.mark.slow  # two processes load torch
def test_barriers_in_processes_are_the_same(here, capsys):
    told = "map", "--barriers", 1, "--data", "new.npz"
    both = ok_json(capsys, *told, "--jobs", 2)["spaces"][0]["barriers"]
    with ws.Atlas(here / "atlas") as atlas, atlas.catalogue.writing() as connection:
        connection.execute(delete(pairs))
    assert ok_json(capsys, *told)["spaces"][0]["barriers"] == both


def test_pages_hold_their_figures_and_escape_names(here, capsys):
    (here / "nets" / "first.safetensors").rename(here / "nets" / "<b>x.safetensors")
    ok(capsys, "add", "nets/<b>x.safetensors", *ARCH)
    ok(capsys, "remove", "first")
    ok(capsys, "query", "--data", "new.npz", "--report", "query.html")
    ok(capsys, "map", "--report", "map.html")
    for name, titles in {"map.html": ("The map", "The tree", "Distances", "All networks", "loss on new.npz"),
                         "query.html": ("How good each is", "The ranking")}.items():  # fmt: skip
        text = (here / name).read_text()
        assert all(title in text for title in titles)
        assert "<b>x" not in text and "&lt;b&gt;x" in text


def test_a_query_finds_the_best_member_and_keeps_what_it_measured(here, capsys, nets):
    members, (x, y) = nets
    losses = {name: float(ws.Task(x, y)(net.to(torch.float32))) for name, net in members.items()}
    found = ok_json(capsys, "query", "--data", "new.npz", "--budget", 0.999)
    best = found["ranking"][0]
    assert losses[best["name"]] == pytest.approx(min(losses.values()), rel=0.02)
    assert best["value"] == pytest.approx(losses[best["name"]], rel=0.02)
    assert found["best"] in found["tied"] and found["ranking"][-1]["name"] == "noise"
    assert "loss" in ok(capsys, "show", best["name"])
    tried = ok_json(capsys, "query", "--data", "new.npz", "--by", "accuracy", "--try", 2)
    assert tried["steps"] == 2 and all(0 <= row["value"] <= 1 for row in tried["ranking"])


def test_what_was_measured_on_few_examples_never_hides_what_was_on_many(here, capsys):
    ok(capsys, "query", "--data", "new.npz", "--budget", 0.999)
    with ws.Atlas(here / "atlas") as atlas:
        many = {row.network: row for row in atlas.measures.of("loss")}
    ok(capsys, "query", "--data", "new.npz", "--budget", 0.1, "--seed", 1)
    with ws.Atlas(here / "atlas") as atlas:
        for row in atlas.measures.of("loss"):
            assert row.examples >= many[row.network].examples > 0
            assert row == many[row.network] or row.examples == many[row.network].examples
    assert "examples)" in ok(capsys, "show", "noise")


@pytest.mark.slow  # two processes load torch
def test_a_query_in_processes_is_the_same(here, capsys):
    alone, both = (ok_json(capsys, "query", "--data", "new.npz", "--jobs", n)["ranking"] for n in (1, 2))
    assert alone == both


def test_the_nearest_are_found_up_to_symmetry(here, capsys):
    found = ok_json(capsys, "nearest", "nets/shuffled.safetensors", "-k", 3)
    near = {row["name"]: row["distance"] for row in found["neighbours"]}
    assert set(near) == {"first", "shuffled", "half"} and max(near.values()) < 1e-2
    assert found["neighbours"][-1]["stored"] > 0.1


def test_a_way_is_no_higher_than_the_line(here, capsys):
    found = ok_json(capsys, "between", "first", "second", "--data", "new.npz")
    assert found["highest"] <= found["direct"] + 1e-6 and found["ends"] == ["first", "second"]


def test_an_average_is_written_and_read_again(here, capsys, nets):
    x, y = nets[1]
    found = ok_json(capsys, "merge", "first", "shuffled", "noise", "--data", "new.npz", "-o", "mean.safetensors")
    assert set(found["kept"]) <= {"first", "shuffled"} and (here / "mean.safetensors").exists()
    net = nets[0]["first"].load(ws.checkpoint.read(here / "mean.safetensors"))
    assert float(ws.Task(x, y)(net)) <= float(ws.Task(x, y)(nets[0]["noise"]))
    assert math.isfinite(found["loss"]) and "mean.safetensors" in refused(
        capsys, "merge", "first", "second", "--data", "new.npz", "-o", "mean.safetensors"
    )


@pytest.mark.parametrize(
    "words, said",
    [
        (("map", "--tag", "none"), "no two networks"),
        (("map", "--barriers", 2), "--data"),
        (("map", "--data", "new.npz"), "--barriers"),
        (("map", "--data", "gone.npz", "--barriers", 2), "gone.npz"),
        (("map", "--data", "new.npz", "--barriers", 2, "--jobs", "many"), "--jobs"),
        (("map", "--atlas", "nowhere"), "nowhere"),
        (("query",), "--data"),
        (("query", "--data", "gone.npz"), "gone.npz"),
        (("query", "--data", "new.npz", "--tag", "none"), "none"),
        (("query", "--data", "new.npz", "--jobs", "many"), "--jobs"),
        (("query", "--data", "new.npz", "--by", "beauty"), "beauty"),
        (("nearest", "gone.safetensors"), "gone.safetensors"),
        (("between", "first", "nobody", "--data", "new.npz"), "nobody"),
        (("between", "first", "second"), "--data"),
        (("between", "first", "first", "--data", "new.npz"), "twice"),
        (("merge", "first", "--data", "new.npz", "-o", "m.safetensors"), "two members"),
        (("merge", "first", "second", "--data", "new.npz", "-o", "m.txt"), ".safetensors"),
        (("merge", "first", "second", "-o", "m.safetensors"), "--data"),
    ],
)
def test_a_mistake_is_told_in_one_line(here, capsys, words, said):
    assert said in refused(capsys, *words)
    assert not (here / "m.safetensors").exists()


def test_networks_of_several_architectures_and_of_none_that_is_known(here, capsys, tmp_path):
    for seed in range(2):
        torch.manual_seed(seed)
        ws.checkpoint.save(ws.Net.of(nn.Linear(4, 2)).tensors, tmp_path / f"other{seed}.safetensors")
    ws.checkpoint.save(ws.Net.of(nn.Linear(5, 2)).tensors, tmp_path / "alone.safetensors")
    ok(capsys, "add", *(tmp_path / f"{name}.safetensors" for name in ("other0", "other1", "alone")))
    found = ok_json(capsys, "map")
    assert len(found["spaces"]) == 2 and "only one" in found["left"]["alone"]
    unknown = next(space for space in found["spaces"] if "unknown" in space["architecture"])
    assert "not known" in unknown["notes"][0]
    asked = ok_json(capsys, "query", "--data", "new.npz")
    assert {"other0", "other1", "alone"} <= set(asked["left_out"])
    assert "architectures" in refused(capsys, "merge", "first", "other0", "--data", "new.npz", "-o", "m.safetensors")


def test_a_file_that_changed_is_left_out_with_the_reason(here, capsys, nets):
    ws.checkpoint.save(nets[0]["noise"].tensors, here / "nets" / "second.safetensors", force=True)
    found = ok_json(capsys, "query", "--data", "new.npz")
    assert "changed" in found["left_out"]["second"]
    assert "changed" in ok_json(capsys, "map")["left"]["second"]


def test_an_average_measures_the_network_of_a_file_that_was_added(here, capsys, nets):
    for name in ("first", "tuned"):
        held = {"model": nets[0]["noise"].tensors, "ema": nets[0][name].tensors}
        torch.save({what: dict(tensors) for what, tensors in held.items()}, here / f"{name}-run.pt")
        ok(capsys, "add", here / f"{name}-run.pt", *ARCH, "--weights", "ema")
    told = "--data", "new.npz", "--force", "-o", "m.safetensors"
    plain = ok_json(capsys, "merge", "first", "tuned", *told)
    assert ok_json(capsys, "merge", "first-run", "tuned-run", *told)["best"] == plain["best"]


def test_the_map_leaves_out_networks_of_integers(here, capsys, nets):
    whole = {name: (10 * w).round().to(torch.int8) for name, w in nets[0]["first"].tensors.items()}
    ws.checkpoint.save(whole, here / "int8.safetensors")
    ok(capsys, "add", here / "int8.safetensors")
    found = ok_json(capsys, "map")
    assert "floating-point" in found["left"]["int8"] and len(found["spaces"][0]["members"]) == len(nets[0])


def test_what_was_measured_is_shown_with_its_data(here, capsys):
    ok(capsys, "query", "--data", "new.npz")
    assert "loss on new.npz: " in ok(capsys, "show", "first")
    assert {row["data"] for row in ok_json(capsys, "show", "first")["measures"]} == {"new.npz"}


def test_a_file_that_is_gone_does_not_keep_others_from_being_aligned(here, capsys):
    (here / "nets" / "first.safetensors").unlink()
    found = ok_json(capsys, "nearest", "nets/tuned.safetensors", "-k", 2)
    assert [row["name"] for row in found["neighbours"]][0] == "tuned" and "first" in found["left_out"]
    assert ok_json(capsys, "between", "second", "tuned", "--data", "new.npz")["notes"] == []
