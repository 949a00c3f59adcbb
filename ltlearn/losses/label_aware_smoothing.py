"""Label-aware smoothing: stronger smoothing of targets from classes with more images."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ltlearn.errors import UserError, check_choice, check_number
from ltlearn.losses.counted import CountedLoss

__all__ = ["LabelAwareSmoothingLoss"]

SHAPES = ("concave", "linear", "convex", "power")


class LabelAwareSmoothingLoss(CountedLoss):
    """Cross-entropy with smoothed targets: weak smoothing of tail classes, strong of head classes.

    (1 - e_y) (-log p_y) + e_y mean over c of (-log p_c). With v = (n_y - n_min) / (n_max - n_min),
    the smoothing e_y goes from `tail_smoothing` at v = 0 to `head_smoothing` at v = 1; n_min is the
    smallest count above 0. With equal counts every class has `tail_smoothing`; if that is 0, the
    loss equals cross-entropy. A class without training images also has `tail_smoothing`, and stays
    among the C classes of the mean.

    Args:
        class_counts: Training images per class; None waits for `set_class_counts`.
        head_smoothing: Probability taken from a target of the largest class, in [0, 1).
        tail_smoothing: Probability taken from a target of the smallest class, in [0, 1).
        shape: Shape of e_y between tail and head. "concave": sin(pi v / 2). "linear": v.
            "convex": 1 - cos(pi v / 2). "power": v ** power.
        power: Exponent of v, above 0, for shape "power"; None for the other shapes.
        reduction: "mean", "sum" or "none".

    Shape:
        Logits (N, C), any floating dtype; targets (N,), class indices. The result is a scalar, or
        (N,) with reduction "none". A mean divides by N, or by the sum of the targets' weights if
        there are class weights.

    Raises:
        UserError: If counts or an option are not allowed.

    Source:
        Zhong et al., CVPR 2021, arXiv:2104.00466 (MiSLAS); as in the authors' code, the smoothed
        part is uniform over all C classes, including the target's class. Departure: equal counts
        and classes without images are allowed.

    Example:
        >>> learn.retrain_classifier(10, loss=LabelAwareSmoothingLoss(head_smoothing=0.3))
    """

    _without_images = "it is smoothed like the smallest class"
    _derived = ("smoothing",)
    _shown = ("head_smoothing", "tail_smoothing", "shape", "power")

    smoothing: Tensor

    def __init__(
        self,
        class_counts: Tensor | Sequence[float] | None = None,
        head_smoothing: float = 0.3,
        tail_smoothing: float = 0.0,
        shape: str = "concave",
        power: float | None = None,
        reduction: str = "mean",
    ):
        super().__init__(reduction)
        check_number("head_smoothing", head_smoothing, 0, 1, below=True)
        check_number("tail_smoothing", tail_smoothing, 0, 1, below=True)
        check_choice("shape", shape, SHAPES)
        if shape == "power":
            check_number("power", power, 0, above=True)
        elif power is not None:
            raise UserError(f"power must be None with shape {shape!r}, got {power!r}.")
        self.head_smoothing, self.tail_smoothing = float(head_smoothing), float(tail_smoothing)
        self.shape, self.power = shape, power
        self.set_class_counts(class_counts)

    def _derive(self, counts: Tensor) -> dict[str, Tensor]:
        n_min, n_max = counts[counts > 0].min(), counts.max()
        # With equal counts the divisor is 1, so v is 0.
        v = (counts - n_min).clamp(min=0) / (n_max - n_min if n_max > n_min else 1)
        if self.shape == "concave":
            v = torch.sin(math.pi / 2 * v)
        elif self.shape == "convex":
            v = 1 - torch.cos(math.pi / 2 * v)
        elif self.power is not None:
            v = v**self.power
        smoothing = self.tail_smoothing + (self.head_smoothing - self.tail_smoothing) * v
        return {"smoothing": smoothing}

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss."""
        logits, target = self._ready(logits, target)
        log_p = logits.log_softmax(1)
        of_target = log_p.gather(1, target[:, None]).squeeze(1)
        smoothing = self.smoothing.gather(0, target)
        losses = -(1 - smoothing) * of_target - smoothing * log_p.mean(1)
        return self._reduce(losses, target)
