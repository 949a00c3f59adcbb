"""MaxNorm as a fastai callback."""

import torch
from fastai.callback.core import Callback
from torch import Tensor, nn

from ltlearn.errors import UserError, check_choice
from ltlearn.losses.counted import check_number
from ltlearn.models.backbone import find_head

__all__ = ["MaxNorm"]

_TINY = 1e-12  # a row of zeros is inside every ball, and stays as it is


class MaxNorm(Callback):
    """Keep the weight norm of each class at or below a threshold: w_c <- w_c min(1, d / ||w_c||).

    The bias is never clipped. Published together with strong weight decay of the classifier. It
    never waits for a device.

    Reads `learn.model`. Writes the weight of the `nn.Linear` it ends in.

    Args:
        threshold: d, the largest norm allowed, above 0, in units of the weights. None computes it
            once as the fit begins, from the norms there are then: min + share * (max - min).
        share: Where between smallest and largest norm the threshold lies, in [0, 1]; used without
            `threshold`.
        when: "epoch" clips after the training of each epoch, before it is validated, as the
            authors' code does. "step" clips after each optimiser step.

    Raises:
        UserError: If an option is not allowed or, in a fit, the model does not end in an
            `nn.Linear`.

    Source:
        Alshammari et al., CVPR 2022, arXiv:2203.14197; the threshold and the time of clipping as in
        the authors' code.
    """

    # After callbacks that put in a head of their own in before_fit; after each step, before those
    # that look at the norms.
    order = 6
    leaves_prior = False

    def __init__(self, threshold: float | None = None, share: float = 0.1, when: str = "epoch"):
        if threshold is not None:
            check_number("threshold", threshold, 0, open_low=True)
        check_number("share", share, 0)
        if share > 1:
            raise UserError(f"share must be a number from 0 to 1, got {share!r}.")
        check_choice("when", when, ("epoch", "step"))
        self.threshold, self.share, self.when = threshold, float(share), when
        self.threshold_: Tensor | None = None
        self._layer: nn.Linear | None = None
        self._began = False

    def before_fit(self):
        """Find the classifier and compute the threshold."""
        # `validate` and `get_preds` come by here too, with this lock held; they change no model.
        if self.learn.lock.locked():
            return
        layer = find_head(self.learn.model)[1]
        if not isinstance(layer, nn.Linear):
            raise UserError(
                f"MaxNorm clips the weights of an nn.Linear, and the head is a "
                f"{type(layer).__name__}; fold it (learn.model.head.fold()), or leave MaxNorm out."
            )
        self._layer, self._began = layer, False
        norms = _norms(layer.weight)
        if self.threshold is not None:
            self.threshold_ = torch.full_like(norms[0], self.threshold)
        else:
            low, high = norms.aminmax()
            self.threshold_ = low + self.share * (high - low)

    def state_dict(self) -> dict:
        """Return what a checkpoint keeps: the threshold."""
        return {"threshold": self.threshold_}

    def load_state_dict(self, state: dict) -> None:
        """Go on with the threshold of a fit that was stopped."""
        self.threshold_ = state["threshold"].to(self.threshold_).reshape(())

    def before_train(self):
        """Note that the weights move from here on."""
        self._began = True

    def after_step(self):
        """Clip the norms, if that is to be after each step."""
        if self.when == "step":
            self._clip()

    def after_train(self):
        """Clip the norms."""
        self._clip()
        self._began = False

    def after_fit(self):
        """Clip the norms of a fit that was cancelled in the middle of an epoch."""
        if not self.learn.lock.locked():
            self.close()

    def close(self) -> None:
        """Clip the norms, also after an epoch that was interrupted."""
        if self._layer is not None and self._began:
            self._clip()
        self._layer, self._began = None, False

    @torch.no_grad()
    def _clip(self) -> None:
        weight = self._layer.weight
        factor = (self.threshold_ / _norms(weight).clamp(min=_TINY)).clamp(max=1)
        weight.mul_(factor[:, None].to(weight.dtype))


@torch.no_grad()
def _norms(weight: Tensor) -> Tensor:
    """Return the norm of each row, (C,), in float32 or float64."""
    wide = torch.promote_types(weight.dtype, torch.float32)
    return torch.linalg.vector_norm(weight, dim=1, dtype=wide)
