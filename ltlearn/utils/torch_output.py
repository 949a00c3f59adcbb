"""What torch writes to the terminal beside its errors."""

import io
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr

__all__ = ["torch_silenced"]

# torch.export, `sys.stderr` and the filters of warnings are shared by all threads.
_ONE_THREAD = threading.RLock()


@contextmanager
def torch_silenced() -> Iterator[None]:
    """Hide what torch logs, warns and prints about a network that it exports or compiles.

    Errors are raised as without. Someone who sets `TORCH_LOGS` wants to read the log. One thread at
    a time enters the block.
    """
    is_read = bool(os.environ.get("TORCH_LOGS"))
    # torch's log handler looks up `sys.stderr` for each line.
    hidden = nullcontext() if is_read else redirect_stderr(io.StringIO())
    with _ONE_THREAD, hidden, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
