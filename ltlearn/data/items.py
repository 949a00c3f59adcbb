"""Single images of any kind: paths, PIL images, arrays and tensors, with or without a label."""

import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from fastcore.foundation import L
from PIL import Image, ImageOps
from torch import Tensor

from ltlearn.data.images import ImageSet, read_image
from ltlearn.data.opening import as_rgb, is_deep, open_image
from ltlearn.errors import UserError

__all__ = [
    "Item",
    "ItemImages",
    "LabelledItems",
    "LazyImages",
    "ShownByFastai",
    "is_one_image",
    "label_items",
    "list_items",
    "pixels_of",
    "read_pixels",
]


class Item(NamedTuple):
    """An image with its label.

    Args:
        image: A path, a PIL image, or an (H, W, 3) uint8 array.
        label: The class name.
    """

    image: Any
    label: str


@dataclass
class LazyImages(Sequence):
    """Images that a function makes.

    Args:
        image_of: Returns image i.
        n: Number of images.
    """

    image_of: Callable[[int], Any]
    n: int

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int):
        return self.image_of(i)


class LabelledItems(Sequence):
    """The images of a dataset with their labels, made when they are asked for.

    Args:
        images: The images, which may be made when they are asked for as well.
        targets: Class indices, (N,).
        vocab: Class names.
    """

    def __init__(self, images: Sequence, targets: Tensor, vocab: Sequence[str]):
        self.images, self.targets, self._vocab = images, targets, vocab

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index):
        if isinstance(index, slice):
            index = range(len(self))[index]
        if not isinstance(index, int | np.integer):
            return L(self[int(i)] for i in index)
        index = range(len(self))[index]
        return Item(self.images[index], self._vocab[int(self.targets[index])])

    @property
    def iloc(self) -> "LabelledItems":
        """Return the items, which take a list of numbers; fastai asks for them in this way."""
        return self


class ShownByFastai:
    """A dataset of images whose samples fastai can show."""

    vocab: Sequence[str] | None = None  # class names, which a subclass sets

    def decode(self, sample: tuple, full: bool = True) -> tuple:
        """Return a sample of a batch in the form that fastai shows: with the name of its class.

        Args:
            sample: The image, float in [0, 1], and its target if it has one.
            full: Without effect; fastai passes it.
        """
        from fastai.data.transforms import Category

        x, *targets = sample
        return (x, *(Category(self.vocab[int(y)]) for y in targets))


class ItemImages(ShownByFastai):
    """Images of any kind as a dataset, in the form that the dataset of another loader has.

    Args:
        images: What `pixels_of` takes.
        targets: Class indices, (N,); None for images without labels.
        like: Dataset whose `prepare` brings an image into form.
        augment: Dataset whose `vary` augments an image; None takes `like`.
    """

    n_inp = 1

    def __init__(self, images: Sequence, targets: Tensor | None, like, augment=None):
        self.images, self.targets, self.like = images, targets, like
        # Not `or`: the dataset of a learner that was loaded has no images, and counts as false.
        self.augment_like = like if augment is None else augment
        self.shape, self.vocab, self.bits = like.shape, like.vocab, like.bits
        self.tfms_name = like.tfms_name

    def __len__(self) -> int:
        return len(self.images)

    def get(self, i: int, seed: int | None = None) -> tuple[Tensor, ...]:
        """Return image i, (3, height, width) uint8, and its target if it has one.

        Args:
            i: Index of the image.
            seed: Decides the augmentation; None transforms as for evaluation.
        """
        image = pixels_of(self.images[i], self.bits)
        if seed is None:
            image = self.like.prepare(image)
        else:
            image = self.augment_like.vary(image, seed)
        x = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
        return (x,) if self.targets is None else (x, self.targets[i])

    def __getitem__(self, i: int) -> tuple[Tensor, ...]:
        return self.get(i)

    @property
    def items(self) -> Sequence:
        """Return the images, with their labels if they have some."""
        if self.targets is None:
            return L(self.images)
        return LabelledItems(self.images, self.targets, self.vocab)


class _GivenBytes(io.BytesIO):
    """An encoded image that a user gave as bytes, with a name for messages."""

    def __str__(self) -> str:
        return f"of {self.getbuffer().nbytes} bytes"


def read_pixels(data: ImageSet, i: int) -> np.ndarray:
    """Return image i of a set, (H, W, 3) uint8, from memory or from its file.

    Args:
        data: The images.
        i: Index of the image.

    Raises:
        UserError: If the file cannot be read.
    """
    if data.images is not None:
        # A part that was carved off shares the array of the whole set.
        return data.images[i if data.rows is None else data.rows[i]]
    return read_image(data.file(i), None, data.bits)


def pixels_of(image, bits: int | None = None) -> np.ndarray:
    """Return an image of any kind as (H, W, 3) uint8, upright.

    Args:
        image: A path, a PIL image, an (H, W, 3) or (H, W) uint8 array, a (3, H, W) uint8 tensor, or
            the bytes of an image file.
        bits: Bits that the values of a 16-bit image take, from 8 to 16; None takes 16.

    Raises:
        UserError: If it is none of these, or cannot be read.
    """
    if isinstance(image, bytes):
        image = _GivenBytes(image)
    if isinstance(image, str | os.PathLike):
        return read_image(Path(image), None, bits)
    if isinstance(image, io.IOBase):
        return read_image(image, None, bits)
    if isinstance(image, Image.Image):
        if bits is not None and bits < 16 and (file := _file_of_16_bits(image)) is not None:
            return read_image(file, None, bits)
        try:
            return np.array(as_rgb(ImageOps.exif_transpose(image), bits or 16))
        except Exception as e:  # Pillow reads the pixels now, and a file may be damaged
            raise UserError(f"cannot read the image {image!r} ({e}); give another one.") from None
    if isinstance(image, Tensor):
        image = image.cpu()
        image = image.permute(1, 2, 0) if image.ndim == 3 and len(image) == 3 else image
    pixels = np.asarray(image)
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise UserError(
            f"an image must be a path, a PIL image or an (H, W, 3) uint8 array, got "
            f"{_describe(image, pixels)}."
        )
    return pixels


def _file_of_16_bits(image: Image.Image) -> Any:
    """Return the file of a colour image with 16 bits per channel; Pillow keeps the upper 8 alone.

    Raises:
        UserError: If Pillow has decoded the image already.
    """
    name = getattr(image, "filename", "")
    if image.mode[0] == "I":  # greyscale, of which Pillow keeps all bits
        return None
    if hasattr(image, "tile") and is_deep(image):
        return name or image.fp
    try:
        with open_image(name) as again:
            was_deep = is_deep(again)
    except Exception:  # the image is from no file, or the file is gone
        return None
    if was_deep:
        raise UserError(
            f"the image {name} has 16 bits per channel, of which Pillow keeps the upper 8 alone; "
            "give its path."
        )
    return None


def _describe(image, pixels: np.ndarray) -> str:
    if isinstance(image, np.ndarray | Tensor):
        return f"{pixels.dtype} {pixels.shape}"
    return f"{type(image).__name__} {image!r:.60}"


def list_items(images) -> list:
    """Return images as a list: one image alone, or several in a list, a tuple or fastai's `L`.

    Args:
        images: One image of any kind, or several; a 4-dimensional array holds several.
    """
    if hasattr(images, "columns"):  # a pandas DataFrame
        raise UserError(
            f"images are in a table with the columns {', '.join(map(str, images.columns))}; give "
            "the column of the paths, such as df['image']."
        )
    if isinstance(images, np.ndarray | Tensor):
        of_paths = isinstance(images, np.ndarray) and images.dtype.kind in "OUS"
        return list(images) if of_paths or images.ndim == 4 else [images]
    kinds = list | tuple | L | LabelledItems | map | range
    is_series = hasattr(images, "iloc")
    is_iterator = hasattr(images, "__next__") and not isinstance(images, io.IOBase)
    return list(images) if isinstance(images, kinds) or is_series or is_iterator else [images]


def is_one_image(images) -> bool:
    """Return whether a value is a single image instead of several.

    Args:
        images: As for `list_items`.
    """
    found = list_items(images)
    return len(found) == 1 and found[0] is images


def label_items(items: Sequence, vocab: Sequence[str]) -> tuple[list, Tensor]:
    """Return the images of labelled items, and their class indices.

    Args:
        items: Pairs of an image and a label (a class name or its index), or paths of images in
            folders that are named after their classes.
        vocab: Class names.

    Raises:
        UserError: If an item has no label, or one that is no class.
    """
    index = {name: i for i, name in enumerate(vocab)}
    images, targets = [], []
    for item in items:
        if isinstance(item, list | tuple | L) and len(item) == 2:
            image, label = item
        elif isinstance(item, str | os.PathLike):
            image, label = item, Path(item).parent.name
        else:
            raise UserError(
                f"with_labels needs pairs (image, label), or paths in folders named after their "
                f"classes, got {type(item).__name__}."
            )
        known = label in index or (
            isinstance(label, int | np.integer) and 0 <= int(label) < len(vocab)
        )
        if not known:
            raise UserError(f"the label {label!r} of {image!r:.100} is none of the classes.")
        images.append(image)
        targets.append(index[label] if label in index else int(label))
    return images, torch.tensor(targets, dtype=torch.int64)
