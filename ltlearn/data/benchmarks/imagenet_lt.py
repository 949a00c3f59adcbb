"""ImageNet-LT: its facts."""

from ltlearn.data.benchmarks.facts import IMAGENET_STATS, Download, ListedSet, list_downloads

__all__ = ["IMAGENET_LT"]

_LISTS = {part: f"ImageNet_LT_{name}.txt" for part, name in
          (("train", "train"), ("valid", "val"), ("test", "test"))}  # fmt: skip
_PAGE = "https://image-net.org/challenges/LSVRC/2012/2012-downloads.php"


def _last_folder(folder: str) -> str:
    return folder.rpartition("/")[2]


IMAGENET_LT = ListedSet(
    name="imagenet_lt",
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
    transform="resized_crop_flip_jitter",
    forms=(_LISTS,),
    folders=("ImageNet_LT",),
    class_of=_last_folder,
    by_hand="its images are for those who are registered at image-net.org",
    sources=(
        Download(
            "ILSVRC2012_img_train.tar",
            _PAGE,
            "138 GB",
            md5="1d675b47d978889d74fa0da5fadfb00e",
            then="for those who are registered there",
        ),
        Download("ILSVRC2012_img_val.tar", _PAGE, "6.3 GB", md5="29b22e2961454d5413ddabcf34fc5622"),
        Download(
            "ILSVRC2012_devkit_t12.tar.gz",
            _PAGE,
            md5="fa75699e90414af021442c21a62c3abf",
            then="with the three files in {root}, this makes train/<class>/ and val/<class>/: "
            "`python -c \"from torchvision.datasets import ImageNet; ImageNet('{root}', "
            "'train'); ImageNet('{root}', 'val')\"`",
        ),
        *list_downloads("ImageNet_LT", *_LISTS.values()),
    ),
)
