"""The base of callbacks that set something up for the length of a fit."""

from typing import Any

from fastai.callback.core import Callback
from fastai.callback.mixup import MixHandler

__all__ = ["FitCallback", "declared", "mixes_images"]


class FitCallback(Callback):
    """A fastai callback that sets something up before a fit and undoes it after the fit.

    A subclass overrides `begin` and `end`. `end` runs once for each `begin`, however the fit ends:
    in an `LTLearner` also after an exception or a keyboard interrupt, in another Learner then at
    the next fit. By class attributes a subclass declares what other code must know about it.

    Example:
        >>> class Announce(FitCallback):
        ...     def begin(self):
        ...         self.epochs = self.learn.n_epoch
        ...
        ...     def end(self):
        ...         self.epochs = None
    """

    # Whether a classifier trained with this callback still assumes the class prior of its sampler.
    leaves_prior = True
    # Whether the callback mixes the images of a batch, as MixUp does.
    mixes_images = False
    # Whether the callback mixes an image with another one of the batch, maybe of another rank.
    mixes_rows = False
    # Whether the callback sets class weights on the learner's loss.
    weights_loss = False
    # Whether the callback freezes weights that a checkpoint leaves out, because a learner that
    # resumes begins with the same.
    keeps_trunk = False
    # Whether `after_step` reads and writes the weights alone. Steps without events (stage 2 on
    # cached features, the resident loop) then call it, and nothing else.
    uses_weights_alone = False
    # Whether `install` changes the modules of the model. `fit_stage1` calls it before it makes the
    # optimiser, and before the backbone is compiled.
    changes_model = False
    # Why a training step with this callback cannot run twice on one batch; empty if it can.
    runs_once = ""

    _begun = False

    def begin(self) -> None:
        """Set up what the fit needs."""

    def end(self) -> None:
        """Undo what `begin` did; `self.learn` may be gone."""

    def after_step_of(self, form):
        """Return what a training without events calls after each step; None for nothing.

        Args:
            form: The `LinearGradient` or the `StackedHeads` that trains; None for other heads.
        """
        return self.after_step

    def before_fit(self):
        """Begin, unless this is no fit."""
        # `validate` and `get_preds` send the events of a fit, too, and hold this lock meanwhile.
        if not self.learn.lock.locked():
            self.close()
            self._begun = True
            self.begin()

    def after_fit(self):
        """End, unless this was no fit."""
        if not self.learn.lock.locked():
            self.close()

    def close(self) -> None:
        """End, also after an interrupted fit; without effect where nothing has begun."""
        if self._begun:
            self._begun = False
            self.end()


def declared(cb: Callback, name: str, default: Any = False) -> Any:
    """Return what the class of a callback declares by an attribute.

    A callback passes attributes that it lacks on to its learner, so the class is asked.

    Args:
        cb: Any fastai callback.
        name: The attribute.
        default: The result for a class that lacks it.
    """
    return getattr(type(cb), name, default)


def mixes_images(cb: Callback) -> bool:
    """Return whether a callback mixes the images of a batch, fastai's own included.

    Args:
        cb: Any fastai callback.
    """
    return isinstance(cb, MixHandler) or declared(cb, "mixes_images")
