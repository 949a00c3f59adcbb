"""Settings of a learner that hold for one fit, and end with it however it ends."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from fastai.callback.core import Callback, TrainEvalCallback
from fastai.callback.fp16 import MixedPrecision
from fastai.learner import CastToTensor, Learner, Recorder
from torch import Tensor, nn

from ltlearn.errors import spell
from ltlearn.losses import CountedLoss
from ltlearn.models.last_block import last_block
from ltlearn.training.freezing import freeze, unfreeze
from ltlearn.training.plan import Stage2Plan, StagePlan

__all__ = [
    "frozen_backbone",
    "lasting_callbacks",
    "lent_callbacks",
    "temporary_settings",
    "with_class_counts",
    "without_predictions",
]

_log = logging.getLogger("ltlearn")
# Every learner has these callbacks, and they never leave it.
_OWN_CALLBACKS = (TrainEvalCallback, Recorder, CastToTensor, MixedPrecision)


def lasting_callbacks(learn: Learner) -> list[Callback]:
    """Return the callbacks that the user put on the learner."""
    return [cb for cb in learn.cbs if not isinstance(cb, _OWN_CALLBACKS)]


@contextmanager
def lent_callbacks(learn: Learner) -> Iterator[list[Callback]]:
    """Lend the lasting callbacks of a learner to another learner inside the block.

    Args:
        learn: The learner that owns the callbacks.
    """
    lasting = lasting_callbacks(learn)
    try:
        yield lasting
    finally:
        # fastai sets `learn` of a callback that it removes to None.
        for cb in lasting:
            cb.learn = learn
            setattr(learn, cb.name, cb)


@contextmanager
def temporary_settings(learn: Learner, plan: StagePlan | Stage2Plan) -> Iterator[None]:
    """Use sampler, loss, optimiser, seed and batch size of a plan inside the block.

    Args:
        learn: The learner.
        plan: The plan. If its loss or optimiser is None, the learner's own is used.
    """
    train = learn.dls.train
    loader = (train.sampler_name, train.sampler, train.seed, train.bs)
    own = (learn.loss_func, learn.opt_func)
    try:
        train.bs, train.seed = plan.batch_size, plan.seed
        train.set_sampler(plan.sampler)
        learn.loss_func = plan.loss or learn.loss_func
        learn.opt_func = plan.opt_func or learn.opt_func
        with with_class_counts(learn.loss_func, learn.dls.class_counts):
            yield
    finally:
        train.sampler_name, train.sampler, train.seed, train.bs = loader
        learn.loss_func, learn.opt_func = own
        learn.opt = None


@contextmanager
def with_class_counts(loss, class_counts: Tensor) -> Iterator[None]:
    """Set the class counts of the data on a loss that has none, inside the block.

    Args:
        loss: Any loss.
        class_counts: Training images per class, (C,).
    """
    lacks_counts = isinstance(loss, CountedLoss) and loss.class_counts is None
    if lacks_counts:
        loss.set_class_counts(class_counts)
    try:
        yield
    finally:
        if lacks_counts:
            loss.set_class_counts(None)


@contextmanager
def without_predictions(callbacks: Sequence[Callback]) -> Iterator[None]:
    """Keep fastai's loggers from logging images with their predictions inside the block.

    They show images of the loader, but a fit on features has none.

    Args:
        callbacks: Callbacks of the fit.
    """
    loggers = [cb for cb in callbacks if vars(cb).get("log_preds")]
    for cb in loggers:
        cb.log_preds = False
        _log.warning(
            "%s logs no predictions, because this stage trains on features; give %s to train on "
            "images.", type(cb).__name__, spell("views", 0),
        )  # fmt: skip
    try:
        yield
    finally:
        for cb in loggers:
            cb.log_preds = True


@contextmanager
def frozen_backbone(backbone: nn.Module, bn: str) -> Iterator[None]:
    """Freeze a backbone inside the block and keep it in evaluation mode.

    Args:
        backbone: The backbone.
        bn: "frozen"; "train" leaves all of it in training mode, "last_block" its last block.
    """
    in_training = last_block(backbone).values() if bn == "last_block" else ()

    def keep_mode(mode: bool = True) -> nn.Module:
        for module in in_training:
            module.training = mode
        return backbone

    flags = freeze(backbone)
    try:
        if bn != "train":
            backbone.eval()
            backbone.train = keep_mode
        yield
    finally:
        if bn != "train":
            del backbone.train
        unfreeze(flags)
