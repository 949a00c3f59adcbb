"""A direction for each class, computed from features: what a cosine classifier can begin with."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ltlearn.errors import check_number, check_whole
from ltlearn.heads.linear import unit_rows
from ltlearn.metrics.rows import check_finite
from ltlearn.posthoc.choose import iterate_blocks, read_features

__all__ = ["class_mean_rows", "logistic_rows"]

_MAX_ITERATIONS = 200


def class_mean_rows(
    features: Tensor | np.ndarray, targets: Tensor | Sequence[int], num_classes: int
) -> Tensor:
    """Return the mean of the normalised features of each class, normalised again.

    Args:
        features: Features of the training images.
        targets: Their classes.
        num_classes: C, at least 1.

    Shape:
        features is (N, D), any floating dtype, also a memory-mapped array; targets (N,), integer.
        The result is (C, D), float32; zeros for a class without images.

    Raises:
        UserError: If the shapes disagree, there is no image, a label is out of range, or a feature
            is not finite.

    Source:
        Shi et al., ICML 2024, arXiv:2309.10019 (one of its initialisations of the classifier).

    Example:
        >>> head.weight.data = class_mean_rows(features, targets, num_classes=10)
    """
    check_whole("num_classes", num_classes, 1)
    features, targets = read_features(features, targets, "features", num_classes)
    sums = torch.zeros(num_classes, features.shape[1], dtype=torch.float64)
    for start, block in iterate_blocks(features):
        check_finite(block, start, "features")
        sums.index_add_(0, targets[start : start + len(block)], unit_rows(block))
    return unit_rows(sums).float()


def logistic_rows(
    features: Tensor | np.ndarray,
    targets: Tensor | Sequence[int],
    num_classes: int,
    scale: float = 25.0,
    per_class: int = 100,
    seed: int = 0,
) -> Tensor:
    """Return the normalised weights of a balanced logistic regression on normalised features.

    Each class counts alike, whatever its number of images. There is no bias, because a cosine
    classifier has none.

    Args:
        features: Features of the training images.
        targets: Their classes.
        num_classes: C, at least 2.
        scale: Length of the features that the regression gets, above 0, no unit.
        per_class: Most features that are used of a class, at least 1.
        seed: Seed of the choice of these features.

    Shape:
        features is (N, D), any floating dtype, also a memory-mapped array; targets (N,), integer.
        The result is (C, D), float32; zeros for a class without images.

    Raises:
        UserError: If the shapes disagree, there is no image, a label is out of range, or a feature
            is not finite.

    Source:
        Shi et al., ICML 2024, arXiv:2309.10019 (one of its initialisations of the classifier).
    """
    from sklearn.linear_model import LogisticRegression

    check_whole("num_classes", num_classes, 2)
    check_whole("per_class", per_class, 1)
    check_number("scale", scale, 0, above=True)
    features, targets = read_features(features, targets, "features", num_classes)
    chosen = _some_of_each(targets.numpy(), per_class, seed)
    few, labels = features[chosen], targets[chosen].numpy()
    x = torch.from_numpy(np.array(few, dtype=np.float32))
    check_finite(x, 0, "features")
    rows = torch.zeros(num_classes, x.shape[1])
    present = np.unique(labels)
    if len(present) == 1:  # a regression needs two classes
        return class_mean_rows(features, targets, num_classes)
    fit = LogisticRegression(
        class_weight="balanced", fit_intercept=False, max_iter=_MAX_ITERATIONS, tol=1e-3
    )
    fit.fit((unit_rows(x) * scale).numpy(), labels)
    weight = torch.from_numpy(np.asarray(fit.coef_, dtype=np.float32))
    if len(present) == 2:  # one row, for the second class against the first
        weight = torch.cat([-weight, weight])
    rows[torch.from_numpy(present)] = F.normalize(weight, dim=1)
    return rows


def _some_of_each(targets: np.ndarray, per_class: int, seed: int) -> np.ndarray:
    """Return the indices of up to `per_class` images of each class, drawn at random, ascending."""
    drawn = np.random.default_rng(seed).permutation(len(targets))
    order = drawn[np.argsort(targets[drawn], kind="stable")]
    ordered = targets[order]
    rank = np.arange(len(order)) - np.searchsorted(ordered, ordered)
    return np.sort(order[rank < per_class])
