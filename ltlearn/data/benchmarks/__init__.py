"""Published long-tailed benchmarks, and the balanced sets that long-tailed ones are cut from.

To add a set, write a module with a `ListedSet` or a `BalancedSet`, and name it in `registry`. The
names load on first use, so that the table of names stays light.
"""

from importlib import import_module

_LAZY = {
    "BENCHMARKS": "registry",
    "BalancedSet": "facts",
    "Benchmark": "facts",
    "BenchmarkReport": "check",
    "Download": "facts",
    "Finding": "check",
    "IMAGENET_STATS": "facts",
    "ListedSet": "facts",
    "benchmark_names": "registry",
    "check_benchmark": "check",
    "dataset_names": "registry",
    "download_benchmark": "download",
    "how_to_get": "instructions",
    "is_listed": "registry",
    "listed_names": "registry",
    "load_benchmark": "read",
    "load_benchmark_parts": "read",
    "register_benchmark": "registry",
}

__all__ = list(_LAZY)


def __getattr__(name: str):
    if name not in _LAZY:
        raise AttributeError(f"module 'ltlearn.data.benchmarks' has no attribute {name!r}")
    return getattr(import_module(f"ltlearn.data.benchmarks.{_LAZY[name]}"), name)
