"""Accuracy per class."""

import torch
from torch import Tensor

from ltlearn.errors import UserError
from ltlearn.metrics.rows import IntVector, read_labels

__all__ = ["per_class_accuracy", "mean_class_accuracy"]


def per_class_accuracy(pred: IntVector, target: IntVector, num_classes: int) -> Tensor:
    """Compute the accuracy of each class: the share of its images that are classified correctly.

    Args:
        pred: Predicted classes.
        target: The true classes.
        num_classes: C, at least 1.

    Shape:
        pred and target are (N,), integer. The result is (C,), float64, on the CPU, each in [0, 1];
        NaN for a class with no image in target.

    Raises:
        UserError: If the lengths differ, or a label or a prediction is outside 0..C-1.

    Example:
        >>> per_class_accuracy(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]), num_classes=2)
        tensor([0.5000, 1.0000], dtype=torch.float64)
    """
    target = read_labels(target, num_classes, "target")
    pred = read_labels(pred, num_classes, "pred")
    if len(pred) != len(target):
        raise UserError(f"pred has {len(pred)} rows but target has {len(target)}.")
    total = torch.bincount(target, minlength=num_classes)
    hits = torch.bincount(target[pred == target], minlength=num_classes)
    return hits.double() / total  # 0 / 0 is NaN


def mean_class_accuracy(pred: IntVector, target: IntVector, num_classes: int) -> float:
    """Average the per-class accuracies over the classes that have images (balanced accuracy).

    Args:
        pred: Predicted classes.
        target: The true classes.
        num_classes: C, at least 1.

    Shape:
        pred and target are (N,), integer. The result is a fraction in [0, 1]; the sum is divided by
        the number of classes present in target, not by C.

    Raises:
        UserError: If the lengths differ, there is no image, or a label or a prediction is outside
            0..C-1.
    """
    per_class = per_class_accuracy(pred, target, num_classes)
    if per_class.isnan().all():
        raise UserError("target is empty: there is no image to evaluate.")
    return float(per_class.nanmean())
