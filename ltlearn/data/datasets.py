"""Datasets of images in memory and in files, and their normalisation."""

import copy
import hashlib
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from fastai.torch_core import TensorImage
from fasttransform import ItemTransform
from torch import Tensor

from ltlearn.data.device import OnDevice
from ltlearn.data.images import ImageSet
from ltlearn.data.items import LabelledItems, LazyImages, ShownByFastai, read_pixels
from ltlearn.data.opening import is_deep, open_image, upright_rgb
from ltlearn.data.own_transforms import EvaluationSteps, ToShape, TrainingSteps
from ltlearn.data.transforms import BatchCropFlip, ImageTransform
from ltlearn.defaults import SMALL_SIDE
from ltlearn.errors import UserError, spell

__all__ = [
    "BATCH_TRANSFORMS",
    "IN_MEMORY_BYTES",
    "IN_MEMORY_SIDE",
    "ImageFiles",
    "ImagesInMemory",
    "Look",
    "NormalizeUint8",
    "SplitInfo",
    "look_at",
]

BATCH_TRANSFORMS = ("crop_flip", "crop", "none")  # those that `BatchCropFlip` can do
# Images are held decoded up to this many bytes in all, and up to this side in pixels.
IN_MEMORY_BYTES = 1 << 30
IN_MEMORY_SIDE = SMALL_SIDE
_DARK_BITS = 12  # values of so few bits are at most 15 of 255 when 16 bits are read


@dataclass(frozen=True)
class SplitInfo:
    """Which images a run uses. It goes into manifests and tables.

    Args:
        name: How the images were chosen: "first_n", "shuffle_seed0", "published", "folders",
            "one folder", "arrays" or the like.
        train: Fingerprint of the training images before validation images are carved off.
        valid: Fingerprint of the validation images.
        test: Fingerprint of the test images; None without a test set.
        valid_from: Source of the validation images: "training images", "validation set", or
            "test set" (paper protocol).
        dataset: Name of the dataset.
        profile: Profile of a cut set, "exponential" or "step".
        imbalance_factor: Training images of the largest class divided by those of the smallest.
        seed: Seed of the carved split.
        order: Fingerprint of the training images in their order, where the order of the files
            decided which were taken ("first_n", "shuffle_seed0"). A copy whose files have other
            names can have another order. None for other splits, and in runs of earlier versions.
    """

    name: str
    train: str
    valid: str
    test: str | None
    valid_from: str
    dataset: str = ""
    profile: str | None = None
    imbalance_factor: float | None = None
    seed: int = 0
    order: str | None = None

    @property
    def images(self) -> str:
        """Return the fingerprints of all images as one text, which records compare."""
        order = "" if self.order is None else f", order {self.order}"
        return f"train {self.train}, valid {self.valid}, test {self.test}{order}"

    def __str__(self) -> str:
        factor = f", imbalance factor {self.imbalance_factor:g}" if self.imbalance_factor else ""
        return f"{self.dataset} split {self.name}{factor}, fingerprint {self.train}"

    def to_dict(self) -> dict:
        """Return the fields as a dict, ready for JSON."""
        return asdict(self)


class ImagesInMemory(OnDevice, ShownByFastai):
    """Small images as one uint8 tensor, augmented as a batch.

    Args:
        data: Images with their targets, in memory.
        transform: "crop_flip", "crop" or "none".
        pad: Black border of the crop in pixels; None takes an eighth of the side.

    Raises:
        UserError: If the transform is another one.
    """

    n_inp = 1
    tfms_name = ""  # names a user's transforms that evaluation applies, for caches
    order_name = ""  # in learners that earlier versions exported
    listed: ImageSet | None = None  # where the images come from; None in exported learners
    vocab: Sequence[str] | None = None  # class names

    def __init__(self, data: ImageSet, transform: str = "none", pad: int | None = None):
        if transform not in BATCH_TRANSFORMS:
            raise UserError(
                f"transform must be one of {', '.join(BATCH_TRANSFORMS)} for images in "
                f"memory, got {transform!r}; pass {spell('in_memory', False)} for the others."
            )
        self.targets, self.transform = torch.from_numpy(data.targets), transform
        side = max(data.images.shape[1:3])
        if transform == "none":
            pad = 0
        elif pad is None:
            pad = max(1, side // 8)
        images = torch.from_numpy(_four_bytes(data.images))[..., :3]
        rows = None if data.rows is None else torch.from_numpy(data.rows)
        self.augment = BatchCropFlip(images, pad, flip=transform == "crop_flip", rows=rows)
        self.bits, self.order_name = data.bits, _order_name(data)
        self.shape = tuple(data.images.shape[1:3])
        self.listed = replace(data, images=None, digests=None)

    def __len__(self) -> int:
        return len(self.targets)

    def new_empty(self) -> "ImagesInMemory":
        """Return a copy without images, for `learn.export()`."""
        empty = copy.copy(self)
        none = torch.zeros(0, *self.shape, 3, dtype=torch.uint8)
        empty.augment = BatchCropFlip(none, self.augment.pad, self.augment.flip)
        empty.targets, empty.listed = self.targets[:0].clone(), None
        return empty

    def get_batch(self, index: Sequence[int], seed: int | None = None) -> tuple[Tensor, Tensor]:
        """Return images (B, 3, H, W) uint8 and targets (B,).

        Args:
            index: Indices of the images, (B,).
            seed: Decides the augmentation; None returns the images unchanged.
        """
        index = torch.as_tensor(index, dtype=torch.int64)
        return self.take(index, self.draw(len(index), seed))

    def draw(self, n: int, seed: int | None) -> tuple[Tensor, ...]:
        """Draw how n images are augmented, without reading one.

        Args:
            n: Number of images.
            seed: Decides the draws; None draws nothing.

        Returns:
            Top and left of the crops, and whether each is mirrored, (n,) each; an empty tuple
            without augmentation.
        """
        if seed is None or self.transform == "none":
            return ()
        return self.augment.draw(n, torch.Generator().manual_seed(seed))

    def take(self, index: Tensor, drawn: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Return images (B, 3, H, W) uint8 and targets (B,).

        Args:
            index: Indices of the images, (B,).
            drawn: What `draw` returned for B images.
        """
        return self.augment(index, drawn), self.targets[index]

    def make_copy(self, device: torch.device) -> "ImagesInMemory | None":
        """Return a copy whose images are on a device; None if they do not fit.

        Args:
            device: The device.
        """
        augment = self.augment.make_copy(device)
        if augment is None:
            return None
        result = copy.copy(self)
        result.augment, result.targets = augment, self.targets.to(device)
        return result

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        x, y = self.get_batch([i])
        return x[0], y[0]

    @property
    def files_name(self) -> str:
        """Name the images in their order, their bits and a user's transforms, for caches."""
        return f"{self.order_name}{_bits_name(self.bits)} {self.tfms_name}".strip()

    @property
    def items(self) -> LabelledItems:
        """Return the images with their labels, as `LTDataLoaders.test_dl` takes them."""
        return LabelledItems(LazyImages(self._array, len(self)), self.targets, self.vocab)

    def name_of(self, i: int) -> str:
        """Return the path of image i; the row in brackets for an image of an array.

        Args:
            i: Index of the image.
        """
        return _name_in(self.listed, i)

    def _array(self, i: int) -> np.ndarray:
        return self.augment(torch.tensor([i]))[0].permute(1, 2, 0).numpy()

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """Return any image in the form that evaluation takes.

        Args:
            image: An (H, W, 3) uint8 image.
        """
        return ToShape(self.shape)(image)

    def vary(self, image: np.ndarray, seed: int) -> np.ndarray:
        """Return any image augmented as for training.

        Args:
            image: An (H, W, 3) uint8 image.
            seed: Decides the augmentation.
        """
        image = self.prepare(image)
        if self.transform == "none":
            return image
        one = torch.from_numpy(np.ascontiguousarray(image))[None]
        augment = BatchCropFlip(one, self.augment.pad, self.augment.flip)
        drawn = augment.draw(1, torch.Generator().manual_seed(seed))
        return augment(torch.tensor([0]), drawn)[0].permute(1, 2, 0).numpy()


def _four_bytes(images: np.ndarray) -> np.ndarray:
    """Return the array of four bytes per pixel that `ImageSet.load` reads into, if this is one."""
    n, height, width, _ = images.shape
    base = images.base
    fits = isinstance(base, np.ndarray) and base.shape[1:] == (height, width, 4) and len(base) >= n
    return base[:n] if fits and base.ctypes.data == images.ctypes.data else images


class ImageFiles(ShownByFastai):
    """Images on disk, or in the rows of a dataset, read and transformed one by one.

    Args:
        data: Images with their targets.
        transform: A name of `ltlearn.names.TRANSFORM_NAMES`, or `TrainingSteps`.
        size: Side of the result in pixels, or height and width.
        pad: Black border of "crop" and "crop_flip" in pixels; None takes an eighth of `size`.
        plain: What evaluation does to an image; None resizes and crops its centre.
    """

    n_inp = 1
    takes_progress = True  # an augmentation may depend on how far the training is
    tfms_name = ""  # names a user's transforms that evaluation applies, for caches
    vocab: Sequence[str] | None = None  # class names

    def __init__(
        self,
        data: ImageSet,
        transform: str | TrainingSteps = "none",
        size: int | tuple[int, int] = 224,
        pad: int | None = None,
        plain: EvaluationSteps | None = None,
    ):
        self.data, self.targets = data, torch.from_numpy(data.targets)
        self.shape = (size, size) if isinstance(size, int) else tuple(size)
        named = isinstance(transform, str)
        self.transform = ImageTransform(transform, size, pad) if named else transform
        self.plain = plain or ImageTransform("none", size)

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def bits(self) -> int:
        """Return the bits that the values of 16-bit images take."""
        return self.data.bits

    def new_empty(self) -> "ImageFiles":
        """Return a copy without images, for `learn.export()`."""
        empty = copy.copy(self)
        empty.data, empty.targets = self.data.take(np.zeros(0, int)), self.targets[:0].clone()
        vars(empty).pop("_files_hash", None)
        return empty

    @property
    def files_name(self) -> str:
        """Return a hash of the files' paths, sizes and modification times, for caches.

        Rows of a dataset and arrays are named by the digests of the images, in their order. The
        fingerprint of a split uses neither folder nor time, so that it is the same on another
        machine. The names of a user's transforms follow the hash.
        """
        return f"{self._files_hash} {self.tfms_name}".strip()

    @cached_property
    def _files_hash(self) -> str:
        if self.data.images is not None:
            return _order_name(self.data)
        if not isinstance(self.data.root, Path):
            # The same images in memory are resized in another way, and have the same fingerprint.
            return f"rows {_order_name(self.data)}".strip() + _bits_name(self.data.bits)
        root = self.data.root.resolve()
        digest = hashlib.sha256(os.fsencode(root))
        for path in self.data.paths:
            try:
                stat = os.stat(root / path)
                state = f"{stat.st_size}\0{stat.st_mtime_ns}"
            except OSError:
                state = "gone"  # reading the image will raise
            digest.update(os.fsencode(f"\0{path}\0{state}"))
        return digest.hexdigest()[:16] + _bits_name(self.data.bits)

    def get(
        self, i: int, seed: int | None = None, progress: float | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return image i, (3, size, size) uint8, and its target.

        Args:
            i: Index of the image.
            seed: Decides the augmentation; None transforms as for evaluation.
            progress: How far the training is, in [0, 1]; None takes its end.
        """
        return self.get_views(i, [seed], progress)[0], self.targets[i]

    def get_views(
        self, i: int, seeds: Sequence[int | None], progress: float | None = None
    ) -> list[Tensor]:
        """Read image i once, and return a view for each seed.

        Args:
            i: Index of the image.
            seeds: As for `get`, one for each view.
            progress: As for `get`.
        """
        image, augment = read_pixels(self.data, i), self.transform
        views = (self.plain(image) if s is None else augment(image, s, progress) for s in seeds)
        return [torch.from_numpy(np.ascontiguousarray(v)).permute(2, 0, 1) for v in views]

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.get(i)

    @property
    def items(self) -> LabelledItems:
        """Return the images with their labels, as `LTDataLoaders.test_dl` takes them."""
        data = self.data
        in_files = data.images is None
        image_of = data.file if in_files else partial(read_pixels, data)
        return LabelledItems(LazyImages(image_of, len(self)), self.targets, self.vocab)

    def name_of(self, i: int) -> str:
        """Return the path of image i; the row in brackets for an image of an array.

        Args:
            i: Index of the image.
        """
        return _name_in(self.data, i)

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """Return any image in the form that evaluation takes.

        Args:
            image: An (H, W, 3) uint8 image.
        """
        return self.plain(image)

    def vary(self, image: np.ndarray, seed: int) -> np.ndarray:
        """Return any image augmented as for training.

        Args:
            image: An (H, W, 3) uint8 image.
            seed: Decides the augmentation.
        """
        return self.transform(image, seed)


class NormalizeUint8(ItemTransform):
    """Convert a uint8 batch to normalised float32, with channels last in memory.

    Args:
        mean: Mean per channel for pixels in [0, 1].
        std: Standard deviation per channel for pixels in [0, 1].
    """

    parameters = ("mean", "std")
    order = 99  # after a user's batch transforms, as fastai's Normalize

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        self.set(mean, std)

    def set(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Replace the statistics.

        Args:
            mean: Mean per channel for pixels in [0, 1].
            std: Standard deviation per channel for pixels in [0, 1].
        """
        # Statistics on another device than the images would be copied for each batch.
        device = getattr(self, "mean", torch.empty(0)).device
        self.mean = (torch.tensor(mean).view(1, 3, 1, 1) * 255).to(device)
        self.std = (torch.tensor(std).view(1, 3, 1, 1) * 255).to(device)

    @property
    def stats(self) -> tuple[list[float], list[float]]:
        """Return mean and standard deviation per channel for pixels in [0, 1], to 7 decimals."""
        pair = (self.mean.flatten() / 255).tolist(), (self.std.flatten() / 255).tolist()
        mean, std = ([round(value, 7) for value in values] for values in pair)
        return mean, std

    def encodes(self, batch):
        """Normalise the images of a batch; targets and other float tensors pass unchanged.

        Args:
            batch: A tuple that starts with the images: uint8, or a `TensorImage` in [0, 1].
        """
        x, *rest = batch
        if x.dtype == torch.uint8:
            x = x.to(torch.float32, memory_format=torch.channels_last)
            x = x.sub_(self.mean.to(x.device)).div_(self.std.to(x.device))
        elif isinstance(x, TensorImage):
            x = (x * 255 - self.mean.to(x.device)) / self.std.to(x.device)
        return (x, *rest)

    def decodes(self, batch):
        """Return the images of a normalised batch in [0, 1], for fastai to show.

        Args:
            batch: A tuple that starts with the images.
        """
        x, *rest = batch
        x = (x * self.std.to(x.device) + self.mean.to(x.device)) / 255
        return (TensorImage(x.clamp(0, 1)), *rest)


def _name_in(data: ImageSet | None, i: int) -> str:
    """Return the path of an image; its row in the array where there is no file."""
    if data is not None and data.paths is not None:
        return str(data.file(i))
    return f"[{i if data is None or data.rows is None else int(data.rows[i])}]"


def _bits_name(bits: int) -> str:
    """Name the bits of 16-bit images for caches, because pixels depend on them."""
    return "" if bits == 16 else f" {bits} bits"


def _order_name(data: ImageSet) -> str:
    """Name images in their order, because the fingerprint of a set is the same in any order."""
    return "" if data.digests is None else hashlib.sha256(data.digests.tobytes()).hexdigest()[:16]


@dataclass(frozen=True)
class Look:
    """What some images of a set have in common.

    Args:
        side: Side of the images in pixels if they are small squares of one size, else None.
        bits: Bits that the values of 16-bit images take: 8, 10, 12, 14 or 16. 16 if there is no
            such image.
        deep: Number of 16-bit images among those that were opened.
    """

    side: int | None
    bits: int
    deep: int

    @property
    def read_bits(self) -> int:
        """Return the bits that 16-bit images are read with: 16, unless they would be black."""
        return self.bits if self.bits <= _DARK_BITS else 16


def look_at(data: ImageSet, looks: int = 32) -> Look:
    """Open some images of a set, and decode those with 16 bits per channel.

    Args:
        data: The images, on disk.
        looks: Number of images that are opened, evenly spread over the set.
    """
    sizes, brightest = set(), []
    for i in np.linspace(0, len(data) - 1, min(looks, len(data))).astype(int):
        file = data.file(i)
        try:
            with open_image(file) as image:
                sizes.add(image.size)
                if is_deep(image):
                    brightest.append(int(np.asarray(upright_rgb(image, file)).max()))
        except Exception:  # reading the image will raise
            continue
    bits = 16
    if brightest:
        # The upper 8 of 16 bits are at hand. Cameras and scanners have an even number of bits.
        taken = max(brightest).bit_length()
        bits = 8 + taken + taken % 2
    width, height = sizes.pop() if len(sizes) == 1 else (0, 1)
    side = width if width == height and width <= IN_MEMORY_SIDE else None
    return Look(side, bits, len(brightest))
