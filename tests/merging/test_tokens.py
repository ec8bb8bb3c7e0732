"""Tokenizers read by their ids, and joined where that breaks none of them."""

import json

import pytest

import weightspace as ws
from weightspace.merging.folders.tokens import joined, joint, tokens_of


def tokenizer(vocab, kind="WordLevel", added=(), **more):
    model = {"type": kind, "vocab": vocab, **({"unk_token": "[UNK]"} if kind != "Unigram" else {"unk_id": 0})}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        **{"version": "1.0", "truncation": None, "padding": None, "normalizer": None},
        **{"pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None},
        "added_tokens": [{"id": k, "content": text, **flags} for text, k in added],
        "model": {**model, **({"merges": []} if kind == "BPE" else {}), **more},
    }


def bpe(merges, letters="abc", added=()):
    pieces = ["[UNK]", *letters, *("".join(merge) for merge in merges)]
    return tokenizer({p: k for k, p in enumerate(pieces)}, "BPE", added, merges=[list(merge) for merge in merges])


def stored(place, *trees):
    paths = []
    for k, tree in enumerate(trees):
        paths.append(place / f"{k}.json")
        paths[-1].write_text(json.dumps(tree))
    return paths


def cut(tree, text):
    tokenizers = pytest.importorskip("tokenizers")
    return tokenizers.Tokenizer.from_str(json.dumps(tree)).encode(text)


def test_ids_are_read_from_every_form(tmp_path):
    (tmp_path / "vocab.txt").write_text("[PAD]\nthe\ncat\n")
    assert tokens_of(tmp_path) == {"[PAD]": 0, "the": 1, "cat": 2}
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0, "b": 1}))
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<x>": 2}))
    assert tokens_of(tmp_path) == {"a": 0, "b": 1, "<x>": 2}
    (tmp_path / "tokenizer.json").write_text(
        json.dumps(tokenizer([["<unk>", 0.0], ["a", -1.0]], "Unigram", [("<x>", 2)]))
    )
    assert tokens_of(tmp_path) == {"<unk>": 0, "a": 1, "<x>": 2}


@pytest.mark.parametrize(
    "name, text, words",
    [
        ("vocab.json", "[1]", "no mapping from tokens to ids"),
        ("vocab.json", '{"a": 0, "b": 0}', "gives the id 0 to 'a' and to 'b'"),
        ("vocab.json", '{"a": -1}', "no mapping from tokens to ids"),
        ("vocab.json", "{", "cannot be read"),
        ("tokenizer.json", '{"model": {"vocab": 3}}', "has no model with a vocabulary"),
        ("tokenizer.json", '{"model": {"vocab": [3]}}', "has tokens without a text or an id"),
        ("spiece.model", "x", "its tokens are in 'spiece.model', which is not read"),
        ("other", "x", "holds no tokenizer.json or vocab.json"),
    ],
)
def test_files_without_tokens_are_refused(name, text, words, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(ws.WeightspaceError) as error:
        tokens_of(tmp_path)
    assert words in str(error.value)


def test_ids_of_the_first_are_kept_and_all_tokens_are_there():
    first, second, third = {"a": 0, "b": 1}, {"c": 0, "a": 1, "d": 2}, {"d": 0, "e": 1}
    found = joint([first, second, third])
    assert found == {"a": 0, "b": 1, "c": 2, "d": 3, "e": 4}
    assert sorted(found.values()) == [*range(5)] and joint([first]) == first
    assert joint([first, second]).items() >= first.items()


def test_words_and_added_tokens_are_united(tmp_path):
    a = tokenizer({"[UNK]": 0, "the": 1, "cat": 2}, added=[("<a>", 3)])
    b = tokenizer({"[UNK]": 0, "dog": 1, "the": 2}, added=[("<b>", 3), ("<a>", 4)])
    paths = stored(tmp_path, a, b)
    made, notes = joined(paths)
    ids = joint([tokens_of(path) for path in paths])
    assert ids == {"[UNK]": 0, "the": 1, "cat": 2, "<a>": 3, "dog": 4, "<b>": 5} and "united" in notes[0]
    found = cut(made, "the dog <b> cat <a> mouse")
    assert found.ids == [ids[t] for t in ("the", "dog", "<b>", "cat", "<a>", "[UNK]")]


@pytest.mark.parametrize("kind", ["WordLevel", "BPE", "Unigram"])
def test_parents_that_differ_in_added_tokens_alone_cut_words_as_before(kind, tmp_path):
    letters = ["[UNK]", *"abc"]
    pieces = [[t, -1.0] for t in letters] if kind == "Unigram" else {t: k for k, t in enumerate(letters)}
    trees = [tokenizer(pieces, kind, [(text, 4)]) for text in ("<a>", "<b>")]
    made, notes = joined(stored(tmp_path, *trees))
    assert notes == []
    assert cut(made, "a b <a> <b>").ids == [1, 2, 4, 5]


def test_merges_of_both_are_kept_in_the_order_of_both(tmp_path):
    a, b = bpe([("a", "b"), ("c", "a")]), bpe([("b", "c"), ("a", "b"), ("a", "c")])
    made, _ = joined(stored(tmp_path, a, b))
    assert made["model"]["merges"] == [["b", "c"], ["a", "b"], ["c", "a"], ["a", "c"]]
    assert cut(made, "abc ca").tokens == ["a", "bc", "ca"]
    for tree in (a, b):
        own = [merge for merge in made["model"]["merges"] if merge in tree["model"]["merges"]]
        assert own == tree["model"]["merges"]


def test_one_tokenizer_joined_with_itself_is_itself(tmp_path):
    for tree in (bpe([("a", "b")]), tokenizer({"[UNK]": 0, "x": 1}), tokenizer([["u", 0.0]], "Unigram", [("<s>", 1)])):
        made, notes = joined(stored(tmp_path, tree, tree))
        assert notes == [] and {**made, "model": {**made["model"], "vocab": 0}} == {
            **tree,
            "model": {**tree["model"], "vocab": 0},
        }
        assert cut(made, "a").ids == cut(tree, "a").ids


@pytest.mark.parametrize(
    "a, b, words",
    [
        (bpe([("a", "b"), ("b", "c")]), bpe([("b", "c"), ("a", "b")]), "merges that both have stand in another order"),
        (tokenizer([["a", -1.0]], "Unigram"), tokenizer([["b", -1.0]], "Unigram"), "scores of one model"),
        (bpe([]), tokenizer({"a": 0}), "one is BPE, the other WordLevel"),
        (bpe([]), {**bpe([]), "normalizer": {"type": "NFC"}}, "another normalizer"),
        (bpe([]), tokenizer({"a": 0}, "BPE", byte_fallback=True), "byte_fallback is None in one and True in the other"),
    ],
)
def test_tokenizers_that_cannot_be_joined_are_refused(a, b, words, tmp_path):
    with pytest.raises(ws.WeightspaceError) as error:
        joined(stored(tmp_path, a, b))
    assert words in str(error.value) and "tokenizer='first' or 'base'" in str(error.value)
