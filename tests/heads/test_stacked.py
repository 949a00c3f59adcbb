"""Stacked heads have the logits, the gradients and the projection of the heads themselves."""

import pytest
import torch
from torch import nn

from ltlearn import CosineLinear, SAMNLinear, ScaledLinear
from ltlearn.heads.stacked import Stack, StackedHeads, parts_of, place_of

COUNTS = [90, 40, 40, 7, 2]


def linear(bias=True):
    return nn.Linear(6, len(COUNTS), bias)


def samn(**kwargs):
    head = SAMNLinear.from_linear(linear(), COUNTS, **kwargs)
    with torch.no_grad():
        for raw in (head.raw_norm_weight, head.raw_norm_bias):
            if raw is not None:
                raw.add_(0.3 * torch.randn(len(COUNTS)))
    return head.project_()


def scaled(train="all", factor=1.0, bias=True):
    head = ScaledLinear.from_linear(linear(bias), train=train)
    head.head_lr_factor = factor
    with torch.no_grad():
        head.scales.uniform_(0.5, 2)
    return head


KINDS = {
    "linear": lambda: [linear(), linear(False)],
    "scaled": lambda: [scaled("scale"), scaled(factor=0.1), scaled(bias=False)],
    "cosine": lambda: [CosineLinear.from_linear(linear(), scale) for scale in (8, 16)],
    "samn": lambda: [samn(), samn(start="stage1")],
}
GROUPS = {**KINDS, "all kinds": lambda: [head for make in KINDS.values() for head in make()]}
GROUPS["scaled and samn"] = lambda: [*KINDS["scaled"](), *KINDS["samn"]()]


@pytest.mark.parametrize("make", GROUPS.values(), ids=GROUPS)
def test_logits_and_gradients_equal_autograd(make):
    torch.manual_seed(0)
    heads = make()
    x = torch.randn(len(heads), 9, 6)
    x[0, 0] = 0  # an image without features
    grad = torch.randn(len(heads), 9, len(COUNTS))
    stacked = StackedHeads(heads)
    with torch.no_grad():
        logits = stacked.logits(x)
        gradients = stacked.gradients(x, grad.clone())
    for m, head in enumerate(heads):
        expected = head(x[m])
        torch.testing.assert_close(logits[m], expected, rtol=1e-5, atol=1e-5)
        expected.backward(grad[m])
        for found, p in zip([gradients[0][m], *gradients[1][:, m]], parts_of(head), strict=True):
            if isinstance(p, nn.Parameter):
                torch.testing.assert_close(found, p.grad, rtol=1e-5, atol=2e-5)


def test_the_projection_is_that_of_each_head():
    heads = [linear(), samn(), samn(order=torch.tensor([3.0, 1, 2, 9, 4]))]
    with torch.no_grad():
        for head in heads[1:]:
            head.raw_norm_weight.add_(torch.randn(len(COUNTS)))
            head.raw_norm_bias.sub_(9 * torch.rand(len(COUNTS)))
    stacked = StackedHeads(heads)
    stacked.project_()
    before = heads[0].weight.clone()
    expected = [head.project_().state_dict() for head in heads[1:]]
    expected = [{k: v.clone() for k, v in state.items()} for state in expected]
    stacked.write_back()
    assert torch.equal(heads[0].weight, before)
    for head, state in zip(heads[1:], expected, strict=True):
        for key, value in head.state_dict().items():
            torch.testing.assert_close(value, state[key], rtol=1e-6, atol=1e-6)


def test_a_stack_holds_zeros_for_what_a_head_lacks():
    heads = [linear(), scaled()]
    with torch.no_grad():
        stack = Stack([parts_of(head) for head in heads], heads[0].weight)
        assert stack.vectors[1:, 0].abs().sum() == stack.vectors[2].abs().sum() == 0
        stack.weight[1].fill_(3.0)
        stack.write_back()
    assert (heads[1].weight == 3).all() and not (heads[0].weight == 3).any()


def test_heads_that_a_stack_cannot_hold():
    frozen = linear()
    frozen.bias.requires_grad_(False)
    refused = [samn(on=("weight",)), samn(project="forward"), linear().double(), frozen]
    assert [place_of(head) for head in [*refused, nn.Identity()]] == [None] * 5
    assert [place_of(make()[0]) for make in KINDS.values()] == [0, 1, 2, 3]
