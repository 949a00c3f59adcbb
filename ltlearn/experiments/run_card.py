"""What the model card of a run reports, from the run's own files."""

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ltlearn.errors import UserError
from ltlearn.experiments.compared import COMPARE_FILE
from ltlearn.experiments.manifest import MANIFEST_FILE, Manifest, read_manifest
from ltlearn.experiments.opened_run import OpenedRun
from ltlearn.exporting.card import CardFacts, CardResult
from ltlearn.exporting.hub import licence_of
from ltlearn.exporting.source import ExportSource
from ltlearn.names import FIGURES, tested_images
from ltlearn.utils.run_folder import Run

__all__ = ["card_of_run", "plots_of_run", "without_paths"]

_PLOTS = {
    "class_counts": "Training images per class",
    "per_class_accuracy": "Accuracy per class, before and after",
    "confusion": "Which classes the model takes for which",
}


def card_of_run(opened: OpenedRun, source: ExportSource) -> CardFacts:
    """Return what the card reports.

    Args:
        opened: The run.
        source: Its model.
    """
    run, facts = Run(opened.folder), opened.facts
    has_manifest = (run.path / MANIFEST_FILE).is_file()
    manifest = read_manifest(run) if has_manifest else Manifest()
    table = _table_of(run, manifest, opened.method)
    seeds = len(manifest.seeds)
    protocol = str(table.get("protocol_text", ""))
    notes = [f"The figures are means over {seeds} seeds; one of them is exported."] * (seeds > 1)
    return CardFacts(
        title=manifest.title or "A trained model",
        architecture=facts.arch,
        classes=facts.classes,
        class_counts=facts.class_counts,
        few=str(table.get("few_rule", "<20")),
        prior=source.prior,
        dataset=str(table.get("dataset", "")),
        part=tested_images(str(table.get("protocol", ""))),
        protocol=protocol,
        results=_results(table, opened.method),
        notes=[*notes, *([str(table["note"])] if table.get("note") else [])],
        command=without_paths(manifest.command),
        versions=manifest.versions,
        base=licence_of(source),
    )


def plots_of_run(folder: Path) -> dict[str, Path]:
    """Return the plots of a run that a card shows, by title.

    Args:
        folder: The run's folder.
    """
    files = {title: folder / f"plots/{name}.png" for name, title in _PLOTS.items()}
    return {title: file for title, file in files.items() if file.is_file()}


def _table_of(run: Run, manifest: Manifest, method: str) -> Mapping[str, Any]:
    """Return the table that has a row of the method: the run's own, or the comparison's."""
    own = manifest.results or {}
    if any(row.get("method") == method for row in _rows(own)):
        return own
    if not (run.path / COMPARE_FILE).is_file():
        return own
    try:
        content = run.read_json(COMPARE_FILE)
    except UserError:
        return own
    has_row = any(row.get("method") == method for row in _rows(content))
    return {**own, "rows": content["rows"]} if has_row else own


def _rows(table: Any) -> list[Mapping[str, Any]]:
    rows = table.get("rows") if isinstance(table, Mapping) else None
    return [row for row in rows or () if isinstance(row, Mapping)]


def _results(table: Mapping[str, Any], method: str) -> list[CardResult]:
    results = []
    for row in _rows(table):
        figures = {name: _mean(row.get("reports"), name) for name in (*FIGURES, "ece")}
        label = str(row.get("label") or row.get("method"))
        results.append(CardResult(label, figures, row.get("method") == method))
    # A table without the method would be taken for its figures.
    return results if any(row.is_exported for row in results) else []


def _mean(reports: Any, name: str) -> float | None:
    """Return the mean of a figure over the reports of a row that have it."""
    reports = reports if isinstance(reports, list) else []
    values = [report.get(name) for report in reports if isinstance(report, Mapping)]
    values = [float(v) for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    return sum(values) / len(values) if values else None


def without_paths(command: str) -> str:
    """Return a command whose absolute paths are shortened to their last part.

    The card is public, and the folders of a machine name people and projects.

    Args:
        command: The command, as a shell takes it.
    """
    return shlex.join(re.sub(r"^(-[^=]*=)?/.*/(?=.)", r"\1", word) for word in shlex.split(command))
