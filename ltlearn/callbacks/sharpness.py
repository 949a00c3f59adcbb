"""Sharpness-aware minimisation as a fastai callback."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from fastai.callback.core import Callback, CancelBatchException
from fastai.callback.fp16 import MixedPrecision, NonNativeMixedPrecision
from fastai.callback.training import GradientAccumulation
from torch import Tensor, nn

from ltlearn.callbacks.glmc import GLMC
from ltlearn.errors import UserError
from ltlearn.losses.counted import check_number
from ltlearn.training.finite import FiniteLoss

__all__ = ["SharpnessAware"]

_TINY = 1e-12  # a gradient of zeros leaves the weights where they are
# What may put a loss of its own in the place of the learner's listens to these, and comes no later
# than `FiniteLoss`; what only looks at the loss comes later, and sees that of the first pass alone.
_EVENTS = ("after_pred", "after_loss", "before_backward")

_REFUSED = {
    GLMC: "GLMC runs two mixes and hooks of its own in each step, which cannot be run twice",
    GradientAccumulation: "GradientAccumulation adds up gradients over batches, and the climb is "
    "that of one batch",
    MixedPrecision: "the gradients of fp16 and of fastai's MixedPrecision are scaled; use "
    "precision='bf16' or 'fp32' of an LTLearner",
    NonNativeMixedPrecision: "the gradients of NonNativeMixedPrecision are scaled; use "
    "precision='bf16' or 'fp32' of an LTLearner",
}


class SharpnessAware(Callback):
    """Step along the gradient at the worst weights near by: flat minima (SAM).

    After the backward pass the weights climb to w + rho g / ||g||, with the L2 norm over all that
    is trained; the same batch is run forward and backward there; the weights go back, bit for bit,
    and the optimiser steps from w with the second gradient. A step takes about twice the time, and
    never waits for a device. The climb leaves weight decay out, as that is no part of the loss.

    Both passes draw the same numbers from torch's generators, so dropout is the same. Buffers, such
    as the statistics of batch normalisation, keep what the first pass made of them; the second one
    normalises by its own batch, too, but is not counted. Callbacks whose `order` is at most that of
    `FiniteLoss` compute their predictions and losses again, from the state they had in the first
    pass; what comes later, and whatever is recorded, sees the loss of the first pass. A loss that
    is not finite at the climbed weights is one for `FiniteLoss`: "skip" leaves out the whole step.
    `GradientClip` clips the second gradient.

    Works in any fastai Learner. Reads `learn.xb`, `learn.yb`, `learn.loss_func` and the callbacks.
    Writes the gradients.

    Args:
        rho: How far the weights climb, in units of the weights, above 0.

    Raises:
        UserError: If `rho` is not allowed or, in a fit, there is `GLMC`, `GradientAccumulation` or
            a loss scale (fp16).

    Source:
        Foret et al., ICLR 2021, arXiv:2010.01412, equations 2 and 3, algorithm 1.
    """

    # In before_batch after callbacks that mix, so that what is drawn from here on is the forward
    # pass's; in after_backward before whoever clips or looks at the gradients in before_step.
    order = 58
    run_valid = False

    def __init__(self, rho: float = 0.05):
        check_number("rho", rho, 0, open_low=True)
        self.rho = float(rho)
        self._forget()

    def before_fit(self):
        """Refuse what cannot be run twice."""
        # `validate` and `get_preds` come by here too, with this lock held.
        if self.learn.lock.locked():
            return
        for cb in self.learn.cbs:
            for kind, why in _REFUSED.items():
                if isinstance(cb, kind):
                    raise UserError(
                        f"SharpnessAware does not go with {type(cb).__name__}: {why}; leave one of "
                        "them out."
                    )

    def before_batch(self):
        """Note what the first pass begins with: the generators, and the state of the callbacks."""
        self._draws = _Draws(next(self.learn.model.parameters()).device)
        self._callbacks = [
            (cb, dict(vars(cb)))
            for cb in sorted(self.learn.cbs, key=lambda cb: cb.order)
            if cb is not self and cb.order <= FiniteLoss.order and _listens(cb)
        ]

    def after_backward(self):
        """Climb, run the batch again, and go back."""
        trained = [p for g in self.learn.opt.param_lists for p in g if p.requires_grad]
        trained = [p for p in trained if p.grad is not None]
        if trained:
            learn = self.learn
            found = learn.pred, learn.loss_grad, learn.loss
            with _climbed(trained, self.rho), _buffers_kept(learn.model), self._as_at_first():
                self._run_again()
            learn.pred, learn.loss_grad, learn.loss = found
        self._forget()

    def after_fit(self):
        """Let go of the last batch."""
        if not self.learn.lock.locked():
            self.close()

    def close(self) -> None:
        """Let go of the last batch, also after a fit that was interrupted."""
        self._forget()

    def _forget(self) -> None:
        self._draws: _Draws | None = None
        self._callbacks: list[tuple[Callback, dict]] = []

    def _run_again(self) -> None:
        """Compute loss and gradients of the batch, as the learner does."""
        learn, first = self.learn, self.learn.pred
        # An LTLearner runs its model in autocast, and calls its events outside it.
        with getattr(learn, "autocast", nullcontext)():
            learn.pred = learn.model(*learn.xb)
        if isinstance(first, Tensor):
            learn.pred = learn.pred.to(first.dtype)
        self._call("after_pred")
        learn.loss_grad = learn.loss_func(learn.pred, *learn.yb)
        learn.loss = learn.loss_grad.clone()
        self._call("after_loss")
        self._call("before_backward")
        learn.loss_grad.backward()

    def _call(self, event: str) -> None:
        for cb, _ in self._callbacks:
            cb(event)

    @contextmanager
    def _as_at_first(self) -> Iterator[None]:
        """Begin with the generators and callbacks of the first pass; then they go on from there."""
        # FiniteLoss counts what it finds, in either pass.
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


class _Draws:
    """The state of torch's generators that a model on a device draws from."""

    def __init__(self, device: torch.device):
        self.device = device
        self._cpu = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def restore(self) -> None:
        torch.set_rng_state(self._cpu)
        if self._cuda is not None:
            torch.cuda.set_rng_state(self._cuda, self.device)


def _listens(cb: Callback) -> bool:
    return any(hasattr(type(cb), event) or event in vars(cb) for event in _EVENTS)


def _put_back(states: list[tuple[Callback, dict]]) -> None:
    for cb, state in states:
        # Not attribute by attribute: fastai warns of names that the learner has.
        vars(cb).clear()
        vars(cb).update(state)


@contextmanager
def _climbed(parameters: list[nn.Parameter], rho: float) -> Iterator[None]:
    """Move parameters to w + rho g / ||g|| for a while, and let go of their gradients."""
    grads = [p.grad for p in parameters]
    with torch.no_grad():
        # Copies: w + e - e is not w.
        before = [p.clone() for p in parameters]
        norm = torch.nn.utils.get_total_norm(grads)
        # In two steps, as the scale is a tensor: a number would wait for the device.
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
    """Put the buffers of a model back after a pass; not where `FiniteLoss` has left the step out.

    That has put them back itself, to before the step.
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
    if to:
        torch._foreach_copy_(to, values)
