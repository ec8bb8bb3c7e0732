"""`constrain`: weights of a module that keep a form, on `torch.nn.utils.parametrize`.

The module stays ordinary: its parameters are the free ones, under the names of torch's parametrisations, an optimiser
moves them, and a state dict holds them.
"""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Callable, Mapping
from typing import overload

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from weightspace.constraints.form import Kind, placed, usable
from weightspace.constraints.fourier import FOURIER_SIZE, FourierLinear
from weightspace.constraints.matrices import LowRank, Orthogonal
from weightspace.constraints.ordered import Ordered
from weightspace.constraints.shared import Antisymmetric, Asymmetric, Circulant, SharedBlocks, Symmetric, Toeplitz
from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net
from weightspace.net.public import public
from weightspace.net.weights import Weights

__all__ = ["Constrained", "constrain", "kind", "kinds_of", "project", "released", "with_weights"]


class Constrained(nn.Module):
    """The parametrisation of one weight by a kind: free parameters to the weight, and a weight to its nearest."""

    def __init__(self, kind: Kind, weight: Tensor, name: str) -> None:
        super().__init__()
        self.kind, self.shape = kind, tuple(weight.shape)
        wide = weight.detach().double()
        for key, tensor in kind.constants(self.shape, name).items():
            self.register_buffer(key, tensor.to(weight.device), persistent=False)
        for key, tensor in kind.state(wide).items():
            self.register_buffer(key, tensor.to(weight))

    def forward(self, *free: Tensor) -> Tensor:
        """The weight."""
        return self.kind.weight(free, self.shape, self._constants())

    def right_inverse(self, weight: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The free parameters of the nearest weight."""
        wide = weight.detach().double()
        for key, tensor in self.kind.state(wide).items():
            getattr(self, key).copy_(tensor)
        found = self.kind.solved(wide, placed(self._constants(), wide))
        free = tuple(t.to(weight.dtype).contiguous() for t in found)
        return free if len(free) > 1 else free[0]

    def _constants(self) -> dict[str, Tensor]:
        return {name: buffer for name, buffer in self._buffers.items() if buffer is not None}

    def extra_repr(self) -> str:
        """The kind and the shape of the weight."""
        return f"{self.kind}, {'x'.join(map(str, self.shape))}"


# ------------------------------------------------------------------ kinds as texts

_SIZE, _PAIR = r"(\d+)", r"(\d+)x(\d+)"
_TEXTS: dict[str, Callable[..., Kind]] = {
    "circulant": Circulant,
    f"block-circulant:{_SIZE}": lambda size: Circulant((int(size),)),
    f"doubly-block-circulant:{_PAIR}": lambda height, width: Circulant((int(height), int(width))),
    "toeplitz": Toeplitz,
    f"low-rank:{_SIZE}": lambda rank: LowRank(int(rank)),
    f"shared-(blocks|entries):{_PAIR}": lambda equal, rows, columns: SharedBlocks(int(rows), int(columns), equal),
    "symmetric": Symmetric,
    "antisymmetric": Antisymmetric,
    "orthogonal": Orthogonal,
    r"(ordered|sorted)(?::(\w+))?(?::(\d+))?": lambda how, key, seed: Ordered(
        key or "first", int(seed or 0), how == "sorted"
    ),
    r"asymmetric:(0?\.\d+)(?::(\d+))?": lambda share, seed: Asymmetric(float(share), seed=int(seed or 0)),
}
_SHOWN = (
    "circulant, block-circulant:4, doubly-block-circulant:8x8, toeplitz, low-rank:4, shared-blocks:2x4, "
    "shared-entries:2x4, symmetric, antisymmetric, orthogonal, ordered:first, sorted:first or asymmetric:0.25"
)


@public
def kind(text: Kind | str) -> Kind:
    """The constraint that a text names; a `Kind` as it is. Raises `WeightspaceError` for another text.

    >>> import weightspace as ws
    >>> ws.constraints.kind("low-rank:4"), ws.constraints.kind("doubly-block-circulant:8x8")
    (LowRank(rank=4), Circulant(grid=(8, 8)))
    """
    if isinstance(text, Kind):
        return text
    for pattern, make in _TEXTS.items():
        if found := re.fullmatch(pattern, text):
            return make(*found.groups())
    raise WeightspaceError(f"unknown kind of constraint {text!r}; give {_SHOWN}")


# ------------------------------------------------------------------ modules


@overload
def constrain(module: Net, kinds: Mapping[str, Kind | str]) -> Net: ...


@overload
def constrain(module: nn.Module, kinds: Mapping[str, Kind | str]) -> nn.Module: ...


@public(grad=False)
def constrain(module: Net | nn.Module, kinds: Mapping[str, Kind | str]) -> Net | nn.Module:
    """Constrain weights of a module, in place: each named weight becomes a function of fewer, free parameters.

    `kinds`: the name of a weight, or a pattern such as "*.weight", to its kind: `ws.constraints.LowRank(4)` or its text
    "low-rank:4". Every weight starts at the one of its form that is nearest. The module keeps its class (a linear layer
    with circulant blocks from size 256 on multiplies by the Fourier transform), and `module.layer.weight` is the
    constrained weight; what is trained, saved and loaded is `layer.parametrizations.weight.original` (`original0`,
    `original1` where there are two). A file holds free parameters and not their kinds: constrain a module in the same
    way before its state is loaded. Of a `Net`, a new one, whose `weights` are the free parameters: flows, metrics and
    codes work there.

    Returns the module. Raises `WeightspaceError`, and changes nothing, for a kind that does not fit the shape, a name
    or a kind that is not there, and for a weight that is tied or parametrised already.

    >>> import torch
    >>> import weightspace as ws
    >>> module = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
    >>> _ = ws.constrain(module, {"0.weight": "circulant", "2.weight": ws.constraints.LowRank(2)})
    >>> {name: tuple(p.shape) for name, p in module.named_parameters() if "original" in name}
    {'0.parametrizations.weight.original': (16,), '2.parametrizations.weight.original0': (3, 2), \
'2.parametrizations.weight.original1': (2, 16)}
    >>> module[0].weight.shape, ws.constraints.kinds_of(module)["0.weight"]
    (torch.Size([16, 16]), Circulant(grid=None))
    """
    if isinstance(module, Net):
        return Net.of(_constrained(module.module(), kinds))
    if not isinstance(module, nn.Module):
        raise WeightspaceError(f"expected a torch.nn.Module or a Net, got a {type(module).__name__}; give a module")
    return _constrained(module, kinds)


def _constrained(module: nn.Module, kinds: Mapping[str, Kind | str]) -> nn.Module:
    chosen = fitting(module, kinds)
    for name, form in chosen.items():
        owner, last = owner_of(module, name)
        weight = getattr(owner, last)
        if isinstance(form, Ordered) and not form.sorted(weight, name):
            raise WeightspaceError(
                f"the rows of {name} are not in the order of their key {form}; sort the units first by "
                "group.canonical(net, key=), or take the kind with sort=True if the network is not trained yet"
            )
    for name, form in chosen.items():
        owner, last = owner_of(module, name)
        weight = getattr(owner, last)
        if type(owner) is nn.Linear and isinstance(form, Circulant) and _large(form, tuple(weight.shape)):
            owner.__class__ = FourierLinear
        with torch.no_grad():
            parametrize.register_parametrization(owner, last, Constrained(form, weight, name), unsafe=True)
    return module


def _large(form: Circulant, shape: tuple[int, ...]) -> bool:
    return math.prod(form.circle(shape)) >= FOURIER_SIZE


def fitting(module: nn.Module, kinds: Mapping[str, Kind | str]) -> dict[str, Kind]:
    """The kind of every weight that `kinds` names, checked against its shape. Raises `WeightspaceError`."""
    if not isinstance(kinds, Mapping) or not kinds:
        raise WeightspaceError("kinds is a dictionary from names of weights to constraints, with one at least")
    if wrong := [name for name in kinds if not isinstance(name, str)]:
        raise WeightspaceError(f"the name of a weight is text, got {wrong[0]!r}; give kinds such as {{'0.weight': ..}}")
    every: dict[str, list[str]] = {}
    first: dict[int, str] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        every.setdefault(first.setdefault(id(parameter), name), []).append(name)
    found: dict[str, Kind] = {}
    for pattern, text in kinds.items():
        form = kind(text)
        names = [n for n in every if n == pattern] or [n for n in every if fnmatch.fnmatchcase(n, pattern)]
        for name in names or [_absent(module, every, pattern)]:
            if name in found:
                raise WeightspaceError(f"{name} is named twice, as {found[name]} and as {form}; give one constraint")
            if ".parametrizations." in f".{name}":
                raise WeightspaceError(f"{name} is a free parameter of a weight that is parametrised; release it first")
            if len(every[name]) > 1:
                raise WeightspaceError(
                    f"{name} is tied to {every[name][1]}; constrain an architecture that does not tie"
                )
            parameter = module.get_parameter(name)
            usable_for(form, parameter, name)
            found[name] = form
    return found


def usable_for(form: Kind, weight: Tensor, name: str) -> None:
    """Raise `WeightspaceError` where a weight cannot have this form."""
    form.check(tuple(weight.shape), name)
    if weight.device.type == "meta":
        raise WeightspaceError(f"{name} is on the meta device and has no values; load weights first")
    usable(weight, name)


def _absent(module: nn.Module, every: Mapping[str, list[str]], pattern: str) -> str:
    owner, _, last = pattern.rpartition(".")
    try:
        taken = parametrize.is_parametrized(module.get_submodule(owner), last)
    except AttributeError:
        taken = False
    if taken:
        raise WeightspaceError(f"{pattern} is constrained or parametrised already; release it first")
    some = ", ".join(list(every)[:4]) + (", .." if len(every) > 4 else "")
    raise WeightspaceError(f"no weight is called {pattern!r}; the network has {some}")


def owner_of(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that holds a weight, and the weight's name there."""
    owner, _, last = name.rpartition(".")
    return module.get_submodule(owner), last


@public
def kinds_of(module: Net | nn.Module) -> dict[str, Kind]:
    """The constraints of a module: the name of every weight that `constrain` has constrained -> its kind.

    >>> import torch
    >>> import weightspace as ws
    >>> module = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    >>> ws.constraints.kinds_of(ws.constrain(module, {"0.*": "sorted"}))
    {'0.weight': Ordered(key='first', seed=0, sort=True), '0.bias': Ordered(key='first', seed=0, sort=True)}
    """
    return {name: form.kind for name, form in forms(module).items()}


def forms(module: Net | nn.Module) -> dict[str, Constrained]:
    """The parametrisations that `constrain` has made, by the name of the weight."""
    found = {}
    for owner, child in (module.architecture if isinstance(module, Net) else module).named_modules():
        for last, chain in getattr(child, "parametrizations", {}).items():
            if isinstance(chain[0], Constrained) and len(chain) == 1:
                found[f"{owner}.{last}".strip(".")] = chain[0]
    return found


@overload
def released(module: Net) -> Net: ...


@overload
def released(module: nn.Module) -> nn.Module: ...


@public(grad=False)
def released(module: Net | nn.Module) -> Net | nn.Module:
    """The same function without constraints: its weights are plain parameters again. Of a module, in place.

    >>> import torch
    >>> import weightspace as ws
    >>> net = ws.Net.of(torch.nn.Linear(4, 4))
    >>> tied = ws.constrain(net, {"weight": "circulant"})
    >>> tied.weights.numel, ws.constraints.released(tied).weights.numel
    (8, 20)
    """
    if isinstance(module, Net):
        return Net.of(released(module.module()))
    if not isinstance(module, nn.Module):
        raise WeightspaceError(f"expected a torch.nn.Module or a Net, got a {type(module).__name__}; give a module")
    for name in kinds_of(module):
        owner, last = owner_of(module, name)
        _release(owner, last)
    return module


def _release(owner: nn.Module, last: str) -> None:
    """As torch's `remove_parametrizations`, which would take the weight from the class of all copies of the module."""
    chains, old = owner.parametrizations, type(owner)
    assert isinstance(chains, nn.ModuleDict)
    with torch.no_grad():
        weight = getattr(owner, last).detach().clone()
    learns = any(p.requires_grad for p in chains[last].parameters())
    del chains[last]
    base = nn.Linear if old.__bases__[0] is FourierLinear else old.__bases__[0]
    if len(chains):
        kept = {name: value for name, value in vars(old).items() if name not in (last, "__dict__", "__weakref__")}
        owner.__class__ = type(old.__name__, (base,), kept)
    else:
        del owner.parametrizations
        owner.__class__ = base
    owner.register_parameter(last, nn.Parameter(weight, learns))


@public(grad=False)
def with_weights(net: Net, dense: Net) -> Net:
    """A constrained network at the weights of one without constraints: each constrained weight at its nearest.

    The inverse of `released` where the weights have their form. Raises `ArchitectureMismatch` for other tensors.

    >>> import torch
    >>> import weightspace as ws
    >>> net = ws.constrain(ws.Net.of(torch.nn.Linear(4, 4)), {"weight": "circulant"})
    >>> back = ws.constraints.with_weights(net, ws.constraints.released(net))
    >>> float((back - net).norm())
    0.0
    """
    released(net).check(dense)
    live, tensors = net.module(), dense.tensors
    constrained = forms(live)
    own = {**dict(live.named_parameters()), **dict(live.named_buffers())}
    with torch.no_grad():
        for name, tensor in tensors.items():
            if name in constrained:
                owner, last = owner_of(live, name)
                setattr(owner, last, tensor.detach())
            else:
                own[name].copy_(tensor)
    state = {name: own[name].detach() for name in net.state}
    return net.at(Weights({name: own[name].detach() for name in net.weights}), Weights(state))


# ------------------------------------------------------------------ networks


@public
def project(net: Net, kinds: Mapping[str, Kind | str]) -> Net:
    """The nearest constrained network: the named weights replaced by the nearest of their kind, in the Frobenius norm.

    The other weights stay, and the architecture is the same; `constrain` writes the result in its free parameters. It
    is in closed form: a mean of the entries that are shared, singular values cut off (`LowRank`), the polar factor
    (`Orthogonal`), pooled neighbours (`Ordered`). `kinds`: see `constrain`, whose errors it raises.

    >>> import torch
    >>> import weightspace as ws
    >>> net = ws.Net.of(torch.nn.Linear(4, 4))
    >>> near = ws.project(net, {"weight": "symmetric"})
    >>> w = net.weights["weight"]
    >>> bool((near.weights["weight"] - (w + w.mT) / 2).abs().max() < 1e-7)
    True
    """
    found = fitting(net.live(), kinds)
    return net.at(Weights({n: found[n].nearest(w, n) if n in found else w for n, w in net.weights.items()}))
