"""Stage 1: train backbone and head together."""

import time
from contextlib import nullcontext

from fastai.learner import Learner

from ltlearn.data.needs_images import has_features
from ltlearn.training.compiled import compiled
from ltlearn.training.finite import FiniteLoss
from ltlearn.training.fit_callback import declared
from ltlearn.training.history import FlipAverage
from ltlearn.training.plan import StagePlan
from ltlearn.training.progress import EpochProgress
from ltlearn.training.schedule import LoaderEpoch
from ltlearn.training.stage import (
    fold_unowned_head,
    keep_chosen_weights,
    make_trajectory,
    record_stage,
    set_checkpoint_facts,
)
from ltlearn.training.temporary import temporary_settings

__all__ = ["run_stage1"]


def run_stage1(learn: Learner, plan: StagePlan) -> None:
    """Train backbone and head; record the stage and its trajectory in the learner.

    Args:
        learn: An `LTLearner`.
        plan: The plan of stage 1.

    Raises:
        UserError: If training diverges.
    """
    fold_unowned_head(learn, plan.callbacks)
    for cb in plan.callbacks:
        if declared(cb, "changes_model"):
            cb.install(learn)
    learn.model.requires_grad_(True)
    learn.opt = None
    with temporary_settings(learn, plan):
        trajectory = make_trajectory(learn, plan.select, "stage 1", start=False)
        own = [trajectory, LoaderEpoch(), EpochProgress("stage 1")]
        own += [FiniteLoss(plan.on_nan, stage="stage 1")]
        # A constant learning rate without warm-up leaves room for a schedule among the callbacks.
        if plan.schedule != "constant" or plan.warmup_epochs:
            own += [plan.make_schedule()]
        own += [FlipAverage()] if plan.flip else []
        began = time.perf_counter()
        set_checkpoint_facts(learn, plan)
        with compiled(learn.model.backbone) if plan.compile else nullcontext() as call:
            callbacks = [*own, *plan.callbacks]
            learn.fit(plan.epochs, plan.lr, plan.weight_decay, callbacks, reset_opt=True)
        keep_chosen_weights(learn, learn, trajectory)
        parts = [declared(cb, "trained_part", None) for cb in plan.callbacks]
        has_backbone = next(learn.model.backbone.parameters(), None) is not None
        trained = "backbone + head" if has_backbone else "head"
        # Read from the class: an instance passes unknown attributes on to the learner.
        counted = [cb for cb in plan.callbacks if hasattr(type(cb), "trained_parameters_")]
        record_stage(
            learn, plan, trajectory, plan.callbacks, began,
            stage="stage 1", bn="train", on="features" if has_features(learn) else "images",
            head="kept",
            trained=next((f"{part} + head" for part in parts if part), trained),
            trained_parameters=counted[0].trained_parameters_ if counted else None,
            compiled=call.compiled is not None if plan.compile else None,
            loop=learn.loop_without_events(), **plan.steps,
        )  # fmt: skip
