"""The losses of several trainings, each on its own logits, in few operations."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ltlearn.losses.class_balanced import ClassBalancedBCELoss
from ltlearn.losses.focal import SigmoidFocalLoss
from ltlearn.losses.gradient import has_closed_form, loss_and_gradient

__all__ = ["StackedLoss"]

# Their mean divides by the number of images, so several trainings can share one call.
_MEAN_OVER_IMAGES = (ClassBalancedBCELoss, SigmoidFocalLoss)


class StackedLoss:
    """The losses of M trainings, and their gradients.

    All losses that have a closed form are one cross-entropy with a table of priors, margins,
    weights and smoothing. Of the others, equal ones share a call. Class counts and weights are
    read when the object is made.

    Args:
        losses: The loss of each training; takes (logits, targets) to a scalar.
        classes: C.
        device: Where the logits are.

    Shape:
        A call takes logits (M, N, C), float32, and targets (M, N), int64. It returns (M,) and
        (M, N, C).
    """

    def __init__(self, losses: Sequence[Callable], classes: int, device: torch.device):
        self._others = _grouped(losses, device)
        closed = [loss if has_closed_form(loss) else None for loss in losses]
        self._any_closed = any(loss is not None for loss in closed)

        def table(values: list[Tensor | None], empty: float) -> Tensor | None:
            if all(v is None for v in values):
                return None
            none = torch.full((classes,), empty)
            return torch.stack([(none if v is None else v.float()).to(device) for v in values])

        def of(name: str) -> list:
            return [getattr(loss, name, None) for loss in closed]

        scales = [v if v is None else -v for v in of("scale")]
        margins = [m if m is None else m * s for m, s in zip(of("margins"), scales, strict=True)]
        self._margins = table(margins, 0.0)
        self._prior, self._smoothing = table(of("log_prior"), 0.0), table(of("smoothing"), 0.0)
        self._weights = table(of("weights"), 1.0)
        gammas = of("gamma")
        # The focal loss divides by the number of images; for a weight of 1 there is no difference.
        self._by_images = torch.tensor(
            [g is not None or d == "images" for g, d in zip(gammas, of("divide_by"), strict=True)],
            device=device,
        ).unsqueeze(1)
        self._gamma = None
        if any(gammas):
            self._gamma = torch.tensor([g or 0.0 for g in gammas], device=device).unsqueeze(1)

    def __call__(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return the losses and the gradients of the logits."""
        if self._any_closed:
            losses, gradient = self._closed(logits, target)
        else:
            losses, gradient = torch.zeros_like(logits[:, 0, 0]), torch.zeros_like(logits)
        for call, members in self._others:
            z, y = logits.index_select(0, members), target.index_select(0, members)
            own_losses, own_gradient = call(z, y)
            losses.index_copy_(0, members, own_losses)
            gradient.index_copy_(0, members, own_gradient)
        return losses, gradient

    def _closed(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cross-entropies; see `ltlearn.losses.gradient` for the formulas."""
        images, classes = logits.shape[1:]
        column = target.unsqueeze(2)
        if self._prior is not None:
            logits = logits + self._prior.unsqueeze(1)
        if self._margins is not None:
            margin = self._margins.gather(1, target).unsqueeze(2)
            logits = logits.scatter_add(2, column, margin)
        log_p = logits.log_softmax(2)
        at = log_p.gather(2, column).squeeze(2)
        share, power = at.new_full(at.shape, 1 / images), None
        if self._weights is not None:
            share = self._weights.gather(1, target)
            total = share.sum(1, keepdim=True).clamp_(min=torch.finfo(share.dtype).tiny)
            share = share / total.masked_fill_(self._by_images, images)
        slope = share
        if self._gamma is not None:
            t = -at if self._weights is None else -at * self._weights.gather(1, target)
            n = (-torch.expm1(-t)).clamp_(min=torch.finfo(t.dtype).tiny)
            power = n**self._gamma
            slope = share * (power + self._gamma * n ** (self._gamma - 1) * t * (-t).exp())
        kept, at_target = at, slope
        if self._smoothing is not None:
            smoothed = self._smoothing.gather(1, target)
            kept = torch.lerp(at, log_p.mean(2), smoothed)
            smoothed = smoothed * slope
            at_target = slope - smoothed
        losses = -(kept * (share if power is None else share * power)).sum(1)
        gradient = log_p.exp_().mul_(slope.unsqueeze(2))
        gradient.scatter_add_(2, column, -at_target.unsqueeze(2))
        if self._smoothing is not None:
            gradient.sub_((smoothed / classes).unsqueeze(2))
        return losses, gradient


def _grouped(losses: Sequence[Callable], device: torch.device) -> list[tuple[Callable, Tensor]]:
    """Return a function for each kind of loss without a closed form, and whose losses it takes."""
    groups: dict[object, list[int]] = {}
    for m, loss in enumerate(losses):
        if not has_closed_form(loss):
            groups.setdefault(_key(loss, m), []).append(m)
    return [
        (_of_several(losses[members[0]]), torch.tensor(members, device=device))
        for members in groups.values()
    ]


def _takes_several(loss: Any) -> bool:
    return type(loss) in _MEAN_OVER_IMAGES and loss.reduction == "mean"


def _key(loss: Any, m: int) -> object:
    if not _takes_several(loss):
        return m
    weights = None if loss.weights is None else tuple(loss.weights.tolist())
    return type(loss), repr(loss), weights


def _of_several(loss: Any) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    if not _takes_several(loss):
        alone = loss_and_gradient(loss)

        def of_one(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
            value, gradient = alone(logits[0], target[0])
            return value.reshape(1), gradient.unsqueeze(0)

        return of_one
    each = copy.copy(loss)
    each.reduction = "none"

    def of_equal(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            logits = logits.detach().requires_grad_()
            means = each(logits.flatten(0, 1), target.flatten()).view(target.shape).mean(1)
            (gradient,) = torch.autograd.grad(means.sum(), logits)
        return means.detach(), gradient

    return of_equal
