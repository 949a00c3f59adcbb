"""scikit-learn's digits: its facts, and how it is read."""

from pathlib import Path

import numpy as np

from ltlearn.data.benchmarks.facts import BalancedSet, PixelStats
from ltlearn.data.images import ImageSet

__all__ = ["DIGITS_LT", "load_digits_images"]


def load_digits_images(part: str, test_per_class: int = 50) -> tuple[ImageSet, list[str]]:
    """Return scikit-learn's 1,797 handwritten digits, 8 x 8 pixels.

    The last digits of each class are the test set. The file is ordered by writer, so most test
    digits come from writers that are not in the training set.

    Args:
        part: "train" or "test".
        test_per_class: Test digits per class.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    test = np.concatenate([np.flatnonzero(digits.target == c)[-test_per_class:] for c in range(10)])
    index = np.sort(test) if part == "test" else np.setdiff1d(np.arange(len(digits.target)), test)
    grey = np.rint(digits.images[index] * (255 / 16)).astype(np.uint8)
    images = np.repeat(grey[..., None], 3, axis=3)
    targets = digits.target[index].astype(np.int64)
    return ImageSet(targets, images=images), [str(c) for c in range(10)]


def _load(data_path: Path, part: str) -> tuple[ImageSet, list[str]]:
    return load_digits_images(part)


def _pixel_stats(images: np.ndarray) -> PixelStats:
    pixels = images.reshape(-1, 3) / 255
    return pixels.mean(0).tolist(), pixels.std(0).tolist()


DIGITS_LT = BalancedSet(
    name="digits_lt",
    title="Digits",
    classes=10,
    class_order="the digits, ascending",
    sizes={"train": 1_297, "test": 500},
    each={"test": 50},
    largest=124,  # images of the rarest digit, so that every class can be the largest
    transform="crop",  # a mirrored digit is another one, or none
    bundled_with="scikit-learn",
    load=_load,
    sides=(8,),
    pad=1,
    measure_stats=_pixel_stats,
)
