import math

import pytest
import torch

from ltlearn.errors import UserError
from ltlearn.losses import BalancedSoftmaxLoss, CrossEntropy, LogitAdjustedLoss
from tests.losses.helpers import COUNTS, assert_reductions, make_batch, plain_cross_entropy, rows_of


@pytest.mark.parametrize("tau", [0, 0.5, 1, 2, 9])
def test_against_a_plain_loop(tau):
    logits, target = make_batch()
    total = sum(COUNTS)
    prior = [math.log((n / total) ** tau + 1e-12) for n in COUNTS]
    plain = [
        plain_cross_entropy([v + a for v, a in zip(z, prior, strict=True)], y)
        for z, y in rows_of(logits, target)
    ]

    def make(reduction):
        return LogitAdjustedLoss(COUNTS, tau, reduction)

    assert_reductions(make, logits, target, plain)


@pytest.mark.parametrize("counts", [COUNTS, [120, 30, 0, 1]])
@pytest.mark.parametrize("absent", [2, None])
def test_tau_one_is_balanced_softmax(counts, absent):
    logits, target = make_batch(absent=absent)
    torch.testing.assert_close(
        LogitAdjustedLoss(counts)(logits, target),
        BalancedSoftmaxLoss(counts)(logits, target),
        rtol=1e-6,
        atol=1e-6,
    )


@pytest.mark.parametrize("counts", [COUNTS, [120, 30, 0, 1]])
def test_tau_zero_is_cross_entropy(counts):
    logits, target = make_batch()
    torch.testing.assert_close(
        LogitAdjustedLoss(counts, tau=0)(logits, target), CrossEntropy()(logits, target)
    )


def test_predictions_are_from_the_plain_logits():
    logits, _ = make_batch()
    assert torch.equal(LogitAdjustedLoss(COUNTS).activation(logits), logits.softmax(1))


@pytest.mark.parametrize("tau", [-1, math.nan, math.inf])
def test_tau_out_of_range(tau):
    with pytest.raises(UserError, match=f"tau must be .*, got {tau}"):
        LogitAdjustedLoss(COUNTS, tau)
