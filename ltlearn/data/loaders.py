"""`LTDataLoaders`: long-tailed data as fastai `DataLoaders` that know counts and split."""

import copy
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from fastai.data.core import DataLoaders
from fastai.torch_core import default_device
from torch import Tensor

from ltlearn.data.benchmarks.cifar import load_cifar
from ltlearn.data.benchmarks.digits import load_digits_images
from ltlearn.data.benchmarks.facts import BENCHMARKS, IMAGENET_STATS, LISTED
from ltlearn.data.benchmarks.read import load_benchmark_parts
from ltlearn.data.benchmarks.tiny_imagenet import load_tiny_imagenet
from ltlearn.data.counts import count_classes, imbalance_factor_of, long_tail_counts
from ltlearn.data.datasets import (
    BATCH_TRANSFORMS,
    IN_MEMORY_BYTES,
    IN_MEMORY_SIDE,
    ImageFiles,
    ImagesInMemory,
    NormalizeUint8,
    SplitInfo,
    common_side,
)
from ltlearn.data.images import ImageSet
from ltlearn.data.loader import LTDataLoader
from ltlearn.data.options import ReadOptions
from ltlearn.data.readers.annotations import list_json
from ltlearn.data.readers.folders import find_class_folders, list_folder
from ltlearn.data.readers.hf import list_dataset
from ltlearn.data.readers.parts import ListedImages
from ltlearn.data.readers.sources import reading_options, source_kind
from ltlearn.data.readers.tables import list_table
from ltlearn.data.splits import SPLITS, carve_validation, select_long_tail
from ltlearn.data.transforms import TRANSFORMS
from ltlearn.errors import UserError, check_choice, check_whole
from ltlearn.utils.settings import load_settings

__all__ = ["DATASETS", "LTDataLoaders"]

_log = logging.getLogger("ltlearn")
CIFAR_STATS = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
# Classes, training images of the largest class, and sides in pixels, the usual one first.
_FACTS = {
    "digits_lt": (10, 124, (8,)),
    "cifar10_lt": (10, 5_000, (32,)),
    "cifar100_lt": (100, 500, (32,)),
    "tiny_imagenet_lt": (200, 500, (64, 32)),
}
DATASETS = (*_FACTS, *LISTED)
PROTOCOLS = ("clean", "paper")


class LTDataLoaders(DataLoaders):
    """Training, validation and test loaders of an imbalanced image set.

    Make one with `from_path`, `from_folder`, `from_csv`, `from_df`, `from_json`, `from_hf`,
    `from_arrays` or `from_dataset`. Attributes: `class_counts`
    (training images per class, after validation was carved off), `shot_counts` (before: what many,
    medium and few are decided by), `vocab` (class names), `c` (their number), `split`
    (`SplitInfo`), `skipped` (unreadable images that were left out), `columns` (of a table: what
    was read from which).
    """

    @property
    def test(self) -> LTDataLoader | None:
        """The test loader; None where there is no test set."""
        return self.loaders[2] if len(self.loaders) > 2 else None

    def new_empty(self) -> "LTDataLoaders":
        """Return the same loaders without images, as `learn.export()` stores them."""
        empty = copy.copy(self)
        # No sampler draws from nothing.
        empty.loaders = [dl.new(dl.dataset.new_empty(), shuffle=False) for dl in self.loaders]
        return empty

    @classmethod
    def _build(
        cls,
        parts: dict[str, ImageSet],
        classes: list[str],
        *,
        split: SplitInfo,
        shot_counts: Tensor,
        stats: tuple | None,
        transform: str,
        size: int | None,
        pad: int | None,
        in_memory: bool,
        bs: int,
        num_workers: int,
        seed: int,
        device,
        path: Path,
    ) -> "LTDataLoaders":
        normalize = NormalizeUint8(*(stats or IMAGENET_STATS))
        loaders = []
        for part in ("train", "valid", "test"):
            if part not in parts:
                continue
            name = transform if part == "train" else "none"
            if in_memory:
                dataset, workers = ImagesInMemory(parts[part], name, pad), 0
            else:
                dataset, workers = ImageFiles(parts[part], name, size, pad), num_workers
            training = part == "train"
            loaders.append(
                LTDataLoader(
                    dataset,
                    bs=bs if training else max(bs, 256 if in_memory else bs),
                    training=training,
                    seed=seed,
                    num_workers=workers,
                    after_batch=[normalize],
                )
            )
        device = torch.device(device) if device is not None else default_device()
        dls = cls(*loaders, path=path, device=device)
        dls.vocab, dls.c = list(classes), len(classes)
        dls.class_counts = count_classes(parts["train"].targets, len(classes))
        dls.shot_counts, dls.split = shot_counts, split
        dls.size, dls.normalize = loaders[0].dataset.shape, normalize
        dls.stats_given = stats is not None
        dls.columns = {}
        # Parts carved from one set share its list.
        dls.skipped = list(dict.fromkeys(p for data in parts.values() for p in data.skipped))
        _warn_about_counts(dls.class_counts, classes)
        n_train, n_valid = len(parts["train"]), len(parts["valid"])
        _log.info("%s: %d training, %d validation images", split, n_train, n_valid)
        return dls

    @classmethod
    def from_dataset(
        cls,
        name: str,
        data_path: str | Path | None = None,
        imbalance_factor: float | None = None,
        split: str | None = None,
        profile: str | None = None,
        protocol: str = "clean",
        valid_pct: float = 0.1,
        bs: int = 64,
        seed: int = 0,
        skip_bad: bool = False,
        n_max: int | None = None,
        test_per_class: int | None = None,
        max_classes: int | None = None,
        size: int | None = None,
        transform: str | None = None,
        num_workers: int | None = None,
        device=None,
        follow_links: bool = False,
    ) -> "LTDataLoaders":
        """Read a known long-tailed set, or make a long-tailed version of a known balanced one.

        ImageNet-LT, Places-LT and iNaturalist 2018 are long-tailed as they are published, in lists
        or annotations, see `ltlearn.data.benchmarks.read`; the others are cut here.

        The test set of "tiny_imagenet_lt" is Tiny-ImageNet's validation part, 50 images a class:
        the labels of its own test images are not public. Its largest class is the first by
        WordNet id. A copy that is long-tailed already, with the first images of each class, will
        do where it has enough of each; only "first_n" goes with it.

        Args:
            name: "digits_lt" (scikit-learn's, always there), "cifar10_lt", "cifar100_lt",
                "tiny_imagenet_lt", "imagenet_lt", "places_lt" or "inat2018".
            data_path: Where the images are. CIFAR: class folders or torchvision's pickles.
                Tiny-ImageNet: as its archive has them, or class folders. Published lists: beside
                the images. None takes the setting of that name. Nothing is downloaded.
            imbalance_factor: Images of the largest class over those of the smallest, at least 1;
                None takes 100. Of the sets that are cut here alone, as are the next two.
            split: Which images are kept: "first_n" (SAMN) or "shuffle_seed0" (LDAM-DRW and most
                others); None takes "first_n".
            profile: "exponential" or "step"; None takes "exponential".
            protocol: "clean" validates on the set's validation images or, where it has none,
                carves some off the training images. "paper" keeps all of them and validates on the
                test set, as the published code does.
            valid_pct: Share of each class that "clean" carves off, in (0, 1).
            bs: Images a training batch.
            seed: Of the carved split, order and augmentation.
            skip_bad: Leave unreadable images out instead of stopping.
            n_max: Images of the largest class; of a published list, the first of every class, at
                most. None takes all there are.
            test_per_class: Test images of each class, the first in file order; None takes all there
                are.
            max_classes: Classes to read, the first; of published lists alone. None reads all.
            size: Side in pixels that images are brought to: 64 or 32 for "tiny_imagenet_lt", any
                for published lists (None: 224), their own for the others.
            transform: A name of `ltlearn.data.transforms.TRANSFORMS`, for published lists alone;
                None takes "resized_crop_flip_jitter", for iNaturalist "resized_crop_flip".
            num_workers: Processes that read published lists' images; 0 reads in this one, None
                takes the setting of that name.
            device: Where batches go; None takes fastai's default.
            follow_links: Whether a link inside the folder may lead out of it, for published lists
                alone.

        Raises:
            UserError: If a value is outside its range, the images are not there, or a class has
                too few.
        """
        check_choice("dataset", name, DATASETS)
        _check_common(protocol, valid_pct, bs, seed)
        if n_max is not None:
            check_whole("n_max", n_max, 1)
        if test_per_class is not None:
            check_whole("test_per_class", test_per_class, 1)
        of_cut = {"imbalance_factor": imbalance_factor, "split": split, "profile": profile}
        of_listed = {
            "max_classes": max_classes, "transform": transform, "num_workers": num_workers,
            "follow_links": follow_links or None,
        }  # fmt: skip
        for key, value in (of_cut if name in LISTED else of_listed).items():
            if value is not None:
                why = "is long-tailed as published" if name in LISTED else "is held in memory"
                raise UserError(f"{key} has no meaning for {name}, which {why}; leave it out.")
        if name in LISTED:
            return cls._from_lists(
                name, data_path, protocol=protocol, valid_pct=valid_pct, bs=bs, seed=seed,
                skip_bad=skip_bad, n_max=n_max, test_per_class=test_per_class, size=size,
                device=device, **of_listed,
            )  # fmt: skip
        imbalance_factor = 100 if imbalance_factor is None else imbalance_factor
        split, profile = split or "first_n", profile or "exponential"
        check_choice("split", split, SPLITS)
        classes_n, most, sides = _FACTS[name]
        if size is not None:
            check_whole("size", size, 1)
        if size not in (None, *sides):
            raise UserError(
                f"the size of {name} must be {' or '.join(map(str, sides))} pixels, got {size!r}."
            )
        data_path = Path(data_path or load_settings().data_path).expanduser()
        # Before the files are looked for: a wrong factor is said at once.
        counts = long_tail_counts(n_max or most, classes_n, imbalance_factor, profile)
        if name == "digits_lt":
            train, classes = load_digits_images("train")
            test, _ = load_digits_images("test")
            stats, transform, pad = _pixel_stats(train.images), "crop", 1
        elif name == "tiny_imagenet_lt":
            train, classes = load_tiny_imagenet(data_path, "train")
            test, _ = load_tiny_imagenet(data_path, "test")
            stats, transform, pad = None, "crop_flip", None
            _check_tiny(train.targets, classes, counts, split, imbalance_factor, profile)
        else:
            train, classes = load_cifar(classes_n, data_path, "train")
            test, _ = load_cifar(classes_n, data_path, "test")
            stats, transform, pad = CIFAR_STATS, "crop_flip", 4
        if test_per_class is not None:
            test = test.take(select_long_tail(test.targets, [test_per_class] * len(classes)))
        train = train.take(select_long_tail(train.targets, counts, split))
        train = train.load(size or sides[0], skip_bad, "reading training images")
        test = test.load(size or sides[0], skip_bad, "reading test images")
        return cls._from_parts(
            {"train": train, "test": test},
            classes,
            protocol=protocol,
            valid_pct=valid_pct,
            split_name=split,
            dataset=name,
            profile=profile,
            imbalance_factor=imbalance_factor,
            stats=stats,
            transform=transform,
            size=None,
            pad=pad,
            in_memory=True,
            bs=bs,
            num_workers=0,
            seed=seed,
            device=device,
            path=Path("."),
        )

    @classmethod
    def _from_lists(
        cls,
        name,
        data_path,
        *,
        n_max,
        test_per_class,
        max_classes,
        size,
        transform,
        num_workers,
        follow_links,
        skip_bad,
        **kw,
    ) -> "LTDataLoaders":
        """Read a set whose lists or annotations are published."""
        if num_workers is None:
            num_workers = load_settings().num_workers
        check_whole("num_workers", num_workers, 0)
        check_whole("size", size or 224, 1)
        transform = transform or f"resized_crop_flip{'' if name == 'inat2018' else '_jitter'}"
        check_choice("transform", transform, TRANSFORMS)
        data_path = Path(data_path or load_settings().data_path).expanduser()
        parts, classes = load_benchmark_parts(
            name, data_path, follow_links=bool(follow_links), skip_bad=skip_bad
        )
        if max_classes is not None:
            check_whole("max_classes", max_classes, 2)
            classes = classes[:max_classes]
        for part, data in parts.items():
            most = n_max if part == "train" else test_per_class
            parts[part] = _first_of_each(data, len(classes), most)
        if skip_bad:
            parts = {part: data.without_bad() for part, data in parts.items()}
        return cls._from_parts(
            parts, classes, split_name="published", dataset=name, stats=BENCHMARKS[name].stats,
            transform=transform, size=size or 224, pad=None, in_memory=False,
            num_workers=num_workers, path=Path("."), **kw,
        )  # fmt: skip

    @classmethod
    def from_folder(
        cls,
        path: str | Path,
        size: int | None = None,
        transform: str | None = None,
        valid_pct: float = 0.2,
        protocol: str = "clean",
        bs: int = 64,
        seed: int = 0,
        num_workers: int | None = None,
        in_memory: bool | None = None,
        skip_bad: bool = False,
        stats: tuple[Sequence[float], Sequence[float]] | None = None,
        device=None,
    ) -> "LTDataLoaders":
        """Read any imbalanced folder of class folders.

        `path` holds either a folder per class, or `train/` (or `training/`) and any of `valid/`
        (`val/`, `validation/`, `dev/`) and `test/` (`testing/`), in any case, each with a folder
        per class. Without a validation folder, validation images are carved off the training
        images, class by class, emptying no class.

        Args:
            path: The folder.
            size: Side in pixels that images are brought to; None keeps small images of one size
                as they are and takes 224 otherwise.
            transform: A name of `ltlearn.data.transforms.TRANSFORMS`; None takes "crop_flip" for
                images held in memory and "resized_crop_flip" for others.
            valid_pct: Share of each class to carve off where there is no validation folder, in
                (0, 1).
            protocol: "clean", or "paper": keep all training images and choose epochs on the test
                folder.
            bs: Images a training batch.
            seed: Of the carved split, order and augmentation.
            num_workers: Processes that read images from disk; 0 reads in this one, None takes the
                setting of that name. Images held
                in memory need none.
            in_memory: Whether to hold all images decoded; None does so up to 96 pixels and one
                GiB.
            skip_bad: Leave unreadable images out (each is checked first) instead of stopping at
                one.
            stats: Mean and standard deviation per channel for pixels in [0, 1]; None takes those
                that the model was pre-trained with, or ImageNet's.
            device: Where batches go; None takes fastai's default.

        Raises:
            UserError: If a value is outside its range, the folder is missing or has no class
                folders, a class of a later split is not in training, no class has two images to
                carve from, or an image held in memory cannot be read.
        """
        return cls._from_listing(
            partial(list_folder, Path(path).expanduser()),
            size=size,
            transform=transform,
            valid_pct=valid_pct,
            protocol=protocol,
            bs=bs,
            seed=seed,
            num_workers=num_workers,
            in_memory=in_memory,
            skip_bad=skip_bad,
            stats=stats,
            device=device,
        )

    @classmethod
    def from_path(cls, source: str | Path, **options) -> "LTDataLoaders":
        """Read whatever a path holds: the right one of `from_folder`, `from_csv` and the like.

        Args:
            source: A folder of class folders, a folder that Hugging Face's `save_to_disk` wrote, a
                .csv, .tsv or .tab, or a .json of annotations.
            **options: For the method that reads it; its `path` may be called `images`.

        Raises:
            UserError: If it is none of these, or cannot be used.
        """
        path = Path(source).expanduser()
        read = {
            "folder": cls.from_folder,
            "hf": cls.from_hf,
            "table": cls.from_csv,
            "json": cls.from_json,
        }
        return read[source_kind(path)](path, **reading_options(path, options))

    @classmethod
    def from_csv(
        cls,
        csv: str | Path,
        path: str | Path | None = None,
        image_col: str | int | None = None,
        label_col: str | int | None = None,
        split_col: str | int | bool | None = None,
        skip_bad: bool = False,
        suffix: str = "",
        valid: str | Path | None = None,
        test: str | Path | None = None,
        **options,
    ) -> "LTDataLoaders":
        """Read the images that a CSV or TSV lists: a row each, with its path and its label.

        The delimiter is guessed. A first line that names an image is no header. Rows that are
        there twice count once.

        Args:
            csv: The file, in UTF-8.
            path: Folder that relative paths start from; None takes the one of the file.
            image_col: Column of the paths, by name or by number from 0. None takes the first that
                is called image, path, file, filename, file_name, image_path or img, in any case,
                or else the first.
            label_col: Column of the labels (text or integers), likewise: label, class, target,
                category or labels, or else the second.
            split_col: Column that says train, valid, val, validation or test, in any case. None
                takes one that is called split, subset or partition, if any; False takes none. A
                part that it does not name is carved, or missing, as in `from_folder`.
            skip_bad: Leave out images that are not there or unreadable, instead of stopping.
            suffix: What every path ends in and the table leaves out, such as ".jpg".
            valid: A file that lists the validation images likewise, instead of a split column;
                its relative paths start from the same folder.
            test: Of the test images, likewise.
            **options: Whatever else `from_folder` takes.

        Raises:
            UserError: If the table is empty or lacks a column, a cell is empty, an image is not
                there, has two labels or is in two parts, a validation or test label is not in
                training (the message names row, column or label); or as `from_folder` does.
        """
        reading = ReadOptions(
            skip_bad=skip_bad, images=path, image_col=image_col, label_col=label_col,
            split_col=split_col, suffix=suffix, valid=valid, test=test,
        )  # fmt: skip
        listing = partial(list_table, Path(csv), reading)
        return cls._from_listing(listing, skip_bad=skip_bad, **options)

    @classmethod
    def from_df(
        cls,
        df,
        path: str | Path = ".",
        image_col: str | int | None = None,
        label_col: str | int | None = None,
        split_col: str | int | bool | None = None,
        skip_bad: bool = False,
        suffix: str = "",
        **options,
    ) -> "LTDataLoaders":
        """Read the images that a pandas `DataFrame` lists, as `from_csv` does those of a file.

        Args:
            df: The table. In messages, its rows count from 0.
            path: Folder that relative paths start from.
            image_col: As for `from_csv`.
            label_col: As for `from_csv`.
            split_col: As for `from_csv`.
            skip_bad: As for `from_csv`.
            suffix: As for `from_csv`.
            **options: Whatever else `from_folder` takes.

        Raises:
            UserError: As `from_csv` does.
        """
        if isinstance(df, str | Path):
            raise UserError(f"df must be a pandas DataFrame, got {str(df)!r}; read it by from_csv.")
        reading = ReadOptions(
            skip_bad=skip_bad, images=path, image_col=image_col, label_col=label_col,
            split_col=split_col, suffix=suffix,
        )  # fmt: skip
        listing = partial(list_table, df, reading)
        return cls._from_listing(listing, skip_bad=skip_bad, **options)

    @classmethod
    def from_json(
        cls,
        json: str | Path,
        path: str | Path | None = None,
        valid: str | Path | None = None,
        test: str | Path | None = None,
        follow_links: bool = False,
        skip_bad: bool = False,
        **options,
    ) -> "LTDataLoaders":
        """Read the images of annotations in COCO's JSON, as iNaturalist has them: a label each.

        Classes are the categories of the training file, with or without images, in the order of
        their ids.

        Args:
            json: Annotations of the training images.
            path: Folder that file names start from, and that they may not leave; None takes the one
                of the file.
            valid: Of the validation images; None carves them off the training images.
            test: Of the test images.
            follow_links: Whether a link inside `path` may lead out of it.
            skip_bad: Leave out images that are not there or unreadable, instead of stopping.
            **options: Whatever else `from_folder` takes.

        Raises:
            UserError: If a file cannot be read, an image is not there, has no label or several or
                is in two files, a validation or test label is not in training; or as `from_folder`
                does.
        """
        reading = ReadOptions(
            skip_bad=skip_bad, follow_links=follow_links, images=path, valid=valid, test=test
        )
        listing = partial(list_json, json, reading)
        return cls._from_listing(listing, skip_bad=skip_bad, **options)

    @classmethod
    def from_hf(
        cls, dataset, image_col: str | None = None, label_col: str | None = None, **options
    ) -> "LTDataLoaders":
        """Read the images of a Hugging Face dataset, each from its row when it is needed.

        Images that are not held in memory (see `from_folder`) are read once at the start for the
        split's fingerprint, which is of their content.

        Args:
            dataset: A `datasets.Dataset`; a `datasets.DatasetDict` with a "train" and any of
                "valid", "val", "validation" and "test"; or a folder that either was saved to with
                `save_to_disk`, which needs the extra `hf`.
            image_col: Column of the images: of type Image, or of encoded bytes or paths. None
                takes the first of type Image, or else one by the names that `from_csv` has.
            label_col: Column of the labels: of type ClassLabel, or text or integers. None takes one
                by the names that `from_csv` has, or else the only one of type ClassLabel.
            **options: Whatever else `from_folder` takes.

        Raises:
            UserError: If it is no such dataset, lacks a column or a label, a validation or test
                label is not in training; or as `from_folder` does.
        """
        reading = ReadOptions(image_col=image_col, label_col=label_col)
        return cls._from_listing(partial(list_dataset, dataset, reading), **options)

    @classmethod
    def _from_listing(
        cls,
        list_images: Callable[[], ListedImages],
        *,
        size: int | None = None,
        transform: str | None = None,
        valid_pct: float = 0.2,
        protocol: str = "clean",
        bs: int = 64,
        seed: int = 0,
        num_workers: int | None = None,
        in_memory: bool | None = None,
        skip_bad: bool = False,
        stats: tuple[Sequence[float], Sequence[float]] | None = None,
        device=None,
    ) -> "LTDataLoaders":
        """Read listed images. The arguments are checked before anything is listed."""
        _check_common(protocol, valid_pct, bs, seed)
        if num_workers is None:
            num_workers = load_settings().num_workers
        check_whole("num_workers", num_workers, 0)
        if size is not None:
            check_whole("size", size, 1)
        if transform is not None:
            check_choice("transform", transform, TRANSFORMS)
        listed = list_images()
        parts = listed.parts
        _check_parts(parts, listed.classes, protocol, listed.where)
        total = sum(len(p) for p in parts.values())
        if size is None:
            size = common_side(parts["train"]) or 224
        if in_memory is None:
            in_memory = size <= IN_MEMORY_SIDE and total * size * size * 4 <= IN_MEMORY_BYTES
            in_memory &= transform in (None, *BATCH_TRANSFORMS)
        if in_memory:
            parts = {p: data.load(size, skip_bad) for p, data in parts.items()}
        elif skip_bad:
            parts = {p: data.without_bad() for p, data in parts.items()}
        dls = cls._from_parts(
            parts,
            listed.classes,
            protocol=protocol,
            valid_pct=valid_pct,
            split_name=listed.split_name,
            dataset=listed.dataset,
            stats=stats,
            transform=transform or ("crop_flip" if in_memory else "resized_crop_flip"),
            size=size,
            pad=None,
            in_memory=in_memory,
            bs=bs,
            num_workers=num_workers,
            seed=seed,
            device=device,
            # Not the folder: what a learner saves there would be a class of the next call.
            path=Path("."),
        )
        dls.columns = listed.columns
        return dls

    @classmethod
    def from_arrays(
        cls,
        images: np.ndarray | Tensor,
        targets: Sequence[int] | np.ndarray | Tensor,
        valid: tuple | None = None,
        test: tuple | None = None,
        classes: Sequence[str] | None = None,
        transform: str = "crop_flip",
        pad: int | None = None,
        valid_pct: float = 0.2,
        protocol: str = "clean",
        bs: int = 64,
        seed: int = 0,
        stats: tuple[Sequence[float], Sequence[float]] | None = None,
        device=None,
    ) -> "LTDataLoaders":
        """Use images that are in memory already.

        Args:
            images: The training images.
            targets: Their class indices.
            valid: Validation (images, targets); None carves them off the training images.
            test: Test (images, targets).
            classes: Class names; None numbers them.
            transform: "crop_flip", "crop" or "none".
            pad: Black border of the crop in pixels; None takes an eighth of the side.
            valid_pct: Share of each class to carve off, in (0, 1).
            protocol: "clean", or "paper": keep all training images and choose epochs on the test
                set.
            bs: Images a training batch.
            seed: Of the carved split, order and augmentation.
            stats: Mean and standard deviation per channel for pixels in [0, 1]; None takes those
                that the model was pre-trained with, or ImageNet's.
            device: Where batches go; None takes fastai's default.

        Shape:
            images is (N, H, W, 3) or (N, H, W), uint8; targets is (N,), integers from 0 to C - 1.

        Raises:
            UserError: If shapes, types or labels do not fit, or another value is outside its range.
        """
        _check_common(protocol, valid_pct, bs, seed)
        check_choice("transform", transform, BATCH_TRANSFORMS)
        parts = {"train": _array_set("training", images, targets)}
        for part, given in (("valid", valid), ("test", test)):
            if given is None:
                continue
            if not isinstance(given, tuple | list) or len(given) != 2:
                raise UserError(
                    f"{part} must be a pair (images, targets), got {type(given).__name__}."
                )
            parts[part] = _array_set(part, *given)
            shapes = [p.images.shape[1:3] for p in (parts[part], parts["train"])]
            if shapes[0] != shapes[1]:
                raise UserError(
                    f"{part} images are {shapes[0][0]} x {shapes[0][1]} pixels, training images "
                    f"{shapes[1][0]} x {shapes[1][1]}; bring them to one size."
                )
        top = {p: int(data.targets.max()) for p, data in parts.items()}
        classes = (
            [str(c) for c in range(max(top.values()) + 1)] if classes is None else list(classes)
        )
        for part, highest in top.items():
            if highest >= len(classes):
                raise UserError(
                    f"{part} targets go up to {highest}, but there are {len(classes)} classes."
                )
        _check_parts(parts, classes, protocol, "the training set")
        return cls._from_parts(
            parts,
            classes,
            protocol=protocol,
            valid_pct=valid_pct,
            split_name="arrays",
            dataset="arrays",
            stats=stats,
            transform=transform,
            size=None,
            pad=pad,
            in_memory=True,
            bs=bs,
            num_workers=0,
            seed=seed,
            device=device,
            path=Path("."),
        )

    @classmethod
    def _from_parts(
        cls,
        parts,
        classes,
        *,
        protocol,
        valid_pct,
        split_name,
        dataset,
        seed,
        profile=None,
        imbalance_factor=None,
        **kw,
    ) -> "LTDataLoaders":
        """Decide what validation is, take fingerprints, and build."""
        shot_counts = count_classes(parts["train"].targets, len(classes))
        whole = parts["train"].fingerprint()
        if protocol == "paper":
            # Published code trains on all of them and looks at the test set after every epoch.
            parts = {"train": parts["train"], "valid": parts["test"], "test": parts["test"]}
            valid_from = "test set"
        elif "valid" in parts:
            valid_from = "validation set"
        else:
            train, valid = carve_validation(parts["train"].targets, valid_pct, seed)
            parts = {
                **parts,
                "train": parts["train"].take(train),
                "valid": parts["train"].take(valid),
            }
            valid_from = "training images"
        split = SplitInfo(
            name=split_name,
            train=whole,
            valid=parts["valid"].fingerprint(),
            test=parts["test"].fingerprint() if "test" in parts else None,
            valid_from=valid_from,
            dataset=dataset,
            profile=profile,
            imbalance_factor=imbalance_factor or imbalance_factor_of(shot_counts),
            seed=seed,
        )
        return cls._build(parts, classes, split=split, shot_counts=shot_counts, seed=seed, **kw)


def _first_of_each(data: ImageSet, classes: int, most: int | None) -> ImageSet:
    """Keep the first classes, and the first images of each."""
    order = np.argsort(data.targets, kind="stable")
    ordered = data.targets[order]
    place = np.arange(len(order)) - np.searchsorted(ordered, ordered)
    keep = (ordered < classes) & (place < (len(order) if most is None else most))
    return data if keep.all() else data.take(np.sort(order[keep]))


def _array_set(part: str, images, targets) -> ImageSet:
    try:
        images, targets = np.asarray(images), np.asarray(targets)
    except (ValueError, TypeError, RuntimeError) as e:  # ragged lists, tensors on another device
        raise UserError(f"{part} images and targets must be arrays or CPU tensors ({e}).") from None
    if images.ndim == 3:
        images = np.repeat(images[..., None], 3, axis=3)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or not images.size:
        raise UserError(
            f"{part} images must be uint8 of shape (N, H, W, 3) or (N, H, W), got {images.dtype} "
            f"{images.shape}."
        )
    if targets.shape != images.shape[:1] or not np.issubdtype(targets.dtype, np.integer):
        raise UserError(
            f"{part} targets must be {len(images)} integers, got {targets.dtype} {targets.shape}."
        )
    if targets.min() < 0:
        raise UserError(f"{part} targets must be class indices from 0 up, got {targets.min()}.")
    return ImageSet(targets.astype(np.int64), images=np.ascontiguousarray(images))


def _pixel_stats(images: np.ndarray) -> tuple[list[float], list[float]]:
    pixels = images.reshape(-1, 3) / 255
    return pixels.mean(0).tolist(), pixels.std(0).tolist()


def _warn_about_counts(class_counts: Tensor, classes: list[str]) -> None:
    for what, mask in (
        ("no training image", class_counts == 0),
        ("a single training image", class_counts == 1),
    ):
        names = [classes[c] for c in mask.nonzero().flatten().tolist()]
        if names:
            _log.warning(
                "%d class%s %s: %s%s", len(names), " has" if len(names) == 1 else "es have", what,
                ", ".join(names[:5]), " ..." if len(names) > 5 else "",
            )  # fmt: skip


def _check_tiny(
    targets: np.ndarray,
    classes: list[str],
    counts: list[int],
    split: str,
    imbalance_factor: float,
    profile: str,
) -> None:
    """Refuse what images that may be long-tailed already cannot give."""
    have = np.bincount(targets, minlength=len(classes))
    low, high = have.argmin(), have.argmax()
    if split != "first_n" and have[low] < have[high]:
        raise UserError(
            f"the split {split} draws from the balanced set, but here class {classes[high]} has "
            f"{have[high]} training images and {classes[low]} has {have[low]}; take first_n, or "
            "give the full set."
        )
    short = counts - have
    worst = short.argmax()
    if short[worst] <= 0:
        return
    n_max = counts[0]
    enough = (
        factor
        for factor in range(1, n_max + 1)
        if (long_tail_counts(n_max, len(classes), factor, profile) <= have).all()
    )
    factor = next(enough, None)
    if factor is None:
        hint = f"no imbalance factor does with {n_max} images of the largest class (lower n_max)"
    else:
        hint = f"these images allow an imbalance factor of {factor} or more"
    raise UserError(
        f"class {classes[worst]} has {have[worst]} training images, but {profile} imbalance factor "
        f"{imbalance_factor:g} wants {counts[worst]} of them; {hint}, and the full set has "
        f"{_FACTS['tiny_imagenet_lt'][1]} of each."
    )


def _check_common(protocol: str, valid_pct: float, bs: int, seed: int) -> None:
    check_choice("protocol", protocol, PROTOCOLS)
    if not isinstance(valid_pct, int | float | np.number) or not 0 < valid_pct < 1:
        raise UserError(
            f"valid_pct must be between 0 and 1, both excluded, got {valid_pct!r}: it is the share "
            "of images to carve off for validation."
        )
    check_whole("bs", bs, 1)
    check_whole("seed", seed, 0)
    if seed >= 2**32:
        raise UserError(f"seed must be below 2**32, got {seed}.")


def _check_parts(parts: dict[str, ImageSet], classes: list[str], protocol: str, where) -> None:
    if len(classes) < 2:
        hint = "a classifier needs two or more: add images of another"
        inside = where / classes[0] if isinstance(where, Path) else None
        if inside is not None and inside.is_dir() and len(find_class_folders(inside)) > 1:
            hint += f", or did you mean {inside}?"
        end = "" if hint.endswith("?") else "."
        raise UserError(f"{where} has only the class {classes[0]!r}; {hint}{end}")
    if protocol == "paper" and "test" not in parts:
        raise UserError(
            "the paper protocol chooses epochs on the test set, but there is no test folder or set."
        )
