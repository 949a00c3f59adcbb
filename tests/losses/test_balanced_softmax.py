import math

import pytest
import torch

from ltlearn.losses import BalancedSoftmaxLoss
from tests.losses.helpers import COUNTS, assert_reductions, make_batch, plain_cross_entropy, rows_of


def test_against_a_plain_loop():
    logits, target = make_batch()
    plain = [
        plain_cross_entropy([v + math.log(n) for v, n in zip(z, COUNTS, strict=True)], y)
        for z, y in rows_of(logits, target)
    ]

    def make(reduction):
        return BalancedSoftmaxLoss(COUNTS, reduction)

    assert_reductions(make, logits, target, plain)


def test_a_class_without_images_leaves_the_softmax():
    logits, target = make_batch(absent=1)
    with_it = BalancedSoftmaxLoss([120, 0, 7, 1])(logits, target)
    kept = [0, 2, 3]
    without = BalancedSoftmaxLoss([120, 7, 1])(logits[:, kept], torch.tensor([0, -1, 1, 2])[target])
    torch.testing.assert_close(with_it, without, rtol=1e-6, atol=1e-6)


def test_a_target_without_images_costs_much_but_not_infinitely_much():
    loss = BalancedSoftmaxLoss([1, 0])(torch.zeros(1, 2), torch.tensor([1]))
    assert loss.item() == pytest.approx(-math.log(1e-12), rel=1e-6)


def test_predictions_are_from_the_plain_logits():
    logits, _ = make_batch()
    assert torch.equal(BalancedSoftmaxLoss(COUNTS).activation(logits), logits.softmax(1))
