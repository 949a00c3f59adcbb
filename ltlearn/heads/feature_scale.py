"""The same classifier for features of another length. Torch alone."""

import copy
from typing import Any

import torch
from torch import nn

from ltlearn.heads.cosine import CosineLinear
from ltlearn.heads.normalized import NormalizedFeatureHead
from ltlearn.heads.samn import SAMNLinear
from ltlearn.heads.scaled import ScaledLinear

__all__ = ["for_longer_features"]


@torch.no_grad()
def for_longer_features(head: nn.Module, factor: float) -> nn.Module | None:
    """Return a copy of a head that gives the same logits on features `factor` times as long.

    Args:
        head: The head; it is not changed.
        factor: Factor of the features, above 0.

    Returns:
        The copy. None for a head of another library, whose formula is unknown.
    """
    new: Any = copy.deepcopy(head)
    if type(head) in (nn.Linear, ScaledLinear):
        new.weight.div_(factor)
    elif type(head) is SAMNLinear:
        # Its rows have directions alone.
        if "weight" in head.on:
            before = (
                torch.ones_like(head.weight[0, 0]) if head.norm_scale is None else head.norm_scale
            )
            new.norm_scale = before / factor
        else:
            new.weight.div_(factor)
    elif not isinstance(head, CosineLinear | NormalizedFeatureHead):
        return None
    return new
