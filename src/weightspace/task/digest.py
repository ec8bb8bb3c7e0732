"""Digests of tasks, networks, functions and numbers by their content: the keys of caches.

A cached result, in memory or in a file, is stored under the digest of everything that it depends on. A tensor is
digested by its numbers, a task by its examples, labels, loss and aggregate, a network by its code, attributes, weights
and state, a function by its code, defaults, and the values of its closure and of the globals that it uses. Installed
code (Python's own, torch, this package, site-packages) is digested by its name. Values that hide their state from
Python are refused.
"""

from __future__ import annotations

import copyreg
import dataclasses
import dis
import enum
import functools
import hashlib
import inspect
import logging
import operator
import os
import sys
import sysconfig
import types
from collections.abc import Callable, Iterable, Mapping, Set
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from weightspace.net.errors import WeightspaceError
from weightspace.net.net import Net
from weightspace.net.weights import Weights
from weightspace.task.task import Task

__all__ = ["DigestError", "Frame", "changed", "digest", "form", "response", "shapes", "told"]


_PLAIN = {type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.layout}
_FLAT = (Tensor, np.ndarray, np.generic, tuple, range, slice)  # no cycle passes through these alone
_INSTALLED = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib"))
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_BOUND = ("_parameters", "_buffers", "_modules")
_MADE = {"__dict__", "__weakref__", "__doc__", "__module__", "__annotations__", "_abc_impl", "__firstlineno__",
         "__static_attributes__", "__dataclass_params__", "__dataclass_fields__", "__orig_bases__", "__parameters__",
         "__annotate_func__", "__annotations_cache__", "__slotnames__"}  # fmt: skip
_TOLERANCE = 1e-5


class DigestError(WeightspaceError):
    """A value whose state cannot be read, so that it cannot be the key of a cache."""


def digest(*things: Any) -> str:
    """The SHA-256 digest of the content of values: the same in any process, and different for different values.

    Raises `DigestError` for values that hide their state: open files, generators, compiled objects.

    >>> import weightspace as ws
    >>> from weightspace.task.digest import digest
    >>> net, task = ws.demo.example()
    >>> digest(net, task) == digest(*ws.demo.example()) != digest(net + net.weights, task)
    True
    """
    return _Digest().of(things)


@dataclasses.dataclass(frozen=True)
class Frame:
    """A network without the values of its weights: classes, attributes, hooks, constants, shapes, dtypes and ties."""

    net: Net


def shapes(x: Any) -> Any:
    """Inputs without the values of their tensors: names, nesting, shapes, dtypes, devices; other values as they are."""
    if isinstance(x, Tensor):
        return ("tensor", tuple(x.shape), x.dtype, str(x.device), x.layout)
    if isinstance(x, Mapping):
        return (type(x), *((key, shapes(part)) for key, part in x.items()))
    if isinstance(x, (tuple, list)):
        return (type(x), *map(shapes, x))
    return x


def form(net: Net, x: Any) -> str | None:
    """The digest of an architecture and of the shapes of its inputs: the key of a result that depends on nothing else.

    None where an attribute hides its state, so that the result cannot be cached.
    """
    try:
        return digest(Frame(net), shapes(x))
    except DigestError:
        return None


def response(task: Task, net: Net) -> list[float]:
    """The loss at a network and at three times its weights: a check of what the code of a loss does not show."""
    with torch.no_grad():
        return [float(task(at)) for at in (net, net.at(net.weights.map(lambda w: 3 * w)))]


def told(value: Any) -> Any:
    """A value for a JSON file: numbers and text as they are, everything else as its digest."""
    return value if type(value) in (bool, int, float, str, type(None)) else digest(value)


def changed(kept: Any, asked: Mapping[str, Any]) -> str | None:
    """The first name whose kept and asked values differ, or None; lists of numbers may differ by rounding."""
    if not isinstance(kept, Mapping):
        return next(iter(asked), None)
    return next((name for name, value in asked.items() if not _same(kept.get(name), value)), None)


def _same(kept: Any, asked: Any) -> bool:
    if not isinstance(asked, list):
        return type(kept) is type(asked) and bool(kept == asked)
    if not isinstance(kept, list) or len(kept) != len(asked):
        return False
    pairs = zip(kept, asked, strict=True)
    return all(isinstance(x, float) and bool(np.isclose(x, y, _TOLERANCE, 1e-9, True)) for x, y in pairs)


class _Digest:
    """The computation of one digest. A repeated object is replaced by its number, so that cycles end."""

    def __init__(self) -> None:
        self.hash = hashlib.sha256()
        self.met: dict[int, int] = {}
        self.held: list[Any] = []  # an id is unique only as long as its object lives
        self.at: list[str] = []

    def of(self, thing: Any) -> str:
        self.put(thing)
        return self.hash.hexdigest()

    def tell(self, *words: Any) -> None:
        for word in words:
            data = word if type(word) is bytes else str(word).encode()
            self.hash.update(b"%d:%b" % (len(data), data))

    def put(self, value: Any, name: str = "") -> None:
        kind = type(value)
        if kind in _PLAIN:
            return self.tell(kind.__name__, value if kind is bytes else repr(value))
        if not isinstance(value, _FLAT):
            if id(value) in self.met:
                return self.tell("again", self.met[id(value)])
            self.met[id(value)] = len(self.met)
            self.held.append(value)
        self.at.append(name)
        _way(cast(Any, kind))(self, value)
        self.at.pop()
        return None

    def _named(self, items: Iterable[tuple[Any, Any]]) -> None:
        for key, value in items:
            self.put(key)
            self.put(value, key if type(key) is str else repr(key))
        self.tell("end")

    def refuse(self, value: Any) -> DigestError:
        where = ".".join(part for part in self.at if part)
        seen = f"{where} is" if where else "there is"
        return DigestError(
            f"{seen} a {type(value).__name__}, whose state cannot be read, so that a cached result could be wrong; "
            "replace it by plain values and functions, or use no cache"
        )

    # -------------------------------------------------------------- numbers and containers

    def _tensor(self, value: Tensor) -> None:
        self.tell("tensor", type(value).__name__, value.dtype, tuple(value.shape))
        if value.is_meta:
            return
        if value.layout is not torch.strided or value.is_quantized:
            raise self.refuse(value)
        self._bytes(value.detach())

    def _bytes(self, value: Tensor) -> None:
        try:
            flat = value.cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
            self.hash.update(cast(Any, flat.view(torch.uint8).numpy()))
        except (RuntimeError, NotImplementedError, TypeError) as error:
            raise self.refuse(value) from error

    def _array(self, value: np.ndarray) -> None:
        self.tell("array", value.dtype.str, value.shape)
        if value.dtype.hasobject:
            return self.put(value.tolist())
        return self.tell(value.tobytes())

    def _sequence(self, value: Any) -> None:
        self.tell("sequence", type(value).__name__, len(value))
        for part in value:
            self.put(part)

    def _set(self, value: Any) -> None:
        self.tell("set", type(value).__name__, *sorted(digest(part) for part in value))

    def _mapping(self, value: Mapping[Any, Any]) -> None:
        self.tell("mapping", type(value).__name__, len(value))
        self._named(value.items())

    def _enum(self, value: enum.Enum) -> None:
        self.tell("enum", type(value).__qualname__, value.name)
        self.put(value.value)

    def _text(self, value: Any) -> None:
        self.tell(type(value).__name__, str(value))

    def _range(self, value: Any) -> None:
        self.tell(type(value).__name__, repr(value))

    # -------------------------------------------------------------- networks and tasks

    def _weights(self, value: Weights) -> None:
        self.tell("weights", len(value))
        self._named(value.items())

    def _net(self, value: Net) -> None:
        self.put(Frame(value))
        self.put(value.weights)
        self.put(value.state)

    def _frame(self, value: Frame) -> None:
        net = value.net
        self.put(net.architecture)
        for name, tensor in net.tensors.items():
            self.tell(name, tensor.dtype, tuple(tensor.shape), tensor.device.type)

    def _module(self, value: nn.Module) -> None:
        self.put(type(value))
        for name, tensor in (*value._parameters.items(), *value._buffers.items()):
            self.tell(name)
            self.put(tensor, name)
            self.tell(tensor is not None and tensor.requires_grad)
        for hooks in _HOOKS:
            if found := getattr(value, hooks):
                self.put([hooks, *found.values()], hooks)
        kept = {name: part for name, part in vars(value).items() if name not in _BOUND and not _is_hook(name)}
        self._attributes(type(value), kept)
        self._named(value._modules.items())

    def _task(self, value: Task) -> None:
        self.tell("task")
        rest = {**vars(value), "_metric": value.metric}
        self._named((name, part) for name, part in sorted(rest.items()) if name not in ("_source", "batch"))
        streams: dict[str, tuple[list[Any], Any]] = {}
        for x, y in value.batches():
            for path, leaf in _paths({"x": x, "y": y}):
                forms, stream = streams.setdefault(path, ([], _Digest()))
                if not forms or forms[-1] != (leaf.dtype, leaf.shape[1:]):  # whatever the batches are
                    forms.append((leaf.dtype, leaf.shape[1:]))
                    stream.tell(*forms[-1])
                stream._bytes(leaf.detach())
        for path, (_, stream) in streams.items():
            self.tell(path, stream.hash.hexdigest())

    # -------------------------------------------------------------- code

    def _function(self, value: types.FunctionType) -> None:
        if hasattr(value, "_public"):  # what `@public` wraps, not the wrapper
            value = inspect.unwrap(value)
        if _is_named(value):
            return self.tell("function", value.__module__, value.__qualname__)
        self.tell("function", value.__qualname__)
        for cell in value.__closure__ or ():
            try:
                inside = cell.cell_contents
            except ValueError:  # not filled yet
                self.tell("empty")
            else:
                self.put(inside, value.__name__)
        self.put([value.__defaults__, value.__kwdefaults__])
        text, named, reached = _code(value.__code__)
        self.tell(text)
        self.put({k: v for k, v in vars(value).items() if k != "__wrapped__"}, value.__name__)
        for name in named:
            if name not in value.__globals__:
                continue
            inside = value.__globals__[name]
            self.tell(name)
            self.put(inside, name)
            if isinstance(inside, types.ModuleType) and not _is_installed(inside.__name__):
                self._named((part, getattr(inside, part)) for part in reached if hasattr(inside, part))
        return None

    def _method(self, value: types.MethodType) -> None:
        self.put(value.__func__)
        self.put(value.__self__, "self")

    def _builtin(self, value: Any) -> None:
        self.tell("builtin", getattr(value, "__module__", ""), getattr(value, "__qualname__", str(value)))
        owner = getattr(value, "__self__", None)
        if owner is not None and not isinstance(owner, (types.ModuleType, type)):
            self.put(owner, value.__name__)

    def _descriptor(self, value: Any) -> None:
        parts = (value.fget, value.fset, value.fdel) if isinstance(value, property) else (value.__func__,)
        self._sequence(parts)

    def _class(self, value: type) -> None:
        self.tell("class", value.__module__ if value.__module__ != "__main__" else "", value.__qualname__)
        if _is_named(value):
            return
        self._sequence(value.__bases__)
        self._named((name, part) for name, part in vars(value).items() if name not in _MADE and not _is_slot(part))

    def _instance(self, value: Any) -> None:
        kind = type(value)
        self.put(kind)
        attributes = {n: getattr(value, n) for n in _slots(kind) if hasattr(value, n)}
        self._attributes(kind, {**getattr(value, "__dict__", {}), **attributes})
        try:
            registered = copyreg.dispatch_table.get(kind)
            parts: Any = registered(value) if registered else value.__reduce_ex__(4)  # refused by a state hidden in C
        except Exception as error:
            raise self.refuse(value) from error
        if registered or kind.__reduce_ex__ is not object.__reduce_ex__ or kind.__reduce__ is not object.__reduce__:
            parts = (parts,) if isinstance(parts, str) else parts
            self._sequence([list(part) if hasattr(part, "__next__") else part for part in parts])

    def _attributes(self, kind: type, attributes: Mapping[str, Any]) -> None:
        """All attributes of an instance, but for its own caches."""
        own = _own(kind)
        items = sorted(((n, part) for n, part in attributes.items() if n not in own), key=operator.itemgetter(0))
        plain = [(name, part) for name, part in items if type(part) in _PLAIN]
        self.tell(plain)
        self._named(item for item in items if type(item[1]) not in _PLAIN)


_KINDS: tuple[tuple[Any, Callable[[_Digest, Any], None]], ...] = (
    (enum.Enum, _Digest._enum),
    (Tensor, _Digest._tensor),
    (np.ndarray, _Digest._array),
    (np.generic, lambda self, value: self._array(np.asarray(value))),
    (Weights, _Digest._weights),
    (Net, _Digest._net),
    (Frame, _Digest._frame),
    (nn.Module, _Digest._module),
    (Task, _Digest._task),
    (types.FunctionType, _Digest._function),
    (types.MethodType, _Digest._method),
    ((types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType), _Digest._builtin),
    ((property, staticmethod, classmethod), _Digest._descriptor),
    (type, _Digest._class),
    (types.ModuleType, lambda self, value: self.tell("module", value.__name__)),
    (logging.Logger, lambda self, value: self.tell("logger", value.name)),
    ((torch._ops.OpOverload, torch._ops.OpOverloadPacket, torch.memory_format, np.dtype), _Digest._text),
    ((range, slice), _Digest._range),
    (torch.Generator, lambda self, value: self._tensor(value.get_state())),
    (os.PathLike, lambda self, value: self.tell("path", os.fspath(value))),
    (Mapping, _Digest._mapping),
    (Set, _Digest._set),
    ((tuple, list), _Digest._sequence),
)


@functools.cache
def _way(kind: Any) -> Callable[[_Digest, Any], None]:
    """The method that digests values of a type."""
    return next((put for kinds, put in _KINDS if issubclass(kind, kinds)), _Digest._instance)


def _paths(x: Any, at: str = "") -> Iterable[tuple[str, Tensor]]:
    """The tensors of nested inputs, each with its path of names and indices; names in alphabetical order."""
    if isinstance(x, Tensor):
        yield at, x
    elif isinstance(x, Mapping):
        for key in sorted(x, key=str):
            yield from _paths(x[key], f"{at}.{key!r}")
    elif isinstance(x, (tuple, list)):
        for k, part in enumerate(x):
            yield from _paths(part, f"{at}.{k}")


@functools.lru_cache(maxsize=1024)
def _code(code: types.CodeType) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """The instructions and constants of code and of functions in it, the globals that it uses, and all other names."""
    inner = [_code(part) for part in code.co_consts if isinstance(part, types.CodeType)]
    plain = [sorted(map(repr, part)) if isinstance(part, frozenset) else repr(part)
             for part in code.co_consts if not isinstance(part, types.CodeType)]  # fmt: skip
    named = {str(i.argval) for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars, code.co_flags)
    text = repr((code.co_code, plain, names, [part[0] for part in inner]))
    named |= {name for part in inner for name in part[1]}
    return text, tuple(sorted(named)), tuple(sorted({*code.co_names, *(name for part in inner for name in part[2])}))


def _is_named(value: Any) -> bool:
    """Whether a function or class is installed, and is the one that its name refers to."""
    if not _is_installed(value.__module__):
        return False
    found: Any = sys.modules.get(value.__module__)
    for part in value.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is value


def _is_installed(name: str | None) -> bool:
    """Whether a module belongs to Python, torch, this package or site-packages."""
    top = (name or "").partition(".")[0]
    if top in sys.stdlib_module_names or top in ("builtins", "weightspace", "torch", "numpy"):
        return top != "__main__"
    file = getattr(sys.modules.get(top), "__file__", None)
    return file is not None and os.path.abspath(file).startswith(_INSTALLED)


@functools.cache
def _own(kind: type) -> set[str]:
    """The names of caches in instances of a class: cached properties, and private fields that are not compared."""
    own = {n for c in kind.__mro__ for n, part in vars(c).items() if isinstance(part, functools.cached_property)}
    fields = getattr(kind, "__dataclass_fields__", {}).values()
    return own | {field.name for field in fields if field.name.startswith("_") and not field.compare}


def _is_slot(part: Any) -> bool:
    return isinstance(part, (types.MemberDescriptorType, types.GetSetDescriptorType))


def _is_hook(name: str) -> bool:
    return name.startswith("_") and "hook" in name


def _slots(kind: type) -> list[str]:
    found: list[str] = []
    for c in kind.__mro__:
        slots = vars(c).get("__slots__", ())
        found += [slots] if isinstance(slots, str) else list(slots)
    return [name for name in found if name not in ("__dict__", "__weakref__")]
