"""Where pictures come from: class folders, CIFAR, Tiny-ImageNet, scikit-learn's digits.

Everything here ends in an `ImageSet`: targets, and either the pixels or the paths.
"""

import logging
import os
import pickle
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ltlearn.data.splits import fingerprint
from ltlearn.errors import UserError
from ltlearn.progress import track

__all__ = [
    "ImageSet",
    "find_class_folders",
    "list_class_folders",
    "load_cifar",
    "load_digits_pictures",
    "load_tiny_imagenet",
    "read_image",
    "walk_visible",
]

# Not what the installed Pillow can read: a picture that it cannot is better named than left out.
EXTENSIONS = {
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm",
    ".pgm", ".pbm", ".pnm", ".jp2", ".avif",
}  # fmt: skip
# What lies beside pictures and is none; of it nobody is warned.
_NO_PICTURES = {
    ".txt", ".md", ".html", ".htm", ".pdf", ".csv", ".tsv", ".tab", ".json", ".jsonl", ".xml",
    ".yaml", ".yml", ".toml", ".ini", ".cfg", ".db", ".lnk", ".url", ".py", ".ipynb", ".sh",
    ".log", ".bak", ".npy", ".npz", ".pkl", ".pt", ".pth", ".h5", ".mat", ".zip", ".tar", ".gz",
    ".md5",
}  # fmt: skip
_KINDS_NAMED = 5  # extensions in a message

_log = logging.getLogger("ltlearn")


@dataclass
class ImageSet:
    """Labelled pictures, in memory (`images`) or on disk (`paths`, relative to `root`)."""

    targets: np.ndarray
    images: np.ndarray | None = None  # (N, H, W, 3) uint8
    paths: list[str] | None = None
    root: Path | None = None
    skipped: list[str] = field(default_factory=list)  # full paths of unreadable ones left out

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
        """Name the content: pixels in memory, or else relative paths and file sizes.

        Raises:
            UserError: If a file is gone.
        """
        if self.images is not None:
            contents = (image.tobytes() for image in self.images)
        else:
            contents = (os.fsencode(f"{p}\0{self._size_of(p)}") for p in self.paths)
        return fingerprint(contents, self.targets)

    def _size_of(self, path: str) -> int:
        try:
            return os.stat(os.path.join(self.root, path)).st_size
        except OSError as e:
            raise _unreadable(self.root / path, e.strerror) from None

    def load(
        self, size: int | None, skip_bad: bool = False, description: str = "reading pictures"
    ) -> "ImageSet":
        """Read all the pictures into memory.

        Args:
            size: Side in pixels that each is resized to; None where all have one size already.
            skip_bad: Leave unreadable pictures out, with a warning, and list them in `skipped`.
            description: What stands before the progress bar.

        Raises:
            UserError: If a picture cannot be read (named; with `skip_bad`, if none can), or the
                sizes differ and `size` is None.
        """
        if self.images is not None:
            return self

        def read(path: str) -> np.ndarray | None:
            return read_image(self.root / path, size)

        loaded, good = self._map(read, skip_bad, description)
        odd = next((i for i, im in enumerate(loaded) if im.shape != loaded[0].shape), None)
        if odd is not None:
            (h, w), (first_h, first_w) = loaded[odd].shape[:2], loaded[0].shape[:2]
            raise UserError(
                f"{self.root / self.paths[good[odd]]} is {w} x {h} pixels, others are "
                f"{first_w} x {first_h}; give a size to resize all to."
            )
        kept = self._keep(good)
        kept.images = np.stack(loaded)
        return kept

    def without_bad(self) -> "ImageSet":
        """Leave out, with a warning, the pictures on disk that cannot be read.

        Raises:
            UserError: If none can.
        """
        if self.images is not None:
            return self

        def check(path: str) -> bool:
            read_image(self.root / path)
            return True

        return self._keep(self._map(check, True, "checking pictures")[1])

    def _map(self, read: Callable, skip_bad: bool, description: str) -> tuple[list, np.ndarray]:
        """Read the paths in threads; return the results and the indices of the good ones."""

        def attempt(path: str):
            try:
                return read(path)
            except UserError as e:
                if not skip_bad:
                    raise
                # What the message advises has been done.
                _log.warning("left out: %s.", str(e).partition(";")[0])
                return None

        with ThreadPoolExecutor(max(2, min(8, os.cpu_count() or 2))) as pool:
            found = list(track(pool.map(attempt, self.paths), len(self.paths), description))
        good = np.array([i for i, x in enumerate(found) if x is not None], dtype=np.int64)
        if self.paths and not len(good):
            raise UserError(f"no picture under {self.root} can be read.")
        return [x for x in found if x is not None], good

    def _keep(self, good: np.ndarray) -> "ImageSet":
        kept = self.take(good)
        bad = np.setdiff1d(np.arange(len(self)), good)
        kept.skipped = self.skipped + [str(self.root / self.paths[i]) for i in bad]
        return kept


def read_image(path: Path, size: int | None = None) -> np.ndarray:
    """Read a picture as (H, W, 3) uint8 RGB, upright.

    Greyscale, palette and CMYK are converted, transparency is dropped, and of 16 bits a channel the
    upper 8 are kept.

    Args:
        path: The file.
        size: Side in pixels to resize to; None keeps the picture's own.

    Raises:
        UserError: If it is missing, truncated or no picture; the message names it.
    """
    from PIL import Image, ImageOps

    try:
        is_file = isinstance(path, str | os.PathLike)
        if is_file and not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would be waited for
            raise OSError("it is no regular file")
        with Image.open(path) as image:
            # Not a copy each, which costs a sixth of the time.
            ImageOps.exif_transpose(image, in_place=True)
            image = _as_rgb(image)
            if size is not None and image.size != (size, size):
                image = image.resize((size, size), Image.Resampling.BILINEAR)
            return np.array(image)
    except FileNotFoundError:
        raise UserError(f"the picture {path} does not exist.") from None
    except Exception as e:  # Pillow: OSError, SyntaxError, ValueError, DecompressionBombError, ...
        unknown = type(e).__name__ == "UnidentifiedImageError"
        raise _unreadable(path, "not a picture Pillow can read" if unknown else str(e)) from None


def _as_rgb(image):
    """Convert a Pillow image of any mode to RGB."""
    from PIL import Image

    if image.mode[0] == "I":
        # Pillow's own conversion clips 16 bits at 255, which turns the picture white.
        pixels = np.asarray(image)
        if pixels.min() < 0 or pixels.max() > 0xFFFF:
            raise ValueError("it has more than 16 bits a pixel")
        image = Image.fromarray((pixels >> 8).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("its pixels are floats of unknown range; save it with 8 or 16 bits")
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns about the direct way
    return image if image.mode == "RGB" else image.convert("RGB")


def _unreadable(path: Path, reason: str) -> UserError:
    return UserError(
        f"cannot read the picture {path} ({reason}); repair or remove it, or leave such pictures "
        "out with --skip-bad (skip_bad=True)."
    )


def _natural_key(name: str) -> tuple:
    """Sort key under which 2_cat.png stands before 10_cat.png."""
    # Odd parts are the numbers. The name itself decides between 1.png and 01.png.
    parts = re.split(r"(\d+)", name)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


def find_class_folders(folder: Path) -> list[Path]:
    """Return the sub-folders, sorted by name; hidden ones and links back up are left out."""
    here = folder.resolve()
    return sorted(
        p
        for p in folder.iterdir()
        if p.is_dir()
        and not p.name.startswith(".")
        and not (p.is_symlink() and here.is_relative_to(p.resolve()))
    )


def walk_visible(folder: str | Path) -> Iterator[tuple[str, list[str]]]:
    """Yield each folder from one down with the names of its files, hidden ones left out.

    Args:
        folder: Where to begin. Links to folders inside it are not followed.
    """
    # So a loop of links cannot trap it.
    for base, inner, files in os.walk(folder):
        inner[:] = [d for d in inner if d[0] != "."]
        yield base, [f for f in files if f[0] != "."]


def list_class_folders(
    folder: Path, classes: list[str] | None = None, others: Counter | None = None
) -> tuple[ImageSet, list[str]]:
    """List the pictures of a folder of class folders, in natural order of their names.

    Args:
        folder: Holds a folder per class; pictures may lie deeper inside. Hidden files and folders
            are ignored.
        classes: The classes, where another split decided them already.
        others: Counts the files that are taken for no pictures, by extension. None warns of those
            that may be some.

    Raises:
        UserError: If the folder is missing, has no class folders or no pictures, has a class that
            is not in `classes`, or two of its classes are one folder behind a link.
    """
    if not folder.is_dir():
        raise _no_folder(folder)
    folders = find_class_folders(folder)
    if not folders:
        raise UserError(
            f"{folder} has no class folders: put the pictures of each class into a folder of its "
            "own inside it."
        )
    _check_links(folders)
    names = classes or [p.name for p in folders]
    known = set(names)
    extra = [p.name for p in folders if p.name not in known]
    if extra:
        raise UserError(
            f"{folder} has a class {extra[0]!r} that is not among the training classes; add it "
            "there or remove it here."
        )
    paths, targets = [], []
    warn, others = others is None, Counter() if others is None else others
    prefix = len(os.path.join(folder, ""))
    for c, name in enumerate(names):
        found = []
        for base, files in walk_visible(os.path.join(folder, name)):
            for file in files:
                suffix = os.path.splitext(file)[1].lower()
                if suffix in EXTENSIONS:
                    found.append(os.path.join(base, file)[prefix:])
                else:
                    others[suffix] += 1
        found.sort(key=_natural_key)
        paths += found
        targets += [c] * len(found)
    left_out = _kinds_text({s: n for s, n in others.most_common() if s not in _NO_PICTURES})
    if not paths:
        instead = f", but {left_out}" if left_out else ""
        raise UserError(
            f"the class folders of {folder} hold no pictures ({', '.join(sorted(EXTENSIONS))})"
            f"{instead}; convert what is there, or give another folder."
        )
    if warn and left_out:
        _log.warning(
            "%s: left out %s; if those are pictures, convert them to PNG or JPEG.", folder, left_out
        )
    return ImageSet(np.array(targets, dtype=np.int64), paths=paths, root=folder), names


def _kinds_text(others: dict[str, int]) -> str:
    """Name extensions with their counts."""
    kinds = [f"{n:,} {suffix or 'without an extension'}" for suffix, n in others.items()]
    more = [f"{sum(list(others.values())[_KINDS_NAMED:]):,} others"] if kinds[_KINDS_NAMED:] else []
    return ", ".join(kinds[:_KINDS_NAMED] + more)


def _check_links(folders: list[Path]) -> None:
    """Refuse a link to pictures of another class: they would have two labels."""
    if not any(p.is_symlink() for p in folders):
        return
    # In this order a folder stands right before what lies inside it.
    places = sorted(((p.resolve(), p) for p in folders), key=lambda pair: pair[0].parts)
    for (outer, one), (inner, other) in zip(places, places[1:], strict=False):
        if inner.is_relative_to(outer):
            link = other if other.is_symlink() else one
            raise UserError(
                f"{link} is a link to {link.resolve()}, so the classes {one.name!r} and "
                f"{other.name!r} have the same pictures; remove one of them."
            )


def _no_folder(folder: Path) -> UserError:
    return UserError(
        f"there is no folder {folder}; give the folder that holds a folder of pictures per class."
    )


# How a set's folder is given, for messages.
_FOLDER_FLAGS = "data_path; --data of `ltlearn recipe`, --root of `ltlearn data`"

# ---------------------------------------------------------------- CIFAR

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
    """Find CIFAR-10 or CIFAR-100 and list its pictures in the order of the original files.

    Args:
        num_classes: 10 or 100.
        data_path: The set's own folder, or the folder that holds it; the class-folder layout of
            fastai's `untar_data(URLs.CIFAR)` (any picture format; the number in a file's name gives
            the order) or torchvision's pickles.
        part: "train" or "test".

    Raises:
        UserError: If it is not there; the message has the commands that fetch it.
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
        f'print(untar_data({facts["url"]}))"` and give the folder it prints ({_FOLDER_FLAGS}), or '
        f'with `python -c "import torchvision; torchvision.datasets.{facts["tv"]}('
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
        found = ImageSet(targets[order], paths=[paths[i] for i in order], root=folder)
    else:
        found, names = list_class_folders(folder)
    if len(names) != num_classes:
        raise UserError(
            f"{folder} has {len(names)} class folders; CIFAR-{num_classes} has {num_classes}."
        )
    return found, names


# All that an array in a pickle calls, under the names of NumPy 1 and 2.
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
    """Reads arrays, and refuses all else a pickle can hold: opening a file must not run code."""

    def find_class(self, module: str, name: str):
        """Return what an array needs; raise for anything else."""
        if (module, name) not in _ARRAY_PARTS:
            raise pickle.UnpicklingError(f"{module}.{name} has no place in a CIFAR file")
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
                raise ValueError("its labels do not fit its pictures or the class names")
            pixels.append(rows.transpose(0, 2, 3, 1))
            targets.append(labels)
    except Exception as e:  # what a broken pickle raises has no end
        reason = f"no {e}" if isinstance(e, KeyError) else getattr(e, "strerror", None) or e
        raise UserError(
            f"cannot read {folder / name} as a CIFAR file ({reason}); fetch the archive again."
        ) from None
    images = np.ascontiguousarray(np.concatenate(pixels))
    return ImageSet(np.concatenate(targets), images=images), classes


# ---------------------------------------------------------------- Tiny-ImageNet

_TINY_URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
_TINY_FOLDERS = ("tiny-imagenet-200", "tiny-imagenet-200-lt10")
_TINY_CLASSES = 200


def load_tiny_imagenet(data_path: Path, part: str) -> tuple[ImageSet, list[str]]:
    """Find Tiny-ImageNet-200, or a part of it, and list its pictures.

    Classes are in the order of their WordNet ids, and the pictures of each in natural order of
    their names. So a copy with the first pictures of each class gives the same as the whole set.

    Args:
        data_path: The set's own folder, or the folder that holds it as `tiny-imagenet-200` or
            `tiny-imagenet-200-lt10`. Pictures lie as in the archive (`train/<class>/images/`,
            `val/images/` and `val/val_annotations.txt`) or in class folders (`train/<class>/` and
            `val/<class>/`).
        part: "train" or "test". The test set is the set's validation part, for the labels of its
            own test pictures are not public.

    Raises:
        UserError: If it is not there (the message says what to fetch), has another number of
            classes, or its list of validation pictures cannot be used.
    """
    for base in (data_path, *(data_path / name for name in _TINY_FOLDERS)):
        if (base / "train").is_dir() and (base / "val").is_dir():
            break
    else:
        raise UserError(
            f"Tiny-ImageNet is not under {data_path} (looked for train/ and val/ there, in "
            f"{_TINY_FOLDERS[0]}/ and in {_TINY_FOLDERS[1]}/). Fetch {_TINY_URL}, unpack it, and "
            f"give the folder it makes ({_FOLDER_FLAGS})."
        )
    classes = [p.name for p in find_class_folders(base / "train")]
    if len(classes) != _TINY_CLASSES:
        raise UserError(
            f"{base / 'train'} has {len(classes)} class folders; Tiny-ImageNet has {_TINY_CLASSES}."
        )
    if part == "train":
        return list_class_folders(base / "train", classes)
    if (base / "val" / "val_annotations.txt").is_file() and (base / "val" / "images").is_dir():
        return _tiny_annotated(base / "val", classes), classes
    return list_class_folders(base / "val", classes)


def _tiny_annotated(folder: Path, classes: list[str]) -> ImageSet:
    """List the validation pictures of the archive, whose classes stand in a text file."""
    listing = folder / "val_annotations.txt"
    found = {name: [] for name in classes}
    try:
        lines = listing.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        reason = getattr(e, "strerror", None) or e
        raise UserError(f"cannot read {listing} ({reason}); fetch {_TINY_URL} again.") from None
    for line in filter(str.strip, lines):
        words = line.split()  # the picture, its class, and four numbers for a box
        if len(words) < 2 or words[1] not in found:
            raise UserError(
                f"{listing} has the line {line!r}, which names no picture and training class; "
                f"fetch {_TINY_URL} again."
            )
        found[words[1]].append(f"images/{words[0]}")
    paths = [p for name in classes for p in sorted(found[name], key=_natural_key)]
    if not paths:
        raise UserError(f"{listing} names no pictures; fetch {_TINY_URL} again.")
    targets = np.repeat(np.arange(len(classes)), [len(found[name]) for name in classes])
    return ImageSet(targets, paths=paths, root=folder)


# ---------------------------------------------------------------- digits


def load_digits_pictures(part: str, test_per_class: int = 50) -> tuple[ImageSet, list[str]]:
    """Return scikit-learn's 1,797 handwritten digits, 8 x 8 pixels.

    The last of each class are the test set. The file goes writer by writer, so the test digits are
    mostly of writers that training has not seen.

    Args:
        part: "train" or "test".
        test_per_class: Test digits of each class.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    test = np.concatenate([np.flatnonzero(digits.target == c)[-test_per_class:] for c in range(10)])
    index = np.sort(test) if part == "test" else np.setdiff1d(np.arange(len(digits.target)), test)
    grey = np.rint(digits.images[index] * (255 / 16)).astype(np.uint8)
    images = np.repeat(grey[..., None], 3, axis=3)
    return ImageSet(digits.target[index].astype(np.int64), images=images), [
        str(c) for c in range(10)
    ]
