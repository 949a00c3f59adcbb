"""Two batches in one pass, each with batch normalisation of its own."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

__all__ = ["can_run_by_halves", "running_by_halves"]


class _HalvesBatchNorm(nn.BatchNorm2d):
    """Batch normalisation of each half of a batch by itself.

    The running statistics see the first half, then the second, as in two passes.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        return torch.cat([super(_HalvesBatchNorm, self).forward(half) for half in x.chunk(2)])


def can_run_by_halves(module: nn.Module) -> bool:
    """Return whether two batches can run through a module at once.

    Its normalisation must be by `nn.BatchNorm2d` alone: a subclass may do more.

    Args:
        module: The module, whose other layers treat each image by itself.
    """
    norms = [m for m in module.modules() if isinstance(m, _NormBase)]
    return all(type(m) is nn.BatchNorm2d for m in norms)


@contextmanager
def running_by_halves(module: nn.Module) -> Iterator[None]:
    """Let batch normalisation treat each half of a batch by itself inside the block.

    Args:
        module: A module for which `can_run_by_halves` is true.

    Example:
        >>> norm = nn.BatchNorm2d(3)
        >>> with running_by_halves(norm):
        ...     both = norm(torch.randn(8, 3, 4, 4))
        >>> int(norm.num_batches_tracked)
        2
    """
    norms = [m for m in module.modules() if type(m) is nn.BatchNorm2d]
    # The class alone changes, so parameters, buffers and the state dict stay as they are.
    for norm in norms:
        norm.__class__ = _HalvesBatchNorm
    try:
        yield
    finally:
        for norm in norms:
            norm.__class__ = nn.BatchNorm2d
