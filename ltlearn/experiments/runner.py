"""Run a recipe: data, stage 1, the stage 2 of each method, the test set, the files."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastai.torch_core import set_seed

from ltlearn.data.benchmarks.registry import is_listed, listed_names
from ltlearn.data.readers.tables import columns_text
from ltlearn.errors import UserError, check_choice, log_once
from ltlearn.experiments.build import (
    SEEN_WARNING,
    is_untested,
    make_learner,
    make_loaders,
    may_have_seen,
    pick_device,
)
from ltlearn.experiments.predictor import MODEL_FILE, describe_model
from ltlearn.experiments.read_recipe import validate_recipe
from ltlearn.experiments.recipe import Recipe
from ltlearn.experiments.results import make_table, write_results
from ltlearn.experiments.stages import StageFolder, run_seed
from ltlearn.reporting.table import ResultTable
from ltlearn.training.finite import ON_NAN
from ltlearn.training.logs import check_tensorboard
from ltlearn.utils.environment import environment_info
from ltlearn.utils.run_folder import Run

__all__ = ["RecipeResult", "run_recipe"]

_log = logging.getLogger("ltlearn")


@dataclass
class RecipeResult:
    """What a recipe gave."""

    run: Run
    table: ResultTable
    manifest: dict[str, Any]


@log_once()
def run_recipe(
    recipe: Recipe,
    run: Run,
    *,
    data_path: str | Path = "data",
    cache_path: str | Path | None = None,
    device: str = "auto",
    precision: str = "auto",
    skip_bad: bool = False,
    on_nan: str = "stop",
    keep_all: bool = False,
    tensorboard: bool = False,
    compile: bool = False,
    num_workers: int | None = None,
    follow_links: bool = False,
    command: str = "",
    notify: Callable[[str], None] = lambda text: None,
) -> RecipeResult:
    """Run a recipe and write its folder.

    What is finished already in the folder (a stage of a seed, the epochs of one) is taken from
    there, so a run that was stopped goes on, and ends as if it had never been.

    Args:
        recipe: What to run.
        run: The folder to write.
        data_path: Where the images are; own data has that in the recipe.
        cache_path: Folder of cached features; None keeps them in memory.
        device: "auto" or a torch device.
        precision: "auto", "fp32", "bf16" or "fp16".
        skip_bad: Leave unreadable images out.
        on_nan: Where the loss of a step is not finite: "stop" or "skip", see `FiniteLoss`.
        keep_all: Keep the checkpoint of every epoch.
        tensorboard: Write TensorBoard's event files, too.
        compile: Compile the backbone with `torch.compile` for stage 1, where that can be done.
        num_workers: Processes that read own images from disk; None takes the setting of that
            name.
        follow_links: Whether links inside the folder of a published list may lead out of it.
        command: The command line, for the record.
        notify: Called with a line of text at each step.

    Raises:
        UserError: If the data is missing, a value does not fit, the folder belongs to another
            recipe, or TensorBoard is asked for and missing.
    """
    check_choice("on_nan", on_nan, ON_NAN)
    if tensorboard:
        check_tensorboard()
    recipe = recipe.settled()
    if follow_links and not is_listed(recipe.data.dataset):
        raise UserError(
            f"follow_links (--follow-links) is for {', '.join(listed_names())}, not for "
            f"{recipe.data.dataset}; leave it out."
        )
    where = pick_device(device)
    if recipe.data.dataset == "own":
        data_path = recipe.data.source
    effective = recipe.model_dump(mode="json")
    manifest = {
        "recipe": recipe.name,
        "title": recipe.title,
        "status": "running",
        "command": command,
        "protocol": recipe.protocol,
        "values": effective,
        "data_path": str(Path(data_path).absolute()),
        "follow_links": follow_links,
        "cache_path": None if cache_path is None else str(cache_path),
        "precision_asked": precision,
        "run_device": str(where),
        "seeds": [],
        **environment_info(),
    }
    _check_same_run(run, recipe)
    if recipe.status:
        notify(f"{recipe.title}; {recipe.status}")
    run.write_json("manifest.json", manifest)
    seeds, dls = [], None
    for seed in range(recipe.seeds):
        dls = make_loaders(recipe, data_path, seed, skip_bad, where, num_workers, follow_links)
        manifest["seeds"].append(
            {
                "seed": seed,
                "split": dls.split.to_dict(),
                "training_counts": dls.class_counts.tolist(),
            }
        )
        if seed == 0:
            manifest |= {
                "split": dls.split.to_dict(),
                "classes": dls.vocab,
                "class_counts": dls.shot_counts.tolist(),
                "training_images": dls.train.n,
                "validation_images": dls.valid.n,
                "test_images": 0 if is_untested(dls) else dls.test.n,
                "skipped_images": dls.skipped,
                "columns": dls.columns,
            }
            if dls.columns:
                notify(f"columns: {columns_text(dls.columns)}")
            notify(
                f"{dls.split}: {dls.train.n} training, {dls.valid.n} validation "
                f"({dls.split.valid_from}), {'no' if is_untested(dls) else dls.test.n} test images"
            )
            if is_untested(dls):
                notify(
                    "there is no test set: the figures are of the validation images, and optimistic"
                )
            if dls.skipped:
                plural = "s were" if len(dls.skipped) > 1 else " was"
                notify(f"{len(dls.skipped)} unreadable image{plural} left out")
        run.write_json("manifest.json", manifest)
        set_seed(seed)
        learn = make_learner(recipe, dls, precision, cache_path)
        if seed == 0 and may_have_seen(recipe, dls):
            _log.warning("%s", SEEN_WARNING)
        seeds.append(
            run_seed(
                recipe,
                StageFolder(run, seed, on_nan, keep_all, tensorboard, compile, notify),
                learn,
            )
        )
    run.write_json(MODEL_FILE, describe_model(recipe, learn, seeds[0].heads))
    table = make_table(recipe, dls, seeds)
    write_results(recipe, run, dls, seeds, table, manifest)
    return RecipeResult(run, table, manifest)


def _check_same_run(run: Run, recipe: Recipe) -> None:
    """Refuse to go on with a folder whose finished stages were made with other values."""
    if not (run.path / "manifest.json").is_file():
        return
    manifest = run.read_json("manifest.json")
    before = manifest.get("values") if isinstance(manifest, dict) else None
    if not isinstance(before, dict):
        raise UserError(
            f"{run.path / 'manifest.json'} is damaged: it has no values of a recipe; give another "
            "--out."
        )
    # What an earlier version did not know yet has its default.
    before = validate_recipe(before, str(run.path / "manifest.json")).settled()
    old, new = ({"name": r.name, **r.flat()} for r in (before, recipe))
    for key in {**new, **old}:
        # Images are known by their fingerprint, wherever they lie.
        if key != "data.source" and old.get(key) != new.get(key):
            raise UserError(
                f"{run.path} holds a run with {key} = {old.get(key)!r}, not {new.get(key)!r}; give "
                "another --out, or the values of its manifest.json."
            )
