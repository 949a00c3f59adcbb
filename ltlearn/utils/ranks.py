"""Ranks: the processes of one training on several devices, one process per device.

`torchrun` or `accelerate launch` starts the processes and describes them in environment variables.
In a process without a launcher, there is one rank, and each function returns at once.
"""

import atexit
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import wraps
from typing import Any, TypeVar

from ltlearn.errors import UserError, spell
from ltlearn.utils.interrupts import immediate_interrupt

__all__ = [
    "by_first",
    "check_one",
    "is_first",
    "lost_rank_to_user_error",
    "may_report",
    "part_of",
    "rank",
    "share",
    "start",
    "wait",
    "world",
]

_T = TypeVar("_T")
_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# A rank may wait while the first one alone reads a large dataset from a slow disk.
_PATIENCE = timedelta(minutes=60)
_REPORTED = "ltlearn/reported"
_store = None  # where the launcher keeps values for all ranks


def world() -> int:
    """Return the number of ranks; 1 without a launcher."""
    if (group := _group()) is not None:
        return group.get_world_size()
    return int(os.environ["WORLD_SIZE"]) if _is_launched() else 1


def rank() -> int:
    """Return the number of this rank, from 0 up."""
    if (group := _group()) is not None:
        return group.get_rank()
    return int(os.environ["RANK"]) if _is_launched() else 0


def is_first() -> bool:
    """Return whether this rank is the first. Only the first one logs, prints and writes files."""
    return rank() == 0


def start() -> None:
    """Connect the ranks, give each one its device, and silence all but the first.

    Later calls have no effect. The connection ends with the process.

    Raises:
        UserError: If a rank has no device of its own.
    """
    if world() == 1 or _group() is not None:
        return
    import torch
    from torch import distributed

    backend, local = "gloo", int(os.environ.get("LOCAL_RANK", rank()))
    if torch.cuda.is_available():
        devices = torch.cuda.device_count()
        if local >= devices:
            raise UserError(
                f"rank {rank()} needs a GPU of its own, but this machine has {devices}; start "
                f"at most {devices} processes."
            )
        torch.cuda.set_device(local)
        backend = "cpu:gloo,cuda:nccl"
    if not is_first():
        logging.getLogger("ltlearn").addFilter(_nothing)
    global _store
    # A rank that nobody else joins can be ended while it waits.
    with immediate_interrupt(), lost_rank_to_user_error():
        _store, *_ = next(distributed.rendezvous("env://", timeout=_PATIENCE))
        distributed.init_process_group(
            backend, store=_store, rank=rank(), world_size=world(), timeout=_PATIENCE
        )
    atexit.register(_end)
    sys.excepthook = _reports_once(sys.excepthook)


def share(value: _T) -> _T:
    """Return the first rank's value on all ranks.

    Args:
        value: An object that can be pickled; only the first rank's counts.
    """
    if world() == 1:
        return value
    from torch import distributed

    start()
    values: list[Any] = [value]
    with lost_rank_to_user_error():
        distributed.broadcast_object_list(values, src=0)
    return values[0]


def by_first(function: Callable[..., _T]) -> Callable[..., _T]:
    """Let the first rank alone call a function. All ranks return its result or raise its error.

    Args:
        function: It calls nothing that all ranks must do together. Its result can be pickled.
    """

    @wraps(function)
    def call(*args, **kwargs) -> _T:
        if world() == 1:
            return function(*args, **kwargs)
        result = error = None
        if is_first():
            try:
                result = function(*args, **kwargs)
            except Exception as e:
                error = e
        result, raised = share((result, error))
        if raised is not None:
            raise error or raised
        return result

    return call


def wait() -> None:
    """Wait until all ranks are here."""
    share(None)


def check_one(name: str) -> None:
    """Raise a `UserError` if there are several ranks.

    Args:
        name: The method or command, for the message.
    """
    if world() > 1:
        raise UserError(
            f"{name} takes one process, but {world()} were started together; call it in a process "
            "that is started without torchrun."
        )


def part_of(n: int) -> slice:
    """Return the rows of a batch that this rank computes.

    The parts differ by one row at most. A batch with fewer rows than ranks has no row for the last
    ranks. These compute its first row, which counts for nothing.

    Args:
        n: Rows of the batch, at least 1.
    """
    ranks, own = world(), rank()
    size, more = divmod(n, ranks)
    first = own * size + min(own, more)
    rows = size + (own < more)
    return slice(first, first + rows) if rows else slice(0, 1)


@contextmanager
def lost_rank_to_user_error() -> Iterator[None]:
    """Turn the error of an exchange inside the block into a `UserError`.

    Raises:
        UserError: If another rank has ended, or does not answer.
    """
    try:
        yield
    except RuntimeError as e:
        if world() == 1 or not _is_lost(e):
            raise
        raise UserError(
            f"another process of this training on {world()} devices has ended, and rank {rank()} "
            "cannot go on without it; read its log, or the log of the system (such as for too "
            f"little memory), and start the training again with {spell('resume', True)}."
        ) from e


def may_report() -> bool:
    """Return whether this rank reports why the training ends; true for the first rank to ask."""
    if world() == 1:
        return True
    if _store is None:
        return is_first()
    try:
        return _store.add(_REPORTED, 1) == 1
    except RuntimeError:
        return True  # the launcher, which holds the store, has ended


def _is_lost(error: RuntimeError) -> bool:
    from torch import distributed

    return isinstance(error, distributed.DistError) or "gloo" in str(error)


def _reports_once(hook: Callable) -> Callable:
    """Print the traceback of one rank alone."""

    def report(*error) -> None:
        if may_report():
            hook(*error)

    return report


def _is_launched() -> bool:
    return all(os.environ.get(name) for name in _VARIABLES) and os.environ["WORLD_SIZE"] != "1"


def _group():
    """Return torch's module if the ranks are connected; None before."""
    # Nothing is connected unless it is loaded, and an import takes seconds.
    module = sys.modules.get("torch.distributed")
    is_on = module is not None and module.is_available() and module.is_initialized()
    return module if is_on else None


def _nothing(_: logging.LogRecord) -> bool:
    return False


def _end() -> None:
    group = _group()
    if group is not None:
        group.destroy_process_group()
