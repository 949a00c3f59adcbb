"""Gradient checkpointing for the length of a fit, as a fastai callback."""

from ltlearn.errors import UserError, spell
from ltlearn.training.fit_callback import FitCallback

__all__ = ["GradCheckpointing"]


class GradCheckpointing(FitCallback):
    """Compute activations again in the backward pass, instead of keeping them in memory.

    A step takes about a third longer. Of the activations, memory holds one block and the inputs of
    the other blocks. The result is the same.

    Reads `learn.model.backbone`. Writes, for the length of a fit, timm's switch for checkpointing.

    Raises:
        UserError: In a fit, if the backbone is no timm model with such a switch.
    """

    def __init__(self):
        self._backbone = None

    def begin(self) -> None:
        """Switch checkpointing on."""
        backbone = getattr(self.learn.model, "backbone", None)
        try:
            backbone.set_grad_checkpointing(True)
        except (AttributeError, AssertionError, RuntimeError, ValueError):  # as models refuse it
            raise UserError(
                f"{spell('grad_checkpointing', True)} is not possible with "
                f"{type(backbone).__name__}; leave it out, or give a smaller batch size."
            ) from None
        self._backbone = backbone

    def end(self) -> None:
        """Switch checkpointing off."""
        if self._backbone is not None:
            self._backbone.set_grad_checkpointing(False)
            self._backbone = None
