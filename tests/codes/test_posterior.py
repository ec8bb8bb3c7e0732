import math

import pytest
import torch
from architectures import CASES
from torch import nn
from torch.distributions import Normal, kl_divergence

import weightspace as ws
from weightspace.codes.posterior import Noisy
from weightspace.net.errors import WeightspaceError


def mlp(seed=0, inputs=6, hidden=5, outputs=3):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, outputs)).double()


def conv(seed=0):
    torch.manual_seed(seed)
    layers = [nn.Conv2d(2, 4, 3, padding=1, groups=2), nn.Conv2d(4, 3, 2, stride=2), nn.Flatten(), nn.Linear(12, 2)]
    return nn.Sequential(*layers).double()


def drawn(net, task, log_variance, draws, seed=0, noisy=None):
    noisy, generator = noisy or Noisy(net, task), torch.Generator().manual_seed(seed)
    x, _ = next(task.batches(net))
    variance = net.weights.map(lambda w: torch.full_like(w, math.exp(log_variance)))
    with torch.no_grad():
        return torch.stack([noisy(x, net.weights, variance, generator) for _ in range(draws)])


def sampled(net, task, log_variance, draws):
    x, _ = next(task.batches(net))
    q = ws.Gaussian(net, net.weights.map(lambda w: torch.full_like(w, log_variance)))
    return torch.stack([q.sample(seed)(x) for seed in range(draws)])


def gap(a, b):
    """The largest difference of first and second moments of each example's outputs, in standard errors."""
    moments = []
    for f in (a, b):
        products = torch.cat([f, (f[..., :, None] * f[..., None, :]).flatten(2)], -1)
        moments.append((products.mean(0), products.var(0) / len(f)))
    (m, s), (n, t) = moments
    return float(((m - n) / (s + t).sqrt()).abs().max())


@pytest.mark.parametrize("build", [mlp, conv])
def test_each_example_sees_weights_from_the_gaussian(build):
    net = ws.Net.of(build())
    x = torch.randn(3, 6) if build is mlp else torch.randn(3, 2, 4, 4)
    task = ws.Task(x.double(), torch.tensor([0, 1, 1]))
    plain = sampled(net, task, -2.0, 600)
    assert gap(drawn(net, task, -2.0, 600), plain) < 5
    assert gap(drawn(net, task, -0.5, 600), plain) > 6


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith("ln")])
def test_without_variance_the_outputs_are_the_nets(name):
    case = CASES[name]
    net, x = ws.Net.of(case.make(0)), case.example(1)
    task = ws.Task(x)
    found = drawn(net, task, -300.0, 1)[0]
    torch.testing.assert_close(found, task.outputs(net), rtol=1e-9, atol=1e-9)


def test_only_linear_maps_of_one_position_make_independent_pairs():
    task = ws.Task(torch.randn(4, 6).double(), torch.zeros(4, dtype=torch.long))
    assert Noisy(ws.Net.of(mlp()), task).exact
    images = ws.Task(torch.randn(4, 2, 4, 4).double(), torch.zeros(4, dtype=torch.long))
    assert not Noisy(ws.Net.of(conv()), images).exact
    normed = nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 3)).double()
    assert not Noisy(ws.Net.of(normed), task).exact


def test_kl_is_that_of_torch():
    a, b = ws.Net.of(mlp(0)), ws.Net.of(mlp(1))
    q, p = (ws.Gaussian(net, net.weights.randn(k)) for k, net in enumerate((a, b)))
    both = [Normal(g.net.weights.flat(), (g.log_variance.flat() / 2).exp()) for g in (q, p)]
    assert q.kl(p) == pytest.approx(float(kl_divergence(*both).sum()), rel=1e-12)
    assert q.kl(q) == 0
    assert sum(q.kl_by_tensor(p).values()) == pytest.approx(q.kl(p))


@pytest.mark.parametrize("variance", [None, 0.3])
def test_the_gradient_of_the_kl_is_exact(variance):
    from weightspace.codes.encoding import _begin

    fit = _begin(ws.Net.of(mlp()), ws.Net.of(mlp(1)), variance, None)
    for leaf in (fit.mean, fit.log_variance):
        leaf.grad = torch.zeros_like(leaf)
    fit.pull(2.0)

    def kl():
        q, p = fit.gaussians()
        return q.kl(p)

    for leaf in (fit.mean, fit.log_variance):
        for k in (0, 7, 40):
            before, step = float(leaf.detach()[k]), 1e-6
            values = []
            for sign in (1, -1):
                leaf.data[k] = before + sign * step
                values.append(kl())
            leaf.data[k] = before
            assert float(leaf.grad[k]) == pytest.approx(2 * (values[0] - values[1]) / (2 * step), rel=1e-4, abs=1e-6)


def test_a_linear_gaussian_model_has_its_closed_form():
    """L = sum |w x - y|^2: s_i^2 = beta / (H_ii + beta / l^2), H = 2 X^T X, mu the ridge solution."""
    torch.manual_seed(0)
    x = torch.randn(40, 3).double()
    y = x @ torch.tensor([[1.0], [-2.0], [0.5]]).double() + 0.1 * torch.randn(40, 1)
    net, beta, wide = ws.Net.of(nn.Linear(3, 1, bias=False).double()), 2.0, 0.5
    found = ws.encode(net, ws.Task(x, y), beta, variance=wide, steps=1500, lr=0.03, draws=300)
    h = 2 * x.T @ x
    mean = torch.linalg.solve(h + beta / wide * torch.eye(3), 2 * x.T @ y).flatten()
    spread = beta / (h.diagonal() + beta / wide)
    torch.testing.assert_close(found.posterior.net.weights.flat(), mean, atol=0.01, rtol=0.01)
    torch.testing.assert_close(found.posterior.log_variance.flat().exp(), spread, atol=0, rtol=0.06)
    least = float((x @ mean[:, None] - y).square().sum() + (h.diagonal() * spread).sum() / 2)
    kl = float((spread / wide + mean.square() / wide - 1 - (spread / wide).log()).sum()) / 2
    assert found.length == pytest.approx(least + beta * kl, abs=4 * found.error + 0.02)


def test_digits_are_written_shorter_than_their_labels():
    task = ws.digits("train").take(200, seed=0)
    torch.manual_seed(0)
    net = ws.Net.of(nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10)))
    seen = []
    found = ws.encode(net, task, 0.3, steps=400, lr=0.02, progress=lambda done, total: seen.append((done, total)))
    assert 0 < found.length < 200 * math.log(10) and found.right > 0.9 and not found.trivial
    assert found.kl == pytest.approx(sum(found.layers.values()))
    assert seen[-1] == (400, 400)
    silent = ws.encode(net, task, 50.0, steps=60)
    assert silent.trivial and silent.kl == 0
    assert silent.length == pytest.approx(200 * math.log(10), rel=1e-4)
    again = ws.encode(net, task, 50.0, steps=60)
    assert again.loss == silent.loss


BAD = [
    ({"beta": 0.0}, "beta must be a positive number"),
    ({"steps": 0}, "steps must be"),
    ({"variance": -1.0}, "variance must be"),
]


@pytest.mark.parametrize(("how", "message"), BAD)
def test_numbers_that_make_no_sense(how, message):
    task = ws.Task(torch.randn(4, 6).double(), torch.tensor([0, 1, 2, 0]))
    with pytest.raises(WeightspaceError, match=message):
        ws.encode(ws.Net.of(mlp()), task, **{"steps": 5, **how})


def test_tasks_and_nets_that_cannot_be_written():
    net, x = ws.Net.of(mlp()), torch.randn(4, 6).double()
    y = torch.tensor([0, 1, 2, 0])
    with pytest.raises(WeightspaceError, match="no labels"):
        ws.encode(net, ws.Task(x), steps=5)
    with pytest.raises(WeightspaceError, match="labels 0..7 outside the 3 outputs"):
        ws.encode(net, ws.Task(x, torch.tensor([0, 1, 2, 7])), steps=5)
    with pytest.raises(WeightspaceError, match="NaN or infinite"):
        ws.encode(net, ws.Task(torch.full_like(x, 1e308), y), steps=5)
    with pytest.raises(WeightspaceError, match=r"NaN or infinity in 0\.weight"):
        ws.encode(net.at(net.weights * math.nan), ws.Task(x, y), steps=5)
