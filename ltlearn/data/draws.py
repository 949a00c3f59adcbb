"""`EpochDraws`: the random draws of a whole epoch, made before an image is read."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ltlearn.data.device import asynchronous

__all__ = ["EpochDraws", "draw_epoch"]


@dataclass(frozen=True, eq=False)
class EpochDraws:
    """All draws of an epoch as tensors on the CPU, one row per step.

    A step whose batch is smaller than B fills the first columns of its row; the others hold zeros.

    Args:
        sizes: Images in the batch of each step, S numbers from 1 to B.
        index: Indices of the images in the dataset.
        views: How each image is augmented, in the order of the dataset's method `draw`: top and
            left of the crop and whether it is mirrored for `ImagesInMemory`, the view for
            `Features`. Empty without augmentation.
        share: Share of the first image in a mix, in [0, 1); None if the loader mixes nothing.
        box: First row, end row, first column and end column of the box of another image, in pixels;
            None if the loader mixes nothing.

    Shape:
        index is (S, V, B), int64, for V images per place of a batch of B; V is 1, or 4 for GLMC.
        Each tensor in `views` is (S, V, B). share is (S,), float64; box is (S, 4), int64.
    """

    sizes: tuple[int, ...]
    index: Tensor
    views: tuple[Tensor, ...] = ()
    share: Tensor | None = None
    box: Tensor | None = None

    def of_step(self, step: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the indices of the images of a step, and how each is augmented.

        Args:
            step: The step, from 0.

        Shape:
            All are (V * n,) for a batch of n.
        """
        n = self.sizes[step]
        return (
            self.index[step, :, :n].flatten(),
            tuple(table[step, :, :n].flatten() for table in self.views),
        )

    def images_on(self, device: torch.device) -> "EpochDraws":
        """Return the draws with `index` and `views` on a CUDA device; do not wait for the copies.

        Args:
            device: The device.
        """
        views = tuple(asynchronous(table, device) for table in self.views)
        return replace(self, index=asynchronous(self.index, device), views=views)


def draw_epoch(
    index: np.ndarray,
    sizes: Sequence[int],
    draw: Callable[[int, int | None], tuple[Tensor, ...]],
    seeds: Sequence[int | None],
) -> EpochDraws:
    """Draw the augmentation of an epoch, step by step.

    Args:
        index: Indices of the images.
        sizes: Images in the batch of each step. Images after the last batch are left out.
        draw: The method `draw` of the dataset.
        seeds: The seed of each step; None draws nothing.

    Shape:
        index is (V, N), int64.
    """
    images, steps = len(index), len(sizes)
    most = max(sizes, default=0)
    rows = torch.zeros(steps, images, most, dtype=torch.int64)
    tables: list[Tensor] = []
    first = 0
    for step, (n, seed) in enumerate(zip(sizes, seeds, strict=True)):
        rows[step, :, :n] = torch.from_numpy(index[:, first : first + n])
        first += n
        drawn = draw(images * n, seed)
        tables = tables or [torch.zeros(rows.shape, dtype=values.dtype) for values in drawn]
        for table, values in zip(tables, drawn, strict=True):
            table[step, :, :n] = values.view(images, n)
    return EpochDraws(tuple(sizes), rows, tuple(tables))
