"""Learnable weight scaling as a fastai callback."""

import logging

from fastai.callback.core import Callback
from torch import nn

from ltlearn.callbacks.install import install_head
from ltlearn.errors import UserError, check_choice
from ltlearn.heads.scaled import TRAINED, ScaledLinear
from ltlearn.losses.counted import check_number

__all__ = ["LearnableWeightScaling"]

_log = logging.getLogger("ltlearn")


class LearnableWeightScaling(Callback):
    """Train a factor per class, f_c in z_c = f_c * (w_c . x + b_c).

    Before a fit the `nn.Linear` at the end of the model becomes a `ScaledLinear` with the same
    logits, and stays after it; a later fit goes on with its factors, and
    `learn.model.head.fold()` makes it a plain linear layer. Published with class-balanced
    sampling. Works in `retrain_classifier`, in a plain `learn.fit` and with any fastai Learner; for
    a Learner that is to load a file saved with this head, call `install` first.

    Reads `learn.model`. Writes the classifier of `learn.model`, in the head `head_lr_factor` for
    the length of the fit and, in `learn.opt`, the parameters of the classifier; groups,
    hyper-parameters and what is frozen stay.

    Args:
        train: "scale" trains the factors alone (LWS). "all" trains weight, bias and factors
            together (MiSLAS).
        head_lr_factor: Learning rate of weight and bias over that of the factors, above 0, no unit;
            only with `train="all"`. It multiplies their gradients, which under SGD, with momentum
            too, is the same as multiplying their rate. Weight decay has the rate of the factors
            (the authors of MiSLAS scale it as well), and Adam and its like, which divide by the
            size of the gradient, do not see the factor.

    Raises:
        UserError: If an option is not allowed or, in a fit, the model does not end in a classifier
            that stands for a linear layer.

    Source:
        Kang et al., ICLR 2020, arXiv:1910.09217 (LWS); Zhong et al., CVPR 2021, arXiv:2104.00466
        (MiSLAS).
    """

    # After callbacks that change the model in before_fit, before those that look at its norms.
    order = 5
    leaves_prior = False
    head_type = ScaledLinear

    def __init__(self, train: str = "scale", head_lr_factor: float = 1.0):
        check_choice("train", train, TRAINED)
        check_number("head_lr_factor", head_lr_factor, 0, open_low=True)
        if train == "scale" and head_lr_factor != 1:
            raise UserError(
                "head_lr_factor must be 1 with train='scale', where weight and bias are not "
                f"trained; got {head_lr_factor!r}."
            )
        self.trained, self.head_lr_factor = train, float(head_lr_factor)
        # Not `head`: fastai warns of names that the model has.
        self.installed: ScaledLinear | None = None

    def install(self, learn) -> ScaledLinear:
        """Put a `ScaledLinear` in the place of the learner's classifier, unless there is one.

        Args:
            learn: Any fastai Learner. An optimiser it has already gets the new parameters.

        Returns:
            The head. One that was there keeps its factors and what of it is trained.
        """

        def make(linear: nn.Linear) -> ScaledLinear:
            return ScaledLinear.from_linear(linear, self.trained)

        head = install_head(learn, ScaledLinear, make)
        if head.trains != self.trained:
            _log.warning(
                "the model has a ScaledLinear already, with train=%r: it is kept", head.trains
            )
        return head

    def before_fit(self):
        """Install the head and give its parameters to the optimiser."""
        # `validate` and `get_preds` come by here too, with this lock held; they change no model.
        if not self.learn.lock.locked():
            self.close()
            self.installed = self.install(self.learn)
            self.installed.head_lr_factor = self.head_lr_factor

    def after_fit(self):
        """Give weight and bias their own rate back."""
        if not self.learn.lock.locked():
            self.close()

    def close(self) -> None:
        """Give weight and bias their own rate back, also after a fit that was interrupted."""
        if self.installed is not None:
            self.installed.head_lr_factor = 1.0
            self.installed = None
