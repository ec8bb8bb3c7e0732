"""The effective information of a layer about its inputs, or about a nuisance: rotation, translation, brightness.

Noise n ~ N(0, S) on the weights makes a layer z = f_{w+n}(x) a channel: to first order z | x ~ N(f_w(x), J_w S J_w^T),
with Fisher information F = J_x^T (J_w S J_w^T)^+ J_x about x, and with J_t in place of J_x about the parameter t of a
nuisance, x -> act(x, t). For t ~ N(0, C) and a layer linear in t the channel carries 1/2 log det(I + C F) nats.
Sources: Emergence of invariance and disentanglement in deep representations (Achille, Soatto, 2018); Where is the
information in a deep neural network? (Achille, Paolini, Soatto, 2019).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from weightspace.inside.units import unit_outputs
from weightspace.jobs.progress import Tick
from weightspace.linear.estimate import Estimate
from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net, checked
from weightspace.net.public import public
from weightspace.net.state import math_attention
from weightspace.net.weights import Weights
from weightspace.task.task import Task

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = [
    "Nuisance",
    "Profile",
    "brightness",
    "contrast",
    "effective_information",
    "information_cost",
    "rotation",
    "translation",
]


_RANK = 1e-6  # of the largest eigenvalue of the noise, below which there is none


@public
@dataclass(frozen=True)
class Nuisance:
    """A nuisance transformation of the inputs, x -> `act(x, t)`, with random parameters t ~ N(0, spread^2).

    `act` is differentiable in t, of shape (example, parameter), and `act(x, 0)` is x.

    >>> import weightspace as ws
    >>> gain = ws.codes.Nuisance("gain", lambda x, t: x * t.exp().view(-1, 1, 1, 1), spread=(0.1,))
    >>> net, task = ws.demo.example()
    >>> ws.effective_information(net, task.take(4, seed=0), gain, layer="outputs").nuisance
    'gain'
    """

    name: str
    act: Callable[[Tensor, Tensor], Tensor]
    spread: tuple[float, ...]


@public
def translation(pixels: float = 1.0) -> Nuisance:
    """The nuisance of shifted images: both axes, bicubic interpolation, border pixels repeated outside.

    `pixels`: the standard deviation of the shifts.

    >>> import torch, weightspace as ws
    >>> net, task = ws.demo.example()
    >>> x, t = task.example(2), torch.zeros(2, 2)
    >>> bool((ws.codes.translation().act(x, t) - x).abs().max() < 1e-4)
    True
    """
    return Nuisance("translation", lambda x, t: _warped(x, _unit(t), t), (pixels, pixels))


@public
def rotation(degrees: float = 10.0) -> Nuisance:
    """The nuisance of images rotated about their centre, counter-clockwise, interpolated as in `translation`.

    `degrees`: the standard deviation of the angle.

    >>> import torch, weightspace as ws
    >>> net, task = ws.demo.example()
    >>> x, turned = task.example(2), torch.full((2, 1), 180.0)
    >>> bool((ws.codes.rotation().act(x, turned) - x.flip(2, 3)).abs().max() < 1e-3)
    True
    """

    def act(x: Tensor, t: Tensor) -> Tensor:
        angle = t[:, 0] * (math.pi / 180)
        rows = (torch.stack([angle.cos(), -angle.sin()], 1), torch.stack([angle.sin(), angle.cos()], 1))
        return _warped(x, torch.stack(rows, 1), torch.zeros_like(t).expand(-1, 2))

    return Nuisance("rotation", act, (degrees,))


@public
def brightness(amount: float = 0.1) -> Nuisance:
    """The nuisance of brightness, x + t, t of standard deviation `amount`.

    >>> import torch, weightspace as ws
    >>> ws.codes.brightness().act(torch.zeros(1, 3), torch.tensor([[0.5]]))
    tensor([[0.5000, 0.5000, 0.5000]])
    """
    return Nuisance("brightness", lambda x, t: x + t.view(-1, *[1] * (x.dim() - 1)), (amount,))


@public
def contrast(share: float = 0.1) -> Nuisance:
    """The nuisance of contrast, (1 + t) x, t of standard deviation `share`.

    >>> import torch, weightspace as ws
    >>> ws.codes.contrast().act(torch.ones(1, 3), torch.tensor([[0.5]]))
    tensor([[1.5000, 1.5000, 1.5000]])
    """
    return Nuisance("contrast", lambda x, t: x * (1 + t.view(-1, *[1] * (x.dim() - 1))), (share,))


def _unit(t: Tensor) -> Tensor:
    return torch.eye(2, dtype=t.dtype, device=t.device).expand(len(t), 2, 2)


def _warped(x: Tensor, turn: Tensor, shift: Tensor) -> Tensor:
    """Images resampled at turn p - shift, p in pixels from the centre."""
    if x.dim() != 4:
        raise WeightspaceError(
            f"expected images of shape (example, channel, height, width), got shape {tuple(x.shape)}"
        )
    height, width = x.shape[-2:]
    rows = torch.arange(height, dtype=x.dtype, device=x.device) - (height - 1) / 2
    columns = torch.arange(width, dtype=x.dtype, device=x.device) - (width - 1) / 2
    places = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1).view(1, -1, 2)
    looked = (places @ turn.mT - shift[:, None]).view(len(x), height, width, 2)
    grid = looked / looked.new_tensor([width / 2, height / 2])
    return F.grid_sample(x, grid, mode="bicubic", padding_mode="border", align_corners=False)


@public
@dataclass(frozen=True)
class Profile:
    """The information of every layer about a nuisance (or the inputs), in nats; what `effective_information` returns.

    `layers`: layer -> the mean over examples and its standard error. `units`: layer -> the dimensions that were used.
    The scale of the noise is a choice and adds a constant: only differences between layers, nuisances or networks are
    meaningful.
    """

    nuisance: str
    layers: Mapping[str, Estimate]
    units: Mapping[str, int]

    def data(self) -> dict[str, Any]:
        """All fields as plain data for JSON."""
        layers = {name: [found.value, found.error] for name, found in self.layers.items()}
        return {"nuisance": self.nuisance, "layers": layers, "units": dict(self.units)}


@public
def information_cost(net: Net, task: Task, *, layer: str | None = None, units: int = 64) -> int:
    """The cost of `effective_information`: backward passes of one example.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> ws.codes.information_cost(net, task)       # 60 examples, layers of 16 and 10 units
    1560
    """
    sizes = {name: z[0].numel() for name, z in _chosen(net, task, task.example(1), layer).items()}
    return len(task) * sum(min(units, size) for size in sizes.values())


@public
def effective_information(
    net: Net,
    task: Task,
    nuisance: Nuisance | None = None,
    *,
    layer: str | None = None,
    noise: float | Weights | Any = 0.1,
    units: int = 64,
    seed: int = 0,
    progress: Tick | None = None,
) -> Profile:
    """The effective information of layers about a nuisance (or the inputs): 1/2 E_x log det(I + C F) nats.

    F = J_t^T (J_w S J_w^T)^+ J_t to first order in noise and nuisance; without a nuisance C is the covariance of the
    task's inputs, and J_t = J_x. `layer`: a layer of `features`, or "outputs"; all by default. `noise`: S^(1/2), as a
    multiple of |W_l| / sqrt(numel_l) for every tensor, standard deviations as `Weights`, or a `Gaussian`. A layer of
    more than `units` dimensions is replaced by a fixed random projection to `units`, a lower bound. Directions with
    less than 1e-6 of the largest noise count as without information (the pseudo-inverse). Only differences between
    layers and nuisances are meaningful (`Profile`). Cost: `information_cost` passes. Raises `WeightspaceError` for a
    noise that is not positive, a nuisance that changes inputs at t = 0 or their shape, a layer that does not exist, and
    numbers that are not finite.

    >>> import weightspace as ws
    >>> net, task = ws.demo.example()
    >>> found = ws.effective_information(net, task.take(8, seed=0), ws.codes.rotation())
    >>> found.nuisance, dict(found.units), found.layers["outputs"].value > 0
    ('rotation', {'2': 16, 'outputs': 10}, True)
    """
    scale, root = _deviations(checked(net), noise), _root(net, task, nuisance)
    draws: dict[str, list[float]] = {}
    sizes: dict[str, int] = {}
    total, done = len(task), 0
    for x, _ in task.batches(net):
        for one in _tensor(x).split(1):
            leaf = net.weights.map(lambda w: w.detach().clone().requires_grad_(w.is_floating_point()))
            with torch.enable_grad(), math_attention():
                turned, parameter = _turned(one, nuisance, root)
                seen = _chosen(net.at(leaf), task, turned, layer)
                for name, z in seen.items():
                    rows = _projected(name, z.flatten(), units, seed)
                    sizes[name] = len(rows)
                    draws.setdefault(name, []).append(_nats(name, rows, leaf, parameter, scale, root))
            done += 1
            if progress is not None:
                progress(done, total)
    layers = {name: _mean(values, sizes[name]) for name, values in draws.items()}
    return Profile("inputs" if nuisance is None else nuisance.name, layers, sizes)


def _nats(name: str, rows: Tensor, leaf: Weights, parameter: Tensor, scale: Tensor, root: Tensor) -> float:
    """1/2 log det(I + R^T J_t^T (J_w S J_w^T)^+ J_t R) of one example."""
    leaves = [flat for flat in leaf.buffers if flat.requires_grad]
    *back, to = _rows_back(rows, [*leaves, parameter])
    noise, signal = (torch.cat(back, 1) * scale).double(), to.flatten(1).double() @ root
    if not bool(noise.isfinite().all() and signal.isfinite().all()):
        raise WeightspaceError(
            f"the derivatives of layer {name} hold NaN or infinity; look at the data and the weights"
        )
    values, vectors = torch.linalg.eigh(noise @ noise.T)
    keep = values > _RANK * values[-1].clamp_min(torch.finfo(values.dtype).tiny)
    white = (vectors[:, keep] / values[keep].sqrt()).T @ signal
    gram = white @ white.T if white.shape[0] < white.shape[1] else white.T @ white
    return float(torch.linalg.slogdet(gram + torch.eye(len(gram), dtype=gram.dtype))[1]) / 2


def _rows_back(rows: Tensor, leaves: Sequence[Tensor]) -> Sequence[Tensor]:
    """The Jacobian of the rows in every leaf, in one backward pass where all operations can be batched."""
    ones = torch.eye(len(rows), dtype=rows.dtype, device=rows.device)
    how: dict[str, Any] = {"retain_graph": True, "materialize_grads": True}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about operations that are batched by a loop
            return torch.autograd.grad(rows, leaves, ones, is_grads_batched=True, **how)
    except RuntimeError:
        each = [torch.autograd.grad(rows, leaves, one, **how) for one in ones]
        return [torch.stack(parts) for parts in zip(*each, strict=True)]


def _chosen(net: Net, task: Task, x: Any, layer: str | None) -> dict[str, Tensor]:
    found = unit_outputs(net, task, x)
    if layer is not None and layer not in found:
        raise WeightspaceError(f"no layer {layer!r}; there are {', '.join(found)}")
    chosen = found if layer is None else {layer: found[layer]}
    for name, z in chosen.items():
        if not bool(z.isfinite().all()):
            raise WeightspaceError(f"layer {name} holds NaN or infinity; look for it in the data and the weights")
    return chosen


def _projected(name: str, z: Tensor, units: int, seed: int) -> Tensor:
    """z itself, or its coordinates along `units` random orthonormal directions, the same for every example."""
    if units < 1:
        raise WeightspaceError(f"units must be 1 unit or more, got {units}")
    if len(z) <= units:
        return z
    generator = torch.Generator().manual_seed(seed)
    directions = torch.linalg.qr(torch.randn(len(z), units, generator=generator, dtype=torch.float64))[0]
    return directions.T.to(z) @ z


def _turned(one: Tensor, nuisance: Nuisance | None, root: Tensor) -> tuple[Tensor, Tensor]:
    """An example as a function of the nuisance's parameter, and that parameter as a leaf."""
    if nuisance is None:
        leaf = one.detach().clone().requires_grad_()
        return leaf, leaf
    leaf = torch.zeros(1, len(root), dtype=one.dtype, device=one.device, requires_grad=True)
    turned = nuisance.act(one.detach(), leaf)
    if not isinstance(turned, Tensor) or turned.shape != one.shape or not turned.requires_grad:
        seen = tuple(turned.shape) if isinstance(turned, Tensor) else type(turned).__name__
        raise WeightspaceError(
            f"{nuisance.name} made {seen} of {tuple(one.shape)}; give an act that keeps the shape and is differentiable"
        )
    if float((turned.detach() - one).abs().max()) > 1e-3 * float(one.abs().max().clamp_min(1e-12)):
        raise WeightspaceError(f"{nuisance.name} changes the inputs at t = 0; act(x, 0) must be x")
    return turned, leaf


def _root(net: Net, task: Task, nuisance: Nuisance | None) -> Float[Tensor, "parameters directions"]:
    """A square root R of the covariance of the parameter, or of the inputs: R R^T = C."""
    if nuisance is not None:
        spread = torch.tensor(nuisance.spread, dtype=torch.float64)
        if not len(spread) or not bool((spread > 0).all() and spread.isfinite().all()):
            raise WeightspaceError(f"the spread of {nuisance.name} must be positive, got {nuisance.spread}")
        return spread.diag()
    x = torch.cat([_tensor(x).flatten(1) for x, _ in task.batches(net)]).double()
    if len(x) < 2:
        raise WeightspaceError("the covariance of the inputs needs two examples or more; give a nuisance for one")
    return ((x - x.mean(0)) / math.sqrt(len(x) - 1)).T


def _tensor(x: Any) -> Tensor:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        seen = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise WeightspaceError(f"the inputs must be one floating-point tensor, got {seen}")
    if not bool(x.isfinite().all()):
        raise WeightspaceError("the inputs hold NaN or infinity; remove those examples")
    return x


def _deviations(net: Net, noise: Any) -> Float[Tensor, " n"]:
    """A standard deviation for every weight."""
    given = getattr(noise, "log_variance", noise)
    if isinstance(given, Weights):
        net.weights.check(given)
        flat = given.flat() if given is noise else (given.flat() / 2).exp()
        if not bool(flat.isfinite().all() and (flat >= 0).all() and flat.any()):
            raise WeightspaceError(
                "standard deviations of the noise must be finite and not negative, and some positive"
            )
        return flat
    if not isinstance(given, (int, float)) or not 0 < given < math.inf:
        raise WeightspaceError(f"noise must be positive and finite, got {given}")
    sizes = net.weights.norms()
    parts = {name: torch.full_like(w, given * sizes[name] / math.sqrt(w.numel())) for name, w in net.weights.items()}
    return net.weights.replace(parts).flat()


def _mean(values: Sequence[float], passes: int) -> Estimate:
    found = torch.tensor(values, dtype=torch.float64)
    error = float(found.std()) / math.sqrt(len(found)) if len(found) > 1 else math.nan
    return Estimate(float(found.mean()), error, passes * len(found))
