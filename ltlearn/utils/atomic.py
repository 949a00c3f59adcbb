"""Replace a file so that a kill at any instant leaves the old file or the new one."""

import errno
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ltlearn.errors import UserError, spell
from ltlearn.utils.interrupts import deferred_interrupt

__all__ = ["check_writable", "is_temporary", "remove_file", "replaced_file"]

_TEMPORARY = re.compile(r"\.tmp-\d+-[0-9a-f]{8}")
# Cause of a failed write -> sentence, and the parameter that is the remedy.
_CAUSES = {
    errno.ENOSPC: ("The disk that holds {} is full: free space and continue with", "resume"),
    errno.EDQUOT: ("The disk quota for {} is used up: free space and continue with", "resume"),
    errno.EROFS: ("{} is on a read-only disk: give another", "out"),
    errno.EACCES: ("There is no permission to write {}: change it or give another", "out"),
    errno.EPERM: ("There is no permission to write {}: change it or give another", "out"),
}


@contextmanager
def replaced_file(target: Path) -> Iterator[BinaryIO]:
    """Open a temporary file that takes the place of `target` when the block ends.

    The content is flushed to disk before the file is renamed. An interrupt waits until both are
    done.

    Args:
        target: The file to write. Its folder is made if there is none.

    Raises:
        UserError: If the disk is full or read-only, or a permission is missing.
    """
    temporary = _temporary_beside(target)
    with deferred_interrupt():
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException as error:
            remove_file(temporary)
            if isinstance(error, OSError) and error.errno in _CAUSES:
                cause, remedy = _CAUSES[error.errno]
                value = True if remedy == "resume" else None
                raise UserError(f"{cause.format(target)} {spell(remedy, value)}.") from error
            raise
        _sync_folder(target.parent)


def is_temporary(name: str) -> bool:
    """Return whether a file name is one that `replaced_file` gives to its temporary files."""
    return _TEMPORARY.fullmatch(name) is not None


def check_writable(folder: Path) -> None:
    """Write and remove a byte, so that a folder without permission fails before any work.

    Args:
        folder: The folder.

    Raises:
        OSError: If it cannot be written to.
    """
    probe = _temporary_beside(folder / "probe")
    try:
        with open(probe, "xb") as file:
            file.write(b"\0")
    finally:
        remove_file(probe)


def remove_file(path: Path) -> None:
    """Remove a file if it exists; ignore a failure.

    The cause of a failed write can make this fail too; the first error is the one to report.

    Args:
        path: The file.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError:
        pass


def _temporary_beside(target: Path) -> Path:
    return target.parent / f".tmp-{os.getpid()}-{secrets.token_hex(4)}"


def _sync_folder(path: Path) -> None:
    """Flush a rename to disk where the system can. The file itself is safe without it."""
    try:
        folder = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(folder)
    except OSError:
        pass
    finally:
        os.close(folder)
