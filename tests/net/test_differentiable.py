"""Derivatives are right, however a map is written down, or refused: against differences, and against one another.

Laws: <J v, u> = <v, J' u>; J v is the change of the outputs; Gauss-Newton is J' H J; the Hessian is symmetric and the
change of the gradient; one map has one answer.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from architectures import CASES, noisy
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import jvp
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import weightspace as ws
from weightspace.curvature import linearised
from weightspace.curvature.curvature import curvature_diagonal
from weightspace.net import differentiable
from weightspace.net.net import Net
from weightspace.task.task import Task

DOUBLE = torch.float64


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


class Between(nn.Module):
    """A linear map, an operation, and whatever it gives, flat."""

    def __init__(self, operation) -> None:
        super().__init__()
        self.a, self.operation = nn.Linear(4, 4), operation

    def forward(self, x):
        return self.operation(self.a(x) + torch.eye(4, dtype=x.dtype)).reshape(len(x), -1)


def around(operation, examples: int = 3) -> tuple[Net, Task]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Net.of(Between(operation).double())
    x = drawn(examples, 4, 4)
    outputs = net(x).detach()
    return net, Task(x, outputs + drawn(*outputs.shape, seed=1), aggregate="sum")


def change(f, net: Net, v, h: float = 1e-6) -> Tensor:
    """The central difference of f along v."""
    return (f(net + h * v) - f(net + -h * v)) / (2 * h)


def slope(net: Net, task: Task) -> Tensor:
    return ws.gradient(task, net).flat()


def adjoint(net: Net, task: Task) -> float:
    """How far J is from the transpose of J'."""
    j = linearised.jacobian(net, task)
    v, u = drawn(j.columns), drawn(j.rows, seed=1)
    return abs(float((j @ v) @ u - v @ (j.T @ u))) / float((j @ v).norm() * u.norm() + 1e-300)


def check(net: Net, task: Task) -> None:
    """Every law on one network and one task, whose metric is squared."""
    v = net.weights.randn(3)
    j = linearised.jacobian(net, task)
    moved = change(lambda n: task.outputs(n).flatten(), net, v)
    assert torch.allclose(j @ v.flat(), moved, rtol=1e-5, atol=1e-6 * float(moved.abs().max()))
    assert adjoint(net, task) < 1e-10
    dense = j.dense()
    assert torch.allclose(ws.gauss_newton(net, task).dense(), 2 * dense.T @ dense, atol=1e-9 * float(dense.norm()) ** 2)
    try:
        h = ws.hessian(net, task)
    except ws.WeightspaceError:
        return
    bent = change(lambda n: slope(n, task), net, v)
    assert torch.allclose(h @ v.flat(), bent, rtol=1e-3, atol=1e-5 * float(bent.abs().max()))
    assert torch.allclose(h.dense(), h.dense().T, atol=1e-8 * float(h.dense().abs().max()))


# ------------------------------------------------------------------ operations

EYE = torch.eye(4, dtype=DOUBLE)
INDEX = torch.tensor([[0, 2, 1, 1], [3, 3, 0, 2], [1, 0, 2, 3], [2, 2, 0, 1]])


def written(h: Tensor) -> Tensor:
    out = torch.zeros_like(h)
    out[:, :2] = h[:, :2].sin()
    out[:, 2:] = h[:, 2:]
    out[:, 0].mul_(2)
    return out


OPERATIONS = {
    "abs of fft": lambda h: torch.fft.rfft(h).abs(),
    "bag": lambda h: torch.stack([F.embedding_bag(INDEX, row, mode="mean") for row in h]),
    "bag of maxima": lambda h: torch.stack([F.embedding_bag(INDEX, row, mode="max") for row in h]),
    "bag with offsets": lambda h: F.embedding_bag(INDEX.flatten(), h[0], torch.tensor([0, 5, 5, 9])).expand(
        len(h), 4, 4
    ),
    "bicubic": lambda h: F.interpolate(h[:, None], scale_factor=2, mode="bicubic"),
    "cdist": lambda h: torch.cdist(h, h.sin()),
    "cdist of one side": lambda h: torch.cdist(h, h),
    "cdist, p=1": lambda h: torch.cdist(h, h.sin(), p=1.0),
    "cholesky": lambda h: torch.linalg.cholesky(h @ h.mT + EYE),
    "clamp": lambda h: h.clamp(-0.5, 0.5),
    "complex": lambda h: (torch.complex(h, h.roll(1, -1)) ** 2).imag,
    "cosine": lambda h: F.cosine_similarity(h[:, None], h[:, :, None] + 1, dim=-1),
    "cumprod": lambda h: h.cumprod(-1),
    "det": lambda h: torch.linalg.det(h),
    "eigh": lambda h: torch.linalg.eigvalsh(h + h.mT),
    "einsum": lambda h: torch.einsum("bij,bkj->bik", h, h),
    "gather": lambda h: h.gather(-1, INDEX.expand(len(h), 4, 4)),
    "grid_sample": lambda h: F.grid_sample(h[:, None], h[..., :2, None].mT.tanh(), align_corners=False),
    "group_norm": lambda h: F.group_norm(h, 2),
    "igamma": lambda h: torch.igamma(torch.tensor(2.0, dtype=DOUBLE), h.exp()),
    "index_add": lambda h: torch.zeros_like(h).index_add(1, torch.tensor([0, 1, 1, 2]), h),
    "inverse": lambda h: torch.linalg.inv(h + 5 * EYE),
    "logcumsumexp": lambda h: h.logcumsumexp(-1),
    "lstsq": lambda h: torch.linalg.lstsq(h, h.mT).solution,
    "matrix_exp": torch.matrix_exp,
    "max_pool2d": lambda h: F.max_pool2d(h[:, None], 2),
    "median": lambda h: h.median(-1).values,
    "product scattered": lambda h: torch.ones_like(h).scatter_reduce(-1, INDEX.expand(len(h), 4, 4), h, "prod"),
    "qr": lambda h: torch.linalg.qr(h)[1],
    "slices": written,
    "sort": lambda h: h.sort(-1).values,
    "sparse": lambda h: torch.stack([torch.sparse.mm(EYE.to_sparse(), row) @ row for row in h]),
    "svd": torch.linalg.svdvals,
    "topk": lambda h: h.topk(2, -1).values,
    "weight_norm": lambda h: torch.stack([torch._weight_norm(row, row[:, :1].exp(), 0) @ row for row in h]),
    "zeta": lambda h: torch.special.zeta(torch.tensor(2.5, dtype=DOUBLE), h.exp()),
}
ONCE = {
    "_pdist_backward": lambda h: torch.stack([F.pdist(row) for row in h]),
    "_segment_reduce_backward": lambda h: (
        torch.segment_reduce(h.flatten(1).T.contiguous(), "max", lengths=torch.tensor([4, 12])).T
    ),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations(name):
    check(*around(OPERATIONS[name]))


@pytest.mark.parametrize("name", ONCE)
def test_an_operation_with_one_derivative_is_named(name):
    net, task = around(ONCE[name])
    for ask in (linearised.jacobian, ws.gauss_newton, ws.hessian):
        with pytest.raises(ws.WeightspaceError, match=name):
            ask(net, task)


# ------------------------------------------------------------------ derivatives that somebody wrote


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, g):
        return 3 * ctx.saved_tensors[0] ** 2 * g


class Forgetful(Cube):
    """Its second derivative forgets that the first one depends on x."""

    @staticmethod
    def backward(ctx, g):
        return 3 * ctx.saved_tensors[0].detach() ** 2 * g


class Opaque(Cube):
    @staticmethod
    def backward(ctx, g):
        return torch.from_numpy((3 * ctx.saved_tensors[0] ** 2 * g).detach().numpy())


class Once(Cube):
    backward = staticmethod(once_differentiable(Cube.backward))


class WrongAhead(torch.autograd.Function):
    """A tangent that is not the transpose of the pass back."""

    @staticmethod
    def forward(x):
        return x**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    backward = staticmethod(Cube.backward)

    @staticmethod
    def jvp(ctx, tangent):
        return 5 * ctx.saved_tensors[0] * tangent


class Straight(torch.autograd.Function):
    """A step, and the identity on the way back."""

    @staticmethod
    def forward(ctx, x):
        return x.sign()

    @staticmethod
    def backward(ctx, g):
        return g


@torch.library.custom_op("derivatives::cubed", mutates_args=())
def cubed(x: Tensor) -> Tensor:
    return x**3


cubed.register_fake(torch.empty_like)
cubed.register_autograd(Cube.backward, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs))


def counted(h: Tensor) -> Tensor:
    with torch.no_grad():
        held = h.sin()
    return held * h


def turned(h: Tensor) -> Tensor:
    h = h.clone()
    if h.requires_grad:
        h.register_hook(lambda g: -2 * g)
    return h


@pytest.mark.parametrize(
    "op", [Cube.apply, WrongAhead.apply, lambda h: cubed(h)], ids=["function", "tangent", "custom"]
)
def test_written_in_python_and_right(op):
    check(*around(op))


CONVENTIONS = {
    "straight through": Straight.apply,
    "rounded": lambda h: h + (h.round() - h).detach(),
    "no_grad": counted,
    "detached": lambda h: h.detach() * h,
    "data": lambda h: h.data * h,
    "hook": turned,
}


@pytest.mark.parametrize("name", CONVENTIONS)
def test_what_a_pass_back_leaves_out_is_left_out_everywhere(name):
    net, task = around(CONVENTIONS[name])
    module = net.module()
    flat = module(task.example(3)).flatten()
    rows = [torch.autograd.grad(f, [*module.parameters()], retain_graph=True, materialize_grads=True) for f in flat]
    j = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
    assert torch.allclose(linearised.jacobian(net, task).dense(), j, atol=1e-12)
    assert torch.allclose(ws.gauss_newton(net, task).dense(), 2 * j.T @ j, atol=1e-10)
    assert torch.allclose(curvature_diagonal(net, task).flat(), 2 * j.square().sum(0), atol=1e-10)
    assert torch.allclose(ws.Pullback(task).spectrum(net, 3), torch.linalg.eigvalsh(j @ j.T / 3).flip(0)[:3], rtol=1e-6)
    with pytest.raises(ws.WeightspaceError, match="not the derivative of the first"):
        ws.hessian(net, task)


@pytest.mark.parametrize("forward", [True, False])
def test_large_tasks_too(forward, monkeypatch):
    """Where no graph is kept, a tangent is taken only if it is the transpose."""
    monkeypatch.setattr(linearised, "_HELD", 0)
    net, task = around(torch.sin if forward else counted)
    j = linearised.jacobian(net, task)
    assert [*linearised._trusted[net.architecture].values()] == [(True, forward)]
    assert adjoint(net, task) < 1e-12 and torch.allclose(j.dense(), j.T.dense().T, atol=1e-12)


@pytest.mark.parametrize("op", [Opaque, Once])
def test_a_derivative_that_cannot_be_differentiated_is_named(op):
    net, task = around(op.apply)
    assert torch.isfinite(slope(net, task)).all()
    for ask in (linearised.jacobian, ws.gauss_newton, ws.hessian):
        with pytest.raises(ws.WeightspaceError, match=op.__name__):
            ask(net, task)
    with pytest.raises(ws.WeightspaceError, match="Forgetful"):
        ws.hessian(*around(Forgetful.apply))


def test_a_gradient_that_torch_cannot_give_is_an_error_in_one_line():
    def overwritten(h: Tensor) -> Tensor:
        kept = h.exp()
        out = kept * 1
        kept.mul_(2)  # exp's own derivative is its value
        return out + kept

    net, task = around(overwritten)
    for ask in (slope, linearised.jacobian, ws.gauss_newton, curvature_diagonal):
        with pytest.raises(ws.WeightspaceError, match="inplace") as caught:
            ask(net, task)
        assert "\n" not in str(caught.value)


# ------------------------------------------------------------------ parametrisations


class Symmetric(nn.Module):
    def forward(self, x):
        return x.triu() + x.triu(1).mT


def pruned() -> nn.Module:
    layer = nn.Linear(4, 4)
    prune.l1_unstructured(layer, "weight", 0.3)
    return layer


def symmetric() -> nn.Module:
    layer = nn.Linear(4, 4)
    parametrize.register_parametrization(layer, "weight", Symmetric())
    return layer


NORMED = {
    "weight_norm": lambda: parametrizations.weight_norm(nn.Linear(4, 4)),
    "weight_norm of columns": lambda: parametrizations.weight_norm(nn.Linear(4, 4), dim=1),
    "weight_norm of all": lambda: parametrizations.weight_norm(nn.Linear(4, 4), dim=None),
    "weight_norm by hooks": lambda: nn.utils.weight_norm(nn.Linear(4, 4)),
    "weight_norm of a convolution": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 4)), parametrizations.weight_norm(nn.Conv1d(1, 4, 4)), nn.Flatten()
    ),
    "spectral_norm": lambda: parametrizations.spectral_norm(nn.Linear(4, 4), n_power_iterations=20),
    "spectral_norm by hooks": lambda: nn.utils.spectral_norm(nn.Linear(4, 4), n_power_iterations=20),
    "orthogonal": lambda: parametrizations.orthogonal(nn.Linear(4, 4)),
    "cayley": lambda: parametrizations.orthogonal(nn.Linear(4, 4), orthogonal_map="cayley"),
    "orthogonal from zero": lambda: parametrizations.orthogonal(nn.Linear(4, 4), use_trivialization=False),
    "symmetric": symmetric,
    "pruned": pruned,
}


def normed(name: str) -> Net:
    with torch.random.fork_rng(devices=[]), pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *args, **kwargs: None)  # the older hooks are deprecated
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), NORMED[name](), nn.Tanh(), nn.Linear(4, 3)).double()
        module(drawn(5, 4))  # power iterations
        return Net.of(module)


@pytest.mark.parametrize("name", NORMED)
def test_parametrisations(name):
    net, x = normed(name), drawn(5, 4)
    check(net, Task(x, drawn(5, 3, seed=1), aggregate="sum"))
    assert torch.equal(net.module()(x), net.module()(x)) and torch.allclose(net.module()(x), net(x), rtol=1e-12)
    assert torch.equal(net.clone()(x), net(x))


@pytest.mark.parametrize("name", ["spectral_norm", "spectral_norm by hooks"])
def test_singular_vectors_follow_the_weights(name):
    net, x = normed(name), drawn(5, 4)
    task = Task(x, torch.tensor([0, 1, 2, 0, 1]))

    def largest(n: Net) -> float:
        found = n.module()[2]
        found(x)
        return float(torch.linalg.matrix_norm(found.weight.detach(), 2))

    other = Net.of(net.at(net.weights + net.weights.randn(5)).module()).refreshed()
    for moved in (
        ws.flow(net, ws.learn(task), ws.Euclidean(), steps=4, size=0.5)[-1],
        ws.flow(net, ws.learn(task), ws.Pullback(task), steps=3, size=0.3)[-1],
        ws.perturb(net, 0.8),
        net.lerp(other, 0.5),
    ):
        assert largest(moved) == pytest.approx(1, abs=1e-4)
    assert largest(net + 0.5 * net.weights.randn(5)) != pytest.approx(1, abs=1e-2), "stale vectors would show"
    assert torch.equal(net.lerp(other, 0.0)(x), net(x))


# ------------------------------------------------------------------ embeddings


def embedded(**how) -> tuple[Net, Task]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Net.of(nn.Sequential(nn.Embedding(6, 3, **how), nn.Flatten(), nn.Linear(12, 3)).double())
    x = torch.randint(0, 6, (5, 4), generator=torch.Generator().manual_seed(0))
    x[:, 0] = 0
    return net, Task(x, torch.tensor([0, 1, 2, 0, 1]), aggregate="sum")


@pytest.mark.parametrize(
    "how", [{}, {"padding_idx": 0}, {"padding_idx": -6}, {"scale_grad_by_freq": True}, {"max_norm": 1.0}], ids=str
)
def test_embeddings(how):
    net, task = embedded(**how)
    before = net.weights.clone()
    j = linearised.jacobian(net, task)
    assert torch.allclose(j.dense(), j.T.dense().T, atol=1e-12) and adjoint(net, task) < 1e-12
    rows = j.dense()[:, :3].norm()
    assert (float(rows) == 0) == ("padding_idx" in how)
    moved = net.weights.zeros().replace({"2.weight": drawn(3, 12), "0.weight": drawn(6, 3)})
    moved["0.weight"][0] = 0
    if "max_norm" not in how:
        along = change(lambda n: task.outputs(n).flatten(), net, moved)
        assert torch.allclose(j @ moved.flat(), along, atol=1e-6)
    assert torch.equal(net.weights.flat(), before.flat()), "a look into a table does not write into it"
    torch_own = net.module()
    assert torch.allclose(net(task.example(5)), torch_own(task.example(5)), atol=1e-6)


def test_a_shortened_row_moves_as_if_its_factor_were_a_constant():
    """As in torch, which writes shortened rows into the table: beside the plain table of these rows."""
    net, task = embedded(max_norm=1.0)
    plain, _ = embedded()
    table = net.weights["0.weight"]
    factor = 1 / table.norm(dim=1, keepdim=True).clamp_min(1)
    assert float(factor.min()) < 0.9 and float(factor.max()) == 1
    there = plain.at(net.weights.replace({"0.weight": table * factor}))
    moved = net.weights.zeros().replace({"2.weight": drawn(3, 12), "0.weight": drawn(6, 3)})
    shorter = moved.replace({"0.weight": moved["0.weight"] * factor})
    along = linearised.jacobian(there, task) @ shorter.flat()
    assert torch.allclose(linearised.jacobian(net, task) @ moved.flat(), along, atol=1e-6)


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("how", [{}, {"padding_idx": 1}, {"include_last_offset": True}, {"max_norm": 1.0}], ids=str)
def test_bags_are_those_of_torch(mode, how):
    weight, entries = drawn(6, 3), torch.tensor([0, 1, 5, 1, 2, 2, 4])
    offsets = torch.tensor([0, 3, 3, 7] if "include_last_offset" in how else [0, 3, 3])
    expected = F.embedding_bag(entries, weight.clone(), offsets, mode=mode, **how)
    with differentiable._Rewritten():
        assert torch.allclose(F.embedding_bag(entries, weight, offsets, mode=mode, **how), expected, atol=1e-6)


def test_a_network_that_writes_into_its_weights_is_told_of():
    class Clipped(nn.Linear):
        def forward(self, x):
            with torch.no_grad():
                self.weight.clamp_(-0.1, 0.1)
            return super().forward(x)

    with pytest.raises(ws.WeightspaceError, match="Clipped writes into its own weights"):
        Net.of(Clipped(3, 2))(torch.ones(1, 3))


# ------------------------------------------------------------------ one map, written in several ways


class Layered(nn.Module):
    """Linear, tanh, linear: plainly, checkpointed, in slices."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.a, self.o, self.way = nn.Linear(4, 4), nn.Linear(16, 3), way

    def forward(self, x):
        if self.way == "slices":
            h, inner = torch.zeros_like(x), torch.tanh(self.a(x))
            h[:, :2] = inner[:, :2]
            h[:, 2:] = inner[:, 2:]
        elif self.way == "sequential":
            h = checkpoint_sequential([self.a, nn.Tanh()], 2, x, use_reentrant=False)
        elif self.way != "plain":
            h = checkpoint(lambda z: torch.tanh(self.a(z)), x, use_reentrant=self.way == "reentrant")
        else:
            h = torch.tanh(self.a(x))
        return self.o(h.flatten(1))


def layered(way: str) -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net.of(Layered(way).double())


QUESTIONS = {
    "gradient": lambda net, task: ws.gradient(task, net).flat(),
    "Jacobian": lambda net, task: linearised.jacobian(net, task).dense(),
    "Gauss-Newton": lambda net, task: ws.gauss_newton(net, task).dense(),
    "diagonal": lambda net, task: ws.curvature_diagonal(net, task).flat(),
    "Hessian": lambda net, task: ws.hessian(net, task).dense(),
    "Fisher": lambda net, task: ws.fisher_trace(task, labels="all")(net),
    "importance": lambda net, task: ws.flows.fisher(net, task).flat(),
    "spectrum": lambda net, task: ws.Pullback(task).spectrum(net),
    "displacement": lambda net, task: ws.trust.displacement(net, task, 0.1).relative,
    "flow": lambda net, task: ws.flow(net, ws.learn(task), ws.Pullback(task), steps=2, size=0.1)[-1].weights.flat(),
}


@pytest.mark.parametrize("way", ["checkpoint", "reentrant", "sequential", "slices"])
def test_one_map_has_one_answer(way):
    task = Task(drawn(5, 4, 4), torch.tensor([0, 1, 2, 0, 1]))
    original = torch.utils.checkpoint.CheckpointFunction
    for name, ask in QUESTIONS.items():
        plain, found = (torch.as_tensor(ask(layered(w), task)) for w in ("plain", way))
        assert torch.allclose(plain, found, rtol=1e-8, atol=1e-12), name
    assert torch.utils.checkpoint.CheckpointFunction is original


@pytest.mark.parametrize("name", sorted(CASES))
def test_the_jacobian_of_every_architecture(name):
    case = CASES[name]
    net = noisy(case, 0)
    task = Task(case.example(0), torch.zeros(len(_first(case.example(0)))), output=_flat)
    assert adjoint(net, task) < 1e-9


def _first(example) -> Tensor:
    values = example.values() if isinstance(example, dict) else example if isinstance(example, tuple) else [example]
    return next(iter(values))


def _flat(raw) -> Tensor:
    raw = next(iter(raw.values())) if isinstance(raw, dict) else raw[0] if isinstance(raw, tuple) else raw
    return raw.reshape(len(raw), -1)


# ------------------------------------------------------------------ planted errors


def test_torch_is_wrong_where_another_way_is_taken():
    """The laws would not hold by torch's own derivatives, so that a faithful call is what they test."""
    v, g, u = drawn(3, 4).requires_grad_(), drawn(3, 1).exp().requires_grad_(), drawn(3, 4)

    def slope_of(weight_norm) -> Tensor:
        inner = torch.autograd.grad((weight_norm(v, g, 0).sin() * u).sum(), v, create_graph=True)[0]
        return torch.autograd.grad((inner * u).sum(), v)[0]

    assert not torch.allclose(slope_of(torch._weight_norm), slope_of(differentiable._weight_norm), rtol=1e-2)
    ahead = jvp(counted, (u,), (torch.ones_like(u),))[1]
    assert not torch.allclose(ahead, u.sin(), rtol=1e-2)


@pytest.mark.parametrize("op", [torch._weight_norm, F.embedding])
def test_a_rewriting_left_out_is_seen(op, monkeypatch):
    monkeypatch.setattr(differentiable, "_WRITTEN", {k: f for k, f in differentiable._WRITTEN.items() if k is not op})
    if op is F.embedding:
        monkeypatch.setattr(linearised, "trusted", lambda *args: (False, True))
        assert adjoint(*embedded(padding_idx=0)) > 1e-3
    else:
        with pytest.raises(ws.WeightspaceError, match="not the derivative of the first"):
            ws.hessian(normed("weight_norm"), Task(drawn(5, 4), drawn(5, 3, seed=1), aggregate="sum"))


class Mixing(nn.Module):
    """Examples meet, in one of the ways in which they do."""

    def __init__(self, way):
        super().__init__()
        self.first, self.last, self.way = nn.Linear(5, 6), nn.Linear(6, 3), way
        self.norm = nn.BatchNorm1d(6, track_running_stats=False)
        self.memory = nn.GRU(6, 6)

    def forward(self, x):
        h = self.first(x)
        if self.way == "centred":
            h = torch.tanh(h - h.mean(0))
        elif self.way == "attention":
            h = torch.softmax(h @ h.T, -1) @ h
        elif self.way == "recurrence":  # over the examples, as without batch_first
            h = self.memory(h[:, None])[0][:, 0]
        elif self.way == "statistics":
            h = self.norm(h)
        return self.last(h)


@pytest.mark.parametrize("way", ["centred", "attention", "recurrence", "statistics", "apart"])
@pytest.mark.parametrize("question", ["diagonal", "trace", "noise", "ewc", "displacement"])
def test_gradients_of_examples_that_meet_are_refused(way, question):
    torch.manual_seed(0)
    net, task = ws.Net.of(Mixing(way).eval()), ws.Task(torch.randn(12, 5), torch.randint(0, 3, (12,)))
    ask = {
        "diagonal": lambda: ws.curvature_diagonal(net, task),
        "trace": lambda: ws.fisher_trace(task, labels="all")(net),
        "noise": lambda: ws.gradient_noise(task)(net),
        "ewc": lambda: ws.ewc(net, task),
        "displacement": lambda: ws.trust.displacement(net, task, 0.1),
    }[question]
    if way == "apart":
        ask()
        return
    with pytest.raises(ws.WeightspaceError, match="one example"):
        ask()
