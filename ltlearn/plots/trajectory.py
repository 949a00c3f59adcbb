"""The plot of a stage 2, epoch by epoch."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ltlearn.errors import UserError
from ltlearn.metrics.shots import SHOTS
from ltlearn.plots.style import INK, SHOT_COLOURS, new_figure, percentages

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_trajectory"]

_ACCURACY_STYLES = {
    "all": {"color": INK, "linestyle": "-"},
    "balanced": {"color": INK, "linestyle": "--", "markerfacecolor": "white"},
    **{name: {"color": colour, "linestyle": "-"} for name, colour in SHOT_COLOURS.items()},
}
_NORM_STYLES = {
    "largest": (np.max, {"color": SHOT_COLOURS["few"], "linestyle": "-"}),
    "median": (np.median, {"color": INK, "linestyle": "-"}),
    "smallest": (np.min, {"color": SHOT_COLOURS["many"], "linestyle": "-"}),
}


def plot_trajectory(trajectory: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> "Figure":
    """Draw stage 2 epoch by epoch: accuracy on the left, weight norms on the right.

    Args:
        trajectory: A trajectory as `retrain_classifier` returns it, or a mapping with its keys.
            Several, one per seed, are drawn as thin lines with the mean on top.

    Raises:
        UserError: If there is no epoch, or the lists differ in length.

    Example:
        >>> figure = plot_trajectory(learn.retrain_classifier("samn"))
        >>> figure.savefig("trajectory.png")
    """
    runs = [trajectory] if isinstance(trajectory, Mapping) else list(trajectory)
    if not runs:
        raise UserError("trajectory is empty; it must hold at least one run.")
    for run in runs:
        _check_trajectory(run)
    figure, (left, right) = new_figure(9.0, 3.9, columns=2)
    figure.get_layout_engine().set(wspace=0.06)
    for name, style in _ACCURACY_STYLES.items():
        _draw_runs(left, runs, [percentages(run[name]) for run in runs], name, style)
    for name, (reduce, style) in _NORM_STYLES.items():
        values = [np.array([_reduce(reduce, norms) for norms in run["norms"]]) for run in runs]
        _draw_runs(right, runs, values, name, style)
    for axes in (left, right):
        _mark_chosen(axes, runs)
        _format_epochs(axes, last=max(max(run["epoch"]) for run in runs))
    where = " / ".join(sorted({str(run["select_on"]) for run in runs}))
    left.set_ylabel(f"accuracy on {where} (%)")
    right.set_ylabel("norm of a class's weights")
    right.set_ylim(bottom=0)
    chosen = ", ".join(str(run["chosen"]) for run in runs)
    noun = "epoch" if len(runs) == 1 else "epochs"
    # Records of other programs have no "select"; `retrain_classifier` chooses by default.
    is_last = all(run.get("select") == "last" for run in runs)
    title = f"dotted: {noun} {chosen}, {'the last' if is_last else f'chosen on {where}'}"
    if len(runs) > 1:
        title += f"; thin: a seed, thick: mean of {len(runs)} seeds"
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


def _check_trajectory(run: Mapping[str, Any]) -> None:
    epochs = len(run["epoch"])
    if not epochs:
        raise UserError("trajectory has no epochs.")
    for name in ("all", "balanced", *SHOTS, "norms"):
        if len(run[name]) != epochs:
            raise UserError(
                f"trajectory has {epochs} epochs but {len(run[name])} values of {name!r}."
            )


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
        return  # an empty group has no line and no legend entry
    if len(runs) == 1:
        # Dots are readable for up to 40 epochs; a run of epoch 0 alone is one dot.
        marker = "o" if len(runs[0]["epoch"]) <= 40 else None
        axes.plot(
            runs[0]["epoch"], values[0], marker=marker, markersize=3, lw=1.6, label=label, **style
        )
        return
    for run, one in zip(runs, values, strict=True):
        axes.plot(run["epoch"], one, lw=0.6, alpha=0.45, **style)
    # The mean covers the epochs that all seeds have; a mean over some seeds would jump.
    common = sorted(set.intersection(*(set(run["epoch"]) for run in runs)))
    mean = [
        np.mean([one[list(run["epoch"]).index(e)] for run, one in zip(runs, values, strict=True)])
        for e in common
    ]
    marker = "o" if len(common) <= 40 else None
    axes.plot(common, mean, marker=marker, markersize=3, lw=2, label=label, **style)


def _format_epochs(axes: "Axes", last: int) -> None:
    axes.set_xlabel("epoch of stage 2 (0: before the first step)")
    axes.xaxis.get_major_locator().set_params(integer=True)  # type: ignore[call-arg]
    axes.set_xlim(-0.03 * last - 0.1, 1.03 * last + 0.1)
    if last == 0:
        axes.set_xticks([0])
    axes.grid(axis="y", color="#EEEEEE")
    axes.set_axisbelow(True)


def _mark_chosen(axes: "Axes", runs: Sequence[Mapping[str, Any]]) -> None:
    for epoch in sorted({run["chosen"] for run in runs}):
        axes.axvline(epoch, color="#666666", linestyle=":", linewidth=1.2, zorder=1)
