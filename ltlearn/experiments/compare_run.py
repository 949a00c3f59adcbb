"""Compare methods on a finished run."""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ltlearn.compare import check_request, compare
from ltlearn.comparison import Comparison, merge_comparisons
from ltlearn.errors import spell
from ltlearn.experiments.build import describe_leaks
from ltlearn.experiments.compare_page import COMPARE_PAGE, write_compare_page, write_or_warn
from ltlearn.experiments.compared import COMPARE_FILE, EarlierTable
from ltlearn.experiments.manifest import finished_seeds, recorded_recipe, stage_name
from ltlearn.experiments.own_data import fitting_methods
from ltlearn.experiments.recipe import Recipe
from ltlearn.experiments.stages import load_stage1
from ltlearn.methods import METHODS
from ltlearn.names import SHOTS, tested_images
from ltlearn.plots.norms import plot_norms_by_method
from ltlearn.plots.tradeoff import plot_tradeoff
from ltlearn.reporting.text import markdown_table
from ltlearn.utils.run_folder import Run, waits_for_run

__all__ = ["compare_run"]

_log = logging.getLogger("ltlearn")


@waits_for_run
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
    allow_hub: bool = False,
    notify: Callable[[str], None] = lambda text: None,
) -> Comparison:
    """Compare methods on every stage 1 of a run; write `compare.json`, `compare.md` and the plots.

    The rows of an earlier comparison stay in the table, if they were made in the same way. If not,
    the earlier table is kept under another name. If another process writes to the run, this one
    waits for it.

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
        allow_hub: Whether the architecture may be one of the Hugging Face hub or of a local folder.
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
        options = {"views": 0, "bn": "train", "flip": recipe.averages_flips, "select": "best"}
        notify(
            "the run has the paper protocol, so each method that trains does so on the images, not "
            f"on cached features; choose fewer methods with {spell('methods')} to save time"
        )
    before = EarlierTable.read(run)
    earlier = {} if before is None else before.runs
    priors = list(dict.fromkeys([*(before.priors if before is not None else ()), *priors]))
    parts = []
    for seed in stage1_seeds:
        notify(f"stage 1 of seed {seed}")
        learn = load_stage1(
            recipe, run, seed, data_path=data_path, cache_path=cache_path, device=device,
            allow_hub=allow_hub,
        )  # fmt: skip
        part = compare(
            learn, methods, seeds,
            # The first seed is the one of the run itself, so that both reports have one figure.
            priors=priors, stage1_seed=seed, first_seed=seed, run=run, notify=notify,
            arguments={m: recipe.arguments_of(m) for m in recipe.method if m in METHODS},
            earlier={m: [s for first, s in pairs if first == seed] for m, pairs in earlier.items()},
            **options,
        )  # fmt: skip
        parts.append(part)
    comparison = _in_order(parts, methods)
    comparison.about.stage1 = recipe.named_stage1
    notes = (comparison.note, _other_values(recipe, run, comparison), describe_leaks(learn.dls))
    comparison.note = " ".join(text for text in notes if text)
    if before is not None:
        _keep_earlier(run, before, comparison, select)
    _write_comparison(run, comparison, select)
    return comparison


def _in_order(parts: Sequence[Comparison], methods: Sequence[str]) -> Comparison:
    """Merge the comparisons of all stages 1.

    The rows have the order of the request; with rows of an earlier comparison among them, the order
    of the table of methods. An earlier row that not every stage 1 has is left out.
    """
    everywhere = set.intersection(*(set(part.methods) for part in parts))
    order = METHODS if everywhere - set(methods) else methods
    for part in parts:
        names = [name for name in order if name in everywhere]
        part.outcomes = [o for name in names for o in sorted(part.of(name), key=lambda o: o.seed)]
    return merge_comparisons(parts)


def _keep_earlier(run: Run, before: EarlierTable, now: Comparison, select: str) -> None:
    """Keep the earlier table under another name if the new one does not have all its rows."""
    runs = {m: {(o.stage1_seed, o.seed) for o in now.of(m)} for m in now.methods}
    missing = [m for m, pairs in before.runs.items() if not pairs <= runs.get(m, set())]
    if not missing:
        return
    number = 1
    while (run.path / f"compare-{number}.json").exists():
        number += 1
    run.write_json(f"compare-{number}.json", before.content)
    page = run.path / "compare.md"
    if page.is_file():
        # The plots are drawn again for the new table.
        text = re.sub(r"(## [^\n]*\n\n)?!\[[^\n]*\n+", "", page.read_text(encoding="utf-8"))
        run.write_text(f"compare-{number}.md", text)
    other = before.select is not None and before.select != select
    why = (
        f"they were made with {spell('select', before.select)}"
        if other
        else "their classifiers are gone, or were made in another way"
    )
    _log.warning(
        "the rows %s of the earlier comparison are not in the new table, because %s; the earlier "
        "table is kept as %s",
        ", ".join(missing), why, run.path / f"compare-{number}.md",
    )  # fmt: skip


# Facts of a stage 2 that a user can set, and how a sentence names them.
_VALUES = {
    "epochs": "epochs", "lr": "learning rate", "batch": "batch size",
    "weight_decay": "weight decay", "schedule": "schedule", "chosen_on": "epoch chosen on",
}  # fmt: skip


def _other_values(recipe: Recipe, run: Run, comparison: Comparison) -> str:
    """Return why figures differ from those of the run's report: other values, or more seeds."""
    sentences = []
    for method in comparison.methods:
        outcome = comparison.of(method)[0]
        own = f"{stage_name(outcome.stage1_seed, method)}.json"
        if method not in recipe.methods or not outcome.stages or not (run.path / own).is_file():
            continue
        there, here = run.read_json(own, sealed=None).get("stage"), outcome.stages[0]
        if not isinstance(there, dict):
            continue
        differing = [key for key in _VALUES if there.get(key) != here.get(key)]
        if differing:
            texts = [[f"{_VALUES[k]} {s.get(k)}" for k in differing] for s in (here, there)]
            label = comparison.labels[method]
            sentences.append(f"{label} has {', '.join(texts[0])} here, {', '.join(texts[1])} there")
    notes = [f"The figures of report.md differ: {'; '.join(sentences)}."] if sentences else []
    starts = {o.stage1_seed for o in comparison.outcomes}
    if any(len(comparison.of(m)) > len(starts) for m in recipe.methods if m in comparison.methods):
        notes.append("In report.md each method has one run for each stage 1, the first one here.")
    return " ".join(notes)


def _write_comparison(run: Run, comparison: Comparison, select: str) -> None:
    plots = _plots(comparison)
    for name, (_, figure) in plots.items():
        run.save_figure(f"plots/{name}.png", figure)
    run.write_json(COMPARE_FILE, {**comparison.to_dict(), "select": select})
    titles = {name: title for name, (title, _) in plots.items()}
    run.write_text("compare.md", _markdown(comparison, titles))
    write_or_warn(lambda: write_compare_page(run), run.path / COMPARE_PAGE, "compare.md")


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
    tested = tested_images(comparison.about.protocol)
    parts = ["# Methods compared on one stage 1", comparison.table().to_markdown()]
    head, rows = comparison.difference_rows()
    if rows:
        align = ["---", *["---:"] * (len(head) - 1)]
        parts += ["## Differences by group, in points", markdown_table(head, align, rows)]
    head, rows = comparison.prior_rows()
    if rows:
        align = ["---", *["---:"] * (len(head) - 1)]
        parts += ["## Under other class priors", markdown_table(head, align, rows)]
        parts.append(
            f"Accuracy in %, with the {tested} images weighted to the prior. `corrected` adds the "
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
