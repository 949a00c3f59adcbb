"""What both stages share: the head they begin with, their trajectory and their records."""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from fastai.callback.core import Callback
from fastai.callback.progress import CSVLogger, ProgressCallback, ShowGraphCallback
from fastai.learner import Learner
from torch import Tensor, nn

from ltlearn.errors import UserError, spell
from ltlearn.heads.cosine import CosineLinear
from ltlearn.heads.normalized import NormalizedFeatureHead
from ltlearn.heads.registry import as_linear_over_features, is_head, is_trainable, kind_of
from ltlearn.training.checkpoint import Checkpoint, describe_options
from ltlearn.training.evaluate import run_model
from ltlearn.training.features import weights_fingerprint
from ltlearn.training.finite import FiniteLoss
from ltlearn.training.fit_callback import declared
from ltlearn.training.history import Trajectory, chosen_classes, head_norms
from ltlearn.training.logs import EpochLog
from ltlearn.training.plan import Stage2Plan, StagePlan, name_of
from ltlearn.training.prior import leaves_prior
from ltlearn.training.records import StageRecord
from ltlearn.training.selection import selects_on
from ltlearn.training.temporary import lasting_callbacks

__all__ = [
    "fold_unowned_head",
    "keep_chosen_weights",
    "make_trajectory",
    "record_stage",
    "reset_head",
    "set_checkpoint_facts",
]

_log = logging.getLogger("ltlearn")
# They observe a fit and do not affect the weights.
_DISPLAYS = (ProgressCallback, ShowGraphCallback)
_OBSERVERS = (Checkpoint, CSVLogger, EpochLog, *_DISPLAYS)


def fold_unowned_head(learn: Learner, callbacks: Sequence[Callback]) -> None:
    """Fold a head into a linear layer, unless a callback that trains such a head is given.

    A cosine classifier becomes a linear layer over features of one length.

    Args:
        learn: The learner.
        callbacks: Callbacks of the fit.

    Raises:
        UserError: If no linear layer is equal to the head.
    """
    whole = learn.model.head
    head = whole.inner if isinstance(whole, NormalizedFeatureHead) else whole
    kind = type(head)
    if isinstance(head, nn.Linear) or not is_head(head):
        return
    if any(declared(cb, "head_type", None) is kind for cb in [*callbacks, *learn.cbs]):
        return
    try:
        linear = as_linear_over_features(whole)
    except UserError:
        raise UserError(
            f"the head ({kind.__name__}) cannot be folded into a linear layer: pass "
            f"{_callback_of(kind)} in cbs to train it, begin with a new head "
            f"({spell('reset', True)}), or put the classifier of stage 1 back: use('stage1')."
        ) from None
    if kind is CosineLinear:
        _log.info("the cosine classifier becomes a linear layer over features of one length")
    else:
        _log.warning(
            "the head is a %s and no callback that trains one is given: it is folded into an "
            "nn.Linear, whose norms are free",
            kind_of(whole),
        )
    learn.model.head = linear.requires_grad_(is_trainable(head))
    learn.opt = None


def _callback_of(kind: type[nn.Module]) -> str:
    """Return the callback that trains a kind of head, for a message."""
    import ltlearn.callbacks as callbacks

    for name in callbacks.__all__:
        if getattr(getattr(callbacks, name), "head_type", None) is kind:
            return f"{name}()"
    return "its callback"


def reset_head(learn: Learner, seed: int) -> None:
    """Replace the head by a new linear layer, the same one for the same seed.

    After a cosine classifier the layer is over features of one length, the scale of the cosines.

    Args:
        learn: The learner.
        seed: Seed of the new weights.

    Raises:
        UserError: If the head is no `nn.Linear` and no registered head.
    """
    old = learn.model.head
    if not is_head(old):
        raise UserError(
            f"{spell('reset', True)} needs a head that is an nn.Linear or registered, got "
            f"{type(old).__name__}."
        )
    # A head that never has a bias, such as a cosine head, gives way to a layer with a bias.
    bias = getattr(old, "bias", True) is not None
    device = next(iter(old.state_dict().values())).device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        new = nn.Linear(old.in_features, old.out_features, bias)
    if isinstance(old, CosineLinear | NormalizedFeatureHead):
        length = old.cosine_scale if isinstance(old, CosineLinear) else old.length
        new = NormalizedFeatureHead(new, length.item())
    learn.model.head, learn.opt = new.to(device), None


def make_trajectory(
    learn: Learner,
    select: str,
    stage: str,
    start: bool = True,
    flip: bool = False,
    predict: Callable | None = None,
    norms: Callable[[nn.Module], Tensor] = head_norms,
) -> Trajectory:
    """Make the callback that evaluates each epoch.

    Args:
        learn: The learner.
        select: "best" or "last".
        stage: The stage's name in messages.
        start: Whether to evaluate before the first step.
        flip: Whether that evaluation averages over mirror images.
        predict: Returns (logits, targets) of the validation loader. None: the model does.
        norms: Returns the weight norm of each class for the model that is trained.
    """

    def predict_here():
        context, valid = learn.autocast_context, learn.dls.valid
        return run_model(learn.model, valid, context, flip, chosen_classes, together=True)

    return Trajectory(
        learn.dls.shot_counts, learn.few, select, selects_on(learn.dls),
        start=start, predict=predict or predict_here, stage=stage, norms=norms,
    )  # fmt: skip


def set_checkpoint_facts(learn: Learner, plan: StagePlan | Stage2Plan) -> None:
    """Give each `Checkpoint` the values that the weights depend on, so that it refuses others.

    Args:
        learn: The learner.
        plan: The plan of the stage.
    """
    checkpoints = [cb for cb in plan.callbacks if isinstance(cb, Checkpoint)]
    if not checkpoints:
        return
    facts, split = plan.facts(), getattr(learn.dls, "split", None)
    if split is not None:
        facts["images"] = split.images
    facts |= {
        "precision": learn.precision,
        "loss": describe_options(plan.loss or learn.loss_func),
        "callbacks": [
            describe_options(cb)
            for cb in [*plan.callbacks, *lasting_callbacks(learn)]
            if not isinstance(cb, _OBSERVERS)
        ],
    }
    if isinstance(plan, Stage2Plan):
        facts["weights it begins with"] = weights_fingerprint(learn.model)
    for checkpoint in checkpoints:
        checkpoint.made_with = facts


def keep_chosen_weights(learn: Learner, fitted: Learner, trajectory: Trajectory) -> None:
    """Load the weights of the chosen epoch, and keep the record of the trajectory.

    Args:
        learn: The learner that gets the record.
        fitted: The learner whose model was trained.
        trajectory: The trajectory of the fit.
    """
    if trajectory.best_state is not None:
        fitted.model.load_state_dict(trajectory.best_state)
    trajectory.best_state = None
    learn.trajectory = trajectory.record


def record_stage(
    learn: Learner,
    plan: StagePlan | Stage2Plan,
    trajectory: Trajectory,
    callbacks: Sequence[Callback],
    began: float,
    **facts: Any,
) -> None:
    """Append the record of a finished stage to the learner's stages.

    Args:
        learn: The learner.
        plan: The plan of the stage.
        trajectory: The trajectory of the fit.
        callbacks: Callbacks to record.
        began: Value of `time.perf_counter` when the stage began.
        **facts: Fields of `StageRecord` that differ between the stages.
    """
    module = learn.model.head if isinstance(plan, Stage2Plan) else learn.model
    loss = plan.loss or learn.loss_func
    lasting = [cb for cb in lasting_callbacks(learn) if not isinstance(cb, _DISPLAYS)]
    # A fit that was stopped and resumed counts from its first start.
    seconds = time.perf_counter() - began
    seconds += sum(cb.spent_ for cb in callbacks if isinstance(cb, Checkpoint))
    shown = [cb for cb in callbacks if not isinstance(cb, (*_OBSERVERS, FiniteLoss))]
    sampler = name_of(plan.sampler)
    record = StageRecord(
        batch=plan.batch_size, sampler=sampler, epochs=plan.epochs, lr=plan.lr,
        weight_decay=plan.weight_decay, schedule=plan.schedule, method=plan.method,
        loss=name_of(loss),
        parameters=sum(p.numel() for p in module.parameters()),
        callbacks=[type(cb).__name__ for cb in [*shown, *lasting]],
        precision=learn.precision,
        chosen_epoch=trajectory.record["chosen"],
        chosen_on=trajectory.select_on if plan.select == "best" else "not chosen: the last",
        seconds=round(seconds, 2),
        leaves_prior=leaves_prior(sampler, loss, [*plan.callbacks, *lasting], plan.method),
        **facts,
    )  # fmt: skip
    learn.stages.append(record)
    _log.info("%s", record)
