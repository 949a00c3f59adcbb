"""Which classes a class is taken for, and which groups of classes."""

from typing import Any

import numpy as np

from ltlearn.metrics.rows import IntVector, check_lengths, read_labels

__all__ = ["block_confusion", "mistaken_classes"]


def mistaken_classes(
    target: IntVector, predicted: IntVector, num_classes: int
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


def block_confusion(
    target: IntVector,
    predicted: IntVector,
    blocks: IntVector,
    normalize: bool = True,
) -> np.ndarray:
    """Count which blocks of classes are taken for which; with a block per class, the classes.

    Args:
        target: The true classes.
        predicted: The predicted classes.
        blocks: The block of each class, 0 to B - 1.
        normalize: Whether to give shares in place of numbers of images: the mean, over the classes
            of a block that have images, of the share of a class's images.

    Shape:
        target and predicted are (N,), blocks is (C,). The result is (B, B), float64, a row for each
        true block. A normalised row sums to 1, or is NaN without images.

    Raises:
        UserError: If a label is outside 0 to C - 1, or the lengths differ.

    Example:
        >>> block_confusion([0, 0, 1, 2], [0, 1, 2, 2], blocks=[0, 1, 1])
        array([[0.5, 0.5],
               [0. , 1. ]])
    """
    block = np.asarray(blocks)
    true = read_labels(target, len(block), "target").numpy()
    found = read_labels(predicted, len(block), "predicted").numpy()
    check_lengths(len(found), len(true), "predicted")
    number = int(block.max()) + 1
    images = np.bincount(true, minlength=len(block))
    weights = 1 / images[true] if normalize else np.ones(len(true))
    cells = np.bincount(block[true] * number + block[found], weights, minlength=number**2)
    matrix = cells.reshape(number, number)
    if not normalize:
        return matrix
    tested = np.bincount(block[images > 0], minlength=number)[:, None]
    return np.where(tested > 0, matrix / np.maximum(tested, 1), np.nan)
