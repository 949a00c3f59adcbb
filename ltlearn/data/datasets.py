"""Datasets of images in memory and in files, and their normalisation."""

import copy
import hashlib
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from fasttransform import ItemTransform
from torch import Tensor

from ltlearn.data.images import ImageSet, read_image
from ltlearn.data.transforms import BatchCropFlip, ImageTransform
from ltlearn.errors import UserError

__all__ = [
    "BATCH_TRANSFORMS",
    "IN_MEMORY_BYTES",
    "IN_MEMORY_SIDE",
    "SplitInfo",
    "ImagesInMemory",
    "ImageFiles",
    "common_side",
]

BATCH_TRANSFORMS = ("crop_flip", "crop", "none")
# Small images are kept decoded: at most this many bytes of them, and at most this side in pixels.
IN_MEMORY_BYTES = 1 << 30
IN_MEMORY_SIDE = 96


@dataclass(frozen=True)
class SplitInfo:
    """Which images these are, in the words a table needs."""

    name: str  # "first_n", "shuffle_seed0", "folders", "one folder", "arrays"
    train: str  # fingerprint of all training images, before any is carved off for validation
    valid: str  # fingerprint of the validation images
    test: str | None
    valid_from: str  # "training images", "validation set", or "test set" (paper protocol)
    dataset: str = ""
    profile: str | None = None
    imbalance_factor: float | None = None
    seed: int = 0

    def __str__(self) -> str:
        factor = f", imbalance factor {self.imbalance_factor:g}" if self.imbalance_factor else ""
        return f"{self.dataset} split {self.name}{factor}, fingerprint {self.train}"

    def to_dict(self) -> dict:
        """Return the fields, ready for JSON."""
        return asdict(self)


class ImagesInMemory:
    """Small images as one uint8 tensor, augmented as a batch.

    Args:
        data: Images with their targets, in memory.
        transform: "crop_flip", "crop" or "none".
        pad: Black border of the crop in pixels; None takes an eighth of the side.
    """

    n_inp = 1

    def __init__(self, data: ImageSet, transform: str = "none", pad: int | None = None):
        if transform not in BATCH_TRANSFORMS:
            raise UserError(
                "images held in memory can be augmented with crop_flip, crop or none, got "
                f"{transform!r}; pass in_memory=False for the others."
            )
        self.targets, self.transform = torch.from_numpy(data.targets), transform
        side = max(data.images.shape[1:3])
        if transform == "none":
            pad = 0
        elif pad is None:
            pad = max(1, side // 8)
        images = torch.from_numpy(data.images)
        self.augment = BatchCropFlip(images, pad, flip=transform == "crop_flip")
        self.shape = tuple(data.images.shape[1:3])

    def __len__(self) -> int:
        return len(self.targets)

    def new_empty(self) -> "ImagesInMemory":
        """Return the same without images, as `learn.export()` stores it."""
        empty = copy.copy(self)
        none = torch.zeros(0, *self.shape, 3, dtype=torch.uint8)
        empty.augment = BatchCropFlip(none, self.augment.pad, self.augment.flip)
        empty.targets = self.targets[:0].clone()
        return empty

    def get_batch(self, index: Sequence[int], seed: int | None = None) -> tuple[Tensor, Tensor]:
        """Return images (B, 3, H, W) uint8 and targets (B,); augmented where a seed is given."""
        index = torch.as_tensor(index, dtype=torch.int64)
        generator = None
        if seed is not None and self.transform != "none":
            generator = torch.Generator().manual_seed(seed)
        return self.augment(index, generator), self.targets[index]

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        x, y = self.get_batch([i])
        return x[0], y[0]


class ImageFiles:
    """Images on disk, or in the rows of a dataset, read and transformed one by one.

    Args:
        data: Images with their targets.
        transform: A name of `ltlearn.data.transforms.TRANSFORMS`.
        size: Side of the result in pixels.
        pad: Black border of "crop" and "crop_flip" in pixels; None takes an eighth of `size`.
    """

    n_inp = 1

    def __init__(
        self, data: ImageSet, transform: str = "none", size: int = 224, pad: int | None = None
    ):
        self.data, self.targets = data, torch.from_numpy(data.targets)
        self.transform, self.shape = ImageTransform(transform, size, pad), (size, size)
        self.plain = ImageTransform("none", size)

    def __len__(self) -> int:
        return len(self.targets)

    def new_empty(self) -> "ImageFiles":
        """Return the same without images, as `learn.export()` stores it."""
        empty = copy.copy(self)
        empty.data, empty.targets = self.data.take(np.zeros(0, int)), self.targets[:0].clone()
        vars(empty).pop("files_name", None)
        return empty

    @cached_property
    def files_name(self) -> str:
        """Name the files by folder, path, size and time of writing; "" where there are none.

        For caches on this machine. A split's fingerprint leaves folder and time out, so that it is
        the same on another; that of images in memory or in rows is of their content.
        """
        if self.data.images is not None or not isinstance(self.data.root, Path):
            return ""
        root = self.data.root.resolve()
        digest = hashlib.sha256(os.fsencode(root))
        for path in self.data.paths:
            try:
                stat = os.stat(root / path)
                what = f"{stat.st_size}\0{stat.st_mtime_ns}"
            except OSError:
                what = "gone"  # whoever reads it says so
            digest.update(os.fsencode(f"\0{path}\0{what}"))
        return digest.hexdigest()[:16]

    def get(self, i: int, seed: int | None = None) -> tuple[Tensor, Tensor]:
        """Return image i, (3, size, size) uint8, and its target; augmented if a seed is given."""
        return self.get_views(i, [seed])[0], self.targets[i]

    def get_views(self, i: int, seeds: Sequence[int | None]) -> list[Tensor]:
        """Read image i once and return a view of it for each seed, as `get` does for one."""
        if self.data.images is not None:
            image = self.data.images[i]
        else:
            image = read_image(self.data.root / self.data.paths[i])
        views = (self.plain(image) if s is None else self.transform(image, s) for s in seeds)
        return [torch.from_numpy(np.ascontiguousarray(v)).permute(2, 0, 1) for v in views]

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.get(i)


class NormalizeUint8(ItemTransform):
    """Turn a uint8 batch into float32, channels last in memory: minus mean, over deviation."""

    parameters = ("mean", "std")

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        self.set(mean, std)

    def set(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Use these statistics, per channel and for pixels in [0, 1], from now on."""
        self.mean = torch.tensor(mean).view(1, 3, 1, 1) * 255
        self.std = torch.tensor(std).view(1, 3, 1, 1) * 255

    def encodes(self, batch):
        """Normalise the images of a batch; targets and float images pass."""
        x, *rest = batch
        if x.dtype == torch.uint8:
            x = x.to(torch.float32, memory_format=torch.channels_last)
            x = x.sub_(self.mean.to(x.device)).div_(self.std.to(x.device))
        return (x, *rest)


def common_side(data: ImageSet, looks: int = 32) -> int | None:
    """Return the side of the images if they are small squares of one size, judged by some."""
    from PIL import Image

    sides = set()
    for i in np.linspace(0, len(data) - 1, min(looks, len(data))).astype(int):
        try:
            with Image.open(data.root / data.paths[i]) as image:
                sides.add(image.size)
        except Exception:  # unreadable: whoever reads all of it says so
            continue
    if len(sides) != 1:
        return None
    width, height = sides.pop()
    return width if width == height and width <= IN_MEMORY_SIDE else None
