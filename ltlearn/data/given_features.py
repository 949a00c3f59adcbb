"""Features that the user has, as arrays in place of images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ltlearn.data.arrays import as_pair, check_targets, number_classes
from ltlearn.data.build import ImageParts
from ltlearn.data.class_names import check_class_names
from ltlearn.data.feature_rows import GivenFeatures
from ltlearn.data.images import ImageSet
from ltlearn.data.items import Item, label_items, list_items
from ltlearn.data.loader import LTDataLoader
from ltlearn.data.options import LoadOptions
from ltlearn.data.readers.labels import check_trained, encode_labels, is_empty, match_classes
from ltlearn.errors import UserError, spell
from ltlearn.names import PART_LABELS, PARTS

__all__ = ["FeatureMaker", "FeatureSet", "further_features", "list_features"]

_EVALUATION_BS = 4096  # smallest evaluation batch
_CHUNK_BYTES = 1 << 24  # checked at once


class FeatureSet(ImageSet):
    """Labelled features. `images` holds the rows, (N, D), float16 or float32."""

    @property
    def features(self) -> np.ndarray:
        """Return the features in the order of the targets. A part of a set is copied."""
        return self.images if self.rows is None else self.images[self.rows]


@dataclass
class FeatureMaker:
    """Makes the loader of each part, over features in place of images.

    Args:
        options: How to load them.
        classes: Class names.
        train: The training features.
    """

    options: LoadOptions
    classes: Sequence[str]
    train: ImageSet

    normalize = None  # the user's features stay as they are
    stats = None

    def make(self, part: str, data: ImageSet) -> LTDataLoader:
        """Make the loader of a part."""
        assert isinstance(data, FeatureSet)
        training, bs = part == "train", self.options.bs
        dataset = GivenFeatures([data.features], torch.from_numpy(data.targets), list(self.classes))
        return LTDataLoader(
            dataset,
            bs=bs if training else max(bs, _EVALUATION_BS),
            training=training,
            seed=self.options.seed,
        )

    def find_size(self, loader: LTDataLoader) -> tuple[int, int]:
        """Return 0 for height and width: there are no images."""
        return 0, 0


def list_features(
    x, y, valid: tuple | None, test: tuple | None, classes: Sequence[str] | None
) -> ImageParts:
    """Return features as parts, with their labels as class indices.

    Args:
        x: The training features.
        y: Their labels.
        valid: Validation (features, labels); None without a validation set.
        test: Test (features, labels); None without a test set.
        classes: Class names; None takes them from the labels.

    Shape:
        x is (N, D), float. y is (N,), integers from 0 up, or text.

    Raises:
        UserError: If shapes, types or labels do not fit, or a feature is not finite.
    """
    pairs = {"train": (x, y)}
    for part, given in (("valid", valid), ("test", test)):
        if given is not None:
            pairs[part] = as_pair(part, given, "features, labels")
    rows: dict[str, np.ndarray] = {}
    for part, (given, _) in pairs.items():
        width = rows["train"].shape[1] if rows else None
        rows[part] = _as_rows(given, _name(part), width)
    labels = {part: (given, len(rows[part])) for part, (_, given) in pairs.items()}
    targets, classes = _encode(labels, classes)
    parts: dict[str, ImageSet] = {
        part: FeatureSet(targets[part], images=rows[part]) for part in rows
    }
    return ImageParts(parts, classes, split_name="features", dataset="features")


def further_features(items, with_labels: bool, like: GivenFeatures) -> GivenFeatures:
    """Return further features as a dataset like another one.

    Args:
        items: An array (N, D) or (D,), a table, a list of rows, or a dataset of features. With
            labels: pairs of a row and a label, or a pair (features, labels).
        with_labels: Whether the items have labels.
        like: The dataset whose columns and classes they must have.

    Raises:
        UserError: If there are none, shapes do not fit, or a label is no class.
    """
    if isinstance(items, GivenFeatures):
        _as_rows(items.views[0][:1], "features", like.shape[0])
        return items
    targets = None
    if with_labels and isinstance(items, tuple) and len(items) == 2 and np.ndim(items[0]) == 2:
        x = _as_rows(items[0], "features", like.shape[0])
        items = list(zip(x, _as_labels("test", items[1], len(x)).tolist(), strict=True))
    if with_labels:
        items, targets = label_items(list_items(items), like.vocab)
    elif not isinstance(items, np.ndarray | Tensor) and not hasattr(items, "columns"):
        items = [item.image if isinstance(item, Item) else item for item in list_items(items)]
    if np.ndim(items) == 1 and len(items):
        items = np.asarray(items)[None]
    return GivenFeatures([_as_rows(items, "features", like.shape[0])], targets, like.vocab)


def _as_rows(x, name: str, width: int | None = None) -> np.ndarray:
    """Return features as an array (N, D): float16 and float32 as given, others as float32.

    A memory-mapped array stays on disk, unless its rows are not contiguous.

    Args:
        x: The features.
        name: Their name in messages.
        width: Number of columns that they must have; None allows any.

    Raises:
        UserError: If they are no such array, or one is not finite.
    """
    if isinstance(x, Tensor):
        x = x.detach().cpu()
        x = (x.float() if x.dtype == torch.bfloat16 else x).numpy()
    try:
        # `asarray` makes a plain array of a memory-mapped one.
        x = x if isinstance(x, np.memmap) else np.asarray(x)
    except (ValueError, TypeError, RuntimeError) as e:  # ragged lists, tensors with a gradient
        raise UserError(f"the {name} must be an array (N, D) of floats ({e}).") from None
    if x.ndim != 2 or not x.size or not np.issubdtype(x.dtype, np.floating):
        hint = f"; images go to {spell('from_arrays')}" if x.ndim in (3, 4) else ""
        raise UserError(
            f"the {name} must be an array (N, D) of floats, got {x.dtype} {x.shape}{hint}."
        )
    if width is not None and x.shape[1] != width:
        raise UserError(
            f"the {name} have {x.shape[1]} columns, the training features {width}; take the "
            "features of one model for all."
        )
    if x.dtype not in (np.float16, np.float32):
        with np.errstate(over="ignore"):  # what does not fit is infinite, and reported below
            x = x.astype(np.float32)
    if not x.flags.c_contiguous:
        # Copies on a device are found again by address and shape, which `x[::2]` and `x[:n]` share.
        x = np.ascontiguousarray(x)
    step = max(1, _CHUNK_BYTES // x[:1].nbytes)
    for first in range(0, len(x), step):
        finite = np.isfinite(x[first : first + step]).all(1)
        if not finite.all():
            row = first + int(finite.argmin())
            bad = x[row][~np.isfinite(x[row])][0]
            raise UserError(f"row {row} of the {name} has the value {bad}; remove or repair it.")
    return x


def _name(part: str) -> str:
    return f"{PART_LABELS[part]} features"


def _encode(
    labels: Mapping[str, tuple[object, int]], classes: Sequence[str] | None
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return class indices by part, and the class names.

    Args:
        labels: The labels, and how many there must be, by part.
        classes: Class names; None takes them from the labels.
    """
    arrays = {part: _as_labels(part, given, n) for part, (given, n) in labels.items()}
    if arrays["train"].dtype.kind in "OUS":
        targets, names = _encode_names(arrays, classes)
    else:
        targets = {
            part: check_targets(PART_LABELS[part], values, len(values))
            for part, values in arrays.items()
        }
        names = number_classes(targets, classes)
    part_of = np.concatenate(
        [np.full(len(values), PARTS.index(part)) for part, values in targets.items()]
    )
    starts = np.cumsum([0, *(len(values) for values in targets.values())])

    def locate(i: int) -> str:
        which = int(np.searchsorted(starts, i, side="right")) - 1
        return f"row {i - starts[which]} of the {_name(list(targets)[which])}"

    check_trained(np.concatenate(list(targets.values())), part_of, names, locate)
    return targets, names


def _as_labels(part: str, given: object, n: int) -> np.ndarray:
    """Return n labels as an array of integers or of text."""
    try:
        values = np.asarray(given.cpu() if isinstance(given, Tensor) else given)
        if values.dtype.kind == "U" and isinstance(given, list | tuple):
            values = np.asarray(given, dtype=object)  # NumPy would make text of a missing label
    except ValueError:  # ragged lists
        values = np.asarray(None)
    if values.shape != (n,) or values.dtype.kind not in "iuOUS":
        raise UserError(
            f"{PART_LABELS[part]} targets must be {n} integers or names, got {values.dtype} "
            f"{values.shape}."
        )
    if values.dtype.kind in "iu":
        return check_targets(PART_LABELS[part], values, n)
    # HDF5 keeps text as bytes.
    plain = [v.decode(errors="replace") if isinstance(v, bytes) else v for v in values]
    return np.array(plain, dtype=object)


def _encode_names(
    arrays: Mapping[str, np.ndarray], classes: Sequence[str] | None
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return class indices of labels that are text, and the class names."""
    import pandas as pd

    names = None if classes is None else check_class_names(classes)
    targets = {}
    for part, values in arrays.items():
        cells = pd.Series(values)

        def locate(i: int, part: str = part) -> str:
            return f"row {i} of the {_name(part)}"

        empty = is_empty(cells)
        if empty.any():
            raise UserError(f"{locate(int(empty.argmax()))}: the label is empty; give its class.")
        codes, found = encode_labels(cells, locate)
        names = found if names is None else names
        if part == "train" and (unknown := [name for name in found if name not in names]):
            raise UserError(
                f"the training labels have {unknown[0]!r}, which is not among the classes; add it "
                f"to {spell('classes')}."
            )
        targets[part] = match_classes(codes, found, names, locate, part)
    assert names is not None
    return targets, names
