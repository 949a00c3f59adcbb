import pytest
import torch
from torch import nn

from ltlearn.training.features import weights_fingerprint
from ltlearn.utils.marks import tensor_mark

CHANGES = {
    "in place": lambda p: p.add_(1),
    "through data": lambda p: p.data.add_(1),
    "one number through data": lambda p: p.data.view(-1)[-1:].add_(1e-3),
    "rows swapped through data": lambda p: p.data.copy_(p.data.flip(0)),
    "other data": lambda p: setattr(p, "data", p.data + 1),
    "the shape": lambda p: setattr(p, "data", p.data.reshape(-1, 8)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_is_noticed(change):
    layer = nn.Linear(16, 24)
    before = tensor_mark(layer.weight)
    assert tensor_mark(layer.weight) == before
    with torch.no_grad():
        change(layer.weight)
    assert tensor_mark(layer.weight) != before


@pytest.mark.parametrize(
    "value",
    [
        torch.tensor(3), torch.zeros(0), torch.ones(5, dtype=torch.bool), torch.rand(3, 7).T,
        torch.rand(4, 5, 3, 3).to(memory_format=torch.channels_last), torch.rand(101)[1:],
        torch.rand(64).bfloat16()[1:],
    ],
)  # fmt: skip
def test_tensors_of_any_kind(value):
    assert tensor_mark(value) == tensor_mark(value)
    with torch.inference_mode():
        tensor_mark(value + 1 if value.dtype != torch.bool else ~value)


def test_the_fingerprint_follows_the_weights():
    layer = nn.Linear(16, 24)
    first = weights_fingerprint(layer)
    assert weights_fingerprint(layer) == first
    before = layer.weight.detach().clone()
    layer.weight.data.add_(1)
    assert weights_fingerprint(layer) != first
    with torch.no_grad():
        layer.weight.copy_(before)
    assert weights_fingerprint(layer) == first
    other = nn.Linear(16, 24)
    other.load_state_dict(layer.state_dict())
    assert weights_fingerprint(other) == first
