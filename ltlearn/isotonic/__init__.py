"""Differentiable isotonic regression."""

from ltlearn.isotonic.api import pava

__all__ = ["pava"]
