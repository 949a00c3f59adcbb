"""Figures of a long-tailed run: class counts, accuracy and weight norms, stage 2, methods compared.

Every function returns a `matplotlib.figure.Figure` that belongs to no window: its `savefig` works
anywhere, and no backend or pyplot state is touched.
"""

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ltlearn.errors import UserError
from ltlearn.metrics import SHOTS, shot_groups, shot_thresholds_text
from ltlearn.text import clean

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation

__all__ = [
    "plot_class_counts",
    "plot_norms",
    "plot_norms_by_method",
    "plot_per_class_accuracy",
    "plot_sensitivity",
    "plot_tradeoff",
    "plot_trajectory",
]

# Paul Tol's high-contrast colours: distinct with any colour vision deficiency and in grey print.
_SHOT_COLOURS = {"many": "#004488", "medium": "#DDAA33", "few": "#BB5566"}
_BEFORE, _AFTER = "#808080", "#004488"
_INK = "#222222"
# Of methods compared: Pareto-optimal, not so (the paler one for dots, the darker for text), marked.
_BEST, _REST, _REST_TEXT, _MARKED = "#004488", "#8FA9C4", "#5F6B78", "#BB5566"
# Up to this many classes each gets a row with its name; above, only ranks can be told apart.
_NAMED_CLASSES = 20
_NAME_LENGTH = 28


def plot_class_counts(
    class_counts: Sequence[int], classes: Sequence[str] | None = None, few: str = "<20"
) -> "Figure":
    """Draw the training images per class, most frequent first, coloured by shot group.

    Args:
        class_counts: Training images per class.
        classes: Class names in label order; shown for up to 20 classes.
        few: The few-shot convention, "<20" or "<=20".

    Shape:
        class_counts is (C,), integer.

    Raises:
        UserError: If the counts or the names are not usable, or `few` is not allowed.
    """
    counts, groups, order = _sorted_classes(class_counts, classes, few)
    ordered = counts[order]
    shown = [name for name in SHOTS if groups[name].any()]
    if len(counts) <= _NAMED_CLASSES:
        figure, axes = _named_rows(order, classes, counts)
        for name in shown:
            rows = np.flatnonzero(groups[name][order])
            axes.barh(rows, ordered[rows], color=_SHOT_COLOURS[name], height=0.75, label=name)
        for row, count in enumerate(ordered):
            axes.annotate(
                f"{count:,}",
                (max(count, _log_floor(counts)), row),
                xytext=(3, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
                color=_INK,
            )
        _count_axis(axes, "x", counts)
        # Room for the number at the end of the longest bar.
        axes.set_xlim(
            right=counts.max(initial=1) * (counts.max(initial=1) / _log_floor(counts)) ** 0.12
        )
    else:
        figure, axes = _new_figure(6.4, 3.6)
        edges = np.arange(len(counts) + 1)
        for name in shown:
            rows = np.flatnonzero(groups[name][order])
            first, last = rows[0], rows[-1]
            axes.stairs(
                ordered[first : last + 1],
                edges[first : last + 2],
                baseline=_log_floor(counts),
                fill=True,
                color=_SHOT_COLOURS[name],
                label=name,
            )
        axes.set_xlim(0, len(counts))
        axes.set_xlabel("class, by rank (most frequent first)")
        _thousands(axes.xaxis)
        _count_axis(axes, "y", counts)
    axes.set_title(
        f"{counts.sum():,} training images, {len(counts):,} classes", fontsize=10, loc="left"
    )
    _add_legend(figure, axes, few=few, groups=groups)
    return figure


def plot_per_class_accuracy(
    before: Sequence[float],
    after: Sequence[float],
    class_counts: Sequence[int],
    classes: Sequence[str] | None = None,
    labels: tuple[str, str] = ("CE", "SAMN"),
    few: str = "<20",
) -> "Figure":
    """Compare the accuracy of every class under two classifiers, most frequent class first.

    Up to 20 classes get a row each, a dot per classifier and their names. More are drawn as thin
    lines over the class rank, with a moving average (1/20 of the classes wide) on top; above 1,000
    classes the thin lines are averages too (1/500 wide), or they would fill the axes.

    Args:
        before: Accuracy per class, a fraction in [0, 1]; NaN for a class with no test image.
        after: The same for the second classifier.
        class_counts: Training images per class; they decide the order and the shot groups.
        classes: Class names in label order.
        labels: What the two are called.
        few: The few-shot convention, "<20" or "<=20".

    Shape:
        before, after and class_counts are (C,).

    Raises:
        UserError: If the lengths disagree, or `few` is not allowed.
    """
    counts, groups, order = _sorted_classes(class_counts, classes, few)
    pair = [
        100 * _per_class(values, len(counts), name)[order]
        for values, name in ((before, "before"), (after, "after"))
    ]
    if len(counts) <= _NAMED_CLASSES:
        figure, axes = _named_rows(order, classes, counts, with_counts=True)
        rows = np.arange(len(counts))
        _shade_groups(axes, groups, order, vertical=False)
        axes.hlines(rows, pair[0], pair[1], color="#BBBBBB", linewidth=2, zorder=2)
        # A ring and a smaller diamond: both are seen where the accuracies are equal.
        axes.plot(
            pair[0], rows, "o", color=_BEFORE, mfc="none", mew=2, ms=9, label=labels[0], zorder=3
        )
        axes.plot(pair[1], rows, "D", color=_AFTER, ms=5, label=labels[1], zorder=4)
        for row in np.flatnonzero(np.isnan(pair[0]) & np.isnan(pair[1])):
            axes.text(0, row, "no test image", va="center", fontsize=8, color=_INK)
        axes.set_xlim(-3, 103)
        axes.set_xlabel("accuracy (%)")
        axes.grid(axis="x", color="#EEEEEE", zorder=0)
    else:
        figure, axes = _new_figure(6.4, 3.8)
        _shade_groups(axes, groups, order, vertical=True)
        rank = np.arange(len(counts)) + 0.5
        for values, label, colour in zip(pair, labels, (_BEFORE, _AFTER), strict=True):
            fine = _moving_average(values, len(values) // 500) if len(values) > 1000 else values
            axes.plot(rank, fine, color=colour, linewidth=0.4, alpha=0.35, zorder=2)
            smooth = _moving_average(values, max(3, len(values) // 20))
            axes.plot(rank, smooth, color=colour, linewidth=2, label=label, zorder=3)
        axes.set_xlim(0, len(counts))
        axes.set_ylim(-3, 103)
        axes.set_xlabel("class, by rank (most frequent first)")
        axes.set_ylabel("accuracy (%)")
        _thousands(axes.xaxis)
    _add_legend(figure, axes, few=few, groups=groups)
    return figure


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
    counts, _, _ = _sorted_classes(class_counts, None, "<20")
    before = _per_class(before, len(counts), "before")
    after = _per_class(after, len(counts), "after")
    figure, axes = _new_figure(6.0, 3.8)
    # Fewer classes, larger dots: 8,000 small ones still show a shape, 2 small ones are overlooked.
    size = float(np.clip(60 / np.sqrt(len(counts)), 1.5, 7))
    for values, label, colour, marker in zip(
        (before, after), labels, (_BEFORE, _AFTER), ("o", "D"), strict=True
    ):
        axes.plot(
            np.maximum(counts, _log_floor(counts)),
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
        _plain_log_ticks(axes.yaxis, norms.min(), norms.max())
    else:
        axes.set_ylim(0, 1.08 * norms.max() if len(norms) and norms.max() > 0 else 1)
    _count_axis(axes, "x", counts)
    axes.set_xlim((counts.min() or _log_floor(counts)) / 1.3, max(counts.max(), 1) * 1.3)
    axes.set_ylabel("norm of the class's weights")
    axes.grid(color="#EEEEEE", zorder=0)
    axes.set_axisbelow(True)
    _add_legend(figure, axes, markerscale=6 / size)
    return figure


def plot_trajectory(trajectory: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> "Figure":
    """Draw stage 2 epoch by epoch: accuracy on the left, weight norms on the right.

    Args:
        trajectory: A mapping of lists of one length: epoch (0 is before the first step), all,
            balanced, many, medium, few (fractions in [0, 1], None for an empty group) and norms
            (per epoch the norm of each class); and of chosen (an epoch) and select_on
            ("validation" or "test"). A list of them, one per seed, is drawn as thin lines with the
            mean on top.

    Raises:
        UserError: If there is no epoch, or the lists differ in length.
    """
    runs = [trajectory] if isinstance(trajectory, Mapping) else list(trajectory)
    if not runs:
        raise UserError("`trajectory` is empty; it must hold at least one run.")
    for run in runs:
        _check_trajectory(run)
    figure, (left, right) = _new_figure(9.0, 3.9, columns=2)
    figure.get_layout_engine().set(wspace=0.06)
    styles = {
        "all": {"color": _INK, "linestyle": "-"},
        "balanced": {"color": _INK, "linestyle": "--", "markerfacecolor": "white"},
        **{name: {"color": colour, "linestyle": "-"} for name, colour in _SHOT_COLOURS.items()},
    }
    for name, style in styles.items():
        _draw_runs(left, runs, [_percentages(run[name]) for run in runs], name, style)
    norm_styles = {
        "largest": {"color": _SHOT_COLOURS["few"], "linestyle": "-"},
        "median": {"color": _INK, "linestyle": "-"},
        "smallest": {"color": _SHOT_COLOURS["many"], "linestyle": "-"},
    }
    for (name, style), reduce in zip(norm_styles.items(), (np.max, np.median, np.min), strict=True):
        values = [np.array([_reduce(reduce, norms) for norms in run["norms"]]) for run in runs]
        _draw_runs(right, runs, values, name, style)
    for axes in (left, right):
        _mark_chosen(axes, runs)
        axes.set_xlabel("epoch of stage 2 (0: before the first step)")
        axes.xaxis.get_major_locator().set_params(integer=True)
        last = max(max(run["epoch"]) for run in runs)
        axes.set_xlim(-0.03 * last - 0.1, 1.03 * last + 0.1)
        if last == 0:
            axes.set_xticks([0])
        axes.grid(axis="y", color="#EEEEEE")
        axes.set_axisbelow(True)
    where = " / ".join(sorted({str(run["select_on"]) for run in runs}))
    left.set_ylabel(f"accuracy on {where} (%)")
    right.set_ylabel("norm of a class's weights")
    right.set_ylim(bottom=0)
    chosen = ", ".join(str(run["chosen"]) for run in runs)
    noun = "epoch" if len(runs) == 1 else "epochs"
    title = f"dotted: {noun} {chosen}, chosen on {where}"
    if len(runs) > 1:
        title += f"; thick: mean of {len(runs)} seeds"
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    for axes, columns in ((left, 5), (right, 3)):
        axes.legend(
            loc="upper center",
            bbox_to_anchor=(0.5, -0.16),
            ncols=columns,
            frameon=False,
            fontsize=8,
            handlelength=2.4,
            columnspacing=1.2,
        )
    return figure


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
    figure, axes = _new_figure(7.4 if many else 6.4, 6.0 if many else 4.8)
    for name, put in zip(groups, (axes.set_xlabel, axes.set_ylabel), strict=True):
        put(f"{name}-shot accuracy (%)" if name in SHOTS else f"{name} accuracy (%)")
    if undrawn:
        names = ", ".join(_short(label) for label in undrawn)
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
        _accuracy_limits(axes, axis, ends)
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
    _label_points(axes, list(seeds), means, deviations, list(seeds.values()), colours, taken)
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
    counts, _, _ = _sorted_classes(class_counts, None, "<20")
    x = np.maximum(counts, _log_floor(counts))
    relative, means = {}, {}
    for label, values in norms.items():
        values = _per_class(values, len(counts), f"norms[{label!r}]")
        known = values[np.isfinite(values)]
        means[label] = float(known.mean()) if len(known) else float("nan")
        relative[label] = values / means[label] if means[label] > 0 else values
    figure, panels = _panels(len(norms), 4, 2.15, 1.75)
    size = float(np.clip(30 / np.sqrt(len(counts)), 1.2, 4.5))
    for axes, (label, values) in zip(panels, relative.items(), strict=True):
        if reference in relative and reference != label:
            axes.plot(*_curve(x, relative[reference]), color="#999999", lw=2.2, zorder=2)
        axes.plot(
            x,
            values,
            "o",
            color=_AFTER,
            ms=size,
            mew=0,
            alpha=0.6 if len(counts) <= 200 else 0.25,
            zorder=3,
            rasterized=len(counts) > 2000,
        )
        axes.plot(*_curve(x, values), color=_AFTER, lw=1.1, zorder=4)
        mean = "no norms" if np.isnan(means[label]) else f"mean norm {means[label]:.3g}"
        _panel_title(axes, label, mean)
        axes.grid(color="#EEEEEE")
        axes.set_axisbelow(True)
    shown = np.concatenate(list(relative.values()))
    shown = shown[np.isfinite(shown)]
    for axes in panels:
        # A panel is narrow: powers of ten, or 2 and 5 between, whichever leaves a few numbers.
        _count_axis(axes, "x", counts, narrow=True)
        axes.set_xlabel("")
        axes.set_xlim((counts.min() or _log_floor(counts)) / 1.4, max(counts.max(), 1) * 1.4)
        # In units of the mean, 0 to 8 can be read off a plain axis; a longer tail cannot.
        if len(shown) and shown.max() > 8 and shown.min() > 0:
            axes.set_ylim(shown.min() / 1.2, shown.max() * 1.2)
            axes.set_yscale("log")
            _plain_log_ticks(axes.yaxis, shown.min(), shown.max())
        else:
            axes.set_ylim(0, 1.08 * shown.max() if len(shown) and shown.max() > 0 else 1)
    _outer_labels(panels, 4)
    figure.supxlabel("training images per class (log scale)", fontsize=9)
    figure.supylabel("norm of the class's weights /\nthe method's mean norm", fontsize=9)
    _norms_legend(figure, reference if relative.keys() > {reference} else None, len(counts), size)
    return figure


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
    level = dict(zip(lines, _percentages(list(lines.values())), strict=True))
    level = {label: value for label, value in level.items() if np.isfinite(value)}
    figure, panels = _panels(len(curves), 3, 2.6, 2.5)
    shown = list(level.values())
    for axes, curve in zip(panels, curves, strict=True):
        order = np.argsort(np.asarray(curve["values"], dtype=float), kind="stable")
        x = np.asarray(curve["values"], dtype=float)[order]
        y = _percentages(curve["accuracy"])[order]
        known = y[np.isfinite(y)]
        shown.extend(known)
        _parameter_axis(axes, curve, x)
        default = curve.get("default")
        if default is not None:
            axes.axvline(default, color="#666666", linestyle=":", lw=1.2, zorder=2)
            at = np.isclose(x, default, rtol=1e-9, atol=0)
            axes.plot(x[at], y[at], "o", color=_AFTER, mfc="none", mew=1.4, ms=9, zorder=5)
        axes.plot(x, y, "o-", color=_AFTER, ms=3.5, lw=1.6, zorder=4)
        text = f"{known.min():.1f} to {known.max():.1f} %" if len(known) else "no accuracy"
        _panel_title(axes, curve["label"], text)
        axes.grid(axis="y", color="#EEEEEE")
        axes.set_axisbelow(True)
    for axes in panels:
        _accuracy_limits(axes, "y", np.array(shown) if shown else np.array([0.0, 100.0]))
    _outer_labels(panels, 3, below=False)
    figure.supylabel("class-balanced accuracy (%)", fontsize=9)
    _sensitivity_legend(figure, curves)
    _level_lines(panels, 3, level)
    return figure


def _new_figure(width: float, height: float, columns: int = 1):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    axes = figure.subplots(1, columns)
    for one in np.atleast_1d(axes):
        one.spines[["top", "right"]].set_visible(False)
        one.tick_params(labelsize=8)
        one.xaxis.label.set_size(9)
        one.yaxis.label.set_size(9)
    return figure, axes


def _named_rows(
    order: np.ndarray,
    classes: Sequence[str] | None,
    counts: np.ndarray,
    with_counts: bool = False,
) -> "tuple[Figure, Axes]":
    """Make a figure with a row per class, most frequent on top, the names on the left."""
    figure, axes = _new_figure(6.4, 1.5 + 0.26 * len(order))
    names = [_short(classes[c]) if classes is not None else f"class {c}" for c in order]
    if with_counts:
        names = [f"{name} ({counts[c]:,})" for name, c in zip(names, order, strict=True)]
    axes.set_yticks(np.arange(len(order)), names)
    axes.set_ylim(len(order) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    if with_counts:
        axes.set_title("class (training images)", fontsize=9, loc="left")
    return figure, axes


def _sorted_classes(
    class_counts: Sequence[int], classes: Sequence[str] | None, few: str
) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
    groups = {name: mask.cpu().numpy() for name, mask in shot_groups(class_counts, few).items()}
    counts = np.asarray([int(n) for n in class_counts], dtype=np.int64)
    if classes is not None and len(classes) != len(counts):
        raise UserError(
            f"`classes` has {len(classes)} names but `class_counts` has {len(counts)} classes."
        )
    # A stable sort: classes with equal counts keep their label order.
    return counts, groups, np.argsort(-counts, kind="stable")


def _per_class(values: Any, num_classes: int, name: str) -> np.ndarray:
    values = np.asarray([float("nan") if v is None else float(v) for v in values])
    if len(values) != num_classes:
        raise UserError(
            f"`{name}` has {len(values)} values but `class_counts` has {num_classes} classes."
        )
    return values


def _short(name: Any) -> str:
    # The font has no undecodable bytes, and matplotlib refuses them.
    name = " ".join(clean(name).split())
    if len(name) > _NAME_LENGTH:
        name = name[: _NAME_LENGTH - 1].rstrip() + "…"
    return _plain(name)


def _plain(text: Any) -> str:
    return clean(text).replace("$", r"\$")  # a bare "$" would switch matplotlib to formula mode


def _log_floor(counts: np.ndarray) -> float:
    """Where a logarithmic count axis starts: below the rarest class; 0 images are drawn there."""
    positive = counts[counts > 0]
    least = float(positive.min()) if len(positive) else 1.0
    return least / 2


def _count_axis(axes: "Axes", which: str, counts: np.ndarray, narrow: bool = False) -> None:
    # Limits before the scale: matplotlib warns if it is to fit a log axis to zeros alone.
    getattr(axes, f"set_{which}lim")(_log_floor(counts), max(counts.max(), 1) * 1.15)
    getattr(axes, f"set_{which}scale")("log")
    getattr(axes, f"set_{which}label")("training images per class (log scale)")
    axis = axes.xaxis if which == "x" else axes.yaxis
    _plain_log_ticks(axis, _log_floor(counts), max(counts.max(), 1), narrow)


def _plain_log_ticks(axis: Any, low: float, high: float, narrow: bool = False) -> None:
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


def _thousands(axis: Any) -> None:
    from matplotlib.ticker import FuncFormatter

    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}"))


def _shade_groups(
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
                color=_SHOT_COLOURS[name],
                alpha=0.12,
                linewidth=0,
                zorder=0,
                label=name,
            )


def _add_legend(
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


def _moving_average(values: np.ndarray, width: int) -> np.ndarray:
    """Average over a centred window, shorter at the ends, without the NaNs."""
    known = np.isfinite(values)
    sums = np.concatenate([[0], np.cumsum(np.where(known, values, 0))])
    numbers = np.concatenate([[0], np.cumsum(known)])
    centre = np.arange(len(values))
    low = np.maximum(centre - width // 2, 0)
    high = np.minimum(centre + width // 2 + 1, len(values))
    total, number = sums[high] - sums[low], numbers[high] - numbers[low]
    return np.where(number > 0, total / np.maximum(number, 1), np.nan)


def _check_trajectory(run: Mapping[str, Any]) -> None:
    epochs = len(run["epoch"])
    if not epochs:
        raise UserError("`trajectory` has no epochs.")
    for name in ("all", "balanced", *SHOTS, "norms"):
        if len(run[name]) != epochs:
            raise UserError(
                f"`trajectory` has {epochs} epochs but {len(run[name])} values of {name!r}."
            )


def _percentages(values: Sequence[float | None]) -> np.ndarray:
    return np.array([np.nan if v is None else 100 * float(v) for v in values])


def _reduce(reduce: Any, norms: Sequence[float]) -> float:
    return float(reduce(np.asarray(norms, dtype=float))) if len(norms) else float("nan")


def _draw_runs(
    axes: "Axes",
    runs: Sequence[Mapping[str, Any]],
    values: Sequence[np.ndarray],
    label: str,
    style: dict[str, str],
) -> None:
    if all(np.isnan(v).all() for v in values):
        return  # an empty group has no line, and no place in the legend
    if len(runs) == 1:
        # A dot at each epoch while they can be told apart; a run of epoch 0 alone has no line.
        marker = "o" if len(runs[0]["epoch"]) <= 40 else None
        axes.plot(
            runs[0]["epoch"], values[0], marker=marker, markersize=3, lw=1.6, label=label, **style
        )
        return
    for run, one in zip(runs, values, strict=True):
        axes.plot(run["epoch"], one, lw=0.6, alpha=0.45, **style)
    # The mean is over the epochs that every seed has; a mean over some would jump.
    common = sorted(set.intersection(*(set(run["epoch"]) for run in runs)))
    mean = [
        np.mean([one[list(run["epoch"]).index(e)] for run, one in zip(runs, values, strict=True)])
        for e in common
    ]
    marker = "o" if len(common) <= 40 else None
    axes.plot(common, mean, marker=marker, markersize=3, lw=2, label=label, **style)


def _mark_chosen(axes: "Axes", runs: Sequence[Mapping[str, Any]]) -> None:
    for epoch in sorted({run["chosen"] for run in runs}):
        axes.axvline(epoch, color="#666666", linestyle=":", linewidth=1.2, zorder=1)


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
        values = np.array([_percentages(pair) for pair in pairs])
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


def _accuracy_limits(axes: "Axes", which: str, values: np.ndarray) -> None:
    """Fit an accuracy axis (%) to the values, at least 4 wide; no tick below 0 or above 100."""
    from matplotlib.ticker import MaxNLocator

    low, high = float(values.min()), float(values.max())
    middle, half = (low + high) / 2, max(high - low, 4) * 0.58
    low, high = max(middle - half, -3), min(middle + half, 103)
    getattr(axes, f"set_{which}lim")(low, high)
    ticks = MaxNLocator(6, steps=[1, 2, 5, 10]).tick_values(low, high)
    ticks = ticks[(ticks >= max(low, 0)) & (ticks <= min(high, 100))]
    getattr(axes, f"set_{which}ticks")(ticks, [f"{tick:g}" for tick in ticks])


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


def _label_points(
    axes: "Axes",
    labels: Sequence[str],
    means: np.ndarray,
    deviations: np.ndarray,
    seeds: Sequence[np.ndarray],
    colours: Sequence[str],
    taken: Sequence[Any],
) -> None:
    """Write each label beside its point, with a thin line to it where there is no room so near."""
    from matplotlib.patheffects import withStroke

    scale = 72 / axes.figure.dpi

    def place(values: np.ndarray) -> np.ndarray:
        return axes.transData.transform(values) * scale

    def write(label: str, mean: np.ndarray, colour: str, offset=(0, 0), line=None) -> "Annotation":
        text = axes.annotate(
            _short(label),
            mean,
            xytext=offset,
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=8,
            color=colour,
            zorder=8,
            path_effects=[withStroke(linewidth=2, foreground="white")],
            arrowprops=line,
        )
        text.set_in_layout(False)  # or the axes would shrink, and the places no longer fit
        return text

    sizes = []
    for label, mean, colour in zip(labels, means, colours, strict=True):
        text = write(label, mean, colour)
        sizes.append(text.get_window_extent().size * scale)
        text.remove()
    sizes = np.array(sizes)
    cross = np.linspace(-1, 1, 9)[:, None]
    arms = [place(means + t * deviations * axis) for axis in ((1, 0), (0, 1)) for t in cross]
    boxes, ends = _place_labels(
        place(means),
        sizes,
        np.array(axes.bbox.extents).reshape(2, 2) * scale,
        np.concatenate([place(np.concatenate(seeds)), *arms]),
        np.array([t.get_window_extent().extents for t in taken]).reshape(-1, 4) * scale,
    )
    for k, (point, box, end) in enumerate(zip(place(means), boxes, ends, strict=True)):
        line = None
        if np.hypot(*(end - point)) > 9:
            at = tuple((end - box[:2]) / sizes[k])
            line = {"arrowstyle": "-", "lw": 0.5, "shrinkA": 0, "shrinkB": 3, "relpos": at}
            line["color"] = colours[k]
        write(labels[k], means[k], colours[k], (box[:2] + box[2:]) / 2 - point, line)


def _place_labels(
    points: np.ndarray,
    sizes: np.ndarray,
    frame: np.ndarray,
    dots: np.ndarray,
    taken: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Choose a place for a label of every point: no label on another, near its point if it can be.

    Every label has places all round its point at several distances, each at a cost: what it lies
    on, what the line to its point crosses, how far it is. One label after the other takes its
    cheapest place, until none moves; the best of several orders is kept.

    Args:
        points: The points.
        sizes: Width and height of the labels.
        frame: Lower left and upper right corner of the axes.
        dots: Small marks that a label should not hide, but may.
        taken: Boxes (left, bottom, right, top) that no label may lie on.

    Shape:
        points and sizes are (N, 2), dots (M, 2), taken (B, 4), all in one unit, a 1/72 inch. The
        results are the boxes, (N, 4), and the ends of the lines at the boxes, (N, 2).
    """
    angle = np.arange(0, 2 * np.pi, np.pi / 12)
    distance = np.array([5, 9, 16, 26, 38, 52, 70, 92, 120, 160, 210])
    way = np.stack([np.cos(angle), np.sin(angle)], 1)
    side = np.clip(1.5 * way, -1, 1)
    shift = (distance[:, None, None] * way).reshape(-1, 2)
    side = np.tile(side, (len(distance), 1))
    boxes, ends, own = [], [], []
    for i, (point, size) in enumerate(zip(points, sizes, strict=True)):
        centre = point + shift + side * size / 2
        # In the frame: a place beyond its edge is moved to the edge.
        centre = np.clip(centre, frame[0] + size / 2 + 1, frame[1] - size / 2 - 1)
        box = np.concatenate([centre - size / 2, centre + size / 2], 1)
        end = np.clip(point, box[:, :2], box[:, 2:])
        others = np.delete(points, i, 0)
        others = others[np.hypot(*(others - point).T) > 0.5]
        cost = np.hypot(*(end - point).T)
        cost += np.where(cost > 9, 15, 0)  # a line is more to look at than none
        cost += 500 * _covered(box, point[None], 4.5).sum(1)
        cost += 300 * _covered(box, others, 4.5).sum(1)
        cost += 4 * _covered(box, dots, 1).sum(1)
        cost += 300 * _boxes_meet(box[:, None], taken[None]).sum(1)
        # Nearer to another point it would be taken for that one's.
        gap = np.hypot(*np.moveaxis(_gaps(box, others), 2, 0))
        cost += 40 * (gap < np.hypot(*(end - point).T)[:, None] + 3).sum(1)
        cost += 80 * (_distances(others, point, end) < 4.5).sum(1)
        boxes.append(box)
        ends.append(end)
        own.append(cost)
    best, least = None, np.inf
    rng = np.random.default_rng(0)
    centre = np.median(points, 0)
    for start in range(8):
        # First those at the edge of the crowd, which have places that nobody else wants.
        order = rng.permutation(len(points))
        if start == 0:
            order = np.argsort(-np.hypot(*(points - centre).T), kind="stable")
        chosen = np.array([int(cost.argmin()) for cost in own])
        placed = np.zeros(len(points), dtype=bool)
        for _ in range(12):
            moved, total = False, 0.0
            for i in order:
                among = np.flatnonzero(placed & (np.arange(len(points)) != i))
                box = np.array([boxes[j][chosen[j]] for j in among]).reshape(-1, 4)
                end = np.array([ends[j][chosen[j]] for j in among]).reshape(-1, 2)
                cost = own[i] + 5000 * _boxes_meet(boxes[i][:, None], box[None], 1).sum(1)
                cost += 150 * _line_meets_box(points[i], ends[i][:, None], box[None]).sum(1)
                cost += 150 * _line_meets_box(points[among], end[None], boxes[i][:, None]).sum(1)
                cost += 60 * _lines_cross(points[i], ends[i][:, None], points[among], end).sum(1)
                new = int(cost.argmin())
                moved |= not placed[i] or new != chosen[i]
                chosen[i], placed[i] = new, True
                total += cost[new]
            if not moved:
                break
        if total < least:
            best, least = chosen, total
    rows = range(len(points))
    return (
        np.array([boxes[i][best[i]] for i in rows]),
        np.array([ends[i][best[i]] for i in rows]),
    )


def _covered(boxes: np.ndarray, points: np.ndarray, margin: float) -> np.ndarray:
    """Say of (K, 4) boxes and (M, 2) points whether a box, with a margin, holds a point: (K, M)."""
    return (_gaps(boxes, points) < margin).all(2)


def _gaps(boxes: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return how far (M, 2) points are from (K, 4) boxes across and up: (K, M, 2)."""
    low, high = boxes[:, None, :2] - points, points - boxes[:, None, 2:]
    return np.maximum(np.maximum(low, high), 0)


def _boxes_meet(a: np.ndarray, b: np.ndarray, margin: float = 0) -> np.ndarray:
    apart = (a[..., :2] - margin >= b[..., 2:]) | (b[..., :2] >= a[..., 2:] + margin)
    return ~apart.any(-1)


def _line_meets_box(start: np.ndarray, end: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Say whether a part of the line is in the box: between both pairs of sides at once."""
    way = end - start
    way = np.where(np.abs(way) < 1e-9, 1e-9, way)
    low, high = (box[..., :2] - start) / way, (box[..., 2:] - start) / way
    enter = np.minimum(low, high).max(-1)
    leave = np.maximum(low, high).min(-1)
    return np.maximum(enter, 0) < np.minimum(leave, 1)


def _lines_cross(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray) -> np.ndarray:
    """Say whether the line from a to b crosses the one from c to d; a shared end is no crossing."""

    def turn(p, q, r):
        u, v = q - p, r - p
        return u[..., 0] * v[..., 1] - u[..., 1] * v[..., 0]

    return (turn(a, b, c) * turn(a, b, d) < 0) & (turn(c, d, a) * turn(c, d, b) < 0)


def _distances(points: np.ndarray, start: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Return the distance of (M, 2) points to the lines from start to (K, 2) ends: (K, M)."""
    line = ends - start
    length = np.maximum((line**2).sum(1), 1e-9)[:, None]
    along = np.clip(((points - start)[None] * line[:, None]).sum(2) / length, 0, 1)
    return np.hypot(*np.moveaxis(start + along[..., None] * line[:, None] - points, 2, 0))


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
    _add_handles(figure, handles)


def _add_handles(
    figure: "Figure", handles: Sequence[Any], loc: str = "outside lower center"
) -> None:
    figure.legend(
        handles=handles,
        loc=loc,
        ncols=len(handles),
        frameon=False,
        fontsize=8,
        handlelength=1.6,
        columnspacing=1.4,
    )


def _panels(number: int, most: int, width: float, height: float) -> "tuple[Figure, list[Axes]]":
    """Make a figure of so many panels of that size in inches, at most so many beside each other."""
    from matplotlib.figure import Figure

    columns = _columns(number, most)
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


def _columns(number: int, most: int) -> int:
    """Return the fewest columns that need no more rows: 4 panels of at most 3 are 2 by 2."""
    rows = -(-number // most)
    return -(-number // rows)


def _outer_labels(panels: "Sequence[Axes]", most: int, below: bool = True) -> None:
    """Leave the numbers to the first panel of each row and, if `below`, the last of each column."""
    columns = _columns(len(panels), most)
    for i, axes in enumerate(panels):
        axes.tick_params(
            labelleft=i % columns == 0, labelbottom=not below or i + columns >= len(panels)
        )


def _panel_title(axes: "Axes", label: Any, text: str) -> None:
    axes.set_title(_short(label), fontsize=8.5, loc="left", pad=14, color=_INK)
    axes.annotate(
        text,
        (0, 1),
        xycoords="axes fraction",
        xytext=(0, 4),
        textcoords="offset points",
        fontsize=7.5,
        color="#555555",
    )


def _curve(x: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Average over 1/20 of the classes, by count; classes with equal counts are one point."""
    known = np.isfinite(values)
    at, group = np.unique(x[known], return_inverse=True)
    number = np.bincount(group)
    mean = np.bincount(group, values[known]) / np.maximum(number, 1)
    # In order of count, every class at the mean of its count: no order among equals matters.
    smooth = _moving_average(np.repeat(mean, number), known.sum() // 20)
    return at, np.bincount(np.sort(group), smooth) / np.maximum(number, 1)


def _norms_legend(figure: "Figure", reference: str | None, num_classes: int, size: float) -> None:
    from matplotlib.lines import Line2D

    dot = {"marker": "o", "mew": 0, "ms": max(size, 3), "color": _AFTER}
    if num_classes < 40:  # the line goes through the classes themselves
        handles = [Line2D([], [], lw=1.1, label="a class", **dot)]
    else:
        handles = [
            Line2D([], [], ls="", label="a class", **dot),
            Line2D([], [], color=_AFTER, lw=1.1, label="moving average over the classes"),
        ]
    if reference is not None:
        label = f"{_short(reference)}, for reference"
        handles.append(Line2D([], [], color="#999999", lw=2.2, label=label))
    # Above: below is the label of the x axes.
    _add_handles(figure, handles, "outside upper right")


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

    axes.set_xlabel(textwrap.fill(_plain(curve["parameter"]), 28), fontsize=8.5)
    ends = [*values, *([] if curve.get("default") is None else [curve["default"]])]
    low, high = float(min(ends)), float(max(ends))
    if curve.get("log"):
        margin = max((high / low) ** 0.06, 1.15)
        axes.set_xlim(low / margin, high * margin)
        axes.set_xscale("log")
        _plain_log_ticks(axes.xaxis, low / margin, high * margin)
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

    figure, columns = panels[0].figure, _columns(len(panels), most)
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
                f"{_short(label)} {levels[label]:.1f}",
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
            marker="o", mec=_AFTER, mfc="none", mew=1.4, ms=8, label="default",
        )  # fmt: skip
        _add_handles(figure, [ring])
