"""A group belongs to the architecture: not to the weights, the example, the state of torch, or where a probe goes.

What cannot be read is refused in the library's own words, and what the example does not reach is said.
"""

from __future__ import annotations

import copy
import importlib
import weakref

import pytest
import torch
import torch.nn.functional as F
from ambient import default_dtype
from architectures import CASES, noisy
from torch import nn
from torch.nn.utils import prune

import weightspace as ws
from weightspace.net.errors import SymmetryError
from weightspace.net.net import Net
from weightspace.net.weights import Weights
from weightspace.symmetry.symmetry import Symmetry

reach = importlib.import_module("weightspace.symmetry.reach")
reading = importlib.import_module("weightspace.symmetry.read")
scale = importlib.import_module("weightspace.symmetry.scale")
sign = importlib.import_module("weightspace.symmetry.sign")


class Two(nn.Module):
    """Two layers of seven units; `forward` is a function of the module and of its inputs."""

    def __init__(self, forward, width=7):
        super().__init__()
        self.a, self.b, self.m = nn.Linear(5, width), nn.Linear(width, 2), nn.Linear(width, width)
        self.t, self.run = nn.Parameter(torch.full((width,), 0.3)), forward

    def forward(self, *args, **kwargs):
        return self.run(self, *args, **kwargs)


def two(forward, seed=0) -> Net:
    torch.manual_seed(seed)
    return Net.of(Two(forward))


def normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def kinds(group: Symmetry) -> str:
    """What may be done to the seven units: P, R, S."""
    letters = {"permutation": "P", "scale": "R", "sign": "S"}
    units = [axis for axis in group.axes if axis.size == 7 and axis.name.startswith("a.")]
    return "".join(letters[k] for axis in units for k in axis.kinds)


def change(net: Net, other: Net, x) -> float:
    with torch.no_grad():
        before, after = net(x), other(x)
    return float((after - before).abs().max() / before.abs().max())


# operations that a probe meets at some sizes only

ACTIVATIONS = {
    "relu": (torch.relu, "PR"),
    "leaky_relu": (F.leaky_relu, "PR"),
    "relu_as_clamp": (lambda h: h.clamp(min=0), "PR"),
    "nan_to_num": (lambda h: torch.relu(h).nan_to_num(), "PR"),
    "relu6": (F.relu6, "P"),
    "relu6_as_minimum": (lambda h: torch.minimum(torch.relu(h), torch.tensor(6.0, dtype=h.dtype)), "P"),
    "hardtanh": (lambda h: F.hardtanh(h, -12.0, 12.0), "PS"),
    "hardtanh_far_away": (lambda h: F.hardtanh(h, -1e4, 1e4), "PS"),
    "hardtanh_uneven": (lambda h: F.hardtanh(h, -50.0, 70.0), "P"),
    "clamp_of_half_precision": (lambda h: torch.relu(h).clamp(-64504.0, 64504.0), "P"),
    "hardsigmoid": (F.hardsigmoid, "P"),
    "hardshrink": (lambda h: F.hardshrink(h, 0.5), "PS"),
    "softshrink": (lambda h: F.softshrink(h, 0.5), "PS"),
    "threshold": (lambda h: F.threshold(h, 0.1, 20.0), "P"),
    "elu": (F.elu, "P"),
    "softplus": (F.softplus, "P"),
    "floor": (torch.floor, "P"),
    "round_straight_through": (lambda h: h + (h.round() - h).detach(), "PS"),
    "where_that_is_never_met": (lambda h: torch.where(h > -50, h, torch.tensor(-50.0, dtype=h.dtype)), "P"),
    "jump": (lambda h: h * (h > 0.3), "P"),
    "the_four_largest": (lambda h: h * (h >= h.topk(4, -1).values[..., -1:]), "P"),
    "a_small_eps": (lambda h: h / (h.square() + 1e-10).sqrt() * h, "PS"),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_gives_its_units_the_moves_that_it_follows_at_every_size(name):
    """Read on one example of ordinary size; elements keep the outputs on inputs 100 times as large and as small."""
    function, expected = ACTIVATIONS[name]
    net, x = two(lambda s, x: s.b(function(s.a(x)))).double(), normal(4, 5).double()
    group = Symmetry.of(net, x)
    assert kinds(group) == expected
    assert group.notes == ("not reached by the example, left alone: t, m.weight, m.bias",)
    for size in (0.01, 1.0, 100.0):
        assert change(net, group.sample(seed=1)(net), size * x) < 1e-9, size


def test_an_operation_that_is_not_asked_at_all_sizes_gets_a_scale(monkeypatch):
    """The law above fails where sizes are not looked at: the clip lies beyond all that the trial reaches."""
    monkeypatch.setattr(reading, "unreached", lambda *args: set())
    net = two(lambda s, x: s.b(F.hardtanh(s.a(x), -1e9, 1e9)))
    assert "R" in kinds(Symmetry.of(net, normal(4, 5)))


@pytest.mark.parametrize("activation", [nn.ReLU6(), nn.Hardtanh(-12.0, 12.0)], ids=["relu6", "hardtanh"])
def test_clipped_units_keep_the_function_whatever_is_done_to_them(activation):
    torch.manual_seed(0)
    net = Net.of(nn.Sequential(nn.Linear(8, 16), activation, nn.Linear(16, 3)).double())
    x = 64 * torch.rand(64, 8, dtype=torch.float64)
    group = Symmetry.of(net, x[:2])
    for moved in (group.sample(0)(net), group.canonical(net), group.balance(net)):
        assert change(net, moved, x) < 1e-9


# weights, examples, the state of torch


def batchnormed(seed=0, dtype=torch.float32) -> nn.Module:
    torch.manual_seed(seed)
    parts = (nn.Linear(6, 12), nn.ReLU(), nn.BatchNorm1d(12), nn.Linear(12, 11), nn.Tanh(), nn.Linear(11, 3))
    return nn.Sequential(*parts).to(dtype).eval()


WHOLE = "S12 x R+12 [2 times] x Z2^12 x S11 x Z2^11"


@pytest.mark.parametrize("size", [0.0, 0.1, 1.0, 10.0, 1e4])
def test_the_group_is_that_of_any_weights(size):
    for seed in range(2):
        net = Net.of(batchnormed(seed))
        assert str(Symmetry.of(net.at(size * net.weights), normal(4, 6))) == WHOLE


@pytest.mark.parametrize("rows", [1, 2, 9])
def test_the_group_is_that_of_any_example(rows):
    """One row too, where the gradient of a bias may be the very tensor that flows on."""
    for x in (normal(rows, 6), 100 * normal(rows, 6), torch.zeros(rows, 6), torch.ones(rows, 6)):
        assert str(Symmetry.of(batchnormed(), x)) == WHOLE


STATES = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "meta": lambda: torch.device("meta"),
}


@pytest.mark.parametrize("state", STATES)
def test_the_group_is_that_of_any_state_of_torch(state):
    """And the state is as before; so is torch's generator of random numbers."""
    net, x, drawn = Net.of(batchnormed()), normal(4, 6), torch.get_rng_state()
    with STATES[state]():
        before = torch.is_grad_enabled(), torch.get_default_dtype(), torch.is_inference_mode_enabled()
        group = Symmetry.of(net, x)
        assert (torch.is_grad_enabled(), torch.get_default_dtype(), torch.is_inference_mode_enabled()) == before
    assert str(group) == WHOLE
    assert torch.equal(torch.get_rng_state(), drawn)


def test_a_network_made_in_inference_mode_is_read_outside_of_it():
    with torch.inference_mode():
        net, x = Net.of(batchnormed()), normal(4, 6)
    assert str(Symmetry.of(net, x)) == WHOLE


def test_a_copy_is_at_no_distance_modulo_a_group_read_without_gradients():
    torch.manual_seed(0)
    net, x = Net.of(nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3))), normal(4, 6)
    copied = Symmetry.of(net, x).sample(1)(net)
    with torch.no_grad():
        interval = ws.modulo(Symmetry.of(net, x))(net, copied)
    assert interval.lower < 1e-3 * float(net.weights.norm())


class Deep(nn.Module):
    """Blocks of attention and hidden units, norms after: the deeper, the more alike the tokens become."""

    def __init__(self, depth=8):
        super().__init__()
        layer = {"dim_feedforward": 23, "dropout": 0.0, "activation": "gelu", "batch_first": True}
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(24, 3, **layer) for _ in range(depth))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def test_repeated_layers_read_alike():
    """The key's bias has no effect, and what rounding leaves of its slope is not taken for one in any layer."""
    torch.manual_seed(0)
    group = Symmetry.of(Deep().eval(), normal(2, 8, 24))
    factors = {}
    for axis in group.axes:
        _, number, name = axis.name.split(".", 2)
        factors.setdefault(int(number), []).append((name, group.factors_of(axis)))
    assert len(factors) == 8 and len(factors[0]) == 4
    assert all(found == factors[0] for found in factors.values())


# forms of inputs


def plain(s, x):
    return s.b(torch.relu(s.a(x)))


INPUTS = {
    "dict": (lambda s, batch: plain(s, batch["x"]), lambda: ({"x": normal(3, 5)},)),
    "list": (lambda s, parts: plain(s, parts[0] + parts[1]), lambda: ([normal(3, 5), normal(3, 5)],)),
    "nested": (lambda s, d: plain(s, d["x"]["y"][0]) * d["n"],
               lambda: ({"x": {"y": [normal(3, 5)]}, "n": 3, "z": None},)),
    "none_by_name": (lambda s, x, n=2, mask=None: plain(s, x) * n, lambda: {"x": normal(3, 5), "mask": None}),
    "number": (lambda s, x, k: plain(s, x) * k, lambda: (normal(3, 5), 2.5)),
    "word": (lambda s, x, k: plain(s, x) if k == "plain" else x, lambda: (normal(3, 5), "plain")),
    "scalar": (lambda s, x, t: plain(s, x) * t, lambda: (normal(3, 5), torch.tensor(0.3))),
    "bytes": (lambda s, x: plain(s, x.float() / 255), lambda: torch.arange(15, dtype=torch.uint8).reshape(3, 5)),
    "flags": (lambda s, x: plain(s, x.to(torch.float32)), lambda: torch.arange(15).reshape(3, 5) % 2 == 0),
    "made_in_float32": (lambda s, x: plain(s, x @ torch.eye(5, dtype=torch.float32)), lambda: normal(3, 5)),
    "under_a_logarithm": (lambda s, x: plain(s, x.log()), lambda: torch.rand(3, 5) + 0.1),
    "under_an_arc": (lambda s, x: plain(s, x.acos()), lambda: torch.rand(3, 5)),
    "a_mask": (lambda s, x, m: plain(s, x * m) / m.sum(-1, keepdim=True).sqrt(),
               lambda: (normal(3, 5), torch.ones(3, 5))),
    "written_into": (lambda s, x: plain(s, x.mul_(2)), lambda: normal(3, 5)),
    "other_outputs": (lambda s, x: {"y": plain(s, x), "none": None, "n": 3}, lambda: normal(3, 5)),
    "outputs_masked": (lambda s, x: plain(s, x).masked_fill(torch.tensor([True, False]), -torch.inf),
                       lambda: normal(3, 5)),
    "through_vmap": (lambda s, x: s.b(torch.vmap(torch.relu)(s.a(x))), lambda: normal(3, 5)),
}  # fmt: skip


@pytest.mark.parametrize("name", INPUTS)
def test_any_form_of_input_is_read(name):
    forward, example = INPUTS[name]
    net = two(forward)
    net(example())
    group = Symmetry.of(net, example())
    assert kinds(group) == "PR"
    assert group.verified
    assert kinds(Symmetry.of(net, example(), verify=False)) == "PR"


def test_an_adjacency_matrix_is_tried_as_it_is_given():
    def convolved(s, x, adjacency):
        d = adjacency.sum(-1).rsqrt()
        return s.b(torch.relu((d[..., None] * adjacency * d[..., None, :]) @ s.a(x)))

    assert kinds(Symmetry.of(two(convolved), (normal(2, 6, 5), torch.ones(2, 6, 6)))) == "PR"


def filled(s, x):
    out, h = torch.zeros(len(x), 3, 7, dtype=x.dtype), torch.zeros(len(x), 7, dtype=x.dtype)
    for step in range(3):
        h = torch.tanh(s.a(x) + s.m(h))
        out[:, step] = h
    return s.b(out).mean(1)


def test_outputs_written_in_a_loop_are_read():
    net, x = two(filled), normal(4, 5)
    assert change(net, Symmetry.of(net, x).sample(0)(net), x) < 1e-5


@pytest.mark.parametrize(
    "forward, words",
    [
        (lambda s, x: plain(s, x[x.sum(-1) > 0]), "depends on the data"),
        (lambda s, x: s.b(s.a(x)) if x.sum() > 0 else x, "control flow"),
        (lambda s, x: torch.vmap(torch.func.grad(lambda z: plain(s, z).sum()))(x), "cannot be exported"),
        (lambda s, x: plain(s, x).argmax(-1), "no floating-point output"),
        (lambda s, x: plain(s, x) + torch.rand(2), "random numbers"),
        (lambda s, x: plain(s, x.log()), "not finite"),
    ],
    ids=["sizes", "branch", "grad", "integers", "random", "nan"],
)
def test_what_cannot_be_read_is_refused_in_one_line(forward, words):
    with pytest.raises(SymmetryError, match=words) as error:
        Symmetry.of(two(forward), -normal(4, 5).abs() - 0.1)
    assert "\n" not in str(error.value)


# tensors that are not reached, masks, pairs


class TwoHeads(nn.Module):
    """One trunk, a head for each task."""

    def __init__(self):
        super().__init__()
        self.a, self.y, self.z = nn.Linear(5, 16), nn.Linear(16, 3), nn.Linear(16, 4)

    def forward(self, x, task="y"):
        h = torch.relu(self.a(x))
        return self.y(h) if task == "y" else self.z(h)


def test_a_head_that_the_example_does_not_reach_is_named():
    note = "not reached by the example, left alone: "
    assert Symmetry.of(TwoHeads(), normal(9, 5)).notes == (f"{note}z.weight, z.bias",)
    assert Symmetry.of(TwoHeads(), (normal(9, 5), "z")).notes == (f"{note}y.weight, y.bias",)
    many = Two(lambda s, x: s.b(torch.relu(s.a(x))))
    many.m = nn.Sequential(*[nn.Linear(7, 7) for _ in range(9)])
    assert Symmetry.of(many, normal(9, 5)).notes == (f"{note}t, m.* (18 tensors)",)


class Masked(nn.Linear):
    """A linear map of which a mask, stored with it, cuts entries."""

    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs)
        self.register_buffer("mask", (torch.rand(inputs, outputs) > 0.4).float())

    def forward(self, x):
        return F.linear(x, self.weight * self.mask.T, self.bias)


def pruned() -> nn.Module:
    module = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    prune.l1_unstructured(module[0], "weight", amount=0.5)
    prune.l1_unstructured(module[2], "weight", amount=0.3)
    return module


def with_masks() -> nn.Module:
    return nn.Sequential(Masked(4, 8), nn.ReLU(), Masked(8, 3))


@pytest.mark.parametrize("build", [pruned, with_masks])
def test_masks_are_renumbered_and_nothing_else(build):
    """They hold zeros and ones under every element; a copy is brought back, and has the same canonical form."""
    torch.manual_seed(0)
    module, x = build(), normal(5, 4)
    with torch.no_grad():
        module(x)
    net = Net.of(module)
    group = Symmetry.of(net, x)
    copy = group.sample(seed=1)(net)
    assert str(group) == "S8 x R+8"
    assert all(set(mask.flatten().tolist()) <= {0.0, 1.0} for mask in copy.state.values())
    assert float((copy.state - net.state).norm()) > 1
    assert change(net, copy, x) < 1e-5
    back = group.align(copy, to=net)
    assert ws.euclidean(back, net) < 1e-3 and float((back.state - net.state).norm()) < 1e-3
    assert ws.euclidean(group.canonical(net), group.canonical(copy)) == pytest.approx(0, abs=1e-3)


class Pairs(nn.Module):
    """A parameter seen as complex numbers, behind one of an odd number of entries."""

    def __init__(self):
        super().__init__()
        self.odd, self.w, self.b = nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(4, 7, 2)), nn.Linear(7, 2)

    def forward(self, x):
        w = torch.view_as_complex(self.w)
        return self.b((x.to(w.dtype) @ w).abs()) + self.odd.sum()


def test_a_parameter_of_pairs_is_seen_as_complex_numbers_wherever_it_stands():
    torch.manual_seed(0)
    module, x = Pairs(), normal(3, 4)
    net = Net.of(module)
    torch.testing.assert_close(net(x), module(x))
    torch.testing.assert_close(net.module()(x), module(x))
    assert list(net.weights) == ["odd", "w", "b.weight", "b.bias"]
    numbered = net.weights.shaped(torch.arange(float(net.weights.numel)))
    assert numbered["w"].storage_offset() % 2 == 0
    twice = Weights(dict(numbered))
    assert float((numbered + numbered - 2 * twice).norm()) == 0
    torch.testing.assert_close((net + 0.0 * numbered)(x), module(x))


def test_a_gradient_that_is_changed_in_place_spoils_the_slopes(monkeypatch):
    """The slopes of one example agree along a true scale: the oracle of the law for one row."""
    net, x = Net.of(batchnormed()), normal(1, 6)
    group, kept = Symmetry.of(net, x), scale.exponent_basis
    found = []
    monkeypatch.setattr(scale, "exponent_basis", lambda s, z: found.append((s, kept(s, z))) or kept(s, z))
    assert str(Symmetry.of(net, x)) == str(group)
    slopes, exponents = max(found, key=lambda f: len(f[1]))
    assert len(exponents) == 2
    spoilt = slopes.copy()
    spoilt[:, -1] *= 1 + 0.1 * normal(len(spoilt)).numpy()
    assert len(kept(spoilt, abs(spoilt).max(0))) < 2


@pytest.mark.parametrize("name", ["resnet_bn", "attention_eights", "llama", "lstm", "squeeze_excite"])
def test_units_of_large_axes_are_summed_and_large_values_sampled_to_the_same_group(name, monkeypatch):
    """Random sums of the equations of units have the same null space; a sample that differs differs as a whole."""
    net, x = noisy(CASES[name], 1), CASES[name].example(0)
    whole = Symmetry.of(net, x)
    monkeypatch.setattr(scale, "_MOST_ROWS", 5)
    monkeypatch.setattr(scale, "_PART", 16)  # the product in many parts
    monkeypatch.setattr(sign, "_SAMPLE", 4)
    summed = Symmetry.of(net, x)
    assert str(summed) == str(whole)
    assert summed.generators == whole.generators


def test_sums_of_units_in_parts_are_those_of_the_whole(monkeypatch):
    monkeypatch.setattr(scale, "_MOST_ROWS", 7)
    table = normal(12, 10).double()
    for along, dim in ((None, 0), (0, 0), (1, 1)):
        sums = scale._Sums(table.shape, along, table.device)
        for start in range(0, table.shape[dim], 3) if along is not None else [0]:
            sums.add(table.narrow(dim, start, min(3, table.shape[dim] - start)) if along is not None else table, start)
        whole = scale._Sums(table.shape, None, table.device)
        whole.add(table, 0)
        torch.testing.assert_close(sums.total, whole.total)
        assert len(whole.total) == 7 and float(whole.total.abs().min()) > 0


def test_reading_leaves_no_weights_behind(monkeypatch):
    """The copy in float64 on which a group is read goes at once, not when some cycle is collected."""
    kept, made = reading.Probe.of, []

    def remembered(*args, **kwargs):
        probe = kept(*args, **kwargs)
        made.extend(buffer.untyped_storage() for buffer in probe.net.weights.buffers)
        return probe

    monkeypatch.setattr(reading.Probe, "of", remembered)
    leaves: list[weakref.ref] = []
    met = scale._Leaves.__getitem__

    def watched(self, name):
        leaf = met(self, name)
        leaves.append(weakref.ref(leaf))
        return leaf

    monkeypatch.setattr(scale._Leaves, "__getitem__", watched)
    Symmetry.of(two(lambda m, x: m.b(torch.relu(m.a(x)))), normal(3, 5))
    assert made and all(storage.nbytes() == 0 for storage in made)
    assert leaves and all(ref() is None for ref in leaves)


class Attended(nn.Module):
    """One head, with residual and norm; or a recurrent layer. One position is too few to see what either does."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.e, self.h = kind, nn.Linear(3, 8), nn.Linear(8, 2)
        if kind == "attention":
            self.n, self.q, self.k, self.v, self.o = nn.RMSNorm(8), *(nn.Linear(8, 8) for _ in range(4))
        else:
            self.r = getattr(nn, kind)(8, 8, batch_first=True)

    def forward(self, x):
        x = self.e(x)
        if self.kind != "attention":
            return self.h(self.r(x)[0])
        y = self.n(x)
        return self.h(x + self.o(torch.softmax(self.q(y) @ self.k(y).mT, -1) @ self.v(y)))


@pytest.mark.parametrize("linear", [True, False])
@pytest.mark.parametrize("kind", ["attention", "LSTM", "GRU", "RNN"])
def test_an_example_of_one_position_gives_no_wrong_move(kind, linear):
    """What has no effect on a short example has one on a longer: its axes stay, and a note names it."""
    torch.manual_seed(0)
    net = Net.of(Attended(kind)).double()
    short, long = normal(2, 1, 3).double(), normal(2, 5, 3).double()
    group, whole = (Symmetry.of(net, x, linear=linear) for x in (short, long))
    assert [any("give a longer example" in note for note in g.notes) for g in (group, whole)] == [True, False]
    made = [group.fold(net), group.balance(net), group.canonical(net), *(group.sample(seed)(net) for seed in range(3))]
    assert max(change(net, each, long) for each in made) < 1e-9
    assert change(net, whole.sample(0)(net), long) < 1e-9 and len(whole) > len(group)


class Chosen(nn.Module):
    """Three experts, of which each token takes the first by its router."""

    def __init__(self):
        super().__init__()
        self.r = nn.Linear(5, 3)
        self.up, self.down = nn.Parameter(torch.randn(3, 7, 5)), nn.Parameter(torch.randn(3, 5, 7))

    def forward(self, x):
        one = self.r(x).argmax(-1)
        up, down = self.up[one], self.down[one]
        return x + torch.einsum("tij,tj->ti", down, torch.relu(torch.einsum("tij,tj->ti", up, x)))


@pytest.mark.parametrize("seed", range(4))
def test_an_expert_that_an_example_does_not_choose_gets_no_wrong_move(seed):
    torch.manual_seed(seed)
    net, x = Net.of(Chosen()).double(), normal(1, 5).double()
    group = Symmetry.of(net, x)
    other = torch.randn(40, 5).double()
    for element in (group.sample(k) for k in range(3)):
        assert change(net, element(net), other) < 1e-9 and change(net, element(net), x) < 1e-9


class Sparse(nn.Module):
    """Experts in a list, of which every token takes one by its router; most are not met by one example."""

    def __init__(self, experts=10):
        super().__init__()
        self.r, self.h = nn.Linear(5, experts), nn.Linear(5, 2)
        self.es = nn.ModuleList(nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 5)) for _ in range(experts))

    def forward(self, x):
        one = self.r(x).argmax(-1, keepdim=True)
        return self.h(x + sum((one == k) * e(x) for k, e in enumerate(self.es)))


@pytest.mark.parametrize("rows", [1, 3])
def test_signs_of_experts_that_one_draw_does_not_meet_are_tried_on_another(rows):
    torch.manual_seed(0)
    net = Net.of(Sparse()).double()
    group, other = Symmetry.of(net, normal(rows, 5).double()), torch.randn(400, 5).double()
    assert any("sign" in axis.kinds for axis in group.axes)
    for kind in ("permutation", "scale", "sign"):
        assert change(net, group.sample(0, kind)(net), other) < 1e-9


@pytest.mark.parametrize("name", ["cnn_bn", "resnet_gn4", "llama_rope", "experts_einsum"])
def test_without_weights_the_permutations_are_those_that_are_verified(name):
    module, example = CASES[name].make(0), CASES[name].example(0)
    known, read = (
        sorted((axis.name, axis.size, axis.over) for axis in Symmetry.of(net, example).permutable())
        for net in (module, copy.deepcopy(module).to("meta"))  # the example stays where it is
    )
    assert read == known and known
