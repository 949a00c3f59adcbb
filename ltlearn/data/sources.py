"""Where pictures come from: class folders, CIFAR in both of its layouts, scikit-learn's digits.

Everything here ends in an `ImageSet`: targets, and either the pixels or the paths.
"""

import io
import logging
import os
import pickle
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ltlearn.data.splits import fingerprint
from ltlearn.errors import UserError
from ltlearn.progress import track

__all__ = ["ImageSet", "find_class_folders", "list_class_folders", "load_cifar", "load_digits_pictures", "read_image"]

EXTENSIONS = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"}

_log = logging.getLogger("ltlearn")


@dataclass
class ImageSet:
    """Labelled pictures, in memory (`images`) or on disk (`paths`, relative to `root`)."""

    targets: np.ndarray
    images: np.ndarray | None = None  # (N, H, W, 3) uint8
    paths: list[str] | None = None
    root: Path | None = None
    skipped: list[str] = field(default_factory=list)  # unreadable pictures that were left out

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, index: np.ndarray) -> "ImageSet":
        """Return the pictures at `index`, in that order."""
        return ImageSet(
            self.targets[index],
            None if self.images is None else self.images[index],
            None if self.paths is None else [self.paths[i] for i in index],
            self.root,
            self.skipped,
        )

    def fingerprint(self) -> str:
        """Name the content: pixels where they are in memory, relative paths and file sizes otherwise."""
        if self.images is not None:
            contents = (image.tobytes() for image in self.images)
        else:
            contents = (f"{p}\0{os.path.getsize(self.root / p)}".encode() for p in self.paths)
        return fingerprint(contents, self.targets)

    def load(self, size: int | None, skip_bad: bool = False, description: str = "reading pictures") -> "ImageSet":
        """Read all the pictures into memory, each resized to `size` x `size` (None: all have one size already).

        Raises:
            UserError: If a picture cannot be read (named; with `skip_bad` it is left out and counted), or
                the sizes differ and `size` is None.
        """
        if self.images is not None:
            return self

        def read(path: str) -> np.ndarray | None:
            try:
                return read_image(self.root / path, size)
            except UserError as e:
                if not skip_bad:
                    raise
                _log.warning("left out: %s", e)
                return None

        with ThreadPoolExecutor(max(2, min(8, os.cpu_count() or 2))) as pool:
            loaded = list(track(pool.map(read, self.paths), len(self.paths), description))
        good = np.array([i for i, image in enumerate(loaded) if image is not None], dtype=np.int64)
        skipped = [p for p, image in zip(self.paths, loaded, strict=True) if image is None]
        loaded = [image for image in loaded if image is not None]
        if not loaded:
            raise UserError(f"no picture under {self.root} can be read.")
        odd = next((i for i, image in enumerate(loaded) if image.shape != loaded[0].shape), None)
        if odd is not None:
            h, w = loaded[odd].shape[:2]
            raise UserError(
                f"{self.root / self.paths[good[odd]]} is {w} x {h} pixels, others are not; give a size to resize all to."
            )
        kept = self.take(good)
        kept.images, kept.skipped = np.stack(loaded), self.skipped + skipped
        return kept

    def without_bad(self) -> "ImageSet":
        """Leave out, with a warning, the pictures on disk that cannot be read."""

        def good(path: str) -> bool:
            try:
                read_image(self.root / path)
            except UserError as e:
                _log.warning("left out: %s", e)
                return False
            return True

        with ThreadPoolExecutor(max(2, min(8, os.cpu_count() or 2))) as pool:
            mask = list(track(pool.map(good, self.paths), len(self.paths), "checking pictures"))
        kept = self.take(np.flatnonzero(mask))
        kept.skipped = self.skipped + [p for p, ok in zip(self.paths, mask, strict=True) if not ok]
        return kept


def read_image(path: Path, size: int | None = None) -> np.ndarray:
    """Read a picture as (H, W, 3) uint8 RGB, upright; greyscale, palette and CMYK are converted.

    Raises:
        UserError: If it is missing, truncated or no picture; the message names it.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            image = ImageOps.exif_transpose(image).convert("RGB")
            if size is not None and image.size != (size, size):
                image = image.resize((size, size), Image.Resampling.BILINEAR)
            return np.array(image)
    except FileNotFoundError:
        raise UserError(f"the picture {path} does not exist.") from None
    except Exception as e:  # Pillow raises OSError, SyntaxError, ValueError, DecompressionBombError, ...
        reason = "not a picture Pillow can read" if type(e).__name__ == "UnidentifiedImageError" else str(e)
        raise UserError(
            f"cannot read the picture {path} ({reason}); repair or remove it, or leave such pictures out with "
            "--skip-bad (skip_bad=True)."
        ) from None


def _natural_key(name: str) -> list:
    """Sort key under which 2_cat.png stands before 10_cat.png."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name)]


def find_class_folders(folder: Path) -> list[Path]:
    """Return the sub-folders, sorted by name, hidden ones left out."""
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def list_class_folders(folder: Path, classes: list[str] | None = None) -> tuple[ImageSet, list[str]]:
    """List the pictures of a folder of class folders, in natural order of their names.

    Args:
        folder: Holds a folder per class; pictures may lie deeper inside.
        classes: The classes, where another split decided them already.

    Raises:
        UserError: If the folder is missing, has no class folders or no pictures, or has a class not in `classes`.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; give the folder that holds a folder of pictures per class.")
    folders = find_class_folders(folder)
    if not folders:
        raise UserError(
            f"{folder} has no class folders: put the pictures of each class into a folder of its own inside it."
        )
    names = classes or [p.name for p in folders]
    extra = [p.name for p in folders if p.name not in names]
    if extra:
        raise UserError(f"{folder} has a class {extra[0]!r} that is not among the training classes; add or remove it.")
    paths, targets = [], []
    for c, name in enumerate(names):
        found = []
        # os.walk does not follow links to folders, so a loop of links cannot trap it.
        for base, _, files in os.walk(folder / name):
            rel = Path(base).relative_to(folder)
            found += [str(rel / f) for f in files if Path(f).suffix.lower() in EXTENSIONS and f[0] != "."]
        found.sort(key=_natural_key)
        paths += found
        targets += [c] * len(found)
    if not paths:
        raise UserError(f"the class folders of {folder} hold no pictures ({', '.join(sorted(EXTENSIONS))}).")
    return ImageSet(np.array(targets, dtype=np.int64), paths=paths, root=folder), names


# ---------------------------------------------------------------- CIFAR

_CIFAR = {
    10: {"folder": "cifar10", "batches": "cifar-10-batches-py", "url": "URLs.CIFAR", "tv": "CIFAR10", "n": 5000},
    100: {"folder": "cifar100", "batches": "cifar-100-python", "url": "URLs.CIFAR_100", "tv": "CIFAR100", "n": 500},
}


def load_cifar(num_classes: int, data_path: Path, part: str) -> tuple[ImageSet, list[str]]:
    """Find CIFAR-10 or CIFAR-100 under `data_path` and list its pictures in the order of the original files.

    Args:
        num_classes: 10 or 100.
        data_path: The set's own folder, or the folder that holds it; the class-folder layout of fastai's
            `untar_data(URLs.CIFAR)` (any picture format; the number in a file's name gives the order) or
            torchvision's pickles.
        part: "train" or "test".

    Raises:
        UserError: If it is not there; the message has the commands that fetch it.
    """
    facts = _CIFAR[num_classes]
    for base in (data_path, data_path / facts["folder"], data_path / facts["batches"]):
        if num_classes == 10 and (base / "data_batch_1").is_file():
            return _cifar_pickles(base, [f"data_batch_{i}" for i in range(1, 6)] if part == "train" else ["test_batch"])
        if num_classes == 100 and (base / "train").is_file():
            return _cifar_pickles(base, [part])
        if (base / part).is_dir():
            return _cifar_folders(base / part, num_classes)
    raise UserError(
        f"CIFAR-{num_classes} is not under {data_path} (looked for {part}/<class>/, {facts['folder']}/{part}/<class>/ and "
        f"{facts['batches']}/). Fetch it with `python -c \"from fastai.data.external import untar_data, URLs; "
        f"print(untar_data({facts['url']}))\"` and give the folder it prints as --data, or with `python -c \"import "
        f"torchvision; torchvision.datasets.{facts['tv']}('{data_path}', download=True)\"`."
    )


def _cifar_folders(folder: Path, num_classes: int) -> tuple[ImageSet, list[str]]:
    folders = find_class_folders(folder)
    if num_classes == 100 and len(folders) == 20:
        # fastai's archive has the 20 superclasses above the 100 classes.
        inner = sorted((p for f in folders for p in find_class_folders(f)), key=lambda p: p.name)
        lists = [list_class_folders(f)[0] for f in folders]
        names = [p.name for p in inner]
        index = {name: c for c, name in enumerate(names)}
        paths = [f"{f.name}/{p}" for f, part in zip(folders, lists, strict=True) for p in part.paths]
        targets = np.array([index[Path(p).parts[1]] for p in paths])
        order = np.argsort(targets, kind="stable")
        found = ImageSet(targets[order], paths=[paths[i] for i in order], root=folder)
    else:
        found, names = list_class_folders(folder)
    if len(names) != num_classes:
        raise UserError(f"{folder} has {len(names)} class folders; CIFAR-{num_classes} has {num_classes}.")
    return found, names


class _ArrayUnpickler(pickle.Unpickler):
    """Reads arrays, and refuses everything else a pickle can hold: opening a file must not run code."""

    def find_class(self, module: str, name: str):
        if (module.split(".")[0], name) in {("numpy", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")}:
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        if (module, name) == ("_codecs", "encode"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} has no place in a CIFAR file")


def _cifar_pickles(folder: Path, names: list[str]) -> tuple[ImageSet, list[str]]:
    pixels, targets = [], []

    def unpickle(name: str) -> dict:
        try:
            return _ArrayUnpickler(io.BytesIO((folder / name).read_bytes()), encoding="latin1").load()
        except Exception as e:
            raise UserError(f"cannot read {folder / name} as a CIFAR file ({e}); fetch the archive again.") from None

    for name in names:
        batch = unpickle(name)
        pixels.append(np.asarray(batch["data"], dtype=np.uint8).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        targets.append(np.asarray(batch["labels"] if "labels" in batch else batch["fine_labels"]))
    meta = unpickle("batches.meta" if "data_batch_1" in os.listdir(folder) else "meta")
    classes = list(meta.get("label_names") or meta["fine_label_names"])
    images = np.ascontiguousarray(np.concatenate(pixels))
    return ImageSet(np.concatenate(targets).astype(np.int64), images=images), classes


# ---------------------------------------------------------------- digits


def load_digits_pictures(part: str, test_per_class: int = 50) -> tuple[ImageSet, list[str]]:
    """Return scikit-learn's 1,797 handwritten digits, 8 x 8 pixels; the last 50 of each class are the test set.

    The file goes writer by writer, so the test digits are mostly of writers that training has not seen.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    test = np.concatenate([np.flatnonzero(digits.target == c)[-test_per_class:] for c in range(10)])
    index = np.sort(test) if part == "test" else np.setdiff1d(np.arange(len(digits.target)), test)
    grey = np.rint(digits.images[index] * (255 / 16)).astype(np.uint8)
    images = np.repeat(grey[..., None], 3, axis=3)
    return ImageSet(digits.target[index].astype(np.int64), images=images), [str(c) for c in range(10)]
