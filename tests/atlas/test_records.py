"""What is known of networks is kept by content, replaced when it is written again, and gone with the content."""

from __future__ import annotations

import math
import threading

import numpy as np
import pytest

import weightspace as ws
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


def test_pairs_of_a_kind_are_forgotten(tmp_path):
    nets = [ws.demo.example(seed)[0] for seed in range(3)]
    with ws.Atlas(tmp_path) as atlas:
        a, b, c = (atlas.add(net, name=name).key for net, name in zip(nets, "abc", strict=True))
        atlas.pairs.put([Pair(a, b, "parent: cast", 1.0), Pair(a, c, "parent: cast", 1.0)], directed=True)
        atlas.pairs.put([Pair(a, b, "distance", 2.0)])
        atlas.pairs.forget("parent: ", [a, b])
        assert atlas.pairs.get(a, b, "parent: cast", directed=True) is None
        assert atlas.pairs.get(a, c, "parent: cast", directed=True) and atlas.pairs.get(a, b, "distance")
