"""A loss and its gradient with respect to the logits, in closed form where there is one."""

from collections.abc import Callable
from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch.nn import functional as F

from ltlearn.losses.balanced_softmax import BalancedSoftmaxLoss
from ltlearn.losses.class_balanced import ClassBalancedLoss
from ltlearn.losses.counted import CountedLoss
from ltlearn.losses.cross_entropy import CrossEntropy
from ltlearn.losses.focal import SoftmaxFocalLoss
from ltlearn.losses.label_aware_smoothing import LabelAwareSmoothingLoss
from ltlearn.losses.ldam import LDAMLoss
from ltlearn.losses.logit_adjusted import LogitAdjustedLoss

__all__ = ["LossAndGradient", "has_closed_form", "loss_and_gradient"]

LossAndGradient = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
_COUNTED = (
    BalancedSoftmaxLoss, ClassBalancedLoss, LabelAwareSmoothingLoss, LDAMLoss, LogitAdjustedLoss,
)  # fmt: skip


def loss_and_gradient(loss_func: Callable) -> LossAndGradient:
    """Return a function of (logits, targets) that returns the loss and its gradient.

    There is a closed form for the losses that are a cross-entropy of shifted logits with smoothed
    or weighted targets, and for the focal loss on softmax probabilities; any other loss is
    differentiated by autograd. Values and gradients are equal up to rounding. Class counts and
    weights are read at each call.

    Args:
        loss_func: Takes (logits, targets) to a scalar.

    Shape:
        The returned function takes logits (N, C), float32 or float64, and targets (N,), int64. It
        returns a scalar and (N, C), both detached.

    Example:
        >>> loss, gradient = loss_and_gradient(CrossEntropy())(torch.zeros(1, 2), torch.tensor([0]))
        >>> gradient
        tensor([[-0.5000,  0.5000]])
    """
    if _is_plain(loss_func):
        plain = loss_func
        return lambda logits, target: _cross_entropy(logits, target, None, plain.weight, "weights")
    if _is_averaged_cross_entropy(loss_func):
        return _with_first_call_checked(loss_func, _of_counted(loss_func))
    if _is_focal(loss_func):
        focal = loss_func
        return _with_first_call_checked(
            focal, lambda z, y: _focal(z, y, focal.weights, focal.gamma)
        )
    return lambda logits, target: _by_autograd(loss_func, logits, target)


def has_closed_form(loss_func: Callable) -> bool:
    """Return whether a loss and its gradient have a closed form; see `loss_and_gradient`.

    Args:
        loss_func: Takes (logits, targets) to a scalar.
    """
    return any(of(loss_func) for of in (_is_plain, _is_averaged_cross_entropy, _is_focal))


def _of_counted(loss_func: CountedLoss) -> LossAndGradient:
    divide_by = getattr(loss_func, "divide_by", "weights")

    def call(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        smoothing = getattr(loss_func, "smoothing", None)
        logits = _shifted(loss_func, logits, target)
        return _cross_entropy(logits, target, smoothing, loss_func.weights, divide_by)

    return call


def _shifted(loss_func: CountedLoss, logits: Tensor, target: Tensor) -> Tensor:
    """Return the logits that the loss takes the cross-entropy of."""
    if isinstance(loss_func, LDAMLoss):
        margin = loss_func.margins.gather(0, target).mul_(-loss_func.scale)
        return logits.scatter_add(1, target.unsqueeze(1), margin.unsqueeze(1))
    prior = getattr(loss_func, "log_prior", None)
    return logits if prior is None else logits + prior


def _is_focal(loss_func: Any) -> TypeGuard[SoftmaxFocalLoss]:
    return type(loss_func) is SoftmaxFocalLoss and loss_func.reduction == "mean"


def _is_averaged_cross_entropy(loss_func: Any) -> TypeGuard[CountedLoss]:
    return type(loss_func) in _COUNTED and loss_func.reduction == "mean"


def _is_plain(loss_func: Any) -> TypeGuard[CrossEntropy]:
    own = type(loss_func) is CrossEntropy
    return own and loss_func.reduction == "mean" and loss_func.label_smoothing == 0


def _with_first_call_checked(loss_func: CountedLoss, closed: LossAndGradient) -> LossAndGradient:
    """Run the loss itself on the first batch: it checks shapes and moves its buffers."""
    checked = False

    def call(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal checked
        if not checked:
            with torch.no_grad():
                loss_func(logits, target)
            checked = True
        return closed(logits, target)

    return call


def _cross_entropy(
    logits: Tensor, target: Tensor, smoothing: Tensor | None, weights: Tensor | None, divide_by: str
) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy with smoothed targets and class weights, and its gradient.

    With p the softmax and e the smoothing of the target's class y, the loss of an image is
    -(1 - e) log p_y - e mean(log p), and its gradient p - (1 - e) onehot(y) - e / C.
    """
    images, classes = logits.shape
    log_p = logits.log_softmax(1)
    column = target.unsqueeze(1)
    if smoothing is None and weights is None:
        loss = F.nll_loss(log_p, target)
        gradient = log_p.exp_().scatter_add_(1, column, log_p.new_full((images, 1), -1))
        return loss, gradient.div_(images)
    if weights is None:
        share = log_p.new_full((images, 1), 1 / images)
    else:
        share = weights.gather(0, target).unsqueeze(1)
        total = share.sum().clamp_(min=torch.finfo(weights.dtype).tiny)
        share = share / (images if divide_by == "images" else total)
    losses, at_target = log_p.gather(1, column), share
    if smoothing is not None:
        smoothed = smoothing.gather(0, target).unsqueeze(1)
        losses = torch.lerp(losses, log_p.mean(1, keepdim=True), smoothed)
        smoothed = smoothed * share
        at_target = share - smoothed
    loss = -torch.dot(losses.squeeze(1), share.squeeze(1))
    gradient = log_p.exp_().mul_(share).scatter_add_(1, column, -at_target)
    if smoothing is not None:
        gradient.sub_(smoothed / classes)
    return loss, gradient


def _focal(
    logits: Tensor, target: Tensor, weights: Tensor | None, gamma: float
) -> tuple[Tensor, Tensor]:
    """Return the focal loss and its gradient.

    With t = -w_y log p_y and n = 1 - exp(-t), the loss of an image is n ** gamma t, and its
    gradient w_y (n ** gamma + gamma n ** (gamma - 1) exp(-t) t) (p - onehot(y)).
    """
    log_p, column = logits.log_softmax(1), target.unsqueeze(1)
    t = -log_p.gather(1, column)
    if weights is not None:
        weight = weights.gather(0, target).unsqueeze(1)
        t = t * weight
    # As in the loss, n is kept above 0.
    n = (-torch.expm1(-t)).clamp_(min=torch.finfo(t.dtype).tiny)
    power = n**gamma
    slope = power + gamma * n ** (gamma - 1) * t * (-t).exp()
    slope = (slope if weights is None else slope * weight) / len(logits)
    return (power * t).mean(), log_p.exp_().mul_(slope).scatter_add_(1, column, -slope)


def _by_autograd(loss_func: Callable, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        logits = logits.detach().requires_grad_()
        loss = loss_func(logits, target)
        (gradient,) = torch.autograd.grad(loss, logits)
    return loss.detach(), gradient
