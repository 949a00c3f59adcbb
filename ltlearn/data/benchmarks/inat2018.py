"""iNaturalist 2018: its facts, and where its images may be."""

from collections.abc import Callable, Sequence
from pathlib import Path

from ltlearn.data.benchmarks.facts import Download, ListedSet

__all__ = ["INAT2018"]

_URL = "https://ml-inat-competition-datasets.s3.amazonaws.com/2018/"
_TOP = "train_val2018"  # the top folder in the archive
_TORCHVISION_TOP = "2018"  # the name that torchvision gives to that folder
_ANNOTATIONS = (
    Download(
        "training annotations",
        _URL + "train2018.json.tar.gz",
        "26 MB",
        "bfa29d89d629cbf04d826a720c0a68b0",
        "unpack in {root}",
    ),
    Download(
        "validation annotations, the test part",
        _URL + "val2018.json.tar.gz",
        "26 MB",
        "f2ed8bfe3e9901cdefceb4e53cd3775d",
        "unpack in {root}",
    ),
)


def _last_folder(folder: str) -> str:
    return folder.rpartition("/")[2]


def _image_folders(base: Path, classes: Sequence[str]) -> Callable[[str, int], list[str]]:
    """Return a function that lists the folder in the archive and the one of torchvision."""

    def folders(folder: str, _: int) -> list[str]:
        top, _, rest = folder.partition("/")
        return [folder, f"{_TORCHVISION_TOP}/{rest}"] if top == _TOP else [folder]

    return folders


def _fetch(root: Path) -> None:
    from torchvision.datasets import INaturalist
    from torchvision.datasets.utils import download_and_extract_archive

    for source in _ANNOTATIONS:
        download_and_extract_archive(source.url, str(root), md5=source.md5)
    if not (root / _TOP).is_dir():
        INaturalist(str(root), version="2018", download=True)


INAT2018 = ListedSet(
    name="inat2018",
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
    transform="resized_crop_flip",
    forms=(
        {"train": "train2018.json", "test": "val2018.json"},
        {"train": "iNaturalist18_train.txt", "test": "iNaturalist18_val.txt"},
    ),
    folders=("iNaturalist18",),
    class_of=_last_folder,
    image_tops=(_TORCHVISION_TOP,),
    image_folders=_image_folders,
    fetch=_fetch,
    burden="is an archive of 120 GB, and about as much again unpacked",
    gigabytes=120,
    sources=(
        Download(
            "images",
            _URL + "train_val2018.tar.gz",
            "120 GB",
            "b1c6952ce38f31868cc50ea72d066cc3",
            "unpack in {root}, which makes train_val2018/",
        ),
        *_ANNOTATIONS,
    ),
)
