"""What operations carry: positions, writes, products with themselves, functions of one number.

Every network here is small, its axes are written by hand, and a random renumbering keeps its outputs. Planted errors
show that a rule which forgets what it has to tie, or to hold, is found out.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import weightspace as ws
from weightspace.commands.compare import compare
from weightspace.graph import atoms
from weightspace.graph.rules import call, write


class Units(nn.Module):
    """Eight hidden units, a matrix (8, 3), eight experts (5, 6) and nine words (8) around any `middle`."""

    def __init__(self, middle: Callable) -> None:
        super().__init__()
        self.a, self.b, self.middle = nn.Linear(5, 8), nn.Linear(8, 2), middle
        self.w, self.t = nn.Parameter(torch.randn(8, 3)), nn.Parameter(torch.rand(8))
        self.experts, self.o = nn.Parameter(torch.randn(8, 5, 6)), nn.Linear(6, 2)
        self.book, self.square = nn.Parameter(torch.randn(9, 8)), nn.Parameter(torch.randn(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.middle(self, x)


def read(middle: Callable) -> ws.Symmetry:
    """The permutations of such a network, tried once more on its own weights."""
    torch.manual_seed(0)
    net, x = ws.Net.of(Units(middle).double()), torch.randn(16, 5, dtype=torch.float64)
    group = ws.Symmetry.of(net, x, scales=False)
    torch.testing.assert_close(group.sample(1)(net)(x), net(x), rtol=1e-9, atol=1e-9)
    return group


def sizes(group: ws.Symmetry) -> Counter:
    """How many axes of each size, with the sizes of those they depend on."""
    return Counter((axis.size, *(group[outer].size for outer in axis.over)) for axis in group.axes)


def relu(s: Units, x: Tensor) -> Tensor:
    return torch.relu(s.a(x))


def routed(s: Units, x: Tensor) -> tuple[Tensor, Tensor]:
    return s.a(x).softmax(-1).topk(2)


# where a largest entry stands


def scattered(s, x):
    values, at = relu(s, x).topk(4, -1)
    return s.b(torch.zeros_like(relu(s, x)).scatter(-1, at, values))


def scattered_in_place(s, x):
    values, at = relu(s, x).topk(4, -1)
    out = torch.zeros_like(relu(s, x))
    out.scatter_(-1, at, values)
    return s.b(out)


def masked(s, x):
    h = relu(s, x)
    return s.b(h * torch.zeros_like(h).scatter(-1, h.topk(3, -1).indices, 1.0))


def gathered_rows(s, x):
    values, at = relu(s, x).topk(4, -1)
    return (values[..., None] * s.b.weight.T[at]).sum(-2)


def one_hot(s, x):
    h = s.a(x)
    return s.b(F.one_hot(h.argmax(-1), 8).to(h.dtype) * h)


def straight_through(s, x):
    p = s.a(x).softmax(-1)
    hard = torch.zeros_like(p).scatter_(-1, p.max(-1, keepdim=True)[1], 1.0)
    return s.b(hard - p.detach() + p)


def order_statistic(s, x):
    h = relu(s, x)
    return s.b(torch.where(h >= h.kthvalue(6, -1).values[:, None], h, 0.0))


def nearest_word(s, x):
    return s.b(s.book[torch.cdist(s.a(x), s.book).argmin(-1)])


def nearest_embedding(s, x):
    h = s.a(x)
    return s.b(F.embedding((h[:, None] - s.book).square().sum(-1).argmin(1), s.book) + h)


def chosen_experts(s, x):
    values, at = routed(s, x)
    return s.o((torch.einsum("bi,bkio->bko", x, s.experts[at]) * values[..., None]).sum(1))


def all_experts_then_chosen(s, x):
    values, at = routed(s, x)
    every = torch.einsum("bi,eio->beo", x, s.experts)
    return s.o((torch.take_along_dim(every, at[..., None], 1) * values[..., None]).sum(1))


def weighed_experts(s, x):
    values, at = routed(s, x)
    gates = (F.one_hot(at, 8) * values[..., None]).sum(1)
    return s.o(torch.einsum("be,bi,eio->bo", gates, x, s.experts))


UNITS, EXPERTS, WORDS = {(8,): 1}, {(8,): 1, (6,): 1}, {(8,): 1, (9,): 1}
POSITIONS = [
    (scattered, UNITS), (scattered_in_place, UNITS), (masked, UNITS), (gathered_rows, UNITS), (one_hot, UNITS),
    (straight_through, UNITS), (order_statistic, UNITS), (nearest_word, WORDS), (nearest_embedding, WORDS),
    (chosen_experts, EXPERTS), (all_experts_then_chosen, EXPERTS), (weighed_experts, EXPERTS),
]  # fmt: skip


@pytest.mark.parametrize(("middle", "expected"), POSITIONS, ids=lambda v: getattr(v, "__name__", ""))
def test_positions_are_renumbered_with_what_they_point_at(middle, expected):
    assert sizes(read(middle)) == expected


class Mixture(nn.Module):
    """Three experts of seven hidden units, looked up for every row."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.out = nn.Linear(4, 3), nn.Linear(5, 2)
        self.into, self.back = nn.Parameter(torch.randn(3, 7, 4)), nn.Parameter(torch.randn(3, 5, 7))

    def forward(self, x: Tensor) -> Tensor:
        values, at = self.router(x).softmax(-1).topk(2)
        hidden = torch.relu(torch.einsum("bkhi,bi->bkh", self.into[at], x))
        return self.out((torch.einsum("bkoh,bkh->bko", self.back[at], hidden) * values[..., None]).sum(1))


def test_every_expert_renumbers_its_own_units():
    torch.manual_seed(0)
    net, x = ws.Net.of(Mixture().double()), torch.randn(6, 4, dtype=torch.float64)
    group = ws.Symmetry.of(net, x)
    assert sizes(group) == {(3,): 1, (7, 3): 1, (5,): 1}
    assert set(next(axis for axis in group.axes if axis.size == 7).kinds) == {"permutation", "scale"}
    moved = group.sample(2)(net)
    torch.testing.assert_close(moved(x), net(x), rtol=1e-9, atol=1e-9)
    assert (group.align(moved, to=net) - net).norm() < 1e-6 * net.weights.norm()


@pytest.mark.parametrize(
    "middle", [lambda s, x: s.b(relu(s, x)) * relu(s, x).argmax(-1, keepdim=True),
               lambda s, x: s.b(torch.where(relu(s, x).argsort(-1).argsort(-1) > 4, relu(s, x), 0.0))],
    ids=["as a number", "ranks"],
)  # fmt: skip
def test_positions_that_are_computed_with_hold_the_axis_and_say_so(middle):
    group = read(middle)
    assert not group.axes and "positions" in group.notes[0]


# writes


def written_in_a_loop(s, x):
    out, h = torch.zeros(len(x), 3, 8, dtype=x.dtype), torch.zeros(len(x), 8, dtype=x.dtype)
    for step in range(3):
        h = torch.tanh(s.a(x) + h @ s.square)
        out[:, step] = h
    return s.b(out).mean(1)


def written_in_halves(s, x):
    out = torch.zeros(len(x), 16, dtype=x.dtype)
    out[:, :8], out[:, 8:] = relu(s, x), -s.a(x)
    return s.b(out[:, :8]) + s.b(out[:, 8:])


def written_where_negative(s, x):
    h = s.a(x).clone()
    h[h < 0] = 0.0
    return s.b(h)


def copied(s, x):
    return s.b(torch.empty(len(x), 8, dtype=x.dtype).copy_(relu(s, x)))


def added_by_row(s, x):
    return s.b(torch.zeros(2, 8, dtype=x.dtype).index_add(0, torch.arange(len(x)) % 2, relu(s, x)))


def put(s, x):
    out = torch.zeros(20, 8, dtype=x.dtype)
    return s.b(out.index_put((torch.arange(16) + 2,), relu(s, x)))


WRITES = [written_in_a_loop, written_in_halves, written_where_negative, copied, added_by_row, put]


@pytest.mark.parametrize("middle", WRITES)
def test_what_is_written_is_indexed_like_where_it_is_written(middle):
    assert sizes(read(middle)) == UNITS


# a parameter met twice


def covariance(s, x):
    return s.b(relu(s, x) @ (s.w @ s.w.T))


def covariance_by_einsum(s, x):
    return s.b(relu(s, x) @ torch.einsum("ik,jk->ij", s.w, s.w))


def distances(s, x):
    return s.b(relu(s, x) @ torch.exp(-torch.cdist(s.w, s.w)))


def attention_with_itself(s, x):
    return s.b(relu(s, x) @ F.scaled_dot_product_attention(s.w[None], s.w[None], s.square[None])[0])


TWICE = [covariance, covariance_by_einsum, distances]


@pytest.mark.parametrize("middle", TWICE)
def test_columns_of_a_product_with_itself_are_renumbered_for_all_rows_at_once(middle):
    assert sizes(read(middle)) == {(8,): 1, (3,): 1}


def test_attention_of_a_parameter_to_itself():
    assert sizes(read(attention_with_itself)) == {(8,): 2, (3,): 1}


# functions of one number

FUNCTIONS = [
    cls for name, cls in inspect.getmembers(nn.modules.activation, inspect.isclass)
    if issubclass(cls, nn.Module) and cls.__module__ == nn.modules.activation.__name__
    and name not in ("GLU", "MultiheadAttention", "Softmax", "LogSoftmax", "Softmin", "Softmax2d", "Threshold")
]  # fmt: skip


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda cls: cls.__name__)
def test_every_activation_of_torch_acts_on_units_alike(function):
    made = function().double().eval()
    assert sizes(read(lambda s, x: s.b(made(s.a(x))))) == UNITS


def test_a_slope_for_every_unit_goes_with_it():
    assert sizes(read(lambda s, x: s.b(F.prelu(s.a(x), s.t)))) == UNITS


# what is not used


@pytest.mark.parametrize(
    "pick", [lambda z: z.amax(-1), lambda z: z.max(-1)[0], lambda z: z.min(-1).values, lambda z: z.median(-1)[0],
             lambda z: z.sort(-1)[0][..., 1], lambda z: z.topk(2, -1)[0].sum(-1), lambda z: z.mode(-1)[0]],
    ids=["amax", "max", "min", "median", "sort", "topk", "mode"],
)  # fmt: skip
def test_positions_that_nobody_uses_hold_nothing(pick):
    group = read(lambda s, x: pick(s.a(x).view(-1, 4, 2)) @ s.w[:4])
    assert sizes(group)[2, 4] == 1


class Maps(nn.Module):
    """Three heads with two attention maps each, of which one is taken from the other."""

    def __init__(self, mix: Callable) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = nn.Linear(4, 30), nn.Linear(4, 30), nn.Linear(4, 21), nn.Linear(21, 2)
        self.mix = mix

    def forward(self, x: Tensor) -> Tensor:
        q, k = (f(x).unflatten(-1, (3, 2, 5)).permute(0, 2, 3, 1, 4) for f in (self.q, self.k))
        v = self.v(x).unflatten(-1, (3, 7)).transpose(1, 2)
        return self.o((self.mix((q @ k.mT).softmax(-1)) @ v).transpose(1, 2).flatten(2)).mean(1)


def by_number(maps):
    return maps[:, :, 0] - 0.5 * maps[:, :, 1]


def unbound(maps):
    one, other = maps.unbind(2)
    return one - 0.5 * other


def by_halves(maps):
    one, other = maps.chunk(2, 2)
    return (one - 0.5 * other).squeeze(2)


@pytest.mark.parametrize("mix", [by_number, unbound, by_halves])
def test_channels_of_maps_that_are_taken_by_number(mix):
    """They may be renumbered in each of the 3 x 2 maps: a copy renumbered in the second maps alone is found again."""
    torch.manual_seed(0)
    a, x = ws.Net.of(Maps(mix)), torch.randn(2, 6, 4)
    order = torch.arange(30).view(3, 2, 5).clone()
    order[:, 1] = order[:, 1][:, [3, 0, 4, 1, 2]]
    names = ("q.weight", "q.bias", "k.weight", "k.bias")
    b = a.at(a.weights.replace({n: a.weights[n][order.flatten()].clone() for n in names}))
    torch.testing.assert_close(b(x), a(x))
    assert compare(a, b, ws.Symmetry.of(a, x)).verdict.kind == "same"


# planted errors


def test_a_product_that_forgets_its_terms_is_found_out(monkeypatch):
    monkeypatch.setattr(call.Call, "hide", lambda self, *dims: None)
    with pytest.raises(ws.WeightspaceError, match="misread"):
        read(covariance)


def test_a_write_that_forgets_where_is_found_out(monkeypatch):
    monkeypatch.setattr(call, "look_up", lambda d, positions: None)
    monkeypatch.setattr("weightspace.graph.rules.part.look_up", lambda d, positions: None)
    with pytest.raises(ws.WeightspaceError, match="misread"):
        read(gathered_rows)


def test_a_choice_that_is_forgotten_makes_too_small_a_group(monkeypatch):
    monkeypatch.setattr(call.Labels, "full", property(lambda self: self))
    torch.manual_seed(0)
    group = ws.Symmetry.of(Mixture().double(), torch.randn(6, 4, dtype=torch.float64), scales=False)
    assert sizes(group) == {(3,): 1, (7,): 1, (5,): 1}


def test_axes_that_are_not_spread_make_too_small_a_group(monkeypatch):
    monkeypatch.setattr(atoms, "spread", lambda dims, refused: None)
    torch.manual_seed(0)
    group = ws.Symmetry.of(Maps(by_number), torch.randn(2, 6, 4), scales=False)
    assert sizes(group)[5, 3] < 2


def test_a_write_that_is_not_unified_is_found_out(monkeypatch):
    monkeypatch.setattr(write, "_assign", lambda call, part, source: None)
    with pytest.raises(ws.WeightspaceError, match="misread"):
        read(written_in_halves)
