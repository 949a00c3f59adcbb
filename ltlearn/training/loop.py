"""The loop that all training here runs in: fastai's, made quiet, quicker and safe to interrupt."""

from contextlib import contextmanager
from functools import partial

import torch
from fastai.callback.core import Callback, CancelEpochException, event
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.progress import ProgressCallback
from fastai.learner import AvgSmoothLoss, Learner, Recorder
from fastai.optimizer import OptimWrapper
from fastcore.basics import listify, noop
from torch import Tensor

from ltlearn.errors import UserError
from ltlearn.training.history import Trajectory

__all__ = ["sgd", "listed_callbacks", "oom_to_user_error", "QuietLearner", "LossScaling"]


def sgd(momentum: float = 0.9, nesterov: bool = False):
    """Return torch's SGD as fastai's `opt_func`.

    It adds weight decay to the gradient, as all published code does.

    Args:
        momentum: Share of the last step in the next, in [0, 1).
        nesterov: Whether the momentum is Nesterov's.
    """
    return partial(_Wrapped, opt=_SGD, momentum=momentum, nesterov=nesterov)


class _Wrapped(OptimWrapper):
    """fastai's wrapper, telling numbers alone: its loggers stumble over torch's None."""

    @property
    def hypers(self):
        return [{k: v for k, v in h.items() if v is not None} for h in super().hypers]


class _SGD(torch.optim.SGD):
    """torch's SGD, in one kernel a step on a CPU, where torch itself takes three a parameter."""

    def __init__(self, params, *args, **kwargs):
        params = list(params)
        group = params[0] if params else None
        first = group["params"] if isinstance(group, dict) else params
        on_cpu = all(p.is_cpu and p.dtype.is_floating_point for p in first)
        super().__init__(params, *args, **{"fused": True if on_cpu else None, **kwargs})

    def _init_group(self, group, params, grads, momentum_buffer_list):
        # The fused kernel wants buffers of all or of none; parameters that a callback froze in an
        # earlier fit have none. One of zeros does what the first step does.
        found = super()._init_group(group, params, grads, momentum_buffer_list)
        if group["fused"] and any(b is not None for b in momentum_buffer_list):
            for i, buffer in enumerate(momentum_buffer_list):
                if buffer is None:
                    momentum_buffer_list[i] = torch.zeros_like(params[i])
        return found


def listed_callbacks(cbs) -> list[Callback]:
    """Make a list of callbacks of one or many, classes or instances."""
    found = listify(cbs)
    for cb in found:
        if not (isinstance(cb, Callback) or (isinstance(cb, type) and issubclass(cb, Callback))):
            raise UserError(f"cbs must be fastai callbacks, classes or instances, got {cb!r}.")
    return [cb() if isinstance(cb, type) else cb for cb in found]


@contextmanager
def oom_to_user_error(batch: int):
    """Say what to do where memory runs out."""
    try:
        yield
    except RuntimeError as e:
        text = str(e)
        ours = isinstance(e, torch.OutOfMemoryError) or "DefaultCPUAllocator: can't alloc" in text
        if not ours:
            raise
        device = "the device" if isinstance(e, torch.OutOfMemoryError) else "this machine"
        hint = (
            f"try batches of {batch // 2} (bs={batch // 2}, --set stage1.batch_size={batch // 2})"
            if batch > 1
            else "try smaller images or a smaller model"
        )
        many = "images" if batch > 1 else "image"
        raise UserError(
            f"the memory of {device} is not enough for batches of {batch} {many}: {hint}."
        ) from e


class _SmoothLoss(AvgSmoothLoss):
    """fastai's smooth loss, without waiting for the device at each step."""

    def accumulate(self, learn):
        loss = learn.loss.detach().mean()
        self.count += 1
        self.val = torch.lerp(loss, self.val.to(loss), self.beta)

    @property
    def value(self):
        # The recorder keeps one a step. A tensor of four bytes amid the large pieces that come and
        # go keeps malloc from joining them again: memory would grow with the steps.
        found = super().value
        return found.item() if found.device.type == "cpu" else found


def _order_of(cb: Callback) -> float:
    return cb.order


class QuietLearner(Learner):
    """A fastai Learner that prints nothing and whose callbacks clean up however a fit ends."""

    first_epoch = 0  # of this fit, which goes on in the middle where a `Checkpoint` says so

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.remove_cb(ProgressCallback)
        self.logger, self.create_mbar = noop, False
        for cb in self.cbs:
            if isinstance(cb, Recorder):
                cb.smooth_loss = _SmoothLoss()

    def __call__(self, event_name):
        """Tell the callbacks of an event, or of several."""
        # What fastai does, without building lists and without asking callbacks that do not listen:
        # its own way takes longer than a step of a linear classifier.
        for name in [event_name] if isinstance(event_name, str) else list(event_name):
            if not hasattr(event, name):
                raise ValueError(f"fastai has no event {name!r}")
            for cb in sorted(self.cbs, key=_order_of):
                if name == "after_fit" or hasattr(type(cb), name) or name in vars(cb):
                    cb(name)

    def fit(self, n_epoch, lr=None, wd=None, cbs=None, reset_opt=False, start_epoch=0):
        """Train, as fastai's `Learner.fit`; what was borrowed is given back however it ends."""
        cbs = listed_callbacks(cbs)
        self.first_epoch = 0
        metrics, logger = self.metrics, self.logger
        for cb in cbs:
            if isinstance(cb, Trajectory):
                self.metrics = [*metrics, *cb.as_metrics()]
        try:
            with oom_to_user_error(getattr(self.dls.train, "bs", 1)):
                super().fit(n_epoch, lr, wd, cbs, reset_opt, start_epoch)
        finally:
            self.metrics, self.logger = metrics, logger
            for cb in [*self.cbs, *cbs]:
                if hasattr(type(cb), "close"):
                    cb.close()
            for cb in self.cbs:
                # A fit that was refused at its start has recorded nothing.
                if isinstance(cb, Recorder) and vars(cb).get("losses"):
                    on_device = isinstance(cb.losses[0], Tensor)
                    kept = torch.stack(cb.losses).cpu() if on_device else torch.tensor(cb.losses)
                    cb.losses = list(kept)
            # What a cut-off step or accumulation leaves is not for the next fit.
            self.model.zero_grad(set_to_none=True)

    def _do_fit(self):
        for epoch in range(self.first_epoch, self.n_epoch):
            self.epoch = epoch
            self._with_events(self._do_epoch, "epoch", CancelEpochException)


class LossScaling(MixedPrecision):
    """fastai's scaling of losses and gradients, without its autocast.

    The learner runs the model in autocast itself: fastai enters autocast in one event and leaves it
    in another, which an interrupted batch never reaches.
    """

    def before_batch(self):
        """Leave autocast alone."""

    def after_loss(self):
        """Leave autocast alone."""

    def state_dict(self) -> dict:
        """Return the state of the scaling, for a checkpoint."""
        return self.learn.scaler.state_dict()

    def load_state_dict(self, state: dict) -> None:
        """Go on with what `state_dict` returned."""
        self.learn.scaler.load_state_dict(state)
