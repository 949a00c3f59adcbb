"""What all readers share: parts, labels and the images they return."""

import logging
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path

import numpy as np

from ltlearn.data.images import ImageSet, natural_key
from ltlearn.data.readers.kinds import flag_of
from ltlearn.data.readers.listing import Listing, find_images
from ltlearn.errors import UserError

__all__ = [
    "PART_OF_NAME",
    "PART_LABELS",
    "MAX_NAMED_COLUMNS",
    "MAX_NAMED_FOLDERS",
    "ListedImages",
    "is_empty",
    "encode_labels",
    "parts_of_rows",
    "check_trained",
    "plural",
    "find_listed_images",
    "match_classes",
]

_log = logging.getLogger("ltlearn")
PARTS = ("train", "valid", "test")
PART_OF_NAME = {
    "train": "train", "training": "train",
    "valid": "valid", "val": "valid", "validation": "valid", "dev": "valid",
    "test": "test", "testing": "test",
}  # fmt: skip
PART_LABELS = {"train": "training", "valid": "validation", "test": "test"}
MAX_NAMED_COLUMNS = 20  # column names in a message
MAX_NAMED_FOLDERS = 5  # folders in a message


@dataclass
class ListedImages:
    """Images by part ("train" and any of "valid" and "test"), and what a run calls them."""

    parts: dict[str, ImageSet]
    classes: list[str]
    split_name: str  # of `SplitInfo`
    dataset: str
    where: Path | str  # for messages
    columns: dict[str, str] = field(default_factory=dict)  # of a table: what was read from which


def is_empty(cells) -> np.ndarray:
    """Tell which cells of a series are missing or have no text."""
    import pandas as pd

    empty = cells.isna().to_numpy()
    if pd.api.types.is_numeric_dtype(cells.dtype):
        return empty
    bare = (isinstance(cell, str) and not cell.strip() for cell in cells)
    return empty | np.fromiter(bare, bool, len(cells))


def encode_labels(cells, place: Callable[[int], str]) -> tuple[np.ndarray, list[str]]:
    """Return the class of each label, and the classes: in natural order, or by value."""
    import pandas as pd

    codes, values = pd.factorize(cells)
    first = dict(zip(*np.unique(codes, return_index=True), strict=True))
    names = []
    for code, value in enumerate(values):
        if isinstance(value, Real) and not isinstance(value, bool | np.bool_):
            # A column of integers becomes one of floats where a cell was once empty.
            if value != value or value in (np.inf, -np.inf) or value != int(value):
                raise UserError(
                    f"{place(int(first[code]))}: the label {value!r} is neither text nor an "
                    "integer; name the column of the labels with label_col (--label-col)."
                )
            names.append(str(int(value)))
        else:
            names.append(str(value).strip())
    numbers = all(re.fullmatch(r"-?\d+", name) for name in names)
    classes = sorted(set(names), key=(lambda n: (int(n), n)) if numbers else natural_key)
    index = {name: c for c, name in enumerate(classes)}
    return np.array([index[name] for name in names], dtype=np.int64)[codes], classes


def parts_of_rows(cells, place: Callable[[int], str], column) -> np.ndarray:
    """Return the number of the part of each row."""
    number = {word: PARTS.index(part) for word, part in PART_OF_NAME.items()}
    out = np.empty(len(cells), dtype=np.int8)
    for i, cell in enumerate(cells):
        part = number.get(str(cell).strip().lower())
        if part is None:
            raise UserError(
                f"{place(i)}: {cell!r} in the column {column!r} must be one of "
                f"{', '.join(PART_OF_NAME)}; mend it, or pass split_col=False "
                "(--split-col none) to take  all rows for training."
            )
        out[i] = part
    if not (out == 0).any():
        raise UserError(f"{place(0)} and all others are of no training image; mark some 'train'.")
    return out


def check_trained(targets, part_of, classes, place: Callable[[int], str]) -> None:
    """Refuse a class that only later parts have."""
    trained = np.bincount(targets[part_of == 0], minlength=len(classes)) > 0
    lost = ~trained[targets]
    if lost.any():
        i = int(lost.argmax())
        raise UserError(
            f"{place(i)}: the {PART_LABELS[PARTS[part_of[i]]]} label {classes[targets[i]]!r} is "
            "not among the training labels; add training images of it, or remove it."
        )


def plural(n: int, one: str, several: str) -> str:
    """Return a number with the right form of a noun."""
    return f"{n:,} {one if n == 1 else several}"


def find_listed_images(
    listing: Listing,
    root: str | Path,
    follow_links: bool,
    skip_bad: bool,
    parameter: str,
    keep_missing: bool = False,
) -> ImageSet:
    """Look for the images; what is not there is an error, left out, or kept as it is."""
    data, missing = find_images(listing, Path(root), follow_links=follow_links)
    if not len(missing):
        return data
    i = int(missing[0])
    if len(missing) == len(data):
        # A table of names without their extension is common.
        bare = not os.path.splitext(data.paths[i])[1] and listing.place_word == "row"
        hint = ", or what they end in as suffix (--suffix .jpg)" if bare else ""
        if "\\" in data.paths[i] and os.sep == "/":
            hint += r", and write / for the \ of Windows in them"
        raise UserError(
            f"{listing.place(i)}: there is no {data.root / data.paths[i]}, nor any other of the "
            f"{len(data):,}; give the folder that the paths start from as {parameter} "
            f"({flag_of(parameter)}){hint}."
        )
    if keep_missing:
        return data
    if not skip_bad:
        more = f", nor {len(missing) - 1:,} more" if len(missing) > 1 else ""
        raise UserError(
            f"{listing.place(i)}: there is no {data.root / data.paths[i]}{more}; mend it, or leave "
            "such images out with --skip-bad (skip_bad=True)."
        )
    for i in missing:
        _log.warning("left out: %s: there is no %s", listing.place(i), data.root / data.paths[i])
    kept = data.take(np.setdiff1d(np.arange(len(data)), missing))
    kept.skipped = [str(data.root / data.paths[i]) for i in missing]
    return kept


def match_classes(
    targets: np.ndarray, names: list[str], classes: list[str], place: Callable, part: str
) -> np.ndarray:
    """Return the targets under the names of a later part as those of training."""
    if names == classes:
        return targets
    index = {name: c for c, name in enumerate(classes)}
    moved = np.array([index.get(name, -1) for name in names], dtype=np.int64)[targets]
    if (moved < 0).any():
        i = int((moved < 0).argmax())
        raise UserError(
            f"{place(i)}: the {PART_LABELS[part]} label {names[targets[i]]!r} is not among the "
            "training labels; add it there, or remove it here."
        )
    return moved
