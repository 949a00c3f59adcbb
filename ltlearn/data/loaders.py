"""`LTDataLoaders`: long-tailed data as fastai `DataLoaders` that know counts and split."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor

from ltlearn.data.arrays import list_arrays
from ltlearn.data.benchmarks.load import Subset, load_dataset
from ltlearn.data.build import build_loaders, check_parts
from ltlearn.data.datasets import BATCH_TRANSFORMS
from ltlearn.data.options import LoadOptions, ReadOptions
from ltlearn.data.readers.annotations import list_json
from ltlearn.data.readers.folders import list_folder
from ltlearn.data.readers.sources import reading_options, source_kind
from ltlearn.data.readers.tables import list_table
from ltlearn.data.row_loaders import RowLoaders
from ltlearn.errors import UserError, check_choice

__all__ = ["LTDataLoaders"]


class LTDataLoaders(RowLoaders):
    """Training, validation and test loaders of an imbalanced image set.

    Create it with `from_path`, `from_folder`, `from_csv`, `from_df`, `from_json`, `from_hf`,
    `from_webdataset`, `from_arrays` or `from_dataset`, or from features that you have already with
    `from_features`. Attributes: `class_counts` (training images per class without the carved
    validation images), `shot_counts` (with them; they decide which classes are many-, medium- and
    few-shot), `vocab` (class names), `c` (number of classes),
    `split` (`SplitInfo`), `skipped` (unreadable images that were left out), `leaks` ("valid" and
    "test" to the number of their images that are also training images of the same class), `columns`
    (for a table, the column that each kind of value was read from), `bits` (how many bits 16-bit
    images were read as).
    """

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
        transform: str | Callable | None = None,
        num_workers: int | None = None,
        device=None,
        follow_links: bool = False,
        item_tfms=None,
        batch_tfms=None,
        stats: tuple[Sequence[float], Sequence[float]] | None = None,
    ) -> "LTDataLoaders":
        """Read a known long-tailed set, or cut a long-tailed set from a known balanced one.

        ImageNet-LT, Places-LT and iNaturalist 2018 are long-tailed as published, in lists or
        annotations (see `ltlearn.data.benchmarks`). The other sets are balanced and are cut here.

        The test set of "tiny_imagenet_lt" is the validation set of Tiny-ImageNet, 50 images per
        class, because the labels of its test images are not public. Its largest class is the first
        by WordNet id. A copy that is long-tailed already, with the first images of each class,
        works with "first_n" if it has enough images of each class.

        Args:
            name: "digits_lt" (from scikit-learn, always available), "cifar10_lt", "cifar100_lt",
                "tiny_imagenet_lt", "imagenet_lt", "places_lt", "inat2018", or a name that
                `register_benchmark` added.
            data_path: Folder of the images; None takes the setting of that name. CIFAR: class
                folders or torchvision's pickles. Tiny-ImageNet: the layout of the archive, or class
                folders. Published lists: beside the images. Nothing is downloaded.
            imbalance_factor: Images of the largest class divided by those of the smallest, at
                least 1; None takes 100. For cut sets only.
            split: Which images are kept: "first_n" (SAMN) or "shuffle_seed0" (LDAM-DRW and most
                others); None takes "first_n". For cut sets only.
            profile: "exponential" or "step"; None takes "exponential". For cut sets only.
            protocol: "clean" validates on the validation images of the set or, if there are none,
                on images carved off the training images. "paper" keeps all training images and
                validates on the test set, as published code does.
            valid_pct: Share of each class that "clean" carves off, in (0, 1).
            bs: Images per training batch, at least 1.
            seed: Seed of the carved split, the order and the augmentation, in [0, 2**32).
            skip_bad: Leave out unreadable images instead of raising.
            n_max: Images of the largest class, at least 1. For a published list, the most images
                that any class keeps, the first ones. None keeps all images.
            test_per_class: Test images of each class, the first in file order, at least 1; None
                keeps all.
            max_classes: Number of classes to keep, the first ones, at least 2. For published lists
                only. None keeps all.
            size: Side in pixels that images are resized to: any for published lists (None: 224), 64
                or 32 for "tiny_imagenet_lt", the size of the images for the others. For a set
                that is held in memory, a side above 96 pixels enlarges its images one by one.
            transform: Training augmentation. A transform of one's own, as for `from_folder`; or,
                for published lists and enlarged images only, a name of
                `ltlearn.names.TRANSFORM_NAMES`. None takes "resized_crop_flip_jitter" for lists,
                for iNaturalist "resized_crop_flip".
            num_workers: Processes that read images, at least 0; 0 reads in this process, None takes
                the setting of that name. For published lists and enlarged images only.
            device: Where batches go; None takes fastai's default.
            follow_links: Whether a link inside the folder may lead out of it. For published lists
                only.
            item_tfms: As for `from_folder`.
            batch_tfms: As for `from_folder`.
            stats: Mean and standard deviation per channel for pixels in [0, 1]. None: the values of
                the set.

        Raises:
            UserError: If a value is outside its range or has no meaning for the set, the images are
                missing, or a class has too few.

        Example:
            >>> dls = LTDataLoaders.from_dataset("digits_lt", imbalance_factor=20, bs=32)
            >>> dls.shot_counts[[0, 9]].tolist()
            [124, 6]
        """
        options = LoadOptions(
            size=size,
            transform=transform,
            valid_pct=valid_pct,
            protocol=protocol,
            bs=bs,
            seed=seed,
            num_workers=num_workers,
            device=device,
            item_tfms=item_tfms,
            batch_tfms=batch_tfms,
            stats=stats,
        )
        subset = Subset(imbalance_factor, split, profile, n_max, test_per_class, max_classes)
        read = ReadOptions(skip_bad=skip_bad, follow_links=follow_links)
        return build_loaders(cls, *load_dataset(name, data_path, subset, options, read))

    @classmethod
    def from_folder(
        cls,
        path: str | Path,
        size: int | None = None,
        transform: str | Callable | None = None,
        valid_pct: float = 0.2,
        protocol: str = "clean",
        bs: int = 64,
        seed: int = 0,
        num_workers: int | None = None,
        in_memory: bool | None = None,
        skip_bad: bool = False,
        stats: tuple[Sequence[float], Sequence[float]] | None = None,
        device=None,
        bits: int | None = None,
        item_tfms=None,
        batch_tfms=None,
    ) -> "LTDataLoaders":
        """Read an imbalanced folder of class folders.

        `path` contains either a folder per class, or `train/` (or `training/`) and any of `valid/`
        (`val/`, `validation/`, `dev/`) and `test/` (`testing/`), in upper or lower case, each with
        a folder per class. Without a validation folder, validation images are carved off the
        training images, class by class, and no class is emptied.

        Args:
            path: The folder.
            size: Side in pixels that images are resized to, at least 1. None keeps small images of
                one size as they are and takes 224 otherwise.
            transform: Training augmentation: a name of `ltlearn.names.TRANSFORM_NAMES`, an
                albumentations transform such as a `Compose`, a torchvision transform, or a function
                from an (H, W, 3) uint8 array to one. Images of another size are then resized. None
                takes "crop_flip" for images held in memory, "resized_crop_flip" for others, and
                "none" with `item_tfms` or `batch_tfms`.
            valid_pct: Share of each class that is carved off without a validation folder, in
                (0, 1).
            protocol: "clean", or "paper": keep all training images and choose epochs on the test
                folder.
            bs: Images per training batch, at least 1.
            seed: Seed of the carved split, the order and the augmentation, in [0, 2**32).
            num_workers: Processes that read images from disk, at least 0; 0 reads in this process,
                None takes the setting of that name. Images held in memory need none.
            in_memory: Whether to hold all images decoded; None does so up to 96 pixels and one
                GiB.
            skip_bad: Leave out unreadable images, after checking each, instead of raising.
            stats: Mean and standard deviation per channel for pixels in [0, 1]; None takes the
                statistics of the pre-trained model, or ImageNet's.
            device: Where batches go; None takes fastai's default.
            bits: Bits that the values of images with 16 bits per channel take, from 8 to 16: 12 for
                many cameras and scanners. None finds it out from some training images, with a
                warning if it is below 16.
            item_tfms: fastai transforms of each image as it is in its file, such as `Resize(224)`.
                Evaluation applies them, too. If `size` is None, they decide the size.
            batch_tfms: fastai transforms of a batch, such as `aug_transforms()`. A `Normalize` sets
                `stats`.

        Raises:
            UserError: If a value is outside its range, the folder is missing or has no class
                folders, a validation or test class is not among the training classes, no class has
                two images to carve from, or an image held in memory cannot be read.

        Example:
            >>> dls = LTDataLoaders.from_folder("photos", size=224, bs=32)  # doctest: +SKIP
            >>> dict(zip(dls.vocab, dls.class_counts.tolist()))  # doctest: +SKIP
            {'ant': 160, 'bee': 80, 'cat': 4}
        """
        options = LoadOptions(
            size=size,
            transform=transform,
            valid_pct=valid_pct,
            protocol=protocol,
            bs=bs,
            seed=seed,
            num_workers=num_workers,
            in_memory=in_memory,
            stats=stats,
            device=device,
            bits=bits,
            item_tfms=item_tfms,
            batch_tfms=batch_tfms,
        )
        return cls._from_listing(partial(list_folder, Path(path).expanduser()), options, skip_bad)

    @classmethod
    def from_path(cls, source: str | Path, **options) -> "LTDataLoaders":
        """Read a path of any kind: call `from_folder`, `from_csv`, `from_webdataset` and so on.

        Args:
            source: A folder of class folders, a folder that Hugging Face's `save_to_disk` wrote, a
                .csv, .tsv or .tab file, a .json file of annotations, or WebDataset shards: a folder
                of .tar files, or a pattern such as "train-{000..009}.tar".
            **options: For the method that reads the source; `images` is another name of its `path`.

        Raises:
            UserError: If the source is of another kind, or cannot be used.
        """
        path = Path(source).expanduser()
        read = {
            "folder": cls.from_folder,
            "hf": cls.from_hf,
            "webdataset": cls.from_webdataset,
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
        """Read the images that a CSV or TSV file lists. Each row has an image path and a label.

        The delimiter is guessed. A first line that names an image is data, not a header. Duplicate
        rows count once.

        Args:
            csv: The file, in UTF-8.
            path: Folder that relative paths start from; None takes the folder of the file.
            image_col: Column of the image paths, by name or by number from 0. None takes the first
                column named image, path, file, filename, file_name, image_path or img, in upper or
                lower case, or else the first column.
            label_col: Column of the labels (text or integers), by name or by number from 0. None
                takes the first column named label, class, target, category or labels, or else the
                second column.
            split_col: Column of the parts, by name or by number from 0, with cells train, valid,
                val, validation or test in upper or lower case; or with flags (True, 1, yes) that
                mark the validation images, or the test images if its name contains "test". None
                takes a column named split, subset or partition, or else flags in the columns
                is_valid, valid and is_test, if there are any; False takes none. A part that no row
                names is carved, or missing, as in `from_folder`.
            skip_bad: Leave out missing and unreadable images instead of raising.
            suffix: Ending that is appended to every path, such as ".jpg".
            valid: A file that lists the validation images, instead of a split column. Its relative
                paths start from the same folder.
            test: A file that lists the test images.
            **options: The other parameters of `from_folder`.

        Raises:
            UserError: If the table is empty or lacks a column, a cell is empty, an image is
                missing, has two labels or is in two parts, labels are several of one image (such as
                "cat|wet", or a column of zeros and ones per class), a validation or test label is
                not among the training labels (the message names row, column or label); or as for
                `from_folder`.
        """
        reading = ReadOptions(
            skip_bad=skip_bad, images=path, image_col=image_col, label_col=label_col,
            split_col=split_col, suffix=suffix, valid=valid, test=test,
        )  # fmt: skip
        listing = partial(list_table, Path(csv), reading)
        return cls._from_listing(listing, LoadOptions(**options), skip_bad)

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
        """Read the images that a pandas `DataFrame` lists, like `from_csv` for a file.

        Args:
            df: The table. Messages count its rows from 0.
            path: Folder that relative paths start from.
            image_col: As for `from_csv`.
            label_col: As for `from_csv`.
            split_col: As for `from_csv`.
            skip_bad: As for `from_csv`.
            suffix: As for `from_csv`.
            **options: The other parameters of `from_folder`.

        Raises:
            UserError: As for `from_csv`.
        """
        if isinstance(df, str | Path):
            raise UserError(f"df must be a pandas DataFrame, got {str(df)!r}; use from_csv for it.")
        reading = ReadOptions(
            skip_bad=skip_bad, images=path, image_col=image_col, label_col=label_col,
            split_col=split_col, suffix=suffix,
        )  # fmt: skip
        listing = partial(list_table, df, reading)
        return cls._from_listing(listing, LoadOptions(**options), skip_bad)

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
        """Read the images of annotations in COCO's JSON, with one label per image.

        This is the format of iNaturalist. The classes are the categories of the training file,
        including those without images, in the order of their ids.

        Args:
            json: Annotations of the training images.
            path: Folder that file names start from and must not leave; None takes the folder of
                the file.
            valid: Annotations of the validation images; None carves them off the training images.
            test: Annotations of the test images.
            follow_links: Whether a link inside `path` may lead out of it.
            skip_bad: Leave out missing and unreadable images instead of raising.
            **options: The other parameters of `from_folder`.

        Raises:
            UserError: If a file cannot be read, an image is missing, has no label or several labels
                or is in two files, a validation or test label is not among the training labels; or
                as for `from_folder`.
        """
        reading = ReadOptions(
            skip_bad=skip_bad, follow_links=follow_links, images=path, valid=valid, test=test
        )
        listing = partial(list_json, json, reading)
        return cls._from_listing(listing, LoadOptions(**options), skip_bad)

    @classmethod
    def from_arrays(
        cls,
        images: np.ndarray | Tensor,
        targets: Sequence[int] | np.ndarray | Tensor,
        valid: tuple | None = None,
        test: tuple | None = None,
        classes: Sequence[str] | None = None,
        transform: str | Callable | None = None,
        pad: int | None = None,
        valid_pct: float = 0.2,
        protocol: str = "clean",
        bs: int = 64,
        seed: int = 0,
        stats: tuple[Sequence[float], Sequence[float]] | None = None,
        device=None,
        item_tfms=None,
        batch_tfms=None,
    ) -> "LTDataLoaders":
        """Use images that are in memory already.

        Args:
            images: The training images.
            targets: Their class indices.
            valid: Validation (images, targets); None carves them off the training images.
            test: Test (images, targets).
            classes: Class names; None numbers the classes.
            transform: "crop_flip", "crop" or "none", or a transform of one's own, as for
                `from_folder`. None takes "crop_flip", or "none" with `item_tfms` or `batch_tfms`.
            pad: Black border of the crop in pixels, at least 0; None takes an eighth of the side.
            valid_pct: Share of each class that is carved off, in (0, 1).
            protocol: "clean", or "paper": keep all training images and choose epochs on the test
                set.
            bs: Images per training batch, at least 1.
            seed: Seed of the carved split, the order and the augmentation, in [0, 2**32).
            stats: Mean and standard deviation per channel for pixels in [0, 1]; None takes the
                statistics of the pre-trained model, or ImageNet's.
            device: Where batches go; None takes fastai's default.
            item_tfms: As for `from_folder`.
            batch_tfms: As for `from_folder`.

        Shape:
            images is (N, H, W, 3) or (N, H, W), uint8; targets is (N,), integers from 0 to C - 1.

        Raises:
            UserError: If shapes, types or labels do not fit, or a value is outside its range.

        Example:
            >>> images = np.zeros((12, 8, 8, 3), dtype=np.uint8)
            >>> targets = np.repeat([0, 1], [8, 4])
            >>> dls = LTDataLoaders.from_arrays(images, targets, valid_pct=0.25)
            >>> dls.class_counts.tolist()
            [6, 3]
        """
        options = LoadOptions(
            transform=transform,
            valid_pct=valid_pct,
            protocol=protocol,
            bs=bs,
            seed=seed,
            in_memory=True,
            stats=stats,
            pad=pad,
            device=device,
            item_tfms=item_tfms,
            batch_tfms=batch_tfms,
        )
        if not (transform is None or callable(transform)):
            check_choice("transform", transform, BATCH_TRANSFORMS)
        options.check()
        parts = list_arrays(images, targets, valid, test, classes)
        check_parts(parts.parts, parts.classes, protocol, "the training set")
        return build_loaders(cls, parts, options)
