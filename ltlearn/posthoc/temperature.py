"""Temperature scaling: divide the logits by one number."""

import math
from collections.abc import Sequence

import numpy as np
from scipy.optimize import brentq
from torch import Tensor, nn

from ltlearn.errors import check_number
from ltlearn.metrics.rows import check_finite, check_logits
from ltlearn.posthoc.choose import iterate_blocks, read_features
from ltlearn.posthoc.linear import as_linear_layer, new_linear

__all__ = ["scale_temperature", "fit_temperature"]

_TEMPERATURES = (1e-3, 1e3)


def scale_temperature(head: nn.Module, temperature: float) -> nn.Linear:
    """Divide the logits by a temperature, which changes no prediction.

    Args:
        head: The classifier.
        temperature: No unit, above 0. Values above 1 make the classifier less confident.

    Raises:
        UserError: If `head` is no linear classifier, or `temperature` is not allowed.

    Source:
        Guo et al., ICML 2017, arXiv:1706.04599.

    Example:
        >>> calibrated = scale_temperature(learn.model.head, 1.4)
    """
    check_number("temperature", temperature, 0, above=True)
    linear = as_linear_layer(head)
    bias = None if linear.bias is None else linear.bias.detach().double() / temperature
    return new_linear(linear, linear.weight.detach().double() / temperature, bias)


def fit_temperature(logits: Tensor | np.ndarray, targets: Tensor | Sequence[int]) -> float:
    """Find the temperature with the smallest negative log-likelihood on held-out images.

    The likelihood of logits / T is convex in 1 / T, so its slope has at most one zero. Without a
    zero (all images classified correctly, or worse than chance) the result is an end of the range
    0.001 to 1,000. With equal logits it is 1.

    Args:
        logits: Logits of images that the classifier was not trained on.
        targets: The true classes.

    Shape:
        logits is (N, C), any floating dtype, also a memory-mapped array; targets (N,), integer.
        Computed in float64, a block of rows at a time.

    Raises:
        UserError: If the shapes disagree, there is no image, a label is out of range, a logit
            is not finite, or logits holds probabilities.

    Source:
        Guo et al., ICML 2017, arXiv:1706.04599.
    """
    logits, targets = read_features(logits, targets, "logits")
    spread = 0.0
    for start, block in iterate_blocks(logits):
        check_finite(block, start, "logits")
        spread = max(spread, float((block.amax(1) - block.amin(1)).max()))
    check_logits(logits, "logits")
    if spread == 0:
        return 1.0

    def slope(log_temperature: float) -> float:
        """Return d NLL / d (1/T), the mean of E_p[z] - z_y."""
        total = 0.0
        for start, block in iterate_blocks(logits):
            z = block - block.amax(1, keepdim=True)
            p = (z * math.exp(-log_temperature)).softmax(1)
            true = z.gather(1, targets[start : start + len(z), None])
            total += float(((p * z).sum(1) - true[:, 0]).sum())
        return total / len(targets)

    low, high = (math.log(t) for t in _TEMPERATURES)
    if slope(low) <= 0:
        return _TEMPERATURES[0]
    if slope(high) >= 0:
        return _TEMPERATURES[1]
    return math.exp(brentq(slope, low, high, xtol=1e-10))
