"""Read Tiny-ImageNet."""

from pathlib import Path

import numpy as np

from ltlearn.data.images import ImageSet, natural_key
from ltlearn.data.readers.folders import find_class_folders, list_class_folders
from ltlearn.errors import UserError, spell

__all__ = ["load_tiny_imagenet"]

_TINY_URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
_TINY_FOLDERS = ("tiny-imagenet-200", "tiny-imagenet-200-lt10")
_TINY_CLASSES = 200


def load_tiny_imagenet(data_path: Path, part: str) -> tuple[ImageSet, list[str]]:
    """Find Tiny-ImageNet-200, or a part of it, and list its images.

    Classes are in the order of their WordNet ids, and the images of each in natural order of
    their names. So a copy with the first images of each class gives the same as the whole set.

    Args:
        data_path: The set's own folder, or the folder that holds it as `tiny-imagenet-200` or
            `tiny-imagenet-200-lt10`. Images lie as in the archive (`train/<class>/images/`,
            `val/images/` and `val/val_annotations.txt`) or in class folders (`train/<class>/` and
            `val/<class>/`).
        part: "train" or "test". The test set is the set's validation part, for the labels of its
            own test images are not public.

    Raises:
        UserError: If it is not there (the message says what to fetch), has another number of
            classes, or its list of validation images cannot be used.
    """
    for base in (data_path, *(data_path / name for name in _TINY_FOLDERS)):
        if (base / "train").is_dir() and (base / "val").is_dir():
            break
    else:
        raise UserError(
            f"Tiny-ImageNet is not under {data_path} (looked for train/ and val/ there, in "
            f"{_TINY_FOLDERS[0]}/ and in {_TINY_FOLDERS[1]}/). Fetch {_TINY_URL}, unpack it, and "
            f"give the new folder as {spell('data_path')}."
        )
    classes = [p.name for p in find_class_folders(base / "train")]
    if len(classes) != _TINY_CLASSES:
        raise UserError(
            f"{base / 'train'} has {len(classes)} class folders; Tiny-ImageNet has {_TINY_CLASSES}."
        )
    if part == "train":
        return list_class_folders(base / "train", classes)
    if (base / "val" / "val_annotations.txt").is_file() and (base / "val" / "images").is_dir():
        return _tiny_annotated(base / "val", classes), classes
    return list_class_folders(base / "val", classes)


def _tiny_annotated(folder: Path, classes: list[str]) -> ImageSet:
    """List the validation images of the archive, whose classes stand in a text file."""
    listing = folder / "val_annotations.txt"
    found = {name: [] for name in classes}
    try:
        lines = listing.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        reason = getattr(e, "strerror", None) or e
        raise UserError(f"cannot read {listing} ({reason}); fetch {_TINY_URL} again.") from None
    for line in filter(str.strip, lines):
        words = line.split()  # the image, its class, and four numbers for a box
        if len(words) < 2 or words[1] not in found:
            raise UserError(
                f"{listing} has the line {line!r}, which names no image and training class; "
                f"fetch {_TINY_URL} again."
            )
        found[words[1]].append(f"images/{words[0]}")
    paths = [p for name in classes for p in sorted(found[name], key=natural_key)]
    if not paths:
        raise UserError(f"{listing} names no images; fetch {_TINY_URL} again.")
    targets = np.repeat(np.arange(len(classes)), [len(found[name]) for name in classes])
    return ImageSet(targets, paths=paths, root=folder)
