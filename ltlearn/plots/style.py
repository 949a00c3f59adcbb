"""Colours, axes and legends that all plots share."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ltlearn.errors import UserError
from ltlearn.metrics.rows import IntVector
from ltlearn.metrics.shots import SHOTS, shot_groups, shot_thresholds_text
from ltlearn.utils.text import clean

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "SHOT_COLOURS",
    "BEFORE_COLOUR",
    "AFTER_COLOUR",
    "INK",
    "MAX_NAMED_CLASSES",
    "new_figure",
    "named_rows",
    "sort_classes",
    "read_per_class",
    "shorten",
    "plain_text",
    "log_floor",
    "count_axis",
    "plain_log_ticks",
    "thousands",
    "shade_groups",
    "add_legend",
    "moving_average",
    "percentages",
    "accuracy_limits",
    "add_handles",
    "make_panels",
    "count_columns",
    "outer_labels",
    "panel_title",
]

# Paul Tol's high-contrast colours: distinct with any colour vision deficiency and in grey print.
SHOT_COLOURS = {"many": "#004488", "medium": "#DDAA33", "few": "#BB5566"}
BEFORE_COLOUR, AFTER_COLOUR = "#808080", "#004488"
INK = "#222222"
# Up to this many classes have one row each, with their names; more are drawn by rank.
MAX_NAMED_CLASSES = 20
_MAX_NAME = 30  # characters of a name; the longest label of a method has as many


def new_figure(width: float, height: float, columns: int = 1):
    """Create a figure with axes in a row.

    Args:
        width: Width in inches.
        height: Height in inches.
        columns: Number of axes.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    axes = figure.subplots(1, columns)
    for one in np.atleast_1d(axes):
        one.spines[["top", "right"]].set_visible(False)
        one.tick_params(labelsize=8)
        one.xaxis.label.set_size(9)
        one.yaxis.label.set_size(9)
    return figure, axes


def named_rows(
    order: np.ndarray,
    classes: Sequence[str] | None,
    counts: np.ndarray,
    with_counts: bool = False,
) -> "tuple[Figure, Axes]":
    """Create a figure with one row per class, most frequent on top, and names on the left.

    Args:
        order: The classes, most frequent first.
        classes: Class names in label order.
        counts: Training images per class.
        with_counts: Whether the counts stand behind the names.
    """
    figure, axes = new_figure(6.4, 1.5 + 0.26 * len(order))
    names = [shorten(classes[c]) if classes is not None else f"class {c}" for c in order]
    if with_counts:
        names = [f"{name} ({counts[c]:,})" for name, c in zip(names, order, strict=True)]
    axes.set_yticks(np.arange(len(order)), names)
    axes.set_ylim(len(order) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    if with_counts:
        axes.set_title("class (training images)", fontsize=9, loc="left")
    return figure, axes


def sort_classes(
    class_counts: IntVector, classes: Sequence[str] | None, few: str
) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
    """Return the counts, the mask of each shot group, and the classes, most frequent first.

    Args:
        class_counts: Training images per class.
        classes: Class names, to check their number.
        few: The few-shot rule.
    """
    groups = {name: mask.cpu().numpy() for name, mask in shot_groups(class_counts, few).items()}
    counts = np.asarray([int(n) for n in class_counts], dtype=np.int64)
    if classes is not None and len(classes) != len(counts):
        raise UserError(
            f"classes has {len(classes)} names but class_counts has {len(counts)} classes."
        )
    # A stable sort: classes with equal counts keep their label order.
    return counts, groups, np.argsort(-counts, kind="stable")


def read_per_class(values: Any, num_classes: int, name: str) -> np.ndarray:
    """Read one number per class as float64; None becomes NaN.

    Args:
        values: The numbers.
        num_classes: C.
        name: The name of the values in messages.
    """
    values = np.asarray([float("nan") if v is None else float(v) for v in values])
    if len(values) != num_classes:
        raise UserError(
            f"{name} has {len(values)} values but class_counts has {num_classes} classes."
        )
    return values


def shorten(name: Any) -> str:
    """Shorten a name for a plot."""
    name = clean(name)
    if len(name) > _MAX_NAME:
        name = name[: _MAX_NAME - 1].rstrip() + "…"
    return plain_text(name)


def plain_text(text: Any) -> str:
    """Escape a text for matplotlib, which reads "$" as a formula and rejects undecodable bytes."""
    return clean(text).replace("$", r"\$")


def log_floor(counts: np.ndarray) -> float:
    """Return the start of a log axis of counts, below the rarest class; 0 images stand there."""
    positive = counts[counts > 0]
    least = float(positive.min()) if len(positive) else 1.0
    return least / 2


def count_axis(axes: "Axes", which: str, counts: np.ndarray, narrow: bool = False) -> None:
    """Format a logarithmic axis of image counts.

    Args:
        axes: The axes.
        which: "x" or "y".
        counts: Training images per class.
        narrow: Whether the axis has little room for numbers.
    """
    # Set the limits before the scale: matplotlib warns when it fits a log axis to zeros.
    getattr(axes, f"set_{which}lim")(log_floor(counts), max(counts.max(), 1) * 1.15)
    getattr(axes, f"set_{which}scale")("log")
    getattr(axes, f"set_{which}label")("training images per class (log scale)")
    axis = axes.xaxis if which == "x" else axes.yaxis
    plain_log_ticks(axis, log_floor(counts), max(counts.max(), 1), narrow)


def plain_log_ticks(axis: Any, low: float, high: float, narrow: bool = False) -> None:
    """Label a log axis with plain numbers: 1, 10, 100; a short axis also has 2, 5, 20, 50.

    Args:
        axis: The axis.
        low: The lower end.
        high: The upper end.
        narrow: Whether the axis has little room, so that it is short only below 1.3 decades.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    short = high / low < (20 if narrow else 300)
    axis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5) if short else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}" if v >= 1 else f"{v:g}"))
    axis.set_minor_formatter(NullFormatter())


def thousands(axis: Any) -> None:
    """Format the numbers of an axis with a separator for thousands."""
    from matplotlib.ticker import FuncFormatter

    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}"))


def shade_groups(
    axes: "Axes", groups: dict[str, np.ndarray], order: np.ndarray, vertical: bool
) -> None:
    """Shade the classes of each shot group. Sorted by count, a group is one range of rows.

    Args:
        axes: The axes.
        groups: The mask of each shot group.
        order: The classes, most frequent first.
        vertical: Whether the classes lie along the x axis.
    """
    for name in SHOTS:
        rows = np.flatnonzero(groups[name][order])
        if len(rows):
            span = axes.axvspan if vertical else axes.axhspan
            shift = 0 if vertical else -0.5
            span(
                rows[0] + shift,
                rows[-1] + 1 + shift,
                color=SHOT_COLOURS[name],
                alpha=0.12,
                linewidth=0,
                zorder=0,
                label=name,
            )


def add_legend(
    figure: "Figure",
    axes: "Axes",
    few: str = "<20",
    groups: dict[str, np.ndarray] | None = None,
    markerscale: float = 1,
) -> None:
    """Add a legend below the axes; shot groups get their threshold and number of classes.

    Args:
        figure: The figure.
        axes: The axes with the labelled lines.
        few: The few-shot rule.
        groups: The mask of each shot group. None if the plot has no groups.
        markerscale: The size of the legend's marks relative to the plot's.
    """
    style = {"frameon": False, "fontsize": 8, "handlelength": 1.6, "columnspacing": 1.4}
    handles, labels = axes.get_legend_handles_labels()
    below = list(zip(handles, labels, strict=True))
    if groups is not None:
        sizes = {name: int(mask.sum()) for name, mask in groups.items()}
        texts = dict(zip(SHOTS, shot_thresholds_text(few, sizes).split(", "), strict=True))
        above = [(handle, label) for handle, label in below if label not in texts]
        below = [(handle, texts[label]) for handle, label in below if label in texts]
        if above:  # the classifiers stand above the axes, because their names are long
            handles, labels = zip(*above, strict=True)
            figure.legend(handles, labels, loc="outside upper right", ncols=len(labels), **style)
    handles, labels = zip(*below, strict=True)
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=len(labels),
        markerscale=markerscale,
        **style,
    )


def moving_average(values: np.ndarray, width: int) -> np.ndarray:
    """Average over a centred window that is shorter at the ends; NaNs are left out.

    Args:
        values: The values, in their order.
        width: Width of the window, in values.
    """
    known = np.isfinite(values)
    sums = np.concatenate([[0], np.cumsum(np.where(known, values, 0))])
    numbers = np.concatenate([[0], np.cumsum(known)])
    centre = np.arange(len(values))
    low = np.maximum(centre - width // 2, 0)
    high = np.minimum(centre + width // 2 + 1, len(values))
    total, number = sums[high] - sums[low], numbers[high] - numbers[low]
    return np.where(number > 0, total / np.maximum(number, 1), np.nan)


def percentages(values: Sequence[float | None]) -> np.ndarray:
    """Convert fractions to percent; None becomes NaN."""
    return np.array([np.nan if v is None else 100 * float(v) for v in values])


def accuracy_limits(axes: "Axes", which: str, values: np.ndarray) -> None:
    """Fit an accuracy axis to values in %; it spans at least 4, with ticks from 0 to 100.

    Args:
        axes: The axes.
        which: "x" or "y".
        values: The accuracies in %.
    """
    from matplotlib.ticker import MaxNLocator

    low, high = float(values.min()), float(values.max())
    middle, half = (low + high) / 2, max(high - low, 4) * 0.58
    low, high = max(middle - half, -3), min(middle + half, 103)
    getattr(axes, f"set_{which}lim")(low, high)
    ticks = MaxNLocator(6, steps=[1, 2, 5, 10]).tick_values(low, high)
    ticks = ticks[(ticks >= max(low, 0)) & (ticks <= min(high, 100))]
    getattr(axes, f"set_{which}ticks")(ticks, [f"{tick:g}" for tick in ticks])


def add_handles(
    figure: "Figure", handles: Sequence[Any], loc: str = "outside lower center"
) -> None:
    """Add a legend in one row."""
    figure.legend(
        handles=handles,
        loc=loc,
        ncols=len(handles),
        frameon=False,
        fontsize=8,
        handlelength=1.6,
        columnspacing=1.4,
    )


def make_panels(number: int, most: int, width: float, height: float) -> "tuple[Figure, list[Axes]]":
    """Create a figure with panels.

    Args:
        number: Number of panels.
        most: Most panels per row.
        width: Width of a panel in inches.
        height: Height of a panel in inches.
    """
    from matplotlib.figure import Figure

    columns = count_columns(number, most)
    rows = -(-number // columns)
    # One or two panels are larger, because the text below them needs the width.
    width *= {1: 2, 2: 1.5}.get(columns, 1)
    height *= {1: 1.5, 2: 1.25}.get(columns, 1)
    size = (columns * width + 0.6, rows * height + 0.8)
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid[number:]:
        axes.remove()
    for axes in grid[:number]:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    return figure, list(grid[:number])


def count_columns(number: int, most: int) -> int:
    """Return the fewest columns for the fewest rows: 4 panels, at most 3 per row, are 2 by 2."""
    rows = -(-number // most)
    return -(-number // rows)


def outer_labels(panels: "Sequence[Axes]", most: int, below: bool = True) -> None:
    """Show numbers at the left of each row and, if `below`, at the bottom of each column only.

    Args:
        panels: The panels, row by row.
        most: Most panels per row.
        below: Whether all panels of a column share the x axis of the lowest one.
    """
    columns = count_columns(len(panels), most)
    for i, axes in enumerate(panels):
        axes.tick_params(
            labelleft=i % columns == 0, labelbottom=not below or i + columns >= len(panels)
        )


def panel_title(axes: "Axes", label: Any, text: str) -> None:
    """Write the label of a panel, and a text in small print below it.

    Args:
        axes: The panel.
        label: The label.
        text: The text.
    """
    axes.set_title(shorten(label), fontsize=8.5, loc="left", pad=14, color=INK)
    axes.annotate(
        text,
        (0, 1),
        xycoords="axes fraction",
        xytext=(0, 4),
        textcoords="offset points",
        fontsize=7.5,
        color="#555555",
    )
