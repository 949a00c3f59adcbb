"""Isotonic regression in plain tensor operations: any device, no host synchronisation.

Divide and conquer in log2(N) levels. Each level merges two neighbouring halves that are already
isotonic: it pools a suffix of the left half and a prefix of the right half to their common mean.
Binary search and prefix sums find the pooled elements of all pairs at once. So a level costs
O(N log N), memory stays O(N), and the number of levels depends on the length alone.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from ltlearn.isotonic.dtypes import wide_dtype

__all__ = ["block_means", "blocks", "solve"]


def solve(
    y: Tensor, weights: Tensor | None = None, increasing: bool = True, keep: bool = False
) -> tuple[Tensor, Tensor]:
    """Solve every row of `y`.

    Args:
        y: Values, of any float dtype. The fit of a row with a value that is not finite is NaN.
        weights: Weights, or None for 1 everywhere. The fit of a row with a weight that is not
            positive and finite is NaN.
        increasing: True for a non-decreasing fit.
        keep: Not used, because this engine always has the solution.

    Shape:
        y is (..., N) with N >= 1, weights (..., N) or (N,). The fit is (..., N), of y's dtype; the
        solution is (..., N), float64 (float32 on MPS, which has no float64).
    """
    good = y.isfinite().all(-1, keepdim=True)
    if weights is not None:
        good = good & ((weights > 0) & (weights < torch.inf)).all(-1, keepdim=True)
    if increasing:
        x = _solve(y, weights)
    else:
        x = _solve(y.flip(-1), None if weights is None else weights.flip(-1)).flip(-1)
    solution = torch.where(good, x, torch.nan)
    return solution.to(y.dtype), solution


def _solve(y: Tensor, weights: Tensor | None) -> Tensor:
    """Solve every row of `y` for an increasing fit, in the wide dtype."""
    n = y.shape[-1]
    rows = y.numel() // n
    size = 1 << (n - 1).bit_length()
    dtype = wide_dtype(y.device)
    # Padded with the row's maximum, which no pooled mean exceeds: the padding is never pooled.
    x = torch.empty(rows, size, dtype=dtype, device=y.device)
    x[:, :n] = y.reshape(rows, n)
    x[:, n:] = x[:, :n].amax(-1, keepdim=True)
    w = torch.ones(rows, size, dtype=dtype, device=y.device)
    if weights is not None:
        w[:, :n] = weights.expand(y.shape).reshape(rows, n)
    half = 1
    while half < size:
        x = _merge(x.view(rows, -1, 2, half), w.view(rows, -1, 2, half))
        half *= 2
    return x.view(rows, size)[:, :n].reshape(y.shape)


def _merge(x: Tensor, w: Tensor) -> Tensor:
    """Make each pair of isotonic halves one isotonic sequence; x and w are (rows, pairs, 2, s)."""
    left, right = x.unbind(-2)
    low, high = right[..., :1], left[..., -1:]
    # v: both halves as distances outward from the cut, ascending, so that one formula serves both.
    # Measured from `low`, they and their rounding errors are as small as the violation.
    v = torch.stack((low - left.flip(-1), right - low), dim=-2)
    mass = torch.stack((w[..., 0, :].flip(-1), w[..., 1, :]), dim=-2).cumsum(-1)
    # moment[k] = sum_{i<=k} w_i (v_k - v_i), from terms of one sign: nothing cancels
    moment = pad((mass[..., :-1] * v.diff(dim=-1)).cumsum(-1), (1, 0))
    # The pooled mean m is the root of
    #   g(m) = sum_{L_i > m} w_i (L_i - m) - sum_{R_j < m} w_j (m - R_j),
    # which decreases. L_i is pooled if g(L_i) < 0, R_j if g(R_j) > 0: if the moment of its own
    # half up to it is less than the moment of the other half up to the same height.
    height = -v.flip(-2)  # of the other half's elements, in the coordinates of v
    index = (torch.searchsorted(v, height) - 1).clamp_(min=0)
    reach = (height - v.gather(-1, index)).clamp_(min=0)  # 0 where no element lies below
    opposite = moment.gather(-1, index) + mass.gather(-1, index) * reach
    last = ((opposite.flip(-2) > moment).sum(-1, keepdim=True) - 1).clamp_(min=0)
    mass = mass.gather(-1, last)
    total = mass * v.gather(-1, last) - moment.gather(-1, last)  # sum of w_i v_i over the pooled
    mean = low + (total[..., 1, :] - total[..., 0, :]) / mass.sum(-2)
    level = torch.where(high > low, torch.minimum(mean, high), high)
    # Clipping writes the mean into both runs, splits no block and is monotone to the bit.
    return torch.stack((left.minimum(level), right.maximum(level)), dim=-2)


def blocks(x: Tensor) -> Tensor:
    """Number the blocks of a solution, all rows end to end.

    Args:
        x: A solution.

    Shape:
        x is (..., N). The result is (numel,), int64: 0, 0, 1, 2, 2, ...
    """
    first = torch.ones(x.shape, dtype=torch.bool, device=x.device)
    first[..., 1:] = x[..., 1:] != x[..., :-1]
    return first.reshape(-1).cumsum(0) - 1


def block_means(grad: Tensor, ids: Tensor, weights: Tensor | None = None) -> Tensor:
    """Divide the sum of `grad` over each block by the weight of the block.

    Args:
        grad: Incoming gradient.
        ids: The result of `blocks`.
        weights: Positive weights, or None for 1 everywhere.

    Shape:
        grad is (..., N), weights (..., N) or (N,). The result is (..., N), float64 (float32 on
        MPS), with one value per block.
    """
    flat = grad.reshape(-1).to(wide_dtype(grad.device))
    if weights is None:
        w = torch.ones_like(flat)
    else:
        w = weights.expand(grad.shape).reshape(-1).to(flat.dtype)
    total = torch.zeros_like(flat).scatter_add_(0, ids, flat)
    mass = torch.zeros_like(flat).scatter_add_(0, ids, w)
    return (total[ids] / mass[ids]).view(grad.shape)
