"""Post-hoc logit adjustment: subtract the log of the class prior."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor, nn

from ltlearn.errors import UserError, check_number
from ltlearn.losses.counted import check_vector
from ltlearn.posthoc.choose import TAU_GRID, TauChoice, choose_linear
from ltlearn.posthoc.linear import as_linear_layer, new_linear, warn_without_images

__all__ = ["adjust_logits", "choose_logit_adjustment"]

_FLOOR = 1e-12  # the authors compute log(share ** tau + 1e-12)


def adjust_logits(
    head: nn.Module, class_counts: Tensor | Sequence[float], tau: float = 1.0
) -> nn.Linear:
    """Subtract tau times the log of each class's share of the training images from its logit.

    The result always has a bias. The logit of a class without training images is raised as much as
    the rarest class's, and a warning names the class. The authors' floor alone would raise it by
    27.6, above all others.

    Args:
        head: The classifier.
        class_counts: Training images per class, C of them.
        tau: Strength of the adjustment, no unit, at least 0. With 1, a calibrated classifier fits
            images from balanced classes.

    Raises:
        UserError: If `head` is no linear classifier, the counts are no vector of C numbers, or
            `tau` is not allowed.

    Source:
        Menon et al., ICLR 2021, arXiv:2007.07314; as in the authors' code, log(share ** tau
        + 1e-12). Departure: classes without images.

    Example:
        >>> balanced = adjust_logits(learn.model.head, learn.dls.class_counts)
    """
    check_number("tau", tau, 0)
    linear = as_linear_layer(head)
    counts = _counts_of(class_counts, linear)
    bias = -_log_prior(counts, tau).to(linear.weight.device)
    if linear.bias is not None:
        bias = bias + linear.bias.detach().double()
    return new_linear(linear, linear.weight, bias)


def choose_logit_adjustment(
    head: nn.Module,
    features: Tensor | np.ndarray,
    targets: Tensor | Sequence[int],
    class_counts: Tensor | Sequence[float],
    candidates: Sequence[float] = TAU_GRID,
) -> TauChoice:
    """Choose tau of `adjust_logits` on the features of held-out images, as `choose_tau` does.

    The product of features and weights is computed once for all candidates.

    Args:
        head: The classifier.
        features: Features of held-out images.
        targets: Their classes.
        class_counts: Training images per class, C of them.
        candidates: Values to try, at least 0.

    Shape:
        features is (N, D), any floating dtype, also a memory-mapped array; targets (N,), integer.

    Raises:
        UserError: As `choose_tau` and `adjust_logits`.
    """
    linear = as_linear_layer(head)
    counts = _counts_of(class_counts, linear)

    def correct(tau: float) -> tuple[None, Tensor]:
        shift = -_log_prior(counts, tau).to(linear.weight.device)
        return None, shift if linear.bias is None else shift + linear.bias.detach().double()

    return choose_linear(linear, features, targets, candidates, correct)


def _log_prior(counts: Tensor, tau: float) -> Tensor:
    """Return log(share ** tau + 1e-12), (C,), float64, with shares clamped to the rarest class."""
    share = counts / counts.sum()
    return (share.clamp(min=share[share > 0].min()) ** tau + _FLOOR).log()


def _counts_of(class_counts: Tensor | Sequence[float], linear: nn.Linear) -> Tensor:
    counts = check_vector("class_counts", class_counts)
    if len(counts) != linear.out_features:
        raise UserError(
            f"class_counts must have a number for each of {linear.out_features} classes, got "
            f"{len(counts)}."
        )
    warn_without_images(counts, "its logit is raised as much as the logit of the rarest class")
    return counts
