"""A learner of a head over cached features, whose training steps call no events where possible."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from fastai.callback.core import Callback
from torch import Tensor

from ltlearn.data.loader import LTDataLoader
from ltlearn.heads.gradient import LinearGradient, closed_form_of
from ltlearn.losses.gradient import loss_and_gradient
from ltlearn.training.features import Features
from ltlearn.training.finite import FiniteLoss
from ltlearn.training.fit_callback import declared
from ltlearn.training.history import Trajectory
from ltlearn.training.loop import QuietLearner, fused_update_of, momentum_of
from ltlearn.training.resident_form import handled_events
from ltlearn.training.stacked import StackedEpoch, reason_against_stack
from ltlearn.training.steps import (
    REPORTED,
    after_step_of,
    count_steps,
    is_replaced,
    record_losses,
)

__all__ = ["HeadLearner"]

_log = logging.getLogger("ltlearn")


class HeadLearner(QuietLearner):
    """Train a head over cached features, without events in a training step where possible.

    fastai sends ten events in each step, which take several times as long as the step of a linear
    classifier. A training without events in a step draws the same batches, and its weights are
    equal up to rounding; the events of epoch and fit are sent as usual. It is taken if each
    callback of the user handles no event of a step, or `after_step` alone and declares by the class
    attribute `uses_weights_alone` that this reads and writes nothing but weights. On a device, no
    step waits; there the optimiser must be `sgd()`, and the head one that `StackedHeads` takes.
    """

    def all_batches(self):
        """Run over the batches of a loader."""
        if not self.training:
            super().all_batches()
        elif reason := self.needs_events():
            _log.debug("stage 2 sends the events of each step: %s", reason)
            super().all_batches()
        elif self.dl.device.type != "cpu":
            StackedEpoch([self]).run()
        else:
            self.n_iter = len(self.dl)
            # NumPy would warn of norms that overflow; torch, in the loop with events, does not.
            with torch.no_grad(), np.errstate(all="ignore"):
                self._run_steps()

    @contextmanager
    def fitting(self, n_epoch: int, lr: float, wd: float, cbs: Sequence) -> Iterator[None]:
        """Begin a fit, whose epochs the block trains, and end it.

        Args:
            n_epoch: Epochs.
            lr: Learning rate.
            wd: Weight decay.
            cbs: Callbacks of the fit.
        """
        with self._prepared(cbs) as listed, self.added_cbs(listed):
            self.create_opt()
            self.opt.set_hypers(wd=wd, lr=lr)
            self.n_epoch = n_epoch
            self("before_fit")
            yield
            self("after_fit")
            self._end_cleanup()

    def begin_epoch(self, epoch: int) -> None:
        """Begin an epoch up to its first step.

        Args:
            epoch: The epoch, from 0.
        """
        self.epoch, self.dl = epoch, self.dls.train
        self(["before_epoch", "before_train"])

    def begin_validation(self) -> None:
        """End the training half of an epoch, and begin its validation."""
        self("after_train")
        self.dl = self.dls.valid
        self.n_iter = len(self.dl)
        self("before_validate")

    def validate_batch(self, i: int, batch: tuple[Tensor, Tensor], logits: Tensor) -> None:
        """Validate a batch whose logits are known.

        Args:
            i: The batch, from 0.
            batch: Features and targets.
            logits: The logits, (N, C).
        """
        self.iter = i
        self._split(batch)
        self("before_batch")
        self.pred = logits
        self("after_pred")
        self.loss = self.loss_grad = self.loss_func(logits, *self.yb)
        self(["after_loss", "after_batch"])

    def end_epoch(self) -> None:
        """End the validation and the epoch."""
        self(["after_validate", "after_epoch"])

    def needs_events(self) -> str:
        """Return why the steps need events; empty if they do not."""
        for cb in self.cbs:
            if not _is_silent(cb):
                return f"{type(cb).__name__} handles them"
        if type(self.dl) is not LTDataLoader or not isinstance(self.dl.dataset, Features):
            return "the features come from another loader"
        return "" if self.dl.device.type == "cpu" else reason_against_stack(self)

    def _run_steps(self) -> None:
        update = fused_update_of(self.opt)
        steps = self.n_epoch * self.n_iter
        form = closed_form_of(self.model.head, steps) if update is not None else None
        step = self._step_by_autograd if form is None else self._closed_step(form, update)
        readers = [cb for cb in self.cbs if cb.run and declared(cb, "uses_weights_alone")]
        of_each = [after_step_of(cb, form) for cb in readers]
        after_step = [call for call in of_each if call is not None]
        checks = [cb.check for cb in self.cbs if isinstance(cb, FiniteLoss)]

        def check(loss: Tensor) -> None:
            losses.append(loss.item())
            for call in checks:
                call(losses[-1])

        first, losses, images = 0, [], []
        try:
            for x, y in self.dl.feature_batches():
                self.iter = first + len(losses)
                images.append(len(y))
                step(x, y, check)
                for call in after_step:
                    call()
                if len(losses) == REPORTED:
                    self.report_steps(losses, images)
                    first, losses, images = first + REPORTED, [], []
        finally:
            if form is not None:
                form.close()
            # A step that was interrupted before its loss counts for nothing.
            self.report_steps(losses, images[: len(losses)])

    def _closed_step(self, form: LinearGradient, update: Callable) -> Callable:
        """Return a function that takes a step with gradients in closed form."""
        compare = loss_and_gradient(self.loss_func)
        updated, momenta = form.updated, form.momenta(partial(momentum_of, self.opt))

        def step(x: Tensor, y: Tensor, check: Callable[[Tensor], None]) -> None:
            loss, gradient = compare(form.logits(x), y)
            check(loss)
            update(updated, form.gradients(x, gradient), momenta)

        return step

    def _step_by_autograd(self, x: Tensor, y: Tensor, check: Callable[[Tensor], None]) -> None:
        with torch.enable_grad():
            loss = self.loss_func(self.model.head(x), y)
            check(loss.detach())
            loss.backward()
        self.opt.step()
        self.opt.zero_grad()

    def report_steps(self, losses: list[float], images: list[int]) -> None:
        """Do what the callbacks do in each step, for some steps at once.

        Args:
            losses: The loss of each step.
            images: The size of each batch.
        """
        if not losses:
            return
        for cb in self.cbs:
            if isinstance(cb, Trajectory):
                cb.after_steps(losses, images)
        record_losses(self, losses)
        count_steps(self, images)


def _is_silent(cb: Callback) -> bool:
    """Return whether a training step need not send events to a callback."""
    if type(cb) is FiniteLoss:
        return cb.on_nan == "stop"
    if is_replaced(cb) or type(cb) is Trajectory or not cb.run:
        return True
    handled = handled_events(cb)
    return not handled or (handled == ["after_step"] and declared(cb, "uses_weights_alone"))
