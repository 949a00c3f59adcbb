"""Inspect a dataset: counts, damaged files, duplicates, leaks between parts, and advice."""

from ltlearn.inspection.inspect import inspect_images, inspect_path
from ltlearn.inspection.result import (
    Advice,
    CopyGroup,
    Duplicates,
    Inspection,
    Sizes,
    UnreadableImage,
)
from ltlearn.inspection.scan import KINDS

__all__ = [
    "Advice",
    "CopyGroup",
    "Duplicates",
    "Inspection",
    "KINDS",
    "Sizes",
    "UnreadableImage",
    "inspect_path",
    "inspect_images",
]
