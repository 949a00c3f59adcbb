"""Ctrl-C and the signals that end a process: delayed during a write, turned into an exception."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

__all__ = [
    "Terminated",
    "deferred_interrupt",
    "immediate_interrupt",
    "terminations_as_interrupts",
]

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP
_SIGNALS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))


class Terminated(KeyboardInterrupt):
    """The process got SIGTERM or SIGHUP. It ends as after Ctrl-C, with another exit code.

    Args:
        signum: The signal.
    """

    def __init__(self, signum: int):
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


@contextmanager
def deferred_interrupt() -> Iterator[None]:
    """Delay Ctrl-C, and SIGTERM and SIGHUP where Python handles them, until the end of the block.

    Blocks can be nested. Outside the main thread this does nothing, because Python runs signal
    handlers in the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # A handler that was not installed from Python, or the system's own action, stays in force.
    handled = [s for s in _SIGNALS if callable(signal.getsignal(s))]
    held = []
    previous = {s: signal.signal(s, lambda signum, frame: held.append(signum)) for s in handled}
    try:
        yield
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
        if held:
            signal.raise_signal(held[0])


@contextmanager
def immediate_interrupt() -> Iterator[None]:
    """Let Ctrl-C, SIGTERM and SIGHUP end the process at once inside the block.

    Python would handle them after a call of compiled code, which may wait for an hour. Outside the
    main thread this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handled = [s for s in _SIGNALS if callable(signal.getsignal(s))]
    previous = {s: signal.signal(s, signal.SIG_DFL) for s in handled}
    try:
        yield
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)


@contextmanager
def terminations_as_interrupts() -> Iterator[None]:
    """Raise `Terminated` on SIGTERM and SIGHUP inside the block.

    For a program, not for a library: the handlers belong to the whole process. A signal that is
    ignored, as `nohup` ignores SIGHUP, stays ignored. Processes that are forked get the system's
    action back. Outside the main thread this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    ours = [s for s in _SIGNALS[1:] if signal.getsignal(s) == signal.SIG_DFL]
    for signum in ours:
        signal.signal(signum, _terminate)
    _forget_in_forks()
    try:
        yield
    finally:
        _forget()


def _terminate(signum: int, frame) -> None:
    raise Terminated(signum)


def _forget() -> None:
    """Give the signals that raise `Terminated` the system's action back."""
    for signum in _SIGNALS[1:]:
        if signal.getsignal(signum) is _terminate:
            signal.signal(signum, signal.SIG_DFL)


@cache
def _forget_in_forks() -> None:
    # A worker that the main process ends by SIGTERM has nothing to report.
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_forget)
