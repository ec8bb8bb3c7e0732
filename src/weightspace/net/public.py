"""The decorator of public functions: it fixes torch's global state, and checks and converts the arguments.

A result depends on the arguments alone. Whatever the caller has set (no_grad, inference mode, autocast, a default dtype
or device), a public call works in one state and restores the caller's. Arguments are taken as `net.arguments` says.
"""

from __future__ import annotations

import functools
import inspect
import threading
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, overload

import torch
from torch import Tensor

from weightspace.contents import deprecated
from weightspace.net.arguments import Plan, as_meant, check_call, is_a, plan_of
from weightspace.net.errors import CallError
from weightspace.net.state import settled

__all__ = ["public"]

_Target = TypeVar("_Target", bound=Callable[..., Any])
_CALL = threading.local()


@overload
def public(target: _Target) -> _Target: ...


@overload
def public(
    *, grad: bool = True, renamed: Mapping[str, str] | None = None, order: Sequence[str] = ()
) -> Callable[[_Target], _Target]: ...


def public(
    target: Any = None,
    *,
    grad: bool = True,
    renamed: Mapping[str, str] | None = None,
    order: Sequence[str] = (),
) -> Any:
    """A decorator that marks a function, or all public methods of a class, as public: see the module.

    With `grad=False` the caller's grad mode is kept (constructors enable gradients), for results that a caller
    differentiates. `renamed`: argument names of the last release -> those of now; `order`: the order of the first
    arguments in the last release. Such calls go on to work for one release, with a `DeprecationWarning`.
    """
    if target is None:
        return functools.partial(public, grad=grad, renamed=renamed, order=order)
    if not isinstance(target, type):
        made = _called(target, grad, alone=True)
        return _as_before(made, renamed or {}, order) if renamed or order else made
    for name, member in list(vars(target).items()):
        if name.startswith("_") and name not in ("__init__", "__call__"):
            continue
        if isinstance(member, classmethod | staticmethod):
            setattr(target, name, type(member)(_called(member.__func__, True)))
        elif isinstance(member, property) and member.fget is not None and grad:
            setattr(target, name, member.getter(_called(member.fget, True)))
        elif inspect.isfunction(member):
            made = _called(member, grad or name == "__init__")
            setattr(target, name, _at_home(made, member) if name == "__init__" else made)
    return target


def _at_home(call: Any, function: types.FunctionType) -> Any:
    """The wrapper with the globals of the function's module, where type checkers of dataclasses look annotations up."""
    own = {name: globals()[name] for name in call.__code__.co_names if name in globals()}
    names = {**function.__globals__, **own}
    home = types.FunctionType(call.__code__, names, closure=call.__closure__)
    return functools.update_wrapper(home, call, updated=("__dict__",))


def _called(function: Callable[..., Any], grad: bool, alone: bool = False) -> Callable[..., Any]:
    """The wrapped function. Methods that the library itself calls keep the grad mode that they are called in."""
    if hasattr(function, "_public"):
        return function
    plan: list[Plan] = []

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        outer, recorded = not getattr(_CALL, "inside", False), torch.is_grad_enabled()
        _CALL.inside = True
        if not plan:
            plan.append(plan_of(function))
        try:
            with settled(grad=grad and (outer or alone)):
                args, kwargs = as_meant(plan[0], args, kwargs)
                found = function(*args, **kwargs)
        except TypeError as error:
            check_call(function, args, kwargs, error)
            raise
        finally:
            _CALL.inside = not outer
        return found.detach() if grad and not recorded and isinstance(found, Tensor) else found

    call._public = True  # type: ignore[attr-defined]
    return call


def _as_before(call: Callable[..., Any], renamed: Mapping[str, str], order: Sequence[str]) -> Callable[..., Any]:
    """The function, which also takes the names and the order of arguments of the last release."""
    now = [name for name in inspect.signature(call).parameters][: len(order)]

    @functools.wraps(call)
    def taking(*args: Any, **kwargs: Any) -> Any:
        for old in renamed.keys() & kwargs.keys():
            if renamed[old] in kwargs:
                raise CallError(f"{call.__name__}: {old} is called {renamed[old]} now; give it once")
            deprecated(f"{call.__name__}: {old}= is called {renamed[old]}= now")
            kwargs[renamed[old]] = kwargs.pop(old)
        if order and len(args) >= len(order) and is_a("Task", args[order.index("task")]):
            if not is_a("Task", args[now.index("task")]):
                deprecated(f"{call.__name__} takes ({', '.join(now)}) now, in this order")
                before = dict(zip(order, args, strict=False))
                args = (*(before[name] for name in now), *args[len(order) :])
        return call(*args, **kwargs)

    return taking
