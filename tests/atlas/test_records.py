"""What is known of networks is kept by content, replaced when it is written again, and gone with the content."""

from __future__ import annotations

import math
import threading

import numpy as np
import pytest

import weightspace as ws
from weightspace.atlas import comparisons
from weightspace.atlas.members import Origin
from weightspace.atlas.records import Measure, Pair, TaskRow
from weightspace.net.errors import WeightspaceError

NETS = [ws.demo.example(seed)[0] for seed in range(3)]


@pytest.fixture
def atlas(where, tmp_path):
    with ws.Atlas(where, objects=tmp_path / "objects") as opened:
        yield opened


@pytest.fixture
def keys(atlas):
    return [atlas.add(net, name=name).key for net, name in zip(NETS, "abc", strict=True)]


def test_measures_are_of_a_network_a_task_and_settings(atlas, keys):
    a, b, _ = keys
    atlas.tasks.put([TaskRow("t", "digits", "digits:0-4", 450)])
    rows = [
        Measure(a, "loss", 0.5, "t", error=0.1),
        Measure(a, "loss", 0.7, "t", "n=10"),
        Measure(b, "loss", math.nan, "t"),
    ]
    atlas.measures.put([*rows, Measure(a, "norm", math.inf)])
    assert atlas.measures.get(a, "loss", "t") == rows[0] and atlas.measures.get(a, "loss", "t", "n=10") == rows[1]
    assert math.isnan(atlas.measures.get(b, "loss", "t").value) and atlas.measures.get(a, "norm").value == math.inf
    assert atlas.measures.get(b, "norm") is None and atlas.measures.get(a, "loss") is None
    assert len(atlas.measures.of("loss", "t")) == 3 and len(atlas.measures.of()) == 4
    atlas.measures.put([Measure(a, "loss", 0.25, "t")])
    assert atlas.measures.get(a, "loss", "t").value == 0.25 and len(atlas.measures.of("loss")) == 3
    assert [task.opened for task in atlas.tasks] == ["digits:0-4"]


def test_a_value_of_fewer_examples_never_takes_the_place_of_one_of_more(atlas, keys):
    a = keys[0]
    atlas.tasks.put([TaskRow("t", "digits")])
    for value, examples, left in ((1.0, 50, 1.0), (2.0, 20, 1.0), (3.0, 50, 3.0), (4.0, 0, 3.0), (5.0, 90, 5.0)):
        atlas.measures.put([Measure(a, "loss", value, "t", examples=examples)])
        assert atlas.measures.get(a, "loss", "t").value == left
    atlas.measures.put([Measure(a, "norm", 7.0, examples=9), Measure(a, "norm", 8.0, examples=3)])
    assert atlas.measures.get(a, "norm") == Measure(a, "norm", 7.0, examples=9)


def test_comparisons_are_of_both_contents_and_go_with_them(atlas, keys):
    a, b, c = keys
    rows = {(a, b, ""): b"1", (a, b, "s"): b"2", (c, c, ""): b""}
    atlas.comparisons.put("d", rows)
    assert atlas.comparisons.of("d", keys) == rows and not atlas.comparisons.of("e", keys)
    assert set(atlas.comparisons.of("d", [a, b])) == {(a, b, ""), (a, b, "s")} and not atlas.comparisons.of("d", [])
    atlas.comparisons.put("d", {(a, b, ""): b"3"})
    assert atlas.comparisons.of("d", [a, b])[a, b, ""] == b"3"
    atlas.remove("b")
    assert set(atlas.comparisons.of("d", [a, c])) == {(c, c, "")}
    with pytest.raises(WeightspaceError, match="no network with the key"):
        atlas.comparisons.put("d", {(a, b, ""): b"3"})


def test_results_of_other_code_count_as_not_there(atlas, keys, monkeypatch):
    atlas.comparisons.put("d", {(keys[0], keys[1], ""): b"1"})
    monkeypatch.setattr(comparisons, "_METHOD", "other")
    assert not atlas.comparisons.of("d", keys)
    atlas.comparisons.put("d", {(keys[0], keys[1], ""): b"2"})
    assert atlas.comparisons.of("d", keys) == {(keys[0], keys[1], ""): b"2"}


def test_found_parents_stand_beside_stated_ones_and_are_replaced(atlas):
    for name, net, parents in (("a", 0, []), ("b", 1, ["a"]), ("c", 2, [])):
        atlas.add(NETS[net], name=name, parents=parents)
    names = ["a", "b", "c"]
    atlas.found(names, {"b": [Origin("a", "fine-tune", 1.0, 0.9)], "c": [Origin("a", "average", 0.5, 0.99)],
                        "a": [Origin("b", "fine-tune", 1.0, 0.9)]})  # fmt: skip
    assert atlas["a"].origins == () and atlas["a"].came_from == (), "a stated child is no parent"
    assert atlas["b"].parents == ("a",) == atlas["b"].came_from and atlas["b"].origins[0].kind == "fine-tune"
    assert atlas["c"].parents == () and atlas["c"].came_from == ("a",) and atlas["c"].origins[0].share == 0.5
    atlas.found(["b", "c"], {"c": [Origin("b", "cast", 1.0, 0.999)]})
    assert [o.parent for o in atlas["c"].origins] == ["a", "b"] and len(atlas["b"].origins) == 1, "others stay"
    atlas.found(names, {"c": [Origin("b", "cast", 1.0, 0.999)]})
    assert atlas["c"].origins == (Origin("b", "cast", 1.0, 0.999),)
    assert atlas["b"].parents == ("a",) and not atlas["b"].origins
    atlas.add(NETS[0] + NETS[0].weights, name="c", replace=True)
    assert atlas["c"].origins == (), "another network under the name came from nothing yet"


def test_exact_copies_share_what_is_known_and_the_last_takes_it_along(atlas, keys):
    copy = atlas.add(NETS[0], name="copy")
    assert copy.key == keys[0]
    atlas.measures.put([Measure(copy.key, "norm", 1.0)])
    atlas.pairs.put([Pair(keys[0], keys[1], "d", 1.0)])
    atlas.remove("a")
    assert atlas.measures.get(keys[0], "norm") is not None and atlas.pairs.get(keys[1], keys[0], "d") is not None
    atlas.remove("copy")
    assert not atlas.measures.of() and not atlas.pairs.of("d")


def test_a_pair_has_no_order_unless_it_is_directed(atlas, keys):
    a, b, c = keys
    atlas.pairs.put([Pair(b, a, "d", 1.0, 0.5, 1.5, "one pass")])
    atlas.pairs.put([Pair(a, b, "d", 2.0)])
    assert len(atlas.pairs.of("d")) == 1 and atlas.pairs.get(b, a, "d").value == atlas.pairs.get(a, b, "d").value == 2.0
    atlas.pairs.put([Pair(c, a, "from", 0.9), Pair(a, c, "from", 0.1)], directed=True)
    assert atlas.pairs.get(c, a, "from", directed=True).value == 0.9
    assert atlas.pairs.get(a, c, "from", directed=True).value == 0.1 and len(atlas.pairs.of("from")) == 2
    assert atlas.pairs.get(a, c, "d") is None


def test_the_nearest_come_first_and_nan_is_no_distance(atlas, keys):
    a, b, c = keys
    atlas.pairs.put([Pair(a, b, "d", 3.0), Pair(c, a, "d", 1.0), Pair(b, c, "d", math.nan)])
    near = atlas.pairs.near(a, "d")
    assert [(p.first, p.second, p.value) for p in near] == [(a, c, 1.0), (a, b, 3.0)]
    assert [p.second for p in atlas.pairs.near(a, "d", 1)] == [c] and [p.second for p in atlas.pairs.near(b, "d")] == [
        a
    ]
    assert atlas.pairs.near(a, "other") == []


def test_a_key_that_is_not_there_is_refused_and_nothing_is_written(atlas, keys):
    for call in (
        lambda: atlas.pairs.put([Pair(keys[0], keys[1], "d", 1.0), Pair(keys[0], "0" * 64, "d", 1.0)]),
        lambda: atlas.measures.put([Measure("x", "norm", 1.0)]),
        lambda: atlas.sketches.put("m", {"y": np.zeros(3)}),
        lambda: atlas.pairs.near("z", "d"),
    ):
        with pytest.raises(WeightspaceError, match="holds no network with the key"):
            call()
    assert not atlas.pairs.of("d")
    with pytest.raises(WeightspaceError):
        atlas.measures.put([Measure(keys[0], "loss", 1.0, task="no such task")])


def test_sketches_come_back_to_the_last_bit(atlas, keys):
    rng = np.random.default_rng(0)
    rows = {key: rng.standard_normal(5) for key in keys}
    atlas.sketches.put("m", rows)
    atlas.sketches.put("m", {keys[0]: np.zeros(2, dtype=np.float32)})
    found = atlas.sketches.of("m")
    assert found[keys[0]].tolist() == [0, 0] and np.array_equal(found[keys[1]], rows[keys[1]])
    assert {*atlas.sketches.of("m", keys[:2])} == {*keys[:2]} and not atlas.sketches.of("other")


def test_jobs_keep_what_json_can_hold(atlas):
    atlas.jobs.put({"a": {"x": [1, 2.5, None]}, "b": "text"}, kind="barrier", seconds=1.0)
    atlas.jobs["a"] = 3
    assert atlas.jobs["a"] == 3 and "b" in atlas.jobs and "c" not in atlas.jobs and len(atlas.jobs) == 2
    assert atlas.jobs.found(["a", "b", "c"]) == {"a": 3, "b": "text"}
    assert len(atlas.jobs.found(f"{k}" for k in range(2000))) == 0
    with pytest.raises(KeyError):
        atlas.jobs["c"]
    with pytest.raises(WeightspaceError, match="JSON cannot hold"):
        atlas.jobs.put({"d": 1, "e": object()})
    assert "d" not in atlas.jobs


def test_workers_write_at_the_same_time(atlas):
    def work(which):
        for k in range(10):
            atlas.jobs[f"{which}-{k}"] = k

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(atlas.jobs) == 40
