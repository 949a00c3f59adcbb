"""Load a registered dataset: read its published lists, or cut a balanced set."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ltlearn.data.benchmarks.facts import BalancedSet, ListedSet
from ltlearn.data.benchmarks.read import load_benchmark_parts
from ltlearn.data.benchmarks.registry import get_dataset
from ltlearn.data.build import DEFAULT_SIZE, ImageParts, size_by_tfms
from ltlearn.data.counts import long_tail_counts
from ltlearn.data.datasets import IN_MEMORY_SIDE
from ltlearn.data.images import ImageSet
from ltlearn.data.options import LoadOptions, ReadOptions
from ltlearn.data.splits import select_long_tail
from ltlearn.errors import UserError, check_choice, check_whole
from ltlearn.names import SPLITS
from ltlearn.utils.settings import load_settings

__all__ = ["Subset", "load_dataset"]

_IMBALANCE_FACTOR, _SPLIT, _PROFILE = 100, "first_n", "exponential"


@dataclass(frozen=True)
class Subset:
    """Which part of a dataset is used. None takes the default.

    Args:
        imbalance_factor: Imbalance factor of a cut set, at least 1; 100 by default.
        split: How the images of a cut set are chosen; "first_n" by default.
        profile: Profile of a cut set; "exponential" by default.
        n_max: Images of the largest class, at least 1. For a listed set, the most images that any
            class keeps.
        test_per_class: Test images of each class, at least 1.
        max_classes: Number of classes of a listed set that are kept, at least 2.
    """

    imbalance_factor: float | None = None
    split: str | None = None
    profile: str | None = None
    n_max: int | None = None
    test_per_class: int | None = None
    max_classes: int | None = None

    def check(self) -> None:
        """Raise a `UserError` if a number is outside its range."""
        for name, least in (("n_max", 1), ("test_per_class", 1), ("max_classes", 2)):
            if getattr(self, name) is not None:
                check_whole(name, getattr(self, name), least)


def load_dataset(
    name: str,
    data_path: str | Path | None,
    subset: Subset,
    options: LoadOptions,
    read: ReadOptions,
) -> tuple[ImageParts, LoadOptions]:
    """Load a registered dataset.

    Args:
        name: One of `dataset_names()`.
        data_path: The folder of the set; None takes the setting of that name.
        subset: Which part of the set is used.
        options: How to load the images.
        read: How to read the files; `skip_bad` and, for a listed set, `follow_links` are used.

    Returns:
        The images, and the options with everything decided that depends on the set.

    Raises:
        UserError: If a value is outside its range or has no meaning for the set, the images are
            missing, or a class has too few.
    """
    row = get_dataset(name)
    options.check()
    subset.check()
    _check_meaning(row, subset, options, read)
    if isinstance(row, ListedSet):
        return _load_listed(row, _folder(data_path), subset, options.with_workers(), read)
    return _load_cut(row, data_path, subset, options, read.skip_bad)


def _check_meaning(
    row: ListedSet | BalancedSet, subset: Subset, options: LoadOptions, read: ReadOptions
) -> None:
    """Raise if an option is given that has no meaning for the kind of set."""
    if isinstance(row, ListedSet):
        names, why = ("imbalance_factor", "split", "profile"), "is long-tailed as published"
        given = {name: getattr(subset, name) for name in names}
    else:
        why = "is held in memory"
        given = {"max_classes": subset.max_classes, "follow_links": read.follow_links or None}
        if not _is_enlarged(options):
            own = callable(options.transform)
            given["transform"] = None if own else options.transform
            given["num_workers"] = options.num_workers
    wrong = next((name for name, value in given.items() if value is not None), None)
    if wrong is not None:
        raise UserError(f"{wrong} has no meaning for {row.name}, which {why}; leave it out.")


def _is_enlarged(options: LoadOptions) -> bool:
    """Return whether images that are held in memory are enlarged one by one."""
    return isinstance(options.size, int) and options.size > IN_MEMORY_SIDE


def _folder(data_path: str | Path | None) -> Path:
    return Path(data_path or load_settings().data_path).expanduser()


def _load_listed(
    row: ListedSet, folder: Path, subset: Subset, options: LoadOptions, read: ReadOptions
) -> tuple[ImageParts, LoadOptions]:
    """Read a set with published lists. Its images stay on disk."""
    parts, classes = load_benchmark_parts(
        row.name, folder, follow_links=read.follow_links, skip_bad=read.skip_bad
    )
    classes = classes[: subset.max_classes]
    for part, data in parts.items():
        most = subset.n_max if part == "train" else subset.test_per_class
        parts[part] = _first_of_each(data, len(classes), most)
    if read.skip_bad:
        parts = {part: data.without_bad() for part, data in parts.items()}
    own = options.brings_tfms
    return ImageParts(parts, classes, split_name="published", dataset=row.name), replace(
        options,
        stats=None if options.brings_stats else options.stats or row.stats,
        transform=options.transform or (None if own else row.transform),
        size=options.size or size_by_tfms(options, parts["train"]) or DEFAULT_SIZE,
        in_memory=False,
    )


def _first_of_each(data: ImageSet, classes: int, most: int | None) -> ImageSet:
    """Keep the first classes, and the first images of each."""
    order = np.argsort(data.targets, kind="stable")
    ordered = data.targets[order]
    rank = np.arange(len(order)) - np.searchsorted(ordered, ordered)  # of an image in its class
    keep = (ordered < classes) & (rank < (len(order) if most is None else most))
    return data if keep.all() else data.take(np.sort(order[keep]))


def _load_cut(
    row: BalancedSet,
    data_path: str | Path | None,
    subset: Subset,
    options: LoadOptions,
    skip_bad: bool,
) -> tuple[ImageParts, LoadOptions]:
    """Cut a long-tailed set from a balanced one, and read its images into memory."""
    factor = _IMBALANCE_FACTOR if subset.imbalance_factor is None else subset.imbalance_factor
    subset = replace(
        subset,
        imbalance_factor=factor,
        split=subset.split or _SPLIT,
        profile=subset.profile or _PROFILE,
    )
    check_choice("split", subset.split, SPLITS)
    enlarged = _is_enlarged(options)
    if options.size not in (None, *row.sides) and not enlarged:
        raise UserError(
            f"size must be {' or '.join(map(str, row.sides))} for {row.name}, or above "
            f"{IN_MEMORY_SIDE}, got {options.size!r}."
        )
    folder = _folder(data_path)
    # Before the files are read, so that a wrong factor is reported at once.
    counts = long_tail_counts(subset.n_max or row.largest, row.classes, factor, subset.profile)
    train, classes = row.load(folder, "train")
    test, _ = row.load(folder, "test")
    stats = row.measure_stats(train.images) if row.measure_stats else row.stats
    if row.long_tailed_copies:
        _check_copy(row, train.targets, classes, counts, subset)
    if subset.test_per_class is not None:
        test = test.take(select_long_tail(test.targets, [subset.test_per_class] * len(classes)))
    train = train.take(select_long_tail(train.targets, counts, subset.split))
    size = row.sides[0] if enlarged else options.size or row.sides[0]
    images = ImageParts(
        {
            "train": train.load(size, skip_bad, "reading training images"),
            "test": test.load(size, skip_bad, "reading test images"),
        },
        classes,
        split_name=subset.split,
        dataset=row.name,
        profile=subset.profile,
        imbalance_factor=factor,
    )
    options = options.with_workers() if enlarged else options
    return images, replace(
        options,
        stats=None if options.brings_stats else options.stats or stats,
        transform=options.transform or (None if options.brings_tfms else row.transform),
        pad=None if enlarged else row.pad,
        in_memory=not enlarged,
    )


def _check_copy(
    row: BalancedSet, targets: np.ndarray, classes: list[str], counts: list[int], subset: Subset
) -> None:
    """Raise if a copy that may be long-tailed itself lacks images for this subset."""
    have = np.bincount(targets, minlength=len(classes))
    low, high = have.argmin(), have.argmax()
    if subset.split != "first_n" and have[low] < have[high]:
        raise UserError(
            f"the split {subset.split} draws from the balanced set, but here class {classes[high]} "
            f"has {have[high]} training images and {classes[low]} has {have[low]}; take first_n, "
            "or give the full set."
        )
    short = counts - have
    worst = short.argmax()
    if short[worst] <= 0:
        return
    n_max = counts[0]
    enough = (
        factor
        for factor in range(1, n_max + 1)
        if (long_tail_counts(n_max, len(classes), factor, subset.profile) <= have).all()
    )
    factor = next(enough, None)
    if factor is None:
        hint = f"no imbalance factor fits with n_max={n_max}, so lower n_max"
    else:
        hint = f"these images allow an imbalance factor of {factor} or more"
    raise UserError(
        f"class {classes[worst]} has {have[worst]} training images, but {subset.profile} imbalance "
        f"factor {subset.imbalance_factor:g} needs {counts[worst]}; {hint}, and the full set has "
        f"{row.largest} per class."
    )
