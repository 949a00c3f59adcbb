"""Losses of several experts, each with an adjustment of its logits of its own."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ltlearn.errors import UserError
from ltlearn.losses.logit_adjusted import LogitAdjustedLoss
from ltlearn.utils.vectors import reversed_ranks

__all__ = ["BalPoELoss", "SADELoss"]

_FLOOR = 1e-12  # a class without images has a finite logarithm


class _ExpertsLoss(LogitAdjustedLoss):
    """The common part: cross-entropy of each expert on its adjusted logits."""

    # The callback `Experts` lets the head return the logits of each expert for such a loss.
    takes_experts = True
    _without_images = "its logit nearly leaves the softmax of most experts"
    # One row per class, as the base checks it, and one column per expert.
    _derived = ("adjustments",)
    _experts = 3
    _takes_mean = True

    adjustments: Tensor

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of the experts, or of the mean of their logits."""
        if logits.ndim != 3:
            logits, target = self._ready(logits, target)
            return self._cross_entropy(logits + self.adjustments.mean(1), target)
        if logits.shape[1] != self._experts:
            raise UserError(
                f"{type(self).__name__} is the loss of {self._experts} experts, got logits of "
                f"{logits.shape[1]}; take a head of {self._experts} experts."
            )
        losses = []
        for expert, own in enumerate(logits.unbind(1)):
            own, y = self._ready(own, target)
            losses.append(self._cross_entropy(own + self.adjustments[:, expert], y))
        total = torch.stack(losses)
        return total.mean(0) if self._takes_mean else total.sum(0)


class BalPoELoss(_ExpertsLoss):
    """The mean over three experts of their logit-adjusted losses, with strengths 0, tau, 2 tau.

    The first expert is trained with cross-entropy, the second for equally frequent classes, the
    third in favour of rare classes. The mean of their logits is for equally frequent classes if tau
    is 1. With equal counts, or tau = 0, each loss is cross-entropy.

    Args:
        class_counts: Training images per class; None waits for `set_class_counts`.
        tau: Strength of the second expert, no unit, at least 0. The third has twice as much.
        reduction: "mean", "sum" or "none"; over the images.

    Shape:
        Logits (N, 3, C), any floating dtype; targets (N,), class indices. Logits (N, C) are taken
        as the mean of the experts, whose adjustment is the mean of theirs. The result is a scalar,
        or (N,) with reduction "none". A mean divides by N, or by the sum of the targets' weights if
        there are class weights.

    Raises:
        UserError: If counts, `tau` or `reduction` are not allowed, or the logits are of another
            number of experts.

    Source:
        Sanchez Aimar et al., CVPR 2023, arXiv:2206.05260. tau is 1 for CIFAR-LT, 1.25 for
        ImageNet-LT.

    Example:
        >>> loss = BalPoELoss(class_counts=[500, 120, 5])
        >>> loss(torch.zeros(2, 3, 3), torch.tensor([0, 2]))
        tensor(2.7619)
    """

    def _derive(self, counts: Tensor) -> dict[str, Tensor]:
        log_prior = _log_shares(counts)
        strengths = self.tau * torch.arange(self._experts, dtype=counts.dtype)
        return {"adjustments": log_prior[:, None] * strengths}


class SADELoss(_ExpertsLoss):
    """The sum of the losses of three experts: for frequent, for all and for rare classes.

    CE(z_1) + CE(z_2 + log p) + CE(z_3 + log p - tau log r): p are the class shares, r the shares
    with reversed ranks. With equal counts each loss is cross-entropy.

    Args:
        class_counts: Training images per class; None waits for `set_class_counts`.
        tau: Strength of the reversed shares in the third loss, no unit, at least 0.
        reduction: "mean", "sum" or "none"; over the images.

    Shape:
        Logits (N, 3, C), any floating dtype; targets (N,), class indices. Logits (N, C) are taken
        as the mean of the experts, whose adjustment is the mean of theirs. The result is a scalar,
        or (N,) with reduction "none". A mean divides by N, or by the sum of the targets' weights if
        there are class weights.

    Raises:
        UserError: If counts, `tau` or `reduction` are not allowed, or the logits are of another
            number of experts.

    Source:
        Zhang et al., NeurIPS 2022, arXiv:2107.09249. Classes with equal counts rank in label order,
        as in `prior_vector("reversed")`. A class without images has no reversed share.

    Example:
        >>> loss = SADELoss(class_counts=[500, 120, 5])
        >>> loss(torch.zeros(2, 3, 3), torch.tensor([0, 2]))
        tensor(10.5325)
    """

    _takes_mean = False

    def __init__(
        self,
        class_counts: Tensor | Sequence[float] | None = None,
        tau: float = 2.0,
        reduction: str = "mean",
    ):
        super().__init__(class_counts, tau, reduction)

    def _derive(self, counts: Tensor) -> dict[str, Tensor]:
        log_prior = _log_shares(counts)
        # Among the classes with images: the most frequent class must not get a share of 0.
        has_images = counts > 0
        of_rare = torch.zeros_like(counts)
        of_rare[has_images] = _log_shares(reversed_ranks(counts[has_images]))
        for_rare = log_prior - self.tau * of_rare
        return {"adjustments": torch.stack([0 * log_prior, log_prior, for_rare], 1)}


def _log_shares(counts: Tensor) -> Tensor:
    share = counts / counts.sum()
    return share.where(share > 0, _FLOOR).log()
