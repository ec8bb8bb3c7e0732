"""Laws of points and vectors: Net and Weights."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call

from weightspace.net.errors import ArchitectureMismatch, WeightspaceError
from weightspace.net.net import Net
from weightspace.net.weights import Weights

SHAPES = [(3, 2), (4,), (), (2, 1, 3), (0, 5)]
laws = settings(max_examples=25, deadline=None)
scalars = st.floats(-8, 8, allow_nan=False)
spaces = st.lists(st.sampled_from(SHAPES), min_size=1, max_size=4).map(
    lambda shapes: Weights({f"t{i}": torch.zeros(shape, dtype=torch.float64) for i, shape in enumerate(shapes)})
)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x):
        return self.head(self.embed(x))


class Scaled(nn.Module):
    """A constant that no checkpoint holds, a state that it does, and two inputs."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("table", torch.arange(3.0), persistent=False)

    def forward(self, x, shift=None):
        y = self.norm(self.linear(x)) + self.table
        return y if shift is None else y + shift


def make(build, seed=0):
    torch.manual_seed(seed)
    module = build()
    with torch.no_grad():
        for tensor in module.state_dict().values():
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5)
    return module.eval()


def mlp():
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def same(v, w, tolerance=1e-12):
    assert v.shapes == w.shapes
    for name in v:
        torch.testing.assert_close(v[name], w[name], rtol=tolerance, atol=tolerance * 100)


def vector_space(u, v, w, s, t, add=Weights.__add__, scale=Weights.__mul__):
    same(add(add(u, v), w), add(u, add(v, w)))
    same(add(u, v), add(v, u))
    same(add(u, u.zeros()), u)
    same(add(u, -u), u.zeros())
    same(scale(u, 1.0), u)
    same(scale(scale(u, s), t), scale(u, s * t))
    same(scale(add(u, v), s), add(scale(u, s), scale(v, s)))
    same(scale(u, s + t), add(scale(u, s), scale(u, t)))


def inner_product(u, v, w, s, dot=Weights.dot):
    torch.testing.assert_close(dot(u, v), dot(v, u))
    torch.testing.assert_close(dot(u * s + w, v), s * dot(u, v) + dot(w, v), rtol=1e-9, atol=1e-9)
    assert dot(u, u) >= 0
    torch.testing.assert_close(dot(u, u), u.norm() ** 2)
    assert dot(u, v).abs() <= u.norm() * v.norm() + 1e-9


def drawn(space, seed):
    return [space.randn(seed + k) for k in range(3)]


@laws
@given(spaces, st.integers(0, 10**6), scalars, scalars)
def test_weights_form_a_vector_space(space, seed, s, t):
    u, v, w = drawn(space, seed)
    vector_space(u, v, w, s, t)
    same(u - v, u + -v)
    same(2.5 * u, u * 2.5)
    same(u / 4, u * 0.25)
    same(u.lerp(v, t), (1 - t) * u + t * v)


@laws
@given(spaces, st.integers(0, 10**6), scalars)
def test_dot_is_an_inner_product(space, seed, s):
    u, v, w = drawn(space, seed)
    inner_product(u, v, w, s)
    flat = [torch.cat([part[name].flatten() for name in part]) for part in (u, v)]
    torch.testing.assert_close(u.dot(v), flat[0] @ flat[1])
    assert sum(n**2 for n in u.norms().values()) == pytest.approx(float(u.dot(u)))


def test_the_laws_catch_a_planted_error():
    u, v, w = drawn(Weights({"a": torch.zeros(3, 2).double(), "b": torch.zeros(4).double()}), 1)
    vector_space(u, v, w, 2.0, 3.0)
    with pytest.raises(AssertionError):
        vector_space(u, v, w, 2.0, 3.0, add=lambda x, y: x + y.replace({"b": y["b"] * 1.001}))
    with pytest.raises(AssertionError):
        vector_space(u, v, w, 2.0, 3.0, scale=lambda x, s: x * abs(s) if s != 1 else x * 1.0001)
    inner_product(u, v, w, 2.0)
    with pytest.raises(AssertionError):
        inner_product(u, v, w, 2.0, dot=lambda x, y: x.dot(y) + x["a"].sum())


def test_named_tensors_are_views_of_one_buffer():
    w = Weights({"a": torch.ones(2, 2), "b": torch.zeros(3)})
    (flat,) = w.buffers
    w["b"].fill_(7)
    assert flat.tolist() == [1, 1, 1, 1, 7, 7, 7]
    flat.zero_()
    assert not w["a"].any()
    assert w["a"].untyped_storage().data_ptr() == w["b"].untyped_storage().data_ptr() == flat.data_ptr()
    assert (len(w), w.numel, list(w)) == (2, 7, ["a", "b"])


def test_results_share_no_memory_with_their_terms():
    w = Weights({"a": torch.ones(2)})
    for other in (w.clone(), w + w, w * 1.0, -w, w.map(torch.clone), w.replace({}), w.lerp(w, 0.5)):
        other["a"].fill_(9)
        assert w["a"].tolist() == [1, 1]


def test_names_and_order_are_the_modules():
    module = make(lambda: nn.LSTM(3, 4, num_layers=2))
    assert list(Net.of(module).weights) == [name for name, _ in module.named_parameters()]


def test_replace_keeps_the_rest():
    w = Weights({"a": torch.ones(2), "b": torch.ones(3)}).replace({"b": torch.arange(3.0)})
    assert w["a"].tolist() == [1, 1]
    assert w["b"].tolist() == [0, 1, 2]


def test_randn_depends_on_the_seed_alone():
    space = Weights({"a": torch.zeros(50)})
    before = torch.random.get_rng_state()
    assert torch.equal(space.randn(3)["a"], space.randn(3)["a"])
    assert not torch.equal(space.randn(3)["a"], space.randn(4)["a"])
    assert torch.equal(before, torch.random.get_rng_state())


def test_different_spaces_do_not_add():
    w = Weights({"a": torch.ones(2)})
    for other, word in (
        (Weights({"b": torch.ones(2)}), "missing a"),
        (Weights({"a": torch.ones(3)}), "a is"),
    ):
        for operation in (w.__add__, w.__sub__, w.dot, lambda o: w.lerp(o, 0.5)):
            with pytest.raises(ArchitectureMismatch, match=word):
                operation(other)
    with pytest.raises(TypeError):
        w + 3
    with pytest.raises(TypeError):
        w * w


def test_unusable_names_the_tensors_of_nan_and_infinity():
    w = Weights({"a": torch.tensor([1.0, torch.nan]), "b": torch.ones(2), "c": torch.tensor([torch.inf])})
    assert w.unusable() == ["a", "c"]


def test_float32_norm_of_a_large_tensor():
    n = 1 << 26
    w = Weights({"a": torch.full((n,), 0.1)})
    exact = float(torch.tensor(0.1).double()) * n**0.5
    assert float(w.norm()) == pytest.approx(exact, rel=1e-6)
    one_sum = torch.zeros(())
    for _ in range(1 << 12):  # what adding float32 terms one after the other would do
        one_sum += torch.tensor(0.1) ** 2
    assert float(one_sum) ** 0.5 != pytest.approx(0.1 * 2**6, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_norms_are_summed_in_float64(dtype):
    w = Weights({"a": torch.full((200_000,), 0.5, dtype=dtype)})
    assert w.norm().dtype == torch.float64
    assert float(w.norm()) == pytest.approx(0.5 * 200_000**0.5, rel=1e-12)


def test_mixed_dtypes_keep_theirs():
    w = Weights({"a": torch.ones(2), "b": torch.ones(3, dtype=torch.bfloat16), "c": torch.ones(1)})
    assert len(w.buffers) == 2
    total = 2 * w + w
    assert list(total) == ["a", "b", "c"]
    assert [total[name].dtype for name in total] == [torch.float32, torch.bfloat16, torch.float32]
    assert all((total[name] == 3).all() for name in total)
    assert float(total.norm()) == pytest.approx(54**0.5)
    with pytest.raises(WeightspaceError, match="two dtypes"):
        w.map(torch.Tensor.double)


def test_vectors_of_different_dtype_add():
    v, w = (
        Weights({"a": torch.ones(2), "b": torch.ones(3).half()}),
        Weights({"a": torch.ones(2), "b": torch.ones(3)}),
    )
    assert (v + w)["b"].tolist() == [2, 2, 2]
    assert float(v.dot(w)) == 5
    assert v.lerp(w * 3, 0.5)["b"].tolist() == [2, 2, 2]


def test_mixed_module_to_double_and_back():
    module = make(mlp)
    module[0].to(torch.bfloat16)
    net = Net.of(module)
    assert {f.dtype for f in net.double().weights.buffers} == {torch.float64}
    for name, tensor in net.double().weights.items():
        assert torch.equal(tensor, net.weights[name].double())


def test_integer_entries_are_not_interpolated():
    v, w = (Weights({"n": torch.tensor(k), "x": torch.tensor(float(k))}) for k in (2, 10))
    half = v.lerp(w, 0.5)
    assert (half["n"].item(), half["x"].item()) == (2, 6.0)


@pytest.mark.parametrize("build", [mlp, Tied, Scaled, lambda: nn.LSTM(3, 4, bidirectional=True), lambda: nn.GRU(3, 2)])
def test_a_net_computes_what_its_module_does(build):
    module = make(build)
    x = torch.tensor([[0, 3]]) if build is Tied else torch.randn(5, 3)
    torch.testing.assert_close(Net.of(module)(x), module(x))
    torch.testing.assert_close(Net.of(module).module()(x), module(x))
    torch.testing.assert_close(Net.of(module).double().to(torch.float32)(x), module(x))


def test_ways_to_give_inputs():
    module, x, shift = make(Scaled), torch.randn(5, 3), torch.randn(3)
    net, expected = Net.of(module), module(x, shift)
    for seen in (net(x, shift), net((x, shift)), net({"x": x, "shift": shift}), net(x=x, shift=shift)):
        assert torch.equal(seen, expected)
    assert not torch.equal(net(x), expected)


def test_points_and_vectors():
    a, b = Net.of(make(mlp, 0)).double(), Net.of(make(mlp, 1)).double()
    same((a + (b - a)).weights, b.weights)
    same(((a + 0.5 * (b - a)) - a), (b - a) * 0.5)
    same(a.lerp(b, 0.25).weights, a.weights * 0.75 + b.weights * 0.25)
    x = torch.randn(4, 3, dtype=torch.float64)
    assert torch.equal(a.at(b.weights)(x), b(x))
    with pytest.raises(TypeError):
        a + b
    with pytest.raises(ArchitectureMismatch):
        b - Net.of(nn.Linear(3, 4))
    with pytest.raises(ArchitectureMismatch):
        a.at(Weights({}))


def test_state_moves_with_the_point_and_constants_do_not():
    a, b = Net.of(make(Scaled, 0)), Net.of(make(Scaled, 1))
    assert list(a.state) == ["norm.running_mean", "norm.running_var", "norm.num_batches_tracked"]
    assert "table" not in a.tensors
    middle = a.lerp(b, 0.5).state["norm.running_var"]
    torch.testing.assert_close(middle, (a.state["norm.running_var"] + b.state["norm.running_var"]) / 2)
    assert torch.equal((a + (b - a)).state["norm.running_var"], a.state["norm.running_var"])
    assert a.double()(torch.zeros(2, 3).double()).dtype == torch.float64


def test_a_net_is_a_copy_and_leaves_the_module_alone():
    module = make(Scaled).train()
    net = Net.of(module)
    before = net.tensors["linear.weight"].clone()
    with torch.no_grad():
        module.linear.weight.zero_()
    assert torch.equal(net.tensors["linear.weight"], before)
    assert module.training
    assert not net.architecture.training
    assert Net.of(net) is net


def test_a_net_costs_its_weights_and_no_more():
    net = Net.of(make(lambda: nn.Sequential(nn.Linear(300, 200), nn.BatchNorm1d(200), nn.Linear(200, 300))))
    own = [*net.architecture.parameters(), *net.architecture.buffers()]
    assert all(tensor.is_meta for tensor in own)
    held = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in net.tensors.values()}
    needed = sum(tensor.numel() * tensor.element_size() for tensor in net.tensors.values())
    assert sum(held.values()) == needed


def test_module_is_a_copy_and_live_is_not():
    net = Net.of(make(mlp))
    copied, live = net.module(), net.live()
    with torch.no_grad():
        copied[0].bias.fill_(5)
        assert not (net.weights["0.bias"] == 5).any()
        live[0].bias.fill_(6)
        assert (net.weights["0.bias"] == 6).all()
    live(torch.randn(2, 3)).sum().backward()
    assert all(p.grad is not None and p.requires_grad for p in live.parameters())


def test_a_module_survives_the_round_trip():
    module = make(Scaled)
    back = Net.of(module).module()
    assert type(back) is Scaled
    assert not back.training
    assert back.state_dict().keys() == module.state_dict().keys()
    assert all(torch.equal(back.state_dict()[name], tensor) for name, tensor in module.state_dict().items())
    frozen = make(mlp)
    frozen[0].weight.requires_grad_(False)
    assert [p.requires_grad for p in Net.of(frozen).module().parameters()] == [False, True, True, True]


def test_a_tied_tensor_counts_once():
    net = Net.of(make(Tied))
    assert list(net.weights) == ["embed.weight"]
    assert net.weights.numel == 15
    for module in (net.module(), net.live()):
        assert module.head.weight is module.embed.weight
    x = torch.tensor([[1, 2]])
    moved = net + net.weights
    torch.testing.assert_close(moved(x), 4 * net(x))


def test_load_takes_a_tied_tensor_under_any_of_its_names():
    net, other = Net.of(make(Tied, 0)), Net.of(make(Tied, 1)).weights["embed.weight"]
    for tensors in (
        {"embed.weight": other},
        {"head.weight": other},
        {"head.weight": other, "embed.weight": other},
    ):
        assert torch.equal(net.load(tensors).weights["embed.weight"], other)


def test_load_equals_load_state_dict():
    net, other = Net.of(make(Scaled, 0)), make(Scaled, 1)
    loaded = net.load(other.state_dict())
    x = torch.randn(4, 3)
    assert torch.equal(loaded(x), other(x))
    assert net.load({k: v.double() for k, v in other.state_dict().items()}).dtype == torch.float64


def altered(**changes):
    tensors = make(Scaled).state_dict()
    for name, tensor in changes.items():
        name = name.replace("__", ".")
        tensors.pop(name) if tensor is None else tensors.__setitem__(name, tensor)
    return tensors


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (altered(linear__bias=None), r"missing linear\.bias"),
        (altered(norm__running_var=None), r"missing norm\.running_var"),
        (altered(extra=torch.ones(1)), "unexpected extra"),
        (altered(linear__weight=torch.ones(3, 4)), r"linear\.weight is \(3, 4\), expected \(3, 3\)"),
        ({}, "missing .* more"),
    ],
)
def test_load_refuses_what_does_not_fit(tensors, message):
    with pytest.raises(ArchitectureMismatch, match=message) as caught:
        Net.of(make(Scaled)).load(tensors)
    assert "\n" not in str(caught.value)


def test_a_missing_counter_of_batches_is_zero():
    """It has no part in what the network computes: torch's own `load_state_dict` takes such a file too."""
    found = Net.of(make(Scaled)).load(altered(norm__num_batches_tracked=None))
    assert list(found.state) == ["norm.running_mean", "norm.running_var", "norm.num_batches_tracked"]
    assert found.state["norm.num_batches_tracked"] == 0 and found.state["norm.num_batches_tracked"].dtype == torch.long


def test_a_tied_tensor_has_one_value():
    """Of a network with tied tensors, a file that holds two different ones under its names holds none of this kind."""
    module = nn.ModuleDict({"embed": nn.Embedding(5, 3), "head": nn.Linear(3, 5, bias=False)})
    module["head"].weight = module["embed"].weight
    net, tied = Net.of(module), {n: t.clone() for n, t in module.state_dict().items()}
    tied["embed.weight"][0, 0] = tied["head.weight"][0, 0] = float("nan")
    assert net.load(tied).weights.numel == 15
    for other in (tied["head.weight"] + 1, tied["head.weight"].half(), tied["head.weight"][:4]):
        with pytest.raises(ArchitectureMismatch, match=r"head\.weight and embed\.weight are one tensor"):
            net.load({**tied, "head.weight": other})


def test_check_compares_parameters_and_state():
    a = Net.of(make(Scaled))
    a.check(Net.of(make(Scaled, 1)))
    with pytest.raises(ArchitectureMismatch, match="running_mean"):
        a.check(a.at(a.weights, Weights({})))


def test_what_is_no_module_is_refused():
    with pytest.raises(WeightspaceError, match="Module or a Net, got a dict"):
        Net.of({})
    module = make(mlp)
    module.cache = module(torch.ones(1, 3))  # a non-leaf tensor cannot be copied
    with pytest.raises(WeightspaceError, match="cannot be copied"):
        Net.of(module)


def test_fingerprint_is_of_the_architecture():
    a = Net.of(make(mlp))
    assert a.fingerprint == Net.of(make(mlp, 1)).fingerprint == a.double().fingerprint
    relu = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    assert a.fingerprint != Net.of(relu).fingerprint
    assert a.fingerprint != Net.of(nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))).fingerprint


def flat_gradient(net, loss):
    leaf = net.at(net.weights.map(lambda flat: flat.clone().requires_grad_()))
    loss(leaf).backward()
    return torch.cat([flat.grad for flat in leaf.weights.buffers])


@pytest.mark.parametrize("build", [mlp, Tied])
def test_gradients_reach_the_flat_buffers(build):
    module = make(build).double()
    x = torch.tensor([[0, 3]]) if build is Tied else torch.randn(5, 3, dtype=torch.float64)
    seen = flat_gradient(Net.of(module), lambda net: net(x).pow(2).sum())
    module(x).pow(2).sum().backward()
    expected = torch.cat([p.grad.flatten() for p in module.parameters()])
    torch.testing.assert_close(seen, expected)
    planted = flat_gradient(Net.of(module), lambda net: net(x).pow(2).sum() + next(iter(net.weights.values())).sum())
    with pytest.raises(AssertionError):
        torch.testing.assert_close(planted, expected)


def test_gradients_pass_through_the_algebra():
    a, b = Net.of(make(mlp, 0)).double(), Net.of(make(mlp, 1)).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    leaf = a.at(a.weights.map(lambda flat: flat.clone().requires_grad_()))
    leaf.lerp(b, 0.25)(x).sum().backward()
    (seen,) = (flat.grad for flat in leaf.weights.buffers)
    expected = flat_gradient(a.lerp(b, 0.25), lambda net: net(x).sum())
    torch.testing.assert_close(seen, 0.75 * expected)


def test_functional_evaluation_is_torchs_own():
    module, x = make(mlp), torch.randn(4, 3)
    tensors = {name: p * 2 for name, p in module.named_parameters()}
    net = Net.of(module)
    assert torch.equal((net + net.weights)(x), functional_call(module, tensors, (x,)))
