"""Names of several checkpoints are matched by shape and name, or not at all."""

import pytest
import torch

import weightspace as ws
from weightspace.merging.names import in_terms_of, is_head, packed, partner

NAMES = {f"layers.{i}.{w}": torch.Size([i + 2, k + 1]) for i in range(4) for k, w in enumerate(("a", "b"))}


def with_prefix(prefix, names=NAMES):
    return {prefix + name: shape for name, shape in names.items()}


@pytest.mark.parametrize("prefix", ["model.", "module.model.", "bert."])
def test_a_prefix_is_removed_and_put_before(prefix):
    names, said = in_terms_of(NAMES, with_prefix(prefix), "b")
    assert {*names.values()} == {*NAMES} and said == f"-{prefix}"
    names, said = in_terms_of(with_prefix(prefix), NAMES, "b")
    assert {*names.values()} == {*with_prefix(prefix)} and said == f"+{prefix}"


def test_what_has_no_prefix_is_left_alone():
    head = {"classifier.weight": torch.Size([5, 5])}
    names, said = in_terms_of(NAMES, {**with_prefix("bert."), **head}, "b")
    assert said == "-bert." and names["classifier.weight"] == "classifier.weight" and len(names) == 9
    same, said = in_terms_of({**NAMES, **head}, NAMES, "b")
    assert said == "" and same == {name: name for name in NAMES}


def test_other_shapes_are_not_matched_by_a_prefix():
    strange = {name: torch.Size([9, 9]) for name in with_prefix("model.")}
    names, said = in_terms_of(NAMES, strange, "b")
    assert said == "" and names == {name: name for name in strange}


def test_two_prefixes_are_refused():
    reference = {**with_prefix("a."), **with_prefix("b.")}
    with pytest.raises(ws.WeightspaceError, match=r"the names of it agree .* equally well with '\+a\.' and '\+b\.'"):
        in_terms_of(reference, NAMES, "it")


def test_one_partner_or_none():
    assert partner("lm_head.weight", ["model.embed_tokens.weight", "x"]) == "model.embed_tokens.weight"
    assert partner("model.embed_tokens.weight", ["lm_head.weight"]) == "lm_head.weight"
    assert partner("lm_head.weight", ["a.embed_tokens.weight", "b.embed_tokens.weight"]) is None
    assert partner("x", ["lm_head.weight"]) is None
    assert partner("head", ["embedding"], [("head", "embedding")]) == "embedding"


def test_heads_and_quantised_numbers_are_known_by_name_and_dtype():
    assert is_head("roberta.classifier.dense.weight") and not is_head("classifiers.weight")
    assert is_head("a.b.c.weight", ["a.b."]) and not is_head("x.a.b.weight", ["a.b."])
    assert packed("w", torch.float8_e4m3fn) and packed("a.weight", torch.int8) and packed("a.qweight", torch.int32)
    assert not packed("attn.bias", torch.uint8) and not packed("a.weight", torch.bfloat16)
