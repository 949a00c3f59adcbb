"""The difference in accuracy of two classifiers, by a paired bootstrap over the test images."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from ltlearn.errors import UserError, check_number, check_whole
from ltlearn.metrics.rows import check_lengths, read_labels, unwrap

__all__ = ["PairedDifference", "paired_difference"]

# An end of the interval this close to 0 is set to 0, because sums over classes of different sizes
# have rounding errors.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class PairedDifference:
    """The difference in accuracy of two classifiers, a - b, as fractions in [-1, 1].

    Args:
        estimate: The difference on the test set.
        low: Lower end of the interval.
        high: Upper end of the interval.
        level: Share of the resamples within the interval.
        balanced: Whether accuracy is the mean of the per-class accuracies; else the mean over
            images.
        n_images: Number of test images.
        n_seeds: Number of training seeds averaged.
        n_resamples: Number of bootstrap resamples.
    """

    estimate: float
    low: float
    high: float
    level: float
    balanced: bool
    n_images: int
    n_seeds: int
    n_resamples: int

    @property
    def excludes_zero(self) -> bool:
        """Return whether the interval lies on one side of 0; an end at 0 does not exclude 0."""
        return self.low > 0 or self.high < 0


def paired_difference(
    correct_a: Tensor | np.ndarray,
    correct_b: Tensor | np.ndarray,
    targets: Tensor | np.ndarray,
    num_classes: int,
    n_resamples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
    balanced: bool = True,
) -> PairedDifference:
    """Estimate how much more accurate a is than b, with a percentile interval.

    Both classify the same images, so the bootstrap resamples the difference of each image. This
    removes the part of the variance that images hard for both would cause. With several training
    seeds, the difference of an image is first averaged over the seeds. The interval then covers
    the choice of the test images, not the choice of the seeds; for the latter, look at the spread
    over seeds.

    The balanced difference is resampled within each class; a class without test images is left
    out. Images of one class with equal differences are interchangeable, so a resample draws the
    number of images of each kind; this has the same distribution as drawing image by image.

    Args:
        correct_a: Whether a is correct, for each image.
        correct_b: The same for b.
        targets: The true classes.
        num_classes: C, at least 1.
        n_resamples: Number of bootstrap resamples, at least 1.
        seed: Seed of the resamples, at least 0.
        level: Share of the resamples within the interval, in (0, 1).
        balanced: Whether all classes have equal weight (the mean of the per-class accuracies); else
            all images have.

    Shape:
        correct_a and correct_b are (N,), or (S, N) for S training seeds, bool or 0 and 1; targets
        is (N,), integer.

    Raises:
        UserError: If the shapes differ, there is no image, a value is neither 0 nor 1, a label is
            out of range, or an option is not allowed.

    Source:
        Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13 (percentiles).

    Example:
        >>> targets = torch.tensor([0, 0, 1, 1])
        >>> correct_a = torch.tensor([True, True, True, True])
        >>> correct_b = torch.tensor([True, False, False, False])
        >>> difference = paired_difference(correct_a, correct_b, targets, num_classes=2)
        >>> difference.estimate, difference.excludes_zero
        (0.75, True)
    """
    check_whole("num_classes", num_classes, 1)
    check_whole("n_resamples", n_resamples, 1)
    check_whole("seed", seed, 0)
    check_number("level", level, 0, 1, above=True, below=True)
    hits_a, hits_b = _hits(correct_a, "correct_a"), _hits(correct_b, "correct_b")
    if hits_a.shape != hits_b.shape:
        raise UserError(
            f"correct_a has shape {hits_a.shape} and correct_b {hits_b.shape}, as (seeds, images); "
            "both must have the same images and the same number of seeds."
        )
    seeds, images = hits_a.shape
    target = read_labels(targets, num_classes, "targets").numpy()
    check_lengths(images, len(target), "correct_a", "targets")
    # The unit is 1 / seeds: whole numbers from -seeds to seeds, so that sums are exact.
    difference = hits_a.sum(0) - hits_b.sum(0)
    group = target if balanced else np.zeros_like(target)
    kinds = np.zeros((num_classes, 2 * seeds + 1), dtype=np.int64)
    np.add.at(kinds, (group, difference + seeds), 1)
    kinds = kinds[kinds.sum(1) > 0]
    value = np.arange(-seeds, seeds + 1)
    scale = len(kinds) * seeds
    estimate = (kinds @ value / kinds.sum(1)).sum() / scale
    resampled = _resample(kinds, value, n_resamples, np.random.default_rng(seed)) / scale
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return PairedDifference(
        estimate=_snap(estimate),
        low=_snap(low),
        high=_snap(high),
        level=float(level),
        balanced=bool(balanced),
        n_images=images,
        n_seeds=seeds,
        n_resamples=int(n_resamples),
    )


def _resample(
    kinds: np.ndarray, value: np.ndarray, n_resamples: int, rng: np.random.Generator
) -> np.ndarray:
    """Return the sum over classes of the resampled mean value, (B,).

    Args:
        kinds: Number of images of each class by value, (C, V).
        value: The values, (V,).
        n_resamples: B.
        rng: The random generator.
    """
    total = np.zeros(n_resamples)
    # The sum over k classes with equal counts is one multinomial draw of k times as many images.
    # For thousands of classes with a few images each, this leaves a few dozen draws.
    for counts, k in zip(*np.unique(kinds, axis=0, return_counts=True), strict=True):
        n, present = counts.sum(), counts > 0
        drawn = rng.multinomial(k * n, counts[present] / n, size=n_resamples)
        total += drawn @ value[present] / n
    return total


def _hits(correct: Any, name: str) -> np.ndarray:
    """Read the correctness of the images as whole numbers, (S, N)."""
    hits = unwrap(correct)
    hits = hits.cpu().numpy() if isinstance(hits, Tensor) else hits
    if hits.ndim not in (1, 2) or not hits.size:
        raise UserError(
            f"{name} has shape {hits.shape}; it must be (images,) or (seeds, images), not empty."
        )
    if hits.dtype.kind not in "biuf" or not np.isin(hits, (0, 1)).all():
        raise UserError(f"{name} must hold True and False, or 1 and 0, for each image.")
    return np.atleast_2d(hits).astype(np.int64)


def _snap(value: float) -> float:
    return 0.0 if abs(value) < _ROUNDING else float(value)
