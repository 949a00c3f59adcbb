"""Matplotlib figures as SVG that is part of a page: its colours, its font, and values on hover."""

import io
import re
from collections.abc import Iterator, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from ltlearn.utils.text import clean

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["figure_to_svg"]

_POINTS_PER_INCH = 72
# More marks than this get no values on hover, because each takes about 100 bytes.
_MAX_MARKS = 2500
_MAX_DOTS = 5000  # that are drawn one by one
_PADDING = 0.04  # around a figure, in inches
_RADIUS = 5.0  # of the area around a dot that shows its value, in points
# Colours that depend on the page's: ink and paper, and those too dark for a dark page.
_COLOURS = {
    "#000000": "ink-soft",
    "#222222": "ink",
    "#555555": "ink-soft",
    "#5f6b78": "ink-soft",
    "#666666": "ink-soft",
    "#777777": "ink-soft",
    "#808080": "plot-grey",
    "#999999": "plot-grey",
    "#bbbbbb": "plot-line",
    "#d8d8d8": "plot-line",
    "#eeeeee": "plot-grid",
    "#ffffff": "card",
    "#004488": "plot-blue",
    "#8fa9c4": "plot-pale",
    "#bb5566": "plot-red",
    "#ddaa33": "plot-gold",
}
_COLOUR = re.compile("|".join(_COLOURS))
_STYLE = re.compile(r'style="[^"]*"')
_HEAD = re.compile(r"^.*?<svg[^>]*?viewBox=\"([^\"]*)\"[^>]*>", re.DOTALL)
_DROPPED = re.compile(
    r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>|<!--.*?-->"
    r"|(?<=<g) id=\"[^\"]*\"",
    re.DOTALL,
)


def figure_to_svg(figure: "Figure", name: str, names: Sequence[str] | None = None) -> str:
    """Return a figure as an `svg` element for a page.

    Its text stays text in the page's font, and its colours are variables of the page, so that they
    follow a dark page. Dots, bars and cells show their values on hover.

    Args:
        figure: The figure.
        name: A name that no other figure of the page has; its internal links begin with it.
        names: Class names in label order: a line with a dot for each class shows them.
    """
    import matplotlib as mpl

    _rasterize_many(figure)
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        text, box = _saved(figure), figure.bbox_inches
        if _has_wide_legend(figure):
            box = figure.get_tightbbox().padded(_PADDING)
            text = _saved(figure, bbox_inches=box)
    width, height = (float(v) for v in _HEAD.match(text)[1].split()[2:])
    text = _DROPPED.sub("", _HEAD.sub("", text, count=1))
    text = _STYLE.sub(_with_variables, text)
    origin = _POINTS_PER_INCH * np.array([box.x0, box.y0])
    marks = "".join(_marks(figure, origin, height, names))
    body = re.sub(r"\s*\n\s*", "\n", text.rpartition("</svg>")[0]).strip()
    return (
        f'<svg class="plot" viewBox="0 0 {width:g} {height:g}" '
        f'style="min-width:{1.1 * width:.0f}px;max-width:{1.6 * width:.0f}px" '
        f'aria-hidden="true" xmlns:xlink="http://www.w3.org/1999/xlink">{body}{marks}</svg>'
    )


def _saved(figure: "Figure", **options: Any) -> str:
    file = io.BytesIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None}, **options)
    return file.getvalue().decode()


def _has_wide_legend(figure: "Figure") -> bool:
    extents = [legend.get_window_extent() for legend in figure.legends]
    return any(extent.x0 < 0 or extent.x1 > figure.bbox.x1 for extent in extents)


def _with_variables(style: re.Match) -> str:
    """Replace the colours of a style by variables, and drop its font."""
    text = re.sub(r"font-family: [^;\"]*;? ?", "", style[0])
    return _COLOUR.sub(lambda colour: f"var(--{_COLOURS[colour[0]]})", text)


def _rasterize_many(figure: "Figure") -> None:
    """Draw dots as an image where there are so many that each as an element fills megabytes."""
    lines = [line for axes in figure.axes for line in axes.lines if _has_dots(line)]
    if sum(len(line.get_xdata()) for line in lines) > _MAX_DOTS:
        for line in lines:
            line.set_rasterized(True)


def _has_dots(line: Any) -> bool:
    return line.get_marker() not in ("None", "none", "", " ", None)


def _marks(
    figure: "Figure", origin: np.ndarray, height: float, names: Sequence[str] | None
) -> list[str]:
    """Return invisible elements over dots, bars and cells, whose titles browsers show on hover."""
    scale = _POINTS_PER_INCH / figure.dpi
    marks = []
    for axes in figure.axes:
        for kind in (_dots, _bars, _steps, _cells):
            for corners, title in kind(axes, names):
                at = axes.transData.transform(np.atleast_2d(corners)) * scale - origin
                marks.append(_mark(at, height, title))
    return marks if len(marks) <= _MAX_MARKS else []


def _mark(at: np.ndarray, height: float, title: str) -> str:
    """Return a circle around one point, or the rectangle between two."""
    title = f"<title>{escape(clean(title))}</title>"
    if len(at) == 1:
        x, y = at[0]
        return f'<circle cx="{x:.1f}" cy="{height - y:.1f}" r="{_RADIUS:g}">{title}</circle>'
    (left, low), (right, high) = at.min(0), at.max(0)
    return (
        f'<rect x="{left:.1f}" y="{height - high:.1f}" width="{max(right - left, 1):.1f}" '
        f'height="{max(high - low, 1):.1f}">{title}</rect>'
    )


def _dots(axes: "Axes", names: Sequence[str] | None) -> Iterator[tuple[Any, str]]:
    """Yield the dots of lines that have markers."""
    for line in axes.lines:
        if not _has_dots(line):
            continue
        points = np.column_stack([line.get_xdata(), line.get_ydata()]).astype(float)
        label = line.get_label()
        label = "" if label.startswith("_") else label
        if len(points) > _MAX_MARKS:
            continue
        of_class = names if names is not None and len(names) == len(points) else None
        for i, point in enumerate(points):
            if np.isfinite(point).all():
                subject = [of_class[i] if of_class is not None else "", label]
                parts = [", ".join(filter(None, subject)), _values(axes, point)]
                yield point, ": ".join(filter(None, parts))


def _values(axes: "Axes", point: np.ndarray) -> str:
    """Describe a point by the labels of its axes; a row with a name is described by the name."""
    (x, y), name = point, _row_name(axes, point[1])
    x_text = f"{_short(axes.get_xlabel()) or 'x'} {x:,.4g}"
    return f"{name}: {x_text}" if name else f"{x_text}, {_short(axes.get_ylabel()) or 'y'} {y:,.4g}"


def _short(label: str) -> str:
    return label.partition(" (")[0].replace("\n", " ")


def _row_name(axes: "Axes", y: float) -> str:
    """Return the name of a row of a plot with named rows."""
    from matplotlib.ticker import FixedLocator

    if not isinstance(axes.yaxis.get_major_locator(), FixedLocator) or axes.get_ylabel():
        return ""
    texts = (label.get_text() for label in axes.get_yticklabels())
    return dict(zip(axes.get_yticks(), texts, strict=False)).get(y, "").replace(r"\$", "$")


def _bars(axes: "Axes", names: Sequence[str] | None) -> Iterator[tuple[Any, str]]:
    """Yield the bars."""
    from matplotlib.container import BarContainer

    for container in axes.containers:
        if not isinstance(container, BarContainer):
            continue
        label = container.get_label()
        label = "" if label.startswith("_") else f"{label} "
        for bar in container.patches:
            corners = np.array([bar.get_xy(), (bar.get_x() + bar.get_width(), _top(bar))])
            if container.orientation == "horizontal":
                name = _row_name(axes, bar.get_y() + bar.get_height() / 2)
                title = f"{name}: {bar.get_width():,.4g} ({label.strip()})"
            else:
                value = bar.get_height()
                title = f"{label}{value:,.4g} at {corners[0, 0]:.3g} to {corners[1, 0]:.3g}"
            # A log axis has no place for 0.
            corners = np.maximum(corners, [axes.get_xlim()[0], min(axes.get_ylim())])
            yield corners, title


def _top(bar: Any) -> float:
    return bar.get_y() + bar.get_height()


def _steps(axes: "Axes", names: Sequence[str] | None) -> Iterator[tuple[Any, str]]:
    """Yield the classes of a staircase, by rank."""
    from matplotlib.patches import StepPatch

    for patch in axes.patches:
        if not isinstance(patch, StepPatch):
            continue
        values, edges, _ = patch.get_data()
        if len(values) > _MAX_MARKS:
            continue
        floor = axes.get_ylim()[0]
        for value, left, right in zip(values, edges[:-1], edges[1:], strict=True):
            title = f"class of rank {int(right):,}: {value:,.0f} ({patch.get_label()})"
            yield np.array([(left, floor), (right, max(value, floor))]), title


def _cells(axes: "Axes", names: Sequence[str] | None) -> Iterator[tuple[Any, str]]:
    """Yield the cells of an image with named rows and columns, such as a confusion matrix."""
    for image in axes.images:
        values = np.ma.getdata(image.get_array())
        columns = [tick.get_text() for tick in axes.get_xticklabels()]
        rows = [tick.get_text() for tick in axes.get_yticklabels()]
        if values.shape != (len(rows), len(columns)):
            continue
        for (i, j), value in np.ndenumerate(values):
            corners = np.array([(j - 0.5, i - 0.5), (j + 0.5, i + 0.5)])
            yield corners, f"{rows[i]} → {columns[j]}: {value:.1f} %".replace(r"\$", "$")
