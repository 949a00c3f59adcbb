import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from ltlearn import CosineLinear, UserError
from ltlearn.losses import LDAMLoss


def make_linear(classes=4, width=6, bias=True, seed=0):
    torch.manual_seed(seed)
    return nn.Linear(width, classes, bias)


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_logits_are_the_formula(classes, scale):
    linear = make_linear(classes)
    head = CosineLinear.from_linear(linear, scale)
    x = torch.randn(5, 6) * 7
    w, rows = linear.weight.detach().numpy().astype(float), x.numpy().astype(float)
    expected = [
        [scale * (v @ r) / (np.linalg.norm(v) * np.linalg.norm(r)) for v in w] for r in rows
    ]
    np.testing.assert_allclose(head(x).detach().numpy(), expected, rtol=1e-4, atol=1e-5)
    assert head(x).abs().max() <= scale * (1 + 1e-6)
    assert head.norms().tolist() == [scale] * classes and head.norms().dtype == torch.float32
    torch.testing.assert_close(head(1000 * x), head(x))


def test_gradients():
    head = CosineLinear.from_linear(make_linear()).double()
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)

    def run(x, weight):
        return torch.func.functional_call(head, {"weight": weight}, (x,))

    assert torch.autograd.gradcheck(run, (x, head.weight))


def test_a_feature_of_zeros_is_nobodys():
    head = CosineLinear.from_linear(make_linear())
    x = torch.zeros(2, 6, requires_grad=True)
    logits = head(x)
    assert not logits.any()
    logits.sum().backward()
    # The gradient was once 1e12, or infinite after the backbone.
    assert not x.grad.any() and head.weight.grad.isfinite().all()


@pytest.mark.parametrize("length", [1e-3, 1e-13, 0.0])
def test_a_short_feature_has_a_finite_gradient(length):
    head = CosineLinear.from_linear(make_linear())
    x = torch.full((2, 6), length, requires_grad=True)
    head(x).square().sum().backward()
    assert x.grad.abs().max() < 1e7


def test_with_ldam_it_is_the_published_loss():
    counts, target = [100, 20, 5, 1], torch.arange(8) % 4
    head, x = CosineLinear.from_linear(make_linear(), 10.0), torch.randn(8, 6)
    unit = torch.nn.functional.normalize
    cosines = unit(x) @ unit(head.weight).T
    margins = torch.tensor([0.5 * n**-0.25 for n in counts])
    lowered = cosines - torch.nn.functional.one_hot(target, 4) * margins
    expected = torch.nn.functional.cross_entropy(10 * lowered, target)
    value = LDAMLoss(counts, scale=10.0)(head(x), target)
    torch.testing.assert_close(value, expected)
    grads = [torch.autograd.grad(v, head.weight, retain_graph=True)[0] for v in (value, expected)]
    torch.testing.assert_close(*grads)


def test_it_cannot_be_folded():
    with pytest.raises(UserError, match="a CosineLinear head cannot be folded into an nn.Linear"):
        CosineLinear(3, 2).fold()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(dtype):
    head = CosineLinear.from_linear(make_linear(), 33.3)
    x = torch.randn(16, 6)
    expected = head(x)
    for other in (head, copy.deepcopy(head).to(dtype)):
        out = other(x.to(dtype))
        assert out.dtype == dtype
        assert (out.float() - expected).abs().max() < 0.03 * expected.abs().max()
        out.sum().backward()
        assert other.weight.grad.isfinite().all()
        assert other.cosine_scale.item() == pytest.approx(33.3), "it once was rounded"
    assert CosineLinear.from_linear(make_linear().to(dtype)).weight.dtype == dtype
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = head(x)
    assert out.dtype == torch.bfloat16
    assert (out.float() - expected).abs().max() < 0.03 * expected.abs().max()


def test_state_dict_batch_dimensions_and_meta():
    head, x = CosineLinear.from_linear(make_linear(), 5.0), torch.randn(2, 3, 6)
    fresh = CosineLinear(6, 4)
    fresh.load_state_dict(head.state_dict())
    for other in (fresh, copy.deepcopy(head)):
        assert torch.equal(other(x), head(x)) and other(x).shape == (2, 3, 4)
    empty = copy.deepcopy(head).to("meta")
    assert "scale=?" in repr(empty)
    empty.to_empty(device="cpu").load_state_dict(head.state_dict())
    assert torch.equal(empty(x), head(x))


def test_the_linear_layer_is_not_changed():
    linear = make_linear().eval()
    before = copy.deepcopy(linear.state_dict())
    head = CosineLinear.from_linear(linear)
    assert not head.training
    with torch.no_grad():
        head.weight.zero_()
    assert all(torch.equal(linear.state_dict()[k], v) for k, v in before.items())


@pytest.mark.parametrize("scale", [0, -1, math.inf, math.nan, "30", True])
def test_scales_that_are_not_allowed(scale):
    with pytest.raises(UserError, match="scale must be .* above 0, got"):
        CosineLinear(3, 2, scale)


def test_errors_of_from_linear():
    linear = make_linear()
    with pytest.raises(UserError, match="from_linear needs an nn.Linear, got Conv2d"):
        CosineLinear.from_linear(nn.Conv2d(1, 3, 1))
    with torch.no_grad():
        linear.weight[1] = 0
        linear.weight[2, 0] = math.inf
    with pytest.raises(UserError, match="weights of class 1, 2 are all zero or not finite"):
        CosineLinear.from_linear(linear)
