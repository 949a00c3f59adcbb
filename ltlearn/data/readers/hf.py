"""Read Hugging Face datasets."""

import logging
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from ltlearn.data.options import ReadOptions
from ltlearn.data.readers.columns import (
    IMAGE_COLUMNS,
    LABEL_COLUMNS,
    guess_column,
    name_columns,
)
from ltlearn.data.readers.labels import check_one_label, encode_labels, is_empty, match_classes
from ltlearn.data.readers.parts import PART_OF_NAME, ListedImages
from ltlearn.data.readers.rows import RowBytes, RowImages, Rows, row_images
from ltlearn.errors import UserError, spell
from ltlearn.names import PART_LABELS, PARTS

# Learners that earlier versions exported find `RowImages` here.
__all__ = ["RowImages", "is_saved_dataset", "list_dataset"]

_log = logging.getLogger("ltlearn")


class _DatasetRows(Rows):
    """A column of encoded images.

    Args:
        data: The dataset, which has the column alone.
        column: The column.
        name: The dataset, for messages.
        files: The files that hold the dataset; empty if it may be a cut one, or one in memory.
    """

    def __init__(self, data, column: str, name: str, files: Sequence[Path] = ()):
        self.data, self.column, self.name, self.files = data, column, name, files

    def __str__(self) -> str:
        return self.name

    def open_row(self, row: int) -> RowBytes | Path:
        image = self.data[row][self.column]
        name = f"{self.name}, row {row}"
        if isinstance(image, Mapping):
            path, image = image.get("path"), image.get("bytes")
            image = path if image is None else image
        if isinstance(image, str):
            return Path(image)
        if image is None:
            return RowBytes(b"", f"{name} (which is empty)")
        if isinstance(image, bytes):
            return RowBytes(image, name)
        raise UserError(
            f"{name}: the column {self.column!r} holds {type(image).__name__}, no encoded "
            f"images; name the column of the images with {spell('image_col')}."
        )

    def identity(self, numbers: np.ndarray) -> bytes:
        return os.fsencode(self.column) + b"\0" + super().identity(numbers)


def is_saved_dataset(folder: Path) -> bool:
    """Return whether `save_to_disk` wrote a folder.

    Args:
        folder: The folder.
    """
    is_one = (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()
    return is_one or (folder / "dataset_dict.json").is_file()


def list_dataset(dataset, options: ReadOptions | None = None) -> ListedImages:
    """List the images of a Hugging Face dataset; each is read from its row when it is needed.

    Args:
        dataset: A `datasets.Dataset`, a `datasets.DatasetDict` with a "train" and any of "valid",
            "val", "validation" and "test", or a folder that either was saved to with
            `save_to_disk` (needs the extra `hf`).
        options: Uses `image_col`, a column of type Image, or of encoded bytes or paths (None takes
            the first of type Image, or else one with a usual name); and `label_col`, a column of
            type ClassLabel, or of text or integers (None takes one with a usual name, or else the
            only one of type ClassLabel). None takes the defaults.

    Raises:
        UserError: If it is no such dataset, lacks a column or a label, or a validation or test
            label is not in training.
    """
    options = options or ReadOptions()
    is_saved = isinstance(dataset, str | Path)
    dataset, name = _open_dataset(dataset)
    parts, classes = {}, []
    for part, (where, data) in _part_datasets(dataset, name).items():
        _check_rows(data, where)
        image, label = _dataset_columns(data, where, options.image_col, options.label_col)
        targets, names = _dataset_labels(data, label, where)
        if part == "train":
            classes = names
        else:
            targets = match_classes(targets, names, classes, partial(_row_of, where), part)
        parts[part] = _row_images(data, image, targets, where, is_saved)
    kind = "dataset splits" if len(parts) > 1 else "one dataset"
    return ListedImages(parts, classes, kind, name, name)


def _part_datasets(dataset, name: str) -> dict[str, tuple[str, object]]:
    """Return the name and the dataset of each part, in the order of `PARTS`."""
    if not isinstance(dataset, Mapping):
        return {"train": (name, dataset)}
    named: dict[str, tuple[str, object]] = {}
    for key, data in dataset.items():
        part = PART_OF_NAME.get(str(key).lower())
        if part is None:
            _log.warning(
                "%s: left out the part %r, because it is none of %s.", name, key,
                ", ".join(PART_OF_NAME),
            )  # fmt: skip
        elif part in named:
            raise UserError(f"{name} has two {PART_LABELS[part]} parts; remove one of them.")
        else:
            named[part] = f"{name}[{key!r}]", data
    if "train" not in named:
        raise UserError(
            f"{name} has no part 'train', only {', '.join(map(repr, dataset))}; rename one, or "
            "give the dataset of one part."
        )
    return {part: named[part] for part in PARTS if part in named}


def _row_of(where: str, i: int) -> str:
    return f"{where}, row {i}"


def _open_dataset(dataset) -> tuple:
    """Return the dataset, read from its folder if a path is given, and its name."""
    if not isinstance(dataset, str | Path):
        first = next(iter(dataset.values()), None) if isinstance(dataset, Mapping) else dataset
        info = getattr(first, "info", None)
        name = getattr(info, "dataset_name", None) or getattr(info, "builder_name", None)
        return dataset, name or "dataset"
    folder = Path(dataset).expanduser()
    if not is_saved_dataset(folder):
        raise UserError(
            f"{folder} is no folder that save_to_disk wrote; give such a folder, or the result of "
            "datasets.load_dataset."
        )
    try:
        from datasets import load_from_disk
    except ImportError:
        raise UserError(
            f"reading {folder} needs Hugging Face datasets: pip install 'ltlearn[hf]'."
        ) from None
    try:
        return load_from_disk(str(folder)), folder.resolve().name
    except Exception as e:  # damaged files raise many types of exception
        reason = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise UserError(f"cannot read the dataset {folder} ({reason}); save it again.") from None


def _check_rows(data, where: str) -> None:
    if not hasattr(data, "features") or not hasattr(data, "__len__"):
        streamed = hasattr(data, "features") and hasattr(data, "__iter__")
        fault = "is streamed" if streamed else f"is a {type(data).__name__}, no dataset"
        raise UserError(
            f"{where} {fault}; give a datasets.Dataset or DatasetDict (load_dataset without "
            "streaming), or a folder that save_to_disk wrote."
        )
    if not len(data):
        raise UserError(f"{where} has no rows; leave the part out, or give it images.")


def _dataset_columns(data, where: str, image_col, label_col) -> tuple[str, str]:
    """Return the columns of images and labels."""
    features = dict(data.features or {})
    names = list(features)

    def of_type(kind: str) -> list[str]:
        return [name for name, feature in features.items() if type(feature).__name__ == kind]

    def usual(likely: tuple[str, ...]) -> str | None:
        position = guess_column(names, likely)
        return None if position is None else names[position]

    def check(parameter: str, column: str | None, role: str) -> str:
        if column not in features:
            fault = f"no column {column!r}" if column else f"no one column of {role}"
            raise UserError(
                f"{where} has {fault} ({spell(parameter)}); its columns are {name_columns(names)}."
            )
        return column

    if image_col is None:
        image_col = next(iter(of_type("Image")), None) or usual(IMAGE_COLUMNS)
    if label_col is None:
        labels = of_type("ClassLabel")
        label_col = usual(LABEL_COLUMNS) or (labels[0] if len(labels) == 1 else None)
    return check("image_col", image_col, "the images"), check("label_col", label_col, "the labels")


def _label_cells(data, column: str, is_class_label: bool):
    """Return the labels as a pandas series, without reading the other columns."""
    import pandas as pd

    if hasattr(data, "with_format"):
        data = data.with_format(None)
    return pd.Series(list(data[column][:]), dtype=object if is_class_label else None)


def _dataset_labels(data, column: str, where: str) -> tuple[np.ndarray, list[str]]:
    names = getattr(data.features[column], "names", None)
    cells = _label_cells(data, column, names is not None)
    locate = partial(_row_of, where)
    empty = is_empty(cells)
    if names is not None:
        known = cells.where(~empty, -1).to_numpy(np.int64, copy=True)
        empty |= (known < 0) | (known >= len(names))
    if empty.any():
        i = int(empty.argmax())
        raise UserError(
            f"{locate(i)} has no label (column {column!r}: {cells[i]!r}); leave the part out, or "
            "remove rows without a label."
        )
    if names is not None:
        return known, list(names)
    targets, classes = encode_labels(cells, locate)
    check_one_label(targets, classes, locate, column)
    return targets, classes


def _row_images(data, column: str, targets: np.ndarray, where: str, is_saved: bool) -> RowImages:
    """Return the images of a column; they stay encoded until one is opened."""
    feature = data.features[column]
    # A saved dataset has all rows of its files, so the files identify its rows.
    files = [Path(file["filename"]) for file in data.cache_files] if is_saved else []
    if hasattr(data, "with_format"):
        data = data.with_format(None)
    if hasattr(data, "select_columns"):
        data = data.select_columns([column])
    if type(feature).__name__ == "Image" and hasattr(data, "cast_column"):
        data = data.cast_column(column, type(feature)(decode=False))
    return row_images(_DatasetRows(data, column, where, files), targets)
