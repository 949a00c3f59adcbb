"""Labels of listed images: from cells to class numbers, and from part to part."""

import logging
import re
from collections.abc import Callable
from numbers import Real

import numpy as np

from ltlearn.data.class_names import find_combined_labels
from ltlearn.data.images import natural_key
from ltlearn.errors import UserError, spell
from ltlearn.names import PART_LABELS, PARTS

__all__ = ["check_one_label", "check_trained", "encode_labels", "is_empty", "match_classes"]

_log = logging.getLogger("ltlearn")
_MAX_LENGTH = 1000  # characters of a class name


def is_empty(cells) -> np.ndarray:
    """Return which cells of a pandas series are missing or contain no text.

    Args:
        cells: The series.
    """
    import pandas as pd

    empty = cells.isna().to_numpy()
    if pd.api.types.is_numeric_dtype(cells.dtype):
        return empty
    blank = (isinstance(cell, str) and not cell.strip() for cell in cells)
    return empty | np.fromiter(blank, bool, len(cells))


def encode_labels(cells, locate: Callable[[int], str]) -> tuple[np.ndarray, list[str]]:
    """Return the class number of each label, and the class names.

    The names are in natural order (2_cat before 10_cat), or by value if all are integers.

    Args:
        cells: A pandas series of text or integers.
        locate: Returns the file and row of a cell, for messages.

    Raises:
        UserError: If a label is a number but not an integer, or longer than 1,000 characters.
    """
    import pandas as pd

    codes, values = pd.factorize(cells)
    first = dict(zip(*np.unique(codes, return_index=True), strict=True))
    names = []
    for code, value in enumerate(values):
        if isinstance(value, Real) and not isinstance(value, bool | np.bool_):
            # Pandas reads a column of integers with an empty cell as floats.
            if value != value or value in (np.inf, -np.inf) or value != int(value):
                raise UserError(
                    f"{locate(int(first[code]))}: the label {value!r} is neither text nor an "
                    f"integer; name the column of the labels with {spell('label_col')}."
                )
            names.append(str(int(value)))
        else:
            names.append(str(value).strip())
        if len(names[-1]) > _MAX_LENGTH:
            raise UserError(
                f"{locate(int(first[code]))}: the label has {len(names[-1]):,} characters, more "
                f"than {_MAX_LENGTH:,}; name the column of the labels with {spell('label_col')}, "
                "or correct the row."
            )
    numbers = all(re.fullmatch(r"-?\d+", name) for name in names)
    classes = sorted(set(names), key=(lambda n: (int(n), n)) if numbers else natural_key)
    index = {name: c for c, name in enumerate(classes)}
    return np.array([index[name] for name in names], dtype=np.int64)[codes], classes


def check_one_label(
    targets: np.ndarray,
    classes: list[str],
    locate: Callable[[int], str],
    column: str,
    problems: list[str] | None = None,
) -> None:
    """Refuse labels that are several labels of one image; warn about those that may be.

    Args:
        targets: Class number of each image.
        classes: The class names.
        locate: Returns the file and row of an image, for messages.
        column: Name of the column of the labels, for messages.
        problems: Collects the sentence; None raises an error instead.

    Shape:
        targets is (N,), integer.

    Raises:
        UserError: If a label certainly holds several.
    """
    found = find_combined_labels(classes)
    if found is None:
        return
    name, certain = found
    where = locate(int((targets == classes.index(name)).argmax()))
    sentence = (
        f"{where}: {name!r} in the column {column!r} looks like several labels of one image, but "
        "an image has one label"
    )
    if not certain:
        _log.warning(
            "%s; if they are several, keep one of them per image; if it is a name, ignore this.",
            sentence,
        )
        return
    sentence += "; keep one of them, or, if it is a name, write it without the separator."
    if problems is None:
        raise UserError(sentence)
    problems.append(sentence)


def check_trained(
    targets: np.ndarray, part_of: np.ndarray, classes: list[str], locate: Callable[[int], str]
) -> None:
    """Raise a `UserError` if a class occurs in validation or test, but not in training.

    Args:
        targets: Class number of each image.
        part_of: Number of each image's part in `PARTS`.
        classes: The class names.
        locate: Returns the file and row of an image, for the message.

    Shape:
        targets and part_of are (N,), integer.
    """
    trained = np.bincount(targets[part_of == 0], minlength=len(classes)) > 0
    untrained = ~trained[targets]
    if untrained.any():
        i = int(untrained.argmax())
        raise _untrained_error(locate(i), PARTS[part_of[i]], classes[targets[i]])


def match_classes(
    targets: np.ndarray,
    names: list[str],
    classes: list[str],
    locate: Callable[[int], str],
    part: str,
) -> np.ndarray:
    """Return the targets of a validation or test part, numbered like the training classes.

    Args:
        targets: Class number of each image, an index into `names`.
        names: The class names of this part.
        classes: The class names of the training part.
        locate: Returns the file and entry of an image, for messages.
        part: "valid" or "test".

    Raises:
        UserError: If an image has a class that the training part lacks.
    """
    if names == classes:
        return targets
    index = {name: c for c, name in enumerate(classes)}
    matched = np.array([index.get(name, -1) for name in names], dtype=np.int64)[targets]
    if (matched < 0).any():
        i = int((matched < 0).argmax())
        raise _untrained_error(locate(i), part, names[targets[i]])
    return matched


def _untrained_error(where: str, part: str, name: str) -> UserError:
    return UserError(
        f"{where}: the {PART_LABELS[part]} label {name!r} is not among the training labels; add "
        "training images of this class, or remove the label here."
    )
