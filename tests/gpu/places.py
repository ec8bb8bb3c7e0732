"""Tensors of two devices that meet, found on one: a mode in which some tensors count as being on an accelerator.

Everything is computed on the CPU. A tensor is `there` (on the accelerator) if it was brought there or computed from one
that is; `any` if it was made for the device of another tensor, by `device=` or `.to(device)`; else it is here. Where a
tensor that is here meets one that is there, a real accelerator would raise: that is a mix, and is kept with the place
in the code. Numbers and copies that come back are counted.
"""

from __future__ import annotations

import traceback
import warnings
from collections import Counter

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_BOTH = (
    *("aten.copy_", "aten.index.", "aten.index_put", "aten._index_put_impl"),
    *("aten._local_scalar_dense", "aten._to_copy"),
)

_MAKERS = (
    *("tensor", "as_tensor", "zeros", "ones", "empty", "full", "eye", "arange", "linspace", "logspace"),
    *("rand", "randn", "randint", "randperm", "tril_indices", "triu_indices"),
)


class Places(TorchDispatchMode):
    """`mixes`: where a real accelerator would raise; `back`: how many numbers and tensors came back."""

    def __init__(self):
        super().__init__()
        self.there, self.any = {}, {}
        self.mixes, self.back = [], Counter()
        self._own = {name: getattr(Tensor, name) for name in ("cpu", "to", "numpy", "__array__")}
        self._makers = {name: getattr(torch, name) for name in _MAKERS}

    def bring(self, *tensors):
        """Let tensors count as being on the accelerator."""
        for tensor in tensors:
            self._put(tensor, "there")

    def of(self, tensor):
        """Where a tensor is: there, here or any."""
        key = _key(tensor)
        if key in self.there:
            return "there"
        return "any" if key is None or key in self.any or tensor.device.type == "meta" else "here"

    def _put(self, tensor, place):
        key = _key(tensor)
        if key is None:
            return
        self.there.pop(key, None)
        self.any.pop(key, None)
        if place != "here":  # the storage is kept, so that its number is not given to another one
            getattr(self, place)[key] = tensor.untyped_storage()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = str(function)
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        places = [self.of(t) for t in given]
        found = function(*args, **kwargs)
        if name.startswith("aten._local_scalar_dense") and "there" in places:
            self.back["number"] += 1
        meet = [p for t, p in zip(given, places, strict=True) if t.dim() or p == "there"]
        if "there" in meet and "here" in meet and not _allowed(name, given, places):
            self.mixes.append(f"{name} at {_where()}")
        made = [t for t in tree_leaves(found) if isinstance(t, Tensor)]
        place = "there" if "there" in places else "any" if kwargs.get("device") is not None and not given else None
        if place is None and "any" in places and "here" not in meet:
            place = "any"
        for tensor in made if place and not (name.startswith("aten.copy_") and places[0] == "here") else ():
            self._put(tensor, place)
        return found

    def __enter__(self):
        with warnings.catch_warnings(), forward_ad.dual_level():  # torch scripts functions of its own at the first use
            warnings.simplefilter("ignore")
            forward_ad.make_dual(torch.zeros(1), torch.zeros(1))
        own, mode = self._own, self

        def cpu(tensor, *args, **kwargs):
            place = mode.of(tensor)
            if place == "there":
                mode.back["tensor"] += 1
            return mode._moved(tensor, own["cpu"](tensor, *args, **kwargs), "here")

        def to(tensor, *args, **kwargs):
            wanted = kwargs.get("device", kwargs.get("other", args[0] if args else None))
            found = own["to"](tensor, *args, **kwargs)
            if isinstance(wanted, Tensor):
                return mode._moved(tensor, found, mode.of(wanted))
            if isinstance(wanted, str):
                return mode._moved(tensor, found, "here" if wanted == "cpu" else "there")
            return mode._moved(tensor, found, "any") if isinstance(wanted, torch.device) else found

        def numpy(tensor, *args, **kwargs):
            if mode.of(tensor) == "there" and kwargs.get("force"):
                mode.back["tensor"] += 1
            elif mode.of(tensor) == "there":
                mode.mixes.append(f"numpy at {_where()}")
            return own["numpy"](tensor, *args, **kwargs)

        def array(tensor, *args, **kwargs):
            if mode.of(tensor) == "there":
                mode.mixes.append(f"numpy at {_where()}")
            return own["__array__"](tensor, *args, **kwargs)

        def making(function):
            def make(*args, **kwargs):
                found = function(*args, **kwargs)
                if isinstance(found, Tensor) and not (args and isinstance(args[0], Tensor)):
                    mode._put(found, "here" if kwargs.get("device") is None else "any")
                return found

            return make

        for name, method in (("cpu", cpu), ("to", to), ("numpy", numpy), ("__array__", array)):
            setattr(Tensor, name, method)
        for name, function in self._makers.items():
            setattr(torch, name, making(function))
        return super().__enter__()

    def __exit__(self, *error):
        for name, method in self._own.items():
            setattr(Tensor, name, method)
        for name, function in self._makers.items():
            setattr(torch, name, function)
        return super().__exit__(*error)

    def _moved(self, before, found, place):
        """A tensor at a place; a copy, where it is the tensor that was moved."""
        if _key(found) is None or self.of(found) == place or (place == "any" and self.of(before) == "there"):
            return found
        if _key(found) == _key(before):
            found = found.clone()
        self._put(found, place)
        return found


def _key(tensor):
    try:
        return tensor.untyped_storage()._cdata
    except (RuntimeError, NotImplementedError):  # a tensor without storage: inside of vmap, or fake
        return None


def _allowed(name, given, places):
    """Whether PyTorch lets both devices meet: copies, and indices that are here of a tensor that is there."""
    if name.startswith(("aten.index.", "aten.index_put", "aten._index_put_impl")):
        return places[0] in ("there", "any")
    return name.startswith(_BOTH)


def _where():
    frames = [f for f in traceback.extract_stack() if "/weightspace/" in f.filename and "/gpu/" not in f.filename]
    return " < ".join(f"{f.filename.rpartition('/weightspace/')[2]}:{f.lineno}" for f in frames[::-1][:3])
