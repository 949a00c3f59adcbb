"""Write the results of a recipe: tables, predictions, plots, report."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from ltlearn.data import LTDataLoaders
from ltlearn.experiments.build import SEEN_WARNING, describe_leaks, may_have_seen
from ltlearn.experiments.manifest import FINISHED, MANIFEST_FILE, Manifest
from ltlearn.experiments.recipe import Recipe
from ltlearn.experiments.stages import SeedResult
from ltlearn.methods import METHODS, label_of, labels_of
from ltlearn.metrics.confusion import mistaken_classes
from ltlearn.metrics.report import ShotReport
from ltlearn.metrics.scores import mean_scores
from ltlearn.names import FIGURES, PART_LABELS
from ltlearn.plots.classes import plot_class_counts, plot_per_class_accuracy
from ltlearn.plots.confusion import plot_confusion
from ltlearn.plots.norms import plot_norms
from ltlearn.plots.trajectory import plot_trajectory
from ltlearn.reporting.classes import ClassTable
from ltlearn.reporting.markdown import CLASSES_FILE, render_report_md
from ltlearn.reporting.table import ResultRow, ResultTable
from ltlearn.training.selection import tested_part
from ltlearn.utils.run_folder import Run

__all__ = ["find_ends", "make_table", "published_note", "write_results"]

_CSV_COLUMNS = ("epoch", "loss", *FIGURES, "seconds")


def make_table(recipe: Recipe, dls: LTDataLoaders, results: Sequence[SeedResult]) -> ResultTable:
    """Make the result table of all seeds.

    Args:
        recipe: The recipe.
        dls: The loaders of a seed.
        results: The results of each seed.
    """
    rows, labels = [], labels_of(recipe.methods, recipe.named_stage1)
    for name in recipe.methods:
        reports = [r.reports[name] for r in results]
        selected = "; ".join(dict.fromkeys(r.selected[name] for r in results))
        seconds = sum(r.seconds[name] for r in results) / len(results)
        last = [_last_epoch(recipe, name, r) for r in results]
        last = [] if None in last else last
        rows.append(ResultRow(name, labels[name], reports, selected, seconds, last_epoch=last))
    split = dls.split
    name = (split.name, split.profile, f"imbalance factor {split.imbalance_factor:g}")
    seen = SEEN_WARNING if may_have_seen(recipe, dls) else ""
    notes = (published_note(recipe), seen, describe_leaks(dls))
    return ResultTable(
        rows,
        "untested" if tested_part(dls) == "valid" else recipe.protocol,
        ", ".join(part for part in name if part),
        split.train,
        recipe.data.few,
        list(range(recipe.seeds)),
        split.dataset,
        note=" ".join(note for note in notes if note),
        valid_from=split.valid_from,
        averages_flips=recipe.averages_flips,
    )


def _last_epoch(recipe: Recipe, name: str, result: SeedResult) -> float | None:
    """Return the accuracy after the last epoch; None where no epoch was selected on the test set.

    None too where a correction follows the training: it belongs to the kept epoch alone.
    """
    stage = result.stages[recipe.methods.index(name)]
    trajectory = result.trajectories[name]
    if recipe.protocol != "paper" or METHODS[name].kind == "post hoc" or stage.get("then"):
        return None
    if not trajectory.epoch:  # stage 1 is a model as given
        return None
    if trajectory.chosen == trajectory.epoch[-1]:
        return result.reports[name].all
    return trajectory.all[-1]


def published_note(recipe: Recipe) -> str:
    """Return the published figures, and which values of the recipe the user has changed.

    Args:
        recipe: The recipe.
    """
    expected, changed = recipe.published(), recipe.changes()
    if expected:
        changed = [key for key in changed if not any(key in e.when for e in expected)]
    else:
        # Nothing was published for the changed values: take the figures for the values before the
        # change, unless there are several of a method.
        expected = recipe.published(changed)
        if len({e.what for e in expected}) < len(expected):
            return ""
    # Which methods run changes no figure, and the protocol of the figures is no change to them.
    same_protocol = all(e.protocol == recipe.protocol for e in expected)
    alike = ("methods", "protocol") if same_protocol else ("methods",)
    changed = [key for key in changed if key not in alike]
    figures: dict[str, list[str]] = {}
    for e in expected:
        source = f"{e.protocol} protocol; {'; '.join(e.sources)}"
        figures.setdefault(source, []).append(e.describe(label_of(e.method, recipe.named_stage1)))
    if not figures:
        return ""
    by_source = [f"{', '.join(texts)} ({source})" for source, texts in figures.items()]
    start = f"Published, without the changes to {', '.join(changed)}" if changed else "Published"
    return f"{start}: {'; '.join(by_source)}."


def write_results(
    recipe: Recipe,
    run: Run,
    dls: LTDataLoaders,
    results: Sequence[SeedResult],
    table: ResultTable,
    manifest: Manifest,
) -> ClassTable:
    """Write the files of a finished run; return the table of its classes.

    Args:
        recipe: The recipe.
        run: The run's folder.
        dls: The loaders of a seed.
        results: The results of each seed.
        table: The result table.
        manifest: The manifest; its status becomes "finished".
    """
    _write_figures(run, results)
    # A correction without training has no epochs to plot.
    trained = [name for name in recipe.methods if METHODS[name].kind == "stage 2"]
    trajectories = [r.trajectories[trained[-1]] for r in results] if trained else None
    plots = _plots_of_classes(recipe, dls, results, table)
    classes = _class_table(recipe, dls, results, table)
    run.write_csv(CLASSES_FILE, classes.rows())
    if len(dls.vocab) > 1:
        plots["confusion"] = _confusion_plot(recipe, dls, results, classes)
    if trajectories:
        label = label_of(trained[-1], recipe.named_stage1)
        title = f"{label}: stage 2, epoch by epoch"
        plots["trajectory"] = (title, plot_trajectory(trajectories))
    for name, (_, figure) in plots.items():
        run.save_figure(f"plots/{name}.png", figure)
    manifest.status = FINISHED
    manifest.training_seconds = round(sum(sum(r.seconds.values()) for r in results), 1)
    manifest.stages = [stage for r in results for stage in r.stages]
    manifest.results = table.to_dict()
    links = [(title, f"plots/{name}.png") for name, (title, _) in plots.items()]
    run.write_text("report.md", render_report_md(table, manifest, links, trajectories, classes))
    # The manifest comes last: "finished" states that every other file is there.
    run.write_json(MANIFEST_FILE, manifest.to_dict())
    return classes


def _class_table(
    recipe: Recipe, dls: LTDataLoaders, results: Sequence[SeedResult], table: ResultTable
) -> ClassTable:
    """Make the table of the classes; their mistakes are those of the last trained method."""
    method = recipe.methods[find_ends(recipe.methods)[-1]]
    rows, first = {row.method: row for row in table.rows}, table.rows[0].reports[0]
    true, predicted = _predicted(results, method)
    number = np.bincount(true, minlength=len(dls.vocab))
    mistakes = mistaken_classes(true, predicted, len(dls.vocab))
    return ClassTable(
        classes=dls.vocab,
        groups=[row["shot"] for row in first.rows()],
        training_images=first.class_counts.tolist(),
        images=first.per_class_total.tolist(),
        part=PART_LABELS[tested_part(dls)],
        accuracy={m: _mean_per_class(rows[m].reports) for m in recipe.methods},
        labels={m: rows[m].label for m in recipe.methods},
        method=method,
        mistakes=[[(c, n / number[own]) for c, n in row] for own, row in enumerate(mistakes)],
        scores={m: mean_scores([r.scores for r in rows[m].reports]) for m in recipe.methods},
    )


def _mean_per_class(reports: Sequence[ShotReport]) -> np.ndarray:
    return np.mean([report.per_class for report in reports], axis=0)


def _predicted(results: Sequence[SeedResult], method: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the true and the predicted classes of all seeds, one after the other."""
    predicted = []
    for result in results:
        if method in result.predictions:
            predicted.append(result.predictions[method].argmax(1))
        else:  # too many logits to keep
            predicted.append(result.predictions[f"{method}/classes"][:, 0])
    return np.concatenate([r.targets.numpy() for r in results]), np.concatenate(predicted)


def _confusion_plot(
    recipe: Recipe, dls: LTDataLoaders, results: Sequence[SeedResult], classes: ClassTable
) -> tuple[str, Figure]:
    """Return title and figure of the confusion matrix."""
    label = classes.labels[classes.method]
    figure = plot_confusion(
        *_predicted(results, classes.method), dls.shot_counts, dls.vocab, label, recipe.data.few
    )
    return f"Which classes {label} takes for which, on the {classes.part} set", figure


def find_ends(methods: Sequence[str]) -> tuple[int, int]:
    """Return the positions of the first method and of the last trained one, or the last.

    Args:
        methods: The methods of a run, in order.
    """
    kinds = [METHODS[m].kind if m in METHODS else "" for m in methods]
    trained = [i for i, kind in enumerate(kinds) if kind == "stage 2"]
    return 0, trained[-1] if trained else len(methods) - 1


def _write_figures(run: Run, results: Sequence[SeedResult]) -> None:
    """Write predictions and trajectories."""
    arrays = {"targets": results[0].targets.numpy()}
    rows = []
    for seed, result in enumerate(results):
        # Without a test set, each seed has carved validation images of its own.
        if not np.array_equal(result.targets.numpy(), arrays["targets"]):
            arrays[f"seed{seed}/targets"] = result.targets.numpy()
        for name, values in result.predictions.items():
            arrays[f"seed{seed}/{name}"] = values
        for name, trajectory in result.trajectories.items():
            for values in zip(*(trajectory[k] for k in _CSV_COLUMNS), strict=True):
                row = {"seed": seed, "method": name, "stage": METHODS[name].stage}
                row |= dict(zip(_CSV_COLUMNS, values, strict=True))
                rows.append({**row, "evaluated_on": trajectory.select_on})
    run.save_npz("predictions.npz", **arrays)
    run.write_csv("metrics.csv", rows)
    trajectories = [
        {name: trajectory.to_dict() for name, trajectory in r.trajectories.items()} for r in results
    ]
    run.write_json("trajectories.json", trajectories)


def _plots_of_classes(
    recipe: Recipe, dls: LTDataLoaders, results: Sequence[SeedResult], table: ResultTable
) -> dict[str, tuple[str, Figure]]:
    """Return title and figure by file name; two figures compare the first and the last method."""
    counts, few = dls.shot_counts, recipe.data.few
    plots = {
        "class_counts": ("Training images per class", plot_class_counts(counts, dls.vocab, few))
    }
    if len(recipe.methods) < 2:
        return plots
    ends = find_ends(recipe.methods)
    labels = tuple(table.rows[i].label for i in ends)
    before, after = (_mean_per_class(table.rows[i].reports) for i in ends)
    norms = [np.mean([r.norms[recipe.methods[i]] for r in results], 0) for i in ends]
    part = PART_LABELS[tested_part(dls)]
    plots["per_class_accuracy"] = (
        f"Accuracy per class on the {part} set, before and after",
        plot_per_class_accuracy(before, after, counts, dls.vocab, labels, few),
    )
    plots["norms"] = (
        "Norm of each class's weights, before and after",
        plot_norms(norms[0], norms[1], counts, labels),
    )
    return plots
