"""The facts of each benchmark: classes, counts, files and where to get them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ltlearn.errors import UserError, check_choice

__all__ = [
    "MAX_NAMED_FILES",
    "Download",
    "Benchmark",
    "LIST_URLS",
    "BENCHMARKS",
    "LISTED",
    "counts_name",
    "check_benchmark_name",
]

MAX_NAMED_FILES = 5  # missing files that a report names


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
    sizes: dict[str, int]  # images of each part
    # Images of every class, in the parts that are balanced.
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
LIST_URLS = (
    "https://raw.githubusercontent.com/facebookresearch/classifier-balancing/"
    "22370c64141cc662f62ead89447c838c4a7977b5/data/"
)
_PLACES = "http://data.csail.mit.edu/places/places365/"
_INAT = "https://ml-inat-competition-datasets.s3.amazonaws.com/2018/"
_KRIZHEVSKY = "https://www.cs.toronto.edu/~kriz/"


def _lists(folder: str, *names: str) -> tuple[Download, ...]:
    return tuple(
        Download(f"the list {n}", f"{LIST_URLS}{folder}/{n}", then="into {root}") for n in names
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
        burden="comes with the 1,839,960 images of Places365 that it is drawn from",
        sources=(
            Download(
                "training images of 256 pixels",
                _PLACES + "train_256_places365standard.tar",
                "24 GB",
                md5="53ca1c756c3d1e7809517cc47c5561c5",
                then="unpack in {root}",
            ),
            Download(
                "validation images of 256 pixels",
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
                "images",
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
                "images",
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
                "images",
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
                "images",
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


def check_benchmark_name(name: str) -> None:
    """Raise a `UserError` if there is no such benchmark."""
    if name == "digits_lt":
        raise UserError(
            "digits_lt comes with scikit-learn and needs no files: there is nothing to fetch or to "
            "check; `ltlearn recipe digits_lt` runs as it is."
        )
    check_choice("benchmark", name, BENCHMARKS)
