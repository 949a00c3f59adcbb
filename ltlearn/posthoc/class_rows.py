"""Rows of a classifier, one for each class, computed from features: the start of a training."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ltlearn.errors import check_number, check_whole
from ltlearn.heads.linear import unit_rows
from ltlearn.metrics.rows import check_finite
from ltlearn.posthoc.choose import iterate_blocks, read_features

__all__ = ["class_mean_rows", "class_means", "fit_logistic", "logistic_rows", "some_of_each"]

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
    return unit_rows(class_means(features, targets, num_classes, unit_rows)).float()


def class_means(
    features: Tensor | np.ndarray,
    targets: Tensor,
    num_classes: int,
    transform: Callable[[Tensor], Tensor] = lambda block: block,
) -> Tensor:
    """Return the mean of the transformed features of each class.

    Args:
        features: Features of the training images.
        targets: Their classes.
        num_classes: C, at least 1.
        transform: Maps a block of features, (B, D) float64, to (B, D).

    Shape:
        features is (N, D), any floating dtype, also a memory-mapped array; targets (N,), int64.
        The result is (C, D), float64; zeros for a class without images.

    Raises:
        UserError: If a feature is not finite.
    """
    sums = torch.zeros(num_classes, features.shape[1], dtype=torch.float64)
    for start, block in iterate_blocks(features):
        check_finite(block, start, "features")
        sums.index_add_(0, targets[start : start + len(block)], transform(block))
    counts = torch.bincount(targets, minlength=num_classes)
    return sums / counts.clamp(min=1)[:, None]


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
    check_whole("num_classes", num_classes, 2)
    check_whole("per_class", per_class, 1)
    check_number("scale", scale, 0, above=True)
    features, targets = read_features(features, targets, "features", num_classes)
    chosen = some_of_each(targets.numpy(), per_class, seed)
    x = torch.from_numpy(np.array(features[chosen], dtype=np.float32))
    check_finite(x, 0, "features")
    options = {"fit_intercept": False, "max_iter": _MAX_ITERATIONS, "tol": 1e-3}
    return unit_rows(fit_logistic(unit_rows(x) * scale, targets[chosen], num_classes, **options)[0])


def fit_logistic(
    x: Tensor, targets: Tensor, num_classes: int, **options: Any
) -> tuple[Tensor, Tensor]:
    """Return weight and bias of a logistic regression in which each class counts alike.

    A class without images gets zeros and the smallest bias.

    Args:
        x: Features, of at least two classes.
        targets: Their classes.
        num_classes: C.
        **options: Options of scikit-learn's `LogisticRegression`.

    Shape:
        x is (N, D), float32; targets (N,), int64. The result is (C, D) and (C,), float32.
    """
    # scikit-learn takes a second to import.
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(class_weight="balanced", **options)
    with warnings.catch_warnings():
        # A training goes on from wherever it stops.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(x.numpy(), targets.numpy())
    rows, shift = (
        torch.as_tensor(values, dtype=torch.float32) for values in (model.coef_, model.intercept_)
    )
    if len(model.classes_) == 2:  # scikit-learn has one row for both classes
        rows, shift = torch.cat([-rows, rows]) / 2, torch.cat([-shift, shift]) / 2
    weight = torch.zeros(num_classes, rows.shape[1])
    bias = torch.full((num_classes,), float(shift.min()))
    present = torch.from_numpy(model.classes_)
    weight[present], bias[present] = rows, shift
    return weight, bias


def some_of_each(targets: np.ndarray, per_class: int, seed: int) -> np.ndarray:
    """Return the indices of some images of each class, drawn at random, ascending.

    Args:
        targets: The class of each image, (N,).
        per_class: The most images of a class, at least 1.
        seed: Seed of the choice.
    """
    drawn = np.random.default_rng(seed).permutation(len(targets))
    order = drawn[np.argsort(targets[drawn], kind="stable")]
    ordered = targets[order]
    rank = np.arange(len(order)) - np.searchsorted(ordered, ordered)
    return np.sort(order[rank < per_class])
