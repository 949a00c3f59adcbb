"""Plots of the norms of classifier weights."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ltlearn.errors import UserError
from ltlearn.metrics.rows import IntVector
from ltlearn.plots.style import (
    AFTER_COLOUR,
    BEFORE_COLOUR,
    add_handles,
    add_legend,
    count_axis,
    log_floor,
    make_panels,
    moving_average,
    new_figure,
    outer_labels,
    panel_title,
    plain_log_ticks,
    read_per_class,
    shorten,
    sort_classes,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_norms", "plot_norms_by_method"]


def plot_norms(
    before: Sequence[float],
    after: Sequence[float],
    class_counts: IntVector,
    labels: tuple[str, str] = ("CE", "SAMN"),
) -> "Figure":
    """Draw the norm of every class's weight vector against its training images.

    Args:
        before: Weight norm per class.
        after: The same for the second classifier.
        class_counts: Training images per class.
        labels: The names of the two classifiers.

    Shape:
        before, after and class_counts are (C,).

    Raises:
        UserError: If the lengths differ.

    Example:
        >>> figure = plot_norms([2.0, 1.0], [2.1, 4.2], class_counts=[500, 5])
        >>> figure.savefig("norms.png")
    """
    counts, _, _ = sort_classes(class_counts, None, "<20")
    before = read_per_class(before, len(counts), "before")
    after = read_per_class(after, len(counts), "after")
    figure, axes = new_figure(6.0, 3.8)
    # Few classes get large dots; otherwise two small dots are easy to miss.
    size = float(np.clip(60 / np.sqrt(len(counts)), 1.5, 7))
    for values, label, colour, marker in zip(
        (before, after), labels, (BEFORE_COLOUR, AFTER_COLOUR), ("o", "D"), strict=True
    ):
        axes.plot(
            np.maximum(counts, log_floor(counts)),
            values,
            marker,
            color=colour,
            markersize=size,
            markeredgewidth=0,
            alpha=0.8 if len(counts) <= 200 else 0.5,
            label=label,
            rasterized=len(counts) > 2000,
        )
    norms = np.concatenate([before, after])
    norms = norms[np.isfinite(norms)]
    if len(norms) and norms.min() > 0 and norms.max() > 20 * norms.min():
        axes.set_yscale("log")
        plain_log_ticks(axes.yaxis, norms.min(), norms.max())
    else:
        axes.set_ylim(0, 1.08 * norms.max() if len(norms) and norms.max() > 0 else 1)
    count_axis(axes, "x", counts)
    axes.set_xlim((counts.min() or log_floor(counts)) / 1.3, max(counts.max(), 1) * 1.3)
    axes.set_ylabel("norm of the class's weights")
    axes.grid(color="#EEEEEE", zorder=0)
    axes.set_axisbelow(True)
    add_legend(figure, axes, markerscale=6 / size)
    return figure


def plot_norms_by_method(
    norms: Mapping[str, Sequence[float | None]],
    class_counts: IntVector,
    reference: str | None = "CE",
) -> "Figure":
    """Draw the norm of every class's weight vector against its training images, per method.

    The norms of methods differ by orders of magnitude, so each method's norms are divided by their
    mean over the classes. The mean stands above the panel.

    Args:
        norms: Weight norm per class, for each method.
        class_counts: Training images per class.
        reference: The method whose curve is drawn in grey in every panel, if `norms` has it.

    Shape:
        class_counts and the norms of a method are (C,).

    Raises:
        UserError: If there is no method, or the lengths differ.

    Example:
        >>> norms = {"CE": [2.0, 1.0], "CE + SAMN": [2.1, 4.2]}
        >>> figure = plot_norms_by_method(norms, class_counts=[500, 5])
    """
    if not norms:
        raise UserError("norms is empty; it must hold at least one method.")
    counts, _, _ = sort_classes(class_counts, None, "<20")
    x = np.maximum(counts, log_floor(counts))
    relative, means = {}, {}
    for label, values in norms.items():
        values = read_per_class(values, len(counts), f"norms[{label!r}]")
        known = values[np.isfinite(values)]
        means[label] = float(known.mean()) if len(known) else float("nan")
        relative[label] = values / means[label] if means[label] > 0 else values
    figure, panels = make_panels(len(norms), 4, 2.15, 1.75)
    size = float(np.clip(30 / np.sqrt(len(counts)), 1.2, 4.5))
    for axes, (label, values) in zip(panels, relative.items(), strict=True):
        if reference in relative and reference != label:
            axes.plot(*_curve(x, relative[reference]), color="#999999", lw=2.2, zorder=2)
        axes.plot(
            x,
            values,
            "o",
            color=AFTER_COLOUR,
            ms=size,
            mew=0,
            alpha=0.6 if len(counts) <= 200 else 0.25,
            zorder=3,
            rasterized=len(counts) > 2000,
        )
        axes.plot(*_curve(x, values), color=AFTER_COLOUR, lw=1.1, zorder=4)
        mean = "no norms" if np.isnan(means[label]) else f"mean norm {means[label]:.3g}"
        panel_title(axes, label, mean)
        axes.grid(color="#EEEEEE")
        axes.set_axisbelow(True)
    _set_limits(panels, counts, np.concatenate(list(relative.values())))
    outer_labels(panels, 4)
    figure.supxlabel("training images per class (log scale)", fontsize=9)
    figure.supylabel("norm of the class's weights /\nthe method's mean norm", fontsize=9)
    _norms_legend(figure, reference if relative.keys() > {reference} else None, len(counts), size)
    return figure


def _set_limits(panels: "Sequence[Axes]", counts: np.ndarray, relative: np.ndarray) -> None:
    """Give all panels the same axes."""
    relative = relative[np.isfinite(relative)]
    for axes in panels:
        count_axis(axes, "x", counts, narrow=True)
        axes.set_xlabel("")
        axes.set_xlim((counts.min() or log_floor(counts)) / 1.4, max(counts.max(), 1) * 1.4)
        # A linear axis from 0 to 8 times the mean is readable; a longer range needs a log axis.
        if len(relative) and relative.max() > 8 and relative.min() > 0:
            axes.set_ylim(relative.min() / 1.2, relative.max() * 1.2)
            axes.set_yscale("log")
            plain_log_ticks(axes.yaxis, relative.min(), relative.max())
        else:
            axes.set_ylim(0, 1.08 * relative.max() if len(relative) and relative.max() > 0 else 1)


def _curve(x: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a moving average over 1/20 of the classes; classes with equal counts are one point."""
    known = np.isfinite(values)
    at, group = np.unique(x[known], return_inverse=True)
    number = np.bincount(group)
    mean = np.bincount(group, values[known]) / np.maximum(number, 1)
    # Each class gets the mean of its count, so the order among equal counts is irrelevant.
    smooth = moving_average(np.repeat(mean, number), known.sum() // 20)
    return at, np.bincount(np.sort(group), smooth) / np.maximum(number, 1)


def _norms_legend(figure: "Figure", reference: str | None, num_classes: int, size: float) -> None:
    from matplotlib.lines import Line2D

    dot = {"marker": "o", "mew": 0, "ms": max(size, 3), "color": AFTER_COLOUR}
    if num_classes < 40:  # the moving average is one class wide
        handles = [Line2D([], [], lw=1.1, label="a class", **dot)]
    else:
        handles = [
            Line2D([], [], ls="", label="a class", **dot),
            Line2D([], [], color=AFTER_COLOUR, lw=1.1, label="moving average over the classes"),
        ]
    if reference is not None:
        label = f"{shorten(reference)}, for reference"
        handles.append(Line2D([], [], color="#999999", lw=2.2, label=label))
    # Above the panels, because the label of the x axes stands below.
    add_handles(figure, handles, "outside upper right")
