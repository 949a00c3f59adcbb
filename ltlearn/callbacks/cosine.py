"""The cosine classifier as a fastai callback."""

import logging

from torch import nn

from ltlearn.callbacks.install import install_head
from ltlearn.errors import check_number
from ltlearn.heads.cosine import CosineLinear
from ltlearn.training.fit_callback import FitCallback

__all__ = ["CosineHead"]

_log = logging.getLogger("ltlearn")


class CosineHead(FitCallback):
    """Train a classifier of scaled cosines, as LDAM does.

    Before a fit, the `nn.Linear` at the end of the model becomes a `CosineLinear` with the same
    directions and no bias. The new head stays after the fit. Give `LDAMLoss` the same `scale`.
    Works in both stages, in a plain `learn.fit` and with any fastai Learner. Call `install` before
    a Learner loads a file that was saved with this head.

    Reads `learn.model`. Writes the classifier of `learn.model` and its parameters in `learn.opt`;
    groups, hyper-parameters and frozen parameters stay.

    Args:
        scale: Factor of the cosines, above 0, no unit.

    Raises:
        UserError: If `scale` is not above 0 or, in a fit, the model does not end in a classifier
            that folds into a linear layer.

    Source:
        Cao et al., NeurIPS 2019, arXiv:1906.07413.

    Example:
        >>> learn.fit_stage1(200, loss=LDAMLoss(scale=30), cbs=CosineHead(scale=30))
    """

    # After callbacks that change the model in before_fit, before those that read its norms.
    order = 5
    head_type = CosineLinear

    def __init__(self, scale: float = 30.0):
        check_number("scale", scale, 0, above=True)
        self.scale = float(scale)

    def install(self, learn) -> CosineLinear:
        """Replace the learner's classifier by a `CosineLinear`, unless it is one already.

        Args:
            learn: Any fastai Learner. Its optimiser, if it has one, gets the new parameters.

        Returns:
            The head. An existing one keeps its scale.
        """

        def make(linear: nn.Linear) -> CosineLinear:
            return CosineLinear.from_linear(linear, self.scale)

        head = install_head(learn, CosineLinear, make)
        # Reading the scale waits for the device, so it happens once a fit.
        scale = head.cosine_scale.item()
        if abs(scale - self.scale) > 1e-6 * self.scale:
            _log.warning("the model keeps the CosineLinear it already has, with scale=%g", scale)
        return head

    def begin(self) -> None:
        """Install the head and give its parameters to the optimiser."""
        self.install(self.learn)
