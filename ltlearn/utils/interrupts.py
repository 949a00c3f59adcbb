"""Delay Ctrl-C until a write is complete."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["deferred_interrupt"]


@contextmanager
def deferred_interrupt() -> Iterator[None]:
    """Delay a SIGINT that arrives in the block until the end of the block.

    Blocks can be nested. Outside the main thread this does nothing, because Python runs signal
    handlers in the main thread.
    """
    previous = signal.getsignal(signal.SIGINT)
    # None is a handler that was not installed from Python. It could not be restored.
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
