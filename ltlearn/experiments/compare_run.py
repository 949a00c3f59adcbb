"""Compare methods on a finished run."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ltlearn.compare import check_request, compare
from ltlearn.comparison import Comparison, merge_comparisons
from ltlearn.errors import UserError
from ltlearn.experiments.own_data import fitting_methods
from ltlearn.experiments.read_recipe import validate_recipe
from ltlearn.experiments.recipe import Recipe
from ltlearn.experiments.stages import how_to_finish, load_stage1
from ltlearn.methods import METHODS
from ltlearn.plots.norms import plot_norms_by_method
from ltlearn.plots.tradeoff import plot_tradeoff
from ltlearn.utils.run_folder import Run

__all__ = ["compare_run", "finished_recipe"]


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
        run: A run of `ltlearn recipe` whose stage 1 is finished.
        methods: Names of methods; None is all.
        seeds: Runs of every method that draws something at random, from each stage 1.
        priors: Class priors to report under: "uniform", "train", "reversed".
        select: Which epoch of stage 2 is kept under the clean protocol: "best" on validation, or
            "last".
        data_path: Where the images are; None takes the run's own.
        cache_path: Folder of cached features.
        device: "auto" or a torch device.
        notify: Called with a line of text at each step.

    Raises:
        UserError: If the folder holds no run with a finished stage 1, or a name is unknown.
    """
    recipe, starts = finished_recipe(run)
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
        notify(f"stage 1 of seed {start}")
        learn = load_stage1(
            recipe, run, start, data_path=data_path, cache_path=cache_path, device=device
        )
        found = compare(
            learn, methods, seeds,
            priors=priors, select=select, stage1_seed=start, run=run, notify=notify,
            arguments={m: recipe.arguments_of(m) for m in methods if m in recipe.method},
            **options,
        )  # fmt: skip
        parts.append(found)
    comparison = merge_comparisons(parts)
    if learn.dls.split.test is None:
        comparison.about["protocol"] = "untested"
    _write_comparison(run, comparison)
    return comparison


def finished_recipe(run: Run) -> tuple[Recipe, list[int]]:
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
    recipe = validate_recipe(values, str(run.path / "manifest.json"))
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
