"""`constrain`, `released` and `project`: ordinary modules and state dicts; networks; and what is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import weightspace as ws
from tests.constraints.kinds import KINDS, SIDE, drawn
from weightspace.constraints.constraining import constrain, forms, kind, kinds_of, project, released, with_weights
from weightspace.constraints.matrices import LowRank
from weightspace.constraints.ordered import Ordered
from weightspace.constraints.shared import Circulant, SharedBlocks, Symmetric
from weightspace.net.errors import ArchitectureMismatch, WeightspaceError
from weightspace.net.net import Net


def module(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    layers = nn.Linear(4, SIDE), nn.Tanh(), nn.Linear(SIDE, SIDE), nn.Tanh(), nn.Linear(SIDE, 3)
    return nn.Sequential(*layers).double()


def sortable(form):
    return Ordered(form.key, form.seed, sort=True) if isinstance(form, Ordered) else form


X = drawn(9, 12, 4)
every = pytest.mark.parametrize("name", KINDS)


@every
def test_a_module_keeps_its_form_while_it_is_trained_saved_and_copied(name):
    form = sortable(KINDS[name])
    made = constrain(module(), {"2.weight": form})
    assert kinds_of(made) == {"2.weight": form} and isinstance(made[2], nn.Linear)
    optimiser = torch.optim.Adam(made.parameters(), lr=0.05)
    before = made[2].weight.detach().clone()
    for _ in range(5):
        optimiser.zero_grad()
        (made(X) - 1).square().mean().backward()
        optimiser.step()
    weight = made[2].weight.detach()
    near = forms(copy.deepcopy(made))["2.weight"]
    free = near.right_inverse(weight)
    again = near(*free) if isinstance(free, tuple) else near(free)
    assert torch.allclose(again, weight, atol=1e-8) and float((weight - before).norm()) > 1e-2
    other = constrain(module(1), {"2.weight": form})
    other.load_state_dict(made.state_dict())
    copied = copy.deepcopy(made)
    for twin in (other, copied):
        assert torch.equal(twin(X), made(X))
    with torch.no_grad():
        next(copied.parameters()).zero_()
    assert not torch.equal(copied(X), made(X))


@every
def test_a_network_in_free_parameters_is_the_nearest_one_and_goes_back_and_forth(name):
    form = sortable(KINDS[name])
    net = Net.of(module())
    near, tied = project(net, {"2.weight": form}), constrain(net, {"2.weight": form})
    assert torch.allclose(near(X), tied(X), atol=1e-9)
    assert float((project(near, {"2.weight": form}) - near).norm()) < 1e-8
    assert [n for n in near.weights if not torch.equal(near.weights[n], net.weights[n])] == ["2.weight"]
    plain = released(tied)
    assert {*plain.weights} == {*net.weights} and torch.equal(plain(X), tied(X)) and not kinds_of(plain)
    if name != "low rank":  # whose factors may have been others
        assert float((with_weights(tied, plain) - tied).norm()) < 1e-6
    moved = tied + 0.1 * tied.weights.randn(0)
    assert torch.allclose(Net.of(moved.module())(X), moved(X))
    assert torch.allclose(with_weights(tied, released(moved))(X), moved(X), atol=1e-8)
    free = sum(w.numel() for n, w in tied.weights.items() if "parametrizations" in n)
    assert free == form.size((SIDE, SIDE))


def test_a_weight_that_is_assigned_becomes_its_nearest():
    made = constrain(module(), {"2.weight": "symmetric"})
    made[2].weight = drawn(1)
    assert torch.allclose(made[2].weight, (drawn(1) + drawn(1).T) / 2)


def test_patterns_name_several_weights_and_a_name_comes_before_a_pattern():
    made = constrain(module(), {"*.weight": "low-rank:2"})
    assert kinds_of(made) == {f"{k}.weight": LowRank(2) for k in (0, 2, 4)}
    with pytest.raises(WeightspaceError, match="2.weight is named twice, as symmetric and as low-rank:2"):
        constrain(module(), {"2.weight": "symmetric", "*.weight": "low-rank:2"})


def test_two_weights_of_a_layer_are_released_one_module_at_a_time():
    made = constrain(module(), {"2.*": "sorted:first"})
    twin = copy.deepcopy(made)
    parametrize.register_parametrization(made[0], "weight", nn.Tanh())
    plain = released(made)
    assert type(plain[2]) is nn.Linear and parametrize.is_parametrized(plain[0], "weight")
    assert kinds_of(twin) == {"2.weight": Ordered(sort=True), "2.bias": Ordered(sort=True)} or len(kinds_of(twin)) == 2
    assert twin[2].weight.shape == (SIDE, SIDE) and torch.equal(twin[2].bias, plain[2].bias)
    half = constrain(released(copy.deepcopy(twin)), {"2.weight": "circulant"})
    parametrize.register_parametrization(half[2], "bias", nn.Tanh())
    bias = half[2].bias.detach().clone()
    released(half)
    assert torch.equal(half[2].bias, bias) and isinstance(half[2].weight, nn.Parameter)


def test_frozen_weights_stay_frozen():
    made = module()
    made[2].weight.requires_grad_(False)
    constrain(made, {"2.weight": "low-rank:2"})
    assert Net.of(made).frozen == {f"2.parametrizations.weight.original{k}" for k in (0, 1)}
    assert not released(made)[2].weight.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_dtypes(dtype):
    made = constrain(module().to(dtype), {"2.weight": "orthogonal", "0.weight": "asymmetric:0.25"})
    assert made[2].weight.dtype == made[0].weight.dtype == dtype
    net = Net.of(constrain(module(), {"2.weight": "orthogonal", "0.weight": "asymmetric:0.25"})).to(torch.float32)
    assert net(X.float()).dtype == torch.float32


def test_recurrent_and_attention_layers_compute_with_the_constrained_weight():
    x = torch.randn(3, 2, SIDE, generator=torch.Generator().manual_seed(0))
    for layer, name in ((nn.LSTM(SIDE, SIDE), "weight_hh_l0"), (nn.MultiheadAttention(SIDE, 2), "in_proj_weight")):
        constrain(layer, {name: "low-rank:2"})
        inputs = (x,) if name == "weight_hh_l0" else (x, x, x)
        before = layer(*inputs)[0]
        with torch.no_grad():
            layer.get_parameter(f"parametrizations.{name}.original0").zero_()
        assert not torch.allclose(layer(*inputs)[0], before, atol=1e-4)


def test_a_recurrent_layer_is_copied_after_it_was_called():
    x = torch.randn(2, 3, SIDE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    layer = constrain(nn.LSTM(SIDE, SIDE, dtype=torch.float64), {"weight_hh_l0": "low-rank:2"})
    wanted = layer(x)[0].detach()
    net = Net.of(layer)
    assert torch.equal(net(x)[0], wanted)
    ws.gradient(lambda f: f(x)[0].sum(), net)
    assert all(t.device.type == "meta" and t.grad_fn is None for t in net.architecture._flat_weights)
    for copied in (net.module(), net.live(), released(net).module(), net.thawed(), net.to(torch.float64)):
        torch.testing.assert_close(copied(x)[0].detach(), wanted)
    assert torch.equal(net(x)[0], wanted) and not torch.equal(net.at(net.weights * 2.0)(x)[0], wanted)


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("circulant", Circulant()),
        ("block-circulant:4", Circulant((4,))),
        ("doubly-block-circulant:4x8", Circulant((4, 8))),
        ("low-rank:12", LowRank(12)),
        ("shared-blocks:2x4", SharedBlocks(2, 4)),
        ("shared-entries:2x4", SharedBlocks(2, 4, "entries")),
        ("symmetric", Symmetric()),
    ],
)
def test_kinds_are_read_from_their_texts(text, made):
    assert kind(text) == made and str(made) == text and kind(made) is made


@pytest.mark.parametrize("name", [n for n in KINDS if n not in ("masked", "ordered given")])
def test_every_kind_is_read_from_what_it_prints(name):
    assert str(kind(str(KINDS[name]))) == str(KINDS[name])


@pytest.mark.parametrize("text", ["circular", "low-rank", "low-rank:x", "asymmetric:1.5", "", "block-circulant:2x2"])
def test_other_texts_are_refused(text):
    with pytest.raises(WeightspaceError, match="unknown kind of constraint .*; give circulant, "):
        kind(text)


def tied():
    made = nn.Sequential(nn.Linear(SIDE, SIDE), nn.Linear(SIDE, SIDE))
    made[1].weight = made[0].weight
    return made


BAD = {
    "a name that is not there": (module, {"2.weights": "circulant"}, "no weight is called '2.weights'"),
    "a pattern of nothing": (module, {"conv*": "circulant"}, "no weight is called 'conv\\*'"),
    "no name": (module, {}, "one at least"),
    "a name that is not text": (module, {2: "circulant"}, "the name of a weight is text, got 2"),
    "a kind that is not there": (module, {"2.weight": "circular"}, "unknown kind"),
    "a shape that does not fit": (module, {"0.weight": "circulant"}, "0.weight is 6 x 4, and a circulant"),
    "a rank too large": (module, {"0.weight": "low-rank:5"}, "at most 4, not 5"),
    "a weight constrained already": (
        lambda: constrain(module(), {"2.weight": "circulant"}),
        {"2.weight": "symmetric"},
        "constrained or parametrised already",
    ),
    "a free parameter": (
        lambda: constrain(module(), {"2.weight": "circulant"}),
        {"2.parametrizations.weight.original": "sorted"},
        "a free parameter of a weight",
    ),
    "a tied weight": (tied, {"0.weight": "circulant"}, "0.weight is tied to 1.weight"),
    "numbers that are complex": (
        lambda: nn.ModuleDict({"2": nn.Linear(SIDE, SIDE, dtype=torch.complex64)}),
        {"2.weight": "circulant"},
        "2.weight holds torch.complex64",
    ),
    "no values": (lambda: module().to("meta"), {"2.weight": "circulant"}, "on the meta device"),
    "not a number": (
        lambda: nn.Sequential(nn.Linear(2, 2, dtype=torch.float64)).apply(
            lambda m: m.weight.data.fill_(float("nan")) if hasattr(m, "weight") else None
        ),
        {"0.weight": "circulant"},
        "0.weight holds NaN",
    ),
}


@pytest.mark.parametrize("dense", [nn.Linear(4, 5), nn.Linear(5, 4, bias=False), nn.Sequential(nn.Linear(4, 4))])
def test_weights_of_another_network_are_refused(dense):
    net = constrain(Net.of(nn.Linear(4, 4)), {"weight": "circulant"})
    with pytest.raises(ArchitectureMismatch, match="not the same architecture"):
        with_weights(net, Net.of(dense))


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_constrained_is_refused_and_nothing_changes(name):
    make, kinds, match = BAD[name]
    made = make()
    before = str(made), [*made.state_dict()]
    with pytest.raises(WeightspaceError, match=match) as told:
        constrain(
            made, {**({"4.bias": "sorted"} if "4.bias" in dict(made.named_parameters()) and kinds else {}), **kinds}
        )
    assert "\n" not in str(told.value)
    assert (str(made), [*made.state_dict()]) == before


# ------------------------------------------------------------------ what the library does with such networks


def example(form="low-rank:3") -> tuple[Net, ws.Task]:
    net, task = ws.demo.example()
    return constrain(net, {"1.weight": form}), task


@pytest.mark.parametrize("form", ["toeplitz", "low-rank:3", "orthogonal", "asymmetric:0.25", "sorted:mean"])
def test_flows_metrics_and_codes_work_in_the_free_parameters(form):
    net, task = example(form)
    metric = ws.Pullback(task.take(8))
    step = metric.step(net, ws.gradient(task, net), length=0.1)
    assert {*step.vector} == {*net.weights}
    learned = ws.flow(net, ws.learn(task, batch=60), ws.Adam(), steps=5, size=0.01)[-1]
    assert float(task(learned)) < float(task(net)) and kinds_of(learned) == kinds_of(net)
    code = ws.encode(net, task, steps=3)
    assert code.kl >= 0 and {*code.posterior.net.weights} == {*net.weights}


def test_a_low_rank_network_is_pruned_in_its_factors():
    net, task = example()
    path = ws.flow(net, ws.prune(0.3), ws.Pullback(task.take(8)), steps=2)
    pruned = path[-1].weights
    assert abs(ws.flows.sparsity(pruned) - 0.3) < 0.01 and bool(
        (pruned["1.parametrizations.weight.original0"] == 0).any()
    )


def test_the_line_between_two_constrained_networks_stays_in_the_form():
    nets = [constrain(ws.demo.example(seed)[0], {"1.weight": "orthogonal"}) for seed in (0, 1)]
    middle = released(ws.line(*nets)(0.5)).weights["1.weight"]
    assert torch.allclose(middle @ middle.T, torch.eye(16), atol=1e-5)
