"""The plot of confidence against accuracy, and how sharp the confidence is."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from ltlearn.errors import UserError
from ltlearn.metrics.calibration import CalibrationBins
from ltlearn.plots.figure import blank_figure
from ltlearn.plots.style import AFTER_COLOUR, BEFORE_COLOUR, INK, SHOT_COLOURS, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_calibration"]

_GAP_COLOUR = SHOT_COLOURS["few"]


def plot_calibration(bins: Mapping[str, CalibrationBins]) -> "Figure":
    """Draw the accuracy of images by their confidence, and how many images have which confidence.

    A bar is the accuracy of the images in a bin, and the red outline reaches from there to their
    mean confidence: above the bar the classifier is too confident. The histogram below shows the
    share of images in each bin.

    Args:
        bins: The bins of each classifier by its name, from `calibration_bins`. The first is drawn
            in grey.

    Raises:
        UserError: If there is no classifier.

    Example:
        >>> bins = calibration_bins([0.9, 0.8, 0.6], [True, True, False])
        >>> plot_calibration({"CE": bins}).savefig("calibration.png")
    """
    if not bins:
        raise UserError("bins is empty; it must hold at least one classifier.")
    width = 0.9 + 2.9 * max(len(bins), 1.5)
    figure = blank_figure(width, 4.3, "constrained")
    rows = figure.subplots(
        2, len(bins), sharex=True, sharey="row", squeeze=False, height_ratios=(3, 1)
    )
    for column, (label, of_one) in enumerate(bins.items()):
        colour = BEFORE_COLOUR if column == 0 and len(bins) > 1 else AFTER_COLOUR
        upper, lower = rows[:, column]
        _draw_reliability(upper, of_one, colour)
        _draw_shares(lower, of_one, colour)
        title = f"{shorten(label)}: ECE {100 * of_one.error:.1f} %"
        upper.set_title(title, fontsize=9, loc="left", color=INK)
        lower.set_xlabel("confidence (%)", fontsize=9)
    rows[0, 0].set_ylabel("accuracy (%)", fontsize=9)
    rows[1, 0].set_ylabel("images (%)", fontsize=9)
    _add_legend(figure)
    return figure


def _draw_reliability(axes: "Axes", bins: CalibrationBins, colour: str) -> None:
    known = bins.images > 0
    left, width = 100 * bins.edges[:-1][known], 100 / len(bins.images)
    accuracy, confidence = 100 * bins.accuracy[known], 100 * bins.confidence[known]
    style = {"width": width, "align": "edge"}
    axes.bar(left, accuracy, color=colour, alpha=0.85, label="accuracy", **style)
    axes.bar(
        left, confidence - accuracy, bottom=accuracy, facecolor=_GAP_COLOUR, alpha=0.22,
        label="gap", **style,
    )  # fmt: skip
    axes.plot([0, 100], [0, 100], color=INK, linewidth=1, linestyle="--")
    axes.set(xlim=(0, 100), ylim=(0, 100))
    _format(axes)


def _draw_shares(axes: "Axes", bins: CalibrationBins, colour: str) -> None:
    shares = 100 * bins.images / max(bins.images.sum(), 1)
    left, width = 100 * bins.edges[:-1], 100 / len(shares)
    axes.bar(left, shares, width=width, align="edge", color=colour, alpha=0.85, label="images")
    axes.set_ylim(bottom=0)
    _format(axes)


def _format(axes: "Axes") -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.set_xticks(np.arange(0, 101, 20))
    axes.grid(axis="y", color="#EEEEEE")
    axes.set_axisbelow(True)


def _add_legend(figure: "Figure") -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles = [
        Patch(color=AFTER_COLOUR, alpha=0.85, label="accuracy of a bin"),
        Patch(color=_GAP_COLOUR, alpha=0.22, label="gap to its mean confidence"),
        Line2D([], [], color=INK, linewidth=1, linestyle="--", label="no gap"),
    ]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=8,
        handlelength=1.6, columnspacing=1.4,
    )  # fmt: skip
