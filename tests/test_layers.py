import ast
import importlib
import sys
import warnings
from pathlib import Path

import pytest

import weightspace as ws

HOUSE = Path(__file__).parents[1] / "src" / "weightspace"
WINGS = """contents net jobs checkpoint linear constraints task graph inside equivariance curvature metric codes path
    trust risk symmetry training flows merging atlas commands pages demo web cli __main__"""
FILES = {
    "net": "errors seeds state differentiable public cost plain weights names net average inputs growing model",
    "jobs": "progress calls processes cluster engine",
    "checkpoint": "files refusal locate pickled reader adapter architecture stored writer",
    "linear": "assignment bits estimate krylov norms traces determinants operator",
    "constraints": "form shared matrices ordered fourier constraining",
    "task": """examples formats losses measures outputs task classification texts datasets data_files digest goal
        homotopies processes""",
    "graph": """atoms pretrained rules.call rules.contraction rules.part rules.shape rules.reduction rules.write rules
        trace follow proportional alike layer on_data""",
    "inside": "image_functions representation calls units counts path_overlap",
    "equivariance": "finite_group equivariance layers",
    "curvature": "gradients linearised outputs curvature fisher tangent_kernel layered",
    "metric": """distance across_architectures metric optim steps per_layer null_space solvers
        preconditioned pullback geodesic""",
    "codes": """langevin nuisance posterior encoding quadratic attribution scores structure_functions store sweep
        task_map transfer weight_information""",
    "path": "divergence path diffusion barrier loss_plane trail",
    "trust": """bounds.rounding bounds.rule bounds.maps bounds.norms bounds.pointwise bounds.shapes bounds.sums
        bounds.twins bounds.walk bounds.certificate expected_displacement relative perturbation sensitivity""",
    "risk": "inequalities fit pac_bound",
    "symmetry": """axis matrix fold layout element group moved balance upright members canonical probe reach scale
        sign alone verify turns pairs bases parts exchanges read readers larger widths depths constrained saved
        align.parity align.terms align.ascent align.spectral align.relax align.merge align.refit align.repair
        align.score align.moves align.refine align.orders align.match align.features align.widths symmetry quotient
        verdict""",
    "training": "deficits critical_periods recording recorder adapters points averages",
    "flows": """batches anchors attacks ensembles goals sharpness forms pruning result options predictor stepper cycles
        morphing narrowing""",
    "merging": """part schedule settings thresholds elementwise sparse directions spectral methods recipe names plan
        stream merging networks weighing tuning folders.yaml_text folders.tokens folders.vocabulary
        folders.configuration folders.card folders.tokenizer_files folders.folder adapters.low_rank
        adapters.lora_folder adapters.combined adapters.adapted adapters.extracted advice
        folders.layers folders.mergekit_settings folders.mergekit_file folders.mergekit_plan""",
    "atlas": """tables migrations.v0001 migrations.v0002 migrations upgrade catalogue content objects records
        comparisons scan members sources ways holdings folders side_by_side sketches orbits atlas halving question
        starts tried asked by_distance nearest_start nearby greedy_averages gram neighbourhoods compared independence
        relatives averages arborescence relations renumbered lineage families barriers""",
    "commands": """progress data scores settings workspace compare across_architectures align merge merge_widths
        merge_parents merge_on_data merge_recipe extract capacity walk perturb widen project stability inform tasks
        certify watch paths nearest atlas atlas_map last_map atlas_asked advice doctor""",
    "pages": """page style compare across_architectures align merge merge_recipe walk project capacity stability inform
        tasks certify paths watch critical_periods atlas nearest advice""",
    "web": """playground.fields playground.reply playground.points playground.state playground.messages
        playground.learner playground.networks playground.pictures playground.shaking playground.pair
        playground.walking playground.insight playground.generator playground.exercises playground.session
        guard served answer members layers child look work spawn queue uploads kinds reports jobs atlas_routes
        playing app server""",
    "cli": """next_step options words show read advice compare align merge extract walk perturb widen project capacity
        stability inform certify tasks watch paths atlas atlas_sets nearest serve doctor""",
}
PARTS = {
    "graph.rules": "rules.",
    "trust.bounds": "bounds.",
    "symmetry.align": "align.",
    "atlas.migrations": "migrations.",
    "merging.adapters": "adapters.",
    "merging.folders": "folders.",
    "web.playground": "playground.",
}  # wings of wings
ORDER = [
    name
    for wing in WINGS.split()
    for name in ([f"{wing}.{file}" for file in FILES[wing].split()] if wing in FILES else []) + [wing]
]


def sources():
    files = {".".join(p.relative_to(HOUSE).with_suffix("").parts): p for p in HOUSE.rglob("*.py")}
    return {name.removesuffix(".__init__"): p.read_text() for name, p in files.items() if name != "__init__"}


def test_imports_run_one_way():
    found = sources()
    assert sorted(found) == sorted({*ORDER, *PARTS}), "a file without a place in the order, or a place without its file"
    assert not {n.split(".")[-1] for n in found} & {"utils", "core", "common", "base", "helpers"}
    assert not [bad for name, source in found.items() if name in ORDER for bad in backwards(name, source)]


def test_wings_have_no_cycle_between_them():
    """Each wing imports from wings before it alone: files in order could still go back and forth."""
    order = WINGS.split()
    for name, source in sources().items():
        for used in {u.partition(".")[0] for node in imports(ast.parse(source)) for u in _used(node)}:
            assert order.index(used) <= order.index(name.partition(".")[0]), f"{name} imports {used}"


def test_a_wrong_import_is_seen():
    assert [*backwards("net.net", "from weightspace.symmetry import read")] == ["net.net imports symmetry.read"]
    assert [*backwards("task.task", "from weightspace import cli")] == ["task.task imports cli"]
    late = "def f():\n    from weightspace.net.net import Net"
    assert [*backwards("path.path", late)] == ["path.path imports net.net"]
    for other in ("from . import net", "import weightspace.net"):
        assert [*backwards("path.path", other)] == ["path.path imports ?"]


def test_a_wing_holds_its_sentence_and_a_table_of_names():
    for wing in WINGS.split():
        if not (HOUSE / wing).is_dir() or wing == "cli":
            continue
        sentence, *rest = ast.parse((HOUSE / wing / "__init__.py").read_text()).body
        assert ast.unparse(sentence).strip("'\"").count(".") == 1, wing
        if rest:
            assert [type(node) for node in rest] == [ast.ImportFrom, ast.Assign], wing
            assert ast.unparse(rest[1]).startswith("__getattr__, __dir__, __all__ = handed_on(__name__, {"), wing


@pytest.mark.parametrize("wing", ws._CONTENTS)
def test_every_name_that_is_handed_on_is_there_and_hides_no_file(wing):
    """An import of the file would put the module in the place of the function."""
    package = importlib.import_module(f"weightspace.{wing}")
    files = {path.stem for path in (HOUSE / wing).iterdir()}
    assert not files & {*package.__all__} and not {*ws._CONTENTS} & {*package.__all__}
    for name in package.__all__:
        assert getattr(package, name) is not None
    for name in ws._CONTENTS[wing]:
        assert getattr(ws, name) is getattr(package, name)


@pytest.mark.parametrize("old", ws._MOVED)
@pytest.mark.filterwarnings("ignore:weightspace.[a-z.]* is now in")
def test_names_of_the_last_release_warn_and_lead_to_the_same(old):
    for name in [n for n in sys.modules if f"{n}.".startswith(f"weightspace.{old}.")]:
        del sys.modules[name]
    vars(ws).pop(old, None)
    if "." not in old:
        with pytest.warns(DeprecationWarning, match=f"weightspace.{old} is now in weightspace."):
            assert getattr(ws, old)
    with pytest.warns(DeprecationWarning, match=f"weightspace.{old} is now in weightspace.*take its names from there"):
        module = importlib.import_module(f"weightspace.{old}")
    for file in ws._MOVED[old].split():
        there = importlib.import_module(f"weightspace.{file}")
        for name in getattr(there, "__all__", ()):
            found = [getattr(importlib.import_module(f"weightspace.{f}"), name, None) for f in ws._MOVED[old].split()]
            assert any(getattr(module, name) is one for one in found)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = module.nothing


def test_what_was_never_there_is_not_there():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ws.optim.Fromage is ws.metric.Fromage
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("weightspace.nothing")


@pytest.mark.filterwarnings("ignore:weightspace.* is now in")
def test_names_that_were_given_up_warn_and_lead_to_what_took_their_place():
    for place, old, now in (
        (ws.path, "ActionCost", "Cost"),
        (ws.diffusion, "ActionCost", "Cost"),
    ):
        with pytest.warns(DeprecationWarning, match=f"{old} is now weightspace.net.{now}; take that"):
            assert getattr(place, old) is getattr(ws.net, now)
        assert old not in dir(ws.path)


def imports(tree):
    return [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]


def backwards(name, source):
    tree, wing = ast.parse(source), name.partition(".")[0]
    functions = (f for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) and wing != "cli")
    late = {node for function in functions for node in ast.walk(function)}
    for node in imports(tree):
        for used in _used(node):
            if used not in ORDER[: ORDER.index(name)] or node in late:
                yield f"{name} imports {used}"


def _used(node):
    if isinstance(node, ast.Import) or node.level:
        return {"?" for alias in node.names if "weightspace" in alias.name or getattr(node, "level", 0)}
    home, _, room = str(node.module).partition(".")
    inside = [f"{room}.{alias.name}".strip(".") for alias in node.names] if home == "weightspace" else []
    return {name if name in ORDER else room for name in inside} - {""}


@pytest.mark.parametrize(
    "old", ["codes.StructureError", "risk.RiskError", "task.GoalError", "structure.StructureError", "pac.RiskError"]
)
@pytest.mark.filterwarnings("ignore:weightspace.[a-z]* is now in:DeprecationWarning")
def test_an_error_that_nobody_caught_by_its_name_is_the_one_error_now(old):
    wing, _, name = old.partition(".")
    with pytest.warns(DeprecationWarning, match="is now weightspace.net.WeightspaceError"):
        assert getattr(getattr(ws, wing), name) is ws.WeightspaceError
