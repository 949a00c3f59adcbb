"""Batch normalisation over the batches of all ranks, as a fastai callback."""

from timm.layers import convert_sync_batchnorm
from torch import nn

from ltlearn.errors import UserError, spell
from ltlearn.training.fit_callback import FitCallback
from ltlearn.utils import ranks

__all__ = ["SyncBatchNorm"]


class SyncBatchNorm(FitCallback):
    """Normalise by the statistics of the whole batch, not of the part that a rank has.

    For the length of a fit, torch's `SyncBatchNorm` (timm's for layers with an activation) takes
    the place of each batch normalisation, with the same parameters and statistics. Each such layer
    waits for all ranks twice per step. With one rank, the layers stay.

    Reads and writes the layers of `learn.model`, and puts them back after the fit.

    Raises:
        UserError: In a fit on several ranks, if the model is not on a CUDA device.
    """

    # Before callbacks that copy the model.
    order = 1

    def __init__(self):
        self._replaced: list[tuple[nn.Module, str, nn.Module]] = []

    def begin(self) -> None:
        """Replace the layers."""
        if ranks.world() == 1:
            return
        model = self.learn.model
        if next(model.parameters()).device.type != "cuda":
            raise UserError(
                f"{spell('sync_bn', True)} needs CUDA devices, and this training on "
                f"{ranks.world()} ranks runs on the CPU; leave it out."
            )
        self._replaced = [
            (parent, name, child)
            for parent in model.modules()
            for name, child in parent.named_children()
            if isinstance(child, nn.modules.batchnorm._BatchNorm)
        ]
        for parent, name, child in self._replaced:
            setattr(parent, name, convert_sync_batchnorm(child))

    def end(self) -> None:
        """Put the layers back; they hold the same parameters and statistics."""
        for parent, name, child in self._replaced:
            child.train(getattr(parent, name).training)
            setattr(parent, name, child)
        self._replaced = []
