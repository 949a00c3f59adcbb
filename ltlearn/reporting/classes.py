"""`ClassTable`: the accuracy of each class, and which classes it is taken for."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO

import numpy as np

from ltlearn.metrics.scores import ClassScores
from ltlearn.reporting.text import markdown_table
from ltlearn.utils.html import html_table
from ltlearn.utils.terminal import render_rows
from ltlearn.utils.text import DASH, clean, escape_markdown, percent_text

__all__ = ["ClassTable"]

_ALL_IN_REPORT, _WORST_IN_REPORT = 30, 20  # up to 30 classes all of them, of more the 20 worst
_ALL_ON_TERMINAL, _WORST_ON_TERMINAL = 12, 10
# With more methods, only the first and the one of the mistakes have a column.
_METHODS_IN_REPORT, _METHODS_ON_TERMINAL = 4, 2
_MISTAKES_IN_REPORT = 3
_VERBS = {"test": "test", "validation": "validate"}


@dataclass(frozen=True)
class ClassTable:
    """The accuracy of each class by method, the mean over seeds.

    Args:
        classes: Class names in label order.
        groups: The shot group of each class.
        training_images: Training images of each class.
        images: Images of each class that the accuracy is measured on, of the first seed.
        part: What those images are: "test" or "validation".
        accuracy: Method to the accuracy of each class, in [0, 1]; NaN for a class without images.
        labels: Method to its label.
        method: The method that `mistakes` is of, and by which the worst classes are chosen.
        mistakes: For each class the other classes that it is taken for, with the share of its
            images, from 0 to 1, over all seeds, most frequent first.
        scores: Method to precision, recall and F1 of each class, the mean over seeds. They are in
            `rows` alone: the tables would become too wide.

    Shape:
        All lists and arrays have one entry per class.
    """

    classes: Sequence[str]
    groups: Sequence[str]
    training_images: Sequence[int]
    images: Sequence[int]
    part: str
    accuracy: Mapping[str, np.ndarray]
    labels: Mapping[str, str]
    method: str
    mistakes: Sequence[Sequence[tuple[int, float]]]
    scores: Mapping[str, ClassScores] = field(default_factory=dict)

    def rows(self) -> list[dict[str, Any]]:
        """List the classes in label order with the figures of every method, for a CSV file."""
        return [
            {
                "class": self.classes[c],
                "group": self.groups[c],
                "training_images": int(self.training_images[c]),
                f"{self.part}_images": int(self.images[c]),
                **{f"accuracy_{name}": _known(v[c]) for name, v in self.accuracy.items()},
                **{
                    f"{kind}_{name}": _known(getattr(scores, kind)[c])
                    for name, scores in self.scores.items()
                    for kind in ("precision", "recall", "f1")
                },
                f"taken_for_{self.method}": "; ".join(
                    f"{self.classes[other]} ({100 * share:.1f} %)"
                    for other, share in self.mistakes[c]
                ),
            }
            for c in range(len(self.classes))
        ]

    def worst(self, number: int) -> list[int]:
        """List classes that have images, those with the lowest accuracy first.

        Of equal accuracies, the class with fewer training images comes first.

        Args:
            number: Number of classes.
        """
        own = self.accuracy[self.method]
        known = [c for c in range(len(self.classes)) if not np.isnan(own[c])]
        return sorted(known, key=lambda c: (own[c], self.training_images[c]))[:number]

    def to_markdown(self, file: str) -> str:
        """Return the table of all classes, or of the worst, for report.md.

        Args:
            file: Name of the file with `rows`, relative to the report.
        """
        shown, about = self._shown(_ALL_IN_REPORT, _WORST_IN_REPORT)
        methods = self._methods(_METHODS_IN_REPORT)
        rows, head = self._cells(shown, methods, _MISTAKES_IN_REPORT), self._head(methods)
        # `markdown_table` escapes the bars of a table itself.
        rows = [[escape_markdown(cell).replace("\\|", "|") for cell in row] for row in rows]
        align = ["---", "---", *["---:"] * (len(head) - 3), "---"]
        link = f"[{file}]({file}) has all classes and methods."
        return f"{about} {link}\n\n{markdown_table(head, align, rows)}"

    def render(self, file: TextIO | None = None) -> None:
        """Write the table of all classes, or of the worst, for a terminal.

        Args:
            file: Where to write; standard output if None.
        """
        file = sys.stdout if file is None else file
        shown, about = self._shown(_ALL_ON_TERMINAL, _WORST_ON_TERMINAL)
        methods = self._methods(_METHODS_ON_TERMINAL)
        # Short headings, so that the table fits a terminal of 80 columns.
        head = ["class", "group", "train", _VERBS[self.part]]
        head += [*(self.labels[m] for m in methods), "taken for"]
        title = f"accuracy in %. {about} The last column is of {self.labels[self.method]}."
        render_rows(head, self._cells(shown, methods, 1), file, title)

    def __repr__(self) -> str:
        """Return the number of classes and the methods."""
        return f"ClassTable of {len(self.classes)} classes: {'; '.join(self.labels.values())}"

    def _repr_html_(self) -> str:
        return self.to_html()

    def to_html(self) -> str:
        """Return the table that a notebook shows."""
        shown, about = self._shown(_ALL_IN_REPORT, _WORST_IN_REPORT)
        methods = self._methods(_METHODS_IN_REPORT)
        cells = self._cells(shown, methods, _MISTAKES_IN_REPORT)
        return html_table(self._head(methods), cells, about, left=2)

    def _head(self, methods: Sequence[str]) -> list[str]:
        """Return the headings where there is room for them."""
        head = ["class", "group", "training images", f"{self.part} images"]
        head += [f"{self.labels[m]} %" for m in methods]
        return [*head, f"{self.labels[self.method]} takes it for"]

    def _shown(self, all_up_to: int, number: int) -> tuple[list[int], str]:
        """Return the classes to show, and a sentence on which they are."""
        n_classes, label = len(self.classes), self.labels[self.method]
        if n_classes <= all_up_to:
            counts = np.asarray(self.training_images)
            order = np.argsort(-counts, kind="stable").tolist()
            return order, f"All {n_classes} classes, the most frequent first."
        worst = self.worst(number)
        return worst, f"The {len(worst)} of {n_classes:,} classes that {label} classifies worst."

    def _methods(self, at_most: int) -> list[str]:
        """Return the methods that have a column."""
        methods = list(self.accuracy)
        if len(methods) > at_most:
            methods = list(dict.fromkeys([methods[0], self.method]))
        return methods

    def _cells(
        self, shown: Sequence[int], methods: Sequence[str], mistakes: int
    ) -> list[list[str]]:
        """Return the rows of some classes, with at most a number of mistakes each."""
        rows = []
        for c in shown:
            values = [percent_text(_known(self.accuracy[m][c])) for m in methods]
            numbers = [f"{self.training_images[c]:,}", f"{self.images[c]:,}"]
            name, taken_for = clean(self.classes[c]), self._mistakes_text(c, mistakes)
            rows.append([name, self.groups[c], *numbers, *values, taken_for])
        return rows

    def _mistakes_text(self, c: int, number: int) -> str:
        parts = [
            f"{clean(self.classes[other])} ({100 * share:.0f} %)"
            for other, share in self.mistakes[c][:number]
        ]
        return ", ".join(parts) or DASH


def _known(accuracy: float) -> float | None:
    return None if np.isnan(accuracy) else round(float(accuracy), 6)
