"""Merged folders of many families of transformers open there, and answer as the network of the averaged weights."""

import json

import pytest
import torch

import weightspace as ws
from weightspace.merging.folder import carried
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
