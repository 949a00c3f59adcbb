"""Look at a file of weights before its tensors are read: its checksum, its names and shapes."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from ltlearn.errors import UserError
from ltlearn.utils.run_folder import Run

__all__ = ["check_recorded_checksum", "read_shapes"]

# A run has one of these in its folder, above the folder of its weights.
_OF_A_RUN = ("manifest.json", "model.json")


def check_recorded_checksum(path: Path) -> None:
    """Check a file of weights against the checksum in the record beside it, if there is one.

    Args:
        path: The file, such as `checkpoints/seed0-samn.safetensors`. Its record is
            `checkpoints/seed0-samn.json`. Runs of early versions have no checksums.

    Raises:
        UserError: If the file does not fit the checksum, or the record of a run is damaged.
    """
    record = path.with_suffix(".json")
    if not path.is_file() or not record.is_file() or record.name in _OF_A_RUN:
        return
    folders = (path.absolute().parent, path.absolute().parent.parent)
    try:
        content = Run(record.parent).read_json(record.name, sealed=None)
    except UserError:
        if any((folder / name).is_file() for folder in folders for name in _OF_A_RUN):
            raise
        return  # a file of another program
    if not all(isinstance(content.get(key), Mapping) for key in ("stage", "trajectory")):
        return
    checksum = content.get("weights")
    if checksum is None:
        return
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as e:
        raise UserError(f"the weights in {path} cannot be read ({e.strerror or e}).") from e
    if found != checksum:
        raise UserError(
            f"{path} is damaged: it does not fit the checksum in {record.name}; copy the file "
            "again, or repeat the training."
        )


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
        with safe_open(path, framework="pt") as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}
    except OSError as e:
        raise UserError(f"the weights in {path} cannot be read ({e.strerror or e}).") from e
    except SafetensorError as e:
        raise UserError(f"{path} is damaged: {e}.") from None
