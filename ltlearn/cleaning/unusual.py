"""Find images whose features are far from those of their class."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from ltlearn.cleaning.spread import PRIOR_IMAGES, median_and_spread, rows_by_class
from ltlearn.training.features import Features

__all__ = ["MIN_IMAGES", "Unusual", "judge_distances"]

MIN_IMAGES = 5  # a class with fewer images has no spread to compare with
MAX_SCORE = 3.0  # about 1 % of ordinary images are above, see benchmarks/clean.py
_READ = 4096  # images at a time


@dataclass(frozen=True)
class Unusual:
    """How far N images are from their class.

    Args:
        score: Distance above the median of the class, in robust standard deviations; NaN where the
            class has too few images.
        found: Whether the score is above the limit.

    Shape:
        Both are (N,).
    """

    score: np.ndarray
    found: np.ndarray


def judge_distances(features: Features, num_classes: int) -> Unusual:
    """Compare the distance of each image from its class with the distances of the others.

    The distance is the one of two unit vectors: the features of an image, and the mean direction of
    its class without the image. Features are centred first. Median and spread are those of the
    class, and the spread is drawn towards the one of all classes where images are few.

    Args:
        features: Features of a part, with targets.
        num_classes: Number of classes.
    """
    targets = features.targets.numpy()
    counts = np.bincount(targets, minlength=num_classes)
    distance = _distances(features, counts)
    enough = counts >= MIN_IMAGES
    medians, spreads = np.zeros(num_classes), np.zeros(num_classes)
    for c, of_class in rows_by_class(targets, counts):
        if enough[c]:
            medians[c], spreads[c] = median_and_spread(distance[of_class])
    score = np.full(len(targets), np.nan)
    if enough.any():
        common = np.average(spreads[enough], weights=counts[enough])
        shrunk = (counts * spreads + PRIOR_IMAGES * common) / (counts + PRIOR_IMAGES)
        judged = enough[targets]
        of_class = targets[judged]
        # Features without any spread have no unusual image.
        score[judged] = (distance[judged] - medians[of_class]) / np.maximum(shrunk[of_class], 1e-6)
    with np.errstate(invalid="ignore"):
        return Unusual(score, score > MAX_SCORE)


def _distances(features: Features, counts: np.ndarray) -> np.ndarray:
    """Return the distance of each image from its class, (N,), float64, in [0, 2]."""
    blocks = [np.arange(k, min(k + _READ, len(features))) for k in range(0, len(features), _READ)]
    centre = sum(features.get_batch(i)[0].double().sum(0) for i in blocks) / len(features)
    centre = centre.float()
    sums = torch.zeros(len(counts), len(centre))
    for index in blocks:
        x, y = features.get_batch(index)
        sums.index_add_(0, y, F.normalize(x - centre, dim=1))
    distance = np.zeros(len(features))
    for index in blocks:
        x, y = features.get_batch(index)
        x = F.normalize(x - centre, dim=1)
        cosine = F.cosine_similarity(sums[y] - x, x, dim=1).double()
        distance[index] = (2 - 2 * cosine).clamp(min=0).sqrt().numpy()
    return distance
