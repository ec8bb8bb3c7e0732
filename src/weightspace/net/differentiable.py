"""Calls of a network whose derivatives of every order are right.

Four operations of torch have wrong or missing derivatives, and are replaced here by others of the same value: weight
norm (its second derivative is wrong), embeddings with a padding row, a largest norm or gradients scaled by frequency
(forward and reverse mode disagree, or the weight is written into while it is read), pairwise distances and bags of
embeddings (first derivatives only), and activation checkpoints, which run the module again after its weights are gone.
"""

from __future__ import annotations

import contextlib
import math
import re
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any
from weakref import WeakKeyDictionary

import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from weightspace.net.state import exclusive

__all__ = ["SpectralNorm", "called", "computed", "custom_functions", "spectral_norms", "told"]


_Hooked = list[tuple[nn.Module, str]]
_seen: WeakKeyDictionary[nn.Module, tuple[bool, _Hooked, list[weakref.ref[nn.RNNBase]]]] = WeakKeyDictionary()
_ORIGINALS = ("_orig", "_v")  # what torch's hooks call the parameter that an attribute is computed from


def called(
    architecture: nn.Module,
    tensors: Mapping[str, Tensor],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] = MappingProxyType({}),
    *,
    always: bool = True,
) -> Any:
    """The output f(w, x) of a module at the weights `tensors`, with a graph whose derivatives are right.

    Without `always`, operations are replaced only where a module of the architecture needs it.
    """
    special, hooked, recurrent = _known(architecture)
    with exclusive(architecture), _plain_checkpoints(), _Rewritten() if always or special else contextlib.nullcontext():
        try:
            return functional_call(architecture, dict(tensors), args, dict(kwargs))
        finally:
            for child, name in hooked:  # otherwise the architecture would keep the graph in memory
                setattr(child, name, getattr(child, name).detach().to("meta"))
            for found in recurrent:  # weak references, since the key may be the layer itself
                if (layer := found()) is not None:
                    _forget(layer)


def _forget(layer: nn.RNNBase) -> None:
    """Take the weights of the last call from the list of a recurrent layer, which fills it again at the next."""
    own = [None if t is None else torch.empty(t.shape, dtype=t.dtype, device="meta") for t in layer._flat_weights]
    empty = [None if t is None else nn.Parameter(t, False) for t in own]
    layer._flat_weights = [*empty]
    layer._flat_weight_refs = [None if t is None else weakref.ref(t) for t in empty]


def _known(architecture: nn.Module) -> tuple[bool, _Hooked, list[weakref.ref[nn.RNNBase]]]:
    """Whether operations need to be replaced, the attributes that hooks compute, and the recurrent layers."""
    if architecture not in _seen:
        modules = list(architecture.modules())
        hooked = [(child, name) for child in modules for name in computed(child)]
        norms = any(type(m).__name__ == "_WeightNorm" or getattr(m, "max_norm", None) is not None for m in modules)
        _seen[architecture] = (
            norms or bool(hooked),
            hooked,
            [weakref.ref(m) for m in modules if isinstance(m, nn.RNNBase)],
        )
    return _seen[architecture]


def computed(child: nn.Module) -> dict[str, Tensor]:
    """The attributes that a hook of torch computes from parameters at every call, such as a pruned or normed weight."""
    return {
        name: value
        for name, value in vars(child).items()
        if isinstance(value, Tensor) and any(name + end in child._parameters for end in _ORIGINALS)
    }


def told(error: BaseException) -> str:
    """Torch's error message about a missing derivative, the name of the operation first."""
    line = next((text.strip() for text in str(error).splitlines() if text.strip()), type(error).__name__)
    found = re.search(r"(?:forward AD with|derivative for|backward through|differentiated by) '?([\w:.]+)", line)
    name = found[1].removeprefix("aten::").rstrip(".") if found else ""
    return f"{name}: {line[:160]}" if name else line[:160]


def custom_functions(output: Tensor) -> list[str]:
    """The names of the `torch.autograd.Function` classes in the graph of `output`: derivatives written in Python."""
    seen: set[Any] = set()
    todo: list[Any] = [output.grad_fn]
    found: list[str] = []
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            found.append(type(node).__name__.removesuffix("Backward"))
        todo += [before for before, _ in node.next_functions]
    return sorted(set(found))


@dataclass(frozen=True)
class SpectralNorm:
    """A weight with spectral norm, W / <left, W right>: the names of the three tensors, and the weight as a matrix."""

    weight: str
    left: str
    right: str
    matrix: Callable[[Tensor], Tensor]
    eps: float


_norms: WeakKeyDictionary[nn.Module, tuple[SpectralNorm, ...]] = WeakKeyDictionary()


def spectral_norms(architecture: nn.Module) -> tuple[SpectralNorm, ...]:
    """The weights with torch's spectral norm, whether by parametrisation or by the older hooks."""
    if architecture not in _norms:
        _norms[architecture] = tuple(_spectral_norms(architecture))
    return _norms[architecture]


def _spectral_norms(architecture: nn.Module) -> Iterator[SpectralNorm]:
    for path, module in architecture.named_modules():
        before = f"{path}." if path else ""
        if type(module).__name__ == "_SpectralNorm" and "_u" in module._buffers and path.endswith(".0"):
            weight = f"{path.rpartition('.')[0]}.original"
            yield SpectralNorm(weight, f"{path}._u", f"{path}._v", _matrix(module.dim), module.eps)
        for hook in module._forward_pre_hooks.values():
            if type(hook).__name__ == "SpectralNorm":
                name = f"{before}{hook.name}"
                yield SpectralNorm(f"{name}_orig", f"{name}_u", f"{name}_v", _matrix(hook.dim), hook.eps)


def _matrix(dim: int) -> Callable[[Tensor], Tensor]:
    return lambda weight: weight.movedim(dim, 0).flatten(1)


# ------------------------------------------------------------------ checkpoints


_lock, _inside = threading.Lock(), 0
_CHECKPOINTS = ("CheckpointFunction", "_checkpoint_without_reentrant_generator")
_original: dict[str, Any] = {}


class _Plainly:
    """Replaces `CheckpointFunction`, which would run its part of the module twice."""

    @staticmethod
    def apply(function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
        return function(*args)


def _twice(*args: Any, **kwargs: Any) -> Iterator[None]:
    """Replaces the generator of a checkpoint: nothing before the call, nothing after it."""
    yield


@contextlib.contextmanager
def _plain_checkpoints() -> Iterator[None]:
    """A context in which activation checkpoints keep their activations instead of recomputing them."""
    global _inside
    module = torch.utils.checkpoint
    with _lock:
        _inside += 1
        if _inside == 1:
            for name, plain in zip(_CHECKPOINTS, (_Plainly, _twice), strict=True):
                _original[name] = getattr(module, name, None)
                setattr(module, name, plain)
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                for name in _CHECKPOINTS:
                    setattr(module, name, _original.pop(name))


# ------------------------------------------------------------------ operations that are replaced


class _Rewritten(TorchFunctionMode):
    """A mode in which the operations in `_WRITTEN` are replaced by others of the same value."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        written = _WRITTEN.get(func)
        return func(*args, **(kwargs or {})) if written is None else written(*args, **(kwargs or {}))


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    if not torch.is_grad_enabled():
        return torch._weight_norm(v, g, dim)
    return v * (g / torch.norm_except_dim(v, 2, dim))


def _embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    rows = _held(F.embedding(input, weight), input, len(weight), padding_idx)
    return rows if max_norm is None else _shortened(rows, max_norm, norm_type)


def _held(rows: Tensor, input: Tensor, size: int, padding: int | None) -> Tensor:
    """The rows, those of the padding without a derivative."""
    if padding is None or not torch.is_grad_enabled():
        return rows
    fixed = (input == padding % size)[..., None]
    return torch.where(fixed, rows.detach(), rows)


def _shortened(rows: Tensor, most: float, kind: float) -> Tensor:
    """As torch does, but not in the weights themselves; the factor is a constant, as it is there."""
    norms = torch.linalg.vector_norm(rows.detach(), kind, -1, keepdim=True)
    return rows * torch.where(norms > most, most / (norms + 1e-7), 1.0)


def _embedding_bag(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    bags, entries, shares = _bags(input, offsets, per_sample_weights, include_last_offset)
    rows = F.embedding(entries, weight)
    rows = rows if max_norm is None else _shortened(rows, max_norm, norm_type)
    if padding_idx is not None:
        some = entries != padding_idx % len(weight)
        entries, rows, bags = entries[some], rows[some], bags[some]
        shares = None if shares is None else shares[some]
    size = len(input) if input.dim() == 2 else _count(offsets, include_last_offset)
    out = rows.new_zeros(size, rows.shape[-1])
    if mode == "max":
        where = bags[:, None].expand_as(rows)
        return out.scatter_reduce(0, where, rows, "amax", include_self=False)
    total = out.index_add(0, bags, rows if shares is None else rows * shares[:, None])
    if mode == "sum":
        return total
    return total / torch.bincount(bags, minlength=size).clamp_min(1).to(rows)[:, None]


def _count(offsets: Tensor | None, last: bool) -> int:
    assert offsets is not None
    return len(offsets) - last


def _bags(
    input: Tensor, offsets: Tensor | None, shares: Tensor | None, last: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The bag of every entry, the entries, and their weights."""
    flat = None if shares is None else shares.flatten()
    if input.dim() == 2:
        bags = torch.arange(len(input), device=input.device).repeat_interleave(input.shape[1])
        return bags, input.flatten(), flat
    assert offsets is not None
    starts = offsets[: _count(offsets, last)]
    at = torch.arange(len(input), device=input.device)
    return torch.searchsorted(starts.contiguous(), at, right=True) - 1, input, flat


def _cdist(x1: Tensor, x2: Tensor, p: float = 2.0, compute_mode: Any = None) -> Tensor:
    if not torch.is_grad_enabled() or not 1 <= p < math.inf:
        given = {} if compute_mode is None else {"compute_mode": compute_mode}
        return torch.cdist(x1, x2, p, **given)
    total = (x1[..., :, None, :] - x2[..., None, :, :]).abs().pow(p).sum(-1)
    apart = total > 0  # at distance zero torch's derivative is zero
    return torch.where(apart, total, 1).pow(1 / p) * apart


_WRITTEN: dict[Any, Callable[..., Any]] = {
    torch._weight_norm: _weight_norm,
    F.embedding: _embedding,
    F.embedding_bag: _embedding_bag,
    torch.cdist: _cdist,
}
