"""An exponential moving average of the weights as a fastai callback."""

import torch
from fastai.callback.core import Callback
from timm.utils import ModelEmaV3
from torch import Tensor

from ltlearn.errors import UserError
from ltlearn.losses.counted import check_number

__all__ = ["WeightAverage"]


class WeightAverage(Callback):
    """Validate and finish with an exponential moving average of the weights (EMA).

    After each step of the optimiser a <- decay a + (1 - decay) w; a step that was left out, or that
    gradient accumulation has yet to take, does not count. Averaged are the parameters and the
    floating-point buffers, such as the means and variances of batch normalisation; other buffers,
    such as its count of batches, are copied. The average begins with the weights after the first
    step.

    Validation sees the average, and so does what is recorded and kept of an epoch. Training and the
    optimiser go on with the weights themselves. After a fit, also one that a callback ends early,
    the model has the average. After an exception or a keyboard interrupt it has the weights of the
    last step. Norms that are monotone (`SAMN`) or below a threshold after each step (`MaxNorm`,
    `when="step"`) are so in the average as well; with `when="epoch"` its norms can be above.

    Works in any fastai Learner. Reads the optimiser's steps. Writes the weights and buffers of
    `learn.model`, during validation and at the end.

    Attributes, once a fit has begun: `steps_` (averaged so far).

    Args:
        decay: Share of the average that a step keeps, in [0, 1), no unit. It spans about
            1 / (1 - decay) steps.
        warmup: Begin with a smaller decay, 1 - (1 + k) ** -(2 / 3) in the k-th step after the
            first, so that the weights at the start of a short fit do not weigh on its end: 0.99 is
            reached after 1,000 steps, 0.999 after 31,600. Without, `decay` holds from the second
            step on.

    Raises:
        UserError: If `decay` or `warmup` is not allowed.

    Source:
        timm's `ModelEmaV3`; Polyak and Juditsky, SIAM J. Control Optim. 30(4), 1992.
    """

    # In before_fit after callbacks that exchange the head, in after_step after those that project;
    # in validation around `Trajectory`, which keeps the weights of the epoch; before `Checkpoint`.
    order = 85

    def __init__(self, decay: float = 0.999, warmup: bool = True):
        check_number("decay", decay, 0, 1)
        if not isinstance(warmup, bool):
            raise UserError(f"warmup must be True or False, got {warmup!r}.")
        self.decay, self.warmup = float(decay), warmup
        self.steps_ = 0
        self._forget()

    def before_fit(self):
        """Begin a new average."""
        # `validate` and `get_preds` come by here too, with this lock held.
        if self.learn.lock.locked():
            return
        self.close()
        self.steps_ = 0
        # `close` comes when fastai has taken the learner away already.
        self._model = self.learn.model
        self._average = ModelEmaV3(self._model, self.decay, use_warmup=self.warmup)

    def state_dict(self) -> dict:
        """Return what a checkpoint keeps: the average and its number of steps."""
        average = self._average.module.state_dict()
        return {"average": {k: v.clone() for k, v in average.items()}, "steps": self.steps_}

    def load_state_dict(self, state: dict) -> None:
        """Go on with the average of a fit that was stopped."""
        found, wanted = state["average"], self._average.module.state_dict()
        same = found.keys() == wanted.keys()
        if not same or any(v.shape != wanted[k].shape for k, v in found.items()):
            raise ValueError("the average is that of another model")
        for key, value in wanted.items():
            value.copy_(found[key])
        self.steps_ = int(state["steps"])

    def after_cancel_step(self):
        """Note a step that was left out; `after_step` follows all the same."""
        self._cancelled = True

    def after_step(self):
        """Take the weights into the average."""
        if not self._cancelled:
            self.steps_ += 1
            self._average.update(self._model, self.steps_)
        self._cancelled = False

    def before_validate(self):
        """Put the average in the place of the weights."""
        if self._average is not None and self._weights is None:
            self._weights = [v.clone() for v in _values(self._model)]
            _copy(_values(self._model), _values(self._average.module))

    def after_validate(self):
        """Put the weights back."""
        self._put_back()

    def after_epoch(self):
        """Put the weights back, after a validation that was cut short."""
        self._put_back()

    def after_fit(self):
        """Leave the model with the average."""
        if self.learn.lock.locked():
            return
        if self._average is not None and self.steps_:
            self._weights = None
            _copy(_values(self._model), _values(self._average.module))
        self.close()

    def close(self) -> None:
        """Put the weights back in a validation that was interrupted, and let go of the average."""
        self._put_back()
        self._forget()

    def _put_back(self) -> None:
        if self._weights is not None:
            _copy(_values(self._model), self._weights)
            self._weights = None

    def _forget(self) -> None:
        self._model = self._average = None
        self._weights: list[Tensor] | None = None
        self._cancelled = False


def _values(model) -> list[Tensor]:
    return list(model.state_dict().values())


@torch.no_grad()
def _copy(to: list[Tensor], values: list[Tensor]) -> None:
    for target, value in zip(to, values, strict=True):
        target.copy_(value)
