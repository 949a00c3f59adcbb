"""Cross-entropy that fastai can turn into probabilities."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ltlearn.losses.counted import check_vector

__all__ = ["CrossEntropy"]


class CrossEntropy(nn.CrossEntropyLoss):
    """torch's cross-entropy, with the two methods by which fastai turns logits into predictions.

    fastai's own flattens each batch and wraps it in a tensor subclass, which costs a quarter of a
    millisecond a step: as much as a step of a linear classifier itself.

    Shape:
        Logits (N, C) and targets (N,), or (N, C) probabilities. The result is the mean over N, a
        scalar. With class weights the mean divides by the sum of the targets' weights, and is not a
        number, as in torch, where all of these are 0.
    """

    # Tells fastai's MixUp and CutMix to mix the losses of two targets, not the targets.
    y_int = True
    leaves_prior = True

    @property
    def weights(self) -> Tensor | None:
        """Return the class weights, (C,), or None."""
        return self.weight

    def set_weights(self, weights: Tensor | Sequence[float] | None) -> None:
        """Set the weight of each class, in place of any that the loss has now.

        Args:
            weights: C numbers, at least 0, not all 0; None weights all classes alike.

        Raises:
            UserError: If the weights are not such a vector.
        """
        self.weight = None if weights is None else check_vector("weights", weights).float()

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss."""
        if self.weight is not None:
            # torch wants the weights on the device and in the dtype of the logits.
            if self.weight.device != input.device:
                self.to(input.device)
            input = input.to(torch.promote_types(input.dtype, torch.float32))
            if self.weight.dtype != input.dtype:
                self.weight = self.weight.to(input.dtype)
        return super().forward(input, target)

    def activation(self, logits: Tensor) -> Tensor:
        """Return probabilities, (N, C)."""
        return logits.softmax(dim=-1)

    def decodes(self, probabilities: Tensor) -> Tensor:
        """Return the class of the highest probability, (N,)."""
        return probabilities.argmax(dim=-1)
