"""Learning rates by the epoch, and loaders that know which epoch it is."""

import math
from numbers import Integral

from fastai.callback.core import Callback

from ltlearn.errors import UserError

__all__ = ["SCHEDULES", "EpochCosine", "LoaderEpoch"]

SCHEDULES = ("cosine", "constant")


class EpochCosine(Callback):
    """Set the learning rate once an epoch, on a cosine to zero after a linear warm-up.

    Epoch t of T (0-based) has lr / 2 * (1 + cos(pi * t / T)).

    Reads the learning rates that the fit begins with, one a parameter group. Writes them each
    epoch, and writes the first ones back after the fit.

    Args:
        warmup_epochs: Epochs of linear warm-up, lr * (t + 1) / warmup_epochs, at least 0.
    """

    # Before anything that records the learning rate of the epoch.
    order = -5
    base: list[float] | None = None
    _optimizer = None

    def __init__(self, warmup_epochs: int = 0):
        whole = isinstance(warmup_epochs, Integral) and not isinstance(warmup_epochs, bool)
        if not whole or warmup_epochs < 0:
            raise UserError(
                f"warmup_epochs must be a whole number of at least 0, got {warmup_epochs!r}."
            )
        self.warmup_epochs = warmup_epochs

    def before_fit(self):
        """Remember the learning rates."""
        # `close` comes when fastai has taken the learner away already.
        self._optimizer = self.learn.opt
        self.base = [h["lr"] for h in self._optimizer.hypers]

    def before_epoch(self):
        """Set the learning rates of this epoch."""
        t, total = self.learn.epoch, self.learn.n_epoch
        if t < self.warmup_epochs:
            factor = (t + 1) / self.warmup_epochs
        else:
            factor = (1 + math.cos(math.pi * t / total)) / 2
        # Through the optimiser: what `OptimWrapper.hypers` gives is a copy.
        self._optimizer.set_hyper("lr", [lr * factor for lr in self.base])

    def after_fit(self):
        """Put the first learning rates back."""
        self.close()

    def close(self) -> None:
        """Put the first learning rates back, also after a fit that was interrupted."""
        if self.base is not None:
            self._optimizer.set_hyper("lr", self.base)
            self._optimizer = self.base = None


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
