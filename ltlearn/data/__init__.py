"""Long-tailed data: counts, profiles, splits, samplers, transforms, and `LTDataLoaders`.

All names load on first use, so that the samplers need NumPy and torch alone, and the names of the
benchmarks need no torch.
"""

from importlib import import_module

_LAZY = {
    "ClassBalancedSampler": "samplers",
    "InstanceSampler": "samplers",
    "LTDataLoader": "loader",
    "LTDataLoaders": "loaders",
    "ProgressiveSampler": "samplers",
    "SplitInfo": "datasets",
    "SquareRootSampler": "samplers",
    "carve_validation": "splits",
    "count_classes": "counts",
    "imbalance_factor_of": "counts",
    "list_images": "readers.sources",
    "long_tail_counts": "counts",
    "select_long_tail": "splits",
}

__all__ = list(_LAZY)


def __getattr__(name: str):
    if name not in _LAZY:
        raise AttributeError(f"module 'ltlearn.data' has no attribute {name!r}")
    return getattr(import_module(f"ltlearn.data.{_LAZY[name]}"), name)
