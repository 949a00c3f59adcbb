"""Class-balanced losses: each class weighted by the inverse of its effective number of images."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ltlearn.errors import check_choice, check_number
from ltlearn.losses.counted import CountedLoss, check_vector

__all__ = ["ClassBalancedBCELoss", "ClassBalancedLoss", "effective_number_weights"]

DIVISORS = ("weights", "images")


def effective_number_weights(
    class_counts: Tensor | Sequence[float], beta: float = 0.9999
) -> Tensor:
    """Weight each class by the inverse of its effective number of images.

    w_c = a (1 - beta) / (1 - beta ** n_c), with a such that the mean weight is 1. A class without
    images has weight 0 and is not part of this mean.

    Args:
        class_counts: Training images per class.
        beta: (n - 1) / n, if a class can have n distinct images, no unit, in [0, 1). 0 weights all
            classes alike; values near 1 weight them by inverse count.

    Shape:
        class_counts is (C,). The result is (C,), float32, on the device of class_counts.

    Raises:
        UserError: If the counts are not a vector of finite, non-negative numbers of which one is
            positive, or `beta` is outside its range.

    Source:
        Cui et al., CVPR 2019, arXiv:1901.05555.

    Example:
        >>> effective_number_weights([500, 5], beta=0.99)
        tensor([0.0940, 1.9060])
    """
    device = class_counts.device if isinstance(class_counts, Tensor) else None
    counts = check_vector("class_counts", class_counts)
    return _weights(counts, _check_beta(beta)).to(device=device, dtype=torch.float32)


class ClassBalancedLoss(CountedLoss):
    """Cross-entropy with the weights of `effective_number_weights`.

    A class without training images has weight 0, so a target of it adds nothing to the loss. With
    equal counts it equals cross-entropy.

    Args:
        class_counts: Training images per class; None waits for `set_class_counts`.
        beta: Parameter of the effective number, no unit, in [0, 1); 0 gives cross-entropy.
        divide_by: Divisor of a mean. "weights": the sum of the batch's weights, as in torch's
            weighted cross-entropy and the authors' code under PyTorch. "images": N.
        reduction: "mean", "sum" or "none".

    Shape:
        Logits (N, C), any floating dtype; targets (N,), class indices. The result is a scalar, or
        (N,) with reduction "none".

    Raises:
        UserError: If counts, `beta` or an option is not allowed.

    Source:
        Cui et al., CVPR 2019, arXiv:1901.05555: w_y (-log p_y), softmax form. Departure: a class
        without images is allowed.

    Example:
        >>> learn.fit_stage1(200, loss=ClassBalancedLoss(beta=0.9999))
    """

    _without_images = "it has weight 0"
    _derived = ("weights",)
    _shown = ("beta", "divide_by")

    def __init__(
        self,
        class_counts: Tensor | Sequence[float] | None = None,
        beta: float = 0.9999,
        divide_by: str = "weights",
        reduction: str = "mean",
    ):
        super().__init__(reduction)
        check_choice("divide_by", divide_by, DIVISORS)
        self.beta, self.divide_by = _check_beta(beta), divide_by
        self.set_class_counts(class_counts)

    def _derive(self, counts: Tensor) -> dict[str, Tensor]:
        return {"weights": _weights(counts, self.beta)}

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss."""
        logits, target = self._ready(logits, target)
        losses = F.cross_entropy(logits, target, reduction="none")
        return self._reduce(losses, target, self.divide_by)


class ClassBalancedBCELoss(CountedLoss):
    """Binary cross-entropy on softmax probabilities, with the weights of the target's class.

    The code of the weight-balancing paper trains its second stage with it, and calls it
    class-balanced softmax. A class without training images has weight 0, so a target of it adds
    nothing to the loss; among the other classes of an image, it still counts.

    Args:
        class_counts: Training images per class; None waits for `set_class_counts`.
        beta: Parameter of the effective number, no unit, in [0, 1); 0 weights all classes alike.
        reduction: "mean", "sum" or "none".

    Shape:
        Logits (N, C), any floating dtype; targets (N,), class indices. The result is a scalar, or
        (N,) with reduction "none". The loss of an image is a mean over the C classes; a mean over
        images divides by N.

    Raises:
        UserError: If counts, `beta` or `reduction` is not allowed.

    Source:
        Cui et al., CVPR 2019, arXiv:1901.05555 (the weights); the code of Alshammari et al., CVPR
        2022, arXiv:2203.14197: w_y / C (-log p_y - sum over c != y of log(1 - p_c)). Departures:
        log(1 - p) is computed from the logits and not clipped at -100; a class without images is
        allowed.

    Example:
        >>> learn.retrain_classifier(10, loss=ClassBalancedBCELoss(), cbs=MaxNorm())
    """

    _without_images = "it has weight 0"
    _derived = ("weights",)
    _shown = ("beta",)

    def __init__(
        self,
        class_counts: Tensor | Sequence[float] | None = None,
        beta: float = 0.9999,
        reduction: str = "mean",
    ):
        super().__init__(reduction)
        self.beta = _check_beta(beta)
        self.set_class_counts(class_counts)

    def _derive(self, counts: Tensor) -> dict[str, Tensor]:
        return {"weights": _weights(counts, self.beta)}

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss."""
        logits, target = self._ready(logits, target)
        log_p = logits.log_softmax(1)
        # 1 - p loses all digits when p is near 1, which at most one class of an image can reach.
        # For that class, 1 - p is the sum of the other classes' probabilities.
        top = log_p.argmax(1, keepdim=True)
        others = log_p.scatter(1, top, -math.inf)
        log_not = torch.log1p(-others.exp()).scatter(1, top, others.logsumexp(1, keepdim=True))
        of_target = (log_p - log_not).gather(1, target[:, None]).squeeze(1)
        losses = -(of_target + log_not.sum(1)) / logits.shape[1]
        return self._reduce(losses, target, divide_by="images")


def _check_beta(beta: float) -> float:
    check_number("beta", beta, 0, 1, below=True)
    return float(beta)


def _weights(counts: Tensor, beta: float) -> Tensor:
    """Return the weights for checked counts, (C,), float64, mean 1 over the classes with images."""
    present = counts > 0
    # 1 - beta ** n, accurate for beta near 1; beta = 0 has logarithm -inf and gives 1.
    log_beta = math.log(beta) if beta else -math.inf
    effective = -torch.expm1(counts[present] * log_beta) / (1 - beta)
    weights = torch.zeros_like(counts)
    weights[present] = effective.reciprocal() / effective.reciprocal().mean()
    return weights
