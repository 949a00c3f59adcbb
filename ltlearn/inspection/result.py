"""`Inspection`: the result of an inspection."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from ltlearn.data.class_names import find_similar_names
from ltlearn.data.counts import count_classes, imbalance_factor_of
from ltlearn.inspection import rendering
from ltlearn.metrics.shots import shot_groups
from ltlearn.names import DEFAULT_STAGE1
from ltlearn.utils.text import clean

__all__ = ["Advice", "CopyGroup", "Duplicates", "Inspection", "Sizes", "UnreadableImage"]


@dataclass(frozen=True)
class Sizes:
    """The sizes of the images: (width, height) in pixels, upright.

    Args:
        smallest: Size of the image with the smallest area.
        median: Size of the image with the median area.
        largest: Size of the image with the largest area.
        different: Number of different sizes.
    """

    smallest: tuple[int, int]
    median: tuple[int, int]
    largest: tuple[int, int]
    different: int


@dataclass(frozen=True)
class UnreadableImage:
    """An image that cannot be read.

    Args:
        path: The file.
        part: "train", "valid" or "test".
        label: Name of its class.
        reason: Why it cannot be read.
    """

    path: str
    part: str
    label: str
    reason: str

    def to_dict(self) -> dict[str, str]:
        """Convert to the entry of `inspection.json`."""
        values = {"path": self.path, "part": self.part, "class": self.label}
        return {**values, "reason": self.reason}


@dataclass(frozen=True)
class CopyGroup:
    """Images with the same pixels.

    Args:
        paths: The files.
        parts: The part of each file.
        classes: The class name of each file.
        same_file: Whether the files are equal byte by byte.
    """

    paths: list[str]
    parts: list[str]
    classes: list[str]
    same_file: bool


@dataclass
class Duplicates:
    """Images that are equal pixel by pixel, as training reads them.

    Args:
        groups: The groups of equal images.
        copies_within: Number of images beyond the first in a class of a part, over all groups.
        conflicts: Number of groups with two or more labels.
        conflict_images: Number of images in groups with two or more labels.
        leaks: "valid" and "test" to the number of their images that are also in training.
        across_parts: Number of groups in two or more parts.
    """

    groups: list[CopyGroup] = field(default_factory=list)
    copies_within: int = 0
    conflicts: int = 0
    conflict_images: int = 0
    leaks: dict[str, int] = field(default_factory=dict)
    across_parts: int = 0


@dataclass(frozen=True)
class Advice:
    """Advice on how to train on the images.

    Args:
        size: Side in pixels that images are resized to.
        arch: Architecture, a name of `timm.list_models()`, or a CIFAR ResNet.
        pretrained: Whether to start from pre-trained weights.
        epochs: Epochs of stage 1.
        batch_size: Images per training batch.
        method: How to retrain the classifier, a name of `ltlearn.methods.METHODS`.
        reason: Why this method, in one sentence.
        skip_bad: Whether unreadable images must be left out.
        code: Python code that trains as advised.
        stage1: How to train stage 1, a name of `ltlearn.methods.METHODS`.
        stage1_reason: Why, in one sentence, unless it is the default method.
    """

    size: int
    arch: str
    pretrained: bool
    epochs: int
    batch_size: int
    method: str
    reason: str
    skip_bad: bool
    code: str
    stage1: str = DEFAULT_STAGE1
    stage1_reason: str = ""


@dataclass(repr=False)
class Inspection:
    """The result of `inspect_images`. `print` writes it as text of 80 columns.

    Args:
        name: Name of the dataset.
        classes: Class names in label order.
        counts: Part ("train", "valid", "test") to its images per class.
        few: The few-shot convention, "<20" or "<=20".
        quick: Whether only the headers were read.
        sizes: The sizes of the images; None if no image can be read.
        formats: File format to number of images.
        kinds: How pixels are stored, a name of `ltlearn.inspection.KINDS`, to number of images.
        unreadable: The images that cannot be read.
        seconds: How long it took to read all images.
        duplicates: The duplicates; None if they were not searched.
        advice: How to train on the images; None if that is impossible.
        columns: For a table: "path", "label" and "split" to the column that was read.
        ignored: Extension to number of files in class folders that are not taken for images.
        problems: Why no model can be trained on the images, one sentence each.
        bits: Bits that the values of 16-bit images take.
        ignored_columns: For a table: the columns that were not read.

    Example:
        >>> report = inspect_path("photos")  # doctest: +SKIP
        >>> report.counts, report.imbalance_factor  # doctest: +SKIP
        ({'train': [600, 30]}, 20.0)
    """

    name: str
    classes: list[str]
    counts: dict[str, list[int]]
    few: str = "<20"
    quick: bool = False
    sizes: Sizes | None = None
    formats: dict[str, int] = field(default_factory=dict)
    kinds: dict[str, int] = field(default_factory=dict)
    unreadable: list[UnreadableImage] = field(default_factory=list)
    seconds: float = 0.0
    duplicates: Duplicates | None = None
    advice: Advice | None = None
    columns: dict[str, str] = field(default_factory=dict)
    ignored: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    bits: int = 16
    ignored_columns: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        """Return the number of images in all parts."""
        return sum(map(sum, self.counts.values()))

    @property
    def imbalance_factor(self) -> float:
        """Return the largest training count over the smallest one that is not zero."""
        labels = np.repeat(np.arange(len(self.classes)), self.counts["train"])
        return imbalance_factor_of(count_classes(labels, len(self.classes)))

    @property
    def group_sizes(self) -> dict[str, int]:
        """Return the number of classes in each shot group."""
        groups = shot_groups(self.counts["train"], self.few)
        return {name: int(mask.sum()) for name, mask in groups.items()}

    def with_images(self, number: int, part: str = "train") -> list[str]:
        """Return the classes that have exactly `number` images in a part.

        Args:
            number: Number of images.
            part: "train", "valid" or "test".
        """
        return [c for c, n in zip(self.classes, self.counts[part], strict=True) if n == number]

    def untrained(self) -> list[str]:
        """Return the classes that are in validation or test, but not in training."""
        later = [counts for part, counts in self.counts.items() if part != "train"]
        return [
            name
            for c, name in enumerate(self.classes)
            if not self.counts["train"][c] and any(counts[c] for counts in later)
        ]

    def similar(self) -> list[list[str]]:
        """Return the groups of class names that probably mean one class."""
        return find_similar_names(self.classes)

    def histogram(self) -> list[tuple[str, int, str]]:
        """Return the number of classes per range of training images: (range, classes, group)."""
        counts = np.asarray(self.counts["train"])
        first_medium = 20 if self.few == "<20" else 21
        # Steps of 1, 2 and 5, moved to the borders of the shot groups.
        starts = [0, 1, 2, 5, 10, first_medium, 50, 101, 200, 500]
        steps = (k * 10**e for e in range(3, 19) for k in (1, 2, 5))
        while starts[-1] <= counts.max(initial=0):
            starts.append(next(steps))
        rows = []
        for low, end in zip(starts, starts[1:], strict=False):
            n = int(((counts >= low) & (counts < end)).sum())
            group = next(name for name, mask in shot_groups([low], self.few).items() if mask[0])
            rows.append((f"{low:,}" if end == low + 1 else f"{low:,}-{end - 1:,}", n, group))
        filled = [i for i, row in enumerate(rows) if row[1]]
        return rows[filled[0] : filled[-1] + 1] if filled else []

    def rows(self) -> list[tuple[str, str]]:
        """Return the findings as pairs (topic, text); a text may have several lines."""
        return rendering.finding_rows(self)

    def to_dict(self, command: str | None = None) -> dict[str, Any]:
        """Convert to plain numbers, lists and None, for `json.dump`.

        Args:
            command: The shell command that trains as advised; None if there is none.
        """
        keys = ("training_images", "classes", "shot_group")
        advice = {**asdict(self.advice), "command": command} if self.advice else None
        return {
            "name": self.name,
            "images": {part: sum(counts) for part, counts in self.counts.items()},
            "classes": self.classes,
            "counts": self.counts,
            "imbalance_factor": self.imbalance_factor,
            "few_rule": self.few,
            "shot_groups": self.group_sizes,
            "no_training_image": self.with_images(0),
            "single_training_image": self.with_images(1),
            "not_in_training": self.untrained(),
            "similar_names": self.similar(),
            "histogram": [dict(zip(keys, row, strict=True)) for row in self.histogram()],
            "headers_only": self.quick,
            "sizes": asdict(self.sizes) if self.sizes else {},
            "formats": self.formats,
            "kinds": self.kinds,
            "bits": self.bits,
            "unreadable": [image.to_dict() for image in self.unreadable],
            "columns": self.columns,
            "ignored_columns": self.ignored_columns,
            "ignored": self.ignored,
            "reading_s": self.seconds,
            "duplicates": asdict(self.duplicates) if self.duplicates else None,
            "advice": advice,
            "stops": self.problems,
        }

    def to_text(self, command: str | None = None) -> str:
        """Return the findings as text of at most 80 columns, without a trailing newline.

        Args:
            command: The shell command that trains as advised; None prints only the Python code.
        """
        return rendering.to_text(self, command)

    def to_markdown(self, command: str | None = None) -> str:
        """Return the findings as Markdown, with a trailing newline.

        Args:
            command: The shell command that trains as advised; None prints only the Python code.
        """
        return rendering.to_markdown(self, command)

    def save(self, folder: Path, command: str | None = None) -> None:
        """Write `inspection.md`, `inspection.json` and `class_counts.png`.

        Args:
            folder: The folder; it is created if it is missing.
            command: As for `to_text`.

        Raises:
            UserError: If the folder cannot be written to.
        """
        rendering.save(self, folder, command)

    def render(self, file: TextIO | None = None, command: str | None = None) -> None:
        """Write the text to a stream, in characters that its encoding has.

        Args:
            file: The stream; None writes to standard output.
            command: As for `to_text`.
        """
        rendering.write_text(self, file, command)

    def __str__(self) -> str:
        """Return the text."""
        return self.to_text()

    def __repr__(self) -> str:
        """Return the number of images and classes, and of problems."""
        problems = f", {len(self.problems)} problems" if self.problems else ""
        return (
            f"Inspection of {clean(self.name)}: {self.total:,} images, {len(self.classes):,} "
            f"classes{problems}. print() writes the findings."
        )

    def _repr_html_(self) -> str:
        """Return the tables that a notebook shows; the code unfolds at a click."""
        return rendering.to_html(self)
