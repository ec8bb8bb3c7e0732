"""Deeper architectures of one function: zeroed branches and identity layers; what cannot be exact is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import weightspace as ws
from weightspace.net.net import Net

FLAT, IMAGES, TOKENS = (torch.randn(s, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
                        for s in ((4, 5), (4, 2, 7, 7), (2, 4, 3)))  # fmt: skip


def mlp(layers, act=nn.ReLU, width=8, outputs=3):
    hidden = [part for _ in range(layers) for part in (nn.Linear(width, width), act())]
    return nn.Sequential(nn.Linear(5, width), act(), *hidden, nn.Linear(width, outputs))


def square(layers):
    return nn.Sequential(*[part for _ in range(layers) for part in (nn.Linear(5, 5), nn.ReLU())], nn.Linear(5, 5))


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.c1, self.c2 = (nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2))
        self.b1, self.b2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)

    def forward(self, x):
        return torch.relu(x + self.b2(self.c2(torch.relu(self.b1(self.c1(x))))))


def resnet(blocks):
    stem = nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU()
    body = nn.Sequential(*[Residual(6) for _ in range(blocks)])
    return nn.Sequential(*stem, body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))


def plain(layers):
    body = [p for _ in range(layers) for p in (nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())]
    return nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), *body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))


def encoder(layers):
    layer = nn.TransformerEncoderLayer(8, 2, 9, batch_first=True, norm_first=True, activation="gelu")
    return nn.Sequential(
        nn.Linear(3, 8), nn.TransformerEncoder(layer, layers, enable_nested_tensor=False), nn.Linear(8, 2)
    )


def noisy(module, seed=0):
    net = Net.of(module.double())
    return net + 0.3 * net.weights.randn(seed)


@pytest.mark.parametrize(
    ("narrow", "deep", "x"),
    [
        (lambda: mlp(1), lambda: mlp(3), FLAT),
        (lambda: mlp(0), lambda: mlp(1), FLAT),
        (lambda: mlp(1, nn.Identity), lambda: mlp(2, nn.Identity), FLAT),
        (lambda: square(2), lambda: square(4), FLAT),
        (lambda: resnet(1), lambda: resnet(3), IMAGES),
        (lambda: plain(1), lambda: plain(2), IMAGES),
        (lambda: encoder(1), lambda: encoder(3), TOKENS),
    ],
)
def test_a_deepened_network_is_the_same_function(narrow, deep, x):
    net, to = noisy(narrow()), noisy(deep(), 1)
    found = ws.deepen(net, to, x)
    assert found.weights.numel == to.weights.numel > net.weights.numel
    torch.testing.assert_close(found(x + 1), net(x + 1), atol=1e-12, rtol=1e-12)


def test_new_branches_keep_their_weights_but_for_the_last_map():
    net, to = noisy(resnet(1)), noisy(resnet(2), 1)
    found = ws.deepen(net, to, IMAGES)
    changed = {n for n in found.weights if n.startswith("3.1.") and not torch.equal(found.weights[n], to.weights[n])}
    assert changed == {"3.1.b2.weight", "3.1.b2.bias"} and not found.weights["3.1.b2.weight"].any()
    slope = ws.gradient(ws.Task(IMAGES, torch.tensor([0, 1, 2, 0])), found)
    assert slope.norms()["3.1.b2.weight"] > 0, "the new block learns from the first step"


@pytest.mark.parametrize(
    ("narrow", "deep", "words"),
    [
        (lambda: mlp(1, nn.Tanh), lambda: mlp(2, nn.Tanh), "no numbers of the new layers"),
        (lambda: mlp(2), lambda: mlp(1), "not a deepening"),
        (lambda: mlp(1), lambda: mlp(2, width=9), "not a deepening"),
        (lambda: mlp(1), lambda: mlp(1, nn.Tanh), "no numbers of the new layers"),
    ],
)
def test_what_cannot_be_exact_is_refused_in_one_sentence(narrow, deep, words):
    with pytest.raises(ws.WeightspaceError, match=words) as said:
        ws.deepen(noisy(narrow()), noisy(deep()), FLAT)
    assert "\n" not in str(said.value)
