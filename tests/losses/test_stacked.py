"""Stacked losses and their gradients equal each loss alone."""

import copy

import pytest
import torch

from ltlearn.losses import (
    BalancedSoftmaxLoss,
    ClassBalancedBCELoss,
    ClassBalancedLoss,
    CrossEntropy,
    LabelAwareSmoothingLoss,
    LDAMLoss,
    LogitAdjustedLoss,
    SigmoidFocalLoss,
    SoftmaxFocalLoss,
)
from ltlearn.losses.gradient import loss_and_gradient
from ltlearn.losses.stacked import StackedLoss

COUNTS = [90, 40, 7, 2]
WEIGHTS = [0.2, 0.5, 1.3, 2.0]
CPU = torch.device("cpu")


def weighted(loss):
    loss.set_weights(WEIGHTS)
    return loss


LOSSES = {
    "cross-entropy": lambda: CrossEntropy(),
    "weighted cross-entropy": lambda: weighted(CrossEntropy()),
    "balanced softmax": lambda: BalancedSoftmaxLoss(COUNTS),
    "class-balanced": lambda: ClassBalancedLoss(COUNTS, beta=0.99),
    "class-balanced by images": lambda: ClassBalancedLoss(COUNTS, 0.99, divide_by="images"),
    "focal": lambda: SoftmaxFocalLoss(gamma=1.0),
    "focal, weighted": lambda: SoftmaxFocalLoss(2.0, COUNTS, beta=0.99),
    "smoothed": lambda: LabelAwareSmoothingLoss(COUNTS, 0.3, 0.1),
    "smoothed, weighted": lambda: weighted(LabelAwareSmoothingLoss(COUNTS, 0.3, 0.0)),
    "LDAM": lambda: LDAMLoss(COUNTS),
    "LDAM, weighted": lambda: weighted(LDAMLoss(COUNTS)),
    "logit-adjusted": lambda: LogitAdjustedLoss(COUNTS, tau=0.5),
    "BCE": lambda: ClassBalancedBCELoss(COUNTS, beta=0.99),
    "sigmoid focal": lambda: SigmoidFocalLoss(1.0, COUNTS, beta=0.99),
    "a function": lambda: lambda logits, target: (logits**2).mean() + logits[0, 0],
}


def assert_equal_alone(losses):
    torch.manual_seed(0)
    logits = 3 * torch.randn(len(losses), 8, 4)
    target = torch.randint(0, 4, (len(losses), 8))
    with torch.no_grad():
        values, gradients = StackedLoss(losses, 4, CPU)(logits.clone(), target)
    for m, loss in enumerate(losses):
        value, gradient = loss_and_gradient(loss)(logits[m], target[m])
        torch.testing.assert_close(values[m], value, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(gradients[m], gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", LOSSES.values(), ids=LOSSES)
def test_a_loss_with_itself(make):
    assert_equal_alone([make(), make()])


def test_all_losses_together():
    assert_equal_alone([make() for make in LOSSES.values()] + [ClassBalancedBCELoss(COUNTS)])


def test_equal_losses_share_a_call(monkeypatch):
    calls = []
    forward = ClassBalancedBCELoss.forward
    monkeypatch.setattr(
        ClassBalancedBCELoss,
        "forward",
        lambda self, z, y: (calls.append(len(y)), forward(self, z, y))[1],
    )
    bce = ClassBalancedBCELoss(COUNTS)
    losses = [bce, copy.deepcopy(bce), ClassBalancedBCELoss(COUNTS, beta=0.5), CrossEntropy()]
    StackedLoss(losses, 4, CPU)(torch.randn(4, 5, 4), torch.zeros(4, 5, dtype=torch.int64))
    assert sorted(calls) == [5, 10]
