"""Describe how to get a benchmark."""

from pathlib import Path

from ltlearn.data.benchmarks.registry import get_benchmark

__all__ = ["how_to_get"]


def how_to_get(name: str, root: str | Path) -> str:
    """Return a text that lists the files to fetch for a benchmark, one per line.

    Args:
        name: One of `benchmark_names()`.
        root: The folder that the files go to.

    Raises:
        UserError: If the name is unknown, or the set needs no files.

    Example:
        >>> print(how_to_get("tiny_imagenet_lt", "/data").splitlines()[0])
        How to get Tiny-ImageNet into /data:
    """
    facts = get_benchmark(name)
    lines = [f"How to get {facts.title} into {root}:"]
    lines += [f"  {source}".replace("{root}", str(root)) for source in facts.sources]
    return "\n".join(lines)
