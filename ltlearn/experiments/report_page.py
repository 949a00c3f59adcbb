"""Collect what a finished run left, and write its report.html."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ltlearn.data import LTDataLoaders
from ltlearn.errors import UserError
from ltlearn.experiments.compare_page import (
    COMPARE_PAGE,
    MAX_TRAJECTORIES,
    REPORT_PAGE,
    write_compare_page,
    write_or_warn,
    write_page,
)
from ltlearn.experiments.compared import COMPARE_FILE
from ltlearn.experiments.page_errors import error_parts, load_images
from ltlearn.experiments.page_tables import (
    Difference,
    data_paragraph,
    footer_of,
    headlines_of,
    lead_sentence,
    provenance,
    result_notes,
    result_table,
    run_chips,
    text_table,
    use_section,
)
from ltlearn.experiments.recorded import RecordedRun
from ltlearn.methods import METHODS
from ltlearn.metrics.calibration import calibration_bins
from ltlearn.metrics.confusion import mistaken_classes
from ltlearn.metrics.paired import difference_interval
from ltlearn.metrics.scores import class_scores
from ltlearn.plots.calibration import plot_calibration
from ltlearn.plots.classes import plot_class_counts, plot_per_class_accuracy
from ltlearn.plots.confusion import plot_confusion
from ltlearn.plots.norms import plot_norms
from ltlearn.plots.trajectory import plot_trajectory
from ltlearn.reporting.markdown import CLASSES_FILE
from ltlearn.reporting.page import (
    Cell,
    ClassData,
    Folded,
    MethodClasses,
    Page,
    PageSection,
    PageTable,
    Plot,
    Row,
    Text,
    figure_to_svg,
)
from ltlearn.utils.run_folder import Run

__all__ = ["REPORT_PAGE", "rewrite_pages", "write_page_of_run", "write_report_page"]

_MAX_PAIRS = 15  # most confused pairs that the page lists


def write_page_of_run(run: Run, dls: LTDataLoaders | None) -> None:
    """Write report.html of a run that has just ended; see `write_or_warn`.

    Args:
        run: The run.
        dls: The loaders of its last seed.
    """
    write_or_warn(lambda: write_report_page(run, dls), run.path / REPORT_PAGE, "report.md")


def rewrite_pages(
    run: Run,
    data_path: str | Path | None = None,
    images: bool = True,
    notify: Callable[[str], None] = lambda text: None,
) -> list[Path]:
    """Write the pages of a run again, from what its folder holds; return their paths.

    Args:
        run: A finished run, also of an earlier version.
        data_path: Where the images are; None takes the path in the run's manifest.
        images: Whether to show misclassified images, which reads the data.
        notify: Called with a line of text at each step.

    Raises:
        UserError: If the folder holds no finished run, or cannot be written to.
    """
    recorded, dls, why = RecordedRun.read(run), None, ""
    if images and recorded.predicted(recorded.ends[1], recorded.seeds[-1]) is not None:
        notify("reading the images of the run")
        dls, why = load_images(run, recorded.seeds[-1], data_path)
        if dls is None:
            notify(f"misclassified images are not shown: {why}")
    # First, so that the report links to it; a damaged comparison does not keep the report away.
    compared, error = [], None
    try:
        compared = [write_compare_page(run)] if (run.path / COMPARE_FILE).is_file() else []
    except UserError as e:
        error = e
    pages = [write_report_page(run, dls, why), *compared]
    if error is not None:
        raise error
    return pages


def write_report_page(run: Run, dls: LTDataLoaders | None = None, why: str = "") -> Path:
    """Write report.html of a finished run; return its path.

    Args:
        run: The run.
        dls: The loaders of its last seed, for images; None shows none.
        why: Why there are no loaders, for the page.

    Raises:
        UserError: If the folder holds no finished run, or cannot be written to.
    """
    recorded = RecordedRun.read(run)
    before, after = (recorded.rows[method] for method in recorded.ends)
    differences = {m: _difference(recorded, m) for m in recorded.methods}
    page = Page(
        kind="run report",
        title=recorded.manifest.title or recorded.manifest.recipe,
        lead=lead_sentence(recorded.results, before, after, differences[after["method"]]),
        chips=run_chips(recorded),
        method=after["label"],
        reference=before["label"],
        headlines=headlines_of(before, after, before is after),
        sections=_sections(recorded, differences, dls, why),
        footer=footer_of(recorded),
        links=[("Comparison", COMPARE_PAGE)] if (run.path / COMPARE_PAGE).is_file() else [],
    )
    return write_page(run, REPORT_PAGE, page)


def _difference(recorded: RecordedRun, method: str) -> Difference | None:
    """Return the difference of a method to the first in balanced accuracy, with its interval."""
    first = recorded.methods[0]
    if method == first:
        return None
    rows, targets = [], None
    for seed in recorded.seeds:
        ours, theirs = recorded.predicted(method, seed), recorded.predicted(first, seed)
        if ours is None or theirs is None:
            return None
        if targets is not None and not np.array_equal(targets, ours.targets):
            return None  # each seed has validation images of its own
        targets = ours.targets
        rows.append(ours.correct.astype(float) - theirs.correct)
    return Difference.of(difference_interval(np.stack(rows), targets))


def _sections(
    recorded: RecordedRun, differences: dict[str, Difference | None], dls: Any, why: str
) -> list[PageSection]:
    extra = {}
    if any(d is not None for d in differences.values()):
        extra = {f"to {recorded.labels[recorded.methods[0]]}": differences}
    results = [result_table(recorded.results, extra), *result_notes(recorded)]
    sections = [
        PageSection("results", "Results", results),
        PageSection("classes", "Classes", _class_parts(recorded)),
        PageSection("mistakes", "Mistakes", _mistake_parts(recorded)),
        PageSection("errors", "Most confident errors", error_parts(recorded, dls, why), "Errors"),
        PageSection("calibration", "Calibration", _calibration_parts(recorded)),
        PageSection("weights", "Classifier weights", _norm_parts(recorded), "Weights"),
        PageSection("stage2", "Stage 2", _trajectory_parts(recorded)),
        PageSection("data", "Training images", _data_parts(recorded), "Data"),
        use_section(recorded, recorded.manifest.command),
        provenance(recorded),
    ]
    return [section for section in sections if section.parts]


def _ends_text(recorded: RecordedRun) -> tuple[str, str]:
    first, last = (recorded.labels[m] for m in recorded.ends)
    return first, last


def _class_parts(recorded: RecordedRun) -> list[Any]:
    first, last = recorded.ends
    counts, names = recorded.class_counts, recorded.classes
    parts: list[Any] = []
    if first != last:
        figure = plot_per_class_accuracy(
            recorded.accuracy(first), recorded.accuracy(last), counts, names,
            _ends_text(recorded), recorded.few,
        )  # fmt: skip
        title = f"Accuracy per class on the {recorded.part} set, before and after"
        about = f"Accuracy of each class under {' and '.join(_ends_text(recorded))}; see the table."
        parts.append(Plot(title, figure_to_svg(figure, "accuracy"), about))
    methods = []
    for method in recorded.methods:
        predicted = recorded.all_predicted(method)
        precision = f1 = mistakes = None
        if predicted is not None:
            scores = class_scores(predicted.targets, predicted.classes, len(names))
            precision, f1 = scores.precision, scores.f1
            mistakes = _shares(predicted.targets, predicted.classes, len(names))
        label, accuracy = recorded.labels[method], recorded.accuracy(method)
        methods.append(MethodClasses(label, accuracy, precision, f1, mistakes))
    shown = recorded.methods.index(last)
    csv = CLASSES_FILE if (recorded.run.path / CLASSES_FILE).is_file() else ""
    data = ClassData(
        names, recorded.shots, counts, recorded.images, recorded.part, methods, shown, csv
    )
    return [*parts, data]


def _shares(targets: np.ndarray, classes: np.ndarray, num_classes: int) -> list:
    """Return which classes each class is taken for, with the share of its images."""
    number = np.bincount(targets, minlength=num_classes)
    mistakes = mistaken_classes(targets, classes, num_classes)
    return [[(c, n / number[own]) for c, n in row] for own, row in enumerate(mistakes)]


def _mistake_parts(recorded: RecordedRun) -> list[Any]:
    last = recorded.ends[1]
    predicted, label = recorded.all_predicted(last), recorded.labels[last]
    names = recorded.classes
    if predicted is None or len(names) < 2:
        return []
    figure = plot_confusion(
        predicted.targets, predicted.classes, recorded.class_counts, names, label,
        recorded.few,
    )  # fmt: skip
    title = f"Which classes {label} takes for which, on the {recorded.part} set"
    about = "Confusion matrix; the table beside it lists the most frequent mistakes."
    plot = Plot(title, figure_to_svg(figure, "confusion"), about)
    return [Row([plot, _pairs_table(recorded, predicted, label)])]


def _pairs_table(recorded: RecordedRun, predicted: Any, label: str) -> PageTable:
    """Return the most frequent mistakes of the few-shot classes, or of all without any."""
    names, shots = recorded.classes, recorded.shots
    mistakes = mistaken_classes(predicted.targets, predicted.classes, len(names))
    number = np.bincount(predicted.targets, minlength=len(names))
    pairs = [(own, other, n) for own, row in enumerate(mistakes) for other, n in row[:_MAX_PAIRS]]
    tail = [pair for pair in pairs if shots[pair[0]] == "few"]
    group = "few-shot classes" if tail else "classes"
    shown = sorted(tail or pairs, key=lambda p: (-p[2] / number[p[0]], -p[2]))[:_MAX_PAIRS]
    rows = []
    for own, other, n in shown:
        share = n / number[own]
        cells = [Cell(names[own]), Cell(names[other]), Cell(f"{100 * share:.0f} %", share)]
        rows.append([*cells, f"{n:,} of {number[own]:,}", shots[other]])
    head = ("class", "taken for", "share", "images", "group of that class")
    return text_table(f"{label}: the most frequent mistakes of the {group}", head, rows)


def _calibration_parts(recorded: RecordedRun) -> list[Any]:
    found = {}
    for method in dict.fromkeys(recorded.ends):
        predicted = recorded.all_predicted(method)
        if predicted is None:
            return []
        found[recorded.labels[method]] = calibration_bins(predicted.confidence, predicted.correct)
    figure = plot_calibration(found)
    errors = " and ".join(f"{100 * b.error:.1f} % for {label}" for label, b in found.items())
    over = ", over the images of all seeds" if len(recorded.seeds) > 1 else ""
    about = f"Expected calibration error in 15 bins{over}: {errors}."
    title = f"Confidence and accuracy on the {recorded.part} set"
    note = (
        "A calibrated classifier is right in 70 % of the images to which it gives 70 %: its bars "
        f"end at the dashed line. Below, how many images have which confidence. {about}"
    )
    return [Plot(title, figure_to_svg(figure, "calibration"), about), Text(note, is_note=True)]


def _norm_parts(recorded: RecordedRun) -> list[Any]:
    first, last = recorded.ends
    norms = [recorded.norms(method) for method in (first, last)]
    if first == last or any(n is None for n in norms):
        return []
    counts, labels = recorded.class_counts, _ends_text(recorded)
    before, after = norms
    figure = plot_norms(before, after, counts, labels)
    about = f"Norm of the weights of each class against its training images, under {labels[0]} "
    about += f"and {labels[1]}."
    title = "Norm of each class's weights, before and after"
    return [Plot(title, figure_to_svg(figure, "norms", recorded.classes), about)]


def _trajectory_parts(recorded: RecordedRun) -> list[Any]:
    trained = [m for m in recorded.methods if m in METHODS and METHODS[m].kind == "stage 2"]
    # The last one is the one that the page is about.
    plots = [p for m in trained[::-1] if (p := _trajectory_plot(recorded, m)) is not None]
    if not plots:
        return []
    others = plots[1 : 1 + MAX_TRAJECTORIES]
    if not others:
        return plots
    return [plots[0], Folded("Other methods, epoch by epoch", others)]


def _trajectory_plot(recorded: RecordedRun, method: str) -> Plot | None:
    found = recorded.trajectories(method)
    if not found or not all(trajectory.epoch for trajectory in found):
        return None
    label = recorded.labels[method]
    kept = ", ".join(trajectory.describe_choice() for trajectory in found)
    about = f"Accuracy and norms by epoch of {label}. Kept: {kept}."
    svg = figure_to_svg(plot_trajectory(found), f"trajectory-{method}")
    return Plot(f"{label}, epoch by epoch", svg, about)


def _data_parts(recorded: RecordedRun) -> list[Any]:
    manifest = recorded.manifest
    figure = plot_class_counts(recorded.class_counts, recorded.classes, recorded.few)
    paragraph = data_paragraph(recorded)
    parts = [
        Text(paragraph),
        Plot("Training images per class", figure_to_svg(figure, "counts"), paragraph),
    ]
    if manifest.inputs:
        parts.append(Text(" ".join(f"{line}." for line in manifest.inputs), is_note=True))
    return parts
