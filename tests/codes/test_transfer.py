"""Distances between tasks: the algebra on lengths written down by hand, the codes on tasks small enough to fit."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from weightspace.codes import transfer
from weightspace.codes.encoding import encode
from weightspace.codes.task_map import TaskMap, scaling, stress
from weightspace.codes.transfer import cost, task_distance, task_distances
from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net
from weightspace.task.task import Task

N, SIDES = 60, 4
QUICK = {"steps": 100, "lr": 0.08, "draws": 4}


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, SIDES))


def corners(n: int = N, seed: int = 0, moved: int = 0, bent: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Four clouds, each of a class: the classes' names moved on, or the clouds elsewhere."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % SIDES
    centres = torch.tensor([[1, 1, bent], [1, -1, bent], [-1, 1, bent], [-1, -1, bent]]).float()
    return 2 * centres[y] + 0.3 * torch.randn(n, 3, generator=generator), (y + moved) % SIDES


def known(name: str) -> Task:
    x, y = corners()
    generator = torch.Generator().manual_seed(9)
    made = {
        "A": (x, y),
        "same": corners(seed=1),
        "sub": (x[:20], y[:20]),
        "away": corners(seed=2, moved=1, bent=-1.0),
        "random": (x, torch.randint(0, SIDES, (N,), generator=generator)),
    }
    return Task(*made[name])


@pytest.fixture(scope="module")
def measured() -> TaskMap:
    names = ("A", "same", "sub", "away", "random")
    return task_distances({name: known(name) for name in names}, mlp, seeds=(0,), **QUICK)


# ------------------------------------------------------------------ what distances are like


def test_the_order_of_tasks(measured):
    d = {(a, b): measured.distance(a, b).value for a in measured.names for b in measured.names}
    assert d["A", "same"] < d["A", "away"] < d["A", "random"]
    for source in ("A", "same", "sub"):
        assert d[source, "same"] < d[source, "away"] < d[source, "random"]
    assert d["A", "sub"] < d["sub", "A"]
    assert min(d.values()) >= 0 and d["A", "sub"] < 0.3 * measured.lengths["sub"]
    assert measured.nearest("same") == "A" and measured.sources("A")[0] == "same"


def test_random_labels_cost_their_entropy(measured):
    entropy = N * math.log(SIDES)
    assert measured.lengths["random"] == pytest.approx(entropy, rel=0.01)
    assert measured.distance("A", "random").value > entropy  # the same inputs have other labels
    told = task_distance(known("A"), known("random"), mlp, task_id=True, seeds=(0,), **QUICK)
    assert told.value == pytest.approx(entropy, rel=0.02)


def test_all_asymmetry_is_that_of_the_lengths(measured):
    lengths = torch.tensor(list(measured.lengths.values()), dtype=torch.float64)
    values = measured.values
    torch.testing.assert_close(values - values.T, lengths - lengths[:, None])


def test_telling_tasks_apart_costs_nothing_with_a_head_each():
    a, b = known("A"), Task(known("A").example(N), corners(moved=1)[1])
    shared = task_distance(a, b, mlp, seeds=(0,), **QUICK)
    told = task_distance(a, b, mlp, seeds=(0,), task_id=True, **QUICK)
    assert shared.value > shared.target > 1.2 * told.value  # the same inputs under other names
    assert min(told.codes["ab"]) < told.source + told.target  # the trunk is shared
    assert told.task_id and not shared.task_id
    assert any("telling tasks apart" in note for note in shared.notes)


def test_a_module_or_a_net_is_drawn_anew():
    a, b = known("A"), known("sub")
    torch.manual_seed(5)
    made = mlp()
    before = torch.random.get_rng_state()
    found = [task_distance(a, b, model, seeds=(3,), steps=20) for model in (mlp, made, Net.of(made))]
    assert found[0].codes == found[1].codes == found[2].codes
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(3)
    assert found[0].codes["a"] == (encode(Net.of(mlp()), a, seed=3, steps=20).length,)


# ------------------------------------------------------------------ the map, from lengths that are known


def lengths(task_id: bool = False, **changed: float) -> TaskMap:
    found = {"a": 100.0, "b": 60.0, "c": 50.0, "ab": 130.0, "ac": 140.0, "bc": 105.0} | changed
    codes = {tuple(key): (value + 7, value) for key, value in found.items()}
    return TaskMap(("a", "b", "c"), codes, (10, 10, 10), 1.0, task_id)


def test_the_shortest_code_counts():
    d = lengths().distance("a", "b")
    assert (d.value, d.source, d.target, d.joint, d.relative) == (30, 100, 60, 130, 0.5)
    assert lengths().distance("b", "a").value == 70
    assert d.spread == pytest.approx(7) and d.codes == {"a": (107, 100), "b": (67, 60), "ab": (137, 130)}
    assert lengths().values.tolist() == [[0, 30, 40], [70, 0, 45], [90, 55, 0]]
    assert lengths().sources("b") == ["a", "c"] and lengths().nearest("a") == "b"
    assert lengths().distance("a", "a").value == 0


def test_a_code_of_both_is_a_code_of_each():
    found = lengths(ab=90.0)
    assert found.lengths == {"a": 90, "b": 60, "c": 50}
    assert found.distance("a", "b").value == 0 and found.distance("a", "c").value == 50
    assert found.distance("a", "b").notes == (
        "the code of a is 10 nats longer than that of a larger task, which is used",
    )
    assert float(found.values.min()) >= 0


def test_two_networks_are_a_code_of_both_where_tasks_are_told_apart():
    assert lengths(ab=200.0).distance("a", "b").value == 100
    told = lengths(True, ab=200.0)
    assert told.distance("a", "b").value == told.lengths["b"] == 60
    assert told.distance("a", "b").notes == ("two networks are 40 nats shorter than the one found for both",)
    assert bool((told.values <= torch.tensor([100.0, 60, 50])).all())


def test_the_map_of_points_in_the_plane_is_theirs():
    points = torch.tensor([[0.0, 0], [3, 0], [0, 4], [-2, 1], [1, 1]], dtype=torch.float64)
    far = torch.cdist(points, points)
    skew = torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = scaling(far + skew - skew.T)
    torch.testing.assert_close(torch.cdist(found, found), far)
    assert stress(far, found) < 1e-12 < 0.1 < stress(far, scaling(1 - torch.eye(5, dtype=torch.float64)))
    assert scaling(torch.tensor([[0.0, 2], [4, 0]], dtype=torch.float64)).flatten().tolist() == pytest.approx(
        [1.5, 0, -1.5, 0]
    )
    assert scaling(torch.zeros(3, 3)).tolist() == [[0, 0]] * 3 and stress(torch.zeros(3, 3), torch.zeros(3, 2)) == 0


def test_a_map_as_plain_data():
    found = lengths().data()
    assert json.loads(json.dumps(found)) == found
    assert found["arrows"][0] == {"from": "a", "to": "b", "there": 30, "back": 70}
    assert found["nearest"] == {"a": "b", "b": "a", "c": "a"} and len(found["positions"]) == 3
    assert found["stress"] == pytest.approx(lengths().stress) and found["values"][0] == [0, 30, 40]
    assert json.loads(json.dumps(lengths().distance("a", "b").data()))["relative"] == 0.5
    alone = TaskMap(("a", "b"), {("a",): (0.0,), ("b",): (0.0,), ("a", "b"): (3.0,)}, (1, 1), 1.0, False)
    found = json.loads(json.dumps(alone.distance("a", "b").data(), allow_nan=False))
    assert found["spread"] is None and found["relative"] is None and found["value"] == 3
    assert lengths().table().splitlines()[2] == "| a | 10 | 100 | 0 | 30 | 40 |"


def test_only_the_targets_asked_for():
    tasks = {name: known(name) for name in ("A", "sub", "away")}
    found = task_distances(tasks, mlp, targets=["away"], seeds=(0,), steps=5)
    assert [*found.codes] == [("A",), ("sub",), ("away",), ("A", "away"), ("sub", "away")]
    assert found.values.isnan().sum() == 2 and {*found.sources("away")} == {"A", "sub"}
    assert cost(tasks, mlp, targets=["away"], seeds=(0,), steps=5).codes == 5
    plain = json.loads(json.dumps(found.data(), allow_nan=False))
    assert plain["values"][0][1] is None and plain["positions"] == [[None, None]] * 3 and plain["stress"] is None
    with pytest.raises(WeightspaceError, match="A and sub were not measured together; name one of them among targets="):
        found.distance("A", "sub")
    with pytest.raises(WeightspaceError, match="no task 'z' for targets=; there are A, sub, away"):
        task_distances(tasks, mlp, targets=["z"])
    alone = TaskMap(("a", "b"), {("a",): (1.0,), ("b",): (1.0,)}, (1, 1), 1.0, False)
    with pytest.raises(WeightspaceError, match="no distance to a was measured; name it among targets="):
        alone.nearest("a")


# ------------------------------------------------------------------ long runs


def test_a_run_that_was_stopped_goes_on(tmp_path, monkeypatch):
    tasks = {name: known(name) for name in ("A", "sub", "away")}
    file, seen, calls = tmp_path / "codes.json", [], []
    options = {"seeds": (0, 1), "steps": 10, "file": file}
    monkeypatch.setattr(transfer, "encode", lambda *a, **k: calls.append(a) or encode(*a, **k))

    def stop(done: int, total: int) -> None:
        seen.append((done, total))
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        task_distances(tasks, mlp, progress=stop, **options)
    assert seen == [(k, 12) for k in range(1, 6)] and len(calls) == 5
    found = task_distances(tasks, mlp, **options)
    assert len(calls) == 12 == cost(tasks, mlp, seeds=(0, 1), steps=10).codes
    again = task_distances(dict(reversed(tasks.items())), mlp, **options)
    assert len(calls) == 12 and torch.equal(again.values, found.values.flip(0, 1))
    assert not [*tmp_path.glob("*.partial")]
    with pytest.raises(WeightspaceError, match=r"was measured with another steps \(10\); give another file"):
        task_distances(tasks, mlp, **(options | {"steps": 11}))
    with pytest.raises(WeightspaceError, match="holds codes of another sub; give another file"):
        task_distances(tasks | {"sub": known("same")}, mlp, **options)
    file.write_text("[]")
    with pytest.raises(WeightspaceError, match="holds no lengths of codes"):
        task_distances(tasks, mlp, **options)


def test_what_a_run_costs():
    tasks = {"A": known("A"), "sub": known("sub")}
    found = cost(tasks, mlp, seeds=(0, 1, 2), steps=100, batch=50)
    assert (found.codes, found.steps) == (9, 900)
    assert found.examples == (50 + 20 + 50) * 300
    assert found.bytes == 8 * 4 * (3 * 16 + 16 + 16 * 4 + 4)


# ------------------------------------------------------------------ bad input


def refused(match: str, model=mlp, **tasks) -> None:
    with pytest.raises(WeightspaceError, match=match) as seen:
        task_distances(tasks, model, steps=5, seeds=(0,))
    assert len(str(seen.value).splitlines()) == 1 and isinstance(seen.value, WeightspaceError)


def test_tasks_that_have_no_distance():
    a, (x, y) = known("A"), corners()
    refused("a distance is between two tasks, got 1; give two or more", a=a)
    refused(r"an example of a has shape \(3,\), one of b \(1, 3\); bring them to one shape", a=a, b=Task(x[:, None], y))
    refused("b has no labels, and a distance is one of labels", a=a, b=Task(x))
    refused("b: labels 0..7 outside the 4 outputs of the network", a=a, b=Task(x, y + 4 * (y == 3)))
    refused("b: no examples: the data is empty", a=a, b=Task(DataLoader(TensorDataset(x[:0], y[:0]), 4)))
    with pytest.raises(WeightspaceError, match=r"tasks\['b'\] takes a Task, got a Tensor; give Task"):
        task_distances({"a": a, "b": x}, mlp, seeds=(0,))
    refused("b: two tasks of different metric, cross-entropy and squared", a=a, b=Task(x, torch.randn(N, 4)))
    refused(
        "b: the loss of a fresh network is nan; look for NaN and infinity in the inputs", a=a, b=Task(x * math.inf, y)
    )
    broken = DataLoader(TensorDataset(x * math.nan, y), 4)
    refused("b: the loss of a fresh network is nan", a=a, b=Task(broken))
    with pytest.raises(WeightspaceError, match="NaN in the inputs of 60 of 60 examples"):
        Task(x * math.nan, y)
    with pytest.raises(WeightspaceError, match="no examples: the inputs are empty"):
        Task(x[:0], y[:0])


def test_networks_that_measure_no_distance():
    a, b = known("A"), known("same")
    refused("does not take inputs of shape", model=lambda: nn.Linear(5, 4), a=a, b=b)

    own = nn.Sequential(nn.Linear(3, 4), nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)))
    with pytest.raises(WeightspaceError, match="give a function that makes the module"):
        task_distance(a, b, own)
    with pytest.raises(WeightspaceError, match="no seeds; give one or more"):
        task_distance(a, b, mlp, seeds=())
    with pytest.raises(WeightspaceError, match="task_id needs one that gives the outputs directly"):
        task_distance(a, b, lambda: nn.Sequential(mlp(), nn.LogSoftmax(1)), task_id=True)
    with pytest.raises(WeightspaceError, match="beta must be a positive number, got -1"):
        task_distance(a, b, mlp, beta=-1, steps=5)
    with pytest.raises(WeightspaceError, match="no task 'z'; there are a, b, c"):
        lengths().distance("a", "z")
