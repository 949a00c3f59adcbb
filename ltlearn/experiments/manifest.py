"""The files that describe a run: its manifest, and a record beside the weights of each stage."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import Field

from ltlearn.errors import UserError, spell, spell_call
from ltlearn.experiments.read_recipe import validate_recipe
from ltlearn.experiments.recipe import Recipe
from ltlearn.training.records import Record, TrajectoryRecord, describe_selection
from ltlearn.training.stored import check_stored_stage, stored_trajectory
from ltlearn.utils.older_runs import checked_fields, with_todays_keys
from ltlearn.utils.run_folder import Run
from ltlearn.utils.text import short_repr

__all__ = [
    "FINISHED",
    "MANIFEST_FILE",
    "FinishedStage",
    "Manifest",
    "finished_seeds",
    "how_to_finish",
    "read_manifest",
    "recorded_data_path",
    "recorded_recipe",
    "recorded_split",
    "stage_name",
]

MANIFEST_FILE = "manifest.json"
FINISHED = "finished"


@dataclass(eq=False)
class Manifest(Record):
    """What a run records about itself.

    Args:
        recipe: The name of the recipe.
        title: Its title.
        status: "running" or "finished".
        command: The command line.
        protocol: "clean" or "paper".
        values: The values of the recipe, each filled in.
        data_path: Where the images are.
        follow_links: Whether links may lead out of the folder of the images.
        cache_path: Folder of cached features; None keeps them in memory.
        precision_asked: The precision that the user chose; "auto" leaves it to the device.
        run_device: The torch device.
        seeds: Split and training counts of each seed.
        versions: Versions by package.
        platform: The operating system.
        cpu_count: Processor cores.
        threads: Threads of torch.
        device: The name of the graphics card, or of the processor.
        split: The split of the first seed.
        classes: The names of the classes.
        class_counts: Training images per class, before validation images are carved off.
        training_images: How many images are trained on.
        validation_images: How many images validate.
        test_images: How many images test; 0 without a test set.
        skipped_images: Unreadable images that are left out.
        columns: Which columns of a table are read.
        inputs: How images enter the model, and the order of its outputs, a line each.
        training_seconds: Seconds of training, all seeds and stages together.
        stages: A record of each stage that trained.
        results: The result table.
    """

    recipe: str = ""
    title: str = ""
    status: str = "running"
    command: str = ""
    protocol: str = "clean"
    values: dict[str, Any] = field(default_factory=dict)  # hides `Mapping.values`
    data_path: str = ""
    follow_links: bool = False
    cache_path: str | None = None
    precision_asked: str = "auto"
    run_device: str = ""
    seeds: list[dict[str, Any]] = field(default_factory=list)
    versions: dict[str, str | None] = field(default_factory=dict)
    platform: str = ""
    cpu_count: int | None = None
    threads: int | None = None
    device: str = ""
    split: dict[str, Any] | None = None
    classes: list[str] | None = None
    class_counts: list[int] | None = None
    training_images: int | None = None
    validation_images: int | None = None
    test_images: int | None = None
    skipped_images: list[str] | None = None
    columns: dict[str, str] | None = None
    inputs: list[str] | None = None
    training_seconds: float | None = None
    stages: list[dict[str, Any]] | None = None
    results: dict[str, Any] | None = None

    # Known once the images are read, or once the run is finished.
    _optional = frozenset(
        {
            "split", "classes", "class_counts", "training_images", "validation_images",
            "test_images", "skipped_images", "columns", "inputs",
            "training_seconds", "stages", "results",
        }
    )  # fmt: skip

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Manifest":
        """Return the manifest in a file, which another version may have written.

        Args:
            values: What the file holds.

        Raises:
            UserError: If a value is impossible. The caller names the file.
        """
        return cls(**checked_fields(cls, values))

    @property
    def is_finished(self) -> bool:
        """Return whether the run is finished."""
        return self.status == FINISHED


def read_manifest(run: Run) -> Manifest:
    """Read the manifest of a run.

    Args:
        run: The run's folder.

    Raises:
        UserError: If there is no manifest, or it has no values of a recipe.
    """
    content = run.read_json(MANIFEST_FILE)
    if not isinstance(content, dict) or not isinstance(content.get("values"), dict):
        raise UserError(
            f"{run.path / MANIFEST_FILE} is damaged: it has no values of a recipe; give another "
            "folder."
        )
    try:
        return Manifest.from_dict(content)
    except UserError as e:
        raise UserError(f"{run.path / MANIFEST_FILE} is damaged: {e}") from None


def recorded_data_path(manifest: Manifest, run: Run) -> str:
    """Return where the images of a run are.

    Args:
        manifest: The manifest of the run.
        run: Its folder.

    Raises:
        UserError: If the path is not absolute. A run records an absolute path. With another one, a
            received folder would bring the images along that it is read with.
    """
    if not os.path.isabs(manifest.data_path):
        raise UserError(
            f"{run.path / MANIFEST_FILE} is damaged: data_path = {short_repr(manifest.data_path)} "
            f"is no absolute path; give the folder of the images as {spell('data_path')}."
        )
    return manifest.data_path


def recorded_split(run: Run, seed: int) -> dict[str, Any] | None:
    """Return the split that a run recorded for a seed; None if it recorded none.

    Args:
        run: The run's folder.
        seed: The seed.
    """
    if not (run.path / MANIFEST_FILE).is_file():
        return None
    seeds = [entry for entry in read_manifest(run).seeds if isinstance(entry, dict)]
    split = next((entry.get("split") for entry in seeds if entry.get("seed") == seed), None)
    return split if isinstance(split, dict) else None


def recorded_recipe(run: Run) -> Recipe:
    """Return the recipe that a run's manifest records.

    Args:
        run: The run's folder.

    Raises:
        UserError: If there is no manifest, or a value is impossible.
    """
    values, where = read_manifest(run).values, str(run.path / MANIFEST_FILE)
    return validate_recipe(values, where, recorded=True)


def stage_name(seed: int, stage: str) -> str:
    """Return the name of a stage's files in the folder of a run, without an ending.

    Args:
        seed: The seed.
        stage: "stage1", or the method of a later stage.
    """
    return f"checkpoints/seed{seed}-{stage}"


def finished_seeds(run: Run, recipe: Recipe) -> list[int]:
    """Return the seeds whose stage 1 is finished.

    Args:
        run: The run's folder.
        recipe: Its recipe.

    Raises:
        UserError: If there is none.
    """
    seeds = [
        seed
        for seed in range(recipe.seeds)
        if (run.path / f"{stage_name(seed, 'stage1')}.json").is_file()
    ]
    if not seeds:
        raise UserError(
            f"{run.path} has no finished stage 1; finish it with {how_to_finish(recipe, run)}."
        )
    return seeds


def how_to_finish(recipe: Recipe, run: Run) -> str:
    """Return the call that continues a run.

    Args:
        recipe: The run's recipe.
        run: Its folder.
    """
    where = str(run.path)
    if recipe.data.dataset == "own":
        return (
            f"the command in its {MANIFEST_FILE} and {spell('out', where)} {spell('resume', True)}"
        )
    return spell_call("run_recipe", recipe=recipe.name, out=where, resume=True)


@dataclass(eq=False)
class FinishedStage(Record):
    """The record beside the weights of a finished stage.

    Args:
        trajectory: Its figures, epoch by epoch.
        stage: What was trained, and how.
        images: Fingerprints of the images.
        precision: The precision of the training.
        weights: The checksum of the weights; None in runs of early versions.
    """

    trajectory: TrajectoryRecord
    stage: dict[str, Any]
    images: Annotated[str | None, Field(max_length=500)] = None
    precision: Annotated[str | None, Field(max_length=50)] = None
    weights: Annotated[str | None, Field(max_length=100)] = None

    def describe_selection(self) -> str:
        """Return which weights are tested, and which images they were chosen on."""
        # A correction without training has no epochs to choose from.
        is_trained = self.stage["stage"] != "post hoc"
        stages = [self.stage, *self.stage.get("then", ())]
        return describe_selection(stages, self.trajectory if is_trained else None)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "FinishedStage":
        """Return the record in a file, which another version may have written.

        Args:
            values: What the file holds.

        Raises:
            UserError: If the file does not describe a stage.
        """
        values = with_todays_keys(values) if isinstance(values, Mapping) else {}
        if not all(isinstance(values.get(key), Mapping) for key in ("trajectory", "stage")):
            raise UserError("it is no record of a stage.")
        trajectory = stored_trajectory(values["trajectory"])
        check_stored_stage(values["stage"])
        return cls(**{**checked_fields(cls, values), "trajectory": trajectory})
