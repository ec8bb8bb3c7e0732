"""Embeddings and heads in one vocabulary: rows by the text of tokens, read in parts, and refused where unclear."""

import json

import pytest
import torch

import weightspace as ws
from weightspace.merging.folders.vocabulary import Numbering, has_head, in_one_vocabulary, renumbered, tables
from weightspace.merging.part import Part
from weightspace.merging.recipe import Recipe, merged


class Counting(dict):
    """Named tensors of which parts are read, and how many numbers."""

    read = 0

    def flat(self, name, start, stop):
        self.read += stop - start
        return self[name].reshape(-1)[start:stop]


def net(seed, rows, width=3, **more):
    draw = torch.Generator().manual_seed(seed)
    return Counting({"wte.weight": torch.randn(rows, width, generator=draw), "h.0.w": torch.ones(2, 2), **more})


A = {"the": 0, "cat": 1, "sat": 2, "<pad>": 3}
B = {"<pad>": 0, "dog": 1, "the": 2, "cat": 3, "ran": 4}
JOINT = {"the": 0, "cat": 1, "sat": 2, "<pad>": 3, "dog": 4, "ran": 5}


def test_a_merged_row_is_the_method_on_the_parents_that_have_the_token():
    a, b = net(0, 4), net(1, 5)
    (first, second), notes = renumbered([a, b], [A, B], Numbering(JOINT, 6))
    part = Part("wte.weight", first.shapes["wte.weight"], [(first, "wte.weight"), (second, "wte.weight")])
    found = merged(part, Recipe("linear"))
    for token, k in JOINT.items():
        rows = [net["wte.weight"][ids[token]] for net, ids in ((a, A), (b, B)) if token in ids]
        assert torch.allclose(found[k], torch.stack(rows).mean(0)), token
    assert notes == ["6 tokens: 3 in every parent, 3 copied from one, 0 averaged over several"]
    assert torch.equal(first["h.0.w"], a["h.0.w"]) and first.shapes["h.0.w"] == (2, 2)


def test_a_parent_without_the_token_has_a_task_vector_of_zero():
    a, b, base = net(0, 4), net(1, 5), net(2, 4)
    ids = {"the": 0, "cat": 1, "dog": 2, "sat": 3}
    views, notes = renumbered([a, b, base], [A, B, ids], Numbering(JOINT, 6), base=2)
    tables_of = [view["wte.weight"] for view in views]
    assert torch.equal(tables_of[0][JOINT["dog"]], base["wte.weight"][2])
    assert torch.equal(tables_of[1][JOINT["sat"]], base["wte.weight"][3])
    assert torch.allclose(tables_of[2][JOINT["<pad>"]], (a["wte.weight"][3] + b["wte.weight"][0]) / 2)
    assert torch.equal(tables_of[0][JOINT["ran"]], b["wte.weight"][4]) and "2 taken from the base" in notes[0]


def test_parts_are_those_of_the_whole_and_no_more_is_read():
    ids = {f"t{k}": k for k in range(5000)}
    b_ids = {f"t{k}": 4999 - k for k in range(5000) if k % 7}
    a, b = net(0, 5000, 40), net(1, 5000, 40)
    (_, view), _ = renumbered([a, b], [ids, b_ids], Numbering(ids, 5000))
    whole = view["wte.weight"].reshape(-1)
    a.read = b.read = 0
    for start, stop in ((0, 1), (39, 41), (1234, 9876), (199_990, 200_000), (50, 50), (0, 10**9)):
        assert torch.equal(view.flat("wte.weight", start, stop), whole[start:stop])
    a.read = b.read = 0
    view.flat("wte.weight", 80, 120)  # one row
    assert a.read + b.read <= 40
    assert torch.equal(view.flat("h.0.w", 1, 3), torch.ones(2))


def test_one_vocabulary_alone_is_the_network_itself():
    a = net(0, 4, **{"lm_head.weight": torch.randn(4, 3), "lm_head.bias": torch.randn(4)})
    (view,), notes = renumbered([a], [A], Numbering(A, 4))
    assert all(torch.equal(view[name], a[name]) for name in a) and [*view] == [*a] and len(view) == len(a)
    assert notes == ["4 tokens: 4 in every parent, 0 copied from one, 0 averaged over several"]


def test_the_order_of_ids_does_not_matter():
    """Renumbering a parent and its vocabulary together changes nothing."""
    a, b, order = net(0, 4), net(1, 5), torch.tensor([3, 0, 4, 1, 2])
    moved = Counting({**b, "wte.weight": b["wte.weight"][order]})
    ids = {token: order.tolist().index(k) for token, k in B.items()}
    one, other = (renumbered([a, n], [A, v], Numbering(JOINT, 6))[0] for n, v in ((b, B), (moved, ids)))
    for left, right in zip(one, other, strict=True):
        assert torch.equal(left["wte.weight"], right["wte.weight"])


def test_heads_that_are_tied_in_one_and_biases_that_one_lacks():
    a = net(0, 4, **{"lm_head.weight": torch.randn(4, 3), "lm_head.bias": torch.randn(4)})
    b = net(1, 5)
    (first, second), _ = renumbered([a, b], [A, B], Numbering(JOINT, 6))
    assert torch.equal(first["lm_head.weight"][JOINT["dog"]], b["wte.weight"][B["dog"]])
    assert torch.equal(first["lm_head.bias"][:4], a["lm_head.bias"]) and not first["lm_head.bias"][4:].any()
    assert "lm_head.weight" not in second and has_head(a) and not has_head(b)


def test_a_bias_with_an_axis_of_one_before():
    a, b = (net(k, n, final_logits_bias=torch.arange(float(n)).reshape(1, n)) for k, n in ((0, 4), (1, 5)))
    (_, second), _ = renumbered([a, b], [A, B], Numbering(JOINT, 6))
    assert second["final_logits_bias"].tolist() == [[2, 3, 2, 0, 1, 4]]


def test_padding_is_kept_and_said():
    a, b = net(0, 8), net(1, 5)
    (first, second), notes = renumbered([a, b], [A, B], Numbering(JOINT, 10))
    assert torch.equal(first["wte.weight"][6:8], a["wte.weight"][6:8])
    assert torch.equal(second["wte.weight"][6:8], a["wte.weight"][6:8]) and not second["wte.weight"][8:].any()
    assert notes[1:] == ["2 rows of no token are copied from one parent", "2 rows of no token are zero"]


def test_rows_that_are_chosen():
    a, b = net(0, 4), net(1, 5)
    own = {"the": (1, 4), "sat": None, "ran": (0, 1)}
    (first, second), _ = renumbered([a, b], [A, B], Numbering(JOINT, 6, own=own, forced=frozenset({"the"})))
    assert torch.equal(first["wte.weight"][0], b["wte.weight"][4]) and not second["wte.weight"][2].any()
    assert torch.equal(second["wte.weight"][0], b["wte.weight"][4])
    assert torch.equal(first["wte.weight"][2], a["wte.weight"][2])  # it has the token and is not forced
    assert torch.equal(first["wte.weight"][5], a["wte.weight"][1])


def test_half_precision_keeps_its_dtype_and_its_rows():
    a, b = net(0, 4), net(1, 5)
    a["wte.weight"], b["wte.weight"] = a["wte.weight"].bfloat16(), b["wte.weight"].bfloat16()
    (first, _), _ = renumbered([a, b], [A, B], Numbering(JOINT, 6))
    assert first.dtypes["wte.weight"] == first["wte.weight"].dtype == torch.bfloat16
    assert torch.equal(first["wte.weight"][4], b["wte.weight"][1])


@pytest.mark.parametrize(
    "parents, words",
    [
        ([{"w": torch.ones(4, 3)}] * 2, "no embedding of tokens is known"),
        ([net(0, 3), net(1, 5)], "tables of 3 rows for a vocabulary of 4 ids"),
        ([net(0, 4), net(1, 5, 7)], "rows of different widths, (4, 3) and (5, 7)"),
        ([net(0, 4, other=torch.ones(4, 2)), net(1, 5)], "'other' has 4 rows, as many as the vocabulary, and no known"),
    ],
)
def test_what_is_unclear_is_refused(parents, words):
    with pytest.raises(ws.WeightspaceError) as error:
        renumbered(parents, [A, B], Numbering(JOINT, 6))
    assert words in str(error.value)


def test_unusual_names_are_given_and_unknown_tokens_refused():
    a, b = {"odd": torch.randn(4, 3)}, {"odd": torch.randn(5, 3)}
    (first, _), _ = renumbered([a, b], [A, B], Numbering(JOINT, 6), names=["odd"])
    assert torch.equal(first["odd"][4], b["odd"][1])
    with pytest.raises(ws.WeightspaceError, match="no parent has the tokens 'new'"):
        renumbered([a, b], [A, B], Numbering({**JOINT, "new": 6}, 7), names=["odd"])
    with pytest.raises(ws.WeightspaceError, match="no tensor 'none'"):
        tables({"w": torch.ones(4, 3)}, 4, ["none"])


def test_the_vocabulary_that_is_chosen(tmp_path):
    folders = []
    for name, ids in (("a", A), ("b", B)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "vocab.json").write_text(json.dumps(ids))
        folders.append(tmp_path / name)
    a, b = net(0, 6), net(1, 5)
    for how, rows, ids in (("union", 6, JOINT), ("first", 6, A), ("base", 5, B), (folders[1], 5, B)):
        views, found, _ = in_one_vocabulary([a, b], folders, how, base=1)
        assert found == rows == views[0].shapes["wte.weight"][0]
        for token, k in ids.items():
            has = a["wte.weight"][A[token]] if token in A else b["wte.weight"][B[token]]
            assert torch.equal(views[0]["wte.weight"][k], has)
    assert in_one_vocabulary([a, b], folders, "union", multiple=64)[1] == 64
    with pytest.raises(ws.WeightspaceError, match="there is no base"):
        in_one_vocabulary([a, b], folders, "base")


def test_what_the_rows_depend_on_is_told_for_merges_that_go_on(tmp_path):
    paths = [tmp_path / f"{k}.safetensors" for k in range(2)]
    for k, path in enumerate(paths):
        ws.checkpoint.save(dict(net(k, 4 + k)), path)

    def stamps(ids=B):
        return [view.stamps for view in renumbered([*map(ws.checkpoint.read, paths)], [A, ids], Numbering(JOINT, 6))[0]]

    before = stamps()
    assert before == stamps() and all(before)
    assert before != stamps({"<pad>": 1, "dog": 0, "the": 2, "cat": 3, "ran": 4})
    ws.checkpoint.save(dict(net(7, 5)), paths[1], force=True)
    after = stamps()
    assert after[0] != before[0] and after[1] != before[1]  # rows that one lacks are the other's
    assert renumbered([net(0, 4), net(1, 5)], [A, B], Numbering(JOINT, 6))[0][0].stamps is None
