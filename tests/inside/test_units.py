"""What happens inside: gates, features, given gates, what one example writes; paths compared over time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from architectures import CASES
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, Dataset

from weightspace.inside import counts, path_overlap
from weightspace.inside.image_functions import image_function
from weightspace.inside.path_overlap import (
    against_distance,
    cross_features,
    cross_path,
    dead,
    early_to_mid,
    neighbours,
    overlap,
    self_features,
    self_path,
    shared_paths,
    turnover,
)
from weightspace.inside.units import Gates, features, forced, gates
from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net
from weightspace.task.classification import accuracy
from weightspace.task.task import Task
from weightspace.trust.relative import relative_trust


class Mixed(nn.Module):
    """Every way to write a ReLU: one module twice and in place, methods, functions, clamps, slopes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act = nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(inplace=True)
        self.a, self.b, self.c, self.d = nn.Linear(64, 9), nn.Linear(9, 9), nn.Linear(9, 9), nn.Linear(9, 9)
        self.slopes, self.out = nn.PReLU(9, init=0.3), nn.Linear(9, 3)

    def forward(self, x):
        x = self.act(self.conv(x))
        x = x - 0.1
        self.act(x)
        x = self.a(x.flatten(1)).relu_()
        x = F.leaky_relu(self.b(x), 0.2)
        x = torch.clamp(self.c(x), min=0)
        return self.out(self.slopes(self.d(torch.clamp(x, min=0, max=3))))


def images(n: int = 20, seed: int = 0) -> Task:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 1, 4, 4, generator=generator, dtype=torch.float64)
    return Task(x, torch.randint(0, 3, (n,), generator=generator), batch=8)


def mixed(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net.of(Mixed().double())


def chain(seed: int = 0, sizes: tuple[int, ...] = (16, 12, 10, 3)) -> Net:
    torch.manual_seed(seed)
    layers = [part for i, o in zip(sizes, sizes[1:], strict=False) for part in (nn.Linear(i, o), nn.ReLU())]
    return Net.of(nn.Sequential(nn.Flatten(), *layers[:-1]).double())


# ------------------------------------------------------------------ gates


def test_every_way_to_write_a_relu_is_met():
    found = gates(images())(mixed())
    assert found.layers == {"act": 64, "act#2": 64, "relu": 9, "leaky_relu": 9, "clamp": 9, "slopes": 9}
    assert len(found) == 20 and found.units == 164 and found.bits.shape == (20, 21) and not found.inexact


def test_gates_are_the_signs_of_the_pre_activations():
    net, t = chain(), images()
    x = t.example(20).flatten(1)
    first = x @ net.weights["1.weight"].T + net.weights["1.bias"]
    second = first.relu() @ net.weights["3.weight"].T + net.weights["3.bias"]
    found = gates(t)(net)
    assert torch.equal(found["2"], first > 0) and torch.equal(found["4"], second > 0)
    assert torch.equal(found.everything(), torch.cat([first > 0, second > 0], 1))
    assert not torch.equal(found["2"], second > 0 if second.shape == first.shape else first > 0.1), "planted"
    seen = features(t, dtype=torch.float64)(net)
    assert torch.allclose(seen["4"], second.relu()) and torch.equal(seen["2"] > 0, found["2"])
    maps = features(t, "maps", torch.float64)(net)
    assert list(maps) == ["1", "3", "5"] and torch.allclose(maps["3"], second)


def test_a_bit_a_unit():
    found = gates(images())(chain(sizes=(16, 400, 321, 3)))
    assert found.bits.nbytes * 8 / (len(found) * found.units) <= 1.05


def test_gates_and_features_may_lie_in_files(tmp_path):
    net, t = mixed(), images()
    found = gates(t, tmp_path / "gates.npy")(net)
    assert isinstance(found.bits, np.memmap) and np.array_equal(found.bits, gates(t)(net).bits)
    kept = features(t, folder=tmp_path)(net)
    assert all(torch.equal(kept[name], value) for name, value in features(t)(net).items())
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".npy"] * 7


def test_each_network_keeps_what_was_said_of_it_whatever_comes_into_its_file(tmp_path):
    """A second network through the same file, or none of it, changes nothing of the first."""
    t, nets = images(), [mixed(seed) for seed in (0, 1)]
    look, felt = gates(t, tmp_path / "gates.npy"), features(t, folder=tmp_path)
    for net, found, kept in [(net, look(net), felt(net)) for net in nets]:
        assert np.array_equal(found.bits, gates(t)(net).bits)
        assert all(torch.equal(kept[name], value) for name, value in features(t)(net).items())
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    bad = nets[0].at(nets[0].weights * math.nan)
    for again in (look, felt):
        with pytest.raises(WeightspaceError, match="NaN in the units"):
            again(bad)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


class Noisy(Dataset):
    """Noise is added to an example each time that it is read, as random crops are."""

    def __len__(self):
        return 20

    def __getitem__(self, i):
        return torch.randn(1, 4, 4, dtype=torch.float64), i % 3


@pytest.mark.parametrize("look", [gates, features])
def test_data_that_differ_from_pass_to_pass_have_neither(look):
    """Each look takes the data for a task of its own: between two of them nothing could tell."""
    for data in (Noisy(), DataLoader(Noisy(), 8), DataLoader(Noisy(), 20)):
        with pytest.raises(WeightspaceError, match="differ from pass to pass"):
            look(data)(chain())


def test_paths_are_compared_of_the_same_examples_alone():
    """Cut otherwise or in another precision they are the same, in another order or a number changed they are not."""
    net, t = chain(), images()
    x, p = t.example(len(t)), gates(t)(net)
    other = x.clone()
    other[3, 0, 1, 2] += 1
    same = Task(x, batch=3), Task(x.float()), Task(list(zip(x, torch.zeros(len(x)), strict=True)), batch=7)
    for q in (gates(task)(net) for task in same):
        assert torch.equal(q.everything(), p.everything()) and float(self_path(p, q).min()) == 1
        assert torch.equal(self_path(p.take([2, 1]), q.take([2, 1])), torch.ones(2, dtype=torch.float64))
    for task in (Task(x.flip(0)), Task(other)):
        q = gates(task)(net)
        for ask in (lambda q=q: self_path(p, q), lambda q=q: cross_path(p, q), lambda task=task: forced(net, p, task)):
            with pytest.raises(WeightspaceError, match="paths are of different examples"):
                ask()
        assert len(self_path(p.everything(), q.everything())) == len(x)
    with pytest.raises(WeightspaceError, match="paths are of different examples"):
        self_path(p.take([0, 1]), p.take([1, 0]))


def test_a_place_that_is_not_there_is_named(tmp_path):
    for look in (gates(images(), tmp_path / "no" / "g.npy"), features(images(), folder=tmp_path / "no")):
        with pytest.raises(WeightspaceError, match="cannot be written .No such file.*check the path"):
            look(chain())


def test_smooth_functions_have_gates_by_sign_and_say_so():
    torch.manual_seed(0)
    net = Net.of(nn.Sequential(nn.Flatten(), nn.Linear(16, 5), nn.GELU(), nn.Linear(5, 5), nn.SiLU()).double())
    found = gates(images())(net)
    assert found.inexact == ("2", "4") and torch.equal(found["2"], features(images(), "maps")(net)["1"] > 0)
    with pytest.raises(WeightspaceError, match="layer 2 has no kink"):
        forced(net, found)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_networks_of_the_registry(case):
    """Gates or a clear refusal; hooks gone, the function as before, its own path gives its own outputs."""
    net = Net.of(case.make(0))
    t = Task(case.example(1))
    before = t.outputs(net)
    try:
        found = gates(t)(net)
    except WeightspaceError as error:
        assert "no gates" in str(error)
    else:
        assert found.units > 0
        if not found.inexact:
            assert torch.allclose(forced(net, found), before, atol=1e-10)
    assert not any(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.architecture.modules())
    assert torch.equal(t.outputs(net), before)


def test_hooks_are_removed_when_a_network_fails():
    net, t = chain(), images()
    broken = net.at(net.weights.replace({"3.bias": net.weights["3.bias"] * math.nan}))
    with pytest.raises(WeightspaceError, match="NaN in the units of layer 4"):
        gates(t)(broken)
    with pytest.raises(WeightspaceError, match="does not take inputs of shape"):
        gates(Task(torch.zeros(4, 5, dtype=torch.float64)))(net)
    assert not any(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.architecture.modules())
    assert gates(t)(net).units == 22


def test_no_half_of_a_file_stays(tmp_path):
    net, t = chain(), images()
    broken = net.at(net.weights.replace({"3.bias": net.weights["3.bias"] * math.nan}))
    for look in (gates(t, tmp_path / "gates.npy"), features(t, folder=tmp_path)):
        with pytest.raises(WeightspaceError, match="NaN in the units of layer 4"):
            look(broken)
        assert not list(tmp_path.iterdir())


def test_gates_refuse_what_has_none():
    plain = Net.of(nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.Tanh()).double())
    with pytest.raises(WeightspaceError, match="has no gates"):
        gates(images())(plain)
    with pytest.raises(WeightspaceError, match="no layers of this kind"):
        features(images())(plain)
    with pytest.raises(WeightspaceError, match="of takes 'units' or 'maps', got str 'neurons'"):
        features(images(), "neurons")
    with pytest.raises(WeightspaceError, match="kept as float16"):
        features(images(), dtype=torch.bfloat16, folder=".")(chain())
    with pytest.raises(WeightspaceError, match="no layer 'x' among the gates; there are 2, 4"):
        gates(images())(chain())["x"]

    class First(nn.Module):
        def forward(self, x):
            return torch.relu(x.flatten(1).T[:7]).sum(0)[: len(x), None]

    with pytest.raises(WeightspaceError, match="the first axis must be the example"):
        gates(images(8))(Net.of(First()))


# ------------------------------------------------------------------ given gates


@pytest.mark.parametrize("make", [mixed, chain])
def test_a_network_along_its_own_path_is_itself_and_along_another_is_linear(make):
    net, t = make(), images()
    own, other = gates(t)(net), gates(t)(make(1))
    assert torch.allclose(forced(net, own), t.outputs(net), atol=1e-12)
    assert not torch.allclose(forced(net, other), t.outputs(net), atol=1e-3)


def test_given_gates_against_the_dense_formula():
    net, t = chain(), images()
    p, x, w = gates(t)(chain(1)), t.example(20).flatten(1), chain().weights
    h = (x @ w["1.weight"].T + w["1.bias"]) * p["2"]
    h = (h @ w["3.weight"].T + w["3.bias"]) * p["4"]
    assert torch.allclose(forced(net, p), h @ w["5.weight"].T + w["5.bias"], atol=1e-12)


def test_given_gates_must_fit():
    p, t = gates(images())(chain()), images()
    with pytest.raises(WeightspaceError, match="gates of 20 examples do not fit a task of 7"):
        forced(chain(), p, t.take(7))
    with pytest.raises(WeightspaceError, match="does not fit the gates"):
        forced(chain(sizes=(16, 11, 10, 3)), p)
    with pytest.raises(WeightspaceError, match="do not know their task"):
        forced(chain(), Gates(p.bits, p.layers))
    with pytest.raises(WeightspaceError, match="has no layer 4"):
        forced(Net.of(nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.ReLU()).double()), p)


# ------------------------------------------------------------------ what one example writes


@pytest.mark.parametrize("make", [mixed, chain])
def test_sgd_is_the_sum_of_what_examples_write(make):
    """w_T - w_0 = -lr sum_t mean_i f_i^t, torch's own optimiser beside it."""
    start, t, rate = make(), images(), 0.1
    module = start.module()
    optimiser = torch.optim.SGD(module.parameters(), lr=rate)
    written = start.weights.zeros()
    x, y = t.example(20), t.labels()
    for step in range(5):
        batch = list(range(4 * step, 4 * step + 4))
        now = Net.of(module)
        written = written + sum((image_function(now, t, i).weights for i in batch), start.weights.zeros()) / 4
        optimiser.zero_grad()
        F.cross_entropy(module(x[batch]), y[batch]).backward()
        optimiser.step()
    moved = Net.of(module) - start
    assert float((moved + rate * written).norm()) < 1e-12 * float(moved.norm())
    assert float((moved + 1.01 * rate * written).norm()) > 1e-3 * float(moved.norm()), "a planted error is seen"


def test_what_an_example_writes_is_of_rank_one_and_acts_on_inputs_of_the_layer():
    net, t = chain(), images()
    f = image_function(net, t, 3)
    assert list(f.layers) == ["1", "3", "5"]
    assert int(torch.linalg.matrix_rank(f.weights["3.weight"])) <= 1
    seen = features(t, dtype=torch.float64)(net)["2"]
    d, a = f.weights["3.bias"], seen[3]
    assert torch.allclose(f(seen, "3"), (seen @ a)[:, None] * d + d, atol=1e-12)
    off = ~gates(t)(net)["4"][3]
    assert not bool(f.weights["3.bias"][off].any()), "units that are off write nothing"
    assert f.isolated(t).shape == (20, 3)
    with pytest.raises(WeightspaceError, match="no layer 'x' here"):
        f(seen, "x")
    with pytest.raises(WeightspaceError, match="example 20 is not in"):
        image_function(net, t, 20)


def test_the_correlation_of_two_examples_is_that_of_their_parts():
    """<d_i a_i^T, d_j a_j^T> = (d_i . d_j)(a_i . a_j)."""
    net, t = chain(), images()
    f, g = (image_function(net, t, k) for k in (0, 1))
    a = features(t, dtype=torch.float64)(net)["2"]
    d, e = f.weights["3.bias"], g.weights["3.bias"]
    parts = [(u @ v) * (1 + x @ y) for u, v, x, y in ((d, e, a[0], a[1]), (d, d, a[0], a[0]), (e, e, a[1], a[1]))]
    found = f.correlation(g)
    assert found["3"] == pytest.approx(float(parts[0] / (parts[1] * parts[2]).sqrt()), abs=1e-12)
    assert set(found) == {"1", "3", "5", "all"} and f.correlation(f)["all"] == pytest.approx(1)


# ------------------------------------------------------------------ paths compared


def paths(n: int = 30, units: int = 70, seed: int = 0, on: float = 0.3) -> torch.Tensor:
    return torch.rand(n, units, generator=torch.Generator().manual_seed(seed)) < on


def pair_by_pair(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    found = torch.zeros(len(p), len(p), dtype=torch.float64)
    for i in range(len(p)):
        for j in range(len(p)):
            x, y = (p[i] & p[j]).double(), (q[i] & q[j]).double()
            size = float(x.norm() * y.norm())
            found[i, j] = float(x @ y) / size if size else float(not x.any() and not y.any())
    return found


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 12), st.integers(1, 40), st.integers(0, 99), st.sampled_from([0.0, 0.1, 0.5, 1.0]))
def test_all_pairs_are_what_each_pair_is(n, units, seed, on):
    p, q = paths(n, units, seed, on), paths(n, units, seed + 1, on)
    oracle = pair_by_pair(p, q)
    found = cross_path(p, q)
    assert torch.allclose(found.double(), oracle, atol=1e-6) and torch.equal(found, found.T)
    assert torch.allclose(self_path(p, q), oracle.diagonal(), atol=1e-12)
    a, b = p.double() * 1.7, q.double() * 0.3
    assert torch.allclose(cross_features(a, b), pair_by_pair(p, q), atol=1e-6)
    assert torch.allclose(self_features(a, b), pair_by_pair(p, q).diagonal(), atol=1e-12)


def test_a_planted_bit_is_seen():
    p, q = paths(10, 40), paths(10, 40, 1)
    found, wrong = cross_path(p, q), p.clone()
    wrong[0, 0] = ~wrong[0, 0]
    assert not torch.allclose(found.double(), pair_by_pair(wrong, q), atol=1e-6)


@pytest.mark.parametrize("whole", [True, False])
def test_products_of_bytes_are_those_of_numbers(whole, monkeypatch):
    """Over several blocks of rows and chunks of units; the way without integer kernels too."""
    if not whole:
        monkeypatch.setattr(counts, "integer_product", lambda: None)
    monkeypatch.setattr(counts, "_CHUNK", 300)
    p, q = paths(600, 1000), paths(600, 1000, 1)
    exact = (p & q).double() @ (p & q).double().T
    assert torch.equal(overlap(p & q).double(), exact)
    sizes = [t.double() @ t.double().T for t in (p, q)]
    assert torch.allclose(cross_path(p, q).double(), exact / (sizes[0] * sizes[1]).sqrt(), atol=1e-6)
    again = cross_path(p, q, overlaps=(overlap(p), overlap(q)))
    assert torch.equal(again, cross_path(p, q))


def test_layers_of_packed_gates():
    t = images(30)
    p, q = gates(t)(mixed()), gates(t)(mixed(1))
    for layer in p.layers:
        assert torch.equal(cross_path(p, q, layer), cross_path(p[layer], q[layer]))
        assert torch.equal(self_path(p, q, layer), self_path(p[layer], q[layer]))
    assert torch.equal(cross_path(p, q), cross_path(p.everything(), q.everything()))
    some = p.take([3, 1])
    assert torch.equal(some["relu"], p["relu"][[3, 1]])


def test_overlaps_of_every_kind():
    p = paths()
    a, b = p[2].double(), p[5].double()
    told = {kind: float(overlap(p, kind)[2, 5]) for kind in path_overlap.KINDS}
    union = float(((a + b) > 0).sum())
    assert told == {
        "count": float(a @ b), "cosine": pytest.approx(float(a @ b / (a.norm() * b.norm()))),
        "jaccard": pytest.approx(float(a @ b) / union), "hamming": pytest.approx(float((a == b).double().mean())),
    }  # fmt: skip
    assert bool((overlap(torch.zeros(3, 4, dtype=torch.bool), "jaccard") == 1).all())


def test_shared_paths_are_counted():
    t = images(6)
    net = chain(sizes=(16, 4, 3, 3))
    p = gates(t)(net)
    open_pairs = [[(i, j) for i in range(4) for j in range(3) if p["2"][e, i] and p["4"][e, j]] for e in range(6)]
    oracle = torch.tensor([[float(len({*a} & {*b})) for b in open_pairs] for a in open_pairs], dtype=torch.float64)
    assert torch.equal(shared_paths(p), oracle)
    assert torch.allclose(shared_paths(p, log=True).exp(), oracle)


def test_units_that_are_never_on():
    net, t = chain(), images()
    bias = net.weights["1.bias"].clone()
    bias[:3] = -1e6
    dull = net.at(net.weights.replace({"1.bias": bias}))
    found = dead(gates(t)(dull))
    assert found["2"] == pytest.approx(1 - float(gates(t)(dull)["2"].any(0).double().mean())) and found["2"] >= 3 / 12


def test_turnover_is_relative_to_the_way():
    a, b, t = chain(), chain(1), images()
    near = a + 0.01 * (b - a)
    p, q = gates(t)(a), gates(t)(near)
    assert turnover(p, q, relative_trust(a, near)) == pytest.approx(
        float(1 - self_path(p, q).mean()) / relative_trust(a, near)
    )
    with pytest.raises(WeightspaceError, match="positive distance, got 0"):
        turnover(p, p, 0.0)


def test_neighbours_over_time():
    history = [paths(40, 60, seed) for seed in (0, 0, 1)]
    found = neighbours(history, anchors=(5, 10), candidates=30, nearest=4)
    assert found.ranks.shape == (3, 2, 30) and found.ranks[0, 0].sort()[0].tolist() == list(range(30))
    assert int(found.ranks[0, 0, 5]) == 29, "the anchor comes last"
    assert found.jaccard[0].tolist() == [1, 1] and found.kendall[0].tolist() == pytest.approx([1, 1])
    close = overlap(history[0])[5, :30].clone()
    close[5] = -1
    assert int(found.ranks[0, 0, close.argmax()]) == 0 and float(found.kendall[1, 0]) < 0.9
    with pytest.raises(WeightspaceError, match="do not fit"):
        neighbours(history, anchors=(50,))


def test_overlap_against_distance():
    x = torch.linspace(0, 1, 20)[:, None]
    ladder = torch.linspace(0, 1, 50) < x
    assert against_distance(ladder, x)["hamming"] < -0.95, "paths that differ as their inputs do"
    assert abs(against_distance(paths(60), torch.randn(60, 5))["cosine"]) < 0.2
    with pytest.raises(WeightspaceError, match="do not fit 3 inputs"):
        against_distance(ladder, x[:3])


def test_stages_of_a_schedule():
    assert early_to_mid([0.4, 0.6, 1.0, 1.0, 9.0], 2, 4) == pytest.approx(0.5)
    with pytest.raises(WeightspaceError, match="0 < first < second"):
        early_to_mid([1.0], 1, 1)


def test_paths_must_be_of_one_kind():
    p = paths()
    for bad, message in (
        (lambda: self_path(p, p[:3]), "cannot be compared"),
        (lambda: cross_path(p, p.float()), "Bool"),
        (lambda: overlap(p, "dice"), "kind takes 'count' or 'cosine'"),
        (lambda: overlap(p, layer="x"), "plain tensor"),
        (lambda: self_features(p.float(), p[:2].float()), "cannot be compared"),
    ):
        with pytest.raises(WeightspaceError, match=message):
            bad()


def test_paths_tell_of_training(tmp_path):
    """On digits the paths of trained networks are closer together than those of fresh ones."""
    from weightspace.flows.goals import learn
    from weightspace.flows.stepper import flow
    from weightspace.metric.metric import Adam
    from weightspace.task.datasets import digits

    train, probe = digits("train", flat=True), digits("test", flat=True).take(100)
    torch.manual_seed(0)
    start = Net.of(nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)))
    path = flow(start, learn(train, 64, 0), Adam(), steps=120, size=5e-3, save=40)
    found = [gates(probe)(net) for net in path]
    kept = [float(self_path(p, q).mean()) for p, q in zip(found, found[1:], strict=False)]
    assert kept == sorted(kept) and kept[-1] > 0.9 and accuracy(probe)(path[-1]) > 0.8
