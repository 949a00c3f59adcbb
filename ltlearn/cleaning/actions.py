"""Carry out what a person decided about findings: drop an image, or give it another label."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ltlearn.cleaning.images import LoadedImages
from ltlearn.errors import UserError
from ltlearn.utils.system_errors import unreadable

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["ACTIONS", "carry_out"]

ACTIONS = ("", "keep", "drop", "relabel")
_COLUMNS = ("path", "suggested_class", "action")


def carry_out(images: LoadedImages, actions: "DataFrame | str | Path | None") -> "DataFrame":
    """Return the list of all images after some were dropped or relabelled.

    An image with several findings is dropped if one of them has the action "drop".

    Args:
        images: The images.
        actions: A table with the columns path, suggested_class and action, or a CSV file; None
            changes nothing.

    Raises:
        UserError: If an action is unknown, relabels to no class or to two, or an image is unknown.
    """
    from pandas import DataFrame

    names = [images.name_of(i) for i in range(len(images))]
    classes = np.array(images.classes, dtype=object)[images.targets]
    labels: list[str | None] = classes.tolist()
    # The same file may be in two parts.
    numbers: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        numbers.setdefault(name, []).append(i)
    new: dict[str, str] = {}
    dropped = set()
    for row, path, suggested, action in _read(actions):
        where = f"row {row} of the actions ({path})"
        if action not in ACTIONS:
            raise UserError(f"{where} has the action {action!r}; write drop, relabel or nothing.")
        if path not in numbers:
            raise UserError(f"{where} names no image of this data; use the file made from it.")
        if action == "drop":
            dropped.add(path)
        elif action == "relabel":
            if suggested not in images.classes:
                raise UserError(
                    f"{where} relabels to {suggested!r}, which is no class; write one into "
                    "suggested_class."
                )
            if new.setdefault(path, suggested) != suggested:
                raise UserError(
                    f"{where} relabels to {suggested!r}, an earlier row to {new[path]!r}; keep one."
                )
    for path, label in new.items():
        for i in numbers[path]:
            labels[i] = label
    kept = [i for i, name in enumerate(names) if name not in dropped]
    return DataFrame(
        {
            # A relative path would start from the folder of the list.
            "image": [_absolute(names[i]) for i in kept],
            "label": [labels[i] for i in kept],
            "split": [images.part_of(i) for i in kept],
        }
    )


def _read(actions) -> list[tuple[int, str, str, str]]:
    """Return number, path, suggested class and action of each row. Line 1 of a file is its head."""
    from pandas import DataFrame, read_csv

    if actions is None:
        return []
    first = 0
    if not isinstance(actions, DataFrame):
        path, first = Path(actions).expanduser(), 2
        try:
            actions = read_csv(
                path, dtype=str, keep_default_na=False, encoding_errors="surrogateescape"
            )
        except OSError as e:
            raise unreadable(path, e) from None
        except ValueError as e:  # pandas raises several subclasses
            raise UserError(f"{path} is no table of findings ({e}); give clean.csv.") from None
    missing = [column for column in _COLUMNS if column not in actions.columns]
    if missing:
        raise UserError(
            f"the actions lack the column {missing[0]}; use the table that to_csv or to_frame made."
        )
    cells = (actions[column].fillna("").astype(str) for column in _COLUMNS)
    rows = zip(*cells, strict=True)
    return [(k, p, s, a.strip().lower()) for k, (p, s, a) in enumerate(rows, start=first)]


def _absolute(name: str) -> str:
    return os.path.abspath(name) if os.path.exists(name) else name
