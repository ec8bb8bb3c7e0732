"""Paths on disk: what is written comes back to the last bit, what is cut off goes on, what does not fit is refused."""

from __future__ import annotations

import json
import resource

import pytest
import torch
from torch import nn

import weightspace as ws
from weightspace.checkpoint.refusal import CheckpointError
from weightspace.flows.ensembles import coherence, disagreement, ensemble, swag
from weightspace.flows.goals import learn
from weightspace.flows.pruning import prune, sparsity
from weightspace.flows.stepper import flow
from weightspace.metric.distance import functional
from weightspace.metric.metric import Adam, Euclidean
from weightspace.metric.pullback import Pullback
from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net
from weightspace.path.path import Path
from weightspace.path.trail import Trail
from weightspace.task.classification import accuracy
from weightspace.task.task import Task


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


def test_erase_takes_the_path_and_nothing_else(tmp_path):
    a = net()
    Trail.erase(tmp_path / "nothing")
    trail = Trail(tmp_path / "path", a)
    trail.append(a + a.weights, 1, resume={"seen": torch.ones(2)})
    (tmp_path / "path" / "mine.txt").write_text("kept")
    Trail.erase(tmp_path / "path")
    assert [p.name for p in (tmp_path / "path").iterdir()] == ["mine.txt"]
    other = tmp_path / "other"
    other.mkdir()
    for text in ("{}", "not json", json.dumps({"weightspace": "path", "points": [{"file": "../victim"}]})):
        (other / "index.json").write_text(text)
        with pytest.raises(CheckpointError, match="is not the index of a path"):
            Trail.erase(other)
        assert (other / "index.json").exists()


def test_half_keeps_differences_within_what_it_says(tmp_path):
    a = net(width=200)
    moved = a + 0.01 * a.weights.randn(1)
    for half in (False, True):
        Trail(tmp_path / str(half), a, half=half).append(moved, 1)
    back = Trail(tmp_path / "True", a)[1]
    away, moved_by = (back - moved).flat().abs(), (moved - a).flat().abs()
    rounding = 1.2e-7 * (1 + moved.weights.flat().abs()) + 2**-25 * float(moved_by.max())
    assert bool((away <= 2**-11 * moved_by + rounding).all())
    tiny = a + 1e-6 * a.weights.randn(1)
    Trail(tmp_path / "tiny", a, half=True).append(tiny, 1)
    assert float((Trail(tmp_path / "tiny", a)[1] - a).norm()) == pytest.approx(float((tiny - a).norm()), rel=0.05)
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
        (lambda folder: (folder / "index.json").write_text("{"), "not the index"),
        (lambda folder: (folder / "index.json").write_text('{"weightspace": "atlas", "version": 1}'), "not the index"),
        (lambda folder: (folder / "index.json").write_text("[]"), "not the index"),
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
    with pytest.raises(WeightspaceError, match="began at another network"):
        flow(net(1), task(), Euclidean(), steps=2, trail=tmp_path / "path")
    index = json.loads((tmp_path / "path" / "index.json").read_text())
    index["points"][1]["file"] = "../elsewhere.safetensors"
    (tmp_path / "path" / "index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="outside"):
        Trail(tmp_path / "path", a)[1]
    with pytest.raises(CheckpointError, match="two ends"):
        Trail(tmp_path / "one", a).path()


def test_an_index_cannot_reach_out_of_its_folder(tmp_path):
    start = net()
    flow(start, task(), Euclidean(), steps=4, size=0.1, save=2, trail=tmp_path / "path")
    victim = tmp_path / "victim.safetensors"
    index = json.loads((tmp_path / "path" / "index.json").read_text())
    (tmp_path / "path" / index["resume"]).rename(victim)
    index["resume"] = "../victim.safetensors"
    (tmp_path / "path" / "index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="outside"):
        flow(start, task(), Euclidean(), steps=8, size=0.1, save=2, trail=tmp_path / "path")
    assert victim.exists()


def test_another_goal_or_metric_or_other_statistics_are_refused(tmp_path):
    start = net()
    flow(start, learn(task(), 16), Euclidean(), steps=2, size=0.1, trail=tmp_path / "path")
    shifted = Net(start.architecture, start.weights, start.state.map(lambda b: b + 1))
    for begin, goal, metric, words in (
        (start, learn(task(1), 16), Euclidean(), "another goal"),
        (start, learn(task(), 16, seed=1), Euclidean(), "another goal"),
        (start, learn(task(), 16), Adam(), "another goal"),
        (shifted, learn(task(), 16), Euclidean(), "began at another network"),
    ):
        with pytest.raises(WeightspaceError, match=words):
            flow(begin, goal, metric, steps=4, size=0.1, trail=tmp_path / "path")
    own = Trail(tmp_path / "own", start)
    own.append(start + start.weights, 1)
    with pytest.raises(WeightspaceError, match="no flow wrote"):
        flow(start, task(), Euclidean(), steps=2, trail=tmp_path / "own")


def test_points_come_in_order_and_facts_are_plain(tmp_path):
    a = net()
    trail = Trail(tmp_path / "path", a)
    with pytest.raises(CheckpointError, match="JSON"):
        trail.append(a, 1, loss=torch.tensor(1.0))
    with pytest.raises(CheckpointError, match="does not come after"):
        trail.append(a, 0)
    trail.append(a + a.weights, 1, loss=1.0, file="mine")
    assert len(Trail(tmp_path / "path", a)) == 2 and trail.facts(1)["loss"] == 1.0
    (tmp_path / "only").mkdir()
    (tmp_path / "path" / "base.safetensors").rename(tmp_path / "only" / "base.safetensors")
    assert len(Trail(tmp_path / "only", a)) == 1, "cut off between its first two files, a path can begin again"
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be made"):
        Trail(tmp_path / "file" / "x", a)


def test_what_is_rejected_leaves_no_trace(tmp_path):
    """A flow that held-out examples end saves what it had accepted, moments too."""
    start, probe = net(), task(3)
    settings = {"size": 0.02, "save": 50, "probe": probe}
    whole = flow(start, learn(task(1), 16), Adam(), steps=12, **settings)
    limit = whole.log[5].heldout * 1.0001
    cut_off = flow(start, learn(task(1), 16), Adam(), steps=12, max_drift=limit, trail=tmp_path / "path", **settings)
    assert cut_off.why == "heldout"
    again = flow(start, learn(task(1), 16), Adam(), steps=12, trail=tmp_path / "path", **settings)
    assert same(again[-1], whole[-1])
    carved = flow(
        start, prune(0.5, repair="descent"), Pullback(task()), steps=40, size=1e-2, probe=probe, max_drift=1e-9
    )
    assert carved.why == "heldout" and not carved.log and same(carved[-1], start) and carved.mask is None


# pruning by descent, and of whole units


@pytest.mark.parametrize("steps", [1, 5, 20, 60])
def test_a_descent_of_any_length_reaches_its_sparsity(steps):
    path = flow(net(), prune(0.5, repair="descent", batch=16), Pullback(task()), steps=steps, size=1e-3)
    assert sparsity(path[-1].weights) == pytest.approx(0.5, abs=5e-3) == sparsity(path.mask)


def test_a_mask_belongs_to_the_network_that_was_accepted():
    start, old = net(width=32), Pullback(task())
    free = flow(start, prune(0.9), old, steps=6)
    stopped = flow(start, prune(0.9), old, steps=6, budget=free.log[2].drift * 1.01)
    assert stopped.why == "budget" and 0 < len(stopped.log) < 6
    assert sparsity(stopped.mask) == pytest.approx(sparsity(stopped[-1].weights), abs=1e-9)
    assert flow(start, prune(0.9), old, steps=6, budget=1e-9).mask is None


def test_what_is_held_is_neither_cut_nor_moved():
    start, old = net(width=16), Pullback(task())
    mask = start.weights.map(torch.ones_like)
    mask["0.bias"].zero_()
    mask["0.weight"][:4] = 0
    with pytest.raises(WeightspaceError, match="mask"):
        flow(start, prune(0.5, repair="layer"), old, mask=mask)
    for repair, steps in (("gauss-newton", 3), ("descent", 30)):
        end = flow(start, prune(0.5, repair=repair, batch=16), old, steps=steps, size=1e-3, mask=mask)[-1]
        held = mask.flat() == 0
        assert torch.equal(end.weights.flat()[held], start.weights.flat()[held]), repair
        assert sparsity(end.weights) == pytest.approx(0.5, abs=0.01)


def test_n_of_m_holds_on_the_way_and_at_the_end():
    torch.manual_seed(0)
    start = Net.of(nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3)))
    old = Pullback(Task(torch.randn(40, 8), torch.arange(40) % 3))
    for repair, steps in (("gauss-newton", 5), ("descent", 50)):
        path = flow(start, prune(0.5, "2:4", repair, batch=16), old, steps=steps, size=1e-3, save=1)
        zeros = [(p.weights["0.weight"].reshape(-1, 4) == 0).sum(1) for p in path]
        assert all(int(z.max()) <= 2 for z in zeros) and int(zeros[-1].min()) == 2
        assert sparsity(path.mask) == pytest.approx(0.5)
    with pytest.raises(WeightspaceError, match="zeroes a share of 0.5"):
        prune(0.7, "2:4")
    with pytest.raises(WeightspaceError, match="cut into 4"):
        odd = Net.of(nn.Linear(6, 3))
        flow(odd, prune(0.5, "2:4"), Pullback(task()), steps=2)


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


def test_a_descent_may_change_its_inputs_and_the_old_network_says_what_they_are():
    """Unchanged copies change nothing; copies with noise hold the outputs around eight examples better."""
    start, few = net(width=32), task(n=8)
    around = Task(few.example(8).repeat(32, 1) + 0.5 * torch.randn(256, 6, generator=torch.Generator().manual_seed(9)))

    def noisy(x, generator):
        return x + 0.5 * torch.randn(x.shape, generator=generator).to(x)

    def carved(augment):
        goal = prune(0.6, repair="descent", batch=8, augment=augment)
        return flow(start, goal, Pullback(few), steps=400, size=0.01)[-1]

    plain, same_inputs, changed = (carved(augment) for augment in (None, lambda x, generator: x, noisy))
    assert same(plain, same_inputs)
    away = [functional(start, end, around, "kl") for end in (plain, changed)]  # what the descent lowers
    assert away[1] < 0.5 * away[0], away
    with pytest.raises(WeightspaceError, match="descent"):
        prune(0.5, augment=noisy)


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


def test_growing_leaves_the_outputs_that_were_there():
    a, x = net(), task().example(10)
    b = ws.grow(a, outputs=2, seed=4)
    assert torch.allclose(b(x)[:, :3], a(x), atol=1e-6) and b(x).shape == (10, 5)
    assert all(torch.equal(b.weights[name][: len(rows)], rows) for name, rows in a.weights.items())
    assert torch.allclose(b.module()(x), b(x), atol=1e-6) and a(x).shape == (10, 3)
    again, other = (ws.grow(a, outputs=2, seed=seed) for seed in (4, 5))
    assert torch.equal(b(x), again(x)) and not torch.equal(b(x), other(x))
    alone = ws.grow(nn.Linear(4, 3), outputs=1)
    assert alone(x[:, :4]).shape == (10, 4)
    end = flow(b, Task(x, torch.full((10,), 4)), Adam(), steps=30, size=0.01)[-1]
    assert bool((end(x).argmax(1) == 4).all())
    for act, words in (
        (lambda: ws.grow(a, 0), "at least one"),
        (lambda: ws.grow(a, 1, "1"), "no linear layer '1'"),
        (lambda: ws.grow(Net.of(nn.Conv2d(1, 1, 1)), 1), "no linear layer"),
    ):
        with pytest.raises(WeightspaceError, match=words):
            act()

    class Cosine(nn.Linear):
        def forward(self, x):
            return nn.functional.linear(nn.functional.normalize(x), self.weight)

    for odd in (Cosine(4, 3), nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))):
        with pytest.raises(WeightspaceError, match="plain"):
            ws.grow(Net.of(nn.Sequential(odd)), 1, "0")
    tied = nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 6, bias=False))
    tied[1].weight = tied[0].weight
    with pytest.raises(WeightspaceError, match="several places"):
        ws.grow(Net.of(tied), 1)


def test_the_old_name_of_growing_works_with_a_warning():
    a, x = net(), task().example(10)
    with pytest.warns(DeprecationWarning, match="grow"):
        b = a.widen(2, seed=4)
    assert torch.equal(b(x), ws.grow(a, outputs=2, seed=4)(x))


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


@pytest.mark.parametrize("k", [2, 3, 5])
def test_draws_of_few_points_have_the_variance_that_is_said(k):
    torch.manual_seed(0)
    points = [Net.of(nn.Linear(3, 2)) for _ in range(k)]
    rows = torch.stack([net.weights.flat() for net in points])
    away = (rows - rows.mean(0)).square().sum()
    drawn = torch.stack([net.weights.flat() for net in swag(points, 800, seed=3)])
    assert float(drawn.var(0).sum()) == pytest.approx(float(away / k + away / (k - 1)) / 2, rel=0.1)


def test_how_alike_networks_are():
    nets, t = [net(s) for s in range(3)], task()
    assert disagreement([nets[0], nets[0]], t) == 0 and coherence([nets[0], nets[0]], t) == pytest.approx(1)
    classes = [n(t.example(64)).argmax(1) for n in nets]
    pairs = [(classes[i] != classes[j]).double().mean() for i, j in ((0, 1), (0, 2), (1, 2))]
    assert disagreement(nets, t) == pytest.approx(float(sum(pairs)) / 3) and coherence(nets, t) < 0.9
    for act in (lambda: ensemble([]), lambda: coherence(nets[:1], t), lambda: ensemble([nets[0], net(width=3)])):
        with pytest.raises(WeightspaceError):
            act()
