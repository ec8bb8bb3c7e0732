"""Networks for the experiments, trained once and kept in a folder: the same seed gives the same network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from weightspace import Net, Symmetry, Task
from weightspace.checkpoint import reader, writer
from weightspace.task import data_files, datasets

CACHE = Path(__file__).parent / ".cache"
_TRAIN, _TEST = 10_000, 2_000  # of larger data sets


@dataclass(frozen=True)
class Size:
    """How large the networks and how long the runs."""

    width: int = 512
    epochs: int = 30
    tune: int = 5
    tail: int = 10
    curve: int = 300
    grid: int = 21


FULL, QUICK = Size(), Size(width=64, epochs=6, tune=1, tail=3, curve=20, grid=4)


def mlp(inputs: int, width: int) -> nn.Module:
    layers = [nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)]
    return nn.Sequential(nn.Flatten(), *layers, nn.ReLU(), nn.Linear(width, 10))


def cnn(channels: int, side: int, width: int) -> nn.Module:
    """Three convolutions of width/16, width/8 and width/8 channels, flattened after two poolings."""
    one, two = width // 16, width // 8
    layers = [nn.Conv2d(channels, one, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(one, two, 3, padding=1), nn.ReLU(), nn.Conv2d(two, two, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.MaxPool2d(2), nn.Flatten(), nn.Linear((side // 4) ** 2 * two, 10))


class Ordered(nn.Module):
    """Biases as a first value and non-negative differences: b_k = b_1 + sum_{j <= k} softplus(d_j)."""

    def forward(self, d: Tensor) -> Tensor:
        return torch.cat([d[:1], F.softplus(d[1:])]).cumsum(0)

    def right_inverse(self, b: Tensor) -> Tensor:
        b = b.sort().values
        step = b.diff().clamp_min(1e-7)
        return torch.cat([b[:1], step + torch.log(-torch.expm1(-step))])


class Fixed(nn.Module):
    """Some entries of a matrix held at random values that are the same in every network."""

    def __init__(self, shape: torch.Size, share: float = 0.25, size: float = 0.25, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("mask", torch.rand(shape, generator=generator) < share)
        self.register_buffer("value", size * torch.randn(shape, generator=generator))

    def forward(self, weight: Tensor) -> Tensor:
        return torch.where(self.mask, self.value, weight)


def ordered(module: nn.Module) -> nn.Module:
    for layer in _hidden(module):
        parametrize.register_parametrization(layer, "bias", Ordered())
    return module


def asymmetric(module: nn.Module) -> nn.Module:
    for k, layer in enumerate(_hidden(module)):
        parametrize.register_parametrization(layer, "weight", Fixed(layer.weight.shape, seed=k))
    return module


def _hidden(module: nn.Module) -> list[nn.Linear]:
    return [m for m in module.modules() if isinstance(m, nn.Linear)][:-1]


def _plain(module: nn.Module) -> nn.Module:
    for layer in _hidden(module):
        for name in list(getattr(layer, "parametrizations", {})):
            parametrize.remove_parametrizations(layer, name)
    return module


def fit(
    module: nn.Module, x: Tensor, y: Tensor, *, epochs: int, seed: int, lr: float = 3e-3, anneal: bool = True
) -> Iterator[None]:
    """AdamW on batches of 64 in an order drawn from `seed`; the rate follows one cycle, or stays. Yields each epoch."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(module.parameters(), lr=lr, weight_decay=0.01)
    steps = epochs * -(-len(x) // 64)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps) if anneal else None
    module.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(x), generator=generator).split(64):
            optimizer.zero_grad()
            F.cross_entropy(module(x[batch]), y[batch]).backward()
            optimizer.step()
            if cycle is not None:
                cycle.step()
        yield


def tensors(task: Task) -> tuple[Tensor, Tensor]:
    """All inputs and all labels."""
    return task.example(len(task)), task.labels()


def kept(folder: Path, like: Net, make: Callable[[], list[Net]]) -> list[Net]:
    """Networks from the folder, or made now and put there."""
    files = sorted(folder.glob("*.safetensors"))
    if not (folder / "done").exists():
        folder.mkdir(parents=True, exist_ok=True)
        for k, net in enumerate(make()):
            writer.save(net.tensors, folder / f"{k:02}.safetensors", force=True)
        (folder / "done").touch()
        files = sorted(folder.glob("*.safetensors"))
    return [like.load(reader.read(file)) for file in files]


class Lab:
    """Two tasks and the networks trained on the first of them."""

    def __init__(self, size: Size = FULL, data: str | None = None, cache: Path = CACHE) -> None:
        self.size = size
        self.name = "digits" if data is None else Path(data).resolve().name
        self.cache = cache / f"{self.name}-{size.width}-{size.epochs}"
        if data is None:
            self.train, self.test = (datasets.digits(split) for split in ("train", "test"))
        else:
            splits = ("train", _TRAIN), ("test", _TEST)
            self.train, self.test = (_some(data_files.read(data, split=s), n) for s, n in splits)
        self._groups: dict[str, Symmetry] = {}

    @cached_property
    def _examples(self) -> tuple[Tensor, Tensor]:
        return tensors(self.train)

    def module(self, kind: str, width: int, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        x, _ = self._examples
        if kind == "cnn":
            return cnn(x.shape[1], x.shape[-1], width)
        change = {"ordered": ordered, "asymmetric": asymmetric}.get(kind, lambda module: module)
        return change(mlp(x[0].numel(), width))

    def net(self, kind: str, seed: int, width: int | None = None) -> Net:
        """A trained network: "mlp", "cnn", "ordered" or "asymmetric"."""
        width = width or self.size.width
        make = partial(self.module, kind, width, seed)

        def trained() -> list[Net]:
            module = make()
            for _ in fit(module, *self._examples, epochs=self.size.epochs, seed=seed):
                pass
            return [Net.of(_plain(module))]

        return self._kept(f"{kind}-{width}-{seed}", Net.of(_plain(make())), trained)[0]

    def untrained(self, seed: int) -> Net:
        return Net.of(self.module("mlp", self.size.width, seed))

    def tuned(self, seed: int) -> Net:
        """The network of that seed, trained a few epochs more in another order."""
        start = self.net("mlp", seed)

        def trained() -> list[Net]:
            module = start.module()
            for _ in fit(module, *self._examples, epochs=self.size.tune, seed=1000 + seed, lr=1e-3, anneal=False):
                pass
            return [Net.of(module)]

        return self._kept(f"tuned-{seed}", start, trained)[0]

    def tail(self, seed: int) -> list[Net]:
        """The last epochs of a run of as many epochs in all, at a rate that stays."""
        module = self.module("mlp", self.size.width, seed)

        def trained() -> list[Net]:
            run = fit(module, *self._examples, epochs=self.size.epochs, seed=seed, lr=1e-3, anneal=False)
            return [Net.of(module) for _ in run][-self.size.tail :]

        return self._kept(f"tail-{seed}", Net.of(module), trained)

    def _kept(self, name: str, like: Net, make: Callable[[], list[Net]]) -> list[Net]:
        return kept(self.cache / name, like, make)

    def group(self, net: Net) -> Symmetry:
        """The symmetry group of the network's architecture, read once."""
        key = net.fingerprint
        if key not in self._groups:
            self._groups[key] = Symmetry.of(net, self.test.example())
        return self._groups[key]


def _some(task: Task, n: int) -> Task:
    return task.take(n, seed=0) if len(task) > n else task
