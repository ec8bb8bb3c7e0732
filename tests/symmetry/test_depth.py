"""Reading a group costs in proportion to depth, counted; and what is tried alone is what the whole network does."""

from __future__ import annotations

import importlib
from collections import Counter

import pytest
import torch
from torch import Tensor, nn

import weightspace as ws
from weightspace.graph.follow import follow
from weightspace.net.net import Net
from weightspace.symmetry.alone import Alone
from weightspace.symmetry.axis import Axis, Block
from weightspace.symmetry.element import Element
from weightspace.symmetry.group import Group
from weightspace.symmetry.probe import Probe
from weightspace.symmetry.verify import verify


class Residual(nn.Module):
    """Blocks of two linear maps, each added to the stream after a norm.

    Scales need more equations than the stream has places, one from each unit in each pass: a narrow stream needs more
    passes the deeper it is. This one is wide enough for the depths below.
    """

    def __init__(self, depth: int, width: int = 48) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, width), nn.Linear(width, 2)
        block = [lambda: nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 4), nn.ReLU(), nn.Linear(4, width))]
        self.blocks = nn.ModuleList(make() for make in block * depth)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
        return self.last(x)


class Loop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTMCell(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = c = x.new_zeros(len(x), 4)
        for step in x.unbind(1):
            h, c = self.cell(step, (h, c))
        return self.head(h)


PLACES = {
    "evaluate": ("graph.trace", "symmetry.alone", "symmetry.reach", "symmetry.sign"),
    "apply_rule": ("graph.follow",),
    "_same": ("symmetry.alone", "symmetry.sign"),
}


def counted(monkeypatch, module: nn.Module, x: Tensor) -> Counter:
    """How often operations are evaluated, rules applied, values compared and tensors moved while a group is read."""
    met: Counter = Counter()

    def count(owner, name):
        call = getattr(owner, name)

        def counting(*args, **kwargs):
            met[name] += 1
            return call(*args, **kwargs)

        patch.setattr(owner, name, counting)

    with monkeypatch.context() as patch:
        for name, files in PLACES.items():
            for file in files:
                count(importlib.import_module(f"weightspace.{file}"), name)
        count(Element, "move")
        ws.Symmetry.of(module, x)
    return met


NETS = {
    "residual": lambda n: (Residual(n), torch.randn(5, 3)),
    "recurrent": lambda n: (Loop(), torch.randn(5, n, 3)),
}


@pytest.mark.parametrize("make", NETS.values(), ids=NETS)
def test_four_times_the_depth_is_four_times_the_work(make, monkeypatch):
    torch.manual_seed(0)
    few, many = (counted(monkeypatch, *make(depth)) for depth in (4, 16))
    assert set(few) == set(many) == {*PLACES, "move"}
    ratios = {name: many[name] / few[name] for name in few}
    assert max(ratios.values()) <= 4.5, ratios


def read(module: nn.Module, x: Tensor):
    """The graph of a module, its labels, and the probe on which a group is verified."""
    torch.manual_seed(0)
    probe = Probe.of(Net.of(module), x, 0)
    graph = probe.trace()
    probe.settle(graph)
    return graph, follow(graph), probe


def test_a_move_tried_alone_gives_the_outputs_of_the_moved_network():
    """Moves that change the outputs too: every move as if its axis held one tensor less."""
    module, x = Residual(2).double(), torch.randn(5, 3, dtype=torch.float64)
    graph, _, probe = read(module, x)
    group = ws.Symmetry.of(module, x)
    run, felt = Alone(graph, probe.net.tensors, [probe.example]), 0
    for gone in [None, *group.tensors]:
        short = Group(group.every, [b for b in group.blocks if b.tensor != gone], shapes=group.shapes)
        for axis in short.axes:
            element = Element(
                short, {axis.name: short.sample(1, ("permutation",), [axis.name]).permutations[axis.name]}
            )
            moved = {n: element.move(n, t) if n in short.tensors else t for n, t in probe.net.tensors.items()}
            wanted, found = graph.run(moved, [probe.example]), run.outputs(element)
            before, after = found or (graph.run(probe.net.tensors, [probe.example]),) * 2
            torch.testing.assert_close(after, wanted, rtol=1e-9, atol=1e-11)
            felt += found is not None
            assert found is None or not torch.allclose(before[0], after[0])
            assert found is None or gone is not None
    assert felt


class Product(nn.Module):
    """Two layers of two units whose units are multiplied: one axis."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 2, bias=False), nn.Linear(3, 2, bias=False), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.a(x).tanh() * self.b(x).tanh())


def test_two_wrong_moves_that_undo_each_other_are_both_found():
    """One axis taken for two of two units: swapping both is right, and that is the only move that all at once tries."""
    graph, reading, probe = read(Product(), torch.randn(5, 3))
    blocks = [Block("a.weight", 0, (3, 1), ("a", 3), (0, 1)), Block("b.weight", 0, (3, 1), ("b", 3), (0, 1)),
              Block("c.weight", 0, (2, 1), (2, "a"), (0, 1))]  # fmt: skip
    shapes = {"a.weight": (2, 3), "b.weight": (2, 3), "c.weight": (2, 2)}
    group = Group([Axis(name, 2, (), ("permutation",)) for name in "ab"], blocks, shapes=shapes)
    with pytest.raises(
        ws.SymmetryError, match=r"moving a \(2 units, generator 0\) changes the function by .* first at"
    ):
        verify(group, graph, reading, {}, probe, ("permutation",))
