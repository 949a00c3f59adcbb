"""Images that are reached by a number: rows of a dataset, or members of archives."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ltlearn.data.images import ImageSet

__all__ = ["RowBytes", "RowImages", "RowNumbers", "Rows", "row_images"]


class RowBytes(io.BytesIO):
    """An encoded image with its place, for messages.

    Args:
        content: The bytes of the image file.
        name: Its place, such as "photos, row 12".
    """

    def __init__(self, content: bytes, name: str):
        super().__init__(content)
        self.row = name

    def __str__(self) -> str:
        return self.row


class Rows:
    """Encoded images by number. `rows / "12"` opens image 12, as `folder / name` does for a file.

    A subclass opens an image in `open_row`.
    """

    # Files that hold the images. Digests are cached if there are some, as for files of images.
    files: Sequence[Path] = ()

    def __truediv__(self, row: str) -> RowBytes | Path:
        return self.open_row(int(row))

    def open_row(self, row: int) -> RowBytes | Path:
        """Return the encoded image of a row, or the path of its file.

        Args:
            row: The number of the row.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define open_row.")

    def identity(self, numbers: np.ndarray) -> bytes:
        """Return bytes that differ for other images of the same files.

        Args:
            numbers: The rows in their order.
        """
        return numbers.tobytes()


class RowNumbers(Sequence):
    """Row numbers as the text that `ImageSet.paths` holds, in eight bytes each.

    Args:
        numbers: The numbers, (N,).
    """

    def __init__(self, numbers: np.ndarray):
        self.numbers = np.asarray(numbers, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, i):
        if isinstance(i, slice | np.ndarray):
            return RowNumbers(self.numbers[i])
        return str(self.numbers[i])


@dataclass
class RowImages(ImageSet):
    """Labelled images in rows: `paths` are row numbers, `root` opens them."""

    def part(self, index: np.ndarray) -> "RowImages":
        """Return the images at `index`, in that order, without a copy of images in memory."""
        taken = ImageSet.part(replace(self, paths=None), index)
        if not len(taken):
            # `learn.export()` stores a loader without images; it must not store the dataset.
            return replace(taken, paths=[], root=None)
        return replace(taken, paths=self.paths[np.asarray(index)])


def row_images(rows: Rows, targets: np.ndarray, numbers: np.ndarray | None = None) -> RowImages:
    """Return the images of some rows.

    Args:
        rows: The rows.
        targets: Class index of each image.
        numbers: The row of each image; None takes all rows in order.

    Shape:
        targets and numbers are (N,), integer.
    """
    numbers = np.arange(len(targets)) if numbers is None else numbers
    return RowImages(targets, paths=RowNumbers(numbers), root=rows)
