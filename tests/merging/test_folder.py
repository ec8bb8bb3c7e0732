"""The files of a merged folder: what parents disagree about, tokens, code, licences, links; all or nothing."""

import json
import os

import pytest
import torch
from merging.test_tokens import tokenizer

import weightspace as ws
from weightspace.checkpoint import files
from weightspace.merging.folders.card import About, hashes, said_name
from weightspace.merging.folders.configuration import Changes, merged_config
from weightspace.merging.folders.folder import carried

GPT = {"model_type": "gpt2", "n_embd": 4, "n_layer": 3, "n_head": 2, "vocab_size": 5, "torch_dtype": "float32"}


def parent(place, name, config=GPT, card=None, **more):
    home = place / name
    home.mkdir()
    if config is not None:
        (home / "config.json").write_text(json.dumps(config))
    ws.checkpoint.save({"wte.weight": torch.full((5, 4), float(len(name)))}, home)
    if card is not None:
        (home / "README.md").write_text(f"---\n{card}\n---\n# A card\n")
    for file, content in more.items():
        file = file.replace("__", ".")
        (home / file).write_text(content if isinstance(content, str) else json.dumps(content))
    return home


def config(found):
    return json.loads(found.files["config.json"])


def card(found):
    return found.files["README.md"].decode()


def test_all_that_a_network_needs_is_carried_from_the_first(tmp_path):
    more = {
        "generation_config__json": {"top_k": 3},
        "preprocessor_config__json": {"size": 8},
        "chat_template__jinja": "hi",
    }
    a = parent(tmp_path, "a", **more, tokenizer__json=tokenizer({"x": 0}), optimizer__pt="no", train__log="no")
    b = parent(tmp_path, "b", tokenizer__json=tokenizer({"x": 0}))
    found = carried([a, b])
    names = {"config.json", "README.md", "tokenizer.json", *(name.replace("__", ".") for name in more)}
    assert found.files.keys() == names and found.notes == ()
    (tmp_path / "out").mkdir()
    assert {path.name for path in found.write(tmp_path / "out")} == names
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "hi"
    with pytest.raises(ws.WeightspaceError, match="holds 'config.json'.*--force"):
        found.write(tmp_path / "out")
    found.write(tmp_path / "out", force=True)


def test_a_failure_leaves_nothing(tmp_path, monkeypatch):
    a = parent(tmp_path, "a", generation_config__json={"top_k": 3})
    found = carried([a])

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(ws.WeightspaceError, match="No space left"):
        found.write(tmp_path / "out")
    assert not [*(tmp_path / "out").iterdir()]


def test_what_the_merge_changes_stands_in_the_configuration(tmp_path):
    listed = {**GPT, "layer_types": ["full", "slide", "wide"], "shared_layers": [2], "eos_token_id": [1, 2, 3]}
    found = carried([parent(tmp_path, "a", listed)], changes=Changes(8, [0, 2, 1, 2], torch.bfloat16))
    made = config(found)
    assert (made["vocab_size"], made["n_layer"], made["torch_dtype"]) == (8, 4, "bfloat16")
    assert made["layer_types"] == ["full", "wide", "slide", "wide"] and made["shared_layers"] == [1, 3]
    assert made["eos_token_id"] == [1, 2, 3] and "dtype" not in made
    assert "config.json: n_layer 3 -> 4" in found.notes and "config.json: vocab_size 5 -> 8" in found.notes
    nested = {"model_type": "x", "text_config": {**GPT}, "dtype": "float32"}
    made, _ = merged_config([nested], ["a"], Changes(6, [0], torch.float16))
    assert made["text_config"]["vocab_size"] == 6 and made["text_config"]["n_layer"] == 1
    assert made["dtype"] == made["text_config"]["torch_dtype"] == "float16"
    assert nested["text_config"]["vocab_size"] == 5


@pytest.mark.parametrize(
    "key, value, words",
    [
        ("model_type", "llama", "networks of one architecture"),
        ("n_head", 4, "n_head is 2 in a and 4 in b"),
        ("n_embd", 8, "n_embd is 4 in a and 8 in b"),
        ("n_layer", 4, "n_layer is 3 in a and 4 in b"),
        ("activation_function", "relu", "activation_function is 'gelu' in a and 'relu' in b"),
        ("vocab_size", 6, "choose the vocabulary"),
    ],
)
def test_networks_of_other_functions_are_refused(key, value, words, tmp_path):
    first = {**GPT, "activation_function": "gelu"}
    pair = [parent(tmp_path, "a", first), parent(tmp_path, "b", {**first, key: value})]
    with pytest.raises(ws.WeightspaceError) as error:
        carried(pair)
    assert words in str(error.value)


def test_lesser_differences_are_said(tmp_path):
    a = {**GPT, "rope_parameters": {"rope_theta": 1e4}, "layer_norm_epsilon": 1e-5, "resid_pdrop": 0.1, "n_inner": 8}
    b = {**GPT, "rope_parameters": {"rope_theta": 1e6}, "layer_norm_epsilon": 1e-6, "resid_pdrop": 0.0}
    found = carried([parent(tmp_path, "a", a), parent(tmp_path, "b", b)])
    said = "\n".join(found.notes)
    assert "rope_parameters.rope_theta is 10000.0 in a and 1000000.0 in b; 10000.0 was kept" in said
    assert (
        "layer_norm_epsilon is 1e-05" in said and "pdrop" not in said and "n_inner is in one of a and b alone" in said
    )
    tied = [{**GPT, "tie_word_embeddings": value} for value in (True, False)]
    assert merged_config(tied, ["a", "b"], Changes(tied=False))[0]["tie_word_embeddings"] is False
    assert "was kept" in merged_config(tied, ["a", "b"], Changes())[1][0]


def test_quantised_networks_and_stacks_without_a_list_are_refused(tmp_path):
    with pytest.raises(ws.WeightspaceError, match="describes a quantised network"):
        carried([parent(tmp_path, "a", {**GPT, "quantization_config": {"bits": 4}})])
    with pytest.raises(ws.WeightspaceError, match="not listed layer by layer"):
        merged_config([{**GPT, "first_k_dense_replace": 1}], ["a"], Changes(layers=[0]))
    with pytest.raises(ws.WeightspaceError, match="how many layers there are"):
        merged_config([{"model_type": "x"}], ["a"], Changes(layers=[0]))


# ------------------------------------------------------------------ tokens


def test_ids_of_two_tokens_are_refused_unless_a_vocabulary_is_chosen(tmp_path):
    a = parent(tmp_path, "a", tokenizer__json=tokenizer({"x": 0, "y": 1}))
    b = parent(tmp_path, "b", tokenizer__json=tokenizer({"y": 0, "x": 1}))
    with pytest.raises(ws.WeightspaceError, match="the id 0 is 'x' in a and 'y' in b: their rows are of other tokens"):
        carried([a, b])
    assert carried([a, b], tokenizer="first").files["tokenizer.json"] == a / "tokenizer.json"
    assert carried([a], b, tokenizer="base").files["tokenizer.json"] == b / "tokenizer.json"
    c = parent(tmp_path, "c", tokenizer__json=tokenizer({"x": 0, "y": 1, "z": 2}))
    assert carried([a, c]).notes == ("'z' of c are no tokens of a, whose tokenizer was taken",)


def test_a_joint_tokenizer_is_written_with_its_settings(tmp_path):
    settings = {"added_tokens_decoder": {"2": {"content": "<a>"}}, "chat_template": "old", "eos_token": "<a>"}
    pieces, other = {"x": 0, "y": 1}, {"y": 0, "z": 1}
    a = parent(tmp_path, "a", tokenizer__json=tokenizer(pieces, added=[("<a>", 2)]), tokenizer_config__json=settings)
    (a / "vocab.txt").write_text("x\ny\n")
    b = parent(tmp_path, "b", tokenizer__json=tokenizer(other, added=[("<b>", 2)]))
    found = carried([a, b], tokenizer="union", chat_template="new {{ x }}")
    assert "vocab.txt" not in found.files and found.files["chat_template.jinja"] == b"new {{ x }}"
    made = json.loads(found.files["tokenizer_config.json"])
    assert {k: token["content"] for k, token in made["added_tokens_decoder"].items()} == {"2": "<a>", "4": "<b>"}
    assert "chat_template" not in made and made["eos_token"] == "<a>"


def test_ids_in_settings_follow_the_tokenizer(tmp_path):
    ids = {**GPT, "eos_token_id": 1, "pad_token_id": 0, "bos_token_id": None}
    a = parent(tmp_path, "a", ids, tokenizer__json=tokenizer({"x": 0, "y": 1}))
    (a / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 0], "top_k": 1}))
    b = parent(tmp_path, "b", tokenizer__json=tokenizer({"z": 0, "y": 4}))
    found = carried([a], b, tokenizer="base")
    made = config(found)
    assert made["eos_token_id"] == 4 and made["bos_token_id"] is None and "pad_token_id" not in made
    assert json.loads(found.files["generation_config.json"]) == {"top_k": 1}
    assert any("pad_token_id 0 is no token of the new tokenizer" in note for note in found.notes)


# ------------------------------------------------------------------ code, links


def test_code_is_refused_or_copied_and_said(tmp_path):
    asking = {**GPT, "auto_map": {"AutoModel": "modeling_x.Model"}}
    a = parent(tmp_path, "a", asking, modeling_x__py="raise SystemExit")
    with pytest.raises(ws.WeightspaceError, match=r"asks for code of its own \(auto_map in config.json\)"):
        carried([a])
    found = carried([a], remote_code=True)
    assert found.files["modeling_x.py"] == a / "modeling_x.py" and "copied and not run: modeling_x.py" in found.notes[0]
    b = parent(tmp_path, "b", GPT, modeling_x__py="raise SystemExit")
    assert "modeling_x.py" not in carried([b]).files


def test_links_that_leave_the_folder_are_refused(tmp_path):
    a = parent(tmp_path, "a")
    (tmp_path / "secret").write_text("{}")
    os.symlink(tmp_path / "secret", a / "generation_config.json")
    with pytest.raises(ws.WeightspaceError, match="is a link that leaves"):
        carried([a])


def test_the_hubs_cache_is_followed_and_named(tmp_path):
    blobs = tmp_path / "models--org--net" / "blobs"
    home = tmp_path / "models--org--net" / "snapshots" / "0123"
    blobs.mkdir(parents=True)
    home.mkdir(parents=True)
    a = parent(tmp_path, "a")
    for file in a.iterdir():
        (blobs / file.name).write_bytes(file.read_bytes())
        os.symlink(blobs / file.name, home / file.name)
    assert said_name(home) == "org/net" and "base_model:\n- org/net" in card(carried([home]))


def test_weights_alone_have_no_folder(tmp_path):
    a, b = parent(tmp_path, "a", None), parent(tmp_path, "b", GPT)
    assert carried([a]).files == {} and "nothing but the weights" in carried([a]).notes[0]
    found = carried([a / "model.safetensors", b])
    assert config(found)["model_type"] == "gpt2" and "has no config.json; that of b was taken" in found.notes[0]


# ------------------------------------------------------------------ cards


def test_a_card_has_recipe_hashes_and_measures(tmp_path):
    a, b = parent(tmp_path, "a", card="license: mit\npipeline_tag: x"), parent(tmp_path, "b", card="license: mit")
    about = About({"method": "ties", "note": "```"}, {"accuracy": 0.5})
    text = card(carried([a], b, about=about))
    assert (
        "license: mit" in text
        and "pipeline_tag" not in text
        and "method: ties" in text
        and "| accuracy | 0.5 |" in text
    )
    assert "````yaml" in text and "| a | parent | mit | model.safetensors |" in text and "| b | base | mit |" in text
    (whole,), (quick,) = hashes(a).values(), hashes(a, quick=True).values()
    assert f"`{whole}`" in text and whole != quick
    assert f"`{quick}`" in card(carried([a], about=About(quick=True)))
    weights = (a / "model.safetensors").read_bytes()
    (a / "model.safetensors").write_bytes(weights[:-1] + b"\1")
    assert [*hashes(a).values()] != [whole] and [*hashes(a, quick=True).values()] == [quick]


def test_licences_that_differ_are_said_and_none_is_chosen(tmp_path):
    a, b = (
        parent(tmp_path, "a", card="license: mit", LICENSE="one"),
        parent(tmp_path, "b", card="license: cc-by-nd-4.0"),
    )
    (b / "LICENSE").write_text("two")
    found = carried([a, b])
    said = "\n".join(found.notes)
    assert "the parents' licences are not one (a: mit, b: cc-by-nd-4.0); none was written" in said
    assert "b is under cc-by-nd-4.0, which forbids to pass on changed networks" in said
    assert "license:" not in card(found).split("---")[1] and found.files["b-LICENSE"] == b / "LICENSE"
    c = parent(tmp_path, "c")
    assert "c: none said" in carried([a, c]).notes[0] and not carried([c]).notes
