"""Figures of a long-tailed run: class counts, per-class accuracy, weight norms, stage 2 by epoch.

Every function returns a `matplotlib.figure.Figure` that belongs to no window: its `savefig` works
anywhere, and no backend or pyplot state is touched.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ltlearn.errors import UserError
from ltlearn.metrics import SHOTS, shot_groups, shot_thresholds_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_class_counts", "plot_norms", "plot_per_class_accuracy", "plot_trajectory"]

# Paul Tol's high-contrast colours: distinct with any colour vision deficiency and in grey print.
_SHOT_COLOURS = {"many": "#004488", "medium": "#DDAA33", "few": "#BB5566"}
_BEFORE, _AFTER = "#808080", "#004488"
_INK = "#222222"
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
    name = " ".join(str(name).split())
    if len(name) > _NAME_LENGTH:
        name = name[: _NAME_LENGTH - 1].rstrip() + "…"
    return name.replace("$", r"\$")  # a bare "$" would switch matplotlib to formula mode


def _log_floor(counts: np.ndarray) -> float:
    """Where a logarithmic count axis starts: below the rarest class; 0 images are drawn there."""
    positive = counts[counts > 0]
    least = float(positive.min()) if len(positive) else 1.0
    return least / 2


def _count_axis(axes: "Axes", which: str, counts: np.ndarray) -> None:
    # Limits before the scale: matplotlib warns if it is to fit a log axis to zeros alone.
    getattr(axes, f"set_{which}lim")(_log_floor(counts), max(counts.max(), 1) * 1.15)
    getattr(axes, f"set_{which}scale")("log")
    getattr(axes, f"set_{which}label")("training images per class (log scale)")
    axis = axes.xaxis if which == "x" else axes.yaxis
    _plain_log_ticks(axis, _log_floor(counts), max(counts.max(), 1))


def _plain_log_ticks(axis: Any, low: float, high: float) -> None:
    """Label a log axis with plain numbers: 1, 10, 100, and 2 and 5 between if it is short."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    short = high / low < 300
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
