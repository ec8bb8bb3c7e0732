"""The atlas over HTTP: ids, rows, one network, tags, the last map, and names that are markup or paths."""

import gzip
import json

import pytest
import torch
from served_atlas import HOW, MARKUP, TOKEN, filled, serving

import weightspace as ws
from weightspace.atlas.records import Measure, TaskRow
from weightspace.commands import atlas_map, last_map
from weightspace.commands.settings import Settings
from weightspace.web.served import id_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An atlas with a map as it is stored, and measures."""
    folder = filled(tmp_path_factory.mktemp("atlas"))
    with ws.Atlas(folder) as atlas:
        last_map.keep(atlas, atlas_map.mapped(atlas, matching=False, settings=Settings()))
        key = atlas["seed 0"].key
        atlas.tasks.put([TaskRow("t" * 64, "digits", "digits", 10)])
        atlas.measures.put([Measure(key, "accuracy", 0.5, "t" * 64, error=0.1), Measure(key, "norm", float("nan"))])
    return folder


@pytest.fixture(scope="module")
def asked(folder):
    with serving(folder / "reports", folder) as client:
        yield client


def test_the_summary_counts(asked):
    status, told = asked.get("/api/atlas")
    assert status == 200 and told["networks"] == 8 and told["mapped"] > 0
    first, second = told["architectures"]
    assert (first["name"], first["known"], first["networks"]) == (HOW["arch"], True, 7) and first["families"] >= 3
    assert (second["name"], second["known"], second["numbers"]) == ("unknown, as alone", False, 16)
    assert {"tag": "sweep", "networks": 3} in told["tags"]
    assert {"name": "accuracy on digits", "networks": 1, "low": 0.5, "high": 0.5} in told["measures"]
    assert {"name": "norm", "networks": 0, "low": None, "high": None} in told["measures"]


def test_rows_hold_what_a_table_needs(asked):
    told = asked.get("/api/atlas/networks")[1]
    rows = {row["name"]: row for row in told["networks"]}
    assert [*rows][:2] == ["seed 0", "tuned 0"] and MARKUP in rows
    tuned = rows["tuned 0"]
    assert tuned["parents"][0] == {"id": rows["seed 0"]["id"], "kind": "stated", "confidence": None, "share": None}
    assert tuned["parents"][1]["kind"] == "fine-tune" and tuned["parents"][1]["confidence"] > 0.5
    assert tuned["family"] == rows["seed 0"]["family"] != rows["seed 1"]["family"] and rows["alone"]["family"] is None
    at = str(told["measures"].index("accuracy on digits"))
    assert rows["seed 0"]["measures"] == {at: 0.5, str(told["measures"].index("norm")): None}
    assert told["architectures"][tuned["architecture"]] == asked.get("/api/atlas")[1]["architectures"][0]["id"]


def test_ids_stay_the_same_and_are_no_paths(asked, folder):
    ids = asked.ids()
    with serving(folder / "reports", folder) as again:
        assert again.ids() == ids
    assert ids["seed 0"] == id_of("seed 0") and all(len(id) == 32 for id in ids.values())


@pytest.mark.parametrize(
    "id",
    ["..%2f..%2fatlas.db", "%2e%2e", "a" * 31, "A" * 32, "g" * 32, "a" * 4000, "%00" * 8, "0" * 32 + "%0a", "seed 0"],
)
@pytest.mark.parametrize("where", ["networks", "networks/{}/tags"])
def test_what_is_no_id_is_refused(asked, id, where):
    path = f"/api/atlas/{where}".format(id) if "{}" in where else f"/api/atlas/{where}/{id}"
    status, told = asked.post(path, {}) if "tags" in where else asked.get(path)
    assert status in (404, 422) and [*told] == ["error"]


def test_an_id_that_is_not_there_is_told(asked):
    assert asked.get(f"/api/atlas/networks/{'0' * 32}") == (
        404, {"error": "no network of this id; load the list again"})  # fmt: skip


def test_one_network_with_its_layers_and_relatives(asked, folder):
    ids = asked.ids()
    told = asked.get(f"/api/atlas/networks/{ids['seed 0']}")[1]
    with ws.Atlas(folder) as atlas:
        net, member = atlas.net("seed 0"), atlas["seed 0"]
    assert told["key"] == member.key and told["facts"] == {"lr": 0.1} and told["problem"] == ""
    norms = {row["name"]: row["norm"] for row in told["layers"]}
    assert norms == pytest.approx({name: float(x.double().norm()) for name, x in net.tensors.items()})
    assert told["norm"] == pytest.approx(float(net.weights.norm()), rel=1e-6)
    kinds = [(row["name"], row["kind"]) for row in told["children"]]
    assert kinds[:2] == [("tuned 0", "stated"), ("tuned 0", "fine-tune")] and told["children"][1]["why"]
    assert told["near"][0]["name"] == "tuned 0" and told["measures"][0]["error"] == 0.1
    assert told["file"] == "a copy in the atlas"


def test_the_group_is_told_once_it_was_read(tmp_path):
    filled(tmp_path)
    with serving(tmp_path / "reports", tmp_path) as client:
        assert client.get(f"/api/atlas/networks/{id_of('seed 1')}")[1]["group"] is None
        with ws.Atlas(tmp_path) as atlas:
            said = str(atlas.group("seed 0"))
        assert client.get(f"/api/atlas/networks/{id_of('seed 1')}")[1]["group"] == said


def test_a_file_that_is_gone_leaves_the_rest(tmp_path):
    net = ws.demo.example()[0]
    path = ws.checkpoint.save(net.tensors, tmp_path / "gone.safetensors")
    with ws.Atlas(tmp_path / "atlas") as atlas:
        atlas.add(path, name="gone")
    path.unlink()
    with serving(tmp_path, tmp_path / "atlas") as client:
        told = client.get(f"/api/atlas/networks/{id_of('gone')}")[1]
    assert "no such file" in told["problem"] and told["norm"] is None and len(told["layers"]) == len(net.tensors)
    assert told["file"] == "gone.safetensors" and str(tmp_path) not in json.dumps({**told, "problem": ""})


def test_networks_in_small_and_odd_dtypes_have_norms(tmp_path):
    kinds = {"half": torch.float16, "brain": torch.bfloat16, "eight": torch.float8_e4m3fn, "whole": torch.int8}
    with ws.Atlas(tmp_path) as atlas:
        atlas.add({name: torch.full((3,), 2.0).to(kind) for name, kind in kinds.items()}, name="odd")
    with serving(tmp_path, tmp_path) as client:
        told = client.get(f"/api/atlas/networks/{id_of('odd')}")[1]
    assert [row["norm"] for row in told["layers"]] == pytest.approx([12**0.5] * 4)
    assert {row["dtype"] for row in told["layers"]} == {"float16", "bfloat16", "float8_e4m3fn", "int8"}


def test_tags_are_added_and_removed(asked):
    id = asked.ids()["alone"]
    assert asked.post(f"/api/atlas/networks/{id}/tags", {"add": ["new", "<i>"]})[1]["tags"] == ["<i>", "new"]
    assert asked.post(f"/api/atlas/networks/{id}/tags", {"remove": ["<i>", "never"]})[1]["tags"] == ["new"]
    for wrong in ({"add": ["x" * 201]}, {"add": [""]}, {"add": ["a"] * 21}, {"tags": []}, {"add": "a"}, [], None,
                  {"add": [" "]}, {"add": ["\0"]}, {"add": ["\ud800"]}):  # fmt: skip
        status, told = asked.post(f"/api/atlas/networks/{id}/tags", wrong)
        assert status == 422 and [*told] == ["error"], wrong


def test_the_map_is_that_of_the_last_time_for_what_is_still_there(folder, tmp_path):
    other = filled(tmp_path / "atlas")
    with serving(tmp_path, other) as client:
        empty = client.get("/api/atlas/map")[1]
        assert empty["made"] is None and empty["spaces"] == [] and "make one" in empty["say"]
        with ws.Atlas(other) as atlas:
            last_map.keep(atlas, atlas_map.mapped(atlas, matching=False, settings=Settings()))
        told = client.get("/api/atlas/map")[1]
        (space,) = told["spaces"]
        assert told["say"] == "" and told["new"] == told["gone"] == 0 and len(space["points"]) == 7
        assert [row["id"] for row in told["left"]] == [id_of("alone")]
        edges = {(edge["parent"], edge["child"]): edge for edge in space["edges"]}
        edge = edges[id_of("seed 0"), id_of("tuned 0")]
        assert edge["kind"] == "fine-tune" and edge["confidence"] > 0.5 and edge["distance"] < 0.1
        assert {id_of("seed 0"), id_of("tuned 0")} & {row["middle"] for row in space["families"]}
        with ws.Atlas(other) as atlas:
            atlas.remove("tuned 0")
            atlas.add({"w": torch.zeros(2)}, name="late")
            net = atlas.net("seed 1")
            atlas.add(ws.perturb(net, 0.3, seed=4), name="seed 1", replace=True, **HOW)
        told = client.get("/api/atlas/map")[1]
        assert told["new"] == 2 and told["gone"] == 2 and "2 networks are not" in told["say"]
        there = {row["id"] for row in told["spaces"][0]["points"]}
        assert not there & {id_of("tuned 0"), id_of("seed 1")} and len(there) == 5
        assert all({e["parent"], e["child"]} <= there for e in told["spaces"][0]["edges"])


def test_a_renumbered_copy_is_told_as_such(tmp_path):
    atlas = filled(tmp_path / "atlas")
    with ws.Atlas(atlas) as opened:
        net = opened.net("seed 0")
        opened.add(ws.Symmetry.of(net, torch.zeros(2, 1, 8, 8)).sample(1)(net), name="renumbered", **HOW)
        last_map.keep(opened, atlas_map.mapped(opened, settings=Settings()))
    with serving(tmp_path, atlas) as client:
        edges = client.get("/api/atlas/map")[1]["spaces"][0]["edges"]
        kinds = [client.get(f"/api/atlas/networks/{id_of(name)}")[1] for name in ("seed 0", "renumbered")]
    ends = {id_of("seed 0"), id_of("renumbered")}
    assert [(e["kind"], e["renumbered"]) for e in edges if {e["child"], e["parent"]} == ends] == [("copy", True)]
    found = [row for told in kinds for row in told["parents"] if row["kind"].startswith("copy")]
    assert [row["kind"] for row in found] == ["copy, renumbered"]


def test_a_name_that_is_markup_comes_as_data(asked):
    answer = asked.client.get(f"/api/atlas/networks/{id_of(MARKUP)}")
    assert answer.headers["content-type"] == "application/json" and answer.json()["name"] == MARKUP
    assert answer.headers["x-content-type-options"] == "nosniff" and answer.json()["tags"] == ["<b>"]


def test_long_lists_are_compressed_for_those_who_ask(folder, tmp_path):
    with ws.Atlas(tmp_path / "many") as atlas:
        net = ws.demo.example()[0]
        for k in range(120):
            atlas.add(net, name=f"copy number {k}")
    with serving(tmp_path, tmp_path / "many") as client:
        plain = client.client.get("/api/atlas/networks", headers={"accept-encoding": "identity"})
        assert "content-encoding" not in plain.headers and len(plain.json()["networks"]) == 120
        with client.client.stream("GET", "/api/atlas/networks", headers={"accept-encoding": "gzip"}) as packed:
            raw = b"".join(packed.iter_raw())
        assert packed.headers["content-encoding"] == "gzip" and gzip.decompress(raw) == plain.content
        assert plain.json()["networks"][5]["copies"] == 119


def test_without_an_atlas_every_question_says_so(tmp_path):
    with serving(tmp_path) as client:
        for path in ("", "/networks", "/map", f"/networks/{'0' * 32}"):
            assert client.get(f"/api/atlas{path}") == (
                404, {"error": "no atlas is open; start with weightspace serve FOLDER"})  # fmt: skip
        status, told = client.post("/api/jobs", {"kind": "map"})
        assert status == 404 and "weightspace serve FOLDER" in told["error"]


def test_an_atlas_that_goes_away_is_one_sentence(tmp_path):
    with serving(tmp_path, tmp_path / "nothing") as client:
        status, told = client.get("/api/atlas")
        assert status == 422 and "no atlas in" in told["error"]


def test_no_call_works_without_the_token(asked):
    for path in ("/api/atlas", "/api/atlas/networks", "/api/atlas/map", "/api/jobs", "/api/uploads", "/api/reports"):
        answer = asked.client.get(path, headers={"Authorization": f"Bearer {TOKEN}x"})
        assert answer.status_code == 401, path
