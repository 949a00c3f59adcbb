"""fastai callbacks, one published method per module."""

from ltlearn.callbacks.adapters import AdaptFormer, BitFit, LoRA
from ltlearn.callbacks.cosine import CosineHead
from ltlearn.callbacks.drw import DeferredReweighting
from ltlearn.callbacks.experts import Experts
from ltlearn.callbacks.glmc import GLMC
from ltlearn.callbacks.head_start import HeadStart
from ltlearn.callbacks.last_block import LastBlock
from ltlearn.callbacks.layer_decay import LayerDecay
from ltlearn.callbacks.lws import LearnableWeightScaling
from ltlearn.callbacks.max_norm import MaxNorm
from ltlearn.callbacks.mixing import BatchCutMix, BatchMixUp
from ltlearn.callbacks.samn import SAMN
from ltlearn.callbacks.sharpness import SharpnessAware
from ltlearn.callbacks.weight_average import WeightAverage

__all__ = [
    "GLMC",
    "SAMN",
    "AdaptFormer",
    "BatchCutMix",
    "BatchMixUp",
    "BitFit",
    "CosineHead",
    "DeferredReweighting",
    "HeadStart",
    "Experts",
    "LastBlock",
    "LayerDecay",
    "LearnableWeightScaling",
    "LoRA",
    "MaxNorm",
    "SharpnessAware",
    "WeightAverage",
]
