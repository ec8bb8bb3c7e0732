"""The Fisher trace and the noise of gradients, against matrices written out in float64."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from architectures import CASES, Apply, noisy
from torch import nn

from weightspace import Path, line
from weightspace.curvature import gradients
from weightspace.curvature.fisher import Unmeasured, fisher_trace, gradient_noise
from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net
from weightspace.task.goal import gradient
from weightspace.task.task import Task

SHAPES = ("mlp", "cnn_bn", "tied_residual", "shared_layer", "mha", "lstm", "siamese", "embedding_mean", "resnet_gn4")


FLAT = Apply(lambda m, x: m.a(x)[:, 0], a=nn.Linear(5, 1))


def net(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net.of(nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double())


def task(n: int = 30, **options) -> Task:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, 5, generator=generator, dtype=torch.float64)
    return Task(x, torch.randint(0, 3, (n,), generator=generator), **options)


def dense(a: Net, t: Task, softmax: bool) -> dict[str, float]:
    """tr F of every tensor, from the Jacobian of every output and the covariance of the score in the outputs."""
    x, f = t.example(len(t)), t.outputs(a)
    n, classes = len(f), f.shape[-1] if softmax else 1
    rows = [gradient(lambda b, k=k: t.forward(b, x).flatten()[k], a) for k in range(f.numel())]
    found = {}
    for name in a.weights:
        jacobian = torch.stack([row[name].flatten() for row in rows]).view(-1, classes, a.weights[name].numel())
        p = f.softmax(-1).view(-1, classes)
        middle = torch.diag_embed(p) - p[:, :, None] * p[:, None] if softmax else torch.ones(1, 1, 1).double()
        found[name] = float((jacobian * (middle @ jacobian)).sum()) / n
    return found


@pytest.mark.parametrize("name", SHAPES)
def test_the_trace_is_that_of_the_matrix(name):
    a, inputs = noisy(CASES[name], 0), CASES[name].example(1)
    softmax = name != "siamese"
    t = Task(inputs, metric="cross-entropy" if softmax else "squared", batch=3)
    found, exact = fisher_trace(t, labels="all", by_layer=True)(a), dense(a, t, softmax)
    assert found.value == pytest.approx(sum(exact.values()), rel=1e-9)
    for layer, value in exact.items():
        assert found.layers[layer].value == pytest.approx(value, rel=1e-9, abs=1e-12 * found.value), layer


@pytest.mark.parametrize("name", ["mlp", "cnn_bn", "mha", "shared_layer"])
def test_squares_are_those_of_every_example_s_gradient(name):
    a, x = noisy(CASES[name], 0), CASES[name].example(1)
    t = Task(x)
    u = torch.randn(t.outputs(a).shape, dtype=torch.float64)
    found = gradients.squares(a, t, x, [u, 2 * u], list(a.weights))
    for k in range(len(u)):
        g = gradient(lambda b, k=k: (t.forward(b, x)[k] * u[k]).sum(), a)
        for layer in a.weights:
            exact = float(g[layer].square().sum())
            assert float(found[0][layer][k]) == pytest.approx(exact, rel=1e-9, abs=1e-20), layer
            assert float(found[1][layer][k]) == pytest.approx(4 * exact, rel=1e-9, abs=1e-20), layer


@pytest.mark.parametrize("name", ["mlp", "mha"])
@pytest.mark.parametrize("metric", ["cross-entropy", "squared"])
def test_drawn_labels_give_the_trace(name, metric):
    a, t = noisy(CASES[name], 0), Task(CASES[name].example(1), metric=metric)
    exact = sum(dense(a, t, metric == "cross-entropy").values())
    means = torch.tensor([fisher_trace(t, draws=20, seed=k)(a) for k in range(40)])
    assert abs(float(means.mean()) - exact) < 5 * float(means.std()) / math.sqrt(40)
    assert fisher_trace(t, draws=9, seed=1)(a) == fisher_trace(t, draws=9, seed=1)(a) != float(means[1])


def test_the_error_is_that_of_a_mean_over_examples():
    a, whole = net(), task(4000)
    found = fisher_trace(whole, by_layer=True)(a)
    parts = torch.tensor([fisher_trace(whole.take(100, seed=k), seed=k)(a) for k in range(60)])
    assert found.error == pytest.approx(float(parts.std()) / math.sqrt(40), rel=0.3)


def test_a_linear_softmax_has_a_formula():
    a, t = Net.of(nn.Linear(5, 3).double()), task()
    x, p = t.example(30), t.outputs(a).softmax(-1)
    felt = 1 - p.square().sum(1)
    found = fisher_trace(t, labels="all", by_layer=True)(a)
    assert found.layers["weight"].value == pytest.approx(float((felt * x.square().sum(1)).mean()), rel=1e-12)
    assert found.layers["bias"].value == pytest.approx(float(felt.mean()), rel=1e-12)


def each_gradient(a: Net, t: Task) -> torch.Tensor:
    x, y = t.example(len(t)), t.labels()
    return torch.stack([gradient(Task(x[k : k + 1], y[k : k + 1]), a).flat() for k in range(len(t))])


def test_the_data_s_labels_give_the_empirical_fisher():
    a, t = net(), task(batch=7)
    expected = float(each_gradient(a, t).square().sum(1).mean())
    empirical, true = fisher_trace(t, labels="data")(a), fisher_trace(t, labels="all")(a)
    assert empirical == pytest.approx(expected, rel=1e-12)
    assert abs(empirical - true) > 0.02 * true, "the two are not the same"
    x, y = t.example(30), torch.randn(30, 3, dtype=torch.float64)
    squared = float(each_gradient(a, Task(x, y)).square().sum(1).mean())
    assert fisher_trace(Task(x, y), labels="data")(a) == pytest.approx(squared / 4, rel=1e-12)


def test_a_wrong_trace_is_seen(monkeypatch):
    """Bias left out of every layer: the oracle and the formula say so."""
    right = gradients._add

    def wrong(total, own, layer, met, slope):
        right(total, own, layer, met, slope)
        total[layer.bias] = 0 * total[layer.bias]

    monkeypatch.setattr(gradients, "_add", wrong)
    t = Task(CASES["mlp"].example(1), metric="cross-entropy")
    a = noisy(CASES["mlp"], 0)
    assert fisher_trace(t, labels="all")(a) < 0.99 * sum(dense(a, t, True).values())


def test_positions_add_up_and_those_without_a_label_are_left_out():
    torch.manual_seed(0)
    a = Net.of(nn.Linear(4, 3).double())
    x, y = torch.randn(6, 5, 4, dtype=torch.float64), torch.randint(0, 3, (6, 5))
    alone = fisher_trace(Task(x.flatten(0, 1), y.flatten()), labels="all")(a)
    assert fisher_trace(Task(x, y), labels="all")(a) == pytest.approx(5 * alone, rel=1e-12)
    half = y.clone()
    half[:, 3:] = -100
    kept = fisher_trace(Task(x[:, :3], y[:, :3]), labels="all")(a)
    for labels, by in (("all", 1e-12), ("model", 0.2)):
        assert fisher_trace(Task(x, half), labels=labels, draws=200)(a) == pytest.approx(kept, rel=by)
    g = gradient_noise(Task(x, half), by_layer=True)(a)
    assert g.square + g.trace / 6 == pytest.approx(float(gradient(Task(x, half), a).norm() ** 2), rel=1e-9)


class Twice(torch.autograd.Function):
    """2 x, written in the old way, of which torch.func knows nothing."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, g):
        return 2 * g


@pytest.mark.parametrize("middle", [Twice.apply, lambda h: 2 * h if float(h.detach().sum()) > 0 else h + h])
def test_what_cannot_be_batched_is_done_one_by_one(middle):
    def made(f) -> Net:
        torch.manual_seed(0)
        return Net.of(Apply(lambda m, x: m.b(f(m.a(x))), a=nn.Linear(5, 4), b=nn.Linear(4, 3)).double())

    expected = fisher_trace(task(6), labels="all")(made(lambda h: 2 * h))
    assert fisher_trace(task(6), labels="all")(made(middle)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.filterwarnings("ignore::weightspace.curvature.fisher.Unmeasured")
def test_a_trace_is_an_observable():
    a, b = net(0), net(1)
    seen = line(a, b).along({"fisher": fisher_trace(task()), "noise": gradient_noise(task())}, n=3)
    assert isinstance(line(a, b), Path) and seen["fisher"].shape == (3,) and (seen["fisher"] > 0).all()


def test_dropout_is_off_and_half_precision_is_near():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))
    a, t = Net.of(module), task()
    value = fisher_trace(t)(a)
    assert value == fisher_trace(t)(a)
    assert fisher_trace(t, labels="all")(a.to(torch.bfloat16)) == pytest.approx(
        fisher_trace(t, labels="all")(a), rel=0.1
    )


# ------------------------------------------------------------------ the noise of gradients


@pytest.mark.parametrize("loss", [None, F.cross_entropy])
def test_gradient_noise_is_that_of_all_gradients(loss):
    a, t = net() + 0.5 * net(1).weights, task(batch=7, loss=loss)
    a = a + 2.0 * gradient(task(), a)
    rows = each_gradient(a, task())
    found = gradient_noise(t, by_layer=True)(a)
    trace = float(rows.var(0).sum())
    square = float(rows.mean(0).square().sum()) - trace / 30
    assert found.trace == pytest.approx(trace, rel=1e-9) and found.square == pytest.approx(square, rel=1e-9)
    assert gradient_noise(t)(a) == pytest.approx(trace / square, rel=1e-9)
    assert sum(part.trace for part in found.layers.values()) == pytest.approx(trace, rel=1e-9)
    first = rows[:, : a.weights["0.weight"].numel()]
    assert found.layers["0.weight"].trace == pytest.approx(float(first.var(0).sum()), rel=1e-9)


def test_gradient_noise_is_unbiased():
    """Over all 64 pairs that eight examples give, drawn with replacement, the means are those of the eight."""
    a, t = net(), task(8)
    x, y = t.example(8), next(t.batches())[1]
    rows = each_gradient(a, t)
    pairs = [gradient_noise(Task(x[[*k]], y[[*k]]), by_layer=True)(a) for k in itertools.product(range(8), repeat=2)]
    assert sum(p.trace for p in pairs) / 64 == pytest.approx(float(rows.var(0, correction=0).sum()), rel=1e-9)
    assert sum(p.square for p in pairs) / 64 == pytest.approx(float(rows.mean(0).square().sum()), rel=1e-9)
    naive = sum(p.square + p.trace / 2 for p in pairs) / 64
    assert naive > 1.2 * float(rows.mean(0).square().sum()), "without the correction it is biased"


def test_where_no_gradient_is_seen_the_scale_is_infinite():
    a = Net.of(nn.Linear(1, 1, bias=False).double())
    x = torch.ones(4, 1, dtype=torch.float64)
    y = a(x).detach() + torch.tensor([[1.0], [-1.0], [1.0], [-1.0]], dtype=torch.float64)
    with pytest.warns(Unmeasured, match="infinite: the mean gradient of 4 examples is no larger"):
        assert gradient_noise(Task(x, y))(a) == math.inf
    with pytest.warns(Unmeasured, match="the gradient of every example is zero"):
        assert math.isnan(gradient_noise(Task(x, a(x).detach()))(a))
    found = gradient_noise(Task(x, y), by_layer=True)(a)  # says so itself, and does not warn
    assert found.scale == math.inf and found.why.startswith("infinite") and found.layers["weight"].examples == 4


def test_a_scale_beyond_the_examples_is_infinite_until_there_are_enough():
    """One weight, gradients of mean .1 and deviation 1: the scale is 100."""
    a = Net.of(nn.Linear(1, 1, bias=False).double())
    noise = torch.randn(4000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = torch.ones(4000, 1, dtype=torch.float64)
    y = a(x).detach() - (noise - noise.mean() + 0.1)
    few, many = (gradient_noise(Task(x[:n], y[:n]), by_layer=True)(a) for n in (4, 4000))
    assert many.why == "" and many.scale == pytest.approx(100, rel=0.2)
    seen = [gradient_noise(Task(x[k : k + 9], y[k : k + 9]), by_layer=True)(a) for k in range(0, 4000, 40)]
    assert sum(s.scale == math.inf for s in seen) > 40 and all(bool(s.why) == (s.scale == math.inf) for s in seen)
    assert few.examples == 4 and many.examples == 4000


# ------------------------------------------------------------------ mistakes


@pytest.mark.parametrize("wrong, match", [
    (lambda: fisher_trace(task(), labels="true"), "labels takes 'model' or 'data' or 'all'"),
    (lambda: fisher_trace(task(), draws=0), "draws is 0"),
    (lambda: fisher_trace(Task(torch.zeros(3, 5))), "without labels the loss is not known"),
    (lambda: fisher_trace(task(metric="zero-one")), "zero-one is not a negative log-likelihood"),
    (lambda: fisher_trace(Task(torch.zeros(0, 5), torch.zeros(0).long())), "no examples"),
    (lambda: fisher_trace(Task(torch.zeros(3, 5), metric="cross-entropy"), labels="data")(net()), "has no labels"),
    (lambda: fisher_trace(task())(net() + math.nan * net().weights), "NaN or infinity"),
    (lambda: fisher_trace(Task(torch.zeros(3, 5), torch.zeros(3, 2).long()))(net()), "do not fit outputs"),
    (lambda: fisher_trace(task())("net.pt"), "Net"),
    (lambda: fisher_trace(task())(Net.of(nn.Softmax(-1))), "no weights"),
    (lambda: fisher_trace(Task(torch.zeros(3, 5), metric="cross-entropy"))(Net.of(FLAT)), "axis of classes"),
    (lambda: gradient_noise(Task(torch.zeros(3, 5)))(net()), "has no labels"),
    (lambda: gradient_noise(task(1))(net()), "two or more"),
    (lambda: gradient_noise(task())(net() + math.inf * net().weights), "NaN or infinity"),
    (lambda: gradient_noise(Task(torch.zeros(0, 5), torch.zeros(0).long()))(net()), "no examples"),
], ids=range(15))  # fmt: skip
def test_mistakes_are_told_in_one_line(wrong, match):
    with pytest.raises(WeightspaceError, match=match) as told:
        wrong()
    assert "\n" not in str(told.value)
