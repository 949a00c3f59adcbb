"""Sensitivity: accuracy over the hyper-parameter of a method."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ltlearn.compare import check_request
from ltlearn.errors import UserError, log_once
from ltlearn.experiments.compare_run import finished_recipe
from ltlearn.experiments.own_data import fitting_methods
from ltlearn.experiments.stages import load_stage1
from ltlearn.learner import LTLearner
from ltlearn.methods import METHODS, find_methods
from ltlearn.metrics.accuracy import mean_class_accuracy
from ltlearn.plots.sensitivity import plot_sensitivity
from ltlearn.utils.run_folder import Run

__all__ = ["Sensitivity", "sensitivity", "sensitivity_run"]

SENSITIVITY_METHODS = ("max_norm", "label_aware_smoothing", "samn")


@dataclass
class Sensitivity:
    """Accuracy of each method over its own hyper-parameter.

    Args:
        curves: A dictionary a method that has one: method, label, parameter, values, accuracy and
            validation (class-balanced, test and validation images), default, log.
        lines: Class-balanced test accuracy of the methods that have none, by label.
        about: Which images, split and seed, and what the accuracy is measured on.
    """

    curves: list[dict[str, Any]]
    lines: dict[str, float]
    about: dict[str, Any] = field(default_factory=dict)

    def about_line(self) -> str:
        """Return which images, split and seed it is of, in a line."""
        return ", ".join(f"{key} {value}" for key, value in self.about.items())

    def ranges(self) -> dict[str, tuple[float, float]]:
        """Return the lowest and the highest test accuracy of each method, by label."""
        found = {c["label"]: (min(c["accuracy"]), max(c["accuracy"])) for c in self.curves}
        return found | {label: (value, value) for label, value in self.lines.items()}

    def rows(self) -> list[list[str]]:
        """Return the table: method, parameter, range tried, lowest, highest, span, in %."""
        rows = []
        for c in self.curves:
            low, high = 100 * min(c["accuracy"]), 100 * max(c["accuracy"])
            tried = f"{c['values'][0]:g} to {c['values'][-1]:g}"
            rows.append(
                [
                    c["label"],
                    c["parameter"],
                    tried,
                    f"{low:.1f}",
                    f"{high:.1f}",
                    f"{high - low:.1f}",
                ]
            )
        for label, value in self.lines.items():
            rows.append([label, "–", "–", f"{100 * value:.1f}", f"{100 * value:.1f}", "0.0"])
        return rows

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain numbers and lists."""
        return {"curves": self.curves, "lines": self.lines, "about": self.about}


@log_once()
def sensitivity(
    learn: LTLearner,
    methods: Sequence[str] | str = SENSITIVITY_METHODS,
    *,
    seed: int = 0,
    select: str = "best",
    notify: Callable[[str], None] = lambda text: None,
) -> Sensitivity:
    """Train each method over the published range of its own hyper-parameter.

    Nothing is chosen here: every value's test accuracy is shown. The learner is left as it was
    found.

    Args:
        learn: An `LTLearner` after stage 1, with a test set.
        methods: Names of methods. One without a hyper-parameter of its own gives a line.
        seed: Of order and augmentation.
        select: Which epoch of stage 2 is kept: "best" on validation, or "last".
        notify: Called with a line of text at each step.

    Raises:
        UserError: If there is no test set, or a method is unknown.
    """
    methods = find_methods(methods, learn.stage1_method)
    if learn.dls.test is None:
        raise UserError("there is no test set to measure on; give the data a test part.")
    if select == "best":
        select = learn.settle_select()
    stage1 = {k: v.detach().clone() for k, v in learn.model.state_dict().items()}
    before = (learn.trajectory, list(learn.stages))
    curves, lines = [], {}
    try:
        for method in methods:
            row = METHODS[method]
            if row.sweep is None:
                lines[row.label] = _balanced(learn, stage1, method, {}, seed, select)[0]
                continue
            found = []
            for value in row.sweep.values:
                notify(f"{row.label}, {row.sweep.parameter} {value:g}")
                more = row.sweep.arguments(value)
                found.append(_balanced(learn, stage1, method, more, seed, select))
            curves.append(
                {
                    "method": method, "label": row.label, "parameter": row.sweep.parameter,
                    "values": list(row.sweep.values), "accuracy": [test for test, _ in found],
                    "validation": [valid for _, valid in found],
                    "default": row.sweep.default, "log": row.sweep.log,
                }
            )  # fmt: skip
    finally:
        learn.model.load_state_dict(stage1)
        learn.opt = None
        learn.trajectory, learn.stages = before
    split = learn.dls.split
    about = {
        "dataset": split.dataset, "split": split.name, "fingerprint": split.train,
        "accuracy on": f"{'validation' if split.test is None else 'test'} images",
        "epoch": select, "seed": seed,
    }  # fmt: skip
    return Sensitivity(curves, lines, about)


def _balanced(learn, stage1, method: str, more: dict, seed: int, select: str) -> tuple:
    """Return class-balanced accuracy on the test and the validation images."""
    learn.model.load_state_dict(stage1)
    row = METHODS[method]
    if row.kind == "stage 2":
        learn.retrain_classifier(method=method, seed=seed, view_seed=0, select=select, **more)
    elif row.kind == "post hoc":
        learn.correct_classifier(method)
    figures = []
    for part in ("test", "valid"):
        logits, targets = learn.predict_logits(part)
        figures.append(mean_class_accuracy(logits.argmax(1), targets, learn.dls.c))
    return tuple(figures)


def sensitivity_run(
    run: Run,
    methods: Sequence[str] | str = SENSITIVITY_METHODS,
    *,
    select: str = "best",
    data_path: str | Path | None = None,
    cache_path: str | Path | None = None,
    device: str = "auto",
    notify: Callable[[str], None] = lambda text: None,
) -> Sensitivity:
    """Study the first stage 1 of a run; write `sensitivity.json` and the plot.

    Args:
        run: A run of `ltlearn recipe` whose stage 1 is finished.
        methods: Names of methods.
        select: Which epoch of stage 2 is kept: "best" on validation, or "last".
        data_path: Where the images are; None takes the run's own.
        cache_path: Folder of cached features.
        device: "auto" or a torch device.
        notify: Called with a line of text at each step.

    Raises:
        UserError: If the folder holds no run with a finished stage 1, it ran the paper protocol, or
            a name is unknown.
    """
    recipe, starts = finished_recipe(run)
    methods, _ = check_request(
        fitting_methods(recipe, methods), 1, (), select, recipe.stage1.method
    )
    if recipe.protocol == "paper":
        raise UserError(
            "sensitivity works on cached features of the clean protocol; this run is of the paper "
            "protocol."
        )
    learn = load_stage1(
        recipe, run, starts[0], data_path=data_path, cache_path=cache_path, device=device
    )
    result = sensitivity(learn, methods, select=select, notify=notify)
    run.write_json("sensitivity.json", result.to_dict())
    if result.curves:
        run.save_figure("plots/sensitivity.png", plot_sensitivity(result.curves, result.lines))
    return result
