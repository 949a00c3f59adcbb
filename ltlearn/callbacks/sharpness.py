"""Sharpness-aware minimisation as a fastai callback."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from fastai.callback.core import Callback, CancelBatchException
from fastai.callback.fp16 import MixedPrecision, NonNativeMixedPrecision
from fastai.callback.training import GradientAccumulation
from fastcore.basics import noop
from torch import Tensor, nn

from ltlearn.errors import UserError, check_number
from ltlearn.training.finite import FiniteLoss
from ltlearn.training.fit_callback import FitCallback, declared
from ltlearn.training.resident_form import ResidentForm, ResidentStep

__all__ = ["SharpnessAware"]

_TINY = 1e-12  # a gradient of zeros leaves the weights unchanged
# A callback that replaces the learner's loss handles one of these events, and comes before
# `FiniteLoss` or with it. Callbacks that only read the loss come later and see the first pass.
_EVENTS = ("after_pred", "after_loss", "before_backward")
_SCALED = "it scales the gradients; use precision='bf16' or 'fp32' of an LTLearner"
# fastai's own callbacks cannot declare `runs_once`.
_RUNS_ONCE = {
    GradientAccumulation: "it adds up gradients over batches, and the climb needs one batch",
    MixedPrecision: _SCALED,
    NonNativeMixedPrecision: _SCALED,
}


class SharpnessAware(FitCallback):
    """Step along the gradient at the worst weights nearby, to find flat minima (SAM).

    After the backward pass, the weights climb to w + rho g / ||g||, with the L2 norm over all
    trained parameters. There the same batch runs forward and backward again. Then the weights
    return, bit for bit, and the optimiser steps from w with the second gradient. A step takes about
    twice the time, and never waits for a device. The climb ignores weight decay, which is no part
    of the loss.

    Both passes draw the same numbers from torch's generators, so dropout is the same. Buffers, such
    as the statistics of batch normalisation, keep their values of the first pass; the second pass
    normalises by its own batch, too, but does not update them. Callbacks with an `order` up to
    `FiniteLoss.order` compute their predictions and losses again, from their state in the first
    pass. Later callbacks and all records use the loss of the first pass. `FiniteLoss` also checks
    the loss at the climbed weights; "skip" then skips the whole step. `GradientClip` clips the
    second gradient.

    Works in any fastai Learner. Reads `learn.xb`, `learn.yb`, `learn.loss_func` and the callbacks.
    Writes the gradients.

    Args:
        rho: Distance of the climb, in units of the weights, above 0.

    Raises:
        UserError: If `rho` is not allowed or, in a fit, another callback cannot run a step twice,
            such as `GLMC`, `GradientAccumulation` or a loss scale (fp16).

    Source:
        Foret et al., ICLR 2021, arXiv:2010.01412, equations 2 and 3, algorithm 1.

    Example:
        >>> learn.fit_stage1(200, cbs=SharpnessAware(rho=0.05))
    """

    # In before_batch after callbacks that mix, so that all later draws belong to the forward pass;
    # in after_backward before callbacks that clip or read the gradients in before_step.
    order = 58
    run_valid = False

    def __init__(self, rho: float = 0.05):
        check_number("rho", rho, 0, above=True)
        self.rho = float(rho)
        self.end()

    def begin(self) -> None:
        """Refuse callbacks that cannot run a step twice."""
        for cb in self.learn.cbs:
            if reason := _reason_to_run_once(cb):
                raise UserError(
                    f"SharpnessAware cannot be combined with {type(cb).__name__}: {reason}; leave "
                    "one of them out."
                )

    def before_batch(self):
        """Save the state of the generators and callbacks before the first pass."""
        self._draws = _Draws(next(self.learn.model.parameters()).device)
        self._callbacks = [
            (cb, dict(vars(cb)))
            for cb in sorted(self.learn.cbs, key=lambda cb: cb.order)
            if cb is not self and cb.order <= FiniteLoss.order and _listens(cb)
        ]

    def after_backward(self):
        """Climb, run the batch again, and return."""
        trained = self._trained()
        if trained:
            learn = self.learn
            first_pass = learn.pred, learn.loss_grad, learn.loss
            with _climbed(trained, self.rho), _buffers_kept(learn.model), self._rewound():
                self._run_again()
            learn.pred, learn.loss_grad, learn.loss = first_pass
        self.end()

    def resident_form(self) -> "_ResidentClimb":
        """Return the form of the climb for steps without events."""
        return _ResidentClimb(self)

    def _trained(self) -> list[nn.Parameter]:
        parameters = [p for g in self.learn.opt.param_lists for p in g if p.requires_grad]
        return [p for p in parameters if p.grad is not None]

    def end(self) -> None:
        """Release the last batch."""
        self._draws: _Draws | None = None
        self._callbacks: list[tuple[Callback, dict]] = []

    def _run_again(self) -> None:
        """Compute loss and gradients of the batch, as the learner does."""
        learn, first = self.learn, self.learn.pred
        # An LTLearner runs its model in autocast, and calls its events outside it.
        with getattr(learn, "autocast_context", nullcontext)():
            learn.pred = learn.model(*learn.xb)
        if isinstance(first, Tensor):
            learn.pred = getattr(learn, "whole_batch", noop)(learn.pred.to(first.dtype))
        self._call("after_pred")
        learn.loss_grad = learn.loss_func(learn.pred, *learn.yb)
        learn.loss = learn.loss_grad.clone()
        self._call("after_loss")
        self._call("before_backward")
        # An LTLearner averages the gradients over several devices.
        getattr(learn, "back_propagate", Tensor.backward)(learn.loss_grad)

    def _call(self, event: str) -> None:
        for cb, _ in self._callbacks:
            cb(event)

    @contextmanager
    def _rewound(self) -> Iterator[None]:
        """Rewind generators and callbacks to the start of the first pass; restore them after."""
        # FiniteLoss counts the skipped steps of both passes.
        again = [(cb, old) for cb, old in self._callbacks if not isinstance(cb, FiniteLoss)]
        after = [(cb, dict(vars(cb))) for cb, _ in again]
        draws = _Draws(self._draws.device)
        _put_back(again)
        self._draws.restore()
        try:
            yield
        finally:
            draws.restore()
            _put_back(after)


class _ResidentClimb(ResidentForm):
    """The climb in a step without events."""

    def __init__(self, owner: SharpnessAware):
        self._owner, self._draws = owner, None

    def before_batch(self, step: ResidentStep) -> None:
        # A captured step draws no random numbers.
        self._draws = None if step.captured else _Draws(step.x.device)

    def after_backward(self, step: ResidentStep) -> None:
        trained, model = self._owner._trained(), self._owner.learn.model
        if not trained:
            return
        first_pass, after = (step.pred, step.loss), None
        if self._draws is not None:
            after = _Draws(step.x.device)
            self._draws.restore()
        try:
            with _climbed(trained, self._owner.rho), _buffers_kept(model):
                step.again()
        finally:
            if after is not None:
                after.restore()
        step.pred, step.loss = first_pass


class _Draws:
    """The state of torch's generators from which a model on a device draws."""

    def __init__(self, device: torch.device):
        self.device = device
        self._cpu = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def restore(self) -> None:
        torch.set_rng_state(self._cpu)
        if self._cuda is not None:
            torch.cuda.set_rng_state(self._cuda, self.device)


def _reason_to_run_once(cb: Callback) -> str:
    """Return why a step with this callback cannot run twice; empty if it can."""
    fastais = [reason for kind, reason in _RUNS_ONCE.items() if isinstance(cb, kind)]
    return fastais[0] if fastais else declared(cb, "runs_once", "")


def _listens(cb: Callback) -> bool:
    return any(hasattr(type(cb), event) or event in vars(cb) for event in _EVENTS)


def _put_back(states: list[tuple[Callback, dict]]) -> None:
    for cb, state in states:
        # The whole dictionary at once: fastai warns of single attributes that the learner has, too.
        vars(cb).clear()
        vars(cb).update(state)


@contextmanager
def _climbed(parameters: list[nn.Parameter], rho: float) -> Iterator[None]:
    """Move parameters to w + rho g / ||g|| inside the block, and clear their gradients."""
    grads = [p.grad for p in parameters]
    with torch.no_grad():
        # Copies: w + e - e is not w.
        before = [p.clone() for p in parameters]
        norm = torch.nn.utils.get_total_norm(grads)
        # In two steps, because the scale is a tensor: a number would wait for the device.
        steps = torch._foreach_mul(grads, rho / (norm + _TINY))
    for p in parameters:
        p.grad = None
    try:
        with torch.no_grad():
            torch._foreach_add_(parameters, steps)
        del grads, steps
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(parameters, before)


@contextmanager
def _buffers_kept(model: nn.Module) -> Iterator[None]:
    """Restore the buffers of a model after the block.

    If `FiniteLoss` skips the step, it has already restored them to before the step.
    """
    buffers: list[Tensor] = list(model.buffers())
    before = [b.clone() for b in buffers]
    try:
        yield
    except CancelBatchException:
        raise
    except BaseException:
        _copy(buffers, before)
        raise
    _copy(buffers, before)


@torch.no_grad()
def _copy(to: list[Tensor], values: list[Tensor]) -> None:
    # The resident loop counts the batches of batch normalisation on the host.
    for device in {t.device for t in to}:
        pairs = [(t, v) for t, v in zip(to, values, strict=True) if t.device == device]
        torch._foreach_copy_(*map(list, zip(*pairs, strict=True)))
