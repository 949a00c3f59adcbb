"""Training the last block of a backbone alone, as a fastai callback."""

import torch
from fastai.callback.core import Callback
from torch import nn

from ltlearn.errors import UserError, check_whole
from ltlearn.models.last_block import last_block

__all__ = ["LastBlock"]


class LastBlock(Callback):
    """Train the last block of the backbone and the head; the rest stays frozen, in evaluation mode.

    So Places-LT is trained, from a network that ImageNet has taught.

    Reads `learn.model.backbone`. Writes which of its parameters train and in which mode its modules
    are, for the time of a fit; with `new`, the parameters of the block as a fit begins.

    Args:
        new: Whether the block begins at random (PyTorch's own initialisation) instead of with the
            weights it has.
        seed: Of those random weights.

    Raises:
        UserError: If an option is not allowed or, in a fit, the model has no backbone whose blocks
            timm knows, or `new` meets a layer that cannot begin anew.

    Source:
        Kang et al., ICLR 2020, arXiv:1910.09217 (the pre-trained block); Zhong et al., CVPR 2021,
        arXiv:2104.00466 (a new one).
    """

    # After fastai has put the model in training mode.
    order = 4
    trained_part = "last block"  # instead of "backbone" in the record of a stage

    def __init__(self, new: bool = False, seed: int = 0):
        if not isinstance(new, bool):
            raise UserError(f"new must be True or False, got {new!r}.")
        check_whole("seed", seed, 0)
        self.new, self.seed = new, seed
        self._flags: list[tuple[nn.Parameter, bool]] = []
        self._block: list[nn.Module] = []

    def before_fit(self):
        """Freeze what lies before the block."""
        # `validate` and `get_preds` come by here too, with this lock held; they train nothing.
        if self.learn.lock.locked():
            return
        backbone = getattr(self.learn.model, "backbone", None)
        if backbone is None:
            raise UserError("LastBlock needs a model with a backbone; make one with lt_learner.")
        block = last_block(backbone)
        if self.new:
            self._begin_anew(block)
        self._block = list(block.values())
        training = {p for m in self._block for p in m.parameters(recurse=False)}
        self._flags = [(p, p.requires_grad) for p in backbone.parameters()]
        for p, _ in self._flags:
            p.requires_grad_(p in training)
            # An optimiser would apply weight decay and momentum to any that has a gradient.
            p.grad = None

    def before_train(self):
        """Put what is frozen in evaluation mode."""
        self.learn.model.backbone.eval()
        for module in self._block:
            module.training = True

    def after_fit(self):
        """Let everything train again that did before."""
        if not self.learn.lock.locked():
            self.close()

    def close(self) -> None:
        """Let everything train again, also after a fit that was interrupted."""
        for p, flag in self._flags:
            p.requires_grad_(flag)
        self._flags, self._block = [], []

    def _begin_anew(self, block: dict[str, nn.Module]) -> None:
        for name, module in block.items():
            if not hasattr(module, "reset_parameters"):
                raise UserError(
                    f"the layer {name} ({type(module).__name__}) cannot begin anew; take new=False."
                )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            for module in block.values():
                # On the CPU, so that every device begins with the same weights.
                device = next(module.parameters()).device
                module.to("cpu").reset_parameters()
                module.to(device)
