"""CIFAR-10 and CIFAR-100: their facts, and how they are read."""

from pathlib import Path

import numpy as np

from ltlearn.data.benchmarks.cifar_pickle import read_pickle
from ltlearn.data.benchmarks.facts import BalancedSet, Download
from ltlearn.data.images import ImageSet
from ltlearn.data.opening import check_regular
from ltlearn.data.readers.folders import find_class_folders, list_class_folders
from ltlearn.errors import UserError, spell
from ltlearn.utils.system_errors import reason_of

__all__ = ["CIFAR10_LT", "CIFAR100_LT", "CIFAR_STATS", "load_cifar"]

CIFAR_STATS = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
_MAX_BYTES = 300_000_000  # the largest file, the training images of CIFAR-100, has 155 MB
_CIFAR = {
    10: {
        "folder": "cifar10",
        "batches": "cifar-10-batches-py",
        "url": "URLs.CIFAR",
        "tv": "CIFAR10",
        "train": [f"data_batch_{i}" for i in range(1, 6)],
        "test": ["test_batch"],
        "meta": "batches.meta",
        "labels": "labels",
        "names": "label_names",
    },
    100: {
        "folder": "cifar100",
        "batches": "cifar-100-python",
        "url": "URLs.CIFAR_100",
        "tv": "CIFAR100",
        "train": ["train"],
        "test": ["test"],
        "meta": "meta",
        "labels": "fine_labels",
        "names": "fine_label_names",
    },
}


def load_cifar(num_classes: int, data_path: Path, part: str) -> tuple[ImageSet, list[str]]:
    """Find CIFAR-10 or CIFAR-100, and list its images in the order of the original files.

    Args:
        num_classes: 10 or 100.
        data_path: The set's own folder, or the folder that contains it. Its layout is the class
            folders of fastai's `untar_data(URLs.CIFAR)` (any image format; the number in a file's
            name gives the order) or torchvision's pickles.
        part: "train" or "test".

    Raises:
        UserError: If it is missing. The message shows the commands that fetch it.
    """
    facts = _CIFAR[num_classes]
    for base in (data_path, data_path / facts["folder"], data_path / facts["batches"]):
        if (base / facts["train"][0]).is_file():
            return _cifar_pickles(base, facts, part)
        if (base / part).is_dir():
            return _cifar_folders(base / part, num_classes)
    raise UserError(
        f"CIFAR-{num_classes} is not under {data_path} (looked for {part}/<class>/, "
        f"{facts['folder']}/{part}/<class>/ and {facts['batches']}/). Fetch it with "
        '`python -c "from fastai.data.external import untar_data, URLs; '
        f'print(untar_data({facts["url"]}))"` and give the folder '
        f"that it prints as {spell('data_path')}, or with "
        f'`python -c "import torchvision; torchvision.datasets.{facts["tv"]}('
        f"'{data_path}', download=True)\"`."
    )


def _cifar_folders(folder: Path, num_classes: int) -> tuple[ImageSet, list[str]]:
    folders = find_class_folders(folder)
    if num_classes == 100 and len(folders) == 20:
        # fastai's archive has the 20 superclasses above the 100 classes.
        inner = sorted((p for f in folders for p in find_class_folders(f)), key=lambda p: p.name)
        lists = [list_class_folders(f)[0] for f in folders]
        names = [p.name for p in inner]
        index = {name: c for c, name in enumerate(names)}
        paths = [
            f"{f.name}/{p}" for f, part in zip(folders, lists, strict=True) for p in part.paths
        ]
        targets = np.array([index[Path(p).parts[1]] for p in paths])
        order = np.argsort(targets, kind="stable")
        images = ImageSet(targets[order], paths=[paths[i] for i in order], root=folder)
    else:
        images, names = list_class_folders(folder)
    if len(names) != num_classes:
        raise UserError(
            f"{folder} has {len(names)} class folders; CIFAR-{num_classes} has {num_classes}."
        )
    return images, names


def _cifar_pickles(folder: Path, facts: dict, part: str) -> tuple[ImageSet, list[str]]:
    pixels, targets, name = [], [], facts["meta"]
    try:
        classes = _read_file(folder / name)[facts["names"]]
        if not _is_list_of(str, classes):
            raise ValueError("its class names are no list of text")
        for name in facts[part]:
            batch = _read_file(folder / name)
            rows, labels = batch["data"], batch[facts["labels"]]
            if not isinstance(rows, np.ndarray):
                raise ValueError("its data is no array")
            rows = rows.reshape(-1, 3, 32, 32)
            # Lists of lists can share their parts, and NumPy would then take for ever.
            fits = _is_list_of(int, labels) and len(labels) == len(rows)
            if not fits or set(labels) - set(range(len(classes))):
                raise ValueError("its labels do not fit its images or the class names")
            pixels.append(rows.transpose(0, 2, 3, 1))
            targets.append(np.array(labels, dtype=np.int64))
    except (OSError, ValueError, TypeError, KeyError) as e:
        reason = f"no {e}" if isinstance(e, KeyError) else reason_of(e)
        raise UserError(
            f"cannot read {folder / name} as a CIFAR file ({reason}); fetch the archive again."
        ) from None
    images = np.ascontiguousarray(np.concatenate(pixels))
    return ImageSet(np.concatenate(targets), images=images), classes


def _read_file(path: Path) -> dict:
    check_regular(path)
    if path.stat().st_size > _MAX_BYTES:
        raise ValueError(f"it has more than {_MAX_BYTES:,} bytes")
    return read_pickle(path.read_bytes())


def _is_list_of(kind: type, values: object) -> bool:
    return isinstance(values, list) and all(type(value) is kind for value in values)


def _fetch(root: Path, name: str) -> None:
    import torchvision.datasets

    for train in (True, False):
        getattr(torchvision.datasets, name)(str(root), train=train, download=True)


def _row(num_classes: int, size: str, md5: str) -> BalancedSet:
    def load(data_path: Path, part: str) -> tuple[ImageSet, list[str]]:
        return load_cifar(num_classes, data_path, part)

    return BalancedSet(
        name=f"cifar{num_classes}_lt",
        title=f"CIFAR-{num_classes}",
        classes=num_classes,
        class_order="CIFAR's own",
        sizes={"train": 50_000, "test": 10_000},
        each={"train": 50_000 // num_classes, "test": 10_000 // num_classes},
        largest=50_000 // num_classes,
        stats=CIFAR_STATS,
        transform="crop_flip",
        load=load,
        sides=(32,),
        pad=4,
        fetch=lambda root: _fetch(root, f"CIFAR{num_classes}"),
        sources=(
            Download(
                "images",
                f"https://www.cs.toronto.edu/~kriz/cifar-{num_classes}-python.tar.gz",
                size,
                md5,
                "unpack in {root}",
            ),
        ),
    )


CIFAR10_LT = _row(10, "163 MB", "c58f30108f718f92721af3b95e74349a")
CIFAR100_LT = _row(100, "161 MB", "eb9058c3a382ffc7106e4002c42a8d85")
