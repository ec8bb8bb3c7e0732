"""How far weights move, and what the outputs do then: norms, distances, certificates, expected displacement."""

from __future__ import annotations

import math
from statistics import median

import pytest
import torch
from architectures import CASES, noisy
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from weightspace.curvature.gradients import traces
from weightspace.flows.goals import learn
from weightspace.flows.stepper import flow
from weightspace.linear.norms import convolution_bound, convolution_norm, spectral_bound, spectral_norm
from weightspace.metric.metric import Adam, Euclidean, Relative, Spectral, by_layer
from weightspace.metric.pullback import Pullback
from weightspace.net.errors import SymmetryError, WeightspaceError
from weightspace.net.net import Net
from weightspace.net.seeds import derived
from weightspace.symmetry.quotient import modulo
from weightspace.symmetry.symmetry import Symmetry
from weightspace.task.classification import accuracy
from weightspace.task.goal import gradient
from weightspace.task.task import Task
from weightspace.trust.bounds import maps
from weightspace.trust.bounds.certificate import certificate, certificates, lipschitz
from weightspace.trust.bounds.rounding import BoundError
from weightspace.trust.expected_displacement import displacement
from weightspace.trust.perturbation import movable, perturb, stability, width
from weightspace.trust.relative import log_relative_trust, relative_distances, relative_trust
from weightspace.trust.sensitivity import breakdown, sensitivities, trust_per_example

GRAINS = ("tensor", "neuron")


def net(seed: int = 0, sizes: tuple[int, ...] = (5, 8, 8, 3), bias: bool = True, between=nn.ReLU) -> Net:
    torch.manual_seed(seed)
    layers = [part for i, o in zip(sizes, sizes[1:], strict=False) for part in (nn.Linear(i, o, bias), between())]
    return Net.of(nn.Sequential(*layers[:-1]).double())


def task(n: int = 30, width: int = 5, seed: int = 0, classes: int = 3) -> Task:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, width, generator=generator, dtype=torch.float64)
    return Task(x, torch.randint(0, classes, (n,), generator=generator))


def apart(a: Net, b: Net, t: Task) -> float:
    with torch.no_grad():
        return float((t.outputs(b) - t.outputs(a)).norm()) / math.sqrt(len(t))


# ------------------------------------------------------------------ norms


@pytest.mark.parametrize("shape", [(3_000_001,), (7, 500_000), (3, 2, 2, 2), (1,), ()])
def test_norms_are_exact_in_float32(shape):
    w = torch.randn(shape)
    assert float(by_layer(w)[0]) == pytest.approx(float(w.double().norm()), rel=1e-7)
    if w.dim() > 1:
        rows = w.double().flatten(1).norm(dim=1)
        assert torch.allclose(by_layer(w, "neuron"), rows, rtol=1e-7)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 99), st.floats(0, 3))
def test_operator_norms_are_known_from_both_sides(rows, columns, seed, decay):
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(rows, columns, generator=g, dtype=torch.float64) * torch.arange(1, columns + 1) ** -decay
    true = float(torch.linalg.svdvals(w)[0])
    below, above = spectral_norm(w), spectral_bound(w)
    assert true * (1 - 1e-4) <= below <= true * (1 + 1e-9) and true <= above <= true * 1.01
    assert not true <= spectral_bound(0.98 * w), "a bound that is too low is seen"


@settings(deadline=None, max_examples=30)
@given(
    st.integers(1, 2), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(0, 2), st.integers(1, 2),
    st.integers(1, 2), st.integers(1, 2), st.integers(0, 99),
)  # fmt: skip
def test_convolutions_against_their_matrix(rank, units, channels, taps, padding, stride, dilation, groups, seed):
    g = torch.Generator().manual_seed(seed)
    kernel = torch.randn(units * groups, channels, *[taps] * rank, generator=g, dtype=torch.float64)
    how = {"padding": padding, "stride": stride, "dilation": dilation, "groups": groups}
    size = (6,) * rank
    eye = torch.eye(channels * groups * 6**rank, dtype=torch.float64).view(-1, channels * groups, *size)
    dense = (nn.functional.conv1d, nn.functional.conv2d)[rank - 1](eye, kernel, None, **how).flatten(1)
    true = float(torch.linalg.svdvals(dense)[0])
    below, above = convolution_norm(kernel, size, tolerance=1e-7, **how), convolution_bound(kernel, groups)
    assert true * (1 - 1e-3) <= below <= true * (1 + 1e-9) and true <= above


def test_the_bound_of_a_convolution_is_near_on_large_maps():
    kernel = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    assert 1 <= convolution_bound(kernel) / convolution_norm(kernel, (64, 64), padding=1) < 1.05


def test_norms_refuse_what_has_none():
    with pytest.raises(WeightspaceError, match="NaN or infinity"):
        spectral_norm(torch.tensor([[1.0, math.nan]]))
    with pytest.raises(WeightspaceError, match="needs 2 positive sizes"):
        convolution_norm(torch.ones(1, 1, 3, 3), (5,))
    assert spectral_norm(torch.zeros(3, 2)) == spectral_bound(torch.zeros(3, 2)) == 0


# ------------------------------------------------------------------ metrics


@pytest.mark.parametrize("metric", [Relative(), Relative("neuron"), Spectral()])
def test_norms_are_norms_and_the_steepest_is_steepest(metric):
    a = net()
    u, v, c = (a.weights.randn(k) for k in range(3))
    size = metric.norm(a, v)
    assert float(metric.norm(a, -2 * v)) == pytest.approx(2 * float(size), rel=1e-6)
    assert float(metric.norm(a, u + v)) <= float(metric.norm(a, u) + size) * (1 + 1e-6)
    best = metric.steepest(a, c)
    assert float(metric.norm(a, best)) == pytest.approx(1, rel=1e-4)
    for k in range(20):
        other = a.weights.randn(10 + k)
        assert float(c.dot(best)) <= float(c.dot(other / float(metric.norm(a, other)))) + 1e-9
    with pytest.raises(WeightspaceError, match="NaN"):
        metric.steepest(a, c * math.nan)


def test_a_flow_under_relative_is_fromage_without_its_factor():
    a, t, rate = net(), task(), 0.03
    path = flow(a, t, Relative(), steps=3, size=rate, save=1)
    w = a
    for k in range(3):
        g = gradient(t, w)
        step = {n: x - rate * float(x.norm() / g[n].norm()) * g[n] for n, x in w.weights.items()}
        w = w.at(w.weights.replace(step))
        assert float((w - path[k + 1]).norm()) < 1e-12
    zero = a.at(a.weights.replace({"0.bias": torch.zeros(8, dtype=torch.float64)}))
    moved = flow(zero, t, Relative(), steps=1, size=rate)[-1]
    assert float(moved.weights["0.bias"].norm()) == pytest.approx(rate), "one stands for the norm of a zero tensor"


@pytest.mark.parametrize("metric", [Relative(), Relative("neuron"), Spectral()])
def test_permutations_are_isometries(metric):
    a = net()
    move = Symmetry.of(a, task().example(2)).sample(0, kinds=("permutation",))
    v = a.weights.randn(1)
    assert float(metric.norm(move(a), move(v))) == pytest.approx(float(metric.norm(a, v)), rel=1e-4)


# ------------------------------------------------------------------ relative distances


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(-3, 1), min_size=2, max_size=2), st.integers(0, 10_000), st.sampled_from(GRAINS))
def test_log_relative_trust_is_a_quasi_metric(sizes, seed, grain):
    a = net(seed)
    b = a + 10 ** sizes[0] * a.weights.randn(seed + 1)
    c = b + 10 ** sizes[1] * a.weights.randn(seed + 2)
    d = [log_relative_trust(x, y, granularity=grain) for x, y in ((a, b), (b, c), (a, c))]
    assert d[2] <= d[0] + d[1] + 1e-12
    both = [log_relative_trust(x, y, symmetric=True, granularity=grain) for x, y in ((a, b), (b, a), (a, a))]
    assert both[0] == pytest.approx(both[1]) and both[2] == 0 < both[0]


def test_relative_trust_itself_breaks_the_triangle():
    a = net()
    b, c = a + a.weights, a + 3 * a.weights
    assert relative_trust(a, c) > relative_trust(a, b) + relative_trust(b, c)
    assert relative_trust(a, b) == pytest.approx(2**3 - 1) and relative_trust(b, a) == pytest.approx(1.5**3 - 1)
    assert relative_trust(a, b, layers="all") == pytest.approx(2**6 - 1)
    assert log_relative_trust(a, b) == pytest.approx(math.log(8))


def test_zero_tensors_and_wrong_words():
    a = net()
    zero = a.at(a.weights.replace({"0.weight": torch.zeros(8, 5, dtype=torch.float64)}))
    assert relative_trust(zero, zero) == 0 and relative_trust(zero, a) == math.inf
    assert float(relative_distances(a, zero)["0.weight"]) == 1
    for words in ({"granularity": "layer"}, {"layers": "some"}):
        with pytest.raises(WeightspaceError, match="takes '(tensor' or 'neuron|weights' or 'all)', got str"):
            relative_distances(a, a, **words)


def test_modulo_the_group_the_minimum_is_exact_by_enumeration():
    t = task()
    nets = [net(k, (5, 3, 3)) for k in range(3)]
    group = Symmetry.of(nets[0], t.example(2))
    assert len(list(group.isometries())) == 6
    for distance in (relative_trust, log_relative_trust):
        d = modulo(group, distance, exact=True)
        found = d(nets[0], nets[1])
        assert found.lower == found.upper
        move = group.sample(3, kinds=("permutation",))
        assert d(nets[0], move(nets[1])).upper == pytest.approx(found.upper), "the same on the whole orbit"
        assert d(nets[0], group.sample(4)(nets[0])).upper < 1e-9
        assert found.upper <= modulo(group, distance)(nets[0], nets[1]).upper + 1e-12, "alignment is an upper bound"
    quasi = modulo(group, log_relative_trust, exact=True)
    ab, bc, ac = (quasi(nets[i], nets[j]).upper for i, j in ((0, 1), (1, 2), (0, 2)))
    assert ac <= ab + bc + 1e-12
    with pytest.raises(SymmetryError, match="too many"):
        next(Symmetry.of(net(), t.example(2)).isometries())


def test_enumeration_meets_signs_too():
    a = net(0, (5, 3, 2), between=nn.Tanh)
    group = Symmetry.of(a, task().example(2))
    every = list(group.isometries())
    assert len(every) == 6 * 8
    ends = {tuple(g(a).weights.flat().tolist()) for g in every}
    assert len(ends) == 48
    x = task().example(4)
    assert all(torch.allclose(g(a)(x), a(x)) for g in every)


# ------------------------------------------------------------------ certificates


REFUSED = {"einsum", "bilinear", "cosine_head", "unet_bilinear", "unet_bilinear_corners", "upsample",
                       "instance_norm_prelu", "llama", "llama_enable_gqa", "llama_rope", "experts_einsum",
                       "glu"}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("eta", [1e-3, 0.1, 1.0])
def test_the_certificate_holds_on_every_architecture(case, eta):
    a, t = noisy(case, 0), Task(case.example(1))
    b = perturb(a, eta, seed=3, names=list(a.weights))
    if case.name in REFUSED:
        with pytest.raises(BoundError, match=r"no (known )?bound|has no known bound"):
            certificates(a, b, t)
        return
    real = apart(a, b, t)
    for found in certificates(a, b, t):
        assert real <= found.bound


ACTIVATIONS = (nn.ReLU, nn.Tanh, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.ELU, nn.Sigmoid, nn.Softplus, nn.Mish, nn.SELU,
               nn.Hardswish, nn.Hardsigmoid, nn.ReLU6)  # fmt: skip
ATTACKED = {between: net(0, (4, 6, 5, 3), between is not nn.ReLU, between) for between in ACTIVATIONS}


@settings(deadline=None, max_examples=150)
@given(
    st.sampled_from(ACTIVATIONS), st.floats(-4, 1), st.floats(-2, 1), st.floats(-2, 2), st.integers(0, 10_000),
    st.booleans(),
)  # fmt: skip
def test_no_violation_of_the_certificate_is_found(between, size, weights, inputs, seed, against):
    """In random directions, and along the gradient of the displacement itself."""
    a = ATTACKED[between]
    a = a.at(10**weights * a.weights.randn(seed))
    t = Task(10**inputs * task(4, 4, seed).example(4))
    v = a.weights.randn(seed + 1)
    if against:
        there = t.outputs(a + 1e-3 * v)
        v = gradient(lambda b: -(t.forward(b, t.example(4)) - there).square().sum(), a)
        v = v / max(float(v.norm()), 1e-30)
    b = a + 10**size * v
    real = apart(a, b, t)
    for found in certificates(a, b, t):
        assert real <= found.bound * (1 + 1e-12) + 1e-12 * float(t.outputs(a).norm())


def test_a_certificate_that_is_too_low_is_seen(monkeypatch):
    a, t = net(0, (5, 8, 8, 8, 3), bias=False, between=nn.Identity), Task(task().example(30))
    monkeypatch.setattr(maps, "spectral_bound", lambda w: 0.3 * spectral_bound(w))
    with pytest.raises(BoundError, match="more than the .* that the rules allow"):
        certificates(a, a + a.weights.randn(0), t)


def test_without_biases_it_is_the_product_formula():
    a = net(bias=False)
    t = Task(task().example(30))
    b = perturb(a, 0.3)
    w, v, u = ([spectral_bound(x) for x in n.values()] for n in (a.weights, b.weights, b - a))
    x = float(t.example(30).norm()) / math.sqrt(30)
    expected = x * (u[0] * v[1] * v[2] + w[0] * u[1] * v[2] + w[0] * w[1] * u[2])
    assert certificate(a, b, t, data=False).bound == pytest.approx(expected, rel=1e-6)
    assert certificate(a, b, t).bound < expected
    assert certificate(a, a, t).bound == 0
    assert lipschitz(a, t) == pytest.approx(math.prod(w), rel=1e-6)


def test_the_lipschitz_bound_is_not_exceeded():
    a, t = net(between=nn.GELU), task()
    found = sensitivities(a, t)
    assert float(found.jacobian.max()) <= found.product == lipschitz(a, t)
    x = t.example(30).requires_grad_()
    dense = torch.autograd.functional.jacobian(lambda z: a(z).sum(0), x).movedim(1, 0)
    assert torch.allclose(found.jacobian, torch.linalg.matrix_norm(dense, 2), rtol=0.01)
    assert found.depth == 3


def test_certificates_say_what_they_do_not_know():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(5, 4)

        def forward(self, x):
            return self.a(x).exp()

    a = Net.of(Odd().double())
    with pytest.raises(BoundError, match="no bound is known for exp"):
        certificate(a, perturb(a, 0.1), task())
    found = stability(a, task(), noise=(0.1,), draws=2)
    assert "exp" in found.refused and found.steps[0].certificate is None
    assert found.steps[0].expected > 0 and found.steps[0].model > 0
    with pytest.raises(WeightspaceError, match="NaN or infinity in a.weight"):
        certificate(a, a + a.weights * math.nan, task())
    picked = Task(task().example(5), output=lambda out: out.square())
    with pytest.raises(BoundError, match="computed from the network's"):
        certificate(net(), perturb(net(), 0.1), picked)


# ------------------------------------------------------------------ expected displacement


@pytest.mark.parametrize("case", [c for c in CASES.values() if c.name in (
    "mlp", "cnn_bn", "depthwise", "tied_residual", "shared_layer", "mha", "vit", "lstm", "embedding_mean", "resnet_gn4",
    "siamese", "conv1d", "encoder_layer")], ids=lambda c: c.name)  # fmt: skip
def test_traces_are_those_of_the_dense_jacobian(case):
    a, t = noisy(case, 0), Task(case.example(1))
    out, x = t.outputs(a), t.example(len(t))
    dense = {n: 0.0 for n in a.weights}
    for k in range(out.numel()):
        g = gradient(lambda b, k=k: t.forward(b, x).flatten()[k], a)
        dense = {n: dense[n] + float(g[n].square().sum()) for n in dense}
    found = [trace for trace, _ in traces(a, t, list(a.weights), draws=400, seed=1)]
    for name, exact in dense.items():
        values = torch.tensor([trace[name] for trace in found])
        error = float(values.std()) / 20
        assert abs(float(values.mean()) - exact) <= 5 * error + 1e-12, name


@pytest.mark.parametrize("depth", [2, 6, 16])
def test_the_expected_displacement_is_that_of_small_noise(depth):
    torch.manual_seed(0)
    a = net(0, (5, *[32] * (depth - 1), 3), bias=False)
    t = Task(torch.randn(40, 5, dtype=torch.float64))
    eta = 0.002
    expected = displacement(a, t, eta, draws=64)
    f = t.outputs(a)
    squares = [
        float((t.outputs(perturb(a, eta, seed=derived(0, "noise", k))) - f).square().sum() / f.square().sum())
        for k in range(200)
    ]
    assert math.sqrt(sum(squares) / 200) == pytest.approx(expected.relative, rel=0.12)
    assert sum(expected.shares.values()) == pytest.approx(1) and expected.error < 0.1 * expected.relative
    double = displacement(a, t, 2 * eta, draws=64)
    assert double.relative == pytest.approx(2 * expected.relative)
    one = a.weights.zeros().replace({"0.weight": a.weights["0.weight"] * eta})
    assert displacement(a, t, one, draws=64).relative == pytest.approx(
        expected.relative * math.sqrt(expected.shares["0.weight"]), rel=1e-6
    )


def test_displacement_refuses_what_makes_no_sense():
    with pytest.raises(WeightspaceError, match="a number from 0"):
        displacement(net(), task(), -0.1)
    a = net()
    with pytest.raises(WeightspaceError, match="outputs are zero"):
        displacement(a.at(a.weights.zeros()), task(), 0.1)


# ------------------------------------------------------------------ the red button


@pytest.mark.parametrize("relative", [0.0, 0.01, 0.2, 3.0])
def test_noise_has_exactly_its_norm(relative):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 3)).double()
    module[0].bias.data.zero_()
    a = Net.of(module)
    b = perturb(a, relative, seed=1)
    assert movable(a) == ["0.weight", "3.weight", "3.bias"]
    for name, w in a.weights.items():
        expected = relative * float(w.norm()) if name in movable(a) else 0
        assert float((b.weights[name] - w).norm()) == pytest.approx(expected, rel=1e-12)
    again, other = perturb(a, relative, seed=1), perturb(a, relative, seed=2)
    assert torch.equal(b.weights.flat(), again.weights.flat())
    assert relative == 0 or not torch.equal(b.weights.flat(), other.weights.flat())


def test_rounding_and_cutting_stay_within_their_size():
    a = net(0, (5, 40, 40, 3))
    for kind in ("quantise", "prune"):
        b = perturb(a, 0.1, kind=kind)
        for name, d in relative_distances(a, b, layers="all").items():
            assert float(d) <= 0.1 + 1e-12, name
        assert float(relative_distances(a, b)["2.weight"]) > 0.09, "as coarse as it may be"
    b = perturb(a, kind="quantise", bits=3)
    assert all(len(w.unique()) <= 7 for w in b.weights.values())
    c = perturb(a, kind="prune", share=0.5)
    assert float((c.weights["2.weight"] == 0).double().mean()) == 0.5
    gone = a.weights["2.weight"][c.weights["2.weight"] == 0].abs().max()
    assert float(gone) <= float(c.weights["2.weight"].abs()[c.weights["2.weight"] != 0].min())
    assert not perturb(a, 5.0, kind="prune").weights["2.weight"].any()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"relative": -0.1}, r"in \[0, 10\)"), ({"relative": math.nan}, r"in \[0, 10\)"),
        ({"relative": 10}, r"in \[0, 10\)"), ({"kind": "burn"}, "kind takes 'noise' or"),
        ({"bits": 4}, "bits goes with"), ({"relative": 0.1, "kind": "prune", "share": 0.1}, "share goes with"),
        ({"kind": "quantise", "bits": 1}, "from 2 to"), ({"kind": "prune", "share": 1.0}, r"in \[0, 1\)"),
        ({"names": ["x"]}, "no tensor 'x'"),
    ],
)  # fmt: skip
def test_perturb_refuses(words, message):
    with pytest.raises(WeightspaceError, match=message):
        perturb(net(), **words)


def test_a_network_of_zeros_stays():
    a = net()
    zero = a.at(a.weights.zeros())
    assert not perturb(zero, 0.2).weights.flat().any() and movable(zero) == []


def test_stability_measures_what_it_predicts():
    t = task(60)
    a = flow(net(), learn(t, 60), Adam(), steps=200, size=0.02)[-1]
    seen = []
    found = stability(a, t, noise=(0.02, 0.1), draws=8, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (16, 16) and found.refused is None
    assert found.accuracy == accuracy(t)(a)
    for step in found.steps:
        assert len(step.moved) == len(step.accuracy) == len(step.loss) == 8
        assert median(step.moved) == pytest.approx(step.expected, rel=0.5)
        assert step.moved[0] <= step.with_data <= step.certificate
        assert step.model == pytest.approx((1 + step.relative) ** 3 - 1)
    blind = stability(a, Task(t.example(60)), noise=(0.1,), draws=2, proven=False)
    assert blind.accuracy is None and not blind.steps[0].accuracy and blind.refused == "not asked for"
    for bad in ({"noise": ()}, {"draws": 0}, {"noise": (20.0,)}, {"noise": (-1.0,)}):
        with pytest.raises(WeightspaceError):
            stability(a, t, **bad)


def test_the_width_is_where_the_cost_passes_the_tolerance():
    t = task(60)
    a = flow(net(), learn(t, 60), Adam(), steps=200, size=0.02)[-1]
    for goal in (t, Task(t.example(60))):
        narrow, wide = (width(a, goal, tolerance, draws=6) for tolerance in (0.02, 0.1))
        assert 0 < narrow <= wide < 2
    blind = Task(t.example(60))
    at = width(a, blind, 0.1, draws=6)
    f = t.outputs(a)

    def cost(eta):
        return (
            sum(
                float((t.outputs(perturb(a, eta, seed=derived(0, "noise", k))) - f).norm() / f.norm()) for k in range(6)
            )
            / 6
        )

    assert cost(at) <= 0.1 < cost(at * 1.02)
    assert width(a, t, 1.0) == 2.0


def test_an_autoencoder_is_compared_by_its_outputs():
    a = net(0, (5, 3, 5), between=nn.Tanh)
    x = task().example(30)
    found = stability(a, Task(x, x), noise=(0.1,), draws=3)
    assert found.accuracy is None and found.loss is not None and len(found.steps[0].moved) == 3


# ------------------------------------------------------------------ gradients and examples


def test_breakdown_is_measured_and_exceeds_the_model_along_gradients():
    t = task(60)
    a = flow(net(0, (5, 16, 16, 16, 3)), learn(t, 60), Adam(), steps=100, size=0.02)[-1]
    found = breakdown(a, t, (1e-6, 1e-3, 0.1))
    assert found[0].gradient < found[1].gradient < found[2].gradient
    assert found[0].outputs == pytest.approx(found[1].outputs / 1000, rel=0.1), "linear where it is small"
    assert found[1].outputs > found[1].model, "along the gradient the model is no bound"
    with pytest.raises(WeightspaceError, match="eta"):
        breakdown(a, t, (0.0,))


def test_trust_per_example_is_that_of_the_step_on_it_alone():
    a, t = net(), task(12)
    found = trust_per_example(a, t, lr=1e-3)
    x, (_, y) = t.example(12), next(t.batches())
    for k in range(12):
        one = Task(x[k : k + 1], y[k : k + 1])
        moved = a + -1e-3 * gradient(one, a)
        assert float(found.relative[k]) == pytest.approx(relative_trust(a, moved), rel=1e-9)
        assert float(found.displacement[k]) == pytest.approx(float((a(x[k]) - moved(x[k])).norm()), rel=0.01)
        assert float(found.loss[k]) == pytest.approx(float(one(a)))
    assert (found.relative[found.order].diff() <= 0).all()
    with pytest.raises(WeightspaceError, match="labels"):
        trust_per_example(a, Task(x))
    with pytest.raises(WeightspaceError, match="lr"):
        trust_per_example(a, t, lr=-1)


@pytest.mark.parametrize("metric", [Euclidean(), Adam(), Pullback(task(5))])
def test_max_trust_cuts_every_step(metric):
    a, t = net(), task(40)
    free = flow(a, t, metric, steps=4, size=0.5, save=1)
    cut = flow(a, t, metric, steps=4, size=0.5, save=1, max_trust=0.02)
    assert max(relative_trust(free[k], free[k + 1]) for k in range(4)) > 0.02
    assert all(0 < relative_trust(cut[k], cut[k + 1]) <= 0.02 * (1 + 1e-9) for k in range(len(cut) - 1))
    with pytest.raises(WeightspaceError, match="max_trust must be positive"):
        flow(a, t, metric, max_trust=0)
