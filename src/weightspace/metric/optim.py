"""The optimisers Fromage and Lamb, whose steps are relative to the weights, with the interface of torch.optim.

A relative step of size s moves a block of weights W along a direction -u by s |W|, whatever the length of u:
W - s |W| u / |u|. A block is a tensor, or one neuron. In `Fromage`, u is the gradient; in `Lamb`, the step of Adam.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from weightspace.net.errors import WeightspaceError

__all__ = ["Fromage", "Lamb"]


_PIECE, _ROW = 1 << 16, 1 << 12  # numbers; float32 norms of more than a piece lose digits on a processor: 5e-3 at 64M
_TINY = 1e-12  # below, squares of float32 may vanish
_GRANULARITIES = ("tensor", "neuron")
_fused_sgd: Callable[..., None] | None = getattr(torch, "_fused_sgd_", None)


class _Relative(Optimizer):
    """An optimiser that takes relative steps; a subclass computes the direction from the gradient."""

    def __init__(self, params: ParamsT, **defaults: Any) -> None:
        if defaults.pop("differentiable"):
            raise WeightspaceError(f"{type(self).__name__} has no differentiable step; leave `differentiable` out")
        super().__init__(params, defaults)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            for name, value in (("maximize", False), ("foreach", None), ("fused", None)):
                group.setdefault(name, value)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with settings of their own. Raises `WeightspaceError` for settings that cannot be."""
        super().add_param_group(param_group)
        try:
            _check(self.param_groups[-1])
        except WeightspaceError:
            self.param_groups.pop()
            raise

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move every parameter that has a gradient, once; `closure` evaluates the loss anew, which is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None and p.numel()]
            if any(p.grad.is_sparse for p in params):
                raise WeightspaceError(f"{type(self).__name__} needs dense gradients, and one is sparse")
            if group.get("differentiable"):
                raise WeightspaceError(f"{type(self).__name__} has no differentiable step; set `differentiable` false")
            limits = self._limits(group, params)
            relative_step(
                [_real(p) for p in params],
                [_real(u) for u in self._directions(group, params)],
                lr=group["lr"],
                neuron=group["granularity"] == "neuron",
                correct=group["correct"],
                foreach=group["foreach"],
                fused=group["fused"],
            )
            for p, limit in limits:
                _hold(p, limit, group["granularity"] == "neuron")
        return loss

    def _directions(self, group: dict[str, Any], params: list[Tensor]) -> list[Tensor]:
        """The direction u of every parameter, along which it is decreased."""
        raise NotImplementedError

    def _limits(self, group: dict[str, Any], params: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Pairs of a parameter and its bound p_bound |W_init|; empty where there is no bound."""
        found = []
        for p in params if group["p_bound"] is not None else ():
            w, state = _real(p), self.state[p]
            if "norm" not in state:
                state["norm"] = norm(w, group["granularity"] == "neuron").to(w.dtype)
            found.append((w, group["p_bound"] * state["norm"]))
        return found


class Fromage(_Relative):
    """The optimiser Fromage: W <- (W - lr |W| g / |g|) / sqrt(1 + lr^2) for every tensor or neuron W with gradient g.

    `lr` is the length of a step relative to |W|, as a number or a tensor of one. The division removes what a step
    orthogonal to W adds to |W|: such a step is a rotation by atan(lr). `correct=False` leaves it out. With
    `granularity="neuron"` a block is W[i], one row of a tensor of two dimensions or more; other tensors are one block
    each. `p_bound` keeps |W| <= p_bound |W_init| for every block, W_init its value before the first step; blocks that
    began at zero are not bounded. Parameter groups may have settings of their own.

    Where |W| = 0 the step is -lr g, not divided; where g = 0, or there is no gradient, the block stays as it is (the
    published code divides there too). `foreach` and `fused` choose between equal ways to compute the step: tensor
    after tensor, all at once, or by one fused kernel per tensor (CPU only, where it is the default).
    Norms are exact to 1e-6 for any number of weights, and for tiny gradients. Raises `WeightspaceError` for invalid
    settings, sparse gradients, and `differentiable`.
    Source: On the distance between two neural networks and the stability of learning (Bernstein et al., 2020).

    >>> import torch, weightspace as ws
    >>> layer = torch.nn.Linear(3, 2)
    >>> before = layer.weight.detach().clone()
    >>> optimiser = ws.optim.Fromage(layer.parameters(), lr=0.1, correct=False)
    >>> layer(torch.ones(1, 3)).square().sum().backward()
    >>> optimiser.step()
    >>> round(float((layer.weight - before).norm().detach() / before.norm()), 3)
    0.1
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.01,
        granularity: str = "tensor",
        p_bound: float | None = None,
        correct: bool = True,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        differentiable: bool = False,
    ) -> None:
        super().__init__(
            params, lr=lr, granularity=granularity, p_bound=p_bound, correct=correct, maximize=maximize,
            foreach=foreach, fused=fused, differentiable=differentiable,
        )  # fmt: skip

    def _directions(self, group: dict[str, Any], params: list[Tensor]) -> list[Tensor]:
        gradients = [p.grad for p in params if p.grad is not None]
        return [-g for g in gradients] if group["maximize"] else gradients


class Lamb(_Relative):
    """The optimiser Lamb: W <- W - lr |W| u / |u|, u = m / (sqrt(v) + eps) + `weight_decay` W, for every tensor W.

    m and v are the running means of the gradient and of its square with rates `betas`, bias-corrected as in Adam. Zero
    tensors as in `Fromage`. Raises `WeightspaceError` for invalid settings and sparse gradients.
    Source: Large batch optimization for deep learning, training BERT in 76 minutes (You et al., 2020).

    >>> import torch, weightspace as ws
    >>> layer = torch.nn.Linear(3, 2)
    >>> before = layer.weight.detach().clone()
    >>> optimiser = ws.optim.Lamb(layer.parameters(), lr=0.1)
    >>> layer(torch.ones(1, 3)).square().sum().backward()
    >>> optimiser.step()
    >>> round(float((layer.weight - before).norm().detach() / before.norm()), 3)
    0.1
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.01,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        differentiable: bool = False,
    ) -> None:
        super().__init__(
            params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, granularity="tensor", p_bound=None,
            correct=False, maximize=maximize, foreach=foreach, fused=fused, differentiable=differentiable,
        )  # fmt: skip

    def _directions(self, group: dict[str, Any], params: list[Tensor]) -> list[Tensor]:
        return [self._adam(group, p) for p in params]

    def _adam(self, group: dict[str, Any], p: Tensor) -> Tensor:
        assert p.grad is not None
        state, (b1, b2) = self.state[p], group["betas"]
        if not state:
            state.update(step=torch.tensor(0.0), exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
        w, g, mean, square = (_real(t) for t in (p, p.grad, state["exp_avg"], state["exp_avg_sq"]))
        state["step"] += 1
        mean.lerp_(-g if group["maximize"] else g, 1 - b1)
        square.lerp_(g.square(), 1 - b2)
        root = (square / (1 - b2 ** state["step"])).sqrt_().add_(group["eps"])
        u = (mean / (1 - b1 ** state["step"])).div_(root).add_(w, alpha=group["weight_decay"])
        return torch.view_as_complex(u) if p.is_complex() else u


# ------------------------------------------------------------------ the step


def relative_step(
    params: Sequence[Tensor],
    directions: Sequence[Tensor],
    *,
    lr: float | Tensor,
    neuron: bool = False,
    correct: bool = True,
    foreach: bool | None = None,
    fused: bool | None = None,
) -> None:
    """Move every real tensor W of `params` in place by the relative step along its direction u.

    On a CPU the norms are read as numbers; on other devices all stays in tensors, without synchronisation.
    """
    if not params:
        return
    near = all(p.device.type == "cpu" for p in params) and not torch.compiler.is_compiling()
    if isinstance(lr, Tensor):
        lr, near = lr.detach().double().reshape(()), near and lr.device.type == "cpu"
    if foreach is None and fused is None:
        fused, foreach = near, not near
    if fused and not near:
        raise WeightspaceError("fused steps are for parameters and rates on the CPU; set `fused` false")
    way = _single if neuron else _fused if fused else _multi if foreach else _single
    way(params, directions, lr, correct, neuron)


def _single(ps: Sequence[Tensor], us: Sequence[Tensor], lr: float | Tensor, correct: bool, neuron: bool) -> None:
    for p, u in zip(ps, us, strict=True):
        _move(p, u, *_scales(norm(p, neuron), norm(u, neuron), lr, correct))


def _multi(ps: Sequence[Tensor], us: Sequence[Tensor], lr: float | Tensor, correct: bool, neuron: bool) -> None:
    """The norms of all tensors of one kind on one device at once, and all factors as vectors."""
    kinds: dict[tuple[Any, ...], list[int]] = {}
    for k, (p, u) in enumerate(zip(ps, us, strict=True)):
        kinds.setdefault((p.device, p.dtype, u.dtype), []).append(k)
    for (device, *_), at in kinds.items():
        some, along = [ps[k] for k in at], [us[k] for k in at]
        if device.type == "cpu":
            sizes = [norm(t) for t in (*some, *along)]
        else:
            sizes = list(torch._foreach_norm([*some, *along], dtype=_wide(device)))
        a, b = torch.stack(sizes).chunk(2)
        back, step = (t.unbind() for t in _scales(a, b, lr, correct))
        for move in zip(some, along, back, step, strict=True):
            _move(*move)


def _fused(ps: Sequence[Tensor], us: Sequence[Tensor], lr: float | Tensor, correct: bool, neuron: bool) -> None:
    """As stochastic gradient descent with a rate and a weight decay for each tensor: one pass, one rounding."""
    rate = float(lr)
    root = math.sqrt(1 + rate**2)
    for at in _together(ps):
        some, along = ps[at], us[at]
        sizes = _norms([*some, *along])  # and the steps at once, while the tensors are in the cache
        for p, u, a, b in zip(some, along, sizes, sizes[len(some) :], strict=False):
            back, step = (rate**2 / (root * (root + 1)), rate * a / root) if correct else (0.0, rate * a)
            back, step = (0.0, rate) if a == 0 or b == 0 else (back, step / b)
            plain = p.is_contiguous() and u.is_contiguous() and p.dtype == u.dtype and p.dtype not in _HALVES
            if _fused_sgd is None or not (plain and 1e-30 < step < 1e30):
                _move(p, u, *torch.tensor([back, step], dtype=torch.float64))
                continue
            _fused_sgd(
                [p], [u], [], lr=step, weight_decay=back / step, momentum=0.0, dampening=0.0, nesterov=False,
                maximize=False, is_first_step=False, grad_scale=None, found_inf=None,
            )  # fmt: skip


def _together(ps: Sequence[Tensor]) -> Iterator[slice]:
    """Runs of tensors of at most a piece of numbers in all, or of one: a call costs as much as a small tensor."""
    begin = numbers = 0
    for k, p in enumerate(ps):
        if k > begin and numbers + p.numel() > _PIECE:
            yield slice(begin, k)
            begin, numbers = k, 0
        numbers += p.numel()
    yield slice(begin, len(ps))


def _scales(a: Tensor, b: Tensor, lr: float | Tensor, correct: bool) -> tuple[Tensor, Tensor]:
    """W - (back W + step u), from |W| = a, |u| = b: back = 1 - c, step = c lr a / b, c = 1 / sqrt(1 + lr^2)."""
    still = (a == 0) | (b == 0)
    rate = lr.to(a.device, a.dtype) if isinstance(lr, Tensor) else lr
    root = (1 + rate**2) ** 0.5 if correct else 1.0
    back = rate**2 / (root * (root + 1)) if correct else 0.0  # 1 - c without cancellation
    return (~still).to(a.dtype) * back, torch.where(still, rate, a / b * (rate / root))


def _move(p: Tensor, u: Tensor, back: Tensor, step: Tensor) -> None:
    """p - back p - step u, in place and without a copy: fresh memory costs more than two passes."""
    if p.dtype in _HALVES:
        wide = p.float()
        _move(wide, u.float(), back, step)
        p.copy_(wide)
        return
    most = torch.finfo(p.dtype).max
    p.addcmul_(p, back.to(p.dtype), value=-1).addcmul_(u.to(p.dtype), step.clamp(max=most).to(p.dtype), value=-1)


def _hold(p: Tensor, limit: Tensor, neuron: bool) -> None:
    """Shorten every block of p that is longer than its limit."""
    size = norm(p, neuron)
    share = (limit.to(size.dtype) / size).clamp_(max=1)
    p.mul_(torch.where(limit > 0, share, 1.0).to(_work(p)))


# ------------------------------------------------------------------ norms


def norm(x: Tensor, neuron: bool = False) -> Tensor:
    """|x|, or |x[i]| for every neuron i in a shape that multiplies x; a real tensor of float64 where there is one."""
    if neuron and x.dim() > 1:
        return _rows(x.flatten(1)).view(-1, *[1] * (x.dim() - 1))
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        return torch.tensor(_norms([x])[0], dtype=torch.float64)
    return torch.linalg.vector_norm(x, dtype=_wide(x.device))


def _norms(tensors: Sequence[Tensor]) -> list[float]:
    """|x| of each tensor: of rows first, then of the row norms; in float64 where squares would underflow."""
    if not tensors:
        return []
    sizes = [float(size) for size in torch._foreach_norm([_in_rows(x) for x in tensors])]
    return [
        size if _TINY < size < math.inf or size != size else float(_wide_norm(x, None))
        for x, size in zip(tensors, sizes, strict=True)
    ]


def _in_rows(x: Tensor) -> Tensor:
    """A small tensor of the same norm."""
    if x.numel() <= _PIECE:
        return x.to(_work(x))
    flat, cut = x.reshape(-1), x.numel() // _ROW * _ROW
    sizes = torch.linalg.vector_norm(flat[:cut].view(-1, _ROW), dim=1, dtype=_work(x))
    return sizes if cut == len(flat) else torch.cat([sizes, flat[cut:].to(_work(x))])


def _rows(x: Tensor) -> Tensor:
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return torch.linalg.vector_norm(x, dim=1, dtype=_wide(x.device))
    if x.shape[1] > _PIECE:
        return torch.tensor(_norms(list(x)), dtype=torch.float64)
    sizes = torch.linalg.vector_norm(x, dim=1, dtype=_work(x)).double()
    poor = (sizes <= _TINY) | sizes.isinf()
    return torch.where(poor, _wide_norm(x, 1), sizes) if poor.any() else sizes


def _wide_norm(x: Tensor, dim: int | None) -> Tensor:
    return torch.linalg.vector_norm(x, dim=dim, dtype=torch.float64)


_HALVES = (torch.float16, torch.bfloat16)


def _wide(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


def _work(x: Tensor) -> torch.dtype:
    return torch.float32 if x.dtype in _HALVES else x.dtype


def _real(x: Tensor) -> Tensor:
    return torch.view_as_real(x) if x.is_complex() else x


def _check(group: dict[str, Any]) -> None:
    """Raise `WeightspaceError` for an invalid setting."""
    if isinstance(group["lr"], Tensor) and group["lr"].numel() != 1:
        raise WeightspaceError(f"lr has {group['lr'].numel()} numbers; give one")
    for name in ("lr", "eps", "weight_decay"):
        if name in group:
            _number(name, group[name], lambda value: value >= 0, "zero or more")
    for beta in group.get("betas", ()):
        _number("one of betas", beta, lambda value: 0 <= value < 1, "in [0, 1)")
    if group["p_bound"] is not None:
        _number("p_bound", group["p_bound"], lambda value: value > 0, "more than zero, or None")
    if group["granularity"] not in _GRANULARITIES:
        raise WeightspaceError(f"granularity is {group['granularity']!r}; choose 'tensor' or 'neuron'")
    if group["foreach"] and group["fused"]:
        raise WeightspaceError("foreach and fused cannot both be true; choose one")


def _number(name: str, value: Any, good: Callable[[float], bool], wanted: str) -> None:
    try:
        fine = math.isfinite(value) and good(float(value))
    except (TypeError, ValueError, OverflowError):
        fine = False
    if not fine:
        raise WeightspaceError(f"{name} is {value!r}; it must be a finite number, {wanted}")
