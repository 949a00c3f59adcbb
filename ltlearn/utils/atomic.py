"""Replace a file so that a kill at any instant leaves the old file or the new one."""

import io
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import BinaryIO

from filelock import lock_descriptor

from ltlearn.utils.interrupts import deferred_interrupt
from ltlearn.utils.ranks import is_first
from ltlearn.utils.system_errors import unwritable

__all__ = [
    "check_writable",
    "is_temporary",
    "remove_file",
    "remove_stale_temporaries",
    "replaced_file",
]

_TEMPORARY = re.compile(r"\.tmp-\d+-[0-9a-f]{8}")


@contextmanager
def replaced_file(target: Path, defer: bool = True, remedy: str = "") -> Iterator[BinaryIO]:
    """Open a temporary file that takes the place of `target` when the block ends.

    The content is flushed to disk before the file is renamed. The temporary file is locked, so that
    `remove_stale_temporaries` spares it. Of several ranks, the first alone writes the file.

    Args:
        target: The file to write. Its folder is made if there is none.
        defer: Whether an interrupt waits until the whole block is done. False lets it end the
            block.
        remedy: What to do if the file cannot be written; empty for the remedies of a run.

    Raises:
        UserError: If the file cannot be written: the disk is full or read-only, a permission is
            missing, and so on.
    """
    if not is_first():
        yield io.BytesIO()
        return
    with deferred_interrupt() if defer else nullcontext():
        temporary, in_block = None, False
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary, file = _open_temporary(target)
            with file:
                in_block = True
                yield file
                in_block = False
                file.flush()
                os.fsync(file.fileno())
            with deferred_interrupt():
                os.replace(temporary, target)
        except BaseException as error:
            if temporary is not None:
                remove_file(temporary)
            # The block may have failed to read another file.
            is_other = in_block and getattr(error, "filename", None) is not None
            if isinstance(error, OSError) and not is_other:
                raise unwritable(target, error, remedy) from error
            raise
        _sync_folder(target.parent)


def is_temporary(name: str) -> bool:
    """Return whether a file name is one that `replaced_file` gives to its temporary files."""
    return _TEMPORARY.fullmatch(name) is not None


def remove_stale_temporaries(folder: Path) -> None:
    """Remove the temporary files in a folder whose process was killed; ignore a failure.

    Args:
        folder: The folder; its sub-folders are left alone.
    """
    try:
        names = [name for name in os.listdir(folder) if is_temporary(name)]
    except OSError:
        return
    for name in names:
        try:
            with open(folder / name, "r+b") as file:
                if _lock(file, blocking=False):
                    remove_file(folder / name)
        except OSError:
            pass  # it is gone, or another user's


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


def _open_temporary(target: Path) -> tuple[Path, BinaryIO]:
    """Create and lock a temporary file beside a file; return its path and the open file."""
    while True:
        temporary = _temporary_beside(target)
        file = open(temporary, "xb")
        _lock(file, blocking=True)
        # Another process may have removed it before it was locked.
        if temporary.exists():
            return temporary, file
        file.close()


def _lock(file: BinaryIO, blocking: bool) -> bool:
    """Lock an open file until it is closed; return whether that was possible."""
    try:
        return lock_descriptor(file.fileno(), blocking=blocking)
    except (OSError, ValueError):
        return False  # there are no locks on this disk, or this is no file of the system


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
