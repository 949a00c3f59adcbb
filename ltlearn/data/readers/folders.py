"""Read a folder of class folders."""

import logging
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ltlearn.data.images import EXTENSIONS, ImageSet, natural_key
from ltlearn.errors import UserError

__all__ = ["find_class_folders", "walk_visible", "list_class_folders", "kinds_text", "FOLDER_FLAGS"]

_log = logging.getLogger("ltlearn")
# What lies beside images and is none; of it nobody is warned.
_NO_IMAGES = {
    ".txt", ".md", ".html", ".htm", ".pdf", ".csv", ".tsv", ".tab", ".json", ".jsonl", ".xml",
    ".yaml", ".yml", ".toml", ".ini", ".cfg", ".db", ".lnk", ".url", ".py", ".ipynb", ".sh",
    ".log", ".bak", ".npy", ".npz", ".pkl", ".pt", ".pth", ".h5", ".mat", ".zip", ".tar", ".gz",
    ".md5",
}  # fmt: skip
_KINDS_NAMED = 5  # extensions in a message


def find_class_folders(folder: Path) -> list[Path]:
    """Return the sub-folders, sorted by name; hidden ones and links back up are left out."""
    here = folder.resolve()
    return sorted(
        p
        for p in folder.iterdir()
        if p.is_dir()
        and not p.name.startswith(".")
        and not (p.is_symlink() and here.is_relative_to(p.resolve()))
    )


def walk_visible(folder: str | Path) -> Iterator[tuple[str, list[str]]]:
    """Yield each folder from one down with the names of its files, hidden ones left out.

    Args:
        folder: Where to begin. Links to folders inside it are not followed.
    """
    # So a loop of links cannot trap it.
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
        classes: The classes, where another split decided them already.
        others: Counts the files that are taken for no images, by extension. None warns of those
            that may be some.

    Raises:
        UserError: If the folder is missing, has no class folders or no images, has a class that
            is not in `classes`, or two of its classes are one folder behind a link.
    """
    if not folder.is_dir():
        raise _no_folder(folder)
    folders = find_class_folders(folder)
    if not folders:
        raise UserError(
            f"{folder} has no class folders: put the images of each class into a folder of its "
            "own inside it."
        )
    _check_links(folders)
    names = classes or [p.name for p in folders]
    known = set(names)
    extra = [p.name for p in folders if p.name not in known]
    if extra:
        raise UserError(
            f"{folder} has a class {extra[0]!r} that is not among the training classes; add it "
            "there or remove it here."
        )
    paths, targets = [], []
    warn, others = others is None, Counter() if others is None else others
    prefix = len(os.path.join(folder, ""))
    for c, name in enumerate(names):
        found = []
        for base, files in walk_visible(os.path.join(folder, name)):
            for file in files:
                suffix = os.path.splitext(file)[1].lower()
                if suffix in EXTENSIONS:
                    found.append(os.path.join(base, file)[prefix:])
                else:
                    others[suffix] += 1
        found.sort(key=natural_key)
        paths += found
        targets += [c] * len(found)
    left_out = kinds_text({s: n for s, n in others.most_common() if s not in _NO_IMAGES})
    if not paths:
        instead = f", but {left_out}" if left_out else ""
        raise UserError(
            f"the class folders of {folder} hold no images ({', '.join(sorted(EXTENSIONS))})"
            f"{instead}; convert what is there, or give another folder."
        )
    if warn and left_out:
        _log.warning(
            "%s: left out %s; if those are images, convert them to PNG or JPEG.", folder, left_out
        )
    return ImageSet(np.array(targets, dtype=np.int64), paths=paths, root=folder), names


def kinds_text(others: dict[str, int]) -> str:
    """Name extensions with their counts."""
    kinds = [f"{n:,} {suffix or 'without an extension'}" for suffix, n in others.items()]
    more = [f"{sum(list(others.values())[_KINDS_NAMED:]):,} others"] if kinds[_KINDS_NAMED:] else []
    return ", ".join(kinds[:_KINDS_NAMED] + more)


def _check_links(folders: list[Path]) -> None:
    """Refuse a link to images of another class: they would have two labels."""
    if not any(p.is_symlink() for p in folders):
        return
    # In this order a folder stands right before what lies inside it.
    places = sorted(((p.resolve(), p) for p in folders), key=lambda pair: pair[0].parts)
    for (outer, one), (inner, other) in zip(places, places[1:], strict=False):
        if inner.is_relative_to(outer):
            link = other if other.is_symlink() else one
            raise UserError(
                f"{link} is a link to {link.resolve()}, so the classes {one.name!r} and "
                f"{other.name!r} have the same images; remove one of them."
            )


def _no_folder(folder: Path) -> UserError:
    return UserError(
        f"there is no folder {folder}; give the folder that holds a folder of images per class."
    )


# How a set's folder is given, for messages.
FOLDER_FLAGS = "data_path; --data of `ltlearn recipe`, --root of `ltlearn data`"
