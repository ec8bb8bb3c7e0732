"""Critical periods: deficits act where and when they should, runs are compared like with like, mistakes are told."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

from weightspace.curvature.fisher import fisher_trace
from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net
from weightspace.pages.critical_periods import period_figure
from weightspace.task.classification import accuracy
from weightspace.task.datasets import digits
from weightspace.task.task import Task
from weightspace.training.critical_periods import CriticalPeriod, Row, Training, critical_period
from weightspace.training.deficits import DEFICITS, blur, label_permutation, noise, vertical_flip

TRAIN, TEST = digits("train").take(128, seed=0), digits("test").take(100, seed=0)


def linear(seed: int = 0) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def training(**options) -> Training:
    return Training(**{"module": linear, "train": TRAIN, "test": TEST, "after": 2, **options})


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    return next(TRAIN.batches())


# ------------------------------------------------------------------ deficits


def test_blur_is_the_mean_and_back():
    x, y = batch()
    blurred, same = blur(4)(x, y)
    expected = F.interpolate(x.view(-1, 1, 2, 4, 2, 4).mean((3, 5)), (8, 8), mode="bilinear", align_corners=False)
    torch.testing.assert_close(blurred, expected)
    assert same is y and torch.equal(blur(1)(x, y)[0], x)
    assert blur(3)(x, y)[0].shape == x.shape


def test_flips_and_permutations_keep_all_there_is():
    x, y = batch()
    flip, rename = vertical_flip(), label_permutation(10, seed=3)
    assert torch.equal(flip(*flip(x, y))[0], x) and not torch.equal(flip(x, y)[0], x)
    renamed = rename(x, torch.arange(10))[1]
    assert renamed.sort()[0].tolist() == [*range(10)] and (renamed != torch.arange(10)).all()
    assert torch.equal(rename(x, y)[1], renamed[y])


def test_noise_has_the_moments_of_what_it_replaces():
    torch.manual_seed(0)
    x, y = batch()
    noisy = noise()(x, y)[0]
    assert float(noisy.mean()) == pytest.approx(float(x.mean()), abs=0.02)
    assert float(noisy.std()) == pytest.approx(float(x.std()), rel=0.05)
    assert abs(float(torch.corrcoef(torch.stack([noisy.flatten(), x.flatten()]))[0, 1])) < 0.05
    assert torch.equal(noise(0.0)(x, y)[0], x)


# ------------------------------------------------------------------ runs


def by_hand(seed: int, window: tuple[int, int], change, total: int, restart: bool = False) -> float:
    """The same training, written once more and without the library's parts."""
    torch.manual_seed(seed)
    module = linear()
    optimiser = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    for epoch in range(total):
        back = window[1] if restart and epoch >= window[1] else 0
        optimiser.param_groups[0]["lr"] = 0.05 * 0.97 ** (epoch - back)
        for step in (2 * epoch, 2 * epoch + 1):
            x, y = next(TRAIN.minibatch(64, step, seed).batches())
            if window[0] <= epoch < window[1]:
                x, y = change(x, y)
            optimiser.zero_grad()
            F.cross_entropy(module(x), y).backward()
            optimiser.step()
    return accuracy(TEST)(Net.of(module))


@pytest.mark.parametrize("restart", [False, True])
def test_runs_are_those_written_by_hand(restart):
    found = critical_period(training(), blur(4), [0, 1], [0, 3], seeds=(0, 5), restart=restart)
    assert found.restart is restart and found.windows == [(0, 0), (0, 3), (1, 0), (1, 3)]
    for seed, at in ((0, 0), (5, 1)):
        for onset in (0, 1):
            window = (onset, onset + 3)
            for name, change in (
                ("blur 4", blur(4)),
                ("vertical flip", vertical_flip()),
                ("none", lambda x, y: (x, y)),
            ):
                expected = by_hand(seed, window, change, onset + 5, restart)
                assert found.accuracies(name, onset, 3)[at] == expected, (name, onset, seed)
        assert found.accuracies("blur 4", 0, 0)[at] == by_hand(seed, (0, 0), None, 2)
    assert len(found.rows) == 2 * (4 + 2 + 2)


def test_a_deficit_that_never_ends_costs_and_one_that_does_nothing_does_not():
    def nothing(x, y):
        return x, y

    def wiped(x, y):
        return 0 * x, y

    for change, least, most in ((nothing, 0.0, 0.0), (wiped, 0.3, 1.0)):
        found = critical_period(training(after=0), change, [0], [15], seeds=(0, 1), control=None)
        mean, error = found.cost(change.__name__, 0, 15)
        assert least <= mean <= most and error >= 0
    assert "control" not in found.table() and found.control is None


def test_what_is_lost_is_a_mean_over_seeds():
    values = {"none": 0.9, "blur 4": 0.8, "flip": 0.9}
    rows = [
        Row(name, 0, 9, seed, value - 0.01 * seed * (name == "blur 4"))
        for seed in (0, 1, 2)
        for name, value in values.items()
    ]
    found = CriticalPeriod("blur 4", "flip", False, 60, tuple(rows))
    assert found.cost("blur 4", 0, 9) == pytest.approx((0.11, 0.01 / math.sqrt(3)))
    assert found.cost("flip", 0, 9) == pytest.approx((0, 0))
    assert "| 0 | 9 | 90.0 | 11.0 ± 0.6 | 0.0 ± 0.0 |" in found.table() and "ran on" in found.table()


def test_rows_are_told_as_they_come_and_not_measured_again():
    told: list[Row] = []
    whole = critical_period(training(), "blur", [0], [1, 2], progress=told.append)
    assert tuple(told) == whole.rows and len(told) == 6
    again: list[Row] = []
    kept = [row for row in told if row.key != ("blur 4", 0, 2, 0)]
    assert critical_period(training(), "blur", [0], [1, 2], rows=kept, progress=again.append) == whole
    assert again == [row for row in told if row not in kept]


def test_traces_follow_every_epoch_and_change_nothing():
    """Drawing labels, and looking, leave the run and the global generator as they were."""
    torch.manual_seed(7)
    before = torch.get_rng_state()
    drops = training(module=lambda seed: nn.Sequential(nn.Flatten(), nn.Dropout(0.2), nn.Linear(64, 10)))
    plain = critical_period(drops, "noise", [0], [0, 2])
    seen = critical_period(drops, "noise", [0], [0, 2], fisher=fisher_trace(TEST))
    assert torch.equal(torch.get_rng_state(), before)
    assert [row.accuracy for row in seen.rows] == [row.accuracy for row in plain.rows]
    assert [len(row.fisher) for row in seen.rows] == [3, 5, 5, 5]
    assert seen.fisher("none")[:3] == pytest.approx(seen.rows[0].fisher) and not plain.fisher("none")
    assert seen.fisher("none")[0] == seen.fisher("noise 1")[0] != seen.fisher("noise 1")[2]


@pytest.mark.parametrize("last", [nn.Identity, lambda: nn.BatchNorm1d(3)])
def test_training_does_not_depend_on_the_parts_in_which_a_task_gives_its_examples(last):
    x, y = torch.randn(30, 4, generator=torch.Generator().manual_seed(0)), torch.arange(30) % 3
    whole = Task(x, y)
    forms = [whole, Task(x, y, batch=7), Task(x[:11], y[:11]) | Task(x[11:], y[11:]), Task(TensorDataset(x, y))]
    for size in (12, 30):
        ends = []
        for form in forms:
            run = training(module=lambda seed: nn.Sequential(nn.Linear(4, 3), last()), train=form, batch=size)
            *_, module = run.run(0, None, (0, 0), 2)
            ends.append(module[0].weight.detach())
        for end in ends[1:]:
            torch.testing.assert_close(end, ends[0], rtol=1e-5, atol=1e-6)


def test_the_control_may_be_the_deficit():
    found = critical_period(training(), "vertical_flip", [0], [1])
    assert found.control is None and [row.deficit for row in found.rows] == ["none", "vertical flip"]


def test_tasks_with_named_inputs_and_batch_statistics():
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.norm = nn.Linear(64, 10), nn.BatchNorm1d(10)

        def forward(self, pixels):
            return {"logits": self.norm(self.layer(pixels.flatten(1)))}

    x, y = batch()
    t = Task({"pixels": x}, y)
    found = critical_period(
        training(module=lambda seed: Named(), train=t, test=t, after=8), "noise", [0], [1], control="label_permutation"
    )
    assert found.accuracies("none", 0, 1)[0] > 0.8


def test_the_figure_has_the_trace_under_the_sensitivity():
    windows = critical_period(training(), "blur", [0, 2], [1], seeds=(0, 1), fisher=fisher_trace(TEST))
    plot = period_figure(windows)
    names = [trace.name for trace in plot.data]
    assert names[:2] == ["blur 4, 1 epochs", "vertical flip, 1 epochs"] and names[2] == "Fisher trace, no deficit"
    assert list(plot.data[0].x) == [0, 2] and len(plot.data[2].y) == 6
    assert plot.data[0].y[1] == pytest.approx(100 * windows.cost("blur 4", 2, 1)[0])
    assert plot.layout.yaxis.domain[0] > plot.layout.yaxis2.domain[1]
    removal = critical_period(training(), "blur", [0], [0, 1])
    plot = period_figure(removal)
    assert (
        len(plot.data) == 2 and list(plot.data[0].x) == [0, 1] and plot.layout.xaxis.title.text.startswith("epoch of")
    )
    assert len(period_figure(removal, windows).data) == 5
    with pytest.raises(WeightspaceError, match="no rows"):
        period_figure(CriticalPeriod("blur 4", None, False, 0, ()))


# ------------------------------------------------------------------ mistakes


def grown(x, y):
    return torch.cat([x, x], 3), y


def halved(x, y):
    return x, y[::2]


def broken(x, y):
    return x @ y, y


def alone(x, y):
    return x


def none(x, y):
    return x, y


@pytest.mark.parametrize("wrong, match", [
    (lambda: critical_period(training(), "blur", [-1], [5]), "onset -1 is negative"),
    (lambda: critical_period(training(), "blur", [0], [5, -2]), "length -2 is negative"),
    (lambda: critical_period(training(after=-3), "blur", [0], [5]), "after -3 is negative"),
    (lambda: critical_period(training(), "blurr", [0], [5]), "deficit takes 'blur' or 'noise' .*got str 'blurr'"),
    (lambda: critical_period(training(), "blur", [0], [5], control="flip"), "control takes .*got str 'flip'"),
    (lambda: critical_period(training(), grown, [0], [5]), r"grown changes shapes .*16\)"),
    (lambda: critical_period(training(), halved, [0], [5]), "halved changes shapes"),
    (lambda: critical_period(training(), broken, [0], [5]), "broken failed on a batch"),
    (lambda: critical_period(training(), alone, [0], [5]), "alone"),
    (lambda: critical_period(training(), none, [0], [5]), "__name__ of its own"),
    (lambda: critical_period(training(), lambda x, y: (x, y), [0], [5], control=lambda x, y: (x, y)), "__name__"),
    (lambda: critical_period(training(), "blur", [0], [5], seeds=()), "no seeds"),
    (lambda: critical_period(training(), "blur", [], [5]), "no onsets"),
    (lambda: critical_period(training(), "blur", [0], []), "no lengths"),
    (lambda: critical_period(training(batch=0), "blur", [0], [5]), "batch is 0"),
    (lambda: critical_period(training(train=digits(flat=True)), "blur", [0], [5]), "blur needs images"),
    (lambda: critical_period(training(train=Task(batch()[0])), "blur", [0], [5]), "no labels"),
    (lambda: critical_period(training(test=Task(batch()[0])), "blur", [0], [5]), "accuracy needs class labels"),
    (lambda: critical_period(training(), label_permutation(5), [0], [5]), "labels from 0 to 4"),
    (lambda: critical_period(training(schedule=lambda epoch: 1e30), "blur", [0], [2]), "diverged in epoch 1"),
    (lambda: blur(0), "blur of 0"),
    (lambda: noise(2.0), "share of 2.0"),
    (lambda: label_permutation(1), "1 classes"),
], ids=range(23))  # fmt: skip
def test_mistakes_are_told_in_one_line(wrong, match):
    with pytest.raises(WeightspaceError, match=match) as told:
        wrong()
    assert "\n" not in str(told.value)


def test_names_of_deficits_are_those_of_functions():
    assert {*DEFICITS} == {"blur", "noise", "label_permutation", "vertical_flip"}
    assert all(make().__name__.replace(" ", "_").startswith(name) for name, make in DEFICITS.items())
