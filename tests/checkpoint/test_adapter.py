"""Low-rank adapters as networks: two factorisations of one update are one, and what is no such adapter is refused."""

from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

import weightspace as ws
from weightspace.checkpoint import adapter, architecture
from weightspace.cli import main

LAYERS = ("encoder.0.q_proj", "encoder.0.v_proj", "encoder.1.q_proj")
CONFIG = {"peft_type": "LORA", "r": 3, "lora_alpha": 6}


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def factors(seed: int = 0, layers=LAYERS) -> dict[str, torch.Tensor]:
    found = {}
    for k, layer in enumerate(layers):
        name = f"base_model.model.{layer}.lora_"
        found[f"{name}A.weight"] = normal(10 * seed + k, 3, 12)
        found[f"{name}B.weight"] = normal(10 * seed + k + 5, 8, 3)
    return found


def pairs(tensors: dict[str, torch.Tensor]) -> list[tuple[str, str]]:
    return adapter.paired({name: tuple(tensor.shape) for name, tensor in tensors.items()})


def refactored(tensors: dict[str, torch.Tensor], seed: int = 1) -> dict[str, torch.Tensor]:
    """Every pair A, B as M A, B M^-1."""
    new = dict(tensors)
    for k, (a, b) in enumerate(pairs(tensors)):
        rank = tensors[a].shape[0]
        m = torch.linalg.matrix_exp(0.5 * normal(seed + k, rank, rank).double())
        new[a] = torch.tensordot(m, tensors[a].double(), ([1], [0])).float().contiguous()
        new[b] = torch.tensordot(tensors[b].double(), m.inverse(), ([1], [0])).movedim(-1, 1).float().contiguous()
    return new


def stored(folder, tensors, **config):
    folder.mkdir(parents=True)
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | config))
    return folder


def run(capsys, *words):
    code = main([str(word) for word in words])
    said = capsys.readouterr()
    return code, said.out, said.err


KINDS = {
    "linear": factors(),
    "named": {n.replace(".weight", ".default.weight"): t for n, t in factors().items()},
    "embedding": {
        "wte.lora_embedding_A": normal(0, 3, 20),
        "wte.lora_embedding_B": normal(1, 8, 3),
    },
    "convolution": {
        "conv.lora_A.weight": normal(0, 3, 5, 3, 3),
        "conv.lora_B.weight": normal(1, 8, 3, 1, 1),
    },
    "magnitudes": factors() | {"base_model.model.encoder.0.q_proj.lora_magnitude_vector": normal(3, 8)},
    "of diffusers": {n.replace("base_model.model", "unet"): t for n, t in factors().items()},
}


@pytest.mark.parametrize("kind", KINDS)
def test_two_factorisations_of_one_update_are_one(kind, tmp_path, capsys):
    a, b = stored(tmp_path / "a", KINDS[kind]), stored(tmp_path / "b", refactored(KINDS[kind]))
    net = ws.Net.of(architecture.find(None, [a, b]))
    x = architecture.example_of(net.architecture)
    group = ws.Symmetry.of(net, x)
    assert [(axis.size, "linear" in axis.kinds) for axis in group.axes] == [(3, True)] * len(pairs(KINDS[kind]))
    code, out, _ = run(capsys, "compare", a, b, "--json")
    found = json.loads(out)
    assert code == 0 and found["verdict"]["kind"] == "same"
    code, _, err = run(capsys, "align", b, "--to", a, "--out", tmp_path / "c.safetensors")
    assert code == 0, err
    back = load_file(tmp_path / "c.safetensors")
    assert all(torch.allclose(back[n], t, atol=1e-4) for n, t in KINDS[kind].items())


def test_other_updates_are_not_the_same(tmp_path, capsys):
    a, b = stored(tmp_path / "a", factors(0)), stored(tmp_path / "b", factors(1))
    _, out, _ = run(capsys, "compare", a, b, "--json")
    assert json.loads(out)["verdict"]["kind"] == "independent"


@pytest.mark.parametrize("rslora, scale", [(False, 2.0), (True, 6 / 3**0.5)])
def test_an_update_is_the_product_of_its_factors(tmp_path, rslora, scale):
    tensors = factors()
    folder = stored(tmp_path / "a", tensors, use_rslora=rslora)
    net = ws.Net.of(architecture.find(None, [folder])).load(ws.checkpoint.read(folder))
    x = architecture.example_of(net.architecture)
    for out, given, (a, b) in zip(net(x), x, pairs(tensors), strict=True):
        torch.testing.assert_close(out, scale * given @ (tensors[b] @ tensors[a]).T)


REFUSED = {
    "another scale": ({}, factors(), {"lora_alpha": 12}, "lora_alpha is 6 for a and 12 for b"),
    "another rank": ({}, factors(), {"r": 4}, "r is 3 for a and 4 for b"),
    "not of low rank": ({"peft_type": "IA3"}, factors(), {"peft_type": "IA3"}, "type IA3"),
    "other layers": ({}, factors(layers=LAYERS[:2]), {}, "encoder.1.q_proj"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_adapters_that_cannot_be_compared(kind, tmp_path, capsys):
    first, tensors, second, words = REFUSED[kind]
    a, b = stored(tmp_path / "a", factors(), **first), stored(tmp_path / "b", tensors, **second)
    code, out, err = run(capsys, "compare", a, b)
    assert code == 2 and not out and re.search(words, err) and err.strip().count("\n") <= 1, err


BROKEN = {
    "a factor alone": ({"q.lora_A.weight": normal(0, 3, 12)}, "without the other factor"),
    "that do not fit": (
        {"q.lora_A.weight": normal(0, 3, 12), "q.lora_B.weight": normal(0, 8, 4)},
        "no factors of one matrix",
    ),
    "a layer beside it": (factors() | {"head.weight": normal(0, 4, 8)}, "'head.weight', which is no factor"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_tensors_that_are_no_low_rank_adapter(kind, tmp_path, capsys):
    tensors, words = BROKEN[kind]
    folder = stored(tmp_path / "a", tensors)
    code, _, err = run(capsys, "compare", folder, folder)
    assert code == 2 and words in err and err.strip().count("\n") <= 1, err


def test_a_network_beside_an_adapter_is_not_taken_for_one(tmp_path):
    folder = stored(tmp_path / "a", factors())
    (folder / "config.json").write_text("{}")
    assert not adapter.describes(folder)
    save_file({"0.weight": normal(0, 3, 4)}, tmp_path / "plain.safetensors")
    assert not adapter.describes(tmp_path / "plain.safetensors")
    assert adapter.describes(stored(tmp_path / "b", factors()) / "adapter_model.safetensors")
