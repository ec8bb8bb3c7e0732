"""Whatever is remembered, in memory or on disk, is of the same question, or is not used.

`MEMORIES` names every memory of the house and the law that it stands under; the source is read for those that have
none. A law changes one thing at a time that an answer depends on: the answer is then that of fresh objects, or refused.
"""

import ast
import copy
import json
import re
from dataclasses import dataclass, field, replace
from functools import partial, wraps
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import weightspace as ws
from weightspace.checkpoint import files, reader, refusal, writer
from weightspace.curvature.tangent_kernel import kernel
from weightspace.flows import anchors
from weightspace.graph.on_data import graph_of
from weightspace.inside import counts, representation
from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net
from weightspace.symmetry.probe import Probe
from weightspace.task import digest
from weightspace.task.digest import Frame
from weightspace.task.task import Task
from weightspace.training import critical_periods, deficits
from weightspace.trust.bounds import rounding

HOUSE = Path(__file__).parents[2] / "src" / "weightspace"
CACHES = {"lru_cache", "cache", "cached_property"}
CONTAINERS = {
    "dict",
    "list",
    "set",
    "defaultdict",
    "OrderedDict",
    "WeakKeyDictionary",
    "WeakValueDictionary",
    "Counter",
}
CHANGES = {"setdefault", "update", "add", "append", "extend", "insert", "__setitem__"}
RESUMED = {"folder", "file", "trail", "rows"}


def memories(source):
    """Names of what a module remembers: caches, containers that functions fill, attributes set late, resumed files."""
    tree = ast.parse(source)
    filled = {*_filled(tree)}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and {_name(d) for d in node.decorator_list} & CACHES:
            yield node.name
    for node in tree.body:
        for name in _bound(node):
            if name in filled:
                yield name
        if isinstance(node, ast.FunctionDef):
            yield from (f"{node.name}({name})" for name in _resumed(node))
        if isinstance(node, ast.ClassDef):
            yield from (f"{node.name}.{name}" for name in _of_class(node))


def _of_class(node):
    filled = {*_filled(node)}
    kept = {name for part in node.body for name in _bound(part)}
    for function in (f for f in node.body if isinstance(f, ast.FunctionDef)):
        first = function.name in ("__init__", "__new__")
        for part in ast.walk(function):
            for target in getattr(part, "targets", [getattr(part, "target", None)]):
                if isinstance(target, ast.Attribute) and _name(target.value) == "self":
                    kept |= {target.attr} if first and _container(getattr(part, "value", None)) else set()
                    late = not first and target.attr.startswith("_") and not isinstance(part, ast.AugAssign)
                    kept, filled = (kept | {target.attr}, filled | {target.attr}) if late else (kept, filled)
        if first and not node.name.startswith("_"):
            yield from (f"__init__({name})" for name in _resumed(function))
    yield from sorted(kept & filled)


def _filled(tree):
    """Names, and attributes, into which some function of the tree writes."""
    for function in (f for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) and f.name != "__init__"):
        for node in ast.walk(function):
            targets = getattr(node, "targets", [getattr(node, "target", None)])
            yield from (_last(t.value) for t in targets if isinstance(t, ast.Subscript))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CHANGES:
                yield _last(node.func.value)


def _bound(node):
    value = getattr(node, "value", None)
    if isinstance(node, ast.Assign | ast.AnnAssign) and _container(value):
        yield from (_last(t) for t in getattr(node, "targets", [getattr(node, "target", None)]))


def _container(value):
    if isinstance(value, ast.Dict | ast.List | ast.Set):
        return True
    if isinstance(value, ast.Call) and _name(value.func) == "field":
        return any(k.arg == "default_factory" for k in value.keywords)
    called = getattr(value.func, "value", value.func) if isinstance(value, ast.Call) else None
    return called is not None and bool({_last(called), _name(value.func)} & CONTAINERS)


def _resumed(function):
    """Arguments that name what an earlier run may have left."""
    arguments = [*function.args.args, *function.args.kwonlyargs]
    kinds = {a.arg: ast.unparse(a.annotation) if a.annotation else "" for a in arguments}
    named = [
        name for name, kind in kinds.items() if name in RESUMED and not {"Tensor", "int"} & {*re.findall(r"\w+", kind)}
    ]
    return named if not function.name.startswith("_") or function.name == "__init__" else []


def _name(node):
    node = node.func if isinstance(node, ast.Call) else node
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def _last(node):
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


# ------------------------------------------------------------------ the table

BUILT = "filled while the object is made, from what it is made of"
WITHIN = "of one call, whose arguments do not change"
WRITTEN = "written, and not taken up by another run"
MEMORIES = {
    "cli.__init__._program": "the commands, all of which are there before the first is called",
    "checkpoint.locate.left_in(file)": "reads what is there at every call",
    "checkpoint.locate.left_in(folder)": "reads what is there at every call",
    "task.formats.find_file(folder)": "reads what is there at every call",
    "atlas.scan.scan(folder)": "reads what is there at every call",
    "atlas.scan.is_path(folder)": "reads what is there at every call",
    "curvature.linearised._Batches.held": "of one linearisation, whose graph is kept",
    "graph.on_data._graphs": "test_a_graph_is_of_these_inputs_and_this_architecture",
    "metric.pullback.Pullback._last": "test_a_factorisation_is_of_this_network_and_these_examples",
    "metric.pullback.Pullback._seen": "test_a_factorisation_is_of_this_network_and_these_examples",
    "flows.anchors.Hold._kept": "test_an_anchor_is_asked_again_where_something_changed_in_place",
    "codes.sweep.structure_function(folder)": "test_sweeps_in_a_folder_are_of_this_question",
    "codes.transfer.task_distance(file)": "test_codes_in_a_file_are_of_this_question",
    "codes.transfer.task_distances(file)": "test_codes_in_a_file_are_of_this_question",
    "codes.store.Store.found": "test_codes_in_a_file_are_of_this_question",
    "codes.store.Store.more": "test_sweeps_in_a_folder_are_of_this_question",
    "codes.transfer._Maker._forms": "test_networks_of_other_forms_are_not_made_alike",
    "commands.tasks.tasks(file)": "test_codes_in_a_file_are_of_this_question",
    "flows.morphing._Along.stages": "the stages of one morph, in its order",
    "flows.stepper.flow(trail)": "test_a_path_in_a_folder_is_of_this_question",
    "flows.stepper._Run._history": "test_a_path_in_a_folder_is_of_this_question",
    "flows.stepper._Run._saved": "test_a_path_in_a_folder_is_of_this_question",
    "path.trail.Trail.__init__(folder)": "test_a_path_in_a_folder_is_of_this_question",
    "path.trail.Trail.index": "test_a_path_in_a_folder_is_of_this_question",
    "training.points.Points.kept": "the points of one run, which updates and saved states hand in: see test_averages",
    "training.critical_periods.critical_period(rows)": "test_rows_are_of_this_training",
    "curvature.curvature._seen": "test_a_verdict_on_derivatives_is_of_this_form_of_inputs",
    "curvature.linearised.back": "of one linearisation, whose graph is kept",
    "curvature.linearised._trusted": "test_a_verdict_on_derivatives_is_of_this_form_of_inputs",
    "net.net._frozen": "the flags of an architecture, which is a copy of its own and does not change",
    "net.state._Process.owners": "what threads have entered and not left yet",
    "net.differentiable._seen": "the modules of an architecture, which is a copy of its own and does not change",
    "net.differentiable._norms": "the modules of an architecture, which is a copy of its own and does not change",
    "net.differentiable._original": "torch's own functions, while they are replaced",
    "task.examples.Passes.seen": "the first pass, beside which the others are held: tests/test_cutting.py",
    "checkpoint.files.sweep(folder)": WRITTEN,
    "curvature.linearised.Linearised._forward": WITHIN,
    "curvature.layered._back": "of one network on the examples of one setting, whose graph is kept",
    "curvature.layered._rules": "of one network on the examples of one setting, whose graph is kept",
    "curvature.layered.inner": "of one layer's inputs",
    "metric.steps._numbers": "of modes that do not change",
    "flows.predictor.Predictor._near": "of the network that a step left, compared by identity; else made anew",
    "flows.predictor.Predictor._apart": "of one flow's architecture, task and metric",
    "trust.bounds.rounding._of": "test_caches_without_hidden_arguments",
    "trust.bounds.rule.Call.known": WITHIN,
    "trust.bounds.twins.Twins._first": WITHIN,
    "trust.bounds.walk._Batch.env": WITHIN,
    "trust.bounds.walk._Batch.given": WITHIN,
    "trust.bounds.walk._Batch.learnt": WITHIN,
    "trust.bounds.walk._Batch.own": WITHIN,
    "atlas.compared.Compared._known": "by kind, contents, settings and version of the code: see test_compared",
    "atlas.compared.Compared._new": WRITTEN,
    "atlas.compared.Compared.notes": WITHIN,
    "atlas.relatives._Seen.casts": WITHIN,
    "atlas.relatives._Seen.grids": WITHIN,
    "atlas.relatives._Seen.kurtosis": WITHIN,
    "atlas.relatives._Seen.norms": WITHIN,
    "atlas.relatives._Seen.on_grid": WITHIN,
    "atlas.relatives._Seen.products": WITHIN,
    "atlas.relatives._Seen.shrunk": WITHIN,
    "atlas.relatives._Seen.tails": WITHIN,
    "atlas.relatives._Seen.zeros": WITHIN,
    "symmetry.canonical._Parities.rows": WITHIN,
    "symmetry.align.parity._Elimination.pivots": WITHIN,
    "task.losses.Loss.settings": BUILT,
    "task.task.Task._beside": "the batches of one pass",
    "trust.bounds.rule.RULES": "a register that modules fill while they are imported",
    "net.arguments._CONVERSIONS": "a register that modules fill while they are imported",
    "graph.rules.call.KEEPERS": "a register that modules fill while they are imported",
    "graph.rules.call.MOVERS": "a register that modules fill while they are imported",
    "graph.rules.call.READERS": "a register that modules fill while they are imported",
    "task.examples.order_of": "test_caches_without_hidden_arguments",
    "inside.counts.integer_product": "test_caches_without_hidden_arguments",
    "inside.representation._onednn": "test_caches_without_hidden_arguments",
    "task.digest._way": "test_caches_without_hidden_arguments",
    "task.digest._code": "test_caches_without_hidden_arguments",
    "task.digest._own": "test_caches_without_hidden_arguments",
    "codes.structure_functions.vertices": "test_caches_without_hidden_arguments",
    "codes.structure_functions.checks": "test_caches_without_hidden_arguments",
    "training.recorder.Recorder.__init__(file)": "a log that grows: tests/training/test_recorder.py",
    "training.recording.Writer.__init__(file)": "a log that grows: tests/training/test_recorder.py",
    "training.recording.Recording.__init__(file)": "reads what is there at every call",
    "training.recorder.Recorder._last": "the records of one run, in its order",
    "training.recorder.Recorder._nets": "the records of one run, in its order",
    "training.recorder.Recorder._start": "the records of one run, in its order",
    "training.recorder.Recorder.failures": "the records of one run, in its order",
    "training.recorder.Recorder.records": "the records of one run, in its order",
    "commands.paths.paths(file)": "reads what is there at every call",
    "inside.units.gates(file)": WRITTEN,
    "inside.units.features(folder)": WRITTEN,
    "web.playground.generator.pictures_of(file)": "reads what is there at every call",
    "demo.run(folder)": WRITTEN,
    "metric.metric.Adam._moments": "what this metric has seen, which is what it is: begin() forgets",
    "net.weights.Weights._flat": "the numbers themselves",
    "net.weights.Weights._views": "the numbers themselves",
    "task.task.Task._metric": "the default, by the dtype of the task's own labels",
    "task.digest._Digest.at": WITHIN,
    "task.digest._Digest.held": WITHIN,
    "task.digest._Digest.met": WITHIN,
    "checkpoint.pickled._Audit.claimed": WITHIN,
    "symmetry.align.ascent.Matching.products": WITHIN,
    "symmetry.balance._Slice._kept": WITHIN,
    "symmetry.align.score.Score._divergence": WITHIN,
    "symmetry.align.score.Score._ends": WITHIN,
    "path.divergence.Divergence._kept": "of the inputs and weights that it was made for: tests/path/test_divergence.py",
    "path.divergence.Divergence._look": "the loss of the task, and the shape of the outputs of its ends",
    "symmetry.align.match._Search.found": WITHIN,
    "symmetry.read.Draft.pinned": WITHIN,
    "graph.rules.call.Call.hidden": WITHIN,
    "symmetry.sign._Op._seen": WITHIN,
    "symmetry.sign._Op._differs": WITHIN,
    "symmetry.sign._Op._places": WITHIN,
    "symmetry.scale._Leaves.hooks": WITHIN,
    "symmetry.scale._Leaves.made": WITHIN,
    "symmetry.scale._Leaves.met": WITHIN,
    "symmetry.turns._Search.proposed": WITHIN,
    "symmetry.parts._Making.classes": WITHIN,
    "graph.alike._Pairing.names": WITHIN,
    "graph.alike._Pairing.picks": WITHIN,
    "symmetry.probe.Probe._drawn": "test_a_probe_draws_again_after_any_change_of_its_weights",
    "symmetry.element.Element.factors": BUILT,
    "symmetry.layout.Layout._blocks": BUILT,
    "symmetry.widths.Widening.shares": BUILT,
    "symmetry.widths.Widening.tables": BUILT,
    "jobs.calls._HELD": "test_a_worker_runs_the_function_that_it_was_sent",
    "jobs.processes.Processes._slots": "the processes themselves, while they run",
    "jobs.processes.Processes._sent": "test_a_worker_runs_the_function_that_it_was_sent",
    "atlas.by_distance._Embedder._forms": WITHIN,
    "atlas.tried._Rounds._now": WITHIN,
    "atlas.halving._Race.sums": WITHIN,
    "atlas.halving._Race.left_out": WITHIN,
    "merging.folders.mergekit_file._Reading.models": WITHIN,
    "merging.folders.mergekit_plan._Rows.layers": WITHIN,
    "checkpoint.writer.file_of(file)": "the file that is being written",
    "web.layers.Layers._known": "by the hash of the content that is told: tests/web/test_atlas_routes.py",
    "web.members.Members._atlas": "the open atlas itself",
    "web.queue.Queue.__init__(folder)": "the list of jobs, told as lost and never taken up: tests/web/test_queue.py",
    "web.queue.Queue._closed": "set once",
    "web.queue.Queue._kept": "set once",
    "web.queue.Queue._jobs": "the jobs themselves, bounded: tests/web/test_queue.py",
    "web.queue.Queue._lock_file": "the lock itself, while it is held",
    "web.queue.Queue._watchers": "the sockets that are open",
    "web.reports.Reports.__init__(folder)": "reads what is there at every call",
    "web.reports.Reports._read": "by device, inode, size and time of the file: tests/web/test_reports.py",
    "web.reports.Reports._tickets": "of one use, within a minute, bounded: tests/web/test_reports.py",
    "web.spawn.Process._stopped": "set once",
    "web.server.Patient._late": "the timer of one connection, cancelled when it is lost",
    "web.uploads.Uploads._kept": "the files themselves, for an hour, bounded: tests/web/test_uploads.py",
    "graph.rules.call.RULES": "a register that modules fill while they are imported",
}


def test_every_memory_stands_under_a_law():
    rooms = {".".join(p.relative_to(HOUSE).with_suffix("").parts): p.read_text() for p in HOUSE.rglob("*.py")}
    found = {f"{room}.{name}" for room, source in rooms.items() for name in memories(source)}
    assert sorted(found - MEMORIES.keys()) == [], "a memory without a law: say what it depends on, and try it"
    assert sorted(MEMORIES.keys() - found) == [], "a law for a memory that is gone"
    assert not [law for law in MEMORIES.values() if law.startswith("test_") and law not in globals()]


@pytest.mark.parametrize(
    "source",
    [
        "@functools.lru_cache\ndef f(x): ...",
        "class A:\n    @cached_property\n    def f(self): ...",
        "SEEN = {}\ndef f(x):\n    SEEN[x] = 1",
        "SEEN: WeakKeyDictionary[A, B] = WeakKeyDictionary()\ndef f(x):\n    return SEEN.setdefault(x, 1)",
        "class A:\n    seen = {}\n    def f(self, x):\n        self.seen[x] = 1",
        "class A:\n    def __init__(self):\n        self.seen = []\n    def f(self, x):\n        self.seen.append(x)",
        "class A:\n    seen: dict = field(default_factory=dict)\n    def f(self, x):\n        self.seen.update(x)",
        "class A:\n    def f(self, x):\n        self._x = x",
        "def f(task, folder=None): ...",
    ],
)
def test_a_new_memory_is_seen(source):
    assert len([*memories(source)]) == 1


# ------------------------------------------------------------------ graphs


class Two(nn.Module):
    """Named inputs of one shape, an attribute, a constant and a function as an attribute."""

    def __init__(self):
        super().__init__()
        self.p, self.q, self.o = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(4, 3)
        self.scale, self.function = 2.0, torch.tanh
        self.register_buffer("shift", torch.ones(4), persistent=False)
        self.level = torch.tensor(0.5)

    def forward(self, a, b=None, c=None):
        h = self.scale * self.p(a) + self.shift
        h = h if b is None else h + 5 * self.q(b)
        h = h if c is None else h - 0.1 * self.q(c).tanh()
        return self.o(F.dropout(self.function(h), 0.5, self.training) + self.level)


def _set(name, value):
    return lambda net: setattr(net.architecture, name, value)


INPLACE = {
    "attribute": _set("scale", 3.0),
    "function": _set("function", torch.sin),
    "constant": lambda net: net.architecture.shift.mul_(3),
    "attribute that is a tensor": lambda net: net.architecture.level.mul_(3),
    "a part": lambda net: net.architecture.p.register_forward_hook(lambda m, args, out: 2 * out),
    "weights": lambda net: net.weights["p.weight"].mul_(3),
    "weights behind the version": lambda net: net.weights["p.weight"].data.mul_(3),
}


def fresh(net):
    """The same network, of which nothing is remembered."""
    return Net(copy.deepcopy(net.architecture), net.weights.clone(), net.state.clone())


@pytest.mark.parametrize("change", INPLACE)
def test_a_graph_is_of_these_inputs_and_this_architecture(change):
    torch.manual_seed(0)
    net, a, b = Net.of(Two()), torch.randn(5, 3), 3 * torch.randn(5, 3)
    y = torch.arange(5) % 3
    size = lambda net, x: float(kernel(net, Task(x, y)).norm())  # noqa: E731
    before = size(net, {"a": a, "b": b})
    for x in ({"b": b, "a": a}, {"a": a, "c": b}, {"a": a}, {"a": a[:, :3].double(), "b": b}):
        assert size(net, x) == pytest.approx(size(fresh(net), x), rel=1e-5)
    with torch.no_grad():
        INPLACE[change](net)
    after = size(net, {"a": a, "b": b})
    assert after == pytest.approx(size(fresh(net), {"a": a, "b": b}), rel=1e-5)
    assert abs(after - before) > 1e-3 * before
    assert graph_of(net, {"a": a}) is graph_of(net, {"a": 2 * a}), "numbers are not part of the question"


def test_a_graph_that_is_kept_by_too_little_is_noticed(monkeypatch):
    monkeypatch.setattr("weightspace.graph.on_data.digest", lambda frame, inputs, ambient: "always the same")
    with pytest.raises(AssertionError):
        test_a_graph_is_of_these_inputs_and_this_architecture("attribute")


# ------------------------------------------------------------------ in memory


def mlp(activation=nn.Tanh, width=6):
    return nn.Sequential(nn.Linear(4, width), activation(), nn.Linear(width, 3))


def data():
    torch.manual_seed(0)
    x = torch.randn(40, 4)
    return x, torch.randint(0, 3, (40,)), (x[:, 0] > 0).long()


@pytest.mark.parametrize("change", ["weights", "weights behind the version", "inputs", "inputs in an array", "part"])
def test_a_factorisation_is_of_this_network_and_these_examples(change):
    x, y, _ = data()
    numbers = x[:5].numpy().copy()
    net, task = Net.of(mlp()), Task(numbers, y[:5])
    metric = ws.Pullback(task)
    top = lambda m, n: float(m.spectrum(n, 1)[0])  # noqa: E731
    before = top(metric, net)
    assert top(metric, net) == before
    with torch.no_grad():
        if change == "inputs":
            task.example(5).mul_(2)
        elif change == "inputs in an array":
            numbers *= 2
        elif change == "part":
            net.architecture[1].register_forward_hook(lambda m, args, out: out.sin())
        else:
            weights = net.weights["0.weight"]
            (weights if change == "weights" else weights.data).mul_(3)
    assert top(metric, net) == pytest.approx(top(ws.Pullback(Task(numbers, y[:5])), fresh(net)), rel=1e-6)
    assert abs(top(metric, net) - before) > 1e-3 * before
    other = replace(metric, output="fisher")
    assert top(other, net) == pytest.approx(top(ws.Pullback(Task(numbers, y[:5]), "fisher"), fresh(net)), rel=1e-6)


@pytest.mark.parametrize("change", ["anchor", "anchor behind the version", "inputs", "inputs in an array"])
def test_an_anchor_is_asked_again_where_something_changed_in_place(change):
    x, y, _ = data()
    numbers = x.numpy().copy()
    anchor, net, task = Net.of(mlp()), Net.of(mlp()), Task(numbers, y)
    goal = anchors.hold(task, anchor, batch=8)
    before = goal.value_and_gradient(net, 0)[0]
    assert goal.value_and_gradient(net, 0)[0] == before
    with torch.no_grad():
        if change == "inputs":
            task.example(40).mul_(2)
        elif change == "inputs in an array":
            numbers *= 2
        else:
            weights = anchor.weights["0.weight"]
            (weights if change == "anchor" else weights.data).mul_(3)
    after = goal.value_and_gradient(net, 0)[0]
    assert after == pytest.approx(
        anchors.hold(Task(numbers, y), anchor, batch=8).value_and_gradient(net, 0)[0], rel=1e-6
    )
    assert abs(after - before) > 1e-3 * before


@pytest.mark.parametrize("change", ["weight", "label_smoothing", "ignore_index", "labels"])
@pytest.mark.parametrize("parts", [1, 2])
def test_a_loss_has_the_settings_and_labels_of_now(change, parts):
    x, y, _ = data()
    loss, net = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0])), Net.of(mlp())
    task = Task(x, y, loss=loss, batch=7)
    task = task if parts == 1 else task | Task(x, y, loss=loss, batch=7)
    before = float(task(net)), ws.curvature_diagonal(net, task)
    if change == "weight":
        loss.weight.mul_(torch.tensor([3.0, 1.0, 1.0]))
    elif change == "labels":
        y.copy_((y + 1) % 3)
    else:
        setattr(loss, change, {"label_smoothing": 0.5, "ignore_index": 1}[change])
    value = float(loss(net(torch.cat([x] * parts)), torch.cat([y] * parts)))
    assert float(task(net)) == pytest.approx(value, rel=1e-5) and abs(value - before[0]) > 1e-4
    fresh = Task(torch.cat([x] * parts), torch.cat([y] * parts), loss=loss)
    diagonal = ws.curvature_diagonal(net, task).flat()
    assert torch.allclose(diagonal, ws.curvature_diagonal(net, fresh).flat(), rtol=1e-4, atol=1e-6)


def test_caches_without_hidden_arguments():
    """They depend on their arguments, which cannot change, and on nothing else; a changed copy is another object."""
    from weightspace.task.examples import order_of as _order

    assert torch.equal(_order(7, 3), _order.__wrapped__(7, 3)) and not torch.equal(_order(7, 3), _order(7, 4))
    assert (counts.integer_product() is None) == (counts.integer_product.__wrapped__() is None)
    assert (representation._onednn() is None) == (representation._onednn.__wrapped__() is None)
    assert digest._way(dict) is digest._way.__wrapped__(dict) and digest._own(dict) == digest._own.__wrapped__(dict)
    half = rounding._of(torch.float16, 0.0)
    assert half == rounding._of.__wrapped__(torch.float16, 0.0) and half != rounding._of(torch.bfloat16, 0.0)
    code = test_caches_without_hidden_arguments.__code__
    assert digest._code(code) == digest._code.__wrapped__(code)
    run = ws.codes.Run(0, "up", 1.0, 5.0, 0.0, 2.0, 0.5)
    found = ws.StructureFunction((run,), ((0.0, 20.0),), 3)
    other = replace(found, runs=(replace(run, loss=1.0),))
    assert found.vertices != other.vertices and found.checks is not other.checks


class Forgetful(torch.autograd.Function):
    """x^2, whose derivative is right and does not know that it depends on x."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx, slope):
        return 2 * ctx.saved_tensors[0].detach() * slope


class OneOrOther(nn.Module):
    """A plain way for input a, and one whose second derivative is wrong for input b."""

    def __init__(self):
        super().__init__()
        self.p = nn.Linear(3, 2)

    def forward(self, a=None, b=None):
        return self.p(a).square() if b is None else Forgetful.apply(self.p(b))


def test_a_verdict_on_derivatives_is_of_this_form_of_inputs():
    """What was found right with some inputs is tried again with others, which may go another way."""
    torch.manual_seed(0)
    net, x, y = ws.Net.of(OneOrOther().double()), torch.randn(5, 3, dtype=torch.float64), torch.arange(5) % 2
    plain, other = ws.Task({"a": x}, y), ws.Task({"b": x}, y)
    right = ws.hessian(net, plain).dense()
    ws.jacobian(net, plain).dense()
    with pytest.raises(ws.WeightspaceError, match="second derivative"):
        ws.hessian(net, other).dense()
    j = ws.jacobian(net, other)
    torch.testing.assert_close(j.dense(), j.T.dense().T)
    torch.testing.assert_close(ws.hessian(net, plain).dense(), right)


def test_a_worker_runs_the_function_that_it_was_sent():
    """By the bytes of the function: what it closes over is as it is now."""
    from weightspace.jobs.calls import Form, called, packed

    held = torch.zeros(3)

    def total(x):
        return float(held.sum()) + x

    first, one = Form.of(total), packed((1,), "")
    assert called(first, one) == ("done", 1.0)
    held.add_(1)
    second = Form.of(total)
    assert called(second, one) == ("done", 4.0) and called(Form(second.digest, None), one) == ("done", 4.0)
    assert called(Form(first.digest, None), one) == ("unknown", None)
    assert called(first, one) == ("done", 1.0)


def test_networks_of_other_forms_are_not_made_alike():
    """A model may choose its activation from the seed."""
    from weightspace.codes.transfer import _Maker

    x, y, _ = data()
    maker = _Maker(lambda: mlp(nn.Tanh if torch.initial_seed() == 0 else nn.ReLU), False)
    nets = [maker.placed([Task(x, y)], seed)[0] for seed in (0, 1, 0)]
    assert [str(net.architecture[1]) for net in nets] == ["Tanh()", "ReLU()", "Tanh()"]
    assert nets[0].architecture is nets[2].architecture


# ------------------------------------------------------------------ on disk


def weighed(factor):
    def loss(f, t):
        return factor * F.cross_entropy(f, t, reduction="none")

    return loss


@wraps(F.cross_entropy)
def disguised(f, t, factor=3.0):
    return factor * F.cross_entropy(f, t, reduction="none")


FACTOR = 2.0


def by_global(f, t):
    return FACTOR * F.cross_entropy(f, t, reduction="none")


def shrunk():
    module = mlp()
    with torch.no_grad():
        module[0].bias.zero_()
    return module


def questions():
    """What is changed -> (task, model): the first is the question of the file."""
    x, y, easy = data()
    tasks = {
        "nothing": Task(x, y),
        "labels": Task(x, easy),
        "two labels exchanged": Task(x, torch.cat([y[:1], y[2:3], y[1:2], y[3:]])) if y[1] != y[2] else Task(x, 2 - y),
        "inputs": Task(3 * x.flip(0), y),
        "one input by little": Task(x + 1e-3 * (torch.arange(40) == 7)[:, None], y),
        "metric": Task(x, y, metric=weighed(2.0)),
        "value in a closure": Task(x, y, metric=weighed(9.0)),
        "value in a global": Task(x, y, metric=by_global),
        "a name that is borrowed": Task(x, y, metric=disguised),
        "settings of a loss": Task(x, y, loss=nn.CrossEntropyLoss(label_smoothing=0.1)),
        "settings of a partial": Task(x, y, metric=partial(F.cross_entropy, reduction="none", label_smoothing=0.2)),
        "output": Task(x, y, output=lambda raw: 2 * raw),
    }
    models = {"activation": partial(mlp, nn.ReLU), "width": partial(mlp, width=5), "first weights": shrunk}
    return {name: (task, mlp) for name, task in tasks.items()} | {
        name: (tasks["nothing"], model) for name, model in models.items()
    }


@pytest.mark.parametrize("change", questions())
def test_sweeps_in_a_folder_are_of_this_question(tmp_path, change):
    options = {"betas": (0.1,), "seeds": (0,), "steps": 4}

    def sought(task, model, **more):
        return [run.loss for run in ws.structure_function(model, task, **(options | more)).runs]

    task, model = questions()["nothing"]
    kept = sought(task, model, folder=tmp_path)
    task, model = questions()[change]
    if change == "nothing":
        assert sought(task, model, folder=tmp_path) == kept
        anchors = {"anchor": Net.of(mlp())}, {"betas": (0.05, 0.1)}
        for more in ({"steps": 5}, {"batch": 8}, {"lr": 0.01}, {"draws": 3}, *anchors):
            with pytest.raises(WeightspaceError, match="holds sweeps of"):
                sought(task, model, folder=tmp_path, **more)
        rows = next(tmp_path.glob("task-0-up.json"))
        old = {"of": {"steps": 4}, "runs": files.unsealed(files.read_json(rows))["runs"]}
        rows.write_text(json.dumps(files.sealed(old)))
        with pytest.raises(WeightspaceError, match="holds sweeps of"):
            sought(task, model, folder=tmp_path)
        return
    with pytest.raises(WeightspaceError, match="holds sweeps of another (task|network|loss)"):
        sought(task, model, folder=tmp_path)


@pytest.mark.parametrize("change", questions())
def test_codes_in_a_file_are_of_this_question(tmp_path, change):
    file, options = tmp_path / "codes.json", {"seeds": (0,), "steps": 3}

    def sought(task, model, **more):
        pair = {"a": task, "b": task.relabelled(1 - data()[2]) if callable(task.metric) is False else task}
        return ws.task_distances(pair, model, **(options | more)).codes

    task, model = questions()["nothing"]
    kept = sought(task, model, file=file)
    task, model = questions()[change]
    if change == "nothing":
        assert sought(task, model, file=file) == kept
        for more in ({"steps": 4}, {"beta": 2.0}, {"task_id": True}, {"anchor": Net.of(mlp())}, {"batch": 8}):
            with pytest.raises(WeightspaceError, match="another"):
                sought(task, model, file=file, **more)
        written = json.loads(file.read_text())
        file.write_text(json.dumps(files.sealed({"about": {}, "tasks": {}, "lengths": written["lengths"]})))
        with pytest.raises(WeightspaceError, match="another version"):
            sought(task, model, file=file)
        return
    with pytest.raises(WeightspaceError, match="holds codes of another"):
        sought(task, model, file=file)


def test_a_value_that_no_code_shows_is_seen_in_the_loss(tmp_path, monkeypatch):
    """A loss that reads its factor from the environment: its code is the same, its values are not."""
    monkeypatch.setenv("FACTOR", "1")

    def hidden(f, t):
        import os

        return float(os.environ["FACTOR"]) * F.cross_entropy(f, t, reduction="none")

    x, y, _ = data()
    options = {"betas": (0.1,), "seeds": (0,), "steps": 2, "folder": tmp_path}
    ws.structure_function(mlp, Task(x, y, metric=hidden), **options)
    monkeypatch.setenv("FACTOR", "2")
    with pytest.raises(WeightspaceError, match="another loss"):
        ws.structure_function(mlp, Task(x, y, metric=hidden), **options)


def test_what_hides_its_state_is_refused(tmp_path):
    x, y, _ = data()
    with open("/dev/null") as file:
        for hidden in (file, (k for k in range(3))):

            def loss(f, t, hidden=hidden):
                return F.cross_entropy(f, t, reduction="none")

            with pytest.raises(digest.DigestError, match="whose state cannot be read"):
                ws.structure_function(mlp, Task(x, y, metric=loss), betas=(0.1,), seeds=(0,), steps=2, folder=tmp_path)


FLOWS = {
    "nothing": {},
    "labels": {"labels": "easy"},
    "inputs": {"shift": 1.0},
    "size": {"size": 0.01},
    "size that is a function": {"size": lambda done: 0.2 - 0.1 * done},
    "mask": {"masked": True},
    "metric": {"metric": ws.Relative()},
    "corrections": {"corrections": 2},
    "max_trust": {"max_trust": 0.01},
    "save": {"save": 1},
    "probe": {"probe": True},
    "seed of the batches": {"seed": 1},
    "activation": {"model": partial(mlp, nn.ReLU)},
    "fewer steps": {"steps": 2},
    "more steps": {"steps": 7},
}


@pytest.mark.parametrize("change", FLOWS)
def test_a_path_in_a_folder_is_of_this_question(tmp_path, change):
    x, y, easy = data()

    def flown(trail=None, **of):
        torch.manual_seed(1)
        net = Net.of(of.get("model", mlp)())
        mask = net.weights.zeros().replace({"2.bias": torch.ones(3)}) if of.get("masked") else None
        task = Task(x + of.get("shift", 0.0), easy if "labels" in of else y)
        probe = Task(x[:5], y[:5]) if "probe" in of else None
        options = {name: of[name] for name in ("corrections", "max_trust") if name in of}
        return ws.flow(
            net, ws.learn(task, 16, of.get("seed", 0)), of.get("metric", ws.Adam()), steps=of.get("steps", 4),
            size=of.get("size", 0.05), save=of.get("save", 2), mask=mask, probe=probe, trail=trail, **options,
        )  # fmt: skip

    flown(tmp_path / "path")
    if change in ("nothing", "more steps"):
        found = flown(tmp_path / "path", **FLOWS[change])
        assert ws.euclidean(found[-1], flown(**FLOWS[change])[-1]) < 1e-6
        index = tmp_path / "path" / "index.json"
        told = files.unsealed(files.read_json(index))
        old = {**{k: v for k, v in told.items() if k != "asked"}, "toward": "learn"}
        index.write_text(json.dumps(files.sealed(old)))
        with pytest.raises(WeightspaceError, match="an older one"):
            flown(tmp_path / "path", **FLOWS[change])
        return
    with pytest.raises(WeightspaceError, match="the path there has|another architecture"):
        flown(tmp_path / "path", **FLOWS[change])


@pytest.mark.parametrize("change", ["nothing", "training", "deficit", "restart", "fisher", "older"])
def test_rows_are_of_this_training(change):
    x, y, easy = data()
    images = x.view(40, 1, 2, 2)

    def training(labels):
        module = lambda seed: nn.Sequential(nn.Flatten(), nn.Linear(4, 3))  # noqa: E731
        return critical_periods.Training(module, Task(images, labels), Task(images, y), after=1, batch=8)

    def found(labels=y, size=1.0, **more):
        return critical_periods.critical_period(
            training(labels), deficits.noise(size), [0], [1], control=None, **more
        ).rows

    def named(x, labels):
        return -x, labels

    rows = found()
    if change == "nothing":
        assert found(rows=rows) == rows
        return
    named.__name__ = rows[-1].deficit
    asked = {
        "training": lambda: found(labels=easy, rows=rows),
        "restart": lambda: found(restart=True, rows=rows),
        "fisher": lambda: found(fisher=lambda net: 1.0, rows=rows),
        "older": lambda: found(rows=[replace(row, of="") for row in rows]),
        "deficit": lambda: critical_periods.critical_period(training(y), named, [0], [1], control=None, rows=rows),
    }
    with pytest.raises(WeightspaceError, match="give rows of this one"):
        asked[change]()


def test_a_file_that_keeps_its_size_and_its_date_is_not_read_on(tmp_path):
    import os

    file = tmp_path / "one.safetensors"
    writer.save({"w": torch.zeros(10)}, file)
    found, stat = reader.read(file), file.stat()
    file.write_bytes(file.read_bytes()[:-40] + torch.ones(10).numpy().tobytes())
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(refusal.CheckpointError, match="changed"):
        found["w"]


# ------------------------------------------------------------------ the digest itself


def test_a_digest_is_of_what_things_hold():
    x, y, _ = data()
    net = Net.of(mlp())
    same = [
        (Task(x, y), Task(x.clone(), y.clone())),
        (Task(x, y, batch=3), Task(x, y, batch=40)),
        (Task({"a": x, "b": x}, y), Task({"b": x, "a": x}, y)),
        (net, Net.of(net.module())),
        (weighed(2.0), weighed(2.0)),
        (Frame(net), Frame(net + net.weights)),
        ({1, "a", 2.0}, {2.0, 1, "a"}),
    ]
    for one, other in same:
        assert digest.digest(one) == digest.digest(other)
    other = [
        (1, 1.0), (1, True), ("1", 1), ((1, 2), [1, 2]), ((1, (2, 3)), ((1, 2), 3)), (x, x.double()), (x, x.T),
        (x, x.numpy()), (weighed(2.0), weighed(3.0)), (Task(x, y), Task(x, y, aggregate="sum")), (net, net.double()),
        (Task({"a": x}, y), Task({"b": x}, y)), (partial(max, 1), partial(max, 2)), (lambda: 1, lambda: 2),
        (nn.Dropout(0.1), nn.Dropout(0.2)), (nn.Dropout().eval(), nn.Dropout()), (slice(1), slice(2)),
    ]  # fmt: skip
    for one, two in other:
        assert digest.digest(one) != digest.digest(two), (one, two)


@dataclass
class Apart:
    """A field that is not compared, and is no memory of the instance."""

    level: float = field(compare=False)


def keyword(level):
    def f(x, *, by=level):
        return by * x

    return f


def positional(level):
    def f(x, by=level):
        return by * x

    return f


def attribute(level):
    def f(x):
        return f.level * x

    f.level = level
    return f


PLACES = {
    "closure": lambda level: lambda x: level * x,
    "default": positional,
    "default of a keyword": keyword,
    "attribute of a function": attribute,
    "partial": lambda level: partial(F.elu, alpha=level),
    "field": Apart,
    "slot": lambda level: slice(level),
    "class": lambda level: type("A", (), {"level": level}),
    "bound": lambda level: Apart(level).__eq__,
    "module": nn.Softshrink,
}


@pytest.mark.parametrize("place", PLACES)
def test_a_number_counts_wherever_it_is_held(place):
    one, again, other = (digest.digest(PLACES[place](level)) for level in (2.0, 2.0, 3.0))
    assert one == again != other


def test_the_same_bytes_in_another_form_are_another_question():
    x, y = torch.arange(1, 97, dtype=torch.float32).view(8, 12), torch.arange(8) % 3
    forms = [x, x.view(8, 3, 4), x.view(8, 12, 1), x.view(8, 4, 3), x.view(torch.int32), x.view(torch.float64)]
    for held in (
        lambda t: t,
        lambda t: t.numpy(),
        lambda t: Task(t, y),
        lambda t: Task({"a": t, "b": x}, y),
        lambda t: Task(t, y, batch=3),
        lambda t: ws.Weights({"w": t}),
        lambda t: [t],
    ):
        assert len({digest.digest(held(t)) for t in forms}) == len(forms)


class Copied(nn.Module):
    """Of a class of its own, to which Python adds what it learns of it while it copies."""

    def forward(self, x):
        return x


@pytest.mark.parametrize("look", [digest.digest, copy.copy, copy.deepcopy, lambda kept: kept.__reduce_ex__(4)])
@pytest.mark.parametrize("base", [Apart, Copied])
def test_a_thing_that_was_looked_at_is_the_same_thing(look, base):
    kind = type("Fresh", (base,), {"__module__": __name__})
    kept = kind(2.0) if base is Apart else kind()
    before = digest.digest(kept)
    look(kept)
    assert digest.digest(kept) == before
    other = type("Fresh", (base,), {"__module__": __name__})  # as another process has it
    one = other(2.0) if base is Apart else other()
    look(one)
    assert digest.digest(one) == before


def test_a_probe_draws_again_after_any_change_of_its_weights():
    """A draw of the same seed is left out only where nothing was written since: by name, through a view, by a reset."""
    net = ws.Net.of(torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)))
    probe = Probe.of(net, torch.randn(2, 3), seed=0)
    probe.settle(probe.trace())
    tensors = probe.net.tensors
    changes = [
        lambda: tensors["0.weight"].fill_(1.0),
        lambda: tensors["0.weight"].detach()[1:].mul_(2.0),
        probe.at_home,
        lambda: probe.draw(1),
    ]
    probe.draw(0)
    drawn = {name: t.clone() for name, t in tensors.items()}
    for change in changes:
        change()
        assert not all(torch.equal(t, drawn[name]) for name, t in tensors.items())
        probe.draw(0)
        assert all(torch.equal(t, drawn[name]) for name, t in tensors.items())
