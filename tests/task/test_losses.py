"""A loss is taken for what it is: its value is that of torch over all examples, whatever the batches, or refused.

So are its curvature and its likelihood: those that belong to its own settings, and never those of a softmax that it is
not.
"""

from __future__ import annotations

import warnings
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

import weightspace as ws
from weightspace.curvature.outputs import likelihood, output_hessian
from weightspace.flows import anchors
from weightspace.task.examples import TaskError
from weightspace.task.losses import Loss

DOUBLE, N = torch.float64, 13
WEIGHTS = torch.tensor([0.3, 2.0, 1.1], dtype=DOUBLE)


def named(value):
    """The same name in every process, for a test's address."""
    plain = value.func if isinstance(value, partial) else value
    return value if isinstance(value, str) else getattr(plain, "__name__", type(plain).__name__)


def network(outputs=3, last=None):
    torch.manual_seed(0)
    parts = [nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, outputs), *([last] if last else [])]
    return nn.Sequential(*parts).double()


def inputs():
    return torch.randn(N, 4, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)


def drawn(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(2), dtype=DOUBLE)


CLASSES = torch.tensor([2, 2, 2, 2, 0, 1, 0, 1, 2, 0, 1, 0, 1])  # the class 2 stands mostly in front
SOFT, COINS, REAL = drawn(N, 3).softmax(1), (drawn(N, 3) > 0.5).double(), 3 * drawn(N, 3)
LOG, UNIT = nn.LogSoftmax(1), nn.Sigmoid()


class Turned(nn.Module):
    """Classes on axis 1, positions behind them."""

    def forward(self, f):
        return f.view(-1, 2, 3).movedim(1, -1)


POSITIONS = torch.stack([CLASSES, CLASSES.roll(1)], 1)
# loss, labels, outputs, what comes last
TORCH = {
    "cross-entropy": (nn.CrossEntropyLoss(), CLASSES, 3, None),
    ".. ignoring a class": (nn.CrossEntropyLoss(ignore_index=2), CLASSES, 3, None),
    ".. ignoring a label below": (nn.CrossEntropyLoss(ignore_index=-1), CLASSES - 1, 3, None),
    ".. weighed": (nn.CrossEntropyLoss(WEIGHTS), CLASSES, 3, None),
    ".. weighed and ignoring": (nn.CrossEntropyLoss(WEIGHTS, ignore_index=0), CLASSES, 3, None),
    ".. smoothed": (nn.CrossEntropyLoss(label_smoothing=0.2), CLASSES, 3, None),
    ".. all of these": (nn.CrossEntropyLoss(WEIGHTS, ignore_index=1, label_smoothing=0.2), CLASSES, 3, None),
    ".. of probabilities": (nn.CrossEntropyLoss(WEIGHTS, label_smoothing=0.1), SOFT, 3, None),
    ".. a partial": (partial(F.cross_entropy, weight=WEIGHTS, ignore_index=2), CLASSES, 3, None),
    ".. of positions": (nn.CrossEntropyLoss(WEIGHTS, ignore_index=0), POSITIONS, 6, Turned()),
    "nll": (nn.NLLLoss(), CLASSES, 3, LOG),
    ".. weighed, by a partial": (partial(F.nll_loss, weight=WEIGHTS, ignore_index=2), CLASSES, 3, LOG),
    "squared": (nn.MSELoss(), REAL, 3, None),
    ".. by a function": (F.mse_loss, REAL, 3, None),
    "huber": (nn.HuberLoss(delta=0.3), REAL, 3, None),
    "smooth l1": (partial(F.smooth_l1_loss, beta=0.4), REAL, 3, None),
    "l1": (nn.L1Loss(), REAL, 3, None),
    "coins": (nn.BCEWithLogitsLoss(), COINS, 3, None),
    ".. weighed coins": (nn.BCEWithLogitsLoss(WEIGHTS, pos_weight=WEIGHTS.flip(0)), COINS, 3, None),
    ".. as probabilities": (nn.BCELoss(), COINS, 3, UNIT),
    "divergence": (nn.KLDivLoss(reduction="batchmean"), SOFT, 3, LOG),
    ".. of logarithms": (nn.KLDivLoss(log_target=True, reduction="batchmean"), SOFT.log(), 3, LOG),
    "poisson": (nn.PoissonNLLLoss(full=True), REAL.round(), 3, None),
    "soft margin": (nn.SoftMarginLoss(), 2 * COINS - 1, 3, None),
    "hinge": (nn.HingeEmbeddingLoss(margin=0.5), 2 * COINS - 1, 3, None),
    "multi margin": (nn.MultiMarginLoss(p=2, weight=WEIGHTS), CLASSES, 3, None),
    "many labels": (nn.MultiLabelSoftMarginLoss(weight=WEIGHTS), COINS, 3, None),
}


class Focal(nn.Module):
    def __init__(self, reduction="mean"):
        super().__init__()
        self.reduction = reduction

    def forward(self, f, y):
        d = F.cross_entropy(f, y, reduction="none")
        d = (1 - (-d).exp()) ** 2 * d
        return d.mean() if self.reduction == "mean" else d


class Ignoring(Focal):
    """Divides by the labels that it knows, which nobody is told."""

    def forward(self, f, y):
        d = F.cross_entropy(f, y.clamp(max=1), reduction="none") * (y < 2)
        return d.sum() / (y < 2).sum() if self.reduction == "mean" else d


def contrast(f, y):
    """Each example against all of its batch."""
    return F.cross_entropy(f @ f.T, torch.arange(len(f)), reduction="none")


OTHERS = {
    "a mean": (lambda f, y: (f - y).square().sum(1).mean(), REAL, 3),
    "one an example": (lambda f, y: (f - y).abs().amax(1), REAL, 3),
    "a module with a reduction": (Focal(), CLASSES, 3),
    "a function with a reduction": (lambda f, y, reduction="mean": Focal(reduction)(f, y), CLASSES, 3),
    "a subclass": (type("Mine", (nn.CrossEntropyLoss,), {})(), CLASSES, 3),
    "a module that ignores": (Ignoring(), CLASSES, 3),
    "a mean that ignores": (lambda f, y: F.cross_entropy(f, y, ignore_index=2), CLASSES, 3),
    "a weighed mean": (lambda f, y: F.cross_entropy(f, y, weight=WEIGHTS), CLASSES, 3),
    "a sum": (lambda f, y: (f - y).square().sum(), REAL, 3),
    "a root": (lambda f, y: (f - y).square().mean().sqrt(), REAL, 3),
    "a largest": (lambda f, y: (f - y).square().amax(), REAL, 3),
    "a correlation": (lambda f, y: 1 - F.cosine_similarity(f[:, 0] - f[:, 0].mean(), y[:, 0], dim=0), REAL, 3),
    "each against all": (contrast, REAL, 3),
    "the mean of that": (lambda f, y: contrast(f, y).mean(), REAL, 3),
    "ranks": (lambda f, y: f[:, 0].argsort().argsort().double() - y[:, 0] + f.sum(1), REAL, 3),
    "norms of the batch": (lambda f, y: ((f - f.mean(0)) - y).square().sum(1), REAL, 3),
    "a mean of broadcast labels": (lambda f, y: (f - y).square().mean(), REAL[:, 0], 1),
    ".. and one an example": (lambda f, y: (f - y).square().mean(1), REAL[:, 0], 1),
}
EXACT = ("a mean", "one an example", "a module with a reduction", "a function with a reduction", "a subclass")


def value(loss, module, y, batch, by="tensors"):
    how = {"loss": loss, "batch": batch}
    data = ws.Task(inputs(), y, **how) if by == "tensors" else ws.Task(
        DataLoader([*zip(inputs(), y, strict=True)], batch_size=batch), loss=loss
    )  # fmt: skip
    return float(data(ws.Net.of(module)))


def torchs(loss, module, y):
    with torch.no_grad():
        return float(loss(module(inputs()), y).mean())


@pytest.mark.parametrize("name", TORCH)
def test_the_value_is_that_of_torch_over_all_examples(name):
    loss, y, outputs, last = TORCH[name]
    module = network(outputs, last)
    for batch in (1, 5, 12, 13):
        for by in ("tensors", "loader"):
            assert value(loss, module, y, batch, by) == pytest.approx(torchs(loss, module, y), rel=1e-9)


@pytest.mark.parametrize("name", OTHERS)
def test_any_other_loss_is_right_or_refused(name):
    """Its word is tried: what it says of an example, or of a batch, must not depend on the others."""
    loss, y, outputs = OTHERS[name]
    module, seen = network(outputs), 0
    for batch in (1, 5, 12):
        try:
            found = value(loss, module, y, batch)
        except TaskError as error:
            assert name not in EXACT and "\n" not in str(error)
            continue
        seen += 1
        assert found == pytest.approx(torchs(loss, module, y), rel=1e-9)
    assert seen == 3 or name not in EXACT


@pytest.mark.parametrize("name", TORCH)
def test_curvature_is_that_of_the_loss_and_does_not_depend_on_the_batches(name):
    """Against J^T H J of torch's own value over all examples at once, times the number of labels that count."""
    loss, y, outputs, last = TORCH[name]
    module = network(outputs, last)
    net, parameters = ws.Net.of(module), [*module.parameters()]
    if name == "multi margin":  # torch knows no second derivative of it
        for ask in (ws.gauss_newton, ws.hessian, ws.curvature_diagonal):
            with pytest.raises(ws.WeightspaceError, match="no second derivative"):
                ask(net, ws.Task(inputs(), y, loss=loss))
        return
    f = module(inputs())
    rows = [torch.autograd.grad(o, parameters, retain_graph=True) for o in f.flatten()]
    j = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
    middle = torch.autograd.functional.hessian(lambda f: loss(f, y), f.detach()).reshape(f.numel(), -1)
    skipped = getattr(Loss.of(loss), "ignored", None) if not y.is_floating_point() else None
    n = y.numel() if Loss.of(loss).kind in ("softmax", "log-probabilities") and not y.is_floating_point() else N
    n -= 0 if skipped is None else int((y == skipped).sum())
    exact = n * j.T @ middle @ j
    for batch in (5, 13):
        task = ws.Task(inputs(), y, loss=loss, batch=batch)
        scale = float(exact.abs().max()) or 1.0
        assert torch.allclose(ws.gauss_newton(net, task).dense(), exact, rtol=1e-9, atol=1e-11 * scale)
        found = ws.curvature_diagonal(net, task).flat()
        assert torch.allclose(found, exact.diagonal(), rtol=1e-9, atol=1e-11 * scale)


# the likelihood that it belongs to

LAWS = {  # E s s^T of one example at its outputs
    "cross-entropy": lambda f: f.softmax(0).diag() - f.softmax(0).outer(f.softmax(0)),
    "nll": lambda f: f.exp().diag(),
    "squared": lambda f: torch.eye(3, dtype=DOUBLE),
    "coins": lambda f: (f.sigmoid() * (1 - f.sigmoid())).diag(),
    ".. as probabilities": lambda f: (1 / (f * (1 - f))).diag(),
    ".. ignoring a class": lambda f: f.softmax(0).diag() - f.softmax(0).outer(f.softmax(0)),
}


@pytest.mark.parametrize("name", LAWS)
def test_the_likelihood_is_that_of_the_loss(name):
    """Its roots, its draws, and the importance for consolidation."""
    loss, y, outputs, last = TORCH[name]
    module = network(outputs, last)
    task = ws.Task(inputs(), y, loss=loss)
    f, marked = module(inputs()).detach(), task.labels()
    wanted = torch.stack([LAWS[name](row) for row in f])
    if not y.is_floating_point():
        wanted = wanted * (marked != -100)[:, None, None]
    found = likelihood(task, f, marked)
    assert torch.allclose(sum(u[:, :, None] * u[:, None] for _, u in found.roots()), wanted, atol=1e-12)
    scores = torch.stack([*found.scores(4000, 0, 0)])
    assert torch.allclose(
        torch.einsum("dni,dnj->nij", scores, scores) / 4000, wanted, rtol=0.1, atol=0.1 * float(wanted.max())
    )
    net = ws.Net.of(module)
    if last is None:  # the gradient in the biases is the score
        assert torch.allclose(anchors.fisher(net, task, 0)["2.bias"], scores[0].square().mean(0), rtol=1e-9)
    total = float(wanted.sum() and ws.fisher_trace(task, labels="all")(net))
    assert total == pytest.approx(
        float(sum(torch.cat([g.flatten() for g in torch.autograd.grad((module(inputs()[k : k + 1]) * u[k]).sum(),
        [*module.parameters()])]).square().sum() for k in range(N) for _, u in found.roots())) / N, rel=1e-9
    )  # fmt: skip


@pytest.mark.parametrize("name", LAWS)
def test_the_label_drawn_for_an_example_does_not_depend_on_its_batch(name):
    loss, y, outputs, last = TORCH[name]
    task = ws.Task(inputs(), y, loss=loss)
    f, marked = network(outputs, last)(inputs()).detach(), task.labels()

    def drawn(a: int, b: int) -> torch.Tensor:
        return torch.stack([*likelihood(task, f[a:b], marked[a:b]).scores(5, 0, a)], 1)

    assert torch.equal(torch.cat([drawn(0, 5), drawn(5, 6), drawn(6, N)]), drawn(0, N))


@pytest.mark.parametrize("batch", [3, 4, 5, N])
def test_a_mean_of_others_is_over_the_labels_that_there_are(batch):
    """A function of the user that knows torch's mark, and gives one number for a batch."""
    module, y = network(3, None), torch.arange(N) % 3
    y[[0, 1, 6, 11]] = -100
    task = ws.Task(inputs(), y, loss=lambda f, y: F.cross_entropy(f, y), batch=batch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert float(task(ws.Net.of(module))) == pytest.approx(float(F.cross_entropy(module(inputs()), y)), rel=1e-9)


@pytest.mark.parametrize("name", [n for n in TORCH if n not in LAWS and "positions" not in n])
def test_what_is_no_likelihood_is_refused_by_its_name(name):
    loss, y, outputs, last = TORCH[name]
    known = name in (".. by a function", ".. ignoring a label below", ".. a partial")
    if known and name != ".. a partial":
        return
    task, net = ws.Task(inputs(), y, loss=loss), ws.Net.of(network(outputs, last))
    called = getattr(getattr(loss, "func", loss), "__name__", type(loss).__name__)
    for ask in (
        lambda: anchors.ewc(net, task),
        lambda: ws.fisher_trace(task),
        lambda: ws.fisher_information(net, task),
    ):
        with pytest.raises(ws.WeightspaceError, match=f"{called}.*(likelihood|no second derivative)"):
            ask()


def test_an_offset_of_the_outputs_is_nothing_to_a_regression():
    """Three outputs near (0, 3, -3): as coins their importance is s (1 - s), under squares it is the same for all."""
    torch.manual_seed(0)
    module = nn.Linear(4, 3)
    with torch.no_grad():
        module.weight.mul_(0.01)
        module.bias.copy_(torch.tensor([0.0, 3.0, -3.0]))
    net, x = ws.Net.of(module), torch.randn(2000, 4)
    s = torch.tensor([0.0, 3.0, -3.0]).sigmoid()
    laws = {nn.MSELoss(): torch.ones(3), nn.BCEWithLogitsLoss(): s * (1 - s), F.mse_loss: torch.ones(3)}
    for loss, wanted in laws.items():
        found = anchors.fisher(net, ws.Task(x, (torch.rand(2000, 3) > 0.5).float(), loss=loss))["bias"]
        assert torch.allclose(found, wanted, atol=0.1)


def test_padding_has_no_importance():
    torch.manual_seed(0)
    net = ws.Net.of(nn.Sequential(nn.Embedding(6, 3), nn.Tanh(), nn.Linear(3, 6)))
    x, y = torch.randint(0, 5, (20, 6)), torch.randint(0, 6, (20, 6))
    x[:, 2:], y[:, 2:] = 5, -100
    for task in (ws.Task(x, y), ws.Task(x, y.masked_fill(y == -100, 7), loss=Spread(ignore_index=7))):
        if task.recognised is not None and task.recognised.kind != "softmax":
            with pytest.raises(ws.WeightspaceError, match="likelihood"):
                anchors.fisher(net, task)
            continue
        found = anchors.fisher(net, task)["0.weight"].sum(1)
        assert found[5] == 0 and (found[:5] > 0).any()


class Spread(nn.CrossEntropyLoss):
    """Classes last, which torch's does not take: another loss, of which nothing is known."""

    def forward(self, f, y):
        return super().forward(f.movedim(-1, 1), y)


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.r, self.o = kind(4, 2, batch_first=True), nn.Linear(2, 3)

    def forward(self, x):
        return self.o(self.r(x)[0][:, -1])


class Written(nn.Module):
    """Writes a layer into a part of a tensor."""

    def __init__(self):
        super().__init__()
        self.a, self.o = nn.Linear(4, 4), nn.Linear(16, 3)

    def forward(self, x):
        z = torch.zeros(x.shape, dtype=x.dtype)
        z[:, 1:] = self.a(x)[:, :-1]
        return self.o(z.flatten(1))


@pytest.mark.parametrize("make", [*(partial(Recurrent, k) for k in (nn.GRU, nn.LSTM, nn.RNN)), Written], ids=named)
def test_importance_of_networks_that_cannot_be_batched(make):
    """One example after the other: the squares of gradients that autograd gives of each alone."""
    torch.manual_seed(0)
    module = make().double()
    net, x, y = ws.Net.of(module), torch.randn(6, 4, 4, dtype=DOUBLE), torch.randint(0, 3, (6,))
    task = ws.Task(x, y)
    (score,) = likelihood(task, module(x).detach(), y).scores(1, 0, 0)
    exact = [torch.zeros_like(p) for p in module.parameters()]
    for k in range(6):
        found = torch.autograd.grad((module(x[k : k + 1]) * score[k]).sum(), [*module.parameters()])
        exact = [e + g.square() / 6 for e, g in zip(exact, found, strict=True)]
    importance = anchors.fisher(net, task, seed=0)
    for (name, _), e in zip(module.named_parameters(), exact, strict=True):
        assert torch.allclose(importance[name], e, rtol=1e-9, atol=1e-15), name


# labels beside outputs


@pytest.mark.parametrize("loss", [nn.MSELoss(), F.mse_loss, nn.L1Loss(), nn.HuberLoss()], ids=named)
def test_each_output_stands_beside_its_own_label(loss):
    """Outputs (n, 1) and labels (n,), and the other way round: no label meets the output of another example."""
    module, y = network(1), REAL[:, 0]
    wanted = torchs(lambda f, y: loss(f[:, 0], y), module, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for batch in (5, 13):
            assert value(loss, module, y, batch) == pytest.approx(wanted, rel=1e-9)
            assert value(loss, nn.Sequential(module, nn.Flatten(0)), y[:, None], batch) == pytest.approx(
                wanted, rel=1e-9
            )
    with pytest.raises(TaskError, match="do not fit outputs"):
        value(loss, network(3), y, 5)


def test_a_linear_network_has_the_same_hessian_both_ways():
    """Outputs without curvature: the Hessian is the Gauss-Newton matrix, the gradient that of the squared metric."""
    torch.manual_seed(0)
    net, y = ws.Net.of(nn.Linear(4, 1).double()), REAL[:, 0]
    task = ws.Task(inputs(), y, loss=nn.MSELoss(), batch=5)
    assert torch.allclose(ws.hessian(net, task).dense(), ws.gauss_newton(net, task).dense(), rtol=1e-9, atol=1e-12)
    assert torch.allclose(ws.gradient(task, net).flat(), ws.gradient(ws.Task(inputs(), y), net).flat(), rtol=1e-9)


def test_accuracy_knows_what_an_output_says():
    module = network(1)
    y = (module(inputs())[:, 0] > 0).long()
    y[:3] = 1 - y[:3]
    assert ws.accuracy(ws.Task(inputs(), y, loss=nn.BCEWithLogitsLoss(), batch=5))(ws.Net.of(module)) == 10 / 13
    half = ws.Net.of(nn.Sequential(module, UNIT))
    assert ws.accuracy(ws.Task(inputs(), y, loss=nn.BCELoss(), batch=5))(half) == 10 / 13
    net = ws.Net.of(network())
    right = (net(inputs()).argmax(1) == CLASSES)[CLASSES != 2].double().mean()
    assert ws.accuracy(ws.Task(inputs(), CLASSES, loss=nn.CrossEntropyLoss(ignore_index=2)))(net) == float(right)
    with pytest.raises(TaskError, match="accuracy needs class labels.*MSELoss"):
        ws.accuracy(ws.Task(inputs(), CLASSES, loss=nn.MSELoss()))


@pytest.mark.parametrize(("loss", "words"), [
    (nn.CrossEntropyLoss(reduction="sum"), "reduction='mean'"),
    (partial(F.mse_loss, weight=drawn(N, 3)), "weighs the places of a batch"),
    (nn.BCEWithLogitsLoss(weight=drawn(5, 1)), "weighs the places of a batch"),
    (nn.CTCLoss(), "CTCLoss failed"),
    (nn.GaussianNLLLoss(), "GaussianNLLLoss failed"),
    (nn.CosineEmbeddingLoss(), "CosineEmbeddingLoss failed"),
    (nn.CrossEntropyLoss(torch.zeros(3, dtype=DOUBLE)), "add up to 0"),
    (nn.CrossEntropyLoss(torch.ones(2, dtype=DOUBLE)), "CrossEntropyLoss failed"),
], ids=named)  # fmt: skip
def test_what_cannot_be_a_mean_over_examples_is_refused(loss, words):
    y = REAL if "Entropy" not in str(loss) else CLASSES
    with pytest.raises(TaskError, match=words) as told:
        value(loss, network(), y, 5)
    assert "\n" not in str(told.value)


def test_a_curvature_that_mixes_examples_is_refused():
    task = ws.Task(inputs(), REAL, loss=contrast)
    f = network()(inputs()).detach()
    with pytest.raises(ws.WeightspaceError, match="depends on the outputs of others"):
        [*output_hessian(task, f, REAL).roots()]


def test_the_law_sees_batches_that_count_by_their_examples(monkeypatch):
    """Planted: weights of classes that do not divide, and an index that is not ignored."""
    monkeypatch.setattr(ws.Task, "share", lambda self, y: 1.0)
    monkeypatch.setattr(ws.Task, "_marked", lambda self, y: y)
    for name in (".. weighed and ignoring", ".. ignoring a class"):
        loss, y, outputs, last = TORCH[name]
        module = network(outputs, last)
        assert value(loss, module, y, 5) != pytest.approx(torchs(loss, module, y), rel=1e-3)
