"""A loss that is not finite any more ends a fit at once, or costs one step."""

import logging
import math

import torch
from fastai.callback.core import Callback, CancelBatchException
from torch import Tensor

from ltlearn.errors import UserError, check_choice, check_whole
from ltlearn.training.checkpoint import Checkpoint

__all__ = ["ON_NAN", "FiniteLoss"]

_log = logging.getLogger("ltlearn")
ON_NAN = ("stop", "skip")
_NAMED = 3  # images that the sentence names


class FiniteLoss(Callback):
    """Stop a fit at the step whose loss is not a number or infinite, or leave that step out.

    "stop" looks at each step on a CPU. It never makes a device wait: there it notes the first such
    step, and looks once every `look_every` steps and at the end of the epoch, so that the fit ends
    up to so many steps later. "skip" looks at each step, for which a device waits; weights, buffers
    and optimiser are then as if the batch had not been, and each epoch warns of those left out.

    Reads `learn.loss_grad`. Writes, with "skip", the buffers of `learn.model` back.

    Attributes, once a fit has begun: `skipped_` (steps left out in this epoch).

    Args:
        on_nan: "stop" or "skip".
        look_every: Steps between two looks at a flag on a device, at least 1.
        stage: What this training is called in messages.

    Raises:
        UserError: If an option is not allowed or, in a fit, the loss is not finite.
    """

    # After callbacks that put a loss of their own in the place of the learner's, before the one
    # that collects it.
    order = 60
    run_valid = False

    def __init__(self, on_nan: str = "stop", look_every: int = 50, stage: str = "training"):
        check_choice("on_nan", on_nan, ON_NAN)
        check_whole("look_every", look_every, 1)
        self.on_nan, self.look_every, self.stage = on_nan, look_every, stage
        self.skipped_ = 0
        self._forget()
        if on_nan == "skip":  # else this event would cost each step some microseconds
            self.before_batch = self._remember

    def before_train(self):
        """Begin an epoch."""
        self._forget()
        self.skipped_, self._named = 0, ""

    def _remember(self):
        """Remember the buffers, which the forward pass of a bad batch would spoil."""
        self._kept = [(b, b.clone()) for b in self.learn.model.buffers()]

    def after_loss(self):
        """Look at the loss, or note what there is to look at."""
        loss = self.learn.loss_grad.detach()
        if self.on_nan == "skip" or not _waits(loss):
            if not math.isfinite(loss.item()):
                self._act(self.learn.iter)
            return
        if self._first is None:
            self._first = torch.full((), -1, dtype=torch.int64, device=loss.device)
        # The first bad step, on the device, without waiting for it.
        new = ~torch.isfinite(loss) & (self._first < 0)
        self._first = torch.where(new, self.learn.iter, self._first)
        if self.learn.iter % self.look_every == self.look_every - 1:
            self._look()

    def after_train(self):
        """Look at the flag, and warn of steps that were left out."""
        self._look()
        if self.skipped_:
            _log.warning(
                "epoch %d of %s: %d of %d steps were left out, their loss is not finite; the first "
                "is of %s",
                self.learn.epoch + 1, self.stage, self.skipped_, len(self.learn.dls.train),
                self._named,
            )  # fmt: skip

    def after_fit(self):
        """Let go of the buffers."""
        if not self.learn.lock.locked():
            self.close()

    def close(self) -> None:
        """Let go of the buffers, also after a fit that was interrupted."""
        self._forget()

    def _forget(self) -> None:
        self._first: Tensor | None = None
        self._kept: list[tuple[Tensor, Tensor]] = []

    def _look(self) -> None:
        if self._first is not None and (step := self._first.item()) >= 0:
            self._act(step)

    def _act(self, step: int) -> None:
        if self.on_nan == "skip":
            self.skipped_ += 1
            self._named = self._named or _name_batch(self.learn.dl, step)
            with torch.no_grad():
                for buffer, before in self._kept:
                    buffer.copy_(before)
            raise CancelBatchException
        found = [cb.last_ for cb in self.learn.cbs if isinstance(cb, Checkpoint)]
        last = f"the last good checkpoint is {found[0]}" if any(found) else "there is no checkpoint"
        raise UserError(
            f"training diverged in epoch {self.learn.epoch + 1} of {self.stage}: the loss of step "
            f"{step + 1}, of {_name_batch(self.learn.dl, step)}, is not finite ({last}); look at "
            "these images, lower the learning rate, or leave such steps out (on_nan='skip', "
            "--on-nan skip)."
        )


def _waits(loss: Tensor) -> bool:
    """Tell whether a look at the loss waits for a device."""
    return loss.device.type != "cpu"


def _name_batch(dl, step: int) -> str:
    """Name the first images of a batch: by file, or by their place in the training set."""
    sampler = getattr(dl, "sampler", None)
    if not hasattr(sampler, "set_epoch") or not hasattr(dl, "epoch"):
        return f"batch {step + 1}"
    # Seed and epoch decide the order, so that no step need remember its images.
    after = getattr(sampler, "epoch", None)
    sampler.set_epoch(dl.epoch)
    order = list(sampler)[step * dl.bs : (step + 1) * dl.bs]
    if after is not None:
        sampler.set_epoch(after)
    data = getattr(dl.dataset, "data", None)
    paths = getattr(data, "paths", None) if getattr(data, "images", None) is None else None
    names = [str(data.root / paths[i]) if paths is not None else str(i) for i in order[:_NAMED]]
    more = " ..." if len(order) > _NAMED else ""
    what = "images" if paths is not None else "training images number"
    return f"{what} {', '.join(names)}{more}"
