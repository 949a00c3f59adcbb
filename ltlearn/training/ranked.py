"""`RankedLearner`: a Learner that trains on several devices as one process would."""

import random

import fastai.callback.schedule  # noqa: F401  (gives Learner lr_find)
import numpy as np
import torch
from fastai.callback.core import Callback
from fastai.callback.mixup import MixHandler
from torch import Tensor

from ltlearn.data.loader import LTDataLoader
from ltlearn.training.collectives import average_gradients, copy_from_first, gather_rows
from ltlearn.training.fit_callback import declared
from ltlearn.training.loop import QuietLearner
from ltlearn.utils import ranks

__all__ = ["RankedLearner"]


class RankedLearner(QuietLearner):
    """A quiet Learner whose fits divide each batch among the ranks; one rank changes nothing.

    A rank runs the model on its rows of a batch. Then all ranks have the logits and targets of the
    whole batch, so that losses, metrics and callbacks see what they see in one process: a mean
    over the batch is right for any loss, and each rank decides alike. After the backward pass the
    gradients are averaged.

    torch's `DistributedDataParallel` does not fit: it wraps the model, which callbacks and
    checkpoints would see; it averages the losses of the parts, which is wrong if the parts or
    their class weights differ; and it allows one forward pass per backward pass, where GLMC and
    SAM take two. It averages gradients while the backward pass runs; here they follow it.
    """

    _rows_of_batch: int | None = None  # rows of the batch, if this rank has a part of them
    _has_all_images = False

    def fit(self, n_epoch, lr=None, wd=None, cbs=None, reset_opt=False, start_epoch=0):
        """Train as fastai's `Learner.fit` does; on several ranks, together."""
        if ranks.world() == 1:
            super().fit(n_epoch, lr, wd, cbs, reset_opt, start_epoch)
            return
        ranks.start()
        copy_from_first(self.model.state_dict().values())
        _share_generators()
        super().fit(n_epoch, lr, wd, cbs, reset_opt, start_epoch)
        copy_from_first(self.model.buffers())

    def all_batches(self):
        """Run over the batches of a loader; in a fit, each rank over its part of each batch."""
        if not (self._is_shared() and isinstance(self.dl, LTDataLoader)):
            super().all_batches()
            return
        if not self.training:
            # Each rank has its own statistics of batch normalisation.
            copy_from_first(self.model.buffers())
        with self.dl.cut_by_rank():
            super().all_batches()

    def lr_find(self, *args, **kwargs):
        """Find a learning rate as fastai's `lr_find` does, in one process.

        Args:
            *args: For fastai's `lr_find`.
            **kwargs: For fastai's `lr_find`.

        Raises:
            UserError: If there are several ranks.
        """
        # Its callback saves the weights on the first rank, and loads them on that rank alone.
        ranks.check_one("lr_find")
        return super().lr_find(*args, **kwargs)

    def whole_batch(self, rows: Tensor) -> Tensor:
        """Return what all ranks computed for a batch, from the rows of each.

        Args:
            rows: What this rank computed for its rows.
        """
        return rows if self._rows_of_batch is None else gather_rows(rows, self._rows_of_batch)

    def average_gradients(self) -> None:
        """Average the gradients of a fit over the ranks."""
        if self._is_shared():
            average_gradients(p for group in self.opt.param_lists for p in group)

    def _is_shared(self) -> bool:
        # `validate` and `get_preds` hold this lock outside a fit, where one rank may call them.
        return ranks.world() > 1 and not self.lock.locked()

    def _split(self, b):
        super()._split(b)
        # Before the first epoch there is no loader, and a tracker may split a batch by then.
        loader = getattr(self, "dl", None)
        is_cut = getattr(loader, "is_cut", False) is True and len(self.yb) > 0
        self._rows_of_batch = len(self.yb[0]) if is_cut else None
        # Callbacks that mix images need those of the other ranks.
        self._has_all_images = is_cut and self.training and any(map(_mixes_rows, self.cbs))
        if self._has_all_images:
            self.xb = tuple(map(self.whole_batch, self.xb))

    def _take_own_rows(self) -> None:
        """Drop the images of other ranks, once the callbacks have mixed them."""
        if self._has_all_images:
            rows = ranks.part_of(self._rows_of_batch)
            self.xb = tuple(x[rows] for x in self.xb)

    def _backward(self):
        super()._backward()
        self.average_gradients()


def _mixes_rows(cb: Callback) -> bool:
    """Return whether a callback mixes an image with another one of the batch."""
    return isinstance(cb, MixHandler) or declared(cb, "mixes_rows")


def _share_generators() -> None:
    """Continue the random numbers of the first rank, from which callbacks draw."""
    python, numpy, torchs = ranks.share(
        (random.getstate(), np.random.get_state(), torch.get_rng_state())
    )
    random.setstate(python)
    np.random.set_state(numpy)
    torch.set_rng_state(torchs)
    if torch.cuda.is_available() and not ranks.is_first():
        # Dropout on a device drops other features of other images.
        torch.cuda.manual_seed(torch.cuda.initial_seed() + ranks.rank())
