"""Read image folders: a folder per class, or train, valid and test folders of class folders."""

import logging
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ltlearn.data.images import EXTENSIONS, ImageSet, natural_key
from ltlearn.data.opening import HEIF_INSTALL, HEIF_SUFFIXES
from ltlearn.data.readers.parts import PART_OF_NAME, ListedImages
from ltlearn.errors import UserError
from ltlearn.names import PART_LABELS, PARTS

__all__ = [
    "find_class_folders",
    "find_split_folders",
    "list_class_folders",
    "list_folder",
    "walk_visible",
]

_log = logging.getLogger("ltlearn")
# Files that often lie beside images. They are left out without a warning.
_NO_IMAGES = {
    ".txt", ".md", ".html", ".htm", ".pdf", ".csv", ".tsv", ".tab", ".json", ".jsonl", ".xml",
    ".yaml", ".yml", ".toml", ".ini", ".cfg", ".db", ".lnk", ".url", ".py", ".ipynb", ".sh",
    ".log", ".bak", ".npy", ".npz", ".pkl", ".pt", ".pth", ".h5", ".mat", ".zip", ".tar", ".gz",
    ".md5",
}  # fmt: skip
_MAX_NAMED = 5  # extensions or folders in a message


def list_folder(root: Path) -> ListedImages:
    """List a folder of class folders, or of parts that contain class folders.

    Args:
        root: The folder, as `LTDataLoaders.from_folder` takes it.

    Raises:
        UserError: If the folder is missing, has no class folders or images, or a validation or
            test folder has a class that training lacks.
    """
    folders = find_split_folders(root)
    train, classes = list_class_folders(folders.get("train", root))
    parts = {"train": train}
    for part in PARTS[1:]:
        if part in folders:
            parts[part] = list_class_folders(folders[part], classes)[0]
    name = "folders" if folders else "one folder"
    return ListedImages(parts, classes, name, root.resolve().name, root)


def find_split_folders(root: Path) -> dict[str, Path]:
    """Find the train, valid and test folders in a folder; none if it holds the class folders.

    The case of their names does not matter. Images in folders beside them are left out with a
    warning.

    Args:
        root: The folder.

    Raises:
        UserError: If there is a validation or test folder but none for training, or two folders
            are the same part.
    """
    inside = find_class_folders(root) if root.is_dir() else []
    named = [p for p in inside if p.name.lower() in PART_OF_NAME]
    # A class may be called "train" or "test": then its folder has images and no class folders.
    if len(named) < len(inside) and not any(find_class_folders(p) for p in named):
        return {}
    folders: dict[str, Path] = {}
    for folder in named:
        part = PART_OF_NAME[folder.name.lower()]
        if part in folders:
            raise UserError(
                f"{root} has two {PART_LABELS[part]} folders, {folders[part].name}/ and "
                f"{folder.name}/; remove one of them."
            )
        folders[part] = folder
    if folders and "train" not in folders:
        name = named[0].name
        raise UserError(
            f"{root} has {name}/ but no train/ with class folders; add it, give the folder that "
            f"holds a folder of images per class, or, if {name} is a class, rename its folder."
        )
    beside = [p.name for p in inside if folders and p not in named and _has_images(p)]
    if beside:
        names = ", ".join(f"{name}/" for name in beside[:_MAX_NAMED])
        more = f" and {len(beside) - _MAX_NAMED:,} more" if len(beside) > _MAX_NAMED else ""
        _log.warning(
            "%s: the images in %s%s are left out, because the folder has %s/; only train, valid "
            "and test are parts.", root, names, more, folders["train"].name,
        )  # fmt: skip
    return folders


def _has_images(folder: Path) -> bool:
    return any(
        os.path.splitext(file)[1].lower() in EXTENSIONS
        for _, files in walk_visible(folder)
        for file in files
    )


def find_class_folders(folder: Path) -> list[Path]:
    """Return the sub-folders, sorted by name, without hidden ones.

    Args:
        folder: The folder that holds a folder per class.
    """
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def walk_visible(folder: str | Path) -> Iterator[tuple[str, list[str]]]:
    """Yield a folder and each folder inside it with the names of its files, without hidden ones.

    Args:
        folder: Where to begin. Links to folders inside it are not followed.
    """
    for base, inner, files in os.walk(folder):
        inner[:] = [d for d in inner if d[0] != "."]
        yield base, [f for f in files if f[0] != "."]


def list_class_folders(
    folder: Path, classes: list[str] | None = None, others: Counter | None = None
) -> tuple[ImageSet, list[str]]:
    """List the images of a folder of class folders, in natural order of their names.

    Args:
        folder: Holds a folder per class; images may lie deeper inside. Hidden files and folders
            are ignored.
        classes: The classes of the training folder; None takes the names of the class folders.
        others: Counts the files that are not taken for images, by extension. None logs a warning
            about those that may be images.

    Raises:
        UserError: If the folder is missing, has no class folders or no images, has a class that is
            not in `classes`, or a class is a link to the images of another one.
    """
    if not folder.is_dir():
        raise UserError(
            f"there is no folder {folder}; give the folder that holds a folder of images per class."
        )
    folders = find_class_folders(folder)
    if not folders:
        raise UserError(
            f"{folder} has no class folders: put the images of each class into a folder of its "
            "own inside it."
        )
    _check_links(folders)
    names = classes or [p.name for p in folders]
    extra = sorted({p.name for p in folders} - set(names))
    if extra:
        raise UserError(
            f"{folder} has a class {extra[0]!r} that is not among the training classes; add it "
            "there or remove it here."
        )
    seen = Counter() if others is None else others
    paths, targets = [], []
    for c, name in enumerate(names):
        files = _list_class(folder, name, seen)
        paths += files
        targets += [c] * len(files)
    left_out = _extensions_text({s: n for s, n in seen.most_common() if s not in _NO_IMAGES})
    if not paths:
        instead = f", but {left_out}" if left_out else ""
        raise UserError(
            f"the class folders of {folder} hold no images ({', '.join(sorted(EXTENSIONS))})"
            f"{instead}; convert these files, or give another folder{_heif_hint(seen)}."
        )
    if others is None and left_out:
        _log.warning(
            "%s: left out %s; if those are images, convert them to PNG or JPEG%s.",
            folder, left_out, _heif_hint(seen),
        )  # fmt: skip
    return ImageSet(np.array(targets, dtype=np.int64), paths=paths, root=folder), names


def _heif_hint(others: Counter) -> str:
    """Return how to read HEIC images if some were left out, because pillow-heif is missing."""
    left_out = HEIF_SUFFIXES & others.keys()
    return f", or install pillow-heif: {HEIF_INSTALL}" if left_out else ""


def _check_links(folders: list[Path]) -> None:
    """Refuse a link to the images of another class, because they would have two labels."""
    if not any(p.is_symlink() for p in folders):
        return
    # In this order a folder comes right before the folders inside it.
    places = sorted(((p.resolve(), p) for p in folders), key=lambda pair: pair[0].parts)
    for (outer, first), (inner, second) in zip(places, places[1:], strict=False):
        if inner.is_relative_to(outer):
            link = second if second.is_symlink() else first
            raise UserError(
                f"{link} is a link to {link.resolve()}, so the classes {first.name!r} and "
                f"{second.name!r} share images; remove one of them."
            )


def _list_class(folder: Path, name: str, others: Counter) -> list[str]:
    """List the images of one class, relative to `folder`; count other files by extension."""
    paths = []
    prefix = len(os.path.join(folder, ""))
    for base, files in walk_visible(os.path.join(folder, name)):
        for file in files:
            suffix = os.path.splitext(file)[1].lower()
            if suffix in EXTENSIONS:
                paths.append(os.path.join(base, file)[prefix:])
            else:
                others[suffix] += 1
    return sorted(paths, key=natural_key)


def _extensions_text(others: dict[str, int]) -> str:
    """Format counts of extensions, the most frequent first; the rarest are summed up."""
    kinds = [f"{n:,} {suffix or 'without an extension'}" for suffix, n in others.items()]
    rest = sum(list(others.values())[_MAX_NAMED:])
    return ", ".join(kinds[:_MAX_NAMED] + ([f"{rest:,} others"] if rest else []))
