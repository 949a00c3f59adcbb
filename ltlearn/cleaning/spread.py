"""The median and the spread that are usual in each class."""

from collections.abc import Iterator

import numpy as np

__all__ = ["PRIOR_IMAGES", "median_and_spread", "rows_by_class"]

PRIOR_IMAGES = 20  # images that the spread of all classes counts like in the one of a class
_TO_DEVIATION = 1.4826  # median absolute deviation of a normal distribution to its standard one


def median_and_spread(values: np.ndarray) -> tuple[float, float]:
    """Return the median, and the robust standard deviation.

    Args:
        values: Numbers, at least one.
    """
    median = float(np.median(values))
    return median, float(np.median(np.abs(values - median))) * _TO_DEVIATION


def rows_by_class(targets: np.ndarray, counts: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield each class that has images, and the rows of its images.

    Args:
        targets: Class index per image, (N,).
        counts: Images per class, (C,).
    """
    order = np.argsort(targets, kind="stable")
    ends = np.cumsum(counts)
    for c in np.flatnonzero(counts):
        yield int(c), order[ends[c] - counts[c] : ends[c]]
