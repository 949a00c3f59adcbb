import math

import pytest
import torch

from ltlearn.errors import UserError
from ltlearn.losses import BalancedSoftmaxLoss, BalPoELoss, LogitAdjustedLoss, SADELoss
from ltlearn.metrics.priors import prior_vector
from tests.losses.helpers import COUNTS, assert_reductions, make_batch, plain_cross_entropy


def make_experts(seed=0, **kwargs):
    """Logits (N, 3, C) and targets."""
    rows = [make_batch(seed=seed + e, **kwargs)[0] for e in range(3)]
    return torch.stack(rows, 1), make_batch(seed=seed, **kwargs)[1]


def adjustments(kind, tau, counts):
    """The logarithms that each expert adds, in plain Python."""
    total = sum(counts)
    prior = [n / total for n in counts]
    # The counts descend.
    reverse = prior[::-1]
    if kind is BalPoELoss:
        return [[e * tau * math.log(p) for p in prior] for e in range(3)]
    rare = [math.log(p) - tau * math.log(r) for p, r in zip(prior, reverse, strict=True)]
    return [[0.0] * len(prior), [math.log(p) for p in prior], rare]


@pytest.mark.parametrize("kind", [BalPoELoss, SADELoss])
@pytest.mark.parametrize("tau", [0, 1, 1.25, 2])
def test_against_a_plain_loop(kind, tau):
    logits, target = make_experts()
    plain = []
    for row, y in zip(logits.tolist(), target.tolist(), strict=True):
        pairs = zip(row, adjustments(kind, tau, COUNTS), strict=True)
        losses = [
            plain_cross_entropy([v + a for v, a in zip(z, own, strict=True)], y) for z, own in pairs
        ]
        plain.append(sum(losses) / (3 if kind is BalPoELoss else 1))

    def make(reduction):
        return kind(COUNTS, tau, reduction)

    assert_reductions(make, logits, target, plain)


def test_the_experts_are_the_losses_of_one_classifier():
    logits, target = make_experts()
    one, two, three = (LogitAdjustedLoss(COUNTS, tau)(z, target) for tau, z in enumerate(
        logits.unbind(1)
    ))  # fmt: skip
    torch.testing.assert_close(BalPoELoss(COUNTS)(logits, target), (one + two + three) / 3)
    sade = SADELoss(COUNTS, tau=0)
    both = BalancedSoftmaxLoss(COUNTS)
    expected = one + both(logits[:, 1], target) + both(logits[:, 2], target)
    torch.testing.assert_close(sade(logits, target), expected)


@pytest.mark.parametrize("counts", [COUNTS, [3, 500, 20, 7], [9, 9, 2, 2]])
def test_the_third_expert_of_sade_has_the_reversed_prior(counts):
    loss = SADELoss(counts)
    prior, reverse = prior_vector("train", counts), prior_vector("reversed", counts)
    expected = (prior.log() - 2 * reverse.log()).float()
    torch.testing.assert_close(loss.adjustments[:, 2], expected)


@pytest.mark.parametrize("kind", [BalPoELoss, SADELoss])
def test_a_class_without_images_changes_no_other(kind):
    with_it, without = kind([500, 0, 20, 7]), kind([500, 20, 7])
    present = with_it.adjustments[[0, 2, 3]]
    torch.testing.assert_close(present, without.adjustments)
    assert with_it.adjustments.isfinite().all()


@pytest.mark.parametrize("kind", [BalPoELoss, SADELoss])
def test_logits_of_the_mean_have_the_mean_adjustment(kind):
    logits, target = make_batch()
    loss = kind(COUNTS)
    shift = loss.adjustments.mean(1)
    expected = torch.nn.functional.cross_entropy(logits + shift, target)
    torch.testing.assert_close(loss(logits, target), expected)
    if kind is BalPoELoss:
        torch.testing.assert_close(
            loss(logits, target), BalancedSoftmaxLoss(COUNTS)(logits, target)
        )


@pytest.mark.parametrize("kind", [BalPoELoss, SADELoss])
def test_gradients_and_class_weights(kind):
    logits, target = make_experts()
    loss = kind(COUNTS)
    for weights in (None, [0.5, 2, 1, 3]):
        loss.set_weights(weights)
        assert torch.autograd.gradcheck(lambda z: loss(z, target), logits.clone().requires_grad_())
    half = logits.bfloat16()
    assert loss(half, target) == loss(half.float(), target)


@pytest.mark.parametrize("kind", [BalPoELoss, SADELoss])
@pytest.mark.parametrize("tau", [-1, math.nan])
def test_tau_out_of_range(kind, tau):
    with pytest.raises(UserError, match=f"tau must be .*, got {tau}"):
        kind(COUNTS, tau)


def test_another_number_of_experts():
    logits, target = make_experts()
    with pytest.raises(UserError, match="BalPoELoss .*3 experts.* 2;"):
        BalPoELoss(COUNTS)(logits[:, :2], target)
    with pytest.raises(UserError, match="SADELoss has no class counts yet"):
        SADELoss()(logits, target)
