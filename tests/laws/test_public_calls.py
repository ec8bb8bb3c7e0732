"""A result depends on the arguments alone; an argument is what it plainly stands for, or refused in one sentence."""

from __future__ import annotations

import contextlib
import inspect

import numpy as np
import public_calls
import pytest
import torch
from ambient import default_dtype
from public_calls import CALLS, GROUP, A, B, C, X, module, numbers, public_files
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import weightspace as ws
from weightspace.net.errors import CallError
from weightspace.net.public import public
from weightspace.net.state import settled

pytestmark = pytest.mark.filterwarnings("ignore::weightspace.codes.weight_information.Unconverged")
M, M2, M3 = (public_calls.module(seed) for seed in range(3))
TASK, Y = public_calls.task(), torch.arange(len(X)) % 3
LOADER = DataLoader(TensorDataset(X, Y), batch_size=7)

# callables of public rooms whose results hold no number that a mode could change, or which are contexts
UNMARKED = {"Weights", "checked", "finite", "math_attention", "squared_distance", "carried", "classifies", "logits"}


@contextlib.contextmanager
def default_device(device):
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextlib.contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextlib.contextmanager
def threads(n):
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


AMBIENT = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "float64": lambda: default_dtype(torch.float64),
    "float16": lambda: default_dtype(torch.float16),
    "default device": lambda: default_device("meta"),
    "deterministic": deterministic,
    "threads": lambda: threads(2),
}


MATRICES = ["net(x)", "align with data", "canonical", "mean", "functional", "kernel", "gauss_newton", "certificate"]


def public_members():
    """(room, name, callable) of everything that a user may call."""
    for room, (there, names) in public_files().items():
        for name in {*names} - UNMARKED:
            member = getattr(there, name)
            if getattr(member, "__module__", "").startswith("weightspace"):
                yield room, name, member


def test_every_public_function_and_class_is_marked():
    """What is added to the table of contents without `@public` would depend on the caller's modes."""
    bare = []
    for room, name, member in public_members():
        if inspect.isfunction(member) and not hasattr(member, "_public"):
            bare.append(f"{room}.{name}")
        if inspect.isclass(member) and not (issubclass(member, Exception | nn.Module | torch.optim.Optimizer)):
            methods = [m for n, m in vars(member).items() if inspect.isfunction(m) and not n.startswith("_")]
            protocol = getattr(member, "_is_protocol", False)
            bare += [f"{room}.{m.__qualname__}" for m in methods if not hasattr(m, "_public") and not protocol]
    assert not bare, bare


def test_every_function_of_the_table_is_called_here():
    """A new public function needs a call of its own, or the laws below do not hold for it."""
    functions = {n for names in ws._CONTENTS.values() for n in names if inspect.isfunction(getattr(ws, n))}
    readers = {"digits", "mnist", "fashion_mnist", "cifar10", "critical_period"}  # files; training of many networks
    pairs = {"cross_features", "self_features", "self_path", "reynolds"}  # like cross_path, and inside of gates
    assert functions <= {*CALLS, *readers, *pairs}, functions - {*CALLS, *readers, *pairs}
    assert len(CALLS) >= 40


@pytest.fixture(scope="module")
def plain():
    return {name: numbers(call()) for name, call in CALLS.items()}


FAST = {"no_grad", "autocast", "float64", "threads"}  # the others are asked by `make test-all`


@pytest.mark.parametrize(
    "ambient", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in AMBIENT]
)
def test_answers_do_not_depend_on_the_ambient_state(ambient, plain):
    wrong = []
    for name, call in CALLS.items():
        if ambient == "threads" and name not in MATRICES:
            continue
        with AMBIENT[ambient]():
            answer = call()
        found = numbers(answer)
        if found != pytest.approx(plain[name], rel=1e-3, abs=1e-4):
            wrong.append(f"{name}: {plain[name][:3]} -> {found[:3]}")
    assert not wrong, "\n".join(wrong)


def test_answers_do_not_depend_on_where_the_library_asks(plain):
    """As inside of an observable that is looked at without gradients."""

    @public
    def asked(call):
        with torch.no_grad():
            return numbers(call())

    wrong = [name for name, call in CALLS.items() if asked(call) != pytest.approx(plain[name], rel=1e-3, abs=1e-4)]
    assert not wrong, wrong


def test_a_function_that_sets_no_state_is_seen():
    """The law finds an unmarked function: matrix products round to eight bits under autocast."""

    def product(net):
        return net.weights["0.weight"] @ net.weights["0.weight"].T

    with torch.autocast("cpu", torch.bfloat16):
        bare, marked = product(A), public(product)(A)
    assert bare.dtype == torch.bfloat16 and marked.dtype == torch.float32
    with torch.no_grad():
        assert not torch.is_grad_enabled() and public(torch.is_grad_enabled)()


def test_the_callers_state_comes_back():
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), default_dtype(torch.float64):
        with settled():
            assert torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
            assert torch.get_default_dtype() == torch.float32
        assert not torch.is_grad_enabled() and torch.is_autocast_enabled("cpu")
        with pytest.raises(ws.WeightspaceError):
            ws.functional(A, B, TASK, kind="none of these")
        assert torch.get_default_dtype() == torch.float64 and not torch.is_grad_enabled()


def test_no_call_moves_the_global_generator_or_the_modes():
    """Random seeds are arguments: what a user draws next is the same, whatever was called before."""
    before, moved = torch.get_rng_state(), []
    for name, call in CALLS.items():
        call()
        if not torch.equal(before, torch.get_rng_state()):
            moved.append(name)
            torch.set_rng_state(before)
    assert not moved, moved
    assert torch.is_grad_enabled() and torch.get_default_dtype() == torch.float32


def test_a_value_that_is_differentiated_follows_the_callers_grad_mode():
    net = A.at(A.weights.map(lambda w: w.clone().requires_grad_()))
    assert TASK(net).requires_grad
    with torch.no_grad():
        assert not TASK(net).requires_grad and not net(X).requires_grad


@pytest.mark.parametrize("quiet", [torch.no_grad, torch.inference_mode])
def test_a_tensor_that_is_asked_for_without_gradients_holds_no_graph(quiet):
    """Whatever the function needed on its way; and none is of inference mode, which no derivative may meet."""

    @public
    def doubled(net):
        return 2 * net.weights.map(lambda w: w.clone().requires_grad_()).flat()

    assert doubled(A).requires_grad
    with quiet():
        found = doubled(A)
    assert not found.requires_grad and not found.is_inference()


@pytest.mark.parametrize("training", [True, False])
def test_the_training_flag_of_a_module_is_its_owners(training):
    module = public_calls.normed().train(training)
    with torch.no_grad():
        right = public_calls.normed().eval()(X)
    assert torch.allclose(ws.Net.of(module)(X), right) and module.training is training
    assert str(ws.Symmetry.of(module, X[:2])) == str(public_calls.NORMED) and module.training is training


AS_NET = {
    "modulo": lambda m, n: ws.modulo(GROUP)(m, n),
    "layerwise": lambda m, n: ws.layerwise(m, n),
    "plane": lambda m, n: ws.plane(m, n, C).net(0.2, 0.3),
    "lerp": lambda m, n: ws.Net.of(m).lerp(n, 0.5),
    "mean": lambda m, n: ws.mean([m, n], GROUP),
    "swa": lambda m, n: ws.swa([m, n]),
    "align": lambda m, n: GROUP.align(m, to=n),
    "canonical": lambda m, n: GROUP.canonical(m),
    "element": lambda m, n: GROUP.sample(seed=0)(m),
    "accuracy": lambda m, n: ws.accuracy(TASK)(m),
    "task": lambda m, n: TASK(m),
    "line": lambda m, n: ws.line(m, n).barrier(TASK),
    "certificate": lambda m, n: ws.certificate(m, n, TASK).bound,
    "fisher": lambda m, n: ws.fisher_trace(TASK, labels="all")(m),
    "gates": lambda m, n: ws.gates(TASK)(m).bits,
    "flow": lambda m, n: ws.flow(m, ws.learn(TASK), ws.Euclidean(), steps=1)[-1],
    "ensemble": lambda m, n: ws.ensemble([m, n])(X),
    "disagreement": lambda m, n: ws.disagreement([m, n], TASK),
    "kernel": lambda m, n: ws.curvature.kernel(m, TASK),
}


@pytest.mark.parametrize("name", AS_NET)
def test_a_module_is_taken_for_its_net(name):
    ask = AS_NET[name]
    assert numbers(ask(M, M2)) == pytest.approx(numbers(ask(A, B)), rel=1e-5)


AS_TASK = {
    "accuracy": lambda t: ws.accuracy(t)(A),
    "hold": lambda t: ws.gradient(ws.hold(t, A), B),
    "barrier": lambda t: ws.line(A, B).barrier(t),
    "align": lambda t: GROUP.align(B, to=A, data=t),
    "functional": lambda t: ws.functional(A, B, t),
    "gauss_newton": lambda t: ws.gauss_newton(A, t).diagonal(),
    "gradient": lambda t: ws.gradient(t, A),
    "fisher_trace": lambda t: ws.fisher_trace(t, labels="all")(A),
    "width": lambda t: ws.width(A, t, draws=1),
    "information": lambda t: ws.information(A, t).value,
    "encode": lambda t: ws.encode(A, t, steps=2).kl,
    "certificate": lambda t: ws.certificate(A, B, t).bound,
    "stability": lambda t: ws.stability(A, t, (0.1,), draws=1),
    "gates": lambda t: ws.gates(t)(A).bits,
    "mean": lambda t: ws.mean([A, B], GROUP, data=t),
    "learn": lambda t: ws.gradient(ws.learn(t), A),
    "curve": lambda t: ws.curve(A, B, t, steps=2)(0.5),
    "task_distances": lambda t: ws.task_distances({"a": t, "b": t}, M, seeds=(0,), steps=2).data(),
}


@pytest.mark.parametrize("name", AS_TASK)
def test_a_loader_or_dataset_is_taken_for_its_task(name):
    ask = AS_TASK[name]
    for data in (LOADER, TensorDataset(X, Y)):
        assert numbers(ask(data)) == pytest.approx(numbers(ask(ws.Task(data))), rel=1e-5)


def test_arrays_and_numbers_of_numpy_are_taken():
    assert ws.cka(X.numpy(), X[:, :3].numpy()) == pytest.approx(ws.cka(X, X[:, :3]))
    assert ws.spectral_norm(np.eye(3)) == pytest.approx(1)
    assert ws.euclidean(ws.perturb(A, np.float32(0.1), seed=np.int64(0)), ws.perturb(A, 0.1, seed=0)) < 1e-6
    assert ws.euclidean(ws.flow(A, ws.learn(TASK), ws.Euclidean(), steps=2.0, size=np.float64(0.1))[-1], A) > 0


REFUSED = {
    "ewc(net, net)": (lambda: ws.ewc(A, A), "Task"),
    "accuracy(net)": (lambda: ws.accuracy(A), "Task"),
    "perturb(size, net)": (lambda: ws.perturb(0.1, A, seed=0), "Net"),
    "mean(net, group)": (lambda: ws.mean(A, GROUP), "list of Nets"),
    "mean of a loader": (lambda: ws.mean(LOADER, GROUP), "list of Nets"),
    "a class": (lambda: ws.flow(A, ws.learn(TASK), ws.Euclidean, steps=1), r"give Euclidean\("),
    "a class of networks": (lambda: ws.accuracy(TASK)(nn.Linear), "the class Linear"),
    "a name": (lambda: ws.flow(A, ws.learn(TASK), "euclidean", steps=1), "Metric"),
    "a number as text": (lambda: ws.perturb(A, "0.1", seed=0), "without quotes"),
    "no seed": (lambda: ws.fresh(M, None), "whole number"),
    "half a step": (lambda: ws.flow(A, ws.learn(TASK), ws.Euclidean(), steps=2.5), "whole number"),
    "state_dict": (lambda: ws.euclidean(M.state_dict(), A), "Net"),
    "a path to a file": (lambda: ws.euclidean("a.pt", A), "Net"),
    "a pair of tensors": (lambda: ws.accuracy((X, Y)), r"Task\(inputs, labels\)"),
    "a tensor of inputs": (lambda: ws.accuracy(X), r"Task\(inputs, labels\)"),
    "a misnamed argument": (lambda: ws.flow(A, ws.learn(TASK), ws.Euclidean(), step=1), "steps="),
    "too few arguments": (lambda: ws.functional(A, B), "task"),
    "a device": (lambda: A.to("gpu"), "one of cpu"),
    "inputs of another width": (lambda: A(torch.randn(4, 5)), "inputs of shape"),
    "the net and the group": (lambda: ws.modulo(A), "Symmetry|Group"),
    "one network alone": (lambda: ws.disagreement(A, TASK), "Nets"),
    "a lambda for a task": (lambda: ws.functional(A, B, lambda n: 0), "Task"),
    "scores for tensors": (lambda: ws.cka([1.0, 2.0], [1.0, 2.0]), "Tensor"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_mistake_is_named_in_one_sentence(name):
    call, words = REFUSED[name]
    with pytest.raises(ws.WeightspaceError, match=words) as raised:
        call()
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 400


def test_a_planted_type_is_refused_and_a_right_one_kept():
    @public
    def made(net: ws.Net, tasks: list[ws.Task], sizes: tuple[float, ...] = (), names: dict[str, int] | None = None):
        return net, tasks, sizes, names

    net, tasks, sizes, names = made(M, [LOADER], np.array([0.5, 2]), {"a": np.int64(3)})
    assert isinstance(net, ws.Net) and isinstance(tasks[0], ws.Task) and sizes == (0.5, 2.0) and names == {"a": 3}
    given = [TASK]
    assert made(A, given)[1] is given
    for wrong in ((A, TASK), (A, [A]), (A, [TASK], ("a",)), (A, [TASK], (), {"a": "b"}), (None, [TASK])):
        with pytest.raises(CallError):
            made(*wrong)


# ------------------------------------------------------------------ calls of the last release


RENAMED = {
    "an order": (lambda: ws.ewc(TASK, A), lambda: ws.ewc(A, TASK), r"ewc takes \(net, task\)"),
    "an order of modules and loaders": (
        lambda: ws.flows.fisher(LOADER, module()), lambda: ws.flows.fisher(module(), LOADER), "in this order"
    ),
    "an order of three": (
        lambda: ws.image_function(A, 1, TASK).weights, lambda: ws.image_function(A, TASK, 1).weights, "in this order"
    ),
    "a name": (lambda: ws.trust_per_example(A, TASK, rate=0.1), lambda: ws.trust_per_example(A, TASK, lr=0.1), "lr="),
    "a method's name": (
        lambda: ws.hessian(A, TASK).diagonal(samples=3), lambda: ws.hessian(A, TASK).diagonal(probes=3), "probes="
    ),
    "a goal's method": (
        lambda: [*ws.learn(TASK).covector(A, 0)][::-1], lambda: [*ws.learn(TASK).value_and_gradient(A, 0)], "covector"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RENAMED)
def test_calls_of_the_last_release_warn_and_give_the_same(name):
    before, now, words = RENAMED[name]
    with pytest.warns(DeprecationWarning, match=words):
        old = before()
    new = now()
    if isinstance(old, ws.task.Goal):
        old, new = (ws.gradient(goal, A + 0.1 * A.weights.randn(0)) for goal in (old, new))
    assert str(numbers(old)) == str(numbers(new))


def test_a_goal_of_the_last_release_is_still_a_goal():
    class Old(ws.task.Goal):
        def covector(self, net, step):
            return 2.0 * net.weights, 7.0

    with pytest.warns(DeprecationWarning, match="value_and_gradient"):
        value, gradient = ws.task.value_and_gradient(Old() + ws.learn(TASK, batch=len(TASK)), A)
    mine, theirs = ws.task.value_and_gradient(TASK, A)
    assert value == pytest.approx(7.0 + mine) and float((gradient - 2.0 * A.weights - theirs).norm()) < 1e-5


def test_a_name_given_twice_is_refused():
    with pytest.raises(ws.WeightspaceError, match="rate is called lr now"):
        ws.trust_per_example(A, TASK, rate=0.1, lr=0.1)


def test_a_warning_about_an_old_name_points_at_the_caller(recwarn):
    """However deep in the library it is given: by a renamed argument, and by a goal of the last release."""
    net, task = ws.demo.example()
    ws.curvature.hessian(net, task.take(8)).trace(samples=4)

    class Old(ws.task.Goal):
        def covector(self, net, step):
            return ws.gradient(task, net), 0.0

    ws.flow(net, Old(), ws.Euclidean(), steps=1)
    told = [w.filename for w in recwarn if w.category is DeprecationWarning]
    assert len(told) >= 2 and set(told) == {__file__}
