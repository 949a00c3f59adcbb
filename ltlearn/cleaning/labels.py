"""Find images whose label is likely wrong."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

__all__ = ["MAX_SHARE", "LabelJudgement", "class_thresholds", "judge_labels"]

# Confidence in the given class, as a share of what is usual in that class, below which a label is
# suspicious. Chosen by benchmarks/clean.py.
MAX_SHARE = 0.25

_Batches = Callable[[], Iterator[tuple[np.ndarray, np.ndarray]]]


@dataclass(frozen=True)
class LabelJudgement:
    """What out-of-sample probabilities state about the labels of N images.

    Args:
        suspicious: Whether the label is likely wrong.
        score: 1 minus the share of the usual confidence that the given class gets, in [0, 1].
        suggested: The likeliest other class.

    Shape:
        All are (N,).
    """

    suspicious: np.ndarray
    score: np.ndarray
    suggested: np.ndarray


def class_thresholds(batches: _Batches, targets: np.ndarray, num_classes: int) -> np.ndarray:
    """Return the mean confidence of each class in its own images, by cleanlab.

    Args:
        batches: Returns an iterator of numbers of images (B,) and probabilities (B, C).
        targets: Class index per image, (N,).
        num_classes: Number of classes, C.

    Shape:
        The result is (C,), float64; 0 for a class without images.
    """
    from cleanlab.experimental.label_issues_batched import LabelInspector

    # The batched form, because the probabilities of all images need not fit into memory.
    inspector = LabelInspector(num_class=num_classes, store_results=False, verbose=False)
    for index, probabilities in batches():
        inspector.update_confident_thresholds(targets[index], probabilities)
    return inspector.get_confident_thresholds(silent=True)


def judge_labels(
    batches: _Batches, targets: np.ndarray, thresholds: np.ndarray, judged: np.ndarray
) -> LabelJudgement:
    """Judge labels by confident learning, in units of what is usual in each class.

    A label is suspicious if its class gets less than a quarter of the confidence that the class has
    in its images on average, another class is at least as confident as it is on average, and the
    given class is not the likeliest one. A rare class gets little confidence everywhere. Its
    average is low as well, so it is not suspected as a whole, as it is by cleanlab's filters.

    Args:
        batches: As for `class_thresholds`.
        targets: Class index per image.
        thresholds: Mean confidence of each class in its own training images.
        judged: Whether a class has enough training images. Other classes are neither suspected nor
            suggested.

    Shape:
        targets is (N,); thresholds and judged are (C,).

    Source:
        Northcutt et al., JAIR 2021, arXiv:1911.00068, for the thresholds. The quarter is ours.
    """
    n = len(targets)
    suspicious, score = np.zeros(n, dtype=bool), np.zeros(n)
    suggested = np.zeros(n, dtype=np.int64)
    thresholds = np.maximum(thresholds, 1e-12)
    for index, p in batches():
        rows, given = np.arange(len(index)), targets[index]
        own = p[rows, given]
        share = own / thresholds[given]
        others = np.where(judged & (p >= thresholds), p, -1)
        others[rows, given] = -1
        best = others.argmax(1)
        top = others[rows, best]
        suspicious[index] = judged[given] & (share < MAX_SHARE) & (top > own)
        score[index], suggested[index] = 1 - np.minimum(share, 1), best
    return LabelJudgement(suspicious, score, suggested)
