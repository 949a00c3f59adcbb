"""Read annotations in the COCO and iNaturalist format."""

import json
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import numpy as np

from ltlearn.data.readers.listing import FETCH_AGAIN, Listing, PathTable, cannot_read
from ltlearn.errors import UserError

__all__ = ["read_annotations"]

_CHUNK = 1 << 20  # characters of JSON read at once
_LONGEST = 1 << 26  # characters of one entry, beyond which a file is given up as damaged


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
            there twice, or an image has no annotation, several, or one of an unknown category.
    """
    paths = PathTable(file, "image id")
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
                            raise UserError(
                                f"{file} has the category id {one} twice; {FETCH_AGAIN}"
                            )
                        names[one] = str(item.get("name", one))
                else:
                    stream.value()
            if stream.peek():
                raise json.JSONDecodeError("more after the end", stream.text, stream.at)
    except json.JSONDecodeError as e:
        at = stream.before + e.pos
        raise UserError(
            f"{file} is no valid JSON ({e.msg}, character {at}); {FETCH_AGAIN}"
        ) from None
    except (KeyError, TypeError, AttributeError, OverflowError) as e:
        reason = f"no {e}" if isinstance(e, KeyError) else str(e)
        raise UserError(f"{file}, entry {stream.entry} of {key}: {reason}; {FETCH_AGAIN}") from None
    except RecursionError:
        raise UserError(f"{file} is nested too deeply; {FETCH_AGAIN}") from None
    except (OSError, UnicodeDecodeError) as e:
        raise cannot_read(file, getattr(e, "strerror", None) or e) from None
    absent = [k for k in ("images", "annotations", "categories") if k not in found]
    if absent:
        raise UserError(f"{file} has no {absent[0]!r}; take annotations in COCO's format.")
    if not image_ids:
        raise UserError(f"{file} names no images; {FETCH_AGAIN}")
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


def _join(
    file: Path,
    ids: np.ndarray,
    of_image: np.ndarray,
    of_category: np.ndarray,
    categories: np.ndarray,
) -> np.ndarray:
    """Return the class of each image."""

    def check(bad: np.ndarray, values: np.ndarray, what: str) -> None:
        if bad.any():
            more = int(bad.sum()) - 1
            also = f", and so have {more:,} more" if more else ""
            raise UserError(f"{file}: {what.format(values[bad][0])}{also}; {FETCH_AGAIN}")

    order = np.argsort(ids, kind="stable")
    known = ids[order]
    check(known[1:] == known[:-1], known[1:], "the image id {} is there twice")
    at = np.minimum(np.searchsorted(known, of_image), len(known) - 1)
    check(known[at] != of_image, of_image, "an annotation is of the unlisted image id {}")
    seen = np.bincount(at, minlength=len(known))
    check(seen > 1, known, "image id {} has more than one annotation")
    check(seen < 1, known, "image id {} has no annotation")
    if not len(categories):
        raise UserError(f"{file} lists no categories; {FETCH_AGAIN}")
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
