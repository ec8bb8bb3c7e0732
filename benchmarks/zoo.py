"""The networks of the benchmarks, trained once and kept: the same seed gives the same network.

Protocol: scikit-learn's digits, 1347 images to train on and 450 to test; AdamW (weight decay 0.01) under a one-cycle
schedule with a peak learning rate of 0.003, batches of 64, 30 epochs; one seed for weights and order of the data.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import weightspace as ws

CACHE = Path(__file__).parent / ".cache"
EPOCHS, BATCH, RATE, DECAY = 30, 64, 3e-3, 1e-2


def mlp(width: int = 512) -> nn.Module:
    hidden = [nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(width, 10))


def wide_mlp(width: int = 2048) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
    )


class CNN(nn.Module):
    """Convolutions of 32, 64, 64 channels; pooled to 4x4 and 2x2, flattened."""

    def __init__(self, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(1, 32, 3, padding=1), norm(32)
        self.conv2, self.norm2 = nn.Conv2d(32, 64, 3, padding=1), norm(64)
        self.conv3, self.norm3 = nn.Conv2d(64, 64, 3, padding=1), norm(64)
        self.head = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.norm1(self.conv1(x))), 2)
        x = F.relu(self.norm2(self.conv2(x)))
        x = F.max_pool2d(F.relu(self.norm3(self.conv3(x))), 2)
        return self.head(x.flatten(1))


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), norm(outputs)
        self.conv2, self.norm2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), norm(outputs)
        changes = stride != 1 or inputs != outputs
        shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), norm(outputs))
        self.shortcut = shortcut if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(out + self.shortcut(x))


class ResNet(nn.Module):
    """Three blocks of widths w, 2w, 4w."""

    def __init__(self, norm: Callable[[int], nn.Module], width: int = 16) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, width, 3, 1, 1, bias=False), norm(width)
        widths = [(width, width, 1), (width, 2 * width, 2), (2 * width, 4 * width, 2)]
        self.blocks = nn.Sequential(*(Block(i, o, s, norm) for i, o, s in widths))
        self.head = nn.Linear(4 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(F.relu(self.norm(self.conv(x)))).mean((2, 3)))


class ViT(nn.Module):
    """Patches of 2x2, width 64, 4 heads, 2 layers, mean of the tokens."""

    def __init__(self, width: int = 64, heads: int = 4, layers: int = 2) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, width, 2, 2)
        self.position = nn.Parameter(torch.randn(1, 16, width) * 0.02)
        make = partial(nn.TransformerEncoderLayer, width, heads, 2 * width, 0.0, "gelu", batch_first=True)
        self.layers = nn.Sequential(*(make(norm_first=True) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2) + self.position
        return self.head(self.norm(self.layers(x)).mean(1))


NETS: dict[str, Callable[[], nn.Module]] = {
    "mlp": mlp,
    "cnn": lambda: CNN(lambda channels: nn.Identity()),
    "cnn_bn": lambda: CNN(nn.BatchNorm2d),
    "resnet_gn": lambda: ResNet(partial(nn.GroupNorm, 1)),
    "resnet_bn": lambda: ResNet(nn.BatchNorm2d),
    "vit": ViT,
    "wide_mlp": wide_mlp,
}


def train(name: str, seed: int, epochs: int = EPOCHS) -> nn.Module:
    """One network, trained from its seed."""
    torch.manual_seed(seed)
    module = NETS[name]()
    images, labels = _arrays(ws.digits("train"))
    optimiser = torch.optim.AdamW(module.parameters(), lr=RATE, weight_decay=DECAY)
    steps = math.ceil(len(images) / BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=epochs * steps)
    module.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(images)).split(BATCH):
            optimiser.zero_grad()
            F.cross_entropy(module(images[chosen]), labels[chosen]).backward()
            optimiser.step()
            schedule.step()
    return module.eval()


def _arrays(task: ws.Task) -> tuple[Tensor, Tensor]:
    inputs, labels = zip(*task.batches(), strict=True)
    return torch.cat(inputs), torch.cat(labels)


def load(name: str, seed: int, cache: Path = CACHE, epochs: int = EPOCHS) -> nn.Module:
    """The network from the cache, trained first where it is not there."""
    path = cache / f"{name}-{seed}-{epochs}.safetensors"
    if not path.exists():
        began = time.perf_counter()
        module = train(name, seed, epochs)
        cache.mkdir(parents=True, exist_ok=True)
        ws.checkpoint.save(ws.Net.of(module).tensors, path, force=True)
        score = ws.accuracy(ws.digits("test"))(ws.Net.of(module))
        print(f"trained {name} seed {seed}: accuracy {score:.3f}, {time.perf_counter() - began:.0f} s", flush=True)
    module = NETS[name]()
    module.load_state_dict(dict(ws.checkpoint.read(path)))
    return module.eval()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nets", nargs="*", default=list(NETS), choices=list(NETS))
    parser.add_argument("--seeds", type=int, default=6)
    arguments = parser.parse_args()
    for net in arguments.nets:
        for number in range(arguments.seeds):
            load(net, number)
