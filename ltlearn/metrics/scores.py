"""Precision, recall and F1 of each class, and their means over shot groups."""

from collections.abc import Sequence, Sized
from dataclasses import dataclass
from typing import Any

import numpy as np

from ltlearn.errors import check_whole
from ltlearn.metrics.rows import IntVector, check_lengths, read_labels

__all__ = ["ClassScores", "GroupScores", "class_scores", "mean_scores"]


@dataclass(frozen=True)
class GroupScores:
    """The mean scores of some classes, each class with the same weight.

    Args:
        precision: Mean precision, in [0, 1].
        recall: Mean recall, in [0, 1]; it is the group's accuracy in a `ShotReport`.
        f1: Mean F1, in [0, 1].
    """

    precision: float
    recall: float
    f1: float


@dataclass(frozen=True, eq=False)
class ClassScores:
    """Precision, recall and F1 of each class, as fractions; NaN where one is undefined.

    Args:
        precision: Share of the images predicted as a class that belong to it; NaN if no image is
            predicted as the class.
        recall: Share of the images of a class that are predicted as it; NaN for a class without
            images.
        f1: Harmonic mean of both, 2 TP / (2 TP + FP + FN), so 0 for a class that has images but is
            never predicted; NaN for a class without images that is never predicted.

    Shape:
        Each is a NumPy array (C,), float64.
    """

    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray

    def mean(self, classes: Any = None) -> GroupScores | None:
        """Average the scores over the classes that have images (macro average).

        A precision that is undefined counts as 0, as in scikit-learn. Without it in the mean, a
        classifier that ignores most of the tail would have a high precision there.

        Args:
            classes: Which classes to average, as a mask or as indices. None: all.

        Returns:
            The means, or None if none of the classes has an image.
        """
        chosen = np.zeros(len(self.recall), bool)
        chosen[slice(None) if classes is None else np.asarray(classes)] = True
        chosen &= ~np.isnan(self.recall)
        if not chosen.any():
            return None
        precision = np.nan_to_num(self.precision[chosen]).mean()
        return GroupScores(
            float(precision), float(self.recall[chosen].mean()), float(self.f1[chosen].mean())
        )


def class_scores(
    labels: IntVector, predictions: IntVector, classes: int | Sequence[str]
) -> ClassScores:
    """Compute precision, recall and F1 of each class.

    Args:
        labels: The true classes.
        predictions: The predicted classes.
        classes: Number of classes, or their names in label order.

    Shape:
        labels and predictions are (N,), integer; tensors, arrays or lists. The result has three
        arrays (C,), float64.

    Raises:
        UserError: If there is no class, the lengths differ, there is no image, or a label or a
            prediction is outside 0..C-1.

    Source:
        scikit-learn's `precision_recall_fscore_support`, with NaN for undefined values.

    Example:
        >>> class_scores([0, 0, 1], [0, 1, 1], 3).precision
        array([1. , 0.5, nan])
    """
    # scikit-learn takes a second to import, and most users of the metrics do not need it.
    from sklearn.metrics import precision_recall_fscore_support

    num_classes = len(classes) if isinstance(classes, Sized) else classes
    check_whole("classes", num_classes, 1)
    true = read_labels(labels, num_classes, "labels").numpy()
    predicted = read_labels(predictions, num_classes, "predictions").numpy()
    check_lengths(len(predicted), len(true), "predictions", "labels")
    precision, recall, f1, _ = precision_recall_fscore_support(
        true, predicted, labels=np.arange(num_classes), zero_division=np.nan
    )
    return ClassScores(precision, recall, f1)


def mean_scores(scores: Sequence[ClassScores]) -> ClassScores:
    """Average the scores of several seeds, class by class.

    A class that one seed never predicts has no mean precision: a mean over the other seeds would
    not be comparable.

    Args:
        scores: The scores of each seed, at least one, of the same classes.
    """
    fields = ("precision", "recall", "f1")
    return ClassScores(*(np.mean([getattr(s, name) for s in scores], axis=0) for name in fields))
