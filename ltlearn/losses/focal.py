"""Focal loss, in the two forms that long-tailed recognition uses: softmax and sigmoid."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ltlearn.losses.class_balanced import effective_number_weights
from ltlearn.losses.counted import CountedLoss, check_number

__all__ = ["SigmoidFocalLoss", "SoftmaxFocalLoss"]


class _FocalLoss(CountedLoss):
    """What the two forms share: gamma, and weights by effective number where beta is given."""

    _without_images = "it weighs 0"
    _shown = ("gamma", "beta")

    def __init__(self, gamma, class_counts, beta, reduction):
        super().__init__(reduction)
        check_number("gamma", gamma, 0)
        if beta is not None:
            check_number("beta", beta, 0, 1)
            beta, self._derived = float(beta), ("weights",)
        self.gamma, self.beta = float(gamma), beta
        self.set_class_counts(class_counts)

    def _derive(self, counts: Tensor) -> dict[str, Tensor]:
        if self.beta is None:
            return {}
        return {"weights": effective_number_weights(counts, self.beta)}


class SoftmaxFocalLoss(_FocalLoss):
    """Focal loss on softmax probabilities: (1 - p_y) ** gamma (-log p_y).

    With class weights w, the weight stands inside, as in the code of LDAM: t = -w_y log p_y, and
    the loss is (1 - exp(-t)) ** gamma t. Of a class without training images, which weighs 0, a
    target adds nothing to the loss. With gamma = 0 it is weighted cross-entropy.

    Args:
        gamma: How much less a well classified image counts, no unit, at least 0.
        class_counts: Training images per class, used with `beta` alone.
        beta: Weights by `effective_number_weights`, in [0, 1); None weights all classes alike, and
            needs no counts.
        reduction: "mean", "sum" or "none".

    Shape:
        Logits (N, C), any floating dtype; targets (N,), class indices. The result is a scalar, or
        (N,) with reduction "none". A mean divides by N, with class weights too.

    Raises:
        UserError: If `gamma`, counts, `beta` or `reduction` are not allowed.

    Source:
        Lin et al., ICCV 2017, arXiv:1708.02002; in softmax form, the code of Cao et al., NeurIPS
        2019, arXiv:1906.07413.
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
        # Of x ** gamma with gamma below 1, the slope at 0 is infinite, and 0 times it no number.
        not_p = (-torch.expm1(-losses)).clamp(min=torch.finfo(losses.dtype).tiny)
        losses = not_p**self.gamma * losses
        return self._reduce(losses, target, weighted=False)


class SigmoidFocalLoss(_FocalLoss):
    """Focal loss on C sigmoids, one for each class against the others.

    w_y times the sum over c of (1 - q_c) ** gamma (-log q_c), where q_c is sigmoid(z_c) for the
    target's class and 1 - sigmoid(z_c) for each other one. Of a class without training images,
    which weighs 0 where there are weights, a target adds nothing to the loss. With gamma = 0 it is
    binary cross-entropy, summed over the classes.

    `activation` gives the C sigmoids, which do not sum to 1; `decodes` the class of the largest.

    Args:
        gamma: How much less a well classified image counts, no unit, at least 0.
        class_counts: Training images per class, used with `beta` alone.
        beta: Weights by `effective_number_weights`, in [0, 1); None weights all classes alike, and
            needs no counts.
        reduction: "mean", "sum" or "none".

    Shape:
        Logits (N, C), any floating dtype; targets (N,), class indices. The result is a scalar, or
        (N,) with reduction "none". A mean divides by N (the number of positives), with class
        weights too.

    Raises:
        UserError: If `gamma`, counts, `beta` or `reduction` are not allowed.

    Source:
        Lin et al., ICCV 2017, arXiv:1708.02002; with weights, Cui et al., CVPR 2019,
        arXiv:1901.05555. Departure: no balance between positives and negatives (alpha).
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
        # q = sigmoid(u), with u the logit of the target's class and minus that of the others.
        u = logits * torch.full_like(logits, -1).scatter(1, target[:, None], 1)
        losses = -F.logsigmoid(u) * (self.gamma * F.logsigmoid(-u)).exp()
        return self._reduce(losses.sum(1), target, divide_by="images")
