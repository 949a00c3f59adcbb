"""Colours, axes and legends that all plots share."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ltlearn.errors import UserError
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
# Up to this many classes each gets a row with its name; above, only ranks can be told apart.
MAX_NAMED_CLASSES = 20
_NAME_LENGTH = 28


def new_figure(width: float, height: float, columns: int = 1):
    """Create a figure with axes in our style."""
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
    """Make a figure with a row per class, most frequent on top, the names on the left."""
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
    class_counts: Sequence[int], classes: Sequence[str] | None, few: str
) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
    """Return the classes by count, most frequent first."""
    groups = {name: mask.cpu().numpy() for name, mask in shot_groups(class_counts, few).items()}
    counts = np.asarray([int(n) for n in class_counts], dtype=np.int64)
    if classes is not None and len(classes) != len(counts):
        raise UserError(
            f"`classes` has {len(classes)} names but `class_counts` has {len(counts)} classes."
        )
    # A stable sort: classes with equal counts keep their label order.
    return counts, groups, np.argsort(-counts, kind="stable")


def read_per_class(values: Any, num_classes: int, name: str) -> np.ndarray:
    """Read one number per class."""
    values = np.asarray([float("nan") if v is None else float(v) for v in values])
    if len(values) != num_classes:
        raise UserError(
            f"`{name}` has {len(values)} values but `class_counts` has {num_classes} classes."
        )
    return values


def shorten(name: Any) -> str:
    """Shorten a name for a plot."""
    # The font has no undecodable bytes, and matplotlib refuses them.
    name = " ".join(clean(name).split())
    if len(name) > _NAME_LENGTH:
        name = name[: _NAME_LENGTH - 1].rstrip() + "…"
    return plain_text(name)


def plain_text(text: Any) -> str:
    """Keep matplotlib from reading a name as maths."""
    return clean(text).replace("$", r"\$")  # a bare "$" would switch matplotlib to formula mode


def log_floor(counts: np.ndarray) -> float:
    """Where a logarithmic count axis starts: below the rarest class; 0 images are drawn there."""
    positive = counts[counts > 0]
    least = float(positive.min()) if len(positive) else 1.0
    return least / 2


def count_axis(axes: "Axes", which: str, counts: np.ndarray, narrow: bool = False) -> None:
    """Format an axis of image counts."""
    # Limits before the scale: matplotlib warns if it is to fit a log axis to zeros alone.
    getattr(axes, f"set_{which}lim")(log_floor(counts), max(counts.max(), 1) * 1.15)
    getattr(axes, f"set_{which}scale")("log")
    getattr(axes, f"set_{which}label")("training images per class (log scale)")
    axis = axes.xaxis if which == "x" else axes.yaxis
    plain_log_ticks(axis, log_floor(counts), max(counts.max(), 1), narrow)


def plain_log_ticks(axis: Any, low: float, high: float, narrow: bool = False) -> None:
    """Label a log axis with plain numbers: 1, 10, 100, and 2 and 5 between if it is short.

    Args:
        axis: The axis.
        low: Its lower end.
        high: Its upper end.
        narrow: Whether there is little room: it is short only if it spans a decade or so.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    short = high / low < (20 if narrow else 300)
    axis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5) if short else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}" if v >= 1 else f"{v:g}"))
    axis.set_minor_formatter(NullFormatter())


def thousands(axis: Any) -> None:
    """Format a number with a separator for thousands."""
    from matplotlib.ticker import FuncFormatter

    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}"))


def shade_groups(
    axes: "Axes", groups: dict[str, np.ndarray], order: np.ndarray, vertical: bool
) -> None:
    """Tint the classes of each shot group; sorted by count, a group is one stretch."""
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
    """Put a legend under the axes; a shot group says its threshold and its number of classes."""
    style = {"frameon": False, "fontsize": 8, "handlelength": 1.6, "columnspacing": 1.4}
    handles, labels = axes.get_legend_handles_labels()
    below = list(zip(handles, labels, strict=True))
    if groups is not None:
        sizes = {name: int(mask.sum()) for name, mask in groups.items()}
        texts = dict(zip(SHOTS, shot_thresholds_text(few, sizes).split(", "), strict=True))
        above = [(handle, label) for handle, label in below if label not in texts]
        below = [(handle, texts[label]) for handle, label in below if label in texts]
        if above:  # the classifiers get a line of their own: theirs are the long names
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
    """Average over a centred window, shorter at the ends, without the NaNs."""
    known = np.isfinite(values)
    sums = np.concatenate([[0], np.cumsum(np.where(known, values, 0))])
    numbers = np.concatenate([[0], np.cumsum(known)])
    centre = np.arange(len(values))
    low = np.maximum(centre - width // 2, 0)
    high = np.minimum(centre + width // 2 + 1, len(values))
    total, number = sums[high] - sums[low], numbers[high] - numbers[low]
    return np.where(number > 0, total / np.maximum(number, 1), np.nan)


def percentages(values: Sequence[float | None]) -> np.ndarray:
    """Return shares in percent."""
    return np.array([np.nan if v is None else 100 * float(v) for v in values])


def accuracy_limits(axes: "Axes", which: str, values: np.ndarray) -> None:
    """Fit an accuracy axis (%) to the values, at least 4 wide; no tick below 0 or above 100."""
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
    """Add legend handles in rows."""
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
    """Make a figure of so many panels of that size in inches, at most so many beside each other."""
    from matplotlib.figure import Figure

    columns = count_columns(number, most)
    rows = -(-number // columns)
    # One or two panels alone are larger, or the text under them would be wider than they are.
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
    """Return the fewest columns that need no more rows: 4 panels of at most 3 are 2 by 2."""
    rows = -(-number // most)
    return -(-number // rows)


def outer_labels(panels: "Sequence[Axes]", most: int, below: bool = True) -> None:
    """Leave the numbers to the first panel of each row and, if `below`, the last of each column."""
    columns = count_columns(len(panels), most)
    for i, axes in enumerate(panels):
        axes.tick_params(
            labelleft=i % columns == 0, labelbottom=not below or i + columns >= len(panels)
        )


def panel_title(axes: "Axes", label: Any, text: str) -> None:
    """Set the title of a panel."""
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
