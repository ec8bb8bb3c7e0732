"""Copies up to symmetry are told from one another's neighbours, whatever was renumbered and rescaled."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from torch import nn

import weightspace as ws
from weightspace.atlas import orbits
from weightspace.net.net import Net

ARCH = {"arch": "orbitnets:net", "example": "3x6"}
MODULE = """
from torch import nn

def net():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
"""


def net(seed=0):
    torch.manual_seed(seed)
    return Net.of(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)))


@pytest.fixture
def atlas(tmp_path, monkeypatch):
    (tmp_path / "orbitnets.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "orbitnets", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    with ws.Atlas(tmp_path / "atlas") as opened:
        yield opened


def test_renumbered_and_rescaled_copies_are_one_network(atlas):
    group = ws.Symmetry.of(net(), torch.zeros(3, 6))
    for seed in range(2):
        for draw in range(6):
            atlas.add(group.sample(draw)(net(seed)), name=f"{seed}-{draw}", **ARCH)
        atlas.add(net(seed), name=f"{seed}", **ARCH)
    found = atlas.orbits()
    assert not found.left and not atlas.copies()
    assert found.groups == [[*(f"{seed}-{draw}" for draw in range(6)), f"{seed}"] for seed in range(2)]
    assert all(atlas[member.name].orbit == atlas[f"{member.name[0]}-0"].key for member in atlas)


@pytest.mark.parametrize(("far", "one"), [(1e-3, False), (1e-4, False), (1e-7, True)])
def test_a_neighbour_is_another_network(atlas, far, one):
    noise = net().weights.randn(1)
    atlas.add(net(), name="a", **ARCH)
    atlas.add(net() + far * float(net().weights.norm() / noise.norm()) * noise, name="b", **ARCH)
    assert (atlas.orbits().groups == [["a", "b"]]) == one


def test_orbits_are_asked_once(atlas, monkeypatch):
    atlas.add(net(), name="a", **ARCH)
    atlas.orbits()
    asked = []
    monkeypatch.setattr(orbits.Symmetry, "of", lambda *given: asked.append(1))
    real = orbits.projected
    monkeypatch.setattr(orbits, "projected", lambda tensors: asked.append(2) or real(tensors))
    atlas.orbits()
    assert not asked
    atlas.add(net(1), name="b", **ARCH)
    atlas.orbits()
    assert asked == [2]  # the group is kept, the new network is projected
    assert str(atlas.group("b")) == "[S8 x R+8]^2"


def test_what_cannot_be_asked_is_left_with_a_reason(atlas):
    atlas.add(net(), name="a", **ARCH)
    atlas.add(net(), name="b", **ARCH)
    atlas.add(net(1).tensors, name="unknown")
    found = atlas.orbits()
    assert found.groups == [["a", "b"]] and "its architecture is not known" in found.left["unknown"]
    assert atlas["unknown"].orbit is None


def test_a_replaced_network_is_asked_again(atlas):
    atlas.add(net(), name="a", **ARCH)
    atlas.add(net(), name="b", **ARCH)
    assert atlas.orbits().groups == [["a", "b"]]
    atlas.add(net(3), name="b", replace=True, **ARCH)
    assert atlas["b"].orbit is None and atlas.orbits().groups == []


def test_projections_keep_distances():
    a, b = net(0), net(1)
    ratio = [
        np.linalg.norm(orbits.projected((a + s * (b - a)).tensors) - orbits.projected(a.tensors))
        / (s * float((b - a).norm()))
        for s in (1.0, 1e-3)
    ]
    assert all(0.7 < r < 1.3 for r in ratio)
    assert np.array_equal(orbits.projected(a.tensors), orbits.projected(dict(reversed(a.tensors.items()))))
