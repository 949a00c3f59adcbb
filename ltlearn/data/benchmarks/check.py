"""Check a copy of a benchmark."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from ltlearn.data.benchmarks.facts import (
    MAX_NAMED_FILES,
    BalancedSet,
    Benchmark,
    ListedSet,
    counts_name,
)
from ltlearn.data.benchmarks.instructions import how_to_get
from ltlearn.data.benchmarks.read import BenchmarkCopy, name_first_missing
from ltlearn.data.benchmarks.registry import get_benchmark
from ltlearn.errors import UserError
from ltlearn.metrics.shots import shot_groups
from ltlearn.utils.text import clean

__all__ = ["Finding", "BenchmarkReport", "check_benchmark"]


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Args:
        ok: Whether the copy passes.
        text: What was checked, with the numbers.
    """

    ok: bool
    text: str


@dataclass
class BenchmarkReport:
    """What a copy on disk has and lacks. `str(report)` is a text for people.

    Args:
        name: The benchmark.
        title: Its name for people.
        root: The folder that was checked.
        findings: The checks in order.
        missing: By part, the number of missing images and the paths of the first of them.
        absent: Whether no part of the set can be read.
        instructions: How to get the set; "" if no file and no image is missing.
    """

    name: str
    title: str
    root: str
    findings: list[Finding] = field(default_factory=list)
    missing: dict[str, tuple[int, list[str]]] = field(default_factory=dict)
    absent: bool = False
    instructions: str = ""

    @property
    def ok(self) -> bool:
        """Return whether the copy passes every check."""
        return all(finding.ok for finding in self.findings)

    def to_dict(self) -> dict:
        """Return the fields and `ok`, ready for JSON."""
        return {**asdict(self), "ok": self.ok}

    def add(self, ok: bool, text: str) -> None:
        """Add the result of a check.

        Args:
            ok: Whether the copy passes.
            text: What was checked, with the numbers.
        """
        self.findings.append(Finding(bool(ok), text))

    def __str__(self) -> str:
        verdict = "as published" if self.ok else "not as published"
        if self.absent:
            verdict = "not there"
        lines = [f"{self.title} in {clean(self.root)}: {verdict}"]
        lines += [f"  {'ok  ' if f.ok else 'FAIL'}  {clean(f.text)}" for f in self.findings]
        return "\n".join([*lines, self.instructions] if self.instructions else lines)


def check_benchmark(name: str, root: str | Path, follow_links: bool = False) -> BenchmarkReport:
    """Compare a copy on disk with the published set: files, images, counts.

    The images are not opened; their names are compared. For a set that is cut, such as
    "cifar10_lt", the balanced set is checked.

    Args:
        name: One of `benchmark_names()`.
        root: The folder of the set, or the folder that contains it.
        follow_links: Whether a link inside the folder may lead out of it.

    Raises:
        UserError: If the name is unknown, or the set needs no files.

    Example:
        >>> report = check_benchmark("places_lt", "/data/places")  # doctest: +SKIP
        >>> report.ok, report.missing  # doctest: +SKIP
        (True, {})
    """
    facts = get_benchmark(name)
    report = BenchmarkReport(name, facts.title, str(root))
    folder = Path(root).expanduser()
    if isinstance(facts, ListedSet):
        targets = _check_listed(facts, folder, report, follow_links)
    else:
        targets = _check_balanced(facts, folder, report)
    report.absent = not targets
    for part, labels in targets.items():
        _check_counts(facts, part, labels, report)
    if report.missing or len(targets) < len(facts.sizes):
        report.instructions = how_to_get(name, root)
    return report


def _check_listed(
    facts: ListedSet, root: Path, report: BenchmarkReport, follow_links: bool
) -> dict[str, np.ndarray]:
    """Read all parts, report missing files and images, and return the labels."""
    copy, targets, paths = BenchmarkCopy(facts, root), {}, {}
    for part in facts.sizes:
        if part not in copy.files:
            names = " or ".join(form[part] for form in facts.forms)
            report.add(False, f"{part}: there is no {names} in {root}")
            continue
        try:
            listing = copy.read(part)
        except UserError as e:
            # Without the training list every other part fails for the same reason.
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
    _check_leaks(paths, report)
    return targets


def _check_leaks(paths: dict[str, list[str]], report: BenchmarkReport) -> None:
    """Report images that are in two parts."""
    part_of: dict[str, str] = {}
    for part, own in paths.items():
        shared = [path for path in own if path in part_of]
        if shared:
            report.add(
                False,
                f"{part}: {len(shared):,} images are in {part_of[shared[0]]} too, as {shared[0]}",
            )
        part_of.update(dict.fromkeys(own, part))


def _check_balanced(
    facts: BalancedSet, root: Path, report: BenchmarkReport
) -> dict[str, np.ndarray]:
    """Read all parts of a balanced set, and return the labels."""
    targets = {}
    for part in facts.sizes:
        try:
            data, _ = facts.load(root, part)
        except UserError as e:
            report.add(False, f"{part}: {e}")
            continue
        targets[part] = data.targets
    return targets


def _check_counts(
    facts: Benchmark, part: str, targets: np.ndarray, report: BenchmarkReport
) -> None:
    """Compare the number of images and the class counts of a part with the published ones."""

    def compare(unit: str, got: str, published: str) -> None:
        text = f"{part}: {got} {unit}"
        report.add(got == published, text if got == published else f"{text}, not {published}")

    counts = np.bincount(targets, minlength=facts.classes)
    most = facts.each.get(part)
    # A copy with the first images of each class gives the same long-tailed subsets.
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
    if isinstance(facts, ListedSet):
        _check_tail(facts, part, counts, report, compare)


def _check_tail(
    facts: ListedSet, part: str, counts: np.ndarray, report: BenchmarkReport, compare: Callable
) -> None:
    """Compare the class counts of a long-tailed part with the published ones."""
    compare(
        "images of the largest and smallest class",
        f"{counts.max():,} and {counts.min():,}",
        f"{facts.largest:,} and {facts.smallest:,}",
    )
    if facts.few in facts.shots:
        groups = shot_groups(counts, facts.few).values()
        compare(
            f"many-, medium- and few-shot classes (few {facts.few})",
            "/".join(f"{int(group.sum()):,}" for group in groups),
            "/".join(f"{n:,}" for n in facts.shots[facts.few]),
        )
    if not facts.counts_sha256:
        return
    if counts_name(counts) == facts.counts_sha256:
        text = "the count of every class is the published one"
    elif counts_name(np.sort(counts)) == facts.sorted_sha256:
        text = (
            "the counts are the published ones, but of other classes; their order is "
            f"{facts.class_order}"
        )
    else:
        text = "the counts of the classes are not the published ones"
    report.add(counts_name(counts) == facts.counts_sha256, f"{part}: {text}")
