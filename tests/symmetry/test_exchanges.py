"""Exchanges of whole parts (heads and experts in lists, branches, members) with all that is numbered as they are."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

import weightspace as ws
from weightspace.commands.compare import compare
from weightspace.symmetry import exchanges
from weightspace.symmetry.parts import exchanged


def mlp(i, h, o):
    return nn.Sequential(nn.Linear(i, h), nn.Tanh(), nn.Linear(h, o))


def several(n, make):
    return nn.ModuleList(make() for _ in range(n))


class Head(nn.Module):
    def __init__(self, d, h):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(d, h, bias=False) for _ in range(3))

    def forward(self, x):
        return (self.q(x) @ self.k(x).mT).softmax(-1) @ self.v(x)


class Attention(nn.Module):
    """A part for every head, joined by cat or summed through a projection for each."""

    def __init__(self, n, make, width, own=False):
        super().__init__()
        self.e, self.h, self.hs = nn.Linear(3, 6), nn.Linear(6, 2), several(n, make)
        self.os = several(n, lambda: nn.Linear(width, 6)) if own else None
        self.o = None if own else nn.Linear(n * width, 6)

    def forward(self, x):
        x = self.e(x)
        parts = [h(x) for h in self.hs]
        if self.os is not None:
            return self.h((x + sum(o(y) for o, y in zip(self.os, parts, strict=True))).mean(1))
        return self.h((x + self.o(torch.cat(parts, -1))).mean(1))


class Queries(nn.Module):
    """Two query heads on one key and value."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = nn.Linear(6, 4), nn.Linear(6, 2), nn.Linear(6, 2)

    def forward(self, x):
        q = self.q(x).unflatten(-1, (2, 2)).transpose(1, 2)
        k, v = self.k(x)[:, None], self.v(x)[:, None]
        return ((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2)


class Experts(nn.Module):
    """A mixture; `way`: how its outputs are weighted and gathered."""

    def __init__(self, way, n=4):
        super().__init__()
        self.i, self.g, self.es, self.o = (
            nn.Linear(5, 6),
            nn.Linear(6, n),
            several(n, lambda: mlp(6, 4, 6)),
            nn.Linear(6, 2),
        )
        self.way, self.c = way, mlp(6, 4, 6) if way == "shared" else None

    def forward(self, x):
        x = torch.tanh(self.i(x))
        return self.o(x + getattr(self, self.way)(x, self.g(x)))

    def soft(self, x, gate):
        gate = gate.softmax(-1)
        return sum(gate[:, i : i + 1] * e(x) for i, e in enumerate(self.es))

    def shared(self, x, gate):
        return self.c(x) + self.soft(x, gate)

    def masks(self, x, gate):
        weight, index = gate.softmax(-1).topk(2, -1)
        out = torch.zeros_like(x)
        for i, e in enumerate(self.es):
            out = out + ((index == i) * weight).sum(-1, keepdim=True) * e(x)
        return out

    def chosen(self, x, gate):
        weight, index = gate.softmax(-1).max(-1, keepdim=True)
        out = torch.zeros_like(x)
        for i, e in enumerate(self.es):
            out = torch.where(index == i, e(x), out)
        return weight * out

    def slots(self, x, gate):
        weight, index = gate.softmax(-1).topk(2, -1)
        out = torch.zeros_like(x)
        for k in range(2):
            for i, e in enumerate(self.es):
                out = out + (index[:, k] == i)[:, None] * weight[:, k : k + 1] * e(x)
        return out

    def sparse(self, x, gate):
        top, index = gate.topk(2, -1)
        gate = torch.full_like(gate, float("-inf")).scatter(-1, index, top).softmax(-1)
        return sum(gate[..., i, None] * e(x) for i, e in enumerate(self.es))

    def einsum(self, x, gate):
        return torch.einsum("bn,nbo->bo", gate.softmax(-1), torch.stack([e(x) for e in self.es]))

    def gathered(self, x, gate):
        top, index = gate.topk(2, -1)
        every = torch.stack([e(x) for e in self.es], 1)
        return (top.softmax(-1)[..., None] * every.gather(1, index[..., None].expand(-1, -1, 6))).sum(1)


class Branches(nn.Module):
    def __init__(self, join):
        super().__init__()
        self.i, self.left, self.right, self.o = nn.Linear(5, 4), mlp(4, 3, 4), mlp(4, 3, 4), nn.Linear(4, 2)
        self.join = join

    def forward(self, x):
        x = torch.relu(self.i(x))
        return self.o(self.join(self.left(x), self.right(x)))


class Ensemble(nn.Module):
    def __init__(self, join, out=2):
        super().__init__()
        self.ms, self.join = several(3, lambda: mlp(5, 4, out)), join

    def forward(self, x):
        return self.join([m(x) for m in self.ms])


class TwoOutputs(nn.Module):
    """A mean and a variance: a member has three tensors, which meet in two places."""

    def __init__(self):
        super().__init__()
        self.body, self.mu, self.var = (
            several(3, lambda i=i, o=o: nn.Linear(i, o)) for i, o in ((5, 4), (4, 2), (4, 2))
        )

    def forward(self, x):
        h = [torch.tanh(m(x)) for m in self.body]
        mu, var = ([m(y) for m, y in zip(some, h, strict=True)] for some in (self.mu, self.var))
        return torch.cat([torch.stack(mu).mean(0), torch.stack(var).exp().sum(0)], -1)


class Inception(nn.Module):
    """Branches of one form, twice: the second read the concatenation of the first."""

    def __init__(self):
        super().__init__()
        block = lambda: nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU())  # noqa: E731
        self.bs, self.cs = several(3, block), several(2, lambda: nn.Conv2d(9, 2, 1))
        self.mix, self.o = nn.Conv2d(9, 2, 1), nn.Linear(4, 2)

    def forward(self, x):
        x = torch.cat([b(x) for b in self.bs], 1)
        y = torch.cat([torch.relu(c(x)) for c in self.cs], 1)
        return self.o(y.mean((2, 3))) + self.mix(x).mean((2, 3))


class Adapters(nn.Module):
    def __init__(self):
        super().__init__()
        self.w, self.o = nn.Linear(5, 6), nn.Linear(6, 2)
        self.a, self.b = (several(3, lambda i=i, o=o: nn.Linear(i, o, bias=False)) for i, o in ((5, 2), (2, 6)))

    def forward(self, x):
        return self.o(torch.tanh(self.w(x) + sum(b(a(x)) for a, b in zip(self.a, self.b, strict=True))))


class Critics(nn.Module):
    """Single outputs, joined."""

    def __init__(self):
        super().__init__()
        self.cs, self.o = several(4, lambda: mlp(5, 3, 1)), nn.Linear(4, 2)

    def forward(self, x):
        return self.o(torch.cat([c(x) for c in self.cs], -1).tanh())


class Mixed(nn.Module):
    """Branches that a matrix mixes: its blocks belong to pairs of them."""

    def __init__(self):
        super().__init__()
        self.bs, self.m, self.o = several(3, lambda: mlp(5, 3, 2)), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x):
        x = torch.cat([b(x) for b in self.bs], -1)
        return self.o(x + self.m(x).tanh())


class Halves(nn.Module):
    """A bilinear gate in one tensor."""

    def __init__(self):
        super().__init__()
        self.f, self.o = nn.Linear(5, 8), nn.Linear(4, 2)

    def forward(self, x):
        a, b = self.f(x).chunk(2, -1)
        return self.o(a * b)


class Grouped(nn.Module):
    """Four queries on two keys and values: only the pairs of them may be exchanged."""

    def __init__(self):
        super().__init__()
        self.e, self.o, self.h = nn.Linear(3, 6), nn.Linear(8, 6), nn.Linear(6, 2)
        self.q, self.k, self.v = (several(n, lambda: nn.Linear(6, 2)) for n in (4, 2, 2))

    def forward(self, x):
        x = self.e(x)
        k, v = ([f(x) for f in some] for some in (self.k, self.v))
        parts = [(q(x) @ k[i // 2].mT).softmax(-1) @ v[i // 2] for i, q in enumerate(self.q)]
        return self.h((x + self.o(torch.cat(parts, -1))).mean(1))


VECTORS, SEQUENCES = (20, 5), (6, 4, 3)
NETS = {
    "heads in a list": (lambda: Attention(3, lambda: Head(6, 2), 2), SEQUENCES, "S3{hs}"),
    "heads with projections of their own": (lambda: Attention(3, lambda: Head(6, 2), 2, own=True), SEQUENCES, "S3{hs}"),
    "groups of queries": (lambda: Attention(2, Queries, 4), SEQUENCES, "S2{hs}"),
    "queries on shared keys": (Grouped, SEQUENCES, "S2{k}"),
    "soft mixture": (lambda: Experts("soft"), VECTORS, "S4{es}"),
    "mixture with a shared expert": (lambda: Experts("shared"), VECTORS, "S4{es}"),
    "top-k by masks": (lambda: Experts("masks"), VECTORS, "S4{es}"),
    "top-k slot by slot": (lambda: Experts("slots"), VECTORS, "S4{es}"),
    "one choice by where": (lambda: Experts("chosen", 3), VECTORS, "S3{es}"),
    "sparse softmax": (lambda: Experts("sparse"), VECTORS, "S4{es}"),
    "einsum over a stack": (lambda: Experts("einsum"), VECTORS, "S4{es}"),
    "gathered from a stack": (lambda: Experts("gathered", 3), VECTORS, "S3{es}"),
    "sum of branches": (lambda: Branches(lambda a, b: a + b), VECTORS, "S2{left,right}"),
    "product of branches": (lambda: Branches(lambda a, b: a * b), VECTORS, "S2{left,right}"),
    "least of two": (lambda: Branches(torch.min), VECTORS, "S2{left,right}"),
    "branches that are mixed": (Mixed, VECTORS, "S3{bs}"),
    "mean of a stack": (lambda: Ensemble(lambda some: torch.stack(some).mean(0)), VECTORS, "S3{ms}"),
    "sum of an ensemble": (lambda: Ensemble(sum), VECTORS, "S3{ms}"),
    "two outputs": (TwoOutputs, VECTORS, "S3{body}"),
    "inception": (Inception, (4, 2, 4, 4), "S3{bs} x S2{cs}"),
    "adapters": (Adapters, VECTORS, "S3{a}"),
    "critics": (Critics, VECTORS, "S4{cs}"),
    "halves of one tensor": (Halves, VECTORS, "S2{f}"),
}  # fmt: skip


def made(make, shape, seed=0):
    torch.manual_seed(seed)
    module, x = make().double().eval(), torch.randn(*shape, dtype=torch.float64)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_var.uniform_(0.5, 2), norm.running_mean.normal_()
    return ws.Net.of(module), x


@pytest.fixture(scope="module", params=NETS)
def case(request):
    make, shape, word = NETS[request.param]
    net, x = made(make, shape)
    return net, x, ws.Symmetry.of(net, x), word


def relative(a, b):
    return float((a - b).norm() / a.norm())


def assert_same_function(a, b, x, tolerance=1e-10):
    torch.testing.assert_close(b(x), a(x), rtol=tolerance, atol=tolerance)


def test_the_group_has_the_exchange_and_a_sample_is_exact(case):
    net, x, group, word = case
    assert str(group).endswith(word) and "exchange" in group.verified["kinds"]
    for seed in range(2):
        g, only = group.sample(seed), group.sample(seed, "exchange")
        assert set(g.exchanges) == {e.name for e in group.exchanges}
        for element in (g, only):
            assert relative(net.weights, element(net).weights) > 0.1
            assert_same_function(net, element(net), x)


def test_inverse_product_and_difference(case):
    net, _, group, _ = case
    g, h = group.sample(0), group.sample(1)
    assert relative(net.weights, g.inverse()(g(net)).weights) < 1e-12
    assert relative(g(h(net)).weights, (g @ h)(net).weights) < 1e-12
    assert relative(((g @ h) @ g)(net).weights, (g @ (h @ g))(net).weights) < 1e-12
    assert (g @ g.inverse()).difference(group.identity()) == 0
    assert group.sample(0, "exchange").difference(group.identity()) > 0


def test_copies_are_found_back(case):
    net, x, group, _ = case
    other = group.sample(3)(net)
    aligned = group.align(other, to=net)
    assert relative(net.weights, aligned.weights) < 1e-6
    assert_same_function(net, aligned, x)
    assert_same_function(net, ws.mean([net, other], group), x, 1e-6)
    assert compare(net, other, group).verdict.kind == "same"


def test_canonical_forms_and_distances_of_copies(case):
    net, x, group, _ = case
    other = group.sample(3)(net)
    first, second = (group.canonical(each) for each in (net, other))
    assert relative(first.weights, second.weights) < 1e-6
    assert_same_function(net, second, x)
    distance = ws.modulo(group)(net, other)
    assert distance.lower <= 1e-6 and distance.upper <= 1e-5


def test_a_saved_group_is_the_same(case, tmp_path):
    net, _, group, _ = case
    group.save(tmp_path / "group.json")
    loaded = ws.Symmetry.load(tmp_path / "group.json")
    assert str(loaded) == str(group) and loaded.exchanges == group.exchanges
    assert relative(group.sample(4)(net).weights, loaded.sample(4)(net).weights) == 0


class Dilated(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = (nn.Conv1d(2, 3, 3, padding=k, dilation=k) for k in (1, 2))
        self.o = nn.Linear(6, 2)

    def forward(self, x):
        return self.o(torch.cat([self.a(x), self.b(x)], 1).relu().mean(-1))


class Sequence(nn.Module):
    """Layers one after the other, added or joined at the end."""

    def __init__(self, joined):
        super().__init__()
        self.ls, self.joined = several(3, lambda: mlp(5, 4, 5)), joined
        self.o = nn.Linear(20 if joined else 5, 2)

    def forward(self, x):
        every = [x]
        for layer in self.ls:
            every.append(layer(every[-1]) + (0 if self.joined else every[-1]))
        return self.o(torch.cat(every, -1) if self.joined else every[-1])


class Slices(nn.Module):
    """Branches of one form on different inputs."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.o = nn.Linear(2, 3), nn.Linear(2, 3), nn.Linear(3, 2)

    def forward(self, x):
        return self.o(torch.relu(self.a(x[:, :2]) + self.b(x[:, 2:4])))


class Chosen(nn.Module):
    """One branch where a condition holds, else the other where another does: both may hold at once."""

    def __init__(self):
        super().__init__()
        self.i, self.a, self.b, self.o = nn.Linear(5, 4), mlp(4, 3, 4), mlp(4, 3, 4), nn.Linear(4, 2)

    def forward(self, x):
        x = torch.tanh(self.i(x))
        out = torch.where(x[:, :1] > -0.5, self.a(x), torch.zeros_like(x))
        return self.o(torch.where(x[:, 1:2] > -0.5, self.b(x), out))


OTHERS = {
    "other constants": (lambda: Branches(lambda a, b: 0.5 * a - 0.3 * b), VECTORS),
    "other dilations": (Dilated, (4, 2, 8)),
    "joined in the output": (lambda: Ensemble(lambda some: torch.cat(some, -1)), VECTORS),
    "stacked in the output": (lambda: Ensemble(lambda some: torch.stack(some, 1)), VECTORS),
    "layers in a stream": (lambda: Sequence(joined=False), VECTORS),
    "layers joined": (lambda: Sequence(joined=True), VECTORS),
    "other inputs": (Slices, VECTORS),
    "conditions that overlap": (Chosen, VECTORS),
    "a gate and a value": (lambda: Branches(lambda a, b: a.sigmoid() * b), VECTORS),
}


@pytest.mark.parametrize("name", OTHERS)
def test_parts_that_differ_are_not_exchanged_and_not_spoken_of(name):
    net, x = made(*OTHERS[name])
    group = ws.Symmetry.of(net, x)
    assert not group.exchanges and not any("parts" in note for note in group.notes)


def test_parts_of_one_form_that_may_not_be_exchanged_are_named():
    scale = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)[:, None, None]
    net, x = made(lambda: Ensemble(lambda some: (torch.stack(some) * scale).sum(0)), VECTORS)
    group = ws.Symmetry.of(net, x)
    assert not group.exchanges
    assert [note for note in group.notes if note.startswith("ms.0, ms.1, ms.2 are 3 parts of one form")]


def test_some_of_the_parts_are_exchanged_where_not_all_may_be():
    net, x = made(lambda: Ensemble(lambda some: some[0] + some[1] + some[2] + some[2].pow(2)), VECTORS)
    group = ws.Symmetry.of(net, x)
    assert str(group).endswith("S2{ms}") and group.exchanges[0].members == ("ms.0", "ms.1")
    assert "of ms.0, ms.1, ms.2, 3 parts of one form, only some may be exchanged: ms.0, ms.1" in group.notes


def test_parts_inside_of_parts_are_left_out_with_a_note():
    net, x = made(Grouped, SEQUENCES)
    notes = ws.Symmetry.of(net, x).notes
    assert [n.split(" are ")[0] for n in notes if "lie in parts" in n] == ["q.0, q.1", "q.2, q.3"]


def test_an_exchange_without_the_rows_of_its_router_is_refused(monkeypatch):
    """The planted error: what the graph says of picks is not heard, nor the axes near them."""
    net, x = made(lambda: Experts("soft"), VECTORS)
    heard = lambda group, reading, names, parts, links: exchanged(group, reading, names, parts, [])  # noqa: E731
    monkeypatch.setattr(exchanges, "exchanged", heard)
    group = ws.Symmetry.of(net, x)
    assert not group.exchanges and any("4 parts of one form" in note for note in group.notes)


def test_an_exchange_of_wrong_blocks_changes_the_function():
    net, x = made(lambda: Experts("soft"), VECTORS)
    group = ws.Symmetry.of(net, x)
    exchange = group.exchanges[0]
    kept = [s for s in exchange.blocks if not group.blocks[s[0][1]].tensor.startswith("g.")]
    assert len(kept) == len(exchange.blocks) - 2  # rows of its weight, entries of its bias
    wrong = group.again(exchanges=[replace(exchange, blocks=tuple(kept))])
    g = wrong.sample(0, "exchange")
    assert float((g(net)(x) - net(x)).abs().max()) > 1e-3


def test_networks_trained_apart_are_nearer_with_exchanges_and_bounds_hold():
    (a, x), (b, _) = (made(lambda: Experts("soft", 3), VECTORS, seed) for seed in range(2))
    group = ws.Symmetry.of(a, x)
    plain = group.again(exchanges=())
    with_parts, without = (ws.modulo(g)(a, b) for g in (group, plain))
    assert 0 < with_parts.lower <= with_parts.upper <= without.upper * (1 + 1e-9)
    assert with_parts.lower <= without.lower + 1e-9
    assert compare(a, b, group).verdict.kind == "independent"
    assert_same_function(b, group.align(b, to=a, data=ws.Task(x)), x)


def test_the_lower_bound_is_below_the_distance_to_every_element():
    (a, x), (b, _) = (made(lambda: Tiny(), VECTORS, seed) for seed in range(2))
    group = ws.Symmetry.of(a, x)
    assert str(group) == "[S2 x R+2]^3 x S3{ms}" and len(list(group.isometries())) == 48
    assert group.log10_order == pytest.approx(torch.tensor(48.0).log10().item(), abs=1e-6)
    exact = ws.modulo(group, exact=True)(a, b)
    bounds = ws.modulo(group)(a, b)
    assert bounds.lower <= exact.lower * (1 + 1e-9) and exact.lower <= bounds.upper * (1 + 1e-9)


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.ms = several(3, lambda: nn.Sequential(nn.Linear(5, 2), nn.ReLU(), nn.Linear(2, 1)))

    def forward(self, x):
        return sum(m(x) for m in self.ms)


def test_equal_members_have_no_canonical_order():
    net, x = made(Tiny, VECTORS)
    module = net.module()
    module.ms[1] = copy.deepcopy(module.ms[0])
    group = ws.Symmetry.of(net, x)
    with pytest.raises(ws.SymmetryError, match="no canonical order"):
        group.canonical(ws.Net.of(module))


def test_a_frozen_tensor_keeps_its_parts_in_place():
    net, x = made(lambda: Experts("soft"), VECTORS)
    group = ws.Symmetry.of(net, x)
    assert not group.without(["g.bias"]).exchanges
    still = group.without(["o.bias"])
    g = still.sample(0)
    assert still.exchanges and relative((g @ g.inverse())(net).weights, net.weights) < 1e-12
    assert_same_function(net, g(net), x)


def test_a_tensor_alone_cannot_be_exchanged():
    net, x = made(lambda: Experts("soft"), VECTORS)
    group = ws.Symmetry.of(net, x)
    g = group.sample(0, "exchange")
    name = next(f"es.{i}.0.weight" for i, j in enumerate(g.exchanges["es"]) if i != j)
    with pytest.raises(ws.SymmetryError, match="must be given too"):
        g.move(name, net.weights[name])
    torch.testing.assert_close(g.move(name, net.weights[name], net.weights.__getitem__), g(net).weights[name])


def test_without_verification_exchanges_are_still_tried():
    net, x = made(lambda: Branches(lambda a, b: a + b), VECTORS)
    assert ws.Symmetry.of(net, x, verify=False).exchanges
    assert ws.Symmetry.of(net, x, linear=False).exchanges
    assert ws.Symmetry.of(net, x, scales=False).exchanges
