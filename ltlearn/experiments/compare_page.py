"""Write compare.html, the page of a comparison, from its compare.json."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ltlearn.errors import UserError, spell_call
from ltlearn.experiments.compared import COMPARE_FILE
from ltlearn.experiments.manifest import read_manifest
from ltlearn.experiments.page_tables import (
    Difference,
    data_paragraph,
    footer_of,
    headlines_of,
    lead_sentence,
    mark_best,
    number_cell,
    provenance,
    result_notes,
    result_table,
    run_chips,
    use_section,
)
from ltlearn.experiments.recorded import RecordedTable
from ltlearn.methods import METHODS
from ltlearn.names import FIGURES, SHOTS
from ltlearn.plots.classes import plot_per_class_accuracy
from ltlearn.plots.norms import plot_norms_by_method
from ltlearn.plots.tradeoff import plot_tradeoff
from ltlearn.plots.trajectory import plot_trajectory
from ltlearn.reporting.page import (
    Cell,
    ClassData,
    Column,
    Folded,
    MethodClasses,
    Page,
    PageSection,
    PageTable,
    Plot,
    Text,
    figure_to_svg,
    render_page,
)
from ltlearn.reporting.text import mean_sd_text
from ltlearn.training.stored import stored_trajectory
from ltlearn.utils.atomic import replaced_file
from ltlearn.utils.run_folder import Run

__all__ = [
    "COMPARE_PAGE",
    "MAX_TRAJECTORIES",
    "REPORT_PAGE",
    "write_compare_page",
    "write_or_warn",
    "write_page",
]

_log = logging.getLogger("ltlearn")
# "0" leaves the pages out, which take a second; tests set it.
_PAGES = "LTLEARN_PAGES"
COMPARE_PAGE, REPORT_PAGE = "compare.html", "report.html"
MAX_TRAJECTORIES = 8  # plots of methods


def write_or_warn(write: Callable[[], Any], page: Path, text: str) -> None:
    """Write a page after its results. A failure is a warning: the results are complete without it.

    Args:
        write: Writes the page.
        page: The page.
        text: The file that holds the same results.
    """
    if os.environ.get(_PAGES) == "0":
        return
    try:
        write()
    except Exception as e:
        reason = e.message if isinstance(e, UserError) else f"{type(e).__name__}: {e}"
        _log.warning(
            "%s was not written (%s); the results are complete, and in %s.",
            page, reason.rstrip("."), text,
        )  # fmt: skip


def write_page(run: Run, name: str, page: Page) -> Path:
    """Write a page into the folder of a run; return its path.

    Args:
        run: The run.
        name: The file.
        page: The page.
    """
    remedy = f"repair that, and run {spell_call('rewrite_pages', run=str(run.path))}"
    with replaced_file(run.inside(name), remedy=remedy) as file:
        file.write(render_page(page).encode("utf-8", "backslashreplace"))
    return run.path / name


def write_compare_page(run: Run) -> Path:
    """Write the page of the last comparison of a run; return its path.

    Args:
        run: The run.

    Raises:
        UserError: If there is no comparison, or its file is damaged.
    """
    content = run.read_json(COMPARE_FILE)
    try:
        page = _page(RecordedTable(run, read_manifest(run), _in_order(content)))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as e:
        if isinstance(e, UserError):
            raise
        raise UserError(
            f"{run.path / COMPARE_FILE} is damaged ({type(e).__name__}: {e}); run "
            f"{spell_call('compare_run', run=str(run.path))} again."
        ) from None
    return write_page(run, COMPARE_PAGE, page)


def _in_order(content: Any) -> dict[str, Any]:
    """Return the table with stage 1 first, and the others by balanced accuracy."""

    def place(row: Any) -> tuple[bool, float]:
        is_first = row["method"] in METHODS and METHODS[row["method"]].kind == "stage 1"
        return not is_first, -row["summary"]["balanced"]["mean"]

    return {**content, "rows": sorted(content["rows"], key=place)}


def _page(recorded: RecordedTable) -> Page:
    results, rows = recorded.results, recorded.rows
    best, reference = rows[results["best_on_validation"]], rows[_reference(recorded)]
    difference = best["differences"].get(reference["method"])
    has_report = (recorded.run.path / REPORT_PAGE).is_file()
    return Page(
        kind="comparison",
        title=f"Corrections compared: {recorded.manifest.title or recorded.manifest.recipe}",
        lead=lead_sentence(results, reference, best, Difference.of(difference)),
        chips=[f"{len(rows)} methods", *run_chips(recorded)],
        method=best["label"],
        reference=reference["label"],
        headlines=headlines_of(reference, best, best is reference),
        sections=[section for section in _sections(recorded) if section.parts],
        footer=footer_of(recorded),
        links=[("Run report", REPORT_PAGE)] if has_report else [],
    )


def _reference(recorded: RecordedTable) -> str:
    """Return the method of stage 1, or the best one without it."""
    firsts = [m for m in recorded.methods if m in METHODS and METHODS[m].kind == "stage 1"]
    return firsts[0] if firsts else recorded.results["best_on_validation"]


def _sections(recorded: RecordedTable) -> list[PageSection]:
    found = {other for row in recorded.rows.values() for other in row["differences"]}
    others = [method for method in recorded.methods if method in found]  # stage 1 is the first
    differences = {
        f"to {recorded.labels[other]}": {
            method: Difference.of(row["differences"].get(other))
            for method, row in recorded.rows.items()
        }
        for other in others
    }
    results = [result_table(recorded.results, differences), *result_notes(recorded)]
    return [
        PageSection("results", "Results", results),
        PageSection("tradeoff", "Trade-off", _tradeoff(recorded)),
        PageSection("groups", "Differences by group", _group_parts(recorded), "Groups"),
        PageSection("priors", "Other class priors", _prior_parts(recorded), "Priors"),
        PageSection("classes", "Classes", _class_parts(recorded)),
        PageSection("weights", "Classifier weights", _norm_parts(recorded), "Weights"),
        PageSection("stage2", "Stage 2", _trajectory_parts(recorded)),
        PageSection("data", "Training images", [Text(data_paragraph(recorded))], "Data"),
        PageSection("sources", "Sources", [_sources(recorded)]),
        use_section(recorded, recorded.manifest.command, "best"),
        provenance(recorded),
    ]


def _tradeoff(recorded: RecordedTable) -> list[Any]:
    groups = [g for g in SHOTS if g in recorded.shots]
    if len(groups) < 2:
        return []
    ends = (groups[0], groups[-1])
    points = {
        row["label"]: [tuple(report[g] for g in ends) for report in row["reports"]]
        for row in recorded.rows.values()
    }
    reference = recorded.labels[_reference(recorded)]
    figure = plot_tradeoff(points, ends, highlight=reference)
    title = f"{ends[0].capitalize()}-shot against {ends[1]}-shot accuracy"
    about = f"{title} of each method; the table of results has the numbers."
    return [Plot(title, figure_to_svg(figure, "tradeoff"), about)]


def _group_parts(recorded: RecordedTable) -> list[Any]:
    """Return the differences to stage 1 in each group."""
    reference = _reference(recorded)
    rows = []
    for method, row in recorded.rows.items():
        found = row["differences"].get(reference)
        if method == reference or found is None:
            continue
        groups = {**found.get("groups", {}), "balanced": found}
        differences = [Difference.of(groups.get(name)) for name in FIGURES]
        cells = [number_cell(None) if d is None else d.cell() for d in differences]
        rows.append([Cell(row["label"]), *cells])
    if not rows:
        return []
    for i in range(1, len(FIGURES) + 1):
        mark_best(rows, i)
    head = [Column("method", False), *(Column(name) for name in FIGURES)]
    title = f"Differences to {recorded.labels[reference]} in points, with 95 % intervals"
    return [PageTable(title, head, rows)]


def _prior_parts(recorded: RecordedTable) -> list[Any]:
    priors = dict.fromkeys(
        p for row in recorded.rows.values() for one in row["priors"] for p in one
    )
    if not priors:
        return []
    head = [Column("method", False)]
    for prior in priors:
        hint = "The logits are corrected for this prior."
        head += [Column(f"{prior} %"), Column(f"{prior}, corrected %", hint=hint)]
    rows = []
    for row in recorded.rows.values():
        cells = [Cell(row["label"])]
        for prior in priors:
            own = [one[prior] for one in row["priors"] if prior in one]
            for name in ("accuracy", "corrected"):
                values = [figures[name] for figures in own]
                cells.append(_mean_cell(values))
        rows.append(cells)
    for i in range(1, len(head)):
        mark_best(rows, i)
    about = (
        f"Accuracy with the {recorded.part} images weighted to the prior. Corrected adds the "
        "logarithm of that prior to the logits, and subtracts the one that the classifier assumes."
    )
    return [
        PageTable("Accuracy in % under other class priors", head, rows),
        Text(about, is_note=True),
    ]


def _mean_cell(values: list[float]) -> Cell:
    if not values:
        return number_cell(None)
    mean, sd = float(np.mean(values)), np.std(values, ddof=1) if len(values) > 1 else None
    return Cell(mean_sd_text(mean, sd), 100 * mean)


def _class_parts(recorded: RecordedTable) -> list[Any]:
    reference, best = _reference(recorded), recorded.results["best_on_validation"]
    order = list(dict.fromkeys([reference, *recorded.methods]))
    parts: list[Any] = []
    if best != reference:
        labels = (recorded.labels[reference], recorded.labels[best])
        figure = plot_per_class_accuracy(
            recorded.accuracy(reference), recorded.accuracy(best), recorded.class_counts,
            recorded.classes, labels, recorded.few,
        )  # fmt: skip
        about = f"Accuracy of each class under {' and '.join(labels)}; see the table."
        title = f"Accuracy per class on the {recorded.part} set"
        parts.append(Plot(title, figure_to_svg(figure, "accuracy"), about))
    methods = [MethodClasses(recorded.labels[m], recorded.accuracy(m)) for m in order]
    parts.append(
        ClassData(
            recorded.classes, recorded.shots, recorded.class_counts, recorded.images,
            recorded.part, methods, order.index(best),
        )
    )  # fmt: skip
    return parts


def _norm_parts(recorded: RecordedTable) -> list[Any]:
    norms = {
        row["label"]: np.mean(np.asarray(row["norms"], dtype=float), axis=0)
        for row in recorded.rows.values()
        if row["norms"] and all(row["norms"])
    }
    if not norms:
        return []
    reference = recorded.labels[_reference(recorded)]
    figure = plot_norms_by_method(norms, recorded.class_counts, reference=reference)
    about = "Norm of the weights of each class against its training images, a panel per method."
    svg = figure_to_svg(figure, "norms", recorded.classes)
    return [Plot("Norms of the classifier's rows", svg, about)]


def _trajectory_parts(recorded: RecordedTable) -> list[Any]:
    plots = []
    best = recorded.results["best_on_validation"]
    for method in dict.fromkeys([best, *recorded.methods]):
        row = recorded.rows[method]
        found = [stored_trajectory(t) for t in row["trajectories"] if t is not None]
        found = [trajectory for trajectory in found if len(trajectory.epoch) > 1]
        if found and len(plots) < MAX_TRAJECTORIES:
            svg = figure_to_svg(plot_trajectory(found), f"trajectory-{method}")
            about = f"Accuracy and norms by epoch of {row['label']}."
            plots.append(Plot(f"{row['label']}, epoch by epoch", svg, about))
    return [*plots[:1], Folded("Other methods, epoch by epoch", plots[1:])] if plots[1:] else plots


def _sources(recorded: RecordedTable) -> PageTable:
    rows = [
        [Cell(row["label"]), Cell(method), Cell(str(row.get("source") or "")),
         Cell(str(row.get("values_from") or ""))]
        for method, row in recorded.rows.items()
    ]  # fmt: skip
    head = [Column(name, False) for name in ("method", "name", "source", "values from")]
    return PageTable("Where each method and its values are from", head, rows)
