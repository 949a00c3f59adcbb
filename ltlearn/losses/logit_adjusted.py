"""Logit-adjusted loss: cross-entropy with the log of the class shares added to the logits."""

from collections.abc import Sequence

from torch import Tensor

from ltlearn.errors import check_number
from ltlearn.losses.counted import CountedLoss

__all__ = ["LogitAdjustedLoss"]

_FLOOR = 1e-12  # as in the authors' code: a class without images has a finite logarithm


class LogitAdjustedLoss(CountedLoss):
    """Cross-entropy on z_c + tau log(share of class c); predictions are made from the plain z.

    With equal counts, or tau = 0, it equals cross-entropy; with tau = 1, balanced softmax. A class
    without training images nearly leaves the softmax (its logarithm is log 1e-12 unless tau is 0),
    and a target of it has a large, finite loss.

    Args:
        class_counts: Training images per class; None waits for `set_class_counts`.
        tau: Strength of the adjustment, no unit, at least 0.
        reduction: "mean", "sum" or "none".

    Shape:
        Logits (N, C), any floating dtype; targets (N,), class indices. The result is a scalar, or
        (N,) with reduction "none". A mean divides by N, or by the sum of the targets' weights if
        there are class weights.

    Raises:
        UserError: If counts, `tau` or `reduction` are not allowed.

    Source:
        Menon et al., ICLR 2021, arXiv:2007.07314; as in the authors' code, log(share ** tau +
        1e-12).

    Example:
        >>> learn.fit_stage1(200, loss=LogitAdjustedLoss(tau=1.0))
    """

    _without_images = "its logit nearly leaves the softmax"
    _derived = ("log_prior",)
    _shown = ("tau",)

    log_prior: Tensor

    def __init__(
        self,
        class_counts: Tensor | Sequence[float] | None = None,
        tau: float = 1.0,
        reduction: str = "mean",
    ):
        super().__init__(reduction)
        check_number("tau", tau, 0)
        self.tau = float(tau)
        self.set_class_counts(class_counts)

    def _derive(self, counts: Tensor) -> dict[str, Tensor]:
        share = counts / counts.sum()
        return {"log_prior": (share**self.tau + _FLOOR).log()}

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss."""
        logits, target = self._ready(logits, target)
        return self._cross_entropy(logits + self.log_prior, target)
