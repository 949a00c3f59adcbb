"""Plots of class counts and accuracy per class."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ltlearn.metrics.rows import IntVector
from ltlearn.metrics.shots import SHOTS
from ltlearn.plots.style import (
    AFTER_COLOUR,
    BEFORE_COLOUR,
    INK,
    MAX_NAMED_CLASSES,
    SHOT_COLOURS,
    add_legend,
    count_axis,
    log_floor,
    moving_average,
    named_rows,
    new_figure,
    read_per_class,
    shade_groups,
    sort_classes,
    thousands,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_class_counts", "plot_per_class_accuracy"]


def plot_class_counts(
    class_counts: IntVector, classes: Sequence[str] | None = None, few: str = "<20"
) -> "Figure":
    """Draw the training images per class, most frequent first, coloured by shot group.

    Args:
        class_counts: Training images per class.
        classes: Class names in label order; shown for up to 20 classes.
        few: The few-shot rule, "<20" or "<=20".

    Shape:
        class_counts is (C,), integer.

    Raises:
        UserError: If the counts or the names are invalid, or `few` is not allowed.

    Example:
        >>> figure = plot_class_counts([500, 50, 5], ["cat", "dog", "lynx"])
        >>> figure.savefig("class_counts.png")
    """
    counts, groups, order = sort_classes(class_counts, classes, few)
    rows_of = {name: np.flatnonzero(groups[name][order]) for name in SHOTS if groups[name].any()}
    if len(counts) <= MAX_NAMED_CLASSES:
        figure, axes = named_rows(order, classes, counts)
        _draw_count_bars(axes, counts[order], rows_of)
    else:
        figure, axes = new_figure(6.4, 3.6)
        _draw_count_steps(axes, counts[order], rows_of)
    axes.set_title(
        f"{counts.sum():,} training images, {len(counts):,} classes", fontsize=10, loc="left"
    )
    add_legend(figure, axes, few=few, groups=groups)
    return figure


def _draw_count_bars(axes: "Axes", counts: np.ndarray, rows_of: dict[str, np.ndarray]) -> None:
    for name, rows in rows_of.items():
        axes.barh(rows, counts[rows], color=SHOT_COLOURS[name], height=0.75, label=name)
    for row, count in enumerate(counts):
        axes.annotate(
            f"{count:,}",
            (max(count, log_floor(counts)), row),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=INK,
        )
    count_axis(axes, "x", counts)
    most = counts.max(initial=1)
    axes.set_xlim(right=most * (most / log_floor(counts)) ** 0.12)  # room for the largest number


def _draw_count_steps(axes: "Axes", counts: np.ndarray, rows_of: dict[str, np.ndarray]) -> None:
    edges = np.arange(len(counts) + 1)
    for name, rows in rows_of.items():
        first, last = rows[0], rows[-1]
        axes.stairs(
            counts[first : last + 1],
            edges[first : last + 2],
            baseline=log_floor(counts),
            fill=True,
            color=SHOT_COLOURS[name],
            label=name,
        )
    axes.set_xlim(0, len(counts))
    axes.set_xlabel("class, by rank (most frequent first)")
    thousands(axes.xaxis)
    count_axis(axes, "y", counts)


def plot_per_class_accuracy(
    before: Sequence[float],
    after: Sequence[float],
    class_counts: IntVector,
    classes: Sequence[str] | None = None,
    labels: tuple[str, str] = ("CE", "SAMN"),
    few: str = "<20",
) -> "Figure":
    """Compare the accuracy of every class under two classifiers, most frequent class first.

    Up to 20 classes have one row each, with the name and one mark per classifier. More classes are
    thin lines over the class rank, with a moving average (1/20 of the classes wide) on top. Above
    1,000 classes the thin lines are averages too (1/500 wide), because they would fill the axes.
    The legends name all lines.

    Args:
        before: Accuracy per class, a fraction in [0, 1]; NaN for a class with no test image.
        after: The same for the second classifier.
        class_counts: Training images per class, which define the order and the shot groups.
        classes: Class names in label order.
        labels: The names of the two classifiers.
        few: The few-shot rule, "<20" or "<=20".

    Shape:
        before, after and class_counts are (C,).

    Raises:
        UserError: If the lengths differ, or `few` is not allowed.

    Example:
        >>> figure = plot_per_class_accuracy([0.9, 0.2], [0.8, 0.6], class_counts=[500, 5])
        >>> figure.savefig("per_class_accuracy.png")
    """
    counts, groups, order = sort_classes(class_counts, classes, few)
    pair = [
        100 * read_per_class(values, len(counts), name)[order]
        for values, name in ((before, "before"), (after, "after"))
    ]
    if len(counts) <= MAX_NAMED_CLASSES:
        figure, axes = named_rows(order, classes, counts, with_counts=True)
        shade_groups(axes, groups, order, vertical=False)
        _draw_accuracy_rows(axes, pair, labels)
    else:
        figure, axes = new_figure(6.4, 3.8)
        shade_groups(axes, groups, order, vertical=True)
        _draw_accuracy_lines(axes, pair, labels)
    add_legend(figure, axes, few=few, groups=groups)
    return figure


def _draw_accuracy_rows(axes: "Axes", pair: list[np.ndarray], labels: tuple[str, str]) -> None:
    before, after = pair
    rows = np.arange(len(before))
    axes.hlines(rows, before, after, color="#BBBBBB", linewidth=2, zorder=2)
    # A ring and a smaller diamond, so that both are visible if the accuracies are equal.
    ring = {"color": BEFORE_COLOUR, "mfc": "none", "mew": 2, "ms": 9}
    axes.plot(before, rows, "o", label=labels[0], zorder=3, **ring)
    axes.plot(after, rows, "D", color=AFTER_COLOUR, ms=5, label=labels[1], zorder=4)
    for row in np.flatnonzero(np.isnan(before) & np.isnan(after)):
        axes.text(0, row, "no image", va="center", fontsize=8, color=INK)
    axes.set_xlim(-3, 103)
    axes.set_xlabel("accuracy (%)")
    axes.grid(axis="x", color="#EEEEEE", zorder=0)


def _odd(width: int) -> int:
    """Return how many values `moving_average` takes together."""
    return 2 * (width // 2) + 1


def _draw_accuracy_lines(axes: "Axes", pair: list[np.ndarray], labels: tuple[str, str]) -> None:
    from matplotlib.lines import Line2D

    num_classes = len(pair[0])
    rank = np.arange(num_classes) + 0.5
    fine_width = num_classes // 500 if num_classes > 1000 else 1
    width = max(3, num_classes // 20)
    thin, thick = {"linewidth": 0.6, "alpha": 0.45}, {"linewidth": 2}
    for values, label, colour in zip(pair, labels, (BEFORE_COLOUR, AFTER_COLOUR), strict=True):
        fine = moving_average(values, fine_width)
        axes.plot(rank, fine, color=colour, zorder=2, **thin)
        smooth = moving_average(values, width)
        axes.plot(rank, smooth, color=colour, label=label, zorder=3, **thick)
    averages = "moving average over {} classes"
    texts = ["each class" if fine_width == 1 else averages.format(_odd(fine_width))]
    texts.append(averages.format(_odd(width)))
    axes.legend(
        handles=[
            Line2D([], [], color=INK, label=text, **style)
            for text, style in zip(texts, (thin, thick), strict=True)
        ],
        loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, fontsize=8,
        borderaxespad=0, borderpad=0.2,
    )  # fmt: skip
    axes.set_xlim(0, num_classes)
    axes.set_ylim(-3, 103)
    axes.set_xlabel("class, by rank (most frequent first)")
    axes.set_ylabel("accuracy (%)")
    thousands(axes.xaxis)
