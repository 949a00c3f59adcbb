"""The difference in accuracy of two classifiers, with an interval from the paired test images."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import stdtrit
from torch import Tensor

from ltlearn.errors import UserError, check_number, check_whole
from ltlearn.metrics.rows import check_lengths, read_labels, unwrap

__all__ = ["MIN_DECIDING_IMAGES", "PairedDifference", "difference_interval", "paired_difference"]

# An estimate this close to 0 is set to 0, because sums over classes of different sizes have
# rounding errors.
_ROUNDING = 1e-12
# With fewer images that decide the difference, the coverage depends on probabilities that so few
# images do not show. benchmarks/interval_coverage.py measures it.
MIN_DECIDING_IMAGES = 30
# Half a win and half a loss are added to the variance, as Agresti and Min add 0.5 to each cell.
_PSEUDO_IMAGES = 1.0
# The variance of a class is averaged with the pooled variance, which counts like one more image.
_POOLED_WEIGHT = 1.0


@dataclass(frozen=True)
class PairedDifference:
    """The difference in accuracy of two classifiers, a - b, as fractions in [-1, 1].

    Args:
        estimate: The difference on the test set.
        low: Lower end of the interval; None if the images are too few for an interval.
        high: Upper end of the interval; None if the images are too few for an interval.
        level: Share of test sets for which the interval holds the true difference.
        balanced: Whether accuracy is the mean of the per-class accuracies; else the mean over
            images.
        n_images: Number of test images.
        n_seeds: Number of trainings that are averaged. From two on, the interval covers the
            choice of the seed too.
        n_deciding: Number of images that decide the variance: n_images if all have equal weight,
            fewer if the images of some classes have most of it.
        reason: Why there is no interval; empty if there is one.
    """

    estimate: float
    low: float | None
    high: float | None
    level: float
    balanced: bool
    n_images: int
    n_seeds: int
    n_deciding: float
    reason: str = ""

    @property
    def excludes_zero(self) -> bool:
        """Return whether the interval lies on one side of 0; False without an interval."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def paired_difference(
    correct_a: Tensor | np.ndarray,
    correct_b: Tensor | np.ndarray,
    targets: Tensor | np.ndarray,
    num_classes: int,
    *,
    level: float = 0.95,
    balanced: bool = True,
) -> PairedDifference:
    """Estimate how much more accurate a is than b, with an interval.

    Both classify the same images, so the interval rests on the difference of each image. This
    removes the part of the variance that images hard for both would cause. See
    `difference_interval` for the interval.

    Args:
        correct_a: Whether a is correct, for each image.
        correct_b: The same for b.
        targets: The true classes.
        num_classes: C, at least 1.
        level: Share of test sets for which the interval holds the true difference, in (0, 1).
        balanced: Whether all classes have equal weight (the mean of the per-class accuracies); else
            all images have.

    Shape:
        correct_a and correct_b are (N,), or (S, N) for S training seeds, bool or 0 and 1; row s of
        both belongs to the same seed. targets is (N,), integer.

    Raises:
        UserError: If the shapes differ, there is no image, a value is neither 0 nor 1, a label is
            out of range, or an option is not allowed.

    Example:
        >>> targets = torch.arange(90) % 2
        >>> correct_a = torch.ones(90, dtype=torch.bool)
        >>> difference = paired_difference(correct_a, targets == 0, targets, num_classes=2)
        >>> difference.estimate, difference.excludes_zero
        (0.5, True)
    """
    check_whole("num_classes", num_classes, 1)
    check_number("level", level, 0, 1, above=True, below=True)
    hits_a, hits_b = _hits(correct_a, "correct_a"), _hits(correct_b, "correct_b")
    if hits_a.shape != hits_b.shape:
        raise UserError(
            f"correct_a has shape {hits_a.shape} and correct_b {hits_b.shape}, as (seeds, images); "
            "both must have the same images and the same number of seeds."
        )
    labels = read_labels(targets, num_classes, "targets").numpy()
    check_lengths(hits_a.shape[1], len(labels), "correct_a", "targets")
    return difference_interval(hits_a - hits_b, labels, level, balanced)


def difference_interval(
    differences: np.ndarray, labels: np.ndarray, level: float = 0.95, balanced: bool = True
) -> PairedDifference:
    """Compute the mean difference and its interval from the differences of the images.

    The images are a stratified sample: the variance of the balanced difference is the sum over
    classes of variance / images. A few images show little of the variance of their class, so each
    class's variance is averaged with a pooled one, in which a class has the weight that it has in
    the sum. The pooled variance includes the differences between classes, so it is rather too large
    than too small. Half an imagined win and half an imagined loss keep the interval from having no
    width. The quantile is Student's t with Satterthwaite's degrees of freedom.

    If a few images have most of the weight, for example the images of classes with one image, no
    procedure works: below `MIN_DECIDING_IMAGES` images that decide, there is no interval.

    With several seeds, the differences are averaged over the seeds. The variance over seeds beyond
    the part that the choice of images explains is added, with the t quantile of its few degrees of
    freedom. The interval is never narrower than the t interval of the seeds alone.

    Args:
        differences: How much more often a is correct than b, for each seed and image, in [-1, 1].
        labels: The true classes; a class without test images is left out.
        level: Share of test sets for which the interval holds the true difference, in (0, 1).
        balanced: Whether all classes have equal weight; else all images have.

    Shape:
        differences is (S, N) with S and N at least 1, labels (N,).

    Source:
        Cochran, "Sampling Techniques", 1977, sections 5.4 (stratified means and degrees of
        freedom) and 5A.12 (collapsed strata). Agresti and Min, Statistics in Medicine 24, 2005
        (imagined disagreements of paired proportions).
    """
    strata = labels if balanced else np.zeros_like(labels)
    kinds, strata = np.unique(strata, return_inverse=True)
    sample = _Sample(differences.astype(np.float64), strata, np.bincount(strata), len(kinds))
    estimate, deciding, reason = sample.estimate, sample.n_deciding, ""
    low = high = None
    # A sum of weights such as 1/10 may miss a whole number by rounding.
    if deciding + _ROUNDING < MIN_DECIDING_IMAGES:
        reason = (
            f"about {deciding:.0f} of the {len(labels):,} images decide the difference; an "
            f"interval needs {MIN_DECIDING_IMAGES}"
        )
    else:
        margin = sample.margin((1 + level) / 2)
        low, high = max(-1.0, estimate - margin), min(1.0, estimate + margin)
    seeds, images = differences.shape
    return PairedDifference(
        estimate=estimate,
        low=low,
        high=high,
        level=float(level),
        balanced=bool(balanced),
        n_images=images,
        n_seeds=seeds,
        n_deciding=deciding,
        reason=reason,
    )


@dataclass
class _Sample:
    """The differences of the images in each class.

    Args:
        rows: The differences, (S, N).
        strata: The class of each image, 0 to H-1, (N,).
        counts: Images of each class, at least 1, (H,).
        num: H.
    """

    rows: np.ndarray
    strata: np.ndarray
    counts: np.ndarray
    num: int

    def __post_init__(self):
        """Compute the weight of an image of each class: the weights of all images sum to 1."""
        self.weights = 1 / (self.num * self.counts)
        self.mean = self.rows.mean(0)
        # Each class's share in the variance, if all classes had variance 1.
        self.shares = self.counts * self.weights**2
        self.fourth = self.counts * self.weights**4

    @property
    def estimate(self) -> float:
        """Return the mean over classes of the mean difference."""
        value = float(self._class_means(self.mean).mean())
        return 0.0 if abs(value) < _ROUNDING else value

    @property
    def n_deciding(self) -> float:
        """Return the number of images that decide; N if all classes have as many images."""
        return float(self.shares.sum() ** 2 / self.fourth.sum())

    def margin(self, quantile: float) -> float:
        """Return half the width of the interval."""
        variance, freedom = self._image_variance()
        margin = stdtrit(freedom, quantile) ** 2 * variance
        seeds = len(self.rows)
        if seeds > 1:
            weight = self.weights[self.strata]
            of_seeds = (self.rows @ weight).var(ddof=1) / seeds
            # An image on which the seeds disagree makes the means of the seeds differ, and is in
            # the variance over images already.
            by_images = float((weight**2) @ self.rows.var(0, ddof=1)) / seeds
            t = stdtrit(seeds - 1, quantile) ** 2
            margin = max(margin + t * max(0.0, of_seeds - by_images), t * of_seeds)
        return float(np.sqrt(margin))

    def _image_variance(self) -> tuple[float, float]:
        """Return the variance of the estimate over test sets, and its degrees of freedom."""
        n, shares, deciding = self.counts, self.shares, self.n_deciding
        means, squares = self._class_means(self.mean), self._class_means(self.mean**2)
        own = np.maximum(squares - means**2, 0) * n / np.maximum(n - 1, 1)
        part = shares / shares.sum()
        pooled = max(part @ squares - (part @ means) ** 2, 0) * deciding / (deciding - 1)
        lent = _POOLED_WEIGHT / (n - 1 + _POOLED_WEIGHT)  # 1 for a class with one image
        # The weight of the imagined images is a mean over the images, by their share.
        imagined = self.fourth.sum() / shares.sum()
        from_own = (1 - lent) * own * shares
        from_pooled = pooled * (lent @ shares)
        variance = from_own.sum() + from_pooled + _PSEUDO_IMAGES * imagined
        spread = (from_own**2 / np.maximum(n - 1, 1)).sum() + from_pooled**2 / (deciding - 1)
        freedom = variance**2 / spread if spread else np.inf
        # Satterthwaite's formula assumes normal differences. Where nearly all are 0, the variance
        # is known only as well as the disagreements can be counted.
        disagreeing = squares @ shares + _PSEUDO_IMAGES * imagined
        fourth = self._class_means(self.mean**4) @ self.fourth + _PSEUDO_IMAGES * imagined**2
        return float(variance), float(max(1.0, min(freedom, 2 * disagreeing**2 / fourth)))

    def _class_means(self, values: np.ndarray) -> np.ndarray:
        return np.bincount(self.strata, values, self.num) / self.counts


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
