"""Learnable weight scaling as a fastai callback."""

import logging

from torch import nn

from ltlearn.callbacks.install import install_head
from ltlearn.errors import UserError, check_choice, check_number
from ltlearn.heads.scaled import TRAINED, ScaledLinear
from ltlearn.training.fit_callback import FitCallback

__all__ = ["LearnableWeightScaling"]

_log = logging.getLogger("ltlearn")


class LearnableWeightScaling(FitCallback):
    """Train a factor per class, f_c in z_c = f_c * (w_c . x + b_c).

    Before a fit, the `nn.Linear` at the end of the model becomes a `ScaledLinear` with the same
    logits. The new head stays after the fit, and a later fit trains its factors further;
    `learn.model.head.fold()` turns it into a plain linear layer. Published with class-balanced
    sampling. Works in `retrain_classifier`, in a plain `learn.fit` and with any fastai Learner.
    Call `install` before a Learner loads a file that was saved with this head.

    Reads `learn.model`. Writes the classifier of `learn.model`, its `head_lr_factor` during the
    fit, and its parameters in `learn.opt`; groups, hyper-parameters and frozen parameters stay.

    Args:
        train: "scale" trains the factors alone (LWS). "all" trains weight, bias and factors
            together (MiSLAS).
        head_lr_factor: Learning rate of weight and bias divided by the factors' learning rate,
            above 0, no unit; only with `train="all"`. It multiplies their gradients. Under SGD,
            also with momentum, this equals multiplying their learning rate. Weight decay uses the
            learning rate of the factors (the authors of MiSLAS scale it as well). Adam and similar
            optimisers divide by the size of the gradient, so the factor has no effect there.

    Raises:
        UserError: If an option is not allowed or, in a fit, the model does not end in a classifier
            that folds into a linear layer.

    Source:
        Kang et al., ICLR 2020, arXiv:1910.09217 (LWS); Zhong et al., CVPR 2021, arXiv:2104.00466
        (MiSLAS).

    Example:
        >>> learn.retrain_classifier(sampler="class_balanced", cbs=LearnableWeightScaling())
    """

    # After callbacks that change the model in before_fit, before those that read its norms.
    order = 5
    leaves_prior = False
    head_type = ScaledLinear

    def __init__(self, train: str = "scale", head_lr_factor: float = 1.0):
        check_choice("train", train, TRAINED)
        check_number("head_lr_factor", head_lr_factor, 0, above=True)
        if train == "scale" and head_lr_factor != 1:
            raise UserError(
                "head_lr_factor must be 1 with train='scale', which does not train weight and "
                f"bias; got {head_lr_factor!r}."
            )
        self.trained, self.head_lr_factor = train, float(head_lr_factor)
        # Not `head`: fastai warns of names that the model has.
        self.installed: ScaledLinear | None = None

    def install(self, learn) -> ScaledLinear:
        """Replace the learner's classifier by a `ScaledLinear`, unless it is one already.

        Args:
            learn: Any fastai Learner. Its optimiser, if it has one, gets the new parameters.

        Returns:
            The head. An existing one keeps its factors and its trained parameters.
        """

        def make(linear: nn.Linear) -> ScaledLinear:
            return ScaledLinear.from_linear(linear, self.trained)

        head = install_head(learn, ScaledLinear, make)
        if head.trains != self.trained:
            _log.warning(
                "the model keeps the ScaledLinear it already has, with train=%r", head.trains
            )
        return head

    def begin(self) -> None:
        """Install the head and give its parameters to the optimiser."""
        self.installed = self.install(self.learn)
        self.installed.head_lr_factor = self.head_lr_factor

    def end(self) -> None:
        """Restore the learning rate of weight and bias."""
        if self.installed is not None:
            self.installed.head_lr_factor = 1.0
            self.installed = None
