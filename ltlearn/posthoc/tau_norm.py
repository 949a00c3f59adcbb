"""tau-normalization: divide each class weight by a power of its norm."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ltlearn.errors import UserError, check_number
from ltlearn.posthoc.choose import TAU_GRID, TauChoice, choose_linear
from ltlearn.posthoc.linear import as_linear_layer, new_linear
from ltlearn.utils.text import name_classes

__all__ = ["tau_normalize", "choose_tau_norm"]


def tau_normalize(head: nn.Module, tau: float = 1.0, keep_bias: bool = True) -> nn.Linear:
    """Divide the weights of each class by their norm to the power tau.

    Args:
        head: The classifier.
        tau: No unit, at least 0. 0 changes nothing; 1 makes all norms 1.
        keep_bias: Whether to keep the bias (Zhang et al.) or to drop it (Kang et al.).

    Raises:
        UserError: If `head` is no linear classifier, `tau` is not allowed, or the weights of a
            class are all zero (with tau above 0), not finite, or too large for the dtype
            afterwards.

    Source:
        Kang et al., ICLR 2020, arXiv:1910.09217. With the bias: Zhang et al., AAAI
        2021 ("Bag of Tricks").

    Example:
        >>> tau_normalize(learn.model.head, tau=0.7).weight.norm(dim=1)
    """
    check_number("tau", tau, 0)
    linear = as_linear_layer(head)
    weight = linear.weight.detach().double() * _tau_scale(linear, tau)[:, None]
    return new_linear(linear, weight, linear.bias if keep_bias else None)


def choose_tau_norm(
    head: nn.Module,
    features: Tensor | np.ndarray,
    targets: Tensor | Sequence[int],
    keep_bias: bool = True,
    candidates: Sequence[float] = TAU_GRID,
) -> TauChoice:
    """Choose tau of `tau_normalize` on the features of held-out images, as `choose_tau` does.

    The product of features and weights is computed once for all candidates.

    Args:
        head: The classifier.
        features: Features of held-out images.
        targets: Their classes.
        keep_bias: Whether `tau_normalize` will keep the bias.
        candidates: Values to try, at least 0.

    Shape:
        features is (N, D), any floating dtype, also a memory-mapped array; targets (N,), integer.

    Raises:
        UserError: As `choose_tau` and `tau_normalize`.
    """
    linear = as_linear_layer(head)
    bias = linear.bias if keep_bias else None

    def correct(tau: float) -> tuple[Tensor, Tensor | None]:
        return _tau_scale(linear, tau), bias

    return choose_linear(linear, features, targets, candidates, correct)


def _tau_scale(linear: nn.Linear, tau: float) -> Tensor:
    """Return 1 / ||w_c|| ** tau, (C,), float64."""
    norms = linear.weight.detach().double().norm(dim=1)
    bad = ~norms.isfinite() | ((norms == 0) & (tau > 0))
    if bad.any():
        raise UserError(
            f"the weights of class {name_classes(bad)} are all zero or not finite, so they cannot "
            "be divided by their norm; train the classifier first."
        )
    return norms**-tau if tau else torch.ones_like(norms)
