import math

import pytest
import torch

from ltlearn.errors import UserError
from ltlearn.losses import CrossEntropy, SigmoidFocalLoss, SoftmaxFocalLoss
from tests.losses.helpers import (
    COUNTS,
    assert_reductions,
    make_batch,
    plain_cross_entropy,
    plain_weights,
    rows_of,
)

BETAS = [None, 0, 0.9, 0.9999]


def weights_of(beta):
    return [1.0] * 4 if beta is None else plain_weights(COUNTS, beta)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("gamma", [0, 0.5, 1, 2])
def test_softmax_form_against_a_plain_loop(gamma, beta):
    logits, target = make_batch()
    plain = []
    for z, y in rows_of(logits, target):
        t = weights_of(beta)[y] * plain_cross_entropy(z, y)
        plain.append((1 - math.exp(-t)) ** gamma * t)

    def make(reduction):
        return SoftmaxFocalLoss(gamma, COUNTS, beta, reduction)

    assert_reductions(make, logits, target, plain)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("gamma", [0, 0.5, 1, 2])
def test_sigmoid_form_against_a_plain_loop(gamma, beta):
    logits, target = make_batch()
    plain = []
    for z, y in rows_of(logits, target):
        total = 0
        for c in range(4):
            p = 1 / (1 + math.exp(-z[c]))
            q = p if c == y else 1 - p
            total += (1 - q) ** gamma * -math.log(q)
        plain.append(weights_of(beta)[y] * total)

    def make(reduction):
        return SigmoidFocalLoss(gamma, COUNTS, beta, reduction)

    assert_reductions(make, logits, target, plain)


def test_softmax_form_without_gamma_is_cross_entropy():
    logits, target = make_batch()
    torch.testing.assert_close(SoftmaxFocalLoss(0)(logits, target), CrossEntropy()(logits, target))


@pytest.mark.parametrize("gamma", [0, 0.1, 0.9, 1, 2])
@pytest.mark.parametrize("make", [SoftmaxFocalLoss, SigmoidFocalLoss])
def test_certainty_has_a_gradient(make, gamma):
    """The slope of x ** 0.5 at 0 is infinite; times a loss of 0 it was no number."""
    logits = torch.tensor([[200.0, -200.0], [-200.0, 200.0]], requires_grad=True)
    loss = make(gamma)(logits, torch.tensor([0, 0]))
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(logits.grad).all()
    assert not logits.grad[0].any() and logits.grad[1].all()


@pytest.mark.parametrize("make", [SoftmaxFocalLoss, SigmoidFocalLoss])
def test_a_target_without_images_adds_nothing(make):
    logits = torch.randn(2, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    loss = make(2, [5, 0, 2], 0.9, reduction="sum")
    loss(logits, torch.tensor([0, 1])).backward()
    assert logits.grad[0].all() and not logits.grad[1].any()


def test_activation_of_the_sigmoid_form():
    logits, _ = make_batch()
    assert torch.equal(SigmoidFocalLoss().activation(logits), logits.sigmoid())


@pytest.mark.parametrize("make", [SoftmaxFocalLoss, SigmoidFocalLoss])
def test_values_out_of_range(make):
    with pytest.raises(UserError, match="gamma must be .*, got -1"):
        make(-1)
    with pytest.raises(UserError, match="beta must be .*, got 1"):
        make(beta=1)


def test_weights_survive_counts_that_are_not_used():
    loss = SoftmaxFocalLoss()
    loss.set_weights([1, 2, 3, 4])
    loss.set_class_counts(COUNTS)
    loss.set_class_counts(None)
    assert loss.weights.tolist() == [1, 2, 3, 4]
