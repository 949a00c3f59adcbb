"""`ScoreTable`: precision, recall and F1 per shot group and class, as text, Markdown and HTML."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ltlearn.metrics.report import ShotReport
from ltlearn.names import SHOTS
from ltlearn.reporting.text import aligned_lines, markdown_table, mean_sd_text
from ltlearn.utils.html import html_paragraph, html_table
from ltlearn.utils.text import clean, percent_text

__all__ = ["ScoreTable", "class_score_table", "group_score_table"]

_SCORES = {"precision": "precision", "recall": "recall", "f1": "F1"}
_ABOUT = (
    "in %; the mean of a group gives each class with test images the same weight, and counts the "
    "precision of a class that is never predicted as 0"
)


@dataclass(frozen=True)
class ScoreTable:
    """A table of texts and numbers, such as precision, recall and F1 of each class, in %.

    Args:
        head: The headings.
        rows: The cells of each row; the first `texts` hold texts, the others numbers.
        texts: Number of columns with texts.
        about: A line below the table; empty for none.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    texts: int = 1
    about: str = _ABOUT

    def to_text(self) -> str:
        """Return the table as plain aligned lines, without a trailing newline."""
        # `aligned_lines` aligns one column of texts, so join them.
        head, *rows = self._joined()
        return "\n".join([*aligned_lines(head, rows), *filter(None, [self.about])])

    def to_markdown(self) -> str:
        """Return the table in Markdown, with the line below it."""
        align = ["---"] * self.texts + ["---:"] * (len(self.head) - self.texts)
        return f"{markdown_table(self.head, align, self.rows)}\n\n{self.about}".rstrip()

    def __str__(self) -> str:
        """Return the plain text table."""
        return self.to_text()

    def _repr_html_(self) -> str:
        return self.to_html()

    def to_html(self) -> str:
        """Return the table that a notebook shows."""
        return html_table(self.head, self.rows, left=self.texts) + html_paragraph(self.about)

    def _joined(self) -> list[list[str]]:
        table = [self.head, *self.rows]
        widths = [max(len(row[i]) for row in table) for i in range(self.texts)]
        return [
            [
                "  ".join(row[i].ljust(width) for i, width in enumerate(widths)).rstrip(),
                *row[self.texts :],
            ]
            for row in table
        ]


def group_score_table(reports: Mapping[str, Sequence[ShotReport]]) -> ScoreTable:
    """Make the table of the groups of several methods, means over seeds.

    Args:
        reports: Label of a method to its reports, one per seed.
    """
    rows = []
    for label, own in reports.items():
        for name in ("all", *SHOTS):
            means = [report.group_scores[name] for report in own]
            if all(means):
                values = np.array([[getattr(mean, key) for key in _SCORES] for mean in means])
                sds = values.std(0, ddof=1).tolist() if len(own) > 1 else [None] * len(_SCORES)
                texts = map(mean_sd_text, values.mean(0).tolist(), sds)
                rows.append([clean(label), name, *texts])
    return ScoreTable(["method", "classes", *_SCORES.values()], rows, texts=2)


def class_score_table(report: ShotReport) -> ScoreTable:
    """Make the table of all classes, the most frequent first, and of the means of the groups.

    Args:
        report: The report.
    """
    rows = sorted(report.rows(), key=lambda row: -row["train_images"])
    cells = []
    for row in rows:
        name = f"class {row['label']}" if row["name"] is None else clean(row["name"])
        cells.append([name, row["shot"], *_numbers([row], [row[key] for key in _SCORES])])
    for group, mean in report.group_scores.items():
        own = [row for row in rows if row["test_images"] and group in ("all", row["shot"])]
        if mean is not None:
            name = f"mean of {len(own):,} class{'' if len(own) == 1 else 'es'}"
            values = [getattr(mean, key) for key in _SCORES]
            cells.append([name, group, *_numbers(own, values)])
    head = ["class", "group", "training images", "test images", *_SCORES.values()]
    return ScoreTable(head, cells, texts=2)


def _numbers(rows: Sequence[Mapping[str, Any]], scores: Sequence[float | None]) -> list[str]:
    """Return the cells of images and scores."""
    images = [sum(row[f"{part}_images"] for row in rows) for part in ("train", "test")]
    return [*(f"{n:,}" for n in images), *map(percent_text, scores)]
