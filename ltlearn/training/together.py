"""Several stage-2 trainings over the same features, step by step together."""

import copy
import inspect
import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from fastai.learner import Learner

from ltlearn.errors import UserError
from ltlearn.heads.stacked import StackedHeads
from ltlearn.training.head_learner import HeadLearner
from ltlearn.training.plan import Stage2Plan, resolve_stage2
from ltlearn.training.prediction import FEATURE_BATCH
from ltlearn.training.stacked import StackedEpoch, in_stack_order, reason_against_stack
from ltlearn.training.stage2 import stage2_of
from ltlearn.training.temporary import lasting_callbacks
from ltlearn.utils import ranks
from ltlearn.utils.progress import hide_progress

__all__ = ["retrain_together"]

_log = logging.getLogger("ltlearn")
_MOST_BYTES = 4 << 30  # what the heads of one product may take


class _Alone(Exception):
    """The steps of a fit need more than stacked heads.

    Args:
        index: The fit.
        reason: What they need.
    """

    def __init__(self, index: int, reason: str):
        super().__init__(reason)
        self.index = index


def retrain_together(
    learn: Learner, requests: Mapping[Any, Mapping[str, Any]]
) -> dict[Any, Learner]:
    """Retrain the classifier of a learner in several ways, whose steps are taken together.

    Trainings with the same features and the same batch size form a group. In each step of a group,
    one product computes the logits of all. Each training draws and records as it does alone, and
    its weights are equal up to rounding. The seconds of a group are divided among its trainings.
    An interruption loses the trainings of a group, which write no checkpoints.

    Args:
        learn: An `LTLearner` with the classifier of stage 1; it stays as it is.
        requests: Arguments of `retrain_classifier` by a name of the training.

    Returns:
        A copy of the learner for each training, with the new classifier and its records. A
        training that has no partner, or that fails, is missing: it has to be trained alone.
    """
    alone: dict[str, list] = {}
    groups: dict[tuple, list] = {}
    for name, request in requests.items():
        plan, reason = _plan(learn, request)
        if plan is None:
            alone.setdefault(reason, []).append(name)
        else:
            key = (plan.batch_size, plan.views, plan.view_seed)
            groups.setdefault(key, []).append((name, plan))
    head = learn.model.head
    # Weights, momenta, gradients, their products; logits of a batch of validation.
    values = head.out_features * (5 * head.in_features + 3 * FEATURE_BATCH)
    most = max(2, _MOST_BYTES // (4 * values))
    found: dict[Any, Learner] = {}
    for group in groups.values():
        for first in range(0, len(group), most):
            found |= _train_group(learn, dict(group[first : first + most]), alone)
    for reason, names in alone.items():
        _log.info("trained alone: %s (%s)", ", ".join(map(str, names)), reason)
    return found


def _plan(learn: Learner, request: Mapping[str, Any]) -> tuple[Stage2Plan | None, str]:
    """Return the plan of a training; None and a reason if it must be trained alone."""
    call = inspect.signature(learn.retrain_classifier).bind(**request)
    call.apply_defaults()
    given = dict(call.arguments)
    if given.pop("start") != "stage1" or given["cbs"] is not None:
        return None, "it has callbacks or a start of its own"
    try:
        plan = resolve_stage2(given, learn.dls)
    except UserError as e:
        return None, str(e)  # raised again when it is trained alone
    if not isinstance(plan, Stage2Plan):
        return None, "it trains nothing"
    own = [type(cb).__name__ for cb in plan.callbacks if not _is_ours(cb)]
    for reason, holds in {
        "several processes train together": ranks.world() > 1,
        "the learner has callbacks": bool(lasting_callbacks(learn)),
        f"{', '.join(own)} may act at any time": bool(own),
        "it trains on images": plan.views == 0,
        "it trains no epoch": plan.epochs == 0,
        "it has an optimiser of its own": plan.opt_func is not None,
        "it skips steps": plan.on_nan != "stop",
        "it has a sampler of its own": not isinstance(plan.sampler, str),
    }.items():
        if holds:
            return None, reason
    # A callback sets class weights on the loss, so each training needs its own.
    return replace(plan, loss=copy.deepcopy(plan.loss or learn.loss_func)), ""


def _is_ours(cb) -> bool:
    return type(cb).__module__.startswith("ltlearn.")


def _train_group(
    learn: Learner, plans: Mapping[Any, Stage2Plan], alone: dict[str, list]
) -> dict[Any, Learner]:
    """Train a group; add what must be trained alone to `alone`, by the reason."""
    # The first one shows the progress of the group.
    left = dict(sorted(plans.items(), key=lambda item: -item[1].epochs))
    while len(left) > 1:
        try:
            _log.info("trained together: %s", ", ".join(map(str, left)))
            members = _train(learn, list(left.values()))
            return dict(zip(left, members, strict=True))
        except _Alone as e:
            name = list(left)[e.index]
            alone.setdefault(str(e), []).append(name)
            del left[name]
        except UserError as e:
            alone.setdefault(f"together: {e}", []).extend(left)
            return {}
    alone.setdefault("no other has its batch size and its features", []).extend(left)
    return {}


def _train(learn: Learner, plans: Sequence[Stage2Plan]) -> list[Learner]:
    members = [_copy_of(learn) for _ in plans]
    fits: list[HeadLearner] = []
    with ExitStack() as stack:
        for member, plan in zip(members, plans, strict=True):
            fit, callbacks = stack.enter_context(stage2_of(member, plan))
            with hide_progress(bool(fits)):
                begun = fit.fitting(plan.epochs, plan.lr, plan.weight_decay, callbacks)
                stack.enter_context(begun)
            fit.dl = fit.dls.train
            if reason := fit.needs_events() or reason_against_stack(fit):
                raise _Alone(len(fits), reason)
            fits.append(fit)
        for epoch in range(max(plan.epochs for plan in plans)):
            _train_epoch([fit for fit in fits if epoch < fit.n_epoch], epoch)
    for member in members:
        for record in member.stages[len(learn.stages) :]:
            record.seconds = round(record.seconds / len(members), 2)
    return members


def _copy_of(learn: Learner) -> Learner:
    """Return a copy of a learner with a head of its own and the same backbone."""
    member = copy.copy(learn)
    backbone = learn.model.backbone
    member.model = copy.deepcopy(learn.model, {id(backbone): backbone})
    member.stages, member.opt = list(learn.stages), None
    member.metrics = copy.deepcopy(learn.metrics)
    return member


def _train_epoch(fits: Sequence[HeadLearner], epoch: int) -> None:
    for fit in fits:
        fit.begin_epoch(epoch)
    StackedEpoch(fits).run()
    for fit in fits:
        fit.begin_validation()
    with torch.no_grad():
        fits = in_stack_order(fits)
        heads = StackedHeads([fit.model.head for fit in fits])
        for i, (x, y) in enumerate(fits[0].dl):
            logits = heads.logits(x.expand(len(fits), *x.shape))
            for fit, own in zip(fits, logits, strict=True):
                fit.validate_batch(i, (x, y), own)
    for fit in fits:
        fit.end_epoch()
