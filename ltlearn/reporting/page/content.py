"""What a page holds: sections of texts, tables, plots and images, without any HTML."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from ltlearn.names import SHOTS
from ltlearn.utils.text import clean

__all__ = [
    "Cell",
    "ClassData",
    "CodeBlock",
    "Column",
    "Folded",
    "ErrorGroup",
    "ErrorThumbnail",
    "Errors",
    "Facts",
    "Headline",
    "MethodClasses",
    "Page",
    "Plot",
    "Row",
    "PageSection",
    "PageTable",
    "Text",
]

_MAX_MISTAKES = 2  # of a class that the table of classes lists


@dataclass(frozen=True)
class Text:
    """A paragraph.

    Args:
        text: The paragraph, in plain text.
        is_note: Whether it is in small print.
    """

    kind: ClassVar = "text"
    text: str
    is_note: bool = False


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Args:
        label: The heading.
        is_number: Whether the cells are numbers, which are aligned to the right.
        hint: What the column is, shown on hover.
        is_long: Whether its texts need more width.
    """

    label: str
    is_number: bool = True
    hint: str = ""
    is_long: bool = False


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Args:
        text: What it shows.
        value: The number that it is sorted by; None for a text or an unknown number.
        is_best: Whether it is the best of its column.
    """

    text: str
    value: float | None = None
    is_best: bool = False


@dataclass(frozen=True)
class PageTable:
    """A table; the first cell of a row is its heading.

    Args:
        title: The title above it, also for screen readers.
        columns: The columns.
        rows: The cells of each row.
        is_sortable: Whether a click on a heading sorts it.
    """

    kind: ClassVar = "table"
    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    is_sortable: bool = True


@dataclass(frozen=True)
class Plot:
    """A plot.

    Args:
        title: The title.
        svg: The `svg` element, from `figure_to_svg`.
        about: What it shows, for readers who do not see it.
    """

    kind: ClassVar = "plot"
    title: str
    svg: str
    about: str


@dataclass(frozen=True)
class Row:
    """Parts beside each other where there is room.

    Args:
        parts: The parts.
    """

    kind: ClassVar = "row"
    parts: Sequence["Part"]


@dataclass(frozen=True)
class Facts:
    """Pairs of a name and a value.

    Args:
        title: The title.
        pairs: Name and value.
    """

    kind: ClassVar = "facts"
    title: str
    pairs: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class CodeBlock:
    """Code to copy.

    Args:
        title: What it does.
        code: The code.
    """

    kind: ClassVar = "code"
    title: str
    code: str


@dataclass(frozen=True)
class Folded:
    """Parts that unfold at a click.

    Args:
        summary: The line that is visible while the part is folded.
        parts: The parts.
    """

    kind: ClassVar = "details"
    summary: str
    parts: Sequence["Part"]


@dataclass(frozen=True)
class ErrorThumbnail:
    """A misclassified image.

    Args:
        source: The image as a data URL; empty if it cannot be shown.
        true: The true class.
        predicted: The predicted class.
        confidence: The probability of the predicted class, from 0 to 1.
        of_true: The probability of the true class; None if unknown.
        is_small: Whether it has so few pixels that it is shown without smoothing.
        name: The file or the number of the image.
    """

    source: str
    true: str
    predicted: str
    confidence: float
    of_true: float | None = None
    is_small: bool = False
    name: str = ""


@dataclass(frozen=True)
class ErrorGroup:
    """The most confident errors in a shot group.

    Args:
        group: "many", "medium" or "few".
        errors: Number of errors in the group.
        images: Number of images in the group.
        shown: The errors with the highest confidence.
    """

    group: str
    errors: int
    images: int
    shown: Sequence[ErrorThumbnail]


@dataclass(frozen=True)
class Errors:
    """The most confident errors, by shot group.

    Args:
        groups: The groups that have images.
    """

    kind: ClassVar = "errors"
    groups: Sequence[ErrorGroup]


@dataclass(frozen=True, eq=False)
class MethodClasses:
    """The figures of each class under one method.

    Args:
        label: The name of the method.
        accuracy: Accuracy of each class, which is its recall, from 0 to 1; NaN where unknown.
        precision: Precision of each class; None if unknown.
        f1: F1 of each class; None if unknown.
        mistakes: For each class the classes that it is taken for, with their share, most frequent
            first; None if unknown.
    """

    label: str
    accuracy: np.ndarray
    precision: np.ndarray | None = None
    f1: np.ndarray | None = None
    mistakes: Sequence[Sequence[tuple[int, float]]] | None = None


@dataclass(frozen=True, eq=False)
class ClassData:
    """The table of classes.

    Args:
        names: The names of the classes, in label order.
        groups: The shot group of each class.
        training: Training images of each class.
        images: Images of each class that the figures are measured on.
        part: What those images are: "test" or "validation".
        methods: The figures of each method, the reference first.
        shown: Number of the method that is shown first beside the reference.
        csv: File with all classes beside the page; empty if there is none.
    """

    kind: ClassVar = "classes"
    names: Sequence[str]
    groups: Sequence[str]
    training: Sequence[int]
    images: Sequence[int]
    part: str
    methods: Sequence[MethodClasses]
    shown: int
    csv: str = ""

    def to_json(self) -> dict:
        """Return what the script of the page reads: numbers in tenths of a percent."""
        return {
            "names": [clean(name) for name in self.names],
            "groups": [SHOTS.index(group) for group in self.groups],
            "training": [int(n) for n in self.training],
            "images": [int(n) for n in self.images],
            "shown": self.shown,
            "methods": [
                {
                    "label": method.label,
                    "accuracy": _tenths(method.accuracy),
                    "precision": _tenths(method.precision),
                    "f1": _tenths(method.f1),
                    "mistakes": _first_mistakes(method.mistakes),
                }
                for method in self.methods
            ],
        }


def _tenths(values: np.ndarray | None) -> list[int | None] | None:
    if values is None:
        return None
    return [None if np.isnan(v) else round(1000 * float(v)) for v in values]


def _first_mistakes(mistakes: Sequence | None) -> list[list[int]] | None:
    """Return class and share in %, one after the other, of each class's first mistakes."""
    if mistakes is None:
        return None
    return [
        [n for other, share in row[:_MAX_MISTAKES] for n in (int(other), round(100 * share))]
        for row in mistakes
    ]


@dataclass(frozen=True)
class Headline:
    """A figure at the top of the page.

    Args:
        label: Its name.
        text: The figure.
        before: The figure of the reference; empty without one.
        change: The difference to the reference in points; None without one.
        is_better_if_lower: Whether a smaller figure is the better one.
    """

    label: str
    text: str
    before: str = ""
    change: float | None = None
    is_better_if_lower: bool = False

    @property
    def trend(self) -> str:
        """Return "better", "worse" or "same"."""
        if self.change is None or abs(self.change) < 0.05:
            return "same"
        return "better" if (self.change > 0) != self.is_better_if_lower else "worse"


Part = Text | PageTable | Plot | Row | Facts | CodeBlock | Folded | Errors | ClassData


@dataclass(frozen=True)
class PageSection:
    """A section of a page.

    Args:
        name: Its anchor.
        title: Its heading.
        parts: What it holds.
        short: Its name in the navigation; empty for the title.
    """

    name: str
    title: str
    parts: Sequence[Part]
    short: str = ""


@dataclass(frozen=True)
class Page:
    """A page about a run or a comparison.

    Args:
        kind: What the page is, such as "Run report".
        title: Its heading.
        lead: A sentence on the result.
        chips: Facts in a few words each.
        method: The method that the headlines are of; `reference` is the one it is compared with.
        headlines: The figures at the top.
        sections: The sections.
        footer: A line at the end.
        reference: See `method`.
        links: Title and file of pages beside this one.
    """

    kind: str
    title: str
    lead: str
    chips: Sequence[str]
    method: str
    headlines: Sequence[Headline]
    sections: Sequence[PageSection]
    footer: str
    reference: str = ""
    links: Sequence[tuple[str, str]] = field(default=())
