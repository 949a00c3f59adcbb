"""Count cores and threads, and compute ahead in threads."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from ltlearn.utils.progress import ProgressLine

__all__ = ["compute_ahead", "compute_chunks", "count_cores", "count_threads"]

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


def compute_chunks(do: Callable[[int, int], None], n: int, chunk: int, description: str) -> None:
    """Call `do(start, end)` for consecutive parts of n items in threads, with a progress line.

    Args:
        do: The function, which several threads call at the same time.
        n: Number of items.
        chunk: Items per part. One future per item would take more memory than a small image.
        description: Name of the work in the progress line.
    """

    def do_chunk(start: int) -> int:
        end = min(start + chunk, n)
        do(start, end)
        return end - start

    line, threads = ProgressLine(description, n), count_threads()
    try:
        for done in compute_ahead(do_chunk, range(0, n, chunk), threads, 2 * threads):
            line.advance(done.result())
    finally:
        line.close()
