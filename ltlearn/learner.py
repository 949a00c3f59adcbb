"""`LTLearner`: a fastai Learner in two stages, backbone first, then the classifier."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import fastai.callback.schedule  # noqa: F401  (gives Learner lr_find, fit_one_cycle, fit_flat_cos)
import torch
from torch import Tensor, nn

from ltlearn.cleaning.mixin import CleaningMixin
from ltlearn.data.loaders import LTDataLoaders
from ltlearn.errors import check_choice
from ltlearn.exporting.mixin import ExportMixin
from ltlearn.interpretation import InterpretMixin
from ltlearn.losses import CrossEntropy
from ltlearn.methods import Method
from ltlearn.metrics.report import ShotReport, shot_report
from ltlearn.models.backbone import LTModel
from ltlearn.names import FEW_RULES
from ltlearn.training.features import FeatureBank, Features
from ltlearn.training.given import check_given, default_arch, make_model
from ltlearn.training.history import head_norms
from ltlearn.training.image_learner import ImageLearner, check_fastai_options
from ltlearn.training.loop import LossScaling, listed_callbacks, sgd
from ltlearn.training.precision import resolve_precision
from ltlearn.training.prediction import extract_features, predict_part
from ltlearn.training.prior import assumed_prior, stage1_method
from ltlearn.training.records import CorrectionRecord, PosthocRecord, StageRecord, TrajectoryRecord
from ltlearn.training.selection import selects_on, tested_part
from ltlearn.training.start import (
    ComparedClassifiers,
    Stage1State,
    correct_from,
    fit_from,
    retrain_from,
    use_classifier,
)

__all__ = ["LTLearner", "lt_learner"]

_log = logging.getLogger("ltlearn")


def _split_groups(model: nn.Module) -> list[list[nn.Parameter]]:
    """Return the parameter groups [backbone, head]."""
    return [list(model.backbone.parameters()), list(model.head.parameters())]


class LTLearner(CleaningMixin, ExportMixin, InterpretMixin, ImageLearner):
    """A fastai Learner for long-tailed recognition; `lt_learner` makes one.

    Attributes: `stages` (a record for each stage that led to the current classifier), `trajectory`
    (the record of the last stage's epochs), `bank` (the `FeatureBank`), `stage1_state` (the
    classifier that stage 2 begins from), `compared` (the classifiers of the last comparison).
    Parameter groups are [backbone, head]; `freeze()` freezes all of the backbone.

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

    # Class attributes, because learners that earlier versions exported lack them.
    stage1_state: Stage1State | None = None
    compared: ComparedClassifiers | None = None
    # fastai deletes the attribute of the instance when a fit is interrupted: its callback
    # `Trajectory` has the same name.
    trajectory: TrajectoryRecord | None = None

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
        self.precision = resolve_precision(precision, device, max(getattr(dls, "size", (224, 224))))
        self.few, model = few, model.to(device)
        # Not `channels_last`: fastai's `load_learner` takes that for a callback of its own.
        self._channels_last = channels_last
        if channels_last:
            model = model.to(memory_format=torch.channels_last)
        self.bank = FeatureBank(cache_path, "float32" if self.precision == "fp32" else "float16")
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
        scaling = [LossScaling()] if self.precision == "fp16" else []
        kwargs["cbs"] = [*listed_callbacks(kwargs.get("cbs")), *scaling]
        self.stages: list[StageRecord | PosthocRecord] = []
        super().__init__(dls, model, **kwargs)

    def fit_stage1(
        self,
        epochs: int | None = None,
        lr: float | slice | list[float] | None = None,
        *,
        wd: float | None = None,
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
        sync_bn: bool = False,
        grad_checkpointing: bool = False,
        resume: bool | str | Path = False,
        cbs=None,
        method: str | None = None,
        options: Mapping[str, float | str] | None = None,
        views: int | None = None,
        view_seed: int | None = None,
    ) -> TrajectoryRecord:
        """Train backbone and head together: the representation.

        With method="probe" the backbone stays as it is, and a new head is trained on its features.

        Args:
            epochs: Passes over the training images, at least 0. None: the method's, if it has one.
            lr: Learning rate, > 0. A slice or a pair sets (backbone, head) separately. None: 0.1
                per 256 images in a batch (0.01 if pre-trained), capped at batch size 1024.
            wd: Weight decay of every parameter, at least 0; SGD adds wd * w to the gradient. None:
                the method's, or 5e-4.
            sampler: Name of a sampler, or a torch sampler.
            loss: Takes (logits, targets) to a scalar. None: the method's, or cross-entropy.
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
                more at first. If it fails, a warning is logged and training goes on without it.
            sync_bn: Whether several GPUs normalise by the whole batch, instead of each by its part.
            grad_checkpointing: Whether to compute activations again in the backward pass, for less
                memory and about a third more time.
            resume: Whether to keep checkpoints and to go on from existing ones: in the folder
                given, or with True in `stage1` of the learner's folder for models. A `Checkpoint`
                among the callbacks has more options.
            cbs: fastai callbacks. A head whose callback is not among them or on the learner
                (`SAMNLinear` without `SAMN()`) is folded into a linear layer first.
            method: A method of stage 1, by its name in `ltlearn.methods.METHODS`. Its loss and
                callbacks are used. None: those given.
            options: Options of the method by name, such as {"alpha": 0.4}.
            views: For a method that trains the head alone: augmented passes to cache features of.
                None: 1, as `retrain_classifier` and `compare_classifiers` have it.
            view_seed: Seed of the augmentation of these passes. None: 0, as they have it.

        Returns:
            The trajectory: one list per figure, with one entry per epoch.

        Raises:
            UserError: If an argument is outside its range, or training diverges.

        Example:
            >>> learn.fit_stage1(90, 0.1, method="mixup", options={"alpha": 0.4})
        """
        given = {name: value for name, value in locals().items() if name != "self"}
        fit_from(self, given)
        return self.trajectory

    def retrain_classifier(
        self,
        epochs: int | None = None,
        lr: float | None = None,
        *,
        method: str | Method | None = None,
        options: Mapping[str, float] | None = None,
        start: str = "stage1",
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

        Each call begins from the classifier of stage 1, so that methods can be tried one after
        another. The weights that `fit_stage1`, `fit`, `load` or your own code left are stage 1.

        Args:
            epochs: Passes over the training images, at least 0. None: the method's, or 20. With 0
                and `SAMN()` the classifier gets SAMN's starting norms.
            lr: Learning rate of the head, > 0. None: the method's, or 5e-4.
            method: A name in `ltlearn.methods.METHODS`, or a `Method` of your own. Arguments that
                are not given here come from its row. A post-hoc method trains nothing, see
                `correct_classifier`.
            options: Options of the method by name, such as {"head_smoothing": 0.2};
                `METHODS[method].options` lists them.
            start: "stage1" begins from the classifier of stage 1. "current" goes on with the result
                of the last stage 2.
            wd: Weight decay of the head, at least 0. None: the method's, or 0.
            bs: Batch size. None: the method's, or 64; on images the method's, or the loader's own.
            sampler: Name of a sampler, or a torch sampler. None: the method's, or "instance".
            loss: Takes (logits, targets) to a scalar. None: the method's, or the learner's
                (cross-entropy). A loss of ltlearn without class counts gets those of the data.
            reset: Whether to begin with a new head; a method that needs a trained one then begins
                from a linear probe. None: the method's, or False.
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
            UserError: If an argument is outside its range, or training diverges. The learner is
                then as it was before.

        Example:
            >>> learn.retrain_classifier(5, method="crt")
        """
        given = {name: v for name, v in locals().items() if name not in ("self", "start")}
        retrain_from(self, given, start)
        return self.trajectory

    def correct_classifier(
        self,
        method: str | Method,
        value: float | None = None,
        *,
        start: str = "stage1",
        views: int = 1,
        seed: int = 0,
    ) -> CorrectionRecord:
        """Correct the classifier of stage 1 without training it.

        Args:
            method: A post-hoc method, by name, such as "tau_norm", "logit_adjustment" or "ncm", or
                as a `Method` of your own.
            value: Strength of the correction (tau, or the temperature), at least 0. None chooses
                it on the validation images; if they are too few to choose on, it is 1.
            start: "stage1" corrects the classifier of stage 1, "current" the last result.
            views: For "ncm": augmented passes over the training images, of which the first is used,
                as stage 2 caches them. 0 takes the images without augmentation.
            seed: Seed of that augmentation.

        Returns:
            A record with `value`, `chosen_on`, and `curve`, a list of (value, figure).

        Raises:
            UserError: If the method is not a post-hoc one, or the classifier cannot be corrected
                (a row of zeros, or a head that no linear layer equals).

        Example:
            >>> learn.correct_classifier("tau_norm")["value"]
            0.7
        """
        return correct_from(self, method, start, value=value, views=views, seed=seed)

    def use(self, name: str, seed: int | None = None) -> "LTLearner":
        """Put a classifier that `compare_classifiers` made into the learner.

        Args:
            name: A method that was compared, "best" for the one with the best accuracy on the
                validation images, or "stage1" for the classifier of stage 1.
            seed: Seed of the classifier, for a method that was compared with several. None: the
                first.

        Returns:
            The learner.

        Raises:
            UserError: If there is no such classifier, or it belongs to another stage 1.

        Example:
            >>> learn.compare_classifiers(["crt", "samn"])
            >>> learn.use("best").predict("photo.jpg")
        """
        use_classifier(self, name, seed)
        return self

    def features(self, part: str, views: int = 0, seed: int = 0) -> Features:
        """Return the backbone's features of a part, from the feature bank if it has them.

        Args:
            part: "train", "valid" or "test".
            views: Augmented passes; 0 makes one without augmentation.
            seed: Seed of the augmentation.
        """
        return extract_features(self, part, views, seed)

    def predict_logits(
        self, part: str = "valid", flip: bool = False, cached: bool = True, crops: int = 1
    ) -> tuple[Tensor, Tensor]:
        """Return logits and targets of a part, in the order of its dataset.

        Args:
            part: "train", "valid" or "test".
            flip: Whether to average the logits of each image and its mirror image.
            cached: Whether to use the feature bank, without `flip` and with one crop.
            crops: 1: the centre of each image. 5: the mean logits of its corners and its centre.

        Shape:
            Logits (N, C), float32; targets (N,). On the CPU.
        """
        return predict_part(self, part, flip, cached, crops)

    def compare_classifiers(self, methods=None, seeds: int = 1, **kwargs):
        """Compare all methods, or those named, on the same features; see `ltlearn.compare`.

        `use` puts one of the classifiers into the learner.

        Args:
            methods: Names as a list or with commas between them. A list may also hold a `Method` of
                your own, a pair of a name and a `Method`, and a pair of a name and a function that
                gets the learner and changes its classifier. None: all.
            seeds: Runs of each method that draws at random.
            **kwargs: Arguments of `ltlearn.compare.compare`.

        Returns:
            A `Comparison`: print it, or use its `table()`, `differences()` and `to_dict()`.
        """
        from ltlearn.compare import compare

        return compare(self, methods, seeds, **kwargs)

    def shot_report(
        self, part: str | None = None, flip: bool = False, crops: int = 1
    ) -> ShotReport:
        """Report the accuracy of shot groups and classes, and calibration.

        Args:
            part: "test" or "valid". None: the test set if there is one.
            flip: Whether to average the logits of each image and its mirror image.
            crops: As for `predict_logits`.
        """
        if part is None and (part := tested_part(self.dls)) == "valid":
            _log.warning("there is no test set: the report is on the validation images")
        output, dls = self.predict_logits(part, flip, crops=crops), self.dls
        return shot_report(*output, dls.shot_counts, classes=dls.vocab, few=self.few)

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


def lt_learner(
    dls: LTDataLoaders,
    arch: str | None = None,
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
    loss_func=None,
    opt_func=None,
    lr: float | slice | None = None,
    splitter=None,
    metrics=None,
    path: str | Path | None = None,
    model_dir: str | Path | None = None,
    wd: float | None = None,
    wd_bn_bias: bool | None = None,
    train_bn: bool | None = None,
    moms: tuple[float, float, float] | None = None,
    n_out: int | None = None,
    normalize: bool = True,
    **model_kwargs,
) -> LTLearner:
    """Make a learner from any timm model: a backbone with pooled features, and a linear head.

    Args:
        dls: Long-tailed data. Data of `LTDataLoaders.from_features` gets a head alone.
        arch: A name of `timm.list_models()`, or `resnet20/32/44/56_cifar`. None: "resnet50".
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
        loss_func: Takes (logits, targets) to a scalar. None: cross-entropy.
        opt_func: fastai optimiser. None: torch's SGD with momentum 0.9.
        lr: Default learning rate of fastai's `fit`. The stages have their own.
        splitter: Returns the groups of the model's parameters. None: [backbone, head].
        metrics: fastai metrics of the validation images.
        path: Folder that `model_dir` is in. None: the current one.
        model_dir: Folder of saved models. None: "models".
        wd: Default weight decay of fastai's `fit`. The stages have their own.
        wd_bn_bias: Whether weight decay applies to biases and normalisation, too. None: it does.
        train_bn: Whether batch normalisation of frozen layers trains. None: it does not.
        moms: Momenta of fastai's schedules.
        n_out: Number of classes of the data; it can be left out, and fastai has it.
        normalize: Must be True; `stats` of the loaders sets the statistics.
        **model_kwargs: Arguments of `timm.create_model`, such as `width=64` of the CIFAR ResNets.

    Raises:
        UserError: If an argument is not allowed, timm does not know `arch`, or the weights cannot
            be loaded, or have other classes.

    Example:
        >>> learn = lt_learner(dls, "resnet32_cifar", pretrained=False, width=64)
    """
    arch = default_arch(dls) if arch is None else arch
    for_learner = {
        "loss_func": loss_func, "opt_func": opt_func, "lr": lr, "splitter": splitter,
        "metrics": metrics, "path": path, "model_dir": model_dir, "wd": wd,
        "wd_bn_bias": wd_bn_bias, "train_bn": train_bn, "moms": moms,
    }  # fmt: skip
    for_learner = check_fastai_options(for_learner, n_out, dls, normalize)
    options = {"keep_head": keep_head, "classes": classes, "weights_key": weights_key}
    loaded = make_model(dls, arch, pretrained, options, **model_kwargs)
    learn = LTLearner(
        dls, loaded.model, precision, channels_last, cache_path, few, cbs=cbs, **for_learner
    )
    learn.pretrained, learn.arch, learn.origin = loaded.origin.trained, arch, loaded.origin
    learn.as_given = check_given(learn) if keep_head and check else None
    return learn
