"""Augmentation: albumentations for single images, tensor code for a batch of small ones.

The rest of the library knows only `ImageTransform` and `BatchCropFlip`, so another augmentation
library can take albumentations' place here.
"""

import os
import random

import numpy as np
import torch
from torch import Tensor

from ltlearn.errors import UserError, check_choice

__all__ = ["TRANSFORMS", "BatchCropFlip", "ImageTransform", "mix_seed"]

TRANSFORMS = (
    "crop_flip",
    "crop",
    "resized_crop_flip",
    "resized_crop_flip_jitter",
    "resized_crop_flip_strong",
    "none",
)


def mix_seed(*parts: int) -> int:
    """Mix integers into one 32-bit seed (splitmix64).

    Neighbouring epochs or positions then share nothing.
    """
    state = 0
    for part in parts:
        state = (state + part + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state & 0xFFFFFFFF


def check_pad(pad: int | None) -> None:
    """Raise a `UserError` unless `pad` is None or a number of pixels."""
    if pad is not None and (not isinstance(pad, int) or pad < 0):
        raise UserError(f"pad must be a whole number of pixels, 0 or more, got {pad!r}.")


class ImageTransform:
    """Transform one image with albumentations, repeatably.

    albumentations 2.0.8 keeps a generator of its own that forked workers copy, so that each worker
    and each epoch would repeat the same draws. Here every call is given its seed, and the result
    depends on nothing else; its steps draw from one generator, one after the other. Threads may
    call at once.

    Args:
        name: "crop_flip": pad with black, crop at random, flip (CIFAR). "crop": the same without
            the flip. "resized_crop_flip": random resized crop and flip; "..._jitter" adds colour
            jitter (.4, .4, .4, 0), the usual augmentation at 224 pixels; "..._strong" the jitter,
            grey in one of five, and a blur (sigma .1 to 2) in one of two, as GLMC's code. "none":
            resize the shorter side by 256 / 224 and crop the centre, as for evaluation.
        size: Side of the result in pixels, at least 1.
        pad: Black border for "crop" and "crop_flip" in pixels; None takes an eighth of `size`.

    Raises:
        UserError: If the name is unknown, or `size` or `pad` is no such number.
    """

    def __init__(self, name: str, size: int, pad: int | None = None):
        check_choice("transform", name, TRANSFORMS)
        if not isinstance(size, int | np.integer) or size < 1:
            raise UserError(f"size must be a whole number of pixels, at least 1, got {size!r}.")
        check_pad(pad)
        # albumentations asks the network for its newest version when it is imported.
        os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
        self.name, self.size = name, size
        self.pad = max(1, size // 8) if pad is None else pad
        # The steps of a call keep their state in themselves, so that calls at once need a set each;
        # those are made as they are needed.
        self._idle = [self._make_steps()]

    def _make_steps(self) -> tuple:
        """Make the transform, and the resize that may come before it."""
        import albumentations as A
        import cv2

        name, size = self.name, self.size
        flip = [A.HorizontalFlip(p=0.5)]
        if name == "none":
            steps = [A.SmallestMaxSize(round(size * 256 / 224)), A.CenterCrop(size, size)]
        elif name in ("crop", "crop_flip"):
            side = size + 2 * self.pad
            steps = [
                A.PadIfNeeded(side, side, border_mode=cv2.BORDER_CONSTANT, fill=0),
                A.RandomCrop(size, size),
            ]
            steps += flip if name == "crop_flip" else []
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

    def __call__(self, image: np.ndarray, seed: int | None = None) -> np.ndarray:
        """Transform an (H, W, 3) uint8 image into (size, size, 3) uint8.

        Args:
            image: The image.
            seed: Decides the draw; None leaves it to albumentations.
        """
        try:
            steps = self._idle.pop()
        except IndexError:
            steps = self._make_steps()
        try:
            return self._apply(*steps, image, seed)
        finally:
            self._idle.append(steps)

    def _apply(self, compose, resize, image: np.ndarray, seed: int | None) -> np.ndarray:
        if self.name in ("crop", "crop_flip") or (self.name == "none" and self.size < 96):
            # These presets are for small images of one size: others are brought to it first.
            if image.shape[:2] != (self.size, self.size):
                image = resize(image=image)["image"]
            if self.name == "none":
                return image
        if seed is not None:
            # Not set_random_seed: it seeds each step alike, so the flip would follow from the crop.
            compose.set_random_state(np.random.default_rng(seed), random.Random(seed))
        return compose(image=image)["image"]


class BatchCropFlip:
    """Pad, crop and flip a batch of small images at once; the same distribution as "crop_flip".

    Args:
        images: All the images.
        pad: Black border on each side in pixels, 0 or more. The crop is equally likely at each of
            its (2 * pad + 1) ** 2 places.
        flip: Whether half of the images are mirrored.

    Shape:
        images is (N, H, W, 3), uint8. A call gives (B, 3, H, W), uint8, in channels-last memory.
    """

    def __init__(self, images: Tensor, pad: int = 4, flip: bool = True):
        check_pad(pad)
        n, self.height, self.width, chans = images.shape
        self.pad, self.flip = pad, flip
        self._rows, self._cols = self.height + 2 * pad, self.width + 2 * pad
        # Four bytes a pixel, so that a pixel is one gathered integer.
        store = torch.zeros(n, self._rows, self._cols, 4, dtype=torch.uint8)
        store[:, pad : pad + self.height, pad : pad + self.width, :chans] = images
        self._pixels = store.view(torch.int32).view(-1)
        self._row_index = torch.arange(self.height)
        self._col_index = torch.arange(self.width)

    def __len__(self) -> int:
        return len(self._pixels) // (self._rows * self._cols)

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Draw the top and left of n crops and whether each is mirrored."""
        top, left = torch.randint(2 * self.pad + 1, (2, n), generator=generator)
        mirrored = torch.rand(n, generator=generator) < 0.5
        return top, left, mirrored if self.flip else torch.zeros_like(mirrored)

    def __call__(self, index: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the images at `index`, augmented with `generator`, as they are without one."""
        n = len(index)
        if generator is None:
            top = left = torch.full((n,), self.pad)
            mirrored = torch.zeros(n, dtype=torch.bool)
        else:
            top, left, mirrored = self.draw(n, generator)
        rows = (index * self._rows + top)[:, None] + self._row_index
        cols = torch.where(mirrored[:, None], self.width - 1 - self._col_index, self._col_index)
        cols = cols + left[:, None]
        places = rows[:, :, None] * self._cols + cols[:, None, :]
        out = self._pixels[places].view(torch.uint8).view(n, self.height, self.width, 4)
        return out[..., :3].permute(0, 3, 1, 2)
