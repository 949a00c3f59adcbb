"""The plot of accuracy over the hyper-parameter of each method."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.optimize import isotonic_regression

from ltlearn.errors import UserError
from ltlearn.plots.style import (
    AFTER_COLOUR,
    accuracy_limits,
    add_handles,
    count_columns,
    make_panels,
    outer_labels,
    panel_title,
    percentages,
    plain_log_ticks,
    plain_text,
    shorten,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation

__all__ = ["plot_sensitivity"]

_COLUMNS = 3


def plot_sensitivity(
    curves: Sequence[Mapping[str, Any]], lines: Mapping[str, float | None] | None = None
) -> "Figure":
    """Draw the accuracy of methods over their own hyper-parameter, one panel per method.

    The range of a method, its lowest to highest accuracy, stands above its panel.

    Args:
        curves: One mapping per method: label, parameter (its name), values and accuracy
            (class-balanced, fractions in [0, 1]; None or NaN if missing), default (a value or
            None), log (whether the axis of the values is logarithmic).
        lines: The accuracy of methods without a hyper-parameter, by label; drawn as dashed lines
            through all panels.

    Raises:
        UserError: If there is no curve, a curve has no value, the lengths differ, or a logarithmic
            axis gets a value of 0 or less.

    Example:
        >>> curve = {"label": "tau-norm", "parameter": "tau", "values": [0.5, 1.0]}
        >>> curve |= {"accuracy": [0.41, 0.43], "default": 1.0, "log": False}
        >>> figure = plot_sensitivity([curve], lines={"CE": 0.39})
    """
    curves = list(curves)
    if not curves:
        raise UserError("curves is empty; it must hold at least one curve.")
    for curve in curves:
        _check_curve(curve)
    lines = lines or {}
    levels = dict(zip(lines, percentages(list(lines.values())), strict=True))
    levels = {label: level for label, level in levels.items() if np.isfinite(level)}
    figure, panels = make_panels(len(curves), _COLUMNS, 2.6, 2.5)
    shown = list(levels.values())
    for axes, curve in zip(panels, curves, strict=True):
        shown += _draw_curve(axes, curve)
    for axes in panels:
        accuracy_limits(axes, "y", np.array(shown or [0.0, 100.0]))
    outer_labels(panels, _COLUMNS, below=False)
    figure.supylabel("class-balanced accuracy (%)", fontsize=9)
    _add_default_legend(figure, curves)
    if levels:
        _draw_levels(panels, levels)
    return figure


def _draw_curve(axes: "Axes", curve: Mapping[str, Any]) -> list[float]:
    """Draw one panel; return the known accuracies in %."""
    x = np.asarray(curve["values"], dtype=float)
    order = np.argsort(x, kind="stable")
    x, y = x[order], percentages(curve["accuracy"])[order]
    _parameter_axis(axes, curve, x)
    default = curve.get("default")
    if default is not None:
        axes.axvline(default, color="#666666", linestyle=":", lw=1.2, zorder=2)
        at = np.isclose(x, default, rtol=1e-9, atol=0)
        axes.plot(x[at], y[at], "o", color=AFTER_COLOUR, mfc="none", mew=1.4, ms=9, zorder=5)
    axes.plot(x, y, "o-", color=AFTER_COLOUR, ms=3.5, lw=1.6, zorder=4)
    known = y[np.isfinite(y)]
    text = f"{known.min():.1f} to {known.max():.1f} %" if len(known) else "no accuracy"
    panel_title(axes, curve["label"], text)
    axes.grid(axis="y", color="#EEEEEE")
    axes.set_axisbelow(True)
    return known.tolist()


def _check_curve(curve: Mapping[str, Any]) -> None:
    label, values, accuracy = curve["label"], list(curve["values"]), list(curve["accuracy"])
    if not values:
        raise UserError(f"the curve of {label!r} has no values.")
    if len(values) != len(accuracy):
        raise UserError(
            f"the curve of {label!r} has {len(values)} values but {len(accuracy)} accuracies."
        )
    default = curve.get("default")
    if curve.get("log") and min(values + ([] if default is None else [default])) <= 0:
        raise UserError(
            f"the curve of {label!r} has a value of 0 or less; a logarithmic axis cannot show it."
        )


def _parameter_axis(axes: "Axes", curve: Mapping[str, Any], values: np.ndarray) -> None:
    from matplotlib.ticker import MaxNLocator, NullLocator

    axes.set_xlabel(textwrap.fill(plain_text(curve["parameter"]), 28), fontsize=8.5)
    ends = [*values, *([] if curve.get("default") is None else [curve["default"]])]
    low, high = float(min(ends)), float(max(ends))
    if curve.get("log"):
        margin = max((high / low) ** 0.06, 1.15)
        axes.set_xlim(low / margin, high * margin)
        axes.set_xscale("log")
        plain_log_ticks(axes.xaxis, low / margin, high * margin)
        if high < 3 * low:  # such an axis may hold no power of ten
            axes.xaxis.set_major_locator(MaxNLocator(4))
            axes.xaxis.set_minor_locator(NullLocator())
    else:
        margin = 0.06 * (high - low) or max(abs(high), 1) * 0.1
        axes.set_xlim(low - margin, high + margin)
        axes.locator_params(axis="x", nbins=5)


def _draw_levels(panels: "Sequence[Axes]", levels: Mapping[str, float]) -> None:
    """Draw dashed lines through all panels, with labels on the right of each row of panels."""
    from matplotlib.text import Text

    figure, columns = panels[0].figure, count_columns(len(panels), _COLUMNS)
    labels = sorted(levels, key=levels.get)
    styles = _level_styles(len(labels))
    for axes in panels:
        for label, style in zip(labels, styles, strict=True):
            axes.axhline(levels[label], lw=1.2, zorder=3, **style)
    row_ends = [a for i, a in enumerate(panels) if i % columns == columns - 1 or a is panels[-1]]
    texts = [
        [_label_level(axes, label, levels[label], style["color"])
         for label, style in zip(labels, styles, strict=True)]
        for axes in row_ends
    ]  # fmt: skip
    width = max(Text.get_window_extent(text).width for text in texts[0]) / figure.dpi + 0.3
    figure.set_figwidth(figure.get_figwidth() + width)
    rect = (0, 0, 1 - width / figure.get_figwidth(), 1)
    figure.get_layout_engine().set(rect=rect)  # type: ignore[call-arg]
    figure.draw_without_rendering()  # fixes the heights of the panels
    for axes, row in zip(row_ends, texts, strict=True):
        low, high = axes.get_ylim()
        box = axes.get_position()
        gap = 0.145 / (box.height * figure.get_figheight())
        x = 1 + 0.18 / (box.width * figure.get_figwidth())
        heights = _spread(np.array([(levels[label] - low) / (high - low) for label in labels]), gap)
        for text, height in zip(row, heights, strict=True):
            text.set_position((x, height))
    # The positions are final, so no layout engine is needed. A tight box of the saved image
    # includes a text only if it is in the layout.
    figure.set_layout_engine("none")
    for text in (text for row in texts for text in row):
        text.set_in_layout(True)


def _label_level(axes: "Axes", label: str, level: float, colour: str) -> "Annotation":
    low, high = axes.get_ylim()
    text = axes.annotate(
        f"{shorten(label)} {level:.1f}",
        (1, (level - low) / (high - low)),
        xycoords="axes fraction",
        textcoords="axes fraction",
        va="center",
        fontsize=8,
        color=colour,
        arrowprops={
            "arrowstyle": "-", "lw": 0.6, "shrinkA": 1, "shrinkB": 0, "relpos": (0, 0.5),
            "color": colour,
        },
    )  # fmt: skip
    # The layout would make room for the labels in every column.
    text.set_in_layout(False)
    return text


def _level_styles(number: int) -> list[dict[str, Any]]:
    # Not the blue of the curves. Beyond three lines, colour and dashes together tell them apart.
    colours = ("#BB5566", "#997700", "#555555")
    dashes = ((0, (5, 2)), (0, (2, 1.5)), (0, (7, 2, 1.5, 2)))
    return [{"color": colours[i % 3], "linestyle": dashes[(i + i // 3) % 3]} for i in range(number)]


def _spread(heights: np.ndarray, gap: float) -> np.ndarray:
    """Move ascending heights in [0, 1] apart until neighbours keep the gap, as little as possible.

    The least squares solution is an isotonic regression of the heights minus their gaps.
    """
    steps = gap * np.arange(len(heights))
    apart = isotonic_regression(heights - steps).x + steps
    return np.maximum(np.minimum(apart, 1 - steps[::-1]), steps)  # stay beside the panel


def _add_default_legend(figure: "Figure", curves: Sequence[Mapping[str, Any]]) -> None:
    from matplotlib.lines import Line2D

    if any(curve.get("default") is not None for curve in curves):
        ring = Line2D(
            [], [], color="#666666", ls=":", lw=1.2,
            marker="o", mec=AFTER_COLOUR, mfc="none", mew=1.4, ms=8, label="default",
        )  # fmt: skip
        add_handles(figure, [ring])
