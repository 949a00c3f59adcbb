"""Read a benchmark whose lists or annotations are published."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ltlearn.data.benchmarks.facts import MAX_NAMED_FILES, ListedSet, counts_name
from ltlearn.data.benchmarks.registry import get_dataset, listed_names
from ltlearn.data.images import ImageSet
from ltlearn.data.readers.annotations import read_annotations
from ltlearn.data.readers.listing import Listing, find_images, read_list
from ltlearn.errors import UserError, check_choice, spell_call

__all__ = [
    "load_benchmark",
    "load_benchmark_parts",
    "name_first_missing",
    "hint_to_fetch",
    "BenchmarkCopy",
]

_log = logging.getLogger("ltlearn")


def load_benchmark(
    name: str,
    root: str | Path,
    part: str,
    follow_links: bool = False,
    skip_bad: bool = False,
) -> tuple[ImageSet, list[str]]:
    """List the images of one part of a set with published lists.

    Args:
        name: One of `listed_names()`, such as "imagenet_lt".
        root: As for `load_benchmark_parts`.
        part: "train", "valid" or "test".
        follow_links: As for `load_benchmark_parts`.
        skip_bad: As for `load_benchmark_parts`.

    Raises:
        UserError: As for `load_benchmark_parts`.
    """
    parts, classes = load_benchmark_parts(name, root, (part,), follow_links, skip_bad)
    return parts[part], classes


def load_benchmark_parts(
    name: str,
    root: str | Path,
    parts: Sequence[str] | None = None,
    follow_links: bool = False,
    skip_bad: bool = False,
) -> tuple[dict[str, ImageSet], list[str]]:
    """List the images of a set with published lists.

    The lists or annotations are in `root`, or in a folder of their published name inside it. The
    images are beside them or in `root`. No image is opened. A warning is logged if the training
    counts differ from the published ones; `check_benchmark` compares everything.

    Args:
        name: One of `listed_names()`, such as "imagenet_lt".
        root: The folder of the set, or the folder that contains it.
        parts: Some of "train", "valid" and "test"; None takes all parts. iNaturalist 2018 has no
            "valid": its published validation set is the test part, because the labels of the
            published test images are not public.
        follow_links: Whether a link inside the folder may lead out of it.
        skip_bad: Leave out missing images, with a warning, instead of raising.

    Returns:
        The parts, and the class names in the order of `Benchmark.class_order`.

    Raises:
        UserError: If the set has no such part, a list or an image is missing, or a line or an
            entry cannot be used. The message names it.
    """
    check_choice("benchmark", name, listed_names())
    facts = get_dataset(name)
    parts = tuple(facts.sizes) if parts is None else parts
    for part in parts:
        check_choice("part", part, facts.sizes)
    copy = BenchmarkCopy(facts, Path(root))
    sets = {part: _load(copy, part, follow_links, skip_bad) for part in parts}
    return sets, copy.classes


def _load(copy: "BenchmarkCopy", part: str, follow_links: bool, skip_bad: bool) -> ImageSet:
    listing = copy.read(part)
    data, missing = copy.find(listing, follow_links)
    if part == "train":
        counts = np.bincount(listing.targets, minlength=len(copy.classes))
        if copy.facts.counts_sha256 not in ("", counts_name(counts)):
            _log.warning(
                "%s does not have the published counts of %s: %d images of %d classes.",
                listing.file, copy.facts.title, len(listing), len(copy.classes),
            )  # fmt: skip
    if not len(missing):
        return data
    lost = (
        f"{len(missing):,} of the {len(data):,} images that {listing.file} lists are not under "
        f"{copy.base} ({name_first_missing(data, missing)})"
    )
    if not skip_bad or len(missing) == len(data):
        raise UserError(f"{lost}; {hint_to_fetch(copy.facts.name, copy.root)}.")
    _log.warning("left out: %s", lost)
    kept = data.take(np.setdiff1d(np.arange(len(data)), missing))
    kept.skipped = [str(copy.base / data.paths[i]) for i in missing]
    return kept


def name_first_missing(data: ImageSet, missing: np.ndarray) -> str:
    """Return the paths of the first missing images, for a message.

    Args:
        data: All images.
        missing: Indices of the missing images.
    """
    names = [data.paths[i] for i in missing[:MAX_NAMED_FILES]]
    return ", ".join([*names, "..."] if len(missing) > MAX_NAMED_FILES else names)


def hint_to_fetch(name: str, root: Path) -> str:
    """Return a clause that names the call which lists the files to fetch.

    Args:
        name: The benchmark.
        root: Its folder.
    """
    return f"{spell_call('check_benchmark', name=name, root=str(root))} lists the files to fetch"


class BenchmarkCopy:
    """A copy of a listed benchmark on disk: where its files are, and its classes.

    Args:
        facts: The row of the benchmark.
        root: Its folder, or the folder that contains it.
    """

    def __init__(self, facts: ListedSet, root: Path):
        self.facts, self.root = facts, root.expanduser()
        self.folders = (self.root, *(self.root / f for f in facts.folders))
        # The first form that is complete, or else the form with the most files.
        self.files = max((self._files(form) for form in facts.forms), key=len)
        self.base, self.classes = self.root, None
        self._listings: dict[str, Listing] = {}

    def _files(self, form: dict[str, str]) -> dict[str, Path]:
        """Return the files of a form that exist, by part."""
        files = {}
        for part, name in form.items():
            file = next((f / name for f in self.folders if (f / name).is_file()), None)
            if file is not None:
                files[part] = file
        return files

    def read(self, part: str) -> Listing:
        """Read the list of a part. The training list also gives the classes.

        Args:
            part: "train", "valid" or "test".

        Raises:
            UserError: If the list is missing, cannot be used, or disagrees with the training list.
        """
        listing = self._listing(part)
        train = self._listing("train") if self.classes is None else None
        if train is not None:
            # Annotations name the classes. In plain lists the training folders name them.
            self.classes = train.classes or self._name_classes(train)
            self.base = self._find_base(train)
        if listing.classes is not None:
            if listing.classes != self.classes:
                raise UserError(
                    f"{listing.file} has other categories than {self.files['train']}; fetch both "
                    "again."
                )
        elif part != "train":
            self._check_labels(listing)
        return listing

    def _listing(self, part: str) -> Listing:
        if part not in self._listings:
            if part not in self.files:
                names = " or ".join(form[part] for form in self.facts.forms)
                folders = " and ".join(str(f) for f in self.folders)
                raise UserError(
                    f"there is no {names} of {self.facts.title} in {folders}; "
                    f"{hint_to_fetch(self.facts.name, self.root)}."
                )
            file = self.files[part]
            read = read_annotations if file.suffix == ".json" else read_list
            self._listings[part] = read(file)
        return self._listings[part]

    def _name_classes(self, train: Listing) -> list[str]:
        """Name each class by its folder. The list must give each folder a label of its own."""
        last = int(train.targets.max())
        if last >= self.facts.classes:
            raise self._beyond(train, self.facts.classes)
        named: dict[int, str] = {}
        first: dict[int, int] = {}
        labels: dict[str, int] = {}
        for folder, label, index in train.pairs():
            name = self.facts.class_of(folder)
            if name is None:
                continue
            i = int(index[0])
            if labels.setdefault(name, label) != label:
                raise UserError(
                    f"{train.place(i)}: {train.path(i)!r} has the label {label}, but in "
                    f"{train.place_word} {train.places[first[labels[name]]]} {name!r} has the "
                    f"label {labels[name]}; fetch the list again."
                )
            if named.setdefault(label, name) != name:
                raise UserError(
                    f"{train.place(i)}: {train.path(i)!r} has the label {label}, which in "
                    f"{train.place_word} {train.places[first[label]]} is {named[label]!r}; fetch "
                    "the list again."
                )
            first.setdefault(label, i)
        return [named.get(label, str(label)) for label in range(last + 1)]

    def _check_labels(self, listing: Listing) -> None:
        """Raise if a list numbers the classes differently from the training list."""
        if int(listing.targets.max()) >= len(self.classes):
            raise self._beyond(listing, len(self.classes))
        for folder, label, index in listing.pairs():
            name = self.facts.class_of(folder)
            if name not in (None, self.classes[label]):
                raise UserError(
                    f"{listing.place(index[0])}: {listing.path(index[0])!r} has the label {label}, "
                    f"which in {self.files['train']} is {self.classes[label]!r}; take all lists "
                    "from one source."
                )

    def _beyond(self, listing: Listing, classes: int) -> UserError:
        i = int(np.argmax(listing.targets >= classes))
        return UserError(
            f"{listing.place(i)}: the label {listing.targets[i]} is too high, because there are "
            f"{classes} classes, from 0 up; fetch the list again."
        )

    def _find_base(self, train: Listing) -> Path:
        """Return the folder that the paths start from."""
        tops = {f.split("/")[0] for f in train.folders} | set(self.facts.image_tops)
        with_images = (f for f in self.folders if any((f / top).is_dir() for top in tops))
        return next(with_images, self.root)

    def find(self, listing: Listing, follow_links: bool) -> tuple[ImageSet, np.ndarray]:
        """Look for the images of a list; return them and the indices of the missing ones.

        Args:
            listing: A list that `read` returned.
            follow_links: Whether a link inside the folder may lead out of it.
        """
        make = self.facts.image_folders
        candidates = None if make is None else make(self.base, self.classes)
        return find_images(listing, self.base, candidates, follow_links)
