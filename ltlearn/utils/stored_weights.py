"""Look at a file of weights before its tensors are read: its checksum, its names and shapes."""

import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path

from ltlearn.errors import UserError
from ltlearn.utils.run_folder import Run

__all__ = ["check_stored_weights", "read_shapes"]

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
        if _is_compressed(path):
            raise UserError(
                f"{path} is a compressed archive, which torch.save does not write; save the "
                "model's state_dict() again, best as .safetensors."
            )
    except OSError as e:
        raise UserError(f"the weights in {path} cannot be read ({e.strerror or e}).") from e


def _is_compressed(path: Path) -> bool:
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
        with safe_open(path, framework="pt") as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}
    except OSError as e:
        raise UserError(f"the weights in {path} cannot be read ({e.strerror or e}).") from e
    except SafetensorError as e:
        raise UserError(f"{path} is damaged: {e}.") from None
