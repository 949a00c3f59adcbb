"""MaxNorm as a fastai callback."""

import torch
from torch import Tensor, nn

from ltlearn.errors import UserError, check_choice, check_number
from ltlearn.models.backbone import find_head
from ltlearn.training.fit_callback import FitCallback

__all__ = ["MaxNorm"]

_TINY = 1e-12  # a row of zeros is inside every ball, and stays unchanged


class MaxNorm(FitCallback):
    """Keep the weight norm of each class at or below a threshold: w_c <- w_c min(1, d / ||w_c||).

    The bias is never clipped. Published together with strong weight decay of the classifier.
    Clipping never waits for a device.

    Reads `learn.model`. Writes the weight of the `nn.Linear` at the end of the model.

    Attributes, once a fit has begun: `threshold_` (d in use, a scalar tensor).

    Args:
        threshold: d, the largest norm allowed, above 0, in units of the weights. None computes it
            once from the norms at the start of the fit: min + share * (max - min).
        share: Position of the threshold between smallest and largest norm, in [0, 1]; used without
            `threshold`.
        when: "epoch" clips after the training of each epoch, before its validation, as the
            authors' code does. "step" clips after each optimiser step.

    Raises:
        UserError: If an option is not allowed or, in a fit, the model does not end in an
            `nn.Linear`.

    Source:
        Alshammari et al., CVPR 2022, arXiv:2203.14197; the threshold and the time of clipping as in
        the authors' code.

    Example:
        >>> learn.retrain_classifier(wd=0.1, cbs=MaxNorm(share=0.1))
    """

    # In before_fit after callbacks that install a head of their own; after each step before
    # callbacks that read the norms.
    order = 6
    leaves_prior = False
    uses_weights_alone = True

    def __init__(self, threshold: float | None = None, share: float = 0.1, when: str = "epoch"):
        if threshold is not None:
            check_number("threshold", threshold, 0, above=True)
        check_number("share", share, 0, 1)
        check_choice("when", when, ("epoch", "step"))
        self.threshold, self.share, self.when = threshold, float(share), when
        self.threshold_: Tensor | None = None
        self._layer: nn.Linear | None = None
        self._in_epoch = False

    def begin(self) -> None:
        """Find the classifier and compute the threshold."""
        layer = find_head(self.learn.model)[1]
        if not isinstance(layer, nn.Linear):
            raise UserError(
                f"MaxNorm clips the weights of an nn.Linear, but the head is a "
                f"{type(layer).__name__}; fold it (learn.model.head.fold()), or leave MaxNorm out."
            )
        self._layer, self._in_epoch = layer, False
        norms = _norms(layer.weight)
        if self.threshold is not None:
            self.threshold_ = torch.full_like(norms[0], self.threshold)
        else:
            low, high = norms.aminmax()
            self.threshold_ = low + self.share * (high - low)

    def state_dict(self) -> dict:
        """Return the threshold, for a checkpoint."""
        return {"threshold": self.threshold_}

    def load_state_dict(self, state: dict) -> None:
        """Restore the threshold of a stopped fit."""
        self.threshold_ = state["threshold"].to(self.threshold_).reshape(())

    def before_train(self):
        """Note that an epoch begins to change the weights."""
        self._in_epoch = True

    def after_step(self):
        """Clip the norms, with `when="step"`."""
        if self.when == "step":
            self._clip()

    def after_step_of(self, form):
        """Return what a training without events calls after each step; None for nothing.

        Args:
            form: The form of the head that is trained.
        """
        return self.after_step if self.when == "step" else None

    def after_train(self):
        """Clip the norms."""
        self._clip()
        self._in_epoch = False

    def end(self) -> None:
        """Clip the norms, in case the fit ended in the middle of an epoch."""
        if self._layer is not None and self._in_epoch:
            self._clip()
        self._layer, self._in_epoch = None, False

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
