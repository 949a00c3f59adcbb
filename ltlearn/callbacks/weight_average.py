"""An exponential moving average of the weights as a fastai callback."""

import torch
from timm.utils import ModelEmaV3
from torch import Tensor

from ltlearn.errors import UserError, check_number
from ltlearn.training.fit_callback import FitCallback
from ltlearn.training.resident_form import ResidentForm, ResidentStep

__all__ = ["WeightAverage"]

_WIDE = (torch.float32, torch.float64)


class WeightAverage(FitCallback):
    """Validate and finish with an exponential moving average of the weights (EMA).

    After each step of the optimiser, a <- decay a + (1 - decay) w. A skipped step, or one that
    gradient accumulation postpones, does not count. The average covers the parameters and the
    floating-point buffers, such as the means and variances of batch normalisation; other buffers,
    such as its count of batches, are copied. The average begins with the weights after the first
    step.

    Validation uses the average. So the figures of an epoch, and its kept weights, belong to
    the average. Training and the optimiser use the weights themselves. After a
    fit, also one that a callback ends early, the model has the average. After an exception or a
    keyboard interrupt it has the weights of the last step. Norms that are monotone (`SAMN`), or
    below a threshold after each step (`MaxNorm`, `when="step"`), are also so in the average; with
    `when="epoch"` its norms can be above.

    Works in any fastai Learner. Reads the optimiser's steps. Writes the weights and buffers of
    `learn.model`, during validation and at the end.

    Attributes, once a fit has begun: `steps_` (steps in the average).

    Args:
        decay: Share of the average that a step keeps, in [0, 1), no unit. The average spans about
            1 / (1 - decay) steps.
        warmup: Whether to begin with a smaller decay, 1 - (1 + k) ** -(2 / 3) in the k-th step
            after the first. Then the first weights of a short fit have little share at its end:
            the decay reaches 0.99 after 1,000 steps, 0.999 after 31,600. Without it, `decay` holds
            from the second step on.

    Raises:
        UserError: If `decay` or `warmup` is not allowed.

    Source:
        timm's `ModelEmaV3`; Polyak and Juditsky, SIAM J. Control Optim. 30(4), 1992.

    Example:
        >>> learn.fit_stage1(200, cbs=WeightAverage(0.999))
    """

    # In before_fit after callbacks that replace the head; in after_step after those that project;
    # in validation around `Trajectory`, which keeps the weights of the epoch; before `Checkpoint`.
    order = 85

    def __init__(self, decay: float = 0.999, warmup: bool = True):
        check_number("decay", decay, 0, 1, below=True)
        if not isinstance(warmup, bool):
            raise UserError(f"warmup must be True or False, got {warmup!r}.")
        self.decay, self.warmup = float(decay), warmup
        self.steps_ = 0
        self._release()

    def begin(self) -> None:
        """Begin a new average."""
        self.steps_ = 0
        # Kept here, because fastai removes the learner from the callback before `end`.
        self._model = self.learn.model
        self._average = ModelEmaV3(self._model, self.decay, use_warmup=self.warmup)

    def state_dict(self) -> dict:
        """Return the average and its number of steps, for a checkpoint."""
        average = self._average.module.state_dict()
        return {"average": {k: v.clone() for k, v in average.items()}, "steps": self.steps_}

    def load_state_dict(self, state: dict) -> None:
        """Restore the average of a stopped fit."""
        saved, current = state["average"], self._average.module.state_dict()
        same = saved.keys() == current.keys()
        if not same or any(v.shape != current[k].shape for k, v in saved.items()):
            raise ValueError("the average belongs to another model")
        for key, value in current.items():
            value.copy_(saved[key])
        self.steps_ = int(state["steps"])

    def after_cancel_step(self):
        """Note a skipped step; `after_step` follows anyway."""
        self._cancelled = True

    def after_step(self):
        """Add the weights to the average."""
        if not self._cancelled:
            self.steps_ += 1
            self._average.update(self._model, self.steps_)
        self._cancelled = False

    def resident_form(self) -> "_ResidentAverage | None":
        """Return the form for steps without events; None for weights in half precision."""
        values = _values(self._average.module)
        wide = all(v.dtype in _WIDE for v in values if v.is_floating_point())
        return _ResidentAverage(self) if wide else None

    def before_validate(self):
        """Replace the weights by the average."""
        if self._average is not None and self._weights is None:
            self._weights = [v.clone() for v in _values(self._model)]
            _copy(_values(self._model), _values(self._average.module))

    def after_validate(self):
        """Restore the weights."""
        self._restore()

    def after_epoch(self):
        """Restore the weights, in case the validation was cancelled."""
        self._restore()

    def after_fit(self):
        """Leave the average in the model, after a fit without an exception."""
        fit_ended = not self.learn.lock.locked()
        if fit_ended and self._average is not None and self.steps_:
            self._weights = None
            _copy(_values(self._model), _values(self._average.module))
        super().after_fit()

    def end(self) -> None:
        """Restore the weights, in case the fit ended in validation, and release the average."""
        self._restore()
        self._release()

    def _restore(self) -> None:
        if self._weights is not None:
            _copy(_values(self._model), self._weights)
            self._weights = None

    def _release(self) -> None:
        self._model = self._average = None
        self._weights: list[Tensor] | None = None
        self._cancelled = False


class _ResidentAverage(ResidentForm):
    """The average in steps without events."""

    def __init__(self, owner: WeightAverage):
        self._owner = owner
        device = next(owner.learn.model.parameters()).device
        # The loop also counts skipped steps, so the form has a counter of its own.
        self._done = torch.zeros(1, dtype=torch.int64, device=device)
        self._shares = torch.zeros(0, device=device)  # share of the new weights, by step

    def begin_epoch(self, sizes):
        owner = self._owner
        pairs = zip(_values(owner._average.module), _values(owner._model), strict=True)
        self._average, self._weights = zip(
            *[(old, new) for old, new in pairs if old.is_floating_point()], strict=True
        )
        first = owner.steps_ + 1
        shares = [1 - owner._average.get_decay(first + i) for i in range(len(sizes))]
        if len(self._shares) != len(shares):
            self._shares = torch.zeros(len(shares), device=self._done.device)
        self._shares.copy_(torch.tensor(shares), non_blocking=True)
        self._done.zero_()
        return {}

    @torch.no_grad()
    def after_step(self, step: ResidentStep) -> None:
        at = self._done.clamp(max=len(self._shares) - 1)
        # These are lerp's operations. The share is a tensor, so that a captured step reads its new
        # value.
        change = torch._foreach_sub(self._weights, self._average)
        torch._foreach_mul_(change, self._shares.index_select(0, at)[0])
        torch._foreach_add_(self._average, change)
        self._done.add_(1)

    def end_epoch(self, steps: int) -> None:
        owner = self._owner
        owner.steps_ += steps
        pairs = zip(_values(owner._average.module), _values(owner._model), strict=True)
        # No step copies the counts of batches.
        counts = [(old, new) for old, new in pairs if not old.is_floating_point()]
        if steps and counts:
            torch._foreach_copy_(*map(list, zip(*counts, strict=True)))

    def state(self) -> list[Tensor]:
        return [*self._average, self._done]

    def fixed(self):
        return id(self._shares)


def _values(model) -> list[Tensor]:
    return list(model.state_dict().values())


@torch.no_grad()
def _copy(to: list[Tensor], values: list[Tensor]) -> None:
    for target, value in zip(to, values, strict=True):
        target.copy_(value)
