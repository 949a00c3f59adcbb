"""`Comparison`: the results of several methods, with paired intervals."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ltlearn.errors import UserError
from ltlearn.methods import DEFAULT_STAGE1, METHODS, labels_of
from ltlearn.metrics.paired import PairedDifference, paired_difference
from ltlearn.metrics.report import ShotReport
from ltlearn.reporting.table import ResultRow, ResultTable
from ltlearn.training.records import Record, TrajectoryRecord
from ltlearn.utils.html import html_table

__all__ = ["Comparison", "ComparisonFacts", "Outcome", "PriorFigures", "merge_comparisons"]

_RESAMPLES = 10_000


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
    """

    accuracy: float
    nll: float
    ece: float
    covered: float
    n_images: int
    corrected: float


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
    """

    protocol: str
    dataset: str
    valid_from: str
    split: str
    fingerprint: str
    few: str
    classes: list[str]
    stage1: str | None = DEFAULT_STAGE1


@dataclass
class Comparison:
    """The outcomes of several methods, and the differences between them with intervals.

    Args:
        outcomes: The outcome of each method and seed.
        targets: Classes of the test images.
        class_counts: Training images per class, which decide the shot groups.
        about: Facts about the data.
        note: A remark to print below the table.

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
    _differences: dict | None = field(default=None, init=False, repr=False)

    @property
    def methods(self) -> list[str]:
        """List the methods in their order."""
        return list(dict.fromkeys(o.method for o in self.outcomes))

    @property
    def labels(self) -> dict[str, str]:
        """Return what each method is called in tables and plots."""
        return labels_of(self.methods, self.about.stage1)

    def of(self, method: str) -> list[Outcome]:
        """List the outcomes of a method.

        Args:
            method: The method.
        """
        return [o for o in self.outcomes if o.method == method]

    @property
    def stage1(self) -> str | None:
        """Return the method of stage 1; None if it is not among the methods."""
        return next((m for m in self.methods if METHODS[m].kind == "stage 1"), None)

    @property
    def best(self) -> str:
        """Return the method with the best class-balanced accuracy on the validation images."""
        means = {m: np.mean([o.validation for o in self.of(m)]) for m in self.methods}
        return max(means, key=means.get)

    def differences(self) -> dict[str, dict[str, PairedDifference]]:
        """Compare each method with stage 1 and with the best method; see `difference`."""
        if self._differences is None:
            others = dict.fromkeys(m for m in (self.stage1, self.best) if m is not None)
            self._differences = {
                method: {
                    other: self.difference(method, other) for other in others if other != method
                }
                for method in self.methods
            }
        return self._differences

    def difference(self, method: str, other: str) -> PairedDifference:
        """Compare the class-balanced accuracy of two methods, averaged over seeds.

        The 95 % interval is from a paired bootstrap over the test images. It shows how far another
        test set of this size could move the difference. The standard deviation in the table shows
        the effect of other seeds.

        Args:
            method: The method.
            other: The method that is subtracted.
        """
        pairs = [self._correct(m) for m in (method, other)]
        return paired_difference(*pairs, self.targets, len(self.class_counts), _RESAMPLES)

    def _correct(self, method: str) -> np.ndarray:
        """Return which test images are classified correctly, (S, N).

        A method whose outcome does not depend on the seed is paired with every run of the others.
        """
        starts = self._stage1_seeds
        runs = max(
            sum(o.stage1_seed == start for o in self.of(m))
            for m in self.methods
            for start in starts
        )
        rows = []
        for start in starts:
            own = [o.correct for o in self.of(method) if o.stage1_seed == start]
            rows += [own[min(k, len(own) - 1)] for k in range(runs)]
        return np.stack(rows)

    @property
    def _stage1_seeds(self) -> list[int]:
        return sorted({o.stage1_seed for o in self.outcomes})

    def table(self) -> ResultTable:
        """Return the table: figures, their spread over seeds, and the paired differences."""
        about, best = self.about, self.labels[self.best]
        chosen_on = "the test set" if about.protocol == "paper" else "validation"
        tested_on = "validation" if about.protocol == "untested" else "test"
        note = (
            f"best on {chosen_on}: {best}. Differences in class-balanced accuracy, in points, with "
            f"the 95 % interval of a paired bootstrap over the {tested_on} images."
        )
        return ResultTable(
            [self._row(method) for method in self.methods],
            about.protocol,
            about.split,
            about.fingerprint,
            about.few,
            sorted({o.seed for o in self.outcomes}),
            about.dataset,
            note=" ".join(part for part in (note, self.note) if part),
            valid_from=about.valid_from,
        )

    def _row(self, method: str) -> ResultRow:
        """Return the row of a method in the table."""
        own, differences = self.of(method), self.differences()
        extra = {"NLL": _mean_sd([o.report.nll for o in own])}
        for other in dict.fromkeys(k for d in differences.values() for k in d):
            difference = differences[method].get(other)
            interval = "–" if difference is None else _interval(difference)
            extra[f"to {self.labels[other]}"] = interval
        selected = "; ".join(dict.fromkeys(o.selected for o in own))
        seconds = float(np.mean([o.seconds for o in own]))
        reports = [o.report for o in own]
        return ResultRow(method, self.labels[method], reports, selected, seconds, extra)

    def prior_rows(self) -> tuple[list[str], list[list[str]]]:
        """Return heading and rows of the table of class priors; without priors, no rows."""
        names = list(dict.fromkeys(name for o in self.outcomes for name in o.priors))
        head = ["method"]
        for name in names:
            head += [name, f"{name}, corrected"]
        rows = []
        for method in self.methods if names else []:
            row = [self.labels[method]]
            for name in names:
                own = [o.priors[name] for o in self.of(method)]
                row.append(_mean_sd([100 * figures.accuracy for figures in own], 1))
                row.append(_mean_sd([100 * figures.corrected for figures in own], 1))
            rows.append(row)
        return head, rows

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain numbers, lists and None, for a JSON file."""
        table = self.table().to_dict()
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
            "source": METHODS[method].source,
            "values_from": METHODS[method].values_from,
            "validation_balanced": [o.validation for o in own],
            "runs": [{"stage1_seed": o.stage1_seed, "seed": o.seed} for o in own],
            "differences": {
                other: {**asdict(d), "excludes_zero": d.excludes_zero}
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


def _interval(d: PairedDifference) -> str:
    low, high = 100 * d.low, 100 * d.high
    return f"{100 * d.estimate:+.1f} [{low:+.1f}, {high:+.1f}]"


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
    first = parts[0]
    if any(not np.array_equal(p.targets, first.targets) for p in parts):
        raise UserError(
            "the comparisons have different test images; merge those on the same test set."
        )
    order = {m: i for i, m in enumerate(first.methods)}
    outcomes = sorted((o for p in parts for o in p.outcomes), key=lambda o: order[o.method])
    return Comparison(outcomes, first.targets, first.class_counts, first.about, first.note)
