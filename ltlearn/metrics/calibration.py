"""Calibration error and negative log-likelihood."""

import torch
from torch import Tensor

from ltlearn.errors import check_whole
from ltlearn.metrics.rows import IntVector, Matrix, read_rows

__all__ = ["expected_calibration_error", "negative_log_likelihood", "calibration_error_of"]


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
    inner_edges = torch.arange(1, n_bins, dtype=torch.float64) / n_bins
    bins = torch.bucketize(confidence, inner_edges)  # a bin is (lower, upper]
    gap = confidence - correct.double()
    if weights is not None:
        gap = gap * weights
    total = len(confidence) if weights is None else weights.sum()
    return float(torch.bincount(bins, weights=gap, minlength=n_bins).abs().sum() / total)
