"""The confusion matrix of any number of classes, by frequency, or of the shot groups."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ltlearn.errors import check_choice
from ltlearn.metrics.confusion import block_confusion
from ltlearn.metrics.rows import IntVector
from ltlearn.names import SHOTS
from ltlearn.plots.style import INK, MAX_NAMED_CLASSES, shorten, sort_classes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["CONFUSION_ORDERS", "plot_confusion_map"]

CONFUSION_ORDERS = ("frequency", "group")
_NAMED = 40  # more names would overlap
_MOST_BLOCKS = 200  # smaller cells cannot be seen


def plot_confusion_map(
    target: IntVector,
    predicted: IntVector,
    class_counts: IntVector,
    classes: Sequence[str] | None = None,
    *,
    by: str = "frequency",
    few: str = "<20",
    normalize: bool = True,
    title: str = "",
    cmap: str = "Blues",
    figure: "Figure | None" = None,
) -> "Figure":
    """Draw the confusion matrix of all classes, the most frequent first, or of the shot groups.

    Lines separate the shot groups. Up to 20 classes have numbers in their cells, up to 40 have
    their names beside the matrix. More than 200 classes share rows and columns, each with the same
    number of classes.

    Args:
        target: The true classes.
        predicted: The predicted classes.
        class_counts: Training images per class, which define the order and the groups.
        classes: Class names in label order.
        by: "frequency" draws the classes, "group" the shot groups that have images.
        few: The few-shot rule, "<20" or "<=20".
        normalize: Whether to draw % of the true class's images in place of numbers of images. A
            row of several classes has the mean over the classes.
        title: The title.
        cmap: A colour map of matplotlib.
        figure: The figure to draw on, such as `plt.figure()`. None: a new one.

    Shape:
        target and predicted are (N,), class_counts is (C,).

    Raises:
        UserError: If the lengths differ, a label is outside 0 to C - 1, or `by` is unknown.

    Example:
        >>> figure = plot_confusion_map([0, 0, 1], [0, 1, 1], class_counts=[500, 5])
        >>> figure.savefig("confusion.png")
    """
    from matplotlib.figure import Figure

    check_choice("by", by, CONFUSION_ORDERS)
    counts, groups, order = sort_classes(class_counts, classes, few)
    group_of = np.select([groups[name] for name in SHOTS], [0, 1, 2])
    if by == "group":
        present = [i for i, name in enumerate(SHOTS) if groups[name].any()]
        blocks, names = np.searchsorted(present, group_of), [SHOTS[i] for i in present]
        edges: list[float] = []
    else:
        number = min(len(order), _MOST_BLOCKS)
        blocks = np.empty(len(order), int)
        blocks[order] = np.arange(len(order)) * number // len(order)
        names = [shorten(classes[c]) if classes is not None else f"class {c}" for c in order]
        ends = np.flatnonzero(np.diff(group_of[order])) + 1
        edges = (ends * number / len(order)).tolist()
    matrix = block_confusion(target, predicted, blocks, normalize) * (100 if normalize else 1)
    figure = Figure(dpi=150) if figure is None else figure
    axes = _draw_matrix(figure, matrix, cmap, normalize)
    for edge in edges:
        axes.axhline(edge - 0.5, color=INK, linewidth=0.6)
        axes.axvline(edge - 0.5, color=INK, linewidth=0.6)
    if len(names) <= _NAMED:
        size = 8 if len(names) <= MAX_NAMED_CLASSES else 6
        axes.set_xticks(range(len(names)), names, rotation=90 * (by != "group"), fontsize=size)
        axes.set_yticks(range(len(names)), names, fontsize=size)
    else:
        _name_groups(axes, group_of[order], len(matrix))
    kinds, sharing = "shot group" if by == "group" else "class", ""
    if by != "group" and len(matrix) < len(order):
        sharing = f", {len(order) / len(matrix):.3g} classes a row"
    axes.set_xlabel(f"predicted {kinds}", fontsize=9)
    axes.set_ylabel(f"true {kinds}", fontsize=9)
    unit = "% of the true class's images" if normalize else "number of images"
    heading = f"{title}: " if title else ""
    axes.set_title(f"{heading}{unit}{sharing}", fontsize=10, loc="left", color=INK)
    return figure


def _draw_matrix(figure: "Figure", matrix: np.ndarray, cmap: str, normalize: bool) -> "Axes":
    """Draw the cells, with numbers where there is room, and a scale of colours where not."""
    from matplotlib.colors import PowerNorm

    figure.set_layout_engine("constrained")
    axes = figure.add_subplot()
    has_numbers = len(matrix) <= MAX_NAMED_CLASSES
    top = 100 if normalize else max(float(matrix.max()), 1)
    # The root shows the few per cent of a confusion beside a diagonal of up to 100.
    norm = PowerNorm(1 if has_numbers else 0.5, 0, top)
    image = axes.imshow(matrix, cmap=cmap, norm=norm, interpolation="nearest")
    if not has_numbers:
        figure.colorbar(image, ax=axes, shrink=0.8).ax.tick_params(labelsize=8)
        return axes
    for (i, j), value in np.ndenumerate(matrix):
        if np.isfinite(value):
            colour = "white" if value > top / 2 else INK
            axes.text(j, i, f"{value:,.0f}", ha="center", va="center", color=colour, fontsize=7)
    return axes


def _name_groups(axes: "Axes", groups: np.ndarray, rows: int) -> None:
    """Name each shot group beside the middle of its rows."""
    ticks, names = [], []
    for i, name in enumerate(SHOTS):
        own = np.flatnonzero(groups == i)
        if len(own):
            ticks.append((own[0] + own[-1] + 1) / 2 * rows / len(groups) - 0.5)
            names.append(f"{name} ({len(own):,})")
    axes.set_xticks(ticks, names, fontsize=8)
    axes.set_yticks(ticks, names, fontsize=8, rotation=90, va="center")
    axes.tick_params(length=0)
