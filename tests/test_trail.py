"""Paths on disk: what is written comes back to the last bit, what is cut off goes on, what does not fit is refused."""

from __future__ import annotations

import json
import resource

import pytest
import torch
from torch import nn

from weightspace.checkpoint import CheckpointError
from weightspace.ensembles import coherence, disagreement, ensemble, swag
from weightspace.flows import FlowError, flow
from weightspace.goals import learn
from weightspace.metric import Adam, Euclidean
from weightspace.net import Net, WeightspaceError
from weightspace.path import Path
from weightspace.pruning import prune, sparsity
from weightspace.pullback import Pullback
from weightspace.task import Task, accuracy
from weightspace.trail import Trail


def net(seed: int = 0, width: int = 24) -> Net:
    torch.manual_seed(seed)
    layers = nn.Linear(6, width), nn.BatchNorm1d(width), nn.Tanh(), nn.Linear(width, 3)
    return Net.of(nn.Sequential(*layers))


def task(seed: int = 0, n: int = 64) -> Task:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 6, generator=g)
    return Task(x, (x @ torch.randn(6, 3, generator=torch.Generator().manual_seed(9 + seed))).argmax(1))


def same(a: Net, b: Net) -> bool:
    return all(torch.equal(t, b.tensors[name]) for name, t in a.tensors.items())


# what is written comes back


def test_points_come_back_to_the_last_bit(tmp_path):
    a = net(width=400)
    trail = Trail(tmp_path / "path", a)
    moved = a + 1e-3 * a.weights.randn(1)
    mask = a.weights.randn(2).map(lambda w: (w > 1).to(w))
    sparse = a.at(a.weights.shaped(a.weights.flat() * mask.flat()))
    one_changed = a.at(a.weights.replace({"3.bias": torch.ones(3)}))
    points = [a, moved, sparse, one_changed, a]
    for step, point in enumerate(points[1:], 1):
        trail.append(point, step * 10, loss=step / 2)
    back = Trail(tmp_path / "path", a)
    assert len(back) == 5 and all(same(x, y) for x, y in zip(back, points, strict=True))
    assert back.facts(2) == {"step": 20, "loss": 1.0}
    path = back.path()
    assert isinstance(path, Path) and path.times == (0, 0.25, 0.5, 0.75, 1.0) and same(path[1], moved)
    assert float((path(0.125) - a.lerp(moved, 0.5)).norm()) < 1e-6
    sizes = {p.name: p.stat().st_size for p in (tmp_path / "path").iterdir()}
    assert sizes["00030.safetensors"] < 0.02 * sizes["00010.safetensors"], "what did not change is not written"
    assert sizes["00020.safetensors"] < 0.4 * sizes["00010.safetensors"], "zeros cost a bit"


def test_half_keeps_differences_within_what_it_says(tmp_path):
    a = net(width=200)
    moved = a + 0.01 * a.weights.randn(1)
    for half in (False, True):
        Trail(tmp_path / str(half), a, half=half).append(moved, 1)
    back = Trail(tmp_path / "True", a)[1]
    away, moved_by = (back - moved).flat().abs(), (moved - a).flat().abs()
    rounding = 1.2e-7 * (1 + moved.weights.flat().abs())
    assert bool((away <= 2**-11 * moved_by + rounding).all())
    sizes = [(tmp_path / str(half) / "00001.safetensors").stat().st_size for half in (False, True)]
    assert sizes[1] < 0.6 * sizes[0]


# flows that are cut off


@pytest.mark.parametrize("kind", ["euclid", "adam", "pullback", "carve", "prune"])
def test_a_flow_that_was_killed_goes_on_as_if_it_had_not_been(tmp_path, kind):
    start, new = net(), task(1)
    metric = {"euclid": Euclidean(), "adam": Adam()}.get(kind, Pullback(task(0, 40)))
    goal = {"carve": prune(0.7, repair="descent", batch=16), "prune": prune(0.6)}.get(kind, learn(new, 16, seed=3))
    steps = {"carve": 60, "prune": 6}.get(kind, 12)
    settings = {"steps": steps, "size": 0.02, "save": steps // 3}
    if kind == "pullback":
        settings["budget"] = 0.3

    class Killed(Exception):
        pass

    def kill(record) -> None:
        if record.step == 2 * steps // 3:
            raise Killed

    whole = flow(start, goal, metric, **settings)
    with pytest.raises(Killed):
        flow(start, goal, metric, **settings, trail=tmp_path / "path", progress=kill)
    assert len(Trail(tmp_path / "path", start)) == 3
    made = []
    again = flow(start, goal, metric, **settings, trail=tmp_path / "path", progress=made.append)
    assert [record.step for record in made] == list(range(2 * steps // 3, steps))
    assert same(again[-1], whole[-1]) and len(again) == len(whole) and again.why == whole.why
    assert [r.step for r in again.log] == list(range(steps))
    assert [r.length for r in again.log] == pytest.approx([r.length for r in whole.log])
    assert same(Trail(tmp_path / "path", start)[-1], whole[-1])
    if again.mask is not None:
        assert torch.equal(again.mask.flat(), whole.mask.flat())
    finished = flow(start, goal, metric, **settings, trail=tmp_path / "path", progress=made.append)
    assert same(finished[-1], whole[-1]) and len(made) == steps - 2 * steps // 3
    assert len(list((tmp_path / "path").glob("resume-*"))) == 1


def test_a_disk_that_fills_loses_nothing(tmp_path):
    start, new = net(width=400), task(1)
    full = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(record) -> None:
        if record.step == 5:
            resource.setrlimit(resource.RLIMIT_FSIZE, (8000, full[1]))

    try:
        with pytest.raises(CheckpointError) as error:
            flow(start, new, Euclidean(), steps=12, size=0.1, save=3, trail=tmp_path / "path", progress=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, full)
    assert "\n" not in str(error.value)
    kept = Trail(tmp_path / "path", start)
    assert [kept.facts(k)["step"] for k in range(len(kept))] == [0, 3, 6]
    assert not [p for p in (tmp_path / "path").iterdir() if p.name.startswith(".") or p.suffix == ".tmp"]
    end = flow(start, new, Euclidean(), steps=12, size=0.1, save=3, trail=tmp_path / "path")
    assert same(end[-1], flow(start, new, Euclidean(), steps=12, size=0.1, save=3)[-1])


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: (folder / "index.json").write_text("{"), "no index"),
        (lambda folder: (folder / "index.json").write_text('{"weightspace": "atlas", "version": 1}'), "no index"),
        (lambda folder: (folder / "index.json").write_text("[]"), "no index"),
        (lambda folder: (folder / "index.json").unlink(), "holds no path"),
        (lambda folder: (folder / "00001.safetensors").unlink(), "00001"),
        (lambda folder: (folder / "00001.safetensors").write_bytes(b"x" * 100), "00001"),
    ],
)  # fmt: skip
def test_spoiled_folders_are_refused_in_one_line(tmp_path, spoil, words):
    a = net()
    Trail(tmp_path / "path", a).append(a + a.weights.randn(0), 1)
    spoil(tmp_path / "path")
    with pytest.raises(WeightspaceError) as error:
        list(Trail(tmp_path / "path", a))
    assert words in str(error.value) and "\n" not in str(error.value)


def test_other_networks_and_other_places_are_refused(tmp_path):
    a = net()
    trail = Trail(tmp_path / "path", a)
    trail.append(a + a.weights.randn(0), 1)
    with pytest.raises(CheckpointError, match="another architecture"):
        Trail(tmp_path / "path", net(width=5))
    with pytest.raises(FlowError, match="began at another network"):
        flow(net(1), task(), Euclidean(), steps=2, trail=tmp_path / "path")
    index = json.loads((tmp_path / "path" / "index.json").read_text())
    index["points"][1]["file"] = "../elsewhere.safetensors"
    (tmp_path / "path" / "index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="outside"):
        Trail(tmp_path / "path", a)[1]
    with pytest.raises(CheckpointError, match="two ends"):
        Trail(tmp_path / "one", a).path()


# pruning by descent, and of whole units


def test_descent_repairs_more_than_gauss_newton_where_little_is_left():
    start = flow(net(width=64), task(n=256), Adam(), steps=300, size=0.01)[-1]
    old = Pullback(task(n=256))
    newton = flow(start, prune(0.93), old, steps=8)
    descent = flow(start, prune(0.93, repair="descent", batch=64), old, steps=1200, size=0.01)
    for path in (newton, descent):
        assert sparsity(path[-1].weights) == pytest.approx(0.93, abs=2e-3) == sparsity(path.mask)
    right = accuracy(task(n=256))
    assert right(descent[-1]) > right(newton[-1]) - 0.02
    assert float(descent[-1].weights.flat()[descent.mask.flat() == 0].abs().max()) == 0


def test_whole_units_go_with_all_that_leads_to_them():
    start, old = net(width=20), Pullback(task())
    path = flow(start, prune(0.4, "neuron"), old, steps=4)
    gone = path[-1].weights["0.weight"].abs().sum(1) == 0
    assert int(gone.sum()) == 8
    for name in ("0.bias", "1.weight", "1.bias"):
        assert float(path[-1].weights[name][gone].abs().max()) == 0, name
    assert float(path[-1].weights["3.weight"][:, gone].abs().max()) == 0
    cut = start.at(start.weights.shaped(start.weights.flat() * path.mask.flat()))
    assert old.drift(path[-1], start) < 0.7 * old.drift(cut, start)
    assert (path[-1].weights["3.bias"] != 0).all()


def test_learning_and_pruning_in_both_orders_keep_every_zero():
    start, old, new = net(width=32), task(0), task(1)
    sparse = flow(start, prune(0.6), Pullback(old), steps=4)
    then = flow(sparse[-1], learn(new, 32), Adam(), steps=30, size=0.005, mask=sparse.mask)
    held = sparse.mask.flat() == 0
    assert float(then[-1].weights.flat()[held].abs().max()) == 0 and float((then[-1] - sparse[-1]).norm()) > 0.1
    assert sparsity(then[-1].weights) == sparsity(sparse.mask) == pytest.approx(0.6, abs=1e-2)
    learnt = flow(start, learn(new, 32), Adam(), steps=30, size=0.005)
    other = flow(learnt[-1], prune(0.6), Pullback(old | new), steps=4)
    assert sparsity(other[-1].weights) == pytest.approx(0.6, abs=1e-2)
    assert float((other[-1] - then[-1]).norm()) > 0.1, "the two do not commute"


# more outputs, several networks as one


def test_widening_leaves_the_outputs_that_were_there():
    a, x = net(), task().example(10)
    b = a.widen(2, seed=4)
    assert torch.allclose(b(x)[:, :3], a(x), atol=1e-6) and b(x).shape == (10, 5)
    assert torch.allclose(b.module()(x), b(x), atol=1e-6) and a(x).shape == (10, 3)
    assert torch.equal(b(x), a.widen(2, seed=4)(x)) and not torch.equal(b(x), a.widen(2, seed=5)(x))
    end = flow(b, Task(x, torch.full((10,), 4)), Adam(), steps=30, size=0.01)[-1]
    assert bool((end(x).argmax(1) == 4).all())
    for act, words in (
        (lambda: a.widen(0), "at least one"),
        (lambda: a.widen(1, "1"), "no linear map '1'"),
        (lambda: Net.of(nn.Conv2d(1, 1, 1)).widen(1), "no linear map"),
    ):
        with pytest.raises(WeightspaceError, match=words):
            act()
    tied = nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 6, bias=False))
    tied[1].weight = tied[0].weight
    with pytest.raises(WeightspaceError, match="several places"):
        Net.of(tied).widen(1)


def test_an_ensemble_is_the_mean_of_probabilities():
    nets, t = [net(s) for s in range(3)], task()
    x = t.example(20)
    mean = sum(n(x).softmax(1) for n in nets) / 3
    both = ensemble(nets)
    assert torch.allclose(both(x).exp(), mean, atol=1e-6)
    assert 0 <= accuracy(t)(both) <= 1 and both.weights.numel == 3 * nets[0].weights.numel
    assert torch.allclose(ensemble([nets[0]])(x), nets[0](x).log_softmax(1), atol=1e-6)


def test_draws_have_the_mean_and_the_spread_of_a_run():
    a = net()
    points = [a + 0.1 * a.weights.randn(seed) for seed in range(6)]
    drawn = swag(points, 400, seed=1)
    rows, seen = (torch.stack([n.weights.flat() for n in nets]) for nets in (points, drawn))
    assert float((seen.mean(0) - rows.mean(0)).abs().max()) < 0.03
    away = rows - rows.mean(0)
    variance = (away.square().mean(0) + away.square().sum(0) / 5) / 2
    assert torch.allclose(seen.var(0), variance, rtol=0.45)
    assert float((seen.var(0) / variance).mean()) == pytest.approx(1, abs=0.02)
    assert same(drawn[3], swag(points, 4, seed=1)[3]) and not same(drawn[3], drawn[4])
    with pytest.raises(WeightspaceError, match="at least two"):
        swag(points[:1], 3)


def test_how_alike_networks_are():
    nets, t = [net(s) for s in range(3)], task()
    assert disagreement([nets[0], nets[0]], t) == 0 and coherence([nets[0], nets[0]], t) == pytest.approx(1)
    classes = [n(t.example(64)).argmax(1) for n in nets]
    pairs = [(classes[i] != classes[j]).double().mean() for i, j in ((0, 1), (0, 2), (1, 2))]
    assert disagreement(nets, t) == pytest.approx(float(sum(pairs)) / 3) and coherence(nets, t) < 0.9
    for act in (lambda: ensemble([]), lambda: coherence(nets[:1], t), lambda: ensemble([nets[0], net(width=3)])):
        with pytest.raises(WeightspaceError):
            act()
