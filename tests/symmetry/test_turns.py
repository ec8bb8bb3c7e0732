"""Orthogonal and general linear moves: read where they are, exact, folded and undone; copies are one network.

The groups of families are written down by hand, from the architectures as published.
"""

from __future__ import annotations

import copy
from collections import Counter

import pytest
import torch
from torch import nn

import weightspace as ws
from weightspace.commands.compare import compare
from weightspace.net.errors import SymmetryError
from weightspace.symmetry import quotient, turns
from weightspace.symmetry.align.refine import refine
from weightspace.symmetry.axis import Generator

STREAM, HEADS, CHANNELS, HIDDEN = 8, 2, 4, 10
DOUBLE = torch.float64


class Block(nn.Module):
    """Pre-norm attention and feed-forward."""

    def __init__(self, norm, bias=False):
        super().__init__()
        self.n1, self.n2 = norm(STREAM), norm(STREAM)
        self.q, self.k, self.v, self.o = (nn.Linear(STREAM, STREAM, bias=bias) for _ in range(4))
        self.up, self.down = nn.Linear(STREAM, HIDDEN, bias=bias), nn.Linear(HIDDEN, STREAM, bias=bias)

    def forward(self, x):
        h = self.n1(x)
        q, k, v = (f(h).unflatten(-1, (HEADS, CHANNELS)).transpose(1, 2) for f in (self.q, self.k, self.v))
        x = x + self.o(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(nn.functional.gelu(self.up(self.n2(x))))


class Transformer(nn.Module):
    """One block between an embedding and a head; `tied` reads the embedding again."""

    def __init__(self, norm=nn.RMSNorm, bias=False, tied=False):
        super().__init__()
        self.e, self.block, self.n = nn.Linear(5, STREAM), Block(norm, bias), norm(STREAM)
        self.h = None if tied else nn.Linear(STREAM, 9)

    def forward(self, x):
        h = self.n(self.block(self.e(x))).mean(1)
        return h @ self.e.weight if self.h is None else self.h(h)


class LowRank(nn.Module):
    """A base and a trained pair, x -> relu((W + B A) x)."""

    def __init__(self):
        super().__init__()
        self.register_buffer("w", torch.randn(12, 5) / 2, persistent=False)
        self.A, self.B, self.h = nn.Parameter(torch.randn(4, 5)), nn.Parameter(torch.randn(12, 4) / 2), nn.Linear(12, 3)

    def forward(self, x):
        return self.h(torch.relu(x @ self.w.T + x @ self.A.T @ self.B.T))


def made(build, seed=0, dtype=DOUBLE):
    """Every tensor generic, gains between .5 and 1.5 and of either sign."""
    torch.manual_seed(seed)
    net = ws.Net.of(build().eval()).to(dtype)
    for name, tensor in net.weights.items():
        noise = torch.randn_like(tensor) / 4
        flips = 1 - 2 * (torch.rand_like(tensor) < 0.3).to(dtype)
        tensor.copy_(flips * (1 + noise) if ".n" in f".{name}" and name.endswith("weight") else tensor + noise)
    return net


def inputs(build, dtype=DOUBLE, n=8):
    x = torch.randn(*((n, 5) if build is LowRank else (n, 6, 5)), generator=torch.Generator().manual_seed(1))
    return x.to(dtype)


def change(a, b, x):
    with torch.no_grad():
        return float((a(x) - b(x)).abs().max() / a(x).abs().max())


def apart(a, b):
    return float((a - b).norm() / a.weights.norm())


def layered():
    return Transformer(nn.LayerNorm, bias=True)


BUILDS = {"rms": Transformer, "layer": layered, "pair": LowRank}
GROUPS = {"rms": "O8 x S2 x [GL4^2]^2 x S10", "layer": "O7 x S2 x [GL4^2]^2 x S10", "pair": "GL4"}


@pytest.fixture(params=BUILDS)
def build(request):
    return BUILDS[request.param]


@pytest.mark.parametrize("name", BUILDS)
def test_the_group_is_the_one_written_by_hand(name):
    net = made(BUILDS[name])
    assert str(ws.Symmetry.of(net, inputs(BUILDS[name]))) == GROUPS[name]
    old = ws.Symmetry.of(net, inputs(BUILDS[name]), linear=False)
    assert not any(g.kind in ("orthogonal", "linear") for g in old.generators) and not old.gauge


def test_a_random_member_is_exact_on_unfolded_networks_and_a_wrong_matrix_is_not(build):
    net, x = made(build), inputs(build)
    group = ws.Symmetry.of(net, x)
    for seed in range(5):
        g = group.sample(seed)
        assert change(net, g(net), x) < 1e-10
        assert apart(net, g(net)) > 0.1
        if build is not LowRank:
            turn = next(k for k, q in enumerate(group.generators) if q.kind == "orthogonal")
            wrong = {**g.factors, turn: g.factors[turn] + 0.01 * torch.randn(STREAM, STREAM, dtype=DOUBLE)}
            assert change(net, type(g)(group, g.permutations, wrong)(net), x) > 1e-5


def test_it_is_a_group_of_moves_of_any_network(build):
    """(g h) w = g (h w) and g^-1 g w = w, gains as they were up to their order."""
    net, x = made(build), inputs(build)
    group = ws.Symmetry.of(net, x)
    g, h = group.sample(1), group.sample(2)
    assert apart((g @ h)(net), g(h(net))) < 1e-12
    assert apart((h @ g)(net), g(h(net))) > 1e-2
    assert apart(g.inverse()(g(net)), net) < 1e-12
    for place in (place for q in group.generators for place in q.uniform):
        name = group.blocks[place.block].tensor
        assert torch.equal(g(net).weights[name].sort()[0], net.weights[name].sort()[0]) or torch.allclose(
            g(net).weights[name].sort()[0], net.weights[name].sort()[0], rtol=1e-12
        )


def test_folding_keeps_the_function_sets_gains_to_one_and_is_undone(build):
    net, x = made(build), inputs(build)
    group = ws.Symmetry.of(net, x)
    folded = group.fold(net)
    assert change(net, folded, x) < 1e-10
    gains = [group.blocks[place.block].tensor for q in group.generators for place in q.uniform]
    assert len(gains) == (0 if build is LowRank else 3)
    assert all(bool((folded.weights[name] == 1).all()) for name in gains)
    assert {n: t.shape for n, t in folded.weights.items()} == {n: t.shape for n, t in net.weights.items()}
    assert apart(group.fold(folded, like=net), net) < 1e-12
    single = net.to(torch.float32)
    assert change(single, group.fold(single), x.float()) < 1e-5


def test_biases_of_keys_are_found_to_be_free():
    """Softmax drops what they add. Folding sets them to zero, and copies with other ones are one network."""
    net, x = made(layered), inputs(layered)
    group = ws.Symmetry.of(net, x)
    assert {group.blocks[place.block].tensor for place in group.free} == {"block.k.bias"}
    assert bool((group.fold(net).weights["block.k.bias"] == 0).all())
    other = net.at(net.weights.replace({"block.k.bias": torch.ones(STREAM, dtype=DOUBLE)}))
    assert apart(net, group.align(other, to=net)) < 1e-10


@pytest.mark.parametrize(
    "number, words", [(0.0, "n.weight is zero for some unit"), (float("nan"), "n.weight holds NaN")]
)
def test_a_gain_that_is_lost_is_refused(number, words):
    net = made(Transformer)
    group = ws.Symmetry.of(net, inputs(Transformer))
    gain = net.weights["n.weight"].clone()
    gain[3] = number
    with pytest.raises(SymmetryError, match=words):
        group.fold(net.at(net.weights.replace({"n.weight": gain})))


def test_a_tied_head_keeps_the_stream_where_it_is_and_a_note_says_so():
    build = lambda: Transformer(tied=True)  # noqa: E731
    group = ws.Symmetry.of(made(build), inputs(Transformer))
    assert not any(g.kind == "orthogonal" for g in group.generators)
    assert [g.kind for g in group.generators].count("linear") == 2
    assert any("may not be rotated: the gain n.weight cannot be folded" in note for note in group.notes)


def test_an_axis_wider_than_what_it_connects_keeps_its_scales_and_a_note_says_so():
    wide = lambda: nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3))  # noqa: E731
    group = ws.Symmetry.of(made(wide), torch.randn(4, 5, dtype=DOUBLE))
    assert "linear" not in group.axes[0].kinds and "scale" in group.axes[0].kinds
    assert any("more units (7) than the rank" in note for note in group.notes)
    narrow = lambda: nn.Sequential(nn.Linear(5, 2), nn.Linear(2, 3))  # noqa: E731
    assert str(ws.Symmetry.of(made(narrow), torch.randn(4, 5, dtype=DOUBLE))) == "GL2"


# copies, moved by hand and not by the library


def rotation(n):
    return torch.linalg.qr(torch.randn(n, n, dtype=DOUBLE))[0]


def invertible(n):
    return rotation(n) @ torch.diag(torch.logspace(-0.3, 0.3, n, dtype=DOUBLE)) @ rotation(n)


def by_heads(first, second, transposed):
    """first <- M first on every head, second <- M^-T second (or, by its columns, second M^-1)."""
    for h in range(HEADS):
        rows, m = slice(h * CHANNELS, (h + 1) * CHANNELS), invertible(CHANNELS)
        first.weight[rows] = m @ first.weight[rows]
        if transposed:
            second.weight[rows] = torch.linalg.inv(m).T @ second.weight[rows]
        else:
            second.weight[:, rows] = second.weight[:, rows] @ torch.linalg.inv(m)


def queries(m):
    by_heads(m.block.q, m.block.k, True)


def values(m):
    by_heads(m.block.v, m.block.o, False)


def stream(m):
    r, b = rotation(STREAM), m.block
    for norm, readers in ((b.n1, (b.q, b.k, b.v)), (b.n2, (b.up,)), (m.n, (m.h,))):
        for reads in readers:
            reads.weight.copy_(reads.weight * norm.weight @ r.T)
        norm.weight.fill_(1.0)
    for writes in (b.o, b.down, m.e):
        writes.weight.copy_(r @ writes.weight)
    m.e.bias.copy_(r @ m.e.bias)


def pair(m):
    g = invertible(4)
    m.A.copy_(torch.linalg.inv(g) @ m.A)
    m.B.copy_(m.B @ g)


MOVES = {f.__name__: f for f in (queries, values, stream, pair)}


@pytest.fixture(params=MOVES)
def copies(request):
    build = LowRank if request.param == "pair" else Transformer
    a = made(build)
    module = copy.deepcopy(a.module())
    with torch.no_grad():
        MOVES[request.param](module)
    b, x = ws.Net.of(module), inputs(build)
    assert change(a, b, x) < 1e-9 and apart(a, b) > 0.1
    return a, b, ws.Symmetry.of(a, x), x


def test_a_copy_is_the_same_and_is_found_again(copies):
    a, b, group, x = copies
    assert compare(a, b, group).verdict.kind == "same"
    assert apart(a, group.align(b, to=a)) < 1e-6
    assert change(a, ws.mean([a, b], group), x) < 1e-6
    assert apart(group.canonical(a), group.canonical(b)) < 1e-6
    assert apart(group.canonical(a), group.fold(a)) > 1e-3
    interval = ws.modulo(group)(a, b)
    assert interval.lower <= interval.upper < 1e-6 * float(a.weights.norm())


def test_without_the_new_moves_the_same_copy_is_not_found(copies):
    a, b, _, x = copies
    old = ws.Symmetry.of(a, x, linear=False)
    assert compare(a, b, old).verdict.kind != "same"


def test_the_lower_bound_holds_for_every_element(build):
    """Against the distance at random elements, the matched one, and other networks."""
    a, b, x = made(build), made(build, 1), inputs(build)
    group = ws.Symmetry.of(a, x)
    one, two = quotient.sliced(group, a), quotient.sliced(group, b)
    low = quotient.lower_bound(group, one, two)
    kinds = ("permutation", "sign", "orthogonal")
    found = [float((one - group.sample(seed, kinds)(two)).norm()) for seed in range(20)]
    found.append(float((one - quotient.sliced(group, group.align(b, to=a))).norm()))
    assert 0 < low <= min(found) * (1 + 1e-9)


def test_balancing_is_the_least_norm_and_one_for_an_orbit(build):
    net, x = made(build), inputs(build)
    group = ws.Symmetry.of(net, x)
    folded = group.fold(net)
    least = group.balance(folded)
    assert change(net, least, x) < 1e-9
    assert float(least.weights.norm()) < float(folded.weights.norm())
    for seed in range(4):
        g = group.sample(seed, ("scale", "linear"))
        assert float(g(least).weights.norm()) >= float(least.weights.norm()) * (1 - 1e-12)
        again = group.balance(g(folded))
        assert float(again.weights.norm()) == pytest.approx(float(least.weights.norm()), rel=1e-9)


def test_a_saved_group_moves_as_before(build, tmp_path):
    net, x = made(build), inputs(build)
    group = ws.Symmetry.of(net, x)
    group.save(tmp_path / "group.json")
    again = ws.Symmetry.load(tmp_path / "group.json")
    assert (again.gauge, again.free, again.generators) == (group.gauge, group.free, group.generators)
    assert apart(again.sample(3)(net), group.sample(3)(net)) == 0


def test_frozen_tensors_take_their_axes_out():
    net = made(Transformer)
    group = ws.Symmetry.of(net, inputs(Transformer)).without(["n.weight"])
    assert not group.gauge and not any(g.kind == "orthogonal" for g in group.generators)
    assert [g.kind for g in group.generators].count("linear") == 2


def test_half_precision_is_moved_in_single_and_rounded_once():
    net, x = made(Transformer), inputs(Transformer)
    group = ws.Symmetry.of(net, x)
    g, half = group.sample(0), net.to(torch.bfloat16)
    wide = g(half.to(torch.float32))
    eps = float(torch.finfo(torch.bfloat16).eps)
    for name, tensor in g(half).weights.items():
        exact = wide.weights[name]
        assert tensor.dtype == torch.bfloat16
        assert float((tensor.float() - exact).abs().max()) <= eps * float(exact.abs().max())


def test_refined_matrices_are_exact_members():
    torch.manual_seed(0)
    a, b, x = made(layered), made(layered, 1), inputs(layered, n=64)
    group, task = ws.Symmetry.of(a, x[:2]), ws.Task(x)
    start = group.match(b, to=a, method="weights").element
    found = refine(group, b, a, start, task, steps=40, lr=0.05)
    assert found.kept and found.after < 0.8 * found.before
    assert change(b, found.element(b), x) < 1e-9
    matrices = [found.element.factors[k] for k, q in enumerate(group.generators) if q.kind == "orthogonal"]
    assert all(torch.allclose(m @ m.mT, torch.eye(STREAM, dtype=DOUBLE), atol=1e-10) for m in matrices)
    assert all(torch.allclose(m.sum(-1), torch.ones(STREAM, dtype=DOUBLE), atol=1e-10) for m in matrices)


def test_a_trial_refuses_matrices_that_are_no_symmetry():
    """A hidden layer under GELU, a wrong exponent, and all rotations under a norm that subtracts the mean."""
    net, x = made(layered), inputs(layered)
    group = ws.Symmetry.of(net, x)
    by_axis = {q.axis: q for q in group.generators}
    stream_moves = next(q for q in group.generators if q.kind == "orthogonal")
    heads = next(q for q in group.generators if q.kind == "linear")
    hidden = next(axis.name for axis in group.axes if axis.size == HIDDEN)
    places = tuple((place, 1.0) for place in group.places[hidden])
    wrong = [
        Generator(hidden, "orthogonal", places),
        Generator(heads.axis, "linear", tuple((p, 1.0) for p, _ in heads.exponents)),
        Generator(stream_moves.axis, "orthogonal", stream_moves.exponents, uniform=stream_moves.uniform),
    ]
    probe = turns.Probe.of(net, x, seed=0)
    graph = probe.trace()
    probe.settle(graph)
    search = turns._Search(group, graph, probe, {}, print, turns.Turns())
    assert all(search.holds([q], (), group.gauge) for q in by_axis.values())
    assert not any(search.holds([q], (), group.gauge) for q in wrong)


# families


def kinds(group):
    letters = {"orthogonal": "O", "linear": "GL"}
    found = [q for q in group.generators if q.kind in letters]
    return Counter(f"{'S' if q.proper else ''}{letters[q.kind]}{group[q.axis].size - q.ones}" for q in found)


def families():
    t = pytest.importorskip("transformers", reason="transformers is not installed (the [hf] extra)")
    t.logging.set_verbosity_error()
    plain = {"hidden_size": 33, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 23}
    rotary = {
        "vocab_size": 61, "hidden_size": 30, "intermediate_size": 23, "num_hidden_layers": 2, "num_attention_heads": 6,
        "num_key_value_heads": 2, "head_dim": 10, "max_position_embeddings": 32, "use_cache": False,
        "pad_token_id": None, "bos_token_id": None, "eos_token_id": None,
    }  # fmt: skip
    ids = {"input_ids": torch.randint(61, (2, 7), generator=torch.Generator().manual_seed(0))}
    pixels = {"pixel_values": torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))}
    image = {"image_size": 8, "patch_size": 4, "num_labels": 5}
    words = {"vocab_size": 61, "max_position_embeddings": 32, "num_labels": 5}
    gpt = {"vocab_size": 61, "n_positions": 32, "n_embd": 33, "n_layer": 2, "n_head": 3, "n_inner": 23,
           "use_cache": False, "bos_token_id": None, "eos_token_id": None}  # fmt: skip
    turned = {"O30": 1, "SO2": 1, "GL10": 1}
    one, few = {**rotary, "num_hidden_layers": 1}, {**plain, "num_hidden_layers": 1}  # two of each kind of position
    gemma = {**one, "pad_token_id": 0}
    return {
        "llama": (t.LlamaForCausalLM, t.LlamaConfig(**rotary), ids, {"O30": 1, "SO2": 2, "GL10": 2}),
        "mistral": (t.MistralForCausalLM, t.MistralConfig(**one), ids, turned),
        "qwen2": (t.Qwen2ForCausalLM, t.Qwen2Config(**one), ids, turned),
        "qwen3": (t.Qwen3ForCausalLM, t.Qwen3Config(**one), ids, {"O30": 1, "GL10": 1}),
        "tied llama": (t.LlamaForCausalLM, t.LlamaConfig(**one, tie_word_embeddings=True), ids,
                       {"SO2": 1, "GL10": 1}),
        "gemma": (t.GemmaForCausalLM, t.GemmaConfig(**gemma, tie_word_embeddings=False), ids, turned),
        "tied gemma": (t.GemmaForCausalLM, t.GemmaConfig(**gemma), ids, {"SO2": 1, "GL10": 1}),
        "gpt2": (t.GPT2LMHeadModel, t.GPT2Config(**gpt), ids, {"GL11": 4}),
        "bert": (t.BertForSequenceClassification, t.BertConfig(**few, **words), ids, {"GL11": 2}),
        "vit": (t.ViTForImageClassification, t.ViTConfig(**plain, **image), pixels, {"O32": 1, "GL11": 4}),
        "dinov2": (t.Dinov2ForImageClassification, t.Dinov2Config(**few, mlp_ratio=1, **image), pixels,
                   {"O32": 1, "GL11": 2}),
    }  # fmt: skip


NAMES = ["llama", "mistral", "qwen2", "qwen3", "tied llama", "gemma", "tied gemma", "gpt2", "bert", "vit", "dinov2"]


@pytest.mark.parametrize("name", NAMES)
def test_a_family_turns_as_its_architecture_says_and_copies_are_found_again(name):
    """Heads take matrices (values only, under rotary pairs); a stream turns if its gains can be folded."""
    model, config, x, expected = families()[name]
    torch.manual_seed(0)
    net = ws.Net.of(model(config).eval()).double()
    generator = torch.Generator().manual_seed(0)
    for tensor in net.weights.values():
        spread = 0.3 if tensor.dim() == 1 else tensor[0].numel() ** -0.5
        tensor.add_(spread * torch.randn(tensor.shape, generator=generator, dtype=DOUBLE))
    group = ws.Symmetry.of(net, x)
    assert kinds(group) == expected
    x = {key: value.double() if value.is_floating_point() else value for key, value in x.items()}
    moved = group.sample(3)(net)
    with torch.no_grad():
        a, b, c = (n(x).logits for n in (net, moved, group.fold(net)))
    assert float((a - b).abs().max() / a.abs().max()) < 1e-6  # some norms of these models are computed in float32
    assert float((a - c).abs().max() / a.abs().max()) < 1e-6
    assert apart(net, group.align(moved, to=net)) < 1e-5


class Made(nn.Module):
    """Parts, and a function of the module and its inputs."""

    def __init__(self, run, **parts):
        super().__init__()
        self.run = run
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *x):
        return self.run(self, *x)


class Unit(nn.Module):
    """A norm to length one and a gain."""

    def __init__(self, n):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n))

    def forward(self, x):
        return nn.functional.normalize(x, dim=-1) * self.weight


class OnePlus(nn.RMSNorm):
    """An RMSNorm whose gain is 1 + w."""

    def forward(self, x):
        return nn.functional.rms_norm(x, self.normalized_shape, None, self.eps) * (1 + self.weight)


def towers(unit=nn.functional.normalize):
    """Two towers whose outputs are compared by their cosines."""
    run = lambda m, x, y: unit(m.u(x), dim=-1) @ unit(m.v(y), dim=-1).mT  # noqa: E731
    return Made(run, u=nn.Linear(5, 4), v=nn.Linear(7, 4))


def distances():
    return Made(lambda m, x, y: torch.cdist(m.u(x), m.v(y)), u=nn.Linear(5, 4), v=nn.Linear(7, 4))


def products():
    """A factorisation: the inner product of two embeddings."""
    return Made(lambda m, x, y: (m.u(x) * m.v(y)).sum(-1), u=nn.Linear(5, 4), v=nn.Linear(7, 4))


def twice():
    """A linear autoencoder of one matrix, used twice."""
    return Made(lambda m, x: (x @ m.w.T) @ m.w, w=nn.Parameter(torch.randn(3, 5)))


class QueryNorm(Block):
    """Queries and keys of length one, without gains."""

    def forward(self, x):
        h = self.n1(x)
        q, k, v = (f(h).unflatten(-1, (HEADS, CHANNELS)).transpose(1, 2) for f in (self.q, self.k, self.v))
        q, k = (nn.functional.rms_norm(z, (CHANNELS,)) for z in (q, k))
        return x + self.o(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def query_norm():
    run = lambda m, x: m.h(m.n(m.b(m.e(x))).mean(1))  # noqa: E731
    return Made(run, e=nn.Linear(5, STREAM), b=QueryNorm(nn.RMSNorm), n=nn.RMSNorm(STREAM), h=nn.Linear(STREAM, 9))


LESS_USUAL = {
    "towers": (towers, "O4"),
    "distances": (distances, "O4"),
    "products": (products, "GL4"),
    "one matrix twice": (twice, "O3"),
    "unit norm": (lambda: Transformer(Unit), "O8 x S2 x [GL4^2]^2 x S10"),
    "queries of length one": (query_norm, "O8 x S2 x O4^2 x GL4^2"),
}


def pairs_of(name, n=8):
    x = torch.randn(n, 6, 5, generator=torch.Generator().manual_seed(1)).to(DOUBLE)
    if name in ("towers", "distances", "products"):
        return x[:, 0], torch.randn(n, 7, generator=torch.Generator().manual_seed(2)).to(DOUBLE)
    return x[:, 0] if name == "one matrix twice" else x


@pytest.mark.parametrize("name", LESS_USUAL)
def test_matrices_are_read_where_no_usual_layer_stands(name):
    """Each group as derived by hand; a copy turned by it is the same network, and has the same canonical form."""
    build, wanted = LESS_USUAL[name]
    net, x = made(build), pairs_of(name)
    group = ws.Symmetry.of(net, x)
    assert set(wanted.split(" x ")) <= set(str(group).split(" x ")), str(group)
    g = group.sample(3, ("orthogonal", "linear"))
    copied = g(net)
    run = lambda each: each(*x) if isinstance(x, tuple) else each(x)  # noqa: E731
    torch.testing.assert_close(run(copied), run(net))
    assert apart(net, copied) > 0.1
    assert compare(net, copied, group).verdict.kind == "same"
    torch.testing.assert_close(run(ws.mean([net, copied], group)), run(net))
    assert ws.modulo(group)(net, copied).lower < 1e-6
    try:
        forms = [group.canonical(each) for each in (net, copied)]
    except SymmetryError as error:
        assert "no canonical rotation" in str(error)
    else:
        assert apart(*forms) < 1e-6


class OnePlusTwice(nn.RMSNorm):
    """An RMSNorm whose gain is 1 + 2 w."""

    def forward(self, x):
        return nn.functional.rms_norm(x, self.normalized_shape, None, self.eps) * (1 + 2 * self.weight)


def test_a_gain_of_another_form_is_named():
    """1 + 2 w is moved by no scale of w or 1 + w: the stream is not rotated, and a note says so."""
    group = ws.Symmetry.of(made(lambda: Transformer(OnePlusTwice)), inputs(Transformer))
    assert str(group).startswith("S8 x") and "the gain block.n1.weight cannot be folded" in group.notes[0]


def one_plus(seed=0, **options):
    """A network whose gains are 1 + w, between .3 and 1.7."""
    net = made(lambda: Transformer(OnePlus, **options), seed)
    return net.at(net.weights.replace({n: w / 2 for n, w in net.weights.items() if n in GAINS}))


GAINS = ("n.weight", "block.n1.weight", "block.n2.weight")


def test_gains_of_one_plus_w_are_folded_to_w_of_zero_and_back(tmp_path):
    net, x = one_plus(), inputs(Transformer)
    group = ws.Symmetry.of(net, x)
    assert str(group) == GROUPS["rms"]
    assert {group.blocks[g.uniform[0].block].tensor: g.offset for g in group.gauge} == dict.fromkeys(GAINS, 1.0)
    folded = group.fold(net)
    assert change(net, folded, x) < 1e-10 and all(bool((folded.weights[n] == 0).all()) for n in GAINS)
    assert group.fold(folded) is folded
    assert apart(group.fold(folded, like=net), net) < 1e-12
    group.save(tmp_path / "group.json")
    assert ws.Symmetry.load(tmp_path / "group.json").gauge == group.gauge
    for seed in range(4):
        g, h = group.sample(seed), group.sample(seed + 9)
        assert change(net, g(net), x) < 1e-10 and apart(net, g(net)) > 0.1
        assert apart(g.inverse()(g(net)), net) < 1e-12 and apart((g @ h)(net), g(h(net))) < 1e-12
        assert torch.allclose(g(net).weights["n.weight"].sort()[0], net.weights["n.weight"].sort()[0])


def test_a_copy_under_gains_of_one_plus_w_is_the_same_network():
    """Turned by hand, its gains in what reads them."""
    a, x = one_plus(), inputs(Transformer)
    group = ws.Symmetry.of(a, x)
    module = copy.deepcopy(a.module())
    norms = [module.n, module.block.n1, module.block.n2]
    with torch.no_grad():
        for norm in norms:
            norm.weight.add_(1)
        stream(module)
        for norm in norms:
            norm.weight.sub_(1)
    b = ws.Net.of(module)
    assert change(a, b, x) < 1e-9 and apart(a, b) > 0.1
    for other in (b, group.sample(4)(a)):
        assert compare(a, other, group).verdict.kind == "same"
        assert apart(a, group.align(other, to=a)) < 1e-6 and change(a, ws.mean([a, other], group), x) < 1e-6
        assert apart(group.canonical(a), group.canonical(other)) < 1e-6
        assert ws.modulo(group)(a, other).upper < 1e-6 * float(a.weights.norm())
    half = a.to(torch.bfloat16)
    assert apart(group.sample(4)(half).double(), group.sample(4)(half.double())) < 0.01


def test_a_gain_of_one_plus_minus_one_is_lost():
    net = one_plus()
    group = ws.Symmetry.of(net, inputs(Transformer))
    spoilt = net.weights["n.weight"].clone()
    spoilt[2] = -1.0
    with pytest.raises(SymmetryError, match="n.weight is zero for some unit"):
        group.fold(net.at(net.weights.replace({"n.weight": spoilt})))
    assert str(group.foldable(net.at(net.weights.replace({"n.weight": spoilt})))).startswith("S8 x")


def test_a_weight_that_is_used_in_two_forms_has_no_offset():
    class Both(nn.RMSNorm):
        def forward(self, x):
            return nn.functional.rms_norm(x, self.normalized_shape) * (1 + self.weight) + 0.1 * self.weight

    group = ws.Symmetry.of(made(lambda: Transformer(Both)), inputs(Transformer))
    assert not any(g.offset for g in group.gauge) and str(group).startswith("S8 x")


UNUSABLE = {
    "on the meta device": (lambda net: net.at(net.weights.map(lambda t: t.to("meta"))), "meta device"),
    "infinite": (
        lambda net: net.at(net.weights.replace({"block.q.weight": torch.full((8, 8), torch.inf)})),
        "infinity",
    ),
    "a gain that is NaN": (lambda net: net.at(net.weights.replace({"n.weight": torch.full((8,), torch.nan)})), "NaN"),
    "another": (
        lambda net: ws.Net.of(Transformer(bias=True)).to(DOUBLE),
        "another architecture|not the same architecture",
    ),
}
DONE = {
    "align": lambda group, net, bad: group.align(bad, to=net),
    "align to": lambda group, net, bad: group.align(net, to=bad),
    "fold like": lambda group, net, bad: group.fold(net, like=bad),
    "balance": lambda group, net, bad: group.balance(bad),
    "canonical": lambda group, net, bad: group.canonical(bad),
    "modulo": lambda group, net, bad: ws.modulo(group)(net, bad),
    "mean": lambda group, net, bad: ws.mean([net, bad], group),
    "compare": lambda group, net, bad: compare(net, bad, group),
}


@pytest.fixture(scope="module")
def read_once():
    net = made(Transformer)
    return net, ws.Symmetry.of(net, inputs(Transformer))


@pytest.mark.parametrize("what", UNUSABLE)
@pytest.mark.parametrize("done", DONE)
def test_networks_without_usable_numbers_are_refused_in_one_line(what, done, read_once):
    net, group = read_once
    spoil, words = UNUSABLE[what]
    bad = spoil(net)
    if (what, done) == ("infinite", "fold like"):
        return  # only the gains of that network are asked for
    with pytest.raises(ws.WeightspaceError, match=words) as error:
        DONE[done](group, net, bad)
    assert "\n" not in str(error.value)


def zeroed(net):
    """The network with one gain of its last norm at zero, as pruning or a start at zero leaves it."""
    return net.at(net.weights.replace({"n.weight": net.weights["n.weight"] * (torch.arange(8) > 0)}))


def test_a_gain_of_zero_costs_the_rotation_and_nothing_else(read_once):
    net, group = read_once
    a, x = zeroed(net), inputs(Transformer)
    rest = group.foldable(a)
    assert str(rest).startswith("S8 x") and "is zero for some unit" in rest.notes[-1] and group.foldable(net) is group
    b = rest.sample(1)(a)
    assert change(a, b, x) < 1e-9 and apart(a, b) > 0.1
    for first, second in ((a, b), (a, a)):
        assert compare(first, second, group).verdict.kind == "same"
        assert ws.modulo(group)(first, second).lower < 1e-9
        assert change(a, group.align(second, to=first), x) < 1e-9
        assert change(a, ws.mean([first, second], group), x) < 1e-6
        assert apart(group.canonical(first), group.canonical(second)) < 1e-6
    assert compare(net, a, group).verdict.kind == "related"
    with pytest.raises(SymmetryError, match="group.foldable"):
        group.sample(0)(a)
