"""Deferred re-weighting as a fastai callback."""

import logging
import math
from collections.abc import Sequence

from torch import Tensor

from ltlearn.data.counts import find_class_counts
from ltlearn.errors import UserError, check_number, check_whole
from ltlearn.losses.class_balanced import effective_number_weights
from ltlearn.training.fit_callback import FitCallback

__all__ = ["DeferredReweighting"]

_log = logging.getLogger("ltlearn")


class DeferredReweighting(FitCallback):
    """Weight all classes alike in early epochs, and by their effective number in later ones.

    Works with every loss that takes class weights by `set_weights`, as the losses of
    `ltlearn.losses` do. A class without training images gets weight 0. A mean is
    divided by the sum of the batch's weights, unless the loss defines it otherwise.

    Reads `learn.dls`, `learn.epoch`, `learn.n_epoch`. Writes the weights of `learn.loss_func`, and
    restores its own weights after the fit.

    Args:
        start_epoch: First epoch with weights, from 0; None derives it from `start_pct`.
        start_pct: Share of the epochs without weights, in [0, 1), rounded down to whole epochs: 0.8
            starts at epoch 160 of 200.
        beta: Parameter of `effective_number_weights`, no unit, in [0, 1).
        class_counts: Training images per class; None reads them from `learn.dls`.

    Raises:
        UserError: If an option is not allowed or, in a fit, the class counts are unknown, or the
            loss takes no weights.

    Source:
        Cao et al., NeurIPS 2019, arXiv:1906.07413; Cui et al., CVPR 2019, arXiv:1901.05555 (the
        weights). Departure: weights have mean 1 over the classes that have images.

    Example:
        >>> learn.fit_stage1(200, loss=LDAMLoss(), cbs=[CosineHead(), DeferredReweighting()])
    """

    # Before callbacks that wrap the loss in another function, as fastai's MixUp does.
    order = -5
    leaves_prior = False
    weights_loss = True

    def __init__(
        self,
        start_epoch: int | None = None,
        start_pct: float = 0.8,
        beta: float = 0.9999,
        class_counts: Tensor | Sequence[int] | None = None,
    ):
        if start_epoch is not None:
            check_whole("start_epoch", start_epoch, 0)
        check_number("start_pct", start_pct, 0, 1, below=True)
        check_number("beta", beta, 0, 1, below=True)
        self.start_epoch, self.start_pct, self.beta = start_epoch, start_pct, beta
        self.class_counts = class_counts
        self._loss = None
        self._own_weights: Tensor | None = None

    def begin(self) -> None:
        """Weight all classes alike."""
        loss = self.learn.loss_func
        if not callable(getattr(loss, "set_weights", None)) or not hasattr(loss, "weights"):
            name = getattr(loss, "__name__", type(loss).__name__)
            raise UserError(
                "DeferredReweighting needs a loss that takes class weights, such as CrossEntropy "
                f"or LDAMLoss of ltlearn.losses; {name} takes none."
            )
        counts = self.class_counts
        if counts is None:
            counts = find_class_counts(self.learn.dls)
        if counts is None:
            raise UserError(
                "DeferredReweighting needs class_counts, the number of training images of each "
                "class, which these dataloaders do not have: give "
                "DeferredReweighting(class_counts=[500, 120, ...]), or use LTDataLoaders."
            )
        self._weights = effective_number_weights(counts, self.beta)
        self._start, epochs = self.start_epoch, self.learn.n_epoch
        if self._start is None:
            # 1e-9 guards against 28.99999 where the share of the epochs is 29.
            self._start = math.floor(self.start_pct * epochs + 1e-9)
        if self._start >= epochs > 0:
            _log.warning(
                "deferred re-weighting starts at epoch %d, which a fit of %d epochs never reaches",
                self._start,
                epochs,
            )
        # Kept here, because fastai removes the learner from the callback before `end`.
        self._loss, self._own_weights, self._on = loss, loss.weights, False
        loss.set_weights(None)

    def before_epoch(self):
        """Set the weights in the first epoch that has any."""
        if self._loss is None or self.learn.lock.locked():
            return
        if self.learn.epoch >= self._start and not self._on:
            self._loss.set_weights(self._weights)
            self._on = True

    def end(self) -> None:
        """Restore the weights that the loss had before."""
        if self._loss is not None:
            self._loss.set_weights(self._own_weights)
            self._loss = self._own_weights = None
