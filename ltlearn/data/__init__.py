"""Long-tailed data: counts, profiles, splits, samplers, transforms, and `LTDataLoaders`.

The samplers load NumPy and torch alone; what needs fastai loads on first use.
"""

from importlib import import_module

from ltlearn.data.counts import count_classes, imbalance_factor_of, long_tail_counts
from ltlearn.data.samplers import (
    ClassBalancedSampler,
    InstanceSampler,
    ProgressiveSampler,
    SquareRootSampler,
)
from ltlearn.data.splits import carve_validation, select_long_tail

_LAZY = {
    "LTDataLoaders": "loaders",
    "LTDataLoader": "loader",
    "SplitInfo": "datasets",
    "list_images": "readers.sources",
}

__all__ = [
    "ClassBalancedSampler",
    "InstanceSampler",
    "ProgressiveSampler",
    "SquareRootSampler",
    "carve_validation",
    "count_classes",
    "imbalance_factor_of",
    "long_tail_counts",
    "select_long_tail",
    *_LAZY,
]


def __getattr__(name: str):
    if name not in _LAZY:
        raise AttributeError(f"module 'ltlearn.data' has no attribute {name!r}")
    return getattr(import_module(f"ltlearn.data.{_LAZY[name]}"), name)
