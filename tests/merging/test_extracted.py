"""Adapters out of fine-tunes: exact where the difference has the rank, the dense SVD elsewhere."""

import pytest
import torch
from lora_folders import PREFIX, normal, stored
from safetensors.torch import save_file

from weightspace.merging.adapters import extracted
from weightspace.merging.adapters.adapted import into_base
from weightspace.merging.adapters.combined import adapter_distance
from weightspace.merging.adapters.extracted import extract
from weightspace.merging.adapters.lora_folder import lora
from weightspace.net.errors import WeightspaceError

BASE = {"h.0.q.weight": normal(30, 8, 6), "h.0.v.weight": normal(31, 8, 6), "h.1.q.weight": normal(32, 8, 6),
        "norm.weight": normal(33, 8), "h.0.q.bias": normal(34, 8), "steps": torch.tensor(1)}  # fmt: skip


@pytest.mark.parametrize("more", [{"rank": 3}, {"share": 1.0}, {"rank": 6}])
def test_extracting_gives_an_adapter_back(tmp_path, more):
    folder = stored(tmp_path / "a")
    new = extract(into_base(folder, BASE), BASE, **more)
    assert max(new.errors.values()) < 1e-12 and new.left == () and new.notes == ()
    again = new.save(tmp_path / "b")
    assert adapter_distance(folder, again).relative < 1e-12
    assert lora(again).layers["h.0.q"].scale == 1.0
    if "share" in more:
        assert new.config["r"] == 3 and not new.config["rank_pattern"]


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_a_cut_is_the_dense_svd_and_its_error_is_told(tmp_path, rank):
    fine = {**BASE, "h.0.q.weight": BASE["h.0.q.weight"] + normal(50, 8, 6)}
    new = extract(fine, BASE, rank=rank)
    u, s, v = torch.linalg.svd(normal(50, 8, 6), full_matrices=False)
    found = lora(new.save(tmp_path / "a")).update("h.0.q").dense()
    torch.testing.assert_close(found, u[:, :rank] * s[:rank] @ v[:rank])
    assert new.errors == {"h.0.q": pytest.approx(float(s[rank:].norm() / s.norm()))}


def test_a_share_takes_the_least_rank(tmp_path):
    q = torch.diag(torch.tensor([2.0, 1.0, 1.0, 0.5], dtype=torch.float64))
    fine, base = {"a.weight": q, "b.weight": q[:, :2]}, {"a.weight": 0 * q, "b.weight": 0 * q[:, :2]}
    for share, ranks in ((4 / 6.25, {"a": 1, "b": 1}), (0.79, {"a": 2, "b": 1}), (0.81, {"a": 3, "b": 2})):
        new = extract(fine, base, share=share)
        got = {layer: new.tensors[f"{PREFIX}{layer}.lora_A.weight"].shape[0] for layer in "ab"}
        assert got == ranks and all(kept >= share - 1e-12 for kept in new.kept.values())


def test_large_matrices_are_met_by_subspace_iteration(monkeypatch):
    matrix = normal(0, 120, 4) @ normal(1, 4, 90) + 0.01 * normal(2, 120, 90)
    whole = extract({"a.weight": matrix}, {"a.weight": 0 * matrix}, rank=4)
    monkeypatch.setattr(extracted, "_DENSE", 10)
    quick = extract({"a.weight": matrix}, {"a.weight": 0 * matrix}, rank=4)
    assert quick.errors["a"] == pytest.approx(whole.errors["a"], rel=1e-6) and quick.errors["a"] > 0.001


def test_what_is_no_matrix_is_saved_whole_or_said(tmp_path):
    fine = {
        **BASE,
        "h.0.q.weight": BASE["h.0.q.weight"] + normal(1, 8, 1) @ normal(2, 1, 6),
        "h.0.q.bias": normal(51, 8),
        "norm.weight": normal(52, 8),
        "score.weight": normal(53, 2, 8),
        "scale": normal(54, 1),
        "h.0.q.steps": torch.tensor(2),
        "steps": torch.tensor(2),
    }
    new = extract(fine, BASE, rank=1)
    assert new.config["modules_to_save"] == ["norm", "score"] and new.config["bias"] == "all"
    assert new.config["target_modules"] == ["h.0.q"]
    torch.testing.assert_close(new.tensors[f"{PREFIX}h.0.q.base_layer.bias"], fine["h.0.q.bias"])
    assert len(new.left) == 3 and "'scale' the base has not, and belongs to no module" in new.left
    found = into_base(new.save(tmp_path / "a"), BASE)
    for name in ("h.0.q.weight", "h.0.q.bias", "norm.weight", "score.weight", "h.1.q.weight"):
        torch.testing.assert_close(found[name], fine[name])


def test_other_forms_of_weights(tmp_path):
    base = {"wte.weight": normal(0, 20, 6), "h.c_attn.weight": normal(1, 6, 9), "c.weight": normal(2, 5, 3, 2, 2)}
    fine = {name: tensor + 0.1 * normal(9, *tensor.shape) for name, tensor in base.items()}
    new = extract(fine, base, rank=20, transposed=True)
    assert new.tensors[f"{PREFIX}wte.lora_embedding_A"].shape == (6, 20)
    assert new.tensors[f"{PREFIX}h.c_attn.lora_B.weight"].shape == (9, 6)
    assert new.tensors[f"{PREFIX}c.lora_A.weight"].shape == (5, 3, 2, 2)
    found = into_base(new.save(tmp_path / "a"), base)
    for name in base:
        torch.testing.assert_close(found[name], fine[name])
    folder = tmp_path / "gpt2"
    folder.mkdir()
    save_file(base, folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    read = extract(fine, folder, rank=2)
    assert read.config["fan_in_fan_out"] and read.config["base_model_name_or_path"] == str(folder)


def test_a_base_without_a_prefix_of_the_fine_tune(tmp_path):
    fine = {f"transformer.{n}": t + 1.0 for n, t in BASE.items() if n.startswith("h") and n.endswith("weight")}
    new = extract(fine, BASE, rank=1)
    assert new.config["target_modules"] == ["transformer.h.0.q", "transformer.h.0.v", "transformer.h.1.q"]
    assert "the fine-tune has not" in new.notes[0]


def test_bad_inputs():
    fine = {**BASE, "h.0.q.weight": BASE["h.0.q.weight"] + 1.0}
    for words, two, more in (
        ("give a rank, or the share", (fine, BASE), {}),
        ("give a rank, or the share", (fine, BASE), {"rank": 1, "share": 0.5}),
        ("give a rank of 1 or more", (fine, BASE), {"rank": 0}),
        ("a share above 0", (fine, BASE), {"share": 1.5}),
        ("share no tensor", ({"z.weight": BASE["h.0.q.weight"]}, BASE), {"rank": 1}),
        ("no weight of the two networks differs", (BASE, BASE), {"rank": 1}),
        ("NaN or infinity in 'h.0.q.weight'", ({**BASE, "h.0.q.weight": fine["h.0.q.weight"] / 0}, BASE), {"rank": 1}),
    ):
        with pytest.raises(WeightspaceError, match=words):
            extract(*two, **more)


def test_half_precision_says_what_rounding_costs():
    base = {n: t.bfloat16() if t.is_floating_point() else t for n, t in BASE.items()}
    fine = {**base, "h.0.q.weight": (base["h.0.q.weight"].double() + normal(1, 8, 1) @ normal(2, 1, 6)).bfloat16()}
    assert 1e-5 < extract(fine, base, rank=1).errors["h.0.q"] < 0.02


def test_an_embedding_that_is_the_head_too_is_told_and_one_of_positions_is_merged(tmp_path):
    base, fine = tmp_path / "base", tmp_path / "fine"
    for k, folder in enumerate((base, fine)):
        folder.mkdir()
        more = {"wpe.weight": BASE["h.0.q.weight"] + k, "wte.weight": normal(5, 20, 6)}
        save_file({**BASE, **more}, folder / "model.safetensors")
        (folder / "config.json").write_text('{"tie_word_embeddings": true, "vocab_size": 20}')
    found = extract(fine, base, rank=6)
    assert found.config["target_modules"] == ["wpe"] and found.notes == ()
    merged = into_base(found.save(tmp_path / "positions"), base)
    torch.testing.assert_close(merged["wpe.weight"], BASE["h.0.q.weight"] + 1)
    save_file(
        {**BASE, "wpe.weight": BASE["h.0.q.weight"] + 0, "wte.weight": normal(6, 20, 6)}, fine / "model.safetensors"
    )
    found = extract(fine, base, rank=6)
    assert "'wte' is embedding and head at once" in found.notes[0]
    folder = found.save(tmp_path / "tokens")
    with pytest.raises(WeightspaceError, match="changes 'wte', and head and embedding"):
        into_base(folder, base)
    for folder in (base, fine):
        (folder / "config.json").write_text(
            '{"tie_word_embeddings": true, "vocab_size": 20, "architectures": ["BertForSequenceClassification"]}'
        )
    assert extract(fine, base, rank=6).notes == ()
