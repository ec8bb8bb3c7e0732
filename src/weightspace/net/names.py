"""Matching the tensor names of a checkpoint with those of a network: prefixes, tied and missing tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from weightspace.net.errors import ArchitectureMismatch
from weightspace.net.public import public
from weightspace.net.weights import BLOCK, Form, Renamed, difference, forms_of

__all__ = ["prefixes"]


def _aliases(module: nn.Module) -> dict[str, str]:
    """Every name of every parameter and buffer -> the first name of the same tensor (tied tensors have several)."""
    first: dict[int, str] = {}
    names = {}
    pairs = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    for name, tensor in pairs:
        names[name] = first.setdefault(id(tensor), name)
    return names


def pick(architecture: nn.Module, own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """A network's tensor names -> their names in `tensors`; missing counters of BatchNorm's batches are left out.

    Raises `ArchitectureMismatch` for tensors that do not fit the network.
    """
    aliases = _aliases(architecture)
    wanted = {name: tensor.shape for name, tensor in own.items()}
    forms = forms_of(tensors)
    given = {name: form[0] for name, form in forms.items()}
    found: dict[str, str] = {}
    for name in given:
        owner = aliases.get(name)
        if owner in wanted and (owner not in found or name == owner):
            found[owner] = name
    counters = {name for name in wanted if name.endswith("num_batches_tracked")}
    missing = [name for name in wanted if name not in found and name not in counters]
    extra = [name for name in given if name not in aliases]
    if missing or extra:
        under = [prefix for prefix in prefixes(architecture, own, given) if prefix]
        if under and all(name.startswith(under[0]) for name in given):
            inside = Renamed(tensors, {name.removeprefix(under[0]): name for name in given})
            return {owner: under[0] + name for owner, name in pick(architecture, own, inside).items()}
        if under and missing:
            left = [name for name in given if not name.startswith(under[0])]
            raise ArchitectureMismatch(
                f"the tensors of this architecture are there under {', '.join(map(repr, under))}, "
                f"beside {', '.join(left[:3])}; take these alone by checkpoint.read(path, weights={under[0][:-1]!r})"
            )
        raise ArchitectureMismatch(difference(wanted, {aliases.get(n, n): shape for n, shape in given.items()}))
    shapes = {owner: given[name] for owner, name in found.items()}
    for owner, name in found.items():
        if own[owner].is_floating_point() and not forms[name][1].is_floating_point:
            raise ArchitectureMismatch(f"{name} holds {forms[name][1]}; give weights of a floating-point dtype")
    if any(shapes[owner] != wanted[owner] for owner in shapes):
        raise ArchitectureMismatch(difference({o: wanted[o] for o in shapes}, shapes))
    for name in given:
        kept = found.get(aliases[name], name)
        if name != kept and not _equal(forms[name], forms[kept], tensors, name, kept):
            raise ArchitectureMismatch(
                f"{name} and {kept} are one tensor in this architecture and differ here; "
                "give the architecture that does not tie them, or weights in which they are equal"
            )
    return found


@public
def prefixes(architecture: nn.Module, own: Mapping[str, Tensor], names: Iterable[str]) -> list[str]:
    """The prefixes under which tensor names hold a whole network, such as "" or "model.", in alphabetical order.

    `architecture`: the module; `own`: its tensors, by name; `names`: those of a file.

    >>> import weightspace as ws
    >>> net, _ = ws.demo.example()
    >>> ws.net.prefixes(net.architecture, net.tensors, ["ema." + name for name in net.tensors])
    ['ema.']
    """
    given, aliases = {*names}, _aliases(architecture)
    called: dict[str, list[str]] = {name: [] for name in own if not name.endswith("num_batches_tracked")}
    for name, owner in aliases.items():
        if owner in called:
            called[owner].append(name)
    first = next(iter(called.values()), [])
    starts = {n[: -len(one)]: None for n in given for one in first if n == one or n.endswith(f".{one}")}
    return [start for start in sorted(starts) if all(any(start + n in given for n in called[o]) for o in called)]


def _equal(one: Form, other: Form, tensors: Mapping[str, Tensor], name: str, kept: str) -> bool:
    """Whether two tensors hold the same numbers, NaN in the same places; on the meta device, the same shape."""
    if one[0] != other[0] or "meta" in (one[2].type, other[2].type):
        return one[0] == other[0]
    a, b = tensors[name].detach(), tensors[kept].detach()
    if (a.data_ptr(), a.stride(), a.dtype) == (b.data_ptr(), b.stride(), b.dtype):
        return True
    wide = torch.complex128 if a.is_complex() or b.is_complex() else torch.float64
    for p, q in zip(a.reshape(-1).split(BLOCK), b.reshape(-1).split(BLOCK), strict=True):
        p, q = p.to(wide), q.to(p.device, wide)
        if not bool(((p == q) | ((p != p) & (q != q))).all()):
            return False
    return True
