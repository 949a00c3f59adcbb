"""Read a folder with train, valid and test folders."""

import logging
import os
from pathlib import Path

from ltlearn.data.images import EXTENSIONS
from ltlearn.data.readers.folders import find_class_folders, list_class_folders, walk_visible
from ltlearn.data.readers.listed import (
    MAX_NAMED_FOLDERS,
    PART_LABELS,
    PART_OF_NAME,
    PARTS,
    ListedImages,
)
from ltlearn.errors import UserError

__all__ = ["list_folder", "find_split_folders"]

_log = logging.getLogger("ltlearn")


def list_folder(root: Path) -> ListedImages:
    """List a folder of class folders, or of parts that have those.

    Args:
        root: The folder, as `LTDataLoaders.from_folder` takes it.

    Raises:
        UserError: If it is missing, has no class folders or images, or a later part has a class
            that training has not.
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
    """Find the folders of the parts in a folder; none where it holds the class folders itself.

    Their names are read in any case. A folder beside them that holds images is none of a part, so
    its images are left out: with a warning where two parts show that the folder is made of parts.

    Args:
        root: The folder.

    Raises:
        UserError: If it has a validation or test folder, but none for training; two folders of one
            part; or a training folder alone, beside others with images, which may be classes.
    """
    inside = find_class_folders(root) if root.is_dir() else []
    named = {
        part: [p for p in inside if PART_OF_NAME.get(p.name.lower()) == part] for part in PARTS
    }
    # A part has class folders inside. A folder of images may be a class that is called "train".
    split = {part: [p for p in found if find_class_folders(p)] for part, found in named.items()}
    folders = {part: (split[part] or found)[0] for part, found in named.items() if found}
    if not split["train"]:
        later = split["valid"] + split["test"]
        if later:
            raise UserError(
                f"{root} has {later[0].name}/ but no train/ with class folders; add it, give the "
                f"folder that holds a folder of images per class, or, if {later[0].name} is a "
                "class, rename its folder."
            )
        return folders if "train" in folders and set(inside) <= set(folders.values()) else {}
    for part, found in split.items():
        if len(found) > 1:
            raise UserError(
                f"{root} has {len(found)} {PART_LABELS[part]} folders, "
                f"{' and '.join(f'{p.name}/' for p in found)}; leave one of them there."
            )
    beside = [p.name for p in inside if p not in folders.values() and _has_images(p)]
    if not beside:
        return folders
    names = ", ".join(f"{name}/" for name in beside[:MAX_NAMED_FOLDERS])
    names += (
        f" and {len(beside) - MAX_NAMED_FOLDERS:,} more" if len(beside) > MAX_NAMED_FOLDERS else ""
    )
    if not split["valid"] and not split["test"]:
        train = folders["train"].name
        raise UserError(
            f"{root} has images in {names} beside {train}/, whose folders would be all the "
            f"classes; move those out of it, or, if {train} is a class like them, rename its "
            "folder."
        )
    _log.warning(
        "%s: the images in %s are left out; a part is called train, valid or test.", root, names
    )
    return folders


def _has_images(folder: Path) -> bool:
    return any(
        os.path.splitext(f)[1].lower() in EXTENSIONS
        for _, files in walk_visible(folder)
        for f in files
    )
