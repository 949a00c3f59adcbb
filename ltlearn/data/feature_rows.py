"""`Features`: features as a dataset, cached or given by the user."""

import copy
import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ltlearn.data.device import OnDevice, copies_on
from ltlearn.data.items import LabelledItems, LazyImages
from ltlearn.errors import UserError

__all__ = ["Features", "GivenFeatures"]

_LARGE_FILE = 1 << 28  # bytes; from a larger file, rows are read instead of mapped


@dataclass
class Features(OnDevice):
    """Pooled features of a dataset, one array per view; a dataset for `LTDataLoader`.

    Each draw of an image takes one of its views at random, or the first if there is no seed.
    """

    n_inp = 1
    views: list[np.ndarray]  # V arrays (N, D), float16 or float32, in memory or memory-mapped
    targets: Tensor  # (N,)

    def __len__(self) -> int:
        return len(self.targets)

    def get_batch(self, index: list[int], seed: int | None = None) -> tuple[Tensor, Tensor]:
        """Return features (B, D), float32, and targets (B,)."""
        index = np.asarray(index)
        rows = self._rows_at(index, self._draw(len(index), seed))
        return torch.from_numpy(rows).float(), self.targets[torch.from_numpy(index)]

    def draw(self, n: int, seed: int | None) -> tuple[Tensor, ...]:
        """Draw the view of n images, (n,); an empty tuple if there is one view, or no seed."""
        view = self._draw(n, seed)
        return () if view is None else (torch.from_numpy(view),)

    def take(self, index: Tensor, drawn: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Return features (B, D), float32, and targets (B,), for what `draw` returned."""
        if isinstance(self.views[0], Tensor):
            x = self._take_on_device(index, *drawn)
        else:
            views = [view.numpy() for view in drawn]
            x = torch.from_numpy(self._rows_at(index.numpy(), *views))
        return x.float(), self.targets[index]

    def _draw(self, n: int, seed: int | None) -> np.ndarray | None:
        if seed is None or len(self.views) == 1:
            return None
        return np.random.RandomState(seed).randint(len(self.views), size=n)

    def _rows_at(self, index: np.ndarray, view: np.ndarray | None = None) -> np.ndarray:
        if view is None:
            return _rows(self.views[0], index)
        x = np.empty((len(index), self.views[0].shape[1]), dtype=self.views[0].dtype)
        for v in np.unique(view):
            x[view == v] = _rows(self.views[v], index[view == v])
        return x

    def _take_on_device(self, index: Tensor, view: Tensor | None = None) -> Tensor:
        if view is None:
            return self.views[0][index]
        # All views are read, because a selection by view would make the host wait for the device.
        rows = torch.stack([values[index] for values in self.views])
        return rows[view, torch.arange(len(index), device=index.device)]

    def make_copy(self, device: torch.device) -> "Features | None":
        """Return a copy whose features are on a CUDA device; None if they do not fit."""
        copies = copies_on(device, self.views, "the features")
        if copies is None:
            return None
        result = copy.copy(self)
        result.kept = copies  # `copies_on` shares them as long as somebody holds them
        result.views = [one.tensor for one in copies]
        result.targets = self.targets.to(device)
        return result

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        x, y = self.get_batch([i])
        return x[0], y[0]


@dataclass
class GivenFeatures(Features):
    """Features that the user has, in place of images: one view, without augmentation."""

    transform = "none"
    tfms_name = ""  # names a user's transforms of images; there are none
    targets: Tensor | None  # (N,); None for features without labels
    vocab: Sequence[str]  # class names

    def __len__(self) -> int:
        return len(self.views[0])

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of the features of one image, (D,)."""
        return self.views[0].shape[1:]

    @property
    def items(self) -> Sequence:
        """Return the rows, with their labels if they have some."""
        rows = LazyImages(self.views[0].__getitem__, len(self))
        return rows if self.targets is None else LabelledItems(rows, self.targets, self.vocab)

    def get_batch(self, index: list[int], seed: int | None = None) -> tuple[Tensor, ...]:
        """Return features (B, D), float32, and targets (B,) if there are any."""
        if self.targets is not None:
            return super().get_batch(index, seed)
        return (torch.from_numpy(_rows(self.views[0], np.asarray(index))).float(),)

    def make_copy(self, device: torch.device) -> "Features | None":
        """Return a copy whose features are on a CUDA device; None if they do not fit."""
        return None if self.targets is None else super().make_copy(device)

    def new_empty(self) -> "GivenFeatures":
        """Return a copy without features, for `learn.export()`."""
        none = torch.zeros(0, dtype=torch.int64)
        return GivenFeatures([np.array(self.views[0][:0])], none, self.vocab)


def _rows(view: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Return rows of an array, in memory or in a file.

    Reading a random row of a mapped file maps up to a MiB around it, which counts as memory of this
    process. So rows of a large file are read without mapping.
    """
    mapped = isinstance(view, np.memmap) and view.filename is not None
    whole = mapped and view.flags.c_contiguous and view.base is view._mmap
    if not whole or view.nbytes <= _LARGE_FILE or not hasattr(os, "preadv"):
        return view[index]
    x = np.empty((len(index), *view.shape[1:]), dtype=view.dtype)
    size = x[0].nbytes
    # Another file may have taken the name since.
    file = getattr(view, "file", None)
    with nullcontext(file) if file else open(view.filename, "rb", buffering=0) as file:
        for row, k in zip(x, index.tolist(), strict=True):
            if os.preadv(file.fileno(), [row], view.offset + k * size) != size:
                raise UserError(f"the features in {view.filename} end early; remove the file.")
    return x
