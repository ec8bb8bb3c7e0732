"""Relative steps against their formulas written out, their laws, and torch's conventions."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch import nn

import weightspace as ws
from weightspace.metric import optim

PATHS = {"single": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}
SHAPES = [(7, 5), (7,), (3, 2, 3, 3), (), (300, 300)]


def tensors(seed=0, dtype=torch.float64, shapes=SHAPES, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return [(scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype) for shape in shapes]


def parameters(seed=0, dtype=torch.float64, shapes=SHAPES, gradients=1):
    """Parameters with gradients."""
    params = [nn.Parameter(w) for w in tensors(seed, dtype, shapes)]
    for p, g in zip(params, tensors(gradients, dtype, shapes), strict=True):
        p.grad = g
    return params


def formula(w, g, lr, correct=True):
    """(W - lr |W| g / |g|) / sqrt(1 + lr^2), in float64."""
    w, g = w.double(), g.double()
    moved = w - lr * w.square().sum().sqrt() / g.square().sum().sqrt() * g
    return moved / math.sqrt(1 + lr**2) if correct else moved


def by_rows(w, g, lr, correct=True):
    if w.dim() < 2:
        return formula(w, g, lr, correct)
    return torch.stack([formula(w[i], g[i], lr, correct) for i in range(len(w))])


def stepped(params, steps=1, **settings):
    optimiser = optim.Fromage(params, **settings)
    for _ in range(steps):
        optimiser.step()
    return [p.detach().clone() for p in params]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("correct", [True, False])
@pytest.mark.parametrize("lr", [1e-4, 0.01, 0.7])
def test_a_step_is_the_formula(path, correct, lr):
    params = parameters()
    wanted = [formula(p.detach(), p.grad, lr, correct) for p in params]
    found = stepped(params, lr=lr, correct=correct, **PATHS[path])
    torch.testing.assert_close(found, wanted, rtol=1e-13, atol=1e-14)
    wrong = [formula(w, p.grad, 1.01 * lr, correct) for w, p in zip(tensors(0), params, strict=True)]
    assert not any(torch.allclose(f, w, rtol=1e-13, atol=1e-14) for f, w in zip(found, wrong, strict=True))


@pytest.mark.parametrize("path", PATHS)
def test_a_neuron_is_a_row(path):
    params = parameters()
    wanted = [by_rows(p.detach(), p.grad, 0.1) for p in params]
    found = stepped(params, lr=0.1, granularity="neuron", **PATHS[path])
    torch.testing.assert_close(found, wanted, rtol=1e-13, atol=1e-14)
    whole = stepped(parameters(), lr=0.1)
    same = [torch.allclose(f, w) for f, w in zip(found, whole, strict=True)]
    assert same == [w.dim() < 2 for w in whole]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("path", PATHS)
def test_all_ways_to_compute_it_agree(dtype, path):
    exact = stepped([nn.Parameter(w.double()) for w in tensors(0, dtype)], 0)
    params = parameters(dtype=dtype)
    for _ in range(5):
        exact = [formula(w, p.grad, 0.02).to(dtype).double() for w, p in zip(exact, params, strict=True)]
    found = stepped(params, 5, lr=0.02, **PATHS[path])
    unit = 6 * torch.finfo(dtype).eps
    torch.testing.assert_close([f.double() for f in found], exact, rtol=unit, atol=unit)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("granularity", ["tensor", "neuron"])
def test_other_layouts_and_complex_numbers(path, granularity):
    w, g = tensors(0, shapes=[(6, 4, 3, 3)] * 2)
    rule = by_rows if granularity == "neuron" else formula
    turned = nn.Parameter(w.clone().contiguous(memory_format=torch.channels_last))
    turned.grad = g
    part = nn.Parameter(w.clone().transpose(0, 1))
    part.grad = g.transpose(0, 1).contiguous()
    number = nn.Parameter(torch.view_as_complex(torch.stack([w, g], -1)))
    number.grad = torch.view_as_complex(torch.stack([g, w], -1))
    real = [torch.view_as_real(t.detach().clone()) for t in (number, number.grad)]
    stepped([turned, part, number], lr=0.1, granularity=granularity, **PATHS[path])
    torch.testing.assert_close(turned.detach(), rule(w, g, 0.1).contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(part.detach(), rule(w.transpose(0, 1), g.transpose(0, 1), 0.1))
    torch.testing.assert_close(torch.view_as_real(number.detach()), rule(*real, 0.1))


@pytest.mark.parametrize("path", PATHS)
def test_numbers_of_different_kinds_in_one_group(path):
    kinds = [torch.float64, torch.float32, torch.bfloat16, torch.float32]
    params = [nn.Parameter(w.to(kind)) for w, kind in zip(tensors(0, shapes=[(5, 4)] * 4), kinds, strict=True)]
    for p, g in zip(params, tensors(1, shapes=[(5, 4)] * 4), strict=True):
        p.grad = g.to(p.dtype)
    wanted = [formula(p.detach(), p.grad, 0.1) for p in params]
    for found, want in zip(stepped(params, lr=0.1, **PATHS[path]), wanted, strict=True):
        unit = 4 * torch.finfo(found.dtype).eps
        torch.testing.assert_close(found.double(), want, rtol=unit, atol=unit)


# ------------------------------------------------------------------ laws


def cosine_loss(w, x):
    """Of one layer's direction alone: its gradient is orthogonal to w."""
    return -(w * x).sum() / w.square().sum().sqrt()


@pytest.mark.parametrize("path", PATHS)
def test_on_a_scale_invariant_layer_a_step_is_a_rotation_by_atan_lr(path):
    w, lr = nn.Parameter(tensors(0, shapes=[(8, 8)])[0]), 0.01
    optimiser = optim.Fromage([w], lr=lr, **PATHS[path])
    began, angles = w.detach().norm(), []
    for k in range(2000):
        before, x = w.detach().clone(), tensors(k + 1, shapes=[(8, 8)])[0]
        optimiser.zero_grad()
        cosine_loss(w, x).backward()
        optimiser.step()
        along = (before * w.detach()).sum() / before.square().sum()
        across = (w.detach() - along * before).norm() / before.norm()
        angles.append(torch.atan2(across, along))
    assert abs(float(w.detach().norm() / began) - 1) < 1e-12
    assert float((torch.stack(angles) - math.atan(lr)).abs().max()) < 1e-12


@pytest.mark.parametrize("correct", [True, False])
def test_without_the_factor_the_norm_grows(correct):
    w, lr, steps = nn.Parameter(tensors(0, shapes=[(8, 8)])[0]), 0.02, 500
    optimiser, began = optim.Fromage([w], lr=lr, correct=correct), w.detach().norm()
    for k in range(steps):
        optimiser.zero_grad()
        cosine_loss(w, tensors(k + 1, shapes=[(8, 8)])[0]).backward()
        optimiser.step()
    grown = float(w.detach().norm() / began)
    assert grown == pytest.approx(1.0 if correct else (1 + lr**2) ** (steps / 2), rel=1e-12)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("granularity", ["tensor", "neuron"])
def test_the_length_of_a_gradient_does_not_matter(path, granularity):
    usual = stepped(parameters(dtype=torch.float32), lr=0.1, granularity=granularity, **PATHS[path])
    for scale in (1e-33, 1e-20, 1e20, 1e33):
        params = parameters(dtype=torch.float32)
        for p in params:
            p.grad *= scale
        found = stepped(params, lr=0.1, granularity=granularity, **PATHS[path])
        torch.testing.assert_close(found, usual, rtol=3e-6, atol=3e-7)


def test_it_descends():
    torch.manual_seed(0)
    module, x = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1)), torch.randn(64, 8)
    y = x[:, :1].sin()
    losses = []
    optimiser = optim.Fromage(module.parameters(), lr=0.02)
    for _ in range(100):
        optimiser.zero_grad()
        loss = (module(x) - y).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.2 * losses[0]


# ------------------------------------------------------------------ zeros, bounds


@pytest.mark.parametrize("path", PATHS)
def test_zero_weights_take_a_plain_step_and_zero_gradients_none(path):
    w, g, still = tensors(0, torch.float32, [(4, 3)] * 3)
    zero, kept, lone = (nn.Parameter(t) for t in (torch.zeros(4, 3), still.clone(), still.clone()))
    zero.grad, kept.grad = g, torch.zeros(4, 3)
    stepped([zero, kept, lone], lr=0.1, **PATHS[path])
    torch.testing.assert_close(zero.detach(), -0.1 * g, rtol=1e-6, atol=0)
    assert torch.equal(kept.detach(), still) and torch.equal(lone.detach(), still)


@pytest.mark.parametrize("path", PATHS)
def test_zero_rows(path):
    w, g = tensors(0, torch.float32, [(4, 3)] * 2)
    w[0], g[1] = 0, 0
    p = nn.Parameter(w.clone())
    p.grad = g
    stepped([p], lr=0.1, granularity="neuron", **PATHS[path])
    torch.testing.assert_close(p.detach()[0], -0.1 * g[0], rtol=1e-6, atol=0)
    assert torch.equal(p.detach()[1], w[1])
    torch.testing.assert_close(p.detach()[2:].double(), by_rows(w[2:], g[2:], 0.1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("granularity", ["tensor", "neuron"])
def test_a_bound_holds_and_binds(path, granularity):
    params = [*parameters(), nn.Parameter(torch.zeros(3, dtype=torch.float64))]
    params[-1].grad = torch.ones(3, dtype=torch.float64)
    neuron = granularity == "neuron"
    began = [optim.norm(p.detach(), neuron) for p in params]
    optimiser = optim.Fromage(params, lr=0.3, granularity=granularity, p_bound=1.5, correct=False, **PATHS[path])
    for _ in range(30):
        optimiser.step()
    ratios = [optim.norm(p.detach(), neuron) / size for p, size in zip(params[:-1], began, strict=False)]
    assert all(float(r.max()) <= 1.5 + 1e-12 for r in ratios)
    assert any(float(r.max()) > 1.5 - 1e-9 for r in ratios)
    assert float(params[-1].detach().norm()) > 0, "what began at zero has no bound"


@pytest.mark.parametrize("granularity", ["tensor", "neuron"])
def test_a_far_bound_changes_nothing(granularity):
    bound, free = (stepped(parameters(), 3, granularity=granularity, p_bound=b) for b in (1.5, None))
    assert all(torch.equal(one, other) for one, other in zip(bound, free, strict=True))


def test_a_bound_belongs_to_its_group():
    params = parameters(shapes=[(5, 5)] * 2)
    for p in params:
        p.grad = -p.detach().clone()  # every step lengthens
    groups = [{"params": params[:1], "p_bound": 1.0, "lr": 0.1}, {"params": params[1:]}]
    began = [p.detach().norm() for p in params]
    optimiser = optim.Fromage(groups, lr=0.2, correct=False)
    for _ in range(3):
        optimiser.step()
    torch.testing.assert_close(params[0].detach().norm(), began[0])
    torch.testing.assert_close(params[1].detach().norm(), 1.2**3 * began[1])
    assert list(optimiser.state) == params[:1]


# ------------------------------------------------------------------ conventions


def test_gradients_are_not_touched():
    for settings in (*PATHS.values(), {"granularity": "neuron"}, {"maximize": True}, {"p_bound": 1.0}):
        params = parameters(dtype=torch.float32)
        stepped(params, 3, **settings)
        assert all(torch.equal(p.grad, g) for p, g in zip(params, tensors(1, torch.float32), strict=True))


@pytest.mark.parametrize("path", PATHS)
def test_maximize_goes_the_other_way(path):
    up, down = parameters(), parameters()
    for p in down:
        p.grad = -p.grad
    torch.testing.assert_close(stepped(up, 3, maximize=True, **PATHS[path]), stepped(down, 3, **PATHS[path]))


def test_a_closure_runs_with_gradients():
    (p,) = parameters(shapes=[(3, 3)])
    optimiser, seen = optim.Fromage([p], lr=0.1), []

    def closure():
        seen.append(torch.is_grad_enabled())
        optimiser.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss.detach()

    first = optimiser.step(closure)
    assert float(optimiser.step(closure)) < float(first) and seen == [True, True]
    assert optimiser.step() is None


@pytest.mark.parametrize("path", PATHS)
def test_a_rate_may_be_a_tensor_and_a_scheduler_may_change_it(path):
    number, tensor = parameters(), parameters()
    one = optim.Fromage(number, lr=0.1, **PATHS[path])
    two = optim.Fromage(tensor, lr=torch.tensor(0.1, dtype=torch.float64), **PATHS[path])
    schedules = [torch.optim.lr_scheduler.ExponentialLR(o, 0.5) for o in (one, two)]
    for _ in range(3):
        for optimiser, schedule in zip((one, two), schedules, strict=True):
            optimiser.step()
            schedule.step()
    torch.testing.assert_close([*number], [*tensor])
    assert one.param_groups[0]["lr"] == pytest.approx(0.0125) and isinstance(two.param_groups[0]["lr"], torch.Tensor)


@pytest.mark.parametrize("make", [
    lambda ps: optim.Fromage(ps, lr=0.3, p_bound=1.2, correct=False),
    lambda ps: optim.Fromage(ps, lr=0.3, p_bound=1.2, granularity="neuron"),
    lambda ps: optim.Lamb(ps, lr=0.1, weight_decay=0.1),
])  # fmt: skip
def test_a_state_goes_out_and_comes_back(make, tmp_path):
    params = parameters(dtype=torch.float32)
    optimiser = make(params)
    optimiser.step()
    torch.save({"at": [p.detach() for p in params], "state": optimiser.state_dict()}, tmp_path / "kept.pt")
    kept = torch.load(tmp_path / "kept.pt", weights_only=True)
    others = [nn.Parameter(w.clone()) for w in kept["at"]]
    for p, g in zip(others, tensors(1, torch.float32), strict=True):
        p.grad = g
    second = make(others)
    second.load_state_dict(kept["state"])
    third = pickle.loads(pickle.dumps(second))
    for p, g in zip(third.param_groups[0]["params"], tensors(1, torch.float32), strict=True):
        p.grad = g
    for _ in range(5):
        optimiser.step()
        second.step()
        third.step()
    for found in (others, third.param_groups[0]["params"]):
        assert all(torch.equal(p, q) for p, q in zip(params, found, strict=True))
    fresh = make([nn.Parameter(w.clone()) for w in kept["at"]])
    assert not fresh.state, "or the round trip would say nothing"


def test_an_older_state_has_no_flags():
    """Copied, it steps as one that has them does."""
    optimiser, moved = optim.Fromage(parameters()), []
    whole = copy.deepcopy(optimiser)
    for name in ("maximize", "foreach", "fused"):
        del optimiser.param_groups[0][name]
    for each in (whole, copy.deepcopy(optimiser)):
        for parameter in each.param_groups[0]["params"]:
            parameter.grad = torch.ones_like(parameter)
        before = [parameter.detach().clone() for parameter in each.param_groups[0]["params"]]
        each.step()
        moved.append([new - old for new, old in zip(each.param_groups[0]["params"], before, strict=True)])
    assert all(map(torch.equal, *moved)) and all(bool(change.any()) for change in moved[0])


@pytest.mark.parametrize(("settings", "message"), [
    ({"lr": -0.1}, "lr is -0.1"), ({"lr": math.nan}, "lr is nan"), ({"lr": math.inf}, "lr is inf"),
    ({"lr": "much"}, "lr is 'much'"), ({"lr": torch.ones(2)}, "lr has 2 numbers"),
    ({"lr": torch.tensor(-1.0)}, "lr is tensor"), ({"lr": None}, "lr is None"),
    ({"granularity": "layer"}, "granularity is 'layer'"), ({"p_bound": 0.0}, "p_bound is 0.0"),
    ({"p_bound": math.nan}, "p_bound is nan"), ({"differentiable": True}, "differentiable"),
    ({"foreach": True, "fused": True}, "foreach and fused"),
])  # fmt: skip
def test_settings_that_cannot_be_are_refused_in_one_line(settings, message):
    checked = {"lr": 0.1, **settings}
    with pytest.raises(ws.WeightspaceError, match=message) as caught:
        unchecked(optim.Fromage)(parameters(), **checked)
    assert "\n" not in str(caught.value)
    if "differentiable" not in settings:
        optimiser = optim.Fromage(parameters())
        with pytest.raises(ws.WeightspaceError, match=message):
            optimiser.add_param_group({"params": parameters(3), **settings})
        assert len(optimiser.param_groups) == 1


def unchecked(kind):
    """The class without the shapes that tests check, to see what a user would see."""

    def make(params, **settings):
        made = object.__new__(kind)
        getattr(kind.__init__, "__wrapped__", kind.__init__)(made, params, **settings)
        return made

    return make


def test_sparse_gradients_and_differentiable_groups_are_refused():
    (p,) = parameters(shapes=[(4, 3)])
    p.grad = p.grad.to_sparse()
    with pytest.raises(ws.WeightspaceError, match="sparse"):
        optim.Fromage([p]).step()
    params = parameters()
    optimiser = optim.Fromage(params)
    optimiser.param_groups[0]["differentiable"] = True
    with pytest.raises(ws.WeightspaceError, match="differentiable"):
        optimiser.step()
    with pytest.raises(ws.WeightspaceError, match="betas"):
        optim.Lamb(params, betas=(0.9, 1.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_tensors_that_are_stepped_together_move_as_each_alone(dtype):
    shapes = [(9,), (300, 300), (5, 7), (70, 900), (3,), (), (1 << 16,), (2, 3), (256, 256), (11,)]
    together = stepped(parameters(dtype=dtype, shapes=shapes), lr=0.1, fused=True)
    alone = [stepped([p], lr=0.1, fused=True)[0] for p in parameters(dtype=dtype, shapes=shapes)]
    assert all(torch.equal(one, other) for one, other in zip(together, alone, strict=True))
    turned = [stepped([p], lr=0.1, fused=True)[0] for p in parameters(dtype=dtype, shapes=shapes[::-1])]
    assert not torch.equal(turned[-1], together[0]), "the draws do not tell tensors apart"


@pytest.mark.parametrize("sizes", [[], [5], [1 << 16], [1 << 17], [1 << 16, 1], [1, 1 << 16], [40_000] * 5, [9] * 8000])
def test_runs_of_tensors_are_all_tensors_once(sizes):
    tensors = [torch.empty(n) for n in sizes]
    runs = [tensors[at] for at in optim._together(tensors)] if sizes else []
    assert [id(t) for run in runs for t in run] == [id(t) for t in tensors]
    assert all(len(run) == 1 or 0 < sum(t.numel() for t in run) <= 1 << 16 for run in runs)


def test_nan_is_not_hidden():
    for path in PATHS.values():
        (p,) = parameters(shapes=[(4, 3)])
        p.grad[0, 0] = math.nan
        stepped([p], **path)
        assert p.isnan().all()


def test_the_private_kernel_may_be_missing(monkeypatch):
    with_it = stepped(parameters(), 3, lr=0.1)
    monkeypatch.setattr(optim, "_fused_sgd", None)
    torch.testing.assert_close(stepped(parameters(), 3, lr=0.1), with_it, rtol=1e-13, atol=1e-14)


# ------------------------------------------------------------------ norms, Lamb


@pytest.mark.parametrize("shape", [(1 << 22,), (3, 5, 70_001), (1 << 11, 1 << 11)])
def test_norms_of_large_tensors_are_exact(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    exact = x.double().square().sum().sqrt()
    assert float(optim.norm(x) / exact - 1) == pytest.approx(0, abs=4e-7)
    rows = x.double().flatten(1).square().sum(1).sqrt() if x.dim() > 1 else exact
    assert float((optim.norm(x, neuron=True).flatten() / rows - 1).abs().max()) < 4e-7
    assert x.numel() < 1 << 22 or abs(float(x.norm() / exact) - 1) > 1e-5, "torch's own is exact: drop the pieces"


def test_lamb_is_its_formula():
    params, lr, (b1, b2), eps, decay = parameters(), 0.03, (0.8, 0.95), 1e-5, 0.1
    ws_, means, squares = [p.detach().clone() for p in params], [0.0] * len(params), [0.0] * len(params)
    optimiser = optim.Lamb(params, lr=lr, betas=(b1, b2), eps=eps, weight_decay=decay)
    for t in range(1, 6):
        for k, g in enumerate(tensors(10 + t)):
            params[k].grad = g
            means[k], squares[k] = b1 * means[k] + (1 - b1) * g, b2 * squares[k] + (1 - b2) * g * g
            u = means[k] / (1 - b1**t) / ((squares[k] / (1 - b2**t)).sqrt() + eps) + decay * ws_[k]
            ws_[k] = formula(ws_[k], u, lr, correct=False)
        optimiser.step()
    torch.testing.assert_close([p.detach() for p in params], ws_, rtol=1e-7, atol=1e-7)
    up, down = parameters(), parameters()
    for p in down:
        p.grad = -p.grad
    for ps, most in ((up, True), (down, False)):
        optim.Lamb(ps, maximize=most).step()
    torch.testing.assert_close(up, down)
