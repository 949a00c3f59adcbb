"""Transforms of a user's own: albumentations, fastai's item and batch transforms, any callable.

Every call gets a seed, as `ImageTransform` does, so that the draws depend on (seed, epoch,
position) alone, however many workers there are.
"""

import hashlib
import inspect
import json
import random
import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from fastai.torch_core import TensorCategory, TensorImage
from fastcore.basics import listify
from fasttransform import ItemTransform, Pipeline, Transform
from PIL import Image
from torch import Tensor

from ltlearn.data.images import ImageSet
from ltlearn.data.items import read_pixels
from ltlearn.data.transforms import ImageTransform
from ltlearn.errors import UserError

__all__ = [
    "BatchSteps",
    "EvaluationSteps",
    "ItemSteps",
    "ToShape",
    "TrainingSteps",
    "TypedBatch",
    "seeded",
]

_LOOKS = 4  # images that are opened to find out the size that item transforms leave


@contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Seed the generators of Python, NumPy and torch inside the block, and restore them after it.

    Args:
        seed: The seed, in [0, 2**32).
        device: Device whose generator is seeded as well, if it is a CUDA device.
    """
    states = random.getstate(), np.random.get_state()
    devices = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        random.seed(seed)
        np.random.seed(seed)
        # Not torch.manual_seed, which also seeds every device.
        torch.default_generator.manual_seed(seed)
        for one in devices:
            with torch.cuda.device(one):
                torch.cuda.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


def _name_of(transform: object) -> str:
    """Name a transform for caches and records; no two transforms that differ share a name.

    Only albumentations describes its own transforms in full. The name of another one holds for this
    object alone, so that another process computes features anew.
    """
    kind = getattr(transform, "__qualname__", type(transform).__qualname__)
    try:
        content = json.dumps(transform.to_dict(), sort_keys=True)
    except Exception:  # no such method, or a part that cannot be described
        content = ""
    classes = re.findall(r'"__class_fullname__": "([^"]*)"', content)
    # A class of the user's has its module before its name. Its code is not described, nor is the
    # function of a Lambda.
    described = classes and all("." not in name and name != "Lambda" for name in classes)
    name = hashlib.sha256(content.encode()).hexdigest() if described else uuid.uuid4().hex
    return f"{kind} {name[:12]}"


class ToShape:
    """Resize images of another shape, smoothly, as images held in memory were resized.

    Args:
        shape: Height and width of the result in pixels.
    """

    def __init__(self, shape: Sequence[int]):
        self.shape = tuple(shape)

    def __call__(self, image: np.ndarray, seed: int | None = None) -> np.ndarray:
        """Return the image in the shape.

        Args:
            image: An (H, W, 3) uint8 image.
            seed: Without effect.
        """
        if image.shape[:2] == self.shape:
            return image
        height, width = self.shape
        return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


class ItemSteps:
    """fastai's `item_tfms` for one image: `Resize`, `RandomResizedCrop`, `FlipItem` and the like.

    Args:
        tfms: fastai transforms, classes or instances, or functions of a `PILImage`.

    Raises:
        UserError: If one of them cannot be called.
    """

    def __init__(self, tfms):
        tfms = _listed("item_tfms", tfms)
        self.name = ", ".join(map(_name_of, tfms))
        steps = [_as_transform(t) for t in tfms]
        # fastai applies some transforms to training images (part 0) or to the others (1) alone.
        self._parts = [Pipeline(steps, split_idx=part) for part in (0, 1)]

    def __call__(self, image: np.ndarray, seed: int | None, training: bool) -> np.ndarray:
        """Transform an (H, W, 3) uint8 image.

        Args:
            image: The image.
            seed: Decides the draws; None takes 0.
            training: Whether to apply what fastai applies to training images alone.
        """
        from fastai.vision.core import PILImage

        steps = self._parts[0 if training else 1]
        with seeded(seed or 0), _named("item_tfms", image):
            return _as_pixels(steps(PILImage.create(image)), "item_tfms")

    def find_shape(self, data: ImageSet) -> tuple[int, int] | None:
        """Return the height and width that the transforms leave; None if they differ.

        Args:
            data: The images, of which the first few are opened.
        """
        shapes = set()
        for i in range(min(_LOOKS, len(data))):
            try:
                image = read_pixels(data, i)
            except UserError:  # reading the image for a batch will raise
                continue
            shapes.add(self(image, 0, False).shape[:2])
        return shapes.pop() if len(shapes) == 1 else None


@dataclass
class EvaluationSteps:
    """What happens to an image for evaluation.

    Args:
        items: fastai's item transforms; None has none.
        fit: Brings the image into its final shape.
    """

    items: ItemSteps | None
    fit: Callable[[np.ndarray], np.ndarray]

    def __call__(self, image: np.ndarray, seed: int | None = None) -> np.ndarray:
        """Return the image in its final shape.

        Args:
            image: An (H, W, 3) uint8 image.
            seed: Without effect.
        """
        return self.fit(image if self.items is None else self.items(image, None, False))


class TrainingSteps:
    """What happens to an image for training: item transforms, the augmentation, the final shape.

    Args:
        transform: The augmentation: an `ImageTransform`, an albumentations transform, or a function
            from an (H, W, 3) uint8 array to one. A torchvision transform gets a PIL image. None has
            none.
        items: fastai's item transforms; None has none.
        fit: Brings an image of another shape into its final one.
        shape: The final height and width in pixels.
    """

    pad = None  # part of the name of a built-in augmentation

    def __init__(self, transform, items: ItemSteps | None, fit: Callable, shape: tuple[int, int]):
        self.transform, self.items, self.fit, self.shape = transform, items, fit, tuple(shape)
        if transform is None:
            name = "none"
        elif isinstance(transform, ImageTransform):
            name = f"{transform.name}, pad {transform.pad}"
        else:
            name = _name_of(transform)
        self.name = name if items is None else f"{items.name}, {name}"

    def __call__(
        self, image: np.ndarray, seed: int | None = None, progress: float | None = None
    ) -> np.ndarray:
        """Transform an (H, W, 3) uint8 image.

        Args:
            image: The image.
            seed: Decides the draws; None takes 0.
            progress: As for `ImageTransform`.
        """
        seed = seed or 0
        if self.items is not None:
            image = self.items(image, seed, True)
        if isinstance(self.transform, ImageTransform):
            return self.transform(image, seed, progress)
        if self.transform is not None:
            image = self._apply_own(image, seed)
        return image if image.shape[:2] == self.shape else self.fit(image)

    def _apply_own(self, image: np.ndarray, seed: int) -> np.ndarray:
        own, library = self.transform, type(self.transform).__module__.partition(".")[0]
        with seeded(seed), _named("transform", image):
            if library == "albumentations":
                # Its generator is its own, and forked workers copy it.
                own.set_random_state(np.random.default_rng(seed), random.Random(seed))
                result = own(image=image)["image"]
            elif library == "torchvision":
                result = own(Image.fromarray(image))
            else:
                result = own(image)
            return _as_pixels(result, "transform")


class TypedBatch(ItemTransform):
    """Give a uint8 batch the types and the range [0, 1] that fastai's batch transforms work on."""

    order = 10  # as fastai's IntToFloatTensor

    def encodes(self, batch):
        """Return float images and categories; a float batch keeps its values.

        Args:
            batch: A tuple that starts with the images.
        """
        x, *targets = batch
        x = x.float().div(255) if x.dtype == torch.uint8 else x
        return (TensorImage(x), *map(TensorCategory, targets))


class BatchSteps:
    """fastai's `batch_tfms`: `aug_transforms`, `Normalize` and the like.

    `Normalize` gives its statistics to the loaders, which normalise by themselves after the other
    transforms.

    Args:
        tfms: fastai transforms, classes or instances, or functions of a batch of images; None has
            none.

    Raises:
        UserError: If one cannot be called, or a `Normalize` has no statistics.
    """

    def __init__(self, tfms=None):
        from fastai.data.transforms import IntToFloatTensor, Normalize

        self.tfms, self.stats = [], None
        for tfm in _listed("batch_tfms", tfms):
            if isinstance(tfm, Normalize) or tfm is Normalize:
                self.stats = _stats_of(tfm)
            elif not (isinstance(tfm, IntToFloatTensor) or tfm is IntToFloatTensor):
                self.tfms.append(_as_transform(tfm))
        self.name = ", ".join(map(_name_of, self.tfms))

    def around(self, normalize: Transform) -> list[Transform]:
        """Return what a loader applies to its batches.

        Args:
            normalize: The normalisation of the loaders.
        """
        return [TypedBatch(), *self.tfms, normalize] if self.tfms else [normalize]

    def added(self) -> list[Transform]:
        """Return what is added to a loader that normalises already."""
        return [TypedBatch(), *self.tfms] if self.tfms else []

    def evaluate(self, images: Tensor) -> Tensor:
        """Return what evaluation makes of a batch of images.

        Args:
            images: The batch, (B, 3, H, W), uint8.
        """
        return Pipeline([TypedBatch(), *self.tfms], split_idx=1)((images,))[0]


def _stats_of(normalize) -> tuple[list[float], list[float]]:
    if getattr(normalize, "mean", None) is None or getattr(normalize, "std", None) is None:
        raise UserError(
            "Normalize in batch_tfms has no statistics; give them by Normalize.from_stats(mean, "
            "std), or leave Normalize out, because the loaders normalise by themselves."
        )
    return normalize.mean.flatten().tolist(), normalize.std.flatten().tolist()


def _listed(name: str, tfms) -> list:
    """Return transforms as a list of instances and functions; raise if one is none."""
    found = [t for one in listify(tfms) for t in (one.fs if isinstance(one, Pipeline) else [one])]
    wrong = next((t for t in found if not callable(t)), None)
    if wrong is not None:
        raise UserError(f"{name} must be fastai transforms or functions, got {wrong!r}.")
    return found


def _as_transform(tfm) -> Transform:
    hint = "; call it, such as Resize(224) or aug_transforms()."
    if isinstance(tfm, type):
        try:
            tfm = tfm()
        except TypeError as e:
            raise UserError(f"the transform {tfm.__name__} needs arguments ({e}){hint}") from e
    if inspect.isfunction(tfm) and tfm.__module__.startswith("fastai."):
        raise UserError(f"{tfm.__name__} of fastai makes transforms and is none{hint}")
    return tfm if isinstance(tfm, Transform) else Transform(tfm)


@contextmanager
def _named(name: str, image: np.ndarray) -> Iterator[None]:
    """Turn an error of a user's transform into one that names it and the image's size."""
    try:
        yield
    except UserError:
        raise
    except Exception as e:
        height, width = image.shape[:2]
        reason = str(e).strip().partition("\n")[0]
        raise UserError(
            f"{name} fails on an image of {width} x {height} pixels ({type(e).__name__}: "
            f"{reason}); it gets one RGB image at a time, as uint8."
        ) from e


def _as_pixels(result, name: str) -> np.ndarray:
    """Return the result of a user's transform as an (H, W, 3) uint8 array."""
    if isinstance(result, Image.Image):
        result = np.array(result.convert("RGB"))
    elif isinstance(result, torch.Tensor) and result.ndim == 3 and result.dtype == torch.uint8:
        result = result.permute(1, 2, 0)  # fastai's ToTensor
    pixels = np.asarray(result)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise UserError(
            f"{name} must leave (H, W, 3) uint8 images, got {pixels.dtype} {pixels.shape}; "
            "leave out steps that convert to float or normalise, because the loaders do so."
        )
    return pixels
