"""What the module held by requires_grad=False stays bit by bit, and is not counted."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import weightspace as ws
from weightspace.codes import encoding
from weightspace.flows.result import Flow
from weightspace.net.net import Net
from weightspace.net.seeds import derived

FROZEN = {"a layer": ("0.",), "parts of layers": ("0.weight", "2.bias"), "the last layer": ("4.",)}
X = torch.randn(48, 4, generator=torch.Generator().manual_seed(0))
TASK = ws.Task(X, (X[:, 0] > 0).long() + (X[:, 1] > 0).long())
OLD = TASK.take(6)
METRICS = {
    "euclidean": ws.Euclidean,
    "adam": ws.Adam,
    "relative": lambda: ws.Relative("neuron"),
    "spectral": ws.Spectral,
    "dual": lambda: ws.Pullback(OLD),
    "fisher": lambda: ws.Pullback(OLD, "fisher"),
    "gltr": lambda: ws.Pullback(OLD, solver="gltr"),
    "layer": lambda: ws.Pullback(OLD, solver="layer"),
    "null space": lambda: ws.NullSpace.of(ws.Adam(), network(("none",)), OLD, 0.1),
    "kronecker": lambda: ws.Pullback(OLD, solver="kronecker"),
}


def network(frozen: tuple[str, ...] = ("0.",), seed: int = 0) -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
    for name, p in module.named_parameters():
        p.requires_grad_(not name.startswith(frozen))
    return Net.of(module)


def alone(net: Net, seed: int) -> Net:
    """The net with noise on what is free."""
    noise = net.weights.randn(seed)
    return net.at(net.weights.replace({n: w + 0.1 * noise[n] for n, w in net.weights.items() if n not in net.frozen}))


def stays(before: Net, after: Net) -> bool:
    """Whether what is frozen is the same bit by bit, and something else is not."""
    moved = {n for n, w in before.weights.items() if not torch.equal(w, after.weights[n])}
    return bool(moved) and not moved & before.frozen


GOALS = {
    "learn": lambda net: ws.learn(TASK),
    "a task": lambda net: TASK,
    "drift": lambda net: ws.drift(0),
    "toward": lambda net: ws.flows.toward(network(seed=1)),
    "ewc": lambda net: ws.flows.ewc(network(seed=1), TASK),
    "spread": lambda net: ws.flows.spread([network(seed=1)], TASK),
    "harden": lambda net: ws.flows.harden(TASK, 0.1, steps=2),
    "neighbourhood": lambda net: ws.neighbourhood(TASK, ws.Relative(), 0.1),
    "norm": lambda net: lambda w: sum(t.square().sum() for t in w.weights.values()),
}


@pytest.mark.parametrize("goal", GOALS)
@pytest.mark.parametrize("metric", ["adam", "spectral", "dual"])
def test_under_every_goal(goal, metric):
    net = network()
    assert stays(net, ws.flow(net, GOALS[goal](net), METRICS[metric](), steps=2, size=0.01)[-1])


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("frozen", ["a layer", "the last layer"])
def test_under_every_metric(metric, frozen):
    net = network(FROZEN[frozen])
    flow = ws.flow(net, ws.learn(TASK), METRICS[metric](), steps=2, size=0.01)
    assert isinstance(flow, Flow) and len(flow.log) == 2 and stays(net, flow[-1])


@pytest.mark.parametrize("metric", [m for m in METRICS if m not in ("layer", "kronecker")])
def test_parts_of_layers(metric):
    net = network(FROZEN["parts of layers"])
    assert stays(net, ws.flow(net, ws.learn(TASK), METRICS[metric](), steps=2, size=0.01)[-1])


@pytest.mark.parametrize("repair", ["gauss-newton", "layer", "descent"])
@pytest.mark.parametrize("structure", ["unstructured", "2:4", "neuron"])
def test_pruning_cuts_a_share_of_the_others(structure, repair):
    net = network()
    last = ws.flow(net, ws.prune(0.5, structure, repair=repair), ws.Pullback(TASK), steps=4, size=0.01)[-1]
    assert stays(net, last)
    free = torch.cat([last.weights[n].flatten() for n in ("2.weight", "4.weight")])
    assert float((free == 0).double().mean()) == pytest.approx(0.5, abs=0.02)


def test_a_mask_within_a_tensor_holds_under_a_metric_that_fills_tensors():
    net = network(())
    mask = net.weights.map(torch.ones_like)
    mask["2.weight"][:2, 3] = 0
    last = ws.flow(net, ws.learn(TASK), ws.Spectral(), steps=2, size=0.01, mask=mask)[-1]
    assert torch.equal(last.weights["2.weight"][:2, 3], net.weights["2.weight"][:2, 3])
    assert not torch.equal(last.weights["2.weight"][2:], net.weights["2.weight"][2:])


def test_move_moves_them():
    net = network()
    for last in (
        ws.flow(net, ws.learn(TASK), ws.Adam(), steps=2, size=0.01, frozen="move")[-1],
        ws.flow(net.thawed(), ws.learn(TASK), ws.Pullback(OLD), steps=2, size=0.01)[-1],
        ws.perturb(net, 0.1, frozen="move"),
        ws.perturb(net, 0.1, names=["0.weight"]),
    ):
        assert not torch.equal(last.weights["0.weight"], net.weights["0.weight"])
    assert net.frozen == {"0.weight", "0.bias"} and not net.thawed().frozen


def test_the_module_given_back_is_frozen_as_it_was():
    module = ws.flow(network(), ws.learn(TASK), ws.Adam(), steps=1, size=0.01)[-1].module()
    assert [p.requires_grad for p in module.parameters()] == [False, False, True, True, True, True]
    assert [p.requires_grad for p in network().free().module().parameters()] == [False, False, True, True, True, True]


@pytest.mark.parametrize("kind", ["noise", "quantise", "prune"])
def test_a_perturbation_leaves_them(kind):
    assert stays(network(), ws.perturb(network(), 0.2, kind=kind))


def test_stability_and_width_are_of_the_others():
    net = network(("0.", "2."))
    step = ws.stability(net, TASK, noise=(0.3,), draws=1, proven=False).steps[0]
    outputs = TASK.outputs(net).double()
    away = (
        TASK.outputs(ws.perturb(net, 0.3, seed=derived(0, "noise", 0, 0), names=["4.weight", "4.bias"])).double()
        - outputs
    )
    assert step.moved[0] == pytest.approx(float(away.norm() / outputs.norm()), rel=1e-6)
    few, every = (ws.width(net, ws.Task(X), 0.1, draws=1, frozen=how) for how in ("stay", "move"))
    assert 0 < every < few


def test_the_metric_is_that_of_the_others():
    net, solvers = network().double(), ("dual", "gltr")
    task = ws.Task(OLD.example(6).double(), torch.zeros(6).long())
    j = ws.curvature.jacobian(net, task).dense()[:, 40:]
    expected = torch.linalg.eigvalsh(j.T @ j / 6).flip(0)[:5]
    for metric in (ws.Pullback(task, solver=s) for s in solvers):
        assert torch.allclose(metric.spectrum(net, 5), expected, rtol=1e-6)
        moved = net.weights.zeros().replace({"0.weight": torch.ones(8, 4)})
        assert float(metric.norm(net, moved)) == pytest.approx(metric.drift(net + 1e-6 * moved, net) / 1e-6, rel=1e-4)


def test_averages():
    net = network()
    group = ws.Symmetry.of(net, X[:2])
    for nets in ([net, alone(net, 1)], [net, alone(net, 1), alone(net, 2)]):
        assert stays(net, ws.mean(nets, group)) and stays(net, ws.mean(nets, group, TASK))
        assert stays(net, ws.flows.swag(nets, 1)[0])
    with pytest.raises(ws.WeightspaceError, match='frozen, and differs.*frozen="move"'):
        ws.mean([net, network(seed=1)], group)
    assert torch.allclose(
        ws.mean([net, network(seed=1)], group, frozen="move").weights.flat(),
        ws.mean([net.thawed(), network(seed=1).thawed()], group).weights.flat(),
    )


def test_alignment_moves_their_units_and_keeps_the_function():
    net = network(seed=1)
    aligned = ws.Symmetry.of(net, X[:2]).align(net, to=network())
    assert torch.allclose(aligned(X), net(X), atol=1e-5)
    assert not torch.equal(aligned.weights["0.weight"], net.weights["0.weight"])


@pytest.mark.filterwarnings("ignore:the network is not at a minimum")
def test_a_code_holds_the_others_alone():
    net = network()
    free = {"2.weight", "2.bias", "4.weight", "4.bias"}
    code = encoding.encode(net, TASK, 0.01, steps=3)
    assert set(code.layers) == free and set(code.posterior.net.weights) == free
    found = ws.information(net, TASK)
    assert set(found.layers) == free and sum(found.layers.values()) == pytest.approx(found.value)
    drawn = code.posterior.sample(0)
    assert torch.equal(drawn.state["0.weight"], net.weights["0.weight"]) and drawn(X).shape == (48, 3)


def test_a_bend_between_networks_leaves_what_they_share():
    net = network()
    path = ws.curve(net, alone(net, 1), TASK, steps=3)
    assert torch.equal(path(0.4).weights["0.weight"], net.weights["0.weight"])


@pytest.mark.parametrize(
    ("ask", "what"),
    [
        (lambda net: ws.flow(net, ws.learn(TASK), ws.Adam()), 'frozen="move"'),
        (lambda net: ws.flow(net, ws.prune(0.5), ws.Pullback(OLD)), 'frozen="move"'),
        (lambda net: ws.perturb(net), 'frozen="move"'),
        (lambda net: ws.width(net, TASK), 'frozen="move"'),
        (lambda net: encoding.encode(net, TASK), "thawed"),
        (lambda net: ws.information(net, TASK), "thawed"),
        (lambda net: ws.flow(net, ws.learn(TASK), ws.Adam(), frozen="no"), "stay"),
    ],
)
def test_where_all_are_frozen_nothing_could_move(ask, what):
    with pytest.raises(ws.WeightspaceError, match=what):
        ask(network(("",)))


def test_questions_that_only_read_do_not_care():
    net, same = network(("",)), network(())
    assert torch.equal(ws.gradient(TASK, net).flat(), ws.gradient(TASK, same).flat())
    assert ws.fisher_trace(TASK)(net) == ws.fisher_trace(TASK)(same)
    assert float((network(("",), 1) - net).norm()) == float((network((), 1) - same).norm())
    assert str(ws.Symmetry.of(net, X[:2])) == str(ws.Symmetry.of(same, X[:2]))


def test_a_flow_that_forgot_them_is_seen(monkeypatch):
    monkeypatch.setattr("weightspace.flows.stepper._holding", lambda net, mask: mask)
    net = network()
    assert not stays(net, ws.flow(net, ws.learn(TASK), ws.Adam(), steps=2, size=0.01)[-1])
