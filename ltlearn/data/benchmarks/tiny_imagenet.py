"""Tiny-ImageNet: its facts, and how it is read."""

from pathlib import Path

import numpy as np

from ltlearn.data.benchmarks.facts import BalancedSet, Download
from ltlearn.data.images import ImageSet, natural_key
from ltlearn.data.readers.folders import find_class_folders, list_class_folders
from ltlearn.errors import UserError, spell
from ltlearn.utils.system_errors import reason_of

__all__ = ["TINY_IMAGENET_LT", "load_tiny_imagenet"]

_TINY_URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
_TINY_FOLDERS = ("tiny-imagenet-200", "tiny-imagenet-200-lt10")
_TINY_CLASSES = 200


def load_tiny_imagenet(data_path: Path, part: str) -> tuple[ImageSet, list[str]]:
    """Find Tiny-ImageNet-200, or a part of it, and list its images.

    Classes are in the order of their WordNet ids. The images of a class are in natural order of
    their names. So a copy with the first images of each class gives the same as the whole set.

    Args:
        data_path: The set's own folder, or the folder that contains it as `tiny-imagenet-200` or
            `tiny-imagenet-200-lt10`. The layout is that of the archive (`train/<class>/images/`,
            `val/images/` and `val/val_annotations.txt`) or class folders (`train/<class>/` and
            `val/<class>/`).
        part: "train" or "test". The test part is the published validation set, because the labels
            of the published test images are not public.

    Raises:
        UserError: If the set is missing (the message names the file to fetch), the number of
            classes is wrong, or the list of validation images cannot be used.
    """
    for base in (data_path, *(data_path / name for name in _TINY_FOLDERS)):
        if (base / "train").is_dir() and (base / "val").is_dir():
            break
    else:
        raise UserError(
            f"Tiny-ImageNet is not under {data_path} (looked for train/ and val/ there, in "
            f"{_TINY_FOLDERS[0]}/ and in {_TINY_FOLDERS[1]}/). Fetch {_TINY_URL}, unpack it, and "
            f"give the folder that it makes as {spell('data_path')}."
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
    """List the validation images of the archive. A text file has their classes."""
    listing = folder / "val_annotations.txt"
    paths_of = {name: [] for name in classes}
    try:
        lines = listing.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(
            f"cannot read {listing} ({reason_of(e)}); fetch {_TINY_URL} again."
        ) from None
    for line in filter(str.strip, lines):
        words = line.split()  # the image, its class and a box of four numbers
        if len(words) < 2 or words[1] not in paths_of:
            raise UserError(
                f"{listing} has the line {line!r}, which names no image and training class; "
                f"fetch {_TINY_URL} again."
            )
        paths_of[words[1]].append(f"images/{words[0]}")
    paths = [p for name in classes for p in sorted(paths_of[name], key=natural_key)]
    if not paths:
        raise UserError(f"{listing} names no images; fetch {_TINY_URL} again.")
    targets = np.repeat(np.arange(len(classes)), [len(paths_of[name]) for name in classes])
    return ImageSet(targets, paths=paths, root=folder)


TINY_IMAGENET_LT = BalancedSet(
    name="tiny_imagenet_lt",
    title="Tiny-ImageNet",
    classes=_TINY_CLASSES,
    class_order="WordNet ids, ascending",
    sizes={"train": 100_000, "test": 10_000},
    each={"train": 500, "test": 50},
    largest=500,
    transform="crop_flip",
    load=load_tiny_imagenet,
    sides=(64, 32),
    long_tailed_copies=True,
    by_hand="neither torchvision nor fastai has it",
    sources=(Download("images", _TINY_URL, "about 248 MB", then="unpack in {root}"),),
)
