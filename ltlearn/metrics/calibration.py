"""Calibration error, its bins, and negative log-likelihood."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ltlearn.errors import check_whole
from ltlearn.metrics.rows import IntVector, Matrix, check_lengths, read_rows

__all__ = [
    "CalibrationBins",
    "calibration_bins",
    "calibration_error_of",
    "expected_calibration_error",
    "negative_log_likelihood",
]


@dataclass(frozen=True, eq=False)
class CalibrationBins:
    """Confidence and accuracy in bins of equal width between confidence 0 and 1.

    Args:
        images: Number of images in each bin.
        confidence: Mean confidence in each bin, a fraction; NaN in an empty bin.
        accuracy: Share of correct images in each bin; NaN in an empty bin.
        error: The expected calibration error over these bins, a fraction.

    Shape:
        images is an int64 array, confidence and accuracy are float64 arrays, one entry per bin.
    """

    images: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    error: float

    @property
    def edges(self) -> np.ndarray:
        """Return the edges of the bins, one more than there are bins."""
        return np.linspace(0, 1, len(self.images) + 1)


def calibration_bins(confidence: Matrix, correct: Matrix, n_bins: int = 15) -> CalibrationBins:
    """Average confidence and accuracy in the bins of `expected_calibration_error`.

    Args:
        confidence: Probability of the predicted class, a fraction.
        correct: Whether the prediction is correct.
        n_bins: Number of bins between confidence 0 and 1, at least 1. A bin includes its upper
            edge.

    Shape:
        confidence and correct are (N,).

    Raises:
        UserError: If there is no image, the lengths differ, or `n_bins` is below 1.

    Example:
        >>> bins = calibration_bins([0.9, 0.8, 0.6], [True, True, False], n_bins=2)
        >>> bins.images.tolist(), round(bins.error, 3)
        ([0, 3], 0.1)
    """
    check_whole("n_bins", n_bins, 1)
    confidence = torch.as_tensor(confidence, dtype=torch.float64).cpu()
    correct = torch.as_tensor(correct, dtype=torch.bool).cpu()
    check_lengths(len(confidence), len(correct), "confidence", "correct")
    bins = _bins_of(confidence, n_bins).numpy()
    images = np.bincount(bins, minlength=n_bins)
    with np.errstate(invalid="ignore"):
        sure, right = (
            np.bincount(bins, values, n_bins) / images
            for values in (confidence.numpy(), correct.double().numpy())
        )
    error = calibration_error_of(confidence, correct, n_bins)
    return CalibrationBins(images.astype(np.int64), sure, right, error)


def expected_calibration_error(probs: Matrix, target: IntVector, n_bins: int = 15) -> float:
    """Compute the gap between confidence and accuracy, averaged over bins of equal width.

    Args:
        probs: Probabilities, not logits.
        target: The true classes.
        n_bins: Number of bins between confidence 0 and 1, at least 1. A bin includes its upper
            edge.

    Shape:
        probs is (N, C), target (N,), integer. The result is a fraction in [0, 1]: the gaps
        |accuracy - mean confidence| of the bins, each weighted by its share of the N images.

    Raises:
        UserError: If the shapes differ, there is no image, a label is out of range, a row is no
            probability distribution, or `n_bins` is below 1.

    Source:
        Guo et al., ICML 2017, arXiv:1706.04599, eq. 3.
    """
    check_whole("n_bins", n_bins, 1)
    _, confidence, _, correct = read_rows(probs, target, probabilities=True, name="probs")
    return calibration_error_of(confidence, correct, n_bins)


def negative_log_likelihood(probs: Matrix, target: IntVector) -> float:
    """Average -log p of the true class over the images, in nats.

    Args:
        probs: Probabilities, not logits. A zero is replaced by the smallest normal float64 number
            (708 nats), so that one confident mistake does not make the mean infinite.
        target: The true classes.

    Shape:
        probs is (N, C), target (N,), integer. The sum is divided by N.

    Raises:
        UserError: If the shapes differ, there is no image, a label is out of range, or a row is no
            probability distribution.
    """
    _, _, nll, _ = read_rows(probs, target, probabilities=True, name="probs")
    return float(nll.mean())


def calibration_error_of(
    confidence: Tensor, correct: Tensor, n_bins: int, weights: Tensor | None = None
) -> float:
    """Compute the calibration error from the confidence and correctness of each image.

    Args:
        confidence: Probability of the predicted class, (N,), float64.
        correct: Whether the prediction is correct, (N,), bool.
        n_bins: Number of bins.
        weights: Weight of each image, (N,). None weights all images alike.
    """
    bins = _bins_of(confidence, n_bins)
    gap = confidence - correct.double()
    if weights is not None:
        gap = gap * weights
    total = len(confidence) if weights is None else weights.sum()
    return float(torch.bincount(bins, weights=gap, minlength=n_bins).abs().sum() / total)


def _bins_of(confidence: Tensor, n_bins: int) -> Tensor:
    """Return the bin of each image."""
    inner_edges = torch.arange(1, n_bins, dtype=torch.float64) / n_bins
    return torch.bucketize(confidence, inner_edges)  # a bin is (lower, upper]
