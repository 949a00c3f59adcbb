"""`RowLoaders`: constructors for images that are not files of their own, and for features."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Self

from ltlearn.data.build import build_loaders, check_parts, load_listed
from ltlearn.data.given_features import FeatureMaker, list_features
from ltlearn.data.options import LoadOptions, ReadOptions
from ltlearn.data.part_loaders import PartLoaders
from ltlearn.data.readers.hf import list_dataset
from ltlearn.data.readers.parts import ListedImages
from ltlearn.data.readers.webdataset import list_shards

__all__ = ["RowLoaders"]


class RowLoaders(PartLoaders):
    """Loaders of images in the rows of a dataset or in WebDataset shards, or of features."""

    @classmethod
    def from_features(
        cls,
        x,
        y,
        valid: tuple | None = None,
        test: tuple | None = None,
        classes: Sequence[str] | None = None,
        valid_pct: float = 0.1,
        protocol: str = "clean",
        bs: int = 64,
        seed: int = 0,
        device=None,
    ) -> Self:
        """Use features that you have already, such as embeddings of CLIP or DINO.

        `lt_learner(dls)` needs no architecture then: its backbone passes the features on, and
        `fit_stage1(method="probe")` trains the classifier that all corrections begin with. The
        features are used as they are, without normalisation. float16 and float32 are kept, float64
        and bfloat16 become float32. A memory-mapped array stays on disk if `valid` is given;
        carving copies both parts into memory.

        Args:
            x: The training features: an array, a tensor, or a memory-mapped array.
            y: Their labels: class indices from 0, or class names.
            valid: Validation (features, labels); None carves them off the training features.
            test: Test (features, labels).
            classes: Class names in the order of the indices. None: the indices, or the names in
                `y`, in natural order.
            valid_pct: Share of each class that is carved off, in (0, 1).
            protocol: "clean", or "paper": keep all training features and choose epochs on the test
                set.
            bs: Rows per training batch, at least 1.
            seed: Seed of the carved split and the order, in [0, 2**32).
            device: Where batches go; None takes fastai's default.

        Shape:
            x is (N, D), float. y is (N,), integers or text.

        Raises:
            UserError: If shapes, types or labels do not fit, a feature is not finite, a validation
                or test label is not among the training labels, or a value is outside its range.

        Example:
            >>> x = np.random.default_rng(0).normal(size=(60, 8)).astype("float32")
            >>> dls = LTDataLoaders.from_features(x, ["cat"] * 50 + ["lynx"] * 10)
            >>> dict(zip(dls.vocab, dls.class_counts.tolist()))
            {'cat': 45, 'lynx': 9}
        """
        options = LoadOptions(
            valid_pct=valid_pct, protocol=protocol, bs=bs, seed=seed, device=device
        )
        options.check()
        parts = list_features(x, y, valid, test, classes)
        check_parts(parts.parts, parts.classes, protocol, "the training set")
        return build_loaders(cls, parts, options, FeatureMaker)

    @classmethod
    def from_hf(
        cls, dataset, image_col: str | None = None, label_col: str | None = None, **options
    ) -> Self:
        """Read the images of a Hugging Face dataset, each from its row when it is needed.

        A saved dataset stays on disk, memory-mapped. Images that are not held in memory (see
        `from_folder`) are read once at the start for the fingerprint of the split, which depends on
        their content; for a saved dataset, `cache_path` keeps it.

        Args:
            dataset: A `datasets.Dataset`; a `datasets.DatasetDict` with "train" and any of "valid",
                "val", "validation" and "test"; or a folder that `save_to_disk` wrote, which needs
                the extra `hf`.
            image_col: Column of the images, of type Image, encoded bytes or paths. None takes the
                first column of type Image, or else a column with a name that `from_csv` takes.
            label_col: Column of the labels, of type ClassLabel, text or integers. None takes a
                column with a name that `from_csv` takes, or else the only one of type ClassLabel.
            **options: The other parameters of `from_folder`.

        Raises:
            UserError: If `dataset` is none of these, lacks a column or a label, a validation or
                test label is not among the training labels; or as for `from_folder`.
        """
        skip_bad = options.pop("skip_bad", False)
        reading = ReadOptions(skip_bad=skip_bad, image_col=image_col, label_col=label_col)
        listing = partial(list_dataset, dataset, reading)
        return cls._from_listing(listing, LoadOptions(**options), skip_bad)

    @classmethod
    def from_webdataset(
        cls,
        shards: str | Path | Sequence[str | Path],
        valid: str | Path | Sequence[str | Path] | None = None,
        test: str | Path | Sequence[str | Path] | None = None,
        counts: str | Path | None = None,
        image_col: str | None = None,
        label_col: str | None = None,
        **options,
    ) -> Self:
        """Read WebDataset shards on a local disk. It needs the extra `webdataset`.

        The headers of each shard are read once, and the index is kept beside it. Each image is then
        read at its offset, so samplers, draws and resume work as for files.

        Args:
            shards: The training shards: a .tar file, a pattern such as "train-{000..009}.tar" or
                "train-*.tar", a list of these, or a folder. In a folder, the word train, valid,
                val, validation or test in the name of a shard, or the name of its folder, decides
                its part; without any, all are training shards.
            valid: The validation shards; None carves them off the training images, or takes those
                in the folder.
            test: The test shards.
            counts: A JSON or CSV file that maps each class to its number of training images, in the
                order of the class numbers. It names the classes, and a missing shard is noticed.
                None takes the classes and counts from the shards.
            image_col: Extension of the images, such as "jpg"; None takes the only image of each
                sample.
            label_col: Extension of the labels, or their key in .json; None takes .cls, or else a
                key in .json with a name that `from_csv` takes.
            **options: The other parameters of `from_folder`.

        Raises:
            UserError: If a shard is missing, remote, compressed or damaged, a key occurs twice, a
                sample lacks an image or a label, a label is not among the training labels, or the
                counts differ; or as for `from_folder`.
        """
        skip_bad = options.pop("skip_bad", False)
        reading = ReadOptions(
            skip_bad=skip_bad, image_col=image_col, label_col=label_col, valid=valid, test=test,
            counts=counts,
        )  # fmt: skip
        listing = partial(list_shards, shards, reading)
        return cls._from_listing(listing, LoadOptions(**options), skip_bad)

    @classmethod
    def _from_listing(
        cls, list_images: Callable[[], ListedImages], options: LoadOptions, skip_bad: bool
    ) -> Self:
        """Read listed images. The options are checked before the images are listed."""
        options.check()
        options = options.with_workers()
        return build_loaders(cls, *load_listed(list_images(), options, skip_bad))
