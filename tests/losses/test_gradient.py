"""The closed-form gradients of losses equal autograd's."""

import pytest
import torch
from fastai.losses import CrossEntropyLossFlat

from ltlearn import losses
from ltlearn.losses.gradient import loss_and_gradient
from tests.losses.helpers import COUNTS, make_batch

WEIGHTS = [0.5, 1.0, 2.0, 4.0]
LOSSES = {
    "ce": losses.CrossEntropy,
    "ce of fastai": CrossEntropyLossFlat,
    "ce, smoothed by torch": lambda: losses.CrossEntropy(label_smoothing=0.1),
    "balanced softmax": lambda: losses.BalancedSoftmaxLoss(COUNTS),
    "logit-adjusted": lambda: losses.LogitAdjustedLoss(COUNTS, tau=1.5),
    "class-balanced": lambda: losses.ClassBalancedLoss(COUNTS),
    "class-balanced, by images": lambda: losses.ClassBalancedLoss(COUNTS, divide_by="images"),
    "label-aware smoothing": lambda: losses.LabelAwareSmoothingLoss(COUNTS, 0.4, 0.1),
    "LDAM": lambda: losses.LDAMLoss(COUNTS),
    "focal": lambda: losses.SoftmaxFocalLoss(),
    "focal, weighted": lambda: losses.SoftmaxFocalLoss(2.5, COUNTS, beta=0.99),
    "focal, no power": lambda: losses.SoftmaxFocalLoss(0.0),
    "focal on sigmoids": lambda: losses.SigmoidFocalLoss(class_counts=COUNTS),
    "sum": lambda: losses.BalancedSoftmaxLoss(COUNTS, reduction="sum"),
}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("make", LOSSES.values(), ids=LOSSES)
def test_value_and_gradient_equal_autograd(make, weighted):
    loss_func = make()
    if weighted:
        if not hasattr(loss_func, "set_weights"):
            pytest.skip("takes no weights")
        loss_func.set_weights(WEIGHTS)
    logits, target = make_batch(n=12)
    logits = logits.float().requires_grad_()
    loss = loss_func(logits, target)
    loss.backward()
    value, gradient = loss_and_gradient(loss_func)(logits.detach(), target)
    torch.testing.assert_close(value, loss.detach(), rtol=2e-6, atol=2e-6, check_dtype=False)
    torch.testing.assert_close(gradient, logits.grad, rtol=1e-5, atol=1e-6)


def test_weights_that_change_are_read_again():
    loss_func = losses.CrossEntropy()
    call = loss_and_gradient(loss_func)
    logits, target = make_batch()
    before = call(logits.float(), target)[0]
    loss_func.set_weights(WEIGHTS)
    assert call(logits.float(), target)[0] != before


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 3.0])
def test_focal_loss_of_images_that_are_certain(gamma):
    logits, target = torch.eye(3) * torch.tensor([20.0, 90.0, 500.0]), torch.arange(3)
    logits = torch.cat([logits, logits[:1]]).requires_grad_()
    target = torch.cat([target, torch.tensor([2])])
    loss_func = losses.SoftmaxFocalLoss(gamma)
    loss = loss_func(logits, target)
    loss.backward()
    value, gradient = loss_and_gradient(loss_func)(logits.detach(), target)
    torch.testing.assert_close(value, loss.detach())
    torch.testing.assert_close(gradient, logits.grad, rtol=1e-5, atol=1e-7)
