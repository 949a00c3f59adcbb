"""Delay Ctrl-C until a write is complete."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["deferred_interrupt"]


@contextmanager
def deferred_interrupt() -> Iterator[None]:
    """Hold a SIGINT that arrives in the block until its end, then let it act as it would have.

    It nests. Outside the main thread it does nothing: Python runs signal handlers in the main one.
    """
    previous = signal.getsignal(signal.SIGINT)
    # None: a handler that was not installed from Python, which cannot be put back.
    if threading.current_thread() is not threading.main_thread() or previous is None:
        yield
        return
    held = []
    signal.signal(signal.SIGINT, lambda signum, frame: held.append(frame))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
        if held:
            signal.raise_signal(signal.SIGINT)
