"""The plot of accuracy over the hyper-parameter of each method."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

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

__all__ = ["plot_sensitivity"]


def plot_sensitivity(
    curves: Sequence[Mapping[str, Any]], lines: Mapping[str, float | None] | None = None
) -> "Figure":
    """Draw the accuracy of methods over their own hyper-parameter, a panel each.

    Above each panel stands its range, lowest to highest accuracy.

    Args:
        curves: A mapping per method: label, parameter (its name), values and accuracy
            (class-balanced, fractions in [0, 1]; None or NaN for one that is missing), default (a
            value or None), log (whether the values stand on a logarithmic axis).
        lines: Accuracy by label of methods that have no hyper-parameter: a dashed line through all
            panels.

    Raises:
        UserError: If there is no curve or a curve has no value, the lengths disagree, or a value of
            0 or less is to stand on a logarithmic axis.
    """
    curves = list(curves)
    if not curves:
        raise UserError("`curves` is empty; it must hold at least one curve.")
    for curve in curves:
        _check_curve(curve)
    lines = {} if lines is None else dict(lines)
    level = dict(zip(lines, percentages(list(lines.values())), strict=True))
    level = {label: value for label, value in level.items() if np.isfinite(value)}
    figure, panels = make_panels(len(curves), 3, 2.6, 2.5)
    shown = list(level.values())
    for axes, curve in zip(panels, curves, strict=True):
        order = np.argsort(np.asarray(curve["values"], dtype=float), kind="stable")
        x = np.asarray(curve["values"], dtype=float)[order]
        y = percentages(curve["accuracy"])[order]
        known = y[np.isfinite(y)]
        shown.extend(known)
        _parameter_axis(axes, curve, x)
        default = curve.get("default")
        if default is not None:
            axes.axvline(default, color="#666666", linestyle=":", lw=1.2, zorder=2)
            at = np.isclose(x, default, rtol=1e-9, atol=0)
            axes.plot(x[at], y[at], "o", color=AFTER_COLOUR, mfc="none", mew=1.4, ms=9, zorder=5)
        axes.plot(x, y, "o-", color=AFTER_COLOUR, ms=3.5, lw=1.6, zorder=4)
        text = f"{known.min():.1f} to {known.max():.1f} %" if len(known) else "no accuracy"
        panel_title(axes, curve["label"], text)
        axes.grid(axis="y", color="#EEEEEE")
        axes.set_axisbelow(True)
    for axes in panels:
        accuracy_limits(axes, "y", np.array(shown) if shown else np.array([0.0, 100.0]))
    outer_labels(panels, 3, below=False)
    figure.supylabel("class-balanced accuracy (%)", fontsize=9)
    _sensitivity_legend(figure, curves)
    _level_lines(panels, 3, level)
    return figure


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
        if high < 3 * low:  # too short for powers of ten
            axes.xaxis.set_major_locator(MaxNLocator(4))
            axes.xaxis.set_minor_locator(NullLocator())
    else:
        margin = 0.06 * (high - low) or max(abs(high), 1) * 0.1
        axes.set_xlim(low - margin, high + margin)
        axes.locator_params(axis="x", nbins=5)


def _level_lines(panels: "Sequence[Axes]", most: int, levels: Mapping[str, float]) -> None:
    """Draw dashed lines through all panels; each label stands right of a row, apart from others."""
    from matplotlib.text import Text

    figure, columns = panels[0].figure, count_columns(len(panels), most)
    labels = sorted(levels, key=levels.get)
    styles = dict(zip(labels, _level_styles(len(labels)), strict=True))
    ends = [a for i, a in enumerate(panels) if i % columns == columns - 1 or a is panels[-1]]
    texts = {axes: [] for axes in ends}
    for axes in panels:
        low, high = axes.get_ylim()
        for label in labels:
            axes.axhline(levels[label], lw=1.2, zorder=3, **styles[label])
            if axes not in texts:
                continue
            text = axes.annotate(
                f"{shorten(label)} {levels[label]:.1f}",
                (1, (levels[label] - low) / (high - low)),
                xycoords="axes fraction",
                textcoords="axes fraction",
                va="center",
                fontsize=8,
                color=styles[label]["color"],
                arrowprops={
                    "arrowstyle": "-", "lw": 0.6, "shrinkA": 1, "shrinkB": 0, "relpos": (0, 0.5),
                    "color": styles[label]["color"],
                },
            )  # fmt: skip
            # Left to the layout, the labels would push apart the columns of every row.
            text.set_in_layout(False)
            texts[axes].append(text)
    if not labels:
        return
    width = max(Text.get_window_extent(text).width for text in texts[ends[0]]) / figure.dpi + 0.3
    figure.set_figwidth(figure.get_figwidth() + width)
    figure.get_layout_engine().set(rect=(0, 0, 1 - width / figure.get_figwidth(), 1))
    figure.draw_without_rendering()  # only now the panels have their heights
    for axes in ends:
        low, high = axes.get_ylim()
        box = axes.get_position()
        gap = 0.145 / (box.height * figure.get_figheight())
        across = 1 + 0.18 / (box.width * figure.get_figwidth())
        heights = _spread([(levels[label] - low) / (high - low) for label in labels], gap)
        steps = gap * np.arange(len(labels))
        heights = np.maximum(np.minimum(heights, 1 - steps[::-1]), steps)  # beside the panel
        for text, height in zip(texts[axes], heights, strict=True):
            text.set_position((across, height))
    # The places are final. Saving with a tight box leaves out what is not in the layout.
    figure.set_layout_engine("none")
    for text in (text for row in texts.values() for text in row):
        text.set_in_layout(True)


def _level_styles(number: int) -> list[dict[str, Any]]:
    # Never the blue of the curves; past the three colours the label at the line's end tells.
    colours = ("#BB5566", "#997700", "#555555")
    dashes = ((0, (5, 2)), (0, (2, 1.5)), (0, (7, 2, 1.5, 2)))
    return [{"color": colours[i % 3], "linestyle": dashes[(i + i // 3) % 3]} for i in range(number)]


def _spread(heights: Sequence[float], gap: float) -> np.ndarray:
    """Move ascending heights apart until neighbours keep the gap, each as little as it can."""
    groups: list[list[float]] = []  # sum of the bottom's wishes, number
    for height in heights:
        groups.append([height, 1.0])
        while len(groups) > 1:
            (below, m), (wish, n) = groups[-2:]
            if below / m + gap * m <= wish / n:
                break
            groups[-2:] = [[below + wish - gap * m * n, m + n]]
    return np.concatenate(
        [total / n + gap * np.arange(int(n)) for total, n in groups] or [np.zeros(0)]
    )


def _sensitivity_legend(figure: "Figure", curves: Sequence[Mapping[str, Any]]) -> None:
    from matplotlib.lines import Line2D

    if any(curve.get("default") is not None for curve in curves):
        ring = Line2D(
            [], [], color="#666666", ls=":", lw=1.2,
            marker="o", mec=AFTER_COLOUR, mfc="none", mew=1.4, ms=8, label="default",
        )  # fmt: skip
        add_handles(figure, [ring])
