"""Cross-entropy with the methods by which fastai makes predictions."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ltlearn.losses.counted import check_vector

__all__ = ["CrossEntropy"]


class CrossEntropy(nn.CrossEntropyLoss):
    """torch's cross-entropy, with the two methods by which fastai makes predictions from logits.

    fastai's own loss flattens each batch and wraps it in a tensor subclass. This takes a quarter of
    a millisecond per step, as much as a step of a linear classifier.

    Shape:
        Logits (N, C), any floating dtype; targets (N,), or (N, C) probabilities. Half precision is
        computed in float32. The result is the mean over N, a scalar. With class weights, the mean
        divides by the sum of the targets' weights; if all of these are 0, the result is not a
        number, as in torch.

    Example:
        >>> CrossEntropy()(torch.zeros(2, 3), torch.tensor([0, 2]))
        tensor(1.0986)
    """

    # Whether a classifier trained with this loss still assumes the class prior of its sampler.
    leaves_prior = True
    # With this, fastai's MixUp and CutMix mix the losses of two targets instead of the targets.
    y_int = True

    @property
    def weights(self) -> Tensor | None:
        """Return the class weights, (C,), or None."""
        return self.weight

    def set_weights(self, weights: Tensor | Sequence[float] | None) -> None:
        """Set the weight of each class, replacing any earlier weights.

        Args:
            weights: C numbers, at least 0, not all 0; None weights all classes alike.

        Raises:
            UserError: If the weights are not such a vector.
        """
        self.weight = None if weights is None else check_vector("weights", weights).float()

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss."""
        # In float16 the exponentials of large logits are infinite, and in bfloat16 a loss has
        # three digits.
        input = input.to(torch.promote_types(input.dtype, torch.float32))
        if target.is_floating_point():
            target = target.to(input.dtype)
        if self.weight is not None:
            # torch needs the weights on the device and in the dtype of the logits.
            if self.weight.device != input.device:
                self.to(input.device)
            if self.weight.dtype != input.dtype:
                self.weight = self.weight.to(input.dtype)
        return super().forward(input, target)

    def activation(self, logits: Tensor) -> Tensor:
        """Return probabilities, (N, C)."""
        return logits.softmax(dim=-1)

    def decodes(self, probabilities: Tensor) -> Tensor:
        """Return the class of the highest probability, (N,)."""
        return probabilities.argmax(dim=-1)
