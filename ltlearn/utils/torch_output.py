"""What torch writes to the terminal beside its errors."""

import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr

__all__ = ["torch_silenced"]


@contextmanager
def torch_silenced() -> Iterator[None]:
    """Hide what torch logs, warns and prints about a network that it exports or compiles.

    Errors are raised as without. Someone who sets `TORCH_LOGS` wants to read the log.
    """
    is_read = bool(os.environ.get("TORCH_LOGS"))
    # torch's log handler looks up `sys.stderr` for each line.
    with nullcontext() if is_read else redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
