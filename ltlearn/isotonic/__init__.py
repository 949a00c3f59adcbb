"""Isotonic regression that gradients flow through."""

from ltlearn.isotonic.api import pava

__all__ = ["pava"]
