"""Sensitivity: accuracy over the hyper-parameter of a method."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ltlearn.compare import check_request
from ltlearn.errors import UserError, log_once
from ltlearn.experiments.manifest import finished_seeds, recorded_recipe
from ltlearn.experiments.own_data import fitting_methods
from ltlearn.experiments.stages import load_stage1
from ltlearn.learner import LTLearner
from ltlearn.methods import METHODS, labels_of
from ltlearn.metrics.accuracy import mean_class_accuracy
from ltlearn.names import PART_LABELS
from ltlearn.plots.sensitivity import plot_sensitivity
from ltlearn.training.records import Record
from ltlearn.training.selection import default_select, tested_part
from ltlearn.training.start import restored_stage1
from ltlearn.utils.html import html_paragraph, html_table
from ltlearn.utils.progress import brief_progress
from ltlearn.utils.run_folder import Run, waits_for_run
from ltlearn.utils.text import clean

__all__ = [
    "SENSITIVITY_HEAD",
    "SENSITIVITY_METHODS",
    "Curve",
    "Sensitivity",
    "sensitivity",
    "sensitivity_run",
]

# The methods whose hyper-parameter has a published range, and one without for comparison.
SENSITIVITY_METHODS = ("max_norm", "label_aware_smoothing", "samn")

# The headings of `Sensitivity.rows`.
SENSITIVITY_HEAD = ("method", "hyper-parameter", "tried", "lowest", "highest", "span")


@dataclass(eq=False)
class Curve(Record):
    """Accuracy of a method over its own hyper-parameter.

    Args:
        label: The label of the method.
        parameter: The name of the hyper-parameter, as an axis prints it.
        values: The values, ascending.
        accuracy: Class-balanced accuracy on the test images for each value, from 0 to 1.
        method: The method.
        validation: Class-balanced accuracy on the validation images for each value.
        default: The value that the method has by default.
        log: Whether the axis is logarithmic.
    """

    label: str
    parameter: str
    values: list[float] = field()  # else `Mapping.values` would be the default
    accuracy: list[float]
    method: str = ""
    validation: list[float] = field(default_factory=list)
    default: float | None = None
    log: bool = True


@dataclass
class Sensitivity:
    """Accuracy of each method over its own hyper-parameter.

    Args:
        curves: A curve for each method that has a hyper-parameter.
        lines: Class-balanced test accuracy of the methods that have none, by label.
        about: Dataset, split and seed, and which images the accuracy is measured on.

    Example:
        >>> curve = Curve("WD + MaxNorm", "weight decay", [0.01, 0.1], [0.5, 0.7])
        >>> Sensitivity([curve], {"CE": 0.6}).ranges()
        {'WD + MaxNorm': (0.5, 0.7), 'CE': (0.6, 0.6)}
    """

    curves: list[Curve]
    lines: dict[str, float]
    about: dict[str, Any] = field(default_factory=dict)

    def about_line(self) -> str:
        """Return dataset, split and seed in a line."""
        return clean(", ".join(f"{key} {value}" for key, value in self.about.items()))

    def ranges(self) -> dict[str, tuple[float, float]]:
        """Return the lowest and the highest test accuracy of each method, by label."""
        ranges = {c.label: (min(c.accuracy), max(c.accuracy)) for c in self.curves}
        return ranges | {label: (value, value) for label, value in self.lines.items()}

    def rows(self) -> list[list[str]]:
        """Return the table: method, parameter, range of values, lowest, highest, span, in %."""
        values = {c.label: f"{c.values[0]:g} to {c.values[-1]:g}" for c in self.curves}
        parameters = {c.label: c.parameter for c in self.curves}
        rows = []
        for label, ends in self.ranges().items():
            low, high = (100 * end for end in ends)
            figures = [f"{figure:.1f}" for figure in (low, high, high - low)]
            rows.append([label, parameters.get(label, "–"), values.get(label, "–"), *figures])
        return rows

    def __repr__(self) -> str:
        """Return the range of each method."""
        ranges = [f"{label} {100 * low:.1f}-{100 * high:.1f}"
                  for label, (low, high) in self.ranges().items()]  # fmt: skip
        return f"Sensitivity: class-balanced accuracy in %: {'; '.join(ranges)}"

    def _repr_html_(self) -> str:
        """Return the table that a notebook shows."""
        table = html_table(SENSITIVITY_HEAD, self.rows(), "class-balanced accuracy in %", left=3)
        return table + html_paragraph(self.about_line())

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain numbers and lists, for a JSON file."""
        curves = [curve.to_dict() for curve in self.curves]
        return {"curves": curves, "lines": self.lines, "about": self.about}


@log_once()
@brief_progress()
def sensitivity(
    learn: LTLearner,
    methods: Sequence[str] | str = SENSITIVITY_METHODS,
    *,
    seed: int = 0,
    select: str = "best",
    labels: Mapping[str, str] | None = None,
    notify: Callable[[str], None] = lambda text: None,
) -> Sensitivity:
    """Train each method over the published range of its own hyper-parameter.

    Every value is tested; no value is chosen. The learner is restored at the end.

    Args:
        learn: An `LTLearner` after stage 1. Without a test set the accuracy is measured on the
            validation images.
        methods: Names of methods. A method without a hyper-parameter gives a line.
        seed: Seed of order and augmentation.
        select: Which epoch of stage 2 is kept: "best" on validation, or "last".
        labels: What each method is called in tables and plots. None: as after the learner's stage
            1.
        notify: Called with a line of text at each step.

    Raises:
        UserError: If a method is unknown.
    """
    methods, _ = check_request(methods, 1, (), select, learn.stage1_method)
    if select == "best":
        select = default_select(learn.dls)
    labels = labels or labels_of(methods, learn.stage1_method)
    curves, lines = [], {}
    with restored_stage1(learn) as restart:

        def measure(method: str, **arguments: Any) -> tuple[float, float]:
            restart()
            return _balanced(learn, method, seed=seed, select=select, **arguments)

        for method in methods:
            row = METHODS[method]
            if row.sweep is None:
                lines[labels[method]], _ = measure(method)
                continue
            figures = []
            for value in row.sweep.values:
                notify(f"{labels[method]}, {row.sweep.parameter} {value:g}")
                figures.append(measure(method, **row.sweep.arguments(value)))
            test, validation = (list(column) for column in zip(*figures, strict=True))
            curves.append(_curve(method, labels[method], test, validation))
    return Sensitivity(curves, lines, _about(learn, seed, select))


def _curve(method: str, label: str, accuracy: list[float], validation: list[float]) -> Curve:
    sweep = METHODS[method].sweep
    return Curve(
        label, sweep.parameter, list(sweep.values), accuracy, method, validation,
        sweep.default, sweep.log,
    )  # fmt: skip


def _about(learn: LTLearner, seed: int, select: str) -> dict[str, Any]:
    split = learn.dls.split
    return {
        "dataset": split.dataset, "split": split.name, "fingerprint": split.train,
        "accuracy on": f"{PART_LABELS[tested_part(learn.dls)]} images",
        "epoch": select, "seed": seed,
    }  # fmt: skip


def _balanced(learn: LTLearner, method: str, **arguments: Any) -> tuple[float, float]:
    """Return class-balanced accuracy on the test and the validation images."""
    row = METHODS[method]
    if row.kind == "stage 2":
        learn.retrain_classifier(method=method, view_seed=0, **arguments)
    elif row.kind == "post hoc":
        learn.correct_classifier(method)
    figures = []
    for part in (tested_part(learn.dls), "valid"):
        logits, targets = learn.predict_logits(part)
        figures.append(mean_class_accuracy(logits.argmax(1), targets, learn.dls.c))
    return tuple(figures)


@waits_for_run
def sensitivity_run(
    run: Run,
    methods: Sequence[str] | str = SENSITIVITY_METHODS,
    *,
    select: str = "best",
    data_path: str | Path | None = None,
    cache_path: str | Path | None = None,
    device: str = "auto",
    allow_hub: bool = False,
    notify: Callable[[str], None] = lambda text: None,
) -> Sensitivity:
    """Study the first stage 1 of a run; write `sensitivity.json` and the plot.

    If another process writes to the run, this one waits for it.

    Args:
        run: A run whose stage 1 is finished.
        methods: Names of methods.
        select: Which epoch of stage 2 is kept: "best" on validation, or "last".
        data_path: Where the images are; None takes the path in the run's manifest.
        cache_path: Folder of cached features; None keeps them in memory.
        device: "auto" or a torch device.
        allow_hub: Whether the architecture may be one of the Hugging Face hub or of a local folder.
        notify: Called with a line of text at each step.

    Raises:
        UserError: If the folder holds no run with a finished stage 1, its protocol is "paper", or a
            name is unknown.

    Example:
        >>> sensitivity_run(Run("runs/digits"), "max_norm,samn").rows()  # doctest: +SKIP
    """
    recipe = recorded_recipe(run)
    seeds = finished_seeds(run, recipe)
    methods, _ = check_request(
        fitting_methods(recipe, methods), 1, (), select, recipe.stage1.method
    )
    if recipe.protocol == "paper":
        raise UserError(
            "sensitivity uses cached features, and a run of the paper protocol has none; use a run "
            "of the clean protocol."
        )
    learn = load_stage1(
        recipe, run, seeds[0], data_path=data_path, cache_path=cache_path, device=device,
        allow_hub=allow_hub,
    )  # fmt: skip
    labels = labels_of(methods, recipe.named_stage1)
    result = sensitivity(learn, methods, select=select, labels=labels, notify=notify)
    run.write_json("sensitivity.json", result.to_dict())
    if result.curves:
        run.save_figure("plots/sensitivity.png", plot_sensitivity(result.curves, result.lines))
    return result
