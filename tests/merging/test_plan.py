"""Every tensor of every parent is merged, copied or left out, and the plan says which and why."""

import random

import pytest
import torch

import weightspace as ws
from weightspace.merging import Plan, Recipe, Rules, planned
from weightspace.merging.merging import computed

W = torch.Size([3, 2])


def network(seed=0, **more):
    generator = torch.Generator().manual_seed(seed)
    held = {f"layers.{i}.w": torch.randn(W, generator=generator) for i in range(3)}
    return held | {"n": torch.tensor(7)} | more


def row(plan, name):
    (found,) = [r for r in plan.rows if r.name == name]
    return found


def test_what_is_alike_is_merged_and_whole_numbers_are_copied():
    plan = planned([network(0), network(1)])
    assert [r.action for r in plan.rows] == ["merged"] * 3 + ["copied"]
    assert [r.depth for r in plan.rows] == [0, 0.5, 1, 0]
    assert row(plan, "layers.1.w").sources == ((0, "layers.1.w"), (1, "layers.1.w"))
    assert row(plan, "n").why == "whole numbers" and row(plan, "n").sources == ((0, "n"),)
    other = planned([network(0), network(1, n=torch.tensor(8)), network(1, n=torch.zeros(4).int())], labels=["a", "b"])
    assert row(other, "n").why == "whole numbers; others in b, parent 3" and computed(other)["n"] == 7


def test_dtypes_are_those_of_the_first_or_of_the_recipe():
    half = {name: t.half() if t.is_floating_point() else t for name, t in network(1).items()}
    assert row(planned([half, network()]), "layers.0.w").dtype == torch.float16
    plan = planned([half, network()], None, Recipe(dtype=torch.bfloat16))
    assert row(plan, "layers.0.w").dtype == torch.bfloat16 and row(plan, "n").dtype == torch.int64
    found = computed(planned([network(), half]))
    assert torch.allclose(found["layers.0.w"], (network()["layers.0.w"] + half["layers.0.w"].float()) / 2)
    with pytest.raises(ws.WeightspaceError, match="cannot be torch.int8; give a floating-point dtype"):
        planned([network()], None, Recipe(dtype=torch.int8))


def test_extra_tensors_go_by_rule():
    parents = [network(0), network(1, extra=torch.ones(2)), network(2, extra=3 * torch.ones(2))]
    recipe = Recipe(weights=[5, 1, 3])

    def extra(rule):
        return row(planned(parents, None, recipe, Rules(extra=rule)), "extra")

    assert (extra("copy").action, extra("copy").sources) == ("copied", ((1, "extra"),))
    assert extra("copy").why == "not in parent 1"
    assert (extra("merge").action, extra("merge").sources) == ("merged", ((1, "extra"), (2, "extra")))
    assert extra("merge").recipe.weights == [1, 3] and extra("merge").why == "without parent 1"
    assert extra("leave").action == "left out"
    with pytest.raises(ws.WeightspaceError, match="'extra' of parent 2 is not in parent 1; copy, merge or leave"):
        extra("refuse")
    merged = computed(planned(parents, None, recipe, Rules(extra="merge")))["extra"]
    assert torch.allclose(merged, torch.full((2,), 2.5))


def test_what_the_base_lacks_goes_by_the_same_rule():
    parents = [network(0, extra=torch.ones(2)), network(1, extra=torch.zeros(2))]
    base = network(2, old=torch.ones(5))

    def plan(rule, method="task_arithmetic"):
        return planned(parents, base, Recipe(method), Rules(extra=rule))

    assert row(plan("copy"), "extra").action == "copied" and row(plan("copy"), "extra").why == "not in the base"
    assert row(plan("merge"), "extra").recipe.method == "linear"
    assert row(plan("leave"), "extra").action == "left out"
    assert row(plan("copy"), "old").action == "left out" and row(plan("copy"), "old").why == "only in the base"
    assert row(plan("copy"), "layers.0.w").base == "layers.0.w"
    assert row(plan("copy", "linear"), "extra").action == "merged" and row(plan("copy", "linear"), "extra").base is None
    with pytest.raises(ws.WeightspaceError, match="is not in the base"):
        plan("refuse")
    base["extra"] = torch.ones(3)
    assert row(plan("copy"), "extra").why == "of another shape in the base"


def test_heads_of_other_shapes_are_kept_side_by_side_or_left_out():
    heads = [{"classifier.weight": torch.full((n, 2), float(n)), "classifier.bias": torch.ones(2)} for n in (4, 5)]
    parents = [network(k, **head) for k, head in enumerate(heads)]

    def plan(rule):
        return planned(parents, rules=Rules(heads=rule), labels=["runs/a.b", "runs/c.safetensors"])

    kept = computed(plan("keep"))
    assert kept["a_b.classifier.weight"].shape == (4, 2) and kept["c.classifier.weight"].shape == (5, 2)
    assert "classifier.weight" not in kept and torch.equal(kept["classifier.bias"], torch.ones(2))
    first = computed(plan("first"))
    assert first["classifier.weight"].shape == (4, 2)
    assert row(plan("first"), "classifier.weight of runs/c.safetensors").action == "left out"
    assert "classifier.weight" not in computed(plan("leave"))
    assert [r.action for r in plan("leave").rows].count("left out") == 2
    with pytest.raises(ws.WeightspaceError, match=r"'classifier.weight' is \[4, 2\] in runs/a.b, \[5, 2\] in runs/c"):
        plan("refuse")
    with pytest.raises(ws.WeightspaceError, match="bring vocabularies together first .--tokenizer."):
        planned([{"embed": torch.ones(3, 2)}, {"embed": torch.ones(4, 2)}])
    named = planned([{"out.w": torch.ones(3)}, {"out.w": torch.ones(4)}], rules=Rules(head_names=["out"]))
    assert [r.name for r in named.rows] == ["parent 1.out.w", "parent 2.out.w"]


def test_a_tied_tensor_stands_for_its_partner():
    embedding, head = torch.ones(5, 2), 3 * torch.ones(5, 2)
    tied, loose = (
        {"model.embed_tokens.weight": embedding},
        {"model.embed_tokens.weight": embedding, "lm_head.weight": head},
    )
    for parents in ([tied, loose], [loose, tied]):
        plan = planned(parents, labels=["x", "y"])
        assert row(plan, "lm_head.weight").why == f"tied in {'xy'[parents.index(tied)]}"
        assert torch.equal(computed(plan)["lm_head.weight"], 2 * torch.ones(5, 2))
    plan = planned([loose, loose], tied, Recipe("task_arithmetic"))
    assert row(plan, "lm_head.weight").base == "model.embed_tokens.weight"
    assert torch.equal(computed(plan)["lm_head.weight"], embedding + 2 * (head - embedding))


def test_names_that_differ_by_a_prefix_are_one_tensor():
    b = {f"model.{name}": t for name, t in network(1).items()}
    plan = planned([network(0), b], b, Recipe("task_arithmetic"))
    assert {r.name for r in plan.rows} == {*network()} and row(plan, "layers.0.w").base == "model.layers.0.w"
    assert plan.notes == [
        f"the prefix 'model.' was removed from the names of {one}" for one in ("parent 2", "the base")
    ]
    assert torch.allclose(computed(plan)["layers.0.w"], network(0)["layers.0.w"])
    assert "note: the prefix" in str(plan.table())


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (
            torch.ones(3, 2).to(torch.float8_e4m3fn),
            "'q.weight' of parent 2 is quantised .float8_e4m3fn.; merge networks",
        ),
        (torch.ones(3, 2).to(torch.int8), "quantised .int8."),
    ],
)
def test_quantised_numbers_are_refused(tensor, words):
    good = network(**{"q.weight": torch.ones(3, 2)})
    with pytest.raises(ws.WeightspaceError, match=words):
        planned([good, network(**{"q.weight": tensor})])
    with pytest.raises(ws.WeightspaceError, match=words.replace("parent 2", "the base")):
        planned([good], network(**{"q.weight": tensor}), Recipe("task_arithmetic"))
    with pytest.raises(ws.WeightspaceError, match="'n' is of whole numbers in some"):
        planned([good, {**good, "n": torch.tensor(7.0)}])


def test_no_tensor_of_any_parent_is_forgotten():
    """Random sets: every name of every parent is a row; the table counts every row once."""
    for seed in range(40):
        draw = random.Random(seed)
        pool = {f"h.{i}.{part}": W for i in range(3) for part in ("a", "b")}
        parents = []
        for _ in range(draw.randint(1, 4)):
            held = {name: torch.ones(shape) for name, shape in pool.items() if draw.random() < 0.8}
            held["classifier.w"] = torch.ones(draw.choice([2, 3]))
            parents.append(held | {"step": torch.tensor(draw.randint(0, 1))})
        rules = Rules(draw.choice(["copy", "merge", "leave"]), draw.choice(["keep", "first", "leave"]))
        plan = planned(parents, None, None, rules)
        names = {name for parent in parents for name in parent}
        seen = {name for r in plan.rows for _, name in r.sources}
        assert seen == names and len({r.name for r in plan.rows}) == len(plan.rows)
        groups = plan.table().groups
        assert sorted(n for g in groups for n in g.tensors) == sorted(r.name for r in plan.rows)
        assert sum(g["numbers"] for g in plan.table().data()) == sum(r.shape.numel() for r in plan.rows)
        assert all(r.why for r in plan.rows if r.action != "merged")


def test_labels_are_paths_or_numbers_and_never_alike(tmp_path):
    path = ws.checkpoint.save(network(), tmp_path / "a.safetensors")
    file = ws.checkpoint.read(path)
    assert planned([file, network(), file]).labels == [str(path), "parent 2", f"{path} (3)"]
    assert Plan([file], None, []).label(0) == "parent 1" and Plan([file], None, []).label(1) == "the base"


def test_a_recipe_that_does_not_fit_is_refused():
    with pytest.raises(ws.WeightspaceError, match="1 weights for 2"):
        planned([network(), network()], None, Recipe(weights=[1]))
    with pytest.raises(ws.WeightspaceError, match="give it as base"):
        planned([network(), network()], None, Recipe("task_arithmetic"))


def test_networks_with_nothing_in_common_are_refused():
    """Else the result would be all of them side by side, or the first alone."""
    a, other = network(0), {f"net.{k}.v": torch.ones(4) for k in range(3)}
    with pytest.raises(ws.WeightspaceError, match="no tensor of parent 1 has the name of one of the others"):
        planned([a, other])
    with pytest.raises(ws.WeightspaceError, match="the base shares no tensor with parent 1, parent 2"):
        planned([a, network(1)], other, Recipe("task_arithmetic"))
    assert planned([a, network(1)], other, Recipe("linear")).rows
    assert planned([a, other], None, None, Rules(extra="merge")).rows


def test_factors_of_adapters_are_not_averaged_one_by_one():
    """The mean of A and the mean of B are no factors of the mean of B A."""
    one = {f"q.lora_{side}.weight": torch.ones(2, 2) for side in "AB"}
    with pytest.raises(ws.WeightspaceError, match="factors of low rank .'q.lora_A.weight'., whose mean is not"):
        planned([one, one])
    assert planned([one]).rows


@pytest.mark.parametrize("tensor", [torch.ones(2, 2).to_sparse(), torch.ones(2, 2, device="meta")])
def test_tensors_that_hold_no_plain_numbers_are_refused(tensor):
    with pytest.raises(ws.WeightspaceError, match="'w' is .*; give dense tensors"):
        ws.merge([{"w": torch.ones(2, 2)}, {"w": tensor}])
