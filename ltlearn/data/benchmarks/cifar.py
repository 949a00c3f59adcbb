"""CIFAR-10 and CIFAR-100: their facts, and how they are read."""

import pickle
from pathlib import Path

import numpy as np

from ltlearn.data.benchmarks.facts import BalancedSet, Download
from ltlearn.data.images import ImageSet
from ltlearn.data.readers.folders import find_class_folders, list_class_folders
from ltlearn.errors import UserError, spell

__all__ = ["CIFAR10_LT", "CIFAR100_LT", "CIFAR_STATS", "load_cifar"]

CIFAR_STATS = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
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


# What an array in a pickle calls, by its names in NumPy 1 and 2.
_ARRAY_PARTS = {
    ("numpy.core.multiarray", "_reconstruct"): "numpy._core.multiarray",
    ("numpy._core.multiarray", "_reconstruct"): "numpy._core.multiarray",
    ("numpy.core.numeric", "_frombuffer"): "numpy._core.numeric",
    ("numpy._core.numeric", "_frombuffer"): "numpy._core.numeric",
    ("numpy", "ndarray"): "numpy",
    ("numpy", "dtype"): "numpy",
    ("_codecs", "encode"): "_codecs",
}


class _ArrayUnpickler(pickle.Unpickler):
    """Reads arrays, and refuses anything else in a pickle, so that opening a file runs no code."""

    def find_class(self, module: str, name: str):
        """Return a function or class that an array needs; raise for any other."""
        if (module, name) not in _ARRAY_PARTS:
            raise pickle.UnpicklingError(f"{module}.{name} must not be in a CIFAR file")
        return super().find_class(_ARRAY_PARTS[module, name], name)


def _cifar_pickles(folder: Path, facts: dict, part: str) -> tuple[ImageSet, list[str]]:
    def unpickle(name: str) -> dict:
        with (folder / name).open("rb") as file:
            return _ArrayUnpickler(file, encoding="latin1").load()

    pixels, targets = [], []
    try:
        name = facts["meta"]
        classes = list(unpickle(name)[facts["names"]])
        for name in facts[part]:
            batch = unpickle(name)
            rows = np.asarray(batch["data"], dtype=np.uint8).reshape(-1, 3, 32, 32)
            labels = np.asarray(batch[facts["labels"]], dtype=np.int64)
            if labels.shape != rows.shape[:1] or set(labels.tolist()) - set(range(len(classes))):
                raise ValueError("its labels do not fit its images or the class names")
            pixels.append(rows.transpose(0, 2, 3, 1))
            targets.append(labels)
    except Exception as e:  # a broken pickle can raise anything
        reason = f"no {e}" if isinstance(e, KeyError) else getattr(e, "strerror", None) or e
        raise UserError(
            f"cannot read {folder / name} as a CIFAR file ({reason}); fetch the archive again."
        ) from None
    images = np.ascontiguousarray(np.concatenate(pixels))
    return ImageSet(np.concatenate(targets), images=images), classes


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
