"""The record of a dataset's facts. The module of each dataset fills it in."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ltlearn.defaults import IMAGENET_STATS

if TYPE_CHECKING:
    from ltlearn.data.images import ImageSet

__all__ = [
    "BalancedSet",
    "Benchmark",
    "Download",
    "IMAGENET_STATS",
    "LIST_URLS",
    "ListedSet",
    "MAX_NAMED_FILES",
    "PixelStats",
    "counts_name",
    "list_downloads",
]

PixelStats = tuple[Sequence[float], Sequence[float]]

MAX_NAMED_FILES = 5  # missing files that a message names
# The lists of ImageNet-LT and Places-LT, at a fixed commit.
LIST_URLS = (
    "https://raw.githubusercontent.com/facebookresearch/classifier-balancing/"
    "22370c64141cc662f62ead89447c838c4a7977b5/data/"
)


@dataclass(frozen=True)
class Download:
    """A file to fetch.

    Args:
        what: The content of the file.
        url: Its address.
        size: Its size as published, or an estimate; "" if unknown.
        md5: Its published checksum; "" if none is published.
        then: What to do with the file; "{root}" stands for the folder of the set.
    """

    what: str
    url: str
    size: str = ""
    md5: str = ""
    then: str = ""

    def __str__(self) -> str:
        facts = [self.size] if self.size else []
        facts.append(f"md5 {self.md5}" if self.md5 else "no checksum published")
        after = f"; {self.then}" if self.then else ""
        return f"{self.what}: {self.url} ({', '.join(facts)}){after}"


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """The facts of a dataset. Use `ListedSet` or `BalancedSet`.

    Args:
        name: The name that `LTDataLoaders.from_dataset` takes.
        title: The name for people.
        classes: Number of classes.
        class_order: How the classes are numbered, in words.
        sizes: Images of each part: "train", "test" and, if there is one, "valid".
        each: Images per class, for the parts that are balanced.
        largest: Training images of the largest class.
        sources: Files to fetch.
        stats: Mean and standard deviation per channel for pixels in [0, 1] that published code
            normalises with. None takes ImageNet's.
        transform: Training augmentation that is used if none is given.
        fetch: Downloads the set into a folder; None if no program can.
        by_hand: Why no program can download the set.
        burden: For a large set, what a download takes: a verb and its object.
        gigabytes: Size of a large download; 0 if it is not known.
        bundled_with: The package that brings the images; "" if the set consists of files.
    """

    name: str
    title: str
    classes: int
    class_order: str
    sizes: dict[str, int]
    each: dict[str, int]
    largest: int
    sources: tuple[Download, ...] = ()
    stats: PixelStats | None = None
    transform: str
    fetch: Callable[[Path], None] | None = None
    by_hand: str = "no program fetches it"
    burden: str = ""
    gigabytes: int = 0
    bundled_with: str = ""


@dataclass(frozen=True, kw_only=True)
class ListedSet(Benchmark):
    """A dataset that is long-tailed as published, in list files or annotations.

    The fields of `Benchmark`, and:

    Args:
        smallest: Training images of the smallest class.
        forms: File names that list the parts, one dict per published form.
        folders: Folders inside the given one that may hold the lists, or the whole set.
        class_of: Returns the class name of a listed folder, or None if it names no class.
        image_tops: Top folders that show where the images are, besides those in the lists.
        image_folders: Takes the folder of the images and the class names; returns a function from
            a listed folder and a label to the folders where the image may be. None looks in the
            listed folder alone.
        shots: Numbers of many-, medium- and few-shot classes under each rule for few.
        few: The rule for few that published results use.
        counts_sha256: `counts_name` of the training counts; "" if it is not known.
        sorted_sha256: `counts_name` of the training counts in ascending order.
    """

    smallest: int
    forms: tuple[dict[str, str], ...]
    folders: tuple[str, ...] = ()
    class_of: Callable[[str], str | None]
    image_tops: tuple[str, ...] = ()
    image_folders: Callable[[Path, Sequence[str]], Callable[[str, int], list[str]]] | None = None
    shots: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    few: str = "<20"
    counts_sha256: str = ""
    sorted_sha256: str = ""


@dataclass(frozen=True, kw_only=True)
class BalancedSet(Benchmark):
    """A balanced dataset of small images, from which a long-tailed one is cut.

    The fields of `Benchmark`, and:

    Args:
        load: Takes the folder and "train" or "test"; returns the images and the class names.
        sides: Sides in pixels that the images may have, the default first.
        pad: Black border of the crop in pixels; None takes an eighth of the side.
        measure_stats: Computes `stats` from the training images, instead of a constant.
        long_tailed_copies: Whether copies with fewer images of later classes are common, so that a
            copy is checked for enough images.
    """

    load: Callable[[Path, str], "tuple[ImageSet, list[str]]"]
    sides: tuple[int, ...]
    pad: int | None = None
    measure_stats: Callable[[np.ndarray], PixelStats] | None = None
    long_tailed_copies: bool = False


def counts_name(class_counts: Sequence[int] | np.ndarray) -> str:
    """Return the SHA-256 of class counts in hexadecimal, computed on "n,n,...,n" in decimal.

    Args:
        class_counts: Training images per class, in the order of the classes.
    """
    return hashlib.sha256(",".join(str(int(n)) for n in class_counts).encode()).hexdigest()


def list_downloads(folder: str, *names: str) -> tuple[Download, ...]:
    """Return the downloads of published lists.

    Args:
        folder: Folder below `LIST_URLS`.
        *names: The file names.
    """
    return tuple(
        Download(f"the list {n}", f"{LIST_URLS}{folder}/{n}", then="into {root}") for n in names
    )
