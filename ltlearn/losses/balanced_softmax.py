"""Balanced softmax: cross-entropy under the class distribution of the training set."""

from collections.abc import Sequence

from torch import Tensor

from ltlearn.losses.counted import CountedLoss

__all__ = ["BalancedSoftmaxLoss"]

# Share of the images assigned to a class without images. The class then nearly leaves the softmax,
# and a target of it (in a validation set) adds about 28 to the loss instead of infinity.
_FLOOR = 1e-12


class BalancedSoftmaxLoss(CountedLoss):
    """Cross-entropy on z_c + log n_c; predictions are made from the plain logits z.

    With equal counts it equals cross-entropy. A class without training images gets a share of 1e-12
    of all images: its logit nearly leaves the softmax, and a target of it has a large, finite loss.

    Args:
        class_counts: Training images per class; None waits for `set_class_counts`.
        reduction: "mean", "sum" or "none".

    Shape:
        Logits (N, C), any floating dtype; targets (N,), class indices. The result is a scalar, or
        (N,) with reduction "none". A mean divides by N, or by the sum of the targets' weights if
        there are class weights.

    Raises:
        UserError: If counts or `reduction` are not allowed.

    Source:
        Ren et al., NeurIPS 2020, arXiv:2007.10740. Departure: a class without images is allowed.

    Example:
        >>> loss = BalancedSoftmaxLoss(class_counts=[500, 120, 5])
        >>> loss(torch.zeros(2, 3), torch.tensor([0, 2]))
        tensor(2.5257)
    """

    _without_images = "its logit nearly leaves the softmax"
    _derived = ("log_prior",)

    log_prior: Tensor

    def __init__(
        self,
        class_counts: Tensor | Sequence[float] | None = None,
        reduction: str = "mean",
    ):
        super().__init__(reduction)
        self.set_class_counts(class_counts)

    def _derive(self, counts: Tensor) -> dict[str, Tensor]:
        # Shares instead of counts: softmax gives the same result.
        share = counts / counts.sum()
        return {"log_prior": share.where(share > 0, _FLOOR).log()}

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss."""
        logits, target = self._ready(logits, target)
        return self._cross_entropy(logits + self.log_prior, target)
