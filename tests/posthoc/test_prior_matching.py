"""Prior matching: the shift that makes every class equally frequent among the predictions."""

import pytest
import torch
from torch import nn

from ltlearn import UserError
from ltlearn.posthoc import adjust_logits, match_prior

COUNTS = [500, 120, 120, 30, 4]


def _data(n=400, counts=COUNTS, seed=0):
    """Return features, labels in the shares of the counts, and a classifier that favours heads."""
    g = torch.Generator().manual_seed(seed)
    shares = torch.tensor(counts, dtype=torch.float) + 8
    targets = torch.multinomial(shares, n, replacement=True, generator=g)
    targets[: len(counts)] = torch.arange(len(counts))
    x = 1.5 * nn.functional.one_hot(targets, len(counts)) + torch.randn(n, len(counts), generator=g)
    linear = nn.Linear(len(counts), len(counts))
    with torch.no_grad():
        linear.weight.copy_(1.5 * torch.eye(len(counts)))
        linear.bias.copy_((shares / shares.sum()).log())
    return x, targets, linear


def _mean_probabilities(head, x, targets):
    probs = head(x).double().softmax(1).detach()
    return torch.stack([probs[targets == c].mean(0) for c in targets.unique()]).mean(0)


def test_every_class_is_predicted_equally_often_where_the_order_does_not_bind():
    x, targets, linear = _data(counts=[500, 121, 120, 30, 4], n=5000)
    head = match_prior(linear, x, targets, [500, 121, 120, 30, 4])
    shift = (head.bias - linear.bias).detach()
    assert (shift.diff() > 0).all()  # all distinct: no class is pooled
    assert torch.allclose(
        _mean_probabilities(head, x, targets), torch.full((5,), 0.2).double(), atol=1e-4
    )


def test_the_shift_meets_the_conditions_of_the_ordered_minimum():
    x, targets, linear = _data()
    with torch.no_grad():
        linear.bias[3:] += torch.tensor([2.0, 4.0])  # now the rarest classes are favoured
    head = match_prior(linear, x, targets, COUNTS)
    shift = (head.bias - linear.bias).detach().double()
    order = [0, [1, 2], 3, 4]  # groups of equal counts
    groups = [shift[i] for i in order]
    assert groups[1][0] == groups[1][1]
    levels = torch.tensor([g if g.ndim == 0 else g[0] for g in groups])
    assert (levels.diff() >= 0).all() and levels[0] == 0
    # Gradient of the objective by group, from the head of the distribution to its tail.
    gradient = _mean_probabilities(head, x, targets) - 0.2
    gradient = torch.stack([gradient[i].sum() for i in order])
    partial = gradient.cumsum(0)
    assert partial[-1].abs() < 1e-6
    blocks = torch.cat([torch.tensor([True]), levels.diff() > 1e-7, torch.tensor([True])])
    for k in range(1, len(levels)):
        # Between two blocks the sum is 0; inside a block no split would lower the objective.
        assert partial[k - 1].abs() < 1e-4 if blocks[k] else partial[k - 1] < 1e-4
    assert not blocks[1:-1].all()


def test_equal_counts_change_nothing():
    x, targets, linear = _data()
    head = match_prior(linear, x, targets, [50] * 5)
    assert torch.equal(head.bias, linear.bias) and torch.equal(head.weight, linear.weight)


def test_a_calibrated_classifier_gets_the_shift_of_logit_adjustment():
    g = torch.Generator().manual_seed(1)
    share = torch.tensor([0.7, 0.2, 0.1])
    targets = torch.multinomial(share, 60_000, replacement=True, generator=g)
    x = 2.0 * nn.functional.one_hot(targets, 3) + torch.randn(60_000, 3, generator=g)
    linear = nn.Linear(3, 3)
    with torch.no_grad():  # Bayes' rule for these features
        linear.weight.copy_(2 * torch.eye(3))
        linear.bias.copy_(share.log())
    counts = (share * 1000).round()
    ours = match_prior(linear, x, targets, counts).bias
    theirs = adjust_logits(linear, counts).bias
    assert torch.allclose(ours - ours[0], theirs - theirs[0], atol=0.05)


def test_a_class_without_held_out_images_takes_the_shift_of_a_more_frequent_one():
    x, targets, linear = _data()
    seen = targets != 4
    head = match_prior(linear, x[seen], targets[seen], COUNTS)
    shift = head.bias - linear.bias
    assert shift[4] == shift[3]
    seen = targets != 3
    head = match_prior(linear, x[seen], targets[seen], COUNTS)
    shift = head.bias - linear.bias
    assert shift[3] == shift[1] == shift[2]


def test_wrong_counts_are_refused():
    x, targets, linear = _data()
    with pytest.raises(UserError, match=r"class_counts.*5 classes, got 3"):
        match_prior(linear, x, targets, [3, 2, 1])
