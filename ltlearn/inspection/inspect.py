"""Inspect a dataset."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ltlearn.data.counts import count_classes
from ltlearn.data.datasets import look_at
from ltlearn.data.images import ImageSet
from ltlearn.data.options import ReadOptions
from ltlearn.data.readers.folders import (
    find_class_folders,
    find_split_folders,
    list_class_folders,
)
from ltlearn.data.readers.sources import list_source, reading_options, source_kind
from ltlearn.errors import UserError, check_choice
from ltlearn.inspection.advise import advise
from ltlearn.inspection.result import CopyGroup, Duplicates, Inspection, Sizes, UnreadableImage
from ltlearn.inspection.scan import HASH_BYTES, KINDS, Scan, scan_images
from ltlearn.inspection.text import name_some
from ltlearn.names import FEW_RULES, PART_LABELS, PARTS
from ltlearn.utils.text import clean

__all__ = ["inspect_path", "inspect_images"]


def inspect_path(
    path: str | Path, *, quick: bool = False, few: str = "<20", **reading: Any
) -> Inspection:
    """Inspect images as `LTDataLoaders.from_path` would read them.

    Args:
        path: A folder per class; or `train/` and any of `valid/` and `test/`, each with a folder
            per class; or a table or annotations.
        quick: Read only the headers of images, and search no duplicates.
        few: The few-shot convention, "<20" or "<=20".
        **reading: How a list is read: `image_col` and further fields of
            `ltlearn.data.options.ReadOptions`.

    Raises:
        UserError: If there is no such folder or file, or it has no class folders or no training
            images.

    Example:
        >>> print(inspect_path("photos"))  # doctest: +SKIP
    """
    path = Path(path).expanduser()
    given = reading_options(path, reading)
    options = dict(given)
    options = ReadOptions(images=options.pop("path", None), **options)
    ignored: Counter = Counter()
    problems: list[str] = []
    columns: dict[str, str] = {}
    ignored_columns: list[str] = []
    kind = source_kind(path)
    if kind == "folder":
        parts, classes = _list_folder(path, ignored)
    else:
        listed = list_source(path, options, problems)
        parts, classes, columns = listed.parts, listed.classes, listed.columns
        ignored_columns = listed.ignored_columns
    constructor = f"from_{'csv' if kind == 'table' else kind}"
    arguments = "".join(f", {key}={value!r}" for key, value in given.items())
    source = f"LTDataLoaders.{constructor}({str(path)!r}{arguments}"
    inspection = inspect_images(parts, classes, name=str(path), source=source, quick=quick, few=few)
    if problems:
        inspection.problems, inspection.advice = problems + inspection.problems, None
    inspection.columns, inspection.ignored = columns, dict(ignored.most_common())
    inspection.ignored_columns = ignored_columns
    return inspection


def _list_folder(root: Path, ignored: Counter) -> tuple[dict[str, ImageSet], list[str]]:
    """List the images by part, and the classes; count files that are no images in `ignored`."""
    folders = find_split_folders(root)
    train, classes = list_class_folders(folders.get("train", root), others=ignored)
    parts = {"train": train}
    later = [folders[part] for part in PARTS[1:] if part in folders]
    # Listing would stop at a class that training lacks; an inspection reports it.
    names = {p.name for folder in later for p in find_class_folders(folder)}
    classes = classes + sorted(names - set(classes))
    for part in PARTS[1:]:
        if part not in folders:
            continue
        try:
            parts[part] = list_class_folders(folders[part], classes, ignored)[0]
        except UserError:  # no class folders, or no images
            parts[part] = ImageSet(np.zeros(0, dtype=np.int64), paths=[], root=folders[part])
    return parts, classes


def inspect_images(
    parts: Mapping[str, ImageSet],
    classes: Sequence[str],
    *,
    name: str = "images",
    source: str | None = None,
    quick: bool = False,
    few: str = "<20",
) -> Inspection:
    """Read every image once, and advise how to train.

    Images are decoded in threads. Only the size, the kind and two hashes of each are kept.
    Duplicates are images whose pixels are equal after `read_image`, so a PNG that was saved again
    is found; differences in transparency alone do not count.

    Args:
        parts: "train" and any of "valid" and "test" to images.
        classes: Class names in label order.
        name: Name of the dataset. Paths that begin with it are printed without it.
        source: The call of `LTDataLoaders` that reads the images, without its closing bracket, for
            the advised code; None if there is none.
        quick: Read only the headers of images, and search no duplicates.
        few: The few-shot convention, "<20" or "<=20".

    Raises:
        UserError: If there is no part "train", a part is unknown, a target is outside the classes,
            or `few` is not allowed.
    """
    check_choice("few", few, FEW_RULES)
    if "train" not in parts:
        raise UserError(f"parts must hold a part 'train', got {', '.join(parts) or 'none'}.")
    for part in parts:
        check_choice("part", part, PARTS)
    parts = {part: parts[part] for part in PARTS if part in parts}
    # As the loaders do, unless they are given the bits.
    bits = 16 if parts["train"].images is not None else look_at(parts["train"]).read_bits
    parts = {part: replace(data, bits=bits) for part, data in parts.items()}
    counts = {p: count_classes(d.targets, len(classes)).tolist() for p, d in parts.items()}
    inspection = Inspection(name, list(classes), counts, few, quick, bits=bits)
    scan = scan_images(parts, quick)
    images = _ScannedImages(parts, classes)
    inspection.seconds = scan.seconds
    inspection.sizes = _find_sizes(scan)
    inspection.formats = dict(scan.formats.most_common())
    in_kinds = {kind: int((scan.kinds >> i & 1).sum()) for i, kind in enumerate(KINDS)}
    inspection.kinds = {kind: n for kind, n in in_kinds.items() if n}
    inspection.unreadable = [
        UnreadableImage(*images.describe(i), reason=scan.bad[i]) for i in sorted(scan.bad)
    ]
    if not quick:
        inspection.duplicates = _find_duplicates(scan, images)
    inspection.problems = _find_problems(inspection, scan, parts)
    if not inspection.problems:
        inspection.advice = advise(inspection, parts["train"], source)
    return inspection


def _find_problems(inspection: Inspection, scan: Scan, parts: Mapping[str, ImageSet]) -> list[str]:
    """Return why the loaders cannot read the images, or why no model can learn from them."""
    train = np.asarray(inspection.counts["train"])
    problems = []
    if not train.any():
        problems.append("there is no training image.")
    elif (train > 0).sum() < 2:
        only = clean(inspection.classes[int(train.argmax())])
        problems.append(f"only the class {only} has training images; a classifier needs two.")
    elif "valid" not in parts and train.max() < 2:
        problems.append("no class has two training images, so no validation split can be carved.")
    elif not scan.good[: len(parts["train"])].any():
        problems.append("no training image can be read.")
    untrained = inspection.untrained()
    if untrained:
        problems.append(
            f"classes to validate or test have no training image: {name_some(untrained)}."
        )
    for part in PARTS[1:]:
        if part in parts and not len(parts[part]):
            problems.append(f"the {PART_LABELS[part]} folder has no images in class folders.")
    return problems


def _find_sizes(scan: Scan) -> Sizes | None:
    good = np.flatnonzero(scan.good)
    if not len(good):
        return None
    width, height = scan.width[good].astype(np.int64), scan.height[good].astype(np.int64)
    order = np.argsort(width * height, kind="stable")
    smallest, median, largest = (
        (int(width[i]), int(height[i])) for i in (order[0], order[len(order) // 2], order[-1])
    )
    return Sizes(smallest, median, largest, len(np.unique(width << 32 | height)))


class _ScannedImages:
    """The images of all parts, in the order of the scan."""

    def __init__(self, parts: Mapping[str, ImageSet], classes: Sequence[str]):
        self.parts, self.classes = parts, classes
        self.names = list(parts)
        self.ends = np.cumsum([len(data) for data in parts.values()])
        self.targets = np.concatenate([data.targets for data in parts.values()])

    def part_numbers(self, index: np.ndarray) -> np.ndarray:
        """Return the number of each image's part."""
        return np.searchsorted(self.ends, index, side="right")

    def describe(self, i: int) -> tuple[str, str, str]:
        """Return the path, the part and the class of an image."""
        number = int(self.part_numbers(i))
        part, label = self.names[number], self.classes[self.targets[i]]
        data = self.parts[part]
        k = i - int(self.ends[number]) + len(data)
        if data.images is not None:
            return f"{part}[{k}]", part, label
        return str(data.file(k)), part, label


def _equal_pixels(scan: Scan) -> list[np.ndarray]:
    """Return the indices of each group of images with equal pixels, in the order of the scan."""
    good = np.flatnonzero(scan.good)
    keys = np.ascontiguousarray(scan.pixel_hash[good]).view(f"V{HASH_BYTES}").ravel()
    _, inverse, sizes = np.unique(keys, return_inverse=True, return_counts=True)
    order = np.argsort(inverse, kind="stable")
    ends = np.cumsum(sizes)
    groups = [good[order[end - n : end]] for end, n in zip(ends, sizes, strict=True) if n > 1]
    return sorted(groups, key=lambda group: group[0])


def _find_duplicates(scan: Scan, images: _ScannedImages) -> Duplicates:
    duplicates = Duplicates(leaks={part: 0 for part in images.names if part != "train"})
    for group in _equal_pixels(scan):
        parts, targets = images.part_numbers(group), images.targets[group]
        in_classes = Counter(zip(parts.tolist(), targets.tolist(), strict=True))
        duplicates.copies_within += len(group) - len(in_classes)
        if len(set(targets.tolist())) > 1:
            duplicates.conflicts += 1
            duplicates.conflict_images += len(group)
        if len(set(parts.tolist())) > 1:
            duplicates.across_parts += 1
            if parts[0] == 0:
                for part, n in Counter(parts[parts > 0].tolist()).items():
                    duplicates.leaks[images.names[part]] += n
        paths, part_names, labels = zip(*(images.describe(int(i)) for i in group), strict=True)
        same_file = bool((scan.file_hash[group] == scan.file_hash[group[0]]).all())
        duplicates.groups.append(CopyGroup(list(paths), list(part_names), list(labels), same_file))
    return duplicates
