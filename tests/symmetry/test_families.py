"""Families of transformers, tiny and at random weights: what of each may be renumbered.

The law: a family is read in float64, with every permutation that its architecture promises, and a random element of
the group keeps the logits. Whatever stays has a reason, and what an operation made stay has a note.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import weightspace as ws
from weightspace.checkpoint.architecture import example_of
from weightspace.graph.pretrained import answer, beside, plain_experts

t = pytest.importorskip("transformers", reason="transformers is not installed (the [hf] extra)")

NONE = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None, "use_cache": False}
PLAIN = {"vocab_size": 29, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4,
         "num_key_value_heads": 2, "intermediate_size": 11, "max_position_embeddings": 32, **NONE}  # fmt: skip
GROUPED = {**PLAIN, "head_dim": 6}
EXPERTS = {"num_experts_per_tok": 2}
PAIR = {"vocab_size": 29, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 11, "decoder_ffn_dim": 13, "max_position_embeddings": 32,
        "use_cache": False}  # fmt: skip
STREAM, UNITS = (16,), (11,)
HEADS = [(2,), (2, 2), (6, 2)]  # heads of keys and values, queries of one of them, channels of the values


def family(name: str, promised: list[tuple[int, ...]], config: Mapping[str, Any]) -> Any:
    """A language model of that family; `promised`: sizes of axes, each with those of the axes that it depends on."""

    def make() -> nn.Module:
        return getattr(t, f"{name}ForCausalLM")(getattr(t, f"{name}Config")(**config))

    return pytest.param(make, promised, id=name)


def mla() -> dict[str, Any]:
    """Queries, keys and values through narrow layers; experts in two groups."""
    sizes = {"q_lora_rank": 5, "kv_lora_rank": 6, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 10}
    groups = {"n_routed_experts": 6, "n_shared_experts": 1, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 0}
    return {**PLAIN, "num_key_value_heads": 4, "head_dim": 4, "moe_intermediate_size": 9, **sizes, **groups, **EXPERTS}


FAMILIES = [
    family("Gemma2", [STREAM, UNITS, *HEADS], GROUPED),
    family("Phi3", [STREAM, UNITS, (2,), (2, 2), (4, 2)], {**PLAIN, "pad_token_id": 0}),
    family("Mixtral", [STREAM, (3,), (11, 3), *HEADS], {**GROUPED, "num_local_experts": 3, **EXPERTS}),
    family("Qwen3Moe", [STREAM, (3,), (9, 3), *HEADS],
           {**GROUPED, "num_experts": 3, "moe_intermediate_size": 9, "decoder_sparse_step": 1, **EXPERTS}),
    family("GptOss", [STREAM, (3,), (11, 3), *HEADS], {**GROUPED, "num_local_experts": 3, **EXPERTS}),
    family("DeepseekV3", [STREAM, (5,), (6,), (4,), (8, 4), (10, 4), (2,), (3, 2), (9, 2, 3), (9,)], mla()),
    family("Bloom", [STREAM, (64,), (4, 4), (4, 4)],
           {"vocab_size": 29, "hidden_size": 16, "n_layer": 1, "n_head": 4, "use_cache": False}),
]  # fmt: skip


def bart() -> nn.Module:
    return t.BartForConditionalGeneration(t.BartConfig(**PAIR))


def t5() -> nn.Module:
    sizes = {"vocab_size": 29, "d_model": 16, "d_kv": 5, "d_ff": 11, "num_layers": 1, "num_heads": 2}
    return t.T5ForConditionalGeneration(t.T5Config(**sizes, use_cache=False, decoder_start_token_id=0))


def xlnet() -> nn.Module:
    sizes = {"vocab_size": 29, "d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 11}
    return t.XLNetLMHeadModel(t.XLNetConfig(**sizes, use_mems_eval=False))


def falcon() -> nn.Module:
    sizes = {"vocab_size": 29, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return t.FalconForCausalLM(t.FalconConfig(**sizes, ffn_hidden_size=11, use_cache=False))


def rwkv() -> nn.Module:
    """Writes into its own weights when it is first called."""
    sizes = {"vocab_size": 29, "hidden_size": 16, "attention_hidden_size": 10, "intermediate_size": 11}
    rest = {"num_hidden_layers": 2, "context_length": 32, "use_cache": False}
    return t.RwkvForCausalLM(t.RwkvConfig(**sizes, **rest))


ATTENTION = [(2,), (8, 2), (8, 2)]
OTHERS = [
    pytest.param(bart, [STREAM, UNITS, (13,), *ATTENTION * 3], id="Bart"),
    pytest.param(t5, [STREAM, UNITS, UNITS, (2,), (5, 2), (5, 2)], id="T5"),
    pytest.param(xlnet, [STREAM, UNITS, *ATTENTION], id="XLNet"),
    pytest.param(falcon, [STREAM, UNITS, (2,)], id="Falcon"),
]


def sizes(group: ws.Symmetry) -> Counter:
    moving = [axis for axis in group.axes if "permutation" in axis.kinds]
    return Counter((axis.size, *(group[outer].size for outer in axis.over)) for axis in moving)


def settled(make: Callable) -> nn.Module:
    """The model with its experts summed in a way that has float64, noise on all weights."""
    torch.manual_seed(0)
    model = make().eval()
    if type(model)._can_set_experts_implementation():
        model.set_experts_implementation("batched_mm")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


def inputs(model: nn.Module) -> dict[str, Tensor]:
    example = {"input_ids": torch.randint(29, (2, 5), generator=torch.Generator().manual_seed(0))}
    if model.config.is_encoder_decoder:
        example["decoder_input_ids"] = example["input_ids"].flip(1)
    return example


@pytest.mark.parametrize(("make", "promised"), [*FAMILIES, *OTHERS])
def test_a_family_is_read_with_all_that_it_promises(make, promised):
    model = settled(make)
    x = inputs(model)
    group = ws.Symmetry.of(model, x, scales=False)
    missing = Counter(promised) - sizes(group)
    assert not missing, f"{group}, not found: {missing}"
    net = ws.Net.of(model).double()
    before, after = net(x).logits, group.sample(3)(net)(x).logits
    assert float((before - after).abs().max()) < 1e-5 * float(before.abs().max())
    reasons = [group.pinned.get(axis.name) for axis in group.every if not axis.kinds]
    assert all(reasons)
    assert not [note for note in group.notes if "is not known" in note]


def test_a_family_that_writes_into_its_weights_is_read_and_not_called():
    """A call would leave other weights behind: what it reads is found all the same, and the call is refused."""
    model = settled(rwkv)
    x = inputs(model)
    group = ws.Symmetry.of(model, x, scales=False)
    assert not Counter([STREAM, UNITS, (10,)]) - sizes(group)
    with pytest.raises(ws.WeightspaceError, match="writes into its own weights"):
        ws.Net.of(model)(x)


def test_scales_and_signs_of_experts_are_those_of_one_feed_forward_layer():
    model = settled(FAMILIES[2].values[0])
    x = inputs(model)
    group = ws.Symmetry.of(model, x)
    experts = next(axis for axis in group.axes if (axis.size, len(axis.over)) == (11, 1))
    assert set(experts.kinds) == {"permutation", "scale", "sign"}
    net = ws.Net.of(model).double()
    torch.testing.assert_close(group.sample(3)(net)(x).logits, net(x).logits, rtol=1e-4, atol=1e-5)


def test_a_mixture_is_read_whatever_way_it_sums_and_keeps_it():
    """Loops over what the data chose, and grouped products, cannot be read; the model is left as it was."""
    groups = []
    for way in ("eager", "grouped_mm"):
        torch.manual_seed(0)
        model = FAMILIES[2].values[0]().eval()
        model.set_experts_implementation(way)
        groups.append(str(ws.Symmetry.of(model, inputs(model), scales=False)))
        assert model.config._experts_implementation == way
    assert groups[0] == groups[1]


def test_masked_scores_hide_no_sign():
    """Scores of -1e38 beside others of one: a flip of the others is felt all the same."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 29, "hidden_size": 16, "num_layers": 1, "num_heads": 2, "max_position_embeddings": 32}
    rest = {"intermediate_size": 11, "window_size": 4, "attention_types": [[["global"], 1]], "use_cache": False}
    model = t.GPTNeoForCausalLM(t.GPTNeoConfig(**sizes, **rest, bos_token_id=None, eos_token_id=None)).eval()
    group = ws.Symmetry.of(model, inputs(model))
    assert [note for note in group.notes if "may not be rotated" not in note] == []
    heads = next(axis for axis in group.axes if axis.size == 2)
    assert heads.kinds == ("permutation",)


def test_what_is_handed_out_beside_logits_is_no_output_and_a_note_says_so():
    model = settled(bart)
    group = ws.Symmetry.of(model, inputs(model), scales=False)
    assert any("encoder_last_hidden_state" in note for note in group.notes)
    assert beside(["logits", "encoder_last_hidden_state", "pred_boxes"]) == {"encoder_last_hidden_state"}
    assert beside(["last_hidden_state", "pooler_output"]) == set()
    assert list(answer({"logits": 1, "past_key_values": 2, "loss": 3})) == ["logits", "loss"]


def test_hidden_states_are_outputs_where_there_are_no_logits():
    torch.manual_seed(0)
    model = t.BartModel(t.BartConfig(**PAIR)).eval()
    group = ws.Symmetry.of(model, inputs(model), scales=False)
    assert all(axis.size != 16 for axis in group.axes)


def speech() -> nn.Module:
    sizes = {key: value for key, value in PAIR.items() if key != "max_position_embeddings"}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 3}
    frames = {"num_mel_bins": 6, "max_source_positions": 8, "max_target_positions": 16}
    return t.WhisperForConditionalGeneration(t.WhisperConfig(**sizes, **tokens, **frames))


def sound() -> nn.Module:
    sizes = {"vocab_size": 29, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    layers = {"conv_dim": (6, 6), "conv_stride": (3, 2), "conv_kernel": (5, 3), "num_feat_extract_layers": 2}
    place = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "intermediate_size": 11}
    return t.Wav2Vec2ForCTC(t.Wav2Vec2Config(**sizes, **layers, **place))


def text_and_image() -> nn.Module:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 11}
    text, image = {"vocab_size": 29, "eos_token_id": 2, **sizes}, {"image_size": 8, "patch_size": 4, **sizes}
    return t.CLIPModel(t.CLIPConfig(text_config=text, vision_config=image, projection_dim=6))


@pytest.mark.parametrize("make", [t5, bart, speech, sound, text_and_image])
def test_the_example_of_a_family_is_an_input_of_it(make):
    torch.manual_seed(0)
    model = make().eval()
    with torch.no_grad():
        out = model(**example_of(model))
    found = [value for value in out.values() if isinstance(value, Tensor) and value.is_floating_point()]
    assert found and all(bool(value.isfinite().all()) for value in found)


class Mixing(nn.Module):
    """What a mixture of experts brings, by which it is known."""

    def __init__(self, how: str, *parts: nn.Module) -> None:
        super().__init__()
        self.how, self.parts = how, nn.ModuleList(parts)

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        return True

    def get_experts_implementation(self) -> str:
        return self.how

    def set_experts_implementation(self, how: str) -> None:
        self.how = how


@pytest.mark.parametrize("fails", [False, True])
def test_experts_are_summed_as_their_owner_said_afterwards(fails):
    model = Mixing("grouped_mm", Mixing("eager"), nn.Linear(2, 2), Mixing("batched_mm"))
    ways = [part.how for part in model.modules() if isinstance(part, Mixing)]
    with contextlib.suppress(KeyError), plain_experts(model):
        assert {part.how for part in model.modules() if isinstance(part, Mixing)} == {"batched_mm"}
        if fails:
            raise KeyError
    assert [part.how for part in model.modules() if isinstance(part, Mixing)] == ways


@pytest.mark.parametrize("act", [ws.Symmetry.of, lambda model, x: ws.widen(model, 2, x)])
def test_a_model_that_returns_its_cache_is_told_to_return_none(act):
    model = t.LlamaForCausalLM(t.LlamaConfig(**{**PLAIN, "use_cache": True}))
    with pytest.raises(ws.SymmetryError, match="use_cache=False") as said:
        act(model, torch.arange(12).reshape(2, 6))
    assert "DynamicCache" not in str(said.value) and "\n" not in str(said.value)
