"""The closed-form gradients of heads equal autograd's."""

import copy
import sys

import pytest
import torch
from torch import nn

from ltlearn import CosineLinear, SAMNLinear, ScaledLinear, UserError
from ltlearn.heads import NormalizedFeatureHead, gradient
from ltlearn.heads.gradient import (
    KERNEL_STEPS,
    CompiledSAMNGradient,
    SAMNGradient,
    closed_form_of,
)

COUNTS = [90, 40, 40, 7, 2]


def linear(bias=True):
    torch.manual_seed(0)
    return nn.Linear(6, len(COUNTS), bias)


def samn(on, bias=True, high=None, start="published"):
    head = SAMNLinear.from_linear(linear(bias), COUNTS, on=on, start=start)
    with torch.no_grad():
        for part in on:
            raw = getattr(head, f"raw_norm_{part}")
            raw.add_(0.1 * torch.randn(len(COUNTS)))
            if high:
                raw[0] = high
    return head.project_()


def slowed():
    head = ScaledLinear.from_linear(linear(), train="all")
    head.head_lr_factor = 0.1
    with torch.no_grad():
        head.scales.uniform_(0.5, 2)
    return head


HEADS = {
    "linear": linear,
    "linear without bias": lambda: linear(False),
    "scales": lambda: ScaledLinear.from_linear(linear()),
    "scales and weights": slowed,
    "scales without bias": lambda: ScaledLinear.from_linear(linear(False), train="all"),
    "cosine": lambda: CosineLinear.from_linear(linear(), scale=16),
    "samn": lambda: samn(("weight", "bias")),
    "samn from the norms of stage 1": lambda: samn(("weight", "bias"), start="stage1"),
    "samn on weights": lambda: samn(("weight",)),
    "samn on weights without bias": lambda: samn(("weight",), False),
    "samn on the bias": lambda: samn(("bias",)),
    "linear on normalised features": lambda: NormalizedFeatureHead(linear(), 5.0),
    "samn on normalised features": lambda: NormalizedFeatureHead(samn(("weight", "bias")), 5.0),
    "samn, raw norms that overflow exp": lambda: samn(("weight", "bias"), high=200.0),
}
# Each head, and those of SAMN with compiled steps, too.
FORMS = [(name, 0) for name in HEADS] + [(name, KERNEL_STEPS) for name in HEADS if "samn" in name]
forms = pytest.mark.parametrize("name, steps", FORMS)
both = pytest.mark.parametrize("steps", [0, KERNEL_STEPS])


@forms
def test_logits_and_gradients_equal_autograd(name, steps):
    head = HEADS[name]()
    x, grad = torch.randn(9, 6), torch.randn(9, len(COUNTS))
    expected = head(x)
    expected.backward(grad)
    form = closed_form_of(head, steps)
    with torch.no_grad():
        torch.testing.assert_close(form.logits(x), expected.detach(), rtol=2e-6, atol=2e-6)
        before = [p.detach().clone() for p in head.parameters()]
        for updated, gradient in zip(form.updated, form.gradients(x, grad), strict=True):
            updated.sub_(gradient)
    form.close()
    assert [id(p) for p in form.parameters] == [id(p) for p in head.parameters()]
    for p, old in zip(head.parameters(), before, strict=True):
        torch.testing.assert_close(old - p, p.grad, rtol=1e-5, atol=1e-5)


@forms
def test_the_next_form_continues_with_the_momenta(name, steps):
    head = HEADS[name]()
    own = {id(p): torch.full_like(p, number) for number, p in enumerate(head.parameters())}
    for _ in range(2):
        form = closed_form_of(head, steps)
        with torch.no_grad():
            for momentum, updated in zip(
                form.momenta(lambda p: own[id(p)]), form.updated, strict=True
            ):
                assert momentum.shape == updated.shape
                momentum.add_(1)
        form.close()
    for number, p in enumerate(head.parameters()):
        torch.testing.assert_close(own[id(p)], torch.full_like(p, number + 2))


@both
@pytest.mark.parametrize("on", [("weight", "bias"), ("weight",), ("bias",)])
def test_projection_equals_the_heads(on, steps):
    head = samn(on)
    other = copy.deepcopy(head)
    form = closed_form_of(head, steps)
    with torch.no_grad():
        for name, raw in head.named_parameters():
            if name.startswith("raw"):
                step = torch.randn(len(COUNTS))
                raw.add_(step)
                other.get_parameter(name).add_(step)
    form.project_()
    form.close()
    other.project_()
    for name, value in head.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[name], rtol=1e-6, atol=1e-6)
    storages = {p.untyped_storage().data_ptr() for p in head.parameters()}
    assert len(storages) == len(list(head.parameters()))


def test_a_head_that_is_partly_frozen_or_projects_forward_has_none():
    frozen = linear()
    frozen.bias.requires_grad_(False)
    forward = SAMNLinear.from_linear(linear(), COUNTS, project="forward")
    assert closed_form_of(frozen) is None
    assert closed_form_of(forward) is None
    assert closed_form_of(linear().double()) is None


@both
def test_raw_norms_that_are_not_finite_are_reported_and_left(steps):
    head = samn(("weight", "bias"))
    form = closed_form_of(head, steps)
    for value in float("nan"), float("inf"):
        with torch.no_grad():
            head.raw_norm_weight[0], head.raw_norm_bias[3] = 7.0, value
        assert form.logits(torch.randn(2, 6)).isnan().any() == (value != value)
        before = form.updated[1].clone()
        with pytest.raises(UserError, match="raw norms"):
            form.project_()
        assert torch.equal(form.updated[1].nan_to_num(), before.nan_to_num())


def test_batches_of_several_sizes_get_logits_of_their_own():
    head = samn(("weight", "bias"))
    form = closed_form_of(head, KERNEL_STEPS)
    x = torch.randn(9, 6)
    with torch.no_grad():
        for size in (9, 4, 9, 1):
            torch.testing.assert_close(form.logits(x[:size]), head(x[:size]))
            # Such as the gradient of a loss that sums over images.
            wide = torch.randn(len(COUNTS), size).t()
            expected = closed_form_of(copy.deepcopy(head))
            expected.logits(x[:size])
            for pair in zip(
                form.gradients(x[:size], wide), expected.gradients(x[:size], wide.clone()),
                strict=True,
            ):  # fmt: skip
                torch.testing.assert_close(*pair, rtol=1e-5, atol=1e-5)


def test_a_long_fit_is_compiled_where_numba_is_installed(monkeypatch):
    def kind(steps):
        gradient._kernel.cache_clear()
        try:
            return type(closed_form_of(samn(("weight",)), steps))
        finally:
            gradient._kernel.cache_clear()

    assert kind(KERNEL_STEPS - 1) is SAMNGradient
    assert kind(KERNEL_STEPS) is CompiledSAMNGradient
    with monkeypatch.context() as patch:
        patch.setattr("ltlearn.heads.samn_kernel.scale_logits", lambda *args: None)
        assert kind(KERNEL_STEPS) is SAMNGradient
    # As if it were imported for the first time, without numba.
    monkeypatch.delattr("ltlearn.heads.samn_kernel")
    monkeypatch.delitem(sys.modules, "ltlearn.heads.samn_kernel")
    monkeypatch.setitem(sys.modules, "numba", None)
    assert kind(KERNEL_STEPS) is SAMNGradient
