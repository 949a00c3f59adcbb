"""The published long-tailed benchmarks: what they hold, and whether a copy on disk holds it.

`BENCHMARKS` has the facts. ImageNet-LT, Places-LT and iNaturalist 2018 are read from their
published lists and annotations; the others are cut from sets that `ltlearn.data.sources` reads.
"""

import hashlib
import logging
import shlex
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from ltlearn.data.listed import Listing, find_pictures, read_annotations, read_list
from ltlearn.data.sources import ImageSet, load_cifar, load_tiny_imagenet
from ltlearn.errors import UserError, check_choice
from ltlearn.metrics import shot_groups

__all__ = [
    "BENCHMARKS",
    "LISTED",
    "Benchmark",
    "BenchmarkReport",
    "Download",
    "Finding",
    "check_benchmark",
    "counts_name",
    "download_benchmark",
    "how_to_get",
    "load_benchmark",
    "load_benchmark_parts",
]

_log = logging.getLogger("ltlearn")

_SHOWN = 5  # missing files that a report names


@dataclass(frozen=True)
class Download:
    """Something to fetch."""

    what: str
    url: str
    size: str = ""  # as its publishers say it, or about what it is; "" where neither is known
    md5: str = ""  # as its publishers say it
    then: str = ""  # what to do with it

    def __str__(self) -> str:
        facts = [self.size] if self.size else []
        facts.append(f"md5 {self.md5}" if self.md5 else "no checksum published")
        after = f"; {self.then}" if self.then else ""
        return f"{self.what}: {self.url} ({', '.join(facts)}){after}"


@dataclass(frozen=True)
class Benchmark:
    """What is published of a benchmark."""

    title: str
    classes: int
    class_order: str
    sizes: dict[str, int]  # pictures of each part
    # Pictures of every class, in the parts that are balanced.
    each: dict[str, int]
    sources: tuple[Download, ...]
    # Of the training part, for those that are long-tailed on disk.
    largest: int = 0
    smallest: int = 0
    # Many-, medium- and few-shot classes under each rule for few; `few` is the usual one.
    shots: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    few: str = "<20"
    counts_sha256: str = ""  # `counts_name` of the training counts, in `class_order`
    sorted_sha256: str = ""  # the same of the counts in ascending order
    # Per channel, for pixels in [0, 1]: what published code normalises with.
    stats: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    # Files that say what a part holds: one dict for each form they are published in.
    forms: tuple[dict[str, str], ...] = ()
    folders: tuple[str, ...] = ()  # of the lists, or of the whole set, inside the one given
    burden: str = ""  # of a large set: what its download means
    gigabytes: int = 0  # of it, where they are published


IMAGENET_STATS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_LISTS = (
    "https://raw.githubusercontent.com/facebookresearch/classifier-balancing/"
    "22370c64141cc662f62ead89447c838c4a7977b5/data/"
)
_PLACES = "http://data.csail.mit.edu/places/places365/"
_INAT = "https://ml-inat-competition-datasets.s3.amazonaws.com/2018/"
_KRIZHEVSKY = "https://www.cs.toronto.edu/~kriz/"


def _lists(folder: str, *names: str) -> tuple[Download, ...]:
    return tuple(
        Download(f"the list {n}", f"{_LISTS}{folder}/{n}", then="into {root}") for n in names
    )


_IMAGENET_LISTS = tuple(f"ImageNet_LT_{p}.txt" for p in ("train", "val", "test"))
_PLACES_LISTS = tuple(f"Places_LT_{p}.txt" for p in ("train", "val", "test"))
_PARTS = ("train", "valid", "test")

BENCHMARKS: dict[str, Benchmark] = {
    "imagenet_lt": Benchmark(
        title="ImageNet-LT",
        classes=1000,
        class_order="WordNet ids, ascending",
        sizes={"train": 115_846, "valid": 20_000, "test": 50_000},
        each={"valid": 20, "test": 50},
        largest=1280,
        smallest=5,
        shots={"<20": (385, 479, 136), "<=20": (385, 469, 146)},
        counts_sha256="93782c2e7eda453ae409fed503a27bc8d430ecb583c7d4b3c3adc93c2887236e",
        sorted_sha256="2b9c45b936a67b9998cbd57ec7e3ed446dfbb87cef40fe3982cc4768e83403b8",
        stats=IMAGENET_STATS,
        forms=(dict(zip(_PARTS, _IMAGENET_LISTS, strict=True)),),
        folders=("ImageNet_LT",),
        sources=(
            Download(
                "ILSVRC2012_img_train.tar",
                "https://image-net.org/challenges/LSVRC/2012/2012-downloads.php",
                "138 GB",
                md5="1d675b47d978889d74fa0da5fadfb00e",
                then="for those who are registered there",
            ),
            Download(
                "ILSVRC2012_img_val.tar",
                "https://image-net.org/challenges/LSVRC/2012/2012-downloads.php",
                "6.3 GB",
                md5="29b22e2961454d5413ddabcf34fc5622",
            ),
            Download(
                "ILSVRC2012_devkit_t12.tar.gz",
                "https://image-net.org/challenges/LSVRC/2012/2012-downloads.php",
                md5="fa75699e90414af021442c21a62c3abf",
                then="with the three files in {root}, this makes train/<class>/ and val/<class>/: "
                "`python -c \"from torchvision.datasets import ImageNet; ImageNet('{root}', "
                "'train'); ImageNet('{root}', 'val')\"`",
            ),
            *_lists("ImageNet_LT", *_IMAGENET_LISTS),
        ),
    ),
    "places_lt": Benchmark(
        title="Places-LT",
        classes=365,
        class_order="as in the lists, which number the scene names in ascending order",
        sizes={"train": 62_500, "valid": 7_300, "test": 36_500},
        each={"valid": 20, "test": 100},
        largest=4980,
        smallest=5,
        shots={"<20": (131, 163, 71), "<=20": (131, 157, 77)},
        counts_sha256="50c3529becbfdca5cdc4048a8354c1312370d86de7f11ac75d99e7987aba9cea",
        sorted_sha256="195a1cb4a28288bd412248a5989f790cb90e0bd788c978be1837cfa8de6a7584",
        stats=IMAGENET_STATS,
        forms=(dict(zip(_PARTS, _PLACES_LISTS, strict=True)),),
        folders=("Places_LT", "Places_LT_v2"),
        burden="comes with the 1,839,960 pictures of Places365 that it is drawn from",
        sources=(
            Download(
                "training pictures of 256 pixels",
                _PLACES + "train_256_places365standard.tar",
                "24 GB",
                md5="53ca1c756c3d1e7809517cc47c5561c5",
                then="unpack in {root}",
            ),
            Download(
                "validation pictures of 256 pixels",
                _PLACES + "val_256.tar",
                "501 MB",
                md5="e27b17d8d44f4af9a78502beb927f808",
                then="unpack in {root}",
            ),
            *_lists("Places_LT", *_PLACES_LISTS),
        ),
    ),
    "inat2018": Benchmark(
        title="iNaturalist 2018",
        classes=8142,
        class_order="category ids, ascending",
        sizes={"train": 437_513, "test": 24_426},
        each={"test": 3},
        largest=1000,
        smallest=2,
        shots={"<20": (842, 4076, 3224), "<=20": (842, 3701, 3599)},
        counts_sha256="15490ddfe172c58cd927af79e69246707fc5eaf2e4e8da7e9f3325e6d00988a0",
        sorted_sha256="ad3f19ea981600a9e2567be208fb069aaa87516b38992a5516da78117cd4be40",
        stats=((0.466, 0.471, 0.380), (0.195, 0.194, 0.192)),
        forms=(
            {"train": "train2018.json", "test": "val2018.json"},
            {"train": "iNaturalist18_train.txt", "test": "iNaturalist18_val.txt"},
        ),
        folders=("iNaturalist18",),
        burden="is an archive of 120 GB, and about as much again unpacked",
        gigabytes=120,
        sources=(
            Download(
                "pictures",
                _INAT + "train_val2018.tar.gz",
                "120 GB",
                "b1c6952ce38f31868cc50ea72d066cc3",
                "unpack in {root}, which makes train_val2018/",
            ),
            Download(
                "training annotations",
                _INAT + "train2018.json.tar.gz",
                "26 MB",
                "bfa29d89d629cbf04d826a720c0a68b0",
                "unpack in {root}",
            ),
            Download(
                "validation annotations, the test part",
                _INAT + "val2018.json.tar.gz",
                "26 MB",
                "f2ed8bfe3e9901cdefceb4e53cd3775d",
                "unpack in {root}",
            ),
        ),
    ),
    "cifar10_lt": Benchmark(
        title="CIFAR-10",
        classes=10,
        class_order="CIFAR's own",
        sizes={"train": 50_000, "test": 10_000},
        each={"train": 5_000, "test": 1_000},
        sources=(
            Download(
                "pictures",
                _KRIZHEVSKY + "cifar-10-python.tar.gz",
                "163 MB",
                "c58f30108f718f92721af3b95e74349a",
                "unpack in {root}",
            ),
        ),
    ),
    "cifar100_lt": Benchmark(
        title="CIFAR-100",
        classes=100,
        class_order="CIFAR's own",
        sizes={"train": 50_000, "test": 10_000},
        each={"train": 500, "test": 100},
        sources=(
            Download(
                "pictures",
                _KRIZHEVSKY + "cifar-100-python.tar.gz",
                "161 MB",
                md5="eb9058c3a382ffc7106e4002c42a8d85",
                then="unpack in {root}",
            ),
        ),
    ),
    "tiny_imagenet_lt": Benchmark(
        title="Tiny-ImageNet",
        classes=200,
        class_order="WordNet ids, ascending",
        sizes={"train": 100_000, "test": 10_000},
        each={"train": 500, "test": 50},
        sources=(
            Download(
                "pictures",
                "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
                "about 248 MB",
                then="unpack in {root}",
            ),
        ),
    ),
}
# What `load_benchmark` reads.
LISTED = tuple(name for name, facts in BENCHMARKS.items() if facts.forms)


def counts_name(class_counts: Sequence[int] | np.ndarray) -> str:
    """Return the SHA-256 of class counts, written in decimal with commas between, in hexadecimal.

    Args:
        class_counts: Training images per class, in the order of the classes.
    """
    return hashlib.sha256(",".join(str(int(n)) for n in class_counts).encode()).hexdigest()


def _check_name(name: str) -> None:
    if name == "digits_lt":
        raise UserError(
            "digits_lt comes with scikit-learn and needs no files: there is nothing to fetch or to "
            "check; `ltlearn recipe digits_lt` runs as it is."
        )
    check_choice("benchmark", name, BENCHMARKS)


# ---------------------------------------------------------------- reading


def load_benchmark(
    name: str,
    root: str | Path,
    part: str,
    follow_links: bool = False,
    skip_bad: bool = False,
) -> tuple[ImageSet, list[str]]:
    """List the pictures of one part of ImageNet-LT, Places-LT or iNaturalist 2018.

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
    """List the pictures of ImageNet-LT, Places-LT or iNaturalist 2018.

    The published lists, or annotations, lie in `root` or in a folder of their published name inside
    it, and the pictures beside them or in `root`. No picture is opened. Counts that are not the
    published ones are only warned of; `check_benchmark` compares all there is.

    Args:
        name: One of `LISTED`.
        root: The folder of the set, or the one that holds it.
        parts: Some of "train", "valid" and "test"; None takes all there are. iNaturalist 2018 has
            no "valid": its validation pictures are the test part, as the labels of its own test
            pictures are not public.
        follow_links: Whether a link inside the folder may lead out of it.
        skip_bad: Leave out the pictures that are not there, with a warning, instead of stopping.

    Returns:
        The parts, and the names of the classes, which all parts have in one order: that of
        `Benchmark.class_order`.

    Raises:
        UserError: If the set has no such part, a file that lists one or a picture is not there, or
            a line or an entry cannot be used; the message says which.
    """
    check_choice("benchmark", name, LISTED)
    facts = BENCHMARKS[name]
    parts = tuple(facts.sizes) if parts is None else parts
    for part in parts:
        check_choice("part", part, facts.sizes)
    copy = _Copy(name, Path(root))
    sets = {part: _load(copy, part, follow_links, skip_bad) for part in parts}
    return sets, copy.classes


def _load(copy: "_Copy", part: str, follow_links: bool, skip_bad: bool) -> ImageSet:
    listing = copy.read(part)
    data, missing = copy.find(listing, follow_links)
    if part == "train":
        counts = np.bincount(listing.targets, minlength=len(copy.classes))
        if counts_name(counts) != copy.facts.counts_sha256:
            _log.warning(
                "%s does not have the published counts of %s: %d pictures of %d classes.",
                listing.file, copy.facts.title, len(listing), len(copy.classes),
            )  # fmt: skip
    if not len(missing):
        return data
    lost = (
        f"{len(missing):,} of the {len(data):,} pictures that {listing.file} lists are not under "
        f"{copy.base} ({_first(data, missing)})"
    )
    if not skip_bad or len(missing) == len(data):
        raise UserError(f"{lost}; {_pointer(copy.name, copy.root)}.")
    _log.warning("left out: %s", lost)
    kept = data.take(np.setdiff1d(np.arange(len(data)), missing))
    kept.skipped = [str(copy.base / data.paths[i]) for i in missing]
    return kept


def _first(data: ImageSet, missing: np.ndarray) -> str:
    """Name the first of those that are missing."""
    names = [data.paths[i] for i in missing[:_SHOWN]]
    return ", ".join([*names, "..."] if len(missing) > _SHOWN else names)


def _pointer(name: str, root: Path) -> str:
    return f"`ltlearn data {name} --root {shlex.quote(str(root))}` says what to fetch"


class _Copy:
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
        """Read what says which pictures a part has, and the classes."""
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
                    f"{_pointer(self.name, self.root)}."
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
        with_pictures = (p for p in self.places if any((p / top).is_dir() for top in tops))
        return next(with_pictures, self.root)

    def find(self, listing: Listing, follow_links: bool) -> tuple[ImageSet, np.ndarray]:
        """Look for the pictures."""
        candidates = None
        if self.name == "places_lt":
            candidates = _PlacesFolders(self.base, self.classes)
        elif self.name == "inat2018":
            candidates = _inat_folders
        return find_pictures(listing, self.base, candidates, follow_links)


def _last_folder(folder: str) -> str:
    return folder.rpartition("/")[2]


# Folders of the small pictures first. torchvision renames the training ones.
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
    """Where a picture of Places365 may lie, whichever archive it came with.

    One archive has train/<scene>/ and val/<scene>/, with a hyphen where a scene has a kind
    (arena-hockey). The other has data_256/a/arena/hockey/, and all validation pictures in val_256/.
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


# ---------------------------------------------------------------- checking


@dataclass(frozen=True)
class Finding:
    """One thing that was checked."""

    ok: bool
    text: str


@dataclass
class BenchmarkReport:
    """What a copy on disk has and lacks; `str` of it is for people."""

    name: str
    title: str
    root: str
    findings: list[Finding] = field(default_factory=list)
    # Per part: how many pictures are not there, and the paths of the first of them.
    missing: dict[str, tuple[int, list[str]]] = field(default_factory=dict)
    absent: bool = False  # nothing of it can be read
    instructions: str = ""  # where a file or a picture is missing: how to get it

    @property
    def ok(self) -> bool:
        """Whether all is as published."""
        return all(finding.ok for finding in self.findings)

    def to_dict(self) -> dict:
        """Return all of it, ready for JSON."""
        return {**asdict(self), "ok": self.ok}

    def add(self, ok: bool, text: str) -> None:
        """Note one thing that was checked."""
        self.findings.append(Finding(bool(ok), text))

    def __str__(self) -> str:
        verdict = "as published" if self.ok else "not as published"
        if self.absent:
            verdict = "not there"
        lines = [f"{self.title} in {self.root}: {verdict}"]
        lines += [f"  {'ok  ' if f.ok else 'FAIL'}  {f.text}" for f in self.findings]
        return "\n".join([*lines, self.instructions] if self.instructions else lines)


def check_benchmark(name: str, root: str | Path, follow_links: bool = False) -> BenchmarkReport:
    """Compare a copy on disk with what is published: files, pictures, counts.

    Of the pictures only the names are looked at. For "cifar10_lt", "cifar100_lt" and
    "tiny_imagenet_lt" it is the balanced set that is checked, of which a long-tailed one is cut.

    Args:
        name: A name of `BENCHMARKS`.
        root: The folder of the set, or the one that holds it.
        follow_links: Whether a link inside the folder may lead out of it.

    Raises:
        UserError: If the name is unknown, or of a set that needs no files.
    """
    _check_name(name)
    facts = BENCHMARKS[name]
    report = BenchmarkReport(name, facts.title, str(root))
    parts = _check_listed if facts.forms else _check_balanced
    targets = parts(name, Path(root).expanduser(), report, follow_links)
    report.absent = not targets
    for part, labels in targets.items():
        _check_counts(facts, part, labels, report)
    if report.missing or len(targets) < len(facts.sizes):
        report.instructions = how_to_get(name, root)
    return report


def _check_listed(
    name: str, root: Path, report: BenchmarkReport, follow_links: bool
) -> dict[str, np.ndarray]:
    """Read all parts, note what is missing, and return their labels."""
    copy, targets, paths = _Copy(name, root), {}, {}
    for part in copy.facts.sizes:
        if part not in copy.files:
            names = " or ".join(form[part] for form in copy.facts.forms)
            report.add(False, f"{part}: there is no {names} in {root}")
            continue
        try:
            listing = copy.read(part)
        except UserError as e:
            # Without the training list there are no classes; what it lacks is said already.
            if part == "train" or "train" in targets:
                report.add(False, f"{part}: {e}")
            continue
        targets[part] = listing.targets
        try:
            data, missing = copy.find(listing, follow_links)
        except UserError as e:
            report.add(False, f"{part}: {e}")
            continue
        paths[part] = data.paths
        if len(missing):
            report.missing[part] = len(missing), [data.paths[i] for i in missing[:_SHOWN]]
            report.add(
                False,
                f"{part}: {len(missing):,} of {len(data):,} pictures are not under {copy.base} "
                f"({_first(data, missing)})",
            )
        else:
            report.add(True, f"{part}: all {len(data):,} listed pictures are there")
    seen: dict[str, str] = {}
    for part, found in paths.items():
        shared = [path for path in found if path in seen]
        if shared:
            report.add(
                False,
                f"{part}: {len(shared):,} pictures are in {seen[shared[0]]} too, as {shared[0]}",
            )
        seen.update(dict.fromkeys(found, part))
    return targets


def _check_balanced(
    name: str, root: Path, report: BenchmarkReport, _: bool
) -> dict[str, np.ndarray]:
    """Read both parts of a balanced set, and return their labels."""
    targets = {}
    for part in BENCHMARKS[name].sizes:
        try:
            if name == "tiny_imagenet_lt":
                data, _ = load_tiny_imagenet(root, part)
            else:
                data, _ = load_cifar(BENCHMARKS[name].classes, root, part)
        except UserError as e:
            report.add(False, f"{part}: {e}")
            continue
        targets[part] = data.targets
    return targets


def _check_counts(
    facts: Benchmark, part: str, targets: np.ndarray, report: BenchmarkReport
) -> None:
    def compare(what: str, got, published) -> None:
        shown = f"{part}: {got} {what}"
        report.add(got == published, shown if got == published else f"{shown}, not {published}")

    counts = np.bincount(targets, minlength=facts.classes)
    most = facts.each.get(part)
    # A copy with the first pictures of each class gives the same cuts as the whole set.
    if part == "train" and most and 0 < counts.min() < most >= counts.max():
        report.add(
            True,
            f"{part}: a part of the set, {counts.max():,} to {counts.min():,} pictures of each "
            f"class, of {most:,}",
        )
        return
    compare("pictures", f"{len(targets):,}", f"{facts.sizes[part]:,}")
    compare("classes with pictures", f"{(counts > 0).sum():,}", f"{facts.classes:,}")
    if most:
        got = f"{counts.min():,}" if counts.min() == counts.max() else "differing numbers of"
        compare("pictures of each class", got, f"{most:,}")
        return
    compare(
        "pictures of the largest and smallest class",
        f"{counts.max():,} and {counts.min():,}",
        f"{facts.largest:,} and {facts.smallest:,}",
    )
    groups = shot_groups(counts, facts.few).values()
    compare(
        f"many-, medium- and few-shot classes (few {facts.few})",
        "/".join(f"{int(group.sum()):,}" for group in groups),
        "/".join(f"{n:,}" for n in facts.shots[facts.few]),
    )
    if counts_name(counts) == facts.counts_sha256:
        text = "the count of every class is the published one"
    elif counts_name(np.sort(counts)) == facts.sorted_sha256:
        text = f"the counts are those published, but of other classes; order: {facts.class_order}"
    else:
        text = "the counts of the classes are not those published"
    report.add(counts_name(counts) == facts.counts_sha256, f"{part}: {text}")


# ---------------------------------------------------------------- fetching


def how_to_get(name: str, root: str | Path) -> str:
    """Say what to fetch for a benchmark, line by line.

    Args:
        name: A name of `BENCHMARKS`.
        root: Where it is to lie.

    Raises:
        UserError: If the name is unknown, or of a set that needs no files.
    """
    _check_name(name)
    facts = BENCHMARKS[name]
    lines = [f"How to get {facts.title} into {root}:"]
    lines += [f"  {source}".replace("{root}", str(root)) for source in facts.sources]
    return "\n".join(lines)


def download_benchmark(
    name: str, root: str | Path, confirm: Callable[[str], bool] | None = None
) -> BenchmarkReport:
    """Fetch what torchvision can fetch, and check it.

    Args:
        name: A name of `BENCHMARKS`: "cifar10_lt", "cifar100_lt", "places_lt" or "inat2018".
        root: The folder to put it in.
        confirm: Is asked, with a sentence on the size, before a large set; must return True. None
            refuses those.

    Raises:
        UserError: If it has to be fetched by hand (the message says how), is large and not
            confirmed, does not fit on the disk, or cannot be reached.
    """
    _check_name(name)
    facts, root = BENCHMARKS[name], Path(root).expanduser()
    if name not in _FETCH:
        raise UserError(
            f"{facts.title} cannot be fetched by a program: {_BY_HAND[name]}; "
            f"{_pointer(name, root)}."
        )
    if facts.burden:
        _confirm(facts, root, confirm)
    try:
        root.mkdir(parents=True, exist_ok=True)
        _FETCH[name](root)
    except (OSError, RuntimeError, EOFError) as e:  # what urllib, tarfile and torchvision raise
        raise UserError(
            f"{facts.title} could not be fetched ({e}); try again, or by hand: "
            f"{_pointer(name, root)}."
        ) from None
    return check_benchmark(name, root)


_BY_HAND = {
    "imagenet_lt": "its pictures are for those who are registered at image-net.org",
    "tiny_imagenet_lt": "neither torchvision nor fastai has it",
}


def _confirm(facts: Benchmark, root: Path, confirm: Callable[[str], bool] | None) -> None:
    """Raise unless a large set has room and is wanted."""
    existing = next(p for p in (root, *root.absolute().parents) if p.exists())
    free = shutil.disk_usage(existing).free / 1e9
    # The archive stays while it is unpacked.
    if free < 2 * facts.gigabytes:
        raise UserError(
            f"{facts.title} {facts.burden}, but {root} has {free:.0f} GB free; give a folder on a "
            "larger disk."
        )
    if confirm is None or not confirm(f"{facts.title} {facts.burden}. Fetch it into {root}?"):
        raise UserError(
            f"{facts.title} was not fetched, as nobody confirmed it: it {facts.burden}."
        )


def _fetch_cifar(root: Path, name: str) -> None:
    import torchvision.datasets

    for train in (True, False):
        getattr(torchvision.datasets, name)(str(root), train=train, download=True)


def _fetch_places(root: Path) -> None:
    from torchvision.datasets import Places365
    from torchvision.datasets.utils import download_url

    for source in BENCHMARKS["places_lt"].sources:
        if source.url.startswith(_LISTS):
            download_url(source.url, str(root))
    for split in ("train-standard", "val"):
        Places365(str(root), split=split, small=True, download=True)


def _fetch_inat(root: Path) -> None:
    from torchvision.datasets import INaturalist
    from torchvision.datasets.utils import download_and_extract_archive

    for source in BENCHMARKS["inat2018"].sources[1:]:
        download_and_extract_archive(source.url, str(root), md5=source.md5)
    if not (root / "train_val2018").is_dir():
        INaturalist(str(root), version="2018", download=True)


_FETCH: dict[str, Callable[[Path], None]] = {
    "cifar10_lt": lambda root: _fetch_cifar(root, "CIFAR10"),
    "cifar100_lt": lambda root: _fetch_cifar(root, "CIFAR100"),
    "places_lt": _fetch_places,
    "inat2018": _fetch_inat,
}
