"""Merged folders of many families of transformers open there, and answer as the network of the averaged weights."""

import json

import pytest
import torch
from merging.test_tokens import bpe, tokenizer

import weightspace as ws
from weightspace.commands.merge_parents import Asked
from weightspace.commands.merge_recipe import merge_by_recipe
from weightspace.commands.settings import Settings
from weightspace.merging.folders.folder import carried
from weightspace.merging.folders.mergekit_file import recipe_of
from weightspace.merging.folders.mergekit_plan import plan_of
from weightspace.merging.part import Part
from weightspace.merging.recipe import Recipe, merged

transformers = pytest.importorskip("transformers")
T = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
LLAMA = {**T, "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 32}
SIGHT = {"image_size": 8, "patch_size": 4, "num_channels": 1}
FAMILIES = {
    "gpt2": ("GPT2LMHeadModel", {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}),
    "llama": ("LlamaForCausalLM", LLAMA),
    "mistral": ("MistralForCausalLM", LLAMA),
    "qwen2": ("Qwen2ForCausalLM", LLAMA),
    "qwen3": ("Qwen3ForCausalLM", {**LLAMA, "tie_word_embeddings": True}),
    "gemma": ("GemmaForCausalLM", LLAMA),
    "gemma2": ("Gemma2ForCausalLM", LLAMA),
    "phi": ("PhiForCausalLM", {**T, "max_position_embeddings": 32}),
    "gpt_neox": ("GPTNeoXForCausalLM", {**T, "max_position_embeddings": 32}),
    "opt": ("OPTForCausalLM", {**T, "ffn_dim": 24, "word_embed_proj_dim": 16, "max_position_embeddings": 32}),
    "falcon": ("FalconForCausalLM", {**T, "ffn_hidden_size": 24}),
    "bert": ("BertForMaskedLM", {**T, "max_position_embeddings": 32}),
    "roberta": ("RobertaForSequenceClassification", {**T, "max_position_embeddings": 32}),
    "distilbert": (
        "DistilBertForMaskedLM",
        {"vocab_size": 40, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "max_position_embeddings": 32},
    ),
    "t5": (
        "T5ForConditionalGeneration",
        {"vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2},
    ),
    "vit": ("ViTForImageClassification", {**T, **SIGHT}),
    "clip": (
        "CLIPModel",
        {"text_config": {**T, "max_position_embeddings": 32}, "vision_config": {**T, **SIGHT}, "projection_dim": 8},
    ),
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def loaded():
    return transformers.PreTrainedModel, transformers.GPT2LMHeadModel  # importing them takes seconds


def answers(model, kind):
    ids, images = torch.arange(12).reshape(2, 6) + 5, torch.linspace(-1, 1, 128).reshape(2, 1, 8, 8)
    given = {"vit": {"pixel_values": images}, "clip": {"input_ids": ids, "pixel_values": images}}
    given["t5"] = {"input_ids": ids, "decoder_input_ids": ids}
    with torch.no_grad():
        found = model.eval()(**given.get(kind, {"input_ids": ids}))
    return found["logits_per_image" if kind == "clip" else "logits"]


def fine_tunes(kind, place, n=2, **more):
    place.mkdir(exist_ok=True)
    name, settings = FAMILIES[kind]
    config = transformers.AutoConfig.for_model(kind, **{**settings, **more})
    folders, models = [], []
    for k in range(n):
        torch.manual_seed(k)
        model = getattr(transformers, name)(config)
        for parameter in model.parameters():
            parameter.data.normal_(std=0.3)
        folders.append(place / f"{kind}-{k}")
        model.save_pretrained(folders[-1])
        models.append(model)
    return folders, models


def written(folders, out, **options):
    """The mean of checkpoints in a folder, with what else it needs."""
    parents = [ws.checkpoint.read(folder) for folder in folders]
    recipe = Recipe("linear")
    made = {}
    for name, shape in parents[0].shapes.items():
        found = merged(Part(name, shape, [(parent, name) for parent in parents]), recipe)
        made[name] = found.to(parents[0].dtypes[name])
    out.mkdir()
    ws.checkpoint.save(made, out)
    files = carried(folders, **options)
    files.write(out)
    return files


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", FAMILIES)
def test_a_merged_folder_opens_and_gives_the_outputs_of_the_averaged_weights(kind, tmp_path):
    folders, models = fine_tunes(kind, tmp_path)
    written(folders, tmp_path / "out")
    opened = type(models[0]).from_pretrained(tmp_path / "out")
    states = [model.state_dict() for model in models]
    mean = {name: states[0][name] * 0.5 + states[1][name] * 0.5 for name in states[0]}
    expected = models[0]
    expected.load_state_dict(mean)
    assert torch.equal(answers(opened, kind), answers(expected, kind))
    assert not torch.equal(answers(opened, kind), answers(models[1], kind))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == kind
    assert "SHA-256" in (tmp_path / "out" / "README.md").read_text()


# ------------------------------------------------------------------ recipe files


def carried_out(text, place):
    """The folder that a recipe file makes."""
    (place / "merge.yml").write_text(text)
    found = plan_of(recipe_of(place / "merge.yml"))
    made = {}
    for row in found.plan.rows:
        (k, name), *_ = row.sources
        tensor = merged(found.plan.part(row), row.recipe) if row.action == "merged" else found.plan.parents[k][name]
        made[row.name] = tensor.to(row.dtype)
    (place / "out").mkdir()
    ws.checkpoint.save(made, place / "out")
    found.carried().write(place / "out")
    return place / "out"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen3", "gemma2", "opt", "bert"])
def test_stacked_layers_open_as_a_deeper_network(kind, tmp_path):
    """Layers 0, 1 of one and 1 of another, as the same modules put one after another."""
    (a, b), models = fine_tunes(kind, tmp_path)
    out = carried_out(
        f"merge_method: passthrough\nslices:\n- sources: [{{model: {a.name}, layer_range: [0, 2]}}]\n"
        f"- sources: [{{model: {b.name}, layer_range: [1, 2]}}]",
        tmp_path,
    )
    opened, expected = type(models[0]).from_pretrained(out), models[0]
    layers = {"gpt2": "transformer.h", "opt": "model.decoder.layers", "bert": "bert.encoder.layer"}.get(
        kind, "model.layers"
    )
    expected.get_submodule(layers).append(models[1].get_submodule(layers)[1])
    for k, module in enumerate(expected.get_submodule(layers)):
        for part in module.modules():
            if hasattr(part, "layer_idx"):
                part.layer_idx = k
    body, other = expected.base_model, models[1].base_model
    for name in ("norm", "ln_f", "decoder.final_layer_norm"):
        if hasattr(body, name.partition(".")[0]) and "." not in name:
            setattr(body, name, getattr(other, name))
    if kind == "opt":
        body.decoder.final_layer_norm = other.decoder.final_layer_norm
    for name in ("lm_head", "cls"):
        if hasattr(expected, name) and not (name == "lm_head" and expected.config.tie_word_embeddings):
            setattr(expected, name, getattr(models[1], name))
    if kind == "bert":
        expected.cls.predictions.decoder.weight = expected.get_input_embeddings().weight
    config = expected.config
    config.num_hidden_layers = 3
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[0], config.layer_types[1], config.layer_types[1]]
    assert opened.config.num_hidden_layers == 3
    if kind == "gemma2":  # which layer has a window is fixed when a network is made
        assert opened.config.layer_types == config.layer_types
    assert torch.equal(answers(opened, kind), answers(expected, kind))


@pytest.mark.filterwarnings("ignore")
def test_networks_of_two_vocabularies_are_merged_token_by_token(tmp_path):
    """The merged network answers to a text as the mean of both, each with its embeddings renumbered by hand."""
    (a, b), models = fine_tunes("llama", tmp_path, tie_word_embeddings=True)
    words = [["[UNK]", "the", "cat", "sat", *(f"a{k}" for k in range(36))], ["[UNK]", "dog", "cat", "the"]]
    words[1] += [f"b{k}" for k in range(34)]  # and two rows of no token
    for folder, own in zip((a, b), words, strict=True):
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer({word: k for k, word in enumerate(own)})))
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]"}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    text = "merge_method: linear\ntokenizer_source: union\nparameters: {weight: 1}\nmodels:\n"
    out = carried_out(text + "".join(f"- model: {folder.name}\n" for folder in (a, b)), tmp_path)
    opened = transformers.AutoModelForCausalLM.from_pretrained(out)
    read = transformers.AutoTokenizer.from_pretrained(out)
    vocabulary = read.get_vocab()
    assert opened.config.vocab_size == len(vocabulary) == 40 + 35
    found = opened.get_input_embeddings().weight
    for word in ("the", "cat", "dog", "sat", "a3", "b33"):
        rows = [m.get_input_embeddings().weight[o.index(word)] for m, o in zip(models, words, strict=True) if word in o]
        assert torch.allclose(found[vocabulary[word]], torch.stack(rows).mean(0), atol=1e-6), word
    logits = opened(**read("the dog sat", return_tensors="pt"))["logits"]
    assert logits.shape == (1, 3, 75) and logits.isfinite().all()


@pytest.mark.filterwarnings("ignore")
def test_half_precision_and_a_head_of_its_own_in_one(tmp_path):
    folders = [fine_tunes("llama", tmp_path / str(tied), 1, tie_word_embeddings=tied)[0][0] for tied in (True, False)]
    for folder in folders:
        (folder / "tokenizer.json").write_text(json.dumps(bpe([("a", "b")])))
    text = "merge_method: linear\ndtype: bfloat16\nparameters: {weight: 1}\nmodels:\n"
    out = carried_out(text + "".join(f"- model: {folder}\n" for folder in folders), tmp_path)
    opened = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert opened.dtype == torch.bfloat16 and opened.config.tie_word_embeddings is False
    first, second = (ws.checkpoint.read(folder) for folder in folders)
    mean = first["model.embed_tokens.weight"] / 2 + second["lm_head.weight"] / 2
    assert torch.equal(opened.lm_head.weight, mean.bfloat16())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("tied", [(True, False), (False, True)])
def test_the_command_writes_a_head_of_its_own_where_one_parent_has_one(tied, tmp_path):
    """A configuration that says tied would replace the merged head by the embedding, without a word."""
    pairs = [fine_tunes("llama", tmp_path / str(one), 1, tie_word_embeddings=one) for one in tied]
    folders, models = [pair[0][0] for pair in pairs], [pair[1][0] for pair in pairs]
    merge_by_recipe(folders, tmp_path / "out", Recipe("linear"), Asked(), Settings())
    opened = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    for name in ("lm_head", "model.embed_tokens"):
        mean = sum(model.get_submodule(name).weight / 2 for model in models)
        assert torch.equal(opened.get_submodule(name).weight, mean), name
