"""Neighbours up to symmetry against all distances, and ways against every way there is."""

import math
from itertools import pairwise, permutations

import pytest
import torch
from torch import nn

import weightspace as ws
from weightspace.atlas import between, neighbours, soup
from weightspace.net.errors import WeightspaceError


def perceptron():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10))


@pytest.fixture(scope="module")
def tasks():
    train, test = ws.digits(), ws.digits("test")
    return train.take(400), test.take(300)


@pytest.fixture(scope="module")
def trained(tasks):
    nets = [ws.fresh(perceptron, seed) for seed in range(3)]
    return [ws.flow(net, ws.learn(tasks[0], 64), ws.Adam(), steps=40, size=0.1)[-1] for net in nets]


@pytest.fixture(scope="module")
def group(tasks):
    return ws.Symmetry.of(ws.fresh(perceptron, 0), tasks[0].example(2))


def test_the_nearest_are_those_of_all_distances(trained, group):
    net = trained[0]
    members = {f"other {k}": other for k, other in enumerate(trained[1:])}
    members |= {f"copy {k}": group.sample(seed=k)(ws.perturb(net, 0.02 * k, seed=k)) for k in range(4)}
    members |= {f"random {k}": ws.fresh(perceptron, 10 + k) for k in range(6)}
    found = neighbours(net, members, group, k=4)
    distance = ws.modulo(group)
    whole = sorted((distance(net, other).upper, name) for name, other in members.items())
    assert [one.name for one in found.neighbours] == [name for _, name in whole[:4]]
    assert [one.distance for one in found.neighbours] == pytest.approx([d for d, _ in whole[:4]])
    assert found.neighbours[0].distance < 1e-3 < found.neighbours[0].stored
    assert found.aligned < found.members == 12
    as_stored = min(members, key=lambda name: ws.euclidean(net, members[name]))
    assert as_stored != found.neighbours[0].name  # distances as stored would have missed it


def test_what_cannot_be_compared_is_listed(trained, group):
    net = trained[0]
    odd = {"nan": net + math.nan * net.weights, "wide": ws.Net.of(nn.Linear(3, 2))}
    found = neighbours(net, {"self": net, **odd}, group)
    assert found.left_out.keys() == odd.keys() and "NaN" in found.left_out["nan"]
    assert found.data()["neighbours"][0]["name"] == "self"
    for members in (odd, {}):
        with pytest.raises(WeightspaceError, match="no member to compare with"):
            neighbours(net, members, group)
    with pytest.raises(WeightspaceError, match="ask for 1 or more"):
        neighbours(net, {"self": net}, group, k=0)


def lowest(a, b, members, task, points):
    """The least highest barrier over all ways."""
    names, found = list(members), math.inf
    for n in range(len(names) + 1):
        for order in permutations(names, n):
            nets = [a, *(members[name] for name in order), b]
            found = min(found, max(ws.line(x, y).barrier(task, points) for x, y in pairwise(nets)))
    return found


def test_a_way_is_the_lowest_of_all_ways(trained, tasks):
    a, b = trained[0], trained[1]
    curve = ws.curve(a, b, tasks[0], steps=40, batch=64)
    members = {"early": curve(0.3), "late": curve(0.7), "aside": trained[2], "noise": ws.perturb(curve(0.5), 0.5)}
    way = between(a, b, members, tasks[1], points=5)
    assert way.highest == pytest.approx(lowest(a, b, members, tasks[1], 5))
    assert way.highest < 0.5 * way.direct and way.names
    assert way.nets[0] is a and len(way.barriers) == len(way.names) + 1
    assert way.path.times[-1] == 1.0 and way.measured <= 20
    few = between(a, b, members, tasks[1], points=5, near=1)
    assert few.measured < way.measured and few.highest <= few.direct


def test_a_way_modulo_the_group_sees_renumbered_members(trained, tasks, group):
    a = trained[0]
    b = group.sample(seed=3, kinds=("permutation",))(ws.perturb(a, 0.05, seed=1))
    way = between(a, b, {"aside": trained[2]}, tasks[1], group, points=5)
    stored = between(a, b, {"aside": trained[2]}, tasks[1], points=5)
    assert way.highest < 0.05 < stored.highest and way.names == ()
    assert float((way.nets[-1] - a).norm()) < 0.2 * float((stored.nets[-1] - a).norm())


def test_members_of_another_form_are_passed_over(trained, tasks):
    a, b = trained[:2]
    odd = {"nan": a + math.nan * a.weights, "wide": ws.Net.of(nn.Linear(3, 2))}
    assert between(a, b, odd, tasks[1], points=3).names == ()
    with pytest.raises(WeightspaceError):
        between(a, b, odd, tasks[1], points=2)


# ------------------------------------------------------------------ averages


def test_a_soup_is_never_worse_than_its_best_and_is_the_mean_of_what_it_kept(trained, tasks):
    members = {f"{k}": ws.perturb(trained[0], 0.3, seed=k) for k in range(6)} | {"aside": trained[1]}
    found = soup(members, tasks[1])
    alone = {name: float(tasks[1](net)) for name, net in members.items()}
    assert found.kept[0] == min(alone, key=alone.get) and found.losses[0] == pytest.approx(min(alone.values()))
    assert [*found.losses] == sorted(found.losses, reverse=True) and len(found.kept) > 1
    assert "aside" in found.refused and found.refused["aside"] >= min(found.losses)
    mean = ws.swa([members[name] for name in found.kept])
    assert float((found.net - mean).norm()) < 1e-5 * float(mean.weights.norm())
    assert float(tasks[1](found.net)) == pytest.approx(found.losses[-1], rel=1e-5)


def test_copies_that_are_renumbered_are_averaged_up_to_symmetry(trained, tasks, group):
    noisy = [ws.perturb(trained[0], 0.3, seed=k) for k in range(5)]
    moved = {str(k): group.sample(seed=k)(net) for k, net in enumerate(noisy)}
    aligned, stored = soup(moved, tasks[1], group), soup(moved, tasks[1])
    assert len(aligned.kept) > len(stored.kept) == 1
    assert aligned.losses[-1] < stored.losses[-1]


def test_running_statistics_of_a_soup_are_measured_anew(tasks):
    module = lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 10))  # noqa: E731
    start = ws.flow(ws.fresh(module, 0), ws.learn(tasks[0]), ws.Adam(), steps=25, size=0.1)[-1]
    found = soup({str(k): ws.perturb(start, 0.5, seed=k) for k in range(5)}, tasks[1])
    assert len(found.kept) > 1
    again = ws.reset_statistics(found.net, tasks[1])
    torch.testing.assert_close(again.state["2.running_mean"], found.net.state["2.running_mean"])


def test_a_soup_of_nothing_that_reads_the_data_is_refused(trained, tasks):
    odd = {"nan": trained[0] + math.nan * trained[0].weights, "wide": ws.Net.of(nn.Linear(3, 2))}
    with pytest.raises(WeightspaceError, match="no member to average: nan: its loss is nan"):
        soup(odd, tasks[1])
    with pytest.raises(WeightspaceError, match="there are none"):
        soup({}, tasks[1])
    found = soup(odd | {"one": trained[0]}, tasks[1])
    assert found.kept == ("one",) and found.net is trained[0] and found.left_out.keys() == odd.keys()


def test_a_way_opens_and_aligns_each_member_once():
    a, task = ws.demo.example()
    b = ws.demo.example(1)[0]
    group = ws.Symmetry.of(a, task.example(2))
    made, aligned = [], []

    class Counted(ws.Symmetry):
        def align(self, net, to, **how):
            aligned.append(1)
            return group.align(net, to=to, **how)

    counted = object.__new__(Counted)
    counted.__dict__.update(group.__dict__)
    members = {f"m{k}": (lambda k=k: made.append(k) or a.lerp(b, k / 10)) for k in range(1, 9)}
    way = ws.atlas.between(a, b, members, task, counted, near=3, points=3)
    assert sorted(made) == list(range(1, 9))
    assert len(aligned) <= 1 + len(members) + len(members) + 1, "once for the search, and once along the way"
    assert way.highest <= way.direct
