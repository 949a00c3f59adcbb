"""Cached features that are shifted and scaled as they are read."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ltlearn.data.feature_rows import Features
from ltlearn.posthoc.choose import iterate_blocks
from ltlearn.posthoc.linear import new_linear

__all__ = ["ScaledFeatures", "Scaling"]


@dataclass(frozen=True)
class Scaling:
    """Shift and factor of features.

    Features of different backbones differ a hundredfold in length, and many are far from 0. After
    a scaling, one learning rate and one weight decay fit all of them.

    Args:
        mean: Mean of the features, (D,), float32, which is subtracted. None: no shift.
        factor: Factor of the features after the shift.
    """

    mean: Tensor | None
    factor: float

    @classmethod
    def of(cls, features: Features) -> "Scaling":
        """Return the scaling to mean 0 and a mean squared length of 1.

        Args:
            features: The features of the training images.
        """
        mean, square = _moments(features)
        length = float((square - mean.square()).clamp(min=0).sum().sqrt())
        return cls(mean.float(), 1 / length if length else 1.0)

    @classmethod
    def to_length(cls, features: Features, squared: float) -> "Scaling":
        """Return the scaling to a mean squared length, without a shift.

        Args:
            features: The features of the training images.
            squared: The mean squared length.
        """
        found = float(_moments(features)[1].sum())
        return cls(None, (squared / found) ** 0.5 if found else 1.0)

    def scale_(self, rows: Tensor) -> Tensor:
        """Scale features in place, and return them.

        Args:
            rows: The features, (N, D).
        """
        if self.mean is not None:
            rows.sub_(self.mean)
        return rows.mul_(self.factor)

    def apply(self, features: Features) -> "ScaledFeatures":
        """Return features that are scaled as they are read.

        Args:
            features: The features.
        """
        return ScaledFeatures(features.views, features.targets, self)

    def unscaled(self, head: nn.Linear) -> nn.Linear:
        """Return the layer that gives the same logits on features without scaling.

        Args:
            head: A layer over scaled features.
        """
        weight, bias = head.weight.detach().double() * self.factor, head.bias.detach().double()
        if self.mean is not None:
            bias = bias - weight @ self.mean.double().to(weight.device)
        return new_linear(head, weight, bias)


@dataclass
class ScaledFeatures(Features):
    """Cached features that are scaled as they are read, so that no copy is kept."""

    scaling: Scaling

    def get_batch(self, index: list[int], seed: int | None = None) -> tuple[Tensor, Tensor]:
        """Return scaled features (B, D), float32, and targets (B,)."""
        x, y = super().get_batch(index, seed)
        return self.scaling.scale_(x), y

    def take(self, index: Tensor, drawn: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Return scaled features (B, D), float32, and targets (B,), for what `draw` returned."""
        x, y = super().take(index, drawn)
        return self.scaling.scale_(x), y

    def make_copy(self, device: torch.device) -> "Features | None":
        """Return a copy whose features are on a CUDA device; None if they do not fit."""
        result = super().make_copy(device)
        if result is not None and self.scaling.mean is not None:
            result.scaling = replace(self.scaling, mean=self.scaling.mean.to(device))
        return result


def _moments(features: Features) -> tuple[Tensor, Tensor]:
    """Return the means of the features and of their squares, (D,), float64."""
    total, square = torch.zeros(2, features.views[0].shape[1], dtype=torch.float64)
    for view in features.views:
        for _, block in iterate_blocks(view):
            total += block.sum(0)
            square += block.square().sum(0)
    n = len(features) * len(features.views)
    return total / n, square / n
