"""Class counts: counting them, finding them in `DataLoaders`, and long-tailed profiles."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ltlearn.errors import UserError, check_choice, check_number, check_whole
from ltlearn.names import PROFILES

__all__ = ["count_classes", "find_class_counts", "imbalance_factor_of", "long_tail_counts"]


def count_classes(targets: Sequence[int] | np.ndarray | Tensor, num_classes: int) -> Tensor:
    """Count the images of each class.

    Args:
        targets: Class index per image, in [0, num_classes).
        num_classes: Number of classes C, including classes without images.

    Shape:
        targets is (N,), integer. The result is (C,), int64.

    Raises:
        UserError: If a target is outside [0, num_classes).

    Example:
        >>> count_classes([0, 0, 1], num_classes=3)
        tensor([2, 1, 0])
    """
    targets = np.asarray(targets, dtype=np.int64)
    if len(targets) and not 0 <= targets.min() <= targets.max() < num_classes:
        raise UserError(
            f"targets must be in 0 ... {num_classes - 1}, because there are {num_classes} classes; "
            f"got {targets.min()} ... {targets.max()}."
        )
    return torch.from_numpy(np.bincount(targets, minlength=num_classes))


def imbalance_factor_of(class_counts: Tensor) -> float:
    """Return the largest class count divided by the smallest count above zero, at least 1.

    Args:
        class_counts: Images per class, (C,).

    Example:
        >>> imbalance_factor_of(torch.tensor([100, 20, 0]))
        5.0
    """
    present = class_counts[class_counts > 0]
    return (present.max() / present.min()).item() if len(present) else 1.0


def long_tail_counts(
    n_max: int, num_classes: int, imbalance_factor: float, profile: str = "exponential"
) -> list[int]:
    """Return how many images each class keeps, the largest class first.

    Args:
        n_max: Images of the largest class, at least 1.
        num_classes: Number of classes C, at least 1.
        imbalance_factor: Largest count divided by the smallest, at least 1. With 1 all classes keep
            n_max images.
        profile: "exponential": class c keeps int(n_max * IF ** (-c / (C - 1))). "step": the first
            half of the classes keep n_max, the others n_max / IF.

    Raises:
        UserError: If a value is outside its range, or the smallest class would be empty.

    Example:
        >>> long_tail_counts(100, 3, imbalance_factor=100)
        [100, 10, 1]

    Source:
        Cao et al., NeurIPS 2019, arXiv:1906.07413 (LDAM-DRW), CIFAR-LT generator.
    """
    check_choice("profile", profile, PROFILES)
    check_whole("n_max", n_max, 1)
    check_whole("num_classes", num_classes, 1)
    check_number("imbalance_factor", imbalance_factor, 1)
    mu = 1.0 / imbalance_factor
    if profile == "exponential":
        # 1e-9 corrects a rounding error such as 49.99999 for 50.
        last = max(num_classes - 1, 1)
        counts = [int(n_max * mu ** (c / last) + 1e-9) for c in range(num_classes)]
    else:
        head = num_classes - num_classes // 2
        counts = [n_max] * head + [int(n_max * mu + 1e-9)] * (num_classes - head)
    if min(counts) < 1:
        raise UserError(
            f"imbalance_factor {imbalance_factor:g} leaves the smallest class empty: the largest "
            f"has only {n_max} images, so it can be at most {n_max}."
        )
    return counts


def find_class_counts(dls) -> Tensor | None:
    """Return the training images per class of a fastai `DataLoaders`, or None.

    Uses `dls.class_counts` (`LTDataLoaders`), `targets` of the training set (torchvision), or the
    label pipeline of fastai's `Datasets`. No image is opened.

    Args:
        dls: The data loaders.
    """
    counts = vars(dls).get("class_counts")
    if counts is not None:
        return torch.as_tensor(counts)
    train = getattr(getattr(dls, "train", None), "dataset", None)
    targets = getattr(train, "targets", None)
    if targets is None:
        lists = getattr(train, "tls", None)
        if not lists or len(lists) < 2:
            return None
        targets = [int(t) for t in lists[-1]]
    vocab = getattr(dls, "vocab", None)
    targets = np.asarray(targets)
    if vocab is not None:
        num_classes = len(vocab)
    else:
        num_classes = int(getattr(dls, "c", None) or targets.max() + 1)
    return count_classes(targets, num_classes)
