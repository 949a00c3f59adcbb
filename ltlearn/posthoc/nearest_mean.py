"""The nearest class mean classifier."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ltlearn.errors import check_whole
from ltlearn.heads.nearest_mean import NearestClassMean
from ltlearn.metrics.rows import check_finite
from ltlearn.posthoc.choose import iterate_blocks, read_features
from ltlearn.posthoc.class_rows import class_means
from ltlearn.posthoc.linear import warn_without_images

__all__ = ["nearest_class_mean"]


def nearest_class_mean(
    features: Tensor | np.ndarray,
    targets: Tensor | Sequence[int],
    num_classes: int,
    centre: bool = True,
    normalize: bool = True,
) -> NearestClassMean:
    """Make a classifier from the mean feature of each class.

    A class without images is never predicted; a warning names it.

    Args:
        features: Features of the training images.
        targets: Their classes.
        num_classes: C, at least 1.
        centre: Whether to subtract the mean over all images first.
        normalize: Whether to divide each feature by its length then. The means themselves are not
            normalised again.

    Shape:
        features is (N, D), any floating dtype, also a memory-mapped array; targets (N,), integer.
        Computed in float64, a block of rows at a time.

    Raises:
        UserError: If the shapes disagree, there is no image, a label is out of range, or a feature
            is not finite.

    Source:
        Kang et al., ICLR 2020, arXiv:1910.09217; centred features of unit length are
        the default of the authors' code.

    Example:
        >>> head = nearest_class_mean(features, targets, num_classes=10)
    """
    check_whole("num_classes", num_classes, 1)
    features, targets = read_features(features, targets, "features", num_classes)
    width = features.shape[1]
    head = NearestClassMean(width, num_classes)
    head.normalize.fill_(bool(normalize))
    mu = torch.zeros(width, dtype=torch.float64)
    for start, block in iterate_blocks(features):
        check_finite(block, start, "features")
        mu += block.sum(0)
    if centre:
        head.centre.copy_(mu / len(targets))
    head.means.copy_(class_means(features, targets, num_classes, head.transform))
    counts = torch.bincount(targets, minlength=num_classes)
    head.has_images.copy_(counts > 0)
    warn_without_images(counts, "it is never predicted")
    return head
