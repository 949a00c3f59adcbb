"""Training the last block of a backbone alone, as a fastai callback."""

import torch
from fastai.callback.core import Callback
from timm.models import group_parameters
from torch import nn

from ltlearn.errors import UserError, check_whole

__all__ = ["LastBlock", "last_block"]


def last_block(backbone: nn.Module) -> dict[str, nn.Module]:
    """Return the modules of a timm model's last block that have parameters, by name.

    The block is the last one of timm's layer groups, with what follows it: the last residual block
    of a ResNet, the last transformer block and the final norm of a ViT.

    Args:
        backbone: A timm model.

    Raises:
        UserError: If timm does not group the layers of this model.
    """
    if not hasattr(backbone, "group_matcher"):
        raise UserError(
            f"{type(backbone).__name__} has no layer groups of timm's, so its last block is not "
            "known; train all of it, or take another timm model."
        )
    groups = group_parameters(backbone, backbone.group_matcher(coarse=False))
    parameters, names = dict(backbone.named_parameters()), set()
    for number in sorted(groups, reverse=True):
        names.update(groups[number])
        # A norm behind the last block is a group of its own in some models.
        if any(parameters[name].ndim > 1 for name in names):
            break
    owners = {name.rpartition(".")[0] for name in names}
    return {name: m for name, m in backbone.named_modules() if name in owners}


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
