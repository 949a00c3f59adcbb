"""What a user's pictures are like, before anything is trained: counts, damage, copies, advice."""

import hashlib
import json
import os
import re
import shlex
import stat
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from ltlearn.data.counts import count_classes, imbalance_factor_of
from ltlearn.data.sources import ImageSet, _as_rgb, find_class_folders
from ltlearn.errors import UserError, check_choice
from ltlearn.metrics import FEW_RULES, shot_groups, shot_thresholds_text
from ltlearn.progress import ProgressLine, duration
from ltlearn.text import clean as _clean

__all__ = ["Advice", "Duplicates", "Inspection", "Timing", "inspect_path", "inspect_pictures"]

PARTS = ("train", "valid", "test")
_SPOKEN = {"train": "training", "valid": "validation", "test": "test"}
KINDS = ("greyscale", "palette", "alpha", "CMYK", "16 bit", "animated", "EXIF-rotated")

_CHUNK = 64  # pictures a task: a future each would take more memory than what is found
_HASH_BYTES = 16
_MOST_THREADS = 8
_NAMED = 5  # of a list of classes or files, as many are printed; `to_dict` has all
_WIDTH = 80

# Own rules. From random weights: as many steps as `cifar10_lt` has. Pre-trained: a quarter of them.
_STEPS = {False: 40_000, True: 10_000}
_EPOCHS = {False: (20, 200), True: (10, 60)}
_BATCH = 64  # as every recipe has
_FORWARD = 1 / 3  # of the time of a training step
_BALANCED = 2.0  # imbalance factor below which there is nothing to correct
_MANY_CLASSES = 100
_VALID_PCT = 0.2  # of `LTDataLoaders.from_folder`
_LEAST_TO_CHOOSE_ON = 100  # validation images; fewer than a class each are not enough either


@dataclass
class Duplicates:
    """Pictures that are the same, pixel by pixel, as training sees them.

    Args:
        groups: Each group of copies: its paths, parts, classes, and whether all files are the same
            byte by byte.
        copies_within: Pictures beyond the first of a group, in one class of one part.
        conflicts: Groups that have two or more labels.
        conflict_pictures: Pictures in those.
        leaks: Part to its pictures that are among the training pictures too.
        across_parts: Groups in two or more parts.
    """

    groups: list[dict[str, Any]] = field(default_factory=list)
    copies_within: int = 0
    conflicts: int = 0
    conflict_pictures: int = 0
    leaks: dict[str, int] = field(default_factory=dict)
    across_parts: int = 0


@dataclass
class Advice:
    """A way to begin with these pictures.

    Args:
        size: Side in pixels that pictures are brought to.
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
        reading_s: Of it, to read and augment the pictures; 0 where all fit in memory.
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
    """What `inspect_pictures` found; prints as text for 80 columns.

    Args:
        name: What the pictures are called.
        classes: Class names in label order.
        counts: Part ("train", "valid", "test") to its pictures per class.
        few: The few-shot convention.
        quick: Whether headers alone were read.
        sizes: "smallest", "median", "largest" by area: (width, height) upright; "different": how
            many sizes there are; empty where no picture can be read.
        formats: File format to pictures.
        kinds: What is stored, such as "greyscale" or "CMYK", to pictures.
        unreadable: A path, part, class and reason for each picture that cannot be read.
        seconds: What reading all pictures took.
        duplicates: None where they were not looked for.
        advice: None where the pictures cannot be trained on.
        timing: None where it was not measured.
        columns: Of a table: what was read from which.
        ignored: Extension to files in the class folders that are taken for no pictures.
        stops: Why the pictures cannot be trained on, a sentence each.
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
        """Count the pictures of all parts."""
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
        """Name the classes that have so many pictures in a part.

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
        rows = [("pictures", self._counts_text()), ("classes", self._classes_text())]
        if self.columns:
            from ltlearn.data.tables import columns_text

            rows.append(("columns", columns_text(self.columns)))
        if self.with_images(0):
            rows.append(("no training image", _listed(self.with_images(0))))
        if self.with_images(1):
            rows.append(("a single one", _listed(self.with_images(1))))
        if self.untrained():
            rows.append(("not in training", _listed(self.untrained())))
        groups = shot_thresholds_text(self.few, self.group_sizes)
        rows.append(("shot groups", groups))
        rows.append(("size in pixels", self._sizes_text()))
        stored = ", ".join(f"{k} {n:,}" for k, n in self.formats.items())
        rows.append(("file formats", stored or "none can be read"))
        rows.append(("stored as", self._kinds_text()))
        rows.append(("unreadable", self._unreadable_text(named)))
        if self.ignored:
            kinds = [f"{n:,} {suffix or 'without extension'}" for suffix, n in self.ignored.items()]
            rows.append(("ignored files", _listed(kinds)))
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
            "pictures": {part: sum(counts) for part, counts in self.counts.items()},
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
                    line.strip(), _WIDTH - left, initial_indent=inner, break_on_hyphens=False,
                    subsequent_indent=inner and inner + "  ",
                ) or [""]  # fmt: skip
                start = what if i == 0 else ""
                lines += [f"{start if j == 0 else '':{left}}{w}" for j, w in enumerate(wrapped)]
        lines += ["", *self._histogram_lines()]
        if self.advice and self.advice.command:
            lines += ["", "On the command line:", "", *_broken(self.advice.command)]
        if self.advice:
            lines += ["", "Or in Python:" if self.advice.command else "In Python:", ""]
            lines += self.advice.code.splitlines()
        return "\n".join(line.rstrip() for line in lines)

    def to_markdown(self) -> str:
        """Return what was found as Markdown, with a trailing newline."""
        body = ["| | |", "| --- | --- |"]
        for what, text in self.rows():
            cell = "<br>".join(_escape(line.strip()) for line in text.splitlines())
            body.append(f"| {what} | {cell} |")
        bins = ["| training images | classes | shot group |", "| ---: | ---: | --- |"]
        bins += [f"| {label} | {n:,} | {group} |" for label, n, group in self.histogram()]
        parts = [f"# {_escape(_clean(self.name))}", "\n".join(body), "\n".join(bins)]
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
        from ltlearn.plots import plot_class_counts

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
        """Return what paths are printed without: the pictures' folder."""
        return os.path.join(self.name, "")

    def _counts_text(self) -> str:
        parts = ", ".join(f"{_SPOKEN[p]} {sum(counts):,}" for p, counts in self.counts.items())
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
            return "no picture can be read"
        if self.sizes["different"] == 1:
            return f"all {_by(self.sizes['median'])}"
        spread = ", ".join(f"{k} {_by(self.sizes[k])}" for k in ("smallest", "median", "largest"))
        return f"{spread}; {self.sizes['different']:,} sizes"

    def _kinds_text(self) -> str:
        good = self.total - len(self.unreadable)
        if not self.kinds:
            return "8-bit RGB, all of them" if good else "–"
        shares = ", ".join(f"{k} {n:,} ({_share(n, good)})" for k, n in self.kinds.items())
        done = {
            "alpha": "transparency is dropped",
            "16 bit": "of 16 bits the upper 8 are kept",
            "animated": "of an animation the first frame",
            "EXIF-rotated": "turned upright",
        }
        notes = [note for kind, note in done.items() if kind in self.kinds]
        return f"{shares}\nread as 8-bit RGB" + "".join(f"; {note}" for note in notes)

    def _unreadable_text(self, folder: str) -> str:
        checked = "by their headers" if self.quick else "every picture was decoded"
        if not self.unreadable:
            return f"none; {checked}" if not self.quick else f"none, {checked}"
        lines = [f"{len(self.unreadable):,}, which skip_bad=True leaves out; {checked}"]
        for bad in self.unreadable[:_NAMED]:
            lines.append(f"  {_clean(bad['path'].removeprefix(folder))}: {_clean(bad['reason'])}")
        return "\n".join(lines + _more(len(self.unreadable)))

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
        lines.append(f"within a class: {found.copies_within:,} pictures beyond the first")
        labels = f"{found.conflicts:,} groups ({found.conflict_pictures:,} pictures)"
        lines.append(f"label conflicts, one picture in two classes: {labels}")
        lines += self._examples(lambda g: len(set(g["classes"])) > 1, folder)
        for part, n in found.leaks.items():
            share = _share(n, sum(self.counts[part]))
            lines.append(f"leaks: {n:,} {_SPOKEN[part]} pictures ({share}) are in training too")
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
        return lines + _more(len(groups), most)

    def _advice_text(self) -> str:
        a = self.advice
        start = "pre-trained" if a.pretrained else "from random weights"
        return (
            f"{a.size} px, {a.arch} {start}, {a.epochs} epochs of stage 1, batches of "
            f"{a.batch_size}; then {a.method}: {a.reason}"
        )

    def _timing_text(self) -> str:
        t = self.timing
        reading = f", of it {t.reading_s:.2g} s to read pictures" if t.reading_s else ""
        return (
            f"about {duration(t.total_s)} on {t.device} in {t.precision}: {t.steps:,} steps of "
            f"{t.step_s:.2g} s{reading}. An estimate: timed on "
            f"{t.measured_steps:,} x {t.measured_batch} made-up pictures."
        )

    def _histogram_lines(self) -> list[str]:
        rows = self.histogram()
        if not rows:
            return []
        left = max(len("training images"), *(len(label) for label, _, _ in rows))
        most = max(n for _, n, _ in rows)
        room = _WIDTH - left - 22
        lines = [f"{'training images':>{left}}  classes"]
        for label, n, group in rows:
            # A class is never without a mark.
            bar = _BLOCK * max(round(room * n / most), int(n > 0))
            lines.append(f"{label:>{left}}  {n:>7,}  {group:<6}  {bar}")
        return lines


_HISTOGRAM = ("training_images", "classes", "shot_group")
_BLOCK = "█"


# ---------------------------------------------------------------- from what the user has


def inspect_path(
    path: str | Path,
    *,
    quick: bool = False,
    few: str = "<20",
    device: str = "auto",
    timing_s: float = 3.0,
    **reading: Any,
) -> Inspection:
    """Inspect pictures as `LTDataLoaders.from_path` would read them.

    Args:
        path: A folder per class; or `train/` and any of `valid/` and `test/`, each with a folder
            per class; or a table or annotations.
        quick: Read headers alone and look for no copies.
        few: The few-shot convention, "<20" or "<=20".
        device: What the time is measured on: "auto" or a torch device.
        timing_s: Seconds to measure training steps for; 0 measures nothing.
        **reading: How a list is read: `image_col` and the like as for `LTDataLoaders.from_csv`, and
            `images`, the folder that its paths start from.

    Raises:
        UserError: If there is no such folder, or it has no class folders or no training pictures.
    """
    from ltlearn.data.tables import reading_options

    path = Path(path).expanduser()
    reading = reading_options(path, reading)
    ignored: Counter = Counter()
    stops: list[str] = []
    parts, classes, source, columns = _list_pictures(path, reading, ignored, stops)
    shell = f"ltlearn train {shlex.quote(str(path))} {_as_flags(reading)}".strip()
    found = inspect_pictures(
        parts, classes, name=str(path), source=source, quick=quick, few=few, device=device,
        timing_s=0 if stops else timing_s, shell=shell,
    )  # fmt: skip
    if stops:
        found.stops, found.advice = stops + found.stops, None
    found.columns, found.ignored = columns, dict(ignored.most_common())
    return found


def _list_pictures(path: Path, reading: dict[str, Any], ignored: Counter, stops: list[str]):
    """List the pictures: by part, classes, the Python call that would read them, and columns.

    Files in class folders that are taken for no pictures are counted in `ignored`; what a list
    says against itself is added to `stops`.
    """
    from ltlearn.data.tables import list_pictures, source_kind

    kind = source_kind(path)
    if kind == "folder":
        return *_list_folder(path, ignored), {}
    listed = list_pictures(path, stops=stops, **reading)
    name = "from_json" if kind == "json" else "from_csv"
    said = "".join(f", {key}={value!r}" for key, value in reading.items())
    call = f"LTDataLoaders.{name}({str(path)!r}{said}"
    return listed.parts, listed.classes, call, listed.columns


def _as_flags(reading: Mapping[str, Any]) -> str:
    """Write how a list is read as options of the command line."""
    from ltlearn.data.tables import flag_of

    words = []
    for key, value in reading.items():
        words += [flag_of(key), "none" if value is False else str(value)]
    return shlex.join(words)


def _list_folder(root: Path, ignored: Counter) -> tuple[dict[str, ImageSet], list[str], str]:
    from ltlearn.data.sources import list_class_folders
    from ltlearn.data.tables import find_split_folders

    folders = find_split_folders(root)
    train, classes = list_class_folders(folders.get("train", root), others=ignored)
    parts = {"train": train}
    # A class that training has not is to be said here, not to stop the listing.
    later = {p.name for part in folders if part != "train" for p in _class_folders(folders[part])}
    classes = classes + sorted(later - set(classes))
    for part in PARTS[1:]:
        if part not in folders:
            continue
        try:
            parts[part] = list_class_folders(folders[part], classes, ignored)[0]
        except UserError:  # no class folders, or no pictures
            parts[part] = ImageSet(np.zeros(0, dtype=np.int64), paths=[], root=folders[part])
    return parts, classes, f"LTDataLoaders.from_folder({str(root)!r}"


def _class_folders(folder: Path) -> list[Path]:
    try:
        return find_class_folders(folder)
    except OSError:
        return []


def inspect_pictures(
    parts: Mapping[str, ImageSet],
    classes: Sequence[str],
    *,
    name: str = "pictures",
    source: str | None = None,
    quick: bool = False,
    few: str = "<20",
    device: str = "auto",
    timing_s: float = 3.0,
    shell: str | None = None,
) -> Inspection:
    """Look at every picture, and say how to begin with them.

    Each is decoded once, in threads, and only its size, kind and two hashes are kept. Copies are
    pictures with the same pixels as `read_image` gives them, so that a PNG saved again is found,
    and pictures that differ in transparency alone are the same.

    Args:
        parts: "train" and any of "valid" and "test" to pictures.
        classes: Class names in label order.
        name: What the pictures are called; paths that begin with it are printed without it.
        source: The call of `LTDataLoaders` that reads them, without its closing bracket, for the
            code that is suggested.
        quick: Read headers alone and look for no copies.
        few: The few-shot convention, "<20" or "<=20".
        device: What the time is measured on: "auto" or a torch device.
        timing_s: Seconds to measure training steps for; 0 measures nothing.
        shell: The command that trains on them, without options; None suggests none.

    Raises:
        UserError: If there is no part "train", a part is unknown, a target is outside the classes,
            or `few` or `device` is not allowed.
    """
    check_choice("few", few, FEW_RULES)
    if "train" not in parts:
        raise UserError(f"parts must hold a part 'train', got {', '.join(parts) or 'none'}.")
    for part in parts:
        check_choice("part", part, PARTS)
    parts = {part: parts[part] for part in PARTS if part in parts}
    counts = {p: count_classes(d.targets, len(classes)).tolist() for p, d in parts.items()}
    found = Inspection(name, list(classes), counts, few, quick)
    scan = _scan(parts, quick)
    found.seconds = scan.seconds
    found.formats = dict(scan.formats.most_common())
    found.kinds = {
        kind: n for i, kind in enumerate(KINDS) if (n := int((scan.kinds >> i & 1).sum()))
    }
    found.sizes = _sizes(scan)
    where = _Where(parts, classes)
    found.unreadable = [
        {"path": path, "part": part, "class": label, "reason": scan.bad[i]}
        for i in sorted(scan.bad)
        for path, part, label in [where(i)]
    ]
    if not quick:
        found.duplicates = _duplicates(scan, where, found.counts)
    found.stops = _stops(found, scan, parts)
    if not found.stops:
        found.advice = _advise(found, scan, source, shell)
        if timing_s > 0:
            found.timing = _time(found, parts, device, timing_s)
    return found


def _stops(found: Inspection, scan: "_Scan", parts: Mapping[str, ImageSet]) -> list[str]:
    """Say what would keep `LTDataLoaders` from reading the pictures, or a model from learning."""
    train = np.asarray(found.counts["train"])
    reasons = []
    if not train.any():
        reasons.append("there is no training picture.")
    elif (train > 0).sum() < 2:
        only = _clean(found.classes[int(train.argmax())])
        reasons.append(f"only the class {only} has training images; a classifier needs two.")
    elif "valid" not in parts and train.max() < 2:
        reasons.append("no class has two training images, so no validation split can be carved.")
    elif not scan.good[: len(parts["train"])].any():
        reasons.append("no training picture can be read.")
    untrained = found.untrained()
    if untrained:
        reasons.append(f"without a training image, but tested: {_listed(untrained)}.")
    for part in PARTS[1:]:
        if part in parts and not len(parts[part]):
            reasons.append(f"the {_SPOKEN[part]} folder has no pictures in class folders.")
    return reasons


# ---------------------------------------------------------------- looking at every picture


class _Scan:
    """What is kept of each picture: 48 bytes, whatever its size."""

    def __init__(self, n: int):
        self.good = np.zeros(n, dtype=bool)
        self.width, self.height = np.zeros(n, dtype=np.int32), np.zeros(n, dtype=np.int32)
        self.kinds = np.zeros(n, dtype=np.uint8)
        self.file_hash = np.zeros((n, _HASH_BYTES), dtype=np.uint8)
        self.pixel_hash = np.zeros((n, _HASH_BYTES), dtype=np.uint8)
        self.formats: Counter = Counter()
        self.bad: dict[int, str] = {}
        self.seconds = 0.0

    def put(self, i: int, size: tuple[int, int], kinds: int = 0) -> None:
        self.good[i], self.kinds[i] = True, kinds
        self.width[i], self.height[i] = size

    def put_hash(self, i: int, file_hash: bytes, pixel_hash: bytes) -> None:
        self.file_hash[i] = np.frombuffer(file_hash, dtype=np.uint8)
        self.pixel_hash[i] = np.frombuffer(pixel_hash, dtype=np.uint8)


def _scan(parts: Mapping[str, ImageSet], quick: bool) -> _Scan:
    total = sum(len(data) for data in parts.values())
    scan, first, chunks = _Scan(total), 0, []
    for data in parts.values():
        chunks += [
            (data, start, first + start, min(_CHUNK, len(data) - start))
            for start in range(0, len(data), _CHUNK)
        ]
        first += len(data)

    def look(chunk) -> tuple[int, Counter]:
        data, start, first, n = chunk
        formats = Counter()
        for k in range(n):
            if data.images is not None:
                _look_at_array(scan, first + k, data.images[start + k], quick)
                continue
            try:
                path = os.path.join(data.root, data.paths[start + k])
                formats[_look_at_file(scan, first + k, path, quick)] += 1
            except Exception as e:  # what Pillow raises has no end; one dict entry is atomic
                scan.bad[first + k] = _reason(e)
        return n, formats

    began = time.perf_counter()
    line = ProgressLine("reading headers" if quick else "reading pictures", total)
    try:
        with ThreadPoolExecutor(_threads(), "ltlearn-inspect") as pool:
            for n, formats in pool.map(look, chunks):
                scan.formats.update(formats)
                line.advance(n)
    finally:
        line.close()
    scan.seconds = time.perf_counter() - began
    return scan


def _threads() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(_MOST_THREADS, cores or 1)


def _look_at_array(scan: _Scan, i: int, pixels: np.ndarray, quick: bool) -> None:
    scan.put(i, (pixels.shape[1], pixels.shape[0]))
    if not quick:
        digest = _hash_pixels(pixels.shape[1::-1], np.ascontiguousarray(pixels))
        scan.put_hash(i, digest, digest)


def _look_at_file(scan: _Scan, i: int, path: str, quick: bool) -> str:
    """Read a picture, put what it is like at `i`, and return its format."""
    from PIL import Image, ImageOps

    # To open a pipe would wait for ever.
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError("not a regular file")
    with open(path, "rb") as file:
        if not quick:
            file_hash = hashlib.file_digest(file, _hasher).digest()
            file.seek(0)
        with Image.open(file) as image:
            # All of this before decoding, which forgets some of it.
            kinds, file_format = _kinds_of(image, quick), image.format or "unknown"
            if quick:
                size = image.size
                if kinds & _ROTATED and _orientation(image, quick) >= 5:
                    size = size[::-1]
            else:
                ImageOps.exif_transpose(image, in_place=True)
                rgb = _as_rgb(image)
                size = rgb.size
                scan.put_hash(i, file_hash, _hash_pixels(size, rgb.tobytes()))
    scan.put(i, size, kinds)
    return file_format


def _hasher():
    return hashlib.blake2b(digest_size=_HASH_BYTES)


def _hash_pixels(size: Sequence[int], pixels) -> bytes:
    hasher = _hasher()
    hasher.update(f"{size[0]} {size[1]} ".encode())
    hasher.update(pixels)
    return hasher.digest()


_ROTATED = 1 << KINDS.index("EXIF-rotated")


def _kinds_of(image, quick: bool) -> int:
    """Return a bit per kind that the picture is of, in the order of `KINDS`."""
    mode = image.mode
    is_16_bit = mode[0] == "I" or any(";16" in str(tile[3]) for tile in image.tile)
    kinds = (
        mode[0] in "1LIF",
        mode in ("P", "PA"),
        mode.lower() in ("rgba", "la", "pa") or "transparency" in image.info,
        mode == "CMYK",
        is_16_bit,
        getattr(image, "is_animated", False),
        _orientation(image, quick) > 1,
    )
    return sum(bool(is_one) << i for i, is_one in enumerate(kinds))


def _orientation(image, quick: bool) -> int:
    """Return the EXIF orientation, 1 to 8; 1 is upright."""
    # Pillow decodes a PNG to find EXIF behind the pixels, which is not quick.
    if quick and image.format == "PNG" and "exif" not in image.info:
        return 1
    value = image.getexif().get(0x0112, 1)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _reason(e: Exception) -> str:
    if isinstance(e, FileNotFoundError):
        return "not there"
    if isinstance(e, OSError) and e.strerror:
        return e.strerror
    if type(e).__name__ == "UnidentifiedImageError":
        return "not a picture Pillow can read"
    return (str(e).splitlines() or [""])[0] or type(e).__name__


def _sizes(scan: _Scan) -> dict[str, Any]:
    good = np.flatnonzero(scan.good)
    if not len(good):
        return {}
    width, height = scan.width[good].astype(np.int64), scan.height[good].astype(np.int64)
    order = np.argsort(width * height, kind="stable")
    pick = {"smallest": order[0], "median": order[len(order) // 2], "largest": order[-1]}
    sizes: dict[str, Any] = {k: [int(width[i]), int(height[i])] for k, i in pick.items()}
    sizes["different"] = len(np.unique(width << 32 | height))
    return sizes


class _Where:
    """Tells the path, part and class of the picture at a place of the scan."""

    def __init__(self, parts: Mapping[str, ImageSet], classes: Sequence[str]):
        self.parts, self.classes = parts, classes
        self.ends = np.cumsum([len(data) for data in parts.values()])
        self.targets = np.concatenate([data.targets for data in parts.values()])

    def part_of(self, index) -> np.ndarray:
        """Return the number of the part of each."""
        return np.searchsorted(self.ends, index, side="right")

    def __call__(self, i: int) -> tuple[str, str, str]:
        part = list(self.parts)[int(self.part_of(i))]
        data, label = self.parts[part], self.classes[self.targets[i]]
        k = i - int(self.ends[int(self.part_of(i))]) + len(data)
        if data.images is not None:
            return f"{part}[{k}]", part, label
        return os.path.join(data.root, data.paths[k]), part, label


def _duplicates(scan: _Scan, where: _Where, counts: Mapping[str, list[int]]) -> Duplicates:
    good = np.flatnonzero(scan.good)
    keys = np.ascontiguousarray(scan.pixel_hash[good]).view(f"V{_HASH_BYTES}").ravel()
    _, inverse, sizes = np.unique(keys, return_inverse=True, return_counts=True)
    order = np.argsort(inverse, kind="stable")
    ends = np.cumsum(sizes)
    members = [good[order[end - n : end]] for end, n in zip(ends, sizes, strict=True) if n > 1]
    found = Duplicates(leaks={part: 0 for part in counts if part != "train"})
    names = list(counts)
    for group in sorted(members, key=lambda g: g[0]):
        parts, targets = where.part_of(group), where.targets[group]
        several = Counter(zip(parts.tolist(), targets.tolist(), strict=True))
        found.copies_within += sum(several.values()) - len(several)
        if len(set(targets.tolist())) > 1:
            found.conflicts += 1
            found.conflict_pictures += len(group)
        if len(set(parts.tolist())) > 1:
            found.across_parts += 1
            if parts[0] == 0:
                for part, n in Counter(parts[parts > 0].tolist()).items():
                    found.leaks[names[part]] += n
        paths, part_names, labels = zip(*(where(int(i)) for i in group), strict=True)
        found.groups.append(
            {
                "paths": list(paths),
                "parts": list(part_names),
                "classes": list(labels),
                "same_file": bool((scan.file_hash[group] == scan.file_hash[group[0]]).all()),
            }
        )
    return found


# ---------------------------------------------------------------- how to begin


def _advise(found: Inspection, scan: _Scan, source: str | None, shell: str | None) -> Advice:
    good = np.flatnonzero(scan.good)
    side = float(np.median(np.minimum(scan.width[good], scan.height[good])))
    # Up to a quarter more than a size is brought down to it.
    size = next((s for s in (32, 64, 128) if side <= 1.25 * s), 224)
    arch, pretrained = ("resnet50", True) if size > 64 else ("resnet32_cifar", False)
    train = np.asarray(found.counts["train"])
    carved = 0 if "valid" in found.counts else _carved(train)
    n = int(train.sum()) - carved
    n_valid = sum(found.counts["valid"]) if "valid" in found.counts else carved
    batch = next((b for b in (_BATCH, 32) if n >= 10 * b), 16)
    low, high = _EPOCHS[pretrained]
    epochs = int(np.clip(round(_STEPS[pretrained] * _BATCH / n), low, high))
    method, reason = _choose_method(found, n_valid)
    options = [f"size={size}"] + ([f"bs={batch}"] if batch != _BATCH else [])
    options += ["skip_bad=True"] if found.unreadable else []
    first = f"dls = {source}, {', '.join(options)})"
    if len(first) > _WIDTH:
        call, _, argument = f"dls = {source}".partition("(")
        first = f"{call}(\n    {argument}, {', '.join(options)}\n)"
    if source is None:
        first = f"# dls: the LTDataLoaders of these pictures, {', '.join(options)}"
    code = [
        "from ltlearn import LTDataLoaders, lt_learner",
        "",
        first,
        f'learn = lt_learner(dls, "{arch}"{"" if pretrained else ", pretrained=False"})',
        f"learn.fit_stage1({epochs})",
    ]
    code += [f'learn.retrain_classifier(method="{method}")'] if method != "ce" else []
    code += ["print(learn.shot_report())"]
    if shell is not None:
        shell += f" --arch {arch} --size {size} --epochs {epochs} --method {method}"
        shell += f" --batch-size {batch}" if batch != _BATCH else ""
        shell += " --skip-bad" if found.unreadable else ""
    return Advice(size, arch, pretrained, epochs, batch, method, reason, "\n".join(code), shell)


def _carved(counts: np.ndarray) -> int:
    """Count what `carve_validation` takes."""
    share = np.maximum(1, np.rint(counts * _VALID_PCT)).astype(np.int64)
    return int(np.minimum(share, np.maximum(counts - 1, 0)).sum())


def _choose_method(found: Inspection, n_valid: int) -> tuple[str, str]:
    """Choose a method by what README's table of five long-tailed sets has shown."""
    factor, n_classes = found.imbalance_factor, len(found.classes)
    if factor < _BALANCED:
        return "ce", f"with an imbalance factor of {factor:.3g} there is nothing to correct."
    if n_classes >= _MANY_CLASSES:
        return "balanced_softmax", (
            "on the 200 classes of Tiny-ImageNet-LT it was among the best, and chooses nothing on "
            "validation images."
        )
    if n_valid < max(_LEAST_TO_CHOOSE_ON, n_classes):
        return "samn_start", (
            f"{n_valid:,} validation images are too few to choose a correction's strength on, "
            "and it needs none."
        )
    return "logit_adjustment", (
        f"it trains nothing, and chooses its strength on {n_valid:,} validation images."
    )


def _time(found: Inspection, parts: Mapping[str, ImageSet], device: str, seconds: float) -> Timing:
    """Measure a few steps of what is advised, and multiply."""
    from ltlearn.data.loaders import _IN_MEMORY_BYTES, _IN_MEMORY_SIDE
    from ltlearn.runner import pick_device

    advice, where = found.advice, pick_device(device)
    on_cpu = where.type == "cpu"
    # On a CPU a larger picture takes its time, however many there are in a batch.
    most = {32: 64, 64: 16}.get(advice.size, 8) if on_cpu else advice.batch_size
    batch = min(advice.batch_size, most)
    step, steps, precision = _time_steps(advice, len(found.classes), batch, where, seconds)
    step *= advice.batch_size / batch
    reading = 0.0
    in_memory = advice.size <= _IN_MEMORY_SIDE
    in_memory &= found.total * advice.size**2 * 4 <= _IN_MEMORY_BYTES
    if parts["train"].images is None and not in_memory:
        bad = {b["path"] for b in found.unreadable}
        each = _time_reading(parts["train"], advice.size, bad, min(1.0, seconds / 3))
        reading = each * advice.batch_size / _threads()
    # A device trains while the processor reads; a processor has to do both.
    step = step + reading if on_cpu else max(step, reading)
    train = sum(found.counts["train"])
    valid = sum(found.counts["valid"]) if "valid" in found.counts else _carved_of(found)
    train -= 0 if "valid" in found.counts else valid
    steps_an_epoch = -(-train // advice.batch_size)
    forward = _FORWARD * step / advice.batch_size
    total = advice.epochs * (steps_an_epoch * step + valid * forward)
    total += forward * (train + valid + sum(found.counts.get("test", ())))
    return Timing(
        total, step, reading, advice.epochs * steps_an_epoch, steps, batch, str(where), precision
    )


def _carved_of(found: Inspection) -> int:
    return _carved(np.asarray(found.counts["train"]))


def _time_steps(advice: Advice, num_classes: int, batch: int, device, seconds: float):
    """Train on noise for a while; return the median seconds of a step, the steps, the precision."""
    import torch
    from fastai.callback.core import Callback, CancelFitException

    from ltlearn.data.loaders import LTDataLoaders
    from ltlearn.learner import LTLearner
    from ltlearn.models.cut import create_lt_model

    class Stopwatch(Callback):
        """Times steps until the end, and four at least; the first two warm up and do not count."""

        def before_fit(self):
            self.times = []
            self.end = time.perf_counter() + seconds

        def before_train(self):
            self.last = time.perf_counter()

        def after_batch(self):
            if not self.training:
                return
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            now = time.perf_counter()
            self.times.append(now - self.last)
            self.last = now
            if now >= self.end and len(self.times) > 3:
                raise CancelFitException

    # The draws of whoever calls are to stay what they were.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        rng = np.random.default_rng(0)
        shape = (4 * batch, advice.size, advice.size, 3)
        images = rng.integers(0, 256, shape, dtype=np.uint8)
        targets = np.arange(4 * batch) % 2
        dls = LTDataLoaders.from_arrays(
            images, targets, valid=(images[:2], targets[:2]), bs=batch, device=device
        )
        model = create_lt_model(advice.arch, num_classes, False, advice.size)
        learn, watch = LTLearner(dls, model), Stopwatch()
        learn.fit(1_000_000, 1e-3, cbs=[watch])
    times = watch.times[2:]
    return float(np.median(times)), len(times), learn.precision


def _time_reading(data: ImageSet, size: int, bad: set[str], seconds: float) -> float:
    """Read and augment some of the pictures; return the seconds of one."""
    from ltlearn.data.loaders import PictureFiles

    files = PictureFiles(data, "resized_crop_flip", size)
    end, times = time.perf_counter() + seconds, []
    for i in np.random.default_rng(0).permutation(len(data))[:256].tolist():
        if os.path.join(data.root, data.paths[i]) in bad:
            continue
        began = time.perf_counter()
        try:
            files.get(i, 0)
        except UserError:  # headers alone did not tell
            continue
        times.append(time.perf_counter() - began)
        if time.perf_counter() > end:
            break
    return float(np.mean(times)) if times else 0.0


# ---------------------------------------------------------------- words


def _broken(command: str) -> list[str]:
    """Break a command before options where it is too long for a line."""
    lines = [""]
    for word in re.split(r" (?=--)", command):
        if lines[-1] and len(lines[-1]) + len(word) + 3 > _WIDTH:
            lines[-1] += " \\"
            lines.append("    " + word)
        else:
            lines[-1] += f" {word}" if lines[-1] else word
    return lines


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(_clean(name) for name in names[:_NAMED])
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return shown + more


def _more(n: int, shown: int = _NAMED) -> list[str]:
    return [f"  and {n - shown:,} more"] if n > shown else []


def _by(size: Sequence[int]) -> str:
    return f"{size[0]:,} x {size[1]:,}"


def _share(n: int, total: int) -> str:
    share = 100 * n / max(total, 1)
    return f"{share:.1f} %" if share >= 0.05 or not n else "<0.1 %"


def _escape(text: str) -> str:
    """Keep Markdown from reading a name as a table border, a link or an emphasis."""
    text = text.replace("\\", "\\\\")
    for mark in "|*_`[]<>":
        text = text.replace(mark, "\\" + mark)
    return text
