"""The Jacobian of a network on a small task, layer by layer: J v, J^T u and J J^T u from one stored forward pass.

A layer z = V h adds to the outputs' change J v the sum over positions of d (dV h), d = d(outputs)/dz; to J^T u the
matrix sum (d^T u) h^T. So K u = J J^T u needs the vectors d^T u and no vector of weight space: a linear map on n
examples turns them into (H H^T) d^T u, H its inputs. For networks of linear maps and convolutions whose weights are
used once. Source: Neural tangent kernel (Jacot, Gabriel, Hongler, 2018).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd import grad

from weightspace.graph.on_data import Kept, derived_graph, examples_at, layers_on, pulled
from weightspace.graph.trace import Trace
from weightspace.net.errors import SymmetryError
from weightspace.net.inputs import carried
from weightspace.net.net import Net
from weightspace.net.state import math_attention
from weightspace.task.outputs import counted, logits
from weightspace.task.task import Task

__all__ = ["Layered", "Setting"]


_DTYPES = torch.float32, torch.float64  # those that matrices can be factorised in
_MOST = 1 << 13  # outputs of a task whose graph is stored


@dataclass(frozen=True)
class Setting:
    """What stays the same from network to network: the task's examples and the exported graph. Made by `Setting.of`."""

    x: Any
    labels: Tensor | None
    graph: Trace
    output: Callable[[Any], Tensor]

    @classmethod
    def of(cls, net: Net, task: Task, output: Callable[[Any], Tensor] = logits) -> Setting | None:
        """The setting of a network's architecture on a task; None where another way has to be taken.

        That is where weights are frozen, of several dtypes or of half precision, or not those of linear maps and
        convolutions used once; where a layer's output has no leading dimension of examples; and where the task has
        more than 8,192 outputs.
        """
        if net.frozen or len(net.weights.buffers) > 1 or net.dtype not in _DTYPES or not task.in_memory:
            return None
        x = carried(task.example(len(task)), net)
        try:
            found = cls(x, task.positions(), derived_graph(net, x), output)
            at = Layered(net, found)
        except (SymmetryError, RuntimeError):
            return None
        return found if at.outputs.numel() <= _MOST and at.whole() else None


class Layered:
    """A network linearised on the examples of a setting.

    >>> import torch, weightspace as ws
    >>> from weightspace.curvature.layered import Layered, Setting
    >>> net, task = ws.demo.example()
    >>> at = Layered(net, Setting.of(net, task))
    >>> j, u = ws.jacobian(net, task).dense().double(), torch.randn(600, dtype=torch.float64)
    >>> torch.allclose(at.kernel(u.float()).double(), j @ (j.T @ u), rtol=1e-3, atol=1e-2)
    True
    """

    def __init__(self, net: Net, setting: Setting) -> None:
        self.net = net

        def flat(raw: Any) -> Tensor:
            out = counted(setting.output(raw), setting.labels)
            return out.reshape(len(out), -1)

        chosen = lambda layer: layer.learnt(net.weights)  # noqa: E731
        kept, self._out = layers_on(net, setting.graph, carried(setting.x, net), chosen, flat)
        self._kept = [part for part in kept if part.layer.plain(part.given)]
        self.outputs = self._out.detach()

    def whole(self) -> bool:
        """Whether every weight is in a layer that has a rule, with the examples as its leading dimension."""
        names = [name for part in self._kept for name in (part.layer.weight, part.layer.bias) if name]
        if sorted(names) != sorted(self.net.weights) or not self._out.requires_grad:
            return False
        first, n = pulled(self._kept, self._out), len(self.outputs)
        return all(
            slope is not None and examples_at(slope, n, part.layer) == 0 and _ruled(part)
            for slope, part in zip(first, self._kept, strict=True)
        )

    @cached_property
    def _rules(self) -> list[_Rule]:
        return [_Convolution(part) if part.layer.name != "linear" else _Linear(part) for part in self._kept]

    @cached_property
    def _back(self) -> tuple[Tensor, list[Tensor]]:
        """u, and the slopes d^T u of all layers as functions of u, which is random: some derivatives divide by it."""
        drawn = torch.randn(self._out.shape, generator=torch.Generator().manual_seed(0))
        u = drawn.to(self._out).requires_grad_()
        with torch.enable_grad(), math_attention():
            return u, list(grad(self._out, self._values, u, create_graph=True, materialize_grads=True))

    @property
    def _values(self) -> list[Tensor]:
        return [part.value for part in self._kept]

    def slopes(self, u: Tensor) -> list[Tensor]:
        """d^T u for every layer."""
        return list(grad(self._out, self._values, u.view(self._out.shape), retain_graph=True, materialize_grads=True))

    def _forward(self, moved: Sequence[Tensor]) -> Tensor:
        """The change of the outputs when every layer's own output is changed as well."""
        u, back = self._back
        pairs = [(b, m) for b, m in zip(back, moved, strict=True) if b.requires_grad]
        found = grad([b for b, _ in pairs], u, [m for _, m in pairs], retain_graph=True, materialize_grads=True)[0]
        return found.flatten()

    def push(self, v: Tensor) -> Tensor:
        """J v."""
        named = self.net.weights.shaped(v)
        with torch.no_grad():
            moved = [
                rule.met(named[p.layer.weight], named[p.layer.bias] if p.layer.bias else None)
                for rule, p in zip(self._rules, self._kept, strict=True)
            ]
        return self._forward(moved)

    def pull(self, u: Tensor) -> Tensor:
        """J^T u."""
        flat = torch.empty_like(self.net.weights.flat())
        named = self.net.weights.shaped(flat)
        with torch.no_grad():
            for rule, part, slope in zip(self._rules, self._kept, self.slopes(u), strict=True):
                weight, bias = rule.weight_of(slope)
                named[part.layer.weight].copy_(weight)
                if part.layer.bias is not None and bias is not None:
                    named[part.layer.bias].copy_(bias)
        return flat

    def kernel(self, u: Tensor) -> Tensor:
        """K u = J J^T u."""
        with torch.no_grad():
            moved = [rule.gram(slope) for rule, slope in zip(self._rules, self.slopes(u), strict=True)]
        return self._forward(moved)

    def part(self) -> Tensor:
        """The part of K that linear layers without positions add."""
        plain = [k for k, rule in enumerate(self._rules) if isinstance(rule, _Linear)]
        plain = [k for k in plain if self._kept[k].value.dim() == 2]
        n, m = self.outputs.shape
        total = torch.zeros(n, m, n, m).to(self.outputs)
        if plain:
            for k, d in zip(plain, self._all([self._values[k] for k in plain]), strict=True):
                flat = d.reshape(n * m, -1)
                total += (flat @ flat.T).view(n, m, n, m) * self._rules[k].inner[:, None, :, None]  # type: ignore
        return total.view(n * m, n * m)

    def _all(self, values: list[Tensor]) -> list[Tensor]:
        """d(output)/d(value) for every output, (example, output, unit)."""
        units = torch.eye(self.outputs.shape[1]).to(self._out)
        found = [
            grad(self._out, values, unit.expand_as(self._out), retain_graph=True, materialize_grads=True)
            for unit in units
        ]
        return [torch.stack(slopes, 1) for slopes in zip(*found, strict=True)]


# ------------------------------------------------------------------ layers


class _Rule:
    """What a layer does with changes of its weights; h are its inputs."""

    def met(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The change dV h of its output."""
        raise NotImplementedError

    def weight_of(self, slope: Tensor) -> tuple[Tensor, Tensor | None]:
        """The sum of slope h^T over examples and positions, and of slope."""
        raise NotImplementedError

    def gram(self, slope: Tensor) -> Tensor:
        """`met` of `weight_of`."""
        return self.met(*self.weight_of(slope))


class _Linear(_Rule):
    def __init__(self, part: Kept) -> None:
        x, self.biased = part.given[0].detach(), part.layer.bias is not None
        self.shape, self.h = part.value.shape, x.reshape(-1, x.shape[-1])

    @cached_property
    def inner(self) -> Tensor:
        """H H^T, and one more for the bias."""
        return torch.addmm(torch.full((), float(self.biased)).to(self.h), self.h, self.h.T)

    def met(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        return torch.nn.functional.linear(self.h, weight, bias).view(self.shape)

    def weight_of(self, slope: Tensor) -> tuple[Tensor, Tensor | None]:
        flat = slope.reshape(len(self.h), -1)
        return flat.T @ self.h, flat.sum(0) if self.biased else None

    def gram(self, slope: Tensor) -> Tensor:
        rows, columns = self.h.shape
        if rows > 2 * columns:
            return super().gram(slope)
        return (self.inner @ slope.reshape(len(self.h), -1)).view(self.shape)


class _Convolution(_Rule):
    def __init__(self, part: Kept) -> None:
        self.x, self.w = (t.detach() for t in part.given[:2])
        self.target, self.how, self.biased = part.layer.node.target, _settings(part), part.layer.bias is not None

    def met(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self.target(self.x, weight, bias, *self.how)  # type: ignore[operator]

    def weight_of(self, slope: Tensor) -> tuple[Tensor, Tensor | None]:
        none = [0] * len(self.how[0])
        found = torch.ops.aten.convolution_backward(
            slope, self.x, self.w, [len(self.w)], *self.how, False, none, 1, [False, True, self.biased]
        )
        return found[1], found[2] if self.biased else None


def _ruled(part: Kept) -> bool:
    return part.layer.name == "linear" or not any(isinstance(setting, str) for setting in part.given[3:6])


def _settings(part: Kept) -> list[list[int]]:
    """Stride, padding and dilation, one number for each dimension."""
    many = part.given[1].dim() - 2
    given = [*part.given[3:6], *([1], [0], [1])[len(part.given[3:6]) :]]
    return [[s] * many if isinstance(s, int) else [*s] * (many if len(s) == 1 else 1) for s in given]
