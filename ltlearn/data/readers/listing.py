"""Lists of image files with labels, and how the files are found."""

import os
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

import numpy as np

from ltlearn.data.images import ImageSet
from ltlearn.errors import UserError
from ltlearn.utils.progress import track

__all__ = ["Listing", "PathTable", "read_list", "cannot_read", "FETCH_AGAIN", "find_images"]

_MOST_DIGITS = 9  # of a label


@dataclass
class Listing:
    """What a file says of each image, in its order; nothing is known of the disk yet."""

    file: Path
    folders: list[str]  # each once, relative to the data set's own
    folder_of: np.ndarray  # (N,) index into `folders`
    names: list[str]  # of the file in its folder
    targets: np.ndarray  # (N,) int64
    places: np.ndarray  # (N,) where the file says so: line numbers, or image ids
    place_word: str = "line"
    classes: list[str] | None = None  # where the file names them

    def __len__(self) -> int:
        return len(self.names)

    def place(self, i: int) -> str:
        """Say where the file speaks of image i."""
        return f"{self.file}, {self.place_word} {self.places[i]}"

    def path(self, i: int) -> str:
        """Return the path of image i."""
        folder = self.folders[self.folder_of[i]]
        return f"{folder}/{self.names[i]}" if folder else self.names[i]

    def pairs(self) -> Iterator[tuple[str, int, np.ndarray]]:
        """Yield each folder with each of its labels, and the images that have both."""
        if not len(self):
            return
        size = int(self.targets.max()) + 1
        keys = self.folder_of.astype(np.int64) * size + self.targets
        for index in _groups(keys):
            yield self.folders[self.folder_of[index[0]]], int(self.targets[index[0]]), index

    def moved(self, move: Callable[[str, int], str]) -> "Listing":
        """Return the same with `move(folder, label)` for each folder."""
        folders, folder_of = {}, np.empty(len(self), dtype=np.int32)
        for folder, label, index in self.pairs():
            folder_of[index] = folders.setdefault(move(folder, label), len(folders))
        return replace(self, folders=list(folders), folder_of=folder_of)


def _groups(keys: np.ndarray) -> list[np.ndarray]:
    """Split the indices into those of equal keys, each part ascending."""
    order = np.argsort(keys, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(keys[order])) + 1)


class PathTable:
    """Paths split into folder and name; each folder is kept and checked once."""

    def __init__(self, file: Path, place_word: str):
        self.file, self.place_word = file, place_word
        self.folders, self.spellings = {}, {}
        self.folder_of, self.names = array("i"), []

    def add(self, path: str, place: int) -> None:
        """Add a path."""
        folder, _, name = path.rpartition("/")
        index = self.spellings.get(folder)
        if index is None:
            index = self._new_folder(folder, path, place)
        if name in ("", ".", "..") or "\\" in name or "\0" in name:
            self._refuse(path, place)
        self.folder_of.append(index)
        self.names.append(name)

    def _new_folder(self, folder: str, path: str, place: int) -> int:
        parts = [p for p in folder.split("/") if p not in ("", ".")]
        # A backslash or a drive would lead out on Windows, and no published list has one.
        odd = ".." in parts or "\\" in folder or "\0" in folder or folder[1:2] == ":"
        if odd or path.startswith("/"):
            self._refuse(path, place)
        clean = "/".join(parts)
        index = self.folders.setdefault(clean, len(self.folders))
        self.spellings[folder] = index
        return index

    def _refuse(self, path: str, place: int) -> NoReturn:
        raise UserError(
            f"{self.file}, {self.place_word} {place}: {path!r} is no path of a file inside the "
            "folder of the data set; take the published file, or write it relative to that folder "
            "with / and without '..'."
        )


def read_list(file: Path) -> Listing:
    """Read lines of a path and a label.

    The label is the last word, so a path may have spaces in it. Empty lines and those that begin
    with # are skipped.

    Args:
        file: The list, in UTF-8.

    Raises:
        UserError: If it cannot be read, names no images, or has a line that is not of that form
            or whose path leads out of the folder; the message has the line's number.
    """
    paths, targets, lines = PathTable(file, "line"), array("q"), array("q")
    number = 0
    try:
        # Names that are no UTF-8 come out as the file system's own do.
        with open(file, encoding="utf-8-sig", errors="surrogateescape") as text:
            for number, line in enumerate(text, 1):
                words = line.strip().rsplit(None, 1)
                if not words or words[0].startswith("#"):
                    continue
                label = words[-1]
                if len(words) < 2 or not (label.isascii() and label.isdigit()):
                    raise _malformed(file, number, line)
                if len(label) > _MOST_DIGITS:
                    raise _malformed(file, number, line)
                paths.add(words[0], number)
                targets.append(int(label))
                lines.append(number)
    except OSError as e:
        raise cannot_read(file, e.strerror) from None
    if not lines:
        raise UserError(f"{file} names no images; fetch it again.")
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
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    return UserError(
        f"{file}, line {number}: {shown!r} is not a path and a label, a whole number from 0 up; "
        "mend the line or fetch the file again."
    )


def cannot_read(file: Path, reason) -> UserError:
    """Return the error of a file that cannot be read."""
    return UserError(f"cannot read {file} ({reason}); fetch it again.")


FETCH_AGAIN = "fetch it again."


def find_images(
    listing: Listing,
    root: Path,
    candidates: Callable[[str, int], Sequence[str]] | None = None,
    follow_links: bool = False,
) -> tuple[ImageSet, np.ndarray]:
    """Look for the listed images; each folder is read once, no file is.

    Args:
        listing: What a file says.
        root: What its paths are relative to; may itself be a link.
        candidates: Gives, for a folder and a label, the folders where such images may lie; the
            first that exists is taken. None takes the listing's own.
        follow_links: Whether a link inside `root` may lead out of it.

    Returns:
        All images, found or not, and the indices of those that are not there.

    Raises:
        UserError: If a link leads out of `root`, an image is listed twice, or a folder cannot be
            read.
    """
    if candidates is not None:

        def move(folder: str, label: int) -> str:
            options = candidates(folder, label)
            there = (f for f in options if os.path.isdir(os.path.join(root, f)))
            return next(there, options[0])

        listing = listing.moved(move)
    inside = os.path.realpath(root)
    missing, paths = [], [""] * len(listing)
    for index in track(
        _groups(listing.folder_of), len(listing.folders), "looking for the listed images"
    ):
        folder = listing.folders[listing.folder_of[index[0]]]
        here = os.path.join(root, folder)
        if not follow_links and not _is_inside(os.path.realpath(here), inside):
            raise _leads_out(listing, index[0], here, root)
        names, links = _names_in(here)
        seen: dict[str, int] = {}
        for i in index.tolist():
            name = listing.names[i]
            if seen.setdefault(name, i) != i:
                raise UserError(
                    f"{listing.place(i)}: {listing.path(i)!r} is listed before, in "
                    f"{listing.place_word} {listing.places[seen[name]]}; remove one of the two."
                )
            paths[i] = f"{folder}/{name}" if folder else name
            if name not in names:
                missing.append(i)
            elif name in links:
                target = os.path.realpath(os.path.join(here, name))
                if not follow_links and not _is_inside(target, inside):
                    raise _leads_out(listing, i, os.path.join(here, name), root)
                if not os.path.exists(target):
                    missing.append(i)
    return (
        ImageSet(listing.targets, paths=paths, root=Path(root)),
        np.array(sorted(missing), dtype=np.int64),
    )


def _names_in(folder: str) -> tuple[set[str], set[str]]:
    """Return the names in a folder, and which of them are links; none where it is not there."""
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
            f"cannot read the folder {folder} ({e.strerror}); mend its permissions or its name."
        ) from None
    return names, links


def _is_inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(os.path.join(folder, ""))


def _leads_out(listing: Listing, i: int, link: str, root: Path) -> UserError:
    return UserError(
        f"{listing.place(i)}: {listing.path(i)!r} is behind a link that leads out of {root}, to "
        f"{os.path.realpath(link)}; move the images inside, or, if you trust the link, pass "
        "follow_links=True (--follow-links of `ltlearn recipe` and `ltlearn data`)."
    )
