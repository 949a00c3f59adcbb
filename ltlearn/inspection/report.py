"""`Inspection`: the result of an inspection, as text and Markdown."""

import json
import os
import sys
import textwrap
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from ltlearn.data.counts import count_classes, imbalance_factor_of
from ltlearn.errors import UserError
from ltlearn.inspection.text import (
    MAX_NAMED,
    PART_LABELS,
    TEXT_WIDTH,
    break_line,
    escape_markdown,
    more_line,
    name_some,
    share_text,
    size_text,
)
from ltlearn.metrics.shots import shot_groups, shot_thresholds_text
from ltlearn.utils.progress import duration
from ltlearn.utils.text import clean as _clean

__all__ = ["Duplicates", "Advice", "Timing", "Inspection"]

PARTS = ("train", "valid", "test")
KINDS = ("greyscale", "palette", "alpha", "CMYK", "16 bit", "animated", "EXIF-rotated")


@dataclass
class Duplicates:
    """Images that are the same, pixel by pixel, as training sees them.

    Args:
        groups: Each group of copies: its paths, parts, classes, and whether all files are the same
            byte by byte.
        copies_within: Images beyond the first of a group, in one class of one part.
        conflicts: Groups that have two or more labels.
        conflict_images: Images in those.
        leaks: Part to its images that are among the training images too.
        across_parts: Groups in two or more parts.
    """

    groups: list[dict[str, Any]] = field(default_factory=list)
    copies_within: int = 0
    conflicts: int = 0
    conflict_images: int = 0
    leaks: dict[str, int] = field(default_factory=dict)
    across_parts: int = 0


@dataclass
class Advice:
    """A way to begin with these images.

    Args:
        size: Side in pixels that images are brought to.
        arch: A name of `timm.list_models()`, or a CIFAR ResNet.
        pretrained: Whether to start from timm's weights.
        epochs: Of stage 1.
        batch_size: Images a batch.
        method: How to get the classifier, a name of `ltlearn.methods.METHODS`.
        reason: Why this method, in a sentence.
        code: Python that does it.
        command: The command that does it and writes a report; None where there is none.
    """

    size: int
    arch: str
    pretrained: bool
    epochs: int
    batch_size: int
    method: str
    reason: str
    code: str
    command: str | None = None


@dataclass
class Timing:
    """How long the advice would take here: an estimate from a few measured steps.

    Args:
        total_s: Of stage 1, validation after each epoch and the features of stage 2.
        step_s: Of a training step, reading included.
        reading_s: Of it, to read and augment the images; 0 where all fit in memory.
        steps: Steps of stage 1.
        measured_steps: Steps that were timed.
        measured_batch: Images in each of them.
        device: Where.
        precision: The number format, as `LTLearner` chose it.
    """

    total_s: float
    step_s: float
    reading_s: float
    steps: int
    measured_steps: int
    measured_batch: int
    device: str
    precision: str


@dataclass
class Inspection:
    """What `inspect_images` found; prints as text for 80 columns.

    Args:
        name: What the images are called.
        classes: Class names in label order.
        counts: Part ("train", "valid", "test") to its images per class.
        few: The few-shot convention.
        quick: Whether headers alone were read.
        sizes: "smallest", "median", "largest" by area: (width, height) upright; "different": how
            many sizes there are; empty where no image can be read.
        formats: File format to images.
        kinds: What is stored, such as "greyscale" or "CMYK", to images.
        unreadable: A path, part, class and reason for each image that cannot be read.
        seconds: What reading all images took.
        duplicates: None where they were not looked for.
        advice: None where the images cannot be trained on.
        timing: None where it was not measured.
        columns: Of a table: what was read from which.
        ignored: Extension to files in the class folders that are taken for no images.
        stops: Why the images cannot be trained on, a sentence each.
    """

    name: str
    classes: list[str]
    counts: dict[str, list[int]]
    few: str = "<20"
    quick: bool = False
    sizes: dict[str, Any] = field(default_factory=dict)
    formats: dict[str, int] = field(default_factory=dict)
    kinds: dict[str, int] = field(default_factory=dict)
    unreadable: list[dict[str, str]] = field(default_factory=list)
    seconds: float = 0.0
    duplicates: Duplicates | None = None
    advice: Advice | None = None
    timing: Timing | None = None
    columns: dict[str, str] = field(default_factory=dict)
    ignored: dict[str, int] = field(default_factory=dict)
    stops: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        """Count the images of all parts."""
        return sum(map(sum, self.counts.values()))

    @property
    def imbalance_factor(self) -> float:
        """Return the largest training count over the smallest that is not zero."""
        return imbalance_factor_of(count_classes(self._labels("train"), len(self.classes)))

    @property
    def group_sizes(self) -> dict[str, int]:
        """Count the classes of each shot group."""
        groups = shot_groups(self.counts["train"], self.few)
        return {name: int(mask.sum()) for name, mask in groups.items()}

    def with_images(self, number: int, part: str = "train") -> list[str]:
        """Name the classes that have so many images in a part.

        Args:
            number: How many.
            part: "train", "valid" or "test".
        """
        return [c for c, n in zip(self.classes, self.counts[part], strict=True) if n == number]

    def untrained(self) -> list[str]:
        """Name the classes that are in validation or test, but not in training."""
        later = [counts for part, counts in self.counts.items() if part != "train"]
        return [
            name
            for c, name in enumerate(self.classes)
            if not self.counts["train"][c] and any(counts[c] for counts in later)
        ]

    def histogram(self) -> list[tuple[str, int, str]]:
        """Count the classes per range of training images: (range, classes, shot group)."""
        counts = np.asarray(self.counts["train"])
        first_medium = 20 if self.few == "<20" else 21
        # 1-2-5 steps, moved to where the shot groups part.
        starts = [0, 1, 2, 5, 10, first_medium, 50, 101, 200, 500]
        steps = (k * 10**e for e in range(3, 19) for k in (1, 2, 5))
        while starts[-1] <= counts.max(initial=0):
            starts.append(next(steps))
        rows = []
        for low, end in zip(starts, starts[1:], strict=False):
            n = int(((counts >= low) & (counts < end)).sum())
            group = "many" if low > 100 else "medium" if low >= first_medium else "few"
            rows.append((f"{low:,}" if end == low + 1 else f"{low:,}-{end - 1:,}", n, group))
        filled = [i for i, row in enumerate(rows) if row[1]]
        return rows[filled[0] : filled[-1] + 1] if filled else []

    def rows(self) -> list[tuple[str, str]]:
        """List what was found as (what, text); a text may have several lines."""
        named = self._common_folder()
        rows = [("images", self._counts_text()), ("classes", self._classes_text())]
        if self.columns:
            from ltlearn.data.readers.tables import columns_text

            rows.append(("columns", columns_text(self.columns)))
        if self.with_images(0):
            rows.append(("no training image", name_some(self.with_images(0))))
        if self.with_images(1):
            rows.append(("a single one", name_some(self.with_images(1))))
        if self.untrained():
            rows.append(("not in training", name_some(self.untrained())))
        groups = shot_thresholds_text(self.few, self.group_sizes)
        rows.append(("shot groups", groups))
        rows.append(("size in pixels", self._sizes_text()))
        stored = ", ".join(f"{k} {n:,}" for k, n in self.formats.items())
        rows.append(("file formats", stored or "none can be read"))
        rows.append(("stored as", self._kinds_text()))
        rows.append(("unreadable", self._unreadable_text(named)))
        if self.ignored:
            kinds = [f"{n:,} {suffix or 'without extension'}" for suffix, n in self.ignored.items()]
            rows.append(("ignored files", name_some(kinds)))
        rows.append(("copies", self._duplicates_text(named)))
        if self.advice:
            rows.append(("to begin with", self._advice_text()))
        if self.timing:
            rows.append(("time here", self._timing_text()))
        rows += [("cannot be trained", reason) for reason in self.stops]
        return rows

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain numbers, lists and None, as `json.dump` wants them."""
        return {
            "name": self.name,
            "images": {part: sum(counts) for part, counts in self.counts.items()},
            "classes": self.classes,
            "counts": self.counts,
            "imbalance_factor": self.imbalance_factor,
            "few_rule": self.few,
            "shot_groups": self.group_sizes,
            "no_training_image": self.with_images(0),
            "single_training_image": self.with_images(1),
            "not_in_training": self.untrained(),
            "histogram": [dict(zip(_HISTOGRAM, row, strict=True)) for row in self.histogram()],
            "headers_only": self.quick,
            "sizes": self.sizes,
            "formats": self.formats,
            "kinds": self.kinds,
            "unreadable": self.unreadable,
            "columns": self.columns,
            "ignored": self.ignored,
            "reading_s": self.seconds,
            "duplicates": asdict(self.duplicates) if self.duplicates else None,
            "advice": asdict(self.advice) if self.advice else None,
            "timing": asdict(self.timing) if self.timing else None,
            "stops": self.stops,
        }

    def to_text(self) -> str:
        """Return what was found as text of at most 80 columns, without a trailing newline."""
        rows = [(what, text.splitlines()) for what, text in self.rows()]
        left = max(len(what) for what, _ in rows) + 2
        lines = [_clean(self.name)]
        for what, text in rows:
            for i, line in enumerate(text):
                # An indented line is one of a list; what does not fit stands deeper.
                inner = " " * (len(line) - len(line.lstrip()))
                wrapped = textwrap.wrap(
                    line.strip(), TEXT_WIDTH - left, initial_indent=inner, break_on_hyphens=False,
                    subsequent_indent=inner and inner + "  ",
                ) or [""]  # fmt: skip
                start = what if i == 0 else ""
                lines += [f"{start if j == 0 else '':{left}}{w}" for j, w in enumerate(wrapped)]
        lines += ["", *self._histogram_lines()]
        if self.advice and self.advice.command:
            lines += ["", "On the command line:", "", *break_line(self.advice.command)]
        if self.advice:
            lines += ["", "Or in Python:" if self.advice.command else "In Python:", ""]
            lines += self.advice.code.splitlines()
        return "\n".join(line.rstrip() for line in lines)

    def to_markdown(self) -> str:
        """Return what was found as Markdown, with a trailing newline."""
        body = ["| | |", "| --- | --- |"]
        for what, text in self.rows():
            cell = "<br>".join(escape_markdown(line.strip()) for line in text.splitlines())
            body.append(f"| {what} | {cell} |")
        bins = ["| training images | classes | shot group |", "| ---: | ---: | --- |"]
        bins += [f"| {label} | {n:,} | {group} |" for label, n, group in self.histogram()]
        parts = [f"# {escape_markdown(_clean(self.name))}", "\n".join(body), "\n".join(bins)]
        if self.advice and self.advice.command:
            parts.append(f"```\n{self.advice.command}\n```")
        if self.advice:
            parts.append(f"```python\n{self.advice.code}\n```")
        return "\n\n".join(parts) + "\n"

    def save(self, folder: Path) -> None:
        """Write `inspection.md`, `inspection.json` and `class_counts.png`.

        Args:
            folder: Made if it is not there.

        Raises:
            UserError: If it cannot be written to.
        """
        from ltlearn.plots.classes import plot_class_counts

        names = [_clean(name) for name in self.classes]
        figure = plot_class_counts(self.counts["train"], names, self.few)
        text = self.to_markdown() + "\n![Training images per class](class_counts.png)\n"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "inspection.md").write_text(text, "utf-8", "backslashreplace")
            found = json.dumps(self.to_dict(), indent=1)
            (folder / "inspection.json").write_text(found, "utf-8")
            figure.savefig(folder / "class_counts.png")
        except OSError as e:
            raise UserError(f"cannot write to {folder} ({e.strerror}); give another.") from None

    def render(self, file: TextIO | None = None) -> None:
        """Write the text.

        Args:
            file: Where to write; standard output if None.
        """
        file = sys.stdout if file is None else file
        encoding = getattr(file, "encoding", None) or "utf-8"
        text = self.to_text()
        try:
            text.encode(encoding)
        except (UnicodeEncodeError, LookupError):
            text = text.replace(_BLOCK, "#").encode("ascii", "backslashreplace").decode()
        file.write(text + "\n")

    def __str__(self) -> str:
        """Return the text."""
        return self.to_text()

    def _labels(self, part: str) -> np.ndarray:
        return np.repeat(np.arange(len(self.classes)), self.counts[part])

    def _common_folder(self) -> str:
        """Return what paths are printed without: the images' folder."""
        return os.path.join(self.name, "")

    def _counts_text(self) -> str:
        parts = ", ".join(f"{PART_LABELS[p]} {sum(counts):,}" for p, counts in self.counts.items())
        carved = "" if "valid" in self.counts else "; validation is carved off training"
        return f"{self.total:,}{': ' + parts if len(self.counts) > 1 else ''}{carved}"

    def _classes_text(self) -> str:
        counts = np.asarray(self.counts["train"])
        if not counts.any():
            return f"{len(self.classes):,}"
        least = int(np.where(counts > 0, counts, counts.max()).argmin())
        most = int(counts.argmax())
        if counts[least] == counts[most] and counts.all():
            return f"{len(self.classes):,}, each of {counts[most]:,} training images: balanced"
        if counts[least] == counts[most]:
            n = int((counts > 0).sum())
            return (
                f"{len(self.classes):,}: {n:,} of {counts[most]:,} training images, "
                f"{len(self.classes) - n:,} of none"
            )
        return (
            f"{len(self.classes):,}, from {counts[most]:,} training images "
            f"({_clean(self.classes[most])}) to {counts[least]:,} "
            f"({_clean(self.classes[least])}): imbalance factor {self.imbalance_factor:,.4g}"
        )

    def _sizes_text(self) -> str:
        if not self.sizes:
            return "no image can be read"
        if self.sizes["different"] == 1:
            return f"all {size_text(self.sizes['median'])}"
        spread = ", ".join(
            f"{k} {size_text(self.sizes[k])}" for k in ("smallest", "median", "largest")
        )
        return f"{spread}; {self.sizes['different']:,} sizes"

    def _kinds_text(self) -> str:
        good = self.total - len(self.unreadable)
        if not self.kinds:
            return "8-bit RGB, all of them" if good else "–"
        shares = ", ".join(f"{k} {n:,} ({share_text(n, good)})" for k, n in self.kinds.items())
        done = {
            "alpha": "transparency is dropped",
            "16 bit": "of 16 bits the upper 8 are kept",
            "animated": "of an animation the first frame",
            "EXIF-rotated": "turned upright",
        }
        notes = [note for kind, note in done.items() if kind in self.kinds]
        return f"{shares}\nread as 8-bit RGB" + "".join(f"; {note}" for note in notes)

    def _unreadable_text(self, folder: str) -> str:
        checked = "by their headers" if self.quick else "every image was decoded"
        if not self.unreadable:
            return f"none; {checked}" if not self.quick else f"none, {checked}"
        lines = [f"{len(self.unreadable):,}, which skip_bad=True leaves out; {checked}"]
        for bad in self.unreadable[:MAX_NAMED]:
            lines.append(f"  {_clean(bad['path'].removeprefix(folder))}: {_clean(bad['reason'])}")
        return "\n".join(lines + more_line(len(self.unreadable)))

    def _duplicates_text(self, folder: str) -> str:
        found = self.duplicates
        if found is None:
            return "not looked for"
        if not found.groups:
            return "none, by pixels as training sees them"
        same = sum(g["same_file"] for g in found.groups)
        lines = [
            f"{len(found.groups):,} groups of the same pixels, {same:,} of them the same files"
        ]
        lines.append(f"within a class: {found.copies_within:,} images beyond the first")
        labels = f"{found.conflicts:,} groups ({found.conflict_images:,} images)"
        lines.append(f"label conflicts, one image in two classes: {labels}")
        lines += self._examples(lambda g: len(set(g["classes"])) > 1, folder)
        for part, n in found.leaks.items():
            share = share_text(n, sum(self.counts[part]))
            lines.append(f"leaks: {n:,} {PART_LABELS[part]} images ({share}) are in training too")
        if found.across_parts:
            lines += self._examples(lambda g: len(set(g["parts"])) > 1, folder)
        return "\n".join(lines)

    def _examples(self, wanted, folder: str, most: int = 3) -> list[str]:
        groups = [g for g in self.duplicates.groups if wanted(g)]
        lines = []
        for group in groups[:most]:
            # One path of each class and part says it.
            kept = {}
            for path, part, name in zip(
                group["paths"], group["parts"], group["classes"], strict=True
            ):
                kept.setdefault((part, name), path)
            shown = [_clean(path.removeprefix(folder)) for path in kept.values()]
            more = f" and {len(shown) - 2:,} more" if len(shown) > 2 else ""
            lines.append(f"  {' = '.join(shown[:2])}{more}")
        return lines + more_line(len(groups), most)

    def _advice_text(self) -> str:
        a = self.advice
        start = "pre-trained" if a.pretrained else "from random weights"
        return (
            f"{a.size} px, {a.arch} {start}, {a.epochs} epochs of stage 1, batches of "
            f"{a.batch_size}; then {a.method}: {a.reason}"
        )

    def _timing_text(self) -> str:
        t = self.timing
        reading = f", of it {t.reading_s:.2g} s to read images" if t.reading_s else ""
        return (
            f"about {duration(t.total_s)} on {t.device} in {t.precision}: {t.steps:,} steps of "
            f"{t.step_s:.2g} s{reading}. An estimate: timed on "
            f"{t.measured_steps:,} x {t.measured_batch} made-up images."
        )

    def _histogram_lines(self) -> list[str]:
        rows = self.histogram()
        if not rows:
            return []
        left = max(len("training images"), *(len(label) for label, _, _ in rows))
        most = max(n for _, n, _ in rows)
        room = TEXT_WIDTH - left - 22
        lines = [f"{'training images':>{left}}  classes"]
        for label, n, group in rows:
            # A class is never without a mark.
            bar = _BLOCK * max(round(room * n / most), int(n > 0))
            lines.append(f"{label:>{left}}  {n:>7,}  {group:<6}  {bar}")
        return lines


_HISTOGRAM = ("training_images", "classes", "shot_group")
_BLOCK = "█"
