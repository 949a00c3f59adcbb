"""Class counts, the long-tailed profiles that make them, and how to find them in `DataLoaders`."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ltlearn.errors import UserError, check_choice

__all__ = ["count_classes", "find_class_counts", "imbalance_factor_of", "long_tail_counts"]

PROFILES = ("exponential", "step")


def count_classes(targets: Sequence[int] | np.ndarray | Tensor, num_classes: int) -> Tensor:
    """Count the images of each class.

    Args:
        targets: Class index per image, in [0, num_classes).
        num_classes: C, classes there are, with or without images.

    Shape:
        targets is (N,), integer. The result is (C,), int64.

    Raises:
        UserError: If a target is outside [0, num_classes).
    """
    targets = np.asarray(targets, dtype=np.int64)
    if len(targets) and not 0 <= targets.min() <= targets.max() < num_classes:
        raise UserError(
            f"targets must lie in 0 ... {num_classes - 1}, as there are {num_classes} classes; "
            f"got {targets.min()} ... {targets.max()}."
        )
    return torch.from_numpy(np.bincount(targets, minlength=num_classes))


def imbalance_factor_of(class_counts: Tensor) -> float:
    """Return the largest class count over the smallest that is not zero (no unit, at least 1)."""
    present = class_counts[class_counts > 0]
    return (present.max() / present.min()).item() if len(present) else 1.0


def long_tail_counts(
    n_max: int, num_classes: int, imbalance_factor: float, profile: str = "exponential"
) -> list[int]:
    """Return how many images each class keeps, head first.

    Args:
        n_max: Images of the largest class, at least 1.
        num_classes: C, at least 1.
        imbalance_factor: Largest count over smallest, at least 1. 1 keeps every class alike.
        profile: "exponential": int(n_max * IF ** (-c / (C - 1))) for class c. "step": the first
            half of the classes keep n_max, the others n_max / IF.

    Raises:
        UserError: If a value is outside its range, or the smallest class would be empty.

    Source:
        Cao et al., NeurIPS 2019, arXiv:1906.07413 (LDAM-DRW), CIFAR-LT generator.
    """
    check_choice("profile", profile, PROFILES)
    for name, value in (("n_max", n_max), ("num_classes", num_classes)):
        if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
            raise UserError(f"{name} must be a whole number of at least 1, got {value!r}.")
    if not isinstance(imbalance_factor, int | float | np.number) or not imbalance_factor >= 1:
        raise UserError(f"imbalance_factor must be at least 1, got {imbalance_factor!r}.")
    mu = 1.0 / imbalance_factor
    if profile == "exponential":
        # 1e-9 guards against 49.99999 where the real value is 50.
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
    """Find the training counts behind a fastai `DataLoaders`, or return None.

    Looks at `dls.class_counts` (ours), at `targets` of the training set (torchvision) and at the
    label pipeline of fastai's own `Datasets`; no image is opened.
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
