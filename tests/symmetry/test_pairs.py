"""Rotations of rotary pairs: read where they are and nowhere else, exact, and copies turned by hand are found again.

The groups are written by hand: SO(2) for every frequency of every head of keys, in every layout of the channels.
"""

from __future__ import annotations

import copy
import json
from collections import Counter
from dataclasses import replace

import pytest
import torch
from architectures import Rotary, heads_first, joined
from torch import nn

import weightspace as ws
from weightspace.commands.compare import compare
from weightspace.symmetry import pairs, quotient, turns
from weightspace.symmetry.align.features import activation_terms
from weightspace.symmetry.align.refine import refine

DOUBLE = torch.float64
WIDTH, HEADS, KEYS, SIZE, TOKENS = 10, 4, 2, 8, 5


class Attention(nn.Module):
    """Grouped causal attention, the first `turned` channels of a head under rotary embeddings, behind an RMSNorm."""

    def __init__(self, turned=SIZE, interleaved=False, bias=False, norm=None, alibi=False):
        super().__init__()
        self.turned, self.alibi = turned, alibi
        self.e, self.n, self.h = nn.Linear(3, WIDTH), nn.RMSNorm(WIDTH), nn.Linear(WIDTH, 3)
        self.q, self.k, self.v = (nn.Linear(WIDTH, n * SIZE, bias=bias) for n in (HEADS, KEYS, KEYS))
        self.o = nn.Linear(HEADS * SIZE, WIDTH, bias=False)
        self.rotary = Rotary(turned, TOKENS, interleaved) if turned else nn.Identity()
        self.qn, self.kn = (
            nn.RMSNorm(SIZE, elementwise_affine=norm == "gain") if norm else nn.Identity() for _ in "qk"
        )

    def placed(self, x):
        return torch.cat([self.rotary(x[..., : self.turned]), x[..., self.turned :]], -1) if self.turned else x

    def forward(self, x):
        x = self.e(x)
        h = self.n(x)
        q, k, v = heads_first(self.q(h), HEADS), heads_first(self.k(h), KEYS), heads_first(self.v(h), KEYS)
        q, k = self.placed(self.qn(q)), self.placed(self.kn(k))
        k, v = (z.repeat_interleave(HEADS // KEYS, dim=1) for z in (k, v))
        scores = q @ k.mT / SIZE**0.5
        if self.alibi:
            at = torch.arange(TOKENS, dtype=scores.dtype)
            scores = scores - (at[:, None] - at).abs() * torch.tensor([0.5, 0.25, 0.12, 0.06]).to(scores)[:, None, None]
        scores = scores.masked_fill(torch.ones(TOKENS, TOKENS, dtype=torch.bool).triu(1), -1e9)
        return self.h(x + self.o(joined(scores.softmax(-1) @ v))).mean(1)


def made(build, seed=0):
    torch.manual_seed(seed)
    net = ws.Net.of(build().eval()).to(DOUBLE)
    for tensor in net.weights.values():
        tensor.add_(torch.randn_like(tensor) / 4)
    return net


def inputs(n=6):
    return torch.randn(n, TOKENS, 3, generator=torch.Generator().manual_seed(1)).to(DOUBLE)


def change(a, b, x):
    with torch.no_grad():
        return float((a(x) - b(x)).abs().max() / a(x).abs().max())


def apart(a, b):
    return float((a - b).norm() / a.weights.norm())


def proper(group):
    return [g for g in group.generators if g.proper]


LAYOUTS = {
    "halves": (Attention, "(R+4)^2 x SO2^8"),
    "halves with biases": (lambda: Attention(bias=True), "(R+4)^2 x SO2^8"),
    "interleaved": (lambda: Attention(interleaved=True), "(R+4)^2 x SO2^8"),
    "half of the channels": (lambda: Attention(4, bias=True), "(R+2)^2 x SO2^4 x GL4^2"),
    "half of the channels, interleaved": (lambda: Attention(4, interleaved=True), "(R+2)^2 x SO2^4 x GL4^2"),
    "of length one": (lambda: Attention(norm="plain"), "SO2^8"),
}
WITHOUT = {
    "gains of queries and keys": lambda: Attention(norm="gain"),
    "distances added to scores": lambda: Attention(0, alibi=True),
    "no positions": lambda: Attention(0),
}


@pytest.fixture(scope="module", params=LAYOUTS)
def layout(request):
    net = made(LAYOUTS[request.param][0])
    return request.param, net, ws.Symmetry.of(net, inputs())


def test_the_group_is_the_one_written_by_hand(layout):
    name, _, group = layout
    assert f"x {LAYOUTS[name][1]} x" in f"{group} x", str(group)
    pair = group[proper(group)[0].axis]
    assert (pair.size, pair.kinds, pair.name) == (2, ("orthogonal",), f"{pair.over[-1]}.pair")
    assert not any(g.kind == "sign" and g.axis == pair.over[-1] for g in group.generators), "half a turn is a sign"


@pytest.mark.parametrize("name", WITHOUT)
def test_what_has_no_pairs_is_read_as_it_was(name):
    net = made(WITHOUT[name])
    group = ws.Symmetry.of(net, inputs())
    assert not proper(group) and "SO2" not in str(group)
    heads = Counter(str(group).split(" x "))
    assert heads["GL8^2"] + 2 * heads["[GL8^2]^2"] == (1 if "gains" in name else 2)


def test_random_members_are_exact_and_other_moves_of_the_pair_are_not(layout):
    _, net, group = layout
    x = inputs()
    k = next(k for k, g in enumerate(group.generators) if g.proper)
    for seed in range(4):
        g = group.sample(seed)
        assert change(net, g(net), x) < 1e-10
        alone = group.sample(seed, "orthogonal", [group.generators[k].axis])
        assert apart(net, alone(net)) > 0.1 and change(net, alone(net), x) < 1e-10
        assert torch.allclose(torch.linalg.det(alone.factors[k]), torch.ones(()).double())
        mirrored = alone.factors[k] @ torch.diag(torch.tensor([1.0, -1.0], dtype=DOUBLE))
        assert change(net, type(g)(group, group.still(), {k: mirrored})(net), x) > 1e-5


def test_they_are_moves_of_a_group(layout):
    _, net, group = layout
    g, h = group.sample(1), group.sample(2)
    assert apart((g @ h)(net), g(h(net))) < 1e-11
    assert apart(g.inverse()(g(net)), net) < 1e-11


def rotate(m, turned, interleaved):
    """Every pair of every head of keys turned by an angle of its own, and scaled, in place; its queries too."""
    half = turned // 2
    for head in range(KEYS):
        for j in range(half):
            pair = [2 * j, 2 * j + 1] if interleaved else [j, j + half]
            t, s = float(torch.rand(()) * 6.28), float(torch.rand(()) + 0.5)
            t, s = torch.tensor(t).double(), (s if isinstance(m.qn, nn.Identity) else 1.0)
            r = torch.stack([torch.stack([t.cos(), -t.sin()]), torch.stack([t.sin(), t.cos()])])
            for part, count, size in ((m.q, HEADS // KEYS, s), (m.k, 1, 1 / s)):
                for i in range(count):
                    rows = [(head * count + i) * SIZE + c for c in pair]
                    part.weight[rows] = size * r @ part.weight[rows]
                    if part.bias is not None:
                        part.bias[rows] = size * r @ part.bias[rows]


def turned_by_hand(name, net):
    module = copy.deepcopy(net.module())
    torch.manual_seed(3)
    with torch.no_grad():
        rotate(module, module.turned, "interleaved" in name)
    return ws.Net.of(module)


def test_a_copy_turned_by_hand_is_the_same_network(layout):
    name, a, group = layout
    b, x = turned_by_hand(name, a), inputs()
    assert change(a, b, x) < 1e-12 and apart(a, b) > 0.1
    assert compare(a, b, group).verdict.kind == "same"
    found = group.align(b, to=a)
    assert apart(a, found) < 1e-6 and change(a, found, x) < 1e-10
    assert apart(group.canonical(a), group.canonical(b)) < 1e-6
    assert change(a, ws.mean([a, b], group), x) < 1e-6
    interval = ws.modulo(group)(a, b)
    assert interval.lower <= interval.upper < 1e-5 * float(a.weights.norm())
    single = [net.to(torch.float32) for net in (a, b)]
    assert compare(*single, group).verdict.kind == "same"
    assert apart(single[0], group.align(single[1], to=single[0])) < 1e-4
    old = ws.Symmetry.of(a, x, linear=False)
    assert compare(a, b, old).verdict.kind != "same"


def test_a_copy_whose_pairs_are_mirrored_is_another_network():
    a = made(Attention)
    group = ws.Symmetry.of(a, inputs())
    weights = {name: a.weights[name].clone() for name in ("q.weight", "k.weight")}
    for tensor in weights.values():
        heads_of = tensor.view(-1, SIZE, WIDTH)
        heads_of[:, SIZE // 2 :] *= -1
    b = a.at(a.weights.replace(weights))
    x = inputs(64)
    found = group.match(b, to=a, data=ws.Task(x), method="activations+weights").element(b)
    assert change(a, b, x) > 1e-3 and change(b, found, x) < 1e-9 and apart(a, found) > 1e-2
    assert apart(group.canonical(a), group.canonical(b)) > 1e-2


def test_other_pairings_and_mirrors_are_refused(layout):
    """Neighbours in place of halves, halves in place of neighbours, and determinant minus one."""
    _, net, group = layout
    probe = turns.Probe.of(net, inputs(), seed=0)
    probe.settle(probe.trace())
    trial = turns.Trial(probe.trace(), probe)
    only = proper(group)
    assert trial.holds(group.again(generators=only, gauge=(), free=()))
    any_sign = [replace(g, proper=False) for g in only]
    assert not trial.holds(group.again(generators=any_sign, gauge=(), free=()))
    pair = group[only[0].axis]
    blocks = [mispaired(block, pair, group[pair.over[-1]].size) for block in group.blocks]
    assert blocks != list(group.blocks)
    assert not trial.holds(group.again(blocks=blocks, generators=only, gauge=(), free=()))


def mispaired(block, pair, count):
    """The block with neighbours as pairs where these are halves, and the other way round."""
    if pair.name not in block.leaves:
        return block
    one, other = block.leaves.index(pair.name), block.leaves.index(pair.over[-1])
    strides, step = list(block.strides), min(block.strides[one], block.strides[other])
    strides[one], strides[other] = (step, 2 * step) if block.strides[one] > step else (count * step, step)
    return replace(block, strides=tuple(strides))


def test_where_the_halves_are_moved_in_two_ways_nothing_is_joined():
    group = ws.Symmetry.of(made(Attention), inputs(), linear=False)
    found = pairs.find_pairs(group, lambda trial: True)
    assert len(proper(found)) == 1 and len(found.blocks) == len(group.blocks) - 2
    scale = next(k for k, g in enumerate(group.generators) if g.kind == "scale" and len(g.exponents) == 4)
    half = replace(group.generators[scale], exponents=group.generators[scale].exponents[::2])
    broken = [half if k == scale else g for k, g in enumerate(group.generators)]
    assert pairs.find_pairs(group.again(generators=broken), lambda trial: True).blocks == group.blocks
    assert pairs.find_pairs(group, lambda trial: False).generators == group.generators


def test_a_saved_group_moves_as_before_and_old_files_are_read(layout, tmp_path):
    _, net, group = layout
    group.save(tmp_path / "group.json")
    again = ws.Symmetry.load(tmp_path / "group.json")
    assert again.generators == group.generators and again.every == group.every and str(again) == str(group)
    assert apart(again.sample(3)(net), group.sample(3)(net)) == 0
    plain = ws.Symmetry.of(net, inputs(), linear=False).as_json()
    for generator in plain["generators"]:
        del generator["proper"]
    del plain["digest"]
    sealed = ws.checkpoint.files.sealed(plain)
    (tmp_path / "old.json").write_text(json.dumps(sealed))
    assert not proper(ws.Symmetry.load(tmp_path / "old.json"))


def test_the_lower_bound_holds_for_every_element(layout):
    name, a, group = layout
    b, x = made(LAYOUTS[name][0], 1), ws.Task(inputs(64))
    one, two = quotient.sliced(group, a), quotient.sliced(group, b)
    kinds = ("permutation", "sign", "orthogonal")
    found = [float((one - group.sample(seed, kinds)(two)).norm()) for seed in range(10)]
    near = group.match(b, to=a, data=x, method="activations").element
    found.append(float((one - quotient.sliced(group, near(b))).norm()))
    assert 0 < quotient.lower_bound(group, one, two) <= min(found) * (1 + 1e-9)


def test_activations_alone_find_the_angles():
    for name in ("halves", "interleaved"):
        a = made(LAYOUTS[name][0])
        group = ws.Symmetry.of(a, inputs())
        b, x = turned_by_hand(name, a), inputs(200)
        terms = activation_terms(group, a, b, x)
        axis = proper(group)[0].axis
        assert any(axis in block.leaves for block in terms.blocks)
        found = group.match(b, to=a, data=ws.Task(x), method="activations").element
        moved, to = found(group.fold(b)), group.fold(a)
        assert all(apart_of(moved, to, part) < 1e-4 for part in ("q.weight", "k.weight"))


def apart_of(a, b, name):
    return float((a.weights[name] - b.weights[name]).norm() / b.weights[name].norm())


def test_refined_angles_are_exact_members():
    a, b, x = made(Attention), made(Attention, 1), inputs(64)
    group = ws.Symmetry.of(a, x[:2])
    found = refine(group, b, a, group.identity(), ws.Task(x), steps=30, lr=0.05)
    assert found.after < found.before and change(b, found.element(b), x) < 1e-9
    k = next(k for k, g in enumerate(group.generators) if g.proper)
    assert torch.allclose(torch.linalg.det(found.element.factors[k]), torch.ones(()).double())


# families


def families():
    t = pytest.importorskip("transformers", reason="transformers is not installed (the [hf] extra)")
    t.logging.set_verbosity_error()
    none = {"bos_token_id": None, "eos_token_id": None}
    rotary = {"vocab_size": 61, "hidden_size": 24, "intermediate_size": 11, "num_hidden_layers": 1,
              "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 32,
              "use_cache": False, "pad_token_id": None, **none}  # fmt: skip
    gptj = {"vocab_size": 61, "n_positions": 32, "n_embd": 24, "n_layer": 1, "n_head": 3, "rotary_dim": 4,
            "n_inner": 11, "use_cache": False, **none}  # fmt: skip
    neox = {"vocab_size": 61, "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 3, "use_cache": False,
            "intermediate_size": 11, "rotary_pct": 0.5, "max_position_embeddings": 32, **none}  # fmt: skip
    bert = {"vocab_size": 61, "hidden_size": 24, "intermediate_size": 11, "num_hidden_layers": 1,
            "num_attention_heads": 3, "max_position_embeddings": 32, "pad_token_id": 0, "bos_token_id": 1,
            "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2, "attn_implementation": "eager",
            "reference_compile": False}  # fmt: skip
    return {
        "llama": (lambda: t.LlamaForCausalLM(t.LlamaConfig(**rotary)), "SO2^8"),
        "qwen2": (lambda: t.Qwen2ForCausalLM(t.Qwen2Config(**rotary)), "SO2^8"),
        "qwen3": (lambda: t.Qwen3ForCausalLM(t.Qwen3Config(**rotary)), ""),
        "mistral": (lambda: t.MistralForCausalLM(t.MistralConfig(**rotary)), "SO2^8"),
        "gptj": (lambda: t.GPTJForCausalLM(t.GPTJConfig(**gptj)), "SO2^6"),
        "neox": (lambda: t.GPTNeoXForCausalLM(t.GPTNeoXConfig(**neox)), "SO2^6"),
        "modernbert": (lambda: t.ModernBertForMaskedLM(t.ModernBertConfig(**bert)), "SO2^12"),
    }


PARTS = {  # tensors of queries and of keys, heads of either, channels of a head, pairs
    "llama": (("self_attn.q_proj", 4, 8, 0), ("self_attn.k_proj", 2, 8, 0), [(j, j + 4) for j in range(4)]),
    "gptj": (("attn.q_proj", 3, 8, 0), ("attn.k_proj", 3, 8, 0), [(0, 1), (2, 3)]),
    "neox": (("query_key_value", 3, 24, 0), ("query_key_value", 3, 24, 8), [(0, 2), (1, 3)]),
    "modernbert": (("attn.Wqkv", 3, 8, 0), ("attn.Wqkv", 3, 8, 24), [(j, j + 4) for j in range(4)]),
}


def turned_family(name, net):
    """Every pair turned by hand, by one angle in a head of keys and in its queries."""
    new, generator = {n: tensor.clone() for n, tensor in net.weights.items()}, torch.Generator().manual_seed(5)
    queries, keys, channels = PARTS.get(name, PARTS["llama"])
    for head in range(keys[1]):
        for pair in channels:
            t = 6.28 * torch.rand((), generator=generator, dtype=DOUBLE)
            r = torch.stack([torch.stack([t.cos(), -t.sin()]), torch.stack([t.sin(), t.cos()])])
            for part, count, size, start in (queries, keys):
                group = count // keys[1]
                for i in range(head * group, (head + 1) * group):
                    rows = [start + i * size + c for c in pair]
                    for tensor in (tensor for n, tensor in new.items() if f".{part}." in n):
                        tensor[rows] = r @ tensor[rows]
    return net.at(net.weights.replace(new))


LIKE_LLAMA = [pytest.param(name, marks=pytest.mark.slow) for name in ("qwen2", "mistral")]


@pytest.mark.parametrize("name", ["llama", *LIKE_LLAMA, "qwen3", "gptj", "neox", "modernbert"])
def test_a_family_has_the_pairs_of_its_layout(name):
    build, expected = families()[name]
    torch.manual_seed(0)
    net = ws.Net.of(build().eval()).double()
    for tensor in net.weights.values():
        tensor.add_(torch.randn_like(tensor) * (0.3 if tensor.dim() == 1 else tensor[0].numel() ** -0.5))
    x = {"input_ids": torch.randint(61, (2, 7), generator=torch.Generator().manual_seed(0))}
    group = ws.Symmetry.of(net, x)
    assert [word for word in str(group).split(" x ") if word.startswith("SO2")] == ([expected] if expected else [])
    moved = [group.sample(3)(net), turned_family(name, net)] if expected else [group.sample(3)(net)]
    for other in moved:
        with torch.no_grad():
            a, b = net(x).logits, other(x).logits
        assert float((a - b).abs().max() / a.abs().max()) < 1e-6  # some norms of these models are computed in float32
        assert compare(net, other, group).verdict.kind == "same"
        assert apart(net, group.align(other, to=net)) < 1e-5
        assert apart(group.canonical(net), group.canonical(other)) < 1e-6
