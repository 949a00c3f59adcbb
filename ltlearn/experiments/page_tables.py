"""Tables and sentences that the pages of a run and of a comparison share."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ltlearn.errors import spell_call
from ltlearn.experiments.manifest import Manifest
from ltlearn.experiments.recorded import RecordedTable
from ltlearn.names import SHOTS, tested_images
from ltlearn.reporting.markdown import counts_paragraph, describe_protocol
from ltlearn.reporting.page import (
    Cell,
    CodeBlock,
    Column,
    Facts,
    Folded,
    Headline,
    PageSection,
    PageTable,
    Text,
)
from ltlearn.reporting.table import LAST_EPOCH
from ltlearn.reporting.text import as_sentence, mean_sd_text
from ltlearn.utils.text import DASH, percent_text

__all__ = [
    "Difference",
    "data_paragraph",
    "footer_of",
    "headlines_of",
    "lead_sentence",
    "mark_best",
    "number_cell",
    "provenance",
    "result_notes",
    "result_table",
    "run_chips",
    "text_table",
    "use_section",
]

_ACCURACY_HINTS = {
    "all": "Share of all images that are classified correctly.",
    "many": "Mean of the accuracies of the many-shot classes.",
    "medium": "Mean of the accuracies of the medium-shot classes.",
    "few": "Mean of the accuracies of the few-shot classes.",
    "balanced": "Mean of the accuracies of all classes.",
    LAST_EPOCH: (
        "Share of all images that are right after the last epoch. Stage 2 starts from the kept "
        "epoch of stage 1."
    ),
}
_ECE_HINT = "Expected calibration error: the mean gap between confidence and accuracy, in 15 bins."


@dataclass(frozen=True)
class Difference:
    """How much more accurate a method is than another, as fractions.

    Args:
        estimate: The difference.
        low: Lower end of the interval; None without one.
        high: Upper end of the interval; None without one.
    """

    estimate: float
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, values: Any) -> "Difference | None":
        """Return the difference in a file or in a `PairedDifference`; None if there is none.

        Args:
            values: A mapping or an object with the fields.
        """
        if values is None:
            return None
        read = values.get if isinstance(values, Mapping) else lambda name: getattr(values, name)
        return cls(*(read(name) for name in ("estimate", "low", "high")))

    def __str__(self) -> str:
        ends = "" if self.low is None else f" [{_signed(self.low)}, {_signed(self.high)}]"
        return f"{_signed(self.estimate)}{ends}"

    def cell(self) -> Cell:
        """Return the cell of a table."""
        return Cell(str(self), 100 * self.estimate)


def _signed(value: float) -> str:
    return f"{100 * value:+.1f}".replace("-", "−")


def number_cell(value: float | None, text: str | None = None) -> Cell:
    """Return a cell with a number; a dash if it is unknown.

    Args:
        value: The number.
        text: How it is shown.
    """
    if value is None or np.isnan(value):
        return Cell(DASH)
    return Cell(f"{value:,}" if text is None else text, float(value))


def mark_best(rows: Sequence[list[Cell]], column: int, lowest: bool = False) -> None:
    """Mark the best cells of a column, if their numbers differ.

    Args:
        rows: The rows, which are changed.
        column: Number of the column.
        lowest: Whether the smallest number is the best.
    """
    known = [row[column].value for row in rows if row[column].value is not None]
    if len(set(known)) < 2:
        return
    best = min(known) if lowest else max(known)
    for row in rows:
        cell = row[column]
        if cell.value == best:
            row[column] = Cell(cell.text, cell.value, is_best=True)


def text_table(title: str, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> PageTable:
    """Return a table whose columns are numbers where all their cells are.

    Args:
        title: The title.
        head: The headings.
        rows: Texts and numbers; a text that begins with a number is sorted by that.
    """
    cells = [[_cell_of(value) for value in row] for row in rows]
    columns = [
        Column(name, bool(cells) and i > 0 and all(_is_number(row[i]) for row in cells))
        for i, name in enumerate(head)
    ]
    return PageTable(title, columns, cells)


def _cell_of(value: Any) -> Cell:
    if isinstance(value, Cell):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return Cell(DASH if value is None else str(value))
    if isinstance(value, str):
        start = value.partition(" ")[0].replace(",", "").replace("−", "-")
        try:
            return Cell(value, float(start))
        except ValueError:
            return Cell(value)
    return Cell(f"{value:,}" if isinstance(value, int) else f"{value:g}", float(value))


def _is_number(cell: Cell) -> bool:
    return cell.value is not None or cell.text == DASH


def _mean_cell(summary: Mapping[str, Any], name: str, percent: bool = True) -> Cell:
    figure = summary.get(name)
    if figure is None:
        return Cell(DASH)
    mean, sd = figure["mean"], figure["sd"]
    if percent:
        return Cell(mean_sd_text(mean, sd), 100 * mean)
    return Cell(f"{mean:.3f}" if sd is None else f"{mean:.3f} ± {sd:.3f}", mean)


def result_table(
    results: Mapping[str, Any], differences: Mapping[str, Mapping[str, Difference | None]]
) -> PageTable:
    """Return the table of results.

    Args:
        results: The table, as `ResultTable.to_dict` writes it.
        differences: Heading to the difference of each method in balanced accuracy.
    """
    rows, columns = results["rows"], [Column("method", False)]
    names = [name for name in _ACCURACY_HINTS if any(r["summary"].get(name) for r in rows)]
    columns += [Column(name.replace("_", " "), hint=_ACCURACY_HINTS[name]) for name in names]
    columns += [
        Column("ECE", hint=_ECE_HINT),
        Column("NLL", hint="Mean negative log-likelihood of the true class, in nats."),
    ]
    hint = "Difference in balanced accuracy in points, with a 95 % interval where there is one."
    columns += [Column(heading, hint=hint) for heading in differences]
    columns += [Column("seconds", hint="Training time, the mean over seeds.")]
    cells = []
    for row in rows:
        summary = row["summary"]
        line = [Cell(row["label"]), *(_mean_cell(summary, name) for name in names)]
        line += [_mean_cell(summary, "ece"), _mean_cell(summary, "nll", percent=False)]
        for of_method in differences.values():
            difference = of_method.get(row["method"])
            line.append(Cell(DASH) if difference is None else difference.cell())
        seconds = row.get("seconds")
        line += [number_cell(seconds, None if seconds is None else f"{seconds:,.1f}")]
        cells.append(line)
    for i in range(1, len(names) + 1):
        mark_best(cells, i)
    for i in (len(names) + 1, len(names) + 2):
        mark_best(cells, i, lowest=True)
    over = ", mean ± standard deviation over seeds" if _has_seeds(rows) else ""
    part = tested_images(results["protocol"])
    title = f"{results['dataset']}: {part} accuracy and ECE in %{over}; the best is bold"
    return PageTable(title, columns, cells)


def _tested_table(results: Mapping[str, Any]) -> Folded:
    """Return which weights of each method were tested; it is too wide for the table of results."""
    cells = [[Cell(row["label"]), Cell(row["selected"])] for row in results["rows"]]
    columns = [Column("method", False), Column("tested", False, is_long=True)]
    title = "Which weights of each method were tested"
    return Folded(title, [PageTable("Tested weights", columns, cells)])


def _has_seeds(rows: Sequence[Mapping[str, Any]]) -> bool:
    return any(len(row["reports"]) > 1 for row in rows)


def result_notes(recorded: RecordedTable) -> list[Text | Folded]:
    """Return what stands below the table: cautions, published figures, protocol, tested weights."""
    results = recorded.results
    # Runs of early versions have no warnings.
    lines = [*results.get("warnings", ()), results.get("note", "")]
    lines = [as_sentence(line.rstrip(".")) for line in lines if line]
    protocol, text = results["protocol"], results["protocol_text"]
    flips = results.get("averages_flips", True)  # runs of early versions always averaged
    lines.append(describe_protocol(protocol, text, recorded.is_carved, flips))
    return [*(Text(line, is_note=True) for line in lines), _tested_table(results)]


def headlines_of(
    before: Mapping[str, Any], after: Mapping[str, Any], is_same: bool
) -> list[Headline]:
    """Return the figures at the top of the page.

    Args:
        before: The row of the reference, as `ResultTable.to_dict` writes it.
        after: The row of the method.
        is_same: Whether both are one method, which is then compared with nothing.
    """
    labels = {
        "balanced": "Balanced accuracy", "all": "Accuracy", "many": "Many-shot",
        "medium": "Medium-shot", "few": "Few-shot", "ece": "Calibration error",
    }  # fmt: skip
    found = []
    for name, label in labels.items():
        new, old = after["summary"].get(name), before["summary"].get(name)
        if new is None:
            continue
        text = f"{percent_text(new['mean'])} %"
        if is_same or old is None:
            found.append(Headline(label, text))
            continue
        change = 100 * (new["mean"] - old["mean"])
        old_text = f"{percent_text(old['mean'])} %"
        found.append(Headline(label, text, old_text, change, is_better_if_lower=name == "ece"))
    return found


def lead_sentence(
    results: Mapping[str, Any],
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    difference: Difference | None,
) -> str:
    """Return the result in one or two sentences.

    Args:
        results: The table, as `ResultTable.to_dict` writes it.
        before: The row of the reference.
        after: The row of the method.
        difference: Their difference in balanced accuracy; None if unknown.
    """
    mean = after["summary"]["balanced"]["mean"]
    n = after["reports"][0]["n_images"]
    text = (
        f"{after['label']} reaches {percent_text(mean)} % balanced accuracy on {n:,} "
        f"{tested_images(results['protocol'])} images"
    )
    if after["method"] == before["method"]:
        return f"{text}."
    if difference is None:
        difference = Difference(mean - before["summary"]["balanced"]["mean"])
    points = f"{abs(100 * difference.estimate):.1f}"
    side = "more" if difference.estimate >= 0 else "fewer"
    text += f", {points} points {side} than {before['label']}"
    if difference.low is not None:
        low, high = _signed(difference.low), _signed(difference.high)
        text += f" (95 % interval {low} to {high})"
    changes = []
    for name in reversed(SHOTS):
        new, old = (row["summary"].get(name) for row in (after, before))
        if new is not None and old is not None:
            changes.append(f"{name}-shot {_signed(new['mean'] - old['mean'])}")
    return f"{text}. By group, in points: {', '.join(changes)}."


def run_chips(recorded: RecordedTable) -> list[str]:
    """Return the facts of a run in a few words each."""
    manifest, counts = recorded.manifest, recorded.class_counts
    model = manifest.values.get("model")
    arch = model.get("arch", "") if isinstance(model, Mapping) else ""
    seeds = len(recorded.seeds)
    chips = [str(recorded.results["dataset"]), str(arch), f"{len(recorded.classes):,} classes"]
    if manifest.training_images is not None:
        chips.append(f"{manifest.training_images:,} training images")
    if min(counts):
        chips.append(f"imbalance factor {max(counts) / min(counts):.4g}")
    chips.append(f"{recorded.results['protocol']} protocol")
    return [chip for chip in (*chips, f"{seeds} seed{'s' if seeds > 1 else ''}") if chip]


def data_paragraph(recorded: RecordedTable) -> str:
    """Describe the training images of a run."""
    manifest = recorded.manifest
    text = counts_paragraph(recorded.class_counts, recorded.few)
    if manifest.protocol != "paper" and manifest.validation_images is not None:
        text += (
            f" {manifest.training_images:,} of them were used for training, "
            f"{manifest.validation_images:,} for validation."
        )
    if manifest.skipped_images:
        n = len(manifest.skipped_images)
        text += f" {n:,} unreadable image{'s were' if n > 1 else ' was'} left out."
    return text


def use_section(recorded: RecordedTable, again: str, method: str = "") -> PageSection:
    """Return the commands that repeat the run and use its model.

    Args:
        recorded: The run.
        again: The command that made the run; empty if unknown.
        method: The method that predicts; empty for the run's last.
    """
    path = str(recorded.run.path)
    where, of_method = shlex.quote(path), f", method={method!r}" if method else ""
    python = (
        "from ltlearn.experiments.predictor import Predictor\n\n"
        f"predictor = Predictor({path!r}{of_method})\n"
        'for found in predictor.predict(["image.jpg"]):\n'
        "    print(found.classes[0], found.probabilities[0])"
    )
    predict = f"ltlearn predict {where} IMAGE"
    if method:
        predict = spell_call("predict", model=path, images="IMAGE", method=method)
    chosen = {"method": method} if method else {}
    export = spell_call("export_run", run=path, to="onnx", **chosen)
    parts = [CodeBlock("Repeat the run", again)] if again else []
    # Only the command line spells a call as a command, between backquotes.
    if predict.startswith(("ltlearn", "`")):
        parts.append(CodeBlock("Classify images, or a folder of them", predict.strip("`")))
    if export.startswith("`"):
        parts.append(CodeBlock("Export the model for programs without ltlearn", export.strip("`")))
    parts += [
        CodeBlock("The same in Python", python),
        CodeBlock("Compare all corrections of the classifier", f"ltlearn compare {where}"),
        CodeBlock("Write this page again", f"ltlearn report {where}"),
    ]
    return PageSection("use", "Use it", parts)


def provenance(recorded: RecordedTable) -> PageSection:
    """Return where the results come from: data, values, machine and versions."""
    manifest, results = recorded.manifest, recorded.results
    split = manifest.split or {}
    data = [
        ("dataset", results["dataset"]),
        ("folder", manifest.data_path),
        ("split", results["split"]),
        ("training images", f"{split.get('train', DASH)} (fingerprint)"),
        ("validation images", f"{split.get('valid', DASH)}, from {split.get('valid_from', DASH)}"),
        ("test images", f"{split.get('test') or 'none'}"),
        *([("order of the training images", split["order"])] if split.get("order") else []),
        ("shot groups", results["shots"]),
    ]
    columns = manifest.columns or {}
    data += [(f"column of {name}", column) for name, column in columns.items()]
    machine = [
        ("device", manifest.device), ("torch device", manifest.run_device),
        ("processor cores", manifest.cpu_count), ("threads of torch", manifest.threads),
        ("platform", manifest.platform),
    ]  # fmt: skip
    if manifest.training_seconds is not None:
        machine.append(("training", f"{manifest.training_seconds:,.1f} s in all"))
    seeds = ", ".join(map(str, recorded.seeds))
    how = [("recipe", manifest.recipe), ("protocol", manifest.protocol), ("seeds", seeds)]
    parts = [Facts("Data", _known(data)), Facts("Run and machine", _known([*how, *machine]))]
    if manifest.stages:
        parts.append(_stages_table(manifest.stages))
    parts.append(Folded("All values of the recipe, and where each is from", [_values(manifest)]))
    versions = _known(list(manifest.versions.items()))
    parts.append(Folded("Versions", [Facts("Packages", versions)]))
    return PageSection("provenance", "Provenance", parts)


def _known(pairs: Sequence[tuple[str, Any]]) -> list[tuple[str, str]]:
    return [(name, str(value)) for name, value in pairs if value not in (None, "")]


def _stages_table(stages: Sequence[Mapping[str, Any]]) -> PageTable:
    names = {
        "method": "method", "stage": "stage", "seed": "seed", "trained": "trained", "on": "on",
        "sampler": "sampler", "loss": "loss", "epochs": "epochs", "lr": "learning rate",
        "weight_decay": "weight decay", "batch": "batch", "bn": "batch norm",
        "parameters": "parameters", "seconds": "seconds",
    }  # fmt: skip
    rows = [[stage.get(key) for key in names] for stage in stages]
    return text_table("What was trained", list(names.values()), rows)


def _values(manifest: Manifest) -> PageTable:
    """Return each value of the recipe with its provenance."""
    sources = manifest.values.get("provenance")
    sources = sources if isinstance(sources, Mapping) else {}
    flat = {}
    for section, values in manifest.values.items():
        if section in ("provenance", "expected"):
            continue
        if isinstance(values, Mapping):
            flat |= {f"{section}.{key}": value for key, value in values.items()}
        else:
            flat[section] = values
    rows = [
        [Cell(key), Cell(DASH if value is None else str(value)), Cell(sources.get(key, DASH))]
        for key, value in flat.items()
    ]
    return PageTable("Values", [Column(n, False) for n in ("key", "value", "source")], rows)


def footer_of(recorded: RecordedTable) -> str:
    """Return the last line of a page."""
    version = recorded.manifest.versions.get("ltlearn")
    by = f"ltlearn {version}" if version else "ltlearn"
    return f"{recorded.run.path} · trained with {by}. This page is one file and loads nothing else."
