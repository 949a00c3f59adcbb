"""`LTLearner`: a fastai Learner in two stages, backbone first, then the classifier."""

import copy
import logging
import math
import operator
import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from numbers import Real
from pathlib import Path

import fastai.callback.schedule  # noqa: F401  (gives Learner lr_find, fit_one_cycle, fit_flat_cos)
import numpy as np
import torch
from fastai.callback.core import Callback, TrainEvalCallback
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.progress import CSVLogger, ProgressCallback
from fastai.data.core import DataLoaders
from fastai.learner import CastToTensor, Learner, Recorder
from PIL import Image
from torch import Tensor, nn

from ltlearn.callbacks.last_block import LastBlock, last_block
from ltlearn.data.benchmarks.facts import IMAGENET_STATS
from ltlearn.data.datasets import ImagesInMemory
from ltlearn.data.images import ImageSet, read_image
from ltlearn.data.loader import LTDataLoader
from ltlearn.data.loaders import LTDataLoaders
from ltlearn.data.transforms import ImageTransform
from ltlearn.errors import UserError, check_choice, check_whole
from ltlearn.heads.cosine import CosineLinear
from ltlearn.heads.registry import is_head, is_trainable
from ltlearn.losses import CountedLoss, CrossEntropy
from ltlearn.methods import METHODS, STAGE1, find_method, usual_rate
from ltlearn.metrics.priors import correct_for_prior, prior_vector
from ltlearn.metrics.report import ShotReport, shot_report
from ltlearn.metrics.shots import FEW_RULES
from ltlearn.models.backbone import LTModel
from ltlearn.models.pretrained import create_lt_model
from ltlearn.posthoc.logit_adjustment import adjust_logits, choose_logit_adjustment
from ltlearn.posthoc.nearest_mean import nearest_class_mean
from ltlearn.posthoc.tau_norm import choose_tau_norm, tau_normalize
from ltlearn.posthoc.temperature import fit_temperature, scale_temperature
from ltlearn.training.checkpoint import Checkpoint, describe_options
from ltlearn.training.compiled import compiled
from ltlearn.training.evaluate import run_model
from ltlearn.training.features import FeatureBank, weights_fingerprint
from ltlearn.training.finite import FiniteLoss
from ltlearn.training.history import FlipAverage, Trajectory, chosen_classes, head_norms
from ltlearn.training.logs import EpochLog
from ltlearn.training.loop import (
    LossScaling,
    QuietLearner,
    listed_callbacks,
    oom_to_user_error,
    sgd,
)
from ltlearn.training.progress import EpochProgress
from ltlearn.training.schedule import SCHEDULES, LoaderEpoch, make_schedule
from ltlearn.utils.settings import load_settings

__all__ = ["LTLearner", "lt_learner"]

_log = logging.getLogger("ltlearn")
_LEAST_TO_CHOOSE_ON = 30  # validation images; and no fewer than classes
_BANK_BYTES = 1 << 30  # features that take more memory than this go to disk
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
# What stage 2 is without a method: SAMN's values.
_STAGE2 = {
    "epochs": 20, "lr": 5e-4, "wd": 0.0, "bs": 64, "sampler": "instance", "loss": None,
    "reset": False,
}  # fmt: skip
# What tells which class prior a classifier assumes; see `assumed_prior`.
_PRIOR_KEPT = tuple(name for name, method in METHODS.items() if method.prior == "stage 1")
_PLAIN_LOSSES = ("CrossEntropy", "CrossEntropyLoss", "CrossEntropyLossFlat", "SoftmaxFocalLoss")
_BALANCING = {"SAMN", "MaxNorm", "LearnableWeightScaling", "DeferredReweighting", "GLMC"}
# What a learner has without being asked: these belong to one learner and stay with it.
_OWN_CALLBACKS = (TrainEvalCallback, Recorder, CastToTensor, MixedPrecision, ProgressCallback)
# What looks on, and decides nothing of the weights.
_ONLOOKERS = (Checkpoint, CSVLogger, EpochLog)


def _split_groups(model: nn.Module) -> list[list[nn.Parameter]]:
    """Parameter groups [backbone, head]."""
    return [list(model.backbone.parameters()), list(model.head.parameters())]


def _bf16_pays(device: torch.device, side: int) -> bool:
    """Tell whether bfloat16 is faster here."""
    # CUDA from sm_80; a CPU with bf16 instructions, from 16 pixels.
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return side >= 16 and any(getattr(torch.cpu, p, lambda: False)() for p in probes)


class _HeadModel(nn.Module):
    """The head alone, over features."""

    def __init__(self, head: nn.Module):
        super().__init__()
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x)


class LTLearner(QuietLearner):
    """A fastai Learner for long-tailed recognition; make one with `lt_learner`.

    Attributes: `stages` (what each stage trained, a dict each, for the manifest), `trajectory` (of
    the last stage), `bank` (the `FeatureBank`). Parameter groups are [backbone, head]; `freeze()`
    freezes all of the backbone.

    Args:
        dls: Long-tailed data.
        model: Backbone and head.
        precision: "auto" (bfloat16 where it is faster), "fp32", "bf16", or "fp16" (CUDA only).
        channels_last: Keep convolution weights channels-last in memory.
        cache_path: Folder for features; None keeps them in memory up to 1 GiB, and beyond that in
            the setting of that name.
        few: Rule for the few-shot group, "<20" or "<=20".
        **kwargs: For fastai's `Learner`.

    Raises:
        UserError: If `few` is unknown, or the precision is unknown or the device does not have it.
    """

    def __init__(
        self,
        dls: LTDataLoaders,
        model: LTModel,
        precision: str = "auto",
        channels_last: bool = True,
        cache_path: str | Path | None = None,
        few: str = "<20",
        **kwargs,
    ):
        device = torch.device(getattr(dls, "device", None) or "cpu")
        check_choice("precision", precision, PRECISIONS)
        check_choice("few", few, FEW_RULES)
        if precision == "fp16" and device.type != "cuda":
            raise UserError(
                f"precision fp16 needs a CUDA device, the data is on {device}; use bf16 or fp32."
            )
        if precision == "auto":
            side = max(getattr(dls, "size", (224, 224)))
            precision = "bf16" if _bf16_pays(device, side) else "fp32"
        self.precision, self.few = precision, few
        self._dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
        model = model.to(device)
        # Not `channels_last`: fastai's `load_learner` takes that for a callback of its own.
        self._channels_last = channels_last
        if channels_last:
            model = model.to(memory_format=torch.channels_last)
        self.bank = FeatureBank(cache_path, "float32" if self._dtype is None else "float16")
        kwargs = {
            "loss_func": CrossEntropy(),
            "opt_func": sgd(),
            "splitter": _split_groups,
            # Freezing means freezing: fastai would go on training the batch normalisation of frozen
            # layers.
            "train_bn": False,
            # The published recipes decay every parameter.
            "wd_bn_bias": True,
            **kwargs,
        }
        kwargs["cbs"] = listed_callbacks(kwargs.get("cbs"))
        if precision == "fp16":
            kwargs["cbs"] += [LossScaling()]
        self.stages: list[dict] = []
        self.trajectory: dict | None = None
        super().__init__(dls, model, **kwargs)

    # ------------------------------------------------------------ the loop

    def autocast(self):
        """Return the context that the model runs in."""
        if self._dtype is None:
            return nullcontext()
        return torch.autocast(self.dls.device.type, dtype=self._dtype)

    def _autocast_or_none(self):
        if self._dtype is None:
            return None
        context = partial(torch.autocast, self.dls.device.type, dtype=self._dtype)
        context.dtype = self._dtype
        return context

    def _do_one_batch(self):
        # Autocast covers the model alone and ends with it, however the batch ends; the loss is
        # computed in float32.
        with self.autocast():
            self.pred = self.model(*self.xb)
        if self.pred.dtype != torch.float32:
            self.pred = self.pred.float()
        self("after_pred")
        if len(self.yb):
            self.loss_grad = self.loss_func(self.pred, *self.yb)
            self.loss = self.loss_grad.clone()
        self("after_loss")
        if self.training and len(self.yb):
            self._do_grad_opt()

    # ------------------------------------------------------------ stage 1

    def fit_stage1(
        self,
        epochs: int,
        lr: float | slice | list[float] | None = None,
        *,
        wd: float = 5e-4,
        sampler="instance",
        loss=None,
        schedule: str = "cosine",
        warmup_epochs: int = 0,
        milestones: Sequence[int] | None = None,
        decay: float = 0.1,
        opt_func=None,
        select: str = "last",
        flip: bool = False,
        on_nan: str = "stop",
        compile: bool = False,
        resume: bool | str | Path = False,
        cbs=None,
    ) -> dict:
        """Train backbone and head together: the representation.

        Args:
            epochs: Passes over the training images, at least 0.
            lr: Learning rate of the head, and of the backbone unless a slice or a list of two
                (backbone, head) is given, above 0; None takes 0.1 a 256 images for random weights,
                a tenth of that for pre-trained ones, up to batches of 1024.
            wd: Weight decay of every parameter, 1 / lr per step, at least 0.
            sampler: Name of a sampler, or a torch sampler.
            loss: Takes (logits, targets) to a scalar; None takes cross-entropy.
            schedule: "cosine" (to zero, once an epoch), "constant", "multistep", or GLMC's on large
                sets, "lagged_cosine", see `EpochLaggedCosine`.
            warmup_epochs: Epochs of linear warm-up, at least 0, with any schedule.
            milestones: For "multistep": epochs that begin with a lower rate, from 1, ascending.
            decay: For "multistep": what each milestone multiplies the rate by, in (0, 1].
            opt_func: fastai optimiser; None takes torch's SGD with momentum 0.9.
            select: "last" keeps the weights of the last epoch, which no data chose; "best" those of
                the epoch with the best class-balanced accuracy on the validation loader.
            flip: Validate on the mean logits of each image and its mirror image.
            on_nan: Where the loss of a step is not finite: "stop" ends the training, "skip" leaves
                the step out, see `FiniteLoss`.
            compile: Train the backbone through `torch.compile`, which takes a minute or more at
                first; where that fails, the training goes on without, and a warning says so. The
                figures differ in rounding. Weights, checkpoints and validation know nothing of it.
            resume: Keep checkpoints, and go on from those there are: in the folder given, or with
                True in `stage1` of the learner's own for models. `Checkpoint` among the callbacks
                has more options.
            cbs: fastai callbacks. Without a `SAMN()` here or on the learner, a `SAMNLinear` is
                folded into a plain linear layer first. With `Checkpoint(folder, resume=True)` a
                training that was killed goes on.

        Returns:
            The trajectory: a list per figure, one entry an epoch.

        Raises:
            UserError: If an argument is outside its range, or training diverges.
        """
        epochs = self._check(epochs, schedule, select, wd, loss, opt_func, SCHEDULES)
        cbs = listed_callbacks(cbs)
        if resume:
            folder = self.path / self.model_dir / "stage1" if resume is True else Path(resume)
            cbs.append(Checkpoint(folder, resume=True))
        wd = _plain(wd)
        rates = make_schedule(schedule, warmup_epochs, milestones, decay)
        # What a schedule without milestones was recorded as, it still is.
        steps = {}
        if schedule == "multistep":
            steps = {"milestones": rates.milestones, "decay": rates.decay}
        if not isinstance(compile, bool):
            raise UserError(f"compile must be True or False, got {compile!r}.")
        if lr is not None:
            lr = _check_rates(lr)
        else:
            lr = usual_rate(self.dls.train.bs, bool(getattr(self, "pretrained", False)))
        self._fold_without_owner(cbs)
        self.unfreeze_all()
        with self._borrowed(sampler, loss, opt_func):
            trajectory = self._trajectory(select, "stage 1", start=False)
            own = [trajectory, LoaderEpoch(), EpochProgress("stage 1")]
            own += [FiniteLoss(on_nan, stage="stage 1")]
            # Without either, a schedule of fastai's among the callbacks has the rates to itself.
            own += [rates] if schedule != "constant" or warmup_epochs else []
            own += [FlipAverage()] if flip else []
            began = time.perf_counter()
            self._tell_checkpoints(
                cbs, stage="stage 1", lr=repr(lr), weight_decay=wd, loss=loss, schedule=schedule,
                warmup_epochs=warmup_epochs, batch=self.dls.train.bs, seed=self.dls.train.seed,
                sampler=self.dls.train.sampler_name, select=select, flip=flip, **steps,
            )  # fmt: skip
            with compiled(self.model.backbone) if compile else nullcontext() as call:
                self.fit(epochs, lr, wd, [*own, *cbs], reset_opt=True)
            self._finish(self, trajectory)
            what = "last block" if any(isinstance(cb, LastBlock) for cb in cbs) else "backbone"
            if compile:
                steps["compiled"] = call.compiled is not None
            self._note_stage(
                trajectory, cbs, began,
                stage="stage 1", trained=f"{what} + head", bn="train", on="images",
                batch=self.dls.train.bs, sampler=self.dls.train.sampler_name, loss=loss,
                head="kept", epochs=epochs, lr=lr, weight_decay=wd, schedule=schedule, **steps,
            )  # fmt: skip
        return self.trajectory

    # ------------------------------------------------------------ stage 2

    def retrain_classifier(
        self,
        epochs: int | None = None,
        lr: float | None = None,
        *,
        method: str | None = None,
        options: Mapping[str, float] | None = None,
        wd: float | None = None,
        bs: int | None = None,
        sampler=None,
        loss=None,
        reset: bool | None = None,
        views: int | None = None,
        bn: str = "frozen",
        schedule: str = "cosine",
        opt_func=None,
        select: str | None = None,
        flip: bool = False,
        seed: int = 0,
        view_seed: int | None = None,
        on_nan: str = "stop",
        cbs=None,
    ) -> dict:
        """Freeze the backbone and train the classifier again.

        Args:
            epochs: Passes over the training images, at least 0; None: the method's, or 20. With 0
                and `SAMN()` the classifier gets SAMN's starting norms.
            lr: Learning rate of the head, above 0; None: the method's, or 5e-4.
            method: A name of `ltlearn.methods.METHODS`: its sampler, loss, callbacks and values are
                taken wherever they are not given here; a post-hoc one trains nothing, see
                `correct_classifier`.
            options: Of the method's loss and callbacks, by name, such as
                {"head_smoothing": 0.2}; `METHODS[method].options` has those there are.
            wd: Weight decay of the head, at least 0; None: the method's, or 0.
            bs: Images a batch; None: the method's, or 64, on images the loader's own.
            sampler: Name of a sampler, or a torch sampler; None: the method's, or "instance".
            loss: Takes (logits, targets) to a scalar; None: the method's, or the learner's
                (cross-entropy). A loss of ltlearn without class counts is told those of the data.
            reset: Begin with a new head instead of the trained one; None: the method's, or False.
            views: Augmented passes to cache features of; each time an image is drawn, one of its
                views is. 0 caches nothing and runs the frozen backbone over the images in each
                epoch. None: 1.
            bn: "frozen" keeps the backbone in evaluation mode. "train" lets batch normalisation use
                and update batch statistics, as the authors' code does; "last_block" lets that of
                the backbone's last block, see `LastBlock`. Both need the images in each epoch.
            schedule: "cosine" (to zero, once an epoch) or "constant".
            opt_func: fastai optimiser; None takes torch's SGD with momentum 0.9.
            select: "best" keeps the epoch with the best class-balanced accuracy on the validation
                loader, the one before the first step included; "last" the last. None: "best", but
                "last" where that loader has fewer than 30 images or than classes, with a warning.
            flip: Validate on the mean logits of each image and its mirror image; only on images.
            seed: Of order, augmentation and a new head.
            view_seed: Of the augmentation alone, where features are to be shared between seeds.
            on_nan: Where the loss of a step is not finite: "stop" ends the training, "skip" leaves
                the step out, see `FiniteLoss`.
            cbs: fastai callbacks, such as `SAMN()`; those of the method and those that stay on the
                learner take part, too. With `Checkpoint(folder, resume=True)` a training that was
                killed goes on. A head that belongs to a callback which is not among them
                (`SAMNLinear` to `SAMN()`) is folded into a plain linear layer first.

        Returns:
            The trajectory: a list per figure, the first entry before the first step.

        Raises:
            UserError: If an argument is outside its range, or training diverges; the head is then
                the one there was before.
        """
        asked = {
            "epochs": epochs, "lr": lr, "wd": wd, "bs": bs, "sampler": sampler, "loss": loss,
            "reset": reset,
        }  # fmt: skip
        asked = {name: value for name, value in asked.items() if value is not None}
        row, cbs = None, listed_callbacks(cbs)
        if options is not None and not isinstance(options, Mapping):
            raise UserError(f"options must be a dictionary by name, got {options!r}.")
        if method is not None:
            row = find_method(method)
            if row.kind == "post hoc":
                if asked or options or any(not isinstance(cb, Checkpoint) for cb in cbs):
                    first = next(iter(asked), "options" if options else "cbs")
                    raise UserError(f"{method} trains nothing, so {first} has no meaning for it.")
                self.correct_classifier(method, views=_or(views, 1), seed=_or(view_seed, seed))
                return self.trajectory
            if row.kind == "stage 1":
                raise UserError(
                    f"{method} is the classifier of stage 1: there is nothing to retrain."
                )
            spelled = row.arguments(**(options or {}))
            spelled = {k: v for k, v in spelled.items() if v is not None}
            cbs = [*spelled.pop("cbs"), *cbs]
            asked = {**spelled, **asked}
        elif options:
            raise UserError("options are those of a method; name the method, too.")
        if views == 0 or (views is None and (bn != "frozen" or flip)):
            asked = {"bs": self.dls.train.bs, **asked}
        asked = {**_STAGE2, **asked}
        epochs, lr, wd, bs = (asked[k] for k in ("epochs", "lr", "wd", "bs"))
        sampler, loss, reset = asked["sampler"], asked["loss"], asked["reset"]
        select = self.settle_select() if select is None else select
        epochs = self._check(epochs, schedule, select, wd, loss, opt_func)
        lr, wd = _check_rate(lr), _plain(wd)
        check_whole("bs", bs, 1)
        check_whole("seed", seed, 0)
        view_seed = _or(view_seed, seed)
        check_whole("view_seed", view_seed, 0)
        bs, seed, view_seed = map(operator.index, (bs, seed, view_seed))
        if bn not in ("frozen", "train", "last_block"):
            raise UserError(f"bn must be 'frozen', 'train' or 'last_block', got {bn!r}.")
        if views is None:
            views = 1 if bn == "frozen" and not flip else 0
        check_whole("views", views, 0)
        if bn != "frozen" and views:
            raise UserError(f"views must be 0 with bn={bn!r}, got views={views}.")
        if views and flip:
            raise UserError(
                "flip=True averages over images, so it cannot use cached features; pass views=0."
            )
        began = time.perf_counter()
        head, weights = self.model.head, copy.deepcopy(self.model.head.state_dict())
        if reset:
            self._reset_head(seed)
        self._fold_without_owner(cbs)
        self._tell_checkpoints(
            cbs, stage="stage 2", method=method, lr=lr, weight_decay=wd, loss=loss, bn=bn,
            schedule=schedule, batch=bs, seed=seed, view_seed=view_seed, views=views,
            sampler=_name_of(sampler), select=select, flip=flip, reset=reset,
        )  # fmt: skip
        finite = FiniteLoss(on_nan, stage="stage 2")
        rates = [make_schedule(schedule)] if schedule != "constant" else []
        cbs = [*rates, LoaderEpoch(), EpochProgress("stage 2"), finite, *cbs]
        try:
            if views:
                learn = self._head_learner(views, bs, sampler, seed, view_seed)
                learn.opt_func, learn.loss_func = opt_func or sgd(), loss or self.loss_func
                trajectory = self._trajectory(
                    select, "stage 2", predict=lambda: _choose(learn, learn.dls.valid)
                )
                try:
                    with self._lent_callbacks() as staying, self._told_counts(learn.loss_func):
                        learn.fit(epochs, lr, wd, [trajectory, *cbs, *staying], reset_opt=True)
                    self._finish(learn, trajectory)
                finally:
                    # Also after an interruption the head is what the fit made of it.
                    self.model.head = learn.model.head
                    self.opt = None
                on = f"features, {views} view{'s' if views > 1 else ''}"
            else:
                trajectory = self._trajectory(select, "stage 2", flip=flip)
                own = [trajectory, FlipAverage()] if flip else [trajectory]
                with self._borrowed(sampler, loss, opt_func, seed, bs), self._frozen_backbone(bn):
                    self.fit(epochs, lr, wd, [*own, *cbs], reset_opt=True)
                    self._finish(self, trajectory)
                on = "images"
        except UserError:
            # A head that has diverged, or was not trained at all, is of no use.
            head.load_state_dict(weights)
            self.model.head, self.opt = head, None
            raise
        self._note_stage(
            trajectory, cbs, began,
            stage="stage 2", trained=type(self.model.head).__name__, bn=bn, on=on,
            batch=bs, sampler=_name_of(sampler), loss=loss,
            head="new" if reset else "kept", epochs=epochs, lr=lr, weight_decay=wd,
            schedule=schedule, method=method,
        )  # fmt: skip
        trajectory = self.trajectory
        if row is not None and row.post is not None:
            self.correct_classifier(row.post, seed=view_seed)
            self.trajectory = trajectory
        return trajectory

    def correct_classifier(
        self, method: str, value: float | None = None, *, views: int = 1, seed: int = 0
    ) -> dict:
        """Correct the classifier without training it.

        Args:
            method: "tau_norm", "tau_norm_no_bias", "logit_adjustment", "temperature" or "ncm".
            value: tau, or the temperature. None chooses it on the validation images, by
                class-balanced accuracy (temperature: by NLL); where they are too few to choose on,
                it is 1.
            views: For "ncm": augmented passes over the training images, of which the first is used,
                as stage 2 caches them; 0 takes the images as they are.
            seed: Of that augmentation.

        Returns:
            What was done: `value`, `chosen_on`, and the `curve` of (value, figure) pairs.

        Raises:
            UserError: If the method is not a post-hoc one, or the classifier cannot be corrected
                (a row of zeros, a head that is not linear).
        """
        if find_method(method).kind != "post hoc":
            raise UserError(f"{method} is no post-hoc method; use retrain_classifier.")
        if value is not None and (not _is_number(value) or value < 0):
            raise UserError(f"value must be a finite number of at least 0, got {value!r}.")
        check_whole("views", views, 0)
        check_whole("seed", seed, 0)
        began = time.perf_counter()
        if method == "ncm":
            if value is not None:
                raise UserError("ncm has nothing to choose; leave value out.")
            train = self.features("train", views, seed)
            head = nearest_class_mean(train.views[0], train.targets, self.dls.c)
            done = {"value": None, "chosen_on": None, "curve": []}
        else:
            linear = self._linear_head()
            done = self._choose_value(method, linear) if value is None else {
                "value": value, "chosen_on": None, "curve": []
            }  # fmt: skip
            head = {
                "tau_norm": lambda tau: tau_normalize(linear, tau),
                "tau_norm_no_bias": lambda tau: tau_normalize(linear, tau, keep_bias=False),
                "logit_adjustment": lambda tau: adjust_logits(linear, self.dls.class_counts, tau),
                "temperature": lambda t: scale_temperature(linear, t),
            }[method](done["value"])
        self.model.head, self.opt = head.to(self.dls.device), None
        trajectory = self._trajectory("last", "post hoc", predict=lambda: self.predict_logits())
        trajectory.learn = self
        trajectory.before_fit()
        self.trajectory = trajectory.record
        self.stages.append(
            {
                "stage": "post hoc",
                "method": method,
                "value": done["value"],
                "chosen_on": done["chosen_on"] or "not chosen",
                "precision": self.precision,
                "seconds": round(time.perf_counter() - began, 2),
            }
        )
        _log.info("%s", self.stages[-1])
        return done

    def _choose_value(self, method: str, linear: nn.Linear) -> dict:
        """Choose the number of a post-hoc method on the validation images, where there are enough.

        Returns:
            `value`, `chosen_on` (None where there were too few), `curve`.
        """
        valid = self.features("valid")
        features, targets = valid.views[0], valid.targets
        if self.too_few_to_choose(f"{method} takes its published value"):
            return {"value": 1.0, "chosen_on": None, "curve": []}
        if method == "temperature":
            x = torch.from_numpy(np.asarray(features)).to(linear.weight)
            with torch.no_grad():
                value, curve = fit_temperature(linear(x), targets), []
        elif method in ("tau_norm", "tau_norm_no_bias"):
            keep_bias = method == "tau_norm"
            value, curve = choose_tau_norm(linear, features, targets, keep_bias)
        else:
            value, curve = choose_logit_adjustment(linear, features, targets, self.dls.class_counts)
        return {"value": value, "chosen_on": self._select_on, "curve": curve}

    def too_few_to_choose(self, instead: str) -> bool:
        """Tell whether the validation images are too few to choose on, and say so.

        Args:
            instead: What happens then, for the warning.
        """
        n, classes = self.dls.valid.n, self.dls.c
        enough = n >= max(_LEAST_TO_CHOOSE_ON, classes)
        if not enough:
            _log.warning(
                "%d validation images of %d classes are too few to choose on: %s", n, classes,
                instead,
            )  # fmt: skip
        return not enough

    def settle_select(self) -> str:
        """Return which epoch of stage 2 is kept where nobody asked: "best", or "last" and warn.

        It is the last where the validation images are too few to choose on. Published code, which
        chooses on the test set, does not ask how many there are.
        """
        few = self._select_on != "test" and self.too_few_to_choose("stage 2 keeps its last epoch")
        return "last" if few else "best"

    def _linear_head(self) -> nn.Linear:
        """Return the classifier as one linear layer."""
        head = self.model.head
        return head if isinstance(head, nn.Linear) else head.fold()

    def _head_learner(
        self, views: int, bs: int, sampler, seed: int, view_seed: int | None = None
    ) -> Learner:
        """Make a Learner of the head alone, over cached features."""
        train = LTDataLoader(
            self.features("train", views, _or(view_seed, seed)),
            bs,
            training=True,
            sampler=sampler,
            augment=views > 1,
            seed=seed,
        )
        valid = LTDataLoader(self.features("valid"), 4096)
        dls = DataLoaders(train, valid, device=self.dls.device)
        dls.class_counts, dls.vocab, dls.c = self.dls.class_counts, self.dls.vocab, self.dls.c
        learn = QuietLearner(
            dls, _HeadModel(self.model.head), CrossEntropy(), path=self.path,
            splitter=lambda m: [list(m.parameters())], train_bn=False, wd_bn_bias=True,
            metrics=self.metrics,
        )  # fmt: skip
        return learn

    def features(self, part: str, views: int = 0, seed: int = 0):
        """Return the backbone's features of a part of the data, from the bank where it has them.

        Args:
            part: "train", "valid" or "test".
            views: Augmented passes; 0 makes one without augmentation.
            seed: Of the augmentation.
        """
        split = self.dls.split
        data = f"{split.train} {split.valid} {split.test} {split.valid_from} {part}"
        loader = self._loader(part)
        if isinstance(loader.dataset, ImagesInMemory):
            # Small batches stay in the cache of a CPU: 64 images are a third faster than 256.
            bs = 64 if self.dls.device.type == "cpu" else 256
            loader = loader.new(bs=bs, shuffle=False, augment=loader.augment)
        if self.bank.path is None:
            width = np.dtype(self.bank.dtype).itemsize * self.model.head.in_features
            if loader.n * max(views, 1) * width > _BANK_BYTES:
                path = load_settings().cache_path / "features"
                _log.warning("these features would take over 1 GiB of memory: they go to %s", path)
                self.bank = FeatureBank(path, self.bank.dtype)
        with oom_to_user_error(loader.bs):
            return self.bank.features(
                self.model.backbone, loader, data, views, seed, self._autocast_or_none()
            )

    # ------------------------------------------------------------ results

    def predict_logits(
        self, part: str = "valid", flip: bool = False, cached: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Return logits and targets of a loader, in the order of its dataset.

        Args:
            part: "train", "valid" or "test".
            flip: Average the logits of each image and of its mirror image.
            cached: Use the feature bank, where `flip` allows it.

        Shape:
            Logits (N, C), float32; targets (N,). On the CPU.
        """
        if cached and not flip:
            features = self.features(part)
            loader = LTDataLoader(features, 4096, device=self.dls.device)
            head = _HeadModel(self.model.head)
            return tuple(t.cpu() for t in run_model(head, loader, nullcontext))
        loader = self._loader(part).new(shuffle=False)
        with oom_to_user_error(loader.bs):
            return tuple(t.cpu() for t in run_model(self.model, loader, self.autocast, flip))

    def compare_classifiers(self, methods=None, seeds: int = 1, **kwargs):
        """Compare every method, or those named, on the same features; see `ltlearn.compare`.

        Args:
            methods: Names, a list or with commas between them; None is all.
            seeds: Runs of every method that draws something at random.
            **kwargs: For `ltlearn.compare.compare`.

        Returns:
            A `Comparison`: print it, or take its `table()`, `differences()`, `to_dict()`.
        """
        from ltlearn.compare import compare

        return compare(self, methods, seeds, **kwargs)

    def shot_report(self, part: str | None = None, flip: bool = False) -> ShotReport:
        """Report many / medium / few / all, per class, and calibration.

        Args:
            part: "test" or "valid"; None takes the test set, or the validation set where there is
                no test set.
            flip: Average the logits of each image and of its mirror image.
        """
        if part is None:
            part = "test" if self.dls.test is not None else "valid"
            if part == "valid":
                _log.warning(
                    "there is no test set: these figures are of the images that epochs are "
                    "chosen on"
                )
        logits, targets = self.predict_logits(part, flip)
        return shot_report(
            logits, targets, self.dls.shot_counts, classes=self.dls.vocab, few=self.few
        )

    def predict(self, images, *, target_prior=None, source_prior=None) -> tuple[list[str], Tensor]:
        """Classify images: a path, a PIL image or an (H, W, 3) uint8 array, or a list of them.

        Args:
            images: One image or a list.
            target_prior: How often the classes occur where the images are from, if that is known:
                "uniform", "train", "reversed" or C numbers; the logits are corrected for it. None
                takes them as they are.
            source_prior: The class prior that the classifier assumes. None: "train" after
                training on the images as they come with plain cross-entropy, else "uniform"; see
                `assumed_prior`.

        Returns:
            Class names, one an image, and probabilities (N, C), float32 on the CPU.

        Raises:
            UserError: If an image cannot be read, or a prior is not allowed.
        """
        if target_prior is not None:
            counts = self.dls.shot_counts
            target_prior = prior_vector(target_prior, counts)
            source_prior = prior_vector(_or(source_prior, self.assumed_prior), counts)
        elif source_prior is not None:
            raise UserError("source_prior has no meaning without a target_prior; give both.")
        images = images if isinstance(images, list | tuple) else [images]
        if not images:
            raise UserError("predict needs an image or more, got an empty list.")
        pixels = [self._pixels(image) for image in images]
        data = ImageSet(np.zeros(len(pixels), dtype=np.int64), images=np.stack(pixels))
        loader = self.dls.valid.new(ImagesInMemory(data), shuffle=False)
        loader.n = len(pixels)
        logits = run_model(self.model, loader, self.autocast)[0].cpu()
        if target_prior is not None:
            logits = correct_for_prior(logits, source_prior, target_prior)
        probs = logits.softmax(1)
        return [self.dls.vocab[c] for c in probs.argmax(1).tolist()], probs

    @property
    def stage1_method(self) -> str:
        """Return how the last stage 1 was trained: a name of `ltlearn.methods.STAGE1`."""
        stages = [s for s in self.stages if s["stage"] == "stage 1"]
        used = set(stages[-1]["callbacks"]) if stages else set()
        own = {name: {type(cb).__name__ for cb in METHODS[name].callbacks()} for name in STAGE1}
        return next((name for name, cbs in own.items() if cbs & used), "ce")

    @property
    def assumed_prior(self) -> str:
        """Return the class prior that the classifier's logits assume: "train" or "uniform".

        That of the last stage's method; of a stage without one, "train" if it drew the images as
        they come and had a loss that leaves the classes alike, and no callback that corrects them.
        """
        stages = [s for s in self.stages if s.get("method") not in _PRIOR_KEPT]
        if not stages:
            return "train"
        stage = stages[-1]
        if stage.get("method") is not None:
            return METHODS[stage["method"]].prior
        plain = stage["sampler"] == "instance" and stage["loss"] in _PLAIN_LOSSES
        return "train" if plain and not set(stage["callbacks"]) & _BALANCING else "uniform"

    def _pixels(self, image) -> np.ndarray:
        """Bring one image to the size the model sees, the way the validation loader does it."""
        if isinstance(image, str | Path):
            image = read_image(Path(image))
        image = np.asarray(image.convert("RGB") if hasattr(image, "convert") else image)
        if image.ndim == 2:
            image = np.repeat(image[..., None], 3, axis=2)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise UserError(
                f"predict takes (H, W, 3) uint8 images, got {image.dtype} {image.shape}."
            )
        height, width = self.dls.size
        if not isinstance(self.dls.valid.dataset, ImagesInMemory):
            return ImageTransform("none", height)(image)
        if image.shape[:2] == (height, width):
            return image
        return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))

    def head_norms(self) -> Tensor:
        """Return the norm of each class's classifier weights, (C,), float32 on the CPU."""
        return head_norms(self.model)

    def load(self, file, device=None, with_opt=True, strict=True):
        """Load what `save` wrote; the head becomes the saved one, `nn.Linear` or `SAMNLinear`."""
        path = self.path / self.model_dir / f"{file}.pth"
        if not path.is_file():
            raise UserError(f"there is no saved model {path}.")
        head = self.model.head
        super().load(file, device=device, with_opt=False, strict=strict)
        if self.model.head is not head:
            # To be made again, over the parameters of the head that the file brought.
            self.opt = None
        if with_opt:
            super().load(file, device=device, with_opt=True, strict=strict)
        return self

    # ------------------------------------------------------------ helpers

    @property
    def select_on(self) -> str:
        """Return which images epochs are selected on: "validation" or "test"."""
        return self._select_on

    @property
    def _select_on(self) -> str:
        split = getattr(self.dls, "split", None)
        return "test" if split is not None and split.valid_from == "test set" else "validation"

    def _loader(self, part: str):
        loader = {"train": self.dls.train, "valid": self.dls.valid, "test": self.dls.test}.get(part)
        if loader is None:
            raise UserError(
                f"these dataloaders have no {part!r} part; there is train, valid and, if given, "
                "test."
            )
        return loader

    def _check(
        self, epochs, schedule, select, wd, loss, opt_func, schedules=("cosine", "constant")
    ) -> int:
        """Check what both stages take; return the epochs as Python's own integer."""
        check_whole("epochs", epochs, 0)
        if not _is_number(wd) or wd < 0:
            raise UserError(f"wd must be a finite number of at least 0, got {wd!r}.")
        if loss is not None and not callable(loss):
            raise UserError(f"loss must be a function of (logits, targets) or None, got {loss!r}.")
        if opt_func is not None and not callable(opt_func):
            raise UserError(f"opt_func must be a fastai optimiser or None, got {opt_func!r}.")
        check_choice("schedule", schedule, schedules)
        if select not in ("best", "last"):
            raise UserError(f"select must be 'best' or 'last', got {select!r}.")
        return operator.index(epochs)

    def _trajectory(
        self, select: str, stage: str, start: bool = True, flip: bool = False, predict=None
    ) -> Trajectory:
        def predict_here():
            return run_model(self.model, self.dls.valid, self.autocast, flip, chosen_classes)

        return Trajectory(
            self.dls.shot_counts, self.few, select, self._select_on,
            start=start, predict=predict or predict_here, stage=stage,
        )  # fmt: skip

    def _staying(self) -> list[Callback]:
        """List the callbacks that the user put on the learner."""
        return [cb for cb in self.cbs if not isinstance(cb, _OWN_CALLBACKS)]

    @contextmanager
    def _lent_callbacks(self):
        """Lend the callbacks that stay on this learner to another one, and take them back."""
        staying = self._staying()
        try:
            yield staying
        finally:
            # fastai takes the learner away from a callback when it removes it.
            for cb in staying:
                cb.learn = self
                setattr(self, cb.name, cb)

    def _fold_without_owner(self, cbs: list[Callback]) -> None:
        """Make a head of a callback's a plain one, for a fit without the callback."""
        head, kind = self.model.head, type(self.model.head)
        if isinstance(head, nn.Linear) or not is_head(head):
            return
        # On the class: a callback gives the learner's attributes out as its own.
        if any(getattr(type(cb), "head_type", None) is kind for cb in [*cbs, *self.cbs]):
            return
        try:
            linear = head.fold()
        except UserError:
            stay = "pass cbs=CosineHead() to go on with it, or " if kind is CosineLinear else ""
            raise UserError(
                f"the head is a {kind.__name__}, which no linear layer stands for: {stay}begin "
                "with a new linear layer, retrain_classifier(reset=True)."
            ) from None
        _log.warning(
            "the head is a %s and no callback that trains one is given: it is folded into an "
            "nn.Linear, whose norms are free",
            kind.__name__,
        )
        self.model.head = linear.requires_grad_(is_trainable(head))
        self.opt = None

    @contextmanager
    def _borrowed(self, sampler, loss, opt_func, seed=None, bs=None):
        """Use another sampler, loss, optimiser, seed and batch size until the block ends."""
        train = self.dls.train
        old = (train.sampler_name, train.sampler, train.seed, train.bs)
        own = (self.loss_func, self.opt_func)
        try:
            train.bs = bs or train.bs
            train.seed = train.seed if seed is None else seed
            train.set_sampler(sampler)
            self.loss_func, self.opt_func = loss or self.loss_func, opt_func or self.opt_func
            with self._told_counts(self.loss_func):
                yield
        finally:
            train.sampler_name, train.sampler, train.seed, train.bs = old
            self.loss_func, self.opt_func = own
            self.opt = None

    @contextmanager
    def _told_counts(self, loss):
        """Tell a loss that has no class counts those of the data, for as long as a fit takes."""
        tell = isinstance(loss, CountedLoss) and loss.class_counts is None
        if tell:
            loss.set_class_counts(self.dls.class_counts)
        try:
            yield
        finally:
            if tell:
                loss.set_class_counts(None)

    @contextmanager
    def _frozen_backbone(self, bn: str):
        """Freeze the backbone for a while, in evaluation mode but for what `bn` says."""
        backbone = self.model.backbone
        learning = last_block(backbone).values() if bn == "last_block" else ()

        def keep_mode(mode: bool = True) -> nn.Module:
            for module in learning:
                module.training = mode
            return backbone

        flags = [(p, p.requires_grad) for p in backbone.parameters()]
        try:
            for p, _ in flags:
                p.requires_grad_(False)
                # An optimiser would apply weight decay and momentum to any that has a gradient.
                p.grad = None
            if bn != "train":
                backbone.eval()
                backbone.train = keep_mode
            yield
        finally:
            if bn != "train":
                del backbone.train
            for p, flag in flags:
                p.requires_grad_(flag)

    def _reset_head(self, seed: int) -> None:
        """Begin with a new linear head, the same one for the same seed."""
        old = self.model.head
        if not is_head(old):
            raise UserError(
                "the head must be an nn.Linear or a head of ltlearn to be made anew, it is "
                f"{type(old).__name__}."
            )
        # A head that never has a bias, such as a cosine one, makes room for a layer that has one.
        bias = getattr(old, "bias", True) is not None
        device = next(iter(old.state_dict().values())).device
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            new = nn.Linear(old.in_features, old.out_features, bias)
        self.model.head, self.opt = new.to(device), None

    def unfreeze_all(self) -> None:
        """Let every parameter train."""
        self.model.requires_grad_(True)
        self.opt = None

    def _tell_checkpoints(self, cbs: list[Callback], *, loss, **facts) -> None:
        """Tell a `Checkpoint` what the weights depend on, to refuse one made with other values."""
        checkpoints = [cb for cb in cbs if isinstance(cb, Checkpoint)]
        if not checkpoints:
            return
        split = getattr(self.dls, "split", None)
        if split is not None:
            facts["images"] = f"train {split.train}, valid {split.valid}, test {split.test}"
        facts |= {
            "precision": self.precision,
            "loss": describe_options(loss or self.loss_func),
            "callbacks": [
                describe_options(cb)
                for cb in [*cbs, *self._staying()]
                if not isinstance(cb, _ONLOOKERS)
            ],
        }
        if facts["stage"] == "stage 2":
            facts["weights it begins with"] = weights_fingerprint(self.model)
        for cb in checkpoints:
            cb.made_with = facts

    def _finish(self, learn: Learner, trajectory: Trajectory) -> None:
        """Take up the weights of the chosen epoch."""
        if trajectory.best_state is not None:
            learn.model.load_state_dict(trajectory.best_state)
        trajectory.best_state = None
        self.trajectory = trajectory.record

    def _note_stage(self, trajectory: Trajectory, cbs, began: float, *, loss, **facts) -> None:
        """Keep what a stage trained, and how, for the manifest."""
        module = self.model if facts["stage"] == "stage 1" else self.model.head
        chosen = trajectory.select_on if trajectory.select == "best" else "not chosen: the last"
        # What a fit took before it was stopped counts as well.
        seconds = time.perf_counter() - began
        seconds += sum(cb.spent_ for cb in cbs if isinstance(cb, Checkpoint))
        told = [cb for cb in cbs if not isinstance(cb, (*_ONLOOKERS, FiniteLoss))]
        self.stages.append(
            {
                **facts,
                "loss": _name_of(loss or self.loss_func),
                "parameters": sum(p.numel() for p in module.parameters()),
                "callbacks": [type(cb).__name__ for cb in [*told, *self._staying()]],
                "precision": self.precision,
                "chosen_epoch": trajectory.record["chosen"],
                "chosen_on": chosen,
                "seconds": round(seconds, 2),
            }
        )
        _log.info("%s", self.stages[-1])


def _name_of(thing) -> str:
    """Name a sampler or a loss: itself if it is a name, else its function's or its class's name."""
    return thing if isinstance(thing, str) else getattr(thing, "__name__", type(thing).__name__)


def _or(value, other):
    return other if value is None else value


def _is_number(value) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _plain(value):
    """Return numpy's scalars as Python's own: fastai's optimisers do not take the others."""
    return value.item() if isinstance(value, np.generic) else value


def _check_rate(lr) -> float:
    if not _is_number(lr) or lr <= 0:
        raise UserError(f"lr must be a finite number above 0, got {lr!r}.")
    return _plain(lr)


def _check_rates(lr):
    """Check one learning rate, or those of backbone and head: a slice, or a list of two."""
    if isinstance(lr, slice):
        # As in fastai, slice(x) is x for the head and a tenth of it for the backbone.
        rates = [lr.stop] if lr.start is None else [lr.start, lr.stop]
        good = lr.step is None
    elif isinstance(lr, list | tuple):
        rates, good = list(lr), len(lr) == 2
    else:
        return _check_rate(lr)
    if not good or not all(_is_number(r) and r > 0 for r in rates):
        raise UserError(
            "lr must be a finite number above 0, or a slice or list of two of them (backbone, "
            f"head), got {lr!r}."
        )
    rates = [_plain(r) for r in rates]
    return slice(*rates) if isinstance(lr, slice) else rates


def _choose(learn: Learner, dl) -> tuple[Tensor, Tensor]:
    return run_model(learn.model, dl, nullcontext, read=chosen_classes)


def lt_learner(
    dls: LTDataLoaders,
    arch: str = "resnet50",
    pretrained: bool | str | Path = True,
    *,
    precision: str = "auto",
    channels_last: bool = True,
    cache_path: str | Path | None = None,
    few: str = "<20",
    keep_head: bool = False,
    cbs=None,
    **model_kwargs,
) -> LTLearner:
    """Make a learner of any timm model: pooled backbone features, one linear head.

    Args:
        dls: Long-tailed data; its class counts go with it.
        arch: A name of `timm.list_models()`, or `resnet20/32/44/56_cifar`.
        pretrained: True fetches timm's weights; a path loads a file of them; False starts at
            random. The data is normalised as the weights expect, unless it was given statistics of
            its own.
        precision: "auto", "fp32", "bf16" or "fp16".
        channels_last: Keep convolution weights channels-last in memory.
        cache_path: Folder for features; None keeps them in memory up to 1 GiB, and beyond that in
            the setting of that name.
        few: Rule for the few-shot group, "<20" or "<=20".
        keep_head: Take the classifier of the file, too, which is of these classes in this order.
        cbs: fastai callbacks that stay on the learner.
        **model_kwargs: For `timm.create_model`, such as `width=64` of the CIFAR ResNets.

    Raises:
        UserError: If timm does not know `arch` or its arguments, the weights cannot be had, the
            precision does not fit, or `few` or `cbs` is none that is allowed.
    """
    cbs = listed_callbacks(cbs)
    model = create_lt_model(arch, dls.c, pretrained, tuple(dls.size), keep_head, **model_kwargs)
    config = getattr(model.backbone, "pretrained_cfg", None) or {}
    starts_trained = bool(pretrained) and (
        not isinstance(pretrained, bool) or bool(config.get("hf_hub_id") or config.get("url"))
    )
    if starts_trained and not dls.stats_given:
        mean, std = config.get("mean", IMAGENET_STATS[0]), config.get("std", IMAGENET_STATS[1])
        dls.normalize.set(mean, std)
    learn = LTLearner(dls, model, precision, channels_last, cache_path, few, cbs=cbs)
    learn.pretrained, learn.arch = starts_trained, arch
    return learn
