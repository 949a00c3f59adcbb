"""Describe how to get a benchmark."""

from pathlib import Path

from ltlearn.data.benchmarks.facts import BENCHMARKS, check_benchmark_name

__all__ = ["how_to_get"]


def how_to_get(name: str, root: str | Path) -> str:
    """Say what to fetch for a benchmark, line by line.

    Args:
        name: A name of `BENCHMARKS`.
        root: Where it is to lie.

    Raises:
        UserError: If the name is unknown, or of a set that needs no files.
    """
    check_benchmark_name(name)
    facts = BENCHMARKS[name]
    lines = [f"How to get {facts.title} into {root}:"]
    lines += [f"  {source}".replace("{root}", str(root)) for source in facts.sources]
    return "\n".join(lines)


BY_HAND = {
    "imagenet_lt": "its images are for those who are registered at image-net.org",
    "tiny_imagenet_lt": "neither torchvision nor fastai has it",
}
