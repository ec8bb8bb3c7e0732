"""A base with an adapter added, against W + s B A written out, whole and in parts."""

import json

import pytest
import torch
from lora_folders import PREFIX, SHAPES, dense, factors, normal, stored
from safetensors.torch import save_file

import weightspace as ws
from weightspace.merging.adapters.adapted import correspond, into_base
from weightspace.merging.adapters.combined import merge_adapters
from weightspace.merging.part import Part
from weightspace.merging.recipe import Recipe, merged
from weightspace.net.errors import WeightspaceError


def base(dtype=torch.float64, prefix=""):
    found = {
        f"{prefix}{layer}.weight": normal(k + 30, *shape).to(dtype) for k, (layer, shape) in enumerate(SHAPES.items())
    }
    return found | {f"{prefix}h.0.q.bias": normal(40, 8).to(dtype), f"{prefix}steps": torch.tensor(3)}


@pytest.mark.parametrize("prefix", ["", "transformer."])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_every_target_is_moved_and_nothing_else(tmp_path, prefix, dtype):
    folder, there = stored(tmp_path / "a"), base(dtype, prefix)
    found = into_base(folder, there)
    assert [*found] == [*there] and found.shapes == {n: t.shape for n, t in there.items()}
    assert found.dtypes == {n: t.dtype for n, t in there.items()} and len(found) == len(there)
    for layer, update in dense(folder, 2.0).items():
        wanted = (there[f"{prefix}{layer}.weight"].double() + update).to(dtype)
        torch.testing.assert_close(found[f"{prefix}{layer}.weight"], wanted)
    assert torch.equal(found[f"{prefix}h.0.q.bias"], there[f"{prefix}h.0.q.bias"])
    assert found[f"{prefix}steps"] == 3 and "none" not in found
    with pytest.raises(KeyError):
        found["none"]


def test_a_prefix_of_the_adapter_that_the_base_lacks(tmp_path):
    tensors = {n.replace(PREFIX, f"{PREFIX}transformer."): t for n, t in factors().items()}
    tensors[f"{PREFIX}transformer.h.0.q.base_layer.bias"] = normal(1, 8)
    tensors[f"{PREFIX}score.weight"] = normal(2, 3, 8)
    found = into_base(stored(tmp_path / "a", tensors), base())
    torch.testing.assert_close(found["h.0.q.bias"], normal(1, 8))
    assert "score.weight" in found and found.shapes["score.weight"] == (3, 8)
    assert [note.split(":")[0] for note in found.notes] == [
        "replaced by tensors of the adapter",
        "new, from the adapter",
    ]


@pytest.mark.parametrize("kind", ["linear", "conv1d", "embedding", "convolution", "dora", "dora conv1d", "bias"])
def test_all_kinds_whole_and_in_parts(tmp_path, kind):
    a, b, config, name = normal(0, 2, 6), normal(1, 8, 2), {"lora_alpha": 4}, "lora_{}.weight"
    weight, update = normal(2, 8, 6), 2 * normal(1, 8, 2) @ normal(0, 2, 6)
    tensors, more = {}, {}
    if kind == "conv1d":
        config, weight, update = {**config, "fan_in_fan_out": True}, weight.T.contiguous(), update.T
    if kind == "embedding":
        weight, update, name = weight.T.contiguous(), update.T, "lora_embedding_{}"
    if kind == "convolution":
        a, b, weight = a.reshape(2, 3, 2, 1), b.reshape(8, 2, 1, 1), weight.reshape(8, 3, 2, 1)
        update = update.reshape(8, 3, 2, 1)
    wanted = weight + update
    if kind.startswith("dora"):
        m = normal(3, 8).abs()
        tensors[f"{PREFIX}w.lora_magnitude_vector"] = m
        wanted = wanted / wanted.norm(dim=1, keepdim=True) * m[:, None]
        if "conv1d" in kind:
            config, weight, wanted = {**config, "fan_in_fan_out": True}, weight.T.contiguous(), wanted.T
    if kind == "bias":
        tensors[f"{PREFIX}w.lora_B.bias"], more["w.bias"] = normal(4, 8), normal(5, 8)
    tensors |= {f"{PREFIX}w.{name.format('A')}": a, f"{PREFIX}w.{name.format('B')}": b}
    found = into_base(stored(tmp_path / "a", tensors, **config), {"w.weight": weight, **more})
    torch.testing.assert_close(found["w.weight"], wanted)
    flat = wanted.reshape(-1)
    for start, stop in ((0, 48), (0, 1), (5, 7), (11, 40), (47, 48), (13, 13), (30, 99)):
        torch.testing.assert_close(found.flat("w.weight", start, stop), flat[start:stop])
    out = torch.empty(4, dtype=torch.float64)
    assert found.flat("w.weight", 3, 7, out) is out and torch.equal(out, found["w.weight"].reshape(-1)[3:7])
    if kind == "bias":
        torch.testing.assert_close(found["w.bias"], normal(5, 8) + 2 * normal(4, 8))


def test_it_is_written_and_merged_like_any_checkpoint(tmp_path):
    save_file(base(torch.float32), tmp_path / "base.safetensors")
    folder = stored(tmp_path / "a")
    found = into_base(folder, tmp_path / "base.safetensors", tmp_path / "out.safetensors")
    read = ws.checkpoint.read(tmp_path / "out.safetensors")
    assert {*read} == {*found} and all(torch.equal(read[n], found[n]) for n in read)
    with pytest.raises(WeightspaceError, match="exists"):
        into_base(folder, tmp_path / "base.safetensors", tmp_path / "out.safetensors")
    there = ws.checkpoint.read(tmp_path / "base.safetensors")
    part = Part("h.0.q.weight", torch.Size((8, 6)), [(found, "h.0.q.weight"), (there, "h.0.q.weight")], room=16)
    torch.testing.assert_close(merged(part, Recipe("linear")), (found["h.0.q.weight"] + there["h.0.q.weight"]) / 2)


def test_a_merged_adapter_in_the_base_is_the_merge_of_the_bases(tmp_path):
    pair = [stored(tmp_path / "a", factors(0)), stored(tmp_path / "b", factors(1, 2))]
    new = merge_adapters(pair, [0.5, 0.5]).save(tmp_path / "c")
    found, parts = into_base(new, base()), [into_base(one, base()) for one in pair]
    for name in base():
        torch.testing.assert_close(found[name], sum(part[name].double() for part in parts).to(found[name].dtype) / 2
                                   if found[name].is_floating_point() else found[name])  # fmt: skip


def refused(words, adapter, there):
    with pytest.raises(WeightspaceError, match=words) as told:
        into_base(adapter, there)
    assert "\n" not in str(told.value)


def test_a_base_that_does_not_fit(tmp_path):
    folder, there = stored(tmp_path / "a"), base()
    refused("changes 'h.1.q', and the base has no such weight", folder, {n: there[n] for n in there if "h.1" not in n})
    refused(r"changes 'h.0.q' by \(8, 6\), and 'h.0.q.weight' of the base is \(6, 8\)", folder,
            there | {"h.0.q.weight": normal(0, 6, 8)})  # fmt: skip
    refused("is torch.int8, quantised", folder, there | {"h.0.q.weight": torch.zeros(8, 6, dtype=torch.int8)})
    head = {n.replace("h.1.q", "lm_head"): t for n, t in factors().items()}
    refused("a head that is tied to an embedding has no tensor of its own", stored(tmp_path / "b", head), there)
    twice = {**base(prefix="text."), **base(prefix="vision.")}
    refused("under several prefixes of the base: 'text.', 'vision.'", folder, twice)
    bias = factors() | {f"{PREFIX}h.1.q.lora_B.bias": normal(0, 8)}
    refused("the base has no 'h.1.q.bias'", stored(tmp_path / "c", bias, lora_bias=True), there)
    embedding = {f"{PREFIX}h.0.q.lora_embedding_{k}": t for k, t in (("A", normal(0, 3, 6)), ("B", normal(0, 8, 3)))}
    refused("and 'h.0.q.weight' of the base is", stored(tmp_path / "d", embedding), there)


def test_a_head_that_is_tied_is_not_changed_alone(tmp_path):
    there = tmp_path / "base"
    there.mkdir()
    (there / "config.json").write_text(json.dumps({"tie_word_embeddings": True}))
    save_file({"wte.weight": normal(0, 20, 6), "lm_head.weight": normal(0, 20, 6)}, there / "model.safetensors")
    tensors = {f"{PREFIX}wte.lora_embedding_A": normal(0, 2, 20), f"{PREFIX}wte.lora_embedding_B": normal(1, 6, 2)}
    folder = stored(tmp_path / "a", tensors)
    refused("head and embedding of the base are one tensor", folder, there)
    (there / "config.json").write_text(json.dumps({"tie_word_embeddings": False}))
    assert "a head that shares their weights changes with them" in into_base(folder, there).notes[0]


def test_a_configuration_that_does_not_say_is_read_with_the_names_of_the_tensors(tmp_path):
    """As the files of GPT-2, which leave out what is the default of its kind."""
    there = tmp_path / "base"
    there.mkdir()
    tensors = {f"{PREFIX}wte.lora_embedding_A": normal(0, 2, 20), f"{PREFIX}wte.lora_embedding_B": normal(1, 6, 2)}
    folder, whole = stored(tmp_path / "a", tensors), {"wte.weight": normal(0, 20, 6)}
    for kind, more, is_tied in (
        ("GPT2LMHeadModel", {}, True),
        ("LlamaForCausalLM", {"lm_head.weight": normal(0, 20, 6)}, False),
        ("GPT2Model", {}, False),
        ("GPT2ForSequenceClassification", {"score.weight": normal(0, 2, 6)}, False),
    ):
        (there / "config.json").write_text(json.dumps({"architectures": [kind]}))
        save_file({**whole, **more}, there / "model.safetensors")
        if is_tied:
            refused("head and embedding of the base are one tensor", folder, there)
        else:
            assert into_base(folder, there).notes


def test_names_correspond_by_one_prefix():
    assert correspond(["a.w", "b.w"], ["a.w", "b.w", "x.a.w"]) == {"a.w": "a.w", "b.w": "b.w"}
    assert correspond(["a.w", "b.w"], ["m.a.w", "m.b.w", "m.m.b.w"]) == {"a.w": "m.a.w", "b.w": "m.b.w"}
    assert correspond(["m.a.w", "head.w"], ["a.w", "head.w"]) == {"m.a.w": "a.w", "head.w": "head.w"}
    assert correspond(["a.w"], ["b.w"]) == {}
