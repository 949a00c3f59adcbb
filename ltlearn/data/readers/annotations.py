"""Read annotations in the JSON format of COCO and iNaturalist."""

import json as json_format
from array import array
from pathlib import Path
from typing import Any

import numpy as np

from ltlearn.data.options import ReadOptions
from ltlearn.data.readers.labels import match_classes
from ltlearn.data.readers.listing import (
    FETCH_AGAIN,
    Listing,
    PathTable,
    cannot_read,
    require_images,
)
from ltlearn.data.readers.parts import ListedImages
from ltlearn.errors import UserError
from ltlearn.utils.system_errors import reason_of

__all__ = ["list_json", "read_annotations"]

_LISTS = ("images", "annotations", "categories")


def list_json(
    json: str | Path, options: ReadOptions | None = None, problems: list[str] | None = None
) -> ListedImages:
    """List the images of annotation files, one label per image.

    The classes are the categories of the training file, with or without images, in the order of
    their ids. The categories of other files are matched by name.

    Args:
        json: The annotations of the training images.
        options: Uses `images`, the folder that file names start from (None takes the folder of the
            file); `valid` and `test`, the annotations of those parts; `skip_bad`; and
            `follow_links`. None takes the defaults.
        problems: Collects a sentence about each file that shares images with another. Shared and
            missing images are then listed like all others. None raises an error instead.

    Raises:
        UserError: If a file cannot be read, an image is missing or in two files, or a validation or
            test label is not in training.
    """
    options = options or ReadOptions()
    file = Path(json).expanduser()
    root = file.parent if options.images is None else Path(options.images).expanduser()
    files = {"train": file, "valid": options.valid, "test": options.test}
    listings = {
        part: read_annotations(Path(given).expanduser())
        for part, given in files.items()
        if given is not None
    }
    classes, parts = listings["train"].classes, {}
    file_of: dict[str, str] = {}
    for part, listing in listings.items():
        listing.targets = match_classes(
            listing.targets, listing.classes, classes, listing.place, part
        )
        _check_shared(listing, file_of, problems)
        parts[part] = require_images(
            listing,
            root,
            follow_links=options.follow_links,
            skip_bad=options.skip_bad,
            keep_missing=problems is not None,
        )
    name = "JSON parts" if len(parts) > 1 else "one JSON"
    return ListedImages(parts, classes, name, file.stem, str(file))


def _check_shared(listing: Listing, file_of: dict[str, str], problems: list[str] | None) -> None:
    """Raise or collect an error if an image is in an earlier file; then add all to `file_of`."""
    paths = [listing.path(i) for i in range(len(listing))]
    shared = next((i for i, path in enumerate(paths) if path in file_of), None)
    if shared is not None:
        sentence = (
            f"{listing.place(shared)}: {paths[shared]!r} is in {file_of[paths[shared]]} too; "
            "results would include images seen in training: remove one of the two entries."
        )
        if problems is None:
            raise UserError(sentence)
        problems.append(sentence)
    file_of.update(dict.fromkeys(paths, str(listing.file)))


def read_annotations(file: Path) -> Listing:
    """Read annotations in COCO's JSON format, which all iNaturalist competitions use.

    The classes are the categories in ascending order of their ids, which may have gaps.

    Args:
        file: Has `images` (id, file_name), `annotations` (image_id, category_id) and `categories`
            (id, name).

    Raises:
        UserError: If the file cannot be read or is no such JSON, a path leads out of the folder, an
            id occurs twice, or an image has no annotation, several, or one of an unknown category.
    """
    content = _load(file)
    paths, image_ids = PathTable(file, "image id"), array("q")
    of_image, of_category = array("q"), array("q")
    names: dict[int, str] = {}

    def add_image(item: dict) -> None:
        image_ids.append(item["id"])
        paths.add(item["file_name"], image_ids[-1])

    def add_annotation(item: dict) -> None:
        of_image.append(item["image_id"])
        of_category.append(item["category_id"])

    def add_category(item: dict) -> None:
        category = array("q", [item["id"]])[0]
        if category in names:
            raise UserError(f"{file} has the category id {category} twice; {FETCH_AGAIN}")
        names[category] = str(item.get("name", category))

    for key, add in zip(_LISTS, (add_image, add_annotation, add_category), strict=True):
        for entry, item in enumerate(content[key], 1):
            try:
                add(item)
            except (KeyError, TypeError, AttributeError, OverflowError) as e:
                reason = f"no {e}" if isinstance(e, KeyError) else str(e)
                where = f"{file}, entry {entry} of {key}"
                raise UserError(f"{where}: {reason}; {FETCH_AGAIN}") from None
    if not image_ids:
        raise UserError(f"{file} names no images; {FETCH_AGAIN}")
    ids = np.array(image_ids, dtype=np.int64)
    categories = np.array(sorted(names), dtype=np.int64)
    return Listing(
        file,
        list(paths.folders),
        np.array(paths.folder_of, dtype=np.int32),
        paths.names,
        _join(file, ids, np.array(of_image), np.array(of_category), categories),
        ids,
        "image id",
        _distinct_names({category: names[category] for category in sorted(names)}),
    )


def _load(file: Path) -> dict[str, list]:
    """Load the JSON and check that it has the three lists."""
    try:
        with open(file, encoding="utf-8-sig") as text:
            content: Any = json_format.load(text)
    except json_format.JSONDecodeError as e:
        raise UserError(
            f"{file} is no valid JSON ({e.msg}, line {e.lineno}, character {e.pos}); {FETCH_AGAIN}"
        ) from None
    except RecursionError:
        raise UserError(
            f"{file} is nested too deeply; give annotations in COCO's format."
        ) from None
    except (OSError, UnicodeDecodeError) as e:
        raise cannot_read(file, reason_of(e)) from None
    except ValueError:  # Python converts no whole number of more than 4,300 digits
        raise UserError(f"{file} has a number with thousands of digits; {FETCH_AGAIN}") from None
    for key in _LISTS:
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise UserError(f"{file} has no list {key!r}; give annotations in COCO's format.")
    return content


def _join(
    file: Path,
    ids: np.ndarray,
    of_image: np.ndarray,
    of_category: np.ndarray,
    categories: np.ndarray,
) -> np.ndarray:
    """Return the class of each image."""

    def check(bad: np.ndarray, values: np.ndarray, message: str) -> None:
        if bad.any():
            more = int(bad.sum()) - 1
            also = f", and so have {more:,} more" if more else ""
            raise UserError(f"{file}: {message.format(values[bad][0])}{also}; {FETCH_AGAIN}")

    order = np.argsort(ids, kind="stable")
    known = ids[order]
    check(known[1:] == known[:-1], known[1:], "the image id {} is there twice")
    at = np.minimum(np.searchsorted(known, of_image), len(known) - 1)
    check(known[at] != of_image, of_image, "an annotation is of the unlisted image id {}")
    annotated = np.bincount(at, minlength=len(known))
    check(annotated > 1, known, "image id {} has more than one annotation")
    check(annotated < 1, known, "image id {} has no annotation")
    if not len(categories):
        raise UserError(f"{file} lists no categories; {FETCH_AGAIN}")
    label = np.minimum(np.searchsorted(categories, of_category), len(categories) - 1)
    check(categories[label] != of_category, of_image, "image id {} has an unlisted category")
    targets = np.empty(len(ids), dtype=np.int64)
    targets[order[at]] = label
    return targets


def _distinct_names(names: dict[int, str]) -> list[str]:
    """Return the category names; a name that several categories have gets the id appended."""
    seen, repeated = set(), set()
    for name in names.values():
        (repeated if name in seen else seen).add(name)
    return [f"{name} ({id_})" if name in repeated else name for id_, name in names.items()]
