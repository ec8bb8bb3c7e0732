"""The global state of torch (grad mode, autocast, default dtype, generator, kernels) in which results are computed.

Grad mode, autocast and the default device belong to a thread; the default dtype, the global generator, the choice of
attention kernels and the filters of warnings belong to the process. Contexts of the second kind that overlap in several
threads would restore each other's values, so they are entered and left in one place, `_Process`.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = ["exclusive", "forward_mode", "math_attention", "seeded", "settled"]


_DEVICES = ("cpu", "cuda", "mps", "xpu")
_SETTLED = nullcontext()


class _Mine(threading.local):
    """What this thread asked for: the default dtypes, innermost last, and how often it is alone with what."""

    def __init__(self) -> None:
        self.dtypes: list[torch.dtype] = []
        self.alone: dict[int, int] = {}


class _Process:
    """The state that all threads share, given to threads that agree on it; the others wait.

    A thread runs while the default dtype is the innermost one that it asked for. A thread that waits does not run, so
    that another one may have its dtype in the meantime: whatever the order, somebody can go on.
    """

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.mine = _Mine()
        self.holders = self.running = 0  # threads that asked for a dtype; those of them that do not wait
        self.before = torch.get_default_dtype()  # of the caller, restored by the last holder
        self.owners: dict[int, int] = {}  # what a thread is alone with, and the thread
        self.plain = 0  # threads that asked for plain attention
        self.kernels = ExitStack()

    def child(self) -> None:
        """After a fork: the other threads are gone, with all that they held."""
        if self.holders and not self.mine.dtypes:
            torch.set_default_dtype(self.before)
        self.changed = threading.Condition()
        self.holders = self.running = int(bool(self.mine.dtypes))
        self.owners = dict.fromkeys(self.mine.alone, threading.get_ident())

    def _wait(self, dtype: torch.dtype | None, alone: int | None = None) -> None:
        """Wait until the default dtype is, or may be made, `dtype`, and nobody is alone with `alone`."""
        try:
            while alone in self.owners or (
                dtype is not None and torch.get_default_dtype() is not dtype and self.running
            ):
                self.changed.wait()
        finally:  # an interrupt, too, goes on as a thread that runs
            self.running += dtype is not None
        if dtype is not None and torch.get_default_dtype() is not dtype:
            torch.set_default_dtype(dtype)

    def _paused(self) -> None:
        if self.mine.dtypes:
            self.running -= 1
            self.changed.notify_all()

    def take(self, dtype: torch.dtype) -> None:
        with self.changed:
            self._paused()
            if not self.mine.dtypes:
                if not self.holders:
                    self.before = torch.get_default_dtype()
                self.holders += 1
            self.mine.dtypes.append(dtype)
            try:
                self._wait(dtype)
            except BaseException:
                self._leave()
                raise

    def leave(self) -> None:
        with self.changed:
            self._leave()

    def _leave(self) -> None:
        self._paused()
        self.mine.dtypes.pop()
        if self.mine.dtypes:
            self._wait(self.mine.dtypes[-1])
            return
        self.holders -= 1
        if not self.holders:
            torch.set_default_dtype(self.before)

    def take_alone(self, key: int) -> None:
        with self.changed:
            if key not in self.mine.alone and key in self.owners:
                self._paused()
                self._wait(self.mine.dtypes[-1] if self.mine.dtypes else None, alone=key)
            self.owners[key] = threading.get_ident()
            self.mine.alone[key] = self.mine.alone.get(key, 0) + 1

    def leave_alone(self, key: int) -> None:
        with self.changed:
            self.mine.alone[key] -= 1
            if not self.mine.alone[key]:
                del self.mine.alone[key], self.owners[key]
                self.changed.notify_all()

    def take_plain(self) -> None:
        with self.changed:
            if not self.plain:
                fast = torch.backends.mha.get_fastpath_enabled()
                torch.backends.mha.set_fastpath_enabled(False)
                self.kernels.callback(torch.backends.mha.set_fastpath_enabled, fast)
                self.kernels.enter_context(sdpa_kernel(SDPBackend.MATH))
            self.plain += 1

    def leave_plain(self) -> None:
        with self.changed:
            self.plain -= 1
            if not self.plain:
                self.kernels.close()


_PROCESS = _Process()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_PROCESS.child)


def settled(dtype: torch.dtype = torch.float32, grad: bool = True) -> AbstractContextManager[Any]:
    """A context in which torch's global state is fixed; the caller's state is restored after it.

    No autocast, `dtype` as the default dtype, the CPU as the default device; with `grad`, gradients are enabled and
    inference mode is off. Threads that ask for different dtypes take turns. It takes a microsecond where the state is
    right already.
    """
    cast = torch._C._is_any_autocast_enabled()
    modes = torch._C._len_torch_function_stack()  # a default device is such a mode
    quiet = grad and (torch.is_inference_mode_enabled() or not torch.is_grad_enabled())
    held = _PROCESS.mine.dtypes
    right = bool(held) and held[-1] is dtype and torch.get_default_dtype() is dtype
    if right and not (cast or modes or quiet):
        return _SETTLED
    stack = ExitStack()
    for device in _DEVICES if cast else ():
        if torch.is_autocast_enabled(device):
            stack.enter_context(torch.autocast(device, enabled=False))
    if quiet:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
    if not right:
        stack.enter_context(_Held(dtype))
    if modes and torch.get_default_device().type != "cpu":
        stack.enter_context(torch.device("cpu"))
    return stack


class _Held:
    """A context that holds a default dtype."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __enter__(self) -> None:
        _PROCESS.take(self.dtype)

    def __exit__(self, *error: object) -> None:
        _PROCESS.leave()


class exclusive:
    """A context that one thread at a time enters for the same object; the thread itself may enter it again inside.

    Without an object: for what belongs to the process. For an architecture: its tensors are those of the thread's call.
    """

    def __init__(self, thing: object = None) -> None:
        self.thing = thing  # kept alive: its id is the key

    def __enter__(self) -> None:
        _PROCESS.take_alone(id(self.thing))

    def __exit__(self, *error: object) -> None:
        _PROCESS.leave_alone(id(self.thing))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """A context in which torch's global generator starts at `seed`; restored after it. One thread at a time.

    >>> import torch
    >>> from weightspace.net.state import seeded
    >>> with seeded(3):
    ...     first = torch.rand(2)
    >>> with seeded(3):
    ...     print(torch.equal(first, torch.rand(2)))
    True
    """
    with exclusive(), torch.random.fork_rng(devices=[]):
        # where there is no accelerator, torch.manual_seed keeps the call stack as text for each kind: milliseconds
        seeding = torch.manual_seed if torch.accelerator.is_available() else torch.default_generator.manual_seed
        seeding(seed)
        yield


@contextmanager
def math_attention() -> Iterator[None]:
    """A context in which attention uses torch's math kernel: fused kernels lack forward mode and round differently.

    It holds for every thread of the process until the last one has left it.

    >>> import torch
    >>> import weightspace as ws
    >>> layer, x = torch.nn.MultiheadAttention(4, 2), torch.zeros(3, 1, 4)
    >>> with ws.net.math_attention():
    ...     layer(x, x, x)[0].shape
    torch.Size([3, 1, 4])
    """
    _PROCESS.take_plain()
    try:
        yield
    finally:
        _PROCESS.leave_plain()


@contextmanager
def forward_mode() -> Iterator[None]:
    """A context for forward-mode derivatives: `math_attention`, without the notice at its first use."""
    with math_attention(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)  # as which torch 2.14 raises it
        yield
