"""Lists of image files with labels, and the search for those files on disk."""

import logging
import os
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

import numpy as np

from ltlearn.data.images import ImageSet
from ltlearn.errors import UserError, spell
from ltlearn.utils.progress import track
from ltlearn.utils.system_errors import reason_of

__all__ = [
    "FETCH_AGAIN",
    "Listing",
    "PathTable",
    "cannot_read",
    "find_images",
    "read_list",
    "require_images",
]

FETCH_AGAIN = "fetch it again."
_log = logging.getLogger("ltlearn")
_MAX_DIGITS = 9  # digits of a label
_MAX_SHOWN = 80  # characters of a line in a message


@dataclass
class Listing:
    """The images that a file lists, in its order. Whether they exist is not known yet.

    Args:
        file: The file.
        folders: The folders of the images, each once, relative to the folder of the dataset.
        folder_of: Index into `folders` for each image.
        names: File name of each image in its folder.
        targets: Class number of each image.
        places: Where the file lists each image: line numbers, row numbers or image ids.
        place_word: "line", "row" or "image id".
        classes: Class names in label order; None if the file does not name them.

    Shape:
        folder_of, targets and places are (N,), integer.
    """

    file: Path
    folders: list[str]
    folder_of: np.ndarray
    names: list[str]
    targets: np.ndarray
    places: np.ndarray
    place_word: str = "line"
    classes: list[str] | None = None

    def __len__(self) -> int:
        return len(self.names)

    def place(self, i: int) -> str:
        """Return the file and line, row or id of image i, for messages."""
        return f"{self.file}, {self.place_word} {self.places[i]}"

    def path(self, i: int) -> str:
        """Return the path of image i."""
        folder = self.folders[self.folder_of[i]]
        return f"{folder}/{self.names[i]}" if folder else self.names[i]

    def pairs(self) -> Iterator[tuple[str, int, np.ndarray]]:
        """Yield each pair of a folder and a label, with the indices of its images."""
        if not len(self):
            return
        size = int(self.targets.max()) + 1
        keys = self.folder_of.astype(np.int64) * size + self.targets
        for index in _groups(keys):
            yield self.folders[self.folder_of[index[0]]], int(self.targets[index[0]]), index

    def moved(self, move: Callable[[str, int], str]) -> "Listing":
        """Return a copy with `move(folder, label)` in place of each folder.

        Args:
            move: Returns the new folder of the images in a folder that have a label.
        """
        folders, folder_of = {}, np.empty(len(self), dtype=np.int32)
        for folder, label, index in self.pairs():
            folder_of[index] = folders.setdefault(move(folder, label), len(folders))
        return replace(self, folders=list(folders), folder_of=folder_of)


def _groups(keys: np.ndarray) -> list[np.ndarray]:
    """Return the indices of each distinct key, in ascending order."""
    order = np.argsort(keys, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(keys[order])) + 1)


class PathTable:
    """Paths split into folder and name; each folder is stored and checked once.

    Args:
        file: The file that lists the paths, for messages.
        place_word: "line" or "image id", for messages.
    """

    def __init__(self, file: Path, place_word: str):
        self.file, self.place_word = file, place_word
        self.folders, self._index_of = {}, {}
        self.folder_of, self.names = array("i"), []

    def add(self, path: str, place: int) -> None:
        """Add a path.

        Args:
            path: The path, relative to the folder of the dataset.
            place: Its line or image id, for messages.

        Raises:
            UserError: If the path leads out of the folder of the dataset, or names no file.
        """
        folder, _, name = path.rpartition("/")
        index = self._index_of.get(folder)
        if index is None:
            index = self._add_folder(folder, path, place)
        if name in ("", ".", "..") or "\0" in name:
            self._refuse(path, place)
        self.folder_of.append(index)
        self.names.append(name)

    def _add_folder(self, folder: str, path: str, place: int) -> int:
        names = [name for name in folder.split("/") if name not in ("", ".")]
        if ".." in names or "\0" in folder or path.startswith("/"):
            self._refuse(path, place)
        index = self.folders.setdefault("/".join(names), len(self.folders))
        self._index_of[folder] = index
        return index

    def _refuse(self, path: str, place: int) -> NoReturn:
        raise UserError(
            f"{self.file}, {self.place_word} {place}: {path!r} is no path of a file inside the "
            "folder of the dataset; use the published file, or write the path relative to that "
            "folder, without '..'."
        )


def read_list(file: Path) -> Listing:
    """Read a list with a path and a label on each line.

    The label is the last word, so a path may contain spaces. Empty lines and lines that begin with
    # are skipped.

    Args:
        file: The list, in UTF-8.

    Raises:
        UserError: If the file cannot be read or names no images, a line is no path with a label, or
            a path leads out of the folder; the message has the line's number.
    """
    paths, targets, lines = PathTable(file, "line"), array("q"), array("q")
    number = 0
    try:
        # Python reads file names that are not UTF-8 from the disk in the same way.
        with open(file, encoding="utf-8-sig", errors="surrogateescape") as text:
            for number, line in enumerate(text, 1):
                words = line.strip().rsplit(None, 1)
                if not words or words[0].startswith("#"):
                    continue
                label = words[-1]
                is_number = label.isascii() and label.isdigit() and len(label) <= _MAX_DIGITS
                if len(words) < 2 or not is_number:
                    raise _malformed(file, number, line)
                paths.add(words[0], number)
                targets.append(int(label))
                lines.append(number)
    except OSError as e:
        raise cannot_read(file, reason_of(e)) from None
    if not lines:
        raise UserError(f"{file} names no images; {FETCH_AGAIN}")
    return Listing(
        file,
        list(paths.folders),
        np.array(paths.folder_of, dtype=np.int32),
        paths.names,
        np.array(targets, dtype=np.int64),
        np.array(lines, dtype=np.int64),
    )


def _malformed(file: Path, number: int, line: str) -> UserError:
    shown = line.strip()
    shown = shown if len(shown) <= _MAX_SHOWN else shown[: _MAX_SHOWN - 3] + "..."
    return UserError(
        f"{file}, line {number}: {shown!r} is not a path and a label, a whole number of at least "
        "0; correct the line or fetch the file again."
    )


def cannot_read(file: Path, reason: object) -> UserError:
    """Return the error for a file that cannot be read.

    Args:
        file: The file.
        reason: Why it cannot be read.
    """
    return UserError(f"cannot read {file} ({reason}); {FETCH_AGAIN}")


def find_images(
    listing: Listing,
    root: Path,
    candidates: Callable[[str, int], Sequence[str]] | None = None,
    follow_links: bool = False,
) -> tuple[ImageSet, np.ndarray]:
    """Look for the listed images. Each folder is listed once, and no image is opened.

    Args:
        listing: The listed images.
        root: Folder that their paths start from; may itself be a link.
        candidates: Returns, for a folder and a label, the folders where such images may lie; the
            first one that exists is used. None uses the folder of the listing.
        follow_links: Whether a link inside `root` may lead out of it.

    Returns:
        All images, existing or not, and the indices of the missing ones.

    Raises:
        UserError: If a link leads out of `root`, an image is listed twice, or a folder cannot be
            read.
    """
    if candidates is not None:

        def move(folder: str, label: int) -> str:
            folders = candidates(folder, label)
            existing = (f for f in folders if os.path.isdir(os.path.join(root, f)))
            return next(existing, folders[0])

        listing = listing.moved(move)
    inside = os.path.realpath(root)
    missing, paths = [], [""] * len(listing)
    for index in track(
        _groups(listing.folder_of), len(listing.folders), "looking for the listed images"
    ):
        folder = listing.folders[listing.folder_of[index[0]]]
        full = os.path.join(root, folder)
        if not follow_links and not _is_inside(os.path.realpath(full), inside):
            raise _leads_out(listing, index[0], full, root)
        names, links = _names_in(full)
        seen: dict[str, int] = {}
        for i in index.tolist():
            name = listing.names[i]
            if seen.setdefault(name, i) != i:
                raise UserError(
                    f"{listing.place(i)}: {listing.path(i)!r} is listed before, in "
                    f"{listing.place_word} {listing.places[seen[name]]}; remove one of the two "
                    "entries."
                )
            paths[i] = f"{folder}/{name}" if folder else name
            if name not in names:
                missing.append(i)
            elif name in links:
                target = os.path.realpath(os.path.join(full, name))
                if not follow_links and not _is_inside(target, inside):
                    raise _leads_out(listing, i, os.path.join(full, name), root)
                if not os.path.exists(target):
                    missing.append(i)
    return (
        ImageSet(listing.targets, paths=paths, root=Path(root)),
        np.array(sorted(missing), dtype=np.int64),
    )


def _names_in(folder: str) -> tuple[set[str], set[str]]:
    """Return the names in a folder, and those that are links; a missing folder has none."""
    names, links = set(), set()
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                names.add(entry.name)
                if entry.is_symlink():
                    links.add(entry.name)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as e:
        raise UserError(
            f"cannot read the folder {folder} ({reason_of(e)}); correct its permissions or its "
            "name."
        ) from None
    return names, links


def _is_inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(os.path.join(folder, ""))


def _leads_out(listing: Listing, i: int, link: str, root: Path) -> UserError:
    return UserError(
        f"{listing.place(i)}: {listing.path(i)!r} is behind a link that leads out of {root}, to "
        f"{os.path.realpath(link)}; move the images inside, or, if you trust the link, give "
        f"{spell('follow_links', True)}."
    )


def require_images(
    listing: Listing,
    root: str | Path,
    *,
    follow_links: bool,
    skip_bad: bool,
    keep_missing: bool = False,
) -> ImageSet:
    """Look for the listed images; a missing one is an error, or is left out, or is kept.

    Args:
        listing: The listed images.
        root: Folder that their paths start from.
        follow_links: Whether a link inside `root` may lead out of it.
        skip_bad: Leave out missing images, with a warning each.
        keep_missing: Return missing images like all others.

    Raises:
        UserError: If all images are missing, or one is missing and neither left out nor kept; or as
            `find_images` does.
    """
    data, missing = find_images(listing, Path(root), follow_links=follow_links)
    if not len(missing):
        return data
    i = int(missing[0])
    first = f"{listing.place(i)}: there is no {data.root / data.paths[i]}"
    is_foreign = "\\" in data.paths[i] and os.sep == "/"
    slashes = r", and write / for the \ of Windows in the paths" if is_foreign else ""
    if len(missing) == len(data):
        # Tables often list names without their extension.
        bare = not os.path.splitext(data.paths[i])[1] and listing.place_word == "row"
        hint = f", or the missing extension as {spell('suffix', '.jpg')}" if bare else ""
        raise UserError(
            f"{first}, nor any other of the {len(data):,}; give the folder that the paths start "
            f"from as {spell('path')}{hint}{slashes}."
        )
    if keep_missing:
        return data
    if not skip_bad:
        more = f", nor {len(missing) - 1:,} more" if len(missing) > 1 else ""
        raise UserError(
            f"{first}{more}; correct the list{slashes}, or leave out missing images with "
            f"{spell('skip_bad', True)}."
        )
    for i in missing:
        _log.warning("left out: %s: there is no %s", listing.place(i), data.root / data.paths[i])
    kept = data.take(np.setdiff1d(np.arange(len(data)), missing))
    kept.skipped = [str(data.root / data.paths[i]) for i in missing]
    return kept
