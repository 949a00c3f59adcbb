"""`LTLearner`: a fastai Learner in two stages, backbone first, then the classifier."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import fastai.callback.schedule  # noqa: F401  (gives Learner lr_find, fit_one_cycle, fit_flat_cos)
import torch
from torch import Tensor, nn

from ltlearn.data.loaders import LTDataLoaders
from ltlearn.errors import UserError, check_choice
from ltlearn.losses import CrossEntropy
from ltlearn.metrics.priors import correct_for_prior, prior_vector
from ltlearn.metrics.report import ShotReport, shot_report
from ltlearn.models.backbone import LTModel
from ltlearn.names import FEW_RULES
from ltlearn.training.features import FeatureBank, Features
from ltlearn.training.given import check_given, make_model
from ltlearn.training.history import head_norms
from ltlearn.training.loop import LossScaling, QuietLearner, listed_callbacks, sgd
from ltlearn.training.plan import PosthocPlan, resolve_stage1, resolve_stage2
from ltlearn.training.posthoc import run_posthoc
from ltlearn.training.precision import DTYPES, resolve_precision
from ltlearn.training.prediction import extract_features, predict_images, predict_part
from ltlearn.training.prior import assumed_prior, stage1_method
from ltlearn.training.records import PosthocRecord, StageRecord, TrajectoryRecord
from ltlearn.training.selection import default_select, selects_on
from ltlearn.training.stage1 import run_stage1
from ltlearn.training.stage2 import run_stage2

__all__ = ["LTLearner", "lt_learner"]

_log = logging.getLogger("ltlearn")


def _split_groups(model: nn.Module) -> list[list[nn.Parameter]]:
    """Return the parameter groups [backbone, head]."""
    return [list(model.backbone.parameters()), list(model.head.parameters())]


class LTLearner(QuietLearner):
    """A fastai Learner for long-tailed recognition; `lt_learner` makes one.

    Attributes: `stages` (a record for each finished stage), `trajectory` (the record of the last
    stage's epochs), `bank` (the `FeatureBank`). Parameter groups are [backbone, head]; `freeze()`
    freezes all of the backbone.

    Args:
        dls: Long-tailed data.
        model: Backbone and head.
        precision: "auto" (bfloat16 if it is faster), "fp32", "bf16", or "fp16" (CUDA only).
        channels_last: Whether convolution weights are channels-last in memory.
        cache_path: Folder for features. None: memory up to 1 GiB, then the setting `cache_path`.
        few: Rule for the few-shot group, "<20" or "<=20".
        **kwargs: Arguments of fastai's `Learner`.

    Raises:
        UserError: If `few` or the precision is unknown, or the device does not support the
            precision.

    Example:
        >>> learn = lt_learner(dls, "resnet50")
        >>> learn.fit_stage1(90)
        >>> print(learn.shot_report())
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
        check_choice("few", few, FEW_RULES)
        side = max(getattr(dls, "size", (224, 224)))
        precision = resolve_precision(precision, device, side)
        self.precision, self.few = precision, few
        model = model.to(device)
        # Not `channels_last`: fastai's `load_learner` takes that for a callback of its own.
        self._channels_last = channels_last
        if channels_last:
            model = model.to(memory_format=torch.channels_last)
        self.bank = FeatureBank(cache_path, "float32" if precision == "fp32" else "float16")
        kwargs = {
            "loss_func": CrossEntropy(),
            "opt_func": sgd(),
            "splitter": _split_groups,
            # fastai would train the batch normalisation of frozen layers.
            "train_bn": False,
            # The published recipes apply weight decay to every parameter.
            "wd_bn_bias": True,
            **kwargs,
        }
        kwargs["cbs"] = listed_callbacks(kwargs.get("cbs"))
        if precision == "fp16":
            kwargs["cbs"] += [LossScaling()]
        self.stages: list[StageRecord | PosthocRecord] = []
        self.trajectory: TrajectoryRecord | None = None
        super().__init__(dls, model, **kwargs)

    @property
    def autocast_dtype(self) -> torch.dtype | None:
        """Return the dtype that the model runs in under autocast; None without autocast."""
        return DTYPES[self.precision]

    def autocast(self):
        """Return the context that the model runs in."""
        return (self.autocast_or_none() or nullcontext)()

    def autocast_or_none(self):
        """Return a function that makes the autocast context; None without autocast."""
        if self.autocast_dtype is None:
            return None
        context = partial(torch.autocast, self.dls.device.type, dtype=self.autocast_dtype)
        context.dtype = self.autocast_dtype
        return context

    def _do_one_batch(self):
        # Autocast covers the model alone and ends with it, however the batch ends. The loss is
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
        method: str | None = None,
        options: Mapping[str, float] | None = None,
    ) -> TrajectoryRecord:
        """Train backbone and head together: the representation.

        Args:
            epochs: Passes over the training images, at least 0.
            lr: Learning rate, > 0. A slice or a pair sets (backbone, head) separately. None: 0.1
                per 256 images in a batch (0.01 if pre-trained), capped at batch size 1024.
            wd: Weight decay of every parameter, at least 0; SGD adds wd * w to the gradient.
            sampler: Name of a sampler, or a torch sampler.
            loss: Takes (logits, targets) to a scalar. None: the method's, or the learner's
                (cross-entropy).
            schedule: "cosine" (to zero, once an epoch), "constant", "multistep", or
                "lagged_cosine" (GLMC's on large datasets, see `EpochSchedule`).
            warmup_epochs: Epochs of linear warm-up, at least 0, with any schedule.
            milestones: For "multistep": epochs that begin with a lower learning rate, ascending.
            decay: For "multistep": factor of the learning rate at each milestone, in (0, 1].
            opt_func: fastai optimiser. None: torch's SGD with momentum 0.9.
            select: "last" keeps the weights of the last epoch. "best" keeps those of the epoch with
                the best class-balanced accuracy on the validation loader.
            flip: Whether to validate on the mean logits of each image and its mirror image.
            on_nan: If the loss of a step is not finite, "stop" ends the training and "skip" leaves
                the step out, see `FiniteLoss`.
            compile: Whether to train the backbone through `torch.compile`, which takes a minute or
                more at first. If it fails, a warning is logged and the training goes on without
                it. Figures differ in rounding. Weights, checkpoints and validation are the same.
            resume: Whether to keep checkpoints and to go on from existing ones: in the folder
                given, or with True in `stage1` of the learner's folder for models. A `Checkpoint`
                among the callbacks has more options.
            cbs: fastai callbacks. A head whose callback is not among them or on the learner
                (`SAMNLinear` without `SAMN()`) is folded into a linear layer first.
            method: A method of stage 1, by its name in `ltlearn.methods.METHODS`. Its loss and
                callbacks are used. None: those given.
            options: Options of the method by name, such as {"alpha": 0.4}.

        Returns:
            The trajectory: one list per figure, with one entry per epoch.

        Raises:
            UserError: If an argument is outside its range, or training diverges.

        Example:
            >>> learn.fit_stage1(90, 0.1, method="mixup", options={"alpha": 0.4})
        """
        given = {
            "epochs": epochs, "lr": lr, "wd": wd, "sampler": sampler, "loss": loss,
            "schedule": schedule, "warmup_epochs": warmup_epochs, "milestones": milestones,
            "decay": decay, "opt_func": opt_func, "select": select, "flip": flip,
            "on_nan": on_nan, "compile": compile, "resume": resume, "cbs": cbs,
            "method": method, "options": options,
        }  # fmt: skip
        is_pretrained = bool(getattr(self, "pretrained", False))
        folder = self.path / self.model_dir / "stage1"
        run_stage1(self, resolve_stage1(given, self.dls, is_pretrained, folder))
        return self.trajectory

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
    ) -> TrajectoryRecord:
        """Freeze the backbone and train the classifier again.

        Args:
            epochs: Passes over the training images, at least 0. None: the method's, or 20. With 0
                and `SAMN()` the classifier gets SAMN's starting norms.
            lr: Learning rate of the head, > 0. None: the method's, or 5e-4.
            method: A name in `ltlearn.methods.METHODS`. Arguments that are not given here come
                from its row. A post-hoc method trains nothing, see `correct_classifier`.
            options: Options of the method by name, such as {"head_smoothing": 0.2};
                `METHODS[method].options` lists them.
            wd: Weight decay of the head, at least 0. None: the method's, or 0.
            bs: Batch size. None: the method's, or 64; on images the method's, or the loader's own.
            sampler: Name of a sampler, or a torch sampler. None: the method's, or "instance".
            loss: Takes (logits, targets) to a scalar. None: the method's, or the learner's
                (cross-entropy). A loss of ltlearn without class counts gets those of the data.
            reset: Whether to begin with a new head. None: the method's, or False.
            views: Augmented passes to cache features of; each drawn image gets one of its views at
                random. 0 caches nothing and runs the frozen backbone over the images in each
                epoch. None: 1, or 0 if `bn` or `flip` needs the images.
            bn: "frozen" keeps the backbone in evaluation mode. "train" lets batch normalisation use
                and update batch statistics, as the authors' code does; "last_block" does so in
                the last block alone, see `LastBlock`. Both need the images in each epoch.
            schedule: "cosine" (to zero, once an epoch) or "constant".
            opt_func: fastai optimiser. None: torch's SGD with momentum 0.9.
            select: "best" keeps the epoch with the best class-balanced accuracy on the validation
                loader, including the one before the first step. "last" keeps the last. None:
                "best", or "last" with a warning if there are fewer than 30 validation images or
                fewer than classes.
            flip: Whether to validate on the mean logits of each image and its mirror image; only
                on images.
            seed: Seed of order, augmentation and a new head.
            view_seed: Seed of the augmentation alone, so that several seeds share features. None:
                `seed`.
            on_nan: If the loss of a step is not finite, "stop" ends the training and "skip" leaves
                the step out, see `FiniteLoss`.
            cbs: fastai callbacks, such as `SAMN()`, in addition to those of the method and of the
                learner. With `Checkpoint(folder, resume=True)` a training that was killed goes on.
                A head whose callback is not among them (`SAMNLinear` without `SAMN()`) is folded
                into a linear layer first.

        Returns:
            The trajectory: one list per figure; the first entry is before the first step.

        Raises:
            UserError: If an argument is outside its range, or training diverges. The head is then
                restored.

        Example:
            >>> learn.retrain_classifier(5, method="crt")
        """
        given = {
            "epochs": epochs, "lr": lr, "method": method, "options": options, "wd": wd, "bs": bs,
            "sampler": sampler, "loss": loss, "reset": reset, "views": views, "bn": bn,
            "schedule": schedule, "opt_func": opt_func, "select": select, "flip": flip,
            "seed": seed, "view_seed": view_seed, "on_nan": on_nan, "cbs": cbs,
        }  # fmt: skip
        plan = resolve_stage2(given, self.dls)
        if isinstance(plan, PosthocPlan):
            run_posthoc(self, plan)
        else:
            run_stage2(self, plan)
        return self.trajectory

    def correct_classifier(
        self, method: str, value: float | None = None, *, views: int = 1, seed: int = 0
    ) -> dict[str, Any]:
        """Correct the classifier without training it.

        Args:
            method: Name of a post-hoc method, such as "tau_norm", "logit_adjustment" or "ncm".
            value: Strength of the correction (tau, or the temperature), at least 0. None chooses
                it on the validation images; if they are too few to choose on, it is 1.
            views: For "ncm": augmented passes over the training images, of which the first is used,
                as stage 2 caches them. 0 takes the images without augmentation.
            seed: Seed of that augmentation.

        Returns:
            `value`, `chosen_on`, and `curve`, a list of (value, figure).

        Raises:
            UserError: If the method is not a post-hoc one, or the classifier cannot be corrected
                (a row of zeros, a head that is not linear).

        Example:
            >>> learn.correct_classifier("tau_norm")["value"]
            0.7
        """
        return run_posthoc(self, PosthocPlan(method=method, value=value, views=views, seed=seed))

    def settle_select(self) -> str:
        """Return the default of `select` in stage 2, see `ltlearn.training.selection`."""
        return default_select(self.dls)

    def features(self, part: str, views: int = 0, seed: int = 0) -> Features:
        """Return the backbone's features of a part, from the feature bank if it has them.

        Args:
            part: "train", "valid" or "test".
            views: Augmented passes; 0 makes one without augmentation.
            seed: Seed of the augmentation.
        """
        return extract_features(self, part, views, seed)

    def predict_logits(
        self, part: str = "valid", flip: bool = False, cached: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Return logits and targets of a part, in the order of its dataset.

        Args:
            part: "train", "valid" or "test".
            flip: Whether to average the logits of each image and its mirror image.
            cached: Whether to use the feature bank, without `flip`.

        Shape:
            Logits (N, C), float32; targets (N,). On the CPU.
        """
        return predict_part(self, part, flip, cached)

    def compare_classifiers(self, methods=None, seeds: int = 1, **kwargs):
        """Compare all methods, or those named, on the same features; see `ltlearn.compare`.

        Args:
            methods: Names as a list or with commas between them. None: all.
            seeds: Runs of each method that draws at random.
            **kwargs: Arguments of `ltlearn.compare.compare`.

        Returns:
            A `Comparison`: print it, or use its `table()`, `differences()` and `to_dict()`.
        """
        from ltlearn.compare import compare

        return compare(self, methods, seeds, **kwargs)

    def shot_report(self, part: str | None = None, flip: bool = False) -> ShotReport:
        """Report the accuracy of shot groups and classes, and calibration.

        Args:
            part: "test" or "valid". None: the test set if there is one.
            flip: Whether to average the logits of each image and its mirror image.
        """
        if part is None:
            part = "test" if self.dls.test is not None else "valid"
            if part == "valid":
                _log.warning("there is no test set: the report is on the validation images")
        logits, targets = self.predict_logits(part, flip)
        return shot_report(
            logits, targets, self.dls.shot_counts, classes=self.dls.vocab, few=self.few
        )

    def predict(self, images, *, target_prior=None, source_prior=None) -> tuple[list[str], Tensor]:
        """Classify images: a path, a PIL image or an (H, W, 3) uint8 array, or a list of them.

        Args:
            images: One image or a list.
            target_prior: Class prior of the images, if it is known: "uniform", "train", "reversed"
                or C numbers. The logits are corrected for it. None: no correction.
            source_prior: Class prior that the classifier assumes. None: `assumed_prior`.

        Returns:
            Class names, one per image, and probabilities (N, C), float32 on the CPU.

        Raises:
            UserError: If an image cannot be read, or a prior is not allowed.
        """
        if target_prior is not None:
            counts = self.dls.shot_counts
            target_prior = prior_vector(target_prior, counts)
            source_prior = self.assumed_prior if source_prior is None else source_prior
            source_prior = prior_vector(source_prior, counts)
        elif source_prior is not None:
            raise UserError("source_prior has no meaning without a target_prior; give both.")
        logits = predict_images(self, images)
        if target_prior is not None:
            logits = correct_for_prior(logits, source_prior, target_prior)
        probs = logits.softmax(1)
        return [self.dls.vocab[c] for c in probs.argmax(1).tolist()], probs

    @property
    def select_on(self) -> str:
        """Return what the validation loader holds: "validation" or "test"."""
        return selects_on(self.dls)

    @property
    def stage1_method(self) -> str:
        """Return the name of the method that the last stage 1 was trained with."""
        return stage1_method(self.stages)

    @property
    def assumed_prior(self) -> str:
        """Return the class prior that the logits assume: "train" or "uniform"."""
        return assumed_prior(self.stages)

    def head_norms(self) -> Tensor:
        """Return the weight norm of each class, (C,), float32 on the CPU."""
        return head_norms(self.model)

    def load(self, file, device=None, with_opt=True, strict=True):
        """Load a file that `save` wrote. The model takes over the kind of head in the file."""
        path = self.path / self.model_dir / f"{file}.pth"
        if not path.is_file():
            raise UserError(f"there is no saved model {path}.")
        head = self.model.head
        super().load(file, device=device, with_opt=False, strict=strict)
        if self.model.head is not head:
            # A new optimiser is needed for the parameters of the loaded head.
            self.opt = None
        if with_opt:
            super().load(file, device=device, with_opt=True, strict=strict)
        return self


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
    classes: Sequence[str] | None = None,
    weights_key: str | None = None,
    check: bool = True,
    cbs=None,
    **model_kwargs,
) -> LTLearner:
    """Make a learner from any timm model: a backbone with pooled features, and a linear head.

    Args:
        dls: Long-tailed data.
        arch: A name of `timm.list_models()`, or `resnet20/32/44/56_cifar`.
        pretrained: True fetches timm's weights, a path loads a file of weights, False starts at
            random. Data without `stats=` is normalised as the file or timm's configuration states.
        precision: "auto", "fp32", "bf16" or "fp16".
        channels_last: Whether convolution weights are channels-last in memory.
        cache_path: Folder for features. None: memory up to 1 GiB, then the setting `cache_path`.
        few: Rule for the few-shot group, "<20" or "<=20".
        keep_head: Whether to load the classifier of the weights file, too, of the same classes.
        classes: The names of the data's classes in the order of the kept classifier's outputs.
            None: what the file states, or else the order of the data.
        weights_key: Which set of weights is taken from a file of several ("state_dict_ema").
        check: Whether to try a kept classifier on a few hundred images, and warn if it looks wrong.
        cbs: fastai callbacks that stay on the learner.
        **model_kwargs: Arguments of `timm.create_model`, such as `width=64` of the CIFAR ResNets.

    Raises:
        UserError: If timm does not know `arch` or its arguments, the weights cannot be loaded, the
            file has other classes or several sets of weights, the device does not support the
            precision, or `few` or `cbs` is not allowed.

    Example:
        >>> learn = lt_learner(dls, "resnet32_cifar", pretrained=False, width=64)
    """
    cbs = listed_callbacks(cbs)
    options = {"keep_head": keep_head, "classes": classes, "weights_key": weights_key}
    loaded = make_model(dls, arch, pretrained, options, **model_kwargs)
    learn = LTLearner(dls, loaded.model, precision, channels_last, cache_path, few, cbs=cbs)
    learn.pretrained, learn.arch, learn.origin = loaded.origin.trained, arch, loaded.origin
    learn.as_given = check_given(learn) if keep_head and check else None
    return learn
