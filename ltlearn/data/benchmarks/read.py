"""Read a benchmark whose lists or annotations are published."""

import logging
import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ltlearn.data.benchmarks.facts import BENCHMARKS, LISTED, MAX_NAMED_FILES, counts_name
from ltlearn.data.images import ImageSet
from ltlearn.data.readers.annotations import read_annotations
from ltlearn.data.readers.listing import Listing, find_images, read_list
from ltlearn.errors import UserError, check_choice

__all__ = [
    "load_benchmark",
    "load_benchmark_parts",
    "name_first_missing",
    "data_command",
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
    """List the images of one part of ImageNet-LT, Places-LT or iNaturalist 2018.

    Args:
        name: One of `LISTED`.
        root: As for `load_benchmark_parts`.
        part: "train", "valid" or "test".
        follow_links: As for `load_benchmark_parts`.
        skip_bad: As for `load_benchmark_parts`.

    Raises:
        UserError: As `load_benchmark_parts` does, or if the set has no such part.
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
    """List the images of ImageNet-LT, Places-LT or iNaturalist 2018.

    The published lists, or annotations, lie in `root` or in a folder of their published name inside
    it, and the images beside them or in `root`. No image is opened. Counts that are not the
    published ones are only warned of; `check_benchmark` compares all there is.

    Args:
        name: One of `LISTED`.
        root: The folder of the set, or the one that holds it.
        parts: Some of "train", "valid" and "test"; None takes all there are. iNaturalist 2018 has
            no "valid": its validation images are the test part, as the labels of its own test
            images are not public.
        follow_links: Whether a link inside the folder may lead out of it.
        skip_bad: Leave out the images that are not there, with a warning, instead of stopping.

    Returns:
        The parts, and the names of the classes, which all parts have in one order: that of
        `Benchmark.class_order`.

    Raises:
        UserError: If the set has no such part, a file that lists one or an image is not there, or
            a line or an entry cannot be used; the message says which.
    """
    check_choice("benchmark", name, LISTED)
    facts = BENCHMARKS[name]
    parts = tuple(facts.sizes) if parts is None else parts
    for part in parts:
        check_choice("part", part, facts.sizes)
    copy = BenchmarkCopy(name, Path(root))
    sets = {part: _load(copy, part, follow_links, skip_bad) for part in parts}
    return sets, copy.classes


def _load(copy: "BenchmarkCopy", part: str, follow_links: bool, skip_bad: bool) -> ImageSet:
    listing = copy.read(part)
    data, missing = copy.find(listing, follow_links)
    if part == "train":
        counts = np.bincount(listing.targets, minlength=len(copy.classes))
        if counts_name(counts) != copy.facts.counts_sha256:
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
        raise UserError(f"{lost}; {data_command(copy.name, copy.root)}.")
    _log.warning("left out: %s", lost)
    kept = data.take(np.setdiff1d(np.arange(len(data)), missing))
    kept.skipped = [str(copy.base / data.paths[i]) for i in missing]
    return kept


def name_first_missing(data: ImageSet, missing: np.ndarray) -> str:
    """Name the first of those that are missing."""
    names = [data.paths[i] for i in missing[:MAX_NAMED_FILES]]
    return ", ".join([*names, "..."] if len(missing) > MAX_NAMED_FILES else names)


def data_command(name: str, root: Path) -> str:
    """Return the sentence that names the command which lists what to fetch."""
    return f"`ltlearn data {name} --root {shlex.quote(str(root))}` says what to fetch"


class BenchmarkCopy:
    """A copy of a listed benchmark on disk: where its files are, and its classes."""

    def __init__(self, name: str, root: Path):
        self.name, self.facts, self.root = name, BENCHMARKS[name], root.expanduser()
        self.places = (self.root, *(self.root / f for f in self.facts.folders))
        # A form that is whole, or else the one of which most is there.
        self.files = max((self._files(form) for form in self.facts.forms), key=len)
        self.base, self.classes = self.root, None
        self._read: dict[str, Listing] = {}

    def _files(self, form: dict[str, str]) -> dict[str, Path]:
        """Return those files of a form that are there."""
        found = {}
        for part, file in form.items():
            there = next((p / file for p in self.places if (p / file).is_file()), None)
            if there is not None:
                found[part] = there
        return found

    def read(self, part: str) -> Listing:
        """Read what says which images a part has, and the classes."""
        listing = self._listing(part)
        train = self._listing("train") if self.classes is None else None
        if train is not None:
            # Annotations name their classes; in lists the training folders do.
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
        if part not in self._read:
            if part not in self.files:
                names = " or ".join(form[part] for form in self.facts.forms)
                places = " and ".join(str(p) for p in self.places)
                raise UserError(
                    f"there is no {names} of {self.facts.title} in {places}; "
                    f"{data_command(self.name, self.root)}."
                )
            file = self.files[part]
            self._read[part] = (read_annotations if file.suffix == ".json" else read_list)(file)
        return self._read[part]

    def _name_classes(self, train: Listing) -> list[str]:
        """Name each class by its folder; the list must give each folder a label of its own."""
        last = int(train.targets.max())
        if last >= self.facts.classes:
            raise self._beyond(train, self.facts.classes)
        named: dict[int, str] = {}
        first: dict[int, int] = {}
        labels: dict[str, int] = {}
        for folder, label, index in train.pairs():
            name = _CLASS_OF[self.name](folder)
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
        """Check that a list numbers the classes as the training list does."""
        if int(listing.targets.max()) >= len(self.classes):
            raise self._beyond(listing, len(self.classes))
        for folder, label, index in listing.pairs():
            name = _CLASS_OF[self.name](folder)
            if name not in (None, self.classes[label]):
                raise UserError(
                    f"{listing.place(index[0])}: {listing.path(index[0])!r} has the label {label}, "
                    f"which in {self.files['train']} is {self.classes[label]!r}; take all lists "
                    "from one place."
                )

    def _beyond(self, listing: Listing, classes: int) -> UserError:
        i = int(np.argmax(listing.targets >= classes))
        return UserError(
            f"{listing.place(i)}: the label {listing.targets[i]} is too high, there are {classes} "
            "classes, from 0 up; fetch the list again."
        )

    def _find_base(self, train: Listing) -> Path:
        """Return the folder that the paths start from."""
        tops = {f.split("/")[0] for f in train.folders} | set(_OTHER_TOPS.get(self.name, ()))
        with_images = (p for p in self.places if any((p / top).is_dir() for top in tops))
        return next(with_images, self.root)

    def find(self, listing: Listing, follow_links: bool) -> tuple[ImageSet, np.ndarray]:
        """Look for the images."""
        candidates = None
        if self.name == "places_lt":
            candidates = _PlacesFolders(self.base, self.classes)
        elif self.name == "inat2018":
            candidates = _inat_folders
        return find_images(listing, self.base, candidates, follow_links)


def _last_folder(folder: str) -> str:
    return folder.rpartition("/")[2]


# Folders of the small images first. torchvision renames the training ones.
_PLACES_TRAIN = ("data_256", "data_256_standard", "data_large", "data_large_standard")
_PLACES_VAL = ("val_256", "val_large")
_OTHER_TOPS = {"places_lt": ("train", *_PLACES_TRAIN), "inat2018": ("2018",)}


def _place_name(folder: str) -> str | None:
    """Return the scene of a folder of Places365, as archives without nesting write it."""
    top, _, rest = folder.partition("/")
    if top in _PLACES_TRAIN:
        rest = rest.partition("/")[2]  # the scenes lie under their first letter
    return rest.replace("/", "-") or None


_CLASS_OF = {"imagenet_lt": _last_folder, "places_lt": _place_name, "inat2018": _last_folder}


class _PlacesFolders:
    """Where an image of Places365 may lie, whichever archive it came with.

    One archive has train/<scene>/ and val/<scene>/, with a hyphen where a scene has a kind
    (arena-hockey). The other has data_256/a/arena/hockey/, and all validation images in val_256/.
    """

    def __init__(self, base: Path, classes: list[str]):
        self.classes = classes
        self.train = [top for top in _PLACES_TRAIN if (base / top).is_dir()]
        self.val = [top for top in _PLACES_VAL if (base / top).is_dir()]

    def __call__(self, folder: str, label: int) -> list[str]:
        scene = self.classes[label]
        if folder.split("/")[0] in ("val", *_PLACES_VAL):
            return [folder, f"val/{scene}", *self.val]
        nested = scene.replace("-", "/")
        inner = [f"{top}/{scene[0]}/{s}" for top in self.train for s in (nested, scene)]
        return [folder, f"train/{scene}", *inner]


def _inat_folders(folder: str, _: int) -> list[str]:
    """Return the folder in the archive, and where torchvision renames it to."""
    top, _, rest = folder.partition("/")
    return [folder, f"2018/{rest}"] if top == "train_val2018" else [folder]
