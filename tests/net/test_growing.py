"""More outputs: which layer makes them is seen or tried, and others are refused in one sentence."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import weightspace as ws

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


class Heads(nn.Module):
    """The layer that is registered last is not the one that makes the outputs."""

    def __init__(self, used=False):
        super().__init__()
        self.head, self.other, self.used = nn.Linear(6, 3), nn.Linear(6, 6), used

    def forward(self, x):
        return self.head(self.other(x)) if self.used else self.head(x)


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 3), nn.Linear(6, 5)

    def forward(self, x):
        return {"a": self.a(x), "b": self.b(x)}


def last(*after):
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Sequential(nn.Linear(8, 4), *after))


@pytest.mark.parametrize("used", [False, True])
def test_another_layer_than_the_last_one_is_found_by_a_trial_and_named(used):
    net = ws.Net.of(Heads(used))
    with pytest.raises(ws.WeightspaceError, match="choose the layer head, which does") as said:
        ws.grow(net, 2, example=X)
    assert "\n" not in str(said.value)
    with pytest.raises(ws.WeightspaceError, match="give example="):
        ws.grow(net, 2)
    with pytest.raises(ws.WeightspaceError, match="other does not make the outputs"):
        ws.grow(net, 2, "other", example=X)
    for more in (ws.grow(net, 2, "head"), ws.grow(net, 2, "head", example=X)):
        assert more(X).shape == (4, 5) and torch.allclose(more(X)[:, :3], net(X), atol=1e-6)


@pytest.mark.parametrize(("layer", "key"), [("a", "a"), (None, "b")])
def test_one_of_two_outputs_grows_and_the_other_stays(layer, key):
    net = ws.Net.of(Two())
    before, after = net(X), ws.grow(net, 2, layer, example=X)(X)
    other = "b" if key == "a" else "a"
    assert after[key].shape[1] == before[key].shape[1] + 2 and torch.equal(after[other], before[other])


@pytest.mark.parametrize("after", [(), (nn.Dropout(),), (nn.Tanh(), nn.Identity())])
def test_the_end_of_a_sequence_needs_no_example(after):
    net = ws.Net.of(last(*after))
    assert torch.equal(ws.grow(net, 2, seed=1)(X), ws.grow(net, 2, seed=1, example=X)(X))


@pytest.mark.parametrize(
    ("after", "words"),
    [
        ((nn.Softmax(-1),), "old outputs would change"),
        ((nn.GLU(),), "would become"),
        ((nn.BatchNorm1d(4),), "other layers read it"),
    ],
)
def test_what_would_change_the_old_outputs_is_refused(after, words):
    net = ws.Net.of(last(*after))
    with pytest.raises(ws.WeightspaceError, match=words) as said:
        ws.grow(net, 2, example=X)
    assert "no other one does" in str(said.value) and "\n" not in str(said.value)


def test_a_layer_before_one_with_parameters_needs_an_example():
    with pytest.raises(ws.WeightspaceError, match="give example="):
        ws.grow(ws.Net.of(last(nn.BatchNorm1d(4))), 2)
