"""Focal loss, in the two forms that long-tailed recognition uses: softmax and sigmoid."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ltlearn.errors import check_number
from ltlearn.losses.class_balanced import effective_number_weights
from ltlearn.losses.counted import CountedLoss

__all__ = ["SigmoidFocalLoss", "SoftmaxFocalLoss"]


class _FocalLoss(CountedLoss):
    """The common part of both forms: gamma, and weights by effective number if beta is given."""

    _without_images = "it has weight 0"
    _shown = ("gamma", "beta")

    def __init__(self, gamma, class_counts, beta, reduction):
        super().__init__(reduction)
        check_number("gamma", gamma, 0)
        if beta is not None:
            check_number("beta", beta, 0, 1, below=True)
            beta, self._derived = float(beta), ("weights",)
        self.gamma, self.beta = float(gamma), beta
        self.set_class_counts(class_counts)

    def _derive(self, counts: Tensor) -> dict[str, Tensor]:
        if self.beta is None:
            return {}
        return {"weights": effective_number_weights(counts, self.beta)}


class SoftmaxFocalLoss(_FocalLoss):
    """Focal loss on softmax probabilities: (1 - p_y) ** gamma (-log p_y).

    Class weights w apply inside the power, as in the code of LDAM: with t = -w_y log p_y the loss
    is (1 - exp(-t)) ** gamma t. A class without training images has weight 0, so a target of it
    adds nothing to the loss. With gamma = 0 it equals weighted cross-entropy.

    Args:
        gamma: Exponent that reduces the loss of well classified images, no unit, at least 0.
        class_counts: Training images per class, used with `beta` alone.
        beta: Parameter of `effective_number_weights`, in [0, 1); None weights all classes alike,
            and needs no counts.
        reduction: "mean", "sum" or "none".

    Shape:
        Logits (N, C), any floating dtype; targets (N,), class indices. The result is a scalar, or
        (N,) with reduction "none". A mean divides by N, also with class weights.

    Raises:
        UserError: If `gamma`, counts, `beta` or `reduction` are not allowed.

    Source:
        Lin et al., ICCV 2017, arXiv:1708.02002; in softmax form, the code of Cao et al., NeurIPS
        2019, arXiv:1906.07413.

    Example:
        >>> learn.fit_stage1(200, loss=SoftmaxFocalLoss(gamma=1.0))
    """

    leaves_prior = True

    def __init__(
        self,
        gamma: float = 1.0,
        class_counts: Tensor | Sequence[float] | None = None,
        beta: float | None = None,
        reduction: str = "mean",
    ):
        super().__init__(gamma, class_counts, beta, reduction)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss."""
        logits, target = self._ready(logits, target)
        losses = F.cross_entropy(logits, target, reduction="none")
        if self.weights is not None:
            losses = losses * self.weights.gather(0, target)
        # With gamma below 1, x ** gamma has an infinite slope at 0, and 0 * inf is not a number.
        not_p = (-torch.expm1(-losses)).clamp(min=torch.finfo(losses.dtype).tiny)
        losses = not_p**self.gamma * losses
        return self._reduce(losses, target, weighted=False)


class SigmoidFocalLoss(_FocalLoss):
    """Focal loss on C sigmoids, one for each class against the others.

    w_y times the sum over c of (1 - q_c) ** gamma (-log q_c), where q_c is sigmoid(z_c) for the
    target's class and 1 - sigmoid(z_c) for each other one. With weights, a class without training
    images has weight 0, so a target of it adds nothing to the loss. With gamma = 0 it equals binary
    cross-entropy, summed over the classes.

    `activation` returns the C sigmoids, which do not sum to 1; `decodes` the class of the largest.

    Args:
        gamma: Exponent that reduces the loss of well classified images, no unit, at least 0.
        class_counts: Training images per class, used with `beta` alone.
        beta: Parameter of `effective_number_weights`, in [0, 1); None weights all classes alike,
            and needs no counts.
        reduction: "mean", "sum" or "none".

    Shape:
        Logits (N, C), any floating dtype; targets (N,), class indices. The result is a scalar, or
        (N,) with reduction "none". A mean divides by N (the number of positives), also with
        class weights.

    Raises:
        UserError: If `gamma`, counts, `beta` or `reduction` are not allowed.

    Source:
        Lin et al., ICCV 2017, arXiv:1708.02002; with weights, Cui et al., CVPR 2019,
        arXiv:1901.05555. Departure: no balance between positives and negatives (alpha).

    Example:
        >>> learn.fit_stage1(200, loss=SigmoidFocalLoss(gamma=0.5, beta=0.999))
    """

    def __init__(
        self,
        gamma: float = 2.0,
        class_counts: Tensor | Sequence[float] | None = None,
        beta: float | None = None,
        reduction: str = "mean",
    ):
        super().__init__(gamma, class_counts, beta, reduction)

    def activation(self, logits: Tensor) -> Tensor:
        """Return the probability of each class against the others, (N, C); no row sums to 1."""
        return logits.sigmoid()

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss."""
        logits, target = self._ready(logits, target)
        # q = sigmoid(u), where u is the logit of the target's class and minus the other logits.
        u = logits * torch.full_like(logits, -1).scatter(1, target[:, None], 1)
        losses = -F.logsigmoid(u) * (self.gamma * F.logsigmoid(-u)).exp()
        return self._reduce(losses.sum(1), target, divide_by="images")
