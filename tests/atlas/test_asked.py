"""Members asked with new data: against asking all of them on everything."""

import math

import pytest
import torch
from torch import nn

import weightspace as ws
from weightspace.atlas import rank, rank_starts
from weightspace.net.errors import WeightspaceError


@pytest.fixture(scope="module")
def data():
    return ws.digits().take(1200)


def perceptron():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))


def narrow():
    return ws.Net.of(nn.Linear(3, 2))


@pytest.fixture(scope="module")
def members(data):
    """Networks of one start, trained for 5 to 80 steps, and of another with other inputs."""
    net = ws.fresh(perceptron, 0)
    path = ws.flow(net, ws.learn(data, 64), ws.Adam(), steps=80, size=0.05, save=5)
    return {f"step {k}": path[k] for k in range(1, len(path))}


@pytest.fixture(scope="module")
def held_out():
    return ws.digits("test")


@pytest.mark.parametrize("by", ["loss", "accuracy"])
def test_the_best_by_halving_is_the_best_of_all(members, held_out, by):
    worth = ws.accuracy(held_out) if by == "accuracy" else lambda net: -float(held_out(net))
    whole = {name: worth(net) for name, net in members.items()}
    answer = rank(members, held_out, by)
    assert max(whole, key=whole.get) in answer.tied
    first = answer.found.ranking[0]
    value, error = answer.value(first)
    assert abs(value - abs(whole[answer.best])) < 4 * error + 1e-9
    assert answer.found.share < 0.6 and answer.whole_seconds > answer.seconds


def test_all_asked_on_all_is_the_loss_of_the_task(members, held_out):
    answer = rank(members, held_out, first=len(held_out))
    for row in answer.found.ranking:
        assert row.loss == pytest.approx(float(held_out(members[row.name])), rel=1e-5)
    assert answer.found.share == 1
    assert [row.name for row in answer.found.ranking] == sorted(members, key=lambda n: float(held_out(members[n])))


def test_class_weights_and_batches_count_as_in_the_task(members, held_out):
    weight = torch.linspace(0.1, 3, 10)
    task = ws.Task(held_out.example(len(held_out)), held_out.labels(), loss=nn.CrossEntropyLoss(weight))
    answer = rank(members, task, first=len(task))
    for row in answer.found.ranking:
        assert row.loss == pytest.approx(float(task(members[row.name])), rel=1e-5)


def test_the_answer_depends_on_the_seed_alone(members, held_out):
    one, two = (rank(members, held_out, seed=3) for _ in range(2))
    batched = ws.Task(held_out.example(len(held_out)), held_out.labels(), batch=7)
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(held_out.example(len(held_out)), held_out.labels()), 50
    )
    for other in (two, rank(members, batched, seed=3), rank(members, ws.Task(loader), seed=3)):
        assert other.best == one.best and other.found.passes == one.found.passes
        for mine, its in zip(one.found.ranking, other.found.ranking, strict=True):
            assert mine.name == its.name and mine.loss == pytest.approx(its.loss, rel=1e-5)


def test_members_are_opened_when_they_are_asked(members, held_out):
    seen = []

    def opener(name):
        return lambda: seen.append(name) or members[name]

    answer = rank({name: opener(name) for name in members}, held_out)
    assert {*seen} == {*members} and len(seen) > len(members)
    assert answer.best == rank(members, held_out).best


def test_what_cannot_answer_is_listed_with_the_reason(members, held_out):
    net = next(iter(members.values()))

    def gone():
        raise FileNotFoundError("gone.safetensors is not there any more")

    odd = {
        "narrow": ws.fresh(lambda: nn.Sequential(nn.Flatten(), nn.Linear(7, 10)), 0),
        "few classes": ws.fresh(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), 0),
        "nan": net + math.nan * net.weights,
        "gone": gone,
        "| <b>odd</b> ../..": net,
    }
    answer = rank(members | odd, held_out)
    assert answer.left_out.keys() == {"narrow", "few classes", "nan", "gone"}
    assert "shape" in answer.left_out["narrow"] and "outside the 3 outputs" in answer.left_out["few classes"]
    assert "NaN" in answer.left_out["nan"] and "not there any more" in answer.left_out["gone"]
    assert len([line for line in answer.table().splitlines()]) == len(answer.found.ranking) + 2
    assert answer.data()["left_out"] == dict(answer.left_out)
    with pytest.raises(WeightspaceError, match="no member can answer: narrow"):
        rank({"narrow": odd["narrow"]}, held_out)
    with pytest.raises(WeightspaceError, match="no member can answer: narrow"):
        rank({"narrow": odd["narrow"]}, held_out, "logme")


def held_out_without_what_is_asked_for_are_refused(members, held_out):
    x = held_out.example(50)
    for task, by, said in (
        (ws.Task(x), "loss", "no labels"),
        (ws.Task(x, torch.randn(50, 10)), "accuracy", "not classes"),
        (ws.Task(x, torch.randn(50, 10)), "perplexity", "perplexity is that of tokens"),
        (ws.Task(x, held_out.labels(50), aggregate="sum"), "loss", "aggregate"),
        (ws.Task(x), "logme", "no labels"),
    ):
        with pytest.raises(ws.WeightspaceError, match=said):
            rank(members, task, by)
    with pytest.raises(WeightspaceError, match="no members"):
        rank({}, held_out)


def test_one_member_alone_is_ranked(members, held_out):
    name, net = next(iter(members.items()))
    answer = rank({name: net}, held_out)
    assert answer.best == name and answer.tied == (name,)


# ------------------------------------------------------------------ language models


class Bigram(nn.Module):
    """The next byte from the last one."""

    def __init__(self):
        super().__init__()
        self.rows = nn.Embedding(128, 128)

    def forward(self, x):
        return self.rows(x)


def counted(text, tokens=128):
    table = torch.full((tokens, tokens), 0.1)
    for a, b in zip(text.encode(), text.encode()[1:], strict=False):
        table[a, b] += 1
    module = Bigram()
    module.rows.weight.data = (table / table.sum(1, keepdim=True)).log()
    return ws.Net.of(module)


def test_language_models_are_ranked_by_perplexity():
    vowels, digits = "banana bandana cabana " * 20, "1213 1415 1617 1819 " * 20
    models = {"words": counted(vowels), "numbers": counted(digits), "nothing": counted("")}
    task = ws.task.next_token(["a banana in a cabana", "bandana"] * 10, length=8)
    answer = rank(models, task, "perplexity", first=len(task))
    assert answer.best == "words" and answer.tied == ("words",)
    value, error = answer.value(answer.found.ranking[0])
    assert value == pytest.approx(math.exp(float(task(models["words"]))), rel=1e-5) and error > 0
    assert answer.value(answer.found.ranking[-1])[0] > 2 * value
    short = rank(models, ws.task.next_token(["12 13 14 15"] * 30, length=5), "accuracy")
    assert short.best == "numbers"


def test_every_token_but_the_first_is_predicted_once():
    text = "the quick brown fox"
    for length in (1, 3, 7, 50):
        task = ws.task.next_token([text, "x", "jumps"], length=length)
        y = task.labels()
        assert [*y[y >= 0]] == [*text.encode()[1:], *b"umps"]
        x = task.example(len(task))
        assert [*x[y >= 0]] == [*text.encode()[:-1], *b"jump"]
    net = counted(text)
    losses = [float(ws.task.next_token([text], length=length)(net)) for length in (3, 50)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize(
    ("texts", "given", "said"),
    [(["a"], {}, "two tokens"), ("text", {}, "list of texts"), (["ab"], {"length": 0}, "length of 1"),
     (["ab"], {"encode": lambda text: [0.5, 1]}, "whole numbers")],
)  # fmt: skip
def test_texts_that_give_no_task_are_refused(texts, given, said):
    with pytest.raises(ws.WeightspaceError, match=said):
        ws.task.next_token(texts, **given)


# ------------------------------------------------------------------ starts


def test_logme_prefers_features_of_the_task_whatever_the_classes(members, held_out):
    """Parity is a new task of two classes: no member has a loss on it that means anything, its features have."""
    parity = ws.Task(held_out.example(len(held_out)), held_out.labels() % 2)
    wild = {"random": ws.fresh(perceptron, 7)}
    trained = list(members)[-1]
    answer = rank(wild | {trained: members[trained]}, parity, "logme", budget=0.999)
    scores = {row.name: answer.value(row)[0] for row in answer.found.ranking}
    assert scores[trained] > scores["random"] and answer.best != "random"
    every = parity.pick(ws.task.examples.shuffled(len(parity), 0)[: round(0.999 * len(parity))].tolist())
    exact = ws.logme(ws.codes.head_features(members[trained], every), every.labels())
    assert scores[trained] == pytest.approx(exact)


def test_the_error_of_logme_is_that_of_other_draws(members, held_out):
    name, net = list(members.items())[-1]
    scores = []
    for seed in range(8):
        answer = rank({name: net}, held_out, "logme", budget=0.5, seed=seed)
        scores.append(answer.value(answer.found.ranking[0]))
    spread = float(torch.tensor([score for score, _ in scores]).std()) / math.sqrt(0.5)  # of draws without return
    told = float(torch.tensor([error for _, error in scores]).mean())
    assert 0.4 < told / spread < 2.5


def test_a_trial_prefers_what_learns_and_costs_what_it_says(members, data):
    some = data.take(300)
    few = {"random": ws.fresh(perceptron, 3), "trained": list(members.values())[-1], "narrow": narrow()}
    answer = rank_starts(few, some, steps=30, lr=5e-3, batch=32)
    assert answer.best == "trained" and [*answer.left_out] == ["narrow"]
    assert answer.found.passes == 2 * (150 + 3 * 30 * 32) and answer.found.share == 1
    held_out = some.split(0.5, 0)[1]
    assert answer.found.ranking[-1].loss < 0.85 * float(held_out(few["random"]))
    again = rank_starts(few, some, steps=30, lr=5e-3, batch=32)
    assert [r.loss for r in again.found.ranking] == [r.loss for r in answer.found.ranking]
    assert float(held_out(few["random"])) == float(held_out(ws.fresh(perceptron, 3)))  # members are not changed
    with pytest.raises(WeightspaceError, match="give positive numbers"):
        rank_starts(few, some, steps=0)


def test_starts_in_half_precision_are_tuned_as_those_in_float32():
    net, task = ws.demo.example()
    nets = {"net": net, **{str(dtype): net.to(dtype) for dtype in (torch.float16, torch.bfloat16)}}
    found = ws.atlas.rank_starts(nets, task, steps=5)
    values = [row.loss for row in found.found.ranking]
    assert not found.left_out and max(values) - min(values) < 0.01 * max(values)
