"""Ranks: the processes of one training on several devices, one process per device.

`torchrun` or `accelerate launch` starts the processes and describes them in environment variables.
In a process that was started otherwise, there is one rank, and each function returns at once.
"""

import atexit
import logging
import os
import sys
from datetime import timedelta
from typing import Any, TypeVar

from ltlearn.errors import UserError

__all__ = ["is_first", "part_of", "rank", "share", "start", "wait", "world"]

_T = TypeVar("_T")
_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# A rank may wait while the first one alone reads a large dataset from a slow disk.
_PATIENCE = timedelta(minutes=60)


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
    """Return whether this rank is the first, which alone logs, prints and writes files."""
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
                f"at most {devices} processes (torchrun --nproc_per_node {devices})."
            )
        torch.cuda.set_device(local)
        backend = "cpu:gloo,cuda:nccl"
    if not is_first():
        logging.getLogger("ltlearn").addFilter(_nothing)
    distributed.init_process_group(backend, timeout=_PATIENCE)
    atexit.register(_end)


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
    distributed.broadcast_object_list(values, src=0)
    return values[0]


def wait() -> None:
    """Wait until all ranks are here."""
    share(None)


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
