"""Losses, one a module; each imports torch alone."""

from ltlearn.losses.cross_entropy import CrossEntropy

__all__ = ["CrossEntropy"]
