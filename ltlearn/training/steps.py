"""Training steps without events: which callbacks allow them, and how the steps are counted."""

from collections.abc import Callable, Sequence

from fastai.callback.core import Callback, TrainEvalCallback
from fastai.learner import CastToTensor, Recorder

from ltlearn.training.progress import EpochProgress

__all__ = ["REPORTED", "after_step_of", "count_steps", "is_replaced", "record_losses"]

REPORTED = 64  # steps that are counted at once
# A loop without events does what these do in a step, so a subclass of them needs the events.
_REPLACED = (TrainEvalCallback, CastToTensor, EpochProgress)


def after_step_of(cb: Callback, form) -> Callable[[], object] | None:
    """Return what a loop without events calls after each step for a callback; None for nothing.

    Args:
        cb: A callback with `uses_weights_alone`. Only a `FitCallback` can answer by the form.
        form: The `LinearGradient` or the `StackedHeads` that trains; None for other heads.
    """
    # Read from the class: an instance passes unknown attributes on to the learner.
    own = getattr(type(cb), "after_step_of", None)
    return cb.after_step if own is None else own(cb, form)


def is_replaced(cb: Callback) -> bool:
    """Return whether a loop without events does what a callback does in each step.

    Args:
        cb: Any fastai callback.
    """
    if type(cb) is Recorder:
        return not cb.train_metrics
    return type(cb) in _REPLACED


def count_steps(learn, images: Sequence[int]) -> None:
    """Count some training steps, as the callbacks do at each one.

    Args:
        learn: The learner.
        images: Images in the batch of each step.
    """
    learn.train_iter += len(images)
    learn.pct_train += len(images) / (learn.n_iter * learn.n_epoch)
    for cb in learn.cbs:
        if isinstance(cb, EpochProgress):
            cb.after_steps(images)


def record_losses(learn, losses: Sequence[float]) -> None:
    """Record the losses of some training steps, as fastai's `Recorder` does at each one.

    Args:
        learn: The learner.
        losses: The loss of each step.
    """
    for cb in learn.cbs:
        if isinstance(cb, Recorder) and losses:
            cb.losses += cb.smooth_loss.accumulate_all(losses)
            cb.lrs += [learn.opt.hypers[-1]["lr"]] * len(losses)
            learn.smooth_loss = cb.losses[-1]
