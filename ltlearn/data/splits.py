"""Which images are in: named long-tailed subsets, the carved validation split, fingerprints."""

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np

from ltlearn.errors import UserError, check_choice

__all__ = ["carve_validation", "fingerprint", "select_long_tail"]

SPLITS = ("first_n", "shuffle_seed0")


def select_long_tail(
    targets: np.ndarray, class_counts: Sequence[int], split: str = "first_n"
) -> np.ndarray:
    """Choose which images of a balanced set a long-tailed one keeps.

    Args:
        targets: Class index per image, in file order.
        class_counts: Images to keep per class.
        split: "first_n" keeps the first images of each class in file order (SAMN, WD).
            "shuffle_seed0" shuffles the images of each class, classes in order, with NumPy's legacy
            generator seeded with 0, then keeps the first (LDAM-DRW, MiSLAS, SADE, LIFT,
            BagofTricks).

    Shape:
        targets is (N,). The result is (sum of class_counts,), indices into it, class by class.

    Raises:
        UserError: If the split is unknown or a class has too few images.
    """
    check_choice("split", split, SPLITS)
    rng = np.random.RandomState(0)
    kept = []
    for c, n in enumerate(class_counts):
        index = np.flatnonzero(targets == c)
        if len(index) < n:
            raise UserError(
                f"class {c} has {len(index)} images, but the long-tailed split wants {n} of them."
            )
        if split == "shuffle_seed0":
            rng.shuffle(index)
        kept.append(index[:n])
    return np.concatenate(kept)


def carve_validation(
    targets: np.ndarray, fraction: float = 0.1, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Split training images into training and validation, class by class, emptying no class.

    A class of n images gives round(n * fraction) of them, at least one and at most n - 1; a class
    with a single image keeps it for training.

    Args:
        targets: Class index per image.
        fraction: Share of each class that goes to validation, in (0, 1).
        seed: Of the choice.

    Shape:
        targets is (N,). The results are sorted indices into it: training, validation.

    Raises:
        UserError: If `fraction` is outside (0, 1), or no class has two images.
    """
    if not isinstance(fraction, int | float | np.number) or not 0 < fraction < 1:
        raise UserError(
            "the share of images to carve for validation must be between 0 and 1, both excluded; "
            f"got {fraction!r}."
        )
    rng = np.random.RandomState(seed)
    valid = []
    for c in np.unique(targets):
        index = np.flatnonzero(targets == c)
        n = min(max(1, round(len(index) * fraction)), len(index) - 1)
        valid.append(rng.permutation(index)[:n])
    valid = np.sort(np.concatenate(valid)) if valid else np.empty(0, dtype=np.int64)
    if not len(valid):
        raise UserError(
            "no class has two training images, so no validation split can be carved; add images."
        )
    train = np.setdiff1d(np.arange(len(targets)), valid)
    return train, valid


def fingerprint(contents: Iterable[bytes], targets: Sequence[int]) -> str:
    """Return 12 hexadecimal digits that name a set of labelled images, whatever their order.

    Args:
        contents: Per image, its pixels (images in memory) or its relative path and size (on disk).
        targets: Class index per image.
    """
    digests = sorted(
        hashlib.sha256(int(t).to_bytes(4, "little") + c).digest()
        for c, t in zip(contents, targets, strict=True)
    )
    return hashlib.sha256(b"".join(digests)).hexdigest()[:12]
