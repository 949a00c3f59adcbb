"""LDAM: a margin for each class, larger for classes with fewer images."""

from collections.abc import Sequence

from torch import Tensor

from ltlearn.errors import check_number
from ltlearn.losses.counted import CountedLoss

__all__ = ["LDAMLoss"]


class LDAMLoss(CountedLoss):
    """Cross-entropy on scaled cosines, after a margin lowers the target's cosine.

    The margin of class c is max_margin (n_min / n_c) ** (1/4), so that the rarest class has
    `max_margin`. The logits must be cosines times `scale`, as `CosineLinear` returns them: the
    classifier has unit rows and no bias, and its inputs are unit features. A class without training
    images has no margin, and its logit stays in the softmax.

    LDAM-DRW adds class weights in later epochs, see `DeferredReweighting`.

    Args:
        class_counts: Training images per class; None waits for `set_class_counts`.
        max_margin: Margin of the rarest class, in units of the cosine, at least 0.
        scale: Factor of the cosines in the classifier, and of the margins here, above 0.
        weights: Weight of each class, C numbers; None weights all classes alike.
        reduction: "mean", "sum" or "none".

    Shape:
        Logits (N, C), scaled cosines in any floating dtype; targets (N,), class indices. The result
        is a scalar, or (N,) with reduction "none". A mean divides by N, or by the sum of the
        targets' weights if there are class weights.

    Raises:
        UserError: If counts, weights or an option are not allowed.

    Source:
        Cao et al., NeurIPS 2019, arXiv:1906.07413. Departures: the classifier scales the cosines,
        not the loss, so that every model returns logits (value and gradients are the same); a
        class without images is allowed.

    Example:
        >>> learn.fit_stage1(200, loss=LDAMLoss(scale=30), cbs=CosineHead(scale=30))
    """

    _without_images = "it has no margin"
    _derived = ("margins",)
    _shown = ("max_margin", "scale")

    margins: Tensor

    def __init__(
        self,
        class_counts: Tensor | Sequence[float] | None = None,
        max_margin: float = 0.5,
        scale: float = 30.0,
        weights: Tensor | Sequence[float] | None = None,
        reduction: str = "mean",
    ):
        super().__init__(reduction)
        check_number("max_margin", max_margin, 0)
        check_number("scale", scale, 0, above=True)
        self.max_margin, self.scale = float(max_margin), float(scale)
        self.set_class_counts(class_counts)
        self.set_weights(weights)

    def _derive(self, counts: Tensor) -> dict[str, Tensor]:
        n_min = counts[counts > 0].min()
        margins = self.max_margin * (n_min / counts) ** 0.25
        return {"margins": margins.where(counts > 0, 0)}

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss."""
        logits, target = self._ready(logits, target)
        margin = self.scale * self.margins.gather(0, target).to(logits.dtype)
        lowered = logits.scatter_add(1, target[:, None], -margin[:, None])
        return self._cross_entropy(lowered, target)
