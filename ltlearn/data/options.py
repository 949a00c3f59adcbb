"""How images are listed and how they are loaded: one frozen value for each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from fastcore.basics import listify

from ltlearn.errors import UserError, check_choice, check_number, check_whole
from ltlearn.names import PROTOCOLS, TRANSFORM_NAMES
from ltlearn.utils.settings import load_settings

__all__ = ["LoadOptions", "ReadOptions"]


@dataclass(frozen=True)
class ReadOptions:
    """How a source of images is listed. Each kind of source uses some of the options.

    Args:
        skip_bad: Leave out images that are missing or unreadable, with a warning, instead of
            raising.
        follow_links: Whether a link inside the image folder may lead out of it.
        images: Folder that relative paths start from; None takes the folder of the list.
        image_col: Column of the image paths, by name or by number from 0; None guesses it.
        label_col: Column of the labels, by name or by number from 0; None guesses it.
        split_col: Column of the parts, by name or by number from 0. None guesses it, False uses
            none.
        suffix: Ending that is appended to every path of a table, such as ".jpg".
        valid: File that lists the validation images, or their shards.
        test: File that lists the test images, or their shards.
        counts: File that maps each class of shards to its number of training images.
    """

    skip_bad: bool = False
    follow_links: bool = False
    images: str | Path | None = None
    image_col: str | int | None = None
    label_col: str | int | None = None
    split_col: str | int | bool | None = None
    suffix: str = ""
    valid: str | Path | Sequence[str | Path] | None = None
    test: str | Path | Sequence[str | Path] | None = None
    counts: str | Path | None = None

    def given(self) -> dict[str, object]:
        """Return the options that differ from their defaults, by name."""
        values = ((f.name, getattr(self, f.name), f.default) for f in fields(self))
        return {name: value for name, value, default in values if value != default}


@dataclass(frozen=True)
class LoadOptions:
    """How listed images become loaders: sizes, parts, batches and draws.

    Args:
        size: Side in pixels that images are resized to, at least 1. None keeps small images of one
            size as they are and takes 224 otherwise.
        transform: Training augmentation: a name of `ltlearn.names.TRANSFORM_NAMES`, or a transform
            as for `TrainingSteps`. None chooses one that fits the images.
        valid_pct: Share of each class that is carved off for validation, in (0, 1).
        protocol: "clean" or "paper".
        bs: Images per training batch, at least 1.
        seed: Seed of the carved split, the order and the augmentation, in [0, 2**32).
        num_workers: Processes that read images from disk, at least 0; None takes the setting.
        in_memory: Whether to hold all images decoded; None decides by size and number.
        stats: Mean and standard deviation per channel for pixels in [0, 1]; None takes the
            statistics of the pre-trained model, or ImageNet's.
        pad: Black border of the crop in pixels; None takes an eighth of the side.
        device: Where batches go; None takes fastai's default.
        bits: Bits that the values of images with 16 bits per channel take, from 8 to 16: 12 for
            many cameras and scanners. None finds it out from some training images.
        item_tfms: fastai transforms of single images; None has none.
        batch_tfms: fastai transforms of batches; None has none.
    """

    size: int | tuple[int, int] | None = None
    transform: str | Callable | None = None
    valid_pct: float = 0.2
    protocol: str = "clean"
    bs: int = 64
    seed: int = 0
    num_workers: int | None = None
    in_memory: bool | None = None
    stats: tuple[Sequence[float], Sequence[float]] | None = None
    pad: int | None = None
    device: object = None
    bits: int | None = None
    item_tfms: object = None
    batch_tfms: object = None

    @property
    def brings_tfms(self) -> bool:
        """Return whether the user brings fastai's transforms, which augment on their own."""
        return self.item_tfms is not None or self.batch_tfms is not None

    @property
    def brings_stats(self) -> bool:
        """Return whether the user's batch transforms hold the statistics of the images."""
        return any(type(t).__name__ == "Normalize" for t in listify(self.batch_tfms))

    def check(self) -> None:
        """Raise a `UserError` if a value is outside its range."""
        check_choice("protocol", self.protocol, PROTOCOLS)
        check_number("valid_pct", self.valid_pct, 0, 1, above=True, below=True)
        check_whole("bs", self.bs, 1)
        check_whole("seed", self.seed, 0)
        if self.seed >= 2**32:
            raise UserError(f"seed must be below 2**32, got {self.seed}.")
        if self.num_workers is not None:
            check_whole("num_workers", self.num_workers, 0)
        if self.size is not None:
            check_whole("size", self.size, 1)
        if self.bits is not None:
            check_whole("bits", self.bits, 8)
            check_number("bits", self.bits, 8, 16)
        if isinstance(self.transform, str):
            check_choice("transform", self.transform, TRANSFORM_NAMES)
        elif not (self.transform is None or callable(self.transform)):
            raise UserError(
                f"transform must be one of {', '.join(TRANSFORM_NAMES)}, or a transform that can "
                f"be called with an image, got {self.transform!r}."
            )

    def with_workers(self) -> "LoadOptions":
        """Return the options with the number of workers, from the settings where it is None."""
        if self.num_workers is not None:
            return self
        options = replace(self, num_workers=load_settings().num_workers)
        check_whole("num_workers", options.num_workers, 0)
        return options
