"""Gauss-Newton, Hessian and Fisher information against matrices written out in float64."""

from __future__ import annotations

import importlib
import math
import os
import sys
import warnings

import pytest
import torch
import torch.nn.functional as F
from architectures import CASES, noisy
from torch import Tensor, nn

from weightspace.curvature import curvature
from weightspace.curvature.curvature import (
    blocks,
    curvature_diagonal,
    fisher_information,
    gauss_newton,
    graph_bytes,
    hessian,
)
from weightspace.curvature.outputs import output_hessian
from weightspace.linear.estimate import OperatorError
from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net
from weightspace.net.state import math_attention
from weightspace.net.weights import Weights
from weightspace.task.examples import TaskError
from weightspace.task.task import Task

PRODUCTS = (
    *(
        "mlp",
        "mlp_batchnorm",
        "shared_layer",
        "glu",
        "lora",
        "weight_norm",
        "bilinear",
        "siamese",
        "dict_in",
        "dict_out",
    ),
    *("cosine_head", "tied_autoencoder_tanh", "cnn_bn", "resnet_gn4", "mha", "lstm", "embedding_mean", "tied_residual"),
)
DIAGONALS = (
    *("mlp", "cnn_bn", "shared_layer", "tied_residual", "mha", "embedding_mean", "resnet_gn4", "siamese", "einsum"),
    *("dict_in", "weight_norm"),
)
N = 11


def net(*sizes: int, seed: int = 0) -> Net:
    torch.manual_seed(seed)
    sizes = sizes or (4, 5, 3)
    parts = [part for m, n in zip(sizes, sizes[1:], strict=False) for part in (nn.Linear(m, n), nn.Tanh())]
    return Net.of(nn.Sequential(*parts[:-1]).double())


def inputs(n: int = N, seed: int = 1) -> Tensor:
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labels(n: int = N, classes: int = 3) -> Tensor:
    return torch.randint(classes, (n,), generator=torch.Generator().manual_seed(2))


def soft(n: int = N) -> Tensor:
    raw = torch.rand(n, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return raw / raw.sum(1, keepdim=True)


def task(**how) -> Task:
    return Task(inputs(), labels(), **{"batch": 4, **how})


def case(name: str) -> tuple[Net, Task]:
    """A generic network with batches of which the last is shorter."""
    a, x = noisy(CASES[name], 0), CASES[name].example(1)
    single = Task(x, metric="squared").outputs(a).ndim < 2
    return a, Task(x, metric="squared" if single else "cross-entropy", batch=3)


def dense(a: Net, t: Task) -> Tensor:
    """sum J^T H J from the Jacobian of every output, H = diag p - p p^T or 2."""
    flat = a.weights.flat().detach().requires_grad_()
    out = t.output(a.at(a.weights.shaped(flat))(t.example(len(t))))
    classes = out.shape[-1] if t.metric == "cross-entropy" else 1
    p = out.detach().softmax(-1).reshape(-1, classes)
    middle = torch.diag_embed(p) - p[:, :, None] * p[:, None] if classes > 1 else torch.full_like(p[..., None], 2.0)
    rows = [torch.autograd.grad(o, flat, retain_graph=True)[0] for o in out.flatten()]
    j = torch.stack(rows).view(-1, classes, len(flat))
    return torch.einsum("tka,tkl,tlb->ab", j, middle, j)


def bent(f, at: Tensor) -> Tensor:
    """The Hessian of f, twice backward."""
    return torch.autograd.functional.hessian(f, at)


def off(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_are_those_of_the_matrix(name):
    a, t = case(name)
    v, exact = a.weights.randn(1).flat(), dense(a, t)
    assert off(gauss_newton(a, t) @ v, exact @ v) < 1e-12
    wrong = exact + 1e-9 * torch.outer(v, v) * float(exact.norm()) / len(v)
    assert off(gauss_newton(a, t) @ v, wrong @ v) > 1e-12, "a matrix that is nearly right must be told apart"


@pytest.mark.parametrize("name", DIAGONALS)
def test_the_diagonal_is_that_of_the_matrix(name):
    a, t = case(name)
    found, exact = curvature_diagonal(a, t).flat(), dense(a, t).diagonal()
    assert off(found, exact) < 1e-12
    assert float((found - exact).abs().max()) < 1e-12 * float(exact.max())
    assert torch.equal(gauss_newton(a, t).diagonal()[0], found)


def summed(a: Net, t: Task, flat: Tensor) -> Tensor:
    n = a.at(a.weights.shaped(flat))
    return torch.stack([t.summed(t.output(n(x)), y)[0] for x, y in t.batches()]).sum()


def squared_huber(f: Tensor, y: Tensor) -> Tensor:
    return F.huber_loss(f, y, reduction="none", delta=0.3).sum(1)


def wave(f: Tensor, y: Tensor) -> Tensor:
    return torch.sin(2 * f).sum(1) * y.sum(1)


WEIGHT = torch.tensor([0.5, 1.5, 2.0], dtype=torch.float64)
LOSSES = {
    "cross-entropy": ({}, labels()),
    "soft labels": ({"metric": "cross-entropy"}, soft()),
    "not summing to one": ({"metric": "cross-entropy"}, 2 * soft()),
    "some without a label": ({}, labels().index_fill(0, torch.tensor([1, 6]), -100)),
    "class weights": ({"loss": nn.CrossEntropyLoss(weight=WEIGHT)}, labels()),
    ".. without a label": (
        {"loss": nn.CrossEntropyLoss(weight=WEIGHT)}, labels().index_fill(0, torch.tensor([1, 6]), -100)
    ),
    ".. of soft labels": ({"loss": nn.CrossEntropyLoss(weight=WEIGHT)}, soft()),
    ".. smoothed": ({"loss": nn.CrossEntropyLoss(weight=WEIGHT, label_smoothing=0.2)}, labels()),
    ".. smoothed, soft": ({"loss": nn.CrossEntropyLoss(weight=WEIGHT, label_smoothing=0.2)}, soft()),
    ".. of every example": ({"metric": nn.CrossEntropyLoss(weight=WEIGHT, reduction="none")}, labels()),
    "torch's cross-entropy": ({"loss": F.cross_entropy}, labels()),
    "squared": ({}, soft()),
    "squared, of classes": ({"metric": "squared"}, labels()),
    "torch's squared": ({"loss": F.mse_loss}, soft()),
    "bernoulli": ({"loss": F.binary_cross_entropy_with_logits}, (soft() > 0.3).double()),
    "bernoulli, weighed": ({"loss": nn.BCEWithLogitsLoss(WEIGHT, pos_weight=WEIGHT.flip(0))}, soft()),
    "huber": ({"metric": squared_huber}, soft()),
    "not convex": ({"metric": wave}, soft()),
    "l1": ({"metric": "l1"}, soft()),
}  # fmt: skip


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_has_its_own_curvature(name):
    how, y = LOSSES[name]
    a, t = net(4, 2, 3), Task(inputs(), y, batch=4, **how)
    flat = a.weights.flat().clone()
    whole = bent(lambda w: summed(a, t, w), flat)
    exact = torch.zeros_like(whole)
    for x, part in t.batches():
        j = torch.func.jacrev(lambda w, x=x: a.at(a.weights.shaped(w))(x))(flat).flatten(0, 1)
        f = a(x)
        middle = bent(lambda f, part=part: t.summed(f, part)[0], f).reshape(f.numel(), -1)
        exact += j.T @ middle @ j
    assert torch.allclose(gauss_newton(a, t).dense(), exact, rtol=0, atol=1e-12)
    assert torch.allclose(hessian(a, t).dense(), whole, rtol=0, atol=1e-12)
    assert torch.allclose(curvature_diagonal(a, t).flat(), exact.diagonal(), rtol=0, atol=1e-12)
    if name not in ("l1", "not convex"):
        assert off(2 * gauss_newton(a, t).dense(), exact) > 0.5


def test_the_sum_is_not_the_mean():
    a, t = net(), task()
    assert torch.allclose(hessian(a, t).dense(), hessian(a, task(aggregate="sum")).dense())
    twice = Task(inputs().repeat(2, 1), labels().repeat(2), batch=4)
    assert torch.allclose(gauss_newton(a, twice).dense(), 2 * gauss_newton(a, t).dense())


@pytest.mark.parametrize("batch", [1, 4, 100])
@pytest.mark.parametrize("memory", [0, 4000, 1 << 30])
def test_neither_batches_nor_memory_make_a_difference(batch, memory, monkeypatch):
    monkeypatch.setattr(curvature, "_GRAIN", 0)
    monkeypatch.setattr(curvature, "_LEAST", batch)
    a, t = net(), task(batch=batch)
    exact = dense(a, Task(inputs(), metric="cross-entropy"))
    v = torch.stack([a.weights.randn(k).flat() for k in range(2)], 1)
    assert off(gauss_newton(a, t, memory=memory) @ v, exact @ v) < 1e-12
    assert off(curvature_diagonal(a, t).flat(), exact.diagonal()) < 1e-12
    whole = [torch.autograd.functional.vhp(lambda w: summed(a, t, w), a.weights.flat(), u)[1] for u in v.T]
    assert off(hessian(a, t, memory=memory) @ v, torch.stack(whole, 1)) < 1e-12
    drawn = fisher_information(a, t, draws=3, memory=memory)
    assert torch.equal(drawn @ v, drawn @ v), "the labels are drawn once"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_saturated_network_has_no_curvature(dtype):
    a = net()
    a = Net.of(a.module()).at(a.weights * 1e5).to(dtype)
    for found in (gauss_newton(a, task()).dense(), fisher_information(a, task(), draws=4).dense()):
        assert not found.any()
    assert not curvature_diagonal(a, task()).flat().any()
    g = gauss_newton(a, task())
    assert all(g.trace(12, method=method).value == 0 for method in ("hutch++", "xtrace", "hutchinson"))
    assert g.logdet(1e-6).value == 0 and not g.eigenvalues(3).any()


def test_attention_and_batch_statistics_are_used_as_they_are_in_evaluation():
    torch.manual_seed(0)
    module = nn.Sequential(
        *(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Unflatten(1, (2, 4))),
        *(nn.TransformerEncoderLayer(4, 2, 6, 0.3, batch_first=True), nn.Flatten(), nn.Linear(8, 3)),
    ).double()
    module.train()(inputs(40))
    a, t = Net.of(module), Task(inputs(), labels(), batch=3)
    before = {name: tensor.clone() for name, tensor in a.tensors.items()}
    v, exact = a.weights.randn(1).flat(), dense(a, Task(inputs(), metric="cross-entropy"))
    assert off(gauss_newton(a, t) @ v, exact @ v) < 1e-12
    assert off(curvature_diagonal(a, t).flat(), exact.diagonal()) < 1e-12
    with math_attention():
        along = torch.autograd.functional.vhp(lambda w: summed(a, t, w), a.weights.flat(), v)[1]
    assert off(hessian(a, t) @ v, along) < 1e-10
    assert all(torch.equal(before[name], tensor) for name, tensor in a.tensors.items())


# ------------------------------------------------------------------ labels of the network's own


@pytest.mark.parametrize("metric", ["cross-entropy", "squared", F.binary_cross_entropy_with_logits])
def test_the_fisher_information_is_the_gauss_newton_matrix_of_the_logits(metric):
    a = net(4, 5, 1) if callable(metric) else net()
    y = {"cross-entropy": labels(), "squared": soft()}.get(metric, (soft()[:, :1] > 0.3).double())
    t = Task(inputs(), y, metric=metric, batch=4)
    exact = gauss_newton(a, t).dense()
    assert torch.equal(fisher_information(a, t).dense(), exact)
    drawn = fisher_information(a, t, draws=600).dense()
    assert off(drawn, exact) < 0.1
    assert off(curvature_diagonal(a, t, draws=600).flat(), exact.diagonal()) < 0.1
    few = [sum(off(fisher_information(a, t, draws=d, seed=s).dense(), exact) for s in range(3)) for d in (10, 600)]
    assert 2.5 < few[0] / few[1] < 25, "errors fall as the root of the draws"


def test_labels_of_the_data_would_give_another_matrix():
    a, t = net(), task()
    slopes = torch.cat([t.slopes(a(x), y)[0] for x, y in t.batches()])
    j = torch.func.jacrev(lambda w: a.at(a.weights.shaped(w))(inputs()))(a.weights.flat().clone())
    rows = torch.einsum("ik,ikw->iw", slopes, j)
    assert off(rows.T @ rows, fisher_information(a, t).dense()) > 0.1


def test_positions_of_a_sequence_are_labels_of_their_own():
    torch.manual_seed(0)
    a = Net.of(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double())
    x = torch.randn(6, 7, 4, dtype=torch.float64)
    y = torch.randint(3, (6, 7))
    y[:, 5:] = -100
    flat = Task(x[:, :5].reshape(30, 4), y[:, :5].reshape(30))
    exact = gauss_newton(a, flat).dense()
    t = Task(x, y, batch=4)
    assert off(gauss_newton(a, t).dense(), exact) < 1e-12
    assert off(curvature_diagonal(a, t).flat(), exact.diagonal()) < 1e-12
    assert off(fisher_information(a, t, draws=600).dense(), exact) < 0.1
    assert off(curvature_diagonal(a, t, draws=600).flat(), exact.diagonal()) < 0.15


def test_roots_give_the_hessian_of_the_outputs_back():
    f = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for how, y in ((LOSSES["class weights"]), LOSSES["not convex"], LOSSES["bernoulli"]):
        t = Task(inputs(5), y[:5], **how)
        found = output_hessian(t, f, y[:5])
        eye = torch.eye(3, dtype=torch.float64)
        middle = torch.stack([found.action(e.expand(5, 3)) for e in eye], 1)
        again = sum(sign * u[:, :, None] * u[:, None] for sign, u in found.roots())
        assert torch.allclose(again, middle, atol=1e-12)
        assert torch.allclose(middle, middle.mT, atol=1e-12)


# ------------------------------------------------------------------ blocks, bounds, memory


def test_a_log_determinant_lies_in_its_bracket():
    a = net(4, 4, 3)
    t = task()
    g = gauss_newton(a, t)
    matrix = g.dense()
    parts = blocks(g, a.weights)
    at = 0
    for name, tensor in a.weights.items():
        n = tensor.numel()
        assert torch.allclose(parts[name], matrix[at : at + n, at : at + n], atol=1e-12)
        at += n
    for scale in (10.0, 0.1, 1e-3):
        exact = float(torch.linalg.slogdet(torch.eye(len(matrix)) + matrix / scale)[1])
        found = g.bracket(scale, parts.values(), rank=6, probes=8)
        assert found.nystrom <= exact + 1e-9 and exact <= found.blocks <= found.diagonal
        assert abs(found.estimate.value - exact) <= 3 * found.estimate.error + 1e-9 * exact
        assert found.estimate.error < 0.2 * exact
        small = g.bracket(scale, blocks(g, a.weights, largest=7).values(), rank=6)
        assert found.blocks <= small.blocks <= small.diagonal == pytest.approx(found.diagonal)
    assert g.logdet(0.1).error == 0, "a small matrix is written out"
    with pytest.raises(OperatorError, match="outside of its bounds"):
        g.bracket(0.1, [1e-3 * part for part in parts.values()], rank=6)
    with pytest.raises(OperatorError, match="has no exact diagonal"):
        blocks(hessian(a, t), a.weights, largest=3)


def test_what_graphs_take_is_known_before():
    a = net(4, 64, 64, 3)
    one, two = (graph_bytes(a, Task(inputs(n), labels(n))) for n in (50, 100))
    assert two == pytest.approx(2 * one, rel=1e-6)
    assert 50 * 64 * 2 * 8 < one < 50 * 64 * 20 * 8


# ------------------------------------------------------------------ mistakes


def broken() -> Net:
    a = net()
    return a.at(Weights({name: w * math.nan for name, w in a.weights.items()}))


class Apart(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :3] + 0


@pytest.mark.parametrize("ask", [gauss_newton, hessian, fisher_information, curvature_diagonal])
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: (net(), Task(inputs()[:0], labels()[:0])), "empty"),
        (lambda: (net(), Task(inputs(), labels() + 1)), "labels 1..3 outside the 3 outputs"),
        (lambda: (broken(), task()), "NaN or infinity"),
        (lambda: (net(), Task(inputs()[:, :2], labels())), "does not take inputs"),
        (lambda: (net(), Task(inputs(), labels(), aggregate="l2")), "a sum or a mean"),
        (lambda: (net(), Task(inputs(), labels(), metric="zero-one")), "no gradient"),
        (lambda: (net(), Task(inputs())), "label"),
    ],
)
def test_mistakes_are_one_line(ask, make, words):
    with pytest.raises(WeightspaceError) as error:
        ask(*make())
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda: fisher_information(net(), task(), draws=0), "draws is 0"),
        (lambda: curvature_diagonal(net(), task(), draws=-1), "draws is -1"),
        (lambda: fisher_information(net(), Task(inputs(), soft(), metric="l1")), "not a negative log-likelihood"),
        (
            lambda: fisher_information(net(), Task(inputs(), labels(), loss=nn.CrossEntropyLoss(WEIGHT))),
            "not a negative log-likelihood",
        ),
        (lambda: hessian(net(), Task(inputs(), metric="cross-entropy")), "needs labels"),
        (lambda: gauss_newton(net(), Task(inputs(), metric="l1")), "needs labels"),
        (lambda: gauss_newton(Net.of(Apart()).double(), task()), "do not depend on the weights"),
    ],
)
def test_other_mistakes_are_one_line(act, words):
    with pytest.raises(WeightspaceError) as error:
        act()
    assert words in str(error.value) and "\n" not in str(error.value)


def test_labels_that_do_not_fit_are_the_task_s_own_error():
    with pytest.raises(TaskError):
        gauss_newton(net(), Task(inputs(), labels()[:, None].repeat(1, 2)))


# ------------------------------------------------------------------ a peer


def test_a_peer_agrees():
    folder = os.environ.get("WEIGHTSPACE_PEERS_CURVLINOPS", "")
    if not os.path.isdir(folder):
        pytest.skip("WEIGHTSPACE_PEERS_CURVLINOPS names no folder; see benchmarks/README.md")
    sys.path.insert(0, folder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            curvlinops = importlib.import_module("curvlinops")
    finally:
        sys.path.remove(folder)
    a, t = net(), task()
    module = a.module()
    parameters = [p.requires_grad_() for p in module.parameters()]
    v = a.weights.randn(0).flat()
    for ours, theirs in ((gauss_newton, curvlinops.GGNLinearOperator), (hessian, curvlinops.HessianLinearOperator)):
        loss = nn.CrossEntropyLoss(reduction="sum")
        whole = theirs(module, loss, parameters, [*t.batches()], check_deterministic=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            product = (whole @ v).detach()
        assert off(ours(a, t) @ v, product) < 1e-12
