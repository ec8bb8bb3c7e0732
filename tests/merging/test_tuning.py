"""Coefficients found on data: planted optima, derivatives by differences, costs, limits, and what is not looked at."""

import pytest
import torch
from torch import nn

import weightspace as ws
from weightspace import merging
from weightspace.merging import tuning
from weightspace.net.errors import WeightspaceError

DOUBLE = torch.float64
ARITHMETIC = merging.Recipe("task_arithmetic")


def linear(seed=0):
    torch.manual_seed(seed)
    return ws.Net.of(nn.Linear(4, 3).double())


def mlp(seed=0):
    torch.manual_seed(seed)
    return ws.Net.of(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double())


def inputs(seed=1, n=40):
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def planted(*coefficients):
    """A base, networks with orthogonal task vectors, and a task whose answers are those of a mixture of them."""
    base, x = linear(), torch.eye(4, dtype=DOUBLE).repeat(5, 1)
    nets, teacher = [], base
    for k, coefficient in enumerate(coefficients):
        step = base.weights.zeros()
        step["weight"][:, k] = 1.0 + k
        nets.append(base + step)
        teacher = teacher + coefficient * step
    with torch.no_grad():
        return base, nets, ws.Task(x, teacher(x))


def test_the_scale_that_was_planted_is_found():
    base, nets, task = planted(0.55)
    found = merging.tune(nets, ARITHMETIC, [task], base, rounds=6)
    assert found.recipe.options["scale"] == pytest.approx(0.55, abs=0.005)
    assert found.loss < 1e-4 < found.before
    assert float((found.net - merging.merged_net(nets, found.recipe, base)).norm()) == 0


def test_the_weights_that_were_planted_are_found():
    base, nets, task = planted(0.3, 0.9, 0.0)
    found = merging.tune(nets, ARITHMETIC, [task], base, over="weights", rounds=7)
    assert found.recipe.weights == pytest.approx([0.3, 0.9, 0.0], abs=0.005)


def test_the_search_costs_what_it_said_at_most():
    base, nets, task = planted(0.3, 0.9)
    calls = []
    counted = ws.Task(
        task.example(20), task.labels(), loss=lambda f, y: (calls.append(len(f)), (f - y).square().mean(1))[1]
    )
    for over in ("scale", "weights"):
        calls.clear()
        found = merging.tune(nets, ARITHMETIC, [counted], base, over=over, rounds=2)
        told = merging.tune_cost(nets, [counted], over, rounds=2)
        assert len(found.tried) * 20 <= sum(calls) <= told.examples
        assert sum(calls) >= 0.8 * told.examples


def test_nothing_is_worse_than_what_was_given():
    base, nets, task = planted(0.123)
    given = merging.Recipe("task_arithmetic", options={"scale": 0.123})
    found = merging.tune(nets, given, [task], base, values=[3.0, 5.0], rounds=0)
    assert found.recipe.options["scale"] == 0.123
    assert found.loss == found.before


def test_values_that_a_method_does_not_take_are_left_out():
    base, nets, task = planted(0.5, 0.5)
    found = merging.tune(nets, merging.Recipe("ties"), [task], base, over="density", values=[0.0, 0.5, 1.0, 2.0])
    assert all(0 < point[0] <= 1 for point, _ in found.tried)
    one = merging.tune([nets[0], base], merging.Recipe(), [task], over="weights", values=[1.0, -1.0], rounds=0)
    assert all(sum(point) for point, _ in one.tried)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"over": "density"}, "no option 'density'; tune one of weights, scale"),
        ({"recipe": merging.Recipe("task_arithmetic", options={"scale": [0.0, 1.0]})}, "depends on the layer"),
        ({"tasks": []}, "one task or more"),
        ({"values": []}, "one value or more"),
        ({"rounds": -1}, "rounds from 0"),
    ],
)
def test_searches_that_cannot_be_made_are_refused(change, says):
    base, nets, task = planted(0.5)
    right = {"nets": nets, "recipe": ARITHMETIC, "tasks": [task], "base": base}
    with pytest.raises(WeightspaceError, match=says):
        merging.tune(**{**right, **change})


# ------------------------------------------------------------- entropy


def mixture():
    base = mlp()
    return base, [base + 0.5 * base.weights.randn(seed) for seed in (1, 2)]


def entropy(net, x):
    p = net(x).softmax(-1)
    return float(-(p * p.log()).sum(-1).mean())


@pytest.mark.parametrize("layerwise", [True, False])
def test_a_step_goes_down_the_entropy_as_differences_say(layerwise, monkeypatch):
    base, nets = mixture()
    tasks = [ws.Task(inputs(1)), ws.Task(inputs(2))]
    seen = []
    step = torch.optim.Adam.step
    monkeypatch.setattr(
        torch.optim.Adam, "step", lambda a: (seen.append(a.param_groups[0]["params"][0].grad.clone()), step(a))
    )
    found = merging.adamerging(nets, base, tasks, layerwise=layerwise, steps=1, batch=40, lr=0.01)
    columns = len(base.weights) if layerwise else 1
    slopes, small = torch.zeros(2, columns, dtype=DOUBLE), 1e-5
    deltas = [net - base for net in nets]
    for k in range(2):
        for column in range(columns):
            moved = []
            for side in (-1, 1):
                at = torch.full((2, columns), 0.3, dtype=DOUBLE)
                at[k, column] += side * small
                new = base.weights.clone()
                for delta, row in zip(deltas, at.expand(2, len(base.weights)), strict=True):
                    for name, c in zip(new, row, strict=True):
                        new[name].add_(c * delta[name])
                moved.append(sum(entropy(base.at(new), task.example(40)) for task in tasks) / 2)
            slopes[k, column] = (moved[1] - moved[0]) / (2 * small)
    assert torch.allclose(seen[0], slopes, atol=1e-8)
    assert torch.equal((found.coefficients - 0.3).sign(), -slopes.sign().expand_as(found.coefficients))


def test_the_entropy_goes_down_and_coefficients_stay_within_their_bounds():
    base, nets = mixture()
    found = merging.adamerging(nets, base, [ws.Task(inputs())], steps=60, lr=0.1)
    assert found.entropy < 0.9 * found.before
    assert float(found.coefficients.min()) >= 0 and float(found.coefficients.max()) <= 1
    assert found.coefficients.std(1).min() > 0 and found.tensors == tuple(base.weights)
    assert found.entropy == pytest.approx(entropy(found.net, inputs()), rel=1e-9)
    alike = merging.adamerging(nets, base, [ws.Task(inputs())], steps=5, lr=0.1, layerwise=False)
    assert alike.coefficients.shape == (2, 4) and float(alike.coefficients.std(1).max()) == 0


def test_labels_are_not_looked_at_and_seeds_decide_the_batches():
    base, nets = mixture()
    x = inputs()
    runs = [
        merging.adamerging(nets, base, [task], steps=4, lr=0.1, batch=8, seed=seed).coefficients
        for task, seed in ((ws.Task(x), 0), (ws.Task(x, torch.zeros(40, dtype=torch.long)), 0), (ws.Task(x), 1))
    ]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_half_precision_is_computed_in_single():
    base, nets = mixture()
    few = [net.to(torch.bfloat16) for net in (base, *nets)]
    wide = [net.to(torch.float32) for net in few]
    found, single = (
        merging.adamerging(some[1:], some[0], [ws.Task(inputs())], steps=3, lr=0.1) for some in (few, wide)
    )
    assert found.net.dtype == torch.bfloat16 and torch.equal(found.coefficients, single.coefficients)
    assert float((found.net.to(torch.float32) - single.net).norm() / single.net.weights.norm()) < 0.01


def test_frozen_weights_are_those_of_the_base_and_the_state_is_the_mean():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)).double()
    module[0].weight.requires_grad_(False)
    base = ws.Net.of(module)
    nets = [base + 0.5 * base.weights.randn(seed) for seed in (1, 2)]
    nets[0] = ws.Net(
        base.architecture, nets[0].weights, nets[0].state.replace({"1.running_mean": torch.full((6,), 4.0)})
    )
    found = merging.adamerging(nets, base, [ws.Task(inputs())], steps=2, lr=0.1)
    assert torch.equal(found.net.weights["0.weight"], base.weights["0.weight"])
    assert "0.weight" not in found.tensors and not torch.equal(found.net.weights["0.bias"], base.weights["0.bias"])
    assert torch.equal(found.net.state["1.running_mean"], torch.full((6,), 2.0, dtype=DOUBLE))


def test_the_cost_of_adamerging_is_said():
    base, nets = mixture()
    told = merging.adamerging_cost(nets, [ws.Task(inputs()), ws.Task(inputs(2, 8))], steps=30)
    assert (told.steps, told.batch) == (60, 16)
    assert told.bytes == 6 * sum(buffer.nbytes for buffer in base.weights.buffers)


def test_what_has_no_entropy_is_refused():
    base, nets = mixture()
    one = ws.Net.of(nn.Linear(4, 1).double())
    with pytest.raises(WeightspaceError, match="two classes"):
        merging.adamerging([one], one, [ws.Task(inputs())], steps=1)
    for wrong in ({"steps": 0}, {"batch": 0}, {"lr": 0.0}, {"start": 2.0}, {"tasks": []}):
        with pytest.raises(WeightspaceError, match="AdaMerging takes"):
            merging.adamerging(**{"nets": nets, "base": base, "tasks": [ws.Task(inputs())], **wrong})
    with pytest.raises(WeightspaceError, match="NaN or infinity"):
        merging.adamerging(nets, base, [ws.Task(inputs() * float("inf"))], steps=1)


def test_a_planted_error_is_caught(monkeypatch):
    """Coefficients that climb: the entropy rises."""
    base, nets = mixture()
    right = tuning._Mix.slopes
    monkeypatch.setattr(tuning._Mix, "slopes", lambda self, gradient: -right(self, gradient))
    found = merging.adamerging(nets, base, [ws.Task(inputs())], steps=30, lr=0.1)
    assert found.entropy > found.before
