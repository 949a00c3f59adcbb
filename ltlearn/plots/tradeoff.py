"""The plot of many-shot against few-shot accuracy."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ltlearn.errors import UserError
from ltlearn.metrics.shots import SHOTS
from ltlearn.plots.label_layout import label_points
from ltlearn.plots.style import accuracy_limits, add_handles, new_figure, percentages, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_tradeoff"]

# Of methods compared: Pareto-optimal, not so (the paler one for dots, the darker for text), marked.
_BEST, _REST, _REST_TEXT, _MARKED = "#004488", "#8FA9C4", "#5F6B78", "#BB5566"


def plot_tradeoff(
    points: Mapping[str, Sequence[tuple[float | None, float | None]]],
    groups: tuple[str, str] = ("many", "few"),
    highlight: str | None = None,
) -> "Figure":
    """Draw every method's accuracy in one group of classes against that in another.

    A small dot is a seed, the large one their mean, the thin cross one standard deviation each way.
    Methods that no other beats in one group without losing in the other are in full colour.

    Args:
        points: For every method a pair of accuracies per seed, fractions in [0, 1]. A seed with
            None or NaN in it is left out.
        groups: What the two accuracies of a pair are of.
        highlight: The method to mark with a colour of its own.

    Raises:
        UserError: If there is no method or a method has no seed, a seed is not two fractions, or
            `highlight` is not among the methods.
    """
    if len(groups) != 2:
        raise UserError(f"`groups` has {len(groups)} names; it must have two.")
    seeds = _seed_points(points)
    if highlight is not None and highlight not in seeds:
        raise UserError(f"`highlight` is {highlight!r}; it must be one of {', '.join(seeds)}.")
    undrawn = [label for label, values in seeds.items() if not len(values)]
    seeds = {label: values for label, values in seeds.items() if len(values)}
    many = len(seeds) > 10
    figure, axes = new_figure(7.4 if many else 6.4, 6.0 if many else 4.8)
    for name, put in zip(groups, (axes.set_xlabel, axes.set_ylabel), strict=True):
        put(f"{name}-shot accuracy (%)" if name in SHOTS else f"{name} accuracy (%)")
    if undrawn:
        names = ", ".join(shorten(label) for label in undrawn)
        title = f"without accuracy in a group, not drawn: {names}"
        axes.set_title(textwrap.fill(title, 100), fontsize=8, loc="left", pad=16)
    if not seeds:
        axes.set(xlim=(0, 100), ylim=(0, 100))
        return figure
    means = np.array([values.mean(0) for values in seeds.values()])
    deviations = np.array(
        [values.std(0, ddof=1) if len(values) > 1 else (0, 0) for values in seeds.values()]
    )
    best = _pareto(means)
    every = np.concatenate([*seeds.values(), means - deviations, means + deviations])
    for axis, ends in (("x", every[:, 0]), ("y", every[:, 1])):
        accuracy_limits(axes, axis, ends)
    for (label, values), mean, deviation, good in zip(
        seeds.items(), means, deviations, best, strict=True
    ):
        marked = label == highlight
        colour = _MARKED if marked else _BEST if good else _REST
        front = 1 if marked or good else 0
        if len(values) > 1:
            axes.plot(*values.T, "o", color=colour, ms=2.2, mew=0, alpha=0.6, zorder=3 + front)
            axes.errorbar(
                *mean,
                xerr=deviation[0],
                yerr=deviation[1],
                color=colour,
                linewidth=0.7,
                zorder=3 + front,
            )
        axes.plot(
            *mean,
            "s" if marked else "o",
            color=colour,
            ms=6.5,
            mec="white",
            mew=0.6,
            label=label,
            zorder=5 + front + marked,
        )
    _tradeoff_legend(figure, best, several=any(len(values) > 1 for values in seeds.values()))
    taken = _equal_mean_lines(axes)
    figure.draw_without_rendering()  # the labels are placed by the size the axes then have
    colours = [
        _MARKED if label == highlight else _BEST if good else _REST_TEXT
        for label, good in zip(seeds, best, strict=True)
    ]
    label_points(axes, list(seeds), means, deviations, list(seeds.values()), colours, taken)
    return figure


def _seed_points(points: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Check the accuracies; return them in %, a (seeds, 2) array per method without the unknown."""
    if not points:
        raise UserError("`points` is empty; it must hold at least one method.")
    seeds = {}
    for label, pairs in points.items():
        pairs = list(pairs)
        if not pairs:
            raise UserError(f"`points` has no seed of {label!r}.")
        for pair in pairs:
            if np.ndim(pair) != 1 or len(pair) != 2:
                raise UserError(f"`points` has {pair!r} for {label!r}; a seed is two accuracies.")
        values = np.array([percentages(pair) for pair in pairs])
        values = values[np.isfinite(values).all(1)]
        if ((values < 0) | (values > 100 + 1e-6)).any():
            raise UserError(f"`points` of {label!r} are not all fractions in [0, 1].")
        seeds[label] = values
    return seeds


def _pareto(means: np.ndarray) -> np.ndarray:
    """Say of each row whether no other is as large in both columns and larger in one."""
    no_less = (means[None] >= means[:, None]).all(2)
    more = (means[None] > means[:, None]).any(2)
    return ~(no_less & more).any(1)


def _equal_mean_lines(axes: "Axes") -> list:
    """Draw thin lines of equal mean of x and y, labelled at an end; return texts in the axes."""
    from matplotlib.ticker import MaxNLocator

    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    low, high = (left + bottom) / 2, (right + top) / 2
    inside = []
    levels = MaxNLocator(7, steps=[1, 2, 5, 10]).tick_values(low, high)
    for level in levels[(levels > low) & (levels < high)]:
        first, last = max(left, 2 * level - top), min(right, 2 * level - bottom)
        axes.plot(
            [first, last], [2 * level - first, 2 * level - last], color="#D8D8D8", lw=0.7, zorder=1
        )
        if first > left:
            where, offset, style = first, (0, 2), {"ha": "center", "va": "bottom"}
        elif last == right:
            where, offset, style = right, (3, 0), {"ha": "left", "va": "center"}
        else:  # it cuts off the corner at the origin; there are the axes' own numbers
            where, offset, style = last, (3, 3), {"ha": "left", "va": "bottom"}
        text = axes.annotate(
            f"mean {level:g}",
            (where, 2 * level - where),
            xytext=offset,
            textcoords="offset points",
            fontsize=7,
            color="#777777",
            **style,
        )
        if first == left and last < right:
            inside.append(text)
    return inside


def _tradeoff_legend(figure: "Figure", best: np.ndarray, several: bool) -> None:
    from matplotlib.lines import Line2D

    def mark(marker: str, colour: str, size: float, label: str, **style: Any) -> Line2D:
        style = {"linestyle": "", "markeredgewidth": 0} | style
        return Line2D([], [], marker=marker, color=colour, markersize=size, label=label, **style)

    handles = [mark("o", _BEST, 6, "Pareto-optimal")]
    if not best.all():
        handles.append(mark("o", _REST, 6, "dominated by another method"))
    if several:
        handles.append(mark("o", _REST_TEXT, 2.5, "one seed"))
        handles.append(mark("+", _REST_TEXT, 8, "± 1 sd over seeds", markeredgewidth=0.8))
    add_handles(figure, handles)
