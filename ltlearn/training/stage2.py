"""Stage 2: train the head on the frozen backbone, on cached features or on images."""

import copy
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from torch import nn

from ltlearn.data.feature_rows import Features
from ltlearn.data.loader import LTDataLoader
from ltlearn.errors import UserError
from ltlearn.heads.feature_scale import SCALABLE, for_longer_features
from ltlearn.heads.registry import kind_of
from ltlearn.posthoc.linear import as_linear_layer
from ltlearn.training.collectives import copy_from_first
from ltlearn.training.evaluate import run_model
from ltlearn.training.finite import FiniteLoss
from ltlearn.training.fit_callback import declared
from ltlearn.training.head_learner import HeadLearner
from ltlearn.training.history import FlipAverage, Trajectory, chosen_classes, head_norms
from ltlearn.training.loop import sgd
from ltlearn.training.plan import PosthocPlan, Stage2Plan
from ltlearn.training.posthoc import run_posthoc
from ltlearn.training.prediction import FEATURE_BATCH, HeadModel
from ltlearn.training.progress import EpochProgress
from ltlearn.training.scaled_features import Scaling
from ltlearn.training.schedule import EpochSchedule, LoaderEpoch
from ltlearn.training.stage import (
    fold_unowned_head,
    keep_chosen_weights,
    make_trajectory,
    record_stage,
    reset_head,
    set_checkpoint_facts,
)
from ltlearn.training.temporary import (
    frozen_backbone,
    lent_callbacks,
    temporary_settings,
    with_class_counts,
    without_predictions,
)
from ltlearn.utils import ranks

__all__ = ["SQUARED_LENGTH", "callbacks_of", "on_features", "run_stage2", "stage2_of"]

# A ResNet-32 that was trained on CIFAR-100-LT has 93 around the mean of its features.
SQUARED_LENGTH = 64.0


def run_stage2(learn: Learner, plan: Stage2Plan) -> None:
    """Train the head; record the stage and its trajectory in the learner.

    Args:
        learn: An `LTLearner`.
        plan: The plan of stage 2.

    Raises:
        UserError: If training diverges; the head is then the one before.
    """
    with stage2_of(learn, plan) as (fitted, callbacks):
        fitted.fit(plan.epochs, plan.lr, plan.weight_decay, callbacks, reset_opt=True)


@contextmanager
def stage2_of(learn: Learner, plan: Stage2Plan) -> Iterator[tuple[Learner, list[Callback]]]:
    """Prepare stage 2; the block fits; then record the stage in the learner.

    The block gets the learner to fit, and the callbacks of that fit.

    Args:
        learn: An `LTLearner`.
        plan: The plan of stage 2.

    Raises:
        UserError: If the block raises it; the head is then the one before.
    """
    began = time.perf_counter()
    head, weights = learn.model.head, copy.deepcopy(learn.model.head.state_dict())
    if plan.reset:
        reset_head(learn, plan.seed)
    fold_unowned_head(learn, plan.callbacks)
    set_checkpoint_facts(learn, plan)
    callbacks = callbacks_of(plan, "stage 2")
    prepared = on_features if plan.views else _on_images
    try:
        with prepared(learn, plan, callbacks) as (fitted, trajectory, all_callbacks):
            yield fitted, all_callbacks
    except UserError:
        # A head that diverged, or was not trained at all, is of no use.
        head.load_state_dict(weights)
        learn.model.head, learn.opt = head, None
        raise
    record_stage(
        learn, plan, trajectory, callbacks, began,
        stage="stage 2", trained=kind_of(learn.model.head), bn=plan.bn, on=plan.on,
        head="new" if plan.reset else "kept",
        loop=None if plan.views else learn.loop_without_events(),
    )  # fmt: skip
    if plan.post is not None:
        run_posthoc(learn, PosthocPlan(method=plan.post, seed=plan.view_seed))
        learn.trajectory = trajectory.record


def callbacks_of(plan: Stage2Plan, stage: str) -> list[Callback]:
    """Return the callbacks of a fit of the head, without the trajectory.

    Args:
        plan: The plan of the training.
        stage: Name of the stage in progress and messages.
    """
    schedule = [EpochSchedule(plan.schedule)] if plan.schedule != "constant" else []
    own = [LoaderEpoch(), EpochProgress(stage), FiniteLoss(plan.on_nan, stage=stage)]
    return [*schedule, *own, *plan.callbacks]


@contextmanager
def on_features(
    learn: Learner,
    plan: Stage2Plan,
    callbacks: Sequence[Callback],
    parts: tuple[Features, Features] | None = None,
    **options: Any,
) -> Iterator[tuple[Learner, Trajectory, list[Callback]]]:
    """Prepare a fit of the head on cached features; the block fits; the learner keeps the head.

    After a probe the features are scaled to a mean squared length of 64 for the training. Published
    learning rates, weight decays and norms were found on networks that had been trained on the
    images, whose features have about this length. Those of other backbones can be a hundred times
    as long, and a training with published values diverges on them or forgets where it began. For a
    head of another library, whose formula is unknown, the features stay as they are.

    The block gets the learner to fit, the trajectory, and all callbacks of that fit.

    Args:
        learn: An `LTLearner`.
        plan: The plan of the training.
        callbacks: The callbacks beside the trajectory and the learner's own.
        parts: Features of the training and of the validation images. None: as the plan has them.
        **options: Options of `make_trajectory`.
    """
    head, length = learn.model.head, None
    if parts is None:
        parts = learn.features("train", plan.views, plan.view_seed), learn.features("valid")
        if _follows_probe(learn) and _types_of_head(learn, callbacks) <= SCALABLE:
            scaling = Scaling.to_length(parts[0], SQUARED_LENGTH)
            length = scaling.factor
            # A new head gets its random weights for the scaled features.
            head = head if plan.reset else for_longer_features(head, length)
            parts = scaling.apply(parts[0]), scaling.apply(parts[1])
    over_features = _head_learner(learn, plan, head, *parts)

    def unscaled(head: nn.Module) -> nn.Module:
        if length is None:
            return head
        # A callback may install another head without declaring its type.
        known = head if type(head) in SCALABLE else as_linear_layer(head)
        return for_longer_features(known, 1 / length)

    def predict():
        valid = over_features.dls.valid
        return run_model(over_features.model, valid, nullcontext, read=chosen_classes)

    norms = {} if length is None else {"norms": lambda model: head_norms(unscaled(model.head))}
    options = {"stage": "stage 2", "predict": predict, **norms, **options}
    trajectory = make_trajectory(learn, plan.select, **options)
    try:
        with (
            lent_callbacks(learn) as lasting,
            with_class_counts(over_features.loss_func, learn.dls.class_counts),
        ):
            callbacks = [trajectory, *callbacks, *lasting]
            with without_predictions(callbacks):
                yield over_features, trajectory, callbacks
        keep_chosen_weights(learn, over_features, trajectory)
        if ranks.world() > 1:
            # Each rank trains the same head; devices may differ in rounding.
            copy_from_first(over_features.model.state_dict().values())
            trajectory.record = learn.trajectory = ranks.share(trajectory.record)
    finally:
        # The learner gets the trained head also after an interruption.
        learn.model.head = unscaled(over_features.model.head)
        learn.opt = None


def _types_of_head(learn: Learner, callbacks: Sequence[Callback]) -> set[type]:
    """Return the type of the head, and the types that callbacks replace it by."""
    declared_types = (declared(cb, "head_type", None) for cb in [*callbacks, *learn.cbs])
    return {type(learn.model.head), *filter(None, declared_types)}


def _follows_probe(learn: Learner) -> bool:
    """Return whether stage 1 trained the head alone."""
    first = [record for record in learn.stages if record["stage"] == "stage 1"]
    return bool(first) and first[-1]["trained"] == "head"


@contextmanager
def _on_images(
    learn: Learner, plan: Stage2Plan, callbacks: Sequence[Callback]
) -> Iterator[tuple[Learner, Trajectory, list[Callback]]]:
    trajectory = make_trajectory(learn, plan.select, "stage 2", flip=plan.flip)
    own = [trajectory, FlipAverage()] if plan.flip else [trajectory]
    with temporary_settings(learn, plan), frozen_backbone(learn.model.backbone, plan.bn):
        yield learn, trajectory, [*own, *callbacks]
        keep_chosen_weights(learn, learn, trajectory)


def _head_learner(
    learn: Learner, plan: Stage2Plan, head: nn.Module, features: Features, valid_features: Features
) -> Learner:
    """Make a learner of the head alone, over cached features."""
    train = LTDataLoader(
        features,
        plan.batch_size,
        training=True,
        sampler=plan.sampler,
        augment=plan.views > 1,
        seed=plan.seed,
    )
    valid = LTDataLoader(valid_features, FEATURE_BATCH)
    dls = DataLoaders(train, valid, device=learn.dls.device)
    dls.class_counts, dls.vocab, dls.c = learn.dls.class_counts, learn.dls.vocab, learn.dls.c
    dls.split = learn.dls.split
    over_features = HeadLearner(
        dls, HeadModel(head), plan.loss or learn.loss_func,
        opt_func=plan.opt_func or sgd(), path=learn.path, model_dir=learn.model_dir,
        splitter=lambda m: [list(m.parameters())], train_bn=False, wd_bn_bias=True,
        metrics=learn.metrics,
    )  # fmt: skip
    if hasattr(learn, "arch"):
        over_features.arch = learn.arch  # what a logger records
    return over_features
