"""The Markdown report of a run."""

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from ltlearn.errors import UserError
from ltlearn.metrics.shots import SHOTS, shot_groups, shot_thresholds_text
from ltlearn.names import tested_images
from ltlearn.reporting.classes import ClassTable
from ltlearn.reporting.table import ResultTable
from ltlearn.reporting.text import (
    as_sentence,
    markdown_list,
    markdown_table,
)
from ltlearn.utils.terminal import one_line
from ltlearn.utils.text import DASH, escape_markdown, percent_text

__all__ = [
    "CLASSES_FILE",
    "counts_paragraph",
    "describe_protocol",
    "protocol_paragraph",
    "render_report_md",
]

CLASSES_FILE = "classes.csv"
# The hardware that `environment_info` records, and its titles.
_HARDWARE = {
    "device": "device", "cpu_count": "processor cores", "threads": "threads of torch",
    "platform": "platform",
}  # fmt: skip


def render_report_md(
    table: ResultTable,
    manifest: Mapping[str, Any],
    plots: Sequence[tuple[str, str]],
    trajectories: Sequence[Mapping[str, Any]] | None,
    classes: ClassTable | None = None,
) -> str:
    """Write the report.md of a run: its command, results, protocol, trajectories and plots.

    Args:
        table: The results.
        manifest: The manifest of the run. The report reads title, command, class_counts,
            training_images, validation_images, inputs and the facts of `environment_info`.
        plots: Title and path of each plot; the path is relative to the report.
        trajectories: The trajectory of stage 2 for each seed, as for
            `ltlearn.plots.plot_trajectory`. None if no method was trained in stage 2.
        classes: The accuracy of each class; the file `classes.csv` beside the report has all of
            them.

    Raises:
        UserError: If the lists of a trajectory differ in length, or its chosen epoch is unknown.
    """
    parts = [f"# {one_line(manifest['title'])}"]
    if manifest["command"]:
        parts += ["Produced by:", f"```\n{manifest['command']}\n```"]
    parts += ["## Results", table.to_markdown()]
    parts += ["## Protocol", protocol_paragraph(table)]
    if classes is not None:
        parts += ["## Accuracy of each class", classes.to_markdown(CLASSES_FILE)]
    paragraph = counts_paragraph(manifest["class_counts"], table.few_rule)
    if table.protocol != "paper":
        paragraph += (
            f" {manifest['training_images']:,} of them were used for training, "
            f"{manifest['validation_images']:,} for validation."
        )
    parts += ["## Training images", paragraph]
    if manifest.get("inputs"):
        lines = [escape_markdown(one_line(line)) for line in manifest["inputs"]]
        parts += ["## Input and output of the model", markdown_list(lines)]
    if trajectories:
        parts += _trajectory_section(trajectories, table.seeds)
    if plots:
        parts.append("## Plots")
        for name, path in plots:
            url = quote(str(path).replace("\\", "/"))
            parts += [f"### {one_line(name)}", f"![{escape_markdown(name)}]({url})"]
    facts = [f"{name}: {version}" for name, version in manifest["versions"].items()]
    facts += [f"{title}: {manifest[key]}" for key, title in _HARDWARE.items() if manifest.get(key)]
    parts += ["## Versions and hardware", markdown_list(facts)]
    return "\n\n".join(parts) + "\n"


def protocol_paragraph(table: ResultTable) -> str:
    """Describe the protocol of a table."""
    return describe_protocol(
        table.protocol, table.protocol_text, table.is_carved, table.averages_flips
    )


def describe_protocol(protocol: str, text: str, is_carved: bool, averages_flips: bool) -> str:
    """Describe a protocol in a paragraph.

    Args:
        protocol: "clean", "paper" or "untested".
        text: Its short description, from `ResultTable.protocol_text`.
        is_carved: Whether the validation images were taken from the training images.
        averages_flips: Whether the paper protocol averaged the logits of mirror images.
    """
    origin = "The validation images are those of the dataset."
    if is_carved:
        origin = "The validation images were taken from the training images before stage 1."
    flips = ", and the logits of each image and its mirror image were averaged"
    flips = flips if averages_flips else ""
    choices = {
        "clean": (
            f"{origin} All choices, also the epoch, were made on them by class-balanced accuracy. "
            "The test set was read once, at the end."
        ),
        "paper": (
            f"The epoch was selected on test, as for the published figures{flips}. Accuracy "
            "selected on test is optimistic: compare it with published figures, not with the clean "
            "protocol."
        ),
        "untested": (
            "All choices, also the epoch, were made on the validation images by class-balanced "
            "accuracy, and there are no other images to test on: add a test folder with images "
            "that were not used for any choice."
        ),
    }[protocol]
    part = tested_images(protocol)
    return (
        f"{as_sentence(text)} {choices} A group's accuracy is the mean of its "
        f"per-class accuracies; a dash means that no class of the group has {part} images. "
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


def _trajectory_section(
    trajectories: Sequence[Mapping[str, Any]], seeds: Sequence[int]
) -> list[str]:
    parts = [
        "## Stage 2, epoch by epoch",
        "Epoch 0 is the model before the first step. The epoch that is kept is in bold. Norms are "
        "those of the classifier's rows.",
    ]
    for seed, trajectory in zip(seeds, trajectories, strict=True):
        if len(trajectories) > 1:
            parts.append(f"### Seed {seed}")
        parts.append(_trajectory_table(trajectory))
    return parts


def _trajectory_table(trajectory: Mapping[str, Any]) -> str:
    epochs, chosen = trajectory["epoch"], trajectory["chosen"]
    for name in ("balanced", "all", *SHOTS, "norms"):
        if len(trajectory[name]) != len(epochs):
            raise UserError(
                f"the trajectory has {len(epochs)} epochs but {len(trajectory[name])} values of "
                f"{name!r}."
            )
    if chosen not in epochs:
        raise UserError(f"the chosen epoch {chosen} of the trajectory is not one of its epochs.")
    where = trajectory["select_on"]
    names = ("balanced", "all", *SHOTS)
    head = ["epoch", *(f"{where} {n} %" for n in names), "smallest norm", "largest norm"]
    lines = []
    for i, epoch in enumerate(epochs):
        norms = trajectory["norms"][i]
        cells = [str(epoch), *(percent_text(trajectory[n][i]) for n in names)]
        cells += [f"{min(norms):.3f}", f"{max(norms):.3f}"] if norms else [DASH, DASH]
        if epoch == chosen:
            cells = [f"**{cell}**" for cell in cells]
            is_last = trajectory.get("select") == "last"
            cells[0] += " (the last is kept)" if is_last else f" (chosen on {where})"
        lines.append(cells)
    return markdown_table(head, ["---", *["---:"] * (len(head) - 1)], lines)
