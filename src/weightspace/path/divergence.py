"""How far a network is from the mixture of the outputs of others: what a path does, measured without labels.

With f_i the outputs of the ends and shares s_i that add up to 1, the mixture is m(x) = sum_i s_i f_i(x), and

    D(f) = mean over x of KL(softmax m(x) | softmax f(x))    for outputs that are logits, in nats
    D(f) = mean over x of |m(x) - f(x)|^2                    for all others

D is zero at an end with all of the share, and at every network of a line along which the outputs are a straight line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import Tensor

from weightspace.net.errors import WeightspaceError
from weightspace.net.inputs import carried
from weightspace.net.net import Net, checked
from weightspace.net.public import public
from weightspace.task.examples import digest
from weightspace.task.losses import name_of
from weightspace.task.outputs import labelled
from weightspace.task.task import Task

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["Divergence", "Look", "is_labelled"]


Kind: TypeAlias = Literal["softmax", "binary", "squared"]
_ROOM = 1 << 25  # numbers of outputs that are kept
_KINDS: dict[str, Kind] = {
    **dict.fromkeys(("cross-entropy", "zero-one", "softmax", "log-probabilities"), "softmax"),
    **dict.fromkeys(("squared", "l1", "l2", "linf", "probabilities", "pairs"), "squared"),
    "bernoulli": "binary",
}


def is_labelled(task: Task) -> bool:
    """Whether the examples of a task have labels, so that its loss can be measured.

    >>> import weightspace as ws
    >>> from weightspace.path.divergence import is_labelled
    >>> _, task = ws.demo.example()
    >>> is_labelled(task), is_labelled(ws.Task(task.example(9)))
    (True, False)
    """
    return next(task.batches())[1] is not None


@dataclass(frozen=True)
class Look:
    """How two outputs are compared: `kind`, and the task that they are outputs of.

    "softmax": logits of classes on the last axis; "binary": logits of independent yes or no; "squared": numbers.
    """

    task: Task
    kind: Kind

    @classmethod
    def at(cls, task: Task, f: Tensor) -> Look:
        """What the loss of the task says; where it says nothing, outputs (example, class) or (example, position, class)
        of two classes or more are logits, and all others numbers. Raises `WeightspaceError` for outputs of no use."""
        if not f.is_floating_point() or not f.ndim:
            raise WeightspaceError(
                f"outputs of {f.dtype} and shape {tuple(f.shape)} cannot be mixed; give output=, a function that picks "
                "floating-point outputs with the examples on the first axis"
            )
        loss, classes = task.recognised, f.ndim > 1 and f.shape[-1] > 1
        told = _KINDS.get(loss.kind if loss is not None else name_of(task.metric) if task.metric else "")
        if told is None or (told == "softmax" and not (classes or loss is not None)):
            told = "softmax" if classes and f.ndim < 4 else "squared"
        return cls(task, told)

    def seen(self, f: Tensor) -> Tensor:
        """Outputs as they are compared: log-probabilities, or the numbers themselves."""
        f = f.float() if f.dtype in (torch.float16, torch.bfloat16) else f
        if self.kind == "squared":
            return f
        if self.kind == "binary":
            return torch.stack([f, torch.zeros_like(f)], -1).log_softmax(-1)
        loss = self.task.recognised
        return (f if loss is None else loss.turned(f)).log_softmax(-1)

    def mixture(self, parts: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
        """The mixture sum_i s_i f_i of outputs that were `seen`."""
        mixed = sum((s * part for s, part in zip(shares, parts, strict=True) if s), torch.zeros_like(parts[0]))
        return mixed if self.kind == "squared" else mixed.log_softmax(-1)

    def apart(self, f: Tensor, wanted: Tensor, x: Any, y: Tensor | None) -> Float[Tensor, " t"]:
        """The distance of outputs from those wanted, both `seen`: one for every example, or position that counts."""
        if self.kind == "squared":
            return (f - wanted).square().reshape(len(f), -1).sum(1)
        terms = torch.where(wanted > -torch.inf, wanted.exp() * (wanted - f), 0.0).sum(-1)
        if self.kind == "binary":
            return terms.reshape(len(f), -1).sum(1)
        return terms[_counts(f, x, y)] if f.ndim > 2 else terms


def _counts(f: Tensor, x: Any, y: Tensor | None) -> Tensor:
    """The positions of a sequence that count: all but padding, and those that are labelled -100."""
    mask = labelled(f, y)
    given = x.get("attention_mask") if isinstance(x, Mapping) else None
    if isinstance(given, Tensor) and given.shape == mask.shape and not given.is_floating_point():
        mask = mask & (given != 0).to(mask.device)
    return mask


@public(grad=False)
class Divergence:
    """The divergence D(f) of a network from the mixture of the outputs of others (see the module), on the inputs alone.

    `task`: examples; their labels are not looked at, but a loss (or `metric=`) says whether outputs are logits: of a
    cross-entropy they are, and KL is taken, of a squared error they are not. Where a task has neither, outputs of shape
    (example, class) or (example, position, class) count as logits. Positions that the `attention_mask` of the inputs
    leaves out, or that are labelled -100, do not count. `ends`: the networks that are mixed. Called with a network, and
    a share for every end (by default equal ones), it gives a 0-d tensor, which has a graph if the weights require a
    gradient. The outputs of the ends are computed once, and kept where they are small.

    Raises `WeightspaceError` for no ends, outputs that are not finite or not numbers, and shares that do not fit.

    >>> import weightspace as ws
    >>> (a, task), (b, _) = (ws.demo.example(seed) for seed in (0, 1))
    >>> divergence = ws.path.Divergence(ws.Task(task.example(200)), [a, b])
    >>> abs(float(divergence(a, (1, 0)))) < 1e-6, float(divergence(a.lerp(b, 0.5))) > 1e-3
    (True, True)
    """

    def __init__(self, task: Task, ends: Sequence[Net]) -> None:
        if not ends:
            raise WeightspaceError("the divergence from no networks; give the ends whose outputs are mixed")
        self.task, self.ends = task, [checked(end) for end in ends]
        self._look: Look | None = None
        self._kept: dict[int, tuple[Any, list[Tensor]]] = {}

    def __repr__(self) -> str:
        return f"Divergence({len(self.ends)} ends, {self.task!r})"

    @property
    def kind(self) -> Kind:
        """How outputs are compared: "softmax", "binary" (a yes or no for every output) or "squared"."""
        if self._look is None:
            with torch.no_grad():
                x, _ = next(self.task.batches())
                self._look = Look.at(self.task, self.task.forward(self.ends[0], carried(x, self.ends[0])))
        return self._look.kind

    def __call__(self, net: Net, shares: Sequence[float] | None = None) -> Float[Tensor, ""]:
        """D of a network. `shares`: one number for each end, adding up to 1."""
        if shares is None:
            shares = [1 / len(self.ends)] * len(self.ends)
        if len(shares) != len(self.ends) or not abs(sum(shares) - 1) < 1e-6:
            raise WeightspaceError(f"{len(self.ends)} ends need as many shares that add up to 1, got {list(shares)}")
        total, count = torch.zeros((), dtype=torch.float64), 0
        for number, (x, y) in enumerate(self.task.batches()):
            parts = self._parts(number, x)
            assert self._look is not None
            f = self._look.seen(self.task.forward(net, carried(x, net)))
            if f.shape != parts[0].shape:
                seen = f"{tuple(f.shape)} and {tuple(parts[0].shape)}"
                raise WeightspaceError(f"outputs of shape {seen} cannot be compared; give networks of one output space")
            wanted = self._look.mixture(parts, shares)
            apart = self._look.apart(f, wanted.to(f.device, f.dtype), x, y)
            total, count = total + apart.double().sum().to(total.device), count + len(apart)
        if not count:
            raise WeightspaceError("no position of the examples counts: all are padding, or labelled -100")
        return total / count

    def _parts(self, number: int, x: Any) -> list[Tensor]:
        """The outputs of all ends on one batch."""
        key = (digest(x, None), *(None if t.is_inference() else t._version for t in self._point()))
        if number in self._kept and self._kept[number][0] == key:
            return self._kept[number][1]
        with torch.no_grad():
            outputs = [self.task.forward(end, carried(x, end)) for end in self.ends]
        if self._look is None:
            self._look = Look.at(self.task, outputs[0])
        parts = [self._look.seen(f) for f in outputs]
        if any(bool(part.isnan().any()) for part in parts):
            raise WeightspaceError(
                "the outputs of a network on these inputs hold NaN or infinity; nothing can be measured between them"
            )
        held = sum(part.numel() for _, found in self._kept.values() for part in found)
        if held + sum(part.numel() for part in parts) <= _ROOM:
            self._kept[number] = key, parts
        return parts

    def _point(self) -> list[Tensor]:
        """The numbers of all ends, which may be written into."""
        return [t for end in self.ends for part in (end.weights, end.state) for t in part.buffers]
