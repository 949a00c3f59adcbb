"""The Markdown report of a run."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from ltlearn.errors import UserError
from ltlearn.metrics.shots import SHOTS, shot_groups, shot_thresholds_text
from ltlearn.reporting.table import ResultTable
from ltlearn.reporting.text import (
    DASH,
    as_sentence,
    markdown_list,
    markdown_table,
    percent_text,
)
from ltlearn.utils.terminal import one_line
from ltlearn.utils.text import escape_markdown

__all__ = ["render_report_md", "protocol_paragraph", "counts_paragraph"]

# The hardware that `environment_info` records, and its titles.
_HARDWARE = {
    "device": "device", "cpu_count": "processor cores", "threads": "threads of torch",
    "platform": "platform",
}  # fmt: skip


def render_report_md(
    table: ResultTable,
    manifest: Mapping[str, Any],
    plots: Sequence[tuple[str, str]],
    trajectory: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None,
) -> str:
    """Write a run's report.md: what was run, what came out, and how it was measured.

    Args:
        table: The results.
        manifest: What the run recorded. Read, where present: title (else name, else recipe),
            command (a string or a list of words), class_counts, and the facts of
            `environment_info`.
        plots: Title and path of each image; the path relative to the report.
        trajectory: Stage 2 epoch by epoch, as `ltlearn.plots.plot_trajectory` takes it: one, a
            list with one per seed, or None.

    Raises:
        UserError: If a trajectory's lists differ in length or its chosen epoch is not among them.
    """
    title = next((manifest[k] for k in ("title", "name", "recipe") if manifest.get(k)), None)
    parts = [f"# {one_line(title if title is not None else table.dataset)}"]
    command = manifest.get("command")
    if command:
        if not isinstance(command, str):
            command = shlex.join(str(word) for word in command)
        parts += ["Produced by:", f"```\n{command}\n```"]
    parts += ["## Results", table.to_markdown()]
    parts += ["## Protocol", protocol_paragraph(table)]
    counts = manifest.get("class_counts")
    if counts is None and table.rows:
        counts = table.rows[0].reports[0].class_counts
    if counts is not None and len(counts):
        paragraph = counts_paragraph(counts, table.few_rule)
        trained, kept = manifest.get("training_images"), manifest.get("validation_images")
        if table.protocol != "paper" and trained and kept:
            paragraph += f" {trained:,} of them were trained on, {kept:,} were kept for validation."
        parts += ["## Training images", paragraph]
    trajectories = _as_list(trajectory)
    if trajectories:
        parts.append("## Stage 2, epoch by epoch")
        parts.append(
            "Epoch 0 is the model before the first step. The chosen epoch is in bold. Norms are "
            "those of the classifier's rows."
        )
        for i, one in enumerate(trajectories):
            if len(trajectories) > 1:
                seed = table.seeds[i] if len(table.seeds) == len(trajectories) else i
                parts.append(f"### Seed {seed}")
            parts.append(_trajectory_table(one))
    if plots:
        parts.append("## Plots")
        for name, path in plots:
            url = quote(str(path).replace("\\", "/"))
            parts += [f"### {one_line(name)}", f"![{escape_markdown(name)}]({url})"]
    facts = [f"{name}: {version}" for name, version in manifest.get("versions", {}).items()]
    facts += [f"{title}: {manifest[key]}" for key, title in _HARDWARE.items() if manifest.get(key)]
    if facts:
        parts += ["## Versions and hardware", markdown_list(facts)]
    return "\n\n".join(parts) + "\n"


def protocol_paragraph(table: ResultTable) -> str:
    """Describe the protocol of a table."""
    origin = "The validation images are those that the data comes with."
    if table._is_carved:
        origin = "Before stage 1 validation images were carved from the training images."
    how = {
        "clean": (
            f"{origin} Every choice, the epoch included, was made on them by class-balanced "
            "accuracy. The test set was read once, at the end."
        ),
        "paper": (
            "The epoch was selected on test, as the published figures were, and the logits of each "
            "image and its mirror image were averaged. Accuracy selected on test is optimistic: "
            "it is comparable with published figures, not with the clean protocol."
        ),
        "untested": (
            "Every choice, the epoch included, was made on the validation images by class-balanced "
            "accuracy, and there are no others to measure on: add a test folder of images that "
            "nothing was chosen on."
        ),
    }[table.protocol]
    return (
        f"{as_sentence(table.protocol_text)} {how} A group's accuracy is the mean of its "
        "per-class accuracies; a dash means that no class of the group has test images. "
        "ECE is the expected calibration error over 15 bins."
    )


def counts_paragraph(counts: Sequence[int], few_rule: str) -> str:
    """Describe the class counts of a run."""
    sizes = {name: int(mask.sum()) for name, mask in shot_groups(counts, few_rule).items()}
    counts = [int(n) for n in counts]
    least, most = min(counts), max(counts)
    factor = f"largest over smallest: {most / least:.4g}" if least else "some class has none"
    return (
        f"{sum(counts):,} training images in {len(counts):,} classes, {least:,} to {most:,} per "
        f"class ({factor}). Shots: {shot_thresholds_text(few_rule, sizes)}."
    )


def _trajectory_table(trajectory: Mapping[str, Any]) -> str:
    epochs = list(trajectory["epoch"])
    for name in ("balanced", "all", *SHOTS, "norms"):
        if len(trajectory[name]) != len(epochs):
            raise UserError(
                f"The trajectory has {len(epochs)} epochs but {len(trajectory[name])} values of "
                f"{name!r}."
            )
    if trajectory["chosen"] not in epochs:
        raise UserError(
            f"The trajectory's chosen epoch {trajectory['chosen']} is not among its epochs "
            f"{epochs[0]} to {epochs[-1]}."
            if epochs
            else "The trajectory has no epochs."
        )
    where = trajectory["select_on"]
    names = ("balanced", "all", *SHOTS)
    head = ["epoch", *(f"{where} {n} %" for n in names), "smallest norm", "largest norm"]
    lines = []
    for i, epoch in enumerate(epochs):
        norms = [float(n) for n in trajectory["norms"][i]]
        cells = [str(epoch), *(percent_text(trajectory[n][i]) for n in names)]
        cells += [f"{min(norms):.3f}", f"{max(norms):.3f}"] if norms else [DASH, DASH]
        if epoch == trajectory["chosen"]:
            cells = [f"**{cell}**" for cell in cells]
            cells[0] += f" (chosen on {where})"
        lines.append(cells)
    return markdown_table(head, ["---", *["---:"] * (len(head) - 1)], lines)


def _as_list(trajectory: Any) -> list[Mapping[str, Any]]:
    if trajectory is None:
        return []
    return [trajectory] if isinstance(trajectory, Mapping) else list(trajectory)
