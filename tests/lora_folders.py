"""Folders of small LoRA adapters, as PEFT writes them, and what they add as dense matrices."""

from __future__ import annotations

import json

import torch
from safetensors.torch import load_file, save_file

PREFIX = "base_model.model."
SHAPES = {"h.0.q": (8, 6), "h.0.v": (8, 6), "h.1.q": (8, 6)}  # (outputs, inputs)


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def factors(seed=0, rank=3, layers=tuple(SHAPES), dtype=torch.float64):
    found = {}
    for k, layer in enumerate(layers):
        outputs, inputs = SHAPES[layer]
        r = rank[k] if isinstance(rank, tuple) else rank
        found[f"{PREFIX}{layer}.lora_A.weight"] = normal(100 * seed + k, r, inputs).to(dtype)
        found[f"{PREFIX}{layer}.lora_B.weight"] = normal(100 * seed + k + 50, outputs, r).to(dtype)
    return found


def stored(folder, tensors=None, **config):
    tensors = factors() if tensors is None else tensors
    folder.mkdir(parents=True, exist_ok=True)
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "adapter_model.safetensors")
    ranks = [t.shape[0] for n, t in tensors.items() if "_A" in n]
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": ranks[0] if ranks else 1, "lora_alpha": 6, **config})
    )
    return folder


def turned(tensors, seed=1):
    """Every pair A, B as M A, B M^-1."""
    new = dict(tensors)
    for k, name in enumerate(n for n in tensors if "_A" in n):
        b, rank = name.replace("_A", "_B"), tensors[name].shape[0]
        m = torch.linalg.matrix_exp(0.3 * normal(seed + k, rank, rank))
        new[name] = torch.tensordot(m, tensors[name], ([1], [0]))
        new[b] = torch.tensordot(tensors[b], m.inverse(), ([1], [0])).movedim(-1, 1)
    return new


def dense(folder, scale=None):
    """s B A of every layer of a folder, by hand: a scale for all layers, or by layer."""
    tensors = load_file(folder / "adapter_model.safetensors")
    found = {}
    for name in tensors:
        if "lora_A" in name:
            layer = name.removeprefix(PREFIX).removesuffix(".lora_A.weight")
            s = scale.get(layer, 1.0) if isinstance(scale, dict) else scale
            found[layer] = s * tensors[name.replace("_A", "_B")].double().flatten(1) @ tensors[name].double().flatten(1)
    return found
