"""Compute ahead in threads."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

__all__ = ["count_cores", "compute_ahead"]


def count_cores() -> int:
    """Count the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def compute_ahead(do: Callable, items: Iterable, threads: int, ahead: int) -> Iterator[Future]:
    """Yield a future of `do(item)` of each item in order, of which the next ones have begun too."""
    pool = ThreadPoolExecutor(threads, "ltlearn-read")
    try:
        waiting = deque()
        for item in items:
            waiting.append(pool.submit(do, item))
            if len(waiting) > ahead:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        pool.shutdown(cancel_futures=True)
