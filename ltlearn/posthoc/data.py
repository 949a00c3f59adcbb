"""`PosthocData`: the classifier and the data that a post-hoc method gets."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from ltlearn.posthoc.linear import as_linear_layer

__all__ = ["PosthocData"]


@dataclass(frozen=True)
class PosthocData:
    """The classifier and the data that a post-hoc method chooses a strength from, or corrects with.

    Args:
        head: The trained classifier, as one linear layer unless the method uses features only or
            is for a classifier of several experts.
        class_counts: Training images per class.
        prior: Class shares that the logits of `head` assume; their sum is 1.
        features: Features of the validation images to choose on, or of the training images for a
            method that uses features only. None: the method corrects the classifier alone.
        targets: Their classes.

    Shape:
        class_counts and prior are (C,); features (N, D), any floating dtype, also a memory-mapped
        array; targets (N,), integer.
    """

    head: nn.Module
    class_counts: Tensor
    prior: Tensor
    features: Tensor | np.ndarray | None = None
    targets: Tensor | np.ndarray | None = None

    @property
    def num_classes(self) -> int:
        """Return C."""
        return len(self.class_counts)

    @property
    def linear(self) -> nn.Linear:
        """Return the classifier as one linear layer.

        Raises:
            UserError: If no linear layer is equal to it.
        """
        return as_linear_layer(self.head)
