"""LTModel: the precision of its head."""

import pytest
import torch
from torch import nn

from ltlearn import CosineLinear, SAMNLinear
from ltlearn.models.backbone import LTModel

# In bfloat16 the logits of the two classes are equal.
CLOSE = torch.tensor([[1.0, 0.0], [1.001, 0.0]])


def close_head():
    head = nn.Linear(2, 2, bias=False)
    head.weight.data.copy_(CLOSE)
    return head


def test_evaluation_under_autocast_tells_close_logits_apart():
    model, x = LTModel(nn.Identity(), close_head()).eval(), torch.tensor([[1.0, 0.0]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(x)
        assert model.head(x).unique().numel() == 1
    assert logits.dtype == torch.float32
    assert logits.argmax(1).item() == 1


def test_training_under_autocast_keeps_its_precision():
    model = LTModel(nn.Identity(), close_head()).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(torch.randn(4, 2)).dtype == torch.bfloat16


@pytest.mark.parametrize("head", [nn.Linear, CosineLinear, SAMNLinear])
def test_logits_of_an_evaluation_are_those_of_the_features_in_float32(head):
    torch.manual_seed(0)
    linear = nn.Linear(8, 5)
    made = {
        nn.Linear: lambda: linear,
        CosineLinear: lambda: CosineLinear.from_linear(linear),
        SAMNLinear: lambda: SAMNLinear.from_linear(linear, [50, 20, 10, 5, 2]),
    }[head]()
    model, x = LTModel(nn.Linear(6, 8), made).eval(), torch.randn(16, 6)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        features, logits = model.backbone(x), model(x)
    assert features.dtype == torch.bfloat16
    assert torch.equal(logits, made(features.float()))


def test_without_autocast_the_dtype_is_that_of_the_model():
    model = LTModel(nn.Identity(), close_head()).to(torch.bfloat16).eval()
    assert model(torch.ones(1, 2, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_the_model_can_be_traced_in_evaluation_mode():
    model, x = LTModel(nn.Linear(6, 2), close_head()).eval(), torch.randn(4, 6)
    assert torch.equal(torch.fx.symbolic_trace(model)(x), model(x))
