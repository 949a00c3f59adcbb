"""Losses, one per module; each imports torch alone."""

from ltlearn.losses.balanced_softmax import BalancedSoftmaxLoss
from ltlearn.losses.class_balanced import (
    ClassBalancedBCELoss,
    ClassBalancedLoss,
    effective_number_weights,
)
from ltlearn.losses.counted import CountedLoss
from ltlearn.losses.cross_entropy import CrossEntropy
from ltlearn.losses.experts import BalPoELoss, SADELoss
from ltlearn.losses.focal import SigmoidFocalLoss, SoftmaxFocalLoss
from ltlearn.losses.label_aware_smoothing import LabelAwareSmoothingLoss
from ltlearn.losses.ldam import LDAMLoss
from ltlearn.losses.logit_adjusted import LogitAdjustedLoss

__all__ = [
    "BalPoELoss",
    "BalancedSoftmaxLoss",
    "ClassBalancedBCELoss",
    "ClassBalancedLoss",
    "CountedLoss",
    "CrossEntropy",
    "LDAMLoss",
    "LabelAwareSmoothingLoss",
    "LogitAdjustedLoss",
    "SADELoss",
    "SigmoidFocalLoss",
    "SoftmaxFocalLoss",
    "effective_number_weights",
]
