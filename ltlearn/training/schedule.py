"""Learning rates that change once an epoch, and loaders that know the epoch."""

import logging
import math
from collections.abc import Sequence

from fastai.callback.core import Callback

from ltlearn.errors import UserError, check_choice, check_number, check_whole
from ltlearn.names import SCHEDULES
from ltlearn.training.fit_callback import FitCallback

__all__ = ["EpochSchedule", "LoaderEpoch"]

_log = logging.getLogger("ltlearn")


class EpochSchedule(FitCallback):
    """Set the learning rate once an epoch: a linear warm-up, and then a schedule.

    With w epochs of warm-up, epoch t (0-based) of a fit of T epochs has the learning rate

    - lr * (t + 1) / w, if t < w; and otherwise
    - "cosine": lr / 2 * (1 + cos(pi * t / T)).
    - "constant": lr.
    - "multistep": lr * decay ** (number of milestones <= t).

    "lagged_cosine" is GLMC's schedule for large sets, which lags by one epoch and has a warm-up of
    its own. Epoch 0 has lr. Epoch t has, with e = t - 1, lr * (e + 1) / w up to e = w (above lr at
    the end), and then lr / 2 * (1 + cos(pi * (e - w + 1) / (T - w + 1))).

    Reads the learning rates at the start of the fit, one per parameter group. Writes them each
    epoch, and restores the first ones after the fit.

    Args:
        schedule: One of `ltlearn.names.SCHEDULES`.
        warmup_epochs: w, epochs of linear warm-up, at least 0; at least 1 for "lagged_cosine".
        milestones: Epochs that begin with a lower learning rate, from 1, ascending; for "multistep"
            alone. A warning names those that the fit does not reach.
        decay: Factor of each milestone, in (0, 1], no unit; the other schedules ignore it.

    Raises:
        UserError: If an option is outside its range or does not belong to the schedule.

    Source:
        "lagged_cosine": Du et al., CVPR 2023, arXiv:2305.08661; the authors' code.

    Example:
        >>> learn.fit(200, 0.1, cbs=EpochSchedule("multistep", 5, milestones=(160, 180)))
    """

    # Before callbacks that record the learning rate of the epoch.
    order = -5
    _optimizer = None

    def __init__(
        self,
        schedule: str,
        warmup_epochs: int = 0,
        milestones: Sequence[int] | None = None,
        decay: float = 0.1,
    ):
        check_choice("schedule", schedule, SCHEDULES)
        if schedule == "multistep":
            milestones = _check_milestones(milestones)
            check_number("decay", decay, 0, 1, above=True)
        elif milestones is not None:
            raise UserError(
                f"milestones must be None with schedule={schedule!r}, got {milestones!r}: leave "
                "them out, or take schedule='multistep'."
            )
        check_whole("warmup_epochs", warmup_epochs, 1 if schedule == "lagged_cosine" else 0)
        self.schedule, self.warmup_epochs = schedule, int(warmup_epochs)
        self.milestones = milestones or ()
        self.decay = float(decay) if self.milestones else 1.0

    def factor(self, t: int, total: int) -> float:
        """Return the factor of the learning rates in an epoch.

        Args:
            t: The epoch, from 0.
            total: Epochs of the fit.
        """
        w = self.warmup_epochs
        if self.schedule == "lagged_cosine":
            e = t - 1
            if t == 0:
                return 1.0
            return (e + 1) / w if e <= w else _half_cosine(e - w + 1, total - w + 1)
        if t < w:
            return (t + 1) / w
        if self.schedule == "cosine":
            return _half_cosine(t, total)
        # Without milestones, in "constant", this is 1.
        return self.decay ** sum(m <= t for m in self.milestones)

    def before_fit(self):
        """Read the learning rates of a new fit."""
        # fastai has set these already: `close` must not overwrite them by those of an earlier fit
        # that was interrupted.
        if not self.learn.lock.locked():
            self._optimizer = None
        super().before_fit()

    def begin(self) -> None:
        """Save the learning rates, and warn of milestones that the fit does not reach."""
        # Kept here, because fastai removes the learner from the callback before `end`.
        self._optimizer = self.learn.opt
        self._first_rates = [h["lr"] for h in self._optimizer.hypers]
        epochs = self.learn.n_epoch
        beyond = [str(m) for m in self.milestones if m >= epochs]
        if beyond and epochs:
            _log.warning(
                "milestones %s are never reached in a fit of %d epochs", ", ".join(beyond), epochs
            )

    def before_epoch(self):
        """Set the learning rates of this epoch."""
        if self._optimizer is None or self.learn.lock.locked():
            return
        factor = self.factor(self.learn.epoch, self.learn.n_epoch)
        # By `set_hyper`, because `OptimWrapper.hypers` returns a copy.
        self._optimizer.set_hyper("lr", [lr * factor for lr in self._first_rates])

    def end(self) -> None:
        """Restore the first learning rates."""
        if self._optimizer is not None:
            self._optimizer.set_hyper("lr", self._first_rates)
            self._optimizer = None


def _half_cosine(t: int, total: int) -> float:
    return (1 + math.cos(math.pi * t / total)) / 2


def _check_milestones(milestones) -> tuple[int, ...]:
    try:
        epochs = tuple(milestones)
        for m in epochs:
            check_whole("milestone", m, 1)
        good = bool(epochs) and all(a < b for a, b in zip(epochs, epochs[1:], strict=False))
    except (TypeError, UserError):
        good = False
    if not good:
        raise UserError(
            "milestones must be ascending whole numbers of at least 1 with schedule='multistep', "
            f"such as (160, 180), got {milestones!r}."
        )
    return tuple(int(m) for m in epochs)


class LoaderEpoch(Callback):
    """Set the epoch of an `LTDataLoader` before it is read.

    Order and augmentation then follow from seed and epoch alone.

    Reads `learn.epoch`. Writes the epoch of the training loader.
    """

    order = -5

    def before_train(self):
        """Set the epoch of the training loader."""
        train = self.learn.dls.train
        if hasattr(train, "set_epoch"):
            train.set_epoch(self.learn.epoch, self.learn.n_epoch)
