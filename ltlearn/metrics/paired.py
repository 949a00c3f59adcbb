"""Is one classifier better than another? The paired bootstrap over the test images."""

from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
from torch import Tensor

from ltlearn.errors import UserError, check_whole
from ltlearn.metrics.rows import check_lengths, read_labels, unwrap

__all__ = ["PairedDifference", "paired_difference"]

# An interval's end this near to 0 is 0: sums over classes of unlike sizes are rounded.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class PairedDifference:
    """Hold the difference in accuracy of two classifiers, a - b, as fractions in [-1, 1].

    Args:
        estimate: The difference on the test images as they are.
        low: Lower end of the interval.
        high: Upper end.
        level: Share of the resamples that the interval holds.
        balanced: Whether accuracy is the mean of the per-class accuracies, or that over images.
        n_images: Test images.
        n_seeds: Training seeds that were averaged.
        n_resamples: Bootstrap resamples.
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
        """Return whether the interval lies on one side of 0 (an end at 0 does not exclude it)."""
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

    Both classify the same images, so what is resampled is the difference of each image; what makes
    an image hard for both drops out. With several training seeds the difference of an image is
    first averaged over the seeds: the interval then says what another test set of the same kind
    would do to the result, not what other seeds would; for that, look at the spread over seeds.

    The balanced difference is resampled within each class; a class without test images is left
    out. Images of a class that have the same difference are alike, so a resample is drawn as how
    many there are of each kind, which has the same distribution as drawing image by image.

    Args:
        correct_a: Whether a was right, for each image.
        correct_b: The same for b.
        targets: The true classes.
        num_classes: C, at least 1.
        n_resamples: Bootstrap resamples, at least 1.
        seed: Of the resamples, at least 0.
        level: Share of the resamples within the interval, in (0, 1).
        balanced: Whether every class counts alike (the mean of the per-class accuracies), or every
            image.

    Shape:
        correct_a and correct_b are (N,), or (S, N) for S training seeds on the same images, bool or
        0 and 1; targets is (N,), integer.

    Raises:
        UserError: If the shapes disagree, there is no image, a value is neither 0 nor 1, a label is
            out of range, or an option is not allowed.

    Source:
        Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13 (percentiles).
    """
    check_whole("num_classes", num_classes, 1)
    check_whole("n_resamples", n_resamples, 1)
    check_whole("seed", seed, 0)
    if not isinstance(level, Real) or isinstance(level, bool) or not 0 < level < 1:
        raise UserError(f"level must be a number between 0 and 1, got {level!r}.")
    hits_a, hits_b = _hits(correct_a, "correct_a"), _hits(correct_b, "correct_b")
    if hits_a.shape != hits_b.shape:
        raise UserError(
            f"correct_a has shape {hits_a.shape} and correct_b {hits_b.shape}, as (seeds, images); "
            "both must be of the same images and as many seeds."
        )
    seeds, images = hits_a.shape
    target = read_labels(targets, num_classes, "targets").numpy()
    check_lengths(images, len(target), "correct_a", "targets")
    # In units of 1 / seeds: whole numbers from -seeds to seeds, so that sums are exact.
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
        kinds: Images of each class by value, (C, V).
        value: The values, (V,).
        n_resamples: B.
        rng: Where chance is from.
    """
    total = np.zeros(n_resamples)
    # k classes with the same counts draw, taken together, a multinomial of k times as many images:
    # of thousands of classes with a few images each, a few dozen draws are left.
    for counts, k in zip(*np.unique(kinds, axis=0, return_counts=True), strict=True):
        n, present = counts.sum(), counts > 0
        drawn = rng.multinomial(k * n, counts[present] / n, size=n_resamples)
        total += drawn @ value[present] / n
    return total


def _hits(correct: Any, name: str) -> np.ndarray:
    """Read which images were right as whole numbers, (S, N)."""
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
