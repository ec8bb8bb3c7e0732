"""Small residual networks of colour images, and CIFAR-10 with the networks trained on it, kept in a folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import weightspace as ws
from experiments.nets import CACHE, kept, tensors

Norm = Callable[[int], nn.Module]


@dataclass(frozen=True)
class Size:
    """Kernels of the three stages, blocks a stage, stride of the first layer; epochs of CIFAR-10."""

    widths: tuple[int, int, int] = (16, 32, 64)
    blocks: int = 1
    stem: int = 2
    epochs: int = 10


SMALL, FULL, QUICK = Size(), Size(blocks=3, stem=1, epochs=60), Size((8, 8, 16), 1, 1, 40)


class Block(nn.Module):
    """x -> relu(skip(x) + norm(conv(relu(norm(conv(x)))))), skip a projection where shapes differ."""

    def __init__(self, wide: int, out: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.one, self.norm_one = nn.Conv2d(wide, out, 3, stride, 1, bias=False), norm(out)
        self.two, self.norm_two = nn.Conv2d(out, out, 3, 1, 1, bias=False), norm(out)
        same = wide == out and stride == 1
        self.skip = nn.Identity() if same else nn.Conv2d(wide, out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        inside = torch.relu(self.norm_one(self.one(x)))
        return torch.relu(self.skip(x) + self.norm_two(self.two(inside)))


def residual(channels: int, outputs: int, size: Size, norm: Norm = nn.BatchNorm2d) -> nn.Module:
    """ResNet of 6 blocks + 2 layers: three stages, the second and third at half the side of the one before."""
    wide = size.widths[0]
    layers: list[nn.Module] = [nn.Conv2d(channels, wide, 3, size.stem, 1, bias=False), norm(wide), nn.ReLU()]
    for stage, out in enumerate(size.widths):
        for k in range(size.blocks):
            layers.append(Block(wide, out, 2 if stage and not k else 1, norm))
            wide = out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(wide, outputs))


def shifted(x: Tensor, generator: torch.Generator) -> Tensor:
    """Images mirrored one time in two, and moved by up to an eighth of their side."""
    n, side = len(x), x.shape[-1]
    edge = side // 8
    down, right = (torch.randint(2 * edge + 1, (n, 1), generator=generator) + torch.arange(side) for _ in range(2))
    mirror = torch.rand(n, 1, generator=generator) < 0.5
    right = torch.where(mirror, right.flip(1), right)
    padded = F.pad(x, (edge,) * 4)
    return padded[torch.arange(n)[:, None, None], :, down[:, :, None], right[:, None, :]].permute(0, 3, 1, 2)


Loss = Callable[[Tensor, Tensor], Tensor]


def fit(
    module: nn.Module,
    task: ws.Task,
    epochs: int,
    seed: int,
    top: float,
    cycles: int = 1,
    loss: Loss = F.cross_entropy,
) -> list[ws.Net]:
    """SGD with momentum on batches of 128, the rate a cosine from `top` or, for one cycle, up and down; a net a cycle.

    Several cycles are those of a snapshot ensemble; short ones, begun at a trained network, of fast geometric
    ensembling.
    """
    x, y = tensors(task)
    generator, device = torch.Generator().manual_seed(seed), next(module.parameters()).device
    every = epochs * max(1, len(x) // 128)
    optimiser = torch.optim.SGD(module.parameters(), lr=top, momentum=0.9, weight_decay=5e-4, nesterov=True)
    found, done = [], 0
    for _ in range(cycles):
        rates = (
            torch.optim.lr_scheduler.OneCycleLR(optimiser, top, total_steps=every + 1)
            if cycles == 1
            else torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, every)
        )
        module.train()
        while done < every * (len(found) + 1):
            order = torch.randperm(len(x), generator=generator)
            for rows in order[: max(1, len(x) // 128) * 128].split(128):
                optimiser.zero_grad()
                loss(module(shifted(x[rows], generator).to(device)), y[rows].to(device)).backward()
                optimiser.step()
                rates.step()
                done += 1
        for group in optimiser.param_groups:
            group["lr"] = top
        found.append(ws.Net.of(module))
    return found


class Together(nn.Module):
    """Several networks side by side: outputs (member, example, class)."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([member(x) for member in self.members])


def diverse(f: Tensor, y: Tensor) -> Tensor:
    """sum_k CE(f_k, y) - 2 H(mean_k p_k) - log det(M M^T) / 2: members sure of y, and unlike in what else they hold.

    Rows of M: a member's probabilities of the classes other than y, of length one. Source: Improving adversarial
    robustness via promoting ensemble diversity (Pang, Xu, Du, Chen, Zhu, 2019).
    """
    many, n, classes = f.shape
    p = f.softmax(-1)
    mean = p.mean(0)
    other = torch.arange(classes, device=y.device) != y[:, None]
    rows = F.normalize(p.transpose(0, 1)[other[:, None].expand(n, many, classes)].view(n, many, classes - 1), dim=-1)
    volume = (rows @ rows.mT + 1e-6 * torch.eye(many, device=y.device)).logdet()
    right = F.cross_entropy(f.flatten(0, 1), y.repeat(many)) * many
    return right + 2 * (mean * mean.clamp_min(1e-12).log()).sum(-1).mean() - volume.mean() / 2


class Lab:
    """CIFAR-10, or embedded digits without a folder, and networks trained on it."""

    outputs = 10

    def __init__(self, data: str | None, quick: bool = False, full: bool = False, device: str = "cpu") -> None:
        self.quick, self.device = quick, device
        self.size = QUICK if quick else FULL if full else SMALL
        self.name = ("cifar10" if data else "digits") + (" full" if full else "")
        read = (lambda split: ws.cifar10(data, split)) if data else (lambda split: ws.digits(split))
        self.train, self.test = (read(split) for split in ("train", "test"))
        if quick:
            self.train, self.test = self.train.take(256), self.test.take(64)
        self.top = 0.1
        self.nets: dict[str, list[ws.Net]] = {}

    def fresh(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return residual(self.train.example(1).shape[1], self.outputs, self.size).to(self.device)

    def net(self, seed: int) -> ws.Net:
        """The network of a seed, trained with labels on mirrored and moved images."""
        return self._kept(f"net-{seed}", lambda: fit(self.fresh(seed), self.train, self.size.epochs, seed, self.top))[0]

    def snapshots(self, seed: int, many: int, epochs: int) -> Sequence[ws.Net]:
        """Ends of cycles of the rate, begun at the network of the seed."""
        make = partial(fit, top=self.top / 2, cycles=many)
        return self._kept(
            f"snapshots-{seed}-{many}", lambda: make(self.net(seed).module(), self.train, epochs, 1000 + seed)
        )

    def promoted(self, seed: int, many: int) -> Sequence[ws.Net]:
        """Networks trained together, from the starts of independent ones, by the loss that wants them diverse."""

        def make() -> list[ws.Net]:
            whole = Together([self.fresh(seed + 10 * k) for k in range(many)])
            fit(whole, self.train, self.size.epochs, seed, self.top / 2, loss=diverse)
            return [ws.Net.of(member) for member in whole.members]

        return self._kept(f"promoted-{seed}-{many}", make)

    def _kept(self, name: str, make: Callable[[], list[ws.Net]]) -> list[ws.Net]:
        if name not in self.nets:
            size = self.size
            folder = f"{self.name}-{'-'.join(map(str, size.widths))}-{size.blocks}-{size.stem}-{size.epochs}"
            like = ws.Net.of(self.fresh(0))
            found = make() if self.quick else kept(Path(CACHE) / folder.replace(" ", "-") / name, like, make)
            self.nets[name] = [net.to(self.device) for net in found]
        return self.nets[name]
