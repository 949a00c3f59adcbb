"""Compare methods on a finished run."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ltlearn.compare import check_request, compare
from ltlearn.comparison import Comparison, merge_comparisons
from ltlearn.experiments.manifest import finished_seeds, recorded_recipe
from ltlearn.experiments.own_data import fitting_methods
from ltlearn.experiments.stages import load_stage1
from ltlearn.methods import METHODS
from ltlearn.names import SHOTS
from ltlearn.plots.norms import plot_norms_by_method
from ltlearn.plots.tradeoff import plot_tradeoff
from ltlearn.reporting.text import markdown_table
from ltlearn.utils.run_folder import Run

__all__ = ["compare_run"]


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
    notify: Callable[[str], None] = lambda text: None,
) -> Comparison:
    """Compare methods on every stage 1 of a run; write `compare.json`, `compare.md` and the plots.

    Args:
        run: A run whose stage 1 is finished.
        methods: Names of methods; None takes all.
        seeds: Runs of each method whose outcome depends on the seed, from each stage 1.
        priors: Class priors to report under: "uniform", "train", "reversed".
        select: Which epoch of stage 2 is kept under the clean protocol: "best" on validation, or
            "last".
        data_path: Where the images are; None takes the path in the run's manifest.
        cache_path: Folder of cached features; None keeps them in memory.
        device: "auto" or a torch device.
        notify: Called with a line of text at each step.

    Raises:
        UserError: If the folder holds no run with a finished stage 1, or a name is unknown.

    Example:
        >>> print(compare_run(Run("runs/digits"), "ce,crt,samn"))  # doctest: +SKIP
    """
    recipe = recorded_recipe(run)
    stage1_seeds = finished_seeds(run, recipe)
    methods, priors = check_request(
        fitting_methods(recipe, methods), seeds, priors, select, recipe.stage1.method
    )
    options = {"views": recipe.settled().stage2.views or 1, "select": select}
    if recipe.protocol == "paper":
        options = {"views": 0, "bn": "train", "flip": True, "select": "best"}
    parts = []
    for seed in stage1_seeds:
        notify(f"stage 1 of seed {seed}")
        learn = load_stage1(
            recipe, run, seed, data_path=data_path, cache_path=cache_path, device=device
        )
        part = compare(
            learn, methods, seeds,
            priors=priors, stage1_seed=seed, run=run, notify=notify,
            arguments={m: recipe.arguments_of(m) for m in methods if m in recipe.method},
            **options,
        )  # fmt: skip
        parts.append(part)
    comparison = merge_comparisons(parts)
    if learn.dls.split.test is None:
        comparison.about.protocol = "untested"
    comparison.about.stage1 = recipe.named_stage1
    _write_comparison(run, comparison)
    return comparison


def _write_comparison(run: Run, comparison: Comparison) -> None:
    plots = _plots(comparison)
    for name, (_, figure) in plots.items():
        run.save_figure(f"plots/{name}.png", figure)
    run.write_json("compare.json", comparison.to_dict())
    titles = {name: title for name, (title, _) in plots.items()}
    run.write_text("compare.md", _markdown(comparison, titles))


def _plots(comparison: Comparison) -> dict[str, tuple[str, Figure]]:
    """Return title and figure by file name."""
    labels = comparison.labels
    sizes = comparison.outcomes[0].report.group_sizes
    groups = [g for g in SHOTS if sizes[g]]
    plots = {}
    if len(groups) > 1:
        ends = (groups[0], groups[-1])
        points = {
            labels[m]: [tuple(getattr(o.report, g) for g in ends) for o in comparison.of(m)]
            for m in comparison.methods
        }
        plots["compare_tradeoff"] = (
            f"{ends[0]}-shot against {ends[1]}-shot accuracy",
            plot_tradeoff(points, ends, highlight=labels.get(comparison.stage1)),
        )
    norms = {
        labels[m]: np.mean([o.norms for o in comparison.of(m)], axis=0) for m in comparison.methods
    }
    plots["compare_norms"] = (
        "norms of the classifier's rows",
        plot_norms_by_method(
            norms, comparison.class_counts, reference=labels.get(comparison.stage1)
        ),
    )
    return plots


def _markdown(comparison: Comparison, titles: dict[str, str]) -> str:
    parts = ["# Methods compared on one stage 1", comparison.table().to_markdown()]
    head, rows = comparison.prior_rows()
    if rows:
        align = ["---", *["---:"] * (len(head) - 1)]
        parts += ["## Under other class priors", markdown_table(head, align, rows)]
        parts.append(
            "Accuracy in %, with the test images weighted to the prior. `corrected` adds the "
            "logarithm of that prior to the logits, and subtracts the one that the classifier "
            "assumes."
        )
    for name, title in titles.items():
        parts += [f"## {title[0].upper()}{title[1:]}", f"![{title}](plots/{name}.png)"]
    parts += ["## Sources of the values", _sources(comparison.labels)]
    return "\n\n".join(parts) + "\n"


def _sources(labels: Mapping[str, str]) -> str:
    lines = []
    for name, label in labels.items():
        row = METHODS[name]
        lines.append(f"* {label} (`{name}`): {row.source}. {row.values_from}".rstrip(" ."))
    return "\n".join(lines)
