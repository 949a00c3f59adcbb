"""Run a recipe: data, stage 1, the stage 2 of each method, the test set, the files."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from fastai.torch_core import set_seed

from ltlearn.data import LTDataLoaders
from ltlearn.data.benchmarks.registry import is_listed, listed_names
from ltlearn.data.older import keep_older_names
from ltlearn.data.readers.columns import columns_text
from ltlearn.errors import UserError, log_once, spell
from ltlearn.experiments.build import (
    SEEN_WARNING,
    describe_inputs,
    make_learner,
    make_loaders,
    may_have_seen,
    pick_device,
)
from ltlearn.experiments.manifest import (
    MANIFEST_FILE,
    Manifest,
    read_manifest,
    recorded_recipe,
    recorded_split,
)
from ltlearn.experiments.model_facts import describe_model, write_model_facts
from ltlearn.experiments.options import RunOptions
from ltlearn.experiments.recipe import Recipe
from ltlearn.experiments.report_page import write_page_of_run
from ltlearn.experiments.results import make_table, write_results
from ltlearn.experiments.stages import SeedResult, StageFolder, run_seed, stage1_callbacks
from ltlearn.learner import LTLearner
from ltlearn.methods import METHODS
from ltlearn.reporting.classes import ClassTable
from ltlearn.reporting.table import ResultTable
from ltlearn.training.logs import check_tensorboard
from ltlearn.training.loop import memory_to_user_error
from ltlearn.training.selection import tested_part
from ltlearn.utils.environment import environment_info, warn_of_threads
from ltlearn.utils.ranks import by_first, wait
from ltlearn.utils.run_folder import Run

__all__ = ["RecipeResult", "run_recipe"]

_log = logging.getLogger("ltlearn")


@dataclass
class RecipeResult:
    """The outcome of a recipe.

    Args:
        run: The folder that was written.
        table: The result table.
        manifest: The manifest of the run.
        classes: The accuracy of each class.
    """

    run: Run
    table: ResultTable
    manifest: Manifest
    classes: ClassTable

    def __repr__(self) -> str:
        """Return the folder and the table in short."""
        return f"RecipeResult in {self.run.path}: {self.table!r}"

    def _repr_html_(self) -> str:
        """Return the tables that a notebook shows."""
        return self.table.to_html() + self.classes.to_html()


@log_once()
def run_recipe(
    recipe: Recipe,
    run: Run,
    options: RunOptions | None = None,
    *,
    notify: Callable[[str], None] = lambda text: None,
    **keywords: Any,
) -> RecipeResult:
    """Run a recipe and write its folder.

    Finished stages and epochs in the folder are loaded. So a run that was stopped continues, and
    ends as if it had never been stopped.

    Args:
        recipe: The recipe.
        run: The folder to write.
        options: Folders, device, precision and so on; None takes the defaults.
        notify: Called with a line of text at each step.
        **keywords: Fields of `RunOptions`, such as device="cpu", that replace those of `options`.

    Raises:
        UserError: If the data is missing, a value is impossible, the folder belongs to another
            recipe or is in use by another process, or TensorBoard is missing.

    Example:
        >>> run_recipe(load_recipe("digits_lt"), Run("runs/digits"), device="cpu")  # doctest: +SKIP
    """
    options = replace(options or RunOptions(), **keywords)
    with run.lock(), memory_to_user_error():
        return _run_locked(recipe, run, options, notify)


def _run_locked(
    recipe: Recipe, run: Run, options: RunOptions, notify: Callable[[str], None]
) -> RecipeResult:
    if options.tensorboard:
        check_tensorboard()
    recipe = recipe.settled()
    if options.follow_links and not is_listed(recipe.data.dataset):
        raise UserError(
            f"{spell('follow_links', True)} is for {', '.join(listed_names())}, not for "
            f"{recipe.data.dataset}; leave it out."
        )
    _check_methods(recipe)
    if recipe.data.dataset == "own":
        options = replace(options, data_path=recipe.data.source)
    manifest = _start_manifest(recipe, options)
    _check_same_run(run, recipe)
    if recipe.status:
        notify(f"{recipe.title}; {recipe.status}")
    splits = [recorded_split(run, seed) for seed in range(recipe.seeds)]
    wait()  # until all ranks have read the manifest that the next line replaces
    run.write_json(MANIFEST_FILE, manifest.to_dict())
    results = []
    for seed in range(recipe.seeds):
        dls = make_loaders(recipe, seed, options)
        keep_older_names(dls, splits[seed])
        _record_data(manifest, seed, dls)
        if seed == 0:
            _report_data(dls, notify)
        run.write_json(MANIFEST_FILE, manifest.to_dict())
        set_seed(seed)
        learn = make_learner(recipe, dls, options, check=seed == 0)
        if seed == 0:
            manifest.inputs = describe_inputs(learn)
            logged = learn.as_given.warnings if learn.as_given is not None else ()
            for line in manifest.inputs:
                if line not in logged:
                    notify(line)
        if seed == 0 and may_have_seen(recipe, dls):
            _log.warning("%s", SEEN_WARNING)
        results.append(run_seed(recipe, StageFolder(run, seed, options, notify), learn))
    table = make_table(recipe, dls, results)
    write_outcome = by_first(partial(_write_outcome, recipe, run, learn, results))
    classes, manifest = write_outcome(table, manifest)
    return RecipeResult(run, table, manifest, classes)


def _write_outcome(
    recipe: Recipe,
    run: Run,
    learn: LTLearner,
    results: list[SeedResult],
    table: ResultTable,
    manifest: Manifest,
) -> tuple[ClassTable, Manifest]:
    """Write model facts, results and page; return the table of classes and the manifest."""
    write_model_facts(run, describe_model(recipe, learn, results[0].heads))
    classes = write_results(recipe, run, learn.dls, results, table, manifest)
    write_page_of_run(run, learn.dls)
    return classes, manifest


def _check_methods(recipe: Recipe) -> None:
    """Make the losses and callbacks once, so that an impossible option is refused before training.

    Raises:
        UserError: If an option is outside its range.
    """
    METHODS[recipe.stage1.method].arguments(**recipe.stage1.options())
    stage1_callbacks(recipe.stage1)
    for name in recipe.methods:
        if METHODS[name].kind == "stage 2":
            METHODS[name].arguments(**recipe.options_of(name))


def _start_manifest(recipe: Recipe, options: RunOptions) -> Manifest:
    cache = options.cache_path
    return Manifest(
        recipe=recipe.name,
        title=recipe.title,
        command=options.command,
        protocol=recipe.protocol,
        values=recipe.model_dump(mode="json"),
        data_path=str(Path(options.data_path).absolute()),
        follow_links=options.follow_links,
        cache_path=None if cache is None else str(cache),
        precision_asked=options.precision,
        run_device=str(pick_device(options.device)),
        **environment_info(),
    )


def _record_data(manifest: Manifest, seed: int, dls: LTDataLoaders) -> None:
    """Record the split of a seed, and the facts of the dataset with the first seed."""
    split, counts = dls.split.to_dict(), dls.class_counts.tolist()
    manifest.seeds.append({"seed": seed, "split": split, "training_counts": counts})
    if seed > 0:
        return
    manifest.split = split
    manifest.classes = dls.vocab
    manifest.class_counts = dls.shot_counts.tolist()
    manifest.training_images = dls.train.n
    manifest.validation_images = dls.valid.n
    manifest.test_images = dls.test.n if tested_part(dls) == "test" else 0
    manifest.skipped_images = dls.skipped
    manifest.columns = dls.columns


def _report_data(dls: LTDataLoaders, notify: Callable[[str], None]) -> None:
    if dls.columns:
        notify(f"columns: {columns_text(dls.columns)}")
    origin = dls.split.valid_from
    if origin == "training images":
        origin = "taken from the training images"
    n_test = dls.test.n if tested_part(dls) == "test" else "no"
    notify(
        f"{dls.split}: {dls.train.n} training, {dls.valid.n} validation "
        f"({origin}), {n_test} test images"
    )
    if tested_part(dls) == "valid":
        notify(
            "there is no test set: the figures are measured on the validation images, and "
            "optimistic"
        )
    if dls.skipped:
        plural = "s were" if len(dls.skipped) > 1 else " was"
        notify(f"{len(dls.skipped)} unreadable image{plural} left out")


def _check_same_run(run: Run, recipe: Recipe) -> None:
    """Raise a `UserError` if the stages in the folder were trained with other values."""
    if not (run.path / MANIFEST_FILE).is_file():
        return
    # Values that an earlier version did not know get their defaults.
    before = recorded_recipe(run).settled()
    warn_of_threads(read_manifest(run).threads)
    old, new = ({"name": r.name, **r.flat()} for r in (before, recipe))
    for key in {**new, **old}:
        # Fingerprints identify the images, so their folder may have moved.
        if key != "data.source" and old.get(key) != new.get(key):
            raise UserError(
                f"{run.path} holds a run with {key} = {old.get(key)!r}, not {new.get(key)!r}; give "
                f"another {spell('out')}, or the values of its {MANIFEST_FILE}."
            )
