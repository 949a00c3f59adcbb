"""The cosine classifier as a fastai callback."""

import logging

from fastai.callback.core import Callback
from torch import nn

from ltlearn.callbacks.install import install_head
from ltlearn.errors import check_number
from ltlearn.heads.cosine import CosineLinear

__all__ = ["CosineHead"]

_log = logging.getLogger("ltlearn")


class CosineHead(Callback):
    """Train a classifier of scaled cosines, as LDAM does.

    Before a fit the `nn.Linear` at the end of the model becomes a `CosineLinear` with the same
    directions, without a bias, and stays after it. Give `LDAMLoss` the same `scale`. Works in both
    stages, in a plain `learn.fit` and with any fastai Learner; for a Learner that is to load a file
    saved with this head, call `install` first.

    Reads `learn.model`. Writes the classifier of `learn.model` and, in `learn.opt`, the parameters
    of the classifier; groups, hyper-parameters and what is frozen stay.

    Args:
        scale: What the cosines are multiplied by, above 0, no unit.

    Raises:
        UserError: If `scale` is not above 0 or, in a fit, the model does not end in a classifier
            that stands for a linear layer.

    Source:
        Cao et al., NeurIPS 2019, arXiv:1906.07413.
    """

    # After callbacks that change the model in before_fit, before those that look at its norms.
    order = 5
    head_type = CosineLinear

    def __init__(self, scale: float = 30.0):
        check_number("scale", scale, 0, above=True)
        self.scale = float(scale)

    def install(self, learn) -> CosineLinear:
        """Put a `CosineLinear` in the place of the learner's classifier, unless there is one.

        Args:
            learn: Any fastai Learner. An optimiser it has already gets the new parameters.

        Returns:
            The head. One that was there keeps its scale.
        """

        def make(linear: nn.Linear) -> CosineLinear:
            return CosineLinear.from_linear(linear, self.scale)

        head = install_head(learn, CosineLinear, make)
        # Once a fit: on a device this waits for it.
        found = head.cosine_scale.item()
        if abs(found - self.scale) > 1e-6 * self.scale:
            _log.warning("the model has a CosineLinear already, with scale=%g: it is kept", found)
        return head

    def before_fit(self):
        """Install the head and give its parameters to the optimiser."""
        # `validate` and `get_preds` come by here too, with this lock held; they change no model.
        if not self.learn.lock.locked():
            self.install(self.learn)
