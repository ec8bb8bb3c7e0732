"""Recipes in mergekit's YAML: what is read, what each tensor gets, and every refusal with its line."""

import pytest
import torch

import weightspace as ws
from weightspace.merging.folders.mergekit_file import recipe_of
from weightspace.merging.folders.mergekit_plan import plan_of
from weightspace.merging.folders.mergekit_settings import KNOWN
from weightspace.merging.methods import METHODS
from weightspace.merging.recipe import merged

NAMES = ("attn.weight", "mlp.weight")


def net(seed, layers=3):
    draw = torch.Generator().manual_seed(seed)
    made = {"model.embed_tokens.weight": torch.randn(5, 2, generator=draw)}
    for k in range(layers):
        made |= {f"model.layers.{k}.{name}": torch.randn(2, 2, generator=draw) for name in NAMES}
    return made | {
        "model.norm.weight": torch.randn(2, generator=draw),
        "lm_head.weight": torch.randn(5, 2, generator=draw),
    }


@pytest.fixture
def read(tmp_path):
    def reading(text, seed=0, **sizes):
        for name in "abc":
            (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / "m.yml").write_text(text)
        found = recipe_of(tmp_path / "m.yml")
        sources = [net("abc".index(path.name), sizes.get(path.name, 3)) for path in found.models]
        return plan_of(found, sources, seed), {path.name: net for path, net in zip(found.models, sources, strict=True)}

    return reading


def tensors(plan):
    """What a plan says, computed as it stands."""
    made = {}
    for row in plan.rows:
        (k, name), *_ = row.sources
        found = merged(plan.part(row), row.recipe, row.depth) if row.action == "merged" else plan.parents[k][name]
        made[row.name] = found.to(row.dtype)
    return made


def test_linear_by_model(read):
    text = """
models:
  - model: a
    parameters: {weight: 3}
  - model: b
    parameters: {weight: 1}
merge_method: linear
dtype: float16
"""
    found, nets = read(text)
    for name, tensor in tensors(found.plan).items():
        assert torch.equal(tensor, (nets["a"][name] * 0.75 + nets["b"][name] * 0.25).half()), name
    assert found.changes.dtype == torch.float16 and found.changes.layers is None and found.changes.rows is None


def test_gradients_filters_and_who_comes_first(read):
    """Those of a model come before those of all; of filters the first that fits; if none does, the next are asked."""
    text = """
base_model: c
models:
  - model: a
    parameters:
      weight:
        - filter: mlp
          value: [0, 1]
        - filter: norm
          value: 7
  - model: b
    parameters:
      weight: [1.0, 0.5, 0.0]
  - model: c
parameters:
  weight: 0.25
  lambda: 2
merge_method: task_arithmetic
"""
    found, nets = read(text)
    rows = {row.name: row for row in found.plan.rows}
    expected = {
        "model.layers.0.mlp.weight": (0.0, 1.0),
        "model.layers.1.mlp.weight": (0.5, 0.5),
        "model.layers.2.mlp.weight": (1.0, 0.0),
        "model.layers.1.attn.weight": (0.25, 0.5),
        "model.norm.weight": (7.0, 1.0),
        "lm_head.weight": (0.25, 1.0),
    }
    assert {name: rows[name].recipe.weights for name in expected} == expected
    assert all(row.recipe.options["scale"] == 2 and row.base == row.name for row in rows.values())
    assert rows["model.layers.2.mlp.weight"].depth == 1 and rows["lm_head.weight"].depth == 0
    name = "model.layers.1.attn.weight"
    base = nets["c"][name]
    dense = base + 2 * (0.25 * (nets["a"][name] - base) + 0.5 * (nets["b"][name] - base))
    assert torch.allclose(tensors(found.plan)[name], dense, atol=1e-6)


def test_layers_are_stacked(read):
    text = """
slices:
  - sources:
    - {model: a, layer_range: [0, 2]}
  - sources:
    - model: b
      layer_range: [1, 3]
      parameters:
        scale:
          - filter: mlp
            value: 0.5
          - value: 1
merge_method: passthrough
"""
    found, nets = read(text)
    made = tensors(found.plan)
    assert list(found.changes.layers) == [0, 1, 1, 2]
    for k, (name, layer) in enumerate((("a", 0), ("a", 1), ("b", 1), ("b", 2))):
        assert torch.equal(made[f"model.layers.{k}.attn.weight"], nets[name][f"model.layers.{layer}.attn.weight"])
    assert torch.equal(made["model.layers.3.mlp.weight"], nets["b"]["model.layers.2.mlp.weight"] / 2)
    assert torch.equal(made["model.embed_tokens.weight"], nets["a"]["model.embed_tokens.weight"])
    assert torch.equal(made["lm_head.weight"], nets["b"]["lm_head.weight"])
    assert torch.equal(made["model.norm.weight"], nets["b"]["model.norm.weight"])
    assert len(made) == 4 * 2 + 3


def test_slices_are_merged_with_depths_of_their_own(read):
    text = """
slices:
  - sources:
      - {model: a, layer_range: [0, 3]}
      - {model: b, layer_range: [1, 4]}
    parameters: {weight: [0, 1]}
  - sources: [{model: a, layer_range: [2, 3], parameters: {weight: 5}}]
merge_method: linear
parameters: {normalize: false}
"""
    found, nets = read(text, b=4)
    made = tensors(found.plan)
    for k, weight in enumerate((0, 0.5, 1)):
        left, right = (nets[n][f"model.layers.{k + shift}.mlp.weight"] for n, shift in (("a", 0), ("b", 1)))
        assert torch.allclose(made[f"model.layers.{k}.mlp.weight"], weight * (left + right))
    assert torch.allclose(made["model.layers.3.mlp.weight"], 5 * nets["a"]["model.layers.2.mlp.weight"])
    assert [row.depth for row in found.plan.rows if "mlp" in row.name] == [0, 0.5, 1, 1]


def test_a_model_stacked_whole_is_the_model(read):
    text = "merge_method: passthrough\nslices: [{sources: [{model: a, layer_range: [0, 3]}]}]"
    found, nets = read(text)
    made = tensors(found.plan)
    assert made.keys() == nets["a"].keys() and all(torch.equal(made[name], nets["a"][name]) for name in made)


EVERY = {
    "slerp": "base_model: a\nmodels: [{model: a}, {model: b}]\nparameters: {t: [0, 0.5, 1]}",
    "linear": "models: [{model: a}, {model: b}]\nparameters: {weight: 1}",
    "nuslerp": "models: [{model: a}, {model: b}]\nparameters: {weight: 0.5}",
    "multislerp": "models: [{model: a}, {model: b}]\nparameters: {weight: 0.5}",
    "karcher": "models: [{model: a}, {model: b}]\nparameters: {max_iter: 5}",
    "passthrough": "models: [{model: a}]",
    "nearswap": "base_model: c\nmodels: [{model: a}]\nparameters: {t: 0.1}",
    "arcee_fusion": "base_model: c\nmodels: [{model: a}]",
    "model_stock": "base_model: c\nmodels: [{model: a}, {model: b}]",
}
SUMS = "base_model: c\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 0.5, density: 0.5, int8_mask: true}"


@pytest.mark.parametrize("method", [name for name in KNOWN if name in METHODS or name == "passthrough"])
def test_every_method_is_laid_out_and_computed(method, read):
    text = EVERY.get(method, SUMS if "density" in KNOWN[method].names() else SUMS.replace("density: 0.5, ", ""))
    if method == "sce":
        text = "base_model: c\nmodels: [{model: a}, {model: b}]\nparameters: {select_topk: 0.5}"
    found, _ = read(f"merge_method: {method}\n{text}")
    assert all(tensor.isfinite().all() for tensor in tensors(found.plan).values())
    assert {row.recipe.method for row in found.plan.rows if row.action == "merged"} <= {method}


@pytest.mark.parametrize("method", ["ties", "dare_linear", "dare_ties", "della", "breadcrumbs", "breadcrumbs_ties"])
def test_a_density_of_each_model(method, read):
    """The same number for all as one by one; and with a weight of one alone, as that model's own alone."""
    text = f"merge_method: {method}\nbase_model: c\nmodels:\n"
    one = (
        text
        + "- {model: a, parameters: {weight: W, density: 0.5}}\n- {model: b, parameters: {weight: 1, density: D}}\n"
    )
    same, apart, alone = (
        tensors(read(one.replace("W", w).replace("D", d))[0].plan)
        for w, d in (("1", "0.5"), ("1", "0.8"), ("0", "0.8"))
    )
    given = tensors(read(text + "- {model: a}\n- {model: b}\nparameters: {weight: 1, density: 0.5}")[0].plan)
    other = tensors(
        read(text + "- {model: a, parameters: {weight: 0}}\n- {model: b}\nparameters: {weight: 1, density: 0.8}")[
            0
        ].plan
    )
    for name, tensor in given.items():
        assert torch.equal(tensor, same[name]) and torch.equal(other[name], alone[name])
    assert any(not torch.equal(apart[name], same[name]) for name in same)


@pytest.mark.skipif("slerp" not in METHODS, reason="slerp")
def test_slerp_goes_from_the_base_to_the_other(read):
    for order in ("{model: a}, {model: b}", "{model: b}, {model: a}", "{model: b}"):
        found, nets = read(f"merge_method: slerp\nbase_model: a\nmodels: [{order}]\nparameters: {{t: [0, 1]}}")
        made = tensors(found.plan)
        assert torch.allclose(made["model.layers.0.mlp.weight"], nets["a"]["model.layers.0.mlp.weight"], atol=1e-6)
        assert torch.allclose(made["model.layers.2.mlp.weight"], nets["b"]["model.layers.2.mlp.weight"], atol=1e-6)


WRONG = {
    "merge_method: linear": "m.yml, line 1: there are no models",
    "models: [{model: a}]": "m.yml, line 1: there is no merge_method",
    "merge_method: magic\nmodels: [{model: a}]": "line 1: merge_method 'magic' is not one of linear",
    "merge_method: linear\nmodels: [{model: a}]\nmodel: 3": "line 3: 'model' is not known here; it may be merge_method",
    "merge_method: linear\nmodels:\n- model: a\n  parameters:\n    wieght: 1": "line 5: 'wieght' is not known here",
    "merge_method: linear\nmodels:\n- model: org/big": "line 3: 'org/big' is no folder here; download it (hf download",
    "merge_method: linear\nmodels:\n- model: a+b": "line 3: 'a+b' is a model with an adapter (model+lora); weightspace",
    "merge_method: linear\nmodels:\n- {model: a, parameters: {weight: much}}": "line 3: 'much' is no finite number",
    "merge_method: linear\nmodels:\n- {model: a, parameters: {weight: .inf}}": "line 3: inf is no finite number",
    "merge_method: linear\nmodels: [{model: a}]\nslices: []": "line 1: there are both models and slices",
    "merge_method: linear\nmodels: [{model: a}]\ndtype: int4": "line 3: dtype 'int4'; it may be bfloat16",
    "merge_method: linear\nmodules: {x: 1}": "line 2: modules are not read; give models or slices",
    "merge_method: linear\nmodels: 3": "line 2: 3 is no list",
    "merge_method: linear\nmerge_method: ties": "m.yml: line 2: 'merge_method' stands twice",
    "merge_method: !!python/object:os.system x": "line 1: a value of the kind 'tag:yaml.org,2002:python",
    "merge_method: [": "no YAML",
    "merge_method: linear\nslices:\n- sources:\n  - {model: a, layer_range: [2, 1]}": "line 4: the layers [2, 1]; give",
    "merge_method: linear\nslices:\n- sources:\n  - {model: a}": "line 4: a source without layer_range",
    "merge_method: linear\nslices:\n- {sources: [{model: a, layer_range: [0, 1]}], residual_weight: 1}": "line 3: 'res",
    "merge_method: linear\nmodels: [{model: a}]\ntokenizer: {source: base, tokens: {x: {from: a}}}": "line 3: 'from'",
    "merge_method: linear\nmodels: [{model: a}]\nchat_template: chatml": "line 3: chat_template 'chatml'; give auto",
    "merge_method: linear\nmodels: [{model: a}]\ntokenizer_source: union\ntokenizer: {}": "give one of them",
    "merge_method: linear\nmodels: [{model: a, parameters: {normalize: 1}}]": "normalize holds for all models together",
    "merge_method: linear\nmodels: [{model: a}, {model: b}]": "no weight is given for 'model.embed_tokens.weight' of a",
    "merge_method: linear\nslices: [{sources: [{model: a, layer_range: [0, 9], parameters: {weight: 1}}]}]": "has 3",
    "merge_method: passthrough\nmodels: [{model: a}, {model: b}]": "passthrough takes one model for each tensor, not 2",
}


@pytest.mark.parametrize("text", WRONG, ids=range(len(WRONG)))
def test_what_is_wrong_is_named_with_its_line(text, read):
    with pytest.raises(ws.WeightspaceError) as error:
        read(text)
    assert WRONG[text] in str(error.value) and "\n" not in str(error.value)


def test_references_that_grow_and_deep_nests_are_refused(read):
    grown = "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
    for one, other in zip("bcdefg", "abcdef", strict=True):
        grown += f"{one}: &{one} [{', '.join([f'*{other}'] * 10)}]\n"
    for text, words in ((grown, "more than 20,000 values"), ("a: &a [*a]", ""), ("[" * 5000, "")):
        with pytest.raises(ws.WeightspaceError) as error:
            read(text)
        assert words in str(error.value)


def test_models_of_other_shapes_and_missing_tensors(read):
    found, _ = read("merge_method: linear\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 1}", b=2)
    rows = {row.name: row for row in found.plan.rows}
    lone = rows["model.layers.2.mlp.weight"]
    assert (lone.action, lone.why) == ("copied", "not in 'b'") and rows["model.layers.1.mlp.weight"].action == "merged"
