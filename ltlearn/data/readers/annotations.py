"""List the images of annotation files, part by part."""

from pathlib import Path

from ltlearn.data.readers.coco import read_annotations
from ltlearn.data.readers.listed import ListedImages, find_listed_images, match_classes
from ltlearn.errors import UserError

__all__ = ["list_json"]


def list_json(
    json: str | Path,
    path: str | Path | None = None,
    valid: str | Path | None = None,
    test: str | Path | None = None,
    skip_bad: bool = False,
    follow_links: bool = False,
    stops: list[str] | None = None,
) -> ListedImages:
    """List the images of annotations in COCO's JSON, as iNaturalist has them: a label each.

    Classes are the categories of the training file, with or without images, in the order of their
    ids. Those of other files are matched by name.

    Args:
        json: Of the training images.
        path: Folder that file names start from, and that they may not leave; None takes the one of
            the file.
        valid: Of the validation images.
        test: Of the test images.
        skip_bad: Leave out images that are not there, with a warning, instead of stopping.
        follow_links: Whether a link inside `path` may lead out of it.
        stops: Takes a sentence for each file that has images of another, instead of an error;
            images that are not there are then listed like others. None stops at both.

    Raises:
        UserError: If a file cannot be read, an image is not there or in two files, or a validation
            or test label is not in training.
    """
    file = Path(json).expanduser()
    root = file.parent if path is None else Path(path).expanduser()
    listings = {"train": read_annotations(file)}
    for part, given in (("valid", valid), ("test", test)):
        if given is not None:
            listings[part] = read_annotations(Path(given).expanduser())
    classes, parts = listings["train"].classes, {}
    seen: dict[str, str] = {}
    for part, listing in listings.items():
        listing.targets = match_classes(
            listing.targets, listing.classes, classes, listing.place, part
        )
        paths = [listing.path(i) for i in range(len(listing))]
        shared = next((i for i, p in enumerate(paths) if p in seen), None)
        if shared is not None:
            sentence = (
                f"{listing.place(shared)}: {paths[shared]!r} is in {seen[paths[shared]]} too; "
                "figures would be of images that training has seen: remove one of the two."
            )
            if stops is None:
                raise UserError(sentence)
            stops.append(sentence)
        seen.update(dict.fromkeys(paths, str(listing.file)))
        parts[part] = find_listed_images(
            listing, root, follow_links, skip_bad, "path", stops is not None
        )
    name = "JSON parts" if len(parts) > 1 else "one JSON"
    return ListedImages(parts, classes, name, file.stem, str(file))
