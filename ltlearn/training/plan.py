"""The plan of a stage: every value that decides a training, resolved and checked once."""

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from fastai.callback.core import Callback

from ltlearn.errors import UserError, check_choice, check_number, check_whole, spell
from ltlearn.methods import METHODS, Method, find_method, head_rate, is_built_in, usual_rate
from ltlearn.names import (
    BN_MODES,
    FOR_BACKBONE,
    ON_NAN,
    PROBE,
    PROBE_STARTS,
    SCHEDULES,
    SELECTS,
    STAGE2_SCHEDULES,
)
from ltlearn.training.checkpoint import Checkpoint
from ltlearn.training.grad_checkpointing import GradCheckpointing
from ltlearn.training.image_methods import check_for_features, warn_about_rate
from ltlearn.training.loop import listed_callbacks
from ltlearn.training.schedule import EpochSchedule
from ltlearn.training.selection import default_select
from ltlearn.training.sync_norm import SyncBatchNorm

__all__ = [
    "PosthocPlan",
    "ProbePlan",
    "Stage2Plan",
    "StagePlan",
    "name_of",
    "probe_plan",
    "resolve_stage1",
    "resolve_stage2",
]

_STAGE1_WD = 5e-4
# Stage 2 without a method has SAMN's values.
_STAGE2 = {
    "epochs": 20, "lr": 5e-4, "wd": 0.0, "bs": 64, "sampler": "instance", "loss": None,
    "reset": False,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """The values that both stages have.

    Args:
        epochs: Passes over the training images, at least 0.
        lr: Learning rate, > 0.
        weight_decay: Weight decay, at least 0.
        batch_size: Images per batch, at least 1.
        sampler: Name of a sampler, or a torch sampler.
        loss: Takes (logits, targets) to a scalar. None: the learner's.
        schedule: Name of a learning-rate schedule.
        opt_func: fastai optimiser. None: torch's SGD, or the learner's on images.
        select: "best" or "last".
        flip: Whether to validate on the mean logits of each image and its mirror image.
        seed: Seed of order and augmentation.
        on_nan: "stop" or "skip", see `FiniteLoss`.
        callbacks: Callbacks of the method, then those given.
        method: Name of the method. None: no named method.
        options: Options of the method that were given.
    """

    epochs: int
    lr: Any
    weight_decay: float
    batch_size: int
    sampler: Any = "instance"
    loss: Callable | None = None
    schedule: str = "cosine"
    opt_func: Callable | None = None
    select: str = "last"
    flip: bool = False
    seed: int = 0
    on_nan: str = "stop"
    callbacks: tuple[Callback, ...] = ()
    method: str | None = None
    options: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self):
        check_whole("epochs", self.epochs, 0)
        check_number("wd", self.weight_decay, 0)
        _check_callable("loss", self.loss, "a function of (logits, targets)")
        _check_callable("opt_func", self.opt_func, "a fastai optimiser")
        check_choice("schedule", self.schedule, self._schedules())
        check_choice("select", self.select, SELECTS)
        check_whole("bs", self.batch_size, 1)
        check_whole("seed", self.seed, 0)
        check_choice("on_nan", self.on_nan, ON_NAN)
        self._set(
            epochs=operator.index(self.epochs),
            weight_decay=_to_python(self.weight_decay),
            batch_size=operator.index(self.batch_size),
            seed=operator.index(self.seed),
        )

    def _schedules(self) -> tuple[str, ...]:
        return SCHEDULES

    def _set(self, **values: Any) -> None:
        """Replace values by Python's own numbers: fastai's optimisers refuse NumPy's."""
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def _method_facts(self) -> dict[str, Any]:
        # The facts about loss and callbacks already contain the options of built-in methods.
        if self.method is None or is_built_in(self.method):
            return {}
        return {"method": self.method, "options": dict(self.options)}


@dataclass(frozen=True, kw_only=True)
class StagePlan(_Plan):
    """The plan of stage 1.

    Args:
        warmup_epochs: Epochs of linear warm-up, at least 0.
        milestones: Epochs at which the learning rate falls, with "multistep" only.
        decay: Factor at each milestone, in (0, 1].
        compile: Whether to train the backbone through `torch.compile`.
    """

    warmup_epochs: int = 0
    milestones: tuple[int, ...] | None = None
    decay: float = 0.1
    compile: bool = False

    def __post_init__(self):
        super().__post_init__()
        schedule = self.make_schedule()
        if self.schedule == "multistep":
            self._set(milestones=schedule.milestones, decay=schedule.decay)
        if not isinstance(self.compile, bool):
            raise UserError(f"compile must be True or False, got {self.compile!r}.")
        self._set(lr=_check_rates(self.lr))

    def make_schedule(self) -> EpochSchedule:
        """Make the callback of the schedule."""
        return EpochSchedule(self.schedule, self.warmup_epochs, self.milestones, self.decay)

    @property
    def steps(self) -> dict[str, Any]:
        """Return milestones and decay for "multistep", so that older manifests compare equal."""
        if self.schedule != "multistep":
            return {}
        return {"milestones": self.milestones, "decay": self.decay}

    def facts(self) -> dict[str, Any]:
        """Return the values that a checkpoint of this stage must agree with."""
        return {
            "stage": "stage 1", "lr": repr(self.lr), "weight_decay": self.weight_decay,
            "schedule": self.schedule, "warmup_epochs": self.warmup_epochs,
            "batch": self.batch_size, "seed": self.seed, "sampler": name_of(self.sampler),
            "select": self.select, "flip": self.flip, **self.steps, **self._method_facts(),
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Stage2Plan(_Plan):
    """The plan of stage 2.

    Args:
        reset: Whether to begin with a new head.
        views: Augmented passes to cache features of; 0 trains on images.
        bn: Mode of batch normalisation: "frozen", "train" or "last_block".
        view_seed: Seed of the augmentation.
        post: Name of a post-hoc method that follows.
    """

    reset: bool = False
    views: int = 1
    bn: str = "frozen"
    view_seed: int = 0
    post: str | None = None

    def __post_init__(self):
        super().__post_init__()
        check_number("lr", self.lr, 0, above=True)
        check_whole("view_seed", self.view_seed, 0)
        check_choice("bn", self.bn, BN_MODES)
        check_whole("views", self.views, 0)
        self._set(
            lr=_to_python(self.lr),
            view_seed=operator.index(self.view_seed),
            views=operator.index(self.views),
        )
        if self.bn != "frozen" and self.views:
            raise UserError(f"views must be 0 with bn={self.bn!r}, got views={self.views}.")
        if self.views and self.flip:
            raise UserError(
                f"{spell('flip', True)} averages over images and cannot use cached features; take "
                f"{spell('views', 0)}."
            )

    @property
    def on(self) -> str:
        """Return what the head trains on, as records name it."""
        if not self.views:
            return "images"
        return f"features, {self.views} view{'s' if self.views > 1 else ''}"

    def _schedules(self) -> tuple[str, ...]:
        return STAGE2_SCHEDULES

    def facts(self) -> dict[str, Any]:
        """Return the values that a checkpoint of this stage must agree with."""
        return {
            "stage": "stage 2", "method": self.method, "lr": self.lr,
            "weight_decay": self.weight_decay, "bn": self.bn, "schedule": self.schedule,
            "batch": self.batch_size, "seed": self.seed, "view_seed": self.view_seed,
            "views": self.views, "sampler": name_of(self.sampler), "select": self.select,
            "flip": self.flip, "reset": self.reset, **self._method_facts(),
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ProbePlan(Stage2Plan):
    """The plan of a stage 1 that trains a new classifier on cached features.

    Args:
        start: The weights that the classifier begins with: "none", "class_means" or "logistic".
    """

    start: str = "none"

    def __post_init__(self):
        super().__post_init__()
        check_whole("epochs", self.epochs, 1)
        check_whole("views", self.views, 1)
        check_choice("start", self.start, PROBE_STARTS)

    def facts(self) -> dict[str, Any]:
        """Return the values that a checkpoint of this stage must agree with."""
        return {**super().facts(), "stage": "stage 1", "start": self.start}


@dataclass(frozen=True, kw_only=True)
class PosthocPlan:
    """The plan of a post-hoc correction.

    Args:
        method: Name of a post-hoc method.
        value: The strength, at least 0. None: chosen on the validation images.
        views: Augmented passes over the training images, for a method that uses features only.
        seed: Seed of the augmentation.
    """

    method: str
    value: float | None = None
    views: int = 1
    seed: int = 0

    def __post_init__(self):
        row = find_method(self.method)
        if row.kind != "post hoc":
            raise UserError(f"{self.method} is no post-hoc method; use retrain_classifier.")
        if self.value is not None:
            check_number("value", self.value, 0)
            if row.choose is None:
                raise UserError(f"{self.method} has nothing to choose; leave value out.")
        check_whole("views", self.views, 0)
        check_whole("seed", self.seed, 0)


def resolve_stage1(
    given: Mapping[str, Any], dls, pretrained: bool, folder: Path
) -> StagePlan | ProbePlan:
    """Resolve the plan of stage 1 from the arguments given, the method's row and the defaults.

    Args:
        given: The arguments of `fit_stage1` by name.
        dls: The data.
        pretrained: Whether the weights are pre-trained.
        folder: Default folder of checkpoints.

    Returns:
        The plan; a `ProbePlan` for a method that trains the head alone.

    Raises:
        UserError: If an argument is outside its range, or has no meaning for the method.
    """
    given = dict(given)
    callbacks, loss = listed_callbacks(given.pop("cbs")), given.pop("loss")
    method = given.pop("method")
    options = _check_options(given.pop("options"), method)
    row = None if method is None else find_method(method)
    if row is not None:
        if row.kind != "stage 1":
            raise UserError(f"{method} is no method of stage 1; use retrain_classifier.")
        from_row = row.arguments(**options)
        loss = from_row["loss"] if loss is None else loss
        # A callback that is given replaces the method's own of the same class.
        given_kinds = {type(cb) for cb in callbacks}
        own = [cb for cb in from_row["cbs"] if type(cb) not in given_kinds]
        callbacks = [*own, *callbacks]
    check_for_features(dls, given, callbacks, row)
    resume = given.pop("resume")
    if resume:
        callbacks.append(Checkpoint(folder if resume is True else Path(resume), resume=True))
    wd = given.pop("wd")
    shared = {
        "batch_size": dls.train.bs, "seed": dls.train.seed, "loss": loss, "method": method,
        "options": options,
    }  # fmt: skip
    if row is not None and row.trains == "head":
        values = _probe_arguments(given, method, row, dls.train.bs)
        wd = row.values["wd"] if wd is None else wd
        start = options.get("start", row.options.get("start", "none"))
        return ProbePlan(
            weight_decay=wd, callbacks=tuple(callbacks), start=start, reset=True,
            **values, **shared,
        )  # fmt: skip
    for name in ("views", "view_seed"):
        if given.pop(name) is not None:
            raise UserError(
                f"{name} is for a stage 1 that trains the head alone, such as method='probe', but "
                f"method is {method!r}; leave it out."
            )
    for name, kind in {"sync_bn": SyncBatchNorm, "grad_checkpointing": GradCheckpointing}.items():
        if given.pop(name):
            callbacks.insert(len(callbacks) - bool(resume), kind())
    if given["lr"] is None:
        given["lr"] = usual_rate(dls.train.bs, pretrained)
        warn_about_rate(dls, given["lr"])
    wd = _STAGE1_WD if wd is None else wd
    return StagePlan(weight_decay=wd, callbacks=tuple(callbacks), **given, **shared)


def _probe_arguments(
    given: Mapping[str, Any], method: str, row: Method, batch: int
) -> dict[str, Any]:
    """Return the arguments of a stage 1 that trains the head alone; None gets the row's value."""
    given = dict(given)
    for name, plain in FOR_BACKBONE.items():
        if given.pop(name) != plain:
            raise UserError(
                f"{name} has no meaning for {method}, which trains the head on cached features; "
                "leave it out."
            )
    if given["epochs"] is None:
        given["epochs"] = row.values["epochs"]
    if given["lr"] is None:
        given["lr"] = head_rate(row.values["lr"], batch)
    # `retrain_classifier` and `compare` have these defaults, so that they read the same features.
    given["views"] = 1 if given["views"] is None else given["views"]
    given["view_seed"] = 0 if given["view_seed"] is None else given["view_seed"]
    return given


def probe_plan(dls, seed: int, views: int, view_seed: int) -> ProbePlan:
    """Return the plan of a linear probe with the values of its row.

    Args:
        dls: The data.
        seed: Seed of the order.
        views: Augmented passes to cache features of, at least 1.
        view_seed: Seed of the augmentation.
    """
    values = METHODS[PROBE].values
    return ProbePlan(
        epochs=values["epochs"], lr=head_rate(values["lr"], dls.train.bs),
        weight_decay=values["wd"], batch_size=dls.train.bs, seed=seed, views=views,
        view_seed=view_seed, reset=True, method=PROBE,
    )  # fmt: skip


def resolve_stage2(given: Mapping[str, Any], dls) -> Stage2Plan | PosthocPlan:
    """Resolve the plan of stage 2 from the arguments given, the method's row and the defaults.

    Args:
        given: The arguments of `retrain_classifier` by name; None: not given.
        dls: The data.

    Returns:
        The plan; a `PosthocPlan` for a post-hoc method.

    Raises:
        UserError: If an argument is outside its range or has no meaning for the method.
    """
    given = dict(given)
    values = {name: given.pop(name) for name in _STAGE2}
    values = {name: value for name, value in values.items() if value is not None}
    callbacks = listed_callbacks(given.pop("cbs"))
    method = given["method"]
    first = values.get("epochs")
    if isinstance(first, str) and first in METHODS:
        name = spell("method", first)
        raise UserError(f"epochs is {first!r}, the name of a method; give {name}.")
    options = _check_options(given.pop("options"), method)
    row = None if method is None else find_method(method)
    check_for_features(dls, given, callbacks, row)
    if given["view_seed"] is None:
        given["view_seed"] = given["seed"]
    if row is not None and row.kind == "post hoc":
        _refuse_values(method, values, options, callbacks)
        views = 1 if given["views"] is None else given["views"]
        return PosthocPlan(method=method, views=views, seed=given["view_seed"])
    if row is not None:
        from_row = _row_arguments(method, row, options)
        callbacks = [*from_row.pop("cbs"), *callbacks]
        values = {**from_row, **values}
    on_images = given["bn"] != "frozen" or given["flip"]
    if given["views"] is None:
        given["views"] = 0 if on_images else 1
    if given["views"] == 0:
        values = {"bs": dls.train.bs, **values}
    values = {**_STAGE2, **values}
    if given["select"] is None:
        given["select"] = default_select(dls)
    return Stage2Plan(
        weight_decay=values.pop("wd"), batch_size=values.pop("bs"), callbacks=tuple(callbacks),
        options=options, post=None if row is None else row.post, **values, **given,
    )  # fmt: skip


def _row_arguments(method: str, row: Method, options: Mapping[str, float]) -> dict[str, Any]:
    """Return the arguments of a method of stage 2 that are not None."""
    if row.kind == "stage 1":
        raise UserError(f"{method} is the classifier of stage 1: there is nothing to retrain.")
    return {name: v for name, v in row.arguments(**options).items() if v is not None}


def _refuse_values(method: str, values: Mapping, options: Mapping, callbacks: list) -> None:
    """Refuse arguments of a training for a method that trains nothing."""
    unused = [*values, *(["options"] if options else [])]
    if any(not isinstance(cb, Checkpoint) for cb in callbacks):
        unused.append("cbs")
    if unused:
        raise UserError(f"{method} trains nothing, so {unused[0]} has no meaning for it.")


def _check_options(options: Any, method: str | None) -> dict[str, float]:
    if options is not None and not isinstance(options, Mapping):
        raise UserError(f"options must be a dictionary by name, got {options!r}.")
    if options and method is None:
        raise UserError("options belong to a method; name the method, too.")
    return dict(options or {})


def _check_callable(name: str, value: object, what: str) -> None:
    if value is not None and not callable(value):
        raise UserError(f"{name} must be {what} or None, got {value!r}.")


def _check_rates(lr):
    """Check one learning rate, or a pair (backbone, head) as a slice or a list."""
    if isinstance(lr, slice):
        # As in fastai, slice(x) is x for the head and a tenth of it for the backbone.
        rates = [lr.stop] if lr.start is None else [lr.start, lr.stop]
        is_pair = lr.step is None
    elif isinstance(lr, list | tuple):
        rates, is_pair = list(lr), len(lr) == 2
    else:
        check_number("lr", lr, 0, above=True)
        return _to_python(lr)
    try:
        for rate in rates:
            check_number("lr", rate, 0, above=True)
    except UserError:
        is_pair = False
    if not is_pair:
        raise UserError(
            "lr must be a finite number above 0, or a slice or list of two of them (backbone, "
            f"head), got {lr!r}."
        )
    rates = [_to_python(rate) for rate in rates]
    return slice(*rates) if isinstance(lr, slice) else rates


def _to_python(value):
    return value.item() if isinstance(value, np.generic) else value


def name_of(obj) -> str:
    """Return the name of a sampler or a loss; for an object, the name of its class.

    Args:
        obj: A name, a function or another object.
    """
    return obj if isinstance(obj, str) else getattr(obj, "__name__", type(obj).__name__)
