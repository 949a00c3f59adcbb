"""Read Hugging Face datasets."""

import hashlib
import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ltlearn.data.images import ImageSet, unreadable_error
from ltlearn.data.readers.kinds import source_kind
from ltlearn.data.readers.listed import (
    MAX_NAMED_COLUMNS,
    PART_LABELS,
    PART_OF_NAME,
    PARTS,
    ListedImages,
    encode_labels,
    is_empty,
    match_classes,
)
from ltlearn.data.readers.tables import IMAGE_COLUMNS, LABEL_COLUMNS
from ltlearn.data.splits import fingerprint
from ltlearn.errors import UserError
from ltlearn.utils.progress import track

__all__ = ["RowImages", "list_dataset"]

_log = logging.getLogger("ltlearn")


class _RowBytes(io.BytesIO):
    """An encoded image that says where it is from."""

    def __init__(self, content: bytes, name: str):
        super().__init__(content)
        self.row = name

    def __str__(self) -> str:
        return self.row


class _Rows:
    """A column of images; `rows / "12"` opens the one of row 12, as a folder's opens a file."""

    def __init__(self, data, column: str, name: str):
        self.data, self.column, self.name = data, column, name
        self._digests: dict[str, bytes] = {}

    def __str__(self) -> str:
        return self.name

    def __truediv__(self, row: str) -> "_RowBytes | Path":
        image = self.data[int(row)][self.column]
        name = f"{self.name}, row {row}"
        if isinstance(image, Mapping):
            path, image = image.get("path"), image.get("bytes")
            image = path if image is None else image
        if isinstance(image, str):
            return Path(image)
        if image is None:
            return _RowBytes(b"", f"{name} (which is empty)")
        if isinstance(image, bytes):
            return _RowBytes(image, name)
        raise UserError(
            f"{name}: the column {self.column!r} holds {type(image).__name__}, no encoded "
            "images; name the column of the images with image_col."
        )

    def digest(self, row: str) -> bytes:
        """Name the content of a row; it is read once."""
        if row not in self._digests:
            image = self / row
            try:
                content = image.read_bytes() if isinstance(image, Path) else image.getvalue()
            except OSError as e:
                raise unreadable_error(image, e.strerror) from None
            self._digests[row] = hashlib.sha256(content).digest()
        return self._digests[row]


@dataclass
class RowImages(ImageSet):
    """Labelled images in the rows of a dataset: `paths` has their numbers, `root` opens them."""

    def take(self, index: np.ndarray) -> "RowImages":
        """Return the images at `index`, in that order."""
        taken = super().take(index)
        # `learn.export()` stores a loader without images: the dataset must not go along.
        root = self.root if len(taken) else None
        return RowImages(taken.targets, taken.images, taken.paths, root, taken.skipped)

    def fingerprint(self) -> str:
        """Name the content: pixels in memory, or else the encoded images.

        Raises:
            UserError: If a file that a row names is gone.
        """
        if self.images is not None:
            return super().fingerprint()
        rows = track(self.paths, len(self.paths), "fingerprint of the images")
        return fingerprint(map(self.root.digest, rows), self.targets)


def list_dataset(
    dataset, image_col: str | None = None, label_col: str | None = None
) -> ListedImages:
    """List the images of a Hugging Face dataset; each is read from its row when it is needed.

    Args:
        dataset: A `datasets.Dataset`, a `datasets.DatasetDict` with a "train" and any of "valid",
            "val", "validation" and "test", or a folder that either was saved to with
            `save_to_disk` (needs the extra `hf`).
        image_col: Column of the images: of type Image, or of encoded bytes or paths. None takes
            the first of type Image, or else one by the names that tables have.
        label_col: Column of the labels: of type ClassLabel, or text or integers. None takes one by
            the names that tables have, or else the only one of type ClassLabel.

    Raises:
        UserError: If it is no such dataset, lacks a column or a label, or a validation or test
            label is not in training.
    """
    dataset, name = _open_dataset(dataset)
    sets = {}
    if isinstance(dataset, Mapping):
        for key, data in dataset.items():
            part = PART_OF_NAME.get(str(key).lower())
            if part is None:
                _log.warning("%s: left out the part %r, which is none of %s.", name, key,
                             ", ".join(PART_OF_NAME))  # fmt: skip
            elif part in sets:
                raise UserError(f"{name} has two {PART_LABELS[part]} parts; remove one of them.")
            else:
                sets[part] = key, data
        if "train" not in sets:
            raise UserError(
                f"{name} has no part 'train', only {', '.join(map(repr, dataset))}; rename one, or "
                "give the dataset of one part."
            )
    else:
        sets["train"] = None, dataset
    parts, classes = {}, []
    for part in PARTS:
        if part in sets:
            key, data = sets[part]
            where = name if key is None else f"{name}[{key!r}]"
            _check_rows(data, where)
            image, label = _dataset_columns(data, where, image_col, label_col)
            targets, names = _dataset_labels(data, label, where)
            if part == "train":
                classes = names
            else:
                targets = match_classes(targets, names, classes, partial(_row_of, where), part)
            parts[part] = _row_images(data, image, targets, where)
    kind = "dataset splits" if len(parts) > 1 else "one dataset"
    return ListedImages(parts, classes, kind, name, name)


def _row_of(where: str, i: int) -> str:
    return f"{where}, row {i}"


def _open_dataset(dataset) -> tuple:
    """Return the dataset, read from its folder if need be, and its name."""
    if not isinstance(dataset, str | Path):
        some = next(iter(dataset.values()), None) if isinstance(dataset, Mapping) else dataset
        info = getattr(some, "info", None)
        name = getattr(info, "dataset_name", None) or getattr(info, "builder_name", None)
        return dataset, name or "dataset"
    folder = Path(dataset).expanduser()
    if not folder.is_dir() or source_kind(folder) != "hf":
        raise UserError(
            f"{folder} is no folder that save_to_disk wrote; give one, or what "
            "datasets.load_dataset returns."
        )
    try:
        from datasets import load_from_disk
    except ImportError:
        raise UserError(
            f"reading {folder} needs Hugging Face datasets: pip install 'ltlearn[hf]'."
        ) from None
    try:
        return load_from_disk(str(folder)), folder.resolve().name
    except Exception as e:  # what a damaged file raises has no end
        reason = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise UserError(f"cannot read the dataset {folder} ({reason}); save it again.") from None


def _check_rows(data, where: str) -> None:
    if not hasattr(data, "features") or not hasattr(data, "__len__"):
        streamed = hasattr(data, "features") and hasattr(data, "__iter__")
        what = "is streamed" if streamed else f"is a {type(data).__name__}, no dataset"
        raise UserError(
            f"{where} {what}; give a datasets.Dataset or DatasetDict (load_dataset without "
            "streaming), or a folder that save_to_disk wrote."
        )
    if not len(data):
        raise UserError(f"{where} has no rows; leave the part out, or give it images.")


def _dataset_columns(data, where: str, image_col, label_col) -> tuple[str, str]:
    """Return the columns of images and labels."""
    features = dict(data.features or {})

    def kinds(kind: str) -> list[str]:
        return [name for name, feature in features.items() if type(feature).__name__ == kind]

    def named(likely: Sequence[str]) -> str | None:
        lower = {name.lower(): name for name in reversed(features)}
        return next((lower[name] for name in likely if name in lower), None)

    labels = kinds("ClassLabel")
    found = {
        "image_col": next(iter(kinds("Image")), None) or named(IMAGE_COLUMNS),
        "label_col": named(LABEL_COLUMNS) or (labels[0] if len(labels) == 1 else None),
    }
    given = {"image_col": image_col, "label_col": label_col}
    for parameter, what in (("image_col", "the images"), ("label_col", "the labels")):
        column = found[parameter] if given[parameter] is None else given[parameter]
        if column not in features:
            is_not = f"no column {column!r}" if column else f"no one column of {what}"
            raise UserError(
                f"{where} has {is_not} ({parameter}); its columns are "
                f"{', '.join(list(features)[:MAX_NAMED_COLUMNS])}."
            )
        found[parameter] = column
    return found["image_col"], found["label_col"]


def _dataset_labels(data, column: str, where: str) -> tuple[np.ndarray, list[str]]:
    import pandas as pd

    names = getattr(data.features[column], "names", None)
    plain = data.with_format(None) if hasattr(data, "with_format") else data
    cells = pd.Series(list(plain[column][:]), dtype=None if names is None else object)
    place = partial(_row_of, where)
    empty = is_empty(cells)
    if names is not None:
        known = cells.where(~empty, -1).to_numpy(np.int64, copy=True)
        empty |= (known < 0) | (known >= len(names))
    if empty.any():
        i = int(empty.argmax())
        raise UserError(
            f"{place(i)} has no label (column {column!r}: {cells[i]!r}); leave the part out, or "
            "remove such rows."
        )
    if names is not None:
        return known, list(names)
    return encode_labels(cells, place)


def _row_images(data, column: str, targets: np.ndarray, where: str) -> RowImages:
    """Return the images of a column, which stay encoded."""
    feature = data.features[column]
    if hasattr(data, "with_format"):
        data = data.with_format(None)
    if hasattr(data, "select_columns"):
        data = data.select_columns([column])
    if type(feature).__name__ == "Image" and hasattr(data, "cast_column"):
        data = data.cast_column(column, type(feature)(decode=False))
    rows = _Rows(data, column, where)
    return RowImages(targets, paths=[str(i) for i in range(len(targets))], root=rows)
