"""Classifier heads. They need torch alone."""

from ltlearn.heads.cosine import CosineLinear
from ltlearn.heads.experts import ExpertHead
from ltlearn.heads.foldable import Foldable
from ltlearn.heads.nearest_mean import NearestClassMean
from ltlearn.heads.normalized import NormalizedFeatureHead
from ltlearn.heads.registry import (
    as_linear,
    head_from_state,
    is_head,
    is_trainable,
    register_head,
    unregister_head,
)
from ltlearn.heads.samn import SAMNLinear
from ltlearn.heads.scaled import ScaledLinear

__all__ = [
    "CosineLinear",
    "ExpertHead",
    "Foldable",
    "NearestClassMean",
    "NormalizedFeatureHead",
    "SAMNLinear",
    "ScaledLinear",
    "as_linear",
    "head_from_state",
    "is_head",
    "is_trainable",
    "register_head",
    "unregister_head",
]
