"""Runs a recipe: data, stage 1, each method's stage 2, the test set at the end, the files."""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastai.callback.core import Callback
from fastai.callback.training import GradientAccumulation
from fastai.torch_core import set_seed

from ltlearn.callbacks import LastBlock, SharpnessAware, WeightAverage
from ltlearn.callbacks.checkpoint import Checkpoint
from ltlearn.callbacks.finite import ON_NAN
from ltlearn.callbacks.logs import EpochLog, check_tensorboard
from ltlearn.data import LTDataLoaders
from ltlearn.data.benchmarks import LISTED
from ltlearn.data.tables import columns_text
from ltlearn.errors import UserError, check_choice, said_once
from ltlearn.learner import LTLearner, lt_learner, sgd
from ltlearn.methods import METHODS
from ltlearn.metrics import ShotReport, shot_report
from ltlearn.own import read_pictures
from ltlearn.plots import (
    plot_class_counts,
    plot_norms,
    plot_per_class_accuracy,
    plot_trajectory,
)
from ltlearn.predictor import MODEL_FILE, describe_model
from ltlearn.recipe import Recipe, Stage1Section, _validate
from ltlearn.report import ResultRow, ResultTable, render_report_md
from ltlearn.run import Run, environment_info

__all__ = ["RecipeResult", "pick_device", "run_recipe"]

_log = logging.getLogger("ltlearn")

# Seconds between two checkpoints of a stage; tests set it.
_CHECKPOINT_SECONDS = "LTLEARN_CHECKPOINT_SECONDS"
# Of a method's predictions on the test set: 200 MB in float32.
_MOST_LOGITS = 50_000_000
_CSV_COLUMNS = ("epoch", "loss", "all", "balanced", "many", "medium", "few", "seconds")


@dataclass
class RecipeResult:
    """What a recipe gave."""

    run: Run
    table: ResultTable
    manifest: dict[str, Any]


@dataclass
class _Seed:
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
class _Folder:
    """Where a seed's stages are kept, and how they are trained whatever the recipe."""

    run: Run
    seed: int
    on_nan: str
    keep_all: bool
    tensorboard: bool
    compile: bool
    say: Callable[[str], None]

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


def pick_device(name: str) -> torch.device:
    """Turn a device setting into a device; "auto" takes CUDA where there is one, else the CPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    there = {
        "cuda": torch.cuda.is_available,
        "mps": torch.backends.mps.is_available,
        "cpu": lambda: True,
    }
    if not there[device.type]() or (
        device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()
    ):
        raise UserError(f"there is no device {name} here; use --device cpu or auto.")
    return device


@said_once()
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
    say: Callable[[str], None] = lambda text: None,
) -> RecipeResult:
    """Run a recipe and write its folder.

    What is finished already in the folder (a stage of a seed, the epochs of one) is taken from
    there, so a run that was stopped goes on, and ends as if it had never been.

    Args:
        recipe: What to run.
        run: The folder to write.
        data_path: Where the pictures are; own data has that in the recipe.
        cache_path: Folder of cached features; None keeps them in memory.
        device: "auto" or a torch device.
        precision: "auto", "fp32", "bf16" or "fp16".
        skip_bad: Leave unreadable pictures out.
        on_nan: Where the loss of a step is not finite: "stop" or "skip", see `FiniteLoss`.
        keep_all: Keep the checkpoint of every epoch.
        tensorboard: Write TensorBoard's event files, too.
        compile: Compile the backbone with `torch.compile` for stage 1, where that can be done.
        num_workers: Processes that read own pictures from disk; None takes the setting of that
            name.
        follow_links: Whether links inside the folder of a published list may lead out of it.
        command: The command line, for the record.
        say: Called with a line of text at each step.

    Raises:
        UserError: If the data is missing, a value does not fit, the folder belongs to another
            recipe, or TensorBoard is asked for and missing.
    """
    check_choice("on_nan", on_nan, ON_NAN)
    if tensorboard:
        check_tensorboard()
    recipe = recipe.settled()
    if follow_links and recipe.data.dataset not in LISTED:
        raise UserError(
            f"follow_links (--follow-links) is for {', '.join(LISTED)}, not for "
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
        say(f"{recipe.title}; {recipe.status}")
    run.write_json("manifest.json", manifest)
    seeds, dls = [], None
    for seed in range(recipe.seeds):
        dls = _loaders(recipe, data_path, seed, skip_bad, where, num_workers, follow_links)
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
                "test_images": 0 if _is_untested(dls) else dls.test.n,
                "skipped_pictures": dls.skipped,
                "columns": dls.columns,
            }
            if dls.columns:
                say(f"columns: {columns_text(dls.columns)}")
            say(
                f"{dls.split}: {dls.train.n} training, {dls.valid.n} validation "
                f"({dls.split.valid_from}), {'no' if _is_untested(dls) else dls.test.n} test images"
            )
            if _is_untested(dls):
                say(
                    "there is no test set: the figures are of the validation images, and optimistic"
                )
            if dls.skipped:
                plural = "s were" if len(dls.skipped) > 1 else " was"
                say(f"{len(dls.skipped)} unreadable picture{plural} left out")
        run.write_json("manifest.json", manifest)
        set_seed(seed)
        learn = _learner(recipe, dls, precision, cache_path)
        if seed == 0 and _may_have_seen(recipe, dls):
            _log.warning("%s", _SEEN)
        seeds.append(
            _run_seed(
                recipe, _Folder(run, seed, on_nan, keep_all, tensorboard, compile, say), learn
            )
        )
    run.write_json(MODEL_FILE, describe_model(recipe, learn, seeds[0].heads))
    table = _table(recipe, dls, seeds)
    _write_results(recipe, run, dls, seeds, table, manifest)
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
    before = _validate(before, str(run.path / "manifest.json")).settled()
    old, new = ({"name": r.name, **r.flat()} for r in (before, recipe))
    for key in {**new, **old}:
        # Pictures are known by their fingerprint, wherever they lie.
        if key != "data.source" and old.get(key) != new.get(key):
            raise UserError(
                f"{run.path} holds a run with {key} = {old.get(key)!r}, not {new.get(key)!r}; give "
                "another --out, or the values of its manifest.json."
            )


def _learner(recipe: Recipe, dls: LTDataLoaders, precision: str, cache_path) -> LTLearner:
    model = recipe.model.model_dump(exclude={"arch"}, exclude_none=True)
    return lt_learner(
        dls,
        recipe.model.arch,
        precision=precision,
        cache_path=cache_path,
        few=recipe.data.few,
        **model,
    )


def _loaders(
    recipe: Recipe,
    data_path,
    seed: int,
    skip_bad: bool,
    device,
    num_workers: int | None = None,
    follow_links: bool = False,
) -> LTDataLoaders:
    how = {
        **recipe.data.model_dump(exclude={"dataset", "source", "few"}, exclude_none=True),
        "protocol": recipe.protocol,
        "bs": recipe.stage1.batch_size,
        "seed": seed,
        "skip_bad": skip_bad,
        "device": device,
    }
    if recipe.data.dataset != "own":
        name = recipe.data.dataset
        return LTDataLoaders.from_dataset(name, data_path, follow_links=follow_links, **how)
    dls = read_pictures(data_path, num_workers=num_workers, **how)
    if dls.test is None:
        # Whatever is measured is measured on these; every table says so, see `_is_untested`.
        dls.loaders.append(dls.valid)
    return dls


def _is_untested(dls: LTDataLoaders) -> bool:
    """Tell whether the test loader is the validation loader, for want of a test set."""
    return dls.split.test is None


_SEEN = (
    "The validation images are carved off pictures that the given model may have been trained on: "
    "accuracy on them is too high, and what is chosen on them may be chosen badly. Add a folder of "
    "validation pictures that it has not seen."
)


def _may_have_seen(recipe: Recipe, dls: LTDataLoaders) -> bool:
    """Tell whether a model that came trained may know its validation images."""
    return recipe.model.keep_head and dls.split.valid_from == "training images"


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
        data_path: Where the pictures are; None takes the place in the run's manifest.
        cache_path: Folder of cached features; None keeps them in memory.
        device: "auto" or a torch device.

    Raises:
        UserError: If that stage 1 is not finished or damaged, or the pictures are others.
    """
    manifest = run.read_json("manifest.json")
    set_seed(seed)
    dls = _loaders(
        recipe, data_path or manifest["data_path"], seed, bool(manifest.get("skipped_pictures")),
        pick_device(device), follow_links=bool(manifest.get("follow_links")),
    )  # fmt: skip
    name = _stage1_name(seed)
    # In the precision that the features were trained in.
    record = run.read_json(f"{name}.json")
    learn = _learner(recipe, dls, record.get("precision", "auto"), cache_path)
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


def _run_seed(recipe: Recipe, folder: _Folder, learn: LTLearner) -> _Seed:
    seed = folder.seed
    paper = recipe.protocol == "paper"
    result = _Seed()
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
    if _is_given(recipe):
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
        part = "valid" if _is_untested(learn.dls) else "test"
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
        # fastai counts pictures.
        made.append(GradientAccumulation(stage1.accumulate * stage1.batch_size))
    if stage1.trains != "all":
        made.append(LastBlock(new=stage1.trains == "new_last_block"))
    if stage1.ema_decay is not None:
        made.append(WeightAverage(stage1.ema_decay))
    if stage1.sharpness_rho is not None:
        made.append(SharpnessAware(stage1.sharpness_rho))
    return made


def _stage2(
    recipe: Recipe, folder: _Folder, learn: LTLearner, method_name: str, paper: bool
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
    folder: _Folder, name: str, learn: LTLearner, what: str, train, make_cbs=list
) -> dict:
    """Take up a stage that is finished in the folder, or train and keep it; return its record."""
    run, checkpoint = folder.run, folder.checkpoint(name)
    record = _finished(run, name, learn)
    if record is None:
        found = checkpoint.epochs()
        folder.say(f"{what}, on from epoch {found[-1]}" if found else what)
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
        folder.say(f"  {stage['stage']} done in {stage['seconds']:.1f} s, kept: {kept}")
    if not folder.keep_all:
        checkpoint.clear()
    return record


def _finished(run: Run, name: str, learn: LTLearner) -> dict | None:
    """Load a finished stage into the learner and return its record; None where there is none.

    Raises:
        UserError: If it was made from other pictures, or in another precision.
    """
    if (
        not (run.path / f"{name}.json").is_file()
        or not (run.path / f"{name}.safetensors").is_file()
    ):
        return None
    try:
        # Runs of earlier versions have no checksums.
        record = run.read_json(f"{name}.json", sealed=None)
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
    """Return what decides a stage's weights beside the recipe: the pictures and the precision."""
    split = learn.dls.split
    pictures = f"train {split.train}, valid {split.valid}, test {split.test}"
    return {"pictures": pictures, "precision": learn.precision}


def _is_given(recipe: Recipe) -> bool:
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


def _table(recipe: Recipe, dls: LTDataLoaders, seeds: list[_Seed]) -> ResultTable:
    rows = []
    for name in recipe.methods:
        reports = [s.reports[name] for s in seeds]
        selected = list(dict.fromkeys(s.selected[name] for s in seeds))
        seconds = sum(s.seconds[name] for s in seeds) / len(seeds)
        label = METHODS[name].label
        if _is_given(recipe) and METHODS[name].stage == 1:
            label = "as given"
        rows.append(ResultRow(name, label, reports, "; ".join(selected), seconds))
    notes = [_published(recipe), _SEEN if _may_have_seen(recipe, dls) else ""]
    return ResultTable(
        rows,
        "untested" if _is_untested(dls) else recipe.protocol,
        ", ".join(
            part
            for part in (
                dls.split.name,
                dls.split.profile,
                f"imbalance factor {dls.split.imbalance_factor:g}",
            )
            if part
        ),
        dls.split.train,
        recipe.data.few,
        list(range(recipe.seeds)),
        dls.split.dataset,
        note=" ".join(note for note in notes if note),
        valid_from=dls.split.valid_from,
    )


def _published(recipe: Recipe) -> str:
    """Say what was published, and what of the recipe was changed on the command line."""
    figures: dict[str, list[str]] = {}
    expected, changed = recipe.published(), recipe.changes()
    if expected:
        changed = [key for key in changed if not any(key in e.when for e in expected)]
    else:
        # Of values that were changed and not published: those they were changed from, if clear.
        expected = recipe.published(changed)
        if len({e.what for e in expected}) < len(expected):
            return ""
    for e in expected:
        about = f"{e.protocol} protocol; {e.source}"
        figures.setdefault(about, []).append(e.said(METHODS[e.method].label))
    if not figures:
        return ""
    said = [f"{', '.join(f)} ({about})" for about, f in figures.items()]
    what = f"Published, without the changes to {', '.join(changed)}" if changed else "Published"
    return f"{what}: {'; '.join(said)}."


def _write_results(
    recipe, run: Run, dls, seeds: list[_Seed], table: ResultTable, manifest: dict
) -> None:
    arrays = {"targets": seeds[0].targets.numpy()}
    rows = []
    for seed, result in enumerate(seeds):
        for name, values in result.predictions.items():
            arrays[f"seed{seed}/{name}"] = values
        for name, trajectory in result.trajectories.items():
            for values in zip(*(trajectory[k] for k in _CSV_COLUMNS), strict=True):
                row = {"seed": seed, "method": name, "stage": METHODS[name].stage}
                row |= dict(zip(_CSV_COLUMNS, values, strict=True))
                rows.append({**row, "evaluated_on": trajectory["select_on"]})
    run.save_npz("predictions.npz", **arrays)
    run.write_csv("metrics.csv", rows)
    # Not a correction without training, which has no epochs.
    second = [name for name in recipe.methods if METHODS[name].kind == "stage 2"]
    trajectories = [s.trajectories[second[-1]] for s in seeds] if second else None
    plots = _plots(recipe, dls, seeds, table, trajectories)
    for name, (_, figure) in plots.items():
        run.save_figure(f"plots/{name}.png", figure)
    manifest |= {
        "status": "finished",
        "training_seconds": round(sum(sum(s.seconds.values()) for s in seeds), 1),
        "stages": [stage for s in seeds for stage in s.stages],
        "results": table.to_dict(),
    }
    run.write_json("trajectories.json", [s.trajectories for s in seeds])
    links = [(title, f"plots/{name}.png") for name, (title, _) in plots.items()]
    run.write_text("report.md", render_report_md(table, manifest, links, trajectories))
    # Last: a manifest that says "finished" has everything beside it.
    run.write_json("manifest.json", manifest)


def _plots(recipe, dls, seeds: list[_Seed], table: ResultTable, trajectories) -> dict[str, tuple]:
    """Return file name -> (title, figure); compares the first and the last method."""
    counts, few = dls.shot_counts, recipe.data.few
    plots = {
        "class_counts": ("Training images per class", plot_class_counts(counts, dls.vocab, few))
    }
    if len(recipe.methods) > 1:
        trained = [i for i, m in enumerate(recipe.methods) if METHODS[m].kind == "stage 2"]
        ends = (0, trained[-1] if trained else -1)
        labels = tuple(table.rows[i].label for i in ends)
        accuracy = [np.mean([r.per_class for r in table.rows[i].reports], 0) for i in ends]
        norms = [np.mean([s.norms[recipe.methods[i]] for s in seeds], 0) for i in ends]
        plots["per_class_accuracy"] = (
            f"Accuracy per class on the {'validation' if _is_untested(dls) else 'test'} set, "
            "before and after",
            plot_per_class_accuracy(*accuracy, counts, dls.vocab, labels, few),
        )
        plots["norms"] = (
            "Norm of each class's weights, before and after",
            plot_norms(*norms, counts, labels),
        )
    if trajectories:
        last = [METHODS[m].label for m in recipe.methods if METHODS[m].kind == "stage 2"][-1]
        plots["trajectory"] = (f"{last}: stage 2, epoch by epoch", plot_trajectory(trajectories))
    return plots
