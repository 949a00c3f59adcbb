"""What a method is called in tables and plots, after the stage 1 before it."""

from collections import Counter
from collections.abc import Iterable, Mapping

from ltlearn.methods.base import Method
from ltlearn.methods.registry import METHODS
from ltlearn.names import DEFAULT_STAGE1

__all__ = ["GIVEN_MODEL", "label_of", "labels_of"]

GIVEN_MODEL = "as given"  # the row of a model that was trained elsewhere


def label_of(
    name: str,
    stage1: str | None = DEFAULT_STAGE1,
    rows: Mapping[str, Method] = METHODS,
) -> str:
    """Return the label of a method after a stage 1: "GLMC + SAMN" for "samn" after "glmc".

    After the default stage 1 it is the label of the method's row.

    Args:
        name: The method.
        stage1: The method of stage 1. None: a model that was trained elsewhere.
        rows: The row of each method.

    Example:
        >>> label_of("crt", "mixup")
        'MixUp + cRT'
    """
    row = rows[name]
    if row.kind == "stage 1":
        return GIVEN_MODEL if stage1 is None else row.label
    if stage1 == DEFAULT_STAGE1 or row.after is not None:
        return row.label
    if row.head == "experts" and stage1 is not None:  # a part of stage 1
        return f"{METHODS[stage1].label}, {row.label}"
    own = row.label.removeprefix(f"{METHODS[DEFAULT_STAGE1].label} + ")
    return own if stage1 is None else f"{METHODS[stage1].label} + {own}"


def labels_of(
    names: Iterable[str],
    stage1: str | None = DEFAULT_STAGE1,
    rows: Mapping[str, Method] = METHODS,
) -> dict[str, str]:
    """Return the labels of several methods in one table, all different.

    Methods with the same label get their names in brackets.

    Args:
        names: The methods.
        stage1: The method of stage 1, as for `label_of`.
        rows: The row of each method.
    """
    labels = {name: label_of(name, stage1, rows) for name in names}
    number = Counter(labels.values())
    return {
        name: f"{label} ({name})" if number[label] > 1 else label for name, label in labels.items()
    }
