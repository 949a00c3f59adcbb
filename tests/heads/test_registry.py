"""The registry knows each head of the library."""

import inspect

import pytest
from torch import nn

import ltlearn.heads
from ltlearn.heads import Foldable, is_head

HEADS = [
    value
    for name in ltlearn.heads.__all__
    if inspect.isclass(value := getattr(ltlearn.heads, name)) and value is not Foldable
]


@pytest.mark.parametrize("kind", HEADS)
def test_each_head_of_the_library_is_registered(kind):
    assert issubclass(kind, nn.Module) and is_head(kind.__new__(kind))
