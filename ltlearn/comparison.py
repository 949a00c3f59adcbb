"""`Comparison`: the results of several methods, with paired intervals."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ltlearn.errors import UserError
from ltlearn.methods import METHODS
from ltlearn.metrics.paired import PairedDifference, paired_difference
from ltlearn.metrics.report import ShotReport
from ltlearn.reporting.table import ResultRow, ResultTable

__all__ = ["Outcome", "Comparison", "merge_comparisons"]

_RESAMPLES = 10_000


@dataclass
class Outcome:
    """What one method gave, with one seed, from one stage 1.

    Args:
        method: Its name in the table of methods.
        stage1_seed: Seed of stage 1.
        seed: Seed of what came after it.
        report: Its figures on the test set.
        correct: Which test images it got right.
        norms: Norm of each class's weights.
        validation: Class-balanced accuracy on the images that it was chosen on.
        selected: Which weights were tested.
        seconds: Training, extraction of features not included.
        stages: What was trained or corrected, a dictionary each.
        trajectory: Stage 2 epoch by epoch; None where nothing was trained.
        priors: Figures under other class priors, by the prior's name.

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
    trajectory: dict[str, Any] | None = None
    priors: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass
class Comparison:
    """Hold the outcomes of several methods, and say which differences are real.

    Args:
        outcomes: Of every method and seed.
        targets: Classes of the test images.
        class_counts: Training images per class, which make the shot groups.
        about: Facts for the table: protocol, split, fingerprint, few, dataset, classes, and where
            validation images are from.
        note: A remark to print below the table.

    Shape:
        targets is (N,), class_counts (C,).
    """

    outcomes: list[Outcome]
    targets: np.ndarray
    class_counts: list[int]
    about: dict[str, Any]
    note: str = ""
    _differences: dict | None = field(default=None, init=False, repr=False)

    @property
    def methods(self) -> list[str]:
        """List the methods in their order."""
        return list(dict.fromkeys(o.method for o in self.outcomes))

    def of(self, method: str) -> list[Outcome]:
        """List the outcomes of a method."""
        return [o for o in self.outcomes if o.method == method]

    @property
    def stage1(self) -> str | None:
        """Return the method whose classifier is that of stage 1; None if it is not among them."""
        return next((m for m in self.methods if METHODS[m].kind == "stage 1"), None)

    @property
    def best(self) -> str:
        """Return the method with the best class-balanced accuracy on the validation images."""
        means = {m: np.mean([o.validation for o in self.of(m)]) for m in self.methods}
        return max(means, key=means.get)

    def differences(self) -> dict[str, dict[str, PairedDifference]]:
        """Compare each method with stage 1's and the best, image by image; see `difference`."""
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
        """Compare two methods, image by image.

        The figure is class-balanced accuracy, averaged over seeds; its 95 % interval is that of a
        paired bootstrap over the test images. It says how far another test set of this size could
        move the difference; what other seeds do is in the standard deviation beside it.
        """
        pairs = [self._right(m) for m in (method, other)]
        return paired_difference(*pairs, self.targets, len(self.class_counts), _RESAMPLES)

    def _right(self, method: str) -> np.ndarray:
        """Return which test images were recognised, (S, N).

        One that draws nothing at random stands beside every run of the others.
        """
        starts = self._stage1_seeds
        runs = max(
            sum(o.stage1_seed == start for o in self.of(m))
            for m in self.methods
            for start in starts
        )
        rows = []
        for start in starts:
            found = [o.correct for o in self.of(method) if o.stage1_seed == start]
            rows += [found[min(k, len(found) - 1)] for k in range(runs)]
        return np.stack(rows)

    @property
    def _stage1_seeds(self) -> list[int]:
        return sorted({o.stage1_seed for o in self.outcomes})

    def table(self) -> ResultTable:
        """Return the table: figures, their spread over seeds, and the paired differences."""
        differences = self.differences()
        against = list(dict.fromkeys(k for d in differences.values() for k in d))
        rows = []
        for method in self.methods:
            found = self.of(method)
            extra = {"NLL": _mean_sd([o.report.nll for o in found])}
            for other in against:
                label = METHODS[other].label
                d = differences[method].get(other)
                extra[f"to {label}"] = "–" if d is None else _interval(d)
            selected = "; ".join(dict.fromkeys(o.selected for o in found))
            seconds = float(np.mean([o.seconds for o in found]))
            reports = [o.report for o in found]
            rows.append(ResultRow(method, METHODS[method].label, reports, selected, seconds, extra))
        facts = {k: self.about[k] for k in ("protocol", "dataset", "valid_from")}
        seeds = sorted({o.seed for o in self.outcomes})
        best = METHODS[self.best].label
        where = "the test set" if self.about["protocol"] == "paper" else "validation"
        note = (
            f"best on {where}: {best}. Differences in class-balanced accuracy, in points, with "
            "the 95 % interval of a paired bootstrap over the "
            f"{'validation' if self.about['protocol'] == 'untested' else 'test'} images."
        )
        return ResultTable(
            rows,
            split_name=self.about["split"],
            fingerprint=self.about["fingerprint"],
            few_rule=self.about["few"],
            seeds=seeds,
            note=" ".join(part for part in (note, self.note) if part),
            **facts,
        )

    def prior_rows(self) -> tuple[list[str], list[list[str]]]:
        """Return heading and rows of the table of class priors; no rows where none was asked."""
        names = list(dict.fromkeys(name for o in self.outcomes for name in o.priors))
        head = ["method"]
        for name in names:
            head += [name, f"{name}, corrected"]
        rows = []
        for method in self.methods if names else []:
            row = [METHODS[method].label]
            for name in names:
                for key in ("accuracy", "corrected"):
                    row.append(_mean_sd([100 * o.priors[name][key] for o in self.of(method)], 1))
            rows.append(row)
        return head, rows

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain numbers, lists and None, as `json.dump` wants them."""
        differences = {
            method: {
                other: {**asdict(d), "excludes_zero": d.excludes_zero} for other, d in found.items()
            }
            for method, found in self.differences().items()
        }
        table = self.table().to_dict()
        for row in table["rows"]:
            found = self.of(row["method"])
            row |= {
                "source": METHODS[row["method"]].source,
                "values_from": METHODS[row["method"]].values_from,
                "validation_balanced": [o.validation for o in found],
                "runs": [{"stage1_seed": o.stage1_seed, "seed": o.seed} for o in found],
                "differences": differences[row["method"]],
                "norms": [o.norms for o in found],
                "stages": [o.stages for o in found],
                "trajectories": [o.trajectory for o in found],
                "priors": [o.priors for o in found],
            }
        # Under the paper protocol the validation images are the test set, and all is chosen on it.
        chosen_on = "test" if self.about["protocol"] == "paper" else "validation"
        best = {"best_on_validation": self.best, "chosen_on": chosen_on}
        return {**table, **best, "class_counts": self.class_counts}

    def __str__(self) -> str:
        """Return the plain text table."""
        return self.table().to_text()


def _interval(d: PairedDifference) -> str:
    low, high = 100 * d.low, 100 * d.high
    return f"{100 * d.estimate:+.1f} [{low:+.1f}, {high:+.1f}]"


def _mean_sd(values: Sequence[float], digits: int = 3) -> str:
    mean = f"{np.mean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {np.std(values, ddof=1):.{digits}f}"


def merge_comparisons(parts: Sequence[Comparison]) -> Comparison:
    """Put the comparisons of several stage 1, on the same test images, into one."""
    first = parts[0]
    if any(not np.array_equal(p.targets, first.targets) for p in parts):
        raise UserError("these comparisons are of different test images.")
    order = {m: i for i, m in enumerate(first.methods)}
    outcomes = sorted((o for p in parts for o in p.outcomes), key=lambda o: order[o.method])
    return Comparison(outcomes, first.targets, first.class_counts, first.about, first.note)
