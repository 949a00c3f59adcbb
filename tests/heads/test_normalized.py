"""Heads over features of one length: what a cosine classifier becomes for other methods."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ltlearn import CosineLinear, SAMNLinear, UserError
from ltlearn.heads import NormalizedFeatureHead, ScaledLinear, head_from_state
from ltlearn.heads.normalized import normalized_head_of, over_normalized_features
from ltlearn.heads.registry import as_linear_over_features, kind_of
from ltlearn.models.backbone import LTModel, find_head
from tests.callbacks.helpers import assert_monotone

COUNTS = [90, 40, 40, 7, 2]


def linear(bias=True):
    torch.manual_seed(0)
    return nn.Linear(6, len(COUNTS), bias)


def samn():
    return SAMNLinear.from_linear(linear(), COUNTS)


def test_it_equals_the_cosine_classifier():
    cosine, x = CosineLinear.from_linear(linear(), 25.0), 10 * torch.randn(8, 6)
    head = over_normalized_features(cosine)
    torch.testing.assert_close(head(x), cosine(x))
    torch.testing.assert_close(head.norms(), cosine.norms())
    assert head.inner.bias is None and head.length == 25 and kind_of(head).startswith("Linear on")


@pytest.mark.parametrize("make", [linear, samn, lambda: ScaledLinear.from_linear(linear())])
def test_logits_and_gradients_equal_a_plain_loop(make):
    head = NormalizedFeatureHead(make(), 7.0).double()
    x = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    plain = torch.stack([head.inner(7.0 * row / row.norm()) for row in x])
    torch.testing.assert_close(head(x), plain)
    assert torch.autograd.gradcheck(head, (x,))
    values = tuple(p.detach().clone().requires_grad_() for p in head.parameters())
    names = [name for name, _ in head.named_parameters()]

    def call(*values):
        return torch.func.functional_call(head, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(call, values)


def test_a_zero_feature_is_harmless():
    head, x = NormalizedFeatureHead(linear(), 7.0), torch.zeros(2, 6, requires_grad=True)
    head(x).sum().backward()
    assert not x.grad.any() and torch.equal(head(x)[0], head.inner.bias)


@pytest.mark.parametrize("make", [linear, samn, lambda: CosineLinear(6, 5)])
def test_the_state_dict_says_everything(make):
    head, x = NormalizedFeatureHead(make(), 3.3), torch.randn(4, 6)
    new = head_from_state(head.state_dict())
    assert type(new) is NormalizedFeatureHead and type(new.inner) is type(head.inner)
    new.load_state_dict(head.state_dict())
    assert torch.equal(new(x), head(x))
    model = LTModel(nn.Identity(), linear())
    model.load_state_dict({f"head.{k}": v for k, v in head.state_dict().items()})
    assert torch.equal(model(x), head(x)) and (model.head.in_features, model.head.out_features) == (
        6,
        5,
    )
    assert head_from_state({"inner.x": x, "length": torch.tensor(1.0)}) is None


def test_half_precision_keeps_the_length():
    head = NormalizedFeatureHead(linear(), 3.3).half()
    assert head.length.dtype == torch.float32 and head.length.item() == pytest.approx(3.3)
    assert head(torch.randn(2, 6).half()).dtype == torch.float16
    with torch.autocast("cpu", torch.bfloat16):
        assert NormalizedFeatureHead(samn(), 3.0)(torch.randn(2, 6)).dtype == torch.bfloat16
    assert NormalizedFeatureHead(linear(), 3.0).to("meta").length.is_meta
    assert "length=3.3" in repr(head)


def test_the_inner_head_is_found():
    model = LTModel(nn.Identity(), NormalizedFeatureHead(samn(), 3.0))
    assert find_head(model, 5) == ("head.inner", model.head.inner)
    assert normalized_head_of(model) is model.head and normalized_head_of(samn()) is None


def test_folding_keeps_the_length():
    head, x = NormalizedFeatureHead(samn(), 3.0), torch.randn(4, 6)
    with pytest.raises(UserError, match="cannot be folded"):
        head.fold()
    plain = as_linear_over_features(head)
    assert type(plain.inner) is nn.Linear and as_linear_over_features(plain) is plain
    torch.testing.assert_close(plain(x), head(x))
    assert type(as_linear_over_features(samn())) is nn.Linear


def test_samn_after_a_cosine_classifier_keeps_the_mean_norm_and_its_order():
    head = over_normalized_features(CosineLinear.from_linear(linear(), 25.0))
    mean = head.norms().mean()
    head.inner = SAMNLinear.from_linear(head.inner, COUNTS)
    head.keep_mean_norm(mean)
    own = samn().norms()
    torch.testing.assert_close(head.norms(), 25 * own / own.mean())
    assert (head.norms().diff() >= -1e-5).all(), "the rarest class has the largest norm"
    x, y = torch.randn(64, 6), torch.randint(5, (64,))
    optimizer = torch.optim.SGD(head.parameters(), lr=0.5)
    for _ in range(20):
        optimizer.zero_grad()
        F.cross_entropy(head(x), y).backward()
        optimizer.step()
        head.inner.project_()
    assert_monotone(head.inner)
    assert (head.norms()[head.inner.rank_to_class].diff() <= 1e-5).all()


def test_what_is_refused():
    with pytest.raises(UserError, match="length.*above 0, got 0"):
        NormalizedFeatureHead(linear(), 0)
    inner = over_normalized_features(CosineLinear.from_linear(linear())).inner
    with pytest.raises(UserError, match="stage1_norm.*all are equal.*frequency"):
        SAMNLinear.from_linear(inner, COUNTS, order="stage1_norm")
