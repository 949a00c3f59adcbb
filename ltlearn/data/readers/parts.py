"""What every reader returns: the images of each part. Also the names that a part may have."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ltlearn.data.images import ImageSet
from ltlearn.errors import UserError, spell
from ltlearn.names import PARTS

__all__ = ["PART_OF_NAME", "ListedImages", "parts_of_rows"]

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
    """

    parts: dict[str, ImageSet]
    classes: list[str]
    split_name: str
    dataset: str
    where: Path | str
    columns: dict[str, str] = field(default_factory=dict)


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
