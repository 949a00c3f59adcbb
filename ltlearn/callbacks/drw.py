"""Deferred re-weighting as a fastai callback."""

import logging
import math
from collections.abc import Sequence

from fastai.callback.core import Callback
from torch import Tensor

from ltlearn.data.counts import find_class_counts
from ltlearn.errors import UserError, check_whole
from ltlearn.losses.class_balanced import effective_number_weights
from ltlearn.losses.counted import check_number

__all__ = ["DeferredReweighting"]

_log = logging.getLogger("ltlearn")


class DeferredReweighting(Callback):
    """Weight the classes of the loss alike at first, and by their effective number later.

    Works with every loss that takes class weights by `set_weights`, as those of `ltlearn.losses`
    do. A class without training images weighs 0 from the start on. A mean divides by the weights of
    the batch, where the loss does not say otherwise.

    Reads `learn.dls`, `learn.epoch`, `learn.n_epoch`. Writes the weights of `learn.loss_func`, and
    writes back those that it had, after the fit.

    Args:
        start_epoch: First epoch with weights, from 0; None follows from `start_pct`.
        start_pct: Share of the epochs without weights, in [0, 1), rounded down to whole epochs: 0.8
            starts at epoch 160 of 200.
        beta: Of `effective_number_weights`, no unit, in [0, 1).
        class_counts: Training images per class; None finds them in `learn.dls`.

    Raises:
        UserError: If an option is not allowed or, in a fit, the class counts are not known, or the
            loss takes no weights.

    Source:
        Cao et al., NeurIPS 2019, arXiv:1906.07413; Cui et al., CVPR 2019, arXiv:1901.05555 (the
        weights). Departure: weights have mean 1 over the classes that have images.
    """

    # Before callbacks that put another function in the place of the loss, as MixUp does.
    order = -5
    leaves_prior = False

    def __init__(
        self,
        start_epoch: int | None = None,
        start_pct: float = 0.8,
        beta: float = 0.9999,
        class_counts: Tensor | Sequence[int] | None = None,
    ):
        if start_epoch is not None:
            check_whole("start_epoch", start_epoch, 0)
        check_number("start_pct", start_pct, 0, 1)
        check_number("beta", beta, 0, 1)
        self.start_epoch, self.start_pct, self.beta = start_epoch, start_pct, beta
        self.class_counts = class_counts
        self._weighted = None
        self._found: Tensor | None = None

    def before_fit(self):
        """Weight all classes alike."""
        # `validate` and `get_preds` come by here too, with this lock held.
        if self.learn.lock.locked():
            return
        self.close()
        loss = self.learn.loss_func
        if not callable(getattr(loss, "set_weights", None)) or not hasattr(loss, "weights"):
            name = getattr(loss, "__name__", type(loss).__name__)
            raise UserError(
                "DeferredReweighting needs a loss that takes class weights, such as CrossEntropy "
                f"or LDAMLoss of ltlearn.losses; {name} has no weights that can be set."
            )
        counts = self.class_counts
        if counts is None:
            counts = find_class_counts(self.learn.dls)
        if counts is None:
            raise UserError(
                "DeferredReweighting needs the number of training images of each class, and these "
                "dataloaders do not tell: give them, as DeferredReweighting(class_counts=[500, "
                "120, ...]), or use LTDataLoaders."
            )
        self._weights = effective_number_weights(counts, self.beta)
        self._start, epochs = self.start_epoch, self.learn.n_epoch
        if self._start is None:
            # 1e-9 guards against 28.99999 where the share of the epochs is 29.
            self._start = math.floor(self.start_pct * epochs + 1e-9)
        if self._start >= epochs > 0:
            _log.warning(
                "deferred re-weighting is to start at epoch %d, which a fit of %d epochs never "
                "reaches",
                self._start,
                epochs,
            )
        # `close` comes when fastai has taken the learner away already.
        self._weighted, self._found, self._on = loss, loss.weights, False
        loss.set_weights(None)

    def before_epoch(self):
        """Weight the classes from the first epoch that is to have weights."""
        if self._weighted is None or self.learn.lock.locked():
            return
        if self.learn.epoch >= self._start and not self._on:
            self._weighted.set_weights(self._weights)
            self._on = True

    def after_fit(self):
        """Give the loss its own weights back."""
        if not self.learn.lock.locked():
            self.close()

    def close(self) -> None:
        """Give the loss its own weights back, also after a fit that was interrupted."""
        if self._weighted is not None:
            self._weighted.set_weights(self._found)
            self._weighted = self._found = None
