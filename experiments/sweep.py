"""Four small tasks for an optimiser at one rate: an MLP, a CNN, a generator with its critic, a language model.

The rate falls to zero over the last quarter. Scores: test accuracy of digits (MLP, CNN); the Frechet distance of the
Gaussians of generated and of test pixels (GAN: generator and critic share optimiser and rate); bits for each character
of text held out, scikit-learn's descriptions of its data sets (language model).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from sklearn import datasets
from torch import Tensor, nn

import weightspace as ws
from experiments.nets import tensors

MOMENTUM, BATCH = 0.9, 64
LATENT, CONTEXT, HEADS, WIDE = 16, 64, 4, 64
Loss = Callable[[], Tensor]
TEXTS = ("digits", "iris", "wine", "breast_cancer", "diabetes", "linnerud")


def optimiser(way: str, parameters: Iterable[nn.Parameter], rate: float) -> torch.optim.Optimizer:
    makers: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "SGD": lambda p: torch.optim.SGD(p, lr=rate, momentum=MOMENTUM, fused=True),
        "Adam": lambda p: torch.optim.Adam(p, lr=rate, fused=True),
        "LAMB": lambda p: ws.metric.Lamb(p, lr=rate),
        "Fromage": lambda p: ws.metric.Fromage(p, lr=rate),
    }
    return makers[way](parameters)


def share(done: float) -> float:
    """Of the rate, when so much is done: all, and down to zero over the last quarter."""
    return min(1.0, 4 * (1 - done))


def descended(losses: list[Loss], parts: list[list[nn.Parameter]], way: str, rate: float, n: int) -> None:
    """n rounds: one step for each loss in its own parameters."""
    players = [optimiser(way, part, rate) for part in parts]
    falls = [torch.optim.lr_scheduler.LambdaLR(p, lambda k: share(k / n)) for p in players]
    for _ in range(n):
        for loss, player, fall in zip(losses, players, falls, strict=True):
            player.zero_grad()
            loss().backward()
            player.step()
            fall.step()


def whole(split: str) -> tuple[Tensor, Tensor]:
    return tensors(ws.digits(split))


def mlp() -> nn.Module:
    hidden = [m for wide in (64, 128, 128) for m in (nn.Linear(wide, 128), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(128, 10))


def cnn() -> nn.Module:
    first = nn.Conv2d(1, 16, 3, padding=1), nn.ReLU()
    second = nn.Conv2d(16, 32, 3, padding=1, stride=2), nn.ReLU()
    return nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(32 * 16, 10))


def classifier(make: Callable[[], nn.Module], way: str, rate: float, draw: torch.Generator, quick: bool) -> float:
    module, (x, y) = make(), whole("train")

    def loss() -> Tensor:
        some = torch.randint(len(x), (BATCH,), generator=draw)
        return F.cross_entropy(module(x[some]), y[some])

    descended([loss], [list(module.parameters())], way, rate, 5 if quick else 500)
    x_test, y_test = whole("test")
    with torch.no_grad():
        return float((module(x_test).argmax(1) == y_test).double().mean())


def frechet(a: Tensor, b: Tensor) -> float:
    """|m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)) of the means and covariances of rows."""
    a, b = a.double(), b.double()
    if not (a.isfinite().all() and b.isfinite().all()):
        return math.inf
    s, t = a.T.cov(), b.T.cov()
    mixed = torch.linalg.eigvals(s @ t).real.clamp(min=0).sqrt().sum()
    return float((a.mean(0) - b.mean(0)).square().sum() + s.trace() + t.trace() - 2 * mixed)


def dense(inputs: int, outputs: int) -> nn.Module:
    hidden = nn.Linear(inputs, 128), nn.LeakyReLU(0.2), nn.Linear(128, 128), nn.LeakyReLU(0.2)
    return nn.Sequential(*hidden, nn.Linear(128, outputs))


def floor() -> float:
    """The distance that the training images themselves have."""
    return frechet(*(whole(split)[0].flatten(1) for split in ("train", "test")))


def gan(way: str, rate: float, draw: torch.Generator, quick: bool) -> float:
    maker, critic = dense(LATENT, 64), dense(64, 1)
    real = whole("train")[0].flatten(1)

    def made(n: int = BATCH) -> Tensor:
        return maker(torch.randn(n, LATENT, generator=draw)).sigmoid()

    def to_tell() -> Tensor:
        some = torch.randint(len(real), (BATCH,), generator=draw)
        return F.softplus(-critic(real[some])).mean() + F.softplus(critic(made().detach())).mean()

    def to_pass() -> Tensor:
        return F.softplus(-critic(made())).mean()

    parts = [list(critic.parameters()), list(maker.parameters())]
    descended([to_tell, to_pass], parts, way, rate, 5 if quick else 1500)
    with torch.no_grad():
        return frechet(made(2000), whole("test")[0].flatten(1))


class Language(nn.Module):
    """A transformer decoder of two blocks, the next character for every character."""

    def __init__(self, letters: int) -> None:
        super().__init__()
        self.letter, self.place = nn.Embedding(letters, WIDE), nn.Embedding(CONTEXT, WIDE)
        block = nn.TransformerEncoderLayer(WIDE, HEADS, 2 * WIDE, dropout=0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
        self.norm, self.out = nn.LayerNorm(WIDE), nn.Linear(WIDE, letters)
        self.mask = nn.Transformer.generate_square_subsequent_mask(CONTEXT)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(self.blocks(self.letter(x) + self.place.weight, mask=self.mask)))


def text() -> tuple[Tensor, Tensor, int]:
    """Numbers of the characters to learn from, of those held out (the last tenth of every text), and how many kinds."""
    texts = [getattr(datasets, f"load_{name}")().DESCR for name in TEXTS]
    kinds = {c: k for k, c in enumerate(sorted(set("".join(texts))))}
    coded = [torch.tensor([kinds[c] for c in one]) for one in texts]
    cuts = [9 * len(one) // 10 for one in coded]
    parts = [(one[:cut], one[cut:]) for one, cut in zip(coded, cuts, strict=True)]
    return torch.cat([a for a, _ in parts]), torch.cat([b for _, b in parts]), len(kinds)


def language(way: str, rate: float, draw: torch.Generator, quick: bool) -> float:
    train, held, letters = text()
    module, span = Language(letters), torch.arange(CONTEXT + 1)

    def bits(data: Tensor, at: Tensor) -> Tensor:
        some = data[at[:, None] + span]
        return F.cross_entropy(module(some[:, :-1]).flatten(0, 1), some[:, 1:].flatten()) / math.log(2)

    def loss() -> Tensor:
        return bits(train, torch.randint(len(train) - CONTEXT, (16,), generator=draw))

    descended([loss], [list(module.parameters())], way, rate, 3 if quick else 600)
    module.eval()
    with torch.no_grad():
        return float(bits(held, torch.arange(0, len(held) - CONTEXT, CONTEXT // 2)))


Way = Callable[[str, float, torch.Generator, bool], float]

TASKS: dict[str, tuple[Way, str, int]] = {
    "mlp": (lambda *given: classifier(mlp, *given), "MLP, accuracy", 3),
    "cnn": (lambda *given: classifier(cnn, *given), "CNN, accuracy", 3),
    "gan": (gan, "GAN, Frechet distance", 2),
    "language": (language, "language model, bits", 2),
}


def higher(task: str) -> bool:
    """Whether more is better."""
    return task in ("mlp", "cnn")


def near(task: str, score: float, best: float) -> bool:
    """Two points of accuracy, or a tenth of the best."""
    return score > best - 0.02 if higher(task) else score < 1.1 * best


def scored(task: str, way: str, rate: float, seed: int, quick: bool) -> dict[str, float | None]:
    """The score; none where training diverged."""
    torch.manual_seed(seed)
    score = TASKS[task][0](way, rate, torch.Generator().manual_seed(seed), quick)
    return {"score": score if math.isfinite(score) else None}
