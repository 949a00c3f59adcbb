"""Write the results of a recipe: tables, predictions, plots, report."""

import numpy as np

from ltlearn.data import LTDataLoaders
from ltlearn.experiments.build import SEEN_WARNING, is_untested, may_have_seen
from ltlearn.experiments.recipe import Recipe
from ltlearn.experiments.stages import SeedResult, is_given_model
from ltlearn.methods import METHODS
from ltlearn.plots.classes import plot_class_counts, plot_per_class_accuracy
from ltlearn.plots.norms import plot_norms
from ltlearn.plots.trajectory import plot_trajectory
from ltlearn.reporting.markdown import render_report_md
from ltlearn.reporting.table import ResultRow, ResultTable
from ltlearn.utils.run_folder import Run

__all__ = ["make_table", "write_results"]

_CSV_COLUMNS = ("epoch", "loss", "all", "balanced", "many", "medium", "few", "seconds")


def make_table(recipe: Recipe, dls: LTDataLoaders, seeds: list[SeedResult]) -> ResultTable:
    """Make the result table of all seeds."""
    rows = []
    for name in recipe.methods:
        reports = [s.reports[name] for s in seeds]
        selected = list(dict.fromkeys(s.selected[name] for s in seeds))
        seconds = sum(s.seconds[name] for s in seeds) / len(seeds)
        label = METHODS[name].label
        if is_given_model(recipe) and METHODS[name].stage == 1:
            label = "as given"
        rows.append(ResultRow(name, label, reports, "; ".join(selected), seconds))
    notes = [_published(recipe), SEEN_WARNING if may_have_seen(recipe, dls) else ""]
    return ResultTable(
        rows,
        "untested" if is_untested(dls) else recipe.protocol,
        ", ".join(
            part
            for part in (
                dls.split.name,
                dls.split.profile,
                f"imbalance factor {dls.split.imbalance_factor:g}",
            )
            if part
        ),
        dls.split.train,
        recipe.data.few,
        list(range(recipe.seeds)),
        dls.split.dataset,
        note=" ".join(note for note in notes if note),
        valid_from=dls.split.valid_from,
    )


def _published(recipe: Recipe) -> str:
    """Say what was published, and what of the recipe was changed on the command line."""
    figures: dict[str, list[str]] = {}
    expected, changed = recipe.published(), recipe.changes()
    if expected:
        changed = [key for key in changed if not any(key in e.when for e in expected)]
    else:
        # Of values that were changed and not published: those they were changed from, if clear.
        expected = recipe.published(changed)
        if len({e.what for e in expected}) < len(expected):
            return ""
    for e in expected:
        about = f"{e.protocol} protocol; {e.source}"
        figures.setdefault(about, []).append(e.said(METHODS[e.method].label))
    if not figures:
        return ""
    said = [f"{', '.join(f)} ({about})" for about, f in figures.items()]
    what = f"Published, without the changes to {', '.join(changed)}" if changed else "Published"
    return f"{what}: {'; '.join(said)}."


def write_results(
    recipe, run: Run, dls, seeds: list[SeedResult], table: ResultTable, manifest: dict
) -> None:
    """Write the files of a finished run."""
    arrays = {"targets": seeds[0].targets.numpy()}
    rows = []
    for seed, result in enumerate(seeds):
        for name, values in result.predictions.items():
            arrays[f"seed{seed}/{name}"] = values
        for name, trajectory in result.trajectories.items():
            for values in zip(*(trajectory[k] for k in _CSV_COLUMNS), strict=True):
                row = {"seed": seed, "method": name, "stage": METHODS[name].stage}
                row |= dict(zip(_CSV_COLUMNS, values, strict=True))
                rows.append({**row, "evaluated_on": trajectory["select_on"]})
    run.save_npz("predictions.npz", **arrays)
    run.write_csv("metrics.csv", rows)
    # Not a correction without training, which has no epochs.
    second = [name for name in recipe.methods if METHODS[name].kind == "stage 2"]
    trajectories = [s.trajectories[second[-1]] for s in seeds] if second else None
    plots = _plots(recipe, dls, seeds, table, trajectories)
    for name, (_, figure) in plots.items():
        run.save_figure(f"plots/{name}.png", figure)
    manifest |= {
        "status": "finished",
        "training_seconds": round(sum(sum(s.seconds.values()) for s in seeds), 1),
        "stages": [stage for s in seeds for stage in s.stages],
        "results": table.to_dict(),
    }
    run.write_json("trajectories.json", [s.trajectories for s in seeds])
    links = [(title, f"plots/{name}.png") for name, (title, _) in plots.items()]
    run.write_text("report.md", render_report_md(table, manifest, links, trajectories))
    # Last: a manifest that says "finished" has everything beside it.
    run.write_json("manifest.json", manifest)


def _plots(
    recipe, dls, seeds: list[SeedResult], table: ResultTable, trajectories
) -> dict[str, tuple]:
    """Return file name -> (title, figure); compares the first and the last method."""
    counts, few = dls.shot_counts, recipe.data.few
    plots = {
        "class_counts": ("Training images per class", plot_class_counts(counts, dls.vocab, few))
    }
    if len(recipe.methods) > 1:
        trained = [i for i, m in enumerate(recipe.methods) if METHODS[m].kind == "stage 2"]
        ends = (0, trained[-1] if trained else -1)
        labels = tuple(table.rows[i].label for i in ends)
        accuracy = [np.mean([r.per_class for r in table.rows[i].reports], 0) for i in ends]
        norms = [np.mean([s.norms[recipe.methods[i]] for s in seeds], 0) for i in ends]
        plots["per_class_accuracy"] = (
            f"Accuracy per class on the {'validation' if is_untested(dls) else 'test'} set, "
            "before and after",
            plot_per_class_accuracy(*accuracy, counts, dls.vocab, labels, few),
        )
        plots["norms"] = (
            "Norm of each class's weights, before and after",
            plot_norms(*norms, counts, labels),
        )
    if trajectories:
        last = [METHODS[m].label for m in recipe.methods if METHODS[m].kind == "stage 2"][-1]
        plots["trajectory"] = (f"{last}: stage 2, epoch by epoch", plot_trajectory(trajectories))
    return plots
