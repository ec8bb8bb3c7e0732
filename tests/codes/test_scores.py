"""task2vec and LogME, against Fisher matrices and marginal likelihoods written out in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import nn

from weightspace.codes.scores import headless, logme, task2vec, transfer_scores
from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net
from weightspace.task.goal import gradient
from weightspace.task.task import Task

LOG = math.log(2 * math.pi)


def net(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net.of(nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)).double())


def conv() -> Net:
    torch.manual_seed(0)
    parts = [nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 16, 5), nn.ReLU(), nn.Linear(5, 3)]
    return Net.of(nn.Sequential(*parts).double())


def task(n: int = 23, seed: int = 1, shape: tuple[int, ...] = (5,), **options) -> Task:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, *shape, generator=generator, dtype=torch.float64)
    return Task(x, torch.randint(0, 3, (n,), generator=generator), **options)


# ------------------------------------------------------------------ task2vec


def units(a: Net, t: Task) -> torch.Tensor:
    """E_x E_y of every example's squared gradient, one by one, the mean over the weights of a unit."""
    x = t.example(len(t))
    total = a.weights.zeros()
    for row in x:
        f = a(row[None])
        for y, p in enumerate(f.softmax(-1)[0].tolist()):
            g = gradient(Task(row[None], torch.tensor([y])), a)
            total = total + g.map(torch.square) * p
    names = [name for name in a.weights if name.endswith("weight")][:-1]
    return torch.cat([total[name].flatten(1).mean(1) / len(t) for name in names])


@pytest.mark.parametrize("batch", [23, 7])
def test_an_embedding_is_the_fisher_information_of_every_unit(batch):
    a, t = net(), task(batch=batch)
    found = task2vec(a, t, fit=False)
    torch.testing.assert_close(found.values, units(a, t), rtol=1e-9, atol=0)
    assert {name: at.stop - at.start for name, at in found.layers.items()} == {"0.weight": 6, "2.weight": 4}
    wrong = gradient(t, a).map(torch.square)["0.weight"].mean(1)  # the square of the mean gradient
    assert (wrong / found.values[:6]).max() < 0.5


def test_filters_of_a_convolution_are_units():
    a, t = conv(), task(9, shape=(1, 6, 6), batch=4)
    found = task2vec(a, t, fit=False)
    torch.testing.assert_close(found.values, units(a, t), rtol=1e-9, atol=0)
    assert len(found.values) == 3 + 5


def test_drawn_labels_agree_with_all_labels():
    a, t = net(), task(60)
    exact, drawn = task2vec(a, t, fit=False), task2vec(a, t, fit=False, draws=200)
    assert float((drawn.values / exact.values - 1).abs().max()) < 0.3


def test_the_head_is_fitted_to_the_task():
    a, t = net(), task()
    x = headless(a)(t.example(len(t)))
    assert x.shape == (23, 4)
    torch.testing.assert_close(a.module()[-1](x), a(t.example(23)))
    turned = t.relabelled((t.labels() + 1) % 3)  # another order of the classes
    one, other = task2vec(a, t), task2vec(a, turned)
    torch.testing.assert_close(one.values, other.values, rtol=1e-4, atol=0)
    assert one.distance(other) < 1e-8 < task2vec(a, task(seed=2)).distance(one)
    assert task2vec(a, t, fit=False).distance(task2vec(a, turned, fit=False)) == pytest.approx(0, abs=1e-12)


def test_distances_of_embeddings():
    a = net()
    one, other = task2vec(a, task()), task2vec(a, task(seed=2))
    h, k = one.values.tolist(), other.values.tolist()
    u = [p / (p + q + 1e-8) for p, q in zip(h, k, strict=True)]
    v = [q / (p + q + 1e-8) for p, q in zip(h, k, strict=True)]
    cos = sum(p * q for p, q in zip(u, v, strict=True)) / math.hypot(*u) / math.hypot(*v)
    assert one.distance(other) == pytest.approx(1 - cos, rel=1e-6) == other.distance(one)
    own = one.distance(one, "asymmetric", alpha=1)
    assert one.distance(one) == pytest.approx(0, abs=1e-12) and own < 0
    assert one.distance(other, "asymmetric") == pytest.approx(one.distance(other) + 0.15 * own)
    assert float(one.prior[0]) == pytest.approx(1 / (23 * float(a.weights["0.weight"].square().mean())))


def test_scores_beside_the_distances():
    tasks = {"a": task(), "b": task(seed=2), "c": task(seed=3)}
    found = transfer_scores(tasks, {name: net(k) for k, name in enumerate(tasks)}, net())
    assert set(found) == {"task2vec", "task2vec asymmetric", "LogME"}
    assert all(matrix.shape == (3, 3) for matrix in found.values())
    assert float(found["task2vec"].diagonal().abs().max()) < 1e-6
    y = tasks["c"].labels()
    assert float(found["LogME"][1, 2]) == pytest.approx(logme(headless(net(1))(tasks["c"].example(23)), y), rel=1e-5)
    with pytest.raises(WeightspaceError, match="no network for b; give one for every task"):
        transfer_scores(tasks, {"a": net()})


# ------------------------------------------------------------------ LogME


def evidence(f: torch.Tensor, y: torch.Tensor) -> float:
    """The largest log N(y; 0, F F^T / a + I / b) over a and b."""
    n, target, gram, noise = len(f), y.numpy(), (f @ f.T).numpy(), np.eye(len(f))

    def negative(at) -> float:
        covariance = gram * np.exp(-at[0]) + noise * np.exp(-at[1])
        root = np.linalg.cholesky(covariance)
        return np.log(root.diagonal()).sum() + (np.linalg.solve(root, target) ** 2).sum() / 2 + n * LOG / 2

    found = [
        minimize(negative, start, method="Nelder-Mead", bounds=[(-18, 18)] * 2, options={"xatol": 1e-5, "fatol": 1e-9})
        for start in ((0, 0), (6, 2))
    ]
    return -min(one.fun for one in found)


@pytest.mark.parametrize("n, d", [(20, 3), (12, 12), (8, 11)])
def test_logme_is_the_largest_evidence(n, d):
    generator = torch.Generator().manual_seed(n)
    f = torch.randn(n, d, generator=generator, dtype=torch.float64)
    y = f @ torch.randn(d, generator=generator, dtype=torch.float64) + torch.randn(n, generator=generator).double()
    assert logme(f, y) == pytest.approx(evidence(f, y) / n, rel=1e-6)
    classes = torch.arange(n) % 3
    each = [evidence(f, (classes == k).double()) / n for k in range(3)]
    assert logme(f, classes) == pytest.approx(sum(each) / 3, rel=1e-5)


def test_logme_of_features_that_know_nothing():
    generator = torch.Generator().manual_seed(0)
    f, noise = torch.randn(40, 3, generator=generator).double(), torch.randn(40, generator=generator).double()
    y = noise - f @ torch.linalg.lstsq(f, noise[:, None]).solution[:, 0]  # orthogonal to all features
    alone = -(math.log(2 * math.pi * math.e * float(y.square().mean()))) / 2
    assert logme(f, y) == pytest.approx(alone, rel=1e-9)
    classes = torch.randint(0, 2, (40,), generator=generator)
    known = torch.nn.functional.one_hot(classes).double() + 0.1 * torch.randn(40, 2, generator=generator).double()
    assert logme(known, classes) > logme(f, classes) + 0.5
    assert logme(10 * known, classes) == pytest.approx(logme(known, classes), rel=1e-8)  # the scale is the prior's


# ------------------------------------------------------------------ bad input


def test_what_cannot_be_scored():
    f, y = torch.randn(6, 2), torch.tensor([0, 1, 0, 1, 0, 1])
    with pytest.raises(WeightspaceError, match=r"features \(6, 2\) and labels \(5,\)"):
        logme(f, y[:5])
    with pytest.raises(WeightspaceError, match="NaN or infinity in the features"):
        logme(f * math.nan, y)
    with pytest.raises(WeightspaceError, match="1 class among the labels"):
        logme(f, y * 0)
    with pytest.raises(WeightspaceError, match="a label is zero for all examples"):
        logme(f, y * 0.0)
    with pytest.raises(WeightspaceError, match="no linear map"):
        task2vec(Net.of(nn.Conv1d(1, 2, 3)), task())
    with pytest.raises(WeightspaceError, match="no layer below its head"):
        task2vec(Net.of(nn.Linear(5, 3).double()), task())
    with pytest.raises(WeightspaceError, match="the labels are not classes"):
        task2vec(net(), Task(torch.randn(4, 5).double(), torch.randn(4, 3).double()))
    with pytest.raises(WeightspaceError, match="label -100 is not a class"):
        task2vec(net(), Task(torch.randn(2, 5).double(), torch.tensor([0, -100])))
    with pytest.raises(WeightspaceError, match="the last linear map must come last"):
        parts = [nn.Linear(5, 4), nn.Unflatten(1, (2, 2)), nn.Conv1d(2, 3, 2), nn.Flatten()]
        task2vec(Net.of(nn.Sequential(*parts).double()), task())
    one = task2vec(net(), task())
    with pytest.raises(WeightspaceError, match="kind takes 'cosine' or 'asymmetric', got str 'plain'"):
        one.distance(one, "plain")
    with pytest.raises(WeightspaceError, match="give one probe to both"):
        one.distance(task2vec(conv(), task(9, shape=(1, 6, 6))))
