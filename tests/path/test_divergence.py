"""The divergence of outputs from a mixture: definition by hand, zeros, what is counted, what is refused."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net
from weightspace.path.divergence import Divergence
from weightspace.path.path import line
from weightspace.task.task import Task


def mlp(seed: int, outputs: int = 4) -> Net:
    torch.manual_seed(seed)
    return Net.of(nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, outputs)))


def inputs(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7))


X = inputs(40, 5)
A, B, C = (mlp(seed) for seed in range(3))


def test_it_is_the_divergence_of_softmaxes_written_out():
    want = (0.25 * A(X) + 0.75 * B(X)).softmax(-1)
    right = (want * (want / C(X).softmax(-1)).log()).sum(-1).mean()
    assert float(Divergence(Task(X, batch=16), [A, B])(C, (0.25, 0.75))) == pytest.approx(float(right), rel=1e-5)


def test_a_task_of_squares_gives_squares():
    right = (0.5 * A(X) + 0.5 * B(X) - C(X)).square().sum(-1).mean()
    for task in (Task(X, metric="squared"), Task(X, loss=F.mse_loss), Task(X, inputs(40, 4)), Task(X, metric="l1")):
        look = Divergence(task, [A, B])
        assert look.kind == "squared" and float(look(C)) == pytest.approx(float(right), rel=1e-5)


@pytest.mark.parametrize(
    ("task", "outputs", "kind"),
    [
        (Task(X), 4, "softmax"),
        (Task(X), 1, "squared"),
        (Task(X, torch.arange(40) % 4), 4, "softmax"),
        (Task(X, loss=F.binary_cross_entropy_with_logits), 1, "binary"),
        (Task(X, loss=nn.CrossEntropyLoss()), 4, "softmax"),
    ],
)
def test_what_outputs_are_is_told_by_the_loss_or_else_by_their_shape(task, outputs, kind):
    a, b = mlp(0, outputs), mlp(1, outputs)
    look = Divergence(task, [a, b])
    assert look.kind == kind
    assert float(look(a, (1, 0))) == pytest.approx(0, abs=1e-7) and float(look(a, (0, 1))) > 1e-4


def test_labels_are_not_looked_at():
    classes = torch.arange(40) % 4
    found = [float(Divergence(Task(X, y), [A, B])(C)) for y in (classes, classes.flip(0))]
    assert found[0] == found[1] == float(Divergence(Task(X), [A, B])(C))


def test_batches_and_what_is_kept_change_nothing(monkeypatch):
    right = float(Divergence(Task(X), [A, B])(C))
    look = Divergence(Task(X, batch=7), [A, B])
    assert [float(look(C)) for _ in range(2)] == pytest.approx([right] * 2, rel=1e-6) and len(look._kept) == 6
    monkeypatch.setattr("weightspace.path.divergence._ROOM", 100)
    small = Divergence(Task(X, batch=7), [A, B])
    assert [float(small(C)) for _ in range(2)] == pytest.approx([right] * 2, rel=1e-6) and len(small._kept) < 3


def test_what_is_kept_is_of_these_inputs_and_weights():
    x, a = X.clone(), A.clone()
    look = Divergence(Task(x), [a, B])
    first = float(look(C))
    a.weights.buffers[0].mul_(1.5)
    second = float(look(C))
    assert second == float(Divergence(Task(x), [a, B])(C)) != first
    x.mul_(2)
    assert float(look(C)) == float(Divergence(Task(x), [a, B])(C)) != second


class Tagger(nn.Module):
    """Classes for every position of a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(11, 6), nn.Linear(6, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.head(self.table(input_ids).tanh())


def test_padding_does_not_count():
    torch.manual_seed(0)
    a, b, c = (Net.of(Tagger()) for _ in range(3))
    ids, mask = torch.arange(24).reshape(4, 6) % 11, torch.ones(4, 6, dtype=torch.long)
    mask[:, 4:] = 0
    other = torch.where(mask == 1, ids, 3)
    one, two = (Divergence(Task({"input_ids": i, "attention_mask": mask}), [a, b])(c) for i in (ids, other))
    assert float(one) == pytest.approx(float(two), rel=1e-6)
    labels = torch.where(mask == 1, ids % 3, -100)
    full = {"input_ids": ids, "attention_mask": torch.ones_like(mask)}
    assert float(Divergence(Task(full, labels), [a, b])(c)) == pytest.approx(float(one), rel=1e-6)


def test_minus_infinity_is_a_class_of_no_probability():
    class Masked(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).index_fill(-1, torch.tensor([0]), -torch.inf)

    torch.manual_seed(0)
    a, b = (Net.of(Masked(5, 4)) for _ in range(2))
    assert 0 < float(Divergence(Task(X), [a, b])(a)) < 10


def test_the_path_has_it_with_zeros_at_its_ends():
    found = line(A, B).divergence(Task(X), n=5)
    assert found.shape == (5,) and abs(found[[0, -1]]).max() < 1e-7 and found[1:-1].min() > 0
    flat = line(A, A).divergence(Task(X), n=3)
    assert abs(flat).max() < 1e-7


class Said(nn.Module):
    def forward(self, x: Tensor) -> str:
        return "word"


class Class(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).argmax(-1)


def test_what_cannot_be_measured_is_refused_in_one_sentence():
    hole = A.at(A.weights.map(lambda w: w * torch.nan))
    plain = nn.Linear(5, 4)
    bad = {
        "no networks": lambda: Divergence(Task(X), []),
        "shares that add up to 1": lambda: Divergence(Task(X), [A, B])(C, (0.5, 0.2)),
        "as many shares": lambda: Divergence(Task(X), [A, B])(C, (1,)),
        "NaN": lambda: Divergence(Task(X), [A, hole])(C),
        "no output tensor": lambda: Divergence(Task(X), [Net.of(Said())])(Net.of(Said())),
        "cannot be mixed": lambda: Divergence(Task(X), [Net.of(Class(5, 4))])(A),
        "cannot be compared": lambda: Divergence(Task(X), [A])(mlp(0, 3)),
        "does not take inputs": lambda: Divergence(Task(inputs(3, 6)), [A])(Net.of(plain)),
        "empty": lambda: Divergence(Task(X[:0]), [A])(A),
        "NaN in the inputs": lambda: Divergence(Task(X * torch.nan), [A])(A),
    }
    for words, call in bad.items():
        with pytest.raises(WeightspaceError, match=words) as raised:
            call()
        assert "\n" not in str(raised.value)
