import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ltlearn import ScaledLinear, UserError


def make_linear(classes=4, width=6, bias=True, seed=0):
    torch.manual_seed(seed)
    return nn.Linear(width, classes, bias)


def make_head(train="scale", **kwargs):
    """A head whose factors are not 1, one of them 0, one below."""
    head = ScaledLinear.from_linear(make_linear(**kwargs), train)
    with torch.no_grad():
        head.scales.copy_(torch.tensor([1.5, 0.0, -0.5, 2.0])[: head.out_features])
    return head


@pytest.mark.parametrize("train", ["scale", "all"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("classes", [2, 4])
def test_logits_are_the_formula(train, bias, classes):
    head = make_head(train, bias=bias, classes=classes)
    x = torch.randn(5, 6)
    w, f = head.weight.detach().numpy().astype(float), head.scales.tolist()
    b = head.bias.tolist() if bias else [0.0] * classes
    expected = [[f[c] * (w[c] @ np.array(row) + b[c]) for c in range(classes)] for row in x.numpy()]
    np.testing.assert_allclose(head(x).detach().numpy(), expected, rtol=1e-5, atol=1e-6)
    norms = [abs(f[c]) * np.linalg.norm(w[c]) for c in range(classes)]
    np.testing.assert_allclose(head.norms().numpy(), norms, rtol=1e-6)
    assert head.norms().dtype == torch.float32


@pytest.mark.parametrize("train", ["scale", "all"])
def test_it_starts_as_the_linear_layer(train):
    linear = make_linear().eval()
    before = copy.deepcopy(linear.state_dict())
    head = ScaledLinear.from_linear(linear, train)
    x = torch.randn(5, 6)
    assert torch.equal(head(x), linear(x)) and not head.training
    with torch.no_grad():
        head.weight.zero_()
    assert all(torch.equal(linear.state_dict()[k], v) for k, v in before.items())


def test_scale_alone_trains_whatever_is_unfrozen():
    head = make_head("scale")
    head.requires_grad_(True)
    assert [name for name, _ in head.named_parameters()] == ["scales"]
    opt = torch.optim.SGD(head.parameters(), lr=0.1, weight_decay=0.1)
    weight, bias, scales = head.weight.clone(), head.bias.clone(), head.scales.clone()
    head(torch.randn(5, 6)).square().sum().backward()
    opt.step()
    assert torch.equal(head.weight, weight) and torch.equal(head.bias, bias)
    assert not torch.equal(head.scales, scales)


@pytest.mark.parametrize("train", ["scale", "all"])
def test_gradients(train):
    head = make_head(train).double()
    names, values = zip(*head.named_parameters(), strict=True)
    assert set(names) == ({"scales"} if train == "scale" else {"scales", "weight", "bias"})
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)

    def run(x, *parameters):
        return torch.func.functional_call(head, dict(zip(names, parameters, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (x, *values))


@pytest.mark.parametrize("factor", [0.2, 3.0])
def test_the_factor_of_the_rate_scales_gradients_and_nothing_else(factor):
    plain, slowed = make_head("all"), make_head("all")
    slowed.head_lr_factor = factor
    x, target = torch.randn(8, 6), torch.arange(8) % 4
    for head in (plain, slowed):
        F.cross_entropy(head(x), target).backward()
    assert torch.equal(plain(x), slowed(x))
    torch.testing.assert_close(slowed.weight.grad, factor * plain.weight.grad)
    torch.testing.assert_close(slowed.bias.grad, factor * plain.bias.grad)
    assert torch.equal(slowed.scales.grad, plain.scales.grad)


@pytest.mark.parametrize("train", ["scale", "all"])
@pytest.mark.parametrize("bias", [True, False])
def test_folded_logits_agree(train, bias):
    head = make_head(train, bias=bias).eval()
    linear = head.fold()
    assert type(linear) is nn.Linear and not linear.training
    assert (linear.bias is not None) == bias
    assert all(p.requires_grad for p in linear.parameters())
    x = torch.randn(64, 6) * 10
    expected = head(x)
    assert (linear(x) - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("train", ["scale", "all"])
def test_other_dtypes(train, dtype):
    head = make_head(train)
    x = torch.randn(16, 6)
    expected = head(x)
    for other in (head, copy.deepcopy(head).to(dtype)):
        out = other(x.to(dtype))
        assert out.dtype == dtype
        assert (out.float() - expected).abs().max() < 0.05 * expected.abs().max()
        out.sum().backward()
        assert other.scales.grad.isfinite().all()
        assert other.fold().weight.dtype == other.weight.dtype
    linear = make_linear().to(dtype)
    assert {v.dtype for k, v in ScaledLinear.from_linear(linear, "all").state_dict().items()} == {
        dtype
    }
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = head(x)
    assert out.dtype == torch.bfloat16
    assert (out.float() - expected).abs().max() < 0.05 * expected.abs().max()


def test_batch_dimensions():
    head, x = make_head(), torch.randn(2, 3, 6)
    assert head(x).shape == (2, 3, 4)
    torch.testing.assert_close(head(x)[1, 2], head(x[1, 2]))


def test_a_state_dict_of_the_other_kind_is_refused():
    scale, everything = make_head("scale"), make_head("all")
    x = torch.randn(5, 6)
    for head in (scale, everything):
        fresh = ScaledLinear.from_linear(make_linear(seed=1), head.trains)
        fresh.load_state_dict(head.state_dict())
        assert torch.equal(fresh(x), head(x))
        assert torch.equal(copy.deepcopy(head)(x), head(x))
    with pytest.raises(RuntimeError, match="Unexpected key.*trains_scales_alone"):
        everything.load_state_dict(scale.state_dict())
    with pytest.raises(RuntimeError, match="Missing key.*trains_scales_alone"):
        scale.load_state_dict(everything.state_dict())


def test_errors_and_repr():
    with pytest.raises(UserError, match="train must be one of scale, all, got 'bias'"):
        ScaledLinear(3, 2, train="bias")
    with pytest.raises(UserError, match="from_linear needs an nn.Linear, got Conv2d"):
        ScaledLinear.from_linear(nn.Conv2d(1, 3, 1))
    assert repr(ScaledLinear(3, 2)) == (
        "ScaledLinear(in_features=3, out_features=2, bias=True, train='scale')"
    )


def test_it_compiles_to_a_graph_without_breaks():
    head, x = make_head("all"), torch.randn(5, 6)
    exported = torch.export.export(head, (x,)).module()
    torch.testing.assert_close(exported(x), head(x))
