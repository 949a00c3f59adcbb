"""Build loaders from images by part: carve validation images and take fingerprints."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import torch
from fastai.data.core import DataLoaders
from fastai.torch_core import default_device
from torch import Tensor

from ltlearn.data.class_names import warn_about_names
from ltlearn.data.counts import count_classes, imbalance_factor_of
from ltlearn.data.datasets import (
    BATCH_TRANSFORMS,
    IN_MEMORY_BYTES,
    IN_MEMORY_SIDE,
    ImageFiles,
    ImagesInMemory,
    NormalizeUint8,
    SplitInfo,
    look_at,
)
from ltlearn.data.digests import DIGEST_BYTES
from ltlearn.data.images import ImageSet
from ltlearn.data.loader import LTDataLoader
from ltlearn.data.options import LoadOptions
from ltlearn.data.own_transforms import (
    BatchSteps,
    EvaluationSteps,
    ItemSteps,
    ToShape,
    TrainingSteps,
)
from ltlearn.data.readers.folders import find_class_folders
from ltlearn.data.readers.parts import ListedImages
from ltlearn.data.splits import carve_validation
from ltlearn.data.transforms import ImageTransform
from ltlearn.defaults import IMAGENET_STATS
from ltlearn.errors import UserError, spell, spell_call
from ltlearn.names import PART_LABELS, PARTS, SPLITS
from ltlearn.utils.ranks import start

__all__ = [
    "DEFAULT_SIZE",
    "ImageParts",
    "LoaderMaker",
    "build_loaders",
    "check_parts",
    "leaks_text",
    "load_listed",
    "size_by_tfms",
]

_log = logging.getLogger("ltlearn")
_Loaders = TypeVar("_Loaders", bound=DataLoaders)
DEFAULT_SIZE = 224  # side in pixels of images that are not small
_EVALUATION_BS = 256  # smallest evaluation batch of images in memory
# A CUDA device needs larger batches to be busy: up to 1,024 images of 32 pixels.
_CUDA_EVALUATION_BS, _CUDA_EVALUATION_PIXELS = 1024, 1024 * 32 * 32
_MAX_NAMED_CLASSES = 5  # classes that a message names


@dataclass
class ImageParts:
    """Images by part, and the facts that identify them.

    Args:
        parts: Images of "train" and any of "valid" and "test".
        classes: Class names.
        split_name: How the images were chosen, for `SplitInfo`.
        dataset: Name of the dataset.
        profile: Profile of a cut set.
        imbalance_factor: Imbalance factor of a cut set; None measures it.
        columns: For a table, the column that each kind of value was read from.
        leaks: "valid" and "test" to the number of their images that are also training images of the
            same class. Parts without any are left out.
    """

    parts: dict[str, ImageSet]
    classes: list[str]
    split_name: str
    dataset: str
    profile: str | None = None
    imbalance_factor: float | None = None
    columns: dict[str, str] = field(default_factory=dict)
    leaks: dict[str, int] = field(default_factory=dict)


def check_parts(
    parts: dict[str, ImageSet], classes: list[str], protocol: str, where: Path | str
) -> None:
    """Raise a `UserError` if there is a single class, or no test set for the paper protocol.

    Args:
        parts: Images by part.
        classes: Class names.
        protocol: "clean" or "paper".
        where: Where the images come from, for the message.
    """
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


def load_listed(
    listed: ListedImages, options: LoadOptions, skip_bad: bool
) -> tuple[ImageParts, LoadOptions]:
    """Decide where listed images are held, and read them if they are held in memory.

    Args:
        listed: The images.
        options: How to load them.
        skip_bad: Leave out unreadable images instead of raising.

    Returns:
        The images, and the options with `size`, `in_memory` and `transform` decided.

    Raises:
        UserError: If there is a single class, no test set for the paper protocol, or an image
            cannot be read.
    """
    check_parts(listed.parts, listed.classes, options.protocol, listed.where)
    warn_about_names(listed.classes, listed.where)
    train = listed.parts["train"]
    look = look_at(train)
    size = options.size or size_by_tfms(options, train) or look.side or DEFAULT_SIZE
    bits = options.bits or look.read_bits
    if options.bits is None and look.bits < 16:
        _log.warning(
            "%s: the values of %d training images with 16 bits per channel take %d bits at most. "
            "They are read as values of %d bits; give %s to read them in another way.",
            listed.where, look.deep, look.bits, bits,
            spell("bits", 16 if bits < 16 else look.bits),
        )  # fmt: skip
    in_memory = options.in_memory
    if options.item_tfms is not None:
        if in_memory:
            raise UserError(
                f"item_tfms get the images as they are in their files, but "
                f"{spell('in_memory', True)} holds them resized; leave one of the two out."
            )
        in_memory = False
    if in_memory is None:
        total = sum(len(data) for data in listed.parts.values())
        in_memory = size <= IN_MEMORY_SIDE and total * size * size * 4 <= IN_MEMORY_BYTES
        transform = options.transform
        in_memory &= callable(transform) or transform in (None, *BATCH_TRANSFORMS)
    parts = {part: replace(data, bits=bits) for part, data in listed.parts.items()}
    if in_memory:
        parts = {part: data.load(size, skip_bad) for part, data in parts.items()}
    elif skip_bad:
        parts = {part: data.without_bad() for part, data in parts.items()}
    parts = {part: data.digested() for part, data in parts.items()}
    images = ImageParts(
        parts, listed.classes, listed.split_name, listed.dataset, columns=listed.columns,
        leaks=_warn_about_leaks(parts, listed.where),
    )  # fmt: skip
    return images, replace(options, size=size, in_memory=in_memory)


def size_by_tfms(options: LoadOptions, data: ImageSet) -> tuple[int, int] | None:
    """Return the height and width that the user's item transforms leave; None if they differ.

    Args:
        options: How to load the images.
        data: The images.
    """
    return ItemSteps(options.item_tfms).find_shape(data) if options.item_tfms is not None else None


def build_loaders(
    cls: type[_Loaders],
    images: ImageParts,
    options: LoadOptions,
    make_maker: "Callable[..., LoaderMaker] | None" = None,
) -> _Loaders:
    """Build the loaders of images by part.

    Args:
        cls: The class to build, `LTDataLoaders`.
        images: The images.
        options: How to load them, with `in_memory` decided. `size` matters for images on disk
            only.
        make_maker: Returns what makes the loader of each part, for options, class names and the
            training images. None: for images.
    """
    classes = images.classes
    shot_counts = count_classes(images.parts["train"].targets, len(classes))
    parts, split = _choose_validation(images, options, shot_counts)
    maker = (make_maker or _LoaderMaker)(options, classes, parts["train"])
    loaders = [maker.make(part, parts[part]) for part in PARTS if part in parts]
    device = _device_of(options)
    # The path is not the folder of the images, because a learner saves into it, and the new folder
    # would count as a class.
    dls = cls(*loaders, path=Path("."), device=device)
    dls.vocab, dls.c = list(classes), len(classes)
    dls.class_counts = count_classes(parts["train"].targets, len(classes))
    dls.shot_counts, dls.split = shot_counts, split
    dls.size, dls.normalize = maker.find_size(loaders[0]), maker.normalize
    dls.stats_given = maker.stats is not None
    dls.leaks = images.leaks
    dls.columns, dls.bits = images.columns, images.parts["train"].bits
    # Parts that were carved from one set share its list.
    dls.skipped = list(dict.fromkeys(p for data in parts.values() for p in data.skipped))
    _warn_about_counts(dls.class_counts, classes)
    n_train, n_valid = len(parts["train"]), len(parts["valid"])
    _log.info("%s: %d training, %d validation images", split, n_train, n_valid)
    return dls


def _choose_validation(
    images: ImageParts, options: LoadOptions, shot_counts: Tensor
) -> tuple[dict[str, ImageSet], SplitInfo]:
    """Decide which images validate, carve them off if needed, and take the fingerprints."""
    parts = {part: data.digested() for part, data in images.parts.items()}
    whole = parts["train"].fingerprint()
    by_order = images.split_name in SPLITS
    order = parts["train"].fingerprint(ordered=True) if by_order else None
    if options.protocol == "paper":
        # Published code trains on all training images and evaluates on the test set each epoch.
        if "valid" in parts:
            _log.info(
                "%d validation images are not used: the paper protocol chooses epochs on the test "
                "set",
                len(parts["valid"]),
            )
        parts = {"train": parts["train"], "valid": parts["test"], "test": parts["test"]}
        valid_from = "test set"
    elif "valid" in parts:
        valid_from = "validation set"
    else:
        train, valid = carve_validation(parts["train"].targets, options.valid_pct, options.seed)
        carved = {"train": parts["train"].part(train), "valid": parts["train"].part(valid)}
        parts, valid_from = {**parts, **carved}, "training images"
    return parts, SplitInfo(
        name=images.split_name,
        train=whole,
        valid=parts["valid"].fingerprint(),
        test=parts["test"].fingerprint() if "test" in parts else None,
        valid_from=valid_from,
        dataset=images.dataset,
        profile=images.profile,
        imbalance_factor=images.imbalance_factor or imbalance_factor_of(shot_counts),
        seed=options.seed,
        order=order,
    )


class LoaderMaker(Protocol):
    """What makes the loader of each part."""

    normalize: NormalizeUint8 | None
    stats: object

    def make(self, part: str, data: ImageSet) -> LTDataLoader:
        """Make the loader of a part."""

    def find_size(self, loader: LTDataLoader) -> tuple[int, int]:
        """Return the height and width of the images in a batch."""


class _LoaderMaker:
    """Makes the loader of each part; all share the normalisation and the user's transforms.

    Args:
        options: How to load the images.
        classes: Class names.
        train: The training images.
    """

    def __init__(self, options: LoadOptions, classes: Sequence[str], train: ImageSet):
        self.options, self.vocab = options, list(classes)
        self.batch = BatchSteps(options.batch_tfms)
        if self.batch.stats is not None and options.stats is not None:
            raise UserError("both stats and a Normalize in batch_tfms are given; leave one out.")
        self.stats = options.stats or self.batch.stats
        self.normalize = NormalizeUint8(*(self.stats or IMAGENET_STATS))
        self.items = None if options.item_tfms is None else ItemSteps(options.item_tfms)
        # Images can be held small, and enlarged one by one.
        in_memory = train.images is not None and options.in_memory is not False
        default = "crop_flip" if in_memory else "resized_crop_flip"
        own = self.items is not None or bool(self.batch.tfms)
        self.transform = options.transform or ("none" if own else default)
        self.shape = _sides(options.size) if not in_memory else train.images.shape[1:3]
        if in_memory and self.items is not None:
            self.shape = self.items.find_shape(train) or self.shape
        square = self.shape[0] == self.shape[1]
        resizes = in_memory or not square
        self.fit = ToShape(self.shape) if resizes else ImageTransform("none", self.shape[0])

    def make(self, part: str, data: ImageSet) -> LTDataLoader:
        """Make the loader of a part."""
        training, options = part == "train", self.options
        transform = self.transform if training else "none"
        bs, workers = options.bs, options.num_workers or 0
        own = self.items is not None or callable(transform)
        if own:
            dataset = self._make_own(data, transform)
        elif options.in_memory:
            dataset, workers = ImagesInMemory(data, transform, options.pad), 0
            bs = bs if training else max(bs, self._find_evaluation_bs())
        else:
            dataset = ImageFiles(data, transform, options.size, options.pad)
        dataset.vocab, dataset.tfms_name = self.vocab, self._name_tfms()
        return LTDataLoader(
            dataset,
            bs=bs,
            training=training,
            seed=options.seed,
            num_workers=workers,
            after_batch=self.batch.around(self.normalize),
        )

    def _find_evaluation_bs(self) -> int:
        """Return the smallest evaluation batch of images in memory."""
        if _device_of(self.options).type != "cuda":
            return _EVALUATION_BS
        fits = _CUDA_EVALUATION_PIXELS // (self.shape[0] * self.shape[1])
        return min(max(fits, _EVALUATION_BS), _CUDA_EVALUATION_BS)

    def find_size(self, loader: LTDataLoader) -> tuple[int, int]:
        """Return the height and width of the images in a batch."""
        if not self.batch.tfms:
            return loader.dataset.shape
        one = torch.zeros(1, 3, *loader.dataset.shape, dtype=torch.uint8)
        return tuple(self.batch.evaluate(one).shape[-2:])

    def _make_own(self, data: ImageSet, transform: str | Callable) -> ImageFiles:
        if transform == "none":
            transform = None
        elif isinstance(transform, str):
            if self.shape[0] != self.shape[1]:
                raise UserError(
                    f"transform {transform!r} makes square images, but item_tfms leave images of "
                    f"{self.shape[1]} x {self.shape[0]} pixels; leave transform out."
                )
            transform = ImageTransform(transform, self.shape[0], self.options.pad)
        steps = TrainingSteps(transform, self.items, self.fit, self.shape)
        return ImageFiles(data, steps, self.shape, plain=EvaluationSteps(self.items, self.fit))

    def _name_tfms(self) -> str:
        """Name the transforms that evaluation applies, too; "" without any."""
        names = [self.items.name] if self.items is not None else []
        return ", ".join(names + [self.batch.name] if self.batch.tfms else names)


def _device_of(options: LoadOptions) -> torch.device:
    """Return the device that batches go to."""
    start()  # gives each of several ranks its device
    return default_device() if options.device is None else torch.device(options.device)


def _sides(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)


def leaks_text(part: str, n: int) -> str:
    """Return how many images of a part are also training images of the same class.

    Args:
        part: "valid" or "test".
        n: The number of these images, at least 1.
    """
    also = "image is also a training image" if n == 1 else "images are also training images"
    return f"{n:,} {PART_LABELS[part]} {also} of the same class"


def _as_text(data: ImageSet) -> np.ndarray:
    """Return the digests as one array of bytes; a Python object per digest takes 100 bytes."""
    return np.ascontiguousarray(data.digests).view(f"S{DIGEST_BYTES}").ravel()


def _warn_about_leaks(parts: dict[str, ImageSet], where: Path | str) -> dict[str, int]:
    """Count images of validation or test that training has in the same class, and warn of them."""
    found = {}
    for part in PARTS[1:]:
        if part not in parts:
            continue
        leaks = np.flatnonzero(np.isin(_as_text(parts[part]), _as_text(parts["train"])))
        if len(leaks):
            found[part] = len(leaks)
            _log.warning(
                "%s: %s, such as %s; the results are too high. %s lists them.",
                where, leaks_text(part, len(leaks)), parts[part].file(leaks[0]),
                spell_call("inspect_path", path=str(where)),
            )  # fmt: skip
    return found


def _warn_about_counts(class_counts: Tensor, classes: Sequence[str]) -> None:
    for few, mask in (
        ("no training image", class_counts == 0),
        ("a single training image", class_counts == 1),
    ):
        names = [classes[c] for c in mask.nonzero().flatten().tolist()]
        if names:
            _log.warning(
                "%d class%s %s: %s%s", len(names), " has" if len(names) == 1 else "es have", few,
                ", ".join(names[:_MAX_NAMED_CLASSES]),
                " ..." if len(names) > _MAX_NAMED_CLASSES else "",
            )  # fmt: skip
