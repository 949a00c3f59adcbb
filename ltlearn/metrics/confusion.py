"""Which classes a class is taken for."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ltlearn.metrics.rows import check_lengths, read_labels

__all__ = ["mistaken_classes"]


def mistaken_classes(
    target: Sequence[int], predicted: Sequence[int], num_classes: int
) -> list[list[tuple[int, int]]]:
    """List for each class the other classes that it is taken for, the most frequent first.

    Args:
        target: The true classes.
        predicted: The predicted classes.
        num_classes: C.

    Shape:
        target and predicted are (N,). The result has C lists of (class, number of images); equal
        numbers are in label order.

    Raises:
        UserError: If a label is outside 0 to C - 1, or the lengths differ.

    Example:
        >>> mistaken_classes([0, 0, 0, 1], [0, 1, 1, 0], 3)
        [[(1, 2)], [(0, 1)], []]
    """
    true = read_labels(target, num_classes, "target").numpy()
    found = read_labels(predicted, num_classes, "predicted").numpy()
    check_lengths(len(found), len(true), "predicted")
    wrong = true != found
    # Pairs that occur, not a C x C matrix, which would take 500 MB for 8,000 classes.
    pairs, numbers = np.unique(
        np.stack([true[wrong], found[wrong]], axis=1), axis=0, return_counts=True
    )
    taken_for: list[list[tuple[int, Any]]] = [[] for _ in range(num_classes)]
    for (c, other), number in zip(pairs.tolist(), numbers.tolist(), strict=True):
        taken_for[c].append((other, number))
    return [sorted(pairs, key=lambda pair: -pair[1]) for pairs in taken_for]
