"""Read scikit-learn's digits."""

import numpy as np

from ltlearn.data.images import ImageSet

__all__ = ["load_digits_images"]


def load_digits_images(part: str, test_per_class: int = 50) -> tuple[ImageSet, list[str]]:
    """Return scikit-learn's 1,797 handwritten digits, 8 x 8 pixels.

    The last of each class are the test set. The file goes writer by writer, so the test digits are
    mostly of writers that training has not seen.

    Args:
        part: "train" or "test".
        test_per_class: Test digits of each class.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    test = np.concatenate([np.flatnonzero(digits.target == c)[-test_per_class:] for c in range(10)])
    index = np.sort(test) if part == "test" else np.setdiff1d(np.arange(len(digits.target)), test)
    grey = np.rint(digits.images[index] * (255 / 16)).astype(np.uint8)
    images = np.repeat(grey[..., None], 3, axis=3)
    return ImageSet(digits.target[index].astype(np.int64), images=images), [
        str(c) for c in range(10)
    ]
