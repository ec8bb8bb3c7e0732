"""Adapters as they are on disk: the scale of every layer, and what is refused."""

import json

import pytest
import torch
from lora_folders import PREFIX, dense, factors, normal, stored

from weightspace.merging.adapters.lora_folder import NewAdapter, lora
from weightspace.net.errors import WeightspaceError

SCALES = {
    "alpha over rank": ({}, dict.fromkeys(("h.0.q", "h.0.v", "h.1.q"), 2.0)),
    "rslora": ({"use_rslora": True}, dict.fromkeys(("h.0.q", "h.0.v", "h.1.q"), 6 / 3**0.5)),
    "alpha by layer": ({"alpha_pattern": {"q": 9}}, {"h.0.q": 3.0, "h.0.v": 2.0, "h.1.q": 3.0}),
    "alpha of one layer": ({"alpha_pattern": {r"h\.1\.q": 9, "q": 12}}, {"h.0.q": 4.0, "h.0.v": 2.0, "h.1.q": 3.0}),
    "no layer of that name": ({"alpha_pattern": {"proj": 9}}, dict.fromkeys(("h.0.q", "h.0.v", "h.1.q"), 2.0)),
}


@pytest.mark.parametrize("kind", SCALES)
def test_every_layer_has_its_own_scale(tmp_path, kind):
    config, scales = SCALES[kind]
    found = lora(stored(tmp_path / "a", factors(), **config))
    for layer, matrix in dense(tmp_path / "a", scales).items():
        torch.testing.assert_close(found.update(layer).dense(), matrix)


def test_ranks_by_layer(tmp_path):
    tensors = factors(rank=(3, 2, 3))
    found = lora(stored(tmp_path / "a", tensors, rank_pattern={"v": 2}, use_rslora=True))
    assert found.layers["h.0.v"].scale == pytest.approx(6 / 2**0.5)
    with pytest.raises(WeightspaceError, match=r"'h.0.v' has rank 2 in the file and 3 in adapter_config.json"):
        lora(stored(tmp_path / "b", tensors))


def test_names_with_an_adapter_in_them_and_a_file_alone(tmp_path):
    tensors = {n.replace(".weight", ".default.weight"): t for n, t in factors().items()}
    folder = stored(tmp_path / "a", tensors)
    assert [*lora(folder).layers] == ["h.0.q", "h.0.v", "h.1.q"]
    assert [*lora(folder / "adapter_model.safetensors").layers] == ["h.0.q", "h.0.v", "h.1.q"]


def test_what_was_saved_whole_has_the_names_of_the_base(tmp_path):
    beside = {
        f"{PREFIX}score.weight": normal(7, 2, 8),
        f"{PREFIX}norm.modules_to_save.weight": normal(7, 8),
        f"{PREFIX}norm.modules_to_save.default.bias": normal(7, 8),
        f"{PREFIX}h.0.q.base_layer.bias": normal(8, 8),
        f"{PREFIX}norm.original_module.weight": normal(9, 8),
    }
    found = lora(stored(tmp_path / "a", factors() | beside))
    assert {*found.saved} == {"score.weight", "norm.weight", "norm.bias", "h.0.q.bias"}


REFUSED = {
    "no low rank": ({"peft_type": "IA3"}, {}, "an adapter of type IA3, not of low rank"),
    "a start from the base": (
        {"init_lora_weights": "pissa_niter_4"},
        {},
        "began as a part of its base .pissa_niter_4.",
    ),
    "tokens": ({"trainable_token_indices": [1]}, {}, "rows of single tokens"),
    "switched on": ({"alora_invocation_tokens": [1]}, {}, "aLoRA"),
    "experts": ({"target_parameters": ["w"]}, {}, "stacks of experts"),
    "no number": ({"lora_alpha": "six"}, {}, "lora_alpha of 'h.0.q' in adapter_config.json cannot be read"),
    "no finite number": ({"lora_alpha": float("inf")}, {}, "lora_alpha of 'h.0.q' .* is inf"),
    "no pattern": ({"rank_pattern": {"(": 3}}, {}, "r of 'h.0.q' in adapter_config.json cannot be read"),
    "patterns that are none": ({"rank_pattern": 5}, {}, "cannot be read"),
    "another factor": ({}, {f"{PREFIX}h.0.q.lora_C": normal(0, 3)}, "an unknown kind of adapter"),
    "magnitudes that are not there": ({"use_dora": True}, {}, "says DoRA .use_dora., and the file has no magnitudes"),
    "a magnitude of nothing": ({}, {f"{PREFIX}w.lora_magnitude_vector": normal(0, 3)}, "belongs to no pair of factors"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_sum_of_products_is_refused_in_one_sentence(tmp_path, kind):
    config, more, words = REFUSED[kind]
    with pytest.raises(WeightspaceError, match=words) as told:
        lora(stored(tmp_path / "a", factors() | more, **config))
    assert "\n" not in str(told.value) and ";" in str(told.value)


def test_folders_that_are_none(tmp_path):
    with pytest.raises(WeightspaceError, match="no such file or folder"):
        lora(tmp_path / "a")
    folder = stored(tmp_path / "b")
    (folder / "adapter_config.json").write_text("[1]")
    with pytest.raises(WeightspaceError, match="its JSON is a list, not a mapping"):
        lora(folder)
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(WeightspaceError, match="cannot be read"):
        lora(folder)
    (folder / "adapter_config.json").unlink()
    with pytest.raises(WeightspaceError, match="the scale of its updates is not known"):
        lora(folder)
    with pytest.raises(WeightspaceError, match="holds no factors of low rank"):
        lora(stored(tmp_path / "c", {"w.weight": normal(0, 3)}))


def test_nan_in_a_factor_names_the_layer(tmp_path):
    tensors = factors()
    tensors[f"{PREFIX}h.0.v.lora_A.weight"][0, 0] = float("nan")
    with pytest.raises(WeightspaceError, match=r"a: NaN or infinity in the factors of 'h.0.v'"):
        lora(stored(tmp_path / "a", tensors)).update("h.0.v")


def test_a_new_adapter_is_written_whole_and_never_over_another(tmp_path):
    new = NewAdapter({"r": 3, "lora_alpha": 6}, factors(), {"h.0.q": 0.5})
    assert new.kept == {"h.0.q": 0.75}
    folder = new.save(tmp_path / "a")
    assert json.loads((folder / "adapter_config.json").read_text())["r"] == 3
    with pytest.raises(WeightspaceError, match="adapter_model.safetensors exists"):
        new.save(folder)
    new.save(folder, force=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(WeightspaceError, match="is a file, and an adapter is a folder"):
        new.save(tmp_path / "file")
    with pytest.raises(WeightspaceError, match="could not be written"):
        new.save(tmp_path / "no" / "a")
