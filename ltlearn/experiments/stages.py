"""Train the stages of a recipe, or load finished ones from the run folder."""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from fastai.callback.core import Callback
from fastai.callback.training import GradientAccumulation
from fastai.torch_core import set_seed

from ltlearn.callbacks import LastBlock, SharpnessAware, WeightAverage
from ltlearn.errors import UserError
from ltlearn.experiments.build import is_untested, make_learner, make_loaders, pick_device
from ltlearn.experiments.recipe import Recipe, Stage1Section
from ltlearn.learner import LTLearner
from ltlearn.methods import METHODS
from ltlearn.metrics.report import ShotReport, shot_report
from ltlearn.training.checkpoint import Checkpoint
from ltlearn.training.logs import EpochLog
from ltlearn.training.loop import sgd
from ltlearn.utils.older_runs import with_todays_keys
from ltlearn.utils.run_folder import Run

__all__ = ["SeedResult", "StageFolder", "run_seed", "is_given_model"]

_log = logging.getLogger("ltlearn")
# Seconds between two checkpoints of a stage; tests set it.
_CHECKPOINT_SECONDS = "LTLEARN_CHECKPOINT_SECONDS"
# Of a method's predictions on the test set: 200 MB in float32.
_MOST_LOGITS = 50_000_000


@dataclass
class SeedResult:
    """What one seed gave, by method."""

    targets: torch.Tensor | None = None
    reports: dict[str, ShotReport] = field(default_factory=dict)
    predictions: dict[str, np.ndarray] = field(default_factory=dict)
    norms: dict[str, list[float]] = field(default_factory=dict)
    heads: dict[str, str] = field(default_factory=dict)
    trajectories: dict[str, dict] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    selected: dict[str, str] = field(default_factory=dict)
    stages: list[dict] = field(default_factory=list)


@dataclass
class StageFolder:
    """Where a seed's stages are kept, and how they are trained whatever the recipe."""

    run: Run
    seed: int
    on_nan: str
    keep_all: bool
    tensorboard: bool
    compile: bool
    notify: Callable[[str], None]

    def checkpoint(self, name: str) -> Checkpoint:
        """Make the checkpoints of a stage, in a folder beside its weights."""
        seconds = float(os.environ.get(_CHECKPOINT_SECONDS, 5))
        path = self.run.path / name
        return Checkpoint(path, resume=True, min_seconds=seconds, keep_all=self.keep_all)

    def log(self, name: str) -> EpochLog:
        """Make the log of a stage, which grows with each epoch."""
        path, stage = self.run.path, Path(name).name
        events = path / "tensorboard" / stage if self.tensorboard else None
        return EpochLog(path / "logs" / f"{stage}.csv", events)


def load_stage1(
    recipe: Recipe,
    run: Run,
    seed: int,
    *,
    data_path: str | Path | None = None,
    cache_path: str | Path | None = None,
    device: str = "auto",
) -> LTLearner:
    """Return a learner with the finished stage 1 of a run.

    Args:
        recipe: The run's recipe.
        run: Its folder.
        seed: Which of its seeds.
        data_path: Where the images are; None takes the place in the run's manifest.
        cache_path: Folder of cached features; None keeps them in memory.
        device: "auto" or a torch device.

    Raises:
        UserError: If that stage 1 is not finished or damaged, or the images are others.
    """
    manifest = with_todays_keys(run.read_json("manifest.json"))
    set_seed(seed)
    dls = make_loaders(
        recipe, data_path or manifest["data_path"], seed, bool(manifest.get("skipped_images")),
        pick_device(device), follow_links=bool(manifest.get("follow_links")),
    )  # fmt: skip
    name = _stage1_name(seed)
    # In the precision that the features were trained in.
    record = run.read_json(f"{name}.json")
    learn = make_learner(recipe, dls, record.get("precision", "auto"), cache_path)
    done = _finished(run, name, learn)
    if done is None:
        raise UserError(
            f"the stage 1 in {run.path / name}.safetensors is damaged or missing; finish it with "
            f"{how_to_finish(recipe, run)}."
        )
    learn.stages.append(done["stage"])
    return learn


def how_to_finish(recipe: Recipe, run: Run) -> str:
    """Say which command goes on with a run."""
    if recipe.data.dataset == "own":
        return f"the command in its manifest.json and --out {run.path} --resume"
    return f"`ltlearn recipe {recipe.name} --out {run.path} --resume`"


def _stage1_name(seed: int) -> str:
    return f"checkpoints/seed{seed}-stage1"


def run_seed(recipe: Recipe, folder: StageFolder, learn: LTLearner) -> SeedResult:
    """Run both stages of one seed, then read the test set."""
    seed = folder.seed
    paper = recipe.protocol == "paper"
    result = SeedResult()
    s1 = recipe.stage1
    name = _stage1_name(seed)
    train = partial(
        learn.fit_stage1,
        s1.epochs,
        s1.lr,
        wd=s1.weight_decay,
        sampler=s1.sampler,
        schedule=s1.schedule,
        warmup_epochs=s1.warmup_epochs,
        opt_func=sgd(s1.momentum),
        select=s1.select,
        flip=paper,
        on_nan=folder.on_nan,
        compile=folder.compile,
        **({"milestones": s1.milestones, "decay": s1.decay} if s1.milestones else {}),
    )
    method = METHODS[s1.method]
    how = "" if s1.method == "ce" else f" with {method.label}"
    what = f"seed {seed}: stage 1, {s1.epochs} epochs of {recipe.model.arch}{how}"
    if is_given_model(recipe):
        what = f"seed {seed}: stage 1 is {recipe.model.pretrained} as it is"
    record = _load_or_train(folder, name, learn, what, train, partial(_stage1_callbacks, s1))
    stage1 = {k: v.detach().clone() for k, v in learn.model.state_dict().items()}
    states = {}
    for method_name in recipe.methods:
        method = METHODS[method_name]
        learn.model.load_state_dict(stage1)
        if method.stage == 1:
            done = record
        else:
            done = _stage2(recipe, folder, learn, method_name, paper)
        result.stages.append({**done["stage"], "seed": seed, "method": method_name})
        result.heads[method_name] = type(learn.model.head).__name__
        result.norms[method_name] = learn.head_norms().tolist()
        result.seconds[method_name] = done["stage"]["seconds"]
        result.selected[method_name] = _chosen(done["trajectory"])
        result.trajectories[method_name] = done["trajectory"]
        states[method_name] = {k: v.detach().clone() for k, v in learn.model.state_dict().items()}
    # Only now, when nothing is left to choose, is the test set read (under `paper` it has been,
    # after each epoch).
    for method_name, state in states.items():
        learn.model.load_state_dict(state)
        part = "valid" if is_untested(learn.dls) else "test"
        logits, result.targets = learn.predict_logits(part, flip=paper)
        result.reports[method_name] = shot_report(
            logits, result.targets, learn.dls.shot_counts, classes=learn.dls.vocab,
            few=recipe.data.few,
        )  # fmt: skip
        result.predictions |= _worth_keeping(method_name, logits)
    return result


def _worth_keeping(name: str, logits: torch.Tensor) -> dict[str, np.ndarray]:
    """Return the logits of a method; where they are too many, the five likeliest classes alone."""
    if logits.numel() <= _MOST_LOGITS:
        return {name: logits.numpy()}
    values, classes = logits.softmax(1).topk(5, 1)
    return {f"{name}/classes": classes.int().numpy(), f"{name}/probabilities": values.numpy()}


def _stage1_callbacks(stage1: Stage1Section) -> list[Callback]:
    method = METHODS[stage1.method]
    made = method.callbacks(**{key: getattr(stage1, key) for key in method.options})
    if stage1.accumulate > 1:
        # fastai counts images.
        made.append(GradientAccumulation(stage1.accumulate * stage1.batch_size))
    if stage1.trains != "all":
        made.append(LastBlock(new=stage1.trains == "new_last_block"))
    if stage1.ema_decay is not None:
        made.append(WeightAverage(stage1.ema_decay))
    if stage1.sharpness_rho is not None:
        made.append(SharpnessAware(stage1.sharpness_rho))
    return made


def _stage2(
    recipe: Recipe, folder: StageFolder, learn: LTLearner, method_name: str, paper: bool
) -> dict:
    s2, method, seed = recipe.stage2, METHODS[method_name], folder.seed
    name = f"checkpoints/seed{seed}-{method_name}"
    if method.kind == "post hoc":
        what = f"seed {seed}: {method.label}"
        correct = partial(_correct, learn, method_name, seed)
        return _load_or_train(folder, name, learn, what, correct)
    values = recipe.arguments_of(method_name)
    values["epochs"] = min(values["epochs"], s2.epochs) if recipe.is_smoke() else values["epochs"]
    train = partial(
        learn.retrain_classifier,
        method=method_name,
        **values,
        views=s2.views,
        bn=s2.bn,
        schedule=s2.schedule,
        opt_func=sgd(s2.momentum),
        # Unless it was asked for, an epoch is chosen where there are images enough to choose on.
        select=s2.select if recipe.is_given("stage2.select") else None,
        flip=paper,
        seed=seed,
        on_nan=folder.on_nan,
    )
    on = "features" if s2.views else "images"
    what = f"seed {seed}: stage 2, {method.label}, {values['epochs']} epochs on {on}"
    return _load_or_train(folder, name, learn, what, train)


def _correct(learn: LTLearner, method: str, seed: int, cbs=None) -> dict:
    """Correct the classifier without training; return the trajectory, of one entry."""
    learn.correct_classifier(method, seed=seed)
    return learn.trajectory


def _load_or_train(
    folder: StageFolder, name: str, learn: LTLearner, what: str, train, make_cbs=list
) -> dict:
    """Take up a stage that is finished in the folder, or train and keep it; return its record."""
    run, checkpoint = folder.run, folder.checkpoint(name)
    record = _finished(run, name, learn)
    if record is None:
        found = checkpoint.epochs()
        folder.notify(f"{what}, on from epoch {found[-1]}" if found else what)
        noted = len(learn.stages)
        # Each stage draws the same whether those before it have just been trained or not.
        set_seed(folder.seed)
        trajectory = train(cbs=[*make_cbs(), checkpoint, folder.log(name)])
        stage, *then = learn.stages[noted:]
        if then:  # a correction after stage 2
            stage = {**stage, "then": then, "seconds": sum(s["seconds"] for s in [stage, *then])}
        record = {"trajectory": trajectory, "stage": stage}
        # Weights first, then the record that says they are complete.
        checksum = run.save_tensors_checked(
            f"{name}.safetensors", learn.model.state_dict(), {"arch": learn.arch}
        )
        kept = {**record, **_circumstances(learn), "weights": checksum}
        run.write_json(f"{name}.json", kept, sealed=True)
        kept = _chosen(trajectory)
        folder.notify(f"  {stage['stage']} done in {stage['seconds']:.1f} s, kept: {kept}")
    if not folder.keep_all:
        checkpoint.clear()
    return record


def _finished(run: Run, name: str, learn: LTLearner) -> dict | None:
    """Load a finished stage into the learner and return its record; None where there is none.

    Raises:
        UserError: If it was made from other images, or in another precision.
    """
    if (
        not (run.path / f"{name}.json").is_file()
        or not (run.path / f"{name}.safetensors").is_file()
    ):
        return None
    try:
        # Runs of earlier versions have no checksums.
        record = with_todays_keys(run.read_json(f"{name}.json", sealed=None))
        if not {"trajectory", "stage"} <= record.keys():
            raise UserError(f"{run.path / name}.json is damaged: it is no record of a stage.")
        state = run.load_tensors(f"{name}.safetensors", checksum=record.get("weights"))
    except UserError as e:
        _log.warning("%s This stage is done again.", e)
        return None
    for key, now in _circumstances(learn).items():
        if record.get(key) != now:
            raise UserError(
                f"{run.path / name}.json was made with {key} {record.get(key)}, now it is {now}; "
                "go on with the same data and --precision, or give another --out."
            )
    head, before = learn.model.head, learn.model.state_dict()
    before = {k: v.clone() for k, v in before.items()}
    learn.opt = None
    try:
        learn.model.load_state_dict(state)
    except RuntimeError:
        _log.warning(
            "%s holds the weights of another model. This stage is done again.",
            run.path / f"{name}.safetensors",
        )
        learn.model.head = head
        learn.model.load_state_dict(before)
        return None
    return record


def _circumstances(learn: LTLearner) -> dict:
    """Return what decides a stage's weights beside the recipe: the images and the precision."""
    split = learn.dls.split
    images = f"train {split.train}, valid {split.valid}, test {split.test}"
    return {"images": images, "precision": learn.precision}


def is_given_model(recipe: Recipe) -> bool:
    """Tell whether stage 1 is a trained model that came from elsewhere."""
    return recipe.model.keep_head and recipe.stage1.epochs == 0


def _chosen(trajectory: dict) -> str:
    if not trajectory["epoch"]:
        return "no epoch trained"
    epoch = trajectory["chosen"]
    if trajectory["select"] == "last" or epoch is None:
        return "last epoch"
    where = "selected on test" if trajectory["select_on"] == "test" else "on validation"
    return f"epoch {epoch} {where}"
