"""The laws of a task: sums over batches, unions and segments equal the same sums written out densely."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, WeightedRandomSampler

import weightspace as ws
from weightspace.commands.scores import Score, scored
from weightspace.metric.distance import functional
from weightspace.net.errors import CallError, WeightspaceError
from weightspace.net.net import Net
from weightspace.task.classification import accuracy, together
from weightspace.task.examples import TaskError
from weightspace.task.goal import gradient
from weightspace.task.measures import METRICS
from weightspace.task.outputs import logits
from weightspace.task.task import Task

CLASSES, WIDTH, SIZE = 5, 6, 23
AGGREGATES = {
    "mean": torch.mean,
    "sum": torch.sum,
    "l1": lambda d: torch.linalg.vector_norm(d, 1),
    "l2": lambda d: torch.linalg.vector_norm(d, 2),
    "linf": lambda d: torch.linalg.vector_norm(d, math.inf),
}
DISTANCES = {
    "cross-entropy": lambda f, y: -f.softmax(1).log()[torch.arange(len(y)), y],
    "zero-one": lambda f, y: torch.tensor([float(row.argmax() != c) for row, c in zip(f, y, strict=True)]),
    "squared": lambda f, y: torch.stack([(row - c).dot(row - c) for row, c in zip(f, y, strict=True)]),
    "l1": lambda f, y: torch.stack([torch.linalg.vector_norm(r - c, 1) for r, c in zip(f, y, strict=True)]),
    "l2": lambda f, y: torch.stack([torch.linalg.vector_norm(r - c, 2) for r, c in zip(f, y, strict=True)]),
    "linf": lambda f, y: torch.stack([(r - c).abs().max() for r, c in zip(f, y, strict=True)]),
}


def smooth_max(d):
    return d.logsumexp(0)


def draw(n, seed=0, classes=True):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, WIDTH, generator=generator, dtype=torch.float64)
    y = torch.randint(CLASSES, (n,), generator=generator)
    return x, y if classes else torch.randn(n, CLASSES, generator=generator, dtype=torch.float64)


def labelled(metric, n=SIZE, seed=0):
    return draw(n, seed, classes=metric in ("cross-entropy", "zero-one"))


@pytest.fixture(scope="module")
def net():
    return network(0)


def network(seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Net.of(nn.Sequential(nn.Linear(WIDTH, 7), nn.Tanh(), nn.Linear(7, CLASSES))).double()


def close(a, b, tolerance=1e-12):
    torch.testing.assert_close(a, torch.as_tensor(b, dtype=a.dtype), rtol=tolerance, atol=tolerance)


def dense_gradient(net, function):
    weights = {name: w.detach().clone().requires_grad_() for name, w in net.weights.items()}
    value = function(lambda x: torch.func.functional_call(net.architecture, weights, (x,)))
    return dict(zip(weights, torch.autograd.grad(value, list(weights.values())), strict=True))


# the definition


@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize("metric", DISTANCES)
@pytest.mark.parametrize("batch", [1, 7, SIZE, 512])
def test_a_task_is_the_metric_then_the_aggregate(net, metric, aggregate, batch):
    x, y = labelled(metric)
    d = DISTANCES[metric](net(x), y).double()
    task = Task(x, y, metric=metric, aggregate=aggregate, batch=batch)
    close(task(net), AGGREGATES[aggregate](d))
    close(task.distances(net), d)
    assert task(net).shape == () and task(net).dtype == torch.float64


def test_the_tables_of_this_file_cover_every_name():
    assert set(DISTANCES) == set(METRICS)


def test_the_oracle_sees_a_wrong_weight_of_the_last_batch(net):
    x, y = draw(SIZE)
    parts = [float(Task(x[i : i + 10], y[i : i + 10])(net)) for i in range(0, SIZE, 10)]
    assert abs(sum(parts) / len(parts) - float(Task(x, y, batch=10)(net))) > 1e-3


def test_defaults_follow_the_labels(net):
    assert Task(*draw(4)).metric == "cross-entropy" and Task(*draw(4, classes=False)).metric == "squared"
    assert Task(*draw(4)).aggregate == "mean"
    assert Task(draw(4)[0], [0, 1, 2, 3]).metric == "cross-entropy"
    assert Task(TensorDataset(*draw(4, classes=False))).metric == "squared"


@pytest.mark.parametrize("aggregate", ["mean", "sum"])
@pytest.mark.parametrize("loss", [F.cross_entropy, nn.CrossEntropyLoss(), partial(F.cross_entropy)])
def test_a_batch_mean_is_weighed_by_the_size_of_its_batch(net, loss, aggregate):
    x, y = draw(SIZE)
    close(Task(x, y, loss=loss, aggregate=aggregate, batch=10)(net), Task(x, y, aggregate=aggregate)(net))
    close(Task(x, y, metric=loss, aggregate=aggregate, batch=10)(net), Task(x, y, aggregate=aggregate)(net))


def test_a_metric_and_an_aggregate_may_be_functions(net):
    x, y = draw(SIZE, classes=False)
    task = Task(x, y, metric=lambda f, y: (f - y).abs().pow(3).sum(1), aggregate=smooth_max, batch=6)
    close(task(net), (net(x) - y).abs().pow(3).sum(1).logsumexp(0))


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_distances_may_be_signed(net, aggregate):
    x, y = draw(SIZE, classes=False)
    task = Task(x, y, metric=lambda f, y: (f - y)[:, 0], aggregate=aggregate, batch=6)
    close(task(net), AGGREGATES[aggregate]((net(x) - y)[:, 0]))
    assert float(task.distances(net).min()) < 0 < float(task.distances(net).max())
    expected = dense_gradient(net, lambda f: AGGREGATES[aggregate]((f(x) - y)[:, 0]))
    close(gradient(task, net)["0.weight"], expected["0.weight"], 1e-11)


def test_soft_labels_agree_with_hard_ones_and_may_name_fewer_classes(net):
    x, y = draw(SIZE)
    y = y % 3
    for metric in ("cross-entropy", "zero-one"):
        hard = Task(x, y, metric=metric)(net)
        close(Task(x, F.one_hot(y, CLASSES).double(), metric=metric)(net), hard)
        close(Task(x, F.one_hot(y, 3).double(), metric=metric)(net), hard)


def test_integer_labels_stand_for_one_hot_vectors_under_a_norm(net):
    x, y = draw(SIZE)
    for metric in ("squared", "l1", "l2", "linf"):
        close(Task(x, y, metric=metric)(net), Task(x, F.one_hot(y, CLASSES).double(), metric=metric)(net))


def test_one_output_fits_labels_of_one_axis():
    line = Net.of(nn.Linear(WIDTH, 1)).double()
    x, _ = draw(SIZE)
    y = x[:, 0].clone()
    close(Task(x, y)(line), (line(x)[:, 0] - y).square().mean())
    close(Task(x, (y > 0).long(), metric="squared")(line), (line(x)[:, 0] - (y > 0).double()).square().mean())


def test_each_labelled_position_of_a_sequence_is_an_example(net):
    x, y = draw(24)
    x, y = x.view(4, 6, WIDTH), y.view(4, 6).clone()
    y[0, 1:] = -100
    for loss in (None, lambda f, y: F.cross_entropy(f.flatten(0, 1), y.flatten())):
        value = Task(x, y, loss=loss, batch=3)(net)
        close(value, F.cross_entropy(net(x).flatten(0, 1), y.flatten()))
    right = (net(x).argmax(-1) == y)[y != -100].double().mean()
    assert accuracy(Task(x, y, batch=3))(net) == float(right)


def test_a_batch_without_labels_does_not_count(net):
    x, y = draw(SIZE)
    y = y.clone()
    y[:10] = -100
    for loss in (None, F.cross_entropy):
        task = Task(x, y, loss=loss, batch=10)
        close(task(net), Task(x[10:], y[10:])(net))
        close(gradient(task, net)["0.weight"], gradient(Task(x[10:], y[10:]), net)["0.weight"])
    for aggregate in ("mean", "linf"):
        with pytest.raises(TaskError, match="no example has a label"):
            Task(x, torch.full_like(y, -100), aggregate=aggregate)(net)


# gradients


@pytest.mark.parametrize("aggregate", [*AGGREGATES, "function"])
@pytest.mark.parametrize("metric", ["cross-entropy", "squared", "l2", "linf"])
def test_the_gradient_is_that_of_the_dense_loss(net, metric, aggregate):
    x, y = labelled(metric)
    whole = AGGREGATES.get(aggregate, smooth_max)
    expected = dense_gradient(net, lambda f: whole(DISTANCES[metric](f(x), y)))
    task = Task(x, y, metric=metric, aggregate=smooth_max if aggregate == "function" else aggregate, batch=7)
    streamed, plain = gradient(task, net), gradient(lambda net: task(net), net)
    for name, value in expected.items():
        close(streamed[name], value, 1e-11)
        close(plain[name], value, 1e-11)
        assert value.norm() > 1e-6 and not streamed[name].requires_grad


def test_the_gradient_of_a_loss_function_is_weighed_too(net):
    x, y = draw(SIZE)
    expected = dense_gradient(net, lambda f: F.cross_entropy(f(x), y))
    found = gradient(Task(x, y, loss=F.cross_entropy, batch=10), net)
    for name, value in expected.items():
        close(found[name], value, 1e-11)


def test_the_gradient_survives_no_grad_and_leaves_the_net_alone(net):
    before = net.weights.clone()
    with torch.no_grad():
        found = gradient(Task(*draw(SIZE)), net)
    assert float(found.norm()) > 0 and float((net.weights - before).norm()) == 0
    assert not any(flat.requires_grad for flat in net.weights.buffers)


def test_the_l2_gradient_at_a_perfect_fit_is_zero(net):
    x, _ = draw(SIZE)
    task = Task(x, net(x).detach(), metric="l1", aggregate="l2")
    assert float(task(net)) == 0 and float(gradient(task, net).norm()) == 0
    assert float(gradient(lambda net: task(net), net).norm()) == 0


def test_memory_of_a_streamed_gradient_is_one_batch(net):
    x, y = draw(SIZE)
    alive, most = set(), []

    def forget(batch, grad):
        alive.discard(batch)

    def watched(f, y):
        alive.add(len(most))
        f.register_hook(partial(forget, len(most)))
        most.append(len(alive))
        return F.cross_entropy(f, y, reduction="none")

    gradient(Task(x, y, metric=watched, batch=4), net)
    assert max(most) == 1 and len(most) == 6


def test_the_value_has_a_graph_only_if_the_weights_learn(net):
    task = Task(*draw(SIZE), batch=7)
    assert not task(net).requires_grad
    learning = net.at(net.weights.map(lambda w: w.detach().clone().requires_grad_()))
    value = task(learning)
    value.backward()
    close(learning.weights.buffers[0].grad, gradient(task, net).buffers[0])
    with torch.no_grad():
        assert not task(learning).requires_grad
    assert not task.outputs(learning).requires_grad


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # of torch's own forward mode
@pytest.mark.parametrize("aggregate", ["mean", "l2", "linf"])
def test_a_task_passes_through_torch_func(net, aggregate):
    task = Task(*draw(SIZE), aggregate=aggregate, batch=9)
    along = net.weights.randn(seed=1)

    def value(t):
        return task(net + t * along)

    zero = torch.zeros((), dtype=torch.float64)
    slope = gradient(task, net).dot(along)
    close(torch.func.jvp(value, (zero,), (torch.ones_like(zero),))[1], slope, 1e-10)
    close(torch.func.grad(value)(zero), slope, 1e-10)


def test_a_goal_without_gradient_is_refused(net):
    for goal in (Task(*draw(4), metric="zero-one"), lambda net: 1.0, lambda net: net.weights.buffers[0]):
        with pytest.raises(TaskError, match="the goal has no gradient"):
            gradient(goal, net)


# unions and segments


def test_a_layer_that_writes_into_its_weights_leaves_the_network_alone():
    class Clipped(nn.Linear):
        def forward(self, x):
            self.weight.data.clamp_(-0.01, 0.01)
            return super().forward(x)

    x, y = draw(SIZE)
    clipped = Net.of(Clipped(x.shape[1], CLASSES).double())
    before = clipped.weights.clone()
    gradient(Task(x, y), clipped)
    assert torch.equal(clipped.weights.flat(), before.flat())


def test_labels_are_those_of_the_batches_in_their_order():
    x, y = draw(SIZE)
    whole, some = Task(x, y, batch=4), Task(DataLoader(TensorDataset(x, y), batch_size=4))
    for task in (whole, some, whole | some):
        assert torch.equal(task.labels(), torch.cat([labels for _, labels in task.batches()]))
        assert torch.equal(task.labels(9), y[:9])
    with pytest.raises(TaskError, match="no labels"):
        Task(x).labels()


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_a_union_aggregates_over_all_examples(net, aggregate):
    (x, y), (u, v) = draw(SIZE), draw(9, seed=1)
    both = Task(x, y, aggregate=aggregate, batch=10) | Task(TensorDataset(u, v), aggregate=aggregate, batch=4)
    whole = Task(torch.cat([x, u]), torch.cat([y, v]), aggregate=aggregate)
    assert len(both) == SIZE + 9
    close(both(net), whole(net))
    close(gradient(both, net)["2.bias"], gradient(whole, net)["2.bias"], 1e-11)
    close(both.outputs(net), whole.outputs(net))


@settings(max_examples=20, deadline=None)
@given(n=st.integers(1, 12), m=st.integers(1, 12), batch=st.integers(1, 13))
def test_the_mean_over_a_union_weighs_by_size(n, m, batch):
    net = network(0)
    a, b = Task(*draw(n), batch=batch), Task(*draw(m, seed=1), batch=batch)
    close((a | b)(net), (n * a(net) + m * b(net)) / (n + m))


def test_tasks_of_different_metric_or_aggregate_do_not_join():
    a, b = Task(*draw(4)), Task(*draw(4, classes=False))
    with pytest.raises(TaskError, match="different metric, cross-entropy and squared"):
        a | b
    with pytest.raises(TaskError, match="different aggregate, mean and sum"):
        a | Task(*draw(4), aggregate="sum")
    with pytest.raises(TaskError, match="different output"):
        a | Task(*draw(4), output=lambda raw: raw)
    with pytest.raises(TypeError):
        a | 3


def test_a_segment_of_tasks_has_its_ends(net):
    a, b = Task(*draw(SIZE)), Task(*draw(SIZE, seed=1))
    close(a.toward(b, 0.0)(net), a(net))
    close(a.toward(b, 1.0)(net), b(net))
    assert accuracy(a.toward(b, 1.0))(net) == accuracy(b)(net)
    (x, y), (u, v) = draw(SIZE), draw(SIZE, seed=1)
    log = net(0.7 * x + 0.3 * u).log_softmax(1)
    rows = torch.arange(SIZE)
    close(a.toward(b, 0.3)(net), -(0.7 * log[rows, y] + 0.3 * log[rows, v]).mean())


def test_a_segment_of_regressions_is_linear(net):
    (x, y), (u, v) = draw(SIZE, classes=False), draw(SIZE, seed=1, classes=False)
    found = Task(x, y).toward(Task(u, v), 0.25)(net)
    close(found, Task(0.75 * x + 0.25 * u, 0.75 * y + 0.25 * v)(net))


def test_a_segment_pairs_over_the_shorter_task_and_takes_any_source(net):
    a, b = Task(*draw(SIZE)), Task(DataLoader(TensorDataset(*draw(9, seed=1)), batch_size=4))
    for one, two in ((a, b), (b, a)):
        assert len(one.toward(two, 0.5)) == 9
        close(one.toward(two, 0.0)(net), one.take(9)(net))
        close(one.toward(two, 0.5)(net), two.toward(one, 0.5)(net))


def test_segments_may_be_chained(net):
    a, b, c = (Task(*draw(SIZE, seed)) for seed in range(3))
    close(a.toward(b, 0.5).toward(c, 1.0)(net), c(net))


def test_a_segment_refuses_what_lies_not_between():
    x, y = draw(6)
    tokens = torch.arange(6).view(6, 1)
    a = Task({"input_ids": tokens}, y)
    with pytest.raises(TaskError, match="no point between"):
        a.toward(Task({"input_ids": tokens + 1}, y), 0.5)
    for t in (-0.1, 1.5, math.nan):
        with pytest.raises(TaskError, match="t is"):
            Task(x, y).toward(Task(x, y), t)
    with pytest.raises(TaskError, match="inputs of different shape"):
        Task(x, y).toward(Task(x[:, :1], y), 0.5)
    with pytest.raises(TaskError, match="inputs of different shape"):
        Task({"a": x}, y).toward(Task({"b": x}, y), 0.5)
    with pytest.raises(TaskError, match="labels of different shape"):
        Task(x, x).toward(Task(x, x[:, :1]), 0.5)
    with pytest.raises(TaskError, match="label -100 has no one-hot"):
        Task(x, torch.full((6,), -100)).toward(Task(x, y), 0.5)


# parts


@pytest.mark.parametrize("kind", ["tensors", "dataset", "union"])
def test_a_split_is_a_partition(net, kind):
    x, y = draw(SIZE)
    x[:, 0] = torch.arange(SIZE)
    task = {
        "tensors": Task(x, y),
        "dataset": Task(TensorDataset(x, y)),
        "union": Task(x[:9], y[:9]) | Task(TensorDataset(x[9:], y[9:])),
    }[kind]
    first, rest = task.split(0.3, seed=5)
    assert (len(first), len(rest)) == (7, 16)
    rows = [part.example(SIZE)[:, 0].tolist() for part in (first, rest)]
    assert sorted(rows[0] + rows[1]) == list(range(SIZE)) and all(r == sorted(r) for r in rows)
    assert rows[0] == Task(x, y).split(0.3, seed=5)[0].example(SIZE)[:, 0].tolist()
    assert rows[0] != task.split(0.3, seed=6)[0].example(SIZE)[:, 0].tolist()
    close((7 * first(net) + 16 * rest(net)) / SIZE, Task(x, y)(net))


def test_take_is_a_prefix_or_a_sample():
    x, y = draw(SIZE)
    loader = Task(DataLoader(TensorDataset(x, y), batch_size=4))
    sample = Task(x, y).take(5, seed=1).example(5)
    assert len(sample) == 5 and not torch.equal(sample, x[:5])
    assert not torch.equal(sample, Task(x, y).take(5, seed=2).example(5))
    for task in (Task(x, y), Task(TensorDataset(x, y)), loader, Task(Stream(x, y)), loader | Task(x, y)):
        assert torch.equal(task.take(5).example(5), x[:5]) and len(task.take(5)) == 5
        assert torch.equal(task.take(99).take(SIZE).example(SIZE), x)
    for task in (Task(TensorDataset(x, y)), loader, Task(Stream(x, y))):
        assert torch.equal(task.take(5, seed=1).example(5), sample)


def test_parts_that_do_not_exist_are_refused():
    x, y = draw(4)
    for fraction in (0.0, 1.0, 0.01, 2.0, math.nan):
        with pytest.raises(TaskError, match="leaves a side empty"):
            Task(x, y).split(fraction, seed=0)
    for n in (0, -1):
        with pytest.raises(TaskError, match=f"asked for {n} examples"):
            Task(x, y).take(n)
    with pytest.raises(TaskError, match=r"give Task\(loader.dataset\)"):
        Task(DataLoader(TensorDataset(x, y))).split(0.5, seed=0)
    with pytest.raises(TaskError, match="asked for 0"):
        Task(x, y).example(0)


# where examples come from


class Pairs(Dataset):
    def __init__(self, *columns, names=None):
        self.columns, self.names = columns, names

    def __len__(self):
        return len(self.columns[0])

    def __getitem__(self, i):
        row = tuple(column[i] for column in self.columns)
        return dict(zip(self.names, row, strict=True)) if self.names else row


class Keywords(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.read = nn.Embedding(11, 4), nn.Linear(4, CLASSES)

    def forward(self, input_ids, attention_mask):
        x = self.embed(input_ids) * attention_mask[..., None]
        return {"logits": self.read(x.sum(1))}


class Hub:
    """As a Hugging Face dataset: lists unless a format is asked for."""

    def __init__(self, columns, form=None):
        self.columns, self.form = columns, form

    column_names = property(lambda self: list(self.columns))

    def with_format(self, form):
        return Hub(self.columns, form)

    def __len__(self):
        return len(self.columns["labels"])

    def __getitem__(self, i):
        row = {name: column[i] for name, column in self.columns.items()}
        return {k: torch.as_tensor(v) for k, v in row.items()} if self.form == "torch" else row


def test_every_source_gives_the_same_loss(net):
    x, y = draw(SIZE)
    expected, data = Task(x, y)(net), TensorDataset(x, y)
    sources = {
        "numpy": Task(x.numpy(), y.numpy().astype(np.int32)),
        "read-only, big-endian": Task(frozen(x.numpy().astype(">f8")), frozen(y.numpy().astype(">i2"))),
        "reversed view": Task(x.flip(0).numpy()[::-1], y.flip(0).numpy()[::-1]),
        "positional": Task((x,), y),
        "dict": Task({"input": x, "labels": y}),
        "dict and labels": Task({"input": x}, y),
        "dataset": Task(data, batch=4),
        "list of pairs": Task(list(zip(x, y.tolist(), strict=True)), batch=4),
        "dataset of dicts": Task(Pairs(x, y, names=["input", "label"]), batch=4),
        "loader": Task(DataLoader(data, batch_size=4)),
        "shuffled loader": Task(DataLoader(data, batch_size=4, shuffle=True)),
        "list of batches, as a loader": Task(Batches([(x[:9], y[:9]), [x[9:], y[9:]]])),
        "iterable": Task(Stream(x, y), batch=4),
    }
    for name, task in sources.items():
        for _ in range(2):
            assert abs(float(task(net) - expected)) < 1e-12, name
        assert torch.equal(task.outputs(net), torch.cat([net(b) for b, _ in task.batches(net)])), name
        close(task.outputs(net), net(x))


def frozen(array):
    array.flags.writeable = False
    return array


class Batches:
    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


class Stream(IterableDataset):
    def __init__(self, x, y):
        self.rows = list(zip(x, y, strict=True))

    def __iter__(self):
        return iter(self.rows)


class Noisy(Dataset):
    """Noise is added to an example each time that it is read, as random crops are."""

    def __init__(self, x, y, share=1.0):
        self.x, self.y, self.share = x, y, share

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i] + (torch.rand(()) < self.share) * torch.randn(WIDTH, dtype=torch.float64), self.y[i]


class Shuffling(IterableDataset):
    def __init__(self, x, y):
        self.x, self.y = x, y

    def __iter__(self):
        yield from ((self.x[i], self.y[i]) for i in torch.randperm(len(self.x)).tolist())


class Growing(Batches):
    def __iter__(self):
        self.batches = [*self.batches, self.batches[-1]]
        return iter(self.batches)


class Drawing(torch.utils.data.Sampler):
    def __iter__(self):
        return iter(torch.randperm(SIZE).tolist())

    def __len__(self):
        return SIZE


def unsteady():
    x, y = draw(SIZE)
    data = TensorDataset(x, y)
    batches = torch.utils.data.BatchSampler(torch.utils.data.RandomSampler(data), 4, False)
    return {
        "a random batch_sampler": Task(DataLoader(data, batch_sampler=batches)),
        "a sampler of one's own": Task(DataLoader(data, 4, sampler=Drawing())),
        "augmentation": Task(DataLoader(Noisy(x, y), 4)),
        "augmentation of a few": Task(DataLoader(Noisy(x, y, 0.3), 4)),
        "augmentation in a dataset": Task(Noisy(x, y), batch=4),
        "a stream that shuffles": Task(DataLoader(Shuffling(x, y), 4)),
        "a stream, read by the task": Task(Shuffling(x, y), batch=4),
        "a random collate_fn": Task(
            DataLoader(data, 4, collate_fn=lambda rows: (x[: len(rows)] + torch.rand(()), y[: len(rows)]))
        ),
        "labels drawn anew": Task(DataLoader(data, 4, collate_fn=lambda rows: (x[:4], torch.randint(5, (4,))))),
        "more at each pass": Task(Growing([(x[:9], y[:9]), (x[9:], y[9:])])),
        "part of a union": Task(x, y) | Task(DataLoader(Noisy(x, y), 4)),
        "batches in another order": Task(Turning([(x[:9], y[:9]), (x[9:], y[9:])])),
    }


class Turning(Batches):
    """The same batches, the last one first at every second pass."""

    def __iter__(self):
        self.batches = self.batches[::-1]
        return iter(self.batches)


@pytest.mark.parametrize("name", unsteady())
def test_data_that_differ_from_pass_to_pass_are_refused(net, name):
    """Two networks would be compared on different examples: not at distance 0 from itself, but an error."""
    torch.manual_seed(0)
    task = unsteady()[name]
    with pytest.raises(TaskError, match="differ from pass to pass.*random sampler") as told:
        for _ in range(3):
            functional(net, net, task)
    assert "\n" not in str(told.value)


class Rewinding:
    """A loader that is its own position, as those of readers of video are: a new pass ends the one before."""

    def __init__(self, x, y):
        self.x, self.y, self.at = x, y, SIZE

    def __iter__(self):
        self.at, moved = 0, 0
        while self.at < SIZE:
            moved, self.at = self.at, self.at + 4
            yield self.x[moved : self.at], self.y[moved : self.at]


def one_pass_at_a_time():
    x, y = draw(SIZE)
    return {
        "workers that stay": DataLoader(TensorDataset(x, y), 4, num_workers=1, persistent_workers=True),
        "a position of its own": Rewinding(x, y),
    }


@pytest.mark.parametrize("name", one_pass_at_a_time())
def test_a_loader_that_serves_one_pass_at_a_time_gives_what_its_tensors_give(net, name):
    torch.manual_seed(0)
    task, held = Task(one_pass_at_a_time()[name]), Task(*draw(SIZE))
    other = net + 0.1 * net.weights.randn(0)
    for kind in ("l2", "disagreement", "kl"):
        assert functional(net, other, task, kind) == pytest.approx(functional(net, other, held, kind), rel=1e-12)
    if name == "workers that stay":  # the weights of all labels are asked for in the midst of a pass
        loss = nn.CrossEntropyLoss(weight=torch.arange(1.0, CLASSES + 1, dtype=torch.float64))
        weighed = Task(one_pass_at_a_time()[name], loss=loss)
        assert float(weighed(net)) == pytest.approx(float(Task(*draw(SIZE), loss=loss)(net)), rel=1e-12)


@pytest.mark.parametrize("name", ["a random batch_sampler", "augmentation", "augmentation in a dataset"])
def test_examples_that_are_held_stay(net, name):
    torch.manual_seed(0)
    task = unsteady()[name]
    task.outputs(net)
    held = task.mapped(lambda x: x)
    assert len(held) == SIZE and functional(net, net, held) == 0 and float(held(net)) == float(held(net))


def test_examples_drawn_from_unsteady_data_are_told(net):
    torch.manual_seed(0)
    task = unsteady()["augmentation"]
    task.take(5, seed=0)
    with pytest.warns(UserWarning, match="differ from pass to pass"):
        task.take(5, seed=0)


def test_steady_data_are_read_as_often_as_one_likes(net):
    x, y = draw(SIZE)
    hole = torch.where(x > 2, math.nan, x)
    for source in (DataLoader(TensorDataset(hole, y), 4), TensorDataset(hole, y), Stream(hole, y)):
        task = Task(source, batch=4)
        next(task.batches())  # a pass that is not finished
        for _ in range(2):
            assert sum(len(part) for part, _ in task.batches()) == SIZE


def test_tokens_come_as_keywords_from_dicts_and_hub_datasets():
    net = Net.of(Keywords()).double()
    ids, mask, y = torch.randint(11, (SIZE, 3)), torch.ones(SIZE, 3, dtype=torch.bool), draw(SIZE)[1]
    task = Task({"input_ids": ids, "attention_mask": mask}, y, batch=4)
    expected = F.cross_entropy(net(input_ids=ids, attention_mask=mask)["logits"], y)
    close(task(net), expected)
    columns = {"input_ids": ids.tolist(), "attention_mask": mask.tolist(), "labels": y.tolist()}
    close(Task(Hub(columns), batch=4)(net), expected)
    example = task.example(3)
    assert set(example) == {"input_ids", "attention_mask"} and len(example["input_ids"]) == 3
    close(logits(net(example)), task.outputs(net)[:3])


def test_reading_leaves_the_global_generator_alone(net):
    task = Task(TensorDataset(*draw(SIZE)))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    task(net), task.split(0.5, seed=1), task.take(3, seed=2)
    assert torch.equal(before, torch.get_rng_state())


def test_several_inputs_come_from_tuples():
    net = Net.of(nn.Bilinear(WIDTH, WIDTH, CLASSES)).double()
    (x, y), (u, _) = draw(SIZE), draw(SIZE, seed=1)
    expected = F.cross_entropy(net(x, u), y)
    for task in (Task((x, u), y, batch=5), Task(TensorDataset(x, u, y), batch=5)):
        close(task(net), expected)
        assert isinstance(task.example(), tuple) and len(task.example()) == 2


def test_inputs_take_the_dtype_of_the_net():
    x, y = draw(SIZE)
    single = network(0).to(torch.float32)
    value = Task(x, y)(single)
    assert value.dtype == torch.float32
    close(value, F.cross_entropy(single(x.float()), y), 1e-6)
    half = Task(x, y)(network(0).to(torch.bfloat16))
    assert half.dtype == torch.float32 and abs(float(half - value)) < 0.05
    close(Task(x.float(), y)(network(0)), Task(x, y)(network(0)), 1e-6)


def test_length_is_that_of_the_data_or_is_counted():
    x, y = draw(SIZE)
    data = TensorDataset(x, y)
    assert len(Task(x, y)) == len(Task(data)) == len(Task(DataLoader(data, batch_size=4))) == SIZE
    sizes = {DataLoader(data, batch_size=4, drop_last=True): 20, Stream(x, y): SIZE, Batches([(x, y)]): SIZE}
    for source, size in sizes.items():
        task = Task(source)
        assert "Task(? examples" in repr(task) and bool(task) and "Task(? examples" in repr(task | Task(x, y))
        assert len(task) == size and len(task | Task(x, y)) == size + SIZE
    assert repr(Task(x, y, aggregate=torch.sum)) == "Task(23 examples, cross-entropy, sum)"


def test_outputs_are_found_in_what_networks_return():
    x = torch.ones(2)

    class Answer:
        logits = x

    for raw in (x, Answer(), {"loss": None, "logits": x}, {"hidden": x}, (x, x + 1), [x]):
        assert logits(raw) is x
    assert logits({"hidden": x + 1, "logits": x}) is x
    with pytest.raises(TaskError, match="no output tensor in a NoneType"):
        logits(None)
    picked = Task(*draw(4), output=lambda raw: raw * 0)(network(0))
    close(picked, math.log(CLASSES))


def test_accuracy_counts_the_right_ones(net):
    x, y = draw(SIZE)
    right = sum(int(row.argmax() == c) for row, c in zip(net(x), y, strict=True))
    assert accuracy(Task(x, y, batch=5))(net) == right / SIZE
    assert accuracy(Task(x, y, metric="squared"))(net) == right / SIZE
    assert accuracy(Task(x, net(x).argmax(1)))(net) == 1.0
    for bad in (Task(x, x), Task(x[:, :1], x[:, 0]), Task(x)):
        with pytest.raises(TaskError, match="accuracy needs class labels"):
            accuracy(bad)


# bad input: one line that says what was seen and what to do


def mistakes():
    x, y = draw(6)
    hole = x.clone()
    hole[2, 1] = math.nan
    data = TensorDataset(x, y)
    weighted = DataLoader(data, sampler=WeightedRandomSampler(torch.ones(6), 6))
    return {
        "empty": (lambda: Task(x[:0], y[:0]), "inputs are empty"),
        "empty dataset": (lambda: Task(TensorDataset(x[:0], y[:0])), "dataset is empty"),
        "lengths": (lambda: Task(x, y[:5]), r"inputs \(6, 6\) and labels \(5,\)"),
        "lengths of inputs": (lambda: Task((x, x[:3]), y), "same number of examples"),
        "NaN": (lambda: Task(hole, y), "NaN in the inputs of 1 of 6"),
        "NaN in labels": (lambda: Task(x, hole), "NaN in the labels of 1 of 6"),
        "no axis": (lambda: Task(torch.tensor(1.0), y), "first axis counts"),
        "nothing": (lambda: Task({"labels": y}), "no examples in inputs"),
        "words": (lambda: Task(np.array(["a", "b"]), y), "hold a ndarray that is not numbers"),
        "objects": (lambda: Task(np.array([None, {}]), y), "not numbers"),
        "words in a dict": (lambda: Task({"text": ["a"] * 6}, y), "inputs 'text' hold a str"),
        "ragged labels": (lambda: Task(x, [[1], [1, 2]]), "labels hold a list that is not numbers"),
        "an iterator": (lambda: Task(iter(data)), "can be read only once"),
        "a generator": (lambda: Task(b for b in [(x, y)]), "generator can be read only once"),
        "a path": (lambda: Task("digits.npz"), r"datasets.read\(path\)"),
        "a number": (lambda: Task(3), "no examples in a int"),
        "labels beside a dataset": (lambda: Task(data, y), "labels beside a TensorDataset"),
        "drawn at random": (lambda: Task(weighted), r"WeightedRandomSampler.*Task\(loader.dataset\)"),
        "with replacement": (
            lambda: Task(DataLoader(data, sampler=torch.utils.data.RandomSampler(data, replacement=True))),
            "RandomSampler",
        ),
        "unknown metric": (lambda: Task(x, y, metric="mse"), "Task: metric takes .*'squared'.*got str 'mse'$"),
        "unknown aggregate": (lambda: Task(x, y, aggregate="max"), "Task: aggregate takes .*'linf'.*got str 'max'$"),
        "loss and metric": (lambda: Task(x, y, loss=F.cross_entropy, metric="l1"), "loss= is one function"),
        "sum over the batch": (
            lambda: Task(x, y, loss=nn.CrossEntropyLoss(reduction="sum")),
            "reduction='mean'",
        ),
        "sum over the batch, partial": (
            lambda: Task(x, y, loss=partial(F.cross_entropy, reduction="sum")),
            "reduction='mean'",
        ),
        "batch": (lambda: Task(x, y, batch=0), "batch is 0"),
    }


@pytest.mark.parametrize("name", mistakes())
def test_data_that_cannot_be_a_task(name):
    build, message = mistakes()[name]
    with pytest.raises(CallError if name.startswith("unknown") else TaskError, match=message) as caught:
        build()
    assert "\n" not in str(caught.value) and isinstance(caught.value, WeightspaceError)


def misfits():
    x, y = draw(6)
    ragged = [(torch.ones(3), 0), (torch.ones(4), 0)]
    empty = Batches([])
    lengths = Batches([(x[:, :4], y), (x[:, :5], y)])
    return {
        "shape of inputs": (Task(x[:, :4], y), r"Sequential does not take inputs of shape \(6, 4\): mat1"),
        "keywords": (Task({"pixels": x}, y), r"inputs of shape \{'pixels': \(6, 6\)\}:.*pixels"),
        "class": (Task(x, y + 3), "outside the 5 outputs"),
        "negative class": (Task(x, y - 3), "labels -3.. ?.*outside"),
        "class, by torch": (Task(x, y + 3, loss=F.cross_entropy), "cross_entropy failed.*Target"),
        "shape of labels": (Task(x, y[:, None]), r"labels \(6, 1\) do not fit outputs \(6, 5\)"),
        "one target for five outputs": (Task(x, x[:, 0]), r"labels \(6,\) do not fit outputs \(6, 5\)"),
        "soft labels too wide": (Task(x, x, metric="cross-entropy"), r"soft labels \(6, 6\)"),
        "no labels": (Task(x), "no labels"),
        "shape of distances": (Task(x, y, metric=lambda f, y: f), r"returned \(6, 5\)"),
        "not a tensor": (Task(x, y, metric=lambda f, y: 1.0), "returned float"),
        "batch mean under l2": (Task(x, y, loss=F.cross_entropy, aggregate="l2"), "aggregate l2 needs one"),
        "aggregate": (Task(x, y, aggregate=lambda d: d), "an aggregate returns a 0-d tensor"),
        "ragged": (Task(ragged), "items cannot be stacked.*collate_fn"),
        "words": (Task(Pairs(["a", "b"], [0, 1])), "inputs hold a str"),
        "read once": (Task(empty), "no examples"),
    }, lengths


@pytest.mark.parametrize("name", misfits()[0])
def test_a_task_that_does_not_fit_the_net(net, name):
    task, message = misfits()[0][name]
    with pytest.raises(TaskError, match=message) as caught:
        task(net)
    assert "\n" not in str(caught.value)


def test_other_misfits_are_named(net):
    x, y = draw(6)
    assert float(Task(x, y)(net.module())) == float(Task(x, y)(net))
    with pytest.raises(WeightspaceError, match="Net"):
        Task(x, y)(net.tensors)
    # where signatures are checked, as in tests, the wrong type is a TypeError before it is a TaskError
    with pytest.raises((TaskError, TypeError), match="loss"):
        Task(x, y, loss="l1")
    with pytest.raises(TaskError, match="batches of different shape"):
        Task(misfits()[1]).toward(Task(x, y), 0.5)
    with pytest.raises(TaskError, match="returns batch means"):
        Task(x, y, loss=F.cross_entropy).distances(net)
    with pytest.raises(TaskError, match="TensorDataset"):
        Task({"train": TensorDataset(x, y)})


def test_an_unlabelled_task_still_has_outputs(net):
    x, _ = draw(SIZE)
    close((Task(x, batch=5) | Task(x)).outputs(net), net(torch.cat([x, x])))
    assert Task(x).metric is None and torch.equal(Task(x).example(), x[:2])
    assert len(Task(x).toward(Task(x), 0.5)) == SIZE


def test_a_bug_of_the_user_is_not_renamed(net):
    def broken(f, y):
        raise AttributeError("mine")

    with pytest.raises(AttributeError, match="mine"):
        Task(*draw(4), metric=broken)(net)


class Counting(nn.Module):
    """A linear classifier that counts how often it is called."""

    calls = 0

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, x):
        type(self).calls += 1
        return self.layer(x)


@pytest.mark.parametrize("order", [("loss", "right"), ("right", "loss")])
def test_loss_and_accuracy_of_one_task_take_one_pass(order, monkeypatch):
    task, other = ws.digits("test", flat=True, batch=100), ws.digits("test", flat=True, batch=450)
    nets = [ws.Net.of(Counting()) for _ in range(2)]
    both = {"loss": task, "right": ws.accuracy(task)}
    apart = [{name: float(both[name](net)) for name in order} for net in nets]
    monkeypatch.setattr(Counting, "calls", 0)
    look = together({name: both[name] for name in order})
    found = [{name: float(call()) for name, call in look(net).items()} for net in nets]
    assert found == apart and Counting.calls == 2 * 5 and [*found[0]] == [*order]
    Counting.calls = 0
    for call in together(both | {"elsewhere": ws.accuracy(other), "norm": lambda net: net.weights.norm()})(
        nets[0]
    ).values():
        call()
    assert Counting.calls == 5 + 1
    Counting.calls = 0
    values = ws.line(*nets).along(both, 3)
    assert Counting.calls == 3 * 5 and values["right"][0] == apart[0]["right"]
    Counting.calls = 0
    assert scored(task, nets[0]) == [Score("", apart[0]["loss"], apart[0]["right"])] and Counting.calls == 5
    Counting.calls = 0
    third = ws.Net.of(Counting())
    ws.plane(*nets, third).grid(both, 2)
    assert Counting.calls == 4 * 5


def test_what_is_wrong_with_a_task_is_said_once_loss_and_accuracy_are_together():
    task = ws.Task(torch.zeros(4, 64), torch.full((4,), -100))
    for call in together({"loss": task, "right": ws.accuracy(task)})(ws.Net.of(Counting())).values():
        with pytest.raises(ws.task.TaskError, match="no example has a label"):
            call()
