"""Studies of a finished run: every correction compared, and how much its tuning matters."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ltlearn.compare import Comparison, check_request, compare, merge_comparisons
from ltlearn.errors import UserError, said_once
from ltlearn.learner import LTLearner
from ltlearn.methods import METHODS, find_methods
from ltlearn.metrics import mean_class_accuracy
from ltlearn.own import fitting_methods
from ltlearn.plots import plot_norms_by_method, plot_sensitivity, plot_tradeoff
from ltlearn.recipe import Recipe, _validate
from ltlearn.run import Run
from ltlearn.runner import how_to_finish, load_stage1

__all__ = ["Sensitivity", "compare_run", "sensitivity", "sensitivity_run"]

_log = logging.getLogger("ltlearn")

SENSITIVITY_METHODS = ("max_norm", "label_aware_smoothing", "samn")


def compare_run(
    run: Run,
    methods: Sequence[str] | str | None = None,
    seeds: int = 1,
    *,
    priors: Sequence[str] | str = (),
    select: str = "best",
    data_path: str | Path | None = None,
    cache_path: str | Path | None = None,
    device: str = "auto",
    say: Callable[[str], None] = lambda text: None,
) -> Comparison:
    """Compare methods on every stage 1 of a run; write `compare.json`, `compare.md` and the plots.

    Args:
        run: A run of `ltlearn recipe` whose stage 1 is finished.
        methods: Names of methods; None is all.
        seeds: Runs of every method that draws something at random, from each stage 1.
        priors: Class priors to report under: "uniform", "train", "reversed".
        select: Which epoch of stage 2 is kept under the clean protocol: "best" on validation, or
            "last".
        data_path: Where the pictures are; None takes the run's own.
        cache_path: Folder of cached features.
        device: "auto" or a torch device.
        say: Called with a line of text at each step.

    Raises:
        UserError: If the folder holds no run with a finished stage 1, or a name is unknown.
    """
    recipe, starts = _finished(run)
    methods, priors = check_request(
        fitting_methods(recipe, methods), seeds, priors, select, recipe.stage1.method
    )
    paper = recipe.protocol == "paper"
    if paper:
        select = "best"
        options = {"views": 0, "bn": "train", "flip": True}
    else:
        options = {"views": recipe.settled().stage2.views or 1}
    parts = []
    for start in starts:
        say(f"stage 1 of seed {start}")
        learn = load_stage1(
            recipe, run, start, data_path=data_path, cache_path=cache_path, device=device
        )
        found = compare(
            learn, methods, seeds,
            priors=priors, select=select, start=start, run=run, say=say,
            arguments={m: recipe.arguments_of(m) for m in methods if m in recipe.method},
            **options,
        )  # fmt: skip
        parts.append(found)
    comparison = merge_comparisons(parts)
    if learn.dls.split.test is None:
        comparison.about["protocol"] = "untested"
    _write_comparison(run, comparison)
    return comparison


def _finished(run: Run) -> tuple[Recipe, list[int]]:
    """Return the recipe of a run, and the seeds whose stage 1 is finished."""
    if not (run.path / "manifest.json").is_file():
        raise UserError(
            f"{run.path} holds no run (no manifest.json); give the folder that `ltlearn recipe` "
            "wrote."
        )
    manifest = run.read_json("manifest.json")
    values = manifest.get("values") if isinstance(manifest, dict) else None
    if not isinstance(values, dict):
        raise UserError(f"{run.path / 'manifest.json'} has no values of a recipe.")
    recipe = _validate(values, str(run.path / "manifest.json"))
    starts = [
        seed
        for seed in range(recipe.seeds)
        if (run.path / f"checkpoints/seed{seed}-stage1.json").is_file()
    ]
    if not starts:
        raise UserError(
            f"{run.path} has no finished stage 1; finish it with {how_to_finish(recipe, run)}."
        )
    return recipe, starts


def _write_comparison(run: Run, comparison: Comparison) -> None:
    label = {m: METHODS[m].label for m in comparison.methods}
    groups = [g for g in ("many", "medium", "few") if comparison.outcomes[0].report.group_sizes[g]]
    plots = {}
    if len(groups) > 1:
        ends = (groups[0], groups[-1])
        points = {
            label[m]: [tuple(getattr(o.report, g) for g in ends) for o in comparison.of(m)]
            for m in comparison.methods
        }
        highlight = label.get(comparison.stage1)
        plots[f"{ends[0]}-shot against {ends[1]}-shot accuracy"] = (
            "compare_tradeoff", plot_tradeoff(points, ends, highlight=highlight)
        )  # fmt: skip
    norms = {
        label[m]: np.mean([o.norms for o in comparison.of(m)], axis=0) for m in comparison.methods
    }
    plots["norms of the classifier's rows"] = (
        "compare_norms",
        plot_norms_by_method(
            norms, comparison.class_counts, reference=label.get(comparison.stage1)
        ),
    )
    for name, figure in plots.values():
        run.save_figure(f"plots/{name}.png", figure)
    run.write_json("compare.json", comparison.to_dict())
    run.write_text("compare.md", _markdown(comparison, plots))


def _markdown(comparison: Comparison, plots: dict) -> str:
    parts = ["# Methods compared on one stage 1", comparison.table().to_markdown()]
    head, rows = comparison.prior_rows()
    if rows:
        parts += ["## Under other class priors", _markdown_table(head, rows)]
        parts.append(
            "Accuracy in %, test images weighted to the prior; `corrected` adds the logarithm of "
            "that prior, and takes off that of the prior the classifier assumes."
        )
    for title, (name, _) in plots.items():
        parts += [f"## {title[0].upper()}{title[1:]}", f"![{title}](plots/{name}.png)"]
    parts += ["## Where the values are from", _sources(comparison.methods)]
    return "\n\n".join(parts) + "\n"


def _markdown_table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _sources(methods: Sequence[str]) -> str:
    lines = []
    for name in methods:
        row = METHODS[name]
        lines.append(f"* {row.label} (`{name}`): {row.source}. {row.values_from}".rstrip(" ."))
    return "\n".join(lines)


# ---------------------------------------------------------------- sensitivity


@dataclass
class Sensitivity:
    """Accuracy of each method over its own hyper-parameter.

    Args:
        curves: A dictionary a method that has one: method, label, parameter, values, accuracy and
            validation (class-balanced, test and validation images), default, log.
        lines: Class-balanced test accuracy of the methods that have none, by label.
        about: Which pictures, split and seed, and what the accuracy is measured on.
    """

    curves: list[dict[str, Any]]
    lines: dict[str, float]
    about: dict[str, Any] = field(default_factory=dict)

    def about_line(self) -> str:
        """Return which pictures, split and seed it is of, in a line."""
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


@said_once()
def sensitivity(
    learn: LTLearner,
    methods: Sequence[str] | str = SENSITIVITY_METHODS,
    *,
    seed: int = 0,
    select: str = "best",
    say: Callable[[str], None] = lambda text: None,
) -> Sensitivity:
    """Train each method over the published range of its own hyper-parameter.

    Nothing is chosen here: every value's test accuracy is shown. The learner is left as it was
    found.

    Args:
        learn: An `LTLearner` after stage 1, with a test set.
        methods: Names of methods. One without a hyper-parameter of its own gives a line.
        seed: Of order and augmentation.
        select: Which epoch of stage 2 is kept: "best" on validation, or "last".
        say: Called with a line of text at each step.

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
                say(f"{row.label}, {row.sweep.parameter} {value:g}")
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
    say: Callable[[str], None] = lambda text: None,
) -> Sensitivity:
    """Study the first stage 1 of a run; write `sensitivity.json` and the plot.

    Args:
        run: A run of `ltlearn recipe` whose stage 1 is finished.
        methods: Names of methods.
        select: Which epoch of stage 2 is kept: "best" on validation, or "last".
        data_path: Where the pictures are; None takes the run's own.
        cache_path: Folder of cached features.
        device: "auto" or a torch device.
        say: Called with a line of text at each step.

    Raises:
        UserError: If the folder holds no run with a finished stage 1, it ran the paper protocol, or
            a name is unknown.
    """
    recipe, starts = _finished(run)
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
    result = sensitivity(learn, methods, select=select, say=say)
    run.write_json("sensitivity.json", result.to_dict())
    if result.curves:
        run.save_figure("plots/sensitivity.png", plot_sensitivity(result.curves, result.lines))
    return result
