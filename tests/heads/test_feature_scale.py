"""The same classifier for features of another length."""

import pytest
import torch
from torch import nn

from ltlearn import CosineLinear, SAMNLinear, ScaledLinear
from ltlearn.heads import NearestClassMean, NormalizedFeatureHead
from ltlearn.heads.feature_scale import SCALABLE, for_longer_features

COUNTS = [40, 12, 4]


def linear():
    torch.manual_seed(0)
    return nn.Linear(5, 3)


HEADS = {
    "linear": linear,
    "scales": lambda: ScaledLinear.from_linear(linear(), train="all"),
    "scales alone": lambda: ScaledLinear.from_linear(linear()),
    "cosine": lambda: CosineLinear.from_linear(linear()),
    "samn": lambda: SAMNLinear.from_linear(linear(), COUNTS),
    "samn from stage 1": lambda: SAMNLinear.from_linear(linear(), COUNTS, start="stage1"),
    "samn on the bias": lambda: SAMNLinear.from_linear(linear(), COUNTS, on=["bias"]),
    "normalised": lambda: NormalizedFeatureHead(linear(), 5.0),
}


@pytest.mark.parametrize("make", HEADS.values(), ids=HEADS)
def test_logits_stay_and_come_back(make):
    head, x = make(), torch.randn(8, 5)
    before = {k: v.clone() for k, v in head.state_dict().items()}
    new = for_longer_features(head, 40.0)
    assert torch.allclose(new(40 * x), head(x), rtol=1e-5, atol=1e-5)
    back = for_longer_features(new, 1 / 40.0)
    assert torch.allclose(back(x), head(x), rtol=1e-5, atol=1e-5)
    assert all(torch.equal(v, before[k]) for k, v in head.state_dict().items())
    assert [p.requires_grad for p in new.parameters()] == [
        p.requires_grad for p in head.parameters()
    ]


def test_heads_whose_formula_is_unknown():
    class Own(nn.Linear):
        """A head of a user's, which may compute anything."""

    assert {type(make()) for make in HEADS.values()} == SCALABLE
    assert not {NearestClassMean, nn.Sequential, Own} & SCALABLE
