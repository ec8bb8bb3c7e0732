"""Arguments as their annotations mean them: converted where that is unambiguous, else refused in one sentence.

A module becomes a Net, a DataLoader a Task, an array a tensor, a list of whole numbers one of numbers.
"""

from __future__ import annotations

import builtins
import functools
import inspect
import numbers
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module

from weightspace.net.errors import CallError

__all__ = ["Plan", "as_meant", "becomes", "check_call", "is_a", "plan_of"]

_SHAPES = {"Float", "Int", "Bool", "Integer", "Num", "Shaped", "UInt8"}  # of jaxtyping, which users need not install


def check_call(function: Callable[..., Any], args: Any, kwargs: Any, error: TypeError) -> None:
    """Raise `CallError` where the arguments are too many, too few or misnamed."""
    try:
        inspect.signature(function).bind(*args, **kwargs)
    except TypeError as wrong:
        raise CallError(f"{function.__name__}: {wrong}; it is {_signature(function)}") from error


def _signature(function: Callable[..., Any]) -> str:
    """The signature as help() prints it, without types: names and defaults."""
    signature = inspect.signature(function)
    bare = [p.replace(annotation=p.empty) for n, p in signature.parameters.items() if n not in ("self", "cls")]
    return f"{function.__name__}{signature.replace(parameters=bare, return_annotation=signature.empty)}"


@dataclass(frozen=True)
class _Parameter:
    """One parameter of a function: the types that pass at once, and the alternatives of its annotation."""

    where: str
    exact: frozenset[type]
    members: tuple[Any, ...]
    seed: bool
    first: type | None  # values of a subclass of it pass as they are


class Plan(NamedTuple):
    """The checks of a function's arguments, by position and by name."""

    positional: list[_Parameter | None]
    named: dict[str, _Parameter]


def as_meant(plan: Plan, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments, each checked against its annotation and converted."""
    positional, named = plan
    if not named:
        return args, kwargs
    taken = map(_argument, positional, args)
    return (*taken, *args[len(positional) :]), {name: _argument(named.get(name), v) for name, v in kwargs.items()}


def _argument(parameter: _Parameter | None, value: Any) -> Any:
    if parameter is None:
        return value
    passes = type(value) in parameter.exact or (parameter.first and issubclass(type(value), parameter.first))
    found = value if passes else _taken(parameter.members, value, parameter.where)
    if parameter.seed and isinstance(found, int) and found < 0:
        raise CallError(f"{parameter.where} takes a whole number from 0, got {found}")
    return found


def becomes(kind: type, source: type, by: Callable[[Any], Any]) -> None:
    """Register a conversion: an argument of type `source` where a `kind` is expected is converted by `by`."""
    _CONVERSIONS.append((kind, source, by))


def is_a(name: str, value: Any) -> bool:
    """Whether a value is of the registered class of this name, or is converted to it."""
    return type(value).__name__ == name or any(isinstance(value, s) for k, s, _ in _CONVERSIONS if k.__name__ == name)


def _number(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor | np.ndarray | np.generic) else value


_CONVERSIONS: list[tuple[type, type, Callable[[Any], Any]]] = [(Tensor, np.ndarray, torch.as_tensor)]
_WORDS = {int: "a whole number", float: "a number", bool: "True or False", str: "text", type(None): "None"}


def plan_of(function: Callable[..., Any]) -> Plan:
    """The checks of a function's arguments, by position and by name, from its annotations."""
    scope = getattr(inspect.unwrap(function), "__globals__", {})
    where = function.__qualname__.replace("<locals>.", "").replace(".__init__", "")
    positional: list[_Parameter | None] = []
    named = {}
    for name, p in _parameters(function).items():
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            continue
        members = [] if p.annotation is p.empty else _members(_evaluated(p.annotation, scope))
        if any(member is not Any and member is not object for member in members):
            members += [type(None)] if p.default is None else []
            exact = frozenset(m for m in members if isinstance(m, type) and typing.get_origin(m) is None)
            each = tuple(dict.fromkeys(members))
            named[name] = _Parameter(f"{where}: {name}", exact, each, name == "seed", _first(each))
        if p.kind is not p.KEYWORD_ONLY:
            positional.append(named.get(name))
    return Plan(positional, named)


def _first(members: tuple[Any, ...]) -> type | None:
    """The first alternative, if it is a class whose instances are taken as they are; numbers may be converted."""
    plain = isinstance(members[0], type) and typing.get_origin(members[0]) is None and not _asked(members[0])
    first: type | None = members[0] if plain and members[0] not in (int, float, bool, object, type) else None
    return first


def _asked(kind: type) -> bool:
    """Whether a class decides by itself what its instances are, as protocols and abstract classes do."""
    return type(kind).__instancecheck__ is not type.__instancecheck__


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except ValueError:  # built in
        return {}


class _Unknown:
    """A name that only type checkers import: `Float[Tensor, "n"]` is checked as a Tensor, any other as Any."""

    def __getitem__(self, key: Any) -> Any:
        first = key[0] if isinstance(key, tuple) else key
        return first if first is Tensor else Any


class _Names(dict[str, Any]):
    """The global names of a module, for evaluating annotations; unknown ones are Any."""

    def __missing__(self, name: str) -> Any:
        known = (kind for kind, _, _ in _CONVERSIONS if kind.__name__ == name)  # imported for type checkers only
        return next(known, getattr(builtins, name, Any))


def _evaluated(annotation: Any, scope: Mapping[str, Any]) -> Any:
    if not isinstance(annotation, str):
        return annotation
    names = _Names(scope)
    names.update({name: _Unknown() for name in _SHAPES})
    try:
        return eval(annotation, {}, names)  # the annotation is our own source
    except (TypeError, AttributeError):
        return Any


def _members(kind: Any) -> list[Any]:
    """The alternatives of an annotation, aliases and unions resolved."""
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        return [member for part in typing.get_args(kind) for member in _members(part)]
    if isinstance(kind, typing.ForwardRef | str | typing.TypeVar | _Unknown):
        return [Any]
    return [type(None) if kind is None else kind]


def _taken(members: tuple[Any, ...], value: Any, where: str) -> Any:
    """The value as the first member that takes it, converted if necessary. Raises `CallError` where none does."""
    for kind, source, by in _CONVERSIONS:
        if isinstance(value, source) and kind in members and not _fits_exactly(members, value):
            return by(value)
    inside: CallError | None = None
    for member in members:
        try:
            done, found = _fit(member, value, where)
        except CallError as error:  # of an item; another alternative may take it
            inside, done = inside or error, False
        if done:
            return found
    raise inside or CallError(f"{where} takes {_either(members)}, got {_seen(value)}{_hint(members, value)}")


def _fits_exactly(members: tuple[Any, ...], value: Any) -> bool:
    kinds = tuple(m for m in members if isinstance(m, type) and m not in (object, Any) and typing.get_origin(m) is None)
    return isinstance(value, kinds)


def _fit(kind: Any, value: Any, where: str) -> tuple[bool, Any]:
    """Whether a value can be taken as a kind, and the value as that kind."""
    origin = typing.get_origin(kind)
    if kind is Any or kind is object:
        return True, value
    if origin is typing.Literal:
        return any(type(value) is type(choice) and value == choice for choice in typing.get_args(kind)), value
    if origin is Callable or kind is Callable:
        return _calls(typing.get_args(kind)[:1], value), value
    if origin is type:
        return isinstance(value, type), value
    if kind in (int, float, bool):
        return _as_number(kind, value)
    if isinstance(origin, type):
        return _as_collection(origin, typing.get_args(kind), value, where)
    if not isinstance(kind, type):
        return True, value
    try:
        return isinstance(value, kind) and not (isinstance(value, type) and kind is not type), value
    except TypeError:  # a protocol that cannot be asked
        return True, value


def _calls(taken: tuple[Any, ...], value: Any) -> bool:
    """Whether a value is accepted as a function of arguments of these types.

    A class is accepted only as a function without arguments (a factory), a module only as a function of tensors.
    """
    arguments = taken[0] if taken else ...
    if isinstance(value, type):
        return arguments == []
    if isinstance(value, Module):
        return arguments is ... or all(argument is Any for argument in arguments)
    return callable(value)


def _as_number(kind: type, value: Any) -> tuple[bool, Any]:
    if isinstance(value, Tensor) and (value.ndim or value.requires_grad):
        return kind is float and not value.ndim, value
    if isinstance(value, np.ndarray) and value.ndim:
        return False, value
    plain = _number(value)
    if kind is bool:
        return isinstance(plain, bool), plain
    if kind is float:
        return isinstance(plain, numbers.Real), plain
    if isinstance(plain, float) and plain.is_integer():
        return True, int(plain)
    return isinstance(plain, numbers.Integral), plain


def _as_collection(origin: type, inside: tuple[Any, ...], value: Any, where: str) -> tuple[bool, Any]:
    """A list, tuple, mapping or iterable with its items converted; those of a generator when it is read."""
    if issubclass(origin, Mapping):
        if not isinstance(value, dict) or len(inside) != 2:  # a mapping of another kind may read a file for each item
            return isinstance(value, Mapping), value
        members = tuple(_members(inside[1]))
        if all(type(item) in members for item in value.values()):
            return True, value
        take = functools.partial(_taken, members)
        found = {name: take(item, f"{where}[{name!r}]") for name, item in value.items()}
        return True, value if all(found[name] is item for name, item in value.items()) else found
    if not issubclass(origin, Iterable):
        return isinstance(value, origin), value
    if isinstance(value, np.ndarray | Tensor) and value.ndim == 1 and inside[:1] in ((int,), (float,)):
        value = value.tolist()
    if isinstance(value, Mapping):
        return origin is Iterable and inside[:1] in ((), (str,), (Any,)), value
    if isinstance(value, str | Module | np.ndarray | Tensor):
        return isinstance(value, Tensor) and inside[:1] in ((Tensor,), (Any,)), value
    if isinstance(value, Iterator) and origin is Iterable:
        take = functools.partial(_taken, tuple(_members(inside[0] if inside else Any)))
        return True, (take(item, f"an item of {where}") for item in value)
    if not isinstance(value, list | tuple):
        another = isinstance(value, tuple(source for _, source, _ in _CONVERSIONS))  # a loader is not a list
        return isinstance(value, origin) and not another, value
    items = _items(origin, inside, value, where)
    if items is None:
        return False, value
    same = all(item is before for item, before in zip(items, value, strict=True)) and isinstance(value, origin)
    return True, value if same else tuple(items) if origin is tuple or isinstance(value, tuple) else items


def _items(origin: type, inside: tuple[Any, ...], value: Sequence[Any], where: str) -> list[Any] | None:
    """The items of a list or tuple, each converted to its own type; None for a tuple of another length."""
    each = inside[:1] * len(value)
    if origin is tuple and inside[-1:] != (Ellipsis,):
        each = inside or (Any,) * len(value)
    if not inside:
        return list(value)
    if len(each) != len(value):
        return None
    members = {kind: tuple(_members(kind)) for kind in dict.fromkeys(each)}
    kinds = [members[kind] for kind in each]
    return [
        item if type(item) in kind else _taken(kind, item, f"{where}[{k}]")
        for k, (kind, item) in enumerate(zip(kinds, value, strict=True))
    ]


def _either(members: tuple[Any, ...]) -> str:
    words = [_WORDS.get(member) or _named(member) for member in members if member is not type(None)]
    return " or ".join(dict.fromkeys(words))


def _named(member: Any) -> str:
    origin = typing.get_origin(member)
    if origin is Callable:
        return "a function"
    if origin is typing.Literal:
        return " or ".join(repr(choice) for choice in typing.get_args(member))
    if isinstance(origin, type):
        inside = [part for part in typing.get_args(member) if part is not Ellipsis]
        kind = "mapping of names to" if issubclass(origin, Mapping) else "list of"
        return f"a {kind} {_plural(inside[-1])}" if inside else f"a {origin.__name__.lower()}"
    name = getattr(member, "__name__", str(member))
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"


def _plural(kind: Any) -> str:
    words = {int: "whole numbers", float: "numbers", str: "texts", bool: "True or False"}
    members = [member for member in _members(kind) if member is not type(None)]
    every = [
        words.get(m) or ("functions" if typing.get_origin(m) is Callable else f"{getattr(m, '__name__', m)}s")
        for m in members
    ]
    return " or ".join(every)


def _seen(value: Any) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if value is None:
        return "None"
    if isinstance(value, str | int | float):
        return f"{type(value).__name__} {str(value)[:40]!r}"
    return f"a {type(value).__name__}"


def _hint(members: tuple[Any, ...], value: Any) -> str:
    """What to do about a value that is not accepted, as the end of the message."""
    if isinstance(value, type):
        return f"; give {value.__name__}(...)"
    if isinstance(value, str) and any(member in (int, float) for member in members):
        return "; give the number itself, without quotes"
    names = {getattr(member, "__name__", "") for member in members}
    if "Task" in names:
        return "; give Task(inputs, labels)"
    if "Net" in names:
        return "; give Net.of(module)"
    origins = {typing.get_origin(member) for member in members}
    if isinstance(value, str) and origins - {None} and typing.Literal not in origins:
        return "; give the things themselves, a file's with checkpoint.read(path)"
    return ""
