"""Plots of classifier norms."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ltlearn.errors import UserError
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
    from matplotlib.figure import Figure

__all__ = ["plot_norms", "plot_norms_by_method"]


def plot_norms(
    before: Sequence[float],
    after: Sequence[float],
    class_counts: Sequence[int],
    labels: tuple[str, str] = ("CE", "SAMN"),
) -> "Figure":
    """Draw the norm of every class's weight vector against its training images.

    Args:
        before: Weight norm per class.
        after: The same for the second classifier.
        class_counts: Training images per class.
        labels: What the two are called.

    Shape:
        before, after and class_counts are (C,).

    Raises:
        UserError: If the lengths disagree.
    """
    counts, _, _ = sort_classes(class_counts, None, "<20")
    before = read_per_class(before, len(counts), "before")
    after = read_per_class(after, len(counts), "after")
    figure, axes = new_figure(6.0, 3.8)
    # Fewer classes, larger dots: 8,000 small ones still show a shape, 2 small ones are overlooked.
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
    class_counts: Sequence[int],
    reference: str | None = "CE",
) -> "Figure":
    """Draw the norm of every class's weight vector against its training images, a panel a method.

    The norms of methods differ by orders of magnitude, so each is divided by its own mean over the
    classes; the mean stands above the panel.

    Args:
        norms: Weight norm per class of every method.
        class_counts: Training images per class.
        reference: The method whose curve is in grey in every panel, if `norms` has it.

    Shape:
        class_counts and the norms of a method are (C,).

    Raises:
        UserError: If there is no method, or the lengths disagree.
    """
    if not norms:
        raise UserError("`norms` is empty; it must hold at least one method.")
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
    shown = np.concatenate(list(relative.values()))
    shown = shown[np.isfinite(shown)]
    for axes in panels:
        # A panel is narrow: powers of ten, or 2 and 5 between, whichever leaves a few numbers.
        count_axis(axes, "x", counts, narrow=True)
        axes.set_xlabel("")
        axes.set_xlim((counts.min() or log_floor(counts)) / 1.4, max(counts.max(), 1) * 1.4)
        # In units of the mean, 0 to 8 can be read off a plain axis; a longer tail cannot.
        if len(shown) and shown.max() > 8 and shown.min() > 0:
            axes.set_ylim(shown.min() / 1.2, shown.max() * 1.2)
            axes.set_yscale("log")
            plain_log_ticks(axes.yaxis, shown.min(), shown.max())
        else:
            axes.set_ylim(0, 1.08 * shown.max() if len(shown) and shown.max() > 0 else 1)
    outer_labels(panels, 4)
    figure.supxlabel("training images per class (log scale)", fontsize=9)
    figure.supylabel("norm of the class's weights /\nthe method's mean norm", fontsize=9)
    _norms_legend(figure, reference if relative.keys() > {reference} else None, len(counts), size)
    return figure


def _curve(x: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Average over 1/20 of the classes, by count; classes with equal counts are one point."""
    known = np.isfinite(values)
    at, group = np.unique(x[known], return_inverse=True)
    number = np.bincount(group)
    mean = np.bincount(group, values[known]) / np.maximum(number, 1)
    # In order of count, every class at the mean of its count: no order among equals matters.
    smooth = moving_average(np.repeat(mean, number), known.sum() // 20)
    return at, np.bincount(np.sort(group), smooth) / np.maximum(number, 1)


def _norms_legend(figure: "Figure", reference: str | None, num_classes: int, size: float) -> None:
    from matplotlib.lines import Line2D

    dot = {"marker": "o", "mew": 0, "ms": max(size, 3), "color": AFTER_COLOUR}
    if num_classes < 40:  # the line goes through the classes themselves
        handles = [Line2D([], [], lw=1.1, label="a class", **dot)]
    else:
        handles = [
            Line2D([], [], ls="", label="a class", **dot),
            Line2D([], [], color=AFTER_COLOUR, lw=1.1, label="moving average over the classes"),
        ]
    if reference is not None:
        label = f"{shorten(reference)}, for reference"
        handles.append(Line2D([], [], color="#999999", lw=2.2, label=label))
    # Above: below is the label of the x axes.
    add_handles(figure, handles, "outside upper right")
