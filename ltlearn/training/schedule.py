"""Learning rates by the epoch, and loaders that know which epoch it is."""

import logging
import math
from collections.abc import Sequence
from numbers import Real

from fastai.callback.core import Callback

from ltlearn.errors import UserError, check_choice, check_whole

__all__ = [
    "SCHEDULES",
    "EpochWarmup",
    "EpochCosine",
    "EpochLaggedCosine",
    "EpochSteps",
    "make_schedule",
    "LoaderEpoch",
]

_log = logging.getLogger("ltlearn")
SCHEDULES = ("cosine", "constant", "multistep", "lagged_cosine")


class EpochWarmup(Callback):
    """Set the learning rate once an epoch: constant after a linear warm-up.

    Epoch t (0-based) of the first w has lr * (t + 1) / w. The other schedules begin so, too, and
    count their own epochs from the start of the fit.

    Reads the learning rates that the fit begins with, one a parameter group. Writes them each
    epoch, and writes the first ones back after the fit.

    Args:
        warmup_epochs: w, epochs of linear warm-up, at least 0.

    Raises:
        UserError: If an option is not allowed.
    """

    # Before anything that records the learning rate of the epoch.
    order = -5
    base: list[float] | None = None
    _optimizer = None

    def __init__(self, warmup_epochs: int = 0):
        check_whole("warmup_epochs", warmup_epochs, 0)
        self.warmup_epochs = int(warmup_epochs)

    def factor(self, t: int, total: int) -> float:
        """Return what the learning rates of an epoch after the warm-up are multiplied by.

        Args:
            t: The epoch, from 0.
            total: Epochs of the fit.
        """
        return 1.0

    def factor_with_warmup(self, t: int, total: int) -> float:
        """Return what the learning rates of an epoch are multiplied by.

        Args:
            t: The epoch, from 0.
            total: Epochs of the fit.
        """
        if t < self.warmup_epochs:
            return (t + 1) / self.warmup_epochs
        return self.factor(t, total)

    def before_fit(self):
        """Remember the learning rates."""
        # `validate` and `get_preds` come by here too, with this lock held.
        if self.learn.lock.locked():
            return
        # `close` comes when fastai has taken the learner away already.
        self._optimizer = self.learn.opt
        self.base = [h["lr"] for h in self._optimizer.hypers]

    def before_epoch(self):
        """Set the learning rates of this epoch."""
        if self.base is None or self.learn.lock.locked():
            return
        factor = self.factor_with_warmup(self.learn.epoch, self.learn.n_epoch)
        # Through the optimiser: what `OptimWrapper.hypers` gives is a copy.
        self._optimizer.set_hyper("lr", [lr * factor for lr in self.base])

    def after_fit(self):
        """Put the first learning rates back."""
        if not self.learn.lock.locked():
            self.close()

    def close(self) -> None:
        """Put the first learning rates back, also after a fit that was interrupted."""
        if self.base is not None:
            self._optimizer.set_hyper("lr", self.base)
            self._optimizer = self.base = None


class EpochCosine(EpochWarmup):
    """Set the learning rate once an epoch, on a cosine to zero after a linear warm-up.

    Epoch t of T (0-based) has lr / 2 * (1 + cos(pi * t / T)); those of the warm-up are as in
    `EpochWarmup`, which also says what is read and written.

    Args:
        warmup_epochs: Epochs of linear warm-up, at least 0.

    Raises:
        UserError: If an option is not allowed.
    """

    def factor(self, t: int, total: int) -> float:
        """Return the half cosine at an epoch.

        Args:
            t: The epoch, from 0.
            total: Epochs of the fit.
        """
        return (1 + math.cos(math.pi * t / total)) / 2


class EpochLaggedCosine(EpochWarmup):
    """Set the learning rate once an epoch as GLMC's code does on large sets: an epoch late.

    Epoch 0 has the full rate, before any warm-up. Epoch t (0-based) of T after it has, with e = t -
    1 and w epochs of warm-up, lr * (e + 1) / w up to e = w, which is above lr, and then lr / 2 * (1
    + cos(pi * (e - w + 1) / (T - w + 1))). What is read and written is as for `EpochWarmup`.

    Args:
        warmup_epochs: w, epochs of linear warm-up, at least 1.

    Raises:
        UserError: If an option is not allowed.

    Source:
        Du et al., CVPR 2023, arXiv:2305.08661; the authors' code.
    """

    def __init__(self, warmup_epochs: int = 10):
        check_whole("warmup_epochs", warmup_epochs, 1)
        super().__init__(warmup_epochs)

    def factor_with_warmup(self, t: int, total: int) -> float:
        """Return what the learning rates of an epoch are multiplied by.

        Args:
            t: The epoch, from 0.
            total: Epochs of the fit.
        """
        w, e = self.warmup_epochs, t - 1
        if t == 0:
            return 1.0
        if e <= w:
            return (e + 1) / w
        return (1 + math.cos(math.pi * (e - w + 1) / (total - w + 1))) / 2


class EpochSteps(EpochWarmup):
    """Set the learning rate once an epoch, and multiply it by a factor at certain epochs.

    Epoch t (0-based) has lr * decay ** (number of milestones <= t); those of the warm-up are as in
    `EpochWarmup`, which also says what is read and written.

    Args:
        milestones: Epochs that begin with a lower rate, from 1, ascending. One that the fit does
            not reach is warned of.
        decay: What each milestone multiplies the rate by, in (0, 1], no unit.
        warmup_epochs: Epochs of linear warm-up, at least 0.

    Raises:
        UserError: If an option is not allowed.
    """

    def __init__(self, milestones: Sequence[int], decay: float = 0.1, warmup_epochs: int = 0):
        super().__init__(warmup_epochs)
        self.milestones = _check_milestones(milestones)
        number = isinstance(decay, Real) and not isinstance(decay, bool)
        if not number or not 0 < decay <= 1:
            raise UserError(f"decay must be a number above 0 and of at most 1, got {decay!r}.")
        self.decay = float(decay)

    def factor(self, t: int, total: int) -> float:
        """Return the power of `decay` that an epoch has.

        Args:
            t: The epoch, from 0.
            total: Epochs of the fit.
        """
        return self.decay ** sum(m <= t for m in self.milestones)

    def before_fit(self):
        """Remember the learning rates, and warn of milestones that the fit does not reach."""
        super().before_fit()
        epochs = self.learn.n_epoch
        beyond = [str(m) for m in self.milestones if m >= epochs]
        if beyond and epochs and not self.learn.lock.locked():
            _log.warning(
                "the learning rate is to fall at epoch %s, which a fit of %d epochs never reaches",
                ", ".join(beyond),
                epochs,
            )


def _check_milestones(milestones) -> tuple[int, ...]:
    try:
        found = tuple(milestones)
        for m in found:
            check_whole("milestone", m, 1)
        good = bool(found) and all(a < b for a, b in zip(found, found[1:], strict=False))
    except (TypeError, UserError):
        good = False
    if not good:
        raise UserError(
            "milestones must be ascending whole numbers of at least 1, such as (160, 180), got "
            f"{milestones!r}."
        )
    return tuple(int(m) for m in found)


def make_schedule(
    schedule: str,
    warmup_epochs: int = 0,
    milestones: Sequence[int] | None = None,
    decay: float = 0.1,
) -> EpochWarmup:
    """Make the callback of a schedule.

    Args:
        schedule: One of `SCHEDULES`.
        warmup_epochs: Epochs of linear warm-up, at least 0.
        milestones: For "multistep" alone, see `EpochSteps`.
        decay: For "multistep", see `EpochSteps`; the others do not use it.

    Raises:
        UserError: If an argument is outside its range or has no meaning for the schedule.
    """
    check_choice("schedule", schedule, SCHEDULES)
    if schedule == "multistep":
        if milestones is None:
            raise UserError(
                "schedule 'multistep' needs the epochs at which the learning rate falls: give "
                "milestones, such as milestones=(160, 180)."
            )
        return EpochSteps(milestones, decay, warmup_epochs)
    if milestones is not None:
        raise UserError(
            f"milestones have no meaning with schedule {schedule!r}: leave them out, or take "
            "schedule='multistep'."
        )
    kinds = {"cosine": EpochCosine, "lagged_cosine": EpochLaggedCosine, "constant": EpochWarmup}
    return kinds[schedule](warmup_epochs)


class LoaderEpoch(Callback):
    """Tell an `LTDataLoader` the epoch before it is read.

    Order and augmentation then follow from seed and epoch alone.

    Reads `learn.epoch`. Writes the epoch of the training loader.
    """

    order = -5

    def before_train(self):
        """Set the epoch of the training loader."""
        train = self.learn.dls.train
        if hasattr(train, "set_epoch"):
            train.set_epoch(self.learn.epoch, self.learn.n_epoch)
