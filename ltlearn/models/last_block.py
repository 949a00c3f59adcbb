"""Find the last block of a timm model."""

from timm.models import group_parameters
from torch import nn

from ltlearn.errors import UserError

__all__ = ["last_block"]


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
