"""fastai callbacks, one published method a module."""

from ltlearn.callbacks.samn import SAMN

__all__ = ["SAMN"]
