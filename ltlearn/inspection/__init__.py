"""Inspect a dataset: counts, damaged files, duplicates, leaks between parts, and advice."""

from ltlearn.inspection.inspect import inspect_images, inspect_path
from ltlearn.inspection.report import KINDS, PARTS, Advice, Duplicates, Inspection, Timing

__all__ = [
    "Advice",
    "Duplicates",
    "Inspection",
    "KINDS",
    "PARTS",
    "Timing",
    "inspect_path",
    "inspect_images",
]
