"""Augmentation: albumentations for single images, tensor code for a batch of small images.

The rest of the library uses only `ImageTransform` and `BatchCropFlip`, so that another library can
replace albumentations here.
"""

import copy
import math
import os
import random

import numpy as np
import torch
from torch import Tensor

from ltlearn.data.device import copies_on
from ltlearn.errors import check_choice, check_whole
from ltlearn.names import TRANSFORM_NAMES

__all__ = [
    "MIN_CROPPED",
    "BatchCropFlip",
    "ImageTransform",
    "OneOfFiveCrops",
    "least_scale",
    "mix_seed",
    "side_before_crop",
]

MIN_CROPPED = 96  # pixels; "none" crops the centre from this side on, and resizes the whole below
_LEAST_SCALE = 0.08  # share of the image that the first crops of "rising_crop" may have
_MAX_RATIO = 16  # of the sides of an image that is read as it is


def mix_seed(*parts: int) -> int:
    """Mix integers into one 32-bit seed (splitmix64).

    The seeds of neighbouring epochs or positions are then unrelated.

    Args:
        *parts: The integers, such as seed, epoch and position.
    """
    state = 0
    for part in parts:
        state = (state + part + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state & 0xFFFFFFFF


class ImageTransform:
    """Transform one image with albumentations, repeatably.

    albumentations 2.0.8 has a generator of its own, which forked workers copy, so that each worker
    and each epoch would repeat the same draws. Here every call gets a seed, and the result depends
    on nothing else. The steps of a call draw from one generator in turn. Several threads may call
    at the same time.

    Args:
        name: "crop_flip": pad with black, crop at random, flip (CIFAR). "crop": the same without
            the flip. "resized_crop_flip": random resized crop and flip. "resized_crop_flip_jitter":
            the same with colour jitter (.4, .4, .4, 0), the usual augmentation at 224 pixels.
            "resized_crop_flip_strong": also grey for one image in five and a blur (sigma .1 to 2)
            for one in two, as in GLMC's code. "rising_crop": random square crop without flip, whose
            least share of the image rises over the training from .08 to 1, see `least_scale`
            (LIFT). "none": resize the shorter side by 256 / 224 and crop
            the centre, as for evaluation.
        size: Side of the result in pixels, at least 1.
        pad: Black border for "crop" and "crop_flip" in pixels, at least 0; None takes an eighth of
            `size`.

    Raises:
        UserError: If the name is unknown, or `size` or `pad` is outside its range.

    Example:
        >>> transform = ImageTransform("crop_flip", size=32)
        >>> transform(np.zeros((32, 32, 3), np.uint8), seed=0).shape
        (32, 32, 3)
    """

    def __init__(self, name: str, size: int, pad: int | None = None):
        check_choice("transform", name, TRANSFORM_NAMES)
        check_whole("size", size, 1)
        if pad is not None:
            check_whole("pad", pad, 0)
        # Otherwise albumentations looks for a new version on the network at import.
        os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
        self.name, self.size = name, size
        self.pad = max(1, size // 8) if pad is None else pad
        # The steps hold the state of a call, so calls in parallel need a set of steps each. More
        # sets are made when they are needed.
        self._idle = [self._make_steps()]

    def _make_steps(self) -> tuple:
        """Return the transform, and the resize that may come before it."""
        import albumentations as A
        import cv2

        name, size = self.name, self.size
        flip = [A.HorizontalFlip(p=0.5)]
        if name == "none":
            steps = [A.SmallestMaxSize(side_before_crop(size)), A.CenterCrop(size, size)]
        elif name in ("crop", "crop_flip"):
            side = size + 2 * self.pad
            steps = [
                A.PadIfNeeded(side, side, border_mode=cv2.BORDER_CONSTANT, fill=0),
                A.RandomCrop(size, size),
            ]
            steps += flip if name == "crop_flip" else []
        elif name == "rising_crop":
            steps = [A.RandomResizedCrop(size=(size, size), ratio=(1.0, 1.0))]
        else:
            steps = [A.RandomResizedCrop(size=(size, size)), *flip]
            if name.endswith(("jitter", "strong")):
                steps.append(A.ColorJitter(0.4, 0.4, 0.4, 0.0, p=1.0))
            if name.endswith("strong"):
                steps += [
                    A.ToGray(p=0.2),
                    # A blur limit of 0 lets sigma decide the size of the kernel.
                    A.GaussianBlur(blur_limit=0, sigma_limit=(0.1, 2.0), p=0.5),
                ]
        return A.Compose(steps), A.Resize(size, size)

    def __call__(
        self, image: np.ndarray, seed: int | None = None, progress: float | None = None
    ) -> np.ndarray:
        """Transform an (H, W, 3) uint8 image into (size, size, 3) uint8.

        Args:
            image: The image.
            seed: Decides the draw; None lets albumentations draw.
            progress: For "rising_crop": how far the training is, in [0, 1]; None takes its end.
        """
        try:
            steps = self._idle.pop()
        except IndexError:
            steps = self._make_steps()
        try:
            if self.name == "rising_crop":
                steps[0].transforms[0].scale = (least_scale(progress), 1.0)
            return self._apply(*steps, image, seed)  # type: ignore[call-arg]
        finally:
            self._idle.append(steps)

    def _apply(self, compose, resize, image: np.ndarray, seed: int | None) -> np.ndarray:
        if self.name in ("crop", "crop_flip") or (self.name == "none" and self.size < MIN_CROPPED):
            # These transforms are for small images of one size, so others are resized first.
            if image.shape[:2] != (self.size, self.size):
                image = resize(image=image)["image"]
            if self.name == "none":
                return image
        if self.name == "none":
            image = _without_far_ends(image)
        if seed is not None:
            # set_random_seed would seed each step alike, and the crop would decide the flip.
            compose.set_random_state(np.random.default_rng(seed), random.Random(seed))
        return compose(image=image)["image"]


def least_scale(progress: float | None) -> float:
    """Return the least share of an image that a crop of "rising_crop" has.

    It rises from .08 to 1 as 1 - sqrt(1 - t ** 2) does: slowly at first.

    Args:
        progress: t, how far the training is, in [0, 1]; None takes its end.

    Source:
        Shi et al., ICML 2024, arXiv:2309.10019, and arXiv:2504.13282 (minimalist augmentation).
        Here t is the epoch divided by the last epoch, both from 0.
    """
    t = 1.0 if progress is None else min(max(progress, 0.0), 1.0)
    return min(1.0, _LEAST_SCALE + (1 - _LEAST_SCALE) * (1 - math.sqrt(1 - t * t)))


class OneOfFiveCrops:
    """A corner or the centre of an image that is slightly larger than the input of the model.

    The shorter side becomes 248 / 224 of the size; the five crops together show the whole image.

    Args:
        size: Side of the crop in pixels, at least 1.
        which: 0 to 3 for the corners, 4 for the centre.

    Source:
        Shi et al., ICML 2024, arXiv:2309.10019 (test-time ensembling).
    """

    NUMBER = 5

    def __init__(self, size: int, which: int):
        import albumentations as A

        check_whole("size", size, 1)
        self.size, self.which = size, which
        self._resize = A.SmallestMaxSize(round(size * 248 / 224))

    def __call__(self, image: np.ndarray, seed: int | None = None) -> np.ndarray:
        """Return the crop, (size, size, 3).

        Args:
            image: An (H, W, 3) uint8 image.
            seed: Without effect.
        """
        image = self._resize(image=_without_far_ends(image))["image"]
        down, right = (side - self.size for side in image.shape[:2])
        top, left = (
            (down // 2, right // 2)
            if self.which == self.NUMBER - 1
            else (down * (self.which // 2), right * (self.which % 2))
        )
        return image[top : top + self.size, left : left + self.size]


def side_before_crop(size: int) -> int:
    """Return the shorter side that "none" gives to an image before it crops the centre.

    Args:
        size: Side of the result in pixels, at least `MIN_CROPPED`.
    """
    return round(size * 256 / 224)


def _without_far_ends(image: np.ndarray) -> np.ndarray:
    """Crop the centre of a very long image, before its shorter side is enlarged.

    The centre crop leaves the ends out anyway, but 1 x 60,000 pixels would become 12 GB.
    """
    height, width = image.shape[:2]
    longest = _MAX_RATIO * min(height, width)
    top, left = max(height - longest, 0) // 2, max(width - longest, 0) // 2
    return image[top : top + min(height, longest), left : left + min(width, longest)]


class BatchCropFlip:
    """Pad, crop and flip a batch of small images at once, distributed as in "crop_flip".

    Args:
        images: All images of the set.
        pad: Black border on each side in pixels, at least 0. Each of the (2 * pad + 1) ** 2
            positions of the crop is equally likely.
        flip: Whether each image is mirrored with probability one half.
        rows: Indices of the images of this set; None takes all images.

    Shape:
        images is (N, H, W, 3), uint8. If they are the first three of four bytes per pixel, they are
        used without a copy. rows is (M,), integer. A call returns (B, 3, H, W), uint8, in
        channels-last memory.

    Raises:
        UserError: If `pad` is outside its range.
    """

    def __init__(self, images: Tensor, pad: int = 4, flip: bool = True, rows: Tensor | None = None):
        check_whole("pad", pad, 0)
        n, self.height, self.width, chans = images.shape
        self.pad, self.flip = pad, flip
        # A pixel takes four bytes, so that one integer is gathered per pixel.
        line = 4 * self.width
        if images.stride() == (line * self.height, line, 4, 1) and n:
            store = images.as_strided((n, self.height, self.width, 4), images.stride())
        else:
            images, rows = (images if rows is None else images[rows]), None
            store = torch.zeros(len(images), self.height, self.width, 4, dtype=torch.uint8)
            store[..., :chans] = images
        self._pixels = store.view(torch.int32)[..., 0]
        self._images = rows  # index into `_pixels`; None: all, in order
        self._row_index = torch.arange(self.height)
        self._col_index = torch.arange(self.width)

    def __len__(self) -> int:
        return len(self._pixels if self._images is None else self._images)

    def make_copy(self, device: torch.device) -> "BatchCropFlip | None":
        """Return a copy on a CUDA device; None if its memory for data is not enough.

        Args:
            device: The device.
        """
        copies = copies_on(device, [self._pixels], "the images")
        if copies is None:
            return None
        result = copy.copy(self)
        # Sets that share memory also share the copy, as long as one of them holds it.
        result._copies, result._pixels = copies, copies[0].tensor
        result._images = None if self._images is None else self._images.to(device)
        result._row_index = self._row_index.to(device)
        result._col_index = self._col_index.to(device)
        return result

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Draw the top and the left of n crops, and whether each is mirrored.

        Args:
            n: Number of crops.
            generator: The source of the draws.
        """
        top, left = torch.randint(2 * self.pad + 1, (2, n), generator=generator)
        mirrored = torch.rand(n, generator=generator) < 0.5
        return top, left, mirrored if self.flip else torch.zeros_like(mirrored)

    def __call__(self, index: Tensor, drawn: tuple[Tensor, ...] = ()) -> Tensor:
        """Return the images at `index`, augmented if draws are given.

        Args:
            index: Indices into the images, (B,).
            drawn: The draws, as `draw` returns them; empty returns the images unchanged.
        """
        if self._images is not None:
            index = self._images[index]
        out = self._pixels[index]
        if drawn:
            out = self._augmented(out, *drawn)
        out = out.view(torch.uint8).view(len(index), self.height, self.width, 4)
        return out[..., :3].permute(0, 3, 1, 2)

    def _augmented(self, pixels: Tensor, top: Tensor, left: Tensor, mirrored: Tensor) -> Tensor:
        """Crop and mirror a batch, (B, H, W) int32, each image in its own way."""
        n, pad = len(pixels), self.pad
        # Only the batch is padded, because a border on all images takes more than half as much
        # memory again.
        n_rows, n_cols = self.height + 2 * pad, self.width + 2 * pad
        padded = pixels.new_zeros(n, n_rows, n_cols)
        padded[:, pad : pad + self.height, pad : pad + self.width] = pixels
        rows = (torch.arange(n, device=pixels.device) * n_rows + top)[:, None] + self._row_index
        cols = torch.where(mirrored[:, None], self.width - 1 - self._col_index, self._col_index)
        cols = cols + left[:, None]
        return padded.view(-1)[rows[:, :, None] * n_cols + cols[:, None, :]]
