"""Errors of the operating system, as sentences: what failed, where, and what to do."""

import errno
import os

from ltlearn.errors import UserError, spell

__all__ = ["is_out_of_memory", "reason_of", "unreadable", "unwritable"]

# Cause of a failed write -> sentence, and the parameter that is the remedy.
_CAUSES = {
    errno.ENOSPC: ("The disk that holds {} is full: free space and continue with", "resume"),
    errno.EDQUOT: ("The disk quota for {} is used up: free space and continue with", "resume"),
    errno.EFBIG: (
        "{} is larger than the system allows: raise the limit (ulimit -f) and continue with",
        "resume",
    ),
    errno.EROFS: ("{} is on a read-only disk: change that or give another", "out"),
    errno.EACCES: ("There is no permission to write {}: change it or give another", "out"),
    errno.EPERM: ("There is no permission to write {}: change it or give another", "out"),
}
# What torch and the C++ library write into a RuntimeError when memory, or a number of bytes, is too
# large.
_MEMORY_TEXTS = (
    "DefaultCPUAllocator: can't alloc",
    "DefaultCPUAllocator: not enough memory",
    "Storage size calculation overflowed",
    "integer multiplication overflow",
    "std::bad_alloc",
    "Cannot allocate memory",
)


def reason_of(error: BaseException) -> str:
    """Return the system's reason for an error, such as "Permission denied".

    Args:
        error: An `OSError`, or any other error.
    """
    return getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__


def unwritable(path: str | os.PathLike, error: OSError, remedy: str = "") -> UserError:
    """Return the error for a file that cannot be written.

    Args:
        path: The file.
        error: What the system raised.
        remedy: What to do; empty for the remedies of a run: to resume it, or another folder.
    """
    if remedy:
        return UserError(f"{path} cannot be written ({reason_of(error)}): {remedy}.")
    default = (f"{{}} cannot be written ({reason_of(error)}): repair that and continue with",
               "resume")  # fmt: skip
    cause, parameter = _CAUSES.get(error.errno, default)
    value = True if parameter == "resume" else None
    return UserError(f"{cause.format(path)} {spell(parameter, value)}.")


def unreadable(path: str | os.PathLike, error: OSError) -> UserError:
    """Return the error for a file that cannot be read.

    Args:
        path: The file.
        error: What the system raised.
    """
    return UserError(
        f"{path} cannot be read ({reason_of(error)}): check the disk and the permissions."
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error states that the memory of the machine or of a device is too small.

    Args:
        error: The error.
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(t in str(error) for t in _MEMORY_TEXTS)
