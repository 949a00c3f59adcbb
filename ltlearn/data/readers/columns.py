"""Find the columns of a table: paths, labels, and the parts of the images."""

import logging
import re
from collections.abc import Mapping, Sequence
from numbers import Integral

from ltlearn.data.readers.parts import is_flags
from ltlearn.errors import UserError, spell
from ltlearn.utils.text import clean

__all__ = [
    "IMAGE_COLUMNS",
    "LABEL_COLUMNS",
    "USUAL_COLUMNS",
    "columns_text",
    "find_columns",
    "guess_column",
    "log_ignored",
    "name_columns",
]

_log = logging.getLogger("ltlearn")
# Names that identify a column, in any case, the most likely first.
IMAGE_COLUMNS = ("image", "path", "file", "filename", "file_name", "image_path", "img")
LABEL_COLUMNS = ("label", "class", "target", "category", "labels")
_SPLIT_COLUMNS = ("split", "subset", "partition")
# Columns that mark the images of one part, as fastai's `valid_col` does.
_FLAG_COLUMNS = {"valid": ("is_valid", "valid"), "test": ("is_test",)}
USUAL_COLUMNS = (
    *IMAGE_COLUMNS,
    *LABEL_COLUMNS,
    *_SPLIT_COLUMNS,
    *(name for names in _FLAG_COLUMNS.values() for name in names),
)
# A column with such a name that is not read may be a mistake.
_LIKE_SPLIT = re.compile(r"split|fold|part|subset|train|valid|test", re.IGNORECASE)
_MAX_NAMED = 20  # columns in a message


def columns_text(columns: Mapping[str, str]) -> str:
    """Return a sentence part that names the column of the paths, the labels and the parts.

    Args:
        columns: The columns of a `ListedImages`.
    """
    return ", ".join(f"{role} from {clean(column)!r}" for role, column in columns.items())


def name_columns(names: Sequence) -> str:
    """Return the first column names, for a message.

    Args:
        names: The names of all columns.
    """
    more = ", ..." if len(names) > _MAX_NAMED else ""
    return ", ".join(map(str, names[:_MAX_NAMED])) + more


def guess_column(names: Sequence, likely: Sequence[str]) -> int | None:
    """Return the position of the first column with a likely name; None if there is none.

    Args:
        names: The names of all columns.
        likely: Lower-case names, the most likely first.
    """
    lower = [str(name).strip().lower() for name in names]
    return next((lower.index(name) for name in likely if name in lower), None)


def find_columns(
    df, where: str, image_col, label_col, split_col
) -> tuple[int, int, int | None, dict[str, int]]:
    """Return the positions of the columns of paths, labels and parts, and of flags by part.

    Args:
        df: The table.
        where: The table, for messages.
        image_col: Column of the paths, by name or number; None guesses it.
        label_col: Column of the labels.
        split_col: Column of the parts; False uses none.

    Raises:
        UserError: If there is no such column, one is used twice, or each class has a column.
    """
    names = list(df.columns)
    shown = name_columns(names)

    def find(parameter: str, column, likely: Sequence[str]) -> int | None:
        if column is None:
            return guess_column(names, likely)
        is_number = isinstance(column, Integral) and not isinstance(column, bool)
        if column in names and not isinstance(column, bool):
            return names.index(column)
        if is_number and 0 <= column < len(names):
            return int(column)
        raise UserError(
            f"{where} has no column {column!r} ({spell(parameter)}); its columns are {shown}."
        )

    image = find("image_col", image_col, IMAGE_COLUMNS)
    label = find("label_col", label_col, LABEL_COLUMNS)
    split = None if split_col is False else find("split_col", split_col, _SPLIT_COLUMNS)
    split, flags = _find_flags(df, split, split_col, (image, label))
    if len(names) < 2:
        raise UserError(
            f"{where} has the column {shown} alone; give it one column for paths and one for "
            "labels, separated by a comma or a tab."
        )
    parted = {split, *flags.values()} - {None}
    if image is None:
        image = next((i for i in range(len(names)) if i != label and i not in parted), 0)
    if label is None:
        _check_one_label_column(
            df, where, [i for i in range(len(names)) if i not in (image, *parted)]
        )
        likely = (i for i in (1, 0, *range(2, len(names))) if i not in (image, *parted))
        label = next((i for i in likely if i < len(names)), image)
        if len(names) > 2 + len(parted):
            _log.warning(
                "%s: labels are read from the column %r, because no column has a usual name such "
                "as 'label'; to read another of %s, give %s.",
                where, names[label], shown, spell("label_col"),
            )  # fmt: skip
    if image == label or parted & {image, label}:
        raise UserError(
            f"{where}: paths, labels and split must be different columns of {shown}; name them "
            f"with {spell('image_col')}, {spell('label_col')} and {spell('split_col')}."
        )
    return image, label, split, flags


def _find_flags(
    df, split: int | None, split_col, taken: tuple
) -> tuple[int | None, dict[str, int]]:
    """Return the split column, None if it has flags, and the position of the flags of each part."""
    if split is not None:
        name = str(df.columns[split])
        if split_col is None or not is_flags(df.iloc[:, split]):
            return split, {}
        return None, {"test" if "test" in name.lower() else "valid": split}
    if split_col is False:
        return None, {}
    names, flags = list(df.columns), {}
    for part, likely in _FLAG_COLUMNS.items():
        at = guess_column(names, likely)
        # A column "valid" may hold something else.
        if at is not None and at not in taken and is_flags(df.iloc[:, at]):
            flags[part] = at
    return None, flags


def _check_one_label_column(df, where: str, columns: list[int]) -> None:
    """Refuse a table with a column of zeros and ones per class."""
    if len(columns) < 2 or not all(is_flags(df.iloc[:, i]) for i in columns):
        return
    shown = name_columns([df.columns[i] for i in columns])
    raise UserError(
        f"{where} has no column of labels: the columns {shown} mark one class each, or hold "
        "several labels per image, but an image has one label. Write the name of the class into "
        f"one column 'label', or name the column of the labels with {spell('label_col')}."
    )


def log_ignored(where: str, ignored: list[str]) -> None:
    """Log the columns that are not read; warn about one that may separate the parts.

    Args:
        where: The table, for messages.
        ignored: The names of the columns.
    """
    if not ignored:
        return
    _log.info("%s: ignored columns: %s", where, name_columns(ignored))
    like = [name for name in ignored if _LIKE_SPLIT.search(name)]
    if like:
        _log.warning(
            "%s: the column %r is ignored; if it separates training, validation and test images, "
            "give %s.", where, like[0], spell("split_col", like[0]),
        )  # fmt: skip
