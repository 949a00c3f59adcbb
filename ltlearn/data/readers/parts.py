"""What every reader returns: the images of each part. Also the names that a part may have."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ltlearn.data.images import ImageSet
from ltlearn.errors import UserError, spell
from ltlearn.names import PARTS

__all__ = ["PART_OF_NAME", "ListedImages", "is_flags", "parts_of_flags", "parts_of_rows"]

_FLAGS = {
    "true": True, "yes": True, "t": True, "y": True, "1": True, "1.0": True,
    "false": False, "no": False, "f": False, "n": False, "0": False, "0.0": False,
}  # fmt: skip

PART_OF_NAME = {
    "train": "train", "training": "train",
    "valid": "valid", "val": "valid", "validation": "valid", "dev": "valid",
    "test": "test", "testing": "test",
}  # fmt: skip


@dataclass
class ListedImages:
    """The images of a source, by part.

    Args:
        parts: "train" and any of "valid" and "test" to images.
        classes: Class names in label order.
        split_name: How the source separates its parts, for `SplitInfo`.
        dataset: Name of the dataset, for `SplitInfo`.
        where: The source, for messages.
        columns: For a table: "path", "label" and "split" to the column that was read.
        ignored_columns: For a table: the columns that were not read.
    """

    parts: dict[str, ImageSet]
    classes: list[str]
    split_name: str
    dataset: str
    where: Path | str
    columns: dict[str, str] = field(default_factory=dict)
    ignored_columns: list[str] = field(default_factory=list)


def is_flags(cells) -> bool:
    """Return whether all cells of a pandas series that are not empty are flags, such as True or 0.

    Args:
        cells: The series.
    """
    values = {_flag_text(cell) for cell in cells.dropna().unique()} - {""}
    return bool(values) and values <= _FLAGS.keys()


def _flag_text(cell: object) -> str:
    return str(cell).strip().lower()


def parts_of_flags(
    flags: Mapping[str, Sequence], locate: Callable[[int], str], columns: Mapping[str, str]
) -> list[str]:
    """Return the name of each row's part, as a split column would hold it.

    Args:
        flags: "valid" or "test", or both, to the cells that mark the images of the part.
        locate: Returns the file and row of a cell, for messages.
        columns: Part to the name of its column, for messages.

    Raises:
        UserError: If a cell is no flag, or a row is marked for both parts.
    """
    parts: list[str] = []
    for part, cells in flags.items():
        parts = parts or ["train"] * len(cells)
        for i, cell in enumerate(cells):
            if _flag_text(cell) not in _FLAGS:
                raise UserError(
                    f"{locate(i)}: {cell!r} in the column {columns[part]!r} must be True or False; "
                    "correct it."
                )
            if not _FLAGS[_flag_text(cell)]:
                continue
            if parts[i] != "train":
                raise UserError(
                    f"{locate(i)}: the columns {' and '.join(map(repr, columns.values()))} are "
                    "both true; an image is in one part: correct one of them."
                )
            parts[i] = part
    return parts


def parts_of_rows(cells, locate: Callable[[int], str], column: str) -> np.ndarray:
    """Return the number of each row's part in `PARTS`.

    Args:
        cells: The cells of the split column.
        locate: Returns the file and row of a cell, for messages.
        column: Name of the column, for messages.

    Raises:
        UserError: If a cell names no part, or no row is for training.
    """
    numbers = {name: PARTS.index(part) for name, part in PART_OF_NAME.items()}
    parts = np.empty(len(cells), dtype=np.int8)
    for i, cell in enumerate(cells):
        number = numbers.get(str(cell).strip().lower())
        if number is None:
            raise UserError(
                f"{locate(i)}: {cell!r} in the column {column!r} must be one of "
                f"{', '.join(PART_OF_NAME)}; correct it, or give {spell('split_col', False)} to "
                "train on all rows."
            )
        parts[i] = number
    if not (parts == 0).any():
        raise UserError(
            f"{locate(0)} and all other rows are of no training image; mark some rows 'train'."
        )
    return parts
