"""The plot of many-shot against few-shot accuracy."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ltlearn.errors import UserError, check_choice
from ltlearn.metrics.shots import SHOTS
from ltlearn.plots.style import accuracy_limits, add_handles, new_figure, percentages, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_tradeoff"]

# Colours of dots; dominated methods have a paler one for dots and a darker one for text.
_BEST, _REST, _REST_TEXT, _MARKED = "#004488", "#8FA9C4", "#5F6B78", "#BB5566"
_EQUAL_MEANS = "#D8D8D8"
_MAX_LEGEND_ROWS = 30
# The size of a number beside its dot and the size of a dot, in points (1/72 inch).
_NUMBER_SIZE, _DOT_SIZE = np.array([10.0, 8.0]), 6.5


def plot_tradeoff(
    points: Mapping[str, Sequence[tuple[float | None, float | None]]],
    groups: tuple[str, str] = ("many", "few"),
    highlight: str | None = None,
) -> "Figure":
    """Draw the accuracy of methods in one group of classes against their accuracy in another.

    A small dot is one seed, a large dot their mean, and a thin cross one standard deviation each
    way. The numbers of the methods count from the top down; the legend names them. Methods that no
    other method beats in one group without losing in the other have a strong colour.

    Args:
        points: For each method, one pair of accuracies per seed, fractions in [0, 1]. A seed with
            None or NaN is left out.
        groups: The names of the two groups.
        highlight: The method to mark with its own colour.

    Raises:
        UserError: If there is no method, a method has no seed, a seed is not two fractions, or
            `highlight` is not one of the methods.

    Example:
        >>> figure = plot_tradeoff({"CE": [(0.72, 0.10)], "CE + SAMN": [(0.66, 0.31)]})
        >>> figure.savefig("tradeoff.png")
    """
    if len(groups) != 2:
        raise UserError(f"groups has {len(groups)} names; it must have two.")
    seeds = _read_points(points)
    if highlight is not None:
        check_choice("highlight", highlight, seeds)
    undrawn = [label for label, values in seeds.items() if not len(values)]
    methods = _make_methods(seeds, highlight)
    figure, axes = new_figure(8.8, 5.6)
    for group, set_label in zip(groups, (axes.set_xlabel, axes.set_ylabel), strict=True):
        set_label(f"{group}-shot accuracy (%)" if group in SHOTS else f"{group} accuracy (%)")
    if undrawn:
        names = ", ".join(shorten(label) for label in undrawn)
        title = f"without accuracy in a group, not drawn: {names}"
        axes.set_title(textwrap.fill(title, 100), fontsize=8, loc="left", pad=16)
    if not methods:
        axes.set(xlim=(0, 100), ylim=(0, 100))
        return figure
    ends = [m.mean + sign * m.deviation for m in methods for sign in (-1, 1)]
    shown = np.concatenate([*(m.seeds for m in methods), ends])
    accuracy_limits(axes, "x", shown[:, 0])
    accuracy_limits(axes, "y", shown[:, 1])
    for method in methods:
        _draw_method(axes, method)
    _draw_equal_means(axes)
    _add_mark_legend(figure, methods, groups)
    _add_number_legend(figure, methods)
    _draw_numbers(axes, methods)
    return figure


@dataclass
class _Method:
    """A method to draw: its accuracies in %, and how it is drawn."""

    label: str
    seeds: np.ndarray
    is_best: bool
    is_marked: bool

    @property
    def mean(self) -> np.ndarray:
        return self.seeds.mean(0)

    @property
    def deviation(self) -> np.ndarray:
        return self.seeds.std(0, ddof=1) if len(self.seeds) > 1 else np.zeros(2)

    @property
    def colour(self) -> str:
        return _MARKED if self.is_marked else _BEST if self.is_best else _REST

    @property
    def text_colour(self) -> str:
        return _REST_TEXT if self.colour == _REST else self.colour


def _read_points(points: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return the accuracies of each method in %, (seeds, 2), without the unknown ones."""
    if not points:
        raise UserError("points is empty; it must hold at least one method.")
    seeds = {}
    for label, pairs in points.items():
        pairs = list(pairs)
        if not pairs:
            raise UserError(f"points has no seed of {label!r}.")
        for pair in pairs:
            if np.ndim(pair) != 1 or len(pair) != 2:
                raise UserError(f"points has {pair!r} for {label!r}; a seed is two accuracies.")
        values = np.array([percentages(pair) for pair in pairs])
        values = values[np.isfinite(values).all(1)]
        if ((values < 0) | (values > 100 + 1e-6)).any():
            raise UserError(f"points of {label!r} are not all fractions in [0, 1].")
        seeds[label] = values
    return seeds


def _make_methods(seeds: Mapping[str, np.ndarray], highlight: str | None) -> list[_Method]:
    """Return the methods that have accuracies, from the top of the plot to the bottom."""
    known = {label: values for label, values in seeds.items() if len(values)}
    means = np.array([values.mean(0) for values in known.values()]).reshape(-1, 2)
    methods = [
        _Method(label, values, bool(is_best), label == highlight)
        for (label, values), is_best in zip(known.items(), _find_pareto(means), strict=True)
    ]
    return sorted(methods, key=lambda method: -method.mean[1])


def _find_pareto(means: np.ndarray) -> np.ndarray:
    """Mark each row unless another row is as large in both columns and larger in one."""
    no_less = (means[None] >= means[:, None]).all(2)
    more = (means[None] > means[:, None]).any(2)
    return ~(no_less & more).any(1)


def _draw_method(axes: "Axes", method: _Method) -> None:
    front = 1 if method.is_marked or method.is_best else 0
    if len(method.seeds) > 1:
        axes.plot(
            *method.seeds.T, "o", color=method.colour, ms=2.2, mew=0, alpha=0.6, zorder=3 + front
        )
        across, up = method.deviation
        axes.errorbar(
            *method.mean, xerr=across, yerr=up, color=method.colour, lw=0.7, zorder=3 + front
        )
    axes.plot(
        *method.mean,
        "s" if method.is_marked else "o",
        color=method.colour,
        ms=_DOT_SIZE,
        mec="white",
        mew=0.6,
        label=method.label,
        zorder=5 + front + method.is_marked,
    )


def _draw_numbers(axes: "Axes", methods: Sequence[_Method]) -> None:
    """Write the number of each method beside its dot, with a line to it if it stands far off."""
    from matplotlib.patheffects import withStroke

    axes.figure.draw_without_rendering()  # the offsets depend on the final size of the axes
    scale = 72 / axes.figure.dpi
    dots = axes.transData.transform([method.mean for method in methods]) * scale
    frame = axes.bbox.get_points() * scale
    for k, (method, offset) in enumerate(
        zip(methods, _place_numbers(dots, frame), strict=True), start=1
    ):
        line = {"arrowstyle": "-", "lw": 0.5, "shrinkA": 4, "shrinkB": 3}
        text = axes.annotate(
            str(k),
            method.mean,
            xytext=offset,
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=7.5,
            color=method.text_colour,
            zorder=8,
            path_effects=[withStroke(linewidth=1.5, foreground="white")],
            arrowprops=line | {"color": method.text_colour} if np.hypot(*offset) > 15 else None,
        )
        text.set_in_layout(False)


def _place_numbers(dots: np.ndarray, frame: np.ndarray) -> list[np.ndarray]:
    """Return the offset of each number: the nearest that meets no dot and no earlier number.

    Args:
        dots: The dots, (N, 2), in points.
        frame: Lower left and upper right corner of the axes, (2, 2), in points.
    """
    # The diagonals first: the cross of the standard deviations lies on the other directions.
    angles = np.array([1, 7, 3, 5, 0, 4, 2, 6]) * np.pi / 4
    directions = np.stack([np.cos(angles), np.sin(angles)], 1)
    candidates = [radius * way for radius in range(11, 150, 11) for way in directions]
    half = _NUMBER_SIZE / 2
    offsets, centres = [], np.empty((0, 2))
    for dot in dots:
        for offset in candidates:
            centre = dot + offset
            is_inside = (centre - half >= frame[0]).all() and (centre + half <= frame[1]).all()
            meets_dot = (np.abs(dots - centre) < half + _DOT_SIZE / 2).all(1).any()
            meets_number = (np.abs(centres - centre) < _NUMBER_SIZE).all(1).any()
            if is_inside and not meets_dot and not meets_number:
                break
        offsets.append(offset)
        centres = np.vstack([centres, dot + offset])
    return offsets


def _draw_equal_means(axes: "Axes") -> None:
    """Draw thin lines of equal mean of x and y, with a label at one end."""
    from matplotlib.ticker import MaxNLocator

    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    low, high = (left + bottom) / 2, (right + top) / 2
    levels = MaxNLocator(7, steps=[1, 2, 5, 10]).tick_values(low, high)
    for level in levels[(levels > low) & (levels < high)]:
        first, last = max(left, 2 * level - top), min(right, 2 * level - bottom)
        axes.plot(
            [first, last],
            [2 * level - first, 2 * level - last],
            color=_EQUAL_MEANS,
            lw=0.7,
            zorder=1,
        )
        if first > left:
            x, offset, style = first, (0, 2), {"ha": "center", "va": "bottom"}
        elif last == right:
            x, offset, style = right, (3, 0), {"ha": "left", "va": "center"}
        else:  # the line ends at the left and at the bottom, where the numbers of the axes stand
            x, offset, style = last, (3, 3), {"ha": "left", "va": "bottom"}
        axes.annotate(
            f"mean {level:g}",
            (x, 2 * level - x),
            xytext=offset,
            textcoords="offset points",
            fontsize=7,
            color="#777777",
            **style,
        )


def _add_number_legend(figure: "Figure", methods: Sequence[_Method]) -> None:
    """List the numbers and names of the methods on the right."""
    from matplotlib.lines import Line2D

    digits = len(str(len(methods)))
    # A figure space is as wide as a digit, so that the names are aligned.
    numbers = [str(k).rjust(digits, "\N{FIGURE SPACE}") for k in range(1, len(methods) + 1)]
    figure.legend(
        [Line2D([], [], linestyle="") for _ in methods],
        [f"{k}  {shorten(method.label)}" for k, method in zip(numbers, methods, strict=True)],
        labelcolor=[method.text_colour for method in methods],
        loc="outside right upper",
        ncols=-(-len(methods) // _MAX_LEGEND_ROWS),
        frameon=False,
        fontsize=8,
        handlelength=0,
        handletextpad=0,
    )


def _add_mark_legend(figure: "Figure", methods: Sequence[_Method], groups: tuple[str, str]) -> None:
    from matplotlib.lines import Line2D

    def mark(marker: str, colour: str, size: float, label: str, **style: Any) -> Line2D:
        style = {"linestyle": "", "markeredgewidth": 0} | style
        return Line2D([], [], marker=marker, color=colour, markersize=size, label=label, **style)

    handles = [mark("o", _BEST, 6, "Pareto-optimal")]
    if not all(method.is_best for method in methods):
        handles.append(mark("o", _REST, 6, "dominated by another method"))
    if any(len(method.seeds) > 1 for method in methods):
        handles.append(mark("o", _REST_TEXT, 2.5, "one seed"))
        handles.append(mark("+", _REST_TEXT, 8, "± 1 sd over seeds", markeredgewidth=0.8))
    marked = [shorten(method.label) for method in methods if method.is_marked]
    handles += [mark("s", _MARKED, 6, f"{label}, for reference") for label in marked]
    equal = f"equal mean of {groups[0]} and {groups[1]}"
    handles.append(Line2D([], [], color=_EQUAL_MEANS, lw=0.7, label=equal))
    add_handles(figure, handles)
