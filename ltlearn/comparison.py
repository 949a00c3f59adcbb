"""`Comparison`: the results of several methods, with paired intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from ltlearn.errors import UserError, check_choice
from ltlearn.methods import DEFAULT_STAGE1, Method, find_method, labels_of
from ltlearn.metrics.paired import PairedDifference, difference_interval
from ltlearn.metrics.report import FEW_IMAGES, ShotReport
from ltlearn.metrics.shots import shot_groups
from ltlearn.names import SHOTS, tested_images
from ltlearn.reporting.table import ResultRow, ResultTable
from ltlearn.training.records import Record, TrajectoryRecord
from ltlearn.utils.html import html_table

__all__ = ["Comparison", "ComparisonFacts", "Outcome", "PriorFigures", "merge_comparisons"]

# The accuracies whose differences have an interval.
_GROUPS = ("all", *SHOTS, "balanced")
_NO_INTERVAL = "[–]"


@dataclass(eq=False)
class PriorFigures(Record):
    """The figures of a classifier under another class prior.

    Args:
        accuracy: Top-1 accuracy, from 0 to 1.
        nll: Mean negative log-likelihood in nats.
        ece: Expected calibration error (15 bins), from 0 to 1.
        covered: Share of the prior on classes with test images.
        n_images: Number of test images.
        corrected: Accuracy after the logits are corrected for the prior.
        n_effective: Number of images of equal weight with the same precision; None if unknown.
    """

    accuracy: float
    nll: float
    ece: float
    covered: float
    n_images: int
    corrected: float
    n_effective: float | None = None


@dataclass
class Outcome:
    """The outcome of one method with one seed, from one stage 1.

    Args:
        method: The method, by its name in `METHODS`.
        stage1_seed: Seed of stage 1.
        seed: Seed of the later stages.
        report: The figures on the test set.
        correct: Which test images are classified correctly.
        norms: Norm of each class's weights.
        validation: Class-balanced accuracy on the validation images.
        selected: Which weights are tested.
        seconds: Seconds of training, without the extraction of features.
        stages: A record of each later stage.
        trajectory: Stage 2 epoch by epoch; None if nothing was trained.
        priors: The figures under other class priors, by the prior's name.

    Shape:
        correct is (N,), bool; norms has C numbers.
    """

    method: str
    stage1_seed: int
    seed: int
    report: ShotReport
    correct: np.ndarray
    norms: list[float]
    validation: float
    selected: str
    seconds: float
    stages: list[dict[str, Any]]
    trajectory: TrajectoryRecord | None = None
    priors: dict[str, PriorFigures] = field(default_factory=dict)

    def __repr__(self) -> str:
        """Return the method, its seeds and its figures."""
        seeds = f"seed {self.seed} of stage 1 {self.stage1_seed}"
        return f"Outcome: {self.method}, {seeds}, {self.selected}; {self.report!r}"


@dataclass(eq=False)
class ComparisonFacts(Record):
    """What a table reports about the data of a comparison.

    Args:
        protocol: "clean", "paper", or "untested" without a test set.
        dataset: The name of the dataset.
        valid_from: Where the validation images are from.
        split: The split, with its imbalance factor.
        fingerprint: The fingerprint of the training images.
        few: The rule for few-shot classes.
        classes: The names of the classes.
        stage1: The method of stage 1; None if the model was trained elsewhere.
        averages_flips: Whether the logits of each image and its mirror image were averaged.
    """

    protocol: str
    dataset: str
    valid_from: str
    split: str
    fingerprint: str
    few: str
    classes: list[str]
    stage1: str | None = DEFAULT_STAGE1
    averages_flips: bool = True


@dataclass
class Comparison:
    """The outcomes of several methods, and the differences between them with intervals.

    Args:
        outcomes: The outcome of each method and seed.
        targets: Classes of the test images.
        class_counts: Training images per class, which decide the shot groups.
        about: Facts about the data.
        note: A remark to print below the table.
        rows: The rows of the methods by name, for those that are not registered.

    Shape:
        targets is (N,), class_counts (C,).

    Example:
        >>> comparison = learn.compare_classifiers(["ce", "crt"])  # doctest: +SKIP
        >>> comparison.difference("crt", "ce").estimate  # doctest: +SKIP
        0.081
    """

    outcomes: list[Outcome]
    targets: np.ndarray
    class_counts: list[int]
    about: ComparisonFacts
    note: str = ""
    rows: Mapping[str, Method] = field(default_factory=dict)
    _differences: dict | None = field(default=None, init=False, repr=False)

    @property
    def methods(self) -> list[str]:
        """List the methods in their order."""
        return list(dict.fromkeys(o.method for o in self.outcomes))

    def row_of(self, method: str) -> Method:
        """Return the row of a method.

        Args:
            method: The method.
        """
        return self.rows[method] if method in self.rows else find_method(method)

    @property
    def labels(self) -> dict[str, str]:
        """Return what each method is called in tables and plots."""
        rows = {method: self.row_of(method) for method in self.methods}
        return labels_of(self.methods, self.about.stage1, rows)

    def of(self, method: str) -> list[Outcome]:
        """List the outcomes of a method.

        Args:
            method: The method.
        """
        return [o for o in self.outcomes if o.method == method]

    @property
    def stage1(self) -> str | None:
        """Return the method of stage 1; None if it is not among the methods."""
        return next((m for m in self.methods if self.row_of(m).kind == "stage 1"), None)

    @property
    def best(self) -> str:
        """Return the method with the best class-balanced accuracy on the validation images."""
        means = {m: np.mean([o.validation for o in self.of(m)]) for m in self.methods}
        return max(means, key=means.get)

    def differences(self) -> dict[str, dict[str, PairedDifference]]:
        """Compare each method with stage 1 and with the best method; see `difference`."""
        if self._differences is None:
            self._differences = {
                method: {
                    other: self.difference(method, other)
                    for other in self._others()
                    if other != method
                }
                for method in self.methods
            }
        return self._differences

    def _others(self) -> list[str]:
        """List the methods that all methods are compared with: stage 1 and the best one."""
        return list(dict.fromkeys(m for m in (self.stage1, self.best) if m is not None))

    def difference(
        self, method: str, other: str, group: str = "balanced"
    ) -> PairedDifference | None:
        """Compare the accuracy of two methods, averaged over seeds, with a 95 % interval.

        The interval covers the choice of the test images. From two stages 1 on, it covers their
        seeds too; with one stage 1, it covers the seeds of the later stages. There is no interval
        where too few images decide; see `ltlearn.metrics.paired.difference_interval`.

        Args:
            method: The method.
            other: The method that is subtracted.
            group: The accuracy to compare: "all" (over images), "balanced", or "many", "medium" or
                "few" (the mean over the classes of the group). A group without test images has no
                difference: None.

        Raises:
            UserError: If a method has no outcome, or `group` is not allowed.
        """
        check_choice("group", group, _GROUPS)
        for name in (method, other):
            if not self.of(name):
                raise UserError(
                    f"the comparison has no method {name!r}; it has {', '.join(self.methods)}."
                )
        labels = np.asarray(self.targets)
        rows = self._per_training(method, other)
        if group in SHOTS:
            mask = shot_groups(self.class_counts, self.about.few)[group].numpy()[labels]
            rows, labels = rows[:, mask], labels[mask]
        return difference_interval(rows, labels, 0.95, group != "all") if len(labels) else None

    def _per_training(self, method: str, other: str) -> np.ndarray:
        """Return how much more often a method is correct on each image, (S, N).

        A row is a stage 1, averaged over the later stages; with one stage 1, a row is a seed of
        the later stages that both methods have. A single run is paired with every run of the other.
        """
        runs = {name: self._runs(name) for name in (method, other)}
        starts = sorted(runs[method].keys() & runs[other].keys())
        if len(starts) > 1:
            return np.stack(
                [_mean_row(runs[method][k]) - _mean_row(runs[other][k]) for k in starts]
            )
        if not starts:
            rows = [np.mean([_mean_row(r) for r in runs[m].values()], 0) for m in (method, other)]
            return (rows[0] - rows[1])[None]
        ours, theirs = runs[method][starts[0]], runs[other][starts[0]]
        mean = (_mean_row(ours) - _mean_row(theirs))[None]
        if min(len(ours), len(theirs)) == 1:
            seeds = set(max(ours, theirs, key=len))
        else:
            seeds = ours.keys() & theirs.keys()
        if len(seeds) < 2:
            return mean
        rows = np.stack([_row_of(ours, k) - _row_of(theirs, k) for k in sorted(seeds)])
        # The seeds that both have show the spread. The estimate is of all runs, as in the table.
        return rows + (mean - rows.mean(0))

    def _runs(self, method: str) -> dict[int, dict[int, np.ndarray]]:
        """Return which test images are correct, by the seeds of stage 1 and the later stages."""
        runs: dict[int, dict[int, np.ndarray]] = {}
        for o in self.of(method):
            runs.setdefault(o.stage1_seed, {})[o.seed] = np.asarray(o.correct, dtype=np.float64)
        return runs

    def table(self) -> ResultTable:
        """Return the table: figures, their spread over seeds, and the paired differences.

        Stage 1 comes first, the other methods follow by class-balanced accuracy.
        """
        about, best = self.about, self.labels[self.best]
        chosen_on = "the test set" if about.protocol == "paper" else "validation"
        note = (
            f"best on {chosen_on}: {best}. Differences in class-balanced accuracy are in points, "
            f"{self._about_intervals()}"
        )
        return ResultTable(
            [self._row(method) for method in self._ordered()],
            about.protocol,
            about.split,
            about.fingerprint,
            about.few,
            sorted({o.seed for o in self.outcomes}),
            about.dataset,
            note=" ".join(part for part in (note, self.note) if part),
            valid_from=about.valid_from,
            stage1_seeds=sorted({o.stage1_seed for o in self.outcomes}),
            averages_flips=about.averages_flips,
        )

    def _ordered(self) -> list[str]:
        """List the methods in the order of the table."""
        balanced = {m: np.mean([o.report.balanced for o in self.of(m)]) for m in self.methods}
        return sorted(self.methods, key=lambda m: (m != self.stage1, -balanced[m]))

    def _about_intervals(self) -> str:
        """Describe the intervals: what they cover, and why some are absent."""
        tested_on = tested_images(self.about.protocol)
        starts = len({o.stage1_seed for o in self.outcomes})
        seeds = len({o.seed for o in self.outcomes})
        covered = f"other {tested_on} images"
        if starts > 1:
            covered += f" and other seeds of stage 1 (Student's t, {starts} seeds)"
        elif seeds > 1:
            covered += f" and other seeds after this stage 1 (Student's t, {self._about_seeds()})"
        else:
            covered += ", but not other seeds"
        found = [d for of_method in self.differences().values() for d in of_method.values()]
        # All differences are on the same images, so all have an interval or none has.
        if found and found[0].reason:
            return f"without an interval ({_NO_INTERVAL}): {found[0].reason}."
        return f"with a 95 % interval that covers {covered}."

    def _about_seeds(self) -> str:
        """Return the number of seeds of the later stages, and which methods have a single one."""
        numbers = sorted({len(self.of(m)) for m in self.methods} - {1})
        text = f"{' to '.join(map(str, numbers[:: max(1, len(numbers) - 1)]))} seeds"
        single = [m for m in self.methods if self.row_of(m).draws and len(self.of(m)) == 1]
        names = ", ".join(self.labels[m] for m in single)
        return f"{text}, but a single one of {names}" if single else text

    def _row(self, method: str) -> ResultRow:
        """Return the row of a method in the table."""
        own, differences = self.of(method), self.differences()
        extra = {"NLL": _mean_sd([o.report.nll for o in own])}
        for other in self._others() if len(differences) > 1 else []:
            interval = _interval(differences[method].get(other))
            extra[f"to {self.labels[other]}"] = interval
        selected = "; ".join(dict.fromkeys(o.selected for o in own))
        seconds = float(np.mean([o.seconds for o in own]))
        reports = [o.report for o in own]
        return ResultRow(method, self.labels[method], reports, selected, seconds, extra)

    def difference_rows(self) -> tuple[list[str], list[list[str]]]:
        """Return heading and rows of the table of differences by group, in points.

        The differences are those to stage 1, or to the best method without stage 1.
        """
        other = self.stage1 or self.best
        head, rows = [f"to {self.labels[other]}", *_GROUPS], []
        for method in self._ordered():
            if method != other:
                found = [self.difference(method, other, group) for group in _GROUPS]
                rows.append([self.labels[method], *(_interval(d) for d in found)])
        return head, rows

    def prior_rows(self) -> tuple[list[str], list[list[str]]]:
        """Return heading and rows of the table of class priors; without priors, no rows.

        A heading names the number of images of equal weight, where these are few.
        """
        names = list(dict.fromkeys(name for o in self.outcomes for name in o.priors))
        head = ["method"]
        for name in names:
            effective = self._of_prior(name)[0].n_effective
            small = effective is not None and effective < FEW_IMAGES
            head += [f"{name} (like {effective:.0f} images)" if small else name]
            head += [f"{name}, corrected"]
        rows = []
        for method in self._ordered() if names else []:
            row = [self.labels[method]]
            for name in names:
                own = [o.priors[name] for o in self.of(method)]
                row.append(_mean_sd([100 * figures.accuracy for figures in own], 1))
                row.append(_mean_sd([100 * figures.corrected for figures in own], 1))
            rows.append(row)
        return head, rows

    def _of_prior(self, name: str) -> list[PriorFigures]:
        return [o.priors[name] for o in self.outcomes if name in o.priors]

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain numbers, lists and None, for a JSON file."""
        table = self.table().to_dict()
        # The file keeps the order in which the methods were asked for.
        table["rows"].sort(key=lambda row: self.methods.index(row["method"]))
        for row in table["rows"]:
            row |= self._row_facts(row["method"])
        # Under the paper protocol the validation images are the test set.
        chosen_on = "test" if self.about.protocol == "paper" else "validation"
        best = {"best_on_validation": self.best, "chosen_on": chosen_on}
        return {**table, **best, "class_counts": self.class_counts}

    def _row_facts(self, method: str) -> dict[str, Any]:
        """Return what the file holds about a method beside its row in the table."""
        own = self.of(method)
        return {
            "source": self.row_of(method).source,
            "values_from": self.row_of(method).values_from,
            "validation_balanced": [o.validation for o in own],
            "runs": [{"stage1_seed": o.stage1_seed, "seed": o.seed} for o in own],
            "differences": {
                other: {
                    **_plain(d),
                    "groups": {
                        group: _plain(self.difference(method, other, group))
                        for group in _GROUPS
                        if group != "balanced"
                    },
                }
                for other, d in self.differences()[method].items()
            },
            "norms": [o.norms for o in own],
            "stages": [o.stages for o in own],
            "trajectories": [None if o.trajectory is None else o.trajectory.to_dict() for o in own],
            "priors": [
                {name: figures.to_dict() for name, figures in o.priors.items()} for o in own
            ],
        }

    def __str__(self) -> str:
        """Return the plain text table."""
        return self.table().to_text()

    def __repr__(self) -> str:
        """Return the methods and the best of them."""
        n, best = len(self.methods), self.labels[self.best]
        return (
            f"Comparison of {n} method{'s' if n > 1 else ''} on {self.about.dataset}, best on "
            f"validation: {best}. print() writes the table."
        )

    def _repr_html_(self) -> str:
        """Return the tables that a notebook shows."""
        html, (head, rows) = self.table().to_html(), self.prior_rows()
        if rows:
            html += html_table(head, rows, "accuracy in % under other class priors")
        return html


def _interval(d: PairedDifference | None) -> str:
    if d is None:
        return "–"
    ends = _NO_INTERVAL if d.low is None else f"[{100 * d.low:+.1f}, {100 * d.high:+.1f}]"
    return f"{100 * d.estimate:+.1f} {ends}"


def _plain(d: PairedDifference | None) -> dict[str, Any] | None:
    return None if d is None else {**asdict(d), "excludes_zero": d.excludes_zero}


def _mean_row(runs: dict[int, np.ndarray]) -> np.ndarray:
    return np.mean(list(runs.values()), axis=0)


def _row_of(runs: dict[int, np.ndarray], seed: int) -> np.ndarray:
    """Return the run of a seed; the only run, if the seed does not matter."""
    return runs[seed] if seed in runs else next(iter(runs.values()))


def _mean_sd(values: Sequence[float], digits: int = 3) -> str:
    mean = f"{np.mean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {np.std(values, ddof=1):.{digits}f}"


def merge_comparisons(parts: Sequence[Comparison]) -> Comparison:
    """Merge comparisons that began from different stages 1, on the same test images.

    Args:
        parts: The comparisons.

    Raises:
        UserError: If their test images differ.
    """
    if all(part.about.protocol == "untested" for part in parts):
        # Each stage 1 has carved validation images of its own, as many of each class.
        parts = [_by_class(part) for part in parts]
    first = parts[0]
    if any(not np.array_equal(p.targets, first.targets) for p in parts):
        raise UserError(
            "the comparisons have different test images; merge those on the same test set."
        )
    order = {m: i for i, m in enumerate(first.methods)}
    outcomes = sorted((o for p in parts for o in p.outcomes), key=lambda o: order[o.method])
    rows = {name: row for p in parts for name, row in p.rows.items()}
    return Comparison(outcomes, first.targets, first.class_counts, first.about, first.note, rows)


def _by_class(part: Comparison) -> Comparison:
    """Return the comparison with its images sorted by class."""
    order = np.argsort(part.targets, kind="stable")
    outcomes = [replace(o, correct=np.asarray(o.correct)[order]) for o in part.outcomes]
    return replace(part, targets=part.targets[order], outcomes=outcomes)
