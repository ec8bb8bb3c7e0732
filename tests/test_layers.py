import ast
from pathlib import Path

HOUSE = Path(__file__).parents[1] / "src" / "weightspace"
ROOMS = """net model | examples task datasets entry pickled checkpoint architecture | estimators operator spectral
    activation crossing updates | symmetry.index symmetry.rules.call symmetry.rules.shape symmetry.rules.part
    symmetry.rules.contraction symmetry.rules.reduction symmetry.rules symmetry.trace symmetry.group
    symmetry.probe symmetry.verify symmetry.reach symmetry.scale symmetry.sign symmetry.read symmetry.certificate
    symmetry.balance symmetry.canonical symmetry.assignment symmetry.ascent symmetry.relax symmetry.features
    symmetry.match symmetry.merge symmetry.layer symmetry.refit symmetry.repair symmetry | goals kernel modes layered
    metric pullback geodesic distance representation bounds displacement perturbation sensitivity fisher likelihood
    curvature posterior quadratic langevin attribution description envelope structure transfer scores risk
    descent pac acting equivariance nuisance | path diffusion escape trail recording surface ensembles pruning
    flows optim dynamics adapters periods | compare workbench walk page report watching wayside trial inquiry
    answers demo text cli.options cli.shown cli.networks cli.moves cli.questions cli __main__"""
ORDER = ROOMS.replace("|", "").split()
LATE = {("symmetry", "path")}  # a barrier is measured along a path; but for this, only commands import late


def test_imports_run_one_way():
    files = {".".join(p.relative_to(HOUSE).with_suffix("").parts): p for p in HOUSE.rglob("*.py")}
    sources = {name.removesuffix(".__init__"): p.read_text() for name, p in files.items() if name != "__init__"}
    assert sorted(sources) == sorted(ORDER), "a module without a room, or a room without its module"
    assert not {n.split(".")[-1] for n in sources} & {"utils", "core", "common", "base", "helpers"}
    assert not [bad for name, source in sources.items() for bad in backwards(name, source)]


def test_a_wrong_import_is_seen():
    assert [*backwards("net", "from weightspace.symmetry import read")] == ["net imports symmetry.read"]
    assert [*backwards("task", "from weightspace import cli, net")] == ["task imports cli"]
    assert [*backwards("path", "def f():\n    from weightspace.net import Net")] == ["path imports net"]
    for other in ("from . import net", "import weightspace.net"):
        assert [*backwards("path", other)] == ["path imports ?"]


def backwards(name, source):
    tree, home = ast.parse(source), name.partition(".")[0]
    functions = (f for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) and home != "cli")
    late = {node for function in functions for node in ast.walk(function)}
    for node in (n for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom)):
        for used in _used(node):
            early = used in ORDER[: ORDER.index(name)] and node not in late
            if not early and not (node in late and (name, used) in LATE):
                yield f"{name} imports {used}"


def _used(node):
    if isinstance(node, ast.Import) or node.level:
        return {"?" for alias in node.names if "weightspace" in alias.name or getattr(node, "level", 0)}
    home, _, room = str(node.module).partition(".")
    inside = [f"{room}.{alias.name}".strip(".") for alias in node.names] if home == "weightspace" else []
    return {name if name in ORDER else room for name in inside} - {""}
