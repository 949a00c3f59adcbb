"""Stop a fit, or skip a step, when the loss is not finite."""

import logging
import math

import torch
from fastai.callback.core import CancelBatchException
from torch import Tensor

from ltlearn.errors import UserError, check_choice, check_whole, spell
from ltlearn.names import ON_NAN
from ltlearn.training.checkpoint import Checkpoint
from ltlearn.training.fit_callback import FitCallback
from ltlearn.training.resident_form import ResidentForm, ResidentStep

__all__ = ["FiniteLoss"]

_log = logging.getLogger("ltlearn")
_MAX_NAMED = 3  # images in a message


class FiniteLoss(FitCallback):
    """Stop a fit at a step whose loss is infinite or not a number, or skip that step.

    "stop" checks each step on a CPU. On a device it does not wait for each loss: it records the
    first bad step there, and reads the record every `look_every` steps and at the end of the epoch.
    So the fit ends up to `look_every` steps later. "skip" checks each step, and waits for the
    device. A skipped step changes no weights, no buffers and no optimiser state, and each epoch
    warns of its skipped steps.

    Reads `learn.loss_grad`. Writes, with "skip", the buffers of `learn.model`, to restore them.

    Attributes, once a fit has begun: `skipped_` (skipped steps of this epoch).

    Args:
        on_nan: "stop" or "skip".
        look_every: Steps between two checks on a device, at least 1.
        stage: Name of the training in messages.

    Raises:
        UserError: If an option is not allowed or, in a fit, the loss is not finite.

    Example:
        >>> learn.fit(10, 0.1, cbs=FiniteLoss("skip"))
    """

    # After callbacks that replace the learner's loss, before `Trajectory`, which collects it.
    order = 60
    run_valid = False

    def __init__(self, on_nan: str = "stop", look_every: int = 50, stage: str = "training"):
        check_choice("on_nan", on_nan, ON_NAN)
        check_whole("look_every", look_every, 1)
        self.on_nan, self.look_every, self.stage = on_nan, look_every, stage
        self.skipped_ = 0
        self.end()

    def before_train(self):
        """Begin an epoch."""
        self.end()
        self.skipped_, self._skipped_images = 0, ""

    def before_batch(self):
        """Save the buffers, with "skip": the forward pass of a bad batch would spoil them."""
        if self.on_nan == "skip":
            self._saved_buffers = [(b, b.clone()) for b in self.learn.model.buffers()]

    def after_loss(self):
        """Check the loss, or record on the device whether it is finite."""
        loss = self.learn.loss_grad.detach()
        if self.on_nan == "skip" or not _waits(loss):
            self.check(loss.item())
            return
        if self._first is None:
            self._first = _no_step(loss.device)
        _record_bad(self._first, loss, self.learn.iter)
        if self.learn.iter % self.look_every == self.look_every - 1:
            self.read_record(self._first)

    def check(self, loss: float) -> None:
        """Stop the fit, or skip the step, if the loss of this step is not finite.

        Args:
            loss: The loss.
        """
        if not math.isfinite(loss):
            self._act(self.learn.iter)

    def resident_form(self) -> "_LossCheck":
        """Return the check for steps without events."""
        return _LossCheck(self)

    def read_record(self, record: Tensor | None) -> None:
        """Stop the fit if a record has a bad step; this waits for the device.

        Args:
            record: The first bad step, a scalar, or -1; None without a record.
        """
        if record is not None and (step := record.item()) >= 0:
            self._act(step)

    def after_train(self):
        """Read the record, and warn of skipped steps."""
        self.read_record(self._first)
        if self.skipped_:
            _log.warning(
                "epoch %d of %s: %d of %d steps were skipped, because their loss is not finite; "
                "the first had %s",
                self.learn.epoch + 1, self.stage, self.skipped_, len(self.learn.dls.train),
                self._skipped_images,
            )  # fmt: skip

    def end(self) -> None:
        """Release the record and the buffers."""
        self._first: Tensor | None = None
        self._saved_buffers: list[tuple[Tensor, Tensor]] = []

    def _act(self, step: int) -> None:
        if self.on_nan == "skip":
            self.skipped_ += 1
            self._skipped_images = self._skipped_images or _name_batch(self.learn.dl, step)
            with torch.no_grad():
                for buffer, before in self._saved_buffers:
                    buffer.copy_(before)
            raise CancelBatchException
        files = [cb.last_ for cb in self.learn.cbs if isinstance(cb, Checkpoint) and cb.last_]
        last = f"the last good checkpoint is {files[0]}" if files else "there is no checkpoint"
        raise UserError(
            f"training diverged in epoch {self.learn.epoch + 1} of {self.stage}: the loss of step "
            f"{step + 1} with {_name_batch(self.learn.dl, step)} is not finite ({last}); check "
            "these images, lower the learning rate, or skip such steps with "
            f"{spell('on_nan', 'skip')}."
        )


class _LossCheck(ResidentForm):
    """The check of `FiniteLoss` in a step without events."""

    def __init__(self, owner: FiniteLoss):
        self._owner, self.look_every = owner, owner.look_every
        # A skipped step ends early, which a captured step cannot.
        self.captures = owner.on_nan == "stop"
        device = next(owner.learn.model.parameters()).device
        self._first = None if self.captures and device.type == "cpu" else _no_step(device)

    def begin_epoch(self, sizes):
        if self._first is not None:
            self._first.fill_(-1)
        return {}

    def before_batch(self, step: ResidentStep) -> None:
        self._owner.before_batch()

    def after_loss(self, step: ResidentStep) -> None:
        loss = step.loss.detach()
        if not self.captures or not _waits(loss):
            self._owner.check(loss.item())
        else:
            _record_bad(self._first, loss, step.number[0])

    def after_steps(self, images):
        self._owner.read_record(self._first)

    def state(self) -> list[Tensor]:
        return [] if self._first is None else [self._first]


def _no_step(device: torch.device) -> Tensor:
    return torch.full((), -1, dtype=torch.int64, device=device)


def _record_bad(first: Tensor, loss: Tensor, step: int | Tensor) -> None:
    """Record the first step with a bad loss on the device, without a wait."""
    new = ~torch.isfinite(loss) & (first < 0)
    first.copy_(torch.where(new, step, first))


def _waits(loss: Tensor) -> bool:
    """Return whether reading the loss waits for a device."""
    return loss.device.type != "cpu"


def _name_batch(dl, step: int) -> str:
    """Name the first images of a batch: by file, or by their index in the training set."""
    sampler = getattr(dl, "sampler", None)
    if not hasattr(sampler, "set_epoch") or not hasattr(dl, "epoch"):
        return f"batch {step + 1}"
    # Seed and epoch decide the order, so the order can be drawn again here.
    current_epoch = getattr(sampler, "epoch", None)
    sampler.set_epoch(dl.epoch)
    order = list(sampler)[step * dl.bs : (step + 1) * dl.bs]
    if current_epoch is not None:
        sampler.set_epoch(current_epoch)
    data = getattr(dl.dataset, "data", None)
    paths = getattr(data, "paths", None) if getattr(data, "images", None) is None else None
    names = [str(data.root / paths[i]) if paths is not None else str(i) for i in order[:_MAX_NAMED]]
    more = " ..." if len(order) > _MAX_NAMED else ""
    kind = "images" if paths is not None else "training images number"
    return f"{kind} {', '.join(names)}{more}"
