"""How the process of the command line allocates memory."""

import ctypes
import os

__all__ = ["keep_freed_memory"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_VARIABLES = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_")
_LARGE, _NEVER = 1 << 30, (1 << 31) - 1  # bytes


def keep_freed_memory() -> bool:
    """Let the process keep memory that it frees, up to a GiB a piece, until it ends.

    A step of training frees what the next one asks for again. glibc gives large pieces back to the
    system at once, which then has to find and clear each page anew: a tenth of the time of a step
    on a CPU, for a ResNet-50 and images of 224 pixels. What the process holds does not shrink
    between two peaks any more, and the peaks themselves grow a little.

    For a program of its own, before it trains: it changes the whole process, and those that it
    forks. Nothing is done outside Linux with glibc, or where the environment sets these thresholds
    (`MALLOC_TRIM_THRESHOLD_`, `GLIBC_TUNABLES` and such).

    Returns:
        Whether the process keeps its memory now because of this call.
    """
    if not _is_glibc() or any(name in os.environ for name in _VARIABLES):
        return False
    if "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    # The first alone would do: setting one ends the adjustment of both. But then memory at the end
    # of the heap would go back at each 128 KiB.
    kept = mallopt(_M_TRIM_THRESHOLD, _NEVER)
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGE) and kept)


def _is_glibc() -> bool:
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (AttributeError, ValueError, OSError):
        return False
