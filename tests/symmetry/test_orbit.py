"""A network and its copies under the group are one thing to everything that chooses in an orbit.

The law, for every kind of move alone and for all together: balanced and canonical forms are equal, statistics
included; alignment restores the network; the distance modulo the group has 0 in its interval; the verdict is "same";
the mean of copies is the function.
"""

from __future__ import annotations

import sys
from functools import cache
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from architectures import CASES, noisy
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import weightspace as ws
from weightspace.commands.compare import compare
from weightspace.symmetry.align.ascent import Matching
from weightspace.symmetry.align.parity import best_value, chosen_signs
from weightspace.symmetry.balance import _Slice, balance, unit_variances

EXACT = 1e-6
KINDS = [("permutation",), ("scale",), ("sign",), ("permutation", "scale", "sign")]


def apart(a: ws.Net, b: ws.Net) -> float:
    """|a - b| / |a|, floating-point state included."""
    names = [n for n, t in a.tensors.items() if t.is_floating_point()]
    squares = [(float((b.tensors[n].double() - a.tensors[n].double()).square().sum()),
                float(a.tensors[n].double().square().sum())) for n in names]  # fmt: skip
    gap, size = (sum(column) for column in zip(*squares, strict=True))
    return (gap / size) ** 0.5


def tensors(out) -> Tensor:
    """All that is computed, in one vector."""
    found = pytree.tree_leaves(getattr(out, "logits", out))
    return torch.cat([t.double().flatten() for t in found if isinstance(t, Tensor) and t.is_floating_point()])


def change(a: ws.Net, b: ws.Net, x) -> float:
    with torch.no_grad():
        before, after = tensors(a(x)), tensors(b(x))
    return float((after - before).abs().max() / before.abs().max())


def check_choice(a: ws.Net, b: ws.Net, group: ws.Symmetry) -> None:
    """One form, and the way back."""
    assert apart(group.balance(a), group.align(group.balance(b), to=group.balance(a))) < EXACT
    assert apart(group.canonical(a), group.canonical(b)) < EXACT
    assert apart(a, group.align(b, to=a)) < EXACT


def check_measures(a: ws.Net, b: ws.Net, group: ws.Symmetry, x) -> None:
    """What is computed from the way back."""
    interval = ws.modulo(group)(a, b)
    assert 0 <= interval.lower <= interval.upper < EXACT * float(a.weights.norm())
    found = compare(a, b, group)
    assert found.verdict.kind == "same", found.verdict
    assert change(a, ws.mean([a, b], group), x) < EXACT
    assert change(a, ws.mean([a, b, group.sample(9)(b)], group), x) < EXACT


def generic(module: nn.Module, seed: int = 0) -> ws.Net:
    """In float64, every tensor generic; variances stay positive."""
    net, generator = ws.Net.of(module.double().eval()), torch.Generator().manual_seed(seed)

    def draw(name: str, t: Tensor) -> Tensor:
        if name.endswith("running_var"):
            return torch.rand(t.shape, generator=generator, dtype=t.dtype) * 2 + 0.2
        return t + 0.3 * torch.randn(t.shape, generator=generator, dtype=t.dtype) if t.is_floating_point() else t

    return net.load({name: draw(name, t) for name, t in net.tensors.items()})


@cache
def registered(name: str) -> tuple[ws.Net, ws.Symmetry, object]:
    net = noisy(CASES[name], 1)
    return net, ws.Symmetry.of(net, CASES[name].example(0)), CASES[name].example(3)


REGISTERED = ["mlp_batchnorm", "resnet_bn", "densenet", "position_buffer_saved", "llama_rope"]


@pytest.mark.parametrize("name", REGISTERED)
def test_any_element_is_undone(name):
    net, group, x = registered(name)
    for seed in range(4):
        check_choice(net, group.sample(seed, KINDS[seed])(net), group)
    check_measures(net, group.sample(5)(net), group, x)


def test_a_slice_that_forgets_statistics_is_caught(monkeypatch):
    """The oracle fails where scales that move running statistics are left out of the balance."""
    net, group, x = registered("mlp_batchnorm")
    copy = group.sample(1, ("scale",))(net)
    begin = _Slice.__init__

    def forgetful(self, group, tensors):
        begin(self, group, tensors)
        for k in [k for k, g in self.chosen.items() if g.evaluation]:
            del self.chosen[k], self.logs[k]

    monkeypatch.setattr(_Slice, "__init__", forgetful)
    for check in (lambda: check_choice(net, copy, group), lambda: check_measures(net, copy, group, x)):
        with pytest.raises(AssertionError):
            check()


# norms with statistics


class Residual(nn.Module):
    """h + d(relu(norm(h))): a BatchNorm that reads a residual stream."""

    def __init__(self):
        super().__init__()
        self.i, self.n, self.d, self.o = nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x):
        h = self.i(x)
        return self.o(h + self.d(torch.relu(self.n(h))))


class Frozen(nn.Module):
    """BatchNorm all of buffers, as detectors freeze it."""

    def __init__(self, n):
        super().__init__()
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((n,), value))

    def forward(self, x):
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        return x * scale + (self.bias - self.running_mean * scale)


class Whitening(nn.Module):
    """Two frozen factors one after the other: a scale and a sign that no parameter shows."""

    def __init__(self, n):
        super().__init__()
        for name in ("first", "second", "shift"):
            self.register_buffer(name, torch.rand(n) + 0.5)

    def forward(self, x):
        return (x * self.first + self.shift) * self.second


def plain(norm: nn.Module, on: nn.Module | None = None) -> nn.Module:
    return nn.Sequential(nn.Linear(8, 7), norm, on or nn.ReLU(), nn.Linear(7, 4))


NORMS = {
    "stream": Residual,
    "frozen": lambda: plain(Frozen(7)),
    "whitening": lambda: plain(Whitening(7)),
    "no gain": lambda: plain(nn.BatchNorm1d(7, affine=False)),
    "tanh": lambda: plain(nn.BatchNorm1d(7), nn.Tanh()),
    "two": lambda: plain(nn.Sequential(nn.BatchNorm1d(7), nn.BatchNorm1d(7))),
}


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("name", NORMS)
def test_norms_with_statistics(name, fresh):
    torch.manual_seed(0)
    module = NORMS[name]().double().eval()
    net = ws.Net.of(module) if fresh else generic(module)
    x = torch.randn(5, 8, dtype=torch.float64)
    group = ws.Symmetry.of(net, x)
    for seed in range(2):
        check_choice(net, group.sample(seed)(net), group)
    check_measures(net, group.sample(2)(net), group, x)


def louder(net: ws.Net, times: float | Tensor) -> ws.Net:
    """The layer before a norm scaled, its statistics too: eps alone tells the outputs apart."""
    new = dict(net.tensors)
    for name, power in (("0.weight", 1), ("0.bias", 1), ("1.running_mean", 1), ("1.running_var", 2)):
        factor = torch.as_tensor(times).double() ** power
        new[name] = new[name] * (factor[:, None] if factor.dim() and new[name].dim() == 2 else factor)
    return net.load(new)


@pytest.mark.parametrize("times", [8.0, 0.125, torch.linspace(0.2, 9, 7)])
def test_a_louder_layer_before_the_norm_is_not_another_network(times):
    a = generic(plain(nn.BatchNorm1d(7)))
    x = torch.randn(64, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    b, group = louder(a, times), ws.Symmetry.of(a, x)
    assert change(a, b, x) < 1e-3
    found = compare(a, group.sample(3)(b), group)
    assert found.verdict.kind in ("same", "related"), found.verdict
    assert found.relative < 1e-2
    assert ws.modulo(group)(a, b).upper < 1e-2 * float(a.weights.norm())
    assert "running variances" in " ".join(found.remarks())


def test_unit_variances_are_the_same_function_and_go_with_the_group():
    net = generic(plain(nn.BatchNorm1d(7)))
    x = torch.randn(5, 8, dtype=torch.float64)
    group = ws.Symmetry.of(net, x)
    even, g = unit_variances(group, net), group.sample(2)
    assert change(net, even, x) < 1e-12
    assert torch.equal(even.state["1.running_var"], torch.full((7,), 1 - 1e-5, dtype=torch.float64))
    assert apart(even, unit_variances(group, even)) < 1e-12
    assert apart(g(even), unit_variances(group, g(net))) < 1e-12
    assert apart(net, even) > 1e-2


# units without a minimum


def sparse(share: float) -> ws.Net:
    """Weights cut at random, and no biases: units that nothing enters, or that nothing reads."""
    torch.manual_seed(0)
    sizes = [8, 30, 30, 30, 4]
    layers = [part for m, n in zip(sizes, sizes[1:], strict=False) for part in (nn.Linear(m, n), nn.ReLU())]
    net = ws.Net.of(nn.Sequential(*layers[:-1])).double()
    cut = {n: t * (torch.rand_like(t) > share) if t.dim() > 1 else 0 * t for n, t in net.weights.items()}
    return net.at(net.weights.replace(cut))


@pytest.mark.parametrize("share", [0.5, 0.9, 0.97])
def test_pruned_and_idle_units_have_one_scale(share):
    net = sparse(share)
    group = ws.Symmetry.of(net, torch.randn(2, 8, dtype=torch.float64))
    one = balance(group, net, 1e-10)
    for seed in range(3):
        assert apart(one, balance(group, group.sample(seed, ("scale",))(net), 1e-10)) < 1e-9
    if share < 0.95:  # where a unit has one weight or none left, order is a matter of graphs
        assert apart(net, group.align(group.sample(4)(net), to=net)) < EXACT


def test_scales_without_a_least_norm_are_refused():
    """With eps = 0 the layer, the variance and the gain shrink together."""
    net = generic(plain(nn.BatchNorm1d(7, eps=0.0)))
    group = ws.Symmetry.of(net, torch.randn(5, 8, dtype=torch.float64))
    with pytest.raises(ws.WeightspaceError, match="no point of least norm"):
        group.balance(net)


def test_a_low_rank_pair_that_was_just_begun():
    net, group, _ = registered("lora")
    fresh = net.at(net.weights.replace({"up": torch.zeros_like(net.weights["up"])}))
    check_choice(fresh, group.sample(1)(fresh), group)


# many signs on one axis


def brute(terms: dict[frozenset[int], Tensor]) -> Tensor:
    signs = sorted(set().union(*terms))
    totals = []
    for flips in product((0, 1), repeat=len(signs)):
        on = {k for k, f in zip(signs, flips, strict=True) if f}
        totals.append(sum((-v if len(on & p) % 2 else v) for p, v in terms.items()))
    return torch.stack(totals).max(0).values


def total(terms: dict[frozenset[int], Tensor], flips: dict[int, Tensor]) -> Tensor:
    out = torch.zeros(())
    for p, v in terms.items():
        for k in p & flips.keys():
            v = torch.where(flips[k], -v, v)
        out = out + v
    return out


STAR = [frozenset({0}), *[frozenset({k}) for k in range(1, 6)], *[frozenset({0, k}) for k in range(1, 6)]]
SETS = [
    [frozenset(), frozenset({3})],
    STAR,
    [*STAR, frozenset()],
    [frozenset({6, 7}), frozenset({6}), frozenset({7}), frozenset({6, 7, 9}), frozenset({6, 7, 8}), frozenset({8})],
    [frozenset({0, 1}), frozenset({1, 2}), frozenset({0, 2})],
    [frozenset(k for k in range(7) if code >> k & 1) for code in range(3, 120, 5)],
]


@pytest.mark.parametrize("number", range(len(SETS)))
def test_signs_of_a_unit_against_all_choices(number):
    terms = {p: torch.randn(40, generator=torch.Generator().manual_seed(i)) for i, p in enumerate(SETS[number])}
    wanted = brute(terms)
    torch.testing.assert_close(best_value(terms), wanted)
    torch.testing.assert_close(total(terms, chosen_signs(terms)), wanted)
    assert bool((total(terms, {k: ~f for k, f in chosen_signs(terms).items()}) < wanted - 1e-3).any())


def test_signs_too_entangled_to_eliminate_are_still_consistent(monkeypatch):
    monkeypatch.setattr("weightspace.symmetry.align.parity._WIDEST", 0)
    terms = {p: torch.randn(40, generator=torch.Generator().manual_seed(i)) for i, p in enumerate(SETS[-1])}
    reached = best_value(terms)
    torch.testing.assert_close(total(terms, chosen_signs(terms)), reached)
    assert bool((reached <= brute(terms) + 1e-5).all()) and float((reached / brute(terms)).mean()) > 0.7


class Deep(nn.Module):
    """A pre-norm stream x + p(b(gelu(a(n(x))))): every norm adds a sign for each channel of the stream."""

    def __init__(self, depth, norm=nn.RMSNorm):
        super().__init__()
        self.e, self.h = nn.Embedding(13, 8), nn.Linear(8, 13, bias=False)
        self.n, self.p = (nn.ModuleList(norm(8) for _ in range(depth)) for _ in range(2))
        self.a = nn.ModuleList(nn.Linear(8, 11, bias=False) for _ in range(depth))
        self.b = nn.ModuleList(nn.Linear(11, 8, bias=False) for _ in range(depth))

    def forward(self, ids):
        x = self.e(ids)
        for n, p, a, b in zip(self.n, self.p, self.a, self.b, strict=True):
            x = x + p(b(F.gelu(a(n(x)))))
        return self.h(x)


class Grouped(nn.Module):
    """relu(h + GroupNorm(conv(h))), again and again: every norm adds a sign for each group of the stream."""

    def __init__(self, depth):
        super().__init__()
        self.i, self.o = nn.Conv2d(2, 6, 3, padding=1), nn.Linear(6, 3)
        self.n = nn.ModuleList(nn.GroupNorm(3, 6) for _ in range(depth))
        self.c = nn.ModuleList(nn.Conv2d(6, 6, 3, padding=1) for _ in range(depth))

    def forward(self, x):
        h = F.relu(self.i(x))
        for n, c in zip(self.n, self.c, strict=True):
            h = F.relu(h + n(c(h)))
        return self.o(h.mean((2, 3)))


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("kind", ["channels", "groups"])
def test_streams_with_many_norms(kind, fresh):
    torch.manual_seed(0)
    module, x = (Deep(4), torch.randint(13, (4, 6))) if kind == "channels" else (Grouped(6), torch.randn(2, 2, 5, 5))
    net = ws.Net.of(module.double().eval()) if fresh else generic(module)
    group = ws.Symmetry.of(net, x.double() if x.is_floating_point() else x)
    assert max(sum(g.kind == "sign" and g.axis == axis.name for g in group.generators) for axis in group) > 4
    x = x.double() if x.is_floating_point() else x
    for seed in range(2):
        check_choice(net, group.sample(seed)(net), group)
    check_measures(net, group.sample(3)(net), group, x)


def test_a_match_that_forgets_a_sign_is_caught(monkeypatch):
    torch.manual_seed(0)
    net, ids = generic(Deep(3)), torch.randint(13, (4, 6))
    group = ws.Symmetry.of(net, ids)
    element = Matching._element

    def forgetful(self, tables, flips):
        return element(self, tables, {k: f for k, f in flips.items() if k != max(flips)})

    monkeypatch.setattr(Matching, "_element", forgetful)
    monkeypatch.setattr(sys.modules["weightspace.symmetry.align.match"], "_ALIKE", -1.0)
    with pytest.raises(AssertionError):
        for seed in range(3):
            check_choice(net, group.sample(seed, ("sign",))(net), group)


FAMILIES = {
    "Llama": {"num_key_value_heads": 2, "head_dim": 4},
    "Qwen2": {"num_key_value_heads": 2, "num_hidden_layers": 1},
    "Qwen3": {"num_key_value_heads": 2, "head_dim": 4, "num_hidden_layers": 1},
    "Gemma": {"num_key_value_heads": 2, "head_dim": 4},
}


@pytest.mark.parametrize("name", [*FAMILIES, "GPT2"])
def test_language_models(name):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    if name == "GPT2":
        config = transformers.GPT2Config(
            vocab_size=17, n_embd=12, n_layer=2, n_head=3, n_positions=16, use_cache=False, bos_token_id=None,
            eos_token_id=None,
        )  # fmt: skip
        module = transformers.GPT2LMHeadModel(config)
    else:
        config = getattr(transformers, f"{name}Config")(
            vocab_size=17, hidden_size=12, num_attention_heads=2, intermediate_size=10, max_position_embeddings=16,
            use_cache=False, pad_token_id=None, **{"num_hidden_layers": 2, **FAMILIES[name]},
        )  # fmt: skip
        module = getattr(transformers, f"{name}ForCausalLM")(config)
    net = ws.Net.of(module.eval())
    group = ws.Symmetry.of(net, {"input_ids": torch.arange(12).reshape(2, 6)})
    for seed, kinds in enumerate((("permutation", "sign"), ("permutation", "scale", "sign"))):
        copy = group.sample(seed, kinds)(net)
        assert apart(net, group.align(copy, to=net)) < EXACT
    assert apart(group.canonical(net), group.canonical(copy)) < EXACT
    assert compare(net, copy, group).verdict.kind == "same"


# signs of heads and of the channels in them


class Attention(nn.Module):
    """Three heads of four channels: linear attention, or q and k normed before the softmax."""

    def __init__(self, norm):
        super().__init__()
        self.e, self.h = nn.Linear(4, 12), nn.Linear(12, 2)
        self.q, self.k, self.v, self.o = (nn.Linear(12, 12) for _ in range(4))
        self.qk = nn.RMSNorm(4) if norm == "qk" else nn.Identity()
        self.soft = norm != "linear"

    def forward(self, x):
        x = self.e(x)
        q, k, v = (f(x).unflatten(-1, (3, 4)).transpose(1, 2) for f in (self.q, self.k, self.v))
        a = self.qk(q) @ self.qk(k).mT
        a = a.softmax(-1) if self.soft else a / 5
        return self.h((x + self.o((a @ v).transpose(1, 2).flatten(2))).mean(1))


@pytest.mark.parametrize("norm", ["linear", "qk"])
def test_heads_and_channels_that_both_have_signs(norm):
    torch.manual_seed(0)
    net = generic(Attention(norm))
    group = ws.Symmetry.of(net, torch.randn(2, 5, 4, dtype=torch.float64))
    form = group.canonical(net)
    for seed in range(6):
        assert apart(form, group.canonical(group.sample(seed, KINDS[2 + seed % 2])(net))) < EXACT
    assert apart(form, group.canonical(form)) < EXACT
    other = net.at(net.weights.replace({"q.weight": -net.weights["q.weight"].abs()}))
    assert apart(form, group.canonical(other)) > 1e-2
