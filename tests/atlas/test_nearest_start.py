"""Which network to start from: against trying all of them, planted answers, and costs that are kept."""

import math

import pytest
import torch
from torch import nn

import weightspace as ws
from weightspace.atlas import cost, rank_by_codes, rank_by_task2vec, rank_by_weights, rank_starts
from weightspace.atlas.asked import trial_of
from weightspace.atlas.tried import planned, rounds
from weightspace.net.errors import WeightspaceError

WAYS = ("loss", "accuracy", "logme", "steps", "task2vec", "codes", "weights")
FEW = {"codes": {"seeds": (0, 1), "steps": 6}, "weights": {"steps": 5, "seeds": (0, 1)}}


def perceptron():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))


@pytest.fixture(scope="module")
def data():
    """Digits 0 to 4, digits 5 to 9, and other examples of the first."""
    low, high = (
        [k for k, y in enumerate(ws.digits().labels().tolist()) if (y < 5) == small] for small in (True, False)
    )
    whole = ws.digits()
    return {"low": whole.pick(low[:200]), "high": whole.pick(high[:200]), "new": whole.pick(low[200:300])}


@pytest.fixture(scope="module")
def nets(data):
    """A network that knows 0 to 4, one that knows 5 to 9, and one that knows nothing, of different starts."""
    found = {}
    for seed, name in enumerate(("low", "high")):
        path = ws.flow(ws.fresh(perceptron, seed), ws.learn(data[name], 50), ws.Adam(), steps=60, size=0.01)
        found[name] = path[-1]
    return {**found, "nothing": ws.fresh(perceptron, 7)}


def sources(data):
    return {"low": data["low"], "high": data["high"]}


def options(by, data):
    return {**FEW.get(by, {}), **({"sources": sources(data)} if by in ("task2vec", "codes") else {})}


@pytest.mark.parametrize("by", WAYS)
def test_the_network_that_knows_the_task_is_the_nearest(nets, data, by):
    more = {"weights": {"steps": 20}, "codes": {"steps": 60, "seeds": (0, 1), "task_id": True, "lr": 0.04}}
    answer = ws.nearest(data["new"], nets, by, **{**options(by, data), **more.get(by, {})})
    if by == "weights":  # of another start nothing of the task is left in weights: only that it has moved
        assert len(answer.found.ranking) == 3
    elif by == "codes":  # of so few labels the shortest code may be the trivial one, for all sources
        value = {row.name: row.loss for row in answer.found.ranking}
        assert 0 < value["low"] <= value["high"] <= 100 * math.log(10) + 1
    else:
        assert answer.best == "low"
    for row in answer.found.ranking:
        assert math.isfinite(row.loss) and row.error >= 0


@pytest.mark.parametrize("by", WAYS)
def test_costs_are_known_before(nets, data, by):
    said = cost(data["new"], nets, by, **options(by, data))
    answer = ws.nearest(data["new"], nets, by, **options(by, data))
    assert 0 < answer.found.passes <= said.examples
    assert by in ("loss", "accuracy") or answer.found.passes == said.examples
    if by == "codes":
        assert said.codes == 2 * 5 and said.steps == 6 * said.codes  # three tasks and two pairs, two seeds
    if by == "steps":
        assert said.steps == 3 * 5 + 2 * 5 + 2 * 10


def test_rounds_halve_the_members_and_double_the_steps():
    assert rounds(8, 20, 5) == [(8, 5), (4, 10), (2, 20)]
    assert rounds(3, 20, None) == [(3, 20)] and rounds(1, 4, 1) == [(1, 1), (1, 2), (1, 4)]
    assert rounds(5, 7, 3) == [(5, 3), (3, 6), (2, 7)] and rounds(2, 0, None) == [(2, 0)]


def test_going_on_takes_the_same_steps(nets, data):
    trial = trial_of(data["new"], "loss", 9, 1e-2, 16, 0.5, 0)
    whole = trial.on(trial.begun(nets["high"]), 9)
    parts = trial.begun(nets["high"])
    for steps in (2, 5, 9):
        parts = trial.on(parts, steps)
    assert ws.euclidean(whole.net, parts.net) == 0 < ws.euclidean(whole.net, nets["high"])
    forgetful = trial.on(type(parts)(trial.on(trial.begun(nets["high"]), 5).net, 5, {}), 9)
    assert ws.euclidean(whole.net, forgetful.net) > 0  # the moments count


def test_the_rounds_end_as_the_best_of_all_would(nets, data):
    some = {**nets, "noise": ws.perturb(nets["low"], 3.0), "near": ws.perturb(nets["low"], 0.05)}
    halved = rank_starts(some, data["new"], steps=16, first=2)
    whole = rank_starts(some, data["new"], steps=16)
    losses = {row.name: row.loss for row in whole.found.ranking}
    for row in halved.found.ranking[:2]:
        assert row.loss == pytest.approx(losses[row.name], rel=1e-6)  # those that went on to the end
    assert halved.best in whole.tied and halved.found.passes < whole.found.passes == whole.found.whole
    assert {row.name for row in halved.found.ranking} == {*some}
    trial = trial_of(data["new"], "loss", 16, 1e-3, 64, 0.5, 0)
    assert halved.found.passes == planned(5, trial, 16, 2)[1]
    assert halved.found.whole == whole.found.whole


def test_a_new_head_knows_classes_that_the_old_one_does_not(data):
    body = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 3))
    nets = {"three": ws.fresh(body, 0)}
    with pytest.raises(WeightspaceError, match="no member can answer: three: "):
        rank_starts(nets, data["new"], steps=2)
    answer = rank_starts(nets, data["new"], steps=0, head="fitted")
    assert answer.found.ranking[0].loss < math.log(5)
    tuned = rank_starts(nets, data["new"], steps=40, head="fitted", lr=3e-3)
    assert tuned.found.ranking[0].loss < answer.found.ranking[0].loss


def test_a_fitted_head_is_the_minimum_of_its_loss(nets, data):
    task = data["low"]
    fitted, decay = ws.codes.fitted_head(nets["high"], task, decay=0.05), 0.05
    head = {name: w for name, w in fitted.weights.items() if name.startswith("3.")}

    def goal(net):
        return task(net) + decay / 2 * net.weights["3.weight"].square().sum()

    slope = ws.gradient(goal, fitted)
    assert max(float(slope[name].abs().max()) for name in head) < 1e-4
    assert fitted.weights["3.weight"].shape == (5, 16)
    with pytest.raises(WeightspaceError, match="label 4 for 3 classes"):
        ws.codes.fitted_head(nets["high"], task, classes=3)


def test_task2vec_here_is_that_of_the_embeddings(nets, data):
    answer = rank_by_task2vec(nets, data["new"], sources(data), nets["high"], asymmetric=False)
    for row in answer.found.ranking:
        one, other = (ws.task2vec(nets["high"], t) for t in (data[row.name], data["new"]))
        assert row.loss == pytest.approx(one.distance(other), abs=1e-6)
        assert row.loss < 0.9 and 0 < row.error < 0.3
    assert "not known" in answer.left_out["nothing"]


@pytest.mark.slow
def test_the_error_of_a_task2vec_distance_is_that_of_other_draws(nets, data):
    low = torch.where(ws.digits().labels() < 5)[0].tolist()
    found = []
    for k in range(4):
        some = {"low": ws.digits().pick(low[60 * k : 60 * k + 60]), "high": data["high"]}
        new = ws.digits().pick(low[360 + 40 * k : 400 + 40 * k])
        row = {r.name: r for r in rank_by_task2vec(nets, new, some, nets["high"], asymmetric=False).found.ranking}[
            "low"
        ]
        found.append((row.loss, row.error))
    values, errors = torch.tensor(found).T
    assert 0.3 < float(errors.mean() / values.std()) < 3


def test_codes_are_those_of_the_task_distance_and_are_kept(nets, data, tmp_path):
    how = {"seeds": (0, 1), "steps": 6, "task_id": True}
    with ws.Atlas(tmp_path / "atlas") as atlas:
        first = rank_by_codes(nets, data["new"], sources(data), perceptron, known=atlas.jobs, **how)
        again = rank_by_codes(nets, data["new"], sources(data), perceptron, known=atlas.jobs, **how)
        assert len(atlas.jobs) == 10 and again.found.passes == 0 < first.found.passes == first.found.whole
        assert again.data()["whole_seconds"] is None and first.data()["whole_seconds"] > 0
        assert again.notes == ("10 of 10 codes were known.",) and not first.notes
        rank_by_codes(nets, data["high"], {"low": data["low"]}, perceptron, known=atlas.jobs, **how)
        assert len(atlas.jobs) == 12  # low and high are known by themselves: the pair is new
    for one, other in zip(first.found.ranking, again.found.ranking, strict=True):
        assert one == other
    for row in first.found.ranking:
        apart = ws.task_distances({"a": data[row.name], "b": data["new"]}, perceptron, **how).distance("a", "b")
        assert row.loss == pytest.approx(apart.value) or apart.notes


def test_networks_that_have_learnt_one_task_are_tied(nets, data):
    both = {"low": data["low"], "nothing": data["low"], "high": data["high"]}
    answer = rank_by_task2vec(nets, data["new"], both, nets["high"])
    assert answer.found.ranking[0].loss == answer.found.ranking[1].loss
    assert {*answer.tied} >= {"low", "nothing"}


def test_distances_of_weights_do_not_see_the_numbering(nets, data):
    group = ws.Symmetry.of(nets["low"], data["new"].example(2))
    some = {"low": nets["low"], "shuffled": group.sample(seed=3)(nets["low"])}
    answer = rank_by_weights(some, data["new"], steps=5, seeds=(0, 1))
    one, other = answer.found.ranking
    assert one.loss == pytest.approx(other.loss, rel=0.02) and 0.8 < one.loss < 1.5
    wide = {**some, "wide": ws.Net.of(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))}
    assert "wide" in rank_by_weights(wide, data["new"], steps=2, seeds=(0,)).left_out


def test_one_network_is_the_nearest_of_all(nets, data):
    for by in WAYS:
        some = {"sources": {"low": data["low"]}} if by in ("task2vec", "codes") else {}
        answer = ws.nearest(data["new"], {"low": nets["low"]}, by, **{**options(by, data), **some})
        assert answer.best == "low" and answer.tied == ("low",) and answer.found.ranking[0].behind == 0


def test_one_seed_has_no_error(nets, data):
    answer = rank_by_weights(nets, data["new"], steps=2, seeds=(0,))
    assert all(math.isnan(row.error) for row in answer.found.ranking)
    assert answer.tied == (answer.best,) and "nan" in answer.table()


def test_what_cannot_be_asked_is_said(nets, data):
    bare = ws.Task(data["new"].example(20))
    wide = ws.Task(torch.randn(20, 1, 9, 9), torch.arange(20) % 3)
    real = ws.Task(data["new"].example(20), torch.randn(20, 10), loss=nn.MSELoss())
    one = ws.Task(data["new"].example(20), torch.zeros(20, dtype=torch.long))
    cases = [
        (data["new"], {}, "steps", {}, "no members to ask"),
        (data["new"], nets, "luck", {}, "by takes 'loss' or 'accuracy'"),
        (data["new"], nets, "loss", {"steps": 5}, "nearest by 'loss' takes no steps; its options are groups, budget"),
        (data["new"], nets, "steps", {"budget": 5}, "nearest by 'steps' takes no budget; its options are steps, first"),
        (data["new"], nets, "weights", {"sources": {}}, "nearest by 'weights' takes no sources"),
        (data["new"], nets, "codes", {}, "distance from which tasks"),
        (data["new"], nets, "task2vec", {"sources": {"other": data["low"]}}, "distance from which tasks"),
        (data["new"], nets, "task2vec", {"sources": {"low": 3}}, "low"),
        (data["new"], nets, "steps", {"steps": 0}, "give positive numbers"),
        (data["new"], nets, "steps", {"first": 30}, "30 steps in the first round of 20"),
        (data["new"], nets, "steps", {"head": "cut"}, "head"),
        (data["new"], nets, "weights", {"seeds": ()}, "give positive numbers"),
        (real, nets, "steps", {"head": "fitted"}, "a head is fitted to classes"),
        (one, nets, "logme", {}, "1 class among the labels"),
        *((bare, nets, by, options(by, data), "label") for by in WAYS),
        *((wide, nets, by, options(by, data), "") for by in WAYS),
    ]
    for task, some, by, more, said in cases:
        with pytest.raises(WeightspaceError, match=said or None) as caught:
            ws.nearest(task, some, by, **more)
        assert "\n" not in str(caught.value)


def test_members_that_answered_fewer_examples_are_said_to_have_no_certain_order(nets, data):
    many = {f"noisy {k}": ws.perturb(nets["low"], 0.02 * k, seed=k) for k in range(1, 9)}
    answer = ws.nearest(data["low"], many, "loss", first=8)
    counts = [row.examples for row in answer.found.ranking]
    told = [said for said in answer.remarks() if "the order below the best" in said]
    assert min(counts) < counts[0] and len(told) == 1 and f"not {counts[0]} as {answer.best}" in told[0]
    whole = ws.nearest(data["low"], many, "loss", first=len(data["low"]))
    assert not any("the order below the best" in said for said in whole.remarks())


def test_a_network_that_cannot_read_the_task_is_left_out(nets, data):
    some = {**nets, "wide": ws.Net.of(nn.Linear(3, 2)), "broken": nets["low"].at(nets["low"].weights * math.nan)}
    for by in ("loss", "logme", "steps"):
        answer = ws.nearest(data["new"], some, by)
        assert {*answer.left_out} == {"wide", "broken"} and all(answer.left_out.values())
