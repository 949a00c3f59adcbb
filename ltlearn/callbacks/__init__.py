"""fastai callbacks, one published method a module."""

from ltlearn.callbacks.cosine import CosineHead
from ltlearn.callbacks.drw import DeferredReweighting
from ltlearn.callbacks.lws import LearnableWeightScaling
from ltlearn.callbacks.max_norm import MaxNorm
from ltlearn.callbacks.samn import SAMN

__all__ = ["SAMN", "CosineHead", "DeferredReweighting", "LearnableWeightScaling", "MaxNorm"]
