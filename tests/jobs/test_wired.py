"""Measurements in two processes give the numbers of one, bit for bit, and take up what was stored."""

import pytest

import weightspace as ws
from weightspace.jobs import opened
from weightspace.training import Training


@pytest.fixture(scope="module")
def two():
    with opened(2) as pool:
        yield pool


@pytest.fixture(scope="module")
def given():
    net, task = ws.demo.example()
    return net, task.take(30)


def test_distances_between_tasks(two, given, tmp_path):
    net, task = given
    tasks = {"a": task, "b": ws.random_labels(task), "c": task.take(10)}
    how = {"seeds": (0, 1), "steps": 3, "draws": 2}
    one = ws.task_distances(tasks, net, **how)
    counted = []
    file = tmp_path / "codes.json"
    other = ws.task_distances(
        tasks, net, **how, engine=two, file=file, progress=lambda done, total: counted.append((done, total))
    )
    assert other.codes == one.codes and counted == [(k, 12) for k in range(1, 13)]
    again = ws.task_distances(tasks, net, **how, file=file, progress=lambda done, total: counted.append((done, total)))
    assert again.codes == one.codes and counted[12:] == [(12, 12)]


def test_structure_functions(two, given, tmp_path):
    net, task = given
    how = {"betas": (0.1, 1.0), "seeds": (0,), "steps": 3, "draws": 2, "calibrate": True}
    steps, told = [], []
    one = ws.structure_function(net, task, **how, progress=lambda done, total: steps.append((done, total)))
    other = ws.structure_function(
        net, task, **how, engine=two, folder=tmp_path, progress=lambda done, total: told.append((done, total))
    )
    assert other == one and len(list(tmp_path.glob("*.json"))) == 4
    assert steps[-1] == (24, 24) and told == [(6, 24), (12, 24), (18, 24), (24, 24)]
    assert ws.structure_function(net, task, **how, folder=tmp_path) == one


@pytest.mark.parametrize("restart", [False, True])
def test_critical_periods(two, given, restart):
    net, task = given
    training = Training(lambda seed: net.module(), train=task, test=task, after=1, batch=10)
    how = {"onsets": [0, 1], "lengths": [0, 1], "seeds": (0, 1), "restart": restart}
    one = ws.critical_period(training, "noise", **how)
    told = []
    other = ws.critical_period(training, "noise", **how, engine=two, progress=told.append)
    assert other == one and {*told} == {*one.rows} and len(told) == 16
    assert [row.of for row in other.rows] == [row.of for row in one.rows] and all(row.of for row in one.rows)
    some = [row for row in one.rows if row.seed == 0]
    fresh = []
    assert ws.critical_period(training, "noise", **how, rows=some, engine=two, progress=fresh.append) == one
    assert {row.seed for row in fresh} == {1}


def test_stability(two, given):
    net, task = given
    told = []
    one, other = (
        ws.stability(net, task, (0.01, 0.1), 3, engine=e, progress=lambda d, n: told.append((d, n))) for e in (1, two)
    )
    assert other == one and told == [(k, 6) for k in range(1, 7)] * 2


def test_members_asked(two):
    net, task = ws.demo.example()
    members = {str(size): ws.perturb(net, size) for size in (0.1, 1.0, 3.0)}
    one, other = (ws.atlas.rank(members, task, engine=e).found for e in (1, two))
    assert other == one
