"""Count cores and threads, and compute ahead in threads."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

__all__ = ["compute_ahead", "count_cores", "count_threads"]

_MAX_THREADS = 8


def count_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def count_threads() -> int:
    """Return the number of threads that read images: one per core, from 2 to 8.

    Reading also waits for the disk, so a single core gets two threads.
    """
    return max(2, min(_MAX_THREADS, count_cores()))


def compute_ahead(do: Callable, items: Iterable, threads: int, ahead: int) -> Iterator[Future]:
    """Yield a future of `do(item)` for each item in order, while threads compute the next ones.

    Args:
        do: The function, which several threads call at the same time.
        items: Its arguments.
        threads: Number of threads, at least 1.
        ahead: Number of items that are computed before their turn, at least 0.
    """
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
