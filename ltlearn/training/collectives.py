"""Tensors that the ranks of a training exchange."""

from collections.abc import Iterable

import torch
from torch import Tensor, distributed

from ltlearn.utils import ranks

__all__ = ["copy_from_first", "gather_rows"]

_BUCKET = 1 << 26  # bytes that are exchanged at once
_HALF = (torch.float16, torch.bfloat16)


def gather_rows(rows: Tensor, n: int) -> Tensor:
    """Return the whole batch, of which each rank has some rows.

    Gradients flow to the rows of this rank. They are multiplied by the number of ranks, so that
    their mean over the ranks is the gradient of the whole batch.

    Args:
        rows: The rows `ranks.part_of(n)`, on the device of this rank.
        n: Rows of the whole batch.

    Shape:
        rows is (R, ...); the result is (N, ...). Half precision becomes float32.
    """
    rows = rows.float() if rows.dtype in _HALF else rows
    return rows if ranks.world() == 1 else _Gather.apply(rows, n)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: Tensor, n: int) -> Tensor:
        size, more = divmod(n, ranks.world())
        sizes = [size + (r < more) for r in range(ranks.world())]
        ctx.part, ctx.counts = ranks.part_of(n), sizes[ranks.rank()] > 0
        # `all_gather` needs parts of one size.
        padded = rows.new_zeros(size + (more > 0), *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in sizes]
        with ranks.lost_rank_to_user_error():
            distributed.all_gather(parts, padded)
        return torch.cat([part[:own] for part, own in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        own = gradient[ctx.part]
        return own * ranks.world() if ctx.counts else torch.zeros_like(own), None


@torch.no_grad()
def copy_from_first(tensors: Iterable[Tensor]) -> None:
    """Replace tensors by those of the first rank, in place.

    Several are exchanged at once, because each exchange has a latency.

    Args:
        tensors: The tensors in one order on all ranks.
    """
    tensors, bucket, size = list(tensors), [], 0
    for i, tensor in enumerate(tensors):
        bucket.append(tensor)
        size += tensor.nbytes
        following = tensors[i + 1] if i + 1 < len(tensors) else None
        if following is None or size >= _BUCKET or _kind(following) != _kind(tensor):
            flat = torch.cat([t.detach().reshape(-1) for t in bucket])
            with ranks.lost_rank_to_user_error():
                distributed.broadcast(flat, 0)
            parts = flat.split([t.numel() for t in bucket])
            for t, part in zip(bucket, parts, strict=True):
                t.copy_(part.view(t.shape))
            bucket, size = [], 0


def _kind(tensor: Tensor) -> tuple[torch.dtype, torch.device]:
    return tensor.dtype, tensor.device
