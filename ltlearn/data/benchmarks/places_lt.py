"""Places-LT: its facts, and where its images may be."""

from collections.abc import Sequence
from pathlib import Path

from ltlearn.data.benchmarks.facts import IMAGENET_STATS, Download, ListedSet, list_downloads

__all__ = ["PLACES_LT"]

_LISTS = {part: f"Places_LT_{name}.txt" for part, name in
          (("train", "train"), ("valid", "val"), ("test", "test"))}  # fmt: skip
_URL = "http://data.csail.mit.edu/places/places365/"
# Folders of the small images come first. torchvision renames the training folders.
_TRAIN_TOPS = ("data_256", "data_256_standard", "data_large", "data_large_standard")
_VALID_TOPS = ("val_256", "val_large")


def _scene_of(folder: str) -> str | None:
    """Return the scene of a folder of Places365, spelled as in the archive without nesting."""
    top, _, rest = folder.partition("/")
    if top in _TRAIN_TOPS:
        rest = rest.partition("/")[2]  # the scenes are below their first letter
    return rest.replace("/", "-") or None


class _PlacesFolders:
    """The folders where an image of Places365 may be, in any of its archives.

    One archive has train/<scene>/ and val/<scene>/, with a hyphen where a scene has a kind
    (arena-hockey). The other has data_256/a/arena/hockey/, and all validation images in val_256/.

    Args:
        base: Folder of the images.
        classes: The scenes.
    """

    def __init__(self, base: Path, classes: Sequence[str]):
        self.classes = classes
        self.train = [top for top in _TRAIN_TOPS if (base / top).is_dir()]
        self.valid = [top for top in _VALID_TOPS if (base / top).is_dir()]

    def __call__(self, folder: str, label: int) -> list[str]:
        scene = self.classes[label]
        if folder.split("/")[0] in ("val", *_VALID_TOPS):
            return [folder, f"val/{scene}", *self.valid]
        nested = scene.replace("-", "/")
        inner = [f"{top}/{scene[0]}/{s}" for top in self.train for s in (nested, scene)]
        return [folder, f"train/{scene}", *inner]


_LIST_FILES = list_downloads("Places_LT", *_LISTS.values())


def _fetch(root: Path) -> None:
    from torchvision.datasets import Places365
    from torchvision.datasets.utils import download_url

    for source in _LIST_FILES:
        download_url(source.url, str(root))
    for split in ("train-standard", "val"):
        Places365(str(root), split=split, small=True, download=True)


PLACES_LT = ListedSet(
    name="places_lt",
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
    transform="resized_crop_flip_jitter",
    forms=(_LISTS,),
    folders=("Places_LT", "Places_LT_v2"),
    class_of=_scene_of,
    image_tops=("train", *_TRAIN_TOPS),
    image_folders=_PlacesFolders,
    fetch=_fetch,
    burden="comes with the 1,839,960 images of Places365 that it is drawn from",
    sources=(
        Download(
            "training images of 256 pixels",
            _URL + "train_256_places365standard.tar",
            "24 GB",
            md5="53ca1c756c3d1e7809517cc47c5561c5",
            then="unpack in {root}",
        ),
        Download(
            "validation images of 256 pixels",
            _URL + "val_256.tar",
            "501 MB",
            md5="e27b17d8d44f4af9a78502beb927f808",
            then="unpack in {root}",
        ),
        *_LIST_FILES,
    ),
)
