"""The same classifier for features of another length. Torch alone."""

import copy
from typing import Any

import torch
from torch import nn

from ltlearn.heads.cosine import CosineLinear
from ltlearn.heads.normalized import NormalizedFeatureHead
from ltlearn.heads.samn import SAMNLinear
from ltlearn.heads.scaled import ScaledLinear

__all__ = ["SCALABLE", "for_longer_features"]

# Exact types: a subclass may compute something else.
SCALABLE = frozenset({nn.Linear, ScaledLinear, SAMNLinear, CosineLinear, NormalizedFeatureHead})


@torch.no_grad()
def for_longer_features(head: nn.Module, factor: float) -> nn.Module:
    """Return a copy of a head that gives the same logits on features `factor` times as long.

    Args:
        head: The head, of a type in `SCALABLE`; it is not changed.
        factor: Factor of the features, above 0.
    """
    new: Any = copy.deepcopy(head)
    if isinstance(head, CosineLinear | NormalizedFeatureHead):
        return new  # they divide each feature by its length
    if isinstance(head, SAMNLinear) and "weight" in head.on:
        # Its rows have directions alone.
        one = torch.ones_like(head.weight[0, 0])
        new.norm_scale = (one if head.norm_scale is None else head.norm_scale) / factor
    else:
        new.weight.div_(factor)
    return new
