"""Write an `Inspection` as text, Markdown and files."""

import json
import os
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import numpy as np

from ltlearn.data.class_names import similar_text
from ltlearn.data.opening import HEIF_INSTALL, HEIF_SUFFIXES
from ltlearn.data.readers.columns import columns_text
from ltlearn.errors import UserError, spell
from ltlearn.inspection.text import (
    MAX_NAMED,
    TEXT_WIDTH,
    break_line,
    more_line,
    name_some,
    share_text,
    size_text,
)
from ltlearn.metrics.shots import shot_thresholds_text
from ltlearn.names import PART_LABELS, PROBE
from ltlearn.utils.atomic import replaced_file
from ltlearn.utils.html import html_code, html_details, html_table
from ltlearn.utils.system_errors import reason_of
from ltlearn.utils.text import clean, escape_markdown

if TYPE_CHECKING:
    from ltlearn.inspection.result import CopyGroup, Inspection

__all__ = ["BLOCK", "finding_rows", "save", "to_html", "to_markdown", "to_text", "write_text"]

BLOCK = "█"
_MAX_EXAMPLES = 3  # groups of copies
_CONVERSIONS = {
    "alpha": "transparency is dropped",
    "16 bit": "the upper 8 of 16 bits are kept",
    "animated": "the first frame of an animation is kept",
    "EXIF-rotated": "images are turned upright",
}


def to_text(inspection: "Inspection", command: str | None) -> str:
    """Return an inspection as text of at most 80 columns, without a trailing newline.

    Args:
        inspection: The inspection.
        command: The shell command that trains as advised, or None.
    """
    rows = [(topic, text.splitlines()) for topic, text in finding_rows(inspection)]
    left = max(len(topic) for topic, _ in rows) + 2
    lines = [clean(inspection.name)]
    for topic, text in rows:
        for i, line in enumerate(text):
            # The continuation of a list entry is indented further than the entry.
            indent = " " * (len(line) - len(line.lstrip()))
            wrapped = textwrap.wrap(
                line.strip(), TEXT_WIDTH - left, initial_indent=indent, break_on_hyphens=False,
                subsequent_indent=indent and indent + "  ",
            ) or [""]  # fmt: skip
            start = topic if i == 0 else ""
            lines += [f"{start if j == 0 else '':{left}}{w}" for j, w in enumerate(wrapped)]
    lines += ["", *_histogram_lines(inspection)]
    if inspection.advice:
        if command:
            lines += ["", "On the command line:", "", *break_line(command)]
        lines += ["", "Or in Python:" if command else "In Python:", ""]
        lines += inspection.advice.code.splitlines()
    return "\n".join(line.rstrip() for line in lines)


def to_markdown(inspection: "Inspection", command: str | None) -> str:
    """Return an inspection as Markdown, with a trailing newline.

    Args:
        inspection: The inspection.
        command: The shell command that trains as advised, or None.
    """
    body = ["| | |", "| --- | --- |"]
    for topic, text in finding_rows(inspection):
        cell = "<br>".join(escape_markdown(line) for line in text.splitlines())
        body.append(f"| {topic} | {cell} |")
    bins = ["| training images | classes | shot group |", "| ---: | ---: | --- |"]
    bins += [f"| {label} | {n:,} | {group} |" for label, n, group in inspection.histogram()]
    sections = [f"# {escape_markdown(clean(inspection.name))}", "\n".join(body), "\n".join(bins)]
    if inspection.advice:
        sections += [f"```\n{command}\n```"] if command else []
        sections.append(f"```python\n{inspection.advice.code}\n```")
    return "\n\n".join(sections) + "\n"


def to_html(inspection: "Inspection") -> str:
    """Return an inspection as HTML for a notebook.

    Args:
        inspection: The inspection.
    """
    html = html_table([], finding_rows(inspection), inspection.name, left=2)
    head = ["training images", "classes", "shot group"]
    html += html_details("histogram", html_table(head, inspection.histogram(), left=0))
    if inspection.advice:
        html += html_details("how to train", html_code(inspection.advice.code))
    return html


def save(inspection: "Inspection", folder: Path, command: str | None) -> None:
    """Write `inspection.md`, `inspection.json` and `class_counts.png`.

    Args:
        inspection: The inspection.
        folder: The folder; it is created if it is missing.
        command: The shell command that trains as advised, or None.

    Raises:
        UserError: If the folder cannot be written to.
    """
    from ltlearn.plots.classes import plot_class_counts

    names = [clean(name) for name in inspection.classes]
    figure = plot_class_counts(inspection.counts["train"], names, inspection.few)
    text = to_markdown(inspection, command) + "\n![Training images per class](class_counts.png)\n"
    content = json.dumps(inspection.to_dict(command), indent=1)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(
            f"cannot write to {folder} ({reason_of(e)}); give another folder."
        ) from None
    for name, written in (("inspection.md", text), ("inspection.json", content)):
        with _replaced(folder / name) as file:
            file.write(written.encode("utf-8", "backslashreplace"))
    with _replaced(folder / "class_counts.png") as file:
        figure.savefig(file, format="png")


def _replaced(path: Path):
    return replaced_file(path, remedy="give another folder")


def write_text(inspection: "Inspection", file: TextIO | None, command: str | None) -> None:
    """Write the text to a stream, in characters that its encoding has.

    Args:
        inspection: The inspection.
        file: The stream; None writes to standard output.
        command: The shell command that trains as advised, or None.
    """
    file = sys.stdout if file is None else file
    encoding = getattr(file, "encoding", None) or "utf-8"
    text = to_text(inspection, command)
    try:
        text.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        text = text.replace(BLOCK, "#").encode("ascii", "backslashreplace").decode()
    file.write(text + "\n")


def finding_rows(inspection: "Inspection") -> list[tuple[str, str]]:
    """Return the findings as pairs (topic, text); a text may have several lines.

    Args:
        inspection: The inspection.
    """
    formats = ", ".join(f"{k} {n:,}" for k, n in inspection.formats.items())
    ignored = [f"{n:,} {suffix or 'without extension'}" for suffix, n in inspection.ignored.items()]
    # A topic without text is left out.
    rows = [
        ("images", _counts_text(inspection)),
        ("classes", _classes_text(inspection)),
        ("similar names", _similar_text(inspection)),
        ("columns", columns_text(inspection.columns)),
        ("ignored columns", name_some(inspection.ignored_columns)),
        ("no training image", name_some(inspection.with_images(0))),
        ("one training image", name_some(inspection.with_images(1))),
        ("not in training", name_some(inspection.untrained())),
        ("shot groups", shot_thresholds_text(inspection.few, inspection.group_sizes)),
        ("size in pixels", _sizes_text(inspection)),
        ("file formats", formats or "no image can be read"),
        ("stored as", _kinds_text(inspection)),
        ("unreadable", _unreadable_text(inspection)),
        ("ignored files", "\n".join([name_some(ignored), *_heif_lines(inspection)])),
        ("duplicates", _duplicates_text(inspection)),
        ("advice", _advice_text(inspection)),
        *(("problem", sentence) for sentence in inspection.problems),
    ]
    return [(topic, text) for topic, text in rows if text]


def _heif_lines(inspection: "Inspection") -> list[str]:
    if not HEIF_SUFFIXES & inspection.ignored.keys():
        return []
    return [f"to read HEIC images, install pillow-heif: {HEIF_INSTALL}"]


def _counts_text(inspection: "Inspection") -> str:
    counts = {PART_LABELS[part]: sum(counts) for part, counts in inspection.counts.items()}
    parts = ", ".join(f"{label} {n:,}" for label, n in counts.items())
    carved = "" if "valid" in inspection.counts else "; validation is carved off training"
    return f"{inspection.total:,}{': ' + parts if len(counts) > 1 else ''}{carved}"


def _classes_text(inspection: "Inspection") -> str:
    counts = np.asarray(inspection.counts["train"])
    n_classes = f"{len(inspection.classes):,}"
    if not counts.any():
        return n_classes
    smallest = int(np.where(counts > 0, counts, counts.max()).argmin())
    largest = int(counts.argmax())
    least, most = f"{counts[smallest]:,}", f"{counts[largest]:,} training images"
    if counts[smallest] == counts[largest]:
        if counts.all():
            return f"{n_classes}, each with {most}: balanced"
        filled = int((counts > 0).sum())
        return f"{n_classes}: {filled:,} with {most}, {len(counts) - filled:,} with none"
    names = clean(inspection.classes[largest]), clean(inspection.classes[smallest])
    return (
        f"{n_classes}, from {most} ({names[0]}) to {least} ({names[1]}): imbalance factor "
        f"{inspection.imbalance_factor:,.4g}"
    )


def _similar_text(inspection: "Inspection") -> str:
    similar = inspection.similar()
    return f"{similar_text(similar)}\nif they mean one class, give them one name" if similar else ""


def _sizes_text(inspection: "Inspection") -> str:
    sizes = inspection.sizes
    if sizes is None:
        return "no image can be read"
    if sizes.different == 1:
        return f"all {size_text(sizes.median)}"
    return (
        f"smallest {size_text(sizes.smallest)}, median {size_text(sizes.median)}, largest "
        f"{size_text(sizes.largest)}; {sizes.different:,} sizes"
    )


def _kinds_text(inspection: "Inspection") -> str:
    readable = inspection.total - len(inspection.unreadable)
    if not inspection.kinds:
        return "8-bit RGB, all of them" if readable else "–"
    shares = ", ".join(
        f"{k} {n:,} ({share_text(n, readable)})" for k, n in inspection.kinds.items()
    )
    notes = [note for kind, note in _CONVERSIONS.items() if kind in inspection.kinds]
    if inspection.bits < 16:
        values = f"values of 16-bit images take {inspection.bits} bits, which are scaled to 8"
        notes = [values if note == _CONVERSIONS["16 bit"] else note for note in notes]
    return "; ".join([f"{shares}\nread as 8-bit RGB", *notes])


def _unreadable_text(inspection: "Inspection") -> str:
    checked = "only headers were read" if inspection.quick else "every image was decoded"
    if not inspection.unreadable:
        return f"none; {checked}"
    remedy = f"to train without them, give {spell('skip_bad', True)}"
    checked = f"; {checked}" if inspection.quick else ""
    lines = [f"{len(inspection.unreadable):,}; {remedy}{checked}"]
    for image in inspection.unreadable[:MAX_NAMED]:
        lines.append(f"  {_short_path(inspection, image.path)}: {clean(image.reason)}")
    return "\n".join(lines + more_line(len(inspection.unreadable)))


def _short_path(inspection: "Inspection", path: str) -> str:
    """Return a path without the folder of the dataset."""
    return clean(path.removeprefix(os.path.join(inspection.name, "")))


def _duplicates_text(inspection: "Inspection") -> str:
    copies = inspection.duplicates
    if copies is None:
        return "not searched"
    if not copies.groups:
        return "none among the pixels that training reads"
    same = sum(group.same_file for group in copies.groups)
    conflicts = f"{copies.conflicts:,} groups ({copies.conflict_images:,} images)"
    lines = [
        f"{len(copies.groups):,} groups with equal pixels, {same:,} of them with equal files",
        f"within a class of a part: {copies.copies_within:,} images beyond the first",
        f"label conflicts, one image in two classes: {conflicts}",
    ]
    lines += _example_lines(inspection, lambda group: len(set(group.classes)) > 1)
    for part, n in copies.leaks.items():
        share = share_text(n, sum(inspection.counts[part]))
        lines.append(f"leaks: {n:,} {PART_LABELS[part]} images ({share}) are also in training")
    if copies.across_parts:
        lines += _example_lines(inspection, lambda group: len(set(group.parts)) > 1)
    return "\n".join(lines)


def _example_lines(inspection: "Inspection", choose: Callable[["CopyGroup"], bool]) -> list[str]:
    groups = [group for group in inspection.duplicates.groups if choose(group)]
    lines = []
    for group in groups[:_MAX_EXAMPLES]:
        # One path per class and part is enough to see the conflict.
        kept: dict[tuple[str, str], str] = {}
        for path, part, name in zip(group.paths, group.parts, group.classes, strict=True):
            kept.setdefault((part, name), path)
        shown = [_short_path(inspection, path) for path in kept.values()]
        more = f" and {len(shown) - 2:,} more" if len(shown) > 2 else ""
        lines.append(f"  {' = '.join(shown[:2])}{more}")
    return lines + more_line(len(groups), _MAX_EXAMPLES)


def _advice_text(inspection: "Inspection") -> str:
    advice = inspection.advice
    if advice is None:
        return ""
    start = "from pre-trained weights" if advice.pretrained else "from random weights"
    then = f"batches of {advice.batch_size}; then {advice.method}: {advice.reason}"
    if advice.stage1 == PROBE:
        return (
            f"{advice.size} pixels, {advice.arch} {start}, a linear probe on its features in "
            f"minutes: {advice.stage1_reason}\n{advice.epochs} epochs on features with {then}"
        )
    return (
        f"{advice.size} pixels, {advice.arch} {start}, {advice.epochs} epochs of stage 1 with "
        f"{then}"
    )


def _histogram_lines(inspection: "Inspection") -> list[str]:
    rows = inspection.histogram()
    if not rows:
        return []
    left = max(len("training images"), *(len(label) for label, _, _ in rows))
    most = max(n for _, n, _ in rows)
    room = TEXT_WIDTH - left - 22
    lines = [f"{'training images':>{left}}  classes"]
    for label, n, group in rows:
        # Even a single class gets a mark.
        bar = BLOCK * max(round(room * n / most), int(n > 0))
        lines.append(f"{label:>{left}}  {n:>7,}  {group:<6}  {bar}")
    return lines
