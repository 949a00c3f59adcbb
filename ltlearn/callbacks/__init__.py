"""fastai callbacks, one published method a module."""

from ltlearn.callbacks.checkpoint import Checkpoint
from ltlearn.callbacks.cosine import CosineHead
from ltlearn.callbacks.drw import DeferredReweighting
from ltlearn.callbacks.ema import WeightAverage
from ltlearn.callbacks.finite import FiniteLoss
from ltlearn.callbacks.glmc import GLMC
from ltlearn.callbacks.last_block import LastBlock
from ltlearn.callbacks.lws import LearnableWeightScaling
from ltlearn.callbacks.max_norm import MaxNorm
from ltlearn.callbacks.mixing import BatchCutMix, BatchMixUp
from ltlearn.callbacks.samn import SAMN
from ltlearn.callbacks.sharpness import SharpnessAware

__all__ = [
    "GLMC",
    "SAMN",
    "BatchCutMix",
    "BatchMixUp",
    "Checkpoint",
    "CosineHead",
    "DeferredReweighting",
    "FiniteLoss",
    "LastBlock",
    "LearnableWeightScaling",
    "MaxNorm",
    "SharpnessAware",
    "WeightAverage",
]
