"""Check a copy of a benchmark."""

from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from ltlearn.data.benchmarks.cifar import load_cifar
from ltlearn.data.benchmarks.facts import (
    BENCHMARKS,
    MAX_NAMED_FILES,
    Benchmark,
    check_benchmark_name,
    counts_name,
)
from ltlearn.data.benchmarks.instructions import how_to_get
from ltlearn.data.benchmarks.read import BenchmarkCopy, name_first_missing
from ltlearn.data.benchmarks.tiny_imagenet import load_tiny_imagenet
from ltlearn.errors import UserError
from ltlearn.metrics.shots import shot_groups

__all__ = ["Finding", "BenchmarkReport", "check_benchmark"]


@dataclass(frozen=True)
class Finding:
    """One thing that was checked."""

    ok: bool
    text: str


@dataclass
class BenchmarkReport:
    """What a copy on disk has and lacks; `str` of it is for people."""

    name: str
    title: str
    root: str
    findings: list[Finding] = field(default_factory=list)
    # Per part: how many images are not there, and the paths of the first of them.
    missing: dict[str, tuple[int, list[str]]] = field(default_factory=dict)
    absent: bool = False  # nothing of it can be read
    instructions: str = ""  # where a file or an image is missing: how to get it

    @property
    def ok(self) -> bool:
        """Whether all is as published."""
        return all(finding.ok for finding in self.findings)

    def to_dict(self) -> dict:
        """Return all of it, ready for JSON."""
        return {**asdict(self), "ok": self.ok}

    def add(self, ok: bool, text: str) -> None:
        """Note one thing that was checked."""
        self.findings.append(Finding(bool(ok), text))

    def __str__(self) -> str:
        verdict = "as published" if self.ok else "not as published"
        if self.absent:
            verdict = "not there"
        lines = [f"{self.title} in {self.root}: {verdict}"]
        lines += [f"  {'ok  ' if f.ok else 'FAIL'}  {f.text}" for f in self.findings]
        return "\n".join([*lines, self.instructions] if self.instructions else lines)


def check_benchmark(name: str, root: str | Path, follow_links: bool = False) -> BenchmarkReport:
    """Compare a copy on disk with what is published: files, images, counts.

    Of the images only the names are looked at. For "cifar10_lt", "cifar100_lt" and
    "tiny_imagenet_lt" it is the balanced set that is checked, of which a long-tailed one is cut.

    Args:
        name: A name of `BENCHMARKS`.
        root: The folder of the set, or the one that holds it.
        follow_links: Whether a link inside the folder may lead out of it.

    Raises:
        UserError: If the name is unknown, or of a set that needs no files.
    """
    check_benchmark_name(name)
    facts = BENCHMARKS[name]
    report = BenchmarkReport(name, facts.title, str(root))
    parts = _check_listed if facts.forms else _check_balanced
    targets = parts(name, Path(root).expanduser(), report, follow_links)
    report.absent = not targets
    for part, labels in targets.items():
        _check_counts(facts, part, labels, report)
    if report.missing or len(targets) < len(facts.sizes):
        report.instructions = how_to_get(name, root)
    return report


def _check_listed(
    name: str, root: Path, report: BenchmarkReport, follow_links: bool
) -> dict[str, np.ndarray]:
    """Read all parts, note what is missing, and return their labels."""
    copy, targets, paths = BenchmarkCopy(name, root), {}, {}
    for part in copy.facts.sizes:
        if part not in copy.files:
            names = " or ".join(form[part] for form in copy.facts.forms)
            report.add(False, f"{part}: there is no {names} in {root}")
            continue
        try:
            listing = copy.read(part)
        except UserError as e:
            # Without the training list there are no classes; what it lacks is said already.
            if part == "train" or "train" in targets:
                report.add(False, f"{part}: {e}")
            continue
        targets[part] = listing.targets
        try:
            data, missing = copy.find(listing, follow_links)
        except UserError as e:
            report.add(False, f"{part}: {e}")
            continue
        paths[part] = data.paths
        if len(missing):
            report.missing[part] = len(missing), [data.paths[i] for i in missing[:MAX_NAMED_FILES]]
            report.add(
                False,
                f"{part}: {len(missing):,} of {len(data):,} images are not under {copy.base} "
                f"({name_first_missing(data, missing)})",
            )
        else:
            report.add(True, f"{part}: all {len(data):,} listed images are there")
    seen: dict[str, str] = {}
    for part, found in paths.items():
        shared = [path for path in found if path in seen]
        if shared:
            report.add(
                False,
                f"{part}: {len(shared):,} images are in {seen[shared[0]]} too, as {shared[0]}",
            )
        seen.update(dict.fromkeys(found, part))
    return targets


def _check_balanced(
    name: str, root: Path, report: BenchmarkReport, _: bool
) -> dict[str, np.ndarray]:
    """Read both parts of a balanced set, and return their labels."""
    targets = {}
    for part in BENCHMARKS[name].sizes:
        try:
            if name == "tiny_imagenet_lt":
                data, _ = load_tiny_imagenet(root, part)
            else:
                data, _ = load_cifar(BENCHMARKS[name].classes, root, part)
        except UserError as e:
            report.add(False, f"{part}: {e}")
            continue
        targets[part] = data.targets
    return targets


def _check_counts(
    facts: Benchmark, part: str, targets: np.ndarray, report: BenchmarkReport
) -> None:
    def compare(what: str, got, published) -> None:
        shown = f"{part}: {got} {what}"
        report.add(got == published, shown if got == published else f"{shown}, not {published}")

    counts = np.bincount(targets, minlength=facts.classes)
    most = facts.each.get(part)
    # A copy with the first images of each class gives the same cuts as the whole set.
    if part == "train" and most and 0 < counts.min() < most >= counts.max():
        report.add(
            True,
            f"{part}: a part of the set, {counts.max():,} to {counts.min():,} images of each "
            f"class, of {most:,}",
        )
        return
    compare("images", f"{len(targets):,}", f"{facts.sizes[part]:,}")
    compare("classes with images", f"{(counts > 0).sum():,}", f"{facts.classes:,}")
    if most:
        got = f"{counts.min():,}" if counts.min() == counts.max() else "differing numbers of"
        compare("images of each class", got, f"{most:,}")
        return
    compare(
        "images of the largest and smallest class",
        f"{counts.max():,} and {counts.min():,}",
        f"{facts.largest:,} and {facts.smallest:,}",
    )
    groups = shot_groups(counts, facts.few).values()
    compare(
        f"many-, medium- and few-shot classes (few {facts.few})",
        "/".join(f"{int(group.sum()):,}" for group in groups),
        "/".join(f"{n:,}" for n in facts.shots[facts.few]),
    )
    if counts_name(counts) == facts.counts_sha256:
        text = "the count of every class is the published one"
    elif counts_name(np.sort(counts)) == facts.sorted_sha256:
        text = f"the counts are those published, but of other classes; order: {facts.class_order}"
    else:
        text = "the counts of the classes are not those published"
    report.add(counts_name(counts) == facts.counts_sha256, f"{part}: {text}")
