"""Data sets that a file lists: `path label` lines, or annotations in COCO's JSON.

Such a file comes from elsewhere, so its paths are confined to the folder of the data set.
"""

import json
import os
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn, TextIO

import numpy as np

from ltlearn.data.sources import ImageSet
from ltlearn.errors import UserError
from ltlearn.progress import track

__all__ = ["Listing", "find_pictures", "read_annotations", "read_list"]

_MOST_DIGITS = 9  # of a label
_CHUNK = 1 << 20  # characters of JSON read at once
_LONGEST = 1 << 26  # characters of one entry, beyond which a file is given up as damaged


@dataclass
class Listing:
    """What a file says of each picture, in its order; nothing is known of the disk yet."""

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
        """Say where the file speaks of picture i."""
        return f"{self.file}, {self.place_word} {self.places[i]}"

    def path(self, i: int) -> str:
        """Return the path of picture i."""
        folder = self.folders[self.folder_of[i]]
        return f"{folder}/{self.names[i]}" if folder else self.names[i]

    def pairs(self) -> Iterator[tuple[str, int, np.ndarray]]:
        """Yield each folder with each of its labels, and the pictures that have both."""
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


class _Paths:
    """Paths split into folder and name; each folder is kept and checked once."""

    def __init__(self, file: Path, place_word: str):
        self.file, self.place_word = file, place_word
        self.folders, self.spellings = {}, {}
        self.folder_of, self.names = array("i"), []

    def add(self, path: str, place: int) -> None:
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
        UserError: If it cannot be read, names no pictures, or has a line that is not of that form
            or whose path leads out of the folder; the message has the line's number.
    """
    paths, targets, lines = _Paths(file, "line"), array("q"), array("q")
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
        raise _cannot_read(file, e.strerror) from None
    if not lines:
        raise UserError(f"{file} names no pictures; fetch it again.")
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


def _cannot_read(file: Path, reason) -> UserError:
    return UserError(f"cannot read {file} ({reason}); fetch it again.")


# ---------------------------------------------------------------- annotations


class _JsonStream:
    """Reads one value of a JSON file after another, and holds no more text than one needs."""

    def __init__(self, file: TextIO):
        self.file, self.text, self.at = file, "", 0
        self.before = 0  # characters of the file that are gone from `text`
        self.entry = 0  # of the array that is read, from 1 up
        self.decode = json.JSONDecoder().raw_decode

    def _more(self) -> bool:
        """Read on; return whether there was anything."""
        left = len(self.text) - self.at
        if left > _LONGEST:
            return False
        # Twice as much each time: else a long entry is tried once a chunk.
        chunk = self.file.read(max(_CHUNK, left))
        if chunk:
            self.before += self.at
            self.text, self.at = self.text[self.at :] + chunk, 0
        return bool(chunk)

    def peek(self) -> str:
        """Return the next character that is not white space, or "" at the end."""
        while True:
            text, at, end = self.text, self.at, len(self.text)
            while at < end and text[at] in " \t\r\n":
                at += 1
            self.at = at
            if at < end:
                return text[at]
            if not self._more():
                return ""

    def take(self, wanted: str) -> str:
        """Step over the next character, which must be among `wanted`."""
        found = self.peek()
        if not found or found not in wanted:
            raise json.JSONDecodeError(f"expecting one of {wanted}", self.text, self.at)
        self.at += 1
        return found

    def value(self):
        """Return the next value."""
        self.peek()
        while True:
            try:
                value, end = self.decode(self.text, self.at)
            except json.JSONDecodeError:
                if self._more():
                    continue
                raise
            if end == len(self.text) and self._more():
                continue  # a number may go on
            self.at = end
            return value

    def items(self) -> Iterator:
        """Yield the elements of the next value, an array."""
        self.take("[")
        self.entry = 0
        if self.peek() == "]":
            self.at += 1
            return
        while True:
            self.entry += 1
            yield self.value()
            if self.take(",]") == "]":
                return

    def members(self) -> Iterator[str]:
        """Yield the keys of the next value, an object; whoever takes one reads its value."""
        self.take("{")
        if self.peek() == "}":
            self.at += 1
            return
        while True:
            self.take('"')
            self.at -= 1
            key = self.value()
            self.take(":")
            yield key
            if self.take(",}") == "}":
                return


def read_annotations(file: Path) -> Listing:
    """Read annotations in COCO's JSON, as all iNaturalist competitions have them.

    The classes are the categories in ascending order of their ids, which may have gaps. The file is
    read piece by piece: json.load would hold several times its size in memory.

    Args:
        file: Has `images` (id, file_name), `annotations` (image_id, category_id) and `categories`
            (id, name).

    Raises:
        UserError: If it cannot be read or is no such JSON, a path leads out of the folder, an id is
            there twice, or a picture has no annotation, several, or one of an unknown category.
    """
    paths = _Paths(file, "image id")
    image_ids, of_image, of_category = array("q"), array("q"), array("q")
    names: dict[int, str] = {}
    found = set()
    try:
        with open(file, encoding="utf-8-sig") as text:
            stream = _JsonStream(text)
            for key in stream.members():
                found.add(key)
                if key == "images":
                    for item in stream.items():
                        image_ids.append(item["id"])
                        paths.add(item["file_name"], image_ids[-1])
                elif key == "annotations":
                    for item in stream.items():
                        of_image.append(item["image_id"])
                        of_category.append(item["category_id"])
                elif key == "categories":
                    for item in stream.items():
                        one = array("q", [item["id"]])[0]
                        if one in names:
                            raise UserError(f"{file} has the category id {one} twice; {_AGAIN}")
                        names[one] = str(item.get("name", one))
                else:
                    stream.value()
            if stream.peek():
                raise json.JSONDecodeError("more after the end", stream.text, stream.at)
    except json.JSONDecodeError as e:
        at = stream.before + e.pos
        raise UserError(f"{file} is no valid JSON ({e.msg}, character {at}); {_AGAIN}") from None
    except (KeyError, TypeError, AttributeError, OverflowError) as e:
        reason = f"no {e}" if isinstance(e, KeyError) else str(e)
        raise UserError(f"{file}, entry {stream.entry} of {key}: {reason}; {_AGAIN}") from None
    except RecursionError:
        raise UserError(f"{file} is nested too deeply; {_AGAIN}") from None
    except (OSError, UnicodeDecodeError) as e:
        raise _cannot_read(file, getattr(e, "strerror", None) or e) from None
    absent = [k for k in ("images", "annotations", "categories") if k not in found]
    if absent:
        raise UserError(f"{file} has no {absent[0]!r}; take annotations in COCO's format.")
    if not image_ids:
        raise UserError(f"{file} names no pictures; {_AGAIN}")
    ids = np.array(image_ids, dtype=np.int64)
    return Listing(
        file,
        list(paths.folders),
        np.array(paths.folder_of, dtype=np.int32),
        paths.names,
        _join(file, ids, np.array(of_image), np.array(of_category), np.array(sorted(names))),
        ids,
        "image id",
        _distinct({one: names[one] for one in sorted(names)}),
    )


_AGAIN = "fetch it again."


def _join(
    file: Path,
    ids: np.ndarray,
    of_image: np.ndarray,
    of_category: np.ndarray,
    categories: np.ndarray,
) -> np.ndarray:
    """Return the class of each picture."""

    def check(bad: np.ndarray, values: np.ndarray, what: str) -> None:
        if bad.any():
            more = int(bad.sum()) - 1
            also = f", and so have {more:,} more" if more else ""
            raise UserError(f"{file}: {what.format(values[bad][0])}{also}; {_AGAIN}")

    order = np.argsort(ids, kind="stable")
    known = ids[order]
    check(known[1:] == known[:-1], known[1:], "the image id {} is there twice")
    at = np.minimum(np.searchsorted(known, of_image), len(known) - 1)
    check(known[at] != of_image, of_image, "an annotation is of the unlisted image id {}")
    seen = np.bincount(at, minlength=len(known))
    check(seen > 1, known, "image id {} has more than one annotation")
    check(seen < 1, known, "image id {} has no annotation")
    if not len(categories):
        raise UserError(f"{file} lists no categories; {_AGAIN}")
    label = np.minimum(np.searchsorted(categories, of_category), len(categories) - 1)
    check(categories[label] != of_category, of_image, "image id {} has an unlisted category")
    targets = np.empty(len(ids), dtype=np.int64)
    targets[order[at]] = label
    return targets


def _distinct(names: dict[int, str]) -> list[str]:
    """Add the id to names that several categories have."""
    seen, twice = set(), set()
    for name in names.values():
        (twice if name in seen else seen).add(name)
    return [f"{name} ({one})" if name in twice else name for one, name in names.items()]


# ---------------------------------------------------------------- on disk


def find_pictures(
    listing: Listing,
    root: Path,
    candidates: Callable[[str, int], Sequence[str]] | None = None,
    follow_links: bool = False,
) -> tuple[ImageSet, np.ndarray]:
    """Look for the listed pictures; each folder is read once, no file is.

    Args:
        listing: What a file says.
        root: What its paths are relative to; may itself be a link.
        candidates: Gives, for a folder and a label, the folders where such pictures may lie; the
            first that exists is taken. None takes the listing's own.
        follow_links: Whether a link inside `root` may lead out of it.

    Returns:
        All pictures, found or not, and the indices of those that are not there.

    Raises:
        UserError: If a link leads out of `root`, a picture is listed twice, or a folder cannot be
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
        _groups(listing.folder_of), len(listing.folders), "looking for the listed pictures"
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
        f"{os.path.realpath(link)}; move the pictures inside, or, if you trust the link, pass "
        "follow_links=True (--follow-links of `ltlearn recipe` and `ltlearn data`)."
    )
