"""Training the last block of a backbone alone, as a fastai callback."""

import torch
from torch import nn

from ltlearn.errors import UserError, check_whole
from ltlearn.models.last_block import last_block
from ltlearn.training.fit_callback import FitCallback
from ltlearn.training.freezing import Flags, freeze, unfreeze

__all__ = ["LastBlock"]


class LastBlock(FitCallback):
    """Train the last block of the backbone and the head; freeze the rest in evaluation mode.

    Places-LT is trained this way, from weights pre-trained on ImageNet.

    Reads `learn.model.backbone`. Writes, during a fit, which parameters of the backbone train and
    the mode of its modules; with `new`, also the parameters of the block as a fit begins.

    Args:
        new: Whether to initialise the block at random (PyTorch's own initialisation) instead of
            keeping its weights.
        seed: Seed of the random weights.

    Raises:
        UserError: If an option is not allowed or, in a fit, the model has no backbone whose blocks
            timm knows, or a layer of the block cannot be initialised with `new`.

    Source:
        Kang et al., ICLR 2020, arXiv:1910.09217 (the pre-trained block); Zhong et al., CVPR 2021,
        arXiv:2104.00466 (a new one).

    Example:
        >>> learn = lt_learner(dls, "resnet50", pretrained=True)
        >>> learn.fit_stage1(30, cbs=LastBlock())
    """

    # After fastai has put the model in training mode.
    order = 4
    trained_part = "last block"  # instead of "backbone" in the record of a stage

    def __init__(self, new: bool = False, seed: int = 0):
        if not isinstance(new, bool):
            raise UserError(f"new must be True or False, got {new!r}.")
        check_whole("seed", seed, 0)
        self.new, self.seed = new, seed
        self._flags: Flags = []
        self._block: list[nn.Module] = []

    def begin(self) -> None:
        """Freeze the layers before the block."""
        backbone = getattr(self.learn.model, "backbone", None)
        if backbone is None:
            raise UserError("LastBlock needs a model with a backbone; make one with lt_learner.")
        block = last_block(backbone)
        if self.new:
            self._initialise(block)
        self._block = list(block.values())
        trained = [p for m in self._block for p in m.parameters(recurse=False)]
        self._flags = freeze(backbone, but=trained)

    def before_train(self):
        """Put the frozen layers in evaluation mode."""
        self.learn.model.backbone.eval()
        for module in self._block:
            module.training = True

    def end(self) -> None:
        """Restore which parameters train."""
        unfreeze(self._flags)
        self._flags, self._block = [], []

    def _initialise(self, block: dict[str, nn.Module]) -> None:
        for name, module in block.items():
            if not hasattr(module, "reset_parameters"):
                raise UserError(
                    f"new=True cannot initialise the layer {name} ({type(module).__name__}); take "
                    "new=False."
                )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            for module in block.values():
                # On the CPU, so that every device begins with the same weights.
                device = next(module.parameters()).device
                module.to("cpu").reset_parameters()
                module.to(device)
