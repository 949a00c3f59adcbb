"""Models: a timm backbone with a classifier head, and the CIFAR ResNets.

The heads load at once, because they need torch alone. The rest needs timm and loads on first use.
"""

from importlib import import_module

from ltlearn.heads.cosine import CosineLinear
from ltlearn.heads.samn import SAMNLinear
from ltlearn.heads.scaled import ScaledLinear

_LAZY = {
    "CifarResNet": "cifar_resnet",
    "ExpertBackbone": "experts",
    "LTModel": "backbone",
    "create_lt_model": "pretrained",
    "find_head": "backbone",
}

__all__ = ["CosineLinear", "SAMNLinear", "ScaledLinear", *_LAZY]


def __getattr__(name: str):
    if name not in _LAZY:
        raise AttributeError(f"module 'ltlearn.models' has no attribute {name!r}")
    return getattr(import_module(f"ltlearn.models.{_LAZY[name]}"), name)
