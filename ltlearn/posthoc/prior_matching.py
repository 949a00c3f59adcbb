"""Prior matching: shift the logits until every class is predicted equally often."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ltlearn.errors import UserError
from ltlearn.isotonic import pava
from ltlearn.losses.counted import check_vector
from ltlearn.metrics.rows import check_finite
from ltlearn.posthoc.choose import iterate_blocks, read_features
from ltlearn.posthoc.linear import as_linear_layer, new_linear

__all__ = ["match_prior"]

_ITERATIONS = 500
_PRECISION = 1e-5  # a smaller change of a logit ends the iteration
_SMALLEST = 1e-300


@torch.no_grad()
def match_prior(
    head: nn.Module,
    features: Tensor | np.ndarray,
    targets: Tensor | Sequence[int],
    class_counts: Tensor | Sequence[float],
) -> nn.Linear:
    """Add a shift per class, so that each class is predicted equally often on balanced images.

    The held-out images stand for balanced ones: each class has the same weight in total, however
    many images it has. The shift does not increase with the class frequency, and classes of equal
    frequency share it. So a class of one or two held-out images cannot get a shift of its own, and
    no strength has to be chosen. Logit adjustment has the shift -tau log(share) instead.

    Among such shifts s, the result minimises sum_i w_i logsumexp(z_i + s) - mean(s), which is
    convex. Without the order, its minimum gives every class the mean probability 1 / C. Each step
    of the iteration minimises an upper bound, which is a weighted isotonic regression of exp(s).

    A class without held-out images takes the shift of the next more frequent class that has some.

    Args:
        head: The classifier.
        features: Features of held-out images.
        targets: Their classes.
        class_counts: Training images per class, C of them.

    Shape:
        features is (N, D), any floating dtype, also a memory-mapped array; targets (N,), integer.
        The N x C logits are kept in memory, in float32.

    Raises:
        UserError: If `head` is no linear classifier, or the shapes disagree.

    Source:
        Own. Saerens et al., Neural Computation 14, 2002, estimate a prior by the same iteration
        without an order; Barlow et al., 1972, for the weighted regression.

    Example:
        >>> valid = learn.features("valid")
        >>> head = match_prior(learn.model.head, valid.views[0], valid.targets, dls.class_counts)
    """
    linear = as_linear_layer(head)
    counts = check_vector("class_counts", class_counts)
    if len(counts) != linear.out_features:
        raise UserError(
            f"class_counts must have a number for each of {linear.out_features} classes, got "
            f"{len(counts)}."
        )
    features, targets = read_features(features, targets, "features", linear.out_features)
    logits = _logits(linear, features)
    images = torch.bincount(targets, minlength=len(counts))
    shift = _solve(logits, (1 / images.double())[targets], counts, images > 0)
    bias = shift if linear.bias is None else shift + linear.bias.detach().double().cpu()
    return new_linear(linear, linear.weight, bias.to(linear.weight.device))


def _logits(linear: nn.Linear, features: Tensor | np.ndarray) -> Tensor:
    weight = linear.weight.detach().float()
    bias = None if linear.bias is None else linear.bias.detach().float()
    parts = []
    for start, block in iterate_blocks(features, linear.out_features):
        check_finite(block, start, "features")
        parts.append(nn.functional.linear(block.to(weight), weight, bias).cpu())
    return torch.cat(parts)


def _solve(logits: Tensor, weights: Tensor, counts: Tensor, present: Tensor) -> Tensor:
    """Return the shift of each class, (C,), float64; 0 for the most frequent class.

    Args:
        logits: (N, C).
        weights: Weight of each image, (N,), of any sum.
        counts: Training images per class, (C,).
        present: Whether a class has images here, (C,).
    """
    # Groups of classes with equal counts, the rarest first.
    levels, group = counts[present].unique(return_inverse=True)
    logits = logits[:, present]
    weights = (weights / weights.sum()).to(logits.dtype)
    size = torch.bincount(group).double() / len(group)
    # Each step of the iteration adds to the shifts.
    shift = torch.zeros(len(levels), dtype=torch.float64)
    for _ in range(_ITERATIONS):
        mean = torch.zeros(len(group), dtype=torch.float64)
        for start, block in iterate_blocks(logits):
            probs = (block + shift[group]).softmax(1)
            mean += weights[start : start + len(block)].to(probs) @ probs
        share = torch.zeros_like(size).index_add_(0, group, mean)
        # Minimise sum_g a_g u_g - size_g log(u_g) over non-increasing u = exp(shift).
        a = (share.log() - shift).exp().clamp(min=_SMALLEST)
        new = pava(size / a, a, increasing=False).log()
        new -= new[-1].clone()
        change, shift = (new - shift).abs().max(), new
        if change < _PRECISION:
            break
    position = torch.searchsorted(levels, counts.to(levels)).clamp(max=len(levels) - 1)
    return shift[position]
