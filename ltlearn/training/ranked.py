"""`RankedLearner`: a Learner that trains on several devices as one process would."""

import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import fastai.callback.schedule  # noqa: F401  (gives Learner lr_find)
import numpy as np
import torch
from fastai.callback.core import Callback
from fastai.callback.mixup import MixHandler
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ltlearn.data.loader import LTDataLoader
from ltlearn.errors import UserError
from ltlearn.training.collectives import copy_from_first, gather_rows
from ltlearn.training.fit_callback import declared
from ltlearn.training.loop import QuietLearner
from ltlearn.utils import ranks

__all__ = ["RankedLearner"]


class RankedLearner(QuietLearner):
    """A quiet Learner whose fits divide each batch among the ranks; one rank changes nothing.

    A rank runs the model on its rows of a batch. Then all ranks have the logits and targets of the
    whole batch, so that losses, metrics and callbacks see what they see in one process: a mean
    over the batch is right for any loss, and each rank decides alike. torch's
    `DistributedDataParallel` averages the gradients while the backward pass runs. It wraps the
    loss, not the model, so that callbacks and checkpoints see the model itself, and a step can run
    the model more than once, as for GLMC.
    """

    _rows_of_batch: int | None = None  # rows of the batch, if this rank has a part of them
    _has_all_images = False
    _parallel: "_Parallel | None" = None

    def __getstate__(self):
        """Return the state for a copy or a file, which one process can load."""
        return {**super().__getstate__(), "_parallel": None}

    def fit(self, n_epoch, lr=None, wd=None, cbs=None, reset_opt=False, start_epoch=0):
        """Train as fastai's `Learner.fit` does; on several ranks, together."""
        if ranks.world() == 1:
            super().fit(n_epoch, lr, wd, cbs, reset_opt, start_epoch)
            return
        ranks.start()
        copy_from_first(self.model.state_dict().values())
        _share_generators()
        try:
            with _strides_unreported():
                super().fit(n_epoch, lr, wd, cbs, reset_opt, start_epoch)
        finally:
            self._parallel = None
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

    def back_propagate(self, loss: Tensor) -> None:
        """Compute the gradients of a loss; in a fit, their means over the ranks.

        Args:
            loss: The loss of the whole batch, a scalar.

        Raises:
            UserError: If another rank has ended, or reentrant checkpoints hide parameters.
        """
        trained = self._trained_by(loss) if self._is_shared() else []
        if not trained:
            loss.backward()
            return
        if self._parallel is None or not self._parallel.is_of(trained):
            self._parallel = _Parallel(trained)
        with ranks.lost_rank_to_user_error():
            # The backward pass runs in no method of the wrapper. Otherwise the traceback of an
            # error would keep the wrapper alive, and its hooks would break the next fit.
            self._parallel.wrap(loss).backward()

    def _trained_by(self, loss: Tensor) -> list[nn.Parameter]:
        """Return the parameters of the optimiser that a loss depends on."""
        # A step may leave out a part of the model, and a callback may freeze one.
        reached = _parameters_of(loss)
        return [p for group in self.opt.param_lists for p in group if p in reached]

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
        self.back_propagate(self.loss_grad)


class _Parallel:
    """Parameters whose gradients torch's `DistributedDataParallel` averages over the ranks."""

    def __init__(self, trained: list[nn.Parameter]):
        self._trained = trained
        # All ranks have equal parameters already.
        self._averaged = DistributedDataParallel(_Held(trained), init_sync=False)

    def is_of(self, parameters: list[nn.Parameter]) -> bool:
        """Return whether these are the parameters."""
        return list(map(id, parameters)) == list(map(id, self._trained))

    def wrap(self, loss: Tensor) -> Tensor:
        """Return a loss whose backward pass averages the gradients."""
        return self._averaged(loss)


class _Held(nn.Module):
    """A module that holds parameters and returns its input."""

    def __init__(self, parameters: list[nn.Parameter]):
        super().__init__()
        self.held = nn.ParameterList(parameters)

    def forward(self, loss: Tensor) -> Tensor:
        return loss


def _parameters_of(loss: Tensor) -> set[Tensor]:
    """Return the parameters that a loss depends on. For a ResNet-50 it takes 0.2 ms."""
    found, seen, left = set(), set(), [loss.grad_fn]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        if type(node).__name__ == "CheckpointFunctionBackward":
            raise UserError(
                "a part of the model runs in torch's checkpoint with use_reentrant=True, which "
                f"hides its parameters from the exchange between {ranks.world()} devices; set "
                "use_reentrant=False, for models of timm by timm.layers.set_reentrant_ckpt(False)."
            )
        seen.add(node)
        left += [following for following, _ in node.next_functions]
        if hasattr(node, "variable"):  # the end of the graph at a parameter
            found.add(node.variable)
    return found


@contextmanager
def _strides_unreported() -> Iterator[None]:
    """Hide a warning of torch's `DistributedDataParallel` inside the block.

    It warns if strides differ in a dimension of size 1, where they mean nothing, as for the
    class token of a vision transformer.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        yield


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
