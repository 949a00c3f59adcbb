"""Find images whose label is likely wrong."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ltlearn.cleaning.spread import PRIOR_IMAGES, median_and_spread, rows_by_class

__all__ = ["MAX_SCORE", "LabelJudgement", "UsualConfidence", "read_confidence"]

# Chosen on planted errors, see benchmarks/clean.py.
MAX_SCORE = 2.0
_MIN_IMAGES = 30  # a smaller part has no median and no spread of its own
_LEAST = 1e-7  # probability, so that its logit is finite


@dataclass(frozen=True)
class LabelJudgement:
    """What out-of-sample probabilities state about the labels of N images.

    Args:
        suspicious: Whether the label is likely wrong.
        score: How far the confidence in the label is below what is usual in its class, in robust
            standard deviations of its logit.
        suggested: The likeliest other class.

    Shape:
        All are (N,).
    """

    suspicious: np.ndarray
    score: np.ndarray
    suggested: np.ndarray


@dataclass(frozen=True)
class _Confidence:
    """Probabilities of N images, reduced to what judges their labels.

    Args:
        own: Probability of the given class.
        other: The largest probability of another class.
        suggested: That class.
    """

    own: np.ndarray
    other: np.ndarray
    suggested: np.ndarray


def read_confidence(
    batches: Iterable[tuple[np.ndarray, np.ndarray]],
    targets: np.ndarray,
    judged: np.ndarray,
    inspector=None,
) -> _Confidence:
    """Reduce probabilities, which come in batches, to three numbers per image.

    Args:
        batches: Numbers of images (B,) and probabilities (B, C), each image once.
        targets: Class index per image, (N,).
        judged: Whether a class has enough training images; others are not suggested. (C,).
        inspector: cleanlab's `LabelInspector`, which is shown each batch; None for none.
    """
    n = len(targets)
    own, other, suggested = np.zeros(n), np.zeros(n), np.zeros(n, dtype=np.int64)
    for index, p in batches:
        rows, given = np.arange(len(index)), targets[index]
        if inspector is not None:
            inspector.update_confident_thresholds(given, p)
        own[index] = p[rows, given]
        others = np.where(judged, p, -1)
        others[rows, given] = -1
        suggested[index] = others.argmax(1)
        other[index] = others.max(1)
    return _Confidence(own, other, suggested)


class UsualConfidence:
    """The confidence that is usual in each class, by cross-validation on the training images.

    A rare class gets little confidence everywhere. So the confidence in a label is compared with
    the average of its class, as confident learning does, in units of the spread of its logits. With
    cleanlab's filters, which count on the likeliest class, rare classes are suspected as a whole.

    Args:
        batches: Numbers of training images (B,) and their probabilities (B, C), each image once.
        targets: Class index per training image, (N,).
        judged: Whether a class has enough training images. Labels of other classes are neither
            suspected nor suggested. (C,).

    Source:
        Northcutt et al., JAIR 2021, arXiv:1911.00068, for the average of a class; the spread and
        the limit are ours.
    """

    def __init__(
        self,
        batches: Iterable[tuple[np.ndarray, np.ndarray]],
        targets: np.ndarray,
        judged: np.ndarray,
    ):
        from cleanlab.experimental.label_issues_batched import LabelInspector

        self.judged, num_classes = judged, len(judged)
        # The batched form, because the probabilities of all images need not fit into memory.
        inspector = LabelInspector(num_class=num_classes, store_results=False, verbose=False)
        self.training = read_confidence(batches, targets, judged, inspector)
        self.average = inspector.get_confident_thresholds(silent=True)
        distance = _logit(self.training.own) - _logit(self.average)[targets]
        self.median, self.spread = median_and_spread(distance)
        counts = np.bincount(targets, minlength=num_classes)
        spreads = np.full(num_classes, self.spread)
        for c, of_class in rows_by_class(targets, counts):
            own = median_and_spread(distance[of_class])[1]
            weighted = counts[c] * own + PRIOR_IMAGES * self.spread
            # Where wrong labels abound they widen the spread, and would hide behind it.
            spreads[c] = min(weighted / (counts[c] + PRIOR_IMAGES), self.spread)
        self.spreads = np.maximum(spreads, 1e-6)

    def judge(self, confidence: _Confidence, targets: np.ndarray) -> LabelJudgement:
        """Judge labels. One is suspicious if its score is above 2 and another class is likelier.

        Args:
            confidence: `training`, or what `read_confidence` returned for another part.
            targets: Class index per image, (N,).
        """
        distance = _logit(confidence.own) - _logit(self.average)[targets]
        median, scale = self.median, 1.0
        if confidence is not self.training and len(targets) >= _MIN_IMAGES:
            # A backbone fits other images less well than those it was trained on.
            median, spread = median_and_spread(distance)
            scale = max(1.0, spread / max(self.spread, 1e-6))
        score = (median - distance) / (self.spreads[targets] * scale)
        likelier = confidence.other > confidence.own
        return LabelJudgement(
            self.judged[targets] & likelier & (score > MAX_SCORE), score, confidence.suggested
        )


def _logit(p: np.ndarray) -> np.ndarray:
    p = np.clip(p.astype(np.float64), _LEAST, 1 - _LEAST)
    return np.log(p) - np.log1p(-p)
