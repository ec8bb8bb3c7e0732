"""Certificates: every argument of an operation and the rounding of both networks are in the bound, or it is refused."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from architectures import CASES, noisy
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from benchmarks import rules
from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net
from weightspace.task.task import Task
from weightspace.trust.bounds import maps, pointwise
from weightspace.trust.bounds.certificate import certificate, lipschitz
from weightspace.trust.bounds.rounding import Arithmetic, BoundError, gamma
from weightspace.trust.bounds.rule import RULES, Far, Value, bind, number
from weightspace.trust.bounds.walk import known
from weightspace.trust.perturbation import perturb

DOUBLE = torch.float64
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SLACK = 1 + 1e-9


class Between(nn.Module):
    """Linear, one operation, linear; `p` is a weight that the operation may take as an argument."""

    def __init__(self, operation, p=0.0):
        super().__init__()
        self.first, self.last, self.operation = nn.Linear(20, 20), nn.Linear(20, 3), operation
        self.p = nn.Parameter(torch.as_tensor(p))

    def forward(self, x):
        return self.last(self.operation(self.first(x), self.p))


class BiasedAttention(nn.Module):
    """Attention with a learned table added to the scores, as relative positions are in T5 and Swin."""

    def __init__(self):
        super().__init__()
        self.q, self.v = nn.Linear(4, 4), nn.Linear(4, 4)
        self.table = nn.Parameter(torch.zeros(5, 5))

    def forward(self, x):
        q = self.q(x)
        return F.scaled_dot_product_attention(q, q, self.v(x), attn_mask=self.table).flatten(1)


class Addmm(nn.Module):
    def __init__(self, **factors):
        super().__init__()
        self.w, self.b = nn.Parameter(torch.randn(20, 3) * 0.1), nn.Parameter(torch.randn(3))
        self.factors = factors

    def forward(self, x):
        return torch.addmm(self.b, x, self.w, **self.factors)


def moved(module, change):
    """The network, and the same with its weights changed in place by `change`."""
    net = Net.of(module)
    other = net.module()
    with torch.no_grad():
        change(other)
    return net, net.load(dict(other.state_dict()))


def displaced(a, b, task):
    """sqrt(mean over x of |f_b(x) - f_a(x)|^2), measured."""
    away = task.outputs(b).double() - task.outputs(a).double()
    return float(away.flatten(1).norm(dim=1).square().mean().sqrt())


def check(a, b, x, slack=1e-9):
    """How many of the two bounds there are: each is at least what is measured, or refused in words of the rules."""
    task, bounded = Task(x), 0
    for data in (True, False):
        measured = displaced(a, b, task)
        try:
            bound = certificate(a, b, task, data=data).bound
        except BoundError as error:
            assert "the rules allow" not in str(error) and "rounding explains" not in str(error)
            continue
        bounded += 1
        assert measured <= bound * (1 + slack), f"{measured:.4g} measured, {bound:.4g} proven (data={data})"
    return bounded


# ------------------------------------------------------------------ arguments that are weights or other constants


def test_a_learned_table_of_an_attention_is_a_weight():
    """Nothing but the bias table inside attention changes, and the outputs move by 1.8."""
    torch.manual_seed(0)
    a, b = moved(BiasedAttention(), lambda m: m.table.copy_(3 * torch.randn(5, 5)))
    assert check(a, b, torch.randn(6, 5, 4)) == 2


def test_a_learned_clipping_level_is_a_weight():
    """clamp(h, max=p) with p a weight: where p differs there is no bound, where it is the same it is a number."""
    torch.manual_seed(0)
    a, b = moved(Between(lambda h, p: h.clamp(max=p), 1.0), lambda m: m.p.fill_(0.1))
    with pytest.raises(BoundError, match="clamp whose max is a weight"):
        certificate(a, b, Task(torch.randn(6, 20)))
    a, b = moved(Between(lambda h, p: h.clamp(max=p), 1.0), lambda m: m.first.weight.mul_(1.1))
    assert check(a, b, 3 * torch.randn(6, 20)) == 2


@pytest.mark.parametrize("factors", [{"alpha": 5.0}, {"beta": 3.0}, {"alpha": -2.0, "beta": 0.0}])
def test_the_factors_of_addmm_count(factors):
    torch.manual_seed(0)
    a, b = moved(Addmm(**factors), lambda m: (m.w.add_(0.1 * torch.randn(20, 3)), m.b.add_(0.3)))
    assert check(a, b, torch.randn(6, 20)) == 2


def test_dropout_that_is_left_on_is_no_identity():
    """F.dropout(h, .5) draws at random in evaluation too, so a network is not at distance 0 from itself."""
    for operation in (
        lambda h, p: F.dropout(h, 0.5),
        lambda h, p: F.alpha_dropout(h, 0.5, training=True),
        lambda h, p: h + torch.rand(20),
        lambda h, p: h * torch.bernoulli(torch.full((20,), 0.5)),
    ):
        net = Net.of(Between(operation))
        with pytest.raises(BoundError, match=r"train=True|draws at random|no bound is known"):
            certificate(net, net, Task(torch.randn(6, 20)))


@pytest.mark.parametrize("rounding", ["floor", "trunc"])
def test_a_division_that_rounds_is_no_division(rounding):
    """It jumps, so no Lipschitz constant holds."""
    torch.manual_seed(0)
    a, b = moved(Between(lambda h, p: torch.div(h, 1.0, rounding_mode=rounding)), lambda m: m.first.bias.add_(1e-3))
    with pytest.raises(BoundError, match=r"rounding_mode|no bound is known for (floor|trunc)"):
        certificate(a, b, Task(torch.randn(9, 20)))


@pytest.mark.parametrize("threshold", [1.0, -2.0, 20.0])
def test_softplus_jumps_at_its_threshold(threshold):
    """It is the identity above, and jumps there by log(1 + exp(-threshold))."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(20, 3), nn.Softplus(threshold=threshold))
    a, b = moved(layers, lambda m: m[0].bias.add_(1e-3))
    assert check(a, b, torch.randn(4000, 20)) == 2
    if threshold < 20:
        with pytest.raises(BoundError, match="has no Lipschitz constant"):
            lipschitz(a, Task(torch.randn(5, 20)))


def test_rms_norm_takes_the_epsilon_of_its_dtype():
    """Without eps that is the machine epsilon: 2.2e-16 in float64, where small activations move far."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(20, 8, bias=False), nn.RMSNorm(8)).double()
    with torch.no_grad():
        module[0].weight.mul_(1e-6)
    a, b = moved(module, lambda m: m[0].weight.add_(1e-7 * torch.randn(8, 20, dtype=DOUBLE)))
    check(a, b, torch.randn(6, 20, dtype=DOUBLE))
    check(a.to(torch.float32), b.to(torch.float32), torch.randn(6, 20))


def test_hardtanh_may_be_far_from_zero_at_zero():
    """hardtanh(h, .5, 2) is at least .5 whatever comes in, which counts where norms alone are known."""
    torch.manual_seed(1)
    a, b = moved(
        Between(lambda h, p: F.hardtanh(0.1 * h, 0.5, 2.0)),
        lambda m: m.last.weight.add_(0.3 * torch.randn(3, 20)),
    )
    assert check(a, b, 0.01 * torch.randn(6, 20)) == 2


OTHERS = {
    "clamp, a tensor below": lambda h, p: torch.clamp(h, min=p),
    "maximum with a weight": torch.maximum,
    "a scale that is a weight": lambda h, p: h * p,
    "a divisor that is a weight": lambda h, p: h / p,
    "a shift by a weight": lambda h, p: torch.add(h, p, alpha=4),
    "a number out of a weight": lambda h, p: h * p.item(),
    "a slope out of a weight": lambda h, p: F.leaky_relu(h, p.item()),
    "a learned slope": lambda h, p: F.prelu(h, p.view(1)),
    "an exponential of a weight": lambda h, p: h * p.exp(),
    "a gate of a weight": lambda h, p: h * torch.sigmoid(p),
    "a mask from a weight": lambda h, p: torch.where(p > 0.6, h, 2 * h),
    "elu, alpha": lambda h, p: F.elu(h, alpha=-3.0),
    "celu, alpha": lambda h, p: F.celu(h, alpha=0.3),
    "softplus, beta": lambda h, p: F.softplus(h, beta=0.2),
    "softplus, negative beta": lambda h, p: F.softplus(h, beta=-2.0),
    "threshold": lambda h, p: F.threshold(h, 0.5, 20.0),
    "hardshrink": lambda h, p: F.hardshrink(h, 0.5),
    "round": lambda h, p: h.round(),
    "pad, reflect": lambda h, p: F.pad(h, (1, 1), mode="reflect")[:, 1:-1],
    "a norm over a learned gain": lambda h, p: F.layer_norm(h, (20,), p.expand(20), eps=1e-3),
    "batch statistics": lambda h, p: F.batch_norm(h, None, None, training=True),
    "a softmax in float16": lambda h, p: F.softmax(h, -1, dtype=torch.float16).to(h.dtype),
    "a cast to whole numbers": lambda h, p: h.to(torch.int32).to(h.dtype),
    "bits seen in another way": lambda h, p: h.view(torch.int32).view(torch.float32),
    "sum of integers": lambda h, p: h.sum(-1, keepdim=True, dtype=torch.int64).to(h.dtype) + h,
    "attention, dropout": lambda h, p: F.scaled_dot_product_attention(*[h.view(-1, 5, 4)] * 3, dropout_p=0.4).reshape(
        -1, 20
    ),
    "attention, scale": lambda h, p: F.scaled_dot_product_attention(*[h.view(-1, 5, 4)] * 3, scale=9.0).reshape(-1, 20),
    "attention, a table": lambda h, p: F.scaled_dot_product_attention(
        *[h.view(-1, 5, 4)] * 3, attn_mask=p * torch.arange(5.0)
    ).reshape(-1, 20),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_an_operation_is_told_is_in_the_bound_or_refused(name):
    """p goes from .7 to .5 and the first layer moves too."""
    torch.manual_seed(0)
    a, b = moved(Between(OTHERS[name], 0.7), lambda m: (m.p.fill_(0.5), m.first.weight.add_(1e-3)))
    check(a, b, torch.randn(30, 20))


def test_networks_of_the_same_tensors_and_another_function_are_refused():
    relu, tanh = (nn.Sequential(nn.Linear(4, 5), between, nn.Linear(5, 2)) for between in (nn.ReLU(), nn.Tanh()))
    leaky = nn.Sequential(nn.Linear(4, 5), nn.LeakyReLU(0.1), nn.Linear(5, 2))
    leakier = nn.Sequential(nn.Linear(4, 5), nn.LeakyReLU(0.3), nn.Linear(5, 2))
    for one, other, said in ((relu, tanh, "different functions"), (leaky, leakier, "in different ways")):
        other.load_state_dict(one.state_dict())
        with pytest.raises(BoundError, match=said):
            certificate(Net.of(one), Net.of(other), Task(torch.randn(6, 4)))


# ------------------------------------------------------------------ the registry: no argument goes unseen


def overloads(name):
    packet = getattr(torch.ops.aten, name)
    return [
        getattr(packet, key)
        for key in packet.overloads()
        if any(a.name in ("self", "input", "tensors", "query", "weight") for a in schema(packet, key))
        and not any(a.is_out for a in schema(packet, key))
    ]


def schema(packet, key):
    return getattr(packet, key)._schema.arguments


@pytest.mark.parametrize("name", sorted(RULES))
def test_a_rule_names_arguments_that_the_operation_has(name):
    known_names = {a.name for overload in overloads(name) for a in overload._schema.arguments}
    rule = RULES[name]
    assert known_names & {*rule.values}, "a rule without values"
    family = {a for other, r in RULES.items() if r is rule for o in overloads(other) for a in names_of(o)}
    assert {*rule.values, *rule.plain, *rule.shapes, *rule.where} <= family


def names_of(overload):
    return [a.name for a in overload._schema.arguments]


FORM = {"layout", "device", "pin_memory", "non_blocking", "memory_format", "copy"}


@pytest.mark.parametrize("name", sorted(RULES))
def test_an_argument_that_no_rule_covers_is_refused(name):
    """Every argument of every overload that the rule does not name, at a value that is not its default."""
    rule = RULES[name]
    for overload in overloads(name):
        for argument in overload._schema.arguments:
            if argument.name in (*rule.values, *rule.plain, *rule.shapes, *FORM):
                continue
            with pytest.raises(BoundError, match=f"no bound is known for {name} with {argument.name}="):
                bind(called(overload, {argument.name: "another"}), lambda node: number(1.0))


@pytest.mark.parametrize("name", sorted(RULES))
def test_a_setting_that_moves_is_refused(name):
    """A number that depends on the inputs, or that is a weight which differs, is none that a rule may look at."""
    moving = Value(torch.ones(()).double(), Far(1.0, 0.0, 0.1), False)
    differing = known(torch.tensor(1.0), torch.tensor(2.0))
    rule = RULES[name]
    free = {*rule.values, *rule.plain, *rule.shapes, *rule.where}
    for overload in overloads(name):
        for argument in overload._schema.arguments:
            if not all(a.name in free or a.has_default_value() for a in overload._schema.arguments):
                continue  # an overload that is never covered
            if argument.name in rule.plain:
                for value, said in ((moving, "depends on the inputs"), (differing, "is a weight")):
                    with pytest.raises(BoundError, match=f"{name} whose {argument.name} {said}"):
                        bind(called(overload, {}, argument.name), lambda node, value=value: value)


def called(overload, given, at=None):
    """A call of the overload whose other arguments stand where the rule allows them."""
    graph = torch.fx.Graph()
    node, name = graph.placeholder("x"), overload._overloadpacket.__name__
    where = {key: only[0] for key, only in RULES[name].where.items() if key in names_of(overload)}
    return graph.call_function(overload, (), {**where, **given, **({at: node} if at else {})})


# ------------------------------------------------------------------ rules, on arguments drawn at random


def broken(name, draws, first=0):
    return [seen.ratio for seen in (rules.once(name, first + k) for k in range(draws)) if seen.ratio > SLACK]


@pytest.mark.parametrize("name", sorted(RULES))
def test_no_bound_of_a_rule_is_exceeded(name):
    """Settings over their whole domain, four dtypes, weights moved at random and up the gradient: never below."""
    draws = 8 if name.startswith("conv") else 50
    seen = [rules.once(name, 20_000 + k) for k in range(draws)]
    assert max(s.ratio for s in seen) <= SLACK
    assert sum(not s.refused for s in seen) > draws / 4


PLANTED = {
    "gelu": (pointwise, "GELU", 1.0),
    "silu": (pointwise, "SILU", 0.9),
    "mish": (pointwise, "MISH", 1.0),
    "linear": (maps, "spectral_bound", lambda w: 0.7 * float(torch.linalg.matrix_norm(w.double(), 2))),
    "addmm": (maps, "_times", lambda value, factor: value),
    "scaled_dot_product_attention": (maps, "_mask", lambda *rest: Far(0.0, 0.0, 0.0)),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_rule_that_is_too_low_is_seen(name, monkeypatch):
    assert not broken(name, 150)
    monkeypatch.setattr(*PLANTED[name])
    assert broken(name, 150)


@pytest.mark.parametrize("name", ["add", "linear", "layer_norm", "sum", "softmax", "sigmoid"])
def test_rounding_that_is_left_out_is_seen(name, monkeypatch):
    monkeypatch.setattr(Arithmetic, "error", lambda self, *rest: 0.0)
    assert broken(name, 60)


# ------------------------------------------------------------------ constants


def steepest(f):
    """sup |f'| of a smooth function, to 1e-13: on a grid, then by halving around its highest point."""

    def slope(x):
        x = x.clone().requires_grad_()
        return torch.autograd.grad(f(x).sum(), x)[0].abs()

    low, high = -30.0, 30.0
    for _ in range(12):
        grid = torch.linspace(low, high, 4001, dtype=DOUBLE)
        values = slope(grid)
        at = int(values.argmax())
        low, high = float(grid[max(0, at - 1)]), float(grid[min(4000, at + 1)])
    return float(values.max())


@pytest.mark.parametrize(
    ("constant", "f"),
    [
        (pointwise.GELU, F.gelu),
        (pointwise.GELU_TANH, lambda x: F.gelu(x, approximate="tanh")),
        (pointwise.SILU, F.silu),
        (pointwise.MISH, F.mish),
        (pointwise.SELU, F.selu),
    ],
)
def test_constants_are_the_steepest_slopes(constant, f):
    assert 0 <= constant - steepest(f) < 1e-12


@pytest.mark.parametrize("n", [2, 3, 17])
def test_the_steepest_softmax_is_a_half(n):
    """|diag(p) - p p^T|_2 = 1/2 where two entries share all, and nowhere more; of its logarithm, sqrt(n)."""
    x = torch.full((1, n), -800.0, dtype=DOUBLE)
    x[0, :2] = 0
    peak = torch.zeros(1, n, dtype=DOUBLE)
    peak[0, 0] = 800.0
    for f, at, value in ((F.softmax, x, 0.5), (F.log_softmax, peak, math.sqrt(n))):
        jacobian = torch.autograd.functional.jacobian(lambda h, f=f: f(h, -1), at).squeeze()
        assert float(torch.linalg.matrix_norm(jacobian, 2)) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize("dtype", [*DTYPES, DOUBLE])
def test_units_of_roundoff_are_those_of_torch(dtype):
    arithmetic = Arithmetic.of(dtype)
    one = torch.ones((), dtype=dtype)
    assert float(one + 2 * arithmetic.unit) > 1 == float(one + 0.999 * arithmetic.unit)
    assert gamma(3, arithmetic.inner) >= (1 + arithmetic.inner) ** 3 - 1
    with pytest.raises(BoundError, match="rounding of torch.float8"):
        Arithmetic.of(torch.float8_e4m3fn)


# ------------------------------------------------------------------ the tight point of every rule, in a network


ACTIVATIONS = {
    "gelu": nn.GELU(),
    "gelu, tanh": nn.GELU(approximate="tanh"),
    "silu": nn.SiLU(),
    "mish": nn.Mish(),
    "hardswish": nn.Hardswish(),
    "selu": nn.SELU(),
    "elu, alpha 3": nn.ELU(3.0),
    "celu": nn.CELU(2.0),
    "sigmoid": nn.Sigmoid(),
    "hardsigmoid": nn.Hardsigmoid(),
    "softplus, beta 5": nn.Softplus(beta=5.0),
    "tanh": nn.Tanh(),
    "softsign": nn.Softsign(),
    "leaky, slope 2": nn.LeakyReLU(2.0),
    "leaky, slope -3": nn.LeakyReLU(-3.0),
    "hardtanh": nn.Hardtanh(-0.5, 2.0),
    "relu6": nn.ReLU6(),
}


def tight(module, change, x):
    a, b = moved(module.double(), change)
    assert displaced(a, b, Task(x)) > 0
    return check(a, b, x)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_steepest_point_of_an_activation(name):
    """A bias moves by .001 where the activation is steepest, so that the bound is its Lipschitz constant times .001."""
    act, h = ACTIVATIONS[name], 1e-3
    grid = torch.linspace(-8, 8, 16001, dtype=DOUBLE)
    at = grid[int(((act(grid + h) - act(grid)).abs() / h).argmax())]
    layer = nn.Linear(1, 1).to(DOUBLE)
    with torch.no_grad():
        layer.weight.fill_(1.0)
        layer.bias.fill_(0.0)
    assert tight(nn.Sequential(layer, act), lambda m: m[0].bias.add_(h), at.view(1, 1)) == 2 * (name != "softsign")


class Attention(nn.Module):
    """Queries, keys and values of one number each; the queries start at zero."""

    def __init__(self, by_hand):
        super().__init__()
        self.q, self.kv, self.by_hand = nn.Linear(1, 1), nn.Linear(1, 2, bias=False), by_hand
        with torch.no_grad():
            self.q.weight.zero_()
            self.q.bias.zero_()
            self.kv.weight.fill_(1.0)

    def forward(self, x):
        q, (k, v) = self.q(x), self.kv(x).chunk(2, -1)
        if self.by_hand:
            return ((q @ k.mT).softmax(-1) @ v).flatten(1)
        return F.scaled_dot_product_attention(q, k, v).flatten(1)


@pytest.mark.parametrize("by_hand", [False, True])
def test_the_softmax_of_an_attention(by_hand):
    """Two tokens 1 and -1, all scores 0: softmax is steepest, and every other inequality on the way is an equality."""
    x = torch.tensor([[[1.0], [-1.0]]], dtype=DOUBLE)
    assert tight(Attention(by_hand), lambda m: m.q.bias.add_(1e-4), x) == 2


OPERATIONS = {
    "max_pool1d 3/1": lambda h: F.max_pool1d(h[:, None], 3, 1),
    "max_pool1d 5/2": lambda h: F.max_pool1d(h[:, None], 5, 2, 2),
    "max_pool1d, dilated": lambda h: F.max_pool1d(h[:, None], 3, 1, 0, 3),
    "adaptive_max_pool1d": lambda h: F.adaptive_max_pool1d(h[:, None], 5),
    "adaptive_max_pool1d, more": lambda h: F.adaptive_max_pool1d(h[:, None, :3], 8),
    "avg_pool1d 3/1": lambda h: F.avg_pool1d(h[:, None], 3, 1, 1),
    "avg_pool1d, ceil": lambda h: F.avg_pool1d(h[:, None], 5, 3, 1, True, False),
    "avg_pool2d, divisor": lambda h: F.avg_pool2d(h.view(-1, 1, 3, 4), 2, 1, divisor_override=1),
    "adaptive_avg_pool1d": lambda h: F.adaptive_avg_pool1d(h[:, None], 5),
    "upsample": lambda h: F.interpolate(h[:, None], size=20, mode="nearest"),
    "upsample, a scale": lambda h: F.interpolate(h[:, None, :3], scale_factor=2.1, mode="nearest"),
    "layer_norm": lambda h: F.layer_norm(h, (12,)),
    "group_norm": lambda h: F.group_norm(h, 3),
    "rms_norm": lambda h: F.rms_norm(h, (12,), eps=1e-3),
    "softmax": lambda h: h.softmax(-1),
    "log_softmax": lambda h: h.log_softmax(-1),
    "sum": lambda h: h.view(-1, 3, 4).sum(1),
    "mean": lambda h: h.view(-1, 3, 4).mean(2),
    "expand": lambda h: h[:, None].expand(-1, 3, -1),
    "add": lambda h: torch.add(h, h.roll(1, -1), alpha=2),
    "square": lambda h: h * h,
    "matmul": lambda h: h.view(-1, 3, 4) @ h.view(-1, 4, 3),
}


class Shifted(nn.Module):
    """An operation after x + bias."""

    def __init__(self, operation):
        super().__init__()
        self.layer, self.operation = nn.Linear(12, 12), operation
        with torch.no_grad():
            self.layer.weight.copy_(torch.eye(12))
            self.layer.bias.zero_()

    def forward(self, x):
        return self.operation(self.layer(x))


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_steepest_direction_of_an_operation(name):
    """The bias moves along the top singular vector of the Jacobian, at a random input and at one with a single peak."""
    operation = OPERATIONS[name]
    for k in range(2):
        x = torch.randn(1, 12, dtype=DOUBLE, generator=torch.Generator().manual_seed(k))
        x = x if k == 0 else 0.01 * x + 5 * torch.eye(12, dtype=DOUBLE)[5:6]
        jacobian = torch.autograd.functional.jacobian(lambda h: operation(h).flatten(), x)[:, 0]
        direction = torch.linalg.svd(jacobian).Vh[0]
        if k == 0 or jacobian.any():
            assert tight(Shifted(operation), lambda m, d=direction: m.layer.bias.add_(1e-5 * d), x) == 2


# ------------------------------------------------------------------ rounding, and two dtypes


def mlp(seed, dtype, scale=1.0):
    torch.manual_seed(seed)
    layers = nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
    with torch.no_grad():
        for layer in layers[::2]:
            layer.bias.mul_(scale)
    return layers.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rounding_is_part_of_what_is_proven(dtype):
    """One weight moves by one unit in its last place, so that rounding of the outputs is as large as the change."""
    moved_at_all = 0
    for seed in range(40):
        x = torch.randn(6, 20, dtype=dtype, generator=torch.Generator().manual_seed(seed))
        k = 2 * (seed % 3)
        up = 1 + torch.finfo(dtype).eps
        a, b = moved(mlp(seed, dtype, 10.0), lambda m, k=k, up=up: m[k].weight[0, 0].mul_(up))
        moved_at_all += displaced(a, b, Task(x)) > 0
        assert check(a, b, x) == 2
    assert moved_at_all > 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", [c for c in CASES.values() if c.name in (
    "cnn_bn", "mlp_layernorm_relu", "resnet_gn4", "encoder_layer", "mha", "weight_norm", "embedding_mean",
    "conv_transpose")], ids=lambda c: c.name)  # fmt: skip
def test_rounding_on_architectures(case, dtype):
    """By one unit in the last place of every weight, and against the same network in another dtype."""
    a = noisy(case, 0).to(dtype)
    generator = torch.Generator().manual_seed(0)
    unit = torch.finfo(dtype).eps
    b = a.at(a.weights.map(lambda w: w * (1 + unit * torch.randint(-1, 2, w.shape, generator=generator).to(w))))
    example = case.example(1)
    for x, y in ((a, b), (a.to(torch.float32), a), (a, a.double())):
        check(x, y, example)


def test_a_network_and_its_cast():
    """What does it cost to store a network in half the bytes? A bound that holds, and not a useless one."""
    a, x = Net.of(mlp(0, torch.float32)), torch.randn(30, 20)
    for dtype, most in ((torch.bfloat16, 0.25), (torch.float16, 0.03), (torch.float64, 1e-4)):
        assert check(a, a.to(dtype), x) == check(a.to(dtype), a, x) == 2
        assert certificate(a, a.to(dtype), Task(x)).relative < most


def test_the_same_numbers_in_the_same_arithmetic_are_the_same():
    """Equal networks are at 0, whatever their dtype; what comes before the first weight that differs adds nothing."""
    x = torch.randn(30, 20, generator=torch.Generator().manual_seed(0))
    for dtype in (*DTYPES, DOUBLE):
        a = Net.of(mlp(0, dtype))
        assert certificate(a, a, Task(x)).bound == certificate(a, Net.of(mlp(0, dtype)), Task(x)).bound == 0
        assert certificate(a, a, Task(x), data=False).bound == 0
    a, b = moved(mlp(0, torch.bfloat16), lambda m: m[4].bias.add_(0.5))
    c, d = moved(mlp(0, torch.bfloat16), lambda m: (m[4].bias.add_(0.5), m[0].weight[0, 0].mul_(1.01)))
    near, far = certificate(a, b, Task(x)).bound, certificate(c, d, Task(x)).bound
    assert 0 <= near - displaced(a, b, Task(x)) < 0.5 * (far - displaced(c, d, Task(x)))


def test_rounding_is_small_beside_an_ordinary_change():
    """5 % of every weight of a float32 network of width 64: what rounding adds to the bound is below a thousandth."""
    a = Net.of(mlp(0, torch.float32))
    b, t = perturb(a, 0.05, seed=0), Task(torch.randn(100, 20))
    for data in (True, False):
        single, double = (certificate(x, y, t, data=data).bound for x, y in ((a, b), (a.double(), b.double())))
        assert double < single < 1.001 * double


def test_values_that_leave_the_range_of_a_dtype_have_no_finite_bound():
    net, x = Net.of(mlp(0, torch.float32)), torch.randn(30, 20, generator=torch.Generator().manual_seed(0))
    a, b = (net.at(times * net.weights).to(torch.float16) for times in (40, 44))
    assert certificate(a, b, Task(x)).bound == math.inf > certificate(a.double(), b.double(), Task(x)).bound
    with pytest.raises(BoundError, match="not finite"):
        certificate(*(net.at(times * net.weights).to(torch.float16) for times in (100, 110)), Task(x))
    with pytest.raises(WeightspaceError):
        certificate(net, net.to(torch.float8_e4m3fn), Task(x))


def test_a_network_that_is_not_its_graph_is_refused():
    """The outputs themselves are compared with their value in float64 before anything is handed out."""

    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x):
            return self.layer(x) * (1.0 if torch.compiler.is_compiling() else 1.01)

    net = Net.of(Counting())
    with pytest.raises(BoundError, match="something else than its graph"):
        certificate(net, perturb(net, 0.1), Task(torch.randn(5, 3)))


@pytest.mark.parametrize(("name", "seed"), [("sub", 7792), ("sub", 3133), ("add", 0), ("adaptive_avg_pool3d", 0)])
def test_what_is_rounded_to_the_dtype_before_it_is_added_is_in_the_bound(name, seed):
    """alpha, a plain number and their product in half precision; sums that are kept in the dtype of the input."""
    assert rules.once(name, seed).ratio <= 1 + 1e-9


class NumberAdded(nn.Module):
    """A number is added that nearly cancels the input: what is left is smaller than the rounding of the number."""

    def __init__(self, number: float) -> None:
        super().__init__()
        self.number, self.gain = number, nn.Parameter(torch.ones(1, 4, dtype=DOUBLE))

    def forward(self, x):
        return self.gain * (x + self.number)


class DividedByANumber(NumberAdded):
    def forward(self, x):
        return self.gain * x / self.number


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("number", [2.617777452920633, -1e-7, 0.1])
def test_a_number_is_rounded_to_the_dtype_of_the_network(number, dtype):
    net = Net.of(NumberAdded(number))
    task = Task(torch.full((2, 4), -number, dtype=DOUBLE).to(dtype).double())
    assert displaced(net, net.to(dtype), task) <= certificate(net, net.to(dtype), task).bound < 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("number", [2.617777452920633, -1e-3, 8.0])
def test_division_by_a_number_that_is_rounded_is_bounded_and_not_refused(number, dtype):
    net, task = Net.of(DividedByANumber(number)), Task(torch.randn(5, 4, dtype=DOUBLE))
    found = certificate(net, net.to(dtype), task)
    assert displaced(net, net.to(dtype), task) <= found.bound and found.relative < 10 * torch.finfo(dtype).eps


@given(st.floats(-1e4, 1e4), st.sampled_from(DTYPES))
def test_the_rounding_of_a_number_is_what_torch_does(x, dtype):
    apart, found = abs(float(torch.tensor(x, dtype=DOUBLE).to(dtype)) - x), Arithmetic.of(dtype).rounded(x)
    assert apart <= found * (1 + 1e-12) and found <= max(apart * (1 + 1e-12), 2 * Arithmetic.of(dtype).tiny)
