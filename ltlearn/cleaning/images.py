"""The images of all parts of a learner's data, one after the other."""

from collections.abc import Iterator, Sequence

import numpy as np

from ltlearn.data.items import pixels_of
from ltlearn.data.loaders import LTDataLoaders
from ltlearn.errors import UserError
from ltlearn.names import PARTS

__all__ = ["LoadedImages"]


class LoadedImages:
    """Every image of some loaders once: training, then validation, then test.

    Under the paper protocol the validation images are the test images, and in a run without a test
    set it is the other way round. Such images count once.

    Args:
        dls: The loaders.

    Raises:
        UserError: If they hold no images, as in a learner that `load_learner` returned.
    """

    def __init__(self, dls: LTDataLoaders):
        loaders = {part: getattr(dls, part) for part in PARTS}
        loaders = {part: dl for part, dl in loaders.items() if dl is not None}
        if loaders.get("test") is dls.valid:
            del loaders["test"]
        elif dls.split.valid_from == "test set":
            del loaders["valid"]
        self.datasets = {part: dl.dataset for part, dl in loaders.items() if len(dl.dataset)}
        if "train" not in self.datasets:
            raise UserError(
                "the learner has no training images, as after load_learner; make it from "
                "LTDataLoaders with images."
            )
        self.parts = list(self.datasets)
        self.ends = np.cumsum([len(dataset) for dataset in self.datasets.values()])
        targets = [dataset.targets.numpy() for dataset in self.datasets.values()]
        self.targets, self.classes = np.concatenate(targets), list(dls.vocab)
        # A validation image that was carved off is a row of the array for training.
        self._is_carved = dls.split.valid_from == "training images"

    def __len__(self) -> int:
        return len(self.targets)

    def span(self, part: str) -> slice:
        """Return where the images of a part are.

        Args:
            part: "train", "valid" or "test".
        """
        number = self.parts.index(part)
        end = int(self.ends[number])
        return slice(end - len(self.datasets[part]), end)

    def spans(self) -> Iterator[tuple[str, slice]]:
        """Return each part, and where its images are."""
        return ((part, self.span(part)) for part in self.parts)

    def part_numbers(self, index: np.ndarray | Sequence[int]) -> np.ndarray:
        """Return the number of the part of each image.

        Args:
            index: Numbers of images.
        """
        return np.searchsorted(self.ends, index, side="right")

    def part_of(self, i: int) -> str:
        """Return the part of image i: "train", "valid" or "test".

        Args:
            i: Number of the image.
        """
        return self.parts[int(self.part_numbers(i))]

    def name_of(self, i: int) -> str:
        """Return the path of image i, or its row in an array, such as "train[17]".

        Args:
            i: Number of the image.
        """
        part = self.part_of(i)
        name = self.datasets[part].name_of(i - self.span(part).start)
        if not name.startswith("["):
            return name
        return f"train{name}" if part == "valid" and self._is_carved else f"{part}{name}"

    def pixels(self, i: int) -> np.ndarray:
        """Read image i: (H, W, 3), uint8, upright.

        Args:
            i: Number of the image.

        Raises:
            UserError: If it cannot be read.
        """
        part = self.part_of(i)
        dataset = self.datasets[part]
        return pixels_of(dataset.items.images[i - self.span(part).start], dataset.bits)
