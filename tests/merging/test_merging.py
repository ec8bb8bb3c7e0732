"""`merge` gives back what it was given: networks for networks, tensors for tensors, files for files."""

import pytest
import torch
from torch import nn

import weightspace as ws
from weightspace.merging import Recipe
from weightspace.net.average import average


def module(seed=0, outputs=3):
    generator = torch.Generator().manual_seed(seed)
    made = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, outputs))
    with torch.no_grad():
        for p in made.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    return made.eval()


NETS = [ws.Net.of(module(seed)) for seed in range(3)]


def test_networks_give_a_network_and_the_linear_merge_is_their_average():
    merged = ws.merge(NETS)
    assert isinstance(merged, ws.Net) and merged.architecture is NETS[0].architecture
    assert (merged - average(NETS)).norm() < 1e-6
    assert (ws.merge([module(0), module(1)], weights=[3, 1]) - NETS[0].lerp(NETS[1], 0.25)).norm() < 1e-6
    assert torch.equal(ws.merge([NETS[0]])(torch.ones(2, 4)), NETS[0](torch.ones(2, 4)))


def test_task_arithmetic_of_networks_is_their_algebra():
    a, b, base = NETS
    merged = ws.merge([a, b], "task_arithmetic", base=base, weights=[0.3, 0.4])
    assert (merged - (base + 0.3 * (a - base) + 0.4 * (b - base))).norm() < 1e-6
    assert (ws.merge([a, b], Recipe("task_arithmetic", [0.3, 0.4]), base=base) - merged).norm() == 0


def test_tensors_and_files_give_tensors_and_with_out_files(tmp_path):
    paths = [ws.checkpoint.save(net.tensors, tmp_path / f"{k}.safetensors") for k, net in enumerate(NETS)]
    expected = ws.merge(NETS, weights=[1, 2, 3]).tensors
    for parents in ([net.tensors for net in NETS], paths, [NETS[0], NETS[1].tensors, str(paths[2])]):
        found = ws.merge(parents, weights=[1, 2, 3])
        assert isinstance(found, dict) and all(torch.equal(found[name], expected[name]) for name in expected)
        out = tmp_path / f"{len(list(tmp_path.iterdir()))}.safetensors"
        assert ws.merge(parents, weights=[1, 2, 3], out=out) == out
        found = ws.checkpoint.read(out)
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert ws.merge(paths, dtype=torch.bfloat16)["0.weight"].dtype == torch.bfloat16


def test_parents_are_not_changed():
    before = [net.clone() for net in NETS]
    ws.merge(NETS, weights=[1, 2, 3])
    assert all(torch.equal(a.tensors[n], b.tensors[n]) for a, b in zip(before, NETS, strict=True) for n in a.tensors)


def test_merging_is_linear_in_scale_and_blind_to_order():
    doubled = ws.merge([net.at(2 * net.weights) for net in NETS])
    assert (doubled.weights - 2 * ws.merge(NETS).weights).norm() < 1e-5
    assert (ws.merge(NETS[::-1], weights=[3, 2, 1]) - ws.merge(NETS, weights=[1, 2, 3])).norm() < 1e-5


def test_what_does_not_fit_is_refused():
    for call, words in (
        (lambda: ws.merge([]), "no networks to merge"),
        (
            lambda: ws.merge(NETS, Recipe(), weights=[1, 1, 1]),
            "a Recipe has weights, options, seed and dtype of its own",
        ),
        (lambda: ws.merge([NETS[0], ws.Net.of(module(0, 4))]), r"2.weight is \(4, 5\), expected \(3, 5\)"),
        (lambda: ws.merge([NETS[0], ws.Net.of(module()[0])]), "not the same architecture"),
        (lambda: ws.merge(NETS, weights=[1, -1, 0]), "sum to zero"),
        (lambda: ws.merge(NETS, "nothing"), "no merging method 'nothing'"),
        (lambda: ws.merge(NETS, options={"density": 1}), "linear has no option 'density'"),
        (lambda: ws.merge(["/nothing/here"]), "/nothing/here"),
    ):
        with pytest.raises(ws.WeightspaceError, match=words):
            call()
