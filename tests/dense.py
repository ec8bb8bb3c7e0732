"""Small networks with a task, and the Jacobian on it one row at a time: the oracle of operators."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from weightspace.net.net import Net
from weightspace.task.task import Task


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(3, 4), nn.Linear(4, 2)
        self.layer = nn.TransformerEncoderLayer(4, 2, 6, 0.0, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.embed(x)).mean(1))


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inside, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inside(self.inside(x).tanh()).tanh())


NETS = {
    "mlp": (lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)), (4,)),
    "cnn": (
        lambda: nn.Sequential(
            *(nn.Conv2d(1, 3, 3, padding=1, stride=2), nn.BatchNorm2d(3), nn.ReLU()),
            *(nn.Conv2d(3, 6, 2, groups=3), nn.Tanh(), nn.Flatten(), nn.Linear(24, 2)),
        ),
        (1, 6, 6),
    ),
    "attention": (Attention, (5, 3)),
    "shared": (Shared, (4,)),
    "norm": (lambda: nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.GELU(), nn.Linear(6, 2, bias=False)), (4,)),
}


def case(name: str, n: int = 7, batch: int = 3) -> tuple[Net, Task]:
    torch.manual_seed(1)
    build, shape = NETS[name]
    module = build()
    x = torch.randn(n, *shape, dtype=torch.float64)
    net = Net.of(module).double()
    return net, Task(x, torch.arange(n) % 2, batch=batch)


def explicit(net: Net, task: Task) -> Tensor:
    """J by one backward pass for every output of every example."""
    flat = net.weights.flat().detach().requires_grad_()
    out = torch.cat([net.at(net.weights.shaped(flat))(x).flatten() for x, _ in task.batches(net)])
    return torch.stack([torch.autograd.grad(o, flat, retain_graph=True)[0] for o in out])
