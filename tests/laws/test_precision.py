"""Numbers of low precision are summed wide and rounded once; dtypes without arithmetic are named."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import weightspace as ws
from weightspace.net.average import average
from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net
from weightspace.net.weights import Weights, finite, wide
from weightspace.task.task import Task

LOW = (torch.bfloat16, torch.float16)
ULP = {torch.float32: 2**-23, torch.bfloat16: 2**-7, torch.float16: 2**-10, torch.float8_e4m3fn: 2**-3}


def mlp(seed=0):
    torch.manual_seed(seed)
    return Net.of(nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4)))


def family(n, dtype, scale=0.02):
    base = mlp()
    return [(base + scale * base.weights.randn(seed)).to(dtype) for seed in range(n)]


def rounded_once(found, exact, dtype):
    """Every number is within one unit in the last place of the exact one, and nearly all are its rounding."""
    for name, right in exact.weights.items():
        seen, unit = found.weights[name], ULP[dtype] * right.abs() + 2**-9 * (dtype.itemsize == 1)
        assert seen.dtype == dtype
        assert bool(((seen.double() - right).abs() <= unit + 1e-7).all()), name  # scales are balanced to 1e-5
        if dtype != torch.float32:
            assert float((seen.double() == right.to(dtype).double()).double().mean()) > 0.98, name


@pytest.mark.parametrize("dtype", ULP)
def test_averages_and_lines_are_rounded_once(dtype):
    """The mean of k networks is that of the same numbers in float64, rounded once at the end; so is a point between."""
    nets = family(16, dtype)
    exact = [net.double() for net in nets]
    group = ws.Symmetry.of(mlp(), torch.randn(2, 16))
    for ways in (average, ws.swa, lambda nets: ws.mean(nets[:4], group)):
        rounded_once(ways(nets), ways(exact), dtype)
    path, right = ws.Path.through(nets), ws.Path.through(exact)
    bent, curved = ws.Path.bezier(nets[:5]), ws.Path.bezier(exact[:5])
    for t in (0.1, 0.37, 0.5):
        rounded_once(path(t), right(t), dtype)
        rounded_once(ws.line(*nets[:2])(t), ws.line(*exact[:2])(t), dtype)
        if dtype != torch.float32:
            rounded_once(bent(t), curved(t), dtype)
    rounded_once(ws.swa(path), ws.swa(right), dtype)


def test_a_sum_in_low_precision_is_noticed():
    """The law fails on an average that goes from network to network in its own dtype."""
    nets = family(16, torch.bfloat16)
    total = nets[0]
    for count, net in enumerate(nets[1:], start=2):
        total = total + (1 / count) * (net - total)
    with pytest.raises(AssertionError):
        rounded_once(total, average([net.double() for net in nets]), torch.bfloat16)


def test_dtypes_may_differ_inside_of_a_network_and_between_networks():
    """The result has the dtypes of the first network, tensor by tensor; the others are not rounded to them before."""
    base, *others = family(4, torch.float32)
    mixed = Net(
        base.architecture,
        Weights({n: w.to(torch.bfloat16 if "weight" in n else torch.float32) for n, w in base.weights.items()}),
        base.state,
    )
    group = ws.Symmetry.of(mlp(), torch.randn(2, 16))
    nets = [mixed, others[0], others[1].to(torch.float16), others[2].double()]
    exact = [net.double() for net in nets]
    for ways in (average, ws.swa, lambda nets: ws.mean(nets, group)):
        found, right = ways(nets), ways(exact)
        for name, w in found.weights.items():
            assert w.dtype == mixed.weights[name].dtype
            torch.testing.assert_close(w, right.weights[name].to(w.dtype), rtol=2 * ULP[w.dtype], atol=1e-6)
    task = Task(torch.randn(40, 16), torch.arange(40) % 4)
    for first in nets[:2]:
        merged = ws.mean([first, *nets[1:3]], group, data=task)
        assert [w.dtype for w in merged.weights.values()] == [w.dtype for w in first.weights.values()]
        assert not merged.weights.unusable()


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("at", [0.0, 20.0, 200.0])
def test_statistics_are_those_of_the_features(dtype, at):
    """Mean and variance of what a norm is given, on inputs of any mean, as in float32."""
    torch.manual_seed(0)
    net = Net.of(nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))).to(dtype)
    x = (torch.randn(256, 8) + at).to(dtype)
    for batch in (256, 64):
        found = ws.reset_statistics(net, Task(x, torch.zeros(256).long(), batch=batch)).state
        h = F.linear(x.double(), *(net.weights[f"0.{name}"].double() for name in ("weight", "bias")))
        torch.testing.assert_close(found["1.running_mean"], h.mean(0).to(dtype))
        torch.testing.assert_close(found["1.running_var"].double(), h.var(0), rtol=0.03, atol=1e-3)
        assert found["1.running_mean"].dtype == dtype and found["1.num_batches_tracked"].dtype == torch.int64


@pytest.mark.parametrize("dtype", [*LOW, torch.float8_e5m2])
@pytest.mark.parametrize("kind", ["bezier", "polychain"])
def test_curves_are_trained_wide(dtype, kind):
    a, b = family(2, dtype, 0.3)
    curve = ws.curve(a, b, Task(torch.randn(20, 16), torch.arange(20) % 4), kind=kind, steps=5, lr=1e-3)
    assert curve[0] is a and curve[-1] is b
    middle = curve(0.5)
    assert middle.dtype == dtype and not middle.weights.unusable()


def test_complex_numbers_are_numbers():
    """Their imaginary parts count in products, norms and distances, and lie on lines and in averages."""
    w = {"w": torch.randn(3, dtype=torch.complex64), "b": torch.randn(2)}
    a, b = Weights(w), Weights({name: 2 * t + 1 for name, t in w.items()})
    size = sum(float(t.abs().double().square().sum()) for t in w.values()) ** 0.5
    assert float(a.norm()) == pytest.approx(size, rel=1e-6)
    torch.testing.assert_close(a.lerp(b, 0.25)["w"], 0.75 * w["w"] + 0.25 * b["w"])
    architecture = nn.Module()
    net, other = Net(architecture, a, Weights({})), Net(architecture, b, Weights({}))
    torch.testing.assert_close(average([net, other]).weights["w"], (w["w"] + b["w"]) / 2)
    assert ws.euclidean(net, other) == pytest.approx(float((a - b).norm()), rel=1e-6)


@pytest.mark.parametrize(
    "dtype", [torch.uint1, torch.uint4, torch.int4, torch.int7, torch.bits8, torch.float4_e2m1fn_x2]
)
def test_dtypes_that_only_store_are_named(dtype):
    with pytest.raises(WeightspaceError, match=f"scale holds {dtype}, with which torch does not compute"):
        Weights({"scale": torch.empty(4, dtype=dtype)})
    module = nn.Linear(2, 2)
    module.register_buffer("packed", torch.empty(4, dtype=dtype))
    with pytest.raises(WeightspaceError, match=str(dtype).removeprefix("torch.")):
        Net.of(module)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_float8_is_counted_compared_and_named(dtype):
    a, b = family(2, dtype, 0.5)
    exact = (a.double().weights - b.double().weights).norm()
    assert ws.euclidean(a, b) == pytest.approx(float(exact)) and not a.weights.unusable()
    assert float(a.weights.norm()) == pytest.approx(float(a.double().weights.norm()))
    for refused in (lambda: a.weights + b.weights, lambda: 2 * a.weights, lambda: a - b):
        with pytest.raises(WeightspaceError, match=r"float8_.* use \.to\(torch\.float32\) first"):
            refused()
    broken = a.weights.replace({"0.bias": torch.full((32,), float("nan"))})
    assert broken.unusable() == ["0.bias"] and not finite(broken["0.bias"])


def test_the_wide_dtype_of_every_dtype():
    for dtype in (torch.float8_e4m3fn, *LOW):
        assert wide(dtype) == torch.float32
    assert wide(torch.float32) == wide(torch.float64) == torch.float64
    assert wide(torch.complex32) == torch.complex64 and wide(torch.complex64) == torch.complex128


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_members_of_half_precision_are_combined_in_float_and_rounded_once(dtype):
    torch.manual_seed(0)
    base, x = Net.of(nn.Sequential(nn.Linear(5, 50), nn.ReLU(), nn.Linear(50, 3))), torch.randn(40, 5).to(dtype)
    nets = [ws.perturb(base, 0.2, seed=k).to(dtype) for k in range(7)]
    right = (
        torch.stack([net(x).double().log_softmax(-1) for net in nets]).logsumexp(0) - torch.tensor(7.0).double().log()
    )
    found = ws.ensemble(nets)(x)
    assert found.dtype is dtype
    assert float((found.double() - right).abs().max()) < 0.51 * torch.finfo(dtype).eps * 2 ** float(
        right.abs().max().log2().floor()
    )
    exact = ws.swag([net.to(torch.float32) for net in nets], 3)
    for drawn, other in zip(ws.swag(nets, 3), exact, strict=True):
        assert drawn.dtype is dtype and torch.equal(drawn.weights.flat(), other.weights.flat().to(dtype))
