"""Check images that are in memory already."""

from collections.abc import Mapping, Sequence

import numpy as np

from ltlearn.data.build import ImageParts
from ltlearn.data.class_names import check_class_names
from ltlearn.data.images import ImageSet
from ltlearn.errors import UserError, spell

__all__ = ["as_pair", "check_targets", "list_arrays", "number_classes"]

_MOST_CLASSES = 1_000_000  # a higher number is an identifier, not the number of a class


def list_arrays(
    images, targets, valid: tuple | None, test: tuple | None, classes: Sequence[str] | None
) -> ImageParts:
    """Return arrays as images by part.

    Args:
        images: The training images.
        targets: Their class indices.
        valid: Validation (images, targets); None without a validation set.
        test: Test (images, targets); None without a test set.
        classes: Class names; None numbers the classes.

    Shape:
        images is (N, H, W, 3) or (N, H, W), uint8. targets is (N,), integers from 0 up.

    Raises:
        UserError: If shapes, types or labels do not fit.
    """
    parts = {"train": _array_set("training", images, targets)}
    for part, given in (("valid", valid), ("test", test)):
        if given is not None:
            parts[part] = _later_set(part, given, parts["train"])
    classes = number_classes({part: data.targets for part, data in parts.items()}, classes)
    return ImageParts(parts, classes, split_name="arrays", dataset="arrays")


def number_classes(targets: Mapping[str, np.ndarray], classes: Sequence[str] | None) -> list[str]:
    """Return the class names; the numbers of the classes if none are given.

    Args:
        targets: Class indices by part.
        classes: Class names; None numbers the classes.

    Raises:
        UserError: If an index is beyond the names, or too large for a class, or names are alike.
    """
    names = None if classes is None else check_class_names(classes)
    highest = {part: int(values.max()) for part, values in targets.items()}
    for part, target in highest.items():
        if names is not None and target >= len(names):
            raise UserError(
                f"{part} targets go up to {target}, but there are {len(names)} classes."
            )
        if target >= _MOST_CLASSES:
            raise UserError(
                f"{part} targets go up to {target}, more than {_MOST_CLASSES:,} classes; number "
                "the classes that occur from 0."
            )
    return [str(c) for c in range(max(highest.values()) + 1)] if names is None else names


def as_pair(part: str, given: object, names: str = "images, targets") -> tuple:
    """Return what was given for validation or test as a pair.

    Args:
        part: "valid" or "test".
        given: What was given.
        names: Names of the two, for the message.

    Raises:
        UserError: If it is no pair.
    """
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise UserError(f"{part} must be a pair ({names}), got {type(given).__name__}.")
    return tuple(given)


def _later_set(part: str, given: object, train: ImageSet) -> ImageSet:
    """Return validation or test images, which must have the size of the training images."""
    data = _array_set(part, *as_pair(part, given))
    (h, w), (train_h, train_w) = data.images.shape[1:3], train.images.shape[1:3]
    if (h, w) != (train_h, train_w):
        raise UserError(
            f"{part} images are {h} x {w} pixels, training images {train_h} x {train_w}; resize "
            "them to one size."
        )
    return data


def _array_set(part: str, images, targets) -> ImageSet:
    try:
        images, targets = np.asarray(images), np.asarray(targets)
    except (ValueError, TypeError, RuntimeError) as e:  # ragged lists, tensors on another device
        raise UserError(f"{part} images and targets must be arrays or CPU tensors ({e}).") from None
    if images.ndim == 3:
        images = np.repeat(images[..., None], 3, axis=3)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or not images.size:
        hint = f"; features go to {spell('from_features')}" if images.ndim == 2 else ""
        raise UserError(
            f"{part} images must be uint8 of shape (N, H, W, 3) or (N, H, W), got {images.dtype} "
            f"{images.shape}{hint}."
        )
    targets = check_targets(part, targets, len(images))
    return ImageSet(targets, images=np.ascontiguousarray(images))


def check_targets(part: str, targets: np.ndarray, n: int) -> np.ndarray:
    """Return class indices as int64.

    Args:
        part: The part, for the message.
        targets: The class indices.
        n: How many there must be.

    Raises:
        UserError: If they are not n integers from 0 up.
    """
    if targets.shape != (n,) or not np.issubdtype(targets.dtype, np.integer):
        raise UserError(
            f"{part} targets must be {n} integers, got {targets.dtype} {targets.shape}."
        )
    if targets.min() < 0:
        raise UserError(f"{part} targets must be class indices from 0 up, got {targets.min()}.")
    return targets.astype(np.int64)
