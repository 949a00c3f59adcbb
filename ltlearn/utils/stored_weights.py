"""Look at a file of weights before its tensors are read: its checksum, its names and shapes."""

import hashlib
import pickletools
import zipfile
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import BinaryIO

from ltlearn.errors import UserError
from ltlearn.utils.run_folder import Run
from ltlearn.utils.system_errors import unreadable

__all__ = ["check_saved_learner", "check_stored_weights", "is_compressed", "read_shapes"]

# A run has one of these in its folder, above the folder of its weights.
_OF_A_RUN = ("manifest.json", "model.json")


def check_stored_weights(path: Path) -> None:
    """Check a file of weights before it is opened; a missing file passes.

    If a record of a finished stage is beside the file, its checksum must fit. The record of
    `checkpoints/seed0-samn.safetensors` is `checkpoints/seed0-samn.json`. Runs of early versions
    have no checksums.

    Args:
        path: The file.

    Raises:
        UserError: If the file does not fit the checksum, the record of a run is damaged, or the
            file is a compressed archive, which can take a thousand times its size.
    """
    if not path.is_file():
        return
    try:
        checksum = _recorded_checksum(path)
        if checksum is not None:
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != checksum:
                raise UserError(
                    f"{path} is damaged: it does not fit the checksum in "
                    f"{path.with_suffix('.json').name}; copy the file again, or repeat the "
                    "training."
                )
        if is_compressed(path):
            raise UserError(
                f"{path} is a compressed archive, which torch.save does not write; save the "
                "model's state_dict() again, best as .safetensors."
            )
    except OSError as e:
        raise unreadable(path, e) from e


def is_compressed(path: Path) -> bool:
    """Return whether a file is an archive with compressed parts, which can take much memory.

    Args:
        path: The file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return False  # no archive, or a damaged one, which torch refuses


def _recorded_checksum(path: Path) -> str | None:
    """Return the checksum in the record beside a file of weights; None if there is none."""
    record, folder = path.with_suffix(".json"), path.absolute().parent
    if not record.is_file() or record.name in _OF_A_RUN:
        return None
    try:
        content = Run(record.parent).read_json(record.name, sealed=None)
    except UserError:
        if any((f / name).is_file() for f in (folder, folder.parent) for name in _OF_A_RUN):
            raise
        return None  # a file of another program
    is_stage = all(isinstance(content.get(key), Mapping) for key in ("stage", "trajectory"))
    return content.get("weights") if is_stage else None


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors in a safetensors file by name; read its header alone.

    Args:
        path: The file.

    Raises:
        UserError: If the file is missing, unreadable or damaged.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise UserError(f"there are no weights {path}; give another run.")
    try:
        with path.open("rb"):  # safetensors reports a missing permission as a missing file
            pass
        # For torch, the whole file would be mapped as memory of the process.
        with safe_open(path, framework="np") as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}
    except OSError as e:
        raise unreadable(path, e) from e
    except SafetensorError as e:
        raise UserError(f"{path} is damaged: {e}; copy it again, or repeat the run.") from None


def check_saved_learner(source: Path | BinaryIO) -> None:
    """Check a file that `Learner.save` wrote, before fastai loads it.

    fastai lets such a file make NumPy dtypes. The state of a dtype can turn bytes of the file into
    a pointer, so only the state of plain numbers is allowed.

    Args:
        source: The file, or an open one, which is left where it was.

    Raises:
        UserError: If it holds another state.
    """
    try:
        with source.open("rb") if isinstance(source, Path) else nullcontext(source) as opened:
            start = opened.tell()
            is_archive = zipfile.is_zipfile(opened)
            opened.seek(start)
            if is_archive:
                _check_archive(opened)
            else:
                _check_states(opened, _LEGACY_PICKLES)
            opened.seek(start)
    except (ValueError, zipfile.BadZipFile, NotImplementedError, OSError) as e:
        raise UserError(
            f"{source} is not opened ({e}): it is damaged, or would run code; save the model again."
        ) from None


def _check_archive(opened: BinaryIO) -> None:
    with zipfile.ZipFile(opened) as archive:
        for name in archive.namelist():
            if name.endswith("data.pkl"):
                with archive.open(name) as file:
                    _check_states(file, 1)


# torch once wrote this many pickles, one after the other, before the values.
_LEGACY_PICKLES = 5
_MAKES_A_DICTIONARY = ("EMPTY_DICT", "SETITEM", "SETITEMS", "DICT")
_PUTS = ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE")
_INTEGER = ("BININT", "BININT1", "BININT2")
_TEXT = ("SHORT_BINUNICODE", "BINUNICODE", "BINGET", "LONG_BINGET")  # or a text used before
# The state of the dtype of a number: (3, "<", None, None, None, -1, -1, 0).
_STATE_OF_A_NUMBER = (
    ("MARK",), _INTEGER, _TEXT, ("NONE",), ("NONE",), ("NONE",), _INTEGER, _INTEGER, _INTEGER,
    ("TUPLE",),
)  # fmt: skip


def _check_states(file: BinaryIO, count: int) -> None:
    """Raise a `ValueError` if a pickle sets a state that is neither a dictionary nor harmless."""
    for _ in range(count):
        names: list[str] = []
        for opcode, _, _ in pickletools.genops(file):
            if opcode.name in _PUTS:
                continue
            if opcode.name == "BUILD":
                last = names[-len(_STATE_OF_A_NUMBER) :]
                is_number = len(last) == len(_STATE_OF_A_NUMBER) and all(
                    name in allowed for name, allowed in zip(last, _STATE_OF_A_NUMBER, strict=True)
                )
                if not is_number and names[-1:] and names[-1] not in _MAKES_A_DICTIONARY:
                    raise ValueError("it sets the state of an object that is no number")
            names.append(opcode.name)
            del names[: -len(_STATE_OF_A_NUMBER)]
