"""Cross-entropy that fastai can turn into probabilities."""

from torch import Tensor, nn

__all__ = ["CrossEntropy"]


class CrossEntropy(nn.CrossEntropyLoss):
    """torch's cross-entropy, with the two methods by which fastai turns logits into predictions.

    fastai's own flattens each batch and wraps it in a tensor subclass, which costs a quarter of a
    millisecond a step: as much as a step of a linear classifier itself.

    Shape:
        Logits (N, C) and targets (N,), or (N, C) probabilities. The result is the mean over N, a
        scalar.
    """

    def activation(self, logits: Tensor) -> Tensor:
        """Return probabilities, (N, C)."""
        return logits.softmax(dim=-1)

    def decodes(self, probabilities: Tensor) -> Tensor:
        """Return the class of the highest probability, (N,)."""
        return probabilities.argmax(dim=-1)
