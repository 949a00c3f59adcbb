"""Locks that keep two processes from writing to one place at the same time."""

import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ltlearn.utils.system_errors import reason_of

__all__ = ["InUse", "locked"]

_log = logging.getLogger("ltlearn")


class InUse(Exception):
    """Another process holds a lock.

    Args:
        holder: A description of that process.
    """

    def __init__(self, holder: str):
        super().__init__(holder)
        self.holder = holder


@contextmanager
def locked(file: Path, on_wait: Callable[[str], None] | None = None) -> Iterator[bool]:
    """Hold a lock inside the block. The system releases it if the process dies.

    The block gets whether there is a lock: some network disks and read-only folders have none. In
    one thread, blocks can be nested. The file exists only while the lock is held, or after a kill.

    Args:
        file: The file of the lock; its folder must exist.
        on_wait: Called with a description of the process that holds the lock, before a wait for
            it; None raises instead.

    Raises:
        InUse: If another process or thread holds the lock, and `on_wait` is None.
    """
    lock = FileLock(file, is_singleton=True)
    if lock.is_locked:  # by this thread
        yield True
        return
    try:
        _acquire(lock, file, on_wait)
    except OSError as error:
        _log.debug("%s cannot be locked (%s)", file, reason_of(error))
        yield False
        return
    try:
        # The name of a holder that was killed is replaced.
        file.write_text(f"process {os.getpid()} on {socket.gethostname()}", "utf-8")
    except OSError:
        pass  # a full disk: the lock holds without a name
    try:
        yield True
    finally:
        # Removed while it is locked: a process that waits for it notices, and makes a new one.
        try:
            file.unlink(missing_ok=True)
        except OSError:
            pass
        lock.release()


def _acquire(lock: FileLock, file: Path, on_wait: Callable[[str], None] | None) -> None:
    try:
        lock.acquire(timeout=0)
    except Timeout:  # an OSError too
        if on_wait is None:
            raise InUse(_holder(file)) from None
        on_wait(_holder(file))
        lock.acquire(timeout=-1, poll_interval=0.2)


def _holder(file: Path) -> str:
    for _ in range(10):
        try:
            if text := file.read_text("utf-8"):
                return text
        except (OSError, ValueError):
            break
        time.sleep(0.02)  # it has the lock, and has not written its name yet
    return "another process"
