"""Choose images: named long-tailed subsets, the carved validation split, and fingerprints."""

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np

from ltlearn.errors import UserError, check_choice, check_number
from ltlearn.names import SPLITS

__all__ = ["carve_validation", "fingerprint", "select_long_tail"]


def select_long_tail(
    targets: np.ndarray, class_counts: Sequence[int], split: str = "first_n"
) -> np.ndarray:
    """Choose the images of a balanced set that a long-tailed subset keeps.

    Args:
        targets: Class index per image, in file order.
        class_counts: Images to keep per class.
        split: "first_n" keeps the first images of each class in file order (SAMN, WD).
            "shuffle_seed0" shuffles the images of each class, classes in order, with NumPy's legacy
            generator seeded with 0, then keeps the first (LDAM-DRW, MiSLAS, SADE, LIFT,
            BagofTricks).

    Shape:
        targets is (N,). The result is (sum of class_counts,), indices into targets, class by class.

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
                f"class {c} has {len(index)} images, but the long-tailed split needs {n}."
            )
        if split == "shuffle_seed0":
            rng.shuffle(index)
        kept.append(index[:n])
    return np.concatenate(kept)


def carve_validation(
    targets: np.ndarray, fraction: float = 0.1, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Split training images into training and validation images, class by class.

    A class of n images gives round(n * fraction) images, at least one and at most n - 1. So no
    class is emptied, and a class with a single image keeps it for training.

    Args:
        targets: Class index per image.
        fraction: Share of each class that goes to validation, in (0, 1).
        seed: Decides the choice.

    Shape:
        targets is (N,). The results are sorted indices into targets: training, validation.

    Raises:
        UserError: If `fraction` is outside (0, 1), or no class has two images.

    Example:
        >>> train, valid = carve_validation(np.array([0, 0, 0, 1]), fraction=0.3)
        >>> len(train), len(valid)
        (3, 1)
    """
    check_number("fraction", fraction, 0, 1, above=True, below=True)
    rng = np.random.RandomState(seed)
    valid = []
    # Sorted once, because a search for each class would take classes x images operations.
    order = np.argsort(targets, kind="stable")
    starts = np.unique(targets[order], return_index=True)[1]
    for index in np.split(order, starts[1:]):
        n = min(max(1, round(len(index) * fraction)), len(index) - 1)
        valid.append(rng.permutation(index)[:n])
    valid = np.sort(np.concatenate(valid)) if valid else np.empty(0, dtype=np.int64)
    if not len(valid):
        raise UserError(
            "no class has two training images, so no validation split can be carved; add images."
        )
    train = np.setdiff1d(np.arange(len(targets)), valid)
    return train, valid


def fingerprint(digests: Iterable[bytes] | np.ndarray, ordered: bool = False) -> str:
    """Return 12 hexadecimal digits that identify a set of labelled images.

    Args:
        digests: The digest of each image; see `ltlearn.data.digests`. An array of one per row, of
            bytes, needs less memory.
        ordered: Whether the same images in another order have another fingerprint.
    """
    if isinstance(digests, np.ndarray):
        rows = np.ascontiguousarray(digests).view(f"S{digests.shape[1]}").ravel()
        content = (rows if ordered else np.sort(rows)).tobytes()
    else:
        content = b"".join(digests if ordered else sorted(digests))
    return hashlib.sha256(content).hexdigest()[:12]
