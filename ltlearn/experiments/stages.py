"""Train the stages of a recipe, or load finished ones from the run folder."""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastai.callback.core import Callback
from fastai.callback.training import GradientAccumulation
from fastai.torch_core import set_seed

from ltlearn.callbacks import HeadStart, LastBlock, SharpnessAware, WeightAverage
from ltlearn.data.older import keep_older_names
from ltlearn.errors import UserError, spell
from ltlearn.experiments.build import make_learner, make_loaders
from ltlearn.experiments.manifest import (
    FinishedStage,
    how_to_finish,
    read_manifest,
    recorded_data_path,
    recorded_split,
    stage_name,
)
from ltlearn.experiments.model_facts import MODEL_FILE, read_model_facts
from ltlearn.experiments.options import RunOptions
from ltlearn.experiments.recipe import Recipe
from ltlearn.experiments.sections import Stage1Section
from ltlearn.heads.registry import kind_of
from ltlearn.learner import LTLearner
from ltlearn.methods import DEFAULT_STAGE1, METHODS, label_of
from ltlearn.metrics.report import ShotReport, shot_report
from ltlearn.models.pretrained import check_arch_source
from ltlearn.models.weights_file import check_sizes
from ltlearn.training.checkpoint import Checkpoint
from ltlearn.training.given import describe_weights
from ltlearn.training.logs import EpochLog
from ltlearn.training.loop import sgd
from ltlearn.training.records import TrajectoryRecord
from ltlearn.training.selection import tested_part
from ltlearn.utils.ranks import share
from ltlearn.utils.run_folder import Run
from ltlearn.utils.text import epochs_text

__all__ = [
    "SeedResult",
    "StageFolder",
    "load_stage1",
    "run_seed",
    "stage1_arguments",
    "stage1_callbacks",
]

_log = logging.getLogger("ltlearn")
# Seconds between two checkpoints of a stage; tests set it.
_CHECKPOINT_SECONDS = "LTLEARN_CHECKPOINT_SECONDS"
# Largest size of a method's predictions on the test set: 200 MB in float32.
_MAX_LOGITS = 50_000_000


@dataclass
class SeedResult:
    """The results of one seed, by method.

    Args:
        targets: The classes of the test images.
        reports: The figures on the test set.
        predictions: The arrays that `predictions.npz` holds.
        norms: The norm of each class's weights.
        heads: The kind of the classifier.
        trajectories: The figures epoch by epoch.
        seconds: Seconds of training.
        selected: Which epoch is kept.
        stages: The records of what was trained.
    """

    targets: torch.Tensor | None = None
    reports: dict[str, ShotReport] = field(default_factory=dict)
    predictions: dict[str, np.ndarray] = field(default_factory=dict)
    norms: dict[str, list[float]] = field(default_factory=dict)
    heads: dict[str, str] = field(default_factory=dict)
    trajectories: dict[str, TrajectoryRecord] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    selected: dict[str, str] = field(default_factory=dict)
    stages: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class StageFolder:
    """Where the stages of a seed are kept, and the options of their training beside the recipe.

    Args:
        run: The run's folder.
        seed: The seed.
        options: How the recipe is run.
        notify: Called with a line of text at each step.
    """

    run: Run
    seed: int
    options: RunOptions
    notify: Callable[[str], None]

    def checkpoint(self, name: str) -> Checkpoint:
        """Make the checkpoints of a stage, in a folder beside its weights.

        Args:
            name: The stage, see `stage_name`.
        """
        seconds = float(os.environ.get(_CHECKPOINT_SECONDS, 5))
        path = self.run.inside(name)
        return Checkpoint(path, resume=True, min_seconds=seconds, keep_all=self.options.keep_all)

    def log(self, name: str) -> EpochLog:
        """Make the log of a stage, which grows with each epoch.

        Args:
            name: The stage, see `stage_name`.
        """
        stage = Path(name).name
        with_events = self.options.tensorboard
        events = self.run.inside(f"tensorboard/{stage}") if with_events else None
        return EpochLog(self.run.inside(f"logs/{stage}.csv"), events)


def load_stage1(
    recipe: Recipe,
    run: Run,
    seed: int,
    *,
    data_path: str | Path | None = None,
    cache_path: str | Path | None = None,
    device: str = "auto",
    allow_hub: bool = False,
) -> LTLearner:
    """Return a learner with the finished stage 1 of a run.

    Args:
        recipe: The run's recipe.
        run: Its folder.
        seed: One of its seeds.
        data_path: Where the images are; None takes the path in the run's manifest.
        cache_path: Folder of cached features; None keeps them in memory.
        device: "auto" or a torch device.
        allow_hub: Whether the architecture may be one of the Hugging Face hub or of a local folder.

    Raises:
        UserError: If that stage 1 is not finished or is damaged, or the images have changed.
    """
    manifest, name = read_manifest(run), stage_name(seed, "stage1")
    # Features are extracted in the precision in which they were trained.
    record = _read_record(run, name)
    options = RunOptions(
        data_path=data_path or recorded_data_path(manifest, run),
        cache_path=cache_path,
        device=device,
        precision=record.precision or "auto",
        skip_bad=bool(manifest.skipped_images),
        follow_links=bool(manifest.follow_links),
    )
    check_arch_source(recipe.model.arch, run.path, allow_hub)
    set_seed(seed)
    dls = make_loaders(recipe, seed, options)
    keep_older_names(dls, recorded_split(run, seed))
    learn = make_learner(recipe, dls, options)
    _normalise_as_recorded(run, learn)
    finished = _load_finished(run, name, learn)
    if finished is None:
        raise UserError(
            f"the stage 1 in {run.path / name}.safetensors is damaged or missing; finish it with "
            f"{how_to_finish(recipe, run)}."
        )
    learn.stages.append(finished.stage)
    return learn


def _normalise_as_recorded(run: Run, learn: LTLearner) -> None:
    """Use the statistics that the run recorded: another version may have chosen others."""
    if not (run.path / MODEL_FILE).is_file():
        return
    facts = read_model_facts(run.path)
    stats = facts.mean, facts.std
    if not np.allclose(stats, (learn.origin.mean, learn.origin.std), atol=1e-6):
        learn.dls.normalize.set(*stats)


def run_seed(recipe: Recipe, folder: StageFolder, learn: LTLearner) -> SeedResult:
    """Run both stages of one seed, then test each method.

    Args:
        recipe: The recipe, with each open value filled in.
        folder: Where the stages are kept.
        learn: A new learner of the recipe.
    """
    result = SeedResult()
    first = _run_stage1(recipe, folder, learn)
    stage1 = _copy_weights(learn)
    # A stage 1 that was loaded has no record in the learner yet.
    stages = learn.stages or [first.stage]
    weights = {}
    for name in recipe.methods:
        learn.model.load_state_dict(stage1)
        learn.stages = list(stages)
        is_first = METHODS[name].stage == 1
        finished = first if is_first else _run_method(recipe, folder, learn, name)
        result.stages.append({**finished.stage, "seed": folder.seed, "method": name})
        result.heads[name] = kind_of(learn.model.head)
        result.norms[name] = learn.head_norms().tolist()
        result.seconds[name] = finished.stage["seconds"]
        result.selected[name] = finished.describe_selection()
        result.trajectories[name] = finished.trajectory
        weights[name] = _copy_weights(learn)
    # The test set is read only here, when every choice is made. The paper protocol has read it
    # after each epoch.
    for name, state in weights.items():
        learn.model.load_state_dict(state)
        part = tested_part(learn.dls)
        logits, result.targets = learn.predict_logits(part, flip=recipe.averages_flips)
        result.reports[name] = shot_report(
            logits, result.targets, learn.dls.shot_counts, classes=learn.dls.vocab,
            few=recipe.data.few,
        )  # fmt: skip
        result.predictions |= _predictions(name, logits)
    return result


def _copy_weights(learn: LTLearner) -> dict[str, torch.Tensor]:
    return {k: v.detach().clone() for k, v in learn.model.state_dict().items()}


def _predictions(name: str, logits: torch.Tensor) -> dict[str, np.ndarray]:
    """Return the logits of a method, or its five likeliest classes where logits are too many."""
    if logits.numel() <= _MAX_LOGITS:
        return {name: logits.numpy()}
    values, classes = logits.softmax(1).topk(5, 1)
    return {f"{name}/classes": classes.int().numpy(), f"{name}/probabilities": values.numpy()}


def _run_stage1(recipe: Recipe, folder: StageFolder, learn: LTLearner) -> FinishedStage:
    stage1, options = recipe.stage1, folder.options
    train = partial(
        learn.fit_stage1,
        **stage1_arguments(recipe),
        opt_func=sgd(stage1.momentum),
        on_nan=options.on_nan,
        compile=options.compile,
    )
    is_plain = stage1.method == DEFAULT_STAGE1
    method = "" if is_plain else f" with {METHODS[stage1.method].label}"
    title = f"stage 1, {epochs_text(stage1.epochs)} of {recipe.model.arch}{method}"
    if METHODS[stage1.method].trains == "head":
        # Stage 2 reads the same features.
        train.keywords.update(views=recipe.stage2.views or 1, view_seed=folder.seed)
        title = (
            f"stage 1, {METHODS[stage1.method].label}, {epochs_text(stage1.epochs)} on features of "
            f"{recipe.model.arch}"
        )
    if recipe.keeps_given_model:
        title = f"stage 1 is {recipe.model.pretrained} as given"
    name = stage_name(folder.seed, "stage1")
    return _load_or_train(folder, name, learn, title, train, partial(stage1_callbacks, stage1))


def stage1_arguments(recipe: Recipe) -> dict[str, Any]:
    """Return the arguments of `fit_stage1` for a recipe.

    Args:
        recipe: The recipe, with each open value filled in.
    """
    stage1 = recipe.stage1
    arguments = {
        "epochs": stage1.epochs,
        "lr": stage1.lr,
        "wd": stage1.weight_decay,
        "sampler": stage1.sampler,
        "schedule": stage1.schedule,
        "warmup_epochs": stage1.warmup_epochs,
        "select": stage1.select,
        "flip": recipe.averages_flips,
    }
    if stage1.sync_bn:
        arguments["sync_bn"] = True
    if stage1.grad_checkpointing:
        arguments["grad_checkpointing"] = True
    if stage1.method != DEFAULT_STAGE1:
        arguments |= {"method": stage1.method, "options": stage1.options()}
    if stage1.milestones:
        arguments |= {"milestones": stage1.milestones, "decay": stage1.decay}
    return arguments


def stage1_callbacks(stage1: Stage1Section) -> list[Callback]:
    """Make the callbacks of a stage 1, beside those of its method.

    Args:
        stage1: The section of the recipe.
    """
    callbacks = []
    if stage1.accumulate > 1:
        # fastai counts images, not batches.
        callbacks.append(GradientAccumulation(stage1.accumulate * stage1.batch_size))
    if stage1.head_start is not None:
        scale = stage1.options().get("scale", 25.0)
        callbacks.append(HeadStart(stage1.head_start, scale))
    if stage1.trains != "all":
        callbacks.append(LastBlock(new=stage1.trains == "new_last_block"))
    if stage1.ema_decay is not None:
        callbacks.append(WeightAverage(stage1.ema_decay))
    if stage1.sharpness_rho is not None:
        callbacks.append(SharpnessAware(stage1.sharpness_rho))
    return callbacks


def _run_method(recipe: Recipe, folder: StageFolder, learn: LTLearner, name: str) -> FinishedStage:
    """Retrain or correct the classifier with a method of stage 2."""
    stage2, method = recipe.stage2, METHODS[name]
    label = label_of(name, recipe.named_stage1)
    file = stage_name(folder.seed, name)
    if method.kind == "post hoc":
        correct = partial(_correct, learn, name, folder.seed, recipe.arguments_of(name))
        return _load_or_train(folder, file, learn, label, correct)
    values = recipe.arguments_of(name)
    if recipe.is_smoke:
        values["epochs"] = min(values["epochs"], stage2.epochs)
    train = partial(
        learn.retrain_classifier,
        method=name,
        **values,
        views=stage2.views,
        bn=stage2.bn,
        schedule=stage2.schedule,
        opt_func=sgd(stage2.momentum),
        # None selects an epoch only where the validation images are enough for that.
        select=stage2.select if recipe.is_given("stage2.select") else None,
        flip=recipe.averages_flips,
        seed=folder.seed,
        on_nan=folder.options.on_nan,
    )
    inputs = "features" if stage2.views else "images"
    title = f"stage 2, {label}, {epochs_text(values['epochs'])} on {inputs}"
    return _load_or_train(folder, file, learn, title, train)


def _correct(
    learn: LTLearner, method: str, seed: int, values: dict[str, Any], cbs=None
) -> TrajectoryRecord:
    """Correct the classifier without training; return the trajectory, of one entry."""
    learn.correct_classifier(method, seed=seed, **values)
    return learn.trajectory


def _load_or_train(
    folder: StageFolder, name: str, learn: LTLearner, title: str, train: Callable, make_cbs=list
) -> FinishedStage:
    """Load a stage that is finished in the folder, or train it and save it."""
    checkpoint, log = folder.checkpoint(name), folder.log(name)
    finished = _load_finished(folder.run, name, learn)
    if finished is not None:
        log.restore(finished.trajectory)
    else:
        epochs = checkpoint.epochs()
        title = f"seed {folder.seed}: {title}"
        folder.notify(f"{title}, resumed at epoch {epochs[-1]}" if epochs else title)
        n_before = len(learn.stages)
        # A stage draws the same numbers whether the stages before it were trained or loaded.
        set_seed(folder.seed)
        trajectory = train(cbs=[*make_cbs(), checkpoint, log])
        finished = _save_finished(folder.run, name, learn, trajectory, learn.stages[n_before:])
        stage, choice = finished.stage, finished.describe_selection()
        folder.notify(f"  {stage['stage']} done in {stage['seconds']:.1f} s, kept: {choice}")
        if (count := stage.get("trained_parameters")) is not None:
            total = stage["parameters"]
            percent = f"{100 * count / total:.2f} %"
            folder.notify(f"  trained: {count:,} of {total:,} parameters ({percent})")
    if not folder.options.keep_all:
        checkpoint.clear()
    return finished


def _save_finished(run: Run, name: str, learn: LTLearner, trajectory, stages) -> FinishedStage:
    """Write the weights and the record of a stage that has just been trained."""
    stage, *corrections = (dict(record) for record in stages)
    if corrections:
        seconds = sum(s["seconds"] for s in [stage, *corrections])
        stage |= {"then": corrections, "seconds": seconds}
    finished = FinishedStage.from_dict({"trajectory": trajectory, "stage": stage})
    # The weights come first: the record states that they are complete.
    checksum = run.save_tensors_checked(
        f"{name}.safetensors", learn.model.state_dict(), describe_weights(learn)
    )
    finished = replace(finished, **_circumstances(learn), weights=checksum)
    run.write_json(f"{name}.json", finished.to_dict(), sealed=True)
    return finished


def _load_finished(run: Run, name: str, learn: LTLearner) -> FinishedStage | None:
    """Load a finished stage into the learner and return its record; None where there is none.

    Raises:
        UserError: If it was trained on other images, or in another precision.
    """
    record, weights = run.path / f"{name}.json", run.path / f"{name}.safetensors"
    # All ranks load the stage, or none does. The first rank may write it while others check.
    if not share(record.is_file() and weights.is_file()):
        return None
    try:
        # Runs of early versions have no checksums.
        finished = _read_record(run, name)
        check_sizes(weights, learn.model)
        state = run.load_tensors(f"{name}.safetensors", checksum=finished.weights)
    except UserError as e:
        _log.warning("%s This stage is trained again.", e)
        return None
    for key, now in _circumstances(learn).items():
        if finished[key] != now:
            raise UserError(
                f"{record} was made with {key} {finished[key]}, now it is {now}; use the same "
                f"data and {spell('precision')}, or another folder for a new run."
            )
    parts, before = (learn.model.backbone, learn.model.head), _copy_weights(learn)
    learn.opt = None
    try:
        learn.model.load_state_dict(state)
    except RuntimeError:
        _log.warning("%s holds the weights of another model. This stage is trained again.", weights)
        learn.model.backbone, learn.model.head = parts
        learn.model.load_state_dict(before)
        return None
    return finished


def _read_record(run: Run, name: str) -> FinishedStage:
    content = run.read_json(f"{name}.json", sealed=None)
    try:
        return FinishedStage.from_dict(content)
    except UserError as e:
        raise UserError(f"{run.path / name}.json is damaged: {e}") from None


def _circumstances(learn: LTLearner) -> dict[str, str]:
    """Return what decides the weights of a stage beside the recipe: images and precision."""
    return {"images": learn.dls.split.images, "precision": learn.precision}
