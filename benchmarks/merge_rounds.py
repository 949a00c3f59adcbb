"""Isotonic regression by merging in rounds: the baseline that `pava.py` compares with.

In a round every maximal strictly decreasing run of neighbouring block values becomes one block,
until none is left. Rounds are as many as the values ask for: log2(N) or so on noise, N - 1 on an
ascending sequence that ends in one very low value; each ends in a look from the host.
"""

import torch
from torch import Tensor

__all__ = ["merge_in_rounds"]


def merge_in_rounds(y: Tensor) -> Tensor:
    """Fit the closest non-decreasing sequence to each row of `y`, and let gradients through.

    Args:
        y: Values, finite, on any device.

    Shape:
        y is (..., N) with N >= 1. The result is of y's shape and dtype; sums are taken in it too.
    """
    return _MergeInRounds.apply(y)


class _MergeInRounds(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y):
        means, sizes = _merge(y)
        ids = torch.repeat_interleave(sizes, output_size=y.numel())
        ctx.save_for_backward(ids, sizes)
        return means[ids].view(y.shape)

    @staticmethod
    def backward(ctx, grad):
        ids, sizes = ctx.saved_tensors
        means = _sums(grad.reshape(-1), ids, sizes.numel()) / sizes
        return means[ids].view(grad.shape)


def _merge(y: Tensor) -> tuple[Tensor, Tensor]:
    """Find the mean and the size of every block, all rows end to end."""
    n = y.shape[-1]
    total = means = y.reshape(-1)
    sizes = torch.ones_like(total, dtype=torch.int64)
    # Which row a block lies in, so that none reaches into the next; one row needs no such care.
    rows = torch.arange(y.numel(), device=y.device) // n if y.numel() > n else None
    while True:
        joins = means[1:] < means[:-1]
        if rows is not None:
            joins &= rows[1:] == rows[:-1]
        joined = joins.sum().item()  # the host's look at the device, once a round
        if not joined:
            return means, sizes
        count = means.numel() - joined
        ids = means.new_zeros(means.numel(), dtype=torch.int64)
        torch.cumsum(~joins, 0, out=ids[1:])
        total = _sums(total, ids, count)
        sizes = _sums(sizes, ids, count)
        means = total / sizes
        if rows is not None:
            rows = rows.new_empty(count).scatter_(0, ids, rows)


def _sums(values: Tensor, ids: Tensor, count: int) -> Tensor:
    return values.new_zeros(count).index_add_(0, ids, values)
